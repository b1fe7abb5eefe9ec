//! What things occupy on a GPU: pure functions that the backends and their dry twins share.

use super::{
    DType, Layer,
    params::{Attention, GroupNorm},
};

/// Pixels whose statistics group norm's kernels sum before they are combined with others: as in `group_norm.cu` and
/// `group_norm.wgsl`.
pub const NORM_CHUNK: u32 = 64;

/// Bytes of a packed layer: weights in `dtype`, norms and biases in f32.
pub fn packed_bytes(dtype: DType, layer: Layer, has_bias: bool) -> usize {
    let (elements, bias_elements) = layer.elements();
    let size = match layer {
        Layer::Norm { .. } => DType::F32.size(),
        _ => dtype.size(),
    };
    elements * size + if has_bias { bias_elements * DType::F32.size() } else { 0 }
}

/// How CUDA's kernels make sums over `k`: each in so many runs of `k`, whose partial sums are added in order. A sum is a
/// chain of operations one after the other, and where there are few sums, as in the inner convolutions of a UNet, most of a
/// GPU would wait for their end. Depends on the layer alone, as it decides the bits: a run is about as long as the chain of
/// a 3x3 convolution over 320 channels, of which there are always enough.
pub fn runs(k: u32) -> u32 {
    match k / 2880 {
        0..4 => 1,
        runs => runs.min(16),
    }
}

/// Of how many rows partial sums exist at once: enough to keep a GPU busy.
pub const SPLIT_ROWS: u32 = 1024;

/// Bytes that a product with CUDA's kernels needs beside its output: partial sums in f32, in rows of whole 64 bytes.
pub fn product_scratch(rows: u32, out: u32, k: u32) -> usize {
    match runs(k) {
        1 => 0,
        runs => runs as usize * rows.min(SPLIT_ROWS) as usize * out.next_multiple_of(16) as usize * DType::F32.size(),
    }
}

/// Bytes that attention needs beside its output: none, as keys and values are read where they lie.
pub fn attention_scratch(_: &Attention) -> usize {
    0
}

/// Bytes that group norm needs beside its output: a mean and a sum of squares for each chunk and group, then a factor and
/// an offset for each channel.
pub fn group_norm_scratch(p: &GroupNorm) -> usize {
    let chunks = p.pixels.div_ceil(NORM_CHUNK) as usize;
    DType::F32.size() * p.batch as usize * (2 * chunks * p.groups as usize + 2 * p.channels as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sums_of_the_inner_convolutions_are_made_in_runs() {
        for (k, want) in [(1, 1), (2880, 1), (8640, 1), (11519, 1), (11520, 4), (17280, 6), (23040, 8), (1 << 20, 16)] {
            assert_eq!(runs(k), want, "{k}");
        }
        assert_eq!(product_scratch(4096, 640, 5760), 0);
        assert_eq!(product_scratch(128, 1280, 11520), 4 * 128 * 1280 * 4);
        assert_eq!(product_scratch(2048, 1281, 23040), 8 * 1024 * 1296 * 4);
    }

    #[test]
    fn weights_have_their_type_and_norms_and_biases_are_f32() {
        let linear = Layer::Linear { out: 320, k: 77 };
        for (dtype, layer, has_bias, bytes) in [
            (DType::F16, linear, false, 320 * 77 * 2),
            (DType::BF16, linear, true, 320 * 77 * 2 + 320 * 4),
            (DType::F32, linear, true, 320 * 77 * 4 + 320 * 4),
            (DType::F16, Layer::Norm { channels: 320 }, true, 2 * 320 * 4),
            (DType::F16, Layer::Embedding { rows: 77, channels: 768 }, false, 77 * 768 * 2),
            (DType::F16, Layer::Conv2d { out: 4, channels: 320, kernel: 3 }, true, 4 * 320 * 9 * 2 + 4 * 4),
        ] {
            assert_eq!(packed_bytes(dtype, layer, has_bias), bytes, "{layer:?} {dtype}");
        }
    }
}
