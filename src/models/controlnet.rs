//! ControlNet: a copy of the UNet's down path and middle that reads a picture, and computes what is added to the features
//! of the UNet. Zhang et al. 2023; matches diffusers' `ControlNetModel`.

use serde_json::Value;

use super::{
    config::{COUNTS, WIDTHS},
    contracting::{Condition, Conditioning, Contracting, ContractingSpec, MidBlock, SectionSpec, describe},
    keys,
    route::{ForwardPass, PersistentArenas, Route},
    unet::UnetSpec,
};
use crate::{
    backend::{Activation, DType, Device, Extent},
    error::{Error, Result},
    json::Object,
    nn::{Conv2d, Linear},
    tensor::{
        Fuse, Tensor,
        ops::{MAX_TERMS, Padding},
    },
    weights::Scope,
};

/// The largest number of ControlNets of a model: all are added in one operation.
pub const MAX_CONTROLNETS: usize = MAX_TERMS - 1;

/// The config of a `ControlNetModel`: `config.json` in its folder.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetSpec {
    /// The copy of the UNet's down path and middle. The size of its latents is the UNet's.
    pub contracting: ContractingSpec,
    /// Widths of the control encoder, from the size of the picture to an eighth of it.
    pub encoder_widths: Vec<usize>,
    /// Whether the network reads blue, green and red rather than red, green and blue.
    pub is_bgr: bool,
}

impl ControlNetSpec {
    /// Reads the text of a ControlNet's `config.json`, whose name in messages is `file`, for a model with this UNet.
    ///
    /// # Errors
    /// If a value is not supported, or the network is not a copy of one of the UNet's width and depth.
    pub fn from_json(text: &str, file: &str, unet: &UnetSpec) -> Result<Self> {
        let config = Object::parse(text, file)?;
        config.check(&keys::CONTROLNET)?;
        let sample = [unet.sample_height, unet.sample_width];
        let contracting = ContractingSpec::read(&config, sample, 0..=*COUNTS.end(), |_| false)?;
        if contracting.mid_block == MidBlock::None {
            return Err(config.refuse("mid_block_type", "\"UNetMidBlock2DCrossAttn\" or \"UNetMidBlock2D\""));
        }
        const WIDTHS_KEY: &str = "conditioning_embedding_out_channels";
        let encoder_widths = config.sizes(WIDTHS_KEY, WIDTHS)?.unwrap_or(vec![16, 32, 96, 256]);
        if encoder_widths.len() != 4 {
            return Err(config.refuse(WIDTHS_KEY, "4 widths: the control encoder halves the size three times"));
        }
        const ORDER: &str = "controlnet_conditioning_channel_order";
        let is_bgr = match config.text(ORDER)? {
            None | Some("rgb") => false,
            Some("bgr") => true,
            Some(_) => return Err(config.refuse(ORDER, "\"rgb\" or \"bgr\"")),
        };
        let spec = Self { contracting, encoder_widths, is_bgr };
        spec.check_fits(unet, file)?;
        Ok(spec)
    }

    /// Fails unless the residuals have the shapes of the UNet's features, and both read the same conditions.
    fn check_fits(&self, unet: &UnetSpec, file: &str) -> Result<()> {
        let (own, of) = (&self.contracting, &unet.contracting);
        let added = |spec: &ContractingSpec| spec.added.map_or(0, |added| added.input_width);
        let sizes: [(&str, Value, Value); 5] = [
            ("block_out_channels", of.block_out_channels.clone().into(), own.block_out_channels.clone().into()),
            ("layers_per_block", of.layers_per_block.into(), own.layers_per_block.into()),
            // An inpainting UNet has more inputs, of which a ControlNet reads the latents only.
            ("in_channels", unet.out_channels.into(), own.in_channels.into()),
            ("cross_attention_dim", of.cross_attention_dim.into(), own.cross_attention_dim.into()),
            ("projection_class_embeddings_input_dim", added(of).into(), added(own).into()),
        ];
        for (key, wanted, found) in sizes {
            if wanted != found {
                return Err(Error::input(format!("{file}: `{key}` must be {wanted}, as in the UNet of this model"))
                    .found(found.to_string())
                    .hint("a ControlNet for the family of the model: Stable Diffusion 1, 2 or XL"));
            }
        }
        Ok(())
    }
}

