//! The placement that diffusers makes for `device_map="balanced"`. Bytes are counted as diffusers does: parameters in
//! the requested type, the whole VAE, and the safety checker, which sdshard does not run.

use super::by_bytes::{DeviceBudget, for_replicas, partition};
use crate::{
    backend::{Device, DeviceId, DeviceInfo, DeviceKind, Precision, Rates, rules::Rules},
    device_map::{DeviceMap, Located},
    error::{Error, Result},
    models::{
        component::PerComponent,
        route::Route,
        spec::{ComponentSpec, Listed, ModelSpec},
    },
    pipeline::{
        model::{Source, load},
        placement::{Place, Reside, Sections},
    },
    weights::{Scope, Weights},
};

/// The place of a component in diffusers' `device_map="balanced"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiffusersPlace {
    /// The component is on the device with this index.
    Device(usize),
    /// The component is on the host, because it did not fit on the next device of the cycle. Its weights are copied to
    /// a device in every forward pass.
    Host,
}

/// Computes diffusers' `device_map="balanced"`: each place with its components, in the order in which diffusers first
/// uses the places. `components` are the bytes of weights in the order of `model_index.json`, `devices` the bytes of
/// each GPU.
///
/// Components are assigned, the largest first, to devices in the cycle 0, 1, 1, 0, 0, 1 … (0 has the most memory). A
/// component that does not fit on the next device goes to the host, and no other device is tried. The host holds one
/// component: a later one replaces it, and the earlier one has no place then.
fn diffusers_map(components: &[u64], devices: &[u64]) -> Vec<(DiffusersPlace, Vec<usize>)> {
    let by_size = |sizes: &[u64]| {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(sizes[i])); // stable: equal ones keep their order
        order
    };
    let device_order = by_size(devices);
    let cycle: Vec<usize> = device_order.iter().chain(device_order.iter().rev()).copied().collect();
    let mut free = devices.to_vec();
    let mut placed: Vec<(DiffusersPlace, Vec<usize>)> = Vec::new();
    let mut turn = 0;
    for component in by_size(components) {
        let Some(&device) = cycle.get(turn % cycle.len().max(1)) else { break };
        let place = if components[component] > free[device] {
            DiffusersPlace::Host
        } else {
            free[device] -= components[component];
            turn += 1;
            DiffusersPlace::Device(device)
        };
        match placed.iter_mut().find(|(other, _)| *other == place) {
            Some((DiffusersPlace::Host, here)) => *here = vec![component],
            Some((_, here)) => here.push(component),
            None => placed.push((place, vec![component])),
        }
    }
    placed
}

/// A network of a pipeline with the size that diffusers counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NetworkSize {
    /// The name in `model_index.json`.
    name: String,
    /// The bytes of its weights.
    bytes: u64,
    /// Whether sdshard runs it. A network that it does not run only occupies memory in the computation.
    is_run: bool,
}

/// The place of each network in [`diffusers_map`]. `None` for a network that has no place, which sdshard does not run.
///
/// # Errors
/// If a network that sdshard runs has no place.
fn balanced(networks: &[NetworkSize], devices: &[DeviceBudget]) -> Result<Vec<Option<DiffusersPlace>>> {
    let weights: Vec<u64> = networks.iter().map(|network| network.bytes).collect();
    let memory: Vec<u64> = devices.iter().map(|device| device.bytes).collect();
    let mut placement = vec![None; networks.len()];
    for (place, here) in diffusers_map(&weights, &memory) {
        for network in here {
            placement[network] = Some(place);
        }
    }
    let Some(lost) = (0..networks.len()).find(|&c| networks[c].is_run && placement[c].is_none()) else {
        return Ok(placement);
    };
    let last = placement.iter().position(|place| *place == Some(DiffusersPlace::Host));
    let problem = format!(
        "diffusers would lose the {}; diffusers asks one device and then puts a component on the host, which holds \
         one: the {} drove it out, and the first picture would fail",
        networks[lost].name,
        last.map_or("next", |last| networks[last].name.as_str())
    );
    Err(Error::input(format!("strategy \"diffusers-balanced\": {problem}"))
        .found(devices.iter().map(DeviceBudget::describe_free).collect::<Vec<_>>().join(", "))
        .hint("strategy = \"balanced\" asks every device"))
}

