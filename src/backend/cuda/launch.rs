//! Chooses kernels and the number of their blocks: pure functions of sizes, architecture and type. The sizes of
//! pictures and batches may only choose among kernels that give the same bits.

use crate::backend::{DType, gpu_cost::runs, params::Attention};

/// A kernel's variant, the number of its blocks and of their threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: String,
    /// The number of blocks in three dimensions.
    pub grid: [u32; 3],
    /// The number of threads of a block.
    pub threads: u32,
}

impl Launch {
    fn new(kernel: String, blocks: u32, threads: u32) -> Self {
        Self { kernel, grid: [blocks, 1, 1], threads }
    }
}

/// Whether products of this type use tensor cores, as `Cores` in `product.cuh` does.
pub fn has_cores(arch: u32, dtype: DType) -> bool {
    match dtype {
        DType::F16 => arch >= 70,
        DType::BF16 => arch >= 80,
        DType::F32 | DType::U32 => false,
    }
}

/// The sizes of a matrix product.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of the output.
    pub rows: u32,
    /// Columns of the weight; GEGLU halves their number in the output.
    pub columns: u32,
    /// Elements that are adjacent in x.
    pub channels: u32,
    /// Products in a sum: channels, times the taps of a window.
    pub k: u32,
}

/// A matrix product, where `op` is `linear` or `conv2d`: tiles times runs of k. All tiles give the same bits, so the
/// choice may depend on the GPU's size.
pub fn product(op: &str, arch: u32, multiprocessors: u32, dtype: DType, p: Product) -> Launch {
    let (runs, blocks) = (runs(p.k), |tile: u32| p.rows.div_ceil(tile).saturating_mul(p.columns.div_ceil(tile)));
    // The number of elements in 16 bytes: rows whose length is a multiple of it are read in whole chunks.
    let whole = p.channels.is_multiple_of(16 / dtype.size() as u32);
    // Large tiles read less, but are only faster if there are enough of them for every multiprocessor.
    let large = has_cores(arch, dtype) && blocks(128).saturating_mul(runs) >= multiprocessors;
    let (tile, size, threads) = match (whole, large) {
        (false, _) => ("any", 64, 128),
        (true, false) => ("small", 64, 128),
        (true, true) => ("large", 128, 256),
    };
    Launch { kernel: format!("{op}_{tile}_{dtype}"), grid: [blocks(size), runs, 1], threads }
}

/// Adds the partial sums of the runs, for `rows` times `width` results.
pub fn split_k(dtype: DType, rows: u32, width: u32) -> Launch {
    let groups = width.div_ceil(16 / dtype.size() as u32);
    Launch::new(format!("split_k_{dtype}"), (rows * groups).div_ceil(256), 256)
}

/// The widest attention head that has kernels.
pub const MOST_HEAD_DIM: u32 = 512;

/// Attention; `None` for heads that are too wide. Only the head's width and the type choose the kernel.
pub fn attention(arch: u32, dtype: DType, p: &Attention) -> Option<Launch> {
    let fits = |width: &&u32| p.head_dim <= **width;
    // Scores are used as they lie in the registers of an mma, which sm_70 does not have.
    let cores = has_cores(arch, dtype) && arch >= 75 && p.head_dim.is_multiple_of(8);
    let (width, queries, threads) = if cores {
        match [48, 64, 80, 160].iter().find(fits) {
            Some(width) => (format!("mma_{width}"), 64, 128),
            None if p.head_dim <= MOST_HEAD_DIM => (format!("mma_{MOST_HEAD_DIM}"), 32, 256),
            None => return None,
        }
    } else {
        ([32, 64, 96, 160, MOST_HEAD_DIM].iter().find(fits)?.to_string(), 32, 128)
    };
    let blocks = p.queries.div_ceil(queries).saturating_mul(p.batch * p.heads);
    Some(Launch::new(format!("attention_{width}_{dtype}"), blocks, threads))
}

