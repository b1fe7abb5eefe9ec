//! What multiplies the words of a tile.

use super::segments::MAX_ROWS;

/// The instructions of one kind of vector for words.
///
/// # Safety
/// Methods may only be called where the unit's target features are enabled.
#[allow(clippy::missing_safety_doc, reason = "the trait's own section speaks for every method")]
pub trait Words: Copy {
    /// Columns of one vector.
    const LANES: usize;
    /// Rows of a tile.
    const ROWS: usize;
    /// Whether words are four int8, or two bf16.
    const IS_INT8: bool;
    /// Accumulators: i32, or f32.
    type Sum: Copy;
    /// A word of a row, in all lanes.
    type Row: Copy;
    /// Words of the weight.
    type Column: Copy;
    /// Zeros.
    unsafe fn zero() -> Self::Sum;
    /// Reads accumulators.
    unsafe fn load_sum(from: *const f32) -> Self::Sum;
    /// Writes accumulators.
    unsafe fn store_sum(v: Self::Sum, to: *mut f32);
    /// Reads the words of `LANES` columns.
    unsafe fn column(from: *const u32) -> Self::Column;
    /// A word of a row.
    unsafe fn row(word: u32) -> Self::Row;
    /// The words of `LANES` rows.
    unsafe fn rows(from: *const u32) -> Self::Row;
    /// A word of the weight, in all lanes.
    unsafe fn column_of(word: u32) -> Self::Column;
    /// Accumulators that begin with a number.
    unsafe fn splat(x: i32) -> Self::Sum;
    /// `sum + row * column`, over the elements of a word.
    unsafe fn dot(sum: Self::Sum, row: Self::Row, column: Self::Column) -> Self::Sum;
}

/// Products of some rows with a panel.
pub trait Dot {
    /// The most rows of a tile.
    const ROWS: usize;
    /// Whether words are four int8, with sums in i32, or two bf16, with sums in f32.
    const IS_INT8: bool;

    /// The vectors of the same type, for what is not a tile.
    type Words: Words;

    /// Words of memory for [`Dot::gather`], for rows of this many words in all segments.
    fn gathered_words(_words: usize) -> usize {
        0
    }

    /// Prepares the thread.
    ///
    /// # Safety
    /// Inside [`NarrowKernel::run`](super::unit::NarrowKernel::run).
    #[inline(always)]
    unsafe fn start() {}

    /// Undoes [`Dot::start`].
    ///
    /// # Safety
    /// As [`Dot::start`].
    #[inline(always)]
    unsafe fn stop() {}

    /// Brings `count` rows of one segment into the order that tiles need, in `room` if they are not; returns the room
    /// that is left.
    ///
    /// # Safety
    /// Rows have `words` words each, and so has the room, for all rows of a tile.
    #[inline(always)]
    unsafe fn gather(_rows: &mut [*const u32; MAX_ROWS], _count: usize, _words: usize, room: *mut u32) -> *mut u32 {
        room
    }

    /// The sums of `count` rows of `words` words with a panel, in rows as wide as the panel: new sums, or added to the
    /// old ones.
    ///
    /// # Safety
    /// Inside [`NarrowKernel::run`](super::unit::NarrowKernel::run); all of `rows` have `words` words, `weights` has as
    /// many rows of a panel, and `to` has [`Dot::ROWS`] rows of it.
    unsafe fn tile(
        rows: &[*const u32; MAX_ROWS],
        count: usize,
        words: usize,
        weights: *const u32,
        is_first: bool,
        to: *mut f32,
    );
}
