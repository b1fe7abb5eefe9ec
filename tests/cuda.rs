//! Pictures drawn by CUDA devices, alone, with each other and beside other kinds, and what becomes of them when one
//! fails. On the rig of fake GPUs: `tests/cuda_rig/run`. Without it there is nothing to test, which is printed; with
//! `SDSHARD_EXPECT=rig` it is a failure.
#![cfg(feature = "cuda")]

mod common;

use std::{
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use common::{message_of, model, request, rig::Rig, sdshard, succeeds, tiny};
use sdshard::{
    DeviceMap, Engine, Largest, Model, Plan, Result,
    backend::{self, DeviceId, DeviceKind},
    engine::Event,
    error::ErrorScope,
    pipeline::{Picture, request::Request},
    scheduler::schedule,
};

/// A GPU that has failed has failed for the rest of the process: every test that breaks some has its own.
const LAUNCH_FAILS: [usize; 2] = [4, 5];
const IS_LOST: [usize; 2] = [6, 7];
const OUT_OF_MEMORY: [usize; 2] = [8, 9];
const CORRUPT: [usize; 2] = [10, 11];
const NO_LINK: [usize; 2] = [12, 13];
const FAILS_IN_A_GRAPH: [usize; 2] = [14, 15];
const GPUS: usize = 16;

/// The rig with its settings as at the start. One test at a time: faults count what all of the process does.
fn rig() -> Option<(Rig, MutexGuard<'static, ()>)> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::here()?;
    for (key, value) in [("DEVICES", GPUS.to_string().as_str()), ("PEERS", "good"), ("FAULTS", ""), ("DELAYS", "0")] {
        rig.set(key, value);
    }
    Some((rig, guard))
}

fn plan(model: &Model, map: &str) -> Plan {
    plan_for(model, map, &[request(0)])
}

fn plan_for(model: &Model, map: &str, requests: &[Request]) -> Plan {
    let largest = Largest::of(requests, &model.spec).unwrap().unwrap();
    let map = DeviceMap::parse(map, "map.toml").unwrap();
    Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap_or_else(|e| panic!("{e}"))
}

/// What became of requests: the pictures, and how often one was tried again.
fn generate(engine: &Engine, count: u64) -> Result<(Vec<Picture>, usize)> {
    generate_each(engine, (0..count).map(request).collect())
}

fn generate_each(engine: &Engine, requests: Vec<Request>) -> Result<(Vec<Picture>, usize)> {
    let (mut pictures, mut retried) = (requests.iter().map(|_| None).collect::<Vec<_>>(), 0);
    engine.generate(requests, |index, event| {
        match event {
            Event::Retry { .. } => retried += 1,
            Event::Done(result) => pictures[index] = Some(result?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((pictures.into_iter().map(|picture| picture.expect("every request is done")).collect(), retried))
}

/// The pictures 0 to `count`, drawn in the planned bytes.
fn draw(map: &str, count: u64) -> Vec<Picture> {
    let model = model();
    let plan = plan(&model, map);
    let denoiser = model.spec.denoiser();
    let engine = Engine::load(model, &plan).unwrap_or_else(|e| panic!("{map}\n{e}"));
    let (pictures, _) = generate(&engine, count).unwrap_or_else(|e| panic!("{map}\n{e}"));
    // One of several replicas, or of a pool, may come too late for all requests.
    let chosen = plan.replicas.len() > 1 || plan.replicas[0].placement[denoiser].len() > 1;
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_bytes()) {
        let planned = (planned.id, planned.activation_bytes);
        let is_right = planned == (id, peak as u64) || (chosen && peak == 0);
        assert!(is_right, "{map}: {id} uses {peak} arena bytes in place of {planned:?}");
    }
    pictures
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

fn gpus(numbers: &[usize]) -> String {
    let names: Vec<_> = numbers.iter().map(|n| format!("\"cuda:{n}\"")).collect();
    format!("devices = [{}]\n", names.join(", "))
}

/// The bounds are a few times what the types' roundings were seen to make of these random weights.
#[test]
fn pictures_are_the_cpus_in_every_type() {
    let Some(_rig) = rig() else { return };
    let cpu = draw("devices = [\"cpu\"]", 2);
    assert!(apart(&cpu[..1], &cpu[1..]) > 1.0, "other pictures are far apart");
    println!("other pictures: {:.4} steps of 255", apart(&cpu[..1], &cpu[1..]));
    let mut drawn = Vec::new();
    for (dtype, bound) in [("f32", 0.01), ("f16", 1.0), ("bf16", 5.0)] {
        let pictures = draw(&format!("{}dtype = \"{dtype}\"\n", gpus(&[0])), 2);
        println!("{dtype}: {:.4} steps of 255", apart(&cpu, &pictures));
        assert!(apart(&cpu, &pictures) <= bound, "{dtype}: {} steps of 255", apart(&cpu, &pictures));
        assert!(
            drawn.iter().all(|others: &Vec<Picture>| bits(others) != bits(&pictures)),
            "{dtype} is a class of its own"
        );
        drawn.push(pictures);
    }
}

#[test]
fn bytes_do_not_depend_on_runs_replicas_cuts_pools_or_where_weights_rest() {
    let Some((rig, _guard)) = rig() else { return };
    let want = draw(&gpus(&[0]), 2);
    let four = gpus(&[0, 1, 2, 3]);
    let maps = [
        gpus(&[3]),
        format!("{}in_flight = 2\n", gpus(&[0])),
        format!("{}replicas = 2\n", gpus(&[1, 2])),
        format!("{four}[components]\ntext_encoder = \"cuda:3\"\nunet = \"cuda:1\"\nvae = \"cuda:2\"\n"),
        format!("{four}[components]\nunet = {{ shards = {{ \"\" = \"cuda:0\", \"up_blocks\" = \"cuda:1\" }} }}\n"),
        format!(
            "{four}in_flight = 2\n\
             [components]\nunet = {{ shards = {{ \"\" = \"cuda:2\", \"mid_block\" = \"cuda:3\" }} }}\n"
        ),
        format!("{four}[components]\nunet = {{ negative = \"cuda:0\", positive = \"cuda:1\" }}\n"),
        format!("{four}[components]\nunet = [\"cuda:1\", \"cuda:2\"]\nvae = \"cuda:0\"\n"),
        format!("{}[components]\nunet = {{ execute = \"cuda:0\", reside = \"host\" }}\n", gpus(&[0])),
        format!("{}[components]\nvae = {{ execute = \"cuda:0\", reside = \"disk\" }}\n", gpus(&[0])),
    ];
    // Every other one with streams, blocks and threads as late as chance wants them.
    for (map, seed) in maps.iter().zip(["0", "11", "0", "12", "0", "13", "14", "0", "15", "0"]) {
        rig.set("DELAYS", seed);
        let drawn = draw(map, 2);
        rig.set("DELAYS", "0");
        assert!(bits(&drawn) == bits(&want), "{map}\nwith delays {seed} draws other pictures than one GPU");
    }
}

#[test]
fn the_shipped_balanced_map_spreads_over_two_gpus() {
    let Some(_rig) = rig() else { return };
    let shipped = include_str!("../device_maps/balanced.toml");
    let line = "# devices = [\"cpu:0\", \"cpu:1\"]\n";
    assert!(shipped.contains(line), "{shipped}");
    let map = shipped.replace(line, &gpus(&[0, 1]));
    let plan = plan(&model(), &map);
    let used: Vec<_> = plan.devices.iter().filter(|device| device.weight_bytes > 0).map(|device| device.id).collect();
    assert_eq!(used, [0, 1].map(|n| DeviceId::new(DeviceKind::Cuda, n)), "both hold something");
    assert!(bits(&draw(&map, 2)) == bits(&draw(&gpus(&[2]), 2)));
}

#[test]
fn gpus_of_cuda_work_beside_other_kinds() {
    let Some(_rig) = rig() else { return };
    let one = draw(&gpus(&[0]), 2);
    let with_cpu = "devices = [\"cpu\", \"cuda:0\", \"cuda:1\"]\n\
         [components]\ntext_encoder = \"cpu\"\nunet = \"cuda:0\"\nvae = \"cuda:1\"\n";
    assert!(apart(&draw(with_cpu, 2), &one) <= 1.0);
    if backend::visible().iter().any(|device| device.id.kind == DeviceKind::Wgpu) {
        let with_wgpu = "devices = [\"cpu\", \"cuda:0\", \"wgpu:0\"]\n\
             [components]\ntext_encoder = \"cpu\"\nunet = \"cuda:0\"\nvae = \"wgpu:0\"\n";
        assert!(apart(&draw(with_wgpu, 2), &one) <= 1.0);
    } else {
        println!("wgpu: not here");
    }
}

/// Two replicas, of which one fails on the way: every picture is drawn, as if nothing had happened.
fn survives(rig: &Rig, pair: [usize; 2], map: &str, fault: &str) {
    let want = draw(&gpus(&[0]), 4);
    let model = model();
    let plan = plan(&model, &format!("{}replicas = 2\n{map}", gpus(&pair)));
    let engine = Engine::load(model, &plan).unwrap();
    rig.set("FAULTS", fault);
    let (pictures, retried) = generate(&engine, 4).unwrap_or_else(|e| panic!("{fault}\n{e}"));
    assert!(retried >= 1, "{fault}: nothing failed");
    assert!(bits(&pictures) == bits(&want), "{fault}: other pictures");
}

#[test]
fn a_launch_that_fails_costs_its_device_and_no_picture() {
    let Some((rig, _guard)) = rig() else { return };
    survives(&rig, LAUNCH_FAILS, "", "launch:300");
}

#[test]
fn a_lost_device_costs_no_picture_and_says_so() {
    let Some((rig, _guard)) = rig() else { return };
    let [first, second] = IS_LOST;
    survives(&rig, IS_LOST, "", &format!("lost:{first}:500"));
    // The other one is lost too, and nothing is left to draw with.
    let model = model();
    let plan = plan(&model, &gpus(&[second]));
    let engine = Engine::load(model, &plan).unwrap();
    rig.set("FAULTS", &format!("lost:{second}:200"));
    let error = engine.submit(request(0)).unwrap().wait().unwrap_err();
    assert!(error.to_string().contains(&format!("cuda:{second}")), "{error}");
    assert!(matches!(error.scope(), ErrorScope::Device(_)), "{error}");
}

#[test]
fn too_little_memory_is_an_error_that_says_how_much_and_ends_nothing_else() {
    let Some((rig, _guard)) = rig() else { return };
    let model = model();
    let [first, second] = OUT_OF_MEMORY;
    let plan = plan(&model, &gpus(&[first]));
    // While weights are loaded, at several places.
    for turn in [2, 5, 50] {
        rig.set("FAULTS", &format!("alloc:{turn}"));
        let error =
            Engine::load(model.clone(), &plan).err().unwrap_or_else(|| panic!("allocation {turn} did not fail"));
        let message = format!("{error}");
        assert!(message.contains(&format!("cuda:{first}")) && message.contains("no memory for"), "{message}");
    }
    rig.set("FAULTS", "");
    let engine = Engine::load(model, &plan).unwrap();
    assert!(bits(&generate(&engine, 1).unwrap().0) == bits(&draw(&gpus(&[0]), 1)), "then there is room");
    // During a step, when offloaded weights are fetched.
    let offloaded = format!("[components]\nunet = {{ execute = \"cuda:{second}\", reside = \"host\" }}\n");
    let model = self::model();
    let plan = self::plan(&model, &format!("{}{offloaded}", gpus(&[second])));
    let engine = Engine::load(model, &plan).unwrap();
    rig.set("FAULTS", "alloc:10");
    let error = engine.submit(request(0)).unwrap().wait().unwrap_err();
    assert!(error.to_string().contains(&format!("cuda:{second}")), "{error}");
}

#[test]
fn a_link_that_corrupts_is_found_and_not_used() {
    let Some((rig, _guard)) = rig() else { return };
    let want = draw(&gpus(&[0]), 2);
    for (peers, [a, b], link) in
        [("corrupt", CORRUPT, backend::cuda::Link::Corrupt), ("none", NO_LINK, backend::cuda::Link::None)]
    {
        rig.set("PEERS", peers);
        let cut =
            format!("[components]\nunet = {{ shards = {{ \"\" = \"cuda:{a}\", \"up_blocks\" = \"cuda:{b}\" }} }}\n");
        assert!(bits(&draw(&format!("{}{cut}", gpus(&[a, b])), 2)) == bits(&want), "{peers}: other pictures");
        assert_eq!(backend::cuda::link(a, b).unwrap(), link);
        assert!(bits(&copies_weights(&rig, [a, b])[..2]) == bits(&want), "{peers}: other pictures of copied weights");
    }
    rig.set("PEERS", "good");
    assert_eq!(backend::cuda::link(2, 3).unwrap(), backend::cuda::Link::Direct);
    assert!(bits(&copies_weights(&rig, [2, 3])[..2]) == bits(&want), "other pictures of copied weights");
}

/// Forwards of the network that a picture takes.
fn forwards(model: &Model, steps: usize) -> u64 {
    schedule(&model.spec.scheduler_for(None).unwrap(), steps).unwrap().steps.len() as u64
}

#[test]
fn a_forward_that_comes_again_is_one_graph_with_the_same_bytes() {
    let Some((rig, _guard)) = rig() else { return };
    let (model, requests) = (model(), [0, 1].map(|n| Request { steps: 5, ..request(n) }));
    let plan = plan_for(&model, &gpus(&[0]), &requests);
    let draw = |fault| {
        let count = || ["cuLaunchKernel", "cuGraphLaunch"].map(|function| rig.calls(function, 0));
        rig.set("FAULTS", fault);
        let engine = Engine::load(model.clone(), &plan).unwrap();
        let before = count();
        let (pictures, _) = generate_each(&engine, requests.to_vec()).unwrap();
        let after = count();
        (pictures, after[0] - before[0], after[1] - before[1])
    };
    // A driver without memory for a graph costs none of its kernels.
    let (want, launches, graphs) = draw("graph:1");
    assert_eq!(graphs, 0);
    let (got, fewer, graphs) = draw("");
    assert!(bits(&got) == bits(&want));
    assert_eq!(
        graphs,
        2 * forwards(&model, 5) - 1,
        "the first forward is launched kernel by kernel, all others at once"
    );
    println!("{launches} launches, or {fewer} and {graphs} graphs");
    assert!((launches - fewer).is_multiple_of(graphs), "every graph has as many kernels");
    assert!(5 * fewer < 2 * launches);
}

#[test]
fn shapes_in_turn_and_replicas_on_one_device_have_graphs_of_their_own() {
    let Some((rig, _guard)) = rig() else { return };
    let model = model();
    let shapes = |n: u64| match n % 3 {
        0 => request(n),
        1 => Request { width: 32, ..request(n) },
        _ => Request { guidance_scale: 1.0, ..request(n) },
    };
    let requests: Vec<Request> = (0..6).map(shapes).collect();
    let draw = |map: &str, devices: &[usize]| {
        let plan = plan_for(&model, map, &requests);
        let count = || devices.iter().map(|&device| rig.calls("cuGraphLaunch", device)).sum::<u64>();
        let engine = Engine::load(model.clone(), &plan).unwrap();
        let before = count();
        let (pictures, _) = generate_each(&engine, requests.clone()).unwrap();
        (pictures, count() - before)
    };
    let cut = "[components]\nunet = { shards = { \"\" = \"cuda:0\", \"up_blocks\" = \"cuda:1\" } }\n";
    let (want, graphs) = draw(&format!("{}{cut}", gpus(&[0, 1])), &[0, 1]);
    assert_eq!(graphs, 0, "a cut network is no graph");
    let calls = 6 * forwards(&model, 2);
    let (one, graphs) = draw(&gpus(&[0]), &[0]);
    assert!(bits(&one) == bits(&want));
    assert_eq!(graphs, calls - 3, "each shape comes once before it is a graph");
    let replica = format!("[[replica]]\n{}", gpus(&[1]));
    let (two, graphs) = draw(&format!("{replica}{replica}"), &[1]);
    assert!(bits(&two) == bits(&want));
    // The keys and values of each lie in places of their own.
    assert!((calls - 6..=calls - 3).contains(&graphs), "{graphs} graphs in {calls} forwards");
}

#[test]
fn a_kernel_that_fails_in_a_graph_costs_its_device_and_no_picture() {
    let Some((rig, _guard)) = rig() else { return };
    survives(&rig, FAILS_IN_A_GRAPH, "", "node:70");
}

/// What the program writes for one picture, under these variables.
fn file_with(variables: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let map = folder.path().join("map.toml");
    std::fs::write(&map, gpus(&[0])).unwrap();
    let mut command = sdshard(&["--steps", "3", "--width", "64", "--height", "64", "--seed", "1", "a picture"]);
    command.arg("--model").arg(tiny()).arg("--device-map").arg(&map).arg("--output-dir").arg(folder.path().join("out"));
    succeeds(command.envs(variables.iter().copied()));
    let files: Vec<_> = std::fs::read_dir(folder.path().join("out")).unwrap().collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    std::fs::read(file.as_ref().unwrap().path()).unwrap()
}

#[test]
fn graphs_can_be_turned_off_and_older_drivers_have_none() {
    let Some(_rig) = rig() else { return };
    let want = file_with(&[]);
    assert!(file_with(&[("SDSHARD_CUDA_GRAPHS", "off")]) == want);
    assert!(file_with(&[("SDSHARD_RIG_FAULTS", "symbol:cuGraphAddKernelNode_v2")]) == want);
    let map = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(map.path(), gpus(&[0])).unwrap();
    let mut command = sdshard(&["--quiet", "--output-dir", "never", "--seed", "0", "a picture", "--device-map"]);
    command.arg(map.path()).arg("--model").arg(tiny()).env("SDSHARD_CUDA_GRAPHS", "perhaps");
    let message = message_of(command.output().unwrap(), "a switch that is neither on nor off");
    assert!(message.contains("SDSHARD_CUDA_GRAPHS") && message.contains("perhaps"), "{message}");
}

/// A second replica has its weights from the first one's GPU, over a link that is good and else through the host, and
/// never over one that corrupts.
fn copies_weights(rig: &Rig, [a, b]: [usize; 2]) -> Vec<Picture> {
    let link = backend::cuda::link(a, b).unwrap();
    let model = model();
    let plan = plan(&model, &format!("{}replicas = 2\n", gpus(&[a, b])));
    let count = || {
        let from_first = ["cuMemcpyPeerAsync", "cuMemcpyDtoHAsync_v2"].map(|function| rig.calls(function, a));
        let from_host = [a, b].map(|device| rig.calls("cuMemcpyHtoDAsync_v2", device));
        [from_first, from_host].concat()
    };
    let before = count();
    let engine = Engine::load(model, &plan).unwrap();
    let calls: Vec<u64> = count().iter().zip(before).map(|(after, before)| after - before).collect();
    println!("{link:?}: {calls:?} copies to a GPU, to the host, from the host to the first GPU, to the second");
    let packed = calls[2];
    assert!(packed > 100, "weights and biases of all layers");
    let want = if link == backend::cuda::Link::Direct { [packed, 0, packed, 0] } else { [0, packed, packed, packed] };
    assert_eq!(calls, want);
    generate(&engine, 4).unwrap().0
}

#[test]
fn offloaded_weights_reuse_memory_and_take_no_more_than_planned() {
    let Some((rig, _guard)) = rig() else { return };
    let model = model();
    let map = format!("{}[components]\nunet = {{ execute = \"cuda:0\", reside = \"host\" }}\n", gpus(&[0]));
    let plan = plan(&model, &map);
    let visitor_bytes = plan.devices[0].visitor_bytes;
    let engine = Engine::load(model, &plan).unwrap();
    let loaded = rig.used_bytes(0);
    let count = || ["cuMemAlloc_v2", "cuMemcpyHtoDAsync_v2"].map(|function| rig.calls(function, 0));
    let before = count();
    let mut most = 0;
    engine
        .generate((0..2).map(request), |_, _| {
            most = most.max(rig.used_bytes(0) - loaded);
            Ok(())
        })
        .unwrap();
    let [allocated, copied] = [0, 1].map(|i| count()[i] - before[i]);
    println!("{copied} copies into {allocated} allocations, {most} bytes of {visitor_bytes} planned");
    assert!(0 < most && most <= visitor_bytes, "{most} bytes of {visitor_bytes} planned");
    assert!(2 * allocated < copied, "{copied} copies into {allocated} allocations");
}

/// The program with another driver than this process has.
fn devices_with(change: impl Fn(&mut Command) -> &mut Command) -> String {
    let mut command = sdshard(&["devices"]);
    change(&mut command);
    let listed = succeeds(&mut command);
    let mut command = sdshard(&["--output-dir", "never", "--device-map"]);
    let map = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(map.path(), "devices = [\"cuda:0\"]").unwrap();
    command.arg(map.path()).arg("--model").arg(tiny()).arg("a picture");
    change(&mut command);
    let message = message_of(command.output().unwrap(), "a map for a GPU");
    assert!(message.contains("there is no device \"cuda:0\""), "{message}");
    assert!(!listed.contains("cuda:0") && listed.contains("cpu  "), "{listed}");
    let mut command = sdshard(&["devices"]);
    change(&mut command);
    String::from_utf8(command.output().unwrap().stderr).unwrap()
}

#[test]
fn without_a_driver_a_function_of_it_or_a_device_the_program_goes_on_without_cuda() {
    let Some(_rig) = rig() else { return };
    let said = devices_with(|command| command.env_remove("LD_LIBRARY_PATH"));
    assert!(said.contains("cuda: no driver (libcuda) on this machine"), "{said}");
    let said = devices_with(|command| command.env("SDSHARD_RIG_FAULTS", "symbol:cuMemcpyPeerAsync"));
    assert!(said.contains("cuda: the driver has no function cuMemcpyPeerAsync: it is too old"), "{said}");
    let said = devices_with(|command| command.env("SDSHARD_RIG_DEVICES", "0"));
    assert!(said.contains("cuda: the driver has no GPU"), "{said}");
}

#[test]
fn a_check_of_two_gpus_says_what_a_report_of_a_bug_needs() {
    let Some(_rig) = rig() else { return };
    let mut command = sdshard(&["devices", "--check"]);
    let report = succeeds(command.env("SDSHARD_RIG_DEVICES", "2").env("SDSHARD_RIG_PEERS", "corrupt"));
    let has = |words: &str| assert!(report.contains(words), "no {words:?} in\n{report}");
    has("driver of CUDA ");
    has(" multiprocessors, kernels compiled on this machine by NVRTC ");
    for gpu in ["cuda:0", "cuda:1"] {
        for dtype in ["f32", "f16", "bf16"] {
            has(&format!("ok      {gpu} {dtype} attention of 512 channels: off by "));
            has(&format!("ok      {gpu} {dtype} a picture: blocks off by "));
        }
    }
    has("ok      cuda:0 to cuda:1, through the host, as their link corrupts data: ");
    has("ok      cpu f32 a picture: ");
}
