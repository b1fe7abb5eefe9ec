//! The tiny autoencoder, TAESD, which is distilled from the autoencoder of a model and works on the same latents:
//! convolutions and ReLUs without norms and attention. Matches diffusers' `AutoencoderTiny`.

use super::{
    config::{COUNTS, LEVELS, WIDTHS},
    keys,
    route::{ForwardPass, Route, section},
};
use crate::{
    backend::{Activation, DType, Extent},
    error::Result,
    json::Object,
    nn::Conv2d,
    tensor::{Fuse, Tensor, ops::Padding},
    weights::Scope,
};

/// The config of an `AutoencoderTiny`: `vae/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct TinyVaeSpec {
    /// Number of channels of an input picture.
    pub in_channels: usize,
    /// Number of channels of the latents.
    pub latent_channels: usize,
    /// Number of channels of all layers between.
    pub width: usize,
    /// Number of blocks of each encoder level, full resolution first.
    pub encoder_blocks: Vec<usize>,
    /// Number of blocks of each decoder level, full resolution last.
    pub decoder_blocks: Vec<usize>,
    /// The factor of the latents: they are `encoded * scaling_factor`. 1 in all published files, because the networks
    /// were trained on the latents of the denoiser.
    pub scaling_factor: f32,
}

impl TinyVaeSpec {
    /// The name of the class in diffusers.
    pub const CLASS: &'static str = "AutoencoderTiny";

    /// Reads the text of a `vae/config.json`; `file` is its name in messages.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let config = Object::parse(text, file)?;
        config.check(&keys::TINY_VAE)?;
        let mut width = None;
        // The reference's convolutions between levels keep their number of channels.
        let mut blocks = |half: &str, default: [usize; 4]| -> Result<Vec<usize>> {
            let (key, blocks_key) = (format!("{half}_block_out_channels"), format!("num_{half}_blocks"));
            let widths = config.sizes(&key, WIDTHS)?.unwrap_or(vec![64; 4]);
            if !LEVELS.contains(&widths.len()) || widths.iter().any(|other| *other != *width.get_or_insert(*other)) {
                return Err(
                    config.refuse(&key, "a list of 1 to 8 widths that are equal, in the encoder and the decoder")
                );
            }
            let blocks = config.sizes(&blocks_key, 0..=*COUNTS.end())?.unwrap_or(default.to_vec());
            match blocks.len() == widths.len() {
                true => Ok(blocks),
                false => Err(config.refuse(&blocks_key, &format!("a list of {}, one for each level", widths.len()))),
            }
        };
        let encoder_blocks = blocks("encoder", [1, 3, 3, 3])?;
        let decoder_blocks = blocks("decoder", [3, 3, 3, 1])?;
        if encoder_blocks.len() != decoder_blocks.len() {
            return Err(config.refuse("num_decoder_blocks", "as many levels as the encoder has"));
        }
        if config.size("out_channels", COUNTS)?.unwrap_or(3) != 3 {
            return Err(config.refuse("out_channels", "3: red, green and blue"));
        }
        Ok(Self {
            in_channels: config.size("in_channels", COUNTS)?.unwrap_or(3),
            latent_channels: config.size("latent_channels", COUNTS)?.unwrap_or(4),
            width: width.unwrap_or(64),
            encoder_blocks,
            decoder_blocks,
            scaling_factor: config.float("scaling_factor", 1e-6..=1e6)?.unwrap_or(1.0) as f32,
        })
    }

    /// The number of pixels per latent, along each side: 8 for four levels.
    pub fn scale(&self) -> usize {
        1 << (self.decoder_blocks.len() - 1)
    }
}

/// `AutoencoderTinyBlock`: three convolutions with ReLUs, and a shortcut. The widths of input and output are equal.
struct Block {
    convs: [Conv2d; 3],
}

impl Block {
    fn load(w: &Scope, width: usize) -> Result<Self> {
        let conv = |i: usize| Conv2d::load(&w.at("conv").at(i), width, width, Extent::Large);
        Ok(Self { convs: [conv(0)?, conv(2)?, conv(4)?] })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, last] = &self.convs;
        let mut h = first.forward_with(x, &Fuse::activation(Activation::Relu))?;
        h = second.forward_with(&h, &Fuse::activation(Activation::Relu))?;
        h = last.forward_with(&h, &Fuse::residual(x))?;
        h.activate(Activation::Relu)
    }
}

/// The numbers of the layers of a half: of each level's first convolution and its blocks, and of the last convolution.
struct Layers {
    levels: Vec<(usize, Vec<usize>)>,
    last: usize,
}

impl Layers {
    fn encoder(spec: &TinyVaeSpec) -> Self {
        let mut next = 0;
        let level = |&blocks: &usize| {
            let conv = next;
            next += 1 + blocks;
            (conv, (conv + 1..next).collect())
        };
        Self { levels: spec.encoder_blocks.iter().map(level).collect(), last: next }
    }

    /// The first convolution is followed by a ReLU, the others follow an upsampling: both are layers in the reference.
    fn decoder(spec: &TinyVaeSpec) -> Self {
        let mut next = 0;
        let level = |&blocks: &usize| {
            let first = if next == 0 { 2 } else { next + 1 };
            let level = (next, (first..first + blocks).collect());
            next = first + blocks + 1;
            level
        };
        // No upsampling precedes the last convolution.
        let levels = spec.decoder_blocks.iter().map(level).collect();
        Self { levels, last: next - 1 }
    }

