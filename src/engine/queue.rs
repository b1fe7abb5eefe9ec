//! The queue of requests, bounded, the oldest first, and the record of which thread works on which request. The record
//! ensures that every request ends exactly once, whatever happens to the threads that work on it.
//!
//! Which request gets a device next is decided elsewhere: in `pipeline/device_queue.rs`.

use std::collections::VecDeque;

use crate::{
    backend::DeviceId,
    sync::{Clock, Monitor},
};

/// The number of times that a request is tried again after a device failed while working on it.
pub(super) const RETRIES: usize = 2;
/// A request during which this many devices failed may be the cause, and is not tried again.
pub(super) const MAX_DEVICE_FAILURES: usize = 2;

/// The requests that wait for a replica, and those in progress. `J` is the engine's data of a request.
pub(super) struct Queue<J>(Monitor<State<J>>);

/// A worker thread: of one replica of one of the engine's plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worker {
    /// The number of the plan, from 1.
    pub plan: usize,
    pub replica: usize,
    /// The number of the thread among those of all plans.
    pub thread: usize,
}

/// A request that a thread works on.
pub(super) struct Claim<J> {
    pub job: J,
    /// The number of the request in the order of submission.
    pub arrival: u64,
    /// How often the request was taken, this time included.
    pub attempt: usize,
    /// The number of this claim: earlier and later claims to the same request have others.
    pub number: u64,
}

/// How the failure of a device was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noticed {
    /// By an error of the thread that used the device; the thread can go on.
    ByError,
    /// By the watchdog: the thread may never return.
    BySilence,
}

/// What happens to a request whose device failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The request waits to be tried again.
    Retry,
    /// The request was tried too often.
    TooOften,
    /// Too many devices failed while they worked on the request.
    Suspect,
    /// No replica is left to try it again.
    NoReplica,
}

/// The consequences of a device's failure.
pub(super) struct Fallout<J> {
    /// The requests of the thread that used the device, and what happens to each.
    pub jobs: Vec<(J, Next)>,
    /// The replicas that are lost.
    pub lost_replicas: Vec<usize>,
    /// The waiting requests, if no replica is left to take them.
    pub unassigned: Vec<J>,
}

struct State<J> {
    /// Waiting requests in the order of their ages.
    waiting: VecDeque<Entry<J>>,
    running: Vec<(Worker, u64, Entry<J>)>,
    /// The number of the plan in use.
    plan: usize,
    replicas: Vec<Replica>,
    /// The threads of all plans that have not exited.
    present: Vec<Worker>,
    /// The threads that were abandoned, because they did not return.
    given_up: Vec<usize>,
    most: usize,
    requests: u64,
    claims: u64,
    paused: bool,
    closed: bool,
}

struct Entry<J> {
    job: J,
    arrival: u64,
    attempts: usize,
    device_failures: usize,
}

struct Replica {
    devices: Vec<DeviceId>,
    here: bool,
}

impl<J> State<J> {
    fn is_deserted(&self) -> bool {
        self.replicas.iter().all(|replica| !replica.here)
    }

    /// Inserts a request in the order of its arrival.
    fn wait(&mut self, entry: Entry<J>) {
        let place = self.waiting.partition_point(|other| other.arrival < entry.arrival);
        self.waiting.insert(place, entry);
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }
}

impl<J: Clone> Queue<J> {
    /// A queue without a plan: no thread takes a request.
    pub fn new(clock: Clock) -> Self {
        Self(Monitor::new(
            State {
                waiting: VecDeque::new(),
                running: Vec::new(),
                plan: 0,
                replicas: Vec::new(),
                present: Vec::new(),
                given_up: Vec::new(),
                most: 0,
                requests: 0,
                claims: 0,
                paused: false,
                closed: false,
            },
            clock,
        ))
    }

