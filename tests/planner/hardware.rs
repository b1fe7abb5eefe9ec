//! Facts about devices: files of devices that are not here, what a map says of those that are, and the placements of
//! diffusers on both.

use std::{fs, path::Path};

use crate::common::{self, has_facts, message_of, points_at, sdshard, sdxl, stable_diffusion, succeeds};
use crate::largest;
use sdshard::{
    backend::{self, DeviceId, DeviceInfo, DeviceKind, Opening, Precision, cpu::Convolution, rules::Rules},
    device_map::DeviceMap,
    models::{autoencoder::AutoencoderSpec, network::NetworkSpec, spec::ModelSpec},
    planner::{
        hardware,
        plan::{ComponentPlan, Plan},
    },
    weights::ModelFiles,
    world::World,
};
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

fn cuda(index: usize) -> DeviceId {
    DeviceId::new(DeviceKind::Cuda, index)
}

fn devices(text: &str) -> Vec<DeviceInfo> {
    hardware::parse(text, "machine.toml").unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// A machine with one CPU of four cores and no other device.
fn four_cores() -> Vec<DeviceInfo> {
    devices("[device.cpu]\nmemory = \"16GiB\"\ncores = \"0-3\"\nflops = 4e11\nbandwidth = \"40GB/s\"")
}

fn spec(folder: &Path) -> ModelSpec {
    ModelSpec::load(&ModelFiles::folder(folder).unwrap()).unwrap()
}

/// A plan for small pictures.
/// A component of a plan.
fn of<'p>(plan: &'p Plan, name: &str) -> &'p ComponentPlan {
    &plan.components[plan.component(name).unwrap()]
}

fn plan(map: &str, spec: &ModelSpec, devices: &[DeviceInfo]) -> sdshard::error::Result<Plan> {
    let map = DeviceMap::parse(map, "map.toml").unwrap_or_else(|error| panic!("{map}\n{error}"));
    let largest = largest(64, 2, 1);
    Plan::resolve(&map, spec, &largest, devices)
}

/// Where the components are, in short.
fn placed(plan: &Plan) -> String {
    let of = |name: &str| plan.homes()[name].join("+");
    format!("unet {}, text_encoder {}, vae {}", of("unet"), of("text_encoder"), of("vae"))
}

/// Where the weights of every component are.
fn homes(plan: &Plan) -> String {
    let homes = plan.homes().into_iter().map(|(name, homes)| format!("{name} {}", homes.join("+")));
    homes.collect::<Vec<_>>().join(", ")
}

/// `max_memory` of so many devices of so many GB.
fn limits(gb: &[u64]) -> String {
    let limit = |(i, gb): (usize, &u64)| format!("\"cuda:{i}\" = \"{gb}GB\"\n");
    format!("[max_memory]\n{}", gb.iter().enumerate().map(limit).collect::<String>())
}

#[test]
fn a_file_describes_devices_in_its_order() {
    let devices = devices(
        r#"
[device."wgpu:0"]
like = "radeon-780m"
reserve = "1GiB"

[device."cuda:1"]
like = "RTX-4090"
count = 2

[device."cuda:0"]
memory = "8GiB"
flops = 3e13
bandwidth = "360GB/s"

[device.cpu]
memory = "64GiB"
cores = "0-15"
"#,
    );
    let names: Vec<String> = devices.iter().map(|device| device.id.to_string()).collect();
    assert_eq!(names, ["wgpu:0", "cuda:1", "cuda:2", "cuda:0", "cpu"]);
    let [igpu, big, other, small, cpu] = &devices[..] else { panic!("five devices") };

    assert_eq!((&*igpu.class.to_string(), igpu.rules), ("wgpu AMD Radeon 780M f16", Rules::Wgpu(Precision::F16)));
    assert_eq!((igpu.memory_bytes, igpu.free_bytes), (8 * GIB, 8 * GIB - GIB / 2 - GIB));
    assert_eq!(big.class.to_string(), "cuda sm_89 f16");
    assert_eq!((big.rates.flops, big.f32_flops, big.rates.bandwidth), (82.6e12, 41.3e12, 1008e9));
    assert_eq!(big.memory_bytes, 24 * GIB);
    assert!(big.overhead_bytes > 0 && cpu.overhead_bytes == 0);
    assert_eq!(DeviceInfo { id: big.id, ..other.clone() }, *big);
    assert_eq!((small.rates.flops, small.rates.bandwidth, small.rates.link), (3e13, 360e9, 12e9));
    assert_eq!((cpu.cores, cpu.allowed_cores.len(), cpu.rates.flops), (16, 16, 16.0 * 50e9));
}

#[test]
fn a_gpu_in_f32_has_the_rates_and_bytes_of_f32() {
    let device = &devices("[device.\"cuda:0\"]\nlike = \"h100-sxm\"")[0];
    let f32 = device.in_type(Some(Precision::F32)).unwrap();
    assert_eq!(
        (&*f32.class.to_string(), f32.rules, f32.rates.flops),
        ("cuda sm_90 f32", Rules::Gpu(Precision::F32), 33.5e12)
    );
    let bf16 = device.in_type(Some(Precision::BF16)).unwrap();
    assert_eq!((&*bf16.class.to_string(), bf16.rates), ("cuda sm_90 bf16", device.rates));
    assert_eq!(device.in_type(None).as_ref(), Some(device));
    assert_eq!(device.in_type(Some(Precision::Int8)), None);
    let cpu = four_cores().remove(0);
    for precision in Precision::ALL {
        let info = cpu.in_type(Some(precision)).unwrap();
        assert_eq!((info.rules.precision(), info.rates), (precision, cpu.rates));
        assert!(info.class.to_string().ends_with(precision.name()), "{}", info.class);
    }
    // An NVIDIA GPU through wgpu has no tensor cores.
    let through_wgpu = &devices("[device.\"wgpu:0\"]\nlike = \"rtx-3090\"")[0];
    assert_eq!((through_wgpu.rates.flops, through_wgpu.f32_flops), (17.8e12, 17.8e12));
}

