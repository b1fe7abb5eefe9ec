//! The strategies that decide by bytes and place each component whole on one device. If that is impossible, `balanced`
//! and `balanced_low_0` cut or offload by predicted time. [`place`] is a pure function of sizes and budgets, so its
//! placements can be tested without the devices.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
    ops::Range,
};

use super::{
    Cost,
    layout::resident_device,
    problem::{Chosen, Family, Problem, Rejected},
    search,
    tuning::Tuning,
};
use crate::{
    backend::DeviceId,
    device_map::{Replicas, Strategy, size::format_bytes},
    error::{Error, Result},
    models::component::ComponentId,
    pipeline::placement::Placement,
    world::share,
};

/// A component and its cost on each device. The cost depends on the device, because f16 weights are smaller than f32.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ComponentSize {
    /// The name in `model_index.json`.
    pub name: String,
    /// The cost on each device that the component may be placed on.
    pub costs: BTreeMap<DeviceId, Cost>,
}

impl ComponentSize {
    fn new(problem: &Problem, component: ComponentId, devices: &[DeviceId]) -> Result<Self> {
        let costs = problem.costs;
        let by_device = devices.iter().map(|id| Ok((*id, costs.whole(component, *id)?))).collect::<Result<_>>()?;
        Ok(Self { name: costs.name(component).to_string(), costs: by_device })
    }

    /// The cost on a device; zero for a device that is not in `costs`.
    fn cost(&self, id: DeviceId) -> Cost {
        self.costs.get(&id).copied().unwrap_or_default()
    }

    /// The largest number of bytes that it needs on any device that it has for itself.
    fn max_alone_bytes(&self) -> u64 {
        self.costs.values().map(Cost::alone_bytes).max().unwrap_or(0)
    }
}

/// A device with the bytes that may be used on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceBudget {
    pub id: DeviceId,
    /// The limit in bytes for weights and arenas together.
    pub bytes: u64,
}

impl DeviceBudget {
    fn all(problem: &Problem, devices: &[DeviceId]) -> Vec<Self> {
        devices.iter().map(|&id| Self { id, bytes: problem.budget(id) }).collect()
    }

    pub fn describe_free(&self) -> String {
        format!("{} free on {}", format_bytes(self.bytes), self.id)
    }
}

/// The bytes that components need together on one device: the sum of their weights and persistent arenas, and the
/// largest of their transient arenas.
pub(super) fn needed_bytes(components: impl IntoIterator<Item = Cost>) -> u64 {
    let (resident, arena) = components
        .into_iter()
        .fold((0, 0), |(resident, arena), cost| (resident + cost.resident_bytes(), cost.activation_bytes.max(arena)));
    resident + arena
}

