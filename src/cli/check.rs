//! `sdshard devices --check`: checks in a minute whether the devices of this machine compute correct results, and
//! prints a report for a bug report. Ops are compared with the CPU's, which the tests compare with exact references;
//! pictures, the CPU's included, are compared with the reference's.

use std::{sync::Arc, time::Instant};

use half::{bf16, f16};
use sdshard::{
    backend::{
        self, Activation, DType, Device, DeviceId, DeviceInfo, DeviceKind, Extent, Layer, Precision, Values, Weight,
    },
    error::{Error, Result},
    pipeline::Model,
    tensor::{Fuse, Tensor, ops::Padding},
};

use super::{
    check_picture::{beside_the_reference, draw},
    describe::{cuda_absence, describe},
    progress::Console,
};

/// The size of the arena for the intermediate results of a case, in bytes.
const ARENA: usize = 64 << 20;
/// The bytes of a tensor that is sent from device to device: more than what a driver may copy through the host on its
/// own.
const COPY_BYTES: usize = 3 << 20;

/// Checks every device, and prints a line for each check. `begun` is the time when the search for devices began.
///
/// # Errors
/// If a check fails.
pub fn run(devices: &[DeviceInfo], begun: Instant, model: Result<Model>, console: &Console) -> Result<()> {
    let found = begun.elapsed().as_secs_f64();
    let mut report = Report { console, passed: 0, failed: 0 };
    for line in system() {
        report.line(&line)?;
    }
    report.line(&format!("devices found and measured in {found:.1} s"))?;
    let cpu = Device::cpu(ARENA)?;
    let mut opened = Vec::new();
    for info in devices {
        report.line(&describe(info))?;
        if info.id.kind == DeviceKind::Cpu {
            continue;
        }
        if let Some(line) = provenance(info.id) {
            report.line(&format!("  {line}"))?;
        }
        let begun = Instant::now();
        match backend::open(&[info.id]).map(|mut devices| devices.remove(0)) {
            Ok(device) => {
                report.line(&format!("  opened in {:.2} s", begun.elapsed().as_secs_f64()))?;
                opened.push(device);
            }
            Err(error) => report.result(&format!("{} open", info.id), Err(error))?,
        }
    }
    if let Some(why) = cuda_absence() {
        report.line(&format!("cuda: {why}"))?;
    }
    for device in &opened {
        for precision in Precision::ALL.into_iter().filter(|&precision| device.input_type(precision).is_some()) {
            for (name, case) in CASES {
                let name = format!("{} {precision} {name}", device.id());
                report.result(&name, compare(device, &cpu, precision, *case))?;
            }
        }
    }
    for from in &opened {
        for to in opened.iter().filter(|to| to.id() != from.id()) {
            report.result(&format!("{} to {}{}", from.id(), to.id(), link(from.id(), to.id())), copies(from, to))?;
        }
    }
    drop(opened);
    match model {
        Ok(model) => pictures(devices, &Arc::new(model), &mut report)?,
        Err(error) => report.line(&format!("no picture is drawn: {error}"))?,
    }
    let Report { passed, failed, .. } = report;
    match failed {
        0 => console.print(&format!("all {passed} checks passed in {:.1} s", begun.elapsed().as_secs_f64())),
        _ => Err(Error::process(format!("{failed} of {} checks failed", passed + failed))
            .hint("a report of a bug with all of the above; meanwhile a device map may leave the device out")),
    }
}

/// The environment variables that decide which devices are found and used.
const VARIABLES: [&str; 9] = [
    "SDSHARD_CPU_PATH",
    "SDSHARD_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "CUDA_PATH",
    "LD_LIBRARY_PATH",
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_LAYER_PATH",
];

