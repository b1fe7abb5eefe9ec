//! Where the components of one pipeline run, generic over the type of a device: a name in plans, an open device in
//! pipelines.

use std::ops::Deref;

use serde::Serialize;

use crate::models::component::PerComponent;
pub use crate::weights::Reside;

/// A device for each section of a network, and where its weights are kept. It dereferences to the list of devices.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Sections<D> {
    /// The devices in the order of the sections.
    pub devices: Vec<D>,
    /// Where the weights of all sections are kept.
    pub reside: Reside,
}

impl<D> From<Vec<D>> for Sections<D> {
    /// The weights stay on the devices that use them.
    fn from(devices: Vec<D>) -> Self {
        Self { devices, reside: Reside::Device }
    }
}

impl<D> Deref for Sections<D> {
    type Target = [D];
    fn deref(&self) -> &[D] {
        &self.devices
    }
}

impl<D> Sections<D> {
    /// The same with another type of devices.
    pub fn map<E>(&self, f: impl FnMut(&D) -> E) -> Sections<E> {
        Sections { devices: self.devices.iter().map(f).collect(), reside: self.reside }
    }
}

/// Where one component runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place<D> {
    /// One network, whole or cut.
    Route(Sections<D>),
    /// Two denoisers, for the negative and the positive prompt at the same time.
    Guided {
        /// The sections for the negative prompt.
        negative: Sections<D>,
        /// The sections for the positive prompt, which also run without guidance. The latents are on their first
        /// device.
        positive: Sections<D>,
    },
}

/// The places of every component: several form a pool, from which a request takes one.
pub type Placement<D> = PerComponent<Vec<Place<D>>>;

impl<D: Clone + PartialEq> Place<D> {
    /// All sections on one device.
    pub fn whole(device: D, sections: usize) -> Self {
        Self::Route(vec![device; sections].into())
    }

    /// The routes: one, or the negative prompt's and the positive's.
    pub fn routes(&self) -> Vec<&Sections<D>> {
        match self {
            Self::Route(route) => vec![route],
            Self::Guided { negative, positive } => vec![negative, positive],
        }
    }

    /// Every device that the place uses, each once, in the order of first use.
    pub fn devices(&self) -> Vec<D> {
        each_once(self.routes().into_iter().flat_map(|route| route.iter().cloned()))
    }

    /// Whether this is one network that is cut over several devices. If several requests are in flight, each passes
    /// from device to device, and others can use the devices that it has left.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Route(route) if route.iter().any(|device| *device != route[0]))
    }

    /// Whether all weights are offloaded.
    pub fn is_offloaded(&self) -> bool {
        self.routes().iter().all(|route| route.reside != Reside::Device)
    }

    /// The same place with another type of devices.
    pub fn map<E>(&self, mut f: impl FnMut(&D) -> E) -> Place<E> {
        match self {
            Self::Route(route) => Place::Route(route.map(f)),
            Self::Guided { negative, positive } => {
                Place::Guided { negative: negative.map(&mut f), positive: positive.map(f) }
            }
        }
    }
}

impl<D: Clone + PartialEq> PerComponent<Vec<Place<D>>> {
    /// Every device that any component uses, each once, in the order of first use.
    pub fn devices(&self) -> Vec<D> {
        each_once(self.iter().flat_map(|(_, places)| places).flat_map(Place::devices))
    }
}

/// Each of `items` once, in the order of first use.
pub fn each_once<T: PartialEq>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut once = Vec::new();
    for item in items {
        if !once.contains(&item) {
            once.push(item);
        }
    }
    once
}
