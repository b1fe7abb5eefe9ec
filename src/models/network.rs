//! The kinds of networks that a model may have. This is the only list of them: the code that places, loads or runs
//! components uses these types.

use super::{
    autoencoder::{AutoencoderSpec, Decoder, Encoder},
    clip::{ClipSpec, ClipTextEncoder, EncodedText},
    component::Stage,
    controlnet::{ControlNet, ControlNetSpec},
    route::Route,
    unet::{Unet, UnetSpec},
};
use crate::{
    backend::{Device, Precision},
    error::Result,
    weights::Scope,
};

/// A kind of network with its config.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkSpec {
    /// A text encoder of CLIP.
    Clip(ClipSpec),
    /// A UNet with cross attention.
    Unet(UnetSpec),
    /// A ControlNet.
    ControlNet(ControlNetSpec),
    /// The encoder of an autoencoder.
    VaeEncoder(AutoencoderSpec),
    /// The decoder of an autoencoder.
    VaeDecoder(AutoencoderSpec),
}

/// Sizes of a text encoder's input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSpec {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Number of tokens of one text.
    pub tokens: usize,
    /// Width of the features of each token.
    pub width: usize,
    /// Number of values of the pooled feature, 0 without one.
    pub pooled: usize,
}

impl TextSpec {
    /// Number of values of an encoded text of so many chunks.
    pub fn values(self, chunks: usize) -> usize {
        chunks * self.tokens * self.width + self.pooled
    }

    /// An encoded text of so many chunks whose values are `value(0)`, `value(1)`, ….
    pub fn filled(self, chunks: usize, mut value: impl FnMut(usize) -> f32) -> EncodedText {
        let mut values: Vec<f32> = (0..self.values(chunks)).map(&mut value).collect();
        let pooled = values.split_off(chunks * self.tokens * self.width);
        EncodedText { features: values, pooled }
    }
}

/// A loaded network.
pub enum Network {
    /// See [`NetworkSpec::Clip`].
    Clip(ClipTextEncoder),
    /// See [`NetworkSpec::Unet`].
    Unet(Unet),
    /// See [`NetworkSpec::ControlNet`].
    ControlNet(ControlNet),
    /// See [`NetworkSpec::VaeEncoder`].
    VaeEncoder(Encoder),
    /// See [`NetworkSpec::VaeDecoder`].
    VaeDecoder(Decoder),
}

impl NetworkSpec {
    /// The stage of this kind of network.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Clip(_) => Stage::Encode,
            Self::Unet(_) | Self::ControlNet(_) => Stage::Denoise,
            Self::VaeEncoder(_) => Stage::EncodeImage,
            Self::VaeDecoder(_) => Stage::Decode,
        }
    }

    /// The names of the sections, between which the network can be cut, in the order in which they run.
    pub fn sections(&self) -> Vec<String> {
        match self {
            Self::Clip(spec) => ClipTextEncoder::sections(spec),
            Self::Unet(spec) => Unet::sections(spec),
            Self::ControlNet(spec) => ControlNet::sections(spec),
            Self::VaeEncoder(spec) => spec.encoder_sections(),
            Self::VaeDecoder(spec) => spec.decoder_sections(),
        }
    }

    /// Loads the network, each section for the device that runs it.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or a device has no room.
    pub fn load(&self, w: &Scope, route: &Route) -> Result<Network> {
        Ok(match self {
            Self::Clip(spec) => Network::Clip(ClipTextEncoder::load(w, spec, route)?),
            Self::Unet(spec) => Network::Unet(Unet::load(w, spec, route)?),
            Self::ControlNet(spec) => Network::ControlNet(ControlNet::load(w, spec, route)?),
            Self::VaeEncoder(spec) => Network::VaeEncoder(Encoder::load(w, spec, route)?),
            Self::VaeDecoder(spec) => Network::VaeDecoder(Decoder::load(w, spec, route)?),
        })
    }

    /// Prefixes of tensors in the component's folder that belong to networks which are not run.
    pub fn not_run(&self) -> &'static [&'static str] {
        match self {
            Self::Clip(_) | Self::Unet(_) | Self::ControlNet(_) => &[],
            Self::VaeEncoder(_) => &["decoder.", "post_quant_conv."],
            Self::VaeDecoder(_) => &["encoder.", "quant_conv."],
        }
    }

    /// Loads the networks in the component's folder that are not run, to count their parameters.
    ///
    /// # Errors
    /// As [`NetworkSpec::load`].
    pub fn load_not_run(&self, w: &Scope, device: &Device) -> Result<()> {
        match self {
            Self::Clip(_) | Self::Unet(_) | Self::ControlNet(_) | Self::VaeEncoder(_) => Ok(()),
            Self::VaeDecoder(spec) => {
                let route = Route::whole(device, Precision::F32, spec.encoder_sections().len());
                Encoder::load(w, spec, &route).map(drop)
            }
        }
    }

    /// Whether the network overflows f16, so that its default type is f32.
    pub fn overflows_f16(&self) -> bool {
        matches!(self, Self::VaeEncoder(spec) | Self::VaeDecoder(spec) if spec.overflows_f16())
    }

    /// Whether a denoiser takes the guidance scale as an input.
    pub fn takes_guidance(&self) -> bool {
        matches!(self, Self::Unet(spec) if spec.time_cond_proj_dim.is_some())
    }

    /// How many layers at its end a text encoder can leave out, so that one remains; `None` for other networks.
    pub fn layers_to_skip(&self) -> Option<usize> {
        match self {
            Self::Clip(spec) => spec.feature_layers(1),
            Self::Unet(_) | Self::ControlNet(_) | Self::VaeEncoder(_) | Self::VaeDecoder(_) => None,
        }
    }

    /// The sizes of a text encoder; `None` for other networks.
    pub fn text(&self) -> Option<TextSpec> {
        match self {
            Self::Clip(spec) => Some(TextSpec {
                vocab_size: spec.vocab_size,
                tokens: spec.text_length,
                width: spec.hidden_size,
                pooled: spec.pooled.map_or(0, |pooled| pooled.width),
            }),
            Self::Unet(_) | Self::ControlNet(_) | Self::VaeEncoder(_) | Self::VaeDecoder(_) => None,
        }
    }
}

/// Access to the network of a stage: each method panics for a network of another stage.
impl Network {
    /// The network of a component in [`Stage::Encode`].
    pub fn text_encoder(&self) -> &ClipTextEncoder {
        let Self::Clip(encoder) = self else { panic!("only a text encoder encodes") };
        encoder
    }

    /// The network of a component in [`Stage::Denoise`] that is the denoiser itself.
    pub fn denoiser(&self) -> &Unet {
        let Self::Unet(denoiser) = self else { panic!("only a denoiser denoises") };
        denoiser
    }

    /// The network of a component in [`Stage::Denoise`] that controls the denoiser.
    pub fn controlnet(&self) -> &ControlNet {
        let Self::ControlNet(controlnet) = self else { panic!("only a ControlNet controls a denoiser") };
        controlnet
    }

    /// The network of a component in [`Stage::EncodeImage`].
    pub fn image_encoder(&self) -> &Encoder {
        let Self::VaeEncoder(encoder) = self else { panic!("only an image encoder encodes pictures") };
        encoder
    }

    /// The network of a component in [`Stage::Decode`].
    pub fn decoder(&self) -> &Decoder {
        let Self::VaeDecoder(decoder) = self else { panic!("only a decoder decodes") };
        decoder
    }
}
