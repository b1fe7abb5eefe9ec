//! `sdshard bench`: measures the speed of each component.

use sdshard::{
    backend::DeviceId,
    bench::{self, Figures, Settings},
    error::{Error, Result},
};

use super::{args::BenchArgs, model, progress::Console};

/// Measures the components and prints the results.
pub fn run(args: &BenchArgs, console: &Console) -> Result<()> {
    let device = match args.device.as_slice() {
        [] => DeviceId::CPU,
        [device] => *device,
        several => {
            return Err(
                Error::input("--device: one device is measured at a time").found(format!("{} devices", several.len()))
            );
        }
    };
    let model = model::open(&args.model, false, console, None)?;
    let latents = match args.latent_size {
        Some(size) => size.0,
        None => (model.spec.latents.height, model.spec.latents.width),
    };
    for (name, count, most) in [("batch", args.batch, 256), ("repeat", args.repeat, 1_000_000)] {
        if count == 0 {
            return Err(Error::input(format!("--{name}: at least 1")));
        }
        if count > most {
            return Err(Error::input(format!("--{name}: at most {most}")).found(count.to_string()));
        }
    }
    let settings = Settings { device, latents, batch: args.batch, repeat: args.repeat };
    let report = bench::components(&model, &settings)?;
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
    let (height, width) = latents;
    for (name, figures) in &report.components {
        let Figures { median_s, min_s, max_s, gflop, gflops, peak_share, .. } = figures;
        console.print(&format!(
            "{name:<13} {median_s:>8.4} s {min_s:>7.4} s {max_s:>7.4} s {gflop:>9.2} {gflops:>9.1} {:>6.0} %",
            100.0 * peak_share
        ))?;
    }
    console.note(&format!(
        "texts and latents {} at a time, latents {height}x{width}; one picture for the VAE",
        args.batch
    ));
    Ok(())
}
