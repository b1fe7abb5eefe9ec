//! The plan: which device holds what, in bytes, before a weight is read.
//!
//! The sizes are not estimates. The real model code runs on devices without data, and the arenas that it fills there
//! are those that it fills later, byte for byte.

use std::{collections::BTreeMap, fmt};

use super::{
    device_map::{DeviceMap, InFlight, Numerics, Place, Reside},
    size::format_bytes,
    strategies::{self, ComponentSize, DeviceBudget},
};
use crate::{
    backend::{DType, Device, DeviceId, DeviceInfo, DeviceKind, Keep, cpu, dry},
    error::{Error, Result},
    models::spec::ModelSpec,
    pipeline::{
        Component, PerComponent,
        model::{load_text_encoder, load_unet, load_vae},
        request::{Output, Request, Rng, Start},
        stages::{self, Denoise, Noise},
    },
    scheduler::{Schedule, SchedulerKind, schedule},
    tensor::Shape,
    weights::Weights,
};

/// The largest request that a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Largest {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Whether negative prompts are used: two texts instead of one.
    pub guided: bool,
    /// The solver, which decides how many past estimates are kept; `None` is the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// Steps; a run shorter than a solver's memory keeps less.
    pub steps: usize,
}

impl Largest {
    /// The largest of `requests` in each respect.
    pub fn of<'a>(requests: impl IntoIterator<Item = &'a Request>, spec: &ModelSpec) -> Result<Option<Self>> {
        let mut largest: Option<(Self, usize)> = None;
        for request in requests {
            let kept = schedule(&spec.scheduler_for(request.scheduler)?, request.steps)?.history();
            let one = Self {
                width: request.width,
                height: request.height,
                guided: request.guidance_scale > 1.0,
                scheduler: request.scheduler,
                steps: request.steps,
            };
            largest = Some(match largest {
                None => (one, kept),
                Some((most, most_kept)) => {
                    let (scheduler, steps) =
                        if kept > most_kept { (one.scheduler, one.steps) } else { (most.scheduler, most.steps) };
                    let size = if one.width * one.height > most.width * most.height { one } else { most };
                    (Self { guided: most.guided || one.guided, scheduler, steps, ..size }, kept.max(most_kept))
                }
            });
        }
        Ok(largest.map(|(largest, _)| largest))
    }
}

/// What one component needs and does, on one kind of device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Packed weights.
    pub weight_bytes: u64,
    /// The most that the transient arena holds during its section.
    pub activation_bytes: u64,
    /// The most that outlives its sections, for one request.
    pub keep_bytes: u64,
    /// Floating-point operations of one call: one text, one UNet call, one picture.
    pub flops: f64,
}

/// Runs the model without data and writes down what it asks for.
///
/// # Errors
/// If the request does not fit the model.
pub fn costs(spec: &ModelSpec, rules: dry::Rules, largest: &Largest) -> Result<PerComponent<Cost>> {
    // The arenas depend on the last steps only through how many estimates a solver keeps.
    let mut schedule = schedule(&spec.scheduler_for(largest.scheduler)?, largest.steps)?;
    schedule.steps.truncate(2 * crate::scheduler::HISTORY);
    PerComponent::try_new(|component| cost(component, spec, rules, largest, &schedule))
}

