//! Offloaded weights: they are kept in host memory or on the disk, and each section's weights are fetched to its device
//! before the section runs, while those of the next section are prefetched.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use crate::{
    backend::Weight,
    error::{Error, Result},
};

/// What prefetches the next section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// A thread, while the caller computes.
    Thread,
    /// The caller, immediately: for runs without data, in which the order decides what is counted.
    Caller,
}

/// The offloaded weights of one network in one place. Only the request that holds a section's device uses the section,
/// so a section is never used by two requests at once.
pub struct Offload {
    sections: Vec<OffloadedSection>,
    ahead: Ahead,
}

struct OffloadedSection {
    weights: Arc<[Weight]>,
    /// The thread that fetches the weights, if there is one.
    pending: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Offload {
    pub(super) fn new(sections: Vec<Vec<Weight>>, ahead: Ahead) -> Self {
        let section = |weights: Vec<Weight>| OffloadedSection { weights: weights.into(), pending: Mutex::default() };
        Self { sections: sections.into_iter().map(section).collect(), ahead }
    }

    /// The bytes that a section's weights occupy on its device.
    pub fn bytes(&self, section: usize) -> usize {
        self.sections[section].weights.iter().map(Weight::bytes).sum()
    }

    /// Starts to fetch a section's weights.
    ///
    /// # Errors
    /// If the caller fetches them and they cannot be read, or the device has no room.
    pub fn prefetch(&self, section: usize) -> Result<()> {
        let section = &self.sections[section];
        if self.ahead == Ahead::Caller {
            return fetch_all(&section.weights);
        }
        let mut pending = section.pending();
        if pending.is_none() {
            let weights = section.weights.clone();
            let thread = std::thread::Builder::new().name("offload".to_string());
            let thread = thread.spawn(move || fetch_all(&weights));
            *pending = Some(thread.map_err(|e| Error::process("starting a thread that fetches weights").source(e))?);
        }
        Ok(())
    }

    /// Waits until a section's weights are on its device; fetches them if this has not begun.
    ///
    /// # Errors
    /// If a file can no longer be read or the device has no room.
    pub fn fetch(&self, section: usize) -> Result<()> {
        let section = &self.sections[section];
        section.settle()?;
        fetch_all(&section.weights)
    }

    /// Frees a section's weights on its device.
    pub fn evict(&self, section: usize) {
        let section = &self.sections[section];
        // It does not matter any more whether they could be fetched.
        let _ = section.settle();
        section.weights.iter().for_each(Weight::evict);
    }
}

impl OffloadedSection {
    fn pending(&self) -> MutexGuard<'_, Option<JoinHandle<Result<()>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the thread that fetches the weights.
    fn settle(&self) -> Result<()> {
        match self.pending().take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(()),
        }
    }
}

fn fetch_all(weights: &[Weight]) -> Result<()> {
    weights.iter().try_for_each(Weight::fetch)
}
