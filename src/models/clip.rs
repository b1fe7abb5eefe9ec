//! The text encoder of CLIP. Radford et al. 2021; matches transformers' `CLIPTextModel` and
//! `CLIPTextModelWithProjection`.

use super::{
    config::{COUNTS, EPSILONS, WIDTHS, divides},
    keys,
    route::{ForwardPass, Route, section},
};
use crate::{
    backend::{Activation, DType},
    error::Result,
    json::Object,
    nn::{Embedding, LayerNorm, Linear},
    tensor::{Fuse, Tensor},
    weights::Scope,
};

/// The activation of a text encoder's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextActivation {
    /// `x * sigmoid(1.702 x)`, used by OpenAI's CLIP.
    QuickGelu,
    /// The exact (erf) GELU, used by OpenCLIP.
    Gelu,
}

/// The config of a CLIP text encoder: `text_encoder/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSpec {
    /// Number of rows of the token embedding in the file.
    pub vocab_size: usize,
    /// Number of rows of the token embedding with the vectors of textual inversions, if there are some.
    pub extended_size: Option<usize>,
    /// Number of rows of the position embedding: 77 for the published models.
    pub max_position_embeddings: usize,
    /// Number of tokens in one text, padding included: the tokenizer's `model_max_length`, at most the number of
    /// positions.
    pub text_length: usize,
    /// Width of the features.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Activation of the MLP.
    pub activation: TextActivation,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f32,
    /// The part of the network that gives the features.
    pub features: FeatureLayer,
    /// The pooled feature, if the pipeline uses it.
    pub pooled: Option<PooledSpec>,
}

/// The hidden state that a pipeline takes as the features of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureLayer {
    /// The output of the last layer, after the final norm: Stable Diffusion 1 and 2.
    LastNormed,
    /// The input of the last layer, without a norm: SDXL.
    Penultimate,
}

/// The pooled feature of a text: the final norm of the last layer's output at one position, projected to `width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PooledSpec {
    /// Number of values, `projection_dim`.
    pub width: usize,
    /// The token whose first position is pooled; `None` for the token with the largest id. transformers takes the
    /// largest id if the config's `eos_token_id` is 2, as it is in all configs from before 2023.
    pub end_token: Option<u32>,
}

impl PooledSpec {
    /// The position in `ids` that is pooled: the first one of the token, and the first one at all without the token.
    fn position(&self, ids: &[u32]) -> usize {
        let token = self.end_token.or_else(|| ids.iter().max().copied());
        ids.iter().position(|id| Some(*id) == token).unwrap_or(0)
    }

    /// The rows `[texts, width]` of the hidden states `[texts, tokens, width]` that are pooled: those at `ends`, or by
    /// the rule of the spec.
    fn rows(&self, ids: &[Vec<u32>], ends: &[Option<usize>], hidden: &Tensor) -> Result<Tensor> {
        let (values, tokens, width) = (hidden.read()?, hidden.dim(1), hidden.dim(2));
        let row = |(i, ids): (usize, &Vec<u32>)| {
            let position = ends.get(i).copied().flatten().unwrap_or_else(|| self.position(ids));
            &values[(i * tokens + position) * width..][..width]
        };
        let rows: Vec<&[f32]> = ids.iter().enumerate().map(row).collect();
        Tensor::new(hidden.device(), [rows.len(), width], &rows.concat())?.cast(hidden.dtype())
    }
}

/// The results of a text encoder, f32.
pub struct ClipOutput {
    /// The features, `[texts, tokens, hidden_size]`.
    pub features: Tensor,
    /// The pooled features, `[texts, PooledSpec::width]`, if the spec has them.
    pub pooled: Option<Tensor>,
}

/// The encoded form of one text by one text encoder, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedText {
    /// The features, `[tokens, hidden_size]`.
    pub features: Vec<f32>,
    /// The pooled feature, `[PooledSpec::width]`; empty if the encoder gives none.
    pub pooled: Vec<f32>,
}