/// Lines about this program and the system that it runs on.
fn system() -> Vec<String> {
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let mut system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    // On Linux, these files have more details.
    let read = |file| std::fs::read_to_string(file).ok();
    if let Some(kernel) = read("/proc/sys/kernel/osrelease") {
        system += &format!(", kernel {}", kernel.trim());
    }
    let distribution = read("/etc/os-release");
    let name = distribution.iter().flat_map(|text| text.lines()).find_map(|line| line.strip_prefix("PRETTY_NAME="));
    if let Some(name) = name {
        system += &format!(", {}", name.trim_matches('"'));
    }
    let mut lines = vec![format!("sdshard {} ({build}) on {system}", env!("CARGO_PKG_VERSION"))];
    // "NVRM version: ...": the kernel part of NVIDIA's driver.
    let nvidia = read("/proc/driver/nvidia/version");
    lines.extend(nvidia.as_ref().and_then(|text| text.lines().next()).map(str::to_string));
    let set = VARIABLES.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
    lines.extend(set);
    lines
}

/// Additional facts that a device's line does not have: driver and kernels of a CUDA GPU.
#[cfg(feature = "cuda")]
fn provenance(id: DeviceId) -> Option<String> {
    backend::cuda::kernels::provenance(id.index.filter(|_| id.kind == DeviceKind::Cuda)?)
}

#[cfg(not(feature = "cuda"))]
fn provenance(_: DeviceId) -> Option<String> {
    None
}

struct Report<'a> {
    console: &'a Console,
    passed: usize,
    failed: usize,
}

impl Report<'_> {
    fn line(&self, line: &str) -> Result<()> {
        self.console.print(line)
    }

    /// Records a result or an error.
    fn result(&mut self, name: &str, found: Result<String>) -> Result<()> {
        match found {
            Ok(found) => {
                self.passed += 1;
                self.line(&format!("  ok      {name}: {found}"))
            }
            Err(error) => {
                self.failed += 1;
                self.line(&format!("  FAILED  {name}: {error}"))
            }
        }
    }
}

/// An op on a device, for the given number of images.
type Case = fn(&Maker, usize) -> Result<Tensor>;

/// The ops of the networks, at widths of Stable Diffusion, on sizes that are not multiples of tiles.
const CASES: &[(&str, Case)] = &[
    ("linear, gelu and residual", |make, images| {
        let (x, residual) = (make.tensor(&[images, 77, 320], 1)?, make.tensor(&[images, 77, 640], 2)?);
        let fuse = Fuse { activation: Activation::Gelu, ..Fuse::residual(&residual) };
        x.linear(&make.weight(Layer::Linear { out: 640, k: 320 })?, &fuse)
    }),
    ("linear, geglu", |make, images| {
        let weight = make.weight(Layer::Geglu { out: 520, k: 64 })?;
        make.tensor(&[images, 65, 64], 1)?.linear(&weight, &Fuse::activation(Activation::Geglu))
    }),
    ("conv2d 3x3, per-channel sum and silu", |make, images| {
        let add = make.tensor(&[images, 96], 2)?;
        let fuse = Fuse { activation: Activation::Silu, ..Fuse::channel_add(&add) };
        let weight =
            make.weight(Layer::Conv2d { out: 96, channels: 64, kernel: 3, stride: 1, extent: Extent::Large })?;
        make.tensor(&[images, 17, 15, 64], 1)?.conv2d(&weight, Padding::Same, &fuse)
    }),
    ("conv2d 3x3 of 4 channels", |make, images| {
        let weight =
            make.weight(Layer::Conv2d { out: 320, channels: 4, kernel: 3, stride: 1, extent: Extent::Large })?;
        make.tensor(&[images, 16, 16, 4], 1)?.conv2d(&weight, Padding::Same, &Fuse::default())
    }),
    ("conv2d 3x3, stride 2", |make, images| {
        let weight =
            make.weight(Layer::Conv2d { out: 40, channels: 320, kernel: 3, stride: 2, extent: Extent::Large })?;
        make.tensor(&[images, 9, 8, 320], 1)?.conv2d(&weight, Padding::Same, &Fuse::default())
    }),
    ("conv2d 3x3 of 1280 channels", |make, images| {
        let weight =
            make.weight(Layer::Conv2d { out: 24, channels: 1280, kernel: 3, stride: 1, extent: Extent::Large })?;
        make.tensor(&[images, 3, 5, 1280], 1)?.conv2d(&weight, Padding::Same, &Fuse::default())
    }),
    ("attention of 40 channels", |make, images| make.attention(images, [70, 77], 8, 40, false)),
    ("attention of 64 channels, causal", |make, images| make.attention(images, [77, 77], 3, 64, true)),
    ("attention of 80 channels", |make, images| make.attention(images, [65, 65], 2, 80, false)),
    ("attention of 160 channels", |make, images| make.attention(images, [33, 77], 2, 160, false)),
    ("attention of 512 channels", |make, images| make.attention(images, [33, 65], 1, 512, false)),
    ("group_norm, silu", |make, images| {
        let weight = make.weight(Layer::Norm { channels: 320 })?;
        make.tensor(&[images, 9, 15, 320], 1)?.group_norm(&weight, 32, 1e-5, Activation::Silu)
    }),
    ("layer_norm", |make, images| {
        make.tensor(&[images, 77, 768], 1)?.layer_norm(&make.weight(Layer::Norm { channels: 768 })?, 1e-5)
    }),
    ("upsample2x and concat_channels", |make, images| {
        let (x, skip) = (make.tensor(&[images, 5, 7, 24], 1)?, make.tensor(&[images, 10, 13, 40], 2)?);
        x.upsample2x(10, 13)?.concat_channels(&skip)
    }),
];