/// The conditioning of a ControlNet, computed once per request.
#[derive(Clone)]
pub struct ControlConditioning {
    contracting: Conditioning,
    /// The features of the pictures, `[rows, height / 8, width / 8, block_out_channels[0]]`, on the first section's
    /// device.
    hint: Tensor,
}

/// A ControlNet. Its sections are those of the UNet's down path and middle: the control encoder belongs to the first,
/// and the convolution of a residual to the section that makes the features for it.
pub struct ControlNet {
    contracting: Contracting,
    encoder: ControlEncoder,
    /// The convolutions of the residuals, which a training begins with zeros.
    controlnet_down_blocks: Vec<Linear>,
    controlnet_mid_block: Linear,
    is_bgr: bool,
}

/// `ControlNetConditioningEmbedding`: convolutions with SiLU between them, which halve the size three times.
struct ControlEncoder {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl ControlEncoder {
    fn load(w: &Scope, widths: &[usize], out: usize) -> Result<Self> {
        let mut blocks = Vec::new();
        for pair in widths.windows(2) {
            let w = |i: usize| w.at("blocks").at(i);
            blocks.push(Conv2d::load(&w(blocks.len()), pair[0], pair[0], Extent::Large)?);
            blocks.push(Conv2d::load_strided(&w(blocks.len()), pair[0], pair[1], Padding::Same)?);
        }
        Ok(Self {
            conv_in: Conv2d::load(&w.at("conv_in"), 3, widths[0], Extent::Large)?,
            blocks,
            conv_out: Conv2d::load(&w.at("conv_out"), widths[widths.len() - 1], out, Extent::Large)?,
        })
    }

    /// Maps a picture `[1, height, width, 3]` from 0 to 1 to features `[1, height / 8, width / 8, out]`.
    fn forward(&self, picture: &Tensor) -> Result<Tensor> {
        let silu = Fuse::activation(Activation::Silu);
        let mut h = self.conv_in.forward_with(picture, &silu)?;
        for block in &self.blocks {
            h = block.forward_with(&h, &silu)?;
        }
        self.conv_out.forward(&h)
    }
}

/// The widths of the skip tensors and of the middle, each with the section that makes it.
fn residuals(sections: &[SectionSpec], spec: &ContractingSpec) -> Vec<(usize, usize)> {
    let makers = sections.iter().enumerate().filter(|(_, section)| section.skip).map(|(section, _)| section);
    let widths = spec.feature_shapes([1; 3]).into_iter().map(|shape| shape.channels());
    makers.chain([sections.len() - 1]).zip(widths).collect()
}

impl ControlNet {
    /// The names of the sections, between which the network can be cut, in order.
    pub fn sections(spec: &ControlNetSpec) -> Vec<String> {
        describe(&spec.contracting).into_iter().map(|section| section.name).collect()
    }

    /// The section that makes each residual.
    pub fn residual_sections(spec: &ControlNetSpec) -> Vec<usize> {
        let sections = describe(&spec.contracting);
        residuals(&sections, &spec.contracting).into_iter().map(|(section, _)| section).collect()
    }

