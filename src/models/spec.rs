//! A model as data: its components, the stages in which they work, and all other values of a checkpoint's configs.

use super::{
    autoencoder::AutoencoderSpec,
    component::{ComponentId, PerComponent, Stage},
    defaults::Defaults,
    network::{NetworkSpec, TextSpec},
    tiles::Tiles,
    unet::Condition,
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
    /// SDXL's conditioning; `None` for other models.
    pub sdxl: Option<SdxlSpec>,
}

/// What pipelines of SDXL do beyond those of Stable Diffusion 1 and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SdxlSpec {
    /// Whether an absent negative prompt has zeros as its features, rather than those of an empty text:
    /// `force_zeros_for_empty_prompt`.
    pub zeros_without_negative: bool,
    /// Whether the network takes an aesthetic score rather than the size to draw: the refiner,
    /// `requires_aesthetics_score`.
    pub takes_aesthetic_score: bool,
}

impl SdxlSpec {
    /// The numbers for a picture that is drawn in its own size, uncropped: original height and width, crop top and left,
    /// then height and width, or the aesthetic score. Matches `_get_add_time_ids` of diffusers with its defaults.
    pub fn numbers(self, height: usize, width: usize, is_negative: bool) -> Vec<f32> {
        let (height, width) = (height as f32, width as f32);
        match (self.takes_aesthetic_score, is_negative) {
            (false, _) => vec![height, width, 0.0, 0.0, height, width],
            (true, true) => vec![height, width, 0.0, 0.0, 2.5],
            (true, false) => vec![height, width, 0.0, 0.0, 6.0],
        }
    }
}

/// A component of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentSpec {
    /// The component's name in `model_index.json` and in device maps.
    pub name: String,
    /// The folder of its weights, which is named like the component but for the encoder of the VAE.
    pub folder: String,
    /// The kind of network, with its config.
    pub network: NetworkSpec,
}

impl ComponentSpec {
    /// A component whose folder has its name.
    pub fn new(name: String, network: NetworkSpec) -> Self {
        Self { folder: name.clone(), name, network }
    }

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
    /// The same model with the encoder of its VAE as a component, for requests that start from a picture.
    #[must_use]
    pub fn with_image_encoder(mut self) -> Self {
        let mut components: Vec<ComponentSpec> =
            self.components.iter().map(|(_, component)| component.clone()).collect();
        let encoder = components.iter().find_map(|component| match &component.network {
            NetworkSpec::VaeDecoder(spec) => Some(ComponentSpec {
                name: format!("{}_encoder", component.name),
                folder: component.folder.clone(),
                network: NetworkSpec::VaeEncoder(spec.clone()),
            }),
            _ => None,
        });
        let denoiser = components.iter().position(|component| component.stage() == Stage::Denoise);
        if let (Some(encoder), Some(denoiser), None) = (encoder, denoiser, self.in_stage(Stage::EncodeImage).next()) {
            components.insert(denoiser, encoder);
        }
        self.components = components.into();
        self
    }

    /// Whether the denoiser takes a mask and the latents of the picture around it as inputs: an inpainting model.
    pub fn takes_mask(&self) -> bool {
        matches!(&self.components[self.denoiser()].network, NetworkSpec::Unet(unet) if unet.channels_beside > 0)
    }

    /// The autoencoder whose encoder is a component; `None` if there is no such component.
    pub fn image_encoder(&self) -> Option<&AutoencoderSpec> {
        self.components.iter().find_map(|(_, component)| match &component.network {
            NetworkSpec::VaeEncoder(spec) => Some(spec),
            _ => None,
        })
    }

    /// The tiles in which an encoder or decoder of pictures works if that is asked for; `None` if it cannot, and for
    /// other components.
    pub fn tiles(&self, component: ComponentId) -> Option<Tiles> {
        match &self.components[component].network {
            NetworkSpec::VaeEncoder(spec) => spec.encoder_tiles(),
            NetworkSpec::VaeDecoder(spec) => spec.decoder_tiles(),
            NetworkSpec::Clip(_) | NetworkSpec::Unet(_) | NetworkSpec::ControlNet(_) => None,
        }
    }

