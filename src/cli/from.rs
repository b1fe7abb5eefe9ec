//! `--from`: draws again what a file says, and tells what of it cannot be followed.

use sdshard::{
    error::{Error, Result},
    pipeline::{Latents, Model, Settings, options::RequestOptions, request::Request},
    planner::plan::Plan,
    weights::lora::LoraChoice,
};

use super::{
    adapters::named,
    args::{GenerateArgs, Seed},
    progress::Console,
    prompts,
};

/// The number of digits of hashes that can be compared. Old web UIs have eight digits of another hash.
const HASH_DIGITS: usize = 10;

/// The file in messages.
pub fn place(args: &GenerateArgs) -> Option<String> {
    args.from.as_ref().map(|path| format!("--from {}", path.display()))
}

/// Reads the file of `--from`, and takes its prompt and seed if the command line has none. The other options stay in
/// `args.settings`.
///
/// # Errors
/// If it has no settings, or an option that no model can follow.
pub fn read(args: &mut GenerateArgs) -> Result<()> {
    let (Some(path), Some(place)) = (&args.from, place(args)) else { return Ok(()) };
    let mut settings = Settings::read(path).map_err(|error| error.context("--from"))?;
    settings.options = prompts::checked(&settings.options, |field| format!("{place}: {field}"))?;
    let mut said =
        RequestOptions { prompt: settings.options.prompt.take(), ..args.options.clone().or(&settings.options) };
    let seed = settings.options.seed.take();
    if args.prompts.is_empty() && args.prompts_file.is_none() {
        let tags = prompts::take_tags(&mut said).map_err(|error| error.context(place))?;
        settings.loras.extend(tags.iter().map(|tag| format!("{}:{}", tag.name, tag.unet_weight)));
        args.prompts.extend(said.prompt);
    }
    let model = &mut args.model.model;
    for label in &settings.loras {
        // What is not found is told later.
        let (Some(folder), Some((name, weight))) = (&model.lora_dir, label.rsplit_once(':')) else { break };
        if model.lora.iter().all(|own| own.label() != *label)
            && let ([path], Ok(weight)) = (&named(folder, name)?[..], weight.parse())
        {
            model.lora.push(LoraChoice { path: path.clone(), weight });
        }
    }
    args.seed = args.seed.or(seed.map(Seed::Number));
    args.settings = Some(Box::new(settings));
    Ok(())
}

/// Compares the model with the one that the settings name.
///
/// # Errors
/// If it is another one, and none was chosen with `--model`: which one is meant is not guessed.
pub fn check_model(args: &GenerateArgs, model: &Model, console: &Console) -> Result<()> {
    let (Some(settings), Some(place)) = (&args.settings, place(args)) else { return Ok(()) };
    let hash = settings.model_hash.as_deref().filter(|hash| hash.len() == HASH_DIGITS);
    let said = match (&settings.model, &settings.model_hash) {
        (None, None) => return Ok(()),
        (name, hash) => {
            let hash = hash.as_ref().map(|hash| format!("hash {hash}"));
            name.iter().cloned().chain(hash).collect::<Vec<_>>().join(", ")
        }
    };
    let own = model.identity()?;
    let is_same = match hash {
        Some(hash) => hash.eq_ignore_ascii_case(&own),
        None => settings.model.as_deref() == Some(model.files.name()),
    };
    let what =
        format!("{place}: the picture was drawn by {}", if hash.is_some() { "another model" } else { "a model" });
    match (is_same, args.model.model.model.is_some()) {
        (true, _) => Ok(()),
        (false, true) => {
            console.note(&format!("{what} ({said}); this one is {}, hash {own}", model.files.name()));
            Ok(())
        }
        (false, false) => Err(Error::input(format!("{what}, and --model does not say where it is"))
            .found(said)
            .hint("--model FOLDER or --model ORG/NAME; any model can be used")),
    }
}

/// Prints what of the settings is not followed by the `requests`.
pub fn tell(args: &GenerateArgs, latents: Option<&Latents>, requests: &[Request], plan: &Plan, console: &Console) {
    let (Some(settings), Some(place)) = (&args.settings, place(args)) else { return };
    for line in not_followed(settings, args) {
        console.note(&format!("{place}: not followed: {line}"));
    }
    match (&settings.latents, latents.map(Latents::digest)) {
        (Some(said), None) => {
            console.note(&format!("{place}: the picture started from given noise ({said}): --latents FILE"));
        }
        (Some(said), Some(own)) if *said != own => {
            console.note(&format!("{place}: the picture started from other noise ({said}) than --latents has ({own})"));
        }
        _ => {}
    }
    let start = requests.iter().find_map(Request::start_image);
    let mask = start.and_then(|start| start.mask.as_ref());
    let pictures = [
        ("a picture", "--image FILE", &settings.image_pixels, start.map(|start| start.image.digest())),
        ("a picture with a mask", "--mask FILE", &settings.mask_pixels, mask.map(|mask| mask.digest())),
    ];
    for (what, flag, said, own) in pictures {
        // Web UIs do not say which picture it was, but its strength.
        let is_said = said.is_some() || flag == "--image FILE" && settings.options.strength.is_some();
        match (said, own) {
            (_, None) if is_said => console.note(&format!("{place}: the picture started from {what}: {flag}")),
            (Some(said), Some(own)) if *said != own => {
                console.note(&format!("{place}: the picture started from {what} with other pixels than {flag} has"));
            }
            _ => {}
        }
    }
    let own: Vec<String> = requests
        .first()
        .map_or(Vec::new(), |request| request.controls.iter().map(|control| control.image.digest()).collect());
    if !settings.control_pixels.is_empty() && settings.control_pixels != own {
        let (count, flags) = (settings.control_pixels.len(), "--controlnet FILE --control-image FILE");
        console.note(&format!("{place}: the picture was drawn with {count} ControlNets and other pictures: {flags}"));
    }
    if let Some(said) = &settings.dtype {
        let dtypes = [false, true].map(|guided| plan.denoiser_dtypes(guided)).concat();
        if !said.split('+').all(|said| dtypes.iter().flatten().any(|dtype| dtype.name() == said)) {
            console.note(&format!("{place}: the UNet was computed in {said}, here it is not, so details will differ"));
        }
    }
    if settings.is_of_web_ui && settings.options.steps.is_some() {
        console.note(&format!(
            "{place}: these are settings of a web UI, which weighs prompts and spaces timesteps in its own way: \
             expect a similar picture, not the same"
        ));
    }
}

/// What has no counterpart among the options here. An entry leaves this list when a flag for it is added.
fn not_followed(settings: &Settings, args: &GenerateArgs) -> Vec<String> {
    let own: Vec<String> = args.model.model.lora.iter().map(LoraChoice::label).collect();
    let missing = settings.loras.iter().filter(|lora| !own.contains(lora));
    let mut lines: Vec<String> = missing.map(|lora| format!("LoRA {lora}: --lora or --lora-dir gives one")).collect();
    if settings.vae.is_some() || settings.vae_hash.is_some() {
        let words: Vec<_> = settings.vae.iter().chain(&settings.vae_hash).cloned().collect();
        lines.push(format!("VAE: {}", words.join(", ")));
    }
    for (what, hashes) in [("LoRA", &settings.lora_hashes), ("embedding", &settings.embedding_hashes)] {
        lines.extend(hashes.iter().map(|(name, hash)| format!("{what} {name} ({hash})")));
    }
    lines.extend(settings.not_followed.iter().cloned());
    lines
}
