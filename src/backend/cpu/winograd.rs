//! 3x3 convolutions of stride 1 by Winograd's minimal filtering: by F(4x4, 3x3), a tile of 4x4 outputs takes 36 products
//! per channel instead of 144; by F(2x2, 3x3), a tile of 2x2 outputs takes 16 instead of 36. Lavin and Gray 2016.
//!
//! The tiles of an image begin at its first row and column, and what lies outside counts as zero. Each output element
//! is one chain: the transform of its tile, one chain of multiply-adds over the channels in order for each of its
//! planes, and the transform back. So it depends neither on the batch nor on threads.

use std::ops::Range;

use super::{
    cost::Tiles,
    element::Element,
    gemm::{Lhs, Product, accumulate},
    kernels::Filtering,
    memory::{Parts, Scratch},
    pack::Elements,
    simd::{Kernel, Path, Simd},
    threads::Pool,
    transform::{F2, F4, Transform, transposed},
};
use crate::backend::params::Conv2d;

/// The most tiles of one task.
const TASK_TILES: usize = 48;
/// The most columns of one task.
const TASK_COLUMNS: usize = 64;
/// The tasks per thread to aim at between two barriers.
const TASKS_PER_THREAD: usize = 2;

/// Computes a convolution and writes all of `out`. `scratch` is for the transformed inputs of some tiles, which are
/// [`Tiles::together`].
///
/// # Panics
/// If it is no convolution, or a slice is shorter than the sizes say, because the unsafe code depends on them.
pub fn run(product: &Product, filtering: Filtering, path: Path, pool: &Pool, scratch: &mut [f32], out: &mut [f32]) {
    match &product.packed.weight {
        Elements::F32(weight) => run_with(product, weight, filtering, path, pool, scratch, out),
        Elements::F16(weight) => run_with(product, weight, filtering, path, pool, scratch, out),
        Elements::BF16(weight) => run_with(product, weight, filtering, path, pool, scratch, out),
        Elements::Words(_) => panic!("transformed weights are not packed in words"),
    }
}

fn run_with<E: Element>(
    product: &Product,
    weight: &[E],
    filtering: Filtering,
    path: Path,
    pool: &Pool,
    scratch: &mut [f32],
    out: &mut [f32],
) {
    let Lhs::Conv2d(p, x) = product.lhs else { panic!("a 3x3 window has rows of pixels") };
    let tiles = &Tiles::new(path, filtering, &p);
    let pixels = (p.batch * p.height * p.width) as usize;
    assert!(
        x.len() >= pixels * p.channels as usize && scratch.len() >= tiles.elements(),
        "tensors of the call's sizes"
    );
    let panels = (p.out as usize).div_ceil(path.panel());
    assert!(weight.len() >= panels * path.panel() * filtering.planes() * p.channels as usize, "all panels");
    product.check(path, panels, out);
    let out = Parts::new(out);
    for first in (0..tiles.count).step_by(tiles.together) {
        let stored = first..tiles.count.min(first + tiles.together);
        let to = Parts::new(&mut *scratch);
        pool.run(stored.len().div_ceil(path.rows()), |task| {
            let first = stored.start + task * path.rows();
            let range = first..stored.end.min(first + path.rows());
            path.run(Inputs { p, x, tiles, stored: stored.clone(), range, to: &to });
        });
        let inputs = &scratch[..tiles.elements()];
        let (mut task_tiles, mut task_panels) = (TASK_TILES, TASK_COLUMNS / path.panel());
        let tasks = |tiles: usize, columns: usize| stored.len().div_ceil(tiles) * panels.div_ceil(columns);
        while tasks(task_tiles, task_panels) < TASKS_PER_THREAD * pool.threads() {
            match (task_panels, task_tiles / 2 >= path.rows()) {
                (2.., _) => task_panels /= 2,
                (_, true) => task_tiles /= 2,
                _ => break,
            }
        }
        let groups = stored.len().div_ceil(task_tiles);
        // Neighbouring tasks share the weights, because the weights are what does not fit into the caches.
        pool.run(groups * panels.div_ceil(task_panels), |task| {
            let first = stored.start + task % groups * task_tiles;
            let first_panel = task / groups * task_panels;
            path.run(Outputs {
                product,
                weight,
                p,
                tiles,
                stored: stored.clone(),
                range: first..stored.end.min(first + task_tiles),
                panels: first_panel..panels.min(first_panel + task_panels),
                inputs,
                out: &out,
            });
        });
    }
}