#[test]
fn a_bad_file_of_devices_says_where_what_and_what_is_possible() {
    for (text, at, says) in [
        (
            "[device.\"cuda:0\"]\nflops = 1e12",
            "machine.toml:1:9: device.cuda:0: how much memory",
            "like = \"rtx-3070\"",
        ),
        (
            "[device.\"cuda:0\"]\nlike = \"rtx 4090\"",
            "machine.toml:2:8: device.cuda:0.like: ",
            "did you mean \"rtx-4090\"?",
        ),
        ("[device.\"cuda:0\"]\nlike = \"voodoo2\"", "machine.toml:2:8: device.cuda:0.like: ", "h100-sxm, h200"),
        ("[device.\"cuda:0\"]\nlike = \"rx-6800\"", "machine.toml:2:8: device.cuda:0.like: cuda:0 is not", "wgpu:0"),
        ("[device.\"cpu\"]\nlike = \"t4\"", "machine.toml:2:8: device.cpu.like: ", "cuda:0"),
        ("[device.\"cuda:0\"]\nmemory = \"8Gb\"", "machine.toml:2:10: device.cuda:0.memory: ", "GB?"),
        ("[device.\"cuda:0\"]\nmemroy = \"8GB\"", "machine.toml:2:1: device.cuda:0.memroy: ", "\"memory\"?"),
        ("[device.\"wgpu:0\"]\nadapter = 0", "machine.toml:2:11: device.wgpu:0.adapter: ", "leave out"),
        ("[device.\"cpu:0\"]\nmemory = \"8GB\"", "machine.toml:1:9: device.cpu:0: ", "\"cpu\""),
        ("[device.cpu]\nmemory = \"8GB\"\ncount = 2", "machine.toml:3:9: device.cpu.count: ", "cores"),
        (
            "[device.\"cuda:0\"]\nlike = \"t4\"\ncount = 3\n[device.\"cuda:2\"]\nlike = \"l4\"",
            "machine.toml:4:9: device.cuda:2: cuda:2 is there already",
            "numbers on",
        ),
        ("[device.\"cuda:0\"]\nlike = \"t4\"\ncount = 1000000000", "machine.toml:3:9: device.cuda:0.count: ", "256"),
        ("strategy = \"single\"", "machine.toml:1:1: strategy: ", "nothing else"),
        ("[device.cuda:0]\nmemory = \"8GB\"", "machine.toml:1:13: ", "[device.\"cuda:0\"]"),
        ("", "machine.toml: there is no device in it", "memory = \"8GiB\""),
    ] {
        let error = hardware::parse(text, "machine.toml").unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 2, "{message}");
        points_at(&message, at, says);
    }
    let message = hardware::read(Path::new("no/such.toml")).unwrap_err().to_string();
    has_facts("an absent file", &message, &["no/such.toml", "rtx-3070"]);
}

#[test]
fn a_map_corrects_what_devices_say() {
    let folder = stable_diffusion("1.5", false);
    let (spec, machine) = (spec(folder.path()), four_cores());
    let on = |facts: &str| plan(&format!("devices = [\"cpu:0\", \"cpu:1\"]\n{facts}"), &spec, &machine).unwrap();
    let budgets = |facts: &str| on(facts).devices.iter().map(|device| device.budget_bytes).collect::<Vec<_>>();
    let half = machine[0].free_bytes / 2;
    assert_eq!(budgets(""), [half, half]);
    assert_eq!(budgets("[device.\"cpu:0\"]\nreserve = \"1GiB\""), [half - GIB, half]);
    assert_eq!(budgets("[device.\"cpu:1\"]\nmemory = \"40GiB\""), [half, 38 * GIB]);
    let cores = |facts: &str| on(facts).devices.iter().map(|device| device.cores.clone()).collect::<Vec<_>>();
    assert_eq!(cores("[device.\"cpu:1\"]\ncores = \"1,3\""), [Some(vec![0, 2]), Some(vec![1, 3])]);
    let whole = plan("[device.cpu]\ncores = \"2\"\nlike = \"t4\"", &spec, &machine).unwrap();
    assert_eq!(whole.devices[0].cores, Some(vec![2]));

    for (map, at, says) in [
        (
            "devices = [\"cpu:0\"]\n[device.\"cpu:0\"]\ncores = \"2-4\"",
            "map.toml:3:9: device.cpu:0.cores: core 4 ",
            "found: cores 0-3",
        ),
        ("[device.cpu]\ncores = \"7\"", "map.toml:2:9: device.cpu.cores: core 7 ", "found: cores 0-3"),
    ] {
        points_at(&plan(map, &spec, &machine).unwrap_err().to_string(), at, says);
    }
}

