//! The strategies that decide by predicted time: they choose the plan that finishes all requested pictures first.

use std::cmp::Ordering;

use super::{
    by_bytes::{self, needed_bytes, partition},
    layout::Costs,
    problem::{Chosen, Family, Problem, Rejected, Scored},
    search::ReplicaSearch,
    tuning::Tuning,
    words::{device_list, pictures, time},
};
use crate::{
    backend::DeviceId,
    device_map::{Located, Replicas, Strategy, size::format_bytes},
    error::{Error, Result},
    pipeline::placement::each_once,
};

/// A plan that the search has found and predicted.
struct TriedPlan {
    /// The family of all its replicas; `None` if they are of several families.
    family: Option<Family>,
    scored: Scored,
    /// The devices of the components that the map does not name.
    devices: Vec<DeviceId>,
    /// Whether these devices have one numerics class.
    is_one_class: bool,
}

impl TriedPlan {
    fn description(&self) -> String {
        let kind = self.family.map_or("replicas of several kinds", Family::name);
        format!("{kind}: {}", device_list(&self.devices))
    }

    /// The reason why `best` was preferred, with the difference in time.
    fn reason_rejected(&self, best: &Self, images: usize) -> String {
        let (seconds, best_seconds) = (self.scored.seconds, best.scored.seconds);
        let mixed_note = if self.is_one_class { "" } else { ", on devices of several numerics classes" };
        let images_text = pictures(images);
        match seconds.total_cmp(&best_seconds) {
            _ if (seconds / best_seconds - 1.0).abs() < Tuning::MIN_IMPROVEMENT => {
                format!("no less than {} for {images_text}{mixed_note}", time(images, best_seconds))
            }
            Ordering::Less => {
                let percent = 100.0 * (1.0 - seconds / best_seconds);
                format!("{} for {images_text}, only {percent:.0}% less{mixed_note}", time(images, seconds))
            }
            _ => {
                let more = seconds - best_seconds;
                format!(
                    "{} for {images_text} rather than {}, {} more{mixed_note}",
                    time(images, seconds),
                    time(images, best_seconds),
                    time(images, more)
                )
            }
        }
    }
}

/// Chooses the plan that finishes the pictures of `problem` first, on some of `devices` or on `alternative`.
pub(super) fn choose(problem: &Problem, devices: &[DeviceId], alternative: &[DeviceId]) -> Result<Chosen> {
    let (map, costs, images) = (problem.map, problem.costs, problem.images);
    let effort = costs.trial.effort;
    // The map's number of replicas is used if the map gives one.
    let is_specified = map.replicas != Located::default();
    let groups = match map.replicas.value {
        Replicas::Count(count) if is_specified && map.strategy.value == Strategy::Throughput => {
            partition(devices, count)
        }
        _ => vec![devices],
    };
    let one_replica = is_specified && map.replicas.value != Replicas::Max;
    let share = if images == usize::MAX { images } else { images.div_ceil(groups.len()) };
    let search = ReplicaSearch::new(Problem { images: share, ..*problem });
    let mut chosen = Chosen::default();
    for (index, group) in groups.iter().enumerate() {
        let mut sets = device_sets(costs, group, share);
        if !alternative.is_empty() {
            sets.push(alternative.to_vec());
        }
        let mut tried: Vec<TriedPlan> = Vec::new();
        for (number, set) in sets.iter().enumerate() {
            effort.begin_part((groups.len() - index) * (sets.len() - number));
            // Replicas of different numerics classes would give different pictures.
            let one_replica = one_replica || problem.one_class() && costs.by_class(set).len() > 1;
            for (family, scored) in search.run(set, one_replica)? {
                let free = costs.components().filter(|component| problem.named[*component].is_none());
                let used = free.flat_map(|component| scored.layouts.iter().flat_map(move |l| l.devices_of(component)));
                let mut devices = each_once(used);
                devices.sort();
                let is_one_class = costs.by_class(&devices).len() <= 1;
                tried.push(TriedPlan { family, scored, devices, is_one_class });
            }
        }
        let best = best_of(&tried).ok_or_else(|| nothing_fits(problem, group))?;
        // List the best rejected plan of each family, including the chosen family on other devices.
        for family in Family::ALL.into_iter().map(Some).chain([None]) {
            for is_one_class in [true, false] {
                let others = tried.iter().filter(|plan| plan.family == family && plan.is_one_class == is_one_class);
                let others = others.filter(|other| other.scored.layouts != best.scored.layouts);
                if let Some(other) = others.min_by(|a, b| a.scored.seconds.total_cmp(&b.scored.seconds)) {
                    chosen
                        .rejected
                        .push(Rejected { what: other.description(), why: other.reason_rejected(best, share) });
                }
            }
        }
        let merit = best.family.map_or("each device works at the pictures that it can hold", Family::merit);
        chosen.reason = format!("{merit}; {} in {}", pictures(share), time(share, best.scored.seconds));
        chosen.layouts.extend(best.scored.layouts.clone());
    }
    for id in devices {
        chosen.rejected.extend(whole_pipeline_too_large(problem, *id)?);
    }
    if effort.was_cut_short() {
        chosen.rejected.push(Rejected {
            what: "further placements".to_string(),
            why: "there are too many for this map: the search ended after its share of steps".to_string(),
        });
    }
    Ok(chosen)
}

