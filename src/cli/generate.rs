//! `sdshard PROMPT...`: from arguments to a checked list of pictures to make, and from there to files.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::Arc,
    time::Instant,
};

use sdshard::{
    backend::{self, DType},
    engine::Engine,
    error::{Error, Result},
    models::spec::Defaults,
    pipeline::{
        Metadata, Model,
        latents::{self, Latents},
        output,
        request::{Output, Request, Rng, Start},
    },
    planner::{
        Largest,
        device_map::{DeviceMap, Strategy},
        plan::Plan,
        world::World,
    },
    scheduler::{SchedulerKind, schedule},
};

use super::{
    GenerateArgs, ModelArgs, OutputType, Seed,
    gauge::Gauge,
    interrupt::Interrupt,
    model,
    names::file_name,
    progress::Console,
    prompts::{self, Options},
    run::{Run, Summary, trace_file},
};

/// The most pictures of one run.
const MAX_JOBS: usize = 1_000_000;

/// Makes the pictures.
pub fn run(args: &GenerateArgs, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let world = World::new(args.rank, args.world_size, |name| std::env::var(name).ok())?;
    if world.world_size > 1 && args.seed == Some(Seed::Random) {
        return Err(Error::input("--seed random: several processes would each draw a seed of their own")
            .hint("--seed N, with the same N for all"));
    }
    let (mut jobs, first_seed) = jobs(args)?;
    if world.world_size > 1 && !mine(&mut jobs, &world, console) {
        return if args.json { console.print(&Summary::default().line()) } else { Ok(()) };
    }
    backend::cpu::threads::share_cores(world.local_rank, world.local_world_size);
    let map = device_map(&args.model)?;
    let latents = args.latents.as_deref().map(Latents::read).transpose()?;
    output::check_writable(&args.output_dir)?;
    let trace_file = args.trace.as_ref().map(|path| trace_file(path, &world));
    if let Some(trace) = trace_file.as_deref() {
        file_name_is_possible("--trace", trace)?;
    }
    if let Some(folder) = trace_file.as_deref().and_then(Path::parent).filter(|folder| *folder != Path::new("")) {
        output::check_writable(folder)?;
    }
    let swept = output::sweep(&args.output_dir);
    if swept > 0 {
        tracing::info!(swept, "removed unfinished files of an earlier run");
    }
    let model = Arc::new(model::open(&args.model, console, Some(interrupt))?);
    let mut requests = requests(&jobs, args, &model, latents.as_ref())?;
    let visible = world.own_devices(&backend::visible())?;
    let resolve = |requests: &[Request]| -> Result<Option<Plan>> {
        let plan = |largest: Largest| Plan::resolve(&map, &model.spec, &largest, &visible);
        Largest::of(requests, &model.spec)?.map(plan).transpose()
    };
    let mut plan = resolve(&requests)?;
    let dtype = plan.as_ref().map_or(DType::F32, |plan| plan.dtypes.unet);
    let mut metadata = metadata(&requests, &model, dtype)?;
    if !args.overwrite {
        check_existing(&args.output_dir, jobs.iter().map(|job| job.file.as_str()).zip(&metadata))?;
    }
    let asked = jobs.len();
    if args.resume {
        let is_done = |(job, metadata): (&Job, _)| is_made(&args.output_dir.join(&job.file), metadata);
        let there = jobs.iter().zip(&metadata).map(is_done).collect::<Result<Vec<bool>>>()?;
        (jobs, requests, metadata) = (missing(jobs, &there), missing(requests, &there), missing(metadata, &there));
        if jobs.len() < asked {
            plan = resolve(&requests)?;
        }
    }
    let Some(plan) = plan else {
        console.note(&format!("nothing to do: all {asked} pictures are there"));
        return if args.json {
            console.print(&Summary { skipped: asked, ..Summary::default() }.line())
        } else {
            Ok(())
        };
    };
    tracing::info!("plan:\n{plan}");
    if args.seed.is_none_or(|seed| seed == Seed::Random) && jobs.iter().any(|job| !job.has_own_seed) {
        console.note(&format!("seed {first_seed} (--seed {first_seed} makes the same again)"));
    }
    if args.model.device_map.is_none() {
        let replicas = plan.replicas.len();
        let devices: Vec<_> = plan.devices.iter().map(|device| device.id.to_string()).collect();
        console.note(&format!(
            "no --device-map: throughput, {replicas} replica{} on {}",
            if replicas == 1 { "" } else { "s" },
            devices.join(", ")
        ));
    }
    let loading = Instant::now();
    let engine = Engine::load(model, &plan)?;
    let started = Instant::now();
    let devices = plan.devices.iter().map(|device| device.id).collect();
    let (load, replicas) = (started - loading, plan.replicas.len().min(jobs.len()));
    let mut run = Run {
        args,
        console,
        interrupt,
        world: &world,
        jobs: &jobs,
        metadata: &metadata,
        requests: &requests,
        plan: &plan,
        started,
        under_way: HashMap::new(),
        open: (0..jobs.len()).collect(),
        stopping: false,
        saved: 0,
        skipped: asked - jobs.len(),
        failed: Vec::new(),
        trace: Vec::new(),
        trace_file,
        first_seed,
        gauge: Gauge::new(started, load, devices, replicas, plan.images_per_second),
        overview: console.overview(),
    };
    let outcome = engine.generate(requests.iter().cloned(), |index, event| run.on(index, event));
    run.finish(outcome, &engine)
}

