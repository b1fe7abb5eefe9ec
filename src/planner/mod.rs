//! Which device holds what.

pub mod cuts;
pub mod device_map;
mod fields;
mod grammar;
pub mod plan;
pub mod predict;
pub mod size;
pub mod strategies;
mod trial;
pub mod world;

pub use fields::{Located, Location};
pub use trial::{Cost, Largest};
