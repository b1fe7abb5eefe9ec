//! The devices of an engine, shared by the threads that work on its requests: each thread waits here for the devices of
//! its next stage, in the order of [`DeviceQueue`].

pub use super::device_queue::Work;
use super::device_queue::{Admission, DeviceQueue, Outcome};
use crate::{
    backend::DeviceId,
    error::{Error, Result},
    sync::{Clock, Monitor},
};

/// The gates of all devices of an engine.
pub struct Gates(Monitor<State>);

#[derive(Default)]
struct State {
    /// The devices that were requested so far, in the order of their numbers in the queue.
    ids: Vec<DeviceId>,
    queue: DeviceQueue<Vec<Vec<usize>>>,
    /// Requests whose wait has ended, but whose threads have not run yet.
    admitted: Vec<Admission>,
}

/// The right to use some devices, until it is dropped.
pub struct DeviceGuard<'a> {
    gates: &'a Gates,
    devices: Vec<DeviceId>,
}

impl Default for Gates {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}

impl Gates {
    /// Gates with all devices free.
    pub fn new(clock: Clock) -> Self {
        Self(Monitor::new(State::default(), clock))
    }

    /// The clock of the waiting threads.
    pub fn clock(&self) -> &Clock {
        self.0.clock()
    }

    /// Waits for all devices of one of `choices`, and takes them. Returns the index of the choice: the first one whose
    /// devices are free. `arrival` is smaller for older requests, and unique. The request releases `leaving` at the
    /// moment in which it begins to wait, so that no younger request can take these devices in between.
    ///
    /// # Errors
    /// If each choice has a device that is lost, now or while it waits.
    pub fn enter(
        &self,
        arrival: u64,
        work: Work,
        choices: &[Vec<DeviceId>],
        leaving: Option<DeviceGuard<'_>>,
    ) -> Result<(usize, DeviceGuard<'_>)> {
        let leaves = leaving.map_or_else(Vec::new, |mut guard| std::mem::take(&mut guard.devices));
        let ticket = self.0.update(|state| {
            state.release(&leaves);
            let sets = choices.iter().map(|devices| state.numbers(devices)).collect();
            let ticket = state.queue.ask(arrival, work, sets);
            state.admit();
            ticket
        });
        let outcome = self.0.wait_until(|state| state.outcome(ticket));
        match outcome {
            Outcome::Granted(choice) => Ok((choice, DeviceGuard { gates: self, devices: choices[choice].clone() })),
            Outcome::Lost(Some(device)) => {
                let id = self.0.access(|state| state.ids[device]);
                Err(Error::device(id, "it failed while this request waited for it"))
            }
            Outcome::Lost(None) => Err(Error::request("there is no device to run on")),
        }
    }

    /// Marks devices as lost. Requests that wait for them get an error; requests that use them do not.
    pub fn lose(&self, devices: &[DeviceId]) {
        self.0.update(|state| {
            state.numbers(devices).into_iter().for_each(|device| state.queue.lose(device));
            state.admit();
        });
    }

    /// The devices that the request of this arrival uses now, except lost ones, which an earlier try may still hold.
    pub fn held_by(&self, arrival: u64) -> Vec<DeviceId> {
        self.0.access(|state| {
            state.ids_where(|queue, device| queue.holder(device) == Some(arrival) && !queue.is_lost(device))
        })
    }

    /// The number of waiting requests.
    pub fn waiting(&self) -> usize {
        self.0.access(|state| state.queue.waiting())
    }

    /// The devices that are lost.
    pub fn lost(&self) -> Vec<DeviceId> {
        self.0.access(|state| state.ids_where(DeviceQueue::is_lost))
    }
}

impl State {
    /// The numbers of these devices in the queue; new devices are added to it.
    fn numbers(&mut self, devices: &[DeviceId]) -> Vec<usize> {
        let mut number = |id: &DeviceId| {
            self.ids.iter().position(|known| known == id).unwrap_or_else(|| {
                self.ids.push(*id);
                self.queue.add_device()
            })
        };
        devices.iter().map(&mut number).collect()
    }

