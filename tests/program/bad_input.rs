//! Bad input is refused before anything is drawn: one message that names file, key and what was wanted, exit code 2,
//! nothing on stdout and no file in the output folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::common::{self, Tiny, copy_of_tiny, files, has_facts, message_of, sdshard};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

/// The message for a request that the small model is asked for.
fn refused(tiny: &Tiny, arguments: &[&str]) -> String {
    let message = message_of(tiny.draw(arguments).output().unwrap(), &format!("{arguments:?}"));
    assert_eq!(files(&tiny.out()), [""; 0], "{arguments:?} left files behind");
    message
}

#[test]
fn a_bad_device_map_is_named_with_line_and_column() {
    for (map, at, parts) in [
        ("strategy = \n", ":1:", &[][..]),
        ("strategy = \"single\"\ndevises = [\"cpu\"]\n", ":2:1: devises: ", &["did you mean"]),
        (
            "[components]\nunet = \"gpu0\"\n",
            ":2:8: components.unet: ",
            &["found: \"gpu0\"", "did you mean \"cuda:0\"?"],
        ),
        (
            "[components]\nvae = \"cpu\"\nunet = \"cuda:7\"\n",
            ":3:8: components.unet: ",
            &["there is no device \"cuda:7\"", "unet = \"cuda:7\"", "found: cpu", "`sdshard devices`"],
        ),
        ("devices = [\"cpu\", \"wgpu:3\"]\n", ":1:19: devices: ", &["there is no device \"wgpu:3\"", "found: cpu"]),
        ("devices = [\"cpu\", \"cpu:1\"]\n", ":1:", &["cpu:1"]),
        ("replicas = 5000\n", ":1:12: replicas: ", &[]),
        ("[max_memory]\n\"cpu\" = \"8Gb\"\n", ":2:9: max_memory.cpu: ", &["did you mean"]),
    ] {
        let tiny = Tiny::new();
        let path = tiny.file("map.toml", map);
        let message = refused(&tiny, &["a fox", "--device-map", &path]);
        has_facts(map, &message, &[&format!("error: {path}{at}")]);
        has_facts(map, &message, parts);
    }
}

#[test]
fn too_little_memory_is_an_error_that_says_how_much_is_needed() {
    for (strategy, memory) in [("single", "64KiB"), ("balanced", "64KiB"), ("single", "2MiB"), ("balanced", "1KiB")] {
        let tiny = Tiny::new();
        let map = tiny.file("map.toml", &format!("strategy = \"{strategy}\"\n[max_memory]\n\"cpu\" = \"{memory}\"\n"));
        let message = refused(&tiny, &["a fox", "--device-map", &map]);
        has_facts(strategy, &message, &["cpu", "need", "iB"]);
    }
}

#[test]
fn a_request_that_the_model_cannot_draw_is_refused() {
    for (arguments, parts) in [
        (&["a fox", "--width", "100"][..], &["width", "multiple of 8", "found: 100", "96 or 104"][..]),
        (&["a fox", "--height", "63"], &["height", "multiple of 8", "found: 63", "56 or 64"]),
        (&["a fox", "--steps", "0"], &["--steps: at least 1"]),
        (&["a fox", "--steps", "1001"], &["1001", "1000"]),
        (&["a fox", "--scheduler", "lms"], &["--scheduler: \"lms\"", "pndm, ddim, euler"]),
        (&[], &["there is no prompt"]),
        (&["a fox", "--variant", "fp16"], &["no files of the variant \"fp16\""]),
        (&["a fox", "--revision", "main"], &["tiny-sd1", "only the hub", "found: revision \"main\""]),
        (&["a fox", "--dtype", "int4"], &["int4", "auto, f32, f16, bf16, int8"]),
    ] {
        has_facts(arguments, &refused(&Tiny::new(), arguments), parts);
    }
}

