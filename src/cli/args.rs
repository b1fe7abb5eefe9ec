//! The arguments of every subcommand.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sdshard::{
    backend::{DeviceId, Precision},
    device_map::{DTypes, Located},
    error::Result,
    models::single_file::Overrides,
    output::Durability,
    pipeline::{PictureFormat, Settings, latents, options::RequestOptions, request::Rng},
    prompt::LoraTag,
    scheduler::Prediction,
    weights::{EmbeddingChoice, lora::LoraChoice},
};

use super::{adapters, folders, habits, names};

const EXAMPLES: &str = "\
Examples:
  sdshard \"a red fox\"                                   one picture, in out/
  sdshard --num-images 4 --seed 7 \"a red fox\"           seeds 7 to 10
  sdshard --device-map balanced.toml \"a red fox\"        text encoder, UNet and VAE on several devices
  sdshard --device cuda:0 \"a red fox\"                   on one GPU
  sdshard --prompts-file prompts.txt --output-dir day1  one prompt per line
  torchrun --no-python --nproc-per-node 2 sdshard ...   two processes share the prompts
  sdshard -- plan                                       the prompt \"plan\", not the subcommand";

/// Stable Diffusion, sharded over whatever devices you have.
#[derive(Debug, Parser)]
#[command(name = "sdshard", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) generate: GenerateArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// The subcommands. Each is one only as the first word.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what each device would run and how many bytes it would hold, without reading a weight
    Plan(Box<PlanArgs>),
    /// List the devices of this machine
    Devices(DevicesArgs),
    /// Measure the speed of each component of a model on one device
    Bench(Box<BenchArgs>),
}

/// How many messages go to stderr.
#[derive(Debug, Args)]
#[command(next_help_heading = "Messages")]
pub(super) struct LogArgs {
    /// Print results and errors only, no progress
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    /// Print more messages; -vv prints still more (the variable RUST_LOG takes precedence)
    #[arg(long, short, action = clap::ArgAction::Count, global = true)]
    pub(super) verbose: u8,
}

/// Which model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// A diffusers folder, a single .safetensors file, or a model on the Hugging Face hub: ORG/NAME,
    /// ORG/NAME/FILE.safetensors or its address [default: the built-in model]
    ///
    /// A single file has text encoder, UNet and VAE of a Stable Diffusion 1, 2 or XL; its configs are built in.
    #[arg(long, short_alias = 'm', value_name = "MODEL")]
    #[arg(aliases = ["model-id", "model-path", "pretrained-model-name-or-path"])]
    #[arg(aliases = ["ckpt", "ckpt-path", "checkpoint"])]
    pub(super) model: Option<String>,
    /// A diffusers folder with the configs and the tokenizer of a single-file model, in place of the built-in ones; no
    /// weights are read from it
    #[arg(long, value_name = "FOLDER", requires = "model")]
    pub(super) config: Option<PathBuf>,
    /// Use the averages (EMA) of the UNet's weights in a single-file model that has both
    #[arg(long, requires = "model", alias = "extract-ema")]
    pub(super) ema: bool,
    /// What the model's UNet predicts, if neither its file nor its scheduler config says so
    #[arg(long, value_name = "epsilon|v", value_enum, hide_possible_values = true)]
    pub(super) prediction_type: Option<PredictionArg>,
    /// Another VAE for the model, or a tiny one (TAESD): a safetensors file, a folder of the VAE, or a diffusers folder
    #[arg(long, value_name = "FOLDER|FILE", aliases = ["vae-path"])]
    pub(super) vae: Option<PathBuf>,
    /// A ControlNet for the model: a safetensors file, or a folder with config.json and weights; may be repeated
    #[arg(long, value_name = "FOLDER|FILE", aliases = ["control-net", "controlnet-path"])]
    pub(super) controlnet: Vec<PathBuf>,
    /// A LoRA, or a file of a relative (LoCon, LoHa, LoKr, DoRA), that changes the weights; may be repeated
    ///
    /// The weight is 1 unless a number follows the last colon: style.safetensors:0.8.
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = adapters::lora)]
    pub(super) lora: Vec<LoraChoice>,
    /// A textual inversion (embedding), whose name in prompts stands for its vectors; may be repeated
    ///
    /// Without TOKEN the name is the one in the file (plain prompts, as in diffusers) or the file's name (a1111).
    #[arg(long, value_name = "FILE[:TOKEN]", value_parser = adapters::embedding)]
    pub(super) embedding: Vec<EmbeddingChoice>,
    /// The folder in which textual inversions are; those whose file names are in a prompt and that fit the model are
    /// used
    #[arg(long, value_name = "FOLDER", aliases = ["embd-dir", "embeddings-dir"])]
    pub(super) embedding_dir: Option<PathBuf>,
    /// The textual inversions of that folder.
    #[arg(skip)]
    pub(super) found_embeddings: Vec<EmbeddingChoice>,
    /// The folder in which the LoRAs are that prompts name, as <lora:style:0.8> with --prompt-syntax a1111
    ///
    /// The file is style.safetensors in this folder or in one below it. Nothing else is searched.
    #[arg(long, value_name = "FOLDER", alias = "lora-model-dir")]
    pub(super) lora_dir: Option<PathBuf>,
    /// Ignore modules of a LoRA that the model does not have, as long as it has some
    #[arg(long)]
    pub(super) lora_lenient: bool,
    /// The variant of the weight files to read, for example "fp16"
    #[arg(long, value_name = "VARIANT")]
    pub(super) variant: Option<String>,
    /// The branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "REVISION")]
    pub(super) revision: Option<String>,
}

