//! Who may use which device: a request asks for all devices of its next section at once and holds nothing while it
//! waits, so there is no deadlock; and nobody takes a device that is wanted by someone before it in line, so nobody
//! starves. The line is by age, but for texts: they are short, and the other devices of a pool have nothing to do until
//! theirs are encoded, so whoever asks for a UNet's devices goes behind the texts that wait for one of them already.

use crate::{
    backend::DeviceId,
    error::{Error, Result},
    sync::{Clock, Monitor},
};

/// The gates of all devices of an engine.
pub struct Gates(Monitor<State>);

#[derive(Default)]
struct State {
    /// Sections so far.
    sections: u64,
    /// Sections in use: their number, the age of their request, and their devices.
    held: Vec<(u64, u64, Vec<DeviceId>)>,
    waiting: Vec<Wish>,
    lost: Vec<DeviceId>,
}

/// What a request wants devices for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// To encode a text.
    Text,
    /// To denoise.
    Denoise,
    /// To decode a picture.
    Decode,
}

/// A place in line, smaller for those who come first: an age, texts before others, and the request's own age.
type Rank = (u64, bool, u64);

/// A request that waits, with everything that it could use.
struct Wish {
    rank: Rank,
    work: Work,
    devices: Vec<DeviceId>,
}

/// The right to use some devices, until it drops.
pub struct Section<'a> {
    gates: &'a Gates,
    number: u64,
    devices: Vec<DeviceId>,
}

impl Default for Gates {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}

impl Gates {
    /// All open.
    pub fn new(clock: Clock) -> Self {
        Self(Monitor::new(State::default(), clock))
    }

    /// The clock of those who wait here.
    pub fn clock(&self) -> &Clock {
        self.0.clock()
    }

    /// Waits until all devices of one of `choices` are free of others and of the wishes of those before it in line, and
    /// takes them. Returns which choice it is: the first that can be had. `age` is smaller for older requests, and no two
    /// have the same. It stops using `leaving` in the moment in which it asks, so no younger one slips in between.
    ///
    /// # Errors
    /// If each choice has a device that is lost, now or meanwhile.
    pub fn enter(
        &self,
        age: u64,
        work: Work,
        choices: &[Vec<DeviceId>],
        leaving: Option<Section<'_>>,
    ) -> Result<(usize, Section<'_>)> {
        let rank = self.0.update(|state| {
            let left = leaving.as_ref().map(|section| section.number);
            state.held.retain(|(number, ..)| Some(*number) != left);
            let (rank, devices) = (state.rank(age, work, choices), choices.concat());
            state.waiting.push(Wish { rank, work, devices });
            rank
        });
        drop(leaving);
        let entered = self.0.wait_until(|state| {
            let lost = |devices: &Vec<DeviceId>| devices.iter().copied().find(|device| state.lost.contains(device));
            let entered = if choices.iter().all(|devices| lost(devices).is_some()) {
                Err(choices.iter().find_map(lost))
            } else {
                Ok(choices.iter().position(|devices| state.is_free(rank, devices))?)
            };
            state.waiting.retain(|other| other.rank != rank);
            Some(entered.map(|choice| {
                state.sections += 1;
                let number = state.sections;
                state.held.push((number, age, choices[choice].clone()));
                (choice, number)
            }))
        });
        match entered {
            Ok((choice, number)) => Ok((choice, Section { gates: self, number, devices: choices[choice].clone() })),
            Err(Some(device)) => Err(Error::device(device, "it failed while this request waited for it")),
            Err(None) => Err(Error::request("there is no device to run on")),
        }
    }

    /// These devices will not be free again. Who waits for them is told; who uses them is not.
    pub fn lose(&self, devices: &[DeviceId]) {
        self.0.update(|state| state.lost.extend(devices));
    }

    /// The devices that the request of this age uses now, but for those that are lost: an earlier try may still hold them.
    pub fn held_by(&self, age: u64) -> Vec<DeviceId> {
        self.0.look(|state| {
            let own = state.held.iter().filter(|(_, other, _)| *other == age);
            own.flat_map(|(.., devices)| devices).copied().filter(|device| !state.lost.contains(device)).collect()
        })
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.0.look(|state| state.waiting.len())
    }

    /// Devices that will not be free again.
    pub fn lost(&self) -> Vec<DeviceId> {
        self.0.look(|state| state.lost.clone())
    }
}