/// Refuses a path that no file can have, before anything is computed.
pub fn file_name_is_possible(option: &str, path: &Path) -> Result<()> {
    let refuse =
        |what: &str| Err(Error::input(format!("{option} {}: {what}", path.display())).hint("the path of a file"));
    match path {
        _ if path == Path::new("-") => refuse("stdout has the results"),
        _ if path.is_dir() => refuse("this is a folder"),
        _ => Ok(()),
    }
}

/// Whether a picture is there, made from this very request and whole.
fn is_made(path: &Path, metadata: &Metadata) -> Result<bool> {
    Ok(path.exists() && Metadata::read(path)?.as_ref() == Some(metadata) && Metadata::is_whole(path)?)
}

/// Those of `all` whose files are not `there` yet.
fn missing<T>(all: Vec<T>, there: &[bool]) -> Vec<T> {
    all.into_iter().zip(there).filter(|(_, there)| !**there).map(|(one, _)| one).collect()
}

/// Leaves the jobs of this process's prompts and says which they are; `false` if there are none.
fn mine(jobs: &mut Vec<Job>, world: &World, console: &Console) -> bool {
    let prompts = jobs.last().map_or(0, |job| job.prompt_index + 1);
    let slice = world.slice(prompts);
    let which = match slice.len() {
        0 => "none of the prompts".to_string(),
        1 => format!("prompt {}", slice.start),
        _ => format!("prompts {} to {}", slice.start, slice.end - 1),
    };
    console.note(&format!("rank {} of {} ({}): {which}", world.rank, world.world_size, world.launcher));
    jobs.retain(|job| slice.contains(&job.prompt_index));
    !jobs.is_empty()
}

/// The jobs with the model's defaults filled in.
fn requests(jobs: &[Job], args: &GenerateArgs, model: &Model, latents: Option<&Latents>) -> Result<Vec<Request>> {
    let (defaults, scale) = (&model.spec.defaults, model.spec.vae.scale());
    let output = match args.output_type {
        OutputType::Png => Output::Image,
        OutputType::Latent => Output::Latents,
    };
    jobs.iter()
        .map(|job| {
            let scheduler = job.scheduler.as_deref().map(str::parse).transpose()?;
            let request = job.request(defaults, scale, scheduler, args.rng, output, latents)?;
            request.check(&model.spec).map_err(|e| e.context(job.name()))?;
            // A solver may refuse a number of steps: better now than after the first pictures.
            let config = model.spec.scheduler_for(request.scheduler)?;
            schedule(&config, request.steps).map_err(|e| e.context(job.name()))?;
            Ok(request)
        })
        .collect()
}

