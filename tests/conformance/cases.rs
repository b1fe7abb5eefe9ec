//! The list of cases: what is computed, at which sizes, on which values, and how close the result must be.
//!
//! A tolerance is relative to the largest element that is expected; 0 asks for equality. One is a multiple of 6e-8, the
//! rounding of f32, and grows with the sum behind an element. In a narrower type come the roundings of that type on
//! top: see [`Case::tolerance_in`]. `docs/accuracy.md` has them as a table.

use sdshard::{
    backend::{
        Activation::{self, *},
        DType, Device, Extent, Layer, Precision, Values, Weight,
    },
    error::Result,
    tensor::{
        Fuse, Shape, Tensor,
        ops::Padding::{self, *},
    },
};

/// What a case computes, without its values. Sizes of inputs come first.
#[derive(Debug, Clone)]
pub enum Op {
    Linear { x: [usize; 3], out: usize, tail: Tail },
    Conv2d { x: [usize; 4], out: usize, kernel: usize, stride: usize, padding: Padding, tail: Tail },
    Attention { batch: usize, queries: usize, keys: usize, heads: usize, head_dim: usize, causal: bool },
    GroupNorm { x: [usize; 4], groups: usize, activation: Activation },
    LayerNorm { x: [usize; 3] },
    Embedding { batch: usize, tokens: usize, vocab: usize, channels: usize },
    Upsample2x { x: [usize; 4], to: [usize; 2] },
    ConcatChannels { x: [usize; 4], right: usize },
    Activate { x: [usize; 3], activation: Activation },
    Add { x: [usize; 3] },
    AddChannels { x: [usize; 4], rows: usize },
    ScaleAdd { shape: [usize; 2], terms: &'static [(f32, usize)] },
    Stack { x: [usize; 3], parts: usize },
}

/// What follows a matrix product.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tail {
    pub bias: bool,
    /// Rows of the per-channel sum; 0: none.
    pub channel_add: usize,
    pub activation: Activation,
    pub residual: bool,
}

pub const BARE: Tail = Tail { bias: false, channel_add: 0, activation: None, residual: false };
pub const BIAS: Tail = Tail { bias: true, ..BARE };

