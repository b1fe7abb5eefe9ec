//! What a request becomes: its progress, and the picture with all that is known of how it was made.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    image::Image,
    latents::{self, Latents},
    metadata::Metadata,
    model::Model,
    placement::each_once,
    request::Request,
};
use crate::{
    backend::{DType, DeviceId},
    error::{Error, Result},
    models::component::{ComponentId, Stage},
    output::{self, Durability},
};

/// What happens to a request while it is worked on, by the engine's clock.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// A component begins. A text encoder begins once for each text that is not remembered.
    Started {
        /// The component.
        component: ComponentId,
        /// Its stage.
        stage: Stage,
        /// Its devices.
        devices: Vec<DeviceId>,
        /// Calls of the denoiser to come; 0 in the other stages.
        calls: usize,
        /// When, by the engine's clock.
        at: Instant,
    },
    /// The denoiser has done a step.
    Step {
        /// Calls that are done.
        done: usize,
        /// Calls in all.
        of: usize,
        /// When, by the engine's clock.
        at: Instant,
    },
    /// A component has finished its work on this request.
    Finished(Span),
}

/// What came out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Picture {
    /// Final latents, as diffusers gives them.
    pub latents: Latents,
    /// Pixels, unless only the latents were asked for.
    pub image: Option<Image>,
    /// Every stretch of work on it, in order. A text that was remembered and a picture that was not asked for took none.
    pub spans: Vec<Span>,
    /// What was asked for.
    pub request: Request,
    /// The types of the devices that ran the denoiser, each once.
    pub dtypes: Vec<DType>,
    pub(super) model: Arc<Model>,
}

/// A component's work on one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The component that worked.
    pub component: ComponentId,
    /// Its devices.
    pub devices: Vec<DeviceId>,
    /// When it began, by the engine's clock.
    pub started: Instant,
    /// How long it took.
    pub elapsed: Duration,
}

impl Picture {
    /// Time on a component, in all.
    pub fn time(&self, component: ComponentId) -> Duration {
        self.spans.iter().filter(|span| span.component == component).map(|span| span.elapsed).sum()
    }

    /// The devices that a component used, in order; none if it did nothing.
    pub fn devices(&self, component: ComponentId) -> Vec<DeviceId> {
        let here = self.spans.iter().filter(|span| span.component == component);
        each_once(here.flat_map(|span| span.devices.iter().copied()))
    }

    /// What its file says about how it was made.
    ///
    /// # Errors
    /// If the model's weights, over which its identity is taken, cannot be read any more.
    pub fn metadata(&self) -> Result<Metadata> {
        Metadata::new(&self.request, &self.model, &self.model.identity()?, &self.dtypes)
    }

    /// The bytes of a file that says so: PNG, or safetensors if only the latents were asked for.
    ///
    /// # Errors
    /// If it is too large for the format.
    pub fn encode(&self, metadata: &Metadata) -> Result<Vec<u8>> {
        match &self.image {
            Some(image) => image.encode_png(metadata),
            None => self.latents.encode(metadata),
        }
    }

    /// Writes it with its [`metadata`](Picture::metadata) to a file that ends in `.png`, or its latents to one that ends in
    /// `.safetensors`. A file that was there is replaced; it is on the disk when this returns.
    ///
    /// # Errors
    /// If the name ends otherwise, there are no pixels for a PNG, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let metadata = self.metadata()?;
        let bytes = match (extension.to_ascii_lowercase().as_str(), &self.image) {
            ("png", Some(image)) => image.encode_png(&metadata)?,
            ("png", None) => {
                return Err(Error::input(format!("saving {}: the request was for latents alone", path.display()))
                    .hint("a name that ends in .safetensors, or Output::Image in the request"));
            }
            (latents::EXTENSION, _) => self.latents.encode(&metadata)?,
            _ => {
                return Err(Error::input(format!("saving {}: there is no such format", path.display()))
                    .hint("a name that ends in .png or .safetensors"));
            }
        };
        output::write(path, &bytes, Durability::Synced)
    }
}