#[test]
fn cores_that_a_device_is_given_are_those_it_is_opened_with() {
    let here = &backend::visible()[0];
    let core = *here.allowed_cores.last().unwrap();
    let opening = |cores: Vec<usize>| Opening {
        id: DeviceId::new(DeviceKind::Cpu, 0),
        cores: Some(cores),
        adapter: None,
        convolution: Convolution::default(),
    };
    assert!(backend::open(&[opening(vec![core]), DeviceId::new(DeviceKind::Cpu, 1).into()]).is_ok());
    let absent = here.allowed_cores.iter().max().unwrap() + 1;
    let message = |cores| backend::open(&[opening(cores)]).err().unwrap().to_string();
    points_at(&message(vec![absent]), "cpu:0: ", &format!("core {absent}\n  found: cores "));
    points_at(&message(vec![]), "cpu:0: ", "at least");
}

#[test]
fn gpus_store_halves_and_what_the_driver_takes_counts() {
    let folder = stable_diffusion("1.5", false);
    let spec = spec(folder.path());
    let machine = devices("[device.\"cuda:0\"]\nlike = \"rtx-3060-12gb\"");
    let weights = |dtype: &str| of(&plan(dtype, &spec, &machine).unwrap(), "unet").cost.weight_bytes;
    // Every parameter in f32, and with norms and biases in f32 a little more than half of that in f16.
    assert_eq!(weights("dtype = \"f32\""), 4 * 859_520_964);
    let halves = weights("");
    assert!(halves > 2 * 859_520_964 && halves < 2 * 860_500_000, "{halves}");
    assert_eq!(weights("dtype = { unet = \"bf16\" }"), halves);

    let plan_of = |map: &str| plan(map, &spec, &machine);
    let whole = plan_of("").unwrap();
    // What the network works on and the text's keys and values have the type too; latents and statistics are f32.
    let unet = |dtype: &str| of(&plan_of(dtype).unwrap(), "unet").cost;
    let (half, full) = (unet("dtype = \"f16\""), unet("dtype = \"f32\""));
    let share = |half: u64, full: u64| half as f64 / full as f64;
    assert!((0.5..0.51).contains(&share(half.keep_bytes, full.keep_bytes)), "{half:?} {full:?}");
    assert!((0.5..0.75).contains(&share(half.activation_bytes, full.activation_bytes)), "{half:?} {full:?}");
    let device = &whole.devices[0];
    assert_eq!((&*device.class.to_string(), device.overhead_bytes), ("cuda sm_86 f16", GIB / 2));
    let parts = device.weight_bytes + device.activation_bytes + device.keep_bytes;
    assert_eq!(device.total_bytes(), parts + device.overhead_bytes);
    // A limit that leaves no room for the driver is too low for all the weights, one that does is not.
    let limit = |bytes: u64| plan_of(&format!("[max_memory]\n\"cuda:0\" = \"{}KiB\"", bytes.div_ceil(1024)));
    assert_eq!(limit(device.total_bytes()).unwrap().host_weight_bytes, 0);
    let low = limit(parts).unwrap();
    assert!(low.host_weight_bytes > 0 && low.devices[0].total_bytes() <= parts, "{low}");

    let both = devices("[device.\"cuda:0\"]\nlike = \"t4\"\n[device.cpu]\nmemory = \"16GiB\"");
    let message = plan("dtype = \"int8\"", &spec, &both).unwrap_err().to_string();
    points_at(
        &message,
        "map.toml:1:9: dtype: cuda:0 has no int8 arithmetic for the text_encoder",
        "only a CPU has int8",
    );
    assert_eq!(placed(&plan("dtype = \"f16\"", &spec, &both).unwrap()), "unet cuda:0, text_encoder cuda:0, vae cuda:0");
    let mixed = plan("[components]\nunet = \"cuda:0\"\nvae = \"cpu\"", &spec, &both).unwrap();
    assert_eq!((of(&mixed, "unet").dtype, of(&mixed, "vae").dtype), (Precision::F16, Precision::F32));
    // A CPU stores any type; what it computes on stays f32.
    let on_cpu = |dtype: &str| {
        let map = format!("dtype = \"{dtype}\"\ndevices = [\"cpu\"]\nconvolution = \"direct\"");
        let plan = plan(&map, &spec, &both).unwrap();
        let class = plan.devices[0].class_of(spec.component("unet").unwrap()).to_string();
        assert!(class.ends_with(&format!(" {dtype}")), "{class}");
        of(&plan, "unet").cost
    };
    let [wide, half, bf16, int8] = ["f32", "f16", "bf16", "int8"].map(on_cpu);
    assert!((0.5..0.51).contains(&share(half.weight_bytes, wide.weight_bytes)), "{half:?} {wide:?}");
    assert!((0.25..0.27).contains(&share(int8.weight_bytes, wide.weight_bytes)), "{int8:?} {wide:?}");
    assert_eq!((half.keep_bytes, half.activation_bytes), (wide.keep_bytes, wide.activation_bytes));
    assert!((1.0..1.02).contains(&share(bf16.weight_bytes, half.weight_bytes)), "{bf16:?} {half:?}");
    // Attention in int8 has smaller keys and values.
    assert!(bf16.activation_bytes >= wide.activation_bytes, "inputs are converted in scratch memory");
}

