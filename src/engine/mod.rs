//! The engine: replicas side by side over one queue.
//!
//! A replica is a pipeline with a worker thread for each request that it works on at once. A thread takes the oldest
//! request, works on it, and sends events to the request's [`Ticket`].
//!
//! **Failures.** A request that fails does not affect others. A device that fails is lost, and so are all replicas that
//! use it. Their requests are tried again by other replicas, at most twice; a request during which two devices failed
//! may be the cause, and fails. A device that makes no progress for too long is lost as well, and the thread that waits
//! for it is abandoned. Every request ends exactly once: later reports of an abandoned thread are ignored.

mod pool;
mod queue;
mod ticket;
mod watch;
mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use crate::{
    backend::{self, Device, DeviceId, NumericsClass, Opening},
    device_map::{DeviceMap, Strategy},
    error::{Error, Result},
    models::{
        component::{ComponentId, Stage},
        route::{PersistentArenas, Route},
    },
    pipeline::{Instance, Model, Parts, Pipeline, Slot, TextCache, gate::Gates, model::Loader, request::Request},
    planner::{
        Largest,
        plan::{DevicePlan, Plan},
    },
    sync::{self, Clock, Monitor, Thread, channel},
    weights::ModelFiles,
};
use pool::WorkerPool;
use queue::{Queue, Worker};
use ticket::Submission;
pub use ticket::{Canceller, Event, Ticket};
use watch::Watch;
use worker::{Core, WorkerPipeline, watch, work};

/// The shortest time without progress after which a device counts as lost.
const MIN_PATIENCE: Duration = Duration::from_secs(60);

/// The plan in use, with its pipelines and worker threads.
struct Loaded {
    plan: Plan,
    pool: Arc<WorkerPool>,
    pipelines: Vec<Arc<Pipeline>>,
    workers: Vec<(Worker, Thread)>,
}

/// A loaded plan.
pub struct Engine {
    model: Arc<Model>,
    core: Arc<Core>,
    /// Taken out while another plan is applied.
    loaded: Monitor<Option<Loaded>>,
    watchdog: Option<Thread>,
}

