//! Measures the speed of each component on this machine, beside the machine's peak.

use std::time::Instant;

use serde::{Serialize, Serializer};

use super::{device_in, median};
use crate::{
    backend::{self, DType, Device, DeviceId, DeviceInfo, DeviceKind, Layer, Precision, Values, cpu},
    error::Result,
    models::{
        component::ComponentId,
        network::Network,
        route::{NoHooks, PersistentArenas, Route},
        spec::ModelSpec,
    },
    pipeline::{
        Model, Placed,
        model::{Source, load},
    },
    tensor::{Fuse, Tensor},
    weights::Weights,
};

/// The options of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The device to measure.
    pub device: DeviceId,
    /// The precision of all components; `None` is the device's own.
    pub precision: Option<Precision>,
    /// Height and width of the latents.
    pub latents: (usize, usize),
    /// The number of texts in one encoder call and of latents in one UNet call. The VAE decodes one picture.
    pub batch: usize,
    /// The number of measured calls, after one for warming up.
    pub repeat: usize,
}

/// The results of a measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The device.
    pub machine: Machine,
    /// The figures of each component by its name, for one call: `batch` texts, `batch` latents, or one picture.
    #[serde(flatten, serialize_with = "as_map")]
    pub components: Vec<(String, Figures)>,
}

fn as_map<S: Serializer, T: Serialize>(items: &[(String, T)], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(items.iter().map(|(name, item)| (name, item)))
}

/// The device that the figures are compared with.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The product name.
    pub name: String,
    /// The numerics class.
    pub class: String,
    /// The number of threads that computed; 0 on a GPU.
    pub threads: usize,
    /// The measured peak in f32, in 10^9 operations per second. On a GPU, the rate of a product of 1024x1024x1024.
    pub peak_gflops: f64,
}

/// One component's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// The median time of the measured calls, in seconds.
    pub median_s: f64,
    /// The shortest time, in seconds.
    pub min_s: f64,
    /// The longest time, in seconds.
    pub max_s: f64,
    /// The operations of matrix products, convolutions and attention in one call, a multiply-add counted as two, in
    /// 10^9.
    pub gflop: f64,
    /// `gflop / median_s`.
    pub gflops: f64,
    /// The ratio of `gflops` to the machine's peak. Convolutions count with the operations of direct ones, so
    /// Winograd's algorithm can reach more than 1.
    pub peak_share: f64,
    /// The share of the time that each kind of op takes, the largest first; empty on GPUs, whose ops are only enqueued.
    #[serde(serialize_with = "as_map")]
    pub op_shares: Vec<(String, f64)>,
    /// The peak memory of packed weights and arena, in bytes.
    pub peak_bytes: u64,
}

/// Loads one component after the other on the device and measures its speed.
///
/// # Errors
/// If the device does not exist, or the model cannot be read or does not fit.
pub fn components(model: &Model, settings: &Settings) -> Result<Report> {
    let info = device_in(settings.device, settings.precision)?;
    let (threads, peak) = match settings.device.kind {
        DeviceKind::Cpu => {
            let machine = cpu::Cpu::whole(cpu::Convolution::default())?;
            (machine.threads(), machine.measure_peak())
        }
        _ => (0, product_rate(settings.device, info.rules.precision())?),
    };
    let machine = Machine { name: info.name.clone(), class: info.class.to_string(), threads, peak_gflops: peak / 1e9 };
    let components =
        model.spec.components.iter().map(|(id, component)| {
            Ok((component.name.clone(), measure(id, model, settings, &info, machine.peak_gflops)?))
        });
    Ok(Report { components: components.collect::<Result<_>>()?, machine })
}

fn open(id: DeviceId) -> Result<Device> {
    Ok(backend::open(&[id])?.remove(0))
}

/// The rate of the fastest of a few products, in operations per second.
fn product_rate(id: DeviceId, precision: Precision) -> Result<f64> {
    const SIZE: usize = 1024;
    let device = open(id)?;
    device.reserve(64 << 20)?;
    let values: Vec<f32> = (0..SIZE * SIZE).map(|i| (i % 7) as f32 - 3.0).collect();
    let bytes = bytemuck::cast_slice(&values);
    let layer = Layer::Linear { out: SIZE, k: SIZE };
    let weight = device.pack(layer, precision, Values::Data { dtype: DType::F32, bytes }, None)?;
    let x = Tensor::new(&device, [SIZE, SIZE], &values)?.cast(weight.dtype())?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let started = Instant::now();
        // Several products are enqueued at once, so that the time to read the last result is small in comparison.
        let products: Vec<_> = (0..4).map(|_| x.linear(&weight, &Fuse::default())).collect::<Result<_>>()?;
        finish(products.last().expect("there are four"))?;
        best = best.min(started.elapsed().as_secs_f64() / 4.0);
    }
    Ok(2.0 * (SIZE as f64).powi(3) / best)
}

/// Waits until a result is computed. CPU ops have finished when they return.
fn finish(x: &Tensor) -> Result<()> {
    if x.device().id().kind != DeviceKind::Cpu {
        x.read()?;
    }
    Ok(())
}

