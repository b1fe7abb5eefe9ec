//! Single-file checkpoints: written here from the small models' folders in the names of LDM and OpenCLIP, and files
//! without data in the shapes of published models.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    common::{self, has_facts, refused, sdshard, succeeds, text},
    published::{Net, REFINER, SD1, SD2, SDXL, SSD_1B, VEGA, clip, open_clip, unet, vae},
};
use safetensors::SafeTensors;
use sdshard::{
    DeviceMap, Engine, Largest, Model, ModelFiles, Plan, Request, backend,
    models::single_file::{self, Overrides},
    scheduler::Prediction,
};
use serde_json::{Map, Value, json};
use sha2::Digest;
use tempfile::TempDir;

// ---- files ----

/// A tensor's name, type, shape and bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

fn file_of(header: Map<String, Value>, data: &[u8], path: &Path) {
    let header = Value::Object(header).to_string().into_bytes();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()).unwrap();
}

/// Writes a safetensors file.
fn write(path: &Path, tensors: &[Tensor], metadata: &Value) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    if !metadata.is_null() {
        header.insert("__metadata__".to_owned(), metadata.clone());
    }
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        assert!(header.insert(name.clone(), entry).is_none(), "{name} twice");
        data.extend(bytes);
    }
    file_of(header, &data, path);
}

/// Writes a file with these tensors in `F8_E4M3`, all zeros; the zeros take no room on the disk.
fn write_empty(path: &Path, tensors: &[(String, Vec<usize>)], metadata: &Value) {
    let (mut header, mut end) = (Map::new(), 0);
    header.insert("__metadata__".to_owned(), metadata.clone());
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F8_E4M3", "shape": shape, "data_offsets": [start, end]}));
    }
    file_of(header, &[], path);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() + end as u64).unwrap();
}

/// The tensors of the files in a folder of a small model, by their names without `text_model.`.
fn stored(folder: &Path) -> HashMap<String, Tensor> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all = HashMap::new();
    for file in files.filter(|path| path.extension().is_some_and(|end| end == "safetensors")) {
        let bytes = fs::read(file).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let dtype = if tensor.dtype() == safetensors::Dtype::F16 { "F16" } else { "F32" };
            let mut name = name.trim_start_matches("text_model.").to_owned();
            if name.contains("attentions.") {
                for (old, new) in
                    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")]
                {
                    name = name.replace(old, new);
                }
            }
            all.insert(name.clone(), (name, dtype, tensor.shape().to_vec(), tensor.data().to_vec()));
        }
    }
    all
}

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

const TINY_SD1: Net =
    Net { widths: &[16, 16, 24], down: &[1, 1, 1, 1, 0, 0], up: &[0, 0, 0, 1, 1, 1, 1, 1, 1], context: 32, ..SD1 };
const TINY_SD2: Net = Net {
    widths: &[16, 32, 32],
    layers: 1,
    down: &[1, 1, 0],
    up: &[0, 0, 1, 1, 1, 1],
    context: 32,
    is_linear: true,
    ..SD1
};

