//! A model's configs: any texts are a model that can be scheduled, or a message.
//!
//! Parts of the input: the configs of text encoder, UNet, VAE and scheduler, model_index.json, sdshard.toml.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sdshard::{
    models::{clip::ClipSpec, spec::ModelSpec, unet::UnetSpec, vae::VaeSpec},
    scheduler::{Repairs, SchedulerFile, SchedulerKind, schedule},
};
use sdshard_fuzz::{configs, parts, refused, with_model};

/// Every solver that can be made of the file: all its numbers have to be finite.
fn run(file: &SchedulerFile) {
    for kind in SchedulerKind::all() {
        let config = match file.with_kind(kind) {
            Ok(config) => config,
            Err(error) => {
                refused(&error);
                continue;
            }
        };
        for steps in [1, 2, 7, 30] {
            match schedule(&config, steps) {
                Ok(schedule) => {
                    assert!(schedule.steps.len() >= steps && schedule.init_noise_sigma.is_finite());
                    for step in &schedule.steps {
                        let single = [step.timestep, step.input_scale, step.p, step.q, step.a, step.before, step.noise];
                        assert!(single.iter().chain(&step.b).all(|x| x.is_finite()), "{kind}, {steps}: {step:?}");
                    }
                }
                Err(error) => refused(&error),
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let parts: [_; 6] = parts(input);
    let text = |part: Option<&[u8]>| String::from_utf8_lossy(part.unwrap_or_default()).into_owned();
    let [clip, unet, vae, scheduler, ..] = parts.map(text);
    let refusals = [
        ClipSpec::from_json(&clip, "clip").err(),
        UnetSpec::from_json(&unet, "unet").err(),
        VaeSpec::from_json(&vae, "vae").err(),
    ];
    refusals.iter().flatten().for_each(refused);
    for class in
        ["PNDMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler"]
    {
        match SchedulerFile::parse(&scheduler, "scheduler", class, Repairs { steps_offset: true, ..Repairs::default() })
        {
            Ok(file) => run(&file),
            Err(error) => refused(&error),
        }
    }
    with_model(&configs(parts), |model| {
        if let Err(error) = ModelSpec::load(model) {
            refused(&error);
        }
    });
});
