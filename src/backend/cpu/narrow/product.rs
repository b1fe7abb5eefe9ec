//! Products with converted rows, divided into tasks.

use std::ops::Range;

use super::{
    dot::Dot,
    pack::{Weight, parts},
    rows::Rows,
    segments::{MAX_ROWS, MAX_SEGMENTS, groups, segments},
    unit::{NarrowKernel, Unit},
};
use crate::backend::{
    Form,
    cpu::{
        gemm::{Lhs, MAX_CHANNELS, Product},
        memory::{Parts, Scratch},
        simd::{Path, Simd},
        threads::Pool,
    },
};

/// The most columns of a panel, on any path.
const MAX_PANEL: usize = 32;
/// Bytes of packed weight that are reused from the second-level cache.
const BLOCK_BYTES: usize = 512 << 10;
/// The largest number of rows of one task.
const TASK_ROWS: usize = 384;
/// The number of tasks per thread to aim at, so that no thread waits long for the last one.
const TASKS_PER_THREAD: usize = 8;

/// What padding points to.
static ZEROS: [u32; MAX_CHANNELS / 2] = [0; MAX_CHANNELS / 2];

/// Computes a product with a weight of this form, and writes all of `out`. The input is converted in `scratch`, of
/// [`converted_words`](super::rows::converted_words).
pub fn run(
    product: &Product,
    form: Form,
    packed: &[u32],
    path: Path,
    pool: &Pool,
    scratch: &mut [f32],
    out: &mut [f32],
) {
    let rows =
        Rows::convert(form.stored, groups(form), &product.lhs.x()[..product.lhs.elements()], path, pool, scratch);
    let columns = product.columns.next_multiple_of(path.panel());
    multiply(
        product,
        parts(form.stored, segments(form), columns, packed),
        &rows,
        Unit::best(path, form.stored),
        pool,
        out,
    );
}

/// Computes a product with converted rows and writes all of `out`. `rows` are the converted rows of the product's input.
///
/// # Panics
/// If a slice is shorter than the sizes say, because the unsafe code depends on them.
fn multiply(product: &Product, weight: Weight, rows: &Rows, unit: Unit, pool: &Pool, out: &mut [f32]) {
    let (path, count, segments) = (unit.path(), product.lhs.rows(), weight.segments);
    let panel_words = segments.count * segments.words * path.panel();
    let panels = weight.words.len() / panel_words;
    let columns = panels * path.panel();
    let is_rows = matches!(product.lhs, Lhs::Linear(..));
    assert!(segments.count <= MAX_SEGMENTS, "segments for every tap of a window");
    assert!(is_rows || segments.words <= ZEROS.len(), "zeros for every channel of a window");
    assert!(rows.segments.words == segments.words, "rows that were converted for this weight");
    if unit.is_int8() {
        assert!(
            weight.scales.len() >= columns && weight.sums.len() >= segments.count * columns,
            "scales of all columns"
        );
    }
    product.check(path, panels, out);
    let task_rows = count.min(TASK_ROWS).next_multiple_of(unit.rows());
    let row_tasks = count.div_ceil(task_rows);
    let wanted = (pool.threads() * TASKS_PER_THREAD).div_ceil(row_tasks);
    let task_panels = if pool.threads() == 1 { panels } else { panels.div_ceil(wanted).max(1) };
    let out = Parts::new(out);
    // Neighbouring tasks share the weights, because the weights are what does not fit into the caches.
    pool.run(row_tasks * panels.div_ceil(task_panels), |task| {
        let (first_row, first_panel) = (task % row_tasks * task_rows, task / row_tasks * task_panels);
        unit.run(Task {
            product,
            weight: &weight,
            input: rows,
            columns,
            out: &out,
            rows: first_row..count.min(first_row + task_rows),
            panels: first_panel..panels.min(first_panel + task_panels),
        });
    });
}

/// A rectangle of the result.
struct Task<'a> {
    product: &'a Product<'a>,
    weight: &'a Weight<'a>,
    input: &'a Rows<'a>,
    /// The columns of all panels.
    columns: usize,
    out: &'a Parts<'a, f32>,
    rows: Range<usize>,
    panels: Range<usize>,
}

/// The rows of one tile in every segment, with the scale and the zero point of each.
struct TileRows {
    words: [[*const u32; MAX_ROWS]; MAX_SEGMENTS],
    scales: [[f32; MAX_ROWS]; MAX_SEGMENTS],
    zeros: [[i32; MAX_ROWS]; MAX_SEGMENTS],
}

