//! PNDM with its linear multi-step warm-up (`skip_prk_steps`), which Stable Diffusion 1 calls PLMS. Liu et al. 2022.

use super::{
    config::{Prediction, SchedulerConfig},
    noise,
    step::{HISTORY, NoiseLevel, Schedule, Step, weights},
};

/// Steps along a weighted mean of the last outputs. The second timestep is used twice: first for a plain step, then to
/// repeat that step with the mean of both outputs. `None` if a timestep is beyond the training range.
pub(super) fn schedule(config: &SchedulerConfig, count: usize, begin: usize) -> Option<Schedule> {
    let table = noise::NoiseTable::new(config);
    let stride = (config.num_train_timesteps / count) as i64;
    let mut timesteps = noise::whole_timesteps(config, count)?;
    if count > 1 {
        timesteps.insert(1, timesteps[1]);
    }
    // A run that begins later makes its plain step at another timestep than the step that repeats it. diffusers does the
    // same.
    timesteps.drain(..begin);

    // The weights of the latents and of the mean output in a step between two timesteps: equation 9 of the paper.
    let transfer = |from: i64, to: i64| {
        let (alpha_bar, alpha_bar_prev) = (table.alpha_bar(from), table.alpha_bar(to));
        let sample = (alpha_bar_prev / alpha_bar).sqrt();
        let noise = (alpha_bar - alpha_bar_prev)
            / (alpha_bar * (1.0 - alpha_bar_prev).sqrt() + (alpha_bar * (1.0 - alpha_bar) * alpha_bar_prev).sqrt());
        match config.prediction {
            // The noise in v is sqrt(alpha_bar) * v + sqrt(1 - alpha_bar) * sample.
            Prediction::Velocity => (sample + noise * (1.0 - alpha_bar).sqrt(), noise * alpha_bar.sqrt()),
            Prediction::Epsilon | Prediction::Sample => (sample, noise),
        }
    };
    let step = |(call, &timestep): (usize, &i64)| {
        let (a, b) = if call == 1 {
            // Starts from the first latents again, which are (latents - b0 * first output) / a0.
            let (a, b) = transfer(timestep + stride, timestep);
            let (a0, b0) = transfer(timesteps[0], timesteps[0] - stride);
            (a / a0, weights([b / 2.0, b / 2.0 - a / a0 * b0]))
        } else {
            let (a, b) = transfer(timestep, timestep - stride);
            (a, weights(mean(call).map(|share| share * b)))
        };
        let alpha_bar = table.alpha_bar(timestep);
        let level = NoiseLevel::new(alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        Step { a: a as f32, b, ..Step::new(timestep as f64, level) }
    };
    Some(Schedule { init_noise_sigma: 1.0, steps: timesteps.iter().enumerate().map(step).collect() })
}

/// The weights of the outputs in the mean at one call of the network, the newest first: those of Adams and Bashforth,
/// of the highest order that the number of outputs allows. The output of call 1 is not used by later calls: its weight
/// is 0.
fn mean(call: usize) -> [f64; HISTORY] {
    let (shares, sum) = match call {
        0 => ([1.0, 0.0, 0.0, 0.0, 0.0], 1.0),
        2 => ([3.0, 0.0, -1.0, 0.0, 0.0], 2.0),
        3 => ([23.0, -16.0, 0.0, 5.0, 0.0], 12.0),
        4 => ([55.0, -59.0, 37.0, 0.0, -9.0], 24.0),
        _ => ([55.0, -59.0, 37.0, -9.0, 0.0], 24.0),
    };
    shares.map(|share| share / sum)
}
