//! Plans that know time, for hardware that is not here: what `throughput` and `latency` choose, beside every map that a
//! person would write; what a plan says of itself. Stable Diffusion 1.5, 512 x 512, 50 steps.

use std::{fs, sync::OnceLock};

use crate::common::{sdshard, stable_diffusion, succeeds};
use sdshard::{
    DeviceMap, Largest, Plan,
    backend::{DeviceId, DeviceInfo, DeviceKind},
    device_map::SHIPPED,
    figure,
    models::{component::ComponentId, spec::ModelSpec},
    pipeline::placement::{Place, Reside},
    planner::hardware,
    weights::ModelFiles,
};
use serde_json::Value;

/// The hardware that the strategies are held to.
const SETS: [(&str, &str); 4] = [
    ("2 x 8 GB, unequal", "[device.\"cuda:0\"]\nlike = \"rtx-3070\"\n[device.\"cuda:1\"]\nlike = \"rtx-3060-8gb\""),
    (
        "8 GB and a processor's own graphics",
        "[device.\"cuda:0\"]\nlike = \"rtx-3070\"\n[device.\"wgpu:0\"]\nlike = \"radeon-780m\"\n[device.cpu]\nmemory = \
         \"32GiB\"",
    ),
    ("4 x 24 GB", "[device.\"cuda:0\"]\nlike = \"rtx-4090\"\ncount = 4"),
    ("8 x 80 GB", "[device.\"cuda:0\"]\nlike = \"h100-sxm\"\ncount = 8"),
];

/// A machine that has whatever a shipped map may name.
const EVERYTHING: &str = "[device.\"cuda:0\"]\nlike = \"rtx-3070\"\ncount = 2\n[device.\"wgpu:0\"]\nlike = \
                          \"radeon-780m\"\ncount = 2\n[device.cpu]\nmemory = \"32GiB\"";

fn spec() -> &'static ModelSpec {
    static SPEC: OnceLock<ModelSpec> = OnceLock::new();
    SPEC.get_or_init(|| ModelSpec::load(&ModelFiles::folder(stable_diffusion("1.5", false).path()).unwrap()).unwrap())
}

