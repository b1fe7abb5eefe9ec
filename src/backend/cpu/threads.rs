//! The cores of one CPU device.
//!
//! A call is cut into numbered tasks that depend on nothing but the call; whoever is free takes the next number. The
//! calling thread works too, so a device of one core has no helper and switches no thread.

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

/// How often an idle helper looks for work before it sleeps: some tens of microseconds, the gap between two ops.
const SPINS: usize = 4000;

/// A fixed set of cores.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Tells pools apart, counted from 1.
    id: u64,
    /// The cores to stay on; empty for no preference.
    cores: Vec<usize>,
    /// One call at a time.
    turn: Mutex<()>,
}

/// A call: `work(task)` for each task below `tasks`. The pointer lives as long as the call.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

// SAFETY: the closure is `Sync`, and `Pool::run` does not return while a helper may still call it.
unsafe impl Send for Job {}

#[derive(Default)]
struct Shared {
    /// Counts calls; helpers watch it for work.
    call: AtomicU64,
    /// The next task of the current call.
    next: AtomicUsize,
    /// Helpers at work on the current call.
    busy: AtomicUsize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    panic: Option<Box<dyn Any + Send>>,
    stop: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes tasks until none is left.
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
            // Joining under the lock: once `run` has taken the job away, nobody joins it.
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
    /// A pool of `threads`, the caller among them, kept on `cores` if any are given.
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
                // Whoever starts it may be bound to other cores.
                bind(if cores.is_empty() { allowed() } else { &cores });
                shared.help();
            });
            // Those that have started end with the pool.
            pool.helpers.push(helper.map_err(|error| {
                Error::process(format!("starting {threads} threads that compute, one for each core: number {}", i + 1))
                    .source(error)
                    .hint("a higher limit of processes (ulimit -u), or fewer threads: SDSHARD_THREADS=1")
            })?);
        }
        Ok(pool)
    }

    /// Threads that work, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` once for each task below `tasks`, on all cores, and waits.
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
            state.job = Some(Job { work, tasks });
            shared.next.store(0, Ordering::Relaxed);
            shared.call.fetch_add(1, Ordering::Release);
        }
        shared.wake.notify_all();
        shared.work(work, tasks);
        // A helper that wakes only now is not waited for.
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

/// Keeps this thread on `cores` for as long as it works for pool `pool`; none are given for no preference.
fn stay_on(pool: u64, cores: &[usize]) {
    // The pool that this thread was bound for; 0 for none.
    thread_local!(static BOUND: Cell<u64> = const { Cell::new(0) });
    let wanted = if cores.is_empty() { 0 } else { pool };
    if BOUND.replace(wanted) != wanted {
        bind(if cores.is_empty() { allowed() } else { cores });
    }
}

#[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
fn bind(cores: &[usize]) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        cores.iter().for_each(|&core| set.set(core));
        // A core that was taken away meanwhile costs speed, not results.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

/// The cores that the system lets this process use. Asked once, before any thread is bound.
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

/// This process's share of the machine's cores, if it has to share them: index and count.
static SHARE: OnceLock<(usize, usize)> = OnceLock::new();

/// Leaves this process share `index` of `count` equal shares of the cores that it may use. To be said before the first
/// device is opened; what is said later has no effect.
pub fn share_cores(index: usize, count: usize) {
    // Whoever was first decides.
    let _ = SHARE.set((index, count.max(1)));
}

/// What `SDSHARD_THREADS` says, if anything.
pub fn asked() -> Result<Option<NonZero<usize>>> {
    match std::env::var("SDSHARD_THREADS") {
        Ok(text) if !text.is_empty() => text.parse().map(Some).map_err(|_| {
            Error::input("SDSHARD_THREADS: a whole number, 1 at least, is needed").found(format!("\"{text}\""))
        }),
        _ => Ok(None),
    }
}

/// The cores that this process may use: its affinity, cut to its share by control groups, by `SDSHARD_THREADS` and by
/// [`share_cores`]. Asked once, before any thread is bound.
pub fn cores() -> &'static [usize] {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES.get_or_init(|| {
        let asked = asked().ok().flatten(); // what is no number is refused before anything is computed
        // The system's list first: it is what a thread that was bound later would no longer see.
        let system = allowed().len();
        let most = std::thread::available_parallelism().map_or(1, NonZero::get).min(system);
        let count = asked.map_or(most, |n| n.get().min(most));
        let all: Vec<usize> = allowed().iter().copied().take(count).collect();
        let &(index, count) = SHARE.get().unwrap_or(&(0, 1));
        share(&all, index, count)
    })
}

/// Among how many processes this machine is shared, as [`share_cores`] was told.
pub fn processes() -> usize {
    SHARE.get().map_or(1, |share| share.1)
}

/// The cores of each of several shares of `all`: those that it requested for, or its even part of what these leave. If they
/// leave nothing, of all.
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

/// Numbers of cores in ascending order as a device map writes them: `0-3,8`.
pub fn list(cores: &[usize]) -> String {
    let runs = cores.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    runs.collect::<Vec<_>>().join(",")
}

/// Share `index` of `count`: neighbouring cores, at least one; with more shares than cores, they wrap around.
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
    fn wished_cores_are_left_out_of_the_even_shares() {
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
}
