//! The autoencoder. Esser et al. 2021; matches diffusers' `AutoencoderKL`.

use super::{
    blocks::{Attention, Downsample, ResnetBlock, ResnetFacts, Upsample},
    config::{COUNTS, LEVELS, WIDTHS, divides},
    keys,
    route::{ForwardPass, Route, section},
};
use crate::{
    backend::{DType, Extent},
    error::Result,
    json::Object,
    nn::{Conv2d, GroupNorm, Linear},
    tensor::{Tensor, ops::Padding},
    weights::Scope,
};

/// The config of an `AutoencoderKL`: `vae/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeSpec {
    /// Number of channels of an input picture.
    pub in_channels: usize,
    /// Number of channels of an output picture.
    pub out_channels: usize,
    /// Number of channels of the latents.
    pub latent_channels: usize,
    /// Width of each level, full resolution first.
    pub block_out_channels: Vec<usize>,
    /// Number of residual blocks of each encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    /// Number of groups of every group norm.
    pub norm_num_groups: usize,
    /// The size of pictures for which it was trained, which is that of tiles; `None` if it is not a single number.
    pub sample_size: Option<usize>,
    /// The factor of the latents: they are `encoded * scaling_factor`.
    pub scaling_factor: f32,
    /// Whether the middle block has self attention.
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the decoder overflows f16, so that it must run in f32 or bf16.
    pub force_upcast: bool,
}

/// The factor of the latents of Stable Diffusion 1 and 2, which is the default of the class.
const SD_SCALING_FACTOR: f32 = 0.18215;

impl VaeSpec {
    /// Reads the text of a `vae/config.json`; `file` is its name in messages. The result is for a pipeline of Stable
    /// Diffusion 1 or 2: see [`VaeSpec::for_sdxl`].
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let config = Object::parse(text, file)?;
        config.check(&keys::VAE)?;
        let block_out_channels = config.sizes("block_out_channels", WIDTHS)?.unwrap_or(vec![64]);
        if !LEVELS.contains(&block_out_channels.len()) {
            return Err(config.refuse("block_out_channels", "a list of 1 to 8 widths"));
        }
        for (key, class) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let blocks = config.texts(key)?.unwrap_or(vec![class]);
            if blocks.len() != block_out_channels.len() || blocks.iter().any(|block| *block != class) {
                return Err(config.refuse(key, &format!("\"{class}\" for each of {} levels", block_out_channels.len())));
            }
        }
        let spec = Self {
            in_channels: config.size("in_channels", COUNTS)?.unwrap_or(3),
            out_channels: config.size("out_channels", COUNTS)?.unwrap_or(3),
            latent_channels: config.size("latent_channels", COUNTS)?.unwrap_or(4),
            layers_per_block: config.size("layers_per_block", COUNTS)?.unwrap_or(1),
            norm_num_groups: config.size("norm_num_groups", COUNTS)?.unwrap_or(32),
            sample_size: match config.get("sample_size") {
                None => Some(32),
                Some(size) => size.as_u64().and_then(|size| usize::try_from(size).ok()),
            },
            scaling_factor: config.float("scaling_factor", 1e-6..=1e6)?.unwrap_or(f64::from(SD_SCALING_FACTOR)) as f32,
            mid_block_add_attention: config.flag("mid_block_add_attention", true)?,
            use_quant_conv: config.flag("use_quant_conv", true)?,
            use_post_quant_conv: config.flag("use_post_quant_conv", true)?,
            // The class has the default true, but only the pipelines of SDXL read it: the VAEs of Stable Diffusion 1 and
            // 2 do not overflow f16.
            force_upcast: config.flag("force_upcast", false)?,
            block_out_channels,
        };
        if spec.out_channels != 3 {
            return Err(config.refuse("out_channels", "3: red, green and blue"));
        }
        for &channels in &spec.block_out_channels {
            divides(&config, "norm_num_groups", spec.norm_num_groups, channels)?;
        }
        Ok(spec)
    }

    /// As [`VaeSpec::from_json`], for a pipeline of SDXL.
    pub fn for_sdxl(text: &str, file: &str) -> Result<Self> {
        let config = Object::parse(text, file)?;
        for key in ["latents_mean", "latents_std"] {
            if config.get(key).is_some() {
                return Err(config.refuse(key, "null").hint("sdshard scales latents and does not normalise them"));
            }
        }
        let spec = Self { force_upcast: config.flag("force_upcast", true)?, ..Self::from_json(text, file)? };
        if spec.scaling_factor == SD_SCALING_FACTOR {
            tracing::warn!(
                "{file}: `scaling_factor` is {SD_SCALING_FACTOR}, that of Stable Diffusion 1; with the VAE of SDXL, \
                 whose factor is 0.13025, pictures become pale"
            );
        }
        Ok(spec)
    }

    /// The number of pixels per latent, along each side: 8 for four levels.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// The epsilon of every norm.