impl Engine {
    /// Opens the model in a diffusers folder, plans it for this machine and loads it: by the strategy `throughput`, for
    /// pictures of the model's own size, with guidance. [`DeviceMap`], [`Plan::resolve`] and [`Engine::load`] do the
    /// same with choices of your own.
    ///
    /// # Errors
    /// If the model cannot be opened, does not fit on this machine, or cannot be loaded.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let model = Arc::new(Model::open(ModelFiles::folder(folder)?, None)?);
        let request = Request { guidance_scale: 7.5, ..Request::new("", &model.spec) };
        let largest = Largest::of([&request], &model.spec)?.expect("there is a request");
        let map = DeviceMap::from_strategy(Strategy::Throughput);
        let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible())?;
        Self::load(model, &plan)
    }

    /// The model in use; [`Request::new`] takes its defaults from `model().spec`.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Opens the plan's devices, reserves its arenas, reads the weights and starts the replicas.
    ///
    /// # Errors
    /// If a device cannot be opened, has no room, or a weight is not as the model's configs say.
    pub fn load(model: Arc<Model>, plan: &Plan) -> Result<Self> {
        model.identify_in_background();
        Self::load_on(model, plan, backend::open(&openings(plan))?, Clock::default())
    }

    /// As [`Engine::load`], on devices that the caller has opened and with the caller's clock: for programs that also
    /// use the devices for something else, and for simulations.
    ///
    /// # Errors
    /// If a device of the plan is not among them, has no room, or a weight is not as the model's configs say.
    pub fn load_on(model: Arc<Model>, plan: &Plan, devices: Vec<Device>, clock: Clock) -> Result<Self> {
        let core = Arc::new(Core {
            queue: Queue::new(clock.clone()),
            watch: Watch::new(clock.clone()),
            clock,
            last_error: Mutex::default(),
        });
        let prepared = Prepared::new(&model, plan, devices, &[], &core.clock)?;
        let watchdog = start(&core, "watchdog", watch)?;
        let nobody =
            Loaded { plan: plan.clone(), pool: prepared.pool.clone(), pipelines: Vec::new(), workers: Vec::new() };
        // If a later thread cannot be started, dropping the engine ends the threads that have started.
        let engine = Self { model, loaded: Monitor::new(None, core.clock.clone()), core, watchdog: Some(watchdog) };
        let (loaded, outcome) = engine.begin(plan, prepared, nobody);
        engine.loaded.update(|place| *place = Some(loaded));
        outcome.map(|()| engine)
    }

    fn with_loaded<R>(&self, inspect: impl FnOnce(&Loaded) -> R) -> R {
        let mut inspect = Some(inspect);
        self.loaded.wait_until(|loaded| loaded.as_ref().and_then(|loaded| inspect.take().map(|look| look(loaded))))
    }

    /// Starts the threads of a plan once those of the previous plan have exited.
    fn begin(&self, plan: &Plan, prepared: Prepared, before: Loaded) -> (Loaded, Result<()>) {
        let Prepared { pool, pipelines, mut slots } = prepared;
        let replicas = plan.replicas.iter().map(|replica| (replica.placement.devices(), replica.in_flight));
        let batch = plan.replicas.iter().map(|replica| replica.batch).max().unwrap_or(1);
        let workers = self.core.queue.open(replicas.collect(), batch);
        self.dismiss(before.workers);
        let mut loaded = Loaded { plan: plan.clone(), pool, pipelines, workers: Vec::with_capacity(workers.len()) };
        let mut outcome = Ok(());
        for worker in workers {
            let slots = slots[worker.replica].pop().expect("slots for each thread");
            let (pipeline, pool) = (loaded.pipelines[worker.replica].clone(), loaded.pool.clone());
            let batch = plan.replicas[worker.replica].batch;
            let started = start(&self.core, &format!("replica {}", worker.replica), move |core| {
                let worked = work(core, worker, batch, &pool, &WorkerPipeline { pipeline: &pipeline, slots: &slots });
                drop((pipeline, pool, slots));
                // An abandoned thread is not waited for.
                if worked.is_ok() {
                    core.queue.exit(worker);
                }
            });
            match started {
                Ok(thread) => loaded.workers.push((worker, thread)),
                Err(error) => {
                    self.core.queue.exit(worker);
                    outcome = Err(error);
                }
            }
        }
        (loaded, outcome)
    }

    /// Waits until the threads of one plan have exited.
    fn dismiss(&self, workers: Vec<(Worker, Thread)>) {
        let Some((first, _)) = workers.first() else { return };
        let given_up = self.core.queue.wait_for_exits(first.plan);
        for (worker, thread) in workers {
            if !given_up.contains(&worker.thread) {
                thread.join();
            }
        }
    }

    /// Queues a request. Waits while the queue is full.
    ///
    /// # Errors
    /// If the request cannot be drawn by this model, or is larger than what the plan was made for.
    pub fn submit(&self, request: Request) -> Result<Ticket> {
        self.admits(&request)?;
        let clock = self.core.clock.clone();
        let (sender, events) = channel(clock.clone());
        let cancel = Canceller::default();
        self.put(Submission { request, cancel: cancel.clone(), events: Box::new(move |event| sender.send(event)) });
        Ok(Ticket { events, clock, cancel, done: AtomicBool::new(false) })
    }

    /// Checks whether this engine can draw a request, by its model and the plan in use.
    ///
    /// # Errors
    /// As [`Request::check`] and [`Plan::admits`].
    pub fn admits(&self, request: &Request) -> Result<()> {
        request.check(&self.model.spec)?;
        self.with_loaded(|loaded| loaded.plan.admits(request, &self.model.spec))
    }

    fn put(&self, job: Submission) {
        job.send_event(Event::Queued { at: self.core.clock.now() });
        if let Err(job) = self.core.queue.put(Arc::new(job)) {
            job.send_result(Err(self.core.no_replica()));
        }
    }

    /// Draws every request, submitting a few ahead of the replicas at a time, and calls `on` with each event and the
    /// index of its request. Returns when all are done. Results are not kept after the call.
    ///
    /// # Errors
    /// If `on` returns an error: requests in progress are cancelled then, and the rest are not begun.
    pub fn generate(
        &self,
        requests: impl IntoIterator<Item = Request>,
        mut on: impl FnMut(usize, Event) -> Result<()>,
    ) -> Result<()> {
        let (sender, events) = channel(self.core.clock.clone());
        let cancel = Canceller::default();
        let mut requests = requests.into_iter().enumerate();
        let mut open = 0;
        let mut outcome = Ok(());
        loop {
            // It is read each time, because another plan may have more threads.
            while outcome.is_ok() && open < self.core.queue.most() {
                let Some((index, request)) = requests.next() else { break };
                let sender = sender.clone();
                let send = move |event| sender.send((index, event));
                let admitted = self.admits(&request);
                let job = Submission { request, cancel: cancel.clone(), events: Box::new(send) };
                match admitted {
                    Ok(()) => self.put(job),
                    Err(error) => job.send_result(Err(error)),
                }
                open += 1;
            }
            if open == 0 {
                return outcome;
            }
            let Some((index, event)) = events.receive() else { return outcome };
            if matches!(event, Event::Done(_)) {
                open -= 1;
            }
            // After an error only results are reported, so that a picture that is finished is not lost.
            if outcome.is_ok() || matches!(event, Event::Done(_)) {
                let told = on(index, event);
                if told.is_err() {
                    cancel.cancel();
                }
                outcome = outcome.and(told);
            }
        }
    }

    /// Changes to another plan: requests in progress are finished by the old plan, waiting requests are drawn by the
    /// new one. Networks whose weights stay in the same memory are not read again. During the change there must be room
    /// for the weights of both plans.
    ///
    /// # Errors
    /// If the new plan cannot be loaded. The old plan then stays in use.
    pub fn apply(&self, plan: &Plan) -> Result<()> {
        self.replace(plan, |loaded| {
            let lost = loaded.pool.gates.lost();
            // The same device with other cores, or with another algorithm, is a different device.
            let (now, mut wanted) = (openings(&loaded.plan), openings(plan));
            let stays = |id: DeviceId| {
                let same = |opening: &Opening| opening.id == id && now.contains(opening);
                !lost.contains(&id) && wanted.iter().any(same)
            };
            let mut devices = loaded.pool.devices.clone();
            devices.retain(|device| stays(device.id()));
            wanted.retain(|opening| !devices.iter().any(|device| device.id() == opening.id));
            devices.extend(backend::open(&wanted)?);
            Ok(devices)
        })
    }

    /// As [`Engine::apply`], on devices that the caller has opened.
    ///
    /// # Errors
    /// As [`Engine::apply`].
    pub fn apply_on(&self, plan: &Plan, devices: Vec<Device>) -> Result<()> {
        self.replace(plan, |_| Ok(devices))
    }

    fn replace(&self, plan: &Plan, devices: impl FnOnce(&Loaded) -> Result<Vec<Device>>) -> Result<()> {
        let loaded = self.loaded.wait_until(Option::take);
        // While requests are in progress, a device may be lost, and the arenas are in use.
        self.core.queue.pause();
        let prepared = devices(&loaded)
            .and_then(|devices| Prepared::new(&self.model, plan, devices, &loaded.pipelines, &self.core.clock));
        let (loaded, outcome) = match prepared {
            Ok(prepared) => self.begin(plan, prepared, loaded),
            Err(error) => {
                let restored = reserve(&loaded.plan, &loaded.pool.devices);
                self.core.queue.resume();
                (loaded, restored.and(Err(error)))
            }
        };
        self.loaded.update(|place| *place = Some(loaded));
        outcome
    }

    /// The plan in use.
    pub fn plan(&self) -> Plan {
        self.with_loaded(|loaded| loaded.plan.clone())
    }

    /// The devices of each component, over all places and replicas.
    pub fn device_map(&self) -> BTreeMap<String, Vec<DeviceId>> {
        self.with_loaded(|loaded| loaded.plan.device_map())
    }

    /// The most bytes that each device's transient arena ever held.
    pub fn peak_bytes(&self) -> Vec<(DeviceId, usize)> {
        self.with_loaded(|loaded| loaded.pool.devices.iter().map(|device| (device.id(), device.peak_bytes())).collect())
    }

    /// The most bytes of packed weights that were on each device at one time. Weights that `cpu:N` devices share count
    /// on the device that read them first.
    pub fn peak_weight_bytes(&self) -> Vec<(DeviceId, usize)> {
        self.with_loaded(|loaded| {
            loaded.pool.devices.iter().map(|device| (device.id(), device.weight_peak_bytes())).collect()
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.core.queue.close();
        if let Some(loaded) = self.loaded.update(Option::take) {
            self.dismiss(loaded.workers);
        }
        self.core.watch.stop();
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.join();
        }
    }
}

