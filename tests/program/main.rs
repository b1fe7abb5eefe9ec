//! The program, started from outside.

mod adapters;
mod bad_input;
mod benchmarks;
mod cli;
#[path = "../common/mod.rs"]
mod common;
#[cfg(unix)]
mod faults;
#[cfg(feature = "hub")]
mod hub;
#[cfg(unix)]
mod interruptions;
#[cfg(target_os = "linux")]
mod machine_faults;
#[cfg(target_os = "linux")]
mod mutations;
mod placement;
mod settings;
