//! From one map to its replicas: what it names, what its strategy makes of the rest, and why.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Located,
    device_map::{DeviceMap, InFlight, MapPlace, Numerics, Replicas, Strategy},
    diffusers,
    layout::{Costs, Layout, fits, resident},
    problem::{Family, Goal, Problem, Scored},
    search::Search,
    size::format_bytes,
    strategies::{self, ComponentSize, DeviceBudget, Size, partition},
    tuning::Tuning,
    words::{device_list, pictures, time},
};
use crate::{
    backend::{DeviceId, DeviceInfo, DeviceKind},
    error::{Error, Result},
    models::component::{ComponentId, PerComponent},
    pipeline::placement::{Place, Placement, Reside, Sections, each_once},
};

/// An alternative that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The alternative in words.
    pub what: String,
    /// By how much it lost.
    pub why: String,
}

/// The replicas of one map.
pub(super) struct Chosen {
    pub layouts: Vec<Layout>,
    /// What to say of every component that the map does not name.
    pub why: String,
    pub rejected: Vec<Rejected>,
}

/// The replicas that `map` describes on `devices`, which may hold `budgets` (of each of the trial's devices).
pub(super) fn choose(map: &DeviceMap, costs: &Costs, devices: &[DeviceId], budgets: &[u64]) -> Result<Chosen> {
    let named = named(map, costs)?;
    if named.iter().all(|(_, places)| places.is_some()) {
        let placement = named.map(|_, places| places.clone().unwrap_or_default());
        let layout = with_in_flight(map, costs, budgets, placement)?;
        return Ok(Chosen { layouts: vec![layout], why: String::new(), rejected: Vec::new() });
    }
    // The CPU works beside a GPU only where the map lists it, or where nothing fits without it. It may work instead of one.
    let is_listed = |id: &DeviceId| map.devices.iter().any(|device| device.value == *id);
    let (cpu, others): (Vec<DeviceId>, Vec<DeviceId>) =
        devices.iter().partition(|id| id.kind == DeviceKind::Cpu && !is_listed(id));
    if cpu.is_empty() || others.is_empty() {
        return by_strategy(map, costs, devices, &[], budgets, &named);
    }
    let without = by_strategy(map, costs, &others, &cpu, budgets, &named);
    without.or_else(|_| by_strategy(map, costs, devices, &[], budgets, &named))
}

