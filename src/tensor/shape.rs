//! The shape of a tensor: one to four sizes.

use std::fmt;

/// The sizes of a tensor, outermost first. Prints as `[2, 64, 64, 320]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// The sizes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The number of elements; saturates where no memory could hold them.
    pub fn elements(&self) -> usize {
        self.dims().iter().fold(1, |n: usize, &dim| n.saturating_mul(dim))
    }

    /// The number of images: the outermost size, or 1 if there is only one row of channels.
    pub fn batch(&self) -> usize {
        if self.rank > 1 { self.dims[0] } else { 1 }
    }

    /// The last size.
    pub fn channels(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// The product of all sizes but the last.
    pub fn rows(&self) -> usize {
        self.dims[..self.rank - 1].iter().product()
    }

    /// The same shape with another outermost size.
    #[must_use]
    pub fn with_batch(mut self, batch: usize) -> Self {
        self.dims[0] = batch;
        self
    }

    /// The same shape with another last size.
    #[must_use]
    pub fn with_channels(mut self, channels: usize) -> Self {
        self.dims[self.rank - 1] = channels;
        self
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        const { assert!(N >= 1 && N <= 4, "a tensor has one to four sizes") };
        let mut shape = Self { dims: [1; 4], rank: N };
        shape.dims[..N].copy_from_slice(&dims);
        shape
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}
