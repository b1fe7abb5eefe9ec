//! The settings of a picture in the form of AUTOMATIC1111's web UI, which others write too: prompt, negative prompt,
//! and one line of keys and values.

use std::borrow::Cow;

use super::{hashes::Named, options::RequestOptions};
use crate::scheduler::{SchedulerKind, Sigmas, Solver};

/// What begins the negative prompt.
const NEGATIVE: &str = "Negative prompt:";
/// What begins the line of settings.
const STEPS: &str = "Steps: ";
/// What begins the keys of ControlNets, before a number.
pub const CONTROLNET: &str = "ControlNet ";
/// A last line with fewer settings belongs to the prompt.
const LEAST_SETTINGS: usize = 3;

/// The samplers of web UIs.
const SAMPLERS: [(Solver, &str); 12] = [
    (Solver::Pndm, "PLMS"),
    (Solver::Ddim, "DDIM"),
    (Solver::Euler, "Euler"),
    (Solver::EulerAncestral, "Euler a"),
    (Solver::Heun, "Heun"),
    (Solver::DpmSolverMultistep, "DPM++ 2M"),
    (Solver::DpmSolverMultistepSde, "DPM++ 2M SDE"),
    (Solver::DpmSolverSinglestep, "DPM++ 2S"),
    (Solver::DpmSolverSinglestepSde, "DPM++ SDE"),
    (Solver::UniPc, "UniPC"),
    (Solver::Lcm, "LCM"),
    (Solver::Tcd, "TCD"),
];
/// The "Schedule type" of each spacing of noise levels.
const SPACINGS: [(Sigmas, &str); 5] = [
    (Sigmas::Timesteps, "Uniform"),
    (Sigmas::Trailing, "SGM Uniform"),
    (Sigmas::Karras, "Karras"),
    (Sigmas::Exponential, "Exponential"),
    (Sigmas::Beta, "Beta"),
];
/// The samplers for which the schedule type "Automatic" is not "Uniform".
const AUTOMATIC: [(&str, &str); 9] = [
    ("DPM2", "Karras"),
    ("DPM2 a", "Karras"),
    ("DPM++ 2M", "Karras"),
    ("DPM++ SDE", "Karras"),
    ("DPM++ 2S a", "Karras"),
    ("Restart", "Karras"),
    ("DPM++ 2M SDE", "Exponential"),
    ("DPM++ 2M SDE Heun", "Exponential"),
    ("DPM++ 3M SDE", "Exponential"),
];
/// The schedule types, of which older versions appended some to the sampler's name.
const SCHEDULE_TYPES: [&str; 12] = [
    "Automatic",
    "SGM Uniform",
    "Uniform",
    "Karras",
    "Exponential",
    "Polyexponential",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "DDIM",
    "Beta",
];

/// The settings that a text contains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt; empty if there is none.
    pub negative_prompt: String,
    /// The keys and values of the last line, each key once, in the order of the text.
    pub settings: Vec<(String, String)>,
    /// `Hashes: {...}` of Civitai: kind and name of a file (`model`, `lora:NAME`), and the beginning of its SHA-256.
    pub hashes: Vec<(String, String)>,
    /// `Civitai resources: [...]`, each as JSON.
    pub resources: Vec<serde_json::Value>,
}

impl Parameters {
    /// Takes a text apart as the web UI does. Every text has a result: one without settings is a prompt.
    ///
    /// The settings are the last line if it has three or more; otherwise, as Civitai reads it, the last line that
    /// begins with `Steps: `.
    pub fn parse(text: &str) -> Self {
        let mut parameters = Self::default();
        let lines: Vec<&str> = text.trim().lines().collect();
        let is_candidate = |(at, line): &(usize, &&str)| at + 1 == lines.len() || line.trim_start().starts_with(STEPS);
        let mut prompt_lines = lines.len();
        for (at, line) in lines.iter().enumerate().rev().filter(is_candidate) {
            let mut of_line = Self::default();
            let rest = of_line.take_json_lists(line);
            let pairs = pairs(&rest);
            if pairs.len() >= LEAST_SETTINGS {
                for (key, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
                    match of_line.settings.iter_mut().find(|(name, _)| name == key) {
                        Some((_, earlier)) => *earlier = value,
                        None => of_line.settings.push((key.to_string(), value)),
                    }
                }
                (parameters, prompt_lines) = (of_line, at);
                break;
            }
        }
        let mut is_negative = false;
        for line in lines[..prompt_lines].iter().map(|line| line.trim()) {
            let rest = line.strip_prefix(NEGATIVE);
            is_negative = is_negative || rest.is_some();
            let text = if is_negative { &mut parameters.negative_prompt } else { &mut parameters.prompt };
            if !text.is_empty() {
                text.push('\n');
            }
            *text += rest.map_or(line, str::trim);
        }
        parameters
    }

