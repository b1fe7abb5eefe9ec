//! The planner: device maps, described devices, and the plans that follow from them.

use sdshard::planner::Largest;

#[path = "../common/mod.rs"]
mod common;
mod hardware;
mod machines;
mod maps;
mod plans;

/// Guided square pictures of so many pixels along each side, from noise with the model's own scheduler.
fn largest(side: usize, steps: usize, images: usize) -> Largest {
    Largest {
        width: side,
        height: side,
        also: vec![],
        guided: true,
        scheduler: None,
        steps,
        strength: 1.0,
        chunks: 1,
        masked: false,
        vae_tiling: false,
        images,
    }
}
