//! The planner's tuning constants, each with its source: a paper, a measurement, a rule that follows from the code, or
//! the word "guess". Limits of the entries of device maps are in `check.rs` and `grammar.rs`.

use crate::backend::Rates;

/// The planner's tuning constants.
pub(super) struct Tuning;

/// Thresholds of comparisons.
impl Tuning {
    /// The share of the total time by which a more complex plan of one numerics class must be faster.
    /// Source: guess. It may be smaller than the error of the rates, because both plans are predicted from the same
    /// rates.
    pub const MIN_IMPROVEMENT: f64 = 2e-3;
    /// The same for a plan with several numerics classes, or with the CPU and a GPU.
    /// Source: guess, from the error of the rates; with several classes, pictures also depend on the device that makes
    /// them.
    pub const MIN_MIXED_IMPROVEMENT: f64 = 0.1;
    /// The factor by which one more request in flight must raise the rate: it needs memory and delays all other
    /// requests.
    /// Source: guess.
    pub const MIN_IN_FLIGHT_SPEEDUP: f64 = 1.01;
    /// The relative difference up to which sums of seconds are equal.
    /// Source: the rounding error of f64 is 1e-16 for each of some hundred terms; the rest is margin.
    pub const ROUNDING: f64 = 1e-6;
}

/// Limits of searches.
impl Tuning {
    /// The number of placements that strategy `balanced` examines.
    /// Source: all placements of three components on forty devices, 40^3. Beyond that, the best one so far is used.
    pub const MAX_PLACEMENTS: usize = 64_000;
    /// The number of additional requests in flight that are tried for a pool. Source: guess.
    pub const MAX_EXTRA_IN_FLIGHT: usize = 3;
    /// The same for each of the many pools of a search. Source: guess.
    pub const MAX_EXTRA_IN_FLIGHT_IN_SEARCH: usize = 2;
    /// The largest group of devices for which every family is tried; larger groups are tried as pools only. Source:
    /// guess.
    pub const MAX_GROUP_DEVICES: usize = 8;
    /// The largest number of devices for which every partition is tried (203 partitions for six devices); more devices
    /// are partitioned into contiguous groups. Source: guess.
    pub const MAX_FREELY_GROUPED_DEVICES: usize = 6;
    /// The largest set of the fastest devices that grows by one device at a time; larger sets double. Source: guess.
    pub const MAX_SET_GROWN_BY_ONE: usize = 4;
    /// The number of attempts for a cut. Each leaves more bytes free where a piece was larger than its table says.
    /// Source: guess.
    pub const MAX_CUT_ATTEMPTS: usize = 4;
    /// The largest batch for which offloading from one device is tried after the search has ended: each batch size
    /// needs a dry run. Source: guess.
    pub const MAX_LAST_RESORT_BATCH: usize = 8;
    /// The number of entries of a map that are relaxed one by one in a diagnosis. Each costs as much as a plan.
    /// Source: guess.
    pub const MAX_DIAGNOSED_ENTRIES: usize = 8;
}

/// Limits of the work for one plan, in steps. A step is about the work of a prediction for one waiting request. Steps
/// are counted instead of time, so that a map has the same plan on every machine.
impl Tuning {
    /// The steps of all searches of one plan. Source: measured on one core of a server of 2024: 32 ns per step when
    /// this was set, 6 ns since predictions keep their queue sorted.
    pub const MAX_SEARCH_STEPS: u64 = 50_000_000;
    /// The total steps of a plan, beyond which the map is rejected. Source: guess.
    pub const MAX_STEPS: u64 = 2 * Self::MAX_SEARCH_STEPS;
    /// The steps that a dry run of one call of a component counts for. Source: guess; a call takes about a millisecond.
    pub const DRY_RUN_STEPS: u64 = 50_000;
}

/// Lengths of simulations.
impl Tuning {
    /// The number of simulated requests from which the rate of a plan is predicted.
    /// Source: measured over 400 random loads, against 8192 requests: half of the rates are within 0.3 %.
    pub const PREDICTED_REQUESTS: usize = 256;
    /// The same during a search. Source: measured in the same way: half of the rates are within 0.8 %.
    pub const PREDICTED_REQUESTS_IN_SEARCH: usize = 128;
    /// The smallest number of rounds of a simulation; a round is as many requests as are in flight. Source: guess.
    pub const MIN_ROUNDS: usize = 5;
    /// The rounds at the start that do not count for the rate. Source: guess.
    pub const WARM_UP_ROUNDS: usize = 2;
    /// The rounds after which the time for a long queue is extrapolated. Source: guess.
    pub const MAX_SIMULATED_ROUNDS: usize = 8;
    /// The largest number of simulated passes through a cut UNet; more steps are simulated as this many longer ones.
    /// Source: guess.
    pub const MAX_PREDICTED_PASSES: usize = 64;

    /// The largest number of simulated requests in flight of one replica; further requests would only wait.
    /// Source: each device works for one request, and one more is on its way to it.
    pub const fn max_predicted_in_flight(devices: usize) -> usize {
        4 + 2 * devices
    }
}

/// Rates that are assumed if nothing else is known.
impl Tuning {
    /// The bytes per second of reading weights from a file. Source: guess: a small solid-state disk.
    pub const DISK_BYTES_PER_SECOND: f64 = 1e9;
    /// The share of a GPU's peak rate that is assumed for long products. Source: guess. Well-tuned libraries reach 60
    /// to 80 % of the tensor cores' peak in large square products; the products of a UNet are smaller and have
    /// epilogues.
    pub const SHARE_OF_PEAK: f64 = 0.5;
    /// The rates of a CUDA device that a file does not give. Source: guess: a small card of recent years.
    pub const CUDA_RATES: Rates = Rates { flops: 20e12, bandwidth: 400e9, link: 12e9 };
    /// The same for a wgpu device. Source: guess: graphics that are part of a processor.
    pub const WGPU_RATES: Rates = Rates { flops: 2e12, bandwidth: 60e9, link: 10e9 };
    /// The same for one CPU core. Source: guess.
    pub const CPU_CORE_RATES: Rates = Rates { flops: 50e9, bandwidth: 5e9, link: 10e9 };
    /// The number of cores of a described CPU without `cores`. Source: guess.
    pub const CPU_CORES: usize = 8;
}
