//! One placement at work: requests that go together, from texts to pictures, through the gates of their devices.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    gate::{DeviceGuard, Gates, Work},
    image::Image,
    latents::Latents,
    model::Model,
    parts::{Instance, Parts, Slot},
    picture::{Picture, Progress, Span},
    placement::each_once,
    request::{Output, Request},
    stages::{self, Begin, Denoise, Noise, branches},
    texts::{Known, TextCache},
};
use crate::{
    backend::{DType, Device},
    error::{Error, Result, Scope},
    models::{
        component::{ComponentId, Stage},
        route::{NoHooks, PersistentArenas, Route, SectionHooks},
        spec::LatentSpec,
        unet::TextFeatures,
    },
    scheduler::schedule,
    tensor::Shape,
};

/// One placement of one model, ready to draw. Several requests may be in progress at once, each with its own [`Slot`]s.
pub struct Pipeline {
    model: Arc<Model>,
    parts: Parts,
    gates: Arc<Gates>,
    texts: Arc<TextCache>,
}

/// Is called with the progress of a request, given by its index in the batch, and may stop the request with an error.
pub type OnProgress<'a> = &'a mut dyn FnMut(usize, Progress) -> Result<()>;

/// The state of one request of a batch.
struct InProgress {
    spans: Vec<Span>,
    /// Why it was stopped, if it was.
    stopped: Option<Error>,
}

/// The requests of one batch in progress.
struct Batch<'a> {
    requests: &'a [&'a Request],
    in_progress: Vec<InProgress>,
    progress: OnProgress<'a>,
    /// The devices of the last stage, until those of the next one are asked for.
    held: Option<DeviceGuard<'a>>,
}

impl Batch<'_> {
    /// Reports the progress of one request, which may be stopped by that.
    ///
    /// # Errors
    /// If all requests have been stopped.
    fn tell(&mut self, i: usize, progress: Progress) -> Result<()> {
        if self.in_progress[i].stopped.is_none()
            && let Err(error) = (self.progress)(i, progress)
        {
            self.in_progress[i].stopped = Some(error);
        }
        match self.going().next() {
            Some(_) => Ok(()),
            None => Err(Error::interrupted()),
        }
    }

    /// Reports the progress of all requests.
    fn tell_all(&mut self, progress: &Progress) -> Result<()> {
        (0..self.requests.len()).try_for_each(|i| self.tell(i, progress.clone()))
    }

    /// The indices of the requests that were not stopped.
    fn going(&self) -> impl Iterator<Item = usize> {
        (0..self.requests.len()).filter(|&i| self.in_progress[i].stopped.is_none())
    }
}

impl Pipeline {
    /// `gates` are those of all pipelines that share a device with this one.
    pub fn new(model: Arc<Model>, parts: Parts, gates: Arc<Gates>, texts: Arc<TextCache>) -> Self {
        Self { model, parts, gates, texts }
    }

    /// Its networks and where they run.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What one request in progress needs for each of the denoiser's instances: `keeps` has an arena on each of their devices
    /// that no other request uses meanwhile, `lanes` one on each device of those that are cut and shared with other requests.
    pub fn slots(&self, keeps: &PersistentArenas, lanes: &[Device]) -> Vec<Slot> {
        self.denoisers().iter().map(|instance| Slot::new(instance, keeps, lanes)).collect()
    }

    /// The instances of the denoiser.
    fn denoisers(&self) -> &[Instance] {
        &self.parts[self.model.spec.denoiser()]
    }

    /// Draws one picture for each of `requests`, which [go together](Request::goes_with). `age` tells older requests from
    /// younger ones.
    ///
    /// # Errors
    /// For all: if a device fails, an arena is full, or every request has been stopped. For one: if it does not fit the
    /// model, a value is not finite, or `progress` stops it.
    pub fn generate(
        &self,
        requests: &[&Request],
        age: u64,
        slots: &[Slot],
        progress: OnProgress,
    ) -> Result<Vec<Result<Picture>>> {
        let in_progress = requests
            .iter()
            .map(|request| InProgress { spans: Vec::with_capacity(4), stopped: request.check(&self.model.spec).err() });
        let mut batch = Batch { requests, in_progress: in_progress.collect(), progress, held: None };
        let drawn = if batch.going().next().is_some() { self.draw(&mut batch, age, slots) } else { Ok(Vec::new()) };
        let stopped = batch.in_progress.iter_mut().map(|one| one.stopped.take()).collect::<Vec<_>>();
        match drawn {
            // All were stopped, each for its own reason.
            Err(_) if stopped.iter().all(Option::is_some) => Ok(stopped.into_iter().flatten().map(Err).collect()),
            Err(error) => Err(error),
            Ok(mut pictures) => {
                let mut picture = |i| pictures.iter().position(|(of, _)| *of == i).map(|at| pictures.swap_remove(at).1);
                let result = |(i, stopped): (usize, Option<Error>)| match (stopped, picture(i)) {
                    (Some(error), _) => Err(error),
                    (None, Some(result)) => result,
                    (None, None) => unreachable!("who was not stopped has a picture"),
                };
                Ok(stopped.into_iter().enumerate().map(result).collect())
            }
        }
    }

