//! What a layout asks of its devices: bytes and seconds of every component, wherever its places are.
//!
//! Devices that are alike (kind, rates, what things occupy there) are tried once for all of them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::{
    Cost,
    cuts::{Needs, SectionCosts},
    predict::{self, Load, Station, Task},
    trial::{DryRun, Trial},
    tuning::Tuning,
};
use crate::{
    backend::{DeviceId, DeviceInfo, DeviceKind},
    error::{Error, Result},
    models::component::{ComponentId, Stage},
    pipeline::placement::{Place, Placement, Reside, Sections, each_once},
    scheduler::schedule,
};

/// One replica: where its components are, and how it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The places of each component, several being a pool.
    pub placement: Placement<DeviceId>,
    /// Requests that it works on at once.
    pub in_flight: usize,
    /// Requests that go through the UNet in one call, at most.
    pub batch: usize,
}

impl Layout {
    /// The devices of one component, each once.
    pub fn devices_of(&self, component: ComponentId) -> Vec<DeviceId> {
        each_once(self.placement[component].iter().flat_map(Place::devices))
    }

    /// Whether requests pass this denoiser device by device, so that several are inside at once. A request that has the
    /// replica for itself holds all of them instead.
    pub fn is_pipelined(&self, stage: Stage, place: &Place<DeviceId>) -> bool {
        stage == Stage::Denoise && place.is_cut() && self.in_flight > 1
    }
}

/// What one device holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldBytes {
    /// Packed weights that stay.
    pub weight_bytes: u64,
    /// The most that offloaded weights occupy at one time.
    pub visitor_bytes: u64,
    /// The transient arena.
    pub activation_bytes: u64,
    /// The arenas of all requests in flight.
    pub keep_bytes: u64,
}

impl HeldBytes {
    /// All bytes that are held.
    pub fn total(&self) -> u64 {
        self.weight_bytes + self.visitor_bytes + self.activation_bytes + self.keep_bytes
    }
}

/// Whether each device may hold so much.
pub(super) fn fits(held: &[HeldBytes], budgets: &[u64]) -> bool {
    held.iter().zip(budgets).all(|(held, budget)| held.total() <= *budget)
}

/// Devices, each with the one that stands for it.
type StandIns = Vec<(DeviceId, DeviceId)>;

/// Devices with bytes.
pub type DeviceBytes = Vec<(DeviceId, u64)>;

/// The device, if all of a place is on one and its weights stay there.
pub fn resident_device(place: &Place<DeviceId>) -> Option<DeviceId> {
    match place {
        Place::Route(route) if !place.is_cut() && route.reside == Reside::Device => Some(route[0]),
        _ => None,
    }
}

/// The costs of places, tried when first asked for.
pub(super) struct Costs<'a> {
    pub trial: &'a Trial<'a>,
    /// UNet calls of one request.
    pub calls: usize,
    /// What may be used of the host's memory, if that is known.
    host_free_bytes: Option<u64>,
    /// For each device the first one that is like it.
    kinds: Vec<usize>,
    tables: RefCell<BTreeMap<ComponentId, Rc<Vec<SectionCosts>>>>,
    /// Whole components by kind of device.
    wholes: RefCell<BTreeMap<(ComponentId, usize), Cost>>,
}

impl<'a> Costs<'a> {
    pub fn new(trial: &'a Trial<'a>, host_free_bytes: Option<u64>) -> Result<Self> {
        let (spec, largest) = (trial.spec, trial.largest);
        let calls = schedule(&spec.scheduler_for(largest.scheduler)?, largest.steps)?.steps.len();
        let alike = |a: &DeviceInfo, b: &DeviceInfo| {
            (a.id.kind, a.rules, &a.rates, a.f32_flops, &a.class)
                == (b.id.kind, b.rules, &b.rates, b.f32_flops, &b.class)
        };
        let first = |info| trial.devices.iter().position(|other| alike(other, info)).unwrap_or(0);
        let kinds = trial.devices.iter().map(first).collect();
        Ok(Self { trial, calls, host_free_bytes, kinds, tables: RefCell::default(), wholes: RefCell::default() })
    }

    /// The name of a component.
    pub fn name(&self, component: ComponentId) -> &str {
        &self.trial.spec.components[component].name
    }

    /// The stage of a component.
    pub fn stage(&self, component: ComponentId) -> Stage {
        self.trial.spec.components[component].stage()
    }

    /// Whether a component is called once per step, for a batch of requests at a time.
    pub fn denoises(&self, component: ComponentId) -> bool {
        self.stage(component) == Stage::Denoise
    }