/// The replicas of a map on some devices, or for those who go by time on `instead`.
fn by_strategy(
    map: &DeviceMap,
    costs: &Costs,
    devices: &[DeviceId],
    instead: &[DeviceId],
    budgets: &[u64],
    named: &PerComponent<Option<Vec<Place<DeviceId>>>>,
) -> Result<Chosen> {
    let place = |devices: &[DeviceId]| match map.strategy.value {
        Strategy::DiffusersBalanced => as_diffusers(map, costs, devices, budgets),
        _ => by_bytes(map, costs, devices, budgets, named),
    };
    let images = costs.trial.largest.images;
    match map.strategy.value {
        Strategy::Throughput => return by_time(map, costs, devices, instead, budgets, named, images),
        Strategy::Latency => return by_time(map, costs, devices, instead, budgets, named, 1),
        _ => {}
    }
    let classes = costs.by_class(devices);
    if map.numerics.value == Numerics::Any || map.replicas.value == Replicas::Count(1) || classes.len() == 1 {
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
fn as_diffusers(map: &DeviceMap, costs: &Costs, devices: &[DeviceId], budgets: &[u64]) -> Result<Chosen> {
    let infos: Vec<&DeviceInfo> = devices.iter().map(|id| costs.info(*id)).collect();
    let placed = diffusers::place(map, costs.trial.spec, &infos)?.into_iter();
    let placement = |places: PerComponent<Place<DeviceId>>| places.map(|_, place| vec![place.clone()]);
    let layouts = placed.map(|places| with_in_flight(map, costs, budgets, placement(places)));
    let why = "where diffusers puts it".to_string();
    Ok(Chosen { layouts: layouts.collect::<Result<_>>()?, why, rejected: Vec::new() })
}

/// The places that the map names.
fn named(map: &DeviceMap, costs: &Costs) -> Result<PerComponent<Option<Vec<Place<DeviceId>>>>> {
    costs.trial.spec.components.try_map(|_, component| match map.components.get(&component.name) {
        None => Ok(None),
        Some(pool) => {
            let sections = component.network.sections();
            let seat = |place| convert(&component.name, pool, place, &sections);
            pool.value.iter().map(seat).collect::<Result<Vec<_>>>().map(Some)
        }
    })
}

/// A place of a map as a device for each section.
fn convert(
    component: &str,
    pool: &Located<Vec<MapPlace>>,
    place: &MapPlace,
    sections: &[String],
) -> Result<Place<DeviceId>> {
    let route = |place: &MapPlace| -> Result<Sections<DeviceId>> {
        let device = |section: &String| {
            place.device_at(section).map(|device| device.value).ok_or_else(|| {
                pool.refuse(&format!("components.{component}"), format!("nothing says where {section} runs"))
                    .hint("\"\" = \"...\" among the shards is the device of the rest")
            })
        };
        // Neither form has two answers.
        let reside = place.resides().first().map_or(Reside::Device, |reside| reside.value);
        Ok(Sections { devices: sections.iter().map(device).collect::<Result<_>>()?, reside })
    };
    Ok(match place {
        MapPlace::Guided { negative, positive } => {
            Place::Guided { negative: route(negative)?, positive: route(positive)? }
        }
        place => Place::Route(route(place)?),
    })
}

/// A replica with as many requests at once as the map says, or as suits it. Instances of a pool that share a device with
/// other stages, or of unequal speed, are at times waited for by too few: then the prediction says how many are best.
fn with_in_flight(map: &DeviceMap, costs: &Costs, budgets: &[u64], placement: Placement<DeviceId>) -> Result<Layout> {
    let layout = |in_flight| Layout { placement: placement.clone(), in_flight, batch: map.batch.value };
    let least = match map.in_flight.value {
        InFlight::Count(count) => return Ok(layout(count)),
        InFlight::Auto => auto_in_flight(&placement, costs)?,
    };
    let mut best = layout(least);
    if placement[costs.trial.spec.denoiser()].len() > 1 {
        let mut best_rate = rate_of(costs, &best)?;
        for more in (1..=Tuning::MAX_EXTRA_IN_FLIGHT).map(|more| layout(least + more)) {
            let rate = if fits(&costs.held([&more])?, budgets) { rate_of(costs, &more)? } else { 0.0 };
            if rate > Tuning::MIN_IN_FLIGHT_SPEEDUP * best_rate {
                (best, best_rate) = (more, rate);
            }
        }
    }
    Ok(best)
}

/// Pictures per second of one replica that has its devices for itself.
fn rate_of(costs: &Costs, layout: &Layout) -> Result<f64> {
    let prediction = costs.load(std::slice::from_ref(layout))?.predict(Tuning::PREDICTED_REQUESTS);
    costs.trial.effort.spend(prediction.looks)?;
    Ok(prediction.images_per_second)
}

/// Requests that one replica should work on at once, so that none of its devices waits for work: one for each instance
/// of the slowest stage and one for each other stage that has devices of its own. Each device of a cut UNet is a stage.
pub(super) fn auto_in_flight(placement: &Placement<DeviceId>, costs: &Costs) -> Result<usize> {
    let seconds = placement.try_map(|component, places| -> Result<f64> {
        let Some(place) = places.first() else { return Ok(0.0) };
        let calls = if costs.denoises(component) { costs.calls } else { 1 };
        Ok(calls as f64 * costs.of(component, place, 1)?.iter().map(|(_, cost)| cost.seconds).sum::<f64>())
    })?;
    let mut slowest_first: Vec<ComponentId> = costs.components().collect();
    slowest_first.sort_by(|a, b| seconds[*b].total_cmp(&seconds[*a]));
    let instances = |component: ComponentId| -> usize {
        let is_cut = |place: &Place<DeviceId>| costs.denoises(component) && place.is_cut();
        let pieces = |place: &Place<DeviceId>| if is_cut(place) { place.devices().len() } else { 1 };
        placement[component].iter().map(pieces).sum()
    };
    let devices =
        |component: ComponentId| -> Vec<DeviceId> { placement[component].iter().flat_map(Place::devices).collect() };
    let mut taken = devices(slowest_first[0]);
    let mut in_flight = instances(slowest_first[0]);
    for &component in &slowest_first[1..] {
        let own = devices(component);
        if own.iter().all(|device| !taken.contains(device)) {
            in_flight += if costs.denoises(component) { instances(component) } else { 1 };
            taken.extend(own);
        }
    }
    Ok(in_flight)
}

/// The strategies that know bytes: whole components, one device for each.
fn by_bytes(
    map: &DeviceMap,
    costs: &Costs,
    devices: &[DeviceId],
    budgets: &[u64],
    named: &PerComponent<Option<Vec<Place<DeviceId>>>>,
) -> Result<Chosen> {
    let mut left = device_budgets(costs, devices, budgets);
    // The strategy knows whole components on one device; what is placed otherwise only leaves it less room.
    let (mut sizes, mut requested) = (Vec::new(), Vec::new());
    for (component, places) in named.iter() {
        let asked = match places.as_deref() {
            None => None,
            Some([place]) if resident(place).is_some_and(|id| devices.contains(&id)) => resident(place),
            Some(places) => {
                for place in places {
                    for (id, cost) in costs.of(component, place, 1)? {
                        if let Some(budget) = left.iter_mut().find(|budget| budget.id == id) {
                            budget.bytes = budget.bytes.saturating_sub(cost.weight_bytes + cost.keep_bytes);
                        }
                    }
                }
                continue;
            }
        };
        sizes.push((component, component_size(costs, component, devices)?));
        requested.push(asked);
    }
    let (components, sizes): (Vec<ComponentId>, Vec<ComponentSize>) = sizes.into_iter().unzip();
    let placement = |placed: Vec<DeviceId>| -> Placement<DeviceId> {
        let placed: BTreeMap<ComponentId, DeviceId> = components.iter().copied().zip(placed).collect();
        named.map(|component, places| match (places, placed.get(&component)) {
            (Some(places), _) => places.clone(),
            (None, device) => {
                let device = *device.expect("a component that is not named is the strategy's");
                vec![Place::whole(device, costs.trial.sections(component))]
            }
        })
    };
    let strategy = map.strategy.value;
    let placed = strategies::place_replicas(strategy, map.replicas.value, &sizes, &requested, &left);
    let fallback = matches!(strategy, Strategy::Balanced | Strategy::BalancedLow0);
    match placed {
        Ok(placed) => {
            let fullest = |placed: &[DeviceId]| {
                costs.fullest([&with_in_flight(map, costs, budgets, placement(placed.to_vec()))?])
            };
            let rejected = match &placed[..] {
                [one] => other_strategies(strategy, one, &sizes, &requested, &left, fullest)?,
                _ => Vec::new(),
            };
            let layouts = placed.into_iter().map(|placed| with_in_flight(map, costs, budgets, placement(placed)));
            let layouts = layouts.collect::<Result<Vec<_>>>()?;
            let why = match strategy {
                Strategy::Balanced | Strategy::BalancedLow0 => {
                    let (id, bytes) = costs.fullest(&layouts)?;
                    let (held, budget) = (format_bytes(bytes), format_bytes(budgets[costs.index(id)]));
                    format!("evens out the bytes; the fullest device, {id}, holds {held} of {budget}")
                }
                Strategy::Sequential => "the devices are filled in order".to_string(),
                Strategy::Single => "the first device that holds the whole pipeline".to_string(),
                Strategy::DiffusersBalanced | Strategy::Throughput | Strategy::Latency => strategy.name().to_string(),
            };
            Ok(Chosen { layouts, why, rejected })
        }
        // Nothing whole fits: cut, and where that is not enough, offload weights.
        Err(refused) if fallback => {
            let groups = match map.replicas.value {
                Replicas::Count(count) => partition(devices, count),
                Replicas::Max => vec![devices],
            };
            let mut chosen = Chosen { layouts: Vec::new(), why: String::new(), rejected: Vec::new() };
            chosen.rejected.push(Rejected {
                what: "every component whole on one device".to_string(),
                why: first_line(&refused.to_string()),
            });
            for group in groups {
                let found = search(map, costs, budgets, named, 1).run(group, true)?;
                let step = [Family::Cut, Family::Offloaded].into_iter().find_map(|family| {
                    let (_, scored) = found.iter().find(|(other, _)| *other == Some(family))?;
                    Some((family, scored.clone()))
                });
                let Some((family, scored)) = step else { return Err(refused) };
                chosen.why = match family {
                    Family::Offloaded => {
                        "no cut fits either, so weights are offloaded to the host's memory or the disk".to_string()
                    }
                    _ => "what no device holds whole is cut where fewest bytes cross".to_string(),
                };
                chosen.layouts.extend(scored.layouts);
            }
            Ok(chosen)
        }
        Err(refused) => Err(refused),
    }
}

fn component_size(costs: &Costs, component: ComponentId, devices: &[DeviceId]) -> Result<ComponentSize> {
    let size = |id: &DeviceId| -> Result<(DeviceId, Size)> {
        let cost = costs.whole(component, *id)?;
        let (weight_bytes, activation_bytes, keep_bytes) = (cost.weight_bytes, cost.activation_bytes, cost.keep_bytes);
        Ok((*id, Size { weight_bytes, activation_bytes, keep_bytes }))
    };
    Ok(ComponentSize { name: costs.name(component).to_string(), on: devices.iter().map(size).collect::<Result<_>>()? })
}

fn component_sizes(costs: &Costs, devices: &[DeviceId]) -> Result<Vec<ComponentSize>> {
    costs.components().map(|component| component_size(costs, component, devices)).collect()
}

/// What each of `devices` may hold.
fn device_budgets(costs: &Costs, devices: &[DeviceId], budgets: &[u64]) -> Vec<DeviceBudget> {
    devices.iter().map(|&id| DeviceBudget { id, bytes: budgets[costs.index(id)] }).collect()
}

/// What the other strategies would have done with the fullest device, or why they cannot.
fn other_strategies(
    strategy: Strategy,
    placed: &[DeviceId],
    sizes: &[ComponentSize],
    requested: &[Option<DeviceId>],
    devices: &[DeviceBudget],
    fullest: impl Fn(&[DeviceId]) -> Result<(DeviceId, u64)>,
) -> Result<Vec<Rejected>> {
    let (_, mine) = fullest(placed)?;
    let others = [Strategy::Balanced, Strategy::Sequential, Strategy::Single].into_iter();
    let rejected = others.filter(|other| *other != strategy).map(|other| -> Result<Option<Rejected>> {
        let what = format!("strategy \"{}\"", other.name());
        let other = match strategies::place(other, sizes, requested, devices) {
            Ok(same) if same == placed => return Ok(None),
            Ok(other) => other,
            Err(refused) => return Ok(Some(Rejected { what, why: first_line(&refused.to_string()) })),
        };
        let (device, bytes) = fullest(&other)?;
        let difference = match bytes.cmp(&mine) {
            std::cmp::Ordering::Less => format!("{} less", format_bytes(mine - bytes)),
            std::cmp::Ordering::Equal => "as much".to_string(),
            std::cmp::Ordering::Greater => format!("{} more", format_bytes(bytes - mine)),
        };
        let why = format!("the fullest device, {device}, would hold {}: {difference}", format_bytes(bytes));
        Ok(Some(Rejected { what, why }))
    });
    rejected.filter_map(Result::transpose).collect()
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_string()
}

fn search<'a>(
    map: &DeviceMap,
    costs: &'a Costs<'a>,
    budgets: &'a [u64],
    named: &'a PerComponent<Option<Vec<Place<DeviceId>>>>,
    images: usize,
) -> Search<'a> {
    let in_flight = match map.in_flight.value {
        InFlight::Auto => None,
        InFlight::Count(count) => Some(count),
    };
    let one_class = map.numerics.value == Numerics::Same;
    let goal = if images == 1 { Goal::Latency } else { Goal::Throughput };
    Search::new(Problem { costs, budgets, named, in_flight, batch: map.batch.value, goal, images, one_class })
}

