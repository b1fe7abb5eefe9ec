//! Large pictures through an autoencoder in overlapping tiles, one after the other, so that a device needs memory for
//! one tile only. Tiles do not know of each other, so the picture is another one than without them.
//!
//! Matches `tiled_decode` and `tiled_encode` of diffusers' `AutoencoderKL`, and those of `AutoencoderTiny`.

use crate::{error::Result, tensor::Shape};

/// The tiles of an encoder or decoder. Its input is what it reads: pixels for an encoder, latents for a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiles {
    /// Height and width of a tile of the input.
    pub size: usize,
    /// From the beginning of a tile of the input to that of the next one.
    pub stride: usize,
    /// Over how many rows or columns of the output two tiles are mixed.
    pub blend: usize,
    /// How much larger or smaller the output is.
    pub scale: Scale,
    /// How tiles are joined.
    pub seams: Seams,
}

/// The size of an output, compared with its input, along each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// So many times as large: a decoder.
    Up(usize),
    /// Divided by this number: an encoder.
    Down(usize),
}

/// How neighbouring tiles are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seams {
    /// The beginning of a tile is mixed with the ends of the tiles above and to the left, and only as much of a tile is
    /// used as the next one leaves. An input that is not larger than a tile is not divided: `AutoencoderKL`.
    Mixed,
    /// A tile is laid over those before it, and fades in from above and from the left. Every input is divided, even one
    /// as large as a tile, since tiles begin wherever there is input: `AutoencoderTiny`.
    Laid,
}

/// Values `[height, width, channels]`.
struct Map {
    values: Vec<f32>,
    height: usize,
    width: usize,
    channels: usize,
}

impl Map {
    /// The values of one row, from column `x` on.
    fn row(&self, y: usize, x: usize) -> &[f32] {
        &self.values[(y * self.width + x) * self.channels..(y + 1) * self.width * self.channels]
    }

    fn row_mut(&mut self, y: usize, x: usize) -> &mut [f32] {
        &mut self.values[(y * self.width + x) * self.channels..(y + 1) * self.width * self.channels]
    }

    /// The part that begins at this row and column, of at most `size` rows and columns.
    fn part(&self, y: usize, x: usize, size: usize) -> Self {
        let (height, width) = (size.min(self.height - y), size.min(self.width - x));
        let values = (y..y + height).flat_map(|y| &self.row(y, x)[..width * self.channels]).copied().collect();
        Self { values, height, width, ..*self }
    }

    /// Mixes the first rows with the last ones of the tile above.
    fn mix_rows(&mut self, above: &Self, blend: usize) {
        let extent = blend.min(above.height).min(self.height);
        for y in 0..extent {
            let weight = y as f64 / extent as f64;
            mix(self.row_mut(y, 0), above.row(above.height - extent + y, 0), weight);
        }
    }

    /// Mixes the first columns with the last ones of the tile on the left.
    fn mix_columns(&mut self, left: &Self, blend: usize) {
        let (extent, channels) = (blend.min(left.width).min(self.width), self.channels);
        for y in 0..self.height {
            let last = left.row(y, left.width - extent);
            for x in 0..extent {
                let at = x * channels..(x + 1) * channels;
                mix(&mut self.row_mut(y, 0)[at.clone()], &last[at], x as f64 / extent as f64);
            }
        }
    }

    /// Lays the tile at this row and column. It fades in over `blend` rows and columns that it shares with others.
    fn lay(&mut self, tile: &Self, y: usize, x: usize, blend: usize) {
        let ramp = |k: usize| (k as f32 / (blend - 1) as f32).min(1.0);
        for i in 0..tile.height {
            let down = if y == 0 { 1.0 } else { ramp(i) };
            let cells =
                self.row_mut(y + i, x).chunks_exact_mut(tile.channels).zip(tile.row(i, 0).chunks(tile.channels));
            for (j, (below, above)) in cells.enumerate() {
                let weight = down * if x == 0 { 1.0 } else { ramp(j) };
                below.iter_mut().zip(above).for_each(|(below, above)| {
                    *below = weight * above + (1.0 - weight) * *below;
                });
            }
        }
    }
}

/// `values * weight + others * (1 - weight)`.
fn mix(values: &mut [f32], others: &[f32], weight: f64) {
    let (own, other) = (weight as f32, (1.0 - weight) as f32);
    values.iter_mut().zip(others).for_each(|(value, before)| *value = before * other + *value * own);
}

impl Tiles {
    fn output(&self, input: usize) -> usize {
        match self.scale {
            Scale::Up(scale) => input * scale,
            Scale::Down(scale) => input / scale,
        }
    }

    /// Whether tiles fit together without a gap or a rest, which the reference does not check.
    pub fn fit(&self) -> bool {
        let is_whole = match self.scale {
            Scale::Up(_) => true,
            Scale::Down(scale) => self.stride.is_multiple_of(scale),
        };
        self.stride > 0 && is_whole && self.output(self.stride) + self.blend == self.output(self.size) && self.blend > 1
    }