    /// All components, in the order in which a request passes them.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = ComponentId> + use<> {
        self.trial.spec.components.ids()
    }

    /// The number of a device.
    pub fn index(&self, id: DeviceId) -> usize {
        self.trial.devices.iter().position(|info| info.id == id).expect("places are on usable devices")
    }

    pub fn info(&self, id: DeviceId) -> &DeviceInfo {
        &self.trial.devices[self.index(id)]
    }

    /// Devices of one kind cost the same. Kinds are numbers of devices.
    pub fn kind(&self, id: DeviceId) -> usize {
        self.kinds[self.index(id)]
    }

    /// Devices of the same numerics class together.
    pub fn by_class(&self, devices: &[DeviceId]) -> Vec<Vec<DeviceId>> {
        let mut classes: Vec<Vec<DeviceId>> = Vec::new();
        for id in devices {
            match classes.iter_mut().find(|class| self.info(class[0]).class == self.info(*id).class) {
                Some(class) => class.push(*id),
                None => classes.push(vec![*id]),
            }
        }
        classes
    }

    /// The fullest device, or the first of those that are as full, with all that it holds of these layouts.
    pub fn fullest_device<'l>(&self, layouts: impl IntoIterator<Item = &'l Layout>) -> Result<(DeviceId, u64)> {
        let held = self.held(layouts)?;
        let totals = self.trial.devices.iter().zip(&held).map(|(info, held)| (info.id, held.total()));
        let fuller = |a: (DeviceId, u64), b: (DeviceId, u64)| if b.1 > a.1 { b } else { a };
        totals.reduce(fuller).ok_or_else(|| Error::input("there is no device to place the pipeline on"))
    }

    /// All of a component on one device.
    pub fn whole(&self, component: ComponentId, id: DeviceId) -> Result<Cost> {
        let kind = self.kind(id);
        if let Some(cost) = self.wholes.borrow().get(&(component, kind)) {
            return Ok(*cost);
        }
        let cost = self.trial.whole(component, self.trial.devices[kind].id)?;
        self.wholes.borrow_mut().insert((component, kind), cost);
        Ok(cost)
    }

    /// A dry run of a place, in the names of the first devices of each kind: the n-th device of a kind costs what the n-th
    /// of all of that kind costs. Also gives these names.
    fn dry_run(&self, component: ComponentId, place: &Place<DeviceId>, batch: usize) -> Result<(Rc<DryRun>, StandIns)> {
        let mut stand_ins = StandIns::new();
        for id in place.devices() {
            let kind = self.kind(id);
            let before = stand_ins.iter().filter(|(known, _)| self.kind(*known) == kind).count();
            let alike = self.trial.devices.iter().zip(&self.kinds).filter(|(_, other)| **other == kind);
            stand_ins.push((id, alike.map(|(info, _)| info.id).nth(before).unwrap_or(id)));
        }
        let renamed = |id: &DeviceId| stand_ins.iter().find(|(known, _)| known == id).map_or(*id, |(_, name)| *name);
        Ok((self.trial.run(component, &place.map(renamed), batch)?, stand_ins))
    }

    /// What a place asks of each of its devices, bytes exactly.
    pub fn place_costs(
        &self,
        component: ComponentId,
        place: &Place<DeviceId>,
        batch: usize,
    ) -> Result<Vec<(DeviceId, Cost)>> {
        if let (Some(id), true) = (resident_device(place), batch == 1 || !self.denoises(component)) {
            return Ok(vec![(id, self.whole(component, id)?)]);
        }
        let (run, stand_ins) = self.dry_run(component, place, batch)?;
        let original = |name: DeviceId| stand_ins.iter().find(|(_, other)| *other == name).map_or(name, |(id, _)| *id);
        let mut costs: Vec<(DeviceId, Cost)> = run.costs.iter().map(|(id, cost)| (original(*id), *cost)).collect();
        for route in place.routes().into_iter().filter(|route| route.reside != Reside::Device) {
            for (id, cost) in costs.iter_mut().filter(|(id, _)| route.contains(id)) {
                cost.seconds = self.offloaded_seconds(component, route, *id, cost.seconds)?;
            }
        }
        Ok(costs)
    }

    /// Packed weights that rest in the host's memory for a place.
    pub fn host_bytes(&self, component: ComponentId, place: &Place<DeviceId>, batch: usize) -> Result<u64> {
        match place.routes().iter().any(|route| route.reside == Reside::Host) {
            true => Ok(self.dry_run(component, place, batch)?.0.host_bytes),
            false => Ok(0),
        }
    }

    /// Whether weights that rest in the host's memory have room there beside what the CPU's devices hold. What these
    /// share is counted for each.
    pub fn fits_host(&self, layout: &Layout, held: &[HeldBytes]) -> Result<bool> {
        let mut host_weight_bytes = 0;
        for (component, places) in layout.placement.iter() {
            let bytes = |place| self.host_bytes(component, place, layout.batch);
            host_weight_bytes += places.iter().map(bytes).collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        }
        let on_cpu = self.trial.devices.iter().zip(held).filter(|(info, _)| info.id.kind == DeviceKind::Cpu);
        let needed = host_weight_bytes + on_cpu.map(|(_, held)| held.total()).sum::<u64>();
        Ok(host_weight_bytes == 0 || self.host_free_bytes.is_none_or(|free| needed <= free))
    }

    /// Seconds of one call on a device whose weights are offloaded: fetched a section at a time, the next section's meanwhile.
    fn offloaded_seconds(
        &self,
        component: ComponentId,
        route: &Sections<DeviceId>,
        id: DeviceId,
        seconds: f64,
    ) -> Result<f64> {
        let (table, kind, link) = (self.table(component)?, self.kind_in_table(id), self.info(id).rates.link);
        let rate = if route.reside == Reside::Disk { link.min(Tuning::DISK_BYTES_PER_SECOND) } else { link };
        let here: Vec<Needs> = table
            .iter()
            .zip(&route.devices)
            .filter(|(_, at)| **at == id)
            .map(|(section, _)| section.needs[kind])
            .collect();
        let all: f64 = here.iter().map(|needs| needs.seconds).sum();
        let work = |i: usize| seconds * here[i].seconds / all.max(f64::MIN_POSITIVE);
        let fetch = |i: usize| here.get(i).map_or(0.0, |needs| needs.weight_bytes as f64 / rate);
        Ok(fetch(0) + (0..here.len()).map(|i| work(i).max(fetch(i + 1))).sum::<f64>())
    }

    /// Which of a section's needs are a device's: kinds in the order of their first devices.
    pub fn kind_in_table(&self, id: DeviceId) -> usize {
        let kind = self.kind(id);
        (0..kind).filter(|&other| self.kinds[other] == other).count()
    }

    /// The sections of a component, with what they need of each kind of device.
    pub fn table(&self, component: ComponentId) -> Result<Rc<Vec<SectionCosts>>> {
        if let Some(table) = self.tables.borrow().get(&component) {
            return Ok(table.clone());
        }
        let firsts = self.trial.devices.iter().enumerate().filter(|(i, _)| self.kinds[*i] == *i);
        let runs_by_kind = firsts
            .map(|(_, info)| Ok((self.trial.table(component, info.id)?, self.arenas(component, info)?)))
            .collect::<Result<Vec<_>>>()?;
        let section = |(i, name): (usize, String)| {
            let needs = runs_by_kind.iter().map(|(run, arenas)| Needs {
                weight_bytes: run.sections[i].weight_bytes,
                keep_bytes: run.sections[i].keep_bytes,
                activation_bytes: arenas[i],
                seconds: run.sections[i].seconds,
            });
            let made = runs_by_kind[0].0.transfers.iter().filter(|transfer| transfer.from == i);
            let next = |to: usize| to == i + 1;
            SectionCosts {
                name,
                needs: needs.collect(),
                out_bytes: made.clone().filter(|transfer| next(transfer.to)).map(|transfer| transfer.bytes).sum(),
                skips: made
                    .filter(|transfer| !next(transfer.to))
                    .map(|transfer| (transfer.to, transfer.bytes))
                    .collect(),
            }
        };
        let names = self.trial.spec.components[component].network.sections();
        let table = Rc::new(names.into_iter().enumerate().map(section).collect::<Vec<_>>());
        self.tables.borrow_mut().insert(component, table.clone());
        Ok(table)
    }

    /// The transient arena that each section needs on a device of its own.
    fn arenas(&self, component: ComponentId, info: &DeviceInfo) -> Result<Vec<u64>> {
        let count = self.trial.sections[component];
        let device = |i| DeviceInfo { id: DeviceId::new(info.id.kind, i), ..info.clone() };
        let devices: Vec<DeviceInfo> = (0..count).map(device).collect();
        let (spec, largest, effort) = (self.trial.spec, self.trial.largest, self.trial.effort);
        let trial = Trial::new(spec, &devices, largest, self.trial.dtypes.clone(), effort)?;
        let route: Vec<DeviceId> = devices.iter().map(|device| device.id).collect();
        let costs = trial.cost(component, &Place::Route(route.into()))?;
        Ok(costs.into_iter().map(|(_, cost)| cost.activation_bytes).collect())
    }

    /// The arenas of one request of a layout on each device, in bytes: the persistent arenas, and the request scratch on the
    /// devices of a cut UNet that others pass as well.
    pub fn arenas_of(&self, layout: &Layout) -> Result<(DeviceBytes, DeviceBytes)> {
        let (mut keep_bytes, mut scratch_bytes) = (DeviceBytes::new(), DeviceBytes::new());
        let denoiser = self.trial.spec.denoiser();
        for place in &layout.placement[denoiser] {
            for (id, cost) in self.place_costs(denoiser, place, layout.batch)? {
                // Also where it keeps nothing: a request finds an arena on every device of the denoiser.
                raise_to(&mut keep_bytes, id, cost.keep_bytes);
                if layout.is_pipelined(Stage::Denoise, place) {
                    raise_to(&mut scratch_bytes, id, cost.activation_bytes);
                }
            }
        }
        Ok((keep_bytes, scratch_bytes))
    }

    /// What each device holds of all these layouts, in the order of the trial's devices.
    pub fn held<'l>(&self, layouts: impl IntoIterator<Item = &'l Layout>) -> Result<Vec<HeldBytes>> {
        let mut held = vec![HeldBytes::default(); self.trial.devices.len()];
        // Offloaded weights are fetched for one component at a time.
        let mut staying = BTreeMap::<(usize, ComponentId), Vec<WeightPart>>::new();
        for layout in layouts {
            for (component, places) in layout.placement.iter() {
                for place in places {
                    for (id, cost) in self.place_costs(component, place, layout.batch)? {
                        let index = self.index(id);
                        let device = &mut held[index];
                        if !layout.is_pipelined(self.stage(component), place) {
                            device.activation_bytes = device.activation_bytes.max(cost.activation_bytes);
                        }
                        let stays = sections_on(place, id, |reside| reside == Reside::Device);
                        let mut weight_bytes = cost.weight_bytes;
                        if !sections_on(place, id, |reside| reside != Reside::Device).is_empty() {
                            weight_bytes = self.weight_bytes(component, index, &stays)?;
                            device.visitor_bytes = device.visitor_bytes.max(cost.weight_bytes - weight_bytes);
                        }
                        staying
                            .entry((index, component))
                            .or_default()
                            .push(WeightPart { sections: stays, weight_bytes });
                    }
                }
            }
            let (keep_bytes, scratch_bytes) = self.arenas_of(layout)?;
            for (id, bytes) in keep_bytes.into_iter().chain(scratch_bytes) {
                held[self.index(id)].keep_bytes += layout.in_flight as u64 * bytes;
            }
        }
        for ((device, component), parts) in staying {
            held[device].weight_bytes += self.common_weight_bytes(component, device, &parts)?;
        }
        Ok(held)
    }

    /// Bytes of the weights of several places of a component on one device, which have in common what both use.
    fn common_weight_bytes(&self, component: ComponentId, device: usize, parts: &[WeightPart]) -> Result<u64> {
        let all: BTreeSet<usize> = parts.iter().flat_map(|part| part.sections.iter().copied()).collect();
        if let Some(part) = parts.iter().find(|part| part.sections.len() == all.len()) {
            return Ok(part.weight_bytes);
        }
        self.weight_bytes(component, device, &all)
    }

    /// Bytes of the weights of some sections on one device.
    fn weight_bytes(&self, component: ComponentId, device: usize, sections: &BTreeSet<usize>) -> Result<u64> {
        if sections.is_empty() {
            return Ok(0);
        }
        let (table, kind) = (self.table(component)?, self.kind_in_table(self.trial.devices[device].id));
        Ok(sections.iter().map(|&section| table[section].needs[kind].weight_bytes).sum())
    }

    /// The layouts as a prediction takes them; devices are the trial's. A batch passes as one request.
    pub fn load(&self, layouts: &[Layout]) -> Result<Load> {
        let replica = |layout: &Layout| -> Result<predict::ReplicaLoad> {
            let station = |component| {
                let places = layout.placement[component].iter();
                let instances = places.map(|place| self.instance(component, place, layout)).collect::<Result<_>>()?;
                Ok(Station { work: self.stage(component).into(), instances })
            };
            let stations = self.components().map(station).collect::<Result<_>>()?;
            let max_in_flight = Tuning::max_predicted_in_flight(layout.placement.devices().len());
            Ok(predict::ReplicaLoad { stations, in_flight: layout.in_flight.min(max_in_flight) })
        };
        Ok(Load {
            devices: self.trial.devices.len(),
            replicas: layouts.iter().map(replica).collect::<Result<_>>()?,
            first_texts_twice: self.trial.largest.guided,
            batch: layouts.iter().map(|layout| layout.batch).min().unwrap_or(1),
        })
    }

    fn instance(
        &self,
        component: ComponentId,
        place: &Place<DeviceId>,
        layout: &Layout,
    ) -> Result<predict::StationInstance> {
        let costs = self.place_costs(component, place, layout.batch)?;
        let seconds = |id: DeviceId| costs.iter().find(|(known, _)| *known == id).map_or(0.0, |(_, cost)| cost.seconds);
        // Texts are encoded and pictures decoded one by one.
        let (calls, times) = if self.denoises(component) { (self.calls, 1) } else { (1, layout.batch) };
        let calls = calls as f64;
        let work = |(id, cost): &(DeviceId, Cost)| (self.index(*id), calls * cost.seconds + cost.prepare_seconds);
        let prepare: f64 = costs.iter().map(|(_, cost)| cost.prepare_seconds).sum();
        let route_seconds = |route: &[DeviceId]| -> Result<f64> {
            let devices = Place::Route(route.to_vec().into()).devices();
            let moved = if devices.len() > 1 { self.transfer_seconds(component, route)?.iter().sum() } else { 0.0 };
            Ok(devices.into_iter().map(seconds).sum::<f64>() + moved)
        };
        let call_seconds = match place {
            Place::Route(route) if layout.is_pipelined(self.stage(component), place) => {
                return self.pipelined_instance(component, route, &costs, self.calls);
            }
            Place::Route(route) => route_seconds(route)?,
            Place::Guided { negative, positive } => {
                let is_disjoint = negative.iter().all(|device| !positive.contains(device));
                match is_disjoint && self.trial.largest.guided {
                    true => route_seconds(negative)?.max(route_seconds(positive)?),
                    // One after the other on what they share.
                    false => costs.iter().map(|(_, cost)| cost.seconds).sum(),
                }
            }
        };
        let task = Task { busy_seconds: costs.iter().map(work).collect(), seconds: calls * call_seconds + prepare };
        Ok(predict::StationInstance::repeated(vec![task], times))
    }

    /// A cut UNet that requests pass device by device: for the text's keys and values, for each call, and once more to the
    /// first, where the latents are.
    fn pipelined_instance(
        &self,
        component: ComponentId,
        route: &[DeviceId],
        costs: &[(DeviceId, Cost)],
        calls: usize,
    ) -> Result<predict::StationInstance> {
        let cost_of =
            |id: DeviceId| costs.iter().find(|(known, _)| *known == id).map_or_else(Cost::default, |(_, cost)| *cost);
        let (table, pieces) = (self.table(component)?, pieces(route));
        // Sections that keep something keep the text; with the first it is the latents.
        let text_bytes = |(id, sections): &(DeviceId, Vec<usize>)| -> f64 {
            let kind = self.kind_in_table(*id);
            let keep_bytes =
                sections.iter().filter(|section| **section > 0).map(|&section| table[section].needs[kind].keep_bytes);
            keep_bytes.sum::<u64>() as f64
        };
        let prepare = |piece: &(DeviceId, Vec<usize>)| {
            let all: f64 = pieces.iter().filter(|(id, _)| *id == piece.0).map(text_bytes).sum();
            Task::on(
                self.index(piece.0),
                cost_of(piece.0).prepare_seconds * text_bytes(piece) / all.max(f64::MIN_POSITIVE),
            )
        };
        let first = pieces
            .iter()
            .enumerate()
            .filter(|(i, piece)| *i == 0 || text_bytes(piece) > 0.0)
            .map(|(_, piece)| prepare(piece));
        let home = Task::on(self.index(route[0]), 0.0);
        // Many steps are predicted as fewer of the same length in all.
        let repetitions = calls.min(Tuning::MAX_PREDICTED_PASSES);
        let scale = calls as f64 / repetitions as f64;
        Ok(predict::StationInstance {
            first: first.collect(),
            tasks: self.piece_tasks(component, route, &|id| cost_of(id).seconds, scale)?,
            repetitions,
            last: if pieces.len() > 1 { vec![home] } else { Vec::new() },
        })
    }

    /// Seconds that one call's tensors take to enter each run of sections of a route, over the links of both sides.
    fn transfer_seconds(&self, component: ComponentId, route: &[DeviceId]) -> Result<Vec<f64>> {
        let seconds_per_byte = |id: DeviceId| 1.0 / self.info(id).rates.link;
        let mut moved = vec![0.0; pieces(route).len()];
        for transfer in self.transfers(component, route)? {
            moved[transfer.piece] +=
                transfer.bytes as f64 * (seconds_per_byte(transfer.from) + seconds_per_byte(transfer.to));
        }
        Ok(moved)
    }

    /// What crosses from device to device in one call.
    pub fn transfers(&self, component: ComponentId, route: &[DeviceId]) -> Result<Vec<DeviceTransfer>> {
        let table = self.table(component)?;
        let pieces = pieces(route);
        let piece_of =
            |section: usize| pieces.iter().position(|(_, sections)| sections.contains(&section)).unwrap_or(0);
        let mut transfers = Vec::new();
        for (i, section) in table.iter().enumerate() {
            let next = (i + 1 < table.len()).then_some((i + 1, section.out_bytes));
            for (to, bytes) in next.into_iter().chain(section.skips.iter().copied()) {
                if route[i] != route[to] {
                    let (from, piece, is_skip) = (route[i], piece_of(to), to != i + 1);
                    transfers.push(DeviceTransfer { from, to: route[to], piece, is_skip, bytes });
                }
            }
        }
        Ok(transfers)
    }

    /// A stretch for each run of sections on one device, as long as so many calls.
    fn piece_tasks(
        &self,
        component: ComponentId,
        route: &[DeviceId],
        seconds: &dyn Fn(DeviceId) -> f64,
        calls: f64,
    ) -> Result<Vec<Task>> {
        let table = self.table(component)?;
        let share = |sections: &[usize], id: DeviceId| -> f64 {
            let kind = self.kind_in_table(id);
            sections.iter().map(|&section| table[section].needs[kind].seconds).sum()
        };
        let (moved, pieces) = (self.transfer_seconds(component, route)?, pieces(route));
        let task = |(piece, moved): (&(DeviceId, Vec<usize>), f64)| {
            let (id, sections) = piece;
            // A device may have several runs: what it does is theirs in proportion.
            let all: Vec<usize> = pieces.iter().filter(|(other, _)| other == id).flat_map(|(_, s)| s.clone()).collect();
            let part = share(sections, *id) / share(&all, *id).max(f64::MIN_POSITIVE);
            let busy = calls * seconds(*id) * part;
            Task { busy_seconds: vec![(self.index(*id), busy)], seconds: busy + calls * moved }
        };
        Ok(pieces.iter().zip(moved).map(task).collect())
    }
}