    /// The devices for which `holds` is true.
    fn ids_where(&self, holds: impl Fn(&DeviceQueue<Vec<Vec<usize>>>, usize) -> bool) -> Vec<DeviceId> {
        (0..self.ids.len()).filter(|&device| holds(&self.queue, device)).map(|device| self.ids[device]).collect()
    }

    fn release(&mut self, devices: &[DeviceId]) {
        let numbers = self.numbers(devices);
        self.queue.release(&numbers);
    }

    /// Ends the waits of the requests that may proceed after a change.
    fn admit(&mut self) {
        self.admitted.extend(self.queue.admit());
    }

    /// How the wait with this ticket ended; `None` while it lasts.
    fn outcome(&mut self, ticket: u64) -> Option<Outcome> {
        let at = self.admitted.iter().position(|admission| admission.ticket == ticket)?;
        Some(self.admitted.swap_remove(at).outcome)
    }
}

impl DeviceGuard<'_> {
    /// The devices that may be used.
    pub fn devices(&self) -> &[DeviceId] {
        &self.devices
    }
}

impl Drop for DeviceGuard<'_> {
    fn drop(&mut self) {
        if !self.devices.is_empty() {
            self.gates.0.update(|state| {
                state.release(&self.devices);
                state.admit();
            });
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;
    use crate::backend::DeviceKind;

    fn cpu(index: usize) -> DeviceId {
        DeviceId::new(DeviceKind::Cpu, index)
    }

    #[test]
    fn a_request_that_leaves_a_stage_asks_for_the_next_before_others_are_admitted() {
        let gates = Gates::default();
        thread::scope(|scope| {
            let (_, held) = gates.enter(0, Work::Denoise, &[vec![cpu(0)]], None).unwrap();
            let waits = scope.spawn(|| gates.enter(1, Work::Denoise, &[vec![cpu(0)]], None).map(drop));
            while gates.waiting() == 0 {
                thread::yield_now();
            }
            // The picture of the older request is decoded first.
            let (_, held) = gates.enter(0, Work::Decode, &[vec![cpu(0)]], Some(held)).unwrap();
            assert_eq!(gates.waiting(), 1);
            drop(held);
            waits.join().unwrap().unwrap();
        });
    }

    #[test]
    fn many_requests_for_overlapping_sets_are_all_served_one_at_a_time() {
        let gates = Gates::default();
        let users: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for arrival in 0..64u64 {
                let (gates, users) = (&gates, &users);
                scope.spawn(move || {
                    let (a, b) = (arrival as usize % 4, (arrival as usize * 7 + 1) % 4);
                    let set = if a == b { vec![cpu(a)] } else { vec![cpu(a), cpu(b)] };
                    let _section = gates.enter(arrival, Work::Decode, std::slice::from_ref(&set), None).unwrap();
                    for device in &set {
                        let index = device.index.unwrap();
                        assert_eq!(users[index].fetch_add(1, Ordering::SeqCst), 0, "two in one section");
                    }
                    thread::yield_now();
                    for device in &set {
                        users[device.index.unwrap()].fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }

    #[test]
    fn a_lost_device_is_given_to_no_request_and_the_others_are() {
        let gates = Gates::default();
        let (_, held) = gates.enter(0, Work::Decode, &[vec![cpu(0)]], None).unwrap();
        thread::scope(|scope| {
            let waits =
                scope.spawn(|| gates.enter(1, Work::Decode, &[vec![cpu(0), cpu(1)]], None).map(|(choice, _)| choice));
            while gates.waiting() == 0 {
                thread::yield_now();
            }
            gates.lose(&[cpu(0)]);
            let error = waits.join().unwrap().unwrap_err();
            assert!(error.to_string().starts_with("cpu:0: it failed"), "{error}");
        });
        // A pool continues without the lost device, and the request that used it may still release it.
        assert_eq!(gates.enter(2, Work::Decode, &[vec![cpu(0)], vec![cpu(1)]], None).unwrap().0, 1);
        drop(held);
        assert!(gates.enter(3, Work::Decode, &[vec![cpu(0)]], None).is_err());
    }
}
