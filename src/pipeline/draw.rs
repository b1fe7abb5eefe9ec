//! Draws requests that form a batch, from texts to pictures, with the devices of one placement.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    branch::branches,
    controls::{Controller, Controls},
    denoise::{DenoiseInput, PictureStart, denoise},
    gate::{DeviceGuard, Gates, Work},
    image::Image,
    latents::Latents,
    model::Model,
    parts::{Instance, Parts, Slot},
    picture::{Picture, Progress, Span},
    placement::each_once,
    request::{Output, Request},
    stages,
    start::{self, Beginning, Encoded, channels_first},
    texts::{Known, Text, TextCache},
};
use crate::{
    backend::{Device, Precision},
    error::{Error, ErrorScope, Result},
    models::{
        component::{ComponentId, Stage},
        route::{NoHooks, PersistentArenas, Route, SectionHooks},
        spec::{LatentSpec, SdxlSpec},
        unet::{Condition, TextFeatures},
    },
    tensor::{Shape, Tensor},
};

/// One loaded placement of a model. Several requests may be in progress at once, each with its own [`Slot`]s.
pub struct Pipeline {
    model: Arc<Model>,
    parts: Parts,
    gates: Arc<Gates>,
    texts: Arc<TextCache>,
}

/// A callback for the progress of a request, given by its index in the batch. An error stops the request.
pub type OnProgress<'a> = &'a mut dyn FnMut(usize, Progress) -> Result<()>;

/// The state of one request of a batch.
struct Member {
    spans: Vec<Span>,
    /// The error that stopped the request, if any.
    stopped: Option<Error>,
}

/// The requests of one batch in progress.
struct Batch<'a> {
    requests: &'a [&'a Request],
    members: Vec<Member>,
    progress: OnProgress<'a>,
    /// The devices of the stage that has just ended. [`Gates::enter`] releases them when the batch asks for the next
    /// ones.
    held: Option<DeviceGuard<'a>>,
}

impl Batch<'_> {
    /// Reports the progress of one request, and records an error of the callback, which stops the request.
    ///
    /// # Errors
    /// If all requests have been stopped.
    fn report(&mut self, i: usize, progress: Progress) -> Result<()> {
        if self.members[i].stopped.is_none()
            && let Err(error) = (self.progress)(i, progress)
        {
            self.members[i].stopped = Some(error);
        }
        match self.active().next() {
            Some(_) => Ok(()),
            None => Err(Error::interrupted()),
        }
    }

    /// Reports the progress of all requests.
    fn report_all(&mut self, progress: &Progress) -> Result<()> {
        (0..self.requests.len()).try_for_each(|i| self.report(i, progress.clone()))
    }

    /// Whether the steps of one request are reported with latents.
    fn wants_latents(&self, i: usize) -> bool {
        self.requests[i].step_latents && self.members[i].stopped.is_none()
    }

    /// The indices of the requests that were not stopped.
    fn active(&self) -> impl Iterator<Item = usize> {
        (0..self.requests.len()).filter(|&i| self.members[i].stopped.is_none())
    }
}

impl Pipeline {
    /// A pipeline whose `gates` are shared by all pipelines that have a device in common with it.
    pub fn new(model: Arc<Model>, parts: Parts, gates: Arc<Gates>, texts: Arc<TextCache>) -> Self {
        Self { model, parts, gates, texts }
    }

    /// The networks and where they run.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The slots of one request in progress, one for each of the denoiser's instances. `keeps` has this request's own
    /// arena on each of their devices. `scratch` has one more arena on each device of a cut instance that other
    /// requests use in between; it is empty if there is none.
    pub fn slots(&self, keeps: &PersistentArenas, scratch: &[Device]) -> Vec<Slot> {
        self.denoisers().iter().map(|instance| Slot::new(instance, keeps, scratch)).collect()
    }

    /// The instances of the denoiser.
    fn denoisers(&self) -> &[Instance] {
        &self.parts[self.model.spec.denoiser()]
    }

