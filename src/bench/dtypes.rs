//! Compares pictures in several data types with those in f32: their pixels, and their latents behind every step.

use std::sync::Arc;

use serde::Serialize;

use super::{device_in, median};
use crate::{
    backend::{self, DeviceId, Precision},
    device_map::{DTypes, DeviceMap, Strategy},
    engine::{Engine, Event},
    error::Result,
    pipeline::{Model, Picture, Progress, request::Request},
    planner::{Largest, plan::Plan},
};

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The product name of the device.
    pub machine: String,
    /// The number of pictures in each type.
    pub pictures: usize,
    /// The types, in the order that was asked for.
    pub types: Vec<Figures>,
}

/// The differences between pictures in one type and those in f32.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// The type.
    pub dtype: Precision,
    /// The numerics class of the device in this type.
    pub class: String,
    /// The least [`psnr`] of a picture, in dB; `null` in JSON if it is infinite, because all pixels are equal.
    pub least_psnr_db: f64,
    /// The median of the pictures' [`psnr`], in dB.
    pub median_psnr_db: f64,
    /// The picture with the least.
    pub worst: Worst,
    /// The error of the latents behind each call of the denoiser.
    pub latents: Vec<LatentError>,
}

/// The picture that differs most from the one in f32.
#[derive(Debug, Clone, Serialize)]
pub struct Worst {
    /// The prompt.
    pub prompt: String,
    /// The seed.
    pub seed: u64,
    /// The picture.
    #[serde(skip)]
    pub picture: Picture,
    /// The same in f32.
    #[serde(skip)]
    pub reference: Picture,
}

/// The relative error of latents `a`, for those in f32 `b`: `|a - b| / |b|`, where `| |` is the root of the sum of
/// squares.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LatentError {
    /// The median over all pictures.
    pub median: f64,
    /// The greatest of all pictures.
    pub greatest: f64,
}

/// What is known of one picture.
struct Drawn {
    picture: Picture,
    /// Behind each call of the denoiser.
    latents: Vec<Arc<[f32]>>,
}

impl Drawn {
    /// The bytes of its image; none if only the latents were asked for.
    fn pixels(&self) -> &[u8] {
        self.picture.image.as_ref().map_or(&[], |image| &image.rgb)
    }
}

/// Draws all requests on a device in f32, then in each of the types. All pictures in f32 and in one other type are in
/// memory at a time, with their latents of all steps. `on_picture` is called with the type and the number of pictures
/// that are done in it.
///
/// # Errors
/// If the device does not exist or has no arithmetic in a type, or a picture cannot be drawn in it.
///
/// # Panics
/// If there is no request.
pub fn dtypes(
    model: &Arc<Model>,
    device: DeviceId,
    types: &[Precision],
    requests: &[Request],
    mut on_picture: impl FnMut(Precision, usize),
) -> Result<Report> {
    let machine = device_in(device, Some(Precision::F32))?.name;
    let infos = types.iter().map(|dtype| device_in(device, Some(*dtype))).collect::<Result<Vec<_>>>()?;
    let mut draw = |dtype: Precision| {
        let drawn = draw(model, device, dtype, requests, |done| on_picture(dtype, done));
        drawn.map_err(|error| error.context(dtype.name()))
    };
    let reference = draw(Precision::F32)?;
    let compare = |(dtype, info): (&Precision, &backend::DeviceInfo)| {
        Ok(figures(*dtype, info.class.to_string(), &draw(*dtype)?, &reference))
    };
    let figures = types.iter().zip(&infos).map(compare).collect::<Result<_>>()?;
    Ok(Report { machine, pictures: requests.len(), types: figures })
}

