//! Euler steps in the noise level σ. Karras et al. 2022, algorithm 2 without churn; the ancestral variant adds noise,
//! and Heun's method repeats each step with the mean of the slopes at both ends.

use super::{
    config::{SchedulerConfig, Spacing},
    noise,
    step::{NoiseLevel, Schedule, Step, weights},
};

/// Euler steps from each noise level to the next. `None` if a timestep is beyond the training range.
pub(super) fn schedule(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    let levels = Levels::new(config, count)?;
    Some(levels.schedule(config, (begin..count).map(|i| levels.step(config, i, |_, next| (next, 0.0)))))
}

/// Steps beyond the next noise level, and then adds fresh noise to reach it. `None` as for [`schedule`].
pub(super) fn ancestral_schedule(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    let levels = Levels::new(config, count)?;
    let split = |sigma: f64, next: f64| {
        let up = (next.powi(2) * (sigma.powi(2) - next.powi(2)) / sigma.powi(2)).max(0.0).sqrt();
        ((next.powi(2) - up.powi(2)).max(0.0).sqrt(), up)
    };
    Some(levels.schedule(config, (begin..count).map(|i| levels.step(config, i, split))))
}

/// An Euler step to the next noise level, and a call there that corrects it: for every level but 0. `None` as for
/// [`schedule`].
pub(super) fn heun_schedule(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    let levels = Levels::new(config, count)?;
    let both = |index: usize| {
        let step = levels.step(config, index, |_, next| (next, 0.0));
        let corrector = (index + 1 < count).then(|| {
            // The slopes at both ends are (latents - estimate) / σ' with the latents of this call, since the Euler step
            // went along the first slope. Half of their difference, times the step σ' - σ, corrects the latents.
            let (sigma, next) = (levels.sigmas[index], levels.sigmas[index + 1]);
            let half = (sigma - next) / (2.0 * next);
            let reached = levels.step(config, index + 1, |_, next| (next, 0.0));
            Step { a: 1.0, b: weights([half, -half]), ..reached }
        });
        std::iter::once(step).chain(corrector)
    };
    Some(levels.schedule(config, (begin..count).flat_map(both)))
}

/// The noise levels of one run: one more than it has timesteps.
struct Levels {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
}

impl Levels {
    fn new(config: &SchedulerConfig, count: usize) -> Option<Self> {
        let table = noise::NoiseTable::new(config);
        let mut timesteps: Vec<f64> =
            noise::timesteps(config, count)?.into_iter().map(|timestep| f64::from(timestep as f32)).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&timestep| table.sigma(timestep)).collect();
        if let Some(spaced) = noise::spaced(config, sigmas[0], sigmas[count - 1], count) {
            timesteps = spaced.iter().map(|&sigma| table.timestep(sigma)).collect();
            sigmas = spaced;
        }
        sigmas.push(if config.final_sigma_is_zero { 0.0 } else { table.sigma_min() });
        Some(Self { timesteps, sigmas: sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect() })
    }

    fn schedule(&self, config: &SchedulerConfig, steps: impl Iterator<Item = Step>) -> Schedule {
        let max = self.sigmas.iter().copied().fold(0.0, f64::max);
        let init_noise_sigma = if config.spacing == Spacing::Leading { (max.powi(2) + 1.0).sqrt() } else { max };
        Schedule { init_noise_sigma: init_noise_sigma as f32, steps: steps.collect() }
    }

    /// The step from a level, for latents that are clean + σ · noise. `split` returns the level of the Euler step and
    /// that of the fresh noise.
    fn step(&self, config: &SchedulerConfig, index: usize, split: impl Fn(f64, f64) -> (f64, f64)) -> Step {
        let sigma = self.sigmas[index];
        let (down, up) = split(sigma, self.sigmas[index + 1]);
        // The network's input has unit variance: it is the latents times input_scale.
        let input_scale = 1.0 / (sigma.powi(2) + 1.0).sqrt();
        let (p, q) = config.prediction.clean(input_scale, sigma * input_scale);
        Step {
            timestep: self.timesteps[index] as f32,
            input_scale: input_scale as f32,
            p: (p * input_scale) as f32,
            q: q as f32,
            a: (down / sigma) as f32,
            before: 0.0,
            b: weights([1.0 - down / sigma]),
            noise: up as f32,
            level: NoiseLevel::new(1.0, sigma),
        }
    }
}
