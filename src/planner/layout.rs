//! What a layout asks of its devices: bytes and seconds of every component, wherever its seats are.
//!
//! A seat is a place with where its weights live. Devices that are alike (kind, rates, what things occupy there) are
//! tried once for all of them.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use super::{
    Cost, Largest,
    cuts::{Needs, Section},
    device_map::Reside,
    predict::{self, Load, Stretch},
    trial::Trial,
};
use crate::{
    backend::{DeviceId, DeviceInfo, Rates},
    error::Result,
    models::spec::ModelSpec,
    pipeline::{
        Component, PerComponent,
        model::sections,
        placement::{Place, Placement},
    },
    scheduler::schedule,
};

/// What reading weights from a file gives, in bytes per second: a small solid-state disk.
const DISK: f64 = 1e9;

/// A place of a component, and where its weights live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Where it runs.
    pub place: Place<DeviceId>,
    /// Where its weights live while nobody needs them: an answer for each of the place's routes.
    pub reside: Vec<Reside>,
}

impl Seat {
    /// Weights live where they are used.
    pub fn at(place: Place<DeviceId>) -> Self {
        Self::visiting(place, Reside::Device)
    }

    /// Weights live at `reside`.
    pub fn visiting(place: Place<DeviceId>, reside: Reside) -> Self {
        let reside = vec![reside; place.routes().len()];
        Self { place, reside }
    }

    /// Where the weights that one of its devices uses live.
    pub fn reside_on(&self, id: DeviceId) -> Reside {
        let routes = self.place.routes().into_iter().zip(&self.reside);
        let mut here = routes.filter(|(route, _)| route.contains(&id)).map(|(_, reside)| *reside);
        here.find(|reside| *reside != Reside::Device).unwrap_or(Reside::Device)
    }

    /// The device, if all of it runs on one.
    pub fn whole(&self) -> Option<DeviceId> {
        match &self.place {
            Place::Route(route) if !self.is_cut() => Some(route[0]),
            _ => None,
        }
    }

    /// Whether it is cut: one network over several devices.
    pub fn is_cut(&self) -> bool {
        matches!(&self.place, Place::Route(route) if route.iter().any(|device| *device != route[0]))
    }
}

/// One replica: the seats of each component, several being a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The seats.
    pub seats: PerComponent<Vec<Seat>>,
    /// Requests that it works on at once.
    pub in_flight: usize,
}

impl Layout {
    /// The places alone.
    pub fn placement(&self) -> Placement<DeviceId> {
        PerComponent::new(|component| self.seats.get(component).iter().map(|seat| seat.place.clone()).collect())
    }

    /// Every device that it uses, each once.
    pub fn devices(&self) -> Vec<DeviceId> {
        self.placement().devices()
    }

    /// The devices of one component.
    pub fn devices_of(&self, component: Component) -> Vec<DeviceId> {
        let mut devices = Vec::new();
        for device in self.seats.get(component).iter().flat_map(|seat| seat.place.devices()) {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices
    }

    /// Whether requests pass a cut seat piece by piece, so that several are inside at once. A request that has the replica
    /// for itself holds all of them instead.
    pub fn overlaps(&self, seat: &Seat) -> bool {
        self.in_flight > 1 && seat.is_cut()
    }
}

/// What one device holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Packed weights, and the largest that visit.
    pub weight_bytes: u64,
    /// The transient arena that whoever has the device's gate uses.
    pub activation_bytes: u64,
    /// The transient arenas of requests that are inside a cut UNet, one for each in flight.
    pub lane_bytes: u64,
    /// Keep arenas of all requests in flight.
    pub keep_bytes: u64,
}

impl Held {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weight_bytes + self.activation_bytes + self.lane_bytes + self.keep_bytes
    }
}