impl ClipSpec {
    /// Reads the text of a `text_encoder/config.json`; `file` is its name in messages. The result is for a pipeline of
    /// Stable Diffusion 1 or 2: see [`ClipSpec::for_sdxl`].
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let config = Object::parse(text, file)?;
        config.check(&keys::TEXT_ENCODER)?;
        let activation = match config.text("hidden_act")? {
            None | Some("quick_gelu") => TextActivation::QuickGelu,
            Some("gelu") => TextActivation::Gelu,
            Some(_) => return Err(config.refuse("hidden_act", "\"quick_gelu\" or \"gelu\"")),
        };
        let positions = config.size("max_position_embeddings", 2..=4096)?.unwrap_or(77);
        let spec = Self {
            vocab_size: config.size("vocab_size", 2..=1 << 20)?.unwrap_or(49_408),
            extended_size: None,
            max_position_embeddings: positions,
            text_length: positions,
            hidden_size: config.size("hidden_size", WIDTHS)?.unwrap_or(512),
            intermediate_size: config.size("intermediate_size", WIDTHS)?.unwrap_or(2048),
            num_hidden_layers: config.size("num_hidden_layers", COUNTS)?.unwrap_or(12),
            num_attention_heads: config.size("num_attention_heads", COUNTS)?.unwrap_or(8),
            activation,
            layer_norm_eps: config.float("layer_norm_eps", EPSILONS)?.unwrap_or(1e-5) as f32,
            features: FeatureLayer::LastNormed,
            pooled: None,
        };
        divides(&config, "num_attention_heads", spec.num_attention_heads, spec.hidden_size)?;
        Ok(spec)
    }

    /// As [`ClipSpec::from_json`], for a pipeline of SDXL, whose second text encoder gives the pooled feature.
    pub fn for_sdxl(text: &str, file: &str, is_pooled: bool) -> Result<Self> {
        let config = Object::parse(text, file)?;
        let width = config.size("projection_dim", WIDTHS)?.unwrap_or(512);
        let end = config.size("eos_token_id", 0..=1 << 20)?.unwrap_or(49_407) as u32;
        let pooled = is_pooled.then_some(PooledSpec { width, end_token: (end != 2).then_some(end) });
        Ok(Self { features: FeatureLayer::Penultimate, pooled, ..Self::from_json(text, file)? })
    }

    /// The number of layers whose output gives the features, if the last `skip` layers are left out.
    pub fn feature_layers(&self, skip: usize) -> Option<usize> {
        let unused = match self.features {
            FeatureLayer::LastNormed => skip,
            FeatureLayer::Penultimate => skip + 1,
        };
        self.num_hidden_layers.checked_sub(unused)
    }
}

