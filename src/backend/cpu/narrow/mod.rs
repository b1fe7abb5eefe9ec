//! Products of narrow elements, four int8 or two bf16 in a word of 32 bits: matrix products and convolutions whose
//! weights and inputs are both converted.
//!
//! An op first converts its input, row by row ([`rows`]), and then multiplies words. In int8, each row, or pixel, has
//! a scale and a zero point of its own, and each output channel has a scale: the sums over one tap of a window are exact
//! integers, and they are added to an f32 sum after each tap. Integer sums do not depend on the instructions, and the
//! few f32 steps are the same everywhere, so an int8 product has the same bits on every [`Unit`].

mod amx;
pub mod attention;
mod dot;
pub mod pack;
pub mod product;
pub mod rows;
pub mod segments;
pub mod unit;
mod vectors;