/// The costs of seats, tried when first asked for.
pub(super) struct Costs<'a> {
    pub trial: &'a Trial<'a>,
    /// UNet calls of one request.
    pub calls: usize,
    /// For each device the first one that is like it.
    kinds: Vec<usize>,
    tables: RefCell<BTreeMap<Component, Rc<Vec<Section>>>>,
    /// Whole components by kind of device.
    wholes: RefCell<BTreeMap<(Component, usize), Cost>>,
}

impl<'a> Costs<'a> {
    pub fn new(trial: &'a Trial<'a>) -> Result<Self> {
        let (spec, largest) = (trial.spec, trial.largest);
        let calls = schedule(&spec.scheduler_for(largest.scheduler)?, largest.steps)?.steps.len();
        let alike = |a: &DeviceInfo, b: &DeviceInfo| {
            a.id.kind == b.id.kind && a.rules == b.rules && a.rates == b.rates && a.class == b.class
        };
        let first = |info| trial.devices.iter().position(|other| alike(other, info)).unwrap_or(0);
        let kinds = trial.devices.iter().map(first).collect();
        Ok(Self { trial, calls, kinds, tables: RefCell::default(), wholes: RefCell::default() })
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

    /// All of a component on one device.
    pub fn whole(&self, component: Component, id: DeviceId) -> Result<Cost> {
        let kind = self.kind(id);
        if let Some(cost) = self.wholes.borrow().get(&(component, kind)) {
            return Ok(*cost);
        }
        let cost = self.trial.whole(component, self.trial.devices[kind].id)?;
        self.wholes.borrow_mut().insert((component, kind), cost);
        Ok(cost)
    }

    /// What a seat asks of each of its devices. Exact for weights that stay.
    pub fn of(&self, component: Component, seat: &Seat) -> Result<Vec<(DeviceId, Cost)>> {
        if let Some(id) = seat.whole().filter(|id| seat.reside_on(*id) == Reside::Device) {
            return Ok(vec![(id, self.whole(component, id)?)]);
        }
        // The n-th device of a kind costs what the n-th of all of that kind costs.
        let mut names: Vec<(DeviceId, DeviceId)> = Vec::new();
        for id in seat.place.devices() {
            let kind = self.kind(id);
            let before = names.iter().filter(|(known, _)| self.kind(*known) == kind).count();
            let alike = self.trial.devices.iter().zip(&self.kinds).filter(|(_, other)| **other == kind);
            names.push((id, alike.map(|(info, _)| info.id).nth(before).unwrap_or(id)));
        }
        let renamed = |id: &DeviceId| names.iter().find(|(known, _)| known == id).map_or(*id, |(_, name)| *name);
        let costs = self.trial.cost(component, &seat.place.map(renamed))?;
        let back = |name: DeviceId| names.iter().find(|(_, other)| *other == name).map_or(name, |(id, _)| *id);
        let costs = costs.into_iter().map(|(id, cost)| (back(id), cost));
        costs
            .map(|(id, cost)| match seat.reside_on(id) {
                Reside::Device => Ok((id, cost)),
                reside => Ok((id, self.visited(component, seat, reside, id, cost)?)),
            })
            .collect()
    }

    /// The cost on one device when weights visit it a section at a time, the next one on its way meanwhile.
    fn visited(&self, component: Component, seat: &Seat, reside: Reside, id: DeviceId, cost: Cost) -> Result<Cost> {
        let table = self.table(component)?;
        let (kind, link) = (self.kind_in_table(id), self.info(id).rates.link);
        let rate = if reside == Reside::Disk { link.min(DISK) } else { link };
        let (mut most, mut seconds) = (0, 0.0);
        for route in seat.place.routes() {
            let here: Vec<Needs> =
                table.iter().zip(route).filter(|(_, at)| **at == id).map(|(section, _)| section.needs[kind]).collect();
            let bytes = |i: usize| here.get(i).map_or(0, |needs| needs.weight_bytes);
            most = (0..here.len()).map(|i| bytes(i) + bytes(i + 1)).max().unwrap_or(0).max(most);
            let visit = |i: usize| bytes(i) as f64 / rate;
            seconds += visit(0) + (0..here.len()).map(|i| here[i].seconds.max(visit(i + 1))).sum::<f64>();
        }
        Ok(Cost { weight_bytes: most, seconds: seconds.max(cost.seconds), ..cost })
    }

    /// Which of a section's needs are a device's: kinds in the order of their first devices.
    pub fn kind_in_table(&self, id: DeviceId) -> usize {
        let kind = self.kind(id);
        self.kinds.iter().enumerate().filter(|(i, first)| i == *first && *first < &kind).count()
    }

    /// The sections of a component, with what they need of each kind of device.
    pub fn table(&self, component: Component) -> Result<Rc<Vec<Section>>> {
        if let Some(table) = self.tables.borrow().get(&component) {
            return Ok(table.clone());
        }
        let (spec, largest) = (self.trial.spec, self.trial.largest);
        let names = sections(component, spec);
        let firsts = self.trial.devices.iter().enumerate().filter(|(i, _)| self.kinds[*i] == *i);
        let by_kind =
            firsts.map(|(_, info)| needs(spec, largest, info, component, names.len())).collect::<Result<Vec<_>>>()?;
        let crossing = crossing(spec, largest, &self.trial.devices[0], component, names.len())?;
        let section = |(i, name): (usize, String)| Section {
            name,
            needs: by_kind.iter().map(|needs| needs[i]).collect(),
            out_bytes: crossing.get(i).copied().unwrap_or(0),
            skips: Vec::new(),
        };
        let table = Rc::new(names.into_iter().enumerate().map(section).collect::<Vec<_>>());
        self.tables.borrow_mut().insert(component, table.clone());
        Ok(table)
    }

    /// What each device holds of all these layouts, in the order of the trial's devices.
    pub fn held(&self, layouts: &[Layout]) -> Result<Vec<Held>> {
        let count = self.trial.devices.len();
        let mut held = vec![Held::default(); count];
        let mut weights = BTreeMap::<(usize, Component), u64>::new();
        let mut visitors = vec![0; count];
        for layout in layouts {
            let (mut keeps, mut lanes) = (vec![0; count], vec![0; count]);
            for (component, seats) in layout.seats.iter() {
                for seat in seats {
                    for (id, cost) in self.of(component, seat)? {
                        let device = self.index(id);
                        if layout.overlaps(seat) && component == Component::Unet {
                            // Every request inside has an arena of its own: others use the device between its pieces.
                            lanes[device] = cost.activation_bytes.max(lanes[device]);
                        } else {
                            held[device].activation_bytes = held[device].activation_bytes.max(cost.activation_bytes);
                        }
                        keeps[device] = cost.keep_bytes.max(keeps[device]);
                        if seat.reside_on(id) == Reside::Device {
                            // Seats of one component on one device have their weights in common.
                            let here = weights.entry((device, component)).or_default();
                            *here = cost.weight_bytes.max(*here);
                        } else {
                            visitors[device] = cost.weight_bytes.max(visitors[device]);
                        }
                    }
                }
            }
            for (held, (keep, lane)) in held.iter_mut().zip(keeps.into_iter().zip(lanes)) {
                held.keep_bytes += layout.in_flight as u64 * keep;
                held.lane_bytes += layout.in_flight as u64 * lane;
            }
        }
        for ((device, _), bytes) in weights {
            held[device].weight_bytes += bytes;
        }
        for (device, held) in held.iter_mut().enumerate() {
            held.weight_bytes += visitors[device];
        }
        Ok(held)
    }

    /// The layouts as a prediction takes them; devices are the trial's.
    pub fn load(&self, layouts: &[Layout]) -> Result<Load> {
        let replica = |layout: &Layout| -> Result<predict::Replica> {
            let stage = |component| {
                let seats = layout.seats.get(component).iter();
                seats.map(|seat| self.place(component, seat, layout)).collect::<Result<Vec<_>>>()
            };
            let stages = Component::ALL.into_iter().map(stage).collect::<Result<_>>()?;
            Ok(predict::Replica { stages, in_flight: layout.in_flight })
        };
        Ok(Load {
            devices: self.trial.devices.len(),
            replicas: layouts.iter().map(replica).collect::<Result<_>>()?,
            first_stage_twice: self.trial.largest.guided,
        })
    }

    fn place(&self, component: Component, seat: &Seat, layout: &Layout) -> Result<predict::Place> {
        let calls = if component == Component::Unet { self.calls } else { 1 };
        let costs = self.of(component, seat)?;
        let seconds = |id: DeviceId| costs.iter().find(|(known, _)| *known == id).map_or(0.0, |(_, cost)| cost.seconds);
        let work = |times: usize| -> Vec<(usize, f64)> {
            costs.iter().map(|(id, cost)| (self.index(*id), times as f64 * cost.seconds)).collect()
        };
        let of_route = |route: &[DeviceId]| -> Result<f64> {
            let devices = Place::Route(route.to_vec()).devices();
            let moved = if devices.len() > 1 { self.moved(component, route)?.iter().sum() } else { 0.0 };
            Ok(devices.into_iter().map(seconds).sum::<f64>() + moved)
        };
        Ok(match &seat.place {
            Place::Route(route) if layout.overlaps(seat) && component == Component::Unet => {
                predict::Place { stretches: self.pieces(component, route, &seconds)?, times: calls }
            }
            Place::Route(route) => {
                let seconds = calls as f64 * of_route(route)?;
                predict::Place::once(Stretch { work: work(calls), seconds })
            }
            Place::Guided { negative, positive } => {
                let apart = negative.iter().all(|device| !positive.contains(device));
                let one = match apart && self.trial.largest.guided {
                    true => of_route(negative)?.max(of_route(positive)?),
                    // One after the other on what they share.
                    false => work(1).iter().map(|(_, seconds)| seconds).sum(),
                };
                predict::Place::once(Stretch { work: work(calls), seconds: calls as f64 * one })
            }
        })
    }

    /// Seconds that one call's tensors take to enter each run of sections of a route, over the links of both sides.
    fn moved(&self, component: Component, route: &[DeviceId]) -> Result<Vec<f64>> {
        let seconds_per_byte = |id: DeviceId| 1.0 / self.info(id).rates.link;
        let crossings = self.crossings(component, route)?;
        let mut moved = vec![0.0; runs(route).len()];
        for crossing in crossings {
            moved[crossing.run] +=
                crossing.bytes as f64 * (seconds_per_byte(crossing.from) + seconds_per_byte(crossing.to));
        }
        Ok(moved)
    }

    /// What crosses from device to device in one call.
    pub fn crossings(&self, component: Component, route: &[DeviceId]) -> Result<Vec<Crossing>> {
        let table = self.table(component)?;
        let run_of = run_numbers(route);
        let mut crossings = Vec::new();
        for (i, section) in table.iter().enumerate() {
            if i + 1 < table.len() && route[i] != route[i + 1] {
                let (from, to, run) = (route[i], route[i + 1], run_of[i + 1]);
                crossings.push(Crossing { from, to, run, skip: false, bytes: section.out_bytes });
            }
            for &(taker, bytes) in &section.skips {
                if route[i] != route[taker] {
                    crossings.push(Crossing {
                        from: route[i],
                        to: route[taker],
                        run: run_of[taker],
                        skip: true,
                        bytes,
                    });
                }
            }
        }
        Ok(crossings)
    }

    /// A stretch for each run of sections on one device.
    fn pieces(
        &self,
        component: Component,
        route: &[DeviceId],
        seconds: &dyn Fn(DeviceId) -> f64,
    ) -> Result<Vec<Stretch>> {
        let table = self.table(component)?;
        let share = |sections: &[usize], id: DeviceId| -> f64 {
            let kind = self.kind_in_table(id);
            sections.iter().map(|&section| table[section].needs[kind].seconds).sum()
        };
        let moved = self.moved(component, route)?;
        let runs = runs(route);
        let stretch = |(run, moved): (&(DeviceId, Vec<usize>), f64)| {
            let (id, sections) = run;
            // A device may have several runs: what it does is theirs in proportion.
            let all: Vec<usize> = runs.iter().filter(|(other, _)| other == id).flat_map(|(_, s)| s.clone()).collect();
            let part = share(sections, *id) / share(&all, *id).max(f64::MIN_POSITIVE);
            let busy = seconds(*id) * part;
            Stretch { work: vec![(self.index(*id), busy)], seconds: busy + moved }
        };
        Ok(runs.iter().zip(moved).map(stretch).collect())
    }
}

/// Something that crosses from device to device in one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    /// Made here.
    pub from: DeviceId,
    /// Taken there.
    pub to: DeviceId,
    /// The run of sections that takes it.
    pub run: usize,
    /// Whether it passes by the sections between.
    pub skip: bool,
    /// Its bytes.
    pub bytes: u64,
}

