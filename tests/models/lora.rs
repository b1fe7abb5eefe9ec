//! What adapters of LoRA files add to weights, against an independent computation: `golden/lora_merge.json`.

use std::fs;

use safetensors::{Dtype, tensor::TensorView};
use sdshard::weights::lora::LoraFile;
use serde_json::Value;

use super::tokenizer::golden;

/// Shape and values of a tensor in the golden file.
fn tensor(value: &Value) -> (Vec<usize>, Vec<f32>) {
    let read = |key: &str| value[key].clone();
    (serde_json::from_value(read("shape")).unwrap(), serde_json::from_value(read("values")).unwrap())
}

/// A safetensors file of F32 tensors.
fn write(path: &std::path::Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn adapters_of_every_kind_add_what_their_formulas_say() {
    let golden_file: Value = serde_json::from_str(&golden("lora_merge.json")).unwrap();
    let strength = golden_file["strength"].as_f64().unwrap() as f32;
    let rows = golden_file["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 25);
    let folder = tempfile::tempdir().unwrap();
    for row in rows {
        let name = row["case"].as_str().unwrap();
        let stem = "lora_unet_mid_block_attentions_0_proj_in";
        let tensors = row["tensors"].as_object().unwrap().iter();
        let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = tensors
            .map(|(key, value)| {
                let (shape, values) = tensor(value);
                (format!("{stem}.{key}"), shape, values)
            })
            .collect();
        let path = folder.path().join(format!("{}.safetensors", name.replace([' ', ','], "-")));
        write(&path, &tensors);
        let file = LoraFile::open(&path).unwrap();
        assert_eq!(file.stems().collect::<Vec<_>>(), [stem], "{name}");
        let (shape, weight) = tensor(&row["weight"]);
        let adapter = file.adapter(stem).unwrap();
        let got = adapter.difference(&weight, &shape, None, strength).unwrap().weight.unwrap();
        let want: Vec<f32> = serde_json::from_value(row["difference"].clone()).unwrap();
        let largest = want.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        assert_eq!(got.len(), want.len(), "{name}");
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 2e-6 * largest, "{name}, value {i}: {got}, not {want}");
        }
    }
}
