//! Layers: what a checkpoint stores under one name, with its op.

use crate::{
    backend::{Activation, DType, Layer, Weight},
    error::Result,
    tensor::{Fuse, Tensor, ops::Padding},
    weights::Scope,
};

/// `y = x w^T + b`.
pub struct Linear {
    weight: Weight,
}

impl Linear {
    /// From `weight [out, k]` and `bias [out]`.
    pub fn load(w: &Scope, k: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Linear { out, k }, &[out, k], true)? })
    }

    /// From `weight [out, k]` alone.
    pub fn load_without_bias(w: &Scope, k: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Linear { out, k }, &[out, k], false)? })
    }

    /// From a 1x1 convolution, `weight [out, k, 1, 1]`: channels lie last, so it is the same product.
    pub fn load_conv1x1(w: &Scope, k: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Linear { out, k }, &[out, k, 1, 1], true)? })
    }

    /// From `weight [out, k]`, whose two halves GEGLU multiplies.
    pub fn load_geglu(w: &Scope, k: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Geglu { out, k }, &[out, k], true)? })
    }

    /// `[.., k]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.linear(&self.weight, &Fuse::default())
    }

    /// The same with what follows it.
    pub fn forward_with(&self, x: &Tensor, fuse: &Fuse) -> Result<Tensor> {
        x.linear(&self.weight, fuse)
    }
}

/// A convolution.
pub struct Conv2d {
    weight: Weight,
    stride: usize,
    padding: Padding,
}

impl Conv2d {
    /// A window that keeps the size: `weight [out, channels, kernel, kernel]`.
    pub fn load(w: &Scope, channels: usize, out: usize, kernel: usize) -> Result<Self> {
        Self::load_with(w, channels, out, kernel, 1, Padding::Same)
    }

    /// Any window.
    pub fn load_with(
        w: &Scope,
        channels: usize,
        out: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Result<Self> {
        let layer = Layer::Conv2d { out, channels, kernel };
        Ok(Self { weight: w.layer(layer, &[out, channels, kernel, kernel], true)?, stride, padding })
    }

    /// The type of its input and output.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// `[batch, height, width, channels]` to `[batch, height / stride, width / stride, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, &Fuse::default())
    }

    /// The same with what follows it.
    pub fn forward_with(&self, x: &Tensor, fuse: &Fuse) -> Result<Tensor> {
        x.conv2d(&self.weight, self.stride, self.padding, fuse)
    }
}

/// Group normalisation.
pub struct GroupNorm {
    weight: Weight,
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    /// From `weight [channels]` and `bias [channels]`.
    pub fn load(w: &Scope, channels: usize, groups: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Norm { channels }, &[channels], true)?, groups, eps })
    }

    /// Any `[batch, .., channels]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.group_norm(&self.weight, self.groups, self.eps, Activation::None)
    }

    /// `silu(norm(x))`.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        x.group_norm(&self.weight, self.groups, self.eps, Activation::Silu)
    }
}

/// Layer normalisation.
pub struct LayerNorm {
    weight: Weight,
    eps: f32,
}

impl LayerNorm {
    /// From `weight [channels]` and `bias [channels]`.
    pub fn load(w: &Scope, channels: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Norm { channels }, &[channels], true)?, eps })
    }

    /// Any `[.., channels]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.layer_norm(&self.weight, self.eps)
    }
}

/// A table of rows.
pub struct Embedding {
    /// `[rows, channels]`.
    pub weight: Weight,
}

impl Embedding {
    /// From `weight [rows, channels]`.
    pub fn load(w: &Scope, rows: usize, channels: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Embedding { rows, channels }, &[rows, channels], false)? })
    }
}
