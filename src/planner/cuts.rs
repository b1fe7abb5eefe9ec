//! The best cut of a network: which device runs which contiguous range of sections, from a table of bytes and seconds.
//!
//! Every cut is examined by dynamic programming, so the result is the best one. Sections stay in order; each device
//! gets one range of them or none; devices may follow each other in any order.

use std::ops::Range;

use super::tuning::Tuning;

/// The costs of one section of a network on each kind of device, and the tensors that it passes to later sections.
#[derive(Debug, Clone, PartialEq)]
pub struct SectionCosts {
    /// The name of the section, as in device maps.
    pub name: String,
    /// The needs on each kind of device: see [`Target::kind`].
    pub needs: Vec<Needs>,
    /// The bytes of the tensor that the next section takes.
    pub out_bytes: u64,
    /// The skip tensors: for each, the later section that takes it, and its bytes.
    pub skips: Vec<(usize, u64)>,
}

/// The memory and the time that one section needs on one kind of device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Needs {
    /// The bytes of its packed weights.
    pub weight_bytes: u64,
    /// The bytes that a request keeps for this section between calls.
    pub keep_bytes: u64,
    /// The bytes of the transient arena while the section runs.
    pub activation_bytes: u64,
    /// The seconds of one call.
    pub seconds: f64,
}

/// A device on which a piece may be placed.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The index of this device's entry in [`SectionCosts::needs`].
    pub kind: usize,
    /// The bytes that may be used.
    pub bytes: u64,
    /// The bytes per second between the device and the host. Tensors move between devices through the host.
    pub link: f64,
    /// The seconds of other work that the device does during each call.
    pub busy: f64,
}

/// The quantity that a cut minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutGoal {
    /// The time of the slowest piece: several requests pass the pieces at once, one in each piece.
    SlowestPiece,
    /// The total time of all pieces: one request passes.
    Total,
}

/// A contiguous range of sections on one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The index of the device.
    pub device: usize,
    /// The indices of its sections.
    pub sections: Range<usize>,
    /// The seconds of one call, including the transfers to and from this piece.
    pub seconds: f64,
}

/// A network that is cut into pieces.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// The pieces in the order of their sections.
    pub pieces: Vec<Piece>,
    /// The bytes that are transferred between devices in one call.
    pub transfer_bytes: u64,
}

impl Cut {
    /// The index of the device of each section.
    pub fn route(&self) -> Vec<usize> {
        self.pieces.iter().flat_map(|piece| piece.sections.clone().map(|_| piece.device)).collect()
    }

    /// The seconds of one call for one request.
    pub fn seconds(&self) -> f64 {
        self.pieces.iter().map(|piece| piece.seconds).sum()
    }

    /// The seconds of the slowest piece in one call.
    pub fn slowest(&self) -> f64 {
        self.pieces.iter().map(|piece| piece.seconds).fold(0.0, f64::max)
    }
}

/// Finds the best cut of `sections` over some or all of `devices`, each of which holds the arenas of `in_flight`
/// requests. `None` if nothing fits. Of equally fast cuts, the one that transfers the fewest bytes is taken, then the
/// one with the earliest devices.
pub fn best(sections: &[SectionCosts], devices: &[Target], in_flight: usize, goal: CutGoal) -> Option<Cut> {
    if sections.is_empty() {
        return None;
    }
    let mut search = CutSearch::new(sections, devices, in_flight);
    match goal {
        CutGoal::Total => search.solve(&|time, piece| time + piece, f64::INFINITY),
        CutGoal::SlowestPiece => {
            let fastest = search.solve(&f64::max, f64::INFINITY)?;
            // Of all cuts that are not slower, take the one that transfers the fewest bytes.
            search.solve(&|_, _| 0.0, fastest.slowest() * (1.0 + Tuning::ROUNDING))
        }
    }
}

/// An upper bound of the number of continuations that [`best`] examines.
pub fn steps(sections: &[SectionCosts], devices: &[Target]) -> u64 {
    let mut groups: Vec<(&Target, u64)> = Vec::new();
    for device in devices {
        match groups.iter_mut().find(|(known, _)| *known == device) {
            Some((_, count)) => *count += 1,
            None => groups.push((device, 1)),
        }
    }
    let states = groups.iter().fold(1u64, |states, (_, count)| states.saturating_mul(count + 1));
    let sections = sections.len() as u64;
    states.saturating_mul(groups.len() as u64 * sections * sections)
}

