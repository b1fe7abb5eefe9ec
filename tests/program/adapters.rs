//! LoRAs, textual inversions and other parts that flags and prompts add to a model.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::common::{Tiny, files, formula, has_facts, message_of, refused, sdshard, succeeds, text, tiny};

/// A file of one tensor or several in `folder`.
fn write(folder: &Path, name: &str, tensors: &[(&str, &[usize])]) -> String {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    let tensor = |(key, shape): &(&str, &[usize])| {
        ((*key).to_owned(), (shape.to_vec(), formula::weight("program", &format!("{name}/{key}"), shape, 1.0)))
    };
    formula::write(&path, &tensors.iter().map(tensor).collect::<BTreeMap<_, _>>());
    path.to_str().unwrap().to_owned()
}

/// A LoRA that changes the text encoder and the UNet of the small model.
fn style(folder: &Path) -> String {
    let unet = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    let text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj";
    let names = [unet, text].map(|stem| [format!("{stem}.lora_down.weight"), format!("{stem}.lora_up.weight")]);
    let [[unet_down, unet_up], [text_down, text_up]] = &names;
    let tensors: [(&str, &[usize]); 4] =
        [(unet_down, &[2, 32]), (unet_up, &[16, 2]), (text_down, &[2, 32]), (text_up, &[32, 2])];
    write(folder, "style.safetensors", &tensors)
}

/// Embeddings of 24 vectors, whose rows are many bytes: one for the small model, called `cat`, and one for another,
/// `fox`.
fn embeddings(folder: &Path) -> [String; 2] {
    [("cat", 32), ("fox", 48)]
        .map(|(name, width)| write(folder, &format!("{name}.safetensors"), &[("emb_params", &[24, width])]))
}

fn plan(arguments: &[&str]) -> Value {
    let mut command =
        sdshard(&[&["plan", "--json", "--device", "cpu", "--width", "64", "--height", "64"], arguments].concat());
    serde_json::from_str(&succeeds(&mut command)).unwrap()
}

/// A folder with the configs of the small model and its tokenizer, and no weights.
fn without_weights(folder: &Path) -> PathBuf {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for name in files(from).iter().filter(|name| !name.ends_with(".safetensors")) {
            match from.join(name).is_dir() {
                true => copy(&from.join(name), &to.join(name)),
                false => fs::write(to.join(name), fs::read(from.join(name)).unwrap()).unwrap(),
            }
        }
    }
    let to = folder.join("configs");
    copy(&tiny(), &to);
    to
}

#[test]
fn a_plan_counts_the_rows_of_embeddings_as_the_run_does() {
    let folder = tempfile::tempdir().unwrap();
    let [cat, _] = embeddings(&folder.path().join("embeddings"));
    let (tiny, dir) = (tiny(), folder.path().join("embeddings"));
    let model = ["--model", tiny.to_str().unwrap()];
    let bytes = |arguments: &[&str]| {
        let plan = plan(&[&model[..], arguments].concat());
        plan["components"]["text_encoder"]["weight_bytes"].as_u64().unwrap()
    };
    let plain = bytes(&["a cat"]);
    let with = bytes(&["a cat", "--embedding", &cat]);
    assert_eq!(with - plain, 24 * 32 * 4, "24 rows of 32 values");
    let dir = ["--embedding-dir", dir.to_str().unwrap()];
    assert_eq!(bytes(&[&["a cat"], &dir[..]].concat()), with);
    assert_eq!(bytes(&[&["a dog", "--negative-prompt", "a Cat"], &dir[..]].concat()), with);
    assert_eq!(bytes(&[&["a dog"], &dir[..]].concat()), plain);
}

#[test]
fn a_plan_rejects_what_its_run_would_reject() {
    let folder = tempfile::tempdir().unwrap();
    let (configs, model) = (without_weights(folder.path()), tiny());
    let key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    let names = [format!("{key}.lora_down.weight"), format!("{key}.lora_up.weight")];
    let other = write(folder.path(), "other.safetensors", &[(&names[0], &[2, 2048]), (&names[1], &[16, 2])]);
    let [_, fox] = embeddings(folder.path());
    let loras = folder.path().to_str().unwrap();
    let own = style(folder.path());
    let a1111 = ["--prompt-syntax", "a1111"];
    for model in [&model, &configs] {
        let model = model.to_str().unwrap();
        for (arguments, facts) in [
            (&["--lora", &other][..], &["other.safetensors", "is not for a weight of [16, 32]", "made for SDXL"][..]),
            (&["--lora-dir", loras, "--prompt-syntax", "a1111", "a <lora:other:1>"], &["other.safetensors"]),
            (&["--lora-dir", loras, "--prompt-syntax", "a1111", "a <lora:none:1>"], &["there is no none.safetensors"]),
            (&["--embedding", &fox], &["fox.safetensors", "32 values"]),
            (&["--vae", "nowhere.safetensors"], &["nowhere.safetensors"]),
        ] {
            let arguments = [&["plan", "--model", model], arguments].concat();
            has_facts(&arguments, &refused(&arguments), facts);
        }
        let arguments = [&["--model", model, "--lora-dir", loras, "a <lora:style:0.5:1>"][..], &a1111].concat();
        plan(&arguments);
        plan(&["--model", model, "--lora", &own]);
    }
    // Weights that a flag adds say nothing of those that are not there yet.
    let vae = model.join("vae/diffusion_pytorch_model.safetensors");
    plan(&["--model", configs.to_str().unwrap(), "--vae", vae.to_str().unwrap()]);
}

