//! A network cut over devices at any border gives the bits of the whole one, and each device's arena holds what a run
//! without data says.

use sdshard::{
    backend::{self, Device, DeviceId, DeviceKind, Precision, cpu, rules::Rules},
    models::{
        component::{ComponentId, Stage},
        route::{ForwardPass, NoHooks, PersistentArenas, Route},
        single_file::Overrides,
    },
    pipeline::{
        Image, Instance, Model, Placed, Slot, branches,
        controls::{Controller, Controls},
        denoise::{self, DenoiseInput, PictureStart},
        model::{Source, load},
        placement::Reside,
        request::{Control, Start},
        stages,
        start::Beginning,
    },
    scheduler::schedule,
    tensor::Shape,
    weights::{Ahead, ModelFiles, Weights},
};

use crate::common::{controlnet, formula, model};

const ARENA: usize = 64 << 20;
const HEIGHT: usize = 9;
const WIDTH: usize = 6;

/// Runs a test with the small models of Stable Diffusion 1 and of SDXL.
fn with_each_model(test: impl Fn(&Model)) {
    test(&model());
    let folder = formula::folder("tiny-sdxl");
    test(&Model::open(ModelFiles::folder(folder.path()).unwrap(), None).unwrap());
}

/// `cpu:0`, `cpu:1` and `cpu:2` of this machine.
fn devices() -> Vec<Device> {
    let ids: Vec<DeviceId> = (0..3).map(|i| DeviceId::new(DeviceKind::Cpu, i)).collect();
    let devices = backend::open(&ids).unwrap();
    devices.iter().for_each(|device| device.reserve(ARENA).unwrap());
    devices
}

/// The same in name only.
fn dry() -> Vec<Device> {
    let rules = Rules::Cpu(cpu::path().unwrap().into(), Precision::F32);
    (0..3).map(|i| Device::dry(DeviceId::new(DeviceKind::Cpu, i), rules, cpu::info().rates).0).collect()
}

/// Which of three devices runs each of `count` sections: every place to cut once, then some patterns.
fn patterns(count: usize) -> Vec<Vec<usize>> {
    let once = (0..=count).map(|cut| (0..count).map(|i| usize::from(i >= cut)).collect());
    let more = [|i: usize| i % 2, |i| i % 3, |i| (i / 2) % 3, |i| (i * 7 + 1) % 3];
    once.chain(more.map(|f| (0..count).map(f).collect())).collect()
}

fn in_stage(model: &Model, stage: Stage) -> ComponentId {
    model.spec.in_stage(stage).next().unwrap()
}

fn sections(model: &Model, component: ComponentId) -> usize {
    model.spec.components[component].network.sections().len()
}

fn route(devices: &[Device], pattern: &[usize]) -> Route {
    route_in(Precision::F32, devices, pattern)
}

fn route_in(precision: Precision, devices: &[Device], pattern: &[usize]) -> Route {
    Route::new(pattern.iter().map(|i| (devices[*i].clone(), precision)).collect())
}

fn peaks(devices: &[Device]) -> Vec<usize> {
    devices.iter().map(Device::peak_bytes).collect()
}

/// Runs `work` on real devices and on devices without data, for each pattern; all results are equal to the bit, all
/// arenas equal to the byte. Gives the result.
fn every_cut(component: ComponentId, model: &Model, work: impl Fn(&[Device], &[usize], From) -> Vec<f32>) -> Vec<f32> {
    let count = sections(model, component);
    let patterns = patterns(count);
    let whole = work(&devices(), &patterns[0], From::Files(Reside::Device));
    assert!(whole.iter().all(|x| x.is_finite()) && whole.iter().any(|x| *x != 0.0));
    let some = |pattern: &&Vec<usize>| pattern.iter().sum::<usize>() % 5 == 0 || pattern.contains(&2);
    let elsewhere = [Reside::Host, Reside::Disk];
    let elsewhere = elsewhere.into_iter().flat_map(|rest| patterns.iter().filter(some).map(move |p| (p, rest)));
    for (pattern, reside) in patterns.iter().map(|pattern| (pattern, Reside::Device)).chain(elsewhere) {
        has_bits_and_bytes(&model.spec.components[component].name, &whole, pattern, reside, &work);
    }
    whole
}

