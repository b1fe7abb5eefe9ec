//! The arguments of every subcommand.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sdshard::{
    backend::{DType, DeviceId},
    output::Durability,
    pipeline::request::Rng,
    planner::{Located, device_map::DTypes},
};

use super::{habits, names, prompts};

const EXAMPLES: &str = "\
Examples:
  sdshard \"a red fox\"                                   a picture, in out/
  sdshard --num-images 4 --seed 7 \"a red fox\"           seeds 7 to 10
  sdshard --device-map balanced.toml \"a red fox\"        text encoder, UNet and VAE on several devices
  sdshard --device cuda:0 \"a red fox\"                   on one GPU
  sdshard --prompts-file prompts.txt --output-dir day1  a prompt on each line
  torchrun --no-python --nproc-per-node 2 sdshard ...   the prompts shared by two processes
  sdshard -- plan                                       a picture of the word \"plan\"";

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

/// What stands as the first word.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show which device would hold what, and how much, without reading a weight
    Plan(Box<PlanArgs>),
    /// List the devices of this machine
    Devices(DevicesArgs),
    /// Measure how fast pictures are made here
    Bench(BenchArgs),
}

/// How much is said on stderr.
#[derive(Debug, Args)]
#[command(next_help_heading = "Messages")]
pub(super) struct LogArgs {
    /// Only results and errors, no progress
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    /// Say more; again for more still (the variable RUST_LOG beats this)
    #[arg(long, short, action = clap::ArgAction::Count, global = true)]
    pub(super) verbose: u8,
}

/// Which model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// A diffusers folder, or an id on the hub [default: the built-in model]
    #[arg(long, short_alias = 'm', value_name = "MODEL")]
    #[arg(aliases = ["model-id", "model-path", "pretrained-model-name-or-path"])]
    pub(super) model: Option<String>,
    /// Which weights to read where a model has several: "fp16" for example
    #[arg(long, value_name = "VARIANT")]
    pub(super) variant: Option<String>,
    /// A branch, tag or commit of a model on the hub
    #[arg(long, value_name = "REVISION")]
    pub(super) revision: Option<String>,
}

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub(super) struct MapArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The devices that may be used, the preferred one first, with commas between: cuda:0,cuda:1 [default: the GPUs, else the CPU]
    ///
    /// They stand in place of the map's `devices`. "cuda" alone is cuda:0; `sdshard devices` lists what is there.
    #[arg(long, value_name = "DEVICE,...", help_heading = "Devices")]
    #[arg(value_delimiter = ',', value_parser = habits::device)]
    pub(super) device: Vec<DeviceId>,
    /// What runs where: a TOML file, a map that comes with sdshard, or a strategy [default: throughput]
    ///
    /// The maps are balanced.toml, cpu-split.toml, guidance-split.toml, low-memory.toml, mixed-vendors.toml, pool.toml,
    /// replicas.toml, replicas-max.toml, sharded-unet.toml, single.toml and two-gpus.toml; the strategies balanced,
    /// balanced_low_0, sequential, single, diffusers-balanced, throughput and latency.
    #[arg(long, value_name = "MAP", help_heading = "Devices")]
    pub(super) device_map: Option<String>,
    /// The type of weights; beats the device map's
    #[arg(long, aliases = ["torch-dtype", "type"], help_heading = "Devices")]
    pub(super) dtype: Option<DTypeArg>,
}

/// `sdshard PROMPT...`
#[derive(Debug, Args)]
#[command(next_help_heading = "Pictures")]
pub(super) struct GenerateArgs {
    /// What to draw; each prompt is a picture
    #[arg(value_name = "PROMPT")]
    pub(super) prompts: Vec<String>,
    /// More prompts
    #[arg(long = "prompt", short = 'p', value_name = "TEXT", hide = true)]
    pub(super) more_prompts: Vec<String>,
    /// More prompts from a file, or from stdin as "-": one on each line, or JSON
    ///
    /// JSON is an object on each line, or one array of texts and objects. An object has "prompt" and, if wanted,
    /// "negative_prompt", "seed", "steps", "guidance_scale", "scheduler", "width", "height", "num_images".
    #[arg(long, value_name = "FILE", aliases = ["prompt-file", "prompts", "from-file"])]
    pub(super) prompts_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) options: prompts::Options,
    /// Width and height
    #[arg(long, value_name = "WIDTHxHEIGHT", hide = true, value_parser = habits::size)]
    #[arg(conflicts_with_all = ["width", "height"])]
    pub(super) size: Option<(usize, usize)>,
    /// Seed of the first picture, counted up for the next ones; "random" or -1 draws one [default: 0]
    #[arg(long, value_name = "N|random", allow_negative_numbers = true)]
    pub(super) seed: Option<Seed>,
    /// The generator of the noise: what diffusers users get with torch.Generator("cpu"), or with "cuda"
    #[arg(long, default_value_t, value_name = "cpu|cuda")]
    pub(super) rng: Rng,
    /// Start from the noise in this file rather than from the seed's
    ///
    /// A safetensors file with the tensor `latent`, f32 [1, 4, height/8, width/8].
    #[arg(long, value_name = "FILE")]
    pub(super) latents: Option<PathBuf>,
    #[command(flatten)]
    pub(super) model: MapArgs,
    /// The folder for the pictures; made if it is missing [default: out; with --output the current folder]
    #[arg(long, value_name = "FOLDER", aliases = ["outdir", "out-dir"], help_heading = "Output")]
    pub(super) output_dir: Option<PathBuf>,
    /// The names of the files, in --output-dir: {index} and {image} of the list, {seed}, {prompt}
    ///
    /// Where a name is taken by another picture, the seed is appended, then a digest of the request
    /// [default: {index}-{prompt}.png].
    #[arg(long, short, value_name = "TEMPLATE", help_heading = "Output")]
    pub(super) output: Option<names::Template>,
    /// Pictures, or the latents that the VAE would turn into them
    #[arg(long, default_value = "png", help_heading = "Output")]
    pub(super) output_type: OutputType,
    /// Leave out pictures whose files are there already, whole and made from the same request
    ///
    /// If the model's files were changed since, nothing is drawn.
    #[arg(long, help_heading = "Output")]
    pub(super) resume: bool,
    /// Replace files that were made from another request, rather than choosing another name
    #[arg(long, help_heading = "Output")]
    pub(super) overwrite: bool,
    /// Do not wait until each file is on the disk
    ///
    /// Waiting takes some milliseconds for each, while others are drawn; without it a power failure may lose pictures that
    /// were said to be saved.
    #[arg(long, help_heading = "Output")]
    pub(super) no_fsync: bool,
    /// A line of JSON on stdout for each picture, rather than its path
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
    /// Write what each device did when: a Chrome trace, for about:tracing or Perfetto
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) trace: Option<PathBuf>,
    /// This process among several that share the prompts, counted from 0 [default: the launcher's]
    ///
    /// The launchers are torchrun, accelerate, mpirun (of Open MPI, MPICH, Intel MPI and MVAPICH2), srun, PALS, indexed
    /// Kubernetes jobs, and all that set RANK and WORLD_SIZE. If they contradict each other, nothing is drawn.
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    pub(super) rank: Option<usize>,
    /// How many processes share the prompts
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    pub(super) world_size: Option<usize>,
}