/// Epsilon of both norms.
pub const EPS: f32 = 1e-5;

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Case {
    pub op: Op,
    /// Inputs are drawn evenly from `center - spread` to `center + spread`, with a few zeros of both signs.
    pub center: f32,
    pub spread: f32,
    pub tolerance: f64,
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |op, center, spread, tolerance| cases.push(Case { op, center, spread, tolerance });

    // Every combination of what may follow a product, on sizes with tails in every direction.
    for tail in tails(3) {
        add(Op::Linear { x: [3, 5, 19], out: 42, tail }, 0.0, 1.0, 2e-6);
        if tail.activation != Geglu {
            let x = [3, 4, 5, 3];
            add(Op::Conv2d { x, out: 21, kernel: 3, stride: 1, padding: Same, tail }, 0.0, 1.0, 2e-6);
        }
    }
    #[rustfmt::skip]
    let linear = [
        // batch, rows, k   out  spread  tolerance
        ([1, 1, 1],         1,    1.0,   1e-7), // one element
        ([1, 13, 7],        1,    1.0,   1e-6), // one column
        ([2, 1, 320],       1280, 1.0,   1e-6), // the time embedding
        ([1, 77, 64],       64,   1.0,   1e-6), // a text, powers of two
        ([3, 31, 37],       41,   1.0,   1e-6), // primes
        ([1, 390, 3],       5,    1.0,   1e-6), // more rows than one task takes
        ([1, 14, 2561],     17,   1.0,   4e-6), // k in two blocks of 512-bit panels
        ([1, 7, 5121],      9,    1.0,   4e-6), // and of 256-bit panels
        ([1, 2, 11520],     3,    1.0,   8e-6), // k split by CUDA's kernels
        ([1, 3, 11525],     5,    1.0,   8e-6), // and of a length that nothing divides
        ([1, 4, 16],        8,    1e-30, 1e-6),
        ([1, 4, 16],        8,    1e30,  1e-6),
    ];
    for (x, out, spread, tolerance) in linear {
        add(Op::Linear { x, out, tail: BIAS }, 0.0, spread, tolerance);
    }
    #[rustfmt::skip]
    let conv2d = [
        // batch, h, w, channels  out kernel stride padding tolerance
        ([1, 1, 1, 1],           1,   1, 1, Same,        1e-7), // one element
        ([1, 1, 1, 1],           1,   3, 1, Same,        1e-7), // a window that is nearly all padding
        ([2, 5, 7, 13],          11,  1, 1, Same,        1e-6),
        ([2, 5, 7, 13],          11,  1, 2, Same,        1e-6), // 1x1 that skips
        ([1, 5, 4, 3],           6,   1, 1, BottomRight, 1e-6), // 1x1 that pads
        ([1, 8, 8, 4],           320, 3, 1, Same,        1e-6), // conv_in
        ([1, 4, 4, 320],         4,   3, 1, Same,        4e-6), // conv_out, k in two blocks
        ([1, 2, 2, 640],         40,  3, 1, Same,        8e-6), // k in blocks on every path
        ([1, 1, 2, 2600],        3,   3, 1, Same,        4e-6), // one tap is more than a block
        ([1, 2, 3, 1280],        5,   3, 1, Same,        8e-6), // k split by CUDA's kernels
        ([1, 129, 8, 1280],      2,   3, 1, Same,        8e-6), // more rows than have their parts at once
        ([2, 8, 8, 32],          32,  3, 2, Same,        1e-6), // the UNet's downsampling
        ([2, 7, 9, 5],           17,  3, 2, Same,        1e-6),
        ([2, 8, 6, 16],          16,  3, 2, BottomRight, 1e-6), // the VAE's downsampling
        ([1, 7, 9, 5],           17,  3, 2, BottomRight, 1e-6),
        ([1, 2, 2, 3],           5,   3, 1, BottomRight, 1e-6), // one window
        ([2, 5, 6, 3],           33,  7, 1, Same,        2e-6),
        ([1, 9, 8, 3],           5,   7, 3, Same,        2e-6),
        ([1, 4, 6, 3],           5,   2, 2, BottomRight, 1e-6),
        ([1, 20, 20, 3],         2,   3, 1, Same,        1e-6), // more pixels than one task takes
        ([2, 13, 10, 33],        47,  3, 1, Same,        4e-6), // Winograd's tiles cut at both edges
        ([1, 7, 9, 40],          40,  3, 1, BottomRight, 4e-6),
        ([2, 7, 5, 33],          645, 3, 1, Same,        4e-6), // so many outputs that the tiles are of 2x2
        ([1, 33, 34, 32],        641, 3, 1, BottomRight, 4e-6), // more of them than are stored at one time
        ([2, 5, 6, 40],          33,  1, 1, Same,        1e-6), // of a width that is stored in int8
        ([2, 4, 5, 33],          34,  7, 1, Same,        2e-6),
        ([1, 161, 9, 640],       70,  3, 1, Same,        8e-6), // more of its tiles than are stored at one time
    ];
    // What may follow a product follows the sum of its parts.
    let tail = Tail { bias: true, channel_add: 0, activation: Geglu, residual: true };
    add(Op::Linear { x: [1, 3, 11528], out: 22, tail }, 0.0, 1.0, 8e-6);
    let tail = Tail { bias: true, channel_add: 2, activation: Silu, residual: true };
    add(Op::Conv2d { x: [2, 2, 2, 1288], out: 24, kernel: 3, stride: 1, padding: Same, tail }, 0.0, 1.0, 8e-6);
    let tail = Tail { bias: true, channel_add: 2, activation: Silu, residual: true };
    add(Op::Conv2d { x: [2, 6, 7, 40], out: 40, kernel: 3, stride: 1, padding: Same, tail }, 0.0, 1.0, 4e-6);
    for (x, out, kernel, stride, padding, tolerance) in conv2d {
        add(Op::Conv2d { x, out, kernel, stride, padding, tail: BIAS }, 0.0, 1.0, tolerance);
    }
    #[rustfmt::skip]
    let attention = [
        // batch queries keys heads dim causal spread tolerance
        (1, 1,   1,   1, 1,   false, 1.0,   1e-7), // one element
        (2, 1,   1,   3, 1,   true,  1.0,   1e-7),
        (1, 3,   1,   2, 8,   false, 1.0,   1e-7), // one key: the value itself
        (2, 17,  77,  8, 40,  false, 1.0,   1e-6), // SD 1.5 on a text
        (1, 64,  64,  8, 40,  false, 1.0,   1e-6), // SD 1.5 on itself
        (1, 13,  64,  2, 80,  false, 1.0,   1e-6),
        (1, 5,   16,  2, 160, false, 1.0,   1e-6),
        (1, 9,   33,  1, 512, false, 1.0,   1e-6), // the VAE
        (2, 33,  73,  1, 512, false, 1.0,   1e-6), // around a block of queries, and of keys
        (1, 70,  70,  2, 264, true,  1.0,   1e-6),
        (1, 77,  77,  3, 64,  true,  1.0,   1e-6), // CLIP
        (2, 7,   127, 2, 4,   false, 1.0,   1e-6), // around a block of keys
        (1, 7,   128, 2, 8,   false, 1.0,   1e-6),
        (1, 7,   129, 2, 8,   false, 1.0,   1e-6),
        (1, 129, 129, 1, 4,   true,  1.0,   1e-6),
        (1, 300, 300, 1, 1,   true,  1.0,   1e-6),
        (1, 50,  300, 1, 8,   false, 1.0,   1e-6),
        (1, 5,   300, 2, 40,  false, 1e-30, 1e-6), // all keys alike
        (1, 49,  77,  2, 40,  false, 1.0,   1e-6), // around a block of the CPU's queries
        (2, 31,  50,  1, 12,  false, 1.0,   1e-6),
        (1, 193, 193, 1, 8,   true,  1.0,   1e-6), // more blocks than one task takes
        (1, 50,  300, 2, 8,   false, 10.0,  1e-4), // scores in the hundreds: their rounding is the error
        (1, 40,  40,  1, 64,  true,  100.0, 1e-2), // scores in the ten thousands: one key takes all
    ];
    for (batch, queries, keys, heads, head_dim, causal, spread, tolerance) in attention {
        add(Op::Attention { batch, queries, keys, heads, head_dim, causal }, 0.0, spread, tolerance);
    }
    #[rustfmt::skip]
    let group_norm = [
        // batch, h, w, channels groups activation center spread tolerance
        ([1, 1, 1, 1],     1,  None, 0.0,    1.0,   1e-5), // one element: x / sqrt(epsilon) cancels, the shift is left
        ([2, 3, 5, 8],     8,  None, 0.0,    1.0,   1e-6), // one channel per group
        ([2, 8, 8, 320],   32, Silu, 0.0,    1.0,   1e-6), // a resnet; 64 pixels, one chunk
        ([1, 5, 13, 32],   32, Silu, 0.0,    1.0,   1e-6), // 65 pixels
        ([2, 7, 9, 15],    3,  None, 0.0,    1.0,   1e-6),
        ([1, 16, 24, 136], 8,  None, 0.0,    1.0,   1e-6), // groups of 17: a vector and a bit
        ([1, 9, 8, 1],     1,  None, 0.0,    1.0,   1e-6),
        ([1, 8, 9, 24],    8,  None, 0.0,    1e-30, 1e-6), // epsilon is all of the variance
        ([1, 8, 9, 24],    8,  None, 0.0,    1e15,  1e-6),
        ([2, 12, 11, 24],  8,  None, 100.0,  1.0,   4e-5), // mean >> std: x has mean / std as many digits fewer
        ([2, 12, 11, 24],  8,  Silu, 1e4,    1.0,   4e-3),
    ];
    for (x, groups, activation, center, spread, tolerance) in group_norm {
        add(Op::GroupNorm { x, groups, activation }, center, spread, tolerance);
    }
    #[rustfmt::skip]
    let layer_norm = [
        // batch, rows, channels center spread tolerance
        ([1, 1, 1],     0.0, 1.0,   1e-7),
        ([2, 5, 7],     0.0, 1.0,   1e-6),
        ([1, 17, 320],  0.0, 1.0,   1e-6),
        ([3, 11, 37],   0.0, 1.0,   1e-6),
        ([1, 3, 768],   0.0, 1.0,   1e-6),
        ([1, 2, 64],    0.0, 1e-30, 1e-6),
        ([1, 2, 64],    0.0, 1e15,  1e-6),
        ([2, 3, 41],  100.0, 1.0,   4e-5),
        ([2, 3, 41],    1e4, 1.0,   4e-3),
    ];
    for (x, center, spread, tolerance) in layer_norm {
        add(Op::LayerNorm { x }, center, spread, tolerance);
    }
    // Ids lie where the output is watched, before it comes: it has to be as large as they are, in 16 bits too.
    for (batch, tokens, vocab, channels) in [(1, 1, 1, 2), (2, 77, 100, 64), (3, 5, 7, 11)] {
        add(Op::Embedding { batch, tokens, vocab, channels }, 0.0, 1.0, 1e-7);
    }
    for (x, to) in [
        ([1, 1, 1, 1], [1, 2]),
        ([1, 1, 1, 3], [3, 3]),
        ([2, 4, 6, 8], [8, 12]),
        ([2, 3, 5, 7], [5, 9]),
        ([1, 3, 5, 7], [7, 11]),
        ([1, 64, 65, 5], [127, 131]),
    ] {
        add(Op::Upsample2x { x, to }, 0.0, 1.0, 0.0);
    }
    for (x, right) in [([1, 1, 1, 1], 1), ([2, 3, 5, 7], 1), ([2, 3, 5, 1], 13), ([1, 4, 4, 1280], 640)] {
        add(Op::ConcatChannels { x, right }, 0.0, 1.0, 0.0);
    }
    for activation in [Silu, Gelu, QuickGelu, Geglu, Relu] {
        for (x, spread, tolerance) in [
            ([1, 1, 2], 1.0, 1e-6),
            ([2, 5, 14], 1.0, 1e-6),
            ([3, 37, 66], 8.0, 1e-6), // into the tails
            ([1, 3, 64], 1e-30, 1e-6),
            // Saturated; GEGLU multiplies two such.
            ([1, 3, 64], if activation == Geglu { 1e15 } else { 1e30 }, 1e-6),
        ] {
            add(Op::Activate { x, activation }, 0.0, spread, tolerance);
        }
    }
    for x in [[1, 1, 1], [2, 5, 7], [3, 100, 64]] {
        add(Op::Add { x }, 0.0, 1.0, 1e-7);
        add(Op::Add { x }, 0.0, 1e30, 1e-7);
    }
    for (x, rows) in [([1, 1, 1, 1], 1), ([3, 2, 3, 7], 1), ([3, 2, 3, 7], 3), ([2, 40, 41, 11], 2)] {
        add(Op::AddChannels { x, rows }, 0.0, 1.0, 1e-7);
    }
    // Factor and first row of each term.
    for (shape, terms) in [
        ([1, 1], &[(3.0, 0)][..]),
        ([2, 7], &[(-0.5, 1)]),
        ([3, 64], &[(8.5, 0), (-7.5, 3)]),
        ([1, 17], &[(1.0, 0), (-1.0, 0), (0.0, 2)]),
        ([2, 9001], &[(0.25, 1), (1.5, 0), (-1.25, 4), (2.0, 1)]),
        ([4, 33], &[(1.0, 1), (0.5, 0), (0.25, 0), (-0.125, 0), (3.0, 7)]),
        ([4, 33], &[(55.0, 0), (-59.0, 1), (37.0, 2), (-9.0, 3), (1e-3, 4), (1e3, 5)]),
    ] {
        add(Op::ScaleAdd { shape, terms }, 0.0, 1.0, 1e-6);
        add(Op::ScaleAdd { shape, terms }, 0.0, 1e-30, 1e-6);
        add(Op::ScaleAdd { shape, terms }, 0.0, 1e30, 1e-6);
    }
    for (x, parts) in [([1, 1, 1], 1), ([1, 3, 5], 2), ([2, 77, 16], 3)] {
        add(Op::Stack { x, parts }, 0.0, 1.0, 0.0);
    }
    cases
}

