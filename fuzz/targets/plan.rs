//! A device map and a model's configs: any texts are a plan, or a message. libFuzzer's time limit is a plan's too.
//!
//! Parts of the input: the map, then the configs of text encoder, UNet, VAE and scheduler, model_index.json, sdshard.toml.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sdshard::{
    DeviceMap, Largest, Plan, Request, backend::DeviceInfo, error::ErrorScope, models::spec::ModelSpec,
    planner::hardware,
};
use sdshard_fuzz::{configs, parts, with_model};

/// GPUs that are unlike each other, and a CPU: nothing of this machine decides what is planned.
static DEVICES: LazyLock<Vec<DeviceInfo>> = LazyLock::new(|| {
    let machine = "device.'cuda:0' = { like = 'rtx-3090', count = 2 }\n\
                   device.'wgpu:0' = { memory = '2GiB', flops = 1e12 }\n\
                   device.cpu = { memory = '8GiB', cores = '0-3' }";
    hardware::parse(machine, "machine.toml").expect("the machine is described well")
});

/// A plan that cannot be made is the caller's fault, in the files or in the request.
fn refused(error: &sdshard::Error) {
    assert!(matches!(error.scope(), ErrorScope::Input | ErrorScope::Request), "{error}");
    assert!(!error.to_string().is_empty());
}

fn plan(map: &str, spec: &ModelSpec) -> sdshard::Result<()> {
    let map = DeviceMap::parse(map, "map.toml")?;
    for images in [1, 3] {
        let requests = vec![Request::new("a cat", spec); images];
        for request in &requests {
            request.check(spec)?;
        }
        let largest = Largest::of(&requests, spec)?.expect("there is a request");
        let plan = Plan::resolve(&map, spec, &largest, &DEVICES)?;
        assert!(!plan.to_string().is_empty());
    }
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    let [map, texts @ ..]: [_; 7] = parts(input);
    let map = String::from_utf8_lossy(map.unwrap_or_default());
    with_model(&configs(texts), |model| {
        if let Err(error) = ModelSpec::load(model).and_then(|spec| plan(&map, &spec)) {
            refused(&error);
        }
    });
});
