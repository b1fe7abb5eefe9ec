//! The stages of a request without content, as the planner runs them on devices without data.

use super::{
    branch::branches,
    controls::{Controller, Controls},
    denoise::{DenoiseInput, PictureStart, denoise},
    image::Image,
    parts::{Instance, Placed, Slot},
    request::Control,
    stages::{decode, encode, encode_image},
    start::Beginning,
};
use crate::{
    error::Result,
    models::{
        component::{ComponentId, Stage},
        network::Network,
        route::{NoHooks, PersistentArenas, SectionHooks},
        spec::{LatentSpec, ModelSpec},
        unet::Condition,
    },
    scheduler::Schedule,
    tensor::Shape,
};

/// A request without content, with the size of a real one: what the planner runs on devices without data.
pub struct Sample<'a> {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The number of pictures in a batch.
    pub batch: usize,
    /// Whether each picture has two texts.
    pub guided: bool,
    /// The number of chunks of each text.
    pub chunks: usize,
    /// Whether some of a picture is kept, although the network does not take a mask.
    pub masked: bool,
    /// Whether the VAE works in tiles.
    pub tiled: bool,
    /// The steps.
    pub schedule: &'a Schedule,
}

/// Runs the stage of one component on a sample. `keeps` has an arena on each of its devices; `progress` is called after
/// each step of the denoising loop, and with 0 when the texts are prepared. Returns the number of calls of the network
/// without the preparation.
///
/// # Errors
/// If an arena is full, or `progress` returns an error.
pub fn rehearse(
    spec: &ModelSpec,
    component: ComponentId,
    instance: &Instance,
    keeps: &PersistentArenas,
    sample: &Sample,
    hooks: &(dyn SectionHooks + Sync),
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<usize> {
    let LatentSpec { channels, scale, .. } = spec.latents;
    let shape = Shape::from([1, sample.height / scale, sample.width / scale, channels]);
    let network = &instance.positive;
    let tiles = spec.tiles(component).filter(|_| sample.tiled);
    let calls = match spec.components[component].stage() {
        Stage::Encode => {
            let text = spec.components[component].network.text().expect("it encodes texts");
            let encode = |_| encode(network, vec![0; text.tokens], 0, hooks).map(drop);
            (0..sample.chunks).try_for_each(encode)?;
            1
        }
        Stage::EncodeImage => {
            let shape = Shape::from([1, sample.height, sample.width, 3]);
            encode_image(network, tiles, shape, &vec![0.0; shape.elements()], hooks)?;
            1
        }
        Stage::Denoise => {
            let row = spec.sample_condition(sample.height, sample.width, sample.chunks, |_| 0.0);
            // Any scale above 1, so that neither text has the weight 0.
            let rows = vec![row; if sample.guided { 2 * sample.batch } else { sample.batch }];
            let begin = || PictureStart {
                guidance_scale: 2.0,
                guidance_rescale: 0.0,
                beginning: Beginning::sample(shape, sample.masked),
                controls: Vec::new(),
            };
            let pictures = (0..sample.batch).map(|_| begin()).collect();
            if let Network::ControlNet(_) = &*network.network {
                return rehearse_control(network, keeps, rows, shape, sample, hooks, progress);
            }
            let slot = Slot::new(instance, keeps, &[]);
            let controls = Controls::Sample(spec.controlnets().count());
            // Two branches run in parallel, so their sections have no common order to report.
            let hooks = if instance.negative.is_some() { &NoHooks } else { hooks };
            let branches = branches(instance, &slot, rows, sample.guided, hooks);
            let input = DenoiseInput { schedule: sample.schedule, pictures, shape };
            denoise(&branches, &controls, input, |done, _| progress(done))?;
            sample.schedule.steps.len()
        }
        Stage::Decode => {
            decode(network, tiles, shape, &vec![0.0; shape.elements()], hooks)?;
            1
        }
    };
    Ok(calls)
}

/// As [`rehearse`], for a ControlNet, whose residuals leave its devices at once.
fn rehearse_control(
    placed: &Placed,
    keeps: &PersistentArenas,
    rows: Vec<Condition>,
    shape: Shape,
    sample: &Sample,
    hooks: &dyn SectionHooks,
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<usize> {
    let size = [sample.height, sample.width];
    let pictures = vec![vec![0.0; 3 * sample.height * sample.width]; sample.batch];
    let image = Image { width: 0, height: 0, rgb: Vec::new() };
    let control = &Control { image: image.into(), scale: 1.0, start: 0.0, end: 1.0 };
    let controller = Controller { placed, keeps, rows, pictures, size, control };
    let conditioning = controller.condition(hooks)?;
    progress(0)?;
    let latents = vec![vec![0.0; shape.elements()]; sample.batch];
    for (done, step) in sample.schedule.steps.iter().enumerate() {
        controller.call(step, shape, &latents, &conditioning, hooks, |_, _| Ok(()))?;
        progress(done + 1)?;
    }
    Ok(sample.schedule.steps.len())
}
