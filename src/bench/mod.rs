//! How fast each component is here, beside what the machine could do.

use std::time::Instant;

use serde::Serialize;

use crate::{
    backend::{self, DType, Device, DeviceId, DeviceInfo, DeviceKind, Layer, Values, cpu},
    error::Result,
    models::{
        clip::ClipTextEncoder,
        route::{Keeps, Open, Route},
        spec::ModelSpec,
        unet::{DenoiserInput, Unet, time_features},
        vae::VaeDecoder,
    },
    pipeline::{
        Component, Model, Network,
        model::{Source, load_text_encoder, load_unet, load_vae, sections},
    },
    tensor::{Fuse, Tensor},
    weights::Weights,
};

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Where.
    pub device: DeviceId,
    /// Latents: height and width.
    pub latents: (usize, usize),
    /// Texts of one encoder call and latents of one UNet call. The VAE decodes one picture.
    pub batch: usize,
    /// Calls that are counted, after one that is not.
    pub repeat: usize,
}

/// All figures.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// `batch` texts.
    pub text_encoder: Figures,
    /// One call with `batch` latents.
    pub unet: Figures,
    /// One picture.
    pub vae: Figures,
}

/// What the figures are measured against.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// What it is.
    pub name: String,
    /// The numerics class.
    pub class: String,
    /// Threads that computed; 0 on a GPU.
    pub threads: usize,
    /// Measured: the most f32 operations per second, in 10^9. Of a GPU what a product of 1024x1024x1024 reaches.
    pub peak_gflops: f64,
}

/// One component's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Median of the counted calls, in seconds.
    pub median_s: f64,
    /// The fastest, in seconds.
    pub min_s: f64,
    /// The slowest, in seconds.
    pub max_s: f64,
    /// Matrix products, convolutions and attention of one call, a multiply-add counted as two, in 10^9.
    pub gflop: f64,
    /// `gflop / median_s`.
    pub gflops: f64,
    /// The share of the machine's peak.
    pub peak_share: f64,
    /// Packed weights and arena, in bytes.
    pub peak_bytes: u64,
}

/// Loads one component after the other on the device and measures it.
///
/// # Errors
/// If the device is not here, or the model cannot be read or does not fit.
pub fn components(model: &Model, settings: &Settings) -> Result<Report> {
    let info = backend::visible().into_iter().find(|info| info.id == settings.device);
    let info = info.ok_or_else(|| backend::registry::absent(settings.device))?;
    let (threads, peak) = match settings.device.kind {
        DeviceKind::Cpu => {
            let machine = cpu::Cpu::whole()?;
            (machine.threads(), machine.measure_peak())
        }
        _ => (0, product_rate(settings.device, info.rules.dtype())?),
    };
    let machine = Machine { name: info.name.clone(), class: info.class.to_string(), threads, peak_gflops: peak / 1e9 };
    let measure = |component| measure(component, model, settings, &info, machine.peak_gflops);
    Ok(Report {
        text_encoder: measure(Component::TextEncoder)?,
        unet: measure(Component::Unet)?,
        vae: measure(Component::Vae)?,
        machine,
    })
}

fn open(id: DeviceId) -> Result<Device> {
    Ok(backend::open(&[id])?.remove(0))
}

/// Operations per second of the fastest of a few products.
fn product_rate(id: DeviceId, dtype: DType) -> Result<f64> {
    const SIZE: usize = 1024;
    let device = open(id)?;
    device.reserve(64 << 20)?;
    let values: Vec<f32> = (0..SIZE * SIZE).map(|i| (i % 7) as f32 - 3.0).collect();
    let bytes = bytemuck::cast_slice(&values);
    let layer = Layer::Linear { out: SIZE, k: SIZE };
    let weight = device.pack(layer, dtype, Values::Data { dtype: DType::F32, bytes }, None)?;
    let x = Tensor::new(&device, [SIZE, SIZE], &values)?.cast(dtype)?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let started = Instant::now();
        // Several at once, so that reading the last is little beside them.
        let products: Vec<_> = (0..4).map(|_| x.linear(&weight, &Fuse::default())).collect::<Result<_>>()?;
        finish(products.last().expect("there are four"))?;
        best = best.min(started.elapsed().as_secs_f64() / 4.0);
    }
    Ok(2.0 * (SIZE as f64).powi(3) / best)
}

/// Waits until a result is there. CPU ops have finished when they return.
fn finish(x: &Tensor) -> Result<()> {
    if x.device().id().kind != DeviceKind::Cpu {
        x.read()?;
    }
    Ok(())
}