    /// The value of a setting.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Takes the values that Civitai writes as JSON out of a line, because they have commas and colons.
    fn take_json_lists(&mut self, line: &str) -> String {
        let mut line = line.to_string();
        for (key, open, close) in
            [("Hashes", '{', '}'), ("Civitai resources", '[', ']'), ("Civitai metadata", '{', '}')]
        {
            let begin = format!("{key}: {open}");
            let is_whole_key = |at: &usize| {
                let before = &line[..*at];
                let quotes = before.matches('"').count() - before.matches("\\\"").count();
                (before.is_empty() || before.trim_end().ends_with(',')) && quotes.is_multiple_of(2)
            };
            let Some(start) = line.match_indices(&begin).map(|(at, _)| at).find(is_whole_key) else { continue };
            let text = &line[start + begin.len() - open.len_utf8()..];
            let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
            let value = values.next().and_then(Result::ok);
            let length = match value {
                Some(_) => values.byte_offset(),
                None => text.find(close).map_or(text.len(), |at| at + close.len_utf8()),
            };
            match value {
                Some(serde_json::Value::Object(of)) if key == "Hashes" => {
                    let texts = of.into_iter().filter_map(|(name, hash)| Some((name, hash.as_str()?.to_string())));
                    self.hashes.extend(texts);
                }
                Some(serde_json::Value::Array(resources)) => self.resources.extend(resources),
                _ => {}
            }
            let end = line.len() - text.len() + length;
            line.replace_range(start..end, "");
        }
        line
    }
}

/// The keys and values of a line: matches of the expression `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`.
fn pairs(line: &str) -> Vec<(&str, String)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let is_key = |c: char| is_word(c) || matches!(c, ' ' | '-' | '/');
    let (mut pairs, mut rest) = (Vec::new(), line);
    while let Some(first) = rest.chars().next() {
        if !is_word(first) {
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (key, behind) = rest.split_at(rest.find(|c| !is_key(c)).unwrap_or(rest.len()));
        // No key begins later in this run of characters if none begins here: all end at the same place.
        rest = behind;
        let Some(text) = behind.strip_prefix(':').filter(|_| key.chars().nth(1).is_some()) else { continue };
        let text = text.trim_start();
        let is_end = |length: &usize| text[*length..].is_empty() || text[*length..].starts_with(',');
        let length = quoted_length(text).filter(is_end).unwrap_or_else(|| text.find(',').unwrap_or(text.len()));
        pairs.push((key, unquoted(text[..length].trim_end())));
        rest = text[length..].strip_prefix(',').unwrap_or_default();
    }
    pairs
}

/// The length of the text in double quotes with which `text` begins.
fn quoted_length(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    let behind = text.strip_prefix('"')?;
    let end = behind.find(|c| match c {
        _ if is_escaped => {
            is_escaped = false;
            false
        }
        '\\' => {
            is_escaped = true;
            false
        }
        c => c == '"',
    })?;
    (end > 0).then_some(end + 2)
}

/// A value as the settings line has it: in JSON's quotes if it contains a comma, a colon or a line break, or begins
/// with a quote, or if its ends would be trimmed.
pub fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '\r']) || value.starts_with('"') || value.trim() != value {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_string()
    }
}

