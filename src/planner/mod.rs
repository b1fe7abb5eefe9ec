//! The planner decides which device runs what, and computes bytes and times before anything is loaded.
//!
//! - Costs: `trial` measures one component by a dry run; `layout` adds up what a device holds (`Costs::held`);
//!   `predict` simulates the queue; `cuts` finds the best cut.
//! - Choice: `choose` calls `by_bytes`, `by_time` or `diffusers`, as the strategy says; `diagnose` names the entry of a
//!   map that makes a plan impossible.
//! - Result: `plan`, and `report` as a table.

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