#[test]
fn arithmetic_that_a_gpu_does_not_have_is_refused() {
    let folder = stable_diffusion("1.5", false);
    let spec = spec(folder.path());
    for (like, has_bf16) in [("t4", false), ("v100-16gb", false), ("a10", true), ("h100-sxm", true)] {
        let machine = devices(&format!("[device.\"cuda:0\"]\nlike = \"{like}\""));
        assert!(plan("dtype = \"f16\"", &spec, &machine).is_ok(), "{like}");
        match plan("dtype = { unet = \"bf16\" }", &spec, &machine) {
            Ok(_) => assert!(has_bf16, "{like}"),
            Err(error) => {
                assert!(!has_bf16, "{like}: {error}");
                let class = &*machine[0].class.to_string();
                let facts = ["map.toml:1:18: dtype.unet: cuda:0 has no bf16", class, "dtype = \"f16\""];
                has_facts(like, &error.to_string(), &facts);
            }
        }
    }
}

#[test]
fn weights_that_rest_on_the_host_have_to_fit_there() {
    let folder = stable_diffusion("1.5", false);
    let spec = spec(folder.path());
    let map =
        "[components]\nunet = { execute = \"cuda:0\", reside = \"host\" }\nvae = \"cuda:0\"\ntext_encoder = \"cuda:0\"";
    let of = |cpu: &str| plan(map, &spec, &devices(&format!("[device.\"cuda:0\"]\nlike = \"l4\"\n{cpu}")));
    assert!(of("").is_ok(), "nothing is known of the host");
    assert!(of("[device.cpu]\nmemory = \"8GiB\"").is_ok());
    let message = of("[device.cpu]\nmemory = \"2GiB\"").unwrap_err().to_string();
    has_facts("2 GiB", &message, &["host's memory", "needs 1.6 GiB", "found: 1.5 GiB", "reside = \"disk\""]);
    // What the CPU holds is there as well: 1.6 GiB of the UNet fit by themselves, and not beside the VAE.
    let with_vae = map.replace("vae = \"cuda:0\"", "vae = \"cpu\"");
    let of = |map: &str| {
        plan(
            map,
            &spec,
            &devices(&format!("[device.\"cuda:0\"]\nlike = \"l4\"\n{}", "[device.cpu]\nmemory = \"2304MiB\"")),
        )
    };
    assert!(of(map).is_ok());
    let message = of(&with_vae).unwrap_err().to_string();
    has_facts("beside the VAE", &message, &["host's memory", "1.6 GiB of it"]);
    assert!(of(&with_vae.replace("\"host\"", "\"disk\"")).is_ok());
    // Strategies that offload weights look for room there, too.
    let machine = devices("[device.\"cuda:0\"]\nlike = \"l4\"\n[device.cpu]\nmemory = \"1536MiB\"");
    for strategy in ["balanced", "throughput", "latency"] {
        let map = format!("strategy = \"{strategy}\"\n[max_memory]\n\"cuda:0\" = \"1536MiB\"");
        let plan = plan(&map, &spec, &machine).unwrap_or_else(|error| panic!("{strategy}: {error}"));
        assert_eq!((plan.homes()["unet"].as_slice(), plan.host_weight_bytes), (&["disk".to_string()][..], 0), "{plan}");
    }
}

#[test]
fn places_on_one_device_have_the_weights_of_a_section_once() {
    let spec = spec(Path::new("tests/golden/tiny-sd1"));
    let devices = devices("[device.\"cuda:0\"]\nmemory = \"8GiB\"\ncount = 2");
    let weights = |unet: &str| {
        let map = format!("[components]\ntext_encoder = \"cuda:0\"\nvae = \"cuda:0\"\nunet = {unet}");
        let plan = plan(&map, &spec, &devices).unwrap();
        [0, 1].map(|i| plan.devices.iter().find(|device| device.id == cuda(i)).map_or(0, |device| device.weight_bytes))
    };
    let [whole, _] = weights("\"cuda:0\"");
    let cut = |path: &str| format!("{{ shards = {{ \"\" = \"cuda:0\", \"{path}\" = \"cuda:1\" }} }}");
    let [rest, ups] = weights(&cut("up_blocks"));
    let [_, mid] = weights(&cut("mid_block"));
    assert!(rest < whole && ups > 0 && mid > 0);
    // A whole branch beside a cut one has all sections of it; so has a whole instance of a pool.
    for both in ["{{ negative = \"cuda:0\", positive = {} }}", "[\"cuda:0\", {}]"] {
        let both = both.replace("{{", "{").replace("}}", "}").replace("{}", &cut("up_blocks"));
        assert_eq!(weights(&both), [whole, ups], "{both}");
    }
    // Two parts with nothing in common.
    assert_eq!(weights(&format!("[{}, {}]", cut("up_blocks"), cut("mid_block"))), [whole, ups + mid]);
}

#[test]
fn the_entry_without_which_the_plan_would_fit_is_shown() {
    let folder = stable_diffusion("1.5", false);
    let spec = spec(folder.path());
    let devices = devices("[device.\"cuda:0\"]\nlike = \"t4\"\n[device.\"cuda:1\"]\nlike = \"t4\"");
    for (map, at, says) in [
        (
            "strategy = \"single\"\n[max_memory]\n\"cuda:1\" = \"4GiB\"\n\"cuda:0\" = \"1GiB\"\n[components]\nunet = \"cuda:0\"",
            "map.toml:4:1: max_memory.cuda:0: with this, unet placed on cuda:0 by name: 1.6 GiB",
            "without this entry everything fits",
        ),
        (
            "[components]\ntext_encoder = \"cuda:0\"\nunet = \"cuda:0\"\nvae = \"cuda:0\"\n[device.\"cuda:0\"]\nreserve = \"14GiB\"",
            "map.toml:6:1: device.cuda:0.reserve: ",
            "without this entry everything fits",
        ),
    ] {
        points_at(&plan(map, &spec, &devices).unwrap_err().to_string(), at, says);
    }
    // Nothing in the map is to blame.
    let message = plan("devices = [\"cuda:0\"]\nbatch = 2", &spec, &[small(&devices[0])]).unwrap_err().to_string();
    assert!(message.contains(" fits on no device: it needs"), "{message}");
    let asked_for = "[components]\ntext_encoder = \"cuda:0\"\nunet = \"cuda:0\"\nvae = \"cuda:0\"";
    let of = |entry: &str| {
        let device = DeviceInfo { free_bytes: 5 * GIB / 2, ..devices[0].clone() };
        plan(&format!("{entry}\n{asked_for}"), &spec, &[device]).unwrap_err().to_string()
    };
    points_at(&of("in_flight = 1000"), "map.toml:1:13: in_flight: ", "with 1 everything");
    points_at(&of("batch = 64"), "map.toml:1:9: batch: ", "with 1 everything fits");
}

