//! The values of a tensor that was read.

use crate::{
    backend::{DType, Values},
    error::Result,
};

/// A tensor that was read.
#[derive(Debug)]
pub enum Loaded<'a> {
    /// As it is stored.
    Stored(Values<'a>),
    /// Values that were computed.
    Computed(Vec<f32>),
}

impl Loaded<'_> {
    /// The values, row by row.
    pub fn values(&self) -> Values<'_> {
        match self {
            Self::Stored(values) => *values,
            Self::Computed(values) => Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(values) },
        }
    }

    /// The values as f32, which every stored type fits into.
    ///
    /// # Errors
    /// If there are only shapes, or the file cannot be read.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let values = self.values();
        let (dtype, count) = values.form()?;
        let mut bytes = vec![0; count];
        values.read(0, &mut bytes)?;
        let halves = || bytes.as_chunks::<2>().0.iter();
        Ok(match dtype {
            DType::F16 => halves().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect(),
            DType::BF16 => halves().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect(),
            DType::F32 | DType::U32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        })
    }
}