/// Places the components on `devices` by a strategy that decides by bytes.
pub(super) fn choose(problem: &Problem, devices: &[DeviceId]) -> Result<Chosen> {
    let costs = problem.costs;
    let mut budgets = DeviceBudget::all(problem, devices);
    // A component that the map cuts, offloads or pools is not placed here; its weights and persistent arenas are
    // subtracted from the budgets.
    let (mut components, mut sizes, mut required) = (Vec::new(), Vec::new(), Vec::new());
    for (component, places) in problem.named.iter() {
        let required_device = match places.as_deref() {
            Some([place]) => resident_device(place).filter(|id| devices.contains(id)),
            _ => None,
        };
        if let (Some(places), None) = (places, required_device) {
            for place in places {
                for (id, cost) in costs.place_costs(component, place, 1)? {
                    if let Some(budget) = budgets.iter_mut().find(|budget| budget.id == id) {
                        budget.bytes = budget.bytes.saturating_sub(cost.resident_bytes());
                    }
                }
            }
            continue;
        }
        components.push(component);
        sizes.push(ComponentSize::new(problem, component, devices)?);
        required.push(required_device);
    }
    let replica = |placed: &[DeviceId]| {
        let placed: BTreeMap<ComponentId, DeviceId> = components.iter().copied().zip(placed.iter().copied()).collect();
        let placement: Placement<DeviceId> = problem.named.map(|component, places| match places {
            Some(places) => places.clone(),
            None => vec![problem.whole(component, placed[&component])],
        });
        problem.replica(placement)
    };
    let strategy = problem.map.strategy.value;
    let placed = match place_replicas(strategy, problem.map.replicas.value, &sizes, &required, &budgets) {
        Ok(placed) => placed,
        Err(refused) if matches!(strategy, Strategy::Balanced | Strategy::BalancedLow0) => {
            return cut_or_offload(problem, devices, refused);
        }
        Err(refused) => return Err(refused),
    };
    let layouts = placed.iter().map(|placed| replica(placed)).collect::<Result<Vec<_>>>()?;
    let mut rejected = Vec::new();
    if let [placed] = &placed[..] {
        let (_, chosen_bytes) = costs.fullest_device(&layouts)?;
        let others = [Strategy::Balanced, Strategy::Sequential, Strategy::Single].into_iter();
        for other in others.filter(|other| *other != strategy) {
            let why = match place(other, &sizes, &required, &budgets) {
                Ok(same) if same == *placed => continue,
                Ok(other) => {
                    let (device, bytes) = costs.fullest_device([&replica(&other)?])?;
                    let difference = match bytes.cmp(&chosen_bytes) {
                        Ordering::Less => format!("{} less", format_bytes(chosen_bytes - bytes)),
                        Ordering::Equal => "as much".to_string(),
                        Ordering::Greater => format!("{} more", format_bytes(bytes - chosen_bytes)),
                    };
                    format!("the fullest device, {device}, would hold {}: {difference}", format_bytes(bytes))
                }
                Err(refused) => first_line(&refused),
            };
            rejected.push(Rejected { what: format!("strategy \"{}\"", other.name()), why });
        }
    }
    let reason = match strategy {
        Strategy::Sequential => "the devices are filled in order".to_string(),
        Strategy::Single => "the first device that holds all components without a place in the map".to_string(),
        _ => {
            let (id, bytes) = costs.fullest_device(&layouts)?;
            let (held, budget) = (format_bytes(bytes), format_bytes(problem.budget(id)));
            let aim = match strategy {
                Strategy::BalancedLow0 => format!("puts as little as possible on {}", devices[0]),
                _ => "evens out the bytes".to_string(),
            };
            format!("{aim}; the fullest device, {id}, holds {held} of {budget}")
        }
    };
    Ok(Chosen { layouts, reason, rejected })
}

/// Cuts components, or else offloads weights, because not all components fit whole: `refused` is the error for that.
fn cut_or_offload(problem: &Problem, devices: &[DeviceId], refused: Error) -> Result<Chosen> {
    let groups = match problem.map.replicas.value {
        Replicas::Count(count) => partition(devices, count),
        Replicas::Max => vec![devices],
    };
    let whole = Rejected { what: "every component whole on one device".to_string(), why: first_line(&refused) };
    let mut chosen = Chosen { rejected: vec![whole], ..Chosen::default() };
    let search = search::ReplicaSearch::new(*problem);
    for group in groups {
        let found = search.run(group, true)?;
        let best = |family| found.iter().find(|(other, _)| *other == Some(family)).map(|(_, scored)| scored);
        let (scored, reason) = match (best(Family::Cut), best(Family::Offloaded)) {
            (Some(cut), _) => (cut, "what no device holds whole is cut where it takes least time"),
            (None, Some(offloaded)) => {
                (offloaded, "no cut fits either, so weights are offloaded to the host's memory or the disk")
            }
            (None, None) => return Err(refused),
        };
        chosen.reason = reason.to_string();
        chosen.layouts.extend(scored.layouts.clone());
    }
    Ok(chosen)
}

