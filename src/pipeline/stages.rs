//! The stages of a request: text to features, a picture to start from to latents, noise to latents, latents to pixels.
//!
//! Each stage begins and ends on the host; the data between stages is small (a few hundred KiB). So the memory that a
//! stage needs does not depend on where the other stages run. The planner uses this: it runs the same code on devices
//! without data ([`rehearse`]).

use super::{
    device_queue::Work,
    image::Image,
    parts::{Instance, Placed, Slot},
    request::Control,
    start::Beginning,
};
use crate::{
    backend::Device,
    error::{Error, ErrorScope, Result},
    models::{
        clip::EncodedText,
        component::{ComponentId, Stage},
        controlnet::ControlConditioning,
        network::Network,
        route::{ForwardPass, NoHooks, PersistentArenas, Route, SectionHooks},
        spec::{LatentSpec, ModelSpec},
        tiles::Tiles,
        unet::{Condition, Conditioning, Residuals, Unet},
    },
    prompt::{Chunk, Emphasis, emphasize},
    scheduler::{Schedule, Step},
    sync,
    tensor::{Leaving, Shape, Tensor},
    weights::Offload,
};

impl From<Stage> for Work {
    /// The kind of work of a stage, for the device queue.
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Encode => Self::Text,
            Stage::EncodeImage => Self::Image,
            Stage::Denoise => Self::Denoise,
            Stage::Decode => Self::Decode,
        }
    }
}

/// Runs a text encoder on one text, whose last `skip` layers are left out.
///
/// # Errors
/// If the device fails, its arena is full, or a value is not finite.
pub fn encode(encoder: &Placed, ids: Vec<u32>, skip: usize, hooks: &dyn SectionHooks) -> Result<EncodedText> {
    let output = encoder.network.text_encoder().forward(&[ids], skip, &encoder.pass(hooks))?;
    let read = |tensor: &Tensor| -> Result<Vec<f32>> {
        let values = tensor.read()?;
        finite(&values, &encoder.name)?;
        Ok(values)
    };
    let pooled = output.pooled.as_ref().map(read).transpose()?.unwrap_or_default();
    Ok(EncodedText { features: read(&output.features)?, pooled })
}

/// Runs a text encoder on each chunk of a text: their features follow each other along the tokens, with the weights of
/// the chunks, and the pooled feature is that of the first chunk.
///
/// # Errors
/// As [`encode`].
pub fn encode_chunks(encoder: &Placed, chunks: &[Chunk], skip: usize, hooks: &dyn SectionHooks) -> Result<EncodedText> {
    let encode = |chunk: &Chunk| encode(encoder, chunk.ids.clone(), skip, hooks);
    let mut encoded = chunks.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let mut features: Vec<f32> = encoded.iter().flat_map(|chunk| chunk.features.iter().copied()).collect();
    if emphasize(&mut features, chunks) == Emphasis::MeanLost {
        tracing::warn!("the weights of a prompt move the mean of its features to nearly zero, so it is not restored");
    }
    Ok(EncodedText { features, pooled: encoded.swap_remove(0).pooled })
}

/// Runs an image encoder on a picture, `[1, height, width, 3]` from -1 to 1, in tiles if there are any. The result is
/// that of [`Encoder::encode`].
///
/// [`Encoder::encode`]: crate::models::autoencoder::Encoder::encode
///
/// # Errors
/// If the device fails, its arena is full, or a value is not finite.
pub fn encode_image(
    encoder: &Placed,
    tiles: Option<Tiles>,
    shape: Shape,
    pixels: &[f32],
    hooks: &dyn SectionHooks,
) -> Result<Vec<f32>> {
    let network = encoder.network.image_encoder();
    let encode = |shape, pixels: &[f32]| network.encode(shape, pixels, &encoder.pass(hooks));
    let encoded = match tiles {
        Some(tiles) => tiles.run(shape, pixels, encode)?,
        None => encode(shape, pixels)?,
    };
    finite(&encoded, &encoder.name)?;
    Ok(encoded)
}

