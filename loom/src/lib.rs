//! The crate's own sources, built with loom's locks: every order in which a few threads can run is tried.

#![cfg(loom)]

#[path = "../../src/device_id.rs"]
mod device_id;
#[path = "../../src/pipeline/device_queue.rs"]
pub mod device_queue;
#[path = "../../src/error.rs"]
pub mod error;
#[path = "../../src/pipeline/gate.rs"]
pub mod gate;
#[path = "../../src/backend/id.rs"]
pub mod id;
#[path = "../../src/engine/queue.rs"]
mod queue;
#[path = "../../src/sync/mod.rs"]
pub mod sync;

#[cfg(test)]
mod models;

/// What the gates and the queue know of devices.
pub mod backend {
    pub use crate::id::{DeviceId, DeviceKind};
}