/// A plan that was looked at.
struct Tried {
    /// Its kind; `None` for replicas of several kinds.
    family: Option<Family>,
    scored: Scored,
    /// The devices of what the map does not name.
    devices: Vec<DeviceId>,
    /// Whether these are of one numerics class.
    simple: bool,
}

impl Tried {
    fn what(&self) -> String {
        let kind = self.family.map_or("replicas of several kinds", Family::name);
        format!("{kind}: {}", device_list(&self.devices))
    }

    /// By how much it lost.
    fn lost(&self, best: &Self, images: usize) -> String {
        let (its, bests) = (self.scored.seconds, best.scored.seconds);
        let mixed = if self.simple { "" } else { ", on devices of several numerics classes" };
        let of = pictures(images);
        match its.total_cmp(&bests) {
            _ if (its / bests - 1.0).abs() < Tuning::MIN_IMPROVEMENT => {
                format!("no less than {} for {of}{mixed}", time(images, bests))
            }
            std::cmp::Ordering::Less => {
                let percent = 100.0 * (1.0 - its / bests);
                format!("{} for {of}, only {percent:.0}% less{mixed}", time(images, its))
            }
            _ => {
                let more = its - bests;
                format!(
                    "{} for {of} rather than {}, {} more{mixed}",
                    time(images, its),
                    time(images, bests),
                    time(images, more)
                )
            }
        }
    }
}

