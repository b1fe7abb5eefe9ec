//! The denoiser. Rombach et al. 2022; matches diffusers' `UNet2DConditionModel` in its SD 1.x and 2.x forms.

use super::{
    blocks::{Downsample, KeysValues, ResnetBlock, ResnetFacts, Transformer, TransformerFacts, Upsample},
    route::{Keeps, Route, Shared, Walk},
    spec::UnetSpec,
};
use crate::{
    backend::{Activation, DType},
    error::Result,
    nn::{Conv2d, GroupNorm, Linear},
    tensor::{Fuse, Tensor, ops::Padding},
    weights::Scope,
};

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
///
/// It is cut finely: every residual block, transformer and sampler is a section of its own.
pub struct Unet {
    conv_in: Conv2d,
    linear_1: Linear,
    linear_2: Linear,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    /// The sections of the transformers, in order.
    attentions: Vec<usize>,
    /// The sections of the up path's residual blocks, in order: each takes what a section of the down path left.
    takers: Vec<usize>,
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
        let levels = spec.block_out_channels.len();
        let block = |name: String, layers: usize, attention: bool, sampler: Option<&str>| {
            let mut parts = Vec::new();
            for i in 0..layers {
                parts.push(format!("{name}.resnets.{i}"));
                parts.extend(attention.then(|| format!("{name}.attentions.{i}")));
            }
            parts.extend(sampler.map(|sampler| format!("{name}.{sampler}.0")));
            parts
        };
        let down = (0..levels).flat_map(|i| {
            let sampler = (i + 1 < levels).then_some("downsamplers");
            block(format!("down_blocks.{i}"), spec.layers_per_block, spec.down_attention[i], sampler)
        });
        let mid = ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"].map(String::from);
        let mid = mid.into_iter().filter(|_| spec.has_mid_block);
        let up = (0..levels).flat_map(|i| {
            let sampler = (i + 1 < levels).then_some("upsamplers");
            block(format!("up_blocks.{i}"), spec.layers_per_block + 1, spec.up_attention[i], sampler)
        });
        let word = |word: &str| [word.to_string()];
        word("conv_in").into_iter().chain(down).chain(mid).chain(up).chain(word("conv_out")).collect()
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

        let mut section = {
            let mut next = 0;
            move || {
                next += 1;
                let i = next - 1;
                (i, w.section(i, route.at(i), route.dtype(i)))
            }
        };
        let (mut attentions, mut takers) = (Vec::new(), Vec::new());
        let (_, first) = section();
        let conv_in = Conv2d::load(&first.at("conv_in"), spec.in_channels, widths[0], 3)?;
        let linear_1 = Linear::load(&first.at("time_embedding.linear_1"), widths[0], time)?;
        let linear_2 = Linear::load(&first.at("time_embedding.linear_2"), time, time)?;

        let mut down_blocks = Vec::with_capacity(widths.len());
        for level in 0..widths.len() {
            let name = format!("down_blocks.{level}");
            let before = widths[level.saturating_sub(1)];
            let mut block = DownBlock { resnets: Vec::new(), attentions: Vec::new(), downsample: None };
            for i in 0..spec.layers_per_block {
                let channels = if i == 0 { before } else { widths[level] };
                let w = section().1.at(&name).at("resnets").at(i);
                block.resnets.push(ResnetBlock::load(&w, channels, widths[level], facts)?);
                if spec.down_attention[level] {
                    let (index, w) = section();
                    attentions.push(index);
                    block.attentions.push(transformer(&w.at(&name).at("attentions").at(i), level)?);
                }
            }
            if level < last {
                let w = section().1.at(&name).at("downsamplers.0");
                block.downsample = Some(Downsample::load(&w, widths[level], Padding::Same)?);
            }
            down_blocks.push(block);
        }

        let mut mid_block = None;
        if spec.has_mid_block {
            let resnet = |w: Scope, i: usize| {
                ResnetBlock::load(&w.at("mid_block.resnets").at(i), widths[last], widths[last], facts)
            };
            let resnet_1 = resnet(section().1, 0)?;
            let (index, mid) = section();
            attentions.push(index);
            let attention = transformer(&mid.at("mid_block.attentions.0"), last)?;
            mid_block = Some(MidBlock { resnet_1, attention, resnet_2: resnet(section().1, 1)? });
        }

        // Up blocks are numbered from the lowest resolution; each layer also takes what a down layer left behind.
        let mut up_blocks = Vec::with_capacity(widths.len());
        for i in 0..widths.len() {
            let (name, level) = (format!("up_blocks.{i}"), last - i);
            let below = widths[(level + 1).min(last)];
            let above = widths[level.saturating_sub(1)];
            let mut block = UpBlock { resnets: Vec::new(), attentions: Vec::new(), upsample: None };
            for j in 0..spec.layers_per_block + 1 {
                let channels = if j == 0 { below } else { widths[level] };
                let skip = if j == spec.layers_per_block { above } else { widths[level] };
                let (index, w) = section();
                takers.push(index);
                let w = w.at(&name).at("resnets").at(j);
                block.resnets.push(ResnetBlock::load(&w, channels + skip, widths[level], facts)?);
                if spec.up_attention[i] {
                    let (index, w) = section();
                    attentions.push(index);
                    block.attentions.push(transformer(&w.at(&name).at("attentions").at(j), level)?);
                }
            }
            if i < last {
                block.upsample = Some(Upsample::load(&section().1.at(&name).at("upsamplers.0"), widths[level])?);
            }
            up_blocks.push(block);
        }

