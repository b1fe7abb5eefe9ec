//! CLIP's tokenizer against ids that transformers computed: `golden/tokenizer.json` and `golden/added_tokens.json`,
//! made by `tests/reference/`.

use std::{collections::BTreeMap, fs, path::Path};

use sdshard::{tokenizer::Tokenizer, weights::ModelFiles};
use serde_json::{Value, json};
use tempfile::TempDir;

pub fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    fs::read_to_string(path).expect("the golden files are in the repository")
}

pub fn merges_of_clip() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/clip-tokenizer/merges.txt");
    fs::read_to_string(path).expect("the merges are in the repository")
}

/// The vocabulary as `models/clip-tokenizer/README.md` derives it from the merges.
pub fn vocab(merges: &str) -> BTreeMap<String, u32> {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut symbols: Vec<char> = (0..=255_u8).filter(printable).map(char::from).collect();
    symbols.extend((0x100..).take(256 - symbols.len()).map(|c| char::from_u32(c).unwrap()));
    let mut tokens: Vec<String> = symbols.iter().map(char::to_string).collect();
    tokens.extend(symbols.iter().map(|symbol| format!("{symbol}</w>")));
    tokens.extend(merges.lines().skip(1).map(|line| line.replacen(' ', "", 1)));
    tokens.extend(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    tokens.into_iter().zip(0..).collect()
}

/// How a repository says which token pads.
const PADS: [(&str, &str); 2] = [("eot", "<|endoftext|>"), ("bang", "!")];

/// A model's `tokenizer` folder in the form of older repositories.
pub fn folder(pad: &str) -> TempDir {
    let merges = merges_of_clip();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        fs::create_dir_all(folder.path().join("tokenizer")).unwrap();
        fs::write(folder.path().join(name), text).unwrap();
    };
    write("tokenizer/vocab.json", json!(vocab(&merges)).to_string());
    write("tokenizer/merges.txt", merges);
    let token = |content: &str| json!({ "content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false });
    let special = json!({
        "bos_token": token("<|startoftext|>"),
        "eos_token": token("<|endoftext|>"),
        "pad_token": pad,
        "unk_token": token("<|endoftext|>"),
    });
    write("tokenizer/special_tokens_map.json", special.to_string());
    write("tokenizer/tokenizer_config.json", json!({ "model_max_length": 77, "pad_token": pad }).to_string());
    write("model_index.json", "{}".into());
    folder
}

/// The same as one `tokenizer.json`, as newer libraries save it.
fn whole(folder: &TempDir) {
    let inside = |name: &str| folder.path().join("tokenizer").join(name);
    let merges = fs::read_to_string(inside("merges.txt")).unwrap();
    let changes = json!({ "pairs": false, "added_tokens": [], "normalizer": {}, "truncation": { "direction": "Right", "max_length": 77 } });
    fs::write(inside("tokenizer.json"), tokenizer_json(&merges, &changes).to_string()).unwrap();
    fs::remove_file(inside("vocab.json")).unwrap();
    fs::remove_file(inside("merges.txt")).unwrap();
}

/// A `tokenizer.json` with `changes` of its top-level keys; with `type` false the model has no type, with `pairs` false
/// merges are texts.
fn tokenizer_json(merges: &str, changes: &Value) -> Value {
    let is = |key: &str| changes.get(key) != Some(&Value::Bool(false));
    let lines = merges.lines().skip(1);
    let merge = |line: &str| if is("pairs") { json!(line.split(' ').collect::<Vec<_>>()) } else { json!(line) };
    let mut model = json!({ "vocab": vocab(merges), "merges": lines.map(merge).collect::<Vec<_>>() });
    if is("type") {
        model["type"] = "BPE".into();
    }
    let special =
        |token: &str| json!({ "id": vocab(merges)[token], "content": token, "normalized": true, "special": true });
    let added = ["<|startoftext|>", "<|endoftext|>"].map(special);
    let mut file = json!({ "version": "1.0", "added_tokens": added, "model": model });
    for (key, value) in changes.as_object().unwrap() {
        file[key] = value.clone();
    }
    file
}

#[test]
fn ids_are_those_of_transformers_from_either_form_of_the_files() {
    let rows: Value = serde_json::from_str(&golden("tokenizer.json")).unwrap();
    let rows = rows["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 53);
    let mut checked = 0;
    for (name, pad) in PADS {
        for form in ["vocab.json", "tokenizer.json"] {
            let folder = folder(pad);
            if form == "tokenizer.json" {
                whole(&folder);
            }
            let files = ModelFiles::folder(folder.path()).unwrap();
            let tokenizer = Tokenizer::load(&files, "tokenizer", 77).unwrap();
            assert_eq!(tokenizer.largest_id(), 49_407);
            for row in rows.iter().filter(|row| row["pad"] == name) {
                let want: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
                let got = tokenizer.encode(row["text"].as_str().unwrap()).unwrap();
                assert_eq!(got.ids, want, "{form}, padded with {pad}: {:?}", row["text"]);
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 2 * 53, "a row of a form that nobody checked");
}

#[test]
fn added_tokens_are_found_in_every_place_where_tokenizers_keep_them() {
    let golden_file: Value = serde_json::from_str(&golden("added_tokens.json")).unwrap();
    let count = golden_file["merges"].as_u64().unwrap() as usize;
    let merges = merges_of_clip().lines().take(1 + count).collect::<Vec<_>>().join("\n");
    let mut checked = 0;
    for case in golden_file["rows"].as_array().unwrap() {
        let folder = folder("<|endoftext|>");
        let inside = |name: &str| folder.path().join("tokenizer").join(name);
        fs::write(inside("vocab.json"), json!(vocab(&merges)).to_string()).unwrap();
        fs::write(inside("merges.txt"), &merges).unwrap();
        for (name, value) in case["files"].as_object().unwrap() {
            let value = if name == "tokenizer.json" { tokenizer_json(&merges, value) } else { value.clone() };
            fs::write(inside(name), value.to_string()).unwrap();
        }
        let files = ModelFiles::folder(folder.path()).unwrap();
        let prompts = case["prompts"].as_array().unwrap();
        for (prompt, ids) in prompts.iter().zip(case["ids"].as_array().unwrap()) {
            let want: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let tokenizer = Tokenizer::load(&files, "tokenizer", want.len()).unwrap();
            let got = tokenizer.encode(prompt.as_str().unwrap()).unwrap();
            assert_eq!(got.ids, want, "{}: {prompt}", case["case"]);
            checked += 1;
        }
    }
    assert_eq!(checked, 36, "a prompt that nobody checked");
}
