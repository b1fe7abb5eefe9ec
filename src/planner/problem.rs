//! The problem that a strategy solves (the limits of devices and the places in the map), and its candidate solutions.

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

/// The quantity that a search optimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The highest number of pictures per second.
    Throughput,
    /// The shortest time for one picture.
    Latency,
}

/// The kind of placement that a candidate uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// All components of a replica are on one device.
    Whole,
    /// Components are on different devices, possibly in pools.
    Separate,
    /// The two branches of guidance are on two devices, or on two groups of devices.
    Guided,
    /// A component is cut over several devices.
    Cut,
    /// Weights are offloaded to host memory or to disk.
    Offloaded,
}

impl Family {
    /// All families, the simplest first.
    pub const ALL: [Self; 5] = [Self::Whole, Self::Separate, Self::Guided, Self::Cut, Self::Offloaded];

    /// The advantage of this family, for the reasons of a plan.
    pub fn merit(self) -> &'static str {
        match self {
            Self::Whole => "a device holds a whole pipeline, so nothing has to cross",
            Self::Separate => "text encoder and VAE work beside the UNet",
            Self::Guided => "two devices work at one picture, one for each prompt",
            Self::Cut => "no device holds the UNet whole",
            Self::Offloaded => "no device holds all weights at once",
        }
    }

    /// A short description of this family, for the list of rejected plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole pipelines, each on one device",
            Self::Separate => "components on devices of their own",
            Self::Guided => "guidance split over devices",
            Self::Cut => "the unet cut over devices",
            Self::Offloaded => "weights offloaded to host memory or disk",
        }
    }
}

/// A candidate with its predicted rate and times.
#[derive(Debug, Clone)]
pub(super) struct Scored {
    pub layouts: Vec<Layout>,
    pub images_per_second: f64,
    pub seconds_per_image: f64,
    /// Seconds for all requested pictures; infinite until a complete candidate is predicted.
    pub seconds: f64,
}

impl Scored {
    /// Whether this candidate is better than `other` by more than rounding errors.
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

    /// Stores this candidate in `best` if it is better than the one there.
    pub fn replace_if_better(self, best: &mut Option<Self>, goal: Goal) {
        if best.as_ref().is_none_or(|best| self.beats(best, goal)) {
            *best = Some(self);
        }
    }
}

/// The best candidate of each family.
pub(super) type BestByFamily = BTreeMap<Family, Scored>;

/// The places that a map names; `None` for a component that the strategy places.
pub(super) type NamedPlaces = PerComponent<Option<Vec<Place<DeviceId>>>>;

/// A plan that was compared with the chosen one and lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// A description of the rejected plan.
    pub what: String,
    /// The reason why it was rejected, usually with the difference in time or bytes.
    pub why: String,
}

/// The replicas that were chosen for one map.
#[derive(Default)]
pub(super) struct Chosen {
    pub layouts: Vec<Layout>,
    /// The reason for the place of every component that the map does not name.
    pub reason: String,
    pub rejected: Vec<Rejected>,
}

/// One map that has to be placed.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub map: &'a DeviceMap,
    pub costs: &'a Costs<'a>,
    /// The bytes that may be used on each device, in the order of the trial's devices.
    pub budgets: &'a [u64],
    pub named: &'a NamedPlaces,
    /// The number of pictures that one group of devices has to make.
    pub images: usize,
}

