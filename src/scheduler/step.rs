//! The steps of one run as plain numbers.

/// The largest number of estimates that a step can use, the newest included.
pub const HISTORY: usize = 5;

/// One call of the network, and how its output changes the latents. With `out` for the output:
///
/// ```text
/// out       = network(input_scale * latents, timestep)
/// estimates = [p * latents + q * out] + estimates        the newest first, at most HISTORY of them kept
/// latents   = a * latents + before * earlier + Σ b[i] * estimates[i] + noise * z
/// ```
///
/// `earlier` are the latents that the step before this one began with. `z` is fresh normal noise, which is only drawn if
/// `noise` is not 0. A weight of 0 may belong to something that does not exist yet, so a driver leaves such terms out of
/// the sum. The estimate is of the clean latents, except for PNDM, which averages the outputs themselves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The training time, from 999 down to 0; some solvers use fractions.
    pub timestep: f32,
    /// The factor of the latents in the network's input.
    pub input_scale: f32,
    /// The weight of the latents in the new estimate.
    pub p: f32,
    /// The weight of the output in the new estimate.
    pub q: f32,
    /// The weight of the latents in the next latents.
    pub a: f32,
    /// The weight, in the next latents, of the latents that the step before this one began with.
    pub before: f32,
    /// The weights of the estimates in the next latents, the newest first.
    pub b: [f32; HISTORY],
    /// The weight of fresh noise in the next latents.
    pub noise: f32,
    /// The noise level of the latents at the beginning of this step.
    pub level: NoiseLevel,
}

/// Noisy latents are `picture * x + noise * z`, where `x` are the latents of a clean picture and `z` is unit normal
/// noise. So a run may begin with a picture at any step. Matches `add_noise` of diffusers' schedulers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// The weight of the clean picture.
    pub picture: f32,
    /// The weight of the noise.
    pub noise: f32,
}

impl NoiseLevel {
    /// The level of latents with these weights of picture and noise.
    pub(super) fn new(picture: f64, noise: f64) -> Self {
        Self { picture: picture as f32, noise: noise as f32 }
    }
}

/// All steps of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The factor of unit noise in the first latents, if the run begins with noise alone.
    pub init_noise_sigma: f32,
    /// One step per call of the network. With PNDM these are one more than requested, with Heun about twice as many, as
    /// in diffusers.
    pub steps: Vec<Step>,
}

impl Schedule {
    /// The largest number of estimates that any step of this run uses, the newest included: a driver need not keep
    /// more.
    pub fn history(&self) -> usize {
        let used = |step: &Step| step.b.iter().rposition(|&weight| weight != 0.0).map_or(0, |last| last + 1);
        self.steps.iter().map(used).max().unwrap_or(0)
    }

    /// Whether any step uses the latents that the step before it began with: otherwise a driver need not keep them.
    pub fn looks_back(&self) -> bool {
        self.steps.iter().any(|step| step.before != 0.0)
    }

    /// The number of tensors of the latents' size that a driver keeps between two steps, beside the latents.
    pub fn kept(&self) -> usize {
        self.history() + usize::from(self.looks_back())
    }

    /// Runs all steps over plain numbers, as the reference for drivers on tensors: returns the latents after each step.
    /// `latents` are the first ones; `network` gets scaled latents and a timestep; `fresh_noise` returns unit noise of the
    /// same length.
    pub fn trace(
        &self,
        mut latents: Vec<f32>,
        mut network: impl FnMut(&[f32], f32) -> Vec<f32>,
        mut fresh_noise: impl FnMut() -> Vec<f32>,
    ) -> Vec<Vec<f32>> {
        let mut earlier = Vec::new();
        let mut estimates: Vec<Vec<f32>> = Vec::new();
        let mut after = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let input: Vec<f32> = latents.iter().map(|x| x * step.input_scale).collect();
            let out = network(&input, step.timestep);
            estimates.insert(0, latents.iter().zip(&out).map(|(x, out)| step.p * x + step.q * out).collect());
            estimates.truncate(self.history());
            let mut next: Vec<f32> = latents.iter().map(|x| x * step.a).collect();
            let mut add = |weight: f32, values: &[f32]| {
                next.iter_mut().zip(values).for_each(|(x, value)| *x += weight * value);
            };
            add(step.before, &earlier);
            step.b.iter().zip(&estimates).for_each(|(weight, estimate)| add(*weight, estimate));
            if step.noise != 0.0 {
                add(step.noise, &fresh_noise());
            }
            earlier = std::mem::replace(&mut latents, next);
            after.push(latents.clone());
        }
        after
    }
}

impl Step {
    /// A step whose estimate is the network's output, and whose weights are filled in later.
    pub(super) fn new(timestep: f64, level: NoiseLevel) -> Self {
        let timestep = timestep as f32;
        let (input_scale, b) = (1.0, [0.0; HISTORY]);
        Self { timestep, input_scale, p: 0.0, q: 1.0, a: 0.0, before: 0.0, b, noise: 0.0, level }
    }

    /// Whether every number is finite.
    pub(super) fn is_finite(&self) -> bool {
        let Self { timestep, input_scale, p, q, a, before, b, noise, level } = *self;
        let numbers = [timestep, input_scale, p, q, a, before, noise, level.picture, level.noise];
        numbers.iter().chain(&b).all(|number| number.is_finite())
    }
}

/// `weights` in f32, padded with zeros.
pub(super) fn weights<const N: usize>(weights: [f64; N]) -> [f32; HISTORY] {
    let mut b = [0.0; HISTORY];
    b.iter_mut().zip(weights).for_each(|(b, weight)| *b = weight as f32);
    b
}
