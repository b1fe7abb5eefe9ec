//! Small matrices in host memory, and the sums of products that adapters are made of.

use crate::error::{Error, Result};

/// A tensor in memory, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// The sizes.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
}

impl Matrix {
    pub(super) fn new(shape: Vec<usize>, values: Vec<f32>) -> Result<Self> {
        match values.is_empty() {
            false => Ok(Self { shape, values }),
            true => Err(Error::input("a tensor has no values").found(format!("{shape:?}"))),
        }
    }

    /// The first size; 1 for a single number.
    pub(super) fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    pub(super) fn columns(&self) -> usize {
        self.values.len() / self.rows()
    }

    /// Rows and columns exchanged, for a matrix of two sizes.
    pub(super) fn transposed(&self) -> Self {
        let (rows, columns) = (self.rows(), self.columns());
        let values = (0..columns).flat_map(|j| (0..rows).map(move |i| self.values[i * columns + j])).collect();
        Self { shape: vec![columns, rows], values }
    }
}

/// `a · b`: `[m, k]` times `[k, n]`, where all sizes behind the first count as one.
pub(super) fn product(a: &Matrix, b: &Matrix) -> Result<Matrix> {
    if a.columns() != b.rows() {
        let what = "two factors do not fit together";
        return Err(Error::input(what).found(format!("{:?} and {:?}", a.shape, b.shape)));
    }
    let n = b.columns();
    let mut values = vec![0.0; a.rows() * n];
    for (out, row) in values.chunks_exact_mut(n).zip(a.values.chunks_exact(a.columns())) {
        for (x, from) in row.iter().zip(b.values.chunks_exact(n)) {
            out.iter_mut().zip(from).for_each(|(out, y)| *out += x * y);
        }
    }
    Ok(Matrix { shape: vec![a.rows(), n], values })
}

/// A convolution in Tucker form: the sum over a and b of `left[o, a] · core[a, b, s] · right[b, i]`, `[o, i · s]`.
pub(super) fn tucker(left: &Matrix, core: &Matrix, right: &Matrix) -> Result<Matrix> {
    let [a, b, ..] = core.shape[..] else {
        return Err(Error::input("the core of a Tucker form has at least two sizes").found(format!("{:?}", core.shape)));
    };
    let (taps, inputs) = (core.values.len() / (a * b), right.columns());
    if b != right.rows() {
        return Err(
            Error::input("a core does not fit to its factor").found(format!("{:?} and {:?}", core.shape, right.shape))
        );
    }
    let mut middle = vec![0.0; a * inputs * taps];
    for (out, core) in middle.chunks_exact_mut(inputs * taps).zip(core.values.chunks_exact(b * taps)) {
        for (core, row) in core.chunks_exact(taps).zip(right.values.chunks_exact(inputs)) {
            for (out, x) in out.chunks_exact_mut(taps).zip(row) {
                out.iter_mut().zip(core).for_each(|(out, y)| *out += x * y);
            }
        }
    }
    product(left, &Matrix { shape: vec![a, inputs * taps], values: middle })
}
