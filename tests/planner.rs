//! Device maps good and bad: file, then message.

use sdshard::{
    backend::{DType, DeviceId, DeviceKind},
    planner::device_map::{COMPONENTS, DeviceMap, Replicas, SHIPPED, Strategy},
};

fn cpu(index: usize) -> DeviceId {
    DeviceId::new(DeviceKind::Cpu, index)
}

fn cuda(index: usize) -> DeviceId {
    DeviceId::new(DeviceKind::Cuda, index)
}

fn parse(text: &str) -> DeviceMap {
    DeviceMap::parse(text, "map.toml").unwrap_or_else(|error| panic!("{text}\n{error}"))
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
in_flight = "auto"
batch = 1
numerics = "any"

[dtype]
unet = "f16"
vae = "auto"

[max_memory]
"cuda:0" = "6GiB"

[components]
unet = "cuda:1"
"#,
    );
    assert_eq!(map.strategy, Strategy::Single);
    assert_eq!(map.devices.iter().map(|d| d.value).collect::<Vec<_>>(), [cuda(0), cuda(1)]);
    assert_eq!(map.replicas.value, Replicas::Count(1));
    assert_eq!(COMPONENTS.map(|name| map.dtype.of(name)), [None, Some(DType::F16), None]);
    assert_eq!(map.max_memory[&cuda(0)].value, 6 << 30);
    assert_eq!(map.components["unet"].value, cuda(1));
}

#[test]
fn an_empty_map_is_the_default_map() {
    assert_eq!(parse(""), DeviceMap::default());
    assert_eq!(parse("strategy = \"auto\"\nreplicas = 1").strategy, Strategy::Balanced);
    assert_eq!(COMPONENTS.map(|name| parse("dtype = \"bf16\"").dtype.of(name)), [Some(DType::BF16); 3]);
}

#[test]
fn every_shipped_map_is_read_and_needs_no_gpu() {
    for (name, text) in SHIPPED {
        let map = DeviceMap::parse(text, name).unwrap_or_else(|error| panic!("{error}"));
        let usable = map.usable(&[DeviceId::CPU]).unwrap();
        assert!(usable.iter().all(|device| device.kind == DeviceKind::Cpu), "{name}: {usable:?}");
    }
}

#[test]
fn a_map_is_a_path_a_shipped_name_or_a_strategy() {
    assert_eq!(DeviceMap::load("single").unwrap().strategy, Strategy::Single);
    assert_eq!(DeviceMap::load("cpu-split.toml").unwrap().components.len(), 3);
    assert_eq!(DeviceMap::load("device_maps/replicas.toml").unwrap().replicas.value, Replicas::Count(2));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("balanced.toml");
    std::fs::write(&path, "strategy = \"single\"").unwrap();
    assert_eq!(DeviceMap::load(path.to_str().unwrap()).unwrap().strategy, Strategy::Single);

    let message = DeviceMap::load("balancd").unwrap_err().to_string();
    assert!(message.contains("did you mean \"balanced\"?"), "{message}");
    let message = DeviceMap::load("./balanced.toml").unwrap_err().to_string();
    assert!(message.contains("reading the device map ./balanced.toml"), "{message}");
    assert!(message.contains("cpu-split.toml"), "{message}");
}

