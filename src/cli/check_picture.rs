//! The small picture of `sdshard devices --check`, and its comparison with the reference's picture.
//!
//! Bits differ between kinds of devices, so the stored reference is a property that they share: the mean colours of
//! blocks, in which roundings average out and errors do not. They were computed with diffusers and torch
//! (`tests/reference/check_picture.py`), so the CPU is checked like all other devices.

use std::sync::Arc;

use sdshard::{
    backend::{DeviceId, DeviceInfo, Precision},
    device_map::{DTypes, DeviceMap},
    engine::Engine,
    error::{Error, Result},
    models::spec::ModelSpec,
    pipeline::{Model, request::Request},
    planner::{Largest, plan::Plan},
};

/// Mean colours as `rrggbb`, with a row of blocks in each line.
const REFERENCE: &str = include_str!("check_picture.txt");
/// Width and height of the picture in pixels.
const SIZE: usize = 64;
/// Width and height of a block in pixels.
const BLOCK: usize = 8;

/// The request of the picture, which is the same in the script.
fn request(spec: &ModelSpec) -> Request {
    let defaults = Request::new("a red apple", spec);
    Request { seed: 0, steps: 2, guidance_scale: 2.0, width: SIZE, height: SIZE, ..defaults }
}

/// The picture that one device draws in a type: 8-bit RGB.
pub fn draw(model: &Arc<Model>, id: DeviceId, dtype: Precision, devices: &[DeviceInfo]) -> Result<Vec<u8>> {
    let request = request(&model.spec);
    let dtype = DTypes { default: Some(dtype).into(), ..DTypes::default() };
    let map = DeviceMap { devices: vec![id.into()], dtype, ..DeviceMap::default() };
    let largest = Largest::of([&request], &model.spec)?.expect("there is a request");
    let plan = Plan::resolve(&map, &model.spec, &largest, devices)?;
    let picture = Engine::load(model.clone(), &plan)?.submit(request)?.wait()?;
    Ok(picture.image.expect("the request asks for a picture").rgb)
}

/// The largest accepted difference of a mean colour in a type, in steps of 255: a few times the observed effect of
/// roundings.
fn bound(dtype: Precision) -> f64 {
    match dtype {
        Precision::F32 => 0.6,
        Precision::F16 => 2.0,
        Precision::BF16 => 8.0,
        // Twice what was seen on a CPU.
        Precision::Int8 => 12.5,
    }
}

/// Whether a picture agrees with the reference's, as far as the type allows.
pub fn beside_the_reference(rgb: &[u8], dtype: Precision) -> Result<String> {
    let want = colours(REFERENCE).expect("the file is as the script wrote it");
    let got = means(rgb);
    let most = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f64::max);
    let what = format!("blocks off by {most:.2} of {} steps of 255 from the reference's", bound(dtype));
    // Not `most > bound`, because a NaN must fail.
    if got.len() == want.len() && most <= bound(dtype) { Ok(what) } else { Err(Error::process(what)) }
}

/// The mean red, green and blue of each block.
fn means(rgb: &[u8]) -> Vec<f64> {
    let mut sums = vec![0.0; 3 * (SIZE / BLOCK) * (SIZE / BLOCK)];
    for (i, pixel) in rgb.chunks_exact(3).enumerate() {
        let block = i / SIZE / BLOCK * (SIZE / BLOCK) + i % SIZE / BLOCK;
        for (sum, value) in sums[3 * block..].iter_mut().zip(pixel) {
            *sum += f64::from(*value);
        }
    }
    sums.iter().map(|sum| sum / (BLOCK * BLOCK) as f64).collect()
}

/// Reads a file of colours; `None` if it is invalid.
fn colours(text: &str) -> Option<Vec<f64>> {
    let words = text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace);
    let mut values = Vec::new();
    for word in words {
        for at in [0, 2, 4] {
            values.push(f64::from(u8::from_str_radix(word.get(at..at + 2)?, 16).ok()?));
        }
    }
    (values.len() == 3 * (SIZE / BLOCK) * (SIZE / BLOCK)).then_some(values)
}

#[cfg(all(test, feature = "builtin-model"))]
mod tests {
    use sdshard::backend;

    use super::*;

    fn picture(dtype: Precision) -> Vec<u8> {
        let model = Arc::new(crate::cli::model::built_in_alone().unwrap());
        draw(&model, DeviceId::CPU, dtype, &backend::visible()).unwrap()
    }

    #[test]
    fn the_cpu_draws_the_references_picture_and_other_pictures_are_not_it() {
        for dtype in Precision::ALL {
            println!("{dtype}: {}", beside_the_reference(&picture(dtype), dtype).unwrap());
        }
        let right = picture(Precision::F32);
        let mut swapped = right.clone();
        swapped.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
        let mut mirrored = right.clone();
        mirrored.chunks_exact_mut(3 * SIZE).for_each(|row| row.reverse());
        let mut moved = right.clone();
        moved.rotate_right(3 * 2);
        let mut one_block = right.clone();
        let block = |x: usize, y: usize| x / BLOCK == 3 && y / BLOCK == 4;
        for (i, pixel) in one_block.chunks_exact_mut(3).enumerate().filter(|(i, _)| block(i % SIZE, i / SIZE)) {
            pixel[i % 3] = 0;
        }
        let wrong = [swapped, mirrored, moved, one_block, vec![0; right.len()], right[..right.len() / 2].to_vec()];
        for dtype in Precision::ALL {
            let step = bound(dtype) as u8 + 1;
            let darker: Vec<u8> = right.iter().map(|value| value.saturating_sub(step)).collect();
            for (i, wrong) in wrong.iter().chain([&darker]).enumerate() {
                assert!(beside_the_reference(wrong, dtype).is_err(), "wrong picture {i} passes in {dtype}");
            }
        }
    }

    #[test]
    fn a_reference_that_is_off_would_be_seen() {
        let got = means(&picture(Precision::F32));
        let want = colours(REFERENCE).unwrap();
        assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 0.6), "stored is what is drawn");
        let cut: String = REFERENCE.lines().take(9).map(|line| format!("{line}\n")).collect();
        assert_eq!(colours(&cut), None);
        assert_eq!(colours(&REFERENCE.replace("ff", "zz")), None);
        // With flat colours, the comparison would miss many errors.
        let (least, most) = want.iter().fold((255.0f64, 0.0f64), |(least, most), v| (least.min(*v), most.max(*v)));
        assert!(most - least > 100.0, "the picture has contrast");
    }
}
