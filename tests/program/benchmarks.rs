//! `sdshard bench`, `bench maps` and `bench dtypes`: what they print and write.

use std::fs;

use serde_json::Value;

use crate::{
    cli::of_tiny,
    common::{fields, files, has_facts, pixels, refused, sdshard, succeeds, tiny},
};

#[test]
fn the_benchmark_as_json_has_the_documented_fields() {
    let report = of_tiny(&["bench", "--json", "--repeat", "1", "--latent-size", "5x9", "--batch", "1"]);
    assert_eq!(fields(&report), ["machine: object", "text_encoder: object", "unet: object", "vae: object"]);
    assert_eq!(fields(&report["machine"]), ["name: string", "class: string", "threads: number", "peak_gflops: number"]);
    let plan = of_tiny(&["plan", "--json", "--width", "72", "--height", "40"]);
    for name in ["text_encoder", "unet", "vae"] {
        let figures = &report[name];
        assert_eq!(
            fields(figures),
            [
                "median_s: number",
                "min_s: number",
                "max_s: number",
                "gflop: number",
                "gflops: number",
                "peak_share: number",
                "op_shares: object",
                "peak_bytes: number",
            ]
        );
        let of = |field: &str| figures[field].as_f64().unwrap();
        assert!(of("min_s") > 0.0 && of("min_s") == of("median_s") && of("median_s") == of("max_s"), "{figures}");
        assert!((of("gflop") / of("median_s") / of("gflops") - 1.0).abs() < 1e-9);
        let peak = report["machine"]["peak_gflops"].as_f64().unwrap();
        assert!((of("gflops") / peak / of("peak_share") - 1.0).abs() < 1e-9);
        // One text, one latent, one picture: what the plan counts, where guidance is not in it.
        if name != "unet" {
            assert_eq!(figures["gflop"], plan["components"][name]["gflop"], "{name}");
        }
    }
    let text = succeeds(sdshard(&["bench", "--repeat", "1", "--quiet"]).arg("--model").arg(tiny()));
    for word in ["GFLOP/s at most", "median", "of peak", "text_encoder", "unet", "vae"] {
        assert!(text.contains(word), "{text}");
    }
    for option in ["--repeat", "--batch"] {
        let model = tiny();
        let message = refused(&["bench", option, "0", "--model", model.to_str().unwrap()]);
        assert!(message.contains(&format!("{option}: at least 1")), "{message}");
    }
}

#[test]
fn device_maps_are_run_and_ranked_beside_their_plans() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.toml");
    fs::write(&absent, "[components]\nunet = \"cuda:77\"\n").unwrap();
    let maps = ["bench", "maps", "single", absent.to_str().unwrap(), "device_maps/cpu-split.toml"];
    let small = ["--steps", "1", "--width", "64", "--height", "64", "--rounds", "2", "--num-images", "3"];
    let report = of_tiny(&[&maps[..], &small, &["--json"]].concat());
    assert_eq!(fields(&report), ["images: number", "maps: list", "failed: list"]);
    assert_eq!(report["images"], 3);
    let ranked = report["maps"].as_array().unwrap();
    let mut names: Vec<_> = ranked.iter().map(|map| map["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cpu-split.toml", "single"]);
    let seconds = |map: &Value, field: &str| map[field].as_f64().unwrap();
    assert!(seconds(&ranked[0], "all_s") <= seconds(&ranked[1], "all_s"));
    for map in ranked {
        for field in ["load_s", "first_s", "one_s", "planned_one_s", "all_s", "planned_all_s", "peak_bytes"] {
            assert!(seconds(map, field) > 0.0, "{field}: {map}");
        }
        assert!(map["peak_bytes"].as_u64() <= map["planned_bytes"].as_u64(), "{map}");
        assert!(seconds(map, "planned_all_s") > seconds(map, "planned_one_s"), "{map}");
    }
    assert_eq!(report["failed"][0][0], "absent.toml");
    assert!(report["failed"][0][1].as_str().unwrap().contains("cuda:77"), "{report}");

    let text = succeeds(sdshard(&[&maps[..3], &small].concat()).arg("--model").arg(tiny()));
    for word in ["3 pictures", "planned", "single", "replicas"] {
        assert!(text.contains(word), "{text}");
    }
    assert!(refused(&["bench", "maps"]).contains("<MAP>..."));
    assert!(refused(&["bench", "maps", "single", "--rounds", "0"]).contains("--rounds: at least 1"));
}

