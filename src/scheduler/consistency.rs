//! Samplers of consistency models, which estimate the clean latents in one call and add noise for the next: LCM (Luo et
//! al. 2023) and TCD (Zheng et al. 2024).

use super::{
    config::SchedulerConfig,
    noise,
    step::{NoiseLevel, Schedule, Step, weights},
};

/// The standard deviation of the data in the boundary condition of consistency models.
const SIGMA_DATA: f64 = 0.5;

/// Keeps the clean estimate alone, and adds fresh noise up to the next timestep.
pub(super) fn lcm(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    Some(schedule(config, count, begin, |table, timestep, next| {
        let scaled = config.timestep_scaling * timestep as f64;
        let skip = SIGMA_DATA.powi(2) / (scaled.powi(2) + SIGMA_DATA.powi(2));
        let out = scaled / (scaled.powi(2) + SIGMA_DATA.powi(2)).sqrt();
        let (picture, noise) = next.map_or((1.0, 0.0), |next| {
            let alpha_bar = table.alpha_bar(next);
            (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())
        });
        (picture * skip, picture * out, noise)
    }))
}

/// Goes along the predicted noise to a timestep between the next one and 0, and adds fresh noise up to the next. With
/// eta 0 this is the next one itself.
pub(super) fn tcd(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    Some(schedule(config, count, begin, |table, timestep, next| {
        let alpha_bar = table.alpha_bar(timestep);
        // The last step goes to timestep 0. The product is in f32 as in the reference, because it decides the timestep.
        let to = (((1.0 - config.eta) as f32) * next.unwrap_or(0) as f32).floor() as i64;
        let (reached, wanted) = (table.alpha_bar(to), table.alpha_bar(next.unwrap_or(0)));
        let (shrink, noise) = match next {
            Some(_) if config.eta > 0.0 => ((wanted / reached).sqrt(), (1.0 - wanted / reached).sqrt()),
            _ => (1.0, 0.0),
        };
        let a = shrink * ((1.0 - reached) / (1.0 - alpha_bar)).sqrt();
        (a, shrink * reached.sqrt() - a * alpha_bar.sqrt(), noise)
    }))
}

/// The steps with the weights of latents, clean estimate and fresh noise that `step` returns for a timestep and the
/// next one, which the last step does not have.
fn schedule(
    config: &SchedulerConfig,
    count: usize,
    begin: usize,
    step: impl Fn(&noise::NoiseTable, i64, Option<i64>) -> (f64, f64, f64),
) -> Schedule {
    let table = noise::NoiseTable::new(config);
    let timesteps = timesteps(config, count);
    let step = |index: usize| {
        let timestep = timesteps[index];
        let alpha_bar = table.alpha_bar(timestep);
        let (alpha, sigma) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let (p, q) = config.prediction.clean(alpha, sigma);
        let (a, b, noise) = step(&table, timestep, timesteps.get(index + 1).copied());
        Step {
            p: p as f32,
            q: q as f32,
            a: a as f32,
            b: weights([b]),
            noise: noise as f32,
            ..Step::new(timestep as f64, NoiseLevel::new(alpha, sigma))
        }
    };
    Schedule { init_noise_sigma: 1.0, steps: (begin..count).map(step).collect() }
}

/// `count` of the timesteps that the model was distilled with, evenly from the last one down.
fn timesteps(config: &SchedulerConfig, count: usize) -> Vec<i64> {
    let origin = config.original_inference_steps;
    let stride = config.num_train_timesteps / origin;
    let spacing = origin as f64 / count as f64;
    (0..count).map(|i| ((origin - (i as f64 * spacing) as usize) * stride) as i64 - 1).collect()
}
