//! A device without data. It takes the same calls, counts their work, and lets the arenas show what a real device would
//! hold: the planner runs the real model code on it, for hardware that may not be here.

use std::sync::{Arc, Mutex, MutexGuard};

use super::{
    Backend, Buffer, DType, DeviceId, Epilogue, Fusion, Layer, Rates, Slab, Term, Values, Weight, WeightData,
    cpu::{class, cost},
    gpu_cost,
    params::{
        Activate, AddChannels, Attention, Concat, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, ScaleAdd, Upsample,
    },
    rules::Rules,
};
use crate::error::Result;

/// What was asked of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Multiplies and adds of matrix products, convolutions and attention, each counted as one.
    pub flops: f64,
    /// Bytes that the ops read and write, weights among them.
    pub bytes: f64,
    /// How long the ops take at the device's rates.
    pub seconds: f64,
    /// Ops.
    pub calls: u64,
    /// Bytes of weights that were packed.
    pub weight_bytes: u64,
    /// Bytes of weights that came from the host's memory.
    pub fetched_bytes: u64,
}

/// The sums of a dry device's work, shared with whoever made it.
#[derive(Default)]
pub struct Ledger(Mutex<Work>);

impl Ledger {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The work since the last time it was taken.
    pub fn so_far(&self) -> Work {
        *self.work()
    }

    /// The work since the last time, and begins anew.
    pub fn take(&self) -> Work {
        std::mem::take(&mut self.work())
    }
}

/// The backend without data.
pub struct Dry {
    rules: Rules,
    rates: Rates,
    class: String,
    home: Arc<str>,
    ledger: Arc<Ledger>,
}

impl Dry {
    pub(super) fn new(id: DeviceId, rules: Rules, rates: Rates, ledger: Arc<Ledger>) -> Self {
        // All CPU devices are one memory; a GPU's is its own.
        let (class, home) = match rules {
            Rules::Cpu(path) => (class(path), format!("nowhere, for {}", class(path))),
            Rules::Gpu(dtype) | Rules::Wgpu(dtype) => {
                (format!("{} {dtype}", id.kind.name()), format!("nowhere, for {id}"))
            }
        };
        let home = home.into();
        Self { rules, rates, class, home, ledger }
    }

    /// An op of `flops` operations that reads and writes `bytes`.
    fn done(&self, flops: f64, bytes: usize) -> Result<()> {
        let mut work = self.ledger.work();
        work.calls += 1;
        work.flops += flops;
        work.bytes += bytes as f64;
        work.seconds += self.rates.seconds(flops, bytes as f64);
        Ok(())
    }
}

/// Bytes that an epilogue reads.
fn epilogue_bytes(e: &Epilogue) -> usize {
    e.channel_add.map_or(0, |(add, _)| add.bytes()) + e.residual.map_or(0, Buffer::bytes)
}

/// Bytes of partial sums that a product writes and reads.
fn parts_bytes(scratch: Option<&mut Buffer>) -> usize {
    scratch.map_or(0, |scratch| 2 * scratch.bytes())
}

/// As a factor of a count of operations.
fn f(n: u32) -> f64 {
    n as f64
}

impl Backend for Dry {
    fn class(&self) -> &str {
        &self.class
    }

    fn weight_home(&self) -> &str {
        &self.home
    }

    fn computes_in(&self, dtype: DType) -> bool {
        self.rules.in_type(dtype).is_some()
    }

    fn slab(&self, _: usize) -> Result<Slab> {
        Ok(Slab::Dry)
    }

    fn pack(&self, layer: Layer, dtype: DType, _: Values, bias: Option<Values>) -> Result<Weight> {
        let has_bias = bias.is_some();
        let bytes = self.packed_bytes(layer, dtype, has_bias);
        self.ledger.work().weight_bytes += bytes as u64;
        Ok(Weight::new(layer, dtype, has_bias, bytes, self.home.clone(), WeightData::Dry))
    }

    fn packed_bytes(&self, layer: Layer, dtype: DType, has_bias: bool) -> usize {
        match self.rules {
            Rules::Cpu(path) => cost::packed_bytes(path, layer, has_bias),
            Rules::Gpu(_) | Rules::Wgpu(_) => gpu_cost::packed_bytes(dtype, layer, has_bias),
        }
    }

    fn fetch(&self, resting: &Weight) -> Result<Weight> {
        self.ledger.work().fetched_bytes += resting.bytes() as u64;
        Ok(resting.clone())
    }

    fn supports(&self, _: Fusion) -> bool {
        match self.rules {
            Rules::Cpu(_) | Rules::Gpu(_) | Rules::Wgpu(_) => true,
        }
    }