/// Whether whole components fit on `devices`.
///
/// # Errors
/// If they do not fit, with the largest obstacle.
pub(super) fn check_whole(problem: &Problem, devices: &[DeviceId]) -> Result<()> {
    let size = |component| ComponentSize::new(problem, component, devices);
    let sizes = problem.costs.components().map(size).collect::<Result<Vec<_>>>()?;
    let requested: Vec<Option<DeviceId>> = problem
        .named
        .iter()
        .map(|(_, places)| places.as_ref().and_then(|places| resident_device(&places[0])))
        .collect();
    place(Strategy::Balanced, &sizes, &requested, &DeviceBudget::all(problem, devices)).map(drop)
}

fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

/// Chooses a device for each of `components`, in their order. `devices` has the preferred device first.
///
/// `named` has one entry for each component: the device that the map requires, or `None` if the strategy may choose.
/// The same input always gives the same placement.
///
/// # Errors
/// If something does not fit, with the bytes that are needed and free; or if the map requires a device that is not
/// among `devices`.
pub(super) fn place(
    strategy: Strategy,
    components: &[ComponentSize],
    named: &[Option<DeviceId>],
    devices: &[DeviceBudget],
) -> Result<Vec<DeviceId>> {
    let mut search = PlacementSearch::new(strategy, components, named, devices)?;
    search.place_next(0, 0, &mut search.named.clone());
    match search.best.take() {
        Some((_, placement)) => Ok(placement.iter().map(|&device| devices[device].id).collect()),
        None => Err(search.explain_failure()),
    }
}

/// Chooses a placement for each replica: replica r uses the r-th group of [`partition`]. [`Replicas::Max`] is the
/// largest number of groups such that every group holds a whole pipeline.
fn place_replicas(
    strategy: Strategy,
    replicas: Replicas,
    components: &[ComponentSize],
    named: &[Option<DeviceId>],
    devices: &[DeviceBudget],
) -> Result<Vec<Vec<DeviceId>>> {
    let place_groups = |count: usize| -> Result<Vec<_>> {
        partition(devices, count).into_iter().map(|group| place(strategy, components, named, group)).collect()
    };
    for_replicas(replicas, devices.len(), place_groups)
}

/// Calls `place_groups` with the number of replicas; for [`Replicas::Max`] with the largest number up to `devices` for
/// which it succeeds, or else with 1.
pub(super) fn for_replicas<T>(
    replicas: Replicas,
    devices: usize,
    place_groups: impl Fn(usize) -> Result<T>,
) -> Result<T> {
    match replicas {
        Replicas::Count(1) => place_groups(1),
        Replicas::Count(count) => place_groups(count).map_err(|e| e.context(format!("{count} replicas"))),
        Replicas::Max => {
            (2..=devices).rev().find_map(|count| place_groups(count).ok()).map_or_else(|| place_groups(1), Ok)
        }
    }
}

/// Divides `items` into `groups` contiguous groups, larger groups first. Their sizes differ by at most one.
pub(super) fn partition<T>(items: &[T], groups: usize) -> Vec<&[T]> {
    (0..groups).map(|group| &items[share(items.len(), group, groups)]).collect()
}

/// A search through the placements of one pipeline's components. The strategy determines which devices are tried for a
/// component and which placement is best. Devices are indices into `devices`.
struct PlacementSearch<'a> {
    strategy: Strategy,
    components: &'a [ComponentSize],
    devices: &'a [DeviceBudget],
    /// The index of the device that the map requires for each component, if any.
    named: Vec<Option<usize>>,
    /// The order in which components are placed.
    sequence: Vec<usize>,
    /// The number of complete or partial placements that may still be examined.
    steps_left: usize,
    /// The best placement so far: its rank, and the device of each component.
    best: Option<(Vec<u64>, Vec<usize>)>,
}

