//! Images of 8-bit pixels.

use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Result},
    weights::hex,
};

/// The format of a picture's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PictureFormat {
    /// PNG, with the metadata in text chunks.
    #[default]
    Png,
    /// JPEG with quality 95 and colours in full resolution, with the metadata in EXIF data.
    Jpeg,
    /// Lossless WebP, with the metadata in EXIF data.
    WebP,
}

impl PictureFormat {
    /// The extension of its files.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::WebP => "webp",
        }
    }

    /// The format of files with this extension.
    pub fn of_extension(extension: &str) -> Option<Self> {
        let extension = extension.to_ascii_lowercase();
        let named = |format: &Self| extension == format.extension() || (*format == Self::Jpeg && extension == "jpeg");
        [Self::Png, Self::Jpeg, Self::WebP].into_iter().find(named)
    }
}

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

    /// The SHA-256 of size and pixels, which identifies a picture that is read: 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        [self.width, self.height].iter().for_each(|side| hash.update((*side as u64).to_le_bytes()));
        hash.update(&self.rgb);
        hex(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
