//! The defaults of a model's requests.

use std::ops::RangeInclusive;

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    scheduler::SchedulerKind,
};

/// The range of pixels along one side.
const PIXELS: RangeInclusive<usize> = 8..=16_384;

/// The defaults of a request: from the optional `sdshard.toml` beside `model_index.json`, or else from the configs.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Number of denoising steps: 50 unless the model has another default.
    pub steps: usize,
    /// Guidance scale: that of diffusers' pipeline, 7.5 or for SDXL 5, unless the model has another default.
    pub guidance_scale: f32,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The scheduler, if the model has another default than its `scheduler_config.json`.
    pub scheduler: Option<SchedulerKind>,
}

/// The contents of an `sdshard.toml`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DefaultsFile {
    steps: Option<usize>,
    guidance_scale: Option<f32>,
    width: Option<usize>,
    height: Option<usize>,
    scheduler: Option<String>,
}

impl Defaults {
    /// Reads the text of an `sdshard.toml`; `file` is its name in messages. Latents are `[height, width]` by default,
    /// and each of them is `unit` pixels along each side.
    pub(super) fn from_toml(
        text: &str,
        file: &str,
        guidance_scale: f32,
        [height, width]: [usize; 2],
        unit: usize,
    ) -> Result<Self> {
        let written: DefaultsFile =
            toml::from_str(text).map_err(|error| Error::input(format!("{file}: cannot be used")).source(error))?;
        let refuse = |key: &str, wanted: String, found: String| {
            Error::input(format!("{file}: `{key}` must be {wanted}")).found(found)
        };
        let side = |key: &str, written: Option<usize>, latents: usize| match written {
            Some(side) if !PIXELS.contains(&side) || side % unit != 0 => {
                let wanted = format!("a multiple of {unit} from {} to {}", PIXELS.start(), PIXELS.end());
                Err(refuse(key, wanted, side.to_string()))
            }
            side => Ok(side.unwrap_or(latents * unit)),
        };
        let steps = written.steps.unwrap_or(50);
        if !(1..=1000).contains(&steps) {
            return Err(refuse("steps", "a whole number from 1 to 1000".to_owned(), steps.to_string()));
        }
        let guidance_scale = written.guidance_scale.unwrap_or(guidance_scale);
        if !(0.0..=1000.0).contains(&guidance_scale) {
            return Err(refuse("guidance_scale", "a number from 0 to 1000".to_owned(), guidance_scale.to_string()));
        }
        let scheduler = written.scheduler.as_deref().map(str::parse).transpose();
        Ok(Self {
            steps,
            guidance_scale,
            width: side("width", written.width, width)?,
            height: side("height", written.height, height)?,
            scheduler: scheduler.map_err(|error: Error| error.context(format!("{file}: `scheduler`")))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Solver;

    #[test]
    fn defaults_are_read_and_checked() {
        let read = |text| Defaults::from_toml(text, "sdshard.toml", 7.5, [64, 64], 8);
        let plain = Defaults { steps: 50, guidance_scale: 7.5, width: 512, height: 512, scheduler: None };
        assert_eq!(read("").unwrap(), plain);
        let scheduler = Some(SchedulerKind::from(Solver::DpmSolverMultistep));
        assert_eq!(read("scheduler = \"dpm++2m\"\nwidth = 640").unwrap(), Defaults { width: 640, scheduler, ..plain });
        for (text, words) in [
            ("step = 4", "unknown field `step`"),
            ("steps = 0", "`steps` must be"),
            ("steps = \"4\"", "invalid type"),
            ("guidance_scale = nan", "`guidance_scale` must be"),
            ("width = 500", "`width` must be a multiple of 8"),
            ("height = 0", "`height` must be"),
            ("scheduler = \"dpm\"", "`scheduler`: \"dpm\" is not a scheduler"),
            ("steps = ", "cannot be used"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("sdshard.toml"), "{error}");
        }
    }
}
