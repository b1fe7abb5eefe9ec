//! The contracting path of the denoiser: everything in front of the up path. The UNet begins with one, and a ControlNet
//! is a copy of one. Ronneberger et al. 2015, Rombach et al. 2022; matches the first half of diffusers'
//! `UNet2DConditionModel` and of `ControlNetModel`.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::{
    blocks::{Downsample, KeysValues, ResnetBlock, ResnetFacts, Transformer, TransformerFacts, Upsample},
    clip::EncodedText,
    config::{COUNTS, EPSILONS, LEVELS, WIDTHS, divides, per_level, required},
    route::{ForwardPass, PersistentArenas, Route, Shared},
};
use crate::{
    backend::{Activation, DType, Device, Extent},
    error::Result,
    json::Object,
    nn::{Conv2d, Linear},
    tensor::{Fuse, Shape, Tensor, ops::Padding},
    weights::Scope,
};

/// The config of a contracting path. Levels are counted from the full resolution downwards.
#[derive(Debug, Clone, PartialEq)]
pub struct ContractingSpec {
    /// Number of input channels.
    pub in_channels: usize,
    /// Number of these that are not latents: a mask and the latents of the picture around it in inpainting UNets, or
    /// none.
    pub channels_beside: usize,
    /// Width of each level.
    pub block_out_channels: Vec<usize>,
    /// Number of residual blocks of each level.
    pub layers_per_block: usize,
    /// Whether each level has cross attention.
    pub down_attention: Vec<bool>,
    /// Number of attention heads of each level. The configs call this `attention_head_dim`.
    pub heads: Vec<usize>,
    /// Number of transformer layers behind each residual block of each level; unused for a level without attention.
    pub down_transformer_layers: Vec<Vec<usize>>,
    /// Number of transformer layers in the middle.
    pub mid_transformer_layers: usize,
    /// Width of the text features.
    pub cross_attention_dim: usize,
    /// Whether `proj_in` and `proj_out` are linear layers (SD 2) rather than 1x1 convolutions (SD 1).
    pub use_linear_projection: bool,
    /// Number of groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms outside the transformers (those have 1e-6).
    pub norm_eps: f32,
    /// The middle block.
    pub mid_block: MidBlock,
    /// Height of the latents of a picture in the model's own size.
    pub sample_height: usize,
    /// Width of the latents of such a picture.
    pub sample_width: usize,
    /// Whether the sinusoidal time features are `[cos, sin]` rather than `[sin, cos]`.
    pub flip_sin_to_cos: bool,
    /// The shift in the frequencies of the time features.
    pub freq_shift: f32,
    /// SDXL's conditioning beside the text features: `addition_embed_type` "text_time".
    pub added: Option<AddedSpec>,
    /// Width of the features of the guidance scale, if the network was distilled to take it as an input (LCM).
    pub time_cond_proj_dim: Option<usize>,
}

/// The kind of middle block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MidBlock {
    /// None: some distilled networks.
    None,
    /// One residual block, `UNetMidBlock2D`: SSD-1B and Segmind Vega.
    Resnet,
    /// Attention between two residual blocks, `UNetMidBlock2DCrossAttn`.
    CrossAttention,
}

/// SDXL's conditioning beside the text features: the pooled feature, and numbers such as the picture's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddedSpec {
    /// Width of the sinusoidal features of each number, `addition_time_embed_dim`.
    pub number_width: usize,
    /// Width of the pooled feature with the features of all numbers, `projection_class_embeddings_input_dim`.
    pub input_width: usize,
}

