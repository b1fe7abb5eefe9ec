//! Real code on a small pipeline in the form of SDXL, against what diffusers and torch computed in f32:
//! `tests/reference/tiny_sdxl.py`.

use std::{path::Path, sync::Arc};

use sdshard::{
    backend::{DType, Device},
    models::{
        clip::EncodedText,
        network::Network,
        route::{PersistentArenas, Route},
        unet::Condition,
    },
    pipeline::{
        Model,
        model::{Source, load},
        request::{Request, RequestOptions},
    },
    tensor::Tensor,
    weights::{ModelFiles, Weights},
};
use serde_json::Value;

use crate::{
    common::formula,
    golden::{ARENA, Golden, bound, close, draw, first},
};

const NAME: &str = "tiny-sdxl";

fn open(folder: &Path) -> Model {
    Model::open(ModelFiles::folder(folder).unwrap(), None).unwrap()
}

/// A component of a model on the CPU.
fn loaded(name: &str, device: &Device, model: &Model) -> (Arc<Network>, Route) {
    let component = &model.spec.components[model.spec.component(name).unwrap()];
    let weights = Weights::open(&model.files, name, None).unwrap();
    let route = Route::whole(device, DType::F32, component.network.sections().len());
    (load(component, weights, &Source::resident(route.clone())).unwrap().network, route)
}

#[test]
fn both_text_encoders_match_the_reference() {
    let (folder, golden) = (formula::folder(NAME), Golden::open(NAME));
    let model = open(folder.path());
    let device = Device::cpu(ARENA).unwrap();
    let mut tokens = vec![Vec::new(); 77];
    // The first prompt is for the first encoder, the second for the second: only this one gives the pooled feature.
    for (index, (name, text)) in
        [("text_encoder", golden.text("prompt")), ("text_encoder_2", "oil painting".into())].into_iter().enumerate()
    {
        let (network, route) = loaded(name, &device, &model);
        let ids = model.tokenizers[index].encode(&text).unwrap().ids;
        assert_eq!(ids.last(), Some(&[999, 0][index]), "each tokenizer has its own padding");
        let output = network.text_encoder().forward(&[ids], 0, &route.pass()).unwrap();
        let features = output.features.read().unwrap();
        let width = features.len() / 77;
        tokens.iter_mut().zip(features.chunks(width)).for_each(|(all, row)| all.extend_from_slice(row));
        match output.pooled {
            Some(pooled) if index == 1 => {
                let bound = bound(DType::F32, "text_encoder");
                close("pooled", &pooled.read().unwrap(), &golden.values("text.pooled"), bound);
            }
            Some(_) => panic!("the first encoder gives no pooled feature"),
            None => assert_eq!(index, 0),
        }
    }
    close("features", &tokens.concat(), &golden.values("text.features"), bound(DType::F32, "text_encoder"));
}

/// One call of the UNet in one of its forms.
fn output_of(unet: &str, guidance_scale: f32) -> Vec<f32> {
    let (folder, golden) = (formula::folder_with(NAME, unet), Golden::open(NAME));
    let model = open(folder.path());
    let device = Device::cpu(ARENA).unwrap();
    let (network, route) = loaded("unet", &device, &model);
    let keeps = PersistentArenas::new(vec![device.persistent_arena(ARENA).unwrap()]);
    let ((context, shape), pooled) = (golden.get("unet.context"), golden.values("unet.pooled"));
    let texts = context.chunks(shape[1] * shape[2]).zip(pooled.chunks(40));
    let rows = texts.map(|(features, pooled)| Condition {
        text: [EncodedText { features: features.to_vec(), pooled: pooled.to_vec() }].into(),
        numbers: vec![96.0, 72.0, 0.0, 0.0, 96.0, 72.0],
        guidance_scale,
    });
    let texts = network.denoiser().condition(&rows.collect::<Vec<_>>(), &route.pass(), &keeps).unwrap();
    let time: Tensor = network.denoiser().time_features(37.25, &device).unwrap();
    let latents = golden.feature_map(&device, "unet.latents");
    first(&network.denoiser().forward(&latents, &time, &texts, &route.pass()).unwrap())
}

#[test]
fn one_call_of_the_unet_matches_the_reference_in_every_form() {
    let golden = Golden::open(NAME);
    for unet in ["unet", "pruned", "distilled"] {
        // The distilled network takes the guidance scale as an input, the others do not.
        let output = output_of(unet, 8.0);
        close(unet, &output, &golden.values(&format!("{unet}.output")), bound(DType::F32, "unet"));
        assert_eq!(output_of(unet, 7.0) == output, unet != "distilled", "{unet}");
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
        let request = options.or(&all).request(&model.spec, str::to_owned).unwrap();
        let picture = draw(&model, request);
        close(name, &picture.latents.values, &golden.values(&format!("{name}.latents")), 1e-3);
        if name == "plain" {
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
