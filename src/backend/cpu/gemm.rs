//! Matrix product and convolution: one driver, one f32 micro-kernel, which widens weights of other types as it loads
//! them.
//!
//! The micro-kernel multiplies a few rows, given by pointers, with one packed panel. A convolution is the same product
//! with one set of row pointers for each tap of its window (an implicit GEMM: no patch matrix is built; padding points
//! to zeros). Goto and van de Geijn 2008; the indirection follows Dukhan 2019.
//!
//! Each output element is one chain of multiply-adds over taps and channels in order. Blocks of k go through memory
//! without rounding, and tails use the same kernel with fewer rows, so neither changes the chain.

use std::ops::Range;

use super::{
    element::Element,
    memory::{Parts, Scratch},
    pack::{CpuWeight, Elements},
    simd::{Kernel, Path, Simd, math},
    threads::Pool,
};
use crate::backend::{
    Activation,
    params::{Conv2d, Linear},
};

/// The largest window: 7 x 7.
pub const MAX_TAPS: usize = 49;
/// The most channels that a convolution may have: padding reads this many zeros.
pub const MAX_CHANNELS: usize = 1 << 14;
/// The most rows of a micro-kernel's tile, on any path.
const MAX_ROWS: usize = 12;

/// The bytes of a line of a cache.
const CACHE_LINE: usize = 64;
/// How many steps of k ahead a panel is brought into the nearest cache.
const STEPS_AHEAD: usize = 16;

/// Bytes of packed weight that are reused from the second-level cache.
const BLOCK_BYTES: usize = 320 << 10;
/// The largest number of rows of one task.
const TASK_ROWS: usize = 384;
/// The number of tasks per thread to aim at, so that no thread waits long for the last one.
const TASKS_PER_THREAD: usize = 8;

static ZEROS: [f32; MAX_CHANNELS] = [0.0; MAX_CHANNELS];

/// One matrix product, with the buffers of its epilogue as slices.
pub struct Product<'a> {
    /// The rows of the left operand.
    pub lhs: Lhs<'a>,
    /// The weights, which are the right operand.
    pub packed: &'a CpuWeight,
    /// Columns of the result, before GEGLU halves them.
    pub columns: usize,
    /// The rows of one image, which share a row of `channel_add`.
    pub rows_per_image: usize,
    /// The sum per channel, `[1 or images, columns]`.
    pub channel_add: Option<&'a [f32]>,
    /// The activation of the sum.
    pub activation: Activation,
    /// A tensor with the shape of the result.
    pub residual: Option<&'a [f32]>,
}

