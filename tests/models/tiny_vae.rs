//! `AutoencoderTiny` (TAESD) against what diffusers and torch computed in f32: `tests/reference/tiny_vae.py`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use sdshard::{
    backend::{self, Device, DeviceId, DeviceKind, Precision, cpu::info, rules::Rules},
    models::{
        autoencoder::{AutoencoderSpec, Decoder, Encoder},
        network::{Network, NetworkSpec},
        route::Route,
        single_file::Overrides,
        spec::ComponentSpec,
        tiny_vae::TinyVaeSpec,
    },
    pipeline::{
        Model,
        model::{Source, load},
        request::{Request, Start, StartImage},
        start::{channels_first, channels_last},
    },
    tensor::Shape,
    weights::{ModelFiles, Scope, Weights},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    common::{formula, has_facts, pictures},
    golden::{Golden, Part, as_close_as_its_type, asked, close, draw, draw_with, parts_of},
};

const NAME: &str = "tiny-vae";
const FILE: &str = "diffusion_pytorch_model.safetensors";

pub(crate) fn golden_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A folder of the VAE.
pub(crate) fn vae_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden_folder(NAME).join("config.json"), folder.path().join("config.json")).unwrap();
    formula::write(&folder.path().join(FILE), &formula::tensors(NAME, "vae"));
    folder
}

/// The small model with another VAE.
pub(crate) fn with(vae: &Path) -> Result<Model, sdshard::Error> {
    let overrides = Overrides { vae: Some(vae), ..Overrides::default() };
    Model::open(overrides.apply(ModelFiles::folder(golden_folder("tiny-sd1")).unwrap())?, None)
}

fn loaded(model: &Model, name: &str, device: &Device, dtype: Precision) -> (Arc<Network>, Route) {
    let component = &model.spec.components[model.spec.component(name).unwrap()];
    let weights = Weights::open(&model.files, &component.folder, None).unwrap();
    let route = Route::whole(device, dtype, component.network.sections().len());
    (load(component, weights, &Source::resident(route.clone())).unwrap().network, route)
}

#[test]
fn latents_and_pictures_become_what_the_reference_makes_of_them() {
    let (folder, golden) = (vae_folder(), Golden::open(NAME));
    let mut model = with(folder.path()).unwrap();
    model.spec = model.spec.with_image_encoder();
    let input = |name: &str| {
        let (values, shape) = golden.get(name);
        let shape = Shape::from([shape[0], shape[2], shape[3], shape[1]]);
        (shape, channels_last(&values, shape))
    };
    for Part { device, dtype, on, .. } in parts_of(&[NAME]) {
        let (network, route) = loaded(&model, "vae", &device, dtype);
        let (shape, latents) = input("latents");
        let pixels = network.decoder().decode(shape, &latents, &route.pass()).unwrap();
        let pixels = channels_first(&pixels, Shape::from([2, 96, 72, 3]));
        as_close_as_its_type(&format!("decoded on {on}"), &device, dtype, "vae", &pixels, &golden.values("decoded"));

        let (network, route) = loaded(&model, "vae_encoder", &device, dtype);
        let (shape, pixels) = input("picture");
        let latents = network.image_encoder().encode(shape, &pixels, &route.pass()).unwrap();
        let latents = channels_first(&latents, Shape::from([1, 9, 7, 4]));
        as_close_as_its_type(&format!("encoded on {on}"), &device, dtype, "vae", &latents, &golden.values("encoded"));
    }
}