/// What times a call.
type Timer<'a> = &'a mut dyn FnMut(&dyn Fn() -> Result<Tensor>) -> Result<()>;

/// A component, loaded, with the input of one call.
enum Call {
    TextEncoder(Network<ClipTextEncoder>),
    Unet(Network<Unet>),
    Vae(Network<VaeDecoder>),
}

impl Call {
    fn load(component: Component, weights: Weights, device: &Device, dtype: DType, spec: &ModelSpec) -> Result<Self> {
        let source = Source::resident(Route::whole(device, dtype, sections(component, spec).len()));
        Ok(match component {
            Component::TextEncoder => Self::TextEncoder(load_text_encoder(weights, spec, &source)?),
            Component::Unet => Self::Unet(load_unet(weights, spec, &source)?),
            Component::Vae => Self::Vae(load_vae(weights, spec, &source)?),
        })
    }

    /// Makes the input and calls `timed` with the call itself.
    fn run(&self, device: &Device, spec: &ModelSpec, settings: &Settings, timed: Timer) -> Result<()> {
        let (height, width) = settings.latents;
        let values = |count: usize| -> Vec<f32> { (0..count).map(|i| (i as f32 * 0.7).sin()).collect() };
        let latents = |batch: usize, channels: usize| {
            Tensor::new(device, [batch, height, width, channels], &values(batch * height * width * channels))
        };
        match self {
            Self::TextEncoder(encoder) => {
                let ids = vec![vec![1; spec.text_encoder.text_length]; settings.batch];
                timed(&|| encoder.network.forward(&ids, &encoder.walk(&Open)))
            }
            Self::Unet(unet) => {
                let (tokens, context) = (spec.text_encoder.text_length, spec.unet.cross_attention_dim);
                let keeps = Keeps::new(vec![device.keep(KEEP_BYTES)?]);
                let text = {
                    let values = values(settings.batch * tokens * context);
                    let context = Tensor::new(device, [settings.batch, tokens, context], &values)?;
                    unet.network.condition(&context, &unet.walk(&Open), &keeps)?
                };
                let latents = latents(settings.batch, spec.unet.in_channels)?;
                let features = time_features(500.0, &spec.unet);
                let time_features = Tensor::new(device, [1, features.len()], &features)?;
                let input = DenoiserInput { latents: &latents, time_features: &time_features, text: &text };
                timed(&|| unet.network.forward(&input, &unet.walk(&Open)))
            }
            Self::Vae(decoder) => {
                let latents = latents(1, spec.vae.latent_channels)?;
                timed(&|| decoder.network.decode(&latents, &decoder.walk(&Open)))
            }
        }
    }
}

/// Room for the text's keys and values; touched only as far as it is used.
const KEEP_BYTES: usize = 1 << 30;

fn measure(
    component: Component,
    model: &Model,
    settings: &Settings,
    info: &DeviceInfo,
    peak_gflops: f64,
) -> Result<Figures> {
    let (spec, dtype) = (&model.spec, info.rules.dtype());
    let (dry, ledger) = Device::dry(info.id, info.rules, info.rates);
    let planned = Call::load(component, Weights::shapes_only(component.name()), &dry, dtype, spec)?;
    let weight_bytes = ledger.take().weight_bytes;
    let mut gflop = 0.0;
    planned.run(&dry, spec, settings, &mut |call| {
        ledger.take();
        call()?;
        gflop = ledger.take().flops / 1e9;
        Ok(())
    })?;

    let device = open(info.id)?;
    device.reserve(dry.peak_bytes())?;
    let weights = Weights::open(&model.files, component.name(), model.variant.as_deref())?;
    let loaded = Call::load(component, weights, &device, dtype, spec)?;
    let mut seconds = Vec::with_capacity(settings.repeat);
    loaded.run(&device, spec, settings, &mut |call| {
        finish(&call()?)?;
        for _ in 0..settings.repeat {
            let started = Instant::now();
            finish(&call()?)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        Ok(())
    })?;
    seconds.sort_by(f64::total_cmp);
    let median_s = median(&seconds);
    Ok(Figures {
        median_s,
        min_s: seconds[0],
        max_s: seconds[seconds.len() - 1],
        gflop,
        gflops: gflop / median_s,
        peak_share: gflop / median_s / peak_gflops,
        peak_bytes: weight_bytes + device.peak_bytes() as u64,
    })
}

/// The middle of sorted values, or the mean of the two middle ones.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(super::median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(super::median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}
