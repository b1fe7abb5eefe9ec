//! What the strategies that know time look for, and what they find.

use std::collections::BTreeMap;

use super::{
    layout::{Costs, Layout, fits},
    tuning::Tuning,
};
use crate::{
    backend::DeviceId,
    error::Result,
    models::component::{ComponentId, PerComponent},
    pipeline::placement::{Place, Placement},
};

/// What a search looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The most pictures per second.
    Throughput,
    /// The shortest time for one picture.
    Latency,
}

/// What candidates have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// Everything of a replica on one device.
    Whole,
    /// Components on devices of their own, pools among them.
    Apart,
    /// Guidance on two devices, or on two groups of them.
    Guided,
    /// A component cut over devices.
    Cut,
    /// Weights offloaded to the host's memory or to the disk.
    Offloaded,
}

impl Family {
    /// All of them, the simplest first.
    pub const ALL: [Self; 5] = [Self::Whole, Self::Apart, Self::Guided, Self::Cut, Self::Offloaded];

    /// What is to be said for it.
    pub fn merit(self) -> &'static str {
        match self {
            Self::Whole => "a device holds a whole pipeline, so nothing has to cross",
            Self::Apart => "text encoder and VAE work beside the UNet",
            Self::Guided => "two devices work at one picture, one for each prompt",
            Self::Cut => "no device holds the UNet whole",
            Self::Offloaded => "no device holds all weights at once",
        }
    }

    /// What it is, in a list of what was rejected.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole pipelines, each on one device",
            Self::Apart => "components on devices of their own",
            Self::Guided => "guidance split over devices",
            Self::Cut => "the unet cut over devices",
            Self::Offloaded => "weights offloaded to host memory or disk",
        }
    }
}

/// A candidate and its figures.
#[derive(Debug, Clone)]
pub(super) struct Scored {
    pub layouts: Vec<Layout>,
    pub images_per_second: f64,
    pub seconds_per_image: f64,
    /// For all pictures that are asked for; not known while replicas are put together.
    pub seconds: f64,
}

impl Scored {
    /// Whether it is better; of equals the one that came first stays.
    pub fn beats(&self, other: &Self, goal: Goal) -> bool {
        let clearly = |a: f64, b: f64| a > b * (1.0 + Tuning::ROUNDING);
        let (rate, other_rate) = (self.images_per_second, other.images_per_second);
        let (pace, other_pace) = (1.0 / self.seconds_per_image, 1.0 / other.seconds_per_image);
        let (first, second) = match goal {
            Goal::Throughput => ((rate, other_rate), (pace, other_pace)),
            Goal::Latency => ((pace, other_pace), (rate, other_rate)),
        };
        clearly(first.0, first.1) || (!clearly(first.1, first.0) && clearly(second.0, second.1))
    }

    /// Puts it in the place of `best` if it is better.
    pub fn replace(self, best: &mut Option<Self>, goal: Goal) {
        if best.as_ref().is_none_or(|best| self.beats(best, goal)) {
            *best = Some(self);
        }
    }
}

/// The best candidate of each family.
pub(super) type Best = BTreeMap<Family, Scored>;

/// What a search is for: the devices' limits, what the map says already, and what is best.
pub(super) struct Problem<'a> {
    pub costs: &'a Costs<'a>,
    /// Bytes that may be used of each of the trial's devices.
    pub budgets: &'a [u64],
    /// Components that the map places.
    pub named: &'a PerComponent<Option<Vec<Place<DeviceId>>>>,
    /// Requests that one replica works on at once, if the map says so.
    pub in_flight: Option<usize>,
    /// Requests that go through the UNet in one call, at most.
    pub batch: usize,
    pub goal: Goal,
    /// Pictures that are asked for.
    pub images: usize,
    /// Which class a component may have, over all of its devices: any, or one alone.
    pub one_class: bool,
}

impl Problem<'_> {
    /// Bytes that may be used of a device.
    pub fn budget(&self, id: DeviceId) -> u64 {
        self.budgets[self.costs.index(id)]
    }

    /// What a device is like: the search makes no difference between those that are alike.
    pub fn kind_and_budget(&self, id: DeviceId) -> (usize, u64) {
        (self.costs.kind(id), self.budget(id))
    }

    /// Whether the map places a component.
    pub fn names_some(&self) -> bool {
        self.named.iter().any(|(_, places)| places.is_some())
    }

    /// The places that the map names, and none for the rest.
    pub fn named_only(&self) -> Placement<DeviceId> {
        self.named.map(|_, places| places.clone().unwrap_or_default())
    }

    /// All of a component on one device.
    pub fn whole(&self, component: ComponentId, id: DeviceId) -> Place<DeviceId> {
        Place::whole(id, self.costs.trial.sections(component))
    }

    pub fn layout(&self, placement: Placement<DeviceId>, in_flight: usize) -> Layout {
        Layout { placement, in_flight: self.in_flight.unwrap_or(in_flight), batch: self.batch }
    }

    /// For one request at a time.
    pub fn single(&self, placement: Placement<DeviceId>) -> Layout {
        self.layout(placement, 1)
    }

    pub fn fits(&self, layout: &Layout) -> Result<bool> {
        self.costs.trial.effort.spend(self.budgets.len() as u64)?;
        let held = self.costs.held([layout])?;
        Ok(fits(&held, self.budgets) && self.costs.fits_host(layout, &held)?)
    }

    /// Whether each component has devices of one numerics class.
    pub fn classes_agree(&self, layout: &Layout) -> bool {
        self.costs.components().all(|component| self.costs.by_class(&layout.devices_of(component)).len() <= 1)
    }
}
