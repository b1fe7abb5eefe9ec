//! Replicas side by side over one queue.
//!
//! A replica is a pipeline with a thread for each request that it works on at once. A thread takes the oldest request,
//! works on it, and says what happens to whoever holds the [`Ticket`]. A replica whose device fails under a request
//! leaves; the others try that request again.

mod queue;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use crate::{
    backend::{self, Device, DeviceId, Opening},
    error::{Error, Result, Scope},
    models::route::{Keeps, Route},
    pipeline::{
        Component, Model, Parts, Picture, Pipeline, Progress, Slot, TextCache, UnetPlace,
        gate::Gates,
        model::Loader,
        placement::{Place, Placement, Sections},
        request::Request,
    },
    planner::plan::{DevicePlan, Plan},
};
use queue::{Job, Queue};

/// How often a request is tried again after a device failed under it.
const RETRIES: usize = 2;

/// What happens to a request.
#[derive(Debug)]
pub enum Event {
    /// A replica has taken it: once, or again after a device failed under it.
    Taken {
        /// Which replica, counted from 0.
        replica: usize,
        /// Which try this is, counted from 1.
        attempt: usize,
    },
    /// It goes on.
    Progress(Progress),
    /// It is done, or it failed. Nothing follows.
    Done(Result<Picture>),
}

/// A request on its way.
pub struct Ticket {
    events: mpsc::Receiver<Event>,
    cancel: Arc<AtomicBool>,
}

impl Ticket {
    /// The next event; `None` after [`Event::Done`].
    pub fn next(&self) -> Option<Event> {
        self.events.recv().ok()
    }

    /// Waits for the end.
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

    /// Asks the request to stop after its current step.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// A loaded plan.
pub struct Engine {
    queue: Arc<Queue>,
    workers: Vec<JoinHandle<()>>,
    devices: Vec<Device>,
    /// How many there were at the start.
    threads: usize,
}

impl Engine {
    /// Opens the plan's devices, reserves its arenas, reads the weights and starts the replicas.
    ///
    /// # Errors
    /// If a device cannot be opened, has no room, or a weight is not as the model's configs say.
    pub fn load(model: Arc<Model>, plan: &Plan) -> Result<Self> {
        let ids: Vec<DeviceId> = plan.devices.iter().map(|device| device.id).collect();
        let opening = |device: &DevicePlan| Opening { id: device.id, cores: device.cores.clone() };
        let devices = backend::open(&plan.devices.iter().map(opening).collect::<Vec<_>>())?;
        for (device, planned) in devices.iter().zip(&plan.devices) {
            device.reserve(planned.activation_bytes as usize)?;
        }
        let device = |id: DeviceId| {
            let index = ids.iter().position(|known| *known == id).expect("a plan places on its own devices");
            devices[index].clone()
        };
        let route = |ids: &[DeviceId]| Route::new(ids.iter().map(|id| device(*id)).collect());
        let (texts, gates) = (Arc::new(TextCache::default()), Arc::new(Gates::default()));
        let threads: usize = plan.replicas.iter().map(|replica| replica.in_flight).sum();
        let queue = Arc::new(Queue::new(plan.replicas.len(), threads));
        let mut loader = Loader::new(&model);
        let mut workers = Vec::with_capacity(threads);
        for (index, replica) in plan.replicas.iter().enumerate() {
            let parts = load(&mut loader, &replica.placement, route)?;
            let pipeline = Arc::new(Pipeline::new(model.clone(), parts, gates.clone(), texts.clone()));
            for _ in 0..replica.in_flight {
                let keeps = replica.keep_bytes.iter().map(|(id, bytes)| device(*id).keep(*bytes as usize));
                let lanes = replica.lane_bytes.iter().map(|(id, bytes)| device(*id).lane(*bytes as usize));
                let lanes = lanes.collect::<Result<Vec<_>>>()?;
                let slots = pipeline.slots(&Keeps::new(keeps.collect::<Result<_>>()?), &lanes);
                workers.push((index, pipeline.clone(), slots));
            }
        }
        // From here on the engine itself ends the threads that it has, should one more not start.
        let mut engine = Self { queue, workers: Vec::with_capacity(threads), devices, threads };
        for (index, pipeline, slots) in workers {
            let queue = engine.queue.clone();
            let worker = std::thread::Builder::new()
                .name(format!("replica {index}"))
                .spawn(move || work(index, &pipeline, &slots, &queue))
                .map_err(|e| Error::process("starting a replica's thread").source(e))?;
            engine.workers.push(worker);
        }
        Ok(engine)
    }