    /// Changes to a plan with these replicas: the devices of each and its number of threads, each of which takes up to
    /// `batch` requests at once. Twice as many requests as the threads can take may wait. Threads of the previous plan
    /// exit.
    pub fn open(&self, replicas: Vec<(Vec<DeviceId>, usize)>, batch: usize) -> Vec<Worker> {
        self.0.update(|state| {
            state.plan += 1;
            state.paused = false;
            let mut workers = Vec::new();
            for (replica, (_, threads)) in replicas.iter().enumerate() {
                for _ in 0..*threads {
                    state.claims += 1;
                    workers.push(Worker { plan: state.plan, replica, thread: state.claims as usize });
                }
            }
            state.present.extend(&workers);
            state.most = 2 * workers.len() * batch;
            state.replicas = replicas.into_iter().map(|(devices, _)| Replica { devices, here: true }).collect();
            workers
        })
    }

    /// Appends a request, once there is room; returns it as an error if no replica is left to take it.
    pub fn put(&self, job: J) -> Result<(), J> {
        let mut job = Some(job);
        self.0.wait_until(|state| {
            if state.is_deserted() || state.closed {
                return job.take().map(Err);
            }
            if state.waiting.len() >= state.most {
                return None;
            }
            let (arrival, job) = (state.requests, job.take()?);
            state.requests += 1;
            state.waiting.push_back(Entry { job, arrival, attempts: 0, device_failures: 0 });
            Some(Ok(()))
        })
    }

    /// Waits for the oldest request and takes it, with those waiting requests that may be batched with it, up to `most`
    /// in all; it does not wait for a full batch. A request that was tried before is taken alone. `None` if there will
    /// be no request for this thread: its replica or its plan is gone, or the queue is closed and no request is in
    /// progress that may have to be tried again.
    pub fn take(&self, worker: Worker, most: usize, goes_with: impl Fn(&J, &J) -> bool) -> Option<Vec<Claim<J>>> {
        self.0.wait_until(|state| {
            if worker.plan != state.plan || !state.replicas[worker.replica].here || (state.closed && state.is_idle()) {
                return Some(None);
            }
            if state.paused {
                return None;
            }
            let first = state.waiting.pop_front()?;
            let mut taken = vec![first];
            let mut i = 0;
            while i < state.waiting.len() && taken.len() < most && taken[0].attempts == 0 {
                let other = &state.waiting[i];
                if other.attempts == 0 && goes_with(&taken[0].job, &other.job) {
                    taken.extend(state.waiting.remove(i));
                } else {
                    i += 1;
                }
            }
            let claim = |mut entry: Entry<J>| {
                entry.attempts += 1;
                state.claims += 1;
                let (number, attempt) = (state.claims, entry.attempts);
                let claim = Claim { job: entry.job.clone(), arrival: entry.arrival, attempt, number };
                state.running.push((worker, number, entry));
                claim
            };
            Some(Some(taken.into_iter().map(claim).collect()))
        })
    }

    /// Calls `act` if the thread still has the claim.
    ///
    /// # Errors
    /// If the claim was taken from the thread.
    pub fn if_current(&self, claim: u64, act: impl FnOnce()) -> Result<(), Gone> {
        self.0.access(|state| match state.running.iter().any(|(_, number, _)| *number == claim) {
            true => {
                act();
                Ok(())
            }
            false => Err(Gone),
        })
    }

    /// Ends a claim. The caller then reports the result.
    ///
    /// # Errors
    /// If the claim was taken from the thread meanwhile: another thread reports a result.
    pub fn finish(&self, claim: u64) -> Result<(), Gone> {
        self.0.update(|state| {
            let i = state.running.iter().position(|(_, number, _)| *number == claim).ok_or(Gone)?;
            state.running.swap_remove(i);
            Ok(())
        })
    }

