//! What an op binds: ranges of an arena's slab, and weights. A tensor that cannot be bound at once is bound in parts.

use std::sync::Arc;

use super::{Wgpu, pipeline::Groups};
use crate::{
    backend::{Buffer, Slab},
    error::{Error, Result},
};

/// Where a binding may begin in every driver, in bytes.
pub const STEP: usize = 256;

/// Memory of the device. Nothing that was bound outlives it.
pub struct Memory {
    /// The driver's buffer.
    pub buffer: wgpu::Buffer,
    /// Its size as asked for, in bytes.
    pub bytes: usize,
    groups: Arc<Groups>,
}

impl Memory {
    /// Memory that `groups` may bind.
    pub fn new(buffer: wgpu::Buffer, bytes: usize, groups: &Arc<Groups>) -> Self {
        Self { buffer, bytes, groups: groups.clone() }
    }

    /// All of it.
    pub fn all(&self) -> Bound<'_> {
        Bound { buffer: &self.buffer, offset: 0, size: self.buffer.size() }
    }

    /// `bytes` from `offset` on, a multiple of [`STEP`], and what is left of the last step.
    pub fn range(&self, offset: usize, bytes: usize) -> Bound<'_> {
        let (offset, end) = (offset as u64, (offset + bytes).next_multiple_of(STEP) as u64);
        Bound { buffer: &self.buffer, offset, size: end.min(self.buffer.size()) - offset }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.groups.clear();
    }
}

/// A range of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    /// The buffer.
    pub buffer: &'a wgpu::Buffer,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size, in bytes.
    pub size: u64,
}

/// The memory of an arena's range.
pub fn slab(buffer: &Buffer) -> &Memory {
    match buffer.slab() {
        Slab::Gpu(slab) => slab.downcast_ref(),
        _ => None,
    }
    .expect("tensor/ops.rs compares devices: a buffer is in the memory of the device that it reaches")
}

/// `total` of something in parts of at most `most`, each but the last a multiple of `step`: where each begins and how
/// many it has.
pub fn parts(total: usize, most: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    let each = if most >= total { total } else { (most / step * step).max(step) };
    (0..total).step_by(each.max(1)).map(move |first| (first, each.min(total - first)))
}

impl Wgpu {
    /// The most that can be bound at once, in bytes.
    pub(super) fn most(&self) -> usize {
        usize::try_from(self.context.capabilities.binding_bytes).unwrap_or(usize::MAX)
    }

    /// Whether all of these can be bound at once.
    pub(super) fn fit(&self, buffers: &[&Buffer]) -> bool {
        buffers.iter().all(|buffer| buffer.bytes().next_multiple_of(STEP) <= self.most())
    }

    /// Refuses an op whose invocations take longer than the driver lets them.
    pub(super) fn check_turns(&self, turns: u64) -> Result<()> {
        let most = self.context.capabilities.loop_turns;
        if turns <= u64::from(most) {
            return Ok(());
        }
        Err(Error::request(format!("a sum of {turns} turns on {}", self.class))
            .found(format!("this driver ends invocations after {most} turns"))
            .hint("a smaller width and height, or another device for this component"))
    }

    /// How many rows of the largest of `row_bytes` can be bound at once, wherever they begin.
    pub(super) fn rows_that_fit(&self, row_bytes: usize) -> usize {
        self.most().saturating_sub(2 * STEP) / row_bytes.max(1)
    }

    /// All of a tensor.
    pub(super) fn whole<'a>(&self, buffer: &'a Buffer) -> Result<Bound<'a>> {
        Ok(self.part(buffer, 0, buffer.elements())?.0)
    }

    /// `count` elements from `first` on, and how many elements before them the binding begins.
    pub(super) fn part<'a>(&self, buffer: &'a Buffer, first: usize, count: usize) -> Result<(Bound<'a>, u32)> {
        let size = buffer.dtype().size();
        let start = first * size / STEP * STEP;
        let end = ((first + count) * size).max(1).next_multiple_of(STEP);
        if end - start > self.most() {
            return Err(Error::request(format!("{} bytes of a tensor at once on {}", end - start, self.class))
                .found(format!("the driver goes up to {} bytes", self.most()))
                .hint("a smaller width and height, or another device for this component"));
        }
        let bound = slab(buffer).range(buffer.offset() + start, end - start);
        Ok((bound, (first - start / size) as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once_and_begin_at_steps() {
        for (total, most, step) in [(1, 1, 1), (10, 100, 64), (1000, 130, 64), (1000, 3, 128), (129, 128, 128)] {
            let parts: Vec<_> = parts(total, most, step).collect();
            assert_eq!(parts.iter().map(|part| part.1).sum::<usize>(), total);
            let mut next = 0;
            for (first, count) in parts {
                assert!(first == next && first % step == 0 && (count <= most.max(step)) && count > 0);
                next = first + count;
            }
        }
    }
}