fn cost(
    component: Component,
    spec: &ModelSpec,
    rules: dry::Rules,
    largest: &Largest,
    schedule: &Schedule,
) -> Result<Cost> {
    let (device, ledger) = Device::dry(DeviceId::CPU, rules);
    let weights = Weights::shapes_only(component.name());
    let keep: Keep = device.keep(usize::MAX)?;
    let scale = spec.vae.scale();
    let (height, width) = (largest.height / scale, largest.width / scale);
    let (weight_bytes, calls) = match component {
        Component::TextEncoder => {
            let encoder = load_text_encoder(weights, &device, spec)?;
            let loaded = ledger.take();
            stages::encode(&encoder, &device, vec![0; spec.text_encoder.max_position_embeddings])?;
            (loaded.weight_bytes, 1)
        }
        Component::Unet => {
            let unet = load_unet(weights, &device, spec)?;
            let loaded = ledger.take();
            let request = Request {
                seed: 0,
                prompt: String::new(),
                negative_prompt: String::new(),
                steps: largest.steps,
                guidance_scale: if largest.guided { 2.0 } else { 1.0 },
                scheduler: largest.scheduler,
                width: largest.width,
                height: largest.height,
                rng: Rng::TorchCpu,
                start: Start::Noise,
                output: Output::Image,
            };
            let text = vec![0.0; spec.text_encoder.max_position_embeddings * spec.unet.cross_attention_dim];
            let texts = vec![text.into(); if largest.guided { 2 } else { 1 }];
            let denoise = Denoise {
                spec,
                schedule,
                guidance_scale: request.guidance_scale,
                texts: &texts,
                height,
                width,
                noise: Noise::new(&request),
            };
            stages::denoise(&unet, &device, &keep, denoise, |done| {
                if done == 0 {
                    // The text's keys and values belong to no step.
                    ledger.take();
                }
                Ok(())
            })?;
            (loaded.weight_bytes, schedule.steps.len())
        }
        Component::Vae => {
            let decoder = load_vae(weights, &device, spec)?;
            let loaded = ledger.take();
            let shape = Shape::from([1, height, width, spec.vae.latent_channels]);
            stages::decode(&decoder, &device, shape, &vec![0.0; shape.elements()])?;
            (loaded.weight_bytes, 1)
        }
    };
    let work = ledger.take();
    Ok(Cost {
        weight_bytes,
        activation_bytes: device.peak_bytes() as u64,
        keep_bytes: keep.peak_bytes() as u64,
        flops: work.flops / calls as f64,
    })
}

/// Where one replica's components run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaPlan {
    /// The device of each component.
    pub placement: PerComponent<DeviceId>,
}

/// What one device holds.
#[derive(Debug, Clone, PartialEq)]
pub struct DevicePlan {
    /// The device.
    pub id: DeviceId,
    /// Its numerics class.
    pub class: String,
    /// The most it may hold, in bytes.
    pub budget_bytes: u64,
    /// Components that run on it, each once.
    pub components: Vec<Component>,
    /// Their packed weights, in bytes.
    pub weight_bytes: u64,
    /// The transient arena, in bytes.
    pub activation_bytes: u64,
    /// The keep arenas of all replicas that use it, in bytes.
    pub keep_bytes: u64,
}

impl DevicePlan {
    /// All of it, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes + self.keep_bytes
    }
}

/// A device map resolved for one model, one largest request and one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What it is made for.
    pub largest: Largest,
    /// What each component needs.
    pub costs: PerComponent<Cost>,
    /// The type of each component's weights.
    pub dtypes: PerComponent<DType>,
    /// Whole pipelines side by side.
    pub replicas: Vec<ReplicaPlan>,
    /// The devices that are used, in the map's order.
    pub devices: Vec<DevicePlan>,
    /// Bytes of weights in host memory, where `cpu:N` devices share them; `None` without such sharing.
    pub shared_weight_bytes: Option<u64>,
}

