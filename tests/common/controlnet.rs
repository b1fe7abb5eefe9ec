//! Small ControlNets, whose weights come from a formula: `tests/reference/controlnet.py` has them too.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use super::formula;

fn described(net: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/controlnet.json");
    serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()[net].take()
}

/// The tensors of a ControlNet, with their shapes.
pub fn tensors(net: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let shapes = described(net)["tensors"].take();
    let tensor = |(name, shape): (&String, &Value)| {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
        (name.clone(), (shape.clone(), formula::weight(net, name, &shape, 1.0)))
    };
    shapes.as_object().unwrap().iter().map(tensor).collect()
}

/// A folder with a ControlNet, as diffusers writes it.
pub fn folder_of(net: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), described(net)["config"].to_string()).unwrap();
    formula::write(&folder.path().join("diffusion_pytorch_model.safetensors"), &tensors(net));
    folder
}
