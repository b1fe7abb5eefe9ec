//! The planner: device maps, described devices, and the plans that follow from them.

#[path = "../common/mod.rs"]
mod common;
mod hardware;
mod machines;
mod maps;
mod plans;
