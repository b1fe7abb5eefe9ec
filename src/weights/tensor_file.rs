//! A safetensors file by itself: an embedding or a LoRA, which is no part of a model.

use std::path::Path;

use super::{files::Stored, loaded::Loaded, safetensors::File};
use crate::error::{Error, Result};

/// A file of tensors that are read one by one.
#[derive(Debug)]
pub struct TensorFile(File);

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// If it cannot be opened, is a pickle file, which is never read, or is no safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        File::of(Stored::open(path, name.clone())?, name).map(Self)
    }

    /// The file's name in messages.
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// The names and shapes of the tensors, in their order in the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &[usize])> {
        self.0.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()))
    }

    /// A text of the header's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.0.metadata.get(key).map(String::as_str)
    }

    /// The values of the tensor at this position of [`TensorFile::tensors`], row by row.
    ///
    /// # Errors
    /// If they are no floats, if one is not finite, or if the file cannot be read.
    pub fn values(&self, index: usize) -> Result<Vec<f32>> {
        let tensor = &self.0.tensors[index];
        let refuse = |what: &str| Error::input(format!("{}: `{}` {what}", self.0.path, tensor.name));
        let Some(dtype) = tensor.read_dtype() else {
            return Err(refuse("must be a float of 64 to 8 bits").found(tensor.dtype.to_string()));
        };
        let values = Loaded::Stored(tensor.values(dtype, 0, 1)).to_f32()?;
        self.0.check_unchanged()?;
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(i) => Err(refuse("has a value that is not finite").found(format!("{} at index {i}", values[i]))),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, path::PathBuf};

    use ::safetensors::Dtype;

    use super::*;

    /// The bytes of a safetensors file of F32 tensors.
    pub(crate) fn file_of(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (*name, ::safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        ::safetensors::serialize(views, None).unwrap()
    }

    /// A file in a folder that is removed at the end of the test.
    pub(crate) fn on_disk(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn values_of_every_type_are_read_as_f32() {
        let header = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
            "b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]},"c":{"dtype":"F64","shape":[1],"data_offsets":[6,14]},
            "d":{"dtype":"I32","shape":[1],"data_offsets":[14,18]},"e":{"dtype":"F16","shape":[],"data_offsets":[18,20]},
            "__metadata__":{"ss_v2":"False"}}"#;
        let mut bytes = crate::weights::safetensors::tests::file(header, 0);
        bytes.extend([0, 0x3c, 0, 0xc0, 0x80, 0x3f]);
        bytes.extend(0.1_f64.to_le_bytes());
        bytes.extend([0, 0, 0, 0, 0, 0x7c]);
        let (_folder, path) = on_disk("x.safetensors", &bytes);
        let file = TensorFile::open(&path).unwrap();
        let names: Vec<&str> = file.tensors().map(|(name, _)| name).collect();
        assert_eq!((names, file.metadata("ss_v2")), (vec!["a", "b", "c", "d", "e"], Some("False")));
        assert_eq!(file.values(0).unwrap(), [1.0, -2.0]);
        assert_eq!((file.values(1).unwrap(), file.values(2).unwrap()), (vec![1.0], vec![0.1]));
        assert!(file.values(3).unwrap_err().to_string().contains("`d` must be a float of 64 to 8 bits\n  found: I32"));
        assert!(file.values(4).unwrap_err().to_string().contains("found: inf at index 0"));
    }

    #[test]
    fn a_pickle_is_not_read_whatever_its_name_is() {
        for (bytes, says) in [
            (&b"PK\x03\x04rest"[..], "a pickle file"),
            (b"\x80\x02}q\x00.", "torch.load(.., weights_only=True)"),
            (b"\x80\x02", "a pickle file"),
            (b"", "ends before its header"),
            (b"\x89PNG\r\n\x1a\n", "reading the safetensors file"),
        ] {
            let (_folder, path) = on_disk("x.safetensors", bytes);
            let error = TensorFile::open(&path).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says) && error.to_string().contains("x.safetensors"), "{error}");
        }
        let error = TensorFile::open(Path::new("/nowhere/x.safetensors")).unwrap_err().to_string();
        assert_eq!(error, "/nowhere/x.safetensors: there is no such file");
    }
}
