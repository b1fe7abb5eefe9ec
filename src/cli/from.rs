//! `--from`: draws again what a file says, and tells what of it cannot be followed.

use std::collections::HashSet;

use sdshard::{
    error::{Error, Result},
    pipeline::{Hashes, Latents, Model, Settings, hashes::Named, options::RequestOptions, request::Request},
    planner::plan::Plan,
    prompt::LoraTag,
    weights::lora::LoraChoice,
};

use super::{
    args::{GenerateArgs, Seed},
    folders,
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
    let mut said = RequestOptions {
        prompt: settings.options.prompt.take(),
        prompt_2: settings.options.prompt_2.clone().filter(|_| args.options.prompt_2.is_none()),
        prompt_syntax: args.options.prompt_syntax.or(settings.options.prompt_syntax),
        ..RequestOptions::default()
    };
    let seed = settings.options.seed.take();
    if args.prompts.is_empty() && args.prompts_file.is_none() {
        let tags = prompts::take_tags(&mut said, str::to_owned).map_err(|error| error.context(place))?;
        settings.loras.extend(tags.iter().map(LoraTag::arguments));
        args.prompts.extend(said.prompt);
        settings.options.prompt_2 = said.prompt_2;
    }
    let model = &mut args.model.model;
    for tag in settings.loras.iter().filter_map(|label| LoraTag::parse(label).ok()) {
        // Flags take precedence, and what is not found is told later.
        if model.lora.iter().all(|own| own.name() != tag.name)
            && let Ok(found) = folders::lora(&tag, model.lora_dir.as_deref(), &[])
        {
            model.lora.push(found);
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

/// Prints what of the settings is not followed by the `requests` of a `model`.
///
/// # Errors
/// If a file of the model cannot be read.
pub fn tell(
    args: &GenerateArgs,
    model: &Model,
    latents: Option<&Latents>,
    requests: &[Request],
    plan: &Plan,
    console: &Console,
) -> Result<()> {
    let (Some(settings), Some(place), Some(request)) = (&args.settings, place(args), requests.first()) else {
        return Ok(());
    };
    let hashes = model.hashes()?;
    let embeddings = model.embeddings_of(request)?.into_iter().map(|index| hashes.embeddings[index].clone()).collect();
    let own = Hashes { embeddings, ..(*hashes).clone() };
    for line in other_files(settings, model.files.loras().0, &own).iter().chain(&settings.not_followed) {
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
    let pixels = request.controls.iter().map(|control| control.image.digest());
    if !request.controls.is_empty() && !settings.control_pixels.is_empty() && pixels.ne(settings.control_pixels.clone())
    {
        console.note(&format!("{place}: its ControlNets read other pictures than those of --control-image"));
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
    Ok(())
}

/// The files that a picture was drawn with and this run does not have: a line for each, with the flag that gives one.
fn other_files(settings: &Settings, loras: &[LoraChoice], own: &Hashes) -> Vec<String> {
    let mut lines = Vec::new();
    for said in &settings.loras {
        let tag = LoraTag::parse(said).ok();
        let given = loras.iter().find(|own| tag.as_ref().is_some_and(|tag| tag.name == own.name()));
        match (given, &tag) {
            (None, _) => lines.push(format!("LoRA {said}: --lora or --lora-dir gives one")),
            (Some(given), Some(tag)) => {
                let weights = (tag.unet_weight as f32, tag.text_encoder_weight as f32);
                if weights != (given.weight, given.text_encoder_weight) {
                    lines.push(format!("LoRA {said}: this run has {}", given.label()));
                }
            }
            (Some(_), None) => {}
        }
    }
    let mut compare = |kind: &str, (name, hash): (&str, &str), own: &[Named], flags: &str| {
        let digits = if hash.is_empty() { String::new() } else { format!(" ({hash})") };
        match own.iter().find(|(own, _)| is_same_name(own, name)) {
            None => lines.push(format!("{kind} {name}{digits}: {flags}")),
            // Hashes of other lengths are of another kind.
            Some((_, own)) if hash.len() == own.len() && !hash.eq_ignore_ascii_case(own) => {
                lines.push(format!("{kind} {name}{digits}: this run has another file of this name ({own})"));
            }
            Some(_) => {}
        }
    };
    for (name, hash) in &settings.lora_hashes {
        // A LoRA that is missing was named above.
        let is_told =
            settings.loras.iter().any(|said| said.rsplit_once(':').is_some_and(|(said, _)| is_same_name(said, name)));
        if !is_told || own.loras.iter().any(|(own, _)| is_same_name(own, name)) {
            compare("LoRA", (name, hash), &own.loras, "--lora or --lora-dir gives one");
        }
    }
    for (name, hash) in &settings.embedding_hashes {
        compare("embedding", (name, hash), &own.embeddings, "--embedding or --embedding-dir gives one");
    }
    for said in &settings.controlnets {
        let (name, hash) = said.strip_suffix(']').and_then(|said| said.split_once(" [")).unwrap_or((said, ""));
        compare("ControlNet", (name, hash), &own.controlnets, "--controlnet FILE --control-image FILE");
    }
    if settings.vae.is_some() || settings.vae_hash.is_some() {
        let (name, hash) =
            (settings.vae.as_deref().unwrap_or_default(), settings.vae_hash.as_deref().unwrap_or_default());
        // One that is the same is so by any name.
        if own.vae.as_ref().is_none_or(|(_, own)| !hash.eq_ignore_ascii_case(own)) {
            compare("VAE", (name, hash), own.vae.as_slice(), "--vae gives one");
        }
    }
    // Settings may have a file in two lists.
    let mut told = HashSet::new();
    lines.retain(|line| told.insert(line.clone()));
    lines
}

/// Whether two files have one name: web UIs leave out what their lists are divided by, and extensions of VAEs differ.
fn is_same_name(own: &str, said: &str) -> bool {
    let plain = |name: &str| {
        let stem = name.strip_suffix(".safetensors").unwrap_or(name);
        stem.replace([':', ','], "").to_lowercase()
    };
    plain(own) == plain(said)
}
