//! Chooses the replicas of one device map: the places that the map names, and those that its strategy finds.

use super::{
    by_bytes, by_time, diffusers,
    layout::Costs,
    problem::{Chosen, Problem, named_places},
};
use crate::{
    backend::{DeviceId, DeviceInfo, DeviceKind},
    device_map::{DeviceMap, Replicas, Strategy},
    error::Result,
    models::component::PerComponent,
    pipeline::placement::Place,
};

/// Chooses the replicas that `map` describes on `devices`. `budgets` are bytes, in the order of the trial's devices.
pub(super) fn choose(map: &DeviceMap, costs: &Costs, devices: &[DeviceId], budgets: &[u64]) -> Result<Chosen> {
    let named = &named_places(map, costs)?;
    let images = if map.strategy.value == Strategy::Throughput { costs.trial.largest.images } else { 1 };
    let problem = &Problem { map, costs, budgets, named, images };
    if named.iter().all(|(_, places)| places.is_some()) {
        return Ok(Chosen { layouts: vec![problem.replica(problem.named_placement())?], ..Chosen::default() });
    }
    // The CPU is used with GPUs only if the map lists it or nothing fits without it. It may be used instead of them.
    let is_listed = |id: &DeviceId| map.devices.iter().any(|device| device.value == *id);
    let (cpu, others): (Vec<DeviceId>, Vec<DeviceId>) =
        devices.iter().partition(|id| id.kind == DeviceKind::Cpu && !is_listed(id));
    if cpu.is_empty() || others.is_empty() {
        return by_strategy(problem, devices, &[]);
    }
    by_strategy(problem, &others, &cpu).or_else(|_| by_strategy(problem, devices, &[]))
}

/// Places components on `devices` by the map's strategy. `throughput` and `latency` also try `alternative` by itself.
fn by_strategy(problem: &Problem, devices: &[DeviceId], alternative: &[DeviceId]) -> Result<Chosen> {
    let (map, costs) = (problem.map, problem.costs);
    let place = |devices: &[DeviceId]| match map.strategy.value {
        Strategy::DiffusersBalanced => place_as_diffusers(problem, devices),
        _ => by_bytes::choose(problem, devices),
    };
    if matches!(map.strategy.value, Strategy::Throughput | Strategy::Latency) {
        return by_time::choose(problem, devices, alternative);
    }
    let classes = costs.by_class(devices);
    if !problem.one_class() || map.replicas.value == Replicas::Count(1) || classes.len() == 1 {
        return place(devices);
    }
    // The replicas must be of one class: take the class that gives most replicas.
    let by_class = classes.iter().map(|class| place(class)).filter_map(Result::ok);
    let largest =
        by_class.reduce(|largest, other| if other.layouts.len() > largest.layouts.len() { other } else { largest });
    largest.ok_or_else(|| {
        let names = classes.iter().map(|class| costs.info(class[0]).class.to_string()).collect::<Vec<_>>();
        map.numerics
            .refuse("numerics", "the devices of no numerics class hold all replicas")
            .found(names.join(", "))
            .hint("fewer replicas, or numerics = \"any\"")
    })
}

/// Places every component where diffusers would put it.
fn place_as_diffusers(problem: &Problem, devices: &[DeviceId]) -> Result<Chosen> {
    let infos: Vec<&DeviceInfo> = devices.iter().map(|id| problem.costs.info(*id)).collect();
    let placed = diffusers::place(problem.map, problem.costs.trial.spec, &infos)?.into_iter();
    let layouts =
        placed.map(|places: PerComponent<Place<DeviceId>>| problem.replica(places.map(|_, place| vec![place.clone()])));
    let reason = "where diffusers puts it".to_string();
    Ok(Chosen { layouts: layouts.collect::<Result<_>>()?, reason, ..Chosen::default() })
}
