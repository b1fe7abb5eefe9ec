//! What things occupy on a GPU: pure functions that the backends and their dry twins share.

use super::{
    DType, Layer,
    cpu::cost,
    params::{Attention, GroupNorm},
};

/// Bytes of a packed layer: weights in `dtype`, norms and biases in f32.
pub fn packed_bytes(dtype: DType, layer: Layer, has_bias: bool) -> usize {
    let (elements, bias_elements) = layer.elements();
    let size = match layer {
        Layer::Norm { .. } => DType::F32.size(),
        _ => dtype.size(),
    };
    elements * size + if has_bias { bias_elements * DType::F32.size() } else { 0 }
}

/// Bytes that attention needs beside its output: none, as keys and values are read where they lie.
pub fn attention_scratch(_: &Attention) -> usize {
    0
}

/// Bytes that group norm needs beside its output: its chunks and their order are the CPU's.
pub fn group_norm_scratch(p: &GroupNorm) -> usize {
    cost::group_norm_scratch(p)
}

#[cfg(test)]
mod tests {
    use super::*;

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
