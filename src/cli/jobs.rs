//! The list of pictures to make, from the arguments and the prompts file, checked; and each as a request to a model.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use sdshard::{
    error::{Error, Result},
    models::defaults::Defaults,
    pipeline::{
        Model,
        latents::{self, Latents},
        request::{Output, Request, Rng, Start},
    },
    scheduler::{SchedulerKind, schedule},
};

use super::{
    args::{GenerateArgs, OutputType, Seed},
    names::{NameFields, Names, tell_apart},
    prompts,
};

/// The most pictures of one run.
const MAX_JOBS: usize = 1_000_000;

/// The jobs with the model's defaults filled in.
pub fn requests(jobs: &[Job], args: &GenerateArgs, model: &Model, latents: Option<&Latents>) -> Result<Vec<Request>> {
    let (defaults, scale) = (&model.spec.defaults, model.spec.latents.scale);
    let output = match args.output_type {
        OutputType::Png => Output::Image,
        OutputType::Latent => Output::Latents,
    };
    // A run has many requests and few schedules, each of which goes through all training steps.
    let mut checked = HashSet::new();
    jobs.iter()
        .map(|job| {
            let scheduler = job.scheduler.as_deref().map(str::parse).transpose()?;
            let request = job.request(defaults, scale, scheduler, args.rng, output, latents)?;
            request.check(&model.spec).map_err(|e| e.context(job.name()))?;
            // A solver may refuse a number of steps: better now than after the first pictures.
            if checked.insert((request.scheduler, request.steps)) {
                let config = model.spec.scheduler_for(request.scheduler)?;
                schedule(&config, request.steps).map_err(|e| e.context(job.name_of("steps")))?;
            }
            Ok(request)
        })
        .collect()
}

/// One picture to make. What is `None` is the model's to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Place of the prompt in the list, from 0.
    pub prompt_index: usize,
    /// Which of the prompt's pictures, from 0.
    pub image_index: usize,
    /// Names that its file may have in the output folder, and the preferred one for messages.
    pub names: Names,
    pub file: String,
    /// Where it is asked for, if in a file: the file and the line.
    pub asked_at: Option<String>,
    /// Which of the fields that may be wrong for a model are said there, and not by flags.
    pub asked_fields: Vec<&'static str>,
    /// What to draw.
    pub prompt: String,
    /// What to keep away from.
    pub negative_prompt: String,
    /// Seed of this picture.
    pub seed: u64,
    /// The seed comes from the request itself and not from `--seed`.
    pub has_own_seed: bool,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Strength of guidance.
    pub guidance_scale: Option<f32>,
    /// The solver's name.
    pub scheduler: Option<String>,
    /// Pixels.
    pub width: Option<usize>,
    /// Pixels.
    pub height: Option<usize>,
}

