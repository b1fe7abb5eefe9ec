//! `sdshard PROMPT...`: from arguments to a checked list of pictures to make, and from there to files.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use sdshard::{
    backend,
    engine::Engine,
    error::{Error, Result},
    models::spec::Defaults,
    output,
    pipeline::{
        Metadata, Model,
        latents::{self, Latents},
        request::{Output, Request, Rng, Start},
    },
    planner::{
        Largest, Located,
        device_map::{DeviceMap, Strategy},
        plan::Plan,
        world::World,
    },
    scheduler::{SchedulerKind, schedule},
    weights::Observer,
};

use super::{
    GenerateArgs, MapArgs, OutputType, Seed,
    gauge::{Gauge, Planned},
    interrupt::Interrupt,
    model,
    names::{Names, Place, tell_apart},
    progress::Console,
    prompts::{self, Options},
    run::{Run, Summary, trace_file},
};

/// The strengths of guidance that the built-in model draws well with: see `models/emoji/README.md`.
const TOY_GUIDANCE: std::ops::RangeInclusive<f32> = 1.5..=3.0;

/// The most pictures of one run.
const MAX_JOBS: usize = 1_000_000;

/// Makes the pictures.
pub fn run(args: &GenerateArgs, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let world = World::new(args.rank, args.world_size, |name| std::env::var(name).ok())?;
    if world.world_size > 1 && args.seed == Some(Seed::Random) {
        return Err(Error::input("--seed random: several processes would each draw a seed of their own")
            .hint("--seed N, with the same N for all"));
    }
    if world.world_size > 1 && args.prompts_file.as_deref() == Some(Path::new("-")) {
        return Err(Error::input("--prompts-file -: several processes cannot read one stdin").hint("a file"));
    }
    let (mut jobs, first_seed) = jobs(args)?;
    if world.world_size > 1 && !mine(&mut jobs, &world, console) {
        return if args.json { console.print(&Summary::default().line()) } else { Ok(()) };
    }
    backend::cpu::threads::share_cores(world.local_rank, world.local_world_size);
    let map = device_map(&args.model)?;
    let latents = args.latents.as_deref().map(Latents::read).transpose()?;
    let folder = args.folder();
    output::check_writable(&args.output.as_ref().map_or(folder.clone(), |output| folder.join(output.folder())))?;
    let trace_file = args.trace.as_ref().map(|path| trace_file(path, &world));
    if let Some(trace) = trace_file.as_deref() {
        file_name_is_possible("--trace", trace)?;
    }
    let folders: BTreeSet<_> =
        jobs.iter().filter_map(|job| Some(folder.join(&job.file).parent()?.to_path_buf())).collect();
    let swept: usize = folders.iter().map(|folder| output::sweep(folder)).sum();
    if swept > 0 {
        tracing::info!(swept, "removed unfinished files of an earlier run");
    }
    let mut model = model::open(&args.model.model, console, Some(interrupt))?;
    model.observer = Some(loading_observer(console, interrupt));
    let model = Arc::new(model);
    interrupt.check()?;
    let mut requests = requests(&jobs, args, &model, latents.as_ref())?;
    warn_of_habits(&requests, args.model.model.model.is_none().then_some(&model.spec.defaults));
    let visible = world.own_devices(&backend::visible())?;
    let resolve = |requests: &[Request]| -> Result<Option<Plan>> {
        let plan = |largest: Largest| Plan::resolve(&map, &model.spec, &largest, &visible);
        Largest::of(requests, &model.spec)?.map(plan).transpose()
    };
    let mut plan = resolve(&requests)?;
    interrupt.check()?;
    let asked = jobs.len();
    if let Some(now) = plan.as_ref().filter(|_| args.resume || !args.overwrite) {
        let there = are_made(&jobs, &requests, args, &model, now)?;
        (jobs, requests) = (missing(jobs, &there), missing(requests, &there));
        if jobs.len() < asked {
            plan = resolve(&requests)?;
        }
    }
    interrupt.check()?;
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
    plan.warnings().iter().for_each(|line| console.note(line));
    let loading = Instant::now();
    let engine = Engine::load(model, &plan)?;
    let started = Instant::now();
    let devices = plan.devices.iter().map(|device| device.id).collect();
    let (load, replicas) = (started - loading, plan.replicas.len().min(jobs.len()));
    let planned = Planned { seconds_per_image: plan.seconds_per_image, images_per_second: plan.images_per_second };
    let mut run = Run {
        args,
        console,
        interrupt,
        world: &world,
        jobs: &jobs,
        requests: &requests,
        plan: &plan,
        started,
        under_way: HashMap::new(),
        open: (0..jobs.len()).collect(),
        stopping: false,
        unread_told: false,
        saved: 0,
        skipped: asked - jobs.len(),
        failed: Vec::new(),
        trace: Vec::new(),
        trace_file,
        first_seed,
        gauge: Gauge::new(started, load, devices, replicas, planned, seconds_alone(&plan, &requests)),
        overview: console.overview(),
    };
    let outcome = engine.generate(requests.iter().cloned(), |index, event| run.on(index, event));
    run.finish(outcome, &engine)
}