/// The rows of the left operand.
pub enum Lhs<'a> {
    /// Rows of x, each of `k` elements.
    Linear(Linear, &'a [f32]),
    /// The windows of a convolution over x.
    Conv2d(Conv2d, &'a [f32]),
}

impl Lhs<'_> {
    /// The rows of the product.
    pub fn rows(&self) -> usize {
        match self {
            Lhs::Linear(p, _) => p.rows as usize,
            Lhs::Conv2d(p, _) => (p.batch * p.out_height * p.out_width) as usize,
        }
    }

    /// The taps of its window.
    pub fn taps(&self) -> usize {
        match self {
            Lhs::Linear(..) => 1,
            Lhs::Conv2d(p, _) => (p.kernel * p.kernel) as usize,
        }
    }

    /// The elements of x.
    pub fn x(&self) -> &[f32] {
        match self {
            Lhs::Linear(_, x) | Lhs::Conv2d(_, x) => x,
        }
    }

    /// The number of elements of x that follows from the sizes.
    pub fn elements(&self) -> usize {
        match self {
            Lhs::Linear(p, _) => p.rows as usize * p.k as usize,
            Lhs::Conv2d(p, _) => p.batch as usize * p.height as usize * p.width as usize * p.channels as usize,
        }
    }

    /// The number of elements of one tap.
    pub fn channels(&self) -> usize {
        match self {
            Lhs::Linear(p, _) => p.k as usize,
            Lhs::Conv2d(p, _) => p.channels as usize,
        }
    }

    /// Calls `f(tap, i, source)` for each tap of row `row + i`, for `count` rows. The source is a row of x, or a pixel;
    /// `None` is padding.
    #[inline(always)]
    pub fn each_source(&self, row: usize, count: usize, mut f: impl FnMut(usize, usize, Option<usize>)) {
        match *self {
            Lhs::Linear(..) => (0..count).for_each(|i| f(0, i, Some(row + i))),
            Lhs::Conv2d(p, _) => {
                let (width, height) = (p.width as usize, p.height as usize);
                let (out_width, out_height) = (p.out_width as usize, p.out_height as usize);
                let (kernel, stride, padding) = (p.kernel as usize, p.stride as usize, p.padding as usize);
                for i in 0..count {
                    let pixel = row + i;
                    let (image, y, x_out) =
                        (pixel / (out_width * out_height), pixel / out_width % out_height, pixel % out_width);
                    for ky in 0..kernel {
                        // Above or left of the picture, the subtraction wraps to a value larger than the picture.
                        let y_in = (y * stride + ky).wrapping_sub(padding);
                        for kx in 0..kernel {
                            let x_in = (x_out * stride + kx).wrapping_sub(padding);
                            let inside = y_in < height && x_in < width;
                            f(ky * kernel + kx, i, inside.then(|| (image * height + y_in) * width + x_in));
                        }
                    }
                }
            }
        }
    }

    /// Points `to[tap * MAX_ROWS + i]` at tap `tap` of row `row + i`, for `count` rows.
    #[inline(always)]
    fn point(&self, row: usize, count: usize, to: &mut [*const f32; MAX_TAPS * MAX_ROWS]) {
        let (x, channels) = (self.x(), self.channels());
        self.each_source(row, count, |tap, i, source| {
            to[tap * MAX_ROWS + i] = match source {
                Some(source) => x[source * channels..].as_ptr(),
                None => ZEROS.as_ptr(),
            };
        });
    }
}

