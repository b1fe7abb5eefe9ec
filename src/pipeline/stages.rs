//! The stages of a request that run once: text to features, a picture to start from to latents, latents to pixels.
//!
//! Each stage, as the [denoising loop](super::denoise), begins and ends on the host; the data between stages is small (a
//! few hundred KiB). So the memory that a stage needs does not depend on where the other stages run. The planner uses
//! this: it runs the same code on devices without data ([`rehearse`](super::rehearse::rehearse)).

use super::{device_queue::Work, parts::Placed};
use crate::{
    error::{Error, Result},
    models::{clip::EncodedText, component::Stage, route::SectionHooks, tiles::Tiles},
    prompt::{Chunk, Emphasis, emphasize},
    tensor::{Shape, Tensor},
};

impl From<Stage> for Work {
    /// The kind of work of a stage, for the device queue.
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Encode => Self::Text,
            Stage::EncodeImage => Self::Image,
            Stage::Denoise => Self::Denoise,
            Stage::Decode => Self::Decode,
        }
    }
}

/// Runs a text encoder on one text, whose last `skip` layers are left out.
///
/// # Errors
/// If the device fails, its arena is full, or a value is not finite.
pub fn encode(encoder: &Placed, ids: Vec<u32>, skip: usize, hooks: &dyn SectionHooks) -> Result<EncodedText> {
    encode_to(encoder, ids, None, skip, hooks)
}

/// As [`encode`], with pooled features from the position `end`, if there is one.
fn encode_to(
    encoder: &Placed,
    ids: Vec<u32>,
    end: Option<usize>,
    skip: usize,
    hooks: &dyn SectionHooks,
) -> Result<EncodedText> {
    let output = encoder.network.text_encoder().forward_to(&[ids], &[end], skip, &encoder.pass(hooks))?;
    let read = |tensor: &Tensor| -> Result<Vec<f32>> {
        let values = tensor.read()?;
        finite(&values, &encoder.name)?;
        Ok(values)
    };
    let pooled = output.pooled.as_ref().map(read).transpose()?.unwrap_or_default();
    Ok(EncodedText { features: read(&output.features)?, pooled })
}

/// Runs a text encoder on each chunk of a text: their features follow each other along the tokens, with the weights of
/// the chunks, and the pooled feature is that of the first chunk.
///
/// # Errors
/// As [`encode`].
pub fn encode_chunks(encoder: &Placed, chunks: &[Chunk], skip: usize, hooks: &dyn SectionHooks) -> Result<EncodedText> {
    let encode = |chunk: &Chunk| encode_to(encoder, chunk.ids.clone(), chunk.end, skip, hooks);
    let mut encoded = chunks.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let mut features: Vec<f32> = encoded.iter().flat_map(|chunk| chunk.features.iter().copied()).collect();
    if emphasize(&mut features, chunks) == Emphasis::MeanLost {
        tracing::warn!("the weights of a prompt move the mean of its features to nearly zero, so it is not restored");
    }
    Ok(EncodedText { features, pooled: encoded.swap_remove(0).pooled })
}

/// Runs an image encoder on a picture, `[1, height, width, 3]` from -1 to 1, in tiles if there are any. The result is
/// that of [`Encoder::encode`].
///
/// [`Encoder::encode`]: crate::models::autoencoder::Encoder::encode
///
/// # Errors
/// If the device fails, its arena is full, or a value is not finite.
pub fn encode_image(
    encoder: &Placed,
    tiles: Option<Tiles>,
    shape: Shape,
    pixels: &[f32],
    hooks: &dyn SectionHooks,
) -> Result<Vec<f32>> {
    let network = encoder.network.image_encoder();
    let encode = |shape, pixels: &[f32]| network.encode(shape, pixels, &encoder.pass(hooks));
    let encoded = match tiles {
        Some(tiles) => tiles.run(shape, pixels, encode)?,
        None => encode(shape, pixels)?,
    };
    finite(&encoded, &encoder.name)?;
    Ok(encoded)
}

/// Runs the decoder, in tiles if there are any: from latents, whose `shape` is `[1, height, width, channels]`, to pixels
/// from about -1 to 1, `[8 height, 8 width, 3]`.
///
/// # Errors
/// If the device fails, its arena is full, or a value is not finite.
pub fn decode(
    decoder: &Placed,
    tiles: Option<Tiles>,
    shape: Shape,
    latents: &[f32],
    hooks: &dyn SectionHooks,
) -> Result<Vec<f32>> {
    let network = decoder.network.decoder();
    let decode = |shape, latents: &[f32]| network.decode(shape, latents, &decoder.pass(hooks));
    let pixels = match tiles {
        Some(tiles) => tiles.run(shape, latents, decode)?,
        None => decode(shape, latents)?,
    };
    finite(&pixels, &decoder.name)?;
    Ok(pixels)
}

/// Rejects infinities and NaN, which would give a black picture.
pub fn finite(values: &[f32], component: &str) -> Result<()> {
    let bad = values.iter().filter(|x| !x.is_finite()).count();
    if bad == 0 {
        return Ok(());
    }
    Err(Error::request(format!("the {component} gave {bad} values of {} that are not finite", values.len()))
        .hint("another dtype for this component, a lower guidance scale, or another checkpoint"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_finite_are_named() {
        let message = finite(&[1.0, f32::NAN, f32::INFINITY], "vae").unwrap_err().to_string();
        assert!(message.contains("the vae gave 2 values of 3"), "{message}");
    }
}
