//! The only translation of other naming schemes. Models use the names of current diffusers and transformers, without
//! the `text_model.` prefix.

mod ldm;
mod other;

use std::{borrow::Cow, collections::HashSet};

pub(super) use ldm::Part;
pub use ldm::UnetBlocks;
pub use other::CONTROLNET;
pub(super) use other::{is_scale, missing};

/// Older names of the projections in a VAE's attention, and the current ones.
const OLD_ATTENTION: [(&str, &str); 4] =
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

/// Tensors in files that no model here reads: position indices, and heads for training.
const IGNORABLE: [&str; 3] = ["embeddings.position_ids", "logit_scale", "text_projection.weight"];

/// Tensors of a single file that are no weights: tables of the noise schedule, and marks that say how the model was
/// trained.
const BUFFERS: [&str; 19] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "denoiser.sigmas",
    "v_pred",
    "ztsnr",
    "edm_mean",
    "edm_std",
    "edm_vpred.sigma_max",
    "edm_vpred.sigma_min",
];
/// What begins LDM's names of a UNet.
const LDM_UNET: &str = "model.diffusion_model.";
/// What begins the names of the averages of its weights.
const AVERAGES: &str = "model_ema.";
/// Prefixes of tensors that a single file has from its training: averages of the weights, losses, unused modules.
const TRAINING: [&str; 5] =
    [AVERAGES, "embedding_manager.", "first_stage_model.loss.", "first_stage_model.model_ema.", "loss."];
/// Ends of names of buffers in text encoders.
const TEXT_BUFFERS: [&str; 3] = ["logit_scale", "position_ids", "attn_mask"];

/// How the stored names of one component's tensors follow from their current names.
#[derive(Debug, PartialEq)]
pub(super) struct Naming {
    /// The beginning of all names of the component.
    prefix: String,
    scheme: Scheme,
}

#[derive(Debug, PartialEq)]
enum Scheme {
    /// The names of diffusers and transformers, also their older ones.
    Diffusers,
    /// LDM's names of a UNet.
    Unet(UnetBlocks),
    /// LDM's names of the averages (EMA) of a UNet's weights: those of the weights in one word.
    AveragedUnet(UnetBlocks),
    /// LDM's names of a ControlNet.
    ControlNet(UnetBlocks),
    /// LDM's names of an autoencoder with this number of levels.
    Vae(usize),
    /// OpenCLIP's names of a text encoder with this number of layers.
    OpenClip(usize),
    /// TAESD's own names of the decoder of an `AutoencoderTiny`.
    TinyDecoder,
}

impl Naming {
    /// The naming of a component's own folder.
    pub(super) const fn folder() -> Self {
        Self { prefix: String::new(), scheme: Scheme::Diffusers }
    }

