//! The plan: which device holds what, in bytes, before a weight is read.
//!
//! The sizes are not estimates. The real model code runs on devices without data, and the arenas that it fills there
//! are those that it fills later, byte for byte.

use std::{collections::BTreeMap, fmt};

use super::{
    device_map::{DeviceMap, Strategy},
    size::format_bytes,
    strategies::{self, ComponentSize, DeviceBudget},
};
use crate::{
    backend::{DType, Device, DeviceId, DeviceInfo, DeviceKind, Keep, cpu, dry},
    error::{Error, Result},
    models::spec::ModelSpec,
    pipeline::{
        Component, PerComponent,
        model::{load_text_encoder, load_unet, load_vae},
        request::{Output, Request, Rng, Start},
        stages::{self, Denoise, Noise},
    },
    scheduler::{Schedule, SchedulerKind, schedule},
    weights::Weights,
};

/// The largest request that a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Largest {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Whether negative prompts are used: two texts instead of one.
    pub guided: bool,
    /// The solver, which decides how many past estimates are kept; `None` is the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// Steps; a run shorter than a solver's memory keeps less.
    pub steps: usize,
}

impl Largest {
    /// The largest of `requests` in each respect.
    pub fn of<'a>(requests: impl IntoIterator<Item = &'a Request>, spec: &ModelSpec) -> Result<Option<Self>> {
        let mut largest: Option<(Self, usize)> = None;
        for request in requests {
            let kept = schedule(&spec.scheduler_for(request.scheduler), request.steps)?.history();
            let one = Self {
                width: request.width,
                height: request.height,
                guided: request.guidance_scale > 1.0,
                scheduler: request.scheduler,
                steps: request.steps,
            };
            largest = Some(match largest {
                None => (one, kept),
                Some((most, most_kept)) => {
                    let (scheduler, steps) =
                        if kept > most_kept { (one.scheduler, one.steps) } else { (most.scheduler, most.steps) };
                    let size = if one.width * one.height > most.width * most.height { one } else { most };
                    (Self { guided: most.guided || one.guided, scheduler, steps, ..size }, kept.max(most_kept))
                }
            });
        }
        Ok(largest.map(|(largest, _)| largest))
    }
}

/// What one component needs and does, on one kind of device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Packed weights.
    pub weight_bytes: u64,
    /// The most that the transient arena holds during its section.
    pub activation_bytes: u64,
    /// The most that outlives its sections, for one request.
    pub keep_bytes: u64,
    /// Floating-point operations of one call: one text, one UNet call, one picture.
    pub flops: f64,
}

/// Runs the model without data and writes down what it asks for.
///
/// # Errors
/// If the request does not fit the model.
pub fn costs(spec: &ModelSpec, rules: dry::Rules, largest: &Largest) -> Result<PerComponent<Cost>> {
    // The arenas depend on the last steps only through how many estimates a solver keeps.
    let mut schedule = schedule(&spec.scheduler_for(largest.scheduler), largest.steps)?;
    schedule.steps.truncate(2 * crate::scheduler::HISTORY);
    PerComponent::try_new(|component| cost(component, spec, rules, largest, &schedule))
}

fn cost(
    component: Component,
    spec: &ModelSpec,
    rules: dry::Rules,
    largest: &Largest,
    schedule: &Schedule,
) -> Result<Cost> {
    let (device, ledger) = Device::dry(DeviceId::CPU, rules);
    let weights = Weights::shapes_only(component.name());
    let keep: Keep = device.keep(usize::MAX)?;
    let scale = spec.vae.scale();
    let (height, width) = (largest.height / scale, largest.width / scale);
    let (weight_bytes, calls) = match component {
        Component::TextEncoder => {
            let encoder = load_text_encoder(weights, &device, spec)?;
            let loaded = ledger.take();
            stages::encode(&encoder, &device, vec![0; spec.text_encoder.max_position_embeddings])?;
            (loaded.weight_bytes, 1)
        }
        Component::Unet => {
            let unet = load_unet(weights, &device, spec)?;
            let loaded = ledger.take();
            let request = Request {
                seed: 0,
                prompt: String::new(),
                negative_prompt: String::new(),
                steps: largest.steps,
                guidance_scale: if largest.guided { 2.0 } else { 1.0 },
                scheduler: largest.scheduler,
                width: largest.width,
                height: largest.height,
                rng: Rng::TorchCpu,
                start: Start::Noise,
                output: Output::Image,
            };
            let text = vec![0.0; spec.text_encoder.max_position_embeddings * spec.unet.cross_attention_dim];
            let texts = vec![text.into(); if largest.guided { 2 } else { 1 }];
            let denoise = Denoise {
                spec,
                schedule,
                guidance_scale: request.guidance_scale,
                texts: &texts,
                height,
                width,
                noise: Noise::new(&request),
            };
            let mut condition = None;
            stages::denoise(&unet, &device, &keep, denoise, |done| {
                // The text's keys and values are computed once, before the first step.
                if done == 1 {
                    condition = Some(ledger.take());
                }
                Ok(())
            })?;
            (loaded.weight_bytes, schedule.steps.len().saturating_sub(1).max(1))
        }
        Component::Vae => {
            let decoder = load_vae(weights, &device, spec)?;
            let loaded = ledger.take();
            let shape = [1, height, width, spec.vae.latent_channels];
            // Latents come from another section: outside this one's arena, as they are in a real run.
            let elsewhere = device.keep(usize::MAX)?;
            let latents = {
                let values = vec![0.0; shape.iter().product()];
                let (source, _) = Device::dry(DeviceId::CPU, rules);
                crate::tensor::Tensor::new(&source, shape, &values)?.keep(&elsewhere)?
            };
            stages::decode(&decoder, &device, &latents)?;
            (loaded.weight_bytes, 1)
        }
    };
    let work = ledger.take();
    Ok(Cost {
        weight_bytes,
        activation_bytes: device.peak_bytes() as u64,
        keep_bytes: keep.peak_bytes() as u64,
        flops: work.flops / calls as f64,
    })
}
