//! A submitted request: what its sender holds, and what the engine's threads hold.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::RecvTimeoutError,
    },
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    pipeline::{Picture, Progress, request::Request},
    sync::{Clock, Receiver},
};

/// What happens to a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// It waits for a replica.
    Queued {
        /// When it was submitted.
        at: Instant,
    },
    /// A replica has taken it: for the first time, or again after a device failed.
    Taken {
        /// Which replica, counted from 0.
        replica: usize,
        /// Which try this is, counted from 1.
        attempt: usize,
        /// When.
        at: Instant,
    },
    /// It made progress.
    Progress(Progress),
    /// A device failed while it was worked on, and it waits to be tried again.
    Retry {
        /// How the device failed.
        error: Error,
        /// When.
        at: Instant,
    },
    /// It is done, or it failed. No event follows.
    Done(Result<Picture>),
}

/// A submitted request: its events, its result, and a way to cancel it. A ticket that is dropped does not cancel its
/// request.
pub struct Ticket {
    pub(super) events: Receiver<Event>,
    pub(super) clock: Clock,
    pub(super) cancel: Canceller,
    /// [`Event::Done`] was received.
    pub(super) done: AtomicBool,
}

impl Ticket {
    /// Waits for the next event; `None` after [`Event::Done`].
    pub fn next(&self) -> Option<Event> {
        self.receive(|events| events.receive().ok_or(RecvTimeoutError::Disconnected)).ok()
    }

    /// The next event, if there is one already.
    ///
    /// # Errors
    /// `Timeout` if there is none yet, `Disconnected` after [`Event::Done`].
    pub fn try_next(&self) -> Result<Event, RecvTimeoutError> {
        self.next_timeout(Duration::ZERO)
    }

    /// Waits for the next event, but no longer than `timeout`.
    ///
    /// # Errors
    /// `Timeout` if there was none within that time, `Disconnected` after [`Event::Done`].
    pub fn next_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        self.receive(|events| events.receive_before(self.clock.now() + timeout))
    }

    fn receive(
        &self,
        receive: impl FnOnce(&Receiver<Event>) -> Result<Event, RecvTimeoutError>,
    ) -> Result<Event, RecvTimeoutError> {
        if self.done.load(Ordering::Relaxed) {
            return Err(RecvTimeoutError::Disconnected);
        }
        let event = receive(&self.events)?;
        self.done.fetch_or(matches!(event, Event::Done(_)), Ordering::Relaxed);
        Ok(event)
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// If the request failed or was cancelled.
    pub fn wait(self) -> Result<Picture> {
        while let Some(event) = self.next() {
            if let Event::Done(result) = event {
                return result;
            }
        }
        Err(Error::process("the engine stopped before the request was done"))
    }

    /// Waits for the result, but no longer than `timeout`; then the ticket comes back, and the request goes on. Events
    /// that arrive meanwhile are dropped.
    ///
    /// # Errors
    /// The ticket, if the request was not done within that time.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<Picture>, Self> {
        let deadline = self.clock.now() + timeout;
        loop {
            match self.events.receive_before(deadline) {
                Ok(Event::Done(result)) => return Ok(result),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(self),
                Err(RecvTimeoutError::Disconnected) => return Ok(self.wait()),
            }
        }
    }

    /// Asks the request to stop after its current step; it ends with an error of [`Scope::Interrupted`](crate::error::Scope).
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// A handle that cancels the request from another thread, while this one waits.
    pub fn canceller(&self) -> Canceller {
        self.cancel.clone()
    }
}

/// Cancels a request; see [`Ticket::canceller`].
#[derive(Debug, Clone, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Asks the request to stop after its current step. Without effect once it is done.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request and whom to tell.
pub(super) struct Job {
    pub request: Request,
    pub cancel: Canceller,
    pub events: Box<dyn Fn(Event) + Send + Sync>,
}

impl Job {
    pub fn tell(&self, event: Event) {
        (self.events)(event);
    }

    pub fn end(&self, result: Result<Picture>) {
        self.tell(Event::Done(result));
    }
}