impl ContractingSpec {
    /// Reads the keys of the contracting path. `sample` is the height and width of the model's own latents. A level may
    /// have `layers` transformer layers, and `attends` says whether the network has cross attention at a level beyond
    /// this path.
    pub(super) fn read(
        config: &Object,
        sample: [usize; 2],
        layers: RangeInclusive<usize>,
        attends: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        // `null` means no middle block; a missing key means the default, which has one.
        let mid_block = match config.text("mid_block_type")? {
            None if config.has("mid_block_type") => MidBlock::None,
            None | Some("UNetMidBlock2DCrossAttn") => MidBlock::CrossAttention,
            Some("UNetMidBlock2D") => MidBlock::Resnet,
            Some(_) => {
                return Err(config.refuse("mid_block_type", "\"UNetMidBlock2DCrossAttn\", \"UNetMidBlock2D\" or null"));
            }
        };
        let added = match config.text("addition_embed_type")? {
            None => None,
            Some("text_time") => {
                let width = |key: &str| required(config, key, config.size(key, WIDTHS)?);
                let number_width = width("addition_time_embed_dim")?;
                if number_width % 2 == 1 {
                    return Err(config.refuse("addition_time_embed_dim", "an even number"));
                }
                Some(AddedSpec { number_width, input_width: width("projection_class_embeddings_input_dim")? })
            }
            Some(_) => return Err(config.refuse("addition_embed_type", "null or \"text_time\"")),
        };
        let time_cond_proj_dim = config.size("time_cond_proj_dim", 4..=*WIDTHS.end())?;
        if time_cond_proj_dim.is_some_and(|width| width % 2 == 1) {
            return Err(config.refuse("time_cond_proj_dim", "an even number"));
        }

        let block_out_channels = Self::widths(config)?;
        let levels = block_out_channels.len();
        let layers_per_block = per_level(config, "layers_per_block", levels, COUNTS)?.unwrap_or(vec![2; levels]);
        if layers_per_block.iter().any(|&layers| layers != layers_per_block[0]) {
            return Err(config.refuse("layers_per_block", "the same number for every level"));
        }
        let down_attention = attention(config, "down_block_types", ["CrossAttnDownBlock2D", "DownBlock2D"], 3, levels)?;
        // The middle block has attention at the lowest resolution even if the blocks around it have none.
        let attends = |level: usize| {
            attends(level) || down_attention[level] || (mid_block == MidBlock::CrossAttention && level == levels - 1)
        };
        let context = per_level(config, "cross_attention_dim", levels, WIDTHS)?.unwrap_or(vec![1280; levels]);
        let mut contexts = context.iter().enumerate().filter(|(level, _)| attends(*level)).map(|(_, width)| *width);
        let cross_attention_dim = contexts.next().unwrap_or(context[0]);
        if contexts.any(|width| width != cross_attention_dim) {
            let wanted = "the same width for every level that attends to the text: there is one text encoder";
            return Err(config.refuse("cross_attention_dim", wanted));
        }
        let heads = per_level(config, "attention_head_dim", levels, COUNTS)?.unwrap_or(vec![8; levels]);
        for (level, &channels) in block_out_channels.iter().enumerate().filter(|(level, _)| attends(*level)) {
            divides(config, "attention_head_dim", heads[level], channels)?;
        }
        let down_transformer_layers = transformer_layers(config, DOWN_LAYERS, levels, layers_per_block[0], layers)?
            .unwrap_or(vec![vec![1; layers_per_block[0]]; levels]);
        let spec = Self {
            in_channels: config.size("in_channels", COUNTS)?.unwrap_or(4),
            channels_beside: 0,
            layers_per_block: layers_per_block[0],
            down_attention,
            heads,
            mid_transformer_layers: down_transformer_layers[levels - 1][0],
            down_transformer_layers,
            mid_block,
            cross_attention_dim,
            use_linear_projection: config.flag("use_linear_projection", false)?,
            norm_num_groups: config.size("norm_num_groups", COUNTS)?.unwrap_or(32),
            norm_eps: config.float("norm_eps", EPSILONS)?.unwrap_or(1e-5) as f32,
            sample_height: sample[0],
            sample_width: sample[1],
            flip_sin_to_cos: config.flag("flip_sin_to_cos", true)?,
            freq_shift: config.float("freq_shift", 0.0..=1.0)?.unwrap_or(0.0) as f32,
            added,
            time_cond_proj_dim,
            block_out_channels,
        };
        if spec.block_out_channels[0] % 2 == 1 {
            return Err(config.refuse("block_out_channels", "a list that begins with an even width"));
        }
        for &channels in &spec.block_out_channels {
            divides(config, "norm_num_groups", spec.norm_num_groups, channels)?;
        }
        Ok(spec)
    }