/// The tensors of a small model under LDM's names.
fn single(name: &str) -> Vec<Tensor> {
    let folder = tiny(name);
    let (net, widths) = match name {
        "tiny-sd1" => (TINY_SD1, [8, 8, 16, 16]),
        _ => (TINY_SD2, [8, 16, 24, 32]),
    };
    let mut all = Vec::new();
    for (prefix, names, part) in
        [("model.diffusion_model.", unet(&net), "unet"), ("first_stage_model.", vae(&widths, 1), "vae")]
    {
        let mut stored = stored(&folder.join(part));
        for (name, ldm, shape) in names {
            let (_, dtype, found, bytes) = stored.remove(&name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(found.iter().product::<usize>(), shape.iter().product::<usize>(), "{name}");
            all.push((format!("{prefix}{ldm}"), dtype, shape, bytes));
        }
        assert!(stored.is_empty(), "{:?}", stored.keys());
    }
    let mut texts = stored(&folder.join("text_encoder"));
    if name == "tiny-sd1" {
        let prefix = "cond_stage_model.transformer.text_model.";
        all.extend(
            texts.into_values().map(|(name, dtype, shape, bytes)| (format!("{prefix}{name}"), dtype, shape, bytes)),
        );
        all.push((format!("{prefix}embeddings.position_ids"), "I64", vec![1, 77], vec![0; 8 * 77]));
        return all;
    }
    let mut take = |name: &str| texts.remove(name).unwrap();
    let mut put = |ldm: String, (_, dtype, shape, bytes): Tensor| {
        all.push((format!("cond_stage_model.model.{ldm}"), dtype, shape, bytes));
    };
    put("token_embedding.weight".to_owned(), take("embeddings.token_embedding.weight"));
    put("positional_embedding".to_owned(), take("embeddings.position_embedding.weight"));
    for leaf in ["weight", "bias"] {
        put(format!("ln_final.{leaf}"), take(&format!("final_layer_norm.{leaf}")));
        for i in 0..3 {
            let block = format!("transformer.resblocks.{i}");
            for (name, ldm) in [
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
                ("self_attn.out_proj", "attn.out_proj"),
            ] {
                put(format!("{block}.{ldm}.{leaf}"), take(&format!("encoder.layers.{i}.{name}.{leaf}")));
            }
            let mut thirds =
                ["q", "k", "v"].map(|part| take(&format!("encoder.layers.{i}.self_attn.{part}_proj.{leaf}")));
            let [(.., mut shape, _), ..] = thirds.clone();
            shape[0] *= 3;
            let bytes = thirds.iter_mut().flat_map(|(.., bytes)| std::mem::take(bytes)).collect();
            put(format!("{block}.attn.in_proj_{leaf}"), (String::new(), thirds[0].1, shape, bytes));
            // A last layer, which Stable Diffusion 2 does not use.
            put(
                format!("transformer.resblocks.3.ln_{}.{leaf}", i + 1),
                (String::new(), "F16", vec![32], vec![0x7e; 64]),
            );
        }
    }
    put("text_projection".to_owned(), (String::new(), "F16", vec![32, 64], vec![0x7e; 4096]));
    put("logit_scale".to_owned(), (String::new(), "F32", vec![], vec![0; 4]));
    assert!(texts.is_empty(), "{:?}", texts.keys());
    all
}

/// A new folder with a file in it.
fn placed(tensors: &[Tensor]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("My model.v1.safetensors");
    write(&path, tensors, &Value::Null);
    (folder, path)
}

/// The file as a model with the configs of a folder.
fn opened(path: &Path, config: &Path) -> Result<Arc<Model>, sdshard::Error> {
    let overrides = Overrides { config: Some(config), ..Overrides::default() };
    Model::open(single_file::open(path, &overrides)?, None).map(Arc::new)
}

/// The latents and the pixels of a picture.
fn drawn(model: &Arc<Model>) -> (Vec<u32>, Vec<u8>) {
    let request = Request { width: 64, height: 64, steps: 2, seed: 5, ..Request::new("a red fox", &model.spec) };
    let largest = Largest::of([&request], &model.spec).unwrap().unwrap();
    let map = DeviceMap::parse("devices = [\"cpu\"]", "map.toml").unwrap();
    let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap();
    let picture = Engine::load(model.clone(), &plan).unwrap().submit(request).unwrap().wait().unwrap();
    let latents = picture.latents.values.iter().map(|value| value.to_bits()).collect();
    (latents, picture.image.as_ref().expect("a picture was asked for").rgb.clone())
}

fn folder_model(folder: &Path) -> Arc<Model> {
    Arc::new(Model::open(ModelFiles::folder(folder).unwrap(), None).unwrap())
}

#[test]
fn a_single_file_draws_the_same_bytes_as_its_folder() {
    for name in ["tiny-sd1", "tiny-sd2"] {
        let want = drawn(&folder_model(&tiny(name)));
        let (_folder, path) = placed(&single(name));
        let model = opened(&path, &tiny(name)).unwrap();
        assert_eq!(model.files.name(), "My model.v1");
        assert!(drawn(&model) == want, "{name}");
    }
}

/// A change of each tensor of a file.
type Edit<'a> = &'a dyn Fn(&mut Tensor);

#[test]
fn files_in_every_known_naming_draw_the_same() {
    let want = drawn(&folder_model(&tiny("tiny-sd1")));
    let rename =
        |from: &'static str, to: &'static str| move |tensor: &mut Tensor| tensor.0 = tensor.0.replace(from, to);
    let reshape = |tensor: &mut Tensor| {
        let is_projection = [".proj_in.weight", ".proj_out.weight"].iter().any(|end| tensor.0.ends_with(end));
        if is_projection && tensor.0.contains("diffusion_model") {
            assert_eq!(tensor.2.len(), 4);
            tensor.2.truncate(2);
        }
    };
    let other_ids = |tensor: &mut Tensor| {
        if tensor.0.ends_with("position_ids") {
            (tensor.1, tensor.3) = ("F16", vec![0; 2 * 77]);
        }
    };
    let edits: [(&str, Edit); 5] = [
        ("without text_model.", &rename("text_model.", "")),
        ("as newer code saves it", &rename("cond_stage_model.", "conditioner.embedders.0.")),
        ("the VAE's other prefix", &rename("first_stage_model.", "vae.")),
        ("projections as linear layers", &reshape),
        ("position ids as floats", &other_ids),
    ];
    for (what, edit) in edits {
        let mut tensors = single("tiny-sd1");
        tensors.iter_mut().for_each(edit);
        let (_folder, path) = placed(&tensors);
        assert!(drawn(&opened(&path, &tiny("tiny-sd1")).unwrap()) == want, "{what}");
    }

    // The names of diffusers.
    let mut tensors = Vec::new();
    for part in ["unet", "vae", "text_encoder"] {
        let of = stored(&tiny("tiny-sd1").join(part)).into_values();
        tensors.extend(of.map(|(name, dtype, shape, bytes)| (format!("{part}.{name}"), dtype, shape, bytes)));
    }
    let (_folder, path) = placed(&tensors);
    assert!(drawn(&opened(&path, &tiny("tiny-sd1")).unwrap()) == want, "diffusers' names");

    // Projections of Stable Diffusion 2 as convolutions.
    let want = drawn(&folder_model(&tiny("tiny-sd2")));
    let mut tensors = single("tiny-sd2");
    for (name, _, shape, _) in &mut tensors {
        let is_projection = name.ends_with(".proj_in.weight") || name.ends_with(".proj_out.weight");
        if is_projection && name.contains("diffusion_model") {
            assert_eq!(shape.len(), 2);
            shape.extend([1, 1]);
        }
    }
    let (_folder, path) = placed(&tensors);
    assert!(drawn(&opened(&path, &tiny("tiny-sd2")).unwrap()) == want);
}

/// Floats of 8 bits by their definition, from small to large codes; NaN where there is none.
fn value_of(code: u8, mantissa_bits: i32, bias: i32) -> f32 {
    let (exponent, mantissa) = (i32::from(code & 0x7f) >> mantissa_bits, i32::from(code) & ((1 << mantissa_bits) - 1));
    let is_none = if mantissa_bits == 3 { code & 0x7f == 0x7f } else { exponent == 31 };
    let one = i32::from(exponent > 0) << mantissa_bits;
    let size = (one + mantissa) as f32 * 2f32.powi(exponent.max(1) - bias - mantissa_bits);
    if is_none { f32::NAN } else { size * if code > 127 { -1.0 } else { 1.0 } }
}

#[test]
fn weights_of_8_bits_are_those_that_they_stand_for() {
    for (dtype, mantissa_bits, bias) in [("F8_E4M3", 3, 7), ("F8_E5M2", 2, 15)] {
        let mut short = single("tiny-sd1");
        let mut long = short.clone();
        for (short, long) in short.iter_mut().zip(&mut long).filter(|(tensor, _)| tensor.1 == "F32") {
            let codes: Vec<u8> =
                short.3.iter().skip(3).step_by(4).zip(0..).map(|(byte, i)| byte ^ (i as u8 & 0x3f)).collect();
            let code = |code: &u8| if value_of(*code, mantissa_bits, bias).abs() <= 2.0 { *code } else { *code & 0x87 };
            let codes: Vec<u8> = codes.iter().map(code).collect();
            long.3 = codes.iter().flat_map(|code| value_of(*code, mantissa_bits, bias).to_le_bytes()).collect();
            (short.1, short.3) = (dtype, codes);
        }
        let ((_a, short), (_b, long)) = (placed(&short), placed(&long));
        let config = tiny("tiny-sd1");
        let want = drawn(&opened(&long, &config).unwrap());
        assert!(drawn(&opened(&short, &config).unwrap()) == want, "{dtype}");
    }
    // In a folder too.
    let folder = common::copy_of_tiny();
    let path = folder.path().join("model/unet/diffusion_pytorch_model.safetensors");
    let mut tensors: Vec<Tensor> = stored(path.parent().unwrap()).into_values().collect();
    for (_, dtype, _, bytes) in &mut tensors {
        (*dtype, *bytes) = ("F8_E5M2", bytes.iter().skip(3).step_by(4).map(|byte| byte & 0x9f).collect());
    }
    write(&path, &tensors, &Value::Null);
    drawn(&folder_model(&folder.path().join("model")));

    // Scales are not ignored.
    for (extra, metadata) in [
        (Some("scaled_fp8"), Value::Null),
        (Some("model.diffusion_model.out.2.scale_weight"), Value::Null),
        (Some("model.diffusion_model.out.2.comfy_quant"), Value::Null),
        (None, json!({"_quantization_metadata": "{}"})),
    ] {
        let mut tensors = single("tiny-sd1");
        tensors.extend(extra.map(|name| (name.to_owned(), "F32", vec![], vec![0; 4])));
        write(&path, &tensors, &metadata);
        let error = opened(&path, &tiny("tiny-sd1")).unwrap_err().to_string();
        has_facts(extra, &error, &["scales are not supported", extra.unwrap_or("metadata")]);
    }
}

#[test]
fn another_vae_replaces_the_models_own() {
    let config = tiny("tiny-sd1");
    let (folder, path) = placed(&single("tiny-sd1"));
    let want = drawn(&opened(&path, &config).unwrap());
    let with = |vae: &Path| {
        let overrides = Overrides { config: Some(&config), vae: Some(vae), ..Overrides::default() };
        single_file::open(&path, &overrides).and_then(|files| Model::open(files, None)).map(Arc::new)
    };
    let ldm: Vec<Tensor> =
        single("tiny-sd1").into_iter().filter(|tensor| tensor.0.starts_with("first_stage_model.")).collect();
    let bare = ldm.iter().cloned().map(|mut tensor| {
        tensor.0 = tensor.0.trim_start_matches("first_stage_model.").to_owned();
        tensor
    });
    let loss = ("loss.logvar".to_owned(), "F32", vec![], vec![0; 4]);
    let file = |name: &str, tensors: Vec<Tensor>| {
        let path = folder.path().join(name);
        write(&path, &tensors, &Value::Null);
        path
    };
    let bare = file("bare.safetensors", bare.chain([loss]).collect());
    for vae in [
        file("prefixed.safetensors", ldm.clone()),
        bare.clone(),
        path.clone(),
        config.join("vae"),
        config.clone(),
        config.join("vae/diffusion_pytorch_model.safetensors"),
    ] {
        assert!(drawn(&with(&vae).unwrap()) == want, "{}", vae.display());
    }

    // It is used, and part of the identity.
    let changed = ldm.into_iter().map(|(name, dtype, shape, bytes)| {
        let bytes = if name.ends_with("decoder.conv_out.bias") { 1f32.to_le_bytes().repeat(3) } else { bytes };
        (name, dtype, shape, bytes)
    });
    let model = with(&file("changed.safetensors", changed.collect())).unwrap();
    let got = drawn(&model);
    assert!(got.0 == want.0 && got.1 != want.1);
    let own = opened(&path, &config).unwrap();
    let same = with(&bare).unwrap();
    let identities: HashSet<String> = [&own, &same, &model].map(|model| model.identity().unwrap()).into();
    assert_eq!(identities.len(), 3);

    // The scale of the latents is the model's, whatever the VAE's config says.
    let own_folder = folder.path().join("other");
    fs::create_dir(&own_folder).unwrap();
    let text = fs::read_to_string(config.join("vae/config.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["scaling_factor"] = json!(3.0);
    fs::write(own_folder.join("config.json"), json.to_string()).unwrap();
    fs::copy(&bare, own_folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    assert!(drawn(&with(&own_folder).unwrap()) == want);

    // A folder's VAE is replaced as well.
    let overrides = Overrides { vae: Some(&bare), ..Overrides::default() };
    let files = overrides.apply(ModelFiles::folder(&config).unwrap()).unwrap();
    assert!(drawn(&Arc::new(Model::open(files, None).unwrap())) == want);

    for (vae, parts) in [
        (folder.path().join("absent"), &["absent", "no such file or folder"][..]),
        (
            file("lora.safetensors", vec![("lora_unet_x".to_owned(), "F32", vec![1], vec![0; 4])]),
            &["lora.safetensors", "a LoRA"],
        ),
        (
            file("taesd.safetensors", vec![("1.conv.0.weight".to_owned(), "F32", vec![1], vec![0; 4])]),
            &["AutoencoderTiny"],
        ),
        (folder.path().to_owned(), &["no weights", "diffusion_pytorch_model.safetensors"]),
    ] {
        let error = with(&vae).unwrap_err().to_string();
        has_facts(&vae, &error, parts);
    }
}

/// Stable Diffusion's first files have both sets of weights.
#[test]
fn the_averages_of_a_unets_weights_are_read_if_they_are_asked_for() {
    let want = drawn(&folder_model(&tiny("tiny-sd1")));
    let mut tensors = single("tiny-sd1");
    let is_unet = |name: &str| name.starts_with("model.diffusion_model.");
    let of_unet: Vec<Tensor> = tensors.iter().filter(|(name, ..)| is_unet(name)).cloned().collect();
    for (name, dtype, shape, bytes) in of_unet {
        let name = format!("model_ema.{}", name.strip_prefix("model.").unwrap().replace('.', ""));
        tensors.push((name, dtype, shape, bytes));
    }
    // The last weights are not those of the folder.
    for (.., bytes) in tensors.iter_mut().filter(|(name, ..)| is_unet(name)) {
        bytes.iter_mut().for_each(|byte| *byte = 0);
    }
    tensors.push(("model_ema.decay".to_owned(), "F32", vec![], vec![0; 4]));
    let (_folder, path) = placed(&tensors);
    let config = tiny("tiny-sd1");
    let open = |path: &Path, averages| {
        let overrides = Overrides { config: Some(&config), averages, ..Overrides::default() };
        single_file::open(path, &overrides).and_then(|files| Model::open(files, None)).map(Arc::new)
    };
    let (last, averaged) = (open(&path, false).unwrap(), open(&path, true).unwrap());
    assert!(drawn(&averaged) == want && drawn(&last) != want);
    assert_ne!(averaged.identity().unwrap(), last.identity().unwrap());
    for flag in [&["--ema"][..], &[]] {
        let model =
            ["plan", "--device", "cpu", "--config", config.to_str().unwrap(), "--model", path.to_str().unwrap()];
        let output = sdshard(&[&model, flag].concat()).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.success() && !said.contains("stored tensors"), "{said}");
    }

    let (_folder, path) = placed(&single("tiny-sd1"));
    let error = open(&path, true).unwrap_err().to_string();
    assert!(error.contains("has no averages (EMA) of its UNet's weights"), "{error}");
    let overrides = Overrides { averages: true, ..Overrides::default() };
    let error = overrides.apply(ModelFiles::folder(config.clone()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("--ema is for single-file checkpoints"), "{error}");
}

#[test]
fn the_identity_of_a_file_is_the_beginning_of_its_hash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    write_empty(&path, &all_of(&SD1, &clip_names()), &json!({}));
    let (mut hash, mut file, mut piece) = (sha2::Sha256::new(), fs::File::open(&path).unwrap(), vec![0; 1 << 20]);
    while let count @ 1.. = file.read(&mut piece).unwrap() {
        hash.update(&piece[..count]);
    }
    let hash: String = hash.finalize().iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let identity = |path: &Path, prediction| {
        let overrides = Overrides { prediction: Some(prediction), ..Overrides::default() };
        Model::open(single_file::open(path, &overrides).unwrap(), None).unwrap().identity().unwrap()
    };
    assert_eq!(identity(&path, Prediction::Epsilon), hash, "this is what the file predicts anyway");
    let other = folder.path().join("b.safetensors");
    fs::rename(&path, &other).unwrap();
    assert_ne!(identity(&other, Prediction::Velocity), hash);
}

// ---- files without data, in the shapes of published models ----

/// Tensors of a file with this UNet, a VAE, and text encoders.
fn all_of(net: &Net, texts: &[(String, Vec<usize>)]) -> Vec<(String, Vec<usize>)> {
    let unet = unet(net).into_iter().map(|(_, ldm, shape)| (format!("model.diffusion_model.{ldm}"), shape));
    let vae = vae(&[128, 256, 512, 512], 2).into_iter();
    let vae = vae.map(|(_, ldm, shape)| (format!("first_stage_model.{ldm}"), shape));
    unet.chain(vae).chain(texts.iter().cloned()).collect()
}

fn prefixed(prefix: &str, names: Vec<(String, Vec<usize>)>) -> Vec<(String, Vec<usize>)> {
    names.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
}

fn clip_names() -> Vec<(String, Vec<usize>)> {
    prefixed("cond_stage_model.transformer.text_model.", clip(768, 12, 49_408))
}

#[test]
fn whole_files_of_full_size_are_read_without_a_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let plan = || sdshard(&["plan", "--model", path.to_str().unwrap(), "--device", "cpu"]).output().unwrap();
    let training = [
        "betas",
        "alphas_cumprod",
        "posterior_mean_coef2",
        "model_ema.decay",
        "model_ema.num_updates",
        "model_ema.diffusion_modelinput_blocks00weight",
        "first_stage_model.loss.logvar",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.logit_scale",
    ]
    .map(|name| (name.to_owned(), vec![1, 77]));
    let sd2 = prefixed("cond_stage_model.model.", open_clip(1024, 24));
    for (what, tensors) in
        [("SD 1", all_of(&SD1, &[clip_names(), training.to_vec()].concat())), ("SD 2", all_of(&SD2, &sd2))]
    {
        write_empty(&path, &tensors, &json!({}));
        let output = plan();
        let said = text(&output.stderr);
        assert!(output.status.success() && !said.contains("stored tensors"), "{what}: {said}");
        assert!(text(&output.stdout).contains("text_encoder"), "{what}: {}", text(&output.stdout));
    }
    // Two names that nothing reads are one warning.
    let stray = ["model.diffusion_model.stray.weight", "another.stray"].map(|name| (name.to_owned(), vec![3]));
    write_empty(&path, &all_of(&SD1, &[clip_names(), stray.to_vec()].concat()), &json!({}));
    let output = plan();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("stored tensors").count(), 1, "{said}");
    has_facts("stray", said, &["has 2 stored tensors", "another.stray"]);
}

/// A text of the model that a file is taken for.
fn taken_for(path: &Path, overrides: &Overrides, file: &str) -> Value {
    serde_json::from_str(&single_file::open(path, overrides).unwrap().text(file).unwrap()).unwrap()
}

#[test]
fn the_kind_of_model_is_found_from_the_shapes_of_the_unet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let plain = Overrides::default();
    for (net, class, inputs, width) in [
        (SD1, "StableDiffusionPipeline", 4, 768),
        (Net { inputs: 9, ..SD1 }, "StableDiffusionInpaintPipeline", 9, 768),
        (SD2, "StableDiffusionPipeline", 4, 1024),
        (Net { inputs: 9, ..SD2 }, "StableDiffusionInpaintPipeline", 9, 1024),
        // Without text encoders, as files for other programs have it.
        (SDXL, "StableDiffusionXLPipeline", 4, 2048),
        (Net { inputs: 9, ..SDXL }, "StableDiffusionXLInpaintPipeline", 9, 2048),
        (REFINER, "StableDiffusionXLImg2ImgPipeline", 4, 1280),
        (SSD_1B, "StableDiffusionXLPipeline", 4, 2048),
        (VEGA, "StableDiffusionXLPipeline", 4, 2048),
    ] {
        write_empty(&path, &all_of(&net, &[]), &json!({}));
        let config = taken_for(&path, &plain, "unet/config.json");
        assert_eq!(taken_for(&path, &plain, "model_index.json")["_class_name"], class);
        assert_eq!(
            (&config["in_channels"], &config["cross_attention_dim"]),
            (&json!(inputs), &json!(width)),
            "{class}"
        );
        let depths = match (net.mid, net.down[5]) {
            (None, 4) => json!([1, [2, 2], [4, 4]]),
            (None, _) => json!([1, [1, 1], [2, 2]]),
            (_, 10) => json!([1, 2, 10]),
            (_, 4) => json!(4),
            _ => Value::Null,
        };
        assert_eq!(config["transformer_layers_per_block"], depths, "{class}");
    }
    // All of it is there for the reader.
    let files = single_file::open(&path, &plain).unwrap();
    for file in ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/vocab.json", "text_encoder_2/config.json"]
    {
        assert!(files.exists(file), "{file}");
    }
}

