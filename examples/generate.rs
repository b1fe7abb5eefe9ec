//! The library in one screen: `cargo run --release --example generate -- [FOLDER [PROMPT...]]`. Writes into `out/`.

use std::{path::Path, sync::Arc};

use sdshard::{
    DeviceMap, Engine, Event, Largest, Model, ModelFiles, Plan, Progress, Request, Result,
    backend::{self, DeviceId, DeviceKind},
    output,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.first().map_or(concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji"), String::as_str);
    let prompts = arguments.get(1..).filter(|prompts| !prompts.is_empty());
    let prompts = prompts.map_or_else(|| vec!["a dog".to_string(), "a cat".to_string()], <[String]>::to_vec);

    let model = Arc::new(Model::open(ModelFiles::folder(folder)?, None)?);
    let request = |(i, prompt): (usize, String)| Request { seed: i as u64, ..Request::new(prompt, &model.spec) };
    let requests: Vec<Request> = prompts.into_iter().enumerate().map(request).collect();

    // Two shares of the cores: the UNet by itself on the second, the rest where the strategy puts it.
    let [first, second] = [0, 1].map(|index| DeviceId::new(DeviceKind::Cpu, index));
    let mut map = DeviceMap { devices: vec![first.into(), second.into()], ..DeviceMap::default() };
    map.components.insert("unet".to_string(), second.into());
    let largest = Largest::of(&requests, &model.spec)?.expect("there is a request");
    let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible())?;
    println!("{plan}\n");

    let engine = Engine::load(model.clone(), &plan)?;
    output::check_writable(Path::new("out"))?;
    engine.generate(requests.iter().cloned(), |index, event| {
        match event {
            Event::Taken { replica, .. } => println!("{index}: taken by replica {replica}"),
            Event::Progress(Progress::Finished(span)) => {
                println!("{index}: {} {:.0?}", model.spec.components[span.component].name, span.elapsed)
            }
            Event::Done(picture) => picture?.save(format!("out/example-{index}.png"))?,
            _ => {}
        }
        Ok(())
    })
}
