//! One picture, from text to pixels.

pub mod gate;
pub mod image;
pub mod latents;
pub mod metadata;
pub mod model;
pub mod output;
pub mod placement;
pub mod request;
pub mod stages;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    backend::{Device, DeviceId},
    error::{Error, Result, Scope},
    models::{
        clip::ClipTextEncoder,
        route::{Borders, Keeps, Open, Route, Walk},
        unet::Unet,
        vae::VaeDecoder,
    },
    scheduler::schedule,
    sync::{Clock, Monitor},
    tensor::Shape,
    weights::Visitors,
};
use gate::{Gates, Section};
pub use image::Image;
pub use latents::Latents;
pub use metadata::Metadata;
pub use model::Model;
use request::{Output, Request};
use stages::{Begin, Branch, Denoise, Features, Noise};

/// A component of a pipeline: what a device map places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Text to features.
    TextEncoder,
    /// The denoiser.
    Unet,
    /// Latents to pictures.
    Vae,
}

impl Component {
    /// All of them, in the order in which a request passes them.
    pub const ALL: [Self; 3] = [Self::TextEncoder, Self::Unet, Self::Vae];

    /// Its name in `model_index.json` and in device maps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Unet => "unet",
            Self::Vae => "vae",
        }
    }
}

/// One thing for each component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerComponent<T> {
    /// The text encoder's.
    pub text_encoder: T,
    /// The UNet's.
    pub unet: T,
    /// The VAE's.
    pub vae: T,
}

impl<T> PerComponent<T> {
    /// Asks `f` for each.
    pub fn new(mut f: impl FnMut(Component) -> T) -> Self {
        Self { text_encoder: f(Component::TextEncoder), unet: f(Component::Unet), vae: f(Component::Vae) }
    }

    /// As [`PerComponent::new`], until an error.
    pub fn try_new(mut f: impl FnMut(Component) -> Result<T>) -> Result<Self> {
        Ok(Self { text_encoder: f(Component::TextEncoder)?, unet: f(Component::Unet)?, vae: f(Component::Vae)? })
    }

    /// One of them.
    pub fn get(&self, component: Component) -> &T {
        match component {
            Component::TextEncoder => &self.text_encoder,
            Component::Unet => &self.unet,
            Component::Vae => &self.vae,
        }
    }

    /// With their components.
    pub fn iter(&self) -> impl Iterator<Item = (Component, &T)> {
        Component::ALL.into_iter().map(|component| (component, self.get(component)))
    }
}

/// What happens to a request while it is worked on, by the engine's clock.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// A component begins. The text encoder begins once for each text that is not remembered.
    Started {
        /// Which.
        component: Component,
        /// Where.
        devices: Vec<DeviceId>,
        /// Calls of the UNet to come; 0 for the others.
        calls: usize,
        /// When.
        at: Instant,
    },
    /// The UNet goes on.
    Step {
        /// Calls that are done.
        done: usize,
        /// Calls in all.
        of: usize,
        /// When.
        at: Instant,
    },
    /// A component has finished.
    Finished(Span),
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Final latents, as diffusers gives them.
    pub latents: Latents,
    /// Pixels, unless only the latents were asked for.
    pub image: Option<Image>,
    /// Every stretch of work on it, in order. A text that was remembered and a picture that was not asked for took none.
    pub spans: Vec<Span>,
}

/// A component's work on one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// What worked.
    pub component: Component,
    /// Where.
    pub devices: Vec<DeviceId>,
    /// From when.
    pub started: Instant,
    /// For how long.
    pub elapsed: Duration,
}

impl Picture {
    /// Time on a component, in all.
    pub fn time(&self, component: Component) -> Duration {
        self.spans.iter().filter(|span| span.component == component).map(|span| span.elapsed).sum()
    }

    /// The devices that a component used, in order; none if it did nothing.
    pub fn devices(&self, component: Component) -> Vec<DeviceId> {
        let mut devices = Vec::new();
        for device in self.spans.iter().filter(|span| span.component == component).flat_map(|span| &span.devices) {
            if !devices.contains(device) {
                devices.push(*device);
            }
        }
        devices
    }
}

