//! Pictures drawn by wgpu devices, alone and beside the CPU. Several logical devices share the first adapter. Without
//! an adapter there is nothing to test, which is printed; with `SDSHARD_EXPECT=wgpu` it is a failure.
#![cfg(feature = "wgpu")]

mod common;

use std::sync::Arc;

use common::{model, refused, request, sdshard, succeeds, tiny};
use sdshard::{
    DeviceMap, Engine, Largest, Model, ModelFiles, Plan, Request,
    backend::{self, DType, Device, DeviceId, DeviceKind, Layer, Precision, Values, Weight, wgpu::Capabilities},
    engine::Event,
    error::ErrorScope,
    pipeline::Picture,
    tensor::{Fuse, Tensor},
};

const CPU: &str = "devices = [\"cpu\"]";
const ALL: &str = "devices = [\"wgpu:0\"]";
const TWO: &str = "devices = [\"wgpu:0\", \"wgpu:1\"]\n[device.\"wgpu:1\"]\nadapter = 0\n";

/// Whether there is an adapter.
fn is_here() -> bool {
    let here = backend::visible().iter().any(|device| device.id == wgpu(0));
    if !here {
        println!("wgpu: not here");
        let expected = std::env::var("SDSHARD_EXPECT").unwrap_or_default();
        assert!(!expected.split(',').any(|name| name == "wgpu"), "wgpu: expected, but not here");
    }
    here
}

fn wgpu(index: usize) -> DeviceId {
    DeviceId::new(DeviceKind::Wgpu, index)
}

fn plan(model: &Model, map: &str) -> Plan {
    let largest = Largest::of([&request(0)], &model.spec).unwrap().unwrap();
    Plan::resolve(&DeviceMap::parse(map, "map.toml").unwrap(), &model.spec, &largest, &backend::visible()).unwrap()
}

