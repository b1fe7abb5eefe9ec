//! A model as data: its components, the stages in which they work, and all other values of a checkpoint's configs.

use super::{
    component::{ComponentId, PerComponent, Stage},
    defaults::Defaults,
    network::{NetworkSpec, TextSpec},
};
use crate::{
    error::Result,
    scheduler::{SchedulerConfig, SchedulerFile, SchedulerKind},
};

/// The contents of one checkpoint's configs.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The components that are loaded and placed, in the order in which a request passes them.
    pub components: PerComponent<ComponentSpec>,
    /// The size of the latents.
    pub latents: LatentSpec,
    /// `scheduler/scheduler_config.json`.
    pub scheduler: SchedulerFile,
    /// The defaults of a request.
    pub defaults: Defaults,
    /// The parts that `model_index.json` lists and does not set to null, in its order.
    pub listed: Vec<Listed>,
}

/// A component of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentSpec {
    /// The component's name in `model_index.json` and in device maps, which is also the name of its folder.
    pub name: String,
    /// The kind of network, with its config.
    pub network: NetworkSpec,
}

impl ComponentSpec {
    /// The stage in which the component works.
    pub fn stage(&self) -> Stage {
        self.network.stage()
    }
}

/// The sizes of a model's latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentSpec {
    /// Number of channels.
    pub channels: usize,
    /// Pixels per latent, along each side.
    pub scale: usize,
    /// Default height.
    pub height: usize,
    /// Default width.
    pub width: usize,
}

/// A part of the pipeline that `model_index.json` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name of its folder.
    pub name: String,
    /// The number of parameters, for a known network that is not run: the safety checker.
    pub parameters: Option<u64>,
}

impl ModelSpec {
    /// The components of a stage, in order.
    pub fn in_stage(&self, stage: Stage) -> impl Iterator<Item = ComponentId> {
        self.components.iter().filter(move |(_, component)| component.stage() == stage).map(|(id, _)| id)
    }

    /// The component of the denoising stage.
    ///
    /// # Panics
    /// If there is none, which a loaded model cannot have.
    pub fn denoiser(&self) -> ComponentId {
        self.in_stage(Stage::Denoise).next().expect("every model has a denoiser")
    }

    /// The component with this name.
    pub fn component(&self, name: &str) -> Option<ComponentId> {
        self.components.iter().find(|(_, component)| component.name == name).map(|(id, _)| id)
    }

    /// The names of all components.
    pub fn names(&self) -> Vec<&str> {
        self.components.iter().map(|(_, component)| component.name.as_str()).collect()
    }

    /// The sizes of the text encoders, in order.
    pub fn texts(&self) -> impl Iterator<Item = TextSpec> {
        self.components.iter().filter_map(|(_, component)| component.network.text())
    }

    /// The requested scheduler, or else the model's default.
    ///
    /// # Errors
    /// As [`SchedulerFile::own`] and [`SchedulerFile::with_kind`].
    pub fn scheduler_for(&self, asked: Option<SchedulerKind>) -> Result<SchedulerConfig> {
        asked.or(self.defaults.scheduler).map_or_else(|| self.scheduler.own(), |kind| self.scheduler.with_kind(kind))
    }
}