    /// Draws one picture for each of `requests`, which form [one batch](Request::goes_with). `arrival` is smaller for
    /// older requests.
    ///
    /// # Errors
    /// For all: if a device fails, an arena is full, or a text's features are not finite. For one: if it does not fit
    /// the model, `progress` stops it, or its latents or pixels are not finite.
    pub fn generate(
        &self,
        requests: &[&Request],
        arrival: u64,
        slots: &[Slot],
        progress: OnProgress,
    ) -> Result<Vec<Result<Picture>>> {
        let members = requests
            .iter()
            .map(|request| Member { spans: Vec::with_capacity(4), stopped: request.check(&self.model.spec).err() });
        let mut batch = Batch { requests, members: members.collect(), progress, held: None };
        let drawn =
            if batch.active().next().is_some() { self.draw(&mut batch, arrival, slots) } else { Ok(Vec::new()) };
        let stopped = batch.members.iter_mut().map(|one| one.stopped.take()).collect::<Vec<_>>();
        match drawn {
            // All requests were stopped, each with its own error.
            Err(_) if stopped.iter().all(Option::is_some) => Ok(stopped.into_iter().flatten().map(Err).collect()),
            Err(error) => Err(error),
            Ok(mut pictures) => {
                let mut picture = |i| pictures.iter().position(|(of, _)| *of == i).map(|at| pictures.swap_remove(at).1);
                let result = |(i, stopped): (usize, Option<Error>)| match (stopped, picture(i)) {
                    (Some(error), _) => Err(error),
                    (None, Some(result)) => result,
                    (None, None) => unreachable!("a request that was not stopped has a picture"),
                };
                Ok(stopped.into_iter().enumerate().map(result).collect())
            }
        }
    }

