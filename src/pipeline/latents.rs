//! Latents as files: safetensors with one tensor named `latent`, f32 `[1, channels, height, width]`.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::metadata::{Metadata, SDSHARD};
use crate::{
    error::{Error, Result},
    input,
    weights::Fnv,
};

/// What the files end in.
pub const EXTENSION: &str = "safetensors";
/// The tensor.
const NAME: &str = "latent";
/// The most that a header with one tensor and one request may take.
const MAX_HEADER: u64 = 1 << 20;

/// What is denoised, for one picture: `[channels, height, width]` in that order.
#[derive(Debug, Clone, PartialEq)]
pub struct Latents {
    /// Channels.
    pub channels: usize,
    /// Latents, not pixels.
    pub height: usize,
    /// Latents, not pixels.
    pub width: usize,
    /// `channels * height * width` values.
    pub values: Vec<f32>,
}

impl Latents {
    /// A safetensors file, with its metadata as JSON in the header.
    pub fn encode(&self, metadata: &Metadata) -> Result<Vec<u8>> {
        let refuse = |error| Error::request("encoding the latents").source(error);
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = vec![1, self.channels, self.height, self.width];
        let tensor = TensorView::new(Dtype::F32, shape, &bytes).map_err(refuse)?;
        let header = HashMap::from([(SDSHARD.to_string(), metadata.json())]);
        safetensors::serialize([(NAME, tensor)], Some(header)).map_err(refuse)
    }

    /// Sixteen hexadecimal digits over shape and values, to tell one starting noise from another (FNV-1a).
    pub fn digest(&self) -> String {
        let mut hash = Fnv::new();
        [self.channels, self.height, self.width].iter().for_each(|n| hash.write(&(*n as u64).to_le_bytes()));
        self.values.iter().for_each(|value| hash.write(&value.to_le_bytes()));
        format!("{:016x}", hash.0)
    }

    /// Reads such a file. Every value has to be finite.
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

/// An entry of the header's metadata; `None` if there is none, or no such header.
pub(super) fn read_text(file: File, key: &str) -> Option<String> {
    let mut file = BufReader::new(file);
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return None;
    }
    let header: serde_json::Value = serde_json::from_reader(file.take(length)).ok()?;
    Some(header.get("__metadata__")?.get(key)?.as_str()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::{self, Durability},
        pipeline::metadata::tests::metadata,
    };

    #[test]
    fn latents_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let latents = Latents { channels: 2, height: 1, width: 3, values: vec![0.0, -1.5, 3e38, 1e-40, 5.0, 6.0] };
        output::write(&path, &latents.encode(&metadata()).unwrap(), Durability::Buffered).unwrap();
        assert_eq!(Latents::read(&path).unwrap(), latents);
    }

    #[test]
    fn what_is_no_latent_is_refused() {
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
