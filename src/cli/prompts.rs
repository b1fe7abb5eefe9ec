//! What is asked for: on the command line and in a prompts file.

use std::path::Path;

use clap::Args;
use sdshard::{
    error::{Error, Result},
    input,
    scheduler::SchedulerKind,
};
use serde::Deserialize;

/// The names of the schedulers.
pub const SCHEDULERS: [&str; SchedulerKind::ALL.len()] = {
    let mut names = [""; SchedulerKind::ALL.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = SchedulerKind::ALL[i].name();
        i += 1;
    }
    names
};
/// Pixels along a side.
pub const MAX_SIDE: usize = 8192;
/// Of one prompt. A slip of the finger must not fill the memory with requests.
const MAX_IMAGES: usize = 100_000;

/// What may be said about one request: as options on the command line for all, as fields in a prompts file for one.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// What to keep away from
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// Denoising steps [default: the model's]
    #[arg(long)]
    pub steps: Option<usize>,
    /// How closely to follow the prompt; 1 is no guidance [default: the model's]
    #[arg(long, allow_negative_numbers = true)]
    pub guidance_scale: Option<f32>,
    /// The solver [default: the model's]
    #[arg(long, value_parser = SCHEDULERS)]
    pub scheduler: Option<String>,
    /// Pixels [default: the model's]
    #[arg(long)]
    pub width: Option<usize>,
    /// Pixels [default: the model's]
    #[arg(long)]
    pub height: Option<usize>,
    /// Pictures of each prompt [default: 1]
    #[arg(long)]
    pub num_images: Option<usize>,
    /// Only in a file: there it is required.
    #[arg(skip)]
    pub prompt: Option<String>,
    /// Only in a file: the command line's may also be "random".
    #[arg(skip)]
    pub seed: Option<u64>,
    /// The file and the line that say it, if one does.
    #[arg(skip)]
    #[serde(skip)]
    pub at: Option<String>,
}

impl Options {
    /// These, and where they say nothing, those.
    pub fn or(self, other: &Self) -> Self {
        Self {
            negative_prompt: self.negative_prompt.or_else(|| other.negative_prompt.clone()),
            steps: self.steps.or(other.steps),
            guidance_scale: self.guidance_scale.or(other.guidance_scale),
            scheduler: self.scheduler.or_else(|| other.scheduler.clone()),
            width: self.width.or(other.width),
            height: self.height.or(other.height),
            num_images: self.num_images.or(other.num_images),
            prompt: self.prompt.or_else(|| other.prompt.clone()),
            seed: self.seed.or(other.seed),
            at: self.at.or_else(|| other.at.clone()),
        }
    }

    /// Everything that can be refused without knowing the model; `name` is how the user says a field.
    pub fn check(&self, name: impl Fn(&str) -> String) -> Result<()> {
        let refuse = |field: &str, found: String, wanted: String| {
            Err(Error::input(format!("{}: {wanted}", name(field))).found(found))
        };
        for (field, value, most) in [
            ("steps", self.steps, usize::MAX),
            ("width", self.width, MAX_SIDE),
            ("height", self.height, MAX_SIDE),
            ("num_images", self.num_images, MAX_IMAGES),
        ] {
            match value {
                Some(0) => return refuse(field, "0".into(), "at least 1 is needed".into()),
                Some(value) if value > most => {
                    return refuse(field, value.to_string(), format!("at most {most} is possible"));
                }
                _ => {}
            }
        }
        if let Some(scale) = self.guidance_scale.filter(|scale| !scale.is_finite()) {
            return refuse("guidance_scale", scale.to_string(), "a finite number is needed".into());
        }
        if let Some(scheduler) = self.scheduler.as_deref().filter(|name| !SCHEDULERS.contains(name)) {
            return refuse("scheduler", format!("\"{scheduler}\""), format!("one of {}", SCHEDULERS.join(", ")));
        }
        Ok(())
    }
}

/// Reads a prompts file: JSON lines if its name ends in `.jsonl` or its first line starts like an object, otherwise a
/// prompt on each line. Empty lines are passed over. Every `prompt` in the result is there.
pub fn read(path: &Path) -> Result<Vec<Options>> {
    let text = input::text_or_pipe(path)
        .map_err(|error| Error::input(format!("reading the prompts in {}", path.display())).source(error))?;
    let text = text.trim_start_matches('\u{feff}');
    let is_json = path.extension().is_some_and(|extension| extension == "jsonl") || is_object(text);
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())).filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| {
            let at = format!("{}:{number}", path.display());
            let options = match is_json {
                true => parse_json(line, &at)?,
                false if is_object(line) => {
                    return Err(Error::input(format!("{at}: a line of JSON in a file of plain prompts"))
                        .hint("an object on every line, or on none"));
                }
                false => Options { prompt: Some(line.to_string()), ..Options::default() },
            };
            Ok(Options { at: Some(at), ..options })
        })
        .collect()
}