/// All pictures in order, and the seed of the first. Everything is checked that can be without the model.
pub fn jobs(args: &GenerateArgs) -> Result<(Vec<Job>, u64)> {
    args.options.check(|field| format!("--{}", field.replace('_', "-")))?;
    if let Some(folder) = args.output.as_ref().and_then(|template| template.as_folder_in(&args.folder())) {
        return Err(Error::input(format!("--output {}: this is a folder", folder.display()))
            .hint(format!("--output-dir {}", folder.display())));
    }
    let first_seed = match args.seed {
        Some(Seed::Number(seed)) => seed,
        Some(Seed::Random) => RandomState::new().hash_one(()), // keys from the system's own randomness
        None => 0,
    };
    let extension = match args.output_type {
        OutputType::Png => "png",
        OutputType::Latent => latents::EXTENSION,
    };
    let asked = prompts::asked(&args.prompts, args.prompts_file.as_deref())?;
    let mut jobs = Vec::new();
    for (prompt_index, options) in asked.enumerate() {
        let said = [
            ("width", options.width.is_some()),
            ("height", options.height.is_some()),
            ("steps", options.steps.is_some() || options.scheduler.is_some()),
        ];
        let asked_fields: Vec<_> = said.into_iter().filter(|(_, said)| *said).map(|(field, _)| field).collect();
        let options = options.or(&args.options);
        let prompt = options.prompt.unwrap_or_default();
        let images = options.num_images.unwrap_or(1);
        if jobs.len() + images > MAX_JOBS {
            return Err(Error::input(format!("more than {MAX_JOBS} pictures in one run")).hint("several runs"));
        }
        for image_index in 0..images {
            let seed = match options.seed {
                Some(own) => own.wrapping_add(image_index as u64),
                None => first_seed.wrapping_add(jobs.len() as u64),
            };
            let place = NameFields { prompt_index, image_index, images, prompt: &prompt, seed };
            let names = match &args.output {
                Some(template) => template.names(&place, extension)?,
                None => Names::by_place(&place, extension),
            };
            jobs.push(Job {
                prompt_index,
                image_index,
                file: names.to_string(),
                names,
                asked_at: options.at.clone(),
                asked_fields: asked_fields.clone(),
                prompt: prompt.clone(),
                negative_prompt: options.negative_prompt.clone().unwrap_or_default(),
                seed,
                has_own_seed: options.seed.is_some(),
                steps: options.steps,
                guidance_scale: options.guidance_scale,
                scheduler: options.scheduler.clone(),
                width: options.width,
                height: options.height,
            });
        }
    }
    if args.output.is_some() {
        tell_apart(jobs.iter_mut().map(|job| &mut job.names));
        jobs.iter_mut().for_each(|job| job.file = job.names.to_string());
    }
    match (jobs.is_empty(), &args.prompts_file) {
        (false, _) => Ok((jobs, first_seed)),
        (true, Some(path)) => Err(Error::input(format!("there is no prompt in {}", path.display()))),
        (true, None) => {
            Err(Error::input("there is no prompt").hint("sdshard \"a red fox\"; `sdshard --help` shows more"))
        }
    }
}

impl Job {
    /// What messages call it.
    fn name(&self) -> &str {
        self.asked_at.as_deref().unwrap_or(&self.file)
    }

    /// What messages call one of its fields: the flag, or the field at its place in a file.
    fn name_of(&self, field: &'static str) -> String {
        match &self.asked_at {
            Some(at) if self.asked_fields.contains(&field) => format!("{at}: {field}"),
            _ => format!("--{field}"),
        }
    }