    /// The width of each level.
    pub(super) fn widths(config: &Object) -> Result<Vec<usize>> {
        const KEY: &str = "block_out_channels";
        let widths = config.sizes(KEY, WIDTHS)?.unwrap_or(vec![320, 640, 1280, 1280]);
        match LEVELS.contains(&widths.len()) {
            true => Ok(widths),
            false => Err(config.refuse(KEY, "a list of 1 to 8 widths")),
        }
    }

    /// The extent of a level's convolutions.
    pub(super) fn extent(&self, level: usize) -> Extent {
        match self.sample_height.div_ceil(1 << level) * self.sample_width.div_ceil(1 << level) {
            1024.. => Extent::Large,
            256.. => Extent::Medium,
            _ => Extent::Small,
        }
    }

    /// The shapes of the skip tensors, in the order in which they are made, and of the output of the middle.
    pub fn feature_shapes(&self, [batch, mut height, mut width]: [usize; 3]) -> Vec<Shape> {
        let widths = &self.block_out_channels;
        let mut shapes = vec![Shape::from([batch, height, width, widths[0]])];
        for (level, &channels) in widths.iter().enumerate() {
            shapes.extend(vec![Shape::from([batch, height, width, channels]); self.layers_per_block]);
            if level + 1 < widths.len() {
                (height, width) = (height.div_ceil(2), width.div_ceil(2));
                shapes.push(Shape::from([batch, height, width, channels]));
            }
        }
        shapes.push(Shape::from([batch, height, width, widths[widths.len() - 1]]));
        shapes
    }

