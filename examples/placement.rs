//! Placements made in code: `cargo run --release --example placement -- [FOLDER]`. Looks at plans, and changes from one to
//! another while requests are under way.

use std::sync::Arc;

use sdshard::{
    DeviceMap, Engine, Event, Largest, Model, ModelFiles, Plan, Request, Result,
    backend::{self, DeviceId, DeviceKind},
    device_map::{MapPlace, Strategy},
};

fn main() -> Result<()> {
    let folder = std::env::args().nth(1);
    let folder = folder.as_deref().unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji"));
    let model = Arc::new(Model::open(ModelFiles::folder(folder)?, None)?);
    let request = |seed| Request { seed, ..Request::new("a red fox", &model.spec) };
    let largest = Largest::of([&request(0)], &model.spec)?.expect("there is a request");
    let resolve = |map: &DeviceMap| Plan::resolve(map, &model.spec, &largest, &backend::visible());

    // The UNet's two halves of guidance on two shares of the cores; the strategy places the rest.
    let [first, second] = [0, 1].map(|index| DeviceId::new(DeviceKind::Cpu, index));
    let mut split = DeviceMap { devices: vec![first.into(), second.into()], ..DeviceMap::default() };
    let guided = MapPlace::Guided { negative: Box::new(first.into()), positive: Box::new(second.into()) };
    split.components.insert("unet".to_string(), vec![guided].into());
    let split = resolve(&split)?;
    println!("{split}\n");
    for device in &split.devices {
        println!(
            "{}: {} of {} bytes, idle {:.0} %",
            device.id,
            device.total_bytes(),
            device.budget_bytes,
            100.0 * device.idle_share
        );
    }

    // Whatever makes most pictures per second on this machine.
    let whole = resolve(&DeviceMap::from_strategy(Strategy::Throughput))?;
    println!("{:.2} s for a picture rather than {:.2} s", whole.seconds_per_image, split.seconds_per_image);

    let engine = Engine::load(model.clone(), &split)?;
    let tickets = (0..4).map(|seed| engine.submit(request(seed))).collect::<Result<Vec<_>>>()?;
    // What is under way ends as it began; what waits is drawn by the new plan, and gives the same bytes.
    engine.apply(&whole)?;
    println!("now on {:?}", engine.device_map());
    for (seed, ticket) in tickets.into_iter().enumerate() {
        while let Some(event) = ticket.next() {
            match event {
                Event::Taken { replica, .. } => println!("seed {seed}: taken by replica {replica}"),
                Event::Done(picture) => {
                    println!("seed {seed}: the UNet ran on {:?}", picture?.devices(model.spec.denoiser()))
                }
                _ => {}
            }
        }
    }
    Ok(())
}