#[test]
fn an_absurd_size_is_refused_and_not_tried() {
    for (option, size) in [("--width", "1000000000000"), ("--height", "18446744073709551608"), ("--width", "8200")] {
        let model = common::tiny();
        let output = sdshard(&["plan", option, size]).arg("--model").arg(model).output().unwrap();
        has_facts(size, &message_of(output, size), &[option, "at most 8192"]);
    }
    for size in ["1025x1", "0x8", "8", "x8"] {
        let model = common::tiny();
        let output = sdshard(&["bench", "--latent-size", size]).arg("--model").arg(model).output().unwrap();
        has_facts(size, &message_of(output, size), &["from 1 to 1024"]);
    }
}

#[test]
fn a_variable_that_cannot_be_followed_is_refused() {
    for (variable, value) in [("SDSHARD_THREADS", "0"), ("SDSHARD_THREADS", "two"), ("SDSHARD_CPU_PATH", "sse9")] {
        for map in ["single.toml", "cpu-split.toml"] {
            let tiny = Tiny::new();
            let output = tiny.draw(&["a fox", "--quiet", "--device-map", map]).env(variable, value).output().unwrap();
            let found = if variable == "SDSHARD_THREADS" { format!("found: \"{value}\"") } else { value.to_string() };
            has_facts(value, &message_of(output, value), &[variable, &found]);
            assert_eq!(files(&tiny.out()), [""; 0]);
        }
    }
}

#[test]
fn a_prompts_file_is_refused_by_the_line() {
    for (line, part) in [
        ("{\"prompt\": \"x\", \"width\": 100}", "multiple of 8"),
        ("{\"prompt\": \"x\", \"steps\": 0}", "p.jsonl:2: steps: at least 1"),
        ("{\"prompt\": \"x\", \"scheduler\": \"lms\"}", "p.jsonl:2: scheduler: \"lms\""),
        ("{\"text\": \"x\"}", "p.jsonl:2:7: unknown field `text`"),
    ] {
        let tiny = Tiny::new();
        let path = tiny.file("p.jsonl", &format!("{{\"prompt\": \"good\"}}\n{line}\n"));
        has_facts(line, &refused(&tiny, &["--prompts-file", &path]), &[part]);
    }
    let tiny = Tiny::new();
    let path = tiny.file("empty.txt", "\n \n");
    has_facts("no prompt", &refused(&tiny, &["--prompts-file", &path]), &["there is no prompt in", "empty.txt"]);
}

#[test]
fn latents_of_another_shape_are_refused() {
    let bytes = |count: usize| vec![0_u8; 4 * count];
    for (name, shape, parts) in [
        ("latent", vec![1, 4, 8, 9], &["--latents: ", "64x64", "--width 72 --height 64"][..]),
        ("latent", vec![1, 3, 8, 8], &["256 values", "found: 192"]),
        ("latent", vec![4, 8, 8], &["[1, channels, height, width]", "found: F32 [4, 8, 8]"]),
        ("latents", vec![1, 4, 8, 8], &["one tensor named `latent`"]),
    ] {
        let tiny = Tiny::new();
        let bytes = bytes(shape.iter().product());
        let tensor = TensorView::new(safetensors::Dtype::F32, shape.clone(), &bytes).unwrap();
        let path = tiny.folder.path().join("l.safetensors");
        fs::write(&path, safetensors::serialize([(name, tensor)], None).unwrap()).unwrap();
        let message = refused(&tiny, &["a fox", "--latents", path.to_str().unwrap()]);
        has_facts(format!("{name} {shape:?}"), &message, parts);
    }
}

