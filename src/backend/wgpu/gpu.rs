//! One device of an adapter, and how an op becomes a dispatch.

use std::sync::Arc;

use wgpu::Adapter;

use super::{
    bound::Bound,
    device::{Capabilities, Context},
    memory::{Memory, STEP},
    pipeline::{Constants, Lanes, Pipelines, Shader, Storage, Variant},
};
use crate::{
    backend::{Activation, DType, Device, DeviceId, DeviceKind, NumericsClass, Precision, class::KernelPath, rates},
    error::Result,
};

/// The largest number of workgroups in one dimension: every driver supports it.
pub const MOST_GROUPS: u32 = 65535;
/// One device of an adapter.
pub struct Wgpu {
    pub(super) context: Context,
    pub(super) pipelines: Pipelines,
    pub(super) class: NumericsClass,
    pub(super) home: Arc<str>,
    /// Bound in place of a bias that does not exist.
    pub(super) nothing: Memory,
}

/// The numerics class of an adapter.
pub fn class(adapter: &Adapter, capabilities: Capabilities) -> NumericsClass {
    let info = adapter.get_info();
    let driver = format!("{} {}", info.driver, info.driver_info);
    let f16 = if capabilities.f16 { "shader-f16" } else { "packed-f16" };
    let name = format!("{}, {}, {f16}", info.name, driver.trim());
    NumericsClass { kind: DeviceKind::Wgpu, kernels: KernelPath::Adapter(name), precision: Precision::F16 }
}

/// The parameters of one call: the words that a shader reads.
#[derive(Default)]
pub struct Parameters(pub Vec<u8>);

impl Parameters {
    pub fn u32s(mut self, values: &[u32]) -> Self {
        self.0.extend(bytemuck::cast_slice(values));
        self
    }

    pub fn f32s(mut self, values: &[f32]) -> Self {
        self.0.extend(bytemuck::cast_slice(values));
        self
    }
}

/// Divides workgroups into rows of at most [`MOST_GROUPS`].
pub fn spread(groups: u32) -> (u32, u32) {
    let lines = groups.div_ceil(MOST_GROUPS);
    (groups.div_ceil(lines.max(1)), lines.max(1))
}

/// The activation's number in the shaders.
pub fn number(activation: Activation) -> u32 {
    match activation {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::QuickGelu => 3,
        Activation::Geglu => 4,
        Activation::Relu => 5,
    }
}

pub fn type_number(dtype: DType) -> u32 {
    match dtype {
        DType::F32 | DType::U32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
    }
}

impl Wgpu {
    /// Opens a new device on `adapter`.
    pub fn new(id: DeviceId, adapter: &Adapter, capabilities: Capabilities) -> Result<Self> {
        let context = Context::open(id, adapter, capabilities)?;
        let home = format!("memory of {id}, device {}", context.number).into();
        let kept = wgpu::util::pipeline_cache_key(&adapter.get_info());
        let file = kept.and_then(|name| Some(rates::cache_folder()?.join(name)));
        let pipelines = Pipelines::new(&context.device, file);
        let nothing = Memory::new(context.buffer(STEP, "nothing")?, STEP, pipelines.groups());
        Ok(Self { context, pipelines, class: class(adapter, capabilities), home, nothing })
    }

    /// A device over this adapter.
    pub fn device(self, id: DeviceId) -> Device {
        Device::new(id, self)
    }

    /// The driver's device. Tests destroy it to simulate a lost device.
    pub fn driver(&self) -> wgpu::Device {
        self.context.device.clone()
    }

    /// How numbers of a type are stored on this device.
    pub fn storage(&self, dtype: DType) -> Storage {
        match dtype {
            DType::F16 if self.context.capabilities.f16 => Storage::F16,
            DType::F16 => Storage::Packed,
            _ => Storage::F32,
        }
    }

    /// How invocations of a shader exchange values. It does not change the result.
    pub fn lanes(&self, shader: Shader) -> Lanes {
        let Capabilities { subgroups, shares_loads, .. } = self.context.capabilities;
        let helps = match shader {
            Shader::Linear | Shader::Conv2d | Shader::Attention => shares_loads,
            Shader::GroupNorm | Shader::LayerNorm => true,
            Shader::Elementwise | Shader::Layout | Shader::Words => false,
        };
        if subgroups && helps { Lanes::Subgroup } else { Lanes::Alone }
    }

    /// An entry point of a shader, for tensors of a type.
    pub fn variant(&self, shader: Shader, dtype: DType, entry: &'static str, constants: Constants) -> Variant {
        Variant { shader, storage: self.storage(dtype), lanes: self.lanes(shader), entry, constants }
    }

    /// Enqueues one dispatch. `bound` has the shader's bindings in order.
    pub fn dispatch(&self, variant: Variant, bound: &[Bound], parameters: Parameters, groups: [u32; 3]) -> Result<()> {
        let group = self.pipelines.bind(&self.context.device, &variant, bound);
        let pipeline = self.pipelines.get(&self.context.device, variant);
        self.context.dispatch(&pipeline, &group, &parameters.0, groups)
    }

    /// Enqueues one invocation for four of `elements`, in workgroups of 64.
    pub fn fours(
        &self,
        (shader, dtype, entry): (Shader, DType, &'static str),
        bound: &[Bound],
        parameters: Parameters,
        elements: usize,
    ) -> Result<()> {
        let (x, y) = spread((elements.div_ceil(4) as u32).div_ceil(64));
        self.dispatch(self.variant(shader, dtype, entry, Vec::new()), bound, parameters, [x, y, 1])
    }
}
