//! The thread pool of one CPU device.
//!
//! A call is divided into numbered tasks that depend on nothing but the call; each free thread takes the next number.
//! The calling thread works too, so a device with one core has no helper and never switches threads.
//!
//! What is not a kernel runs on rayon's threads (`all_cores.rs`). A step of a UNet has hundreds of ops, some of which
//! take tens of microseconds, and rayon costs too much there: the calling thread waits while another one works, and
//! threads sleep between ops. Medians on two cores of an Intel Xeon with AVX-512, with 10 us between two calls:
//!
//! | call | this pool | rayon |
//! |---|---|---|
//! | two empty tasks | 0.3 us | 43 us |
//! | eight tasks of 5 us, at best 20 us | 21 us | 36 us |
//!
//! Results do not depend on the choice: the tasks are the same, whichever thread takes them.

use std::{
    any::Any,
    cell::Cell,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use crate::error::{Error, Result};

/// How often an idle helper polls for work before it sleeps: some tens of microseconds, which is the gap between two
/// ops.
const SPINS: usize = 4000;

/// The threads of a fixed set of cores.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// The number of the pool in this process, counted from 1.
    id: u64,
    /// The cores that threads are bound to; empty for no binding.
    cores: Vec<usize>,
    /// Held during a call: there is one call at a time.
    turn: Mutex<()>,
}

/// A call: `work(task)` for each task below `tasks`. The pointer is valid during the call.
#[derive(Clone, Copy)]
struct ParallelCall {
    work: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

// SAFETY: the closure is `Sync`, and `Pool::run` does not return while a helper may still call it.
unsafe impl Send for ParallelCall {}

#[derive(Default)]
struct Shared {
    /// The number of calls; helpers poll it for work.
    call: AtomicU64,
    /// The number of the next task of the current call.
    next: AtomicUsize,
    /// The number of helpers that work on the current call.
    busy: AtomicUsize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    job: Option<ParallelCall>,
    panic: Option<Box<dyn Any + Send>>,
    stop: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs tasks until none is left.
    fn work(&self, work: &(dyn Fn(usize) + Sync), tasks: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                work(task);
            }
        }));
        if let Err(panic) = result {
            self.next.store(usize::MAX / 2, Ordering::Relaxed);
            self.state().panic = Some(panic);
        }
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            for _ in 0..SPINS {
                if self.call.load(Ordering::Acquire) != seen {
                    break;
                }
                std::hint::spin_loop();
            }
            let mut state = self.state();
            while self.call.load(Ordering::Acquire) == seen && !state.stop {
                state = self.wake.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            if state.stop {
                return;
            }
            seen = self.call.load(Ordering::Acquire);
            // Helpers join while they hold the lock: once `run` has removed the job, no helper joins it.
            let Some(job) = state.job else { continue };
            self.busy.fetch_add(1, Ordering::Relaxed);
            drop(state);
            // SAFETY: `run` waits for `busy` to fall to zero before its closure goes away.
            self.work(unsafe { &*job.work }, job.tasks);
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Pool {
    /// A pool of `threads`, the calling thread included, bound to `cores` if there are any.
    ///
    /// # Errors
    /// If the system does not start that many threads.
    pub fn new(threads: NonZero<usize>, cores: Vec<usize>) -> Result<Self> {
        static POOLS: AtomicU64 = AtomicU64::new(1);
        let (shared, id) = (Arc::<Shared>::default(), POOLS.fetch_add(1, Ordering::Relaxed));
        let mut pool = Self { shared, helpers: Vec::new(), id, cores, turn: Mutex::default() };
        for i in 1..threads.get() {
            let (shared, cores) = (pool.shared.clone(), pool.cores.clone());
            let helper = std::thread::Builder::new().name(format!("cpu {i}")).spawn(move || {
                // The thread that started this one may be bound to other cores.
                bind(if cores.is_empty() { allowed() } else { &cores });
                shared.help();
            });
            // The threads that have started end with the pool.
            pool.helpers.push(helper.map_err(|error| {
                Error::process(format!("starting {threads} threads that compute, one for each core: number {}", i + 1))
                    .source(error)
                    .hint("a higher limit of processes (ulimit -u), or fewer threads: SDSHARD_THREADS=1")
            })?);
        }
        Ok(pool)
    }

    /// The number of threads that work, the calling thread included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` once for each task below `tasks`, on all cores, and waits for the end.
    ///
    /// # Panics
    /// If `work` panics, with its panic.
    pub fn run(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        let _turn = self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        stay_on(self.id, &self.cores);
        let shared = &*self.shared;
        if self.helpers.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(work);
        }
        let work: &(dyn Fn(usize) + Sync) = &work;
        {
            let mut state = shared.state();
            // SAFETY: only the lifetime is forgotten; this function waits below until no helper uses it.
            let work = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const _>(work) };
            state.job = Some(ParallelCall { work, tasks });
            shared.next.store(0, Ordering::Relaxed);
            shared.call.fetch_add(1, Ordering::Release);
        }
        shared.wake.notify_all();
        shared.work(work, tasks);
        // A helper that wakes up later finds no job.
        shared.state().job = None;
        let mut spins = 0;
        while shared.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = shared.state().panic.take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks; there is nothing to report here.
            let _ = helper.join();
        }
    }
}