    /// Hands a request over. Waits while the queue is full.
    pub fn submit(&self, request: Request) -> Ticket {
        let (events, receiver) = mpsc::channel();
        let cancel = Arc::<AtomicBool>::default();
        let send = move |event| {
            // Whoever dropped the ticket does not want to know.
            let _ = events.send(event);
        };
        self.queue.put(Job::new(request, cancel.clone(), send));
        Ticket { events: receiver, cancel }
    }

    /// Draws every request, a few ahead of the replicas at a time, and tells `on` what happens to which. Returns when
    /// all are done. Results that have been told are not held.
    ///
    /// # Errors
    /// If `on` says so; requests that are under way are cancelled then, and the rest are not begun.
    pub fn generate(
        &self,
        requests: impl IntoIterator<Item = Request>,
        mut on: impl FnMut(usize, Event) -> Result<()>,
    ) -> Result<()> {
        let (sender, events) = mpsc::channel();
        let cancel = Arc::<AtomicBool>::default();
        let mut requests = requests.into_iter().enumerate();
        let mut open = 0;
        let mut outcome = Ok(());
        loop {
            while outcome.is_ok() && open < 2 * self.threads {
                let Some((index, request)) = requests.next() else { break };
                let sender = sender.clone();
                let send = move |event| {
                    // The receiver lives until every request is done.
                    let _ = sender.send((index, event));
                };
                self.queue.put(Job::new(request, cancel.clone(), send));
                open += 1;
            }
            if open == 0 {
                return outcome;
            }
            let Ok((index, event)) = events.recv() else { return outcome };
            if matches!(event, Event::Done(_)) {
                open -= 1;
            }
            // After an error only ends are told: a picture that is done all the same need not be lost.
            if outcome.is_ok() || matches!(event, Event::Done(_)) {
                let told = on(index, event);
                if told.is_err() {
                    cancel.store(true, Ordering::Relaxed);
                }
                outcome = outcome.and(told);
            }
        }
    }

    /// The most that each device's transient arena ever held, in bytes.
    pub fn peak_bytes(&self) -> Vec<(DeviceId, usize)> {
        self.devices.iter().map(|device| (device.id(), device.peak_bytes())).collect()
    }
}

/// The networks of one replica.
fn load(loader: &mut Loader, placement: &Placement<DeviceId>, route: impl Fn(&[DeviceId]) -> Route) -> Result<Parts> {
    let mut parts = Parts { text_encoders: Vec::new(), unets: Vec::new(), vaes: Vec::new() };
    for sections in placement.text_encoder.iter().flat_map(Place::routes) {
        parts.text_encoders.push(loader.text_encoder(route(sections), sections.reside)?);
    }
    for place in &placement.unet {
        let mut unet = |sections: &Sections<DeviceId>| loader.unet(route(sections), sections.reside);
        parts.unets.push(match place {
            Place::Route(sections) => UnetPlace { negative: None, positive: unet(sections)? },
            Place::Guided { negative, positive } => {
                UnetPlace { negative: Some(unet(negative)?), positive: unet(positive)? }
            }
        });
    }
    for sections in placement.vae.iter().flat_map(Place::routes) {
        parts.vaes.push(loader.vae(route(sections), sections.reside)?);
    }
    Ok(parts)
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
        for worker in self.workers.drain(..) {
            // A worker catches what its requests throw; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

/// One of a replica's threads: until the queue closes or the replica's device fails.
fn work(replica: usize, pipeline: &Pipeline, slots: &[Slot], queue: &Queue) {
    while let Some(mut job) = queue.take(replica) {
        if job.cancel.load(Ordering::Relaxed) {
            (job.events)(Event::Done(Err(Error::interrupted())));
            continue;
        }
        job.attempts += 1;
        (job.events)(Event::Taken { replica, attempt: job.attempts });
        let result = catch_unwind(AssertUnwindSafe(|| {
            let pictures = pipeline.generate(&[&job.request], job.age, slots, &mut |_, progress| {
                (job.events)(Event::Progress(progress));
                // A request that has come to the VAE is as good as done.
                let stops = !matches!(progress, Progress::Started(Component::Vae, _) | Progress::Finished(..));
                if stops && job.cancel.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
            });
            pictures?.pop().expect("one request has one end")
        }));
        // A panic is a bug of ours, and most likely this request's: the replica goes on with the next.
        let result = result.unwrap_or_else(|panic| {
            Err(Error::request(format!("a bug in sdshard, please report it: {}", message(&*panic))))
        });
        match result {
            Err(error) if matches!(error.scope(), Scope::Device(_)) => {
                tracing::error!("replica {replica} leaves: {error}");
                queue.leave(replica, job, error, RETRIES);
                return;
            }
            result => (job.events)(Event::Done(result)),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_string())
}