impl<'a> PlacementSearch<'a> {
    fn new(
        strategy: Strategy,
        components: &'a [ComponentSize],
        named: &[Option<DeviceId>],
        devices: &'a [DeviceBudget],
    ) -> Result<Self> {
        if devices.is_empty() {
            return Err(Error::input("there is no device to place the pipeline on"));
        }
        let index = |(component, id): (&ComponentSize, &Option<DeviceId>)| match id {
            None => Ok(None),
            Some(id) => match devices.iter().position(|device| device.id == *id) {
                Some(index) => Ok(Some(index)),
                None => Err(Error::input(format!("the {} is to be on {id}, which may not be used", component.name))
                    .found(list(devices.iter().map(|d| d.id.to_string())))),
            },
        };
        let named = components.iter().zip(named).map(index).collect::<Result<_>>()?;
        let mut sequence: Vec<usize> = (0..components.len()).collect();
        if !matches!(strategy, Strategy::Sequential | Strategy::Single) {
            // The largest component is placed first, because it fits on the fewest devices.
            sequence.sort_by_key(|&c| Reverse(components[c].max_alone_bytes()));
        }
        Ok(Self { strategy, components, devices, named, sequence, steps_left: Tuning::MAX_PLACEMENTS, best: None })
    }

    /// The devices that the strategy tries for a component. `last` is the device of the previous component for which
    /// the map requires none; `is_first` says that there is no such component. `single` stays on that device, and
    /// `sequential` never returns to an earlier one.
    fn choices(&self, is_first: bool, last: usize) -> Range<usize> {
        match self.strategy {
            Strategy::Single if !is_first => last..last + 1,
            Strategy::Sequential => last..self.devices.len(),
            _ => 0..self.devices.len(),
        }
    }

    /// The values by which the strategy compares placements, smaller is better. `balanced` compares the fullest device,
    /// then the next fullest, and so on; `balanced_low_0` compares the first device before these. The other strategies
    /// take the first placement that fits, so their rank is empty.
    fn rank(&self, mut loads: Vec<u64>) -> Vec<u64> {
        match self.strategy {
            Strategy::Sequential | Strategy::Single => loads.clear(),
            Strategy::BalancedLow0 => loads[1..].sort_unstable_by_key(|load| Reverse(*load)),
            // The last three strategies use other searches.
            Strategy::Balanced | Strategy::DiffusersBalanced | Strategy::Throughput | Strategy::Latency => {
                loads.sort_unstable_by_key(|load| Reverse(*load));
            }
        }
        loads
    }

    /// Tries all devices for the component at position `next` of the sequence, and so all placements that begin like
    /// `placement`. Of equally good placements the first is kept.
    fn place_next(&mut self, next: usize, last: usize, placement: &mut Vec<Option<usize>>) {
        if self.steps_left == 0 {
            return;
        }
        self.steps_left -= 1;
        let loads = self.loads(placement);
        if !self.fits(&loads) {
            return;
        }
        // Adding a component never reduces a load, so a partial placement that is already worse cannot become better.
        let rank = self.rank(loads);
        if self.best.as_ref().is_some_and(|(best, _)| rank.is_empty() || rank[0] > best[0]) {
            return;
        }
        let Some(&component) = self.sequence.get(next) else {
            if self.best.as_ref().is_none_or(|(best, _)| rank < *best) {
                self.best = Some((rank, placement.iter().flatten().copied().collect()));
            }
            return;
        };
        if self.named[component].is_some() {
            return self.place_next(next + 1, last, placement);
        }
        let is_first = self.sequence[..next].iter().all(|before| self.named[*before].is_some());
        for device in self.choices(is_first, last) {
            placement[component] = Some(device);
            self.place_next(next + 1, device, placement);
        }
        placement[component] = None;
    }

    /// The bytes on each device; components that have no device yet are not counted.
    fn loads(&self, placement: &[Option<usize>]) -> Vec<u64> {
        let load = |device: usize| {
            let on_device = self.components.iter().zip(placement).filter(move |(_, d)| **d == Some(device));
            needed_bytes(on_device.map(|(component, _)| component.cost(self.devices[device].id)))
        };
        (0..self.devices.len()).map(load).collect()
    }

    fn fits(&self, loads: &[u64]) -> bool {
        loads.iter().zip(self.devices).all(|(load, device)| *load <= device.bytes)
    }

