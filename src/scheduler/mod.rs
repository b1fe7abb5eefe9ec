//! Solvers as tables of plain numbers: timesteps and coefficients of one run. They have no tensors, no randomness and
//! no state.
//!
//! Every solver here is a list of network calls, each followed by weighted sums, so a solver is fully described by the
//! weights. They are computed in f64 and rounded to f32 once.

mod beta;
mod config;
mod consistency;
mod ddim;
mod dpm_solver;
mod euler;
mod file;
mod noise;
mod pndm;
mod step;
mod unipc;

pub use config::{Prediction, SchedulerConfig, SchedulerKind, Sigmas, Solver, Spacing};
pub use file::{Keys, Repairs, SchedulerFile, keys};
pub use step::{HISTORY, NoiseLevel, Schedule, Step};

use crate::error::{Error, Result};

/// The schedule of `steps` steps with the configured solver, as in diffusers.
///
/// # Errors
/// If `steps` is 0 or more than the solver can make, if two of the run's noise levels are equal and the solver divides
/// by their difference, or if diffusers would make another number of steps.
pub fn schedule(config: &SchedulerConfig, steps: usize) -> Result<Schedule> {
    build(config, steps, 0)
}

/// The end of a run of `steps` steps, for latents that are a picture with noise: `strength` (above 0, at most 1) is the
/// share of the steps that are made, rounded down. The latents must have the `level` of the first step that is left:
/// `level.picture * picture + level.noise * noise`. As in the image-to-image pipelines of diffusers.
///
/// `strength` is an f64, because the product with `steps` is cut off: 100 · 0.29 are 28 steps.
///
/// # Errors
/// As [`schedule`], and if `strength` is out of range or leaves no step.
pub fn schedule_from(config: &SchedulerConfig, steps: usize, strength: f64) -> Result<Schedule> {
    if !(strength > 0.0 && strength <= 1.0) {
        return Err(Error::input("a strength is above 0 and at most 1").found(strength.to_string()));
    }
    let left = ((steps as f64 * strength) as usize).min(steps);
    if left == 0 && steps > 0 {
        return Err(Error::input(format!("a strength of {strength} leaves none of {steps} steps"))
            .hint(format!("a strength of at least {}, or more steps", 1.0 / steps as f64)));
    }
    build(config, steps, steps - left)
}

/// The schedule without its first `begin` steps.
fn build(config: &SchedulerConfig, steps: usize, begin: usize) -> Result<Schedule> {
    let solver = config.kind.solver();
    let most = match solver {
        Solver::Lcm | Solver::Tcd => config.original_inference_steps,
        _ => config.num_train_timesteps,
    };
    if !(1..=most).contains(&steps) {
        return Err(
            Error::input(format!("{} runs from 1 to {most} steps", config.kind)).found(format!("{steps} steps"))
        );
    }
    let name = config.kind;
    if noise::has_extra_timestep(config, steps) {
        return Err(Error::input(format!("{name} cannot make {steps} steps with trailing timesteps"))
            .found("a number of steps that diffusers turns into one more, by a rounding error")
            .hint(format!("{} or {} steps", steps - 1, steps + 1)));
    }
    let schedule = match solver {
        Solver::Pndm => pndm::schedule(config, steps, begin),
        Solver::Ddim => ddim::schedule(config, steps, begin),
        Solver::Euler => euler::schedule(config, steps, begin),
        Solver::EulerAncestral => euler::ancestral_schedule(config, steps, begin),
        Solver::Heun => euler::heun_schedule(config, steps, begin),
        Solver::DpmSolverMultistep | Solver::DpmSolverMultistepSde => dpm_solver::multistep(config, steps, begin),
        Solver::DpmSolverSinglestep | Solver::DpmSolverSinglestepSde => dpm_solver::singlestep(config, steps, begin),
        Solver::UniPc => unipc::schedule(config, steps, begin),
        Solver::Lcm => consistency::lcm(config, steps, begin),
        Solver::Tcd => consistency::tcd(config, steps, begin),
    };
    schedule.filter(|schedule| schedule.steps.iter().all(Step::is_finite)).ok_or_else(|| {
        Error::input(format!("{name} cannot make {steps} steps with the spacing of this model's scheduler"))
            .found("timesteps that coincide or lie beyond the training range")
            .hint(format!("fewer steps; {} is a common number", 50.min(steps / 2).max(1)))
    })
}

#[cfg(test)]
mod tests;
