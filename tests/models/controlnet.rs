//! ControlNets on small pipelines, against what diffusers and torch computed in f32: `tests/reference/controlnet.py`.

use std::{path::Path, sync::Arc};

use sdshard::{
    DeviceMap, Largest, Plan,
    backend::{self, Device, DeviceId, DeviceKind, Precision, rules::Rules},
    models::{
        clip::EncodedText,
        controlnet::{ControlNet, ControlNetSpec},
        network::NetworkSpec,
        route::{PersistentArenas, Route},
        single_file::Overrides,
        unet::{Condition, Residuals, UnetSpec},
    },
    pipeline::{
        Image, Model,
        request::{Control, Request, Start},
    },
    tensor::Tensor,
    weights::{ModelFiles, Scope, Weights},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    common::{
        controlnet::{folder_of, tensors},
        formula,
    },
    golden::{
        ARENA, Golden, Part, as_close_as_its_type, bound, close, close_on_each_device, draw, first, loaded, parts_of,
    },
};

const NAME: &str = "controlnet";

/// The folder of the model that a ControlNet is for; that of SDXL is temporary.
fn model_folder(net: &str) -> Result<TempDir, String> {
    match net.starts_with("xl") {
        true => Ok(formula::folder("tiny-sdxl")),
        false => Err(format!("{}/tests/golden/tiny-sd1", env!("CARGO_MANIFEST_DIR"))),
    }
}

/// The model with ControlNets.
fn open(nets: &[&str]) -> (Model, Vec<TempDir>) {
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
fn picture(number: usize, height: usize, width: usize) -> Vec<u8> {
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
                beside: Vec::new(),
            })
            .collect();
        let pixels: Vec<f32> = picture(0, 96, 72).iter().map(|x| f32::from(*x) / 255.0).collect();
        // The forms differ in structure, not in operations: one of them is enough for the kernels of other devices.
        let is_tried = |part: &Part| net == "xl" || part.device.id().kind == DeviceKind::Cpu;
        for Part { device, dtype, on, .. } in parts_of(&[family]).into_iter().filter(is_tried) {
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
            let named = |what: &str| (format!("{net} {what} on {on}"), golden.values(&format!("{net}.{what}")));
            let compare = |what: &str, got: &[f32]| {
                let (what, want) = named(what);
                as_close_as_its_type(&what, &device, dtype, "unet", got, &want);
            };
            compare("first", &first(&residuals[0]));
            compare("mid", &first(&residuals[9]));
            // Rounding errors cancel out in a mean.
            let (what, want) = named("means");
            close(&what, &means(&residuals), &want, bound(dtype, "unet"));

            let (unet, route) = loaded("unet", &device, dtype, &model);
            let unet = unet.denoiser();
            let shapes = unet.residual_shapes([2, 12, 9]);
            assert_eq!(shapes, residuals.iter().map(Tensor::shape).collect::<Vec<_>>());
            let texts = unet.condition(&rows, &route.pass(), &keeps).unwrap();
            let call = |residuals: &[Residuals]| {
                first(&unet.forward(&latents, &time, &texts, residuals, &route.pass()).unwrap())
            };
            compare("unet", &call(&[Residuals { tensors: &residuals, row: 0, scale: 0.7 }]));
            // Two ControlNets are summed.
            let part = |scale| Residuals { tensors: &residuals, row: 0, scale };
            compare("unet", &call(&[part(0.2), part(0.5)]));
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
        let (device, counter) = Device::dry(DeviceId::CPU, Rules::Gpu(Precision::F32), rates);
        let weights = Weights::shapes_only("controlnet");
        let route = Route::whole(&device, Precision::F32, ControlNet::sections(&spec).len());
        ControlNet::load(&Scope::new(&weights, &device, Precision::F32), &spec, &route).unwrap();
        assert_eq!(counter.take().weight_bytes / 4, want, "{what}");
    }
}

