//! A value that several threads change and wait for.

use std::{sync::PoisonError, time::Instant};

#[cfg(loom)]
use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Condvar, Mutex, MutexGuard};

use super::clock::Clock;

/// A value behind a lock, with a way to wait for a condition on it.
pub struct Monitor<T> {
    inner: Mutex<Inner<T>>,
    changed: Condvar,
    clock: Clock,
}

struct Inner<T> {
    value: T,
    /// The waiting threads of a simulated clock, in order.
    waiters: Vec<usize>,
}

impl<T> Monitor<T> {
    /// A monitor of `value`, and the clock of the threads that will wait for it.
    pub fn new(value: T, clock: Clock) -> Self {
        Self { inner: Mutex::new(Inner { value, waiters: Vec::new() }), changed: Condvar::new(), clock }
    }

    /// The clock of the waiting threads.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        // A poisoned lock is usable: changes of the value do not panic halfway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the value; waiting threads check their conditions again.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut inner = self.inner();
        let result = change(&mut inner.value);
        self.wake(inner);
        result
    }

    /// Reads the value, or changes it in a way that no thread waits for.
    pub fn access<R>(&self, access: impl FnOnce(&mut T) -> R) -> R {
        access(&mut self.inner().value)
    }

    /// Waits until `ready` returns a value. Other waiting threads then check their conditions again, as `ready` may
    /// have changed something. It must change nothing while it returns `None`.
    pub fn wait_until<R>(&self, ready: impl FnMut(&mut T) -> Option<R>) -> R {
        self.wait(None, ready).expect("without a deadline it only ends with a result")
    }

    /// As [`Monitor::wait_until`], but only until the deadline.
    pub fn wait_before<R>(&self, deadline: Instant, ready: impl FnMut(&mut T) -> Option<R>) -> Option<R> {
        self.wait(Some(deadline), ready)
    }

    fn wait<R>(&self, deadline: Option<Instant>, mut ready: impl FnMut(&mut T) -> Option<R>) -> Option<R> {
        let mut inner = self.inner();
        loop {
            if let Some(result) = ready(&mut inner.value) {
                self.wake(inner);
                return Some(result);
            }
            if deadline.is_some_and(|deadline| self.clock.now() >= deadline) {
                return None;
            }
            inner = match self.clock.participant() {
                Some(me) => {
                    inner.waiters.push(me);
                    drop(inner);
                    self.clock.wait(me, deadline);
                    let mut inner = self.inner();
                    inner.waiters.retain(|waiter| *waiter != me);
                    inner
                }
                None => self.blocked(inner, deadline),
            };
        }
    }

    /// Blocks a thread of the real clock, or one that does not participate in a simulated clock.
    fn blocked<'a>(&'a self, inner: MutexGuard<'a, Inner<T>>, deadline: Option<Instant>) -> MutexGuard<'a, Inner<T>> {
        match deadline {
            None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(self.clock.now());
                self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    fn wake(&self, mut inner: MutexGuard<'_, Inner<T>>) {
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        self.changed.notify_all();
        self.clock.wake(&waiters);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn a_thread_that_waits_sees_the_change() {
        for clock in [Clock::default(), Clock::simulated()] {
            let monitor = Monitor::new(0, clock.clone());
            thread::scope(|scope| {
                let _here = clock.take_part();
                let seat = clock.seat();
                let monitor = &monitor;
                scope.spawn(move || {
                    let _seated = seat.take();
                    for _ in 0..5 {
                        monitor.update(|value| *value += 1);
                    }
                });
                assert_eq!(monitor.wait_until(|value| (*value == 5).then(|| std::mem::take(value))), 5);
            });
            assert_eq!(monitor.access(|value| *value), 0);
        }
    }

    #[test]
    fn a_deadline_passes_on_its_own_clock() {
        for (clock, pause) in
            [(Clock::default(), Duration::from_millis(3)), (Clock::simulated(), Duration::from_secs(9999))]
        {
            let _here = clock.take_part();
            let monitor = Monitor::new((), clock.clone());
            let deadline = clock.now() + pause;
            assert_eq!(monitor.wait_before(deadline, |()| None::<()>), None);
            assert!(clock.now() >= deadline);
        }
    }
}
