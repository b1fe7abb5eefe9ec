//! A channel for messages from several senders to one receiver.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc::RecvTimeoutError},
    time::Instant,
};

use super::{clock::Clock, monitor::Monitor};

struct State<T> {
    messages: VecDeque<T>,
    senders: usize,
}

/// Sends messages; clones send to the same receiver.
pub struct Sender<T>(Arc<Monitor<State<T>>>);

/// Receives messages.
pub struct Receiver<T>(Arc<Monitor<State<T>>>);

/// Creates a channel for threads of this clock, and returns both ends. It holds any number of messages.
pub fn channel<T>(clock: Clock) -> (Sender<T>, Receiver<T>) {
    let monitor = Arc::new(Monitor::new(State { messages: VecDeque::new(), senders: 1 }, clock));
    (Sender(monitor.clone()), Receiver(monitor))
}

impl<T> Sender<T> {
    /// Appends a message.
    pub fn send(&self, message: T) {
        self.0.update(|state| state.messages.push_back(message));
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.access(|state| state.senders += 1);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.update(|state| state.senders -= 1);
    }
}

impl<T> Receiver<T> {
    /// Waits for the next message; `None` once there is no message and no sender.
    pub fn receive(&self) -> Option<T> {
        self.0.wait_until(State::next).ok()
    }

    /// Waits for the next message until the deadline. With a deadline in the past, it only returns a message that is
    /// already there.
    ///
    /// # Errors
    /// `Timeout` if there was no message before the deadline, `Disconnected` if there is no message and no sender.
    pub fn receive_before(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.0.wait_before(deadline, State::next).unwrap_or(Err(RecvTimeoutError::Timeout))
    }
}

impl<T> State<T> {
    /// The next message, or the error that there will be none; `None` while there may still be one.
    fn next(&mut self) -> Option<Result<T, RecvTimeoutError>> {
        match self.messages.pop_front() {
            Some(message) => Some(Ok(message)),
            None if self.senders == 0 => Some(Err(RecvTimeoutError::Disconnected)),
            None => None,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_order_and_then_the_end() {
        let (sender, receiver) = channel(Clock::default());
        let thread = std::thread::spawn(move || {
            let other = sender.clone();
            (0..5).for_each(|n| sender.send(n));
            drop(sender);
            other.send(5);
        });
        assert_eq!(std::iter::from_fn(|| receiver.receive()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        thread.join().unwrap();
        assert_eq!(receiver.receive_before(Instant::now()), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_deadline_in_the_past_finds_what_is_there_already() {
        let (sender, receiver) = channel(Clock::default());
        assert_eq!(receiver.receive_before(Instant::now()), Err(RecvTimeoutError::Timeout));
        sender.send(1);
        assert_eq!(receiver.receive_before(Instant::now()), Ok(1));
    }
}