/// Starts a thread of the engine.
fn start(core: &Arc<Core>, name: &str, work: impl FnOnce(&Arc<Core>) + Send + 'static) -> Result<Thread> {
    let shared = core.clone();
    sync::spawn(&core.clock, name, move || work(&shared))
        .map_err(|e| Error::process(format!("starting the thread \"{name}\"")).source(e))
}

/// The devices of a plan, with the options to open them.
fn openings(plan: &Plan) -> Vec<Opening> {
    let opening = |device: &DevicePlan| Opening {
        id: device.id,
        cores: device.cores.clone(),
        adapter: device.adapter,
        convolution: device.class.convolution(),
    };
    plan.devices.iter().map(opening).collect()
}

/// Makes the transient arenas as large as a plan says.
fn reserve(plan: &Plan, devices: &[Device]) -> Result<()> {
    for planned in &plan.devices {
        if let Some(device) = devices.iter().find(|device| device.id() == planned.id) {
            device.reserve(planned.activation_bytes as usize)?;
        }
    }
    Ok(())
}

/// A plan with everything that its threads need.
struct Prepared {
    pool: Arc<WorkerPool>,
    pipelines: Vec<Arc<Pipeline>>,
    /// For each thread of each replica, one slot for each of the UNet's places.
    slots: Vec<Vec<Vec<Slot>>>,
}

