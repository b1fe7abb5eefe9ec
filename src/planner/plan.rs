//! The plan: which device holds what, in bytes, before a weight is read.
//!
//! The sizes are not estimates. The real model code runs on devices without data, and the arenas that it fills there
//! are those that it fills later, byte for byte.

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
    machine::{budget, describe, leave_out_cpu_without_types, resolve_dtype},
    predict::Load,
    problem::Chosen,
    trial::Trial,
    tuning::Tuning,
    words::device_list,
};
pub use super::{edges::Edge, problem::Rejected};
use crate::{
    backend::{DType, DeviceId, DeviceInfo, DeviceKind, NumericsClass},
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

/// Where one replica's components run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReplicaPlan {
    /// The places of each component.
    pub placement: Placement<DeviceId>,
    /// Requests that it works on at once.
    pub in_flight: usize,
    /// Requests that go through the UNet in one call, at most.
    pub batch: usize,
    /// What each request under way keeps on which device, in bytes.
    pub keep_bytes: Vec<(DeviceId, u64)>,
    /// The request scratch of each request on the devices of a cut UNet, in bytes; empty if a request has these devices
    /// for itself.
    #[serde(rename = "lane_bytes")]
    pub scratch_bytes: Vec<(DeviceId, u64)>,
}

/// What one device holds. As JSON it is what `sdshard plan --json` says of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DevicePlan {
    /// The device.
    #[serde(rename = "name")]
    pub id: DeviceId,
    /// Its numerics class.
    #[serde(rename = "numerics")]
    pub class: NumericsClass,
    /// Its cores: those that the map names, or for a share of the CPU its part, whether or not the other shares are used.
    #[serde(skip)]
    pub cores: Option<Vec<usize>>,
    /// The adapter that the map names for it, if it does.
    #[serde(skip)]
    pub adapter: Option<usize>,
    /// Components that run on it, at least in part.
    pub components: Vec<ComponentId>,
    /// The most it may hold, in bytes.
    pub budget_bytes: u64,
    /// What a process occupies there before it holds anything, in bytes: the driver's context and the kernels.
    pub overhead_bytes: u64,
    /// The components' packed weights that stay, in bytes.
    pub weight_bytes: u64,
    /// The transient arena, in bytes.
    pub activation_bytes: u64,
    /// The arenas of all requests in flight, in bytes: what they keep, and what they work in on the devices of a cut UNet.
    pub keep_bytes: u64,
    /// The most that weights from elsewhere occupy at one time, in bytes.
    pub visitor_bytes: u64,
    /// The part of the time in which it has nothing to do, while requests wait.
    pub idle_share: f64,
    /// The type in which it computes each component, if it runs it.
    #[serde(skip)]
    pub dtypes: PerComponent<DType>,
}

impl DevicePlan {
    /// The numerics class in which it runs a component.
    pub fn class_of(&self, component: ComponentId) -> NumericsClass {
        self.class.in_type(self.dtypes[component])
    }

    /// All of it, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.overhead_bytes + self.weight_bytes + self.visitor_bytes + self.activation_bytes + self.keep_bytes
    }
}

/// A component of the model that is planned for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ComponentPlan {
    /// Its name in device maps.
    pub name: String,
    /// What it does for a request.
    pub stage: Stage,
    /// What it needs, whole and on one device.
    pub cost: Cost,
    /// The type in which it is computed, on the first of its devices.
    pub dtype: DType,
    /// How long it takes for one image that never waits, in seconds.
    pub seconds: f64,
}