impl State {
    /// The place in line of a request that asks now.
    fn rank(&self, age: u64, work: Work, choices: &[Vec<DeviceId>]) -> Rank {
        let yields_to = |other: &&Wish| {
            let shared = choices.iter().flatten().any(|device| other.devices.contains(device));
            work == Work::Denoise && other.work == Work::Text && shared
        };
        let texts = self.waiting.iter().filter(yields_to).map(|text| text.rank.0);
        (texts.fold(age, u64::max), work != Work::Text, age)
    }

    /// Whether a request may have these devices now.
    fn is_free(&self, rank: Rank, devices: &[DeviceId]) -> bool {
        devices.iter().all(|device| {
            let wanted = self.waiting.iter().any(|other| other.rank < rank && other.devices.contains(device));
            let held = self.held.iter().any(|(_, _, held)| held.contains(device));
            !wanted && !held && !self.lost.contains(device)
        })
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
        self.gates.0.update(|state| state.held.retain(|(number, ..)| *number != self.number));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
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
        let (choice, first) = gates.enter(0, Work::Decode, &[vec![cpu(0)], vec![cpu(1)]], None).unwrap();
        assert_eq!(choice, 0);
        let (choice, second) = gates.enter(1, Work::Decode, &[vec![cpu(0)], vec![cpu(1)]], None).unwrap();
        assert_eq!(choice, 1);
        drop((first, second));
        assert_eq!(gates.enter(2, Work::Decode, &[vec![cpu(0), cpu(1)]], None).unwrap().0, 0);
    }

    #[test]
    fn an_older_wish_is_not_overtaken() {
        let gates = Gates::default();
        let order = Mutex::new(Vec::new());
        let (_, held) = gates.enter(0, Work::Decode, &[vec![cpu(0)]], None).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _section = gates.enter(1, Work::Decode, &[vec![cpu(0), cpu(1)]], None).unwrap();
                order.lock().unwrap().push(1);
            });
            while gates.waiting() == 0 {
                thread::yield_now();
            }
            // cpu:1 is free, but the older request waits for it.
            scope.spawn(|| {
                let _section = gates.enter(2, Work::Decode, &[vec![cpu(1)]], None).unwrap();
                order.lock().unwrap().push(2);
            });
            while gates.waiting() < 2 {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(5));
            assert!(order.lock().unwrap().is_empty());
            drop(held);
        });
        assert_eq!(order.into_inner().unwrap(), [1, 2]);
    }

    #[test]
    fn whoever_leaves_asks_before_the_others_are_told() {
        let gates = Gates::default();
        thread::scope(|scope| {
            let (_, held) = gates.enter(0, Work::Denoise, &[vec![cpu(0)]], None).unwrap();
            let waits = scope.spawn(|| gates.enter(1, Work::Denoise, &[vec![cpu(0)]], None).map(drop));
            while gates.waiting() == 0 {
                thread::yield_now();
            }
            // The older one has its picture decoded first.
            let (_, held) = gates.enter(0, Work::Decode, &[vec![cpu(0)]], Some(held)).unwrap();
            assert_eq!(gates.waiting(), 1);
            drop(held);
            waits.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_text_that_waits_goes_before_a_unet_that_asks_later() {
        let gates = Gates::default();
        let (sender, order) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let (_, held) = gates.enter(9, Work::Denoise, &[vec![cpu(0)]], None).unwrap();
            let ask = |age, work, before| {
                let (sender, gates) = (sender.clone(), &gates);
                scope.spawn(move || {
                    let section = gates.enter(age, work, &[vec![cpu(0)]], None).unwrap();
                    sender.send((age, work)).unwrap();
                    drop(section);
                });
                while gates.waiting() == before {
                    thread::yield_now();
                }
            };
            ask(6, Work::Text, 0);
            ask(3, Work::Denoise, 1);
            // In line after the older one, which is behind the text before it: there is one order of all.
            ask(5, Work::Decode, 2);
            ask(7, Work::Text, 3);
            drop(held);
        });
        let want = [(5, Work::Decode), (6, Work::Text), (3, Work::Denoise), (7, Work::Text)];
        assert_eq!(order.try_iter().collect::<Vec<_>>(), want);
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
                    let _section = gates.enter(age, Work::Decode, std::slice::from_ref(&set), None).unwrap();
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
    fn a_lost_device_is_nobodys_and_the_rest_goes_on() {
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
        // A pool goes on without it, and whoever used it may still leave.
        assert_eq!(gates.enter(2, Work::Decode, &[vec![cpu(0)], vec![cpu(1)]], None).unwrap().0, 1);
        drop(held);
        assert!(gates.enter(3, Work::Decode, &[vec![cpu(0)]], None).is_err());
    }
}