/// The value that [`quoted`] was given. A value in quotes that are not JSON's is left as it is.
fn unquoted(value: &str) -> String {
    let is_quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
    is_quoted.then(|| serde_json::from_str(value).ok()).flatten().unwrap_or_else(|| value.to_string())
}

/// Whether the noise levels of a sampler are its own, whatever the schedule type.
const fn has_own_levels(solver: Solver) -> bool {
    matches!(solver, Solver::Pndm | Solver::Ddim)
}

/// The sampler and the schedule type that mean this solver in web UIs; the type is empty for a sampler with noise
/// levels of its own. A solver that sdshard does not have stays as it is.
pub fn sampler(scheduler: &str) -> (&str, &'static str) {
    let Ok(kind) = scheduler.parse::<SchedulerKind>() else { return (scheduler, "") };
    let sampler = SAMPLERS.iter().find(|(solver, _)| *solver == kind.solver()).map_or(scheduler, |(_, name)| name);
    let schedule = SPACINGS.iter().find(|(sigmas, _)| *sigmas == kind.sigmas()).map_or("", |(_, name)| name);
    (sampler, if has_own_levels(kind.solver()) { "" } else { schedule })
}

/// The solver of a web UI's sampler and schedule type, as far as there is one here.
pub fn scheduler(sampler: &str, schedule: Option<&str>) -> Option<SchedulerKind> {
    let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    // Older versions have both in one name: "DPM++ 2M Karras".
    let both = SCHEDULE_TYPES.iter().find_map(|schedule| {
        let at = sampler.len().checked_sub(schedule.len())?;
        let (name, suffix) = sampler.split_at_checked(at)?;
        same(suffix, schedule).then_some((name.strip_suffix(' ')?, *schedule))
    });
    let (sampler, schedule) = both.unwrap_or((sampler, schedule.unwrap_or("Automatic")));
    let automatic = AUTOMATIC.iter().find(|(name, _)| same(name, sampler)).map_or("Uniform", |(_, schedule)| schedule);
    let schedule = if same(schedule, "Automatic") { automatic } else { schedule };
    let (solver, _) = SAMPLERS.iter().find(|(_, name)| same(name, sampler))?;
    if has_own_levels(*solver) {
        return Some((*solver).into());
    }
    let (sigmas, _) = SPACINGS.iter().find(|(_, name)| same(name, schedule))?;
    SchedulerKind::new(*solver, *sigmas)
}

/// What a text says of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// The request.
    pub options: &'a RequestOptions,
    /// The name of the model and its hash.
    pub model: (&'a str, &'a str),
    /// The generator, as `--rng` names it.
    pub rng: &'a str,
    /// LoRAs as in tags: `style:0.8`.
    pub loras: &'a [String],
    /// The names and hashes of their files.
    pub lora_hashes: &'a [Named],
    /// Another VAE.
    pub vae: Option<&'a Named>,
    /// ControlNets in order.
    pub controlnets: &'a [Named],
    /// Textual inversions.
    pub embeddings: &'a [Named],
}

