//! The engine on simulated devices: how well stages overlap, and that no request is lost or done twice whatever fails.
//! Time is the devices' own and everything happens in the same order each time, so a seed says it all.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use crate::common::model;
use sdshard::{
    backend::{
        DType, Device, DeviceId, DeviceInfo, DeviceKind, NumericsClass, Precision, Rates,
        cpu::Path,
        rules::Rules,
        sim::{Fault, Faults, Fusions, OpStart, Pace, Record, Setup, Waits},
    },
    device_map::DeviceMap,
    engine::{Engine, Event},
    error::{Error, ErrorScope},
    models::component::PerComponent,
    output::{self, Durability},
    pipeline::{
        Model, Picture,
        request::{Output, Request, Rng, Start},
    },
    planner::{Largest, plan::Plan},
    prompt::PromptSyntax,
    sync::Clock,
    tensor::Tensor,
};

/// An op that hangs takes so long.
const FOR_EVER: Duration = Duration::from_secs(1_000_000);
/// What starting noise begins with that kills the device which it is written to.
const POISON: f32 = 12345.0;

fn gpu(index: usize) -> DeviceId {
    DeviceId::new(DeviceKind::Cuda, index)
}

/// A picture of its own text, without guidance.
fn request(n: u64) -> Request {
    Request {
        prompt: format!("picture {n}"),
        prompt_syntax: PromptSyntax::Plain,
        chunks: 1,
        prompt_2: None,
        negative_prompt: None,
        negative_prompt_2: None,
        seed: n,
        steps: 2,
        guidance_scale: 1.0,
        guidance_rescale: 0.0,
        eta: 0.0,
        clip_skip: 0,
        vae_tiling: false,
        scheduler: None,
        width: 16,
        height: 16,
        rng: Rng::TorchCpu,
        start: Start::Noise,
        controls: Vec::new(),
        output: Output::Image,
        step_latents: false,
    }
}

fn guided(n: u64) -> Request {
    Request { guidance_scale: 7.5, ..request(n) }
}

fn poison(n: u64) -> Request {
    Request { start: Start::Latents(vec![POISON; 4 * 2 * 2].into()), ..request(n) }
}

/// With so many steps and pixels that the UNet takes longest, as it does outside of tests.
fn long(n: u64) -> Request {
    Request { steps: 8, width: 64, height: 64, ..request(n) }
}

/// So many operations and bytes per second; 1 is some small device.
fn rates(speed: f64) -> Rates {
    Rates { flops: 1e9 * speed, bandwidth: 1e12 * speed, link: 1e12 * speed }
}

/// Simulated devices `cuda:0`, `cuda:1`, ... and their time.
struct World {
    model: Arc<Model>,
    clock: Clock,
    infos: Vec<DeviceInfo>,
    devices: Vec<Device>,
    records: Vec<Arc<Record>>,
}

impl World {
    /// Devices of these speeds, with `faults` for each.
    fn new(speeds: &[f64], fusions: Fusions, faults: impl Fn(usize) -> Faults) -> Self {
        Self::with(speeds, fusions, Waits::ToRead, faults)
    }

    fn with(speeds: &[f64], fusions: Fusions, waits: Waits, faults: impl Fn(usize) -> Faults) -> Self {
        let f32 = |&speed: &f64| (speed, Rules::Cpu(Path::Portable.into(), Precision::F32));
        Self::of(&speeds.iter().map(f32).collect::<Vec<_>>(), fusions, waits, faults)
    }

    fn of(devices: &[(f64, Rules)], fusions: Fusions, waits: Waits, faults: impl Fn(usize) -> Faults) -> Self {
        let clock = Clock::simulated();
        let infos = devices.iter().enumerate().map(|(i, &(speed, rules))| DeviceInfo {
            id: gpu(i),
            name: "simulated".into(),
            class: NumericsClass::cpu(Path::Portable.into()).in_type(rules.precision()),
            cores: 1,
            memory_bytes: 16 << 30,
            free_bytes: 16 << 30,
            allowed_cores: Vec::new(),
            overhead_bytes: 0,
            rules,
            rates: rates(speed),
            f32_flops: rates(speed).flops,
            rates_measured: None,
            only_named: false,
        });
        let infos: Vec<DeviceInfo> = infos.collect();
        let simulated = infos.iter().enumerate().map(|(i, info)| {
            let setup = Setup {
                rules: info.rules,
                pace: Pace::Rates(info.rates),
                fusions,
                waits,
                faults: faults(i),
                clock: clock.clone(),
            };
            Device::simulated(info.id, setup)
        });
        let (devices, records) = simulated.unzip();
        Self { model: model(), clock, infos, devices, records }
    }

    /// Devices that never fail.
    fn healthy(speeds: &[f64]) -> Self {
        Self::new(speeds, Fusions::Native, |_| Box::new(|_| None))
    }

    /// Made for all of these requests.
    fn plan(&self, map: &str) -> Plan {
        self.plan_for(map, &[long(0), guided(0)])
    }

