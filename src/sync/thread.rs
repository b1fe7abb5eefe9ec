//! Threads that participate in a clock.

use std::{io, thread};

use super::{
    channel::{Receiver, Sender, channel},
    clock::Clock,
};

/// A thread that participates in a clock.
pub struct Thread {
    done: Receiver<()>,
    handle: thread::JoinHandle<()>,
}

/// Starts a thread that participates in a clock.
///
/// # Errors
/// If the system cannot start a thread.
pub fn spawn(clock: &Clock, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
    let (told, done) = channel(clock.clone());
    let seat = clock.seat();
    let handle = thread::Builder::new().name(name.to_string()).spawn(move || {
        let _seated = seat.take();
        // It is dropped at the end of `work`, also after a panic.
        let _told: Sender<()> = told;
        work();
    })?;
    Ok(Thread { done, handle })
}

impl Thread {
    /// Waits for the end of the thread, which may be a panic.
    pub fn join(self) {
        // First waits in the clock's time, and then for the thread to exit, which takes no simulated time.
        self.done.receive();
        let _ = self.handle.join();
    }
}

/// Runs both at the same time, the first on a new thread, in the clock in which the current thread participates.
///
/// # Errors
/// If the system cannot start a thread. Neither function is run then.
pub fn run_both<A: Send, B>(first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> io::Result<(A, B)> {
    let clock = Clock::current();
    thread::scope(|scope| {
        // It is dropped at the end of `first`, also after a panic.
        let (told, done) = channel::<()>(clock.clone());
        let seat = clock.seat();
        let first = thread::Builder::new().spawn_scoped(scope, move || {
            let _seated = seat.take();
            let _told = told;
            first()
        })?;
        let second = std::panic::catch_unwind(std::panic::AssertUnwindSafe(second));
        done.receive();
        let first = first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((first, second.unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn two_halves_take_as_long_as_the_longer_one() {
        let clock = Clock::simulated();
        let _here = clock.take_part();
        let start = clock.now();
        let sleep = |seconds| clock.sleep_until(start + Duration::from_secs(seconds));
        assert_eq!(run_both(|| (sleep(7), 1).1, || (sleep(5), 2).1).unwrap(), (1, 2));
        assert_eq!(clock.now() - start, Duration::from_secs(7));
        assert_eq!(run_both(|| 1, || 2).unwrap(), (1, 2));
    }

    #[test]
    fn a_panic_of_either_half_reaches_the_caller() {
        for (first, second) in [(true, false), (false, true)] {
            let result = std::panic::catch_unwind(|| run_both(|| assert!(!first), || assert!(!second)));
            assert!(result.is_err());
        }
    }
}
