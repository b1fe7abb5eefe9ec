//! The solvers, and their checked config.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// A solver: how the network's outputs change the latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Solver {
    /// Pseudo linear multi-step, with PLMS warm-up (`skip_prk_steps`). Liu et al. 2022.
    Pndm,
    /// Denoising diffusion implicit models. Song et al. 2020.
    Ddim,
    /// Euler on the probability flow, Karras et al. 2022.
    Euler,
    /// Euler with ancestral noise.
    EulerAncestral,
    /// Heun's method, with two calls of the network for each step but the last. Karras et al. 2022, algorithm 1.
    Heun,
    /// DPM-Solver++, multi-step. Lu et al. 2022.
    DpmSolverMultistep,
    /// The stochastic DPM-Solver++, multi-step.
    DpmSolverMultistepSde,
    /// DPM-Solver++, single-step: every second call repeats the step of the call before it with the mean of both.
    DpmSolverSinglestep,
    /// The stochastic DPM-Solver++, single-step.
    DpmSolverSinglestepSde,
    /// Predictor and corrector in λ = ln(α / σ). Zhao et al. 2023.
    UniPc,
    /// Multi-step sampling of latent consistency models. Luo et al. 2023.
    Lcm,
    /// Strategic stochastic sampling of trajectory consistency distillation. Zheng et al. 2024.
    Tcd,
}

impl Solver {
    /// All solvers, in the order in which they are listed to users.
    pub const ALL: [Self; 12] = [
        Self::Pndm,
        Self::Ddim,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::DpmSolverMultistep,
        Self::DpmSolverMultistepSde,
        Self::DpmSolverSinglestep,
        Self::DpmSolverSinglestepSde,
        Self::UniPc,
        Self::Lcm,
        Self::Tcd,
    ];

    /// The name on the command line and in `sdshard.toml`, without the spacing of noise levels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pndm => "pndm",
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-ancestral",
            Self::Heun => "heun",
            Self::DpmSolverMultistep => "dpm++2m",
            Self::DpmSolverMultistepSde => "dpm++2m-sde",
            Self::DpmSolverSinglestep => "dpm++2s",
            Self::DpmSolverSinglestepSde => "dpm++sde",
            Self::UniPc => "unipc",
            Self::Lcm => "lcm",
            Self::Tcd => "tcd",
        }
    }

    /// The name of the class in diffusers. A solver of DPM-Solver++ shares it with its stochastic variant.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Pndm => "PNDMScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::Heun => "HeunDiscreteScheduler",
            Self::DpmSolverMultistep | Self::DpmSolverMultistepSde => "DPMSolverMultistepScheduler",
            Self::DpmSolverSinglestep | Self::DpmSolverSinglestepSde => "DPMSolverSinglestepScheduler",
            Self::UniPc => "UniPCMultistepScheduler",
            Self::Lcm => "LCMScheduler",
            Self::Tcd => "TCDScheduler",
        }
    }

    /// Whether the noise levels of a run can be distributed so.
    pub const fn has(self, sigmas: Sigmas) -> bool {
        match sigmas {
            Sigmas::Timesteps => true,
            Sigmas::Trailing => !self.is_singlestep() && !matches!(self, Self::Lcm | Self::Tcd),
            Sigmas::Karras | Sigmas::Exponential | Sigmas::Beta => {
                !matches!(self, Self::Pndm | Self::Ddim | Self::EulerAncestral | Self::Lcm | Self::Tcd)
            }
        }
    }

    /// Whether the share of fresh noise in a step can be chosen: see [`SchedulerConfig::with_eta`].
    pub const fn has_eta(self) -> bool {
        matches!(self, Self::Ddim | Self::Tcd)
    }

    /// Whether this is DPM-Solver++.
    pub(super) const fn is_dpm(self) -> bool {
        self.is_singlestep() || matches!(self, Self::DpmSolverMultistep | Self::DpmSolverMultistepSde)
    }

    /// Whether this is single-step DPM-Solver++.
    pub(super) const fn is_singlestep(self) -> bool {
        matches!(self, Self::DpmSolverSinglestep | Self::DpmSolverSinglestepSde)
    }

    /// Whether this is a stochastic DPM-Solver++.
    pub(super) const fn is_sde(self) -> bool {
        matches!(self, Self::DpmSolverMultistepSde | Self::DpmSolverSinglestepSde)
    }
}

/// How the noise levels of a run are distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sigmas {
    /// They are those of the timesteps, which are spaced as the model's file says.
    Timesteps,
    /// They are those of timesteps that are evenly spaced and begin at the last one of training, as few-step models are
    /// trained. Lin et al. 2023, table 2.
    Trailing,
    /// Evenly in σ^(1/7). Karras et al. 2022, equation 5.
    Karras,
    /// Evenly in ln σ.
    Exponential,
    /// The quantiles of a Beta(0.6, 0.6) distribution. Lee et al. 2024 (arXiv 2407.12173).
    Beta,
}

impl Sigmas {
    /// All spacings.
    pub const ALL: [Self; 5] = [Self::Timesteps, Self::Trailing, Self::Karras, Self::Exponential, Self::Beta];

