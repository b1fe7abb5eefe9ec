//! Many requests at once: many replicas give what one gives, and what befalls one request befalls no other.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use crate::common::{self, has_facts, model, request};
use sdshard::{
    backend::{self, Precision},
    device_map::DeviceMap,
    engine::{Engine, Event, Ticket},
    error::{Error, ErrorScope},
    models::component::ComponentId,
    pipeline::{
        Latents, Metadata, Model, Picture, Progress,
        request::{Output, Request, Start},
    },
    planner::{Largest, plan::Plan},
    weights::ModelFiles,
};

const SINGLE: &str = "devices = [\"cpu\"]";
const THREE: &str = "devices = [\"cpu:0\", \"cpu:1\", \"cpu:2\"]\nreplicas = 3";
const SPLIT: &str = "devices = [\"cpu:0\", \"cpu:1\"]\n[components]\nunet = \"cpu:1\"\nvae = \"cpu:0\"";

/// Starting noise that is no number: the UNet's answer is none either.
fn poisoned(n: u64) -> Request {
    Request { start: Start::Latents(vec![f32::NAN; 4 * 8 * 8].into()), ..request(n) }
}

/// An engine whose plan is made for requests like [`request`], with any number of steps.
fn engine(model: &Arc<Model>, map: &str) -> Engine {
    let largest = Largest::of([&Request { steps: 50, ..request(0) }], &model.spec).unwrap().unwrap();
    let map = DeviceMap::parse(map, "map.toml").unwrap();
    let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap();
    Engine::load(model.clone(), &plan).unwrap()
}

/// What a picture is, times apart.
fn look(picture: &Picture) -> (Vec<u32>, Vec<u8>) {
    let bits = picture.latents.values.iter().map(|value| value.to_bits()).collect();
    (bits, picture.image.as_ref().map_or(Vec::new(), |image| image.rgb.clone()))
}

/// Fails rather than waits for ever.
fn within<T: Send + 'static>(seconds: u64, what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(f()));
    receiver.recv_timeout(Duration::from_secs(seconds)).unwrap_or_else(|_| panic!("{what} takes more than {seconds} s"))
}

fn failed(ticket: Ticket) -> Error {
    ticket.wait().expect_err("this request had to fail")
}

#[test]
fn three_replicas_draw_what_one_draws() {
    let model = model();
    let draw = |map: &str, most: usize| -> Vec<_> {
        let engine = engine(&model, map);
        let (mut pictures, mut replicas) = (vec![None; 12], BTreeSet::new());
        engine
            .generate((0..12).map(request), |index, event| {
                match event {
                    Event::Taken { replica, attempt, .. } => {
                        assert_eq!(attempt, 1);
                        replicas.insert(replica);
                    }
                    Event::Retry { error, .. } => panic!("{error}"),
                    Event::Done(result) => assert!(pictures[index].replace(look(&result?)).is_none(), "done twice"),
                    _ => {}
                }
                Ok(())
            })
            .unwrap();
        assert!(replicas.iter().all(|replica| *replica < most), "{map}: {replicas:?}");
        pictures.into_iter().map(|picture| picture.expect("every request is done")).collect()
    };
    let want = draw(SINGLE, 1);
    assert_eq!(want.iter().collect::<BTreeSet<_>>().len(), 12, "every seed is another picture");
    assert!(draw(THREE, 3) == want);
    assert!(draw(SPLIT, 1) == want);
}

/// What happened, without its time.
fn name(event: &Event) -> String {
    // In the order of the model's components.
    let name = |component: ComponentId| ["text_encoder", "unet", "vae"][component.index()];
    match event {
        Event::Queued { .. } => "queued".into(),
        Event::Taken { replica, attempt, .. } => format!("taken by {replica}, try {attempt}"),
        Event::Progress(Progress::Started { component, devices, calls, .. }) => {
            format!("{} begins on {}, {calls} calls", name(*component), devices[0])
        }
        Event::Progress(Progress::Step { done, of, .. }) => format!("{done} of {of}"),
        Event::Progress(Progress::Finished(span)) => format!("{} ends on {}", name(span.component), span.devices[0]),
        Event::Retry { error, .. } => format!("again: {error}"),
        Event::Done(Ok(_)) => "done".into(),
        Event::Done(Err(error)) => error.to_string(),
        other => panic!("a new kind of event: {other:?}"),
    }
}

