//! The denoising loop: noise to latents.

use super::{
    branch::Branch,
    controls::{Controlled, Controls},
    stages::finite,
    start::Beginning,
};
use crate::{
    error::{Error, ErrorScope, Result},
    models::unet::Conditioning,
    scheduler::{Schedule, Step},
    sync,
    tensor::{Leaving, Shape, Tensor},
};

/// The input of the denoising loop: one picture, or several of one size as a batch.
pub struct DenoiseInput<'a> {
    /// The steps.
    pub schedule: &'a Schedule,
    /// The pictures.
    pub pictures: Vec<PictureStart>,
    /// The latents of one picture, `[1, height, width, channels]`.
    pub shape: Shape,
}

/// What one picture starts from.
pub struct PictureStart {
    /// The guidance scale; only used with two texts.
    pub guidance_scale: f32,
    /// How far the guided output gets the deviation of the output for the prompt, from 0 to 1; only used with two texts.
    pub guidance_rescale: f32,
    /// The first latents, and the noise of those steps that add some.
    pub beginning: Beginning,
    /// What each ControlNet reads for it: pixels from 0 to 1, `[height, width, 3]`.
    pub controls: Vec<Vec<f32>>,
}

/// Runs the denoising loop and returns the final latents, `[height, width, channels]` for each picture, or an error for
/// the picture. During the loop the latents are on the first device of the last branch. `progress` is called with 0 and
/// no latents when the texts are prepared ([`Unet::condition`]), then after each step with the number of steps that are
/// done and the latents of every picture; its error stops the loop. The guidance follows Ho and Salimans 2022.
///
/// [`Unet::condition`]: crate::models::unet::Unet::condition
///
/// # Errors
/// If a device fails, an arena is full, or `progress` returns an error.
pub fn denoise(
    branches: &[Branch],
    controls: &Controls,
    mut input: DenoiseInput,
    mut progress: impl FnMut(usize, &[Tensor]) -> Result<()>,
) -> Result<Vec<Result<Vec<f32>>>> {
    let home = branches.last().expect("a request has a prompt");
    let (device, keep) = (home.route.first(), home.keeps.on(home.route.first()));
    // The loop's own tensors are on the first device of `home`. Whatever runs a branch may leave this device, so the
    // loop enters it again before it uses them.
    let enter_home = || home.hooks.enter(0);
    enter_home()?;
    let condition = |branch: &Branch| branch.denoiser.condition(&branch.rows, &branch.pass(), branch.keeps);
    let texts = branches.iter().map(condition).collect::<Result<Vec<_>>>()?;
    let conditionings = controls.condition()?;
    progress(0, &[])?;
    enter_home()?;
    let (shape, schedule) = (input.shape, input.schedule);
    let first = |picture: &PictureStart| Tensor::new(device, shape, &picture.beginning.latents(schedule))?.keep(keep);
    let mut latents = input.pictures.iter().map(first).collect::<Result<Vec<_>>>()?;

    let (history, looks_back) = (schedule.history(), schedule.looks_back());
    let mut earlier: Vec<Option<Tensor>> = latents.iter().map(|_| None).collect();
    let mut estimates: Vec<Vec<Tensor>> = latents.iter().map(|_| Vec::with_capacity(history + 1)).collect();
    for (done, step) in schedule.steps.iter().enumerate() {
        let controlled = controls.call(&conditionings, branches, schedule, done, &latents)?;
        let outs = call(branches, &texts, &controlled, step, &latents)?;
        drop(controlled);
        let leaving = outs.into_iter().map(|out| out.leave_for(device)).collect::<Result<Vec<_>>>()?;
        enter_home()?;
        // The copies arrive in order, on this thread, so that the arena always sees the same allocations.
        let outs = leaving.into_iter().map(Leaving::arrive).collect::<Result<Vec<_>>>()?;
        for (i, picture) in input.pictures.iter_mut().enumerate() {
            let out = guide(&outs, i, latents.len(), shape, picture)?;
            estimates[i].insert(0, weighted(&[(step.p, &latents[i]), (step.q, &out)])?.keep(keep)?);
            drop(out);
            estimates[i].truncate(history.max(1));
            let fresh = match step.noise {
                0.0 => None,
                _ => Some(Tensor::new(device, shape, &picture.beginning.fresh_noise(shape))?),
            };
            let mut next = advance(step, &latents[i], earlier[i].as_ref(), &estimates[i], fresh.as_ref())?;
            if picture.beginning.blends() {
                let level = schedule.steps.get(done + 1).map(|step| step.level);
                let values = picture.beginning.blended(next.read()?, level);
                drop(next);
                next = Tensor::new(device, shape, &values)?;
            }
            let next = next.keep(keep)?;
            earlier[i] = Some(std::mem::replace(&mut latents[i], next)).filter(|_| looks_back);
        }
        drop(outs);
        progress(done + 1, &latents)?;
    }
    let values = latents.iter().map(Tensor::read).collect::<Result<Vec<_>>>()?;
    Ok(values.into_iter().map(|values| finite(&values, home.name).map(|()| values)).collect())
}

