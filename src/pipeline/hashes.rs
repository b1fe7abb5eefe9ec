//! Names and hashes of the files that draw pictures, in the forms in which web UIs show them.

use std::path::Path;

use crate::{
    error::Result,
    models::spec::ModelSpec,
    weights::{self, ModelFiles},
};

/// The name of a file, and the beginning of its hash.
pub type Named = (String, String);

/// What draws a model's pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// [`Model::identity`](super::model::Model::identity).
    pub model: String,
    /// Another VAE than the model's, with the extension of its file: ten digits.
    pub vae: Option<Named>,
    /// The LoRAs in order: twelve digits of [`weights::content_hash`].
    pub loras: Vec<Named>,
    /// The textual inversions in order, by the token that was asked for or the name of the file: twelve digits.
    pub embeddings: Vec<Named>,
    /// The ControlNets in order: [`weights::old_hash`].
    pub controlnets: Vec<Named>,
}

/// A kind of file, each with its form of hash.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Vae,
    Lora,
    Embedding,
    ControlNet,
}

impl Kind {
    fn digits(self) -> usize {
        match self {
            Self::Vae => 10,
            Self::Lora | Self::Embedding => 12,
            Self::ControlNet => 8,
        }
    }

    fn hash(self, path: &Path) -> Result<String> {
        let mut hash = match self {
            Self::Vae | Self::Embedding => weights::file_hash(path)?,
            Self::Lora => weights::content_hash(path)?,
            Self::ControlNet => weights::old_hash(path)?,
        };
        hash.truncate(self.digits());
        Ok(hash)
    }
}

impl Hashes {
    /// The names and hashes of the `files` of a model whose identity is `model`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read(model: String, files: &ModelFiles, spec: &ModelSpec) -> Result<Self> {
        Self::with(model, files, spec, Kind::hash)
    }

    /// As [`Hashes::read`], with zeros for all digits: how long the texts are with these names, without reading a file.
    pub fn unread(files: &ModelFiles, spec: &ModelSpec) -> Self {
        Self::with("0".repeat(10), files, spec, |kind, _| Ok("0".repeat(kind.digits()))).expect("no file is read")
    }

    fn with(
        model: String,
        files: &ModelFiles,
        spec: &ModelSpec,
        hash: impl Fn(Kind, &Path) -> Result<String>,
    ) -> Result<Self> {
        let named = |kind, name: String, path: &Path| Ok((name, hash(kind, path)?));
        let vae = files.own_weights("vae").map(|path| named(Kind::Vae, name(path, true), path)).transpose()?;
        let loras = files.loras().0.iter().map(|lora| named(Kind::Lora, lora.name(), &lora.path));
        let embeddings = files.embeddings().iter().map(|choice| {
            let token = choice.token.clone().unwrap_or_else(|| name(&choice.path, false));
            named(Kind::Embedding, token, &choice.path)
        });
        let controlnets = spec.controlnets().filter_map(|id| files.own_weights(&spec.components[id].folder));
        let controlnets = controlnets.map(|path| named(Kind::ControlNet, name(path, false), path));
        let (loras, embeddings) = (loras.collect::<Result<_>>()?, embeddings.collect::<Result<_>>()?);
        Ok(Self { model, vae, loras, embeddings, controlnets: controlnets.collect::<Result<_>>()? })
    }
}

/// The name of a file, or of the folder of a component of diffusers, where all files have one name.
fn name(path: &Path, with_extension: bool) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let folder = path.parent().and_then(Path::file_name);
    match folder.filter(|_| stem.starts_with("diffusion_pytorch_model")) {
        Some(folder) => folder.to_string_lossy().into_owned(),
        None if with_extension => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        None => stem.into_owned(),
    }
}
