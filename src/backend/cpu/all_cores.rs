//! All cores of this process, for work that is no kernel: rayon's threads.
//!
//! A thread of rayon that waits for the rest of its work takes up other work of its pool. Packing, which is waited for
//! after each layer, and the hashes of files, of which one may take seconds, therefore have a pool each.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::threads;
use crate::error::{Error, Result};

/// Reads, widens and packs weights.
pub static LOADING: AllCores = AllCores(OnceLock::new());
/// Hashes files.
pub static HASHING: AllCores = AllCores(OnceLock::new());

/// A thread for each core of [`threads::cores`], from the first use on. Idle threads sleep.
pub struct AllCores(OnceLock<ThreadPool>);

impl AllCores {
    /// Runs `work` on a thread of this pool, whose parallel iterators use all of them, and waits for its end. On a
    /// thread of a pool of rayon, it runs there.
    ///
    /// # Errors
    /// Those of `work`, or if the system does not start the threads.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if rayon::current_thread_index().is_some() {
            return work();
        }
        let pool = match self.0.get() {
            Some(pool) => pool,
            None => {
                let started = start()?;
                self.0.get_or_init(|| started)
            }
        };
        pool.install(work)
    }
}

fn start() -> Result<ThreadPool> {
    let cores = threads::cores();
    let builder = ThreadPoolBuilder::new().num_threads(cores.len()).thread_name(|i| format!("load {i}"));
    // The thread that starts these may be bound to other cores.
    builder.start_handler(|_| threads::bind(cores)).build().map_err(|error| {
        Error::process(format!("starting {} threads that load a model, one for each core", cores.len()))
            .source(error)
            .hint("a higher limit of processes (ulimit -u), or fewer threads: SDSHARD_THREADS=1")
    })
}