/// The text that web UIs read.
pub fn write(said: &Said) -> String {
    let Said { options, model: (model, model_hash), rng, loras, lora_hashes, vae, controlnets, embeddings } = said;
    let mut text = options.prompt.clone().unwrap_or_default();
    text.extend(loras.iter().map(|lora| format!(" <lora:{lora}>")));
    if let Some(negative) = options.negative_prompt.as_deref().filter(|negative| !negative.is_empty()) {
        text += &format!("\n{NEGATIVE} {negative}");
    }
    let (sampler, schedule) = sampler(options.scheduler.as_deref().unwrap_or_default());
    let size = format!("{}x{}", options.width.unwrap_or_default(), options.height.unwrap_or_default());
    let (vae, vae_hash) = vae.map(|(name, hash)| (name.clone(), hash.clone())).unwrap_or_default();
    let list = |files: &[Named]| {
        let entry = |(name, hash): &Named| format!("{}: {hash}", name.replace([':', ','], ""));
        files.iter().map(entry).collect::<Vec<_>>().join(", ")
    };
    let mut settings: Vec<(Cow<str>, String)> = [
        ("Steps", options.steps.unwrap_or_default().to_string()),
        ("Sampler", sampler.to_string()),
        ("Schedule type", schedule.to_string()),
        ("CFG scale", options.guidance_scale.unwrap_or_default().to_string()),
        ("Seed", options.seed.unwrap_or_default().to_string()),
        ("Size", size),
        ("Model hash", (*model_hash).to_owned()),
        ("Model", (*model).to_owned()),
        ("VAE hash", vae_hash),
        ("VAE", vae),
        ("Denoising strength", options.strength.map(|strength| strength.to_string()).unwrap_or_default()),
        // DDIM has a name of its own for it.
        (
            if sampler == "DDIM" { "Eta DDIM" } else { "Eta" },
            options.eta.map(|eta| eta.to_string()).unwrap_or_default(),
        ),
        ("Clip skip", options.clip_skip.map(|skip| (skip + 1).to_string()).unwrap_or_default()),
        // The generator of GPUs is the one that is meant if none is named.
        ("RNG", if *rng == "cpu" { "CPU" } else { "" }.to_string()),
    ]
    .map(|(key, value)| (key.into(), value))
    .into();
    let units = controlnets.iter().enumerate();
    settings
        .extend(units.map(|(i, file)| (format!("{CONTROLNET}{i}").into(), ControlUnit::of(options, i, file).write())));
    settings.extend([("Lora hashes".into(), list(lora_hashes)), ("TI hashes".into(), list(embeddings))]);
    let settings = settings.iter().filter(|(_, value)| !value.is_empty());
    let line: Vec<String> = settings.map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
    text += &format!("\n{}", line.join(", "));
    text.replace('\0', " ") // a NUL would end the text chunk
}

/// The settings of one ControlNet, as the extension of the web UI writes them.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlUnit {
    /// The name of the file and its [`old_hash`](crate::weights::old_hash).
    pub model: String,
    /// How strongly it works.
    pub scale: f32,
    /// The shares of the steps after which it begins and ends to work.
    pub range: (f64, f64),
    /// What there is not here, as `Key: value`.
    pub others: Vec<String>,
}

impl ControlUnit {
    /// Keys with the values that sdshard follows.
    const FOLLOWED: [(&str, &str); 3] =
        [("Module", "none"), ("Resize Mode", "Just Resize"), ("Control Mode", "Balanced")];
    /// Keys whose values change nothing without those above.
    const WITHOUT_EFFECT: [&str; 7] =
        ["Low Vram", "Processor Res", "Threshold A", "Threshold B", "Pixel Perfect", "Hr Option", "Save Detected Map"];

    /// The ControlNet with this index.
    fn of(options: &RequestOptions, i: usize, (name, hash): &Named) -> Self {
        let range = [(&options.control_start, 0.0), (&options.control_end, 1.0)];
        let [start, end] = range.map(|(shares, default)| shares.get(i).copied().unwrap_or(default));
        let scale = options.control_scale.get(i).copied().unwrap_or(1.0);
        let model = format!("{} [{hash}]", name.replace([':', ','], ""));
        Self { model, scale, range: (start, end), others: Vec::new() }
    }

    fn write(&self) -> String {
        let Self { model, scale, range: (start, end), .. } = self;
        let [module, resize, mode] = Self::FOLLOWED.map(|(key, value)| format!("{key}: {value}"));
        format!(
            "{module}, Model: {model}, Weight: {scale}, {resize}, Guidance Start: {start}, Guidance End: {end}, {mode}"
        )
    }

