//! Reads `scheduler_config.json` as diffusers does.

use serde_json::{Value, json};

use super::{
    config::{BetaSchedule, Prediction, SchedulerConfig, SchedulerKind, Sigmas, Solver, Spacing},
    noise::NoiseTable,
};
use crate::{
    error::{Error, Result},
    json::Object,
};

/// How each parameter of a class in diffusers 0.42 is treated. A key that the class does not have is ignored, as in
/// diffusers.
pub struct Keys {
    /// Keys that are supported with any valid value.
    pub followed: &'static [&'static str],
    /// Keys that are supported with these values, written as JSON; other values are rejected.
    pub limited: &'static [(&'static str, &'static [&'static str])],
    /// Keys that are read only by code that a limited key has disabled.
    pub without_effect: &'static [&'static str],
}

/// The keys of every class.
macro_rules! with_common {
    ($($key:literal),* $(,)?) => {
        &["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", $($key),*]
    };
}

/// How the keys of a solver's class are treated.
pub const fn keys(solver: Solver) -> Keys {
    match solver {
        Solver::Pndm => Keys {
            followed: with_common!["set_alpha_to_one", "timestep_spacing", "steps_offset"],
            limited: &[("trained_betas", &["null"]), ("skip_prk_steps", &["true"])],
            without_effect: &[],
        },
        Solver::Ddim => Keys {
            followed: with_common!["set_alpha_to_one", "steps_offset", "timestep_spacing", "rescale_betas_zero_snr"],
            limited: &[("trained_betas", &["null"]), ("clip_sample", &["false"]), ("thresholding", &["false"])],
            // The first and last belong to thresholding, the second to clipping.
            without_effect: &["dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value"],
        },
        Solver::Euler => Keys {
            followed: with_common![
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "sigma_min",
                "sigma_max",
                "timestep_spacing",
                "steps_offset",
                "rescale_betas_zero_snr",
                "final_sigmas_type",
            ],
            limited: &[
                ("trained_betas", &["null"]),
                ("interpolation_type", &["\"linear\""]),
                ("timestep_type", &["\"discrete\""]),
            ],
            without_effect: &[],
        },
        Solver::EulerAncestral => Keys {
            followed: with_common!["timestep_spacing", "steps_offset", "rescale_betas_zero_snr"],
            limited: &[("trained_betas", &["null"])],
            without_effect: &[],
        },
        Solver::Heun => Keys {
            followed: with_common![
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "timestep_spacing",
                "steps_offset",
            ],
            limited: &[("trained_betas", &["null"]), ("clip_sample", &["false"])],
            without_effect: &["clip_sample_range"],
        },
        // The class itself replaces the solver types of DEIS and UniPC by its own default.
        Solver::DpmSolverMultistep | Solver::DpmSolverMultistepSde => Keys {
            followed: with_common![
                "solver_order",
                "algorithm_type",
                "lower_order_final",
                "euler_at_final",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "final_sigmas_type",
                "lambda_min_clipped",
                "timestep_spacing",
                "steps_offset",
                "rescale_betas_zero_snr",
            ],
            limited: &[
                ("trained_betas", &["null"]),
                ("thresholding", &["false"]),
                ("solver_type", SOLVER_TYPES),
                ("use_lu_lambdas", &["false"]),
                ("use_flow_sigmas", &["false"]),
                ("variance_type", &["null"]),
                ("use_dynamic_shifting", &["false"]),
            ],
            // These belong to thresholding, flow sigmas and dynamic shifting.
            without_effect: &["dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"],
        },
        Solver::DpmSolverSinglestep | Solver::DpmSolverSinglestepSde => Keys {
            followed: with_common![
                "solver_order",
                "algorithm_type",
                "lower_order_final",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "final_sigmas_type",
                "lambda_min_clipped",
            ],
            limited: &[
                ("trained_betas", &["null"]),
                ("thresholding", &["false"]),
                ("solver_type", SOLVER_TYPES),
                ("use_flow_sigmas", &["false"]),
                ("variance_type", &["null"]),
                ("use_dynamic_shifting", &["false"]),
            ],
            without_effect: &["dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"],
        },
        Solver::UniPc => Keys {
            followed: with_common![
                "solver_order",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "sigma_min",
                "sigma_max",
                "timestep_spacing",
                "steps_offset",
                "final_sigmas_type",
                "rescale_betas_zero_snr",
            ],
            // The class itself replaces the solver types of DPM-Solver++ and DEIS by its own default.
            limited: &[
                ("trained_betas", &["null"]),
                ("thresholding", &["false"]),
                ("predict_x0", &["true"]),
                ("solver_type", &["\"bh2\"", "\"midpoint\"", "\"heun\"", "\"logrho\""]),
                ("lower_order_final", &["true"]),
                ("disable_corrector", &["[]"]),
                ("solver_p", &["null"]),
                ("use_flow_sigmas", &["false"]),
                ("use_dynamic_shifting", &["false"]),
                ("shift_terminal", &["null"]),
            ],
            without_effect: &["dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"],
        },
        Solver::Lcm => Keys {
            followed: with_common!["original_inference_steps", "timestep_scaling", "rescale_betas_zero_snr"],
            limited: CONSISTENCY_LIMITS,
            without_effect: CONSISTENCY_WITHOUT_EFFECT,
        },
        Solver::Tcd => Keys {
            followed: with_common!["original_inference_steps", "rescale_betas_zero_snr"],
            limited: CONSISTENCY_LIMITS,
            without_effect: TCD_WITHOUT_EFFECT,
        },
    }
}