/// Converts token ids to features.
pub struct ClipTextEncoder {
    spec: ClipSpec,
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl ClipTextEncoder {
    /// The names of the sections, between which the network can be cut, in order. `final_layer_norm` includes the
    /// projection of the pooled feature.
    pub fn sections(spec: &ClipSpec) -> Vec<String> {
        let layers = (0..spec.num_hidden_layers).map(|i| format!("encoder.layers.{i}"));
        ["embeddings".to_string()].into_iter().chain(layers).chain(["final_layer_norm".to_string()]).collect()
    }

    /// Loads all of `text_encoder/`, each section for the device that runs it.
    pub fn load(w: &Scope, spec: &ClipSpec, route: &Route) -> Result<Self> {
        let (width, layers) = (spec.hidden_size, spec.num_hidden_layers);
        let names = Self::sections(spec);
        let at = |name: &str| section(w, route, &names, name).at(name);
        let embeddings = at("embeddings");
        let positions = spec.max_position_embeddings;
        let projection = |pooled: PooledSpec| {
            let w = section(w, route, &names, "final_layer_norm").at("text_projection");
            Linear::load_without_bias(&w, width, pooled.width)
        };
        Ok(Self {
            token_embedding: {
                let rows = spec.extended_size.unwrap_or(spec.vocab_size);
                Embedding::load_extended(&embeddings.at("token_embedding"), spec.vocab_size, rows, width)?
            },
            position_embedding: Embedding::load(&embeddings.at("position_embedding"), positions, width)?,
            layers: (0..layers)
                .map(|i| EncoderLayer::load(&at(&format!("encoder.layers.{i}")), spec))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(&at("final_layer_norm"), width, spec.layer_norm_eps)?,
            text_projection: spec.pooled.map(projection).transpose()?,
            spec: spec.clone(),
        })
    }

    /// Encodes texts of equal length. The last `skip` layers are left out, `clip_skip` of diffusers, which does not
    /// change the pooled feature.
    ///
    /// # Errors
    /// If the device fails or its arena is full.
    ///
    /// # Panics
    /// If there are not more than `skip` layers, which a checked request does not ask for.
    pub fn forward(&self, ids: &[Vec<u32>], skip: usize, pass: &ForwardPass) -> Result<ClipOutput> {
        self.forward_to(ids, &[], skip, pass)
    }

    /// As [`forward`](Self::forward), with the positions of some texts that are pooled in place of the rule of
    /// [`PooledSpec::end_token`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_to(
        &self,
        ids: &[Vec<u32>],
        ends: &[Option<usize>],
        skip: usize,
        pass: &ForwardPass,
    ) -> Result<ClipOutput> {
        let taken = self.spec.feature_layers(skip).expect("a request leaves layers over");
        let layers = if self.text_projection.is_some() { self.layers.len() } else { taken };
        let has_norm = self.spec.features == FeatureLayer::LastNormed || self.text_projection.is_some();
        let pass = pass.through((0..=layers).chain(has_norm.then_some(self.layers.len() + 1)).collect());

        let (tokens, positions) = (&self.token_embedding.weight, &self.position_embedding.weight);
        let mut h = Tensor::embedding(pass.next()?, ids, tokens, positions)?;
        let mut features = h.clone();
        for (i, layer) in self.layers[..layers].iter().enumerate() {
            h = layer.forward(&pass.take(h)?)?;
            if i < taken {
                features = h.clone();
            }
        }
        let pooled = match (&self.text_projection, &self.spec.pooled) {
            (Some(projection), Some(spec)) => {
                let last = pass.take(spec.rows(ids, ends, &h)?)?;
                drop(h);
                Some(projection.forward(&self.final_layer_norm.forward(&last)?)?.cast(DType::F32)?)
            }
            _ => None,
        };
        if self.spec.features == FeatureLayer::LastNormed {
            features = self.final_layer_norm.forward(&pass.take(features)?)?;
        }
        Ok(ClipOutput { features: features.cast(DType::F32)?, pooled })
    }
}

struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    activation: Activation,
}

impl EncoderLayer {
    fn load(w: &Scope, spec: &ClipSpec) -> Result<Self> {
        let (width, inner, eps) = (spec.hidden_size, spec.intermediate_size, spec.layer_norm_eps);
        let (attention, mlp) = (w.at("self_attn"), w.at("mlp"));
        Ok(Self {
            layer_norm1: LayerNorm::load(&w.at("layer_norm1"), width, eps)?,
            q_proj: Linear::load(&attention.at("q_proj"), width, width)?,
            k_proj: Linear::load(&attention.at("k_proj"), width, width)?,
            v_proj: Linear::load(&attention.at("v_proj"), width, width)?,
            out_proj: Linear::load(&attention.at("out_proj"), width, width)?,
            layer_norm2: LayerNorm::load(&w.at("layer_norm2"), width, eps)?,
            fc1: Linear::load(&mlp.at("fc1"), width, inner)?,
            fc2: Linear::load(&mlp.at("fc2"), inner, width)?,
            heads: spec.num_attention_heads,
            activation: match spec.activation {
                TextActivation::QuickGelu => Activation::QuickGelu,
                TextActivation::Gelu => Activation::Gelu,
            },
        })
    }

    /// `x = x + attention(norm1(x)); x + mlp(norm2(x))`, where each token attends to itself and to earlier tokens.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.attention(&self.layer_norm1.forward(x)?, x)?;
        let h = self.fc1.forward_with(&self.layer_norm2.forward(&x)?, &Fuse::activation(self.activation))?;
        self.fc2.forward_with(&h, &Fuse::residual(&x))
    }

    fn attention(&self, h: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q_proj.forward(h)?, self.k_proj.forward(h)?, self.v_proj.forward(h)?);
        self.out_proj.forward_with(&q.attention(&k, &v, self.heads, true)?, &Fuse::residual(residual))
    }
}