#[test]
fn events_come_in_the_order_of_the_work() {
    let engine = engine(&model(), SPLIT);
    let ddim = |n| Request { scheduler: Some("ddim".parse().unwrap()), ..request(n) };
    // The negative prompt is the same each time, and remembered.
    for (request, texts, calls, image) in [
        (ddim(1), 2, 2, true),
        (Request { steps: 1, ..ddim(2) }, 1, 1, true),
        (Request { output: Output::Latents, ..ddim(3) }, 1, 2, false),
    ] {
        let ticket = engine.submit(request).unwrap();
        let (mut seen, mut times) = (Vec::new(), Vec::new());
        while let Some(event) = ticket.next() {
            match &event {
                Event::Queued { at }
                | Event::Taken { at, .. }
                | Event::Progress(Progress::Started { at, .. } | Progress::Step { at, .. }) => times.push(*at),
                Event::Progress(Progress::Finished(span)) => times.push(span.started + span.elapsed),
                Event::Done(result) => assert_eq!(result.as_ref().unwrap().image.is_some(), image),
                _ => {}
            }
            seen.push(name(&event));
        }
        let mut want = vec!["queued".to_string(), "taken by 0, try 1".to_string()];
        let text = ["text_encoder begins on cpu:0, 0 calls", "text_encoder ends on cpu:0"];
        want.extend(text.repeat(texts).iter().map(ToString::to_string));
        want.push(format!("unet begins on cpu:1, {calls} calls"));
        want.extend((0..=calls).map(|done| format!("{done} of {calls}")));
        want.push("unet ends on cpu:1".into());
        if image {
            want.extend(["vae begins on cpu:0, 0 calls".into(), "vae ends on cpu:0".into()]);
        }
        want.push("done".into());
        assert_eq!(seen, want);
        assert!(times.is_sorted());
    }
}

/// The latents of every step: how many steps are done, and the bits of the values if the event has them.
fn step_latents(ticket: &Ticket) -> Vec<(usize, Option<Vec<u32>>)> {
    let mut steps = Vec::new();
    while let Some(event) = ticket.next() {
        match event {
            Event::Progress(Progress::Step { done, latents, .. }) => {
                let bits = |values: Arc<[f32]>| values.iter().map(|value| value.to_bits()).collect();
                steps.push((done, latents.map(bits)));
            }
            Event::Done(result) => {
                let Latents { channels, height, width, values } = result.unwrap().latents;
                // From [channels, height, width] to [height, width, channels].
                let places = (0..height * width).flat_map(|place| (0..channels).map(move |c| (c, place)));
                let last = places.map(|(c, place)| values[c * height * width + place].to_bits()).collect();
                steps.push((usize::MAX, Some(last)));
            }
            _ => {}
        }
    }
    steps
}

#[test]
fn steps_carry_latents_if_and_only_if_the_request_asks_for_them() {
    let model = model();
    let split_guidance =
        "devices = [\"cpu:0\", \"cpu:1\"]\n[components]\nunet = { negative = \"cpu:0\", positive = \"cpu:1\" }";
    let cut = "devices = [\"cpu:0\", \"cpu:1\"]\n[components]\n\
               unet = { shards = { \"\" = \"cpu:0\", \"up_blocks\" = \"cpu:1\", \"conv_out\" = \"cpu:1\" } }";
    let batch = format!("{SINGLE}\nbatch = 4");
    let mut want: Option<Vec<_>> = None;
    for map in [SINGLE, THREE, SPLIT, split_guidance, cut, &batch] {
        let engine = engine(&model, map);
        // Those that ask and those that do not are in one batch.
        let asking = |n| Request { steps: 3, step_latents: n % 2 == 0, ..request(n) };
        let tickets: Vec<_> = (0..4).map(|n| engine.submit(asking(n)).unwrap()).collect();
        let mut with = Vec::new();
        for (n, ticket) in tickets.iter().enumerate() {
            let steps = step_latents(ticket);
            let (end, steps) = steps.split_last().unwrap();
            let (beginning, steps) = steps.split_first().unwrap();
            assert_eq!(*beginning, (0, None), "{map}: before the first step there are none");
            if n % 2 == 0 {
                assert!(steps.iter().all(|(_, values)| values.is_some()), "{map}");
                assert!(steps.last().unwrap().1 == end.1, "{map}: the last are the picture's");
                with.push(steps.to_vec());
            } else {
                assert!(steps.iter().all(|(_, values)| values.is_none()), "{map}");
            }
        }
        assert!(with[0] != with[1] && with[0][0].1 != with[0][1].1);
        assert!(*want.get_or_insert_with(|| with.clone()) == with, "{map}: other latents");
    }
}

