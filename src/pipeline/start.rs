//! What the denoising loop starts from, and the random numbers of a request.
//!
//! Matches `StableDiffusionPipeline`, `StableDiffusionImg2ImgPipeline` and `StableDiffusionInpaintPipeline` of diffusers
//! and their forms for SDXL, with the order in which they draw random numbers. All of this is done on the host, so it is
//! the same wherever a model runs.

use super::{
    preprocess::Mask,
    request::{Request, Rng, Start},
};
use crate::{
    models::{autoencoder::AutoencoderSpec, spec::ModelSpec},
    scheduler::{NoiseLevel, Schedule},
    tensor::{Shape, random::Generator},
};

/// What one run of the denoising loop starts from. All latents are `[height, width, channels]`.
pub struct Beginning {
    /// Unit noise.
    noise: Vec<f32>,
    /// The picture that the noise is added to.
    image: Option<Vec<f32>>,
    /// Whether each value of the latents is drawn anew. Without it all are, or the network knows which.
    repainted: Option<Vec<bool>>,
    /// Whether the first latents are noise alone.
    is_noise: bool,
    /// The noise of those steps that add some.
    generator: Generator,
}

/// What the encoder gives for the pictures that a request starts from: the moments of their unscaled latents, `[height,
/// width, 2 channels]`, which are the means and the logarithms of the variances, or these latents themselves, `[height,
/// width, channels]`: see [`AutoencoderSpec::encodes_to_latents`].
#[derive(Default)]
pub struct Encoded {
    /// Those of the picture; `None` if [`needed`] says so.
    pub image: Option<Vec<f32>>,
    /// Those of the picture without what is drawn anew; `None` if [`needed`] says so.
    pub masked: Option<Vec<f32>>,
}

/// The pictures that a request's encoder gets, each `[height, width, 3]` from -1 to 1.
pub struct Needed {
    /// The picture to start from.
    pub image: Option<Vec<f32>>,
    /// The picture without what is drawn anew.
    pub masked: Option<Vec<f32>>,
    /// What is drawn anew.
    pub mask: Option<Mask>,
}

/// What a request's encoder has to encode: nothing if the request starts from noise.
pub fn needed(request: &Request, spec: &ModelSpec) -> Needed {
    let Some(start) = request.start_image() else { return Needed { image: None, masked: None, mask: None } };
    let (width, height) = (request.width, request.height);
    let mask = start.mask.as_ref().map(|mask| Mask::new(mask, width, height));
    let pixels = start.image.resized(width, height).signed();
    let masked = mask.as_ref().filter(|_| spec.takes_mask()).map(|mask| mask.masked(&pixels));
    let image = (!spec.takes_mask() || !is_noise(request)).then_some(pixels);
    Needed { image, masked, mask }
}

/// Whether the first latents are noise alone. From a picture without a mask they never are, even at the full strength.
fn is_noise(request: &Request) -> bool {
    request.start_image().is_none_or(|start| start.mask.is_some() && start.strength == 1.0)
}

impl Beginning {
    /// Draws the first random numbers of a request, whose latents have this `shape`. Returns also the input of an
    /// inpainting network beside the latents, `[height, width, 1 + channels]`, which is empty for other networks: the
    /// mask, then the latents of the picture without what is drawn anew.
    pub fn new(
        request: &Request,
        spec: &ModelSpec,
        shape: Shape,
        encoded: Encoded,
        mask: Option<&Mask>,
    ) -> (Self, Vec<f32>) {
        let mut generator = request.rng.generator(request.seed);
        let mut draw = || channels_last(&generator.normal(shape.elements()), shape);
        let channels = shape.channels();
        let vae = spec.image_encoder();
        let is_drawn = vae.is_none_or(|vae| !vae.encodes_to_latents());
        let scaling = vae.map_or(1.0, AutoencoderSpec::scaling_factor);
        let latents = |encoded: Vec<f32>, noise: Option<Vec<f32>>| match noise {
            Some(noise) => sampled(&encoded, &noise, channels, scaling),
            None => encoded.into_iter().map(|latent| scaling * latent).collect(),
        };
        let image = encoded.image.map(|encoded| latents(encoded, is_drawn.then(&mut draw)));
        let noise = match &request.start {
            Start::Latents(latents) => channels_last(latents, shape),
            Start::Noise | Start::Image(_) => draw(),
        };
        // The reference draws the noise of the masked picture even for networks that do not take it.
        let masked_noise = mask.filter(|_| is_drawn).map(|_| draw());
        let mask = mask.map(|mask| mask.latents(spec.latents.scale));
        let beside = match (&mask, encoded.masked) {
            (Some(mask), Some(encoded)) => {
                let masked = latents(encoded, masked_noise);
                let cells = mask.iter().zip(masked.chunks_exact(channels));
                cells.flat_map(|(mask, latents)| std::iter::once(mask).chain(latents)).copied().collect()
            }
            _ => Vec::new(),
        };
        let each = |mask: Vec<f32>| mask.into_iter().flat_map(|cell| vec![cell == 1.0; channels]).collect();
        let repainted = mask.filter(|_| beside.is_empty()).map(each);
        (Self { noise, image, repainted, is_noise: is_noise(request), generator }, beside)
    }

