//! Messages from many to one.

use std::{collections::VecDeque, sync::Arc};

use super::{Clock, Monitor};

struct State<T> {
    messages: VecDeque<T>,
    senders: usize,
}

/// Sends messages; clones send to the same receiver.
pub struct Sender<T>(Arc<Monitor<State<T>>>);

/// Receives messages.
pub struct Receiver<T>(Arc<Monitor<State<T>>>);

/// Both ends of a new channel, for threads of this clock. It holds any number of messages.
pub fn channel<T>(clock: Clock) -> (Sender<T>, Receiver<T>) {
    let monitor = Arc::new(Monitor::new(State { messages: VecDeque::new(), senders: 1 }, clock));
    (Sender(monitor.clone()), Receiver(monitor))
}

impl<T> Sender<T> {
    /// Adds a message.
    pub fn send(&self, message: T) {
        self.0.update(|state| state.messages.push_back(message));
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.look(|state| state.senders += 1);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.update(|state| state.senders -= 1);
    }
}

impl<T> Receiver<T> {
    /// The next message, once there is one; `None` once there is none and no sender.
    pub fn receive(&self) -> Option<T> {
        self.0.wait_until(|state| match state.messages.pop_front() {
            Some(message) => Some(Some(message)),
            None if state.senders == 0 => Some(None),
            None => None,
        })
    }

    /// The next message, if there is one already.
    pub fn receive_now(&self) -> Option<T> {
        self.0.look(|state| state.messages.pop_front())
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
        assert_eq!(receiver.receive_now(), None);
    }
}