    fn product_scratch(&self, rows: u32, out: u32, k: u32) -> usize {
        match self.rules {
            Rules::Cpu(_) | Rules::Wgpu(_) => 0,
            Rules::Gpu(_) => gpu_cost::product_scratch(rows, out, k),
        }
    }

    fn attention_scratch(&self, p: &Attention) -> usize {
        match self.rules {
            Rules::Cpu(path) => cost::attention_scratch(path, p),
            Rules::Gpu(_) | Rules::Wgpu(_) => gpu_cost::attention_scratch(p),
        }
    }

    fn group_norm_scratch(&self, p: &GroupNorm) -> usize {
        match self.rules {
            Rules::Cpu(_) => cost::group_norm_scratch(p),
            Rules::Gpu(_) | Rules::Wgpu(_) => gpu_cost::group_norm_scratch(p),
        }
    }

    fn linear(
        &self,
        p: Linear,
        x: &Buffer,
        w: &Weight,
        e: &Epilogue,
        scratch: Option<&mut Buffer>,
        out: &mut Buffer,
    ) -> Result<()> {
        let bytes = x.bytes() + w.bytes() + epilogue_bytes(e) + parts_bytes(scratch) + out.bytes();
        self.done(2.0 * f(p.rows) * f(p.out) * f(p.k), bytes)
    }

    fn conv2d(
        &self,
        p: Conv2d,
        x: &Buffer,
        w: &Weight,
        e: &Epilogue,
        scratch: Option<&mut Buffer>,
        out: &mut Buffer,
    ) -> Result<()> {
        let window = f(p.kernel) * f(p.kernel) * f(p.channels);
        let bytes = x.bytes() + w.bytes() + epilogue_bytes(e) + parts_bytes(scratch) + out.bytes();
        self.done(2.0 * f(p.batch) * f(p.out_height) * f(p.out_width) * f(p.out) * window, bytes)
    }

    fn attention(
        &self,
        p: Attention,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        scratch: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        let bytes = q.bytes() + k.bytes() + v.bytes() + 2 * scratch.bytes() + out.bytes();
        self.done(4.0 * f(p.batch) * f(p.heads) * f(p.queries) * f(p.keys) * f(p.head_dim), bytes)
    }

    fn group_norm(&self, _: GroupNorm, x: &Buffer, w: &Weight, _: &mut Buffer, out: &mut Buffer) -> Result<()> {
        // Statistics first, then the values once more.
        self.done(0.0, 2 * x.bytes() + w.bytes() + out.bytes())
    }

    fn layer_norm(&self, _: LayerNorm, x: &Buffer, w: &Weight, out: &mut Buffer) -> Result<()> {
        self.done(0.0, x.bytes() + w.bytes() + out.bytes())
    }

    fn embedding(&self, _: Embedding, ids: &Buffer, _: &Weight, _: &Weight, out: &mut Buffer) -> Result<()> {
        self.done(0.0, ids.bytes() + 3 * out.bytes())
    }

    fn upsample2x(&self, _: Upsample, x: &Buffer, out: &mut Buffer) -> Result<()> {
        self.done(0.0, x.bytes() + out.bytes())
    }

    fn concat_channels(&self, _: Concat, a: &Buffer, b: &Buffer, out: &mut Buffer) -> Result<()> {
        self.done(0.0, a.bytes() + b.bytes() + out.bytes())
    }

    fn activate(&self, _: Activate, _: super::Activation, x: &Buffer, out: &mut Buffer) -> Result<()> {
        self.done(0.0, x.bytes() + out.bytes())
    }

    fn add_channels(&self, _: AddChannels, x: &Buffer, per_channel: &Buffer, out: &mut Buffer) -> Result<()> {
        self.done(0.0, x.bytes() + per_channel.bytes() + out.bytes())
    }

    fn scale_add(&self, _: ScaleAdd, terms: &[Term], out: &mut Buffer) -> Result<()> {
        self.done(0.0, (terms.len() + 1) * out.bytes())
    }

    fn cast(&self, x: &Buffer, out: &mut Buffer) -> Result<()> {
        self.done(0.0, x.bytes() + out.bytes())
    }

    fn write(&self, _: &[u8], out: &mut Buffer) -> Result<()> {
        self.done(0.0, out.bytes())
    }

    /// Zeros: ids and pixels that every check accepts.
    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        self.done(0.0, x.bytes())
    }

    fn only_counts(&self) -> bool {
        true
    }

    fn copy(&self, _: &Buffer, _: usize, _: &mut Buffer, _: usize, bytes: usize) -> Result<()> {
        self.done(0.0, 2 * bytes)
    }
}