/// The transform of the inputs of some tiles.
struct Inputs<'a> {
    p: Conv2d,
    x: &'a [f32],
    tiles: &'a Tiles,
    /// The tiles whose transformed inputs are in the scratch memory.
    stored: Range<usize>,
    /// The tiles of this task.
    range: Range<usize>,
    to: &'a Parts<'a, f32>,
}

impl Kernel for Inputs<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: inside `Kernel::run`.
        unsafe {
            match self.tiles.filtering {
                Filtering::F4 => self.transform::<S, F4, 4, 6>(),
                Filtering::F2 => self.transform::<S, F2, 2, 4>(),
            }
        }
    }
}

impl Inputs<'_> {
    /// Transforms the inputs of the task's tiles.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    unsafe fn transform<S: Simd, T: Transform<M, N>, const M: usize, const N: usize>(&self) {
        let (height, width, channels) = (self.p.height as usize, self.p.width as usize, self.p.channels as usize);
        for tile in self.range.clone() {
            let (image, y, x) = self.tiles.place(tile);
            // Above or left of the picture, the subtraction wraps to a value larger than the picture.
            let rows: [usize; N] = std::array::from_fn(|i| (y * M + i).wrapping_sub(self.p.padding as usize));
            let columns: [usize; N] = std::array::from_fn(|i| (x * M + i).wrapping_sub(self.p.padding as usize));
            let pixels: [[Option<usize>; N]; N] = rows.map(|y| {
                columns.map(|x| (y < height && x < width).then(|| ((image * height + y) * width + x) * channels))
            });
            for channel in (0..channels).step_by(S::LANES) {
                let count = S::LANES.min(channels - channel);
                // SAFETY: the trait's contract. A pixel inside the picture has `channels` elements; the tile's place in
                // the scratch memory is this task's, and a row there has room for whole vectors.
                unsafe {
                    let zeros = [[S::zero(); N]; N];
                    let mut columns = zeros;
                    for (x, column) in columns.iter_mut().enumerate() {
                        for (v, row) in column.iter_mut().zip(&pixels) {
                            if let Some(pixel) = row[x] {
                                let from = self.x.as_ptr().add(pixel + channel);
                                *v = if count == S::LANES { S::load(from) } else { S::load_first(from, count) };
                            }
                        }
                        *column = T::inputs::<S>(*column);
                    }
                    let mut to = self.to.at((tile - self.stored.start) * self.tiles.row + channel);
                    for row in transposed(&columns, zeros) {
                        for v in T::inputs::<S>(row) {
                            S::store(v, to);
                            to = to.wrapping_add(self.tiles.plane);
                        }
                    }
                }
            }
        }
    }
}

/// The products of some tiles with some panels, transformed back.
struct Outputs<'a, E> {
    product: &'a Product<'a>,
    /// The elements of the product's weight.
    weight: &'a [E],
    p: Conv2d,
    tiles: &'a Tiles,
    /// The tiles whose transformed inputs are in the scratch memory.
    stored: Range<usize>,
    /// The tiles of this task.
    range: Range<usize>,
    panels: Range<usize>,
    inputs: &'a [f32],
    out: &'a Parts<'a, f32>,
}

/// Elements between the sums of two tiles: a task's columns, and a line so that tiles do not share the sets of a cache.
const SUMS_ROW: usize = TASK_COLUMNS + 16;