/// Shows how far the reading of weights has come, and ends it once somebody wants the run to stop.
fn loading_observer(console: &Console, interrupt: &Interrupt) -> Observer {
    let (bar, interrupt) = (console.loading(), interrupt.clone());
    Observer(Arc::new(move |loading| {
        interrupt.check()?;
        bar.show(&loading);
        Ok(())
    }))
}

/// Says once what is drawn other than somebody may expect: the syntax of web UIs in prompts, and sizes or guidance that the
/// built-in model was not made for; `built_in` has what it was made for.
fn warn_of_habits(requests: &[Request], built_in: Option<&Defaults>) {
    let texts = requests.iter().flat_map(|request| [&request.prompt, &request.negative_prompt]);
    if let Some(found) = texts.into_iter().find_map(|text| prompts::syntax_of_web_uis(text)) {
        tracing::warn!(
            "{found:?} in a prompt is taken for plain text, as diffusers does: sdshard has no weighted words, no LoRA and no \
             BREAK"
        );
    }
    let Some(Defaults { width, height, guidance_scale, .. }) = built_in else { return };
    let is_odd = |request: &&Request| {
        (request.width, request.height) != (*width, *height) || !TOY_GUIDANCE.contains(&request.guidance_scale)
    };
    if let Some(Request { width: w, height: h, guidance_scale: scale, .. }) = requests.iter().find(is_odd) {
        tracing::warn!(
            "the built-in toy model was made for {width}x{height} and guidance {guidance_scale} (1.5 to 3), and draws badly with \
             {w}x{h} and guidance {scale}"
        );
    }
}

/// The seconds of each picture by itself: the plan's for one picture, by its steps, its size and its guidance.
fn seconds_alone(plan: &Plan, requests: &[Request]) -> Vec<f64> {
    let size = |steps: usize, width: usize, height: usize, guided: bool| {
        (steps * width * height) as f64 * if guided { 2.0 } else { 1.0 }
    };
    let largest = &plan.largest;
    let most = size(largest.steps, largest.width, largest.height, largest.guided);
    let alone = requests.iter().map(|request| {
        let own = size(request.steps, request.width, request.height, request.guidance_scale > 1.0);
        plan.seconds_per_image * own / most
    });
    alone.collect()
}

/// Refuses a path that no file can have, before anything is computed.
pub fn file_name_is_possible(option: &str, path: &Path) -> Result<()> {
    if path == Path::new("-") || is_stdout(path) {
        return Err(
            Error::input(format!("{option} {}: stdout has the results", path.display())).hint("the path of a file")
        );
    }
    output::check_possible(path).map_err(|error| error.context(option))
}

/// Whether a path is the regular file that stdout goes to.
fn is_stdout(path: &Path) -> bool {
    #[cfg(unix)]
    return std::fs::metadata(path).is_ok_and(|there| {
        use std::os::unix::fs::MetadataExt;
        let stdout = rustix::fs::fstat(std::io::stdout());
        there.is_file() && stdout.is_ok_and(|out| (out.st_dev, out.st_ino) == (there.dev(), there.ino()))
    });
    #[cfg(not(unix))]
    return path == Path::new("CON");
}

