//! A device without data. It takes the same calls, counts their work, and lets the arenas show what a real device would
//! hold: the planner runs the real model code on it, for hardware that may not be here.

use std::sync::{Arc, Mutex, MutexGuard};

use super::{
    Backend, Buffer, DType, DeviceId, Form, Fusion, Layer, NumericsClass, Op, Precision, Rates, Slab, Values, Weight,
    WeightData,
    class::KernelPath,
    cpu::{cost, form},
    gpu_cost,
    rules::Rules,
};
use crate::error::Result;

/// The work that a device was given.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Multiplies and adds of matrix products, convolutions and attention, each counted as one.
    pub flops: f64,
    /// Bytes that the ops read and write, weights among them.
    pub bytes: f64,
    /// How long the ops take at the device's rates.
    pub seconds: f64,
    /// Number of ops.
    pub calls: u64,
    /// Bytes of weights that were packed.
    pub weight_bytes: u64,
    /// Bytes of weights that were copied from host memory.
    pub fetched_bytes: u64,
}

/// The sums of a dry device's work, shared with the caller that opened the device.
#[derive(Default)]
pub struct CostCounter(Mutex<Work>);

impl CostCounter {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The work since the last call of [`CostCounter::take`].
    pub fn so_far(&self) -> Work {
        *self.work()
    }

    /// The work since the last call; resets the sums to zero.
    pub fn take(&self) -> Work {
        std::mem::take(&mut self.work())
    }
}

/// The backend without data.
pub struct Dry {
    rules: Rules,
    rates: Rates,
    class: NumericsClass,
    home: Arc<str>,
    counter: Arc<CostCounter>,
}

impl Dry {
    pub(super) fn new(id: DeviceId, rules: Rules, rates: Rates, counter: Arc<CostCounter>) -> Self {
        // All CPU devices share the host's memory; each GPU has its own.
        let (class, home) = match rules {
            Rules::Cpu(kernels, precision) => {
                let class = NumericsClass::cpu(kernels).in_type(precision);
                let home = format!("nowhere, for {class}");
                (class, home)
            }
            Rules::Gpu(precision) | Rules::Wgpu(precision) => {
                (NumericsClass { kind: id.kind, kernels: KernelPath::None, precision }, format!("nowhere, for {id}"))
            }
        };
        let home = home.into();
        Self { rules, rates, class, home, counter }
    }

    /// Counts a transfer or an op of `flops` operations that reads and writes `bytes`. It takes the time of
    /// `timed_flops` operations of a dense product.
    fn done(&self, flops: f64, timed_flops: f64, bytes: usize) -> Result<()> {
        let mut work = self.counter.work();
        work.calls += 1;
        work.flops += flops;
        work.bytes += bytes as f64;
        work.seconds += self.rates.seconds(timed_flops, bytes as f64);
        Ok(())
    }
}

impl Backend for Dry {
    fn class(&self) -> &NumericsClass {
        &self.class
    }

    fn weight_home(&self) -> &str {
        &self.home
    }

    fn computes_in(&self, dtype: DType) -> bool {
        Precision::ALL.into_iter().any(|precision| self.input_type(precision) == Some(dtype))
    }

    fn input_type(&self, precision: Precision) -> Option<DType> {
        match self.rules.in_type(precision)? {
            Rules::Cpu(..) => Some(DType::F32),
            Rules::Gpu(precision) | Rules::Wgpu(precision) => precision.dtype(),
        }
    }

    fn form(&self, layer: Layer, precision: Precision, has_bias: bool) -> Option<Form> {
        let computed = self.input_type(precision)?;
        Some(match self.rules {
            Rules::Cpu(..) => form(layer, precision, has_bias),
            Rules::Gpu(_) | Rules::Wgpu(_) => Form::new(layer, computed, has_bias),
        })
    }

    fn slab(&self, _: usize) -> Result<Slab> {
        Ok(Slab::Dry)
    }

    fn pack(&self, form: Form, _: Values, _: Option<Values>) -> Result<Weight> {
        let bytes = self.packed_bytes(form);
        self.counter.work().weight_bytes += bytes as u64;
        Ok(Weight::new(form, bytes, self.home.clone(), WeightData::Dry))
    }

    fn packed_bytes(&self, form: Form) -> usize {
        match self.rules {
            Rules::Cpu(kernels, _) => cost::packed_bytes(kernels, form),
            Rules::Gpu(_) | Rules::Wgpu(_) => gpu_cost::packed_bytes(form),
        }
    }

    fn fetch(&self, host_weight: &Weight) -> Result<Weight> {
        self.counter.work().fetched_bytes += host_weight.bytes() as u64;
        Ok(host_weight.clone())
    }

    fn supports(&self, _: Fusion) -> bool {
        true
    }

    fn scratch(&self, op: &Op) -> Option<usize> {
        match self.rules {
            Rules::Cpu(kernels, _) => cost::scratch(kernels, op),
            Rules::Gpu(_) => gpu_cost::cuda_scratch(op),
            Rules::Wgpu(_) => gpu_cost::wgpu_scratch(op),
        }
    }

    fn run(&self, op: &Op, scratch: Option<&mut Buffer>, out: &mut Buffer) -> Result<()> {
        let timed_flops = match self.rules {
            Rules::Cpu(kernels, _) => cost::timed_flops(kernels, op),
            Rules::Gpu(_) | Rules::Wgpu(_) => op.flops(),
        };
        self.done(op.flops(), timed_flops, op.bytes(scratch.as_deref(), out))
    }

    fn write(&self, _: &[u8], out: &mut Buffer) -> Result<()> {
        self.done(0.0, 0.0, out.bytes())
    }

    /// Reads zeros: ids and pixels that every check accepts.
    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        self.done(0.0, 0.0, x.bytes())
    }

    fn only_counts(&self) -> bool {
        true
    }

    fn copy(&self, _: &Buffer, _: usize, _: &mut Buffer, _: usize, bytes: usize) -> Result<()> {
        self.done(0.0, 0.0, 2 * bytes)
    }
}
