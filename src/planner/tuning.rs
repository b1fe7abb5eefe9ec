//! The planner's tuning constants in one place, each with its source: a paper, a measurement, a rule that follows from the
//! code, or the word "guess". Limits of what a device map may say are in `check.rs` and `grammar.rs`.

use crate::backend::Rates;

/// The planner's tuning constants.
pub(super) struct Tuning;

/// Which differences count.
impl Tuning {
    /// The share of the time for all pictures that a more intricate plan of one numerics class has to win.
    /// Source: guess. It is finer than the error of rates, because both plans are predicted from the same rates.
    pub const MIN_IMPROVEMENT: f64 = 2e-3;
    /// The same for a plan of several numerics classes, or with the CPU beside a GPU.
    /// Source: guess, from the same error of rates; and pictures then depend on which device draws them.
    pub const MIN_MIXED_IMPROVEMENT: f64 = 0.1;
    /// By how much one more request at once has to raise the rate, as a factor: it needs memory and makes all others later.
    /// Source: guess.
    pub const MIN_IN_FLIGHT_SPEEDUP: f64 = 1.01;
    /// Relative difference up to which sums of seconds are taken as equal.
    /// Source: rounding of f64 is 1e-16 for each of some hundred terms; the rest is margin.
    pub const ROUNDING: f64 = 1e-6;
}

/// How far a search goes.
impl Tuning {
    /// Placements that strategy `balanced` looks at.
    /// Source: all of three components on forty devices, 40^3. Beyond that the best that was found counts.
    pub const MAX_PLACEMENTS: usize = 64_000;
    /// Requests at once that are tried for a pool, beyond those that should keep its devices busy. Source: guess.
    pub const MAX_EXTRA_IN_FLIGHT: usize = 3;
    /// The same for each of the many pools of a search. Source: guess.
    pub const MAX_EXTRA_IN_FLIGHT_IN_SEARCH: usize = 2;
    /// Devices of a group that is searched for everything; larger ones are searched for pools alone. Source: guess.
    pub const MAX_GROUP_DEVICES: usize = 8;
    /// Devices that are partitioned into groups in every way, of which six have 203; more are partitioned into neighbours.
    /// Source: guess.
    pub const MAX_FREELY_GROUPED_DEVICES: usize = 6;
    /// Sets of the fastest devices that are planned for grow by one device up to this size, and double from there on.
    /// Source: guess.
    pub const MAX_SET_GROWN_BY_ONE: usize = 4;
    /// How often the best cut is searched again with more memory left free, where a piece is larger than its table says.
    /// Source: guess.
    pub const MAX_CUT_ATTEMPTS: usize = 4;
    /// The largest batch for which weights offloaded from one device are tried although the search has ended: each size of
    /// batch is a dry run. Source: guess.
    pub const MAX_LAST_RESORT_BATCH: usize = 8;
    /// Entries of a map that are left out one by one to find the one without which everything would fit. Each costs as
    /// much as a plan. Source: guess.
    pub const MAX_DIAGNOSED_ENTRIES: usize = 8;
}

/// How much work planning may be, in steps: one is about what a prediction does for one request that waits. Work is counted
/// and not timed, so that a map has the same plan on every machine.
impl Tuning {
    /// Steps of all searches of one plan. Source: measured on one core of a server of 2024: 32 ns a step when this was set,
    /// 6 ns since predictions keep their queue in order.
    pub const MAX_SEARCH_STEPS: u64 = 50_000_000;
    /// Steps beyond which a map is rejected, whatever they are for. Source: guess.
    pub const MAX_STEPS: u64 = 2 * Self::MAX_SEARCH_STEPS;
    /// Steps that a dry run of one call of a component counts for. Source: guess; a call takes about a millisecond.
    pub const DRY_RUN_STEPS: u64 = 50_000;
}

/// How long predicted runs are.
impl Tuning {
    /// Requests of the run that a plan's rate is read from.
    /// Source: measured over 400 random loads, against 8192 requests: half of the rates are right within 0.3 %.
    pub const PREDICTED_REQUESTS: usize = 256;
    /// The same while layouts are compared. Source: measured likewise: half are right within 0.8 %.
    pub const PREDICTED_REQUESTS_IN_SEARCH: usize = 128;
    /// Rounds of such a run at the least; a round is all requests that are worked on at once. Source: guess.
    pub const MIN_ROUNDS: usize = 5;
    /// Rounds at the start that do not count for the rate. Source: guess.
    pub const WARM_UP_ROUNDS: usize = 2;
    /// Rounds after which the time for a long queue is extrapolated. Source: guess.
    pub const MAX_SIMULATED_ROUNDS: usize = 8;
    /// Passes through a cut UNet that are predicted one by one; more are predicted as so many longer ones. Source: guess.
    pub const MAX_PREDICTED_PASSES: usize = 64;

    /// Requests of a replica that are predicted at once: more than can be at work only wait. Source: each device works for
    /// one, and has one that is on its way to it.
    pub const fn max_predicted_in_flight(devices: usize) -> usize {
        4 + 2 * devices
    }
}

/// Rates that are assumed where nothing is known.
impl Tuning {
    /// Bytes per second that reading weights from a file gives. Source: guess: a small solid-state disk.
    pub const DISK_BYTES_PER_SECOND: f64 = 1e9;
    /// The share of a GPU's peak that long products are planned with. Source: guess. Well-tuned libraries reach 60 to 80 %
    /// of the tensor cores' peak in large square products; those of a UNet are smaller and have epilogues.
    pub const SHARE_OF_PEAK: f64 = 0.5;
    /// A CUDA device of which a file says nothing. Source: guess: a small card of recent years.
    pub const CUDA_RATES: Rates = Rates { flops: 20e12, bandwidth: 400e9, link: 12e9 };
    /// The same of a wgpu device. Source: guess: a processor's own graphics.
    pub const WGPU_RATES: Rates = Rates { flops: 2e12, bandwidth: 60e9, link: 10e9 };
    /// The same of one CPU core. Source: guess.
    pub const CPU_CORE_RATES: Rates = Rates { flops: 50e9, bandwidth: 5e9, link: 10e9 };
    /// Cores of a described CPU that does not say how many. Source: guess.
    pub const CPU_CORES: usize = 8;
}
