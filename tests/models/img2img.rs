//! Pictures that start from a picture, and those of which a mask keeps some, against what diffusers computed in f32:
//! `tests/reference/img2img.py`.

use std::{collections::HashMap, path::Path, sync::Arc};

use sdshard::{
    pipeline::{
        Model,
        request::{Request, Start, StartImage},
    },
    weights::ModelFiles,
};
use serde_json::Value;

use crate::{
    common::{
        formula,
        pictures::{inpainting_folder, mask, picture},
    },
    golden::{Golden, close, close_on_each_device, draw},
};

/// The models of the rows by their names, opened for pictures to start from, and the folders that they are in.
fn models() -> (HashMap<&'static str, Arc<Model>>, [tempfile::TempDir; 2]) {
    let open = |folder: &Path| {
        let files = ModelFiles::folder(folder).unwrap();
        Arc::new(Model::open_for_images(files, None).unwrap())
    };
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    let (sdxl, inpaint) = (formula::folder("tiny-sdxl"), inpainting_folder());
    let folders = [
        ("tiny-sd1", golden.join("tiny-sd1")),
        ("tiny-sd2", golden.join("tiny-sd2")),
        ("tiny-sdxl", sdxl.path().to_owned()),
        ("inpaint", inpaint.path().to_owned()),
    ];
    (folders.map(|(name, folder)| (name, open(&folder))).into(), [sdxl, inpaint])
}

/// The requests of the golden file, by their names, with the names of their models.
fn requests(golden: &Golden, models: &HashMap<&'static str, Arc<Model>>) -> Vec<(String, Arc<Model>, Request)> {
    let number = |key: &str| golden.text(key).parse::<f64>().unwrap();
    let rows: Value = serde_json::from_str(&golden.text("rows")).unwrap();
    let request = |(name, row): (&String, &Value)| {
        let model = &models[row["model"].as_str().unwrap()];
        let [width, height] = [0, 1].map(|i| row["size"][i].as_u64().unwrap() as usize);
        let mask = row.get("mask").map(|_| Arc::new(mask(width, height)));
        let start = StartImage::new(Arc::new(picture(width, height)), mask, &model.spec);
        let strength = row["strength"].as_f64().unwrap();
        if name.contains("default") {
            assert_eq!(start.strength, strength, "{name}");
        }
        let plain = Request::new(golden.text("prompt"), &model.spec);
        let (width, height) = start.image.drawn_size(8).unwrap();
        let request = Request {
            seed: number("seed") as u64,
            steps: number("steps") as usize,
            guidance_scale: row.get("guidance_scale").map_or(number("guidance_scale"), |v| v.as_f64().unwrap()) as f32,
            scheduler: row.get("scheduler").map(|kind| kind.as_str().unwrap().parse().unwrap()),
            start: Start::Image(StartImage { strength, ..start }),
            width,
            height,
            ..plain
        };
        (name.clone(), model.clone(), request)
    };
    rows.as_object().unwrap().iter().map(request).collect()
}

#[test]
fn pictures_from_pictures_match_the_reference_with_every_scheduler() {
    let (golden, (models, _folders)) = (Golden::open("img2img"), models());
    let requests = requests(&golden, &models);
    assert_eq!(requests.len(), 31);
    let mut images = 0;
    for (name, model, request) in requests {
        let drawn = draw(&model, request);
        close(&name, &drawn.latents.values, &golden.values(&format!("{name}.latents")), 1e-3);
        if ["img2img default", "img2img sdxl", "inpaint", "masked all steps"].contains(&name.as_str()) {
            images += 1;
            let (image, want) = (drawn.image.unwrap(), golden.values(&format!("{name}.image")));
            let off = image.rgb.iter().zip(want).map(|(a, b)| (f32::from(*a) - b).abs()).fold(0.0, f32::max);
            // Two for those behind a resize.
            assert!(
                off <= if name.starts_with("img2img") { 2.0 } else { 1.0 },
                "{name}: a pixel is off by {off} of 255"
            );
        }
    }
    assert_eq!(images, 4);
}

#[test]
fn each_device_draws_from_pictures_what_the_reference_draws() {
    let (golden, (models, _folders)) = (Golden::open("img2img"), models());
    let requests = requests(&golden, &models).into_iter();
    let some: Vec<_> = requests.filter(|(name, ..)| ["img2img default", "inpaint"].contains(&name.as_str())).collect();
    assert_eq!(some.len(), 2);
    for (name, model, request) in some {
        close_on_each_device(&name, &model, &request, &golden.values(&format!("{name}.latents")));
    }
}
