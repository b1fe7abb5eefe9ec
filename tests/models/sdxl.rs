//! Real code on a small pipeline in the form of SDXL, against what diffusers and torch computed in f32:
//! `tests/reference/tiny_sdxl.py`.

use std::{path::Path, sync::Arc};

use sdshard::{
    backend::{Device, DeviceKind, Precision},
    models::{clip::EncodedText, route::PersistentArenas, unet::Condition},
    pipeline::{ImageFiles, Model, options::RequestOptions, request::Request},
    weights::ModelFiles,
};
use serde_json::Value;

use crate::{
    common::formula,
    golden::{
        ARENA, Golden, Part, as_close_as_its_type, bound, close, close_on_each_device, draw, first, loaded, parts_of,
    },
};

const NAME: &str = "tiny-sdxl";

fn open(folder: &Path) -> Model {
    Model::open(ModelFiles::folder(folder).unwrap(), None).unwrap()
}

#[test]
fn both_text_encoders_match_the_reference() {
    let (folder, golden) = (formula::folder(NAME), Golden::open(NAME));
    let model = open(folder.path());
    // Only the second encoder gives the pooled feature.
    let texts = [("text_encoder", golden.text("prompt")), ("text_encoder_2", "oil painting".into())];
    for Part { device, dtype, on, .. } in parts_of(&[NAME]) {
        let mut tokens = vec![Vec::new(); 77];
        for (index, (name, text)) in texts.iter().enumerate() {
            let (network, route) = loaded(name, &device, dtype, &model);
            let ids = model.tokenizers[index].encode(text).unwrap().ids;
            assert_eq!(ids.last(), Some(&[999, 0][index]), "each tokenizer has its own padding");
            let output = network.text_encoder().forward(&[ids], 0, &route.pass()).unwrap();
            let features = output.features.read().unwrap();
            let width = features.len() / 77;
            tokens.iter_mut().zip(features.chunks(width)).for_each(|(all, row)| all.extend_from_slice(row));
            assert_eq!(output.pooled.is_some(), index == 1);
            if let Some(pooled) = output.pooled {
                let (what, want) = (format!("pooled on {on}"), golden.values("text.pooled"));
                close(&what, &pooled.read().unwrap(), &want, bound(dtype, "text_encoder"));
            }
        }
        let (what, want) = (format!("features on {on}"), golden.values("text.features"));
        as_close_as_its_type(&what, &device, dtype, "text_encoder", &tokens.concat(), &want);
    }
}

/// One call of a UNet.
fn output_of(model: &Model, device: &Device, dtype: Precision, guidance_scale: f32) -> Vec<f32> {
    let golden = Golden::open(NAME);
    let (network, route) = loaded("unet", device, dtype, model);
    let keeps = PersistentArenas::new(vec![device.persistent_arena(ARENA).unwrap()]);
    let ((context, shape), pooled) = (golden.get("unet.context"), golden.values("unet.pooled"));
    let texts = context.chunks(shape[1] * shape[2]).zip(pooled.chunks(40));
    let rows = texts.map(|(features, pooled)| Condition {
        text: [EncodedText { features: features.to_vec(), pooled: pooled.to_vec() }].into(),
        numbers: vec![96.0, 72.0, 0.0, 0.0, 96.0, 72.0],
        guidance_scale,
        beside: Vec::new(),
    });
    let texts = network.denoiser().condition(&rows.collect::<Vec<_>>(), &route.pass(), &keeps).unwrap();
    let time = network.denoiser().time_features(37.25, device).unwrap();
    let latents = golden.feature_map(device, "unet.latents");
    first(&network.denoiser().forward(&latents, &time, &texts, &[], &route.pass()).unwrap())
}