/// The strategies that know time. `instead` may be used where none of `devices` is.
fn by_time(
    map: &DeviceMap,
    costs: &Costs,
    devices: &[DeviceId],
    instead: &[DeviceId],
    budgets: &[u64],
    named: &PerComponent<Option<Vec<Place<DeviceId>>>>,
    images: usize,
) -> Result<Chosen> {
    // A map that says how many replicas there are has its way.
    let said = map.replicas != Located::default();
    let groups = match map.replicas.value {
        Replicas::Count(count) if said && map.strategy.value == Strategy::Throughput => partition(devices, count),
        _ => vec![devices],
    };
    let one_replica = said && map.replicas.value != Replicas::Max;
    let share = if images == usize::MAX { images } else { images.div_ceil(groups.len()) };
    let search = search(map, costs, budgets, named, share);
    let mut chosen = Chosen { layouts: Vec::new(), why: String::new(), rejected: Vec::new() };
    for (index, group) in groups.iter().enumerate() {
        let mut sets = device_sets(costs, group, share);
        if !instead.is_empty() {
            sets.push(instead.to_vec());
        }
        let mut tried: Vec<Tried> = Vec::new();
        for (number, set) in sets.iter().enumerate() {
            costs.trial.effort.begin_part((groups.len() - index) * (sets.len() - number));
            // Several replicas of several classes would not draw the same pictures.
            let one_replica = one_replica || search.problem.one_class && costs.by_class(set).len() > 1;
            for (family, scored) in search.run(set, one_replica)? {
                let free = costs.components().filter(|component| named[*component].is_none());
                let used = free.flat_map(|component| scored.layouts.iter().flat_map(move |l| l.devices_of(component)));
                let mut devices = each_once(used);
                devices.sort();
                let simple = costs.by_class(&devices).len() <= 1;
                tried.push(Tried { family, scored, devices, simple });
            }
        }
        let best_of = |simple: bool| {
            let some = tried.iter().filter(|one| one.simple == simple);
            some.reduce(|best, one| {
                if one.scored.seconds < (1.0 - Tuning::MIN_IMPROVEMENT) * best.scored.seconds { one } else { best }
            })
        };
        let best = match (best_of(true), best_of(false)) {
            (Some(simple), Some(mixed))
                if mixed.scored.seconds < (1.0 - Tuning::MIN_MIXED_IMPROVEMENT) * simple.scored.seconds =>
            {
                mixed
            }
            (Some(best), _) | (None, Some(best)) => best,
            (None, None) => return Err(nothing_fits(costs, group, budgets, named)),
        };
        // Of the others the best of each kind, the chosen kind on other devices among them.
        for family in Family::ALL.into_iter().map(Some).chain([None]) {
            for simple in [true, false] {
                let others = tried.iter().filter(|one| one.family == family && one.simple == simple);
                let others = others.filter(|other| other.scored.layouts != best.scored.layouts);
                if let Some(other) = others.min_by(|a, b| a.scored.seconds.total_cmp(&b.scored.seconds)) {
                    chosen.rejected.push(Rejected { what: other.what(), why: other.lost(best, share) });
                }
            }
        }
        let merit = best.family.map_or("each device works at the pictures that it can hold", Family::merit);
        chosen.why = format!("{merit}; {} in {}", pictures(share), time(share, best.scored.seconds));
        chosen.layouts.extend(best.scored.layouts.clone());
    }
    let whole = devices.iter().filter_map(|id| too_small(costs, *id, budgets).transpose());
    chosen.rejected.extend(whole.collect::<Result<Vec<_>>>()?);
    if costs.trial.effort.was_cut_short() {
        chosen.rejected.push(Rejected {
            what: "further placements".to_string(),
            why: "there are too many for this map: the search ended after its share of steps".to_string(),
        });
    }
    Ok(chosen)
}

