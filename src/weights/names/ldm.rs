//! The names that the original training code of Stable Diffusion (LDM, later SGM) and OpenCLIP give to the tensors of
//! a single-file checkpoint, made from the names of diffusers and transformers.
//!
//! Only this direction exists: it is unambiguous, and a tensor that is missing is noticed at once.

/// How the blocks of a UNet are numbered in LDM's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnetBlocks {
    /// Number of residual blocks of each down level; an up level has one more.
    pub layers_per_block: usize,
    /// Whether each up level has attention, in the order of `up_blocks`: lowest resolution first.
    pub up_attention: Vec<bool>,
}

impl UnetBlocks {
    /// Reads the numbers off the names of a file; `has` tells whether it has a tensor of this LDM name.
    pub(super) fn of_file(has: impl Fn(&str) -> bool) -> Self {
        let is_resnet = |path: &str, i: usize| has(&format!("{path}.{i}.0.in_layers.2.weight"));
        // `input_blocks.0` is `conv_in`. The first block that is no resnet is the downsampler behind the first level.
        let layers_per_block = (1..).take_while(|&i| is_resnet("input_blocks", i)).count();
        let firsts = (0..).step_by(layers_per_block + 1).take_while(|&i| is_resnet("output_blocks", i));
        let up_attention = firsts.map(|i| has(&format!("output_blocks.{i}.1.norm.weight"))).collect();
        Self { layers_per_block, up_attention }
    }

    /// LDM's name of a module or tensor of the UNet that diffusers calls `name`: `input_blocks.4.1.proj_in` for
    /// `down_blocks.1.attentions.0.proj_in`. Parts behind the module's name are kept, such as `.weight`.
    ///
    /// `None` if LDM's UNet has no such module.
    pub fn ldm_name(&self, name: &str) -> Option<String> {
        let parts: Vec<&str> = name.split('.').collect();
        let at = |text: &str| text.parse::<usize>().ok();
        let slots = self.layers_per_block + 1;
        let (module, rest) = match &parts[..] {
            ["conv_in", rest @ ..] => ("input_blocks.0.0".to_owned(), rest),
            ["time_embedding", "linear_1", rest @ ..] => ("time_embed.0".to_owned(), rest),
            ["time_embedding", "linear_2", rest @ ..] => ("time_embed.2".to_owned(), rest),
            ["time_embedding", "cond_proj", rest @ ..] => ("time_embed_cond".to_owned(), rest),
            ["add_embedding", "linear_1", rest @ ..] => ("label_emb.0.0".to_owned(), rest),
            ["add_embedding", "linear_2", rest @ ..] => ("label_emb.0.2".to_owned(), rest),
            ["conv_norm_out", rest @ ..] => ("out.0".to_owned(), rest),
            ["conv_out", rest @ ..] => ("out.2".to_owned(), rest),
            ["down_blocks", level, "downsamplers", "0", "conv", rest @ ..] => {
                (format!("input_blocks.{}.0.op", slots.checked_mul(at(level)?.checked_add(1)?)?), rest)
            }
            ["down_blocks", level, kind, layer, rest @ ..] => {
                let layer = at(layer).filter(|layer| *layer < self.layers_per_block)?;
                let block = slots.checked_mul(at(level)?)?.checked_add(1 + layer)?;
                return part(&format!("input_blocks.{block}"), kind, rest);
            }
            ["mid_block", "resnets", i, rest @ ..] => {
                return part(&format!("middle_block.{}", at(i)?.checked_mul(2)?), "", rest);
            }
            ["mid_block", "attentions", i, rest @ ..] => {
                (format!("middle_block.{}", at(i)?.checked_mul(2)?.checked_add(1)?), rest)
            }
            ["up_blocks", level, "upsamplers", "0", "conv", rest @ ..] => {
                let level = at(level)?;
                let behind = if *self.up_attention.get(level)? { 2 } else { 1 };
                (format!("output_blocks.{}.{behind}.conv", slots * level + self.layers_per_block), rest)
            }
            ["up_blocks", level, kind, layer, rest @ ..] => {
                let layer = at(layer).filter(|layer| *layer < slots)?;
                let block = slots.checked_mul(at(level)?)?.checked_add(layer)?;
                return part(&format!("output_blocks.{block}"), kind, rest);
            }
            _ => return None,
        };
        Some(joined(&module, rest))
    }
}

