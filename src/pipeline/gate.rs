//! Who may use which device: a request asks for all devices of its next section at once and holds nothing while it
//! waits, so there is no deadlock; and nobody takes a device that an older request waits for, so nobody starves.

use std::sync::{Condvar, Mutex, MutexGuard};

use crate::backend::DeviceId;

/// The gates of all devices of an engine.
#[derive(Default)]
pub struct Gates {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: Vec<DeviceId>,
    /// Requests that wait, with everything that they could use.
    waiting: Vec<(u64, Vec<DeviceId>)>,
}

/// The right to use some devices, until it drops.
pub struct Section<'a> {
    gates: &'a Gates,
    devices: Vec<DeviceId>,
}

impl Gates {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until all devices of one of `choices` are free of others and of older requests' wishes, and takes them.
    /// Returns which choice it is: the first that can be had. `age` is smaller for older requests, and no two have the
    /// same.
    pub fn enter(&self, age: u64, choices: &[Vec<DeviceId>]) -> (usize, Section<'_>) {
        let mut state = self.state();
        state.waiting.push((age, choices.concat()));
        loop {
            let free = |device: &DeviceId| {
                let wanted = state.waiting.iter().any(|(other, wanted)| *other < age && wanted.contains(device));
                !wanted && !state.held.contains(device)
            };
            if let Some(choice) = choices.iter().position(|devices| devices.iter().all(free)) {
                let devices = choices[choice].clone();
                state.held.extend(&devices);
                state.waiting.retain(|(other, _)| *other != age);
                drop(state);
                // What this request waited for besides may be free for younger ones.
                self.changed.notify_all();
                return (choice, Section { gates: self, devices });
            }
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl Section<'_> {
    /// What may be used.
    pub fn devices(&self) -> &[DeviceId] {
        &self.devices
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.gates.state().held.retain(|device| !self.devices.contains(device));
        self.gates.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use super::*;
    use crate::backend::DeviceKind;

    fn cpu(index: usize) -> DeviceId {
        DeviceId::new(DeviceKind::Cpu, index)
    }

    #[test]
    fn a_free_choice_is_taken_and_the_first_of_several() {
        let gates = Gates::default();
        let (choice, first) = gates.enter(0, &[vec![cpu(0)], vec![cpu(1)]]);
        assert_eq!(choice, 0);
        let (choice, second) = gates.enter(1, &[vec![cpu(0)], vec![cpu(1)]]);
        assert_eq!(choice, 1);
        drop((first, second));
        assert_eq!(gates.enter(2, &[vec![cpu(0), cpu(1)]]).0, 0);
    }

    #[test]
    fn an_older_wish_is_not_overtaken() {
        let gates = Gates::default();
        let order = Mutex::new(Vec::new());
        let (_, held) = gates.enter(0, &[vec![cpu(0)]]);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _section = gates.enter(1, &[vec![cpu(0), cpu(1)]]);
                order.lock().unwrap().push(1);
            });
            while gates.state().waiting.is_empty() {
                thread::yield_now();
            }
            // cpu:1 is free, but the older request waits for it.
            scope.spawn(|| {
                let _section = gates.enter(2, &[vec![cpu(1)]]);
                order.lock().unwrap().push(2);
            });
            while gates.state().waiting.len() < 2 {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(5));
            assert!(order.lock().unwrap().is_empty());
            drop(held);
        });
        assert_eq!(order.into_inner().unwrap(), [1, 2]);
    }

    #[test]
    fn many_requests_for_crossing_sets_all_come_through_alone() {
        let gates = Gates::default();
        let users: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for age in 0..64u64 {
                let (gates, users) = (&gates, &users);
                scope.spawn(move || {
                    let (a, b) = (age as usize % 4, (age as usize * 7 + 1) % 4);
                    let set = if a == b { vec![cpu(a)] } else { vec![cpu(a), cpu(b)] };
                    let _section = gates.enter(age, std::slice::from_ref(&set));
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
}
