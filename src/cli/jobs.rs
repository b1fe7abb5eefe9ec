//! The checked list of pictures to make, from the arguments and the prompts file; and their requests.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use sdshard::{
    backend::Precision,
    error::{Error, Result},
    models::spec::ModelSpec,
    pipeline::{
        Hashes, ImageFiles, Metadata, Model, PictureFormat,
        latents::Latents,
        options::RequestOptions,
        request::{Output, Request, Rng, Start},
    },
    prompt::LoraTag,
};

use super::{
    args::{GenerateArgs, Seed},
    from,
    names::{NameFields, Names, tell_apart},
    prompts::{self, Asked, Places, SharedTags, flag},
};

/// The number of bytes of texts from which it is checked whether they fit into a JPEG.
const LONG_TEXTS: usize = 4096;

/// The largest number of pictures of one run.
const MAX_JOBS: usize = 1_000_000;

/// The requests of the jobs, with the model's defaults filled in.
pub fn requests(
    jobs: &[Job],
    args: &GenerateArgs,
    model: &Model,
    latents: Option<&Latents>,
    images: &ImageFiles,
) -> Result<Vec<Request>> {
    let format = args.output_type.format();
    let output = if format.is_some() { Output::Image } else { Output::Latents };
    let rng = args.rng.or(args.settings.as_ref().and_then(|settings| settings.rng)).unwrap_or_default();
    // A run has many requests and few schedules, and making a schedule computes all training steps.
    let mut checked = HashSet::new();
    jobs.iter()
        .map(|job| {
            let request = job.request(&model.spec, rng, output, latents, images)?;
            let chunks = model.chunks(&request).map_err(|error| error.context(job.name()))?;
            let request = Request { chunks, ..request };
            if format == Some(PictureFormat::Jpeg) && job.has_long_texts() {
                // The longest names of types, because it is not known yet which one computes this picture.
                let dtypes = Precision::ALL;
                let hashes = Hashes::unread(&model.files, &model.spec);
                let metadata = Metadata::new(&request, model, &hashes, &dtypes)?;
                metadata.check_fits(PictureFormat::Jpeg).map_err(|e| e.context(job.name()))?;
            }
            // A solver may reject a number of steps, which should be reported before the first picture.
            if checked.insert((request.scheduler, request.steps, request.strength().to_bits())) {
                request.schedule(&model.spec).map_err(|e| e.context(job.name_of("steps")))?;
            }
            Ok(request)
        })
        .collect()
}

/// One picture to make. For options that are `None`, the model has defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The position of the prompt in the list, from 0.
    pub prompt_index: usize,
    /// The number of the picture among those of the prompt, from 0.
    pub image_index: usize,
    /// The possible names of its file in the output folder; messages show the preferred one.
    pub names: Names,
    pub file: String,
    /// The file and the line of the prompt, if it is in a file.
    pub asked_at: Option<String>,
    /// Where the options are set that are in files.
    pub places: Places,
    /// Whether the prompt has its own seed, instead of one derived from `--seed`.
    pub has_own_seed: bool,
    /// The options, with the prompt and the seed of this picture.
    pub options: RequestOptions,
}

/// All pictures of a run.
pub struct Jobs {
    /// The pictures, in order.
    pub list: Vec<Job>,
    /// The seed of the first.
    pub first_seed: u64,
    /// The LoRAs that the prompts name, which are the same ones for all.
    pub tags: Vec<LoraTag>,
}