    /// The components of a stage, in order.
    pub fn in_stage(&self, stage: Stage) -> impl Iterator<Item = ComponentId> {
        self.components.iter().filter(move |(_, component)| component.stage() == stage).map(|(id, _)| id)
    }

    /// The component of the denoising stage that gives the model output.
    ///
    /// # Panics
    /// If there is none, which a loaded model cannot have.
    pub fn denoiser(&self) -> ComponentId {
        self.in_stage(Stage::Denoise).next().expect("every model has a denoiser")
    }

    /// The components that control the denoiser, in order.
    pub fn controlnets(&self) -> impl Iterator<Item = ComponentId> {
        let is_controlnet = |network: &NetworkSpec| matches!(network, NetworkSpec::ControlNet(_));
        self.components.iter().filter(move |(_, component)| is_controlnet(&component.network)).map(|(id, _)| id)
    }

    /// The component with this name.
    pub fn component(&self, name: &str) -> Option<ComponentId> {
        self.components.iter().find(|(_, component)| component.name == name).map(|(id, _)| id)
    }

    /// The names of all components.
    pub fn names(&self) -> Vec<&str> {
        self.components.iter().map(|(_, component)| component.name.as_str()).collect()
    }

    /// The folders of the components' weights, each once: encoder and decoder of the VAE share one.
    pub fn folders(&self) -> Vec<&str> {
        let mut folders: Vec<&str> = Vec::new();
        for (_, ComponentSpec { folder, .. }) in self.components.iter() {
            if !folders.contains(&folder.as_str()) {
                folders.push(folder);
            }
        }
        folders
    }

    /// The folders of the tokenizers, in the order of the text encoders.
    pub fn tokenizers(&self) -> impl Iterator<Item = String> {
        self.in_stage(Stage::Encode).map(|id| self.components[id].name.replacen("text_encoder", "tokenizer", 1))
    }

    /// The sizes of the text encoders, in order.
    pub fn texts(&self) -> impl Iterator<Item = TextSpec> {
        self.components.iter().filter_map(|(_, component)| component.network.text())
    }

    /// Whether an absent negative prompt is another conditioning than an empty one.
    pub fn has_no_negative(&self) -> bool {
        self.sdxl.is_some_and(|sdxl| sdxl.zeros_without_negative)
    }

    /// Whether the denoiser takes the guidance scale as an input, so that it needs no negative prompt.
    pub fn takes_guidance(&self) -> bool {
        self.components[self.denoiser()].network.takes_guidance()
    }

    /// How many layers at the end of its text encoders a request can leave out.
    pub fn layers_to_skip(&self) -> usize {
        let layers = self.components.iter().filter_map(|(_, component)| component.network.layers_to_skip());
        layers.min().unwrap_or(0)
    }

    /// A condition without meaning for a picture of this size and texts of so many chunks; `value` gives the values of
    /// its texts.
    pub fn sample_condition(
        &self,
        height: usize,
        width: usize,
        chunks: usize,
        value: impl Fn(usize) -> f32,
    ) -> Condition {
        let text = self.texts().map(|text| text.filled(chunks, &value)).collect();
        let numbers = self.sdxl.map_or(Vec::new(), |sdxl| sdxl.numbers(height, width, false));
        let NetworkSpec::Unet(unet) = &self.components[self.denoiser()].network else { unreachable!("it denoises") };
        let cells = (height / self.latents.scale) * (width / self.latents.scale);
        Condition { text, numbers, guidance_scale: 2.0, beside: vec![0.0; cells * unet.channels_beside] }
    }

    /// The requested scheduler, or else the model's default.
    ///
    /// # Errors
    /// As [`SchedulerFile::own`] and [`SchedulerFile::with_kind`].
    pub fn scheduler_for(&self, asked: Option<SchedulerKind>) -> Result<SchedulerConfig> {
        asked.or(self.defaults.scheduler).map_or_else(|| self.scheduler.own(), |kind| self.scheduler.with_kind(kind))
    }
}
