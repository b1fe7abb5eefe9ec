//! The autoencoder of a model, of either class, from the host to the host: what the layers read of latents and pixels
//! is computed here, beside the copy to the device.

use super::{
    route::{ForwardPass, Route},
    tiles::{Scale, Seams, Tiles},
    tiny_vae::{TinyDecoder, TinyEncoder, TinyVaeSpec},
    vae::{VaeDecoder, VaeEncoder, VaeSpec},
};
use crate::{
    error::Result,
    tensor::{Shape, Tensor},
    weights::Scope,
};

/// The config of an autoencoder.
#[derive(Debug, Clone, PartialEq)]
pub enum AutoencoderSpec {
    /// `AutoencoderKL`.
    Kl(VaeSpec),
    /// `AutoencoderTiny`.
    Tiny(TinyVaeSpec),
}

impl AutoencoderSpec {
    /// Number of channels of the latents.
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Kl(spec) => spec.latent_channels,
            Self::Tiny(spec) => spec.latent_channels,
        }
    }

    /// The number of pixels per latent, along each side.
    pub fn scale(&self) -> usize {
        match self {
            Self::Kl(spec) => spec.scale(),
            Self::Tiny(spec) => spec.scale(),
        }
    }

    /// The factor of the latents: they are `encoded * scaling_factor`.
    pub fn scaling_factor(&self) -> f32 {
        match self {
            Self::Kl(spec) => spec.scaling_factor,
            Self::Tiny(spec) => spec.scaling_factor,
        }
    }

    /// Whether the networks overflow f16.
    pub fn overflows_f16(&self) -> bool {
        matches!(self, Self::Kl(spec) if spec.force_upcast)
    }

    /// Whether the encoder gives the latents themselves, rather than the moments of the distribution of which they are
    /// drawn.
    pub fn encodes_to_latents(&self) -> bool {
        matches!(self, Self::Tiny(_))
    }

    /// The tiles in which the decoder works on large pictures if that is asked for; `None` if the config does not say
    /// how, or the tiles would not fit together.
    pub fn decoder_tiles(&self) -> Option<Tiles> {
        let scale = Scale::Up(self.scale());
        let tiles = match self {
            Self::Kl(spec) => {
                let sample = spec.sample_size?;
                let size = sample / spec.scale();
                Tiles { size, stride: 3 * size / 4, blend: sample / 4, scale, seams: Seams::Mixed }
            }
            // Independent of the config, for the scale of all published ones.
            Self::Tiny(spec) if spec.scale() == 8 => {
                Tiles { size: 64, stride: 56, blend: 64, scale, seams: Seams::Laid }
            }
            Self::Tiny(_) => return None,
        };
        Some(tiles).filter(Tiles::fit)
    }

    /// As [`decoder_tiles`](Self::decoder_tiles), for the encoder.
    pub fn encoder_tiles(&self) -> Option<Tiles> {
        let factor = self.scale();
        let Tiles { size, stride, seams, .. } = self.decoder_tiles()?;
        let scale = Scale::Down(factor);
        Some(Tiles { size: size * factor, stride: stride * factor, blend: size - stride, scale, seams })
            .filter(Tiles::fit)
    }

    /// The names of the decoder's sections, in the order in which they run.
    pub fn decoder_sections(&self) -> Vec<String> {
        match self {
            Self::Kl(spec) => VaeDecoder::sections(spec),
            Self::Tiny(spec) => TinyDecoder::sections(spec),
        }
    }

    /// The names of the encoder's sections, in the order in which they run.
    pub fn encoder_sections(&self) -> Vec<String> {
        match self {
            Self::Kl(spec) => VaeEncoder::sections(spec),
            Self::Tiny(spec) => TinyEncoder::sections(spec),
        }
    }
}

/// The decoder of an autoencoder.
#[allow(clippy::large_enum_variant, reason = "a model has one, which is shared and never moved")]
pub enum Decoder {
    /// That of `AutoencoderKL`.
    Kl(Box<VaeDecoder>),
    /// That of `AutoencoderTiny`.
    Tiny(TinyDecoder),
}

