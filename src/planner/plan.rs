//! The plan: which device holds what, in bytes, before a weight is read.
//!
//! The sizes are not estimates. The real model code runs on devices without data, and the arenas that it fills there
//! are those that it fills later, byte for byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    Cost, Located,
    device_map::{self, DeviceFacts, DeviceMap, InFlight, Numerics, Strategy},
    diffusers, hardware,
    size::format_bytes,
    strategies::{self, ComponentSize, DeviceBudget},
    trial::{Largest, Trial},
};
use crate::{
    backend::{DType, DeviceId, DeviceInfo, DeviceKind, device::class_in},
    error::{Error, Result},
    models::spec::ModelSpec,
    pipeline::{
        Component, PerComponent,
        model::sections,
        placement::{Place, Placement, Reside, Sections},
    },
};

/// Where one replica's components run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaPlan {
    /// The places of each component.
    pub placement: Placement<DeviceId>,
    /// Requests that it works on at once.
    pub in_flight: usize,
    /// Requests that go through the UNet in one call, at most.
    pub batch: usize,
    /// What each request under way keeps on which device, in bytes.
    pub keep_bytes: Vec<(DeviceId, u64)>,
    /// The arena that each of them works in on the devices of a cut UNet, in bytes; none where a request has these devices
    /// for itself.
    pub lane_bytes: Vec<(DeviceId, u64)>,
}

/// What one device holds.
#[derive(Debug, Clone, PartialEq)]
pub struct DevicePlan {
    /// The device.
    pub id: DeviceId,
    /// Its numerics class.
    pub class: String,
    /// The cores that the map names for it, if it does.
    pub cores: Option<Vec<usize>>,
    /// The most it may hold, in bytes.
    pub budget_bytes: u64,
    /// What a process occupies there before it holds anything, in bytes: the driver's context and the kernels.
    pub overhead_bytes: u64,
    /// Components that run on it, at least in part.
    pub components: Vec<Component>,
    /// Their packed weights that stay, in bytes.
    pub weight_bytes: u64,
    /// The most that weights from elsewhere occupy at one time, in bytes.
    pub visitor_bytes: u64,
    /// The transient arena, in bytes.
    pub activation_bytes: u64,
    /// The arenas of all requests in flight, in bytes: what they keep, and what they work in on the devices of a cut UNet.
    pub keep_bytes: u64,
}

impl DevicePlan {
    /// All of it, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.overhead_bytes + self.weight_bytes + self.visitor_bytes + self.activation_bytes + self.keep_bytes
    }
}

/// A device map resolved for one model, one largest request and one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What it is made for.
    pub largest: Largest,
    /// What each component needs, whole and on one device.
    pub costs: PerComponent<Cost>,
    /// The type of each component's weights, on the first of its devices.
    pub dtypes: PerComponent<DType>,
    /// Whole pipelines side by side.
    pub replicas: Vec<ReplicaPlan>,
    /// The devices that are used, in the map's order.
    pub devices: Vec<DevicePlan>,
    /// Bytes of weights in host memory, where `cpu:N` devices share them; `None` without such sharing.
    pub shared_weight_bytes: Option<u64>,
    /// Bytes of weights that rest in the host's memory and visit devices.
    pub host_weight_bytes: u64,
}