    /// Draws one request, or several as a batch, from texts to pictures: encode, denoise, decode. Returns the pictures
    /// of those that were not stopped, each with its index in the batch.
    fn draw<'a>(
        &'a self,
        batch: &mut Batch<'a>,
        arrival: u64,
        slots: &[Slot],
    ) -> Result<Vec<(usize, Result<Picture>)>> {
        let spec = &self.model.spec;
        let indices: Vec<usize> = batch.active().collect();
        let first = batch.requests[indices[0]];
        let schedule = first.schedule(spec)?;
        let guided = first.is_guided(spec);
        let LatentSpec { channels, scale, .. } = spec.latents;
        let shape = Shape::from([1, first.height / scale, first.width / scale, channels]);

        let prompts = [guided.then_some(true), Some(false)].into_iter().flatten();
        let prompts: Vec<(bool, usize)> =
            prompts.flat_map(|is_negative| indices.iter().map(move |&i| (is_negative, i))).collect();
        let mut rows = Vec::with_capacity(prompts.len());
        for &(is_negative, i) in &prompts {
            let request = batch.requests[i];
            let text = if is_negative { request.negative_text(spec) } else { Some(request.text()) };
            let text = match text {
                Some(text) => self.features(&text, arrival, i, batch)?,
                None => spec.texts().map(|text| text.filled(request.chunks, |_| 0.0)).collect(),
            };
            let numbers = |sdxl: SdxlSpec| sdxl.numbers(request.height, request.width, is_negative);
            let (numbers, guidance_scale) = (spec.sdxl.map_or(Vec::new(), numbers), request.guidance_scale);
            rows.push(Condition { text, numbers, guidance_scale, beside: Vec::new() });
        }

        let mut pictures = Vec::with_capacity(indices.len());
        for &i in &indices {
            let request = batch.requests[i];
            let (beginning, beside) = self.begin(request, shape, arrival, i, batch)?;
            let of_request = rows.iter_mut().zip(&prompts).filter(|(_, (_, of))| *of == i);
            of_request.for_each(|(row, _)| row.beside.clone_from(&beside));
            let (guidance_scale, guidance_rescale) = (request.guidance_scale, request.guidance_rescale);
            let controls = request.control_pixels();
            pictures.push(PictureStart { guidance_scale, guidance_rescale, beginning, controls });
        }

        let input = DenoiseInput { schedule: &schedule, pictures, shape };
        let latents = self.denoise(input, rows, &indices, arrival, slots, batch)?;

        let mut pictures = Vec::with_capacity(indices.len());
        for (i, values) in indices.into_iter().zip(latents) {
            if batch.members[i].stopped.is_none() {
                let picture = match values {
                    Ok(values) => self.picture(&values, shape, arrival, i, batch),
                    Err(error) => Err(error),
                };
                match picture {
                    // A device or a process that failed ends the whole batch.
                    Err(error)
                        if !matches!(
                            error.scope(),
                            ErrorScope::Request | ErrorScope::Input | ErrorScope::Interrupted
                        ) =>
                    {
                        return Err(error);
                    }
                    picture => pictures.push((i, picture)),
                }
            }
        }
        Ok(pictures)
    }

    /// Encodes the picture that request `i` starts from, if there is one, and draws its first random numbers. Returns
    /// also the input of an inpainting network beside the latents: see [`Beginning::new`].
    fn begin<'a>(
        &'a self,
        request: &Request,
        shape: Shape,
        arrival: u64,
        i: usize,
        batch: &mut Batch<'a>,
    ) -> Result<(Beginning, Vec<f32>)> {
        let spec = &self.model.spec;
        let pictures = start::needed(request, spec);
        let mut encoded = Encoded::default();
        if let Some(encoder) = spec.in_stage(Stage::EncodeImage).next() {
            let pixels = Shape::from([1, request.height, request.width, 3]);
            let tiles = spec.tiles(encoder).filter(|_| request.vae_tiling);
            for (picture, encoded) in [(pictures.image, &mut encoded.image), (pictures.masked, &mut encoded.masked)] {
                let Some(picture) = picture else { continue };
                *encoded = Some(self.with_instance(encoder, arrival, i, batch, |instance| {
                    stages::encode_image(&instance.positive, tiles, pixels, &picture, &NoHooks)
                })?);
            }
        }
        Ok(Beginning::new(request, spec, shape, encoded, pictures.mask.as_ref()))
    }

    /// Runs the denoising loop in the first of the denoiser's instances that is free, for the requests with these
    /// indices.
    fn denoise<'a>(
        &'a self,
        input: DenoiseInput,
        rows: Vec<Condition>,
        indices: &[usize],
        arrival: u64,
        slots: &[Slot],
        batch: &mut Batch<'a>,
    ) -> Result<Vec<Result<Vec<f32>>>> {
        let spec = &self.model.spec;
        let (component, instances) = (spec.denoiser(), self.denoisers());
        // The requests of a batch have equal controls but for the pictures, and all are guided or none is.
        let request = batch.requests[indices[0]];
        let guided = request.is_guided(spec);
        // Each instance of the denoiser has the same instance of a ControlNet every time.
        let controlling = |choice: usize| {
            let pools = spec.controlnets().map(|id| &self.parts[id]);
            pools.map(move |pool| &pool[choice % pool.len()]).collect::<Vec<_>>()
        };
        let devices_of = |(choice, instance): (usize, &Instance)| {
            let controls = controlling(choice).into_iter().flat_map(|instance| instance.devices(false));
            each_once(instance.devices(guided).into_iter().chain(controls))
        };
        let devices: Vec<_> = instances.iter().enumerate().map(devices_of).collect();
        // A request that holds the devices of a cut network one by one begins with the first.
        let first_devices = |choice: usize| match slots[choice].one_by_one {
            true => vec![instances[choice].positive.route.first().id()],
            false => devices[choice].clone(),
        };
        let choices: Vec<_> = (0..devices.len()).map(first_devices).collect();
        let clock = self.gates.clock();
        let (choice, guard) = self.gates.enter(arrival, Work::Denoise, &choices, batch.held.take())?;
        let (instance, slot) = (&instances[choice], &slots[choice]);
        let route = slot.one_by_one.then_some(&instance.positive.route);
        let held_devices = HeldDevices::new(&self.gates, arrival, component, guard, route);
        let (calls, started, stage) = (input.schedule.steps.len(), clock.now(), Stage::Denoise);
        batch.report_all(&Progress::Started {
            component,
            stage,
            devices: devices[choice].clone(),
            calls,
            at: started,
        })?;
        let controller = |(i, instance): (usize, &'a Instance)| Controller {
            placed: &instance.positive,
            keeps: &slot.positive.1,
            rows: rows.clone(),
            pictures: input.pictures.iter().map(|picture| picture.controls[i].clone()).collect(),
            size: [request.height, request.width],
            control: &request.controls[i],
        };
        let controls = Controls::Networks(controlling(choice).into_iter().enumerate().map(controller).collect());
        let branches = branches(instance, slot, rows, guided, &held_devices);
        let latents = denoise(&branches, &controls, input, |done, latents| {
            let at = clock.now();
            indices.iter().enumerate().try_for_each(|(row, &i)| {
                let wanted = latents.get(row).filter(|_| batch.wants_latents(i));
                let latents = wanted.map(Tensor::read).transpose()?.map(Arc::from);
                batch.report(i, Progress::Step { done, of: calls, at, latents })
            })
        })?;
        let (spans, held) = held_devices.finish();
        batch.held = held;
        let whole = Span { component, devices: devices[choice].clone(), started, elapsed: clock.now() - started };
        for i in batch.active().collect::<Vec<_>>() {
            batch.members[i].spans.extend(spans.iter().cloned());
            batch.report(i, Progress::Finished(whole.clone()))?;
        }
        Ok(latents)
    }

    /// Decodes the latents of request `i` and makes its picture.
    fn picture<'a>(
        &'a self,
        values: &[f32],
        shape: Shape,
        arrival: u64,
        i: usize,
        batch: &mut Batch<'a>,
    ) -> Result<Picture> {
        let request = batch.requests[i];
        let mut image = None;
        let decoder = self.model.spec.in_stage(Stage::Decode).next();
        if let (Output::Image, Some(decoder)) = (request.output, decoder) {
            let tiles = self.model.spec.tiles(decoder).filter(|_| request.vae_tiling);
            let pixels = self.with_instance(decoder, arrival, i, batch, |instance| {
                stages::decode(&instance.positive, tiles, shape, values, &NoHooks)
            })?;
            let drawn = Image::from_f32(request.width, request.height, &pixels)?;
            image = Some(match request.start_image() {
                Some(start) => start.finished(drawn),
                None => drawn,
            });
        }
        let &[_, height, width, channels] = shape.dims() else { unreachable!("latents have four sizes") };
        let latents = Latents { channels, height, width, values: channels_first(values, shape) };
        let spans = std::mem::take(&mut batch.members[i].spans);
        let dtypes = self.denoiser_dtypes(&spans);
        Ok(Picture { latents, image, spans, request: request.clone(), dtypes, model: self.model.clone() })
    }

    /// The precisions of the denoiser on the devices that ran it, each once.
    fn denoiser_dtypes(&self, spans: &[Span]) -> Vec<Precision> {
        let denoiser = self.model.spec.denoiser();
        let ran = |id| spans.iter().any(|span| span.component == denoiser && span.devices.contains(&id));
        let sections = self.denoisers().iter().flat_map(Instance::networks).flat_map(|network| network.route.typed());
        each_once(sections.filter(|(device, _)| ran(device.id())).map(|(_, precision)| precision))
    }

    /// Waits for the devices of one instance of `component`, calls `work` there for request `i`, and records the
    /// devices and the time.
    fn with_instance<'a, R>(
        &'a self,
        component: ComponentId,
        arrival: u64,
        i: usize,
        batch: &mut Batch<'a>,
        work: impl FnOnce(&Instance) -> Result<R>,
    ) -> Result<R> {
        let (clock, stage) = (self.gates.clock(), self.model.spec.components[component].stage());
        let instances = &self.parts[component];
        let choices: Vec<_> = instances.iter().map(|instance| instance.devices(false)).collect();
        let (choice, guard) = self.gates.enter(arrival, stage.into(), &choices, batch.held.take())?;
        let devices = &choices[choice];
        let started = clock.now();
        batch.report(i, Progress::Started { component, stage, devices: devices.clone(), calls: 0, at: started })?;
        let result = work(&instances[choice])?;
        let elapsed = clock.now() - started;
        batch.held = Some(guard);
        let span = Span { component, devices: devices.clone(), started, elapsed };
        batch.members[i].spans.push(span.clone());
        batch.report(i, Progress::Finished(span))?;
        Ok(result)
    }

    /// The features of a text of request `i`, from every text encoder in order: from the cache, or computed now.
    fn features<'a>(&'a self, text: &Text, arrival: u64, i: usize, batch: &mut Batch<'a>) -> Result<TextFeatures> {
        // A request must not hold a device while it waits for a text that another request encodes.
        batch.held = None;
        let _turn = match self.texts.get_or_begin(text, arrival) {
            Known::Features(features) => return Ok(features),
            Known::Begun(turn) => turn,
        };
        let features = self.model.spec.in_stage(Stage::Encode).enumerate().map(|(index, encoder)| {
            let prompt = self.model.tokenized(index, text)?;
            if let Some(rest) = prompt.truncated.filter(|_| index == 0 || text.of(index) != text.of(0)) {
                tracing::warn!("the prompt is too long for this model; left out: {rest:?}");
            }
            self.with_instance(encoder, arrival, i, batch, |instance| {
                stages::encode_chunks(&instance.positive, &prompt.chunks, text.skip, &NoHooks)
            })
        });
        let features: TextFeatures = features.collect::<Result<Vec<_>>>()?.into();
        self.texts.put(text, features.clone());
        Ok(features)
    }
}

