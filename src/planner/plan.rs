//! The plan: which device runs and holds what, with all bytes and times, before any weight is read.
//!
//! The sizes are exact. The real model code runs on devices without data, and fills the same arenas as in a real run,
//! byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    Cost,
    choose::choose,
    diagnose::diagnose,
    edges::edges,
    effort::Effort,
    largest::Largest,
    layout::{Costs, Layout},
    machine::{budget, describe, resolve_dtype},
    predict::Load,
    problem::Chosen,
    trial::Trial,
    tuning::Tuning,
    words::device_list,
};
pub use super::{edges::Edge, problem::Rejected};
use crate::{
    backend::{DeviceId, DeviceInfo, DeviceKind, NumericsClass, Precision},
    device_map::{DeviceFacts, DeviceMap, Located, Numerics, size::format_bytes},
    error::{Error, Result},
    models::{
        component::{ComponentId, PerComponent, Stage},
        spec::ModelSpec,
    },
    pipeline::{
        placement::{Place, Placement, Reside, Sections, each_once},
        request::Request,
    },
};

/// The places of one replica's components.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReplicaPlan {
    /// The places of each component.
    pub placement: Placement<DeviceId>,
    /// The number of requests in flight.
    pub in_flight: usize,
    /// The largest number of requests in one call of the UNet.
    pub batch: usize,
    /// The persistent arena of each request in flight on each device of the denoiser, in bytes.
    pub keep_bytes: Vec<(DeviceId, u64)>,
    /// The request scratch of each request on the devices of a cut UNet, in bytes; empty if requests do not share
    /// these.
    #[serde(rename = "lane_bytes")]
    pub scratch_bytes: Vec<(DeviceId, u64)>,
}

/// The bytes that one device holds. `sdshard plan --json` prints this.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DevicePlan {
    /// The device.
    #[serde(rename = "name")]
    pub id: DeviceId,
    /// The numerics class of the device.
    #[serde(rename = "numerics")]
    pub class: NumericsClass,
    /// The cores of a CPU device: those that the map names, or else its share, even if no other share is used.
    #[serde(skip)]
    pub cores: Option<Vec<usize>>,
    /// The adapter that the map names for the device, if any.
    #[serde(skip)]
    pub adapter: Option<usize>,
    /// The components that run on the device, at least in part.
    pub components: Vec<ComponentId>,
    /// The bytes that the device may hold.
    pub budget_bytes: u64,
    /// The bytes that a process occupies before it loads anything: the driver's context and the kernels.
    pub overhead_bytes: u64,
    /// The packed weights that stay on the device, in bytes.
    pub weight_bytes: u64,
    /// The transient arena, in bytes.
    pub activation_bytes: u64,
    /// The persistent arenas, and the request scratch on devices of a cut UNet, of all requests in flight, in bytes.
    pub keep_bytes: u64,
    /// The largest number of bytes of offloaded weights that are on the device at one time.
    pub visitor_bytes: u64,
    /// The share of time in which the device is idle while requests wait.
    pub idle_share: f64,
    /// The data type of each component on this device.
    #[serde(skip)]
    pub dtypes: PerComponent<Precision>,
}

impl DevicePlan {
    /// The numerics class of a component on this device.
    pub fn class_of(&self, component: ComponentId) -> NumericsClass {
        self.class.in_type(self.dtypes[component])
    }

    /// The sum of all bytes.
    pub fn total_bytes(&self) -> u64 {
        self.overhead_bytes + self.weight_bytes + self.visitor_bytes + self.activation_bytes + self.keep_bytes
    }
}

/// A component of the model in a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ComponentPlan {
    /// The name in device maps.
    pub name: String,
    /// The stage of a request in which the component works.
    pub stage: Stage,
    /// The cost of the whole component on the first device that the map may use.
    pub cost: Cost,
    /// The data type of the component on the first of its devices.
    pub dtype: Precision,
    /// The seconds for one image that never waits.
    pub seconds: f64,
}

