//! The denoiser. Rombach et al. 2022; matches diffusers' `UNet2DConditionModel` in its forms for
//! Stable Diffusion 1 and 2, SDXL (Podell et al. 2023) and latent consistency models (Luo et al. 2023).

use std::ops::Deref;

use serde_json::Value;

pub use super::contracting::{AddedSpec, Condition, Conditioning, MidBlock, TextFeatures};
use super::{
    config::{COUNTS, SAMPLES, required},
    contracting::{
        Block, Contracting, ContractingSpec, DOWN_LAYERS, Kind, Layer, Phase, SectionSpec, attention, describe,
        load_layers, transformer_layers,
    },
    keys,
    route::{ForwardPass, PersistentArenas, Route},
};
use crate::{
    backend::{DType, Device},
    error::Result,
    json::Object,
    nn::{Conv2d, GroupNorm},
    tensor::{Shape, Tensor},
    weights::Scope,
};

/// The config of a `UNet2DConditionModel`: `unet/config.json`. It dereferences to the config of its contracting path.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetSpec {
    /// The down path and the middle.
    pub contracting: ContractingSpec,
    /// Number of output channels.
    pub out_channels: usize,
    /// Whether each up level has cross attention, in the order of `up_blocks`: lowest resolution first.
    pub up_attention: Vec<bool>,
    /// Number of transformer layers behind each residual block of each up level, in the order of `up_blocks`; unused for
    /// a level without attention.
    pub up_transformer_layers: Vec<Vec<usize>>,
}

impl Deref for UnetSpec {
    type Target = ContractingSpec;
    fn deref(&self) -> &ContractingSpec {
        &self.contracting
    }
}

impl UnetSpec {
    /// Reads the text of a `unet/config.json`; `file` is its name in messages.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let config = Object::parse(text, file)?;
        config.check(&keys::UNET)?;
        let sample_size = match config.get("sample_size") {
            Some(Value::Array(_)) => match config.sizes("sample_size", SAMPLES)?.as_deref() {
                Some(&[height, width]) => [height, width],
                _ => return Err(config.refuse("sample_size", "a whole number, or a list of a height and a width")),
            },
            _ => [required(&config, "sample_size", config.size("sample_size", SAMPLES)?)?; 2],
        };
        let levels = ContractingSpec::widths(&config)?.len();
        let up_attention = attention(&config, "up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"], 0, levels)?;
        let attends = |level: usize| up_attention[levels - 1 - level];
        let mut contracting = ContractingSpec::read(&config, sample_size, COUNTS, attends)?;
        let (layers, down) = (contracting.layers_per_block, &contracting.down_transformer_layers);
        // The up levels have those of the down levels in reverse, or, in their own order, those of a key of their own.
        const UP_LAYERS: &str = "reverse_transformer_layers_per_block";
        let up_transformer_layers = match transformer_layers(&config, UP_LAYERS, levels, layers + 1, COUNTS)? {
            Some(up) => up,
            None if config
                .get(DOWN_LAYERS)
                .and_then(Value::as_array)
                .is_some_and(|list| list.iter().any(Value::is_array)) =>
            {
                return Err(config.refuse(UP_LAYERS, &format!("a list, since `{DOWN_LAYERS}` has lists")));
            }
            None => down.iter().rev().map(|level| vec![level[0]; layers + 1]).collect(),
        };
        let out_channels = config.size("out_channels", COUNTS)?.unwrap_or(4);
        contracting.channels_beside = contracting.in_channels.saturating_sub(out_channels);
        Ok(Self { contracting, out_channels, up_attention, up_transformer_layers })
    }
}

/// What a ControlNet adds to the features of a UNet, unscaled: a tensor for each skip tensor in the order in which these
/// are made, then one for the middle (Zhang et al. 2023).
pub struct Residuals<'a> {
    /// The tensors, f32, each on the device of the section that takes it: [`Unet::residual_section`].
    pub tensors: &'a [Tensor],
    /// The row of the tensors that belongs to the first row of the UNet's batch.
    pub row: usize,
    /// The factor of all tensors.
    pub scale: f32,
}

/// The UNet: maps latents, time and text to the model output that the scheduler expects.
///
/// Every residual block, transformer and sampler is a section of its own, so that the network can be cut between any of
/// them.
pub struct Unet {
    contracting: Contracting,
    up: Vec<Layer>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    /// [`Unet::residual_sections`]
    takers: Vec<usize>,
}

/// All sections, in the order in which they run.
fn sections_of(spec: &UnetSpec) -> Vec<SectionSpec> {
    let mut sections = describe(spec);
    let mut add = |name: String, phase, kind, skip| sections.push(SectionSpec { name, phase, kind, skip });
    let (widths, layers) = (&spec.block_out_channels, spec.layers_per_block);
    let last = widths.len() - 1;
    // Up blocks are numbered from the lowest resolution; each of their residual blocks uses a skip tensor of the down
    // path.
    for (i, level) in (0..=last).rev().enumerate() {
        let name = format!("up_blocks.{i}");
        let (below, above) = (widths[(level + 1).min(last)], widths[level.saturating_sub(1)]);
        for j in 0..layers + 1 {
            let channels = if j == 0 { below } else { widths[level] };
            let skip_channels = if j == layers { above } else { widths[level] };
            let resnet = Kind::Resnet { in_channels: channels + skip_channels, out_channels: widths[level], level };
            add(format!("{name}.resnets.{j}"), Phase::Up, resnet, true);
            if spec.up_attention[i] {
                let kind = Kind::Transformer { level, layers: spec.up_transformer_layers[i][j] };
                add(format!("{name}.attentions.{j}"), Phase::Up, kind, false);
            }
        }
        if level > 0 {
            let kind = Kind::Upsample { channels: widths[level], to_level: level - 1 };
            add(format!("{name}.upsamplers.0"), Phase::Up, kind, false);
        }
    }
    add("conv_out".to_owned(), Phase::Out, Kind::Conv, false);
    sections
}