/// A device map resolved for one model, one largest request and one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// What it is made for.
    pub largest: Largest,
    /// The components of the model.
    pub components: PerComponent<ComponentPlan>,
    /// Whole pipelines side by side.
    pub replicas: Vec<ReplicaPlan>,
    /// The devices that are used, in the map's order.
    pub devices: Vec<DevicePlan>,
    /// Bytes of weights in host memory, where `cpu:N` devices share them; `None` without such sharing.
    pub shared_weight_bytes: Option<u64>,
    /// Bytes of weights that are offloaded to the host's memory.
    pub host_weight_bytes: u64,
    /// Seconds of one image alone.
    pub seconds_per_image: f64,
    /// Images per second while the queue is never empty.
    pub images_per_second: f64,
    /// What crosses between devices.
    pub edges: Vec<Edge>,
    /// Why everything is where it is.
    pub reasons: Vec<String>,
    /// The best of what was not chosen.
    pub rejected: Vec<Rejected>,
    /// GPUs of the machine that have nothing to do.
    pub idle: Vec<DeviceId>,
    /// What predictions are made of; its devices are numbered as [`Plan::devices`].
    #[serde(skip)]
    pub load: Load,
}

impl Plan {
    /// Whether a request fits what was planned, so that it may be queued.
    ///
    /// # Errors
    /// If the request is larger than every planned size, has guidance where none was planned, or a solver that keeps
    /// more past estimates.
    pub fn admits(&self, request: &Request, spec: &ModelSpec) -> Result<()> {
        self.largest.admits(request, spec)
    }

    /// The component of this name.
    pub fn component(&self, name: &str) -> Option<ComponentId> {
        self.components.iter().find(|(_, component)| component.name == name).map(|(id, _)| id)
    }

    /// The component that denoises.
    fn denoiser(&self) -> ComponentId {
        let denoiser = self.components.iter().find(|(_, component)| component.stage == Stage::Denoise);
        denoiser.expect("every model has a denoiser").0
    }

