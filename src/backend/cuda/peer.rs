//! Links between GPUs, trusted once data has gone through them unchanged: some boards report a link that delivers
//! something else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::driver::{Context, Memory, Pinned, Stream};
use crate::{backend::DeviceId, error::Result};

/// Bytes that are sent each way at the same time to try a link out: more than what a driver may put through the host by
/// itself.
const TRIAL_BYTES: usize = 3 << 20;

/// What is known of the way between two GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// From memory to memory.
    Direct,
    /// Through the host: there is no link.
    None,
    /// Through the host: the driver reports a link, which does not deliver what was sent.
    Corrupt,
}

/// The way between two GPUs, tried out the first time.
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

/// Whether what both send to each other at the same time arrives.
fn delivers(a: &Arc<Context>, b: &Arc<Context>) -> Result<bool> {
    let mut ends = [End::new(a, 1)?, End::new(b, 2)?];
    if let Err(error) = exchange(&ends) {
        // A copy that cannot be waited for may still write: nobody else gets this memory.
        std::mem::forget(ends);
        return Err(error);
    }
    let [first, second] = &mut ends;
    Ok(first.has(2)? && second.has(1)?)
}

/// Sends what each has to the other, and waits for both.
fn exchange([first, second]: &[End; 2]) -> Result<()> {
    first.stream.send((&first.sent, 0), (&second.received, 0), TRIAL_BYTES)?;
    second.stream.send((&second.sent, 0), (&first.received, 0), TRIAL_BYTES)?;
    first.stream.synchronize()?;
    second.stream.synchronize()
}

/// One of two GPUs that try a link out.
struct End {
    stream: Stream,
    host: Pinned,
    sent: Memory,
    received: Memory,
}

/// Bytes that no other position and no other sender has by accident.
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
        // What was never delivered is not taken for what was sent.
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