    /// Width of the time embedding.
    pub(super) fn time_channels(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}

/// The key of the numbers of transformer layers.
pub(super) const DOWN_LAYERS: &str = "transformer_layers_per_block";

/// Reads the numbers of transformer layers behind each of `blocks` residual blocks of each level: a number, one for each
/// level, or a list of lists.
pub(super) fn transformer_layers(
    config: &Object,
    key: &str,
    levels: usize,
    blocks: usize,
    range: RangeInclusive<usize>,
) -> Result<Option<Vec<Vec<usize>>>> {
    let Some(Value::Array(list)) = config.get(key) else {
        let one = config.size(key, range)?;
        return Ok(one.map(|count| vec![vec![count; blocks]; levels]));
    };
    let refuse = || {
        let wanted = format!("a number, or for each of {levels} levels a number or a list of {blocks}");
        config.refuse(key, &wanted)
    };
    let count = |value: &Value| {
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.filter(|count| range.contains(count)).ok_or_else(refuse)
    };
    let level = |value: &Value| match value {
        Value::Array(counts) if counts.len() == blocks => counts.iter().map(count).collect(),
        Value::Array(_) => Err(refuse()),
        value => Ok(vec![count(value)?; blocks]),
    };
    if list.len() != levels {
        return Err(refuse());
    }
    list.iter().map(level).collect::<Result<_>>().map(Some)
}

/// Whether each level has cross attention: its block type is `cross` and not `plain`. Rejects other types. Without the
/// key all levels have it but the `plain_level`.
pub(super) fn attention(
    config: &Object,
    key: &str,
    [cross, plain]: [&str; 2],
    plain_level: usize,
    levels: usize,
) -> Result<Vec<bool>> {
    let default = || (0..4).map(|level| if level == plain_level { plain } else { cross }).collect();
    let blocks = config.texts(key)?.unwrap_or_else(default);
    if blocks.len() != levels || blocks.iter().any(|block| ![cross, plain].contains(block)) {
        return Err(config.refuse(key, &format!("{levels} blocks, each \"{cross}\" or \"{plain}\"")));
    }
    Ok(blocks.iter().map(|block| *block == cross).collect())
}

/// One text as every text encoder encodes it, in the model's order.
pub type TextFeatures = std::sync::Arc<[EncodedText]>;

/// The conditioning of one row of the denoiser's batch.
#[derive(Debug, Clone)]
pub struct Condition {
    /// The text.
    pub text: TextFeatures,
    /// The numbers of [`ContractingSpec::added`]; empty for a network without it.
    pub numbers: Vec<f32>,
    /// The guidance scale, for a network that takes it as an input.
    pub guidance_scale: f32,
    /// The input channels beside the latents, `[height, width, channels]`; empty for a network that has none.
    pub beside: Vec<f32>,
}

impl Condition {
    /// The context of the cross attention, `[tokens, width]`: the features of each token from every text encoder, one
    /// after the other.
    fn context(&self, width: usize) -> Vec<f32> {
        let [first, rest @ ..] = &self.text[..] else { unreachable!("a model has a text encoder") };
        if rest.is_empty() {
            return first.features.clone();
        }
        let all: usize = self.text.iter().map(|text| text.features.len()).sum();
        let tokens = all / width;
        let row = |text: &EncodedText, token: usize| {
            let width = text.features.len() / tokens;
            text.features[token * width..][..width].to_vec()
        };
        (0..tokens).flat_map(|token| self.text.iter().flat_map(move |text| row(text, token))).collect()
    }
}

/// The conditioning of a network, computed once per request.
#[derive(Clone)]
pub struct Conditioning {
    /// The keys and values of the texts in each transformer's layers.
    texts: Vec<Vec<KeysValues>>,
    /// The embedding of [`ContractingSpec::added`], `[rows, 4 block_out_channels[0]]`, on the first section's device.
    added: Option<Tensor>,
    /// What the guidance scales add to the time features, `[rows, block_out_channels[0]]`, f32, on the same device.
    guidance: Option<Tensor>,
    /// The input channels beside the latents, `[rows, height * width, channels]`, on the same device.
    beside: Option<Tensor>,
}

impl Conditioning {
    /// The keys and values for each transformer, in the order of the sections.
    pub(super) fn texts(&self) -> impl Iterator<Item = &[KeysValues]> {
        self.texts.iter().map(Vec::as_slice)
    }
}

/// The layers of the contracting path, in the order in which they run.
pub struct Contracting {
    spec: ContractingSpec,
    conv_in: Conv2d,
    linear_1: Linear,
    linear_2: Linear,
    /// The two layers of `add_embedding`.
    added: Option<[Linear; 2]>,
    cond_proj: Option<Linear>,
    down: Vec<Layer>,
    mid: Vec<Layer>,
}

/// A section of the down path, the middle or the up path.
pub(super) struct Layer {
    pub block: Block,
    /// On the down path: whether its output is also a skip tensor. On the up path: whether its input is concatenated
    /// with one.
    pub skip: bool,
    /// The number of the section.
    pub section: usize,
}

#[expect(clippy::large_enum_variant, reason = "a network has some thirty of them")]
pub(super) enum Block {
    Resnet(ResnetBlock),
    Transformer(Transformer),
    Downsample(Downsample),
    Upsample(Upsample),
}

/// A section described by its config. A network's list of sections and its loading both follow this description.
pub(super) struct SectionSpec {
    /// The section's path in the file. `conv_in` includes the time embedding and `add_embedding`, `conv_out` the norm
    /// before it.
    pub name: String,
    pub phase: Phase,
    pub kind: Kind,
    /// See [`Layer::skip`].
    pub skip: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    In,
    Down,
    Mid,
    Up,
    Out,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Conv,
    Resnet { in_channels: usize, out_channels: usize, level: usize },
    Transformer { level: usize, layers: usize },
    Downsample { channels: usize },
    Upsample { channels: usize, to_level: usize },
}

/// The sections of the contracting path, in the order in which they run.
pub(super) fn describe(spec: &ContractingSpec) -> Vec<SectionSpec> {
    let (widths, layers) = (&spec.block_out_channels, spec.layers_per_block);
    let last = widths.len() - 1;
    let mut sections = Vec::new();
    let mut add = |name: String, phase, kind, skip| sections.push(SectionSpec { name, phase, kind, skip });
    add("conv_in".to_owned(), Phase::In, Kind::Conv, true);
    for level in 0..=last {
        let name = format!("down_blocks.{level}");
        for i in 0..layers {
            let in_channels = widths[if i == 0 { level.saturating_sub(1) } else { level }];
            let resnet = Kind::Resnet { in_channels, out_channels: widths[level], level };
            let attends = spec.down_attention[level];
            add(format!("{name}.resnets.{i}"), Phase::Down, resnet, !attends);
            if attends {
                let kind = Kind::Transformer { level, layers: spec.down_transformer_layers[level][i] };
                add(format!("{name}.attentions.{i}"), Phase::Down, kind, true);
            }
        }
        if level < last {
            let kind = Kind::Downsample { channels: widths[level] };
            add(format!("{name}.downsamplers.0"), Phase::Down, kind, true);
        }
    }
    let resnet = Kind::Resnet { in_channels: widths[last], out_channels: widths[last], level: last };
    if spec.mid_block != MidBlock::None {
        add("mid_block.resnets.0".to_owned(), Phase::Mid, resnet, false);
    }
    if spec.mid_block == MidBlock::CrossAttention {
        let kind = Kind::Transformer { level: last, layers: spec.mid_transformer_layers };
        add("mid_block.attentions.0".to_owned(), Phase::Mid, kind, false);
        add("mid_block.resnets.1".to_owned(), Phase::Mid, resnet, false);
    }
    sections
}

/// Loads the layers of a phase, each for the device that runs it.
pub(super) fn load_layers(
    w: &Scope,
    route: &Route,
    spec: &ContractingSpec,
    sections: &[SectionSpec],
    phase: Phase,
) -> Result<Vec<Layer>> {
    let (groups, eps, time) = (spec.norm_num_groups, spec.norm_eps, spec.time_channels());
    let layer = |(section, SectionSpec { name, kind, skip, .. }): (usize, &SectionSpec)| -> Result<Layer> {
        let w = w.section(section, route.at(section), route.precision(section)).at(name);
        let block = match *kind {
            Kind::Resnet { in_channels, out_channels, level } => {
                let facts = ResnetFacts { groups, eps, time_channels: Some(time), extent: spec.extent(level) };
                Block::Resnet(ResnetBlock::load(&w, in_channels, out_channels, facts)?)
            }
            Kind::Transformer { level, layers } => {
                let facts = TransformerFacts {
                    layers,
                    heads: spec.heads[level],
                    context: spec.cross_attention_dim,
                    groups,
                    linear_projection: spec.use_linear_projection,
                };
                Block::Transformer(Transformer::load(&w, spec.block_out_channels[level], facts)?)
            }
            Kind::Downsample { channels } => Block::Downsample(Downsample::load(&w, channels, Padding::Same)?),
            Kind::Upsample { channels, to_level } => {
                Block::Upsample(Upsample::load(&w, channels, spec.extent(to_level))?)
            }
            Kind::Conv => unreachable!("`conv_in` and `conv_out` are not layers"),
        };
        Ok(Layer { block, skip: *skip, section })
    };
    sections.iter().enumerate().filter(|(_, section)| section.phase == phase).map(layer).collect()
}

impl Contracting {
    /// Loads the path, each section for the device that runs it. `sections` begins with those of [`describe`].
    pub(super) fn load(w: &Scope, spec: &ContractingSpec, sections: &[SectionSpec], route: &Route) -> Result<Self> {
        let (width, time) = (spec.block_out_channels[0], spec.time_channels());
        let first = w.section(0, route.at(0), route.precision(0));
        let embedding = first.sensitive();
        let layers = |phase| load_layers(w, route, spec, sections, phase);
        Ok(Self {
            conv_in: Conv2d::load(&first.at("conv_in"), spec.in_channels, width, spec.extent(0))?,
            linear_1: Linear::load(&embedding.at("time_embedding.linear_1"), width, time)?,
            linear_2: Linear::load(&embedding.at("time_embedding.linear_2"), time, time)?,
            added: match spec.added {
                Some(AddedSpec { input_width, .. }) => Some([
                    Linear::load(&embedding.at("add_embedding.linear_1"), input_width, time)?,
                    Linear::load(&embedding.at("add_embedding.linear_2"), time, time)?,
                ]),
                None => None,
            },
            cond_proj: spec
                .time_cond_proj_dim
                .map(|cond| Linear::load_without_bias(&embedding.at("time_embedding.cond_proj"), cond, width))
                .transpose()?,
            down: layers(Phase::Down)?,
            mid: layers(Phase::Mid)?,
            spec: spec.clone(),
        })
    }

