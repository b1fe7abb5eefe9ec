//! The rule by which requests get devices, as a state machine without threads and without a clock. The engine's gates
//! (`gate.rs`) follow it with real threads, and the planner's prediction (`planner/predict.rs`) with simulated time.
//!
//! A request asks for all devices of its next stage at once and holds nothing while it waits, so there is no deadlock.
//! It may offer several sets of devices (the places of a pool) and gets the first set whose devices are all free. A
//! device that a request further ahead in the queue waits for is not given to one behind it, so no request starves.
//!
//! The queue is ordered by arrival, with one exception: encoding a text is short, and the other devices of a pool have
//! nothing to do until their texts are encoded. So a request for a UNet's devices goes behind the texts that already
//! wait for one of these devices.
//!
//! Devices are numbers, counted from 0.

use std::collections::BTreeMap;

/// The work for which a request needs devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Encoding a text.
    Text,
    /// Encoding a picture to start from.
    Image,
    /// Denoising.
    Denoise,
    /// Decoding a picture.
    Decode,
}

impl Work {
    /// Whether the work makes what a denoiser waits for.
    pub fn is_for_denoiser(self) -> bool {
        matches!(self, Self::Text | Self::Image)
    }
}

/// The position of a request in the queue, smaller for those further ahead: the arrival that it counts as, texts before
/// other work, its own arrival, and its ticket.
type Priority = (u64, bool, u64, u64);

/// A waiting request. `S` are the sets of devices that it can use; it needs all devices of one set.
struct WaitEntry<S> {
    work: Work,
    sets: S,
}

/// A request whose wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The ticket from [`DeviceQueue::ask`].
    pub ticket: u64,
    /// The arrival of the request.
    pub arrival: u64,
    /// How its wait ended.
    pub outcome: Outcome,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The request holds the devices of the set with this number.
    Granted(usize),
    /// Every set has a lost device; this is the first one. `None`: the request has no set.
    Lost(Option<usize>),
}

#[derive(Clone, Copy, Default)]
struct Device {
    /// The arrival of the request that uses it.
    holder: Option<u64>,
    /// Whether the device has failed for good.
    is_lost: bool,
    /// In [`DeviceQueue::admit`]: whether a request further ahead waits for the device.
    is_wanted: bool,
}

/// Devices, and the requests that wait for them.
pub struct DeviceQueue<S> {
    devices: Vec<Device>,
    waiting: BTreeMap<Priority, WaitEntry<S>>,
    tickets: u64,
}

impl<S> Default for DeviceQueue<S> {
    fn default() -> Self {
        Self::new(0)
    }
}

impl<S> DeviceQueue<S> {
    /// An empty queue for this number of free devices.
    pub fn new(devices: usize) -> Self {
        Self { devices: vec![Device::default(); devices], waiting: BTreeMap::new(), tickets: 0 }
    }
}

impl<S: AsRef<[Vec<usize>]>> DeviceQueue<S> {
    /// Adds a free device, and returns its number.
    pub fn add_device(&mut self) -> usize {
        self.devices.push(Device::default());
        self.devices.len() - 1
    }

    /// Puts a request into the queue and returns its ticket. `arrival` is smaller for older requests.
    /// [`DeviceQueue::admit`] reports the end of its wait.
    pub fn ask(&mut self, arrival: u64, work: Work, sets: S) -> u64 {
        self.tickets += 1;
        let behind = if work == Work::Denoise { self.last_text_for(sets.as_ref()) } else { None };
        let priority = (behind.unwrap_or(arrival).max(arrival), !work.is_for_denoiser(), arrival, self.tickets);
        self.waiting.insert(priority, WaitEntry { work, sets });
        self.tickets
    }

    /// The arrival of the last text in the queue that waits for a device of one of these sets.
    fn last_text_for(&self, sets: &[Vec<usize>]) -> Option<u64> {
        let wanted = |device: &usize| sets.iter().any(|set| set.contains(device));
        let is_ahead =
            |entry: &WaitEntry<S>| entry.work.is_for_denoiser() && entry.sets.as_ref().iter().flatten().any(wanted);
        self.waiting.iter().rev().find(|(_, entry)| is_ahead(entry)).map(|((arrival, ..), _)| *arrival)
    }

    /// Ends the waits of all requests that may proceed now, those ahead in the queue first, and returns them. A request
    /// holds its granted devices until [`DeviceQueue::release`].
    pub fn admit(&mut self) -> Vec<Admission> {
        let Self { devices, waiting, .. } = self;
        devices.iter_mut().for_each(|device| device.is_wanted = false);
        let mut admitted = Vec::new();
        waiting.retain(|&(.., arrival, ticket), entry| {
            let sets = entry.sets.as_ref();
            let is_free = |&device: &usize| {
                let Device { holder, is_lost, is_wanted } = devices[device];
                holder.is_none() && !is_lost && !is_wanted
            };
            let lost = |set: &Vec<usize>| set.iter().copied().find(|&device| devices[device].is_lost);
            let outcome = match sets.iter().position(|set| set.iter().all(is_free)) {
                Some(set) => {
                    sets[set].iter().for_each(|&device| devices[device].holder = Some(arrival));
                    Outcome::Granted(set)
                }
                None if sets.iter().all(|set| lost(set).is_some()) => Outcome::Lost(sets.iter().find_map(lost)),
                None => {
                    sets.iter().flatten().for_each(|&device| devices[device].is_wanted = true);
                    return true;
                }
            };
            admitted.push(Admission { ticket, arrival, outcome });
            false
        });
        admitted
    }