#[test]
fn a_request_larger_than_planned_is_rejected_when_it_is_submitted() {
    let model = model();
    let strip = |n| Request { width: 96, height: 32, ..request(n) };
    let largest = Largest::of([&request(0), &strip(0)], &model.spec).unwrap().unwrap();
    let plain = Largest::of([&Request { guidance_scale: 1.0, ..request(0) }], &model.spec).unwrap().unwrap();
    let ddim = "ddim".parse().unwrap();
    let forgetful = Largest::of([&Request { scheduler: Some(ddim), ..request(0) }], &model.spec).unwrap().unwrap();
    for (largest, request, says) in [
        (&largest, request(0), None),
        (&largest, Request { width: 32, height: 32, ..request(0) }, None),
        (&largest, Request { width: 96, height: 24, ..request(0) }, None),
        (&largest, Request { steps: 1, ..request(0) }, None),
        (&largest, Request { steps: 50, ..request(0) }, Some("scheduler remembers")),
        // More than the square is high, less pixels than it has.
        (&largest, Request { width: 32, height: 96, ..request(0) }, Some("picture of 32x96")),
        (&largest, Request { width: 96, height: 40, ..request(0) }, Some("64x64, 96x32 at most")),
        (&largest, Request { width: 128, height: 128, ..request(0) }, Some("picture of 128x128")),
        (&plain, Request { guidance_scale: 1.0, ..request(0) }, None),
        (&plain, request(0), Some("guidance")),
        (&forgetful, Request { scheduler: Some(ddim), ..request(0) }, None),
        (&forgetful, request(0), Some("scheduler remembers")),
    ] {
        let plan =
            Plan::resolve(&DeviceMap::parse(SINGLE, "map.toml").unwrap(), &model.spec, largest, &backend::visible());
        let engine = Engine::load(model.clone(), &plan.unwrap()).unwrap();
        match (engine.submit(request.clone()), says) {
            (Ok(ticket), None) => drop(ticket.wait().unwrap()),
            (Err(error), Some(says)) => {
                assert_eq!(*error.scope(), ErrorScope::Input);
                has_facts(&request, &error.to_string(), &[says]);
                // In a list, only this request fails.
                let mut ends = vec![None; 2];
                let list =
                    [request.clone(), Request { guidance_scale: 1.0, scheduler: Some(ddim), ..common::request(1) }];
                engine
                    .generate(list, |index, event| {
                        if let Event::Done(result) = event {
                            ends[index] = Some(result.is_ok());
                        }
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(ends, [Some(false), Some(true)]);
            }
            (Ok(_), Some(says)) => panic!("admitted, although there is {says}: {request:?}"),
            (Err(error), None) => panic!("{error}"),
        }
    }
}

#[test]
fn a_ticket_can_be_asked_waited_for_a_while_and_cancelled_beside_the_wait() {
    let engine = engine(&model(), SINGLE);
    let ticket = engine.submit(Request { steps: 900, ..request(0) }).unwrap();
    let canceller = ticket.canceller();
    // The first event is there as soon as the request is queued.
    assert!(matches!(ticket.try_next(), Ok(Event::Queued { .. })));
    while !matches!(ticket.next_timeout(Duration::from_secs(60)), Ok(Event::Progress(Progress::Step { done: 1, .. }))) {
    }
    let Err(ticket) = ticket.wait_timeout(Duration::from_millis(1)) else { panic!("900 steps in a millisecond") };
    let waits = std::thread::spawn(move || ticket.wait());
    canceller.cancel();
    assert_eq!(*waits.join().unwrap().unwrap_err().scope(), ErrorScope::Interrupted);

    let ticket = engine.submit(request(1)).unwrap();
    let Ok(result) = ticket.wait_timeout(Duration::from_secs(600)) else { panic!("two steps in ten minutes") };
    result.unwrap();

    let ticket = engine.submit(request(2)).unwrap();
    while !matches!(ticket.next(), Some(Event::Done(_))) {}
    assert!(matches!(ticket.try_next(), Err(RecvTimeoutError::Disconnected)));
}

#[test]
fn a_folder_is_opened_planned_and_loaded_in_one_call() {
    let engine = Engine::open(common::tiny()).unwrap();
    let request = Request { steps: 2, ..Request::new("picture", &engine.model().spec) };
    assert!(engine.submit(request).unwrap().wait().unwrap().image.is_some());
    let error = Engine::open("no-such-folder").err().expect("there is no such folder");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn a_cancelled_request_ends_interrupted_and_others_do_not() {
    let engine = engine(&model(), SINGLE);
    let first = engine.submit(Request { steps: 400, ..request(0) }).unwrap();
    let second = engine.submit(request(1)).unwrap();
    let third = engine.submit(request(2)).unwrap();
    // The first while it runs, the third before anybody has taken it.
    third.cancel();
    while !matches!(first.next(), Some(Event::Progress(Progress::Step { done: 1, .. }))) {}
    first.cancel();
    assert_eq!(failed(first).scope(), &ErrorScope::Interrupted);
    second.wait().unwrap();
    let error = failed(third);
    assert_eq!((error.scope(), error.exit_code()), (&ErrorScope::Interrupted, 130));
    engine.submit(request(3)).unwrap().wait().unwrap();
}

#[test]
fn a_request_that_fails_does_not_affect_others() {
    let model = model();
    let want: Vec<_> = {
        let engine = engine(&model, SINGLE);
        (0..4).map(|n| look(&engine.submit(request(n)).unwrap().wait().unwrap())).collect()
    };
    for map in [SINGLE, SPLIT, THREE] {
        let engine = engine(&model, map);
        // Twice: a failure leaves nothing in the arenas.
        for _ in 0..2 {
            let mut results: Vec<_> = (0..7).map(|_| None).collect();
            let large = Request { width: 256, height: 256, ..request(9) };
            let odd = Request { width: 60, ..request(9) };
            let mixed = [request(0), poisoned(9), request(1), large, request(2), odd, request(3)];
            engine
                .generate(mixed, |index, event| {
                    if let Event::Done(result) = event {
                        results[index] = Some(result);
                    }
                    Ok(())
                })
                .unwrap();
            let mut results: Vec<_> = results.into_iter().map(|result| result.expect("every request ends")).collect();
            for (index, scope, says) in [
                (5, ErrorScope::Input, "multiple of 8"),
                (3, ErrorScope::Input, "picture of 256x256"),
                (1, ErrorScope::Request, "the unet gave 256 values of 256"),
            ] {
                let error = results.remove(index).expect_err("a bad request");
                assert_eq!(error.scope(), &scope, "{error}");
                has_facts(map, &error.to_string(), &[says]);
            }
            let got: Vec<_> = results.into_iter().map(|result| look(&result.unwrap())).collect();
            assert!(got == want, "{map}: other pictures beside requests that fail");
        }
    }
}

#[test]
fn generate_stops_when_its_callback_fails() {
    let engine = engine(&model(), THREE);
    let (mut done, mut begun) = (0, 0);
    let error = engine
        .generate((0..1000).map(request), |_, event| match event {
            Event::Taken { .. } => {
                begun += 1;
                Ok(())
            }
            Event::Done(_) => {
                done += 1;
                Err(Error::process("the disk is full"))
            }
            _ => Ok(()),
        })
        .unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "the first error is the one that is told: {error}");
    assert!(done >= 1 && begun < 20, "{done} done, {begun} begun");
    engine.submit(request(0)).unwrap().wait().unwrap();
}

#[test]
fn an_engine_can_be_dropped_while_requests_wait() {
    let model = model();
    for map in [SINGLE, THREE] {
        let engine = engine(&model, map);
        let tickets: Vec<_> = (0..2).map(|n| engine.submit(request(n)).unwrap()).collect();
        drop(engine.submit(request(2)).unwrap()); // nobody waits for this one
        let ends = within(30, "dropping an engine", move || {
            drop(engine);
            tickets.into_iter().map(|ticket| ticket.wait().is_ok()).collect::<Vec<_>>()
        });
        assert_eq!(ends, [true; 2], "what was accepted is done");
    }
}

#[test]
fn two_engines_do_not_influence_each_other() {
    let model = model();
    let want = look(&engine(&model, SINGLE).submit(request(5)).unwrap().wait().unwrap());
    let (one, two) = (engine(&model, SPLIT), engine(&model, THREE));
    let tickets: Vec<_> =
        (0..3).flat_map(|_| [one.submit(request(5)).unwrap(), two.submit(request(5)).unwrap()]).collect();
    for ticket in tickets {
        assert!(look(&ticket.wait().unwrap()) == want);
    }
}

#[test]
fn a_plan_holds_every_request_of_its_list() {
    // The same area is not the same memory: a long strip halves in one direction only.
    let model = model();
    let of = |width, height, guidance_scale, scheduler: &str, steps| Request {
        width,
        height,
        guidance_scale,
        steps,
        scheduler: Some(scheduler.parse().unwrap()),
        ..request(1)
    };
    for list in [
        [of(64, 64, 1.0, "ddim", 2), of(8, 512, 1.0, "ddim", 2)],
        [of(8, 512, 1.0, "ddim", 2), of(64, 64, 1.0, "ddim", 2)],
        [of(72, 64, 1.0, "ddim", 2), of(64, 72, 1.0, "ddim", 2)],
        [of(128, 64, 1.0, "ddim", 2), of(64, 64, 7.5, "pndm", 9)],
        [of(64, 64, 1.0, "pndm", 9), of(64, 64, 1.0, "pndm", 1)],
        [of(64, 64, 1.0, "dpm++2m", 1), of(64, 64, 1.0, "euler", 9)],
        [of(120, 120, 7.5, "euler", 1), of(8, 1800, 7.5, "euler", 1)],
    ] {
        let largest = Largest::of(&list, &model.spec).unwrap().unwrap();
        let map = DeviceMap::parse(SPLIT, "map.toml").unwrap();
        let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap();
        let engine = Engine::load(model.clone(), &plan).unwrap();
        for request in list {
            let what = format!("{}x{} of {largest:?}", request.width, request.height);
            if let Err(error) = engine.submit(request).unwrap().wait() {
                panic!("{what}: {error}");
            }
        }
    }
}

#[test]
fn another_plan_draws_the_same_and_reads_no_weight_again() {
    let folder = common::copy_of_tiny();
    let root = folder.path().join("model");
    let model = Arc::new(Model::open(ModelFiles::folder(&root).unwrap(), None).unwrap());
    let engine = engine(&model, SINGLE);
    let want: Vec<_> = (0..6).map(|n| look(&engine.submit(request(n)).unwrap().wait().unwrap())).collect();
    for component in ["text_encoder", "unet", "vae"] {
        std::fs::remove_dir_all(root.join(component)).unwrap();
    }
    let plan = |map: &str| {
        let largest = Largest::of([&request(0)], &model.spec).unwrap().unwrap();
        Plan::resolve(&DeviceMap::parse(map, "map.toml").unwrap(), &model.spec, &largest, &backend::visible()).unwrap()
    };
    for map in [THREE, SPLIT, SINGLE] {
        // Some are under way while the plan changes, and some wait.
        let tickets: Vec<_> = (0..3).map(|n| engine.submit(request(n)).unwrap()).collect();
        let plan = plan(map);
        engine.apply(&plan).unwrap();
        assert_eq!(engine.device_map(), plan.device_map());
        let tickets: Vec<_> = tickets.into_iter().chain((3..6).map(|n| engine.submit(request(n)).unwrap())).collect();
        let got: Vec<_> = tickets.into_iter().map(|ticket| look(&ticket.wait().unwrap())).collect();
        assert!(got == want, "{map}: other pictures");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_replica_computes_on_the_cores_that_the_map_names() {
    let core = *backend::visible()[0].allowed_cores.last().unwrap();
    let map = format!("devices = [\"cpu:0\"]\nin_flight = 1\n[device.\"cpu:0\"]\ncores = \"{core}\"");
    let engine = engine(&model(), &map);
    engine.submit(request(0)).unwrap().wait().unwrap();
    // Its thread stays bound after its first op. Other tests may have replicas in this process.
    let mut bound = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let read = |name: &str| std::fs::read_to_string(task.as_ref().unwrap().path().join(name)).unwrap_or_default();
        if read("comm").starts_with("replica 0") {
            let status = read("status");
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
            bound.push(list.trim().to_string());
        }
    }
    assert!(bound.contains(&core.to_string()), "core {core} is wanted, replicas are on {bound:?}");
}

#[test]
fn a_batch_fills_from_the_list_and_draws_what_each_draws_alone() {
    let model = model();
    let want: Vec<_> = {
        let engine = engine(&model, SINGLE);
        (0..8).map(|n| look(&engine.submit(request(n)).unwrap().wait().unwrap())).collect()
    };
    let engine = engine(&model, &format!("{SINGLE}\nbatch = 4"));
    let (mut got, mut loops) = (vec![None; 8], BTreeSet::new());
    let denoiser = model.spec.denoiser();
    engine
        .generate((0..8).map(request), |index, event| {
            if let Event::Done(picture) = event {
                let picture = picture?;
                loops.extend(picture.spans.iter().filter(|s| s.component == denoiser).map(|span| span.started));
                got[index] = Some(look(&picture));
            }
            Ok(())
        })
        .unwrap();
    assert!(got.into_iter().map(Option::unwrap).eq(want), "other pictures in batches");
    // The first one does not wait for others; while it is drawn, they gather.
    assert!(loops.len() <= 5, "eight requests in batches of up to four went through {} loops", loops.len());
}

#[test]
fn a_picture_saves_itself_with_what_it_was_made_from() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let engine = engine(&model, SINGLE);
    let (png, latents) = (folder.path().join("a.PNG"), folder.path().join("a.safetensors"));
    let picture = engine.submit(request(3)).unwrap().wait().unwrap();
    picture.save(&png).unwrap();
    picture.save(&latents).unwrap();
    let metadata = Metadata::new(&request(3), &model, &model.hashes().unwrap(), &[Precision::F32]).unwrap();
    for path in [&png, &latents] {
        assert_eq!(Metadata::read(path).unwrap().as_ref(), Some(&metadata));
        assert!(metadata.is_whole(path).unwrap());
    }
    assert_eq!(common::pixels(&std::fs::read(&png).unwrap()).2, picture.image.as_ref().unwrap().rgb);
    assert_eq!(Latents::read(&latents).unwrap(), picture.latents);

    // The program writes the same bytes.
    let request = request(3);
    let arguments = [&request.prompt, "--seed", "3", "--steps", "2", "--negative-prompt", "blur"];
    let mut program = common::sdshard(&arguments);
    program.args(["--guidance-scale", "7.5", "--width", "64", "--height", "64", "--quiet", "--output-dir"]);
    let path = common::succeeds(program.arg(folder.path()).arg("--model").arg(common::tiny()));
    assert!(std::fs::read(path.trim()).unwrap() == std::fs::read(&png).unwrap());

    for (name, says) in
        [("a.gif", ".webp or .safetensors"), ("a", ".webp or .safetensors"), ("none/a.png", "none/a.png")]
    {
        let path = folder.path().join(name);
        let error = picture.save(&path).unwrap_err();
        assert!(error.to_string().contains(says) && !path.exists(), "{error}");
    }
    let alone = engine.submit(Request { output: Output::Latents, ..request.clone() }).unwrap().wait().unwrap();
    alone.save(&latents).unwrap();
    let error = alone.save(&png).unwrap_err();
    assert!(error.to_string().contains("latents alone") && error.exit_code() == 2, "{error}");
}
