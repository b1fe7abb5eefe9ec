//! What is planned without a map on machines of many kinds, beside every map that comes with sdshard and every device
//! alone: by the time for all pictures that are asked for. Stable Diffusion 1.5, 512 x 512, 50 steps.

use std::sync::OnceLock;

use crate::common::{has_facts, message_of, points_at, sdshard, stable_diffusion, succeeds};
use crate::largest;
use sdshard::{
    DeviceMap, Plan,
    backend::{DeviceId, DeviceInfo, DeviceKind},
    device_map::SHIPPED,
    models::spec::ModelSpec,
    planner::hardware,
    weights::ModelFiles,
};

const CPU: &str = "[device.cpu]\nmemory = \"32GiB\"\ncores = \"0-7\"\n";

const MACHINES: [(&str, &str); 8] = [
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
    ("2 x 8 GB, unequal", "[device.\"cuda:0\"]\nlike = \"rtx-3070\"\n[device.\"cuda:1\"]\nlike = \"rtx-3060-8gb\"\n"),
    (
        "8 GB + iGPU + CPU",
        "[device.\"cuda:0\"]\nlike = \"rtx-3070\"\n[device.\"wgpu:0\"]\nlike = \"radeon-780m\"\n<CPU>",
    ),
    ("a slow iGPU + CPU", "[device.\"wgpu:0\"]\nmemory = \"3GiB\"\nflops = 2e11\n<CPU>"),
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
    let largest = largest(512, 50, images);
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
    for (number, (name, text)) in MACHINES.into_iter().enumerate() {
        let devices = machine(text);
        let alone = devices.iter().map(|device| (device.id.to_string(), format!("devices = [\"{}\"]", device.id)));
        let mut maps: Vec<(String, String)> = alone.collect();
        maps.dedup_by_key(|(id, _)| devices.iter().find(|device| device.id.to_string() == *id).unwrap().name.clone());
        maps.extend(SHIPPED.map(|(map, text)| (map.to_string(), text.to_string())));
        let counts = if number < 5 { &IMAGES[..] } else { &[1, 10] };
        for &images in counts {
            let chosen = plan("strategy = \"throughput\"", images, &devices);
            let seconds = chosen.seconds_in_all();
            println!("\n{name}, {images} pictures: {seconds:.2} s, {}", short(&chosen));
            assert!(
                is_simple(&chosen) || chosen.devices.iter().all(|device| device.id.kind != DeviceKind::Cpu),
                "{chosen}"
            );
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

/// The devices of a plan.
fn names(plan: &Plan) -> Vec<String> {
    plan.devices.iter().map(|device| device.id.to_string()).collect()
}

#[test]
fn no_strategy_uses_the_cpu_beside_a_gpu_unless_the_map_names_it_or_nothing_else_fits() {
    let gpus = machine(MACHINES[3].1);
    for strategy in
        ["balanced", "balanced_low_0", "sequential", "single", "diffusers-balanced", "throughput", "latency"]
    {
        for more in
            ["", "replicas = \"max\"\n", "replicas = 2\n", "numerics = \"same\"\n", "in_flight = 3\nbatch = 2\n"]
        {
            let plan = plan(&format!("strategy = \"{strategy}\"\n{more}"), 10, &gpus);
            assert!(!names(&plan).contains(&"cpu".to_string()), "{strategy} {more}: {plan}");
        }
    }
    assert_eq!(plan("replicas = \"max\"", 10, &gpus).replicas.len(), 8);
    // It is used where the map lists it, for a component where the map says so, and not for others then.
    assert!(names(&plan("devices = [\"cuda:0\", \"cpu\"]", 10, &gpus)).contains(&"cpu".to_string()));
    let named = plan("[components]\ntext_encoder = \"cpu\"", 10, &gpus);
    assert_eq!(named.device_map()["text_encoder"], [DeviceId::CPU]);
    assert!(
        ["unet", "vae"].iter().all(|name| named.device_map()[*name].iter().all(|id| *id != DeviceId::CPU)),
        "{named}"
    );
    // A GPU that holds nothing is no reason to refuse what the CPU holds.
    let small = machine("[device.\"cuda:0\"]\nmemory = \"600MiB\"\n<CPU>");
    for strategy in ["balanced", "single", "sequential", "throughput", "latency"] {
        assert_eq!(names(&plan(&format!("strategy = \"{strategy}\""), 10, &small)), ["cpu"], "{strategy}");
    }
}

#[test]
fn numerics_that_have_to_be_the_same_lead_to_another_plan_and_not_to_an_error() {
    let mixed = machine(MACHINES[1].1);
    let limits = "[max_memory]\n\"cuda:0\" = \"3GiB\"";
    for (map, replicas) in [
        ("replicas = \"max\"", 1),
        ("strategy = \"sequential\"\nreplicas = \"max\"", 1),
        ("strategy = \"throughput\"\nreplicas = \"max\"", 1),
        ("strategy = \"throughput\"", 1),
        ("strategy = \"throughput\"\nreplicas = 1\nin_flight = 4", 1),
        ("strategy = \"diffusers-balanced\"\nreplicas = \"max\"", 1),
    ] {
        let plan = plan(&format!("{map}\nnumerics = \"same\""), 10_000, &mixed);
        assert!(plan.mixed().is_empty() && plan.replicas.len() == replicas, "{map}: {plan}");
        let any = resolve(map, 10_000, &mixed).unwrap();
        assert!(any.seconds_in_all() <= 1.001 * plan.seconds_in_all(), "{map}");
    }
    assert!(plan(&format!("numerics = \"same\"\n{limits}"), 2, &mixed).mixed().is_empty());
    // Where nothing else is possible, the line of the map is shown.
    let message = resolve("replicas = 2\nnumerics = \"same\"", 2, &mixed).unwrap_err().to_string();
    points_at(&message, "map.toml:2:12: numerics: ", "fewer replicas");
    let named = "numerics = \"same\"\n[components]\nunet = [\"cuda:0\", \"cuda:1\"]";
    points_at(&resolve(named, 2, &mixed).unwrap_err().to_string(), "map.toml:1:12: numerics: the unet ", "class");
}

#[test]
fn a_numbered_device_is_a_gpu_of_any_machine_or_a_share_of_the_cpu() {
    let unet = "[components]\nunet = \"device:1\"\ntext_encoder = \"device:0\"\nvae = \"device:0\"";
    for (machine_text, expected) in
        [(MACHINES[1].1, ["cuda:0", "cuda:1"]), (MACHINES[6].1, ["cuda:0", "wgpu:0"]), ("<CPU>", ["cpu:0", "cpu:1"])]
    {
        for map in [unet.to_string(), format!("devices = [\"device:0\", \"device:1\"]\n{unet}")] {
            assert_eq!(names(&plan(&map, 1, &machine(machine_text))), expected, "{map}");
        }
        // Limits, facts and replicas name them as well.
        let more = "[max_memory]\n\"device:0\" = \"7GiB\"\n[device.\"device:1\"]\nreserve = \"1GiB\"\n";
        let plan =
            plan(&format!("devices = [\"device:1\", \"device:0\"]\nreplicas = 2\n{more}"), 1, &machine(machine_text));
        assert!(plan.devices.iter().all(|device| expected.contains(&device.id.to_string().as_str())), "{plan}");
        let first = plan.devices.iter().find(|device| device.id.to_string() == expected[0]).unwrap();
        assert!(first.budget_bytes <= 7 << 30, "{plan}");
    }
    let cut = "[[replica]]\n[replica.components]\nunet = { negative = \"device:0\", positive = { shards = { \"\" = \"device:0\", \
               \"up_blocks\" = \"device:1\" } } }";
    assert_eq!(plan(cut, 1, &machine(MACHINES[1].1)).device_map()["unet"].len(), 2);
    for (map, at, says) in [
        (
            "devices = [\"device:2\"]",
            "map.toml:1:12: devices: \"device:2\" is GPU number 3",
            "found: 2 GPUs: cuda:0, cuda:1",
        ),
        (
            "[components]\nvae = \"device:7\"",
            "map.toml:2:7: components.vae: \"device:7\" is GPU number 8",
            "\"cpu:0\", \"cpu:1\"",
        ),
        (
            "[max_memory]\n\"cuda:0\" = \"1GiB\"\n\"device:0\" = \"2GiB\"",
            "map.toml:3:1: max_memory.device:0: cuda:0 has two entries",
            "cuda:0",
        ),
        ("devices = [\"cuda:1\", \"device:1\"]", "map.toml:1:22: devices: cuda:1 is named twice", "each device once"),
    ] {
        points_at(&resolve(map, 1, &machine(MACHINES[1].1)).unwrap_err().to_string(), at, says);
    }
    let message = hardware::parse("[device.\"device:0\"]\nmemory = \"8GiB\"", "m.toml").unwrap_err().to_string();
    points_at(&message, "m.toml:1:9: device.device:0: ", "[device.\"cuda:0\"]");
}

#[test]
fn gpus_that_are_left_idle_and_classes_that_are_mixed_are_said() {
    let devices = machine(MACHINES[1].1);
    assert_eq!(plan("devices = [\"cuda:0\"]", 1, &devices).warnings(), ["left idle: cuda:1"]);
    assert!(plan("replicas = 1", 1, &machine(MACHINES[0].1)).warnings().is_empty());
    let mixed = plan("replicas = 2", 1, &devices);
    let [warning] = &mixed.warnings()[..] else { panic!("{mixed}") };
    points_at(warning, "mixed numerics: ", "text_encoder and unet and vae");
    assert!(mixed.to_string().contains(warning), "{mixed}");
    // Each replica has a line of its own.
    assert!(mixed.to_string().contains("\nreplicas\n  0: all of it cuda:0\n  1: all of it cuda:1\n"), "{mixed}");
    let two = "[[replica]]\ncomponents = { unet = [\"cuda:0\", { execute = \"cuda:1\", reside = \"disk\" }], vae = \"cuda:1\", \
               text_encoder = \"cuda:1\" }\n[[replica]]\ndevices = [\"cuda:0\"]";
    let text = plan(two, 1, &devices).to_string();
    let line = "  0: text_encoder and vae cuda:1, unet cuda:0 | cuda:1 (weights from disk); ";
    assert!(text.contains(line), "{line}\n{text}");
}

#[test]
fn maps_that_could_be_planned_for_hours_are_planned_in_part_or_rejected() {
    let narrow = |count: usize, mebibytes: usize| -> Vec<DeviceInfo> {
        let device = |i| format!("[device.\"cuda:{i}\"]\nmemory = \"{}MiB\"\n", mebibytes + 37 * i);
        machine(&((0..count).map(device).collect::<String>() + "<CPU>"))
    };
    let pieces = |i: usize| {
        format!(
            "{{ shards = {{ \"\" = \"cuda:{i}\", \"up_blocks\" = \"cuda:{}\", \"conv_out\" = \"cuda:{}\" }} }}",
            (i + 1) % 8,
            (i + 2) % 8
        )
    };
    let pool = (0..8).map(pieces).collect::<Vec<_>>().join(", ");
    let cuts = format!(
        "in_flight = 1024\nbatch = 64\n[components]\nvae = \"cuda:0\"\ntext_encoder = \"cuda:1\"\nunet = [{pool}]"
    );
    let replicas: String =
        (1..=64).map(|n| format!("[[replica]]\nstrategy = \"throughput\"\nin_flight = {n}\nbatch = {n}\n")).collect();
    let mut ended = 0;
    for (map, devices) in [
        ("strategy = \"throughput\"\nin_flight = 1024\nbatch = 64", narrow(16, 1600)),
        ("strategy = \"throughput\"\nbatch = 64", narrow(4, 24_000)),
        ("strategy = \"balanced\"\nbatch = 2", narrow(250, 2000)),
        (&cuts, narrow(8, 1600)),
        (&replicas, narrow(16, 1200)),
    ] {
        match resolve(map, 1000, &devices) {
            Ok(plan) => {
                ended += usize::from(plan.rejected.iter().any(|one| one.why.contains("the search ended")));
                assert!(plan.devices.iter().all(|device| device.total_bytes() <= device.budget_bytes), "{plan}");
            }
            Err(error) => {
                let message = error.to_string();
                assert_eq!(error.exit_code(), 2, "{message}");
                let says = ["takes too long to plan", "before the search for one had to end", "does not fit", "fit"];
                assert!(says.iter().any(|says| message.contains(says)), "{message}");
            }
        }
    }
    assert!(ended > 0, "no plan says that its search was ended");
}

#[test]
fn the_program_plans_for_the_pictures_that_are_asked_for() {
    let folder = stable_diffusion("1.5", false);
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_string()
    };
    let devices = file("machine.toml", &MACHINES[1].1.replace("<CPU>", CPU));
    let prompts = file("p.jsonl", "{\"prompt\": \"a\", \"num_images\": 5, \"steps\": 30}\n{\"prompt\": \"b\"}\n");
    let of = |arguments: &[&str]| -> serde_json::Value {
        let mut command = sdshard(&["plan", "--json", "--devices", &devices, "--model"]);
        serde_json::from_str(&succeeds(command.arg(folder.path()).args(arguments))).unwrap()
    };
    let seconds = |plan: &serde_json::Value| plan["seconds"].as_f64().unwrap();
    let one = of(&[]);
    assert_eq!((&one["images"], &one["steps"]), (&1.into(), &50.into()));
    assert!((seconds(&one) / one["seconds_per_image"].as_f64().unwrap() - 1.0).abs() < 0.01, "{one}");
    let few = of(&["a fox", "an owl", "--num-images", "3", "--steps", "20"]);
    assert_eq!((&few["images"], &few["steps"], &few["idle"]), (&6.into(), &20.into(), &serde_json::json!(["cuda:1"])));
    let ratio = seconds(&few) / seconds(&one);
    assert!((2.2..2.6).contains(&ratio), "six pictures of twenty steps: {ratio}");
    let listed = of(&["a fox", "--prompts-file", &prompts, "--num-images", "2"]);
    assert_eq!((&listed["images"], &listed["steps"]), (&9.into(), &50.into()));
    // With more pictures both GPUs are worth it.
    let many = of(&["a fox", "--num-images", "10000"]);
    assert_eq!((many["replicas"].as_array().unwrap().len(), &many["idle"]), (2, &serde_json::json!([])));
    let mut command = sdshard(&["plan", "a fox", "--num-images", "3", "--devices", &devices, "--model"]);
    let text = succeeds(command.arg(folder.path()));
    has_facts("a plan", &text, &["3 pictures in ", "left idle: cuda:1"]);
    for (arguments, says) in [
        (&["plan", "--num-images", "0"][..], "--num-images: at least 1"),
        (&["plan", "a", "--width", "70"], "--width: has to be a multiple of 8"),
        (&["plan", "--prompts-file", "/nowhere.txt"], "reading the prompts in /nowhere.txt"),
    ] {
        let mut command = sdshard(arguments);
        let message = message_of(command.arg("--model").arg(folder.path()).output().unwrap(), says);
        has_facts(arguments, &message, &[says]);
    }
}
