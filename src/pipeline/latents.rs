//! Latents as files: safetensors with one tensor named `latent`, f32 `[1, channels, height, width]`.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::{
    error::{Error, Result},
    input,
    weights::Fnv,
};

/// The extension of the files.
pub const EXTENSION: &str = "safetensors";
/// The name of the tensor.
pub(super) const NAME: &str = "latent";

/// The latents of one picture: `[channels, height, width]` in that order.
#[derive(Debug, Clone, PartialEq)]
pub struct Latents {
    /// Number of channels.
    pub channels: usize,
    /// Height in latents, not pixels.
    pub height: usize,
    /// Width in latents, not pixels.
    pub width: usize,
    /// `channels * height * width` values.
    pub values: Vec<f32>,
}

impl Latents {
    /// A hash of shape and values, to distinguish starting noises: sixteen hexadecimal digits (FNV-1a).
    pub fn digest(&self) -> String {
        let mut hash = Fnv::new();
        [self.channels, self.height, self.width].iter().for_each(|n| hash.write(&(*n as u64).to_le_bytes()));
        self.values.iter().for_each(|value| hash.write(&value.to_le_bytes()));
        format!("{:016x}", hash.0)
    }

    /// Reads a file of latents. Every value must be finite.
    pub fn read(path: &Path) -> Result<Self> {
        let doing = || format!("reading the latents in {}", path.display());
        let wanted = "one tensor named `latent`, f32 [1, channels, height, width], as `--output-type latent` writes";
        let bytes = input::read(path).map_err(|e| Error::input(doing()).source(e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::input(doing()).source(e).hint(wanted))?;
        let tensor = file.tensor(NAME).map_err(|e| Error::input(doing()).source(e).hint(wanted))?;
        let (Dtype::F32, &[1, channels, height, width]) = (tensor.dtype(), tensor.shape()) else {
            return Err(Error::input(format!("{}: not in the right form", doing()))
                .found(format!("{:?} {:?}", tensor.dtype(), tensor.shape()))
                .hint(wanted));
        };
        let (chunks, _) = tensor.data().as_chunks();
        let values: Vec<f32> = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(Self { channels, height, width, values }),
            Some(at) => Err(Error::input(format!("{}: value {at} is {}", doing(), values[at]))),
        }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn files_that_are_not_latents_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let file = |name: &str, dtype, shape: &[usize], bytes: &[u8]| {
            let tensor = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
            safetensors::serialize([(name, tensor)], None).unwrap()
        };
        for (bytes, says) in [
            (b"no".to_vec(), "one tensor named `latent`"),
            (file("latents", Dtype::F32, &[1, 1, 1, 1], &[0; 4]), "one tensor named `latent`"),
            (file("latent", Dtype::F16, &[1, 1, 1, 1], &[0; 2]), "found: F16 [1, 1, 1, 1]"),
            (file("latent", Dtype::F32, &[2, 1, 1, 1], &[0; 8]), "found: F32 [2, 1, 1, 1]"),
            (file("latent", Dtype::F32, &[1, 1, 1, 1], &f32::NAN.to_le_bytes()), "value 0 is NaN"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Latents::read(&path).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says), "wanted: {says}\n{error}");
        }
    }
}