impl Unet {
    /// The names of the sections, between which the network can be cut, in order.
    pub fn sections(spec: &UnetSpec) -> Vec<String> {
        sections_of(spec).into_iter().map(|section| section.name).collect()
    }

    /// The section that takes each tensor of [`Residuals`]: those that use the skip tensors, in the order in which these
    /// are made, and the last one before the up path.
    pub fn residual_sections(spec: &UnetSpec) -> Vec<usize> {
        let sections = sections_of(spec);
        let up = sections.iter().position(|section| section.phase == Phase::Up).expect("there is an up path");
        // Skip tensors are used in reverse order.
        let users = (up..sections.len()).rev().filter(|&section| sections[section].skip);
        users.chain([up - 1]).collect()
    }

    /// Loads all of `unet/`, each section for the device that runs it.
    pub fn load(w: &Scope, spec: &UnetSpec, route: &Route) -> Result<Self> {
        let (sections, width) = (sections_of(spec), spec.block_out_channels[0]);
        let last = sections.len() - 1;
        let out = w.section(last, route.at(last), route.precision(last));
        let up = load_layers(w, route, spec, &sections, Phase::Up)?;
        Ok(Self {
            contracting: Contracting::load(w, spec, &sections, route)?,
            conv_norm_out: GroupNorm::load(&out.at("conv_norm_out"), width, spec.norm_num_groups, spec.norm_eps)?,
            conv_out: Conv2d::load(&out.at("conv_out"), width, spec.out_channels, spec.extent(0))?,
            takers: Self::residual_sections(spec),
            up,
        })
    }

    /// Computes everything that stays the same in all steps, with a row for each of `rows`: the keys and values of the
    /// texts for every attention layer, on the device that uses them, and what is added to the time embedding. It is
    /// kept for the whole request.
    pub fn condition(&self, rows: &[Condition], pass: &ForwardPass, keeps: &PersistentArenas) -> Result<Conditioning> {
        self.contracting.condition(&self.up, rows, pass, keeps)
    }

    /// Sinusoidal features of a timestep, `[1, block_out_channels[0]]`, for [`Unet::forward`].
    pub fn time_features(&self, timestep: f32, device: &Device) -> Result<Tensor> {
        self.contracting.time_features(timestep, device)
    }

    /// The section that takes tensor `i` of [`Residuals`].
    pub fn residual_section(&self, i: usize) -> usize {
        self.takers[i]
    }

    /// The shapes of the tensors of [`Residuals`], for a batch of latents of this height and width.
    pub fn residual_shapes(&self, [batch, height, width]: [usize; 3]) -> Vec<Shape> {
        self.contracting.feature_shapes([batch, height, width])
    }

    /// Computes the model output, `[batch, height, width, out_channels]`, from the scaled latents, `[batch, height,
    /// width, latent channels]`, the [`time_features`] of the timestep, `[batch or 1, block_out_channels[0]]`, the texts,
    /// and the residuals of ControlNets. Input and output are f32.
    ///
    /// Skip tensors of the down path are copied to the devices of the sections that use them as soon as they are made.
    ///
    /// [`time_features`]: Unet::time_features
    pub fn forward(
        &self,
        latents: &Tensor,
        time: &Tensor,
        texts: &Conditioning,
        residuals: &[Residuals],
        pass: &ForwardPass,
    ) -> Result<Tensor> {
        let keys_values = &mut texts.texts();

        // Down path and middle, which do not see what is added to the skip tensors.
        let mut skips: Vec<Tensor> = Vec::with_capacity(self.takers.len() - 1);
        let leave = |h: &Tensor| -> Result<()> {
            skips.push(pass.send(h, self.takers[skips.len()])?);
            Ok(())
        };
        let (mut h, time) = self.contracting.forward(latents, time, texts, keys_values, None, pass, leave)?;
        h = with_residuals(h, residuals, skips.len())?;

        // Up path.
        for layer in &self.up {
            if layer.skip {
                let skip =
                    skips.pop().expect("the down path makes a skip tensor for each residual block of the up path");
                h = pass.take(h)?;
                h = h.concat_channels(&with_residuals(skip, residuals, skips.len())?)?;
            }
            h = match &layer.block {
                Block::Upsample(block) => {
                    let next = skips.last().expect("an up block follows");
                    block.forward(&pass.take(h)?, next.dim(1), next.dim(2))?
                }
                // The concatenation has begun the section of a residual block.
                Block::Resnet(_) => layer.forward(&h, &time, keys_values)?,
                _ => layer.forward(&pass.take(h)?, &time, keys_values)?,
            };
        }

        // Out.
        h = pass.take(h)?;
        h = self.conv_norm_out.forward_silu(&h)?;
        self.conv_out.forward(&h)?.cast(DType::F32)
    }
}

/// `h` with the tensors of number `i` of the residuals, which are on its device. The sum is computed in f32.
fn with_residuals(h: Tensor, residuals: &[Residuals], i: usize) -> Result<Tensor> {
    if residuals.is_empty() {
        return Ok(h);
    }
    let (dtype, h) = (h.dtype(), h.cast(DType::F32)?);
    let terms = residuals.iter().map(|one| (one.scale, &one.tensors[i], one.row));
    let terms: Vec<_> = [(1.0, &h, 0)].into_iter().chain(terms).collect();
    Tensor::scale_add(h.shape(), &terms)?.cast(dtype)
}