fn devices(text: &str) -> Vec<DeviceInfo> {
    hardware::parse(text, "machine.toml").unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn largest(side: usize) -> Largest {
    crate::largest(side, 50, 10_000)
}

fn resolve(map: &str, devices: &[DeviceInfo]) -> sdshard::error::Result<Plan> {
    let map = DeviceMap::parse(map, "map.toml").unwrap_or_else(|error| panic!("{map}\n{error}"));
    Plan::resolve(&map, spec(), &largest(512), devices)
}

/// The UNet of a plan.
fn unet(plan: &Plan) -> ComponentId {
    plan.component("unet").unwrap()
}

fn plan(map: &str, devices: &[DeviceInfo]) -> Plan {
    resolve(map, devices).unwrap_or_else(|error| panic!("{map}\n{error}"))
}

#[test]
fn a_device_that_would_only_be_late_gets_no_pictures() {
    let machine = "[device.\"cuda:0\"]\nlike = \"h100-sxm\"\n[device.\"cuda:1\"]\nlike = \"h100-sxm\"\nflops = 1e12";
    let plan = plan("strategy = \"throughput\"", &devices(machine));
    assert_eq!(plan.devices.iter().map(|device| device.id.to_string()).collect::<Vec<_>>(), ["cuda:0"], "{plan}");
    let says = |what: &str, why: &str| plan.rejected.iter().any(|one| one.what.contains(what) && one.why.contains(why));
    assert!(says("each on one device: cuda:0, cuda:1", " for 10000 pictures rather than "), "{plan}");
    assert_eq!(plan.warnings(), ["left idle: cuda:1"]);
}

#[test]
fn every_shipped_map_resolves_where_its_devices_are() {
    let devices = devices(EVERYTHING);
    for (name, text) in SHIPPED {
        let map = DeviceMap::parse(text, name).unwrap_or_else(|error| panic!("{error}"));
        let plan =
            Plan::resolve(&map, spec(), &largest(64), &devices).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(plan.images_per_second > 0.0 && plan.seconds_per_image > 0.0, "{name}");
        assert!(!plan.reasons.is_empty(), "{name}");
    }
}

#[test]
fn equal_devices_get_a_pipeline_each_and_one_picture_gets_two() {
    let devices = devices(SETS[2].1);
    let throughput = plan("strategy = \"throughput\"", &devices);
    assert_eq!(throughput.replicas.len(), 4);
    assert!(throughput.devices.iter().all(|device| device.idle_share < 0.01));
    let single = plan("strategy = \"single\"", &devices);
    assert!((throughput.images_per_second / single.images_per_second - 4.0).abs() < 0.02);
    let latency = plan("strategy = \"latency\"", &devices);
    assert!(matches!(latency.replicas[0].placement[unet(&latency)][0], Place::Guided { .. }));
    assert!(single.seconds_per_image / latency.seconds_per_image > 1.8);
}

#[test]
fn the_same_machine_gives_the_same_plan() {
    for (_, text) in SETS {
        let devices = devices(text);
        assert_eq!(plan("strategy = \"throughput\"", &devices), plan("strategy = \"throughput\"", &devices));
    }
}

#[test]
fn the_number_of_replicas_in_a_map_is_kept() {
    let devices = devices(SETS[2].1);
    for (map, replicas) in [("replicas = 1", 1), ("replicas = 2", 2), ("replicas = \"max\"", 4)] {
        let plan = plan(&format!("strategy = \"throughput\"\n{map}"), &devices);
        assert_eq!(plan.replicas.len(), replicas, "{map}");
    }
    let named = plan("strategy = \"throughput\"\n[components]\nvae = \"cuda:3\"", &devices);
    assert_eq!(named.device_map()["vae"], [DeviceId::new(DeviceKind::Cuda, 3)]);
    assert!(named.reasons.contains(&"vae on cuda:3: named in the map".to_string()), "{:?}", named.reasons);
    assert!(named.images_per_second > 3.0 * plan("strategy = \"single\"", &devices).images_per_second);
    let four = plan("strategy = \"throughput\"\nreplicas = 1\nin_flight = 3", &devices);
    assert_eq!(four.replicas[0].in_flight, 3);
}

#[test]
fn with_equal_numerics_each_component_has_one_class() {
    let devices = devices(SETS[1].1);
    for strategy in ["throughput", "latency"] {
        let plan = plan(&format!("strategy = \"{strategy}\"\nnumerics = \"same\""), &devices);
        let on = |component| plan.devices.iter().filter(move |device| device.components.contains(&component));
        for (id, component) in plan.components.iter() {
            let classes: std::collections::BTreeSet<_> = on(id).map(|device| &device.class).collect();
            assert_eq!(classes.len(), 1, "{strategy}: {} on {classes:?}", component.name);
        }
    }
}

#[test]
fn balanced_cuts_what_no_device_holds_and_then_offloads_weights() {
    let small =
        |memory: &str, count: usize| devices(&format!("[device.\"cuda:0\"]\nmemory = \"{memory}\"\ncount = {count}"));
    let whole = plan("", &small("8GiB", 2));
    assert!(whole.replicas[0].placement[unet(&whole)].iter().all(|place| !place.is_cut() && !place.is_offloaded()));

    let cut = plan("", &small("2GiB", 3));
    let place = &cut.replicas[0].placement[unet(&cut)][0];
    assert!(place.is_cut(), "{place:?}");
    assert!(cut.reasons.iter().any(|reason| reason.contains("cut where it takes least time")), "{:?}", cut.reasons);
    assert!(cut.edges.iter().any(|edge| edge.what == "skip tensors" && edge.bytes_per_image > 0));
    assert!(cut.edges.iter().any(|edge| edge.what == "section border"));

    let offloaded = plan("", &small("2GiB", 1));
    let placement = &offloaded.replicas[0].placement;
    assert!(placement.iter().any(|(_, places)| places[0].routes()[0].reside == Reside::Host));
    assert!(offloaded.reasons.iter().any(|reason| reason.contains("weights are offloaded")), "{:?}", offloaded.reasons);
    assert!(offloaded.host_weight_bytes > 0);

    for plan in [&cut, &offloaded] {
        assert!(plan.devices.iter().all(|device| device.total_bytes() <= device.budget_bytes));
        assert!(plan.rejected.iter().any(|rejected| rejected.why.contains("fits on no device")), "{:?}", plan.rejected);
    }
    let refused = resolve("", &small("1GiB", 1)).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
}

#[test]
fn a_device_counts_weights_in_the_type_that_it_runs() {
    let devices = devices("[device.\"cuda:0\"]\nmemory = \"8GiB\"\n[device.cpu]\nmemory = \"32GiB\"");
    let on = |device: &str| {
        let map = format!("devices = [\"{device}\"]\nstrategy = \"single\"\nconvolution = \"direct\"");
        plan(&map, &devices).devices[0].weight_bytes as f64
    };
    assert!((on("cpu") / on("cuda:0") - 2.0).abs() < 0.02);
}

#[test]
fn the_rate_of_a_pool_is_the_sum_of_its_instances() {
    let devices = devices(SETS[2].1);
    let pool = plan(
        "[components]\ntext_encoder = \"cuda:0\"\nunet = [\"cuda:1\", \"cuda:2\", \"cuda:3\"]\nvae = \"cuda:0\"",
        &devices,
    );
    assert_eq!(pool.replicas[0].in_flight, 4);
    let unet_seconds = pool.components[unet(&pool)].seconds;
    let rate = 3.0 / unet_seconds;
    assert!((pool.images_per_second / rate - 1.0).abs() < 0.05, "{} of {rate}", pool.images_per_second);
    // R = 3 UNets; what fills and drains the pipeline, and the slowest instance.
    let fill = pool.seconds_per_image;
    for images in [12, 60, 300] {
        let (seconds, work) = (pool.seconds_for(images), images as f64 / rate);
        assert!(seconds >= work && seconds <= 1.05 * (fill + work) + unet_seconds, "{images}: {seconds} of {work}");
    }
}

#[test]
fn a_cut_that_several_requests_pass_overlaps() {
    let devices = devices("[device.\"cuda:0\"]\nlike = \"rtx-3070\"\ncount = 3");
    let cut = |more: &str| {
        let shards = "unet = { shards = { \"\" = \"cuda:0\", \"up_blocks\" = \"cuda:1\", \"conv_out\" = \"cuda:1\" } }";
        plan(&format!("{more}\n[components]\ntext_encoder = \"cuda:2\"\n{shards}\nvae = \"cuda:2\""), &devices)
    };
    let (alone, auto) = (cut("in_flight = 1"), cut(""));
    // Two pieces, and a device for the rest.
    assert_eq!(auto.replicas[0].in_flight, 3);
    assert!(auto.images_per_second > 1.4 * alone.images_per_second);
    assert!((auto.seconds_per_image / alone.seconds_per_image - 1.0).abs() < 0.02);
    assert!(auto.devices[0].idle_share < alone.devices[0].idle_share);
    assert_eq!(auto.replicas[0].scratch_bytes.len(), 2);
}

#[test]
fn sixty_four_devices_are_planned_without_leaving_anything_out() {
    let devices = devices("[device.\"cuda:0\"]\nlike = \"h100-sxm\"\ncount = 64");
    let plan = plan("strategy = \"throughput\"", &devices);
    assert_eq!(plan.replicas.len(), 64);
    // A search says so when its steps, which are counted, were not enough.
    assert!(plan.rejected.iter().all(|rejected| rejected.what != "further placements"), "{plan}");
}

#[test]
fn a_plan_as_json_has_its_figures_and_is_drawn_as_svg() {
    let model = stable_diffusion("1.5", false);
    let machine = model.path().join("machine.toml");
    fs::write(&machine, SETS[0].1).unwrap();
    let svg = model.path().join("plan.svg");
    let (model, machine) = (model.path().to_str().unwrap(), machine.to_str().unwrap());
    let arguments = ["plan", "--json", "--model", model, "--devices", machine, "--device-map", "latency"];
    let stdout = succeeds(sdshard(&arguments).arg("--svg").arg(&svg));
    let plan: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["device_map"]["unet"].as_array().unwrap().len(), 2);
    assert_eq!(plan["device_map"]["vae"], "cuda:0");
    for device in plan["devices"].as_array().unwrap() {
        for key in ["budget_bytes", "weight_bytes", "activation_bytes"] {
            assert!(device[key].as_u64().unwrap() > 0, "{device}");
        }
        assert!((0.0..=1.0).contains(&device["idle_share"].as_f64().unwrap()), "{device}");
    }
    for edge in plan["edges"].as_array().unwrap() {
        assert!(edge["bytes_per_image"].as_u64().unwrap() > 0 && edge["from"] != edge["to"], "{edge}");
    }
    assert!(plan["seconds_per_image"].as_f64().unwrap() > 0.0 && plan["images_per_second"].as_f64().unwrap() > 0.0);
    assert!(
        plan["reasons"].as_array().unwrap().iter().any(|reason| reason.as_str().unwrap().contains("; one picture in "))
    );
    let rejected = plan["rejected"].as_array().unwrap();
    assert!(rejected.iter().any(|one| one["why"].as_str().unwrap().contains("more")), "{rejected:?}");

    let drawn = fs::read_to_string(svg).unwrap();
    assert!(drawn.starts_with("<svg xmlns=") && drawn.trim_end().ends_with("</svg>"));
    for word in ["cuda:0", "cuda:1", "negative unet", "positive unet", "the first 3 pictures"] {
        assert!(drawn.contains(word), "{word}");
    }
    assert_eq!(drawn.matches("<text").count(), drawn.matches("</text>").count());
}

#[test]
fn a_plan_of_the_library_serialises_with_names_of_devices_and_components() {
    let plan = plan("strategy = \"latency\"", &devices(SETS[2].1));
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["largest"]["width"], 512);
    let (unet, vae) = (&json["components"][1], &json["components"][2]);
    assert_eq!((&unet["name"], &unet["stage"]), (&"unet".into(), &"denoise".into()), "{json}");
    assert_eq!(unet["cost"]["weight_bytes"], plan.components[plan.component("unet").unwrap()].cost.weight_bytes);
    assert_eq!(json["devices"][1]["name"], plan.devices[1].id.to_string());
    // What there is one of for each component is in their order.
    let guided = &json["replicas"][0]["placement"][1][0]["guided"];
    assert_eq!((&guided["positive"]["reside"], &vae["dtype"]), (&"device".into(), &"f16".into()), "{json}");
}

#[test]
fn many_devices_are_drawn_in_part() {
    let devices = devices("[device.\"cuda:0\"]\nlike = \"h100-sxm\"\ncount = 24");
    let drawn = figure::svg(&plan("replicas = \"max\"", &devices));
    assert!(drawn.contains("and 16 more replicas") && drawn.contains("and 8 more devices"));
}
