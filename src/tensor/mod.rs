//! Tensors: a shape, a type and a buffer on one device.
//!
//! A tensor is dense, row-major, channels-last and immutable: kernels have no code for strides, tensors need no lock,
//! and any thread may read one. Feature maps are `[batch, height, width, channels]`, sequences `[batch, tokens,
//! channels]`.

pub mod ops;
pub mod random;
pub mod shape;

use std::sync::Arc;

use bytemuck::Zeroable;

use crate::{
    backend::{Buffer, DType, Device, PersistentArena},
    error::{Error, Result},
};
pub use ops::Fuse;
pub use shape::Shape;

/// An immutable tensor. Clones share the memory, which is freed when the last one is dropped.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    dtype: DType,
    device: Device,
    buffer: Arc<Buffer>,
}

impl Tensor {
    /// Copies f32 values to a device.
    ///
    /// # Errors
    /// If the shape does not have as many elements, or the device's arena is full.
    pub fn new(device: &Device, shape: impl Into<Shape>, values: &[f32]) -> Result<Self> {
        Self::upload(device, shape.into(), DType::F32, values.len(), bytemuck::cast_slice(values))
    }

    /// Copies token ids to a device.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn ids(device: &Device, shape: impl Into<Shape>, values: &[u32]) -> Result<Self> {
        Self::upload(device, shape.into(), DType::U32, values.len(), bytemuck::cast_slice(values))
    }

    fn upload(device: &Device, shape: Shape, dtype: DType, count: usize, bytes: &[u8]) -> Result<Self> {
        if count != shape.elements() {
            return Err(Error::request(format!("a tensor {shape} needs {} values, not {count}", shape.elements())));
        }
        let mut buffer = Self::room(device, shape, dtype)?;
        device.backend().write(bytes, &mut buffer)?;
        Ok(Self::from_buffer(device, shape, dtype, buffer))
    }

    /// A tensor of any type from its little-endian elements.
    #[doc(hidden)]
    pub fn from_bytes(device: &Device, shape: impl Into<Shape>, dtype: DType, bytes: &[u8]) -> Result<Self> {
        if !bytes.len().is_multiple_of(dtype.size()) {
            return Err(Error::request(format!("{} bytes are no whole number of {dtype} elements", bytes.len())));
        }
        Self::upload(device, shape.into(), dtype, bytes.len() / dtype.size(), bytes)
    }

    /// An f32 tensor with the previous contents of its memory: tests search it for unexpected writes.
    #[doc(hidden)]
    pub fn uninitialized(device: &Device, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let buffer = Self::room(device, shape, DType::F32)?;
        Ok(Self::from_buffer(device, shape, DType::F32, buffer))
    }

    /// Allocates the memory of a tensor.
    fn room(device: &Device, shape: Shape, dtype: DType) -> Result<Buffer> {
        if shape.elements() == 0 {
            return Err(Error::request(format!("a tensor {shape} has no elements")));
        }
        // Kernels count elements in 32 bits, and some of these counters are signed.
        if shape.elements() >= 1 << 31 {
            return Err(Error::request(format!("a tensor {shape} has 2^31 elements or more"))
                .hint("a smaller width and height, or fewer pictures at once"));
        }
        device.alloc(shape.elements() * dtype.size(), dtype)
    }

    fn from_buffer(device: &Device, shape: Shape, dtype: DType, buffer: Buffer) -> Self {
        Self { shape, dtype, device: device.clone(), buffer: Arc::new(buffer) }
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Size `i` of the shape.
    ///
    /// # Panics
    /// If the shape has fewer sizes.
    pub fn dim(&self, i: usize) -> usize {
        self.shape.dims()[i]
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The bytes that the elements occupy.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    /// The device of its memory.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same elements with another shape; this copies nothing.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.elements() != self.shape.elements() {
            return Err(Error::request(format!("reshape: {} cannot become {shape}", self.shape)));
        }
        Ok(Self { shape, ..self.clone() })
    }

    /// Copies the values to the host as f32. This is the only op that waits.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&self) -> Result<Vec<f32>> {
        if self.dtype != DType::F32 {
            return self.cast(DType::F32)?.read();
        }
        let mut values = zeros(self.shape.elements())?;
        self.device.backend().read(&self.buffer, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The same tensor on `device`: itself if it is there already, or else a copy in that device's transient arena.
    ///
    /// # Errors
    /// If that arena is full or a device fails.
    pub fn to(&self, device: &Device) -> Result<Self> {
        if self.device == *device {
            return Ok(self.clone());
        }
        let mut buffer = Self::room(device, self.shape, self.dtype)?;
        if !device.backend().receive(&self.buffer, &mut buffer)? {
            device.backend().write(&self.staged()?, &mut buffer)?;
        }
        Ok(Self::from_buffer(device, self.shape, self.dtype, buffer))
    }

    /// The first half of a copy to `device` through the host: waits until the values are computed and copies them to
    /// the host. It uses nothing of `device` yet, so a caller that has to wait for `device` need not hold this tensor's
    /// device.
    ///
    /// # Errors
    /// If this tensor's device fails.
    pub fn leave_for(&self, device: &Device) -> Result<Leaving> {
        let staging = match self.device == *device {
            true => None,
            false => Some(self.staged()?),
        };
        Ok(Leaving { tensor: self.clone(), staging, device: device.clone() })
    }

    /// Reads the elements in their own type, little-endian.
    #[doc(hidden)]
    pub fn read_bytes(&self) -> Result<Vec<u8>> {
        self.staged()
    }

    fn staged(&self) -> Result<Vec<u8>> {
        // Without values, gigabytes of zeros need not be copied.
        let mut staging = zeros(if self.device.backend().only_counts() { 0 } else { self.bytes() })?;
        self.device.backend().read(&self.buffer, &mut staging)?;
        Ok(staging)
    }

    /// A copy in an arena that outlives the section; ops on it use the transient arena for their results.
    ///
    /// # Errors
    /// If that arena is full or a device fails.
    pub fn keep(&self, keep: &PersistentArena) -> Result<Self> {
        let buffer = keep.alloc(self.bytes(), self.dtype)?;
        self.copy_into(keep.device(), buffer)
    }

    /// An f32 tensor in an arena that outlives the section, with unspecified values.
    ///
    /// # Errors
    /// If that arena is full.
    pub fn uninitialized_in(keep: &PersistentArena, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let buffer = keep.alloc(shape.elements() * DType::F32.size(), DType::F32)?;
        Ok(Self::from_buffer(keep.device(), shape, DType::F32, buffer))
    }

    fn copy_into(&self, device: &Device, mut buffer: Buffer) -> Result<Self> {
        let bytes = self.bytes();
        if self.device == *device {
            device.backend().copy(&self.buffer, 0, &mut buffer, 0, bytes)?;
        } else if !device.backend().receive(&self.buffer, &mut buffer)? {
            device.backend().write(&self.staged()?, &mut buffer)?;
        }
        Ok(Self::from_buffer(device, self.shape, self.dtype, buffer))
    }
}

