//! The text encoder of CLIP. Radford et al. 2021; matches transformers' `CLIPTextModel`.

use super::{
    route::{Route, Walk},
    spec::{ClipSpec, TextActivation},
};
use crate::{
    backend::{Activation, DType},
    error::Result,
    nn::{Embedding, LayerNorm, Linear},
    tensor::{Fuse, Tensor},
    weights::Scope,
};

/// Token ids to features.
pub struct ClipTextEncoder {
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
}

impl ClipTextEncoder {
    /// Where it can be cut: the names of its sections, in order.
    pub fn sections(spec: &ClipSpec) -> Vec<String> {
        let layers = (0..spec.num_hidden_layers).map(|i| format!("encoder.layers.{i}"));
        ["embeddings".to_string()].into_iter().chain(layers).chain(["final_layer_norm".to_string()]).collect()
    }

    /// Reads all of `text_encoder/`, each section for the device that runs it.
    pub fn load(w: &Scope, spec: &ClipSpec, route: &Route) -> Result<Self> {
        let (width, layers) = (spec.hidden_size, spec.num_hidden_layers);
        let section = |i: usize| w.section(i, route.at(i), route.dtype(i));
        let embeddings = section(0).at("embeddings");
        let positions = spec.max_position_embeddings;
        Ok(Self {
            token_embedding: Embedding::load(&embeddings.at("token_embedding"), spec.vocab_size, width)?,
            position_embedding: Embedding::load(&embeddings.at("position_embedding"), positions, width)?,
            layers: (0..layers)
                .map(|i| EncoderLayer::load(&section(1 + i).at("encoder.layers").at(i), spec))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(&section(1 + layers).at("final_layer_norm"), width, spec.layer_norm_eps)?,
        })
    }

    /// Texts of equal length to features `[texts, tokens, hidden_size]`, f32, after the final norm.
    pub fn forward(&self, ids: &[Vec<u32>], walk: &Walk) -> Result<Tensor> {
        let (tokens, positions) = (&self.token_embedding.weight, &self.position_embedding.weight);
        let mut h = Tensor::embedding(walk.next()?, ids, tokens, positions)?;
        for layer in &self.layers {
            h = layer.forward(&walk.take(h)?)?;
        }
        self.final_layer_norm.forward(&walk.take(h)?)?.cast(DType::F32)
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

    /// `x = x + attention(norm1(x)); x + mlp(norm2(x))`, each token seeing those before it.
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