impl Plan {
    /// Resolves `map` on a machine that has `devices`, the preferred one first.
    ///
    /// # Errors
    /// If a device is not there, a type is not supported, something comes later, or something does not fit.
    pub fn resolve(map: &DeviceMap, spec: &ModelSpec, largest: &Largest, devices: &[DeviceInfo]) -> Result<Self> {
        map.check()?;
        check_served(map)?;
        let dtypes = PerComponent::try_new(|component| resolve_dtype(map, component))?;
        let defaults: Vec<DeviceId> = devices.iter().map(|device| device.id).collect();
        let usable = map.usable(&defaults)?;
        let infos = usable.iter().map(|&id| describe(map, id, &usable, devices)).collect::<Result<Vec<_>>>()?;

        let costs = costs(spec, dry::Rules::Cpu(cpu::path()?), largest)?;
        let sizes: Vec<ComponentSize> = costs
            .iter()
            .map(|(component, cost)| ComponentSize {
                name: component.name().to_string(),
                weight_bytes: cost.weight_bytes,
                activation_bytes: cost.activation_bytes,
                keep_bytes: cost.keep_bytes,
            })
            .collect();
        let named = Component::ALL.map(|component| match map.components.get(component.name())?.value.as_slice() {
            [place] => place.single().map(|device| device.value),
            _ => None,
        });
        let budgets: Vec<DeviceBudget> = infos
            .iter()
            .map(|info| {
                let limit = map.max_memory.get(&info.id).map_or(u64::MAX, |limit| limit.value);
                DeviceBudget { id: info.id, bytes: info.free_bytes.min(limit) }
            })
            .collect();
        let placed = strategies::place_replicas(map.strategy.value, map.replicas.value, &sizes, &named, &budgets)?;
        let replicas: Vec<ReplicaPlan> = placed
            .into_iter()
            .map(|devices| {
                let mut devices = devices.into_iter();
                ReplicaPlan { placement: PerComponent::new(|_| devices.next().expect("one device for each component")) }
            })
            .collect();

        let used: Vec<DevicePlan> = infos
            .iter()
            .zip(&budgets)
            .map(|(info, budget)| load(info, budget.bytes, &replicas, &costs))
            .filter(|device| !device.components.is_empty())
            .collect();
        let sharing = used.iter().filter(|device| device.id.kind == DeviceKind::Cpu).count() > 1;
        let on_cpu = |component: &Component| {
            replicas.iter().any(|replica| replica.placement.get(*component).kind == DeviceKind::Cpu)
        };
        let shared_weight_bytes =
            sharing.then(|| Component::ALL.iter().filter(|c| on_cpu(c)).map(|c| costs.get(*c).weight_bytes).sum());
        Ok(Self { largest: *largest, costs, dtypes, replicas, devices: used, shared_weight_bytes })
    }

    /// What the process should occupy in all: weights once, arenas of every device, in bytes.
    pub fn total_bytes(&self) -> u64 {
        let arenas: u64 = self.devices.iter().map(|device| device.activation_bytes + device.keep_bytes).sum();
        let weights = self.shared_weight_bytes.unwrap_or_else(|| self.devices.iter().map(|d| d.weight_bytes).sum());
        arenas + weights
    }

    /// `{component: device}`, or a list of devices where replicas differ.
    pub fn device_map(&self) -> BTreeMap<&'static str, Vec<DeviceId>> {
        let mut map = BTreeMap::<_, Vec<DeviceId>>::new();
        for replica in &self.replicas {
            for (component, &device) in replica.placement.iter() {
                let devices = map.entry(component.name()).or_default();
                if !devices.contains(&device) {
                    devices.push(device);
                }
            }
        }
        map
    }
}

/// One device's share of the replicas.
fn load(info: &DeviceInfo, budget_bytes: u64, replicas: &[ReplicaPlan], costs: &PerComponent<Cost>) -> DevicePlan {
    let mut device = DevicePlan {
        id: info.id,
        class: info.class.clone(),
        budget_bytes,
        components: Vec::new(),
        weight_bytes: 0,
        activation_bytes: 0,
        keep_bytes: 0,
    };
    for replica in replicas {
        for (component, _) in replica.placement.iter().filter(|(_, id)| **id == info.id) {
            let cost = costs.get(component);
            if !device.components.contains(&component) {
                device.components.push(component);
                device.weight_bytes += cost.weight_bytes;
                device.activation_bytes = device.activation_bytes.max(cost.activation_bytes);
            }
            device.keep_bytes += cost.keep_bytes;
        }
    }
    device
}