/// The cost of a contiguous range of sections on one kind of device.
#[derive(Clone, Copy)]
struct RangeCost {
    bytes: u64,
    seconds: f64,
    /// The bytes that are received from other devices or sent to them.
    transferred: u64,
    /// The bytes that are received.
    received: u64,
}

struct CutSearch<'a> {
    sections: &'a [SectionCosts],
    devices: &'a [Target],
    /// `range_costs[kind][from][to]` is the cost of the sections from `from` to `to` inclusive.
    range_costs: Vec<Vec<Vec<RangeCost>>>,
    /// Equal devices form a group: the group of each device, and the members of each group in order.
    group_of: Vec<usize>,
    groups: Vec<Vec<usize>>,
}

/// The best cut of the remaining sections: its time by the goal, the bytes that it receives, and the device and the
/// last section of its first piece.
type Continuation = Option<(f64, u64, usize, usize)>;

/// The continuations that were computed. A state is a first remaining section and the number of used devices per group.
struct Memo {
    /// The continuation of each state; `None` if it is not computed yet. The first section varies fastest.
    best: Vec<Option<Continuation>>,
    /// The distance in states between two counts of a group.
    strides: Vec<usize>,
    sections: usize,
}

impl Memo {
    fn new(groups: &[Vec<usize>], sections: usize) -> Self {
        let mut strides = Vec::with_capacity(groups.len());
        let mut states = 1;
        for group in groups {
            strides.push(states);
            states *= group.len() + 1;
        }
        Self { best: vec![None; states * sections], strides, sections }
    }

    fn index(&self, from: usize, used: &[usize]) -> usize {
        self.sections * used.iter().zip(&self.strides).map(|(used, stride)| used * stride).sum::<usize>() + from
    }
}