/// Which pictures of a run that is resumed are there, made from the very request and whole.
///
/// # Errors
/// If a picture has no name, because other files have all that it may have and may not be replaced; or if one to resume was
/// made before the model's files were changed: the rest would not belong to it.
fn are_made(jobs: &[Job], requests: &[Request], args: &GenerateArgs, model: &Model, plan: &Plan) -> Result<Vec<bool>> {
    let (folder, hash) = (args.folder(), model.identity()?);
    // Which place of the plan draws a picture is not known before it is drawn.
    let [plain, guided] = [false, true].map(|guided| plan.unet_dtypes(guided));
    let look = |i: usize| {
        let request: &Request = &requests[i];
        let dtypes = if request.guidance_scale > 1.0 { &guided } else { &plain };
        let mut has_name = args.overwrite;
        for dtypes in dtypes {
            let metadata = Metadata::new(request, model, &hash, dtypes)?;
            let names = jobs[i].names.all(&metadata).into_iter().map(|name| folder.join(name));
            let names: Vec<PathBuf> = names.filter(|path| args.resume && path.exists()).collect();
            if names.iter().any(|path| metadata.is_whole(path).unwrap_or(false)) {
                return Ok((true, true));
            }
            let changed = names.iter().find(|path| !args.overwrite && metadata.is_of_changed_model(path));
            if let Some(path) = changed {
                return Err(Error::input(format!("--resume: {} was made by other weights", path.display()))
                    .found(format!("files of {} with another content now", metadata.model))
                    .hint("without --resume for pictures beside the old ones, --overwrite, or another --output-dir"));
            }
            has_name = has_name || jobs[i].names.find(&folder, &metadata).is_some();
        }
        Ok((false, has_name))
    };
    let looked = for_all(jobs.len(), look).into_iter().collect::<Result<Vec<_>>>()?;
    let nameless: Vec<_> =
        jobs.iter().zip(&looked).filter(|(_, (_, has_name))| !has_name).map(|(job, _)| job).collect();
    let Some((first, rest)) = nameless.split_first() else {
        return Ok(looked.into_iter().map(|(is_made, _)| is_made).collect());
    };
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    Err(Error::input(format!(
        "{}{more} would be replaced, but not by the same picture",
        folder.join(&first.file).display()
    ))
    .found("other files have its name, also with seed and digest")
    .hint("another --output-dir, or --overwrite"))
}

/// `look(i)` for each `i` below `count`, by all cores where there are many. Threads that cannot be started are done without.
fn for_all<T: Send>(count: usize, look: impl Fn(usize) -> T + Sync) -> Vec<T> {
    /// Fewer are not worth a thread.
    const FEW: usize = 64;
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(count.div_ceil(FEW));
    let next = AtomicUsize::new(0);
    let work = || {
        let mine = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|i| *i < count);
        mine.map(|i| (i, look(i))).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (1..cores).map_while(start).collect();
        let mut all = work();
        for helper in helpers {
            all.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all.sort_unstable_by_key(|(i, _)| *i);
        all.into_iter().map(|(_, found)| found).collect()
    })
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
    // A run has many requests and few schedules, each of which goes through all training steps.
    let mut checked = HashSet::new();
    jobs.iter()
        .map(|job| {
            let scheduler = job.scheduler.as_deref().map(str::parse).transpose()?;
            let request = job.request(defaults, scale, scheduler, args.rng, output, latents)?;
            request.check(&model.spec).map_err(|e| e.context(job.name()))?;
            // A solver may refuse a number of steps: better now than after the first pictures.
            if checked.insert((request.scheduler, request.steps)) {
                let config = model.spec.scheduler_for(request.scheduler)?;
                schedule(&config, request.steps).map_err(|e| e.context(job.name_of("steps")))?;
            }
            Ok(request)
        })
        .collect()
}

/// One picture to make. What is `None` is the model's to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Place of the prompt in the list, from 0.
    pub prompt_index: usize,
    /// Which of the prompt's pictures, from 0.
    pub image_index: usize,
    /// Names that its file may have in the output folder, and the preferred one for messages.
    pub names: Names,
    pub file: String,
    /// Where it is asked for, if in a file: the file and the line.
    pub asked_at: Option<String>,
    /// Which of the fields that may be wrong for a model are said there, and not by flags.
    pub asked_fields: Vec<&'static str>,
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
    /// The solver's name.
    pub scheduler: Option<String>,
    /// Pixels.
    pub width: Option<usize>,
    /// Pixels.
    pub height: Option<usize>,
}

