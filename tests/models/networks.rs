//! Model folders whose networks are not as usual, beside what diffusers makes of them:
//! tests/golden/circumstances_nets.json, which tests/reference/circumstances_nets.py writes. And folders whose weights
//! are not those that their configs describe, which no plan accepts.

use std::{
    fs,
    path::Path,
    process::{Command, Output as Ended},
    sync::Arc,
};

use crate::common;
use sdshard::{DeviceMap, Engine, Largest, Model, ModelFiles, Plan, Request, backend, pipeline::request::Output};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const UNET_FILE: &str = "unet/diffusion_pytorch_model.safetensors";

/// A copy of the small model, and its folder.
fn tiny() -> (TempDir, std::path::PathBuf) {
    let folder = common::copy_of_tiny();
    let root = folder.path().join("model");
    (folder, root)
}

/// Replaces keys of a JSON file, or takes those out whose value is "absent".
fn change(file: &Path, keys: &Map<String, Value>) {
    let mut config: Map<String, Value> = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    config.extend(keys.clone());
    config.retain(|_, value| value != "absent");
    fs::write(file, Value::Object(config).to_string()).unwrap();
}

/// A tensor's name, type, shape and bytes.
type Tensor = (String, String, Vec<usize>, Vec<u8>);

/// Writes a safetensors file anew with what `edit` makes of its tensors.
fn rewrite(file: &Path, edit: impl FnOnce(&mut Vec<Tensor>)) {
    let bytes = fs::read(file).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..start]).unwrap();
    let mut tensors: Vec<Tensor> = header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, entry)| {
            let at = |i: usize| start + entry["data_offsets"][i].as_u64().unwrap() as usize;
            let shape = serde_json::from_value(entry["shape"].clone()).unwrap();
            (name.clone(), entry["dtype"].as_str().unwrap().to_owned(), shape, bytes[at(0)..at(1)].to_vec())
        })
        .collect();
    edit(&mut tensors);
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string().into_bytes();
    fs::write(file, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

fn doubled(tensor: &mut Tensor) {
    assert_eq!(tensor.1, "F32");
    tensor.1 = "F64".to_owned();
    let wide = |four: &[u8; 4]| f64::from(f32::from_le_bytes(*four)).to_le_bytes();
    tensor.3 = tensor.3.as_chunks::<4>().0.iter().flat_map(wide).collect();
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[test]
fn networks_that_are_not_as_usual_draw_what_diffusers_draws() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/circumstances_nets.json");
    let golden: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let (_folder, root) = tiny();
        for (file, keys) in case["changes"].as_object().unwrap() {
            change(&root.join(file), keys.as_object().unwrap());
        }
        for (file, prefix) in case["without"].as_object().into_iter().flatten() {
            let prefix = prefix.as_str().unwrap();
            rewrite(&root.join(file), |tensors| tensors.retain(|(name, ..)| !name.starts_with(prefix)));
        }
        for (file, name) in case["added"].as_object().into_iter().flatten() {
            let ones = [1.0_f32; 4].map(f32::to_le_bytes).concat();
            let added = (name.as_str().unwrap().to_owned(), "F32".to_owned(), vec![2, 2], ones);
            rewrite(&root.join(file), |tensors| tensors.push(added));
        }
        for (file, _) in case["type"].as_object().into_iter().flatten() {
            rewrite(&root.join(file), |tensors| tensors.iter_mut().for_each(doubled));
        }
        let model = Model::open(ModelFiles::folder(&root).unwrap(), None)
            .unwrap_or_else(|error| panic!("{}: {error}", case["what"]));
        let request = Request {
            seed: golden["seed"].as_u64().unwrap(),
            steps: golden["steps"].as_u64().unwrap() as usize,
            guidance_scale: golden["guidance_scale"].as_f64().unwrap() as f32,
            output: Output::Latents,
            ..Request::new(golden["prompt"].as_str().unwrap(), &model.spec)
        };
        let scale = model.spec.latents.scale;
        assert_eq!(json!([request.height / scale, request.width / scale]), case["size"], "{}", case["what"]);
        let largest = Largest::of([&request], &model.spec).unwrap().unwrap();
        let map = DeviceMap::parse("devices = [\"cpu\"]", "map.toml").unwrap();
        let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap();
        let picture = Engine::load(Arc::new(model), &plan).unwrap().submit(request).unwrap().wait().unwrap();
        let want = numbers(&case["latents"]);
        let most = want.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        assert!(!want.is_empty() && picture.latents.values.len() >= want.len());
        for (got, want) in picture.latents.values.iter().zip(&want) {
            assert!((got - want).abs() <= 1e-3 * most, "{}: {got} rather than {want}", case["what"]);
        }
    }
}

