//! Files that hold something else than a model of Stable Diffusion, recognised by the names of their tensors.

use std::collections::HashSet;

use crate::error::Error;

/// A test of one name.
type Test = fn(&str) -> bool;

/// What a file without a UNet of Stable Diffusion holds instead, how it is recognised, and what to do with it. The
/// first one counts.
const OTHERS: [(&str, Test, &str); 13] = [
    ("a LoRA", |name| name.contains("lora_") || name.contains(".lora.") || name.starts_with("lycoris_"), LORA),
    ("a ControlNet", |name| name.contains("input_hint_block") || name.contains("controlnet_cond_embedding"), APPLIED),
    ("a model of the family Flux", |name| name.contains("double_blocks.0."), FAMILIES),
    ("a model of the family Stable Diffusion 3", |name| name.contains("joint_blocks.0."), FAMILIES),
    ("a model of the family Stable Cascade", |name| name.contains("clip_txt_mapper."), FAMILIES),
    (
        "a model of the family PixArt or Wan",
        |name| name.contains("caption_projection.") || name.contains("blocks.0.cross_attn"),
        FAMILIES,
    ),
    ("a UNet alone", |name| name == "input_blocks.0.0.weight" || name == "down_blocks.0.resnets.0.conv1.weight", WHOLE),
    (
        "an AutoencoderTiny (TAESD)",
        |name| matches!(name, "1.conv.0.weight" | "3.conv.0.weight") || name.starts_with("decoder.layers."),
        VAE,
    ),
    ("a VAE alone", |name| name == "decoder.conv_in.weight", VAE),
    ("an upscaler", |name| name == "conv_first.weight" || name == "model.0.weight", WHOLE),
    ("a textual inversion embedding", |name| matches!(name, "emb_params" | "clip_l" | "clip_g"), WHOLE),
    ("a text encoder alone", |name| name.ends_with("embeddings.token_embedding.weight"), WHOLE),
    ("a motion module", |name| name.contains("motion_modules."), WHOLE),
];
/// The name of a model's first ControlNet; those of the others have a number after it.
pub const CONTROLNET: &str = "controlnet";
const WHOLE: &str = "--model FILE takes a whole checkpoint: text encoder, UNet and VAE in one file";
const VAE: &str = "--vae FILE reads a VAE, beside --model";
const APPLIED: &str = "--controlnet FILE applies it to the model of --model";
const LORA: &str = "--lora FILE applies it to the model of --model";
const FAMILIES: &str = "sdshard runs Stable Diffusion 1, 2 and XL";

/// The error for a single file that lacks a component.
pub(crate) fn missing(component: &str, file: &str, names: &HashSet<&str>, is_own_file: bool) -> Error {
    if is_own_file && component.starts_with(CONTROLNET) {
        let other = OTHERS.iter().find(|(_, test, _)| names.iter().any(|name| test(name)));
        let error = Error::input(format!("{file}: this file has no ControlNet"));
        return match other {
            Some((what, ..)) => error.found(*what),
            None => error,
        };
    }
    if is_own_file {
        let other = OTHERS.iter().find(|(what, test, _)| *what != "a VAE alone" && names.iter().any(|name| test(name)));
        let classes = "AutoencoderKL or AutoencoderTiny";
        let error = Error::input(format!("{file}: this file has no decoder of a {component} of the class {classes}"));
        let error = error.hint("--vae takes the safetensors file or the folder of one");
        return match other {
            Some(_) if names.contains("1.conv.0.weight") => error.found("the encoder of an AutoencoderTiny (TAESD)"),
            Some((what, ..)) => error.found(*what),
            None => error,
        };
    }
    let error = Error::input(format!("{file}: this single-file checkpoint has no {component}"));
    match component {
        "unet" => match OTHERS.iter().find(|(_, test, _)| names.iter().any(|name| test(name))) {
            Some((what, _, hint)) => error.found(*what).hint(*hint),
            None => error.hint(WHOLE),
        },
        "vae" => error.hint("--vae FILE or --vae FOLDER supplies one"),
        _ => error.hint(
            "another file of the same model, or its diffusers folder; --config FOLDER describes the components of a \
             file that is not as usual",
        ),
    }
}

/// TAESD's own name of a tensor of an `AutoencoderTiny`'s decoder. Its files are the decoder and the encoder by
/// themselves, and the clamp of the latents is a layer of the decoder.
pub(super) fn taesd_name(name: &str) -> Option<String> {
    let (layer, rest) = name.strip_prefix("decoder.layers.")?.split_once('.')?;
    Some(format!("{}.{rest}", layer.parse::<usize>().ok()?.checked_add(1)?))
}

/// Whether a tensor says by what other weights are multiplied, as files have it in which weights of 8 bits or fewer
/// have scales.
pub(crate) fn is_scale(name: &str) -> bool {
    const ENDS: [&str; 6] =
        ["scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant", ".scale_input", ".input_scale"];
    ENDS.iter().any(|end| name.ends_with(end))
}