#[test]
fn a_picture_to_start_from_that_cannot_be_used_is_refused() {
    let tiny = Tiny::new();
    let path = |name: &str| tiny.folder.path().join(name).to_str().unwrap().to_owned();
    for (name, width, height) in
        [("image.png", 64, 48), ("mask.png", 64, 40), ("small.png", 7, 64), ("long.png", 8200, 8)]
    {
        image::RgbImage::new(width, height).save(path(name)).unwrap();
    }
    let huge = png::Encoder::new(fs::File::create(path("huge.png")).unwrap(), 60_000, 60_000);
    huge.write_header().unwrap().write_chunk(png::chunk::IDAT, &[0; 9]).unwrap();
    image::RgbImage::new(64, 64).save(path("whole.webp")).unwrap();
    let webp = fs::read(path("whole.webp")).unwrap();
    fs::write(path("cut.webp"), &webp[..webp.len() - 9]).unwrap();
    fs::write(path("text.png"), "a fox").unwrap();
    let image = path("image.png");
    for (arguments, facts) in [
        (&["--image", &path("none.png")][..], &["none.png", "No such file"][..]),
        (&["--image", &path("text.png")], &["text.png", "no picture that can be read", "PNG, JPEG or WebP"]),
        (&["--image", &path("huge.png")], &["huge.png", "60000x60000"]),
        (&["--image", &path("cut.webp")], &["cut.webp", "damaged or not whole"]),
        (&["--image", &path("small.png")], &["--image: ", "at least 8x8 pixels", "found: 7x64"]),
        (&["--image", &image, "--strength", "0"], &["--strength: ", "above 0 and at most 1", "found: 0"]),
        (&["--image", &image, "--strength", "2"], &["--strength: ", "found: 2"]),
        (&["--image", &image, "--strength", "0.01"], &["--steps: a strength of 0.01 leaves none of 2 steps"]),
        (&["--image", &image, "--mask", &path("mask.png")], &["--mask: ", "found: 64x40", "64x48"]),
        (&["--image", &image, "--paste-original"], &["--paste-original: there is no mask", "--mask FILE"]),
        (&["--mask", &image], &["--mask: there is no picture to start from", "--image FILE"]),
        (&["--strength", "0.5"], &["--strength: there is no picture to start from", "--image FILE"]),
        (&["--image", &image, "--width", "70"], &["--width: has to be a multiple of 8"]),
    ] {
        let message = refused(&tiny, &[&["a fox"], arguments].concat());
        has_facts(format!("{arguments:?}"), &message, facts);
    }
    // Without a size, the picture's own counts.
    let (long, out, model) = (path("long.png"), tiny.out(), common::tiny());
    let arguments = ["a fox", "--model", model.to_str().unwrap(), "--image", &long, "--output-dir"];
    let message = common::refused(&[&arguments[..], &[out.to_str().unwrap()]].concat());
    has_facts("a long picture", &message, &["--width: at most 8192", "found: 8200", "--width and --height"]);
    let lines = tiny.file("p.jsonl", &serde_json::json!({ "prompt": "x", "mask": image }).to_string());
    has_facts("a line", &refused(&tiny, &["--prompts-file", &lines]), &["mask: there is no picture to start from"]);
}