/// What each finished file will say about itself.
fn metadata(requests: &[Request], model: &Model, dtype: DType) -> Result<Vec<Metadata>> {
    let hash = model.identity()?;
    requests.iter().map(|request| Metadata::new(request, model, &hash, dtype)).collect()
}

/// One picture to make. What is `None` is the model's to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Place of the prompt in the list, from 0.
    pub prompt_index: usize,
    /// Which of the prompt's pictures, from 0.
    pub image_index: usize,
    /// Name of the file in the output folder.
    pub file: String,
    /// Where it is asked for, if in a file: the file and the line.
    pub asked_at: Option<String>,
    /// What to draw.
    pub prompt: String,
    /// What to keep away from.
    pub negative_prompt: String,
    /// Seed of this picture.
    pub seed: u64,
    /// The seed comes from the request itself and not from `--seed`.
    pub has_own_seed: bool,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Strength of guidance.
    pub guidance_scale: Option<f32>,
    /// The solver's name, one of [`prompts::SCHEDULERS`].
    pub scheduler: Option<String>,
    /// Pixels.
    pub width: Option<usize>,
    /// Pixels.
    pub height: Option<usize>,
}

/// All pictures in order, and the seed of the first. Everything is checked that can be without the model.
pub fn jobs(args: &GenerateArgs) -> Result<(Vec<Job>, u64)> {
    args.options.check(|field| format!("--{}", field.replace('_', "-")))?;
    let first_seed = match args.seed {
        Some(Seed::Number(seed)) => seed,
        Some(Seed::Random) => RandomState::new().hash_one(()), // keys from the system's own randomness
        None => 0,
    };
    let extension = match args.output_type {
        OutputType::Png => "png",
        OutputType::Latent => latents::EXTENSION,
    };
    let on_command_line =
        args.prompts.iter().map(|prompt| Options { prompt: Some(prompt.clone()), ..Options::default() });
    let in_file = args.prompts_file.as_deref().map(prompts::read).transpose()?.unwrap_or_default();
    let mut jobs = Vec::new();
    for (prompt_index, options) in on_command_line.chain(in_file).enumerate() {
        let options = options.or(&args.options);
        let prompt = options.prompt.unwrap_or_default();
        let images = options.num_images.unwrap_or(1);
        if jobs.len() + images > MAX_JOBS {
            return Err(Error::input(format!("more than {MAX_JOBS} pictures in one run")).hint("several runs"));
        }
        for image_index in 0..images {
            jobs.push(Job {
                prompt_index,
                image_index,
                file: file_name(prompt_index, image_index, images, &prompt, extension),
                asked_at: options.at.clone(),
                prompt: prompt.clone(),
                negative_prompt: options.negative_prompt.clone().unwrap_or_default(),
                seed: match options.seed {
                    Some(own) => own.wrapping_add(image_index as u64),
                    None => first_seed.wrapping_add(jobs.len() as u64),
                },
                has_own_seed: options.seed.is_some(),
                steps: options.steps,
                guidance_scale: options.guidance_scale,
                scheduler: options.scheduler.clone(),
                width: options.width,
                height: options.height,
            });
        }
    }
    match (jobs.is_empty(), &args.prompts_file) {
        (false, _) => Ok((jobs, first_seed)),
        (true, Some(path)) => Err(Error::input(format!("there is no prompt in {}", path.display()))),
        (true, None) => {
            Err(Error::input("there is no prompt").hint("sdshard \"a red fox\"; `sdshard --help` shows more"))
        }
    }
}

impl Job {
    /// What messages call it.
    fn name(&self) -> &str {
        self.asked_at.as_deref().unwrap_or(&self.file)
    }

