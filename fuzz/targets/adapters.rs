//! Files of LoRAs and of textual inversions with any tensors: what fits is computed, everything else is a message.
//!
//! The input is text, so that names and shapes are what changes: a line for each tensor, `NAME DTYPE 4x16`, and a line
//! `#KEY VALUE` for each text of the metadata.
#![no_main]

use std::{fmt::Write, fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use sdshard::weights::{
    Embedding, UnetBlocks,
    lora::{LoraFile, Modules, Target},
};
use sdshard_fuzz::refused;

/// The modules of a made-up model, with the shapes of their weights.
const MODULES: [(Target, &str, &[usize]); 5] = [
    (Target::Unet, "down_blocks.0.attentions.0.proj_in", &[16, 16]),
    (Target::Unet, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", &[16, 32]),
    (Target::Unet, "down_blocks.0.resnets.0.conv1", &[8, 16, 3, 3]),
    (Target::TextEncoder(0), "encoder.layers.0.mlp.fc1", &[64, 32]),
    (Target::TextEncoder(1), "encoder.layers.0.self_attn.q_proj", &[32, 32]),
];
/// The most bytes of a file's tensors.
const MOST: usize = 1 << 16;

static MODEL: LazyLock<Modules> = LazyLock::new(|| {
    let blocks = UnetBlocks { layers_per_block: 2, up_attention: vec![true] };
    Modules::new(MODULES.map(|(target, name, _)| (target, name)), |name| blocks.ldm_name(name))
});
static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("sdshard-fuzz-{}-adapter.safetensors", std::process::id())));

/// The file that a text describes; `None` if it has too many bytes.
fn file(text: &str) -> Option<Vec<u8>> {
    let (mut header, mut metadata, mut length) = (String::from("{"), String::new(), 0);
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    for line in text.lines() {
        if let Some((key, value)) = line.strip_prefix('#').and_then(|line| line.split_once(' ')) {
            write!(metadata, "{}:{},", quoted(key), quoted(value)).ok()?;
            continue;
        }
        let mut words = line.rsplitn(3, ' ');
        let (Some(shape), Some(dtype), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        let size = match dtype {
            "F64" | "I64" => 8,
            "F32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        let shape: Vec<usize> = shape.split('x').filter_map(|side| side.parse().ok()).collect();
        let elements = shape.iter().try_fold(1_usize, |all, side| all.checked_mul(*side))?;
        let end = elements.checked_mul(size)?.checked_add(length).filter(|end| *end <= MOST)?;
        let (name, dtype) = (quoted(name), quoted(dtype));
        write!(header, "{name}:{{\"dtype\":{dtype},\"shape\":{shape:?},\"data_offsets\":[{length},{end}]}},").ok()?;
        length = end;
    }
    write!(header, "\"__metadata__\":{{{}}}}}", metadata.trim_end_matches(',')).ok()?;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    // Small positive numbers in every type.
    bytes.extend((0..length).map(|i| 0x38 + (i % 5) as u8));
    Some(bytes)
}

fn lora() -> sdshard::Result<()> {
    let file = LoraFile::open(&PATH)?;
    file.family();
    for lenient in [false, true] {
        for change in file.resolve(&MODEL, lenient)? {
            let (_, _, shape) = MODULES[change.module];
            let weight = vec![0.25; shape.iter().product()];
            let bias = vec![0.5; shape[0]];
            let difference = file.adapter(&change.stem)?.difference(&weight, shape, Some(&bias), 0.75)?;
            assert!(difference.weight.is_none_or(|values| values.len() == weight.len()));
            assert!(difference.bias.is_none_or(|values| values.len() == bias.len()));
        }
    }
    Ok(())
}

fuzz_target!(|text: &str| {
    let Some(bytes) = file(text) else { return };
    fs::write(&*PATH, bytes).expect("the folder for temporary files can be written to");
    if let Err(error) = lora() {
        refused(&error);
    }
    match Embedding::read(&PATH) {
        Err(error) => refused(&error),
        Ok(embedding) => {
            for encoders in [&[("text_encoder", 32)][..], &[("text_encoder", 32), ("text_encoder_2", 64)]] {
                match embedding.for_encoders(encoders) {
                    Err(error) => refused(&error),
                    Ok(vectors) => assert_eq!(vectors.len(), encoders.len()),
                }
            }
        }
    }
});
