//! Starts from a picture: `cargo run --release --example img2img -- [FOLDER PICTURE [PROMPT [MASK]]]`. With a mask, only
//! what is white in it is drawn anew. Without arguments the built-in model draws both pictures. Writes into `out/`.

use std::{path::Path, sync::Arc};

use sdshard::{
    DeviceMap, Engine, Image, Largest, Model, ModelFiles, Plan, Request, Result, Start, StartImage, Strategy, output,
    visible_devices,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize| arguments.get(i).map(String::as_str);
    let folder = argument(0).unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji"));

    // Other than `open`, this has the encoder of the VAE among the components, which the device map places.
    let model = Arc::new(Model::open_for_images(ModelFiles::folder(folder)?, None)?);
    let draw = |request: Request| {
        let largest = Largest::of([&request], &model.spec)?.expect("there is a request");
        let map = DeviceMap::from_strategy(Strategy::Single);
        let plan = Plan::resolve(&map, &model.spec, &largest, &visible_devices())?;
        Engine::load(model.clone(), &plan)?.submit(request)?.wait()
    };

    output::check_writable(Path::new("out"))?;
    let image = match argument(1) {
        Some(path) => Image::read(path.as_ref())?,
        None => draw(Request::new("a red apple", &model.spec))?.image.expect("a request asks for a picture"),
    };
    let mask = argument(3).map(|path| Image::read(path.as_ref())).transpose()?;
    let (width, height) = image.drawn_size(model.spec.latents.scale)?;
    let start = StartImage::new(Arc::new(image), mask.map(Arc::new), &model.spec);
    println!("of the steps, {} are made", start.strength);
    let request = Request::new(argument(2).unwrap_or("a green apple"), &model.spec);
    draw(Request { start: Start::Image(start), width, height, ..request })?.save("out/example-from-picture.png")
}