    fn plan_for(&self, map: &str, requests: &[Request]) -> Plan {
        let largest = Largest::of(requests, &self.model.spec).unwrap().unwrap();
        let map = DeviceMap::parse(map, "map.toml").unwrap();
        let plan = Plan::resolve(&map, &self.model.spec, &largest, &self.infos);
        let mut plan = plan.unwrap_or_else(|error| panic!("{error}"));
        // A plan counts with native fusions; plain ops need room for what lies between them.
        plan.devices.iter_mut().for_each(|device| device.activation_bytes *= 4);
        plan
    }

    fn load(&self, plan: &Plan) -> Engine {
        Engine::load_on(self.model.clone(), plan, self.devices.clone(), self.clock.clone()).unwrap()
    }

    fn engine(&self, map: &str) -> Engine {
        self.load(&self.plan(map))
    }

    /// The devices that died.
    fn dead(&self) -> Vec<usize> {
        (0..self.records.len()).filter(|&i| self.records[i].died_at().is_some()).collect()
    }

    fn assert_empty(&self, what: &str) {
        for device in &self.devices {
            assert_eq!(device.live(), 0, "{what}: tensors are left in the arena of {}", device.id());
        }
    }
}

/// How a request ended, and how often it was taken.
#[derive(Debug, Clone, PartialEq)]
struct End {
    attempts: usize,
    /// The message of its failure.
    failure: Option<String>,
    /// When, since the first request.
    at: Duration,
}

/// Draws all of them. Each has exactly one end, after which nothing is heard of it.
fn draw(world: &World, engine: &Engine, requests: &[Request], mut keep: impl FnMut(usize, &Picture)) -> Vec<End> {
    let start = world.clock.now();
    let mut ends: Vec<Option<End>> = vec![None; requests.len()];
    let mut attempts = vec![0; requests.len()];
    engine
        .generate(requests.iter().cloned(), |index, event| {
            assert!(ends[index].is_none(), "{index} goes on after its end: {event:?}");
            match event {
                Event::Queued { .. } => assert_eq!(attempts[index], 0),
                Event::Taken { attempt, .. } => {
                    attempts[index] += 1;
                    assert_eq!(attempt, attempts[index]);
                }
                Event::Retry { error, .. } => assert!(matches!(error.scope(), ErrorScope::Device(_)), "{error}"),
                Event::Progress(_) => assert!(attempts[index] > 0),
                Event::Done(result) => {
                    let failure = match result {
                        Ok(picture) => {
                            keep(index, &picture);
                            None
                        }
                        Err(error) => Some(error.to_string()),
                    };
                    let (attempts, at) = (attempts[index], world.clock.now() - start);
                    ends[index] = Some(End { attempts, failure, at });
                }
                other => panic!("a new kind of event: {other:?}"),
            }
            Ok(())
        })
        .unwrap();
    ends.into_iter().enumerate().map(|(i, end)| end.unwrap_or_else(|| panic!("request {i} was lost"))).collect()
}

/// Fails rather than waits for ever.
fn within<T: Send + 'static>(seconds: u64, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(f()));
    match receiver.recv_timeout(Duration::from_secs(seconds)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end after {seconds} s"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => panic!("it ended without a result"),
        },
    }
}

// How well stages overlap.

/// A placement whose makespan is looked at.
struct Case {
    name: &'static str,
    speeds: &'static [f64],
    map: &'static str,
}

const CASES: [Case; 7] = [
    Case {
        name: "three devices, a stage on each",
        speeds: &[1.0, 1.0, 1.0],
        map: "[components]\ntext_encoder = \"cuda:0\"\nunet = \"cuda:1\"\nvae = \"cuda:2\"",
    },
    Case {
        name: "three devices of unequal speed",
        speeds: &[0.2, 3.0, 0.7],
        map: "[components]\ntext_encoder = \"cuda:0\"\nunet = \"cuda:1\"\nvae = \"cuda:2\"",
    },
    Case {
        name: "a pool of three unequal UNets",
        speeds: &[2.0, 1.0, 0.6, 0.35, 2.0],
        map: "[components]\ntext_encoder = \"cuda:0\"\nunet = [\"cuda:1\", \"cuda:2\", \"cuda:3\"]\nvae = \"cuda:4\"",
    },
    Case {
        name: "two devices",
        speeds: &[1.0, 1.0],
        map: "[components]\ntext_encoder = \"cuda:0\"\nunet = \"cuda:1\"\nvae = \"cuda:0\"",
    },
    Case { name: "eight devices, four replicas", speeds: &[1.0; 8], map: "replicas = 4" },
    Case {
        name: "eight unequal devices, a replica on each",
        speeds: &[1.0, 0.5, 2.0, 1.5, 0.3, 1.0, 0.8, 3.0],
        map: "replicas = 8",
    },
    Case {
        name: "eight devices, a pool of six",
        speeds: &[1.5, 1.0, 1.0, 0.5, 0.5, 2.0, 0.25, 1.5],
        map: "[components]\ntext_encoder = \"cuda:0\"\nunet = [\"cuda:1\", \"cuda:2\", \"cuda:3\", \"cuda:4\", \"cuda:5\", \
              \"cuda:6\"]\nvae = \"cuda:7\"",
    },
];

