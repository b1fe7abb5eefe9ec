//! DPM-Solver++ of first and second order, multi-step, midpoint. Lu et al. 2022 (arXiv 2211.01095), algorithm 2.

use super::{
    config::{SchedulerConfig, Spacing},
    noise,
    step::{NoiseLevel, Schedule, Step, weights},
};

/// Steps in λ = ln(α / σ), with the change of the clean estimate as second order. `None` if two noise levels are equal
/// or a timestep is beyond the training range.
pub(super) fn schedule(config: &SchedulerConfig, count: usize) -> Option<Schedule> {
    let table = noise::NoiseTable::new(config);
    let (timesteps, mut sigmas) = if config.karras {
        let bounds = (config.sigma_max.unwrap_or(table.sigma_max()), config.sigma_min.unwrap_or(table.sigma_min()));
        let sigmas = noise::karras(bounds.0, bounds.1, count);
        (sigmas.iter().map(|&sigma| table.timestep(sigma).round_ties_even()).collect(), sigmas)
    } else {
        let timesteps = timesteps(config, count)?;
        let sigmas = timesteps.iter().map(|&timestep| table.sigma(timestep)).collect();
        (timesteps, sigmas)
    };
    sigmas.push(if config.final_sigma_is_zero { 0.0 } else { table.sigma_min() });
    let levels: Vec<Level> = sigmas.into_iter().map(Level::new).collect();
    if levels[..count].windows(2).any(|pair| pair[0].sigma_ratio <= pair[1].sigma_ratio) {
        return None;
    }

    let ends_low = config.final_sigma_is_zero || config.euler_at_final || (config.lower_order_final && count < 15);
    let step = |(index, &timestep): (usize, &f64)| {
        let (from, to) = (&levels[index], &levels[index + 1]);
        let h = to.lambda - from.lambda;
        let clean = -to.alpha * (-h).exp_m1();
        let first_order = index == 0 || config.solver_order == 1 || (index == count - 1 && ends_low);
        let b = if first_order {
            weights([clean])
        } else {
            let change = clean / 2.0 * h / (from.lambda - levels[index - 1].lambda);
            weights([clean + change, -change])
        };
        let (p, q) = config.prediction.clean(from.alpha, from.sigma);
        Step {
            p: p as f32,
            q: q as f32,
            a: (to.sigma / from.sigma) as f32,
            b,
            ..Step::new(timestep, NoiseLevel::new(from.alpha, from.sigma))
        }
    };
    Some(Schedule { init_noise_sigma: 1.0, steps: timesteps.iter().enumerate().map(step).collect() })
}

/// One timestep more than requested, without the last one, so that the run does not include timestep 0.
fn timesteps(config: &SchedulerConfig, count: usize) -> Option<Vec<f64>> {
    let asked = if config.spacing == Spacing::Trailing { count } else { count + 1 };
    let mut timesteps = noise::timesteps(config, asked)?;
    timesteps.truncate(count);
    Some(timesteps.into_iter().map(f64::round_ties_even).collect())
}

/// One noise level: latents = α · clean + σ · noise with α² + σ² = 1.
struct Level {
    /// σ / α.
    sigma_ratio: f64,
    alpha: f64,
    sigma: f64,
    /// ln(α / σ), which is infinite at zero noise.
    lambda: f64,
}

impl Level {
    fn new(sigma_ratio: f64) -> Self {
        let sigma_ratio = f64::from(sigma_ratio as f32);
        let alpha = 1.0 / (sigma_ratio.powi(2) + 1.0).sqrt();
        Self { sigma_ratio, alpha, sigma: sigma_ratio * alpha, lambda: -sigma_ratio.ln() }
    }
}