/// A device map resolved for one model, one largest request and one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The largest request that the plan is made for.
    pub largest: Largest,
    /// The components of the model.
    pub components: PerComponent<ComponentPlan>,
    /// The replicas.
    pub replicas: Vec<ReplicaPlan>,
    /// The devices that are used, in the map's order.
    pub devices: Vec<DevicePlan>,
    /// The bytes of weights in host memory that several CPU devices share; `None` if at most one CPU device is used.
    pub shared_weight_bytes: Option<u64>,
    /// The bytes of weights that are offloaded to host memory.
    pub host_weight_bytes: u64,
    /// The seconds of one image alone.
    pub seconds_per_image: f64,
    /// Images per second while the queue is never empty.
    pub images_per_second: f64,
    /// The transfers between devices.
    pub edges: Vec<Edge>,
    /// The reasons for the places, one sentence each.
    pub reasons: Vec<String>,
    /// The best of the plans that were not chosen.
    pub rejected: Vec<Rejected>,
    /// The GPUs of the machine that no component uses.
    pub idle: Vec<DeviceId>,
    /// The input of predictions; its devices are indices of [`Plan::devices`].
    #[serde(skip)]
    pub load: Load,
}

impl Plan {
    /// Whether a request fits the plan, so that it may be queued.
    ///
    /// # Errors
    /// If the request is larger than every planned size, has guidance where none was planned, or a solver that keeps
    /// more past estimates.
    pub fn admits(&self, request: &Request, spec: &ModelSpec) -> Result<()> {
        self.largest.admits(request, spec)
    }

    /// The component with this name.
    pub fn component(&self, name: &str) -> Option<ComponentId> {
        self.components.iter().find(|(_, component)| component.name == name).map(|(id, _)| id)
    }

    /// The denoiser.
    fn denoiser(&self) -> ComponentId {
        let denoiser = self.components.iter().find(|(_, component)| component.stage == Stage::Denoise);
        denoiser.expect("every model has a denoiser").0
    }

    /// The data types of the denoiser on the devices of each place that a request may use, with guidance or without.
    pub fn denoiser_dtypes(&self, guided: bool) -> Vec<Vec<Precision>> {
        let denoiser = self.denoiser();
        let dtype =
            |id: &DeviceId| self.devices.iter().find(|device| device.id == *id).map(|device| device.dtypes[denoiser]);
        let places = self.replicas.iter().flat_map(|replica| &replica.placement[denoiser]);
        let dtypes = places.map(|place| match place {
            Place::Guided { positive, .. } if !guided => each_once(positive.iter().filter_map(dtype)),
            place => each_once(place.devices().iter().filter_map(dtype)),
        });
        each_once(dtypes)
    }

    /// Resolves `map` on a machine that has `devices`, the preferred one first.
    ///
    /// # Errors
    /// If a device does not exist, a type is not supported, the map is invalid for the model, or something does not
    /// fit.
    pub fn resolve(map: &DeviceMap, spec: &ModelSpec, largest: &Largest, devices: &[DeviceInfo]) -> Result<Self> {
        let defaults: Vec<DeviceId> =
            devices.iter().filter(|device| !device.only_named).map(|device| device.id).collect();
        let (map, effort) = (&map.on_machine(&defaults)?, Effort::new());
        let resolve = |map: &DeviceMap| Self::resolve_unrelaxed(map, spec, largest, devices, &defaults, &effort);
        resolve(map).map_err(|error| {
            diagnose(map, error, |other| {
                // The whole diagnosis may use as many steps as one search.
                effort.begin(Tuning::MAX_DIAGNOSED_ENTRIES as u64);
                resolve(other).map(drop)
            })
        })
    }

