//! The bindings of an op: ranges of an arena's slab, and weights. A tensor that is too large for one binding is bound
//! in parts.

use super::{
    bound::Bound,
    gpu::Wgpu,
    memory::{STEP, slab},
};
use crate::{
    backend::Buffer,
    error::{Error, Result},
};

impl Wgpu {
    /// The largest binding, in bytes.
    pub(super) fn most(&self) -> usize {
        usize::try_from(self.context.capabilities.binding_bytes).unwrap_or(usize::MAX)
    }

    /// Whether each of these buffers fits into one binding.
    pub(super) fn fit(&self, buffers: &[&Buffer]) -> bool {
        buffers.iter().all(|buffer| buffer.bytes().next_multiple_of(STEP) <= self.most())
    }

    /// Rejects an op whose invocations loop more often than the driver allows.
    pub(super) fn check_turns(&self, turns: u64) -> Result<()> {
        let most = self.context.capabilities.loop_turns;
        if turns <= u64::from(most) {
            return Ok(());
        }
        Err(Error::request(format!("a loop of {turns} iterations on {}", self.class))
            .found(format!("this driver ends invocations after {most} iterations"))
            .hint("a smaller width and height, or another device for this component"))
    }

    /// The number of rows of the largest of `row_bytes` that fit into one binding, wherever they begin.
    pub(super) fn rows_that_fit(&self, row_bytes: usize) -> usize {
        self.most().saturating_sub(2 * STEP) / row_bytes.max(1)
    }

    /// Binds a whole tensor.
    pub(super) fn whole<'a>(&self, buffer: &'a Buffer) -> Result<Bound<'a>> {
        Ok(self.part(buffer, 0, buffer.elements())?.0)
    }

    /// Binds `count` elements from `first` on. Also returns how many elements before `first` the binding begins.
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
