//! Models whose weights come from a formula: `tests/reference/formula.py` has it too, so that goldens need no stored
//! weights.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use tempfile::TempDir;

/// Parameters that write into a residual stream, and the last matrices of residual branches: `common.py`.
const STREAM: [&str; 12] = [
    "conv_in.",
    "conv2.",
    "proj_in.",
    "to_out.0.",
    "net.2.",
    "fc2.",
    "out_proj.",
    "token_embedding.",
    "position_embedding.",
    "conv_shortcut.bias",
    "samplers.0.conv.bias",
    "proj_out.bias",
];
const LAST: [&str; 6] =
    ["conv2.weight", "to_out.0.weight", "out_proj.weight", "fc2.weight", "net.2.weight", "proj_out.weight"];
const STREAM_SIZE: f64 = 0.03;

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One tensor of a component.
pub fn weight(component: &str, name: &str, shape: &[usize], factor: f64) -> Vec<f32> {
    let key = fnv(&format!("{component}/{name}"));
    let is_stream = STREAM.iter().any(|part| name.contains(part));
    let (fan_in, is_last) =
        (shape.iter().skip(1).product::<usize>() as f64, LAST.iter().any(|end| name.ends_with(end)));
    let value = |i: usize| {
        let mut z = key.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let mut x = ((z >> 11) as f64 * 2f64.powi(-53) * 2.0 - 1.0) * 3f64.sqrt();
        if is_stream {
            x *= STREAM_SIZE;
        }
        x = match shape.len() {
            1 if name.ends_with("weight") => 1.0 + 0.2 * x,
            1 => 0.1 * x,
            _ if name.contains("embedding.weight") => x * if name.contains("position") { 0.3 } else { 1.0 },
            _ => x * ((if is_last { 0.6 } else { 1.0 }) / fan_in.sqrt()),
        };
        (x * factor) as f32
    };
    (0..shape.iter().product()).map(value).collect()
}

/// The tensors of a component of `tests/golden/MODEL/tensors.json`, with their shapes.
pub fn tensors(model: &str, component: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let path = golden(model).join("tensors.json");
    let all: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let about = &all[component];
    // The UNets of other forms differ from the model's in their structure only.
    let scheme = if ["pruned", "distilled"].contains(&component) { "unet" } else { component };
    let tensor = |(name, shape): (&String, &Value)| {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
        let values = weight(scheme, name, &shape, about["factors"][name].as_f64().unwrap_or(1.0));
        (name.clone(), (shape, values))
    };
    about["tensors"].as_object().unwrap_or_else(|| panic!("{component}")).iter().map(tensor).collect()
}

/// Writes tensors as a safetensors file.
pub fn write(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

/// A folder with the model `tests/golden/MODEL`; `unet` is the folder of its UNet there.
pub fn folder_with(model: &str, unet: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (golden(model), folder.path());
    for entry in fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_file() {
            if name != "tensors.json" {
                fs::copy(entry.path(), to.join(&name)).unwrap();
            }
            continue;
        }
        fs::create_dir_all(to.join(&name)).unwrap();
        for file in fs::read_dir(entry.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(&name).join(file.file_name())).unwrap();
        }
    }
    if unet != "unet" {
        fs::copy(from.join(unet).join("config.json"), to.join("unet/config.json")).unwrap();
    }
    for (component, file) in [
        ("text_encoder", "model.safetensors"),
        ("text_encoder_2", "model.safetensors"),
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
    ] {
        if to.join(component).exists() {
            write(&to.join(component).join(file), &tensors(model, if component == "unet" { unet } else { component }));
        }
    }
    folder
}

/// A folder with the model `tests/golden/MODEL`.
pub fn folder(model: &str) -> TempDir {
    folder_with(model, "unet")
}