impl ModelArgs {
    /// The same model with the LoRAs of these tags, and the textual inversions that these texts name.
    ///
    /// # Errors
    /// As [`folders::lora`], or if a folder cannot be read.
    pub(super) fn with_named<'a>(&self, tags: &[LoraTag], texts: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut args = self.clone();
        if let Some(folder) = &self.embedding_dir {
            args.found_embeddings = folders::embeddings(folder, texts, &self.embedding)?;
        }
        for tag in tags {
            args.lora.push(folders::lora(tag, self.lora_dir.as_deref(), &self.lora)?);
        }
        Ok(args)
    }

    /// What is said about the model beside its name.
    pub(super) fn overrides(&self) -> Overrides<'_> {
        let prediction = self.prediction_type.map(|prediction| match prediction {
            PredictionArg::Epsilon => Prediction::Epsilon,
            PredictionArg::V => Prediction::Velocity,
        });
        Overrides {
            config: self.config.as_deref(),
            averages: self.ema,
            prediction,
            vae: self.vae.as_deref(),
            controlnets: &self.controlnet,
            loras: &self.lora,
            embeddings: &self.embedding,
            lora_lenient: self.lora_lenient,
        }
    }
}

/// `--prediction-type`
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum PredictionArg {
    /// The noise
    #[value(alias = "eps")]
    Epsilon,
    /// The velocity
    #[value(aliases = ["v_prediction", "v-prediction", "vpred"])]
    V,
}

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub(super) struct MapArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The devices that may be used, the preferred one first, separated by commas: cuda:0,cuda:1 [default: the GPUs,
    /// else the CPU]
    ///
    /// They replace the `devices` of the map. "cuda" means cuda:0; `sdshard devices` lists the devices of this machine.
    #[arg(long, value_name = "DEVICE,...", help_heading = "Devices")]
    #[arg(value_delimiter = ',', value_parser = habits::device)]
    pub(super) device: Vec<DeviceId>,
    /// Which component runs on which device: a TOML file, a map that comes with sdshard, or a strategy [default:
    /// throughput]
    ///
    /// The maps that come with sdshard are balanced.toml, cpu-split.toml, guidance-split.toml, low-memory.toml,
    /// mixed-vendors.toml, pool.toml, replicas.toml, replicas-max.toml, sdxl-8gb.toml, sdxl-two-gpus.toml,
    /// sharded-unet.toml, single.toml and two-gpus.toml. The strategies are balanced, balanced_low_0, sequential,
    /// single, diffusers-balanced, throughput and latency.
    #[arg(long, value_name = "MAP", help_heading = "Devices")]
    pub(super) device_map: Option<String>,
    /// How weights are stored and products computed, in place of the device map's type: GPUs compute in it; CPUs compute
    /// products in it in bf16 and int8, and store weights in it in f16
    #[arg(long, aliases = ["torch-dtype", "type"], help_heading = "Devices")]
    pub(super) dtype: Option<DTypeArg>,
}