    fn resolve_unrelaxed(
        map: &DeviceMap,
        spec: &ModelSpec,
        largest: &Largest,
        devices: &[DeviceInfo],
        defaults: &[DeviceId],
        effort: &Effort,
    ) -> Result<Self> {
        map.check()?;
        map.check_model(spec)?;
        let maps = map.replica_maps();
        let usable = map.usable(defaults)?;
        let infos = usable.iter().map(|&id| describe(map, id, &usable, devices)).collect::<Result<Vec<_>>>()?;
        let first = infos.first().ok_or_else(|| Error::input("there is no device to place the pipeline on"))?.id;
        let dtypes = spec.components.try_map(|_, component| resolve_dtype(map, component, &infos))?;
        let trial = Trial::new(spec, &infos, largest, dtypes, effort)?;
        let host = devices.iter().find(|device| device.id == DeviceId::CPU);
        let costs = Costs::new(&trial, host.map(|host| host.free_bytes))?;
        let (mut layouts, mut reasons, mut rejected) = (Vec::new(), Reasons::default(), Vec::new());
        for &map in &maps {
            let mut own_devices = map.usable(defaults)?;
            own_devices.retain(|id| infos.iter().any(|info| info.id == *id));
            let usable_bytes = |info: &DeviceInfo| budget(map, info).saturating_sub(info.overhead_bytes);
            let chosen = choose(map, &costs, &own_devices, &infos.iter().map(usable_bytes).collect::<Vec<_>>())?;
            reasons.add(map, &costs, &chosen);
            for one in chosen.rejected {
                if !rejected.contains(&one) {
                    rejected.push(one);
                }
            }
            layouts.extend(chosen.layouts);
        }
        // The limit in one replica's map applies to the device, even if other replicas use it too.
        let min_budget = |info: &DeviceInfo| maps.iter().map(|map| budget(map, info)).min().unwrap_or(0);
        let budgets: Vec<u64> = infos.iter().map(min_budget).collect();
        let mut plan = Self::assemble(&costs, first, &layouts, &budgets, &map.device)?;
        (plan.reasons, plan.rejected) = (reasons.sentences(spec), rejected);
        plan.reasons.extend(plan.reasons_for_f32(map, spec));
        let is_idle =
            |id: &&DeviceId| id.kind != DeviceKind::Cpu && plan.devices.iter().all(|device| device.id != **id);
        plan.idle = defaults.iter().filter(is_idle).copied().collect();
        maps.iter().try_for_each(|map| plan.check_numerics(map))?;
        plan.check_host(devices)?;
        Ok(plan)
    }

    /// Rejects a plan whose offloaded weights do not fit in host memory together with the bytes of CPU devices. On a
    /// described machine without a CPU, the host memory is not known and not checked.
    fn check_host(&self, devices: &[DeviceInfo]) -> Result<()> {
        let Some(host) = devices.iter().find(|device| device.id == DeviceId::CPU) else { return Ok(()) };
        let on_cpu = self.devices.iter().filter(|device| device.id.kind == DeviceKind::Cpu);
        let needed = self.host_weight_bytes + on_cpu.map(|device| self.held_bytes(device)).sum::<u64>();
        let needed = needed + self.shared_weight_bytes.unwrap_or(0);
        if self.host_weight_bytes == 0 || needed <= host.free_bytes {
            return Ok(());
        }
        let (needed, rest) = (format_bytes(needed), format_bytes(self.host_weight_bytes));
        Err(Error::input(format!(
            "the plan does not fit in the host's memory: needs {needed}, {rest} of it for weights"
        ))
        .found(format!("{} may be used", format_bytes(host.free_bytes)))
        .hint("reside = \"disk\" for a component"))
    }

    /// Rejects a plan in which devices of several numerics classes run the same component, if the map requires one.
    fn check_numerics(&self, map: &DeviceMap) -> Result<()> {
        if map.numerics.value == Numerics::Any {
            return Ok(());
        }
        for (id, component) in self.components.iter() {
            let classes = self.classes(id);
            if classes.len() > 1 {
                return Err(map
                    .numerics
                    .refuse("numerics", format!("the {} has mixed numerics", component.name))
                    .found(classes.join(", "))
                    .hint("devices of one class for this component, or numerics = \"any\""));
            }
        }
        Ok(())
    }