/// How long each component takes by itself on each device of a case, in seconds.
fn times_alone(case: &Case) -> Vec<PerComponent<f64>> {
    let alone = |speed: &f64| {
        let world = World::healthy(&[*speed]);
        let _here = world.clock.take_part();
        let picture = world.engine("").submit(long(0)).unwrap().wait().unwrap();
        world.model.spec.components.map(|component, _| picture.time(component).as_secs_f64())
    };
    case.speeds.iter().map(alone).collect()
}

/// The time for `n` pictures that a case may take: fill and slowest instance, pictures per second.
fn bounds(case: &Case) -> (f64, f64, f64) {
    let times = times_alone(case);
    let plan = World::healthy(case.speeds).plan(case.map);
    let index = |id: DeviceId| id.index.unwrap();
    let (mut rate, mut fill, mut slowest) = (0.0, f64::INFINITY, 0.0f64);
    for replica in &plan.replicas {
        let mut of_replica = f64::INFINITY;
        let mut of_device = BTreeMap::<usize, f64>::new();
        let mut fill_of_replica = 0.0;
        for (component, places) in replica.placement.iter() {
            let of_places: Vec<(usize, f64)> = places
                .iter()
                .map(|place| index(place.devices()[0]))
                .map(|device| (device, times[device][component]))
                .collect();
            of_replica = of_replica.min(of_places.iter().map(|(_, time)| 1.0 / time).sum());
            for (device, time) in &of_places {
                slowest = slowest.max(*time);
                if places.len() == 1 {
                    *of_device.entry(*device).or_default() += time;
                }
            }
            fill_of_replica += of_places.iter().map(|(_, time)| *time).fold(f64::INFINITY, f64::min);
        }
        // A device that serves two stages counts the sum.
        of_replica = of_device.values().map(|time| 1.0 / time).fold(of_replica, f64::min);
        rate += of_replica;
        fill = f64::min(fill, fill_of_replica);
        // Where a replica is a stage by itself, its whole request is what may begin last.
        if plan.replicas.len() > 1 {
            slowest = slowest.max(fill_of_replica);
        }
    }
    (fill, rate, slowest)
}

/// How long each case takes for `n` pictures, and how long its plan says, in seconds.
fn makespans(n: u64) -> Vec<(&'static Case, f64, f64)> {
    CASES
        .iter()
        .map(|case| {
            let world = World::healthy(case.speeds);
            let _here = world.clock.take_part();
            let requests: Vec<Request> = (0..n).map(long).collect();
            let plan = world.plan_for(case.map, &requests);
            let ends = draw(&world, &world.load(&plan), &requests, |_, _| {});
            assert!(ends.iter().all(|end| end.failure.is_none() && end.attempts == 1), "{}", case.name);
            world.assert_empty(case.name);
            let makespan = ends.iter().map(|end| end.at.as_secs_f64()).fold(0.0, f64::max);
            (case, makespan, plan.seconds_for(n as usize))
        })
        .collect()
}

#[test]
fn stages_overlap_as_far_as_their_devices_allow_and_as_planned() {
    for n in [1, 8, 60] {
        for (case, makespan, planned) in within(120, move || makespans(n)) {
            let (fill, rate, slowest) = bounds(case);
            let most = 1.05 * (fill + n as f64 / rate) + slowest;
            assert!(makespan <= most, "{}: {n} pictures take {makespan} s, not {most} at most", case.name);
            // What no placement can beat.
            let least = ((n as f64 - 1.0) / rate - slowest).max(fill);
            assert!(makespan >= 0.999 * least, "{}: {n} pictures take {makespan} s, not {least} at least", case.name);
            let error = (makespan / planned - 1.0).abs();
            assert!(error <= 0.02, "{}: {n} pictures take {makespan} s, planned were {planned}", case.name);
        }
    }
}

/// Pools that share devices with the other stages, in every order: what the first of a list does must not starve the
/// rest.
#[test]
fn pools_beside_other_stages_are_as_planned_and_keep_their_devices_busy() {
    for speeds in [[1.0, 1.0], [1.0, 0.6]] {
        for (text, vae) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for [first, second] in [[0, 1], [1, 0]] {
                for (n, in_flight) in [(1, ""), (8, ""), (60, ""), (60, "in_flight = 2\n")] {
                    let map = format!(
                        "{in_flight}[components]\ntext_encoder = \"cuda:{text}\"\nunet = [\"cuda:{first}\", \
                         \"cuda:{second}\"]\nvae = \"cuda:{vae}\""
                    );
                    let (makespan, planned, busy) = within(120, move || {
                        let world = World::healthy(&speeds);
                        let _here = world.clock.take_part();
                        let requests: Vec<Request> = (0..n).map(long).collect();
                        let plan = world.plan_for(&map, &requests);
                        let ends = draw(&world, &world.load(&plan), &requests, |_, _| {});
                        let makespan = ends.iter().map(|end| end.at.as_secs_f64()).fold(0.0, f64::max);
                        let idle = plan.devices.iter().map(|device| device.idle_share).fold(0.0, f64::max);
                        (makespan, plan.seconds_for(n as usize), 1.0 - idle)
                    });
                    let case = format!(
                        "{speeds:?}, texts on {text}, UNets on {first} and {second}, VAE on {vae}, {in_flight:?}: {n} pictures"
                    );
                    let error = (makespan / planned - 1.0).abs();
                    assert!(error <= 0.02, "{case} take {makespan} s, planned were {planned}");
                    // Two at once are too few where a text has to wait for a UNet.
                    assert!(!in_flight.is_empty() || busy > 0.7, "{case} keep a device busy for {busy} of the time");
                }
            }
        }
    }
}

