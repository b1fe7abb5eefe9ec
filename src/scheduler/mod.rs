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
mod tests {
    use super::*;

    /// The scheduler file of Stable Diffusion, with `more` keys before the others.
    fn config(kind: &str, more: &str) -> SchedulerConfig {
        let text = format!(
            r#"{{{more} "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                "beta_schedule": "scaled_linear", "clip_sample": false, "set_alpha_to_one": false,
                "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null}}"#
        );
        let file = SchedulerFile::parse(&text, "scheduler_config.json", "PNDMScheduler", Repairs::default());
        file.unwrap().with_kind(kind.parse().unwrap()).unwrap()
    }

    fn run(kind: &str, spacing: &str, steps: usize) -> Schedule {
        schedule(&config(kind, &format!("\"timestep_spacing\": \"{spacing}\",")), steps).unwrap()
    }

    fn timesteps(schedule: &Schedule) -> Vec<f32> {
        schedule.steps.iter().map(|step| step.timestep).collect()
    }

    /// σ of each step, computed from the scale of the network's input.
    fn sigmas(schedule: &Schedule) -> Vec<f64> {
        schedule.steps.iter().map(|step| (f64::from(step.input_scale).powi(-2) - 1.0).sqrt()).collect()
    }

    #[track_caller]
    fn assert_near(found: &[f64], wanted: &[f64], tolerance: f64) {
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() <= tolerance * wanted.abs().max(1.0), "{found} is not {wanted}");
        }
    }

    #[test]
    fn timesteps_are_those_of_diffusers() {
        for (kind, spacing, steps, wanted) in [
            ("ddim", "leading", 4, &[751.0, 501.0, 251.0, 1.0][..]),
            ("ddim", "trailing", 4, &[999.0, 749.0, 499.0, 249.0]),
            ("ddim", "trailing", 3, &[999.0, 666.0, 332.0]),
            ("ddim", "trailing", 1, &[999.0]),
            ("euler", "trailing", 4, &[999.0, 749.0, 499.0, 249.0]),
            ("pndm", "leading", 1, &[1.0]),
            ("pndm", "leading", 2, &[501.0, 1.0, 1.0]),
            ("pndm", "linspace", 3, &[999.0, 500.0, 500.0, 0.0]),
            ("euler", "linspace", 1, &[0.0]),
            (
                "dpm++2m-karras",
                "leading",
                20,
                &[
                    999.0, 962.0, 921.0, 876.0, 827.0, 772.0, 710.0, 640.0, 561.0, 474.0, 380.0, 285.0, 197.0, 123.0,
                    69.0, 35.0, 15.0, 6.0, 2.0, 0.0,
                ],
            ),
            (
                "dpm++2m-karras",
                "linspace",
                25,
                &[
                    999.0, 970.0, 938.0, 905.0, 868.0, 829.0, 786.0, 739.0, 687.0, 630.0, 568.0, 500.0, 427.0, 352.0,
                    278.0, 207.0, 146.0, 96.0, 59.0, 34.0, 18.0, 9.0, 4.0, 1.0, 0.0,
                ],
            ),
        ] {
            assert_eq!(timesteps(&run(kind, spacing, steps)), wanted, "{kind} {spacing} {steps}");
        }
    }

    #[test]
    fn long_runs_begin_and_end_as_in_diffusers() {
        for (kind, spacing, steps, first, last) in [
            ("ddim", "leading", 50, [981.0, 961.0, 941.0], [41.0, 21.0, 1.0]),
            ("ddim", "leading", 30, [958.0, 925.0, 892.0], [67.0, 34.0, 1.0]),
            ("ddim", "leading", 20, [951.0, 901.0, 851.0], [101.0, 51.0, 1.0]),
            ("ddim", "trailing", 50, [999.0, 979.0, 959.0], [59.0, 39.0, 19.0]),
            ("ddim", "trailing", 30, [999.0, 966.0, 932.0], [99.0, 66.0, 32.0]),
            ("pndm", "leading", 50, [981.0, 961.0, 961.0], [41.0, 21.0, 1.0]),
            ("pndm", "leading", 20, [951.0, 901.0, 901.0], [101.0, 51.0, 1.0]),
            ("dpm++2m", "linspace", 20, [999.0, 949.0, 899.0], [150.0, 100.0, 50.0]),
            ("dpm++2m", "leading", 20, [941.0, 894.0, 847.0], [142.0, 95.0, 48.0]),
        ] {
            let timesteps = timesteps(&run(kind, spacing, steps));
            assert_eq!(timesteps.len(), steps + usize::from(kind == "pndm"));
            assert_eq!((&timesteps[..3], &timesteps[timesteps.len() - 3..]), (&first[..], &last[..]), "{kind} {steps}");
        }
        // Euler keeps the fractions of a linear spacing.
        let euler: Vec<f64> = timesteps(&run("euler", "linspace", 20)).into_iter().map(f64::from).collect();
        assert_near(&euler[..3], &[999.0, 946.4211, 893.8421], 1e-7);
    }

    #[test]
    fn euler_has_diffusers_noise_levels() {
        let leading_30 = run("euler", "leading", 30);
        assert_near(&sigmas(&leading_30)[..3], &[11.476851, 9.543586, 8.004313], 1e-6);
        assert_near(&sigmas(&leading_30)[29..], &[0.041314], 1e-4);
        assert_near(&[leading_30.init_noise_sigma.into()], &[11.520334], 1e-7);

        let leading_50 = run("euler", "leading", 50);
        assert_near(&sigmas(&leading_50)[..3], &[13.120416, 11.676050, 10.425045], 1e-6);
        assert_near(&[leading_50.init_noise_sigma.into()], &[13.158469], 1e-7);

        let trailing_4 = run("euler", "trailing", 4);
        assert_near(&sigmas(&trailing_4), &[14.614647, 4.081731, 1.612887, 0.693205], 1e-6);
        assert_near(&[trailing_4.init_noise_sigma.into()], &[14.614647], 1e-7);
    }

    #[test]
    fn the_last_step_keeps_only_the_clean_estimate() {
        for kind in ["euler", "euler-ancestral", "dpm++2m", "dpm++2m-karras"] {
            for steps in [1, 2, 15, 50] {
                let last = *run(kind, "leading", steps).steps.last().unwrap();
                assert_eq!((last.a, last.b, last.noise), (0.0, [1.0, 0.0, 0.0, 0.0, 0.0], 0.0), "{kind} {steps}");
            }
        }
    }

    #[test]
    fn every_weight_is_finite() {
        for kind in SchedulerKind::ALL {
            for spacing in ["leading", "linspace", "trailing"] {
                for prediction in ["epsilon", "v_prediction"] {
                    let more = format!("\"timestep_spacing\": \"{spacing}\", \"prediction_type\": \"{prediction}\",");
                    let config = config(kind.name(), &more);
                    for steps in (1..=60).chain([61, 103, 121, 499, 999]) {
                        let Ok(schedule) = schedule(&config, steps) else {
                            assert!(steps > 60, "{kind} {spacing} {steps}");
                            continue;
                        };
                        assert!(schedule.init_noise_sigma > 0.0 && schedule.history() <= HISTORY);
                        for step in &schedule.steps {
                            let numbers = [step.timestep, step.input_scale, step.p, step.q, step.a, step.noise];
                            assert!(numbers.iter().chain(&step.b).all(|x| x.is_finite()), "{kind} {spacing} {step:?}");
                        }
                    }
                }
            }
        }
    }

    /// A network that knows the clean latents: every solver must reach them, whatever the network predicts.
    #[test]
    fn a_perfect_network_is_followed_to_the_clean_latents() {
        let clean = [0.5_f32, -1.25, 0.0, 3.0];
        let noise = [1.0_f32, -0.5, 2.0, 0.25];
        for kind in SchedulerKind::ALL {
            for prediction in ["epsilon", "v_prediction"] {
                let more = format!("\"timestep_spacing\": \"trailing\", \"prediction_type\": \"{prediction}\",");
                let config = config(kind.name(), &more);
                let table = noise::NoiseTable::new(&config);
                for steps in [1, 2, 3, 10, 30] {
                    let schedule = schedule(&config, steps).unwrap();
                    let network = |seen: &[f32], timestep: f32| {
                        let sigma = table.sigma(timestep.into());
                        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
                        let out = |(&seen, &clean): (&f32, &f32)| {
                            let noise = (f64::from(seen) - alpha * f64::from(clean)) / (sigma * alpha);
                            match config.prediction() {
                                Prediction::Epsilon => noise as f32,
                                _ => (alpha * noise - sigma * alpha * f64::from(clean)) as f32,
                            }
                        };
                        seen.iter().zip(&clean).map(out).collect()
                    };
                    let end = schedule.run(&noise, network, || vec![0.1; 4]);
                    // PNDM and DDIM end at the noise of timestep 0, and PNDM averages velocities of several timesteps.
                    let averages = kind == SchedulerKind::Pndm && prediction == "v_prediction";
                    let tolerance = if averages { 0.8 } else { 0.15 };
                    for (end, clean) in end.iter().zip(&clean) {
                        assert!((end - clean).abs() < tolerance, "{kind} {prediction} {steps}: {end} for {clean}");
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_step_counts_that_cannot_be_made() {
        let refusal = |kind, spacing: &str, steps| {
            schedule(&config(kind, &format!("\"timestep_spacing\": \"{spacing}\",")), steps).unwrap_err().to_string()
        };
        assert!(refusal("ddim", "leading", 0).contains("runs from 1 to 1000 steps"));
        assert!(refusal("euler", "leading", 1001).contains("found: 1001 steps"));
        assert!(refusal("ddim", "leading", 1000).contains("beyond the training range"));
        assert!(refusal("dpm++2m", "leading", 1000).contains("coincide"));
        assert!(refusal("dpm++2m", "linspace", 1000).contains("coincide"));
    }

    #[test]
    fn another_class_fills_in_its_own_defaults() {
        let text = r#"{"_class_name": "EulerDiscreteScheduler", "clip_sample": false}"#;
        let file = SchedulerFile::parse(text, "s", "EulerDiscreteScheduler", Repairs::default()).unwrap();
        let euler = file.own().unwrap();
        assert_eq!((euler.spacing, euler.set_alpha_to_one), (Spacing::Linspace, false));
        let ddim = file.with_kind(SchedulerKind::Ddim).unwrap();
        assert_eq!((ddim.spacing, ddim.set_alpha_to_one), (Spacing::Leading, true));
        assert_eq!(file.with_kind(SchedulerKind::Euler).unwrap(), euler);
    }

    #[test]
    fn says_which_key_it_cannot_follow() {
        for (text, words) in [
            (r#"{}"#, "`_class_name` must be the scheduler's class"),
            (r#"{"_class_name": "HeunDiscreteScheduler"}"#, "found: HeunDiscreteScheduler"),
            (r#"{"_class_name": "PNDMScheduler"}"#, "`skip_prk_steps` must be true"),
            (r#"{"_class_name": "DDIMScheduler"}"#, "`clip_sample` must be false"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "trained_betas": [0.1]}"#, "`trained_betas` must be null"),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": true}"#,
                "`use_beta_sigmas` must be false",
            ),
            (r#"{"_class_name": "EulerDiscreteScheduler", "prediction_type": "flow"}"#, "`prediction_type` must be"),
            // A noise level that leaves nothing of the picture gave steps of NaN.
            (r#"{"_class_name": "EulerDiscreteScheduler", "beta_end": 0.9}"#, "`beta_end` must be small enough"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "beta_schedule": "x"}"#, "`beta_schedule` must be"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "beta_end": -1}"#, "`beta_end` must be a number from 0.0001"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1e9}"#, "`num_train_timesteps`"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}"#, "`solver_type` must be \"mid"),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#,
                "`algorithm_type`",
            ),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -1.0}"#, "`lambda_min_clipped`"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#, "`solver_order`"),
        ] {
            let error = SchedulerConfig::from_json(text, "scheduler/scheduler_config.json").unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("scheduler/scheduler_config.json"), "{error}");
        }
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
                       "use_karras_sigmas": true, "algorithm_type": "dpmsolver++", "unknown": [1]}"#;
        let config = SchedulerConfig::from_json(text, "s").unwrap();
        assert_eq!(config.kind(), SchedulerKind::DpmSolverMultistepKarras);
    }

    #[test]
    fn names_are_read_and_printed() {
        for kind in SchedulerKind::ALL {
            assert_eq!(kind.to_string().parse::<SchedulerKind>().unwrap(), kind);
        }
        assert_eq!("DPMSolverMultistepScheduler".parse::<SchedulerKind>().unwrap(), SchedulerKind::DpmSolverMultistep);
        assert!("dpm".parse::<SchedulerKind>().unwrap_err().to_string().contains("dpm++2m-karras"));
    }
}
