//! Real code on small random-weight pipelines, and on the built-in model, against what diffusers and torch computed in
//! f32: `tests/reference/` makes the numbers. Both sides read the same weights and draw the same noise.
//!
//! The bounds are relative to the largest value of what is compared, and stand in `docs/accuracy.md` with their
//! reasons: parts by [`bound`], latents after ten steps to 1e-3, since sums are taken in another order there and ten
//! steps with guidance 7.5 magnify the difference, pictures to one step of 255.

use std::{fmt::Write, sync::Arc};

use crate::common;
use safetensors::{Dtype, SafeTensors};
use sdshard::{
    backend::{self, Device, DeviceKind, Precision},
    device_map::DeviceMap,
    engine::Engine,
    models::{
        clip::EncodedText,
        network::Network,
        route::{PersistentArenas, Route},
        unet::Condition,
    },
    pipeline::{
        Model, Picture,
        model::{Source, load},
        request::{Output, Request, Rng},
        start::{channels_first, channels_last},
    },
    planner::{Largest, plan::Plan},
    scheduler::{NoiseLevel, SchedulerConfig, SchedulerKind, schedule, schedule_from},
    tensor::{Shape, Tensor},
    weights::{ModelFiles, Weights},
};
use serde_json::Value;

const TINY: [&str; 2] = ["tiny-sd1", "tiny-sd2"];
pub(crate) const ARENA: usize = 256 << 20;

/// The golden files' name for each scheduler, and sdshard's.
const SCHEDULERS: [(&str, &str); 6] = [
    ("pndm", "pndm"),
    ("ddim", "ddim"),
    ("euler", "euler"),
    ("euler_ancestral", "euler-ancestral"),
    ("dpmpp_2m", "dpm++2m"),
    ("dpmpp_2m_karras", "dpm++2m-karras"),
];

fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Tensors that the reference made.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        Self(std::fs::read(golden(&format!("{name}.safetensors"))).expect("the golden files are in the repository"))
    }

    /// Values as f32 and the shape.
    pub(crate) fn get(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let file = SafeTensors::deserialize(&self.0).expect("a golden file is well-formed");
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no golden tensor {name}"));
        let bytes = tensor.data();
        let values = match tensor.dtype() {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
            Dtype::U8 => bytes.iter().map(|b| f32::from(*b)).collect(),
            other => panic!("{name} is {other:?}"),
        };
        (values, tensor.shape().to_vec())
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        self.get(name).0
    }

    pub(crate) fn text(&self, key: &str) -> String {
        let (_, metadata) = SafeTensors::read_metadata(&self.0).expect("a golden file is well-formed");
        metadata.metadata().as_ref().and_then(|m| m.get(key)).unwrap_or_else(|| panic!("no metadata {key}")).clone()
    }

    /// A feature map as we have it: channels last.
    pub(crate) fn feature_map(&self, device: &Device, name: &str) -> Tensor {
        let (values, shape) = self.get(name);
        let &[batch, channels, height, width] = shape.as_slice() else { panic!("{name} is {shape:?}") };
        let shape = Shape::from([batch, height, width, channels]);
        Tensor::new(device, shape, &channels_last(&values, shape)).unwrap()
    }
}

/// The largest difference, in units of the largest expected value. NaN where one of them is.
fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len(), "the number of values");
    let scale = want.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
    let differences = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    // Unlike `max`, a sum keeps a NaN.
    if differences.clone().sum::<f32>().is_nan() { f32::NAN } else { differences.fold(0.0, f32::max) / scale }
}

#[track_caller]
pub(crate) fn close(what: &str, got: &[f32], want: &[f32], bound: f32) {
    let difference = difference(got, want);
    println!("{what}: {difference:.2e} of {bound:.1e}");
    assert!(difference <= bound, "{what}: off by {difference:.2e} of the largest value, {bound:.1e} is allowed");
}

/// A feature map as the reference has it: channels first.
pub(crate) fn first(x: &Tensor) -> Vec<f32> {
    channels_first(&x.read().unwrap(), x.shape())
}