/// The input of the denoising loop: one picture, or several of one size as a batch.
pub struct DenoiseInput<'a> {
    /// The steps.
    pub schedule: &'a Schedule,
    /// The pictures.
    pub pictures: Vec<PictureStart>,
    /// The latents of one picture, `[1, height, width, channels]`.
    pub shape: Shape,
}

/// What one picture starts from.
pub struct PictureStart {
    /// The guidance scale; only used with two texts.
    pub guidance_scale: f32,
    /// How far the guided output gets the deviation of the output for the prompt, from 0 to 1; only used with two texts.
    pub guidance_rescale: f32,
    /// The first latents, and the noise of those steps that add some.
    pub beginning: Beginning,
    /// What each ControlNet reads for it: pixels from 0 to 1, `[height, width, 3]`.
    pub controls: Vec<Vec<f32>>,
}

/// A denoiser with some texts. A batch has one branch for all of its texts, or one for the negative prompts and one for
/// the positive prompts, which run at the same time if they share no device.
pub struct Branch<'a> {
    /// The name of the component, for messages.
    pub name: &'a str,
    /// The network.
    pub denoiser: &'a Unet,
    /// The offloaded weights, if there are any.
    pub offload: Option<&'a Offload>,
    /// The device of each section.
    pub route: &'a Route,
    /// The persistent arenas of these devices.
    pub keeps: &'a PersistentArenas,
    /// Called before each section.
    pub hooks: &'a (dyn SectionHooks + Sync),
    /// The conditions: one for each picture; if this branch runs both prompts, first all negative ones, then all
    /// positive ones.
    pub rows: Vec<Condition>,
}

impl Branch<'_> {
    fn pass(&self) -> ForwardPass<'_> {
        ForwardPass::new(self.route, self.offload, self.hooks)
    }

    /// The device that takes residual `i` of a ControlNet.
    fn taker(&self, i: usize) -> &Device {
        self.route.at(self.denoiser.residual_section(i))
    }

    /// The network's input for these latents, a row for each text, on the device of the first section.
    fn input(&self, step: &Step, latents: &[Tensor]) -> Result<Tensor> {
        let scale = |latents: &Tensor| -> Result<Tensor> {
            let latents = latents.to(self.route.first())?;
            Tensor::scale_add(latents.shape(), &[(step.input_scale, &latents, 0)])
        };
        let mut scaled = latents.iter().map(scale).collect::<Result<Vec<_>>>()?;
        if self.rows.len() > 1 {
            // Every picture is repeated once for each of its prompts.
            let rows: Vec<&Tensor> = scaled.iter().cycle().take(self.rows.len()).collect();
            return Tensor::stack(&rows);
        }
        Ok(scaled.swap_remove(0))
    }

    /// The network's output for each text, on the device of the last section.
    fn call(&self, step: &Step, latents: &Tensor, text: &Conditioning, residuals: &[Residuals]) -> Result<Tensor> {
        let time = self.denoiser.time_features(step.timestep, self.route.first())?;
        let forward = || self.denoiser.forward(latents, &time, text, residuals, &self.pass());
        match (self.offload, &self.route.devices()[..]) {
            // On one device the call can be recorded once and replayed, because every step runs the same ops on the
            // same addresses.
            (None, [device]) => device.as_one(forward),
            _ => forward(),
        }
    }
}

/// A ControlNet with its pictures, which runs before the denoiser in each step in which it is active.
pub struct Controller<'a> {
    /// The network.
    pub placed: &'a Placed,
    /// The persistent arenas of its devices.
    pub keeps: &'a PersistentArenas,
    /// The conditions of all branches, one branch after the other.
    pub rows: Vec<Condition>,
    /// The pixels of the picture of each picture of the batch, `[height, width, 3]` from 0 to 1.
    pub pictures: Vec<Vec<f32>>,
    /// The height and width of the pictures.
    pub size: [usize; 2],
    /// How strongly and when it works; its image is not used.
    pub control: &'a Control,
}

