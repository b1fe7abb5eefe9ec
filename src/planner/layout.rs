//! The costs of a layout: the bytes and seconds of every component on the devices of its places.
//!
//! Devices that are alike (equal backend, rates, rules and class) share one dry run.

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
};

/// One replica: the places of its components, and how many requests it works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The places of each component; several places are a pool.
    pub placement: Placement<DeviceId>,
    /// The number of requests in flight.
    pub in_flight: usize,
    /// The largest number of requests in one call of the UNet.
    pub batch: usize,
}

impl Layout {
    /// The devices of one component, each once.
    pub fn devices_of(&self, component: ComponentId) -> Vec<DeviceId> {
        each_once(self.placement[component].iter().flat_map(Place::devices))
    }
}

/// The bytes that one device holds, without the driver's overhead, which budgets leave out too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldBytes {
    /// The packed weights that stay on the device.
    pub weight_bytes: u64,
    /// The largest number of bytes of offloaded weights that are on the device at one time.
    pub offloaded_bytes: u64,
    /// The transient arena.
    pub activation_bytes: u64,
    /// The persistent arenas and the request scratch of all requests in flight.
    pub keep_bytes: u64,
}

impl HeldBytes {
    /// The sum of all bytes.
    pub fn total(&self) -> u64 {
        self.weight_bytes + self.offloaded_bytes + self.activation_bytes + self.keep_bytes
    }
}

/// Whether the bytes on each device are within its budget.
pub(super) fn fits(held: &[HeldBytes], budgets: &[u64]) -> bool {
    held.iter().zip(budgets).all(|(held, budget)| held.total() <= *budget)
}

/// Devices, each with the device of the same kind that replaces it in a dry run.
type StandIns = Vec<(DeviceId, DeviceId)>;

/// Devices, each with a number of bytes.
pub type DeviceBytes = Vec<(DeviceId, u64)>;

/// The device of a place that is on one device and whose weights stay there.
pub fn resident_device(place: &Place<DeviceId>) -> Option<DeviceId> {
    match place {
        Place::Route(route) if !place.is_cut() && route.reside == Reside::Device => Some(route[0]),
        _ => None,
    }
}

/// The costs of places. Each is computed by a dry run when it is needed first.
pub(super) struct Costs<'a> {
    pub trial: &'a Trial<'a>,
    /// The UNet calls of one request.
    pub calls: usize,
    /// The bytes of host memory that may be used, if they are known.
    host_free_bytes: Option<u64>,
    /// For each device, the index of the first device that is like it.
    alike: Vec<usize>,
    tables: RefCell<BTreeMap<ComponentId, Rc<Vec<SectionCosts>>>>,
    /// The costs of whole components by the first device that is alike.
    wholes: RefCell<BTreeMap<(ComponentId, usize), Cost>>,
}

impl<'a> Costs<'a> {
    pub fn new(trial: &'a Trial<'a>, host_free_bytes: Option<u64>) -> Result<Self> {
        let (spec, largest) = (trial.spec, trial.largest);
        let calls = largest.schedule(spec)?.steps.len();
        let is_alike = |a: &DeviceInfo, b: &DeviceInfo| {
            (a.id.kind, a.rules, &a.rates, a.f32_flops, &a.class)
                == (b.id.kind, b.rules, &b.rates, b.f32_flops, &b.class)
        };
        let first = |info| trial.devices.iter().position(|other| is_alike(other, info)).unwrap_or(0);
        let alike = trial.devices.iter().map(first).collect();
        Ok(Self { trial, calls, host_free_bytes, alike, tables: RefCell::default(), wholes: RefCell::default() })
    }

    /// The name of a component.
    pub fn name(&self, component: ComponentId) -> &str {
        &self.trial.spec.components[component].name
    }

    /// The stage of a component.
    pub fn stage(&self, component: ComponentId) -> Stage {
        self.trial.spec.components[component].stage()
    }

    /// Whether a component is called once per step, with a batch of requests.
    pub fn denoises(&self, component: ComponentId) -> bool {
        self.stage(component) == Stage::Denoise
    }

