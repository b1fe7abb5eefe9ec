//! Solvers as tables of plain numbers: timesteps and the coefficients of one run. No tensors, no randomness, no state.

/// A solver by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// `scheduler_config.json`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// The solver that the model asks for.
    pub kind: SchedulerKind,
}
