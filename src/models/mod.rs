//! The networks, each readable beside its paper.

pub mod spec;