fn model(name: &str) -> Model {
    Model::open(ModelFiles::folder(golden(name)).unwrap(), None).unwrap()
}

/// A component of a model, all of it on one device.
pub(crate) fn loaded(name: &str, device: &Device, dtype: Precision, model: &Model) -> (Arc<Network>, Route) {
    let component = &model.spec.components[model.spec.component(name).unwrap()];
    let weights = Weights::open(&model.files, &component.folder, None).unwrap();
    let route = Route::whole(device, dtype, component.network.sections().len());
    (load(component, weights, &Source::resident(route.clone())).unwrap().network, route)
}

/// How far a component may be from the reference in a type.
///
/// In 16 bits every op rounds its result. Errors have either sign and so add up like a random pass, with the root of
/// their number: two roundings of the largest value were seen to come out of a text encoder, four out of a UNet, most
/// of whose ops stand on small branches, and five out of a VAE, whose every op is on the way. Twice that is allowed. In
/// f32 sums are taken in another order, which was seen to make 1.3e-6 at most.
pub(crate) fn bound(dtype: Precision, component: &str) -> f32 {
    let rounding = match dtype {
        Precision::F16 => 2f32.powi(-11),
        Precision::BF16 => 2f32.powi(-8),
        Precision::F32 => return 5e-6,
        // Twice what was seen of products that round their inputs and weights to 8 bits.
        Precision::Int8 => {
            return match component {
                "text_encoder" => 2e-2,
                "unet" => 5.5e-2,
                _ => 3.2e-2,
            };
        }
    };
    let roundings = match component {
        "text_encoder" => 4.0,
        "unet" => 8.0,
        _ => 10.0,
    };
    roundings * rounding
}

/// Whether a part of a component is as near to the reference as its type allows, and no nearer: what is within the
/// bound of the next finer type was not computed in this one.
#[track_caller]
pub(crate) fn as_close_as_its_type(
    what: &str,
    device: &Device,
    dtype: Precision,
    component: &str,
    got: &[f32],
    want: &[f32],
) {
    close(what, got, want, bound(dtype, component));
    if device.input_type(dtype) != dtype.dtype() {
        return; // Less is rounded than on a GPU, in layers of f16 files nothing.
    }
    let finer = match dtype {
        Precision::BF16 => Precision::F16,
        Precision::F16 => Precision::F32,
        Precision::F32 | Precision::Int8 => return,
    };
    assert!(difference(got, want) > bound(finer, component), "{what}: so near that it was computed in {finer}");
}

/// A tiny model on a device of this machine in a type that it computes in.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) device: Device,
    pub(crate) dtype: Precision,
    /// The device and the type in words.
    pub(crate) on: String,
}

/// Each of them; what is not here, conformance says.
fn parts() -> Vec<Part> {
    parts_of(&TINY)
}