#[test]
fn data_types_are_compared_with_f32() {
    let folder = tempfile::tempdir().unwrap();
    let (prompts, pictures) = (folder.path().join("prompts.json"), folder.path().join("worst"));
    fs::write(&prompts, r#"["a fox", {"prompt": "an owl", "seed": 7}]"#).unwrap();
    let (prompts, worst) = (prompts.to_str().unwrap(), pictures.to_str().unwrap());
    let small = ["--prompts-file", prompts, "--steps", "3", "--scheduler", "ddim", "--width", "64", "--height", "64"];
    let dtypes = [&["bench", "dtypes"], &small[..]].concat();
    let report = of_tiny(&[&dtypes[..], &["--dtype", "f32,bf16,int8", "--output-dir", worst, "--json"]].concat());
    assert_eq!(fields(&report), ["machine: string", "pictures: number", "types: list"]);
    assert_eq!(report["pictures"], 2);
    let [same, bf16, int8] = report["types"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!(
        fields(bf16),
        [
            "dtype: string",
            "class: string",
            "least_psnr_db: number",
            "median_psnr_db: number",
            "worst: object",
            "latents: list"
        ]
    );
    assert_eq!(fields(&bf16["worst"]), ["prompt: string", "seed: number"]);
    assert_eq!(fields(&bf16["latents"][0]), ["median: number", "greatest: number"]);
    for (types, name) in [(same, "f32"), (bf16, "bf16"), (int8, "int8")] {
        assert_eq!(types["dtype"], name);
        assert!(types["class"].as_str().unwrap().ends_with(name), "{types}");
        assert_eq!(types["latents"].as_array().unwrap().len(), 3);
    }
    assert!(same["least_psnr_db"].is_null() && same["median_psnr_db"].is_null(), "f32 is not itself: {same}");
    let error = |types: &Value, step: usize| types["latents"][step]["greatest"].as_f64().unwrap();
    assert!((0..3).all(|step| error(same, step) == 0.0), "{same}");
    for types in [bf16, int8] {
        let psnr = |field: &str| types[field].as_f64().unwrap();
        assert!((10.0..100.0).contains(&psnr("least_psnr_db")) && psnr("least_psnr_db") <= psnr("median_psnr_db"));
        assert!((0..3).all(|step| 0.0 < error(types, step) && error(types, step) < 0.5), "{types}");
        assert!(types["latents"][1]["median"].as_f64().unwrap() <= error(types, 1), "{types}");
    }
    assert!(error(bf16, 2) < error(int8, 2), "{report}");
    let names =
        ["bf16", "f32", "int8"].map(|dtype| [format!("{dtype}-worst-in-f32.png"), format!("{dtype}-worst.png")]);
    assert_eq!(files(&pictures), names.concat());
    let pair = |dtype: &str| {
        let bytes = |file: &str| fs::read(pictures.join(format!("{dtype}-worst{file}.png"))).unwrap();
        [pixels(&bytes("")), pixels(&bytes("-in-f32"))]
    };
    let ([a, b], [c, d]) = (pair("f32"), pair("int8"));
    assert!(a == b && c != d);

    let text = succeeds(sdshard(&[&dtypes[..], &["--quiet"]].concat()).arg("--model").arg(tiny()));
    for word in ["least PSNR", "f16", "bf16", "int8", ", seed ", "error of the latents", "call"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let help = succeeds(&mut sdshard(&["bench", "dtypes", "--help"]));
    assert!(help.contains("sdshard bench dtypes --dtype int8"), "{help}");
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "\n").unwrap();
    for (arguments, says) in [
        (&["--prompts-file", empty.to_str().unwrap()][..], "there is no prompt in"),
        (&["--prompts-file", "/nowhere/p.txt"], "prompts in /nowhere/p.txt"),
        (&["--dtype", "fp61"], "[possible values: auto, f32, f16, bf16, int8]"),
        (&["--device", "cpu:0,cpu:1"], "--device: one device is measured at a time"),
        (&["--device", "cuda:77"], "cuda:77"),
        (&["--output-dir", empty.to_str().unwrap()], "the output folder"),
    ] {
        let arguments = [&["bench", "dtypes", "--quiet", "--steps", "1"], arguments].concat();
        has_facts(&arguments, &refused(&arguments), &[says]);
    }
}

/// Fails unless `page` is text with tags of which each is closed, in attributes and text without bare signs.
fn is_well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let body = page.strip_prefix("<!DOCTYPE html>\n").expect("the beginning of an HTML file");
    for (text, tag) in
        body.split('<').skip(1).map(|piece| piece.split_once('>').map(|(tag, text)| (text, tag)).expect(piece))
    {
        let name = tag.split([' ', '\n', '/']).find(|word| !word.is_empty()).expect("a tag has a name");
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name), "<{tag}> closes another tag"),
            (_, true) => {}
            _ => open.push(name),
        }
        assert!(tag.matches('"').count() % 2 == 0 && !text.contains('>'), "<{tag}>{text}");
        for entity in text.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|known| entity.starts_with(known)), "&{entity}");
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
}