/// The pictures 0 to `count`, drawn in the planned bytes.
fn draw(map: &str, count: u64) -> Vec<Picture> {
    let model = model();
    let plan = plan(&model, map);
    let engine = Engine::load(model, &plan).unwrap();
    let mut pictures: Vec<Option<Picture>> = (0..count).map(|_| None).collect();
    engine
        .generate((0..count).map(request), |index, event| {
            if let Event::Done(result) = event {
                pictures[index] = Some(result?);
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{map}\n{e}"));
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_bytes()) {
        assert_eq!(
            (planned.id, planned.activation_bytes),
            (id, peak as u64),
            "{map}: planned and measured arena bytes"
        );
    }
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_weight_bytes()) {
        if id.kind == DeviceKind::Wgpu {
            // The next section's weights arrive while this one's are used, sooner or later.
            let (stay, peak) = (planned.weight_bytes, peak as u64);
            assert!(
                (stay..=stay + planned.visitor_bytes).contains(&peak),
                "{map}: {peak} bytes of weights: {planned:?}"
            );
        }
    }
    pictures.into_iter().map(|picture| picture.expect("every request is done")).collect()
}

fn rgb(picture: &Picture) -> &[u8] {
    &picture.image.as_ref().expect("an image was asked for").rgb
}

/// The mean difference of two lists of pictures, in steps of 255.
fn apart(a: &[Picture], b: &[Picture]) -> f64 {
    let pairs = a.iter().zip(b).flat_map(|(a, b)| rgb(a).iter().zip(rgb(b)));
    let (count, sum) = pairs.fold((0, 0.0), |(n, sum), (a, b)| (n + 1, sum + f64::from(a.abs_diff(*b))));
    sum / f64::from(count)
}

fn bits(pictures: &[Picture]) -> Vec<(Vec<u32>, &[u8])> {
    let latents = |picture: &Picture| picture.latents.values.iter().map(|value| value.to_bits()).collect();
    pictures.iter().map(|picture| (latents(picture), rgb(picture))).collect()
}

#[test]
fn pictures_are_the_cpus_within_a_step_of_255_wherever_their_parts_are_made() {
    if !is_here() {
        return;
    }
    let (cpu, all) = (draw(CPU, 2), draw(ALL, 2));
    assert!(apart(&cpu[..1], &cpu[1..]) > 1.0, "other pictures are far apart");
    assert!(apart(&cpu, &all) <= 1.0, "the CPU's and {ALL}: {}", apart(&cpu, &all));
    let mixed = "devices = [\"cpu\", \"wgpu:0\", \"wgpu:1\"]\n[device.\"wgpu:1\"]\nadapter = 0\n\
         [components]\ntext_encoder = \"cpu\"\nunet = \"wgpu:0\"\nvae = \"wgpu:1\"\n";
    let mixed = draw(mixed, 2);
    assert!(apart(&mixed, &all) <= 1.0, "mixed and {ALL}: {}", apart(&mixed, &all));
    assert_ne!(bits(&cpu), bits(&all), "these pictures were drawn by another class of device");
    // Sections of one network in f32 on the CPU and in f16 beside it.
    let cut = "devices = [\"cpu\", \"wgpu:0\"]\n[components]\ntext_encoder = \"cpu\"\nvae = \"cpu\"\n\
         unet = { shards = { \"\" = \"wgpu:0\", \"up_blocks\" = \"cpu\", \"conv_in\" = \"cpu\" } }\n";
    let cut = draw(cut, 2);
    assert!(apart(&cut, &all) <= 1.0, "cut and {ALL}: {}", apart(&cut, &all));
}

/// The picture of a device that has only some of the adapter's capabilities, in the planned bytes.
fn draw_with(map: &str, fewer: impl Fn(Capabilities) -> Capabilities) -> Picture {
    let model = model();
    let plan = plan(&model, map);
    let device = backend::wgpu::open_with(wgpu(0), 0, fewer).unwrap().device(wgpu(0));
    let engine = Engine::load_on(model, &plan, vec![device], Default::default()).unwrap();
    let picture = engine.submit(request(0)).unwrap().wait().unwrap();
    assert_eq!(engine.peak_bytes()[0].1 as u64, plan.devices[0].activation_bytes);
    assert_eq!(engine.peak_weight_bytes()[0].1 as u64, plan.devices[0].weight_bytes);
    picture
}

#[test]
fn an_adapter_without_f16_draws_the_same_picture() {
    if !is_here() {
        return;
    }
    let want = draw_with(ALL, |had| had);
    let without = draw_with(ALL, |had| Capabilities { f16: false, ..had });
    assert!(bits(&[without]) == bits(std::slice::from_ref(&want)));
    let wide = draw_with(&format!("{ALL}\ndtype = \"f32\""), |had| had);
    assert!(bits(std::slice::from_ref(&wide)) != bits(std::slice::from_ref(&want)));
    assert!(apart(&[wide], &[want]) <= 1.0);
}

#[test]
fn an_adapter_without_subgroups_draws_the_same_picture() {
    if !is_here() {
        return;
    }
    for dtype in ["f16", "f32"] {
        let map = format!("{ALL}\ndtype = \"{dtype}\"");
        let want = draw_with(&map, |had| {
            println!("{dtype}: {}", if had.subgroups { "with subgroups" } else { "there are none here" });
            had
        });
        let without = draw_with(&map, |had| Capabilities { subgroups: false, ..had });
        // Where real adapters go between: norms in subgroups, products without.
        let loads = draw_with(&map, |had| Capabilities { shares_loads: false, ..had });
        assert!(bits(&[without]) == bits(std::slice::from_ref(&want)), "{dtype}");
        assert!(bits(&[loads]) == bits(&[want]), "{dtype}");
    }
}

#[test]
fn an_adapter_that_binds_little_at_once_draws_the_same_picture() {
    if !is_here() {
        return;
    }
    for dtype in ["f16", "f32"] {
        let map = format!("{ALL}\ndtype = \"{dtype}\"");
        let narrow = draw_with(&map, |had| Capabilities { binding_bytes: 48 << 10, ..had });
        assert!(bits(&[narrow]) == bits(&[draw_with(&map, |had| had)]), "{dtype}");
    }
}

#[test]
fn the_built_in_models_pictures_are_the_cpus_within_a_step_of_255() {
    if !is_here() {
        return;
    }
    let files = ModelFiles::folder(format!("{}/models/emoji", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let model = Arc::new(Model::open(files, None).unwrap());
    let request = Request { steps: 10, ..Request::new("a dog", &model.spec) };
    let [cpu, wgpu] = [CPU, ALL].map(|map| {
        let largest = Largest::of([&request], &model.spec).unwrap().unwrap();
        let map = DeviceMap::parse(map, "map.toml").unwrap();
        let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap();
        Engine::load(model.clone(), &plan).unwrap().submit(request.clone()).unwrap().wait().unwrap()
    });
    let (mean, plain) = (apart(&[cpu], std::slice::from_ref(&wgpu)), rgb(&wgpu).windows(2).all(|w| w[0] == w[1]));
    println!("mean difference {mean:.4} of 255");
    assert!(mean <= 1.0 && !plain, "mean difference {mean}");
}

#[test]
fn bytes_do_not_depend_on_runs_replicas_cuts_or_where_weights_rest() {
    if !is_here() {
        return;
    }
    let want = draw(ALL, 3);
    for map in [
        ALL.to_string(),
        format!("{ALL}\nin_flight = 2"),
        TWO.replacen('\n', "\nreplicas = 2\n", 1),
        format!("{TWO}[components]\ntext_encoder = \"wgpu:1\"\nunet = \"wgpu:0\"\nvae = \"wgpu:1\"\n"),
        format!("{TWO}[components]\nunet = {{ shards = {{ \"\" = \"wgpu:0\", \"up_blocks\" = \"wgpu:1\" }} }}\n"),
        format!("{TWO}[components]\nunet = {{ negative = \"wgpu:0\", positive = \"wgpu:1\" }}\n"),
        format!("{ALL}\n[components]\nunet = {{ execute = \"wgpu:0\", reside = \"host\" }}\n"),
        format!("{ALL}\n[components]\nvae = {{ execute = \"wgpu:0\", reside = \"disk\" }}\n"),
    ] {
        assert!(bits(&draw(&map, 3)) == bits(&want), "{map}\ndraws other pictures than {ALL}");
    }
}

#[test]
fn an_adapter_that_is_not_here_is_refused_where_the_map_names_it() {
    let model = model();
    let largest = Largest::of([&request(0)], &model.spec).unwrap().unwrap();
    let map = DeviceMap::parse("devices = [\"wgpu:0\"]\n[device.\"wgpu:0\"]\nadapter = 77", "map.toml").unwrap();
    let error = Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap_err();
    let message = error.to_string();
    common::has_facts("adapter 77", &message, &["map.toml:3:11: device.wgpu:0.adapter: ", "77", "sdshard devices"]);
}

#[test]
fn an_adapter_that_is_the_processor_is_used_only_where_it_is_named() {
    let devices = backend::visible();
    let named: Vec<_> = devices.iter().filter(|device| device.only_named).map(|device| device.id).collect();
    let plan = plan(&model(), "");
    assert!(plan.devices.iter().all(|device| !named.contains(&device.id)), "{:?}", plan.devices);
}

fn linear(device: &Device) -> Weight {
    let values = [1f32; 64 * 64];
    let weight = Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(&values) };
    device.pack(Layer::Linear { out: 64, k: 64 }, Precision::F32, weight, None).unwrap()
}

#[test]
fn a_lost_device_is_an_error_of_the_device_and_its_request_goes_elsewhere() {
    if !is_here() {
        return;
    }
    let model = model();
    let plan = plan(&model, &TWO.replacen('\n', "\nreplicas = 2\n", 1));
    let [first, second] = [0, 1].map(|index| backend::wgpu::open(wgpu(index), 0).unwrap());
    let driver = first.driver();
    let devices = vec![first.device(wgpu(0)), second.device(wgpu(1))];
    let lost = devices[0].clone();
    let engine = Engine::load_on(model, &plan, devices, Default::default()).unwrap();
    let want = engine.submit(request(0)).unwrap().wait().unwrap();
    let probe = linear(&lost.request_scratch(1 << 16).unwrap());
    driver.destroy();
    let scratch = lost.request_scratch(1 << 16).map(|scratch| {
        let x = Tensor::new(&scratch, [1, 64], &[1.0; 64])?;
        x.linear(&probe, &Fuse::default())?.read()
    });
    let error = match scratch {
        Err(error) | Ok(Err(error)) => error,
        Ok(Ok(_)) => panic!("a device that is gone still computes"),
    };
    assert_eq!(error.scope(), &ErrorScope::Device(wgpu(0)), "{error}");
    // The replica that has lost its device takes one request more and gives it back.
    let (mut retried, mut drawn) = (0, 0);
    engine
        .generate((0..6).map(|_| request(0)), |_, event| {
            match event {
                Event::Retry { .. } => retried += 1,
                Event::Done(result) => {
                    assert!(bits(&[result?]) == bits(std::slice::from_ref(&want)));
                    drawn += 1;
                }
                _ => {}
            }
            Ok(())
        })
        .unwrap();
    assert_eq!((retried, drawn), (1, 6));
}

#[test]
fn more_memory_than_there_is_is_a_clear_error() {
    if !is_here() {
        return;
    }
    let device = backend::open(&[wgpu(0)]).unwrap().remove(0);
    let error = device.reserve(1 << 46).unwrap_err();
    assert_eq!(error.scope(), &ErrorScope::Device(wgpu(0)), "{error}");
    assert!(error.to_string().contains(&format!("{} bytes", 1u64 << 46)), "{error}");
    device.reserve(1 << 16).unwrap();
    let x = Tensor::new(&device, [2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    assert_eq!(x.add(&x).unwrap().read().unwrap(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0], "it goes on");
}

#[test]
fn the_program_lists_measures_and_draws_with_wgpu_devices() {
    if !is_here() {
        return;
    }
    let listed = succeeds(&mut sdshard(&["devices"]));
    assert!(listed.lines().any(|line| line.starts_with("wgpu:0  ") && line.contains("numerics wgpu ")), "{listed}");
    let report =
        succeeds(sdshard(&["bench", "--device", "wgpu:0", "--repeat", "1", "--json"]).arg("--model").arg(tiny()));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["machine"]["class"].as_str().unwrap().starts_with("wgpu "), "{report}");
    assert!(report["unet"]["gflops"].as_f64().unwrap() > 0.0, "{report}");
    let message = refused(&["bench", "--device", "wgpu:77", "--model", tiny().to_str().unwrap()]);
    assert!(message.contains("there is no device \"wgpu:77\""), "{message}");
}

/// Values and parameters beyond one piece of a copy, and a table beyond one binding.
#[test]
fn large_weights_and_tensors_go_in_pieces() {
    if !is_here() {
        return;
    }
    let device = backend::open(&[wgpu(0)]).unwrap().remove(0);
    device.reserve(64 << 20).unwrap();
    let values: Vec<f32> = (0..3 << 20).map(|i| (i % 8191) as f32).collect();
    let x = Tensor::new(&device, [3, 1 << 20], &values).unwrap();
    assert!(x.read().unwrap() == values, "a tensor of 12 MiB came back changed");

    // Row i of the weight has a one in column i % 2000: 2304 x 2000 elements are 18 MiB.
    let (out, k) = (2304, 2000);
    let weight: Vec<f32> = (0..out * k).map(|i| f32::from(u8::from(i % k == i / k % k))).collect();
    let layer = Layer::Linear { out, k };
    let weight = device.pack(
        layer,
        Precision::F32,
        Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(&weight) },
        None,
    );
    let x: Vec<f32> = (0..k).map(|i| i as f32).collect();
    let y = Tensor::new(&device, [1, k], &x).unwrap().linear(&weight.unwrap(), &Fuse::default()).unwrap();
    let want: Vec<f32> = (0..out).map(|i| (i % k) as f32).collect();
    assert_eq!(y.read().unwrap(), want);

    // 49408 x 768 elements, the table of CLIP, are 152 MB: more than llvmpipe binds at once.
    let (rows, channels) = (49408, 768);
    let table: Vec<f32> = (0..rows * channels).map(|i| (i / channels * 2 + i % channels % 2) as f32).collect();
    let pack = |rows, values: &[f32]| {
        let values = Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(values) };
        device.pack(Layer::Embedding { rows, channels }, Precision::F32, values, None).unwrap()
    };
    let (table, positions) = (pack(rows, &table), pack(77, &vec![0.0; 77 * channels]));
    let ids = vec![0, 1, 63, 64, 43648, 43711, 43712, 49343, 49407];
    let got = Tensor::embedding(&device, std::slice::from_ref(&ids), &table, &positions).unwrap().read().unwrap();
    for (id, row) in ids.iter().zip(got.chunks(channels)) {
        let want: Vec<f32> = (0..channels).map(|c| (id * 2) as f32 + (c % 2) as f32).collect();
        assert!(row == want, "row {id}");
    }
}

#[test]
fn a_sum_that_the_driver_would_end_in_the_middle_is_refused() {
    if !is_here() {
        return;
    }
    let few = |had| Capabilities { loop_turns: 16, ..had };
    let device = backend::wgpu::open_with(wgpu(0), 0, few).unwrap().device(wgpu(0));
    device.reserve(1 << 16).unwrap();
    let x = Tensor::new(&device, [1, 64], &[1.0; 64]).unwrap();
    let error = x.linear(&linear(&device), &Fuse::default()).err().unwrap();
    assert_eq!(error.scope(), &ErrorScope::Request);
    assert!(error.to_string().contains("ends invocations after 16 iterations"), "{error}");
}