    /// Makes the plan of these layouts: adds up their bytes and predicts their times.
    fn assemble(
        costs: &Costs,
        first: DeviceId,
        layouts: &[Layout],
        budgets: &[u64],
        facts: &BTreeMap<DeviceId, Located<DeviceFacts>>,
    ) -> Result<Self> {
        let trial = costs.trial;
        let cores = |info: &DeviceInfo| {
            let named = facts.get(&info.id).is_some_and(|facts| facts.value.cores.is_some());
            let bound = info.id.kind == DeviceKind::Cpu && (named || info.id.index.is_some());
            bound.then(|| info.allowed_cores.clone())
        };
        let mut load = costs.load(layouts)?;
        let prediction = load.predict(Tuning::PREDICTED_REQUESTS);
        let held = costs.held(layouts)?.into_iter().zip(&prediction.idle_share);
        let mut devices: Vec<DevicePlan> = (trial.devices.iter().zip(budgets).zip(held))
            .map(|((info, &budget_bytes), (held, &idle_share))| DevicePlan {
                id: info.id,
                class: info.class.clone(),
                cores: cores(info),
                adapter: facts
                    .get(&info.id)
                    .and_then(|facts| facts.value.adapter.as_ref())
                    .map(|adapter| adapter.value),
                budget_bytes,
                overhead_bytes: info.overhead_bytes,
                components: Vec::new(),
                weight_bytes: held.weight_bytes,
                visitor_bytes: held.offloaded_bytes,
                activation_bytes: held.activation_bytes,
                keep_bytes: held.keep_bytes,
                idle_share,
                dtypes: trial.dtypes.map(|component, _| trial.dtype(component, info.id)),
            })
            .collect();
        let mut host_weights = BTreeMap::<ComponentId, u64>::new();
        let mut replicas = Vec::with_capacity(layouts.len());
        for layout in layouts {
            for (component, places) in layout.placement.iter() {
                for place in places {
                    let host = host_weights.entry(component).or_default();
                    *host = costs.host_bytes(component, place, layout.batch)?.max(*host);
                }
                for id in layout.devices_of(component) {
                    let components = &mut devices[costs.index(id)].components;
                    if !components.contains(&component) {
                        components.push(component);
                    }
                }
            }
            let (keep_bytes, scratch_bytes) = costs.request_arenas(layout)?;
            let Layout { placement, in_flight, batch } = layout.clone();
            replicas.push(ReplicaPlan { placement, in_flight, batch, keep_bytes, scratch_bytes });
        }
        load.keep_devices(&devices.iter().map(|device| !device.components.is_empty()).collect::<Vec<_>>());
        devices.retain(|device| !device.components.is_empty());
        for device in &mut devices {
            device.class = trial.info(device.components[0], device.id).class;
        }
        if let Some(device) = devices.iter().find(|device| device.total_bytes() > device.budget_bytes) {
            return Err(Error::input(format!(
                "the plan does not fit on {}: needs {}, {} may be used",
                device.id,
                format_bytes(device.total_bytes()),
                format_bytes(device.budget_bytes)
            ))
            .hint("another device for one of its components, or a smaller width and height"));
        }
        let alone = costs.load(&[Layout { batch: 1, ..layouts[0].clone() }])?;
        let components = trial.spec.components.try_map(|id, component| {
            let first_device = replicas[0].placement[id][0].devices()[0];
            Ok(ComponentPlan {
                name: component.name.clone(),
                stage: component.stage(),
                cost: costs.whole(id, first)?,
                dtype: trial.dtype(id, first_device),
                seconds: alone.replicas[0].stations[id.index()].instances[0].seconds(),
            })
        })?;
        // All shares of the CPU use one copy of the weights.
        let on_cpu = |id: &DeviceId| id.kind == DeviceKind::Cpu;
        let sharing = devices.iter().filter(|device| on_cpu(&device.id)).count() > 1;
        let shared_weight_bytes = sharing.then(|| {
            let stays = |component: ComponentId| {
                let places = layouts.iter().flat_map(|layout| &layout.placement[component]);
                places.filter(|place| !place.is_offloaded()).flat_map(Place::devices).any(|id| on_cpu(&id))
            };
            let staying = components.iter().filter(|(id, _)| stays(*id));
            staying.map(|(_, component)| component.cost.weight_bytes).sum()
        });
        Ok(Self {
            largest: trial.largest.clone(),
            seconds_per_image: components.iter().map(|(_, component)| component.seconds).sum(),
            components,
            replicas,
            devices,
            shared_weight_bytes,
            host_weight_bytes: host_weights.values().sum(),
            images_per_second: prediction.images_per_second,
            edges: edges(costs, layouts)?,
            reasons: Vec::new(),
            rejected: Vec::new(),
            idle: Vec::new(),
            load,
        })
    }

    /// The numerics classes of a component on all of its devices.
    pub fn classes(&self, component: ComponentId) -> Vec<String> {
        let on = self.devices.iter().filter(|device| device.components.contains(&component));
        each_once(on.map(|device| device.class_of(component).to_string()))
    }

    /// The components that run on devices of several numerics classes.
    pub fn mixed(&self) -> Vec<&str> {
        let mixed = self.components.iter().filter(|(id, _)| self.classes(*id).len() > 1);
        mixed.map(|(_, component)| component.name.as_str()).collect()
    }

    /// Warnings for users who do not look at the plan: mixed numerics classes and idle GPUs.
    pub fn warnings(&self) -> Vec<String> {
        let mixed = self.mixed().join(" and ");
        let idle = device_list(&self.idle);
        let mixed = (!mixed.is_empty())
            .then(|| format!("mixed numerics: a picture's last bits depend on which device runs its {mixed}"));
        mixed.into_iter().chain((!idle.is_empty()).then(|| format!("left idle: {idle}"))).collect()
    }

