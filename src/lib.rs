//! Stable Diffusion sharded over whatever devices you have.

pub mod backend;
pub mod bench;
pub mod engine;
pub mod error;
pub mod json;
pub mod models;
pub mod nn;
pub mod pipeline;
pub mod planner;
pub mod scheduler;
pub mod tensor;
pub mod tokenizer;
pub mod weights;
