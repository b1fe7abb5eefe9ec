//! The networks that a model may be made of. This is the one list of them: whatever places, loads or runs components does
//! so through these types.

use super::{
    clip::{ClipSpec, ClipTextEncoder},
    component::Stage,
    route::Route,
    unet::{Unet, UnetSpec},
    vae::{VaeDecoder, VaeEncoder, VaeSpec},
};
use crate::{error::Result, weights::Scope};

/// A network by its config.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkSpec {
    /// A text encoder of CLIP.
    Clip(ClipSpec),
    /// A UNet with cross attention.
    Unet(UnetSpec),
    /// The decoder of an autoencoder.
    VaeDecoder(VaeSpec),
}

/// What goes into a text encoder and comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSpec {
    /// Ids that it knows.
    pub vocab_size: usize,
    /// Tokens of one text.
    pub tokens: usize,
    /// Width of the features of each.
    pub width: usize,
}

impl TextSpec {
    /// Values of the features of one text.
    pub fn values(self) -> usize {
        self.tokens * self.width
    }
}

/// A network with its weights.
#[expect(clippy::large_enum_variant, reason = "a process has a few of them, each behind an Arc")]
pub enum Network {
    /// See [`NetworkSpec::Clip`].
    Clip(ClipTextEncoder),
    /// See [`NetworkSpec::Unet`].
    Unet(Unet),
    /// See [`NetworkSpec::VaeDecoder`].
    VaeDecoder(VaeDecoder),
}

impl NetworkSpec {
    /// The stage in which it works.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Clip(_) => Stage::Encode,
            Self::Unet(_) => Stage::Denoise,
            Self::VaeDecoder(_) => Stage::Decode,
        }
    }

    /// Where it can be cut: the names of its sections, in the order in which they run.
    pub fn sections(&self) -> Vec<String> {
        match self {
            Self::Clip(spec) => ClipTextEncoder::sections(spec),
            Self::Unet(spec) => Unet::sections(spec),
            Self::VaeDecoder(spec) => VaeDecoder::sections(spec),
        }
    }

    /// Reads its weights, each section for the device that runs it.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen, or a device has no room.
    pub fn load(&self, w: &Scope, route: &Route) -> Result<Network> {
        Ok(match self {
            Self::Clip(spec) => Network::Clip(ClipTextEncoder::load(w, spec, route)?),
            Self::Unet(spec) => Network::Unet(Unet::load(w, spec, route)?),
            Self::VaeDecoder(spec) => Network::VaeDecoder(VaeDecoder::load(w, spec, route)?),
        })
    }

    /// How the names of those tensors of its folder begin that belong to networks which are not run.
    pub fn not_run(&self) -> &'static [&'static str] {
        match self {
            Self::Clip(_) | Self::Unet(_) => &[],
            Self::VaeDecoder(_) => &["encoder.", "quant_conv."],
        }
    }

    /// Reads the networks of its folder that are not run, to count their parameters.
    ///
    /// # Errors
    /// As [`NetworkSpec::load`].
    pub fn load_not_run(&self, w: &Scope) -> Result<()> {
        match self {
            Self::Clip(_) | Self::Unet(_) => Ok(()),
            Self::VaeDecoder(spec) => VaeEncoder::load(w, spec).map(drop),
        }
    }

    /// Whether it overflows f16, so that f32 is what suits it.
    pub fn overflows_f16(&self) -> bool {
        matches!(self, Self::VaeDecoder(spec) if spec.force_upcast)
    }

    /// What a text encoder makes of one text.
    pub fn text(&self) -> Option<TextSpec> {
        match self {
            Self::Clip(spec) => {
                Some(TextSpec { vocab_size: spec.vocab_size, tokens: spec.text_length, width: spec.hidden_size })
            }
            Self::Unet(_) | Self::VaeDecoder(_) => None,
        }
    }
}

/// The roles of networks: each panics for a network that works in another stage.
impl Network {
    /// A network of [`Stage::Encode`].
    pub fn text_encoder(&self) -> &ClipTextEncoder {
        let Self::Clip(encoder) = self else { panic!("only a text encoder encodes") };
        encoder
    }

    /// A network of [`Stage::Denoise`].
    pub fn denoiser(&self) -> &Unet {
        let Self::Unet(denoiser) = self else { panic!("only a denoiser denoises") };
        denoiser
    }

    /// A network of [`Stage::Decode`].
    pub fn decoder(&self) -> &VaeDecoder {
        let Self::VaeDecoder(decoder) = self else { panic!("only a decoder decodes") };
        decoder
    }
}