impl TileRows {
    /// Points at `count` rows from `row` on. Rows beyond them repeat the first one.
    #[inline(always)]
    fn point(&mut self, lhs: &Lhs, input: &Rows, segments: usize, row: usize, count: usize) {
        let groups = input.segments.count;
        lhs.each_source(row, count, |tap, i, source| {
            // A window has one group for each pixel, and a row has one tap.
            for group in 0..groups {
                let segment = tap + group;
                let (words, scale, zero) = match source {
                    Some(source) => input.part(source * groups + group),
                    None => (ZEROS.as_ptr(), 0.0, 0),
                };
                self.words[segment][i] = words;
                self.scales[segment][i] = scale;
                self.zeros[segment][i] = zero;
            }
        });
        for words in &mut self.words[..segments] {
            let first = words[0];
            words[count..].fill(first);
        }
    }
}

#[repr(align(64))]
struct Tile([f32; MAX_ROWS * MAX_PANEL]);

impl NarrowKernel for Task<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd, D: Dot>(self) {
        let Self { product, weight, .. } = &self;
        let (panel_width, segments) = (2 * S::LANES, weight.segments);
        let panel_words = segments.count * segments.words * panel_width;
        let group = (BLOCK_BYTES / 4 / panel_words).max(1);
        let mut rows = TileRows {
            words: [[ZEROS.as_ptr(); MAX_ROWS]; MAX_SEGMENTS],
            scales: [[0.0; MAX_ROWS]; MAX_SEGMENTS],
            zeros: [[0; MAX_ROWS]; MAX_SEGMENTS],
        };
        let (mut tile, mut sums) = (Tile([0.0; MAX_ROWS * MAX_PANEL]), Tile([0.0; MAX_ROWS * MAX_PANEL]));
        let mut gathered = Scratch::take(D::gathered_words(segments.count * segments.words));
        // SAFETY: inside `NarrowKernel::run`; `run` has compared the slices with the sizes of the call.
        unsafe {
            D::start();
            for first in self.panels.clone().step_by(group) {
                for row in self.rows.clone().step_by(D::ROWS) {
                    let count = D::ROWS.min(self.rows.end - row);
                    rows.point(&product.lhs, self.input, segments.count, row, count);
                    let mut room = gathered.as_mut_ptr().cast();
                    for words in &mut rows.words[..segments.count] {
                        room = D::gather(words, count, segments.words, room);
                    }
                    for panel in first..self.panels.end.min(first + group) {
                        let mut words = weight.words[panel * panel_words..].as_ptr();
                        for segment in 0..segments.count {
                            let pointers = &rows.words[segment];
                            if D::IS_INT8 {
                                D::tile(pointers, count, segments.words, words, true, tile.0.as_mut_ptr());
                                let columns = &weight.sums[segment * self.columns + panel * panel_width..];
                                let (scales, zeros) = (&rows.scales[segment], &rows.zeros[segment]);
                                add::<S>(count, &tile, columns, scales, zeros, segment == 0, &mut sums);
                            } else {
                                D::tile(pointers, count, segments.words, words, segment == 0, sums.0.as_mut_ptr());
                            }
                            words = words.add(segments.words * panel_width);
                        }
                        for i in 0..count {
                            let mut sum = [S::zero(); 2];
                            for (j, sum) in sum.iter_mut().enumerate() {
                                *sum = S::load(sums.0[i * panel_width + j * S::LANES..].as_ptr());
                                if D::IS_INT8 {
                                    let scales = &weight.scales[panel * panel_width + j * S::LANES..];
                                    *sum = S::mul(*sum, S::load(scales.as_ptr()));
                                }
                            }
                            product.finish_row::<S, 2>(sum, self.out, row + i, panel);
                        }
                    }
                }
            }
            D::stop();
        }
    }
}

/// Adds the integers of a tile to its f32 sums: `sum + (tile - zero * column) * scale`, each step rounded separately.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn add<S: Simd>(
    count: usize,
    tile: &Tile,
    columns: &[i32],
    scales: &[f32; MAX_ROWS],
    zeros: &[i32; MAX_ROWS],
    is_first: bool,
    sums: &mut Tile,
) {
    let width = 2 * S::LANES;
    let columns = &columns[..width];
    for i in 0..count {
        for j in [0, S::LANES] {
            let at = i * width + j;
            // SAFETY: tiles have a vector there, and there are `width` columns.
            unsafe {
                let value = S::minus_product(tile.0[at..].as_ptr().cast(), zeros[i], columns[j..].as_ptr());
                let value = S::mul(value, S::splat(scales[i]));
                let sum = if is_first { value } else { S::add(S::load(sums.0[at..].as_ptr()), value) };
                S::store(sum, sums.0[at..].as_mut_ptr());
            }
        }
    }
}

#[cfg(test)]
mod tests;
