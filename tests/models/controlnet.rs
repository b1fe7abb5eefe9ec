//! ControlNets on small pipelines, against what diffusers and torch computed in f32: `tests/reference/controlnet.py`.

use std::{collections::BTreeMap, fs, path::Path};

use sdshard::{
    backend::{DType, Device, DeviceId, rules::Rules},
    models::{
        clip::EncodedText,
        controlnet::{ControlNet, ControlNetSpec},
        network::NetworkSpec,
        route::{PersistentArenas, Route},
        single_file::Overrides,
        unet::{Condition, Residuals, UnetSpec},
    },
    pipeline::Model,
    tensor::Tensor,
    weights::{ModelFiles, Scope, Weights},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    common::formula,
    golden::{ARENA, Golden, Part, as_close_as_its_type, first, loaded, parts_of},
};

const NAME: &str = "controlnet";

fn described(net: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/controlnet.json");
    serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()[net].take()
}

fn tensors(net: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let shapes = described(net)["tensors"].take();
    let tensor = |(name, shape): (&String, &Value)| {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
        (name.clone(), (shape.clone(), formula::weight(net, name, &shape, 1.0)))
    };
    shapes.as_object().unwrap().iter().map(tensor).collect()
}

/// A folder with a ControlNet, as diffusers writes it.
pub(crate) fn folder_of(net: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), described(net)["config"].to_string()).unwrap();
    formula::write(&folder.path().join("diffusion_pytorch_model.safetensors"), &tensors(net));
    folder
}

/// The folder of the model that a ControlNet is for; that of SDXL is temporary.
pub(crate) fn model_folder(net: &str) -> Result<TempDir, String> {
    match net.starts_with("xl") {
        true => Ok(formula::folder("tiny-sdxl")),
        false => Err(format!("{}/tests/golden/tiny-sd1", env!("CARGO_MANIFEST_DIR"))),
    }
}

/// The model with ControlNets.
pub(crate) fn open(nets: &[&str]) -> (Model, Vec<TempDir>) {
    let mut folders: Vec<TempDir> = nets.iter().map(|net| folder_of(net)).collect();
    let controlnets: Vec<_> = folders.iter().map(|folder| folder.path().to_owned()).collect();
    let files = match model_folder(nets[0]) {
        Ok(folder) => {
            folders.push(folder);
            ModelFiles::folder(folders[folders.len() - 1].path()).unwrap()
        }
        Err(path) => ModelFiles::folder(path).unwrap(),
    };
    let files = Overrides { controlnets: &controlnets, ..Overrides::default() }.apply(files).unwrap();
    (Model::open(files, None).unwrap(), folders)
}

/// The control image that the reference makes: pixels from 0 to 1.
pub(crate) fn picture(number: usize, height: usize, width: usize) -> Vec<u8> {
    let pixel = |(y, x, c): (usize, usize, usize)| {
        ((y * (3 + number) + x * 5 + c * (40 + 30 * number) + (x * y) / 7) % 256) as u8
    };
    let at = |i: usize| (i / 3 / width, i / 3 % width, i % 3);
    (0..3 * height * width).map(|i| pixel(at(i))).collect()
}

/// The mean of each channel of each row.
fn means(tensors: &[Tensor]) -> Vec<f32> {
    let row = |row: usize| {
        tensors.iter().flat_map(move |tensor| {
            let (values, channels) = (tensor.read().unwrap(), tensor.shape().channels());
            let pixels = values.len() / tensor.dim(0) / channels;
            let image = values[row * pixels * channels..][..pixels * channels].to_vec();
            let sum = move |c: usize| image.iter().skip(c).step_by(channels).map(|x| f64::from(*x)).sum::<f64>();
            (0..channels).map(move |c| (sum(c) / pixels as f64) as f32)
        })
    };
    (0..2).flat_map(row).collect()
}