/// `sdshard PROMPT...`
#[derive(Debug, Args)]
#[command(next_help_heading = "Pictures")]
pub(super) struct GenerateArgs {
    /// The text that describes a picture; each prompt gives one picture, or --num-images pictures
    #[arg(value_name = "PROMPT")]
    pub(super) prompts: Vec<String>,
    /// More prompts
    #[arg(long = "prompt", short = 'p', value_name = "TEXT", hide = true)]
    pub(super) more_prompts: Vec<String>,
    /// More prompts from a file, or from stdin if the name is "-": one prompt per line, or JSON
    ///
    /// JSON is one object per line, or one array of texts and objects. An object has "prompt" and optionally
    /// "prompt_syntax", "prompt_2", "negative_prompt", "negative_prompt_2", "seed", "steps", "guidance_scale",
    /// "guidance_rescale", "clip_skip", "scheduler", "eta", "image", "strength", "mask", "paste_original",
    /// "control_image", "control_scale", "control_start", "control_end", "vae_tiling", "width", "height", "num_images".
    #[arg(long, value_name = "FILE", aliases = ["prompt-file", "prompts", "from-file"])]
    pub(super) prompts_file: Option<PathBuf>,
    /// Draw again what the settings in this file say: a PNG, JPEG or WebP from sdshard or a web UI, or a text file
    ///
    /// Flags and prompts on the command line take precedence. What cannot be followed is printed. The model is --model;
    /// it is only compared with the one that the file names.
    #[arg(long, value_name = "FILE")]
    pub(super) from: Option<PathBuf>,
    /// What that file says, with the names of its options checked.
    #[arg(skip)]
    pub(super) settings: Option<Box<Settings>>,
    #[command(flatten)]
    pub(super) options: RequestOptions,
    /// Width and height
    #[arg(long, value_name = "WIDTHxHEIGHT", hide = true, value_parser = habits::size)]
    #[arg(conflicts_with_all = ["width", "height"])]
    pub(super) size: Option<(usize, usize)>,
    /// Seed of the first picture; each further picture has the next number. "random" or -1 chooses one [default: 0]
    #[arg(long, value_name = "N|random", allow_negative_numbers = true)]
    pub(super) seed: Option<Seed>,
    /// The random generator of the starting noise: that of torch.Generator("cpu"), or that of torch.Generator("cuda")
    /// [default: cpu]
    #[arg(long, value_name = "cpu|cuda")]
    pub(super) rng: Option<Rng>,
    /// Start from the noise in this file instead of noise made from the seed
    ///
    /// A safetensors file with the tensor `latent`, f32 [1, 4, height/8, width/8].
    #[arg(long, value_name = "FILE")]
    pub(super) latents: Option<PathBuf>,
    #[command(flatten)]
    pub(super) model: MapArgs,
    /// The folder for the pictures, created if it does not exist [default: out; with --output the current folder]
    #[arg(long, value_name = "FOLDER", aliases = ["outdir", "out-dir"], help_heading = "Output")]
    pub(super) output_dir: Option<PathBuf>,
    /// A template for file names in --output-dir, with {index}, {image}, {seed} and {prompt}
    ///
    /// {index} is the place of the prompt in the list, and {image} counts the pictures of one prompt. If another
    /// picture already has the name, the seed is appended, then a digest of the request [default:
    /// {index}-{prompt}.png].
    #[arg(long, short, value_name = "TEMPLATE", help_heading = "Output")]
    pub(super) output: Option<names::Template>,
    /// Write pictures, or the final latents before the VAE
    #[arg(long, default_value = "png", help_heading = "Output")]
    pub(super) output_type: OutputType,
    /// Leave out pictures whose files exist already, are undamaged, and were made from the same request
    ///
    /// If the model's files have changed since then, nothing is generated.
    #[arg(long, help_heading = "Output")]
    pub(super) resume: bool,
    /// Replace files that were made from another request instead of choosing another name
    #[arg(long, help_heading = "Output")]
    pub(super) overwrite: bool,
    /// Do not wait until each file is on the disk
    ///
    /// Waiting takes some milliseconds per file, while other pictures are generated. Without it, a power failure may
    /// lose pictures that were reported as saved.
    #[arg(long, help_heading = "Output")]
    pub(super) no_fsync: bool,
    /// Print one line of JSON per picture to stdout instead of its path
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
    /// Write what each device did at what time, as a Chrome trace for about:tracing or Perfetto
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) trace: Option<PathBuf>,
    /// The number of this process, from 0, among several that share the prompts [default: the launcher's]
    ///
    /// The launchers are torchrun, accelerate, mpirun (of Open MPI, MPICH, Intel MPI and MVAPICH2), srun, PALS, indexed
    /// Kubernetes jobs, and all that set RANK and WORLD_SIZE. If they contradict each other, nothing is generated.
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    pub(super) rank: Option<usize>,
    /// How many processes share the prompts
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    pub(super) world_size: Option<usize>,
}

