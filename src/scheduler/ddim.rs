//! DDIM with eta 0. Song et al. 2020, equation 12.

use super::{
    config::SchedulerConfig,
    noise,
    step::{NoiseLevel, Schedule, Step, weights},
};

/// Steps directly from one timestep to the next, along the noise that the network predicts. `None` if a timestep is
/// beyond the training range.
pub(super) fn schedule(config: &SchedulerConfig, count: usize) -> Option<Schedule> {
    let table = noise::NoiseTable::new(config);
    let stride = (config.num_train_timesteps / count) as i64;
    let timesteps = noise::whole_timesteps(config, count)?;
    let step = |&timestep: &i64| {
        let (alpha_bar, alpha_bar_prev) = (table.alpha_bar(timestep), table.alpha_bar(timestep - stride));
        let (alpha, sigma) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let (alpha_prev, sigma_prev) = (alpha_bar_prev.sqrt(), (1.0 - alpha_bar_prev).sqrt());
        // alpha_prev * clean + sigma_prev * noise, with noise = (latents - alpha * clean) / sigma.
        let a = sigma_prev / sigma;
        let b = alpha_prev - alpha * a;
        let (p, q) = config.prediction.clean(alpha, sigma);
        Step {
            p: p as f32,
            q: q as f32,
            a: a as f32,
            b: weights([b]),
            ..Step::new(timestep as f64, NoiseLevel::new(alpha, sigma))
        }
    };
    Some(Schedule { init_noise_sigma: 1.0, steps: timesteps.iter().map(step).collect() })
}