#[test]
fn one_call_of_the_unet_matches_the_reference_in_every_form() {
    let golden = Golden::open(NAME);
    for unet in ["unet", "pruned", "distilled"] {
        let folder = formula::folder_with(NAME, unet);
        let (model, want) = (open(folder.path()), golden.values(&format!("{unet}.output")));
        // The forms differ in structure, not in operations: one of them is enough for the kernels of other devices.
        let is_tried = |part: &Part| unet == "unet" || part.device.id().kind == DeviceKind::Cpu;
        for Part { device, dtype, on, .. } in parts_of(&[NAME]).into_iter().filter(is_tried) {
            let output = output_of(&model, &device, dtype, 8.0);
            as_close_as_its_type(&format!("{unet} on {on}"), &device, dtype, "unet", &output, &want);
            // The distilled network takes the guidance scale as an input, the others do not.
            let other = output_of(&model, &device, dtype, 7.0);
            assert_eq!(other == output, unet != "distilled", "{unet} on {on}");
        }
    }
}

#[test]
fn pictures_match_the_reference() {
    let (folder, golden) = (formula::folder(NAME), Golden::open(NAME));
    let model = Arc::new(open(folder.path()));
    assert_eq!(model.spec.names(), ["text_encoder", "text_encoder_2", "unet", "vae"]);
    let defaults = &model.spec.defaults;
    assert_eq!((defaults.guidance_scale, defaults.width, defaults.height), (5.0, 128, 128));
    let rows: Value = serde_json::from_str(&golden.text("rows")).unwrap();
    let number = |key: &str| golden.text(key).parse::<usize>().unwrap();
    for (name, row) in rows.as_object().unwrap() {
        let options: RequestOptions = serde_json::from_value(row.clone()).unwrap();
        let all = RequestOptions {
            prompt: Some(golden.text("prompt")),
            seed: Some(number("seed") as u64),
            steps: Some(number("steps")),
            width: Some(number("width")),
            height: Some(number("height")),
            ..RequestOptions::default()
        };
        let request = options.or(&all).request(&model.spec, &ImageFiles::default(), str::to_owned).unwrap();
        let picture = draw(&model, request);
        close(name, &picture.latents.values, &golden.values(&format!("{name}.latents")), 1e-3);
        if name == "plain" {
            close_on_each_device(name, &model, &picture.request, &golden.values("plain.latents"));
            let image = picture.image.unwrap();
            let off = image.rgb.iter().zip(golden.values("plain.image")).map(|(a, b)| (f32::from(*a) - b).abs());
            assert!(off.fold(0.0, f32::max) <= 1.0, "a pixel is off by more than 1 of 255");
        }
    }
}

#[test]
fn a_request_asks_only_for_what_the_model_has() {
    let folder = formula::folder(NAME);
    let (sdxl, sd) = (open(folder.path()), crate::common::model());
    let check = |model: &Model, change: &dyn Fn(&mut Request)| {
        let mut request = Request::new("a fox", &model.spec);
        change(&mut request);
        request.check(&model.spec).map_err(|error| error.to_string())
    };
    check(&sdxl, &|request| request.prompt_2 = Some("a dog".into())).unwrap();
    let error = check(&sd, &|request| request.prompt_2 = Some("a dog".into())).unwrap_err();
    assert!(error.contains("prompt_2: this model has one text encoder"), "{error}");
    // The first encoder has three layers, of which the features come from the second at most.
    check(&sdxl, &|request| request.clip_skip = 1).unwrap();
    let error = check(&sdxl, &|request| request.clip_skip = 2).unwrap_err();
    assert!(error.contains("clip_skip: the text encoders can leave out 1 layers"), "{error}");
    let error = check(&sd, &|request| request.guidance_rescale = 1.5).unwrap_err();
    assert!(error.contains("guidance_rescale: a number from 0 to 1"), "{error}");
    // Without a negative prompt a model of SDXL has no such text at all.
    let none = Request::new("a fox", &sdxl.spec);
    assert_eq!(none.negative_text(&sdxl.spec), None);
    assert_eq!(none.options(&sdxl.spec).unwrap().negative_prompt, None);
    assert_eq!(none.negative_text(&sd.spec).unwrap().of(0), "");
    assert_eq!(none.options(&sd.spec).unwrap().negative_prompt, Some(String::new()));
}
