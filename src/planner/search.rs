//! The search for the best replicas on a set of devices.
//!
//! `candidates` finds the best replica on one group of devices. For several pictures, the devices are partitioned into
//! groups such that the sum of the replicas' rates is highest. `by_time` compares the results.

use std::{cell::RefCell, collections::BTreeMap, iter::successors, rc::Rc};

use super::{
    candidates::GroupSearch,
    problem::{BestByFamily, Family, Goal, Problem, Scored},
    tuning::Tuning,
};
use crate::{backend::DeviceId, error::Result, pipeline::placement::Place};

/// A group of devices with the best candidates on it.
struct SearchedGroup {
    devices: Vec<DeviceId>,
    best: BestByFamily,
}

/// Searched groups by the kinds and budgets of their devices.
type GroupCache = BTreeMap<Vec<(usize, u64)>, Rc<SearchedGroup>>;

pub(super) struct ReplicaSearch<'a> {
    pub problem: Problem<'a>,
    /// The groups that were searched before.
    cache: RefCell<GroupCache>,
}

impl<'a> ReplicaSearch<'a> {
    pub fn new(problem: Problem<'a>) -> Self {
        Self { problem, cache: RefCell::default() }
    }

    /// Finds the best candidate over `devices` for each family, with the time for all pictures. A candidate has one
    /// replica for latency, if the map names places, or if `one_replica` is set; else the best number of replicas, and
    /// then there is one more candidate, without a family, whose replicas may be of several families.
    pub fn run(&self, devices: &[DeviceId], one_replica: bool) -> Result<Vec<(Option<Family>, Scored)>> {
        let single = one_replica || self.problem.goal() == Goal::Latency || self.problem.has_named_places();
        let best_of = |families: &[Family]| {
            if single { self.best_single(devices, families) } else { self.best_several(devices, families) }
        };
        let mut found = Vec::new();
        for family in Family::ALL {
            found.extend(best_of(&[family])?.map(|scored| (Some(family), scored)));
        }
        if !single {
            found.extend(best_of(&Family::ALL)?.map(|scored| (None, scored)));
        }
        // The partition used sums of rates as estimates; predict the complete candidates.
        for (_, scored) in &mut found {
            let load = self.problem.costs.load(&scored.layouts)?;
            let prediction = load.predict(Tuning::PREDICTED_REQUESTS);
            // Predicting the seconds for all pictures simulates about as much again.
            self.problem.costs.trial.effort.spend(2 * prediction.steps)?;
            (scored.images_per_second, scored.seconds_per_image) =
                (prediction.images_per_second, prediction.seconds_per_image);
            scored.seconds = load.seconds_for(self.problem.images);
        }
        Ok(found)
    }

    /// The best replica on all of `devices` among those of these families.
    fn best_single(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let searched = self.best_in_group(devices)?;
        let mut best: Option<Scored> = None;
        for scored in families.iter().filter_map(|family| searched.best.get(family)) {
            scored.clone().replace_if_better(&mut best, self.problem.goal());
        }
        Ok(best)
    }