    /// The predicted seconds for all pictures that the plan is made for.
    pub fn seconds_in_all(&self) -> f64 {
        self.seconds_for(self.largest.images)
    }

    /// The predicted seconds for `images` that are requested at the same time.
    pub fn seconds_for(&self, images: usize) -> f64 {
        self.load.seconds_for(images)
    }

    /// The bytes that the process should occupy in total: shared weights once, and the arenas of every device.
    pub fn total_bytes(&self) -> u64 {
        let held = self.devices.iter().map(|device| self.held_bytes(device)).sum::<u64>();
        held + self.shared_weight_bytes.unwrap_or(0) + self.host_weight_bytes
    }

    /// The bytes of a device without weights that CPU devices share.
    fn held_bytes(&self, device: &DevicePlan) -> u64 {
        match self.shared_weight_bytes {
            Some(_) if device.id.kind == DeviceKind::Cpu => device.total_bytes() - device.weight_bytes,
            _ => device.total_bytes(),
        }
    }

    /// The residence of the weights of each component, over all places and replicas, in the words of `hf_device_map`:
    /// the names of devices, `cpu` for host memory, or `disk`.
    pub fn homes(&self) -> BTreeMap<String, Vec<String>> {
        let homes_of_route = |route: &Sections<DeviceId>| match route.reside {
            Reside::Device => route.iter().map(ToString::to_string).collect(),
            Reside::Host => vec![DeviceId::CPU.to_string()],
            Reside::Disk => vec!["disk".to_string()],
        };
        self.list_by_component(|place| place.routes().into_iter().flat_map(homes_of_route).collect())
    }

    /// The devices of each component, over all places and replicas.
    pub fn device_map(&self) -> BTreeMap<String, Vec<DeviceId>> {
        self.list_by_component(Place::devices)
    }

    /// A sentence for each component that a GPU computes in f32 although the map leaves the type open.
    fn reasons_for_f32(&self, map: &DeviceMap, spec: &ModelSpec) -> Vec<String> {
        let placed = self.device_map();
        let on_gpu = |name: &str| placed[name].iter().any(|id| id.kind != DeviceKind::Cpu);
        let is_auto = |name: &str| map.dtype.of(name).value.is_none();
        let components = spec.components.iter().map(|(_, component)| component);
        let upcast = components.filter(|it| it.network.overflows_f16() && is_auto(&it.name) && on_gpu(&it.name));
        upcast
            .map(|component| format!("{} in f32: its config says that it overflows f16 (force_upcast)", component.name))
            .collect()
    }

    /// Collects the values of `list` over all places of each component, each once.
    fn list_by_component<T: PartialEq>(&self, list: impl Fn(&Place<DeviceId>) -> Vec<T>) -> BTreeMap<String, Vec<T>> {
        let entry = |(id, component): (ComponentId, &ComponentPlan)| {
            let places = self.replicas.iter().flat_map(|replica| &replica.placement[id]);
            (component.name.clone(), each_once(places.flat_map(&list)))
        };
        self.components.iter().map(entry).collect()
    }
}

/// The reasons for the places of components. Replicas with the same reason share one entry.
#[derive(Default)]
struct Reasons(Vec<(ComponentId, String, Vec<DeviceId>)>);

impl Reasons {
    fn add(&mut self, map: &DeviceMap, costs: &Costs, chosen: &Chosen) {
        for layout in &chosen.layouts {
            for component in costs.components() {
                let reason = match map.places_of(costs.name(component)) {
                    Some(_) => "named in the map",
                    None => &chosen.reason,
                };
                let devices = layout.devices_of(component);
                match self.0.iter_mut().find(|(c, known, _)| *c == component && known == reason) {
                    Some((.., known)) => known.extend(devices),
                    None => self.0.push((component, reason.to_string(), devices)),
                }
            }
        }
    }

    fn sentences(self, spec: &ModelSpec) -> Vec<String> {
        let sentence = |(component, reason, mut devices): (ComponentId, String, Vec<DeviceId>)| {
            let mut seen = BTreeSet::new();
            devices.retain(|id| seen.insert(*id));
            format!("{} on {}: {reason}", spec.components[component].name, device_list(&devices))
        };
        self.0.into_iter().map(sentence).collect()
    }
}
