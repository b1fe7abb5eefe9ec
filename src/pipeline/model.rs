//! A model that is about to be used: its files, its facts and its tokenizer.

use std::sync::Arc;

use super::{Component, Parts};
use crate::{
    backend::Device,
    error::Result,
    models::{clip::ClipTextEncoder, spec::ModelSpec, unet::Unet, vae::VaeDecoder},
    tokenizer::Tokenizer,
    weights::{self, ModelFiles, Scope, Weights},
};

/// A checkpoint whose configs have been read and whose weights have not.
pub struct Model {
    /// Where its files are.
    pub files: ModelFiles,
    /// What its configs say.
    pub spec: ModelSpec,
    /// Texts to ids.
    pub tokenizer: Tokenizer,
    /// Which variant of the weights to read: `fp16` for example.
    pub variant: Option<String>,
}

impl Model {
    /// Reads the configs and the tokenizer.
    ///
    /// # Errors
    /// If a file is missing, broken, or says what this program cannot do.
    pub fn open(files: ModelFiles, variant: Option<String>) -> Result<Self> {
        let spec = ModelSpec::load(&files)?;
        let tokenizer = Tokenizer::load(&files, "tokenizer", spec.text_encoder.max_position_embeddings)?;
        Ok(Self { files, spec, tokenizer, variant })
    }

    /// Ten hexadecimal digits that tell this model from others: see [`weights::identity`].
    ///
    /// # Errors
    /// If a weight file cannot be opened.
    pub fn identity(&self) -> Result<String> {
        let open = |component: Component| Weights::open(&self.files, component.name(), self.variant.as_deref());
        let opened = Component::ALL.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        weights::identity(&self.files, &opened.iter().collect::<Vec<_>>())
    }

    /// Reads all weights, each component packed for the memory of the device that `device_of` names for it.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or left over, or a device has no room.
    pub fn load(&self, device_of: impl Fn(Component) -> Device) -> Result<Parts> {
        let open = |component: Component| Weights::open(&self.files, component.name(), self.variant.as_deref());
        Ok(Parts {
            text_encoder: Arc::new(load_text_encoder(
                open(Component::TextEncoder)?,
                &device_of(Component::TextEncoder),
                &self.spec,
            )?),
            unet: Arc::new(load_unet(open(Component::Unet)?, &device_of(Component::Unet), &self.spec)?),
            vae: Arc::new(load_vae(open(Component::Vae)?, &device_of(Component::Vae), &self.spec)?),
        })
    }
}

/// Reads all of `text_encoder/`.
///
/// # Errors
/// As [`Model::load`].
pub fn load_text_encoder(weights: Weights, device: &Device, spec: &ModelSpec) -> Result<ClipTextEncoder> {
    let encoder = ClipTextEncoder::load(&Scope::new(&weights, device), &spec.text_encoder)?;
    weights.finish()?;
    Ok(encoder)
}

/// Reads all of `unet/`.
///
/// # Errors
/// As [`Model::load`].
pub fn load_unet(weights: Weights, device: &Device, spec: &ModelSpec) -> Result<Unet> {
    let unet = Unet::load(&Scope::new(&weights, device), &spec.unet)?;
    weights.finish()?;
    Ok(unet)
}

/// Reads the decoder of `vae/`. The encoder stays where it is: pictures as a start do not exist yet.
///
/// # Errors
/// As [`Model::load`].
pub fn load_vae(weights: Weights, device: &Device, spec: &ModelSpec) -> Result<VaeDecoder> {
    weights.skip("encoder.");
    weights.skip("quant_conv.");
    let decoder = VaeDecoder::load(&Scope::new(&weights, device), &spec.vae)?;
    weights.finish()?;
    Ok(decoder)
}