/// Placements whose requests pass from device to device, hold two at once, or go through one call together.
#[test]
fn plans_foresee_cuts_guidance_and_batches() {
    let cut = "in_flight = 3\n[components]\ntext_encoder = \"cuda:2\"\nvae = \"cuda:2\"\nunet = { shards = { \"\" = \"cuda:0\", \
               up_blocks = \"cuda:1\", conv_out = \"cuda:1\" } }";
    let split = "[components]\ntext_encoder = \"cuda:2\"\nvae = \"cuda:2\"\nunet = { negative = \"cuda:0\", positive = \
                 \"cuda:1\" }";
    for (map, waits, guided, n, most) in [
        (cut, Waits::ForEach, false, 1, 0.02),
        (cut, Waits::ForEach, false, 24, 0.02),
        (cut, Waits::ToRead, false, 24, 0.02),
        (split, Waits::ToRead, true, 1, 0.02),
        (split, Waits::ToRead, true, 24, 0.02),
        ("devices = [\"cuda:0\"]", Waits::ToRead, true, 5, 0.02),
        ("devices = [\"cuda:0\", \"cuda:2\"]\nreplicas = 2", Waits::ToRead, true, 24, 0.02),
        ("devices = [\"cuda:0\"]\nbatch = 4", Waits::ToRead, false, 24, 0.02),
    ] {
        let world = World::with(&[1.0, 0.8, 1.0], Fusions::Native, waits, |_| Box::new(|_| None));
        let _here = world.clock.take_part();
        let scale = if guided { 7.5 } else { 1.0 };
        let requests: Vec<Request> = (0..n).map(|n| Request { guidance_scale: scale, ..long(n) }).collect();
        let plan = world.plan_for(map, &requests);
        let ends = draw(&world, &world.load(&plan), &requests, |_, _| {});
        let makespan = ends.iter().map(|end| end.at.as_secs_f64()).fold(0.0, f64::max);
        let planned = plan.seconds_for(n as usize);
        let error = (makespan / planned - 1.0).abs();
        println!("{map:?}, {waits:?}: {n} pictures take {makespan} s, planned were {planned}");
        assert!(error <= most, "{map:?}: {n} pictures take {makespan} s, planned were {planned}");
    }
}

#[test]
fn two_devices_guide_a_picture_in_nearly_half_the_time() {
    let time = |map: &str| {
        let world = World::healthy(&[1.0, 1.0]);
        let _here = world.clock.take_part();
        let request = Request { width: 64, height: 64, steps: 10, ..guided(0) };
        let largest = Largest::of([&request], &world.model.spec).unwrap().unwrap();
        let map = DeviceMap::parse(map, "map.toml").unwrap();
        let plan = Plan::resolve(&map, &world.model.spec, &largest, &world.infos).unwrap();
        let engine = Engine::load_on(world.model.clone(), &plan, world.devices.clone(), world.clock.clone()).unwrap();
        let picture = engine.submit(request).unwrap().wait().unwrap();
        picture.time(world.model.spec.denoiser()).as_secs_f64()
    };
    let rest = "text_encoder = \"cuda:1\"\nvae = \"cuda:1\"\n";
    let whole = time(&format!("[components]\n{rest}unet = \"cuda:1\""));
    let split = time(&format!("[components]\n{rest}unet = {{ negative = \"cuda:0\", positive = \"cuda:1\" }}"));
    assert!(whole >= 1.8 * split, "{whole} s on one device, {split} s on two");
    assert!(whole <= 2.2 * split, "two devices cannot do more than twice as much: {whole} s, {split} s");
}

// What fails.

