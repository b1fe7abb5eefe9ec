//! One picture, from text to pixels.

mod draw;
pub mod gate;
pub mod image;
pub mod latents;
pub mod metadata;
pub mod model;
pub mod placement;
pub mod request;
pub mod stages;
mod texts;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backend::{DType, Device, DeviceId},
    error::{Error, Result},
    models::{
        clip::ClipTextEncoder,
        route::{Borders, Keeps, Route, Walk},
        unet::Unet,
        vae::VaeDecoder,
    },
    output::{self, Durability},
    weights::Visitors,
};
pub use draw::{OnProgress, Pipeline};
pub use image::Image;
pub use latents::Latents;
pub use metadata::Metadata;
pub use model::Model;
use placement::each_once;
use request::Request;
use stages::{Branch, Features};
pub use texts::TextCache;

/// A component of a pipeline: what a device map places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Text to features.
    TextEncoder,
    /// The denoiser.
    Unet,
    /// Latents to pictures.
    Vae,
}

impl Component {
    /// All of them, in the order in which a request passes them.
    pub const ALL: [Self; 3] = [Self::TextEncoder, Self::Unet, Self::Vae];

    /// Its name in `model_index.json` and in device maps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Unet => "unet",
            Self::Vae => "vae",
        }
    }
}

/// One thing for each component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerComponent<T> {
    /// The text encoder's.
    pub text_encoder: T,
    /// The UNet's.
    pub unet: T,
    /// The VAE's.
    pub vae: T,
}

impl<T> PerComponent<T> {
    /// Asks `f` for each.
    pub fn new(mut f: impl FnMut(Component) -> T) -> Self {
        Self { text_encoder: f(Component::TextEncoder), unet: f(Component::Unet), vae: f(Component::Vae) }
    }

    /// As [`PerComponent::new`], until an error.
    pub fn try_new(mut f: impl FnMut(Component) -> Result<T>) -> Result<Self> {
        Ok(Self { text_encoder: f(Component::TextEncoder)?, unet: f(Component::Unet)?, vae: f(Component::Vae)? })
    }

    /// One of them.
    pub fn get(&self, component: Component) -> &T {
        match component {
            Component::TextEncoder => &self.text_encoder,
            Component::Unet => &self.unet,
            Component::Vae => &self.vae,
        }
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, component: Component) -> &mut T {
        match component {
            Component::TextEncoder => &mut self.text_encoder,
            Component::Unet => &mut self.unet,
            Component::Vae => &mut self.vae,
        }
    }

    /// With their components.
    pub fn iter(&self) -> impl Iterator<Item = (Component, &T)> {
        Component::ALL.into_iter().map(|component| (component, self.get(component)))
    }
}

/// What happens to a request while it is worked on, by the engine's clock.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// A component begins. The text encoder begins once for each text that is not remembered.
    Started {
        /// Which.
        component: Component,
        /// Where.
        devices: Vec<DeviceId>,
        /// Calls of the UNet to come; 0 for the others.
        calls: usize,
        /// When.
        at: Instant,
    },
    /// The UNet goes on.
    Step {
        /// Calls that are done.
        done: usize,
        /// Calls in all.
        of: usize,
        /// When.
        at: Instant,
    },
    /// A component has finished.
    Finished(Span),
}

/// What came out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Picture {
    /// Final latents, as diffusers gives them.
    pub latents: Latents,
    /// Pixels, unless only the latents were asked for.
    pub image: Option<Image>,
    /// Every stretch of work on it, in order. A text that was remembered and a picture that was not asked for took none.
    pub spans: Vec<Span>,
    /// What was asked for.
    pub request: Request,
    /// The types of the devices that ran the UNet, each once.
    pub dtypes: Vec<DType>,
    model: Arc<Model>,
}

/// A component's work on one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// What worked.
    pub component: Component,
    /// Where.
    pub devices: Vec<DeviceId>,
    /// From when.
    pub started: Instant,
    /// For how long.
    pub elapsed: Duration,
}

impl Picture {
    /// Time on a component, in all.
    pub fn time(&self, component: Component) -> Duration {
        self.spans.iter().filter(|span| span.component == component).map(|span| span.elapsed).sum()
    }

    /// The devices that a component used, in order; none if it did nothing.
    pub fn devices(&self, component: Component) -> Vec<DeviceId> {
        let here = self.spans.iter().filter(|span| span.component == component);
        each_once(here.flat_map(|span| span.devices.iter().copied()))
    }

    /// What its file says about how it was made.
    ///
    /// # Errors
    /// If the model's weights, over which its identity is taken, cannot be read any more.
    pub fn metadata(&self) -> Result<Metadata> {
        Metadata::new(&self.request, &self.model, &self.model.identity()?, &self.dtypes)
    }

