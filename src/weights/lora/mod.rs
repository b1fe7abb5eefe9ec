//! LoRA files and their relatives: which tensors change which module, and by how much. Hu et al. 2021; LyCORIS for LoHa,
//! LoKr, IA3 and differences; Liu et al. 2024 for DoRA.
//!
//! Three questions are answered by themselves: how a file names modules ([`modules`]), which kind of adapter a module has
//! ([`keys`] and [`Adapter`]), and what it adds to a weight ([`merge`]).

mod adapters;
mod keys;
mod merge;
mod modules;
mod scale;

use std::{collections::BTreeSet, path::Path};

pub use self::{
    adapters::{Adapters, Changeable, LoraChoice},
    merge::{Difference, Matrix},
    modules::{Modules, Target},
};
use self::{
    keys::{Groups, Part},
    scale::PeftConfig,
};
use super::TensorFile;
use crate::error::{Error, Result};

/// The most names that a message lists.
const LISTED: usize = 20;

/// A LoRA file whose header has been read: its tensors in groups, one for each module.
#[derive(Debug)]
pub struct LoraFile {
    file: TensorFile,
    groups: Groups,
    peft: Option<PeftConfig>,
}

/// What a file does to one module.
#[derive(Debug)]
pub struct Change {
    /// The index of the module in [`Modules`].
    pub module: usize,
    /// The name of the module in the file.
    pub stem: String,
}

/// The tensors of one module, read as f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// What is added.
    pub kind: Kind,
    /// The factor of the product: alpha divided by the rank.
    pub scale: f32,
    /// The magnitudes of a DoRA.
    pub dora: Option<Dora>,
}

/// The kinds of adapters.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the fields have the names of the tensors")]
pub enum Kind {
    /// `up · down`, with `mid` between them for a convolution in Tucker form.
    Lora { down: Matrix, up: Matrix, mid: Option<Matrix>, up_bias: Option<Matrix> },
    /// `(w1_a · w1_b) ∘ (w2_a · w2_b)`, each with a core in Tucker form.
    Loha { w1_a: Matrix, w1_b: Matrix, w2_a: Matrix, w2_b: Matrix, cores: Option<[Matrix; 2]> },
    /// The Kronecker product of two factors.
    Lokr { w1: Factor, w2: Factor },
    /// A factor for each input or output of the weight.
    Ia3 { weight: Matrix, on_input: bool },
    /// Differences of the weight and the bias; also those of a norm.
    Full { weight: Option<Matrix>, bias: Option<Matrix> },
}

/// A factor of a Kronecker product.
#[derive(Debug, Clone, PartialEq)]
pub enum Factor {
    /// The factor itself.
    Whole(Matrix),
    /// The product of two, with a core between them for a convolution in Tucker form.
    Product(Matrix, Matrix, Option<Matrix>),
}

/// The magnitudes of the rows or columns of a changed weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Dora {
    /// The magnitudes, one for each output or each input.
    pub magnitude: Matrix,
    /// The rule for strengths other than 1.
    pub rule: DoraRule,
}

/// What a strength other than 1 means for a DoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoraRule {
    /// The change of the weight at strength 1 is multiplied by it, as in web UIs: files with `dora_scale`.
    Blend,
    /// The product is multiplied by it before the weight is normalised, as in PEFT: files with
    /// `lora_magnitude_vector`.
    Peft,
}