impl Problem<'_> {
    /// The goal that suits the number of pictures.
    pub fn goal(&self) -> Goal {
        if self.images == 1 { Goal::Latency } else { Goal::Throughput }
    }

    /// Whether all devices of a component must have the same numerics class.
    pub fn one_class(&self) -> bool {
        self.map.numerics.value == Numerics::Same
    }

    /// The bytes that may be used on a device.
    pub fn budget(&self, id: DeviceId) -> u64 {
        self.budgets[self.costs.index(id)]
    }

    /// The kind and the budget of a device. The search treats devices with the same kind and budget as interchangeable.
    pub fn kind_and_budget(&self, id: DeviceId) -> (usize, u64) {
        (self.costs.first_alike(id), self.budget(id))
    }

    /// Whether the map names the place of any component.
    pub fn has_named_places(&self) -> bool {
        self.named.iter().any(|(_, places)| places.is_some())
    }

    /// The places that the map names; components that it does not name have no place.
    pub fn named_placement(&self) -> Placement<DeviceId> {
        self.named.map(|_, places| places.clone().unwrap_or_default())
    }

    /// The place of a whole component on one device.
    pub fn whole(&self, component: ComponentId, id: DeviceId) -> Place<DeviceId> {
        Place::whole(id, self.costs.trial.sections[component])
    }

    /// A replica with the number of requests in flight that the map gives, or else `in_flight`.
    pub fn layout(&self, placement: Placement<DeviceId>, in_flight: usize) -> Layout {
        let in_flight = match self.map.in_flight.value {
            InFlight::Count(count) => count,
            InFlight::Auto => in_flight,
        };
        Layout { placement, in_flight, batch: self.map.batch.value }
    }

    /// A replica with the number of requests in flight that the map gives, or else the best one. For a pool, more
    /// requests are tried than there are instances: an instance can be idle if it shares a device with other stages, or
    /// if the instances differ in speed. The predicted rate decides.
    pub fn replica(&self, placement: Placement<DeviceId>) -> Result<Layout> {
        let layout = |in_flight| self.layout(placement.clone(), in_flight);
        if self.map.in_flight.value != InFlight::Auto {
            return Ok(layout(1));
        }
        let min_in_flight = auto_in_flight(&placement, self.costs)?;
        let mut best = layout(min_in_flight);
        if placement[self.costs.trial.spec.denoiser()].len() > 1 {
            let mut best_rate = images_per_second_of(self.costs, &best)?;
            for tried in (1..=Tuning::MAX_EXTRA_IN_FLIGHT).map(|extra| layout(min_in_flight + extra)) {
                let is_held = fits(&self.costs.held([&tried])?, self.budgets);
                let rate = if is_held { images_per_second_of(self.costs, &tried)? } else { 0.0 };
                if rate > Tuning::MIN_IN_FLIGHT_SPEEDUP * best_rate {
                    (best, best_rate) = (tried, rate);
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

    /// Whether the devices of each component have the same numerics class.
    pub fn classes_agree(&self, layout: &Layout) -> bool {
        self.costs.components().all(|component| self.costs.by_class(&layout.devices_of(component)).len() <= 1)
    }
}

/// The places that the map names.
pub(super) fn named_places(map: &DeviceMap, costs: &Costs) -> Result<NamedPlaces> {
    costs.trial.spec.components.try_map(|_, component| {
        let Some(pool) = map.places_of(&component.name) else { return Ok(None) };
        let sections = component.network.sections();
        let place = |place| resolve_place(&component.name, &pool, place, &sections);
        pool.value.iter().map(place).collect::<Result<_>>().map(Some)
    })
}

/// Converts a place of the map to a place with a device for each section.
fn resolve_place(
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
        // A place that is not guided has exactly one residence of its weights.
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

/// The predicted pictures per second of one replica whose devices nothing else uses.
fn images_per_second_of(costs: &Costs, layout: &Layout) -> Result<f64> {
    let prediction = costs.load(std::slice::from_ref(layout))?.predict(Tuning::PREDICTED_REQUESTS);
    costs.trial.effort.spend(prediction.steps)?;
    Ok(prediction.images_per_second)
}

/// The number of requests in flight that keeps all devices of one replica busy: one for each instance of the slowest
/// stage, and one for each other stage with devices of its own. Each device of a cut UNet counts as a stage.
fn auto_in_flight(placement: &Placement<DeviceId>, costs: &Costs) -> Result<usize> {
    let seconds = placement.try_map(|component, places| -> Result<f64> {
        let Some(place) = places.first() else { return Ok(0.0) };
        let calls = if costs.denoises(component) { costs.calls } else { 1 };
        Ok(calls as f64 * costs.place_costs(component, place, 1)?.iter().map(|(_, cost)| cost.seconds).sum::<f64>())
    })?;
    let mut slowest_first: Vec<ComponentId> = costs.components().collect();
    slowest_first.sort_by(|a, b| seconds[*b].total_cmp(&seconds[*a]));
    let instances = |component: ComponentId| -> usize {
        let is_cut = |place: &Place<DeviceId>| costs.denoises(component) && place.is_cut();
        let piece_count = |place: &Place<DeviceId>| if is_cut(place) { place.devices().len() } else { 1 };
        placement[component].iter().map(piece_count).sum()
    };
    let devices =
        |component: ComponentId| -> Vec<DeviceId> { placement[component].iter().flat_map(Place::devices).collect() };
    let mut taken_devices = devices(slowest_first[0]);
    let mut in_flight = instances(slowest_first[0]);
    for &component in &slowest_first[1..] {
        let own_devices = devices(component);
        if own_devices.iter().all(|device| !taken_devices.contains(device)) {
            in_flight += if costs.denoises(component) { instances(component) } else { 1 };
            taken_devices.extend(own_devices);
        }
    }
    Ok(in_flight)
}
