//! Pictures and masks as the networks read them, and what is put back behind the VAE: diffusers' `VaeImageProcessor`
//! for pictures of Pillow, bit by bit.

use super::{image::Image, resample::lanczos};
use crate::error::{Error, Result};

impl Image {
    /// The picture in another size, by Pillow's Lanczos filter; the proportions may change. A picture of the size
    /// already is not resampled.
    #[must_use]
    pub fn resized(&self, width: usize, height: usize) -> Self {
        Self { width, height, rgb: lanczos::<3>(&self.rgb, (self.width, self.height), (width, height)) }
    }

    /// The luminance of each pixel as Pillow's `convert("L")` gives it: `[height, width]`.
    pub fn luma(&self) -> Vec<u8> {
        let luma = |[r, g, b]: &[u8; 3]| {
            ((u32::from(*r) * 19595 + u32::from(*g) * 38470 + u32::from(*b) * 7471 + 0x8000) >> 16) as u8
        };
        self.rgb.as_chunks().0.iter().map(luma).collect()
    }

    /// The pixels from -1 (black) to 1, for the encoder of a VAE: `[height, width, 3]`.
    pub fn signed(&self) -> Vec<f32> {
        self.unsigned().into_iter().map(|value| 2.0 * value - 1.0).collect()
    }

    /// The pixels from 0 (black) to 1, for a ControlNet: `[height, width, 3]`.
    pub fn unsigned(&self) -> Vec<f32> {
        self.rgb.iter().map(|byte| f32::from(*byte) / 255.0).collect()
    }

    /// The size in which this picture is drawn over if no other is asked for: its own, rounded down to multiples of the
    /// latents' `scale`.
    ///
    /// # Errors
    /// If the picture is smaller than one of the latents.
    pub fn drawn_size(&self, scale: usize) -> Result<(usize, usize)> {
        let down = |pixels: usize| pixels - pixels % scale;
        match (down(self.width), down(self.height)) {
            (0, _) | (_, 0) => Err(Error::input(format!("the picture has to have at least {scale}x{scale} pixels"))
                .found(format!("{}x{}", self.width, self.height))),
            size => Ok(size),
        }
    }
}

/// What inpainting draws anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Whether each pixel is drawn anew: `[height, width]`.
    pub repainted: Vec<bool>,
}

impl Mask {
    /// The mask of a picture, resampled to `width` and `height`: pixels whose luminance is at least a half (128 of 255)
    /// are drawn anew.
    pub fn new(picture: &Image, width: usize, height: usize) -> Self {
        let luma = picture.resized(width, height).luma();
        Self { width, height, repainted: luma.iter().map(|value| *value >= 128).collect() }
    }

    /// The mask in the size of the latents, 1 where they are drawn anew: `[height / scale, width / scale]`. Each value
    /// is that of the upper left pixel of its cell (`interpolate` of torch, mode `nearest`).
    pub fn latents(&self, scale: usize) -> Vec<f32> {
        let rows = self.repainted.chunks_exact(self.width).step_by(scale).take(self.height / scale);
        let cells = rows.flat_map(|row| row.iter().step_by(scale).take(self.width / scale));
        cells.map(|repainted| if *repainted { 1.0 } else { 0.0 }).collect()
    }

    /// The picture without what is drawn anew, for inpainting models: `pixels` from -1 to 1, `[height, width, 3]`, of
    /// which the repainted ones become 0.
    pub fn masked(&self, pixels: &[f32]) -> Vec<f32> {
        assert_eq!(pixels.len(), 3 * self.repainted.len(), "picture and mask have one size");
        let (pixels, _) = pixels.as_chunks::<3>();
        let kept = pixels.iter().zip(&self.repainted);
        kept.flat_map(|(pixel, repainted)| if *repainted { [0.0; 3] } else { *pixel }).collect()
    }
}

/// Fails unless a mask has the size of its picture: another one is probably another picture's.
pub fn check_mask_size(mask: &Image, picture: &Image) -> Result<()> {
    if (mask.width, mask.height) == (picture.width, picture.height) {
        return Ok(());
    }
    Err(Error::input("the mask has another size than the picture")
        .found(format!("{}x{}", mask.width, mask.height))
        .hint(format!("{}x{}", picture.width, picture.height)))
}