/// Binds this thread to `cores` for as long as it works for pool `pool`; without cores, it is not bound.
fn stay_on(pool: u64, cores: &[usize]) {
    // The pool that this thread was bound for; 0 for none.
    thread_local!(static BOUND: Cell<u64> = const { Cell::new(0) });
    let wanted = if cores.is_empty() { 0 } else { pool };
    if BOUND.replace(wanted) != wanted {
        bind(if cores.is_empty() { allowed() } else { cores });
    }
}

#[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
pub(super) fn bind(cores: &[usize]) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        cores.iter().for_each(|&core| set.set(core));
        // If a core was taken away from the process, this costs speed and changes no result.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

/// The cores that the system lets this process use. The system is asked once, before any thread is bound.
fn allowed() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        #[cfg(target_os = "linux")]
        let all: Vec<usize> = rustix::thread::sched_getaffinity(None)
            .map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
            .unwrap_or_default();
        #[cfg(not(target_os = "linux"))]
        let all: Vec<usize> = (0..std::thread::available_parallelism().map_or(1, NonZero::get)).collect();
        if all.is_empty() { vec![0] } else { all }
    })
}

/// This process's share of the machine's cores, if there is one: index and count.
static SHARE: OnceLock<(usize, usize)> = OnceLock::new();

/// Restricts this process to share `index` of `count` equal shares of the cores that it may use. It must be called
/// before the first device is opened; later calls have no effect.
pub fn share_cores(index: usize, count: usize) {
    // The first call counts.
    let _ = SHARE.set((index, count.max(1)));
}

/// The value of `SDSHARD_THREADS`, if it is set.
pub fn requested_threads() -> Result<Option<NonZero<usize>>> {
    match std::env::var("SDSHARD_THREADS") {
        Ok(text) if !text.is_empty() => text.parse().map(Some).map_err(|_| {
            Error::input("SDSHARD_THREADS: a whole number, 1 at least, is needed").found(format!("\"{text}\""))
        }),
        _ => Ok(None),
    }
}

/// The cores that this process may use: its affinity, limited by control groups, by `SDSHARD_THREADS` and by
/// [`share_cores`]. Determined once, before any thread is bound.
pub fn cores() -> &'static [usize] {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES.get_or_init(|| {
        let requested = requested_threads().ok().flatten(); // an invalid value is rejected before anything is computed
        // The system's list is read first, because a thread that is bound later would see fewer cores.
        let system = allowed().len();
        let most = std::thread::available_parallelism().map_or(1, NonZero::get).min(system);
        let count = requested.map_or(most, |n| n.get().min(most));
        let all: Vec<usize> = allowed().iter().copied().take(count).collect();
        let &(index, count) = SHARE.get().unwrap_or(&(0, 1));
        share(&all, index, count)
    })
}

/// The number of processes that share this machine, as passed to [`share_cores`].
pub fn processes() -> usize {
    SHARE.get().map_or(1, |share| share.1)
}

