//! Memory of a device, and how it is divided where a tensor is too large for one binding.

use std::sync::Arc;

use super::{bound::Bound, pipeline::Groups};
use crate::backend::Buffer;

/// Bindings may begin at multiples of this many bytes in every driver.
pub const STEP: usize = 256;

/// Memory of the device. When it is dropped, its bind groups are dropped too.
pub struct Memory {
    /// The driver's buffer.
    pub buffer: wgpu::Buffer,
    /// The size that was requested, in bytes.
    pub bytes: usize,
    groups: Arc<Groups>,
}

impl Memory {
    /// Memory whose bind groups are cached in `groups`.
    pub fn new(buffer: wgpu::Buffer, bytes: usize, groups: &Arc<Groups>) -> Self {
        Self { buffer, bytes, groups: groups.clone() }
    }

    /// Binds the whole memory.
    pub fn all(&self) -> Bound<'_> {
        Bound { buffer: &self.buffer, offset: 0, size: self.buffer.size() }
    }

    /// Binds `bytes` from `offset` on, which is a multiple of [`STEP`]. The end is rounded up to a multiple of it.
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

/// The memory that contains a buffer.
pub fn slab(buffer: &Buffer) -> &Memory {
    let memory = buffer.slab().held();
    memory.expect("tensor/ops.rs compares devices: a buffer is in the memory of the device that it reaches")
}

/// Divides `total` into parts of at most `most`, each but the last a multiple of `step`: the start and length of each
/// part.
pub fn parts(total: usize, most: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    let each = if most >= total { total } else { (most / step * step).max(step) };
    (0..total).step_by(each.max(1)).map(move |first| (first, each.min(total - first)))
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
