//! Small models: two or three threads each, as the number of orders grows fast.

use loom::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use crate::{
    backend::{DeviceId, DeviceKind},
    gate::{Gates, Work},
    queue::{Claim, Next, Noticed, Queue, Worker},
    sync::{Clock, channel},
};

fn gpu(index: usize) -> DeviceId {
    DeviceId::new(DeviceKind::Cuda, index)
}

/// Every order with at most so many changes of thread where none was needed.
fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

/// Users of each device, so that two at the same time are found.
type Users = Arc<[AtomicUsize; 2]>;

fn users() -> Users {
    Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)])
}

fn visit(gates: &Gates, users: &Users, age: u64, set: &[usize]) {
    let devices: Vec<DeviceId> = set.iter().map(|&i| gpu(i)).collect();
    let (_, section) = gates.enter(age, Work::Decode, &[devices], None).expect("nothing is lost");
    for &i in set {
        assert_eq!(users[i].fetch_add(1, SeqCst), 0, "two use one device");
    }
    for &i in set {
        users[i].fetch_sub(1, SeqCst);
    }
    drop(section);
}

#[test]
fn loom_gates_exclude_each_other_and_lose_no_wake_up() {
    model(3, || {
        let (gates, users) = (Arc::new(Gates::default()), users());
        let others: Vec<_> = [(1, vec![1, 0]), (2, vec![1])]
            .into_iter()
            .map(|(age, set)| {
                let (gates, users) = (gates.clone(), users.clone());
                thread::spawn(move || visit(&gates, &users, age, &set))
            })
            .collect();
        visit(&gates, &users, 0, &[0, 1]);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn loom_gates_give_all_devices_or_none() {
    model(3, || {
        // Whoever waits for both while the other holds one must not hold the other one meanwhile.
        let (gates, users) = (Arc::new(Gates::default()), users());
        let (_, held) = gates.enter(0, Work::Decode, &[vec![gpu(0)]], None).unwrap();
        let both = {
            let (gates, users) = (gates.clone(), users.clone());
            thread::spawn(move || visit(&gates, &users, 2, &[0, 1]))
        };
        // An older one gets the second device in any case, before the first is free.
        visit(&gates, &users, 1, &[1]);
        drop(held);
        both.join().unwrap();
    });
}

#[test]
fn loom_gates_let_nobody_overtake_an_older_wish() {
    model(3, || {
        let gates = Arc::new(Gates::default());
        let (_, held) = gates.enter(0, Work::Decode, &[vec![gpu(0)]], None).unwrap();
        let order = Arc::new(AtomicUsize::new(0));
        let older = {
            let (gates, order) = (gates.clone(), order.clone());
            thread::spawn(move || {
                let (_, section) = gates.enter(1, Work::Decode, &[vec![gpu(0), gpu(1)]], None).unwrap();
                order.fetch_add(1, SeqCst);
                drop(section);
            })
        };
        let younger = {
            let (gates, order) = (gates.clone(), order.clone());
            thread::spawn(move || {
                // Once the older one waits, not before.
                if gates.waiting() > 0 {
                    let (_, section) = gates.enter(2, Work::Decode, &[vec![gpu(1)]], None).unwrap();
                    assert_eq!(order.load(SeqCst), 1, "the older one has to be first");
                    drop(section);
                }
            })
        };
        drop(held);
        older.join().unwrap();
        younger.join().unwrap();
    });
}

#[test]
fn loom_a_lost_device_is_told_to_whoever_waits() {
    model(3, || {
        let gates = Arc::new(Gates::default());
        let (_, held) = gates.enter(0, Work::Decode, &[vec![gpu(0)]], None).unwrap();
        let waits = {
            let gates = gates.clone();
            thread::spawn(move || gates.enter(1, Work::Decode, &[vec![gpu(0)]], None).is_err())
        };
        gates.lose(&[gpu(0)]);
        assert!(waits.join().unwrap());
        drop(held);
    });
}

/// Works until there is nothing more to do, on up to two jobs at once, and counts what it has finished. The first claim
/// to `fails` meets a dead device.
fn work(queue: &Queue<usize>, worker: Worker, done: &[AtomicUsize], fails: usize) {
    while let Some(claims) = queue.take(worker, 2, |_, _| true) {
        if let Some(claim) = claims.iter().find(|claim| claim.job == fails && claim.attempt == 1) {
            let fallout = queue.fail(claim.number, &[gpu(worker.replica)], Noticed::ByError).unwrap();
            assert_eq!(fallout.jobs.len(), claims.len(), "all of a batch meet it");
            assert!(fallout.jobs.iter().all(|(_, next)| *next == Next::Retry) && fallout.unassigned.is_empty());
            continue;
        }
        for Claim { job, number, .. } in claims {
            queue.finish(number).unwrap();
            done[job].fetch_add(1, SeqCst);
        }
    }
    queue.exit(worker);
}

fn take_one(queue: &Queue<usize>, worker: Worker) -> Claim<usize> {
    queue.take(worker, 1, |_, _| false).expect("a job waits").remove(0)
}

/// Two replicas, `jobs` of which the one that `fails` meets a dead device.
fn two_replicas(preemptions: usize, jobs: usize, fails: usize) {
    model(preemptions, move || {
        let queue = Arc::new(Queue::new(Clock::default()));
        let workers = queue.open(vec![(vec![gpu(0)], 1), (vec![gpu(1)], 1)], 1);
        let done: Arc<Vec<AtomicUsize>> = Arc::new((0..jobs).map(|_| AtomicUsize::new(0)).collect());
        let threads: Vec<_> = workers
            .into_iter()
            .map(|worker| {
                let (queue, done) = (queue.clone(), done.clone());
                thread::spawn(move || work(&queue, worker, &done, fails))
            })
            .collect();
        (0..jobs).for_each(|job| queue.put(job).unwrap());
        queue.close();
        assert!(queue.wait_for_exits(1).is_empty());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(done.iter().all(|done| done.load(SeqCst) == 1), "each job is done exactly once");
    });
}

#[test]
fn loom_the_queue_hands_out_each_job_once() {
    two_replicas(2, 3, usize::MAX);
}

#[test]
fn loom_a_job_whose_replica_leaves_is_done_by_the_other() {
    two_replicas(2, 2, 0);
}

#[test]
fn loom_a_full_queue_lets_its_sender_go_on() {
    model(2, || {
        let queue = Arc::new(Queue::new(Clock::default()));
        let worker = queue.open(vec![(vec![gpu(0)], 1)], 1)[0];
        let sender = {
            let queue = queue.clone();
            thread::spawn(move || (0..3).for_each(|job| queue.put(job).unwrap()))
        };
        for want in 0..3 {
            let claim = take_one(&queue, worker);
            assert_eq!(claim.job, want);
            queue.finish(claim.number).unwrap();
        }
        sender.join().unwrap();
    });
}

#[test]
fn loom_either_the_thread_or_who_gives_it_up_ends_a_request() {
    model(3, || {
        let queue = Arc::new(Queue::new(Clock::default()));
        let workers = queue.open(vec![(vec![gpu(0)], 1)], 1);
        queue.put(0).unwrap();
        let claim = take_one(&queue, workers[0]);
        let number = claim.number;
        let other = {
            let queue = queue.clone();
            thread::spawn(move || queue.fail(number, &[gpu(0)], Noticed::BySilence).is_ok())
        };
        let finished = queue.finish(number).is_ok();
        assert_eq!(u8::from(finished) + u8::from(other.join().unwrap()), 1);
    });
}

#[test]
fn loom_another_plan_waits_for_what_is_under_way() {
    model(3, || {
        let queue = Arc::new(Queue::new(Clock::default()));
        let worker = queue.open(vec![(vec![gpu(0)], 1)], 1)[0];
        (0..2).for_each(|job| queue.put(job).unwrap());
        let done = Arc::new(vec![AtomicUsize::new(0), AtomicUsize::new(0)]);
        let old = {
            let (queue, done) = (queue.clone(), done.clone());
            thread::spawn(move || work(&queue, worker, &done, usize::MAX))
        };
        queue.pause();
        let new = queue.open(vec![(vec![gpu(1)], 1)], 1)[0];
        queue.close();
        work(&queue, new, &done, usize::MAX);
        old.join().unwrap();
        assert!(done.iter().all(|done| done.load(SeqCst) == 1));
    });
}

#[test]
fn loom_a_channel_delivers_everything_and_then_its_end() {
    model(3, || {
        let (sender, receiver) = channel(Clock::default());
        let other = sender.clone();
        let thread = thread::spawn(move || other.send(1));
        sender.send(2);
        drop(sender);
        let got: usize = std::iter::from_fn(|| receiver.receive()).sum();
        assert_eq!(got, 3);
        thread.join().unwrap();
    });
}