/// The fastest plan. Plans were tried in order of complexity; a later one must be faster by a minimum share, which is
/// larger if it mixes numerics classes.
fn best_of(tried: &[TriedPlan]) -> Option<&TriedPlan> {
    fn faster_by<'a>(share: f64) -> impl Fn(&'a TriedPlan, &'a TriedPlan) -> &'a TriedPlan {
        move |best, plan| if plan.scored.seconds < (1.0 - share) * best.scored.seconds { plan } else { best }
    }
    let best = |is_one_class| {
        tried.iter().filter(|plan| plan.is_one_class == is_one_class).reduce(faster_by(Tuning::MIN_IMPROVEMENT))
    };
    best(true).into_iter().chain(best(false)).reduce(faster_by(Tuning::MIN_MIXED_IMPROVEMENT))
}

/// The sets of devices that are searched separately, the smallest first: the devices of each class, and all devices; of
/// each set also the fastest few devices, because slow devices can delay the others, and devices without work need not
/// be loaded.
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
            let is_speed_boundary = rest.first().is_none_or(|next| flops(next) < flops(&few[count - 1]));
            let is_tried_count = count <= Tuning::MAX_SET_GROWN_BY_ONE || count.is_power_of_two() || rest.is_empty();
            if is_speed_boundary && is_tried_count || count == images || count == images.saturating_mul(2) {
                let set: Vec<DeviceId> = class.iter().copied().filter(|id| few.contains(id)).collect();
                if !sets.contains(&set) {
                    sets.push(set);
                }
            }
        }
    }
    sets
}

/// A rejected plan if the whole pipeline does not fit on a device; it says how many bytes are missing.
fn whole_pipeline_too_large(problem: &Problem, id: DeviceId) -> Result<Option<Rejected>> {
    let costs = problem.costs;
    let component_costs = costs.components().map(|component| costs.whole(component, id)).collect::<Result<Vec<_>>>()?;
    let (needed, budget) = (needed_bytes(component_costs), problem.budget(id));
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

/// The error if nothing fits: that of `balanced`, which names the component that is too large, or else a general one.
fn nothing_fits(problem: &Problem, devices: &[DeviceId]) -> Error {
    match by_bytes::check_whole(problem, devices) {
        Err(error) => error,
        Ok(()) if problem.has_named_places() => Error::input("no placement fits beside what the map names")
            .hint("fewer [components], a smaller in_flight, or a smaller picture"),
        Ok(()) if problem.costs.trial.effort.was_cut_short() => {
            Error::input("no placement was found before the search for one had to end")
                .hint("fewer devices, a smaller in_flight or batch, or [components] that say where parts of it are")
        }
        Ok(()) => Error::input("no placement fits, with as many requests at once as the map says")
            .hint("a smaller in_flight or batch, or a smaller picture"),
    }
}