impl Product<'_> {
    fn out_columns(&self) -> usize {
        if self.activation == Activation::Geglu { self.columns / 2 } else { self.columns }
    }

    /// Compares the result and the buffers of the epilogue with the sizes of the call.
    ///
    /// # Panics
    /// If a slice is shorter than they say, because the unsafe code depends on them.
    pub fn check(&self, path: Path, panels: usize, out: &[f32]) {
        let results = self.lhs.rows() * self.out_columns();
        assert!(out.len() >= results, "a result of the sizes of the call");
        assert!(self.residual.is_none_or(|x| x.len() >= results), "a residual as large as the result");
        assert!(self.channel_add.is_none_or(|x| x.len().is_multiple_of(self.out_columns())), "whole rows to add");
        let bias = self.packed.bias.as_ref();
        assert!(bias.is_none_or(|bias| bias.len() == panels * path.panel()), "a bias as wide as the panels");
    }

    /// Computes the product and writes all of `out`.
    ///
    /// # Panics
    /// If a slice is shorter than the sizes say, because the unsafe code depends on them.
    pub fn run(&self, path: Path, pool: &Pool, out: &mut [f32]) {
        match &self.packed.weight {
            Elements::F32(weight) => self.run_with(weight, path, pool, out),
            Elements::F16(weight) => self.run_with(weight, path, pool, out),
            Elements::BF16(weight) => self.run_with(weight, path, pool, out),
            Elements::Words(_) => panic!("words are multiplied with converted rows"),
        }
    }

    fn run_with<E: Element>(&self, weight: &[E], path: Path, pool: &Pool, out: &mut [f32]) {
        let (rows, k) = (self.lhs.rows(), self.lhs.channels() * self.lhs.taps());
        let panels = weight.len() / (path.panel() * k);
        assert!(self.lhs.x().len() >= self.lhs.elements(), "a tensor of the sizes of the call");
        let is_rows = matches!(self.lhs, Lhs::Linear(..));
        assert!(is_rows || self.lhs.channels() <= MAX_CHANNELS, "zeros for every channel of a window");
        self.check(path, panels, out);
        let task_rows = rows.min(TASK_ROWS).next_multiple_of(path.rows());
        let row_tasks = rows.div_ceil(task_rows);
        let wanted = (pool.threads() * TASKS_PER_THREAD).div_ceil(row_tasks);
        let task_panels = if pool.threads() == 1 { panels } else { panels.div_ceil(wanted).max(1) };
        let panel_tasks = panels.div_ceil(task_panels);
        let out = Parts::new(out);
        // Neighbouring tasks share the weights, because the weights are what does not fit into the caches.
        pool.run(row_tasks * panel_tasks, |task| {
            let (first_row, first_panel) = (task % row_tasks * task_rows, task / row_tasks * task_panels);
            path.run(Task {
                product: self,
                weight,
                out: &out,
                rows: first_row..rows.min(first_row + task_rows),
                panels: first_panel..panels.min(first_panel + task_panels),
            });
        });
    }

    /// The epilogue of a row's sums with a panel: `activation(sum + bias + channel_add) + residual`, each step rounded
    /// separately, as the plain ops do.
    ///
    /// # Safety
    /// As [`Simd`]'s; the row and these columns of the output are the caller's own.
    #[inline(always)]
    pub unsafe fn finish_row<S: Simd, const N: usize>(
        &self,
        mut sum: [S::V; N],
        out: &Parts<f32>,
        row: usize,
        panel: usize,
    ) {
        let geglu = self.activation == Activation::Geglu;
        let first = if geglu { panel * S::LANES } else { panel * 2 * S::LANES };
        // SAFETY: the bias is as wide as the panels; the caller's contract.
        unsafe {
            if let Some(bias) = &self.packed.bias {
                let bias = &bias[panel * 2 * S::LANES..];
                for (j, sum) in sum.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(bias[j * S::LANES..].as_ptr()));
                }
            }
            if geglu {
                sum[0] = S::mul(sum[0], math::gelu::<S>(sum[N - 1]));
            }
            for (j, &sum) in sum.iter().enumerate().take(if geglu { 1 } else { N }) {
                self.write::<S>(sum, out, row, first + j * S::LANES);
            }
        }
    }

    /// Adds the bias to a vector of sums that begins at `column`, and writes it.
    ///
    /// # Safety
    /// As [`Simd`]'s; the row and these columns of the output are the caller's own.
    #[inline(always)]
    pub unsafe fn finish_vector<S: Simd>(&self, sum: S::V, out: &Parts<f32>, row: usize, column: usize) {
        // SAFETY: the bias is as wide as the panels; the caller's contract.
        unsafe {
            let sum = match &self.packed.bias {
                Some(bias) => S::add(sum, S::load(bias[column..].as_ptr())),
                None => sum,
            };
            self.write::<S>(sum, out, row, column);
        }
    }

    /// Applies what follows the bias to a vector that begins at `column`, and writes it; nothing beyond the last
    /// column.
    ///
    /// # Safety
    /// As [`Product::finish_vector`].
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, mut value: S::V, out: &Parts<f32>, row: usize, column: usize) {
        let columns = self.out_columns();
        if column >= columns {
            return;
        }
        let (width, at) = (S::LANES.min(columns - column), row * columns + column);
        // SAFETY: reads and writes are cut to `columns`, and `Product::check` has compared the slices with rows and
        // columns.
        unsafe {
            if let Some(add) = self.channel_add {
                let image = if add.len() == columns { 0 } else { row / self.rows_per_image };
                value = S::add(value, load_up_to::<S>(&add[image * columns + column..], width));
            }
            value = math::activate::<S>(self.activation, value);
            if let Some(residual) = self.residual {
                value = S::add(value, load_up_to::<S>(&residual[at..], width));
            }
            store_up_to::<S>(value, out.at(at), width);
        }
    }
}

/// A rectangle of the result.
struct Task<'a, E> {
    product: &'a Product<'a>,
    /// The elements of the product's weight.
    weight: &'a [E],
    out: &'a Parts<'a, f32>,
    rows: Range<usize>,
    panels: Range<usize>,
}

/// A range of k: some taps with all their channels, or some channels of the only tap.
#[derive(Clone)]
struct Block {
    taps: Range<usize>,
    channels: Range<usize>,
}

