//! A device without data. It takes the same calls, counts their work, and lets the arenas show what a real device would
//! hold: the planner runs the real model code on it, for hardware that may not be here.

use std::sync::{Arc, Mutex};

use super::{
    Backend, Buffer, DType, Epilogue, Fusion, Layer, Slab, Term, Values, Weight, WeightData,
    cpu::{self, Path},
    params::{
        Activate, AddChannels, Attention, Concat, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, ScaleAdd, Upsample,
    },
};
use crate::error::Result;

/// The kind of device that is imitated, with what its `cost` functions need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// CPU cores with this kernel path.
    Cpu(Path),
}

/// What was asked of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Multiplies and adds of matrix products, convolutions and attention, each counted as one.
    pub flops: f64,
    /// Ops.
    pub calls: u64,
    /// Bytes of packed weights.
    pub weight_bytes: u64,
}

/// The sums of a dry device's work, shared with whoever made it.
#[derive(Default)]
pub struct Ledger(Mutex<Work>);

impl Ledger {
    fn add(&self, flops: f64) {
        let mut work = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        work.calls += 1;
        work.flops += flops;
    }

    /// The work since the last time, and begins anew.
    pub fn take(&self) -> Work {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// The backend without data.
pub struct Dry {
    rules: Rules,
    class: String,
    home: Arc<str>,
    ledger: Arc<Ledger>,
}

impl Dry {
    pub(super) fn new(rules: Rules, ledger: Arc<Ledger>) -> Self {
        let class = match rules {
            Rules::Cpu(path) => cpu::class(path),
        };
        let home = format!("nowhere, for {class}").into();
        Self { rules, class, home, ledger }
    }

    fn done(&self, flops: f64) -> Result<()> {
        self.ledger.add(flops);
        Ok(())
    }
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

    fn slab(&self, _: usize) -> Result<Slab> {
        Ok(Slab::Dry)
    }

    fn pack(&self, layer: Layer, _: Values, bias: Option<Values>) -> Result<Weight> {
        let has_bias = bias.is_some();
        let bytes = match self.rules {
            Rules::Cpu(path) => cpu::cost::packed_bytes(path, layer, has_bias),
        };
        self.ledger.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).weight_bytes += bytes as u64;
        Ok(Weight { layer, has_bias, bytes, home: self.home.clone(), data: WeightData::Dry })
    }

    fn supports(&self, _: Fusion) -> bool {
        match self.rules {
            Rules::Cpu(_) => true,
        }
    }

    fn attention_scratch(&self, p: &Attention) -> usize {
        match self.rules {
            Rules::Cpu(path) => cpu::cost::attention_scratch(path, p),
        }
    }

    fn group_norm_scratch(&self, p: &GroupNorm) -> usize {
        match self.rules {
            Rules::Cpu(_) => cpu::cost::group_norm_scratch(p),
        }
    }

    fn linear(&self, p: Linear, _: &Buffer, _: &Weight, _: &Epilogue, _: &mut Buffer) -> Result<()> {
        self.done(2.0 * f(p.rows) * f(p.out) * f(p.k))
    }

    fn conv2d(&self, p: Conv2d, _: &Buffer, _: &Weight, _: &Epilogue, _: &mut Buffer) -> Result<()> {
        let window = f(p.kernel) * f(p.kernel) * f(p.channels);
        self.done(2.0 * f(p.batch) * f(p.out_height) * f(p.out_width) * f(p.out) * window)
    }

    fn attention(
        &self,
        p: Attention,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &mut Buffer,
        _: &mut Buffer,
    ) -> Result<()> {
        self.done(4.0 * f(p.batch) * f(p.heads) * f(p.queries) * f(p.keys) * f(p.head_dim))
    }

    fn group_norm(&self, _: GroupNorm, _: &Buffer, _: &Weight, _: &mut Buffer, _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn layer_norm(&self, _: LayerNorm, _: &Buffer, _: &Weight, _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn embedding(&self, _: Embedding, _: &Buffer, _: &Weight, _: &Weight, _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn upsample2x(&self, _: Upsample, _: &Buffer, _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn concat_channels(&self, _: Concat, _: &Buffer, _: &Buffer, _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn activate(&self, _: Activate, _: super::Activation, _: &Buffer, _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn add_channels(&self, _: AddChannels, _: &Buffer, _: &Buffer, _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn scale_add(&self, _: ScaleAdd, _: &[Term], _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn cast(&self, _: usize, _: DType, _: &Buffer, _: DType, _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    fn write(&self, _: &[u8], _: &mut Buffer) -> Result<()> {
        self.done(0.0)
    }

    /// Zeros: ids and pixels that every check accepts.
    fn read(&self, _: &Buffer, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        self.done(0.0)
    }

    fn copy(&self, _: &Buffer, _: usize, _: &mut Buffer, _: usize, _: usize) -> Result<()> {
        self.done(0.0)
    }
}