impl Controller<'_> {
    fn condition(&self, hooks: &dyn SectionHooks) -> Result<ControlConditioning> {
        let pictures: Vec<&[f32]> = self.pictures.iter().map(Vec::as_slice).collect();
        let network = self.placed.network.controlnet();
        network.condition(&self.rows, &pictures, self.size, &self.placed.pass(hooks), self.keeps)
    }

    /// Computes the residuals for these latents, `[height, width, channels]` of each picture in `shape`.
    fn call(
        &self,
        step: &Step,
        shape: Shape,
        latents: &[Vec<f32>],
        conditioning: &ControlConditioning,
        hooks: &dyn SectionHooks,
        put: impl FnMut(usize, Tensor) -> Result<()>,
    ) -> Result<()> {
        let (network, device) = (self.placed.network.controlnet(), self.placed.route.first());
        let rows = latents.iter().cycle().take(self.rows.len()).flatten();
        let scaled: Vec<f32> = rows.map(|value| step.input_scale * value).collect();
        let latents = Tensor::new(device, shape.with_batch(self.rows.len()), &scaled)?;
        let time = network.time_features(step.timestep, device)?;
        network.forward(&latents, &time, conditioning, &self.placed.pass(hooks), put)
    }
}

/// What controls a denoiser.
pub enum Controls<'a> {
    /// ControlNets.
    Networks(Vec<Controller<'a>>),
    /// As many ControlNets, whose residuals have no values: for runs without data.
    Sample(usize),
}

/// What a ControlNet gives to the denoiser in a step.
struct Controlled {
    scale: f32,
    /// The residuals for each branch.
    residuals: Vec<Vec<Tensor>>,
}

impl Controls<'_> {
    fn condition(&self) -> Result<Vec<ControlConditioning>> {
        match self {
            Self::Networks(networks) => networks.iter().map(|network| network.condition(&NoHooks)).collect(),
            Self::Sample(_) => Ok(Vec::new()),
        }
    }

    /// The residuals of all ControlNets that are active at step `done` of the schedule, on the devices that take them.
    fn call(
        &self,
        conditionings: &[ControlConditioning],
        branches: &[Branch],
        schedule: &Schedule,
        done: usize,
        latents: &[Tensor],
    ) -> Result<Vec<Controlled>> {
        let (step, steps, shape) = (&schedule.steps[done], schedule.steps.len(), latents[0].shape());
        let new = |scale: f32| Controlled { scale, residuals: branches.iter().map(|_| Vec::new()).collect() };
        match self {
            Self::Networks(networks) => {
                let active =
                    networks.iter().zip(conditionings).filter(|(network, _)| network.control.is_active(done, steps));
                let active: Vec<_> = active.collect();
                if active.is_empty() {
                    return Ok(Vec::new());
                }
                let latents = latents.iter().map(Tensor::read).collect::<Result<Vec<_>>>()?;
                let call = |(network, conditioning): (&Controller, &ControlConditioning)| {
                    let mut controlled = new(network.control.scale);
                    network.call(step, shape, &latents, conditioning, &NoHooks, |i, residual| {
                        for (branch, residuals) in branches.iter().zip(&mut controlled.residuals) {
                            residuals.push(residual.keep(branch.keeps.on(branch.taker(i)))?);
                        }
                        Ok(())
                    })?;
                    Ok(controlled)
                };
                active.into_iter().map(call).collect()
            }
            // The first of several steps is made without them, as by requests whose ControlNets begin later: allocations in
            // another order may need more of an arena.
            Self::Sample(_) if steps > 1 && done == 0 => Ok(Vec::new()),
            Self::Sample(count) => {
                let rows: usize = branches.iter().map(|branch| branch.rows.len()).sum();
                let call = |_| {
                    let mut controlled = new(1.0);
                    let shapes = branches[0].denoiser.residual_shapes([rows, shape.dims()[1], shape.dims()[2]]);
                    for (i, shape) in shapes.into_iter().enumerate() {
                        for (branch, residuals) in branches.iter().zip(&mut controlled.residuals) {
                            residuals.push(Tensor::uninitialized_in(branch.keeps.on(branch.taker(i)), shape)?);
                        }
                    }
                    Ok(controlled)
                };
                (0..*count).map(call).collect()
            }
        }
    }
}

