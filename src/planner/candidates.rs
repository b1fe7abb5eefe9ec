//! The replicas that a group of devices can hold: all components on one device; components on different devices, with
//! pools of UNets; split guidance; a cut UNet; offloaded weights. Each is checked against the budgets and timed by
//! `predict`.

use std::collections::BTreeSet;

use super::{
    cuts::{self, CutGoal, Target},
    layout::{HeldBytes, Layout, resident_device},
    problem::{BestByFamily, Family, Goal, Problem, Scored},
    tuning::Tuning,
};
use crate::{
    backend::{DeviceId, DeviceKind},
    error::Result,
    models::component::{ComponentId, Stage},
    pipeline::placement::{Place, Placement, Reside, Sections},
};

/// A search for the best replica on one group of devices.
pub(super) struct GroupSearch<'a> {
    problem: &'a Problem<'a>,
    devices: &'a [DeviceId],
    best: BestByFamily,
    /// The signatures of the layouts that were tried.
    seen: BTreeSet<LayoutSignature>,
}

impl GroupSearch<'_> {
    /// Finds the best replica of each family.
    pub fn best_of(problem: &Problem, devices: &[DeviceId]) -> Result<BestByFamily> {
        let mut group = GroupSearch { problem, devices, best: BestByFamily::new(), seen: BTreeSet::new() };
        group.search()?;
        Ok(group.best)
    }

    fn search(&mut self) -> Result<()> {
        let devices = self.devices;
        if devices.len() > Tuning::MAX_GROUP_DEVICES {
            // Over all devices of a large group, only pools are tried; the other families on its fastest devices.
            for &front in &self.one_of_each_kind() {
                self.try_pools(front, front)?;
            }
            if self.problem.goal() == Goal::Throughput {
                return Ok(());
            }
        }
        let few = self.fastest_devices();
        let mut group = GroupSearch {
            problem: self.problem,
            devices: &few,
            best: std::mem::take(&mut self.best),
            seen: BTreeSet::new(),
        };
        group.search_all_families()?;
        self.best = group.best;
        Ok(())
    }

    /// Whether the search has used its steps and must end.
    fn is_effort_spent(&self) -> bool {
        self.problem.costs.trial.effort.is_spent()
    }

    /// The devices, or the fastest of them if there are too many. Of equally fast devices, those with more memory.
    fn fastest_devices(&self) -> Vec<DeviceId> {
        let mut few = self.devices.to_vec();
        if few.len() > Tuning::MAX_GROUP_DEVICES {
            let costs = self.problem.costs;
            let rank = |id: &DeviceId| (costs.info(*id).rates.flops, self.problem.budget(*id) as f64);
            few.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
            few.truncate(Tuning::MAX_GROUP_DEVICES);
        }
        few
    }

    /// One device of each kind and budget.
    fn one_of_each_kind(&self) -> Vec<DeviceId> {
        let mut distinct: Vec<DeviceId> = Vec::new();
        for id in self.devices {
            if !distinct.iter().any(|known| self.problem.kind_and_budget(*known) == self.problem.kind_and_budget(*id)) {
                distinct.push(*id);
            }
        }
        distinct
    }

    fn search_all_families(&mut self) -> Result<()> {
        let devices = self.devices;
        for &id in devices {
            self.consider_whole(Family::Whole, id, vec![id], id, 1)?;
        }
        match self.problem.goal() {
            Goal::Throughput => {
                for &front in devices {
                    for &back in devices {
                        self.try_pools(front, back)?;
                    }
                }
                self.try_dense()?;
            }
            Goal::Latency => {
                for &front in devices {
                    for &unet in devices {
                        for &back in devices {
                            self.consider_whole(Family::Separate, front, vec![unet], back, 1)?;
                        }
                    }
                }
            }
        }
        self.try_guided()?;
        self.try_cut()?;
        self.try_cut_all()?;
        self.try_offloaded()
    }

    /// Tries the text encoder on `front`, the VAE on `back`, and UNets on other devices, with and without these two.
    fn try_pools(&mut self, front: DeviceId, back: DeviceId) -> Result<()> {
        for included in 0..if front == back { 2 } else { 4 } {
            if self.is_effort_spent() {
                return Ok(());
            }
            let in_pool = |id: &DeviceId| {
                (*id != front || included & 1 == 1) && (*id != back || included & 2 == 2 || front == back)
            };
            let mut pool: Vec<DeviceId> = Vec::new();
            for id in self.devices.iter().filter(|id| in_pool(id)) {
                let layout = self.layout(front, vec![*id], back, 1);
                if self.problem.fits(&layout)? {
                    pool.push(*id);
                }
            }
            if pool.is_empty() || pool == [front] && front == back {
                continue;
            }
            let outside_pool = |id: DeviceId| usize::from(!pool.contains(&id));
            let auto_in_flight = pool.len() + outside_pool(front) + if front == back { 0 } else { outside_pool(back) };
            for extra in 0..=Tuning::MAX_EXTRA_IN_FLIGHT_IN_SEARCH {
                self.consider_whole(Family::Separate, front, pool.clone(), back, auto_in_flight + extra)?;
            }
        }
        Ok(())
    }

    /// Tries a placement in which each device gets as many components as fit, preferably the denoiser.
    fn try_dense(&mut self) -> Result<()> {
        let mut placement = self.problem.named_placement();
        let denoiser = self.denoiser();
        let has = |set: u32, component: ComponentId| set >> component.index() & 1 == 1;
        let mut sets: Vec<u32> = (1..1 << placement.count()).collect();
        sets.sort_by_key(|&set| std::cmp::Reverse((has(set, denoiser), set)));
        for &id in self.devices {
            for &set in &sets {
                let here = self.problem.named.map(|component, named| match named.is_none() && has(set, component) {
                    true => vec![self.problem.whole(component, id)],
                    false => Vec::new(),
                });
                if self.problem.fits(&self.problem.layout(here.clone(), 2))? {
                    here.iter().for_each(|(component, places)| placement[component].extend(places.iter().cloned()));
                    break;
                }
            }
        }
        let auto_in_flight = placement[denoiser].len();
        for in_flight in auto_in_flight..=auto_in_flight + Tuning::MAX_EXTRA_IN_FLIGHT_IN_SEARCH {
            self.consider(Family::Separate, self.problem.layout(placement.clone(), in_flight))?;
        }
        Ok(())
    }

    /// Tries the two branches of guidance on two devices, or on two halves of the group.
    fn try_guided(&mut self) -> Result<()> {
        if !self.problem.costs.trial.largest.guided || self.problem.named[self.denoiser()].is_some() {
            return Ok(());
        }
        let devices = self.devices;
        let count = self.problem.costs.trial.sections[self.denoiser()];
        let mut pairs = Vec::new();
        for &negative in devices {
            for &positive in devices.iter().filter(|id| **id != negative) {
                pairs.push((
                    self.min_branch_seconds(negative)?.max(self.min_branch_seconds(positive)?),
                    negative,
                    positive,
                ));
            }
        }
        // The fastest pairs come first, so that the loop can end when no later pair can be better.
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (least, negative, positive) in pairs {
            if self.best.get(&Family::Guided).is_some_and(|best| best.seconds_per_image < least) {
                break;
            }
            let place =
                Place::Guided { negative: vec![negative; count].into(), positive: vec![positive; count].into() };
            self.consider_guided(place, devices)?;
        }
        let half = devices.len() / 2;
        // Halves of the group are needed only if no device holds the whole UNet.
        if half >= 2 && !self.best.contains_key(&Family::Guided) {
            let (first, second) = devices.split_at(half);
            for &end in &[devices[0], devices[half]] {
                let (Some(negative), Some(positive)) =
                    (self.best_route(first, end, end, 1, &[])?, self.best_route(second, end, end, 1, &[])?)
                else {
                    continue;
                };
                self.consider_guided(Place::Guided { negative: negative.into(), positive: positive.into() }, &[end])?;
            }
        }
        Ok(())
    }

    /// A lower bound of the seconds of one branch of guidance: one text takes over a third of the time of two.
    fn min_branch_seconds(&self, id: DeviceId) -> Result<f64> {
        let costs = self.problem.costs;
        Ok(costs.calls as f64 * costs.whole(self.denoiser(), id)?.seconds / 3.0)
    }

    fn consider_guided(&mut self, place: Place<DeviceId>, ends: &[DeviceId]) -> Result<()> {
        for &front in ends {
            for &back in ends {
                let unet = vec![place.clone()];
                let outside = [front, back].iter().filter(|id| !place.devices().contains(id)).count();
                let max_in_flight = if self.problem.goal() == Goal::Latency { 1 } else { 1 + outside };
                for in_flight in 1..=max_in_flight {
                    let layout = self.with_denoisers(front, unet.clone(), back, in_flight);
                    self.consider(Family::Guided, layout)?;
                }
            }
        }
        Ok(())
    }

    /// Tries the UNet cut over the group, with the text encoder and the VAE together on one of the devices.
    fn try_cut(&mut self) -> Result<()> {
        if self.devices.len() < 2 || self.problem.named[self.denoiser()].is_some() || self.whole_is_better()? {
            return Ok(());
        }
        let count = self.devices.len();
        let devices = self.devices.to_vec();
        for end in self.one_of_each_kind() {
            for excluded in [&[][..], &[end][..]] {
                let in_flights = match self.problem.goal() {
                    Goal::Latency => vec![1],
                    Goal::Throughput => vec![1, 2, count, count + 1],
                };
                for in_flight in in_flights {
                    if self.cut_cannot_win(in_flight) {
                        continue;
                    }
                    if self.is_effort_spent() {
                        return Ok(());
                    }
                    if let Some(route) = self.best_route(&devices, end, end, in_flight, excluded)? {
                        let layout = self.with_denoisers(end, vec![Place::Route(route.into())], end, in_flight);
                        self.consider(Family::Cut, layout)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a cut has no advantage: for throughput if every device holds the whole UNet, for latency if the fastest
    /// device does. With two devices a cut is tried in any case, so that the plan can report its time.
    fn whole_is_better(&self) -> Result<bool> {
        let problem = self.problem;
        let mut whole_unets = Vec::with_capacity(self.devices.len());
        for id in self.devices {
            let cost = problem.costs.whole(self.denoiser(), *id)?;
            whole_unets.push((cost.seconds, cost.alone_bytes() <= problem.budget(*id)));
        }
        Ok(match problem.goal() {
            _ if problem.costs.trial.devices.len() == 2 || self.best.is_empty() => false,
            Goal::Throughput => whole_unets.iter().all(|(_, fits)| *fits),
            Goal::Latency => whole_unets.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).is_some_and(|(_, fits)| fits),
        })
    }

    /// Whether further cuts need not be tried, because another family is better than the cut that was found.
    fn cut_cannot_win(&self, in_flight: usize) -> bool {
        let Some(cut) = self.best.get(&Family::Cut) else { return false };
        let mut others = self.best.iter().filter(|(family, _)| **family != Family::Cut).map(|(_, scored)| scored);
        match self.problem.goal() {
            Goal::Throughput => in_flight == 1 && others.any(|other| other.images_per_second > cut.images_per_second),
            Goal::Latency => others.any(|other| other.seconds_per_image < cut.seconds_per_image),
        }
    }

    /// Finds the best cut of the UNet over `devices` except `excluded`, with text encoders on `front` and the VAE on
    /// `back`.
    fn best_route(
        &self,
        devices: &[DeviceId],
        front: DeviceId,
        back: DeviceId,
        in_flight: usize,
        excluded: &[DeviceId],
    ) -> Result<Option<Vec<DeviceId>>> {
        let costs = self.problem.costs;
        let other_components = self.layout(front, Vec::new(), back, in_flight);
        let held = costs.held([&other_components])?;
        let devices: Vec<DeviceId> = devices.iter().copied().filter(|id| !excluded.contains(id)).collect();
        let mut spare: Vec<u64> = vec![0; devices.len()];
        // With one request in flight, stages use the transient arenas in turn, so only weights reduce the free bytes.
        let taken = |held: &HeldBytes| if in_flight > 1 { held.total() } else { held.weight_bytes };
        let busy = |id: DeviceId| {
            let whole = |component| costs.whole(component, id).map_or(0.0, |cost| cost.seconds);
            let others = costs.components().filter(|component| !costs.denoises(*component));
            let here = others.flat_map(|component| {
                other_components.placement[component].iter().map(move |place| (component, place))
            });
            let here = here.filter(|(_, place)| resident_device(place) == Some(id));
            if in_flight > 1 {
                here.map(|(component, _)| whole(component)).sum::<f64>() / costs.calls as f64
            } else {
                0.0
            }
        };
        // The table's arenas are approximate: if a piece needs more, the next attempt leaves more bytes free.
        for _ in 0..Tuning::MAX_CUT_ATTEMPTS {
            let left = devices
                .iter()
                .zip(&spare)
                .map(|(id, spare)| self.problem.budget(*id).saturating_sub(taken(&held[costs.index(*id)]) + spare));
            let targets: Vec<Target> =
                devices.iter().zip(left).map(|(id, left)| self.target(*id, left, busy(*id))).collect();
            if self.is_effort_spent() {
                return Ok(None);
            }
            let Some(cut) = self.best_cut(self.denoiser(), &targets, in_flight)? else { return Ok(None) };
            let route: Vec<DeviceId> = cut.route().into_iter().map(|device| devices[device]).collect();
            let layout = self.with_denoisers(front, vec![Place::Route(route.clone().into())], back, in_flight);
            let held = costs.held([&layout])?;
            let mut fits = true;
            for (id, spare) in devices.iter().zip(&mut spare) {
                let index = costs.index(*id);
                let over = held[index].total().saturating_sub(self.problem.budgets[index]);
                (*spare, fits) = (*spare + over, fits && over == 0);
            }
            if fits {
                return Ok(Some(route));
            }
        }
        Ok(None)
    }

    /// The target of a cut: a device with `bytes` free, which does `busy` seconds of other work during each call.
    fn target(&self, id: DeviceId, bytes: u64, busy: f64) -> Target {
        let costs = self.problem.costs;
        Target { kind: costs.column(id), bytes, link: costs.info(id).rates.link, busy }
    }

    /// The best cut of a component over these targets.
    fn best_cut(&self, component: ComponentId, targets: &[Target], in_flight: usize) -> Result<Option<cuts::Cut>> {
        let table = self.problem.costs.table(component)?;
        self.problem.costs.trial.effort.spend(cuts::steps(&table, targets))?;
        let goal = if in_flight > 1 { CutGoal::SlowestPiece } else { CutGoal::Total };
        Ok(cuts::best(&table, targets, in_flight, goal))
    }

    /// If nothing else fits, cuts every component that no device holds, one after the other over the remaining bytes.
    fn try_cut_all(&mut self) -> Result<()> {
        if !self.best.is_empty() || self.devices.len() < 2 || self.is_effort_spent() {
            return Ok(());
        }
        let costs = self.problem.costs;
        // Components that are placed first have the most free bytes: try the denoiser first, then the decoder.
        for first in [Stage::Denoise, Stage::Decode] {
            let mut order: Vec<ComponentId> = costs.components().collect();
            order.sort_by_key(|component| (costs.stage(*component) != first, std::cmp::Reverse(*component)));
            let mut placement = self.problem.named_placement();
            for component in order {
                if self.problem.named[component].is_some() {
                    continue;
                }
                let mut choices: Vec<Place<DeviceId>> =
                    self.devices.iter().map(|id| self.problem.whole(component, *id)).collect();
                let held = costs.held([&self.problem.layout(placement.clone(), 1)])?;
                let targets = self.devices.iter().map(|id| {
                    let held = &held[costs.index(*id)];
                    let left = self.problem.budget(*id).saturating_sub(held.weight_bytes + held.keep_bytes);
                    self.target(*id, left, 0.0)
                });
                let targets: Vec<Target> = targets.collect();
                if let Some(cut) = self.best_cut(component, &targets, 1)? {
                    let route: Vec<DeviceId> = cut.route().into_iter().map(|device| self.devices[device]).collect();
                    choices.push(Place::Route(route.into()));
                }
                for place in choices {
                    placement[component] = vec![place];
                    if self.problem.fits(&self.problem.layout(placement.clone(), 1))? {
                        break;
                    }
                    placement[component].clear();
                }
            }
            self.consider(Family::Cut, self.problem.layout(placement, 1))?;
        }
        Ok(())
    }

    /// Tries offloaded weights for every set of components; first in host memory, which is faster than the disk.
    fn try_offloaded(&mut self) -> Result<()> {
        let costs = self.problem.costs;
        for reside in [Reside::Host, Reside::Disk] {
            for &id in self.devices {
                // A CPU computes in host memory, so offloading its weights there saves nothing.
                if reside == Reside::Host && costs.info(id).id.kind == DeviceKind::Cpu {
                    continue;
                }
                for offloaded in 1..1 << self.problem.named.count() {
                    let is_offloaded = |component: ComponentId| offloaded >> component.index() & 1 == 1;
                    let placement = self.problem.named.map(|component, named| match named {
                        Some(named) => named.clone(),
                        None if is_offloaded(component) => {
                            let devices = vec![id; costs.trial.sections[component]];
                            vec![Place::Route(Sections { devices, reside })]
                        }
                        None => vec![self.problem.whole(component, id)],
                    });
                    self.consider(Family::Offloaded, self.problem.layout(placement, 1))?;
                }
            }
        }
        Ok(())
    }

    fn denoiser(&self) -> ComponentId {
        self.problem.costs.trial.spec.denoiser()
    }

    fn layout(&self, front: DeviceId, denoisers: Vec<DeviceId>, back: DeviceId, in_flight: usize) -> Layout {
        let denoisers = denoisers.into_iter().map(|id| self.problem.whole(self.denoiser(), id)).collect();
        self.with_denoisers(front, denoisers, back, in_flight)
    }

    /// A layout with `denoisers`, components before the denoiser on `front`, and those after it on `back`. Components
    /// that the map names keep their places.
    fn with_denoisers(
        &self,
        front: DeviceId,
        denoisers: Vec<Place<DeviceId>>,
        back: DeviceId,
        in_flight: usize,
    ) -> Layout {
        let (problem, denoiser) = (self.problem, self.denoiser());
        let places = |component, named: &Option<Vec<Place<DeviceId>>>| match named {
            Some(named) => named.clone(),
            None if component == denoiser => denoisers.clone(),
            // Other components of the denoising loop are on the first device of each denoiser.
            None if problem.costs.denoises(component) => {
                denoisers.iter().map(|place| problem.whole(component, place.devices()[0])).collect()
            }
            None => vec![problem.whole(component, if component < denoiser { front } else { back })],
        };
        let placement: Placement<DeviceId> = self.problem.named.map(places);
        self.problem.layout(placement, in_flight)
    }

    fn consider_whole(
        &mut self,
        family: Family,
        front: DeviceId,
        unets: Vec<DeviceId>,
        back: DeviceId,
        in_flight: usize,
    ) -> Result<()> {
        let layout = self.layout(front, unets, back, in_flight);
        self.consider(family, layout)
    }

    /// Predicts a layout and stores it if it is the best of its family. Layouts with a known signature are skipped, and
    /// also those that cannot be the best.
    fn consider(&mut self, family: Family, layout: Layout) -> Result<()> {
        let problem = self.problem;
        // Offloading from a single device is tried even without remaining steps, if nothing else was found.
        let last_resort = family == Family::Offloaded
            && self.best.is_empty()
            && self.devices.len() == 1
            && problem.map.batch.value <= Tuning::MAX_LAST_RESORT_BATCH;
        if self.is_effort_spent() && !last_resort
            || layout.placement.iter().any(|(_, places)| places.is_empty())
            || problem.one_class() && !problem.classes_agree(&layout)
        {
            return Ok(());
        }
        if !self.seen.insert(self.signature(&layout)) || !problem.fits(&layout)? {
            return Ok(());
        }
        let layouts = vec![layout];
        let load = problem.costs.load(&layouts)?;
        let known_best = self.best.get(&family);
        let seconds_per_image: f64 = load.replicas[0]
            .stations
            .iter()
            .map(|station| station.instances.first().map_or(0.0, |instance| instance.seconds()))
            .sum();
        let mut scored = Scored {
            layouts,
            images_per_second: load.batch as f64 / seconds_per_image,
            seconds_per_image,
            seconds: f64::INFINITY,
        };
        if problem.goal() == Goal::Throughput && load.replicas[0].in_flight > 1 {
            if known_best.is_some_and(|known_best| {
                load.batch as f64 * load.max_requests_per_second()
                    < known_best.images_per_second * (1.0 + Tuning::ROUNDING)
            }) {
                return Ok(());
            }
            let prediction = load.predict(Tuning::PREDICTED_REQUESTS_IN_SEARCH);
            problem.costs.trial.effort.spend(prediction.steps)?;
            scored.images_per_second = prediction.images_per_second;
        }
        if known_best.is_none_or(|known_best| scored.beats(known_best, problem.goal())) {
            self.best.insert(family, scored);
        }
        Ok(())
    }

    /// The signature of a layout: the kind, budget and order of its devices, without their numbers.
    fn signature(&self, layout: &Layout) -> LayoutSignature {
        let order = layout.placement.devices();
        let device = |id: &DeviceId| {
            let at = order.iter().position(|known| known == id).unwrap_or(0);
            let (kind, budget) = self.problem.kind_and_budget(*id);
            (kind, budget, at)
        };
        let mut signature = vec![(layout.in_flight, 0, 0)];
        for (_, places) in layout.placement.iter() {
            signature.push((places.len(), 0, 0));
            for route in places.iter().flat_map(Place::routes) {
                signature.push((route.reside as usize, 0, 0));
                signature.extend(route.iter().map(device));
            }
        }
        signature
    }
}

/// A description of a layout that is equal for layouts whose predictions are equal.
type LayoutSignature = Vec<(usize, u64, usize)>;
