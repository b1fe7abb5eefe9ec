//! A submitted request, as the caller and as the engine's threads see it.

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
#[expect(clippy::large_enum_variant, reason = "a request has few events, and they are not stored")]
pub enum Event {
    /// The request waits for a replica.
    Queued {
        /// The time of submission.
        at: Instant,
    },
    /// A replica has taken the request: for the first time, or again after a device failed.
    Taken {
        /// The number of the replica, from 0.
        replica: usize,
        /// The number of this try, from 1.
        attempt: usize,
        /// The time of this event.
        at: Instant,
    },
    /// The request made progress.
    Progress(Progress),
    /// A device failed while working on the request, which waits to be tried again.
    Retry {
        /// The error of the device.
        error: Error,
        /// The time of this event.
        at: Instant,
    },
    /// The request is done, or has failed. No event follows.
    Done(Result<Picture>),
}

/// A submitted request: its events, its result, and a way to cancel it. A ticket that is dropped does not cancel its
/// request.
pub struct Ticket {
    pub(super) events: Receiver<Event>,
    pub(super) clock: Clock,
    pub(super) cancel: Canceller,
    /// Whether [`Event::Done`] was received.
    pub(super) done: AtomicBool,
}

impl Ticket {
    /// Waits for the next event; `None` after [`Event::Done`].
    pub fn next(&self) -> Option<Event> {
        self.receive(|events| events.receive().ok_or(RecvTimeoutError::Disconnected)).ok()
    }

    /// The next event, if there already is one.
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

    /// Waits for the result, but no longer than `timeout`. After the timeout, it returns the ticket, and the request
    /// continues. Events that arrive meanwhile are dropped.
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

    /// Asks the request to stop after its current step; it ends with an error of
    /// [`ErrorScope::Interrupted`](crate::error::ErrorScope).
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
    /// Asks the request to stop after its current step. It has no effect once the request is done.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A submitted request, and the function that receives its events.
pub(super) struct Submission {
    pub request: Request,
    pub cancel: Canceller,
    pub events: Box<dyn Fn(Event) + Send + Sync>,
}

impl Submission {
    pub fn send_event(&self, event: Event) {
        (self.events)(event);
    }

    pub fn send_result(&self, result: Result<Picture>) {
        self.send_event(Event::Done(result));
    }
}