/// A function that measures the time of a call.
type Timer<'a> = &'a mut dyn FnMut(&dyn Fn() -> Result<Tensor>) -> Result<()>;

/// Makes the input of one call of a network, and calls `timed` with the call.
fn run(
    component: ComponentId,
    network: &Placed,
    device: &Device,
    spec: &ModelSpec,
    settings: &Settings,
    timed: Timer,
) -> Result<()> {
    let (batch, (height, width)) = (settings.batch, settings.latents);
    let values = |count: usize| -> Vec<f32> { (0..count).map(|i| (i as f32 * 0.7).sin()).collect() };
    let latents = |batch: usize| {
        let channels = spec.latents.channels;
        Tensor::new(device, [batch, height, width, channels], &values(batch * height * width * channels))
    };
    match &*network.network {
        Network::Clip(encoder) => {
            let text = spec.components[component].network.text().expect("it encodes texts");
            let ids = vec![vec![1; text.tokens]; batch];
            timed(&|| Ok(encoder.forward(&ids, 0, &network.pass(&NoHooks))?.features))
        }
        Network::Unet(unet) => {
            let keeps = PersistentArenas::new(vec![device.persistent_arena(KEEP_BYTES)?]);
            let scale = spec.latents.scale;
            let row = spec.sample_condition(scale * height, scale * width, 1, |i| (i as f32 * 0.7).sin());
            let texts = unet.condition(&vec![row; batch], &network.pass(&NoHooks), &keeps)?;
            let (latents, time) = (latents(batch)?, unet.time_features(500.0, device)?);
            timed(&|| unet.forward(&latents, &time, &texts, &[], &network.pass(&NoHooks)))
        }
        Network::ControlNet(controlnet) => {
            let keeps = PersistentArenas::new(vec![device.persistent_arena(KEEP_BYTES)?]);
            let size = [height * spec.latents.scale, width * spec.latents.scale];
            let row = spec.sample_condition(size[0], size[1], 1, |i| (i as f32 * 0.7).sin());
            let (rows, picture) = (vec![row; batch], values(3 * size[0] * size[1]));
            let texts = controlnet.condition(&rows, &[&picture], size, &network.pass(&NoHooks), &keeps)?;
            let (latents, time) = (latents(batch)?, controlnet.time_features(500.0, device)?);
            timed(&|| {
                let mut last = None;
                controlnet.forward(&latents, &time, &texts, &network.pass(&NoHooks), |_, residual| {
                    last = Some(residual);
                    Ok(())
                })?;
                Ok(last.expect("a ControlNet gives a residual for the middle"))
            })
        }
        Network::VaeEncoder(encoder) => {
            let (height, width) = (height * spec.latents.scale, width * spec.latents.scale);
            let pixels = Tensor::new(device, [1, height, width, 3], &values(height * width * 3))?;
            timed(&|| encoder.forward(pixels.clone(), &network.pass(&NoHooks)))
        }
        Network::VaeDecoder(decoder) => {
            let latents = latents(1)?;
            timed(&|| decoder.forward(latents.clone(), &network.pass(&NoHooks)))
        }
    }
}

/// The size of the arena for the text's keys and values; memory is only used as far as they need it.
const KEEP_BYTES: usize = 1 << 30;

fn measure(
    id: ComponentId,
    model: &Model,
    settings: &Settings,
    info: &DeviceInfo,
    peak_gflops: f64,
) -> Result<Figures> {
    let (spec, component, precision) = (&model.spec, &model.spec.components[id], info.rules.precision());
    let source =
        |device: &Device| Source::resident(Route::whole(device, precision, component.network.sections().len()));
    let (dry, counter) = Device::dry(info.id, info.rules, info.rates);
    let planned = load(component, Weights::shapes_only(&component.folder), &source(&dry))?;
    let weight_bytes = counter.take().weight_bytes;
    let mut gflop = 0.0;
    run(id, &planned, &dry, spec, settings, &mut |call| {
        counter.take();
        call()?;
        gflop = counter.take().flops / 1e9;
        Ok(())
    })?;

    let device = open(info.id)?;
    device.reserve(dry.peak_bytes())?;
    if info.id.kind == DeviceKind::Cpu {
        device.time_ops();
    }
    let weights = model.weights(id)?;
    let loaded = load(component, weights, &source(&device))?;
    let mut seconds = Vec::with_capacity(settings.repeat);
    run(id, &loaded, &device, spec, settings, &mut |call| {
        finish(&call()?)?;
        device.take_op_times();
        for _ in 0..settings.repeat {
            let started = Instant::now();
            finish(&call()?)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        Ok(())
    })?;
    let times = device.take_op_times();
    let total: f64 = times.values().sum();
    let mut op_shares: Vec<_> = times.into_iter().map(|(op, time)| (op.to_string(), time / total)).collect();
    op_shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    seconds.sort_by(f64::total_cmp);
    let median_s = median(&seconds);
    Ok(Figures {
        median_s,
        min_s: seconds[0],
        max_s: seconds[seconds.len() - 1],
        gflop,
        gflops: gflop / median_s,
        peak_share: gflop / median_s / peak_gflops,
        op_shares,
        peak_bytes: weight_bytes + device.peak_bytes() as u64,
    })
}