/// `{"`: a prompt may start with a brace, but hardly with that.
fn is_object(text: &str) -> bool {
    text.trim_start().strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with('"'))
}

/// One line; `at` is its file and number.
fn parse_json(line: &str, at: &str) -> Result<Options> {
    let options: Options = serde_json::from_str(line).map_err(|error| {
        let message = error.to_string();
        // Its own line number is that within the line.
        let message = message.split(" at line ").next().unwrap_or_default();
        Error::input(format!("{at}:{}: {message}", error.column()))
            .hint("an object on each line: {\"prompt\": \"a red fox\", \"seed\": 7, \"steps\": 30}")
    })?;
    if options.prompt.is_none() {
        return Err(Error::input(format!("{at}: `prompt` is missing")).hint("{\"prompt\": \"a red fox\"}"));
    }
    options.check(|field| format!("{at}: {field}"))?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<Options>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn prompts(options: &[Options]) -> Vec<&str> {
        options.iter().map(|options| options.prompt.as_deref().unwrap()).collect()
    }

    #[test]
    fn a_prompt_stands_on_each_line() {
        let read = read_text("p.txt", "\u{feff}a red fox\r\n\n  a {blue} hen \n{two|three} owls").unwrap();
        assert_eq!(prompts(&read), ["a red fox", "a {blue} hen", "{two|three} owls"]);
        assert!(read_text("p.txt", "").unwrap().is_empty());
    }

    #[test]
    fn json_lines_have_fields() {
        let text =
            r#"{"prompt": "a fox", "negative_prompt": "", "seed": 18446744073709551615, "steps": 3, "guidance_scale": 1,
"#
            .replace('\n', " ")
                + r#""scheduler": "euler", "width": 64, "height": 72, "num_images": 2}"#
                + "\n\n{ \"prompt\": \"a hen\" }\n";
        for name in ["p.jsonl", "p.txt"] {
            let mut read = read_text(name, &text).unwrap();
            assert!(read[0].at.take().is_some_and(|at| at.ends_with(&format!("{name}:1"))));
            assert_eq!(prompts(&read), ["a fox", "a hen"]);
            let expected = Options {
                prompt: Some("a fox".into()),
                negative_prompt: Some(String::new()),
                seed: Some(u64::MAX),
                steps: Some(3),
                guidance_scale: Some(1.0),
                scheduler: Some("euler".into()),
                width: Some(64),
                height: Some(72),
                num_images: Some(2),
                at: None,
            };
            assert_eq!(read[0], expected);
            let flags = Options { steps: Some(9), ..Options::default() };
            assert_eq!((read[0].clone().or(&flags).steps, read[1].clone().or(&flags).steps), (Some(3), Some(9)));
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        for (line, says) in [
            ("{\"promt\": \"x\"}", "p.jsonl:2:8: unknown field `promt`, expected one of"),
            ("{\"prompt\": 3}", "p.jsonl:2:12: invalid type: integer `3`, expected a string"),
            ("{\"prompt\": \"x\"", "p.jsonl:2:14: EOF while parsing an object"),
            ("a red fox", "p.jsonl:2:1: expected value"),
            ("{\"seed\": 1}", "p.jsonl:2: `prompt` is missing"),
            ("{\"prompt\": \"x\", \"seed\": -1}", "p.jsonl:2:26: invalid value: integer `-1`, expected u64"),
            ("{\"prompt\": \"x\", \"steps\": 0}", "p.jsonl:2: steps: at least 1 is needed\n  found: 0"),
            ("{\"prompt\": \"x\", \"width\": 8200}", "p.jsonl:2: width: at most 8192 is possible\n  found: 8200"),
            ("{\"prompt\": \"x\", \"num_images\": 0}", "p.jsonl:2: num_images: at least 1"),
            ("{\"prompt\": \"x\", \"guidance_scale\": 1e39}", "p.jsonl:2"),
            ("{\"prompt\": \"x\", \"scheduler\": \"heun\"}", "p.jsonl:2: scheduler: one of pndm, ddim"),
        ] {
            let error = read_text("p.jsonl", &format!("{{\"prompt\": \"good\"}}\n{line}\n")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says), "wanted: {says}\n{error}");
        }
        let mixed = read_text("p.txt", "a red fox\n{\"prompt\": \"an owl\"}\n").unwrap_err().to_string();
        assert!(mixed.contains("p.txt:2: a line of JSON in a file of plain prompts"), "{mixed}");
        assert!(
            read(Path::new("/nowhere/p.txt"))
                .unwrap_err()
                .to_string()
                .contains("reading the prompts in /nowhere/p.txt")
        );
    }
}
