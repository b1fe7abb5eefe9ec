//! Names from other tools: flags, samplers, devices and commands of diffusers, web UIs and other programs, with their
//! equivalents here, or the message that there is none.

use std::{ffi::OsString, str::FromStr};

use sdshard::{
    backend::{DeviceId, DeviceKind},
    error::Error,
    scheduler::{SchedulerKind, Sigmas, Solver},
};

/// Commands of other tools. As the only word they are probably not prompts.
const COMMANDS: [&str; 8] = ["help", "version", "list", "run", "generate", "txt2img", "img2img", "benchmark"];

/// Flags that sdshard does not have: their names in other tools, the message, and what to try.
const ABSENT: &[(&[&str], &str, &str)] = &[
    (
        &["-n"],
        "means a number of pictures in some tools and the negative prompt in others",
        "--num-images N or --negative-prompt TEXT",
    ),
    (&["-s"], "means the seed in some tools and the steps in others", "--seed N or --steps N"),
    (
        &["--loras", "--lora-path", "--lora-weights", "--lora-scale"],
        "sdshard takes each LoRA by its file",
        "--lora FILE, or --lora FILE:WEIGHT",
    ),
    (
        &["--inpaint", "--inpainting", "--outpaint"],
        "sdshard draws anew what a mask shows",
        "--image FILE --mask FILE, a mask of the picture's size that is white where to draw",
    ),
    (
        &["--mask-blur", "--inpaint-full-res", "--padding-mask-crop", "--only-masked"],
        "sdshard inpaints the whole picture, with the mask as it is",
        "--paste-original puts the picture's own pixels back where the mask is black",
    ),
    (
        &["--ip-adapter", "--ip-adapter-image", "--t2i-adapter"],
        "sdshard has no adapters that read pictures but ControlNets",
        "--controlnet FILE --control-image FILE, or --image FILE",
    ),
    (
        &["--controlnet-preprocessor", "--preprocessor", "--canny", "--guess-mode"],
        "sdshard finds no edges, depth or poses in pictures, and ControlNets run for both prompts",
        "--control-image FILE, a picture in the form that the ControlNet was trained on",
    ),
    (
        &["--upscale", "--upscaler", "--upscale-model", "--upscale-repeats", "--hires", "--hires-fix", "--hr"],
        "sdshard makes no second pass in a larger size by itself",
        "--image PICTURE --width W --height H --strength 0.5 draws a finished picture anew in a larger size",
    ),
    (
        &["--refiner", "--refiner-model", "--refiner-switch-at"],
        "sdshard does not change the model in the middle of a picture",
        "--model REFINER --image PICTURE --strength 0.3 draws over a finished picture",
    ),
    (
        &["--embeddings", "--textual-inversion"],
        "sdshard takes each textual inversion by its file",
        "--embedding FILE, or --embedding FILE:TOKEN",
    ),
    (
        &["--diffusion-model", "--clip-l", "--clip-g", "--t5xxl"],
        "sdshard reads UNet and text encoders from the model's own file or folder",
        "--model FOLDER, FILE.safetensors or ORG/NAME",
    ),
    (
        &["--eta"],
        "sdshard's ddim and tcd have no noise of their own (eta is 0)",
        "--scheduler euler-ancestral has fresh noise",
    ),
    (
        &["--batch-size", "-b"],
        "the device map sets how many pictures go through the UNet at once",
        "`batch = 4` in the map of --device-map; --num-images N for how many there are",
    ),
    (&["--threads", "--num-threads", "-t"], "the number of cores is a variable", "SDSHARD_THREADS=4 sdshard ..."),
    (
        &["--lowvram", "--medvram", "--offload-to-cpu", "--cpu-offload", "--enable-model-cpu-offload"],
        "the device map sets where weights are kept",
        "--device-map low-memory.toml",
    ),
    (
        &["--tensor-split", "--split-mode", "--n-gpu-layers", "--gpu-layers", "--max-memory"],
        "the device map sets what runs where",
        "--device-map FILE; --device cuda:0,cuda:1 for the devices alone",
    ),
    (&["--gpu", "--gpus", "--gpu-id", "--device-id", "--cuda", "--cpu"], "devices go by names", "--device cuda:0"),
    (
        &["--half", "--fp16", "--f16", "--bf16", "--fp32", "--no-half", "--precision"],
        "the type of weights is --dtype",
        "--dtype f16, bf16 or f32; --variant fp16 for the files of that variant",
    ),
    (
        &["--xformers", "--flash-attn", "--fa", "--attention-slicing", "--enable-attention-slicing"],
        "attention never holds its score matrix here, so there is nothing to switch on",
        "leave it out",
    ),
    (&["--safety-checker", "--disable-safety-checker", "--nsfw"], "sdshard has no safety checker", "leave it out"),
    (
        &["--serve", "--server", "--listen", "--port", "--host", "--webui", "--share"],
        "sdshard is not a server yet",
        "--json",
    ),
    (
        &["--format", "--output-format", "--jpg", "--jpeg", "--webp", "--png"],
        "the format of pictures is --output-type",
        "--output-type jpeg, webp or png",
    ),
];

