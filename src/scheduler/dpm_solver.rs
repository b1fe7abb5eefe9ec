//! DPM-Solver++ of first to third order, multi-step and single-step, and its stochastic variant. Lu et al. 2022 (arXiv
//! 2211.01095), algorithms 1 and 2 and section 6; the third order is that of diffusers.

use super::{
    config::{SchedulerConfig, Sigmas, Solver, Spacing},
    noise,
    step::{NoiseLevel, Schedule, Step, weights},
};

/// Steps in λ = ln(α / σ), with the changes of the clean estimate as higher orders. `None` if two noise levels are
/// equal or a timestep is beyond the training range.
pub(super) fn multistep(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    let levels = Levels::new(config, count)?;
    let short = config.lower_order_final && count < 15;
    let ends_low = config.final_sigma_is_zero || config.euler_at_final || short;
    let order = |index: usize| match count - index {
        1 if ends_low => 1,
        2 if short => config.solver_order.min(index - begin + 1).min(2),
        _ => config.solver_order.min(index - begin + 1),
    };
    let step = |index: usize| {
        let lambda = |back: usize| levels.levels[index - back].lambda;
        let jump = Jump::new(config, &levels.levels[index], &levels.levels[index + 1]);
        let b = match order(index) {
            1 => weights([jump.clean]),
            2 => {
                let change = jump.change * jump.h / (lambda(0) - lambda(1));
                weights([jump.clean + change, -change])
            }
            _ => {
                let (h0, h1) = (lambda(0) - lambda(1), lambda(1) - lambda(2));
                // The second difference of the estimates enters with the weights `slope` in the first derivative and
                // `curve` in the second.
                let (slope, curve) = (jump.heun * h0 / (h0 + h1), jump.third * jump.h / (h0 + h1));
                let newer = (jump.heun + slope + curve) * jump.h / h0;
                let older = (slope + curve) * jump.h / h1;
                weights([jump.clean + newer, -newer - older, older])
            }
        };
        Step { a: jump.latents as f32, b, noise: jump.noise as f32, ..levels.step(config, index) }
    };
    Some(Schedule { init_noise_sigma: 1.0, steps: (begin..count).map(step).collect() })
}

/// Pairs of steps: one of first order, then one of second order from where the first one began. The last step is of
/// first order, and so is one that has no other before it. `None` as for [`multistep`].
pub(super) fn singlestep(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    let levels = Levels::new(config, count)?;
    // diffusers switches lower_order_final on where the orders would not come out even.
    let ends_low = config.lower_order_final || config.final_sigma_is_zero || count % 2 == 1;
    let step = |index: usize| {
        let plain = levels.step(config, index);
        let next = &levels.levels[index + 1];
        if config.solver_order == 1 || index.is_multiple_of(2) || index == begin || (ends_low && index == count - 1) {
            let jump = Jump::new(config, &levels.levels[index], next);
            return Step { a: jump.latents as f32, b: weights([jump.clean]), noise: jump.noise as f32, ..plain };
        }
        let first = &levels.levels[index - 1];
        let jump = Jump::new(config, first, next);
        let change = jump.change * jump.h / (levels.levels[index].lambda - first.lambda);
        let b = weights([change, jump.clean - change]);
        Step { before: jump.latents as f32, b, noise: jump.noise as f32, ..plain }
    };
    Some(Schedule { init_noise_sigma: 1.0, steps: (begin..count).map(step).collect() })
}

/// The noise levels of one run: one more than it has timesteps.
pub(super) struct Levels {
    timesteps: Vec<f64>,
    pub levels: Vec<Level>,
}

