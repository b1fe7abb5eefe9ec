//! The one queue: bounded, oldest first.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use super::Event;
use crate::{error::Error, pipeline::request::Request};

/// A request and whom to tell.
pub(super) struct Job {
    pub request: Request,
    pub cancel: Arc<AtomicBool>,
    /// Its place among all requests; the queue gives it.
    pub age: u64,
    /// How often a replica has taken it.
    pub attempts: usize,
    pub events: Box<dyn Fn(Event) + Send>,
}

impl Job {
    pub fn new(request: Request, cancel: Arc<AtomicBool>, events: impl Fn(Event) + Send + 'static) -> Self {
        Self { request, cancel, age: 0, attempts: 0, events: Box::new(events) }
    }
}

/// Requests that wait for a replica.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    most: usize,
}

struct State {
    jobs: VecDeque<Job>,
    /// Whether each replica is still there.
    here: Vec<bool>,
    requests: u64,
    closed: bool,
}

impl State {
    fn is_deserted(&self) -> bool {
        !self.here.contains(&true)
    }
}

impl Queue {
    /// For so many replicas with so many threads in all; twice as many requests may wait.
    pub fn new(replicas: usize, threads: usize) -> Self {
        let state = State { jobs: VecDeque::new(), here: vec![true; replicas], requests: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), most: 2 * threads }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request at the end, once there is room. Fails it at once if nobody is left to take it.
    pub fn put(&self, mut job: Job) {
        let mut state = self.state();
        while state.jobs.len() >= self.most && !state.is_deserted() {
            state = self.wait(state);
        }
        if state.is_deserted() {
            drop(state);
            (job.events)(Event::Done(Err(no_replica())));
            return;
        }
        job.age = state.requests;
        state.requests += 1;
        state.jobs.push_back(job);
        drop(state);
        self.changed.notify_all();
    }

    /// The oldest request, for a thread of `replica`; `None` once the queue is closed and empty, or the replica is gone.
    pub fn take(&self, replica: usize) -> Option<Job> {
        let mut state = self.state();
        loop {
            if !state.here[replica] {
                return None;
            }
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
    pub fn leave(&self, replica: usize, job: Job, error: Error, retries: usize) {
        let mut state = self.state();
        state.here[replica] = false;
        let orphans = if state.is_deserted() { std::mem::take(&mut state.jobs) } else { VecDeque::new() };
        if !state.is_deserted() && job.attempts <= retries {
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
