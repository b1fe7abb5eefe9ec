//! Real time, and simulated time for tests.
//!
//! On a simulated clock the participating threads run one at a time, in the order in which they became ready, and time
//! stands still meanwhile. Once all of them wait, the time jumps to the next deadline. So the same program does the
//! same things in the same order each time, and an hour takes only as long as its computations.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// A source of time. Clones are the same clock; the default is the real one.
#[derive(Clone, Default)]
pub struct Clock(Option<Arc<Simulated>>);

struct Simulated {
    start: Instant,
    turns: Mutex<Turns>,
}

/// The schedule of the participating threads.
#[derive(Default)]
struct Turns {
    now: Duration,
    running: Option<usize>,
    ready: VecDeque<usize>,
    /// Sleeping threads: the deadline, the number of the sleep, and the thread.
    asleep: BTreeSet<(Duration, u64, usize)>,
    seats: HashMap<usize, Taken>,
    /// The number of the next thread or sleep.
    next: u64,
}

struct Taken {
    state: State,
    turn: Arc<Condvar>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The thread runs, and was woken before it began to wait.
    Woken,
    Ready,
    Waiting,
}

thread_local! {
    /// The clock in which this thread participates, and its number there.
    static SEATED: RefCell<Option<(Arc<Simulated>, usize)>> = const { RefCell::new(None) };
}

/// A thread's place in a simulated clock, reserved before the thread starts. Time does not pass until the thread has
/// taken the seat, or the seat is dropped.
pub struct Seat(Option<(Arc<Simulated>, usize)>);

/// Until this value is dropped, the current thread participates in the clock.
pub struct Seated {
    seat: Seat,
    /// The value must stay in its thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Clock {
    /// A new simulated clock.
    pub fn simulated() -> Self {
        Self(Some(Arc::new(Simulated { start: Instant::now(), turns: Mutex::default() })))
    }

    /// The clock in which the current thread participates, or the real one.
    pub(super) fn current() -> Self {
        Self(SEATED.with_borrow(|seated| seated.as_ref().map(|(clock, _)| clock.clone())))
    }

    /// The current time.
    pub fn now(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(simulated) => simulated.start + simulated.turns().now,
        }
    }

    /// Waits until a time. On a simulated clock, a thread that does not participate does so during the wait.
    pub fn sleep_until(&self, time: Instant) {
        let Some(simulated) = &self.0 else { return thread::sleep(time.saturating_duration_since(Instant::now())) };
        let _seated = self.participant().is_none().then(|| self.seat().take());
        let me = self.participant().expect("it has just taken its seat");
        let until = time.saturating_duration_since(simulated.start);
        while simulated.turns().now < until {
            simulated.wait(me, Some(until));
        }
    }

    /// Reserves a seat for a thread that is about to start. On the real clock it has no effect.
    pub fn seat(&self) -> Seat {
        Seat(self.0.as_ref().map(|simulated| {
            let mut turns = simulated.turns();
            let me = turns.number() as usize;
            turns.seats.insert(me, Taken { state: State::Ready, turn: Arc::default() });
            turns.ready.push_back(me);
            turns.pass();
            (simulated.clone(), me)
        }))
    }

    /// Makes the current thread participate from here on, unless it does already.
    pub fn take_part(&self) -> Option<Seated> {
        (self.0.is_some() && self.participant().is_none()).then(|| self.seat().take())
    }

    /// The number of the current thread, if it participates in this clock.
    pub(super) fn participant(&self) -> Option<usize> {
        let simulated = self.0.as_ref()?;
        SEATED.with_borrow(|seated| {
            seated.as_ref().filter(|(clock, _)| Arc::ptr_eq(clock, simulated)).map(|(_, number)| *number)
        })
    }

    /// Blocks a participating thread until it is woken, or until a time.
    pub(super) fn wait(&self, me: usize, until: Option<Instant>) {
        if let Some(simulated) = &self.0 {
            simulated.wait(me, until.map(|time| time.saturating_duration_since(simulated.start)));
        }
    }

    /// Wakes these threads.
    pub(super) fn wake(&self, threads: &[usize]) {
        let Some(simulated) = self.0.as_ref().filter(|_| !threads.is_empty()) else { return };
        let mut turns = simulated.turns();
        for &thread in threads {
            let Some(taken) = turns.seats.get_mut(&thread) else { continue };
            match taken.state {
                State::Waiting => {
                    taken.state = State::Ready;
                    turns.asleep.retain(|(_, _, sleeper)| *sleeper != thread);
                    turns.ready.push_back(thread);
                }
                State::Running => taken.state = State::Woken,
                State::Ready | State::Woken => {}
            }
        }
        turns.pass();
    }
}