    /// The request, with the model's defaults for what is not said. `scale` is the model's pixels per latent, and
    /// `scheduler` the job's own.
    pub fn request(
        &self,
        defaults: &Defaults,
        scale: usize,
        scheduler: Option<SchedulerKind>,
        rng: Rng,
        output: Output,
        latents: Option<&Latents>,
    ) -> Result<Request> {
        let (width, height) = (self.width.unwrap_or(defaults.width), self.height.unwrap_or(defaults.height));
        for (name, pixels) in [("width", width), ("height", height)] {
            if pixels == 0 || !pixels.is_multiple_of(scale) {
                let below = pixels - pixels % scale;
                let near = if below == 0 { scale.to_string() } else { format!("{below} or {}", below + scale) };
                return Err(Error::input(format!("{}: the {name} has to be a multiple of {scale}", self.name()))
                    .found(pixels.to_string())
                    .hint(near));
            }
        }
        if let Some(latents) = latents
            && (latents.width * scale, latents.height * scale) != (width, height)
        {
            return Err(Error::input(format!("{}: the latents are for another size", self.name()))
                .found(format!("{width}x{height} wanted"))
                .hint(format!("--width {} --height {}", latents.width * scale, latents.height * scale)));
        }
        Ok(Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            seed: self.seed,
            steps: self.steps.unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            scheduler: scheduler.or(defaults.scheduler),
            width,
            height,
            rng,
            start: latents.map_or(Start::Noise, |latents| Start::Latents(Arc::from(latents.values.as_slice()))),
            output,
        })
    }
}

/// The map that the arguments ask for; without one, as many replicas as the devices hold.
pub fn device_map(args: &ModelArgs) -> Result<DeviceMap> {
    let mut map = match &args.device_map {
        Some(name) => DeviceMap::load(name)?,
        None => DeviceMap::from_strategy(Strategy::Throughput),
    };
    if let Some(dtype) = args.dtype {
        map.dtype = dtype.dtypes();
    }
    Ok(map)
}