    /// Computes everything that stays the same in all steps, with a row for each of `rows`: the keys and values of the
    /// texts for every attention layer of this path and of `up`, on the device that uses them, and what is added to the
    /// time embedding. It is kept for the whole request.
    pub(super) fn condition(
        &self,
        up: &[Layer],
        rows: &[Condition],
        pass: &ForwardPass,
        keeps: &PersistentArenas,
    ) -> Result<Conditioning> {
        let width = self.spec.cross_attention_dim;
        let transformers: Vec<(usize, &Transformer)> = [&self.down, &self.mid, up]
            .into_iter()
            .flatten()
            .filter_map(|layer| match &layer.block {
                Block::Transformer(transformer) => Some((layer.section, transformer)),
                _ => None,
            })
            .collect();
        let uses_first = self.added.is_some() || self.cond_proj.is_some() || self.spec.channels_beside > 0;
        let stops = uses_first.then_some(0).into_iter().chain(transformers.iter().map(|(section, _)| *section));
        let pass = pass.through(stops.collect());
        let (mut added, mut guidance, mut beside) = (None, None, None);
        if uses_first {
            let (device, dtype) = (pass.next()?, pass.dtype());
            let keep = |tensor: Option<Tensor>| tensor.map(|tensor| tensor.keep(keeps.on(device))).transpose();
            added = keep(self.added(rows, device, dtype)?)?;
            guidance = keep(self.guidance(rows, device, dtype)?)?;
            beside = keep(self.beside(rows, device, dtype)?)?;
        }
        let contexts: Vec<f32> = rows.iter().flat_map(|row| row.context(width)).collect();
        let shape = [rows.len(), contexts.len() / rows.len() / width, width];
        let context = Shared::new(Tensor::new(pass.first(), shape, &contexts)?);
        let keys_values = |transformer: &Transformer| -> Result<Vec<KeysValues>> {
            let device = pass.next()?;
            let keep = keeps.on(device);
            let kept = |kv: KeysValues| Ok(KeysValues { k: kv.k.keep(keep)?, v: kv.v.keep(keep)? });
            transformer.keys_values(&context.on(device, pass.dtype())?)?.into_iter().map(kept).collect()
        };
        let texts = transformers.into_iter().map(|(_, transformer)| keys_values(transformer));
        Ok(Conditioning { texts: texts.collect::<Result<_>>()?, added, guidance, beside })
    }

