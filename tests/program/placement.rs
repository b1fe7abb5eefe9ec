//! The promise: a picture depends on the request, the model and the numerics class, and on nothing else. And what the
//! plan says of memory is what is used.

use std::collections::BTreeMap;

use crate::common::{
    self, Tiny, controlnet, formula, json_lines,
    maps::shipped_for_cpus,
    pictures::{self, picture},
    pixels, sdshard, succeeds, tiny,
};
use sdshard::bench::dtypes::psnr;
use serde_json::{Value, json};

const PROMPTS: [&str; 4] = ["a red fox", "an owl", "zwei Hühner", ""];

/// One pipeline on each of three devices, more than this test wants cores.
const THREE_REPLICAS: &str = "devices = [\"cpu:0\", \"cpu:1\", \"cpu:2\"]\nreplicas = 3\n";

/// The pictures of [`PROMPTS`] with seeds of their own, by prompt.
fn draw(prompts: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    draw_from(&|_| json!({}), prompts, arguments, variables)
}

/// The same, with the options `more(seed)` for each.
fn draw_from(
    more: &dyn Fn(usize) -> Value,
    prompts: &[&str],
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> BTreeMap<String, Vec<u8>> {
    let tiny = Tiny::new();
    let lines: Vec<String> = prompts
        .iter()
        .map(|prompt| {
            let seed = 100 + PROMPTS.iter().position(|known| known == prompt).unwrap();
            let mut line = json!({ "prompt": prompt, "seed": seed, "negative_prompt": "blur" });
            line.as_object_mut().unwrap().extend(more(seed).as_object().unwrap().clone());
            line.to_string()
        })
        .collect();
    let prompts_file = tiny.file("p.jsonl", &lines.join("\n"));
    let arguments: Vec<&str> = ["--prompts-file", &prompts_file, "--json"].iter().chain(arguments).copied().collect();
    let stdout = succeeds(tiny.draw(&arguments).envs(variables.iter().copied()));
    let lines = json_lines(&stdout);
    assert_eq!(lines.len(), prompts.len() + 1);
    lines[..prompts.len()]
        .iter()
        .map(|line| {
            let file = line["file"].as_str().unwrap();
            (line["prompt"].as_str().unwrap().to_string(), std::fs::read(file).unwrap())
        })
        .collect()
}

#[test]
fn a_picture_is_the_same_wherever_its_parts_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let three = folder.path().join("three.toml");
    std::fs::write(&three, THREE_REPLICAS).unwrap();
    let three = three.to_str().unwrap();
    let want = draw(&PROMPTS, &["--device-map", "single.toml"], &[]);
    let maps: Vec<&str> = shipped_for_cpus().map(|(name, _)| name).collect();
    assert!(maps.len() >= 10, "{maps:?}");
    for map in maps.into_iter().chain([three]) {
        for threads in ["1", "2"] {
            let got = draw(&PROMPTS, &["--device-map", map], &[("SDSHARD_THREADS", threads)]);
            assert!(got == want, "{map} with {threads} threads draws other pictures than single.toml");
        }
    }
    assert!(draw(&PROMPTS, &[], &[]) == want, "another picture without a map");
}

/// Draws pictures from noise, from a picture and of a part of a picture with every map that runs on CPUs.
fn is_the_same_with_every_map(arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let [image, mask] = [("image.png", picture(40, 24)), ("mask.png", pictures::mask(40, 24))].map(|(name, pixels)| {
        let path = folder.path().join(name);
        image::RgbImage::from_raw(40, 24, pixels.rgb).unwrap().save(&path).unwrap();
        path
    });
    let more = |seed: usize| match seed % 3 {
        0 => json!({}),
        1 => json!({ "image": image, "strength": 0.7, "steps": 3, "scheduler": "euler-ancestral" }),
        _ => json!({ "image": image, "mask": mask, "strength": 0.7, "steps": 3 }),
    };
    let draw = |map, threads| {
        draw_from(&more, &PROMPTS, &[arguments, &["--device-map", map]].concat(), &[("SDSHARD_THREADS", threads)])
    };
    let want = draw("single.toml", "1");
    for (map, _) in shipped_for_cpus() {
        assert!(draw(map, "2") == want, "{map} draws other pictures than single.toml with {arguments:?}");
    }
}

#[test]
fn a_picture_from_a_picture_is_the_same_wherever_its_parts_are_made() {
    is_the_same_with_every_map(&[]);
}

