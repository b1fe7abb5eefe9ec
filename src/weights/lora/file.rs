//! A LoRA file: its modules, found in a model.

use std::path::Path;

use super::{
    adapter::{Adapter, Parts},
    keys::{Groups, Part},
    matrix::Matrix,
    modules::Modules,
    scale::PeftConfig,
};
use crate::{
    error::{Error, Result},
    weights::TensorFile,
};

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

    /// Checks that the tensors of a module are those of one adapter, and compares the outputs and inputs of a product with
    /// the shape of the module's weight. Other kinds of adapters are compared when they are applied. No values are read.
    ///
    /// # Errors
    /// If a tensor is missing or of another adapter, or if the shapes differ: the file was made for another kind of model.
    pub(super) fn check_shape(&self, stem: &str, shape: &[usize]) -> Result<()> {
        self.adapter_of(stem, |_, shape| Ok(Matrix { shape, values: Vec::new() }))?;
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
        self.adapter_of(stem, |index, shape| Matrix::new(shape, self.file.values(index)?))
    }

    /// The adapter of a module, whose tensors `read` gives by index and shape.
    fn adapter_of(&self, stem: &str, read: impl Fn(usize, Vec<usize>) -> Result<Matrix>) -> Result<Adapter> {
        let doing = |error: Error| error.context(format!("the LoRA {}, `{stem}`", self.path()));
        let missing = || doing(Error::input("the file has no such module"));
        let group = self.groups.iter().find(|group| group.stem == stem).ok_or_else(missing)?;
        let shapes: Vec<&[usize]> = self.file.tensors().map(|(_, shape)| shape).collect();
        let read = |part: Part| read(group.parts[&part], shapes[group.parts[&part]].to_vec());
        let parts = Parts { left: group.parts.keys().copied().collect(), read };
        Adapter::of(parts, |rank| self.peft.as_ref().map_or(1.0, |peft| peft.scale(stem, rank))).map_err(doing)
    }
}
