//! The names of modules in LoRA files. For each module of a model, all names that files may have for it are made; names
//! are never translated back, because `_` and `.` cannot be told apart in them.

use std::collections::{HashMap, hash_map::Entry};

/// The network of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The denoiser.
    Unet,
    /// A text encoder: 0 is the first.
    TextEncoder(usize),
}

/// The modules of a model by the names that LoRA files have for them.
#[derive(Debug, Default)]
pub struct Modules {
    by_stem: HashMap<String, usize>,
}

impl Modules {
    /// From the modules' names in this crate, such as `down_blocks.0.attentions.0.proj_in` and
    /// `encoder.layers.0.mlp.fc1`. `ldm_name` gives the name of a UNet's module in single files, such as
    /// `input_blocks.1.1.proj_in`.
    ///
    /// # Panics
    /// If two modules have a name in common.
    pub fn new<'m>(
        modules: impl IntoIterator<Item = (Target, &'m str)>,
        ldm_name: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let mut by_stem: HashMap<String, usize> = HashMap::new();
        for (module, (target, name)) in modules.into_iter().enumerate() {
            let ldm = if target == Target::Unet { ldm_name(name) } else { None };
            for stem in stems(target, name, ldm.as_deref()) {
                match by_stem.entry(stem) {
                    Entry::Vacant(entry) => _ = entry.insert(module),
                    Entry::Occupied(entry) if *entry.get() == module => {}
                    Entry::Occupied(entry) => panic!("`{}` stands for two modules", entry.key()),
                }
            }
        }
        Self { by_stem }
    }

    /// The index of the module that has this name in a file.
    pub fn find(&self, stem: &str) -> Option<usize> {
        self.by_stem.get(stem).copied()
    }
}

/// All names of a module in files.
fn stems(target: Target, name: &str, ldm: Option<&str>) -> Vec<String> {
    let flat = |name: &str| name.replace('.', "_");
    let mut stems = Vec::new();
    match target {
        Target::Unet => {
            stems.extend(["lora_unet_", "lycoris_", "unet_"].map(|prefix| format!("{prefix}{}", flat(name))));
            // Attention processors have no index.
            let names = [Some(name), name.strip_suffix("to_out.0").map(|_| &name[..name.len() - 2])];
            for name in names.into_iter().flatten() {
                stems
                    .extend(["", "unet.", "base_model.model.", "unet.base_model.model."].map(|p| format!("{p}{name}")));
            }
            if let Some(ldm) = ldm {
                stems.push(format!("lora_unet_{}", flat(ldm)));
                stems.extend(["diffusion_model.", "model.diffusion_model."].map(|prefix| format!("{prefix}{ldm}")));
            }
        }
        Target::TextEncoder(encoder) => {
            // Files have the names of Hugging Face, where all but the projection is in `text_model`.
            let full = if name == "text_projection" { name.to_owned() } else { format!("text_model.{name}") };
            let (flats, dotted): (&[&str], &[&str]) = match encoder {
                0 => (
                    &["lora_te_", "lora_te1_", "te_", "te1_"],
                    &["text_encoder.", "text_encoder.base_model.model.", "text_encoders.clip_l.transformer."],
                ),
                _ => (
                    &["lora_te2_", "te2_"],
                    &["text_encoder_2.", "text_encoder_2.base_model.model.", "text_encoders.clip_g.transformer."],
                ),
            };
            stems.extend(flats.iter().map(|prefix| format!("{prefix}{}", flat(&full))));
            let old = [("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")]
                .into_iter()
                .find_map(|(own, old)| Some(format!("{}{old}", full.strip_suffix(own)?)));
            // Since version 5 transformers saves encoders without projection without `text_model.`.
            for name in [Some(full.as_str()), Some(name), old.as_deref()].into_iter().flatten() {
                stems.extend(dotted.iter().map(|prefix| format!("{prefix}{name}")));
            }
        }
    }
    stems
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNET: [(&str, &str); 7] = [
        ("conv_in", "input_blocks.0.0"),
        ("down_blocks.0.resnets.0.time_emb_proj", "input_blocks.1.0.emb_layers.1"),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
        ),
        ("mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
        (
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj",
            "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj",
        ),
        (
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
            "input_blocks.2.1.transformer_blocks.0.attn1.to_out.0",
        ),
        ("conv_out", "out.2"),
    ];
    const TEXT: [&str; 4] = [
        "encoder.layers.11.self_attn.out_proj",
        "encoder.layers.0.mlp.fc1",
        "encoder.layers.3.self_attn.q_proj",
        "text_projection",
    ];

    fn modules() -> Modules {
        let unet = UNET.iter().map(|(name, _)| (Target::Unet, *name));
        let text = (0..2).flat_map(|i| TEXT.map(|name| (Target::TextEncoder(i), name)));
        let ldm = |name: &str| UNET.iter().find(|(own, _)| *own == name).map(|(_, ldm)| (*ldm).to_owned());
        Modules::new(unet.chain(text), ldm)
    }

    #[test]
    fn every_spelling_of_a_module_is_found() {
        let modules = modules();
        let (te1, te2) = (UNET.len(), UNET.len() + TEXT.len());
        for (stem, module) in [
            ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 2),
            ("lora_unet_mid_block_attentions_0_proj_in", 3),
            ("lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj", 4),
            ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0", 5),
            ("lora_unet_input_blocks_0_0", 0),
            ("lora_unet_input_blocks_1_0_emb_layers_1", 1),
            ("lora_unet_out_2", 6),
            ("lycoris_down_blocks_0_resnets_0_time_emb_proj", 1),
            ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out", 5),
            ("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0", 5),
            ("base_model.model.conv_in", 0),
            ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k", 2),
            ("lora_te_text_model_encoder_layers_11_self_attn_out_proj", te1),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1", te1 + 1),
            ("lora_te2_text_model_encoder_layers_0_mlp_fc1", te2 + 1),
            ("lora_te2_text_projection", te2 + 3),
            ("text_encoder.text_model.encoder.layers.3.self_attn.to_q", te1 + 2),
            ("text_encoder.text_model.encoder.layers.11.self_attn.to_out", te1),
            ("text_encoder_2.encoder.layers.3.self_attn.q_proj", te2 + 2),
            ("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1", te2 + 1),
        ] {
            assert_eq!(modules.find(stem), Some(module), "{stem}");
        }
        for stem in ["lora_unet_input_blocks_1_1_proj_in", "conv_in.weight", "lora_te3_text_projection", "", "unet."] {
            assert_eq!(modules.find(stem), None, "{stem}");
        }
    }

    #[test]
    #[should_panic(expected = "stands for two modules")]
    fn two_modules_never_have_a_name_in_common() {
        Modules::new([(Target::Unet, "a.b_c"), (Target::Unet, "a_b.c")], |_| None);
    }
}