/// The output of every branch. Two branches without a common device run at the same time.
fn call(
    branches: &[Branch],
    texts: &[Conditioning],
    controlled: &[Controlled],
    step: &Step,
    latents: &[Tensor],
) -> Result<Vec<Tensor>> {
    let apart = |a: &Branch, b: &Branch| a.route.devices().iter().all(|device| !b.route.devices().contains(device));
    match branches {
        [negative, positive] if apart(negative, positive) => {
            // Both inputs are made before either branch begins, because a copy waits for all earlier work of its
            // device.
            let inputs = (negative.input(step, latents)?, positive.input(step, latents)?);
            let both = sync::run_both(
                || negative.call(step, &inputs.0, &texts[0], &Controlled::of_branch(controlled, 0, 0)),
                || {
                    let residuals = Controlled::of_branch(controlled, 1, negative.rows.len());
                    positive.call(step, &inputs.1, &texts[1], &residuals)
                },
            );
            match both.map_err(|error| Error::request("starting a thread for the negative prompt").source(error))? {
                // The error of a failed device has priority over that of a request.
                (_, Err(error)) if matches!(error.scope(), ErrorScope::Device(_)) => Err(error),
                (negative, positive) => Ok(vec![negative?, positive?]),
            }
        }
        _ => {
            let call = |(i, (branch, text)): (usize, (&Branch, &Conditioning))| {
                let residuals = Controlled::of_branch(controlled, i, i * branch.rows.len());
                branch.call(step, &branch.input(step, latents)?, text, &residuals)
            };
            branches.iter().zip(texts).enumerate().map(call).collect()
        }
    }
}

/// `negative + scale * (positive - negative)` of picture `i` of `count`, as one weighted sum; without guidance, the
/// picture's own row of the only output.
fn guide(outs: &[Tensor], i: usize, count: usize, shape: Shape, picture: &PictureStart) -> Result<Tensor> {
    let (negative, positive) = match outs {
        [negative, positive] => ((negative, i), (positive, i)),
        [both] if both.dim(0) == 2 * count => ((both, i), (both, count + i)),
        [one] if count == 1 => return Ok(one.clone()),
        outs => return Tensor::scale_add(shape, &[(1.0, &outs[0], i)]),
    };
    let guided = |factor: f32| {
        let scale = picture.guidance_scale;
        let terms = [(factor * (1.0 - scale), negative.0, negative.1), (factor * scale, positive.0, positive.1)];
        Tensor::scale_add(shape, &terms)
    };
    if picture.guidance_rescale == 0.0 {
        return guided(1.0);
    }
    let wanted = deviation(&positive.0.read()?[positive.1 * shape.elements()..][..shape.elements()]);
    let found = deviation(&guided(1.0)?.read()?);
    let rescale = f64::from(picture.guidance_rescale);
    // An output without any deviation has no scale.
    let factor = if found == 0.0 { 1.0 } else { rescale * wanted / found + (1.0 - rescale) };
    guided(factor as f32)
}

/// The standard deviation of a sample, which divides by its number of values less one, as in the `rescale_noise_cfg` of
/// diffusers (Lin et al. 2023).
fn deviation(values: &[f32]) -> f64 {
    let values = || values.iter().map(|x| f64::from(*x));
    let count = values().count() as f64;
    let mean = values().sum::<f64>() / count;
    (values().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt()
}

/// The next latents: see [`Step`].
fn advance(
    step: &Step,
    latents: &Tensor,
    earlier: Option<&Tensor>,
    estimates: &[Tensor],
    noise: Option<&Tensor>,
) -> Result<Tensor> {
    let mut terms = vec![(step.a, latents)];
    terms.extend(earlier.map(|earlier| (step.before, earlier)));
    terms.extend(step.b.iter().copied().zip(estimates));
    terms.extend(noise.map(|noise| (step.noise, noise)));
    weighted(&terms)
}

/// The weighted sum of the terms whose weight is not zero; there is at least one.
fn weighted(terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let used: Vec<_> = terms.iter().filter(|(weight, _)| *weight != 0.0).map(|&(weight, x)| (weight, x, 0)).collect();
    Tensor::scale_add(terms[0].1.shape(), &used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_divides_by_one_less_than_the_number_of_values() {
        // The golden numbers of a guided output: u = [0, 1, -1, 2], c = [0.5, 1, -2, 1], scale 5.
        assert!((deviation(&[0.5, 1.0, -2.0, 1.0]) - 1.436_141).abs() < 1e-6);
        assert!((deviation(&[2.5, 1.0, -6.0, -3.0]) - 3.859_512).abs() < 1e-6);
    }
}