/// Runs `work` on real devices and on devices without data: it gives `whole`, in the bytes that were planned.
fn has_bits_and_bytes(
    name: &str,
    whole: &[f32],
    pattern: &[usize],
    reside: Reside,
    work: impl Fn(&[Device], &[usize], From) -> Vec<f32>,
) {
    let (real, dry) = (devices(), dry());
    let what = format!("{name}, {reside:?}, {pattern:?}");
    assert!(work(&real, pattern, From::Files(reside)) == whole, "{what}: other bits");
    work(&dry, pattern, From::Shapes(reside));
    assert_eq!(peaks(&real), peaks(&dry), "{what}: arenas");
    assert!(real.iter().all(|device| device.live() == 0), "{what}: tensors are left");
    let weights = |devices: &[Device]| devices.iter().map(Device::weight_peak_bytes).collect::<Vec<_>>();
    match reside {
        Reside::Device => assert_eq!(weights(&real), weights(&dry), "{what}: weights"),
        // What comes ahead may come late, but no more than two neighbours are ever there.
        _ => assert!(weights(&real).iter().zip(weights(&dry)).all(|(real, dry)| *real <= dry), "{what}: weights"),
    }
}

/// Where weights come from, and where they rest.
#[derive(Clone, Copy)]
enum From {
    Files(Reside),
    Shapes(Reside),
}

impl From {
    fn source(self, route: Route) -> Source {
        let (reside, ahead) = match self {
            From::Files(reside) => (reside, Ahead::Thread),
            From::Shapes(reside) => (reside, Ahead::Caller),
        };
        Source { reside, ahead, ..Source::resident(route) }
    }

    fn weights(self, model: &Model, component: ComponentId) -> Weights {
        let folder = &model.spec.components[component].folder;
        match self {
            From::Files(_) => Weights::open(&model.files, folder, None).unwrap(),
            From::Shapes(_) => Weights::shapes_only(folder),
        }
    }

    fn load(self, model: &Model, component: ComponentId, route: Route) -> Placed {
        load(&model.spec.components[component], self.weights(model, component), &self.source(route)).unwrap()
    }
}

#[test]
fn a_text_encoder_can_be_cut_anywhere() {
    with_each_model(|model| {
        for (component, tokenizer) in model.spec.in_stage(Stage::Encode).zip(&model.tokenizers) {
            let ids = tokenizer.encode("a fox in the snow").unwrap().ids;
            every_cut(component, model, |devices, pattern, from| {
                let encoder = from.load(model, component, route(devices, pattern));
                let encoded = stages::encode(&encoder, ids.clone(), 0, &NoHooks).unwrap();
                [encoded.features, encoded.pooled].concat()
            });
        }
    });
}

#[test]
fn a_vae_can_be_cut_anywhere() {
    let model = model();
    let shape = Shape::from([1, HEIGHT, WIDTH, 4]);
    let latents: Vec<f32> = (0..shape.elements()).map(|i| (i as f32 * 0.7).sin()).collect();
    let component = in_stage(&model, Stage::Decode);
    every_cut(component, &model, |devices, pattern, from| {
        let vae = from.load(&model, component, route(devices, pattern));
        stages::decode(&vae, None, shape, &latents, &NoHooks).unwrap()
    });
}

/// Three guided steps with the UNet of `place` for pictures with these guidance scales, in the request scratch
/// `scratch` if there is any. Also gives what is kept on each device.
fn denoise(
    model: &Model,
    place: &Instance,
    devices: &[Device],
    scratch: &[Device],
    scales: &[f32],
) -> (Vec<Vec<f32>>, Vec<usize>) {
    denoise_with(None, model, place, devices, scratch, scales)
}

/// The same with a ControlNet in all steps but the first.
fn denoise_with(
    controlnet: Option<&Placed>,
    model: &Model,
    place: &Instance,
    devices: &[Device],
    scratch: &[Device],
    scales: &[f32],
) -> (Vec<Vec<f32>>, Vec<usize>) {
    let spec = &model.spec;
    let keeps = PersistentArenas::new(devices.iter().map(|device| device.persistent_arena(ARENA).unwrap()).collect());
    let text = |phase: f32| spec.sample_condition(8 * HEIGHT, 8 * WIDTH, 1, |i| (i as f32 * 0.3 + phase).sin());
    let schedule = schedule(&spec.scheduler_for(None).unwrap(), 3).unwrap();
    let shape = Shape::from([1, HEIGHT, WIDTH, spec.latents.channels]);
    let picture = |&guidance_scale: &f32| {
        let beginning = Beginning::sample(shape, false);
        PictureStart { guidance_scale, guidance_rescale: 0.0, beginning, controls: Vec::new() }
    };
    let request = DenoiseInput { schedule: &schedule, pictures: scales.iter().map(picture).collect(), shape };
    let slot = Slot::new(place, &keeps, scratch);
    let (negative, positive) = (vec![text(0.0); scales.len()], scales.iter().map(|scale| text(*scale)));
    let texts: Vec<_> = negative.into_iter().chain(positive).collect();
    let image = Image { width: 1, height: 1, rgb: vec![0; 3] };
    let control = Control { scale: 0.7, start: 0.3, ..Control::new(image.into(), &Start::Noise, spec) };
    let pixels: Vec<f32> = (0..3 * 64 * HEIGHT * WIDTH).map(|i| (i as f32 * 0.9).sin().abs()).collect();
    let controller = |placed| Controller {
        placed,
        keeps: &keeps,
        rows: texts.clone(),
        pictures: vec![pixels.clone(); scales.len()],
        size: [8 * HEIGHT, 8 * WIDTH],
        control: &control,
    };
    let controls = Controls::Networks(controlnet.map(controller).into_iter().collect());
    let branches = branches(place, &slot, texts.clone(), true, &NoHooks);
    let latents = denoise::denoise(&branches, &controls, request, |_, _| Ok(())).unwrap();
    (latents.into_iter().map(Result::unwrap).collect(), keeps.iter().map(|keep| keep.peak_bytes()).collect())
}