impl Block {
    /// Block `i` of a sum over `taps * channels`, or `None` after the last.
    fn nth(i: usize, taps: usize, channels: usize, most: usize) -> Option<Self> {
        if taps > 1 {
            let step = (most / channels).max(1);
            let start = i * step;
            (start < taps).then(|| Self { taps: start..taps.min(start + step), channels: 0..channels })
        } else {
            let start = i * most;
            (start < channels).then(|| Self { taps: 0..1, channels: start..channels.min(start + most) })
        }
    }

    fn is_first(&self) -> bool {
        self.taps.start == 0 && self.channels.start == 0
    }

    fn is_last(&self, taps: usize, channels: usize) -> bool {
        self.taps.end == taps && self.channels.end == channels
    }
}

impl<E: Element> Kernel for Task<'_, E> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (lhs, panel) = (&self.product.lhs, 2 * S::LANES);
        let (taps, channels) = (lhs.taps(), lhs.channels());
        let most = BLOCK_BYTES / size_of::<E>() / panel;
        let group = (most / (taps * channels)).max(1);
        // The sums between blocks of k: one panel wide, with as many rows as the task has.
        let mut sums = Scratch::take(TASK_ROWS.next_multiple_of(S::ROWS) * panel);
        let mut pointers = [ZEROS.as_ptr(); MAX_TAPS * MAX_ROWS];
        for first in self.panels.clone().step_by(group) {
            let panels = first..self.panels.end.min(first + group);
            let mut i = 0;
            while let Some(block) = Block::nth(i, taps, channels, most) {
                i += 1;
                for row in self.rows.clone().step_by(S::ROWS) {
                    let count = S::ROWS.min(self.rows.end - row);
                    lhs.point(row, count, &mut pointers);
                    for panel in panels.clone() {
                        let sums = &mut sums[(row - self.rows.start) * 2 * S::LANES..];
                        // SAFETY: inside `Kernel::run`; pointers, panel and sums are as `tiles` asks.
                        unsafe { self.tiles::<S>(&pointers, row, count, panel, &block, sums) }
                    }
                }
            }
        }
    }
}

impl<E: Element> Task<'_, E> {
    /// Computes one block of one panel for `count` rows: chooses the tile's size.
    ///
    /// # Safety
    /// As [`Simd`]'s; `pointers` as [`Lhs::point`] leaves them; `sums` has room for `S::ROWS` rows.
    #[inline(always)]
    unsafe fn tiles<S: Simd>(
        &self,
        pointers: &[*const f32; MAX_TAPS * MAX_ROWS],
        row: usize,
        count: usize,
        panel: usize,
        block: &Block,
        sums: &mut [f32],
    ) {
        let narrow =
            self.product.activation != Activation::Geglu && self.product.columns - panel * 2 * S::LANES <= S::LANES;
        // SAFETY: the caller's contract, passed on.
        unsafe {
            match (S::ROWS, count, narrow) {
                (12, 7.., false) => self.tile::<S, 12, 2>(pointers, row, count, panel, block, sums),
                (12, 7.., true) => self.tile::<S, 12, 1>(pointers, row, count, panel, block, sums),
                (6.., 4.., false) => self.tile::<S, 6, 2>(pointers, row, count, panel, block, sums),
                (6.., 4.., true) => self.tile::<S, 6, 1>(pointers, row, count, panel, block, sums),
                (6.., 2.., false) => self.tile::<S, 3, 2>(pointers, row, count, panel, block, sums),
                (6.., 2.., true) => self.tile::<S, 3, 1>(pointers, row, count, panel, block, sums),
                (_, 2.., _) => self.tile::<S, 2, 2>(pointers, row, count, panel, block, sums),
                _ => self.tile::<S, 1, 2>(pointers, row, count, panel, block, sums),
            }
        }
    }

    /// # Safety
    /// As [`Task::tiles`], with `count <= M` rows.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(
        &self,
        pointers: &[*const f32; MAX_TAPS * MAX_ROWS],
        row: usize,
        count: usize,
        panel: usize,
        block: &Block,
        sums: &mut [f32],
    ) {
        let (taps, channels) = (self.product.lhs.taps(), self.product.lhs.channels());
        let width = 2 * S::LANES;
        let k = block.taps.start * channels + block.channels.start;
        let weights = &self.weight[(panel * taps * channels + k) * width..];
        // SAFETY: rows beyond `count` repeat the first one, and `Product::run` has compared x with its sizes, so every
        // pointer has `channels` elements; the panel has `width` for each of the block's k, as panels are counted by
        // what is packed; `sums` has M rows of `width`.
        unsafe {
            let mut acc = [[S::zero(); N]; M];
            if !block.is_first() {
                for (i, acc) in acc.iter_mut().enumerate() {
                    for (j, acc) in acc.iter_mut().enumerate() {
                        *acc = S::load(sums[i * width + j * S::LANES..].as_ptr());
                    }
                }
            }
            let mut b = weights.as_ptr();
            for tap in block.taps.clone() {
                let mut rows = [pointers[tap * MAX_ROWS]; M];
                for (i, row) in rows.iter_mut().enumerate().take(count) {
                    *row = pointers[tap * MAX_ROWS + i];
                }
                b = accumulate::<S, E, M, N>(&rows, block.channels.clone(), b, &mut acc);
            }
            if block.is_last(taps, channels) {
                self.finish::<S, M, N>(&acc, row, count, panel);
            } else {
                for (i, acc) in acc.iter().enumerate() {
                    for (j, &acc) in acc.iter().enumerate() {
                        S::store(acc, sums[i * width + j * S::LANES..].as_mut_ptr());
                    }
                }
            }
        }
    }

    /// The epilogue of some rows.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    unsafe fn finish<S: Simd, const M: usize, const N: usize>(
        &self,
        acc: &[[S::V; N]; M],
        row: usize,
        count: usize,
        panel: usize,
    ) {
        for (i, sum) in acc.iter().enumerate().take(count) {
            // SAFETY: the caller's contract; the output's rows and columns of this task are its own.
            unsafe { self.product.finish_row::<S, N>(*sum, self.out, row + i, panel) }
        }
    }
}