impl GenerateArgs {
    /// Where the files go.
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
    /// What would be drawn; how much there is to draw decides which plan is done first [default: one picture]
    #[arg(value_name = "PROMPT")]
    pub(super) prompts: Vec<String>,
    /// More prompts, as for drawing
    #[arg(long, value_name = "FILE")]
    pub(super) prompts_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) model: MapArgs,
    #[command(flatten)]
    pub(super) options: prompts::Options,
    /// Width and height
    #[arg(long, value_name = "WIDTHxHEIGHT", hide = true, value_parser = habits::size)]
    #[arg(conflicts_with_all = ["width", "height"])]
    pub(super) size: Option<(usize, usize)>,
    /// Plan for the devices in this file rather than for those that are here
    ///
    /// A TOML file: [device."cuda:0"], then
    /// memory = "8GiB" and, if known, what long ops reach: flops = 20e12, bandwidth = "400GB/s", link = "12GB/s" (these
    /// are assumed of CUDA devices; 2e12, "60GB/s", "10GB/s" of wgpu devices; 5e10 and "5GB/s" of each CPU core); or
    /// like = "rtx-3070", a device of the catalogue, of whose peak half is counted on; count = 4 for as many, numbered on
    /// from this one. The CPU is there only as [device."cpu"], with cores = "0-7"
    #[arg(long, value_name = "FILE")]
    pub(super) devices: Option<PathBuf>,
    /// The plan as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Draw the plan into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

/// `sdshard devices`
#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    /// The devices as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Measure anew how fast they are; without it that is done once, when a device is first seen
    #[arg(long)]
    pub(super) measure: bool,
    /// Whether they compute what they should: a report for a bug report, in a minute
    #[arg(long, conflicts_with = "json")]
    pub(super) check: bool,
}

/// `sdshard bench`
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The device that computes [default: cpu]
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', value_parser = habits::device)]
    pub(super) device: Vec<DeviceId>,
    /// Height and width of the latents, an eighth of the picture's [default: the model's]
    #[arg(long, value_name = "HEIGHTxWIDTH")]
    pub(super) latent_size: Option<LatentSize>,
    /// Texts and latents of one call; the VAE decodes one picture
    #[arg(long, default_value_t = 2)]
    pub(super) batch: usize,
    /// Calls that are counted, after one that is not
    #[arg(long, default_value_t = 5)]
    pub(super) repeat: usize,
    /// The results as JSON
    #[arg(long)]
    pub(super) json: bool,
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
    /// What suits each device
    Auto,
    #[value(aliases = ["fp32", "float32", "float", "torch.float32"])]
    F32,
    #[value(aliases = ["fp16", "float16", "half", "torch.float16"])]
    F16,
    #[value(aliases = ["bfloat16", "torch.bfloat16"])]
    Bf16,
}

impl DTypeArg {
    /// The same for every component, as the flag says.
    pub(super) fn dtypes(self) -> DTypes {
        let default = match self {
            DTypeArg::Auto => None,
            DTypeArg::F32 => Some(DType::F32),
            DTypeArg::F16 => Some(DType::F16),
            DTypeArg::Bf16 => Some(DType::BF16),
        };
        DTypes { default: Located::flag("--dtype", default), ..DTypes::default() }
    }
}

/// `--output-type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputType {
    /// PNG files
    Png,
    /// safetensors files with the tensor `latent`
    Latent,
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
    /// What hidden flags say, where the others have it.
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