fn unet(model: &Model, route: Route, from: From) -> Placed {
    from.load(model, model.spec.denoiser(), route)
}

#[test]
fn a_unet_can_be_cut_anywhere() {
    with_each_model(|model| {
        every_cut(model.spec.denoiser(), model, |devices, pattern, from| {
            let place = Instance { negative: None, positive: unet(model, route(devices, pattern), from) };
            denoise(model, &place, devices, &[], &[4.0]).0.remove(0)
        });
    });
}

#[test]
fn a_unet_with_narrow_products_has_the_same_bits_and_the_planned_bytes_wherever_it_is() {
    with_each_model(|model| {
        let count = sections(model, model.spec.denoiser());
        let (on_one, cut) = (vec![0; count], (0..count).map(|i| i * 2 / count).collect::<Vec<_>>());
        let mut drawn: Vec<Vec<f32>> = Vec::new();
        for precision in Precision::ALL {
            let work = |devices: &[Device], pattern: &[usize], from: From| {
                let positive = unet(model, route_in(precision, devices, pattern), from);
                denoise(model, &Instance { negative: None, positive }, devices, &[], &[4.0]).0.remove(0)
            };
            let whole = work(&devices(), &on_one, From::Files(Reside::Device));
            assert!(whole.iter().all(|x| x.is_finite()) && !drawn.contains(&whole), "{precision}");
            for reside in [Reside::Device, Reside::Host, Reside::Disk] {
                for pattern in [&on_one, &cut] {
                    has_bits_and_bytes(precision.name(), &whole, pattern, reside, work);
                }
            }
            drawn.push(whole);
        }
    });
}

#[test]
fn a_controlnet_can_be_cut_anywhere_and_its_residuals_go_where_the_unet_takes_them() {
    let folder = controlnet::folder_of("sd");
    let controlnets = [folder.path().to_owned()];
    let overrides = Overrides { controlnets: &controlnets, ..Overrides::default() };
    let model = Model::open(overrides.apply(model().files.clone()).unwrap(), None).unwrap();
    let (component, count) = (model.spec.component("controlnet").unwrap(), sections(&model, model.spec.denoiser()));
    let whole = vec![0; count];
    let cut: Vec<usize> = (0..count).map(|i| i * 3 / count).collect();
    let run = |negative: Option<&[usize]>, positive: &[usize], control: &[usize], devices: &[Device], from: From| {
        let unet = |pattern: &[usize]| unet(&model, route(devices, pattern), from);
        let place = Instance { negative: negative.map(unet), positive: unet(positive) };
        let controlnet = from.load(&model, component, route(devices, control));
        denoise_with(Some(&controlnet), &model, &place, devices, &[], &[4.0]).0.remove(0)
    };
    let drawn = every_cut(component, &model, |devices, pattern, from| run(None, &cut, pattern, devices, from));
    let on_first = vec![0; sections(&model, component)];
    for (negative, positive) in [(None, &whole), (Some(&*cut), &whole), (Some(&*whole), &cut)] {
        let latents = run(negative, positive, &on_first, &devices(), From::Files(Reside::Device));
        assert!(latents == drawn, "other bits with a UNet on {negative:?} and {positive:?}");
    }
    let real = devices();
    let place = Instance { negative: None, positive: unet(&model, route(&real, &whole), From::Files(Reside::Device)) };
    assert!(denoise(&model, &place, &real, &[], &[4.0]).0[0] != drawn, "the ControlNet makes a difference");
}