/// Refuses to replace files that were made from anything but what is about to be made: from another request, by
/// another program, by hand. A file with equal metadata may be replaced, since it becomes what it was.
pub fn check_existing<'a>(folder: &Path, files: impl IntoIterator<Item = (&'a str, &'a Metadata)>) -> Result<()> {
    let mut others = Vec::new();
    for (name, metadata) in files {
        let path = folder.join(name);
        let exists =
            path.try_exists().map_err(|e| Error::input(format!("looking for {}", path.display())).source(e))?;
        if exists && Metadata::read(&path)?.as_ref() != Some(metadata) {
            others.push(path);
        }
    }
    match others.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            Err(Error::input(format!("{}{more} would be replaced, but not by the same picture", first.display()))
                .hint("another --output-dir, or --overwrite"))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn args(arguments: &[&str]) -> GenerateArgs {
        Cli::try_parse_from([&["sdshard"], arguments].concat()).unwrap_or_else(|error| panic!("{error}")).generate
    }

    fn refused(arguments: &[&str]) -> String {
        let error = jobs(&args(arguments)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    const DEFAULTS: Defaults = Defaults { steps: 50, guidance_scale: 7.5, width: 64, height: 64, scheduler: None };

    #[test]
    fn seeds_count_over_the_whole_list_or_within_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.jsonl");
        std::fs::write(
            &file,
            "{\"prompt\": \"c\", \"seed\": 100, \"num_images\": 2}\n{\"prompt\": \"d\", \"num_images\": 1}\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let seed = (u64::MAX - 1).to_string();
        let args = args(&["a", "b", "--num-images", "2", "--seed", &seed, "--prompts-file", file, "--steps", "3"]);
        let (jobs, first) = jobs(&args).unwrap();
        assert_eq!(first, u64::MAX - 1);
        let list: Vec<_> = jobs.iter().map(|job| (job.file.as_str(), job.seed)).collect();
        assert_eq!(
            list,
            [
                ("00000_00-a.png", u64::MAX - 1),
                ("00000_01-a.png", u64::MAX),
                ("00001_00-b.png", 0),
                ("00001_01-b.png", 1),
                ("00002_00-c.png", 100),
                ("00002_01-c.png", 101),
                ("00003-d.png", 4),
            ]
        );
        assert!(jobs.iter().all(|job| job.steps == Some(3) && job.width.is_none()));
    }

    #[test]
    fn the_seed_is_0_unless_it_is_said() {
        assert_eq!(jobs(&args(&["a"])).unwrap().1, 0);
        let random = || jobs(&args(&["a", "--seed", "random"])).unwrap().1;
        assert_ne!(random(), random());
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        for (arguments, says) in [
            (&[][..], "there is no prompt"),
            (&["a", "--steps", "0"], "--steps: at least 1"),
            (&["a", "--num-images", "0"], "--num-images: at least 1"),
            (&["a", "--num-images", "1000000000"], "--num-images: at most 100000"),
            (&["a", "--width", "8200"], "--width: at most 8192"),
            (&["a", "--guidance-scale", "inf"], "--guidance-scale: a finite number"),
            (&["a", "--guidance-scale", "NaN"], "--guidance-scale: a finite number"),
        ] {
            let message = refused(arguments);
            assert!(message.contains(says), "wanted: {says}\n{message}");
        }
    }

    #[test]
    fn the_model_fills_in_what_is_not_said() {
        let (jobs, _) = jobs(&args(&["a fox", "--width", "72", "--steps", "3"])).unwrap();
        let request = jobs[0].request(&DEFAULTS, 8, None, Rng::TorchCpu, Output::Image, None).unwrap();
        assert_eq!((request.width, request.height, request.steps), (72, 64, 3));
        assert_eq!((request.guidance_scale, request.start), (7.5, Start::Noise));

        let latents = Latents { channels: 4, height: 8, width: 9, values: vec![1.0; 288] };
        let request = jobs[0].request(&DEFAULTS, 8, None, Rng::TorchCpu, Output::Image, Some(&latents)).unwrap();
        assert!(matches!(request.start, Start::Latents(values) if values.len() == 288));
        let latents = Latents { channels: 4, height: 8, width: 8, values: vec![1.0; 256] };
        let error = jobs[0].request(&DEFAULTS, 8, None, Rng::TorchCpu, Output::Image, Some(&latents)).unwrap_err();
        assert!(error.to_string().contains("--width 64 --height 64"), "{error}");
    }

    #[test]
    fn sizes_are_multiples_of_the_models_scale() {
        for (width, hint) in [("70", "64 or 72"), ("3", "try:   8")] {
            let (jobs, _) = jobs(&args(&["a fox", "--width", width])).unwrap();
            let error = jobs[0].request(&DEFAULTS, 8, None, Rng::TorchCpu, Output::Image, None).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }

    #[test]
    fn a_picture_is_replaced_only_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = |seed| Metadata {
            model: "m".into(),
            model_hash: "0".into(),
            prompt: "a".into(),
            negative_prompt: String::new(),
            seed,
            steps: 1,
            guidance_scale: 7.5,
            scheduler: "ddim".into(),
            width: 1,
            height: 1,
            dtype: "f32".into(),
            rng: "cpu".into(),
            latents: None,
        };
        let image = sdshard::pipeline::Image { width: 1, height: 1, rgb: vec![0; 3] };
        output::write(&folder.path().join("a.png"), &image.encode_png(&metadata(1)).unwrap()).unwrap();
        std::fs::write(folder.path().join("b.png"), "mine").unwrap();

        let check = |files: &[(&str, &Metadata)]| check_existing(folder.path(), files.iter().copied());
        check(&[("a.png", &metadata(1)), ("c.png", &metadata(1))]).unwrap();
        let error = check(&[("a.png", &metadata(2)), ("b.png", &metadata(1))]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let message = error.to_string();
        assert!(message.contains("a.png and 1 more would be replaced") && message.contains("--overwrite"), "{message}");
    }

    #[test]
    fn flags_beat_the_map() {
        let of = |arguments: &[&str]| device_map(&args(arguments).model).unwrap();
        assert_eq!(of(&["a"]).strategy.value, Strategy::Throughput);
        assert_eq!(of(&["a", "--device-map", "balanced"]).strategy.value, Strategy::Balanced);
        let map = of(&["a", "--device-map", "cpu-split.toml", "--dtype", "bf16"]);
        assert_eq!(map.dtype.of("unet"), Some(sdshard::backend::DType::BF16));
    }
}