impl GenerateArgs {
    /// The folder of the files.
    pub(super) fn folder(&self) -> PathBuf {
        self.output_dir.clone().unwrap_or_else(|| if self.output.is_some() { "" } else { "out" }.into())
    }

    pub(super) fn durability(&self) -> Durability {
        if self.no_fsync { Durability::Buffered } else { Durability::Synced }
    }
}

/// `sdshard plan`
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The prompts of the run to plan; the best plan depends on the number of pictures [default: one picture]
    #[arg(value_name = "PROMPT")]
    pub(super) prompts: Vec<String>,
    /// More prompts from a file, as for a run
    #[arg(long, value_name = "FILE")]
    pub(super) prompts_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) model: MapArgs,
    #[command(flatten)]
    pub(super) options: RequestOptions,
    /// Width and height
    #[arg(long, value_name = "WIDTHxHEIGHT", hide = true, value_parser = habits::size)]
    #[arg(conflicts_with_all = ["width", "height"])]
    pub(super) size: Option<(usize, usize)>,
    /// Plan for the devices that this file describes instead of the devices of this machine
    ///
    /// The file is TOML. Each device is a table [device."cuda:0"] with memory = "8GiB" or like = "rtx-3070", a device
    /// of the catalogue, of whose peak a half is assumed. The rates that long operations reach are optional: flops =
    /// 20e12, bandwidth = "400GB/s", link = "12GB/s" (the defaults of CUDA devices; those of wgpu devices are 2e12,
    /// "60GB/s" and "10GB/s", those of each CPU core 5e10 and "5GB/s"). count = 4 describes four equal devices with
    /// consecutive numbers. There is a CPU only if the file has [device."cpu"], with cores = "0-7"
    #[arg(long, value_name = "FILE")]
    pub(super) devices: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Also draw the plan as SVG into this file
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

/// `sdshard devices`
#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    /// Print the devices as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Measure the speed of the devices again; otherwise this is done once, when a device is first seen
    #[arg(long)]
    pub(super) measure: bool,
    /// Check whether the devices compute correctly, and print a report for a bug report; takes about a minute
    #[arg(long, conflicts_with = "json")]
    pub(super) check: bool,
}