impl Simulated {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        // A poisoned lock is usable: nothing in this file panics between two writes.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, me: usize, until: Option<Duration>) {
        let mut turns = self.turns();
        let taken = turns.seats.get_mut(&me).expect("a waiting thread has a seat");
        if taken.state == State::Woken {
            taken.state = State::Running;
            return;
        }
        taken.state = State::Waiting;
        if let Some(until) = until {
            let order = turns.number();
            turns.asleep.insert((until, order, me));
        }
        turns.running = None;
        turns.pass();
        self.own_turn(turns, me);
    }

    fn own_turn(&self, mut turns: MutexGuard<'_, Turns>, me: usize) {
        let turn = turns.seats[&me].turn.clone();
        while turns.running != Some(me) {
            turns = turn.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Turns {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// If no thread has the turn, gives it to the first ready thread, or else to the one with the earliest deadline.
    fn pass(&mut self) {
        if self.running.is_some() {
            return;
        }
        let next = self.ready.pop_front().or_else(|| {
            let (until, _, sleeper) = self.asleep.pop_first()?;
            self.now = self.now.max(until);
            Some(sleeper)
        });
        if let Some(taken) = next.and_then(|next| self.seats.get_mut(&next)) {
            taken.state = State::Running;
            taken.turn.notify_one();
            self.running = next;
        }
    }
}

impl Seat {
    /// Makes the current thread participate in this seat, and waits for its turn.
    pub fn take(self) -> Seated {
        if let Some((simulated, me)) = &self.0 {
            SEATED.with_borrow_mut(|seated| *seated = Some((simulated.clone(), *me)));
            simulated.own_turn(simulated.turns(), *me);
        }
        Seated { seat: self, _thread: std::marker::PhantomData }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some((simulated, me)) = &self.0 else { return };
        let mut turns = simulated.turns();
        turns.seats.remove(me);
        turns.ready.retain(|other| other != me);
        if turns.running == Some(*me) {
            turns.running = None;
        }
        turns.pass();
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        if self.seat.0.is_some() {
            SEATED.with_borrow_mut(|seated| *seated = None);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn simulated_time_advances_only_when_every_thread_waits() {
        let clock = Clock::simulated();
        let _here = clock.take_part();
        let (start, log) = (clock.now(), Mutex::new(Vec::new()));
        let hours = |n: u64| Duration::from_secs(3600 * n);
        let note = |who: &'static str| log.lock().unwrap().push((who, clock.now() - start));
        thread::scope(|scope| {
            for (who, pause) in [("slow", 3), ("quick", 2)] {
                let (seat, clock, note) = (clock.seat(), &clock, &note);
                scope.spawn(move || {
                    let _seated = seat.take();
                    for i in 1..=3 {
                        clock.sleep_until(start + hours(pause * i));
                        note(who);
                    }
                });
            }
            clock.sleep_until(start + hours(100));
        });
        let want = [("quick", 2), ("slow", 3), ("quick", 4), ("slow", 6), ("quick", 6), ("slow", 9)];
        assert_eq!(log.into_inner().unwrap(), want.map(|(who, n)| (who, hours(n))));
        assert_eq!(clock.now() - start, hours(100));
    }

    #[test]
    fn a_thread_without_a_part_may_sleep_too() {
        let clock = Clock::simulated();
        let start = clock.now();
        clock.sleep_until(start + Duration::from_secs(1000));
        assert_eq!(clock.now() - start, Duration::from_secs(1000));
    }

    #[test]
    fn the_real_clock_sleeps_until_the_given_time() {
        let clock = Clock::default();
        let start = clock.now();
        clock.sleep_until(start + Duration::from_millis(2));
        assert!(Instant::now() - start >= Duration::from_millis(2));
        assert!(clock.take_part().is_none());
    }
}