impl Plan {
    /// Resolves `map` on a machine that has `devices`, the preferred one first.
    ///
    /// # Errors
    /// If a device is not there, a type is not supported, something comes later, or something does not fit.
    pub fn resolve(map: &DeviceMap, spec: &ModelSpec, largest: &Largest, devices: &[DeviceInfo]) -> Result<Self> {
        map.check()?;
        check_served(map)?;
        for component in Component::ALL {
            map.check_borders(component.name(), &sections(component, spec))?;
        }
        let defaults: Vec<DeviceId> = devices.iter().map(|device| device.id).collect();
        let maps = map.replica_maps();
        let mut usable: Vec<DeviceId> = Vec::new();
        for id in maps.iter().map(|map| map.usable(&defaults)).collect::<Result<Vec<_>>>()?.concat() {
            if !usable.contains(&id) {
                usable.push(id);
            }
        }
        let infos = usable.iter().map(|&id| describe(map, id, &usable, devices)).collect::<Result<Vec<_>>>()?;

        let first = infos.first().ok_or_else(|| Error::input("there is no device to place the pipeline on"))?.id;
        let dtypes = PerComponent::try_new(|component| resolve_dtype(map, component, spec, &infos))?;
        let trial = Trial::new(spec, &infos, largest, dtypes)?;
        let costs = PerComponent::try_new(|component| trial.whole(component, first))?;
        let mut replicas = Vec::new();
        for map in &maps {
            let own = map.usable(&defaults)?;
            let infos: Vec<&DeviceInfo> = infos.iter().filter(|info| own.contains(&info.id)).collect();
            for placement in placements(map, &trial, &costs, &infos)? {
                let in_flight = match map.in_flight.value {
                    InFlight::Auto => auto_in_flight(&placement, &costs, trial.largest),
                    InFlight::Count(count) => count,
                };
                replicas.push((placement, in_flight, map.batch.value));
            }
        }
        // A limit of one replica's map holds for the device, whoever else uses it.
        let least = |info: &DeviceInfo| maps.iter().map(|map| budget(map, info)).min().unwrap_or(0);
        let budgets: Vec<u64> = infos.iter().map(least).collect();
        let plan = Self::assemble(&trial, costs, replicas, &infos, &budgets, &map.device)?;
        maps.iter().try_for_each(|map| plan.check_numerics(map))?;
        Ok(plan)
    }

    /// Refuses a plan in which devices of different numerics classes run the same component, if the map wants that.
    fn check_numerics(&self, map: &DeviceMap) -> Result<()> {
        if map.numerics.value == Numerics::Any {
            return Ok(());
        }
        for component in Component::ALL {
            let on = self.devices.iter().filter(|device| device.components.contains(&component));
            let classes: BTreeSet<&str> = on.map(|device| device.class.as_str()).collect();
            if classes.len() > 1 {
                return Err(map
                    .numerics
                    .refuse("numerics", format!("the {} has mixed numerics", component.name()))
                    .found(classes.into_iter().collect::<Vec<_>>().join(", "))
                    .hint("devices of one class for this component, or numerics = \"any\""));
            }
        }
        Ok(())
    }