/// `sdshard bench`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    pub(super) what: Option<BenchCommand>,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The device to measure [default: cpu]
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', value_parser = habits::device)]
    pub(super) device: Vec<DeviceId>,
    /// How weights are stored and products computed there [default: f32 on the CPU, f16 on GPUs]
    #[arg(long)]
    pub(super) dtype: Option<DTypeArg>,
    /// Height and width of the latents, one eighth of the picture's [default: the model's]
    #[arg(long, value_name = "HEIGHTxWIDTH")]
    pub(super) latent_size: Option<LatentSize>,
    /// The number of texts and of latents in one call; the VAE always decodes one picture
    #[arg(long, default_value_t = 2)]
    pub(super) batch: usize,
    /// The number of measured calls, after one that is not measured
    #[arg(long, default_value_t = 5)]
    pub(super) repeat: usize,
    /// Print the results as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Also write the results as a page with plots into this file: one HTML file, without scripts
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

/// What `sdshard bench` measures beside components.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Run several device maps end to end, and rank them beside what their plans predict
    Maps(BenchMapsArgs),
    /// Compare pictures in several data types with those in f32
    #[command(name = "dtypes")]
    DTypes(BenchDTypesArgs),
}

/// `sdshard bench maps`
#[derive(Debug, Args)]
pub(super) struct BenchMapsArgs {
    /// Device maps: files, or names of strategies
    #[arg(value_name = "MAP", required = true)]
    pub(super) maps: Vec<String>,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) options: RequestOptions,
    /// The number of rounds, in each of which every map is loaded and run once
    #[arg(long, default_value_t = 3)]
    pub(super) rounds: usize,
    /// Print the results as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Also write the results as a page with plots into this file: one HTML file, without scripts
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

const DTYPES_EXAMPLES: &str = "\
Examples:
  sdshard bench dtypes                                    64 fixed prompts, all types of the CPU
  sdshard bench dtypes --dtype int8 --output-dir worst    the worst pictures in int8 and in f32 as files
  sdshard bench dtypes --model FOLDER --steps 20 --json   of another model
  sdshard bench dtypes --model FOLDER --prompts-file prompts.txt

The error of latents is |a - b| / |b|, where b is in f32 and | | is the root of the sum of squares.";

/// `sdshard bench dtypes`
#[derive(Debug, Args)]
#[command(after_help = DTYPES_EXAMPLES)]
pub(super) struct BenchDTypesArgs {
    /// The types to compare with f32, separated by commas [default: all others that the device has]
    #[arg(long, value_delimiter = ',')]
    pub(super) dtype: Vec<DTypeArg>,
    /// The device that draws [default: cpu]
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', value_parser = habits::device)]
    pub(super) device: Vec<DeviceId>,
    /// Draw the prompts of this file, as a run reads it, in place of the fixed ones
    ///
    /// There are 64 fixed prompts for the built-in model, and 64 for all others. A picture whose entry has no seed has
    /// its number in the list as its seed, from 0.
    #[arg(long, value_name = "FILE", aliases = ["prompt-file", "prompts"])]
    pub(super) prompts_file: Option<PathBuf>,
    /// Write the worst picture of each type, and the same picture in f32, into this folder
    #[arg(long, value_name = "FOLDER", alias = "output")]
    pub(super) output_dir: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Also write the results as a page with plots into this file: one HTML file, without scripts
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) options: RequestOptions,
}

/// `--latent-size`
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentSize(pub (usize, usize));

impl std::str::FromStr for LatentSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let side = |side: &str| side.parse().ok().filter(|side| (1..=1024).contains(side));
        let sides = text.split_once('x').and_then(|(height, width)| Some((side(height)?, side(width)?)));
        sides.map(Self).ok_or_else(|| "two numbers from 1 to 1024, as 64x64".to_string())
    }
}

/// `--dtype`
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum DTypeArg {
    /// f32 on the CPU, f16 on GPUs (f32 for a VAE with force_upcast)
    Auto,
    #[value(aliases = ["fp32", "float32", "float", "torch.float32"])]
    F32,
    #[value(aliases = ["fp16", "float16", "half", "torch.float16"])]
    F16,
    #[value(aliases = ["bfloat16", "torch.bfloat16"])]
    Bf16,
    /// Only on the CPU
    Int8,
}