impl Prepared {
    /// Reads the networks that the pipelines in `known` do not have yet.
    fn new(
        model: &Arc<Model>,
        plan: &Plan,
        devices: Vec<Device>,
        known: &[Arc<Pipeline>],
        clock: &Clock,
    ) -> Result<Self> {
        let is_open = |planned: &DevicePlan| devices.iter().any(|device| device.id() == planned.id);
        if let Some(DevicePlan { id, .. }) = plan.devices.iter().find(|planned| !is_open(planned)) {
            return Err(Error::input(format!("the plan uses {id}, which is not among the devices that were opened")));
        }
        let device = |id: DeviceId| {
            devices.iter().find(|device| device.id() == id).expect("a plan places on its own devices").clone()
        };
        let dtype = |component: ComponentId, id: DeviceId| {
            let planned = plan.devices.iter().find(|planned| planned.id == id);
            planned.expect("a plan places on its own devices").dtypes[component]
        };
        let route = |component: ComponentId, ids: &[DeviceId]| {
            Route::new(ids.iter().map(|id| (device(*id), dtype(component, *id))).collect())
        };
        let mut loader = Loader::new(model);
        known.iter().for_each(|pipeline| loader.reuse_networks(pipeline.parts()));
        let mut parts = Vec::with_capacity(plan.replicas.len());
        for replica in &plan.replicas {
            parts.push(replica.placement.try_map(|component, places| {
                let instance = |place| loader.instance(component, place, |ids| route(component, ids));
                places.iter().map(instance).collect::<Result<Vec<_>>>()
            })?);
        }
        reserve(plan, &devices)?;
        let gates = Arc::new(Gates::new(clock.clone()));
        let mut texts = HashMap::new();
        let (mut pipelines, mut slots) = (Vec::new(), Vec::new());
        for (replica, parts) in plan.replicas.iter().zip(parts) {
            let texts =
                texts.entry(text_classes(model, &parts)).or_insert_with(|| Arc::new(TextCache::new(clock.clone())));
            let pipeline = Arc::new(Pipeline::new(model.clone(), parts, gates.clone(), texts.clone()));
            let of_one = |_| -> Result<Vec<Slot>> {
                let keeps = replica.keep_bytes.iter().map(|(id, bytes)| device(*id).persistent_arena(*bytes as usize));
                let scratch =
                    replica.scratch_bytes.iter().map(|(id, bytes)| device(*id).request_scratch(*bytes as usize));
                Ok(pipeline.slots(
                    &PersistentArenas::new(keeps.collect::<Result<_>>()?),
                    &scratch.collect::<Result<Vec<_>>>()?,
                ))
            };
            slots.push((0..replica.in_flight).map(of_one).collect::<Result<Vec<_>>>()?);
            pipelines.push(pipeline);
        }
        let pool = Arc::new(WorkerPool { devices, gates, texts, patience: patience(plan) });
        Ok(Self { pool, pipelines, slots })
    }
}

/// The numerics classes of a replica's text encoders: features are equal for equal classes.
fn text_classes(model: &Model, parts: &Parts) -> Vec<NumericsClass> {
    let instances = model.spec.in_stage(Stage::Encode).flat_map(|component| &parts[component]);
    let routes = instances.flat_map(Instance::networks).flat_map(|network| network.route.typed());
    let mut classes: Vec<_> = routes.map(|(device, precision)| device.class().in_type(precision)).collect();
    classes.sort();
    classes.dedup();
    classes
}

/// The time that a device may make no progress: twenty times the predicted time of the longest stage or step, and at
/// least a minute.
fn patience(plan: &Plan) -> Duration {
    let longest = plan.components.iter().map(|(_, component)| match component.stage {
        Stage::Denoise => component.seconds / plan.largest.steps as f64,
        _ => component.seconds,
    });
    let longest = longest.fold(0.0, f64::max);
    MIN_PATIENCE.max(Duration::try_from_secs_f64(20.0 * longest).unwrap_or(Duration::MAX / 2))
}