impl Decoder {
    /// Loads the decoder's tensors of `vae/`, each section for the device that runs it.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or a device has no room.
    pub fn load(w: &Scope, spec: &AutoencoderSpec, route: &Route) -> Result<Self> {
        Ok(match spec {
            AutoencoderSpec::Kl(spec) => Self::Kl(Box::new(VaeDecoder::load(w, spec, route)?)),
            AutoencoderSpec::Tiny(spec) => Self::Tiny(TinyDecoder::load(w, spec, route)?),
        })
    }

    /// Decodes the denoiser's latents, whose `shape` is `[batch, height, width, latent_channels]`, to pictures from -1
    /// to 1, `[batch, 8 height, 8 width, 3]`.
    ///
    /// # Errors
    /// If the device fails or its arena is full.
    pub fn decode(&self, shape: Shape, latents: &[f32], pass: &ForwardPass) -> Result<Vec<f32>> {
        let input = |&latent: &f32| match self {
            Self::Kl(decoder) => decoder.input(latent),
            Self::Tiny(decoder) => decoder.input(latent),
        };
        let latents: Vec<f32> = latents.iter().map(input).collect();
        let mut pixels = self.forward(Tensor::new(pass.first(), shape, &latents)?, pass)?.read()?;
        if let Self::Tiny(decoder) = self {
            pixels.iter_mut().for_each(|pixel| *pixel = decoder.output(*pixel));
        }
        Ok(pixels)
    }

    /// The layers alone. Input and output are f32.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn forward(&self, z: Tensor, pass: &ForwardPass) -> Result<Tensor> {
        match self {
            Self::Kl(decoder) => decoder.forward(z, pass),
            Self::Tiny(decoder) => decoder.forward(z, pass),
        }
    }
}

/// The encoder of an autoencoder.
#[allow(clippy::large_enum_variant, reason = "a model has one, which is shared and never moved")]
pub enum Encoder {
    /// That of `AutoencoderKL`.
    Kl(Box<VaeEncoder>),
    /// That of `AutoencoderTiny`.
    Tiny(TinyEncoder),
}

impl Encoder {
    /// Loads the encoder's tensors of `vae/`, each section for the device that runs it.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or a device has no room.
    pub fn load(w: &Scope, spec: &AutoencoderSpec, route: &Route) -> Result<Self> {
        Ok(match spec {
            AutoencoderSpec::Kl(spec) => Self::Kl(Box::new(VaeEncoder::load(w, spec, route)?)),
            AutoencoderSpec::Tiny(spec) => Self::Tiny(TinyEncoder::load(w, spec, route)?),
        })
    }

    /// Encodes pictures from -1 to 1, whose `shape` is `[batch, height, width, 3]`, to the moments of the unscaled
    /// latents, `[batch, height / 8, width / 8, 2 latent_channels]`, means first, or to these latents: see
    /// [`AutoencoderSpec::encodes_to_latents`].
    ///
    /// # Errors
    /// If the device fails or its arena is full.
    pub fn encode(&self, shape: Shape, pixels: &[f32], pass: &ForwardPass) -> Result<Vec<f32>> {
        let read = |pixels: &[f32]| self.forward(Tensor::new(pass.first(), shape, pixels)?, pass)?.read();
        match self {
            Self::Kl(_) => read(pixels),
            Self::Tiny(encoder) => read(&pixels.iter().map(|&pixel| encoder.input(pixel)).collect::<Vec<_>>()),
        }
    }

    /// The layers alone. Input and output are f32.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn forward(&self, pictures: Tensor, pass: &ForwardPass) -> Result<Tensor> {
        match self {
            Self::Kl(encoder) => encoder.forward(pictures, pass),
            Self::Tiny(encoder) => encoder.forward(pictures, pass),
        }
    }
}
