//! Autoencoders that work in tiles, against what diffusers and torch computed in f32: `tests/reference/vae_tiling.py`.

use std::sync::Arc;

use sdshard::{
    backend::{self, Device, Precision},
    device_map::DeviceMap,
    models::{
        component::Stage,
        route::{NoHooks, Route},
    },
    pipeline::{
        Model,
        model::{Source, load},
        parts::Placed,
        request::{Request, Start, StartImage},
        stages,
        start::{channels_first, channels_last},
    },
    planner::{Largest, plan::Plan},
    tensor::Shape,
    weights::{ModelFiles, Weights},
};

use crate::{
    common::{formula, has_facts, pictures},
    golden::{ARENA, Golden, asked, close, draw},
    tiny_vae::{golden_folder, vae_folder, with},
};

const NAME: &str = "vae_tiling";

fn sd1() -> Model {
    Model::open_for_images(ModelFiles::folder(golden_folder("tiny-sd1")).unwrap(), None).unwrap()
}

/// Numbers that the reference has too, as we have them: channels last.
fn values(name: &str, [channels, height, width]: [usize; 3]) -> (Shape, Vec<f32>) {
    let shape = Shape::from([1, height, width, channels]);
    (shape, channels_last(&formula::weight("tiling", name, &[channels * height * width], 5.0), shape))
}

/// The network of a stage on the CPU, and what it gives in tiles, channels first, with the number of channels.
fn worked(model: &Model, stage: Stage, (shape, values): (Shape, Vec<f32>), scale: impl Fn(usize) -> usize) -> Vec<f32> {
    let id = model.spec.in_stage(stage).next().unwrap();
    let component = &model.spec.components[id];
    let device = Device::cpu(ARENA).unwrap();
    let route = Route::whole(&device, Precision::F32, component.network.sections().len());
    let weights = Weights::open(&model.files, &component.folder, None).unwrap();
    let placed: Placed = load(component, weights, &Source::resident(route)).unwrap();
    let tiles = model.spec.tiles(id);
    assert!(tiles.is_some());
    let out = match stage {
        Stage::Decode => stages::decode(&placed, tiles, shape, &values, &NoHooks),
        _ => stages::encode_image(&placed, tiles, shape, &values, &NoHooks),
    };
    let (out, [height, width]) = (out.unwrap(), [1, 2].map(|i| scale(shape.dims()[i])));
    channels_first(&out, Shape::from([1, height, width, out.len() / (height * width)]))
}

#[test]
fn tiles_of_an_autoencoder_are_joined_as_in_the_reference() {
    let (model, golden) = (sd1(), Golden::open(NAME));
    let decoded = worked(&model, Stage::Decode, values("latents", [4, 13, 12]), |n| 8 * n);
    close("decoded", &decoded, &golden.values("decoded"), 5e-6);
    let encoded = worked(&model, Stage::EncodeImage, values("pixels", [3, 104, 96]), |n| n / 8);
    close("encoded", &encoded, &golden.values("encoded"), 5e-6);
}

#[test]
fn tiles_of_a_tiny_autoencoder_are_laid_over_each_other_as_in_the_reference() {
    let (folder, golden) = (vae_folder(), Golden::open(NAME));
    let mut model = with(folder.path()).unwrap();
    model.spec = model.spec.with_image_encoder();
    for (name, [height, width]) in [("wide", [2, 64]), ("high", [60, 2]), ("both", [58, 59])] {
        let decoded = worked(&model, Stage::Decode, values(name, [4, height, width]), |n| 8 * n);
        // The reference's numbers are the last rows and columns.
        let (want, shape) = golden.get(&format!("{name}.decoded"));
        let (rows, columns) = (shape[2], shape[3]);
        let lines = decoded.chunks(8 * width).enumerate();
        let kept = lines.filter(|(line, _)| line % (8 * height) >= 8 * height - rows);
        let end: Vec<f32> = kept.flat_map(|(_, line)| &line[8 * width - columns..]).copied().collect();
        close(name, &end, &want, 5e-6);
    }
    let encoded = worked(&model, Stage::EncodeImage, values("tiny", [3, 16, 464]), |n| n / 8);
    close("encoded", &encoded, &golden.values("tiny.encoded"), 5e-6);
}

