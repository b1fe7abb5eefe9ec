//! Models: what their networks compute, compared with other programs, and the memory that they need for it.

mod arena;
#[path = "../common/mod.rs"]
mod common;
mod controlnet;
#[cfg(feature = "cuda")]
mod cuda_expected;
mod cuts;
mod figures;
mod golden;
mod img2img;
mod lora;
mod networks;
mod pipelines;
mod prompts;
mod published;
mod sdxl;
mod single_file;
mod tiny_vae;
mod tokenizer;
mod vae_tiling;
