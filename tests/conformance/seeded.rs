//! A CPU whose `linear` has one fault: what the checks are for.

use std::sync::Mutex;

use sdshard::{
    backend::{
        Activation, Backend, Buffer, DType, Epilogue, Fusion, Layer, Slab, Term, Values, Weight,
        cpu::{
            Cpu,
            memory::{read, write},
        },
        params::*,
    },
    error::Result,
};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Nothing.
    Sound,
    /// A product of one row adds up the two halves of k apart: as good a sum, in another order.
    OneRowInHalves,
    /// The last element is not written.
    MissingElement,
    /// One element is written beyond the last.
    StrayElement,
}

/// The CPU with a fault.
pub struct Seeded {
    cpu: Cpu,
    fault: Fault,
    /// The weight packed last, as its file has it.
    weight: Mutex<Vec<f32>>,
}

impl Seeded {
    pub fn new(cpu: Cpu, fault: Fault) -> Self {
        Self { cpu, fault, weight: Mutex::default() }
    }
}

impl Backend for Seeded {
    fn linear(
        &self,
        p: Linear,
        x: &Buffer,
        w: &Weight,
        e: &Epilogue,
        scratch: Option<&mut Buffer>,
        out: &mut Buffer,
    ) -> Result<()> {
        let last = write::<f32>(out).last().copied();
        self.cpu.linear(p, x, w, e, scratch, out)?;
        let out = write::<f32>(out);
        match self.fault {
            Fault::OneRowInHalves if p.rows == 1 => {
                let (k, weight) = (p.k as usize, self.weight.lock().unwrap());
                let sum = |range: std::ops::Range<usize>, column: usize| {
                    let pairs = read::<f32>(x)[range.clone()].iter().zip(&weight[column * k..][range]);
                    pairs.fold(0.0, |sum, (x, w)| sum + x * w)
                };
                for (column, out) in out.iter_mut().enumerate() {
                    *out = sum(0..k / 2, column) + sum(k / 2..k, column);
                }
            }
            Fault::MissingElement => *out.last_mut().unwrap() = last.unwrap(),
            // SAFETY: the cases' outputs end before a multiple of the arena's alignment, so this is the range's padding.
            Fault::StrayElement => unsafe { *out.as_mut_ptr().add(out.len()) = 1.0 },
            Fault::OneRowInHalves | Fault::Sound => {}
        }
        Ok(())
    }

    fn computes_in(&self, dtype: DType) -> bool {
        self.cpu.computes_in(dtype)
    }

    fn packed_bytes(&self, layer: Layer, dtype: DType, has_bias: bool) -> usize {
        self.cpu.packed_bytes(layer, dtype, has_bias)
    }

    fn fetch(&self, resting: &Weight) -> Result<Weight> {
        self.cpu.fetch(resting)
    }

    fn pack(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Weight> {
        if let Values::Data { dtype: DType::F32, bytes } = weight {
            *self.weight.lock().unwrap() =
                bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
        }
        self.cpu.pack(layer, dtype, weight, bias)
    }

    fn class(&self) -> &str {
        self.cpu.class()
    }
    fn weight_home(&self) -> &str {
        self.cpu.weight_home()
    }
    fn slab(&self, bytes: usize) -> Result<Slab> {
        self.cpu.slab(bytes)
    }
    fn supports(&self, fusion: Fusion) -> bool {
        self.cpu.supports(fusion)
    }
    fn product_scratch(&self, rows: u32, out: u32, k: u32) -> usize {
        self.cpu.product_scratch(rows, out, k)
    }
    fn attention_scratch(&self, p: &Attention) -> usize {
        self.cpu.attention_scratch(p)
    }
    fn group_norm_scratch(&self, p: &GroupNorm) -> usize {
        self.cpu.group_norm_scratch(p)
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
        self.cpu.conv2d(p, x, w, e, scratch, out)
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
        self.cpu.attention(p, q, k, v, scratch, out)
    }
    fn group_norm(&self, p: GroupNorm, x: &Buffer, w: &Weight, scratch: &mut Buffer, out: &mut Buffer) -> Result<()> {
        self.cpu.group_norm(p, x, w, scratch, out)
    }
    fn layer_norm(&self, p: LayerNorm, x: &Buffer, w: &Weight, out: &mut Buffer) -> Result<()> {
        self.cpu.layer_norm(p, x, w, out)
    }
    fn embedding(
        &self,
        p: Embedding,
        ids: &Buffer,
        table: &Weight,
        positions: &Weight,
        out: &mut Buffer,
    ) -> Result<()> {
        self.cpu.embedding(p, ids, table, positions, out)
    }
    fn upsample2x(&self, p: Upsample, x: &Buffer, out: &mut Buffer) -> Result<()> {
        self.cpu.upsample2x(p, x, out)
    }
    fn concat_channels(&self, p: Concat, a: &Buffer, b: &Buffer, out: &mut Buffer) -> Result<()> {
        self.cpu.concat_channels(p, a, b, out)
    }
    fn activate(&self, p: Activate, activation: Activation, x: &Buffer, out: &mut Buffer) -> Result<()> {
        self.cpu.activate(p, activation, x, out)
    }
    fn add_channels(&self, p: AddChannels, x: &Buffer, per_channel: &Buffer, out: &mut Buffer) -> Result<()> {
        self.cpu.add_channels(p, x, per_channel, out)
    }
    fn scale_add(&self, p: ScaleAdd, terms: &[Term], out: &mut Buffer) -> Result<()> {
        self.cpu.scale_add(p, terms, out)
    }
    fn cast(&self, x: &Buffer, out: &mut Buffer) -> Result<()> {
        self.cpu.cast(x, out)
    }
    fn write(&self, bytes: &[u8], out: &mut Buffer) -> Result<()> {
        self.cpu.write(bytes, out)
    }
    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()> {
        self.cpu.read(x, bytes)
    }
    fn copy(&self, x: &Buffer, from: usize, out: &mut Buffer, to: usize, bytes: usize) -> Result<()> {
        self.cpu.copy(x, from, out, to, bytes)
    }
}