#[test]
fn benchmarks_draw_their_results_as_pages() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.txt");
    fs::write(&prompts, "<b>&amp; a \"fox\"\n").unwrap();
    let prompts = ["--prompts-file", prompts.to_str().unwrap(), "--dtype", "bf16,f32"];
    let small = ["--steps", "2", "--width", "64", "--height", "64"];
    let runs = [
        (vec!["bench", "--repeat", "1"], vec!["text_encoder", "conv2d", "GFLOP/s"], 1),
        (
            [&["bench", "maps", "single", "balanced", "--rounds", "1", "--num-images", "2"], &small[..]].concat(),
            vec!["2 pictures that are requested at once", "One picture alone", "Memory", "predicted", "balanced"],
            3,
        ),
        (
            [&["bench", "dtypes"], &prompts[..], &small].concat(),
            vec!["PSNR", "&lt;b&gt;&amp;amp; a &quot;fox&quot;", "bf16, greatest", "<polyline"],
            2,
        ),
    ];
    for (arguments, words, plots) in runs {
        let path = folder.path().join("page.html");
        fs::write(&path, "an older page").unwrap();
        succeeds(sdshard(&arguments).arg("--model").arg(tiny()).arg("--html").arg(&path));
        let page = fs::read_to_string(&path).unwrap();
        is_well_formed(&page);
        let command = arguments[..2].join(" ");
        let version = concat!("sdshard ", env!("CARGO_PKG_VERSION"));
        for word in ["<dt>machine</dt>", "<dt>date</dt><dd>20", version, command.as_str()].iter().chain(&words) {
            assert!(page.contains(word), "{word}: {page}");
        }
        assert_eq!(page.matches("<svg ").count(), plots, "{arguments:?}");
        assert!(!page.contains("<script") && page.matches("http").count() == plots, "something external: {page}");
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
        for (path, says) in [("-", "stdout has the results"), ("/dev/null/page.html", "--html"), ("/", "a folder")] {
            let arguments = [&arguments[..], &["--html", path]].concat();
            let error = refused(&arguments);
            has_facts(&arguments, &error, &["--html", says]);
        }
    }
}
