//! Reads `scheduler_config.json` as diffusers does.

use serde_json::{Value, json};

use super::{
    config::{BetaSchedule, Prediction, SchedulerConfig, SchedulerKind, Spacing},
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

/// How the keys of a solver's class are treated.
pub const fn keys(kind: SchedulerKind) -> Keys {
    match kind {
        SchedulerKind::Pndm => Keys {
            followed: &[
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "beta_schedule",
                "set_alpha_to_one",
                "prediction_type",
                "timestep_spacing",
                "steps_offset",
            ],
            limited: &[("trained_betas", &["null"]), ("skip_prk_steps", &["true"])],
            without_effect: &[],
        },
        SchedulerKind::Ddim => Keys {
            followed: &[
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "beta_schedule",
                "set_alpha_to_one",
                "steps_offset",
                "prediction_type",
                "timestep_spacing",
                "rescale_betas_zero_snr",
            ],
            limited: &[("trained_betas", &["null"]), ("clip_sample", &["false"]), ("thresholding", &["false"])],
            // The first and last belong to thresholding, the second to clipping.
            without_effect: &["dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value"],
        },
        SchedulerKind::Euler => Keys {
            followed: &[
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "beta_schedule",
                "prediction_type",
                "use_karras_sigmas",
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
                ("use_exponential_sigmas", &["false"]),
                ("use_beta_sigmas", &["false"]),
            ],
            without_effect: &[],
        },
        SchedulerKind::EulerAncestral => Keys {
            followed: &[
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "beta_schedule",
                "prediction_type",
                "timestep_spacing",
                "steps_offset",
                "rescale_betas_zero_snr",
            ],
            limited: &[("trained_betas", &["null"])],
            without_effect: &[],
        },
        SchedulerKind::DpmSolverMultistep | SchedulerKind::DpmSolverMultistepKarras => Keys {
            followed: &[
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "beta_schedule",
                "solver_order",
                "prediction_type",
                "lower_order_final",
                "euler_at_final",
                "use_karras_sigmas",
                "final_sigmas_type",
                "lambda_min_clipped",
                "timestep_spacing",
                "steps_offset",
                "rescale_betas_zero_snr",
            ],
            // The class itself replaces the solver types of DEIS and UniPC by its own default.
            limited: &[
                ("trained_betas", &["null"]),
                ("thresholding", &["false"]),
                ("algorithm_type", &["\"dpmsolver++\""]),
                ("solver_type", &["\"midpoint\"", "\"logrho\"", "\"bh1\"", "\"bh2\""]),
                ("use_exponential_sigmas", &["false"]),
                ("use_beta_sigmas", &["false"]),
                ("use_lu_lambdas", &["false"]),
                ("use_flow_sigmas", &["false"]),
                ("variance_type", &["null"]),
                ("use_dynamic_shifting", &["false"]),
            ],
            // These belong to thresholding, flow sigmas and dynamic shifting.
            without_effect: &["dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"],
        },
    }
}

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

    /// The solver of the pipeline's class.
    fn own_kind(&self) -> Result<SchedulerKind> {
        let kind = SchedulerKind::ALL.into_iter().find(|kind| kind.class_name() == self.class).ok_or_else(|| {
            let names = SchedulerKind::ALL.map(SchedulerKind::name).join(", ");
            Error::input(format!(
                "{}: sdshard does not have the scheduler that model_index.json names",
                self.source.file()
            ))
            .found(self.class.clone())
            .hint(format!("--scheduler with another one: {names}"))
        })?;
        let karras = kind.is_dpm() && self.source.flag("use_karras_sigmas", false)?;
        Ok(if karras { SchedulerKind::DpmSolverMultistepKarras } else { kind })
    }

    /// The solver `kind` with the settings of this file. For another class than the pipeline's this is the result of
    /// diffusers' `from_config(pipeline.scheduler.config)`: values in the file are used, with repairs, and missing keys
    /// have the defaults of the other class, without repairs. The name of a DPM-Solver++ kind decides whether Karras'
    /// noise levels are used.
    ///
    /// # Errors
    /// If the solver has a key whose value is not supported.
    pub fn with_kind(&self, kind: SchedulerKind) -> Result<SchedulerConfig> {
        // Missing keys are repaired if the default of the pipeline's own class is the wrong value.
        let is_own = self.own_kind().is_ok_and(|own| own == kind);
        let has = |key: &str, wrong: bool, default_of: SchedulerKind| {
            self.source.get(key).map_or(is_own && kind == default_of, |found| *found == json!(wrong))
        };
        let mut source = self.source.clone();
        if self.repairs.steps_offset && (is_own || source.keys().any(|key| key == "steps_offset")) {
            source = source.with("steps_offset", 1);
        }
        if self.repairs.clip_sample && has("clip_sample", true, SchedulerKind::Ddim) {
            source = source.with("clip_sample", false);
        }
        if self.repairs.skip_prk_steps && has("skip_prk_steps", false, SchedulerKind::Pndm) {
            source = source.with("skip_prk_steps", true);
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
        use SchedulerKind::{Ddim, Euler, Pndm};
        let source = if kind.is_dpm() {
            source.with("use_karras_sigmas", kind == SchedulerKind::DpmSolverMultistepKarras)
        } else {
            source
        };
        let at = |error: Error| error.context(format!("reading the scheduler as {}", kind.class_name()));
        Self::check_unsupported(&source, kind).map_err(at)?;

        let prediction = match source.text("prediction_type")? {
            None | Some("epsilon") => Prediction::Epsilon,
            Some("v_prediction") => Prediction::Velocity,
            Some("sample") if kind != Pndm => Prediction::Sample,
            Some(_) => return Err(at(source.refuse("prediction_type", "\"epsilon\" or \"v_prediction\""))),
        };
        let spacing = match source.text("timestep_spacing")? {
            None if matches!(kind, Pndm | Ddim) => Spacing::Leading,
            Some("leading") => Spacing::Leading,
            None | Some("linspace") => Spacing::Linspace,
            Some("trailing") => Spacing::Trailing,
            Some(_) => return Err(source.refuse("timestep_spacing", "\"leading\", \"linspace\" or \"trailing\"")),
        };
        let beta_schedule = match source.text("beta_schedule")? {
            None | Some("linear") => BetaSchedule::Linear,
            Some("scaled_linear") => BetaSchedule::ScaledLinear,
            Some(_) => return Err(source.refuse("beta_schedule", "\"linear\" or \"scaled_linear\"")),
        };
        let final_sigma_is_zero = match source.text("final_sigmas_type")? {
            None | Some("zero") => true,
            Some("sigma_min") => kind == SchedulerKind::EulerAncestral, // this class has no such key
            Some(_) => return Err(source.refuse("final_sigmas_type", "\"zero\" or \"sigma_min\"")),
        };
        let beta_start = source.float("beta_start", 1e-9..=0.999)?.unwrap_or(0.0001);
        let beta_end = source.float("beta_end", beta_start..=0.999)?.unwrap_or(0.02);
        if beta_end < beta_start {
            return Err(source.refuse("beta_start", "at most `beta_end`, which is 0.02"));
        }
        let num_train_timesteps = source.size("num_train_timesteps", 2..=1_000_000)?.unwrap_or(1000);
        let config = Self {
            kind,
            prediction,
            spacing,
            steps_offset: source.size("steps_offset", 0..=num_train_timesteps - 1)?.unwrap_or(0),
            num_train_timesteps,
            beta_start,
            beta_end,
            beta_schedule,
            set_alpha_to_one: source.flag("set_alpha_to_one", kind == Ddim)?,
            final_sigma_is_zero,
            karras: (kind == Euler || kind.is_dpm()) && source.flag("use_karras_sigmas", false)?,
            sigma_min: source.float("sigma_min", 1e-9..=1e9)?,
            sigma_max: source.float("sigma_max", 1e-9..=1e9)?,
            solver_order: source.size("solver_order", 1..=2).map_err(at)?.unwrap_or(2),
            lower_order_final: source.flag("lower_order_final", true)?,
            euler_at_final: source.flag("euler_at_final", false)?,
            zero_terminal_snr: kind != Pndm && source.flag("rescale_betas_zero_snr", false)?,
        };
        // DDIM divides by the weight of the picture in the latents, which is 0 in pure noise.
        if config.zero_terminal_snr && kind == Ddim && prediction == Prediction::Epsilon {
            return Err(at(source
                .refuse("rescale_betas_zero_snr", "false for this scheduler and this model's \"prediction_type\"")
                .hint("--scheduler euler, or a model with \"v_prediction\"")));
        }
        let pure_noise_is_meant = config.zero_terminal_snr && kind == Ddim;
        if !pure_noise_is_meant && !NoiseTable::new(&config).sigma_max().is_finite() {
            return Err(source
                .refuse("beta_end", "small enough to leave something of the picture at the last training timestep"));
        }
        if kind.is_dpm() {
            config.check_lambda_clip(&source).map_err(at)?;
        }
        Ok(config)
    }

    /// Fails for each key of this class whose value is not supported.
    fn check_unsupported(source: &Object, kind: SchedulerKind) -> Result<()> {
        if source.get("trained_betas").is_some() {
            return Err(source.refuse("trained_betas", "null: sdshard reads `beta_start` and `beta_end`"));
        }
        if kind == SchedulerKind::Pndm && !source.flag("skip_prk_steps", false)? {
            return Err(source
                .refuse("skip_prk_steps", "true: Runge-Kutta warm-up is not supported")
                .hint("Stable Diffusion's own files have \"skip_prk_steps\": true"));
        }
        if kind == SchedulerKind::Ddim && source.flag("clip_sample", true)? {
            return Err(source
                .refuse("clip_sample", "false, and this class's default is true")
                .hint("clipping is for pixels and ruins latents: write \"clip_sample\": false into the file"));
        }
        for (key, allowed) in keys(kind).limited {
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