    /// Records that these devices failed during a claim and all other claims of its thread. All replicas that use one
    /// of the devices are lost, or the claim's own replica if the device is not known. The requests wait again, unless
    /// [`Next`] has a reason against it; the failure counts against them if they were the first to meet it.
    ///
    /// # Errors
    /// If the claim was taken from the thread meanwhile.
    pub fn fail(&self, claim: u64, devices: &[DeviceId], noticed: Noticed) -> Result<Fallout<J>, Gone> {
        self.0.update(|state| {
            let of = |(worker, number, _): &(Worker, u64, _)| (*number == claim).then_some(*worker);
            let worker = state.running.iter().find_map(of).ok_or(Gone)?;
            let mut lost_replicas = Vec::new();
            if worker.plan == state.plan {
                for (i, replica) in state.replicas.iter_mut().enumerate() {
                    let uses = devices.iter().any(|device| replica.devices.contains(device));
                    if replica.here && (uses || (devices.is_empty() && i == worker.replica)) {
                        replica.here = false;
                        lost_replicas.push(i);
                    }
                }
            }
            if noticed == Noticed::BySilence {
                state.given_up.push(worker.thread);
                state.present.retain(|other| *other != worker);
            }
            let mut jobs = Vec::new();
            while let Some(i) = state.running.iter().position(|(other, ..)| *other == worker) {
                let (_, _, mut entry) = state.running.remove(i);
                if !lost_replicas.is_empty() {
                    entry.device_failures += 1;
                }
                let job = entry.job.clone();
                let next = if entry.device_failures >= MAX_DEVICE_FAILURES {
                    Next::Suspect
                } else if state.is_deserted() {
                    Next::NoReplica
                } else if entry.attempts > RETRIES {
                    Next::TooOften
                } else {
                    state.wait(entry);
                    Next::Retry
                };
                jobs.push((job, next));
            }
            let unassigned = if state.is_deserted() { std::mem::take(&mut state.waiting) } else { VecDeque::new() };
            Ok(Fallout { jobs, lost_replicas, unassigned: unassigned.into_iter().map(|entry| entry.job).collect() })
        })
    }

    /// Lets no thread take a request any more, and returns those that waited.
    pub fn stop(&self) -> Vec<J> {
        self.0.update(|state| {
            state.replicas.iter_mut().for_each(|replica| replica.here = false);
            std::mem::take(&mut state.waiting).into_iter().map(|entry| entry.job).collect()
        })
    }

    /// Lets no thread take a request until [`Queue::resume`], and waits until no request is in progress.
    pub fn pause(&self) {
        self.0.update(|state| state.paused = true);
        self.0.wait_until(|state| state.running.is_empty().then_some(()));
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.0.update(|state| state.paused = false);
    }

    /// Lets threads exit once there are no requests.
    pub fn close(&self) {
        self.0.update(|state| state.closed = true);
    }

    /// Records that a thread exits.
    pub fn exit(&self, worker: Worker) {
        self.0.update(|state| state.present.retain(|other| *other != worker));
    }

    /// Waits until the threads of a plan have exited, and returns which threads of all plans were abandoned.
    pub fn wait_for_exits(&self, plan: usize) -> Vec<usize> {
        self.0
            .wait_until(|state| state.present.iter().all(|worker| worker.plan != plan).then(|| state.given_up.clone()))
    }

    /// The largest number of waiting requests.
    pub fn most(&self) -> usize {
        self.0.access(|state| state.most)
    }
}