    /// The naming of a component in a single file with these tensors; `None` if the file does not have the component.
    /// In a file of its own the component's names may have no prefix.
    pub(super) fn in_file(component: &str, names: &HashSet<&str>, is_own_file: bool) -> Option<Self> {
        let has = |prefix: &str, name: &str| names.contains(&*format!("{prefix}{name}"));
        let is_any = |prefix: &str, list: &[&str]| list.iter().any(|name| has(prefix, name));
        let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|&i| names.contains(&*name(i))).count();
        // A model may have several ControlNets: `controlnet`, `controlnet_1`, ….
        let component = if component.starts_with(CONTROLNET) { CONTROLNET } else { component };
        let clip = ["embeddings.token_embedding.weight", "text_model.embeddings.token_embedding.weight"].as_slice();
        // Prefixes of files in LDM's layout, names of which one must be there, and the scheme; then diffusers'.
        let (ldm, current): (&[&str], &[&str]) = match component {
            "unet" => (&[LDM_UNET], &["unet."]),
            CONTROLNET => (&["control_model."], &["controlnet."]),
            "vae" => (&["first_stage_model.", "vae."], &["vae.", "first_stage_model."]),
            "text_encoder" => (
                &["cond_stage_model.model.", "conditioner.embedders.0.model."],
                &["cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "text_encoder."],
            ),
            "text_encoder_2" => (
                &["conditioner.embedders.1.model.", "conditioner.embedders.0.model."],
                &["conditioner.embedders.1.transformer.", "text_encoder_2."],
            ),
            _ => return None,
        };
        let bare: &[&str] = if is_own_file { &[""] } else { &[] };
        for &prefix in ldm.iter().chain(bare) {
            let scheme = match component {
                "unet" if has(prefix, "input_blocks.0.0.weight") => {
                    Scheme::Unet(UnetBlocks::of_file(|name| has(prefix, name)))
                }
                CONTROLNET if has(prefix, "input_hint_block.0.weight") => {
                    Scheme::ControlNet(UnetBlocks::of_file(|name| has(prefix, name)))
                }
                "vae" if is_any(prefix, &["decoder.mid.block_1.conv1.weight", "decoder.up.0.block.0.conv1.weight"]) => {
                    Scheme::Vae(count(&|i| format!("{prefix}decoder.up.{i}.block.0.conv1.weight")))
                }
                "vae" if has(prefix, "1.weight") && has(prefix, "3.conv.0.weight") => Scheme::TinyDecoder,
                "text_encoder" | "text_encoder_2" if has(prefix, "token_embedding.weight") => {
                    Scheme::OpenClip(count(&|i| format!("{prefix}transformer.resblocks.{i}.ln_1.weight")))
                }
                _ => continue,
            };
            return Some(Self { prefix: prefix.to_owned(), scheme });
        }
        let known = match component {
            "unet" => &["conv_in.weight"][..],
            CONTROLNET => &["controlnet_cond_embedding.conv_in.weight"],
            "vae" => &["decoder.conv_in.weight", "decoder.layers.0.weight"],
            _ => clip,
        };
        let prefix = current.iter().chain(bare).find(|prefix| is_any(prefix, known))?;
        Some(Self { prefix: (*prefix).to_owned(), scheme: Scheme::Diffusers })
    }

    /// The naming of the averages of these weights, which only a UNet with LDM's names has.
    pub(super) fn averaged(self) -> Option<Self> {
        match self.scheme {
            Scheme::Unet(blocks) => Some(Self { prefix: AVERAGES.to_owned(), scheme: Scheme::AveragedUnet(blocks) }),
            _ => None,
        }
    }

    /// The name of a stored tensor among those of the component; `None` if it is not one of them.
    pub(super) fn key<'a>(&self, stored: &'a str) -> Option<Cow<'a, str>> {
        let name = stored.strip_prefix(&self.prefix)?;
        Some(if self.scheme == Scheme::Diffusers { modern(name) } else { name.into() })
    }

    /// The key of the tensor with this current name, and the part of it to read.
    pub(super) fn key_of<'a>(&self, name: &'a str) -> (Cow<'a, str>, Part) {
        let whole = |name: Option<String>| name.map(|name| (name, Part::Whole));
        let found = match &self.scheme {
            Scheme::Diffusers => None,
            Scheme::Unet(blocks) => whole(blocks.ldm_name(name)),
            // `diffusion_model.out.0.weight` in one word
            Scheme::AveragedUnet(blocks) => {
                whole(blocks.ldm_name(name).map(|name| format!("diffusion_model{}", name.replace('.', ""))))
            }
            Scheme::ControlNet(blocks) => whole(ldm::controlnet_name(blocks, name)),
            Scheme::Vae(levels) => whole(ldm::vae_name(*levels, name)),
            Scheme::OpenClip(_) => ldm::open_clip_name(name),
            Scheme::TinyDecoder => whole(other::taesd_name(name)),
        };
        found.map_or((name.into(), Part::Whole), |(name, part)| (name.into(), part))
    }

    /// The stored name of the tensor with this current name.
    pub(super) fn stored_name(&self, name: &str) -> String {
        format!("{}{}", self.prefix, self.key_of(name).0)
    }

    /// Whether the component's tensor with this key may stay unread without a warning.
    pub(super) fn is_ignorable(&self, key: &str) -> bool {
        let is_buffer = || IGNORABLE.contains(&key) || TEXT_BUFFERS.iter().any(|end| key.ends_with(end));
        match self.scheme {
            Scheme::Diffusers => IGNORABLE.contains(&key),
            // Stable Diffusion 2 takes the features before the last layer, and never the projection.
            Scheme::OpenClip(layers) => {
                let last = format!("transformer.resblocks.{}.", layers.saturating_sub(1));
                is_buffer() || key == "text_projection" || key.starts_with(&last)
            }
            Scheme::AveragedUnet(_) => true,
            Scheme::Unet(_) | Scheme::ControlNet(_) | Scheme::Vae(_) | Scheme::TinyDecoder => is_ignorable_in_file(key),
        }
    }

    /// Whether this naming reads other tensors in the place of this one.
    pub(super) fn replaces(&self, stored: &str) -> bool {
        matches!(self.scheme, Scheme::AveragedUnet(_)) && stored.starts_with(LDM_UNET)
    }
}

