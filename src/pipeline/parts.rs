//! The networks of a pipeline, each where its sections run.

use std::sync::Arc;

use crate::{
    backend::{Device, DeviceId},
    models::{
        clip::ClipTextEncoder,
        route::{Borders, Keeps, Route, Walk},
        unet::Unet,
        vae::VaeDecoder,
    },
    weights::Visitors,
};

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

    pub(super) fn devices(&self) -> Vec<DeviceId> {
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
    pub(super) fn devices(&self, guided: bool) -> Vec<DeviceId> {
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
    pub(super) negative: Option<(Route, Keeps)>,
    pub(super) positive: (Route, Keeps),
    /// It passes from device to device, and leaves those behind it to others.
    pub(super) passes: bool,
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