impl Levels {
    /// `None` if two noise levels are equal or a timestep is beyond the training range.
    pub fn new(config: &SchedulerConfig, count: usize) -> Option<Self> {
        let table = noise::NoiseTable::new(config);
        let spaced = noise::spaced(config, table.sigma_max(), table.sigma_min(), count);
        let repeats = config.kind.solver() == Solver::UniPc && spaced.is_some();
        let (timesteps, mut sigmas) = match spaced {
            Some(sigmas) => {
                // diffusers rounds the timesteps of Karras' levels and cuts off the fractions of others.
                let karras = config.kind.sigmas() == Sigmas::Karras;
                let whole = |timestep: f64| if karras { timestep.round_ties_even() } else { timestep.trunc() };
                (sigmas.iter().map(|&sigma| whole(table.timestep(sigma))).collect(), sigmas)
            }
            None => {
                let timesteps = timesteps(config, count)?;
                let sigmas = timesteps.iter().map(|&timestep| table.sigma(timestep)).collect();
                (timesteps, sigmas)
            }
        };
        sigmas.push(match config.final_sigma_is_zero {
            true => 0.0,
            false if repeats => sigmas[count - 1],
            false => table.sigma_min(),
        });
        let levels: Vec<Level> = sigmas.into_iter().map(Level::new).collect();
        let distinct = levels[..count].windows(2).all(|pair| pair[0].sigma_ratio > pair[1].sigma_ratio);
        distinct.then_some(Self { timesteps, levels })
    }

    /// A step whose estimate is of the clean latents, and whose other weights are filled in later.
    pub fn step(&self, config: &SchedulerConfig, index: usize) -> Step {
        let Level { alpha, sigma, .. } = self.levels[index];
        let (p, q) = config.prediction.clean(alpha, sigma);
        Step { p: p as f32, q: q as f32, ..Step::new(self.timesteps[index], NoiseLevel::new(alpha, sigma)) }
    }
}

/// One timestep more than requested, without the last one, so that the run does not include timestep 0.
fn timesteps(config: &SchedulerConfig, count: usize) -> Option<Vec<f64>> {
    let asked = if config.spacing == Spacing::Trailing { count } else { count + 1 };
    let mut timesteps = noise::timesteps(config, asked)?;
    timesteps.truncate(count);
    Some(timesteps.into_iter().map(f64::round_ties_even).collect())
}

/// One noise level: latents = α · clean + σ · noise with α² + σ² = 1.
pub(super) struct Level {
    /// σ / α.
    sigma_ratio: f64,
    pub alpha: f64,
    pub sigma: f64,
    /// ln(α / σ), which is infinite at zero noise.
    pub lambda: f64,
}

impl Level {
    fn new(sigma_ratio: f64) -> Self {
        let sigma_ratio = f64::from(sigma_ratio as f32);
        let alpha = 1.0 / (sigma_ratio.powi(2) + 1.0).sqrt();
        Self { sigma_ratio, alpha, sigma: sigma_ratio * alpha, lambda: -sigma_ratio.ln() }
    }
}

/// The weights of a step from one level to another.
struct Jump {
    /// The difference of λ.
    h: f64,
    /// Of the latents.
    latents: f64,
    /// Of the clean estimate, if it is constant.
    clean: f64,
    /// Of the first derivative of the clean estimate in λ, times `h`: as configured, and as in Heun's method.
    change: f64,
    heun: f64,
    /// Of the second derivative, times `h²`.
    third: f64,
    /// Of fresh noise.
    noise: f64,
}

impl Jump {
    fn new(config: &SchedulerConfig, from: &Level, to: &Level) -> Self {
        let h = to.lambda - from.lambda;
        // The stochastic variant goes down twice as far and comes back with fresh noise.
        let sde = config.kind.solver().is_sde();
        let (down, shrink, noise) =
            if sde { (2.0 * h, (-h).exp(), (-(-2.0 * h).exp_m1()).sqrt()) } else { (h, 1.0, 0.0) };
        let clean = -to.alpha * (-down).exp_m1();
        let heun = to.alpha * ((-down).exp_m1() / down + 1.0);
        Self {
            h,
            latents: to.sigma / from.sigma * shrink,
            clean,
            change: if config.solver_type_is_heun { heun } else { clean / 2.0 },
            heun,
            third: -to.alpha * (((-down).exp_m1() + down) / down.powi(2) - 0.5),
            noise: to.sigma * noise,
        }
    }
}
