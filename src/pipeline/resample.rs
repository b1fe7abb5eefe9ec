//! Resampling of 8-bit pixels exactly as Pillow does it: `Image.resize` with `LANCZOS`, which diffusers uses for
//! pictures and masks.

use std::f64::consts::PI;

/// The bits behind the point of a weight: a sum of products with 8-bit values fits in 32 bits with room to spare.
const PRECISION: u32 = 32 - 8 - 2;
/// The Lanczos filter has three lobes on each side.
const LOBES: f64 = 3.0;

/// Resamples `from`, `[height, width, CHANNELS]`, to `[to.1, to.0, CHANNELS]`. Sizes are width and height. A picture
/// that has the size already is copied.
///
/// Each pass rounds to 8 bits, so their order matters. Until version 12, Pillow resampled rows first. Since version 13
/// it begins with the columns if these lose more than twice as many pixels as the rows do.
pub fn lanczos<const CHANNELS: usize>(from: &[u8], size: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    assert_eq!(from.len(), size.0 * size.1 * CHANNELS, "the pixels are [height, width, channels]");
    let across = (size.0 != to.0).then(|| taps(size.0, to.0));
    let down = (size.1 != to.1).then(|| taps(size.1, to.1));
    let rows = |pixels: Vec<u8>| match &across {
        Some(taps) => resample_rows::<CHANNELS>(&pixels, size.0, taps),
        None => pixels,
    };
    let columns = |pixels: Vec<u8>, width: usize| match &down {
        Some(taps) => resample_columns::<CHANNELS>(&pixels, width, taps),
        None => pixels,
    };
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let columns_first = lost(size.1, to.1) > (2 * lost(size.0, to.0)).max(0);
    if columns_first { rows(columns(from.to_vec(), size.0)) } else { columns(rows(from.to_vec()), to.0) }
}

fn resample_rows<const CHANNELS: usize>(pixels: &[u8], width: usize, taps: &[Taps]) -> Vec<u8> {
    let rows = pixels.chunks_exact(width * CHANNELS);
    rows.flat_map(|row| taps.iter().flat_map(|tap| tap.sum::<CHANNELS>(row, CHANNELS))).collect()
}

fn resample_columns<const CHANNELS: usize>(pixels: &[u8], width: usize, taps: &[Taps]) -> Vec<u8> {
    let row = |tap: &Taps| -> Vec<u8> {
        (0..width).flat_map(|x| tap.sum::<CHANNELS>(&pixels[x * CHANNELS..], width * CHANNELS)).collect()
    };
    taps.iter().flat_map(row).collect()
}

/// The weights of one result along one axis: the first pixel that it reads, and a weight for each.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    /// The weighted sum of pixels that are `stride` bytes apart.
    fn sum<const CHANNELS: usize>(&self, pixels: &[u8], stride: usize) -> [u8; CHANNELS] {
        let mut sums = [1 << (PRECISION - 1); CHANNELS];
        for (i, weight) in self.weights.iter().enumerate() {
            let at = (self.first + i) * stride;
            for (sum, value) in sums.iter_mut().zip(&pixels[at..at + CHANNELS]) {
                *sum += weight * i32::from(*value);
            }
        }
        sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8)
    }
}

/// The taps of each of the `to` results along an axis of `from` pixels.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = LOBES * filter_scale;
    let taps = (0..to).map(|i| {
        let centre = (i as f64 + 0.5) * scale;
        // Conversions to integers cut off, and below 0 they give 0.
        let first = (centre - support + 0.5) as usize;
        let last = ((centre + support + 0.5) as usize).min(from);
        let inverse = 1.0 / filter_scale;
        let weights: Vec<f64> = (first..last).map(|x| filter((x as f64 - centre + 0.5) * inverse)).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |weight: f64| {
            let scaled = weight / if total == 0.0 { 1.0 } else { total } * f64::from(1 << PRECISION);
            (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
        };
        Taps { first, weights: weights.into_iter().map(fixed).collect() }
    });
    taps.collect()
}

/// The Lanczos filter.
fn filter(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::weights::hex;

    /// What Pillow and diffusers make of pictures: `tests/reference/images.py`.
    pub fn golden() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/images/images.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// The bytes of a picture that the script computes, too.
    pub fn computed(count: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    pub fn pair(value: &Value) -> (usize, usize) {
        (value[0].as_u64().unwrap() as usize, value[1].as_u64().unwrap() as usize)
    }

    pub fn sha256(bytes: &[u8]) -> String {
        hex(Sha256::new_with_prefix(bytes))
    }

    #[test]
    fn pictures_are_resampled_bit_by_bit_as_in_pillow() {
        let golden = golden();
        let rows = golden["resized"].as_array().unwrap();
        assert!(rows.len() >= 24);
        for row in rows {
            let ((width, height), to) = (pair(&row["size"]), pair(&row["to"]));
            let pixels = match row["channels"].as_u64().unwrap() {
                1 => lanczos::<1>(&computed(width * height, 5), (width, height), to),
                _ => lanczos::<3>(&computed(width * height * 3, 5), (width, height), to),
            };
            assert_eq!(row["sha256"], sha256(&pixels), "{row}: {pixels:?}");
        }
    }
}