const EPS: f32 = 1e-6;

fn facts(spec: &VaeSpec) -> ResnetFacts {
    ResnetFacts { groups: spec.norm_num_groups, eps: EPS, time_channels: None, extent: Extent::Large }
}

/// `UNetMidBlock2D`: attention between two residual blocks.
struct MidBlock {
    resnet_1: ResnetBlock,
    attention: Option<(GroupNorm, Attention)>,
    resnet_2: ResnetBlock,
}

impl MidBlock {
    fn load(w: &Scope, channels: usize, spec: &VaeSpec) -> Result<Self> {
        let attention = w.at("attentions.0");
        Ok(Self {
            resnet_1: ResnetBlock::load(&w.at("resnets.0"), channels, channels, facts(spec))?,
            attention: spec
                .mid_block_add_attention
                .then(|| {
                    let norm = GroupNorm::load(&attention.at("group_norm"), channels, spec.norm_num_groups, EPS)?;
                    Ok((norm, Attention::load_with_bias(&attention, channels)?))
                })
                .transpose()?,
            resnet_2: ResnetBlock::load(&w.at("resnets.1"), channels, channels, facts(spec))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.resnet_1.forward(x, None)?;
        if let Some((norm, attention)) = &self.attention {
            let shape = h.shape();
            let tokens = h.reshape([h.dim(0), h.dim(1) * h.dim(2), h.dim(3)])?;
            drop(h);
            let normed = norm.forward(&tokens)?;
            h = Tensor::reshape(&attention.forward_self(&normed, &tokens)?, shape)?;
        }
        self.resnet_2.forward(&h, None)
    }
}

/// The decoder, which converts latents to pictures.
pub struct VaeDecoder {
    post_quant_conv: Option<Linear>,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    scaling_factor: f32,
}

impl VaeDecoder {
    /// The names of the sections, between which the network can be cut, in order. `decoder.conv_in` includes
    /// `post_quant_conv`, `decoder.conv_out` the norm before it.
    pub fn sections(spec: &VaeSpec) -> Vec<String> {
        let up = (0..spec.block_out_channels.len()).map(|i| format!("decoder.up_blocks.{i}"));
        let word = |word: &str| format!("decoder.{word}");
        [word("conv_in"), word("mid_block")].into_iter().chain(up).chain([word("conv_out")]).collect()
    }

    /// Loads `decoder` and `post_quant_conv` of `vae/`, each section for the device that runs it.
    pub fn load(w: &Scope, spec: &VaeSpec, route: &Route) -> Result<Self> {
        let (widths, latent) = (&spec.block_out_channels, spec.latent_channels);
        let last = widths.len() - 1;
        let names = Self::sections(spec);
        let at = |name: &str| section(w, route, &names, name).at(name);
        let up_block = |i: usize| -> Result<_> {
            let (w, level) = (at(&format!("decoder.up_blocks.{i}")), last - i);
            let below = widths[(level + 1).min(last)];
            let resnets = (0..spec.layers_per_block + 1)
                .map(|j| {
                    let channels = if j == 0 { below } else { widths[level] };
                    ResnetBlock::load(&w.at("resnets").at(j), channels, widths[level], facts(spec))
                })
                .collect::<Result<_>>()?;
            let upsample =
                (i < last).then(|| Upsample::load(&w.at("upsamplers.0"), widths[level], Extent::Large)).transpose()?;
            Ok((resnets, upsample))
        };
        // Two layers belong to sections that are named after other layers.
        let first = section(w, route, &names, "decoder.conv_in");
        let out = section(w, route, &names, "decoder.conv_out").at("decoder");
        Ok(Self {
            post_quant_conv: spec
                .use_post_quant_conv
                .then(|| Linear::load_conv1x1(&first.at("post_quant_conv"), latent, latent))
                .transpose()?,
            conv_in: Conv2d::load(&at("decoder.conv_in"), latent, widths[last], Extent::Large)?,
            mid_block: MidBlock::load(&at("decoder.mid_block"), widths[last], spec)?,
            up_blocks: (0..widths.len()).map(up_block).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::load(&out.at("conv_norm_out"), widths[0], spec.norm_num_groups, EPS)?,
            conv_out: Conv2d::load(&out.at("conv_out"), widths[0], spec.out_channels, Extent::Large)?,
            scaling_factor: spec.scaling_factor,
        })
    }

    /// What the layers read of one of the denoiser's latents.
    pub fn input(&self, latent: f32) -> f32 {
        1.0 / self.scaling_factor * latent
    }

    /// The layers: from unscaled latents, `[batch, height, width, latent_channels]`, to pictures from -1 to 1, `[batch,
    /// 8 height, 8 width, out_channels]`. Input and output are f32.
    pub fn forward(&self, z: Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let mut h = pass.take(z)?;
        if let Some(conv) = &self.post_quant_conv {
            h = conv.forward(&h)?;
        }
        h = self.conv_in.forward(&h)?;
        h = self.mid_block.forward(&pass.take(h)?)?;
        for (resnets, upsample) in &self.up_blocks {
            h = pass.take(h)?;
            for resnet in resnets {
                h = resnet.forward(&h, None)?;
            }
            if let Some(upsample) = upsample {
                h = upsample.forward(&h, 2 * h.dim(1), 2 * h.dim(2))?;
            }
        }
        h = pass.take(h)?;
        h = self.conv_norm_out.forward_silu(&h)?;
        self.conv_out.forward(&h)?.cast(DType::F32)
    }
}

/// The encoder, which converts pictures to latents.
pub struct VaeEncoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Linear>,
}

impl VaeEncoder {
    /// The names of the sections, between which the network can be cut, in order. `encoder.conv_out` includes the norm
    /// before it and `quant_conv`.
    pub fn sections(spec: &VaeSpec) -> Vec<String> {
        let down = (0..spec.block_out_channels.len()).map(|i| format!("encoder.down_blocks.{i}"));
        let word = |word: &str| format!("encoder.{word}");
        [word("conv_in")].into_iter().chain(down).chain([word("mid_block"), word("conv_out")]).collect()
    }