/// All pictures. Everything that does not need the model is checked.
pub fn jobs(args: &GenerateArgs) -> Result<Jobs> {
    let flags = prompts::checked(&args.options, flag)?;
    if let Some(folder) = args.output.as_ref().and_then(|template| template.as_folder_in(&args.folder())) {
        return Err(Error::input(format!("--output {}: this is a folder", folder.display()))
            .hint(format!("--output-dir {}", folder.display())));
    }
    let first_seed = match args.seed {
        Some(Seed::Number(seed)) => seed,
        Some(Seed::Random) => RandomState::new().hash_one(()), // the keys are random numbers from the system
        None => 0,
    };
    let extension = args.output_type.extension();
    let (from, from_at) = (args.settings.as_ref().map(|settings| settings.options.clone()), from::place(args));
    let from = from.unwrap_or_default();
    let asked = prompts::asked(&args.prompts, args.prompts_file.as_deref())?;
    let (mut jobs, mut tags) = (Vec::new(), SharedTags::default());
    for (prompt_index, asked) in asked.enumerate() {
        let asked = asked.or(&flags, None);
        // What --from says of the pictures that its own was drawn with means nothing without such pictures.
        let mut from = from.clone();
        if asked.options.image.is_none() {
            (from.strength, from.paste_original) = (None, None);
        }
        if asked.options.control_image.len() != from.control_scale.len() {
            (from.control_scale, from.control_start, from.control_end) = (Vec::new(), Vec::new(), Vec::new());
        }
        let mut asked = asked.or(&from, from_at.as_deref());
        tags.take(&mut asked, from_at.as_deref())?;
        let Asked { options, at, places } = asked;
        let prompt = options.prompt.as_deref().unwrap_or_default();
        let images = options.num_images.unwrap_or(1);
        if jobs.len() + images > MAX_JOBS {
            return Err(Error::input(format!("more than {MAX_JOBS} pictures in one run")).hint("several runs"));
        }
        for image_index in 0..images {
            let seed = match options.seed {
                Some(own) => own.wrapping_add(image_index as u64),
                None => first_seed.wrapping_add(jobs.len() as u64),
            };
            let place = NameFields { prompt_index, image_index, images, prompt, seed };
            let names = match &args.output {
                Some(template) => template.names(&place, extension)?,
                None => Names::by_place(&place, extension),
            };
            jobs.push(Job {
                prompt_index,
                image_index,
                file: names.to_string(),
                names,
                asked_at: at.clone(),
                places: places.clone(),
                has_own_seed: options.seed.is_some(),
                options: RequestOptions { seed: Some(seed), ..options.clone() },
            });
        }
    }
    if args.output.is_some() {
        tell_apart(jobs.iter_mut().map(|job| &mut job.names));
        jobs.iter_mut().for_each(|job| job.file = job.names.to_string());
    }
    match (jobs.is_empty(), &args.prompts_file) {
        (false, _) => Ok(Jobs { list: jobs, first_seed, tags: tags.into_list() }),
        (true, Some(path)) => Err(Error::input(format!("there is no prompt in {}", path.display()))),
        (true, None) => {
            Err(Error::input("there is no prompt").hint("sdshard \"a red fox\"; `sdshard --help` shows more"))
        }
    }
}

impl Job {
    /// The prompt.
    pub fn prompt(&self) -> &str {
        self.options.prompt.as_deref().unwrap_or_default()
    }

    /// All its texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        prompts::texts(&self.options)
    }

    /// The seed of this picture.
    pub fn seed(&self) -> u64 {
        self.options.seed.unwrap_or_default()
    }

    /// The picture's name in messages.
    fn name(&self) -> &str {
        self.asked_at.as_deref().unwrap_or(&self.file)
    }

    /// The name of one of its fields in messages: the flag, or the field and its place in a file.
    fn name_of(&self, field: &str) -> String {
        self.places.name_of(field)
    }

    /// Whether the texts may be too long for the metadata of a JPEG.
    fn has_long_texts(&self) -> bool {
        self.texts().map(str::len).sum::<usize>() > LONG_TEXTS
    }

    /// The request, with the model's defaults for options that are not set.
    pub fn request(
        &self,
        spec: &ModelSpec,
        rng: Rng,
        output: Output,
        latents: Option<&Latents>,
        images: &ImageFiles,
    ) -> Result<Request> {
        let request = self.options.request(spec, images, |field| self.name_of(field))?;
        let Some(latents) = latents else { return Ok(Request { rng, output, ..request }) };
        if request.start_image().is_some() {
            return Err(Error::input("--latents: a picture starts from given noise, or from another picture")
                .found(format!("{} and {}", flag("latents"), self.name_of("image"))));
        }
        let (width, height) = (latents.width * spec.latents.scale, latents.height * spec.latents.scale);
        if (width, height) != (request.width, request.height) {
            return Err(Error::input("--latents: they are for another size")
                .found(format!("{}x{} wanted", request.width, request.height))
                .hint(format!("--width {width} --height {height}")));
        }
        let start = Start::Latents(Arc::from(latents.values.as_slice()));
        let request = Request { rng, output, start, ..request };
        request.check(spec).map_err(|e| e.context(self.name()))?;
        Ok(request)
    }
}

