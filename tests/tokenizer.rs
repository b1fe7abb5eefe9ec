//! CLIP's tokenizer against ids that transformers computed: `golden/tokenizer.json`, made by `tests/reference/`.

use std::{collections::BTreeMap, fs, path::Path};

use sdshard::{tokenizer::Tokenizer, weights::ModelFiles};
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    fs::read_to_string(path).expect("the golden files are in the repository")
}

/// The vocabulary as `golden/clip-tokenizer/README.md` derives it from the merges.
fn vocab(merges: &str) -> BTreeMap<String, u32> {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut symbols: Vec<char> = (0..=255_u8).filter(printable).map(char::from).collect();
    symbols.extend((0x100..).take(256 - symbols.len()).map(|c| char::from_u32(c).unwrap()));
    let mut tokens: Vec<String> = symbols.iter().map(char::to_string).collect();
    tokens.extend(symbols.iter().map(|symbol| format!("{symbol}</w>")));
    tokens.extend(merges.lines().skip(1).map(|line| line.replacen(' ', "", 1)));
    tokens.extend(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    assert_eq!(tokens.len(), 49_408);
    tokens.into_iter().zip(0..).collect()
}

/// How a repository says which token pads.
const PADS: [(&str, &str); 2] = [("eot", "<|endoftext|>"), ("bang", "!")];

/// A model's `tokenizer` folder in the form of older repositories.
fn folder(pad: &str) -> TempDir {
    let merges = golden("clip-tokenizer/merges.txt");
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
    let vocab: Value = serde_json::from_str(&fs::read_to_string(inside("vocab.json")).unwrap()).unwrap();
    let merges = fs::read_to_string(inside("merges.txt")).unwrap();
    let words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let file = json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 77, "strategy": "LongestFirst", "stride": 0 },
        "padding": null,
        "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": merges.lines().skip(1).collect::<Vec<_>>(),
        },
    });
    fs::write(inside("tokenizer.json"), file.to_string()).unwrap();
    fs::remove_file(inside("vocab.json")).unwrap();
    fs::remove_file(inside("merges.txt")).unwrap();
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
