//! Pictures as PNG, JPEG and WebP files with their metadata.

use image::{
    ExtendedColorType, ImageEncoder, ImageError,
    codecs::{jpeg::JpegEncoder, webp::WebPEncoder},
};
use sha2::{Digest, Sha256};

use super::{
    container, exif,
    image::{Image, PictureFormat},
    metadata::{Metadata, PARAMETERS, SDSHARD},
};
use crate::{
    error::{Error, Result},
    weights::hex,
};

/// The quality of JPEG files, from 1 to 100. Web UIs have 80 by default, and Pillow 75; ours are made to be kept.
const JPEG_QUALITY: u8 = 95;

impl Image {
    /// Encodes a file with its metadata. Equal pixels and metadata give equal bytes.
    ///
    /// # Errors
    /// If the picture is too large for the format, or for JPEG, if its texts are (see
    /// [`Metadata::check_fits`](Metadata::check_fits)).
    pub fn encode(&self, format: PictureFormat, metadata: &Metadata) -> Result<Vec<u8>> {
        let side = |pixels: usize| {
            u32::try_from(pixels).map_err(|_| Error::request(format!("the picture is too large for {format:?}")))
        };
        let (width, height, colours) = (side(self.width)?, side(self.height)?, ExtendedColorType::Rgb8);
        let refuse = |error: ImageError| Error::request(format!("encoding the picture as {format:?}")).source(error);
        let mut plain = Vec::new();
        match format {
            PictureFormat::Png => return self.encode_png(metadata),
            PictureFormat::Jpeg => {
                JpegEncoder::new_with_quality(&mut plain, JPEG_QUALITY).write_image(&self.rgb, width, height, colours)
            }
            PictureFormat::WebP => WebPEncoder::new_lossless(&mut plain).write_image(&self.rgb, width, height, colours),
        }
        .map_err(refuse)?;
        with_exif(&plain, metadata)
    }

    /// Encodes a PNG file, with the metadata in text chunks before the image data.
    fn encode_png(&self, metadata: &Metadata) -> Result<Vec<u8>> {
        let size =
            |pixels: usize| u32::try_from(pixels).map_err(|_| Error::request("the picture is too large for PNG"));
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, size(self.width)?, size(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, text) in [(PARAMETERS, metadata.parameters()), (SDSHARD, metadata.json())] {
            // A tEXt chunk is Latin-1, and every program can read it; iTXt is UTF-8.
            if text.chars().all(|c| u32::from(c) < 256) {
                encoder.add_text_chunk(keyword.into(), text)
            } else {
                encoder.add_itxt_chunk(keyword.into(), text)
            }
            .map_err(refuse)?;
        }
        let mut writer = encoder.write_header().map_err(refuse)?;
        writer.write_image_data(&self.rgb).map_err(refuse)?;
        writer.finish().map_err(refuse)?;
        Ok(bytes)
    }
}

/// Puts the metadata into a JPEG or WebP file without any. The EXIF data also identify the rest of the file, so that
/// damage is found ([`Metadata::is_whole`]).
pub(super) fn with_exif(plain: &[u8], metadata: &Metadata) -> Result<Vec<u8>> {
    let exif = exif_of(metadata, &hex(Sha256::new_with_prefix(plain))[..exif::ID_DIGITS]);
    if container::is_webp(plain) {
        return container::webp_with_exif(plain, &exif)
            .ok_or_else(|| Error::request("encoding the picture as WebP: this is no lossless file"));
    }
    metadata.check_fits(PictureFormat::Jpeg)?;
    Ok(container::jpeg_with_exif(plain, &exif))
}

fn exif_of(metadata: &Metadata, id: &str) -> Vec<u8> {
    exif::encode(&metadata.parameters(), &metadata.json(), id)
}