/// Takes back what the settings of a web UI say without an effect on this model: web UIs ignore "Clip skip" for SDXL.
pub fn adapt_to(jobs: &mut [Job], args: &GenerateArgs, model: &Model) {
    let is_of_web_ui = args.settings.as_ref().is_some_and(|settings| settings.is_of_web_ui);
    if is_of_web_ui && model.spec.sdxl.is_some() && args.options.clip_skip.is_none() {
        jobs.iter_mut().for_each(|job| job.options.clip_skip = None);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sdshard::weights::ModelFiles;

    use super::*;
    use crate::cli::args::Cli;

    fn args(arguments: &[&str]) -> GenerateArgs {
        Cli::try_parse_from([&["sdshard"], arguments].concat()).unwrap_or_else(|error| panic!("{error}")).generate
    }

    fn refused(arguments: &[&str]) -> String {
        let error = jobs(&args(arguments)).err().expect("it is refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    /// The built-in model's configs, with a size of 64x64.
    fn spec() -> ModelSpec {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji");
        let mut spec = ModelSpec::load(&ModelFiles::folder(folder).unwrap()).unwrap();
        (spec.defaults.width, spec.defaults.height) = (64, 64);
        spec
    }

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
        let Jobs { list: jobs, first_seed: first, .. } = jobs(&args).unwrap();
        assert_eq!(first, u64::MAX - 1);
        let list: Vec<_> = jobs.iter().map(|job| (job.file.as_str(), job.seed())).collect();
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
        assert!(jobs.iter().all(|job| job.options.steps == Some(3) && job.options.width.is_none()));
    }

    #[test]
    fn the_seed_is_0_unless_it_is_said() {
        assert_eq!(jobs(&args(&["a"])).unwrap().first_seed, 0);
        let random = || jobs(&args(&["a", "--seed", "random"])).unwrap().first_seed;
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
        let Jobs { list: jobs, .. } = jobs(&args(&["a fox", "--width", "72", "--steps", "3"])).unwrap();
        let request = jobs[0].request(&spec(), Rng::TorchCpu, Output::Image, None, &ImageFiles::default()).unwrap();
        assert_eq!((request.width, request.height, request.steps), (72, 64, 3));
        assert_eq!((request.guidance_scale, request.start), (2.0, Start::Noise));

        let latents = Latents { channels: 4, height: 8, width: 9, values: vec![1.0; 288] };
        let request =
            jobs[0].request(&spec(), Rng::TorchCpu, Output::Image, Some(&latents), &ImageFiles::default()).unwrap();
        assert!(matches!(request.start, Start::Latents(values) if values.len() == 288));
        let latents = Latents { channels: 4, height: 8, width: 8, values: vec![1.0; 256] };
        let error =
            jobs[0].request(&spec(), Rng::TorchCpu, Output::Image, Some(&latents), &ImageFiles::default()).unwrap_err();
        assert!(error.to_string().contains("--width 64 --height 64"), "{error}");
    }

    #[test]
    fn sizes_are_multiples_of_the_models_scale() {
        for (width, hint) in [("70", "64 or 72"), ("3", "try:   8")] {
            let Jobs { list: jobs, .. } = jobs(&args(&["a fox", "--width", width])).unwrap();
            let error =
                jobs[0].request(&spec(), Rng::TorchCpu, Output::Image, None, &ImageFiles::default()).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
