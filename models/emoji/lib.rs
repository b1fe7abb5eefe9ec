//! The files of a small Stable Diffusion model in the diffusers layout, embedded in the program that uses this crate. What
//! the model is, and its licence, stand in `README.md` and `LICENSE` beside this file.

macro_rules! embed {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!($path))),*]
    };
}

/// Every file: its path in the model's folder, with `/` between the parts, and its contents.
pub const FILES: &[(&str, &[u8])] = embed![
    "model_index.json",
    "sdshard.toml",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];
