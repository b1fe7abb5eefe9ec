//! Who has been silent for too long.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::pool::WorkerPool;
use crate::{
    backend::{Device, DeviceId},
    sync::{Clock, Monitor},
};

/// Requests that hold devices.
pub(super) struct Watch(Monitor<State>);

#[derive(Default)]
struct State {
    watched: Vec<Watched>,
    stopped: bool,
}

/// A request that holds devices, or waits for the next of them.
struct Watched {
    silent: Silent,
    /// How much the devices that it holds had done when they were last looked at.
    done: u64,
    looked: Instant,
    /// When it or its devices were last heard of.
    last: Instant,
}

/// How often a device is looked at before it is given up.
const LOOKS: u32 = 8;

/// A request that has been silent for too long.
#[derive(Clone)]
pub(super) struct Silent {
    pub pool: Arc<WorkerPool>,
    pub claim: u64,
    pub age: u64,
    /// What it holds.
    pub devices: Vec<DeviceId>,
    pub patience: Duration,
}

impl Watched {
    /// When to look at its devices again.
    fn next_look(&self) -> Instant {
        self.looked + self.silent.patience / LOOKS
    }

    /// Looks at the devices that it holds, which nobody else uses meanwhile.
    fn look(&mut self, now: Instant) {
        let Silent { pool, age, devices, .. } = &mut self.silent;
        let held = pool.gates.held_by(*age);
        let done = pool.devices.iter().filter(|device| held.contains(&device.id())).map(Device::calls).sum();
        // It may have passed on, or wait for a device that another request has.
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
    fn next_look(&self) -> Option<Instant> {
        self.watched.iter().map(Watched::next_look).min()
    }
}

impl Watch {
    pub fn new(clock: Clock) -> Self {
        Self(Monitor::new(State::default(), clock))
    }

    /// A request has got its devices.
    pub fn begin(&self, silent: Silent) {
        let now = self.0.clock().now();
        let mut watched = Watched { silent, done: 0, looked: now, last: now };
        watched.look(now);
        self.0.update(|state| state.watched.push(watched));
    }

    /// It was heard of.
    pub fn heard(&self, claim: u64) {
        let now = self.0.clock().now();
        self.0.look(|state| {
            state.watched.iter_mut().filter(|watched| watched.silent.claim == claim).for_each(|w| w.last = now);
        });
    }

    /// It holds nothing any more.
    pub fn end(&self, claim: u64) {
        self.0.look(|state| state.watched.retain(|watched| watched.silent.claim != claim));
    }

    /// No more is to be watched.
    pub fn stop(&self) {
        self.0.update(|state| state.stopped = true);
    }

    /// Waits for a request that nothing was heard of, neither from itself nor from its devices, for as long as its
    /// patience lasts. `None` once nothing is watched any more.
    pub fn next_silent(&self) -> Option<Silent> {
        loop {
            let deadline = self.0.wait_until(|state| match state.next_look() {
                _ if state.stopped => Some(None),
                None => None,
                some => Some(some),
            })?;
            // A younger request may have less patience.
            let earlier = |state: &mut State| {
                let changed = state.stopped || state.next_look().is_some_and(|next| next < deadline);
                changed.then_some(())
            };
            if self.0.wait_before(deadline, earlier).is_some() {
                continue;
            }
            let now = self.0.clock().now();
            let silent = self.0.look(|state| {
                let due = state.watched.iter_mut().filter(|watched| watched.next_look() <= now);
                due.for_each(|watched| watched.look(now));
                let silent = state.watched.iter().find(|watched| watched.is_silent(now))?.silent.clone();
                // With all requests of its batch.
                state.watched.retain(|watched| watched.silent.age != silent.age);
                Some(silent)
            });
            if silent.is_some() {
                return silent;
            }
        }
    }
}