#[test]
fn what_a_file_says_of_its_training_becomes_the_schedulers_config() {
    const BIAS: &str = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mark = |name: &'static str| vec![(name.to_owned(), vec![0])];
    let none = json!({});
    let spec = |key: &str, value: &str| json!({ format!("modelspec.{key}"): value });
    let v = Some(Prediction::Velocity);
    let epsilon = Some(Prediction::Epsilon);
    let scheduler = |marks: &[(String, Vec<usize>)], metadata: &Value, net: &Net, told: Option<Prediction>| {
        write_empty(&path, &all_of(net, marks), metadata);
        let overrides = Overrides { prediction: told, ..Overrides::default() };
        let config = taken_for(&path, &overrides, "scheduler/scheduler_config.json");
        let prediction = config["prediction_type"].as_str().unwrap_or("epsilon").to_owned();
        let size = taken_for(&path, &overrides, "unet/config.json")["sample_size"].as_u64().unwrap();
        (prediction, size, config["rescale_betas_zero_snr"] == true, config["timestep_spacing"] == "trailing")
    };
    for (what, marks, metadata, net, told, prediction, size, is_rescaled) in [
        ("SD 1", vec![], &none, &SD1, None, "epsilon", 64, false),
        ("SD 1, told", vec![], &none, &SD1, v, "v_prediction", 64, false),
        ("SDXL", vec![], &none, &SDXL, None, "epsilon", 128, false),
        ("v_pred", mark("v_pred"), &none, &SDXL, None, "v_prediction", 128, false),
        ("ztsnr", [mark("v_pred"), mark("ztsnr")].concat(), &none, &SDXL, None, "v_prediction", 128, true),
        ("ztsnr, told", mark("ztsnr"), &none, &SDXL, epsilon, "epsilon", 128, false),
        ("modelspec", vec![], &spec("prediction_type", "v"), &SDXL, None, "v_prediction", 128, false),
        ("modelspec first", mark("v_pred"), &spec("prediction_type", "epsilon"), &SDXL, None, "epsilon", 128, false),
        ("SD 2, told v", vec![], &none, &SD2, v, "v_prediction", 96, false),
        ("SD 2, of a bias of zeros", vec![], &none, &SD2, None, "epsilon", 64, false),
        ("SD 2", vec![], &spec("architecture", "stable-diffusion-v2-768-v"), &SD2, None, "v_prediction", 96, false),
        ("SD 2 inpainting", vec![], &none, &Net { inputs: 9, ..SD2 }, None, "epsilon", 64, false),
    ] {
        let want = (prediction.to_owned(), size, is_rescaled, is_rescaled);
        assert_eq!(scheduler(&marks, metadata, net, told), want, "{what}");
    }
    // PNDM cannot be rescaled.
    assert!(scheduler(&mark("ztsnr"), &none, &SD1, None).2);
    assert_eq!(taken_for(&path, &Overrides::default(), "model_index.json")["scheduler"][1], "DDIMScheduler");

    // The deviation of a bias, on either side of 0.09.
    for (value, prediction) in [(0x1d, "v_prediction"), (0x1b, "epsilon")] {
        write_empty(&path, &all_of(&SD2, &[]), &none);
        let mut file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut length = [0; 8];
        file.read_exact(&mut length).unwrap();
        let mut header = vec![0; u64::from_le_bytes(length) as usize];
        file.read_exact(&mut header).unwrap();
        let entries: Value = serde_json::from_slice(&header).unwrap();
        let start = 8 + header.len() as u64 + entries[BIAS]["data_offsets"][0].as_u64().unwrap();
        // Half of the values are positive, half negative: their size is the deviation, 0.1015625 or 0.0859375.
        let values: Vec<u8> = (0..320).map(|i| if i % 2 == 0 { value } else { value | 0x80 }).collect();
        file.seek(SeekFrom::Start(start)).unwrap();
        file.write_all(&values).unwrap();
        let config = taken_for(&path, &Overrides::default(), "scheduler/scheduler_config.json");
        assert_eq!(config["prediction_type"], prediction);
    }
    let output = sdshard(&["plan", "--model", path.to_str().unwrap()]).output().unwrap();
    has_facts("a guess", text(&output.stderr), &["epsilon", "--prediction-type"]);
}