/// Three images of every op that looks at rows in tiles, of sizes around a tile.
pub fn around_a_tile(tile: usize) -> Vec<Case> {
    let mut ops = Vec::new();
    let tail = Tail { bias: true, channel_add: 3, activation: Silu, residual: true };
    let halved = Tail { activation: Geglu, channel_add: 0, ..tail };
    for rows in [1, 2, tile - 1, tile, tile + 1].into_iter().filter(|&rows| rows > 0) {
        ops.extend([
            Op::Linear { x: [3, rows, 70], out: 37, tail },
            Op::Linear { x: [3, rows, 70], out: 70, tail: halved },
            Op::Linear { x: [3, rows, 5121], out: 3, tail: BARE },
            Op::Linear { x: [3, rows, 11520], out: 3, tail: BARE },
            Op::Conv2d { x: [3, 1, rows, 7], out: 37, kernel: 3, stride: 1, padding: Same, tail },
            Op::Conv2d { x: [3, rows, 1, 600], out: 5, kernel: 3, stride: 1, padding: Same, tail },
            Op::Conv2d { x: [3, 4, 4 * rows, 34], out: 40, kernel: 3, stride: 1, padding: Same, tail },
            Op::Attention { batch: 3, queries: rows, keys: 131, heads: 2, head_dim: 20, causal: false },
            Op::Attention { batch: 3, queries: rows, keys: rows, heads: 2, head_dim: 20, causal: true },
        ]);
    }
    ops.into_iter().map(|op| Case { op, center: 0.0, spread: 1.0, tolerance: 4e-6 }).collect()
}