    /// The output for `values`, whose `shape` is `[1, height, width, channels]`; `work` gives that of a tile.
    ///
    /// # Errors
    /// If `work` fails.
    pub fn run(
        &self,
        shape: Shape,
        values: &[f32],
        mut work: impl FnMut(Shape, &[f32]) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let &[_, height, width, channels] = shape.dims() else { unreachable!("pictures and latents have four sizes") };
        if self.seams == Seams::Mixed && height <= self.size && width <= self.size {
            return work(shape, values);
        }
        let input = Map { values: values.to_vec(), height, width, channels };
        let mut out: Option<Map> = None;
        let mut above: Vec<Map> = Vec::new();
        for y in (0..height).step_by(self.stride) {
            let mut row: Vec<Map> = Vec::new();
            for (column, x) in (0..width).step_by(self.stride).enumerate() {
                let part = input.part(y, x, self.size);
                let values = work(Shape::from([1, part.height, part.width, channels]), &part.values)?;
                let (height, width) = (self.output(part.height), self.output(part.width));
                let channels = values.len() / (height * width);
                let mut tile = Map { values, height, width, channels };
                let (rows, columns) = (self.output(input.height), self.output(input.width));
                let empty =
                    || Map { values: vec![0.0; rows * columns * channels], height: rows, width: columns, channels };
                let out = out.get_or_insert_with(empty);
                let (y, x) = (self.output(y), self.output(x));
                if self.seams == Seams::Laid {
                    out.lay(&tile, y, x, self.blend);
                    continue;
                }
                if let Some(above) = above.get(column) {
                    tile.mix_rows(above, self.blend);
                }
                if let Some(left) = row.last() {
                    tile.mix_columns(left, self.blend);
                }
                // A tile is as large as the next one leaves, or ends with the output.
                let kept = self.output(self.stride);
                for i in 0..kept.min(tile.height) {
                    let from = &tile.row(i, 0)[..kept.min(tile.width) * channels];
                    out.row_mut(y + i, x)[..from.len()].copy_from_slice(from);
                }
                row.push(tile);
            }
            above = row;
        }
        Ok(out.map_or(Vec::new(), |out| out.values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILES: Tiles = Tiles { size: 8, stride: 6, blend: 16, scale: Scale::Up(8), seams: Seams::Mixed };

    #[test]
    fn tiles_that_agree_give_what_the_whole_gives() {
        // A decoder that repeats each value, and an encoder that takes the first of each block.
        let up = |scale: usize| {
            move |shape: Shape, values: &[f32]| {
                let (height, width) = (shape.dims()[1], shape.dims()[2]);
                let at = |i: usize| values[i / (width * scale) / scale * width + i % (width * scale) / scale];
                Ok((0..height * width * scale * scale).map(at).collect())
            }
        };
        let down = |shape: Shape, values: &[f32]| {
            let (height, width) = (shape.dims()[1], shape.dims()[2]);
            Ok((0..height / 8 * (width / 8))
                .map(|i| values[i / (width / 8) * 8 * width + i % (width / 8) * 8])
                .collect())
        };
        // The weights of two tiles add up to 1 but for their rounding.
        let rounded = |values: Result<Vec<f32>>| -> Vec<f32> { values.unwrap().into_iter().map(f32::round).collect() };
        let laid = Tiles { size: 16, stride: 14, seams: Seams::Laid, ..TILES };
        for tiles in [TILES, laid] {
            assert!(tiles.fit());
            for (height, width) in [(8, 8), (9, 8), (13, 21), (6, 7), (1, 12), (1, 1), (30, 29)] {
                let shape = Shape::from([1, height, width, 1]);
                let values: Vec<f32> = (0..height * width).map(|i| (i * 7 % 64) as f32).collect();
                let (want, mut count) = (up(8)(shape, &values).unwrap(), 0);
                let counted = |shape, values: &[f32]| {
                    count += 1;
                    up(8)(shape, values)
                };
                assert!(rounded(tiles.run(shape, &values, counted)) == want, "{height} {width}");
                let whole = tiles.seams == Seams::Mixed && height <= 8 && width <= 8;
                let per_side = |size: usize| size.div_ceil(tiles.stride);
                assert_eq!(count, if whole { 1 } else { per_side(height) * per_side(width) });

                let back = Tiles {
                    size: 8 * tiles.size,
                    stride: 8 * tiles.stride,
                    blend: tiles.size - tiles.stride,
                    scale: Scale::Down(8),
                    ..tiles
                };
                assert!(back.fit());
                let shape = Shape::from([1, 8 * height, 8 * width, 1]);
                assert!(rounded(back.run(shape, &want, down)) == values, "{height} {width}");
            }
        }
    }

    #[test]
    fn tiles_that_would_leave_a_gap_are_known() {
        assert!(!Tiles { stride: 7, ..TILES }.fit());
        assert!(!Tiles { size: 1, stride: 0, blend: 8, ..TILES }.fit());
    }

    #[test]
    fn a_seam_goes_from_one_tile_to_the_next() {
        // Every tile is a constant: its number.
        let mut number = 0.0;
        let work = |shape: Shape, _: &[f32]| {
            number += 1.0;
            Ok(vec![number; shape.dims()[1] * shape.dims()[2] * 64])
        };
        let out = TILES.run(Shape::from([1, 8, 12, 1]), &[0.0; 96], work).unwrap();
        // 1 and 2 above, 3 and 4 below: 12 latents are two tiles of 48 pixels, 8 are two of 48 and 16.
        let at = |y: usize, x: usize| out[y * 96 + x];
        assert_eq!((at(0, 47), at(0, 48), at(0, 56), at(0, 64)), (1.0, 1.0, 1.5, 2.0));
        assert_eq!((at(47, 0), at(48, 0), at(56, 0), at(63, 0)), (1.0, 1.0, 2.0, 1.0 * 0.0625 + 3.0 * 0.9375));
        assert_eq!(out.len(), 64 * 96);
    }
}