/// Samplers of other tools that exist here: their names in lower case without spaces, `-` and `_`, and without the
/// spacing of noise levels.
const SAMPLERS: &[(&str, Solver)] = &[
    ("plms", Solver::Pndm),
    ("keuler", Solver::Euler),
    ("eulera", Solver::EulerAncestral),
    ("keulera", Solver::EulerAncestral),
    ("keulerancestral", Solver::EulerAncestral),
    ("eulerancestraldiscrete", Solver::EulerAncestral),
    ("eulerdiscrete", Solver::Euler),
    ("kheun", Solver::Heun),
    ("heundiscrete", Solver::Heun),
    ("dpmpp2m", Solver::DpmSolverMultistep),
    ("kdpmpp2m", Solver::DpmSolverMultistep),
    ("dpmsolver++", Solver::DpmSolverMultistep),
    ("dpmsolvermultistep", Solver::DpmSolverMultistep),
    ("dpmpp2msde", Solver::DpmSolverMultistepSde),
    ("kdpmpp2msde", Solver::DpmSolverMultistepSde),
    ("dpmsolversinglestep", Solver::DpmSolverSinglestep),
    ("dpmppsde", Solver::DpmSolverSinglestepSde),
    ("kdpmppsde", Solver::DpmSolverSinglestepSde),
    ("unipcmultistep", Solver::UniPc),
    ("unipcbh2", Solver::UniPc),
];

/// Samplers of other tools that do not exist here.
const ABSENT_SAMPLERS: &[&str] = &[
    "ddpm",
    "deis",
    "dpm2",
    "dpm2a",
    "dpmadaptive",
    "dpmfast",
    "dpmpp2sa",
    "dpm++2sa",
    "dpmpp2sancestral",
    "dpmpp2mv2",
    "dpm++2mv2",
    "dpmpp2msdeheun",
    "dpm++2msdeheun",
    "dpmpp3msde",
    "dpm++3msde",
    "dpmsolversde",
    "er_sde",
    "ipndm",
    "ipndmv",
    "kdpm2",
    "kdpm2ancestral",
    "kdpm2a",
    "lms",
    "klms",
    "restart",
];

/// Spacings of noise levels that other tools select separately from the sampler.
const SPACINGS: &[&str] =
    &["karras", "exponential", "polyexponential", "discrete", "normal", "simple", "sgmuniform", "beta", "automatic"];

/// What web UIs call trailing timesteps.
const SGM_UNIFORM: (&str, Sigmas) = ("sgm-uniform", Sigmas::Trailing);