/// Something that crosses from device to device in one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceTransfer {
    /// The device that makes it.
    pub from: DeviceId,
    /// The device that takes it.
    pub to: DeviceId,
    /// The run of sections that takes it.
    pub piece: usize,
    /// Whether it passes by sections between.
    pub is_skip: bool,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A part of a component's weights on one device.
struct WeightPart {
    sections: BTreeSet<usize>,
    weight_bytes: u64,
}

/// The sections that a place has on a device, of the routes whose weights rest where they are asked for.
fn sections_on(place: &Place<DeviceId>, id: DeviceId, matches_residence: impl Fn(Reside) -> bool) -> BTreeSet<usize> {
    let routes = place.routes().into_iter().filter(|route| matches_residence(route.reside));
    routes.flat_map(|route| (0..route.len()).filter(move |&section| route[section] == id)).collect()
}

/// Makes the entry of `id` as large as `bytes` at least.
fn raise_to(entries: &mut DeviceBytes, id: DeviceId, bytes: u64) {
    match entries.iter_mut().find(|(known, _)| *known == id) {
        Some((_, known)) => *known = bytes.max(*known),
        None => entries.push((id, bytes)),
    }
}

/// The runs of sections on one device, in order.
fn pieces(route: &[DeviceId]) -> Vec<(DeviceId, Vec<usize>)> {
    let mut pieces: Vec<(DeviceId, Vec<usize>)> = Vec::new();
    for (section, &id) in route.iter().enumerate() {
        match pieces.last_mut() {
            Some((last, sections)) if *last == id => sections.push(section),
            _ => pieces.push((id, vec![section])),
        }
    }
    pieces
}