const SOLVER_TYPES: &[&str] = &["\"midpoint\"", "\"heun\"", "\"logrho\"", "\"bh1\"", "\"bh2\""];

const CONSISTENCY_LIMITS: &[(&str, &[&str])] =
    &[("trained_betas", &["null"]), ("clip_sample", &["false"]), ("thresholding", &["false"])];

/// The timesteps are those of the distillation, and no step goes below timestep 0.
const CONSISTENCY_WITHOUT_EFFECT: &[&str] = &[
    "clip_sample_range",
    "set_alpha_to_one",
    "steps_offset",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "timestep_spacing",
];

/// TCD has no boundary condition either.
const TCD_WITHOUT_EFFECT: &[&str] = &[
    "clip_sample_range",
    "set_alpha_to_one",
    "steps_offset",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "timestep_spacing",
    "timestep_scaling",
];

/// The keys that ask for a spacing of the noise levels.
const SIGMAS: [(&str, Sigmas); 3] = [
    ("use_karras_sigmas", Sigmas::Karras),
    ("use_exponential_sigmas", Sigmas::Exponential),
    ("use_beta_sigmas", Sigmas::Beta),
];

/// The values that a pipeline's constructor sets in the config of its scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repairs {
    /// Whether `steps_offset` becomes 1.
    pub steps_offset: bool,
    /// Whether `clip_sample` becomes false if it is true.
    pub clip_sample: bool,
    /// Whether `skip_prk_steps` becomes true if it is false.
    pub skip_prk_steps: bool,
}

/// The `scheduler_config.json` of a pipeline, from which every solver can be made.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerFile {
    /// The contents of the file.
    source: Object,
    /// The class that the pipeline names, which may be one that is not implemented here.
    class: String,
    repairs: Repairs,
}

impl SchedulerFile {
    /// Reads the text of a `scheduler_config.json`; `file` is its name in messages. `class` is the class that
    /// `model_index.json` names: the file's own `_class_name` is ignored, as in diffusers.
    ///
    /// # Errors
    /// If the text is not a JSON object.
    pub fn parse(text: &str, file: &str, class: &str, repairs: Repairs) -> Result<Self> {
        Ok(Self { source: Object::parse(text, file)?, class: class.to_owned(), repairs })
    }

    /// The pipeline's own solver: missing keys have the defaults of its class, then the pipeline's repairs are applied.
    ///
    /// # Errors
    /// If its class is not implemented, or a value is not supported.
    pub fn own(&self) -> Result<SchedulerConfig> {
        self.with_kind(self.own_kind()?)
    }

    /// The solver of the pipeline's class, and the spacing of noise levels in the file.
    fn own_kind(&self) -> Result<SchedulerKind> {
        use Solver::{DpmSolverMultistep, DpmSolverMultistepSde, DpmSolverSinglestep, DpmSolverSinglestepSde};
        let source = &self.source;
        let solver = Solver::ALL.into_iter().find(|solver| solver.class_name() == self.class).ok_or_else(|| {
            Error::input(format!("{}: sdshard does not have the scheduler that model_index.json names", source.file()))
                .found(self.class.clone())
                .hint(format!("--scheduler with another one: {}", SchedulerKind::names()))
        })?;
        // The class itself replaces DEIS's algorithm by its own default.
        let solver = match (solver, source.text("algorithm_type")?) {
            (DpmSolverMultistep, Some("sde-dpmsolver++")) => DpmSolverMultistepSde,
            (DpmSolverSinglestep, Some("sde-dpmsolver++")) => DpmSolverSinglestepSde,
            (DpmSolverMultistep | DpmSolverSinglestep, Some(other)) if !["dpmsolver++", "deis"].contains(&other) => {
                return Err(source.refuse("algorithm_type", "\"dpmsolver++\" or \"sde-dpmsolver++\""));
            }
            _ => solver,
        };
        let mut sigmas = Sigmas::Timesteps;
        for (key, value) in SIGMAS.into_iter().filter(|(_, sigmas)| solver.has(*sigmas)) {
            if source.flag(key, false)? {
                if sigmas != Sigmas::Timesteps {
                    return Err(source.refuse(key, "false: the file asks for another spacing of noise levels too"));
                }
                sigmas = value;
            }
        }
        Ok(SchedulerKind::new(solver, sigmas).unwrap_or(solver.into()))
    }