    /// Whether several requests pass this place of a component at the same time, device by device. With one request in
    /// flight, or with ControlNets, the request holds all devices of the denoiser instead.
    fn is_pipelined(&self, layout: &Layout, component: ComponentId, place: &Place<DeviceId>) -> bool {
        self.denoises(component)
            && place.is_cut()
            && layout.in_flight > 1
            && self.trial.spec.controlnets().next().is_none()
    }

    /// All components, in the order in which a request passes them.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = ComponentId> + use<> {
        self.trial.spec.components.ids()
    }

    /// The index of a device.
    pub fn index(&self, id: DeviceId) -> usize {
        self.trial.devices.iter().position(|info| info.id == id).expect("places are on usable devices")
    }

    pub fn info(&self, id: DeviceId) -> &DeviceInfo {
        &self.trial.devices[self.index(id)]
    }

    /// The index of the first device that is like this one. Such devices have the same costs.
    pub fn first_alike(&self, id: DeviceId) -> usize {
        self.alike[self.index(id)]
    }

    /// Groups the devices by their numerics class.
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

    /// The device that holds the most bytes of these layouts, and these bytes. Of several that hold as many bytes, it
    /// is the first.
    pub fn fullest_device<'l>(&self, layouts: impl IntoIterator<Item = &'l Layout>) -> Result<(DeviceId, u64)> {
        let held = self.held(layouts)?;
        let totals = self.trial.devices.iter().zip(&held).map(|(info, held)| (info.id, held.total()));
        let fuller = |a: (DeviceId, u64), b: (DeviceId, u64)| if b.1 > a.1 { b } else { a };
        totals.reduce(fuller).ok_or_else(|| Error::input("there is no device to place the pipeline on"))
    }

    /// The cost of a whole component on one device.
    pub fn whole(&self, component: ComponentId, id: DeviceId) -> Result<Cost> {
        let first = self.first_alike(id);
        if let Some(cost) = self.wholes.borrow().get(&(component, first)) {
            return Ok(*cost);
        }
        let cost = self.trial.whole(component, self.trial.devices[first].id)?;
        self.wholes.borrow_mut().insert((component, first), cost);
        Ok(cost)
    }

    /// Makes a dry run of a place with stand-ins for its devices, and returns both. The n-th of some devices that are
    /// alike is replaced by the n-th of all that are, so that equivalent places share one run.
    fn dry_run(&self, component: ComponentId, place: &Place<DeviceId>, batch: usize) -> Result<(Rc<DryRun>, StandIns)> {
        let mut stand_ins = StandIns::new();
        for id in place.devices() {
            let first = self.first_alike(id);
            let position = stand_ins.iter().filter(|(known, _)| self.first_alike(*known) == first).count();
            let all_alike = self.trial.devices.iter().zip(&self.alike).filter(|(_, other)| **other == first);
            stand_ins.push((id, all_alike.map(|(info, _)| info.id).nth(position).unwrap_or(id)));
        }
        let renamed = |id: &DeviceId| stand_ins.iter().find(|(known, _)| known == id).map_or(*id, |(_, name)| *name);
        Ok((self.trial.run(component, &place.map(renamed), batch)?, stand_ins))
    }

    /// The cost of a place on each of its devices. The bytes are exact.
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

    /// The bytes of packed weights that a place keeps in host memory.
    pub fn host_bytes(&self, component: ComponentId, place: &Place<DeviceId>, batch: usize) -> Result<u64> {
        match place.routes().iter().any(|route| route.reside == Reside::Host) {
            true => Ok(self.dry_run(component, place, batch)?.0.host_bytes),
            false => Ok(0),
        }
    }

    /// Whether offloaded weights fit in host memory, together with the bytes that CPU devices hold. Weights that CPU
    /// devices share are counted for each of them.
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

    /// The seconds of one call on a device with offloaded weights: the weights of a section are fetched while the
    /// previous section computes.
    fn offloaded_seconds(
        &self,
        component: ComponentId,
        route: &Sections<DeviceId>,
        id: DeviceId,
        seconds: f64,
    ) -> Result<f64> {
        let (table, column, link) = (self.table(component)?, self.column(id), self.info(id).rates.link);
        let rate = if route.reside == Reside::Disk { link.min(Tuning::DISK_BYTES_PER_SECOND) } else { link };
        let here: Vec<Needs> = table
            .iter()
            .zip(&route.devices)
            .filter(|(_, at)| **at == id)
            .map(|(section, _)| section.needs[column])
            .collect();
        let all: f64 = here.iter().map(|needs| needs.seconds).sum();
        let work = |i: usize| seconds * here[i].seconds / all.max(f64::MIN_POSITIVE);
        let fetch = |i: usize| here.get(i).map_or(0.0, |needs| needs.weight_bytes as f64 / rate);
        Ok(fetch(0) + (0..here.len()).map(|i| work(i).max(fetch(i + 1))).sum::<f64>())
    }

    /// The index of a device in [`SectionCosts::needs`], which has one entry for devices that are alike.
    pub fn column(&self, id: DeviceId) -> usize {
        let first = self.first_alike(id);
        (0..first).filter(|&other| self.alike[other] == other).count()
    }

    /// The costs of a component's sections, with one entry for devices that are alike. Transfers are those of the first
    /// device.
    pub fn table(&self, component: ComponentId) -> Result<Rc<Vec<SectionCosts>>> {
        if let Some(table) = self.tables.borrow().get(&component) {
            return Ok(table.clone());
        }
        let firsts = self.trial.devices.iter().enumerate().filter(|(i, _)| self.alike[*i] == *i);
        let runs_by_kind = firsts
            .map(|(_, info)| Ok((self.trial.table(component, info.id)?, self.section_arenas(component, info)?)))
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

    /// The bytes of the transient arena that each section needs on a device of its own.
    fn section_arenas(&self, component: ComponentId, info: &DeviceInfo) -> Result<Vec<u64>> {
        let count = self.trial.sections[component];
        let device = |i| DeviceInfo { id: DeviceId::new(info.id.kind, i), ..info.clone() };
        let devices: Vec<DeviceInfo> = (0..count).map(device).collect();
        let (spec, largest, effort) = (self.trial.spec, self.trial.largest, self.trial.effort);
        let trial = Trial::new(spec, &devices, largest, self.trial.dtypes.clone(), effort)?;
        let route: Vec<DeviceId> = devices.iter().map(|device| device.id).collect();
        let costs = trial.cost(component, &Place::Route(route.into()))?;
        Ok(costs.into_iter().map(|(_, cost)| cost.activation_bytes).collect())
    }

    /// The arenas of one request of a layout on each device, in bytes: the persistent arenas, and the request scratch
    /// on the devices of a cut UNet that several requests pass.
    pub fn request_arenas(&self, layout: &Layout) -> Result<(DeviceBytes, DeviceBytes)> {
        let (mut keep_bytes, mut scratch_bytes) = (DeviceBytes::new(), DeviceBytes::new());
        for component in self.components().filter(|component| self.denoises(*component)) {
            let mut own_bytes = DeviceBytes::new();
            for place in &layout.placement[component] {
                for (id, cost) in self.place_costs(component, place, layout.batch)? {
                    raise_to(&mut own_bytes, id, cost.keep_bytes);
                    if self.is_pipelined(layout, component, place) {
                        raise_to(&mut scratch_bytes, id, cost.activation_bytes);
                    }
                }
            }
            // An arena of zero bytes is listed too: a request needs an arena on every device of the denoiser. What a
            // ControlNet keeps is added to what the UNet keeps there.
            for (id, bytes) in own_bytes {
                match keep_bytes.iter_mut().find(|(known, _)| *known == id) {
                    Some((_, known)) => *known += bytes,
                    None => keep_bytes.push((id, bytes)),
                }
            }
        }
        Ok((keep_bytes, scratch_bytes))
    }

    /// The bytes of these layouts on each device, in the order of the trial's devices.
    pub fn held<'l>(&self, layouts: impl IntoIterator<Item = &'l Layout>) -> Result<Vec<HeldBytes>> {
        let mut held = vec![HeldBytes::default(); self.trial.devices.len()];
        // Places of one component on one device share weights, so these are added up at the end.
        let mut staying = BTreeMap::<(usize, ComponentId), Vec<WeightPart>>::new();
        for layout in layouts {
            for (component, places) in layout.placement.iter() {
                for place in places {
                    for (id, cost) in self.place_costs(component, place, layout.batch)? {
                        let index = self.index(id);
                        let device = &mut held[index];
                        if !self.is_pipelined(layout, component, place) {
                            device.activation_bytes = device.activation_bytes.max(cost.activation_bytes);
                        }
                        let stays = sections_on(place, id, |reside| reside == Reside::Device);
                        let mut weight_bytes = cost.weight_bytes;
                        if !sections_on(place, id, |reside| reside != Reside::Device).is_empty() {
                            weight_bytes = self.weight_bytes(component, index, &stays)?;
                            // Offloaded weights are fetched for one component at a time.
                            device.offloaded_bytes = device.offloaded_bytes.max(cost.weight_bytes - weight_bytes);
                        }
                        staying
                            .entry((index, component))
                            .or_default()
                            .push(WeightPart { sections: stays, weight_bytes });
                    }
                }
            }
            let (keep_bytes, scratch_bytes) = self.request_arenas(layout)?;
            for (id, bytes) in keep_bytes.into_iter().chain(scratch_bytes) {
                held[self.index(id)].keep_bytes += layout.in_flight as u64 * bytes;
            }
        }
        for ((device, component), parts) in staying {
            held[device].weight_bytes += self.common_weight_bytes(component, device, &parts)?;
        }
        Ok(held)
    }

    /// The bytes of the weights of several places of a component on one device, which share the weights of common
    /// sections.
    fn common_weight_bytes(&self, component: ComponentId, device: usize, parts: &[WeightPart]) -> Result<u64> {
        let all: BTreeSet<usize> = parts.iter().flat_map(|part| part.sections.iter().copied()).collect();
        if let Some(part) = parts.iter().find(|part| part.sections.len() == all.len()) {
            return Ok(part.weight_bytes);
        }
        self.weight_bytes(component, device, &all)
    }

    /// The bytes of the weights of some sections on one device.
    fn weight_bytes(&self, component: ComponentId, device: usize, sections: &BTreeSet<usize>) -> Result<u64> {
        if sections.is_empty() {
            return Ok(0);
        }
        let (table, column) = (self.table(component)?, self.column(self.trial.devices[device].id));
        Ok(sections.iter().map(|&section| table[section].needs[column].weight_bytes).sum())
    }

    /// Converts layouts to the input of a prediction. Devices are indices of the trial's devices. A batch is one
    /// request.
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
        // Texts are encoded and pictures are decoded one by one.
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
            Place::Route(route) if self.is_pipelined(layout, component, place) => {
                return self.pipelined_instance(component, route, &costs, self.calls);
            }
            Place::Route(route) => route_seconds(route)?,
            Place::Guided { negative, positive } => {
                let is_disjoint = negative.iter().all(|device| !positive.contains(device));
                match is_disjoint && self.trial.largest.guided {
                    true => route_seconds(negative)?.max(route_seconds(positive)?),
                    // The branches run one after the other if they share a device; without guidance only one runs.
                    false => costs.iter().map(|(_, cost)| cost.seconds).sum(),
                }
            }
        };
        let task = Task { busy_seconds: costs.iter().map(work).collect(), seconds: calls * call_seconds + prepare };
        Ok(predict::StationInstance::repeated(vec![task], times))
    }

    /// The instance of a cut UNet that requests pass device by device: tasks for the keys and values of the text, a
    /// task for each piece and call, and a last task of no time, which waits for the first device, where the latents
    /// are. The first piece always has a first task, because that task decides which instance is free.
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
        // The first section keeps the latents; other sections keep keys and values of the text.
        let text_bytes = |(id, sections): &(DeviceId, Vec<usize>)| -> f64 {
            let column = self.column(*id);
            let keep_bytes =
                sections.iter().filter(|section| **section > 0).map(|&section| table[section].needs[column].keep_bytes);
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
        // Many steps are predicted as fewer steps with the same total time.
        let repetitions = calls.min(Tuning::MAX_PREDICTED_PASSES);
        let scale = calls as f64 / repetitions as f64;
        Ok(predict::StationInstance {
            first: first.collect(),
            tasks: self.piece_tasks(component, route, &|id| cost_of(id).seconds, scale)?,
            repetitions,
            last: if pieces.len() > 1 { vec![home] } else { Vec::new() },
        })
    }

    /// The seconds of the transfers into each piece of a route in one call, over the links of both devices.
    fn transfer_seconds(&self, component: ComponentId, route: &[DeviceId]) -> Result<Vec<f64>> {
        let seconds_per_byte = |id: DeviceId| 1.0 / self.info(id).rates.link;
        let mut moved = vec![0.0; pieces(route).len()];
        for transfer in self.transfers(component, route)? {
            moved[transfer.piece] +=
                transfer.bytes as f64 * (seconds_per_byte(transfer.from) + seconds_per_byte(transfer.to));
        }
        Ok(moved)
    }

    /// The transfers between devices in one call.
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

    /// A task for each piece of a route, with the time of `calls` calls.
    fn piece_tasks(
        &self,
        component: ComponentId,
        route: &[DeviceId],
        seconds: &dyn Fn(DeviceId) -> f64,
        calls: f64,
    ) -> Result<Vec<Task>> {
        let table = self.table(component)?;
        let share = |sections: &[usize], id: DeviceId| -> f64 {
            let kind = self.column(id);
            sections.iter().map(|&section| table[section].needs[kind].seconds).sum()
        };
        let (moved, pieces) = (self.transfer_seconds(component, route)?, pieces(route));
        let task = |(piece, moved): (&(DeviceId, Vec<usize>), f64)| {
            let (id, sections) = piece;
            // If a device has several pieces, its seconds are divided in proportion to their times in the table.
            let all: Vec<usize> = pieces.iter().filter(|(other, _)| other == id).flat_map(|(_, s)| s.clone()).collect();
            let part = share(sections, *id) / share(&all, *id).max(f64::MIN_POSITIVE);
            let busy = calls * seconds(*id) * part;
            Task { busy_seconds: vec![(self.index(*id), busy)], seconds: busy + calls * moved }
        };
        Ok(pieces.iter().zip(moved).map(task).collect())
    }
}