impl LoraFile {
    /// Opens a file and sorts its tensors.
    ///
    /// # Errors
    /// If it is no safetensors file, or if it has a tensor whose name ends in nothing that a LoRA's tensor may be called.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path).map_err(|error| error.context("the LoRA"))?;
        let groups = Groups::of(file.tensors().map(|(name, _)| name))
            .map_err(|error| error.context(format!("the LoRA {}", file.path())))?;
        let peft = PeftConfig::of(&file)?;
        Ok(Self { file, groups, peft })
    }

    /// The file's name in messages.
    pub fn path(&self) -> &str {
        self.file.path()
    }

    /// The names of the file's modules, in their order in the file.
    pub fn stems(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().map(|group| group.stem.as_str())
    }

    /// The kind of model that the file was made for, as far as its shapes say: by the width of the texts that
    /// cross-attention reads.
    pub fn family(&self) -> Option<&'static str> {
        let shapes: Vec<&[usize]> = self.file.tensors().map(|(_, shape)| shape).collect();
        if self.stems().any(|stem| stem.starts_with("lora_te2_") || stem.starts_with("text_encoder_2.")) {
            return Some("SDXL");
        }
        if self
            .stems()
            .any(|stem| ["lora_unet_double_blocks_", "transformer.", "lora_te3_"].iter().any(|p| stem.starts_with(p)))
        {
            return Some("another kind of model");
        }
        self.groups.iter().find_map(|group| {
            let is_key = group.stem.contains("attn2") && ["to_k", "to_v"].iter().any(|end| group.stem.ends_with(end));
            let down = shapes[*group.parts.get(&Part::Down).filter(|_| is_key)?];
            match down.get(1)? {
                768 => Some("Stable Diffusion 1"),
                1024 => Some("Stable Diffusion 2"),
                2048 => Some("SDXL"),
                _ => None,
            }
        })
    }

    /// Finds the module of each name. Modules that the file names twice, with equal tensors, are in the result once.
    ///
    /// # Errors
    /// If a module is named twice with different tensors; if no name fits; and unless `lenient`, if some name does not.
    pub fn resolve(&self, modules: &Modules, lenient: bool) -> Result<Vec<Change>> {
        let refuse = |what: String| Error::input(format!("the LoRA {}: {what}", self.path()));
        let mut changes: Vec<Change> = Vec::new();
        let mut unmatched = Vec::new();
        for stem in self.stems() {
            let Some(module) = modules.find(stem) else {
                unmatched.push(stem);
                continue;
            };
            match changes.iter().find(|change| change.module == module) {
                None => changes.push(Change { module, stem: stem.to_owned() }),
                Some(other) if self.adapter(&other.stem)? == self.adapter(stem)? => {}
                Some(other) => {
                    let what = format!("`{}` and `{stem}` are the same module with different values", other.stem);
                    return Err(refuse(what));
                }
            }
        }
        if !changes.is_empty() && (unmatched.is_empty() || lenient) {
            return Ok(changes);
        }
        let what = match changes.len() {
            0 => "this model has none of its modules".to_owned(),
            _ => format!("this model lacks {} of its {} modules", unmatched.len(), unmatched.len() + changes.len()),
        };
        let more = unmatched.len().saturating_sub(LISTED);
        let list = unmatched.iter().take(LISTED).map(|stem| format!("  {stem}"));
        let error = refuse(what).lines(list.chain((more > 0).then(|| format!("  and {more} more"))));
        Err(match self.family() {
            Some(family) => error.hint(format!("this file was made for {family}")),
            None => error,
        })
    }

    /// Compares the outputs and inputs of a product with the shape of the module's weight. Other kinds of adapters are
    /// compared when they are applied.
    ///
    /// # Errors
    /// If they differ: the file was made for another kind of model.
    pub(super) fn check_shape(&self, stem: &str, shape: &[usize]) -> Result<()> {
        let shapes: Vec<&[usize]> = self.file.tensors().map(|(_, shape)| shape).collect();
        let group = self.groups.iter().find(|group| group.stem == stem);
        let size = |part: Part, axis: usize| shapes[*group?.parts.get(&part)?].get(axis).copied();
        let is_other = |found: Option<usize>, wanted: Option<&usize>| found.is_some() && found.as_ref() != wanted;
        // The first convolution of an inpainting model has more inputs than those of other models.
        let is_inpainting = shape.get(1) == Some(&9) && size(Part::Down, 1) == Some(4);
        if is_other(size(Part::Up, 0), shape.first()) || (is_other(size(Part::Down, 1), shape.get(1)) && !is_inpainting)
        {
            let found = [size(Part::Up, 0), size(Part::Down, 1)].map(|size| size.unwrap_or_default());
            let error = Error::input(format!("the LoRA {}: `{stem}` is not for a weight of {shape:?}", self.path()));
            let error = error.found(format!("{found:?}"));
            return Err(match self.family() {
                Some(family) => error.hint(format!("this file was made for {family}")),
                None => error,
            });
        }
        Ok(())
    }

    /// Reads the tensors of a module, by its name in the file.
    ///
    /// # Errors
    /// If tensors are missing, have values that are not finite, or do not fit together.
    pub fn adapter(&self, stem: &str) -> Result<Adapter> {
        let doing = |error: Error| error.context(format!("the LoRA {}, `{stem}`", self.path()));
        let missing = || doing(Error::input("the file has no such module"));
        let group = self.groups.iter().find(|group| group.stem == stem).ok_or_else(missing)?;
        let shapes: Vec<&[usize]> = self.file.tensors().map(|(_, shape)| shape).collect();
        let read = |part: Part| {
            let index = group.parts[&part];
            Matrix::new(shapes[index].to_vec(), self.file.values(index)?)
        };
        let parts = Parts { left: group.parts.keys().copied().collect(), read };
        Adapter::of(parts, |rank| self.peft.as_ref().map_or(1.0, |peft| peft.scale(stem, rank))).map_err(doing)
    }
}

