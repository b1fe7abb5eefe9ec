//! What a strategy has to solve, and what it finds: the devices' limits, what the map places already, and candidates with
//! their figures.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    layout::{Costs, Layout, fits},
    tuning::Tuning,
};
use crate::{
    backend::DeviceId,
    device_map::{DeviceMap, InFlight, Located, MapPlace, Numerics},
    error::Result,
    models::component::{ComponentId, PerComponent},
    pipeline::placement::{Place, Placement, Reside, Sections},
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

/// The places that a map names; `None` for a component that a strategy places.
pub(super) type Named = PerComponent<Option<Vec<Place<DeviceId>>>>;

/// An alternative that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The alternative in words.
    pub what: String,
    /// By how much it lost.
    pub why: String,
}

/// The replicas of one map.
#[derive(Default)]
pub(super) struct Chosen {
    pub layouts: Vec<Layout>,
    /// What to say of every component that the map does not name.
    pub why: String,
    pub rejected: Vec<Rejected>,
}

/// One map that is to be placed.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub map: &'a DeviceMap,
    pub costs: &'a Costs<'a>,
    /// Bytes that may be used of each of the trial's devices.
    pub budgets: &'a [u64],
    pub named: &'a Named,
    /// Pictures that are asked for of one group of devices.
    pub images: usize,
}

impl Problem<'_> {
    /// What is best for so many pictures.
    pub fn goal(&self) -> Goal {
        if self.images == 1 { Goal::Latency } else { Goal::Throughput }
    }

    /// Whether each component has to have devices of one numerics class.
    pub fn one_class(&self) -> bool {
        self.map.numerics.value == Numerics::Same
    }

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
        Place::whole(id, self.costs.trial.sections[component])
    }

    /// A replica with as many requests at once as the map says, else `in_flight`.
    pub fn layout(&self, placement: Placement<DeviceId>, in_flight: usize) -> Layout {
        let in_flight = match self.map.in_flight.value {
            InFlight::Count(count) => count,
            InFlight::Auto => in_flight,
        };
        Layout { placement, in_flight, batch: self.map.batch.value }
    }

    /// A replica with as many requests at once as the map says, or as suits it. Instances of a pool that share a device
    /// with other stages, or of unequal speed, are at times waited for by too few: then the prediction says how many are
    /// best.
    pub fn replica(&self, placement: Placement<DeviceId>) -> Result<Layout> {
        let layout = |in_flight| self.layout(placement.clone(), in_flight);
        if self.map.in_flight.value != InFlight::Auto {
            return Ok(layout(1));
        }
        let least = auto_in_flight(&placement, self.costs)?;
        let mut best = layout(least);
        if placement[self.costs.trial.spec.denoiser()].len() > 1 {
            let mut best_rate = rate_of(self.costs, &best)?;
            for more in (1..=Tuning::MAX_EXTRA_IN_FLIGHT).map(|more| layout(least + more)) {
                let is_held = fits(&self.costs.held([&more])?, self.budgets);
                let rate = if is_held { rate_of(self.costs, &more)? } else { 0.0 };
                if rate > Tuning::MIN_IN_FLIGHT_SPEEDUP * best_rate {
                    (best, best_rate) = (more, rate);
                }
            }
        }
        Ok(best)
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

/// The places that the map names.
pub(super) fn named(map: &DeviceMap, costs: &Costs) -> Result<Named> {
    costs.trial.spec.components.try_map(|_, component| {
        let Some(pool) = map.components.get(&component.name) else { return Ok(None) };
        let sections = component.network.sections();
        let place = |place| convert(&component.name, pool, place, &sections);
        pool.value.iter().map(place).collect::<Result<_>>().map(Some)
    })
}

/// A place of a map as a device for each section.
fn convert(
    component: &str,
    pool: &Located<Vec<MapPlace>>,
    place: &MapPlace,
    sections: &[String],
) -> Result<Place<DeviceId>> {
    let route = |place: &MapPlace| -> Result<Sections<DeviceId>> {
        let device = |section: &String| {
            place.device_at(section).map(|device| device.value).ok_or_else(|| {
                pool.refuse(&format!("components.{component}"), format!("nothing says where {section} runs"))
                    .hint("\"\" = \"...\" among the shards is the device of the rest")
            })
        };
        // Neither form has two answers.
        let reside = place.resides().first().map_or(Reside::Device, |reside| reside.value);
        Ok(Sections { devices: sections.iter().map(device).collect::<Result<_>>()?, reside })
    };
    Ok(match place {
        MapPlace::Guided { negative, positive } => {
            Place::Guided { negative: route(negative)?, positive: route(positive)? }
        }
        place => Place::Route(route(place)?),
    })
}

/// Pictures per second of one replica that has its devices for itself.
fn rate_of(costs: &Costs, layout: &Layout) -> Result<f64> {
    let prediction = costs.load(std::slice::from_ref(layout))?.predict(Tuning::PREDICTED_REQUESTS);
    costs.trial.effort.spend(prediction.looks)?;
    Ok(prediction.images_per_second)
}

/// Requests that one replica should work on at once, so that none of its devices waits for work: one for each instance
/// of the slowest stage and one for each other stage that has devices of its own. Each device of a cut UNet is a stage.
fn auto_in_flight(placement: &Placement<DeviceId>, costs: &Costs) -> Result<usize> {
    let seconds = placement.try_map(|component, places| -> Result<f64> {
        let Some(place) = places.first() else { return Ok(0.0) };
        let calls = if costs.denoises(component) { costs.calls } else { 1 };
        Ok(calls as f64 * costs.of(component, place, 1)?.iter().map(|(_, cost)| cost.seconds).sum::<f64>())
    })?;
    let mut slowest_first: Vec<ComponentId> = costs.components().collect();
    slowest_first.sort_by(|a, b| seconds[*b].total_cmp(&seconds[*a]));
    let instances = |component: ComponentId| -> usize {
        let is_cut = |place: &Place<DeviceId>| costs.denoises(component) && place.is_cut();
        let pieces = |place: &Place<DeviceId>| if is_cut(place) { place.devices().len() } else { 1 };
        placement[component].iter().map(pieces).sum()
    };
    let devices =
        |component: ComponentId| -> Vec<DeviceId> { placement[component].iter().flat_map(Place::devices).collect() };
    let mut taken = devices(slowest_first[0]);
    let mut in_flight = instances(slowest_first[0]);
    for &component in &slowest_first[1..] {
        let own = devices(component);
        if own.iter().all(|device| !taken.contains(device)) {
            in_flight += if costs.denoises(component) { instances(component) } else { 1 };
            taken.extend(own);
        }
    }
    Ok(in_flight)
}