#[test]
fn a_bad_map_says_where_what_and_what_is_possible() {
    // The map, where the message points, and what else it must say.
    for (text, at, says) in [
        // Keys and values.
        ("stratgy = \"single\"", "map.toml:1:1: stratgy: no such key", "did you mean \"strategy\"?"),
        ("strategy = \"singel\"", "map.toml:1:12: strategy: no such strategy", "did you mean \"single\"?"),
        ("strategy = \"throughput\"", "map.toml:1:12: strategy:", "a strategy is \"balanced\""),
        ("strategy = 3", "map.toml:1:12: strategy:", "found: the number 3"),
        ("devices = \"cuda:0\"", "map.toml:1:11: devices: an array", "devices = [\"cuda:0\", \"cuda:1\"]"),
        ("devices = []", "map.toml:1:11: devices: an array", "found: an array of 0"),
        ("devices = [\n  \"cuda:0\",\n  \"gpu1\"]", "map.toml:3:3: devices: not the name", "did you mean \"cuda:1\"?"),
        ("devices = [0, 1]", "map.toml:1:12: devices: one device", "\"cuda:0\" is a GPU"),
        ("devices = [\"cuda\"]", "map.toml:1:12: devices:", "did you mean \"cuda:0\"?"),
        ("devices = [\"mps\"]", "map.toml:1:12: devices:", "did you mean \"wgpu:0\"?"),
        ("devices = [\"tpu:0\"]", "map.toml:1:12: devices:", "\"cpu:N\", \"cuda:N\" or \"wgpu:N\""),
        ("devices = [\"cuda:0\", \"cuda:0\"]", "map.toml:1:22: devices: cuda:0 is named twice", "each device once"),
        ("devices = [\"cpu\", \"cpu:0\"]", "map.toml:1:19: devices: `cpu` is all cores", "cpu:0 beside cpu"),
        ("replicas = 0", "map.toml:1:12: replicas:", "replicas = 1"),
        ("replicas = -1", "map.toml:1:12: replicas: not a number", "a whole number from 1"),
        ("replicas = 1.5", "map.toml:1:12: replicas: not a number", "found: the number 1.5"),
        ("replicas = \"all\"", "map.toml:1:12: replicas: not a number", "or \"max\""),
        ("devices = [\"cuda:0\"]\nreplicas = 2", "map.toml:2:12: replicas:", "found: 2 replicas, 1 devices"),
        ("batch = 4", "map.toml:1:9: batch: this value is not possible so far", "batch = 1"),
        ("in_flight = 2", "map.toml:1:13: in_flight:", "in_flight = 1 or \"auto\""),
        ("numerics = \"same\"", "map.toml:1:12: numerics:", "numerics = \"any\""),
        ("dtype = \"fp16\"", "map.toml:1:9: dtype: not a type", "did you mean \"f16\"?"),
        ("[dtype]\nunnet = \"f16\"", "map.toml:2:1: dtype.unnet: no such component", "did you mean \"unet\"?"),
        ("[device.\"wgpu:1\"]\nadapter = 0", "map.toml:1:2: device:", "[max_memory]"),
        ("[[replica]]\ndevices = [\"cuda:0\"]", "map.toml:1:3: replica:", "replicas = 2"),
        // Memory.
        ("[max_memory]\n\"cuda:0\" = \"8Gb\"", "map.toml:2:12: max_memory.cuda:0: not a size", "did you mean GB?"),
        ("[max_memory]\n\"cuda:0\" = 8", "map.toml:2:12: max_memory.cuda:0: not a size", "\"8GiB\"?"),
        ("[max_memory]\n\"gpu0\" = \"8GB\"", "map.toml:2:1: max_memory.gpu0:", "did you mean \"cuda:0\"?"),
        ("max_memory = \"8GB\"", "map.toml:1:14: max_memory: a table is wanted", "[max_memory], then"),
        (
            "devices = [\"cuda:0\"]\n[max_memory]\n\"cuda:1\" = \"8GB\"",
            "map.toml:3:1: max_memory.cuda:1: cuda:1 is not among the devices that may be used",
            "found: devices = [\"cuda:0\"]",
        ),
        // Components.
        ("[components]\nunett = \"cuda:0\"", "map.toml:2:1: components.unett: no such component", "mean \"unet\"?"),
        ("[components]\nunet = \"gpu0\"", "map.toml:2:8: components.unet: not the name", "did you mean \"cuda:0\"?"),
        ("[components]\nunet = 1", "map.toml:2:8: components.unet: one device", "\"cuda:1\" is a GPU"),
        ("[components]\nunet = [\"cuda:0\"]", "map.toml:2:8: components.unet: one device", "found: an array of 1"),
        (
            "[components]\nvae = { execute = \"cuda:0\", reside = \"host\" }",
            "map.toml:2:7: components.vae: one device",
            "found: a table",
        ),
        (
            "devices = [\"cuda:0\"]\n[components]\nvae = \"cuda:1\"",
            "map.toml:3:7: components.vae: cuda:1 is not among the devices that may be used",
            "add \"cuda:1\"",
        ),
        (
            "[components]\nunet = \"cpu:0\"\nvae = \"cpu\"",
            "map.toml:3:7: components.vae: `cpu` is all cores",
            "cpu beside cpu:0",
        ),
        (
            "replicas = 2\n[components]\nvae = \"cpu\"",
            "map.toml:1:12: replicas: several replicas",
            "found: components.vae",
        ),
        // The usual slips of TOML itself.
        ("[max_memory]\ncuda:0 = \"6GiB\"", "map.toml:2:5: ", "needs quotes: \"cuda:0\" = …"),
        ("[max_memory]\ncuda.0 = \"6GiB\"", "map.toml:2:1: max_memory.cuda:", "quotes: \"cuda:0\" = …"),
        ("[components]\nunet = cuda:0", "map.toml:2:8: ", "text needs quotes: unet = \"cuda:0\""),
        ("strategy = balanced # even", "map.toml:1:12: ", "text needs quotes: strategy = \"balanced\""),
        ("[device.wgpu:1]\nadapter = 0", "map.toml:1:13: ", "needs quotes: [device.\"wgpu:1\"]"),
        ("[components]\nunet.down_blocks = \"cuda:0\"", "map.toml:2:1: components.unet: one device", "as a whole"),
        (
            "[components]\nunet = \"cuda:0\"\nreplicas = 1",
            "map.toml:3:1: components.replicas: no such component",
            "TOML puts every key that follows [components] into it",
        ),
        (
            "[max_memory]\n\"cuda:0\" = \"6GiB\"\ndtype = \"f16\"",
            "map.toml:3:1: max_memory.dtype:",
            "`dtype` belongs above the first [table]",
        ),
        ("batch = 1\nbatch = 1", "map.toml:2:1: duplicate key", "2 | batch = 1"),
    ] {
        let message = message(text);
        assert!(message.starts_with(at), "wanted: {at}\n{message}");
        assert!(message.contains(says), "wanted: {says}\n{message}");
    }
}

