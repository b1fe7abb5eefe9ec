//! Layers: the tensors that a checkpoint stores under one name, with the op that uses them.

use crate::{
    backend::{Activation, DType, Extent, Layer, Precision, Weight},
    error::Result,
    tensor::{Fuse, Tensor, ops::Padding},
    weights::Scope,
};

/// `y = x w^T + b`.
pub struct Linear {
    weight: Weight,
}

impl Linear {
    /// Loads `weight [out, k]` and `bias [out]`.
    pub fn load(w: &Scope, k: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Linear { out, k }, &[out, k], true)? })
    }

    /// Loads `weight [out, k]` without a bias.
    pub fn load_without_bias(w: &Scope, k: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Linear { out, k }, &[out, k], false)? })
    }

    /// Loads a 1x1 convolution, `weight [out, k, 1, 1]`: channels are last, so it is the same product.
    pub fn load_conv1x1(w: &Scope, k: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Linear { out, k }, &[out, k, 1, 1], true)? })
    }

    /// Loads `weight [out, k]`, whose two halves GEGLU multiplies.
    pub fn load_geglu(w: &Scope, k: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Geglu { out, k }, &[out, k], true)? })
    }

    /// How the weight is stored.
    pub fn precision(&self) -> Precision {
        self.weight.precision()
    }

    /// Maps `[.., k]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.linear(&self.weight, &Fuse::default())
    }

    /// As [`Linear::forward`], with fused operations.
    pub fn forward_with(&self, x: &Tensor, fuse: &Fuse) -> Result<Tensor> {
        x.linear(&self.weight, fuse)
    }
}

/// A 2-D convolution.
pub struct Conv2d {
    weight: Weight,
    padding: Padding,
}

impl Conv2d {
    /// Loads a 3x3 convolution that keeps the size: `weight [out, channels, 3, 3]`. `extent` is that of
    /// [`Layer::Conv2d`].
    pub fn load(w: &Scope, channels: usize, out: usize, extent: Extent) -> Result<Self> {
        let layer = Layer::Conv2d { out, channels, kernel: 3, stride: 1, extent };
        Self::load_layer(w, layer, Padding::Same, true)
    }

    /// As [`Conv2d::load`], without a bias.
    pub fn load_without_bias(w: &Scope, channels: usize, out: usize, extent: Extent) -> Result<Self> {
        let layer = Layer::Conv2d { out, channels, kernel: 3, stride: 1, extent };
        Self::load_layer(w, layer, Padding::Same, false)
    }

    /// Loads a 3x3 convolution of stride 2, which halves the size.
    pub fn load_strided(w: &Scope, channels: usize, out: usize, padding: Padding) -> Result<Self> {
        let layer = Layer::Conv2d { out, channels, kernel: 3, stride: 2, extent: Extent::Small };
        Self::load_layer(w, layer, padding, true)
    }

    /// As [`Conv2d::load_strided`], without a bias.
    pub fn load_strided_without_bias(w: &Scope, channels: usize, out: usize, padding: Padding) -> Result<Self> {
        let layer = Layer::Conv2d { out, channels, kernel: 3, stride: 2, extent: Extent::Small };
        Self::load_layer(w, layer, padding, false)
    }

    fn load_layer(w: &Scope, layer: Layer, padding: Padding, bias: bool) -> Result<Self> {
        let Layer::Conv2d { out, channels, kernel, .. } = layer else { unreachable!("a convolution") };
        Ok(Self { weight: w.layer(layer, &[out, channels, kernel, kernel], bias)?, padding })
    }

    /// The type of the input and output.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// Maps `[batch, height, width, channels]` to `[batch, height / stride, width / stride, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, &Fuse::default())
    }

    /// As [`Conv2d::forward`], with fused operations.
    pub fn forward_with(&self, x: &Tensor, fuse: &Fuse) -> Result<Tensor> {
        x.conv2d(&self.weight, self.padding, fuse)
    }
}

/// Group normalisation.
pub struct GroupNorm {
    weight: Weight,
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    /// Loads `weight [channels]` and `bias [channels]`.
    pub fn load(w: &Scope, channels: usize, groups: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Norm { channels }, &[channels], true)?, groups, eps })
    }

    /// Normalises any `[batch, .., channels]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.group_norm(&self.weight, self.groups, self.eps, Activation::None)
    }

    /// Computes `silu(norm(x))`.
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
    /// Loads `weight [channels]` and `bias [channels]`.
    pub fn load(w: &Scope, channels: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Norm { channels }, &[channels], true)?, eps })
    }

    /// Normalises any `[.., channels]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.layer_norm(&self.weight, self.eps)
    }
}

/// A table of embedding vectors.
pub struct Embedding {
    /// The table, `[rows, channels]`.
    pub weight: Weight,
}

impl Embedding {
    /// Loads `weight [rows, channels]`.
    pub fn load(w: &Scope, rows: usize, channels: usize) -> Result<Self> {
        Self::load_extended(w, rows, rows, channels)
    }

    /// Loads `weight [stored, channels]`, of which [`Weights`](crate::weights::Weights) makes a table of `rows`.
    pub fn load_extended(w: &Scope, stored: usize, rows: usize, channels: usize) -> Result<Self> {
        Ok(Self { weight: w.layer(Layer::Embedding { rows, channels }, &[stored, channels], false)? })
    }
}
