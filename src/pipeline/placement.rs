//! Where the parts of one pipeline run, in a form that plans (device names) and pipelines (devices) share.

use std::ops::Deref;

use serde::Serialize;

use crate::models::component::PerComponent;
pub use crate::weights::Reside;

/// A device for each section of a network, and where its weights rest. Reads as a list of devices.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Sections<D> {
    /// In the network's order.
    pub devices: Vec<D>,
    /// The weights of all of them.
    pub reside: Reside,
}

impl<D> From<Vec<D>> for Sections<D> {
    /// The weights are where they are used.
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
    /// The same in other words.
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
    /// A denoiser twice, for the negative and the positive prompt at the same time.
    Guided {
        /// The negative prompt's.
        negative: Sections<D>,
        /// The positive prompt's; also the one that is used without guidance. The latents live with it.
        positive: Sections<D>,
    },
}

/// The places of every component: several make a pool, of which a request takes one.
pub type Placement<D> = PerComponent<Vec<Place<D>>>;

impl<D: Clone + PartialEq> Place<D> {
    /// All sections on one device.
    pub fn whole(device: D, sections: usize) -> Self {
        Self::Route(vec![device; sections].into())
    }

    /// Its routes: one, or the negative prompt's and the positive's.
    pub fn routes(&self) -> Vec<&Sections<D>> {
        match self {
            Self::Route(route) => vec![route],
            Self::Guided { negative, positive } => vec![negative, positive],
        }
    }

    /// Every device that it uses, each once, in the order of first use.
    pub fn devices(&self) -> Vec<D> {
        each_once(self.routes().into_iter().flat_map(|route| route.iter().cloned()))
    }

    /// Whether it is one network cut over several devices: with several requests under way, each passes from device to
    /// device and leaves those behind it to others.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Route(route) if route.iter().any(|device| *device != route[0]))
    }

    /// Whether all of its weights rest elsewhere.
    pub fn is_offloaded(&self) -> bool {
        self.routes().iter().all(|route| route.reside != Reside::Device)
    }

    /// The same place in other words.
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