#[test]
fn one_call_with_its_residuals_matches_the_reference_in_every_form() {
    let golden = Golden::open(NAME);
    for net in ["sd", "sd-bgr", "xl", "xl-mid", "xl-small"] {
        let (model, _folders) = open(&[net]);
        let (form, family) = (&net[..2], if net.starts_with("xl") { "tiny-sdxl" } else { "tiny-sd1" });
        let (context, shape) = golden.get(&format!("{form}.context"));
        let pooled = if form == "xl" { golden.values("xl.pooled") } else { Vec::new() };
        let texts = context.chunks(shape[1] * shape[2]).enumerate();
        let rows: Vec<Condition> = texts
            .map(|(row, features)| Condition {
                text: [EncodedText {
                    features: features.to_vec(),
                    pooled: pooled.chunks(40).nth(row).map(<[f32]>::to_vec).unwrap_or_default(),
                }]
                .into(),
                numbers: if form == "xl" { vec![96.0, 72.0, 0.0, 0.0, 96.0, 72.0] } else { Vec::new() },
                guidance_scale: 1.0,
            })
            .collect();
        let pixels: Vec<f32> = picture(0, 96, 72).iter().map(|x| f32::from(*x) / 255.0).collect();
        for Part { device, dtype, on, .. } in parts_of(&[family]) {
            let keeps = PersistentArenas::new(vec![device.persistent_arena(ARENA).unwrap()]);
            let (controlnet, route) = loaded("controlnet", &device, dtype, &model);
            let controlnet = controlnet.controlnet();
            let conditioning = controlnet.condition(&rows, &[&pixels], [96, 72], &route.pass(), &keeps).unwrap();
            let time = controlnet.time_features(37.25, &device).unwrap();
            let latents = golden.feature_map(&device, &format!("{form}.latents"));
            let mut residuals = Vec::new();
            let put = |i: usize, residual: Tensor| {
                assert_eq!(i, residuals.len());
                residuals.push(residual);
                Ok(())
            };
            controlnet.forward(&latents, &time, &conditioning, &route.pass(), put).unwrap();
            assert_eq!(residuals.len(), 10, "nine skip tensors and the middle");
            let close = |what: &str, got: &[f32]| {
                let (what, want) = (format!("{net} {what} on {on}"), golden.values(&format!("{net}.{what}")));
                as_close_as_its_type(&what, dtype, "unet", got, &want);
            };
            close("first", &first(&residuals[0]));
            close("mid", &first(&residuals[9]));
            close("means", &means(&residuals));

            let (unet, route) = loaded("unet", &device, dtype, &model);
            let unet = unet.denoiser();
            assert_eq!(unet.residual_sections().count(), residuals.len());
            let texts = unet.condition(&rows, &route.pass(), &keeps).unwrap();
            let call = |residuals: &[Residuals]| {
                first(&unet.forward(&latents, &time, &texts, residuals, &route.pass()).unwrap())
            };
            close("unet", &call(&[Residuals { tensors: &residuals, row: 0, scale: 0.7 }]));
            // Two ControlNets are summed.
            let part = |scale| Residuals { tensors: &residuals, row: 0, scale };
            close("unet", &call(&[part(0.2), part(0.5)]));
            // Residuals of zero, as those of a ControlNet before its training, change nothing.
            assert_eq!(call(&[part(0.0)]), call(&[]), "{net} on {on}");
        }
    }
}

/// The parts of configs in which the published ControlNets differ.
const SD: &str = r#""block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "norm_num_groups": 32"#;
const XL: &str = r#""block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": true,
    "projection_class_embeddings_input_dim": 2816"#;
const XL_BLOCKS: &str = r#""down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]"#;
const SMALL_BLOCKS: &str = r#""down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"]"#;