/// The number of parameters of a component. Integer buffers of some versions (`position_ids`) are not counted; they
/// have at most some hundred bytes.
fn parameters(component: &ComponentSpec) -> Result<u64> {
    // With f32 weights, a GPU holds exactly four bytes for each parameter.
    let rates = Rates { flops: 1.0, bandwidth: 1.0, link: 1.0 };
    let (device, counter) = Device::dry(DeviceId::new(DeviceKind::Cuda, 0), Rules::Gpu(Precision::F32), rates);
    let route = Route::whole(&device, Precision::F32, component.network.sections().len());
    let weights = || Weights::shapes_only(&component.folder);
    load(component, weights(), &Source::resident(route))?;
    component.network.load_not_run(&Scope::new(&weights(), &device, Precision::F32), &device)?;
    Ok(counter.take().weight_bytes / Precision::F32.size() as u64)
}

/// The networks in the order of `model_index.json`, with the bytes that diffusers counts. `auto` is the type that
/// `"auto"` in the map stands for.
fn networks(map: &DeviceMap, spec: &ModelSpec, auto: Precision) -> Result<Vec<NetworkSize>> {
    let network = |listed: &Listed| {
        let component = spec.component(&listed.name);
        let count = match (component, listed.parameters) {
            (Some(component), _) => parameters(&spec.components[component])?,
            (None, Some(count)) => count,
            (None, None) => {
                tracing::debug!("{}: not a network that diffusers would place, or without a config", listed.name);
                return Ok(None);
            }
        };
        let dtype = map.dtype.of(&listed.name).value.unwrap_or(auto);
        Ok(Some(NetworkSize {
            name: listed.name.clone(),
            bytes: count * dtype.size() as u64,
            is_run: component.is_some(),
        }))
    };
    spec.listed.iter().map(network).filter_map(Result::transpose).collect()
}

