//! The networks of a pipeline, on the devices of their sections.

use std::sync::Arc;

use crate::{
    backend::{Device, DeviceId},
    models::{
        component::PerComponent,
        network::Network,
        route::{ForwardPass, PersistentArenas, Route, SectionHooks},
    },
    weights::Offload,
};

/// A network with the devices of its sections and its offloaded weights.
#[derive(Clone)]
pub struct Placed {
    /// The name of the component, for messages.
    pub name: Arc<str>,
    /// The network.
    pub network: Arc<Network>,
    /// The offloaded weights, if there are any.
    pub offload: Option<Arc<Offload>>,
    /// The device of each section.
    pub route: Route,
}

impl Placed {
    /// A forward pass through the sections, which calls `hooks`.
    pub fn pass<'a>(&'a self, hooks: &'a dyn SectionHooks) -> ForwardPass<'a> {
        ForwardPass::new(&self.route, self.offload.as_deref(), hooks)
    }

    fn devices(&self) -> Vec<DeviceId> {
        self.route.devices().into_iter().map(|device| device.id()).collect()
    }
}

/// A component in one of its places: one network, or for a denoiser also two, one for each text of guidance.
pub struct Instance {
    /// The network for the negative prompt, if there is a separate one.
    pub negative: Option<Placed>,
    /// The network for the prompt, or for both texts.
    pub positive: Placed,
}

impl From<Placed> for Instance {
    fn from(network: Placed) -> Self {
        Self { negative: None, positive: network }
    }
}

impl Instance {
    /// The one or two networks.
    pub fn networks(&self) -> impl Iterator<Item = &Placed> {
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

/// The instances of every component. Several form a pool, from which a request takes the first that is free.
pub type Parts = PerComponent<Vec<Instance>>;

/// The state of one request in progress in an instance of the denoiser.
pub struct Slot {
    pub(super) negative: Option<(Route, PersistentArenas)>,
    pub(super) positive: (Route, PersistentArenas),
    /// Whether the request holds the network's devices one by one, so that other requests can use the devices that it
    /// has left.
    pub(super) one_by_one: bool,
}

impl Slot {
    /// The slot of a request in `instance`, with an arena of `keeps` on each of its devices. With `scratch`, a
    /// request scratch on each device of a cut network, the request allocates there and waits for the devices one by
    /// one.
    pub fn new(instance: &Instance, keeps: &PersistentArenas, scratch: &[Device]) -> Self {
        let one_by_one =
            !scratch.is_empty() && instance.negative.is_none() && instance.positive.route.devices().len() > 1;
        let scratch = if one_by_one { scratch } else { &[] };
        let own = |network: &Placed| (network.route.with_request_scratch(scratch), keeps.with_request_scratch(scratch));
        Self { negative: instance.negative.as_ref().map(own), positive: own(&instance.positive), one_by_one }
    }
}