    /// The beginning of a run without a request: noise from seed 0. `is_masked` if the run keeps some of a picture.
    pub fn sample(shape: Shape, is_masked: bool) -> Self {
        let mut generator = Rng::default().generator(0);
        let noise = generator.normal(shape.elements());
        let (image, repainted) = (vec![0.0; shape.elements()], vec![true; shape.elements()]);
        let kept = is_masked.then_some((image, repainted));
        let (image, repainted) = kept.unzip();
        Self { noise, image, repainted, is_noise: true, generator }
    }

    /// The first latents.
    pub fn latents(&self, schedule: &Schedule) -> Vec<f32> {
        match self.is_noise {
            true => self.noise.iter().map(|noise| schedule.init_noise_sigma * noise).collect(),
            false => self.kept(schedule.steps.first().map(|step| step.level)),
        }
    }

    /// The picture at a noise level; without one, the clean picture.
    fn kept(&self, level: Option<NoiseLevel>) -> Vec<f32> {
        let image = self.image.as_deref().expect("a run that is not from noise alone has a picture");
        match level {
            Some(level) => image
                .iter()
                .zip(&self.noise)
                .map(|(image, noise)| level.picture * image + level.noise * noise)
                .collect(),
            None => image.to_vec(),
        }
    }

    /// Whether the values outside the mask are replaced after each step: see [`blended`](Beginning::blended).
    pub fn blends(&self) -> bool {
        self.repainted.is_some()
    }

    /// The latents after a step, with those of the picture, at the noise level of the next step, where it is kept. There
    /// is no level after the last step.
    pub fn blended(&self, latents: Vec<f32>, next: Option<NoiseLevel>) -> Vec<f32> {
        let Some(repainted) = &self.repainted else { return latents };
        let values = latents.into_iter().zip(self.kept(next)).zip(repainted);
        values.map(|((drawn, kept), is_drawn)| if *is_drawn { drawn } else { kept }).collect()
    }

    /// The noise of the next step that adds some, in `shape`.
    pub fn fresh_noise(&mut self, shape: Shape) -> Vec<f32> {
        channels_last(&self.generator.normal(shape.elements()), shape)
    }
}

/// A sample of the latents with these moments, scaled: `DiagonalGaussianDistribution.sample` of diffusers.
fn sampled(moments: &[f32], noise: &[f32], channels: usize, scaling: f32) -> Vec<f32> {
    let pixels = moments.chunks_exact(2 * channels).zip(noise.chunks_exact(channels));
    let values = pixels.flat_map(|(moments, noise)| {
        let (means, log_variances) = moments.split_at(channels);
        means.iter().zip(log_variances).zip(noise)
    });
    values.map(|((mean, log), noise)| scaling * (mean + (0.5 * log.clamp(-30.0, 20.0)).exp() * noise)).collect()
}

/// Converts `[batch, channels, height, width]` to `[batch, height, width, channels]`, which is `shape`.
pub fn channels_last(values: &[f32], shape: Shape) -> Vec<f32> {
    let channels = shape.channels();
    let pixels = shape.dims()[1..shape.dims().len() - 1].iter().product::<usize>();
    let image = |values: &[f32]| -> Vec<f32> {
        (0..pixels * channels).map(|i| values[i % channels * pixels + i / channels]).collect()
    };
    values.chunks(pixels * channels).flat_map(image).collect()
}

/// Converts `[batch, height, width, channels]`, which is `shape`, to `[batch, channels, height, width]`.
pub fn channels_first(values: &[f32], shape: Shape) -> Vec<f32> {
    let channels = shape.channels();
    let pixels = shape.dims()[1..shape.dims().len() - 1].iter().product::<usize>();
    let image = |values: &[f32]| -> Vec<f32> {
        (0..pixels * channels).map(|i| values[i % pixels * channels + i / pixels]).collect()
    };
    values.chunks(pixels * channels).flat_map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_move_there_and_back() {
        let shape = Shape::from([2, 1, 3, 2]);
        let first: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let last = channels_last(&first, shape);
        assert_eq!(&last[..6], [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(channels_first(&last, shape), first);
    }

    #[test]
    fn a_sample_is_the_mean_with_noise_of_the_clamped_variance() {
        // Two pixels of one channel each: mean, log variance.
        let got = sampled(&[1.0, 0.0, -2.0, 90.0], &[0.5, 1.0], 1, 2.0);
        assert_eq!(got, [2.0 * 1.5, 2.0 * (10f32.exp() - 2.0)]);
    }
}