#[test]
fn pictures_with_tiles_are_the_references() {
    let (model, golden) = (Arc::new(sd1()), Golden::open(NAME));
    let request = Request { vae_tiling: true, ..asked(&golden, &model) };
    // As for all pictures that are drawn here, the arenas have the planned bytes.
    let rgb = draw(&model, request.clone()).image.unwrap().rgb;
    let off = rgb.iter().zip(golden.values("image")).map(|(a, b)| (f32::from(*a) - b).abs());
    assert!(off.fold(0.0, f32::max) <= 1.0, "a pixel is off by more than 1 of 255");
    let whole = draw(&model, Request { vae_tiling: false, ..request.clone() }).image.unwrap().rgb;
    assert!(whole.iter().zip(&rgb).any(|(a, b)| a.abs_diff(*b) > 2), "tiles make another picture");

    let (width, height) = (request.width, request.height);
    let start = StartImage::new(Arc::new(pictures::picture(width, height)), None, &model.spec);
    let start = Start::Image(StartImage { strength: 0.6, ..start });
    let picture = draw(&model, Request { start, ..request.clone() });
    close("img2img", &picture.latents.values, &golden.values("img2img.latents"), 1e-3);

    // A picture of one tile is not divided.
    let small = Request { width: 64, height: 64, ..request };
    let whole = Request { vae_tiling: false, ..small.clone() };
    assert_eq!(draw(&model, small).image.unwrap().rgb, draw(&model, whole).image.unwrap().rgb);
}

#[test]
fn a_plan_with_tiles_has_room_for_one_tile() {
    let model = sd1();
    let plan = |width: usize, height: usize, tiled: &[bool]| {
        let request = |&vae_tiling: &bool| Request { width, height, vae_tiling, ..Request::new("", &model.spec) };
        let requests: Vec<Request> = tiled.iter().map(request).collect();
        let largest = Largest::of(&requests, &model.spec).unwrap().unwrap();
        let map = "devices = [\"cpu:0\", \"cpu:1\"]\n[components]\ntext_encoder = \"cpu:0\"\nunet = \"cpu:0\"\n\
                   vae = \"cpu:1\"\nvae_encoder = \"cpu:1\"\n";
        let map = DeviceMap::parse(map, "map.toml").unwrap();
        Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap()
    };
    let bytes = |width, height, tiled: &[bool]| plan(width, height, tiled).devices[1].activation_bytes;
    let (tile, tiled, whole) = (bytes(64, 64, &[false]), bytes(256, 192, &[true]), bytes(256, 192, &[false]));
    assert_eq!(tiled, tile);
    assert!(whole > 10 * tile, "{whole} {tile}");
    // One request without tiles needs room for a whole picture.
    assert_eq!(bytes(256, 192, &[true, false]), whole);
}

#[test]
fn a_model_without_a_size_of_tiles_refuses_them() {
    for (size, is_fine) in [("64", true), ("96", true), ("72", false), ("[64, 64]", false)] {
        let folder = crate::common::copy_of_tiny();
        let config = folder.path().join("model/vae/config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains("\"sample_size\": 64"));
        std::fs::write(&config, text.replace("\"sample_size\": 64", &format!("\"sample_size\": {size}"))).unwrap();
        let model = Model::open(ModelFiles::folder(folder.path().join("model")).unwrap(), None).unwrap();
        let request = Request { vae_tiling: true, ..Request::new("", &model.spec) };
        match request.check(&model.spec) {
            Ok(()) => assert!(is_fine, "{size}"),
            Err(error) => has_facts(size, &error.to_string(), &["vae_tiling", "no size of tiles", "sample_size"]),
        }
        assert!(Request::new("", &model.spec).check(&model.spec).is_ok());
    }
}