#[test]
fn a_prompt_of_a_web_ui_that_cannot_be_followed_is_refused() {
    let tiny = Tiny::new();
    let loras = tiny.folder.path().join("loras");
    for below in ["a", "b"] {
        fs::create_dir_all(loras.join(below)).unwrap();
        fs::write(loras.join(below).join("twice.safetensors"), "").unwrap();
    }
    let loras = loras.to_str().unwrap();
    for (prompts, facts) in [
        (&["a <lora:../../x:1>"][..], &["<lora:../../x:1>", "the name of a file without folder"][..]),
        (&["a <lora:none:1>"], &["there is no none.safetensors in", loras]),
        (&["a <lora:twice:1>"], &["two files have this name", "a/twice.safetensors"]),
        (&["a <lora:x:1>", "a"], &["all prompts of a run have the same LoRAs"]),
        (&["a [b|c]"], &["[b|c]"]),
        (&["a <hypernet:x:1>"], &["hypernet"]),
    ] {
        let arguments = [prompts, &["--prompt-syntax", "a1111", "--lora-dir", loras]].concat();
        has_facts(format!("{prompts:?}"), &refused(&tiny, &arguments), facts);
    }
    let message = refused(&tiny, &["a <lora:x:1>", "--prompt-syntax", "a1111"]);
    has_facts("no folder", &message, &["--lora-dir FOLDER"]);
    let message = refused(&tiny, &["a", "--prompt-syntax", "comfy"]);
    has_facts("a syntax", &message, &["--prompt-syntax", "\"plain\"", "a1111"]);
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let tiny = Tiny::new();
    let file = |name: &str, tensors: &[(&str, Vec<usize>)]| -> String {
        let tensors = tensors
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), (shape.clone(), vec![0.5; shape.iter().product()])));
        let path = tiny.folder.path().join(name);
        common::formula::write(&path, &tensors.collect());
        path.to_str().unwrap().to_owned()
    };
    let (down, up) = (
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight",
    );
    let flux = "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight";
    let flux_up = "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight";
    let sdxl = file("sdxl.safetensors", &[(down, vec![2, 2048]), (up, vec![16, 2])]);
    let flux = file("flux.safetensors", &[(flux, vec![2, 64]), (flux_up, vec![64, 2])]);
    let half = file("half.safetensors", &[(down, vec![2, 32])]);
    let wide = file("wide.safetensors", &[("emb_params", vec![2, 48])]);
    let pair = file("pair.safetensors", &[("clip_l", vec![2, 32]), ("clip_g", vec![2, 40])]);
    let pickle = tiny.file("old.pt", "\u{2}}q");
    for (arguments, facts) in [
        (["--lora", &sdxl], &["sdxl.safetensors", "is not for a weight of [16, 32]", "made for SDXL"][..]),
        (
            ["--lora", &format!("{flux}:0.5")],
            &["flux.safetensors", "this model has none of its modules", "double_blocks"],
        ),
        (["--lora", &half], &["half.safetensors", "`lora_up.weight` is missing"]),
        (["--lora", &wide], &["wide.safetensors", "`emb_params` is no tensor of a LoRA"]),
        (["--lora", "none.safetensors"], &["none.safetensors", "there is no such file"]),
        (["--embedding", &wide], &["wide.safetensors", "vectors of 32 values for text_encoder", "found: 48 values"]),
        (["--embedding", &format!("{pair}:cat")], &["pair.safetensors", "one text encoder", "found: vectors for 2"]),
        (["--embedding", &sdxl], &["sdxl.safetensors", "no textual inversion", "found: 2 tensors"]),
        (["--embedding", &pickle], &["old.pt"]),
    ] {
        has_facts(format!("{arguments:?}"), &refused(&tiny, &[&["a fox"], &arguments[..]].concat()), facts);
    }
}

