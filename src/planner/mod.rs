//! The planner decides which device runs what, and computes bytes and times before anything is loaded.

mod by_bytes;
mod by_time;
mod candidates;
mod choose;
pub mod cuts;
mod diagnose;
mod diffusers;
mod edges;
mod effort;
pub mod hardware;
mod largest;
pub mod layout;
mod machine;
pub mod plan;
pub mod predict;
mod problem;
mod report;
mod search;
mod trial;
mod tuning;
pub(crate) mod words;

pub use largest::Largest;
pub use trial::Cost;
