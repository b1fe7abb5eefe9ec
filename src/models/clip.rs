//! The text encoder of CLIP. Radford et al. 2021; matches transformers' `CLIPTextModel`.

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
    /// Number of rows of the token embedding.
    pub vocab_size: usize,
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
}

impl ClipSpec {
    /// Reads the text of a `text_encoder/config.json`; `file` is its name in messages.
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
            max_position_embeddings: positions,
            text_length: positions,
            hidden_size: config.size("hidden_size", WIDTHS)?.unwrap_or(512),
            intermediate_size: config.size("intermediate_size", WIDTHS)?.unwrap_or(2048),
            num_hidden_layers: config.size("num_hidden_layers", COUNTS)?.unwrap_or(12),
            num_attention_heads: config.size("num_attention_heads", COUNTS)?.unwrap_or(8),
            activation,
            layer_norm_eps: config.float("layer_norm_eps", EPSILONS)?.unwrap_or(1e-5) as f32,
        };
        divides(&config, "num_attention_heads", spec.num_attention_heads, spec.hidden_size)?;
        Ok(spec)
    }
}

/// Converts token ids to features.
pub struct ClipTextEncoder {
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
}

impl ClipTextEncoder {
    /// The names of the sections, between which the network can be cut, in order.
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
        Ok(Self {
            token_embedding: Embedding::load(&embeddings.at("token_embedding"), spec.vocab_size, width)?,
            position_embedding: Embedding::load(&embeddings.at("position_embedding"), positions, width)?,
            layers: (0..layers)
                .map(|i| EncoderLayer::load(&at(&format!("encoder.layers.{i}")), spec))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(&at("final_layer_norm"), width, spec.layer_norm_eps)?,
        })
    }

    /// Encodes texts of equal length to features `[texts, tokens, hidden_size]`, f32, after the final norm.
    pub fn forward(&self, ids: &[Vec<u32>], pass: &ForwardPass) -> Result<Tensor> {
        let (tokens, positions) = (&self.token_embedding.weight, &self.position_embedding.weight);
        let mut h = Tensor::embedding(pass.next()?, ids, tokens, positions)?;
        for layer in &self.layers {
            h = layer.forward(&pass.take(h)?)?;
        }
        self.final_layer_norm.forward(&pass.take(h)?)?.cast(DType::F32)
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
