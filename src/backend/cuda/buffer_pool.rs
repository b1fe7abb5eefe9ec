//! Memory for offloaded weights, kept from one use to the next: whoever asks the driver for memory, or gives some back,
//! waits for all that the GPU has to do.

use std::collections::VecDeque;

use super::{
    driver::{Event, Memory, Stream},
    queue::Queue,
};
use crate::error::Result;

/// Buffers of offloaded weights that were evicted, kept on one device for the next ones of the same size.
#[derive(Default)]
pub struct BufferPool {
    /// With the end of what used it; who left first comes first.
    left: VecDeque<(Memory, Event)>,
    here_bytes: usize,
    /// The most that was here at one time, for which a plan has room: with what is kept there is never more.
    most_bytes: usize,
}

impl BufferPool {
    /// Memory of `bytes` that `copy` may fill from here on.
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

    /// Takes memory back that was given, whose last use `compute` has been asked for.
    pub fn give_back(&mut self, memory: Memory, compute: &Queue) {
        self.here_bytes -= memory.bytes();
        // A device that cannot say when has failed: then there is nothing to keep.
        if let Ok(last_use) = compute.stream().and_then(Stream::record) {
            self.left.push_back((memory, last_use));
        }
    }

    /// Gives what is kept to the driver; false if there was nothing.
    pub fn clear(&mut self) -> bool {
        !std::mem::take(&mut self.left).is_empty()
    }
}