/// Finds a sampler by its name here or in other tools.
pub fn scheduler(name: &str) -> Result<SchedulerKind, String> {
    if let Ok(kind) = SchedulerKind::from_str(name) {
        return Ok(kind);
    }
    let plain = |name: &str| -> String {
        let kept = name.chars().filter(|c| !matches!(c, ' ' | '-' | '_'));
        let lower = kept.flat_map(char::to_lowercase).collect::<String>();
        lower.strip_suffix("scheduler").unwrap_or(&lower).to_string()
    };
    let word = plain(name);
    let known = Solver::ALL.map(|solver| (plain(solver.name()), solver));
    let elsewhere = SAMPLERS.iter().map(|(name, solver)| (name.to_string(), *solver));
    let solvers: Vec<(String, Solver)> = known.into_iter().chain(elsewhere).collect();
    let with_suffix = |(name, solver): &(String, Solver)| {
        let (name, solver) = (name.clone(), *solver);
        let all = Sigmas::ALL.map(|sigmas| (sigmas.suffix(), sigmas)).into_iter().chain([SGM_UNIFORM]);
        all.map(move |(suffix, sigmas)| (name.clone() + &plain(suffix), solver, sigmas))
    };
    let all: Vec<_> = solvers.iter().flat_map(with_suffix).collect();
    let names = SchedulerKind::names();
    if let Some((_, solver, sigmas)) = all.iter().find(|(name, ..)| *name == word) {
        return SchedulerKind::new(*solver, *sigmas)
            .ok_or_else(|| format!("{} has no such spacing of noise levels: one of {names}", solver.name()));
    }
    if SPACINGS.contains(&word.as_str()) {
        return Err(format!(
            "\"{name}\" is a spacing of noise levels; it stands behind a sampler, as in dpm++2m-karras: one of {names}"
        ));
    }
    if ABSENT_SAMPLERS.iter().any(|absent| plain(absent) == word) {
        return Err(format!("\"{name}\" is a sampler that sdshard does not have yet: one of {names}"));
    }
    let near = |(name, solver, sigmas): &(String, Solver, Sigmas)| {
        Some((strsim::damerau_levenshtein(name, &word), SchedulerKind::new(*solver, *sigmas)?.to_string()))
    };
    Err(match all.iter().filter_map(near).min().filter(|(distance, _)| *distance <= 2) {
        Some((_, near)) => format!("no such sampler, did you mean '{near}'? One of {names}"),
        None => format!("one of {names}"),
    })
}

/// Parses a device of `--device`; `cuda` alone is the first one, as in PyTorch.
pub fn device(name: &str) -> Result<DeviceId, String> {
    match name {
        "cuda" => return Ok(DeviceId::new(DeviceKind::Cuda, 0)),
        "wgpu" => return Ok(DeviceId::new(DeviceKind::Wgpu, 0)),
        _ => {}
    }
    name.parse().map_err(|_: Error| {
        let any_gpu = match name.split(':').next() {
            Some("gpu" | "mps" | "metal" | "vulkan" | "rocm" | "hip" | "xpu" | "dx12" | "directml") => {
                "; \"wgpu:0\" is any GPU through Vulkan, Metal or Direct3D 12"
            }
            _ => "",
        };
        format!(
            "a device is \"cpu\", \"cpu:N\", \"cuda:N\" or \"wgpu:N\", N counted from 0; several with commas{any_gpu}"
        )
    })
}

/// Parses the width and the height in `512x768`.
pub fn size(text: &str) -> Result<(usize, usize), String> {
    let sides =
        text.split_once(['x', 'X', '*']).and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.ok_or_else(|| "width and height in pixels, as 512x768".to_string())
}

/// The error for a flag of other tools that sdshard does not have.
pub fn absent(flag: &str) -> Option<Error> {
    let (_, what, hint) = ABSENT.iter().find(|(flags, ..)| flags.contains(&flag))?;
    Some(Error::input(format!("{flag}: {what}")).hint(*hint))
}