    /// Loads the network, each section for the device that runs it.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or a device has no room.
    pub fn load(w: &Scope, spec: &ControlNetSpec, route: &Route) -> Result<Self> {
        let (sections, width) = (describe(&spec.contracting), spec.contracting.block_out_channels[0]);
        let scope = |section: usize| w.section(section, route.at(section), route.precision(section));
        let residuals = residuals(&sections, &spec.contracting);
        let zero_conv = |i: usize, name: String| {
            let (section, width) = residuals[i];
            Linear::load_conv1x1(&scope(section).at(name), width, width)
        };
        let middle = residuals.len() - 1;
        let down = (0..middle).map(|i| zero_conv(i, format!("controlnet_down_blocks.{i}")));
        Ok(Self {
            contracting: Contracting::load(w, &spec.contracting, &sections, route)?,
            encoder: ControlEncoder::load(&scope(0).at("controlnet_cond_embedding"), &spec.encoder_widths, width)?,
            controlnet_down_blocks: down.collect::<Result<_>>()?,
            controlnet_mid_block: zero_conv(middle, "controlnet_mid_block".to_owned())?,
            is_bgr: spec.is_bgr,
        })
    }

    /// Computes everything that stays the same in all steps: the features of the pictures, which do not depend on the
    /// timestep, and what the UNet computes too. It is kept for the whole request.
    ///
    /// A picture is `[height, width, 3]` with red, green and blue from 0 to 1. `rows` are those of the network's batch:
    /// row i belongs to picture `i % pictures.len()`.
    ///
    /// # Errors
    /// If a device fails or an arena is full.
    pub fn condition(
        &self,
        rows: &[Condition],
        pictures: &[&[f32]],
        [height, width]: [usize; 2],
        pass: &ForwardPass,
        keeps: &PersistentArenas,
    ) -> Result<ControlConditioning> {
        let first = pass.through(vec![0]);
        let device = first.next()?;
        let features = |picture: &&[f32]| -> Result<Tensor> {
            let turned: Vec<f32>;
            let values = match self.is_bgr {
                true => {
                    turned = picture.chunks(3).flat_map(|pixel| pixel.iter().rev().copied()).collect();
                    &turned
                }
                false => *picture,
            };
            let picture = Tensor::new(device, [1, height, width, 3], values)?.cast(first.dtype())?;
            self.encoder.forward(&picture)
        };
        let features = pictures.iter().map(features).collect::<Result<Vec<_>>>()?;
        let rows_of_features: Vec<&Tensor> = features.iter().cycle().take(rows.len()).collect();
        let hint = Tensor::stack(&rows_of_features)?.keep(keeps.on(device))?;
        drop(features);
        drop(first);
        Ok(ControlConditioning { contracting: self.contracting.condition(&[], rows, pass, keeps)?, hint })
    }

    /// Sinusoidal features of a timestep, `[1, block_out_channels[0]]`, for [`ControlNet::forward`].
    pub fn time_features(&self, timestep: f32, device: &Device) -> Result<Tensor> {
        self.contracting.time_features(timestep, device)
    }

    /// Computes the residuals of the UNet's skip tensors and of its middle from the scaled latents, `[batch, height,
    /// width, in_channels]`, and the [`time_features`] of the timestep, `[batch or 1, block_out_channels[0]]`. `put`
    /// gets each of them with its number as soon as it is made. Inputs and residuals are f32.
    ///
    /// [`time_features`]: ControlNet::time_features
    ///
    /// # Errors
    /// If a device fails or an arena is full, or `put` returns an error.
    pub fn forward(
        &self,
        latents: &Tensor,
        time: &Tensor,
        conditioning: &ControlConditioning,
        pass: &ForwardPass,
        mut put: impl FnMut(usize, Tensor) -> Result<()>,
    ) -> Result<()> {
        let ControlConditioning { contracting, hint } = conditioning;
        let mut zero_convs = self.controlnet_down_blocks.iter().enumerate();
        let leave = |h: &Tensor| {
            let (i, conv) = zero_convs.next().expect("there is a convolution for each skip tensor");
            put(i, conv.forward(h)?.cast(DType::F32)?)
        };
        let texts = &mut contracting.texts();
        let (h, _) = self.contracting.forward(latents, time, contracting, texts, Some(hint), pass, leave)?;
        put(self.controlnet_down_blocks.len(), self.controlnet_mid_block.forward(&h)?.cast(DType::F32)?)
    }
}
