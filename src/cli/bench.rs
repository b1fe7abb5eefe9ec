//! `sdshard bench`: measures the speed of each component, or of device maps.

use std::{path::Path, sync::Arc, time::Duration};

use sdshard::{
    backend::{self, DeviceId, DeviceInfo},
    bench::{
        components::{self, Figures, Settings},
        maps, page,
    },
    device_map::DeviceMap,
    error::{Error, Result},
    pipeline::{ImageFiles, options::RequestOptions, request::Request},
};

use super::{
    args::{BenchArgs, BenchCommand, BenchMapsArgs, DTypeArg},
    dtypes,
    html::{Html, facts},
    model,
    progress::{Console, seconds},
    prompts::{self, flag},
};

/// Measures what the arguments say and prints the results.
pub fn run(args: &BenchArgs, console: &Console) -> Result<()> {
    match &args.what {
        None => run_components(args, console),
        Some(BenchCommand::Maps(args)) => run_maps(args, console),
        Some(BenchCommand::DTypes(args)) => dtypes::run(args, one_device(&args.device)?, console),
    }
}

fn run_components(args: &BenchArgs, console: &Console) -> Result<()> {
    let html = Html::new(args.html.as_deref())?;
    let device = one_device(&args.device)?;
    let model = model::open(&args.model, false, console, None)?;
    let latents = match args.latent_size {
        Some(size) => size.0,
        None => (model.spec.latents.height, model.spec.latents.width),
    };
    check_count("--batch", args.batch, 256)?;
    check_count("--repeat", args.repeat, 1_000_000)?;
    let precision = args.dtype.and_then(DTypeArg::precision);
    let settings = Settings { device, precision, latents, batch: args.batch, repeat: args.repeat };
    let report = components::components(&model, &settings)?;
    let (height, width) = latents;
    let what = format!("texts and latents {} at a time, latents {height}x{width}; one picture for the VAE", args.batch);
    html.write(|| {
        let machine = &report.machine;
        let threads = if machine.threads > 0 { format!(", {} threads", machine.threads) } else { String::new() };
        let peak = format!("{:.0} GFLOP/s at most", machine.peak_gflops);
        let facts = facts(format!("{}{threads}, {}, {peak}", machine.name, machine.class), &args.model, what.clone());
        page::components(&report, &facts)
    })?;
    if args.json {
        let json = serde_json::to_string(&report).expect("numbers and strings can always be written as JSON");
        return console.print(&json);
    }
    console.print(&format!(
        "{}, {}{}: {:.0} GFLOP/s at most\n",
        report.machine.name,
        if report.machine.threads > 0 { format!("{} threads, ", report.machine.threads) } else { String::new() },
        report.machine.class,
        report.machine.peak_gflops
    ))?;
    console.print("component        median       min       max     GFLOP   GFLOP/s  of peak")?;
    for (name, figures) in &report.components {
        let Figures { median_s, min_s, max_s, gflop, gflops, peak_share, op_shares, .. } = figures;
        console.print(&format!(
            "{name:<13} {median_s:>8.4} s {min_s:>7.4} s {max_s:>7.4} s {gflop:>9.2} {gflops:>9.1} {:>6.0} %",
            100.0 * peak_share
        ))?;
        let shares = op_shares.iter().filter(|(_, share)| *share >= 0.005);
        let shares: Vec<_> = shares.map(|(op, share)| format!("{op} {:.0} %", 100.0 * share)).collect();
        if !shares.is_empty() {
            console.print(&format!("{:13} {}", "", shares.join(", ")))?;
        }
    }
    console.note(&what);
    Ok(())
}

/// The device of `--device`.
fn one_device(named: &[DeviceId]) -> Result<DeviceId> {
    match named {
        [] => Ok(DeviceId::CPU),
        [device] => Ok(*device),
        several => {
            Err(Error::input("--device: one device is measured at a time").found(format!("{} devices", several.len())))
        }
    }
}

fn check_count(flag: &str, count: usize, most: usize) -> Result<()> {
    match count {
        0 => Err(Error::input(format!("{flag}: at least 1"))),
        count if count > most => Err(Error::input(format!("{flag}: at most {most}")).found(count.to_string())),
        _ => Ok(()),
    }
}

fn run_maps(args: &BenchMapsArgs, console: &Console) -> Result<()> {
    check_count("--rounds", args.rounds, 1000)?;
    let html = Html::new(args.html.as_deref())?;
    let options = prompts::checked(&args.options, flag)?;
    let options = options.or(&RequestOptions { prompt: Some("a red fox".to_owned()), ..RequestOptions::default() });
    let load = |name: &String| {
        let map = DeviceMap::load(name)?;
        Ok((Path::new(name).file_name().map_or(name.clone(), |file| file.to_string_lossy().into_owned()), map))
    };
    let named = args.maps.iter().map(load).collect::<Result<Vec<_>>>()?;
    let images = ImageFiles::read(options.image_files())?;
    let model = model::open(&args.model, options.image.is_some(), console, None)?;
    let request = options.request(&model.spec, &images, flag)?;
    let settings = maps::Settings { images: options.num_images, rounds: args.rounds };
    let report = maps::maps(&Arc::new(model), &named, &request, &settings, |round, name| {
        console.note(&format!("round {} of {}: {name}", round + 1, args.rounds));
    });
    let Request { width, height, steps, .. } = &request;
    let what = format!("{width}x{height}, {steps} steps; medians of {} rounds", args.rounds);
    html.write(|| {
        let used = |info: &DeviceInfo| report.maps.iter().any(|map| map.devices.contains(&info.id));
        let devices = backend::visible().into_iter().filter(used);
        let devices: Vec<_> = devices.map(|info| format!("{}: {}", info.id, info.name)).collect();
        page::maps(&report, &facts(devices.join("; "), &args.model, what.clone()))
    })?;
    if args.json {
        let json = serde_json::to_string(&report).expect("numbers and strings can always be written as JSON");
        return console.print(&json);
    }
    let width = report.maps.iter().map(|map| map.name.chars().count()).max().unwrap_or(0).max(3);
    let all = format!("{} pictures", report.images);
    console.print(&format!(
        "{:width$} {:>8} {:>12} {:>9} {all:>12} {:>9} {:>9} {:>10}",
        "map", "replicas", "one picture", "planned", "planned", "loading", "memory"
    ))?;
    for map in &report.maps {
        let time = |value: f64| seconds(Duration::from_secs_f64(value));
        console.print(&format!(
            "{:width$} {:>8} {:>12} {:>9} {:>12} {:>9} {:>9} {:>6} MiB",
            map.name,
            map.replicas,
            time(map.one_s),
            time(map.planned_one_s),
            time(map.all_s),
            time(map.planned_all_s),
            time(map.load_s),
            map.planned_bytes >> 20,
        ))?;
    }
    for (name, reason) in &report.failed {
        console.print(&format!("{name}: not measured: {reason}"))?;
    }
    console.note(&what);
    Ok(())
}
