//! Where `device_map="balanced"` of diffusers would put the networks of a model, counted as diffusers counts: parameters
//! in the asked type, all of the VAE, and the safety checker, which sdshard does not run.

use super::{
    device_map::DeviceMap,
    fields::Located,
    strategies::{self, DeviceBudget, Network, Upstream, deal, replica_counts},
};
use crate::{
    backend::{DType, Device, DeviceId, DeviceInfo, DeviceKind, Rates, dry::Rules},
    error::{Error, Result},
    models::{
        route::Route,
        spec::{Listed, ModelSpec},
        vae::VaeEncoder,
    },
    pipeline::{
        Component, PerComponent,
        model::{Source, load_text_encoder, load_unet, load_vae, sections},
        placement::{Place, Reside, Sections},
    },
    weights::{Scope, Weights},
};

/// The parameters of a component. The integer buffers of some versions (`position_ids`) are left out: at most some
/// hundred bytes.
fn parameters(component: Component, spec: &ModelSpec) -> Result<u64> {
    // With weights in f32, a GPU holds four bytes for each parameter and nothing else.
    let rates = Rates { flops: 1.0, bandwidth: 1.0, link: 1.0 };
    let (device, ledger) = Device::dry(DeviceId::new(DeviceKind::Cuda, 0), Rules::Gpu(DType::F32), rates);
    let source = Source::resident(Route::whole(&device, sections(component, spec).len()));
    let weights = || Weights::shapes_only(component.name());
    match component {
        Component::TextEncoder => drop(load_text_encoder(weights(), spec, &source)?),
        Component::Unet => drop(load_unet(weights(), spec, &source)?),
        Component::Vae => {
            drop(load_vae(weights(), spec, &source)?);
            drop(VaeEncoder::load(&Scope::new(&weights(), &device), &spec.vae)?);
        }
    }
    Ok(ledger.take().weight_bytes / DType::F32.size() as u64)
}

/// The networks of the model in the order of its `model_index.json`, with the bytes that diffusers counts for them.
/// `auto` is the type for which the map has `"auto"`.
pub fn networks(map: &DeviceMap, spec: &ModelSpec, auto: DType) -> Result<Vec<Network>> {
    let network = |listed: &Listed| {
        let ours = Component::ALL.into_iter().find(|component| component.name() == listed.name);
        let count = match (ours, listed.parameters) {
            (Some(component), _) => parameters(component, spec)?,
            (None, Some(count)) => count,
            (None, None) => {
                tracing::debug!("{}: not a network that diffusers would place, or without a config", listed.name);
                return Ok(None);
            }
        };
        let dtype = map.dtype.of(&listed.name).unwrap_or(auto);
        Ok(Some(Network { name: listed.name.clone(), bytes: count * dtype.size() as u64, runs: ours.is_some() }))
    };
    spec.listed.iter().map(network).filter_map(Result::transpose).collect()
}

/// A place for each component of each replica. With `max_memory` the devices have exactly what it says, and others are
/// not used, as in diffusers; without it, what is free on each. The CPU takes part only where there is no GPU. A component
/// on the host visits the first device, as it does in diffusers.
pub fn place(map: &DeviceMap, spec: &ModelSpec, infos: &[&DeviceInfo]) -> Result<Vec<PerComponent<Place<DeviceId>>>> {
    let has_gpu = infos.iter().any(|info| info.id.kind != DeviceKind::Cpu);
    let auto = if has_gpu { DType::F16 } else { DType::F32 };
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
        let placed = strategies::diffusers_balanced(&networks, group)?;
        for (network, place) in networks.iter().zip(&placed).filter(|(network, _)| !network.runs) {
            let place = match place {
                Some(Upstream::Device(device)) => format!("put the {} on {}", network.name, group[*device].id),
                Some(Upstream::Host) => format!("run the {} from the host", network.name),
                None => format!("lose the {}", network.name),
            };
            tracing::info!("diffusers would {place}; sdshard does not run it");
        }
        PerComponent::try_new(|component| {
            let here = networks.iter().position(|network| network.name == component.name());
            let count = sections(component, spec).len();
            match here.and_then(|network| placed[network]) {
                Some(Upstream::Device(device)) => Ok(Place::whole(group[device].id, count)),
                Some(Upstream::Host) => {
                    tracing::warn!(
                        "the weights of the {} visit {} from the host's memory in every call, as with diffusers; \
                         strategy = \"balanced\" asks every device for room",
                        component.name(),
                        group[0].id
                    );
                    Ok(Place::Route(Sections { devices: vec![group[0].id; count], reside: Reside::Host }))
                }
                None => Err(Error::input(format!("model_index.json does not list the {}", component.name()))),
            }
        })
    };
    let groups = |count| deal(&budgets, count).into_iter().map(place).collect::<Result<Vec<_>>>();
    replica_counts(map.replicas.value, budgets.len(), groups)
}
