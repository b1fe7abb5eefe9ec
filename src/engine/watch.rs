//! The watchdog's records: which requests hold devices, and when these devices last made progress.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::pool::WorkerPool;
use crate::{
    backend::{Device, DeviceId},
    sync::{Clock, Monitor},
};

/// The requests that hold devices.
pub(super) struct Watch(Monitor<State>);

#[derive(Default)]
struct State {
    watched: Vec<Watched>,
    stopped: bool,
}

/// A request that holds devices, or waits for the next of them.
struct Watched {
    silent: Silent,
    /// The number of calls of the held devices at the last check.
    done: u64,
    looked: Instant,
    /// When the request or its devices last made progress.
    last: Instant,
}

/// The number of checks of a device before it counts as lost.
const CHECKS: u32 = 8;

/// A request that holds devices and may have made no progress for too long.
#[derive(Clone)]
pub(super) struct Silent {
    pub pool: Arc<WorkerPool>,
    pub claim: u64,
    pub arrival: u64,
    /// The devices that it holds.
    pub devices: Vec<DeviceId>,
    pub patience: Duration,
}

impl Watched {
    /// When its devices are checked next.
    fn next_check(&self) -> Instant {
        self.looked + self.silent.patience / CHECKS
    }

    /// Checks the held devices, which no other request uses meanwhile.
    fn check(&mut self, now: Instant) {
        let Silent { pool, arrival, devices, .. } = &mut self.silent;
        let held = pool.gates.held_by(*arrival);
        let done = pool.devices.iter().filter(|device| held.contains(&device.id())).map(Device::calls).sum();
        // The request may have moved to other devices, or may be waiting for one that another request holds.
        if *devices != held || held.is_empty() || done != self.done {
            self.last = now;
        }
        (*devices, self.done, self.looked) = (held, done, now);
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.last + self.silent.patience <= now
    }
}

impl State {
    fn next_check(&self) -> Option<Instant> {
        self.watched.iter().map(Watched::next_check).min()
    }
}

impl Watch {
    pub fn new(clock: Clock) -> Self {
        Self(Monitor::new(State::default(), clock))
    }

    /// Records that a request holds its devices.
    pub fn begin(&self, silent: Silent) {
        let now = self.0.clock().now();
        let mut watched = Watched { silent, done: 0, looked: now, last: now };
        watched.check(now);
        self.0.update(|state| state.watched.push(watched));
    }

    /// Records that a request made progress.
    pub fn progressed(&self, claim: u64) {
        let now = self.0.clock().now();
        self.0.access(|state| {
            state.watched.iter_mut().filter(|watched| watched.silent.claim == claim).for_each(|w| w.last = now);
        });
    }

    /// Records that a request holds no device any more.
    pub fn end(&self, claim: u64) {
        self.0.access(|state| state.watched.retain(|watched| watched.silent.claim != claim));
    }

    /// Ends the watchdog.
    pub fn stop(&self) {
        self.0.update(|state| state.stopped = true);
    }

    /// Waits for a request that has made no progress, neither itself nor its devices, for as long as its `patience`.
    /// Returns `None` after [`Watch::stop`].
    pub fn next_silent(&self) -> Option<Silent> {
        loop {
            let deadline = self.0.wait_until(|state| match state.next_check() {
                _ if state.stopped => Some(None),
                None => None,
                some => Some(some),
            })?;
            // A younger request may have a shorter patience.
            let earlier = |state: &mut State| {
                let changed = state.stopped || state.next_check().is_some_and(|next| next < deadline);
                changed.then_some(())
            };
            if self.0.wait_before(deadline, earlier).is_some() {
                continue;
            }
            let now = self.0.clock().now();
            let silent = self.0.access(|state| {
                let due = state.watched.iter_mut().filter(|watched| watched.next_check() <= now);
                due.for_each(|watched| watched.check(now));
                let silent = state.watched.iter().find(|watched| watched.is_silent(now))?.silent.clone();
                // All requests of its batch are silent as well.
                state.watched.retain(|watched| watched.silent.arrival != silent.arrival);
                Some(silent)
            });
            if silent.is_some() {
                return silent;
            }
        }
    }
}
