//! Time and waiting: the one clock and the one way to block of everything that runs side by side.
//!
//! Whoever waits for another thread does so in a [`Monitor`], and whoever asks for the time asks a [`Clock`]. So the
//! engine can be run on a clock whose time only passes when nobody has anything left to do, in the same order each time.

pub mod channel;
pub mod clock;
mod lock;
pub mod monitor;
pub mod thread;

pub use channel::{Receiver, Sender, channel};
pub use clock::Clock;
pub use lock::locked;
pub use monitor::Monitor;
pub use thread::{Thread, both, spawn};
