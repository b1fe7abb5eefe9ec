//! Which device holds what.

mod by_bytes;
mod by_time;
mod candidates;
mod check;
mod choose;
pub mod cuts;
pub mod device_map;
mod diagnose;
mod diffusers;
mod edges;
mod effort;
mod fields;
mod grammar;
pub mod hardware;
mod largest;
pub mod layout;
mod load;
mod machine;
pub mod plan;
pub mod predict;
mod problem;
mod report;
mod search;
pub mod size;
mod trial;
mod tuning;
pub(crate) mod words;
pub mod world;

pub use fields::{Located, Location};
pub use largest::Largest;
pub use trial::Cost;
