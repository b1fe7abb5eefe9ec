//! The search for the best replicas over a set of devices.
//!
//! `candidates` has the best replica on a group of devices. For several pictures the devices are then partitioned into
//! groups so that the sum over the replicas is largest; what comes out of that is compared by the time for all pictures.

use std::{cell::RefCell, collections::BTreeMap, iter::successors, rc::Rc};

use super::{
    candidates::Group,
    problem::{Best, Family, Goal, Problem, Scored},
    tuning::Tuning,
};
use crate::{backend::DeviceId, error::Result, pipeline::placement::Place};

/// A group of devices and what was found for it.
type Searched = (Vec<DeviceId>, Best);

/// Groups by the kinds and bytes of their devices.
type Known = BTreeMap<Vec<(usize, u64)>, Rc<Searched>>;

pub(super) struct Search<'a> {
    pub problem: Problem<'a>,
    /// Groups that were searched, by what their devices are like.
    known: RefCell<Known>,
}

impl<'a> Search<'a> {
    pub fn new(problem: Problem<'a>) -> Self {
        Self { problem, known: RefCell::default() }
    }

    /// The best candidates over `devices`, each with the time for all pictures: of each family alone, and of all together.
    /// One replica for latency; for throughput as many as are best, or one.
    pub fn run(&self, devices: &[DeviceId], one_replica: bool) -> Result<Vec<(Option<Family>, Scored)>> {
        let one_replica = one_replica || self.problem.goal() == Goal::Latency || self.problem.names_some();
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
            let load = self.problem.costs.load(&scored.layouts)?;
            let prediction = load.predict(Tuning::PREDICTED_REQUESTS);
            self.problem.costs.trial.effort.spend(2 * prediction.looks)?;
            (scored.images_per_second, scored.seconds_per_image) =
                (prediction.images_per_second, prediction.seconds_per_image);
            scored.seconds = load.seconds_for(self.problem.images);
        }
        Ok(found)
    }

    /// The best single replica.
    fn one(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let known = self.group(devices)?;
        let mut best: Option<Scored> = None;
        for scored in families.iter().filter_map(|family| known.1.get(family)) {
            scored.clone().replace(&mut best, self.problem.goal());
        }
        Ok(best)
    }

    /// The best replicas on disjoint groups.
    fn several(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let count = devices.len();
        let mut best = self.one(devices, families)?;
        let mut consider = |found: Option<Scored>| {
            if let Some(found) = found {
                found.replace(&mut best, self.problem.goal());
            }
        };
        if count <= Tuning::MAX_FREELY_GROUPED_DEVICES {
            consider(self.partition_freely(devices, families)?);
            return Ok(best);
        }
        consider(self.partition_neighbours(devices, families)?);
        // The slowest beside the fastest, so that a group may have one of each.
        let flops = |id: &DeviceId| self.problem.costs.info(*id).rates.flops;
        let mut by_speed = devices.to_vec();
        by_speed.sort_by(|a, b| flops(b).total_cmp(&flops(a)));
        let mixed: Vec<DeviceId> =
            (0..count).map(|i| if i % 2 == 0 { by_speed[i / 2] } else { by_speed[count - 1 - i / 2] }).collect();
        if flops(&by_speed[0]) > flops(&by_speed[count - 1]) {
            consider(self.partition_neighbours(&mixed, families)?);
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

    /// Every way to partition the devices into groups, some of them left out. A state is the set of devices that are
    /// taken, and ends with the group of the first of them.
    fn partition_freely(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let ends = |taken: usize| {
            let first = 1 << taken.trailing_zeros();
            let others = taken & !first;
            let subsets = successors(Some(others), move |&subset| (subset > 0).then(|| (subset - 1) & others));
            let group = move |subset: usize| {
                let is_in = |i: &usize| (subset | first) >> i & 1 == 1;
                (others & !subset, (0..devices.len()).filter(is_in).map(|i| devices[i]).collect())
            };
            (others, subsets.map(group).collect())
        };
        self.best_partition(1 << devices.len(), ends, families)
    }

    /// Every way to partition the devices into groups of neighbours, some of them left out. A state is a number of devices.
    fn partition_neighbours(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let ends = |end: usize| {
            let starts = end.saturating_sub(Tuning::MAX_GROUP_DEVICES)..end;
            (end - 1, starts.map(|start| (start, devices[start..end].to_vec())).collect())
        };
        self.best_partition(devices.len() + 1, ends, families)
    }

    /// The best replicas on disjoint groups, by dynamic programming over `states`, of which the last has all devices.
    /// `ends` gives the state without the last device, and each group that may come last with the state before it.
    fn best_partition(
        &self,
        states: usize,
        ends: impl Fn(usize) -> (usize, Vec<(usize, Vec<DeviceId>)>),
        families: &[Family],
    ) -> Result<Option<Scored>> {
        let mut best: Vec<Option<Scored>> = vec![None; states];
        for state in 1..states {
            let (without, groups) = ends(state);
            let mut here = best[without].clone();
            for (before, group) in groups {
                if let Some(found) = self.one(&group, families)? {
                    Self::joined(&best[before], found).replace(&mut here, self.problem.goal());
                }
            }
            best[state] = here;
        }
        Ok(best.pop().flatten())
    }

    /// The best replica of each family on a group of devices, searched once for all groups that are like it.
    fn group(&self, devices: &[DeviceId]) -> Result<Rc<Searched>> {
        let key: Vec<(usize, u64)> = devices.iter().map(|id| self.problem.kind_and_budget(*id)).collect();
        let known = self.known.borrow().get(&key).cloned();
        if let Some(known) = known.filter(|known| !self.problem.names_some() || known.0 == devices) {
            if known.0 == devices {
                return Ok(known);
            }
            let renamed = |id: &DeviceId| devices[known.0.iter().position(|other| other == id).expect("its own group")];
            let mut best = known.1.clone();
            for layout in best.values_mut().flat_map(|scored| &mut scored.layouts) {
                let places = |places: &Vec<Place<DeviceId>>| places.iter().map(|place| place.map(renamed)).collect();
                layout.placement = layout.placement.map(|_, of_one| places(of_one));
            }
            return Ok(Rc::new((devices.to_vec(), best)));
        }
        let found = Rc::new((devices.to_vec(), Group::best_of(&self.problem, devices)?));
        // A search that was cut short goes on when there is more time.
        if !self.problem.costs.trial.effort.is_spent() {
            self.known.borrow_mut().insert(key, found.clone());
        }
        Ok(found)
    }
}