/// The cores of each of several shares of `all`: the requested ones, or an even part of those that the requests leave.
/// If they leave none, an even part of all.
pub fn shares(all: &[usize], requested: &[Option<&[usize]>]) -> Vec<Vec<usize>> {
    let named = requested.iter().flatten().copied().flatten();
    let taken: std::collections::BTreeSet<usize> = named.copied().collect();
    let left: Vec<usize> = all.iter().copied().filter(|core| !taken.contains(core)).collect();
    let rest = if left.is_empty() { all } else { &left };
    let count = requested.iter().filter(|asked| asked.is_none()).count();
    let mut index = 0;
    let cores = |wish: &Option<&[usize]>| match wish {
        Some(cores) => cores.to_vec(),
        None => {
            index += 1;
            share(rest, index - 1, count)
        }
    };
    requested.iter().map(cores).collect()
}

/// Formats ascending core numbers as a device map writes them: `0-3,8`.
pub fn list(cores: &[usize]) -> String {
    let runs = cores.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    runs.collect::<Vec<_>>().join(",")
}

/// Share `index` of `count`: neighbouring cores, at least one; with more shares than cores, shares repeat.
pub fn share(cores: &[usize], index: usize, count: usize) -> Vec<usize> {
    if count >= cores.len() {
        vec![cores[index % cores.len()]]
    } else {
        cores[index * cores.len() / count..(index + 1) * cores.len() / count].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZero::new(threads).unwrap(), Vec::new()).unwrap()
    }

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 3] {
            let pool = pool(threads);
            for tasks in [0, 1, 2, 3, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(tasks, |task| {
                        counts[task].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 50), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn cores_are_shared_out_whole() {
        let shares = |cores: &[usize], count| (0..count).map(|i| share(cores, i, count)).collect::<Vec<_>>();
        assert_eq!(shares(&[0, 1, 2, 3, 4], 2), [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(shares(&[4, 6], 3), [[4], [6], [4]]);
        assert_eq!(shares(&[7], 1), [[7]]);
    }

    #[test]
    fn requested_cores_are_left_out_of_the_even_shares() {
        let all = [0, 1, 2, 3, 8];
        assert_eq!(shares(&all, &[None, Some(&[1, 8]), None]), [vec![0], vec![1, 8], vec![2, 3]]);
        assert_eq!(shares(&all, &[None, None]), [vec![0, 1], vec![2, 3, 8]]);
        assert_eq!(shares(&[0, 1], &[Some(&[0, 1]), None]), [vec![0, 1], vec![0, 1]], "nothing is left: of all");
        assert_eq!(list(&all), "0-3,8");
        assert_eq!(list(&[]), "");
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = pool(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, |task| assert!(task != 7, "task seven"))));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(10, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 10);
    }

    /// The figures of this module's documentation: `cargo test --lib cost_of_a_call -- --ignored --nocapture`
    #[test]
    #[ignore = "it measures and checks nothing"]
    fn cost_of_a_call() {
        use std::time::{Duration, Instant};

        use rayon::prelude::*;

        let own = pool(2);
        let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let busy = |time| {
            let start = Instant::now();
            while start.elapsed() < time {
                std::hint::spin_loop();
            }
        };
        for (what, tasks, work) in [("empty", 2, 0), ("8 tasks of 5 us", 8, 5)] {
            let task = |_| busy(Duration::from_micros(work));
            let of_own: &dyn Fn() = &|| own.run(tasks, task);
            let of_rayon: &dyn Fn() = &|| threads.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(task));
            for (name, gap) in [("at once", 0), ("after 10 us", 10)] {
                let mut medians = Vec::new();
                for call in [of_own, of_rayon] {
                    let mut times: Vec<Duration> = Vec::new();
                    for _ in 0..2000 {
                        busy(Duration::from_micros(gap));
                        let start = Instant::now();
                        call();
                        times.push(start.elapsed());
                    }
                    times.sort();
                    medians.push((times[1000], times[1980]));
                }
                println!("{what}, {name}: median and 99th percentile of this pool, of rayon {medians:?}");
            }
        }
    }
}