/// `acc += rows[channels] * panel`, one multiply-add for each k in order; returns the panel's next position.
///
/// # Safety
/// As [`Simd`]'s; each row has `channels.end` elements, the panel two vectors for each channel.
#[inline(always)]
pub unsafe fn accumulate<S: Simd, E: Element, const M: usize, const N: usize>(
    rows: &[*const f32; M],
    channels: Range<usize>,
    mut panel: *const E,
    acc: &mut [[S::V; N]; M],
) -> *const E {
    let mut sums = *acc;
    for channel in channels {
        for line in (0..2 * S::LANES * size_of::<E>()).step_by(CACHE_LINE) {
            S::prefetch(panel.wrapping_add(STEPS_AHEAD * 2 * S::LANES).cast::<u8>().wrapping_add(line));
        }
        // SAFETY: the caller's contract.
        unsafe {
            let mut b = [S::zero(); N];
            for (j, b) in b.iter_mut().enumerate() {
                *b = E::load::<S>(panel.add(j * S::LANES));
            }
            for i in 0..M {
                let a = S::splat(*rows[i].add(channel));
                for j in 0..N {
                    sums[i][j] = S::mul_add(a, b[j], sums[i][j]);
                }
            }
            panel = panel.add(2 * S::LANES);
        }
    }
    *acc = sums;
    panel
}

/// Loads the first `width` elements; the other lanes are zero.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub unsafe fn load_up_to<S: Simd>(from: &[f32], width: usize) -> S::V {
    debug_assert!(from.len() >= width);
    // SAFETY: `from` has `width` elements, LANES of them in the first case.
    unsafe { if width >= S::LANES { S::load(from.as_ptr()) } else { S::load_first(from.as_ptr(), width) } }
}

/// Stores the first `width` lanes.
///
/// # Safety
/// As [`Simd`]'s; `to` has room for these lanes.
#[inline(always)]
pub unsafe fn store_up_to<S: Simd>(v: S::V, to: *mut f32, width: usize) {
    // SAFETY: the caller's contract.
    unsafe { if width >= S::LANES { S::store(v, to) } else { S::store_first(v, to, width) } }
}