/// The same device with hardly any memory.
fn small(device: &DeviceInfo) -> DeviceInfo {
    DeviceInfo { free_bytes: device.overhead_bytes + (1 << 20), ..device.clone() }
}

#[test]
fn processes_of_one_machine_share_its_gpus_and_each_has_the_cpu() {
    let of = |gpus: &str, rank: usize, count: usize| -> Vec<String> {
        let devices = devices(&format!("{gpus}[device.cpu]\nmemory = \"16GiB\""));
        let named = DeviceInfo { id: "wgpu:9".parse().unwrap(), only_named: true, ..devices[0].clone() };
        let says = |name: &str| match name {
            "RANK" | "LOCAL_RANK" => Some(rank.to_string()),
            "WORLD_SIZE" | "LOCAL_WORLD_SIZE" => Some(count.to_string()),
            _ => None,
        };
        let own = World::new(None, None, says).unwrap().own_devices(&[devices, vec![named]].concat()).unwrap();
        own.iter().map(|info| info.id.to_string()).collect()
    };
    let gpus = "[device.\"cuda:0\"]\nlike = \"l4\"\ncount = 3\n";
    assert_eq!(of(gpus, 0, 2), ["cuda:0", "cuda:1", "cpu", "wgpu:9"]);
    assert_eq!(of(gpus, 1, 2), ["cuda:2", "cpu", "wgpu:9"]);
    assert_eq!(of(gpus, 3, 4), ["cuda:0", "cpu", "wgpu:9"], "too few GPUs for all");
    assert_eq!((of("", 0, 2), of("", 1, 2)), (vec!["cpu".to_string(), "wgpu:9".into()], of("", 0, 2)));
}

#[test]
fn all_cores_and_a_share_of_them_are_refused_however_the_devices_are_found() {
    let spec = spec(Path::new("tests/golden/tiny-sd1"));
    let error = plan("[[replica]]\n[[replica]]\ndevices = [\"cpu:0\"]", &spec, &four_cores()).unwrap_err();
    points_at(&error.to_string(), "map.toml:2:1: replica[1]: ", "cpu:0 beside cpu");
}

#[test]
fn a_decoder_that_overflows_f16_has_f32() {
    let folder = stable_diffusion("1.5", false);
    let mut spec = spec(folder.path());
    let machine = devices("[device.\"cuda:0\"]\nlike = \"l4\"");
    assert_eq!(of(&plan("", &spec, &machine).unwrap(), "vae").dtype, Precision::F16);
    let vae = spec.component("vae").unwrap();
    let NetworkSpec::VaeDecoder(AutoencoderSpec::Kl(decoder)) = &mut spec.components[vae].network else {
        panic!("it is a decoder")
    };
    decoder.force_upcast = true;
    let plain = plan("", &spec, &machine).unwrap();
    assert_eq!((of(&plain, "unet").dtype, of(&plain, "vae").dtype), (Precision::F16, Precision::F32));
    assert_eq!(of(&plan("dtype = \"bf16\"", &spec, &machine).unwrap(), "vae").dtype, Precision::BF16);
}

#[test]
fn diffusers_balanced_is_diffusers_placement_of_whole_models() {
    let machine = devices("[device.\"cuda:0\"]\nlike = \"a100-40gb\"\ncount = 3");
    for (version, safe, gb, expected) in [
        ("1.5", true, &[8, 8][..], "unet cuda:0, text_encoder cuda:1, vae cuda:0"),
        ("1.5", true, &[8, 24], "unet cuda:1, text_encoder cuda:0, vae cuda:1"),
        ("1.5", true, &[2, 1], "unet cuda:0, text_encoder cuda:1, vae cuda:0"),
        ("1.5", true, &[1, 1], "unet cpu, text_encoder cuda:1, vae cuda:1"),
        ("1.5", true, &[8, 8, 8], "unet cuda:0, text_encoder cuda:2, vae cuda:2"),
        ("1.5", false, &[8, 8], "unet cuda:0, text_encoder cuda:1, vae cuda:1"),
        ("1.5", false, &[8, 8, 8], "unet cuda:0, text_encoder cuda:1, vae cuda:2"),
        ("2.1", false, &[8, 8], "unet cuda:0, text_encoder cuda:1, vae cuda:1"),
        ("1.5", true, &[24], "unet cuda:0, text_encoder cuda:0, vae cuda:0"),
        ("2.1", false, &[24], "unet cuda:0, text_encoder cuda:0, vae cuda:0"),
    ] {
        let folder = stable_diffusion(version, safe);
        let map = format!("strategy = \"diffusers-balanced\"\n{}", limits(gb));
        let plan =
            plan(&map, &spec(folder.path()), &machine).unwrap_or_else(|error| panic!("{version} {gb:?}\n{error}"));
        assert_eq!(placed(&plan), expected, "{version}, {safe}, {gb:?} GB");
    }
}