/// Refuses what a map can say and this version does not do yet, so that no wish is passed over in silence.
///
/// # Errors
/// If there is such a wish; the message says what is possible.
pub fn check_served(map: &DeviceMap) -> Result<()> {
    strategies::check_served(&map.strategy)?;
    if let InFlight::Count(count @ 2..) = map.in_flight.value {
        return Err(map
            .in_flight
            .refuse("in_flight", "several requests at once in one replica come later")
            .found(count.to_string())
            .hint("in_flight = 1 or \"auto\""));
    }
    if map.batch.value > 1 {
        return Err(map
            .batch
            .refuse("batch", "several requests in one forward pass come later")
            .found(map.batch.value.to_string())
            .hint("batch = 1"));
    }
    if map.numerics.value == Numerics::Same {
        return Err(map
            .numerics
            .refuse("numerics", "this check comes later")
            .found("\"same\"")
            .hint("numerics = \"any\"; `sdshard plan` shows the class of each component"));
    }
    if let Some((id, facts)) = map.device.first_key_value() {
        return Err(facts
            .refuse(&format!("device.{id}"), "facts about a device come later")
            .hint("`sdshard devices` shows what sdshard finds by itself; [max_memory] limits what it uses"));
    }
    if let Some(replica) = map.replica.first() {
        return Err(replica
            .refuse("replica[0]", "replicas written out one by one come later")
            .hint("replicas = 2 deals the `devices` into two groups of neighbours"));
    }
    for (name, pool) in &map.components {
        let key = format!("components.{name}");
        let first = pool.value.iter().flat_map(Place::devices).next().map_or(DeviceId::CPU, |device| device.value);
        let refused = match pool.value.as_slice() {
            [Place::On { reside, .. }] if reside.value == Reside::Device => continue,
            [Place::On { reside, .. }] => reside.refuse(&key, "weights that live elsewhere come later"),
            [Place::Cut { .. }] => pool.refuse(&key, "a component cut into pieces comes later"),
            [Place::Guided { .. }] => pool.refuse(&key, "the branches of guidance on two devices come later"),
            _ => pool.refuse(&key, "a pool comes later"),
        };
        return Err(refused.hint(format!("one device for all of it: {name} = \"{first}\"")));
    }
    Ok(())
}

/// The type of a component's weights on the CPU, which computes in f32.
fn resolve_dtype(map: &DeviceMap, component: Component) -> Result<DType> {
    match map.dtype.of(component.name()) {
        None | Some(DType::F32) => Ok(DType::F32),
        Some(other) => Err(Error::input(format!("dtype of the {}: the CPU has no {other} kernels", component.name()))
            .hint("dtype = \"auto\" or \"f32\"; weights stored as f16 or bf16 are read all the same")),
    }
}

/// What is known of a device that the map may use: its share of the CPU, or the machine's own answer.
fn describe(map: &DeviceMap, id: DeviceId, usable: &[DeviceId], devices: &[DeviceInfo]) -> Result<DeviceInfo> {
    if let Some(info) = devices.iter().find(|device| device.id == id) {
        return Ok(info.clone());
    }
    if let (DeviceKind::Cpu, Some(_), Some(whole)) =
        (id.kind, id.index, devices.iter().find(|device| device.id == DeviceId::CPU))
    {
        let shares = usable.iter().filter(|id| id.kind == DeviceKind::Cpu).count();
        return Ok(DeviceInfo {
            id,
            cores: (whole.cores / shares).max(1),
            free_bytes: whole.free_bytes / shares as u64,
            memory_bytes: whole.memory_bytes / shares as u64,
            ..whole.clone()
        });
    }
    let found: Vec<String> = devices.iter().map(|device| device.id.to_string()).collect();
    let component = map.placed_devices().find(|(_, device)| device.value == id);
    let listed = map.devices.iter().find(|device| device.value == id);
    let refused = match (component, listed) {
        (Some((key, device)), _) => device.refuse(&key, format!("device \"{id}\" is not on this machine")),
        (None, Some(device)) => device.refuse("devices", format!("device \"{id}\" is not on this machine")),
        (None, None) => Error::input(format!("device \"{id}\" is not on this machine")),
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
                class.map_or("", |device| &device.class),
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
        if let Some(shared) = self.shared_weight_bytes {
            writeln!(
                f,
                "{:<13} {:>10}  one copy of the weights in host memory, for all of cpu:N",
                "cpu",
                bytes(shared)
            )?;
        }
        let replicas = match self.replicas.len() {
            1 => "1 replica".to_string(),
            n => format!("{n} replicas"),
        };
        write!(
            f,
            "\n{replicas}; pictures up to {}x{}; {} in all",
            self.largest.width,
            self.largest.height,
            bytes(self.total_bytes())
        )
    }
}