/// All that may follow a product of `batch` images.
fn tails(batch: usize) -> Vec<Tail> {
    let mut tails = Vec::new();
    for bias in [false, true] {
        for channel_add in [0, 1, batch] {
            for activation in [None, Silu, Gelu, QuickGelu, Geglu, Relu] {
                for residual in [false, true] {
                    tails.push(Tail { bias, channel_add, activation, residual });
                }
            }
        }
    }
    // Refused: a sum as wide as the output has no place before GEGLU halves the channels.
    tails.retain(|tail| tail.activation != Geglu || tail.channel_add == 0);
    tails
}

/// A tensor on the host.
#[derive(Debug, Clone)]
pub struct Host {
    pub shape: Shape,
    pub values: Vec<f32>,
    /// Its outermost size counts images.
    by_image: bool,
}

impl Host {
    /// Size `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.shape.dims()[i]
    }

    fn image(&self, i: usize) -> Self {
        if !self.by_image {
            return self.clone();
        }
        let size = self.values.len() / self.dim(0);
        Self { shape: self.shape.with_batch(1), values: self.values[i * size..][..size].to_vec(), by_image: true }
    }
}

/// A layer's parameters on the host.
#[derive(Debug, Clone)]
pub struct HostWeight {
    pub layer: Layer,
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

impl HostWeight {
    /// Packed in this precision from elements of type `file` that begin `shift` bytes after an aligned address.
    pub fn pack(&self, device: &Device, precision: Precision, file: DType, shift: usize) -> Result<Weight> {
        let bytes = |values: &[f32]| [vec![0; shift], encode(file, values)].concat();
        let (weight, bias) = (bytes(&self.weight), self.bias.as_deref().map(bytes));
        let data = |bytes| Values::Data { dtype: file, bytes };
        device.pack(self.layer, precision, data(&weight[shift..]), bias.as_ref().map(|bias| data(&bias[shift..])))
    }
}

/// Little-endian elements of a type, rounded to nearest.
pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let element = |&x: &f32| match dtype {
        DType::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        DType::F32 | DType::U32 => x.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(element).collect()
}

/// The way back, without rounding.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let element = |x: &[u8]| match dtype {
        DType::F16 => half::f16::from_le_bytes([x[0], x[1]]).to_f32(),
        DType::BF16 => half::bf16::from_le_bytes([x[0], x[1]]).to_f32(),
        DType::F32 | DType::U32 => f32::from_le_bytes([x[0], x[1], x[2], x[3]]),
    };
    bytes.chunks_exact(dtype.size()).map(element).collect()
}

