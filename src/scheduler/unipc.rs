//! UniPC with B₂(h), predicting clean latents. Zhao et al. 2023, algorithms 5 and 6.

use super::{
    config::SchedulerConfig,
    dpm_solver::{Level, Levels},
    step::{HISTORY, Schedule, Step},
};

/// A predictor from each noise level to the next, and a corrector at the next, which uses the same output. `None` if
/// two noise levels are equal or a timestep is beyond the training range.
///
/// The corrector begins from where the predictor did, but since both weigh these latents alike, it is only the
/// difference of their weights of the estimates.
pub(super) fn schedule(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    let levels = Levels::new(config, count)?;
    let order = |index: usize| config.solver_order.min(count - index).min(index - begin + 1);
    let step = |index: usize| {
        let (from, to) = (&levels.levels[index], &levels.levels[index + 1]);
        let a = to.sigma / from.sigma;
        let mut b = predictor(&levels.levels, index, order(index));
        if index > begin {
            let (predicted, corrected) = (
                predictor(&levels.levels, index - 1, order(index - 1)),
                corrector(&levels.levels, index - 1, order(index - 1)),
            );
            for (i, corrected) in corrected.into_iter().enumerate() {
                b[i] += a * (corrected - if i == 0 { 0.0 } else { predicted[i - 1] });
            }
        }
        Step { a: a as f32, b: b.map(|weight| weight as f32), ..levels.step(config, index) }
    };
    Some(Schedule { init_noise_sigma: 1.0, steps: (begin..count).map(step).collect() })
}

/// The weights of the estimates, the newest first, in the step from a level to the next.
fn predictor(levels: &[Level], index: usize, order: usize) -> [f64; HISTORY] {
    let interval = Interval::new(levels, index, order);
    let shares = match order {
        // Any value is of second order; this one is the reference's.
        2 => vec![0.5],
        _ => solve(&interval.ratios, &interval.moments(order - 1)),
    };
    let mut b = interval.differences(&shares);
    b[0] += interval.clean;
    b
}

/// The same for the step once more, with the estimate at its end as the newest.
fn corrector(levels: &[Level], index: usize, order: usize) -> [f64; HISTORY] {
    let interval = Interval::new(levels, index, order);
    let ends: Vec<f64> = interval.ratios.iter().copied().chain([1.0]).collect();
    let shares = match order {
        1 => vec![0.5],
        _ => solve(&ends, &interval.moments(order)),
    };
    let (newest, older) = shares.split_last().expect("the order is at least 1");
    let mut b = interval.differences(older);
    b.rotate_right(1);
    b[0] = interval.clean * newest;
    b[1] += interval.clean * (1.0 - newest);
    b
}

/// The step from a level to the next, in λ.
struct Interval {
    h: f64,
    /// The weight of a constant clean estimate, which is also -α · B₂(h).
    clean: f64,
    /// The distances to the levels before, in steps: negative.
    ratios: Vec<f64>,
}

impl Interval {
    fn new(levels: &[Level], index: usize, order: usize) -> Self {
        let h = levels[index + 1].lambda - levels[index].lambda;
        let ratio = |back: usize| (levels[index - back].lambda - levels[index].lambda) / h;
        Self { h, clean: -levels[index + 1].alpha * (-h).exp_m1(), ratios: (1..order).map(ratio).collect() }
    }

    /// The weights of the estimates if their differences from the newest, divided by the distances, have `shares`.
    fn differences(&self, shares: &[f64]) -> [f64; HISTORY] {
        let mut b = [0.0; HISTORY];
        for (i, (share, ratio)) in shares.iter().zip(&self.ratios).enumerate() {
            let weight = self.clean * share / ratio;
            b[i + 1] += weight;
            b[0] -= weight;
        }
        b
    }

    /// The right sides of the conditions of order 1 to `count`: φₖ₊₁(-h) · k! / B₂(h).
    fn moments(&self, count: usize) -> Vec<f64> {
        let mut phi = (-self.h).exp_m1() / -self.h - 1.0;
        let mut factorial = 1.0;
        let mut moments = Vec::new();
        for k in 1..=count {
            moments.push(phi * factorial / (-self.h).exp_m1());
            factorial *= (k + 1) as f64;
            phi = phi / -self.h - 1.0 / factorial;
        }
        moments
    }
}

/// The `x` with Σ xₖ · nodesₖ^i = sums[i] for every i, by Gaussian elimination; the nodes are distinct.
fn solve(nodes: &[f64], sums: &[f64]) -> Vec<f64> {
    let size = nodes.len();
    let power = |i: usize| nodes.iter().map(move |node| node.powi(i as i32)).chain([sums[i]]).collect();
    let mut rows: Vec<Vec<f64>> = (0..size).map(power).collect();
    for column in 0..size {
        let pivot = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(&pivot).for_each(|(x, pivot)| *x -= factor * pivot);
        }
    }
    (0..size).map(|i| rows[i][size] / rows[i][i]).collect()
}