    /// The best replicas of these families on disjoint groups of devices.
    fn best_several(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let count = devices.len();
        let mut best = self.best_single(devices, families)?;
        let mut consider = |found: Option<Scored>| {
            if let Some(found) = found {
                found.replace_if_better(&mut best, self.problem.goal());
            }
        };
        if count <= Tuning::MAX_FREELY_GROUPED_DEVICES {
            consider(self.partition_freely(devices, families)?);
            return Ok(best);
        }
        consider(self.partition_neighbours(devices, families)?);
        // Alternate fast and slow devices, so that a contiguous group may contain both.
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

    /// Both candidates together. Their rates add up, because they use different devices. The times are preliminary:
    /// `run` predicts complete candidates.
    fn combine(a: &Option<Scored>, b: Scored) -> Scored {
        let Some(a) = a else { return b };
        Scored {
            layouts: [a.layouts.clone(), b.layouts].concat(),
            images_per_second: a.images_per_second + b.images_per_second,
            seconds_per_image: a.seconds_per_image,
            seconds: f64::INFINITY,
        }
    }

    /// Tries every partition of the devices into groups, where some devices may remain unused. A state of the dynamic
    /// program is a set of devices as a bit mask; its value is the best candidate on them.
    fn partition_freely(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let transitions = |set: usize| {
            let first_bit = 1 << set.trailing_zeros();
            let others = set & !first_bit;
            let subsets = successors(Some(others), move |&subset| (subset > 0).then(|| (subset - 1) & others));
            let group = move |subset: usize| {
                let is_in = |i: &usize| (subset | first_bit) >> i & 1 == 1;
                (others & !subset, (0..devices.len()).filter(is_in).map(|i| devices[i]).collect())
            };
            (others, subsets.map(group).collect())
        };
        self.best_partition(1 << devices.len(), transitions, families)
    }

    /// Tries every partition of the devices into contiguous groups of at most [`Tuning::MAX_GROUP_DEVICES`], where some
    /// devices may remain unused. State n of the dynamic program stands for the first n devices; its value is the best
    /// candidate on them.
    fn partition_neighbours(&self, devices: &[DeviceId], families: &[Family]) -> Result<Option<Scored>> {
        let transitions = |end: usize| {
            let starts = end.saturating_sub(Tuning::MAX_GROUP_DEVICES)..end;
            (end - 1, starts.map(|start| (start, devices[start..end].to_vec())).collect())
        };
        self.best_partition(devices.len() + 1, transitions, families)
    }

    /// Finds the best replicas on disjoint groups by dynamic programming over `states`. The last state has all devices.
    /// For a state, `transitions` chooses one of its devices. It returns the state without this device, which stays
    /// unused, and every group with this device, together with the state of the devices outside the group.
    fn best_partition(
        &self,
        states: usize,
        transitions: impl Fn(usize) -> (usize, Vec<(usize, Vec<DeviceId>)>),
        families: &[Family],
    ) -> Result<Option<Scored>> {
        let mut best: Vec<Option<Scored>> = vec![None; states];
        for state in 1..states {
            let (without, groups) = transitions(state);
            let mut best_here = best[without].clone();
            for (before, group) in groups {
                if let Some(found) = self.best_single(&group, families)? {
                    Self::combine(&best[before], found).replace_if_better(&mut best_here, self.problem.goal());
                }
            }
            best[state] = best_here;
        }
        Ok(best.pop().flatten())
    }

    /// The best replica of each family on a group of devices. Groups whose devices have the same kinds and budgets, in
    /// the same order, are searched once, unless the map names places.
    fn best_in_group(&self, devices: &[DeviceId]) -> Result<Rc<SearchedGroup>> {
        let key: Vec<(usize, u64)> = devices.iter().map(|id| self.problem.kind_and_budget(*id)).collect();
        let cached = self.cache.borrow().get(&key).cloned();
        if let Some(cached) = cached.filter(|cached| !self.problem.has_named_places() || cached.devices == devices) {
            if cached.devices == devices {
                return Ok(cached);
            }
            let renamed =
                |id: &DeviceId| devices[cached.devices.iter().position(|other| other == id).expect("its own group")];
            let mut best = cached.best.clone();
            for layout in best.values_mut().flat_map(|scored| &mut scored.layouts) {
                let places = |places: &Vec<Place<DeviceId>>| places.iter().map(|place| place.map(renamed)).collect();
                layout.placement = layout.placement.map(|_, places_of_one| places(places_of_one));
            }
            return Ok(Rc::new(SearchedGroup { devices: devices.to_vec(), best }));
        }
        let best = GroupSearch::best_of(&self.problem, devices)?;
        let found = Rc::new(SearchedGroup { devices: devices.to_vec(), best });
        // An incomplete result is not stored, so that the search can be repeated when more steps are available.
        if !self.problem.costs.trial.effort.is_spent() {
            self.cache.borrow_mut().insert(key, found.clone());
        }
        Ok(found)
    }
}
