//! What adapters of LoRA files add to weights, against an independent computation: `golden/lora_merge.json`; and pictures
//! with a LoRA.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::{Dtype, tensor::TensorView};
use sdshard::{
    Model, ModelFiles, Request, Result,
    models::single_file::Overrides,
    weights::lora::{LoraChoice, LoraFile},
};
use serde_json::Value;

use super::tokenizer::golden;
use crate::{
    common::{self, formula},
    golden::{Golden, close, draw, draw_with},
};

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

/// The LoRA of `golden/lora.safetensors`, in `folder`.
fn lora_of(golden: &Golden, folder: &Path) -> PathBuf {
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&golden.text("tensors")).unwrap();
    let alpha: f32 = golden.text("alpha").parse().unwrap();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for (name, shape) in shapes {
        let values = formula::weight("lora", &name, &shape, 1.0);
        let stem = name.split_once('.').unwrap().0;
        tensors.insert(format!("{stem}.alpha"), (vec![], vec![alpha]));
        tensors.insert(name, (shape, values));
    }
    let path = folder.join("style.safetensors");
    formula::write(&path, &tensors);
    path
}

fn open(loras: &[LoraChoice], lenient: bool) -> Result<Model> {
    let files = ModelFiles::folder(common::tiny()).unwrap();
    let overrides = Overrides { loras, lora_lenient: lenient, ..Overrides::default() };
    Model::open(overrides.apply(files)?, None)
}

#[test]
fn latents_with_a_lora_match_the_reference_wherever_its_weights_are() {
    let golden = Golden::open("lora");
    let folder = tempfile::tempdir().unwrap();
    let number = |key: &str| golden.text(key).parse::<f32>().unwrap();
    let choice = LoraChoice::new(lora_of(&golden, folder.path()), number("strength"));
    let plain = Arc::new(open(&[], false).unwrap());
    let model = Arc::new(open(std::slice::from_ref(&choice), false).unwrap());
    let request = Request {
        seed: number("seed") as u64,
        steps: number("steps") as usize,
        width: number("width") as usize,
        height: number("height") as usize,
        ..Request::new(golden.text("prompt"), &model.spec)
    };
    let latents = draw(&model, request.clone()).latents.values;
    close("with the LoRA", &latents, &golden.values("with"), 1e-3);
    let apart = LoraChoice { text_encoder_weight: number("text_strength"), ..choice.clone() };
    let apart_model = Arc::new(open(std::slice::from_ref(&apart), false).unwrap());
    let with_two = draw(&apart_model, request.clone()).latents.values;
    close("with two strengths", &with_two, &golden.values("apart"), 1e-3);
    assert_ne!(apart_model.identity().unwrap(), model.identity().unwrap());
    assert_eq!([choice.label(), apart.label()], ["style:0.75", "style:-0.5:0.75"]);
    close("without it", &draw(&plain, request.clone()).latents.values, &golden.values("without"), 1e-3);
    assert_ne!(model.identity().unwrap(), plain.identity().unwrap(), "a LoRA makes another model");
    for reside in ["host", "disk"] {
        let map = format!(
            "[components]\ntext_encoder = \"cpu\"\nvae = \"cpu\"\n\
             unet = {{ execute = \"cpu\", reside = \"{reside}\" }}"
        );
        assert!(draw_with(&model, request.clone(), &map).latents.values == latents, "{reside}");
    }
    // Two of them in either order are the same model.
    let half = LoraChoice::new(&choice.path, 0.5);
    let [one, other] =
        [[choice.clone(), half.clone()], [half, choice]].map(|both| Arc::new(open(&both, false).unwrap()));
    assert_eq!(one.identity().unwrap(), other.identity().unwrap());
    assert!(draw(&one, request.clone()).latents == draw(&other, request).latents);
}

#[test]
fn a_lora_that_is_not_for_the_model_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    let tensors = |stem: &str, down: Vec<usize>, up: Vec<usize>| {
        let tensor = |shape: Vec<usize>| (shape.clone(), vec![0.5; shape.iter().product()]);
        let names = [format!("{stem}.lora_down.weight"), format!("{stem}.lora_up.weight")];
        names.into_iter().zip([tensor(down), tensor(up)]).collect::<BTreeMap<_, _>>()
    };
    let right = tensors(key, vec![2, 32], vec![16, 2]);
    let unknown = tensors("lora_unet_nowhere", vec![2, 4], vec![4, 2]);
    let both: BTreeMap<_, _> = right.clone().into_iter().chain(unknown.clone()).collect();
    for (name, tensors, lenient, facts) in [
        (
            "wide",
            tensors(key, vec![2, 2048], vec![16, 2]),
            false,
            &["is not for a weight of [16, 32]", "made for SDXL"][..],
        ),
        ("unknown", unknown, true, &["this model has none of its modules"]),
        ("both", both.clone(), false, &["this model lacks 1 of its 2 modules", "lora_unet_nowhere"]),
    ] {
        let path = folder.path().join(format!("{name}.safetensors"));
        formula::write(&path, &tensors);
        let error = open(&[LoraChoice::new(&path, 1.0)], lenient).unwrap_err().to_string();
        common::has_facts(name, &error, &[facts, &[path.to_str().unwrap()]].concat());
    }
    let path = folder.path().join("both.safetensors");
    open(&[LoraChoice::new(path, 1.0)], true).unwrap();
}