#[test]
fn a_picture_of_sdxl_is_the_same_wherever_its_parts_are_made() {
    let model = formula::folder("tiny-sdxl");
    is_the_same_with_every_map(&["--model", model.path().to_str().unwrap()]);
}

#[test]
fn a_picture_with_a_controlnet_is_the_same_wherever_its_parts_are_made() {
    let (folder, controlnet) = (tempfile::tempdir().unwrap(), controlnet::folder_of("sd"));
    let edges = folder.path().join("edges.png");
    image::RgbImage::from_raw(24, 40, picture(24, 40).rgb).unwrap().save(&edges).unwrap();
    let [controlnet, edges] = [controlnet.path(), &edges].map(|path| path.to_str().unwrap());
    is_the_same_with_every_map(&["--controlnet", controlnet, "--control-image", edges, "--control-end", "0.8"]);
}

#[test]
fn a_picture_does_not_depend_on_other_requests() {
    let want = draw(&PROMPTS, &["--device-map", "replicas.toml"], &[]);
    let mut backwards = PROMPTS;
    backwards.reverse();
    assert!(draw(&backwards, &["--device-map", "cpu-split.toml"], &[]) == want, "another order, other pictures");
    for prompt in PROMPTS {
        assert!(draw(&[prompt], &[], &[])[prompt] == want[prompt], "{prompt:?} alone is another picture");
    }
}

#[test]
fn every_kernel_path_draws_the_same_picture_to_the_eye() {
    // The message for a path that does not exist lists those that do.
    let output =
        sdshard(&["plan", "--model", tiny().to_str().unwrap()]).env("SDSHARD_CPU_PATH", "no").output().unwrap();
    let message = common::message_of(output, "SDSHARD_CPU_PATH=no");
    let found = message.lines().find_map(|line| line.trim().strip_prefix("found: ")).expect("the paths that are here");
    let paths: Vec<&str> = found.split(", ").collect();
    assert!(paths.contains(&"portable"), "{message}");

    let pictures: Vec<_> = paths.iter().map(|path| draw(&PROMPTS, &[], &[("SDSHARD_CPU_PATH", path)])).collect();
    for (path, other) in paths.iter().zip(&pictures) {
        for prompt in PROMPTS {
            let (a, b) = (pixels(&pictures[0][prompt]), pixels(&other[prompt]));
            let psnr = psnr(&a.2, &b.2);
            println!("{} and {path}, {prompt:?}: {psnr:.1} dB", paths[0]);
            assert!(psnr >= 40.0, "{} and {path} differ: {psnr:.1} dB for {prompt:?}", paths[0]);
        }
    }
}

fn plan(map: &str, width: usize, height: usize) -> Value {
    let (width, height) = (width.to_string(), height.to_string());
    let (model, arguments) = (tiny(), ["plan", "--json", "--device-map", map, "--width", &width, "--height", &height]);
    let stdout = succeeds(sdshard(&arguments).arg("--model").arg(model));
    serde_json::from_str(&stdout).unwrap()
}

/// What a plan and a run say of each device: its name and the bytes of its arena.
fn check_bytes(map: &str, width: usize, height: usize) {
    let plan = plan(map, width, height);
    let planned: BTreeMap<&str, &Value> = plan["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| (device["name"].as_str().unwrap(), &device["activation_bytes"]))
        .collect();

    let tiny = Tiny::new();
    let (w, h) = (width.to_string(), height.to_string());
    // Two steps of PNDM keep fewer estimates than the fifty that the plan is made for; the arena is the same. So many
    // pictures that every replica gets one.
    let stdout = succeeds(&mut tiny.draw(&[
        "a fox",
        "--num-images",
        "16",
        "--device-map",
        map,
        "--width",
        &w,
        "--height",
        &h,
        "--json",
    ]));
    let lines = json_lines(&stdout);
    let measured = &lines.last().unwrap()["summary"]["peak_bytes"];
    let measured: BTreeMap<&str, &Value> =
        measured.as_object().unwrap().iter().map(|(name, bytes)| (name.as_str(), bytes)).collect();
    assert_eq!(planned, measured, "{map} at {width}x{height}: planned and measured arena bytes");
}

#[test]
fn a_run_uses_the_bytes_of_its_plan() {
    for (map, _) in shipped_for_cpus() {
        check_bytes(map, 64, 64);
    }
    // Latents of odd sizes are rounded on their way down and up.
    check_bytes("cpu-split.toml", 72, 40);
}
