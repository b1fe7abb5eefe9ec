//! The keys that the classes of the reference read from a model's configs.

use crate::json::Keys;

/// Other libraries use this key for weights in their own types: a network that has the key is rejected.
const QUANTIZATION: (&str, &str) = ("quantization_config", "[null]");

pub(super) const TEXT_ENCODER: Keys = Keys {
    class: "CLIPTextConfig",
    followed: &[
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "hidden_act",
        "layer_norm_eps",
        "projection_dim",
        "eos_token_id",
    ],
    nullable: &["projection_dim", "eos_token_id"],
    only: &[
        // The config of a whole CLIP model contains the config of its text encoder.
        ("model_type", r#"["clip_text_model", null]"#),
        ("is_encoder_decoder", "[false, null]"),
        QUANTIZATION,
        // This is not a key of the class: the pipeline reads it, and masks the padding if it is true.
        ("use_attention_mask", "[false, null]"),
        ("pruned_heads", "[null, {}]"),
    ],
    without_effect: &[
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "transformers_version",
        // Keys of older versions of transformers.
        "dropout",
        "gradient_checkpointing",
        "tie_word_embeddings",
        "torch_dtype",
        "torchscript",
        "use_bfloat16",
        "use_cache",
    ],
};

/// The keys of [`TEXT_ENCODER`] that are not in the class's signature.
#[cfg(test)]
const TEXT_ENCODER_BEYOND: [&str; 10] = [
    "quantization_config",
    "use_attention_mask",
    "pruned_heads",
    "dropout",
    "gradient_checkpointing",
    "tie_word_embeddings",
    "torch_dtype",
    "torchscript",
    "use_bfloat16",
    "use_cache",
];

pub(super) const UNET: Keys = Keys {
    class: "UNet2DConditionModel",
    followed: &[
        "sample_size",
        "in_channels",
        "out_channels",
        "flip_sin_to_cos",
        "freq_shift",
        "down_block_types",
        "mid_block_type",
        "up_block_types",
        "block_out_channels",
        "layers_per_block",
        "norm_num_groups",
        "norm_eps",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "attention_head_dim",
        "use_linear_projection",
        "time_cond_proj_dim",
        "reverse_transformer_layers_per_block",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    ],
    nullable: &[
        "sample_size",
        "mid_block_type",
        "time_cond_proj_dim",
        "reverse_transformer_layers_per_block",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    ],
    only: &[
        ("_class_name", r#"["UNet2DConditionModel"]"#),
        ("act_fn", r#"["silu", "swish"]"#),
        ("attention_type", r#"["default"]"#),
        ("center_input_sample", "[false, null]"),
        ("class_embed_type", "[null]"),
        ("conv_in_kernel", "[3]"),
        ("conv_out_kernel", "[3]"),
        ("cross_attention_norm", "[null]"),
        ("downsample_padding", "[1]"),
        ("dual_cross_attention", "[false, null]"),
        ("encoder_hid_dim", "[null]"),
        ("encoder_hid_dim_type", "[null]"),
        ("mid_block_only_cross_attention", "[false, null]"),
        ("mid_block_scale_factor", "[1]"),
        // The reference accepts no value here: the number of heads is `attention_head_dim`.
        ("num_attention_heads", "[null]"),
        ("num_class_embeds", "[null]"),
        ("only_cross_attention", "[false]"),
        QUANTIZATION,
        ("resnet_out_scale_factor", "[1]"),
        ("resnet_skip_time_act", "[false, null]"),
        ("resnet_time_scale_shift", r#"["default"]"#),
        ("time_embedding_act_fn", "[null]"),
        ("time_embedding_dim", "[null]"),
        ("time_embedding_type", r#"["positional"]"#),
        ("timestep_post_act", "[null]"),
    ],
    without_effect: &[
        "dropout",
        // Scores and their softmax are always f32 here.
        "upcast_attention",
        // These keys describe embeddings that the keys above exclude.
        "addition_embed_type_num_heads",
        "class_embeddings_concat",
    ],
};

pub(super) const CONTROLNET: Keys = Keys {
    class: "ControlNetModel",
    followed: &[
        "in_channels",
        "flip_sin_to_cos",
        "freq_shift",
        "down_block_types",
        "mid_block_type",
        "block_out_channels",
        "layers_per_block",
        "norm_num_groups",
        "norm_eps",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "attention_head_dim",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "controlnet_conditioning_channel_order",
        "conditioning_embedding_out_channels",
    ],
    nullable: &[
        "mid_block_type",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    ],
    only: &[
        ("_class_name", r#"["ControlNetModel"]"#),
        ("act_fn", r#"["silu", "swish"]"#),
        ("class_embed_type", "[null]"),
        ("conditioning_channels", "[3]"),
        ("downsample_padding", "[1]"),
        ("encoder_hid_dim", "[null]"),
        ("encoder_hid_dim_type", "[null]"),
        // Residuals that are averaged over the picture ("shuffle") need a mode of guidance that is not implemented.
        ("global_pool_conditions", "[false, null]"),
        ("mid_block_scale_factor", "[1]"),
        ("num_attention_heads", "[null]"),
        ("num_class_embeds", "[null]"),
        ("only_cross_attention", "[false]"),
        QUANTIZATION,
        ("resnet_time_scale_shift", r#"["default"]"#),
    ],
    without_effect: &["upcast_attention", "addition_embed_type_num_heads"],
};

pub(super) const VAE: Keys = Keys {
    class: "AutoencoderKL",
    followed: &[
        "in_channels",
        "out_channels",
        "down_block_types",
        "up_block_types",
        "block_out_channels",
        "layers_per_block",
        "latent_channels",
        "norm_num_groups",
        "sample_size",
        "scaling_factor",
        "force_upcast",
        "use_quant_conv",
        "use_post_quant_conv",
        "mid_block_add_attention",
    ],
    nullable: &["sample_size"],
    only: &[("_class_name", r#"["AutoencoderKL"]"#), ("act_fn", r#"["silu", "swish"]"#), QUANTIZATION],
    // The pipelines of Stable Diffusion 1 and 2 scale the latents and do not shift or normalise them; for SDXL
    // `VaeSpec::for_sdxl` rejects the last two.
    without_effect: &["shift_factor", "latents_mean", "latents_std"],
};

pub(super) const TINY_VAE: Keys = Keys {
    class: "AutoencoderTiny",
    followed: &[
        "in_channels",
        "out_channels",
        "encoder_block_out_channels",
        "decoder_block_out_channels",
        "latent_channels",
        "num_encoder_blocks",
        "num_decoder_blocks",
        "scaling_factor",
    ],
    nullable: &[],
    only: &[
        ("_class_name", r#"["AutoencoderTiny"]"#),
        ("act_fn", r#"["relu"]"#),
        ("upsample_fn", r#"["nearest"]"#),
        ("upsampling_scaling_factor", "[2]"),
        QUANTIZATION,
    ],
    without_effect: &[
        // The pipelines of Stable Diffusion scale the latents and do not shift them.
        "shift_factor",
        // For storing latents as pictures of 8 bits.
        "latent_magnitude",
        "latent_shift",
        // The class sets it to false.
        "force_upcast",
        // The class writes it, for pipelines that ask for the number of levels.
        "block_out_channels",
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_reference_models_is_in_a_table() {
        let reference: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/config_keys.json")).unwrap();
        for (keys, beyond) in [
            (&TEXT_ENCODER, &TEXT_ENCODER_BEYOND[..]),
            (&UNET, &["_class_name", "quantization_config"]),
            (&CONTROLNET, &["_class_name", "quantization_config"]),
            (&VAE, &["_class_name", "quantization_config"]),
            (&TINY_VAE, &["_class_name", "quantization_config", "block_out_channels"]),
        ] {
            keys.assert_is_the_references(&reference["classes"][keys.class], beyond);
        }
    }
}