#[test]
fn diffusers_balanced_is_diffusers_placement_of_sdxl() {
    let machine = devices("[device.\"cuda:0\"]\nlike = \"a100-40gb\"\ncount = 4");
    let folder = sdxl();
    for (dtype, gb, expected) in [
        ("f16", &[8, 8][..], "text_encoder cuda:1, text_encoder_2 cuda:1, unet cuda:0, vae cuda:0"),
        ("f16", &[8, 24], "text_encoder cuda:0, text_encoder_2 cuda:0, unet cuda:1, vae cuda:1"),
        ("f16", &[8, 8, 8], "text_encoder cuda:2, text_encoder_2 cuda:1, unet cuda:0, vae cuda:2"),
        ("f16", &[4, 4], "text_encoder cuda:1, text_encoder_2 cuda:0, unet cpu, vae cuda:1"),
        ("f32", &[24, 24], "text_encoder cuda:1, text_encoder_2 cuda:1, unet cuda:0, vae cuda:0"),
    ] {
        let map = format!("strategy = \"diffusers-balanced\"\ndtype = \"{dtype}\"\n{}", limits(gb));
        let plan = plan(&map, &spec(folder.path()), &machine).unwrap_or_else(|error| panic!("{gb:?}\n{error}"));
        assert_eq!(homes(&plan), expected, "{dtype} {gb:?} GB");
    }
}

#[test]
fn sdxl_is_planned_for_the_machines_that_people_have() {
    let (folder, cpu) = (sdxl(), "[device.cpu]\nmemory = \"32GiB\"\ncores = \"0-7\"\n");
    let spec = spec(folder.path());
    let largest = largest(1024, 30, 1);
    let (first, second) = ("[device.\"cuda:0\"]\nlike = \"rtx-3070\"\n", "[device.\"cuda:1\"]\n");
    let latency = "strategy = \"latency\"";
    let [two_gpus, one_gpu] =
        [include_str!("../../device_maps/sdxl-two-gpus.toml"), include_str!("../../device_maps/sdxl-8gb.toml")];
    let vae_apart = "text_encoder cuda:0, text_encoder_2 cuda:0, unet cuda:0, vae cuda:1";
    let offloaded = "text_encoder cuda:0, text_encoder_2 cuda:0, unet cpu, vae cuda:0";
    for (machine, map, expected) in [
        // Neither of two GPUs holds the VAE beside the UNet.
        (format!("{first}{second}like = \"rtx-3060-8gb\"\n"), latency, vae_apart),
        (format!("{first}{second}like = \"rtx-3060-8gb\"\nmemory = \"4GiB\"\n"), latency, vae_apart),
        (
            "[device.\"cuda:0\"]\nlike = \"rtx-3060-12gb\"\n".into(),
            latency,
            "text_encoder cuda:0, text_encoder_2 cuda:0, unet cuda:0, vae cuda:0",
        ),
        (first.into(), latency, offloaded),
        (
            format!("{first}{second}like = \"rtx-3070\"\n"),
            two_gpus,
            "text_encoder cuda:1, text_encoder_2 cuda:1, unet cuda:0, vae cuda:1",
        ),
        (first.into(), one_gpu, offloaded),
    ] {
        let map = DeviceMap::parse(map, "map.toml").unwrap();
        let machine = devices(&format!("{machine}{cpu}"));
        let plan = Plan::resolve(&map, &spec, &largest, &machine).unwrap_or_else(|error| panic!("{expected}\n{error}"));
        assert_eq!(homes(&plan), expected, "{plan}");
        assert!(plan.reasons.iter().any(|reason| reason.contains("vae in f32")), "{plan}");
    }
}

#[test]
fn diffusers_balanced_counts_what_diffusers_counts() {
    // What the UNet leaves of a device is for the safety checker, to the byte: it has 607,963,176 in f16.
    let folder = stable_diffusion("1.5", true);
    let machine = devices("[device.\"cuda:0\"]\nlike = \"a100-40gb\"\ncount = 2");
    for (dtype, size) in [("f16", 1), ("f32", 2)] {
        let (unet, rest) = (1_719_041_928 * size, (607_963_176 + 246_120_960) * size);
        let map = |first: u64, second: u64| {
            format!(
                "strategy = \"diffusers-balanced\"\ndtype = \"{dtype}\"\n\
                 [max_memory]\n\"cuda:0\" = \"{}.{:03}KB\"\n\"cuda:1\" = \"{}.{:03}KB\"",
                first / 1000,
                first % 1000,
                second / 1000,
                second % 1000
            )
        };
        let spec = spec(folder.path());
        let vae = 167_307_726 * size;
        let fits = plan(&map(unet + vae, rest), &spec, &machine).unwrap();
        assert_eq!(placed(&fits), "unet cuda:0, text_encoder cuda:1, vae cuda:0", "{dtype}");
        for (first, second, expected) in [
            (unet + vae - 1, rest, "unet cuda:0, text_encoder cuda:1, vae cpu"),
            (unet + vae, rest - 1, "unet cuda:0, text_encoder cpu, vae cuda:1"),
            // What the UNet does not get is the safety checker's.
            (unet - 1, rest, "unet cpu, text_encoder cuda:1, vae cuda:1"),
        ] {
            let plan = plan(&map(first, second), &spec, &machine).unwrap();
            assert_eq!(placed(&plan), expected, "{dtype} {first} {second}");
        }
    }
}

