//! The devices of plans: described hardware, and the facts that a map gives about devices of the machine.

use std::collections::{BTreeMap, BTreeSet};

use super::tuning::Tuning;
use crate::{
    backend::{
        DeviceId, DeviceInfo, DeviceKind, NumericsClass, Precision, Rates,
        class::KernelPath,
        cpu::{self, Path, threads},
        info::plannable,
        rules::Rules,
    },
    device_map::{DeviceFacts, Located, catalogue, read_devices},
    error::{Error, Result},
    input,
};

/// The largest `count` of one entry.
const MAX_DEVICES: usize = 256;

/// Reads a file that describes devices, as [`parse`] does.
///
/// # Errors
/// If the file cannot be read or describes an impossible device.
pub fn read(path: &std::path::Path) -> Result<Vec<DeviceInfo>> {
    let file = path.display().to_string();
    let text = input::text_or_pipe(path)
        .map_err(|error| Error::input(format!("reading the devices in {file}")).source(error).hint(FORM))?;
    parse(&text, &file)
}

const FORM: &str = "a TOML file: [device.\"cuda:0\"], then memory = \"8GiB\" or like = \"rtx-3070\"";

/// The devices that a file describes, in its order. Messages call the file `file`.
///
/// An entry `[device."cuda:0"]` has `memory`, or names a device of the catalogue as `like`. Its `flops`, `bandwidth`
/// and `link` are the rates that long ops reach, and are used unchanged. Missing rates are half of the catalogue's peak
/// rates, or those of a small device of this kind. With `count`, the entry describes that many devices, numbered from
/// its own number. The CPU is `[device."cpu"]`, with its `cores`; without this entry the machine has no CPU.
///
/// # Errors
/// At the first invalid line.
pub fn parse(text: &str, file: &str) -> Result<Vec<DeviceInfo>> {
    let mut devices: Vec<DeviceInfo> = Vec::new();
    for (id, facts) in read_devices(text, file)? {
        let count = facts.value.count.as_ref().map_or(1, |count| count.value);
        if let Some(asked) = facts.value.count.as_ref().filter(|asked| asked.value > MAX_DEVICES) {
            return Err(asked
                .refuse(&format!("device.{id}.count"), format!("more than {MAX_DEVICES} devices"))
                .found(asked.value.to_string())
                .hint("one machine is described here; several have a plan each"));
        }
        for n in 0..count {
            let id = DeviceId { kind: id.kind, index: id.index.map(|index| index + n) };
            if devices.iter().any(|device| device.id == id) {
                return Err(facts
                    .refuse(&format!("device.{id}"), format!("{id} is there already"))
                    .hint("`count` numbers on from its own device: the next entry begins behind these"));
            }
            devices.push(from_facts(id, &facts)?);
        }
    }
    if devices.is_empty() {
        return Err(Error::input(format!("{file}: there is no device in it")).hint(FORM));
    }
    Ok(devices)
}