    fn describe_free(&self) -> String {
        list(self.devices.iter().map(DeviceBudget::describe_free))
    }

    /// The error if there is no placement. It names the components that the map places, if they do not fit; else a
    /// component that fits on no device; else all components.
    fn explain_failure(&self) -> Error {
        let hint = "a smaller picture, more `devices`, or more in [max_memory] if it is set";

        for (index, load) in self.loads(&self.named).into_iter().enumerate() {
            let device = &self.devices[index];
            if load > device.bytes {
                let on_device = self.components.iter().zip(&self.named).filter(|(_, named)| **named == Some(index));
                let names = list(on_device.map(|(component, _)| component.name.clone()));
                return Error::input(format!("{names} placed on {} by name: {} needed", device.id, format_bytes(load)))
                    .found(device.describe_free())
                    .hint(hint);
            }
        }
        let roomiest = self.devices.iter().max_by_key(|device| device.bytes).map(|device| device.id);
        let on_roomiest = |component: &ComponentSize| roomiest.map(|id| component.cost(id)).unwrap_or_default();
        let fits_nowhere =
            |c: &&ComponentSize| self.devices.iter().all(|device| c.cost(device.id).alone_bytes() > device.bytes);
        if let Some(component) = self.components.iter().find(fits_nowhere) {
            let cost = on_roomiest(component);
            return Error::input(format!(
                "the {} fits on no device: it needs {} ({} of weights, {} for one request)",
                component.name,
                format_bytes(cost.alone_bytes()),
                format_bytes(cost.weight_bytes),
                format_bytes(cost.activation_bytes + cost.keep_bytes),
            ))
            .found(self.describe_free())
            .hint(hint);
        }
        let parts = list(self.components.iter().map(|c| format!("{} {}", c.name, format_bytes(c.max_alone_bytes()))));
        match self.strategy {
            Strategy::Single => Error::input(format!(
                "the pipeline fits on no single device: it needs {} ({parts})",
                format_bytes(needed_bytes(self.components.iter().map(on_roomiest)))
            ))
            .found(self.describe_free())
            .hint(format!("strategy = \"balanced\"; or {hint}")),
            Strategy::Sequential => {
                Error::input(format!("strategy \"{}\" leaves a device too full: {parts}", self.strategy.name()))
                    .found(self.describe_free())
                    .hint(format!("strategy = \"balanced\", which tries every placement; or {hint}"))
            }
            Strategy::Balanced
            | Strategy::BalancedLow0
            | Strategy::DiffusersBalanced
            | Strategy::Throughput
            | Strategy::Latency => Error::input(format!("the components do not fit on the devices together: {parts}"))
                .found(self.describe_free())
                .hint(hint),
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DeviceKind;

    const GIB: u64 = 1 << 30;

    fn component(name: &str, weights: u64, activations: u64) -> ComponentSize {
        let cost = Cost { weight_bytes: weights, activation_bytes: activations, ..Cost::default() };
        let costs = (0..8).map(|i| (DeviceId::new(DeviceKind::Cuda, i), cost)).collect();
        ComponentSize { name: name.to_string(), costs }
    }

    /// Approximately SD 1.5 in f16, in tenths of a GiB.
    fn pipeline() -> Vec<ComponentSize> {
        let tenth = GIB / 10;
        vec![
            component("text_encoder", 2 * tenth, tenth),
            component("unet", 16 * tenth, 6 * tenth),
            component("vae", 2 * tenth, 19 * tenth),
        ]
    }

    fn devices(gib: &[u64]) -> Vec<DeviceBudget> {
        let device =
            |(i, gib): (usize, &u64)| DeviceBudget { id: DeviceId::new(DeviceKind::Cuda, i), bytes: gib * GIB };
        gib.iter().enumerate().map(device).collect()
    }

    /// The device numbers of a placement.
    fn indices(placement: &[DeviceId]) -> Vec<usize> {
        placement.iter().map(|id| id.index.unwrap()).collect()
    }

    fn placed(strategy: Strategy, gib: &[u64]) -> Vec<usize> {
        indices(&place(strategy, &pipeline(), &[None; 3], &devices(gib)).unwrap())
    }

    #[test]
    fn arenas_on_one_device_are_shared_and_weights_add_up() {
        let size = |weight_bytes, activation_bytes, keep_bytes| Cost {
            weight_bytes,
            activation_bytes,
            keep_bytes,
            ..Cost::default()
        };
        assert_eq!(needed_bytes([size(10, 5, 1), size(20, 7, 0)]), 10 + 1 + 20 + 7);
        assert_eq!(needed_bytes([]), 0);
    }

    #[test]
    fn balanced_evens_out_the_fullest_device() {
        for (gib, expected) in [
            (&[24][..], [0, 0, 0]),
            // With the text encoder, the VAE's device holds 2.3 GiB instead of 2.1; the UNet's device would hold 2.4.
            (&[24, 24], [1, 0, 1]),
            (&[24, 24, 24], [2, 0, 1]),
            (&[24, 24, 24, 24], [2, 0, 1]),
            // The first device is too small for the UNet and for the VAE, so both are on the other device.
            (&[1, 24], [0, 1, 1]),
            (&[1, 4, 1], [0, 1, 1]),
        ] {
            assert_eq!(placed(Strategy::Balanced, gib), expected, "{gib:?}");
        }
    }

    #[test]
    fn balanced_finds_the_only_placement_that_fits() {
        // A search that puts 5 on the device of 6 and 3 + 3 on that of 9 has no room left for 4.
        let sizes = [5, 4, 3, 3].map(|gib| component(&format!("c{gib}"), gib * GIB, 0));
        let placement = place(Strategy::Balanced, &sizes, &[None; 4], &devices(&[9, 6])).unwrap();
        assert_eq!(indices(&placement), [0, 0, 1, 1]);
    }

    #[test]
    fn a_component_has_the_size_of_the_device_that_it_is_on() {
        let ids = devices(&[3, 3]);
        let mut sizes = pipeline();
        // Weights in f32 are twice as large.
        for size in sizes.iter_mut().filter_map(|component| component.costs.get_mut(&ids[0].id)) {
            size.weight_bytes *= 2;
        }
        assert_eq!(indices(&place(Strategy::Balanced, &sizes[..2], &[None; 2], &ids).unwrap()), [0, 1]);
        assert_eq!(indices(&place(Strategy::Single, &sizes[..2], &[None; 2], &ids).unwrap()), [1, 1]);
    }

    #[test]
    fn single_takes_the_first_device_that_holds_all() {
        assert_eq!(placed(Strategy::Single, &[24, 24]), [0, 0, 0]);
        assert_eq!(placed(Strategy::Single, &[3, 24]), [1, 1, 1]);
    }

    #[test]
    fn balanced_low_0_keeps_the_first_device_empty() {
        for (gib, expected) in [
            (&[24][..], [0, 0, 0]),
            (&[24, 24], [1, 1, 1]),
            (&[24, 24, 24], [2, 1, 2]),
            // The second device cannot hold everything; the first device gets the smallest possible part.
            (&[24, 3], [1, 1, 0]),
        ] {
            assert_eq!(placed(Strategy::BalancedLow0, gib), expected, "{gib:?}");
        }
    }

    #[test]
    fn sequential_fills_the_devices_in_order() {
        for (gib, expected) in [
            (&[24, 24][..], [0, 0, 0]),
            (&[3, 24], [0, 0, 1]),
            (&[1, 24], [0, 1, 1]),
            // The VAE would fit on the text encoder's device, but `sequential` does not return to it.
            (&[3, 1, 24], [0, 0, 2]),
        ] {
            assert_eq!(placed(Strategy::Sequential, gib), expected, "{gib:?}");
        }
        let ids = devices(&[3, 3]);
        let message = place(Strategy::Sequential, &pipeline(), &[None, None, Some(ids[0].id)], &ids);
        assert_eq!(indices(&message.unwrap()), [0, 1, 0]);
        let message = place(Strategy::Sequential, &pipeline(), &[None; 3], &devices(&[1, 3])).unwrap_err().to_string();
        assert!(message.contains("\"sequential\" leaves a device too full"), "{message}");
        assert!(message.contains("strategy = \"balanced\""), "{message}");
    }

    #[test]
    fn named_components_stay_where_they_are_named() {
        let ids = devices(&[24, 24]);
        for strategy in [Strategy::Balanced, Strategy::Single, Strategy::Sequential] {
            let placement = place(strategy, &pipeline(), &[None, Some(ids[1].id), None], &ids).unwrap();
            assert_eq!(indices(&placement), [0, 1, 0], "{strategy:?}");
        }
    }

    #[test]
    fn an_error_names_what_does_not_fit_with_its_bytes() {
        let refused = |strategy, named: [Option<usize>; 3], gib: &[u64]| {
            let devices = devices(gib);
            let named = named.map(|n| n.map(|n| devices[n].id));
            let error = place(strategy, &pipeline(), &named, &devices).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        for (message, facts) in [
            (
                refused(Strategy::Balanced, [None; 3], &[2, 1]),
                [
                    "the unet fits on no device: it needs 2.2 GiB (1.6 GiB of weights, 615 MiB",
                    "found: 2.0 GiB free on cuda:0, 1.0 GiB free on cuda:1",
                ],
            ),
            (
                refused(Strategy::Balanced, [None; 3], &[3]),
                ["together", "text_encoder 308 MiB, unet 2.2 GiB, vae 2.1 GiB"],
            ),
            (refused(Strategy::Single, [None; 3], &[3, 3]), ["no single device", "3.9 GiB"]),
            (
                refused(Strategy::Balanced, [None, Some(0), None], &[1, 24]),
                ["unet placed on cuda:0 by name: 2.2 GiB", "found: 1.0 GiB free on cuda:0"],
            ),
        ] {
            for fact in facts.into_iter().chain(["try:"]) {
                assert!(message.contains(fact), "wanted: {fact}\n{message}");
            }
        }
    }

    #[test]
    fn devices_are_partitioned_into_contiguous_groups_larger_ones_first() {
        for (items, groups, sizes) in [
            (3, 2, &[2, 1][..]),
            (5, 4, &[2, 1, 1, 1]),
            (2, 4, &[1, 1, 0, 0]),
            (17, 8, &[3, 2, 2, 2, 2, 2, 2, 2]),
            (0, 2, &[0, 0]),
        ] {
            let all: Vec<usize> = (0..items).collect();
            let parts = partition(&all, groups);
            assert_eq!(parts.iter().map(|group| group.len()).collect::<Vec<_>>(), sizes);
            assert_eq!(parts.concat(), all);
        }
    }

    #[test]
    fn replicas_get_groups_and_max_gets_as_many_as_hold_a_pipeline() {
        let replicas = |replicas, gib: &[u64]| {
            let placed = place_replicas(Strategy::Balanced, replicas, &pipeline(), &[None; 3], &devices(gib));
            placed.map(|placed| placed.iter().map(|placement| indices(placement)).collect::<Vec<_>>())
        };
        assert_eq!(replicas(Replicas::Count(2), &[24, 24, 24]).unwrap(), [[1, 0, 1], [2, 2, 2]]);
        assert_eq!(replicas(Replicas::Max, &[24, 24]).unwrap(), [[0, 0, 0], [1, 1, 1]]);
        assert_eq!(replicas(Replicas::Max, &[3, 3, 3, 3]).unwrap(), [[1, 0, 1], [3, 2, 3]]);
        assert_eq!(replicas(Replicas::Max, &[3, 3]).unwrap(), [[1, 0, 1]]);
        assert!(replicas(Replicas::Max, &[1]).is_err());
        let message = replicas(Replicas::Count(2), &[24, 1]).unwrap_err().to_string();
        assert!(message.starts_with("2 replicas: the unet fits on no device"), "{message}");
    }
}
