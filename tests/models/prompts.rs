//! Prompts with textual inversions against ids that diffusers computed (`golden/prompts.json`), and prompts of web UIs
//! over CLIP's vocabulary.

use std::{fs, sync::Arc};

use sdshard::{
    backend::Precision,
    pipeline::{Metadata, Model, request::Request},
    prompt::{PromptSyntax, PromptTokenizer},
    tokenizer::Tokenizer,
    weights::{EmbeddingChoice, ModelFiles},
};
use serde_json::{Value, json};

use super::{
    common::formula,
    golden::{Golden, asked, close, draw, draw_with},
    tokenizer::{folder, golden, merges_of_clip, vocab},
};

#[test]
fn prompts_of_web_uis_have_weights_and_chunks() {
    let (golden, sdxl) = (Golden::open("prompt_syntax"), formula::folder("tiny-sdxl"));
    let number = |key: &str| golden.text(key).parse::<f32>().unwrap();
    for name in ["tiny-sd1", "tiny-sd2", "tiny-sdxl"] {
        let path = match name {
            "tiny-sdxl" => sdxl.path().to_owned(),
            _ => std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name),
        };
        let model = Arc::new(Model::open(ModelFiles::folder(path).unwrap(), None).unwrap());
        let request = Request {
            negative_prompt: Some(golden.text("negative_prompt")),
            prompt_syntax: PromptSyntax::A1111,
            guidance_scale: number("guidance_scale"),
            ..asked(&golden, &model)
        };
        let chunks = model.chunks(&request).unwrap();
        assert_eq!(chunks as f32, number("chunks"));
        // The planned bytes are compared with the measured ones.
        let picture = draw(&model, Request { chunks, ..request.clone() });
        close(name, &picture.latents.values, &golden.values(name), 1e-3);
        let plain = draw(&model, Request { prompt_syntax: PromptSyntax::Plain, ..request.clone() });
        assert_ne!(plain.latents.values, picture.latents.values);
        assert_eq!(model.chunks(&plain.request).unwrap(), 1);
    }
}

#[test]
fn textual_inversions_are_rows_of_the_token_table() {
    let golden = Golden::open("prompt_syntax");
    let number = |key: &str| golden.text(key).parse::<f32>().unwrap();
    let (token, folder) = (golden.text("token"), tempfile::tempdir().unwrap());
    let path = folder.path().join("cat.safetensors");
    let values = formula::weight("embedding", &token, &[2, 32], 1.0);
    formula::write(&path, &[(token.clone(), (vec![2, 32], values))].into());
    let open = |name: Option<&str>| {
        let choice = EmbeddingChoice { path: path.clone(), token: name.map(str::to_owned) };
        let files = super::common::model().files.clone().with_embeddings(&[choice]);
        Arc::new(Model::open(files, None).unwrap())
    };
    let model = open(None);
    let request = |prompt: String, negative: &str| Request {
        prompt,
        negative_prompt: Some(negative.into()),
        guidance_scale: number("guidance_scale"),
        ..asked(&golden, &model)
    };
    let own = request(golden.text("inversion"), &token);
    // Every way in which weights are kept has the new rows.
    for map in ["", "reside = \"host\"", "reside = \"disk\""] {
        let map = match map {
            "" => "dtype = \"f32\"".to_owned(),
            reside => format!("[components]\ntext_encoder = {{ execute = \"cpu\", {reside} }}\n"),
        };
        let latents = draw_with(&model, own.clone(), &map).latents.values;
        close(&map, &latents, &golden.values("inversion"), 1e-3);
    }
    // Web UIs know it by the name of its file, in any case of letters.
    let prompt = golden.text("inversion").replace(&token, "CAT");
    let a1111 = Request { prompt_syntax: PromptSyntax::A1111, ..request(prompt, "cat") };
    close("a1111", &draw(&model, a1111).latents.values, &golden.values("inversion"), 1e-3);
}