#[test]
fn a_picture_with_it_is_the_references_in_whatever_form_it_comes() {
    let (folder, golden) = (vae_folder(), Golden::open(NAME));
    let path = |name: &str| folder.path().join(name);
    // A model folder that has it, and one whose VAE is taken for another model.
    let own = path("model");
    let copy = |part: &str| {
        fs::create_dir_all(own.join(part)).unwrap();
        for file in fs::read_dir(golden_folder("tiny-sd1").join(part)).unwrap().map(Result::unwrap) {
            if file.path().is_file() {
                fs::copy(file.path(), own.join(part).join(file.file_name())).unwrap();
            }
        }
    };
    ["", "text_encoder", "unet", "scheduler", "tokenizer", "vae"].into_iter().for_each(copy);
    for file in ["config.json", FILE] {
        fs::copy(path(file), own.join("vae").join(file)).unwrap();
    }
    let index = own.join("model_index.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    json["vae"][1] = json!("AutoencoderTiny");
    fs::write(&index, json.to_string()).unwrap();
    // TAESD's own file has the decoder alone, whose layers it counts from the clamp of the latents.
    let tensors = formula::tensors(NAME, "vae").into_iter().filter_map(|(name, tensor)| {
        let (layer, rest) = name.strip_prefix("decoder.layers.")?.split_once('.')?;
        Some((format!("{}.{rest}", layer.parse::<usize>().unwrap() + 1), tensor))
    });
    let taesd = path("taesd_decoder.safetensors");
    formula::write(&taesd, &tensors.collect());

    let of_folder = Model::open(ModelFiles::folder(&own).unwrap(), None);
    let own_identity = of_folder.as_ref().unwrap().identity().unwrap();
    assert_ne!(own_identity, with(&golden_folder("tiny-sd1")).unwrap().identity().unwrap());
    let forms = [of_folder, with(folder.path()), with(&path(FILE)), with(&own), with(&taesd)].map(Result::unwrap);
    let mut first = None;
    for model in forms {
        let model = Arc::new(model);
        let NetworkSpec::VaeDecoder(spec) = &model.spec.components[model.spec.component("vae").unwrap()].network else {
            panic!("it decodes")
        };
        assert!(spec.encodes_to_latents() && spec.scaling_factor() == 1.0 && spec.scale() == 8);
        let picture = draw(&model, asked(&golden, &model));
        close("latents", &picture.latents.values, &golden.values("drawn.latents"), 1e-3);
        let rgb = picture.image.unwrap().rgb;
        let off = rgb.iter().zip(golden.values("drawn.image")).map(|(a, b)| (f32::from(*a) - b).abs());
        assert!(off.fold(0.0, f32::max) <= 1.0, "a pixel is off by more than 1 of 255");
        assert_eq!(first.get_or_insert(rgb.clone()), &rgb);
    }
}

#[test]
fn the_latents_of_a_picture_are_not_drawn_of_a_distribution() {
    let (folder, golden) = (vae_folder(), Golden::open(NAME));
    let mut model = with(folder.path()).unwrap();
    model.spec = model.spec.with_image_encoder();
    let model = Arc::new(model);
    for (name, is_masked) in [("img2img", false), ("masked", true)] {
        let plain = asked(&golden, &model);
        let (width, height) = (plain.width, plain.height);
        let mask = is_masked.then(|| Arc::new(pictures::mask(width, height)));
        let start = StartImage::new(Arc::new(pictures::picture(width, height)), mask, &model.spec);
        let request = Request { start: Start::Image(StartImage { strength: 0.6, ..start }), ..plain };
        close(name, &draw(&model, request).latents.values, &golden.values(&format!("{name}.latents")), 1e-3);
    }
}

#[test]
fn it_is_cut_and_offloaded_as_any_component() {
    let folder = vae_folder();
    let model = Arc::new(with(folder.path()).unwrap());
    let golden = Golden::open(NAME);
    let draw = |map: &str| draw_with(&model, asked(&golden, &model), map).image.unwrap().rgb;
    let want = draw("devices = [\"cpu\"]");
    for vae in [
        r#"{ shards = { "" = "cpu:0", "decoder.layers.11" = "cpu:1" } }"#,
        r#"{ shards = { "" = "cpu:1", "decoder.layers.6" = "cpu:0", "decoder.layers.18" = "cpu:0" } }"#,
        r#"{ execute = "cpu:1", reside = "host" }"#,
        r#"{ execute = "cpu:0", reside = "disk" }"#,
    ] {
        let map = format!("devices = [\"cpu:0\", \"cpu:1\"]\n[components]\nvae = {vae}\n");
        assert!(draw(&map) == want, "{map}");
    }
    for device in backend::visible().iter().filter(|device| device.id.kind != DeviceKind::Cpu) {
        let map = format!("dtype = \"f32\"\ndevices = [\"{}\"]", device.id);
        let latents = draw_with(&model, asked(&golden, &model), &map).latents.values;
        close(&format!("latents on {}", device.id), &latents, &golden.values("drawn.latents"), 1e-3);
    }
}

/// The numbers of parameters of encoder and decoder.
fn parameters(config: &Value) -> (u64, u64) {
    let spec = AutoencoderSpec::Tiny(TinyVaeSpec::from_json(&config.to_string(), "x").unwrap());
    let count = |is_encoder: bool| {
        let (device, counter) = Device::dry(DeviceId::CPU, Rules::Gpu(Precision::F32), info().rates);
        let weights = Weights::shapes_only("vae");
        let scope = Scope::new(&weights, &device, Precision::F32);
        let sections = if is_encoder { spec.encoder_sections() } else { spec.decoder_sections() };
        let route = Route::whole(&device, Precision::F32, sections.len());
        match is_encoder {
            true => drop(Encoder::load(&scope, &spec, &route).unwrap()),
            false => drop(Decoder::load(&scope, &spec, &route).unwrap()),
        }
        counter.take().weight_bytes / Precision::F32.size() as u64
    };
    (count(true), count(false))
}

#[test]
fn the_published_networks_have_as_many_parameters_as_torch_counts() {
    assert_eq!(parameters(&json!({})), (1_222_532, 1_222_531));
    assert_eq!(parameters(&json!({"latent_channels": 16})), (1_229_456, 1_229_443));
    let other = json!({"encoder_block_out_channels": [32, 32, 32], "decoder_block_out_channels": [32, 32, 32],
        "num_encoder_blocks": [0, 2, 1], "num_decoder_blocks": [2, 0, 1], "latent_channels": 5});
    assert_eq!(parameters(&other), (104_005, 104_003));
    let spec = |config: &Value| AutoencoderSpec::Tiny(TinyVaeSpec::from_json(&config.to_string(), "x").unwrap());
    let numbers = |names: Vec<String>| -> Vec<usize> {
        names.iter().map(|name| name.rsplit('.').next().unwrap().parse().unwrap()).collect()
    };
    for (config, encoder, decoder) in
        [(&json!({}), &[0, 2, 6, 10, 14][..], &[0, 6, 11, 16, 18][..]), (&other, &[0, 1, 4, 6], &[0, 5, 7, 9])]
    {
        assert_eq!(numbers(spec(config).encoder_sections()), encoder);
        assert_eq!(numbers(spec(config).decoder_sections()), decoder);
    }
    assert_eq!((spec(&json!({})).scale(), spec(&other).scale()), (8, 4));
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    for (key, value, want) in [
        ("act_fn", json!("silu"), "must be \"relu\""),
        ("upsample_fn", json!("bilinear"), "must be \"nearest\""),
        ("upsampling_scaling_factor", json!(4), "must be 2"),
        ("out_channels", json!(4), "red, green and blue"),
        ("encoder_block_out_channels", json!([64, 64, 32, 64]), "widths that are equal"),
        ("decoder_block_out_channels", json!([32, 32, 32, 32]), "widths that are equal"),
        ("decoder_block_out_channels", json!([]), "widths that are equal"),
        ("num_encoder_blocks", json!([1, 3]), "a list of 4"),
        ("scaling_factor", json!(0), "a number from"),
    ] {
        let error = TinyVaeSpec::from_json(&json!({key: value}).to_string(), "vae/config.json").unwrap_err();
        let error = error.to_string();
        assert!(error.contains(&format!("vae/config.json: `{key}`")) && error.contains(want), "{error}");
    }
    let folder = vae_folder();
    let path = |name: &str| folder.path().join(name);
    // The latents of Stable Diffusion 3 and Flux have 16 channels.
    let changed = |shape: &[usize]| {
        let mut tensors = formula::tensors(NAME, "vae");
        let first = tensors.get_mut("decoder.layers.0.weight").unwrap();
        *first = (shape.to_vec(), vec![0.0; shape.iter().product()]);
        tensors
    };
    formula::write(&path("taesd3.safetensors"), &changed(&[32, 16, 3, 3]));
    let encoder = formula::tensors(NAME, "vae")
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("encoder.layers.")?.to_owned(), tensor)));
    formula::write(&path("encoder.safetensors"), &encoder.collect());
    fs::create_dir(path("taesd3")).unwrap();
    fs::write(path("taesd3/config.json"), json!({"_class_name": "AutoencoderTiny", "latent_channels": 16}).to_string())
        .unwrap();
    fs::copy(path("taesd3.safetensors"), path("taesd3").join(FILE)).unwrap();
    for (vae, facts) in [
        ("taesd3.safetensors", &["taesd3.safetensors", "latents of this model have 4 channels", "16"][..]),
        ("taesd3", &["taesd3", "latents of this model have 4 channels", "16"]),
        ("encoder.safetensors", &["AutoencoderKL or AutoencoderTiny", "the encoder of an AutoencoderTiny"]),
    ] {
        has_facts(path(vae), &with(&path(vae)).unwrap_err().to_string(), facts);
    }
    // A file of another class has no config for a model that has this one.
    let files = Overrides { vae: Some(folder.path()), ..Overrides::default() };
    let files = files.apply(ModelFiles::folder(golden_folder("tiny-sd1")).unwrap()).unwrap();
    let kl = golden_folder("tiny-sd1").join("vae").join(FILE);
    let error = Overrides { vae: Some(&kl), ..Overrides::default() }.apply(files).unwrap_err().to_string();
    has_facts(&kl, &error, &["AutoencoderTiny", "--vae FOLDER"]);
}

#[test]
fn the_decoder_alone_has_no_encoder() {
    let folder = vae_folder();
    let decoder = formula::tensors(NAME, "vae").into_iter().filter(|(name, _)| name.starts_with("decoder."));
    let path = folder.path().join("decoder.safetensors");
    formula::write(&path, &decoder.collect());
    let mut model = with(&path).unwrap();
    model.spec = model.spec.with_image_encoder();
    let component: &ComponentSpec = &model.spec.components[model.spec.component("vae_encoder").unwrap()];
    let weights = Weights::open(&model.files, &component.folder, None).unwrap();
    let route = Route::whole(&Device::cpu(1 << 20).unwrap(), Precision::F32, component.network.sections().len());
    let Err(error) = load(component, weights, &Source::resident(route)) else { panic!("there is no encoder") };
    has_facts(&path, &error.to_string(), &["there is no `encoder.layers.0.weight`", "decoder.safetensors"]);
}
