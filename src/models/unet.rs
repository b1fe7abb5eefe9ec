//! The denoiser. Rombach et al. 2022; matches diffusers' `UNet2DConditionModel` in its SD 1.x and 2.x forms.

use super::{
    blocks::{Downsample, KeysValues, ResnetBlock, ResnetFacts, Transformer, TransformerFacts, Upsample},
    route::{Keeps, Route},
    spec::UnetSpec,
};
use crate::{
    backend::Activation,
    error::Result,
    nn::{Conv2d, GroupNorm, Linear},
    tensor::{Fuse, Tensor, ops::Padding},
    weights::Scope,
};

/// What leaves the text side.
#[derive(Clone)]
pub struct Conditioning {
    /// Text features `[batch, tokens, width]`.
    pub context: Tensor,
    /// A vector for the whole text `[batch, width]`; SD 1 and 2 have none.
    pub pooled: Option<Tensor>,
    /// Further numbers beside the timestep; SD 1 and 2 have none.
    pub added: Option<Tensor>,
}

/// What the text means to each attention layer: keys and values, computed once per request.
#[derive(Clone)]
pub struct TextKeysValues(Vec<Vec<KeysValues>>);

/// One call of the denoiser.
pub struct DenoiserInput<'a> {
    /// `[batch, height, width, in_channels]`, as the scheduler scaled them.
    pub latents: &'a Tensor,
    /// Sinusoidal features of the timestep, `[batch or 1, block_out_channels[0]]`: see [`time_features`].
    pub time_features: &'a Tensor,
    /// The text, as [`Unet::condition`] prepared it.
    pub text: &'a TextKeysValues,
}

/// Latents, time and text to the scheduler's model output.
pub struct Unet {
    conv_in: Conv2d,
    linear_1: Linear,
    linear_2: Linear,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer>,
    downsample: Option<Downsample>,
}

struct MidBlock {
    resnet_1: ResnetBlock,
    attention: Transformer,
    resnet_2: ResnetBlock,
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer>,
    upsample: Option<Upsample>,
}

/// `[cos(t f), sin(t f)]` (or the other way round) with `width / 2` frequencies f from 1 down to 1/10000, in f32 as the
/// reference computes them. Vaswani et al. 2017; matches diffusers' `get_timestep_embedding`.
pub fn time_features(timestep: f32, spec: &UnetSpec) -> Vec<f32> {
    let half = spec.block_out_channels[0] / 2;
    let angles: Vec<f32> =
        (0..half).map(|i| timestep * (-(10000f32.ln()) * i as f32 / (half as f32 - spec.freq_shift)).exp()).collect();
    let (sin, cos) = (angles.iter().map(|a| a.sin()), angles.iter().map(|a| a.cos()));
    if spec.flip_sin_to_cos { cos.chain(sin).collect() } else { sin.chain(cos).collect() }
}

impl Unet {
    /// Where it can be cut: the names of its sections, in order. `conv_in` has the time embedding with it, `conv_out`
    /// the norm before it.
    pub fn sections(spec: &UnetSpec) -> Vec<String> {
        let levels = 0..spec.block_out_channels.len();
        let down = levels.clone().map(|i| format!("down_blocks.{i}"));
        let up = levels.map(|i| format!("up_blocks.{i}"));
        let word = |word: &str| [word.to_string()];
        word("conv_in").into_iter().chain(down).chain(word("mid_block")).chain(up).chain(word("conv_out")).collect()
    }

