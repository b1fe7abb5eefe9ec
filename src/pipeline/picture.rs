//! The result of a request: its progress, and the picture with the data for its metadata.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    image::{Image, PictureFormat},
    latents::{self, Latents},
    metadata::Metadata,
    model::Model,
    placement::each_once,
    request::Request,
};
use crate::{
    backend::{DeviceId, Precision},
    error::{Error, Result},
    models::component::{ComponentId, Stage},
    output::{self, Durability},
};

/// The progress of a request, with times of the engine's clock.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// A component begins. A text encoder begins once for each text that is not cached.
    Started {
        /// The component.
        component: ComponentId,
        /// The component's stage.
        stage: Stage,
        /// The devices that it uses.
        devices: Vec<DeviceId>,
        /// The number of calls of the denoiser; 0 in the other stages.
        calls: usize,
        /// The time of this event.
        at: Instant,
    },
    /// The denoiser has done a step.
    Step {
        /// The number of calls that are done.
        done: usize,
        /// The total number of calls.
        of: usize,
        /// The time of this event.
        at: Instant,
        /// The latents behind this step, f32 `[height / 8, width / 8, channels]`, with the scale of the model's VAE in
        /// place of 8. They are those of the solver: with the noise that is left, in the solver's own scale. `None` at
        /// step 0, and unless [`Request::step_latents`] asks for them.
        latents: Option<Arc<[f32]>>,
    },
    /// A component has finished its work on this request.
    Finished(Span),
}

/// The result of a request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Picture {
    /// The final latents, as in diffusers.
    pub latents: Latents,
    /// The image, unless only the latents were requested.
    pub image: Option<Image>,
    /// The spans of all work on the request, in order. A text from the cache and a picture that was not requested have
    /// none.
    pub spans: Vec<Span>,
    /// The request.
    pub request: Request,
    /// The types of the devices that ran the denoiser, each once.
    pub dtypes: Vec<Precision>,
    pub(super) model: Arc<Model>,
}

/// A component's work on one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The component that worked.
    pub component: ComponentId,
    /// The devices that were used.
    pub devices: Vec<DeviceId>,
    /// The time of its beginning, by the engine's clock.
    pub started: Instant,
    /// The duration.
    pub elapsed: Duration,
}

impl Picture {
    /// The total time of a component.
    pub fn time(&self, component: ComponentId) -> Duration {
        self.spans.iter().filter(|span| span.component == component).map(|span| span.elapsed).sum()
    }

    /// The devices that a component used, in order; empty if it did nothing.
    pub fn devices(&self, component: ComponentId) -> Vec<DeviceId> {
        let here = self.spans.iter().filter(|span| span.component == component);
        each_once(here.flat_map(|span| span.devices.iter().copied()))
    }

    /// The metadata of the picture's file.
    ///
    /// # Errors
    /// If the model's weights, which its identity depends on, cannot be read any more.
    pub fn metadata(&self) -> Result<Metadata> {
        Metadata::new(&self.request, &self.model, &*self.model.hashes()?, &self.dtypes)
    }

    /// Encodes the file with this metadata: in this format, or as safetensors if only the latents were requested.
    ///
    /// # Errors
    /// As [`Image::encode`].
    pub fn encode(&self, format: PictureFormat, metadata: &Metadata) -> Result<Vec<u8>> {
        match &self.image {
            Some(image) => image.encode(format, metadata),
            None => self.latents.encode(metadata),
        }
    }

    /// Writes the picture with its [`metadata`](Picture::metadata) to a file that ends in `.png`, `.jpg`, `.jpeg` or
    /// `.webp`, or its latents to one that ends in `.safetensors`. An existing file is replaced; the new file is on the
    /// disk when this returns.
    ///
    /// # Errors
    /// If the name has another ending, there is no image, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let metadata = self.metadata()?;
        let bytes = match (PictureFormat::of_extension(extension), &self.image) {
            (Some(format), Some(image)) => image.encode(format, &metadata)?,
            (Some(_), None) => {
                return Err(Error::input(format!("saving {}: the request was for latents alone", path.display()))
                    .hint("a name that ends in .safetensors, or Output::Image in the request"));
            }
            (None, _) if extension.eq_ignore_ascii_case(latents::EXTENSION) => self.latents.encode(&metadata)?,
            (None, _) => {
                return Err(Error::input(format!("saving {}: there is no such format", path.display()))
                    .hint("a name that ends in .png, .jpg, .webp or .safetensors"));
            }
        };
        output::write(path, &bytes, Durability::Synced)
    }
}