    /// The types in which a request's denoiser may be computed, with guidance or without: for each place that it may take,
    /// those of the place's devices.
    pub fn denoiser_dtypes(&self, guided: bool) -> Vec<Vec<DType>> {
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
    /// If a device is not there, a type is not supported, something comes later, or something does not fit.
    pub fn resolve(map: &DeviceMap, spec: &ModelSpec, largest: &Largest, devices: &[DeviceInfo]) -> Result<Self> {
        let defaults: Vec<DeviceId> =
            devices.iter().filter(|device| !device.only_named).map(|device| device.id).collect();
        let (map, effort) = (&map.on_machine(&defaults)?, Effort::new());
        let resolve = |map: &DeviceMap| Self::resolve_unrelaxed(map, spec, largest, devices, &defaults, &effort);
        resolve(map).map_err(|error| {
            diagnose(map, error, |other| {
                // Which entry is wrong is worth as much as the plan, not more.
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
        let mut infos = usable.iter().map(|&id| describe(map, id, &usable, devices)).collect::<Result<Vec<_>>>()?;
        leave_out_cpu_without_types(map, spec, &mut infos);

        let first = infos.first().ok_or_else(|| Error::input("there is no device to place the pipeline on"))?.id;
        let dtypes = spec.components.try_map(|_, component| resolve_dtype(map, component, &infos))?;
        let trial = Trial::new(spec, &infos, largest, dtypes, effort)?;
        let host = devices.iter().find(|device| device.id == DeviceId::CPU);
        let costs = Costs::new(&trial, host.map(|host| host.free_bytes))?;
        let (mut layouts, mut reasons, mut rejected) = (Vec::new(), Reasons::default(), Vec::new());
        for &map in &maps {
            let mut own = map.usable(defaults)?;
            own.retain(|id| infos.iter().any(|info| info.id == *id));
            let usable_bytes = |info: &DeviceInfo| budget(map, info).saturating_sub(info.overhead_bytes);
            let chosen = choose(map, &costs, &own, &infos.iter().map(usable_bytes).collect::<Vec<_>>())?;
            reasons.add(map, &costs, &chosen);
            for one in chosen.rejected {
                if !rejected.contains(&one) {
                    rejected.push(one);
                }
            }
            layouts.extend(chosen.layouts);
        }
        // A limit of one replica's map holds for the device, whoever else uses it.
        let least = |info: &DeviceInfo| maps.iter().map(|map| budget(map, info)).min().unwrap_or(0);
        let budgets: Vec<u64> = infos.iter().map(least).collect();
        let mut plan = Self::assemble(&costs, first, &layouts, &budgets, &map.device)?;
        (plan.reasons, plan.rejected) = (reasons.sentences(spec), rejected);
        let is_idle =
            |id: &&DeviceId| id.kind != DeviceKind::Cpu && plan.devices.iter().all(|device| device.id != **id);
        plan.idle = defaults.iter().filter(is_idle).copied().collect();
        maps.iter().try_for_each(|map| plan.check_numerics(map))?;
        plan.check_host(devices)?;
        Ok(plan)
    }

    /// Refuses a plan whose weights do not fit in the host's memory beside what the CPU's devices hold; on a described
    /// machine without a CPU that is not known.
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

    /// Refuses a plan in which devices of different numerics classes run the same component, if the map wants that.
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

    /// Adds up what the layouts need, and foresees how long they take.
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
                visitor_bytes: held.visitor_bytes,
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
            let (keep_bytes, scratch_bytes) = costs.arenas_of(layout)?;
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
        // One copy for all shares of the CPU.
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

    /// The numerics classes in which a component runs, over all of its devices.
    pub fn classes(&self, component: ComponentId) -> Vec<String> {
        let on = self.devices.iter().filter(|device| device.components.contains(&component));
        each_once(on.map(|device| device.class_of(component).to_string()))
    }

    /// The components that devices of several numerics classes run.
    pub fn mixed(&self) -> Vec<&str> {
        let mixed = self.components.iter().filter(|(id, _)| self.classes(*id).len() > 1);
        mixed.map(|(_, component)| component.name.as_str()).collect()
    }

    /// What somebody should know who did not ask to see the plan: that it mixes numerics classes, and which GPUs it leaves
    /// idle.
    pub fn warnings(&self) -> Vec<String> {
        let mixed = self.mixed().join(" and ");
        let idle = device_list(&self.idle);
        let mixed = (!mixed.is_empty())
            .then(|| format!("mixed numerics: a picture's last bits depend on which device runs its {mixed}"));
        mixed.into_iter().chain((!idle.is_empty()).then(|| format!("left idle: {idle}"))).collect()
    }

    /// How long all pictures take that the plan is made for, in seconds.
    pub fn seconds_in_all(&self) -> f64 {
        self.seconds_for(self.largest.images)
    }

    /// How long `images` take that are all asked for at once, in seconds.
    pub fn seconds_for(&self, images: usize) -> f64 {
        self.load.seconds_for(images)
    }

    /// What the process should occupy in all: weights once, arenas of every device, in bytes.
    pub fn total_bytes(&self) -> u64 {
        let held = self.devices.iter().map(|device| self.held_bytes(device)).sum::<u64>();
        held + self.shared_weight_bytes.unwrap_or(0) + self.host_weight_bytes
    }

    /// What a device holds, without weights that it shares.
    fn held_bytes(&self, device: &DevicePlan) -> u64 {
        match self.shared_weight_bytes {
            Some(_) if device.id.kind == DeviceKind::Cpu => device.total_bytes() - device.weight_bytes,
            _ => device.total_bytes(),
        }
    }

    /// Where the weights of each component live, over all places and replicas, in the words of `hf_device_map`: the names
    /// of devices, `cpu` for the host's memory, or `disk`.
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

    /// What `list` lists of a component's places, each once.
    fn list_by_component<T: PartialEq>(&self, list: impl Fn(&Place<DeviceId>) -> Vec<T>) -> BTreeMap<String, Vec<T>> {
        let entry = |(id, component): (ComponentId, &ComponentPlan)| {
            let places = self.replicas.iter().flat_map(|replica| &replica.placement[id]);
            (component.name.clone(), each_once(places.flat_map(&list)))
        };
        self.components.iter().map(entry).collect()
    }
}

/// Why each component is where it is: the same reason once for all replicas that share it.
#[derive(Default)]
struct Reasons(Vec<(ComponentId, String, Vec<DeviceId>)>);

impl Reasons {
    fn add(&mut self, map: &DeviceMap, costs: &Costs, chosen: &Chosen) {
        for layout in &chosen.layouts {
            for component in costs.components() {
                let reason = match map.components.get(costs.name(component)) {
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