/// LDM's name of a tensor of a ControlNet, whose blocks are numbered as those of the UNet that it is a copy of.
pub(super) fn controlnet_name(blocks: &UnetBlocks, name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let (module, rest) = match &parts[..] {
        ["controlnet_down_blocks", i, rest @ ..] => (format!("zero_convs.{i}.0"), rest),
        ["controlnet_mid_block", rest @ ..] => ("middle_block_out.0".to_owned(), rest),
        // LDM numbers the activations between the convolutions too.
        ["controlnet_cond_embedding", "conv_in", rest @ ..] => ("input_hint_block.0".to_owned(), rest),
        ["controlnet_cond_embedding", "blocks", i, rest @ ..] => {
            (format!("input_hint_block.{}", i.parse::<usize>().ok()?.checked_add(1)?.checked_mul(2)?), rest)
        }
        ["controlnet_cond_embedding", "conv_out", rest @ ..] => ("input_hint_block.14".to_owned(), rest),
        _ => return blocks.ldm_name(name),
    };
    Some(joined(&module, rest))
}

/// A part of a numbered block of the UNet. The middle has its resnets and transformers in blocks of their own.
fn part(block: &str, kind: &str, rest: &[&str]) -> Option<String> {
    match kind {
        "attentions" => Some(joined(&format!("{block}.1"), rest)),
        "resnets" => part(&format!("{block}.0"), "", rest),
        "" => {
            let (layer, rest) = rest.split_first()?;
            let layer = match *layer {
                "norm1" => "in_layers.0",
                "conv1" => "in_layers.2",
                "time_emb_proj" => "emb_layers.1",
                "norm2" => "out_layers.0",
                "conv2" => "out_layers.3",
                "conv_shortcut" => "skip_connection",
                _ => return None,
            };
            Some(joined(&format!("{block}.{layer}"), rest))
        }
        _ => None,
    }
}

fn joined(first: &str, rest: &[&str]) -> String {
    rest.iter().fold(first.to_owned(), |name, part| name + "." + part)
}

/// LDM's name of a tensor of an `AutoencoderKL` with this number of levels.
pub(super) fn vae_name(levels: usize, name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let (half, rest) = match &parts[..] {
        ["quant_conv" | "post_quant_conv", ..] => return Some(name.to_owned()),
        [half @ ("encoder" | "decoder"), rest @ ..] => (*half, rest),
        _ => return None,
    };
    let resnet = |block: String, rest: &[&str]| match rest {
        ["conv_shortcut", rest @ ..] => joined(&format!("{block}.nin_shortcut"), rest),
        rest => joined(&block, rest),
    };
    // LDM counts the levels of both halves from the full resolution downwards.
    let level = |text: &str| {
        let level = text.parse::<usize>().ok().filter(|level| *level < levels)?;
        Some(if half == "encoder" { level } else { levels - 1 - level })
    };
    Some(match rest {
        ["conv_in" | "conv_out", ..] => name.to_owned(),
        ["conv_norm_out", rest @ ..] => joined(&format!("{half}.norm_out"), rest),
        ["down_blocks", i, "resnets", j, rest @ ..] => resnet(format!("{half}.down.{}.block.{j}", level(i)?), rest),
        ["up_blocks", i, "resnets", j, rest @ ..] => resnet(format!("{half}.up.{}.block.{j}", level(i)?), rest),
        ["down_blocks", i, "downsamplers", "0", rest @ ..] => {
            joined(&format!("{half}.down.{}.downsample", level(i)?), rest)
        }
        ["up_blocks", i, "upsamplers", "0", rest @ ..] => joined(&format!("{half}.up.{}.upsample", level(i)?), rest),
        ["mid_block", "resnets", j, rest @ ..] => {
            resnet(format!("{half}.mid.block_{}", j.parse::<usize>().ok()?.checked_add(1)?), rest)
        }
        ["mid_block", "attentions", "0", "to_out", "0", rest @ ..] => {
            joined(&format!("{half}.mid.attn_1.proj_out"), rest)
        }
        ["mid_block", "attentions", "0", layer, rest @ ..] => {
            let layer = match *layer {
                "group_norm" => "norm",
                "to_q" => "q",
                "to_k" => "k",
                "to_v" => "v",
                _ => return None,
            };
            joined(&format!("{half}.mid.attn_1.{layer}"), rest)
        }
        _ => return None,
    })
}