    /// The request, with the model's defaults for what is not said. `scale` is the model's pixels per latent, and
    /// `scheduler` the job's own.
    pub fn request(
        &self,
        defaults: &Defaults,
        scale: usize,
        scheduler: Option<SchedulerKind>,
        rng: Rng,
        output: Output,
        latents: Option<&Latents>,
    ) -> Result<Request> {
        let (width, height) = (self.width.unwrap_or(defaults.width), self.height.unwrap_or(defaults.height));
        for (name, pixels) in [("width", width), ("height", height)] {
            if pixels == 0 || !pixels.is_multiple_of(scale) {
                let below = pixels - pixels % scale;
                let near = if below == 0 { scale.to_string() } else { format!("{below} or {}", below + scale) };
                return Err(Error::input(format!("{}: has to be a multiple of {scale}", self.name_of(name)))
                    .found(pixels.to_string())
                    .hint(near));
            }
        }
        if let Some(latents) = latents
            && (latents.width * scale, latents.height * scale) != (width, height)
        {
            return Err(Error::input("--latents: they are for another size")
                .found(format!("{width}x{height} wanted"))
                .hint(format!("--width {} --height {}", latents.width * scale, latents.height * scale)));
        }
        Ok(Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            seed: self.seed,
            steps: self.steps.unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            scheduler: scheduler.or(defaults.scheduler),
            width,
            height,
            rng,
            start: latents.map_or(Start::Noise, |latents| Start::Latents(Arc::from(latents.values.as_slice()))),
            output,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Cli;

    fn args(arguments: &[&str]) -> GenerateArgs {
        Cli::try_parse_from([&["sdshard"], arguments].concat()).unwrap_or_else(|error| panic!("{error}")).generate
    }

    fn refused(arguments: &[&str]) -> String {
        let error = jobs(&args(arguments)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    const DEFAULTS: Defaults = Defaults { steps: 50, guidance_scale: 7.5, width: 64, height: 64, scheduler: None };

    #[test]
    fn seeds_count_over_the_whole_list_or_within_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.jsonl");
        std::fs::write(
            &file,
            "{\"prompt\": \"c\", \"seed\": 100, \"num_images\": 2}\n{\"prompt\": \"d\", \"num_images\": 1}\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let seed = (u64::MAX - 1).to_string();
        let args = args(&["a", "b", "--num-images", "2", "--seed", &seed, "--prompts-file", file, "--steps", "3"]);
        let (jobs, first) = jobs(&args).unwrap();
        assert_eq!(first, u64::MAX - 1);
        let list: Vec<_> = jobs.iter().map(|job| (job.file.as_str(), job.seed)).collect();
        assert_eq!(
            list,
            [
                ("00000_00-a.png", u64::MAX - 1),
                ("00000_01-a.png", u64::MAX),
                ("00001_00-b.png", 0),
                ("00001_01-b.png", 1),
                ("00002_00-c.png", 100),
                ("00002_01-c.png", 101),
                ("00003-d.png", 4),
            ]
        );
        assert!(jobs.iter().all(|job| job.steps == Some(3) && job.width.is_none()));
    }

    #[test]
    fn the_seed_is_0_unless_it_is_said() {
        assert_eq!(jobs(&args(&["a"])).unwrap().1, 0);
        let random = || jobs(&args(&["a", "--seed", "random"])).unwrap().1;
        assert_ne!(random(), random());
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        for (arguments, says) in [
            (&[][..], "there is no prompt"),
            (&["a", "--steps", "0"], "--steps: at least 1"),
            (&["a", "--num-images", "0"], "--num-images: at least 1"),
            (&["a", "--num-images", "1000000000"], "--num-images: at most 100000"),
            (&["a", "--width", "8200"], "--width: at most 8192"),
            (&["a", "--guidance-scale", "inf"], "--guidance-scale: a finite number"),
            (&["a", "--guidance-scale", "NaN"], "--guidance-scale: a finite number"),
        ] {
            let message = refused(arguments);
            assert!(message.contains(says), "wanted: {says}\n{message}");
        }
    }

    #[test]
    fn the_model_fills_in_what_is_not_said() {
        let (jobs, _) = jobs(&args(&["a fox", "--width", "72", "--steps", "3"])).unwrap();
        let request = jobs[0].request(&DEFAULTS, 8, None, Rng::TorchCpu, Output::Image, None).unwrap();
        assert_eq!((request.width, request.height, request.steps), (72, 64, 3));
        assert_eq!((request.guidance_scale, request.start), (7.5, Start::Noise));

        let latents = Latents { channels: 4, height: 8, width: 9, values: vec![1.0; 288] };
        let request = jobs[0].request(&DEFAULTS, 8, None, Rng::TorchCpu, Output::Image, Some(&latents)).unwrap();
        assert!(matches!(request.start, Start::Latents(values) if values.len() == 288));
        let latents = Latents { channels: 4, height: 8, width: 8, values: vec![1.0; 256] };
        let error = jobs[0].request(&DEFAULTS, 8, None, Rng::TorchCpu, Output::Image, Some(&latents)).unwrap_err();
        assert!(error.to_string().contains("--width 64 --height 64"), "{error}");
    }

    #[test]
    fn sizes_are_multiples_of_the_models_scale() {
        for (width, hint) in [("70", "64 or 72"), ("3", "try:   8")] {
            let (jobs, _) = jobs(&args(&["a fox", "--width", width])).unwrap();
            let error = jobs[0].request(&DEFAULTS, 8, None, Rng::TorchCpu, Output::Image, None).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
