//! Which device holds what.

mod candidates;
mod check;
pub mod choose;
pub mod cuts;
pub mod device_map;
mod diagnose;
mod diffusers;
mod edges;
mod effort;
mod fields;
mod grammar;
pub mod hardware;
pub mod layout;
mod load;
mod machine;
pub mod plan;
pub mod predict;
mod problem;
mod report;
mod search;
pub mod size;
pub mod strategies;
mod trial;
mod tuning;
pub(crate) mod words;
pub mod world;

pub use fields::{Located, Location};
pub use trial::{Cost, Largest};
