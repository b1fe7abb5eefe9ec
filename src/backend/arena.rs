//! One slab of memory, handed out in ranges. The same code serves every backend and the planner, so planned bytes are
//! measured bytes.
//!
//! Best fit among the holes, ties by offset; a range is put at the top only if no hole holds it. The top is never
//! compared with the holes, so the capacity decides whether an allocation succeeds and never where it lies: a dry run
//! without a limit and a real run in exactly its peak make the same choices.

use std::{
    any::Any,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{dtype::DType, id::DeviceId};
use crate::error::{Error, Result};

/// Every range starts at a multiple of this, which suits vector loads and GPU bindings.
pub const ALIGNMENT: usize = 256;

/// Rounds up to [`ALIGNMENT`]: what an allocation of `bytes` really takes. Saturates where no memory could hold it.
pub const fn aligned(bytes: usize) -> usize {
    match bytes.checked_next_multiple_of(ALIGNMENT) {
        Some(bytes) => bytes,
        None => usize::MAX,
    }
}

/// The memory that an arena divides into ranges.
#[derive(Clone)]
pub(crate) enum Slab {
    /// Memory in a form that only its backend knows.
    Held(Arc<dyn Any + Send + Sync>),
    /// No memory: only its size is known.
    Dry,
}

impl Slab {
    /// The backend's own form of the memory; `None` if it has another type, or if there is no memory.
    pub fn held<T: Any>(&self) -> Option<&T> {
        match self {
            Self::Held(memory) => memory.downcast_ref(),
            Self::Dry => None,
        }
    }
}

/// A slab and the list of its free ranges. Clones share both.
#[derive(Clone)]
pub(crate) struct Arena(Arc<Inner>);

struct Inner {
    device: DeviceId,
    name: &'static str,
    slab: Slab,
    capacity: usize,
    state: Mutex<State>,
}

/// A range of an arena's slab. It returns to the arena on drop.
pub(crate) struct Buffer {
    arena: Arena,
    offset: usize,
    bytes: usize,
    dtype: DType,
}

/// The free ranges below `top`; everything above `top` is free.
#[derive(Default)]
struct State {
    /// Free ranges as `(offset, bytes)`, sorted by offset, never adjacent to each other or to `top`.
    holes: Vec<(usize, usize)>,
    top: usize,
    peak: usize,
    live: usize,
}

impl State {
    /// Takes the best-fitting hole, or else a range at the top.
    fn take(&mut self, bytes: usize, capacity: usize) -> Option<usize> {
        let best = (0..self.holes.len()).filter(|&i| self.holes[i].1 >= bytes).min_by_key(|&i| self.holes[i].1);
        let offset = match best {
            Some(i) => {
                let (offset, hole) = self.holes[i];
                if hole == bytes {
                    self.holes.remove(i);
                } else {
                    self.holes[i] = (offset + bytes, hole - bytes);
                }
                offset
            }
            None => {
                let end = self.top.checked_add(bytes).filter(|&end| end <= capacity)?;
                std::mem::replace(&mut self.top, end)
            }
        };
        self.live += 1;
        self.peak = self.peak.max(self.top);
        Some(offset)
    }

    /// Joins the range with its neighbours, the top included.
    fn give_back(&mut self, mut offset: usize, mut bytes: usize) {
        self.live -= 1;
        let mut i = self.holes.partition_point(|hole| hole.0 < offset);
        if i < self.holes.len() && offset + bytes == self.holes[i].0 {
            bytes += self.holes.remove(i).1;
        }
        if i > 0 && self.holes[i - 1].0 + self.holes[i - 1].1 == offset {
            i -= 1;
            let left = self.holes.remove(i);
            (offset, bytes) = (left.0, left.1 + bytes);
        }
        if offset + bytes == self.top {
            self.top = offset;
        } else {
            self.holes.insert(i, (offset, bytes));
        }
    }
}

impl Arena {
    /// An arena over `slab`, which holds `capacity` bytes. `name` is the arena's purpose, for messages.
    pub(super) fn new(device: DeviceId, name: &'static str, slab: Slab, capacity: usize) -> Self {
        Self(Arc::new(Inner { device, name, slab, capacity, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the list half-changed: nothing in this file panics between two writes.
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A range of `bytes` with unspecified contents, for elements of `dtype`.
    ///
    /// # Errors
    /// If the arena has no room: the request is larger than what the plan was made for.
    pub fn alloc(&self, bytes: usize, dtype: DType) -> Result<Buffer> {
        let mut state = self.state();
        // An empty tensor gets an address of its own as well.
        let Some(offset) = state.take(aligned(bytes.max(1)), self.0.capacity) else {
            let (used, capacity) = (state.top, self.0.capacity);
            return Err(Error::request(format!(
                "{}: the {} arena is full: {bytes} bytes are requested, and {used} of {capacity} are in use",
                self.0.device, self.0.name
            ))
            .hint("plan for a larger request"));
        };
        Ok(Buffer { arena: self.clone(), offset, bytes, dtype })
    }

    /// The most that was ever in use: the arena's planned and measured size, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.state().peak
    }

    /// The number of ranges in use.
    pub fn live(&self) -> usize {
        self.state().live
    }
}

impl Buffer {
    /// The size that was requested, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The type of the elements: ops read and write the buffer in this type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of elements.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub fn elements(&self) -> usize {
        self.bytes / self.dtype.size()
    }

    /// The memory that contains this range.
    pub(super) fn slab(&self) -> &Slab {
        &self.arena.0.slab
    }

    /// The offset in the slab, in bytes.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.arena.state().give_back(self.offset, aligned(self.bytes.max(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(capacity: usize) -> Arena {
        Arena::new(DeviceId::CPU, "test", Slab::Dry, capacity)
    }

    #[test]
    fn the_smallest_hole_that_fits_is_taken_before_the_top() {
        let arena = arena(usize::MAX);
        let mut buffers: Vec<_> =
            [1024, 256, 512, 256, 256].iter().map(|&n| Some(arena.alloc(n, DType::F32).unwrap())).collect();
        let (large, small) = (buffers[0].as_ref().unwrap().offset(), buffers[2].as_ref().unwrap().offset());
        (buffers[0], buffers[2]) = (None, None);
        assert_eq!(arena.alloc(300, DType::F32).unwrap().offset(), small);
        assert_eq!(arena.alloc(600, DType::F32).unwrap().offset(), large);
        assert_eq!(arena.alloc(1025, DType::F32).unwrap().offset(), 2304, "no hole is large enough");
    }

    #[test]
    fn freed_neighbours_become_one_hole_and_holes_at_the_end_are_given_up() {
        let arena = arena(usize::MAX);
        let mut buffers: Vec<_> = (0..4).map(|_| Some(arena.alloc(256, DType::F32).unwrap())).collect();
        (buffers[0], buffers[2], buffers[1]) = (None, None, None);
        assert_eq!(arena.alloc(768, DType::F32).unwrap().offset(), 0);
        buffers.clear();
        assert_eq!(arena.live(), 0);
        assert_eq!(arena.alloc(4096, DType::F32).unwrap().offset(), 0, "all free again");
        assert_eq!(arena.peak_bytes(), 4096);
    }

    /// The invariant that makes planned bytes measured bytes.
    #[test]
    fn the_capacity_decides_whether_a_block_fits_and_not_where_it_lies() {
        let mut seed = 1u64;
        let mut next = |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        let script: Vec<(bool, usize)> = (0..5000).map(|_| (next(5) < 3, next(5000))).collect();
        let run = |arena: &Arena| {
            let (mut live, mut offsets) = (Vec::new(), Vec::new());
            for &(alloc, n) in &script {
                if alloc {
                    let buffer = arena.alloc(n, DType::F32).unwrap();
                    offsets.push(buffer.offset());
                    live.push(buffer);
                } else if !live.is_empty() {
                    live.swap_remove(n % live.len());
                }
            }
            let mut ranges: Vec<_> =
                live.iter().map(|b| (b.offset(), b.offset() + aligned(b.bytes().max(1)))).collect();
            ranges.sort();
            assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0), "live ranges overlap");
            offsets
        };
        let free = arena(usize::MAX);
        let offsets = run(&free);
        let tight = arena(free.peak_bytes());
        assert_eq!(run(&tight), offsets);
        assert_eq!(tight.peak_bytes(), free.peak_bytes());
    }

    #[test]
    fn a_full_arena_is_named_in_the_error() {
        let arena = arena(1024);
        let _held = arena.alloc(1000, DType::F32).unwrap();
        let error = arena.alloc(1, DType::F32).err().unwrap().to_string();
        assert!(error.contains("test arena is full"), "{error}");
    }
}