/// A tensor that is being copied to another device through the host.
pub struct Leaving {
    tensor: Tensor,
    /// The elements, unless the tensor is on the target device already.
    staging: Option<Vec<u8>>,
    device: Device,
}

impl Leaving {
    /// The tensor on the target device: itself if it was there already, or else a copy in that device's transient
    /// arena.
    ///
    /// # Errors
    /// If that arena is full or the device fails.
    pub fn arrive(self) -> Result<Tensor> {
        let Tensor { shape, dtype, .. } = self.tensor;
        let Some(staging) = self.staging else { return Ok(self.tensor) };
        let mut buffer = Tensor::room(&self.device, shape, dtype)?;
        self.device.backend().write(&staging, &mut buffer)?;
        Ok(Tensor::from_buffer(&self.device, shape, dtype, buffer))
    }
}

/// `count` zeros in host memory, whose pages are only allocated when they are written.
///
/// # Errors
/// If the system does not have the memory: `vec!` would end the process.
fn zeros<T: Zeroable>(count: usize) -> Result<Vec<T>> {
    let zeros = bytemuck::try_zeroed_slice_box(count).map(Vec::from);
    zeros.map_err(|()| {
        Error::request(format!("{} bytes of host memory cannot be allocated", count.saturating_mul(size_of::<T>())))
    })
}
