//! A model as data: its components, the stages in which they work, and every other fact about a checkpoint.

use super::{
    component::{ComponentId, PerComponent, Stage},
    defaults::Defaults,
    network::{NetworkSpec, TextSpec},
};
use crate::{
    error::Result,
    scheduler::{SchedulerConfig, SchedulerFile, SchedulerKind},
};

/// Everything about one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// What is loaded and placed, in the order in which a request passes it.
    pub components: PerComponent<ComponentSpec>,
    /// What the denoiser works on.
    pub latents: LatentSpec,
    /// `scheduler/scheduler_config.json`.
    pub scheduler: SchedulerFile,
    /// What a request uses where the user says nothing.
    pub defaults: Defaults,
    /// What `model_index.json` lists, in its order, as far as it is there.
    pub listed: Vec<Listed>,
}

/// A component of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentSpec {
    /// Its name in `model_index.json` and in device maps, which is also the name of its folder.
    pub name: String,
    /// What kind of network it is, with its config.
    pub network: NetworkSpec,
}

impl ComponentSpec {
    /// The stage in which it works.
    pub fn stage(&self) -> Stage {
        self.network.stage()
    }
}

/// The latents of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentSpec {
    /// Channels.
    pub channels: usize,
    /// Pixels per latent, along each side.
    pub scale: usize,
    /// Their height where nobody says another.
    pub height: usize,
    /// Their width where nobody says another.
    pub width: usize,
}

/// A part of the pipeline that `model_index.json` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its folder.
    pub name: String,
    /// The parameters of a network that is known and not run: the safety checker's.
    pub parameters: Option<u64>,
}

impl ModelSpec {
    /// Those components that work in a stage, in their order.
    pub fn in_stage(&self, stage: Stage) -> impl Iterator<Item = ComponentId> {
        self.components.iter().filter(move |(_, component)| component.stage() == stage).map(|(id, _)| id)
    }

    /// The component that denoises.
    ///
    /// # Panics
    /// If there is none: no model is without one.
    pub fn denoiser(&self) -> ComponentId {
        self.in_stage(Stage::Denoise).next().expect("every model has a denoiser")
    }

    /// The component of this name.
    pub fn component(&self, name: &str) -> Option<ComponentId> {
        self.components.iter().find(|(_, component)| component.name == name).map(|(id, _)| id)
    }

    /// The names of all components.
    pub fn names(&self) -> Vec<&str> {
        self.components.iter().map(|(_, component)| component.name.as_str()).collect()
    }

    /// What the text encoders make of one text, in their order.
    pub fn texts(&self) -> impl Iterator<Item = TextSpec> {
        self.components.iter().filter_map(|(_, component)| component.network.text())
    }

    /// The scheduler that a request asks for, else the model's default.
    ///
    /// # Errors
    /// As [`SchedulerFile::own`] and [`SchedulerFile::with_kind`].
    pub fn scheduler_for(&self, asked: Option<SchedulerKind>) -> Result<SchedulerConfig> {
        asked.or(self.defaults.scheduler).map_or_else(|| self.scheduler.own(), |kind| self.scheduler.with_kind(kind))
    }
}