#[test]
fn a_controlnet_that_cannot_be_used_is_refused() {
    let tiny = Tiny::new();
    let [own, other] = ["sd", "xl"].map(common::controlnet::folder_of);
    let [own, other] = [&own, &other].map(|folder| folder.path().to_str().unwrap());
    let path = |name: &str| tiny.folder.path().join(name).to_str().unwrap().to_owned();
    image::RgbImage::new(64, 48).save(path("edges.png")).unwrap();
    let (edges, nowhere) = (path("edges.png"), path("nowhere"));
    let unet = format!("{}/tests/golden/tiny-sd1/unet/diffusion_pytorch_model.safetensors", env!("CARGO_MANIFEST_DIR"));
    let with = |more: &[&'static str]| -> Vec<String> {
        let said = ["--controlnet", own, "--control-image", &edges];
        said.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
    };
    let plain = |arguments: &[&str]| -> Vec<String> { arguments.iter().map(|one| (*one).to_owned()).collect() };
    for (arguments, facts) in [
        (
            plain(&["--controlnet", other, "--control-image", &edges]),
            &["`block_out_channels` must be [16,16,24]", "config.json", "Stable Diffusion 1, 2 or XL"][..],
        ),
        (plain(&["--controlnet", &nowhere]), &["the ControlNet ", "nowhere", "no such file or folder"]),
        (plain(&["--controlnet", &unet]), &["this file has no ControlNet", "found: a UNet alone"]),
        (plain(&["--controlnet", own]), &["--control-image: ", "it has 1", "found: 0 pictures"]),
        (plain(&["--control-image", &edges]), &["--control-image: ", "it has 0", "--controlnet FILE"]),
        (plain(&["--control-scale", "1"]), &["--control-scale: there is no control image", "--control-image FILE"]),
        (with(&["--control-image", "x.png"]), &["x.png"]),
        (with(&["--control-start", "0.5", "--control-end", "0.5"]), &["--control-end: ", "greater than the start"]),
        (with(&["--control-end", "1.5"]), &["--control-end: a number from 0 to 1", "found: 1.5"]),
        (with(&["--control-start", "-1"]), &["--control-start: a number from 0 to 1", "found: -1"]),
        (with(&["--control-scale", "inf"]), &["--control-scale: a finite number"]),
        (with(&["--control-scale", "1", "--control-scale", "2"]), &["--control-scale: one number", "2 numbers for 1"]),
    ] {
        let said: Vec<&str> = ["a fox"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        has_facts(format!("{arguments:?}"), &refused(&tiny, &said), facts);
    }
    // In order, it draws, in a picture of the size of the control image.
    let arguments = with(&["--control-scale", "0.5", "--steps", "2"]);
    let mut command = sdshard(&["a fox", "--model", &format!("{}/tests/golden/tiny-sd1", env!("CARGO_MANIFEST_DIR"))]);
    common::succeeds(command.args(arguments).arg("--output-dir").arg(tiny.out()));
    let (_, png) = &tiny.made()[0];
    let said = String::from_utf8_lossy(png);
    has_facts(
        "metadata",
        &said,
        &["\"control_scale\":[0.5]", "\"control_pixels\":[\"", "\"control_end\":[1.0]", "\"width\":64,\"height\":48"],
    );
    assert!(!said.contains("edges.png"), "a file belongs to no picture");
}

#[test]
fn an_inpainting_model_needs_a_picture_and_a_mask() {
    let folder = common::pictures::inpainting_folder();
    let tiny = Tiny::new();
    let model = folder.path().to_str().unwrap();
    let arguments = ["a fox", "--model", model, "--output-dir", tiny.out().to_str().unwrap()].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let facts = ["--image: this is an inpainting model", "--image FILE --mask FILE"];
    has_facts("no picture", &common::refused(&arguments), &facts);
}

#[test]
fn an_output_folder_below_a_file_is_refused() {
    let tiny = Tiny::new();
    let file = tiny.file("out", "not a folder");
    let output = tiny.draw(&["a fox"]).output().unwrap();
    let message = message_of(output, "a file for a folder");
    has_facts("a file", &message, &["output folder", &file]);
    let below = Path::new(&file).join("deeper");
    let arguments = ["a fox", "--output-dir", below.to_str().unwrap()];
    has_facts("below a file", &common::refused(&arguments), &["output folder", "deeper"]);
}

// ---- models ----

/// The message for a prompt to a copy of the small model that `broken` has changed.
fn with_model(what: &str, broken: impl FnOnce(&Path)) -> String {
    let folder = copy_of_tiny();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    broken(&model);
    let arguments = ["a fox", "--steps", "1", "--quiet"];
    let output = sdshard(&arguments).arg("--model").arg(&model).arg("--output-dir").arg(&out).output().unwrap();
    let message = message_of(output, what);
    assert_eq!(files(&out), [""; 0], "{what} left files behind");
    message
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// The tensors of a file, as `edit` leaves them: name, shape, bytes; all F32.
fn edit_tensors(path: PathBuf, edit: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.tensors().into_iter().map(|(name, t)| (name, t.shape().to_vec(), t.data().to_vec())).collect();
    edit(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A JSON file with another value at `key`; the value `null` takes the key out.
fn edit_json(path: PathBuf, key: &str, value: Value) {
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    match value {
        Value::Null => drop(json.as_object_mut().unwrap().remove(key)),
        value => json[key] = value,
    }
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn broken_weights_are_named() {
    let weights = "diffusion_pytorch_model.safetensors";
    type Break = Box<dyn FnOnce(&Path)>;
    let rows: [(&str, Break, &[&str]); 8] = [
        (
            "a truncated file",
            Box::new(|model| {
                let bytes = fs::read(model.join(UNET)).unwrap();
                fs::write(model.join(UNET), &bytes[..bytes.len() - 100]).unwrap();
            }),
            &["loading unet", weights, "1148864 bytes", "found: a file of 1148764 bytes"],
        ),
        (
            "a file that ends within its header",
            Box::new(|model| {
                let bytes = fs::read(model.join(UNET)).unwrap();
                fs::write(model.join(UNET), &bytes[..1000]).unwrap();
            }),
            &["loading unet", weights, "found: a file of 1000 bytes", "interrupted?"],
        ),
        ("an empty file", Box::new(|model| fs::write(model.join(UNET), b"").unwrap()), &[weights, "found: 0 bytes"]),
        (
            "a header of 2^60 bytes",
            Box::new(|model| {
                let mut bytes = fs::read(model.join(UNET)).unwrap();
                bytes[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
                fs::write(model.join(UNET), bytes).unwrap();
            }),
            &["loading unet", weights, "100000000 bytes at most", "found: 1152921504606846976 bytes"],
        ),
        ("no file", Box::new(|model| fs::remove_file(model.join(UNET)).unwrap()), &["loading unet", weights]),
        (
            "a missing tensor",
            Box::new(|model| {
                edit_tensors(model.join(UNET), |tensors| {
                    tensors.retain(|(name, ..)| name != "mid_block.resnets.0.conv1.weight")
                });
            }),
            &["loading unet", "`mid_block.resnets.0.conv1.weight`", weights, "[24, 24, 3, 3]"],
        ),
        (
            "a tensor of another shape",
            Box::new(|model| {
                edit_tensors(model.join(UNET), |tensors| {
                    let tensor = tensors.iter_mut().find(|(name, ..)| name == "conv_in.weight").unwrap();
                    (tensor.1, tensor.2) = (vec![16, 9, 3, 3], vec![0; 4 * 16 * 9 * 9]);
                });
            }),
            &["loading unet", "`conv_in.weight` is [16, 9, 3, 3]", "[16, 4, 3, 3]", weights, "inpainting checkpoint"],
        ),
        (
            "an embedding with too few rows",
            Box::new(|model| {
                edit_json(model.join("text_encoder/config.json"), "vocab_size", json!(900));
                edit_tensors(model.join("text_encoder/model.safetensors"), |tensors| {
                    let tensor = tensors.iter_mut().find(|(name, ..)| name.contains("token_embedding")).unwrap();
                    tensor.1[0] = 900;
                    tensor.2.truncate(4 * 900 * 32);
                });
            }),
            &["tokenizer", "text encoder", "vocab_size", "1000", "found: 900"],
        ),
    ];
    for (what, broken, parts) in rows {
        has_facts(what, &with_model(what, broken), parts);
    }
}

#[test]
fn an_index_may_not_lead_out_of_its_folder() {
    for (file, parts) in [
        ("../x.safetensors", &["`conv_in.weight`", "beside the index", "../x.safetensors"][..]),
        ("/etc/passwd", &["`conv_in.weight`", "beside the index", "/etc/passwd"]),
        ("a.bin", &["`conv_in.weight`", "safetensors file", "a.bin"]),
        ("absent.safetensors", &["absent.safetensors", "no such file"]),
        ("other.safetensors", &["`conv_in.weight` is in", "other.safetensors", "no such tensor in that file"]),
    ] {
        let message = with_model(file, |model| {
            let index = json!({ "metadata": {}, "weight_map": { "conv_in.weight": file } });
            fs::write(model.join(UNET).with_extension("safetensors.index.json"), index.to_string()).unwrap();
            let tensor = TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
            fs::write(model.join("unet/other.safetensors"), safetensors::serialize([("a", tensor)], None).unwrap())
                .unwrap();
        });
        has_facts(file, &message, &["loading unet"]);
        has_facts(file, &message, parts);
    }
}

#[test]
fn a_config_that_cannot_be_followed_is_named_by_file_and_key() {
    for (file, key, value, parts) in [
        ("model_index.json", "_class_name", json!(7), &["a text"][..]),
        ("model_index.json", "controlnet", json!(["diffusers", "ControlNetModel"]), &["`controlnet`", "absent"]),
        ("model_index.json", "unet", json!(["diffusers", "Unet3D"]), &["UNet2DConditionModel", "Unet3D"]),
        ("unet/config.json", "addition_embed_type", json!("image"), &["text_time"]),
        ("unet/config.json", "time_cond_proj_dim", json!(255), &["an even number"]),
        ("unet/config.json", "act_fn", json!("gelu"), &["\"silu\"", "gelu"]),
        ("unet/config.json", "sample_size", Value::Null, &["a whole number"]),
        ("unet/config.json", "block_out_channels", json!([16, 16, -24]), &["-24"]),
        ("unet/config.json", "cross_attention_dim", json!(48), &["hidden_size", "32", "48"]),
        ("text_encoder/config.json", "hidden_act", json!("relu"), &["\"quick_gelu\" or \"gelu\"", "relu"]),
        ("text_encoder/config.json", "vocab_size", json!(999), &["999", "tokenizer"]),
        ("vae/config.json", "out_channels", json!(4), &["red, green and blue"]),
        ("vae/config.json", "norm_num_groups", json!(3), &["divisor of 8"]),
        ("model_index.json", "scheduler", json!(["diffusers", "DEISMultistepScheduler"]), &["euler-ancestral", "DEIS"]),
        ("scheduler/scheduler_config.json", "prediction_type", json!("sample"), &["\"epsilon\" or \"v_prediction\""]),
        ("scheduler/scheduler_config.json", "skip_prk_steps", json!(false), &["true"]),
    ] {
        let what = format!("{file}: {key} = {value}");
        let message = with_model(&what, |model| edit_json(model.join(file), key, value));
        if !matches!(key, "cross_attention_dim" | "vocab_size") {
            has_facts(&what, &message, &[file, key]); // those two concern two files
        }
        has_facts(&what, &message, parts);
    }
}

#[test]
fn a_broken_text_file_is_named() {
    for (file, contents, parts) in [
        ("unet/config.json", &b"{\"sample_size\": "[..], &["unet/config.json"][..]),
        ("unet/config.json", b"[]", &["unet/config.json"]),
        ("model_index.json", b"\xff\xfe", &["model_index.json", "not UTF-8"]),
        ("tokenizer/vocab.json", b"{}", &["tokenizer/"]),
        ("tokenizer/merges.txt", b"a\n", &["merges.txt", "\"a\""]),
        ("sdshard.toml", b"steps = 0\n", &["sdshard.toml", "`steps`", "1 to 1000", "found: 0"]),
        ("sdshard.toml", b"stepz = 3\n", &["sdshard.toml", "stepz"]),
    ] {
        let what = format!("{file} {:?}", String::from_utf8_lossy(contents));
        has_facts(&what, &with_model(&what, |model| fs::write(model.join(file), contents).unwrap()), parts);
    }
    for file in ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "vae/config.json"] {
        let message = with_model(file, |model| fs::remove_file(model.join(file)).unwrap());
        has_facts(file, &message, &[file, "no such file"]);
    }
}

#[test]
fn a_path_that_is_no_model_is_rejected_with_what_a_model_is() {
    let tiny = Tiny::new();
    let checkpoint = tiny.file("model.ckpt", "");
    let single = tiny.file("model.safetensors", "");
    let folder = tiny.folder.path().to_str().unwrap();
    for (model, parts) in [
        ("/nowhere/model", &["/nowhere/model", "no such folder"][..]),
        (&checkpoint, &["model.ckpt", "pickle", "safetensors"]),
        (&single, &["model.safetensors", "ends before its header"]),
        (folder, &["no model_index.json"]),
        ("org/model", &["org/model", "HF_HUB_OFFLINE"]),
    ] {
        let (empty, out) = (tiny.folder.path().join("hub"), tiny.out());
        let output = sdshard(&["a fox", "--model", model])
            .arg("--output-dir")
            .arg(&out)
            .env("HF_HOME", &empty)
            .env_remove("HF_HUB_CACHE")
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        has_facts(model, &message_of(output, model), parts);
        assert_eq!(files(&out), [""; 0], "{model} left files behind");
        assert!(!empty.exists(), "{model} wrote to the hub's cache");
    }
}

/// Names in files of others go into messages: a terminal must not obey them, and a long one must not fill the screen.
#[test]
fn names_that_somebody_else_wrote_are_escaped_and_cut_in_messages() {
    const ESCAPES: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\nerror: \u{9b}31m\u{7f}\u{202e}\u{2066}\u{2028}";
    let long = format!("{ESCAPES}{}", "n".repeat(5 << 20));
    let header = |name: &str| {
        let header = json!({ name: { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] } }).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()
    };
    for name in [ESCAPES, &long] {
        let replace = |path: &str, contents: Vec<u8>| (path.to_string(), contents);
        let change = |path: &str, key: &str, value: Value| {
            let text = fs::read_to_string(common::tiny().join(path)).unwrap();
            let mut object: Value = serde_json::from_str(&text).unwrap();
            object[key] = value;
            replace(path, object.to_string().into_bytes())
        };
        let weights = "unet/diffusion_pytorch_model.safetensors";
        let bad_index = json!({ "weight_map": { "conv_in.weight": name } }).to_string();
        for (path, contents) in [
            change("unet/config.json", "act_fn", json!(name)),
            change("unet/config.json", "down_block_types", json!([name])),
            change("text_encoder/config.json", "hidden_act", json!(name)),
            change("scheduler/scheduler_config.json", "prediction_type", json!(name)),
            change("model_index.json", "scheduler", json!(["diffusers", name])),
            change("model_index.json", "unet", json!([name, name])),
            replace(weights, header(name)),
            replace(weights, name.as_bytes().to_vec()),
            replace("tokenizer/tokenizer.json", json!({ "model": { "type": name } }).to_string().into_bytes()),
            replace("sdshard.toml", format!("steps = {}\n", json!(name)).into_bytes()),
            replace("sdshard.toml", format!("{} = 1\n", json!(name)).into_bytes()),
            replace("unet/diffusion_pytorch_model.safetensors.index.json", bad_index.clone().into_bytes()),
        ] {
            let folder = copy_of_tiny();
            let model = folder.path().join("model");
            if path.ends_with("index.json") && path.starts_with("unet") {
                fs::remove_file(model.join(weights)).unwrap();
            }
            fs::write(model.join(&path), contents).unwrap();
            let arguments = ["a fox", "--quiet", "--steps", "1", "--device-map", "single"];
            let out = folder.path().join("out");
            harmless(&path, sdshard(&arguments).arg("--model").arg(&model).arg("--output-dir").arg(&out));
        }
        let tiny = Tiny::new();
        let quoted = json!(name);
        for (file, text) in [
            ("m.toml", format!("{quoted} = 1\n")),
            ("m.toml", format!("strategy = {quoted}\n")),
            ("m.toml", format!("[components]\n{quoted} = \"cpu\"\n")),
            ("m.toml", format!("devices = [{quoted}]\n")),
            ("m.toml", format!("x = {name}\n")),
        ] {
            let map = tiny.file(file, &text);
            harmless(&text[..20], &mut tiny.draw(&["a fox", "--device-map", &map]));
        }
        for text in [
            format!("{{{quoted}: 1}}\n"),
            format!("{{\"prompt\": \"x\", \"scheduler\": {quoted}}}\n"),
            format!("[{{{quoted}: 1}}]\n"),
            format!("{{\"prompt\": {quoted}, \"width\": 3}}\n"),
        ] {
            let prompts = tiny.file("p.jsonl", &text);
            harmless(&text[..20], &mut tiny.draw(&["--prompts-file", &prompts]));
        }
    }
    for arguments in [
        &["--steps", ESCAPES][..],
        &["--scheduler", ESCAPES],
        &["--device-map", ESCAPES],
        &["--device", ESCAPES],
        &["--width", ESCAPES],
        &["--seed", ESCAPES],
        &["--latents", ESCAPES],
        &["--prompts-file", ESCAPES],
    ] {
        harmless(&format!("{arguments:?}"), &mut Tiny::new().draw(&[&["a fox"], arguments].concat()));
    }
}

/// Runs what is refused: its message has one error, no control characters, and is short.
#[track_caller]
fn harmless(what: &str, command: &mut std::process::Command) {
    let output = command.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{what}\n{}", &message.chars().take(3000).collect::<String>());
    assert!(message.len() < 20_000, "{what}: {} bytes", message.len());
    let is_hostile = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2066}\u{2028}".contains(c);
    assert!(!message.contains(is_hostile), "{what}: {message:?}");
}