/// A UNet for which a ControlNet of these keys fits.
fn unet_for(keys: &str) -> UnetSpec {
    let up = match keys.contains("addition_embed_type") {
        true => {
            r#", "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]"#
        }
        false => "",
    };
    UnetSpec::from_json(&format!(r#"{{"sample_size": 64, {keys}{up}}}"#), "unet/config.json").unwrap()
}

#[test]
fn the_published_controlnets_have_as_many_parameters_as_their_files() {
    let sd2 = r#""cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true"#;
    for (what, base, keys, want) in [
        ("SD 1.5", format!(r#"{SD}, "cross_attention_dim": 768"#), String::new(), 361_279_120),
        ("SD 2.1", format!("{SD}, {sd2}"), String::new(), 364_228_240),
        ("SDXL", XL.into(), format!(r#", {XL_BLOCKS}, "transformer_layers_per_block": [1, 2, 10]"#), 1_251_014_160),
        ("SDXL mid", XL.into(), format!(r#", {XL_BLOCKS}, "transformer_layers_per_block": [0, 0, 1]"#), 272_586_000),
        (
            "SDXL small",
            XL.into(),
            format!(r#", {SMALL_BLOCKS}, "transformer_layers_per_block": [0, 0, 0]"#),
            160_111_120,
        ),
    ] {
        let spec = ControlNetSpec::from_json(&format!("{{{base}{keys}}}"), what, &unet_for(&base)).unwrap();
        let rates = sdshard::backend::cpu::info().rates;
        let (device, counter) = Device::dry(DeviceId::CPU, Rules::Gpu(DType::F32), rates);
        let weights = Weights::shapes_only("controlnet");
        let route = Route::whole(&device, DType::F32, ControlNet::sections(&spec).len());
        ControlNet::load(&Scope::new(&weights, &device, DType::F32), &spec, &route).unwrap();
        assert_eq!(counter.take().weight_bytes / 4, want, "{what}");
    }
}

#[test]
fn a_controlnet_of_another_family_or_form_is_refused() {
    let (base, unet) =
        (format!(r#"{SD}, "cross_attention_dim": 768"#), unet_for(&format!(r#"{SD}, "cross_attention_dim": 768"#)));
    for (keys, words) in [
        (r#""block_out_channels": [320, 640, 1280, 1920]"#, "`block_out_channels` must be [320,640,1280,1280]"),
        (r#""layers_per_block": 3"#, "`layers_per_block` must be 2"),
        (r#""in_channels": 9"#, "`in_channels` must be 4"),
        (r#""cross_attention_dim": 1024"#, "`cross_attention_dim` must be 768"),
        (
            r#""addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816"#,
            "`projection_class_embeddings_input_dim` must be 0",
        ),
        (r#""global_pool_conditions": true"#, "`global_pool_conditions` must be false"),
        (r#""conditioning_channels": 1"#, "`conditioning_channels` must be 3"),
        (r#""conditioning_embedding_out_channels": [16, 32]"#, "4 widths"),
        (r#""controlnet_conditioning_channel_order": "grb""#, "\"rgb\" or \"bgr\""),
        (r#""mid_block_type": null"#, "`mid_block_type`"),
        (r#""_class_name": "ControlNetUnionModel""#, "\"ControlNetModel\""),
    ] {
        // The last of equal keys counts.
        let error = ControlNetSpec::from_json(&format!("{{{base}, {keys}}}"), "x/config.json", &unet).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(words) && error.contains("x/config.json"), "{keys}: {error}");
    }
}

#[test]
fn a_controlnet_is_a_component_behind_the_unet() {
    let (model, _folders) = open(&["xl", "xl-mid"]);
    let names = ["text_encoder", "text_encoder_2", "unet", "controlnet", "controlnet_1", "vae"];
    assert_eq!(model.spec.names(), names);
    assert_eq!(model.spec.denoiser(), model.spec.component("unet").unwrap());
    let sections = |name: &str| model.spec.components[model.spec.component(name).unwrap()].network.sections();
    let (unet, controlnet) = (sections("unet"), sections("controlnet"));
    assert_eq!(controlnet[..], unet[..controlnet.len()], "a copy of the UNet's first half");
    assert!(matches!(model.spec.components[model.spec.denoiser()].network, NetworkSpec::Unet(_)));
}
