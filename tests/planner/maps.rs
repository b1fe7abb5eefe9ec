//! Device maps good and bad: file, then message.

use crate::common::{has_facts, points_at};
use sdshard::{
    backend::{DeviceId, DeviceKind, Precision},
    device_map::{Convolution, DeviceMap, InFlight, MapPlace, Numerics, Replicas, Reside, Strategy},
    models::spec::ModelSpec,
    weights::ModelFiles,
};

fn cpu(index: usize) -> DeviceId {
    DeviceId::new(DeviceKind::Cpu, index)
}

fn cuda(index: usize) -> DeviceId {
    DeviceId::new(DeviceKind::Cuda, index)
}

/// The components of the models that are run today.
const COMPONENTS: [&str; 3] = ["text_encoder", "unet", "vae"];

fn spec() -> ModelSpec {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji");
    ModelSpec::load(&ModelFiles::folder(folder).unwrap()).unwrap()
}

fn parse(text: &str) -> DeviceMap {
    DeviceMap::parse(text, "map.toml").unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// A place in short: `cuda:0`, `cuda:0@host`, `-cuda:0 +cuda:1`, `=cuda:1 down_blocks=cuda:0`.
fn short(place: &MapPlace) -> String {
    let at = |reside: Reside| match reside {
        Reside::Device => "",
        Reside::Host => "@host",
        Reside::Disk => "@disk",
    };
    match place {
        MapPlace::On { device, reside } => format!("{}{}", device.value, at(reside.value)),
        MapPlace::Cut { shards, reside } => {
            let shards: Vec<_> = shards.iter().map(|(path, device)| format!("{path}={}", device.value)).collect();
            format!("{}{}", shards.join(" "), at(reside.value))
        }
        MapPlace::Guided { negative, positive } => format!("-{} +{}", short(negative), short(positive)),
    }
}

/// The places of a component in short, those of a pool with bars between.
fn places(map: &DeviceMap, component: &str) -> String {
    map.components[component].value.iter().map(short).collect::<Vec<_>>().join(" | ")
}

/// The whole message for a bad map.
fn message(text: &str) -> String {
    match DeviceMap::parse(text, "map.toml") {
        Ok(map) => panic!("{text}\nwas read as {map:?}"),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{error}");
            error.to_string()
        }
    }
}

#[test]
fn every_key_is_read() {
    let map = parse(
        r#"
strategy = "single"
devices = ["cuda:0", "cuda:1"]
replicas = 1
in_flight = 3
batch = 4
numerics = "same"
convolution = "direct"

[dtype]
unet = "f16"
vae = "auto"

[max_memory]
"cuda:0" = "6GiB"

[components]
unet = "cuda:1"
"#,
    );
    assert_eq!(map.strategy.value, Strategy::Single);
    assert_eq!(map.devices.iter().map(|d| d.value).collect::<Vec<_>>(), [cuda(0), cuda(1)]);
    assert_eq!(map.replicas.value, Replicas::Count(1));
    assert_eq!(COMPONENTS.map(|name| map.dtype.of(name).value), [None, Some(Precision::F16), None]);
    assert_eq!(map.max_memory[&cuda(0)].value, 6 << 30);
    assert_eq!(map.in_flight.value, InFlight::Count(3));
    assert_eq!(map.batch.value, 4);
    assert_eq!(map.numerics.value, Numerics::Same);
    assert_eq!(map.convolution.value, Convolution::Direct);
    assert_eq!(places(&map, "unet"), "cuda:1");
}