fn draw(
    model: &Arc<Model>,
    device: DeviceId,
    dtype: Precision,
    requests: &[Request],
    mut on_picture: impl FnMut(usize),
) -> Result<Vec<Drawn>> {
    let map = DeviceMap {
        devices: vec![device.into()],
        dtype: DTypes { default: Some(dtype).into(), ..DTypes::default() },
        ..DeviceMap::from_strategy(Strategy::Throughput)
    };
    let largest = Largest::of(requests, &model.spec)?.expect("there is a request");
    let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible())?;
    let engine = Engine::load(model.clone(), &plan)?;
    let (mut latents, mut pictures) = (vec![Vec::new(); requests.len()], vec![None; requests.len()]);
    let mut done_pictures = 0;
    let with_latents = requests.iter().map(|request| Request { step_latents: true, ..request.clone() });
    engine.generate(with_latents, |index, event| {
        match event {
            Event::Progress(Progress::Step { done, latents: Some(values), .. }) => {
                // A request that is tried again begins with its first step.
                latents[index].truncate(done - 1);
                latents[index].push(values);
            }
            Event::Done(picture) => {
                pictures[index] = Some(picture?);
                done_pictures += 1;
                on_picture(done_pictures);
            }
            _ => {}
        }
        Ok(())
    })?;
    let drawn = pictures.into_iter().zip(latents);
    Ok(drawn.map(|(picture, latents)| Drawn { picture: picture.expect("every request is done"), latents }).collect())
}

fn figures(dtype: Precision, class: String, drawn: &[Drawn], reference: &[Drawn]) -> Figures {
    let pairs = || drawn.iter().zip(reference);
    let mut psnrs: Vec<f64> = pairs().map(|(own, of_f32)| psnr(own.pixels(), of_f32.pixels())).collect();
    let worst = (0..psnrs.len()).min_by(|a, b| psnrs[*a].total_cmp(&psnrs[*b])).expect("there is a picture");
    let (picture, reference) = (drawn[worst].picture.clone(), reference[worst].picture.clone());
    let calls = drawn.iter().map(|drawn| drawn.latents.len()).max().unwrap_or_default();
    let error = |call: usize| {
        let both = pairs().filter_map(|(own, of_f32)| Some((own.latents.get(call)?, of_f32.latents.get(call)?)));
        let mut errors: Vec<f64> = both.map(|(own, of_f32)| relative_error(own, of_f32)).collect();
        errors.sort_by(f64::total_cmp);
        LatentError { median: median(&errors), greatest: errors[errors.len() - 1] }
    };
    let latents = (0..calls).map(error).collect();
    psnrs.sort_by(f64::total_cmp);
    Figures {
        dtype,
        class,
        least_psnr_db: psnrs[0],
        median_psnr_db: median(&psnrs),
        worst: Worst { prompt: picture.request.prompt.clone(), seed: picture.request.seed, picture, reference },
        latents,
    }
}

/// The peak signal-to-noise ratio of two pictures of one size, in dB: the square of 255 by the mean square of the
/// difference of their bytes. Infinite if they are equal.
///
/// # Panics
/// If they have not equally many bytes.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len(), "pictures of one size are compared");
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (255.0_f64.powi(2) * a.len() as f64 / squares).log10()
}

/// A [`psnr`] as text.
pub fn decibels(psnr: f64) -> String {
    if psnr.is_finite() { format!("{psnr:.1} dB") } else { "equal".to_owned() }
}

/// See [`LatentError`].
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let root = |squares: f64| squares.sqrt();
    let difference = root(a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum());
    let size = root(b.iter().map(|b| f64::from(*b).powi(2)).sum());
    if difference == 0.0 { 0.0 } else { difference / size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_to_noise_ratio_is_that_of_bytes() {
        assert_eq!(psnr(&[0, 10], &[0, 10]), f64::INFINITY);
        assert!(psnr(&[0, 0], &[255, 255]).abs() < 1e-9);
        // One of four bytes differs by 51, a fifth of 255: the ratio is 4 * 25.
        assert!((psnr(&[0, 100, 7, 9], &[51, 100, 7, 9]) - 20.0).abs() < 1e-9);
        assert!(psnr(&[100; 4], &[104; 4]) < 40.0);
    }

    #[test]
    fn the_error_of_latents_is_relative_to_their_size() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative_error(&[0.0; 2], &[0.0; 2]), 0.0);
        assert!((relative_error(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        assert_eq!(relative_error(&[1.0], &[0.0]), f64::INFINITY);
    }
}
