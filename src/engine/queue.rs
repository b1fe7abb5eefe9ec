//! The one queue: bounded, oldest first.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic::AtomicBool},
};

use super::Event;
use crate::{error::Error, pipeline::request::Request};

/// A request and whom to tell.
pub(super) struct Job {
    pub request: Request,
    pub cancel: Arc<AtomicBool>,
    /// How often a replica has taken it.
    pub attempts: usize,
    pub events: Box<dyn Fn(Event) + Send>,
}

/// Requests that wait for a replica.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    most: usize,
}

struct State {
    jobs: VecDeque<Job>,
    replicas: usize,
    closed: bool,
}

impl Queue {
    /// For so many replicas; twice as many requests may wait.
    pub fn new(replicas: usize) -> Self {
        let state = State { jobs: VecDeque::new(), replicas, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), most: 2 * replicas }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a request at the end, once there is room. Fails it at once if nobody is left to take it.
    pub fn put(&self, job: Job) {
        let mut state = self.state();
        while state.jobs.len() >= self.most && state.replicas > 0 {
            state = self.wait(state);
        }
        if state.replicas == 0 {
            drop(state);
            (job.events)(Event::Done(Err(no_replica())));
            return;
        }
        state.jobs.push_back(job);
        drop(state);
        self.changed.notify_all();
    }

    /// The oldest request; `None` once the queue is closed and empty.
    pub fn take(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                self.changed.notify_all();
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// A replica is gone, with this job under its hands: others try it again, before all that wait, unless it was tried
    /// too often or nobody is left. In the latter case all that wait fail.
    pub fn leave(&self, job: Job, error: Error, retries: usize) {
        let mut state = self.state();
        state.replicas -= 1;
        let orphans = if state.replicas == 0 { std::mem::take(&mut state.jobs) } else { VecDeque::new() };
        if state.replicas > 0 && job.attempts <= retries {
            state.jobs.push_front(job);
            drop(state);
        } else {
            drop(state);
            (job.events)(Event::Done(Err(error)));
        }
        for orphan in orphans {
            (orphan.events)(Event::Done(Err(no_replica())));
        }
        self.changed.notify_all();
    }

    /// Lets replicas go once nothing waits.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }
}

fn no_replica() -> Error {
    Error::device("engine", "no replica is left")
}
