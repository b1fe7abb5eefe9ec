//! `scheduler_config.json`, read as diffusers reads it.

use std::{fmt, str::FromStr};

use serde_json::json;

use super::noise::NoiseTable;
use crate::{
    error::{Error, Result},
    json::Object,
};

/// A solver by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// Pseudo linear multi-step, with PLMS warm-up (`skip_prk_steps`). Liu et al. 2022.
    Pndm,
    /// Denoising diffusion implicit models, eta 0. Song et al. 2020.
    Ddim,
    /// Euler on the probability flow, Karras et al. 2022.
    Euler,
    /// Euler with ancestral noise.
    EulerAncestral,
    /// DPM-Solver++ of second order, multi-step. Lu et al. 2022.
    DpmSolverMultistep,
    /// The same on Karras' noise levels.
    DpmSolverMultistepKarras,
}

impl SchedulerKind {
    /// Every solver, in the order in which they are listed to users.
    pub const ALL: [Self; 6] = [
        Self::Pndm,
        Self::Ddim,
        Self::Euler,
        Self::EulerAncestral,
        Self::DpmSolverMultistep,
        Self::DpmSolverMultistepKarras,
    ];

    /// The name on the command line and in `sdshard.toml`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pndm => "pndm",
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-ancestral",
            Self::DpmSolverMultistep => "dpm++2m",
            Self::DpmSolverMultistepKarras => "dpm++2m-karras",
        }
    }

    /// The name of the class in diffusers. Both DPM-Solver++ kinds share one.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Pndm => "PNDMScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::DpmSolverMultistep | Self::DpmSolverMultistepKarras => "DPMSolverMultistepScheduler",
        }
    }

    fn is_dpm(self) -> bool {
        matches!(self, Self::DpmSolverMultistep | Self::DpmSolverMultistepKarras)
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SchedulerKind {
    type Err = Error;

    /// Reads a name such as `dpm++2m`, or the name of a class in diffusers.
    fn from_str(text: &str) -> Result<Self> {
        let named = |kind: &Self| text.eq_ignore_ascii_case(kind.name()) || text == kind.class_name();
        Self::ALL.into_iter().find(named).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::input(format!("\"{text}\" is not a scheduler that sdshard has")).hint(format!("one of {names}"))
        })
    }
}

/// What the network's output stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The noise in the latents. Ho et al. 2020.
    Epsilon,
    /// The velocity `√ᾱ · noise − √(1 − ᾱ) · clean`. Salimans and Ho 2022.
    Velocity,
    /// The clean latents.
    Sample,
}

/// How timesteps are dealt over the training range. Table 2 of Lin et al. 2023.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of one whole number from 0, plus an offset.
    Leading,
    /// Evenly from the first to the last.
    Linspace,
    /// Backwards from the last.
    Trailing,
}

/// How the training noise grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    /// Betas on a line.
    Linear,
    /// Square roots of betas on a line.
    ScaledLinear,
}