/// A network, where its sections run, and what has to be brought to them.
pub struct Network<N> {
    /// The network.
    pub network: Arc<N>,
    /// Its weights, if they rest elsewhere.
    pub visitors: Option<Arc<Visitors>>,
    /// A device for each section.
    pub route: Route,
}

impl<N> Network<N> {
    /// A walk through its sections that `borders` hears of.
    pub fn walk<'a>(&'a self, borders: &'a dyn Borders) -> Walk<'a> {
        Walk::new(&self.route, self.visitors.as_deref(), borders)
    }

    fn devices(&self) -> Vec<DeviceId> {
        self.route.devices().into_iter().map(|device| device.id()).collect()
    }
}

/// A UNet's place: one network for all texts of a request, or two for the negative and the positive one.
pub struct UnetPlace {
    /// The negative prompt's, if it has one of its own.
    pub negative: Option<Network<Unet>>,
    /// The prompt's, or that of both.
    pub positive: Network<Unet>,
}

impl UnetPlace {
    /// Its one or two networks.
    pub fn networks(&self) -> impl Iterator<Item = &Network<Unet>> {
        self.negative.iter().chain([&self.positive])
    }

    /// The devices that a request needs, with guidance or without.
    fn devices(&self, guided: bool) -> Vec<DeviceId> {
        let mut devices = self.positive.devices();
        if let (true, Some(negative)) = (guided, &self.negative) {
            devices.extend(negative.devices());
            devices.sort();
            devices.dedup();
        }
        devices
    }
}

/// The places of every component. Several are a pool, of which a request takes the first that is free.
pub struct Parts {
    /// Text to features.
    pub text_encoders: Vec<Network<ClipTextEncoder>>,
    /// The denoiser.
    pub unets: Vec<UnetPlace>,
    /// Latents to pictures.
    pub vaes: Vec<Network<VaeDecoder>>,
}

/// What one request under way has of its own in a UNet's place.
pub struct Slot {
    negative: Option<(Route, Keeps)>,
    positive: (Route, Keeps),
    /// It passes from device to device, and leaves those behind it to others.
    passes: bool,
}

impl Slot {
    /// For a request in `place`, with `keeps` on each of its devices. With `lanes`, one for each device of a cut UNet, it
    /// works in these and passes the gates one by one.
    pub fn new(place: &UnetPlace, keeps: &Keeps, lanes: &[Device]) -> Self {
        let passes = !lanes.is_empty() && place.negative.is_none() && place.positive.route.devices().len() > 1;
        let lanes = if passes { lanes } else { &[] };
        let own = |network: &Network<Unet>| (network.route.with_lanes(lanes), keeps.with_lanes(lanes));
        Self { negative: place.negative.as_ref().map(own), positive: own(&place.positive), passes }
    }
}

/// How a place works on texts: `[negative, positive]` or `[positive]`. The negative texts come first.
pub fn branches<'a>(
    place: &'a UnetPlace,
    slot: &'a Slot,
    mut texts: Vec<Features>,
    guided: bool,
    borders: &'a (dyn Borders + Sync),
) -> Vec<Branch<'a>> {
    let branch = |network: &'a Network<Unet>, (route, keeps): &'a (Route, Keeps), texts| Branch {
        unet: &network.network,
        visitors: network.visitors.as_deref(),
        route,
        keeps,
        borders,
        texts,
    };
    match (&place.negative, &slot.negative) {
        (Some(network), Some(own)) if guided => {
            let positive = texts.split_off(texts.len() / 2);
            vec![branch(network, own, texts), branch(&place.positive, &slot.positive, positive)]
        }
        _ => vec![branch(&place.positive, &slot.positive, texts)],
    }
}

/// One placement of one model, ready to draw. Several requests may pass through at once, each with its own [`Slot`]s.
pub struct Pipeline {
    model: Arc<Model>,
    parts: Parts,
    gates: Arc<Gates>,
    texts: Arc<TextCache>,
}

/// Hears what happens to a request, by its place in the batch, and may stop it with an error.
pub type OnProgress<'a> = &'a mut dyn FnMut(usize, Progress) -> Result<()>;

/// One request of a batch.
struct UnderWay {
    spans: Vec<Span>,
    /// Why it goes no further.
    stopped: Option<Error>,
}

/// The requests of one batch on their way.
struct Batch<'a> {
    requests: &'a [&'a Request],
    under_way: Vec<UnderWay>,
    progress: OnProgress<'a>,
}

