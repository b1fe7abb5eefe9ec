//! The blocks of the UNet and the autoencoder. Class and field names are those of diffusers.

use crate::{
    backend::{Activation, Extent},
    error::Result,
    nn::{Conv2d, GroupNorm, LayerNorm, Linear},
    tensor::{Fuse, Tensor, ops::Padding},
    weights::Scope,
};

/// `ResnetBlock2D`: two convolutions with the time embedding between them, and a shortcut. He et al. 2015.
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Linear>,
}

/// The config values of a residual block beside its channels.
#[derive(Clone, Copy)]
pub struct ResnetFacts {
    /// Number of groups of the norms.
    pub groups: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Width of the time embedding; `None` in the autoencoder.
    pub time_channels: Option<usize>,
    /// The extent of the convolutions.
    pub extent: Extent,
}

impl ResnetBlock {
    /// Loads a block from `channels` to `out` channels.
    pub fn load(w: &Scope, channels: usize, out: usize, facts: ResnetFacts) -> Result<Self> {
        let ResnetFacts { groups, eps, time_channels, extent } = facts;
        Ok(Self {
            norm1: GroupNorm::load(&w.at("norm1"), channels, groups, eps)?,
            conv1: Conv2d::load(&w.at("conv1"), channels, out, extent)?,
            time_emb_proj: time_channels
                .map(|width| Linear::load(&w.sensitive().at("time_emb_proj"), width, out))
                .transpose()?,
            norm2: GroupNorm::load(&w.at("norm2"), out, groups, eps)?,
            conv2: Conv2d::load(&w.at("conv2"), out, out, extent)?,
            conv_shortcut: (channels != out)
                .then(|| Linear::load_conv1x1(&w.at("conv_shortcut"), channels, out))
                .transpose()?,
        })
    }

    /// x is `[batch, height, width, channels]`; time is `[batch or 1, time_channels]`, after SiLU.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let time = match (&self.time_emb_proj, time) {
            (Some(proj), Some(time)) => Some(proj.forward(time)?),
            _ => None,
        };
        let mut h = self.norm1.forward_silu(x)?;
        h = self.conv1.forward_with(&h, &Fuse { channel_add: time.as_ref(), ..Fuse::default() })?;
        h = self.norm2.forward_silu(&h)?;
        match &self.conv_shortcut {
            None => self.conv2.forward_with(&h, &Fuse::residual(x)),
            Some(shortcut) => self.conv2.forward_with(&h, &Fuse::residual(&shortcut.forward(x)?)),
        }
    }
}

/// `Attention`: queries from x; keys and values from x itself or from the text. Vaswani et al. 2017.
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

/// Keys and values `[batch, tokens, channels]` of one layer.
#[derive(Clone)]
pub struct KeysValues {
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

impl Attention {
    /// Loads the UNet's form: no bias on q, k and v; keys and values come from features of width `context`.
    pub fn load(w: &Scope, channels: usize, context: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: Linear::load_without_bias(&w.at("to_q"), channels, channels)?,
            to_k: Linear::load_without_bias(&w.at("to_k"), context, channels)?,
            to_v: Linear::load_without_bias(&w.at("to_v"), context, channels)?,
            to_out: Linear::load(&w.at("to_out.0"), channels, channels)?,
            heads,
        })
    }

    /// Loads the autoencoder's form: one head, and a bias in every layer.
    pub fn load_with_bias(w: &Scope, channels: usize) -> Result<Self> {
        Ok(Self {
            to_q: Linear::load(&w.at("to_q"), channels, channels)?,
            to_k: Linear::load(&w.at("to_k"), channels, channels)?,
            to_v: Linear::load(&w.at("to_v"), channels, channels)?,
            to_out: Linear::load(&w.at("to_out.0"), channels, channels)?,
            heads: 1,
        })
    }

    /// Computes the keys and values of `context [batch, tokens, width]`.
    pub fn keys_values(&self, context: &Tensor) -> Result<KeysValues> {
        Ok(KeysValues { k: self.to_k.forward(context)?, v: self.to_v.forward(context)? })
    }

    /// `residual + attention(h)`, with keys and values of h itself.
    pub fn forward_self(&self, h: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward(h, &self.keys_values(h)?, residual)
    }

    /// `residual + attention(h)`, with the given keys and values.
    pub fn forward(&self, h: &Tensor, kv: &KeysValues, residual: &Tensor) -> Result<Tensor> {
        let h = self.to_q.forward(h)?.attention_in(self.to_q.precision(), &kv.k, &kv.v, self.heads, false)?;
        self.to_out.forward_with(&h, &Fuse::residual(residual))
    }
}