    /// Adds up what the placements need.
    fn assemble(
        trial: &Trial,
        costs: PerComponent<Cost>,
        placements: Vec<(Placement<DeviceId>, usize, usize)>,
        infos: &[DeviceInfo],
        budgets: &[u64],
        facts: &BTreeMap<DeviceId, Located<DeviceFacts>>,
    ) -> Result<Self> {
        let mut devices: Vec<DevicePlan> = infos
            .iter()
            .zip(budgets)
            .map(|(info, &budget_bytes)| DevicePlan {
                id: info.id,
                class: info.class.clone(),
                cores: facts.get(&info.id).and_then(|facts| facts.value.cores.clone()).map(|cores| cores.value),
                budget_bytes,
                overhead_bytes: info.overhead_bytes,
                components: Vec::new(),
                weight_bytes: 0,
                visitor_bytes: 0,
                activation_bytes: 0,
                keep_bytes: 0,
            })
            .collect();
        // Places of one component on one device have their weights in common; visitors come one component at a time.
        let mut staying = BTreeMap::<(DeviceId, Component), u64>::new();
        let mut visiting = BTreeMap::<DeviceId, u64>::new();
        let mut resting = BTreeMap::<Component, u64>::new();
        let mut replicas = Vec::with_capacity(placements.len());
        for (placement, in_flight, batch) in placements {
            let (mut keep_bytes, mut lane_bytes) = (Vec::new(), Vec::new());
            for (component, places) in placement.iter() {
                for place in places {
                    let ran = trial.run(component, place, batch)?;
                    let host = resting.entry(component).or_default();
                    *host = ran.host_bytes.max(*host);
                    let passes = component == Component::Unet && place.is_cut() && in_flight > 1;
                    for &(id, cost) in &ran.costs {
                        let device = devices.iter_mut().find(|d| d.id == id).expect("a placement is on usable devices");
                        if !device.components.contains(&component) {
                            device.components.push(component);
                        }
                        if component == Component::Unet {
                            // Also where it keeps nothing: a request finds an arena on every device of the UNet.
                            at_least(&mut keep_bytes, id, cost.keep_bytes);
                        }
                        if passes {
                            at_least(&mut lane_bytes, id, cost.activation_bytes);
                        } else {
                            device.activation_bytes = device.activation_bytes.max(cost.activation_bytes);
                        }
                        let held = match place.visits() {
                            false => staying.entry((id, component)).or_default(),
                            true => visiting.entry(id).or_default(),
                        };
                        *held = cost.weight_bytes.max(*held);
                    }
                }
            }
            for (id, bytes) in keep_bytes.iter().chain(&lane_bytes) {
                let device = devices.iter_mut().find(|device| device.id == *id).expect("counted above");
                device.keep_bytes += bytes * in_flight as u64;
            }
            replicas.push(ReplicaPlan { placement, in_flight, batch, keep_bytes, lane_bytes });
        }
        for device in &mut devices {
            device.weight_bytes = staying.iter().filter(|((id, _), _)| *id == device.id).map(|(_, bytes)| bytes).sum();
            device.visitor_bytes = visiting.get(&device.id).copied().unwrap_or(0);
        }
        devices.retain(|device| !device.components.is_empty());
        for device in &mut devices {
            device.class = trial.info(device.components[0], device.id).class;
        }
        let dtypes = PerComponent::new(|component| {
            let first = replicas[0].placement.get(component)[0].devices()[0];
            trial.info(component, first).rules.dtype()
        });
        if let Some(device) = devices.iter().find(|device| device.total_bytes() > device.budget_bytes) {
            return Err(Error::input(format!(
                "the plan does not fit on {}: needs {}, {} may be used",
                device.id,
                format_bytes(device.total_bytes()),
                format_bytes(device.budget_bytes)
            ))
            .hint("another device for one of its components, or a smaller width and height"));
        }
        let on_cpu = |id: &DeviceId| id.kind == DeviceKind::Cpu;
        let sharing = devices.iter().filter(|device| on_cpu(&device.id)).count() > 1;
        let shared_weight_bytes = sharing.then(|| {
            let stays = |component: &Component| staying.keys().any(|(id, stays)| on_cpu(id) && stays == component);
            Component::ALL.iter().filter(|c| stays(c)).map(|c| costs.get(*c).weight_bytes).sum()
        });
        let host_weight_bytes = resting.values().sum();
        Ok(Self {
            largest: trial.largest.clone(),
            costs,
            dtypes,
            replicas,
            devices,
            shared_weight_bytes,
            host_weight_bytes,
        })
    }

    /// What the process should occupy in all: weights once, arenas of every device, in bytes.
    pub fn total_bytes(&self) -> u64 {
        let held = |device: &DevicePlan| match self.shared_weight_bytes {
            Some(_) if device.id.kind == DeviceKind::Cpu => device.total_bytes() - device.weight_bytes,
            _ => device.total_bytes(),
        };
        let held = self.devices.iter().map(held).sum::<u64>();
        held + self.shared_weight_bytes.unwrap_or(0) + self.host_weight_bytes
    }

    /// Where the weights of each component live, over all places and replicas, in the words of `hf_device_map`: the names
    /// of devices, `cpu` for the host's memory, or `disk`.
    pub fn homes(&self) -> BTreeMap<&'static str, Vec<String>> {
        let mut homes = BTreeMap::<_, Vec<String>>::new();
        for (component, places) in self.replicas.iter().flat_map(|replica| replica.placement.iter()) {
            let here = homes.entry(component.name()).or_default();
            for route in places.iter().flat_map(Place::routes) {
                let names = match route.reside {
                    Reside::Device => route.iter().map(ToString::to_string).collect(),
                    Reside::Host => vec![DeviceId::CPU.to_string()],
                    Reside::Disk => vec!["disk".to_string()],
                };
                for name in names {
                    if !here.contains(&name) {
                        here.push(name);
                    }
                }
            }
        }
        homes
    }

    /// The devices of each component, over all places and replicas.
    pub fn device_map(&self) -> BTreeMap<&'static str, Vec<DeviceId>> {
        let mut map = BTreeMap::<_, Vec<DeviceId>>::new();
        for replica in &self.replicas {
            for (component, places) in replica.placement.iter() {
                let devices = map.entry(component.name()).or_default();
                for device in places.iter().flat_map(Place::devices) {
                    if !devices.contains(&device) {
                        devices.push(device);
                    }
                }
            }
        }
        map
    }
}

