//! DDIM. Song et al. 2020, equation 12.

use super::{
    config::SchedulerConfig,
    noise,
    step::{NoiseLevel, Schedule, Step, weights},
};

/// Steps directly from one timestep to the next, along the noise that the network predicts. `None` if a timestep is
/// beyond the training range.
pub(super) fn schedule(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    let table = noise::NoiseTable::new(config);
    let stride = (config.num_train_timesteps / count) as i64;
    let timesteps = noise::whole_timesteps(config, count)?;
    let step = |&timestep: &i64| {
        let (alpha_bar, alpha_bar_prev) = (table.alpha_bar(timestep), table.alpha_bar(timestep - stride));
        let (alpha, sigma) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let fresh =
            config.eta * ((1.0 - alpha_bar_prev) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_prev)).sqrt();
        // alpha_prev * clean + (what is left of the noise) * noise, with noise = (latents - alpha * clean) / sigma.
        let a = (1.0 - alpha_bar_prev - fresh.powi(2)).max(0.0).sqrt() / sigma;
        let b = alpha_bar_prev.sqrt() - alpha * a;
        let (p, q) = config.prediction.clean(alpha, sigma);
        Step {
            p: p as f32,
            q: q as f32,
            a: a as f32,
            b: weights([b]),
            noise: fresh as f32,
            ..Step::new(timestep as f64, NoiseLevel::new(alpha, sigma))
        }
    };
    Some(Schedule { init_noise_sigma: 1.0, steps: timesteps[begin..].iter().map(step).collect() })
}