    /// The input channels of `rows` beside the latents.
    fn beside(&self, rows: &[Condition], device: &Device, dtype: DType) -> Result<Option<Tensor>> {
        let channels = self.spec.channels_beside;
        if channels == 0 {
            return Ok(None);
        }
        let values: Vec<f32> = rows.iter().flat_map(|row| row.beside.iter().copied()).collect();
        let shape = [rows.len(), values.len() / rows.len() / channels, channels];
        Tensor::new(device, shape, &values)?.cast(dtype).map(Some)
    }

    /// The embedding of the pooled features and the numbers of `rows`: `add_embedding` of diffusers. The pooled feature
    /// is that of the last text encoder that gives one.
    fn added(&self, rows: &[Condition], device: &Device, dtype: DType) -> Result<Option<Tensor>> {
        let (Some([linear_1, linear_2]), Some(spec)) = (&self.added, self.spec.added) else { return Ok(None) };
        let row = |row: &Condition| -> Vec<f32> {
            let pooled = row.text.iter().rev().find(|text| !text.pooled.is_empty());
            let numbers = row.numbers.iter().flat_map(|number| self.sinusoid(*number, spec.number_width));
            pooled.into_iter().flat_map(|text| text.pooled.iter().copied()).chain(numbers).collect()
        };
        let inputs: Vec<f32> = rows.iter().flat_map(row).collect();
        let inputs = Tensor::new(device, [rows.len(), spec.input_width], &inputs)?.cast(dtype)?;
        let silu = Fuse::activation(Activation::Silu);
        linear_2.forward(&linear_1.forward_with(&inputs, &silu)?).map(Some)
    }