#[test]
fn a_file_that_holds_something_else_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let error = || single_file::open(&path, &Overrides::default()).unwrap_err().to_string();
    for (net, extra, parts) in [
        (Net { inputs: 8, ..SD1 }, None, &["InstructPix2Pix", "--config"][..]),
        (Net { inputs: 5, ..SD2 }, None, &["depth"]),
        (Net { down: &[0, 0, 2, 2, 5, 5], ..SDXL }, None, &["the kind sdxl", "[0, 0, 2, 2, 5, 5]", "--config"]),
        (
            Net { layers: 1, down: &[0, 2, 6], up: &[6, 6, 2, 2, 0, 0], mid: Some(6), ..SDXL }, // KOALA
            None,
            &["the kind sdxl", "[0, 2, 6]"],
        ),
        (Net { layers: 1, down: &[1, 1, 1, 0], up: &[0, 0, 1, 1, 1, 1, 1, 1], ..SD1 }, None, &["the kind sd1"]),
        (TINY_SD1, None, &["16 channels", "features of 32", "--config FOLDER"]),
        (SDXL, Some("edm_mean"), &["Playground"]),
        (SDXL, Some("edm_vpred.sigma_max"), &["CosXL"]),
        (SD1, Some("model.diffusion_model.time_embed_cond.weight"), &["LCM"]),
    ] {
        let extra: Vec<_> = extra.iter().map(|name| ((*name).to_owned(), vec![1])).collect();
        write_empty(&path, &all_of(&net, &extra), &json!({}));
        has_facts(parts, &error(), &[&["model.safetensors"][..], parts].concat());
    }
    for (name, parts) in [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", &["a LoRA"][..]),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", &["a LoRA"]),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", &["Flux"]),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", &["Stable Diffusion 3"]),
        ("control_model.input_hint_block.0.weight", &["a ControlNet"]),
        ("input_blocks.0.0.weight", &["a UNet alone"]),
        ("decoder.conv_in.weight", &["a VAE alone", "--vae"]),
        ("emb_params", &["a textual inversion embedding"]),
        ("anything", &["has no unet", "a whole checkpoint"]),
    ] {
        write_empty(&path, &[(name.to_owned(), vec![1])], &json!({}));
        has_facts(name, &error(), &[&["model.safetensors"][..], parts].concat());
    }
}

