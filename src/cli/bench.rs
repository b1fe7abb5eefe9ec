//! `sdshard bench`: measures the speed of each component, or of device maps.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sdshard::{
    backend::{self, DeviceId, DeviceInfo},
    bench::{
        components::{self, Figures, Settings},
        maps, page,
    },
    device_map::DeviceMap,
    error::{Error, Result},
    output::{self, Durability},
    pipeline::{ImageFiles, options::RequestOptions, request::Request},
};

use super::{
    args::{BenchArgs, BenchCommand, BenchMapsArgs, DTypeArg, ModelArgs},
    dtypes, model,
    names::file_name_is_possible,
    progress::{Console, seconds},
    prompts::{self, flag},
    run::quoted,
};

/// Measures what the arguments say and prints the results.
pub fn run(args: &BenchArgs, console: &Console) -> Result<()> {
    match &args.what {
        None => run_components(args, console),
        Some(BenchCommand::Maps(args)) => run_maps(args, console),
        Some(BenchCommand::DTypes(args)) => dtypes::run(args, console),
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
pub fn one_device(named: &[DeviceId]) -> Result<DeviceId> {
    match named {
        [] => Ok(DeviceId::CPU),
        [device] => Ok(*device),
        several => {
            Err(Error::input("--device: one device is measured at a time").found(format!("{} devices", several.len())))
        }
    }
}

/// The file of `--html`, if there is one.
pub struct Html<'a>(Option<&'a Path>);

impl<'a> Html<'a> {
    /// Checks, before anything is measured, that the file can be written.
    pub fn new(path: Option<&'a Path>) -> Result<Self> {
        path.map_or(Ok(()), |path| file_name_is_possible("--html", path))?;
        Ok(Self(path))
    }

    /// Writes the page if there is a file for it.
    pub fn write(&self, page: impl FnOnce() -> String) -> Result<()> {
        self.0.map_or(Ok(()), |path| output::write(path, page().as_bytes(), Durability::Synced))
    }
}

/// What is said at the top of a page: where, when and of what something was measured.
pub fn facts(machine: String, model: &ModelArgs, what: String) -> Vec<(&'static str, String)> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let command = std::env::args_os().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    vec![
        ("machine", machine),
        ("model", model.model.clone().unwrap_or_else(|| "built-in".to_owned())),
        ("measured", what),
        ("date", date(seconds)),
        ("version", concat!("sdshard ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("command", command),
    ]
}

/// Seconds since 1970 as a date with the time in UTC, by the algorithm of Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms": its years begin in March, so that the day of a leap year is the last.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468; // since the first of March of the year 0
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600 % 24, seconds / 60 % 60)
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

#[cfg(test)]
mod tests {
    #[test]
    fn a_date_is_that_of_the_gregorian_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(super::date(seconds), date);
        }
    }
}