    /// What follows the solver's name in the name of a scheduler.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Timesteps => "",
            Self::Trailing => "-trailing",
            Self::Karras => "-karras",
            Self::Exponential => "-exponential",
            Self::Beta => "-beta",
        }
    }
}

/// A scheduler by name: a solver and the spacing of its noise levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SchedulerKind {
    solver: Solver,
    sigmas: Sigmas,
}

impl SchedulerKind {
    /// `solver` with noise levels spaced as `sigmas`; `None` if the solver has no such spacing.
    pub const fn new(solver: Solver, sigmas: Sigmas) -> Option<Self> {
        if solver.has(sigmas) { Some(Self { solver, sigmas }) } else { None }
    }

    /// All schedulers.
    pub fn all() -> impl Iterator<Item = Self> {
        Solver::ALL.into_iter().flat_map(|solver| Sigmas::ALL.into_iter().filter_map(move |s| Self::new(solver, s)))
    }

    /// The names of all schedulers, for messages.
    pub fn names() -> String {
        let with = |sigmas| {
            let names: Vec<_> = Solver::ALL.into_iter().filter(|solver| solver.has(sigmas)).map(Solver::name).collect();
            names.join(", ")
        };
        format!(
            "{}; {} also with -karras, -exponential or -beta behind the name, as dpm++2m-karras; {} with -trailing",
            with(Sigmas::Timesteps),
            with(Sigmas::Karras),
            with(Sigmas::Trailing),
        )
    }

    /// The solver.
    pub const fn solver(self) -> Solver {
        self.solver
    }

    /// The spacing of the noise levels.
    pub const fn sigmas(self) -> Sigmas {
        self.sigmas
    }
}

impl From<Solver> for SchedulerKind {
    /// The solver with the noise levels of its timesteps.
    fn from(solver: Solver) -> Self {
        Self { solver, sigmas: Sigmas::Timesteps }
    }
}

impl serde::Serialize for SchedulerKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}", self.solver.name(), self.sigmas.suffix()))
    }
}

impl FromStr for SchedulerKind {
    type Err = Error;

    /// Reads a name such as `dpm++2m-karras`, or the name of a class in diffusers.
    fn from_str(text: &str) -> Result<Self> {
        let named = |kind: &Self| text.eq_ignore_ascii_case(&kind.to_string()) || *text == *kind.solver.class_name();
        Self::all().find(named).ok_or_else(|| {
            Error::input(format!("\"{text}\" is not a scheduler that sdshard has"))
                .hint(format!("one of {}", Self::names()))
        })
    }
}

/// The meaning of the network's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The noise in the latents. Ho et al. 2020.
    Epsilon,
    /// The velocity `√ᾱ · noise − √(1 − ᾱ) · clean`. Salimans and Ho 2022.
    Velocity,
    /// The clean latents.
    Sample,
}

impl Prediction {
    /// The value of `prediction_type` in a `scheduler_config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::Velocity => "v_prediction",
            Self::Sample => "sample",
        }
    }
}

/// How the timesteps of a run are distributed over the training range. Table 2 of Lin et al. 2023.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of a whole number, from 0, plus an offset.
    Leading,
    /// Evenly spaced from the first to the last timestep.
    Linspace,
    /// Evenly spaced, starting from the last timestep.
    Trailing,
}

/// How the noise of training grows with the timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    /// The betas are linear in the timestep.
    Linear,
    /// The square roots of the betas are linear in the timestep.
    ScaledLinear,
}

/// The checked `scheduler_config.json`: [`schedule`](super::schedule) supports every value.
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
    /// Whether the step below timestep 0 reaches clean latents, rather than the noise of timestep 0. For PNDM and DDIM.
    pub(super) set_alpha_to_one: bool,
    /// Whether the last step reaches noise level 0, rather than that of timestep 0. For Euler, DPM-Solver++ and UniPC.
    pub(super) final_sigma_is_zero: bool,
    /// The bounds of noise levels that do not follow the timesteps, if the file has them.
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    /// The order, from 1 to 3. For DPM-Solver++ and UniPC.
    pub(super) solver_order: usize,
    /// Whether the change of the clean estimate is weighted as in Heun's method rather than in the midpoint method. For
    /// DPM-Solver++.
    pub(super) solver_type_is_heun: bool,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    /// Whether the betas are rescaled so that the last training timestep is pure noise. Lin et al. 2023, algorithm 1.
    pub(super) zero_terminal_snr: bool,
    /// The number of timesteps that a consistency model was distilled with. For LCM and TCD.
    pub(super) original_inference_steps: usize,
    /// The factor of the timestep in the boundary condition. For LCM.
    pub(super) timestep_scaling: f64,
    /// The share of fresh noise in each step, from 0 to 1. For DDIM and TCD.
    pub(super) eta: f64,
}

impl SchedulerConfig {
    /// The solver and the spacing of its noise levels.
    pub fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// The meaning of the network's output.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// With `eta` from 0 to 1, the share of fresh noise in each step of DDIM and TCD. It is no key of a config but an
    /// argument of diffusers' pipelines, whose default is 0, as it is here. Other solvers do not use it.
    #[must_use]
    pub fn with_eta(self, eta: f64) -> Self {
        Self { eta: eta.clamp(0.0, 1.0), ..self }
    }
}
