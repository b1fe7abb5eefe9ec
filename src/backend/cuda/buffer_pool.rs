//! Memory for offloaded weights, kept from one use to the next: the driver's functions that allocate or free memory
//! wait for all pending work of the GPU.

use std::collections::VecDeque;

use super::{
    driver::{Event, Memory, Stream},
    queue::Queue,
};
use crate::error::Result;

/// Buffers of evicted offloaded weights, kept on one device for the next weights of the same size.
#[derive(Default)]
pub struct BufferPool {
    /// Buffers with the event at the end of their last use, the oldest first.
    left: VecDeque<(Memory, Event)>,
    here_bytes: usize,
    /// The most bytes in use at one time, which the plan has counted: buffers in use and kept ones never exceed it.
    most_bytes: usize,
}

impl BufferPool {
    /// Takes memory of `bytes` that the copy queue `copy` may fill from here on.
    ///
    /// # Errors
    /// If the device has no room, or fails.
    pub fn take(&mut self, copy: &Stream, bytes: usize) -> Result<Memory> {
        let memory = match self.left.iter().position(|(memory, _)| memory.bytes() == bytes) {
            Some(i) => {
                let (memory, last_use) = self.left.remove(i).expect("it was found");
                copy.wait(&last_use)?;
                memory
            }
            None => {
                let most = self.most_bytes.max(self.here_bytes + bytes);
                let mut kept: usize = self.left.iter().map(|(memory, _)| memory.bytes()).sum();
                while self.here_bytes + bytes + kept > most {
                    kept -= self.left.pop_front().map_or(0, |(memory, _)| memory.bytes());
                }
                Memory::new(copy.context(), bytes)?
            }
        };
        self.here_bytes += bytes;
        self.most_bytes = self.most_bytes.max(self.here_bytes);
        Ok(memory)
    }

    /// Takes a buffer back whose last use has been enqueued on `compute`.
    pub fn give_back(&mut self, memory: Memory, compute: &Queue) {
        self.here_bytes -= memory.bytes();
        // If the event cannot be recorded, the device has failed, and there is nothing to keep.
        if let Ok(last_use) = compute.stream().and_then(Stream::record) {
            self.left.push_back((memory, last_use));
        }
    }

    /// Frees the kept buffers; false if there were none.
    pub fn clear(&mut self) -> bool {
        !std::mem::take(&mut self.left).is_empty()
    }
}