// ---- the program ----

#[test]
fn the_program_draws_from_a_file_and_names_it() {
    let (folder, path) = placed(&single("tiny-sd1"));
    let config = tiny("tiny-sd1");
    let (path, config, out) = (path.to_str().unwrap(), config.to_str().unwrap(), folder.path().join("out"));
    let model = ["--model", path, "--config", config];
    let size = ["--width", "64", "--height", "64", "--steps", "1", "--output-dir", out.to_str().unwrap()];
    let made = succeeds(sdshard(&["a fox"]).args(model).args(size));
    let png = fs::read(made.trim()).unwrap();
    let says = |word: &str| png.windows(word.len()).any(|window| window == word.as_bytes());
    assert!(says("Model: My model.v1") && !says("tiny-sd1"));
    let made = succeeds(sdshard(&["a fox", "--prediction-type", "v"]).args(model).args(size));
    assert!(fs::read(made.trim()).unwrap() != png);
    succeeds(sdshard(&["plan", "a fox"]).args(model));
    succeeds(sdshard(&["bench", "--repeat", "1", "--latent-size", "8x8"]).args(model));
    // A folder's scheduler is told too.
    let folder_model = ["--model", config];
    let plain = succeeds(sdshard(&["a fox"]).args(folder_model).args(size));
    let told = succeeds(sdshard(&["a fox", "--prediction-type", "v"]).args(folder_model).args(size));
    assert_ne!(fs::read(plain.trim()).unwrap(), fs::read(told.trim()).unwrap());
}