    /// The solver `kind` with the settings of this file. For another class than the pipeline's this is the result of
    /// diffusers' `from_config(pipeline.scheduler.config)`: values in the file are used, with repairs, and missing keys
    /// have the defaults of the other class, without repairs. `kind` alone decides about the spacing of the noise levels
    /// and whether DPM-Solver++ is stochastic: `use_karras_sigmas`, `algorithm_type` and the like are not read.
    ///
    /// # Errors
    /// If the solver has a key whose value is not supported.
    pub fn with_kind(&self, kind: SchedulerKind) -> Result<SchedulerConfig> {
        // Missing keys are repaired if the default of the pipeline's own class is the wrong value.
        let is_own = self.own_kind().is_ok_and(|own| own == kind);
        let has = |key: &str, wrong: bool, default_of: Solver| {
            self.source.get(key).map_or(is_own && kind.solver() == default_of, |found| *found == json!(wrong))
        };
        let mut source = self.source.clone();
        if self.repairs.steps_offset && (is_own || source.keys().any(|key| key == "steps_offset")) {
            source = source.with("steps_offset", 1);
        }
        if self.repairs.clip_sample && has("clip_sample", true, Solver::Ddim) {
            source = source.with("clip_sample", false);
        }
        if self.repairs.skip_prk_steps && has("skip_prk_steps", false, Solver::Pndm) {
            source = source.with("skip_prk_steps", true);
        }
        if kind.sigmas() == Sigmas::Trailing {
            source = source.with("timestep_spacing", "trailing");
        }
        SchedulerConfig::read(source, kind)
    }
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json` without a pipeline, as the class in its `_class_name`; `file` is its
    /// name in messages.
    ///
    /// # Errors
    /// If the text is not a JSON object, or names a class or a value that is not supported.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let source = Object::parse(text, file)?;
        let class = source.text("_class_name")?.ok_or_else(|| source.refuse("_class_name", "the scheduler's class"))?;
        SchedulerFile { class: class.to_owned(), source, repairs: Repairs::default() }.own()
    }

    fn read(source: Object, kind: SchedulerKind) -> Result<Self> {
        use Solver::{Ddim, EulerAncestral, Heun, Lcm, Pndm, Tcd};
        let solver = kind.solver();
        let at = |error: Error| error.context(format!("reading the scheduler as {}", solver.class_name()));
        let follows = |key: &str| keys(solver).followed.contains(&key);
        Self::check_unsupported(&source, solver).map_err(at)?;

        let prediction = match source.text("prediction_type")? {
            None | Some("epsilon") => Prediction::Epsilon,
            Some("v_prediction") => Prediction::Velocity,
            Some("sample") if !matches!(solver, Pndm | EulerAncestral) => Prediction::Sample,
            Some(_) => return Err(at(source.refuse("prediction_type", "\"epsilon\" or \"v_prediction\""))),
        };
        let spacing = match source.text("timestep_spacing")? {
            // Single-step DPM-Solver++, LCM and TCD have timesteps of their own.
            _ if !follows("timestep_spacing") => Spacing::Linspace,
            None if matches!(solver, Pndm | Ddim) => Spacing::Leading,
            Some("leading") => Spacing::Leading,
            None | Some("linspace") => Spacing::Linspace,
            Some("trailing") => Spacing::Trailing,
            Some(_) => return Err(source.refuse("timestep_spacing", "\"leading\", \"linspace\" or \"trailing\"")),
        };
        let beta_schedule = match source.text("beta_schedule")? {
            None if matches!(solver, Lcm | Tcd) => BetaSchedule::ScaledLinear,
            None | Some("linear") => BetaSchedule::Linear,
            Some("scaled_linear") => BetaSchedule::ScaledLinear,
            Some(_) => return Err(source.refuse("beta_schedule", "\"linear\" or \"scaled_linear\"")),
        };
        let final_sigma_is_zero = match source.text("final_sigmas_type")? {
            None | Some("zero") => true,
            Some("sigma_min") => !follows("final_sigmas_type"),
            Some(_) => return Err(source.refuse("final_sigmas_type", "\"zero\" or \"sigma_min\"")),
        };
        let default_betas = if matches!(solver, Heun | Lcm | Tcd) { (0.00085, 0.012) } else { (0.0001, 0.02) };
        let beta_start = source.float("beta_start", 1e-9..=0.999)?.unwrap_or(default_betas.0);
        let beta_end = source.float("beta_end", beta_start..=0.999)?.unwrap_or(default_betas.1);
        if beta_end < beta_start {
            return Err(source.refuse("beta_start", &format!("at most `beta_end`, which is {beta_end}")));
        }
        let num_train_timesteps = source.size("num_train_timesteps", 2..=1_000_000)?.unwrap_or(1000);
        let order = match solver {
            Solver::DpmSolverMultistep | Solver::UniPc => source.size("solver_order", 1..=3),
            // The reference's third order of the stochastic solver weighs the second difference with the wrong sign.
            _ if follows("solver_order") => source.size("solver_order", 1..=2),
            _ => Ok(None),
        };
        let original = if follows("original_inference_steps") {
            source.size("original_inference_steps", 1..=num_train_timesteps)?
        } else {
            None
        };
        let config = Self {
            kind,
            prediction,
            spacing,
            steps_offset: source.size("steps_offset", 0..=num_train_timesteps - 1)?.unwrap_or(0),
            num_train_timesteps,
            beta_start,
            beta_end,
            beta_schedule,
            set_alpha_to_one: source.flag("set_alpha_to_one", solver == Ddim)?,
            final_sigma_is_zero,
            sigma_min: source.float("sigma_min", 1e-9..=1e9)?,
            sigma_max: source.float("sigma_max", 1e-9..=1e9)?,
            solver_order: order.map_err(at)?.unwrap_or(2),
            solver_type_is_heun: solver.is_dpm() && source.text("solver_type")? == Some("heun"),
            lower_order_final: source.flag("lower_order_final", !solver.is_singlestep())?,
            euler_at_final: source.flag("euler_at_final", false)?,
            zero_terminal_snr: follows("rescale_betas_zero_snr") && source.flag("rescale_betas_zero_snr", false)?,
            original_inference_steps: original.unwrap_or(num_train_timesteps.min(50)),
            timestep_scaling: source.float("timestep_scaling", 1e-9..=1e9)?.unwrap_or(10.0),
            eta: 0.0,
        };
        // These solvers divide by the weight of the picture in the latents, which is 0 in pure noise.
        let reaches_pure_noise = config.zero_terminal_snr && matches!(solver, Ddim | Lcm | Tcd);
        if reaches_pure_noise && prediction == Prediction::Epsilon {
            return Err(at(source
                .refuse("rescale_betas_zero_snr", "false for this scheduler and this model's \"prediction_type\"")
                .hint("--scheduler euler, or a model with \"v_prediction\"")));
        }
        if !reaches_pure_noise && !NoiseTable::new(&config).sigma_max().is_finite() {
            return Err(source
                .refuse("beta_end", "small enough to leave something of the picture at the last training timestep"));
        }
        if solver.is_dpm() {
            config.check_lambda_clip(&source).map_err(at)?;
        }
        Ok(config)
    }

    /// Fails for each key of this class whose value is not supported.
    fn check_unsupported(source: &Object, solver: Solver) -> Result<()> {
        if source.get("trained_betas").is_some() {
            return Err(source.refuse("trained_betas", "null: sdshard reads `beta_start` and `beta_end`"));
        }
        if solver == Solver::Pndm && !source.flag("skip_prk_steps", false)? {
            return Err(source
                .refuse("skip_prk_steps", "true: Runge-Kutta warm-up is not supported")
                .hint("Stable Diffusion's own files have \"skip_prk_steps\": true"));
        }
        if solver == Solver::Ddim && source.flag("clip_sample", true)? {
            return Err(source
                .refuse("clip_sample", "false, and this class's default is true")
                .hint("clipping is for pixels and ruins latents: write \"clip_sample\": false into the file"));
        }
        for (key, allowed) in keys(solver).limited {
            let found = source.get(key).map(Value::to_string);
            if found.is_some_and(|found| !allowed.contains(&found.as_str())) {
                return Err(source.refuse(key, &format!("{}: sdshard supports nothing else", allowed.join(" or "))));
            }
        }
        Ok(())
    }

    /// Accepts `lambda_min_clipped` if it clips nothing.
    fn check_lambda_clip(&self, source: &Object) -> Result<()> {
        let Some(clip) = source.float("lambda_min_clipped", f64::MIN..=f64::MAX)? else { return Ok(()) };
        let lowest = -NoiseTable::new(self).sigma_max().ln();
        if clip <= lowest {
            return Ok(());
        }
        Err(source.refuse("lambda_min_clipped", &format!("at most {lowest:.3}, so that it clips nothing")))
    }
}
