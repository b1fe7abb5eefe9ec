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
        // Once the queue is closed, others may have gone home.
        if !state.is_deserted() && !state.closed && job.attempts <= retries {
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

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc::{Receiver, channel},
        },
        thread,
        time::Duration,
    };

    use super::*;
    use crate::{
        error::Scope,
        pipeline::request::{Output, Rng, Start},
    };

    const RETRIES: usize = 2;

    /// A request with `seed`, and what is told about it.
    fn job(seed: u64) -> (Job, Receiver<Event>) {
        let (sender, events) = channel();
        let request = Request {
            seed,
            prompt: String::new(),
            negative_prompt: String::new(),
            steps: 1,
            guidance_scale: 1.0,
            scheduler: None,
            width: 8,
            height: 8,
            rng: Rng::TorchCpu,
            start: Start::Noise,
            output: Output::Image,
        };
        (Job::new(request, Arc::default(), move |event| drop(sender.send(event))), events)
    }

    /// As a replica does it.
    fn take(queue: &Queue, replica: usize) -> Job {
        let mut job = queue.take(replica).expect("a job waits");
        job.attempts += 1;
        job
    }

    fn dead() -> Error {
        Error::device("cuda:1", "fell off the bus")
    }

    /// The error that a request ended with; `None` while it is under way.
    fn end(events: &Receiver<Event>) -> Option<Error> {
        match events.try_recv().ok()? {
            Event::Done(result) => Some(result.expect_err("nobody draws here")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_oldest_goes_first() {
        let queue = Queue::new(2, 2);
        for seed in 0..4 {
            queue.put(job(seed).0);
        }
        assert_eq!([0; 4].map(|_| take(&queue, 0).request.seed), [0, 1, 2, 3]);
    }

    #[test]
    fn what_waits_is_still_done_after_the_end() {
        let queue = Queue::new(1, 1);
        queue.put(job(7).0);
        queue.close();
        assert_eq!(queue.take(0).map(|job| job.request.seed), Some(7));
        assert!(queue.take(0).is_none());
        assert!(queue.take(0).is_none());
    }

    #[test]
    fn a_full_queue_makes_the_sender_wait() {
        let queue = Queue::new(1, 1);
        let sent = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for seed in 0..4 {
                    queue.put(job(seed).0);
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            });
            while sent.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(20));
            assert_eq!(sent.load(Ordering::SeqCst), 2, "two wait for the one replica, and no more");
            assert_eq!([0; 4].map(|_| take(&queue, 0).request.seed), [0, 1, 2, 3]);
        });
    }

    #[test]
    fn no_prompt_is_lost_when_its_device_dies() {
        let queue = Queue::new(2, 2);
        let (first, events) = job(0);
        queue.put(first);
        queue.put(job(1).0);
        queue.leave(0, take(&queue, 0), dead(), RETRIES);
        assert!(end(&events).is_none());
        // The other replica goes on with it, before what came later.
        let again = take(&queue, 1);
        assert_eq!((again.request.seed, again.attempts), (0, 2));
        assert_eq!(take(&queue, 1).request.seed, 1);
        assert!(queue.take(0).is_none(), "who has left gets no more");
    }

    #[test]
    fn a_replica_dies_once_however_many_of_its_threads_notice() {
        let queue = Queue::new(2, 4);
        for seed in 0..2 {
            queue.put(job(seed).0);
        }
        let (first, second) = (take(&queue, 0), take(&queue, 0));
        queue.leave(0, first, dead(), RETRIES);
        queue.leave(0, second, dead(), RETRIES);
        let mut seeds = [0; 2].map(|_| take(&queue, 1).request.seed);
        seeds.sort_unstable();
        assert_eq!(seeds, [0, 1]);
    }

    #[test]
    fn a_request_is_tried_again_twice_and_then_suspect() {
        let queue = Queue::new(4, 4);
        let (suspect, events) = job(0);
        queue.put(suspect);
        let (innocent, others) = job(1);
        queue.put(innocent);
        for replica in 0..3 {
            assert!(end(&events).is_none());
            let job = take(&queue, replica);
            assert_eq!((job.request.seed, job.attempts), (0, replica + 1));
            queue.leave(replica, job, dead(), RETRIES);
        }
        let error = end(&events).expect("three replicas died under it");
        assert_eq!(error.scope(), &Scope::Device("cuda:1".into()));
        assert!(error.to_string().contains("fell off the bus"), "{error}");
        // The fourth replica lives and has the next one.
        assert!(end(&others).is_none());
        assert_eq!(take(&queue, 3).request.seed, 1);
    }

    #[test]
    fn everything_fails_once_no_replica_is_left() {
        let queue = Queue::new(1, 1);
        let (running, running_events) = job(0);
        let (waiting, waiting_events) = job(1);
        queue.put(running);
        queue.put(waiting);
        queue.leave(0, take(&queue, 0), dead(), RETRIES);
        assert!(end(&running_events).expect("nobody can try it again").to_string().contains("fell off the bus"));
        assert!(end(&waiting_events).expect("nobody will take it").to_string().contains("no replica is left"));
        let (late, late_events) = job(2);
        queue.put(late);
        assert!(end(&late_events).expect("refused at once").to_string().contains("no replica is left"));
    }

    #[test]
    fn a_sender_who_waits_is_told_when_the_last_replica_dies() {
        let queue = Queue::new(1, 1);
        queue.put(job(0).0);
        let running = take(&queue, 0);
        queue.put(job(1).0);
        queue.put(job(2).0);
        let (late, events) = job(3);
        thread::scope(|scope| {
            scope.spawn(|| queue.put(late));
            thread::sleep(Duration::from_millis(20));
            queue.leave(0, running, dead(), RETRIES);
        });
        assert!(end(&events).expect("told").to_string().contains("no replica is left"));
    }
}