#[test]
fn a_file_that_cannot_be_used_is_refused_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let config = tiny("tiny-sd1");
    let config = config.to_str().unwrap();
    let without = |prefix: &str, name: &str| {
        let tensors: Vec<Tensor> =
            single("tiny-sd1").into_iter().filter(|tensor| !tensor.0.starts_with(prefix)).collect();
        write(Path::new(&file(name)), &tensors, &Value::Null);
    };
    without("first_stage_model.", "no-vae.safetensors");
    without("cond_stage_model.", "no-text.safetensors");
    without("model.diffusion_model.middle_block.1.norm.bias", "no-bias.safetensors");
    fs::write(file("zip.safetensors"), b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive").unwrap();
    fs::write(file("old.ckpt"), b"\x80\x02}q\x00.").unwrap();
    fs::write(file("quantised.safetensors"), b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00").unwrap();
    let tiny = file("whole.safetensors");
    write(Path::new(&tiny), &single("tiny-sd1"), &Value::Null);
    let no_folder = file("nowhere");
    let configured = |name: &str| vec!["--model".to_owned(), file(name), "--config".to_owned(), config.to_owned()];
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for (arguments, parts) in [
        (configured("no-vae.safetensors"), &["no-vae.safetensors", "no vae", "--vae"][..]),
        (configured("no-text.safetensors"), &["no-text.safetensors", "no text_encoder", "--config"]),
        (configured("no-bias.safetensors"), &["`model.diffusion_model.middle_block.1.norm.bias`"]),
        (configured("zip.safetensors"), &["zip.safetensors", "pickle", "convert it once"]),
        (configured("old.ckpt"), &["old.ckpt", "pickle", "convert it once"]),
        (configured("quantised.safetensors"), &["GGUF"]),
        (words(&["--model", &tiny]), &["whole.safetensors", "16 channels", "--config FOLDER"]),
        (words(&["--model", &tiny, "--config", &no_folder]), &["nowhere", "no such folder"]),
        (words(&["--model", config, "--config", config]), &["--config is for single-file checkpoints"]),
        (words(&["--config", config]), &["--model"]),
        (words(&["--model", config, "--vae", &no_folder]), &["the VAE", "nowhere"]),
        (words(&["--model", config, "--vae", &file("old.ckpt")]), &["old.ckpt", "pickle"]),
        (words(&["--model", config, "--prediction-type", "x"]), &["--prediction-type"]),
        (words(&["--model", &tiny, "--config", config, "--variant", "fp16"]), &["no files of the variant"]),
        (words(&["--model", &tiny, "--config", config, "--revision", "x"]), &["only the hub has revisions"]),
        (words(&["--model", "https://example.org/a/b"]), &["not an address on the hub"]),
    ] {
        for command in [&["a fox"][..], &["plan"]] {
            let out = file("out");
            let mut all = command.to_vec();
            all.extend(arguments.iter().map(String::as_str));
            if command[0] == "a fox" {
                all.extend(["--output-dir", &out]);
            }
            if command[0] == "plan" && arguments.contains(&"--variant".to_owned()) {
                continue; // a plan uses what there is
            }
            let message = refused(&all);
            has_facts(&all, &message, parts);
            assert_eq!(common::files(Path::new(&out)), [""; 0], "{all:?}");
        }
    }
    // A pickle in a folder is no safetensors file either.
    let broken = common::copy_of_tiny();
    let model = broken.path().join("model");
    fs::write(model.join("unet/diffusion_pytorch_model.safetensors"), b"\x80\x02}q\x00.").unwrap();
    has_facts("a folder", &refused(&["a fox", "--model", model.to_str().unwrap()]), &["pickle", "unet/"]);
}