/// The devices that are worth planning for by themselves, the fewest first: those of one class, and all of them; of each the
/// fastest few as well, since what is slow may only keep the others waiting, and what draws nothing need not be loaded.
fn device_sets(costs: &Costs, devices: &[DeviceId], images: usize) -> Vec<Vec<DeviceId>> {
    let mut sets: Vec<Vec<DeviceId>> = Vec::new();
    let classes = costs.by_class(devices);
    let all = [devices.to_vec()];
    for class in classes.iter().chain(if classes.len() > 1 { &all[..] } else { &[] }) {
        let flops = |id: &DeviceId| costs.info(*id).rates.flops;
        let mut fastest = class.clone();
        fastest.sort_by(|a, b| flops(b).total_cmp(&flops(a)));
        for count in 1..=fastest.len() {
            let (few, rest) = fastest.split_at(count);
            let is_border = rest.first().is_none_or(|next| flops(next) < flops(&few[count - 1]));
            let is_round = count <= Tuning::MAX_SET_GROWN_BY_ONE || count.is_power_of_two() || rest.is_empty();
            if is_border && is_round || count == images || count == images.saturating_mul(2) {
                let set: Vec<DeviceId> = class.iter().copied().filter(|id| few.contains(id)).collect();
                if !sets.contains(&set) {
                    sets.push(set);
                }
            }
        }
    }
    sets
}

