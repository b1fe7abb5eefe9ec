//! `sdshard PROMPT...`: makes a checked list of pictures from the arguments, and then the files.

use std::{
    collections::{BTreeSet, HashMap},
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
    models::{defaults::Defaults, spec::ModelSpec},
    output,
    pipeline::{ImageFiles, Metadata, Model, latents::Latents, request::Request},
    planner::{Largest, plan::Plan},
    prompt::PromptSyntax,
    weights::Observer,
    world::World,
};

use super::{
    args::{GenerateArgs, Seed},
    from,
    gauge::{Gauge, Planned},
    interrupt::Interrupt,
    jobs::{Job, Jobs, adapt_to, jobs, requests},
    model::{self, device_map},
    names::file_name_is_possible,
    progress::Console,
    prompts,
    run::{ImageRun, Summary, trace_file},
};

/// The guidance scales for which the built-in model was trained: see `models/emoji/README.md`.
const TOY_GUIDANCE: std::ops::RangeInclusive<f32> = 1.5..=3.0;

/// Generates the pictures.
pub fn run(args: &GenerateArgs, console: &Console, interrupt: &Interrupt) -> Result<()> {
    let world = World::new(args.rank, args.world_size, |name| std::env::var(name).ok())?;
    if world.world_size > 1 && args.seed == Some(Seed::Random) {
        return Err(Error::input("--seed random: several processes would each draw a seed of their own")
            .hint("--seed N, with the same N for all"));
    }
    if world.world_size > 1 && args.prompts_file.as_deref() == Some(Path::new("-")) {
        return Err(Error::input("--prompts-file -: several processes cannot read one stdin").hint("a file"));
    }
    let Jobs { list: mut jobs, first_seed, tags } = jobs(args)?;
    let model_args = args.model.model.with_named(&tags, jobs.iter().flat_map(Job::texts))?;
    if world.world_size > 1 && !keep_own_jobs(&mut jobs, &world, console) {
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
    let images = ImageFiles::read(jobs.iter().flat_map(|job| job.options.image_files()))?;
    let mut model =
        model::open(&model_args, jobs.iter().any(|job| job.options.image.is_some()), console, Some(interrupt))?;
    model.observer = Some(loading_observer(console, interrupt));
    let model = Arc::new(model);
    interrupt.check()?;
    from::check_model(args, &model, console)?;
    adapt_to(&mut jobs, args, &model);
    let mut requests = requests(&jobs, args, &model, latents.as_ref(), &images)?;
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
    from::tell(args, &model, latents.as_ref(), &requests, &plan, console)?;
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
    let seconds_alone = seconds_alone(&plan, &requests, &model.spec);
    let loading = Instant::now();
    let engine = Engine::load(model, &plan)?;
    let started = Instant::now();
    let devices = plan.devices.iter().map(|device| device.id).collect();
    let (load, replicas) = (started - loading, plan.replicas.len().min(jobs.len()));
    let planned = Planned { seconds_per_image: plan.seconds_per_image, images_per_second: plan.images_per_second };
    let mut run = ImageRun {
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
        gauge: Gauge::new(started, load, devices, replicas, planned, seconds_alone),
        overview: console.overview(),
    };
    let outcome = engine.generate(requests.iter().cloned(), |index, event| run.handle_event(index, event));
    run.finish(outcome, &engine)
}

/// Shows the progress of reading the weights, and stops it when the user has asked to stop.
fn loading_observer(console: &Console, interrupt: &Interrupt) -> Observer {
    let (bar, interrupt) = (console.loading(), interrupt.clone());
    Observer(Arc::new(move |loading| {
        interrupt.check()?;
        bar.show(&loading);
        Ok(())
    }))
}

/// Warns once about settings with an unexpected effect: the syntax of web UIs in prompts, and sizes or guidance scales
/// for which the built-in model was not made; `built_in` has its defaults.
fn warn_of_habits(requests: &[Request], built_in: Option<&Defaults>) {
    let plain = requests.iter().filter(|request| request.prompt_syntax == PromptSyntax::Plain);
    let texts = plain.flat_map(|request| {
        let others = [&request.prompt_2, &request.negative_prompt, &request.negative_prompt_2];
        std::iter::once(&request.prompt).chain(others.into_iter().flatten())
    });
    if let Some(found) = texts.into_iter().find_map(|text| prompts::syntax_of_web_uis(text)) {
        tracing::warn!(
            "{found:?} in a prompt is taken for plain text, as diffusers does: --prompt-syntax a1111 reads weights, LoRA \
             tags and BREAK as web UIs do"
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

/// The seconds of each picture alone: the plan's for one picture, scaled by its steps, size and guidance.
fn seconds_alone(plan: &Plan, requests: &[Request], spec: &ModelSpec) -> Vec<f64> {
    let size = |steps: usize, strength: f64, width: usize, height: usize, guided: bool| {
        strength * (steps * width * height) as f64 * if guided { 2.0 } else { 1.0 }
    };
    let largest = &plan.largest;
    let most = size(largest.steps, largest.strength, largest.width, largest.height, largest.guided);
    let alone = requests.iter().map(|request| {
        let guided = request.is_guided(spec);
        let own = size(request.steps, request.strength(), request.width, request.height, guided);
        plan.seconds_per_image * own / most
    });
    alone.collect()
}

/// For each picture of a resumed run, whether its file exists, is complete, and was made from the same request.
///
/// # Errors
/// If a picture has no name, because other files have all its possible names and may not be replaced; or if a file was
/// made before the model's files changed: the remaining pictures would not match it.
fn are_made(jobs: &[Job], requests: &[Request], args: &GenerateArgs, model: &Model, plan: &Plan) -> Result<Vec<bool>> {
    let folder = args.folder();
    // The identity of a new model requires reading all its files, which would delay a first run without a reason.
    let is_taken = |job: &Job| folder.join(&job.file).symlink_metadata().is_ok();
    if !args.resume && !jobs.iter().any(is_taken) {
        return Ok(vec![false; jobs.len()]);
    }
    let hashes = model.hashes()?;
    // It is not known in advance which place of the plan draws a picture.
    let [plain, guided] = [false, true].map(|guided| plan.denoiser_dtypes(guided));
    let look = |i: usize| {
        let request: &Request = &requests[i];
        let dtypes = if request.is_guided(&model.spec) { &guided } else { &plain };
        let mut has_name = args.overwrite;
        for dtypes in dtypes {
            let metadata = Metadata::new(request, model, &hashes, dtypes)?;
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

/// Calls `look(i)` for each `i` below `count`, on all cores if there are many calls. If a thread cannot be started, the
/// others do its work.
fn for_all<T: Send>(count: usize, look: impl Fn(usize) -> T + Sync) -> Vec<T> {
    /// The number of calls up to which one thread is used.
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

/// The items of `all` whose files are not `there` yet.
fn missing<T>(all: Vec<T>, there: &[bool]) -> Vec<T> {
    all.into_iter().zip(there).filter(|(_, there)| !**there).map(|(one, _)| one).collect()
}

/// Keeps the jobs of this process's prompts and prints which they are; `false` if there are none.
fn keep_own_jobs(jobs: &mut Vec<Job>, world: &World, console: &Console) -> bool {
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use sdshard::{
        backend::Precision,
        device_map::{DeviceMap, Strategy},
        pipeline::PictureFormat,
    };

    use super::*;
    use crate::cli::args::Cli;

    fn args(arguments: &[&str]) -> GenerateArgs {
        Cli::try_parse_from([&["sdshard"], arguments].concat()).unwrap_or_else(|error| panic!("{error}")).generate
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
        let Jobs { list: jobs, .. } = jobs(&args).unwrap();
        let requests = requests(&jobs, &args, &model, None, &ImageFiles::default()).unwrap();
        let largest = Largest::of(&requests, &model.spec).unwrap().unwrap();
        let there = |map: &str| {
            let map = DeviceMap::parse(map, "map.toml").unwrap();
            let plan = Plan::resolve(&map, &model.spec, &largest, &devices).unwrap_or_else(|error| panic!("{error}"));
            are_made(&jobs, &requests, &args, &model, &plan).unwrap()
        };
        let image = sdshard::pipeline::Image { width: 64, height: 64, rgb: vec![0; 64 * 64 * 3] };
        for (i, dtypes) in
            [&[Precision::F16][..], &[Precision::F32], &[Precision::BF16], &[Precision::F32, Precision::F16]]
                .iter()
                .enumerate()
        {
            let metadata = Metadata::new(&requests[i], &model, &model.hashes().unwrap(), dtypes).unwrap();
            std::fs::write(folder.path().join(&jobs[i].file), image.encode(PictureFormat::Png, &metadata).unwrap())
                .unwrap();
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
    fn flags_take_precedence_over_the_device_map() {
        let of = |arguments: &[&str]| device_map(&args(arguments).model).unwrap();
        assert_eq!(of(&["a"]).strategy.value, Strategy::Throughput);
        assert_eq!(of(&["a", "--device-map", "balanced"]).strategy.value, Strategy::Balanced);
        let map = of(&["a", "--device-map", "cpu-split.toml", "--dtype", "bf16"]);
        assert_eq!(map.dtype.of("unet").value, Some(sdshard::backend::Precision::BF16));
    }
}