    /// What the guidance scales of `rows` add to the time features, f32: `cond_proj` of diffusers' `TimestepEmbedding`
    /// of the features that its LCM pipelines make (`get_guidance_scale_embedding`).
    fn guidance(&self, rows: &[Condition], device: &Device, dtype: DType) -> Result<Option<Tensor>> {
        let (Some(cond_proj), Some(width)) = (&self.cond_proj, self.spec.time_cond_proj_dim) else { return Ok(None) };
        let half = width / 2;
        let row = |row: &Condition| -> Vec<f32> {
            let scale = 1000.0 * (row.guidance_scale - 1.0);
            let angle = |i: usize| scale * (i as f32 * -(10000f32.ln() / (half as f32 - 1.0))).exp();
            (0..half).map(|i| angle(i).sin()).chain((0..half).map(|i| angle(i).cos())).collect()
        };
        let inputs: Vec<f32> = rows.iter().flat_map(row).collect();
        let inputs = Tensor::new(device, [rows.len(), width], &inputs)?.cast(dtype)?;
        cond_proj.forward(&inputs)?.cast(DType::F32).map(Some)
    }

    /// See [`ContractingSpec::feature_shapes`].
    pub(super) fn feature_shapes(&self, sizes: [usize; 3]) -> Vec<Shape> {
        self.spec.feature_shapes(sizes)
    }

    /// Sinusoidal features of a timestep, `[1, block_out_channels[0]]`, for [`Contracting::forward`].
    pub fn time_features(&self, timestep: f32, device: &Device) -> Result<Tensor> {
        let features = self.sinusoid(timestep, self.spec.block_out_channels[0]);
        Tensor::new(device, [1, features.len()], &features)
    }

    /// Sinusoidal features of a number: `[cos(x f), sin(x f)]` (or the other way round) with `width / 2` frequencies f
    /// from 1 down to 1/10000, in f32 as in the reference. Vaswani et al. 2017; matches diffusers'
    /// `get_timestep_embedding`.
    fn sinusoid(&self, x: f32, width: usize) -> Vec<f32> {
        let half = width / 2;
        let frequency = |i: usize| (-(10000f32.ln()) * i as f32 / (half as f32 - self.spec.freq_shift)).exp();
        let angles: Vec<f32> = (0..half).map(|i| x * frequency(i)).collect();
        let (sin, cos) = (angles.iter().map(|a| a.sin()), angles.iter().map(|a| a.cos()));
        if self.spec.flip_sin_to_cos { cos.chain(sin).collect() } else { sin.chain(cos).collect() }
    }