    /// One request, or several as a batch, from texts to pictures: encode, denoise, decode. Gives the pictures of those that
    /// were not stopped, each with its index in the batch.
    fn draw<'a>(&'a self, batch: &mut Batch<'a>, age: u64, slots: &[Slot]) -> Result<Vec<(usize, Result<Picture>)>> {
        let spec = &self.model.spec;
        let members: Vec<usize> = batch.going().collect();
        let first = batch.requests[members[0]];
        let schedule = schedule(&spec.scheduler_for(first.scheduler)?, first.steps)?;
        let guided = first.guidance_scale > 1.0;

        let mut texts = Vec::with_capacity(2 * members.len());
        for of in [guided.then_some(Text::Negative), Some(Text::Positive)].into_iter().flatten() {
            for &i in &members {
                let request = batch.requests[i];
                let text = if of == Text::Negative { &request.negative_prompt } else { &request.prompt };
                texts.push(self.features(text, age, i, batch)?);
            }
        }

        let LatentSpec { channels, scale, .. } = spec.latents;
        let shape = Shape::from([1, first.height / scale, first.width / scale, channels]);
        let begin = |&i: &usize| Begin {
            guidance_scale: batch.requests[i].guidance_scale,
            noise: Noise::new(batch.requests[i]),
        };
        let images = members.iter().map(begin).collect();
        let denoise = Denoise { schedule: &schedule, images, shape };
        let latents = self.denoise(denoise, texts, guided, age, slots, batch)?;

        let mut pictures = Vec::with_capacity(members.len());
        for (i, values) in members.into_iter().zip(latents) {
            if batch.in_progress[i].stopped.is_none() {
                let picture = match values {
                    Ok(values) => self.picture(&values, shape, age, i, batch),
                    Err(error) => Err(error),
                };
                match picture {
                    // A device that failed fails all requests of the batch.
                    Err(error) if !matches!(error.scope(), Scope::Request | Scope::Input | Scope::Interrupted) => {
                        return Err(error);
                    }
                    picture => pictures.push((i, picture)),
                }
            }
        }
        Ok(pictures)
    }

    /// The loop, in the first of the denoiser's instances that is free.
    fn denoise<'a>(
        &'a self,
        denoise: Denoise,
        texts: Vec<TextFeatures>,
        guided: bool,
        age: u64,
        slots: &[Slot],
        batch: &mut Batch<'a>,
    ) -> Result<Vec<Result<Vec<f32>>>> {
        let (component, instances) = (self.model.spec.denoiser(), self.denoisers());
        let devices: Vec<_> = instances.iter().map(|instance| instance.devices(guided)).collect();
        // A request that passes a cut network device by device begins with the first.
        let begins = |i: usize| match slots[i].passes {
            true => vec![instances[i].positive.route.first().id()],
            false => devices[i].clone(),
        };
        let choices: Vec<_> = (0..devices.len()).map(begins).collect();
        let clock = self.gates.clock();
        let (choice, section) = self.gates.enter(age, Work::Denoise, &choices, batch.held.take())?;
        let (instance, slot) = (&instances[choice], &slots[choice]);
        let route = slot.passes.then_some(&instance.positive.route);
        let passage = Passage::new(&self.gates, age, component, section, route);
        let (calls, started, stage) = (denoise.schedule.steps.len(), clock.now(), Stage::Denoise);
        batch.tell_all(&Progress::Started {
            component,
            stage,
            devices: devices[choice].clone(),
            calls,
            at: started,
        })?;
        let branches = branches(instance, slot, texts, guided, &passage);
        let latents = stages::denoise(&branches, denoise, |done| {
            batch.tell_all(&Progress::Step { done, of: calls, at: clock.now() })
        })?;
        let (stretches, held) = passage.leave();
        batch.held = held;
        let whole = Span { component, devices: devices[choice].clone(), started, elapsed: clock.now() - started };
        for i in batch.going().collect::<Vec<_>>() {
            batch.in_progress[i].spans.extend(stretches.iter().cloned());
            batch.tell(i, Progress::Finished(whole.clone()))?;
        }
        Ok(latents)
    }

    /// The picture of request `i` from its latents.
    fn picture<'a>(
        &'a self,
        values: &[f32],
        shape: Shape,
        age: u64,
        i: usize,
        batch: &mut Batch<'a>,
    ) -> Result<Picture> {
        let request = batch.requests[i];
        let mut image = None;
        let decoder = self.model.spec.in_stage(Stage::Decode).next();
        if let (Output::Image, Some(decoder)) = (request.output, decoder) {
            let pixels = self.section(decoder, age, i, batch, |instance| {
                stages::decode(&instance.positive, shape, values, &NoHooks)
            })?;
            image = Some(Image::from_f32(request.width, request.height, &pixels)?);
        }
        let &[_, height, width, channels] = shape.dims() else { unreachable!("latents have four sizes") };
        let latents = Latents { channels, height, width, values: stages::channels_first(values, shape) };
        let spans = std::mem::take(&mut batch.in_progress[i].spans);
        let dtypes = self.denoiser_dtypes(&spans);
        Ok(Picture { latents, image, spans, request: request.clone(), dtypes, model: self.model.clone() })
    }

    /// The types in which those devices of `spans` compute that ran the denoiser, each once.
    fn denoiser_dtypes(&self, spans: &[Span]) -> Vec<DType> {
        let denoiser = self.model.spec.denoiser();
        let ran = |id| spans.iter().any(|span| span.component == denoiser && span.devices.contains(&id));
        let sections = self.denoisers().iter().flat_map(Instance::networks).flat_map(|network| network.route.typed());
        each_once(sections.filter(|(device, _)| ran(device.id())).map(|(_, dtype)| dtype))
    }

    /// Waits for the devices of one instance of `component`, works there for request `i`, and writes down where and how
    /// long.
    fn section<'a, R>(
        &'a self,
        component: ComponentId,
        age: u64,
        i: usize,
        batch: &mut Batch<'a>,
        work: impl FnOnce(&Instance) -> Result<R>,
    ) -> Result<R> {
        let (clock, stage) = (self.gates.clock(), self.model.spec.components[component].stage());
        let instances = &self.parts[component];
        let choices: Vec<_> = instances.iter().map(|instance| instance.devices(false)).collect();
        let (choice, section) = self.gates.enter(age, stage.into(), &choices, batch.held.take())?;
        let devices = &choices[choice];
        let started = clock.now();
        batch.tell(i, Progress::Started { component, stage, devices: devices.clone(), calls: 0, at: started })?;
        let result = work(&instances[choice])?;
        let elapsed = clock.now() - started;
        batch.held = Some(section);
        let span = Span { component, devices: devices.clone(), started, elapsed };
        batch.in_progress[i].spans.push(span.clone());
        batch.tell(i, Progress::Finished(span))?;
        Ok(result)
    }

    /// The features of a text of request `i`, of one text encoder after the other: remembered, or made now.
    fn features<'a>(&'a self, text: &str, age: u64, i: usize, batch: &mut Batch<'a>) -> Result<TextFeatures> {
        // A request must not hold a device while it waits for a text that another request encodes.
        batch.held = None;
        let _turn = match self.texts.get_or_begin(text, age) {
            Known::Features(features) => return Ok(features),
            Known::Begun(turn) => turn,
        };
        let encoded = self.model.tokenizer.encode(text)?;
        if let Some(rest) = &encoded.truncated {
            tracing::warn!("the prompt is too long for this model; left out: {rest:?}");
        }
        let encoders = self.model.spec.in_stage(Stage::Encode);
        let features = encoders.map(|encoder| {
            let ids = encoded.ids.clone();
            self.section(encoder, age, i, batch, |instance| stages::encode(&instance.positive, ids, &NoHooks))
        });
        let features: TextFeatures = features.collect::<Result<Vec<_>>>()?.into();
        self.texts.put(text, features.clone());
        Ok(features)
    }
}

