//! The worker threads of the engine: they take requests from the queue, make their pictures, and report exactly one
//! result for each.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    pool::WorkerPool,
    queue::{Claim, Fallout, Gone, Next, Noticed, Queue, Worker},
    ticket::{Event, Submission},
    watch::{Silent, Watch},
};
use crate::{
    backend::DeviceId,
    error::{Error, ErrorScope, Result},
    models::component::Stage,
    pipeline::{Picture, Pipeline, Progress, Slot, request::Request},
    sync::Clock,
};

/// State that all threads of an engine share, for all plans.
pub(super) struct Core {
    pub queue: Queue<Arc<Submission>>,
    pub watch: Watch,
    pub clock: Clock,
    /// The error that caused the loss of the last replica.
    pub last_error: Mutex<String>,
}

/// The pipeline of a worker thread, with the thread's own slots.
pub(super) struct WorkerPipeline<'a> {
    pub pipeline: &'a Pipeline,
    pub slots: &'a [Slot],
}

impl Core {
    /// The error of a request when no replica is left.
    pub(super) fn no_replica(&self) -> Error {
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        let error = Error::request("engine: no replica is left");
        if last.is_empty() { error } else { error.found(format!("the last one was lost because of {last}")) }
    }

    /// Handles devices that failed during a claim: replicas that use them are lost, and each request of the claim's
    /// thread gets another try or its error.
    fn handle_lost_devices(
        &self,
        pool: &WorkerPool,
        claim: u64,
        devices: &[DeviceId],
        error: Error,
        noticed: Noticed,
    ) -> Result<(), Gone> {
        pool.gates.lose(devices);
        let Fallout { jobs, lost_replicas, unassigned } = self.queue.fail(claim, devices, noticed)?;
        if !lost_replicas.is_empty() {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
            tracing::error!("{error}; lost replicas: {lost_replicas:?}");
        }
        for (job, next) in jobs {
            let error = error.duplicate();
            match next {
                Next::Retry => job.send_event(Event::Retry { error, at: self.clock.now() }),
                Next::NoReplica => job.send_result(Err(error)),
                Next::TooOften => job.send_result(Err(error.context("all tries failed"))),
                Next::Suspect => job.send_result(Err(error.context(
                    "a second device failed under this request, which may be the cause and is not tried again",
                ))),
            }
        }
        unassigned.into_iter().for_each(|job| job.send_result(Err(self.no_replica())));
        Ok(())
    }

    /// Reports the result of a claim, or starts another try.
    fn report_result(
        &self,
        claim: &Claim<Arc<Submission>>,
        pool: &WorkerPool,
        result: Result<Picture>,
    ) -> Result<(), Gone> {
        let scope = result.as_ref().err().map(|error| error.scope().clone());
        match (result, scope) {
            (Err(error), Some(ErrorScope::Device(device))) => {
                self.handle_lost_devices(pool, claim.number, &[device], error, Noticed::ByError)
            }
            (result, scope) => {
                self.queue.finish(claim.number)?;
                claim.job.send_result(result);
                if scope == Some(ErrorScope::Process) {
                    let error = || Error::process("the engine stopped after another request's failure");
                    self.queue.stop().into_iter().for_each(|job| job.send_result(Err(error())));
                }
                Ok(())
            }
        }
    }
}

/// The watchdog thread: takes the claims of threads that have been silent for too long.
pub(super) fn watch(core: &Arc<Core>) {
    while let Some(Silent { pool, claim, arrival, devices, patience }) = core.watch.next_silent() {
        let Some(first) = devices.first() else { continue };
        let error = Error::device(*first, format!("it made no progress for {} s", patience.as_secs()));
        // Other requests must not wait for the texts that this one was encoding.
        pool.texts.values().for_each(|texts| texts.give_up(arrival));
        _ = core.handle_lost_devices(&pool, claim, &devices, error, Noticed::BySilence);
    }
}

/// A worker thread of a replica: runs until there is nothing more to do.
///
/// # Errors
/// If the watchdog took the thread's claims: the thread is abandoned.
pub(super) fn work(
    core: &Arc<Core>,
    worker: Worker,
    batch: usize,
    pool: &Arc<WorkerPool>,
    own: &WorkerPipeline,
) -> Result<(), Gone> {
    let goes_with = |a: &Arc<Submission>, b: &Arc<Submission>| a.request.goes_with(&b.request);
    while let Some(mut claims) = core.queue.take(worker, batch, goes_with) {
        for claim in &claims {
            let taken = Event::Taken { replica: worker.replica, attempt: claim.attempt, at: core.clock.now() };
            core.queue.if_current(claim.number, || claim.job.send_event(taken))?;
        }
        if claims.len() > 1 {
            let drawn = draw(core, &claims, pool, own);
            match drawn {
                Ok(results) => {
                    for (claim, result) in std::mem::take(&mut claims).iter().zip(results) {
                        core.report_result(claim, pool, result)?;
                    }
                }
                Err(error) if matches!(error.scope(), ErrorScope::Device(_)) => {
                    // One report is enough: the queue ends all claims of this thread.
                    let first = std::mem::take(&mut claims).swap_remove(0);
                    core.report_result(&first, pool, Err(error))?;
                }
                // Each request is drawn alone, so that only the one that caused the error fails.
                Err(error) => tracing::debug!("a batch is taken apart: {error}"),
            }
        }
        for claim in claims {
            let result = draw(core, std::slice::from_ref(&claim), pool, own).and_then(|mut results| results.remove(0));
            core.report_result(&claim, pool, result)?;
        }
    }
    Ok(())
}

/// Draws one batch, and reports the progress of each request as long as this thread has its claim.
fn draw(
    core: &Core,
    claims: &[Claim<Arc<Submission>>],
    pool: &Arc<WorkerPool>,
    own: &WorkerPipeline,
) -> Result<Vec<Result<Picture>>> {
    let requests: Vec<&Request> = claims.iter().map(|claim| &claim.job.request).collect();
    let arrival = claims[0].arrival;
    let mut on = |i: usize, progress: Progress| {
        let Claim { job, number, .. } = &claims[i];
        match &progress {
            Progress::Started { devices, .. } => core.watch.begin(Silent {
                pool: pool.clone(),
                claim: *number,
                arrival,
                devices: devices.clone(),
                patience: pool.patience,
            }),
            Progress::Step { .. } => core.watch.progressed(*number),
            Progress::Finished(_) => core.watch.end(*number),
        }
        // A request that is being decoded is nearly done: it is not cancelled. One whose stage has ended is cancelled
        // when the next stage begins.
        let may_stop = !matches!(&progress, Progress::Started { stage: Stage::Decode, .. } | Progress::Finished(_));
        core.queue
            .if_current(*number, || job.send_event(Event::Progress(progress)))
            .map_err(|_| Error::request("the thread no longer has the claim of this request"))?;
        if may_stop && job.cancel.is_asked() { Err(Error::interrupted()) } else { Ok(()) }
    };
    let one_is_wanted = claims.iter().any(|claim| !claim.job.cancel.is_asked());
    let drawn = match one_is_wanted {
        true => catch_unwind(AssertUnwindSafe(|| own.pipeline.generate(&requests, arrival, own.slots, &mut on))),
        false => Ok(Err(Error::interrupted())),
    };
    claims.iter().for_each(|claim| core.watch.end(claim.number));
    // A panic is a bug in sdshard, and most likely only this request triggers it: the replica continues with the next.
    drawn.unwrap_or_else(|panic| {
        Err(Error::request(format!("a bug in sdshard, please report it: {}", message(&*panic))))
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_string())
}