#[test]
fn every_place_is_read() {
    for (component, expected) in [
        (r#"unet = "cuda:0""#, "cuda:0"),
        (r#"unet = { execute = "cuda:0" }"#, "cuda:0"),
        (r#"vae = { execute = "cuda:0", reside = "host" }"#, "cuda:0@host"),
        (r#"text_encoder = { execute = "cpu", reside = "disk" }"#, "cpu@disk"),
        (r#"vae.execute = "cuda:0""#, "cuda:0"),
        (r#"unet = { negative = "cuda:0", positive = "cuda:1" }"#, "-cuda:0 +cuda:1"),
        (
            r#"unet = { negative = { execute = "cuda:0", reside = "host" }, positive = "cuda:1" }"#,
            "-cuda:0@host +cuda:1",
        ),
        (
            r#"unet = { negative = "cuda:0", positive = { shards = { "" = "cuda:1", "mid_block" = "cuda:2" } } }"#,
            "-cuda:0 +=cuda:1 mid_block=cuda:2",
        ),
        (r#"unet = { shards = { "" = "cuda:1", "down_blocks" = "cuda:0" } }"#, "=cuda:1 down_blocks=cuda:0"),
        (r#"unet = { shards = { "" = "cuda:1", "down_blocks.0" = "cuda:0" } }"#, "=cuda:1 down_blocks.0=cuda:0"),
        (r#"unet = { shards = { "" = "cuda:1" }, reside = "host" }"#, "=cuda:1@host"),
        ("[components.unet.shards]\n\"\" = \"cuda:1\"\nmid_block = \"cuda:0\"", "=cuda:1 mid_block=cuda:0"),
        (r#"vae = { shards = { "encoder" = "cpu:0", "decoder" = "cpu:1" } }"#, "decoder=cpu:1 encoder=cpu:0"),
        (r#"unet = ["cuda:1"]"#, "cuda:1"),
        (r#"unet = ["cuda:1", "cuda:2", "cuda:3"]"#, "cuda:1 | cuda:2 | cuda:3"),
        (r#"vae = ["cuda:0", { execute = "cuda:1", reside = "host" }]"#, "cuda:0 | cuda:1@host"),
        (
            r#"unet = ["cuda:0", { negative = "cuda:1", positive = "cuda:2" }, { shards = { "" = "cuda:3" } }]"#,
            "cuda:0 | -cuda:1 +cuda:2 | =cuda:3",
        ),
    ] {
        let map = parse(&format!("[components]\n{component}"));
        let name = map.components.first_key_value().unwrap().0.clone();
        assert_eq!(places(&map, &name), expected, "{component}");
    }
}

#[test]
fn every_strategy_has_a_name() {
    for (name, strategy) in [
        ("balanced", Strategy::Balanced),
        ("balanced_low_0", Strategy::BalancedLow0),
        ("sequential", Strategy::Sequential),
        ("single", Strategy::Single),
        ("diffusers-balanced", Strategy::DiffusersBalanced),
        ("throughput", Strategy::Throughput),
        ("latency", Strategy::Latency),
    ] {
        assert_eq!(parse(&format!("strategy = \"{name}\"")).strategy.value, strategy);
        assert_eq!(DeviceMap::load(name).unwrap().strategy.value, strategy);
        assert_eq!(strategy.name(), name);
    }
    assert_eq!(parse("strategy = \"auto\"").strategy.value, Strategy::Balanced);
}

#[test]
fn every_fact_is_read() {
    let map = parse(
        r#"
[device."wgpu:1"]
adapter = 0
reserve = "1GiB"
memory = "24GB"
like = "L4"
flops = 121e12
bandwidth = "300GB/s"
link = "16GB"

[device."cpu:0"]
cores = "0-3, 8,10-11"
"#,
    );
    let facts = &map.device[&DeviceId::new(DeviceKind::Wgpu, 1)].value;
    assert_eq!(facts.adapter.as_ref().unwrap().value, 0);
    assert_eq!(facts.reserve.as_ref().unwrap().value, 1 << 30);
    assert_eq!(facts.memory.as_ref().unwrap().value, 24_000_000_000);
    assert_eq!(facts.like.as_ref().unwrap().value, "L4");
    assert_eq!(facts.flops.as_ref().unwrap().value, 121e12);
    assert_eq!(facts.bandwidth.as_ref().unwrap().value, 300_000_000_000);
    assert_eq!(facts.link.as_ref().unwrap().value, 16_000_000_000);
    assert_eq!(facts.count, None);
    assert_eq!(facts.cores, None);
    assert_eq!(map.device[&cpu(0)].value.cores.as_ref().unwrap().value, [0, 1, 2, 3, 8, 10, 11]);
}

#[test]
fn an_empty_map_is_the_default_map() {
    assert_eq!(parse(""), DeviceMap::default());
    assert_eq!(parse("strategy = \"auto\"\nreplicas = 1").strategy.value, Strategy::Balanced);
    assert_eq!(COMPONENTS.map(|name| parse("dtype = \"int8\"").dtype.of(name).value), [Some(Precision::Int8); 3]);
    assert_eq!(COMPONENTS.map(|name| parse("dtype = \"bf16\"").dtype.of(name).value), [Some(Precision::BF16); 3]);
}

#[test]
fn a_map_is_a_path_a_shipped_name_or_a_strategy() {
    assert_eq!(DeviceMap::load("single").unwrap().strategy.value, Strategy::Single);
    assert_eq!(DeviceMap::load("cpu-split.toml").unwrap().components.len(), 3);
    assert_eq!(DeviceMap::load("device_maps/replicas.toml").unwrap().replicas.value, Replicas::Count(2));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("balanced.toml");
    std::fs::write(&path, "strategy = \"single\"").unwrap();
    assert_eq!(DeviceMap::load(path.to_str().unwrap()).unwrap().strategy.value, Strategy::Single);

    let message = |name: &str| DeviceMap::load(name).unwrap_err().to_string();
    has_facts("a typing error", &message("balancd"), &["did you mean \"balanced\"?"]);
    has_facts("an absent file", &message("./balanced.toml"), &["./balanced.toml", "cpu-split.toml"]);
}

#[test]
fn a_bad_map_says_where_what_and_what_is_possible() {
    // The map, where the message points, and what else it must say.
    for (text, at, says) in [
        // Keys and values.
        ("stratgy = \"single\"", "map.toml:1:1: stratgy: ", "did you mean \"strategy\"?"),
        ("strategy = \"singel\"", "map.toml:1:12: strategy: ", "did you mean \"single\"?"),
        ("strategy = \"fast\"", "map.toml:1:12: strategy: ", "a strategy is \"balanced\""),
        ("strategy = \"sequentially\"", "map.toml:1:12: strategy:", "did you mean \"sequential\"?"),
        ("strategy = \"diffusers_balanced\"", "map.toml:1:12: strategy:", "did you mean \"diffusers-balanced\"?"),
        ("strategy = 3", "map.toml:1:12: strategy:", "found: the number 3"),
        ("devices = \"cuda:0\"", "map.toml:1:11: devices: ", "devices = [\"cuda:0\", \"cuda:1\"]"),
        ("devices = []", "map.toml:1:11: devices: ", "found: an array of 0"),
        ("devices = [\n  \"cuda:0\",\n  \"gpu1\"]", "map.toml:3:3: devices: ", "did you mean \"cuda:1\"?"),
        ("devices = [0, 1]", "map.toml:1:12: devices: ", "\"cuda:0\" is a GPU"),
        ("devices = [\"cuda\"]", "map.toml:1:12: devices:", "did you mean \"cuda:0\"?"),
        ("devices = [\"mps\"]", "map.toml:1:12: devices:", "did you mean \"wgpu:0\"?"),
        ("devices = [\"tpu:0\"]", "map.toml:1:12: devices:", "\"cpu:N\", \"cuda:N\", \"wgpu:N\" or \"device:N\""),
        ("devices = [\"cuda:0\", \"cuda:0\"]", "map.toml:1:22: devices: cuda:0 is named twice", "each device once"),
        ("devices = [\"cpu\", \"cpu:0\"]", "map.toml:1:19: devices: `cpu` is all cores", "cpu:0 beside cpu"),
        ("replicas = 0", "map.toml:1:12: replicas:", "replicas = 1"),
        ("replicas = -1", "map.toml:1:12: replicas: ", "a whole number from 1"),
        ("replicas = 1.5", "map.toml:1:12: replicas: ", "found: the number 1.5"),
        ("replicas = \"all\"", "map.toml:1:12: replicas: ", "or \"max\""),
        ("devices = [\"cuda:0\"]\nreplicas = 2", "map.toml:2:12: replicas:", "found: 2 replicas, 1 device"),
        ("batch = 0", "map.toml:1:9: batch: ", "a whole number from 1"),
        ("batch = \"max\"", "map.toml:1:9: batch: ", "found: \"max\""),
        ("in_flight = 0", "map.toml:1:13: in_flight: ", "\"auto\", or a whole number"),
        ("in_flight = 9223372036854775807", "map.toml:1:13: in_flight: at most 1024 requests", "from 1 to 1024"),
        ("batch = 65", "map.toml:1:9: batch: at most 64 requests", "a whole number from 1 to 64"),
        ("[device.cpu]\nflops = 1e-300", "map.toml:2:9: device.cpu.flops: ", "flops = 82.6e12 is 82.6 TFLOP/s"),
        ("in_flight = \"many\"", "map.toml:1:13: in_flight: ", "found: \"many\""),
        ("in_flight = -2", "map.toml:1:13: in_flight: ", "\"auto\""),
        ("numerics = \"exact\"", "map.toml:1:12: numerics: ", "\"any\", or \"same\""),
        ("numerics = true", "map.toml:1:12: numerics: ", "found: true"),
        ("convolution = \"fft\"", "map.toml:1:15: convolution: ", "\"winograd\", or \"direct\""),
        ("dtype = \"fp16\"", "map.toml:1:9: dtype: ", "did you mean \"f16\"?"),
        ("dtype = \"int4\"", "map.toml:1:9: dtype: ", "\"auto\", \"f32\", \"f16\", \"bf16\" or \"int8\""),
        // Memory.
        ("[max_memory]\n\"cuda:0\" = \"8Gb\"", "map.toml:2:12: max_memory.cuda:0: ", "did you mean GB?"),
        ("[max_memory]\n\"cuda:0\" = 8", "map.toml:2:12: max_memory.cuda:0: ", "\"8GiB\"?"),
        ("[max_memory]\n\"gpu0\" = \"8GB\"", "map.toml:2:1: max_memory.gpu0:", "did you mean \"cuda:0\"?"),
        ("max_memory = \"8GB\"", "map.toml:1:14: max_memory: ", "[max_memory], then"),
        (
            "devices = [\"cuda:0\"]\n[max_memory]\n\"cuda:1\" = \"8GB\"",
            "map.toml:3:1: max_memory.cuda:1: cuda:1",
            "found: devices = [\"cuda:0\"]",
        ),
        // Components.
        ("[components]\nunet = \"gpu0\"", "map.toml:2:8: components.unet: ", "did you mean \"cuda:0\"?"),
        ("[components]\nunet = 1", "map.toml:2:8: components.unet: ", "\"cuda:1\" is a GPU"),
        (
            "devices = [\"cuda:0\"]\n[components]\nvae = \"cuda:1\"",
            "map.toml:3:7: components.vae: cuda:1",
            "add \"cuda:1\"",
        ),
        (
            "[components]\nunet = \"cpu:0\"\nvae = \"cpu\"",
            "map.toml:3:7: components.vae: `cpu` is all cores",
            "cpu beside cpu:0",
        ),
        ("replicas = 2\n[components]\nvae = \"cpu\"", "map.toml:1:12: replicas: ", "found: components.vae"),
        // The usual slips of TOML itself.
        ("[max_memory]\ncuda:0 = \"6GiB\"", "map.toml:2:5: ", "needs quotes: \"cuda:0\" = …"),
        ("[max_memory]\ncuda.0 = \"6GiB\"", "map.toml:2:1: max_memory.cuda:", "quotes: \"cuda:0\" = …"),
        ("[components]\nunet = cuda:0", "map.toml:2:8: ", "text needs quotes: unet = \"cuda:0\""),
        ("strategy = balanced # even", "map.toml:1:12: ", "text needs quotes: strategy = \"balanced\""),
        ("[device.wgpu:1]\nadapter = 0", "map.toml:1:13: ", "needs quotes: [device.\"wgpu:1\"]"),
        ("[components]\nunet.down_blocks = \"cuda:0\"", "map.toml:2:6: components.unet.down_blocks: ", "shards = {"),
        ("[components]\nvae = { execute = cuda:0 }", "map.toml:2:19: ", "text needs quotes: execute = \"cuda:0\""),
        ("[components]\nunet = [cuda:0, cuda:1]", "map.toml:2:9: ", "text needs quotes: \"cuda:0\""),
        (
            "[components]\nunet = { shards = { cuda:0 = \"down_blocks\" } }",
            "map.toml:2:25: ",
            "a name with a colon needs quotes: \"cuda:0\" = …",
        ),
        (
            "[components]\nunet = \"cuda:0\"\nreplicas = 1",
            "map.toml:3:1: components.replicas: ",
            "TOML puts every key that follows [components] into it",
        ),
        (
            "[max_memory]\n\"cuda:0\" = \"6GiB\"\ndtype = \"f16\"",
            "map.toml:3:1: max_memory.dtype:",
            "`dtype` belongs above the first [table]",
        ),
        ("batch = 1\nbatch = 1", "map.toml:2:1: duplicate key", "2 | batch = 1"),
    ] {
        points_at(&message(text), at, says);
    }
}

#[test]
fn a_bad_place_says_where_what_and_what_is_possible() {
    // The line under [components], where the message points in it, and what else it must say.
    for (component, at, says) in [
        // One place.
        ("unet = true", "8: components.unet: ", "a place is \"cuda:0\", { execute ="),
        ("unet = 1.5", "8: components.unet: ", "found: the number 1.5"),
        ("unet = {}", "8: components.unet: `execute` is missing", "a place is"),
        ("vae = { reside = \"host\" }", "7: components.vae: `execute` is missing", "{ execute = \"cuda:0\", reside ="),
        ("vae = { execute = \"gpu1\" }", "19: components.vae.execute: ", "did you mean \"cuda:1\"?"),
        ("vae = { execute = [\"cuda:0\"] }", "19: components.vae.execute: ", "found: an array of 1"),
        ("vae = { exeute = \"cuda:0\" }", "9: components.vae.exeute: ", "did you mean `execute`?"),
        ("vae = { decoder = \"cuda:0\" }", "9: components.vae.decoder: ", "is cut into pieces by shards = {"),
        ("vae = { execute = \"cuda:0\", reside = \"hsot\" }", "38: components.vae.reside: ", "did you mean \"host\"?"),
        ("vae = { execute = \"cuda:0\", reside = \"cpu\" }", "38: components.vae.reside: ", "did you mean \"host\"?"),
        (
            "vae = { execute = \"cuda:0\", reside = \"cuda:0\" }",
            "38: components.vae.reside: ",
            "without `reside` they live where they are used",
        ),
        ("vae = { execute = \"cuda:0\", reside = 1 }", "38: components.vae.reside: ", "found: the number 1"),
        // Guidance apart.
        ("unet = { negative = \"cuda:0\" }", "8: components.unet: `positive` is missing", "positive = \"cuda:1\" }"),
        ("unet = { positive = \"cuda:0\" }", "8: components.unet: `negative` is missing", "negative = \"cuda:0\""),
        (
            "unet = { negative = \"gpu0\", positive = \"cuda:1\" }",
            "21: components.unet.negative: ",
            "did you mean \"cuda:0\"?",
        ),
        (
            "unet = { negative = [\"cuda:0\"], positive = \"cuda:1\" }",
            "21: components.unet.negative: ",
            "a pool is all of a component",
        ),
        (
            "unet = { negative = \"cuda:0\", positive = { negative = \"cuda:1\", positive = \"cuda:2\" } }",
            "55: components.unet.positive.negative: ",
            "found: `negative` and `positive`",
        ),
        (
            "unet = { negative = \"cuda:0\", positive = \"cuda:1\", reside = \"host\" }",
            "52: components.unet.reside: this does not go with `negative`",
            "{ negative = { execute = \"cuda:0\", reside = \"host\" }",
        ),
        (
            "unet = { execute = \"cuda:0\", positive = \"cuda:1\" }",
            "10: components.unet.execute: this does not go with `negative`",
            "a place is",
        ),
        // Cuts.
        ("unet = { shards = \"cuda:0\" }", "19: components.unet.shards: ", "\"\" is the rest"),
        ("unet = { shards = {} }", "8: components.unet: ", "\"down_blocks\" = \"cuda:0\""),
        (
            "unet = { shards = { \"\" = \"cuda:0\" }, execute = \"cuda:1\" }",
            "38: components.unet.execute: this does not go with `shards`",
            "a place is",
        ),
        ("unet = { shards = { \"\" = \"gpu0\" } }", "26: components.unet.shards.\"\": ", "did you mean \"cuda:0\"?"),
        ("unet = { shards = { \"\" = [\"cuda:0\"] } }", "26: components.unet.shards.\"\": ", "found: an array of 1"),
        (
            "unet = { shards = { \"\" = { execute = \"cuda:0\", reside = \"host\" } } }",
            "26: components.unet.shards.\"\": ",
            "`reside` stands beside `shards`",
        ),
        (
            "unet = { shards = { down_blocks.0 = \"cuda:0\" } }",
            "21: components.unet.shards.down_blocks: ",
            "\"down_blocks.0\" = …",
        ),
        (
            "unet = { shards = { \"down_blocks.\" = \"cuda:0\" } }",
            "21: components.unet.shards.\"down_blocks.\": ",
            "\"down_blocks.1\", or \"\" for the rest",
        ),
        (
            "unet = { shards = { \"down_blocks[0]\" = \"cuda:0\" } }",
            "21: components.unet.shards.down_blocks[0]: ",
            "names and numbers with dots between",
        ),
        (
            "unet = { shards = { \"unet.down_blocks\" = \"cuda:0\" } }",
            "21: components.unet.shards.\"unet.down_blocks\": ",
            "did you mean \"down_blocks\"?",
        ),
        // Pools.
        ("unet = []", "8: components.unet: ", "unet = [\"cuda:0\", \"cuda:1\"]"),
        ("unet = [\"cuda:0\", [\"cuda:1\"]]", "19: components.unet: ", "found: an array of 1"),
        ("unet = [\"cuda:0\", 1]", "19: components.unet: ", "\"cuda:1\" is a GPU"),
        ("unet = [\"cuda:0\", \"cuda:0\"]", "19: components.unet: cuda:0 is twice in one pool", "`in_flight`"),
        (
            "unet = { negative = \"cpu:0\", positive = \"cpu\" }",
            "41: components.unet.positive: `cpu` is all cores",
            "cpu beside cpu:0",
        ),
    ] {
        points_at(&message(&format!("[components]\n{component}")), &format!("map.toml:2:{at}"), says);
    }
}

#[test]
fn a_bad_fact_says_where_what_and_what_is_possible() {
    // The device, the line under it, where the message points in it, and what else it must say.
    for (device, fact, at, says) in [
        ("wgpu:0", "adaptor = 0", "1: device.wgpu:0.adaptor: ", "did you mean \"adapter\"?"),
        ("wgpu:0", "adapter = \"one\"", "11: device.wgpu:0.adapter: ", "`sdshard devices` lists them"),
        ("cuda:0", "adapter = 1", "11: device.cuda:0.adapter: cuda:0 has no adapter", "CUDA_VISIBLE_DEVICES"),
        ("cuda:0", "cores = \"0-3\"", "9: device.cuda:0.cores: cuda:0 has no cores", "[device.\"cpu:0\"]"),
        ("cpu:0", "cores = 4", "9: device.cpu:0.cores: ", "cores = \"4\""),
        ("cpu:0", "cores = \"all\"", "9: device.cpu:0.cores: ", "cores = \"0-3,8\""),
        ("cpu:0", "cores = \"\"", "9: device.cpu:0.cores: ", "cores = \"0-15\""),
        ("cpu:0", "cores = \"3-0\"", "9: device.cpu:0.cores: ", "found: \"3-0\""),
        ("cpu:0", "cores = \"0-3,3\"", "9: device.cpu:0.cores: ", "found: \"0-3,3\""),
        ("cpu:0", "cores = \"0-99999999999\"", "9: device.cpu:0.cores: ", "65535"),
        ("cuda:0", "reserve = 1", "11: device.cuda:0.reserve: ", "\"1GiB\"?"),
        ("cuda:0", "memory = \"8Gb\"", "10: device.cuda:0.memory: ", "did you mean GB?"),
        ("cuda:0", "like = \" \"", "8: device.cuda:0.like: ", "like = \"l4\""),
        ("cuda:0", "like = \"l5\"", "8: device.cuda:0.like: ", "did you mean"),
        ("cuda:0", "flops = \"fast\"", "9: device.cuda:0.flops: ", "82.6 TFLOP/s"),
        ("cuda:0", "flops = inf", "9: device.cuda:0.flops: ", "found: the number inf"),
        ("cuda:0", "flops = 0", "9: device.cuda:0.flops: ", "flops = 82.6e12"),
        ("cuda:0", "bandwidth = 300", "13: device.cuda:0.bandwidth: ", "\"1008GB/s\""),
        ("cuda:0", "link = \"16Gb/s\"", "8: device.cuda:0.link: ", "did you mean GB?"),
        ("cuda:0", "link = \"0GB\"", "8: device.cuda:0.link: ", "bytes per second"),
        ("cuda:0", "count = 0", "9: device.cuda:0.count: ", "a whole number from 1"),
        ("cuda:0", "count = 2", "9: device.cuda:0.count: ", "plan --devices"),
        ("cuda:0", "dtype = \"f16\"", "1: device.cuda:0.dtype: ", "`dtype` belongs above the first [table]"),
    ] {
        points_at(&message(&format!("[device.\"{device}\"]\n{fact}")), &format!("map.toml:2:{at}"), says);
    }
    for (text, at, says) in [
        ("device = 1", "map.toml:1:10: device: ", "[device.\"cpu:0\"], then cores ="),
        ("[device]\n\"gpu0\" = {}", "map.toml:2:1: device.gpu0: ", "did you mean \"cuda:0\"?"),
        ("[device]\n\"cuda:0\" = 1", "map.toml:2:12: device.cuda:0: ", "[device.\"cuda:0\"], then"),
        (
            "devices = [\"cuda:0\"]\n[device.\"cuda:1\"]\nreserve = \"1GB\"",
            "map.toml:2:9: device.cuda:1: cuda:1",
            "add \"cuda:1\"",
        ),
        (
            "devices = [\"cpu\"]\n[device.\"cpu:0\"]\ncores = \"0-3\"",
            "map.toml:2:9: device.cpu:0: `cpu` is all cores",
            "cpu:0 beside cpu",
        ),
    ] {
        points_at(&message(text), at, says);
    }
}

#[test]
fn a_bad_replica_says_where_what_and_what_is_possible() {
    for (text, at, says) in [
        ("[replica]\nbatch = 1", "map.toml:1:1: replica: ", "[[replica]] above each"),
        ("replica = []", "map.toml:1:11: replica: ", "found: an array of 0"),
        ("replica = [\"cuda:0\"]", "map.toml:1:12: replica[0]: ", "[[replica]], then devices = ["),
        ("[[replica]]\n[[replica]]\nbatch = 0", "map.toml:3:9: replica[1].batch: ", "a whole number from 1"),
        ("[[replica]]\nin_flight = 0", "map.toml:2:13: replica[0].in_flight: ", "\"auto\""),
        ("[[replica]]\nstrategy = \"x\"", "map.toml:2:12: replica[0].strategy: ", "a strategy is \"balanced\""),
        ("[[replica]]\ndevices = [\"gpu0\"]", "map.toml:2:12: replica[0].devices: ", "mean \"cuda:0\"?"),
        ("[[replica]]\nbatsh = 1", "map.toml:2:1: replica[0].batsh: ", "did you mean \"batch\"?"),
        ("[[replica]]\ndtype = \"f16\"", "map.toml:2:1: replica[0].dtype: ", "`dtype` belongs above"),
        ("[[replica]]\nreplicas = 2", "map.toml:2:1: replica[0].replicas: ", "belongs above the first [[replica]]"),
        (
            "[[replica]]\n[replica.device.\"cuda:0\"]\nreserve = \"1GB\"",
            "map.toml:2:10: replica[0].device: ",
            "`device` belongs above",
        ),
        (
            "[[replica]]\n[replica.components]\nunet = \"cuda:0\"\nbatch = 1",
            "map.toml:4:1: replica[0].components.batch: ",
            "`batch` belongs directly under [[replica]]: TOML puts every key that follows [replica.components] into it",
        ),
        (
            "[[replica]]\ncomponents = { unet = { negative = \"cuda:0\" } }",
            "map.toml:2:23: replica[0].components.unet: `positive` is missing",
            "positive = \"cuda:1\"",
        ),
        (
            "[[replica]]\nmax_memory = { \"cuda:0\" = \"8Gb\" }",
            "map.toml:2:27: replica[0].max_memory.cuda:0: ",
            "did you mean GB?",
        ),
        (
            "[[replica]]\ndevices = [\"cuda:0\", \"cuda:0\"]",
            "map.toml:2:22: replica[0].devices: cuda:0 is named twice",
            "each device once",
        ),
        ("replicas = 2\n[[replica]]\n[[replica]]", "map.toml:1:12: replicas: ", "found: 2 of [[replica]]"),
        ("replicas = 1\n[[replica]]", "map.toml:1:12: replicas: ", "leave out `replicas`"),
        (
            "[[replica]]\ndevices = [\"cpu:0\"]\n[[replica]]\ndevices = [\"cpu\"]",
            "map.toml:4:12: replica[1].devices: `cpu` is all cores",
            "cpu beside cpu:0",
        ),
        // What the top level says has to suit the replicas.
        (
            "[components]\nvae = \"cuda:0\"\n[[replica]]\ndevices = [\"cuda:1\"]",
            "map.toml:2:7: components.vae: cuda:0",
            "found: devices = [\"cuda:1\"]",
        ),
        (
            "[max_memory]\n\"cuda:7\" = \"6GiB\"\n[[replica]]\ndevices = [\"cuda:0\"]",
            "map.toml:2:1: max_memory.cuda:7: cuda:7",
            "found: devices = [\"cuda:0\"]",
        ),
        (
            "[components]\nvae = \"cuda:0\"\n[[replica]]\nstrategy = \"diffusers-balanced\"",
            "map.toml:2:7: components.vae: strategy \"diffusers-balanced\" places every component itself",
            "leave out [components]",
        ),
    ] {
        points_at(&message(text), at, says);
    }
}

#[test]
fn a_replica_replaces_values_and_merges_tables() {
    let map = parse(
        r#"
strategy = "single"
devices = ["cuda:0", "cuda:1"]
batch = 2
in_flight = 3

[max_memory]
"cuda:0" = "6GiB"
"cuda:1" = "7GiB"

[components]
text_encoder = "cuda:0"
unet = { negative = "cuda:0", positive = "cuda:1" }

[[replica]]

[[replica]]
devices = ["cuda:2", "cuda:0"]
strategy = "sequential"
batch = 4
numerics = "same"
max_memory = { "cuda:2" = "8GiB" }
[replica.components]
unet = ["cuda:2"]
vae = "cuda:0"
"#,
    );
    let maps = map.replica_maps();
    assert_eq!(maps.len(), 2);
    assert_eq!(*maps[0], DeviceMap { replica: vec![], ..map.clone() });

    let merged = maps[1];
    assert_eq!(merged.devices.iter().map(|device| device.value).collect::<Vec<_>>(), [cuda(2), cuda(0)]);
    assert_eq!((merged.strategy.value, merged.batch.value), (Strategy::Sequential, 4));
    assert_eq!((merged.numerics.value, merged.in_flight.value), (Numerics::Same, InFlight::Count(3)));
    let limits: Vec<_> = merged.max_memory.iter().map(|(id, limit)| (*id, limit.value >> 30)).collect();
    assert_eq!(limits, [(cuda(0), 6), (cuda(2), 8)], "a limit on a device of other replicas is theirs");
    assert_eq!(COMPONENTS.map(|name| places(merged, name)), ["cuda:0", "cuda:2", "cuda:0"]);

    assert_eq!(map.usable(&[DeviceId::CPU]).unwrap(), [cuda(0), cuda(1), cuda(2)]);
    assert_eq!(parse("").replica_maps(), [&parse("")]);
}

#[test]
fn replicas_without_devices_of_their_own_share_the_defaults() {
    let map = parse("[[replica]]\n[[replica]]\ncomponents = { vae = \"cpu\" }");
    assert_eq!(map.usable(&[cuda(0)]).unwrap(), [cuda(0), DeviceId::CPU]);
    let error = parse("[[replica]]\n[[replica]]\ndevices = [\"cpu:0\"]").usable(&[DeviceId::CPU]).unwrap_err();
    points_at(&error.to_string(), "map.toml:2:1: replica[1]: ", "cpu:0 beside cpu");
}

#[test]
fn a_place_tells_its_devices_and_where_a_part_runs() {
    let map = parse(
        r#"[components]
unet = { negative = { shards = { "" = "cuda:1", "up_blocks" = "cuda:2", "up_blocks.1" = "cuda:3" } }, positive = "cuda:0" }
vae = { execute = "cuda:4", reside = "host" }
text_encoder = "cuda:5""#,
    );
    let of = |name: &str| &map.components[name].value[0];
    let devices =
        |place: &MapPlace| place.devices().iter().map(|device| device.value.index.unwrap()).collect::<Vec<_>>();
    assert_eq!(COMPONENTS.map(|name| devices(of(name))), [vec![5], vec![1, 2, 3, 0], vec![4]]);
    assert_eq!(COMPONENTS.map(|name| of(name).single().is_some()), [true, false, false]);
    assert!(of("unet").device_at("conv_in").is_none());
    let MapPlace::Guided { negative, .. } = of("unet") else { panic!("guided") };
    for (part, device) in [
        ("conv_in", 1),
        ("up_blocks", 2),
        ("up_blocks.0.resnets.1", 2),
        ("up_blocks.1.resnets.0", 3),
        ("up_blocks.10", 2),
        ("up_blocks_extra", 1),
    ] {
        assert_eq!(negative.device_at(part).unwrap().value, cuda(device), "{part}");
    }
}

#[test]
fn unknown_components_are_rejected_with_the_names_of_the_model() {
    for (text, at, says) in [
        ("[dtype]\nunnet = \"f16\"", "map.toml:2:9: dtype.unnet: ", "did you mean \"unet\"?"),
        (
            "[components]\nunett = \"cuda:0\"",
            "map.toml:2:9: components.unett: ",
            "the components are text_encoder, unet, vae; did you mean \"unet\"?",
        ),
        (
            "[components]\nvae = { negative = \"cuda:0\", positive = \"cuda:1\" }",
            "map.toml:2:20: components.vae.negative: guidance is a matter of the unet",
            "one place here: vae = \"cuda:0\"",
        ),
        (
            "[components]\nvae = [\"cuda:0\", { negative = \"cuda:1\", positive = \"cuda:2\" }]",
            "map.toml:2:31: components.vae.negative: ",
            "one place here",
        ),
    ] {
        let error = parse(text).check_model(&spec()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        points_at(&error.to_string(), at, says);
    }
}

#[test]
fn a_cut_follows_the_borders_of_the_model() {
    let borders = ["conv_in", "down_blocks.0", "down_blocks.1", "mid_block"].map(String::from);
    let check = |shards: &str| {
        parse(&format!("[components]\nunet = {{ shards = {{ {shards} }} }}")).check_borders("unet", &borders)
    };
    for good in [
        r#""" = "cpu:0""#,
        r#""" = "cpu:0", "down_blocks" = "cpu:1""#,
        r#""" = "cpu:0", "down_blocks.1" = "cpu:1", "mid_block" = "cpu:1""#,
        r#""conv_in" = "cpu:0", "down_blocks" = "cpu:0", "mid_block" = "cpu:1""#,
    ] {
        check(good).unwrap_or_else(|error| panic!("{good}\n{error}"));
    }
    for (bad, at, says) in [
        (
            r#""" = "cpu:0", "down_blocks.0.resnets.1" = "cpu:1""#,
            "35: components.unet.shards.\"down_blocks.0.resnets.1\": ",
            "\"down_blocks.0\"; it can be cut at conv_in, down_blocks.0, down_blocks.1, mid_block",
        ),
        (
            r#""" = "cpu:0", "downblocks.1" = "cpu:1""#,
            "35: components.unet.shards.\"downblocks.1\": ",
            "did you mean \"down_blocks.1\"?",
        ),
        (
            r#""" = "cpu:0", "down_blocks.11" = "cpu:1""#,
            "35: components.unet.shards.\"down_blocks.11\": ",
            "it can be cut at conv_in",
        ),
        (r#""" = "cpu:0", "down" = "cpu:1""#, "35: components.unet.shards.down: ", "conv_in"),
        (r#""down_blocks" = "cpu:0""#, "21: components.unet.shards.down_blocks: ", "found: conv_in, mid_block"),
    ] {
        let error = check(bad).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        points_at(&error.to_string(), &format!("map.toml:2:{at}"), says);
    }
    // Also in a pool, in a branch of guidance and in a replica; other components have other borders.
    for map in [
        r#"components.unet = ["cpu:0", { shards = { "x" = "cpu:1" } }]"#,
        r#"components.unet = { negative = "cpu:0", positive = { shards = { "x" = "cpu:1" } } }"#,
        r#"replica = [{ components = { unet = { shards = { "x" = "cpu:1" } } } }]"#,
    ] {
        assert!(parse(map).check_borders("unet", &borders).is_err(), "{map}");
        assert!(parse(map).check_borders("vae", &borders).is_ok(), "{map}");
    }
}

#[test]
fn a_message_shows_the_line_and_marks_the_place() {
    let expected = r#"map.toml:2:8: components.unet: not the name of a device
    |
  2 | unet = "gpu0" # the large one
    |        ^^^^^^
  found: "gpu0"
  try:   did you mean "cuda:0"? a device is "cpu", "cpu:N", "cuda:N", "wgpu:N" or "device:N", N counted from 0"#;
    assert_eq!(message("[components]\nunet = \"gpu0\" # the large one\n"), expected);
}

#[test]
fn a_later_error_can_still_point_at_the_map() {
    let map = parse("[components]\nunet = \"cuda:7\"");
    let device = map.components["unet"].value[0].single().unwrap();
    let error = device.refuse("components.unet", "cuda:7 is not on this machine").found("cpu");
    let message = error.to_string();
    points_at(&message, "map.toml:2:8: components.unet: cuda:7 is not on this machine\n", "unet = \"cuda:7\"");
    assert!(message.ends_with("found: cpu"), "{message}");
}

#[test]
fn a_map_made_in_code_is_checked_alike() {
    let mut map = DeviceMap { devices: vec![cpu(0).into(), cpu(1).into()], ..DeviceMap::default() };
    assert!(map.check().is_ok());
    map.components.insert("unet".into(), cpu(2).into());
    points_at(&map.check().unwrap_err().to_string(), "components.unet: ", "cpu:2");
    map.components.clear();
    map.components.insert("transformer".into(), cpu(0).into());
    assert!(map.check_model(&spec()).unwrap_err().to_string().contains("no such component"));
    map.components.clear();

    let cut =
        MapPlace::Cut { shards: [("down blocks".to_string(), cpu(1).into())].into(), reside: Reside::Host.into() };
    map.components.insert("unet".into(), vec![cut].into());
    points_at(
        &map.check().unwrap_err().to_string(),
        "components.unet.shards.\"down blocks\": ",
        "names and numbers with dots between",
    );
    map.components.clear();

    map.replica.push(DeviceMap { devices: vec![cpu(2).into()], batch: 0.into(), ..Default::default() }.into());
    points_at(&map.check().unwrap_err().to_string(), "replica[0].batch: ", "a whole number from 1");
}

#[test]
fn devices_are_the_listed_ones_or_the_defaults_and_the_named_ones() {
    let defaults = [cuda(0), cuda(1)];
    let usable = |text: &str| parse(text).usable(&defaults).unwrap();
    assert_eq!(usable("devices = [\"cuda:1\", \"cuda:0\"]"), [cuda(1), cuda(0)]);
    assert_eq!(usable(""), defaults);
    assert_eq!(usable("[components]\nvae = \"cpu\""), [cuda(0), cuda(1), DeviceId::CPU]);
    assert_eq!(parse("[components]\nvae = \"cpu:1\"").usable(&[DeviceId::CPU]).unwrap(), [cpu(1)]);

    let message = parse("[max_memory]\n\"cpu\" = \"8GiB\"").usable(&defaults).unwrap_err().to_string();
    points_at(&message, "map.toml:2:1: max_memory.cpu: ", "found: devices = [\"cuda:0\", \"cuda:1\"]");

    let message = parse("replicas = 3").usable(&defaults).unwrap_err().to_string();
    points_at(&message, "map.toml:1:12: replicas: ", "3 replicas, 2 devices");
}

#[test]
fn a_map_of_ten_thousand_devices_in_one_line_is_rejected_in_a_few_words() {
    let names = |prefix: &str| (0..10_000).map(|i| format!("\"{prefix}:{i}\"")).collect::<Vec<_>>().join(", ");
    let limits = (0..300).map(|i| format!("\"cuda:{i}\" = \"1GiB\"")).collect::<Vec<_>>().join(", ");
    for (text, at, says) in [
        (format!("devices = [{}]", names("cpu")), "map.toml:1:11: devices: more than 256 devices", "an array of 10000"),
        (
            format!("components = {{ unet = [{}] }}", names("cuda")),
            "map.toml:1:23: components.unet: more than 256 places",
            "10000",
        ),
        ("[[replica]]\n".repeat(300), "map.toml:1:1: replica: more than 256 replicas", "an array of 300"),
        (format!("max_memory = {{ {limits} }}"), "map.toml:1:14: max_memory: more than 256 limits", "a table"),
        (format!("# {}", "x".repeat(300_000)), "map.toml: a file of more than 256 KiB is not read", "300002 bytes"),
    ] {
        let message = message(&text);
        points_at(&message, at, says);
        assert!(message.len() < 1000, "{} bytes", message.len());
    }
    // Every entry of a long line has its place, and none a copy of the line.
    let long = (0..250).map(|i| format!("\"cpu:{i}\"")).collect::<Vec<_>>().join(", ");
    let map = parse(&format!("devices = [{long}]"));
    for (index, device) in map.devices.iter().enumerate() {
        let at = device.location.as_ref().unwrap();
        assert!(at.text.chars().count() <= 120 && at.text.contains(&format!("\"cpu:{index}\"")), "{at:?}");
    }
    let message = message(&format!("devices = [{long}, \"gpu0\"]"));
    let [_, _, line, carets, ..] = message.lines().collect::<Vec<_>>()[..] else { panic!("{message}") };
    assert_eq!(line.find("\"gpu0\""), carets.find("^^^^^^"), "{message}");
}
