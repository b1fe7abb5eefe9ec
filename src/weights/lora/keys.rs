//! The names of tensors in LoRA files: a module and what the tensor is to it.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Error, Result};

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    Down,
    Up,
    Mid,
    UpBias,
    Alpha,
    Scale,
    DoraScale,
    Magnitude,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    Weight,
    OnInput,
    Diff,
    DiffB,
    WNorm,
    BNorm,
}

/// The ends of names. The first that fits counts.
const SUFFIXES: &[(&str, Part)] = &[
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora.mid.weight", Part::Mid),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A", Part::Down),
    (".lora_B", Part::Up),
    (".lora_B.bias", Part::UpBias),
    (".alpha", Part::Alpha),
    (".scale", Part::Scale),
    (".dora_scale", Part::DoraScale),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".hada_t1", Part::HadaT1),
    (".hada_t2", Part::HadaT2),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lokr_t2", Part::LokrT2),
    (".on_input", Part::OnInput),
    (".diff", Part::Diff),
    (".diff_b", Part::DiffB),
    (".w_norm", Part::WNorm),
    (".b_norm", Part::BNorm),
    // Last, because others end with it.
    (".weight", Part::Weight),
];

/// The ends of names of adapters that are not supported, and what they are.
const UNSUPPORTED: &[(&str, &str)] = &[
    (".a1.weight", "GLoRA"),
    (".a2.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    (".b2.weight", "GLoRA"),
    (".bm.weight", "GLoRA"),
    (".oft_blocks", "OFT"),
    (".oft_diag", "OFT"),
    (".rescale", "OFT"),
    (".set_weight", "a weight that replaces the model's"),
    (".reshape_weight", "a weight of another shape than the model's"),
];

impl Part {
    /// The usual end of the name.
    pub(super) fn suffix(self) -> &'static str {
        SUFFIXES.iter().find(|(_, part)| *part == self).map_or("", |(suffix, _)| &suffix[1..])
    }
}

/// The tensors of one module: their indices in the file.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) stem: String,
    pub(super) parts: BTreeMap<Part, usize>,
}

/// The groups of a file, in the order of their first tensors.
#[derive(Debug)]
pub(super) struct Groups(Vec<Group>);

impl Groups {
    /// Sorts the tensors of a file by their names. Bundled textual inversions are left out.
    pub(super) fn of<'n>(names: impl Iterator<Item = &'n str>) -> Result<Self> {
        let mut groups: Vec<Group> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for (index, name) in names.enumerate().filter(|(_, name)| !name.starts_with("bundle_emb.")) {
            let (stem, part) = split(name)?;
            let group = *known.entry(stem.clone()).or_insert_with(|| {
                groups.push(Group { stem, parts: BTreeMap::new() });
                groups.len() - 1
            });
            if groups[group].parts.insert(part, index).is_some() {
                return Err(Error::input(format!("`{name}` is there twice, in two spellings")));
            }
        }
        Ok(Self(groups))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.0.iter()
    }
}

/// The module and the part that a name stands for.
fn split(name: &str) -> Result<(String, Part)> {
    if let Some((suffix, kind)) = UNSUPPORTED.iter().find(|(suffix, _)| name.ends_with(suffix)) {
        return Err(Error::input(format!("`{name}`: `{suffix}` is {kind}, which sdshard does not apply")));
    }
    let found = || SUFFIXES.iter().find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?, *part)));
    match of_named_adapter(name).or_else(found) {
        Some((stem, part)) if !stem.is_empty() => Ok((stem.replace(".processor", ""), part)),
        _ => Err(Error::input(format!("`{name}` is no tensor of a LoRA"))
            .hint("a file of LoRA, LoCon, LoHa, LoKr, IA3 or DoRA adapters, or of differences")),
    }
}

/// PEFT's names may have the name of the adapter before the last word: `lora_A.default.weight`.
fn of_named_adapter(name: &str) -> Option<(&str, Part)> {
    let (front, _) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let ends = [(".lora_A", Part::Down), (".lora_B", Part::Up), (".lora_magnitude_vector", Part::Magnitude)];
    ends.into_iter().find_map(|(end, part)| Some((front.strip_suffix(end)?, part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_module_and_a_part() {
        let stem = "lora_unet_mid_block_attentions_0_proj_in";
        for (name, stem, part) in [
            (&*format!("{stem}.lora_down.weight"), stem, Part::Down),
            (&*format!("{stem}.alpha"), stem, Part::Alpha),
            (&*format!("{stem}.lokr_w1"), stem, Part::LokrW1),
            (&*format!("{stem}.lokr_w1_a"), stem, Part::LokrW1A),
            (&*format!("{stem}.weight"), stem, Part::Weight),
            (&*format!("{stem}.diff_b"), stem, Part::DiffB),
            ("a.attn1.processor.to_q_lora.down.weight", "a.attn1.to_q", Part::Down),
            ("unet.a.attn2.processor.to_out_lora.up.weight", "unet.a.attn2.to_out", Part::Up),
            ("text_encoder.x.q_proj.lora_linear_layer.up.weight", "text_encoder.x.q_proj", Part::Up),
            ("unet.x.to_k.lora.down.weight", "unet.x.to_k", Part::Down),
            ("unet.x.to_out.0.lora_A.weight", "unet.x.to_out.0", Part::Down),
            ("base_model.model.x.lora_B.default.weight", "base_model.model.x", Part::Up),
            ("x.lora_A", "x", Part::Down),
            ("x.lora_B.bias", "x", Part::UpBias),
            ("x.lora_magnitude_vector.weight", "x", Part::Magnitude),
        ] {
            assert_eq!(split(name).unwrap(), (stem.to_owned(), part), "{name}");
        }
        for (name, says) in [
            ("x.oft_blocks", "is OFT, which sdshard does not apply"),
            ("x.a1.weight", "is GLoRA"),
            ("conv_in.bias", "is no tensor of a LoRA"),
            (".alpha", "is no tensor of a LoRA"),
        ] {
            assert!(split(name).unwrap_err().to_string().contains(says), "{name}");
        }
    }

    #[test]
    fn tensors_are_grouped_by_module() {
        let names = ["b.lora_down.weight", "a.alpha", "b.alpha", "a.hada_w1_a", "bundle_emb.x.clip_l"];
        let groups = Groups::of(names.into_iter()).unwrap();
        let list: Vec<(&str, Vec<usize>)> =
            groups.iter().map(|group| (group.stem.as_str(), group.parts.values().copied().collect())).collect();
        assert_eq!(list, [("b", vec![0, 2]), ("a", vec![1, 3])]);
        let twice = Groups::of(["a.lora_A.weight", "a.lora_down.weight"].into_iter()).unwrap_err().to_string();
        assert!(twice.contains("in two spellings"), "{twice}");
    }

    #[test]
    fn no_suffix_hides_another() {
        for (i, (suffix, part)) in SUFFIXES.iter().enumerate() {
            let first = SUFFIXES.iter().position(|(other, _)| format!("x{suffix}").ends_with(other)).unwrap();
            assert!(first == i || SUFFIXES[first].1 == *part, "{suffix} is hidden by {}", SUFFIXES[first].0);
        }
    }
}