    /// Reads what [`Parameters`] have under `ControlNet 0`. `None` if it names no model or has a number that is none.
    pub fn read(text: &str) -> Option<Self> {
        let mut unit = Self { model: String::new(), scale: 1.0, range: (0.0, 1.0), others: Vec::new() };
        for (key, value) in text.split(',').filter_map(|entry| entry.split_once(':')) {
            let (key, value) = (key.trim(), value.trim());
            match key {
                "Model" => unit.model = value.to_owned(),
                "Weight" => unit.scale = value.parse().ok()?,
                "Guidance Start" => unit.range.0 = value.parse().ok()?,
                "Guidance End" => unit.range.1 = value.parse().ok()?,
                _ if Self::WITHOUT_EFFECT.contains(&key) => {}
                _ if Self::FOLLOWED.iter().any(|(name, known)| key == *name && known.eq_ignore_ascii_case(value)) => {}
                _ => unit.others.push(format!("{key}: {value}")),
            }
        }
        Some(unit).filter(|unit| !unit.model.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_those_of_the_web_uis_expression() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/parameters.json");
        let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let rows = rows.as_array().unwrap();
        assert!(rows.len() > 400);
        let mut count = 0;
        for row in rows {
            let wanted = row["pairs"].as_array().unwrap().iter().map(|pair| {
                let [key, value] = [0, 1].map(|i| pair[i].as_str().unwrap());
                (key, unquoted(value.trim_end()))
            });
            let wanted: Vec<_> = wanted.collect();
            assert_eq!(pairs(row["line"].as_str().unwrap()), wanted, "{row}");
            count += wanted.len();
        }
        assert!(count > 100, "{count}");
    }

    #[test]
    fn every_value_comes_back() {
        for value in [
            "a",
            "a, b",
            "a: b",
            "a\nb",
            "say \"hi\"",
            "\"a\"",
            "\"",
            "back\\slash, é 🦊",
            "\u{7}:",
            "a,\\",
            "{a: 1}",
            " a ",
            "a, Hashes: {b}",
        ] {
            let line = format!("Steps: 1, Model: {}, Seed: 2, Size: 8x8", quoted(value));
            let said = Parameters::parse(&format!("a fox\n{line}"));
            assert_eq!(said.get("Model"), Some(value), "{line}");
            assert_eq!((said.get("Seed"), said.prompt.as_str()), (Some("2"), "a fox"), "{line}");
        }
        assert_eq!(
            quoted("ein \"Fuchs\" 🦊, rot"),
            "\"ein \\\"Fuchs\\\" 🦊, rot\"",
            "as json.dumps(ensure_ascii=False)"
        );
        assert_eq!(quoted("plain \"word\""), "plain \"word\"");
        assert_eq!(unquoted("\"not \\x JSON\""), "\"not \\x JSON\"");
    }

    #[test]
    fn prompts_and_settings_are_told_apart_as_the_web_ui_does() {
        let line = "Steps: 20, Sampler: Euler, CFG scale: 7";
        for (text, prompt, negative, settings) in [
            (format!("a fox\n{line}"), "a fox", "", 3),
            (format!("  a fox  \n\n {line} \n "), "a fox\n", "", 3),
            (format!("a\nb\nNegative prompt: c\nd\n\ne\n{line}"), "a\nb", "c\nd\n\ne", 3),
            (format!("a\nNegative prompt:\nc\n{line}"), "a", "c", 3),
            (format!("Negative prompt: c\n{line}"), "", "c", 3),
            (line.to_string(), "", "", 3),
            (format!("a\r\nNegative prompt: b\r\n{line}\r\n"), "a", "b", 3),
            // Fewer than three settings belong to the prompt.
            ("a fox\nSteps: 20, Seed: 1".into(), "a fox\nSteps: 20, Seed: 1", "", 0),
            ("a (fox:1.2), snow".into(), "a (fox:1.2), snow", "", 0),
            ("a\nNegative prompt: b".into(), "a", "b", 0),
            (String::new(), "", "", 0),
            // The web UI reads such a last line as settings, too.
            ("a fox\nSteps: 3, Foo: 1, Bar: 2".into(), "a fox", "", 3),
            // Lines below the settings hide them from the web UI, and not from Civitai.
            (format!("a\nNegative prompt: b\n{line}\nTemplate: x"), "a", "b", 3),
        ] {
            let said = Parameters::parse(&text);
            let found = (said.prompt.as_str(), said.negative_prompt.as_str(), said.settings.len());
            assert_eq!(found, (prompt, negative, settings), "{text:?}");
        }
    }

    #[test]
    fn the_lists_of_civitai_are_taken_out_of_the_line() {
        let said = Parameters::parse(
            "a fox\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Created Date: 2024-08-01T12:00:00Z, \
             Hashes: {\"model\": \"0123456789\", \"lora:snow, v2\": \"abcdef012345\"}, \
             Civitai resources: [{\"type\":\"checkpoint\",\"modelVersionId\":123,\"modelName\":\"A [b]\"},\
             {\"type\":\"lora\",\"weight\":0.8,\"modelVersionId\":456}], Civitai metadata: {\"a\": {\"b\": 1}}, \
             Size: 8x16",
        );
        let hash = |name: &str, hash: &str| (name.to_string(), hash.to_string());
        assert_eq!(said.hashes, [hash("model", "0123456789"), hash("lora:snow, v2", "abcdef012345")]);
        assert_eq!(said.resources.len(), 2);
        let keys: Vec<_> = said.settings.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["Steps", "Sampler", "CFG scale", "Seed", "Created Date", "Size"]);
        assert_eq!(said.get("Size"), Some("8x16"));
        // Damaged JSON ends at the first bracket.
        let said = Parameters::parse("a\nSteps: 1, Seed: 2, Hashes: {\"model\": 3 4}, Size: 8x8");
        assert_eq!((said.get("Size"), said.hashes.len()), (Some("8x8"), 0));
    }