/// Which of a request's texts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    Negative,
    Positive,
}

/// The way of a request through the denoiser: it holds all devices from the beginning to the end, or passes the gate of each
/// device of a cut as it comes there, having left the one before.
struct Passage<'a> {
    gates: &'a Gates,
    age: u64,
    component: ComponentId,
    /// The device of each section, where the gates are passed one by one.
    route: Option<&'a Route>,
    /// What it holds, and since when.
    held: Mutex<Option<(DeviceGuard<'a>, Instant)>>,
    stretches: Mutex<Vec<Span>>,
}

impl<'a> Passage<'a> {
    fn new(
        gates: &'a Gates,
        age: u64,
        component: ComponentId,
        section: DeviceGuard<'a>,
        route: Option<&'a Route>,
    ) -> Self {
        let held = Mutex::new(Some((section, gates.clock().now())));
        Self { gates, age, component, route, held, stretches: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Option<(DeviceGuard<'a>, Instant)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All stretches since the last time, and the devices that it still holds.
    fn leave(&self) -> (Vec<Span>, Option<DeviceGuard<'a>>) {
        let held = self.pause();
        (std::mem::take(&mut self.stretches.lock().unwrap_or_else(PoisonError::into_inner)), held)
    }

    /// Ends the stretch that it is in, and gives its devices.
    fn pause(&self) -> Option<DeviceGuard<'a>> {
        let (section, started) = self.held().take()?;
        let elapsed = self.gates.clock().now() - started;
        let span = Span { component: self.component, devices: section.devices().to_vec(), started, elapsed };
        self.stretches.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        Some(section)
    }
}

impl SectionHooks for Passage<'_> {
    fn enter(&self, section: usize) -> Result<()> {
        let Some(route) = self.route else { return Ok(()) };
        let device = route.at(section).id();
        if self.held().as_ref().is_some_and(|(held, _)| held.devices() == [device]) {
            return Ok(());
        }
        let (_, section) = self.gates.enter(self.age, Work::Denoise, &[vec![device]], self.pause())?;
        *self.held() = Some((section, self.gates.clock().now()));
        Ok(())
    }
}
