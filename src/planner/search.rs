//! The strategies that know time: they look for the plan with which all pictures that are asked for are done first.
//!
//! `candidates` has the best replica on a group of devices. For several pictures the devices are then dealt into groups so
//! that the sum over the replicas is largest; what comes out of that is compared by the time for all pictures.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use super::{
    candidates::Group,
    layout::{Costs, Layout},
    predict::SAMPLES,
};
use crate::{
    backend::DeviceId,
    error::Result,
    pipeline::{
        Component, PerComponent,
        model::sections,
        placement::{Place, Placement},
    },
};

/// What is best.
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
    /// Weights that visit from the host's memory or from the disk.
    Visiting,
}

impl Family {
    /// All of them, the simplest first.
    pub const ALL: [Self; 5] = [Self::Whole, Self::Apart, Self::Guided, Self::Cut, Self::Visiting];

    /// What is to be said for it.
    pub fn merit(self) -> &'static str {
        match self {
            Self::Whole => "a device holds a whole pipeline, so nothing has to cross",
            Self::Apart => "text encoder and VAE work beside the UNet",
            Self::Guided => "two devices work at one picture, one for each prompt",
            Self::Cut => "no device holds the UNet whole",
            Self::Visiting => "no device holds all weights at once",
        }
    }

    /// What it is, in a list of what was rejected.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole pipelines, each on one device",
            Self::Apart => "components on devices of their own",
            Self::Guided => "guidance split over devices",
            Self::Cut => "the unet cut over devices",
            Self::Visiting => "weights that visit from host memory or disk",
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
        let clearly = |a: f64, b: f64| a > b * (1.0 + 1e-6);
        let (rate, other_rate) = (self.images_per_second, other.images_per_second);
        let (pace, other_pace) = (1.0 / self.seconds_per_image, 1.0 / other.seconds_per_image);
        let (first, second) = match goal {
            Goal::Throughput => ((rate, other_rate), (pace, other_pace)),
            Goal::Latency => ((pace, other_pace), (rate, other_rate)),
        };
        clearly(first.0, first.1) || (!clearly(first.1, first.0) && clearly(second.0, second.1))
    }
}

/// The best candidate of each family.
pub(super) type Best = BTreeMap<Family, Scored>;

/// A group of devices and what was found for it.
type Searched = (Vec<DeviceId>, Best);

/// Groups by the kinds and bytes of their devices.
pub(super) type Known = BTreeMap<Vec<(usize, u64)>, Rc<Searched>>;

/// Groups of more devices are searched for pools alone.
pub(super) const GROUP: usize = 8;

/// With so many devices every way to deal them into groups is tried; with more, groups are neighbours.
const ALL_GROUPS: usize = 6;

pub(super) struct Search<'a> {
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
    /// Groups that were searched, by what their devices are like.
    pub known: RefCell<Known>,
}