/// Makes the entry of `id` as large as `bytes` at least.
fn at_least(entries: &mut Vec<(DeviceId, u64)>, id: DeviceId, bytes: u64) {
    match entries.iter_mut().find(|(known, _)| *known == id) {
        Some((_, known)) => *known = bytes.max(*known),
        None => entries.push((id, bytes)),
    }
}

/// What a map lets a device hold, in bytes. To `diffusers-balanced`, limits are what they are to diffusers: they guide
/// the weights, and what else the components need may lie beyond them.
fn budget(map: &DeviceMap, info: &DeviceInfo) -> u64 {
    if map.strategy.value == Strategy::DiffusersBalanced {
        return info.free_bytes;
    }
    map.max_memory.get(&info.id).map_or(info.free_bytes, |limit| info.free_bytes.min(limit.value))
}

/// The places of each replica that one map describes: what it names, and what its strategy makes of the rest.
fn placements(
    map: &DeviceMap,
    trial: &Trial,
    costs: &PerComponent<Cost>,
    infos: &[&DeviceInfo],
) -> Result<Vec<Placement<DeviceId>>> {
    if map.strategy.value == Strategy::DiffusersBalanced {
        let placed = diffusers::place(map, trial.spec, infos)?.into_iter();
        return Ok(placed.map(|places| PerComponent::new(|c| vec![places.get(c).clone()])).collect());
    }
    let named = PerComponent::try_new(|component| match map.components.get(component.name()) {
        None => Ok(None),
        Some(pool) => {
            let sections = sections(component, trial.spec);
            pool.value
                .iter()
                .map(|place| convert(component, pool, place, &sections))
                .collect::<Result<Vec<_>>>()
                .map(Some)
        }
    })?;
    let room = |info: &&DeviceInfo| budget(map, info).saturating_sub(info.overhead_bytes);
    let mut budgets: Vec<DeviceBudget> =
        infos.iter().map(|info| DeviceBudget { id: info.id, bytes: room(info) }).collect();
    // The strategy knows whole components on one device; what is placed otherwise only leaves it less room.
    let (mut sizes, mut wishes) = (Vec::new(), Vec::new());
    for (component, places) in named.iter() {
        let single = match places.as_deref() {
            None => None,
            Some([place]) if place.devices().len() == 1 && !place.visits() => Some(place.devices()[0]),
            Some(places) => {
                for (id, cost) in places.iter().map(|p| trial.cost(component, p)).collect::<Result<Vec<_>>>()?.concat()
                {
                    if let Some(budget) = budgets.iter_mut().find(|budget| budget.id == id) {
                        budget.bytes = budget.bytes.saturating_sub(cost.weight_bytes + cost.keep_bytes);
                    }
                }
                continue;
            }
        };
        let cost = costs.get(component);
        sizes.push(ComponentSize {
            name: component.name().to_string(),
            weight_bytes: cost.weight_bytes,
            activation_bytes: cost.activation_bytes,
            keep_bytes: cost.keep_bytes,
        });
        wishes.push(single);
    }
    if sizes.is_empty() {
        return Ok(vec![PerComponent::new(|component| named.get(component).clone().unwrap_or_default())]);
    }
    let placed = strategies::place_replicas(map.strategy.value, map.replicas.value, &sizes, &wishes, &budgets)?;
    let with_names = |devices: Vec<DeviceId>| {
        let mut placed = sizes.iter().map(|size| size.name.as_str()).zip(devices).collect::<BTreeMap<_, _>>();
        PerComponent::new(|component| match (named.get(component), placed.remove(component.name())) {
            (Some(places), _) => places.clone(),
            (None, device) => {
                let device = device.expect("a component that is not named is the strategy's");
                vec![Place::whole(device, sections(component, trial.spec).len())]
            }
        })
    };
    Ok(placed.into_iter().map(with_names).collect())
}