    /// Loads `encoder` and `quant_conv` of `vae/`, each section for the device that runs it.
    pub fn load(w: &Scope, spec: &VaeSpec, route: &Route) -> Result<Self> {
        let (widths, moments) = (&spec.block_out_channels, 2 * spec.latent_channels);
        let last = widths.len() - 1;
        let names = Self::sections(spec);
        let at = |name: &str| section(w, route, &names, name).at(name);
        let down_block = |level: usize| -> Result<_> {
            let w = at(&format!("encoder.down_blocks.{level}"));
            let resnets = (0..spec.layers_per_block)
                .map(|i| {
                    let channels = if i == 0 { widths[level.saturating_sub(1)] } else { widths[level] };
                    ResnetBlock::load(&w.at("resnets").at(i), channels, widths[level], facts(spec))
                })
                .collect::<Result<_>>()?;
            let downsample = (level < last)
                .then(|| Downsample::load(&w.at("downsamplers.0"), widths[level], Padding::BottomRight))
                .transpose()?;
            Ok((resnets, downsample))
        };
        // Two layers belong to the section that is named after another one.
        let out = section(w, route, &names, "encoder.conv_out");
        let norm = out.at("encoder.conv_norm_out");
        Ok(Self {
            conv_in: Conv2d::load(&at("encoder.conv_in"), spec.in_channels, widths[0], Extent::Large)?,
            down_blocks: (0..widths.len()).map(down_block).collect::<Result<_>>()?,
            mid_block: MidBlock::load(&at("encoder.mid_block"), widths[last], spec)?,
            conv_norm_out: GroupNorm::load(&norm, widths[last], spec.norm_num_groups, EPS)?,
            conv_out: Conv2d::load(&at("encoder.conv_out"), widths[last], moments, Extent::Large)?,
            quant_conv: spec
                .use_quant_conv
                .then(|| Linear::load_conv1x1(&out.at("quant_conv"), moments, moments))
                .transpose()?,
        })
    }

    /// Encodes pictures from -1 to 1, `[batch, height, width, in_channels]`, to the moments of the unscaled latents,
    /// `[batch, height / 8, width / 8, 2 latent_channels]`: means, then log variances. Input and output are f32.
    pub fn forward(&self, pictures: Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let mut h = self.conv_in.forward(&pass.take(pictures)?)?;
        for (resnets, downsample) in &self.down_blocks {
            h = pass.take(h)?;
            for resnet in resnets {
                h = resnet.forward(&h, None)?;
            }
            if let Some(downsample) = downsample {
                h = downsample.forward(&h)?;
            }
        }
        h = self.mid_block.forward(&pass.take(h)?)?;
        h = self.conv_norm_out.forward_silu(&pass.take(h)?)?;
        h = self.conv_out.forward(&h)?;
        if let Some(conv) = &self.quant_conv {
            h = conv.forward(&h)?;
        }
        h.cast(DType::F32)
    }
}
