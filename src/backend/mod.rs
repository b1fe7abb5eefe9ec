//! Buffers and kernels. This module knows sizes and does not know tensors.
//!
//! A `Backend` is what a kind of device can do. It gets an op as a value, an `Op`, and may trust it: shapes,
//! types and devices are compared once, in `tensor/ops.rs`. Every op only enqueues, in order; `read` waits.
//!
//! The trait and everything that its methods take are private to the crate: kernels write where their parameters say,
//! and from outside only the checked ops of [`Tensor`](crate::tensor::Tensor) reach them. A program cannot add a device
//! type of its own, whose memory might be smaller than it claims:
//!
//! ```compile_fail,E0603
//! #![forbid(unsafe_code)]
//! use sdshard::backend::{Backend, Slab};
//! ```
//!
//! ```compile_fail,E0624
//! #![forbid(unsafe_code)]
//! use std::num::NonZero;
//! use sdshard::backend::{Device, DeviceId, cpu::{Cpu, Path}};
//! Device::new(DeviceId::CPU, Cpu::new(Path::Portable.into(), NonZero::<usize>::MIN, Vec::new(), true).unwrap());
//! ```
//!
//! A program can neither call a kernel with sizes other than those of its tensors, nor access memory directly, nor
//! change the layer of a packed weight:
//!
//! ```compile_fail,E0599
//! #![forbid(unsafe_code)]
//! use std::num::NonZero;
//! use sdshard::backend::{DType, Values, Layer, Precision, cpu::{Cpu, Path}};
//! let cpu = Cpu::new(Path::Portable.into(), NonZero::<usize>::MIN, Vec::new(), true).unwrap();
//! let values = Values::Data { dtype: DType::F32, bytes: &[0; 4] };
//! cpu.pack(Layer::Linear { out: 1 << 20, k: 1 << 20 }, Precision::F32, values, None);
//! ```
//!
//! ```compile_fail,E0603
//! #![forbid(unsafe_code)]
//! use sdshard::backend::cpu::memory::{read, write};
//! ```
//!
//! ```compile_fail,E0616
//! #![forbid(unsafe_code)]
//! use sdshard::backend::{DType, Device, Layer, Precision, Values};
//! let device = Device::cpu(1 << 20).unwrap();
//! let values = Values::Data { dtype: DType::F32, bytes: &[0; 256] };
//! let mut weight = device.pack(Layer::Linear { out: 8, k: 8 }, Precision::F32, values, None).unwrap();
//! weight.form.layer = Layer::Linear { out: 8, k: 1 << 20 };
//! ```
//!
//! **Order contract.** Each output element is one fixed chain of operations that depends only on the layer, the
//! numerics class and its own image: never on the batch, the number of rows, threads or the position of a tile. Because
//! of this, the same request gives the same picture wherever its components run.
//!
//! **Types.** A buffer knows the type of its elements, and an op's output has the type of its input. All inputs of an
//! op have one type, and a layer's weight is packed for it. How a weight is stored is its [`Precision`]: on a GPU in the
//! type of its inputs, on a CPU, where all tensors are f32, in any precision. There, f16 is only a form of storage; in
//! bf16 and int8 a product also converts its inputs ([`cpu`]), and no tensor has these types. Always f32 are: sums
//! (integers within a product in int8), softmax and the statistics of norms, biases, the scale and shift of norms, and
//! all of [`Tensor::scale_add`](crate::tensor::Tensor::scale_add).

pub mod arena;
pub mod class;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod dry;
pub mod dtype;
pub mod gpu_cost;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod gpu_rates;
pub mod id;
pub mod info;
mod layer;
mod ops;
pub mod params;
pub mod precision;
pub mod rates;
pub mod registry;
pub mod rules;
pub mod sim;
mod weight;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub(crate) use arena::{Buffer, Slab};
pub use class::NumericsClass;
pub use device::{Device, PersistentArena};
pub use dtype::DType;
pub use id::{DeviceId, DeviceKind};
pub use info::DeviceInfo;
pub use layer::{Activation, Extent, Layer, ReadAt, Values};
pub(crate) use ops::{Backend, Epilogue, Fusion, Op};
pub use precision::Precision;
pub use rates::Rates;
pub use registry::{Opening, open, visible};
pub use weight::Weight;
use weight::{Form, Stored, WeightData};