    /// The names of the sections: each level, and the last convolution.
    fn sections(&self, half: &str) -> Vec<String> {
        let convs = self.levels.iter().map(|(conv, _)| *conv).chain([self.last]);
        convs.map(|conv| format!("{half}.layers.{conv}")).collect()
    }
}

/// The layers of a half.
struct Half {
    levels: Vec<(Conv2d, Vec<Block>)>,
    last: Conv2d,
}

impl Half {
    /// Loads the layers, each section for the device that runs it; `first` and `between` load the first convolution and
    /// those of the other levels.
    fn load(
        w: &Scope,
        route: &Route,
        (half, layers): (&str, &Layers),
        width: usize,
        out_channels: usize,
        first: impl Fn(&Scope) -> Result<Conv2d>,
        between: impl Fn(&Scope) -> Result<Conv2d>,
    ) -> Result<Self> {
        let names = layers.sections(half);
        let scope = |i: usize| section(w, route, &names, &names[i]).at(half).at("layers");
        let level = |(i, (conv, blocks)): (usize, &(usize, Vec<usize>))| {
            let w = scope(i);
            let conv = if i == 0 { first(&w.at(*conv))? } else { between(&w.at(*conv))? };
            Ok((conv, blocks.iter().map(|block| Block::load(&w.at(*block), width)).collect::<Result<_>>()?))
        };
        Ok(Self {
            levels: layers.levels.iter().enumerate().map(level).collect::<Result<_>>()?,
            last: Conv2d::load(&scope(layers.levels.len()).at(layers.last), width, out_channels, Extent::Large)?,
        })
    }
}

/// The decoder, which converts latents to pictures.
pub struct TinyDecoder {
    half: Half,
    scaling_factor: f32,
}

impl TinyDecoder {
    /// The names of the sections, between which the network can be cut, in order. A section begins with the layer of
    /// its name.
    pub fn sections(spec: &TinyVaeSpec) -> Vec<String> {
        Layers::decoder(spec).sections("decoder")
    }

    /// Loads `decoder` of `vae/`, each section for the device that runs it.
    pub fn load(w: &Scope, spec: &TinyVaeSpec, route: &Route) -> Result<Self> {
        let (width, latent) = (spec.width, spec.latent_channels);
        let first = |w: &Scope| Conv2d::load(w, latent, width, Extent::Large);
        let between = |w: &Scope| Conv2d::load_without_bias(w, width, width, Extent::Large);
        let half = Half::load(w, route, ("decoder", &Layers::decoder(spec)), width, 3, first, between)?;
        Ok(Self { half, scaling_factor: spec.scaling_factor })
    }

    /// What the layers read of one of the denoiser's latents: a smooth clamp of it to -3..3.
    pub fn input(&self, latent: f32) -> f32 {
        (latent / self.scaling_factor / 3.0).tanh() * 3.0
    }

    /// The pixel, from -1 to 1, of a value that the layers give.
    pub fn output(&self, value: f32) -> f32 {
        2.0 * value - 1.0
    }

    /// The layers: from `[batch, height, width, latent_channels]` to `[batch, 8 height, 8 width, 3]` from 0 to 1. Input
    /// and output are f32.
    pub fn forward(&self, z: Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let mut h = z;
        for (i, (conv, blocks)) in self.half.levels.iter().enumerate() {
            h = pass.take(h)?;
            h = match i {
                0 => conv.forward_with(&h, &Fuse::activation(Activation::Relu))?,
                _ => conv.forward(&h.upsample2x(2 * h.dim(1), 2 * h.dim(2))?)?,
            };
            for block in blocks {
                h = block.forward(&h)?;
            }
        }
        self.half.last.forward(&pass.take(h)?)?.cast(DType::F32)
    }
}

/// The encoder, which converts pictures to latents. It has no distribution of which they would be drawn.
pub struct TinyEncoder {
    half: Half,
}

impl TinyEncoder {
    /// The names of the sections, between which the network can be cut, in order. A section begins with the layer of
    /// its name.
    pub fn sections(spec: &TinyVaeSpec) -> Vec<String> {
        Layers::encoder(spec).sections("encoder")
    }

    /// Loads `encoder` of `vae/`, each section for the device that runs it.
    pub fn load(w: &Scope, spec: &TinyVaeSpec, route: &Route) -> Result<Self> {
        let (width, latent) = (spec.width, spec.latent_channels);
        let first = |w: &Scope| Conv2d::load(w, spec.in_channels, width, Extent::Large);
        let between = |w: &Scope| Conv2d::load_strided_without_bias(w, width, width, Padding::Same);
        let half = Half::load(w, route, ("encoder", &Layers::encoder(spec)), width, latent, first, between)?;
        Ok(Self { half })
    }

    /// What the layers read of a pixel from -1 to 1.
    pub fn input(&self, pixel: f32) -> f32 {
        (pixel + 1.0) / 2.0
    }

    /// The layers: from pictures from 0 to 1, `[batch, height, width, in_channels]`, to unscaled latents, `[batch,
    /// height / 8, width / 8, latent_channels]`. Input and output are f32.
    pub fn forward(&self, pictures: Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let mut h = pictures;
        for (conv, blocks) in &self.half.levels {
            h = conv.forward(&pass.take(h)?)?;
            for block in blocks {
                h = block.forward(&h)?;
            }
        }
        self.half.last.forward(&pass.take(h)?)?.cast(DType::F32)
    }
}