#[test]
fn a_controlnet_of_another_family_or_form_is_refused() {
    let unet = unet_for(&format!(r#"{SD}, "cross_attention_dim": 768"#));
    let base: Value = serde_json::from_str(&format!(r#"{{{SD}, "cross_attention_dim": 768}}"#)).unwrap();
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
        let mut config = base.as_object().unwrap().clone();
        config.extend(serde_json::from_str::<serde_json::Map<_, _>>(&format!("{{{keys}}}")).unwrap());
        let config = Value::Object(config).to_string();
        let error = ControlNetSpec::from_json(&config, "x/config.json", &unet).unwrap_err();
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

/// The model and the request of a row of the golden file, for a model of `family`, `sd` or `xl`.
fn asked(golden: &Golden, family: &str, row: &Value) -> (Arc<Model>, Request, Vec<TempDir>) {
    let nets: Value = serde_json::from_str(&golden.text("nets")).unwrap();
    let number = |key: &str| golden.text(key).parse::<usize>().unwrap();
    let list = |key: &str| -> Vec<f64> { serde_json::from_value(row[key].clone()).unwrap() };
    let chosen: Vec<&str> = list("nets").iter().map(|i| nets[family][*i as usize].as_str().unwrap()).collect();
    let (model, folders) = open(&chosen);
    let sizes: Vec<[usize; 2]> = serde_json::from_value(row["sizes"].clone()).unwrap();
    let control = |(i, &[height, width]): (usize, &[usize; 2])| Control {
        image: Arc::new(Image { width, height, rgb: picture(i, height, width) }),
        scale: list("scale")[i] as f32,
        start: list("start")[i],
        end: list("end")[i],
    };
    let request = Request {
        negative_prompt: Some(golden.text("negative_prompt")),
        seed: number("seed") as u64,
        steps: number("steps"),
        width: number("width"),
        height: number("height"),
        guidance_scale: row["guidance_scale"].as_f64().unwrap_or(5.0) as f32,
        controls: sizes.iter().enumerate().map(control).collect(),
        ..Request::new(golden.text("prompt"), &model.spec)
    };
    (Arc::new(model), request, folders)
}

#[test]
fn pictures_match_the_reference() {
    let golden = Golden::open(NAME);
    let rows: Value = serde_json::from_str(&golden.text("rows")).unwrap();
    for (family, (name, row)) in ["sd", "xl"].iter().flat_map(|f| rows.as_object().unwrap().iter().map(move |r| (f, r)))
    {
        let (model, request, _folders) = asked(&golden, family, row);
        let drawn = draw(&model, request);
        let what = format!("{family}.{name}");
        close(&what, &drawn.latents.values, &golden.values(&format!("{what}.latents")), 1e-3);
        if name == "one" {
            let (image, want) = (drawn.image.unwrap(), golden.values(&format!("{what}.image")));
            let off = image.rgb.iter().zip(want).map(|(a, b)| (f32::from(*a) - b).abs());
            assert!(off.fold(0.0, f32::max) <= 1.0, "{what}: a pixel is off by more than 1 of 255");
        }
    }
}

#[test]
fn each_device_draws_with_a_controlnet_what_the_reference_draws() {
    let golden = Golden::open(NAME);
    let rows: Value = serde_json::from_str(&golden.text("rows")).unwrap();
    let (model, request, _folders) = asked(&golden, "sd", &rows["one"]);
    close_on_each_device("sd.one", &model, &request, &golden.values("sd.one.latents"));
}

#[test]
fn a_request_has_a_picture_for_each_controlnet() {
    let (model, _folders) = open(&["sd", "sd-bgr"]);
    let image = Arc::new(Image { width: 24, height: 16, rgb: picture(0, 16, 24) });
    let control = Control::new(image, &Start::Noise, &model.spec);
    let check = |controls: Vec<Control>| {
        let request = Request { controls, ..Request::new("a fox", &model.spec) };
        request.check(&model.spec).map_err(|error| error.to_string())
    };
    check(vec![control.clone(), control.clone()]).unwrap();
    for (wrong, words) in [
        (vec![control.clone()], "it has 2"),
        (vec![control.clone(), Control { start: 0.5, end: 0.5, ..control.clone() }], "greater than the start"),
        (vec![control.clone(), Control { end: 1.5, ..control.clone() }], "control_end: a number from 0 to 1"),
        (vec![control.clone(), Control { start: -0.5, ..control.clone() }], "control_start: a number from 0 to 1"),
        (vec![control.clone(), Control { scale: f32::NAN, ..control.clone() }], "control_scale: a finite number"),
    ] {
        let error = check(wrong).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let plain = crate::common::model();
    let request = Request { controls: vec![control], ..Request::new("a fox", &plain.spec) };
    let error = request.check(&plain.spec).unwrap_err().to_string();
    assert!(error.contains("it has 0") && error.contains("--controlnet"), "{error}");
}

/// LDM's name of a tensor of the small ControlNet for Stable Diffusion 1, which has three levels of two blocks.
fn ldm_name(name: &str) -> String {
    let mut ldm = name.to_owned();
    for level in 0..3 {
        for i in 0..2 {
            let block = 3 * level + 1 + i;
            ldm = ldm.replace(&format!("down_blocks.{level}.resnets.{i}."), &format!("input_blocks.{block}.0."));
            ldm = ldm.replace(&format!("down_blocks.{level}.attentions.{i}."), &format!("input_blocks.{block}.1."));
        }
        let sampler = format!("input_blocks.{}.0.op", 3 * level + 3);
        ldm = ldm.replace(&format!("down_blocks.{level}.downsamplers.0.conv"), &sampler);
    }
    for i in (0..10).rev() {
        ldm = ldm.replace(&format!("controlnet_down_blocks.{i}."), &format!("zero_convs.{i}.0."));
        ldm = ldm.replace(&format!("cond_embedding.blocks.{i}."), &format!("cond_embedding.{}.", 2 * i + 2));
    }
    for (new, old) in [
        ("controlnet_mid_block.", "middle_block_out.0."),
        ("controlnet_cond_embedding.conv_in", "input_hint_block.0"),
        ("controlnet_cond_embedding.conv_out", "input_hint_block.14"),
        ("controlnet_cond_embedding.", "input_hint_block."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.1.", "middle_block.2."),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
    ] {
        ldm = ldm.replace(new, old);
    }
    if ldm.starts_with("conv_in") {
        ldm = ldm.replace("conv_in", "input_blocks.0.0");
    }
    for (new, old) in [
        (".norm1.", ".in_layers.0."),
        (".conv1.", ".in_layers.2."),
        (".time_emb_proj.", ".emb_layers.1."),
        (".norm2.", ".out_layers.0."),
        (".conv2.", ".out_layers.3."),
        (".conv_shortcut.", ".skip_connection."),
    ] {
        if !ldm.contains("transformer_blocks") {
            ldm = ldm.replace(new, old);
        }
    }
    format!("control_model.{ldm}")
}

#[test]
fn a_file_in_the_names_of_the_original_code_draws_the_same() {
    let folder = folder_of("sd");
    let file = folder.path().join("control.safetensors");
    formula::write(&file, &tensors("sd").into_iter().map(|(name, tensor)| (ldm_name(&name), tensor)).collect());
    let tiny = format!("{}/tests/golden/tiny-sd1", env!("CARGO_MANIFEST_DIR"));
    let drawn = |controlnet: &Path| {
        let controlnets = [controlnet.to_owned()];
        let overrides = Overrides { controlnets: &controlnets, ..Overrides::default() };
        let model = Model::open(overrides.apply(ModelFiles::folder(&tiny).unwrap()).unwrap(), None).unwrap();
        let image = Arc::new(Image { width: 24, height: 16, rgb: picture(0, 16, 24) });
        let controls = vec![Control::new(image, &Start::Noise, &model.spec)];
        let model = Arc::new(model);
        draw(&model, Request { controls, steps: 2, ..Request::new("a fox", &model.spec) }).latents.values
    };
    assert_eq!(drawn(folder.path()), drawn(&file));
}

/// The plan once had no transfers of ControlNets.
#[test]
fn a_plan_says_which_tensors_of_a_controlnet_cross_between_devices() {
    let (model, _folders) = open(&["sd"]);
    let image = Arc::new(Image { width: 64, height: 64, rgb: picture(0, 64, 64) });
    let controls = vec![Control::new(image, &Start::Noise, &model.spec)];
    let request = Request { controls, steps: 3, width: 64, height: 64, ..Request::new("a fox", &model.spec) };
    let largest = Largest::of([&request], &model.spec).unwrap().unwrap();
    let calls = request.schedule(&model.spec).unwrap().steps.len() as u64;
    let plan = |controlnet: &str| {
        let map = format!(
            "devices = [\"cpu:0\", \"cpu:1\"]\n[components]\ntext_encoder = \"cpu:0\"\nunet = \"cpu:0\"\n\
                           vae = \"cpu:0\"\ncontrolnet = {controlnet}\n"
        );
        let map = DeviceMap::parse(&map, "map.toml").unwrap();
        Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap()
    };
    let of = |plan: &Plan, what: &str, from: &str| {
        let edges = plan.edges.iter().filter(|edge| edge.what == what && edge.from.to_string() == from);
        edges.map(|edge| edge.bytes_per_image).sum::<u64>()
    };
    let NetworkSpec::Unet(unet) = &model.spec.components[model.spec.denoiser()].network else { unreachable!() };
    let residuals = unet.feature_shapes([2, 8, 8]).iter().map(|shape| 4 * shape.elements() as u64).sum::<u64>();
    let apart = plan("\"cpu:1\"");
    assert_eq!(of(&apart, "residuals", "cpu:1"), calls * residuals);
    assert_eq!(of(&apart, "latents", "cpu:0"), calls * 4 * 4 * 8 * 8);
    let together = plan("\"cpu:0\"");
    assert_eq!(of(&together, "residuals", "cpu:0") + of(&together, "residuals", "cpu:1"), 0);
}
