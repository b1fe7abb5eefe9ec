//! One picture, from text to pixels.

pub mod image;
pub mod latents;
pub mod metadata;
pub mod model;
pub mod output;
pub mod request;
pub mod stages;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    backend::{Device, Keep},
    error::Result,
    models::{clip::ClipTextEncoder, unet::Unet, vae::VaeDecoder},
    scheduler::schedule,
    tensor::Shape,
};
pub use image::Image;
pub use latents::Latents;
pub use metadata::Metadata;
pub use model::Model;
use request::{Output, Request};
use stages::{Denoise, Features, Noise};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Which device runs each component.
pub type Placement = PerComponent<Device>;

/// What happens to a request while it is worked on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress {
    /// A component begins; the UNet with this many calls to come, the others with 0.
    Started(Component, usize),
    /// So many calls of the UNet are done.
    Step(usize),
    /// A component has finished after this long.
    Finished(Component, Duration),
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Final latents, as diffusers gives them.
    pub latents: Latents,
    /// Pixels, unless only the latents were asked for.
    pub image: Option<Image>,
    /// Time on each component; nothing for a text that was remembered or a picture that was not asked for.
    pub timings: PerComponent<Duration>,
}

/// The loaded components; replicas in one memory share them.
#[derive(Clone)]
pub struct Parts {
    /// Text to features.
    pub text_encoder: Arc<ClipTextEncoder>,
    /// The denoiser.
    pub unet: Arc<Unet>,
    /// Latents to pictures.
    pub vae: Arc<VaeDecoder>,
}

/// One placement of one model, ready to draw.
pub struct Pipeline {
    model: Arc<Model>,
    parts: Parts,
    placement: Placement,
    keep: Keep,
    texts: Arc<TextCache>,
}

impl Pipeline {
    /// `keep` is on the UNet's device and outlives its sections.
    pub fn new(model: Arc<Model>, parts: Parts, placement: Placement, keep: Keep, texts: Arc<TextCache>) -> Self {
        Self { model, parts, placement, keep, texts }
    }

    /// Which device runs each component.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The keep arena beside the UNet.
    pub fn keep(&self) -> &Keep {
        &self.keep
    }

    /// Draws one picture. `progress` hears what happens and may stop the request with an error.
    ///
    /// # Errors
    /// If the request does not fit the model or the plan, a device fails, a value is not finite, or `progress` says so.
    pub fn generate(&self, request: &Request, progress: &mut dyn FnMut(Progress) -> Result<()>) -> Result<Picture> {
        let spec = &self.model.spec;
        request.check(spec)?;
        let schedule = schedule(&spec.scheduler_for(request.scheduler)?, request.steps)?;
        let mut timings = PerComponent::new(|_| Duration::ZERO);

        let guided = request.guidance_scale > 1.0;
        let mut texts = Vec::with_capacity(2);
        let started = Instant::now();
        progress(Progress::Started(Component::TextEncoder, 0))?;
        for text in guided.then_some(&request.negative_prompt).into_iter().chain([&request.prompt]) {
            texts.push(self.features(text)?);
        }
        timings.text_encoder = started.elapsed();
        progress(Progress::Finished(Component::TextEncoder, timings.text_encoder))?;

        let scale = spec.vae.scale();
        let (height, width) = (request.height / scale, request.width / scale);
        let started = Instant::now();
        progress(Progress::Started(Component::Unet, schedule.steps.len()))?;
        let values = {
            let _section = self.placement.unet.enter();
            let denoise = Denoise {
                spec,
                schedule: &schedule,
                guidance_scale: request.guidance_scale,
                texts: &texts,
                height,
                width,
                noise: Noise::new(request),
            };
            stages::denoise(&self.parts.unet, &self.placement.unet, &self.keep, denoise, |done| {
                progress(Progress::Step(done))
            })?
        };
        timings.unet = started.elapsed();
        progress(Progress::Finished(Component::Unet, timings.unet))?;

        let shape = Shape::from([1, height, width, spec.unet.in_channels]);
        let mut image = None;
        if request.output == Output::Image {
            let started = Instant::now();
            progress(Progress::Started(Component::Vae, 0))?;
            let pixels = {
                let _section = self.placement.vae.enter();
                stages::decode(&self.parts.vae, &self.placement.vae, shape, &values)?
            };
            image = Some(Image::from_f32(request.width, request.height, &pixels)?);
            timings.vae = started.elapsed();
            progress(Progress::Finished(Component::Vae, timings.vae))?;
        }
        let latents =
            Latents { channels: shape.channels(), height, width, values: stages::channels_first(&values, shape) };
        Ok(Picture { latents, image, timings })
    }

    /// The features of a text: remembered, or made now.
    fn features(&self, text: &str) -> Result<Features> {
        if let Some(features) = self.texts.get(text) {
            return Ok(features);
        }
        let encoded = self.model.tokenizer.encode(text)?;
        if let Some(rest) = &encoded.truncated {
            tracing::warn!("the prompt is too long for this model; left out: {rest}");
        }
        let device = &self.placement.text_encoder;
        let features = {
            let _section = device.enter();
            stages::encode(&self.parts.text_encoder, device, encoded.ids)?
        };
        self.texts.put(text, features.clone());
        Ok(features)
    }
}

/// The features of the texts that were used last, on the host. They depend on the text alone, so any replica whose text
/// encoder is of the same numerics class may use them.
pub struct TextCache {
    entries: Mutex<VecDeque<(String, Features)>>,
    most: usize,
}

impl Default for TextCache {
    fn default() -> Self {
        Self { entries: Mutex::default(), most: 64 }
    }
}

impl TextCache {
    fn entries(&self) -> std::sync::MutexGuard<'_, VecDeque<(String, Features)>> {
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn get(&self, text: &str) -> Option<Features> {
        let mut entries = self.entries();
        let entry = entries.iter().position(|(known, _)| known == text).and_then(|i| entries.remove(i))?;
        entries.push_front(entry);
        entries.front().map(|(_, features)| features.clone())
    }

    fn put(&self, text: &str, features: Features) {
        let mut entries = self.entries();
        entries.push_front((text.to_string(), features));
        entries.truncate(self.most);
    }
}
