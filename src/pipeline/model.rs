//! A model that is about to be used: its files, its facts and its tokenizer.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use super::{Component, Network, Parts, UnetPlace};
use crate::{
    backend::Device,
    error::{Error, Result},
    models::{clip::ClipTextEncoder, route::Route, spec::ModelSpec, unet::Unet, vae::VaeDecoder},
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
    /// If a file is missing, broken, or says what this program cannot do, or the tokenizer has more tokens than the text
    /// encoder.
    pub fn open(files: ModelFiles, variant: Option<String>) -> Result<Self> {
        let spec = ModelSpec::load(&files)?;
        let tokenizer = Tokenizer::load(&files, "tokenizer", spec.text_encoder.max_position_embeddings)?;
        let (rows, largest) = (spec.text_encoder.vocab_size, tokenizer.largest_id() as usize);
        if largest >= rows {
            return Err(Error::input(format!(
                "the parts of the model {} do not fit together: vocab_size of the text encoder must be {} at least, so \
                 that every token of the tokenizer has a row",
                files.name(),
                largest + 1
            ))
            .found(rows.to_string()));
        }
        Ok(Self { files, spec, tokenizer, variant })
    }

    /// A component's weights, headers checked, no tensor read.
    fn weights(&self, component: Component) -> Result<Weights> {
        Weights::open(&self.files, component.name(), self.variant.as_deref())
    }

    /// Ten hexadecimal digits that tell this model from others: see [`weights::identity`].
    ///
    /// # Errors
    /// If a weight file cannot be opened.
    pub fn identity(&self) -> Result<String> {
        let opened = Component::ALL.into_iter().map(|component| self.weights(component)).collect::<Result<Vec<_>>>()?;
        weights::identity(&self.files, &opened.iter().collect::<Vec<_>>())
    }
}

/// Reads weights, each network once for each set of memories that it is spread over: devices that can share, do.
pub struct Loader<'a> {
    model: &'a Model,
    text_encoders: Shared<ClipTextEncoder>,
    unets: Shared<Unet>,
    vaes: Shared<VaeDecoder>,
}

/// Networks by where each of their sections' weights are.
type Shared<N> = HashMap<Vec<String>, Arc<N>>;

impl<'a> Loader<'a> {
    /// Of one model.
    pub fn new(model: &'a Model) -> Self {
        Self { model, text_encoders: HashMap::new(), unets: HashMap::new(), vaes: HashMap::new() }
    }

    /// Knows these networks already, and reads none of them again.
    pub fn know(&mut self, parts: &Parts) {
        for Network { network, route } in &parts.text_encoders {
            self.text_encoders.insert(homes(route), network.clone());
        }
        for Network { network, route } in parts.unets.iter().flat_map(UnetPlace::networks) {
            self.unets.insert(homes(route), network.clone());
        }
        for Network { network, route } in &parts.vaes {
            self.vaes.insert(homes(route), network.clone());
        }
    }

    /// The text encoder for a route.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or left over, or a device has no room.
    pub fn text_encoder(&mut self, route: Route) -> Result<Network<ClipTextEncoder>> {
        let model = self.model;
        shared(&mut self.text_encoders, route, |route| {
            load_text_encoder(weights_for(model, Component::TextEncoder, route)?, &model.spec, route)
        })
    }

    /// The UNet for a route.
    ///
    /// # Errors
    /// As [`Loader::text_encoder`].
    pub fn unet(&mut self, route: Route) -> Result<Network<Unet>> {
        let model = self.model;
        shared(&mut self.unets, route, |route| {
            load_unet(weights_for(model, Component::Unet, route)?, &model.spec, route)
        })
    }

    /// The VAE's decoder for a route.
    ///
    /// # Errors
    /// As [`Loader::text_encoder`].
    pub fn vae(&mut self, route: Route) -> Result<Network<VaeDecoder>> {
        let model = self.model;
        shared(&mut self.vaes, route, |route| load_vae(weights_for(model, Component::Vae, route)?, &model.spec, route))
    }
}

/// A network whose sections' weights are where this route wants them: one that is there, or a new one.
fn shared<N>(networks: &mut Shared<N>, route: Route, load: impl FnOnce(&Route) -> Result<N>) -> Result<Network<N>> {
    let network = match networks.entry(homes(&route)) {
        Entry::Occupied(entry) => entry.get().clone(),
        Entry::Vacant(entry) => entry.insert(Arc::new(load(&route)?)).clone(),
    };
    Ok(Network { network, route })
}

/// A component's weights, without values where the devices want none.
fn weights_for(model: &Model, component: Component, route: &Route) -> Result<Weights> {
    match route.iter().any(Device::has_data) {
        true => model.weights(component),
        false => Ok(Weights::shapes_only(component.name())),
    }
}

/// Where the weights of each section are.
fn homes(route: &Route) -> Vec<String> {
    route.iter().map(|device| device.weight_home().to_string()).collect()
}

/// The sections of a component: where a device map may cut it.
pub fn sections(component: Component, spec: &ModelSpec) -> Vec<String> {
    match component {
        Component::TextEncoder => ClipTextEncoder::sections(&spec.text_encoder),
        Component::Unet => Unet::sections(&spec.unet),
        Component::Vae => VaeDecoder::sections(&spec.vae),
    }
}

/// Reads all of `text_encoder/`.
///
/// # Errors
/// If a tensor is missing, misshapen or left over, or a device has no room.
pub fn load_text_encoder(weights: Weights, spec: &ModelSpec, route: &Route) -> Result<ClipTextEncoder> {
    let encoder = ClipTextEncoder::load(&Scope::new(&weights, route.first()), &spec.text_encoder, route)?;
    weights.finish()?;
    Ok(encoder)
}

/// Reads all of `unet/`.
///
/// # Errors
/// If a tensor is missing, misshapen or left over, or a device has no room.
pub fn load_unet(weights: Weights, spec: &ModelSpec, route: &Route) -> Result<Unet> {
    let unet = Unet::load(&Scope::new(&weights, route.first()), &spec.unet, route)?;
    weights.finish()?;
    Ok(unet)
}

/// Reads the decoder of `vae/`. The encoder stays where it is: pictures as a start do not exist yet.
///
/// # Errors
/// If a tensor is missing, misshapen or left over, or a device has no room.
pub fn load_vae(weights: Weights, spec: &ModelSpec, route: &Route) -> Result<VaeDecoder> {
    weights.skip("encoder.");
    weights.skip("quant_conv.");
    let decoder = VaeDecoder::load(&Scope::new(&weights, route.first()), &spec.vae, route)?;
    weights.finish()?;
    Ok(decoder)
}
