//! What is planned without a map on machines of many kinds, beside every map that comes with sdshard and every device alone:
//! by the time for all pictures that are asked for. Stable Diffusion 1.5, 512 x 512, 50 steps.

mod common;

use std::sync::OnceLock;

use common::stable_diffusion;
use sdshard::{
    DeviceMap, Largest, Plan,
    backend::{DeviceInfo, DeviceKind},
    models::spec::ModelSpec,
    planner::{device_map::SHIPPED, hardware},
    weights::ModelFiles,
};

const CPU: &str = "[device.cpu]\nmemory = \"32GiB\"\ncores = \"0-7\"\n";

const MACHINES: [(&str, &str); 5] = [
    ("4 GiB GPU + CPU", "[device.\"cuda:0\"]\nmemory = \"4GiB\"\n<CPU>"),
    (
        "4090 + 3060 + CPU",
        "[device.\"cuda:0\"]\nlike = \"rtx-4090\"\n[device.\"cuda:1\"]\nlike = \"rtx-3060-12gb\"\n<CPU>",
    ),
    (
        "2 x 3090 + 8 GB",
        "[device.\"cuda:0\"]\nlike = \"rtx-3090\"\ncount = 2\n[device.\"cuda:2\"]\nlike = \"rtx-3070\"\n",
    ),
    ("8 x H100 + CPU", "[device.\"cuda:0\"]\nlike = \"h100-sxm\"\ncount = 8\n<CPU>"),
    ("iGPU + CPU", "[device.\"wgpu:0\"]\nlike = \"radeon-780m\"\n<CPU>"),
];

const IMAGES: [usize; 4] = [1, 2, 10, 10_000];

fn spec() -> &'static ModelSpec {
    static SPEC: OnceLock<ModelSpec> = OnceLock::new();
    SPEC.get_or_init(|| ModelSpec::load(&ModelFiles::folder(stable_diffusion("1.5", false).path()).unwrap()).unwrap())
}

fn machine(text: &str) -> Vec<DeviceInfo> {
    hardware::parse(&text.replace("<CPU>", CPU), "machine.toml").unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn resolve(map: &str, images: usize, devices: &[DeviceInfo]) -> sdshard::error::Result<Plan> {
    let map = DeviceMap::parse(map, "map.toml").unwrap_or_else(|error| panic!("{map}\n{error}"));
    let largest = Largest { width: 512, height: 512, also: vec![], guided: true, scheduler: None, steps: 50, images };
    Plan::resolve(&map, spec(), &largest, devices)
}

fn plan(map: &str, images: usize, devices: &[DeviceInfo]) -> Plan {
    resolve(map, images, devices).unwrap_or_else(|error| panic!("{map}\n{error}"))
}

/// Whether all devices of a plan are of one numerics class, which leaves no CPU beside a GPU.
fn is_simple(plan: &Plan) -> bool {
    plan.devices.iter().all(|device| device.class == plan.devices[0].class)
}

/// Where a plan is, in short: its replicas, or how many there are, and its devices.
fn short(plan: &Plan) -> String {
    let devices: Vec<String> = plan.devices.iter().map(|device| device.id.to_string()).collect();
    format!("{} on {}", plan.replicas.len(), devices.join(" "))
}

#[test]
fn without_a_map_no_shipped_map_and_no_single_device_is_done_much_sooner() {
    let mut wrong = Vec::new();
    for (name, text) in MACHINES {
        let devices = machine(text);
        let alone = devices.iter().map(|device| (device.id.to_string(), format!("devices = [\"{}\"]", device.id)));
        let mut maps: Vec<(String, String)> = alone.collect();
        maps.dedup_by_key(|(id, _)| devices.iter().find(|device| device.id.to_string() == *id).unwrap().name.clone());
        maps.extend(SHIPPED.map(|(map, text)| (map.to_string(), text.to_string())));
        for images in IMAGES {
            let chosen = plan("strategy = \"throughput\"", images, &devices);
            let seconds = chosen.seconds_in_all();
            println!("\n{name}, {images} pictures: {seconds:.2} s, {}", short(&chosen));
            assert!(is_simple(&chosen) || chosen.devices.iter().all(|device| device.id.kind != DeviceKind::Cpu), "{chosen}");
            let mut compared = 0;
            for (map, text) in &maps {
                let Ok(other) = resolve(text, images, &devices) else {
                    println!("  {map:<22}         -");
                    continue;
                };
                compared += 1;
                let (others, simple) = (other.seconds_in_all(), is_simple(&other));
                let mark = if simple { "" } else { "  mixed" };
                println!("  {map:<22} {others:>12.2} s {:>6.2}{mark}", others / seconds);
                let most = if simple { 1.02 * others } else { others / 0.9 };
                if seconds > most {
                    wrong.push(format!("{name}, {images} pictures: {seconds} s, with {map} {others} s{mark}"));
                }
            }
            assert!(compared >= 5, "{name}: only {compared} maps");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