/// One pass over `elements` of the output, where each thread writes 16 bytes.
pub fn each(kernel: &str, dtype: DType, elements: u32) -> Launch {
    let per_thread = 16 / dtype.size() as u32;
    Launch::new(format!("{kernel}_{dtype}"), elements.div_ceil(256 * per_thread), 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attention_of(head_dim: u32) -> Attention {
        Attention { batch: 2, queries: 65, keys: 77, heads: 3, head_dim, causal: 0, scale: 1.0 }
    }

    #[test]
    fn products_take_large_tiles_where_they_keep_a_gpu_busy() {
        for (arch, dtype, channels, [rows, columns], kernel, grid, threads) in [
            (80, DType::F16, 320, [8192, 320], "linear_large_f16", 192, 256),
            (80, DType::F16, 320, [128, 320], "linear_small_f16", 10, 128),
            (80, DType::F16, 322, [8192, 320], "linear_any_f16", 640, 128),
            (80, DType::F32, 322, [1, 1], "linear_any_f32", 1, 128),
            (80, DType::F32, 324, [8192, 320], "linear_small_f32", 640, 128),
            (75, DType::BF16, 320, [8192, 320], "linear_small_bf16", 640, 128),
            (75, DType::F16, 320, [8192, 320], "linear_large_f16", 192, 256),
            (70, DType::F16, 320, [8192, 320], "linear_large_f16", 192, 256),
            (70, DType::BF16, 320, [8192, 320], "linear_small_bf16", 640, 128),
        ] {
            let got = product("linear", arch, 108, dtype, Product { rows, columns, channels, k: channels });
            assert_eq!(
                got,
                Launch { kernel: kernel.into(), grid: [grid, 1, 1], threads },
                "{dtype} {rows} x {columns} sm_{arch}"
            );
        }
    }

    #[test]
    fn a_long_sum_is_spread_over_blocks_whatever_the_rows() {
        for (rows, kernel, grid) in [
            (128, "conv2d_small_f16", [40, 4, 1]),
            (512, "conv2d_large_f16", [40, 4, 1]),
            (1, "conv2d_small_f16", [20, 4, 1]),
        ] {
            let got = product("conv2d", 80, 108, DType::F16, Product { rows, columns: 1280, channels: 1280, k: 11520 });
            assert_eq!((got.kernel.as_str(), got.grid), (kernel, grid), "{rows} rows");
        }
        assert_eq!(split_k(DType::F16, 128, 1280), Launch::new("split_k_f16".into(), 80, 256));
        assert_eq!(split_k(DType::F32, 1, 5), Launch::new("split_k_f32".into(), 1, 256));
    }

    #[test]
    fn a_heads_width_chooses_its_kernel() {
        for (arch, dtype, head_dim, kernel, blocks) in [
            (80, DType::F16, 40, "attention_mma_48_f16", 12),
            (80, DType::BF16, 64, "attention_mma_64_bf16", 12),
            (75, DType::F16, 80, "attention_mma_80_f16", 12),
            (90, DType::F16, 160, "attention_mma_160_f16", 12),
            (90, DType::F16, 168, "attention_mma_512_f16", 18),
            (80, DType::BF16, 512, "attention_mma_512_bf16", 18),
            (90, DType::F16, 170, "attention_512_f16", 18),
            (70, DType::F16, 64, "attention_64_f16", 18),
            (90, DType::F16, 20, "attention_32_f16", 18),
            (75, DType::BF16, 64, "attention_64_bf16", 18),
            (90, DType::F32, 160, "attention_160_f32", 18),
            (90, DType::F32, 512, "attention_512_f32", 18),
        ] {
            let got = attention(arch, dtype, &attention_of(head_dim)).unwrap();
            assert_eq!((got.kernel.as_str(), got.grid), (kernel, [blocks, 1, 1]));
        }
        assert_eq!(attention(90, DType::F16, &attention_of(513)), None);
    }
}