#[test]
fn an_embedding_in_the_folder_changes_only_pictures_that_use_it_and_other_families_are_left_out() {
    let (alone, both) = (Tiny::new(), Tiny::new());
    let dir = both.folder.path().join("embeddings");
    embeddings(&dir);
    succeeds(&mut alone.draw(&["a fox"]));
    let arguments = ["a fox", "a cat", "--seed", "0", "--embedding-dir", dir.to_str().unwrap()];
    let output = both.draw(&arguments).output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{message}");
    has_facts("a warning", message, &["--embedding-dir", "fox.safetensors", "48 values", "left out"]);
    assert_eq!(message.matches("left out").count(), 1, "{message}");
    let (alone, both) = (alone.made(), both.made());
    assert_eq!(alone[0], both.iter().find(|(name, _)| name.contains("a-fox")).unwrap().clone());
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("TI hashes: \"cat: ");
    assert_eq!(both.iter().map(|(_, bytes)| said(bytes)).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_lora_by_flag_and_by_tag_is_an_error_and_not_added_twice() {
    let tiny = Tiny::new();
    let style = style(tiny.folder.path());
    let dir = tiny.folder.path().to_str().unwrap();
    let arguments = ["a <lora:style:0.8>", "--prompt-syntax", "a1111", "--lora-dir", dir, "--lora", &style];
    let message = message_of(tiny.draw(&arguments).output().unwrap(), "twice");
    has_facts(
        "twice",
        &message,
        &["<lora:style:0.8>", "--lora adds this LoRA already", "style.safetensors:1", "the tag alone"],
    );
    assert_eq!(files(&tiny.out()), [""; 0]);
}

#[test]
fn a_tag_with_two_weights_is_drawn_and_drawn_again() {
    let tiny = Tiny::new();
    style(tiny.folder.path());
    let dir = tiny.folder.path().to_str().unwrap();
    let draw = |tag: &str| {
        let path = succeeds(&mut tiny.draw(&[&format!("a fox {tag}"), "--prompt-syntax", "a1111", "--lora-dir", dir]));
        (fs::read(path.trim_end()).unwrap(), path.trim_end().to_owned())
    };
    let (two, path) = draw("<lora:style:0.25:1.5>");
    assert!(String::from_utf8_lossy(&two).contains("a fox <lora:style:0.25:1.5>\n"), "the tag is written again");
    let pixels = |bytes: &[u8]| crate::common::pixels(bytes).2;
    assert_ne!(pixels(&two), pixels(&draw("<lora:style:1.5>").0));
    assert_ne!(pixels(&two), pixels(&draw("<lora:style:0.25>").0));
    // From our own settings, and from those of a web UI, whose tag is in the prompt.
    let web = tiny.file(
        "web.txt",
        "a fox <lora:style:0.25:1.5>\nSteps: 2, Sampler: PLMS, CFG scale: 7.5, Seed: 0, Size: 64x64, RNG: CPU",
    );
    for from in [path.as_str(), &web] {
        let second = tempfile::tempdir().unwrap();
        let mut again = sdshard(&["--from", from, "--lora-dir", dir, "--output-dir", second.path().to_str().unwrap()]);
        let output = again.arg("--model").arg(crate::common::tiny()).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{message}");
        assert!(!message.contains("not followed"), "{message}");
        let made = fs::read(second.path().join(&files(second.path())[0])).unwrap();
        assert_eq!(pixels(&made), pixels(&two), "{from}");
    }
}

#[test]
fn the_second_prompt_may_have_tags_too() {
    let tiny = Tiny::new();
    let arguments = ["a", "--prompt-2", "b <lora:none:1>", "--prompt-syntax", "a1111"];
    let message = message_of(tiny.draw(&arguments).output().unwrap(), "no folder");
    has_facts("no folder", &message, &["<lora:none:1>", "--lora-dir FOLDER"]);
    let message = message_of(
        tiny.draw(&["a", "--prompt-2", "b <lora:none:x>", "--prompt-syntax", "a1111"]).output().unwrap(),
        "no weight",
    );
    has_facts("no weight", &message, &["--prompt-2: ", "\"x\" is not a weight"]);
}

#[test]
fn every_field_of_a_line_is_named_with_its_line() {
    for (line, fact) in [
        (r#"{"prompt": "x", "clip_skip": 7}"#, "p.jsonl:2: clip_skip: "),
        (r#"{"prompt": "x", "prompt_2": "y"}"#, "p.jsonl:2: prompt_2: "),
        (r#"{"prompt": "x", "control_scale": 1}"#, "p.jsonl:2: control_scale: "),
        (r#"{"prompt": "x", "strength": 0.5}"#, "p.jsonl:2: strength: "),
        (r#"{"prompt": "x", "vae_tiling": true, "width": 100}"#, "p.jsonl:2: width: "),
        (r#"{"prompt": "x", "prompt_syntax": "a1111", "negative_prompt": "[a|b]"}"#, "p.jsonl:2: negative_prompt: "),
        (r#"{"prompt": "x", "scheduler": "tcd", "steps": 2000}"#, "p.jsonl:2: steps: "),
    ] {
        let tiny = Tiny::new();
        let file = tiny.file("p.jsonl", &format!("{{\"prompt\": \"good\"}}\n{line}\n"));
        for command in [&[][..], &["plan"]] {
            let arguments = [command, &["--prompts-file", &file, "--model"]].concat();
            let mut command = sdshard(&arguments);
            let message = message_of(command.arg(crate::common::tiny()).output().unwrap(), line);
            has_facts(line, &message, &[fact]);
        }
        assert_eq!(files(&tiny.out()), [""; 0]);
    }
}
