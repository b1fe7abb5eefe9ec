//! The program from outside: output, messages, exit codes.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::common::{
    self, Tiny, fields, files, has_facts, json_lines, pixels, refused, run, sdshard, succeeds, text, tiny,
};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn help_has_examples_and_lists_what_there_is() {
    for arguments in [&["--help"][..], &["-h"], &["help"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(text(&output.stderr), "");
        for word in ["Examples:", "sdshard \"a red fox\"", "plan", "devices", "bench", "--device-map", "--prompts-file"]
        {
            assert!(text(&output.stdout).contains(word), "{arguments:?}: {word}");
        }
    }
    assert!(text(&run(&["help", "plan"]).stdout).contains("without reading a weight"));
}

#[test]
fn the_version_is_the_crates() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), concat!("sdshard ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn bad_arguments_are_refused_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "\n\n").unwrap();
    let empty = empty.to_str().unwrap();
    for (arguments, says) in [
        (&[][..], "no prompt"),
        (&["--prompts-file", empty], "no prompt in"),
        (&["--prompts-file", "/nowhere/p.txt"], "prompts in /nowhere/p.txt"),
        (&["a fox", "--stpes", "3"], "'--steps'"),
        (&["a fox", "--steps", "many"], "--steps"),
        (&["a fox", "--steps", "0"], "--steps: at least 1"),
        (&["a fox", "--seed", "-2"], "from 0 to 18446744073709551615, or random"),
        (&["a fox", "--scheduler", "eular"], "'euler'"),
        (&["a fox", "--output-type", "gif"], "[possible values: png, jpeg, webp, latent]"),
        (&["a fox", "--rng", "numpy"], "cpu, cuda"),
        (&["a fox", "--dtype", "fp61"], "[possible values: auto, f32, f16, bf16, int8]"),
        (&["a fox", "--latents", "/nowhere/l.safetensors"], "latents in /nowhere/l.safetensors"),
        (&["a fox", "--device-map", "balancd"], "did you mean \"balanced\"?"),
        (&["a fox", "--device-map", "/nowhere/m.toml"], "device map /nowhere/m.toml"),
        (&["plan", "a fox", "--steps", "0"], "--steps: at least 1"),
    ] {
        has_facts(arguments, &refused(arguments), &[says]);
    }
}

#[test]
fn reserved_words_are_not_prompts_by_accident() {
    for word in ["serve", "convert", "completions"] {
        assert!(refused(&[word]).contains(&format!("sdshard -- {word}")));
    }
}

#[test]
fn a_subcommand_behind_an_option_is_no_prompt_by_accident() {
    for arguments in [&["-q", "bench"][..], &["--seed", "3", "plan"], &["a fox", "devices"]] {
        has_facts(arguments, &refused(arguments), &["subcommand", "first word"]);
    }
}

#[test]
fn a_lone_word_that_may_be_a_command_is_no_prompt_by_accident() {
    for word in ["list", "run", "version", "generate", "txt2img", "Help", "plann", "bnech", "device"] {
        for arguments in [&[word, "--quiet"][..], &["--quiet", word]] {
            let message = refused(arguments);
            assert!(message.contains(&format!("sdshard -- {word}")), "{arguments:?}\n{message}");
        }
    }
    let tiny = Tiny::new();
    succeeds(tiny.draw(&["--quiet"]).args(["--", "list"]));
    succeeds(&mut tiny.draw(&["--quiet", "list", "of birds", "--overwrite"]));
}

#[test]
fn flags_of_other_tools_draw_the_same_picture() {
    let (own, other) = (Tiny::new(), Tiny::new());
    let arguments = [
        ["--width", "72"],
        ["--height", "40"],
        ["--steps", "3"],
        ["--scheduler", "euler-ancestral"],
        ["--guidance-scale", "3.5"],
        ["--num-images", "2"],
        ["--negative-prompt", "blur"],
        ["--dtype", "f32"],
    ];
    succeeds(&mut own.draw(&[&["a fox"], arguments.as_flattened()].concat()));
    for taught in [
        "-p|a fox|-W|72|-H|40|--num_inference_steps|3|--sampler|euler_a|--cfg-scale|3.5|--n_samples|2|--negative|blur|--dtype|fp32",
        "--prompt=a fox|--size|72x40|--steps|3|--sampling-method|Euler a|--guidance_scale=3.5|--num_images_per_prompt|2\
         |--negative_prompt|blur|--torch_dtype|float32",
    ] {
        let mut command = sdshard(&taught.split('|').collect::<Vec<_>>());
        succeeds(command.arg("-m").arg(tiny()).arg("--outdir").arg(other.out()).arg("--overwrite"));
        assert!(own.made() == other.made(), "{taught}");
    }
}

#[test]
fn flags_that_are_known_elsewhere_and_absent_here_are_named() {
    for (arguments, parts) in [
        (&["-n", "4"][..], &["-n: ", "--num-images N or --negative-prompt TEXT"][..]),
        (&["-s7"], &["-s: ", "--seed N or --steps N"]),
        (&["--loras", "x"], &["--loras: ", "--lora FILE"]),
        (
            &["--lora", "nowhere.safetensors:0.5", "--model", "models/emoji"],
            &["nowhere.safetensors: there is no such file"],
        ),
        (&["--inpaint", "x.png"], &["--inpaint: ", "--image FILE --mask FILE"]),
        (&["--mask_blur=4"], &["--mask-blur: ", "--paste-original"]),
        (&["--ip-adapter", "x"], &["--controlnet FILE"]),
        (&["--upscale-model", "x"], &["no second pass", "--image PICTURE"]),
        (&["--refiner", "x"], &["--model REFINER --image PICTURE"]),
        (&["--batch_size", "4"], &["`batch = 4`"]),
        (&["--threads", "4"], &["SDSHARD_THREADS=4"]),
        (&["--scheduler", "lms"], &["--scheduler: \"lms\"", "pndm, ddim, euler"]),
        (&["--scheduler", "karras"], &["dpm++2m-karras"]),
        (&["--device", "mps"], &["\"wgpu:0\" is any GPU"]),
        (&["--size", "512"], &["512x768"]),
        (&["--size", "64x64", "--width", "64"], &["--size", "cannot be used with"]),
    ] {
        let message = refused(&[&["a fox"], arguments].concat());
        has_facts(arguments, &message, parts);
        assert!(!message.contains("--prompts-file"), "{message}");
    }
}

