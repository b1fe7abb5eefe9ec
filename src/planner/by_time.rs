//! The strategies that know time: the plan with which all pictures that are asked for are done first, and what else was
//! looked at.

use std::cmp::Ordering;

use super::{
    by_bytes::{self, needed_bytes, partition},
    layout::Costs,
    problem::{Chosen, Family, Problem, Rejected, Scored},
    search::Search,
    tuning::Tuning,
    words::{device_list, pictures, time},
};
use crate::{
    backend::DeviceId,
    device_map::{Located, Replicas, Strategy, size::format_bytes},
    error::{Error, Result},
    pipeline::placement::each_once,
};

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
            Ordering::Less => {
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

/// The plan with which the pictures of `problem` are done first. `instead` may be used where none of `devices` is.
pub(super) fn choose(problem: &Problem, devices: &[DeviceId], instead: &[DeviceId]) -> Result<Chosen> {
    let (map, costs, images) = (problem.map, problem.costs, problem.images);
    let effort = costs.trial.effort;
    // A map that says how many replicas there are has its way.
    let is_said = map.replicas != Located::default();
    let groups = match map.replicas.value {
        Replicas::Count(count) if is_said && map.strategy.value == Strategy::Throughput => partition(devices, count),
        _ => vec![devices],
    };
    let one_replica = is_said && map.replicas.value != Replicas::Max;
    let share = if images == usize::MAX { images } else { images.div_ceil(groups.len()) };
    let search = Search::new(Problem { images: share, ..*problem });
    let mut chosen = Chosen::default();
    for (index, group) in groups.iter().enumerate() {
        let mut sets = device_sets(costs, group, share);
        if !instead.is_empty() {
            sets.push(instead.to_vec());
        }
        let mut tried: Vec<Tried> = Vec::new();
        for (number, set) in sets.iter().enumerate() {
            effort.begin_part((groups.len() - index) * (sets.len() - number));
            // Several replicas of several classes would not draw the same pictures.
            let one_replica = one_replica || problem.one_class() && costs.by_class(set).len() > 1;
            for (family, scored) in search.run(set, one_replica)? {
                let free = costs.components().filter(|component| problem.named[*component].is_none());
                let used = free.flat_map(|component| scored.layouts.iter().flat_map(move |l| l.devices_of(component)));
                let mut devices = each_once(used);
                devices.sort();
                let simple = costs.by_class(&devices).len() <= 1;
                tried.push(Tried { family, scored, devices, simple });
            }
        }
        let best = best_of(&tried).ok_or_else(|| nothing_fits(problem, group))?;
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
    for id in devices {
        chosen.rejected.extend(too_small(problem, *id)?);
    }
    if effort.was_cut_short() {
        chosen.rejected.push(Rejected {
            what: "further placements".to_string(),
            why: "there are too many for this map: the search ended after its share of steps".to_string(),
        });
    }
    Ok(chosen)
}

/// The fastest. A plan has to win over a simpler one, which was tried before it, and by more if it mixes numerics classes.
fn best_of(tried: &[Tried]) -> Option<&Tried> {
    fn faster_by<'a>(share: f64) -> impl Fn(&'a Tried, &'a Tried) -> &'a Tried {
        move |best, one| if one.scored.seconds < (1.0 - share) * best.scored.seconds { one } else { best }
    }
    let best = |simple| tried.iter().filter(|one| one.simple == simple).reduce(faster_by(Tuning::MIN_IMPROVEMENT));
    best(true).into_iter().chain(best(false)).reduce(faster_by(Tuning::MIN_MIXED_IMPROVEMENT))
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
fn too_small(problem: &Problem, id: DeviceId) -> Result<Option<Rejected>> {
    let costs = problem.costs;
    let needs = costs.components().map(|component| costs.whole(component, id)).collect::<Result<Vec<_>>>()?;
    let (needed, budget) = (needed_bytes(needs), problem.budget(id));
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

/// Why nothing fits: what `balanced` would say, which names what is too large, else what else there is to say.
fn nothing_fits(problem: &Problem, devices: &[DeviceId]) -> Error {
    match by_bytes::refuse(problem, devices) {
        Err(error) => error,
        Ok(()) if problem.names_some() => Error::input("no placement fits beside what the map names")
            .hint("fewer [components], a smaller in_flight, or a smaller picture"),
        Ok(()) if problem.costs.trial.effort.was_cut_short() => {
            Error::input("no placement was found before the search for one had to end")
                .hint("fewer devices, a smaller in_flight or batch, or [components] that say where parts of it are")
        }
        Ok(()) => Error::input("no placement fits, with as many requests at once as the map says")
            .hint("a smaller in_flight or batch, or a smaller picture"),
    }
}