    /// Reads all of `unet/`, each section for the device that runs it.
    pub fn load(w: &Scope, spec: &UnetSpec, route: &Route) -> Result<Self> {
        let widths = &spec.block_out_channels;
        let time = 4 * widths[0];
        let last = widths.len() - 1;
        let facts = ResnetFacts { groups: spec.norm_num_groups, eps: spec.norm_eps, time_channels: Some(time) };
        let transformer = |w: &Scope, level: usize| {
            let facts = TransformerFacts {
                layers: spec.transformer_layers[level],
                heads: spec.heads[level],
                context: spec.cross_attention_dim,
                groups: spec.norm_num_groups,
                linear_projection: spec.use_linear_projection,
            };
            Transformer::load(w, widths[level], facts)
        };

        let down_block = |level: usize| -> Result<DownBlock> {
            let w = w.at("down_blocks").at(level).on(route.at(1 + level));
            let layers = 0..spec.layers_per_block;
            let before = widths[level.saturating_sub(1)];
            Ok(DownBlock {
                resnets: layers
                    .clone()
                    .map(|i| {
                        let channels = if i == 0 { before } else { widths[level] };
                        ResnetBlock::load(&w.at("resnets").at(i), channels, widths[level], facts)
                    })
                    .collect::<Result<_>>()?,
                attentions: layers
                    .filter(|_| spec.down_attention[level])
                    .map(|i| transformer(&w.at("attentions").at(i), level))
                    .collect::<Result<_>>()?,
                downsample: (level < last)
                    .then(|| Downsample::load(&w.at("downsamplers.0"), widths[level], Padding::Same))
                    .transpose()?,
            })
        };
        // Up blocks are numbered from the lowest resolution; each layer also takes what a down layer left behind.
        let up_block = |i: usize| -> Result<UpBlock> {
            let (w, level) = (w.at("up_blocks").at(i).on(route.at(widths.len() + 2 + i)), last - i);
            let layers = 0..spec.layers_per_block + 1;
            let below = widths[(level + 1).min(last)];
            let above = widths[level.saturating_sub(1)];
            Ok(UpBlock {
                resnets: layers
                    .clone()
                    .map(|j| {
                        let channels = if j == 0 { below } else { widths[level] };
                        let skip = if j == spec.layers_per_block { above } else { widths[level] };
                        ResnetBlock::load(&w.at("resnets").at(j), channels + skip, widths[level], facts)
                    })
                    .collect::<Result<_>>()?,
                attentions: layers
                    .filter(|_| spec.up_attention[i])
                    .map(|j| transformer(&w.at("attentions").at(j), level))
                    .collect::<Result<_>>()?,
                upsample: (i < last).then(|| Upsample::load(&w.at("upsamplers.0"), widths[level])).transpose()?,
            })
        };

        let embedding = w.at("time_embedding").on(route.first());
        let mid = w.at("mid_block").on(route.at(widths.len() + 1));
        let out = w.on(route.at(2 * widths.len() + 2));
        Ok(Self {
            conv_in: Conv2d::load(&w.at("conv_in").on(route.first()), spec.in_channels, widths[0], 3)?,
            linear_1: Linear::load(&embedding.at("linear_1"), widths[0], time)?,
            linear_2: Linear::load(&embedding.at("linear_2"), time, time)?,
            down_blocks: (0..widths.len()).map(down_block).collect::<Result<_>>()?,
            mid_block: MidBlock {
                resnet_1: ResnetBlock::load(&mid.at("resnets.0"), widths[last], widths[last], facts)?,
                attention: transformer(&mid.at("attentions.0"), last)?,
                resnet_2: ResnetBlock::load(&mid.at("resnets.1"), widths[last], widths[last], facts)?,
            },
            up_blocks: (0..widths.len()).map(up_block).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::load(&out.at("conv_norm_out"), widths[0], spec.norm_num_groups, spec.norm_eps)?,
            conv_out: Conv2d::load(&out.at("conv_out"), widths[0], spec.out_channels, 3)?,
        })
    }

    /// The transformers of each section, in the order in which `forward` comes by.
    fn transformers(&self) -> impl Iterator<Item = (usize, &Transformer)> {
        let levels = self.down_blocks.len();
        let down = self.down_blocks.iter().enumerate();
        let down = down.flat_map(|(i, block)| block.attentions.iter().map(move |t| (1 + i, t)));
        let up = self.up_blocks.iter().enumerate();
        let up = up.flat_map(move |(i, block)| block.attentions.iter().map(move |t| (levels + 2 + i, t)));
        down.chain([(levels + 1, &self.mid_block.attention)]).chain(up)
    }