impl Controlled {
    /// The residuals for a branch, whose rows begin at `row` of all rows.
    fn of_branch(all: &[Self], branch: usize, row: usize) -> Vec<Residuals<'_>> {
        all.iter().map(|one| Residuals { tensors: &one.residuals[branch], row, scale: one.scale }).collect()
    }
}

/// Runs the denoising loop and returns the final latents, `[height, width, channels]` for each picture, or an error for
/// the picture. During the loop the latents are on the first device of the last branch. `progress(0)` is called when
/// the texts are prepared ([`Unet::condition`]), then `progress` after each step; its error stops the loop. The
/// guidance follows Ho and Salimans 2022.
///
/// # Errors
/// If a device fails, an arena is full, or `progress` returns an error.
pub fn denoise(
    branches: &[Branch],
    controls: &Controls,
    mut input: DenoiseInput,
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Result<Vec<f32>>>> {
    let home = branches.last().expect("a request has a prompt");
    let (device, keep) = (home.route.first(), home.keeps.on(home.route.first()));
    // The loop's own tensors are on the first device of `home`. Whatever runs a branch may leave this device, so the
    // loop enters it again before it uses them.
    let enter_home = || home.hooks.enter(0);
    enter_home()?;
    let condition = |branch: &Branch| branch.denoiser.condition(&branch.rows, &branch.pass(), branch.keeps);
    let texts = branches.iter().map(condition).collect::<Result<Vec<_>>>()?;
    let conditionings = controls.condition()?;
    progress(0)?;
    enter_home()?;
    let (shape, schedule) = (input.shape, input.schedule);
    let first = |picture: &PictureStart| Tensor::new(device, shape, &picture.beginning.latents(schedule))?.keep(keep);
    let mut latents = input.pictures.iter().map(first).collect::<Result<Vec<_>>>()?;

    let (history, looks_back) = (schedule.history(), schedule.looks_back());
    let mut earlier: Vec<Option<Tensor>> = latents.iter().map(|_| None).collect();
    let mut estimates: Vec<Vec<Tensor>> = latents.iter().map(|_| Vec::with_capacity(history + 1)).collect();
    for (done, step) in schedule.steps.iter().enumerate() {
        let controlled = controls.call(&conditionings, branches, schedule, done, &latents)?;
        let outs = call(branches, &texts, &controlled, step, &latents)?;
        drop(controlled);
        let leaving = outs.into_iter().map(|out| out.leave_for(device)).collect::<Result<Vec<_>>>()?;
        enter_home()?;
        // The copies arrive in order, on this thread, so that the arena always sees the same allocations.
        let outs = leaving.into_iter().map(Leaving::arrive).collect::<Result<Vec<_>>>()?;
        for (i, picture) in input.pictures.iter_mut().enumerate() {
            let out = guide(&outs, i, latents.len(), shape, picture)?;
            estimates[i].insert(0, weighted(&[(step.p, &latents[i]), (step.q, &out)])?.keep(keep)?);
            drop(out);
            estimates[i].truncate(history.max(1));
            let fresh = match step.noise {
                0.0 => None,
                _ => Some(Tensor::new(device, shape, &picture.beginning.fresh_noise(shape))?),
            };
            let mut next = advance(step, &latents[i], earlier[i].as_ref(), &estimates[i], fresh.as_ref())?;
            if picture.beginning.blends() {
                let level = schedule.steps.get(done + 1).map(|step| step.level);
                let values = picture.beginning.blended(next.read()?, level);
                drop(next);
                next = Tensor::new(device, shape, &values)?;
            }
            let next = next.keep(keep)?;
            earlier[i] = Some(std::mem::replace(&mut latents[i], next)).filter(|_| looks_back);
        }
        drop(outs);
        progress(done + 1)?;
    }
    let values = latents.iter().map(Tensor::read).collect::<Result<Vec<_>>>()?;
    Ok(values.into_iter().map(|values| finite(&values, home.name).map(|()| values)).collect())
}

/// The output of every branch. Two branches without a common device run at the same time.
fn call(
    branches: &[Branch],
    texts: &[Conditioning],
    controlled: &[Controlled],
    step: &Step,
    latents: &[Tensor],
) -> Result<Vec<Tensor>> {
    let apart = |a: &Branch, b: &Branch| a.route.devices().iter().all(|device| !b.route.devices().contains(device));
    match branches {
        [negative, positive] if apart(negative, positive) => {
            // Both inputs are made before either branch begins, because a copy waits for all earlier work of its
            // device.
            let inputs = (negative.input(step, latents)?, positive.input(step, latents)?);
            let both = sync::run_both(
                || negative.call(step, &inputs.0, &texts[0], &Controlled::of_branch(controlled, 0, 0)),
                || {
                    let residuals = Controlled::of_branch(controlled, 1, negative.rows.len());
                    positive.call(step, &inputs.1, &texts[1], &residuals)
                },
            );
            match both.map_err(|error| Error::request("starting a thread for the negative prompt").source(error))? {
                // The error of a failed device has priority over that of a request.
                (_, Err(error)) if matches!(error.scope(), ErrorScope::Device(_)) => Err(error),
                (negative, positive) => Ok(vec![negative?, positive?]),
            }
        }
        _ => {
            let call = |(i, (branch, text)): (usize, (&Branch, &Conditioning))| {
                let residuals = Controlled::of_branch(controlled, i, i * branch.rows.len());
                branch.call(step, &branch.input(step, latents)?, text, &residuals)
            };
            branches.iter().zip(texts).enumerate().map(call).collect()
        }
    }
}

/// `negative + scale * (positive - negative)` of picture `i` of `count`, as one weighted sum; without guidance, the
/// picture's own row of the only output.
fn guide(outs: &[Tensor], i: usize, count: usize, shape: Shape, picture: &PictureStart) -> Result<Tensor> {
    let (negative, positive) = match outs {
        [negative, positive] => ((negative, i), (positive, i)),
        [both] if both.dim(0) == 2 * count => ((both, i), (both, count + i)),
        [one] if count == 1 => return Ok(one.clone()),
        outs => return Tensor::scale_add(shape, &[(1.0, &outs[0], i)]),
    };
    let guided = |factor: f32| {
        let scale = picture.guidance_scale;
        let terms = [(factor * (1.0 - scale), negative.0, negative.1), (factor * scale, positive.0, positive.1)];
        Tensor::scale_add(shape, &terms)
    };
    if picture.guidance_rescale == 0.0 {
        return guided(1.0);
    }
    let wanted = deviation(&positive.0.read()?[positive.1 * shape.elements()..][..shape.elements()]);
    let found = deviation(&guided(1.0)?.read()?);
    let rescale = f64::from(picture.guidance_rescale);
    // An output without any deviation has no scale.
    let factor = if found == 0.0 { 1.0 } else { rescale * wanted / found + (1.0 - rescale) };
    guided(factor as f32)
}

/// The standard deviation of a sample, which divides by its number of values less one, as in the `rescale_noise_cfg` of
/// diffusers (Lin et al. 2023).
fn deviation(values: &[f32]) -> f64 {
    let values = || values.iter().map(|x| f64::from(*x));
    let count = values().count() as f64;
    let mean = values().sum::<f64>() / count;
    (values().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt()
}

/// The next latents: see [`Step`].
fn advance(
    step: &Step,
    latents: &Tensor,
    earlier: Option<&Tensor>,
    estimates: &[Tensor],
    noise: Option<&Tensor>,
) -> Result<Tensor> {
    let mut terms = vec![(step.a, latents)];
    terms.extend(earlier.map(|earlier| (step.before, earlier)));
    terms.extend(step.b.iter().copied().zip(estimates));
    terms.extend(noise.map(|noise| (step.noise, noise)));
    weighted(&terms)
}

/// The weighted sum of the terms whose weight is not zero; there is at least one.
fn weighted(terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let used: Vec<_> = terms.iter().filter(|(weight, _)| *weight != 0.0).map(|&(weight, x)| (weight, x, 0)).collect();
    Tensor::scale_add(terms[0].1.shape(), &used)
}

/// Runs the decoder, in tiles if there are any: from latents, whose `shape` is `[1, height, width, channels]`, to pixels
/// from about -1 to 1, `[8 height, 8 width, 3]`.
///
/// # Errors
/// If the device fails, its arena is full, or a value is not finite.
pub fn decode(
    decoder: &Placed,
    tiles: Option<Tiles>,
    shape: Shape,
    latents: &[f32],
    hooks: &dyn SectionHooks,
) -> Result<Vec<f32>> {
    let network = decoder.network.decoder();
    let decode = |shape, latents: &[f32]| network.decode(shape, latents, &decoder.pass(hooks));
    let pixels = match tiles {
        Some(tiles) => tiles.run(shape, latents, decode)?,
        None => decode(shape, latents)?,
    };
    finite(&pixels, &decoder.name)?;
    Ok(pixels)
}

/// Rejects infinities and NaN, which would give a black picture.
pub fn finite(values: &[f32], component: &str) -> Result<()> {
    let bad = values.iter().filter(|x| !x.is_finite()).count();
    if bad == 0 {
        return Ok(());
    }
    Err(Error::request(format!("the {component} gave {bad} values of {} that are not finite", values.len()))
        .hint("another dtype for this component, a lower guidance scale, or another checkpoint"))
}

/// The branches of an instance of the denoiser for the conditions of one batch. The negative prompts come first, if
/// there is guidance.
pub fn branches<'a>(
    instance: &'a Instance,
    slot: &'a Slot,
    mut rows: Vec<Condition>,
    guided: bool,
    hooks: &'a (dyn SectionHooks + Sync),
) -> Vec<Branch<'a>> {
    let branch = |network: &'a Placed, (route, keeps): &'a (Route, PersistentArenas), rows| Branch {
        name: &network.name,
        denoiser: network.network.denoiser(),
        offload: network.offload.as_deref(),
        route,
        keeps,
        hooks,
        rows,
    };
    match (&instance.negative, &slot.negative) {
        (Some(network), Some(own)) if guided => {
            let positive = rows.split_off(rows.len() / 2);
            vec![branch(network, own, rows), branch(&instance.positive, &slot.positive, positive)]
        }
        _ => vec![branch(&instance.positive, &slot.positive, rows)],
    }
}

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
            denoise(&branches, &controls, DenoiseInput { schedule: sample.schedule, pictures, shape }, &mut progress)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_divides_by_one_less_than_the_number_of_values() {
        // The golden numbers of a guided output: u = [0, 1, -1, 2], c = [0.5, 1, -2, 1], scale 5.
        assert!((deviation(&[0.5, 1.0, -2.0, 1.0]) - 1.436_141).abs() < 1e-6);
        assert!((deviation(&[2.5, 1.0, -6.0, -3.0]) - 3.859_512).abs() < 1e-6);
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        let message = finite(&[1.0, f32::NAN, f32::INFINITY], "vae").unwrap_err().to_string();
        assert!(message.contains("the vae gave 2 values of 3"), "{message}");
    }
}