    /// The bytes of a file that says so: PNG, or safetensors if only the latents were asked for.
    ///
    /// # Errors
    /// If it is too large for the format.
    pub fn encode(&self, metadata: &Metadata) -> Result<Vec<u8>> {
        match &self.image {
            Some(image) => image.encode_png(metadata),
            None => self.latents.encode(metadata),
        }
    }

    /// Writes it with its [`metadata`](Picture::metadata) to a file that ends in `.png`, or its latents to one that ends in
    /// `.safetensors`. A file that was there is replaced; it is on the disk when this returns.
    ///
    /// # Errors
    /// If the name ends otherwise, there are no pixels for a PNG, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let metadata = self.metadata()?;
        let bytes = match (extension.to_ascii_lowercase().as_str(), &self.image) {
            ("png", Some(image)) => image.encode_png(&metadata)?,
            ("png", None) => {
                return Err(Error::input(format!("saving {}: the request was for latents alone", path.display()))
                    .hint("a name that ends in .safetensors, or Output::Image in the request"));
            }
            (latents::EXTENSION, _) => self.latents.encode(&metadata)?,
            _ => {
                return Err(Error::input(format!("saving {}: there is no such format", path.display()))
                    .hint("a name that ends in .png or .safetensors"));
            }
        };
        output::write(path, &bytes, Durability::Synced)
    }
}

/// A network, where its sections run, and what has to be brought to them.
pub struct Network<N> {
    /// The network.
    pub network: Arc<N>,
    /// Its weights, if they rest elsewhere.
    pub visitors: Option<Arc<Visitors>>,
    /// A device for each section.
    pub route: Route,
}

impl<N> Network<N> {
    /// A walk through its sections that `borders` hears of.
    pub fn walk<'a>(&'a self, borders: &'a dyn Borders) -> Walk<'a> {
        Walk::new(&self.route, self.visitors.as_deref(), borders)
    }

    fn devices(&self) -> Vec<DeviceId> {
        self.route.devices().into_iter().map(|device| device.id()).collect()
    }
}

/// A UNet's place: one network for all texts of a request, or two for the negative and the positive one.
pub struct UnetPlace {
    /// The negative prompt's, if it has one of its own.
    pub negative: Option<Network<Unet>>,
    /// The prompt's, or that of both.
    pub positive: Network<Unet>,
}

impl UnetPlace {
    /// Its one or two networks.
    pub fn networks(&self) -> impl Iterator<Item = &Network<Unet>> {
        self.negative.iter().chain([&self.positive])
    }

    /// The devices that a request needs, with guidance or without.
    fn devices(&self, guided: bool) -> Vec<DeviceId> {
        let mut devices = self.positive.devices();
        if let (true, Some(negative)) = (guided, &self.negative) {
            devices.extend(negative.devices());
            devices.sort();
            devices.dedup();
        }
        devices
    }
}

/// The places of every component. Several are a pool, of which a request takes the first that is free.
pub struct Parts {
    /// Text to features.
    pub text_encoders: Vec<Network<ClipTextEncoder>>,
    /// The denoiser.
    pub unets: Vec<UnetPlace>,
    /// Latents to pictures.
    pub vaes: Vec<Network<VaeDecoder>>,
}

/// What one request under way has of its own in a UNet's place.
pub struct Slot {
    negative: Option<(Route, Keeps)>,
    positive: (Route, Keeps),
    /// It passes from device to device, and leaves those behind it to others.
    passes: bool,
}

impl Slot {
    /// For a request in `place`, with `keeps` on each of its devices. With `lanes`, one for each device of a cut UNet, it
    /// works in these and passes the gates one by one.
    pub fn new(place: &UnetPlace, keeps: &Keeps, lanes: &[Device]) -> Self {
        let passes = !lanes.is_empty() && place.negative.is_none() && place.positive.route.devices().len() > 1;
        let lanes = if passes { lanes } else { &[] };
        let own = |network: &Network<Unet>| (network.route.with_lanes(lanes), keeps.with_lanes(lanes));
        Self { negative: place.negative.as_ref().map(own), positive: own(&place.positive), passes }
    }
}

/// How a place works on texts: `[negative, positive]` or `[positive]`. The negative texts come first.
pub fn branches<'a>(
    place: &'a UnetPlace,
    slot: &'a Slot,
    mut texts: Vec<Features>,
    guided: bool,
    borders: &'a (dyn Borders + Sync),
) -> Vec<Branch<'a>> {
    let branch = |network: &'a Network<Unet>, (route, keeps): &'a (Route, Keeps), texts| Branch {
        unet: &network.network,
        visitors: network.visitors.as_deref(),
        route,
        keeps,
        borders,
        texts,
    };
    match (&place.negative, &slot.negative) {
        (Some(network), Some(own)) if guided => {
            let positive = texts.split_off(texts.len() / 2);
            vec![branch(network, own, texts), branch(&place.positive, &slot.positive, positive)]
        }
        _ => vec![branch(&place.positive, &slot.positive, texts)],
    }
}
