//! Who has been silent for too long.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Crew;
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

/// A request that holds devices.
struct Watched {
    silent: Silent,
    devices: Vec<Device>,
    /// How much its devices had done when they were last looked at.
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
    pub crew: Arc<Crew>,
    pub claim: u64,
    pub age: u64,
    pub devices: Vec<DeviceId>,
    pub patience: Duration,
}

impl Watched {
    /// When to look at its devices again.
    fn next_look(&self) -> Instant {
        self.looked + self.silent.patience / LOOKS
    }

    fn done(&self) -> u64 {
        self.devices.iter().map(Device::calls).sum()
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
        let known = silent.crew.devices.iter().filter(|device| silent.devices.contains(&device.id()));
        let devices = known.cloned().collect();
        let now = self.0.clock().now();
        let mut watched = Watched { silent, devices, done: 0, looked: now, last: now };
        watched.done = watched.done();
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
            let Some(deadline) = self.0.wait_until(|state| match state.next_look() {
                _ if state.stopped => Some(None),
                None => None,
                some => Some(some),
            }) else {
                return None;
            };
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
                for watched in state.watched.iter_mut().filter(|watched| watched.next_look() <= now) {
                    let done = watched.done();
                    if done != watched.done {
                        watched.last = now;
                    }
                    (watched.done, watched.looked) = (done, now);
                }
                let silent = |watched: &Watched| watched.last + watched.silent.patience <= now;
                for watched in state.watched.iter_mut().filter(|watched| silent(watched)) {
                    let Silent { crew, age, devices, .. } = &mut watched.silent;
                    // It may have passed on, or wait for a device that another request has.
                    *devices = crew.gates.held_by(*age);
                    if devices.is_empty() {
                        watched.last = now;
                    }
                }
                let i = state.watched.iter().position(silent)?;
                Some(state.watched.remove(i).silent)
            });
            if silent.is_some() {
                return silent;
            }
        }
    }
}