/// These models on every device in every type.
pub(crate) fn parts_of(names: &[&'static str]) -> Vec<Part> {
    let devices = devices();
    let mut parts = Vec::new();
    for &name in names {
        for (words, device) in &devices {
            for dtype in Precision::ALL.into_iter().filter(|dtype| device.input_type(*dtype).is_some()) {
                parts.push(Part { name, device: device.clone(), dtype, on: format!("{words} in {dtype}") });
            }
        }
    }
    parts
}

/// The CPU, every other device, and the first adapter as one that knows no f16 and keeps it in words.
fn devices() -> Vec<(String, Device)> {
    let others: Vec<_> = backend::visible().iter().map(|d| d.id).filter(|id| id.kind != DeviceKind::Cpu).collect();
    let others = backend::open(&others).expect("visible devices open");
    let named = |device: Device| (device.id().to_string(), device);
    let mut devices: Vec<_> = others.into_iter().map(named).chain(without_f16()).collect();
    for (_, device) in &devices {
        device.reserve(ARENA).unwrap();
    }
    devices.insert(0, named(Device::cpu(ARENA).unwrap()));
    devices
}

#[cfg(feature = "wgpu")]
fn without_f16() -> Option<(String, Device)> {
    use sdshard::backend::{
        DeviceId,
        wgpu::{Capabilities, open_with},
    };
    let id = DeviceId::new(DeviceKind::Wgpu, 0);
    backend::visible().iter().find(|device| device.id == id)?;
    let opened = open_with(id, 0, |had| Capabilities { f16: false, ..had }).expect("a visible device opens");
    Some((format!("{id} without f16"), opened.device(id)))
}

#[cfg(not(feature = "wgpu"))]
fn without_f16() -> Option<(String, Device)> {
    None
}

#[test]
fn the_page_on_accuracy_states_the_bound_of_every_component() {
    let mut table = String::from("| component | f32 | f16 | bf16 | int8 |\n|---|---|---|---|---|\n");
    for component in ["text_encoder", "unet", "vae"] {
        let [f32, f16, bf16, int8] = Precision::ALL.map(|dtype| bound(dtype, component));
        writeln!(table, "| `{component}` | {f32:.1e} | {f16:.1e} | {bf16:.1e} | {int8:.1e} |").unwrap();
    }
    common::page::has_table("docs/accuracy.md", "components", &table);
}

#[test]
fn a_difference_is_seen() {
    assert!(difference(&[1.0, 2.0], &[1.0, 2.1]) > 0.04);
    assert!(difference(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
    assert!(difference(&[f32::NAN, 1.0], &[1.0, 1.0]).is_nan());
}

#[test]
fn text_features_match_the_reference() {
    for Part { name, device, dtype, on } in parts() {
        let (model, golden) = (model(name), Golden::open(name));
        let prompts: Vec<String> = serde_json::from_str(&golden.text("prompts")).unwrap();
        let ids: Vec<Vec<u32>> = prompts.iter().map(|text| model.tokenizers[0].encode(text).unwrap().ids).collect();
        let flat: Vec<f32> = ids.iter().flatten().map(|id| *id as f32).collect();
        assert_eq!(flat, golden.values("text.ids"), "{name}");

        let (network, route) = loaded("text_encoder", &device, dtype, &model);
        let features = network.text_encoder().forward(&ids, 0, &route.pass()).unwrap().features.read().unwrap();
        let what = format!("{name} text on {on}");
        as_close_as_its_type(&what, &device, dtype, "text_encoder", &features, &golden.values("text.output"));
    }
}

/// The conditioning by a text of one text encoder.
fn plain_condition(features: Vec<f32>) -> Condition {
    let text = [EncodedText { features, pooled: Vec::new() }].into();
    Condition { text, numbers: Vec::new(), guidance_scale: 1.0, beside: Vec::new() }
}

#[test]
fn one_unet_call_matches_the_reference() {
    for Part { name, device, dtype, on } in parts() {
        let (model, golden) = (model(name), Golden::open(name));
        let (network, route) = loaded("unet", &device, dtype, &model);
        let unet = network.denoiser();
        let keeps = PersistentArenas::new(vec![device.persistent_arena(ARENA).unwrap()]);
        for size in ["even", "odd"] {
            let part = |part: &str| format!("unet.{size}.{part}");
            let (context, shape) = golden.get(&part("context"));
            let texts = context.chunks(shape[1] * shape[2]).map(|text| plain_condition(text.to_vec()));
            let texts = unet.condition(&texts.collect::<Vec<_>>(), &route.pass(), &keeps).unwrap();
            let time = unet.time_features(golden.values(&part("timestep"))[0], &device).unwrap();
            let latents = golden.feature_map(&device, &part("latents"));
            let out = unet.forward(&latents, &time, &texts, &[], &route.pass()).unwrap();
            let (what, want) = (format!("{name} unet {size} on {on}"), golden.values(&part("output")));
            as_close_as_its_type(&what, &device, dtype, "unet", &first(&out), &want);
        }
    }
}

#[test]
fn the_vae_decodes_and_encodes_as_the_reference() {
    for Part { name, device, dtype, on } in parts() {
        let (mut model, golden) = (model(name), Golden::open(name));
        model.spec = model.spec.with_image_encoder();
        let (network, route) = loaded("vae", &device, dtype, &model);
        for size in ["even", "odd"] {
            let latents = golden.feature_map(&device, &format!("vae.decode.{size}.latents"));
            let out = network.decoder().forward(latents, &route.pass()).unwrap();
            let want = golden.values(&format!("vae.decode.{size}.output"));
            let what = format!("{name} vae decode {size} on {on}");
            as_close_as_its_type(&what, &device, dtype, "vae", &first(&out), &want);
        }

        let (network, route) = loaded("vae_encoder", &device, dtype, &model);
        let image = golden.feature_map(&device, "vae.encode.image");
        let moments = network.image_encoder().forward(image, &route.pass()).unwrap();
        let want = golden.values("vae.encode.mean");
        let (what, means) = (format!("{name} vae encode on {on}"), &first(&moments)[..want.len()]);
        as_close_as_its_type(&what, &device, dtype, "vae", means, &want);
    }
}

/// Draws one picture through the engine, in the reference's type, on the devices that are the default.
pub(crate) fn draw(model: &Arc<Model>, request: Request) -> Picture {
    draw_with(model, request, "dtype = \"f32\"")
}

/// The request that the texts of a golden file describe.
pub(crate) fn asked(golden: &Golden, model: &Model) -> Request {
    let number = |key: &str| golden.text(key).parse::<usize>().unwrap();
    Request {
        seed: number("seed") as u64,
        steps: number("steps"),
        width: number("width"),
        height: number("height"),
        ..Request::new(golden.text("prompt"), &model.spec)
    }
}

/// Draws the latents of a picture on each device by itself, in the reference's type, and compares them. What a decoder
/// makes of them is compared elsewhere.
pub(crate) fn close_on_each_device(what: &str, model: &Arc<Model>, request: &Request, want: &[f32]) {
    for device in backend::visible() {
        let map = format!("dtype = \"f32\"\ndevices = [\"{}\"]", device.id);
        let request = Request { output: Output::Latents, ..request.clone() };
        let latents = loaded_with(model, &request, &map).1.submit(request).unwrap().wait().unwrap().latents.values;
        close(&format!("{what} on {}", device.id), &latents, want, 1e-3);
    }
}

/// The plan of a device map for a request, and an engine for it.
fn loaded_with(model: &Arc<Model>, request: &Request, map: &str) -> (Plan, Engine) {
    let largest = Largest::of([request], &model.spec).unwrap().unwrap();
    let map = DeviceMap::parse(map, "map.toml").unwrap();
    let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap();
    let engine = Engine::load(model.clone(), &plan).unwrap();
    (plan, engine)
}

/// Draws one picture with a device map, in the planned bytes. Those of offloaded weights are the most that there may be.
pub(crate) fn draw_with(model: &Arc<Model>, request: Request, map: &str) -> Picture {
    let (plan, engine) = loaded_with(model, &request, map);
    let picture = engine.submit(request).unwrap().wait().unwrap();
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_bytes()) {
        assert_eq!((planned.id, planned.activation_bytes), (id, peak as u64), "planned and measured arena bytes");
    }
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_weight_bytes()) {
        let (most, peak) = (planned.weight_bytes + planned.visitor_bytes, peak as u64);
        assert!(
            peak == most || planned.visitor_bytes > 0 && peak < most,
            "{id}: {peak} bytes of weights, {most} planned"
        );
    }
    picture
}

#[test]
fn latents_after_ten_steps_match_the_reference_with_every_scheduler() {
    for name in TINY {
        let (model, golden) = (Arc::new(model(name)), Golden::open(name));
        let number = |key: &str| golden.text(key).parse::<f32>().unwrap();
        for (key, kind) in SCHEDULERS {
            let kind: SchedulerKind = kind.parse().unwrap();
            let config = model.spec.scheduler_for(Some(kind)).unwrap();
            let schedule = schedule(&config, number("steps") as usize).unwrap();
            let timesteps: Vec<f32> = schedule.steps.iter().map(|step| step.timestep).collect();
            close(&format!("{name} {key} timesteps"), &timesteps, &golden.values(&format!("{key}.timesteps")), 1e-6);
            let sigma = golden.values(&format!("{key}.init_noise_sigma"));
            close(&format!("{name} {key} first sigma"), &[schedule.init_noise_sigma], &sigma, 1e-6);

            for guidance in ["guided", "unguided"] {
                let request = Request {
                    negative_prompt: Some(golden.text("negative_prompt")),
                    seed: number("seed") as u64,
                    steps: number("steps") as usize,
                    guidance_scale: number(guidance),
                    scheduler: Some(kind),
                    width: number("width") as usize,
                    height: number("height") as usize,
                    ..Request::new(golden.text("prompt"), &model.spec)
                };
                let picture = draw(&model, request);
                let want = golden.values(&format!("{key}.latents.{guidance}"));
                close(&format!("{name} {key} {guidance}"), &picture.latents.values, &want, 1e-3);
                if key == "pndm" && guidance == "guided" {
                    let image = picture.image.unwrap();
                    let off = image.rgb.iter().zip(golden.values("pndm.image")).map(|(a, b)| (f32::from(*a) - b).abs());
                    assert!(off.fold(0.0, f32::max) <= 1.0, "{name}: a pixel is off by more than 1 of 255");
                }
            }
        }
    }
}

/// A map in which the CPU alone computes in this type.
fn on_the_cpu(dtype: Precision, convolution: &str, unet: &str) -> String {
    format!("dtype = \"{dtype}\"\nconvolution = \"{convolution}\"\ndevices = [\"cpu\"]\n[components]\nunet = {unet}")
}

#[test]
fn narrower_types_on_the_cpu_give_nearly_the_latents_of_f32() {
    for name in TINY {
        let (model, golden) = (Arc::new(model(name)), Golden::open(name));
        let request = Request { guidance_scale: 3.0, ..asked(&golden, &model) };
        for convolution in ["direct", "winograd"] {
            let draw =
                |dtype| draw_with(&model, request.clone(), &on_the_cpu(dtype, convolution, "\"cpu\"")).latents.values;
            let want = draw(Precision::F32);
            for (dtype, bounds) in
                [(Precision::F16, 0.0..2e-3), (Precision::BF16, 2e-3..2e-2), (Precision::Int8, 2e-3..4e-2)]
            {
                let off = difference(&draw(dtype), &want);
                println!("{name} {convolution} {dtype}: {off:e}");
                assert!(bounds.contains(&off), "{name} {convolution} {dtype}: {off:e}");
            }
        }
    }
}

/// Widening is exact: weights of f16 files have the same values in f16 and f32.
#[test]
fn the_cpu_draws_the_same_bits_wherever_weights_are_kept_and_those_of_f32_in_f16() {
    let files = ModelFiles::folder(format!("{}/models/emoji", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let model = Arc::new(Model::open(files, None).unwrap());
    let request = Request { steps: 2, width: 64, height: 64, ..Request::new("a red apple", &model.spec) };
    let draw = |dtype, unet: &str| draw_with(&model, request.clone(), &on_the_cpu(dtype, "direct", unet));
    let latents = |dtype| draw(dtype, "\"cpu\"").latents.values;
    let wide = latents(Precision::F32);
    for dtype in [Precision::F16, Precision::BF16, Precision::Int8] {
        let want = latents(dtype);
        let off = difference(&want, &wide);
        println!("{dtype}: {off:e}");
        match dtype {
            Precision::F16 => assert!(want == wide),
            _ => assert!((5e-3..0.17).contains(&off), "{dtype}: {off:e}"),
        }
        for place in ["host", "disk"] {
            let got = draw(dtype, &format!("{{ execute = \"cpu\", reside = \"{place}\" }}"));
            assert!(got.latents.values == want, "{dtype}, {place}");
            assert_eq!(got.dtypes, [dtype]);
        }
    }
}

#[test]
fn latents_with_a_layer_of_the_text_encoder_left_out_match_the_reference() {
    let golden = Golden::open("clip_skip");
    let number = |key: &str| golden.text(key).parse::<f32>().unwrap();
    for name in TINY {
        let model = Arc::new(model(name));
        let request = Request {
            seed: number("seed") as u64,
            steps: number("steps") as usize,
            width: number("width") as usize,
            height: number("height") as usize,
            clip_skip: number("clip_skip") as usize,
            ..Request::new(golden.text("prompt"), &model.spec)
        };
        let full = draw(&model, Request { clip_skip: 0, ..request.clone() });
        let latents = draw(&model, request).latents.values;
        close(&format!("{name} clip skip"), &latents, &golden.values(name), 1e-3);
        assert!(difference(&full.latents.values, &latents) > 1e-2, "{name}: the layer makes a difference");
    }
}

#[test]
fn the_built_in_model_draws_what_the_reference_draws() {
    let files = ModelFiles::folder(format!("{}/models/emoji", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (model, golden) = (Arc::new(Model::open(files, None).unwrap()), Golden::open("emoji"));
    let texts: Vec<String> = serde_json::from_str(&golden.text("ids_of")).unwrap();
    for (i, text) in texts.iter().enumerate() {
        let ids: Vec<f32> = model.tokenizers[0].encode(text).unwrap().ids.iter().map(|id| *id as f32).collect();
        assert_eq!(ids, golden.values(&format!("ids.{i}")), "{text:?}");
    }
    let number = |key: &str| golden.text(key).parse::<f32>().unwrap();
    let defaults = &model.spec.defaults;
    assert_eq!((defaults.steps, defaults.guidance_scale), (number("steps") as usize, number("guidance")));
    assert_eq!((defaults.height, defaults.width), (number("height") as usize, number("width") as usize));
    let request = Request { seed: number("seed") as u64, ..Request::new(golden.text("prompt"), &model.spec) };
    let picture = draw(&model, request);
    close("emoji latents", &picture.latents.values, &golden.values("latents"), 2e-3);
    let want = golden.values("image");
    let got = picture.image.unwrap().rgb;
    let mean = got.iter().zip(&want).map(|(a, b)| (f32::from(*a) - b).abs()).sum::<f32>() / want.len() as f32;
    println!("emoji picture: mean difference {mean:.4} of 255");
    assert!(mean < 0.5, "the picture differs by {mean} of 255 on average");
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(golden(name)).expect("the golden files are in the repository");
    serde_json::from_str(&text).expect("a golden file is well-formed")
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

#[test]
fn noise_is_torchs_own_to_a_millionth() {
    let file = json("noise.json");
    let seed = |row: &Value| row["seed"].as_str().unwrap().parse::<u64>().unwrap();
    let compare = |what: &str, got: &[f32], row: &Value| {
        let near = |got: &[f32], want: &Value| {
            let want = floats(want);
            assert_eq!(got.len(), want.len(), "{what}");
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0)), "{what}: {got:?}");
        };
        match row.get("values") {
            Some(values) => near(got, values),
            None => {
                let (first, last) = (&row["first"], &row["last"]);
                near(&got[..first.as_array().unwrap().len()], first);
                near(&got[got.len() - last.as_array().unwrap().len()..], last);
            }
        }
    };
    for row in file["single"].as_array().unwrap() {
        let count = row["n"].as_u64().unwrap() as usize;
        let got = Rng::TorchCpu.generator(seed(row)).normal(count);
        compare(&format!("seed {}, {count} values", seed(row)), &got, row);
    }
    for row in file["consecutive"].as_array().unwrap() {
        let mut generator = Rng::TorchCpu.generator(seed(row));
        for (i, call) in row["calls"].as_array().unwrap().iter().enumerate() {
            let got = generator.normal(call["n"].as_u64().unwrap() as usize);
            compare(&format!("seed {}, call {i}", seed(row)), &got, call);
        }
    }
}

#[test]
fn every_schedule_runs_as_the_reference() {
    let file = json("schedulers.json");
    let config = |row: &Value| {
        let name = row["kind"].as_str().unwrap();
        let mut config = file["config"].clone();
        config.as_object_mut().unwrap().extend(file["schedulers"][name].as_object().unwrap().clone());
        config["timestep_spacing"] = row["spacing"].clone();
        if let Some(prediction) = row.get("prediction") {
            config["prediction_type"] = prediction.clone();
        } else if row["kind"].as_str().unwrap().contains("zero SNR") {
            config["prediction_type"] = "v_prediction".into(); // some solvers refuse the noise as prediction
        }
        let config = SchedulerConfig::from_json(&config.to_string(), "scheduler_config.json").unwrap();
        assert_eq!(config.kind().to_string(), name.split(',').next().unwrap());
        config.with_eta(row["eta"].as_f64().unwrap_or(0.0))
    };
    for row in file["schedules"].as_array().unwrap() {
        let n = row["n"].as_u64().unwrap() as usize;
        let what = format!("{} {} {n}", row["kind"], row["spacing"]);
        let schedule = schedule(&config(row), n).unwrap_or_else(|e| panic!("{what}: {e}"));
        let timesteps: Vec<f32> = schedule.steps.iter().map(|step| step.timestep).collect();
        close(&format!("{what} timesteps"), &timesteps, &floats(&row["timesteps"]), 1e-6);
        close(&what, &[schedule.init_noise_sigma], &[row["init_noise_sigma"].as_f64().unwrap() as f32], 1e-6);
        let levels = |of: fn(&NoiseLevel) -> f32| schedule.steps.iter().map(|step| of(&step.level)).collect::<Vec<_>>();
        close(&format!("{what} pictures"), &levels(|level| level.picture), &floats(&row["picture"]), 1e-6);
        close(&format!("{what} noise"), &levels(|level| level.noise), &floats(&row["noise"]), 1e-6);
    }
    let first = floats(&file["first_noise"]);
    for row in file["runs"].as_array().unwrap() {
        let n = row["n"].as_u64().unwrap() as usize;
        let what =
            format!("{} {} {} {n} {} {}", row["kind"], row["spacing"], row["prediction"], row["eta"], row["strength"]);
        let strength = row["strength"].as_f64();
        let schedule = strength.map_or_else(|| schedule(&config(row), n), |s| schedule_from(&config(row), n, s));
        let schedule = schedule.unwrap_or_else(|e| panic!("{what}: {e}"));
        // A run from a picture begins with a grey of 0.5 and the noise of its first step.
        let level = match strength {
            Some(_) => schedule.steps[0].level,
            None => NoiseLevel { picture: 0.0, noise: schedule.init_noise_sigma },
        };
        let start = first.iter().map(|z| level.picture * 0.5 + level.noise * z).collect();
        let (mut generator, mut draws) = (Rng::TorchCpu.generator(12), 0);
        let network = |x: &[f32], t: f32| -> Vec<f32> { x.iter().map(|x| 0.3 * x + 0.1 * t.sin()).collect() };
        let fresh_noise = || {
            draws += 1;
            generator.normal(first.len())
        };
        let after = schedule.trace(start, network, fresh_noise);
        // The reference subtracts numbers as large as the first latents, which leaves their rounding error.
        let bound = 1e-4 + f32::EPSILON * schedule.init_noise_sigma;
        close(&what, after.last().unwrap(), &floats(&row["end"]), bound);
        // The reference draws noise of weight 0 at the last step, where it has no effect.
        let unused = u64::from(row["draws"].as_u64() > Some(draws) && schedule.steps.last().unwrap().noise == 0.0);
        assert_eq!(row["draws"], draws + unused, "{what}");
    }
}
