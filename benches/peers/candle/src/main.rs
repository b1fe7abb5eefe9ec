//! Draws with candle's Stable Diffusion 1.5 in f32, as its own example does, and measures: a worker as those in
//! ../workers, for one size and the full decoder. The argument is the task in JSON; outputs go to `outputs`, an npz.

use std::{
    env, fs,
    io::Write,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use candle_core::{DType, Device, Error, Module, Result, Tensor, npy::NpzTensors};
use candle_nn::VarBuilder;
use candle_transformers::models::stable_diffusion::{
    StableDiffusionConfig,
    clip::{self, ClipTextTransformer},
    unet_2d::UNet2DConditionModel,
    vae::AutoEncoderKL,
};
use serde_json::{Value, json};

struct Peer {
    config: StableDiffusionConfig,
    text_encoder: ClipTextTransformer,
    unet: UNet2DConditionModel,
    vae: AutoEncoderKL,
}

impl Peer {
    fn load(model: &str, size: usize) -> Result<Self> {
        let (config, cpu) = (StableDiffusionConfig::v1_5(None, Some(size), Some(size)), Device::Cpu);
        let file = |part: &str, name: &str| format!("{model}/{part}/{name}.safetensors");
        // SAFETY: nothing changes the files while they are mapped.
        let text = unsafe { VarBuilder::from_mmaped_safetensors(&[file("text_encoder", "model")], DType::F32, &cpu)? };
        Ok(Self {
            text_encoder: ClipTextTransformer::new(text, &clip::Config::v1_5())?,
            unet: config.build_unet(file("unet", "diffusion_pytorch_model"), &cpu, 4, false, DType::F32)?,
            vae: config.build_vae(file("vae", "diffusion_pytorch_model"), &cpu, DType::F32)?,
            config,
        })
    }

    /// u8 [height, width, 3]; ids [2, 77], the negative prompt's first; noise [1, 4, height / 8, width / 8].
    fn picture(&self, ids: &Tensor, noise: &Tensor, steps: usize, guidance: f64) -> Result<Tensor> {
        let features = self.text_encoder.forward(ids)?;
        let (mut schedule, mut latents) = (self.config.build_scheduler(steps)?, noise.clone());
        for timestep in schedule.timesteps().to_vec() {
            let both = Tensor::cat(&[&latents, &latents], 0)?;
            let noise = self.unet.forward(&both, timestep as f64, &features)?;
            let (negative, positive) = (noise.narrow(0, 0, 1)?, noise.narrow(0, 1, 1)?);
            let noise = (&negative + ((&positive - &negative)? * guidance)?)?;
            latents = schedule.step(&noise, timestep, &latents)?;
        }
        let decoded = self.vae.decode(&(latents / 0.18215)?)?;
        let pixels = ((decoded * 127.5)? + 127.5)?.clamp(0f32, 255f32)?.round()?;
        pixels.squeeze(0)?.permute((1, 2, 0))?.to_dtype(DType::U8)
    }
}

fn peak_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib: u64 = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    Ok(1024 * kib)
}

fn main() -> Result<()> {
    let text = env::args().nth(1).ok_or_else(|| Error::Msg("the argument is missing".into()))?;
    let task: Value = serde_json::from_str(&text).map_err(Error::wrap)?;
    let word = |key: &str| task[key].as_str().unwrap_or_default().to_string();
    let number = |key: &str| task[key].as_f64().unwrap_or_default();
    let (size, steps, guidance) = (number("size") as usize, number("steps") as usize, number("guidance"));
    let mut lines = fs::OpenOptions::new().append(true).create(true).open(word("out"))?;
    let mut figure = |cell: String, values: &[f64]| writeln!(lines, "{}", json!({"cell": cell, "values": values}));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let since_start = || now() - number("started");

    let inputs = NpzTensors::new(format!("{}/inputs.npz", word("inputs_folder")))?;
    let input = |name: &str| inputs.get(name)?.ok_or_else(|| Error::Msg(format!("{name} is not among the inputs")));
    let (all_ids, none, noise) = (input("ids")?, input("no_prompt_ids")?, input("noise")?);
    let (latents, features) = (input("latents")?, input("features")?);
    let ids = |number: usize| Tensor::stack(&[&none, &all_ids.get(number % all_ids.dim(0)?)?], 0);

    let peer = Peer::load(&word("model"), size)?;
    figure("load".into(), &[since_start()])?;
    peer.picture(&ids(0)?, &noise, 1, guidance)?;
    figure(format!("start {size}"), &[since_start()])?;
    let (first, latent) = (ids(0)?, latents.narrow(0, 0, 1)?);
    let components: [(&str, String, &dyn Fn() -> Result<Tensor>); 3] = [
        ("text_encoder", "text_encoder".into(), &|| peer.text_encoder.forward(&first)),
        ("unet", format!("unet {}", size / 8), &|| peer.unet.forward(&latents, number("timestep"), &features)),
        ("vae", format!("vae {}", size / 8), &|| peer.vae.decode(&latent)),
    ];
    let mut outputs = Vec::new();
    for (name, cell, call) in components {
        outputs.push((name, call()?));
        let mut seconds = Vec::new();
        for _ in 0..number("repeat") as usize {
            let started = Instant::now();
            call()?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        figure(cell, &seconds)?;
    }
    let mut seconds = Vec::new();
    for number in 0..number("pictures") as usize {
        let started = Instant::now();
        let picture = peer.picture(&ids(number)?, &noise, steps, guidance)?;
        seconds.push(started.elapsed().as_secs_f64());
        if number == 0 {
            outputs.push(("picture", picture));
        }
    }
    figure(format!("picture {size}"), &seconds)?;
    figure(format!("memory {size}"), &[peak_bytes()? as f64])?;
    Tensor::write_npz(&outputs, word("outputs"))
}