/// The part of a stored tensor that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// One of three equal ranges of rows.
    Third(usize),
    /// All of it, with rows and columns exchanged.
    Transposed,
}

/// OpenCLIP's name of a tensor of a text encoder, which has transformers' name without `text_model.`.
pub(super) fn open_clip_name(name: &str) -> Option<(String, Part)> {
    let parts: Vec<&str> = name.split('.').collect();
    let whole = |name: String| Some((name, Part::Whole));
    match &parts[..] {
        ["embeddings", "token_embedding", "weight"] => whole("token_embedding.weight".to_owned()),
        ["embeddings", "position_embedding", "weight"] => whole("positional_embedding".to_owned()),
        ["final_layer_norm", leaf] => whole(format!("ln_final.{leaf}")),
        // A parameter by which features are multiplied from the left.
        ["text_projection", "weight"] => Some(("text_projection".to_owned(), Part::Transposed)),
        ["encoder", "layers", n, module @ .., leaf] => {
            let block = format!("transformer.resblocks.{n}");
            let third = |third| Some((format!("{block}.attn.in_proj_{leaf}"), Part::Third(third)));
            let module = match module {
                ["self_attn", "q_proj"] => return third(0),
                ["self_attn", "k_proj"] => return third(1),
                ["self_attn", "v_proj"] => return third(2),
                ["self_attn", "out_proj"] => "attn.out_proj",
                ["layer_norm1"] => "ln_1",
                ["layer_norm2"] => "ln_2",
                ["mlp", "fc1"] => "mlp.c_fc",
                ["mlp", "fc2"] => "mlp.c_proj",
                _ => return None,
            };
            whole(format!("{block}.{module}.{leaf}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(up_attention: &[bool]) -> UnetBlocks {
        UnetBlocks { layers_per_block: 2, up_attention: up_attention.to_vec() }
    }

    #[test]
    fn the_unets_names_are_those_of_published_files() {
        let (sd1, sdxl) = (blocks(&[false, true, true, true]), blocks(&[true, true, false]));
        for (of, name, want) in [
            (&sd1, "conv_in.bias", "input_blocks.0.0.bias"),
            (&sd1, "time_embedding.linear_1.weight", "time_embed.0.weight"),
            (&sd1, "time_embedding.linear_2.bias", "time_embed.2.bias"),
            (&sdxl, "add_embedding.linear_1.weight", "label_emb.0.0.weight"),
            (&sdxl, "add_embedding.linear_2.weight", "label_emb.0.2.weight"),
            (&sd1, "down_blocks.0.resnets.0.norm1.weight", "input_blocks.1.0.in_layers.0.weight"),
            (&sd1, "down_blocks.0.resnets.0.time_emb_proj", "input_blocks.1.0.emb_layers.1"),
            (&sd1, "down_blocks.0.resnets.1.conv2.bias", "input_blocks.2.0.out_layers.3.bias"),
            (&sd1, "down_blocks.0.resnets.1.norm2.bias", "input_blocks.2.0.out_layers.0.bias"),
            (&sd1, "down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
            (
                &sdxl,
                "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0.bias",
                "input_blocks.8.1.transformer_blocks.9.attn2.to_out.0.bias",
            ),
            (&sd1, "down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
            (&sd1, "down_blocks.2.downsamplers.0.conv.bias", "input_blocks.9.0.op.bias"),
            (&sd1, "down_blocks.3.resnets.1.conv1.weight", "input_blocks.11.0.in_layers.2.weight"),
            (&sd1, "mid_block.resnets.0.conv1.weight", "middle_block.0.in_layers.2.weight"),
            (&sd1, "mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
            (&sd1, "mid_block.resnets.1.time_emb_proj.bias", "middle_block.2.emb_layers.1.bias"),
            (&sd1, "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
            (&sd1, "up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
            (&sdxl, "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.2.conv.weight"),
            (&sdxl, "up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
            (&sd1, "up_blocks.3.attentions.2.proj_out.weight", "output_blocks.11.1.proj_out.weight"),
            (&sd1, "conv_norm_out.weight", "out.0.weight"),
            (&sd1, "conv_out", "out.2"),
        ] {
            assert_eq!(of.ldm_name(name).as_deref(), Some(want), "{name}");
        }
        for absent in [
            "",
            "down_blocks.0.resnets.2.conv1.weight", // the downsampler is there
            "up_blocks.0.resnets.3.conv1.weight",
            "down_blocks.x.resnets.0.conv1.weight",
            "down_blocks.18446744073709551615.resnets.0.conv1.weight",
            "up_blocks.9.upsamplers.0.conv.weight",
            "down_blocks.0.resnets.0.conv3.weight",
            "mid_block.resnets.0",
            "class_embedding.weight",
        ] {
            assert_eq!(sd1.ldm_name(absent), None, "{absent}");
        }
    }

    #[test]
    fn the_names_of_controlnets_are_those_of_published_files() {
        let blocks = blocks(&[]);
        for (name, want) in [
            ("conv_in.weight", "input_blocks.0.0.weight"),
            ("down_blocks.1.attentions.0.proj_in.weight", "input_blocks.4.1.proj_in.weight"),
            ("mid_block.resnets.1.conv2.bias", "middle_block.2.out_layers.3.bias"),
            ("controlnet_cond_embedding.conv_in.weight", "input_hint_block.0.weight"),
            ("controlnet_cond_embedding.blocks.0.bias", "input_hint_block.2.bias"),
            ("controlnet_cond_embedding.blocks.5.weight", "input_hint_block.12.weight"),
            ("controlnet_cond_embedding.conv_out.bias", "input_hint_block.14.bias"),
            ("controlnet_down_blocks.11.weight", "zero_convs.11.0.weight"),
            ("controlnet_mid_block.bias", "middle_block_out.0.bias"),
        ] {
            assert_eq!(controlnet_name(&blocks, name).as_deref(), Some(want), "{name}");
        }
        for absent in ["controlnet_cond_embedding.blocks.x.weight", "controlnet_cond_embedding.x", "up_blocks.0.x"] {
            assert_eq!(controlnet_name(&blocks, absent), None, "{absent}");
        }
    }

    #[test]
    fn the_numbers_of_blocks_are_read_off_the_names() {
        let names = |of: &UnetBlocks, levels: usize| -> Vec<String> {
            let layers = of.layers_per_block;
            let mut names: Vec<String> = Vec::new();
            for level in 0..levels {
                names.extend((0..layers).map(|i| format!("down_blocks.{level}.resnets.{i}.conv1.weight")));
                names.extend((0..=layers).map(|i| format!("up_blocks.{level}.resnets.{i}.conv1.weight")));
                if of.up_attention[level] {
                    names.extend((0..=layers).map(|i| format!("up_blocks.{level}.attentions.{i}.norm.weight")));
                }
                if level + 1 < levels {
                    names.push(format!("down_blocks.{level}.downsamplers.0.conv.weight"));
                    names.push(format!("up_blocks.{level}.upsamplers.0.conv.weight"));
                }
            }
            names.iter().map(|name| of.ldm_name(name).unwrap()).collect()
        };
        for (layers_per_block, up_attention) in
            [(2, vec![false, true, true, true]), (2, vec![true, true, false]), (1, vec![true]), (3, vec![false, true])]
        {
            let of = UnetBlocks { layers_per_block, up_attention };
            let names = names(&of, of.up_attention.len());
            let distinct: std::collections::HashSet<&String> = names.iter().collect();
            assert_eq!(distinct.len(), names.len());
            assert_eq!(UnetBlocks::of_file(|name| names.iter().any(|other| other == name)), of);
        }
        assert_eq!(UnetBlocks::of_file(|_| false), UnetBlocks { layers_per_block: 0, up_attention: vec![] });
    }

    #[test]
    fn the_vaes_names_are_those_of_published_files() {
        for (name, want) in [
            ("encoder.conv_in.weight", "encoder.conv_in.weight"),
            ("decoder.conv_out.bias", "decoder.conv_out.bias"),
            ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
            ("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", "encoder.down.1.block.0.nin_shortcut.weight"),
            ("encoder.down_blocks.2.downsamplers.0.conv.bias", "encoder.down.2.downsample.conv.bias"),
            ("decoder.up_blocks.0.resnets.0.conv1.weight", "decoder.up.3.block.0.conv1.weight"),
            ("decoder.up_blocks.3.resnets.0.conv_shortcut.bias", "decoder.up.0.block.0.nin_shortcut.bias"),
            ("decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"),
            ("encoder.mid_block.resnets.0.norm1.weight", "encoder.mid.block_1.norm1.weight"),
            ("decoder.mid_block.resnets.1.conv2.weight", "decoder.mid.block_2.conv2.weight"),
            ("decoder.mid_block.attentions.0.group_norm.weight", "decoder.mid.attn_1.norm.weight"),
            ("decoder.mid_block.attentions.0.to_q.weight", "decoder.mid.attn_1.q.weight"),
            ("decoder.mid_block.attentions.0.to_k.bias", "decoder.mid.attn_1.k.bias"),
            ("decoder.mid_block.attentions.0.to_v.bias", "decoder.mid.attn_1.v.bias"),
            ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"),
            ("quant_conv.weight", "quant_conv.weight"),
            ("post_quant_conv.bias", "post_quant_conv.bias"),
        ] {
            assert_eq!(vae_name(4, name).as_deref(), Some(want), "{name}");
        }
        for absent in ["decoder.up_blocks.4.resnets.0.conv1.weight", "decoder.mid_block.attentions.0.x", "x", ""] {
            assert_eq!(vae_name(4, absent), None, "{absent}");
        }
    }

    #[test]
    fn open_clips_names_are_those_of_published_files() {
        use Part::{Third, Transposed, Whole};
        for (name, want, part) in [
            ("embeddings.token_embedding.weight", "token_embedding.weight", Whole),
            ("embeddings.position_embedding.weight", "positional_embedding", Whole),
            ("encoder.layers.5.layer_norm1.bias", "transformer.resblocks.5.ln_1.bias", Whole),
            ("encoder.layers.5.layer_norm2.weight", "transformer.resblocks.5.ln_2.weight", Whole),
            ("encoder.layers.31.self_attn.q_proj.weight", "transformer.resblocks.31.attn.in_proj_weight", Third(0)),
            ("encoder.layers.31.self_attn.k_proj.bias", "transformer.resblocks.31.attn.in_proj_bias", Third(1)),
            ("encoder.layers.0.self_attn.v_proj.weight", "transformer.resblocks.0.attn.in_proj_weight", Third(2)),
            ("encoder.layers.0.self_attn.out_proj.bias", "transformer.resblocks.0.attn.out_proj.bias", Whole),
            ("encoder.layers.0.mlp.fc1.weight", "transformer.resblocks.0.mlp.c_fc.weight", Whole),
            ("encoder.layers.0.mlp.fc2.bias", "transformer.resblocks.0.mlp.c_proj.bias", Whole),
            ("final_layer_norm.weight", "ln_final.weight", Whole),
            ("text_projection.weight", "text_projection", Transposed),
        ] {
            assert_eq!(open_clip_name(name), Some((want.to_owned(), part)), "{name}");
        }
        for absent in ["", "encoder.layers.0.x.weight", "text_projection.bias", "embeddings.position_ids"] {
            assert_eq!(open_clip_name(absent), None, "{absent}");
        }
    }
}