/// Makes the description of a device from facts alone.
fn from_facts(id: DeviceId, located: &Located<DeviceFacts>) -> Result<DeviceInfo> {
    let facts = &located.value;
    let key = |name: &str| format!("device.{id}.{name}");
    if id.kind == DeviceKind::Numbered {
        return Err(located
            .refuse(&key(""), "the devices of a machine have names of their own")
            .hint("[device.\"cuda:0\"], [device.\"wgpu:0\"] or [device.\"cpu\"]; `device:N` is for device maps"));
    }
    if id.kind == DeviceKind::Cpu && id.index.is_some() {
        return Err(located
            .refuse(&key(""), "a described CPU is whole: its shares are a map's")
            .hint("[device.\"cpu\"], then cores = \"0-15\"; a map may name cpu:0, cpu:1 and so on"));
    }
    if let Some(adapter) = &facts.adapter {
        return Err(adapter
            .refuse(&key("adapter"), "a described device has no adapter: those are of the machine that it is on")
            .hint("leave out `adapter`"));
    }
    if let (Some(count), None) = (&facts.count, id.index) {
        return Err(count.refuse(&key("count"), "there is one CPU").hint("cores = \"0-15\""));
    }
    let model = match &facts.like {
        None => None,
        Some(like) => {
            let model = catalogue::find(like, &key("like"))?;
            // An NVIDIA GPU can also be used through wgpu; other GPUs cannot be used through CUDA.
            if id.kind == DeviceKind::Cpu || (id.kind == DeviceKind::Cuda && model.kind != "cuda") {
                return Err(like
                    .refuse(&key("like"), format!("{id} is not one of these"))
                    .found(format!("{}, a device of the kind {}", model.name, model.kind))
                    .hint(format!("[device.\"{}:0\"]", model.kind)));
            }
            Some(model)
        }
    };
    let Some(memory_bytes) =
        facts.memory.as_ref().map(|memory| memory.value).or(model.map(catalogue::CatalogueDevice::memory_bytes))
    else {
        return Err(located
            .refuse(&key(""), "how much memory it has is missing")
            .hint("memory = \"8GiB\", or like = \"rtx-3070\", a device of the catalogue"));
    };
    let allowed_cores: Vec<usize> = match (&facts.cores, id.kind) {
        (Some(cores), _) => cores.value.clone(),
        (None, DeviceKind::Cpu) => (0..Tuning::CPU_CORES).collect(),
        (None, _) => Vec::new(),
    };
    let planned_rates = match (model, id.kind) {
        (Some(model), kind) => rates_like(model, kind),
        (None, DeviceKind::Cuda) => Tuning::CUDA_RATES,
        (None, DeviceKind::Wgpu | DeviceKind::Numbered) => Tuning::WGPU_RATES,
        (None, DeviceKind::Cpu) => Tuning::CPU_CORE_RATES.part(allowed_cores.len() as f64),
    };
    let rules = match id.kind {
        DeviceKind::Cpu => Rules::Cpu(cpu::path().unwrap_or(Path::Portable).into(), Precision::F32),
        DeviceKind::Cuda => Rules::Gpu(Precision::F16),
        DeviceKind::Wgpu | DeviceKind::Numbered => Rules::Wgpu(Precision::F16),
    };
    let name = model.map_or_else(|| format!("a {} device", id.kind.name()), |model| model.name.clone());
    let class = match (rules, id.kind) {
        (Rules::Cpu(kernels, _), _) => NumericsClass::cpu(kernels),
        (_, DeviceKind::Cuda) => {
            let compute = model.and_then(|model| model.compute.as_ref()?.replace('.', "").parse().ok());
            let kernels = KernelPath::Capability { gpu: compute, code: None };
            NumericsClass { kind: DeviceKind::Cuda, kernels, precision: rules.precision() }
        }
        _ => NumericsClass {
            kind: DeviceKind::Wgpu,
            kernels: KernelPath::Adapter(name.clone()),
            precision: rules.precision(),
        },
    };
    let info = DeviceInfo {
        id,
        name,
        class,
        cores: allowed_cores.len(),
        allowed_cores,
        memory_bytes,
        free_bytes: plannable(memory_bytes),
        overhead_bytes: catalogue::overhead_bytes(id.kind),
        rules,
        rates: planned_rates,
        f32_flops: model.map_or(planned_rates.flops, |model| Tuning::SHARE_OF_PEAK * model.f32_flops),
        rates_measured: None,
        only_named: false,
    };
    // The other facts are applied as for devices of the machine.
    let like = None;
    apply_facts(info, &DeviceFacts { like, cores: None, ..facts.clone() })
}

/// Applies the facts of a map or a file to a device: memory, reserved bytes and rates.
pub(super) fn apply_facts(mut info: DeviceInfo, facts: &DeviceFacts) -> Result<DeviceInfo> {
    if let Some(like) = &facts.like {
        let model = catalogue::find(like, &format!("device.{}.like", info.id))?;
        info.rates = rates_like(model, info.id.kind);
        info.f32_flops = Tuning::SHARE_OF_PEAK * model.f32_flops;
        if info.rules.precision() == Precision::F32 {
            info.rates.flops = info.f32_flops;
        }
    }
    if let Some(flops) = &facts.flops {
        (info.rates.flops, info.f32_flops) = (flops.value, flops.value);
    }
    if let Some(bandwidth) = &facts.bandwidth {
        info.rates.bandwidth = bandwidth.value as f64;
    }
    if let Some(link) = &facts.link {
        info.rates.link = link.value as f64;
    }
    if let Some(memory) = &facts.memory {
        info.memory_bytes = memory.value;
        info.free_bytes = plannable(memory.value);
    }
    if let Some(reserve) = &facts.reserve {
        info.free_bytes = info.free_bytes.saturating_sub(reserve.value);
    }
    Ok(info)
}

/// The planned rates of long ops on a device of `kind` that is like `model`, with f16 weights: a share of the peak
/// rates. wgpu cannot use tensor cores, so an NVIDIA GPU has its f32 rate there.
fn rates_like(model: &catalogue::CatalogueDevice, kind: DeviceKind) -> Rates {
    let peak = if model.kind == kind.name() { model.f16_flops } else { model.f32_flops };
    Rates { flops: Tuning::SHARE_OF_PEAK * peak, bandwidth: model.bandwidth(), link: model.link() }
}