/// `BasicTransformerBlock`: self attention, cross attention to the text, feed forward.
pub struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

impl TransformerBlock {
    fn load(w: &Scope, channels: usize, context: usize, heads: usize) -> Result<Self> {
        let (eps, inner) = (1e-5, 4 * channels);
        Ok(Self {
            norm1: LayerNorm::load(&w.at("norm1"), channels, eps)?,
            attn1: Attention::load(&w.at("attn1"), channels, channels, heads)?,
            norm2: LayerNorm::load(&w.at("norm2"), channels, eps)?,
            attn2: Attention::load(&w.at("attn2"), channels, context, heads)?,
            norm3: LayerNorm::load(&w.at("norm3"), channels, eps)?,
            ff_in: Linear::load_geglu(&w.at("ff.net.0.proj"), channels, 2 * inner)?,
            ff_out: Linear::load(&w.at("ff.net.2"), inner, channels)?,
        })
    }

    /// x is `[batch, tokens, channels]`.
    fn forward(&self, x: &Tensor, text: &KeysValues) -> Result<Tensor> {
        let mut x = self.attn1.forward_self(&self.norm1.forward(x)?, x)?;
        x = self.attn2.forward(&self.norm2.forward(&x)?, text, &x)?;
        let h = self.ff_in.forward_with(&self.norm3.forward(&x)?, &Fuse::activation(Activation::Geglu))?;
        self.ff_out.forward_with(&h, &Fuse::residual(&x))
    }
}

/// `Transformer2DModel`: transformer blocks over the pixels of a feature map. Rombach et al. 2022.
pub struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

/// The config values of the transformers of one level.
#[derive(Clone, Copy)]
pub struct TransformerFacts {
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the text features.
    pub context: usize,
    /// Number of groups of the norm.
    pub groups: usize,
    /// Whether the projections are stored as linear layers rather than as 1x1 convolutions.
    pub linear_projection: bool,
}

impl Transformer {
    /// Loads a transformer over `channels` channels.
    pub fn load(w: &Scope, channels: usize, facts: TransformerFacts) -> Result<Self> {
        let project = |name| match facts.linear_projection {
            true => Linear::load(&w.at(name), channels, channels),
            false => Linear::load_conv1x1(&w.at(name), channels, channels),
        };
        Ok(Self {
            // The reference uses 1e-6 here, independently of the config.
            norm: GroupNorm::load(&w.at("norm"), channels, facts.groups, 1e-6)?,
            proj_in: project("proj_in")?,
            blocks: (0..facts.layers)
                .map(|i| {
                    TransformerBlock::load(&w.at("transformer_blocks").at(i), channels, facts.context, facts.heads)
                })
                .collect::<Result<_>>()?,
            proj_out: project("proj_out")?,
        })
    }

    /// The keys and values of the text for each block, which do not depend on the timestep.
    pub fn keys_values(&self, context: &Tensor) -> Result<Vec<KeysValues>> {
        self.blocks.iter().map(|block| block.attn2.keys_values(context)).collect()
    }

    /// x is `[batch, height, width, channels]`; `text` is the result of [`Transformer::keys_values`].
    pub fn forward(&self, x: &Tensor, text: &[KeysValues]) -> Result<Tensor> {
        let &[batch, height, width, channels] = x.shape().dims() else { unreachable!("conv2d gives feature maps") };
        let mut h = self.norm.forward(x)?.reshape([batch, height * width, channels])?;
        h = self.proj_in.forward(&h)?;
        for (block, text) in self.blocks.iter().zip(text) {
            h = block.forward(&h, text)?;
        }
        let x = x.reshape([batch, height * width, channels])?;
        self.proj_out.forward_with(&h, &Fuse::residual(&x))?.reshape([batch, height, width, channels])
    }
}

/// `Upsample2D`: doubles the size, then applies a convolution.
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Loads the convolution over `channels` channels.
    pub fn load(w: &Scope, channels: usize, extent: Extent) -> Result<Self> {
        Ok(Self { conv: Conv2d::load(&w.at("conv"), channels, channels, extent)? })
    }

    /// Upsamples to the given height and width: those of a skip tensor, which are odd if the picture's were.
    pub fn forward(&self, x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        self.conv.forward(&x.upsample2x(height, width)?)
    }
}

/// `Downsample2D`: a convolution with stride 2.
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// Loads the convolution over `channels` channels. The UNet pads on all sides, the autoencoder only below and to
    /// the right.
    pub fn load(w: &Scope, channels: usize, padding: Padding) -> Result<Self> {
        Ok(Self { conv: Conv2d::load_strided(&w.at("conv"), channels, channels, padding)? })
    }

    /// Halves the height and width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(x)
    }
}
