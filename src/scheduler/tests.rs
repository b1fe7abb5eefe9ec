//! The numbers of diffusers for Stable Diffusion's noise, and what holds for every solver.

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

/// The keys of a config that words stand for.
fn changes(words: &str) -> String {
    let key = |word: &str| match word {
        "leading" | "linspace" | "trailing" => format!("\"timestep_spacing\": \"{word}\","),
        "v_prediction" | "sample" => format!("\"prediction_type\": \"{word}\","),
        "sigma_min" => "\"final_sigmas_type\": \"sigma_min\",".to_owned(),
        "zero-snr" => "\"rescale_betas_zero_snr\": true,".to_owned(),
        "heun" => "\"solver_type\": \"heun\",".to_owned(),
        _ => format!("\"solver_order\": {},", word.strip_prefix("order-").unwrap()),
    };
    words.split(' ').map(key).collect()
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
                999.0, 962.0, 921.0, 876.0, 827.0, 772.0, 710.0, 640.0, 561.0, 474.0, 380.0, 285.0, 197.0, 123.0, 69.0,
                35.0, 15.0, 6.0, 2.0, 0.0,
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
    for kind in SchedulerKind::all() {
        for spacing in ["leading", "linspace", "trailing"] {
            for prediction in ["epsilon", "v_prediction"] {
                let more = format!("\"timestep_spacing\": \"{spacing}\", \"prediction_type\": \"{prediction}\",");
                let config = config(&kind.to_string(), &more);
                for steps in (1..=60).chain([61, 103, 121, 499, 999]) {
                    let Ok(schedule) = schedule(&config, steps) else {
                        let most = if matches!(kind.solver(), Solver::Lcm | Solver::Tcd) { 50 } else { 60 };
                        assert!(steps > most, "{kind} {spacing} {steps}");
                        continue;
                    };
                    assert!(schedule.init_noise_sigma > 0.0 && schedule.history() <= HISTORY);
                    assert!(schedule.steps.iter().all(Step::is_finite), "{kind} {spacing} {steps}");
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
    for kind in SchedulerKind::all() {
        for prediction in ["epsilon", "v_prediction"] {
            let more = format!("\"timestep_spacing\": \"trailing\", \"prediction_type\": \"{prediction}\",");
            let config = config(&kind.to_string(), &more);
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
                let start = noise.map(|z| z * schedule.init_noise_sigma).to_vec();
                let end = schedule.trace(start, network, || vec![0.1; 4]).pop().unwrap();
                // PNDM and DDIM end at the noise of timestep 0, and PNDM averages velocities of several timesteps.
                let averages = kind.solver() == Solver::Pndm && prediction == "v_prediction";
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
    let ddim = file.with_kind(Solver::Ddim.into()).unwrap();
    assert_eq!((ddim.spacing, ddim.set_alpha_to_one), (Spacing::Leading, true));
    assert_eq!(file.with_kind(Solver::Euler.into()).unwrap(), euler);
}

#[test]
fn says_which_key_it_cannot_follow() {
    for (text, words) in [
        (r#"{}"#, "`_class_name` must be the scheduler's class"),
        (r#"{"_class_name": "KDPM2DiscreteScheduler"}"#, "found: KDPM2DiscreteScheduler"),
        (r#"{"_class_name": "PNDMScheduler"}"#, "`skip_prk_steps` must be true"),
        (r#"{"_class_name": "DDIMScheduler"}"#, "`clip_sample` must be false"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "trained_betas": [0.1]}"#, "`trained_betas` must be null"),
        (
            r#"{"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": true, "use_karras_sigmas": true}"#,
            "`use_beta_sigmas` must be false",
        ),
        (
            r#"{"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "sample"}"#,
            "`prediction_type` must",
        ),
        (r#"{"_class_name": "HeunDiscreteScheduler", "clip_sample": true}"#, "`clip_sample` must be false"),
        (r#"{"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}"#, "`solver_type` must be \"bh2\""),
        (r#"{"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}"#, "`disable_corrector` must be []"),
        (r#"{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}"#, "`use_flow_sigmas` must be false"),
        (r#"{"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3}"#, "`solver_order`"),
        (r#"{"_class_name": "LCMScheduler", "original_inference_steps": 0}"#, "`original_inference_steps`"),
        (
            r#"{"_class_name": "LCMScheduler", "rescale_betas_zero_snr": true}"#,
            "`rescale_betas_zero_snr` must be false",
        ),
        (r#"{"_class_name": "TCDScheduler", "thresholding": true}"#, "`thresholding` must be false"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "prediction_type": "flow"}"#, "`prediction_type` must be"),
        // A noise level that leaves nothing of the picture gave steps of NaN.
        (r#"{"_class_name": "EulerDiscreteScheduler", "beta_end": 0.9}"#, "`beta_end` must be small enough"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "beta_schedule": "x"}"#, "`beta_schedule` must be"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "beta_end": -1}"#, "`beta_end` must be a number from 0.0001"),
        (r#"{"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1e9}"#, "`num_train_timesteps`"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_type": "x"}"#, "`solver_type` must be \"mid"),
        (
            r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}"#,
            "`algorithm_type` must be",
        ),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -1.0}"#, "`lambda_min_clipped`"),
        (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}"#, "`solver_order`"),
        (
            r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3}"#,
            "`solver_order`",
        ),
    ] {
        let error = SchedulerConfig::from_json(text, "scheduler/scheduler_config.json").unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("scheduler/scheduler_config.json"), "{error}");
    }
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
                   "use_karras_sigmas": true, "algorithm_type": "dpmsolver++", "unknown": [1]}"#;
    let config = SchedulerConfig::from_json(text, "s").unwrap();
    assert_eq!(config.kind().to_string(), "dpm++2m-karras");
}

#[test]
fn a_file_says_which_scheduler_it_is_and_a_name_overrules_it() {
    let file =
        |class: &str, keys: &str| SchedulerFile::parse(&format!("{{{keys}}}"), "s", class, Repairs::default()).unwrap();
    for (class, keys, name) in [
        ("EulerDiscreteScheduler", r#""use_karras_sigmas": true"#, "euler-karras"),
        ("HeunDiscreteScheduler", r#""use_exponential_sigmas": true"#, "heun-exponential"),
        ("UniPCMultistepScheduler", r#""use_beta_sigmas": true, "use_karras_sigmas": false"#, "unipc-beta"),
        ("DPMSolverMultistepScheduler", r#""algorithm_type": "sde-dpmsolver++""#, "dpm++2m-sde"),
        ("DPMSolverMultistepScheduler", r#""algorithm_type": "deis""#, "dpm++2m"),
        ("DPMSolverSinglestepScheduler", r#""use_karras_sigmas": true"#, "dpm++2s-karras"),
        ("DPMSolverSinglestepScheduler", r#""algorithm_type": "sde-dpmsolver++""#, "dpm++sde"),
        ("EulerAncestralDiscreteScheduler", r#""use_karras_sigmas": true"#, "euler-ancestral"),
        ("LCMScheduler", r#""use_karras_sigmas": true"#, "lcm"),
        ("TCDScheduler", "", "tcd"),
    ] {
        let file = file(class, keys);
        let own = file.own().unwrap();
        assert_eq!(own.kind().to_string(), name, "{class} {keys}");
        assert_eq!(file.with_kind(name.parse().unwrap()).unwrap(), own);
        let plain = SchedulerKind::from(own.kind().solver());
        assert_eq!(file.with_kind(plain).unwrap(), SchedulerConfig { kind: plain, ..own });
    }
    // A name can do without an algorithm or an order that only the file's own class has.
    let noise = file("DPMSolverMultistepScheduler", r#""algorithm_type": "dpmsolver", "solver_order": 3"#);
    assert!(noise.own().is_err() && noise.with_kind(Solver::Euler.into()).is_ok());
    assert!(noise.with_kind(Solver::DpmSolverMultistep.into()).is_ok());
}

/// So that few-step LoRAs such as Lightning's run on a base model, whose file has another spacing.
#[test]
fn a_name_can_ask_for_trailing_timesteps() {
    let trailing: Vec<_> = SchedulerKind::all().filter(|kind| kind.sigmas() == Sigmas::Trailing).collect();
    assert_eq!(trailing.len(), 8);
    for kind in trailing {
        let plain = kind.solver().name();
        for spacing in ["", "\"timestep_spacing\": \"leading\","] {
            let steps = |steps| schedule(&config(&kind.to_string(), spacing), steps).unwrap();
            assert_eq!((steps(4), steps(20)), (run(plain, "trailing", 4), run(plain, "trailing", 20)), "{kind}");
        }
        assert_eq!(timesteps(&run(&kind.to_string(), "leading", 4))[0], 999.0);
    }
}

#[test]
fn names_are_read_and_printed() {
    for kind in SchedulerKind::all() {
        assert_eq!(kind.to_string().parse::<SchedulerKind>().unwrap(), kind);
    }
    for (class, name) in [("DPMSolverMultistepScheduler", "dpm++2m"), ("DPMSolverSinglestepScheduler", "dpm++2s")] {
        assert_eq!(class.parse::<SchedulerKind>().unwrap().to_string(), name);
    }
    for absent in ["ddim-karras", "euler-ancestral-beta", "lcm-exponential", "euler-karras-beta", "tcd-trailing"] {
        assert!(absent.parse::<SchedulerKind>().is_err(), "{absent}");
    }
    assert!("dpm".parse::<SchedulerKind>().unwrap_err().to_string().contains("dpm++2m-karras"));
}

#[test]
fn runs_of_one_number_are_those_of_diffusers() {
    for &(kind, words, steps, eta, draws, wanted) in TRACES {
        let schedule = schedule(&config(kind, &changes(words)).with_eta(eta), steps).unwrap();
        let mut drawn = 0;
        let fresh_noise = || {
            drawn += 1;
            vec![0.5]
        };
        let found = schedule.trace(vec![schedule.init_noise_sigma], |x, _| vec![0.1 * x[0] + 0.3], fresh_noise);
        assert_eq!(found.len(), wanted.len(), "{kind} {words} {steps}");
        for (found, wanted) in found.iter().zip(wanted) {
            let difference = (f64::from(found[0]) - wanted).abs();
            // The reference computes with the first latents' size, so it has their rounding error.
            let tolerance = 2e-5 * wanted.abs().max(0.1) + f64::from(f32::EPSILON * schedule.init_noise_sigma);
            assert!(difference <= tolerance, "{kind} {words} {steps}: {} for {wanted}", found[0]);
        }
        // diffusers draws noise of weight 0 at the last step, where it has no effect.
        let last = usize::from(drawn < draws && schedule.steps[steps - 1].noise == 0.0);
        assert_eq!(drawn + last, draws, "{kind} {words} {steps}");
    }
}

#[test]
fn weights_are_those_of_the_formulas() {
    // a, b[0], b[1] and the weight of noise, after each call.
    let euler = [0.279290, 0.395148, 0.429792, 0.0].map(|a| [a, 1.0 - a, 0.0, 0.0]);
    let ancestral = [(0.078003, 3.919305), (0.156142, 1.481626), (0.184721, 0.625915), (0.0, 0.0)];
    for (kind, words, eta, wanted) in [
        ("euler", "trailing", 0.0, &euler[..]),
        ("euler-ancestral", "trailing", 0.0, &ancestral.map(|(a, noise)| [a, 1.0 - a, 0.0, noise])),
        (
            "dpm++2m",
            "leading",
            0.0,
            &[
                [0.933838, 0.221247, 0.0, 0.0],
                [0.828792, 0.452366, -0.133399, 0.0],
                [0.655342, 0.673485, -0.232387, 0.0],
                [0.0, 1.0, 0.0, 0.0],
            ],
        ),
        (
            "dpm++2m",
            "linspace",
            0.0,
            &[
                [0.973547, 0.171498, 0.0, 0.0],
                [0.875844, 0.432319, -0.115059, 0.0],
                [0.671394, 0.681363, -0.213448, 0.0],
                [0.0, 1.0, 0.0, 0.0],
            ],
        ),
        (
            "dpm++2m-karras",
            "leading",
            0.0,
            &[
                [0.955866, 0.235711, 0.0, 0.0],
                [0.427863, 1.286572, -0.502373, 0.0],
                [0.071454, 1.585322, -0.650983, 0.0],
                [0.0, 1.0, 0.0, 0.0],
            ],
        ),
        (
            "dpm++2m-sde",
            "leading",
            0.0,
            &[
                [0.417019, 0.320048, 0.0, 0.820143],
                [0.422272, 0.682848, -0.201367, 0.653684],
                [0.322029, 1.004429, -0.346580, 0.433599],
                [0.0, 1.0, 0.0, 0.0],
            ],
        ),
        (
            "dpm++2m-sde-karras",
            "leading",
            0.0,
            &[
                [0.207242, 0.286816, 0.0, 0.930952],
                [0.060349, 1.468038, -0.573231, 0.403947],
                [0.004663, 1.688785, -0.693468, 0.029093],
                [0.0, 1.0, 0.0, 0.0],
            ],
        ),
        (
            "lcm",
            "leading",
            0.0,
            &[
                [0.0, 0.228501, 0.0, 0.973544],
                [0.0, 0.526943, 0.0, 0.849900],
                [0.0, 0.811773, 0.0, 0.583973],
                [0.0, 1.0, 0.0, 0.0],
            ],
        ),
        (
            "tcd",
            "leading",
            0.0,
            &[
                [0.975820, 0.161887, 0.0, 0.0],
                [0.872997, 0.327463, 0.0, 0.0],
                [0.687108, 0.449706, 0.0, 0.0],
                [0.049925, 0.959047, 0.0, 0.0],
            ],
        ),
        (
            "tcd",
            "leading",
            0.3,
            &[
                [0.411414, 0.200416, 0.0, 0.882788],
                [0.532504, 0.405265, 0.0, 0.673480],
                [0.503335, 0.546544, 0.0, 0.397524],
                [0.049925, 0.959047, 0.0, 0.0],
            ],
        ),
        (
            "tcd",
            "leading",
            1.0,
            &[
                [0.006680, 0.228045, 0.0, 0.973521],
                [0.015787, 0.523336, 0.0, 0.849761],
                [0.027859, 0.797093, 0.0, 0.583493],
                [0.049925, 0.959047, 0.0, 0.0],
            ],
        ),
        (
            "ddim",
            "trailing",
            0.0,
            &[
                [0.973547, 0.171498, 0.0, 0.0],
                [0.875035, 0.318723, 0.0, 0.0],
                [0.670324, 0.468624, 0.0, 0.0],
                [0.051176, 0.957516, 0.0, 0.0],
            ],
        ),
        (
            "ddim",
            "trailing",
            1.0,
            &[
                [0.271902, 0.219395, 0.0, 0.932625],
                [0.345768, 0.444666, 0.0, 0.780733],
                [0.288100, 0.670035, 0.0, 0.514406],
                [0.002153, 0.997805, 0.0, 0.029129],
            ],
        ),
        ("ddim", "trailing", 0.0, &[[0.029223, 0.997580, 0.0, 0.0]]),
        ("tcd", "leading", 0.0, &[[0.029223, 0.997580, 0.0, 0.0]]),
    ] {
        let schedule = schedule(&config(kind, &changes(words)).with_eta(eta), wanted.len()).unwrap();
        for (step, wanted) in schedule.steps.iter().zip(wanted) {
            assert_near(&[step.a, step.b[0], step.b[1], step.noise].map(f64::from), wanted, 2e-6);
        }
    }
}

#[test]
fn zero_terminal_snr_has_a_finite_noise_level_in_sigma() {
    let levels = schedule(&config("euler", &changes("trailing zero-snr")), 4).unwrap();
    let sigmas: Vec<f64> = levels.steps.iter().map(|step| step.level.noise.into()).collect();
    assert_near(&sigmas, &[4095.999756, 5.398741, 1.768081, 0.727056], 1e-6);
    // Heun and single-step DPM-Solver++ do not know the key.
    for kind in ["heun", "dpm++2s"] {
        assert_eq!(schedule(&config(kind, &changes("zero-snr")), 4).ok(), schedule(&config(kind, ""), 4).ok());
    }
}

#[test]
fn exponential_timesteps_are_cut_off_and_not_rounded() {
    assert_eq!(timesteps(&run("dpm++2m-exponential", "linspace", 4)), [998.0, 538.0, 52.0, 0.0]);
}

#[test]
fn a_consistency_model_has_the_timesteps_of_its_distillation() {
    for (original, steps, wanted) in [
        (50, 1, &[999.0][..]),
        (50, 2, &[999.0, 499.0]),
        (50, 4, &[999.0, 759.0, 499.0, 259.0]),
        (50, 8, &[999.0, 879.0, 759.0, 639.0, 499.0, 379.0, 259.0, 139.0]),
        (100, 4, &[999.0, 749.0, 499.0, 249.0]),
    ] {
        for kind in ["lcm", "tcd"] {
            let config = config(kind, &format!("\"original_inference_steps\": {original},"));
            assert_eq!(timesteps(&schedule(&config, steps).unwrap()), wanted);
        }
    }
}

#[test]
fn a_picture_enters_at_the_step_of_its_strength() {
    for (kind, words, steps, strength, calls, first, sigma) in [
        ("euler", "leading", 50, 0.8, 40, 781.0, Some(4.691673)),
        ("euler-ancestral", "leading", 50, 0.8, 40, 781.0, Some(4.691673)),
        ("euler", "leading", 50, 0.3, 15, 281.0, Some(0.778924)),
        ("euler", "leading", 20, 0.75, 15, 701.0, Some(3.347765)),
        ("euler", "leading", 30, 0.7, 21, 661.0, Some(2.862932)),
        ("euler", "leading", 50, 0.9999, 49, 961.0, Some(11.676050)),
        ("euler", "leading", 100, 0.29, 28, 271.0, None),
        ("dpm++2m", "leading", 50, 0.8, 40, 761.0, Some(4.297550)),
        ("dpm++2m", "leading", 20, 0.75, 15, 706.0, Some(3.415703)),
        ("ddim", "leading", 50, 0.8, 40, 781.0, Some(4.691673)),
        ("pndm", "leading", 50, 0.8, 41, 801.0, None),
        ("pndm", "leading", 20, 0.75, 16, 751.0, None),
        ("heun", "leading", 50, 0.8, 79, 781.0, Some(4.691673)),
        ("heun", "leading", 20, 0.75, 29, 701.0, Some(3.347765)),
        ("euler-ancestral", "trailing", 2, 0.5, 1, 499.0, Some(1.612887)),
        ("euler-ancestral", "trailing", 4, 0.5, 2, 499.0, Some(1.612887)),
        ("lcm", "leading", 4, 0.5, 2, 499.0, None),
    ] {
        let schedule = schedule_from(&config(kind, &changes(words)), steps, strength).unwrap();
        let entry = schedule.steps[0];
        assert_eq!((schedule.steps.len(), entry.timestep), (calls, first), "{kind} {steps} {strength}");
        if let Some(sigma) = sigma {
            assert_near(&[f64::from(entry.level.noise) / f64::from(entry.level.picture)], &[sigma], 1e-6);
        }
        let from = if kind == "euler" || kind == "euler-ancestral" || kind == "heun" {
            1.0
        } else {
            (1.0 - entry.level.noise.powi(2)).sqrt()
        };
        assert!((entry.level.picture - from).abs() < 1e-6, "{kind}: {:?}", entry.level);
    }
    for kind in SchedulerKind::all() {
        let config = config(&kind.to_string(), "");
        assert_eq!(schedule_from(&config, 10, 1.0).ok(), schedule(&config, 10).ok(), "{kind}");
    }
}

#[test]
fn a_strength_that_leaves_no_step_is_refused() {
    let refusal = |steps, strength| schedule_from(&config("euler", ""), steps, strength).unwrap_err().to_string();
    assert!(refusal(4, 0.2).contains("leaves none of 4 steps"));
    for strength in [0.0, -1.0, 1.1, f64::NAN] {
        assert!(refusal(4, strength).contains("above 0 and at most 1"), "{strength}");
    }
}

#[test]
fn refuses_the_counts_for_which_diffusers_makes_a_step_too_many() {
    let refused = |kind: &str| {
        let config = config(kind, &changes("trailing"));
        let refused = |steps: &usize| schedule(&config, *steps).is_err_and(|e| e.to_string().contains("one more"));
        (1..=1000).filter(refused).collect::<Vec<_>>()
    };
    let euler = refused("euler");
    assert_eq!((euler.len(), &euler[..6]), (62, &[61, 103, 121, 122, 201, 206][..]));
    for kind in ["ddim", "heun", "dpm++2m", "unipc"] {
        assert_eq!(refused(kind), euler, "{kind}");
    }
    for kind in ["dpm++2s", "lcm"] {
        assert!(refused(kind).is_empty(), "{kind}");
    }
    let message = schedule(&config("euler", &changes("trailing")), 61).unwrap_err().to_string();
    assert!(message.contains("60 or 62 steps"), "{message}");
}

type Trace = (&'static str, &'static str, usize, f64, usize, &'static [f64]);

/// Runs of one number that diffusers 0.42 made: the latents begin with 1, the network returns 0.1 times its input plus
/// 0.3, and every draw of noise is 0.5. The columns: the scheduler, the changes to
/// its config, the steps, eta, the draws, and the latents after each call.
#[rustfmt::skip]
const TRACES: &[Trace] = &[
    ("euler", "leading", 4, 0.0, 0, &[3.239212, 2.804448, 2.456245, 2.433711]),
    ("euler", "leading", 8, 0.0, 0,
     &[6.137304, 5.422942, 4.978753, 4.671467, 4.438086, 4.241465, 3.991175, 3.962305]),
    ("euler", "leading v_prediction", 4, 0.0, 0, &[1.578470, 0.740581, 0.317824, 0.303588]),
    ("euler-karras", "leading", 4, 0.0, 0, &[3.073246, 2.609388, 2.481353, 2.458716]),
    ("euler", "trailing", 1, 0.0, 0, &[8.772198]),
    ("euler", "trailing", 2, 0.0, 0, &[9.416977, 8.132762]),
    ("euler", "trailing", 4, 0.0, 0, &[10.403938, 9.052076, 8.337490, 7.654534]),
    ("euler", "linspace", 4, 0.0, 0, &[9.938840, 8.703224, 7.857328, 7.825670]),
    ("euler", "trailing sample", 1, 0.0, 0, &[0.399767]),
    ("euler", "trailing v_prediction zero-snr", 4, 0.0, 0, &[4.999268, 1.490193, 0.634086, 0.208236]),
    ("euler-ancestral", "trailing", 1, 0.0, 1, &[8.772198]),
    ("euler-ancestral", "trailing", 2, 0.0, 2, &[9.644873, 8.341289]),
    ("euler-ancestral", "trailing", 4, 0.0, 4, &[11.187579, 9.978116, 9.205198, 8.472809]),
    ("euler-ancestral", "leading", 4, 0.0, 4, &[3.591930, 3.260931, 2.886704, 2.862394]),
    ("euler-ancestral", "linspace", 4, 0.0, 4, &[10.434925, 9.204155, 8.312246, 8.279262]),
    ("ddim", "leading", 4, 0.0, 0, &[1.698653, 2.299222, 2.454151, 2.448578]),
    ("ddim", "trailing", 1, 0.0, 0, &[8.810881]),
    ("ddim", "trailing", 2, 0.0, 0, &[4.978623, 8.181046]),
    ("ddim", "trailing", 4, 0.0, 0, &[2.483235, 4.785662, 6.875482, 7.706846]),
    ("ddim", "trailing", 4, 1.0, 4, &[2.669544, 5.272913, 7.587050, 8.510059]),
    ("pndm", "leading", 4, 0.0, 0, &[1.698653, 1.652984, 2.206520, 2.331811, 2.326625]),
    ("pndm", "leading", 8, 0.0, 0,
     &[1.448702, 1.431464, 1.967657, 2.543165, 3.084321, 3.519073, 3.799143, 3.844202, 3.837663]),
    ("lcm", "leading", 1, 0.0, 0, &[8.802960]),
    ("lcm", "leading", 2, 0.0, 1, &[5.063613, 8.308834]),
    ("lcm", "leading", 4, 0.0, 3, &[2.498260, 4.951750, 6.879190, 7.763591]),
    ("lcm", "leading", 8, 0.0, 7, &[1.661255, 2.556201, 3.596982, 4.850633, 5.743694, 6.406396, 6.823199, 7.007145]),
    ("lcm", "leading v_prediction", 4, 0.0, 3, &[0.411183, 0.299465, 0.192447, -0.030207]),
    ("tcd", "leading", 1, 0.0, 0, &[8.810881]),
    ("tcd", "leading", 2, 0.0, 0, &[4.978623, 8.181046]),
    ("tcd", "leading", 2, 0.3, 1, &[5.182769, 8.535979]),
    ("tcd", "leading", 2, 1.0, 1, &[5.069691, 8.339379]),
    ("tcd", "leading", 4, 0.0, 0, &[2.400906, 4.783172, 6.804092, 7.701802]),
    ("tcd", "leading", 4, 0.3, 3, &[2.617064, 5.402036, 7.780116, 8.836288]),
    ("tcd", "leading", 4, 1.0, 3, &[2.500915, 4.965661, 6.917419, 7.833529]),
    ("tcd", "leading", 8, 0.0, 0, &[1.562136, 2.359483, 3.354850, 4.639828, 5.690082, 6.562345, 7.169990, 7.396379]),
    ("tcd", "leading", 8, 0.3, 7, &[1.762573, 2.863811, 4.243873, 6.008792, 7.457010, 8.663351, 9.513598, 9.853404]),
    ("tcd", "leading", 8, 1.0, 7, &[1.662796, 2.561693, 3.610408, 4.878797, 5.792237, 6.480888, 6.927477, 7.142130]),
    ("dpm++2m", "leading", 1, 0.0, 0, &[1.257452]),
    ("dpm++2m", "leading", 2, 0.0, 0, &[1.678074, 1.860269]),
    ("dpm++2m", "leading", 4, 0.0, 0, &[1.636771, 2.303897, 2.774206, 2.867342]),
    ("dpm++2m", "leading", 8, 0.0, 0,
     &[1.402628, 1.894824, 2.440815, 2.985693, 3.470796, 3.848060, 4.085902, 4.095075]),
    ("dpm++2m", "linspace", 4, 0.0, 0, &[2.483235, 4.706024, 6.659966, 7.441374]),
    ("dpm++2m", "trailing", 4, 0.0, 0, &[2.483235, 4.715432, 6.666131, 7.441098]),
    ("dpm++2m-karras", "leading", 4, 0.0, 0, &[3.030823, 7.372160, 7.281556, 7.254664]),
    ("dpm++2m", "leading heun", 4, 0.0, 0, &[1.636771, 2.301724, 2.767675, 2.860186]),
    ("dpm++2m", "leading v_prediction", 4, 0.0, 0, &[0.889268, 0.763442, 0.642355, 0.375754]),
    ("dpm++2m", "leading sigma_min", 4, 0.0, 0, &[1.636771, 2.303897, 2.774206, 2.882957]),
    ("dpm++2m", "leading order-3", 6, 0.0, 0, &[1.492589, 2.078756, 2.666578, 3.157941, 3.472375, 3.509088]),
    ("dpm++2m-sde", "leading", 1, 0.0, 1, &[1.257452]),
    ("dpm++2m-sde", "leading", 2, 0.0, 2, &[1.815770, 2.035944]),
    ("dpm++2m-sde", "leading", 4, 0.0, 4, &[1.843927, 2.856925, 3.648648, 3.825423]),
    ("dpm++2m-sde-karras", "leading", 4, 0.0, 4, &[3.197547, 8.062929, 8.125873, 8.096878]),
    ("dpm++2m-sde", "leading heun", 4, 0.0, 4, &[1.843927, 2.871194, 3.691684, 3.872576]),
    ("dpm++2s", "leading", 4, 0.0, 0, &[2.483235, 4.723613, 6.791163, 7.592077]),
    ("dpm++2s", "leading", 5, 0.0, 0, &[2.090229, 3.740700, 5.571398, 6.934197, 7.419383]),
    ("dpm++2s-karras", "leading", 4, 0.0, 0, &[3.030823, 7.550449, 7.826123, 7.797874]),
    ("dpm++sde", "leading", 4, 0.0, 4, &[2.669544, 5.133348, 7.392972, 8.283358]),
    ("heun", "leading", 1, 0.0, 0, &[0.984327]),
    ("heun", "leading", 2, 0.0, 0, &[1.273978, 1.252387, 1.234823]),
    ("heun", "leading", 4, 0.0, 0, &[3.239212, 3.152124, 2.721586, 2.694831, 2.352533, 2.347895, 2.325808]),
    ("heun", "trailing", 4, 0.0, 0, &[10.403938, 9.625545, 8.319411, 8.060998, 7.394441, 7.310318, 6.685881]),
    ("heun-karras", "leading", 4, 0.0, 0, &[3.073246, 2.933815, 2.478270, 2.453929, 2.329374, 2.329834, 2.307823]),
    ("unipc", "leading", 1, 0.0, 0, &[1.257452]),
    ("unipc", "leading", 2, 0.0, 0, &[1.678074, 1.860269]),
    ("unipc", "leading", 4, 0.0, 0, &[1.636771, 2.290510, 2.750719, 2.841608]),
    ("unipc", "leading", 8, 0.0, 0,
     &[1.402628, 1.886964, 2.426128, 2.967632, 3.451406, 3.828687, 4.067778, 4.076417]),
    ("unipc-karras", "leading", 4, 0.0, 0, &[3.030823, 7.339711, 7.225770, 7.199018]),
    ("unipc", "leading order-3", 8, 0.0, 0,
     &[1.402628, 1.886964, 2.423390, 2.966666, 3.454014, 3.833882, 4.071104, 4.079840]),
];
