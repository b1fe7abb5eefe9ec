//! The engine: requests on real devices, with random maps and on simulated devices.

#[path = "../common/mod.rs"]
mod common;
mod random_maps;
mod requests;
mod simulation;
