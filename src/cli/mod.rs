//! The command line: arguments, messages and exit codes. What a subcommand does is in the file of its name.

mod bench;
mod check;
mod check_picture;
mod devices;
mod gauge;
mod generate;
mod habits;
mod interrupt;
mod model;
mod names;
mod plan;
mod progress;
mod prompts;
mod run;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{
    Args, CommandFactory, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};
use sdshard::{
    backend::DeviceId,
    backend::{DType, cpu},
    error::{Error, Result, Scope, printable},
    output::Durability,
    pipeline::request::Rng,
    planner::{Located, device_map::DTypes},
};
use tracing_subscriber::EnvFilter;

use self::{interrupt::Interrupt, progress::Console};

/// First words that will be subcommands, kept free so that no script comes to rely on them as prompts.
const RESERVED: [&str; 3] = ["serve", "convert", "completions"];

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
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// What stands as the first word.
#[derive(Debug, Subcommand)]
enum Command {
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
struct LogArgs {
    /// Only results and errors, no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Say more; again for more still (the variable RUST_LOG beats this)
    #[arg(long, short, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

/// Which model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// A diffusers folder, or an id on the hub [default: the built-in model]
    #[arg(long, short_alias = 'm', value_name = "MODEL")]
    #[arg(aliases = ["model-id", "model-path", "pretrained-model-name-or-path"])]
    model: Option<String>,
    /// Which weights to read where a model has several: "fp16" for example
    #[arg(long, value_name = "VARIANT")]
    variant: Option<String>,
    /// A branch, tag or commit of a model on the hub
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
}

/// Which model, and where it runs.
#[derive(Debug, Args)]
struct MapArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The devices that may be used, the preferred one first, with commas between: cuda:0,cuda:1 [default: all]
    ///
    /// They stand in place of the map's `devices`. "cuda" alone is cuda:0; `sdshard devices` lists what is there.
    #[arg(long, value_name = "DEVICE,...", help_heading = "Devices")]
    #[arg(value_delimiter = ',', value_parser = habits::device)]
    device: Vec<DeviceId>,
    /// What runs where: a TOML file, a map that comes with sdshard, or a strategy [default: throughput]
    ///
    /// The maps are balanced.toml, cpu-split.toml, guidance-split.toml, low-memory.toml, mixed-vendors.toml, pool.toml,
    /// replicas.toml, replicas-max.toml, sharded-unet.toml, single.toml and two-gpus.toml; the strategies balanced,
    /// balanced_low_0, sequential, single, diffusers-balanced, throughput and latency.
    #[arg(long, value_name = "MAP", help_heading = "Devices")]
    device_map: Option<String>,
    /// The type of weights; beats the device map's
    #[arg(long, aliases = ["torch-dtype", "type"], help_heading = "Devices")]
    dtype: Option<DTypeArg>,
}