impl Batch<'_> {
    /// Tells one request's listener, who may stop it.
    ///
    /// # Errors
    /// If no request is left that goes on.
    fn tell(&mut self, i: usize, progress: Progress) -> Result<()> {
        if self.under_way[i].stopped.is_none()
            && let Err(error) = (self.progress)(i, progress)
        {
            self.under_way[i].stopped = Some(error);
        }
        match self.going().next() {
            Some(_) => Ok(()),
            None => Err(Error::interrupted()),
        }
    }

    /// Tells all of them.
    fn tell_all(&mut self, progress: &Progress) -> Result<()> {
        (0..self.requests.len()).try_for_each(|i| self.tell(i, progress.clone()))
    }

    /// Those that go on.
    fn going(&self) -> impl Iterator<Item = usize> {
        (0..self.requests.len()).filter(|&i| self.under_way[i].stopped.is_none())
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

    /// What one request under way needs in each of the UNet's places: `keeps` has an arena on every one of their devices
    /// that nobody else uses meanwhile, `lanes` one for each device of those that are cut and shared with others.
    pub fn slots(&self, keeps: &Keeps, lanes: &[Device]) -> Vec<Slot> {
        self.parts.unets.iter().map(|place| Slot::new(place, keeps, lanes)).collect()
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
        let under_way = requests
            .iter()
            .map(|request| UnderWay { spans: Vec::with_capacity(4), stopped: request.check(&self.model.spec).err() });
        let mut batch = Batch { requests, under_way: under_way.collect(), progress };
        let drawn = if batch.going().next().is_some() { self.draw(&mut batch, age, slots) } else { Ok(Vec::new()) };
        let stopped = batch.under_way.iter_mut().map(|one| one.stopped.take()).collect::<Vec<_>>();
        match drawn {
            // Nobody goes on, and each has its own reason.
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

    /// The pictures of those that go on, each with its place in the batch.
    fn draw(&self, batch: &mut Batch, age: u64, slots: &[Slot]) -> Result<Vec<(usize, Result<Picture>)>> {
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

        let scale = spec.vae.scale();
        let (height, width) = (first.height / scale, first.width / scale);
        let begin = |&i: &usize| Begin {
            guidance_scale: batch.requests[i].guidance_scale,
            noise: Noise::new(batch.requests[i]),
        };
        let images = members.iter().map(begin).collect();
        let denoise = Denoise { spec, schedule: &schedule, images, height, width };
        let latents = self.denoise(denoise, texts, guided, age, slots, batch)?;

        let shape = Shape::from([1, height, width, spec.unet.in_channels]);
        let mut pictures = Vec::with_capacity(members.len());
        for (i, values) in members.into_iter().zip(latents) {
            if batch.under_way[i].stopped.is_none() {
                let picture = match values {
                    Ok(values) => self.picture(&values, shape, age, i, batch),
                    Err(error) => Err(error),
                };
                match picture {
                    // A device that fails takes the others' pictures along.
                    Err(error) if !matches!(error.scope(), Scope::Request | Scope::Input | Scope::Interrupted) => {
                        return Err(error);
                    }
                    picture => pictures.push((i, picture)),
                }
            }
        }
        Ok(pictures)
    }

    /// The loop, in the first of the UNet's places that is free.
    fn denoise(
        &self,
        denoise: Denoise,
        texts: Vec<Features>,
        guided: bool,
        age: u64,
        slots: &[Slot],
        batch: &mut Batch,
    ) -> Result<Vec<Result<Vec<f32>>>> {
        let devices: Vec<_> = self.parts.unets.iter().map(|place| place.devices(guided)).collect();
        // Who passes from device to device begins with the first.
        let begins = |i: usize| match slots[i].passes {
            true => vec![self.parts.unets[i].positive.route.first().id()],
            false => devices[i].clone(),
        };
        let choices: Vec<_> = (0..devices.len()).map(begins).collect();
        let clock = self.gates.clock();
        let (choice, section) = self.gates.enter(age, &choices)?;
        let (place, slot) = (&self.parts.unets[choice], &slots[choice]);
        let passage = Passage::new(&self.gates, age, section, slot.passes.then_some(&place.positive.route));
        let (component, calls, started) = (Component::Unet, denoise.schedule.steps.len(), clock.now());
        batch.tell_all(&Progress::Started { component, devices: devices[choice].clone(), calls, at: started })?;
        let branches = branches(place, slot, texts, guided, &passage);
        let latents = stages::denoise(&branches, denoise, |done| {
            batch.tell_all(&Progress::Step { done, of: calls, at: clock.now() })
        })?;
        let stretches = passage.leave();
        let whole = Span { component, devices: devices[choice].clone(), started, elapsed: clock.now() - started };
        for i in batch.going().collect::<Vec<_>>() {
            batch.under_way[i].spans.extend(stretches.iter().cloned());
            batch.tell(i, Progress::Finished(whole.clone()))?;
        }
        Ok(latents)
    }

    /// The picture of request `i` from its latents.
    fn picture(&self, values: &[f32], shape: Shape, age: u64, i: usize, batch: &mut Batch) -> Result<Picture> {
        let request = batch.requests[i];
        let mut image = None;
        if request.output == Output::Image {
            let choices: Vec<_> = self.parts.vaes.iter().map(Network::devices).collect();
            let pixels = self.section(Component::Vae, age, &choices, i, batch, |choice| {
                stages::decode(&self.parts.vaes[choice], shape, values, &Open)
            })?;
            image = Some(Image::from_f32(request.width, request.height, &pixels)?);
        }
        let &[_, height, width, channels] = shape.dims() else { unreachable!("latents have four sizes") };
        let latents = Latents { channels, height, width, values: stages::channels_first(values, shape) };
        Ok(Picture { latents, image, spans: std::mem::take(&mut batch.under_way[i].spans) })
    }

    /// Waits for the devices of one of `choices`, works there for request `i`, and writes down where and how long.
    fn section<R>(
        &self,
        component: Component,
        age: u64,
        choices: &[Vec<DeviceId>],
        i: usize,
        batch: &mut Batch,
        work: impl FnOnce(usize) -> Result<R>,
    ) -> Result<R> {
        let clock = self.gates.clock();
        let (choice, section) = self.gates.enter(age, choices)?;
        let devices = &choices[choice];
        let started = clock.now();
        batch.tell(i, Progress::Started { component, devices: devices.clone(), calls: 0, at: started })?;
        let result = work(choice)?;
        let elapsed = clock.now() - started;
        drop(section);
        let span = Span { component, devices: devices.clone(), started, elapsed };
        batch.under_way[i].spans.push(span.clone());
        batch.tell(i, Progress::Finished(span))?;
        Ok(result)
    }

    /// The features of a text of request `i`: remembered, or made now.
    fn features(&self, text: &str, age: u64, i: usize, batch: &mut Batch) -> Result<Features> {
        // Nobody holds a device while another request makes what it wants.
        let _turn = match self.texts.get_or_begin(text, age) {
            Known::Features(features) => return Ok(features),
            Known::Begun(turn) => turn,
        };
        let encoded = self.model.tokenizer.encode(text)?;
        if let Some(rest) = &encoded.truncated {
            tracing::warn!("the prompt is too long for this model; left out: {rest:?}");
        }
        let choices: Vec<_> = self.parts.text_encoders.iter().map(Network::devices).collect();
        let features = self.section(Component::TextEncoder, age, &choices, i, batch, |choice| {
            stages::encode(&self.parts.text_encoders[choice], encoded.ids, &Open)
        })?;
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

/// The way of a request through the UNet: it holds all devices from the beginning to the end, or passes the gate of each
/// device of a cut as it comes there, having left the one before.
struct Passage<'a> {
    gates: &'a Gates,
    age: u64,
    /// The device of each section, where the gates are passed one by one.
    route: Option<&'a Route>,
    /// What it holds, and since when.
    held: Mutex<Option<(Section<'a>, Instant)>>,
    stretches: Mutex<Vec<Span>>,
}

impl<'a> Passage<'a> {
    fn new(gates: &'a Gates, age: u64, section: Section<'a>, route: Option<&'a Route>) -> Self {
        let held = Mutex::new(Some((section, gates.clock().now())));
        Self { gates, age, route, held, stretches: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Option<(Section<'a>, Instant)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the devices that it holds, and gives all stretches since the last time.
    fn leave(&self) -> Vec<Span> {
        self.pause();
        std::mem::take(&mut self.stretches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn pause(&self) {
        if let Some((section, started)) = self.held().take() {
            let elapsed = self.gates.clock().now() - started;
            let span = Span { component: Component::Unet, devices: section.devices().to_vec(), started, elapsed };
            self.stretches.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        }
    }
}

impl Borders for Passage<'_> {
    fn enter(&self, section: usize) -> Result<()> {
        let Some(route) = self.route else { return Ok(()) };
        let device = route.at(section).id();
        if self.held().as_ref().is_some_and(|(held, _)| held.devices() == [device]) {
            return Ok(());
        }
        self.pause();
        let (_, section) = self.gates.enter(self.age, &[vec![device]])?;
        *self.held() = Some((section, self.gates.clock().now()));
        Ok(())
    }
}

/// The features of the texts that were used last, on the host. They depend on the text alone, so any replica whose text
/// encoder is of the same numerics class may use them. Each is made once: who wants one that is being made waits for it.
pub struct TextCache {
    state: Monitor<Texts>,
    most: usize,
}

#[derive(Default)]
struct Texts {
    /// The last one used first.
    known: VecDeque<(String, Features)>,
    /// Texts that are being encoded, each with the number of the turn and the age of the request.
    begun: Vec<(String, u64, u64)>,
    turns: u64,
}

/// What is known of a text.
enum Known<'a> {
    Features(Features),
    /// Nothing: whoever asked encodes it, and is waited for until this drops.
    Begun(Turn<'a>),
}

struct Turn<'a> {
    texts: &'a TextCache,
    number: u64,
}

impl Default for TextCache {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}

impl TextCache {
    /// An empty one.
    pub fn new(clock: Clock) -> Self {
        Self { state: Monitor::new(Texts::default(), clock), most: 64 }
    }

    fn get_or_begin(&self, text: &str, age: u64) -> Known<'_> {
        self.state.wait_until(|texts| {
            if let Some(i) = texts.known.iter().position(|(known, _)| known == text) {
                let entry = texts.known.remove(i)?;
                let features = entry.1.clone();
                texts.known.push_front(entry);
                return Some(Known::Features(features));
            }
            if texts.begun.iter().any(|(begun, ..)| begun == text) {
                return None;
            }
            texts.turns += 1;
            texts.begun.push((text.to_string(), texts.turns, age));
            Some(Known::Begun(Turn { texts: self, number: texts.turns }))
        })
    }

    fn put(&self, text: &str, features: Features) {
        self.state.update(|texts| {
            texts.known.push_front((text.to_string(), features));
            texts.known.truncate(self.most);
        });
    }

    /// Nobody waits any longer for what this request has begun: it will not come to an end.
    pub fn give_up(&self, age: u64) {
        self.state.update(|texts| texts.begun.retain(|(_, _, other)| *other != age));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.texts.state.update(|texts| texts.begun.retain(|(_, number, _)| *number != self.number));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_text_is_made_once_and_a_request_that_hangs_holds_up_nobody() {
        let texts = TextCache::default();
        let begin = |text, age| match texts.get_or_begin(text, age) {
            Known::Begun(turn) => turn,
            Known::Features(_) => panic!("{text} is not known yet"),
        };
        let first = begin("a fox", 1);
        let _other = begin("a dog", 2);
        thread::scope(|scope| {
            let waits = scope.spawn(|| matches!(texts.get_or_begin("a fox", 3), Known::Features(_)));
            texts.put("a fox", Features::from([1.0]));
            drop(first);
            assert!(waits.join().unwrap());
            let waits = scope.spawn(|| matches!(texts.get_or_begin("a dog", 3), Known::Begun(_)));
            texts.give_up(2);
            assert!(waits.join().unwrap(), "the third does what the second will not");
        });
    }

    #[test]
    fn the_texts_used_last_are_remembered() {
        let texts = TextCache { most: 2, ..TextCache::default() };
        let known = |text| matches!(texts.get_or_begin(text, 0), Known::Features(_));
        for text in ["a", "b"] {
            texts.put(text, Features::from([1.0]));
        }
        assert!(known("a"));
        texts.put("c", Features::from([1.0]));
        assert_eq!(["a", "b", "c"].map(known), [true, false, true]);
    }
}