/// The tensors of a module that were not used yet.
struct Parts<F> {
    left: BTreeSet<Part>,
    read: F,
}

impl<F: Fn(Part) -> Result<Matrix>> Parts<F> {
    fn has(&self, part: Part) -> bool {
        self.left.contains(&part)
    }

    fn take(&mut self, part: Part) -> Result<Option<Matrix>> {
        if self.left.remove(&part) { (self.read)(part).map(Some) } else { Ok(None) }
    }

    fn need(&mut self, part: Part) -> Result<Matrix> {
        self.take(part)?.ok_or_else(|| Error::input(format!("`{}` is missing", part.suffix())))
    }

    /// One of two tensors.
    fn either(&mut self, one: Part, other: Part) -> Result<Option<Matrix>> {
        if self.has(one) { self.take(one) } else { self.take(other) }
    }

    fn number(&mut self, part: Part) -> Result<Option<f32>> {
        Ok(self.take(part)?.and_then(|matrix| matrix.values.first().copied()))
    }

    fn factor(&mut self, [whole, a, b]: [Part; 3], core: Option<Part>) -> Result<Factor> {
        if let Some(matrix) = self.take(whole)? {
            return Ok(Factor::Whole(matrix));
        }
        let core = core.map_or(Ok(None), |core| self.take(core))?;
        Ok(Factor::Product(self.need(a)?, self.need(b)?, core))
    }
}

impl Adapter {
    /// From the tensors that a module has. `peft` gives the factor for a rank if no tensor has it.
    fn of(mut parts: Parts<impl Fn(Part) -> Result<Matrix>>, peft: impl Fn(usize) -> f32) -> Result<Self> {
        let (kind, rank) = if parts.has(Part::Down) || parts.has(Part::Up) {
            let (down, up) = (parts.need(Part::Down)?, parts.need(Part::Up)?);
            let rank = down.rows();
            (Kind::Lora { down, up, mid: parts.take(Part::Mid)?, up_bias: parts.take(Part::UpBias)? }, Some(rank))
        } else if parts.has(Part::HadaW1A) {
            let (w1_a, w1_b) = (parts.need(Part::HadaW1A)?, parts.need(Part::HadaW1B)?);
            let (w2_a, w2_b) = (parts.need(Part::HadaW2A)?, parts.need(Part::HadaW2B)?);
            let cores = match parts.has(Part::HadaT1) || parts.has(Part::HadaT2) {
                true => Some([parts.need(Part::HadaT1)?, parts.need(Part::HadaT2)?]),
                false => None,
            };
            let rank = w1_b.rows();
            (Kind::Loha { w1_a, w1_b, w2_a, w2_b, cores }, Some(rank))
        } else if parts.has(Part::LokrW1) || parts.has(Part::LokrW1A) {
            let w1 = parts.factor([Part::LokrW1, Part::LokrW1A, Part::LokrW1B], None)?;
            let w2 = parts.factor([Part::LokrW2, Part::LokrW2A, Part::LokrW2B], Some(Part::LokrT2))?;
            let rank = match (&w1, &w2) {
                (_, Factor::Product(_, b, _)) | (Factor::Product(_, b, _), _) => Some(b.rows()),
                _ => None,
            };
            (Kind::Lokr { w1, w2 }, rank)
        } else if parts.has(Part::Weight) {
            let on_input = parts.number(Part::OnInput)?.is_some_and(|flag| flag != 0.0);
            (Kind::Ia3 { weight: parts.need(Part::Weight)?, on_input }, None)
        } else {
            let (weight, bias) = (parts.either(Part::Diff, Part::WNorm)?, parts.either(Part::DiffB, Part::BNorm)?);
            if weight.is_none() && bias.is_none() {
                return Err(Error::input("there is nothing that changes a weight"));
            }
            (Kind::Full { weight, bias }, None)
        };
        let (alpha, scale) = (parts.number(Part::Alpha)?, parts.number(Part::Scale)?);
        let scale = scale::scale(alpha, scale, rank, peft);
        let dora = match (parts.take(Part::DoraScale)?, parts.take(Part::Magnitude)?) {
            (Some(magnitude), _) => Some(Dora { magnitude, rule: DoraRule::Blend }),
            (None, Some(magnitude)) => Some(Dora { magnitude, rule: DoraRule::Peft }),
            (None, None) => None,
        };
        match parts.left.first() {
            Some(part) => Err(Error::input(format!("`{}` is of another kind of adapter", part.suffix()))),
            None => Ok(Self { kind, scale, dora }),
        }
    }
}