    #[test]
    fn samplers_are_known_by_all_their_names() {
        for (sampler, schedule, name) in [
            ("Euler", None, Some("euler")),
            ("Euler", Some("Automatic"), Some("euler")),
            ("Euler", Some("Uniform"), Some("euler")),
            ("Euler a", None, Some("euler-ancestral")),
            ("euler A", Some("automatic"), Some("euler-ancestral")),
            ("DPM++ 2M", Some("Karras"), Some("dpm++2m-karras")),
            ("DPM++ 2M", Some("Automatic"), Some("dpm++2m-karras")),
            ("DPM++ 2M", None, Some("dpm++2m-karras")),
            ("DPM++ 2M", Some("Uniform"), Some("dpm++2m")),
            ("DPM++ 2M Karras", None, Some("dpm++2m-karras")),
            ("DDIM", None, Some("ddim")),
            ("DDIM", Some("Karras"), Some("ddim")),
            ("PLMS", Some("Automatic"), Some("pndm")),
            ("Euler", Some("Karras"), Some("euler-karras")),
            ("Euler a", Some("Karras"), None),
            ("Euler a SGM Uniform", None, Some("euler-ancestral-trailing")),
            ("DPM++ 2M", Some("SGM Uniform"), Some("dpm++2m-trailing")),
            ("LCM", Some("SGM Uniform"), None),
            ("DPM++ 2M Exponential", None, Some("dpm++2m-exponential")),
            ("DPM++ 2M SDE", None, Some("dpm++2m-sde-exponential")),
            ("DPM++ SDE Karras", None, Some("dpm++sde-karras")),
            ("LCM", None, Some("lcm")),
            ("LCM", Some("Karras"), None),
            ("UniPC", Some("Automatic"), Some("unipc")),
            ("DPM++ 2S a", None, None),
            ("Restart", None, None),
            ("", None, None),
            (" Karras", None, None),
            ("狐狸", None, None),
        ] {
            let found = scheduler(sampler, schedule).map(|kind| kind.to_string());
            assert_eq!(found.as_deref(), name, "{sampler}, {schedule:?}");
        }
        assert_eq!(sampler("of-another-version"), ("of-another-version", ""));
        for kind in SchedulerKind::all() {
            let written = kind.to_string();
            let (name, schedule) = sampler(&written);
            // Web UIs have no name for other timesteps of PLMS and DDIM.
            let kept = if has_own_levels(kind.solver()) { kind.solver().into() } else { kind };
            assert_eq!(scheduler(name, Some(schedule).filter(|s| !s.is_empty())), Some(kept), "{kind}");
        }
    }
}
