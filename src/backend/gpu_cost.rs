//! What operations and weights occupy on a GPU: pure functions that the real backends and the dry device share.

use super::{DType, Form, Op};

/// The number of pixels in one partial sum of group norm's statistics, as in `group_norm.cu` and `group_norm.wgsl`.
pub const NORM_CHUNK: u32 = 64;

/// The bytes of a packed layer.
pub(super) fn packed_bytes(form: Form) -> usize {
    let (elements, bias_elements) = form.layer.elements();
    form.stored.bytes(elements) + if form.has_bias { bias_elements * DType::F32.size() } else { 0 }
}

/// The number of runs into which CUDA's kernels divide a sum over `k`; the partial sums of the runs are added in order.
/// A sum is a chain of dependent operations, and where there are few sums, as in the inner convolutions of a UNet, most
/// of a GPU would be idle until the chains end. The number depends on the layer alone, as it decides the bits: a run is
/// about as long as the chain of a 3x3 convolution over 320 channels, of which there are always enough.
pub fn runs(k: u32) -> u32 {
    match k / 2880 {
        0..4 => 1,
        runs => runs.min(16),
    }
}

/// The number of rows whose partial sums exist at once: enough to keep a GPU busy.
pub const SPLIT_ROWS: u32 = 1024;

/// The bytes that a product with CUDA's kernels needs in addition to its output: partial sums in f32, in rows of a
/// multiple of 64 bytes. `None` for sums of one run.
fn partial_sums(rows: u32, out: u32, k: u32) -> Option<usize> {
    let runs = runs(k) as usize;
    let bytes = || runs * rows.min(SPLIT_ROWS) as usize * out.next_multiple_of(16) as usize * DType::F32.size();
    (runs > 1).then(bytes)
}

/// The bytes that an op needs in addition to its output with CUDA's kernels.
pub(super) fn cuda_scratch(op: &Op) -> Option<usize> {
    match op {
        Op::Linear { p, .. } => partial_sums(p.rows, p.out, p.k),
        Op::Conv2d { p, .. } => {
            partial_sums(p.batch * p.out_height * p.out_width, p.out, p.kernel * p.kernel * p.channels)
        }
        op => wgpu_scratch(op),
    }
}

/// The bytes that an op needs in addition to its output with wgpu's shaders, which never divide a product's sum.
pub(super) fn wgpu_scratch(op: &Op) -> Option<usize> {
    match op {
        // Keys and values are read in place; plans count an empty buffer nevertheless.
        Op::Attention { .. } => Some(0),
        // A mean and a sum of squares for each chunk and group, then a factor and an offset for each channel.
        Op::GroupNorm { p, .. } => {
            let chunks = p.pixels.div_ceil(NORM_CHUNK) as usize;
            let values = 2 * chunks * p.groups as usize + 2 * p.channels as usize;
            Some(DType::F32.size() * p.batch as usize * values)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Extent, Layer};

    #[test]
    fn only_the_sums_of_the_inner_convolutions_are_made_in_runs() {
        for (k, want) in [(1, 1), (2880, 1), (8640, 1), (11519, 1), (11520, 4), (17280, 6), (23040, 8), (1 << 20, 16)] {
            assert_eq!(runs(k), want, "{k}");
        }
        assert_eq!(partial_sums(4096, 640, 5760), None);
        assert_eq!(partial_sums(128, 1280, 11520), Some(4 * 128 * 1280 * 4));
        assert_eq!(partial_sums(2048, 1281, 23040), Some(8 * 1024 * 1296 * 4));
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
            (
                DType::F16,
                Layer::Conv2d { out: 4, channels: 320, kernel: 3, stride: 1, extent: Extent::Large },
                true,
                4 * 320 * 9 * 2 + 4 * 4,
            ),
        ] {
            assert_eq!(packed_bytes(Form::new(layer, dtype, has_bias)), bytes, "{layer:?} {dtype}");
        }
    }
}