/// What one rounding to a 16-bit type changes at most, relative to the value.
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::F32 | DType::U32 => 0.0,
    }
}

/// The values of a case.
#[derive(Debug, Clone, Default)]
pub struct Data {
    /// In the order in which the op takes them.
    pub tensors: Vec<Host>,
    pub weights: Vec<HostWeight>,
    pub ids: Vec<Vec<u32>>,
}

impl Data {
    /// What image `i` is computed from.
    pub fn image(&self, i: usize) -> Self {
        Self {
            tensors: self.tensors.iter().map(|x| x.image(i)).collect(),
            weights: self.weights.clone(),
            ids: self.ids.get(i).cloned().into_iter().collect(),
        }
    }

    pub fn upload(&self, device: &Device, dtype: DType) -> Result<Vec<Tensor>> {
        let upload = |x: &Host| Tensor::from_bytes(device, x.shape, dtype, &encode(dtype, &x.values));
        self.tensors.iter().map(upload).collect()
    }

    /// The weights, from f32 at an odd address.
    pub fn pack(&self, device: &Device, precision: Precision) -> Result<Vec<Weight>> {
        self.weights.iter().map(|w| w.pack(device, precision, DType::F32, 1)).collect()
    }

    /// What a device with weights of this precision and tensors of `dtype` gets of it: biases, scales and shifts are
    /// f32 everywhere.
    pub fn rounded(mut self, precision: Precision, dtype: DType) -> Self {
        let stored = precision.dtype().expect("a float type");
        let tensors = self.tensors.iter_mut().map(|x| (dtype, &mut x.values));
        let weights = self.weights.iter_mut().filter(|w| !matches!(w.layer, Layer::Norm { .. }));
        for (dtype, values) in tensors.chain(weights.map(|w| (stored, &mut w.weight))) {
            *values = decode(dtype, &encode(dtype, values));
        }
        self
    }
}

