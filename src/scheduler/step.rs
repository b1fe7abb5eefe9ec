//! What a solver has to say: the steps of one run as plain numbers.

/// How many estimates, the newest included, a step can draw on.
pub const HISTORY: usize = 5;

/// One call of the network, and how its output moves the latents. With `out` for the output:
///
/// ```text
/// out       = network(input_scale * latents, timestep)
/// estimates = [p * latents + q * out] + estimates        the newest first, at most HISTORY of them kept
/// latents   = a * latents + Σ b[i] * estimates[i] + noise * z
/// ```
///
/// `z` is fresh normal noise, drawn only where `noise` is not 0. A weight of 0 may stand beside an estimate that does
/// not exist yet, so a driver leaves it out of the sum. The estimate is of the clean latents, but for PNDM, which
/// averages outputs as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Training time, from 999 down to 0; some solvers stop between two whole numbers.
    pub timestep: f32,
    /// What the latents are multiplied with before the network sees them.
    pub input_scale: f32,
    /// The latents' weight in the new estimate.
    pub p: f32,
    /// The output's weight in the new estimate.
    pub q: f32,
    /// The latents' weight in the next latents.
    pub a: f32,
    /// The estimates' weights in the next latents, the newest first.
    pub b: [f32; HISTORY],
    /// The weight of fresh noise in the next latents.
    pub noise: f32,
    /// How much noise the latents have that this step begins with.
    pub level: NoiseLevel,
}

/// Noisy latents are `picture * x + noise * z`, where `x` are the latents of a clean picture and `z` is unit normal noise: so
/// a run may begin with a picture at any step. Matches `add_noise` of diffusers' schedulers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// The clean picture's weight.
    pub picture: f32,
    /// The noise's weight.
    pub noise: f32,
}

impl NoiseLevel {
    /// Of latents whose picture and noise have these weights.
    pub(super) fn new(picture: f64, noise: f64) -> Self {
        Self { picture: picture as f32, noise: noise as f32 }
    }
}

/// All steps of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// What unit noise is multiplied with to give the first latents.
    pub init_noise_sigma: f32,
    /// One entry per call of the network: with PNDM one more than the steps asked for, as in diffusers.
    pub steps: Vec<Step>,
}

impl Schedule {
    /// How many estimates any step of this run looks at, the newest included: no driver has to keep more.
    pub fn history(&self) -> usize {
        let used = |step: &Step| step.b.iter().rposition(|&weight| weight != 0.0).map_or(0, |last| last + 1);
        self.steps.iter().map(used).max().unwrap_or(0)
    }

    /// Runs all steps over plain numbers, as the reference for drivers on tensors. `noise` is the unit noise to begin
    /// with; `network` gets scaled latents and a timestep; `fresh_noise` gives one more unit noise of the same length.
    pub fn run(
        &self,
        noise: &[f32],
        mut network: impl FnMut(&[f32], f32) -> Vec<f32>,
        mut fresh_noise: impl FnMut() -> Vec<f32>,
    ) -> Vec<f32> {
        let mut latents: Vec<f32> = noise.iter().map(|z| z * self.init_noise_sigma).collect();
        let mut estimates: Vec<Vec<f32>> = Vec::new();
        for step in &self.steps {
            let input: Vec<f32> = latents.iter().map(|x| x * step.input_scale).collect();
            let out = network(&input, step.timestep);
            estimates.insert(0, latents.iter().zip(&out).map(|(x, out)| step.p * x + step.q * out).collect());
            estimates.truncate(self.history());
            latents.iter_mut().for_each(|x| *x *= step.a);
            for (weight, estimate) in step.b.iter().zip(&estimates).filter(|(weight, _)| **weight != 0.0) {
                latents.iter_mut().zip(estimate).for_each(|(x, estimate)| *x += weight * estimate);
            }
            if step.noise != 0.0 {
                latents.iter_mut().zip(fresh_noise()).for_each(|(x, z)| *x += step.noise * z);
            }
        }
        latents
    }
}

impl Step {
    /// A step whose estimate is the network's output as it is, and whose weights are still to be filled in.
    pub(super) fn new(timestep: f64, level: NoiseLevel) -> Self {
        let timestep = timestep as f32;
        Self { timestep, input_scale: 1.0, p: 0.0, q: 1.0, a: 0.0, b: [0.0; HISTORY], noise: 0.0, level }
    }
}

/// `weights` in f32, with zeros behind.
pub(super) fn weights<const N: usize>(weights: [f64; N]) -> [f32; HISTORY] {
    let mut b = [0.0; HISTORY];
    b.iter_mut().zip(weights).for_each(|(b, weight)| *b = weight as f32);
    b
}