/// Makes inputs of a type on a device; the values are the same on every device, and the same for the first of two
/// images as for one.
struct Maker<'a> {
    device: &'a Device,
    /// The type that values are rounded to.
    rounds: Precision,
    /// The precision of weights on the device.
    precision: Precision,
}

impl Maker<'_> {
    fn tensor(&self, shape: &[usize], seed: u32) -> Result<Tensor> {
        let values = self.values(shape.iter().product(), seed);
        let tensor = Tensor::new(self.device, [values.len()], &values)?
            .cast(self.device.input_type(self.precision).expect("only its own precisions are checked"))?;
        match *shape {
            [a, b] => tensor.reshape([a, b]),
            [a, b, c] => tensor.reshape([a, b, c]),
            [a, b, c, d] => tensor.reshape([a, b, c, d]),
            _ => unreachable!("the cases have two to four sizes"),
        }
    }

    /// Uniform values from -1 to 1.
    fn values(&self, count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            match self.rounds {
                Precision::F16 => f16::from_f32(value).to_f32(),
                Precision::BF16 => bf16::from_f32(value).to_f32(),
                Precision::F32 | Precision::Int8 => value,
            }
        };
        std::iter::repeat_with(value).take(count).collect()
    }

    fn weight(&self, layer: Layer) -> Result<Weight> {
        let (elements, bias_elements) = layer.elements();
        let bytes = |count, seed| -> Vec<u8> {
            self.values(count, seed).iter().flat_map(|value: &f32| value.to_le_bytes()).collect()
        };
        let (weight, bias) = (bytes(elements, 3), bytes(bias_elements, 4));
        let data = |bytes| Values::Data { dtype: DType::F32, bytes };
        self.device.pack(layer, self.precision, data(&weight), Some(data(&bias)))
    }

    fn attention(
        &self,
        images: usize,
        [queries, keys]: [usize; 2],
        heads: usize,
        head_dim: usize,
        causal: bool,
    ) -> Result<Tensor> {
        let tensor = |tokens, seed| self.tensor(&[images, tokens, heads * head_dim], seed);
        tensor(queries, 1)?.attention(&tensor(keys, 2)?, &tensor(keys, 3)?, heads, causal)
    }
}