    /// Makes devices free again.
    pub fn release(&mut self, devices: &[usize]) {
        devices.iter().for_each(|&device| self.devices[device].holder = None);
    }

    /// Marks a device as lost: it will not be free again. [`DeviceQueue::admit`] reports it to waiting requests, but
    /// not to the request that holds the device.
    pub fn lose(&mut self, device: usize) {
        self.devices[device].is_lost = true;
    }

    /// Whether a device is lost.
    pub fn is_lost(&self, device: usize) -> bool {
        self.devices[device].is_lost
    }

    /// The arrival of the request that uses a device.
    pub fn holder(&self, device: usize) -> Option<u64> {
        self.devices[device].holder
    }

    /// The number of waiting requests.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    type Sets = Vec<Vec<usize>>;

    /// The ages of the requests that are admitted now, each with its set; fails if one met a lost device.
    fn admitted(queue: &mut DeviceQueue<Sets>) -> Vec<(u64, usize)> {
        let granted = |Admission { arrival, outcome, .. }| match outcome {
            Outcome::Granted(set) => (arrival, set),
            Outcome::Lost(device) => panic!("{arrival} met {device:?}"),
        };
        queue.admit().into_iter().map(granted).collect()
    }

    #[test]
    fn a_request_gets_the_first_of_its_sets_that_is_free() {
        let mut queue = DeviceQueue::new(2);
        queue.ask(0, Work::Decode, vec![vec![0], vec![1]]);
        queue.ask(1, Work::Decode, vec![vec![0], vec![1]]);
        assert_eq!(admitted(&mut queue), [(0, 0), (1, 1)]);
        assert_eq!((queue.holder(0), queue.holder(1), queue.waiting()), (Some(0), Some(1), 0));
        queue.ask(2, Work::Decode, vec![vec![0, 1]]);
        queue.release(&[0]);
        assert!(admitted(&mut queue).is_empty(), "all devices of a set, or none");
        assert_eq!((queue.holder(0), queue.waiting()), (None, 1));
        queue.release(&[1]);
        assert_eq!(admitted(&mut queue), [(2, 0)]);
    }

    #[test]
    fn an_older_request_is_not_overtaken() {
        let mut queue = DeviceQueue::new(2);
        queue.ask(0, Work::Decode, vec![vec![0]]);
        assert_eq!(admitted(&mut queue), [(0, 0)]);
        // Device 1 is free, but the older request waits for it.
        queue.ask(1, Work::Decode, vec![vec![0, 1]]);
        queue.ask(2, Work::Decode, vec![vec![1]]);
        assert!(admitted(&mut queue).is_empty());
        queue.release(&[0]);
        assert_eq!(admitted(&mut queue), [(1, 0)]);
        queue.release(&[0, 1]);
        assert_eq!(admitted(&mut queue), [(2, 0)]);
    }

    #[test]
    fn a_text_that_waits_is_admitted_before_a_unet_that_asks_later() {
        let mut queue = DeviceQueue::new(2);
        queue.ask(9, Work::Denoise, vec![vec![0]]);
        assert_eq!(admitted(&mut queue), [(9, 0)]);
        queue.ask(6, Work::Text, vec![vec![0]]);
        queue.ask(3, Work::Denoise, vec![vec![0]]);
        // The new request is behind the older one, which is behind the text ahead of it: there is one order of all
        // requests.
        queue.ask(5, Work::Decode, vec![vec![0]]);
        queue.ask(7, Work::Text, vec![vec![0]]);
        // No text waits for the other device.
        queue.ask(8, Work::Denoise, vec![vec![1]]);
        assert_eq!(admitted(&mut queue), [(8, 0)]);
        for next in [5, 6, 3, 7] {
            queue.release(&[0]);
            assert_eq!(admitted(&mut queue), [(next, 0)]);
        }
    }

    #[test]
    fn a_lost_device_is_given_to_no_request_and_the_others_are() {
        let mut queue = DeviceQueue::new(2);
        queue.ask(0, Work::Decode, vec![vec![0]]);
        assert_eq!(admitted(&mut queue), [(0, 0)]);
        let ticket = queue.ask(1, Work::Decode, vec![vec![0, 1]]);
        assert!(queue.admit().is_empty());
        queue.lose(0);
        assert_eq!(queue.admit(), [Admission { ticket, arrival: 1, outcome: Outcome::Lost(Some(0)) }]);
        // A pool continues without the lost device, and the request that used it may still release it.
        queue.ask(2, Work::Decode, vec![vec![0], vec![1]]);
        assert_eq!(admitted(&mut queue), [(2, 1)]);
        queue.release(&[0]);
        let ticket = queue.ask(3, Work::Decode, vec![vec![0]]);
        assert_eq!(queue.admit(), [Admission { ticket, arrival: 3, outcome: Outcome::Lost(Some(0)) }]);
        let ticket = queue.ask(4, Work::Decode, vec![]);
        assert_eq!(queue.admit(), [Admission { ticket, arrival: 4, outcome: Outcome::Lost(None) }]);
        assert!(queue.is_lost(0) && !queue.is_lost(1));
    }
}
