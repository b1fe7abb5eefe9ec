//! Time and waiting: the only clock and the only way to block, for everything that runs in parallel.
//!
//! Threads that wait for other threads do so in a [`Monitor`], and read the time from a [`Clock`]. So the engine can
//! run on a simulated clock, whose time passes only when all threads wait, in the same order each time.

pub mod channel;
pub mod clock;
mod lock;
pub mod monitor;
pub mod thread;

pub use channel::{Receiver, Sender, channel};
pub use clock::Clock;
pub use lock::locked;
pub use monitor::Monitor;
pub use thread::{Thread, run_both, spawn};