/// Numbers that look random and are the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }

    /// `count` values around `center`, one in sixteen a zero of either sign where zero is in reach.
    pub fn values(&mut self, count: usize, center: f32, spread: f32) -> Vec<f32> {
        let mut value = || match self.below(32) {
            0 if center == 0.0 => 0.0,
            1 if center == 0.0 => -0.0,
            _ => center + spread * (self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0),
        };
        (0..count).map(|_| value()).collect()
    }
}

impl Case {
    /// Its values, always the same.
    pub fn data(&self) -> Data {
        let mut random = Random::new(1);
        let mut data = Data::default();
        let mut tensors: Vec<(Shape, bool)> = Vec::new();
        let mut layers: Vec<(Layer, usize, usize)> = Vec::new(); // elements of the weight and of the bias
        match self.op {
            Op::Linear { x, out, tail } => {
                let k = x[2];
                let (layer, width) = match tail.activation {
                    Geglu => (Layer::Geglu { out, k }, out / 2),
                    _ => (Layer::Linear { out, k }, out),
                };
                tensors.push((x.into(), true));
                tensors.extend(tail.tensors([x[0], x[1], width].into()));
                layers.push((layer, out * k, if tail.bias { out } else { 0 }));
            }
            Op::Conv2d { x, out, kernel, stride, tail, .. } => {
                let [height, width] = self.op.window().expect("a convolution has a window").out;
                tensors.push((x.into(), true));
                tensors.extend(tail.tensors([x[0], height, width, out].into()));
                let layer = Layer::Conv2d { out, channels: x[3], kernel, stride, extent: Extent::Large };
                layers.push((layer, out * x[3] * kernel * kernel, if tail.bias { out } else { 0 }));
            }
            Op::Attention { batch, queries, keys, heads, head_dim, .. } => {
                let x = |tokens| (Shape::from([batch, tokens, heads * head_dim]), true);
                tensors.extend([x(queries), x(keys), x(keys)]);
            }
            Op::GroupNorm { x, .. } => {
                tensors.push((x.into(), true));
                layers.push((Layer::Norm { channels: x[3] }, x[3], x[3]));
            }
            Op::LayerNorm { x } => {
                tensors.push((x.into(), true));
                layers.push((Layer::Norm { channels: x[2] }, x[2], x[2]));
            }
            Op::Embedding { batch, tokens, vocab, channels } => {
                data.ids = (0..batch).map(|_| (0..tokens).map(|_| random.below(vocab) as u32).collect()).collect();
                for rows in [vocab, tokens] {
                    layers.push((Layer::Embedding { rows, channels }, rows * channels, 0));
                }
            }
            Op::ConcatChannels { x, right } => {
                tensors.extend([(x.into(), true), (Shape::from(x).with_channels(right), true)]);
            }
            Op::Activate { x, .. } => tensors.push((x.into(), true)),
            Op::Upsample2x { x, .. } => tensors.push((x.into(), true)),
            Op::Add { x } => tensors.extend([(x.into(), true); 2]),
            Op::AddChannels { x, rows } => tensors.extend([(x.into(), true), ([rows, x[3]].into(), rows > 1)]),
            Op::ScaleAdd { shape: [rows, width], terms } => {
                tensors.extend(terms.iter().map(|(_, first)| ([first + rows, width].into(), false)));
            }
            Op::Stack { x, parts } => tensors.extend(vec![(x.into(), false); parts]),
        }
        for (shape, by_image) in tensors {
            let values = random.values(shape.elements(), self.center, self.spread);
            data.tensors.push(Host { shape, values, by_image });
        }
        for (layer, weight, bias) in layers {
            let bias = (bias > 0).then(|| random.values(bias, 0.0, 1.0));
            data.weights.push(HostWeight { layer, weight: random.values(weight, 0.0, 1.0), bias });
        }
        data
    }

