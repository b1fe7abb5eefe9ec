//! The LoRAs of a model, applied to its weights as they are read.

use std::{collections::HashMap, path::Path};

use super::{
    choice::LoraChoice,
    file::LoraFile,
    modules::{Modules, Target},
};
use crate::error::Result;

/// A network whose modules LoRAs can change.
pub struct Changeable<'a> {
    /// The folder of the component.
    pub component: &'a str,
    /// The network in LoRA files.
    pub target: Target,
    /// The names and the shapes of its modules' weights.
    pub modules: Vec<(String, Vec<usize>)>,
}

/// The LoRAs of a model, with what they change.
#[derive(Debug, Default)]
pub struct Adapters {
    files: Vec<Applied>,
    /// The changes of each module, by component and module.
    changes: HashMap<(String, String), Vec<Use>>,
}

/// The change of a module by a file.
#[derive(Debug)]
struct Use {
    /// The index of the file.
    file: usize,
    /// The module's name in it.
    stem: String,
    strength: f32,
}

#[derive(Debug)]
struct Applied {
    file: LoraFile,
    choice: LoraChoice,
    /// The SHA-256 of the file.
    hash: String,
}

impl Adapters {
    /// Opens the LoRAs and finds their modules in `networks`. `ldm_name` gives LDM's name of a module of the UNet, `hash`
    /// the SHA-256 of a file.
    ///
    /// # Errors
    /// If a file cannot be read or is no LoRA for this model. If it is `lenient`, names that no module has are ignored,
    /// as long as one has.
    pub fn open(
        choices: &[LoraChoice],
        lenient: bool,
        networks: &[Changeable],
        ldm_name: impl Fn(&str) -> Option<String>,
        hash: impl Fn(&Path) -> Result<String>,
    ) -> Result<Self> {
        let mut files = Vec::with_capacity(choices.len());
        for choice in choices {
            let file = LoraFile::open(&choice.path)?;
            files.push(Applied { file, choice: choice.clone(), hash: hash(&choice.path)? });
        }
        // Sums of f32 depend on their order, which the order on the command line must not decide.
        files.sort_by(|Applied { hash: a, choice: one, .. }, Applied { hash: b, choice: other, .. }| {
            let by_text = one.text_encoder_weight.total_cmp(&other.text_encoder_weight);
            a.cmp(b).then(one.weight.total_cmp(&other.weight)).then(by_text)
        });
        let modules: Vec<_> = networks
            .iter()
            .flat_map(|network| network.modules.iter().map(move |(name, shape)| (network, name, shape)))
            .collect();
        let known = Modules::new(modules.iter().map(|(network, name, _)| (network.target, name.as_str())), ldm_name);
        let mut changes: HashMap<_, Vec<_>> = HashMap::new();
        for (index, applied) in files.iter().enumerate() {
            for change in applied.file.resolve(&known, lenient)? {
                let (network, name, shape) = modules[change.module];
                applied.file.check_shape(&change.stem, shape)?;
                let strength = match network.target {
                    Target::Unet => applied.choice.weight,
                    Target::TextEncoder(_) => applied.choice.text_encoder_weight,
                };
                let changes = changes.entry((network.component.to_owned(), name.clone())).or_default();
                changes.push(Use { file: index, stem: change.stem, strength });
            }
        }
        Ok(Self { files, changes })
    }

    /// What decides pictures: the hash and the strength of each file, one a line.
    pub fn identity(&self) -> String {
        self.files.iter().map(|applied| format!("{}  {}\n", applied.hash, applied.choice.strengths())).collect()
    }

    /// Adds what the LoRAs change in a module of a component: in its weight, which has this shape, and in its bias.
    ///
    /// # Errors
    /// If a file cannot be read any more, or its tensors do not fit.
    pub(crate) fn apply(
        &self,
        component: &str,
        module: &str,
        shape: &[usize],
        weight: &mut [f32],
        mut bias: Option<&mut [f32]>,
    ) -> Result<()> {
        let add = |to: &mut [f32], sum: &[f32]| to.iter_mut().zip(sum).for_each(|(to, x)| *to += x);
        let (original, original_bias) = (weight.to_vec(), bias.as_deref().map(<[f32]>::to_vec));
        for Use { file, stem, strength } in self.of(component, module) {
            let file = &self.files[*file].file;
            let difference = file.adapter(stem)?.difference(&original, shape, original_bias.as_deref(), *strength);
            let difference =
                difference.map_err(|error| error.context(format!("the LoRA {}, `{stem}`", file.path())))?;
            if let Some(difference) = difference.weight {
                add(weight, &difference);
            }
            if let (Some(bias), Some(difference)) = (&mut bias, difference.bias) {
                add(bias, &difference);
            }
        }
        Ok(())
    }

    /// Whether a module of a component is changed.
    pub(crate) fn is_changed(&self, component: &str, module: &str) -> bool {
        !self.of(component, module).is_empty()
    }

    fn of(&self, component: &str, module: &str) -> &[Use] {
        self.changes.get(&(component.to_owned(), module.to_owned())).map_or(&[], Vec::as_slice)
    }
}