/// Lays the pixels of `original` over the `drawn` picture where the mask is black, and mixes both where it is grey:
/// diffusers' `apply_overlay`. All have one size.
pub fn overlay(original: &Image, mask: &Image, drawn: &Image) -> Image {
    let mut base = drawn.clone();
    assert_eq!((base.width, base.height), (original.width, original.height), "both are one picture");
    assert_eq!((mask.width, mask.height), (original.width, original.height), "the mask is one of this picture");
    let divide_by_255 = |value: u32| ((value >> 8) + value) >> 8;
    let pixels = base.rgb.as_chunks_mut::<3>().0.iter_mut();
    for ((pixel, kept), luma) in pixels.zip(original.rgb.as_chunks::<3>().0).zip(mask.luma()) {
        let alpha = u32::from(255 - luma);
        if alpha == 0 {
            continue;
        }
        for (value, kept) in pixel.iter_mut().zip(kept) {
            // Pillow multiplies with alpha and divides by it again, each time rounding to 8 bits.
            let premultiplied = divide_by_255(u32::from(*kept) * alpha + 0x80);
            let kept = if alpha == 255 { premultiplied } else { (255 * premultiplied / alpha).min(255) };
            // Its composition has 7 bits more.
            let sum = kept * alpha * 128 + u32::from(*value) * (255 * 128 - alpha * 128);
            *value = (divide_by_255(sum + (0x80 << 7)) >> 7) as u8;
        }
    }
    base
}

#[cfg(test)]
mod tests {
    use super::{
        super::resample::tests::{computed, golden, pair, sha256},
        *,
    };

    fn picture((width, height): (usize, usize), seed: u32) -> Image {
        Image { width, height, rgb: computed(width * height * 3, seed) }
    }

    /// A grey mask with a white and a noisy part, as the script makes it.
    fn mask((width, height): (usize, usize)) -> Image {
        let noise = computed(width * height, 6);
        let value = |at: usize| match (at % width, at / width) {
            (x, _) if !(width / 4..width / 2).contains(&x) => 0,
            (_, y) if (height / 3..height / 2).contains(&y) => 255,
            (_, y) if (height / 2..height * 2 / 3).contains(&y) => noise[at],
            _ => 0,
        };
        Image { width, height, rgb: (0..width * height).flat_map(|at| [value(at); 3]).collect() }
    }

    fn digest(values: &[f32]) -> String {
        sha256(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    #[test]
    fn pictures_and_masks_are_what_diffusers_makes_of_them() {
        for row in golden()["preprocessed"].as_array().unwrap() {
            let (size, to) = (pair(&row["size"]), pair(&row["to"]));
            let (original, mask) = (picture(size, 7), mask(size));
            if size.0 - size.0 % 8 == to.0 {
                assert_eq!(original.drawn_size(8).unwrap(), to);
            }
            let resized = original.resized(to.0, to.1);
            assert_eq!(row["pixels"], digest(&resized.signed()), "{row}");
            assert_eq!(row["control"], digest(&resized.unsigned()), "{row}");
            let mask = Mask::new(&mask, to.0, to.1);
            assert_eq!(row["mask"], sha256(&mask.repainted.iter().map(|v| u8::from(*v)).collect::<Vec<_>>()), "{row}");
            let latents = mask.latents(8);
            assert_eq!(row["repainted_latents"], latents.iter().sum::<f32>() as u64);
            assert_eq!(row["latents"], digest(&latents), "{row}");
            assert_eq!(row["masked"], digest(&mask.masked(&resized.signed())), "{row}");
        }
        assert_eq!(golden()["luma"], sha256(&picture((64, 64), 12).luma()));
    }

    #[test]
    fn a_mask_is_white_from_128_on_and_a_cell_is_its_upper_left_pixel() {
        let grey = |values: &[u8]| Image { width: 8, height: 8, rgb: values.iter().flat_map(|v| [*v; 3]).collect() };
        let mut values = [127; 64];
        assert_eq!(Mask::new(&grey(&values), 8, 8).latents(8), [0.0]);
        values[0] = 128;
        assert_eq!(Mask::new(&grey(&values), 8, 8).latents(8), [1.0]);
        values[0] = 0;
        values[1..].fill(255);
        assert_eq!(Mask::new(&grey(&values), 8, 8).latents(8), [0.0]);
    }

    #[test]
    fn what_a_mask_keeps_is_pasted_back_as_in_diffusers() {
        for row in golden()["pasted"].as_array().unwrap() {
            let size = pair(&row["size"]);
            let pasted = overlay(&picture(size, 8), &mask(size), &picture(size, 11));
            assert_eq!(row["over"], sha256(&pasted.rgb), "{row}");
        }
    }

    #[test]
    fn pictures_and_masks_that_cannot_be_used_are_rejected() {
        let (small, wide) = (picture((7, 100), 1), picture((16, 8), 1));
        for (error, says) in [
            (small.drawn_size(8).unwrap_err(), "at least 8x8 pixels\n  found: 7x100"),
            (
                check_mask_size(&small, &wide).unwrap_err(),
                "another size than the picture\n  found: 7x100\n  try:   16x8",
            ),
        ] {
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says), "{error}");
        }
        check_mask_size(&wide, &wide).unwrap();
    }
}