#[test]
fn components_that_diffusers_offloads_run_on_the_first_device() {
    let folder = stable_diffusion("1.5", true);
    let machine = devices("[device.\"cuda:0\"]\nlike = \"a100-40gb\"\ncount = 2");
    let map = format!("strategy = \"diffusers-balanced\"\n{}", limits(&[1, 1]));
    let plan = plan(&map, &spec(folder.path()), &machine).unwrap();
    assert_eq!(plan.device_map()["unet"], [cuda(0)]);
    assert_eq!(plan.host_weight_bytes, of(&plan, "unet").cost.weight_bytes);
    let first = &plan.devices[0];
    assert!(first.visitor_bytes > 0 && first.visitor_bytes < plan.host_weight_bytes / 4, "{}", first.visitor_bytes);
}

#[test]
fn diffusers_balanced_explains_itself_where_diffusers_would_fail() {
    let machine = devices("[device.\"cuda:0\"]\nlike = \"a100-40gb\"\ncount = 2");
    for (version, gb, facts) in [
        // First the UNet goes to the host, then the text encoder, which drives it out.
        ("1.5", "0.4GB", &["diffusers would lose the unet", "the text_encoder drove it out"][..]),
        ("2.1", "0.6GB", &["diffusers would lose the unet"]),
    ] {
        let folder = stable_diffusion(version, false);
        let map = format!("strategy = \"diffusers-balanced\"\ndtype = \"f32\"\n{}", limits(&[1, 1]));
        let map = map.replace("1GB", gb);
        let error = plan(&map, &spec(folder.path()), &machine).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 2, "{message}");
        has_facts(version, &message, facts);
        has_facts(version, &message, &["strategy = \"balanced\""]);
    }
}

#[test]
fn without_limits_diffusers_balanced_goes_by_free_memory_and_leaves_the_cpu_alone() {
    let folder = stable_diffusion("1.5", true);
    let spec = spec(folder.path());
    let machine = devices(
        "[device.cpu]\nmemory = \"256GiB\"\n[device.\"cuda:0\"]\nlike = \"rtx-3070\"\n\
         [device.\"cuda:1\"]\nlike = \"rtx-3090\"",
    );
    let map = "strategy = \"diffusers-balanced\"";
    assert_eq!(placed(&plan(map, &spec, &machine).unwrap()), "unet cuda:1, text_encoder cuda:0, vae cuda:1");
    assert_eq!(placed(&plan(map, &spec, &machine[..1]).unwrap()), "unet cpu, text_encoder cpu, vae cpu");
    // Two replicas, each with its own devices.
    let four = devices("[device.\"cuda:0\"]\nlike = \"t4\"\ncount = 4");
    let plan = plan(&format!("{map}\nreplicas = 2"), &spec, &four).unwrap();
    assert_eq!(placed(&plan), "unet cuda:0+cuda:2, text_encoder cuda:1+cuda:3, vae cuda:0+cuda:2");
    assert_eq!(plan.devices.last().unwrap().id, cuda(3));
}

#[test]
fn diffusers_balanced_takes_sizes_as_accelerate_does() {
    let folder = stable_diffusion("1.5", true);
    let spec = spec(folder.path());
    let machine = devices("[device.\"cuda:0\"]\nlike = \"a100-40gb\"\ncount = 2");
    let place = |first: &str, second: &str, strategy: &str| {
        let map = format!("{strategy}\n[max_memory]\n\"cuda:0\" = {first}\n\"cuda:1\" = {second}");
        plan(&map, &spec, &machine)
    };
    let diffusers = "strategy = \"diffusers-balanced\"";
    let wide = placed(&place("\"8GB\"", "\"24GB\"", diffusers).unwrap());
    assert_eq!(wide, "unet cuda:1, text_encoder cuda:0, vae cuda:1");
    for (first, second) in [
        ("8000000000", "24000000000"),
        ("\"8000000000B\"", "\"24e9B\""),
        ("\"64Gb\"", "\"192gb\""),
        ("\"7.6GiB\"", "0x5_0000_0000"),
        ("\"8 GB\"", "\"0.024TB\""),
    ] {
        assert_eq!(placed(&place(first, second, diffusers).unwrap()), wide, "{first} {second}");
    }
    // In an inline table before the strategy, and in a replica whose strategy is its own.
    for map in [
        "max_memory = { \"cuda:0\" = 8000000000, \"cuda:1\" = 24000000000 }\nstrategy = \"diffusers-balanced\"",
        "[[replica]]\nmax_memory = { \"cuda:0\" = 8000000000, \"cuda:1\" = 24000000000 }\nstrategy = \"diffusers-balanced\"",
    ] {
        assert_eq!(placed(&plan(map, &spec, &machine).unwrap()), wide, "{map}");
    }
    // Elsewhere a number without a unit is a slip: 8 for 8 GiB.
    for (size, strategy) in
        [("8", "strategy = \"balanced\""), ("-8", diffusers), ("\"8G\"", diffusers), ("8.5", diffusers)]
    {
        let text = format!("{strategy}\n[max_memory]\n\"cuda:0\" = {size}");
        let message = DeviceMap::parse(&text, "map.toml").unwrap_err().to_string();
        points_at(&message, "map.toml:3:12: max_memory.cuda:0: ", "found: ");
    }
}