/// Compares a case on a device with the CPU, and its first image with the same image alone.
fn compare(device: &Device, cpu: &Device, precision: Precision, case: Case) -> Result<String> {
    device.reserve(ARENA)?;
    let here = Maker { device, rounds: precision, precision };
    let there = Maker { device: cpu, rounds: precision, precision: Precision::F32 };
    let (got, want) = (case(&here, 2)?.read()?, case(&there, 2)?.read()?);
    let largest = want.iter().fold(0f32, |most, value| most.max(value.abs()));
    let error = got.iter().zip(&want).fold(0f32, |most, (got, want)| {
        let error = (got - want).abs() / largest;
        if error.is_nan() { f32::INFINITY } else { most.max(error) }
    });
    // A few roundings of the type, relative to the largest result.
    let allowed = match precision {
        Precision::F16 => 2e-3,
        Precision::BF16 | Precision::Int8 => 1.6e-2,
        Precision::F32 => 1e-5,
    };
    if got.len() != want.len() || error > allowed {
        return Err(Error::process(format!("off by {error:.1e} of the largest result, {allowed:.1e} is allowed")));
    }
    let alone = case(&here, 1)?.read()?;
    match alone.iter().zip(&got).position(|(alone, got)| alone.to_bits() != got.to_bits()) {
        Some(i) => Err(Error::process(format!("element {i} is another one in a batch: {:e}, {:e}", got[i], alone[i]))),
        None => Ok(format!("off by {error:.1e} of {allowed:.1e}")),
    }
}

/// How two GPUs exchange data.
#[cfg(feature = "cuda")]
fn link(from: DeviceId, to: DeviceId) -> String {
    use backend::cuda::Link;
    let (DeviceKind::Cuda, DeviceKind::Cuda, Some(a), Some(b)) = (from.kind, to.kind, from.index, to.index) else {
        return String::new();
    };
    match backend::cuda::link(a, b) {
        Ok(Link::Direct) => ", directly".into(),
        Ok(Link::None) => ", through the host".into(),
        Ok(Link::Corrupt) => ", through the host, as their link corrupts data".into(),
        Err(error) => format!(", {error}"),
    }
}

#[cfg(not(feature = "cuda"))]
fn link(_: DeviceId, _: DeviceId) -> String {
    String::new()
}

fn copies(from: &Device, to: &Device) -> Result<String> {
    from.reserve(ARENA)?;
    to.reserve(ARENA)?;
    let values = Maker { device: from, rounds: Precision::F32, precision: Precision::F32 }.values(COPY_BYTES / 4, 7);
    let sent = Tensor::new(from, [values.len()], &values)?;
    let begun = Instant::now();
    let there = sent.to(to)?;
    let back = there.to(from)?;
    for (place, got) in [("there", there.read()?), ("back", back.read()?)] {
        if got.iter().zip(&values).any(|(got, want)| got.to_bits() != want.to_bits()) {
            return Err(Error::process(format!("the received data differ from what was sent {place}")));
        }
    }
    let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
    Ok(format!("{COPY_BYTES} bytes there and back, and read at both ends, in {milliseconds:.1} ms"))
}

/// Draws a small picture on each device in each of its types, and compares it with the reference's and the CPU's.
fn pictures(devices: &[DeviceInfo], model: &Arc<Model>, report: &mut Report) -> Result<()> {
    let mut cpus: Option<Vec<u8>> = None;
    // The CPU comes first, because the others are compared with it.
    let (cpu, others): (Vec<_>, Vec<_>) = devices.iter().partition(|info| info.id == DeviceId::CPU);
    for info in cpu.into_iter().chain(others) {
        for precision in Precision::ALL.into_iter().filter(|&precision| info.in_type(Some(precision)).is_some()) {
            let begun = Instant::now();
            let found = draw(model, info.id, precision, devices).and_then(|picture| {
                let seconds = begun.elapsed().as_secs_f64();
                let beside = beside_the_reference(&picture, precision);
                let apart =
                    cpus.as_ref().map(|cpus| format!(", pixels by {:.2} from the CPU's", apart(&picture, cpus)));
                if info.id == DeviceId::CPU {
                    cpus.get_or_insert(picture);
                }
                Ok(format!("{}{}; in {seconds:.1} s with loading", beside?, apart.unwrap_or_default()))
            });
            report.result(&format!("{} {precision} a picture", info.id), found)?;
        }
    }
    Ok(())
}

/// The mean difference of two pictures of one size, in steps of 255: information for the reader, not a check.
fn apart(a: &[u8], b: &[u8]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}