        let (_, out) = section();
        let conv_norm_out = GroupNorm::load(&out.at("conv_norm_out"), widths[0], spec.norm_num_groups, spec.norm_eps)?;
        let conv_out = Conv2d::load(&out.at("conv_out"), widths[0], spec.out_channels, 3)?;
        Ok(Self {
            conv_in,
            linear_1,
            linear_2,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out,
            conv_out,
            attentions,
            takers,
        })
    }

    /// The transformers, in the order of their sections.
    fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        let down = self.down_blocks.iter().flat_map(|block| &block.attentions);
        let up = self.up_blocks.iter().flat_map(|block| &block.attentions);
        down.chain(self.mid_block.iter().map(|block| &block.attention)).chain(up)
    }

    /// Keys and values of the text for every layer, kept for the whole request on the device that will use them.
    pub fn condition(&self, context: &Tensor, walk: &Walk, keeps: &Keeps) -> Result<TextKeysValues> {
        let walk = walk.through(self.attentions.clone());
        let context = Shared::new(context.clone());
        let keys_values = |transformer: &Transformer| -> Result<Vec<KeysValues>> {
            let device = walk.next()?;
            let keep = keeps.on(device);
            let kept = |kv: KeysValues| Ok(KeysValues { k: kv.k.keep(keep)?, v: kv.v.keep(keep)? });
            transformer.keys_values(&context.on(device, walk.dtype())?)?.into_iter().map(kept).collect()
        };
        self.transformers().map(keys_values).collect::<Result<_>>().map(TextKeysValues)
    }

    /// `[batch, height, width, in_channels]` to `[batch, height, width, out_channels]`, both f32.
    ///
    /// What the down path leaves for the up path goes to its consumer's device as soon as it is made.
    pub fn forward(&self, input: &DenoiserInput, walk: &Walk) -> Result<Tensor> {
        let latents = walk.take(input.latents.clone())?;
        // Every residual block begins with SiLU of the time embedding, so it ends with it.
        let silu = Fuse::activation(Activation::Silu);
        let time = input.time_features.cast(walk.dtype())?;
        let time = Shared::new(self.linear_2.forward_with(&self.linear_1.forward_with(&time, &silu)?, &silu)?);
        let resnet = |resnet: &ResnetBlock, h: &Tensor| resnet.forward(h, Some(&time.on(h.device(), h.dtype())?));
        let mut texts = input.text.0.iter();
        let mut text = || texts.next().expect("`condition` went by the same transformers").as_slice();

        let mut skips: Vec<Tensor> = Vec::with_capacity(self.takers.len());
        let leave = |skips: &mut Vec<Tensor>, h: &Tensor| -> Result<()> {
            // The last one left is the first one taken.
            let taker = self.takers[self.takers.len() - 1 - skips.len()];
            skips.push(walk.send(h, taker)?);
            Ok(())
        };

        let mut h = self.conv_in.forward(&latents)?;
        drop(latents);
        leave(&mut skips, &h)?;
        for block in &self.down_blocks {
            for (i, layer) in block.resnets.iter().enumerate() {
                h = resnet(layer, &walk.take(h)?)?;
                if let Some(attention) = block.attentions.get(i) {
                    h = attention.forward(&walk.take(h)?, text())?;
                }
                leave(&mut skips, &h)?;
            }
            if let Some(downsample) = &block.downsample {
                h = downsample.forward(&walk.take(h)?)?;
                leave(&mut skips, &h)?;
            }
        }

        if let Some(block) = &self.mid_block {
            h = resnet(&block.resnet_1, &walk.take(h)?)?;
            h = block.attention.forward(&walk.take(h)?, text())?;
            h = resnet(&block.resnet_2, &walk.take(h)?)?;
        }

        for block in &self.up_blocks {
            for (j, layer) in block.resnets.iter().enumerate() {
                let skip = skips.pop().expect("the down path left one for each layer of the up path");
                h = walk.take(h)?.concat_channels(&skip)?;
                drop(skip);
                h = resnet(layer, &h)?;
                if let Some(attention) = block.attentions.get(j) {
                    h = attention.forward(&walk.take(h)?, text())?;
                }
            }
            if let (Some(upsample), Some(next)) = (&block.upsample, skips.last()) {
                h = upsample.forward(&walk.take(h)?, next.dim(1), next.dim(2))?;
            }
        }

        h = walk.take(h)?;
        h = self.conv_norm_out.forward_silu(&h)?;
        self.conv_out.forward(&h)?.cast(DType::F32)
    }
}