/// A tensor that is transferred between devices in one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceTransfer {
    /// The device that produces the tensor.
    pub from: DeviceId,
    /// The device that uses the tensor.
    pub to: DeviceId,
    /// The index of the piece that uses the tensor.
    pub piece: usize,
    /// Whether the tensor is a skip tensor: the section that uses it is not the next one.
    pub is_skip: bool,
    /// The size in bytes.
    pub bytes: u64,
}

/// The sections of a component whose weights stay on one device for one place, and their bytes.
struct WeightPart {
    sections: BTreeSet<usize>,
    weight_bytes: u64,
}

/// The sections of a place on a device, in the routes whose residence of weights satisfies `matches_residence`.
fn sections_on(place: &Place<DeviceId>, id: DeviceId, matches_residence: impl Fn(Reside) -> bool) -> BTreeSet<usize> {
    let routes = place.routes().into_iter().filter(|route| matches_residence(route.reside));
    routes.flat_map(|route| (0..route.len()).filter(move |&section| route[section] == id)).collect()
}

/// Raises the entry of `id` to at least `bytes`.
fn raise_to(entries: &mut DeviceBytes, id: DeviceId, bytes: u64) {
    match entries.iter_mut().find(|(known, _)| *known == id) {
        Some((_, known)) => *known = bytes.max(*known),
        None => entries.push((id, bytes)),
    }
}

/// The pieces of a route in order: contiguous sections on one device.
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