/// The runs of sections on one device, in order.
fn runs(route: &[DeviceId]) -> Vec<(DeviceId, Vec<usize>)> {
    let mut runs: Vec<(DeviceId, Vec<usize>)> = Vec::new();
    for (section, &id) in route.iter().enumerate() {
        match runs.last_mut() {
            Some((last, sections)) if *last == id => sections.push(section),
            _ => runs.push((id, vec![section])),
        }
    }
    runs
}

/// For each section the number of its run.
fn run_numbers(route: &[DeviceId]) -> Vec<usize> {
    let runs = runs(route);
    runs.iter().enumerate().flat_map(|(number, (_, sections))| vec![number; sections.len()]).collect()
}

/// So many devices like `info`.
fn alike(info: &DeviceInfo, count: usize) -> Vec<DeviceInfo> {
    (0..count).map(|i| DeviceInfo { id: DeviceId::new(info.id.kind, i), ..info.clone() }).collect()
}

/// What each section needs of a kind of device: every one runs on a device of its own.
fn needs(
    spec: &ModelSpec,
    largest: &Largest,
    info: &DeviceInfo,
    component: Component,
    count: usize,
) -> Result<Vec<Needs>> {
    let devices = alike(info, count);
    let trial = Trial::new(spec, &devices, largest)?;
    let costs = trial.cost(component, &Place::Route(devices.iter().map(|device| device.id).collect()))?;
    let needs = |(_, cost): (DeviceId, Cost)| Needs {
        weight_bytes: cost.weight_bytes,
        keep_bytes: cost.keep_bytes,
        activation_bytes: cost.activation_bytes,
        seconds: cost.seconds,
    };
    Ok(costs.into_iter().map(needs).collect())
}

/// Bytes that cross each border in one call: what a cut there reads and writes beyond what the whole does.
fn crossing(
    spec: &ModelSpec,
    largest: &Largest,
    info: &DeviceInfo,
    component: Component,
    count: usize,
) -> Result<Vec<u64>> {
    // On such devices a byte takes a second.
    let rates = Rates { flops: f64::INFINITY, bandwidth: 1.0, link: 1.0 };
    let devices = alike(&DeviceInfo { rates, ..info.clone() }, 2);
    let trial = Trial::new(spec, &devices, largest)?;
    let bytes = |border: usize| -> Result<f64> {
        let route = (0..count).map(|section| devices[usize::from(section >= border)].id).collect();
        Ok(trial.cost(component, &Place::Route(route))?.iter().map(|(_, cost)| cost.seconds).sum())
    };
    let whole = bytes(count)?;
    (1..count).map(|border| Ok(((bytes(border)? - whole) / 2.0).max(0.0) as u64)).collect()
}