    /// The time features `[1, width]` with what the guidance scales add, `[1 or rows, width]`: a row for each row of the
    /// conditioning if they are not all equal.
    fn time_rows(&self, time: &Tensor, conditioning: &Conditioning) -> Result<Tensor> {
        let rows = [&conditioning.added, &conditioning.guidance].into_iter().flatten().next().map(|rows| rows.dim(0));
        let time = match rows {
            Some(rows @ 2..) => Tensor::stack(&vec![time; rows])?,
            _ => time.clone(),
        };
        match &conditioning.guidance {
            Some(guidance) => Tensor::scale_add(time.shape(), &[(1.0, &time, 0), (1.0, guidance, 0)]),
            None => Ok(time),
        }
    }

    /// Runs the path on the scaled latents, `[batch, height, width, latent channels]`, with the [`time_features`] of the
    /// timestep, `[batch or 1, block_out_channels[0]]`, and a text for each transformer. `hint` is added to the output of
    /// `conv_in`. `leave` gets each skip tensor as soon as it is made. Returns the output of the middle, and the time
    /// embedding after SiLU.
    ///
    /// [`time_features`]: Contracting::time_features
    #[expect(clippy::too_many_arguments, reason = "the inputs of the network, and the receivers of what it gives")]
    pub(super) fn forward<'a>(
        &self,
        latents: &Tensor,
        time: &Tensor,
        conditioning: &Conditioning,
        texts: &mut impl Iterator<Item = &'a [KeysValues]>,
        hint: Option<&Tensor>,
        pass: &ForwardPass,
        mut leave: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<(Tensor, Shared)> {
        let mut latents = pass.take(latents.clone())?;
        if let Some(beside) = &conditioning.beside {
            let [batch, height, width] = [0, 1, 2].map(|i| latents.dim(i));
            latents = latents.concat_channels(&beside.reshape([batch, height, width, beside.dim(2)])?)?;
        }

        // Time embedding. Each residual block uses SiLU of it, so SiLU is applied once, here.
        let silu = Fuse::activation(Activation::Silu);
        let time = self.time_rows(time, conditioning)?.cast(pass.dtype())?;
        let added = Fuse { channel_add: conditioning.added.as_ref(), ..silu };
        let time = Shared::new(self.linear_2.forward_with(&self.linear_1.forward_with(&time, &silu)?, &added)?);

        // Down path.
        let mut h = self.conv_in.forward_with(&latents, &Fuse { residual: hint, ..Fuse::default() })?;
        drop(latents);
        leave(&h)?;
        for layer in &self.down {
            h = layer.forward(&pass.take(h)?, &time, texts)?;
            if layer.skip {
                leave(&h)?;
            }
        }

        // Middle.
        for layer in &self.mid {
            h = layer.forward(&pass.take(h)?, &time, texts)?;
        }
        Ok((h, time))
    }
}

impl Layer {
    /// Runs a layer that keeps or halves the size. `texts` are those of the transformers that have not run yet.
    pub fn forward<'a>(
        &self,
        h: &Tensor,
        time: &Shared,
        texts: &mut impl Iterator<Item = &'a [KeysValues]>,
    ) -> Result<Tensor> {
        match &self.block {
            Block::Resnet(block) => block.forward(h, Some(&time.on(h.device(), h.dtype())?)),
            Block::Transformer(block) => {
                block.forward(h, texts.next().expect("`condition` used the same transformers"))
            }
            Block::Downsample(block) => block.forward(h),
            Block::Upsample(_) => unreachable!("an up block upsamples to the size of a skip tensor"),
        }
    }
}