/// A place of a map as a device for each section.
fn convert(
    component: Component,
    pool: &Located<Vec<device_map::Place>>,
    place: &device_map::Place,
    sections: &[String],
) -> Result<Place<DeviceId>> {
    let route = |place: &device_map::Place| -> Result<Sections<DeviceId>> {
        let device = |section: &String| {
            place.device_at(section).map(|device| device.value).ok_or_else(|| {
                pool.refuse(&format!("components.{}", component.name()), format!("nothing says where {section} runs"))
                    .hint("\"\" = \"...\" among the shards is the device of the rest")
            })
        };
        // Neither form has two answers.
        let reside = place.resides().first().map_or(Reside::Device, |reside| reside.value);
        Ok(Sections { devices: sections.iter().map(device).collect::<Result<_>>()?, reside })
    };
    Ok(match place {
        device_map::Place::Guided { negative, positive } => {
            Place::Guided { negative: route(negative)?, positive: route(positive)? }
        }
        place => Place::Route(route(place)?),
    })
}

/// Requests that one replica should work on at once, so that none of its devices waits for work: one for each instance
/// of the slowest stage and one for each other stage that has devices of its own.
fn auto_in_flight(placement: &Placement<DeviceId>, costs: &PerComponent<Cost>, largest: &Largest) -> usize {
    let work = |component: Component| match component {
        Component::Unet => costs.unet.flops * largest.steps as f64,
        other => costs.get(other).flops,
    };
    let mut stages = Component::ALL;
    stages.sort_by(|a, b| work(*b).total_cmp(&work(*a)));
    let devices = |component: Component| placement.get(component).iter().flat_map(Place::devices).collect::<Vec<_>>();
    let mut taken = devices(stages[0]);
    let mut in_flight = placement.get(stages[0]).len();
    for stage in &stages[1..] {
        let own = devices(*stage);
        if own.iter().all(|device| !taken.contains(device)) {
            in_flight += 1;
            taken.extend(own);
        }
    }
    in_flight
}

/// Refuses what a map can say and this version does not do yet, so that no wish is passed over in silence.
///
/// # Errors
/// If there is such a wish; the message says what is possible.
pub fn check_served(map: &DeviceMap) -> Result<()> {
    for (id, facts) in &map.device {
        if let Some(adapter) = &facts.value.adapter {
            return Err(adapter
                .refuse(&format!("device.{id}.adapter"), "this version drives no wgpu adapter")
                .hint("leave out `adapter`; `sdshard devices` shows what sdshard finds by itself"));
        }
    }
    for map in [map.clone()].iter().chain(&map.replica_maps()) {
        strategies::check_served(&map.strategy)?;
    }
    Ok(())
}

/// The type of a component's weights; `None` is what suits each device: f16 for a GPU, f32 for the CPU. A decoder that
/// overflows f16 has f32 unless the map says otherwise.
fn resolve_dtype(
    map: &DeviceMap,
    component: Component,
    spec: &ModelSpec,
    infos: &[DeviceInfo],
) -> Result<Option<DType>> {
    let Some(asked) = map.dtype.of(component.name()) else {
        return Ok((component == Component::Vae && spec.vae.force_upcast).then_some(DType::F32));
    };
    match infos.iter().find(|info| info.in_type(Some(asked)).is_none()) {
        None => Ok(Some(asked)),
        Some(info) => Err(match info.id.kind {
            DeviceKind::Cpu => {
                Error::input(format!("dtype of the {}: the CPU has no {asked} kernels", component.name()))
                    .hint("dtype = \"auto\" or \"f32\"; weights stored as f16 or bf16 are read all the same")
            }
            _ => Error::input(format!("dtype of the {}: {} has no {asked} kernels", component.name(), info.id))
                .hint("dtype = \"auto\""),
        }),
    }
}

/// What is known of a device that the map may use: its share of the CPU, or the machine's own answer, and what the map
/// says of it.
fn describe(map: &DeviceMap, id: DeviceId, usable: &[DeviceId], devices: &[DeviceInfo]) -> Result<DeviceInfo> {
    let info = find(map, id, usable, devices)?;
    match map.device.get(&id) {
        Some(facts) => hardware::apply(info, &facts.value),
        None => Ok(info),
    }
}