/// Replaces `_` by `-` in the names of flags, because Python programs use it: `--num_inference_steps`.
pub fn with_hyphens(arguments: Vec<OsString>) -> Vec<OsString> {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let hyphens = |(index, argument): (usize, OsString)| match argument.to_str() {
        Some(text) if index < end && text.starts_with("--") && text.contains('_') => {
            let (flag, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            (flag.replace('_', "-") + value).into()
        }
        _ => argument,
    };
    arguments.into_iter().enumerate().map(hyphens).collect()
}

/// The subcommand, or command of another tool, that a single word equals or resembles.
pub fn command<'a>(word: &str, subcommands: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    if let Some(known) = COMMANDS.into_iter().find(|command| *command == word) {
        return Some(known);
    }
    let near = |command: &&str| strsim::damerau_levenshtein(command, &word) <= command.len() / 4;
    subcommands.into_iter().find(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_can_be_named_as_in_other_tools() {
        for (names, known) in [
            (
                &["euler_a", "Euler a", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"][..],
                "euler-ancestral",
            ),
            (&["euler", "Euler", "k_euler", "EulerDiscreteScheduler"], "euler"),
            (&["dpmpp_2m", "DPM++ 2M", "dpm++2m", "DPMSolverMultistepScheduler", "k_dpmpp_2m"], "dpm++2m"),
            (&["dpmpp_2m_karras", "DPM++ 2M Karras", "dpm++_2m_karras"], "dpm++2m-karras"),
            (&["DPM++ 2M SDE", "dpmpp_2m_sde"], "dpm++2m-sde"),
            (&["DPM++ 2M SDE Karras"], "dpm++2m-sde-karras"),
            (&["DPM++ 2M SDE Exponential"], "dpm++2m-sde-exponential"),
            (&["DPM++ SDE", "dpmpp_sde"], "dpm++sde"),
            (&["DPM++ SDE Karras"], "dpm++sde-karras"),
            (&["DPMSolverSinglestepScheduler"], "dpm++2s"),
            (&["Heun", "heun", "HeunDiscreteScheduler"], "heun"),
            (&["Euler Beta", "euler_beta"], "euler-beta"),
            (&["Euler SGM Uniform", "euler_sgm_uniform", "euler_trailing"], "euler-trailing"),
            (&["UniPC", "uni_pc", "UniPCMultistepScheduler"], "unipc"),
            (&["LCM", "LCMScheduler"], "lcm"),
            (&["TCD", "TCDScheduler"], "tcd"),
            (&["plms", "PLMS", "PNDMScheduler", "PNDM"], "pndm"),
            (&["DDIM", "ddim", "DDIMScheduler"], "ddim"),
        ] {
            for name in names {
                assert_eq!(scheduler(name).map(|kind| kind.to_string()).as_deref(), Ok(known), "{name}");
            }
        }
        for (name, says) in [
            ("dpm_2", "a sampler that sdshard does not have yet: one of pndm, ddim, euler"),
            ("DPM++ 2M SDE Heun", "does not have yet"),
            ("DPM++ 2S a", "does not have yet"),
            ("DPMSolverSDEScheduler", "does not have yet"),
            ("karras", "a spacing of noise levels"),
            ("ddim_karras", "ddim has no such spacing"),
            ("LCM SGM Uniform", "lcm has no such spacing"),
            ("eular", "did you mean 'euler'?"),
            ("euler-karas", "did you mean 'euler-karras'?"),
            ("dog", "one of pndm"),
        ] {
            let refused = scheduler(name).unwrap_err();
            assert!(refused.contains(says), "{name}: {refused}");
        }
    }

    #[test]
    fn devices_and_sizes_are_read_as_elsewhere() {
        assert_eq!(device("cuda").map(|id| id.to_string()).as_deref(), Ok("cuda:0"));
        assert_eq!(device("cpu:1").map(|id| id.to_string()).as_deref(), Ok("cpu:1"));
        assert!(device("mps").unwrap_err().contains("wgpu:0") && device("").is_err());
        assert_eq!((size("512x768"), size("64X32")), (Ok((512, 768)), Ok((64, 32))));
        assert!(size("512").is_err() && size("x").is_err());
    }

    #[test]
    fn flags_may_have_underscores_but_values_and_prompts_keep_them() {
        let all = ["sdshard", "--num_images=a_b", "a_b", "--guidance_scale", "3", "--", "--x_y"];
        let words = with_hyphens(all.map(OsString::from).to_vec());
        assert_eq!(words, ["sdshard", "--num-images=a_b", "a_b", "--guidance-scale", "3", "--", "--x_y"]);
    }

    #[test]
    fn a_lone_word_may_be_a_command() {
        let of = |word| command(word, ["plan", "devices", "bench"]);
        for word in ["list", "Help", "run", "plann", "bnech", "device", "devcies", "txt2img"] {
            assert!(of(word).is_some(), "{word}");
        }
        for word in ["fox", "a", "dog", "plants", "mountain", "runner"] {
            assert_eq!(of(word), None, "{word}");
        }
    }
}