#[test]
fn the_flag_device_replaces_the_devices_of_the_map() {
    let model = tiny();
    let plan = |arguments: &[&str]| -> Value {
        let mut command = sdshard(&[&["plan", "--json"], arguments].concat());
        serde_json::from_str(&succeeds(command.arg("--model").arg(&model))).unwrap()
    };
    let names = |plan: &Value| -> Vec<String> {
        plan["devices"].as_array().unwrap().iter().map(|device| device["name"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(names(&plan(&["--device", "cpu:1", "--device-map", "single"])), ["cpu:1"]);
    assert_eq!(names(&plan(&["--device=cpu:1,cpu:0", "--device-map", "sequential"])), ["cpu:1"]);
    let folder = tempfile::tempdir().unwrap();
    let map = folder.path().join("map.toml");
    fs::write(&map, "strategy = \"single\"\ndevices = [\"cpu:0\", \"cpu:1\"]\n").unwrap();
    let map = map.to_str().unwrap();
    assert_eq!(names(&plan(&["--device-map", map])), ["cpu:0"]);
    assert_eq!(names(&plan(&["--device-map", map, "--device", "cpu:1"])), ["cpu:1"]);

    for (arguments, says) in [
        (&["plan", "--device", "cuda:77"][..], "error: --device: there is no device \"cuda:77\""),
        (&["plan", "--device", "cpu,cpu"], "error: --device: cpu is named twice"),
        (&["plan", "--device", "cpu:0,cpu"], "error: --device: `cpu` is all cores"),
        (&["plan", "--device", "cpu:1", "--device-map", "cpu-split.toml"], "cpu:0 is not among the devices"),
        (&["bench", "--device", "cpu:0,cpu:1"], "--device: one device is measured at a time"),
    ] {
        has_facts(arguments, &refused(&[arguments, &["--quiet"]].concat()), &[says]);
    }
}

#[test]
fn messages_about_flags_name_the_flag_and_no_file() {
    let tiny = Tiny::new();
    let prompts = tiny.file("p.txt", "a fox\n");
    for (arguments, flag) in [
        (&["--width", "100"][..], "--width: "),
        (&["--steps", "1001"], "--steps: "),
        (&["--device", "cuda:77"], "--device: "),
    ] {
        for prompt in [&["a fox"][..], &["--prompts-file", &prompts]] {
            let message = common::message_of(tiny.draw(&[prompt, arguments].concat()).output().unwrap(), flag);
            assert!(message.starts_with(&format!("error: {flag}")), "{message}");
        }
    }
}

#[test]
fn a_json_array_is_a_list_of_prompts_and_stdin_can_be_a_prompts_file() {
    use std::io::Write;
    let right = Tiny::new();
    succeeds(&mut right.draw(&["a dog", "a cat"]));
    for text in ["[\"a dog\", \"a cat\"]", "[\n  \"a dog\",\n  {\"prompt\": \"a cat\"}\n]\n", "a dog\na cat\n"] {
        let tiny = Tiny::new();
        let mut command = tiny.draw(&["--prompts-file", "-", "--quiet"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        assert!(tiny.made() == right.made(), "{text}");
    }
    let tiny = Tiny::new();
    let table = tiny.file("p.txt", "prompt;seed\na fox;1\n");
    let message = common::message_of(tiny.draw(&["--prompts-file", &table]).output().unwrap(), "a table");
    has_facts(&table, &message, &["p.txt", "header (CSV)"]);
    assert_eq!(files(&tiny.out()), [""; 0]);
    let message = refused(&["--prompts-file", "-", "--rank", "0", "--world-size", "2"]);
    has_facts("two processes", &message, &["--prompts-file -: ", "several processes", "stdin"]);
}

#[test]
fn syntax_of_web_uis_is_warned_of_once() {
    let warnings = |prompts: &[&str]| {
        let output = Tiny::new().draw(prompts).output().unwrap();
        text(&output.stderr).lines().filter(|line| line.contains("WARN")).map(str::to_string).collect::<Vec<_>>()
    };
    for prompt in ["a (red:1.3) fox", "a fox <lora:snow:1>", "a fox BREAK snow"] {
        let warned = warnings(&[prompt, prompt, "a hen"]);
        assert!(matches!(&warned[..], [one] if one.contains("plain text, as diffusers does")), "{warned:?}");
    }
    assert_eq!(warnings(&["a fox", "--negative-prompt", "(blur:2)"]).len(), 1);
    assert_eq!(warnings(&["a fox (small), at 10:30"]), [""; 0]);
}

#[cfg(feature = "builtin-model")]
#[test]
fn the_toy_model_warns_once_of_sizes_and_guidance_that_it_was_not_made_for() {
    for (arguments, count) in [
        (&["--width", "64", "--height", "64", "--num-images", "2"][..], 1),
        (&["--width", "64", "--height", "64", "--guidance-scale", "7.5"], 1),
        (&["--guidance-scale", "7.5", "--output-type", "latent"], 1),
        (&["--output-type", "latent"], 0),
    ] {
        let tiny = Tiny::new();
        let mut command = sdshard(&[&["a dog", "--steps", "1"], arguments].concat());
        let output = command.arg("--output-dir").arg(tiny.out()).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(message.matches("the built-in toy model was made for 128x128").count(), count, "{message}");
    }
}

#[test]
fn more_than_fifty_pictures_in_a_pipe_have_an_overview_and_no_line_each() {
    let told = |count: &str| {
        let tiny = Tiny::new();
        let arguments = ["a fox", "--num-images", count, "--steps", "1", "--width", "8", "--height", "8"];
        let output = tiny.draw(&[&arguments[..], &["--output-type", "latent"]].concat()).output().unwrap();
        let message = text(&output.stderr).to_string();
        assert!(message.contains(&format!("{count} of {count} done")), "{message}");
        assert!(message.contains("loading unet, "), "{message}");
        message.matches("saved after").count()
    };
    assert_eq!((told("50"), told("51")), (50, 0));
}

/// Whoever reads stdout may go away: a log collector that dies, `| head -1`.
#[test]
fn a_closed_stdout_does_not_end_the_run() {
    for json in [&[][..], &["--json"]] {
        let tiny = Tiny::new();
        let mut command = tiny.draw(&[&["a fox", "--num-images", "12", "--steps", "1"], json].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{message}");
        assert_eq!(files(&tiny.out()).len(), 12, "{message}");
        assert_eq!(message.matches("stdout is closed").count(), 1, "{message}");
    }
}

#[test]
fn a_bad_log_filter_is_refused() {
    let output = sdshard(&["devices"]).env("RUST_LOG", "sdshard=loud").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("RUST_LOG=sdshard=loud"));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let tiny = Tiny::new();
    for mut command in [
        sdshard(&["--help"]),
        sdshard(&["devices", "--quiet"]),
        tiny.draw(&["a fox", "an owl", "a hen", "--quiet"]),
        tiny.draw(&["a fox", "an owl", "a hen", "--quiet", "--json", "--overwrite"]),
    ] {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{command:?}");
    }
}

#[test]
fn nothing_is_left_in_a_folder_by_a_refused_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    refused(&["a fox", "--steps", "0", "--output-dir", out.to_str().unwrap()]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn stdout_has_one_path_for_each_picture() {
    let tiny = Tiny::new();
    let output = tiny.draw(&["A red fox!", "an owl", "狐狸", "--num-images", "2", "--seed", "7"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let names = [
        "00000_00-a-red-fox.png",
        "00000_01-a-red-fox.png",
        "00001_00-an-owl.png",
        "00001_01-an-owl.png",
        "00002_00-狐狸.png",
        "00002_01-狐狸.png",
    ];
    let mut paths: Vec<&str> = text(&output.stdout).lines().collect();
    paths.sort_unstable();
    let wanted: Vec<String> = names.iter().map(|name| tiny.out().join(name).display().to_string()).collect();
    assert_eq!(paths, wanted);
    assert_eq!(files(&tiny.out()), names);
    assert_eq!(text(&output.stderr).matches("saved after").count(), 6);
    for (_, bytes) in tiny.made() {
        let (width, height, pixels) = pixels(&bytes);
        assert_eq!((width, height, pixels.len()), (64, 64, 64 * 64 * 3));
    }
}

#[test]
fn a_quiet_run_writes_paths_to_stdout_and_nothing_to_stderr() {
    let tiny = Tiny::new();
    let output = tiny.draw(&["a fox", "--quiet"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    assert_eq!(text(&output.stdout).lines().count(), 1);
}

#[test]
fn json_lines_have_the_documented_fields() {
    let tiny = Tiny::new();
    let arguments =
        ["a fox", "an owl", "--num-images", "2", "--seed", "40", "--json", "--device-map", "cpu-split.toml"];
    let mut lines = json_lines(&succeeds(&mut tiny.draw(&arguments)));
    assert_eq!(lines.len(), 5);
    // Two are in flight at once, so they may come in another order.
    lines[..4].sort_by_key(|line| line["seed"].as_u64());
    for (n, line) in lines[..4].iter().enumerate() {
        assert_eq!(
            fields(line),
            [
                "index: number",
                "image: number",
                "prompt: string",
                "seed: number",
                "file: string",
                "replica: number",
                "rank: number",
                "world_size: number",
                "attempts: number",
                "devices: object",
                "numerics: object",
                "timings_ms: object",
                "steps: number",
            ]
        );
        assert_eq!(line["index"], n / 2);
        assert_eq!(line["image"], n % 2);
        assert_eq!(line["prompt"], ["a fox", "an owl"][n / 2]);
        assert_eq!(line["seed"], 40 + n);
        assert_eq!((&line["replica"], &line["rank"], &line["world_size"]), (&0.into(), &0.into(), &1.into()));
        assert_eq!((&line["attempts"], &line["steps"]), (&1.into(), &2.into()));
        assert!(Path::new(line["file"].as_str().unwrap()).is_file());
        assert_eq!(line["devices"].to_string(), r#"{"text_encoder":"cpu:0","unet":"cpu:1","vae":"cpu:0"}"#);
        assert_eq!(fields(&line["numerics"]), ["text_encoder: string", "unet: string", "vae: string"]);
        assert!(line["numerics"]["unet"].as_str().unwrap().starts_with("cpu "));
        let timings = &line["timings_ms"];
        assert_eq!(fields(timings), ["text_encoder: number", "unet: number", "vae: number", "total: number"]);
        let ms = |name: &str| timings[name].as_f64().unwrap();
        assert!(ms("unet") > 0.0 && ms("vae") > 0.0);
        assert!((ms("text_encoder") + ms("unet") + ms("vae") - ms("total")).abs() < 0.01, "{timings}");
    }
    assert_eq!(fields(&lines[4]), ["summary: object"]);
    let summary = &lines[4]["summary"];
    assert_eq!(
        fields(summary),
        [
            "images: number",
            "failed: number",
            "skipped: number",
            "seconds: number",
            "images_per_second: number",
            "load_seconds: number",
            "warm_up_seconds: number",
            "steady_images_per_second: number",
            "busy_percent: object",
            "peak_bytes: object",
            "peak_weight_bytes: object",
        ]
    );
    assert!(summary["warm_up_seconds"].as_f64().unwrap() <= summary["seconds"].as_f64().unwrap());
    for device in ["cpu:0", "cpu:1"] {
        let busy = summary["busy_percent"][device].as_f64().unwrap();
        assert!(busy > 0.0 && busy <= 100.0, "{device} is busy {busy} %");
        assert!(summary["peak_weight_bytes"][device].as_u64().unwrap() > 0);
    }
    assert_eq!((&summary["images"], &summary["failed"], &summary["skipped"]), (&4.into(), &0.into(), &0.into()));
    assert_eq!(fields(&summary["peak_bytes"]), ["cpu:0: number", "cpu:1: number"]);
    let per_second = summary["images_per_second"].as_f64().unwrap();
    assert!((per_second * summary["seconds"].as_f64().unwrap() - 4.0).abs() < 1e-6);
}

#[test]
fn a_run_that_draws_latents_has_the_same_json() {
    let tiny = Tiny::new();
    let lines = json_lines(&succeeds(&mut tiny.draw(&["a fox", "a fox", "--output-type", "latent", "--json"])));
    assert_eq!(lines.len(), 3);
    for line in &lines[..2] {
        assert_eq!(fields(&line["devices"]), ["text_encoder: string", "unet: string", "vae: string"], "{line}");
        assert_eq!(line["timings_ms"]["vae"], 0.0);
    }
}

#[test]
fn pictures_that_fail_are_listed_and_the_exit_code_is_1() {
    let folder = common::copy_of_tiny();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    let unet = model.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&unet).unwrap();
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes()); // one weight that is no number
    fs::write(&unet, bytes).unwrap();
    let arguments = ["a fox", "an owl", "--steps", "1", "--json", "--quiet"];
    let draw = |dtype| {
        let mut command = sdshard(&arguments);
        command.args(["--dtype", dtype]).arg("--model").arg(&model).arg("--output-dir").arg(&out).output().unwrap()
    };
    let int8 = draw("int8");
    assert_eq!(int8.status.code(), Some(1));
    has_facts(arguments, text(&int8.stderr), &["error: 2 of 2 pictures failed", "the unet", "not finite"]);
    let output = draw("auto");
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    let facts = ["error: 2 of 2 pictures failed", "00000-a-fox.png", "00001-an-owl.png", "the unet", "not finite"];
    has_facts(arguments, message, &facts);
    let lines = json_lines(text(&output.stdout));
    for line in &lines[..2] {
        let said = fields(line);
        for field in
            ["index: number", "image: number", "prompt: string", "seed: number", "file: string", "error: string"]
        {
            assert!(said.iter().any(|said| said == field), "wanted: {field}\n{line}");
        }
    }
    assert_eq!((&lines[2]["summary"]["images"], &lines[2]["summary"]["failed"]), (&0.into(), &2.into()));
    assert_eq!(files(&out), [""; 0]);
}

#[test]
fn a_file_that_cannot_be_written_stops_the_run_and_leaves_nothing_behind() {
    let tiny = Tiny::new();
    fs::create_dir_all(tiny.out().join("00000-a-fox.png/inside")).unwrap(); // a folder where the picture should be
    let output = tiny.draw(&["a fox", "--overwrite", "--quiet"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("error: writing "), "{}", text(&output.stderr));
    assert_eq!(files(&tiny.out()), ["00000-a-fox.png"]);
}

#[test]
fn a_prompts_file_may_say_everything_about_each_request() {
    let tiny = Tiny::new();
    let path = tiny.file(
        "p.jsonl",
        r#"{"prompt": "a fox", "seed": 9, "steps": 1, "width": 72, "height": 40, "scheduler": "ddim", "guidance_scale": 1}
{"prompt": "an owl", "negative_prompt": "blur", "num_images": 2, "guidance_scale": 3.5}
"#,
    );
    let lines = json_lines(&succeeds(&mut tiny.draw(&["--prompts-file", &path, "--json", "--scheduler", "euler"])));
    let got: Vec<_> = lines[..3].iter().map(|line| (line["seed"].as_u64(), line["steps"].as_u64())).collect();
    assert_eq!(got, [(Some(9), Some(1)), (Some(1), Some(2)), (Some(2), Some(2))]);
    let made = tiny.made();
    let sizes: Vec<_> = made.iter().map(|(_, bytes)| (pixels(bytes).0, pixels(bytes).1)).collect();
    assert_eq!(sizes, [(72, 40), (64, 64), (64, 64)]);
    let said = |n: usize| -> Value { serde_json::from_str(&text_chunks(&made[n].1)[1].1).unwrap() };
    assert_eq!((&said(0)["scheduler"], &said(1)["scheduler"]), (&"ddim".into(), &"euler".into()));
    assert_eq!((&said(0)["guidance_scale"], &said(1)["guidance_scale"]), (&1.0.into(), &3.5.into()));
    assert_eq!((&said(0)["negative_prompt"], &said(1)["negative_prompt"]), (&"".into(), &"blur".into()));
}

/// The text chunks of a PNG that stand before its image data: keyword and text.
fn text_chunks(png: &[u8]) -> Vec<(String, String)> {
    let (mut rest, mut texts) = (&png[8..], Vec::new());
    loop {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let (kind, data) = (&rest[4..8], &rest[8..8 + length]);
        match kind {
            b"tEXt" | b"iTXt" => {
                let (keyword, value) = data.split_at(data.iter().position(|byte| *byte == 0).unwrap());
                // iTXt: compression flag and method, then language and translated keyword, both empty here.
                let value = if kind == b"tEXt" { &value[1..] } else { &value[5..] };
                texts.push((text(keyword).to_string(), text(value).to_string()));
            }
            b"IDAT" => return texts,
            _ => {}
        }
        rest = &rest[12 + length..];
    }
}

#[test]
fn a_picture_says_how_it_was_made_before_its_image_data() {
    for prompt in ["a fox", "лиса 🦊"] {
        let tiny = Tiny::new();
        succeeds(&mut tiny.draw(&[prompt, "--seed", "5", "--guidance-scale", "3.5", "--negative-prompt", "blur"]));
        let texts = text_chunks(&tiny.made()[0].1);
        let keywords: Vec<&str> = texts.iter().map(|(keyword, _)| keyword.as_str()).collect();
        assert_eq!(keywords, ["parameters", "sdshard"]);
        let said: Value = serde_json::from_str(&texts[1].1).unwrap();
        let hash = said["model_hash"].as_str().unwrap();
        assert!(hash.len() == 10 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{hash}");
        assert_eq!(
            texts[0].1,
            format!(
                "{prompt}\nNegative prompt: blur\nSteps: 2, Sampler: PLMS, CFG scale: 3.5, Seed: 5, Size: 64x64, \
                 Model hash: {hash}, Model: tiny-sd1, RNG: CPU"
            )
        );
        let wanted = format!(
            r#"{{"model":"tiny-sd1","model_hash":"{hash}","prompt":"{prompt}","negative_prompt":"blur","seed":5,"steps":2,"guidance_scale":3.5,"scheduler":"pndm","width":64,"height":64,"dtype":"f32","rng":"cpu"}}"#
        );
        assert_eq!(texts[1].1, wanted);
        // Nothing about where or when: the same request is the same file.
        let again = Tiny::new();
        let arguments = [prompt, "--seed", "5", "--guidance-scale", "3.5", "--negative-prompt", "blur"];
        succeeds(again.draw(&arguments).args(["--device-map", "cpu-split.toml"]));
        assert!(tiny.made() == again.made());
    }
}

#[test]
fn latents_are_saved_and_used_as_starting_noise() {
    let tiny = Tiny::new();
    let stdout = succeeds(&mut tiny.draw(&["a fox", "--output-type", "latent", "--width", "72", "--height", "40"]));
    assert!(stdout.ends_with("00000-a-fox.safetensors\n"), "{stdout}");
    let path = stdout.trim();
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names(), ["latent"]);
    let tensor = file.tensor("latent").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[1, 4, 5, 9][..]));

    // As a start they are noise like any other; the file says that they were used.
    let from = |seed: &str| {
        let other = Tiny::new();
        let arguments = ["a fox", "--latents", path, "--seed", seed, "--width", "72", "--height", "40"];
        succeeds(&mut other.draw(&arguments));
        other.made().remove(0).1
    };
    let (one, two) = (from("1"), from("2"));
    assert_eq!(pixels(&one), pixels(&two), "the seed has no part in given noise");
    assert_eq!((pixels(&one).0, pixels(&one).1), (72, 40));
    let said: Value = serde_json::from_str(&text_chunks(&one)[1].1).unwrap();
    assert_eq!(said["latents"].as_str().unwrap().len(), 16);
}

#[test]
fn an_existing_file_is_replaced_only_by_the_same_request() {
    let tiny = Tiny::new();
    succeeds(&mut tiny.draw(&["a fox", "--seed", "1"]));
    let first = tiny.made();

    let age = || fs::metadata(tiny.out().join("00000-a-fox.png")).unwrap().modified().unwrap();
    let before = age();
    succeeds(&mut tiny.draw(&["a fox", "--seed", "1"]));
    assert!(tiny.made() == first && age() > before, "equal metadata is written anew");

    // Another seed and then another number of steps are other pictures, with names of their own.
    let second = succeeds(&mut tiny.draw(&["a fox", "--seed", "2"]));
    assert!(second.ends_with("out/00000-a-fox-seed2.png\n"), "{second}");
    let third = succeeds(&mut tiny.draw(&["a fox", "--seed", "2", "--steps", "1"]));
    let digest = third.trim().strip_suffix(".png").and_then(|rest| rest.rsplit_once("00000-a-fox-seed2-")).unwrap().1;
    assert!(digest.len() == 8 && digest.chars().all(|c| c.is_ascii_hexdigit()), "{third}");
    // So is one that the VAE decodes in tiles, even if it has room in one.
    succeeds(&mut tiny.draw(&["a fox", "--seed", "2", "--vae-tiling"]));
    let made = tiny.made();
    assert!(made.len() == 4 && made.iter().any(|(name, bytes)| (name, bytes) == (&first[0].0, &first[0].1)));

    // Each of them is found again.
    let tiled = ["--seed", "2", "--vae-tiling"];
    for arguments in [&["--seed", "1"][..], &["--seed", "2"], &["--seed", "2", "--steps", "1"], &tiled] {
        let lines = json_lines(&succeeds(&mut tiny.draw(&[&["a fox", "--resume", "--json"], arguments].concat())));
        assert_eq!(lines[0]["summary"]["skipped"], 1, "{arguments:?}");
    }

    let of = |made: &[(String, Vec<u8>)], name: &str| made.iter().find(|(of, _)| of == name).unwrap().1.clone();
    succeeds(&mut tiny.draw(&["a fox", "--seed", "2", "--overwrite"]));
    assert!(of(&tiny.made(), "00000-a-fox.png") == of(&made, "00000-a-fox-seed2.png"), "replaced if asked");
}

#[test]
fn a_run_whose_picture_has_no_name_left_is_refused_before_it_loads() {
    let tiny = Tiny::new();
    let arguments = ["a fox", "--seed", "2", "--steps", "1"];
    for other in [&["a fox"][..], &["a fox", "--seed", "2"], &arguments] {
        succeeds(&mut tiny.draw(other));
    }
    let third = files(&tiny.out()).into_iter().find(|name| name.starts_with("00000-a-fox-seed2-")).unwrap();
    fs::write(tiny.out().join(third), "of somebody else").unwrap();
    let before = tiny.made();
    let message = common::message_of(tiny.draw(&arguments).output().unwrap(), "all names are taken");
    has_facts(arguments, &message, &["00000-a-fox.png would be replaced", "--overwrite"]);
    assert!(!message.contains("no --device-map"), "refused after the plan: {message}");
    assert!(tiny.made() == before);
}

#[test]
fn a_template_names_the_files_and_is_checked_before_anything_is_loaded() {
    let tiny = Tiny::new();
    let arguments = ["Füchse", "日本語", "--num-images", "2", "-o", "{prompt}/{index}_{seed}.png"];
    let stdout = succeeds(&mut tiny.draw(&arguments));
    for name in ["füchse/00000_0.png", "füchse/00000_1.png", "日本語/00001_2.png", "日本語/00001_3.png"] {
        let path = tiny.out().join(name);
        assert!(path.is_file() && stdout.contains(path.to_str().unwrap()), "{name}\n{stdout}");
    }
    let resumed = [&arguments[..], &["--resume", "--json"]].concat();
    assert_eq!(json_lines(&succeeds(&mut tiny.draw(&resumed)))[0]["summary"]["skipped"], 4);

    // Without --output-dir it is a path like any other; several pictures of one name are told apart by their seeds.
    let folder = tempfile::tempdir().unwrap();
    let fox =
        ["a fox", "--num-images", "2", "--output", "day1/fox.png", "--steps", "1", "--width", "64", "--height", "64"];
    let stdout = succeeds(sdshard(&fox).arg("--model").arg(common::tiny()).current_dir(folder.path()));
    assert_eq!(files(&folder.path().join("day1")), ["fox-seed0.png", "fox-seed1.png"]);
    assert_eq!(stdout.lines().count(), 2);

    let out = folder.path().join("out");
    for (template, says) in [
        ("{prompt}-{sede}", &["no {sede}", "{index}", "{image}", "{seed}", "{prompt}"][..]),
        ("fox.jpg", &[".png"]),
        ("pictures/", &["--output-dir"]),
        (folder.path().join("day1").to_str().unwrap(), &["--output-dir"]),
        ("-", &["stdout"]),
    ] {
        let model = "/nowhere/model"; // so that whoever looks for it first says so
        let message = refused(&["a fox", "-o", template, "--model", model, "--output-dir", out.to_str().unwrap()]);
        has_facts(template, &message, says);
    }
    assert!(!out.exists());
}

/// Two runs at the same time, each with its seeds: every picture of both is there.
#[test]
fn two_runs_into_one_folder_lose_no_picture() {
    let tiny = Tiny::new();
    let prompts: Vec<String> = (0..10).map(|i| format!("a fox {i}")).collect();
    let run = |seed: &str| {
        let mut arguments: Vec<&str> = prompts.iter().map(String::as_str).collect();
        arguments.extend(["--seed", seed, "--steps", "1", "--width", "16", "--height", "16"]);
        tiny.draw(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let runs: Vec<_> = ["0", "100", "0"].map(run).into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let mut said: Vec<Vec<&str>> = Vec::new();
    for output in &runs {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let mut paths: Vec<&str> = text(&output.stdout).lines().collect();
        paths.sort_unstable();
        assert_eq!(paths.len(), prompts.len());
        said.push(paths);
    }
    assert_eq!(said[0], said[2], "the same requests are the same files");
    let seeds = |paths: &[&str]| -> Vec<u64> {
        let seed = |path: &&str| {
            let said: Value = serde_json::from_str(&text_chunks(&fs::read(path).unwrap())[1].1).unwrap();
            said["seed"].as_u64().unwrap()
        };
        let mut seeds: Vec<u64> = paths.iter().map(seed).collect();
        seeds.sort_unstable();
        seeds
    };
    assert_eq!(seeds(&said[0]), (0..10).collect::<Vec<_>>());
    assert_eq!(seeds(&said[1]), (100..110).collect::<Vec<_>>());
    assert_eq!(files(&tiny.out()).len(), 20);
}

/// A device, a FIFO and a link stay what they are.
#[cfg(unix)]
#[test]
fn a_trace_and_a_figure_do_not_take_the_place_of_special_files() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let tiny = Tiny::new();
    let model = common::tiny();
    let fifo = tiny.folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let link = tiny.folder.path().join("link");
    fs::write(tiny.folder.path().join("target"), "old").unwrap();
    symlink("target", &link).unwrap();
    let null = tiny.folder.path().join("null");
    symlink("/dev/null", &null).unwrap();

    let figure = |path: &Path| {
        let mut command = sdshard(&["plan", "--svg"]);
        command.arg(path).arg("--model").arg(&model);
        command
    };
    for draws in [false, true] {
        let command = |path: &Path| {
            if draws { tiny.draw(&["a fox", "--steps", "1", "--trace", path.to_str().unwrap()]) } else { figure(path) }
        };
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read_to_string(fifo).unwrap()
        });
        succeeds(&mut command(&fifo));
        let kind = |path: &Path| fs::symlink_metadata(path).unwrap().file_type();
        assert!(kind(&fifo).is_fifo()); // otherwise its reader waits for ever
        let read = reader.join().unwrap();
        assert!(read.contains(if draws { "traceEvents" } else { "<svg" }), "{read}");
        succeeds(&mut command(&link));
        assert!(fs::read_to_string(tiny.folder.path().join("target")).unwrap() == read || draws);
        succeeds(&mut command(&null));
        assert!(kind(&link).is_symlink() && kind(&null).is_symlink());
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
    let results = tiny.folder.path().join("results");
    let stdout = fs::File::create(&results).unwrap();
    let output = tiny.draw(&["a fox", "--trace", results.to_str().unwrap()]).stdout(stdout).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    has_facts("stdout as a trace", text(&output.stderr), &["stdout has the results"]);
}

#[test]
fn a_run_that_is_resumed_makes_what_is_missing_and_nothing_else() {
    let tiny = Tiny::new();
    let prompts = ["a fox", "an owl", "a bee"];
    let first = succeeds(&mut tiny.draw(&prompts));
    let files: Vec<PathBuf> = first.lines().map(PathBuf::from).collect();
    let whole: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    fs::remove_file(&files[1]).unwrap();
    let made = |file: &PathBuf| fs::metadata(file).unwrap().modified().unwrap();
    let before = (made(&files[0]), made(&files[2]));

    let lines = json_lines(&succeeds(&mut tiny.draw(&[&prompts[..], &["--resume", "--json"]].concat())));
    let drawn: Vec<_> = lines[..lines.len() - 1].iter().map(|line| line["index"].as_u64()).collect();
    assert_eq!(drawn, [Some(1)]);
    let summary = &lines[lines.len() - 1]["summary"];
    assert_eq!((summary["images"].as_u64(), summary["skipped"].as_u64()), (Some(1), Some(2)));
    assert_eq!((made(&files[0]), made(&files[2])), before, "a finished file was made again");
    assert_eq!(files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>(), whole);

    let lines = json_lines(&succeeds(&mut tiny.draw(&[&prompts[..], &["--resume", "--json"]].concat())));
    assert_eq!(lines.len(), 1, "nothing is left to do");
    assert_eq!(lines[0]["summary"]["skipped"], 3);

    // A file that was cut off, though not before its metadata, is made again; of another request it is replaced if
    // allowed.
    fs::write(&files[2], &whole[2][..whole[2].len() - 7]).unwrap();
    succeeds(&mut tiny.draw(&[&prompts[..], &["--resume"]].concat()));
    assert_eq!(fs::read(&files[2]).unwrap(), whole[2]);
    fs::write(&files[1], &whole[0]).unwrap();
    let arguments = [&prompts[..], &["--resume", "--overwrite", "--json"]].concat();
    let lines = json_lines(&succeeds(&mut tiny.draw(&arguments)));
    let summary = &lines[lines.len() - 1]["summary"];
    assert_eq!((summary["images"].as_u64(), summary["skipped"].as_u64()), (Some(1), Some(2)));
    assert_eq!(files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>(), whole);
}

#[test]
fn pictures_of_weights_that_were_changed_are_neither_kept_by_a_resumed_run_nor_replaced() {
    let folder = common::copy_of_tiny();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    let draw = |more: &[&str]| {
        let mut command = sdshard(&["a fox", "--seed", "1", "--steps", "2", "--width", "64", "--height", "64"]);
        command.arg("--model").arg(&model).arg("--output-dir").arg(&out).args(more);
        command
    };
    succeeds(&mut draw(&[]));
    let old = fs::read(out.join("00000-a-fox.png")).unwrap();
    let weights = model.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();

    let message = common::message_of(draw(&["--resume"]).output().unwrap(), "other weights");
    has_facts("other weights", &message, &["00000-a-fox.png", "other weights"]);
    assert_eq!(files(&out), ["00000-a-fox.png"]);
    let made = succeeds(&mut draw(&[]));
    assert!(made.ends_with("00000-a-fox-seed1.png\n"), "{made}");
    assert!(fs::read(out.join("00000-a-fox.png")).unwrap() == old, "the old picture was replaced");
    let lines = json_lines(&succeeds(&mut draw(&["--resume", "--json"])));
    assert_eq!(lines[0]["summary"]["skipped"], 1, "the new one is found");
    succeeds(&mut draw(&["--resume", "--overwrite"]));
}

#[test]
fn a_trace_has_a_lane_for_each_device_and_a_span_for_each_stage() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    let arguments = ["a fox", "an owl", "--device-map", "cpu-split.toml", "--trace", file.to_str().unwrap()];
    succeeds(&mut tiny.draw(&arguments));
    let trace: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let lanes: Vec<_> = events.iter().filter(|e| e["ph"] == "M").map(|e| e["args"]["name"].as_str().unwrap()).collect();
    assert_eq!(lanes, ["cpu:0", "cpu:1"]);
    for (name, lane, count) in [("text_encoder", 0, 3), ("unet", 1, 2), ("vae", 0, 2)] {
        let of = events.iter().filter(|e| e["ph"] == "X" && e["name"] == name);
        assert_eq!(of.clone().count(), count, "{name}: the negative prompt is encoded once");
        assert!(of.clone().all(|e| e["tid"] == lane && e["dur"].as_f64().unwrap() > 0.0), "{name}");
    }
}

#[test]
fn any_prompt_can_be_drawn() {
    let tiny = Tiny::new();
    let long = "a very long story about a fox ".repeat(400);
    let prompts = [
        "",
        " ",
        "🦊🦊🦊",
        "ᚠᛇᚻ kwyjibo",
        "a\tb\nc",
        &long,
        "<|endoftext|> <|startoftext|>",
        "e\u{301}",
        "(a:1.2) [b]",
    ];
    let stdout = succeeds(&mut tiny.draw(&prompts));
    assert_eq!(stdout.lines().count(), prompts.len());
    assert_eq!(files(&tiny.out()).len(), prompts.len());
}

#[test]
fn the_part_that_a_long_prompt_loses_is_named() {
    let tiny = Tiny::new();
    let output = tiny.draw(&[&format!("{}\nowl", "fox ".repeat(200))]).output().unwrap();
    let message = text(&output.stderr);
    has_facts("a long prompt", message, &["too long", "left out: ", "owl"]);
    // Progress shows enough of it to tell it from others, on one line.
    let shown = message.lines().find(|line| line.starts_with("1/1 fox")).expect("progress");
    assert!(shown.len() < 100, "{shown}");
    assert!(message.lines().all(|line| !line.starts_with("owl")), "{message}");
}

#[test]
fn a_word_that_is_a_subcommand_can_be_drawn_after_two_dashes() {
    let tiny = Tiny::new();
    let mut command = tiny.draw(&[]);
    let stdout = succeeds(command.args(["--", "plan"]));
    assert!(stdout.ends_with("00000-plan.png\n"), "{stdout}");
}

/// The JSON that a subcommand prints of the tiny model.
pub fn of_tiny(arguments: &[&str]) -> Value {
    let stdout = succeeds(sdshard(arguments).arg("--model").arg(tiny()));
    assert_eq!(stdout.lines().count(), 1, "one object");
    serde_json::from_str(&stdout).unwrap()
}

#[test]
fn the_plan_as_json_has_the_documented_fields() {
    let plan = of_tiny(&["plan", "--json", "--device-map", "cpu-split.toml", "--width", "72", "--height", "40"]);
    assert_eq!(
        fields(&plan),
        [
            "width: number",
            "height: number",
            "steps: number",
            "strength: number",
            "images: number",
            "device_map: object",
            "components: object",
            "replicas: list",
            "devices: list",
            "shared_weight_bytes: number",
            "host_weight_bytes: number",
            "total_bytes: number",
            "edges: list",
            "seconds_per_image: number",
            "images_per_second: number",
            "seconds: number",
            "idle: list",
            "reasons: list",
            "rejected: list",
        ]
    );
    assert_eq!((&plan["width"], &plan["height"]), (&72.into(), &40.into()));
    let map = r#"{"text_encoder":"cpu:0","unet":"cpu:1","vae":"cpu:0"}"#;
    assert_eq!(
        (plan["device_map"].to_string(), plan["replicas"][0]["placement"].to_string()),
        (map.into(), map.into())
    );
    assert_eq!(
        fields(&plan["replicas"][0]),
        ["placement: object", "places: object", "in_flight: number", "batch: number"]
    );
    for name in ["text_encoder", "unet", "vae"] {
        let wanted = [
            "weight_bytes: number",
            "activation_bytes: number",
            "keep_bytes: number",
            "gflop: number",
            "seconds: number",
            "dtype: string",
            "numerics: list",
        ];
        assert_eq!(fields(&plan["components"][name]), wanted, "{name}");
    }
    let bytes = |value: &Value, name: &str| value[name].as_u64().unwrap();
    let mut arenas = 0;
    for device in plan["devices"].as_array().unwrap() {
        assert_eq!(
            fields(device),
            [
                "name: string",
                "numerics: string",
                "components: list",
                "budget_bytes: number",
                "overhead_bytes: number",
                "weight_bytes: number",
                "activation_bytes: number",
                "keep_bytes: number",
                "visitor_bytes: number",
                "idle_share: number",
            ]
        );
        arenas += bytes(device, "activation_bytes") + bytes(device, "keep_bytes");
    }
    assert_eq!(bytes(&plan, "total_bytes"), arenas + bytes(&plan, "shared_weight_bytes"));
    let plan = of_tiny(&["plan", "--json", "--device-map", "replicas.toml"]);
    assert_eq!(plan["replicas"].as_array().unwrap().len(), 2);
    assert_eq!(plan["device_map"]["unet"].to_string(), r#"["cpu:0","cpu:1"]"#);
}

#[test]
fn a_plan_for_people_is_a_table_and_reads_no_weight() {
    let folder = common::copy_of_tiny();
    let model = folder.path().join("model");
    for file in ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"] {
        fs::remove_file(model.join(format!("{file}.safetensors"))).unwrap();
    }
    let stdout = succeeds(sdshard(&["plan"]).arg("--model").arg(&model));
    for word in ["text_encoder", "unet", "vae", "numerics", "1 replica; pictures up to 64x64", "KiB"] {
        assert!(stdout.contains(word), "wanted: {word}\n{stdout}");
    }
}

#[test]
fn devices_as_json_have_the_documented_fields() {
    let devices: Value = serde_json::from_str(&succeeds(&mut sdshard(&["devices", "--json"]))).unwrap();
    for device in devices.as_array().unwrap() {
        let wanted = [
            "device: string",
            "name: string",
            "numerics: string",
            "cores: number",
            "memory_bytes: number",
            "free_bytes: number",
            "gflops: number",
            "bandwidth_gb_per_s: number",
            "link_gb_per_s: number",
            // Without a number for an adapter that is used only where a map names it, and was not measured.
            if device["rates_measured"].is_null() { "rates_measured: null" } else { "rates_measured: number" },
        ];
        assert_eq!(fields(device), wanted);
    }
    assert_eq!(devices[0]["device"], "cpu");
    let two = succeeds(sdshard(&["devices", "--json"]).env("SDSHARD_THREADS", "1"));
    assert_eq!(serde_json::from_str::<Value>(&two).unwrap()[0]["cores"], 1);
}

#[test]
fn a_check_of_the_devices_ends_well_and_names_each_of_them() {
    let report = succeeds(&mut sdshard(&["devices", "--check"]));
    let devices: Value = serde_json::from_str(&succeeds(&mut sdshard(&["devices", "--json"]))).unwrap();
    let names: Vec<&str> =
        devices.as_array().unwrap().iter().map(|device| device["device"].as_str().unwrap()).collect();
    let others: Vec<&str> = names.into_iter().filter(|name| !name.starts_with("cpu")).collect();
    assert!(report.contains("cpu f32 a picture"), "{report}");
    for name in &others {
        assert!(report.contains(&format!("{name} f16 a picture")), "{name}:\n{report}");
    }
    let last = report.lines().last().unwrap();
    assert!(last.starts_with("all ") && last.contains(" checks passed in "), "{report}");
    assert!(report.starts_with(&format!("sdshard {} (", env!("CARGO_PKG_VERSION"))), "{report}");
    refused(&["devices", "--check", "--json"]);
}