    /// Whether it means anything in `dtype`: inputs and results, of which `largest` is the largest, are among its
    /// values, and the op is not one that knows f32 alone.
    pub fn fits(&self, dtype: DType, largest: f64) -> bool {
        match dtype {
            DType::F32 => true,
            _ if matches!(self.op, Op::ScaleAdd { .. }) => false,
            DType::F16 => (1e-3..1e4).contains(&self.spread) && largest < 65504.0,
            _ => true,
        }
    }

    /// How close a result must be in `dtype`: as in f32, and what its roundings may add.
    pub fn tolerance_in(&self, dtype: DType) -> f64 {
        self.tolerance + self.roundings() as f64 * rounding(dtype)
    }

    /// How often values are rounded to a 16-bit type on the way to a result.
    pub fn roundings(&self) -> usize {
        match self.op {
            // Of the result, and of what plain ops make of it where a tail is not fused.
            Op::Linear { tail, .. } | Op::Conv2d { tail, .. } => {
                let parts = [tail.channel_add > 0, tail.activation != None, tail.residual];
                1 + parts.into_iter().filter(|is_there| *is_there).count()
            }
            // Of the weights and of the result.
            Op::Attention { .. } => 2,
            Op::GroupNorm { .. } | Op::LayerNorm { .. } | Op::Embedding { .. } => 1,
            Op::Activate { .. } | Op::Add { .. } | Op::AddChannels { .. } | Op::ScaleAdd { .. } => 1,
            Op::Upsample2x { .. } | Op::ConcatChannels { .. } | Op::Stack { .. } => 0,
        }
    }

