//! Pictures in every format, and settings both ways: what a picture says is drawn again with `--from`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sdshard::pipeline::Image;

use crate::common::{
    self, Tiny, controlnet, files, formula, has_facts, json_lines, message_of,
    pictures::{self, picture},
    sdshard, succeeds, text, tiny,
};

/// Formats with their extensions.
const FORMATS: [(&str, &str); 4] = [("png", "png"), ("jpeg", "jpg"), ("webp", "webp"), ("latent", "safetensors")];

/// Draws what `from` says with the small model, into `folder`.
fn again(from: &Path, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = sdshard(arguments);
    command.arg("--from").arg(from).arg("--model").arg(tiny()).arg("--output-dir").arg(folder);
    command
}

/// Draws a picture with `arguments`, and gives its path.
fn draw(tiny: &Tiny, arguments: &[&str]) -> PathBuf {
    succeeds(&mut tiny.draw(arguments)).trim_end().into()
}

#[test]
fn a_picture_in_every_format_is_resumed_and_drawn_again() {
    for (format, extension) in FORMATS {
        let tiny = Tiny::new();
        let arguments = ["a \"fox\": 🦊\nsnow", "--negative-prompt", "blur, x", "--seed", "7", "--scheduler", "ddim"];
        let arguments = [&arguments[..], &["--rng", "cuda", "--output-type", format]].concat();
        let path = draw(&tiny, &arguments);
        assert_eq!(files(&tiny.out()), [format!("00000-a-fox-snow.{extension}")]);
        let bytes = fs::read(&path).unwrap();

        let resumed = [&arguments[..], &["--resume", "--json"]].concat();
        assert_eq!(json_lines(&succeeds(&mut tiny.draw(&resumed)))[0]["summary"]["skipped"], 1, "{format}");
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        succeeds(&mut tiny.draw(&[&arguments[..], &["--resume", "--overwrite"]].concat()));
        assert_eq!(fs::read(&path).unwrap(), bytes, "{format}");

        let second = tiny.folder.path().join("again");
        let output = again(&path, &second, &["--output-type", format]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(!text(&output.stderr).contains("--from"), "everything is followed: {}", text(&output.stderr));
        let made = second.join(path.file_name().unwrap());
        assert_eq!(fs::read(made).unwrap(), bytes, "{format}");
    }
}

#[test]
fn flags_take_precedence_over_the_settings_of_a_picture() {
    let tiny = Tiny::new();
    let path = draw(&tiny, &["a fox", "--seed", "7", "--guidance-scale", "3"]);
    let wanted = draw(&tiny, &["a hen", "--seed", "8", "--guidance-scale", "3", "--output-type", "webp"]);
    let second = tiny.folder.path().join("again");
    succeeds(&mut again(&path, &second, &["a hen", "--seed", "8", "--output-type", "webp"]));
    assert_eq!(fs::read(second.join("00000-a-hen.webp")).unwrap(), fs::read(wanted).unwrap());

    let third = tiny.folder.path().join("more");
    let lines = json_lines(&succeeds(&mut again(&path, &third, &["--num-images", "2", "--json"])));
    let seeds: Vec<_> = lines.iter().filter_map(|line| line["seed"].as_u64()).collect();
    assert_eq!(seeds, [7, 8]);
}

#[test]
fn settings_of_a_web_ui_are_followed_as_far_as_they_can_be() {
    let tiny = Tiny::new();
    let file = tiny.file(
        "a.txt",
        "a fox <lora:snow:0.8>\nNegative prompt: blur\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, \
         CFG scale: 3, Seed: 5, Size: 64x64, Model hash: 0123456789, Model: dream, VAE: kl, Clip skip: 2, Denoising strength: 0.5, \
         Lora hashes: \"snow: 0123\", Foo bar: 1, Version: v1.10.1",
    );
    let output = again(file.as_ref(), &tiny.out(), &[]).output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{message}");
    for line in [
        "not followed: LoRA snow:0.8: --lora or --lora-dir gives one",
        "drawn by another model (dream, hash 0123456789); this one is tiny-sd1, hash ",
        "the picture started from a picture: --image FILE",
        "not followed: VAE kl: --vae gives one",
        "not followed: Foo bar: 1",
        "expect a similar picture",
    ] {
        assert!(message.contains(line), "wanted: {line}\n{message}");
    }
    assert_eq!(message.matches("not followed").count(), 3, "{message}");
    let wanted = Tiny::new();
    let arguments = ["a fox", "--prompt-syntax", "a1111", "--negative-prompt", "blur", "--scheduler", "dpm++2m-karras"];
    let more = ["--guidance-scale", "3", "--seed", "5", "--rng", "cuda", "--clip-skip", "1"];
    draw(&wanted, &[&arguments[..], &more].concat());
    assert_eq!(tiny.made(), wanted.made());
}

#[test]
fn files_that_flags_give_are_followed_and_others_are_asked_for() {
    let tiny = Tiny::new();
    let inside = |name: &str| tiny.folder.path().join(name).to_str().unwrap().to_owned();
    let [cat, style, vae, image] = ["cat.safetensors", "style.safetensors", "kl.safetensors", "edges.png"].map(inside);
    let values = |key: &str, shape: &[usize]| (shape.to_vec(), formula::weight("settings", key, shape, 1.0));
    formula::write(cat.as_ref(), &[("emb_params".to_owned(), values("cat", &[2, 32]))].into());
    let stem = "lora_te_text_model_encoder_layers_0_self_attn_q_proj";
    let lora = [("down", [2, 32]), ("up", [32, 2])]
        .map(|(part, shape)| (format!("{stem}.lora_{part}.weight"), values(part, &shape)));
    formula::write(style.as_ref(), &lora.clone().into());
    fs::copy(common::tiny().join("vae/diffusion_pytorch_model.safetensors"), &vae).unwrap();
    save(&picture(64, 64), image.as_ref());
    let net = controlnet::folder_of("sd");
    let net_path = net.path().to_str().unwrap().to_owned();
    let given = ["--lora", &format!("{style}:0.5"), "--embedding", &cat, "--vae", &vae, "--controlnet", &net_path];
    let given: Vec<&str> = [&given[..], &["--control-image", &image]].concat();
    let more = ["--control-scale", "0.75", "--control-end", "0.5", "--scheduler", "ddim", "--prompt-syntax", "a1111"];
    let path = draw(&tiny, &[&["a cat"], &given[..], &more].concat());
    let bytes = fs::read(&path).unwrap();
    let shown = String::from_utf8_lossy(&bytes);
    let start = shown.find("a cat <lora:style:0.5>").unwrap();
    let length = shown[start..].find(|c: char| c.is_control() && c != '\n' || c == '\u{fffd}').unwrap();
    // The chunk's checksum begins with characters that may look like text.
    let text_of_web_ui = shown[start..start + length].rsplit_once('"').unwrap().0.to_owned() + "\"";
    let net_name = net.path().file_name().unwrap().to_str().unwrap();
    for part in ["VAE: kl.safetensors", "Lora hashes: \"style: ", "TI hashes: \"cat: ", net_name, "Weight: 0.75"] {
        assert!(text_of_web_ui.contains(part), "wanted: {part}\n{text_of_web_ui}");
    }
    let web = tiny.file("web.txt", &text_of_web_ui);
    for from in [&path, Path::new(&web)] {
        let second = tempfile::tempdir().unwrap();
        let output = again(from, second.path(), &given).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{message}");
        assert!(!message.contains("not followed") && !message.contains("another model"), "{message}");
        let made = fs::read(second.path().join(&files(second.path())[0])).unwrap();
        assert_eq!(common::pixels(&made), common::pixels(&bytes), "{}", from.display());

        let output = again(from, second.path(), &[]).output().unwrap();
        let facts = [
            "LoRA style:0.5: --lora or --lora-dir gives one",
            "embedding cat (",
            "--embedding or --embedding-dir gives one",
            &format!("ControlNet {net_name}"),
            "VAE kl.safetensors (",
        ];
        has_facts(from, text(&output.stderr), &facts);
        assert_eq!(text(&output.stderr).matches("not followed").count(), 4, "{}", text(&output.stderr));
    }
    // Another file of the same name.
    let folder = tiny.folder.path().join("other");
    fs::create_dir(&folder).unwrap();
    let other = folder.join("style.safetensors");
    let doubled = lora.map(|(name, (shape, values))| (name, (shape, values.iter().map(|x| 2.0 * x).collect())));
    formula::write(&other, &doubled.into());
    let third = tempfile::tempdir().unwrap();
    let output = again(&path, third.path(), &["--lora-dir", folder.to_str().unwrap()]).output().unwrap();
    has_facts("another file", text(&output.stderr), &["LoRA style (", "this run has another file of this name"]);
    let weight = format!("{style}:0.25");
    let output = again(&path, third.path(), &["--lora", &weight]).output().unwrap();
    has_facts("another weight", text(&output.stderr), &["LoRA style:0.5: this run has style:0.25"]);
}

#[test]
fn a_picture_from_a_picture_is_drawn_again_with_the_same_picture() {
    let tiny = Tiny::new();
    let [image, other, mask] = ["image.png", "other.png", "mask.png"].map(|name| tiny.folder.path().join(name));
    save(&picture(64, 64), &image);
    save(&picture(72, 64), &other);
    save(&pictures::mask(64, 64), &mask);
    let given =
        |image: &Path| ["--image", image.to_str().unwrap(), "--mask", mask.to_str().unwrap()].map(str::to_owned);
    let first = given(&image);
    let first: Vec<&str> = first.iter().map(String::as_str).collect();
    let arguments = ["a fox", "--strength", "0.9", "--steps", "4", "--paste-original", "--scheduler", "ddim"];
    let path = draw(&tiny, &[&arguments[..], &first].concat());
    let resumed = [&arguments[..], &first, &["--resume", "--json"]].concat();
    assert_eq!(json_lines(&succeeds(&mut tiny.draw(&resumed)))[0]["summary"]["skipped"], 1);
    let kept = Image::read(&path).unwrap();
    assert!(kept.rgb[..3 * 20] == Image::read(&image).unwrap().rgb[..3 * 20], "the first pixels are kept");

    let second = tiny.folder.path().join("again");
    let output = again(&path, &second, &first).output().unwrap();
    assert!(!text(&output.stderr).contains("--from"), "everything is followed: {}", text(&output.stderr));
    assert_eq!(fs::read(second.join("00000-a-fox.png")).unwrap(), fs::read(&path).unwrap());

    let third = tiny.folder.path().join("other");
    let output = again(&path, &third, &[]).output().unwrap();
    let message = text(&output.stderr);
    for flag in ["--image FILE", "--mask FILE"] {
        assert!(message.contains(flag), "wanted: {flag}\n{message}");
    }
    let output = again(&path, &third, &["--image", other.to_str().unwrap()]).output().unwrap();
    has_facts("a mask is missing", &message_of(output, "a mask is missing"), &["paste_original", "no mask"]);
}

/// Saves pixels without settings.
fn save(image: &Image, path: &Path) {
    let buffer = image::RgbImage::from_raw(image.width as u32, image.height as u32, image.rgb.clone());
    buffer.unwrap().save(path).unwrap();
}

#[test]
fn what_cannot_be_drawn_again_is_rejected_with_one_message() {
    let settings = |size: &str, more: &str| format!("a fox\nSteps: 2, Seed: 5, Size: {size}{more}");
    for (contents, arguments, facts) in [
        (settings("100x64", ""), &[][..], &["a.txt: width: has to be a multiple of 8", "found: 100", "96 or 104"][..]),
        (settings("9000x64", ""), &[], &["a.txt: width: at most 8192", "found: 9000"]),
        (settings("64x64", "").replace(": 2", ": 0"), &[], &["a.txt: steps: at least 1"]),
        (settings("64x64", "").replace(": 2", ": 2000"), &[], &["a.txt: steps", "2000"]),
        (settings("64x64", ", CFG scale: nan"), &[], &["a.txt: guidance_scale: a finite number"]),
        (settings("64x64", ""), &["--width", "100"], &["--width: has to be a multiple of 8"]),
        ("{\"3\": {\"class_type\": \"KSampler\"}}".into(), &[], &["reading the settings in", "a.txt", "ComfyUI"]),
        (" \n".into(), &[], &["a.txt", "says nothing about how it was drawn"]),
    ] {
        let tiny = Tiny::new();
        let file = tiny.file("a.txt", &contents);
        let message = message_of(again(file.as_ref(), &tiny.out(), arguments).output().unwrap(), &contents);
        has_facts(&contents, &message, facts);
        assert_eq!(files(&tiny.out()), [""; 0], "{contents}");
    }
    let tiny = Tiny::new();
    let missing = again(Path::new("/nowhere/a.png"), &tiny.out(), &[]).output().unwrap();
    has_facts("missing", &message_of(missing, "missing"), &["--from", "/nowhere/a.png"]);
}

/// Which model is meant is not guessed: without `--model` the built-in one is not taken for another.
#[cfg(feature = "builtin-model")]
#[test]
fn a_picture_of_another_model_needs_one() {
    let tiny = Tiny::new();
    let path = draw(&tiny, &["a fox"]);
    let folder = tiny.folder.path().join("again");
    let output =
        sdshard(&["-q", "--output-dir", folder.to_str().unwrap(), "--from", path.to_str().unwrap()]).output().unwrap();
    let facts = ["another model", "found: tiny-sd1, hash ", "try:   --model"];
    has_facts("another", &message_of(output, "another"), &facts);
    assert_eq!(files(&folder), [""; 0]);

    let own = tiny.folder.path().join("own");
    let arguments = ["a dog", "--steps", "1", "--width", "64", "--height", "64", "--output-dir", own.to_str().unwrap()];
    let path = succeeds(&mut sdshard(&arguments));
    let folder = folder.to_str().unwrap();
    let path = succeeds(&mut sdshard(&["--output-dir", folder, "--from", path.trim_end()]));
    assert!(path.ends_with("00000-a-dog.png\n"), "{path}");
}

#[test]
fn prompts_that_are_too_long_for_a_jpeg_are_rejected_before_anything_is_drawn() {
    let tiny = Tiny::new();
    let prompt = "fox ".repeat(6000);
    let message = message_of(tiny.draw(&[&prompt, "--output-type", "jpeg"]).output().unwrap(), "long");
    has_facts("long", &message, &["too long for the metadata of a JPEG", "--output-type png or webp"]);
    assert_eq!(files(&tiny.out()), [""; 0]);
}
