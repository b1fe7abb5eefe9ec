//! Latents and pictures as files with their metadata: written, read and checked.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Cursor, Read},
    path::Path,
};

use safetensors::{Dtype, tensor::TensorView};

use super::{
    container,
    encode::with_exif,
    exif,
    latents::{self, Latents},
    metadata::{Metadata, SDSHARD},
};
use crate::{
    error::{Error, Result},
    input,
};

/// The largest header of a file with one tensor and one request, in bytes.
const MAX_HEADER: u64 = 1 << 20;

impl Latents {
    /// Encodes the latents as a safetensors file, with the metadata as JSON in the header.
    pub fn encode(&self, metadata: &Metadata) -> Result<Vec<u8>> {
        let refuse = |error| Error::request("encoding the latents").source(error);
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = vec![1, self.channels, self.height, self.width];
        let tensor = TensorView::new(Dtype::F32, shape, &bytes).map_err(refuse)?;
        let header = HashMap::from([(SDSHARD.to_string(), metadata.json())]);
        safetensors::serialize([(latents::NAME, tensor)], Some(header)).map_err(refuse)
    }
}

impl Metadata {
    /// Reads the metadata of a PNG, JPEG, WebP or latent file. `None` if there is none, if its form is not one that this
    /// version writes, or if this is not a regular file. Fails only if the file cannot be opened.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let refuse = |e| Error::input(format!("reading {}", path.display())).source(e);
        if !fs::metadata(path).map_err(refuse)?.is_file() {
            return Ok(None);
        }
        let file = input::open(path).map_err(refuse)?;
        let json = if is_latents(path) { header_text(file, SDSHARD) } else { picture_text(BufReader::new(file)) };
        Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// Whether a PNG, JPEG, WebP or latent file has this metadata and is complete and undamaged. The whole file is
    /// read: the checksum of each chunk of a PNG and its image data; the SHA-256 of a JPEG or WebP; the header, the
    /// size and the values of latents. Fails only if the file cannot be read.
    pub fn is_whole(&self, path: &Path) -> Result<bool> {
        if is_latents(path) {
            return Ok(Self::read(path)?.as_ref() == Some(self) && Latents::read(path).is_ok());
        }
        let refuse = |e| Error::input(format!("reading {}", path.display())).source(e);
        let is_file = fs::metadata(path).map_err(refuse)?.is_file();
        if !is_file {
            return Ok(false);
        }
        let bytes = input::read(path).map_err(refuse)?;
        Ok(if bytes.starts_with(container::PNG) { self.is_whole_png(&bytes) } else { self.is_whole_with_exif(&bytes) })
    }

    /// Whether a file has this metadata, except for the hash of the model.
    pub fn is_of_changed_model(&self, path: &Path) -> bool {
        let said = Self::read(path).ok().flatten();
        said.is_some_and(|said| {
            said.model_hash != self.model_hash && Self { model_hash: self.model_hash.clone(), ..said } == *self
        })
    }

    fn is_whole_png(&self, bytes: &[u8]) -> bool {
        let mut options = png::DecodeOptions::default();
        options.set_ignore_checksums(false);
        options.set_skip_ancillary_crc_failures(false);
        let read = || {
            let mut reader = png::Decoder::new_with_options(Cursor::new(bytes), options).read_info().ok()?;
            let info = reader.info();
            let said: Self = serde_json::from_str(&png_text(info)?).ok()?;
            let size = (Some(info.width as usize), Some(info.height as usize));
            if said != *self || size != (self.request.width, self.request.height) {
                return None; // checked before memory is allocated for the claimed size
            }
            let mut pixels = vec![0; reader.output_buffer_size()?];
            reader.next_frame(&mut pixels).ok()?;
            reader.finish().ok()
        };
        bytes.ends_with(&PNG_END) && read().is_some()
    }

    /// Whether a JPEG or WebP file is what is written of its pixels with this metadata, which has their hash.
    fn is_whole_with_exif(&self, bytes: &[u8]) -> bool {
        let again = || {
            let found = container::find_exif(&mut Cursor::new(bytes))?;
            with_exif(&container::without_exif(bytes, &found.place)?, self).ok()
        };
        again().is_some_and(|again| again == bytes)
    }
}

/// Whether a file of this name holds latents rather than pixels.
fn is_latents(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == latents::EXTENSION)
}

/// The last chunk of every PNG: no bytes, `IEND`, and their checksum.
const PNG_END: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";

/// The JSON of [`Metadata`] in a PNG, JPEG or WebP file.
fn picture_text(mut file: BufReader<File>) -> Option<String> {
    if !file.fill_buf().ok()?.starts_with(container::PNG) {
        return exif::read(&container::find_exif(&mut file)?.exif).json;
    }
    png_text(png::Decoder::new(file).read_info().ok()?.info())
}