fn find(map: &DeviceMap, id: DeviceId, usable: &[DeviceId], devices: &[DeviceInfo]) -> Result<DeviceInfo> {
    let cores = |id: &DeviceId| map.device.get(id).and_then(|facts| facts.value.cores.as_ref());
    if let Some(info) = devices.iter().find(|device| device.id == id) {
        return cores(&id).map_or_else(|| Ok(info.clone()), |cores| hardware::with_cores(info, cores));
    }
    if let (DeviceKind::Cpu, Some(_), Some(whole)) =
        (id.kind, id.index, devices.iter().find(|device| device.id == DeviceId::CPU))
    {
        let shares: Vec<DeviceId> = usable.iter().copied().filter(|id| id.kind == DeviceKind::Cpu).collect();
        let wishes: Vec<_> = shares.iter().map(cores).collect();
        return hardware::share(whole, id, &shares, &wishes);
    }
    let found: Vec<String> = devices.iter().map(|device| device.id.to_string()).collect();
    let component = map.placed_devices().find(|(_, device)| device.value == id);
    let listed = map.devices.iter().find(|device| device.value == id);
    let problem = format!("device \"{id}\" is not on this machine");
    let refused = match (component, listed) {
        (Some((key, device)), _) => device.refuse(&key, problem),
        (None, Some(device)) => device.refuse("devices", problem),
        (None, None) => Error::input(problem),
    };
    Err(refused.found(found.join(", ")).hint("`sdshard devices` lists what can be used"))
}

impl fmt::Display for Plan {
    /// A table for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = format_bytes;
        writeln!(
            f,
            "{:<13} {:<18} {:>10} {:>12} {:>10}  numerics",
            "component", "device", "weights", "activations", "GFLOP"
        )?;
        for (component, cost) in self.costs.iter() {
            let devices: Vec<String> = self.device_map()[component.name()].iter().map(ToString::to_string).collect();
            let class = self.devices.iter().find(|device| device.components.contains(&component));
            writeln!(
                f,
                "{:<13} {:<18} {:>10} {:>12} {:>10.1}  {}",
                component.name(),
                devices.join(", "),
                bytes(cost.weight_bytes),
                bytes(cost.activation_bytes + cost.keep_bytes),
                cost.flops / 1e9,
                class.map_or_else(String::new, |device| class_in(&device.class, *self.dtypes.get(component))),
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<13} {:>10} {:>12} {:>10} {:>10} {:>10}",
            "device", "weights", "activations", "kept", "in all", "of"
        )?;
        for device in &self.devices {
            writeln!(
                f,
                "{:<13} {:>10} {:>12} {:>10} {:>10} {:>10}",
                device.id.to_string(),
                bytes(device.weight_bytes),
                bytes(device.activation_bytes),
                bytes(device.keep_bytes),
                bytes(device.total_bytes()),
                bytes(device.budget_bytes),
            )?;
        }
        for overhead in self.devices.iter().map(|device| device.overhead_bytes).collect::<BTreeSet<_>>() {
            let with = self.devices.iter().filter(|device| device.overhead_bytes == overhead);
            let names: Vec<String> = with.map(|device| device.id.to_string()).collect();
            if overhead > 0 {
                let names = names.join(", ");
                writeln!(
                    f,
                    "{names:<13} {:>10}  of the sum are the driver's: its context and kernels",
                    bytes(overhead)
                )?;
            }
        }
        if let Some(shared) = self.shared_weight_bytes {
            writeln!(
                f,
                "{:<13} {:>10}  one copy of the weights in host memory, for all of cpu:N",
                "cpu",
                bytes(shared)
            )?;
        }
        let mut replicas = match self.replicas.len() {
            1 => "1 replica".to_string(),
            n => format!("{n} replicas"),
        };
        if let Some(most) = self.replicas.iter().map(|replica| replica.in_flight).max().filter(|most| *most > 1) {
            replicas += &format!(", {most} requests in flight");
        }
        write!(
            f,
            "\n{replicas}; pictures up to {}x{}{}; {} in all",
            self.largest.width,
            self.largest.height,
            match self.largest.also.len() {
                0 => String::new(),
                n => format!(" and {n} other sizes"),
            },
            bytes(self.total_bytes())
        )
    }
}