    /// Keys and values of the text for every layer, kept for the whole request on the device that will use them.
    pub fn condition(&self, conditioning: &Conditioning, route: &Route, keeps: &Keeps) -> Result<TextKeysValues> {
        let keys_values = |(section, transformer): (usize, &Transformer)| -> Result<Vec<KeysValues>> {
            let device = route.at(section);
            let keep = keeps.on(device);
            let kept = |kv: KeysValues| Ok(KeysValues { k: kv.k.keep(keep)?, v: kv.v.keep(keep)? });
            transformer.keys_values(&conditioning.context.to(device)?)?.into_iter().map(kept).collect()
        };
        self.transformers().map(keys_values).collect::<Result<_>>().map(TextKeysValues)
    }

    /// `[batch, height, width, in_channels]` to `[batch, height, width, out_channels]`.
    ///
    /// Sections follow the route. What the down path leaves for the up path goes to its consumer's device as soon as
    /// it is made.
    pub fn forward(&self, input: &DenoiserInput, route: &Route) -> Result<Tensor> {
        let levels = self.down_blocks.len();
        // Every residual block begins with SiLU of the time embedding, so it ends with it.
        let silu = Fuse::activation(Activation::Silu);
        let time = self.linear_2.forward_with(&self.linear_1.forward_with(input.time_features, &silu)?, &silu)?;
        let mut texts = input.text.0.iter();
        let mut text = || texts.next().expect("`condition` went by the same transformers").as_slice();

        let skips_in_all =
            1 + self.down_blocks.iter().map(|b| b.resnets.len() + b.downsample.iter().len()).sum::<usize>();
        let mut skips: Vec<Tensor> = Vec::with_capacity(skips_in_all);
        let leave = |skips: &mut Vec<Tensor>, h: &Tensor| -> Result<()> {
            // The last one left is the first one taken; every up block takes one for each of its layers.
            let up_block = (skips_in_all - 1 - skips.len()) / self.up_blocks[0].resnets.len();
            skips.push(h.to(route.at(levels + 2 + up_block))?);
            Ok(())
        };

        let mut h = self.conv_in.forward(input.latents)?;
        leave(&mut skips, &h)?;
        for (level, block) in self.down_blocks.iter().enumerate() {
            let device = route.at(1 + level);
            let time = time.to(device)?;
            h = h.to(device)?;
            for (i, resnet) in block.resnets.iter().enumerate() {
                h = resnet.forward(&h, Some(&time))?;
                if let Some(attention) = block.attentions.get(i) {
                    h = attention.forward(&h, text())?;
                }
                leave(&mut skips, &h)?;
            }
            if let Some(downsample) = &block.downsample {
                h = downsample.forward(&h)?;
                leave(&mut skips, &h)?;
            }
        }

        {
            let device = route.at(levels + 1);
            let time = time.to(device)?;
            h = h.to(device)?;
            h = self.mid_block.resnet_1.forward(&h, Some(&time))?;
            h = self.mid_block.attention.forward(&h, text())?;
            h = self.mid_block.resnet_2.forward(&h, Some(&time))?;
        }

        for (i, block) in self.up_blocks.iter().enumerate() {
            let device = route.at(levels + 2 + i);
            let time = time.to(device)?;
            h = h.to(device)?;
            for (j, resnet) in block.resnets.iter().enumerate() {
                let skip = skips.pop().expect("the down path left one for each layer of the up path");
                h = h.concat_channels(&skip)?;
                drop(skip);
                h = resnet.forward(&h, Some(&time))?;
                if let Some(attention) = block.attentions.get(j) {
                    h = attention.forward(&h, text())?;
                }
            }
            if let (Some(upsample), Some(next)) = (&block.upsample, skips.last()) {
                h = upsample.forward(&h, next.dim(1), next.dim(2))?;
            }
        }

        h = h.to(route.at(2 * levels + 2))?;
        h = self.conv_norm_out.forward_silu(&h)?;
        self.conv_out.forward(&h)
    }
}
