//! A safetensors file: any bytes are a file or a message, and a tensor has the bytes of its shape.
//!
//! The input is tried as a whole file, and as a header: its first two bytes say how many bytes of data follow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sdshard::weights::Weights;
use sdshard_fuzz::{refused, with_model};

/// The names in the seeds, for the fuzzer to put together again.
const NAMES: [&str; 5] = ["a", "b", "conv_in.weight", "c.to_q.weight", "c.norm.bias"];
const SHAPES: [&[usize]; 5] = [&[], &[1], &[2, 3], &[0, 4], &[2, 1, 1, 3]];

fn open(file: &[u8]) {
    with_model(&[("unet/diffusion_pytorch_model.safetensors", file)], |model| {
        let weights = match Weights::open(model, "unet", None) {
            Ok(weights) => weights,
            Err(error) => return refused(&error),
        };
        for name in NAMES {
            for shape in SHAPES {
                match weights.get(name, shape) {
                    Ok(loaded) => {
                        // Those in F64 or in floats of 8 bits are no bytes of the file.
                        let values = loaded.values();
                        let (dtype, bytes) = values.form().expect("a file has values");
                        assert_eq!(bytes, shape.iter().product::<usize>() * dtype.size());
                        values.read(0, &mut vec![0; bytes]).expect("they can be read");
                    }
                    Err(error) => refused(&error),
                }
            }
        }
        weights.skip("encoder.");
        _ = weights.check_unchanged();
        if let Err(error) = weights.finish() {
            refused(&error);
        }
    });
}

fuzz_target!(|input: &[u8]| {
    open(input);
    if let Some((data, header)) = input.split_first_chunk::<2>() {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.resize(file.len() + usize::from(u16::from_le_bytes(*data)), 0x3c);
        open(&file);
    }
});
