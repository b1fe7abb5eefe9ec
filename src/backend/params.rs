//! One struct per op, read as it is by every kernel language: plain `u32` and `f32` fields in the same order
//! everywhere. The sizes are those of one call; weights and buffers are passed separately.

/// `out[rows, out] = x[rows, k] * w[out, k]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// Rows of x: the tokens of all images.
    pub rows: u32,
    /// Output channels, before GEGLU halves them.
    pub out: u32,
    /// Input channels.
    pub k: u32,
}

/// `out[batch, out_height, out_width, out] = x[batch, height, width, channels] * w[out, kernel, kernel, channels]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv2d {
    /// Number of images.
    pub batch: u32,
    /// Rows of x.
    pub height: u32,
    /// Columns of x.
    pub width: u32,
    /// Channels of x.
    pub channels: u32,
    /// Output channels.
    pub out: u32,
    /// Height and width of the window.
    pub kernel: u32,
    /// Step of the window.
    pub stride: u32,
    /// Rows and columns of zeros above and to the left. Those below and to the right follow from the output's size.
    pub padding: u32,
    /// Rows of the output.
    pub out_height: u32,
    /// Columns of the output.
    pub out_width: u32,
}

/// `softmax(scale * q k^T) v` for each image and head; heads lie side by side in the channels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Number of images.
    pub batch: u32,
    /// Rows of q in one image.
    pub queries: u32,
    /// Rows of k and v in one image.
    pub keys: u32,
    /// Number of heads.
    pub heads: u32,
    /// Channels of one head.
    pub head_dim: u32,
    /// 1 if query i sees only keys 0 to i.
    pub causal: u32,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// Group normalisation over `[batch, pixels, channels]`. Wu and He 2018.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// Number of images.
    pub batch: u32,
    /// Height times width.
    pub pixels: u32,
    /// Number of channels.
    pub channels: u32,
    /// Number of groups of neighbouring channels.
    pub groups: u32,
    /// Added to the variance.
    pub eps: f32,
    /// 1 if SiLU follows.
    pub silu: u32,
}

/// Layer normalisation of each row of `[rows, channels]`. Ba et al. 2016.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// Number of rows.
    pub rows: u32,
    /// Number of channels.
    pub channels: u32,
    /// Added to the variance.
    pub eps: f32,
}

/// `out[batch, tokens, channels] = table[id] + positions[token]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Embedding {
    /// Number of texts.
    pub batch: u32,
    /// Tokens in one text.
    pub tokens: u32,
    /// Number of channels.
    pub channels: u32,
    /// Rows of the table.
    pub vocab: u32,
}

/// Nearest-neighbour upsampling, from `[batch, height, width, channels]` to `[batch, out_height, out_width, channels]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upsample {
    /// Number of images.
    pub batch: u32,
    /// Rows of x.
    pub height: u32,
    /// Columns of x.
    pub width: u32,
    /// Number of channels.
    pub channels: u32,
    /// Rows of the output.
    pub out_height: u32,
    /// Columns of the output.
    pub out_width: u32,
}

/// `out[rows, left + right] = [a[rows, left], b[rows, right]]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Concat {
    /// Number of rows.
    pub rows: u32,
    /// Channels of the first tensor.
    pub left: u32,
    /// Channels of the second tensor.
    pub right: u32,
}

/// `out[batch, pixels, channels] = x + per_channel[batch or 1, channels]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddChannels {
    /// Number of images.
    pub batch: u32,
    /// Rows in one image.
    pub pixels: u32,
    /// Number of channels.
    pub channels: u32,
    /// Rows of `per_channel`: one for each image, or one for all.
    pub per_channel_rows: u32,
}

/// An activation over `[rows, channels]`; GEGLU reads `[rows, 2 channels]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activate {
    /// Number of rows.
    pub rows: u32,
    /// Channels of the output.
    pub channels: u32,
}

/// `out[elements] = sum of scale * term[offset ..]`, one fused chain in the order of the terms.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleAdd {
    /// Elements of the output and of each term.
    pub elements: u32,
}
