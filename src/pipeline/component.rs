//! The components of a pipeline.

use serde::Serialize;

use crate::error::Result;

/// A component of a pipeline: what a device map places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
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

    /// One of them, to be changed.
    pub fn get_mut(&mut self, component: Component) -> &mut T {
        match component {
            Component::TextEncoder => &mut self.text_encoder,
            Component::Unet => &mut self.unet,
            Component::Vae => &mut self.vae,
        }
    }

    /// With their components.
    pub fn iter(&self) -> impl Iterator<Item = (Component, &T)> {
        Component::ALL.into_iter().map(|component| (component, self.get(component)))
    }
}