#[test]
fn the_program_plans_from_configs_for_devices_that_are_not_here() {
    let folder = stable_diffusion("1.5", true);
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let machine = file("machine.toml", "[device.\"cuda:0\"]\nlike = \"rtx-3090\"\ncount = 2\n");
    let sizes = ["--width", "64", "--height", "64"];
    let run = |map: &str, devices: &str| {
        let mut command = sdshard(&["plan", "--device-map", map, "--devices", devices]);
        command.args(sizes).arg("--model").arg(folder.path());
        command
    };
    let map = file("map.toml", &format!("strategy = \"diffusers-balanced\"\n{}", limits(&[8, 24])));
    for (map, expected) in [
        (map.as_str(), json!({"text_encoder": "cuda:0", "unet": "cuda:1", "vae": "cuda:1"})),
        ("diffusers-balanced", json!({"text_encoder": "cuda:1", "unet": "cuda:0", "vae": "cuda:0"})),
    ] {
        let plan: Value = serde_json::from_str(&succeeds(run(map, &machine).arg("--json"))).unwrap();
        assert_eq!(plan["device_map"], expected, "{map}");
        assert_eq!(plan["devices"][0]["numerics"], "cuda sm_86 f16");
        assert_eq!(plan["devices"][0]["overhead_bytes"], 512 << 20);
        assert_eq!(plan["components"]["unet"]["dtype"], "f16");
    }
    let table = succeeds(&mut run("balanced", &machine));
    has_facts("a table", &table, &["512 MiB  of the sum are the driver's", "cuda sm_86 f16"]);

    let bad = file("bad.toml", "[device.\"cuda:0\"]\nlike = \"h100\"\n");
    let message = message_of(run("balanced", &bad).output().unwrap(), "bad.toml");
    has_facts("bad.toml", &message, &["bad.toml:2:8: device.cuda:0.like", "like = \"h100\""]);
    let low = file("low.toml", &format!("strategy = \"diffusers-balanced\"\n{}", limits(&[1, 1])));
    let output = run(&low, &machine).arg("--json").output().unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["device_map"], json!({"text_encoder": "cuda:1", "unet": "cpu", "vae": "cuda:1"}));
    assert_eq!(plan["replicas"][0]["placement"]["unet"], "cuda:0");
    let warning = common::text(&output.stderr);
    has_facts("a warning", warning, &["the unet", "cuda:0", "host's memory in every call"]);
    let least = low.replace("low.toml", "least.toml");
    fs::write(&least, fs::read_to_string(&low).unwrap().replace("1GB", "0.1GB")).unwrap();
    let message = message_of(run(&least, &machine).output().unwrap(), "least.toml");
    has_facts("least.toml", &message, &["diffusers would lose the", "strategy = \"balanced\""]);
}

#[test]
fn rates_are_measured_once_for_each_number_of_cores() {
    let cache = tempfile::tempdir().unwrap();
    let list = |anew: &[&str], threads: &str, cache: &Path| -> Value {
        let mut command = sdshard(&["devices", "--json"]);
        command.args(anew).env("XDG_CACHE_HOME", cache).env("SDSHARD_THREADS", threads);
        serde_json::from_str(&succeeds(&mut command)).unwrap()
    };
    let first = list(&[], "1", cache.path());
    for rate in ["gflops", "bandwidth_gb_per_s", "link_gb_per_s"] {
        assert!(first[0][rate].as_f64().unwrap() > 0.0, "{first}");
    }
    let file = cache.path().join("sdshard/rates.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(", 1 cores, sdshard "), "{text}");
    // Plans and lists believe what the file says, and `devices --measure` measures anew.
    let flops = text.lines().find(|line| line.starts_with("flops = ")).unwrap();
    fs::write(&file, text.replace(flops, "flops = 1.25e15")).unwrap();
    let seconds = || -> f64 {
        let mut command = sdshard(&["plan", "--json", "--model"]);
        command.arg(common::tiny()).env("XDG_CACHE_HOME", cache.path()).env("SDSHARD_THREADS", "1");
        let plan: Value = serde_json::from_str(&succeeds(&mut command)).unwrap();
        plan["seconds_per_image"].as_f64().unwrap()
    };
    let planted = seconds();
    assert_eq!(list(&[], "1", cache.path())[0]["gflops"], 1.25e6, "a list does not measure what is known");
    assert!(list(&["--measure"], "1", cache.path())[0]["gflops"].as_f64().unwrap() < 1e6);
    assert!(seconds() > planted, "measured anew and remembered");
    // Rates of another version are of other kernels.
    let text = fs::read_to_string(&file).unwrap();
    let version = format!("sdshard {}", env!("CARGO_PKG_VERSION"));
    let flops = text.lines().find(|line| line.starts_with("flops = ")).unwrap();
    fs::write(&file, text.replace(&version, "sdshard 0.0.0").replace(flops, "flops = 1.25e15")).unwrap();
    assert!(list(&[], "1", cache.path())[0]["gflops"].as_f64().unwrap() < 1e6);
    // A cache that is none is no reason to fail.
    fs::write(&file, "not toml").unwrap();
    assert!(list(&[], "1", cache.path())[0]["gflops"].as_f64().unwrap() < 1e6);
    let nowhere = cache.path().join("file");
    fs::write(&nowhere, "").unwrap();
    assert_eq!(list(&[], "1", &nowhere)[0]["cores"], 1);
}