/// `sdshard COMMAND` with the model, and what it says.
fn sdshard(arguments: &[&str], model: &Path) -> (Ended, String) {
    let out = model.parent().unwrap().join("out");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sdshard"));
    command.args(arguments).arg("--model").arg(model).current_dir(model.parent().unwrap());
    if arguments[0] != "plan" {
        command.args(["--steps", "1", "--output-dir"]).arg(out);
    }
    let ended = command.output().unwrap();
    let said = String::from_utf8(ended.stderr.clone()).unwrap();
    (ended, said)
}

#[test]
fn stray_tensors_get_one_short_warning_however_many_they_are() {
    let (_folder, root) = tiny();
    rewrite(&root.join(UNET_FILE), |tensors| {
        let name = |i: usize| format!("stray.{i:06}.{}", "x".repeat(if i == 0 { 5000 } else { 0 }));
        tensors.extend((0..200_000).map(|i| (name(i), "F32".to_owned(), vec![0], Vec::new())));
    });
    for command in [&["plan"][..], &["a fox", "another fox"]] {
        let (ended, said) = sdshard(command, &root);
        assert!(ended.status.success(), "{said}");
        assert_eq!(said.matches("stored tensors").count(), 1, "{said}");
        common::has_facts(command, &said, &["unet has 200000 stored tensors", "stray.000000.xxx"]);
        assert!(said.len() < 2000, "{said}");
    }
}

/// What is wrong, how it comes about, and words that the message has.
type Edit<'a> = (&'a str, &'a dyn Fn(&Path), &'a [&'a str]);

#[test]
fn a_plan_accepts_no_weights_that_a_run_would_reject() {
    let edits: [Edit; 6] = [
        (
            "a missing tensor",
            &|root| rewrite(&root.join(UNET_FILE), |t| t.retain(|t| t.0 != "conv_out.bias")),
            &["conv_out.bias"],
        ),
        (
            "a type that is no float",
            &|root| {
                rewrite(&root.join(UNET_FILE), |tensors| {
                    let tensor = tensors.iter_mut().find(|tensor| tensor.0 == "conv_in.bias").unwrap();
                    tensor.1 = "I8".to_owned();
                    tensor.3.truncate(tensor.3.len() / 4);
                });
            },
            &["conv_in.bias", "I8"],
        ),
        (
            "an absurd width",
            &|root| {
                let keys = json!({"block_out_channels": [65_536, 65_536, 65_536, 65_536], "norm_num_groups": 1});
                let mut keys = keys.as_object().unwrap().clone();
                let config = fs::read_to_string(root.join("vae/config.json")).unwrap();
                let config: Value = serde_json::from_str(&config).unwrap();
                let levels = config["block_out_channels"].as_array().unwrap().len();
                keys.insert("block_out_channels".to_owned(), json!(vec![65_536; levels]));
                change(&root.join("vae/config.json"), &keys);
            },
            &["65536"],
        ),
        (
            "more layers than there are",
            &|root| {
                let keys = json!({"num_hidden_layers": 900});
                change(&root.join("text_encoder/config.json"), keys.as_object().unwrap());
            },
            &["encoder.layers."],
        ),
        ("weights of one part missing", &|root| fs::remove_file(root.join(UNET_FILE)).unwrap(), &["unet"]),
        (
            "a file cut short",
            &|root| {
                let bytes = fs::read(root.join(UNET_FILE)).unwrap();
                fs::write(root.join(UNET_FILE), &bytes[..bytes.len() - 4]).unwrap();
            },
            &["unet"],
        ),
    ];
    for (what, edit, words) in edits {
        let (_folder, root) = tiny();
        edit(&root);
        for command in ["plan", "a fox"] {
            let (ended, said) = sdshard(&[command], &root);
            assert_eq!(ended.status.code(), Some(2), "{what}: {said}");
            common::has_facts(what, &said, words);
        }
        let written = fs::read_dir(root.parent().unwrap().join("out")).into_iter().flatten().count();
        assert_eq!(written, 0, "{what}: something was written");
    }
}

#[test]
fn unknown_keys_and_those_that_cannot_be_followed_are_named() {
    let (_folder, root) = tiny();
    change(&root.join("unet/config.json"), json!({"strange": 1, "stranger": 2}).as_object().unwrap());
    let (ended, said) = sdshard(&["plan"], &root);
    assert!(ended.status.success(), "{said}");
    common::has_facts("unknown keys", &said, &["unet/config.json", "`strange` and 1 more"]);
    for (file, key, value) in [
        ("unet/config.json", "resnet_out_scale_factor", json!(2)),
        ("unet/config.json", "only_cross_attention", json!([true, false, false])),
        ("vae/config.json", "act_fn", json!("relu")),
        ("text_encoder/config.json", "use_attention_mask", json!(true)),
        ("text_encoder/config.json", "quantization_config", json!({"bits": 4})),
    ] {
        let (_folder, root) = tiny();
        change(&root.join(file), json!({key: value}).as_object().unwrap());
        let (ended, said) = sdshard(&["plan"], &root);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        common::has_facts(key, &said, &[file, &format!("`{key}`")]);
    }
}
