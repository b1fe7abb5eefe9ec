//! Draws with a LoRA and without it: `cargo run --release --example lora -- MODEL LORA.safetensors [WEIGHT [PROMPT]]`, where
//! MODEL is a diffusers folder or a single file. Writes into `out/`.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use sdshard::{
    DeviceMap, Engine, Error, Largest, LoraChoice, Model, Overrides, Plan, Request, Result, Strategy, Wanted,
    locate_model, output, visible_devices,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, path, ..] = arguments.as_slice() else {
        return Err(Error::input("two arguments are needed").hint("MODEL LORA.safetensors [WEIGHT [PROMPT]]"));
    };
    let weight = arguments.get(2).and_then(|weight| weight.parse().ok()).unwrap_or(1.0);
    let prompt = arguments.get(3).map_or("a lighthouse", String::as_str);

    output::check_writable(Path::new("out"))?;
    let lora = LoraChoice::new(path, weight);
    for (loras, file) in [(&[][..], "out/example-plain.png"), (&[lora], "out/example-lora.png")] {
        let overrides = Overrides { loras, ..Overrides::default() };
        let files = locate_model(name, None, None, &overrides, Wanted::Everything, &mut |_| ControlFlow::Continue(()))?;
        // The LoRA's modules are compared with the model's here, and merged in f32 while weights are read.
        let model = Arc::new(Model::open(files, None)?);
        let request = Request::new(prompt, &model.spec);
        let largest = Largest::of([&request], &model.spec)?.expect("there is a request");
        let map = DeviceMap::from_strategy(Strategy::Single);
        let plan = Plan::resolve(&map, &model.spec, &largest, &visible_devices())?;
        Engine::load(model, &plan)?.submit(request)?.wait()?.save(file)?;
        println!("{file}");
    }
    Ok(())
}
