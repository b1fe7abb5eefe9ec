//! The configs and tokenizers of the published models, for single-file checkpoints, which have none of their own.

use serde_json::{Map, Value};

/// The configs of each kind of model, by their paths in a diffusers folder. A kind may extend another one: then it has
/// only what differs, and null removes something.
const CONFIGS: &str = include_str!("../../models/configs.json");
/// The merges of CLIP's tokenizer.
const MERGES: &str = include_str!("../../models/clip-tokenizer/merges.txt");

/// The JSON files of a kind of model by their paths.
///
/// # Panics
/// If there is no such kind.
pub fn configs(kind: &str) -> Map<String, Value> {
    let mut all: Map<String, Value> = serde_json::from_str(CONFIGS).expect("the file is compiled in, and tested");
    let mut kinds = vec![all.remove(kind).expect("the caller knows the kinds")];
    while let Some(base) = kinds[kinds.len() - 1].get("extends").and_then(Value::as_str) {
        let base = all.remove(base).expect("a kind extends one that there is");
        kinds.push(base);
    }
    let mut files = Value::Object(Map::new());
    for kind in kinds.into_iter().rev() {
        merge(&mut files, kind);
    }
    let Value::Object(mut files) = files else { unreachable!("it began as one") };
    files.remove("extends");
    files.retain(|_, file| !file.is_null());
    files
}

/// Adds the values of `over` to those of `base`, of objects in objects too; null removes a file.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// The kinds of models that there are configs for.
#[cfg(test)]
pub(super) fn kinds() -> Vec<String> {
    serde_json::from_str::<Map<String, Value>>(CONFIGS).unwrap().into_iter().map(|(kind, _)| kind).collect()
}

/// The vocabulary and the merges of CLIP's tokenizer, by the names of their files.
pub fn clip_tokenizer() -> [(&'static str, Vec<u8>); 2] {
    let vocabulary: Map<String, Value> = tokens().into_iter().zip(0..).map(|(token, id)| (token, id.into())).collect();
    [("vocab.json", Value::Object(vocabulary).to_string().into_bytes()), ("merges.txt", MERGES.into())]
}

/// CLIP's tokens in the order of their ids: the bytes, the bytes at the end of a word, the merges, and two marks.
fn tokens() -> Vec<String> {
    // Bytes that are printable characters stand for themselves, the others for characters from U+0100 on.
    let is_printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let printable = (0..=u8::MAX).filter(is_printable).map(char::from);
    let others = (0..=u8::MAX).filter(|byte| !is_printable(byte)).zip('\u{100}'..).map(|(_, other)| other);
    let bytes: Vec<String> = printable.chain(others).map(String::from).collect();
    let ends = bytes.iter().map(|byte| format!("{byte}</w>"));
    let merges = MERGES.lines().skip(1).map(|merge| merge.replacen(' ', "", 1));
    let marks = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    bytes.iter().cloned().chain(ends).chain(merges).chain(marks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_is_clips() {
        let tokens = tokens();
        assert_eq!(tokens.len(), 49_408);
        for (token, id) in
            [("!", 0), ("a", 64), ("a</w>", 320), ("in", 512), ("<|startoftext|>", 49_406), ("<|endoftext|>", 49_407)]
        {
            assert_eq!(tokens[id], token);
        }
        // The id of "dog" in every published tokenizer.
        assert_eq!(tokens[1929], "dog</w>");
        let [(_, vocabulary), _] = clip_tokenizer();
        let vocabulary: std::collections::HashMap<String, usize> = serde_json::from_slice(&vocabulary).unwrap();
        assert_eq!(vocabulary.len(), 49_408);
        assert!(tokens.iter().enumerate().all(|(id, token)| vocabulary[token] == id));
    }

    /// The tables of differences between the published configs.
    #[test]
    fn the_configs_are_the_published_ones() {
        let value = |kind: &str, file: &str, key: &str| configs(kind)[file].get(key).cloned().unwrap_or(Value::Null);
        for (key, values) in [
            ("in_channels", ["4", "9", "4", "4", "9", "4", "9", "4"]),
            ("sample_size", ["64", "64", "64", "96", "64", "128", "128", "128"]),
            ("cross_attention_dim", ["768", "768", "1024", "1024", "1024", "2048", "2048", "1280"]),
            (
                "attention_head_dim",
                ["8", "8", "[5,10,20,20]", "[5,10,20,20]", "[5,10,20,20]", "[5,10,20]", "[5,10,20]", "[6,12,24,24]"],
            ),
            ("transformer_layers_per_block", ["null", "null", "null", "null", "null", "[1,2,10]", "[1,2,10]", "4"]),
            ("use_linear_projection", ["null", "null", "true", "true", "true", "true", "true", "true"]),
            ("upcast_attention", ["null", "null", "false", "true", "false", "null", "null", "null"]),
            ("projection_class_embeddings_input_dim", ["null", "null", "null", "null", "null", "2816", "2816", "2560"]),
        ] {
            for (kind, want) in KINDS.iter().zip(values) {
                assert_eq!(value(kind, "unet/config.json", key).to_string(), want, "{kind}: {key}");
            }
        }
        for (key, values) in [
            ("sample_size", ["512", "256", "768", "768", "512", "1024", "512", "1024"]),
            ("force_upcast", ["null", "null", "null", "null", "null", "true", "false", "true"]),
        ] {
            for (kind, want) in KINDS.iter().zip(values) {
                assert_eq!(value(kind, "vae/config.json", key).to_string(), want, "{kind}: {key}");
            }
        }
        for (kind, class, prediction) in [
            ("sd1", "PNDMScheduler", "null"),
            ("sd1-inpainting", "DDIMScheduler", "null"),
            ("sd2", "PNDMScheduler", "\"epsilon\""),
            ("sd2-768-v", "DDIMScheduler", "\"v_prediction\""),
            ("sd2-inpainting", "PNDMScheduler", "\"epsilon\""),
            ("sdxl", "EulerDiscreteScheduler", "\"epsilon\""),
            ("sdxl-inpainting", "EulerDiscreteScheduler", "\"epsilon\""),
            ("sdxl-refiner", "EulerDiscreteScheduler", "\"epsilon\""),
        ] {
            let scheduler = "scheduler/scheduler_config.json";
            assert_eq!(value(kind, scheduler, "_class_name"), class, "{kind}");
            assert_eq!(value(kind, "model_index.json", "scheduler")[1], class, "{kind}");
            assert_eq!(value(kind, scheduler, "prediction_type").to_string(), prediction, "{kind}");
            let scale = value(kind, "vae/config.json", "scaling_factor");
            assert_eq!(scale, if kind.starts_with("sdxl") { 0.13025 } else { 0.18215 }, "{kind}");
        }
        for (kind, pad) in [("sd1", "<|endoftext|>"), ("sd2", "!"), ("sdxl", "<|endoftext|>")] {
            assert_eq!(value(kind, "tokenizer/special_tokens_map.json", "pad_token"), pad, "{kind}");
        }
        assert_eq!(value("sdxl", "tokenizer_2/special_tokens_map.json", "pad_token"), "!");
        let refiner = configs("sdxl-refiner");
        assert!(
            refiner.contains_key("text_encoder_2/config.json") && !refiner.contains_key("text_encoder/config.json")
        );
        assert_eq!(kinds().len(), KINDS.len() + 2);
    }

    const KINDS: [&str; 8] =
        ["sd1", "sd1-inpainting", "sd2", "sd2-768-v", "sd2-inpainting", "sdxl", "sdxl-inpainting", "sdxl-refiner"];
}