#[test]
fn a_message_shows_the_line_and_marks_the_place() {
    let expected = r#"map.toml:2:8: components.unet: not the name of a device
    |
  2 | unet = "gpu0" # the large one
    |        ^^^^^^
  found: "gpu0"
  try:   did you mean "cuda:0"? a device is "cpu", "cpu:N", "cuda:N" or "wgpu:N", N counted from 0"#;
    assert_eq!(message("[components]\nunet = \"gpu0\" # the large one\n"), expected);
}

#[test]
fn a_later_error_can_still_point_at_the_map() {
    let map = parse("[components]\nunet = \"cuda:7\"");
    let error = map.components["unet"].refuse("components.unet", "cuda:7 is not on this machine").found("cpu");
    let message = error.to_string();
    assert!(message.starts_with("map.toml:2:8: components.unet: cuda:7 is not on this machine\n"), "{message}");
    assert!(message.contains("unet = \"cuda:7\"") && message.ends_with("found: cpu"), "{message}");
}

#[test]
fn a_map_made_in_code_is_checked_alike() {
    let mut map = DeviceMap { devices: vec![cpu(0).into(), cpu(1).into()], ..DeviceMap::default() };
    assert!(map.check().is_ok());
    map.components.insert("unet".into(), cpu(2).into());
    let message = map.check().unwrap_err().to_string();
    assert!(message.starts_with("components.unet: cpu:2 is not among the devices"), "{message}");
    map.components.clear();
    map.components.insert("transformer".into(), cpu(0).into());
    assert!(map.check().unwrap_err().to_string().contains("no such component"));
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
    assert!(message.starts_with("map.toml:2:1: max_memory.cpu: cpu is not among the devices"), "{message}");
    assert!(message.contains("found: devices = [\"cuda:0\", \"cuda:1\"]"), "{message}");

    let message = parse("replicas = 3").usable(&defaults).unwrap_err().to_string();
    assert!(message.starts_with("map.toml:1:12: replicas: every replica needs a device of its own"), "{message}");
    assert!(message.contains("3 replicas, 2 devices"), "{message}");
}
