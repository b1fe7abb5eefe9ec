//! From one map to its replicas: what it names, what its strategy makes of the rest, and why.

use super::{
    by_bytes, by_time, diffusers,
    layout::Costs,
    problem::{Chosen, Problem, named},
};
use crate::{
    backend::{DeviceId, DeviceInfo, DeviceKind},
    device_map::{DeviceMap, Replicas, Strategy},
    error::Result,
    models::component::PerComponent,
    pipeline::placement::Place,
};

/// The replicas that `map` describes on `devices`, which may hold `budgets` (of each of the trial's devices).
pub(super) fn choose(map: &DeviceMap, costs: &Costs, devices: &[DeviceId], budgets: &[u64]) -> Result<Chosen> {
    let named = &named(map, costs)?;
    let images = if map.strategy.value == Strategy::Throughput { costs.trial.largest.images } else { 1 };
    let problem = &Problem { map, costs, budgets, named, images };
    if named.iter().all(|(_, places)| places.is_some()) {
        return Ok(Chosen { layouts: vec![problem.replica(problem.named_only())?], ..Chosen::default() });
    }
    // The CPU works beside a GPU only where the map lists it, or where nothing fits without it. It may work instead of one.
    let is_listed = |id: &DeviceId| map.devices.iter().any(|device| device.value == *id);
    let (cpu, others): (Vec<DeviceId>, Vec<DeviceId>) =
        devices.iter().partition(|id| id.kind == DeviceKind::Cpu && !is_listed(id));
    if cpu.is_empty() || others.is_empty() {
        return by_strategy(problem, devices, &[]);
    }
    by_strategy(problem, &others, &cpu).or_else(|_| by_strategy(problem, devices, &[]))
}

/// What the map's strategy makes of some devices. One that knows time may use `instead` of them.
fn by_strategy(problem: &Problem, devices: &[DeviceId], instead: &[DeviceId]) -> Result<Chosen> {
    let (map, costs) = (problem.map, problem.costs);
    let place = |devices: &[DeviceId]| match map.strategy.value {
        Strategy::DiffusersBalanced => as_diffusers(problem, devices),
        _ => by_bytes::choose(problem, devices),
    };
    if matches!(map.strategy.value, Strategy::Throughput | Strategy::Latency) {
        return by_time::choose(problem, devices, instead);
    }
    let classes = costs.by_class(devices);
    if !problem.one_class() || map.replicas.value == Replicas::Count(1) || classes.len() == 1 {
        return place(devices);
    }
    // Replicas of one class: of the class that holds the most.
    let of_class = classes.iter().map(|class| place(class)).filter_map(Result::ok);
    let most = of_class.reduce(|most, other| if other.layouts.len() > most.layouts.len() { other } else { most });
    most.ok_or_else(|| {
        let names = classes.iter().map(|class| costs.info(class[0]).class.to_string()).collect::<Vec<_>>();
        map.numerics
            .refuse("numerics", "the devices of no numerics class hold all replicas")
            .found(names.join(", "))
            .hint("fewer replicas, or numerics = \"any\"")
    })
}

/// Where diffusers would put everything.
fn as_diffusers(problem: &Problem, devices: &[DeviceId]) -> Result<Chosen> {
    let infos: Vec<&DeviceInfo> = devices.iter().map(|id| problem.costs.info(*id)).collect();
    let placed = diffusers::place(problem.map, problem.costs.trial.spec, &infos)?.into_iter();
    let layouts =
        placed.map(|places: PerComponent<Place<DeviceId>>| problem.replica(places.map(|_, place| vec![place.clone()])));
    let why = "where diffusers puts it".to_string();
    Ok(Chosen { layouts: layouts.collect::<Result<_>>()?, why, ..Chosen::default() })
}
