//! A network cut over devices at any border gives the bits of the whole one, and each device's arena holds what a run
//! without data says.

use sdshard::{
    backend::{self, Device, DeviceId, DeviceKind, cpu, dry::Rules},
    models::route::{Keeps, Route},
    pipeline::{
        Component, Model, Network, UnetPlace, branches,
        model::{Loader, load_text_encoder, load_unet, load_vae, sections},
        stages::{self, Denoise, Features, Noise},
    },
    scheduler::schedule,
    tensor::Shape,
    weights::{ModelFiles, Weights},
};

const ARENA: usize = 64 << 20;
const HEIGHT: usize = 9;
const WIDTH: usize = 6;

fn model() -> Model {
    let folder = format!("{}/tests/golden/tiny-sd1", env!("CARGO_MANIFEST_DIR"));
    Model::open(ModelFiles::folder(folder).unwrap(), None).unwrap()
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
    let rules = Rules::Cpu(cpu::path().unwrap());
    (0..3).map(|i| Device::dry(DeviceId::new(DeviceKind::Cpu, i), rules, cpu::info().rates).0).collect()
}

/// Which of three devices runs each of `count` sections: every place to cut once, then some patterns.
fn patterns(count: usize) -> Vec<Vec<usize>> {
    let once = (0..=count).map(|cut| (0..count).map(|i| usize::from(i >= cut)).collect());
    let more = [|i: usize| i % 2, |i| i % 3, |i| (i / 2) % 3, |i| (i * 7 + 1) % 3];
    once.chain(more.map(|f| (0..count).map(f).collect())).collect()
}

fn route(devices: &[Device], pattern: &[usize]) -> Route {
    Route::new(pattern.iter().map(|i| devices[*i].clone()).collect())
}

fn peaks(devices: &[Device]) -> Vec<usize> {
    devices.iter().map(Device::peak_bytes).collect()
}

/// Runs `work` on real devices and on devices without data, for each pattern; all results are equal to the bit, all
/// arenas equal to the byte.
fn every_cut(component: Component, model: &Model, work: impl Fn(&[Device], &[usize], bool) -> Vec<f32>) {
    let patterns = patterns(sections(component, &model.spec).len());
    let whole = work(&devices(), &patterns[0], false);
    assert!(whole.iter().all(|x| x.is_finite()) && whole.iter().any(|x| *x != 0.0));
    for pattern in &patterns {
        let (real, dry) = (devices(), dry());
        assert!(work(&real, pattern, false) == whole, "{}: other bits with {pattern:?}", component.name());
        work(&dry, pattern, true);
        assert_eq!(peaks(&real), peaks(&dry), "{}: arenas with {pattern:?}", component.name());
        assert!(real.iter().all(|device| device.live() == 0), "{}: {pattern:?} leaves tensors", component.name());
    }
}

#[test]
fn a_text_encoder_can_be_cut_anywhere() {
    let model = model();
    let ids = model.tokenizer.encode("a fox in the snow").unwrap().ids;
    every_cut(Component::TextEncoder, &model, |devices, pattern, is_dry| {
        let route = route(devices, pattern);
        let encoder = match is_dry {
            true => load_text_encoder(Weights::shapes_only("text_encoder"), &model.spec, &route).unwrap().into(),
            false => Loader::new(&model).text_encoder(route.clone()).unwrap().network,
        };
        stages::encode(&encoder, &route, ids.clone()).unwrap().to_vec()
    });
}

#[test]
fn a_vae_can_be_cut_anywhere() {
    let model = model();
    let shape = Shape::from([1, HEIGHT, WIDTH, 4]);
    let latents: Vec<f32> = (0..shape.elements()).map(|i| (i as f32 * 0.7).sin()).collect();
    every_cut(Component::Vae, &model, |devices, pattern, is_dry| {
        let route = route(devices, pattern);
        let vae = match is_dry {
            true => load_vae(Weights::shapes_only("vae"), &model.spec, &route).unwrap().into(),
            false => Loader::new(&model).vae(route.clone()).unwrap().network,
        };
        stages::decode(&vae, &route, shape, &latents).unwrap()
    });
}

/// Three guided steps with the UNet of `place`, with what is kept on each device.
fn denoise(model: &Model, place: &UnetPlace, devices: &[Device]) -> (Vec<f32>, Vec<usize>) {
    let spec = &model.spec;
    let keeps = Keeps::new(devices.iter().map(|device| device.keep(ARENA).unwrap()).collect());
    let length = spec.text_encoder.max_position_embeddings * spec.unet.cross_attention_dim;
    let text = |phase: f32| -> Features { (0..length).map(|i| (i as f32 * 0.3 + phase).sin()).collect() };
    let schedule = schedule(&spec.scheduler, 3).unwrap();
    let request =
        Denoise { spec, schedule: &schedule, guidance_scale: 4.0, height: HEIGHT, width: WIDTH, noise: Noise::zeros() };
    let branches = branches(place, vec![text(0.0), text(1.0)], &keeps);
    let latents = stages::denoise(&branches, request, |_| Ok(())).unwrap();
    (latents, keeps.iter().map(|keep| keep.peak_bytes()).collect())
}

fn unet(model: &Model, route: Route, is_dry: bool) -> Network<sdshard::models::unet::Unet> {
    match is_dry {
        true => {
            let network = load_unet(Weights::shapes_only("unet"), &model.spec, &route).unwrap().into();
            Network { network, route }
        }
        false => Loader::new(model).unet(route).unwrap(),
    }
}

#[test]
fn a_unet_can_be_cut_anywhere() {
    let model = model();
    every_cut(Component::Unet, &model, |devices, pattern, is_dry| {
        let place = UnetPlace { negative: None, positive: unet(&model, route(devices, pattern), is_dry) };
        denoise(&model, &place, devices).0
    });
}

#[test]
fn guidance_can_be_split_over_any_two_routes() {
    let model = model();
    let count = sections(Component::Unet, &model.spec).len();
    let place = |devices: &[Device], negative: &[usize], positive: &[usize], is_dry| UnetPlace {
        negative: Some(unet(&model, route(devices, negative), is_dry)),
        positive: unet(&model, route(devices, positive), is_dry),
    };
    let on = |device: usize| vec![device; count];
    let real = devices();
    let whole = UnetPlace { negative: None, positive: unet(&model, route(&real, &on(0)), false) };
    let whole = denoise(&model, &whole, &real).0;
    let cut: Vec<usize> = (0..count).map(|i| 1 + i % 2).collect();
    for (negative, positive) in [(on(0), on(1)), (on(1), on(0)), (on(0), on(0)), (on(0), cut.clone()), (cut, on(1))] {
        let (real, dry) = (devices(), dry());
        let (latents, kept) = denoise(&model, &place(&real, &negative, &positive, false), &real);
        assert!(latents == whole, "other bits with {negative:?} and {positive:?}");
        let (_, planned) = denoise(&model, &place(&dry, &negative, &positive, true), &dry);
        assert_eq!((kept, peaks(&real)), (planned, peaks(&dry)), "{negative:?} and {positive:?}");
    }
}