    /// Images that are computed apart; 1 if the op does not know images.
    pub fn images(&self) -> usize {
        match self.op {
            Op::Linear { x, .. } | Op::LayerNorm { x } | Op::Activate { x, .. } | Op::Add { x } => x[0],
            Op::Conv2d { x, .. }
            | Op::GroupNorm { x, .. }
            | Op::Upsample2x { x, .. }
            | Op::ConcatChannels { x, .. }
            | Op::AddChannels { x, .. } => x[0],
            Op::Attention { batch, .. } | Op::Embedding { batch, .. } => batch,
            Op::ScaleAdd { .. } | Op::Stack { .. } => 1,
        }
    }
}

impl Tail {
    fn tensors(self, out: Shape) -> Vec<(Shape, bool)> {
        let add = (self.channel_add > 0).then(|| ([self.channel_add, out.channels()].into(), self.channel_add > 1));
        add.into_iter().chain(self.residual.then_some((out, true))).collect()
    }

    /// The per-channel sum and the residual among an op's inputs after the first.
    pub fn split<T>(self, rest: &[T]) -> (Option<&T>, Option<&T>) {
        let mut rest = rest.iter();
        (rest.by_ref().take(usize::from(self.channel_add > 0)).next(), rest.next().filter(|_| self.residual))
    }

    fn fuse(self, rest: &[Tensor]) -> Fuse<'_> {
        let (channel_add, residual) = self.split(rest);
        Fuse { channel_add, activation: self.activation, residual }
    }
}

/// Where a convolution looks, from the definition: padded sizes, then as many windows as fit.
pub struct Window {
    /// Zeros above and to the left.
    pub before: usize,
    /// Height and width of the output.
    pub out: [usize; 2],
}

impl Op {
    /// Of a convolution.
    pub fn window(&self) -> Option<Window> {
        let &Op::Conv2d { x: [_, height, width, _], kernel, stride, padding, .. } = self else {
            return Option::None;
        };
        let (before, after) = match padding {
            Same => ((kernel - 1) / 2, (kernel - 1) / 2),
            BottomRight => (0, 1),
        };
        let windows = |n: usize| {
            let padded = before + n + after;
            (0..padded).step_by(stride).filter(|i| i + kernel <= padded).count()
        };
        Some(Window { before, out: [windows(height), windows(width)] })
    }

    /// Calls the op.
    pub fn run(&self, device: &Device, x: &[Tensor], w: &[Weight], ids: &[Vec<u32>]) -> Result<Tensor> {
        match *self {
            Op::Linear { tail, .. } => x[0].linear(&w[0], &tail.fuse(&x[1..])),
            Op::Conv2d { padding, tail, .. } => x[0].conv2d(&w[0], padding, &tail.fuse(&x[1..])),
            Op::Attention { heads, causal, .. } => x[0].attention(&x[1], &x[2], heads, causal),
            Op::GroupNorm { groups, activation, .. } => x[0].group_norm(&w[0], groups, EPS, activation),
            Op::LayerNorm { .. } => x[0].layer_norm(&w[0], EPS),
            Op::Embedding { .. } => Tensor::embedding(device, ids, &w[0], &w[1]),
            Op::Upsample2x { to: [height, width], .. } => x[0].upsample2x(height, width),
            Op::ConcatChannels { .. } => x[0].concat_channels(&x[1]),
            Op::Activate { activation, .. } => x[0].activate(activation),
            Op::Add { .. } => x[0].add(&x[1]),
            Op::AddChannels { .. } => x[0].add_channels(&x[1]),
            Op::ScaleAdd { shape, terms } => {
                let terms: Vec<_> = terms.iter().zip(x).map(|(&(scale, row), x)| (scale, x, row)).collect();
                Tensor::scale_add(shape.into(), &terms)
            }
            Op::Stack { .. } => Tensor::stack(&x.iter().collect::<Vec<_>>()),
        }
    }
}
