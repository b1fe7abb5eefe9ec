//! Every fact about a checkpoint: widths, heads, latent scale, prediction type. Read from the model's own JSON files,
//! checked once, and trusted everywhere else.

/// Activation of a text encoder's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextActivation {
    /// `x * sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// The exact (erf) GELU: OpenCLIP.
    Gelu,
}

/// A CLIP text encoder: `text_encoder/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSpec {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Tokens in one text, padding included: 77 for the published models.
    pub max_position_embeddings: usize,
    /// Width of the features.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Activation of the MLP.
    pub activation: TextActivation,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f32,
}

/// A `UNet2DConditionModel`: `unet/config.json`. Levels are counted from the full resolution downwards.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetSpec {
    /// Channels of the latents that go in.
    pub in_channels: usize,
    /// Channels that come out.
    pub out_channels: usize,
    /// Width of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each down level; an up level has one more.
    pub layers_per_block: usize,
    /// Whether each down level has cross attention.
    pub down_attention: Vec<bool>,
    /// Whether each up level has cross attention, in the order of `up_blocks`: lowest resolution first.
    pub up_attention: Vec<bool>,
    /// Attention heads of each level. The configs call this `attention_head_dim`.
    pub heads: Vec<usize>,
    /// Transformer layers in each level's attention blocks.
    pub transformer_layers: Vec<usize>,
    /// Width of the text features.
    pub cross_attention_dim: usize,
    /// `proj_in` and `proj_out` are linear layers (SD 2) rather than 1x1 convolutions (SD 1).
    pub use_linear_projection: bool,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms outside the transformers (those have 1e-6).
    pub norm_eps: f32,
    /// Default height and width of the latents.
    pub sample_size: usize,
    /// The sinusoidal time features are `[cos, sin]` rather than `[sin, cos]`.
    pub flip_sin_to_cos: bool,
    /// Shift in the frequencies of the time features.
    pub freq_shift: f32,
}

/// An `AutoencoderKL`: `vae/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeSpec {
    /// Channels of a picture that goes in.
    pub in_channels: usize,
    /// Channels of a picture that comes out.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each level, full resolution first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Latents are `encoded * scaling_factor`.
    pub scaling_factor: f32,
    /// Latents are `(encoded - shift_factor) * scaling_factor`; 0 where the config has none.
    pub shift_factor: f32,
    /// Whether the middle block has self attention.
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// The decoder overflows f16: run it in f32 or bf16.
    pub force_upcast: bool,
}

impl VaeSpec {
    /// Pixels per latent, along each side: 8 for four levels.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// Everything about one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The text encoder.
    pub text_encoder: ClipSpec,
    /// The denoiser.
    pub unet: UnetSpec,
    /// The autoencoder.
    pub vae: VaeSpec,
    /// `scheduler/scheduler_config.json`.
    pub scheduler: crate::scheduler::SchedulerConfig,
    /// What a request uses where the user says nothing.
    pub defaults: Defaults,
}

/// Defaults of a request: from the optional `sdshard.toml` beside `model_index.json`, else from the configs.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Denoising steps: 50 unless the model says otherwise.
    pub steps: usize,
    /// Guidance scale: 7.5 unless the model says otherwise.
    pub guidance_scale: f32,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// A scheduler's name, where the model wants another than its `scheduler_config.json`.
    pub scheduler: Option<crate::scheduler::SchedulerKind>,
}