/// The devices that a request holds during the denoising loop: all devices of an instance from the beginning to the
/// end, or those of a cut network one by one, where the request releases each device before it waits for the next.
struct HeldDevices<'a> {
    gates: &'a Gates,
    arrival: u64,
    component: ComponentId,
    /// The device of each section, if they are held one by one.
    route: Option<&'a Route>,
    /// The devices that are held now, and since when.
    held: Mutex<Option<(DeviceGuard<'a>, Instant)>>,
    spans: Mutex<Vec<Span>>,
}

impl<'a> HeldDevices<'a> {
    fn new(
        gates: &'a Gates,
        arrival: u64,
        component: ComponentId,
        guard: DeviceGuard<'a>,
        route: Option<&'a Route>,
    ) -> Self {
        let held = Mutex::new(Some((guard, gates.clock().now())));
        Self { gates, arrival, component, route, held, spans: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Option<(DeviceGuard<'a>, Instant)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the last span. Returns all spans, and the devices that are still held.
    fn finish(&self) -> (Vec<Span>, Option<DeviceGuard<'a>>) {
        let held = self.end_span();
        (std::mem::take(&mut self.spans.lock().unwrap_or_else(PoisonError::into_inner)), held)
    }

    /// Ends the current span, and returns its devices.
    fn end_span(&self) -> Option<DeviceGuard<'a>> {
        let (guard, started) = self.held().take()?;
        let elapsed = self.gates.clock().now() - started;
        let span = Span { component: self.component, devices: guard.devices().to_vec(), started, elapsed };
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        Some(guard)
    }
}

impl SectionHooks for HeldDevices<'_> {
    fn enter(&self, section: usize) -> Result<()> {
        let Some(route) = self.route else { return Ok(()) };
        let device = route.at(section).id();
        if self.held().as_ref().is_some_and(|(held, _)| held.devices() == [device]) {
            return Ok(());
        }
        let (_, guard) = self.gates.enter(self.arrival, Work::Denoise, &[vec![device]], self.end_span())?;
        *self.held() = Some((guard, self.gates.clock().now()));
        Ok(())
    }
}
