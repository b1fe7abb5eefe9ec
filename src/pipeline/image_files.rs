//! The pictures that the options of requests name by their files.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::image::Image;
use crate::error::{Error, Result};

/// Pictures by their files. Each file is read once, and requests share its pixels.
#[derive(Debug, Default)]
pub struct ImageFiles(HashMap<PathBuf, Arc<Image>>);

impl ImageFiles {
    /// Reads all these files.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn read<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<Self> {
        let mut files = HashMap::new();
        for path in paths {
            if let Entry::Vacant(new) = files.entry(path.clone()) {
                new.insert(Arc::new(Image::read(path)?));
            }
        }
        Ok(Self(files))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The picture of a file.
    ///
    /// # Errors
    /// If the file was not read.
    pub fn get(&self, path: &Path) -> Result<Arc<Image>> {
        let unread = || Error::input(format!("the picture {} was not read", path.display())).hint("ImageFiles::read");
        self.0.get(path).cloned().ok_or_else(unread)
    }
}