impl<E: Element> Kernel for Outputs<'_, E> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let planes = self.tiles.filtering.planes();
        // The sums of a task in all planes.
        let mut sums = Scratch::take(planes * TASK_TILES * SUMS_ROW);
        for plane in 0..planes {
            for tile in self.range.clone().step_by(S::ROWS) {
                let count = S::ROWS.min(self.range.end - tile);
                for panel in self.panels.clone() {
                    let at = (plane * TASK_TILES + tile - self.range.start) * SUMS_ROW
                        + (panel - self.panels.start) * 2 * S::LANES;
                    // SAFETY: inside `Kernel::run`; the sums have a row for each tile of the task.
                    unsafe {
                        let sums = sums[at..].as_mut_ptr();
                        match (S::ROWS, count) {
                            (12, 7..) => self.multiply::<S, 12>(plane, tile, count, panel, sums),
                            (6.., 4..) => self.multiply::<S, 6>(plane, tile, count, panel, sums),
                            (_, 3..) => self.multiply::<S, 3>(plane, tile, count, panel, sums),
                            (_, 2..) => self.multiply::<S, 2>(plane, tile, count, panel, sums),
                            _ => self.multiply::<S, 1>(plane, tile, count, panel, sums),
                        }
                    }
                }
            }
        }
        for tile in self.range.clone() {
            let at = (tile - self.range.start) * SUMS_ROW;
            // SAFETY: inside `Kernel::run`.
            unsafe {
                match self.tiles.filtering {
                    Filtering::F4 => self.finish::<S, F4, 4, 6>(tile, &sums[at..]),
                    Filtering::F2 => self.finish::<S, F2, 2, 4>(tile, &sums[at..]),
                }
            }
        }
    }
}

impl<E: Element> Outputs<'_, E> {
    /// The sums of `count` tiles in one plane and panel, in rows of [`SUMS_ROW`].
    ///
    /// # Safety
    /// As [`Simd`]'s, with `count <= M` tiles; `sums` has a row for each.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const M: usize>(
        &self,
        plane: usize,
        tile: usize,
        count: usize,
        panel: usize,
        sums: *mut f32,
    ) {
        let channels = self.p.channels as usize;
        let first = plane * self.tiles.plane + (tile - self.stored.start) * self.tiles.row;
        let weight = &self.weight[(panel * self.tiles.filtering.planes() + plane) * channels * 2 * S::LANES..];
        // SAFETY: rows beyond `count` repeat the first one, and each has `channels` elements in the scratch memory; the
        // panel has two vectors for each of them.
        unsafe {
            let inputs = self.inputs[first..].as_ptr();
            let mut rows = [inputs; M];
            for (i, row) in rows.iter_mut().enumerate().take(count) {
                *row = inputs.add(i * self.tiles.row);
            }
            let mut acc = [[S::zero(); 2]; M];
            accumulate::<S, E, M, 2>(&rows, 0..channels, weight.as_ptr(), &mut acc);
            for (i, acc) in acc.iter().enumerate().take(count) {
                for (j, &v) in acc.iter().enumerate() {
                    S::store(v, sums.add(i * SUMS_ROW + j * S::LANES));
                }
            }
        }
    }

    /// Transforms the sums of one tile back, and writes its outputs.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    unsafe fn finish<S: Simd, T: Transform<M, N>, const M: usize, const N: usize>(&self, tile: usize, sums: &[f32]) {
        let (image, y, x) = self.tiles.place(tile);
        let (height, width) = (self.p.out_height as usize, self.p.out_width as usize);
        let (first, last) =
            (self.panels.start * 2 * S::LANES, self.product.columns.min(self.panels.end * 2 * S::LANES));
        for column in (first..last).step_by(S::LANES) {
            // SAFETY: the sums have a vector at this column in each plane; rows and columns of the output are cut to
            // its size.
            unsafe {
                let mut columns = [[S::zero(); M]; N];
                for (x, half) in columns.iter_mut().enumerate() {
                    let mut sum = [S::zero(); N];
                    for (y, sum) in sum.iter_mut().enumerate() {
                        let plane = (y * N + x) * TASK_TILES * SUMS_ROW;
                        *sum = S::load(sums[plane + column - first..].as_ptr());
                    }
                    *half = T::outputs::<S>(sum);
                }
                let rows = transposed(&columns, [[S::zero(); N]; M]);
                for (i, row) in rows.into_iter().enumerate().take(height - y * M) {
                    let pixel = (image * height + y * M + i) * width + x * M;
                    for (j, sum) in T::outputs::<S>(row).into_iter().enumerate().take(width - x * M) {
                        self.product.finish_vector::<S>(sum, self.out, pixel + j, column);
                    }
                }
            }
        }
    }
}
