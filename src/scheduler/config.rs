//! The solvers, and their checked config.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// A solver.
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
    /// DPM-Solver++ of second order with the noise levels of Karras.
    DpmSolverMultistepKarras,
}

impl SchedulerKind {
    /// All solvers, in the order in which they are listed to users.
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

    pub(super) fn is_dpm(self) -> bool {
        matches!(self, Self::DpmSolverMultistep | Self::DpmSolverMultistepKarras)
    }
}

impl serde::Serialize for SchedulerKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
    /// Whether the last step reaches noise level 0, rather than that of timestep 0. For Euler and DPM-Solver++.
    pub(super) final_sigma_is_zero: bool,
    /// Whether the noise levels are those of Karras et al. 2022, equation 5. For Euler and DPM-Solver++.
    pub(super) karras: bool,
    /// The bounds of Karras' noise levels, if the file has them.
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    /// The order, 1 or 2. For DPM-Solver++.
    pub(super) solver_order: usize,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    /// Whether the betas are rescaled so that the last training timestep is pure noise. Lin et al. 2023, algorithm 1.
    pub(super) zero_terminal_snr: bool,
}

impl SchedulerConfig {
    /// The solver.
    pub fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// The meaning of the network's output.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }
}
