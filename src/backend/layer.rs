//! A layer's parameters, before and after they are packed, and the operations that follow its product.

use super::dtype::DType;
use crate::error::{Error, Result};

/// The shape of a layer's parameters, which determines their packed form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// A linear layer, `[out, k]`.
    Linear {
        /// Output channels.
        out: usize,
        /// Input channels.
        k: usize,
    },
    /// A linear layer whose output is halved by GEGLU: rows `0..out/2` are the hidden half, the other rows are the
    /// gate.
    Geglu {
        /// Output channels before halving.
        out: usize,
        /// Input channels.
        k: usize,
    },
    /// A convolution, `[out, channels, kernel, kernel]` as stored, OHWI once packed.
    Conv2d {
        /// Output channels.
        out: usize,
        /// Input channels.
        channels: usize,
        /// Height and width of the window.
        kernel: usize,
        /// Step of the window.
        stride: usize,
        /// Whether it has many pixels.
        extent: Extent,
    },
    /// Scale and shift of a norm, `[channels]` each.
    Norm {
        /// Number of channels.
        channels: usize,
    },
    /// A table of rows, `[rows, channels]`.
    Embedding {
        /// Number of rows.
        rows: usize,
        /// Number of channels.
        channels: usize,
    },
}

/// Whether a convolution has many pixels in a picture of the model's own size. This is a property of the model, because
/// the kernels of a layer must not depend on the size of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    /// 32 × 32 pixels or more, or any in a VAE.
    Large,
    /// 16 × 16 pixels or more.
    Medium,
    /// Fewer pixels.
    Small,
}

impl Layer {
    /// The number of elements of the weight and, if there is one, of the bias; saturates where no memory could hold
    /// them.
    pub fn elements(self) -> (usize, usize) {
        match self {
            Layer::Linear { out, k } | Layer::Geglu { out, k } => (out.saturating_mul(k), out),
            Layer::Conv2d { out, channels, kernel, .. } => {
                (out.saturating_mul(channels).saturating_mul(kernel).saturating_mul(kernel), out)
            }
            Layer::Norm { channels } => (channels, channels),
            Layer::Embedding { rows, channels } => (rows.saturating_mul(channels), 0),
        }
    }
}

/// Data that can be read at any position.
pub trait ReadAt: std::fmt::Debug + Sync {
    /// Fills `to` with the bytes from byte `start` on.
    ///
    /// # Errors
    /// If the data cannot be read, or ends too early.
    fn read_at(&self, start: usize, to: &mut [u8]) -> Result<()>;
}

/// A tensor as it is stored in its file: the only form in which a weight reaches a backend.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Little-endian elements in memory, not necessarily aligned.
    Data {
        /// The type of the elements: a float.
        dtype: DType,
        /// The bytes of all elements.
        bytes: &'a [u8],
    },
    /// Little-endian elements in a file, to be read in pieces.
    Stored {
        /// The type of the elements: a float.
        dtype: DType,
        /// The number of bytes of all elements.
        bytes: usize,
        /// The position of the first byte in the file.
        start: usize,
        /// The file.
        file: &'a dyn ReadAt,
    },
    /// No elements: plans need only shapes.
    ShapeOnly,
}

impl Values<'_> {
    /// The type of the elements and the number of their bytes.
    ///
    /// # Errors
    /// If there are only shapes, or the type is not a float.
    pub fn form(&self) -> Result<(DType, usize)> {
        let (dtype, bytes) = match *self {
            Values::Data { dtype, bytes } => (dtype, bytes.len()),
            Values::Stored { dtype, bytes, .. } => (dtype, bytes),
            Values::ShapeOnly => {
                return Err(Error::input("this model was opened for planning: its weights are not here"));
            }
        };
        if dtype == DType::U32 {
            return Err(Error::input("a weight must be of a float type, not u32"));
        }
        Ok((dtype, bytes))
    }

    /// Fills `to` with the bytes from `start` on.
    ///
    /// # Errors
    /// If there are only shapes, the elements end too early, or the file cannot be read.
    pub fn read(&self, start: usize, to: &mut [u8]) -> Result<()> {
        let (_, bytes) = self.form()?;
        if start.checked_add(to.len()).is_none_or(|end| end > bytes) {
            return Err(Error::input(format!("{} bytes at {start} of a weight of {bytes} bytes", to.len())));
        }
        match self {
            Values::Data { bytes, .. } => to.copy_from_slice(&bytes[start..start + to.len()]),
            Values::Stored { start: first, file, .. } => {
                let at = first.checked_add(start);
                let at = at.ok_or_else(|| Error::input(format!("a weight that begins at byte {first} of its file")))?;
                file.read_at(at, to)?;
            }
            Values::ShapeOnly => {}
        }
        Ok(())
    }
}

/// A function applied to each output element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// No function.
    #[default]
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, the exact form with erf.
    Gelu,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `hidden * gelu(gate)`; halves the channels.
    Geglu,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
}

impl Activation {
    /// The number of output channels after this activation of a layer with `columns` channels.
    pub fn width(self, columns: u32) -> u32 {
        if self == Activation::Geglu { columns / 2 } else { columns }
    }
}
