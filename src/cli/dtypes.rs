//! `sdshard bench dtypes`: how near pictures in each data type are to those in f32.

use std::sync::Arc;

use sdshard::{
    backend::{DeviceId, Precision},
    bench::{
        device_in,
        dtypes::{self, Report, decibels},
        page,
    },
    error::{Error, Result},
    output,
    pipeline::{ImageFiles, Model, request::Request},
};

use super::{
    args::BenchDTypesArgs,
    html::{Html, facts},
    model,
    progress::Console,
    prompts::{self, Asked, SharedTags, flag},
};

/// The prompts for the built-in model, each for a thing that it was trained on.
const OF_EMOJI: &str = include_str!("prompts_emoji.txt");
/// The prompts for all other models.
const GENERAL: &str = include_str!("prompts_general.txt");
/// A note is printed whenever so many more pictures are done.
const PICTURES_PER_NOTE: usize = 16;

/// Draws the prompts on the device in each type and prints the differences.
pub fn run(args: &BenchDTypesArgs, device: DeviceId, console: &Console) -> Result<()> {
    let html = Html::new(args.html.as_deref())?;
    let info = device_in(device, None)?;
    let has = |dtype: &Precision| info.in_type(Some(*dtype)).is_some();
    let types: Vec<Precision> = match args.dtype.as_slice() {
        [] => Precision::ALL.into_iter().filter(|dtype| *dtype != Precision::F32 && has(dtype)).collect(),
        named => named.iter().map(|dtype| dtype.precision().unwrap_or(info.rules.precision())).collect(),
    };
    let flags = prompts::checked(&args.options, flag)?;
    let fixed = match (&args.prompts_file, &args.model.model) {
        (Some(_), _) => "",
        (None, None) => OF_EMOJI,
        (None, Some(_)) => GENERAL,
    };
    let fixed: Vec<String> = fixed.lines().map(str::to_owned).collect();
    let asked = prompts::asked(&fixed, args.prompts_file.as_deref())?;
    let mut asked: Vec<Asked> = asked.map(|asked| asked.or(&flags, None)).collect();
    if let (true, Some(path)) = (asked.is_empty(), &args.prompts_file) {
        return Err(Error::input(format!("there is no prompt in {}", path.display())));
    }
    let mut tags = SharedTags::default();
    for asked in &mut asked {
        tags.take(asked, None)?;
    }
    if let Some(folder) = &args.output_dir {
        output::check_writable(folder)?;
    }
    let images = ImageFiles::read(asked.iter().flat_map(|asked| asked.options.image_files()))?;
    let model_args = args.model.with_named(&tags.into_list(), asked.iter().flat_map(Asked::texts))?;
    let starts = asked.iter().any(|asked| asked.options.image.is_some());
    let model = Arc::new(model::open(&model_args, starts, console, None)?);
    let requests = requests(&asked, &model, &images)?;
    let count = requests.len();
    let report = dtypes::dtypes(&model, device, &types, &requests, |dtype, done| {
        if done.is_multiple_of(PICTURES_PER_NOTE) || done == count {
            console.note(&format!("{dtype}: {done} of {count} pictures"));
        }
    })?;
    if let Some(folder) = &args.output_dir {
        for figures in &report.types {
            let file = |in_type: &str| folder.join(format!("{}-worst{in_type}.png", figures.dtype));
            figures.worst.picture.save(file(""))?;
            figures.worst.reference.save(file("-in-f32"))?;
        }
    }
    let Request { width, height, steps, .. } = &requests[0];
    let what = format!("{count} pictures of {width}x{height}, {steps} steps");
    html.write(|| page::dtypes(&report, &facts(format!("{device}: {}", report.machine), &args.model, what.clone())))?;
    if args.json {
        let json = serde_json::to_string(&report).expect("numbers and strings can always be written as JSON");
        return console.print(&json);
    }
    print(&report, console)?;
    console.note(&format!("{}: {what}", report.machine));
    Ok(())
}

/// The requests. A picture without a seed of its own has its number in the list.
fn requests(asked: &[Asked], model: &Model, images: &ImageFiles) -> Result<Vec<Request>> {
    let mut requests: Vec<Request> = Vec::new();
    for asked in asked {
        let request = asked.options.request(&model.spec, images, |field| asked.places.name_of(field))?;
        let chunks = model.chunks(&request)?;
        request.schedule(&model.spec).map_err(|error| error.context(asked.places.name_of("steps")))?;
        for n in 0..asked.options.num_images.unwrap_or(1) as u64 {
            let seed = asked.options.seed.map_or(requests.len() as u64, |own| own.wrapping_add(n));
            requests.push(Request { seed, chunks, ..request.clone() });
        }
    }
    Ok(requests)
}

fn print(report: &Report, console: &Console) -> Result<()> {
    console.print("type   least PSNR  median PSNR  worst prompt")?;
    for figures in &report.types {
        console.print(&format!(
            "{:<5} {:>11} {:>12}  {:?}, seed {}",
            figures.dtype.name(),
            decibels(figures.least_psnr_db),
            decibels(figures.median_psnr_db),
            figures.worst.prompt,
            figures.worst.seed
        ))?;
    }
    let names = report.types.iter().map(|figures| format!("{:>21}", figures.dtype.name())).collect::<String>();
    console
        .print(&format!("\nerror of the latents behind each call of the denoiser, median and greatest\ncall{names}"))?;
    let calls = report.types.iter().map(|figures| figures.latents.len()).max().unwrap_or_default();
    for call in 0..calls {
        let errors = report.types.iter().map(|figures| match figures.latents.get(call) {
            Some(error) => format!("{:>11.1e}{:>10.1e}", error.median, error.greatest),
            None => " ".repeat(21),
        });
        console.print(&format!("{:>4}{}", call + 1, errors.collect::<String>()))?;
    }
    Ok(())
}