/// The claim was taken from the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use super::*;
    use crate::backend::DeviceKind;

    fn gpu(index: usize) -> DeviceId {
        DeviceId::new(DeviceKind::Cuda, index)
    }

    impl Queue<u32> {
        /// Takes one request alone.
        fn take_one(&self, worker: Worker) -> Option<Claim<u32>> {
            self.take(worker, 1, |_, _| true).map(|mut claims| claims.remove(0))
        }
    }

    /// A queue of numbers and a thread for each of its replicas, which have a device each.
    fn queue(replicas: usize) -> (Queue<u32>, Vec<Worker>) {
        let queue = Queue::new(Clock::default());
        let workers = queue.open((0..replicas).map(|i| (vec![gpu(i)], 1)).collect(), 1);
        (queue, workers)
    }

    fn take(queue: &Queue<u32>, worker: Worker) -> Claim<u32> {
        queue.take_one(worker).expect("a job waits")
    }

    /// Reports that the device of this worker's replica failed during a claim.
    fn die(queue: &Queue<u32>, worker: Worker, claim: &Claim<u32>) -> Fallout<u32> {
        queue.fail(claim.number, &[gpu(worker.replica)], Noticed::ByError).expect("it is under way")
    }

    #[test]
    fn requests_of_one_batch_are_taken_together_without_waiting_for_more() {
        let (queue, workers) = queue(2);
        (0..4).for_each(|n| queue.put(n).unwrap());
        let even_with_even = |a: &u32, b: &u32| a % 2 == b % 2;
        let take = |worker: Worker| {
            let claims = queue.take(worker, 2, even_with_even).unwrap();
            claims.into_iter().map(|claim| (claim.number, claim.job)).collect::<Vec<_>>()
        };
        let jobs = |claims: &[(u64, u32)]| claims.iter().map(|(_, job)| *job).collect::<Vec<_>>();
        let first = take(workers[0]);
        assert_eq!(jobs(&first), [0, 2]);
        let fallout = queue.fail(first[0].0, &[gpu(0)], Noticed::ByError).unwrap();
        assert_eq!(fallout.jobs, [(0, Next::Retry), (2, Next::Retry)]);
        assert!(queue.finish(first[1].0).is_err(), "it is no longer the thread's");
        // A request that was tried before is tried alone.
        assert_eq!([0; 3].map(|_| jobs(&take(workers[1]))), [vec![0], vec![1, 3], vec![2]]);
    }

    #[test]
    fn the_oldest_request_is_taken_first() {
        let (queue, workers) = queue(2);
        for job in 0..4 {
            queue.put(job).unwrap();
        }
        assert_eq!([0; 4].map(|_| take(&queue, workers[0]).job), [0, 1, 2, 3]);
    }

    #[test]
    fn requests_that_wait_are_still_taken_after_the_queue_is_closed() {
        let (queue, workers) = queue(1);
        queue.put(7).unwrap();
        queue.close();
        let claim = take(&queue, workers[0]);
        queue.finish(claim.number).unwrap();
        assert!(queue.take_one(workers[0]).is_none());
        assert!(queue.take_one(workers[0]).is_none());
        assert_eq!(queue.put(8), Err(8));
    }

    #[test]
    fn a_closed_queue_keeps_its_workers_until_no_request_can_be_tried_again() {
        let (queue, workers) = queue(2);
        queue.put(7).unwrap();
        let claim = take(&queue, workers[0]);
        queue.close();
        thread::scope(|scope| {
            let other = scope.spawn(|| queue.take_one(workers[1]).map(|claim| claim.job));
            assert_eq!(die(&queue, workers[0], &claim).jobs[0].1, Next::Retry);
            assert_eq!(other.join().unwrap(), Some(7));
        });
    }

    #[test]
    fn a_full_queue_makes_the_sender_wait() {
        let (queue, workers) = queue(1);
        let sent = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for job in 0..4 {
                    queue.put(job).unwrap();
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            });
            while sent.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(20));
            assert_eq!(sent.load(Ordering::SeqCst), 2, "two wait for the one replica, and no more");
            assert_eq!([0; 4].map(|_| take(&queue, workers[0]).job), [0, 1, 2, 3]);
        });
    }

    #[test]
    fn a_request_whose_device_is_lost_goes_to_another_replica() {
        let (queue, workers) = queue(2);
        queue.put(0).unwrap();
        queue.put(1).unwrap();
        let claim = take(&queue, workers[0]);
        let fallout = die(&queue, workers[0], &claim);
        assert_eq!(
            (fallout.jobs, fallout.lost_replicas, fallout.unassigned),
            (vec![(0, Next::Retry)], vec![0], vec![])
        );
        // The other replica takes it, before younger requests.
        let again = take(&queue, workers[1]);
        assert_eq!((again.job, again.attempt), (0, 2));
        assert_eq!(take(&queue, workers[1]).job, 1);
        assert!(queue.take_one(workers[0]).is_none(), "a thread of a lost replica gets no more");
    }

    #[test]
    fn all_replicas_of_a_lost_device_end_and_only_the_first_request_that_failed_is_suspected() {
        let queue = Queue::new(Clock::default());
        let workers = queue.open(vec![(vec![gpu(0), gpu(1)], 2), (vec![gpu(1), gpu(2)], 1), (vec![gpu(2)], 1)], 1);
        for job in 0..3 {
            queue.put(job).unwrap();
        }
        let claims: Vec<_> = workers[..3].iter().map(|worker| take(&queue, *worker)).collect();
        let fallout = queue.fail(claims[2].number, &[gpu(1)], Noticed::ByError).unwrap();
        assert_eq!(fallout.lost_replicas, [0, 1]);
        // The other threads meet the failure too, and their requests are tried again as often as any.
        for claim in &claims[..2] {
            let fallout = queue.fail(claim.number, &[gpu(1)], Noticed::ByError).unwrap();
            assert_eq!((fallout.jobs[0].1, fallout.lost_replicas), (Next::Retry, vec![]));
        }
        assert_eq!([0; 3].map(|_| take(&queue, workers[3]).job), [0, 1, 2]);
    }

    #[test]
    fn a_request_under_which_two_devices_fail_is_suspect() {
        let (queue, workers) = queue(3);
        queue.put(0).unwrap();
        queue.put(1).unwrap();
        for (worker, next) in workers.iter().zip([Next::Retry, Next::Suspect]) {
            let claim = take(&queue, *worker);
            assert_eq!(claim.job, 0);
            assert_eq!(die(&queue, *worker, &claim).jobs[0].1, next);
        }
        assert_eq!(take(&queue, workers[2]).job, 1);
    }

    #[test]
    fn a_request_is_tried_again_twice() {
        let queue = Queue::new(Clock::default());
        let replicas = (0..4).map(|i| (vec![gpu(i)], 2)).collect();
        let workers = queue.open(replicas, 1);
        for job in 0..4 {
            queue.put(job).unwrap();
        }
        // Each time another request of the same replica is the first to report the failure.
        for (replica, next) in [Next::Retry, Next::Retry, Next::TooOften].into_iter().enumerate() {
            let (worker, beside) = (workers[2 * replica], workers[2 * replica + 1]);
            let (innocent, other) = (take(&queue, worker), take(&queue, beside));
            assert_eq!((innocent.job, innocent.attempt), (0, replica + 1));
            die(&queue, beside, &other);
            assert_eq!(die(&queue, worker, &innocent).jobs[0].1, next);
        }
    }

    #[test]
    fn everything_fails_once_no_replica_is_left() {
        let (queue, workers) = queue(1);
        queue.put(0).unwrap();
        queue.put(1).unwrap();
        let claim = take(&queue, workers[0]);
        let fallout = die(&queue, workers[0], &claim);
        assert_eq!((fallout.jobs[0].1, fallout.unassigned), (Next::NoReplica, vec![1]));
        assert_eq!(queue.put(2), Err(2));
    }

    #[test]
    fn a_sender_who_waits_is_told_when_the_last_replica_dies() {
        let (queue, workers) = queue(1);
        queue.put(0).unwrap();
        let running = take(&queue, workers[0]);
        queue.put(1).unwrap();
        queue.put(2).unwrap();
        thread::scope(|scope| {
            let late = scope.spawn(|| queue.put(3));
            thread::sleep(Duration::from_millis(20));
            assert_eq!(die(&queue, workers[0], &running).unassigned, [1, 2]);
            assert_eq!(late.join().unwrap(), Err(3));
        });
    }

    #[test]
    fn reports_of_a_thread_that_was_given_up_are_ignored() {
        let (queue, workers) = queue(2);
        queue.put(0).unwrap();
        let claim = take(&queue, workers[0]);
        let fallout = queue.fail(claim.number, &[gpu(0)], Noticed::BySilence).unwrap();
        assert_eq!(fallout.jobs[0].1, Next::Retry);
        assert_eq!(queue.finish(claim.number), Err(Gone));
        assert_eq!(queue.if_current(claim.number, || panic!("nobody should hear of it")), Err(Gone));
        assert!(queue.fail(claim.number, &[gpu(0)], Noticed::ByError).is_err());
        let again = take(&queue, workers[1]);
        queue.finish(again.number).unwrap();
        queue.close();
        queue.exit(workers[1]);
        assert_eq!(queue.wait_for_exits(1), [workers[0].thread]);
    }

    #[test]
    fn another_plan_takes_over_the_requests_that_wait() {
        let (queue, workers) = queue(1);
        queue.put(0).unwrap();
        queue.put(1).unwrap();
        let claim = take(&queue, workers[0]);
        thread::scope(|scope| {
            let paused = scope.spawn(|| queue.pause());
            queue.finish(claim.number).unwrap();
            paused.join().unwrap();
        });
        let new = queue.open(vec![(vec![gpu(5)], 1)], 1);
        assert!(queue.take_one(workers[0]).is_none());
        assert_eq!(take(&queue, new[0]).job, 1);
    }
}
