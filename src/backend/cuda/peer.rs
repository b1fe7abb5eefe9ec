//! Links between GPUs, used only after a test has copied data over them unchanged: some boards report a link that
//! corrupts data.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::driver::{Context, Memory, Pinned, Stream};
use crate::{backend::DeviceId, error::Result};

/// Bytes that are sent in each direction at the same time to test a link: more than what a driver may copy through the
/// host on its own.
const TRIAL_BYTES: usize = 3 << 20;

/// The way in which two GPUs exchange data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Directly from memory to memory.
    Direct,
    /// Through the host, because there is no link.
    None,
    /// Through the host, because the driver reports a link that corrupts data.
    Corrupt,
}

/// The link between two GPUs, which is tested when it is first used.
///
/// # Errors
/// If one of them fails.
pub fn link(a: &Arc<Context>, b: &Arc<Context>) -> Result<Link> {
    static LINKS: Mutex<Option<HashMap<(DeviceId, DeviceId), Link>>> = Mutex::new(None);
    let key = (a.id.min(b.id), a.id.max(b.id));
    let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
    let links = links.get_or_insert_default();
    if let Some(link) = links.get(&key) {
        return Ok(*link);
    }
    let link = if a.id == b.id {
        Link::Direct
    } else if !(a.reach(b)? && b.reach(a)?) {
        Link::None
    } else if delivers(a, b)? {
        Link::Direct
    } else {
        tracing::warn!(
            "{} and {}: the driver reports a link that corrupts data; copies go through the host",
            a.id,
            b.id
        );
        Link::Corrupt
    };
    tracing::debug!("{} and {}: {link:?}", a.id, b.id);
    links.insert(key, link);
    Ok(link)
}

/// Whether data that both GPUs send to each other at the same time arrives unchanged.
fn delivers(a: &Arc<Context>, b: &Arc<Context>) -> Result<bool> {
    let mut ends = [End::new(a, 1)?, End::new(b, 2)?];
    if let Err(error) = exchange(&ends) {
        // A copy that cannot be waited for may still write, so this memory is never freed.
        std::mem::forget(ends);
        return Err(error);
    }
    let [first, second] = &mut ends;
    Ok(first.has(2)? && second.has(1)?)
}

/// Sends the data of each GPU to the other, and waits for both.
fn exchange([first, second]: &[End; 2]) -> Result<()> {
    first.stream.send((&first.sent, 0), (&second.received, 0), TRIAL_BYTES)?;
    second.stream.send((&second.sent, 0), (&first.received, 0), TRIAL_BYTES)?;
    first.stream.synchronize()?;
    second.stream.synchronize()
}

/// One of the two GPUs of a test.
struct End {
    stream: Stream,
    host: Pinned,
    sent: Memory,
    received: Memory,
}

/// Writes bytes that differ for every position and sender.
fn pattern(seed: u8, to: &mut [u8]) {
    let mut state = u32::from(seed);
    for word in to.chunks_exact_mut(4) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word.copy_from_slice(&state.to_le_bytes());
    }
}

impl End {
    fn new(context: &Arc<Context>, seed: u8) -> Result<Self> {
        let (stream, mut host) = (Stream::new(context)?, Pinned::new(context, TRIAL_BYTES)?);
        let (sent, received) = (Memory::new(context, TRIAL_BYTES)?, Memory::new(context, TRIAL_BYTES)?);
        pattern(seed, host.as_mut());
        stream.upload(&host, 0..TRIAL_BYTES, &sent, 0)?;
        stream.synchronize()?;
        // The buffer is cleared, so that bytes that did not arrive are not mistaken for bytes that did.
        host.as_mut().fill(0);
        stream.upload(&host, 0..TRIAL_BYTES, &received, 0)?;
        stream.synchronize()?;
        Ok(Self { stream, host, sent, received })
    }

    fn has(&mut self, seed: u8) -> Result<bool> {
        self.stream.download(&self.received, 0, TRIAL_BYTES, &mut self.host)?;
        self.stream.synchronize()?;
        let mut want = vec![0; TRIAL_BYTES];
        pattern(seed, &mut want);
        Ok(self.host.as_mut() == want)
    }
}