/// All pictures in order, and the seed of the first. Everything is checked that can be without the model.
pub fn jobs(args: &GenerateArgs) -> Result<(Vec<Job>, u64)> {
    args.options.check(|field| format!("--{}", field.replace('_', "-")))?;
    if let Some(folder) = args.output.as_ref().and_then(|template| template.as_folder_in(&args.folder())) {
        return Err(Error::input(format!("--output {}: this is a folder", folder.display()))
            .hint(format!("--output-dir {}", folder.display())));
    }
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
        let said = [
            ("width", options.width.is_some()),
            ("height", options.height.is_some()),
            ("steps", options.steps.is_some() || options.scheduler.is_some()),
        ];
        let asked_fields: Vec<_> = said.into_iter().filter(|(_, said)| *said).map(|(field, _)| field).collect();
        let options = options.or(&args.options);
        let prompt = options.prompt.unwrap_or_default();
        let images = options.num_images.unwrap_or(1);
        if jobs.len() + images > MAX_JOBS {
            return Err(Error::input(format!("more than {MAX_JOBS} pictures in one run")).hint("several runs"));
        }
        for image_index in 0..images {
            let seed = match options.seed {
                Some(own) => own.wrapping_add(image_index as u64),
                None => first_seed.wrapping_add(jobs.len() as u64),
            };
            let place = Place { prompt_index, image_index, images, prompt: &prompt, seed };
            let names = match &args.output {
                Some(template) => template.names(&place, extension)?,
                None => Names::by_place(&place, extension),
            };
            jobs.push(Job {
                prompt_index,
                image_index,
                file: names.to_string(),
                names,
                asked_at: options.at.clone(),
                asked_fields: asked_fields.clone(),
                prompt: prompt.clone(),
                negative_prompt: options.negative_prompt.clone().unwrap_or_default(),
                seed,
                has_own_seed: options.seed.is_some(),
                steps: options.steps,
                guidance_scale: options.guidance_scale,
                scheduler: options.scheduler.clone(),
                width: options.width,
                height: options.height,
            });
        }
    }
    if args.output.is_some() {
        tell_apart(jobs.iter_mut().map(|job| &mut job.names));
        jobs.iter_mut().for_each(|job| job.file = job.names.to_string());
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

    /// What messages call one of its fields: the flag, or the field at its place in a file.
    fn name_of(&self, field: &'static str) -> String {
        match &self.asked_at {
            Some(at) if self.asked_fields.contains(&field) => format!("{at}: {field}"),
            _ => format!("--{field}"),
        }
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
                return Err(Error::input(format!("{}: has to be a multiple of {scale}", self.name_of(name)))
                    .found(pixels.to_string())
                    .hint(near));
            }
        }
        if let Some(latents) = latents
            && (latents.width * scale, latents.height * scale) != (width, height)
        {
            return Err(Error::input("--latents: they are for another size")
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
pub fn device_map(args: &MapArgs) -> Result<DeviceMap> {
    let mut map = match &args.device_map {
        Some(name) => DeviceMap::load(name)?,
        None => DeviceMap::from_strategy(Strategy::Throughput),
    };
    if let Some(dtype) = args.dtype {
        map.dtype = dtype.dtypes();
    }
    if !args.device.is_empty() {
        if !map.replica.is_empty() {
            return Err(Error::input("--device: the device map writes out its replicas, with devices of their own")
                .hint("another --device-map, or leave --device out"));
        }
        map.devices = args.device.iter().map(|device| Located::flag("--device", *device)).collect();
        map.check()?;
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use sdshard::backend::DType;

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
    fn a_picture_is_resumed_in_every_type_that_its_plan_may_draw_it_in_and_in_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny();
        let machine = folder.path().join("machine.toml");
        std::fs::write(
            &machine,
            "[device.\"cuda:0\"]\nlike = \"rtx-3090\"\n[device.cpu]\nmemory = \"64GiB\"\ncores = \"0-3\"\n",
        )
        .unwrap();
        let devices = sdshard::planner::hardware::read(&machine).unwrap();
        let out = folder.path().to_str().unwrap();
        let args =
            args(&["a", "--num-images", "4", "--resume", "--output-dir", out, "--width", "64", "--height", "64"]);
        let (jobs, _) = jobs(&args).unwrap();
        let requests = requests(&jobs, &args, &model, None).unwrap();
        let largest = Largest::of(&requests, &model.spec).unwrap().unwrap();
        let there = |map: &str| {
            let map = DeviceMap::parse(map, "map.toml").unwrap();
            let plan = Plan::resolve(&map, &model.spec, &largest, &devices).unwrap_or_else(|error| panic!("{error}"));
            are_made(&jobs, &requests, &args, &model, &plan).unwrap()
        };
        let image = sdshard::pipeline::Image { width: 64, height: 64, rgb: vec![0; 64 * 64 * 3] };
        for (i, dtypes) in
            [&[DType::F16][..], &[DType::F32], &[DType::BF16], &[DType::F32, DType::F16]].iter().enumerate()
        {
            let metadata = Metadata::new(&requests[i], &model, &model.identity().unwrap(), dtypes).unwrap();
            std::fs::write(folder.path().join(&jobs[i].file), image.encode_png(&metadata).unwrap()).unwrap();
        }
        let unet =
            |places: &str| format!("[components]\ntext_encoder = \"cuda:0\"\nvae = \"cuda:0\"\nunet = {places}\n");
        assert_eq!(there(&unet("\"cuda:0\"")), [true, false, false, false]);
        assert_eq!(there(&unet("\"cpu\"")), [false, true, false, false]);
        assert_eq!(there(&unet("[\"cuda:0\", \"cpu\"]")), [true, true, false, false]);
        assert_eq!(there(&unet("{ negative = \"cpu\", positive = \"cuda:0\" }")), [false, false, false, true]);
    }

    fn tiny() -> Model {
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny-sd1");
        Model::open(sdshard::weights::ModelFiles::folder(tiny).unwrap(), None).unwrap()
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