impl Search<'_> {
    /// The best candidates over `devices`, each with the time for all pictures: of each family alone, and of all together.
    /// One replica for latency; for throughput as many as are best, or one.
    pub fn run(&self, devices: &[DeviceId], one_replica: bool) -> Result<Vec<(Option<Family>, Scored)>> {
        let one_replica = one_replica || self.goal == Goal::Latency || self.names_some();
        let of = |families: &[Family]| {
            if one_replica { self.one(devices, families) } else { self.several(devices, families) }
        };
        let mut found = Vec::new();
        for family in Family::ALL {
            found.extend(of(&[family])?.map(|scored| (Some(family), scored)));
        }
        // Replicas of several families; one replica has one of those above.
        if !one_replica {
            found.extend(of(&Family::ALL)?.map(|scored| (None, scored)));
        }
        // The sums over groups were estimates.
        for (_, scored) in &mut found {
            let load = self.costs.load(&scored.layouts)?;
            let prediction = load.predict(SAMPLES);
            self.costs.trial.effort.spend(2 * prediction.looks)?;
            (scored.images_per_second, scored.seconds_per_image) =
                (prediction.images_per_second, prediction.seconds_per_image);
            scored.seconds = load.seconds_for(self.images);
        }
        Ok(found)
    }

    /// The best single replica.
    fn one(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let known = self.group(devices)?;
        let mut best: Option<Scored> = None;
        for scored in families.iter().filter_map(|family| known.1.get(family)) {
            if best.as_ref().is_none_or(|best| scored.beats(best, self.goal)) {
                best = Some(scored.clone());
            }
        }
        Ok(best)
    }

    /// The best replicas on disjoint groups.
    fn several(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let count = devices.len();
        let mut best = self.one(devices, families)?;
        let mut consider = |found: Option<Scored>| {
            if let Some(found) = found
                && best.as_ref().is_none_or(|best| found.beats(best, self.goal))
            {
                best = Some(found);
            }
        };
        if count <= ALL_GROUPS {
            consider(self.deal_freely(devices, families)?);
            return Ok(best);
        }
        consider(self.deal_neighbours(devices, families)?);
        // The slowest beside the fastest, so that a group may have one of each.
        let flops = |id: &DeviceId| self.costs.info(*id).rates.flops;
        let mut by_speed = devices.to_vec();
        by_speed.sort_by(|a, b| flops(b).total_cmp(&flops(a)));
        let mixed: Vec<DeviceId> =
            (0..count).map(|i| if i % 2 == 0 { by_speed[i / 2] } else { by_speed[count - 1 - i / 2] }).collect();
        if flops(&by_speed[0]) > flops(&by_speed[count - 1]) {
            consider(self.deal_neighbours(&mixed, families)?);
        }
        Ok(best)
    }

    /// Both together: rates add up, as replicas on devices of their own do not meet.
    fn joined(a: &Option<Scored>, b: Scored) -> Scored {
        let Some(a) = a else { return b };
        Scored {
            layouts: [a.layouts.clone(), b.layouts].concat(),
            images_per_second: a.images_per_second + b.images_per_second,
            seconds_per_image: a.seconds_per_image,
            seconds: f64::INFINITY,
        }
    }

    /// Every way to deal the devices into groups, some of them left out.
    fn deal_freely(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let count = devices.len();
        let mut best: Vec<Option<Scored>> = vec![None; 1 << count];
        for taken in 1usize..1 << count {
            let first = taken.trailing_zeros() as usize;
            // Without the first device, or with it in each possible group.
            let mut here = best[taken & !(1 << first)].clone();
            let mut others = taken & !(1 << first);
            loop {
                let group = others | 1 << first;
                let members: Vec<DeviceId> = (0..count).filter(|i| group >> i & 1 == 1).map(|i| devices[i]).collect();
                if let Some(found) = self.one(&members, families)? {
                    let joined = Self::joined(&best[taken & !group], found);
                    if here.as_ref().is_none_or(|here| joined.beats(here, self.goal)) {
                        here = Some(joined);
                    }
                }
                if others == 0 {
                    break;
                }
                others = (others - 1) & taken & !(1 << first);
            }
            best[taken] = here;
        }
        Ok(best.pop().flatten())
    }

    /// Every way to deal the devices into groups of neighbours, some of them left out.
    fn deal_neighbours(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let mut best: Vec<Option<Scored>> = vec![None];
        for end in 1..=devices.len() {
            let mut here = best[end - 1].clone();
            for start in end.saturating_sub(GROUP)..end {
                if let Some(found) = self.one(&devices[start..end], families)? {
                    let joined = Self::joined(&best[start], found);
                    if here.as_ref().is_none_or(|here| joined.beats(here, self.goal)) {
                        here = Some(joined);
                    }
                }
            }
            best.push(here);
        }
        Ok(best.pop().flatten())
    }

    /// The best replica of each family on a group of devices, searched once for all groups that are like it.
    fn group(&self, devices: &[DeviceId]) -> Result<Rc<Searched>> {
        let key: Vec<(usize, u64)> =
            devices.iter().map(|id| (self.costs.kind(*id), self.budgets[self.costs.index(*id)])).collect();
        let known = self.known.borrow().get(&key).cloned();
        if let Some(known) = known.filter(|known| !self.names_some() || known.0 == devices) {
            if known.0 == devices {
                return Ok(known);
            }
            let renamed = |id: &DeviceId| devices[known.0.iter().position(|other| other == id).expect("its own group")];
            let mut best = known.1.clone();
            for layout in best.values_mut().flat_map(|scored| &mut scored.layouts) {
                let places =
                    |component| layout.placement.get(component).iter().map(|place| place.map(renamed)).collect();
                layout.placement = PerComponent::new(places);
            }
            return Ok(Rc::new((devices.to_vec(), best)));
        }
        let found = Rc::new((devices.to_vec(), Group::best_of(self, devices)?));
        // A search that was cut short goes on when there is more time.
        if !self.costs.trial.effort.is_spent() {
            self.known.borrow_mut().insert(key, found.clone());
        }
        Ok(found)
    }

    /// Whether the map places a component.
    fn names_some(&self) -> bool {
        self.named.iter().any(|(_, places)| places.is_some())
    }

    /// The places that the map names, and none for the rest.
    pub fn named_only(&self) -> Placement<DeviceId> {
        PerComponent::new(|component| self.named.get(component).clone().unwrap_or_default())
    }

    /// All of a component on one device.
    pub fn whole(&self, component: Component, id: DeviceId) -> Place<DeviceId> {
        Place::whole(id, sections(component, self.costs.trial.spec).len())
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
        let fits = held.iter().zip(self.budgets).all(|(held, budget)| held.total() <= *budget);
        Ok(fits && self.costs.fits_host(layout, &held)?)
    }

    /// Whether each component has devices of one numerics class.
    pub fn classes_agree(&self, layout: &Layout) -> bool {
        Component::ALL.iter().all(|component| {
            let devices = layout.devices_of(*component);
            devices.iter().all(|id| self.costs.info(*id).class == self.costs.info(devices[0]).class)
        })
    }
}
