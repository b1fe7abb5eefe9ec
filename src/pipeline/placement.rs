//! Where the parts of one pipeline run, in a form that plans (device names) and pipelines (devices) share.

use super::PerComponent;

/// Where one component runs: a device for each of its sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place<D> {
    /// One network, whole or cut.
    Route(Vec<D>),
    /// The UNet twice, for the negative and the positive prompt at the same time.
    Guided {
        /// The negative prompt's.
        negative: Vec<D>,
        /// The positive prompt's; also the one that is used without guidance. The latents live with it.
        positive: Vec<D>,
    },
}

/// The places of every component: several make a pool, of which a request takes one.
pub type Placement<D> = PerComponent<Vec<Place<D>>>;

impl<D: Clone + PartialEq> Place<D> {
    /// All sections on one device.
    pub fn whole(device: D, sections: usize) -> Self {
        Self::Route(vec![device; sections])
    }

    /// Its routes: one, or the negative prompt's and the positive's.
    pub fn routes(&self) -> Vec<&[D]> {
        match self {
            Self::Route(route) => vec![route],
            Self::Guided { negative, positive } => vec![negative, positive],
        }
    }

    /// Every device that it uses, each once, in the order of first use.
    pub fn devices(&self) -> Vec<D> {
        let mut devices = Vec::new();
        for device in self.routes().concat() {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices
    }

    /// The same place in other words.
    pub fn map<E>(&self, mut f: impl FnMut(&D) -> E) -> Place<E> {
        match self {
            Self::Route(route) => Place::Route(route.iter().map(f).collect()),
            Self::Guided { negative, positive } => Place::Guided {
                negative: negative.iter().map(&mut f).collect(),
                positive: positive.iter().map(f).collect(),
            },
        }
    }
}

impl<D: Clone + PartialEq> PerComponent<Vec<Place<D>>> {
    /// Every device that any component uses, each once, in the order of first use.
    pub fn devices(&self) -> Vec<D> {
        let mut devices = Vec::new();
        for device in self.iter().flat_map(|(_, places)| places).flat_map(Place::devices) {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices
    }
}