/// That a device does not hold the whole pipeline, and by how many bytes.
fn too_small(costs: &Costs, id: DeviceId, budgets: &[u64]) -> Result<Option<Rejected>> {
    let sizes = component_sizes(costs, &[id])?;
    let needed = strategies::needed_bytes(sizes.iter().filter_map(|size| size.on.get(&id)).copied());
    let budget = budgets[costs.index(id)];
    Ok((needed > budget).then(|| Rejected {
        what: format!("everything on {id}"),
        why: format!(
            "needs {}, {} more than the {} that may be used",
            format_bytes(needed),
            format_bytes(needed - budget),
            format_bytes(budget)
        ),
    }))
}

/// The message of `balanced` for the same devices, which names what does not fit; no cut and no offloading fits either.
fn nothing_fits(
    costs: &Costs,
    devices: &[DeviceId],
    budgets: &[u64],
    named: &PerComponent<Option<Vec<Place<DeviceId>>>>,
) -> Error {
    let left = device_budgets(costs, devices, budgets);
    let asked = |(_, places): (ComponentId, &Option<Vec<_>>)| places.as_ref().and_then(|places| resident(&places[0]));
    let requested: Vec<Option<DeviceId>> = named.iter().map(asked).collect();
    match component_sizes(costs, devices).map(|sizes| strategies::place(Strategy::Balanced, &sizes, &requested, &left))
    {
        Err(error) | Ok(Err(error)) => error,
        Ok(Ok(_)) if named.iter().any(|(_, places)| places.is_some()) => {
            Error::input("no placement fits beside what the map names")
                .hint("fewer [components], a smaller in_flight, or a smaller picture")
        }
        Ok(Ok(_)) if costs.trial.effort.was_cut_short() => {
            Error::input("no placement was found before the search for one had to end")
                .hint("fewer devices, a smaller in_flight or batch, or [components] that say where parts of it are")
        }
        Ok(Ok(_)) => Error::input("no placement fits, with as many requests at once as the map says")
            .hint("a smaller in_flight or batch, or a smaller picture"),
    }
}
