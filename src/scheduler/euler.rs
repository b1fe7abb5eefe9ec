//! Euler steps in the noise level σ. Karras et al. 2022, algorithm 2 without churn; the ancestral variant adds noise.

use super::{
    config::{SchedulerConfig, Spacing},
    noise,
    step::{NoiseLevel, Schedule, Step, weights},
};

/// Euler steps from each noise level to the next. `None` if a timestep is beyond the training range.
pub(super) fn schedule(config: &SchedulerConfig, count: usize) -> Option<Schedule> {
    let levels = Levels::new(config, count)?;
    Some(levels.schedule(config, |_, next| (next, 0.0)))
}

/// Steps beyond the next noise level, and then adds fresh noise to reach it. `None` as for [`schedule`].
pub(super) fn ancestral_schedule(config: &SchedulerConfig, count: usize) -> Option<Schedule> {
    let levels = Levels::new(config, count)?;
    Some(levels.schedule(config, |sigma, next| {
        let up = (next.powi(2) * (sigma.powi(2) - next.powi(2)) / sigma.powi(2)).max(0.0).sqrt();
        ((next.powi(2) - up.powi(2)).max(0.0).sqrt(), up)
    }))
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
        if config.karras {
            let (max, min) = (config.sigma_max.unwrap_or(sigmas[0]), config.sigma_min.unwrap_or(sigmas[count - 1]));
            sigmas = noise::karras(max, min, count);
            timesteps = sigmas.iter().map(|&sigma| table.timestep(sigma)).collect();
        }
        sigmas.push(if config.final_sigma_is_zero { 0.0 } else { table.sigma_min() });
        Some(Self { timesteps, sigmas: sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect() })
    }

    /// The steps, for latents that are clean + σ · noise. `split` returns the level of the Euler step and that of the
    /// fresh noise.
    fn schedule(&self, config: &SchedulerConfig, split: impl Fn(f64, f64) -> (f64, f64)) -> Schedule {
        let max = self.sigmas.iter().copied().fold(0.0, f64::max);
        let init_noise_sigma = if config.spacing == Spacing::Leading { (max.powi(2) + 1.0).sqrt() } else { max };
        let step = |(&timestep, levels): (&f64, &[f64])| {
            let (sigma, (down, up)) = (levels[0], split(levels[0], levels[1]));
            // The network's input has unit variance: it is the latents times input_scale.
            let input_scale = 1.0 / (sigma.powi(2) + 1.0).sqrt();
            let (p, q) = config.prediction.clean(input_scale, sigma * input_scale);
            Step {
                timestep: timestep as f32,
                input_scale: input_scale as f32,
                p: (p * input_scale) as f32,
                q: q as f32,
                a: (down / sigma) as f32,
                b: weights([1.0 - down / sigma]),
                noise: up as f32,
                level: NoiseLevel::new(1.0, sigma),
            }
        };
        let steps = self.timesteps.iter().zip(self.sigmas.windows(2)).map(step).collect();
        Schedule { init_noise_sigma: init_noise_sigma as f32, steps }
    }
}