/// Finds the places of diffusers for each component of each replica. As in diffusers, `max_memory` gives the exact
/// sizes and the only devices; without it, the free bytes of all devices are used. The CPU is used only if there is no
/// GPU. A component on the host is offloaded from the first device.
pub(super) fn place(
    map: &DeviceMap,
    spec: &ModelSpec,
    infos: &[&DeviceInfo],
) -> Result<Vec<PerComponent<Place<DeviceId>>>> {
    let has_gpu = infos.iter().any(|info| info.id.kind != DeviceKind::Cpu);
    let auto = if has_gpu { Precision::F16 } else { Precision::F32 };
    let networks = networks(map, spec, auto)?;
    let limits = &map.max_memory;
    let budgets: Vec<DeviceBudget> = infos
        .iter()
        .filter(|info| info.id.kind != DeviceKind::Cpu || !has_gpu)
        .filter(|info| limits.is_empty() || limits.contains_key(&info.id))
        .map(|info| DeviceBudget {
            id: info.id,
            bytes: limits.get(&info.id).map_or(info.free_bytes, |Located { value, .. }| *value),
        })
        .collect();
    if budgets.is_empty() {
        return Err(Error::input("strategy \"diffusers-balanced\": there is no device that it may use")
            .hint("a GPU among the devices of [max_memory], or no [max_memory]"));
    }
    let place = |group: &[DeviceBudget]| -> Result<PerComponent<Place<DeviceId>>> {
        let placed = balanced(&networks, group)?;
        for (network, place) in networks.iter().zip(&placed).filter(|(network, _)| !network.is_run) {
            let place = match place {
                Some(DiffusersPlace::Device(device)) => format!("put the {} on {}", network.name, group[*device].id),
                Some(DiffusersPlace::Host) => format!("run the {} from the host", network.name),
                None => format!("lose the {}", network.name),
            };
            tracing::info!("diffusers would {place}; sdshard does not run it");
        }
        spec.components.try_map(|_, component| {
            // The encoder of the VAE is a part of the VAE.
            let here = networks.iter().position(|network| network.name == component.folder);
            let count = component.network.sections().len();
            match here.and_then(|network| placed[network]) {
                Some(DiffusersPlace::Device(device)) => Ok(Place::whole(group[device].id, count)),
                Some(DiffusersPlace::Host) => {
                    tracing::warn!(
                        "the weights of the {} are fetched to {} from the host's memory in every call, as with \
                         diffusers; strategy = \"balanced\" asks every device for room",
                        component.name,
                        group[0].id
                    );
                    Ok(Place::Route(Sections { devices: vec![group[0].id; count], reside: Reside::Host }))
                }
                None => Err(Error::input(format!("model_index.json does not list the {}", component.name))),
            }
        })
    };
    let groups = |count| partition(&budgets, count).into_iter().map(place).collect::<Result<Vec<_>>>();
    for_replicas(map.replicas.value, budgets.len(), groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device_map::Strategy,
        planner::{
            Cost,
            by_bytes::{self, ComponentSize},
        },
    };

    /// Components in the order of `model_index.json`, with bytes in f16.
    const SD15_SAFE: &[(&str, u64)] = &[
        ("vae", 167_307_726),
        ("text_encoder", 246_121_576),
        ("unet", 1_719_041_928),
        ("safety_checker", 607_965_232),
    ];
    const SD15: &[(&str, u64)] = SD15_SAFE.split_at(3).0;
    const SD21: &[(&str, u64)] = &[("vae", 167_307_726), ("text_encoder", 680_776_296), ("unet", 1_731_821_448)];
    const SDXL: &[(&str, u64)] = &[
        ("vae", 167_307_726),
        ("text_encoder", 246_121_576),
        ("text_encoder_2", 1_389_320_296),
        ("unet", 5_134_927_368),
    ];

    /// A model, 1 for f16 or 2 for f32, the GB of each device, and the map of diffusers.
    type Row = (&'static [(&'static str, u64)], u64, &'static [u64], &'static str);

    const DIFFUSERS: &[Row] = &[
        (SD15_SAFE, 1, &[8, 8], "0: unet, vae; 1: safety_checker, text_encoder"),
        (SD15_SAFE, 1, &[8, 24], "1: unet, vae; 0: safety_checker, text_encoder"),
        (SD15_SAFE, 1, &[2, 1], "0: unet, vae; 1: safety_checker, text_encoder"),
        (SD15_SAFE, 1, &[1, 1], "cpu: unet; 0: safety_checker; 1: text_encoder, vae"),
        (SD15_SAFE, 1, &[8, 8, 8], "0: unet; 1: safety_checker; 2: text_encoder, vae"),
        (SD15, 1, &[8, 8], "0: unet; 1: text_encoder, vae"),
        (SD15, 1, &[8, 8, 8], "0: unet; 1: text_encoder; 2: vae"),
        (SD21, 1, &[8, 8], "0: unet; 1: text_encoder, vae"),
        (SDXL, 1, &[8, 8], "0: unet, vae; 1: text_encoder_2, text_encoder"),
        (SDXL, 1, &[8, 24], "1: unet, vae; 0: text_encoder_2, text_encoder"),
        (SDXL, 1, &[8, 8, 8], "0: unet; 1: text_encoder_2; 2: text_encoder, vae"),
        (SDXL, 1, &[8, 8, 8, 8], "0: unet; 1: text_encoder_2; 2: text_encoder; 3: vae"),
        (SDXL, 1, &[4, 4], "cpu: unet; 0: text_encoder_2; 1: text_encoder, vae"),
        (SDXL, 1, &[6, 1], "0: unet; cpu: text_encoder_2; 1: text_encoder, vae"),
        // Here the UNet has no place.
        (SDXL, 1, &[1, 1], "cpu: text_encoder_2; 0: text_encoder; 1: vae"),
        (SDXL, 2, &[8, 8], "cpu: unet; 0: text_encoder_2; 1: text_encoder, vae"),
        (SDXL, 2, &[24, 24], "0: unet, vae; 1: text_encoder_2, text_encoder"),
        (SD15_SAFE, 1, &[24], "0: unet, safety_checker, text_encoder, vae"),
        (SDXL, 1, &[24], "0: unet, text_encoder_2, text_encoder, vae"),
        (SD15, 1, &[], ""),
    ];

    /// Devices with these sizes in GB.
    fn devices_of_gb(gb: &[u64]) -> Vec<DeviceBudget> {
        let gpu =
            |(i, gb): (usize, &u64)| DeviceBudget { id: DeviceId::new(DeviceKind::Cuda, i), bytes: gb * 1_000_000_000 };
        gb.iter().enumerate().map(gpu).collect()
    }

    #[test]
    fn diffusers_map_is_that_of_diffusers() {
        for &(model, width, gb, expected) in DIFFUSERS {
            let bytes: Vec<u64> = model.iter().map(|(_, bytes)| bytes * width).collect();
            let memory: Vec<u64> = gb.iter().map(|gb| gb * 1_000_000_000).collect();
            let map = diffusers_map(&bytes, &memory).into_iter().map(|(place, here)| {
                let place = match place {
                    DiffusersPlace::Device(device) => device.to_string(),
                    DiffusersPlace::Host => "cpu".to_string(),
                };
                format!("{place}: {}", here.into_iter().map(|c| model[c].0).collect::<Vec<_>>().join(", "))
            });
            assert_eq!(map.collect::<Vec<_>>().join("; "), expected, "{gb:?} GB");
        }
    }

    #[test]
    fn balanced_places_whatever_any_placement_holds() {
        let mut found = [0, 0];
        for &(model, width, gb, _) in DIFFUSERS.iter().filter(|(_, _, gb, _)| !gb.is_empty()) {
            let devices = devices_of_gb(gb);
            let component = |(name, bytes): &(&str, u64)| {
                let cost = Cost { weight_bytes: bytes * width, ..Cost::default() };
                ComponentSize {
                    name: name.to_string(),
                    costs: devices.iter().map(|device| (device.id, cost)).collect(),
                }
            };
            let components: Vec<_> = model.iter().map(component).collect();
            // Try every assignment of components to devices.
            let fits = (0..gb.len().pow(model.len() as u32)).any(|number| {
                let mut held = vec![0; gb.len()];
                for (i, (_, bytes)) in model.iter().enumerate() {
                    held[number / gb.len().pow(i as u32) % gb.len()] += bytes * width;
                }
                held.iter().zip(&devices).all(|(held, device)| *held <= device.bytes)
            });
            let placed = by_bytes::place(Strategy::Balanced, &components, &vec![None; model.len()], &devices);
            assert_eq!(
                placed.is_ok(),
                fits,
                "{:?} in {gb:?} GB",
                model.iter().map(|(name, _)| *name).collect::<Vec<_>>()
            );
            found[usize::from(fits)] += 1;
        }
        assert!(found[0] >= 3 && found[1] >= 12, "both kinds of rows: {found:?}");
    }

    #[test]
    fn a_component_that_diffusers_would_lose_is_an_error_that_explains_it() {
        let place = |model: &[(&str, u64)], gb: &[u64]| {
            let network =
                |(name, bytes): &(&str, u64)| NetworkSize { name: name.to_string(), bytes: *bytes, is_run: true };
            balanced(&model.iter().map(network).collect::<Vec<_>>(), &devices_of_gb(gb))
        };
        let device = |place: &Option<DiffusersPlace>| match place {
            Some(DiffusersPlace::Device(device)) => *device,
            other => panic!("{other:?}"),
        };
        assert_eq!(place(SDXL, &[8, 8]).unwrap().iter().map(device).collect::<Vec<_>>(), [0, 1, 1, 0]);
        assert!(place(SDXL, &[6, 1]).unwrap().contains(&Some(DiffusersPlace::Host)));
        let message = place(SDXL, &[1, 1]).unwrap_err().to_string();
        for fact in ["would lose the unet", "the text_encoder_2 drove it out", "strategy = \"balanced\""] {
            assert!(message.contains(fact), "wanted: {fact}\n{message}");
        }
    }
}
