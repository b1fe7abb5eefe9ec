//! Buffers and kernels: knows sizes, does not know tensors.

pub mod dtype;
pub mod id;

pub use dtype::DType;
pub use id::{DeviceId, DeviceKind};