/// `sdshard PROMPT...`
#[derive(Debug, Args)]
#[command(next_help_heading = "Pictures")]
struct GenerateArgs {
    /// What to draw; each prompt is a picture
    #[arg(value_name = "PROMPT")]
    prompts: Vec<String>,
    /// More prompts
    #[arg(long = "prompt", short = 'p', value_name = "TEXT", hide = true)]
    more_prompts: Vec<String>,
    /// More prompts from a file, or from stdin as "-": one on each line, or JSON
    ///
    /// JSON is an object on each line, or one array of texts and objects. An object has "prompt" and, if wanted,
    /// "negative_prompt", "seed", "steps", "guidance_scale", "scheduler", "width", "height", "num_images".
    #[arg(long, value_name = "FILE", aliases = ["prompt-file", "prompts", "from-file"])]
    prompts_file: Option<PathBuf>,
    #[command(flatten)]
    options: prompts::Options,
    /// Width and height
    #[arg(long, value_name = "WIDTHxHEIGHT", hide = true, value_parser = habits::size)]
    #[arg(conflicts_with_all = ["width", "height"])]
    size: Option<(usize, usize)>,
    /// Seed of the first picture, counted up for the next ones; "random" or -1 draws one [default: 0]
    #[arg(long, value_name = "N|random", allow_negative_numbers = true)]
    seed: Option<Seed>,
    /// The generator of the noise: what diffusers users get with torch.Generator("cpu"), or with "cuda"
    #[arg(long, default_value_t, value_name = "cpu|cuda")]
    rng: Rng,
    /// Start from the noise in this file rather than from the seed's
    ///
    /// A safetensors file with the tensor `latent`, f32 [1, 4, height/8, width/8].
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    #[command(flatten)]
    model: MapArgs,
    /// The folder for the pictures; made if it is missing [default: out; with --output the current folder]
    #[arg(long, value_name = "FOLDER", aliases = ["outdir", "out-dir"], help_heading = "Output")]
    output_dir: Option<PathBuf>,
    /// The names of the files, in --output-dir: {index} and {image} of the list, {seed}, {prompt}
    ///
    /// Where a name is taken by another picture, the seed is appended, then a digest of the request
    /// [default: {index}-{prompt}.png].
    #[arg(long, short, value_name = "TEMPLATE", help_heading = "Output")]
    output: Option<names::Template>,
    /// Pictures, or the latents that the VAE would turn into them
    #[arg(long, default_value = "png", help_heading = "Output")]
    output_type: OutputType,
    /// Leave out pictures whose files are there already, whole and made from the same request
    ///
    /// If the model's files were changed since, nothing is drawn.
    #[arg(long, help_heading = "Output")]
    resume: bool,
    /// Replace files that were made from another request, rather than choosing another name
    #[arg(long, help_heading = "Output")]
    overwrite: bool,
    /// Do not wait until each file is on the disk
    ///
    /// Waiting takes some milliseconds for each, while others are drawn; without it a power failure may lose pictures that
    /// were said to be saved.
    #[arg(long, help_heading = "Output")]
    no_fsync: bool,
    /// A line of JSON on stdout for each picture, rather than its path
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write what each device did when: a Chrome trace, for about:tracing or Perfetto
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    trace: Option<PathBuf>,
    /// This process among several that share the prompts, counted from 0 [default: the launcher's]
    ///
    /// The launchers are torchrun, accelerate, mpirun (of Open MPI, MPICH, Intel MPI and MVAPICH2), srun, PALS, indexed
    /// Kubernetes jobs, and all that set RANK and WORLD_SIZE. If they contradict each other, nothing is drawn.
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    rank: Option<usize>,
    /// How many processes share the prompts
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    world_size: Option<usize>,
}

impl GenerateArgs {
    /// Where the files go.
    fn folder(&self) -> PathBuf {
        self.output_dir.clone().unwrap_or_else(|| if self.output.is_some() { "" } else { "out" }.into())
    }

    fn durability(&self) -> Durability {
        if self.no_fsync { Durability::Buffered } else { Durability::Synced }
    }
}