impl DTypeArg {
    /// The precision; `None` is each device's own.
    pub(super) fn precision(self) -> Option<Precision> {
        match self {
            DTypeArg::Auto => None,
            DTypeArg::F32 => Some(Precision::F32),
            DTypeArg::F16 => Some(Precision::F16),
            DTypeArg::Bf16 => Some(Precision::BF16),
            DTypeArg::Int8 => Some(Precision::Int8),
        }
    }

    /// The flag as the data type of every component.
    pub(super) fn dtypes(self) -> DTypes {
        DTypes { default: Located::flag("--dtype", self.precision()), ..DTypes::default() }
    }
}

/// `--output-type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputType {
    /// PNG files
    Png,
    /// JPEG files of quality 95
    #[value(alias = "jpg")]
    Jpeg,
    /// WebP files without loss
    Webp,
    /// safetensors files with the tensor `latent`
    Latent,
}

impl OutputType {
    /// The format of the pictures; `None` if there are only latents.
    pub(super) fn format(self) -> Option<PictureFormat> {
        match self {
            Self::Png => Some(PictureFormat::Png),
            Self::Jpeg => Some(PictureFormat::Jpeg),
            Self::Webp => Some(PictureFormat::WebP),
            Self::Latent => None,
        }
    }

    /// The extension of the files.
    pub(super) fn extension(self) -> &'static str {
        self.format().map_or(latents::EXTENSION, PictureFormat::extension)
    }
}

/// `--seed`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seed {
    Number(u64),
    Random,
}

impl std::str::FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" | "-1" => Ok(Seed::Random),
            number => number.parse().map(Seed::Number).map_err(|_| format!("from 0 to {}, or random", u64::MAX)),
        }
    }
}

impl Cli {
    /// Moves the values of hidden flags (`--prompt`, `--size`) to the fields of the visible ones.
    pub(super) fn settle(&mut self) {
        let GenerateArgs { prompts, more_prompts, options, size, .. } = &mut self.generate;
        prompts.append(more_prompts);
        let plan = match &mut self.command {
            Some(Command::Plan(args)) => Some((args.size.take(), &mut args.options.width, &mut args.options.height)),
            _ => None,
        };
        let generate = (size.take(), &mut options.width, &mut options.height);
        for (size, width, height) in [Some(generate), plan].into_iter().flatten() {
            if let Some(size) = size {
                (*width, *height) = (Some(size.0), Some(size.1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Cli {
        Cli::try_parse_from([&["sdshard"], arguments].concat()).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_arguments_are_consistent() {
        <Cli as CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_subcommand_is_one_only_as_the_first_word() {
        assert!(matches!(parse(&["plan", "--json"]).command, Some(Command::Plan(args)) if args.json));
        assert!(matches!(
            parse(&["devices", "-q"]),
            Cli { command: Some(Command::Devices(_)), log: LogArgs { quiet: true, .. }, .. }
        ));
        for arguments in [&["--", "plan"][..], &["--steps", "3", "plan"], &["--json", "plan"]] {
            let cli = parse(arguments);
            assert!(cli.command.is_none(), "{arguments:?}");
            assert_eq!(cli.generate.prompts, ["plan"], "{arguments:?}");
        }
        assert_eq!(parse(&["a fox", "bench"]).generate.prompts, ["a fox", "bench"]);
        assert_eq!(parse(&["a fox", "--width", "64", "plan"]).generate.prompts, ["a fox", "plan"]);
    }

    #[test]
    fn seeds_are_numbers_or_random() {
        for (text, seed) in [
            ("0", Some(Seed::Number(0))),
            ("18446744073709551615", Some(Seed::Number(u64::MAX))),
            ("random", Some(Seed::Random)),
            ("18446744073709551616", None),
            ("-1", Some(Seed::Random)),
            ("-2", None),
            ("1.5", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), seed, "{text}");
        }
        assert_eq!(parse(&["--seed", "7", "a fox"]).generate.seed, Some(Seed::Number(7)));
    }
}