/// `scheduler_config.json`, checked: every value is one that [`schedule`](super::schedule) can follow.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    pub(super) kind: SchedulerKind,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
    pub(super) steps_offset: usize,
    pub(super) num_train_timesteps: usize,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    /// The step below timestep 0 reaches clean latents, rather than the noise of timestep 0. PNDM and DDIM.
    pub(super) set_alpha_to_one: bool,
    /// The last step reaches noise level 0, rather than that of timestep 0. Euler and DPM-Solver++.
    pub(super) final_sigma_is_zero: bool,
    /// Noise levels after Karras et al. 2022, equation 5. Euler and DPM-Solver++.
    pub(super) karras: bool,
    /// Bounds of Karras' levels, where the file gives them.
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    /// 1 or 2. DPM-Solver++.
    pub(super) solver_order: usize,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    /// The file as it was read: another solver takes its own keys from it.
    source: Object,
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`; `file` is its name in messages.
    ///
    /// Missing keys have the defaults of the class named by `_class_name`, unknown keys are ignored, as in diffusers.
    /// Fails on a class or a value that sdshard cannot follow, and names it.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let source = Object::parse(text, file)?;
        let class = source.text("_class_name")?.ok_or_else(|| source.refuse("_class_name", "the scheduler's class"))?;
        let kind = SchedulerKind::ALL.into_iter().find(|kind| kind.class_name() == class).ok_or_else(|| {
            let classes = SchedulerKind::ALL[..5].iter().map(|kind| kind.class_name()).collect::<Vec<_>>().join(", ");
            source.refuse("_class_name", "a scheduler that sdshard has").hint(format!("one of {classes}"))
        })?;
        let karras = kind.is_dpm() && source.flag("use_karras_sigmas", false)?;
        Self::read(source, if karras { SchedulerKind::DpmSolverMultistepKarras } else { kind })
    }

    /// The same file read as another solver's, as diffusers' `from_config` does: what the file says holds, and what it
    /// leaves open has the other class's defaults. The name of a DPM-Solver++ kind decides about Karras' noise levels.
    ///
    /// Fails where the other solver understands a key that sdshard cannot follow.
    pub fn with_kind(&self, kind: SchedulerKind) -> Result<Self> {
        Self::read(self.source.clone(), kind)
    }

    /// The solver.
    pub fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// What the network's output stands for.
    pub fn prediction(&self) -> Prediction {
        self.prediction
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
            Some("sigma_min") => kind == SchedulerKind::EulerAncestral, // which has no such key
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
            source,
        };
        if !NoiseTable::new(&config).sigma_max().is_finite() {
            return Err(config
                .source
                .refuse("beta_end", "small enough to leave something of the picture at the last training timestep"));
        }
        if kind.is_dpm() {
            config.check_lambda_clip().map_err(at)?;
        }
        Ok(config)
    }

    /// Fails on each key that this class knows and sdshard cannot follow.
    fn check_unsupported(source: &Object, kind: SchedulerKind) -> Result<()> {
        use SchedulerKind::*;
        if source.get("trained_betas").is_some() {
            return Err(source.refuse("trained_betas", "null: sdshard reads `beta_start` and `beta_end`"));
        }
        match kind {
            Pndm => {
                if !source.flag("skip_prk_steps", false)? {
                    return Err(source
                        .refuse("skip_prk_steps", "true: Runge-Kutta warm-up is not supported")
                        .hint("Stable Diffusion's own files have \"skip_prk_steps\": true"));
                }
                Ok(())
            }
            Ddim => {
                if source.flag("clip_sample", true)? {
                    return Err(source
                        .refuse("clip_sample", "false, and this class's default is true")
                        .hint("clipping is for pixels and ruins latents: write \"clip_sample\": false into the file"));
                }
                source.only(&[("thresholding", json!(false)), ("rescale_betas_zero_snr", json!(false))])
            }
            Euler => source.only(&[
                ("rescale_betas_zero_snr", json!(false)),
                ("interpolation_type", json!("linear")),
                ("timestep_type", json!("discrete")),
                ("use_exponential_sigmas", json!(false)),
                ("use_beta_sigmas", json!(false)),
            ]),
            EulerAncestral => source.only(&[("rescale_betas_zero_snr", json!(false))]),
            DpmSolverMultistep | DpmSolverMultistepKarras => source.only(&[
                ("rescale_betas_zero_snr", json!(false)),
                ("thresholding", json!(false)),
                ("algorithm_type", json!("dpmsolver++")),
                ("solver_type", json!("midpoint")),
                ("use_exponential_sigmas", json!(false)),
                ("use_beta_sigmas", json!(false)),
                ("use_lu_lambdas", json!(false)),
                ("use_flow_sigmas", json!(false)),
                ("use_dynamic_shifting", json!(false)),
                ("variance_type", json!(null)),
            ]),
        }
    }

    /// `lambda_min_clipped` is fine while it cuts nothing off.
    fn check_lambda_clip(&self) -> Result<()> {
        let Some(clip) = self.source.float("lambda_min_clipped", f64::MIN..=f64::MAX)? else { return Ok(()) };
        let lowest = -NoiseTable::new(self).sigma_max().ln();
        if clip <= lowest {
            return Ok(());
        }
        Err(self.source.refuse("lambda_min_clipped", &format!("at most {lowest:.3}, so that it clips nothing")))
    }
}