/// `sdshard plan`
#[derive(Debug, Args)]
struct PlanArgs {
    /// What would be drawn; how much there is to draw decides which plan is done first [default: one picture]
    #[arg(value_name = "PROMPT")]
    prompts: Vec<String>,
    /// More prompts, as for drawing
    #[arg(long, value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    #[command(flatten)]
    model: MapArgs,
    #[command(flatten)]
    options: prompts::Options,
    /// Width and height
    #[arg(long, value_name = "WIDTHxHEIGHT", hide = true, value_parser = habits::size)]
    #[arg(conflicts_with_all = ["width", "height"])]
    size: Option<(usize, usize)>,
    /// Plan for the devices in this file rather than for those that are here
    ///
    /// A TOML file: [device."cuda:0"], then
    /// memory = "8GiB" and, if known, what long ops reach: flops = 20e12, bandwidth = "400GB/s", link = "12GB/s" (these
    /// are assumed of CUDA devices; 2e12, "60GB/s", "10GB/s" of wgpu devices; 5e10 and "5GB/s" of each CPU core); or
    /// like = "rtx-3070", a device of the catalogue, of whose peak half is counted on; count = 4 for as many, numbered on
    /// from this one. The CPU is there only as [device."cpu"], with cores = "0-7"
    #[arg(long, value_name = "FILE")]
    devices: Option<PathBuf>,
    /// The plan as JSON
    #[arg(long)]
    json: bool,
    /// Draw the plan into this file, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// `sdshard devices`
#[derive(Debug, Args)]
struct DevicesArgs {
    /// The devices as JSON
    #[arg(long)]
    json: bool,
    /// Measure anew how fast they are; without it that is done once, when a device is first seen
    #[arg(long)]
    measure: bool,
    /// Whether they compute what they should: a report for a bug report, in a minute
    #[arg(long, conflicts_with = "json")]
    check: bool,
}

/// `sdshard bench`
#[derive(Debug, Args)]
struct BenchArgs {
    /// What to measure
    #[arg(default_value = "components")]
    what: BenchWhat,
    #[command(flatten)]
    model: ModelArgs,
    /// The device that computes [default: cpu]
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', value_parser = habits::device)]
    device: Vec<DeviceId>,
    /// Height and width of the latents, an eighth of the picture's [default: the model's]
    #[arg(long, value_name = "HEIGHTxWIDTH")]
    latent_size: Option<LatentSize>,
    /// Texts and latents of one call; the VAE decodes one picture
    #[arg(long, default_value_t = 2)]
    batch: usize,
    /// Calls that are counted, after one that is not
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// The results as JSON
    #[arg(long)]
    json: bool,
}

/// What `sdshard bench` measures.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum BenchWhat {
    /// Text encoder, UNet and VAE, each by itself
    Components,
}