#[test]
fn a_picture_depends_on_the_embeddings_in_its_own_texts_alone() {
    let folder = tempfile::tempdir().unwrap();
    let choices = |names: &[(&str, &str)]| {
        let choice = |(file, token): &(&str, &str)| {
            let path = folder.path().join(format!("{file}.safetensors"));
            let values = formula::weight("embedding", file, &[2, 32], 1.0);
            formula::write(&path, &[("emb_params".to_owned(), (vec![2, 32], values))].into());
            EmbeddingChoice { path, token: (!token.is_empty()).then(|| (*token).to_owned()) }
        };
        let files = super::common::model().files.clone();
        Arc::new(Model::open(files.with_embeddings(&names.iter().map(choice).collect::<Vec<_>>()), None).unwrap())
    };
    let [plain, one, two, renamed] =
        [&[][..], &[("cat", "")], &[("cat", ""), ("dog", "<d>")], &[("cat", "kitten")]].map(choices);
    let of = |model: &Model, prompt: &str, negative: &str, syntax| {
        let request = Request {
            negative_prompt: Some(negative.into()),
            prompt_syntax: syntax,
            ..Request::new(prompt, &model.spec)
        };
        Metadata::new(&request, model, &model.hashes().unwrap(), &[Precision::F32]).unwrap()
    };
    for syntax in [PromptSyntax::Plain, PromptSyntax::A1111] {
        assert_eq!(of(&two, "a fox", "", syntax), of(&plain, "a fox", "", syntax), "neither is used");
        assert_eq!(of(&two, "a cat", "", syntax), of(&one, "a cat", "", syntax), "one is used");
        assert_ne!(of(&one, "a cat", "", syntax), of(&plain, "a cat", "", syntax));
        assert_ne!(of(&renamed, "a kitten", "", syntax).embeddings, of(&one, "a cat", "", syntax).embeddings);
        let said = of(&two, "a fox", "<d> cat", syntax).embeddings;
        assert_eq!(said.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["cat", "<d>"]);
        assert!(said.iter().all(|(_, hash)| hash.len() == 12));
    }
    // Without guidance the negative prompt is not used.
    let unguided =
        Request { guidance_scale: 1.0, negative_prompt: Some("cat".into()), ..Request::new("a fox", &two.spec) };
    assert_eq!(two.embeddings_of(&unguided).unwrap(), [0; 0]);
}

#[test]
fn an_embedding_is_not_taken_for_the_end_of_a_web_uis_prompt() {
    let (golden, sdxl) = (Golden::open("prompt_syntax"), formula::folder("tiny-sdxl"));
    let number = |key: &str| golden.text(key).parse::<f32>().unwrap();
    let token = golden.text("token");
    let path = sdxl.path().join("cat.safetensors");
    let tensor = |(key, width): (&str, usize)| {
        let values = formula::weight("embedding", &format!("{token}/{width}"), &[2, width], 1.0);
        (key.to_owned(), (vec![2, width], values))
    };
    formula::write(&path, &[("clip_l", 32), ("clip_g", 48)].map(tensor).into());
    let files = ModelFiles::folder(sdxl.path()).unwrap();
    let choice = EmbeddingChoice { path, token: Some(token.clone()) };
    let model = Arc::new(Model::open(files.with_embeddings(&[choice]), None).unwrap());
    // diffusers takes the largest id for the end.
    for (syntax, name) in [(PromptSyntax::Plain, "sdxl-inversion"), (PromptSyntax::A1111, "sdxl-inversion-a1111")] {
        let request = Request {
            prompt_syntax: syntax,
            prompt: golden.text("inversion"),
            negative_prompt: Some(token.clone()),
            guidance_scale: number("guidance_scale"),
            ..asked(&golden, &model)
        };
        close(name, &draw(&model, request).latents.values, &golden.values(name), 1e-3);
    }
}

#[test]
fn an_embedding_of_another_width_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cat.safetensors");
    formula::write(&path, &[("emb_params".to_owned(), (vec![2, 48], vec![0.0; 96]))].into());
    let files = super::common::model().files.clone();
    let error = Model::open(files.with_embeddings(&[EmbeddingChoice { path, token: None }]), None).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let message = error.to_string();
    assert!(message.contains("cat.safetensors") && message.contains("32 values"), "{message}");
}

#[test]
fn what_a_request_cannot_have_in_its_prompt_is_an_error() {
    let model = super::common::model();
    let check = |prompt: &str, negative: &str| {
        let request = Request {
            prompt_syntax: PromptSyntax::A1111,
            negative_prompt: Some(negative.into()),
            ..Request::new(prompt, &model.spec)
        };
        request.check(&model.spec).map_err(|error| error.to_string())
    };
    check("a (fox:1.2)", "(blur)").unwrap();
    for (prompt, negative, part) in [
        ("a <lora:x:1>", "", "ModelFiles::with_loras"),
        ("a (fox:1.2.3)", "", "prompt: "),
        ("a", "[a|b]", "negative_prompt: "),
    ] {
        let error = check(prompt, negative).unwrap_err();
        assert!(error.contains(part), "{prompt:?} {negative:?}: {error}");
    }
}

