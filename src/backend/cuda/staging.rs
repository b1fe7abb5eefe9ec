//! Host memory for copies: a ring, so that the thread that enqueues a copy to the device does not wait for it.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::driver::{Context, Event, Memory, Pinned, Stream};
use crate::error::Result;

/// The size of a ring, in bytes.
const RING_BYTES: usize = 16 << 20;
/// The largest size of one copy: a quarter of the ring, so that filling and copying overlap.
pub const PIECE_BYTES: usize = RING_BYTES / 4;

/// The pinned memory of one queue. Its parts are used in turn, and reused when their copy is done.
pub struct Ring {
    memory: Pinned,
    next: usize,
    /// The parts that are being copied, the oldest first.
    busy: VecDeque<(Range<usize>, Event)>,
}

impl Ring {
    /// A ring without memory, which is allocated by the first copy.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Self { memory: Pinned::new(context, RING_BYTES)?, next: 0, busy: VecDeque::new() })
    }

    /// Enqueues a copy of `bytes`, at most [`PIECE_BYTES`], which `fill` writes, to byte `at` of `to`.
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
            // Copies end in order. A part whose copy cannot be waited for stays in use.
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