/// `--latent-size`
#[derive(Debug, Clone, Copy)]
struct LatentSize((usize, usize));

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
enum DTypeArg {
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
    fn dtypes(self) -> DTypes {
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
enum OutputType {
    /// PNG files
    Png,
    /// safetensors files with the tensor `latent`
    Latent,
}

/// `--seed`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seed {
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

/// The whole program: reads the arguments, runs, says what went wrong, and chooses the exit code.
pub fn main() -> ExitCode {
    let arguments = habits::with_hyphens(std::env::args_os().collect());
    if let Some(word) = RESERVED.iter().find(|word| arguments.get(1).is_some_and(|first| first == *word)) {
        let refused = Error::input(format!("`{word}` is not a subcommand yet, but will be one"))
            .hint(format!("as a prompt it goes after two dashes: sdshard -- {word}"));
        return report(&refused, None);
    }
    let dashes = arguments.iter().any(|argument| argument == "--");
    let mut cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(refused) => return not_parsed(&refused),
    };
    if let Some(refused) = command_as_prompt(&cli).filter(|_| !dashes) {
        return report(&refused, None);
    }
    cli.settle();
    let console = Console::new(cli.log.quiet);
    let ready = start_logging(&cli.log, &console).and_then(|()| check_environment());
    Interrupt::survive_size_limits();
    let Some(command) = &cli.command else {
        return match Interrupt::install() {
            Ok(interrupt) => {
                let outcome = ready.and_then(|()| generate::run(&cli.generate, &console, &interrupt));
                exit(outcome, Some(&interrupt))
            }
            Err(error) => report(&error, None),
        };
    };
    // They have no file to finish, so a signal ends them as it ends any program.
    let outcome = ready.and_then(|()| match command {
        Command::Plan(args) => plan::run(args, &console),
        Command::Devices(args) => devices::run(args, &console),
        Command::Bench(args) => bench::run(args, &console),
    });
    exit(outcome, None)
}

fn exit(outcome: Result<()>, interrupt: Option<&Interrupt>) -> ExitCode {
    outcome.map_or_else(|error| report(&error, interrupt), |()| ExitCode::SUCCESS)
}

/// Prints an error and gives its exit code.
fn report(error: &Error, interrupt: Option<&Interrupt>) -> ExitCode {
    // Whoever closed stderr does not want to read it.
    let _ = writeln!(std::io::stderr(), "error: {error}");
    match (error.scope(), interrupt.and_then(Interrupt::exit_code)) {
        (Scope::Interrupted, Some(code)) => ExitCode::from(code),
        _ => ExitCode::from(error.exit_code()),
    }
}

/// Arguments that cannot be read, or that ask for help or the version.
fn not_parsed(refused: &clap::Error) -> ExitCode {
    if !refused.use_stderr() {
        // Nobody is there to be told if this cannot be printed.
        let _ = refused.print();
        return ExitCode::SUCCESS;
    }
    let flag = match (refused.kind(), refused.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => flag.split('=').next(),
        _ => None,
    };
    if let Some(absent) = flag.and_then(habits::absent) {
        return report(&absent, None);
    }
    let message = refused.render().to_string();
    let _ = write!(std::io::stderr(), "{}", printable(&message));
    ExitCode::from(2)
}

impl Cli {
    /// What hidden flags say, where the others have it.
    fn settle(&mut self) {
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

/// A prompt that most likely means another thing than a picture: the name of a subcommand (`sdshard -q bench`), or a lone
/// word that is near one or a command of other tools.
fn command_as_prompt(cli: &Cli) -> Option<Error> {
    if cli.command.is_some() {
        return None;
    }
    let root = <Cli as CommandFactory>::command();
    let prompts = &cli.generate.prompts;
    if let Some(word) = prompts.iter().find(|prompt| root.find_subcommand(prompt).is_some()) {
        let refused = Error::input(format!("`{word}` is a subcommand only as the first word"));
        return Some(
            refused.hint(format!("sdshard {word} ...; as a prompt it goes after two dashes: sdshard ... -- {word}")),
        );
    }
    let [word] = prompts.as_slice() else { return None };
    let subcommands: Vec<&str> = root.get_subcommands().map(clap::Command::get_name).collect();
    let command = habits::command(word, subcommands.iter().copied())?;
    let meant = match command {
        "help" | "version" => format!("sdshard --{command}"),
        "list" => "sdshard devices".into(),
        "benchmark" => "sdshard bench".into(),
        known if subcommands.contains(&known) => format!("sdshard {known}"),
        _ => "sdshard \"a red fox\"".into(),
    };
    let refused = Error::input(format!("is `{word}` meant as a prompt? sdshard has no such subcommand"));
    Some(refused.hint(format!("{meant}; as a prompt it goes after two dashes: sdshard -- {word}")))
}

/// What the environment says wrong is refused, not ignored.
fn check_environment() -> Result<()> {
    cpu::path()?;
    cpu::threads::asked()?;
    Ok(())
}

/// Log lines go to stderr, above the progress bars: warnings, and more with `-v` or `RUST_LOG`.
fn start_logging(args: &LogArgs, console: &Console) -> Result<()> {
    let filter = match (std::env::var("RUST_LOG"), args.quiet, args.verbose) {
        (Ok(filter), _, _) if !filter.is_empty() => filter,
        (_, true, _) => "error".to_string(),
        (_, _, 0) => "warn".to_string(),
        (_, _, 1) => "warn,sdshard=info".to_string(),
        (_, _, 2) => "info,sdshard=debug".to_string(),
        _ => "debug,sdshard=trace".to_string(),
    };
    let filter = EnvFilter::try_new(&filter)
        .map_err(|e| Error::input(format!("RUST_LOG={filter}")).source(e).hint("RUST_LOG=sdshard=debug"))?;
    let console = console.clone();
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(move || console.log_writer());
    // A warning among plain lines needs no time and no module.
    match std::env::var_os("RUST_LOG").is_none() && args.verbose == 0 {
        true => lines.without_time().with_target(false).init(),
        false => lines.init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