impl<'a> CutSearch<'a> {
    fn new(sections: &'a [SectionCosts], devices: &'a [Target], in_flight: usize) -> Self {
        let kinds = sections[0].needs.len();
        let range_costs = (0..kinds).map(|kind| range_costs(sections, kind, in_flight)).collect();
        let (mut group_of, mut groups) = (Vec::new(), Vec::<Vec<usize>>::new());
        for (index, device) in devices.iter().enumerate() {
            let known = groups.iter().position(|group| devices[group[0]] == *device);
            let number = known.unwrap_or_else(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[number].push(index);
            group_of.push(number);
        }
        Self { sections, devices, range_costs, group_of, groups }
    }

    /// The seconds and the received bytes of a range on a device, if it fits there.
    fn piece_cost(&self, device: usize, from: usize, to: usize) -> Option<(f64, u64)> {
        let target = &self.devices[device];
        let cost = &self.range_costs[target.kind][from][to];
        let seconds = target.busy + cost.seconds + cost.transferred as f64 / target.link;
        (cost.bytes <= target.bytes).then_some((seconds, cost.received))
    }

    /// Finds the best cut in which no piece takes longer than `max_seconds`. `add` combines the time of a piece with
    /// that of the remaining pieces.
    fn solve(&mut self, add: &dyn Fn(f64, f64) -> f64, max_seconds: f64) -> Option<Cut> {
        let mut memo = Memo::new(&self.groups, self.sections.len());
        let mut used = vec![0; self.groups.len()];
        self.best_from(0, &mut used, add, max_seconds, &mut memo)?;
        let (mut from, mut pieces, mut transfer_bytes) = (0, Vec::new(), 0);
        while from < self.sections.len() {
            let (_, _, device, to) = memo.best[memo.index(from, &used)]??;
            let (seconds, received) = self.piece_cost(device, from, to)?;
            used[self.group_of[device]] += 1;
            pieces.push(Piece { device, sections: from..to + 1, seconds });
            transfer_bytes += received;
            from = to + 1;
        }
        Some(Cut { pieces, transfer_bytes })
    }

    /// The best cut of the sections from `from` on, if `used` devices of each group are taken.
    fn best_from(
        &self,
        from: usize,
        used: &mut Vec<usize>,
        add: &dyn Fn(f64, f64) -> f64,
        max_seconds: f64,
        memo: &mut Memo,
    ) -> Continuation {
        if from == self.sections.len() {
            return Some((0.0, 0, 0, 0));
        }
        let state = memo.index(from, used);
        if let Some(best) = memo.best[state] {
            return best;
        }
        let mut best: Continuation = None;
        for group in 0..self.groups.len() {
            // Equal devices are interchangeable: take the first one that is not used.
            let Some(&device) = self.groups[group].get(used[group]) else { continue };
            used[group] += 1;
            // The longest range is tried first, so that the cut with fewer pieces is kept among equal ones.
            for to in (from..self.sections.len()).rev() {
                let Some((seconds, received)) = self.piece_cost(device, from, to) else { continue };
                if seconds > max_seconds {
                    continue;
                }
                let Some((time, bytes, ..)) = self.best_from(to + 1, used, add, max_seconds, memo) else { continue };
                let (time, bytes) = (add(seconds, time), bytes + received);
                let better = |(least, fewest, ..): (f64, u64, usize, usize)| {
                    time < least * (1.0 - Tuning::ROUNDING)
                        || (time <= least * (1.0 + Tuning::ROUNDING) && bytes < fewest)
                };
                if best.is_none_or(better) {
                    best = Some((time, bytes, device, to));
                }
            }
            used[group] -= 1;
        }
        memo.best[state] = Some(best);
        best
    }
}

/// The costs of all ranges of sections on one kind of device.
fn range_costs(sections: &[SectionCosts], kind: usize, in_flight: usize) -> Vec<Vec<RangeCost>> {
    (0..sections.len()).map(|from| range_costs_from(sections, from, kind, in_flight)).collect()
}

/// The costs of the ranges that begin with `from`. Entries before `from` only fill the list, so that it can be indexed.
fn range_costs_from(sections: &[SectionCosts], from: usize, kind: usize, in_flight: usize) -> Vec<RangeCost> {
    let cost_to = |to: usize| {
        let inside = |section: usize| (from..=to).contains(&section);
        let needs = || sections[from..=to].iter().map(|section| section.needs[kind]);
        let skips = || {
            let all = sections.iter().enumerate();
            all.flat_map(|(at, section)| section.skips.iter().map(move |&(to, bytes)| (at, to, bytes)))
        };
        // A skip tensor for a section of this range occupies memory until that section runs.
        let waiting_bytes = |now: usize| -> u64 {
            skips()
                .filter(|&(left, taken, _)| inside(taken) && left < now && now < taken)
                .map(|(.., bytes)| bytes)
                .sum()
        };
        let arena =
            (from..=to).map(|now| sections[now].needs[kind].activation_bytes + waiting_bytes(now)).max().unwrap_or(0);
        let input_bytes = if from > 0 { sections[from - 1].out_bytes } else { 0 };
        let output_bytes = if to + 1 < sections.len() { sections[to].out_bytes } else { 0 };
        let received =
            input_bytes + skips().filter(|&(a, b, _)| !inside(a) && inside(b)).map(|(.., bytes)| bytes).sum::<u64>();
        let sent =
            output_bytes + skips().filter(|&(a, b, _)| inside(a) && !inside(b)).map(|(.., bytes)| bytes).sum::<u64>();
        let requests = in_flight as u64;
        RangeCost {
            bytes: needs().map(|needs| needs.weight_bytes + requests * needs.keep_bytes).sum::<u64>()
                + requests * arena,
            seconds: needs().map(|needs| needs.seconds).sum(),
            transferred: received + sent,
            received,
        }
    };
    let unused = RangeCost { bytes: u64::MAX, seconds: f64::INFINITY, transferred: 0, received: 0 };
    (0..sections.len()).map(|to| if to < from { unused } else { cost_to(to) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(weight_bytes: u64, seconds: f64) -> SectionCosts {
        let needs = Needs { weight_bytes, seconds, ..Needs::default() };
        SectionCosts { name: String::new(), needs: vec![needs], out_bytes: 1, skips: Vec::new() }
    }

    fn target(bytes: u64) -> Target {
        Target { kind: 0, bytes, link: 1e12, busy: 0.0 }
    }

    fn routes(sections: &[SectionCosts], devices: &[Target], goal: CutGoal) -> Vec<usize> {
        best(sections, devices, 1, goal).unwrap().route()
    }

    #[test]
    fn a_cut_evens_out_seconds_and_not_sections() {
        let sections = [6.0, 1.0, 1.0, 1.0, 1.0, 2.0].map(|seconds| section(1, seconds));
        assert_eq!(routes(&sections, &[target(9), target(9)], CutGoal::SlowestPiece), [0, 1, 1, 1, 1, 1]);
        assert_eq!(routes(&sections, &[target(9), target(9)], CutGoal::Total), [0; 6], "no transfer is needed");
    }

    #[test]
    fn a_cut_follows_memory_where_it_must() {
        let sections = [3, 3, 1, 1].map(|bytes| section(bytes, 1.0));
        assert_eq!(routes(&sections, &[target(3), target(5)], CutGoal::SlowestPiece), [0, 1, 1, 1]);
        assert_eq!(routes(&sections, &[target(5), target(3)], CutGoal::SlowestPiece), [1, 0, 0, 0]);
        assert_eq!(routes(&sections, &[target(6), target(2)], CutGoal::SlowestPiece), [0, 0, 1, 1]);
        assert!(
            best(&sections, &[target(2), target(9)], 1, CutGoal::SlowestPiece).is_some(),
            "a section of one byte fits on the small device"
        );
        assert!(best(&sections, &[target(4), target(3)], 1, CutGoal::SlowestPiece).is_none());
    }

    #[test]
    fn fewest_bytes_cross_where_the_time_is_the_same() {
        let mut sections = [1.0, 1.0, 0.0, 1.0, 1.0].map(|seconds| section(1, seconds));
        sections[1].out_bytes = 100;
        sections[2].out_bytes = 7;
        let cut = best(&sections, &[target(9), target(9)], 1, CutGoal::SlowestPiece).unwrap();
        assert_eq!((cut.route(), cut.transfer_bytes), (vec![0, 0, 0, 1, 1], 7));
    }

    #[test]
    fn a_skip_tensor_is_transferred_once() {
        let mut sections = [1.0; 4].map(|seconds| section(1, seconds));
        sections[0].skips = vec![(3, 50)];
        let cut = best(&sections, &[target(2), target(2), target(2)], 1, CutGoal::SlowestPiece).unwrap();
        // The sum of a border of one byte per further piece and the skip tensor, which is transferred once.
        assert_eq!(cut.transfer_bytes, 51 + (cut.pieces.len() as u64 - 2));
        let small = [target(1), target(1), target(1), target(60)];
        assert!(best(&sections, &small, 1, CutGoal::Total).is_some());
        let cut = best(&sections, &[target(1), target(1), target(1), target(1)], 1, CutGoal::Total).unwrap();
        assert_eq!(cut.transfer_bytes, 53);
    }

    #[test]
    fn a_skip_tensor_occupies_memory_until_it_is_used() {
        let mut sections = [1.0; 3].map(|seconds| section(1, seconds));
        sections[0].skips = vec![(2, 50)];
        // If one device runs all sections, it holds the skip tensor while the middle section runs.
        assert!(best(&sections, &[target(3)], 1, CutGoal::Total).is_none());
        assert!(best(&sections, &[target(53)], 1, CutGoal::Total).is_some());
    }

    #[test]
    fn a_slow_device_gets_less_and_a_busy_one_too() {
        let mut sections = [1.0; 6].map(|seconds| section(1, seconds));
        for section in &mut sections {
            section.needs.push(Needs { seconds: 2.0, ..section.needs[0] });
        }
        let slow = Target { kind: 1, ..target(9) };
        assert_eq!(routes(&sections, &[target(9), slow.clone()], CutGoal::SlowestPiece), [0, 0, 0, 0, 1, 1]);
        assert_eq!(routes(&sections, &[slow, target(9)], CutGoal::Total), [1; 6]);
        let busy = Target { busy: 2.0, ..target(9) };
        assert_eq!(routes(&sections, &[busy, target(9)], CutGoal::SlowestPiece), [0, 0, 1, 1, 1, 1]);
    }

    #[test]
    fn each_request_in_flight_needs_memory() {
        let mut sections = [1.0; 2].map(|seconds| section(1, seconds));
        for section in &mut sections {
            section.needs[0].activation_bytes = 3;
            section.needs[0].keep_bytes = 2;
        }
        assert!(best(&sections, &[target(16), target(16)], 3, CutGoal::SlowestPiece).is_some());
        assert!(best(&sections, &[target(15), target(15)], 3, CutGoal::SlowestPiece).is_none());
    }

    #[test]
    fn sixty_sections_over_eight_devices_are_searched_completely() {
        let sections: Vec<_> = (0..60).map(|i| section(1 + i % 3, 1.0 + (i * i % 7) as f64)).collect();
        let devices: Vec<_> = (0..8).map(|i| target(15 + i)).collect();
        assert!(steps(&sections, &devices) <= Tuning::MAX_SEARCH_STEPS);
        let cut = best(&sections, &devices, 1, CutGoal::SlowestPiece).unwrap();
        let total: f64 = sections.iter().map(|section| section.needs[0].seconds).sum();
        assert!(cut.slowest() >= total / 8.0 && cut.slowest() <= total / 8.0 + 7.0, "{}", cut.slowest());
        let mut devices: Vec<_> = cut.pieces.iter().map(|piece| piece.device).collect();
        devices.sort_unstable();
        devices.dedup();
        assert_eq!(devices.len(), cut.pieces.len(), "each device has one piece");
    }
}
