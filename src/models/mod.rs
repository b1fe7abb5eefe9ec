//! The networks, each in a file that follows its paper, and the configs of a model.

pub mod autoencoder;
pub mod blocks;
mod built_in;
pub mod clip;
pub mod component;
mod config;
pub mod contracting;
pub mod controlnet;
pub mod defaults;
mod index;
mod keys;
pub mod locate;
pub mod network;
pub mod pipelines;
pub mod route;
pub mod single_file;
pub mod spec;
pub mod tiles;
pub mod tiny_vae;
pub mod unet;
pub mod vae;