impl Metadata {
    /// Checks that a file of this format can hold these texts: a JPEG has 65,527 bytes for them, in which each
    /// character of the prompts takes three or more.
    ///
    /// # Errors
    /// If they are too long.
    pub fn check_fits(&self, format: PictureFormat) -> Result<()> {
        let bytes = exif_of(self, &"0".repeat(exif::ID_DIGITS)).len();
        if format != PictureFormat::Jpeg || bytes <= container::MAX_JPEG_EXIF {
            return Ok(());
        }
        let most = container::MAX_JPEG_EXIF;
        Err(Error::input(format!("the prompts are too long for the metadata of a JPEG file: {most} bytes fit"))
            .found(format!("{bytes} bytes"))
            .hint("--output-type png or webp"))
    }
}

fn refuse(error: png::EncodingError) -> Error {
    Error::request("encoding the picture as PNG").source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::metadata::tests::metadata;

    #[test]
    fn a_png_has_the_pixels_and_its_text_comes_first() {
        let image = Image { width: 3, height: 2, rgb: (0..18).collect() };
        for prompt in ["a fox", "café au lait", "un renard 🦊\nnuit"] {
            let mut metadata = metadata();
            metadata.request.prompt = Some(prompt.into());
            let bytes = image.encode(PictureFormat::Png, &metadata).unwrap();

            // The reader stops at the image data, so that all chunks it has read come before the data.
            let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
            let info = reader.info();
            let is_utf8 = !prompt.chars().all(|c| u32::from(c) < 256);
            let texts: Vec<String> = if is_utf8 {
                info.utf8_text.iter().map(|chunk| chunk.get_text().unwrap()).collect()
            } else {
                info.uncompressed_latin1_text.iter().map(|chunk| chunk.text.clone()).collect()
            };
            assert_eq!(texts, [metadata.parameters(), metadata.json()], "{prompt}");

            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut pixels).unwrap();
            assert_eq!(pixels, image.rgb);
        }
    }

    #[test]
    fn files_of_every_format_have_the_pixels_and_the_metadata() {
        // A ramp, of which JPEG changes little.
        let rgb: Vec<u8> = (0..16 * 24).flat_map(|at| [(at % 24 * 10) as u8, (at / 24 * 15) as u8, 128]).collect();
        let image = Image { width: 24, height: 16, rgb };
        for (format, extension, tolerance) in
            [(PictureFormat::Png, "png", 0), (PictureFormat::Jpeg, "jpg", 6), (PictureFormat::WebP, "webp", 0)]
        {
            let bytes = image.encode(format, &metadata()).unwrap();
            assert_eq!(bytes, image.encode(format, &metadata()).unwrap(), "{format:?}");
            let read = Image::decode(&bytes, 1 << 20).unwrap();
            assert_eq!((read.width, read.height), (24, 16));
            let most = read.rgb.iter().zip(&image.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(most <= tolerance, "{format:?}: {most}");
            assert_eq!(format.extension(), extension);
            assert_eq!(PictureFormat::of_extension(&extension.to_uppercase()), Some(format));
        }
        assert_eq!(PictureFormat::of_extension("JPEG"), Some(PictureFormat::Jpeg));
        assert_eq!(PictureFormat::of_extension("gif"), None);
    }

    #[test]
    fn prompts_that_are_too_long_for_a_jpeg_are_rejected() {
        let image = Image { width: 1, height: 1, rgb: vec![0; 3] };
        let mut long = metadata();
        // Two bytes of each character in the comment and one in the JSON.
        long.request.prompt = Some("x".repeat(21_500));
        image.encode(PictureFormat::Jpeg, &long).unwrap();
        long.request.prompt = Some("x".repeat(21_900));
        let error = image.encode(PictureFormat::Jpeg, &long).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("too long for the metadata of a JPEG"), "{error}");
        let webp = image.encode(PictureFormat::WebP, &long).unwrap();
        assert_eq!(Image::decode(&webp, 1).unwrap(), image);
    }
}
