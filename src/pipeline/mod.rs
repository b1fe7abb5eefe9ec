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
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backend::DeviceId,
    error::Result,
    models::{
        clip::ClipTextEncoder,
        route::{Keeps, Route},
        unet::Unet,
        vae::VaeDecoder,
    },
    scheduler::schedule,
    sync::{Clock, Monitor},
    tensor::Shape,
};
use gate::Gates;
pub use image::Image;
pub use latents::Latents;
pub use metadata::Metadata;
pub use model::Model;
use request::{Output, Request};
use stages::{Branch, Denoise, Features, Noise};

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

    /// The devices that a component used last; none if it did nothing.
    pub fn devices(&self, component: Component) -> &[DeviceId] {
        let last = self.spans.iter().rfind(|span| span.component == component);
        last.map_or(&[], |span| span.devices.as_slice())
    }
}

/// A network and where its sections run.
pub struct Network<N> {
    /// The network.
    pub network: Arc<N>,
    /// A device for each section.
    pub route: Route,
}

impl<N> Network<N> {
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

/// One placement of one model, ready to draw. Several requests may pass through at once, each with its own [`Keeps`].
pub struct Pipeline {
    model: Arc<Model>,
    parts: Parts,
    gates: Arc<Gates>,
    texts: Arc<TextCache>,
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

    /// Draws one picture. `keeps` has an arena on every device of the UNet's places that nobody else uses meanwhile;
    /// `age` tells older requests from younger ones. `progress` hears what happens and may stop the request with an
    /// error.
    ///
    /// # Errors
    /// If the request does not fit the model or the plan, a device fails, a value is not finite, or `progress` says so.
    pub fn generate(
        &self,
        request: &Request,
        age: u64,
        keeps: &Keeps,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Picture> {
        let spec = &self.model.spec;
        request.check(spec)?;
        let schedule = schedule(&spec.scheduler_for(request.scheduler)?, request.steps)?;
        let guided = request.guidance_scale > 1.0;
        let mut spans = Vec::with_capacity(4);

        let mut texts = Vec::with_capacity(2);
        for text in guided.then_some(&request.negative_prompt).into_iter().chain([&request.prompt]) {
            texts.push(self.features(text, age, &mut spans, progress)?);
        }

        let scale = spec.vae.scale();
        let (height, width) = (request.height / scale, request.width / scale);
        let choices: Vec<_> = self.parts.unets.iter().map(|place| place.devices(guided)).collect();
        let calls = schedule.steps.len();
        let values =
            self.section(Component::Unet, calls, age, &choices, &mut spans, progress, |choice, progress| {
                let noise = Noise::new(request);
                let denoise =
                    Denoise { spec, schedule: &schedule, guidance_scale: request.guidance_scale, height, width, noise };
                let branches = branches(&self.parts.unets[choice], texts, keeps);
                let clock = self.gates.clock();
                stages::denoise(&branches, denoise, |done| {
                    progress(Progress::Step { done, of: calls, at: clock.now() })
                })
            })?;

        let shape = Shape::from([1, height, width, spec.unet.in_channels]);
        let mut image = None;
        if request.output == Output::Image {
            let choices: Vec<_> = self.parts.vaes.iter().map(Network::devices).collect();
            let pixels = self.section(Component::Vae, 0, age, &choices, &mut spans, progress, |choice, _| {
                let vae = &self.parts.vaes[choice];
                stages::decode(&vae.network, &vae.route, shape, &values)
            })?;
            image = Some(Image::from_f32(request.width, request.height, &pixels)?);
        }
        let latents =
            Latents { channels: shape.channels(), height, width, values: stages::channels_first(&values, shape) };
        Ok(Picture { latents, image, spans })
    }

    /// Waits for the devices of one of `choices`, works there, and writes down where and how long.
    #[expect(clippy::too_many_arguments, reason = "what all three stages have in common stands here once")]
    fn section<R>(
        &self,
        component: Component,
        calls: usize,
        age: u64,
        choices: &[Vec<DeviceId>],
        spans: &mut Vec<Span>,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
        work: impl FnOnce(usize, &mut dyn FnMut(Progress) -> Result<()>) -> Result<R>,
    ) -> Result<R> {
        let clock = self.gates.clock();
        let (choice, section) = self.gates.enter(age, choices)?;
        let devices = &choices[choice];
        let started = clock.now();
        progress(Progress::Started { component, devices: devices.clone(), calls, at: started })?;
        let result = work(choice, progress)?;
        let elapsed = clock.now() - started;
        drop(section);
        let span = Span { component, devices: devices.clone(), started, elapsed };
        spans.push(span.clone());
        progress(Progress::Finished(span))?;
        Ok(result)
    }

    /// The features of a text: remembered, or made now.
    fn features(
        &self,
        text: &str,
        age: u64,
        spans: &mut Vec<Span>,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Features> {
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
        let features = self.section(Component::TextEncoder, 0, age, &choices, spans, progress, |choice, _| {
            let encoder = &self.parts.text_encoders[choice];
            stages::encode(&encoder.network, &encoder.route, encoded.ids)
        })?;
        self.texts.put(text, features.clone());
        Ok(features)
    }
}

/// How a place works on texts: `[negative, positive]` or `[positive]`.
pub fn branches<'a>(place: &'a UnetPlace, mut texts: Vec<Features>, keeps: &'a Keeps) -> Vec<Branch<'a>> {
    let branch = |unet: &'a Network<Unet>, texts| Branch { unet: &unet.network, route: &unet.route, keeps, texts };
    match &place.negative {
        Some(negative) if texts.len() == 2 => {
            let positive = texts.split_off(1);
            vec![branch(negative, texts), branch(&place.positive, positive)]
        }
        _ => vec![branch(&place.positive, texts)],
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
