//! The shipped device maps and two hundred random ones, of every form that is served: each draws the pictures of a single
//! device to the bit, keeps to the bytes of its plan, and comes to an end.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use crate::common::{
    controlnet, formula,
    maps::{Random, shipped_for_cpus},
    model,
    pictures::{inpainting_folder, mask, picture},
};
use sdshard::{
    backend,
    device_map::DeviceMap,
    engine::Engine,
    models::{single_file::Overrides, spec::ModelSpec},
    pipeline::{
        Model, Picture,
        request::{Control, Request, Start, StartImage},
    },
    planner::{Largest, plan::Plan},
    weights::ModelFiles,
};

const MAPS: u64 = 200;
/// More than any of these takes on a slow machine; whoever needs longer waits for itself.
const DEADLINE: Duration = Duration::from_secs(120);

fn requests(spec: &ModelSpec) -> Vec<Request> {
    let mut requests = Vec::new();
    for (i, (prompt, guidance_scale)) in [("a fox", 5.0), ("an owl", 1.0), ("a fox", 3.0)].into_iter().enumerate() {
        let request = Request::new(prompt, spec);
        requests.push(Request { seed: i as u64, steps: 2, width: 40, height: 24, guidance_scale, ..request });
    }
    requests
}

/// The same from a picture, of which some keep what is outside a mask.
fn requests_from_pictures(spec: &ModelSpec, are_masked: [bool; 3]) -> Vec<Request> {
    let (image, mask) = (Arc::new(picture(40, 24)), Arc::new(mask(40, 24)));
    let start = |is_masked: bool| {
        let start = StartImage::new(image.clone(), is_masked.then(|| mask.clone()), spec);
        Start::Image(StartImage { strength: 0.7, ..start })
    };
    let scheduler = Some("euler-ancestral".parse().unwrap());
    let of = |(request, is_masked)| Request { start: start(is_masked), steps: 3, scheduler, ..request };
    requests(spec).into_iter().zip(are_masked).map(of).collect()
}

/// Draws with a map, and compares the arenas with the plan.
fn draw(model: &Arc<Model>, requests: Vec<Request>, text: &str) -> Vec<Picture> {
    let map = DeviceMap::parse(text, "map.toml").unwrap_or_else(|e| panic!("{e}\n{text}"));
    let largest = Largest::of(&requests, &model.spec).unwrap().unwrap();
    let plan =
        Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let engine = Engine::load(model.clone(), &plan).unwrap();
    let tickets: Vec<_> = requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let pictures = tickets.into_iter().map(|ticket| ticket.wait().unwrap()).collect();
    // Who comes first to which replica, place and batch is not known.
    let one = |(_, places): (_, &Vec<_>)| places.len() == 1;
    let surely_all = matches!(plan.replicas.as_slice(), [only] if only.batch == 1 && only.placement.iter().all(one));
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_bytes()) {
        assert_eq!(planned.id, id);
        let planned = planned.activation_bytes as usize;
        assert!(peak <= planned, "{id} used {peak} bytes of {planned} planned\n{text}");
        assert!(peak == planned || !surely_all, "{id} used {peak} bytes, {planned} were planned\n{text}");
    }
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_weight_bytes()) {
        let planned = (planned.weight_bytes + planned.visitor_bytes) as usize;
        assert!(peak <= planned, "{id} had {peak} bytes of weights, {planned} were planned\n{text}");
    }
    pictures
}

#[test]
fn every_map_draws_the_same_pictures_in_its_planned_bytes() {
    let model = model();
    every_map_is_right_for(&model, &requests(&model.spec));
}

#[test]
fn every_map_draws_the_same_pictures_from_pictures_in_its_planned_bytes() {
    let model = Arc::new(Model::open_for_images(model().files.clone(), None).unwrap());
    every_map_is_right_for(&model, &requests_from_pictures(&model.spec, [false, true, false]));
}

#[test]
fn every_map_draws_the_same_pictures_of_an_inpainting_model_in_its_planned_bytes() {
    let folder = inpainting_folder();
    let model = Arc::new(Model::open(ModelFiles::folder(folder.path()).unwrap(), None).unwrap());
    every_map_is_right_for(&model, &requests_from_pictures(&model.spec, [true; 3]));
}

#[test]
fn every_map_draws_the_same_pictures_of_sdxl_in_its_planned_bytes() {
    let folder = formula::folder("tiny-sdxl");
    let model = Arc::new(Model::open(ModelFiles::folder(folder.path()).unwrap(), None).unwrap());
    every_map_is_right_for(&model, &requests(&model.spec));
}

#[test]
fn every_map_draws_the_same_pictures_with_a_controlnet_in_its_planned_bytes() {
    let folder = controlnet::folder_of("sd");
    let controlnets = [folder.path().to_owned()];
    let overrides = Overrides { controlnets: &controlnets, ..Overrides::default() };
    let model = Arc::new(Model::open(overrides.apply(model().files.clone()).unwrap(), None).unwrap());
    let image = Arc::new(picture(40, 24));
    let control = Control { end: 0.8, ..Control::new(image, &Start::Noise, &model.spec) };
    let of = |request: Request| Request { controls: vec![control.clone()], ..request };
    every_map_is_right_for(&model, &requests(&model.spec).into_iter().map(of).collect::<Vec<_>>());
}

fn every_map_is_right_for(model: &Arc<Model>, requests: &[Request]) {
    let want = draw(model, requests.to_vec(), "strategy = \"single\"");
    assert!(want[0].image != want[1].image && want[0].image != want[2].image);

    for (name, map) in shipped_for_cpus() {
        is_right(name, map, model, requests, &want);
    }
    let mut forms = [0; 8];
    for seed in 0..MAPS {
        let text = Random(seed).map(&model.spec);
        for (form, count) in
            ["shards", "negative", "[[replica]]", "in_flight = 3", "[\"cpu:0\", \"cpu:1\"]\n", "host", "disk", "batch"]
                .iter()
                .zip(&mut forms)
        {
            *count += usize::from(text.contains(form));
        }
        is_right(&format!("seed {seed}"), &text, model, requests, &want);
    }
    assert!(forms.iter().all(|count| *count >= 20), "every form is tried often: {forms:?}");
}

/// Draws with a map in time, and compares the pictures.
fn is_right(name: &str, map: &str, model: &Arc<Model>, requests: &[Request], want: &[Picture]) {
    let (done, result) = mpsc::channel();
    let (model, requests, text) = (model.clone(), requests.to_vec(), map.to_owned());
    let worker = std::thread::spawn(move || done.send(draw(&model, requests, &text)));
    match result.recv_timeout(DEADLINE) {
        Ok(got) => {
            for (got, want) in got.iter().zip(want) {
                let is_same = got.image == want.image && got.latents == want.latents;
                assert!(is_same, "{name}: another picture\n{map}");
            }
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name}: this map does not come to an end\n{map}"),
        // It panicked, and has said why.
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            panic!("{name}: {:?}\n{map}", worker.join().err().map(|_| "failed"))
        }
    }
}
