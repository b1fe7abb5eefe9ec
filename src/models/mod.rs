//! The networks, each readable beside its paper.

pub mod blocks;
pub mod clip;
mod keys;
pub mod pipelines;
pub mod route;
pub mod spec;
pub mod unet;
pub mod vae;
