//! A picture as PNG, JPEG or WebP: read, resampled and taken for a mask, or refused; and the settings in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sdshard::pipeline::{
    Image, Settings,
    preprocess::{Mask, overlay},
};
use sdshard_fuzz::refused;

/// Few enough pixels for the limits of a run.
const MAX_PIXELS: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = Settings::of_file(bytes) {
        refused(&error);
    }
    let image = match Image::decode(bytes, MAX_PIXELS) {
        Ok(image) => image,
        Err(error) => return refused(&error),
    };
    assert_eq!(image.rgb.len(), image.width * image.height * 3);
    if image.width * image.height > 1 << 12 {
        return;
    }
    let mask = Mask::new(&image, 24, 16);
    assert_eq!(mask.latents(8).len(), 6);
    assert_eq!(mask.masked(&image.resized(24, 16).signed()).len(), 24 * 16 * 3);
    overlay(&image, &image, &image);
});