/// The share `id` of the CPU `whole`, which is divided into `shares`: its cores, the same part of the rates, and an
/// equal part of the memory. `requested` has the cores that the map requests for each share.
///
/// # Errors
/// If the map requests cores that `whole` does not have.
pub(super) fn cpu_share(
    whole: &DeviceInfo,
    id: DeviceId,
    shares: &[DeviceId],
    requested: &[Option<&Located<Vec<usize>>>],
) -> Result<DeviceInfo> {
    let index = shares.iter().position(|share| *share == id).expect("it is one of the shares");
    check_cores(whole, id, requested[index])?;
    let requested: Vec<Option<&[usize]>> = requested.iter().map(|asked| asked.map(|cores| &cores.value[..])).collect();
    let cores = threads::shares(&whole.allowed_cores, &requested);
    // A core that belongs to several shares counts as a part of a core for each.
    let mut owners = BTreeMap::<usize, f64>::new();
    for core in cores.iter().flatten() {
        *owners.entry(*core).or_default() += 1.0;
    }
    let part = cores[index].iter().map(|core| 1.0 / owners[core]).sum::<f64>() / whole.cores as f64;
    let rates = whole.rates.part(part);
    let count = shares.len() as u64;
    Ok(DeviceInfo {
        id,
        cores: cores[index].len(),
        allowed_cores: cores[index].clone(),
        free_bytes: whole.free_bytes / count,
        memory_bytes: whole.memory_bytes / count,
        rates,
        f32_flops: rates.flops,
        ..whole.clone()
    })
}

/// The device `id`, which is one of `count` devices that share an adapter.
pub(super) fn part_of_adapter(whole: &DeviceInfo, id: DeviceId, count: usize) -> DeviceInfo {
    let share = 1.0 / count.max(1) as f64;
    DeviceInfo {
        id,
        free_bytes: whole.free_bytes / count.max(1) as u64,
        memory_bytes: whole.memory_bytes / count.max(1) as u64,
        rates: whole.rates.part(share),
        f32_flops: whole.f32_flops * share,
        ..whole.clone()
    }
}

/// The CPU with only those cores that the map names.
///
/// # Errors
/// If the CPU does not have these cores.
pub(super) fn with_cores(whole: &DeviceInfo, cores: &Located<Vec<usize>>) -> Result<DeviceInfo> {
    check_cores(whole, whole.id, Some(cores))?;
    let rates = whole.rates.part(cores.value.len() as f64 / whole.cores as f64);
    Ok(DeviceInfo {
        cores: cores.value.len(),
        allowed_cores: cores.value.clone(),
        rates,
        f32_flops: rates.flops,
        ..whole.clone()
    })
}

fn check_cores(whole: &DeviceInfo, id: DeviceId, cores: Option<&Located<Vec<usize>>>) -> Result<()> {
    let Some(cores) = cores else { return Ok(()) };
    let allowed: BTreeSet<usize> = whole.allowed_cores.iter().copied().collect();
    match cores.value.iter().find(|core| !allowed.contains(core)) {
        None => Ok(()),
        Some(core) => Err(cores
            .refuse(&format!("device.{id}.cores"), format!("core {core} may not be used"))
            .found(format!("cores {}", threads::list(&whole.allowed_cores)))
            .hint("cores of this list; the process's affinity and SDSHARD_THREADS decide what is in it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_divide_rates_by_their_cores() {
        let whole = &parse("[device.cpu]\nmemory = \"8GiB\"\ncores = \"0-5\"\nflops = 6e11", "x").unwrap()[0];
        let shares = [0, 1, 2].map(|index| DeviceId::new(DeviceKind::Cpu, index));
        let flops = |requested: [Option<Vec<usize>>; 3]| {
            let requested = requested.map(|asked| asked.map(Located::from));
            let requested: Vec<_> = requested.iter().map(Option::as_ref).collect();
            shares.map(|id| cpu_share(whole, id, &shares, &requested).unwrap().rates.flops / 1e11)
        };
        assert_eq!(flops([None, None, None]), [2.0, 2.0, 2.0]);
        assert_eq!(flops([Some(vec![5]), None, None]), [1.0, 2.0, 3.0]);
        // Two shares with the same core get half of its rate each.
        assert_eq!(flops([Some(vec![5]), Some(vec![4, 5]), None]), [0.5, 1.5, 4.0]);
    }
}
