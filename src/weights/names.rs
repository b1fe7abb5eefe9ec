//! The only translation of other naming schemes. Models use the names of current diffusers and transformers, without
//! the `text_model.` prefix.

use std::borrow::Cow;

/// Older names of the projections in a VAE's attention, and the current ones.
const OLD_ATTENTION: [(&str, &str); 4] =
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

/// Tensors in files that no model here reads: position indices, and heads for training.
const IGNORABLE: [&str; 3] = ["embeddings.position_ids", "logit_scale", "text_projection.weight"];

/// The current name of a stored tensor.
pub(super) fn modern(stored: &str) -> Cow<'_, str> {
    let name = stored.strip_prefix("text_model.").unwrap_or(stored);
    // ...attentions.0.query.weight
    let mut parts = name.rsplitn(3, '.');
    if let (Some(leaf), Some(old), Some(block)) = (parts.next(), parts.next(), parts.next())
        && block.contains("attentions.")
        && let Some((_, new)) = OLD_ATTENTION.iter().find(|(name, _)| *name == old)
    {
        return format!("{block}.{new}.{leaf}").into();
    }
    name.into()
}

/// Whether a tensor may stay unread without a warning.
pub(super) fn is_ignorable(name: &str) -> bool {
    IGNORABLE.contains(&name)
}

/// Whether a tensor stored as `found` can be read as `wanted`: equal shapes, or an attention projection that an older
/// file stores as a 1x1 convolution, which has the same values in the same order.
pub(super) fn shape_fits(name: &str, found: &[usize], wanted: &[usize]) -> bool {
    let is_projection = || {
        name.contains("attentions.") && OLD_ATTENTION.iter().any(|(_, new)| name.ends_with(&format!(".{new}.weight")))
    };
    found == wanted || (is_projection() && found.strip_suffix(&[1, 1]) == Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_become_todays() {
        for (old, new) in [
            ("text_model.encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.0.self_attn.q_proj.weight"),
            ("text_model.embeddings.position_ids", "embeddings.position_ids"),
            ("final_layer_norm.bias", "final_layer_norm.bias"),
            ("decoder.mid_block.attentions.0.query.weight", "decoder.mid_block.attentions.0.to_q.weight"),
            ("encoder.mid_block.attentions.0.key.bias", "encoder.mid_block.attentions.0.to_k.bias"),
            ("decoder.mid_block.attentions.0.value.bias", "decoder.mid_block.attentions.0.to_v.bias"),
            ("decoder.mid_block.attentions.0.proj_attn.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
            ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
            ("decoder.mid_block.attentions.0.group_norm.weight", "decoder.mid_block.attentions.0.group_norm.weight"),
            ("query.weight", "query.weight"),
            ("", ""),
        ] {
            assert_eq!(modern(old), new);
        }
    }

    #[test]
    fn only_attention_projections_may_be_convolutions_of_one_pixel() {
        assert!(shape_fits("mid_block.attentions.0.to_q.weight", &[4, 4, 1, 1], &[4, 4]));
        assert!(shape_fits("mid_block.attentions.0.to_out.0.weight", &[4, 4, 1, 1], &[4, 4]));
        assert!(!shape_fits("mid_block.attentions.0.to_q.weight", &[4, 4, 3, 3], &[4, 4]));
        assert!(!shape_fits("mid_block.attentions.0.to_q.bias", &[4, 1, 1], &[4]));
        assert!(!shape_fits("down_blocks.0.proj_in.weight", &[4, 4, 1, 1], &[4, 4]));
    }
}
