//! Images of 8-bit pixels, and PNG files.

use super::metadata::{Metadata, PARAMETERS, SDSHARD};
use crate::error::{Error, Result};

/// A picture with 8 bits each for red, green and blue, row by row from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl Image {
    /// Converts the output of the VAE: `[height, width, 3]`, where -1 is black and 1 is full. Values beyond are
    /// clamped; fails if a value is not finite, because a damaged picture must not look like a good one.
    pub fn from_f32(width: usize, height: usize, values: &[f32]) -> Result<Self> {
        assert_eq!(values.len(), width * height * 3, "the VAE makes [height, width, 3]");
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let (x, y) = (at / 3 % width, at / 3 / width);
            return Err(Error::request(format!("the VAE made {} at pixel {x}, {y}", values[at]))
                .hint("dtype = \"f32\" for the VAE, or another checkpoint"));
        }
        // The order of operations and the rounding are those of diffusers and numpy.
        let byte = |v: &f32| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        Ok(Self { width, height, rgb: values.iter().map(byte).collect() })
    }

    /// Encodes a PNG file, with the metadata in text chunks before the image data.
    pub fn encode_png(&self, metadata: &Metadata) -> Result<Vec<u8>> {
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

fn refuse(error: png::EncodingError) -> Error {
    Error::request("encoding the picture as PNG").source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::metadata::tests::metadata;

    #[test]
    fn values_are_clamped_and_halves_round_to_even() {
        // 0.0 is byte 127.5 and 0.9333333 is 246.5, both exactly.
        for (value, byte) in [(-1.0, 0), (1.0, 255), (-7.0, 0), (7.0, 255), (0.0, 128), (0.9333333, 246), (0.5, 191)] {
            assert_eq!(Image::from_f32(1, 1, &[value; 3]).unwrap().rgb, [byte; 3], "{value}");
        }
        // Every byte is the result for the middle of its interval.
        for byte in 0..=255_u8 {
            let value = f32::from(byte) / 127.5 - 1.0;
            assert_eq!(Image::from_f32(1, 1, &[value; 3]).unwrap().rgb, [byte; 3]);
        }
    }

    #[test]
    fn values_that_are_not_finite_are_rejected_as_pixels() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [0.0; 2 * 2 * 3];
            values[10] = bad;
            let error = Image::from_f32(2, 2, &values).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains("at pixel 1, 1"), "{error}");
        }
    }

    #[test]
    fn a_png_has_the_pixels_and_its_text_comes_first() {
        let image = Image { width: 3, height: 2, rgb: (0..18).collect() };
        for prompt in ["a fox", "café au lait", "un renard 🦊\nnuit"] {
            let mut metadata = metadata();
            metadata.request.prompt = Some(prompt.into());
            let bytes = image.encode_png(&metadata).unwrap();

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
}