#[test]
fn embeddings_in_plain_prompts_have_the_ids_that_diffusers_gives_them() {
    let golden_file: Value = serde_json::from_str(&golden("prompts.json")).unwrap();
    let count = golden_file["merges"].as_u64().unwrap() as usize;
    let merges = merges_of_clip().lines().take(1 + count).collect::<Vec<_>>().join("\n");
    let folder = folder("<|endoftext|>");
    let inside = |name: &str| folder.path().join("tokenizer").join(name);
    fs::write(inside("vocab.json"), json!(vocab(&merges)).to_string()).unwrap();
    fs::write(inside("merges.txt"), &merges).unwrap();
    let tokenizer = Arc::new(Tokenizer::load(&ModelFiles::folder(folder.path()).unwrap(), "tokenizer", 77).unwrap());
    let mut checked = 0;
    for case in golden_file["rows"].as_array().unwrap() {
        let embeddings: Vec<(String, usize)> = serde_json::from_value(case["embeddings"].clone()).unwrap();
        let embeddings: Vec<(&str, usize)> = embeddings.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        let prompts = PromptTokenizer::new(&tokenizer, PromptSyntax::Plain, &embeddings).unwrap();
        assert_eq!(prompts.first_id() as usize, 512 + count + 2);
        for (prompt, ids) in case["prompts"].as_array().unwrap().iter().zip(case["ids"].as_array().unwrap()) {
            let want: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let got = prompts.encode(prompt.as_str().unwrap()).unwrap();
            assert_eq!(got.chunks.len(), 1);
            assert_eq!(got.chunks[0].ids, want, "{embeddings:?}: {prompt}");
            checked += 1;
        }
    }
    assert_eq!(checked, 35, "a prompt that nobody checked");
}

#[test]
fn prompts_of_web_uis_have_the_tokens_of_their_texts() {
    for pad in ["<|endoftext|>", "!"] {
        let folder = folder(pad);
        let tokenizer =
            Arc::new(Tokenizer::load(&ModelFiles::folder(folder.path()).unwrap(), "tokenizer", 77).unwrap());
        let prompts = PromptTokenizer::new(&tokenizer, PromptSyntax::A1111, &[("easy negative", 8)]).unwrap();
        for (prompt, plain) in [
            ("a (red:1.3) ball, [blurry]", "a red ball, blurry"),
            (r"artist_\(style\), smile :)", "artist_(style), smile :)"),
            ("(red)(ball)", "redball"),
            ("", ""),
        ] {
            let got = prompts.encode(prompt).unwrap();
            assert_eq!(got.chunks.len(), 1);
            assert_eq!(got.chunks[0].ids, tokenizer.encode(plain).unwrap().ids, "{prompt}, padded with {pad}");
        }
        // Fragments are tokenised one by one: a word does not go on behind a bracket.
        let split = prompts.encode("(red:1.2)ball").unwrap().chunks.remove(0);
        assert_eq!(split.ids, tokenizer.encode("red ball").unwrap().ids);
        assert_eq!(split.weights[..4], [1.0, 1.2, 1.0, 1.0]);
        let named = prompts.encode("bad, (EASY negative:0.5)").unwrap().chunks.remove(0);
        assert_eq!((named.ids[2], &named.ids[3..11]), (267, &(49_408..49_416).collect::<Vec<_>>()[..]));
        assert_eq!(named.weights[2..12], [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0]);
        assert_eq!(named.ids[11], 49_407);
        assert_eq!(named.ids[12], tokenizer.pad());
        // 60 words, a comma and 24 words: what is behind the comma moves to the next chunk.
        let long = prompts.encode(&format!("{}, {}", "red ".repeat(60), "ball ".repeat(24))).unwrap();
        let ends: Vec<usize> =
            long.chunks.iter().map(|chunk| chunk.ids.iter().position(|id| *id == 49_407).unwrap()).collect();
        assert_eq!(ends, [62, 25]);
    }
}