/// Whether a tensor of a single file may stay unread without a warning, whatever component it belongs to.
pub(super) fn is_ignorable_in_file(stored: &str) -> bool {
    BUFFERS.contains(&stored)
        || TRAINING.iter().any(|prefix| stored.starts_with(prefix))
        || TEXT_BUFFERS
            .iter()
            .any(|end| stored.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

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

/// Whether a tensor stored as `found` can be read as `wanted`: equal shapes, or a projection of an attention block that
/// is stored as a 1x1 convolution rather than a linear layer, or the other way round, which has the same values in the
/// same order.
pub(super) fn shape_fits(name: &str, found: &[usize], wanted: &[usize]) -> bool {
    let is_projection = || {
        let layers = OLD_ATTENTION.iter().map(|(_, new)| *new).chain(["proj_in", "proj_out"]);
        name.contains("attentions.") && layers.into_iter().any(|layer| name.ends_with(&format!(".{layer}.weight")))
    };
    let is_without = |long: &[usize], short: &[usize]| long.strip_suffix(&[1, 1]) == Some(short);
    found == wanted || ((is_without(found, wanted) || is_without(wanted, found)) && is_projection())
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
    fn only_projections_of_attention_may_be_convolutions_of_one_pixel() {
        for name in ["down_blocks.0.attentions.1.proj_in.weight", "mid_block.attentions.0.proj_out.weight"] {
            assert!(shape_fits(name, &[4, 4, 1, 1], &[4, 4]) && shape_fits(name, &[4, 4], &[4, 4, 1, 1]), "{name}");
            assert!(!shape_fits(name, &[4, 4, 1], &[4, 4]) && !shape_fits(name, &[4, 4, 3, 3], &[4, 4]), "{name}");
        }
        assert!(!shape_fits("down_blocks.0.resnets.0.conv_shortcut.weight", &[4, 4], &[4, 4, 1, 1]));
        assert!(shape_fits("mid_block.attentions.0.to_q.weight", &[4, 4, 1, 1], &[4, 4]));
        assert!(shape_fits("mid_block.attentions.0.to_out.0.weight", &[4, 4, 1, 1], &[4, 4]));
        assert!(!shape_fits("mid_block.attentions.0.to_q.weight", &[4, 4, 3, 3], &[4, 4]));
        assert!(!shape_fits("mid_block.attentions.0.to_q.bias", &[4, 1, 1], &[4]));
        assert!(!shape_fits("down_blocks.0.proj_in.weight", &[4, 4, 1, 1], &[4, 4]));
    }

    #[test]
    fn a_component_is_found_in_a_file_by_its_prefix() {
        let naming = |component, names: &[&str], own| Naming::in_file(component, &names.iter().copied().collect(), own);
        let prefix = |component, names: &[&str]| naming(component, names, false).map(|naming| naming.prefix);
        const TOKENS: &str = "token_embedding.weight";
        for (component, name, want) in [
            ("unet", "model.diffusion_model.input_blocks.0.0.weight".to_owned(), Some("model.diffusion_model.")),
            ("unet", "unet.conv_in.weight".to_owned(), Some("unet.")),
            ("unet", "input_blocks.0.0.weight".to_owned(), None),
            ("vae", "first_stage_model.decoder.mid.block_1.conv1.weight".to_owned(), Some("first_stage_model.")),
            ("vae", "vae.decoder.mid.block_1.conv1.weight".to_owned(), Some("vae.")),
            ("vae", "vae.decoder.conv_in.weight".to_owned(), Some("vae.")),
            (
                "text_encoder",
                format!("cond_stage_model.transformer.text_model.embeddings.{TOKENS}"),
                Some("cond_stage_model.transformer."),
            ),
            // Old files.
            (
                "text_encoder",
                format!("cond_stage_model.transformer.embeddings.{TOKENS}"),
                Some("cond_stage_model.transformer."),
            ),
            (
                "text_encoder",
                format!("conditioner.embedders.0.transformer.text_model.embeddings.{TOKENS}"),
                Some("conditioner.embedders.0.transformer."),
            ),
            ("text_encoder", format!("cond_stage_model.model.{TOKENS}"), Some("cond_stage_model.model.")),
            ("text_encoder", format!("conditioner.embedders.0.model.{TOKENS}"), Some("conditioner.embedders.0.model.")),
            ("text_encoder", format!("text_encoder.text_model.embeddings.{TOKENS}"), Some("text_encoder.")),
            (
                "text_encoder_2",
                format!("conditioner.embedders.1.model.{TOKENS}"),
                Some("conditioner.embedders.1.model."),
            ),
            // The refiner.
            (
                "text_encoder_2",
                format!("conditioner.embedders.0.model.{TOKENS}"),
                Some("conditioner.embedders.0.model."),
            ),
            ("text_encoder_2", "x".to_owned(), None),
            ("controlnet", "control_model.input_hint_block.0.weight".to_owned(), Some("control_model.")),
            ("controlnet_1", "controlnet.controlnet_cond_embedding.conv_in.weight".to_owned(), Some("controlnet.")),
            ("controlnet", "model.diffusion_model.input_blocks.0.0.weight".to_owned(), None),
        ] {
            assert_eq!(prefix(component, &[&name]).as_deref(), want, "{component}: {name}");
        }
        let own = |name| naming("vae", &[name], true).unwrap();
        assert_eq!(own("decoder.mid.block_1.conv1.weight").scheme, Scheme::Vae(0));
        assert_eq!(own("decoder.conv_in.weight").scheme, Scheme::Diffusers);
        assert_eq!(own("decoder.layers.0.weight").scheme, Scheme::Diffusers);
        // TAESD's own files: the decoder, in which the clamp of the latents is layer 0, and the encoder.
        let taesd = naming("vae", &["1.weight", "3.conv.0.weight"], true).unwrap();
        for (name, stored) in [
            ("decoder.layers.0.weight", "1.weight"),
            ("decoder.layers.2.conv.4.bias", "3.conv.4.bias"),
            ("decoder.layers.18.bias", "19.bias"),
            ("encoder.layers.0.weight", "encoder.layers.0.weight"),
        ] {
            assert_eq!(taesd.stored_name(name), stored);
        }
        assert_eq!(naming("vae", &["0.weight", "1.conv.0.weight", "3.conv.0.weight"], true), None);

        let old = naming("text_encoder", &["cond_stage_model.transformer.embeddings.token_embedding.weight"], false);
        let old = old.unwrap();
        for stored in ["cond_stage_model.transformer.text_model.x", "cond_stage_model.transformer.x"] {
            assert_eq!(old.key(stored).as_deref(), Some("x"), "{stored}");
        }
        assert_eq!(old.key("cond_stage_model.model.x"), None);
    }

    #[test]
    fn what_training_leaves_in_a_file_is_ignored_and_nothing_else_is() {
        for name in BUFFERS.iter().copied().chain([
            "model_ema.decay",
            "model_ema.num_updates",
            "model_ema.diffusion_modelinput_blocks00weight",
            "embedding_manager.x",
            "conditioner.embedders.1.model.logit_scale",
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            "cond_stage_model.model.attn_mask",
            "first_stage_model.loss.logvar",
            "first_stage_model.model_ema.decay",
        ]) {
            assert!(is_ignorable_in_file(name), "{name}");
        }
        for name in ["", "x", "betas.x", "first_stage_model.decoder.x", "model.diffusion_model.x", "my_logit_scale"] {
            assert!(!is_ignorable_in_file(name), "{name}");
        }
        let clip = Naming { prefix: String::new(), scheme: Scheme::OpenClip(24) };
        for (key, want) in [
            ("transformer.resblocks.23.ln_1.weight", true),
            ("transformer.resblocks.22.ln_1.weight", false),
            ("transformer.resblocks.2.ln_1.weight", false),
            ("text_projection", true),
            ("logit_scale", true),
            ("ln_final.weight", false),
        ] {
            assert_eq!(clip.is_ignorable(key), want, "{key}");
        }
    }
}