/// The text chunk with [`Metadata`], which comes before the image data.
fn png_text(info: &png::Info) -> Option<String> {
    let latin1 = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == SDSHARD);
    let utf8 = || info.utf8_text.iter().find(|chunk| chunk.keyword == SDSHARD)?.get_text().ok();
    latin1.map(|chunk| chunk.text.clone()).or_else(utf8)
}

/// An entry of the header's metadata; `None` if there is no such entry, or no valid header.
fn header_text(file: File, key: &str) -> Option<String> {
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
        pipeline::{Image, PictureFormat, metadata::tests::metadata},
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
    fn files_contain_the_request_that_they_were_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image { width: 1, height: 1, rgb: vec![1, 2, 3] };
        let latents = Latents { channels: 1, height: 1, width: 1, values: vec![0.5] };
        let mut other = Metadata { latents: Some("ab".into()), ..metadata() };
        other.request.prompt = Some("ünï \0 🦊 \"quoted\"\n".into());
        other.request.guidance_scale = Some(0.1);
        for metadata in [metadata(), other] {
            let png = folder.path().join("a.png");
            output::write(&png, &image.encode(PictureFormat::Png, &metadata).unwrap(), Durability::Buffered).unwrap();
            assert_eq!(Metadata::read(&png).unwrap(), Some(metadata.clone()));

            for format in [PictureFormat::Jpeg, PictureFormat::WebP] {
                let path = folder.path().join("b").with_extension(format.extension());
                output::write(&path, &image.encode(format, &metadata).unwrap(), Durability::Buffered).unwrap();
                assert_eq!(Metadata::read(&path).unwrap(), Some(metadata.clone()));
            }

            let latent = folder.path().join("a.safetensors");
            output::write(&latent, &latents.encode(&metadata).unwrap(), Durability::Buffered).unwrap();
            assert_eq!(Metadata::read(&latent).unwrap(), Some(metadata));
        }
    }

    #[test]
    fn damage_anywhere_in_a_picture_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let mut said = metadata();
        (said.request.width, said.request.height) = (Some(16), Some(16));
        let mut other = said.clone();
        other.request.seed = Some(1);
        let is_whole = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            said.is_whole(&path).unwrap()
        };
        let rgb = (0..16 * 16 * 3).map(|i| (i * i % 251) as u8).collect();
        let image = Image { width: 16, height: 16, rgb };
        for format in [PictureFormat::Png, PictureFormat::Jpeg, PictureFormat::WebP] {
            let bytes = image.encode(format, &said).unwrap();
            assert!(is_whole(&bytes), "{format:?}");
            assert!(!other.is_whole(&path).unwrap(), "{format:?}: whole, but another picture");
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x10;
                assert!(!is_whole(&damaged), "{format:?}: byte {at} of {}", bytes.len());
            }
            for length in 0..bytes.len() {
                assert!(!is_whole(&bytes[..length]), "{format:?}: {length} of {} bytes", bytes.len());
            }
            assert!(!is_whole(&[&bytes[..], b"more"].concat()));
            // A piece in the middle is missing, or is zero, as after a power failure.
            let (a, b) = (bytes.len() / 2, bytes.len() / 2 + 40);
            assert!(!is_whole(&[&bytes[..a], &bytes[b..]].concat()));
            assert!(!is_whole(&[&bytes[..a], &[0; 40], &bytes[b..]].concat()));
        }
    }

    #[test]
    fn latents_that_are_cut_off_or_too_long_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let is_whole = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            metadata().is_whole(&path).unwrap()
        };
        let latents = Latents { channels: 1, height: 2, width: 2, values: vec![0.5; 4] };
        let bytes = latents.encode(&metadata()).unwrap();
        assert!(is_whole(&bytes));
        for length in 0..bytes.len() {
            assert!(!is_whole(&bytes[..length]), "{length} of {} bytes", bytes.len());
        }
        assert!(!is_whole(&[&bytes[..], b"more"].concat()));
    }

    #[cfg(unix)]
    #[test]
    fn files_that_are_not_regular_have_no_metadata_and_are_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("a.png");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        for path in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(Metadata::read(path).unwrap(), None, "{}", path.display());
            assert!(!metadata().is_whole(path).unwrap(), "{}", path.display());
        }
    }

    #[test]
    fn other_files_have_no_metadata() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "a.safetensors"] {
            let path = folder.path().join(name);
            assert_eq!(Metadata::read(&path).unwrap_err().exit_code(), 2);
            for bytes in
                [&b""[..], b"\x89PNG\r\n\x1a\n", b"\x02\0\0\0\0\0\0\0{}", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"]
            {
                std::fs::write(&path, bytes).unwrap();
                assert_eq!(Metadata::read(&path).unwrap(), None, "{name} {bytes:?}");
            }
        }
        let mut json: serde_json::Value = serde_json::from_str(&metadata().json()).unwrap();
        json["of_tomorrow"] = 1.into();
        assert!(serde_json::from_value::<Metadata>(json).is_err(), "an unknown field is a difference");
    }
}
