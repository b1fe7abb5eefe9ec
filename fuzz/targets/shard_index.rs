//! The index of a model in several files: any text leads to the files beside it, or to a message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sdshard::weights::{Weights, without_variant};
use sdshard_fuzz::{refused, with_model};

/// A file with one tensor of one f16 zero.
fn shard(tensor: &str) -> Vec<u8> {
    let header = format!(r#"{{"{tensor}":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}}}"#);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0, 0]].concat()
}

fuzz_target!(|index: &[u8]| {
    let (first, second) = (shard("a"), shard("text_model.b"));
    let files = [
        ("unet/diffusion_pytorch_model.safetensors.index.json", index),
        ("unet/diffusion_pytorch_model.fp16.safetensors.index.json", index),
        ("unet/1.safetensors", &first),
        ("unet/2.safetensors", &second),
    ];
    with_model(&files, |model| {
        for variant in [None, Some("fp16")] {
            match Weights::open(model, "unet", variant) {
                Ok(weights) => assert!(weights.has("a") || weights.has("b")),
                Err(error) => refused(&error),
            }
        }
        if let Err(error) = without_variant(model, &["unet"], "fp16") {
            refused(&error);
        }
    });
});
