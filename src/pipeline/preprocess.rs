//! Pictures and masks as the networks read them, and what is put back behind the VAE: diffusers' `VaeImageProcessor`
//! for pictures of Pillow, bit by bit.

use super::{image::Image, resample::lanczos};
use crate::error::{Error, Result};

/// A rectangle of whole pixels in a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// The column behind the last one.
    pub right: usize,
    /// The row behind the last one.
    pub bottom: usize,
}

impl Region {
    /// The width in pixels.
    pub fn width(&self) -> usize {
        self.right - self.left
    }

    /// The height in pixels.
    pub fn height(&self) -> usize {
        self.bottom - self.top
    }
}

impl Image {
    /// The picture in another size, by Pillow's Lanczos filter; the proportions may change. A picture of the size
    /// already is not resampled.
    #[must_use]
    pub fn resized(&self, width: usize, height: usize) -> Self {
        Self { width, height, rgb: lanczos::<3>(&self.rgb, (self.width, self.height), (width, height)) }
    }

    /// A part of the picture, which must lie inside it.
    #[must_use]
    pub fn cropped(&self, region: Region) -> Self {
        let rows = self.rgb.chunks_exact(self.width * 3).take(region.bottom).skip(region.top);
        let rgb = rows.flat_map(|row| &row[region.left * 3..region.right * 3]).copied().collect();
        Self { width: region.width(), height: region.height(), rgb }
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

    /// The picture inside `width` and `height` with its proportions kept, and the bands beside it filled with the
    /// continuation of its edges: `resize_mode="fill"`.
    #[must_use]
    pub fn filled(&self, width: usize, height: usize) -> Self {
        let is_wider = width * self.height < self.width * height;
        let is_narrower = width * self.height > self.width * height;
        let inner_width = if is_wider { width } else { (self.width * height / self.height).max(1) };
        let inner_height = if is_wider { (self.height * width / self.width).max(1) } else { height };
        let inner = self.resized(inner_width, inner_height);
        let (left, top) = (width / 2 - inner_width / 2, height / 2 - inner_height / 2);
        let mut whole = Self::black(width, height);
        whole.paste(&inner, left as isize, top as isize);
        if is_wider {
            (0..top).for_each(|y| whole.paste(&inner.edge_row(0, 1), 0, y as isize));
            let (last, beside) = (inner_height - 1, inner_height.saturating_sub(2));
            let below = top + inner_height..(2 * top + inner_height).min(height);
            below.for_each(|y| whole.paste(&inner.edge_row(last, beside), 0, y as isize));
        } else if is_narrower {
            (0..left).for_each(|x| whole.paste(&inner.edge_column(0, 1), x as isize, 0));
            let (last, beside) = (inner_width - 1, inner_width.saturating_sub(2));
            let behind = left + inner_width..(2 * left + inner_width).min(width);
            behind.for_each(|x| whole.paste(&inner.edge_column(last, beside), x as isize, 0));
        }
        whole
    }

    /// The row beyond the row `at` of an edge, where `beside` is the row inside; see [`beyond`].
    fn edge_row(&self, at: usize, beside: usize) -> Self {
        let row = |y: usize| &self.rgb[y.min(self.height - 1) * self.width * 3..][..self.width * 3];
        let rgb = row(at).iter().zip(row(beside)).map(|(at, beside)| beyond(*at, *beside)).collect();
        Self { width: self.width, height: 1, rgb }
    }

    /// The same of a column.
    fn edge_column(&self, at: usize, beside: usize) -> Self {
        let rows = self.rgb.chunks_exact(self.width * 3);
        let beside = beside.min(self.width - 1);
        let rgb = rows.flat_map(|row| (0..3).map(move |c| beyond(row[3 * at + c], row[3 * beside + c]))).collect();
        Self { width: 1, height: self.height, rgb }
    }

    /// The middle of the picture, which covers `width` and `height` with its proportions kept: `resize_mode="crop"`.
    #[must_use]
    pub fn covering(&self, width: usize, height: usize) -> Self {
        let is_narrower = width * self.height > self.width * height;
        let outer_width = if is_narrower { width } else { self.width * height / self.height };
        let outer_height = if is_narrower { self.height * width / self.width } else { height };
        let outer = self.resized(outer_width.max(1), outer_height.max(1));
        let mut whole = Self::black(width, height);
        let offset = |side: usize, outer: usize| (side / 2) as isize - (outer / 2) as isize;
        whole.paste(&outer, offset(width, outer.width), offset(height, outer.height));
        whole
    }

    fn black(width: usize, height: usize) -> Self {
        Self { width, height, rgb: vec![0; width * height * 3] }
    }

    /// Copies `other` to the place whose corner is `left` and `top`; what lies outside is left out.
    fn paste(&mut self, other: &Self, left: isize, top: isize) {
        let start = left.max(0);
        let end = (left + other.width as isize).min(self.width as isize);
        let length = (end - start).max(0) as usize * 3;
        for (y, row) in other.rgb.chunks_exact(other.width * 3).enumerate() {
            let y = top + y as isize;
            if (0..self.height as isize).contains(&y) && length > 0 {
                let (from, to) = ((start - left) as usize * 3, (y as usize * self.width + start as usize) * 3);
                self.rgb[to..to + length].copy_from_slice(&row[from..from + length]);
            }
        }
    }
}

/// The value that continues an edge: Pillow's bicubic filter in a window of no size, as diffusers calls it. The filter
/// gives 1.125 times the outermost pixel less 0.125 times the one beside it, in fixed point.
fn beyond(at: u8, beside: u8) -> u8 {
    ((i32::from(at) * 9 - i32::from(beside) + 4) >> 3).clamp(0, 255) as u8
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

/// The region around what a mask repaints, `padding` pixels larger on each side and in the proportions of `width` to
/// `height` as far as the picture goes: `padding_mask_crop` of diffusers.
///
/// # Errors
/// If the mask is black.
pub fn crop_region(mask: &Image, width: usize, height: usize, padding: usize) -> Result<Region> {
    let luma = mask.luma();
    let is_black = || Error::input("the mask is black, so nothing is drawn anew").hint("white where to draw");
    let marked = luma.iter().enumerate().filter(|(_, value)| **value > 0).map(|(at, _)| at);
    let (columns, rows) = (marked.clone().map(|at| at % mask.width), marked.map(|at| at / mask.width));
    let extent = |places: &mut dyn Iterator<Item = usize>, side: usize| -> Option<[i64; 2]> {
        let first = places.next()?;
        let (least, most) = places.fold((first, first), |(least, most), at| (least.min(at), most.max(at)));
        Some([least.saturating_sub(padding) as i64, (most + 1 + padding).min(side) as i64])
    };
    let [mut left, mut right] = extent(&mut { columns }, mask.width).ok_or_else(is_black)?;
    let [mut top, mut bottom] = extent(&mut { rows }, mask.height).ok_or_else(is_black)?;
    let wanted = width as f64 / height as f64;
    let has = (right - left) as f64 / (bottom - top) as f64;
    // Grows on both sides, is moved inside where it goes beyond the picture, and cut off if it is too large for it.
    let grow = |begin: &mut i64, end: &mut i64, by: i64, side: usize| {
        let side = side as i64;
        *begin -= by / 2;
        *end += by - by / 2;
        let beyond = (*end - side).max(0);
        (*begin, *end) = (*begin - beyond, *end - beyond);
        let before = (-*begin).max(0);
        (*begin, *end) = (*begin + before, (*end + before).min(side));
    };
    if has > wanted {
        let by = ((right - left) as f64 / wanted - (bottom - top) as f64) as i64;
        grow(&mut top, &mut bottom, by, mask.height);
    } else {
        let by = ((bottom - top) as f64 * wanted - (right - left) as f64) as i64;
        grow(&mut left, &mut right, by, mask.width);
    }
    Ok(Region { left: left as usize, top: top as usize, right: right as usize, bottom: bottom as usize })
}

/// Lays the pixels of `original` over the `drawn` picture where the mask is black, and mixes both where it is grey:
/// diffusers' `apply_overlay`. `drawn` has the size of `original`, or is a picture of its `region`.
pub fn overlay(original: &Image, mask: &Image, drawn: &Image, region: Option<Region>) -> Image {
    let mut base = match region {
        None => drawn.clone(),
        Some(region) => {
            let mut base = Image::black(original.width, original.height);
            let drawn = drawn.covering(region.width(), region.height());
            base.paste(&drawn, region.left as isize, region.top as isize);
            base
        }
    };
    assert_eq!((base.width, base.height), (original.width, original.height), "a whole picture, or a region of it");
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
    use serde_json::Value;

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

    fn region(value: &Value) -> Region {
        let [left, top, right, bottom] = [0, 1, 2, 3].map(|i| value[i].as_u64().unwrap() as usize);
        Region { left, top, right, bottom }
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
    fn a_part_of_a_picture_is_resampled_as_in_pillow() {
        let golden = golden();
        let row = golden["resized"].as_array().unwrap().iter().find(|row| !row["crop"].is_null()).unwrap();
        let part = picture(pair(&row["size"]), 5).cropped(region(&row["crop"]));
        assert_eq!(row["sha256"], sha256(&part.resized(97, 131).rgb));
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
    fn regions_are_cut_filled_and_pasted_as_in_diffusers() {
        for row in golden()["pasted"].as_array().unwrap() {
            let (size, to) = (pair(&row["size"]), pair(&row["to"]));
            let (original, mask) = (picture(size, 8), mask(size));
            let found = crop_region(&mask, to.0, to.1, row["padding"].as_u64().unwrap() as usize).unwrap();
            assert_eq!(found, region(&row["region"]), "{row}");
            assert_eq!(row["filled"], sha256(&original.cropped(found).filled(to.0, to.1).rgb), "{row}");
            assert_eq!(row["pasted"], sha256(&overlay(&original, &mask, &picture(to, 10), Some(found)).rgb), "{row}");
            assert_eq!(row["over"], sha256(&overlay(&original, &mask, &picture(size, 11), None).rgb), "{row}");
        }
    }

    #[test]
    fn pictures_and_masks_that_cannot_be_used_are_rejected() {
        let (small, wide) = (picture((7, 100), 1), picture((16, 8), 1));
        let black = Image { rgb: vec![0; wide.rgb.len()], ..wide.clone() };
        for (error, says) in [
            (small.drawn_size(8).unwrap_err(), "at least 8x8 pixels\n  found: 7x100"),
            (
                check_mask_size(&small, &wide).unwrap_err(),
                "another size than the picture\n  found: 7x100\n  try:   16x8",
            ),
            (crop_region(&black, 8, 8, 0).unwrap_err(), "the mask is black"),
        ] {
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says), "{error}");
        }
        check_mask_size(&black, &wide).unwrap();
    }
}