/// A number that depends on its seeds and looks like none of them.
fn hash(seeds: [u64; 3]) -> u64 {
    // Steele, Lea and Flood 2014: splitmix64.
    seeds.into_iter().fold(0, |state, seed| {
        let mut z = (state ^ seed).wrapping_add(0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    })
}

/// Between 0 and 1.
fn chance(seeds: [u64; 3]) -> f64 {
    (hash(seeds) >> 11) as f64 / (1u64 << 53) as f64
}

fn is_poisoned(op: &OpStart) -> bool {
    op.written.starts_with(&POISON.to_le_bytes())
}

/// The ops that a pipeline in f32 asks of a device which fuses nothing; of the trait's others `cast` comes below.
const OPS: [&str; 14] = [
    "linear",
    "conv2d",
    "attention",
    "group_norm",
    "layer_norm",
    "embedding",
    "upsample2x",
    "concat_channels",
    "activate",
    "add_channels",
    "scale_add",
    "write",
    "read",
    "copy",
];

const MAPS: [&str; 8] = [
    "replicas = 8",
    "replicas = 4",
    "replicas = 2\nin_flight = 3",
    // Everybody's texts come from one device.
    "[components]\ntext_encoder = \"cuda:0\"\n[[replica]]\ncomponents = { unet = \"cuda:1\", vae = \"cuda:2\" }\n\
     [[replica]]\ncomponents = { unet = \"cuda:3\", vae = \"cuda:2\" }\n\
     [[replica]]\ncomponents = { unet = [\"cuda:4\", \"cuda:5\"], vae = \"cuda:6\" }",
    "[[replica]]\ncomponents = { text_encoder = \"cuda:0\", unet = { negative = \"cuda:0\", positive = \"cuda:1\" }, vae \
     = \"cuda:1\" }\n[[replica]]\ncomponents = { text_encoder = \"cuda:2\", unet = { negative = \"cuda:2\", positive = \
     \"cuda:3\" }, vae = \"cuda:3\" }\n[[replica]]\ncomponents = { text_encoder = \"cuda:4\", unet = \"cuda:5\", vae = \
     \"cuda:6\" }",
    // Several requests in one call, and UNets that pass from device to device.
    "batch = 3\nin_flight = 2\nreplicas = 4",
    "in_flight = 3\n[[replica]]\ndevices = [\"cuda:0\", \"cuda:1\", \"cuda:2\"]\ncomponents = { unet = { shards = { \"\" = \
     \"cuda:0\", up_blocks = \"cuda:1\", conv_out = \"cuda:2\" } } }\n[[replica]]\ndevices = [\"cuda:3\", \"cuda:4\", \
     \"cuda:5\"]\ncomponents = { unet = { shards = { \"\" = \"cuda:3\", up_blocks = \"cuda:4\" } } }\n[[replica]]\ndevices = \
     [\"cuda:5\", \"cuda:6\"]",
    "in_flight = 4\n[[replica]]\ndevices = [\"cuda:0\", \"cuda:1\", \"cuda:2\"]\n\
     [[replica]]\ndevices = [\"cuda:2\", \"cuda:3\"]\n[[replica]]\ndevices = [\"cuda:4\"]",
];

/// How often each op is asked for in one picture, over all devices.
fn op_counts() -> BTreeMap<&'static str, f64> {
    let counts = Arc::new(Mutex::new(BTreeMap::<&'static str, f64>::new()));
    let world = World::new(&[1.0], Fusions::None, |_| {
        let counts = counts.clone();
        Box::new(move |op| {
            *counts.lock().unwrap().entry(op.name).or_default() += 1.0;
            None
        })
    });
    let _here = world.clock.take_part();
    world.engine("").submit(guided(0)).unwrap().wait().unwrap();
    counts.lock().unwrap().clone()
}

/// One engine with failures that its seed decides: what became of its requests, and what its devices died of.
fn disaster(seed: u64, requests: u64, counts: &BTreeMap<&'static str, f64>) -> (Vec<End>, Vec<&'static str>) {
    // From hardly any failure to so many that nobody is left.
    let deaths_per_picture = [0.001, 0.01, 0.05, 0.3][(hash([seed, 1, 0]) % 4) as usize];
    let hangs = hash([seed, 2, 0]).is_multiple_of(3);
    let each: BTreeMap<&'static str, f64> =
        counts.iter().map(|(name, count)| (*name, deaths_per_picture / OPS.len() as f64 / count)).collect();
    let world = World::new(&[1.0, 0.7, 1.3, 1.0, 0.4, 1.0, 2.0, 1.0], Fusions::None, |device| {
        let each = each.clone();
        Box::new(move |op| {
            let at = [seed, 100 + device as u64, op.number];
            if is_poisoned(op) || chance(at) < each[op.name] {
                Some(Fault::Fail)
            } else if hangs && chance([at[0], at[1], !at[2]]) < 0.2 * each[op.name] {
                Some(Fault::Delay(FOR_EVER))
            } else {
                None
            }
        })
    });
    let _here = world.clock.take_part();
    let requests: Vec<Request> = (0..requests)
        .map(|n| match hash([seed, 3, n]) % 100 {
            0 => poison(n),
            1..40 => guided(n),
            // Some texts are asked for by many at the same time.
            40..60 => Request { prompt: "the same".into(), ..request(n) },
            _ => request(n),
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let map = MAPS[(hash([seed, 4, 0]) % MAPS.len() as u64) as usize];
    let engine = world.engine(map);
    let mut written = BTreeSet::new();
    let ends = draw(&world, &engine, &requests, |index, picture| {
        let name = format!("{index:05}");
        output::write(&folder.path().join(&name), &picture.image.as_ref().unwrap().rgb, Durability::Buffered).unwrap();
        assert!(written.insert(name), "{index} is written twice");
    });
    // Whether somebody is still there.
    let served = match engine.submit(request(0)).unwrap().wait() {
        Ok(_) => true,
        Err(error) => !error.to_string().contains("no replica is left"),
    };
    drop(engine);

    let what = format!("seed {seed}, {map:?}");
    for (i, end) in ends.iter().enumerate() {
        let Some(failure) = &end.failure else {
            assert!((1..=3).contains(&end.attempts), "{what}, {i}: {end:?}");
            assert_eq!(requests[i].start, Start::Noise, "{what}, {i}: poison and done all the same");
            continue;
        };
        let suspect = failure.contains("a second device failed under this request");
        let often = failure.contains("all tries failed");
        let by_device = failure.contains("it failed at its op")
            || failure.contains("it made no progress for 60 s")
            || failure.contains("it failed while this request waited for it");
        assert!(by_device || (failure.contains("no replica is left") && !served), "{what}, {i}: {end:?}");
        assert!(!suspect || end.attempts >= 2, "{what}, {i}: {end:?}");
        assert!(!often || end.attempts == 3, "{what}, {i}: {end:?}");
        assert!(suspect || often || !served, "{what}, {i} was given up while somebody was there: {end:?}");
    }
    // Files are those of the requests that were done, and whole.
    let size = 16 * 16 * 3;
    let files: BTreeSet<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().len(), size, "{what}: half a file");
            entry.file_name().into_string().unwrap()
        })
        .collect();
    assert_eq!(files, written);
    assert_eq!(files.len(), ends.iter().filter(|end| end.failure.is_none()).count());
    // Whoever hangs still holds what it holds.
    if !hangs {
        world.assert_empty(&what);
    }
    (ends, world.records.iter().filter_map(|record| record.died_at()).collect())
}

/// Ten thousand requests, and a device that dies at every kind of op.
#[test]
fn every_request_has_one_end_whatever_fails() {
    let (mut ended, mut failed, mut again, mut died_at) = (0, 0, 0, BTreeSet::new());
    let mut silent = 0;
    let counts = op_counts();
    assert_eq!(counts.keys().copied().collect::<BTreeSet<_>>(), OPS.into_iter().collect());
    for seed in 0..125 {
        let counts = counts.clone();
        let (ends, died) = within(100, move || disaster(seed, 80, &counts));
        ended += ends.len();
        failed += ends.iter().filter(|end| end.failure.is_some()).count();
        again += ends.iter().filter(|end| end.attempts > 1).count();
        silent += ends.iter().filter(|end| end.at > Duration::from_secs(60)).count();
        died_at.extend(died);
    }
    assert_eq!(ended, 10_000);
    println!("{failed} failed, {again} were tried again, {silent} were done after somebody fell silent");
    assert!(failed > 100 && failed < 9_000 && again > 100 && silent > 0);
    assert_eq!(died_at, OPS.into_iter().collect(), "some kind of op never failed");
}

#[test]
fn the_same_failures_have_the_same_ends() {
    let counts = op_counts();
    let mut different = BTreeSet::new();
    for seed in 0..12 {
        let run = || {
            let counts = counts.clone();
            within(100, move || disaster(seed, 60, &counts))
        };
        let (first, second) = (run(), run());
        assert_eq!(first, second, "seed {seed}");
        different.insert(format!("{first:?}"));
    }
    assert!(different.len() > 6, "failures depend on the seed");
}

#[test]
fn a_cast_may_fail_like_any_op() {
    let world = World::new(&[1.0], Fusions::Native, |_| Box::new(|op| (op.name == "cast").then_some(Fault::Fail)));
    let device = &world.devices[0];
    device.reserve(1 << 16).unwrap();
    let x = Tensor::new(device, [4], &[1.0; 4]).unwrap();
    assert!(x.cast(DType::F16).is_err());
    let error = x.read().expect_err("a dead device stays dead");
    assert!(error.to_string().contains("it failed at its op 1, cast"), "{error}");
}

#[test]
fn a_request_that_kills_devices_costs_two_replicas_and_no_more() {
    let ends = within(60, || {
        let world = World::new(&[1.0; 4], Fusions::Native, |_| Box::new(|op| is_poisoned(op).then_some(Fault::Fail)));
        let _here = world.clock.take_part();
        let mut requests: Vec<Request> = (0..40).map(request).collect();
        requests[7] = poison(7);
        let ends = draw(&world, &world.engine("replicas = 4"), &requests, |_, _| {});
        assert_eq!(world.dead().len(), 2);
        world.assert_empty("after the poison");
        ends
    });
    for (i, end) in ends.iter().enumerate() {
        match &end.failure {
            None => assert_ne!(i, 7),
            Some(failure) => {
                assert_eq!((i, end.attempts), (7, 2), "{failure}");
                assert!(failure.contains("a second device failed under this request"), "{failure}");
            }
        }
    }
}

#[test]
fn once_all_devices_are_lost_every_request_fails_with_the_reason() {
    let ends = within(60, || {
        let dies = |device: usize| -> Faults {
            Box::new(move |op| (op.number >= 2000 * (device as u64 + 1)).then_some(Fault::Fail))
        };
        let world = World::new(&[1.0; 3], Fusions::Native, dies);
        let _here = world.clock.take_part();
        let engine = world.engine("replicas = 3");
        let requests: Vec<Request> = (0..200).map(request).collect();
        let ends = draw(&world, &engine, &requests, |_, _| {});
        assert_eq!(world.dead(), [0, 1, 2]);
        // And whoever comes later is told at once.
        let error = engine.submit(request(0)).unwrap().wait().unwrap_err();
        assert!(error.to_string().contains("no replica is left"), "{error}");
        assert!(error.to_string().contains("cuda:2: it failed at its op 6000"), "{error}");
        ends
    });
    let done = ends.iter().filter(|end| end.failure.is_none()).count();
    assert!(done > 5 && done < 150, "{done} done");
    assert!(ends[..done / 2].iter().all(|end| end.failure.is_none()), "the oldest first");
}

/// `device` hangs at the `number`th op for which `is` holds, for so long.
fn hangs(
    device: usize,
    time: Duration,
    is: impl Fn(&OpStart) -> bool + Send + Sync + Clone + 'static,
) -> impl Fn(usize) -> Faults {
    move |this| {
        let is = is.clone();
        Box::new(move |op| (this == device && is(op)).then_some(Fault::Delay(time)))
    }
}

#[test]
fn a_device_that_hangs_is_given_up_with_its_replica() {
    within(60, || {
        // Texts and pictures come from one device for both replicas; the first one's UNet hangs.
        let map = "[components]\ntext_encoder = \"cuda:0\"\nvae = \"cuda:0\"\n\
                   [[replica]]\nin_flight = 1\ncomponents = { unet = \"cuda:1\" }\n[[replica]]\ncomponents = { unet = \"cuda:2\" }";
        let world = World::new(&[1.0; 3], Fusions::Native, hangs(1, FOR_EVER, |op| op.number == 300));
        let _here = world.clock.take_part();
        let engine = world.engine(map);
        let requests: Vec<Request> = (0..30).map(request).collect();
        let ends = draw(&world, &engine, &requests, |_, _| {});
        assert!(ends.iter().all(|end| end.failure.is_none()), "{ends:?}");
        let again: Vec<&End> = ends.iter().filter(|end| end.attempts == 2).collect();
        assert_eq!(again.len(), 1, "the one that it hung under");
        let waited = again[0].at.as_secs_f64();
        assert!((60.0..70.0).contains(&waited), "tried again after {waited} s");
        drop(engine);
        assert_eq!([0, 2].map(|i| world.devices[i].live()), [0, 0]);
    });
}

#[test]
fn reports_of_a_thread_that_returns_from_a_hang_are_ignored() {
    within(60, || {
        // It comes back while the others are still at work.
        let world =
            World::new(&[1e-2, 1e-2], Fusions::Native, hangs(0, Duration::from_secs(70), |op| op.number == 100));
        let _here = world.clock.take_part();
        let engine = world.engine("replicas = 2");
        let requests: Vec<Request> = (0..4000).map(request).take(400).collect();
        let ends = draw(&world, &engine, &requests, |_, _| {});
        assert!(ends.iter().all(|end| end.failure.is_none()));
        let last = ends.iter().map(|end| end.at).max().unwrap();
        assert!(last > Duration::from_secs(75), "all were done after {last:?}, before the thread came back");
        world.assert_empty("after the hang");
    });
}

#[test]
fn requests_do_not_wait_for_a_text_whose_encoder_hangs() {
    within(60, || {
        // All want the same text, and the first to encode it hangs.
        let faults = hangs(0, FOR_EVER, |op| op.name == "layer_norm" && op.number < 20);
        let world = World::new(&[1.0; 3], Fusions::Native, faults);
        let _here = world.clock.take_part();
        let engine = world.engine("replicas = 3");
        let requests: Vec<Request> = (0..12).map(|n| Request { prompt: "the same".into(), ..request(n) }).collect();
        let ends = draw(&world, &engine, &requests, |_, _| {});
        assert!(ends.iter().all(|end| end.failure.is_none()), "{ends:?}");
        assert_eq!(ends.iter().filter(|end| end.attempts == 2).count(), 1);
    });
}

#[test]
fn a_device_that_works_for_long_is_not_given_up() {
    within(60, || {
        // A stage takes minutes here. Of that the plan knows, or else its ops are heard one by one.
        for (waits, planned, speed) in [(Waits::ToRead, true, 1e-5), (Waits::ForEach, false, 5e-5)] {
            let world = World::with(&[speed], Fusions::Native, waits, |_| Box::new(|_| None));
            let _here = world.clock.take_part();
            let mut plan = world.plan("");
            if !planned {
                plan.components.ids().for_each(|id| plan.components[id].seconds = 0.0);
            }
            let ends = draw(&world, &world.load(&plan), &[request(0)], |_, _| {});
            assert!(ends[0].failure.is_none() && ends[0].at > Duration::from_secs(200), "{waits:?}: {ends:?}");
        }
    });
}

// Another plan.

#[test]
fn another_plan_takes_over_and_nothing_is_lost() {
    within(60, || {
        let world = World::healthy(&[1.0; 4]);
        let _here = world.clock.take_part();
        let engine = world.engine("devices = [\"cuda:0\"]");
        let before: Vec<_> = (0..2).map(|n| engine.submit(request(n)).unwrap()).collect();
        let map = "devices = [\"cuda:1\", \"cuda:2\", \"cuda:3\"]\nreplicas = 3";
        engine.apply_on(&world.plan(map), world.devices.clone()).unwrap();
        assert_eq!(engine.plan(), world.plan(map));
        let text_encoders = [gpu(1), gpu(2), gpu(3)];
        assert_eq!(engine.device_map()["text_encoder"], text_encoders);
        let after: Vec<_> = (2..8).map(|n| engine.submit(request(n)).unwrap()).collect();
        // What was under way was done where it was, the rest by the new plan.
        let vae = world.model.spec.component("vae").unwrap();
        let where_done = |ticket: sdshard::Ticket| ticket.wait().unwrap().devices(vae)[0];
        let before: Vec<DeviceId> = before.into_iter().map(where_done).collect();
        assert!(before.iter().all(|device| *device == gpu(0) || text_encoders.contains(device)), "{before:?}");
        assert!(after.into_iter().map(where_done).all(|device| text_encoders.contains(&device)));
    });
}

#[test]
fn a_plan_that_cannot_be_loaded_leaves_the_old_one() {
    within(60, || {
        let world = World::healthy(&[1.0; 2]);
        let _here = world.clock.take_part();
        let engine = world.engine("devices = [\"cuda:0\"]");
        let ticket = engine.submit(request(0)).unwrap();
        let plan = world.plan("devices = [\"cuda:1\"]");
        let error: Error = engine.apply_on(&plan, world.devices[..1].to_vec()).unwrap_err();
        assert!(error.to_string().contains("cuda:1, which is not among"), "{error}");
        assert_eq!(engine.device_map()["unet"], [gpu(0)]);
        ticket.wait().unwrap();
        engine.submit(request(1)).unwrap().wait().unwrap();
    });
}

#[test]
fn a_plan_without_the_dead_device_brings_an_engine_back() {
    within(60, || {
        let world = World::new(&[1.0; 2], Fusions::Native, |i| {
            Box::new(move |op| (i == 0 && op.number > 50).then_some(Fault::Fail))
        });
        let _here = world.clock.take_part();
        let engine = world.engine("devices = [\"cuda:0\"]");
        assert!(engine.submit(request(0)).unwrap().wait().is_err());
        engine.apply_on(&world.plan("devices = [\"cuda:1\"]"), world.devices.clone()).unwrap();
        engine.submit(request(1)).unwrap().wait().unwrap();
    });
}

/// One device computes in f32, the other in f16.
#[test]
fn a_picture_says_the_type_of_the_devices_that_drew_it_and_not_of_the_plans_first_one() {
    let two = |map: &str| {
        let devices = [(1.0, Rules::Cpu(Path::Portable.into(), Precision::F32)), (0.8, Rules::Gpu(Precision::F16))];
        let world = World::of(&devices, Fusions::Native, Waits::ToRead, |_| Box::new(|_| None));
        let requests: Vec<Request> = (0..8).map(|n| if n % 2 == 0 { long(n) } else { guided(n) }).collect();
        let plan = world.plan_for(map, &requests);
        let engine = world.load(&plan);
        let mut said = vec![String::new(); requests.len()];
        draw(&world, &engine, &requests, |index, picture| {
            let metadata = picture.metadata().unwrap();
            assert_eq!(metadata.request.prompt.as_deref(), Some(&*requests[index].prompt));
            let used = picture.devices(world.model.spec.denoiser());
            let types: BTreeSet<&str> = used.iter().map(|id| if *id == gpu(0) { "f32" } else { "f16" }).collect();
            assert_eq!(metadata.dtype, types.into_iter().collect::<Vec<_>>().join("+"), "{map}: {used:?}");
            // Whoever resumes knows beforehand which types there may be.
            let possible = plan.denoiser_dtypes(requests[index].guidance_scale > 1.0);
            assert!(possible.contains(&picture.dtypes), "{map}: {:?} not in {possible:?}", picture.dtypes);
            said[index] = metadata.dtype;
        });
        said
    };
    let kinds = |said: &[String]| said.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let pool = "[components]\ntext_encoder = \"cuda:0\"\nunet = [\"cuda:0\", \"cuda:1\"]\nvae = \"cuda:0\"\n";
    for map in ["replicas = 2", pool] {
        assert_eq!(kinds(&two(map)), ["f16", "f32"], "{map}");
    }
    let rest = "text_encoder = \"cuda:0\"\nvae = \"cuda:0\"\n";
    let alone = format!("[components]\n{rest}unet = \"cuda:1\"\n");
    assert_eq!(kinds(&two(&alone)), ["f16"]);
    let cut = format!("[components]\n{rest}unet = {{ shards = {{ \"\" = \"cuda:0\", \"conv_out\" = \"cuda:1\" }} }}\n");
    assert_eq!(kinds(&two(&cut)), ["f16+f32"]);
    // Without guidance the negative prompt's device has no part in it.
    let split = format!("[components]\n{rest}unet = {{ negative = \"cuda:1\", positive = \"cuda:0\" }}\n");
    let said = two(&split);
    assert!(said.iter().step_by(2).all(|dtype| dtype == "f32"), "{said:?}");
    assert!(said.iter().skip(1).step_by(2).all(|dtype| dtype == "f16+f32"), "{said:?}");
}