#[test]
fn guidance_can_be_split_over_any_two_routes() {
    with_each_model(|model| {
        let count = sections(model, model.spec.denoiser());
        let place = |devices: &[Device], negative: &[usize], positive: &[usize], from| Instance {
            negative: Some(unet(model, route(devices, negative), from)),
            positive: unet(model, route(devices, positive), from),
        };
        let on = |device: usize| vec![device; count];
        let real = devices();
        let whole =
            Instance { negative: None, positive: unet(model, route(&real, &on(0)), From::Files(Reside::Device)) };
        let whole = denoise(model, &whole, &real, &[], &[4.0]).0;
        let cut: Vec<usize> = (0..count).map(|i| 1 + i % 2).collect();
        for (negative, positive) in [(on(0), on(1)), (on(1), on(0)), (on(0), on(0)), (on(0), cut.clone()), (cut, on(1))]
        {
            let (real, dry) = (devices(), dry());
            let (latents, kept) =
                denoise(model, &place(&real, &negative, &positive, From::Files(Reside::Device)), &real, &[], &[4.0]);
            assert!(latents == whole, "other bits with {negative:?} and {positive:?}");
            let (_, planned) =
                denoise(model, &place(&dry, &negative, &positive, From::Shapes(Reside::Device)), &dry, &[], &[4.0]);
            assert_eq!((kept, peaks(&real)), (planned, peaks(&dry)), "{negative:?} and {positive:?}");
        }
    });
}

#[test]
fn requests_of_a_batch_give_the_latents_that_each_gives_alone() {
    with_each_model(|model| {
        let count = sections(model, model.spec.denoiser());
        let scales = [4.0, 1.5, 9.0];
        let (whole, cut): (Vec<usize>, Vec<usize>) = (vec![0; count], (0..count).map(|i| i * 3 / count).collect());
        let real = devices();
        let place =
            Instance { negative: None, positive: unet(model, route(&real, &whole), From::Files(Reside::Device)) };
        let alone: Vec<_> = scales.iter().map(|&s| denoise(model, &place, &real, &[], &[s]).0.remove(0)).collect();
        assert!(alone[0] != alone[1] && alone[1] != alone[2]);
        for (pattern, negative) in [(&whole, None), (&cut, None), (&whole, Some(1)), (&cut, Some(2))] {
            let run = |devices: &[Device], from| {
                let unet = |pattern: &[usize]| unet(model, route(devices, pattern), from);
                let negative = negative.map(|device| unet(&vec![device; count]));
                denoise(model, &Instance { negative, positive: unet(pattern) }, devices, &[], &scales)
            };
            let (real, dry) = (devices(), dry());
            let (together, kept) = run(&real, From::Files(Reside::Device));
            assert!(together == alone, "other bits with {pattern:?} and {negative:?}");
            let (_, planned) = run(&dry, From::Shapes(Reside::Device));
            assert_eq!((kept, peaks(&real)), (planned, peaks(&dry)), "{pattern:?} and {negative:?}");
        }
    });
}

#[test]
fn a_request_that_shares_the_devices_of_a_cut_works_in_lanes_of_its_own() {
    with_each_model(|model| {
        let count = sections(model, model.spec.denoiser());
        let cut: Vec<usize> = (0..count).map(|i| i * 3 / count).collect();
        let run = |devices: &[Device], scratch: &[Device], from| {
            let place = Instance { negative: None, positive: unet(model, route(devices, &cut), from) };
            denoise(model, &place, devices, scratch, &[4.0])
        };
        let (real, dry) = (devices(), dry());
        let want = run(&real, &[], From::Files(Reside::Device));
        run(&dry, &[], From::Shapes(Reside::Device));
        let shared = devices();
        let scratch: Vec<Device> = shared.iter().map(|device| device.request_scratch(ARENA).unwrap()).collect();
        assert!(run(&shared, &scratch, From::Files(Reside::Device)) == want);
        assert_eq!(peaks(&scratch), peaks(&dry), "a request scratch holds what the arena of a request alone holds");
        assert_eq!(peaks(&shared), [0; 3], "and the devices' own arenas hold nothing");
    });
}

#[test]
fn a_forward_pass_that_is_abandoned_evicts_no_weights_of_others() {
    let model = model();
    let component = in_stage(&model, Stage::Encode);
    let count = sections(&model, component);
    let cut = count / 2;
    let devices = devices();
    let pattern: Vec<usize> = (0..count).map(|i| usize::from(i >= cut)).collect();
    let from = From::Files(Reside::Host);
    let source = Source { ahead: Ahead::Caller, ..from.source(route(&devices, &pattern)) };
    let weights = from.weights(&model, component);
    let encoder = load(&model.spec.components[component], weights, &source).unwrap();
    let (first, second) = (encoder.pass(&NoHooks), encoder.pass(&NoHooks));
    let go = |pass: &ForwardPass, sections: usize| (0..sections).try_for_each(|_| pass.next().map(|_| ()));
    go(&second, cut + 1).unwrap();
    go(&first, cut).unwrap();
    let here = devices[1].weight_bytes();
    assert!(here > 0 && devices[0].weight_bytes() > 0);
    // It stands in the last section of its device, and the other in the first of the next.
    drop(first);
    assert_eq!((devices[0].weight_bytes(), devices[1].weight_bytes()), (0, here));
    drop(second);
    assert_eq!(devices[1].weight_bytes(), 0, "offloaded weights are evicted");
}
