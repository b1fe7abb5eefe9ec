//! Weights that visit their device a section at a time, the next one on its way while the present one is used.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use crate::{
    backend::Weight,
    error::{Error, Result},
};

/// Who brings the next section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// A thread, while the caller computes.
    Thread,
    /// The caller, at once: for runs without data, in which the order decides what is counted.
    Caller,
}

/// The visiting weights of one network in one place. Whoever uses a section has its device's gate, so no two do.
pub struct Visitors {
    sections: Vec<Section>,
    ahead: Ahead,
}

struct Section {
    weights: Arc<[Weight]>,
    /// They are on their way.
    coming: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Visitors {
    pub(super) fn new(sections: Vec<Vec<Weight>>, ahead: Ahead) -> Self {
        let section = |weights: Vec<Weight>| Section { weights: weights.into(), coming: Mutex::default() };
        Self { sections: sections.into_iter().map(section).collect(), ahead }
    }

    /// What a section occupies while it visits, in bytes.
    pub fn bytes(&self, section: usize) -> usize {
        self.sections[section].weights.iter().map(Weight::bytes).sum()
    }

    /// Starts to bring a section.
    ///
    /// # Errors
    /// If the caller brings it and it cannot be had.
    pub fn expect(&self, section: usize) -> Result<()> {
        let section = &self.sections[section];
        if self.ahead == Ahead::Caller {
            return bring(&section.weights);
        }
        let mut coming = section.coming();
        if coming.is_none() {
            let weights = section.weights.clone();
            let thread = std::thread::Builder::new().name("visitors".to_string());
            let thread = thread.spawn(move || bring(&weights));
            *coming = Some(thread.map_err(|e| Error::process("starting a thread that brings weights").source(e))?);
        }
        Ok(())
    }

    /// Waits until a section is here; brings it if nobody has begun to.
    ///
    /// # Errors
    /// If a file can no longer be read or the device has no room.
    pub fn arrive(&self, section: usize) -> Result<()> {
        let section = &self.sections[section];
        section.settle()?;
        bring(&section.weights)
    }

    /// Frees what a section occupies.
    pub fn depart(&self, section: usize) {
        let section = &self.sections[section];
        // Whether it could be brought does not matter any more.
        let _ = section.settle();
        section.weights.iter().for_each(Weight::depart);
    }
}

impl Section {
    fn coming(&self) -> MutexGuard<'_, Option<JoinHandle<Result<()>>>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for whoever brings it.
    fn settle(&self) -> Result<()> {
        match self.coming().take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(()),
        }
    }
}

fn bring(weights: &[Weight]) -> Result<()> {
    weights.iter().try_for_each(Weight::arrive)
}
