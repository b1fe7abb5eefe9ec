//! The host's memory that copies pass through: a ring, so that whoever enqueues a copy to the device does not wait for it.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::driver::{Context, Event, Memory, Pinned, Stream};
use crate::error::Result;

/// Bytes of a ring.
const RING_BYTES: usize = 16 << 20;
/// The most that goes at once: a quarter, so that filling and copying overlap.
pub const PIECE_BYTES: usize = RING_BYTES / 4;

/// Pinned memory of one queue. Parts are used in turns, and again when their copy is done.
pub struct Ring {
    memory: Pinned,
    next: usize,
    /// What is being copied, the oldest first.
    busy: VecDeque<(Range<usize>, Event)>,
}

impl Ring {
    /// An empty one.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Self { memory: Pinned::new(context, RING_BYTES)?, next: 0, busy: VecDeque::new() })
    }

    /// Enqueues a copy of `bytes`, [`PIECE_BYTES`] at most, that `fill` writes, to byte `at` of `to`.
    pub fn upload(
        &mut self,
        stream: &Stream,
        bytes: usize,
        (to, at): (&Memory, usize),
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        assert!(bytes <= PIECE_BYTES, "pieces are cut by the caller");
        let start = if self.next + bytes > RING_BYTES { 0 } else { self.next };
        let range = start..start + bytes;
        while self.busy.iter().any(|(busy, _)| overlap(busy, &range)) {
            // Copies end in order. One that cannot be waited for stays busy.
            self.busy.front().expect("one of them overlaps").1.synchronize()?;
            self.busy.pop_front();
        }
        fill(&mut self.memory.as_mut()[range.clone()])?;
        stream.upload(&self.memory, range.clone(), to, at)?;
        self.busy.push_back((range, stream.record()?));
        self.next = start + bytes.next_multiple_of(64);
        Ok(())
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}
