//! The requested pictures: on the command line and in a prompts file.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use sdshard::{
    error::{Error, Result},
    input,
    pipeline::options::RequestOptions,
    prompt::LoraTag,
};
use serde::{Deserialize, Deserializer, de};

use super::habits;

/// The options of one prompt, and where they were given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    /// The options.
    pub options: RequestOptions,
    /// The file and the line, if they are in a file.
    pub at: Option<String>,
    /// Where the fields were set that flags did not set: a prompts file and the line, or the file of `--from`.
    pub places: Places,
}

/// For fields of options, the place where each was set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Places(Arc<BTreeMap<String, String>>);

impl Places {
    /// The user's name of a field: the flag, or the place and the field.
    pub fn name_of(&self, field: &str) -> String {
        self.0.get(field).map_or_else(|| flag(field), |at| format!("{at}: {field}"))
    }
}

impl Asked {
    /// The options of one entry of a file, which is `at` this place.
    fn in_file(options: RequestOptions, at: String) -> Self {
        let places = fields(&options).map(|field| (field, at.clone())).collect();
        Self { options, at: Some(at), places: Places(Arc::new(places)) }
    }

    /// These options, and those of `other` where these are not set. `other` is in a file `at` this place, or has flags.
    pub fn or(self, other: &RequestOptions, at: Option<&str>) -> Self {
        let mut places = self.places;
        if let Some(at) = at {
            let known: Vec<String> = fields(&self.options).collect();
            let new = fields(other).filter(|field| !known.contains(field)).map(|field| (field, at.to_owned()));
            Arc::make_mut(&mut places.0).extend(new);
        } else if other.steps.is_some() && self.options.steps.is_none() {
            Arc::make_mut(&mut places.0).remove("steps");
        }
        Self { options: self.options.or(other), at: self.at, places }
    }

    /// All its texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        texts(&self.options)
    }
}

/// The texts of options.
pub fn texts(options: &RequestOptions) -> impl Iterator<Item = &str> {
    let RequestOptions { prompt, prompt_2, negative_prompt, negative_prompt_2, .. } = options;
    [prompt, prompt_2, negative_prompt, negative_prompt_2].into_iter().flatten().map(String::as_str)
}

/// The names of the fields that are set. A scheduler may reject the number of steps, so it counts for both.
fn fields(options: &RequestOptions) -> impl Iterator<Item = String> {
    let value = serde_json::to_value(options).expect("texts and numbers can always be written as JSON");
    let serde_json::Value::Object(fields) = value else { unreachable!("options have fields") };
    let steps = options.scheduler.is_some().then(|| "steps".to_owned());
    fields.into_iter().map(|(field, _)| field).chain(steps)
}

impl From<String> for Asked {
    fn from(prompt: String) -> Self {
        Self { options: RequestOptions { prompt: Some(prompt), ..RequestOptions::default() }, ..Self::default() }
    }
}

/// The flag of a field of the options.
pub fn flag(field: &str) -> String {
    format!("--{}", field.replace('_', "-"))
}

/// The options after all checks that do not need the model, with the scheduler's own name; `name` gives the user's name
/// of a field.
pub fn checked(options: &RequestOptions, name: impl Fn(&str) -> String) -> Result<RequestOptions> {
    options.check(&name)?;
    let scheduler = options.scheduler.as_deref().map(|asked| {
        let known = habits::scheduler(asked).map(|kind| kind.to_string());
        known.map_err(|wanted| Error::input(format!("{}: {wanted}", name("scheduler"))).found(format!("{asked:?}")))
    });
    Ok(RequestOptions { scheduler: scheduler.transpose()?, ..options.clone() })
}

/// Takes the tags of LoRAs out of the prompts with the syntax of web UIs; `name` gives the user's name of a field.
///
/// # Errors
/// If the syntax is invalid, or has something that is not followed, or if a LoRA has two weights.
pub fn take_tags(options: &mut RequestOptions, name: impl Fn(&str) -> String) -> Result<Vec<LoraTag>> {
    let syntax = options.prompt_syntax.unwrap_or_default();
    let mut tags: Vec<LoraTag> = Vec::new();
    for (field, text) in [("prompt", &mut options.prompt), ("prompt_2", &mut options.prompt_2)] {
        let Some(written) = text else { continue };
        let in_field = |error: Error| if field == "prompt" { error } else { error.context(name(field)) };
        let read = syntax.prompt(written).map_err(in_field)?;
        if !read.loras.is_empty() {
            *text = Some(read.text.trim().to_owned());
        }
        for tag in read.loras {
            match tags.iter().find(|other| other.name == tag.name) {
                None => tags.push(tag),
                Some(other) if *other == tag => {}
                Some(other) => {
                    return Err(in_field(Error::input(format!("{tag}: the prompt names it with another weight")))
                        .found(other.to_string()));
                }
            }
        }
    }
    Ok(tags)
}

/// The LoRAs that the prompts of a run name, which are the same ones for all.
#[derive(Debug, Default)]
pub struct SharedTags(Option<Vec<LoraTag>>);

impl SharedTags {
    /// Takes the tags out of the texts of one more prompt, which is in a file or else `elsewhere`.
    ///
    /// # Errors
    /// As [`take_tags`], or if it has others than those before.
    pub fn take(&mut self, asked: &mut Asked, elsewhere: Option<&str>) -> Result<()> {
        let taken = self.add(asked);
        match asked.at.as_deref().or(elsewhere) {
            Some(at) => taken.map_err(|error| error.context(at)),
            None => taken,
        }
    }

    fn add(&mut self, asked: &mut Asked) -> Result<()> {
        let places = asked.places.clone();
        let own = take_tags(&mut asked.options, |field| places.name_of(field))?;
        let known = self.0.get_or_insert_with(|| own.clone());
        if *known == own {
            return Ok(());
        }
        let list = |tags: &[LoraTag]| tags.iter().map(LoraTag::to_string).collect::<String>();
        Err(Error::input("all prompts of a run have the same LoRAs with equal weights")
            .found(format!("{:?} after {:?}", list(&own), list(known)))
            .hint("a run for each set of LoRAs: they change the weights of the model"))
    }

    /// The tags.
    pub fn into_list(self) -> Vec<LoraTag> {
        self.0.unwrap_or_default()
    }
}

/// All prompts with their options: those of the command line, then those of the file.
///
/// # Errors
/// As [`read`].
pub fn asked(prompts: &[String], file: Option<&Path>) -> Result<impl Iterator<Item = Asked>> {
    let in_file = file.map(read).transpose()?.unwrap_or_default();
    let on_command_line = prompts.iter().cloned().map(Asked::from);
    Ok(on_command_line.chain(in_file))
}

/// Reads a prompts file, or stdin if its name is `-`: a JSON array, JSON values one after the other, or a prompt on
/// each line. Empty lines are skipped. Every entry of the result has a `prompt`.
///
/// # Errors
/// If it cannot be read, a value is invalid, or it has another format, which would be drawn line by line.
pub fn read(path: &Path) -> Result<Vec<Asked>> {
    let is_stdin = path == Path::new("-");
    let file = if is_stdin { "stdin".to_string() } else { path.display().to_string() };
    let text = if is_stdin { input::text_of_stdin() } else { input::text_or_pipe(path) };
    let text = text.map_err(|error| Error::input(format!("reading the prompts in {file}")).source(error))?;
    let text = text.trim_start_matches('\u{feff}');
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if let Some(format) = foreign_format(&extension, text) {
        return Err(Error::input(format!("{file}: this looks like {format}, which would be drawn line by line"))
            .hint("a prompt on each line, or JSON: [\"a red fox\", {\"prompt\": \"an owl\", \"seed\": 7}]"));
    }
    let json_lines = matches!(extension.as_str(), "jsonl" | "ndjson");
    if !json_lines && (extension == "json" || is_json_array(text)) {
        return json_document(text, &file);
    }
    let lines = || text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    if is_object(text) && lines().next().is_some_and(|(_, line)| serde_json::from_str::<de::IgnoredAny>(line).is_err())
    {
        // This is one object over several lines.
        return json_document(text, &file);
    }
    let is_json =
        json_lines || is_object(text) || lines().all(|(_, line)| serde_json::from_str::<String>(line).is_ok());
    lines()
        .map(|(index, line)| {
            let at = format!("{file}:{}", index + 1);
            let options = match is_json {
                true => {
                    let Entry(options) = serde_json::from_str(line)
                        .map_err(|error| bad_json(&error, format!("{at}:{}", error.column())))?;
                    entry(&options, &at)?
                }
                false if is_object(line) => {
                    return Err(Error::input(format!("{at}: a line of JSON in a file of plain prompts"))
                        .hint("an object on every line, or on none"));
                }
                false => Asked::from(line.to_string()).options,
            };
            Ok(Asked::in_file(options, at))
        })
        .collect()
}

/// Whether a text begins with `{"`: a prompt may begin with a brace, but hardly with both.
fn is_object(text: &str) -> bool {
    text.trim_start().strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with('"'))
}

/// Whether a text begins with a bracket and a quote, a brace or another bracket: prompts may begin with brackets too,
/// for example `[a fox|an owl]`.
fn is_json_array(text: &str) -> bool {
    let inside = text.trim_start().strip_prefix('[').map(str::trim_start);
    inside.is_some_and(|inside| {
        inside.starts_with('"') || is_object(inside) || serde_json::from_str::<Vec<de::IgnoredAny>>(text).is_ok()
    })
}

/// The name of the format, if a text contains prompts in a format that is not supported.
fn foreign_format(extension: &str, text: &str) -> Option<&'static str> {
    match extension {
        "csv" | "tsv" => return Some("a table (CSV)"),
        "yaml" | "yml" => return Some("YAML"),
        "toml" => return Some("TOML"),
        "xml" | "html" | "htm" => return Some("XML or HTML"),
        "md" => return Some("Markdown"),
        _ => {}
    }
    if text.contains('\0') {
        return Some("no text");
    }
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next()?;
    let second = lines.next();
    let lower = first.to_lowercase();
    let starts = |beginnings: &[&str]| beginnings.iter().any(|beginning| lower.starts_with(beginning));
    // A line of column names, with `prompt` among them.
    let cells: Vec<&str> = lower.split([',', ';', '\t']).map(|cell| cell.trim_matches([' ', '"', '\''])).collect();
    let is_name = |cell: &&str| cell.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if cells.iter().all(is_name) && cells.iter().any(|cell| matches!(*cell, "prompt" | "prompts")) && second.is_some() {
        return Some("a table with a header (CSV)");
    }
    let is_item = |line: &str| line.starts_with("- ") || line.starts_with("* ");
    if first == "---" || starts(&["prompt:", "prompts:", "- prompt:"]) || is_item(first) && second.is_some_and(is_item)
    {
        return Some("YAML or a list of items");
    }
    if starts(&["[[", "prompt =", "prompts =", "prompt=", "prompts="]) {
        return Some("TOML or Python");
    }
    if starts(&["['", "[ '", "('", "(\""]) && first.contains(['\'', '"']) && first.ends_with([',', ']', ')', '\'', '"'])
    {
        return Some("a list in Python");
    }
    if starts(&["--prompt", "--negative_prompt", "--steps", "--seed"]) {
        return Some("a list of arguments");
    }
    if starts(&["<?xml", "<!doctype", "<html"]) {
        return Some("XML or HTML");
    }
    lower.starts_with("{\\rtf").then_some("RTF")
}

/// A text, or an object with fields.
struct Entry(RequestOptions);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Entry;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a prompt or an object with \"prompt\"")
            }

            fn visit_str<E>(self, prompt: &str) -> Result<Entry, E> {
                Ok(Entry(Asked::from(prompt.to_string()).options))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                RequestOptions::deserialize(de::value::MapAccessDeserializer::new(map)).map(Entry)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Reads an array of texts and objects, or one object.
fn json_document(text: &str, file: &str) -> Result<Vec<Asked>> {
    let bad = |error: serde_json::Error| bad_json(&error, format!("{file}:{}:{}", error.line(), error.column()));
    let entries = match text.trim_start().starts_with('[') {
        true => serde_json::from_str::<Vec<Entry>>(text).map_err(bad)?,
        false => serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().map_err(bad)?,
    };
    let number = |(index, Entry(options)): (usize, Entry)| {
        let at = format!("{file}, entry {}", index + 1);
        Ok(Asked::in_file(entry(&options, &at)?, at))
    };
    entries.into_iter().enumerate().map(number).collect()
}

/// The error for invalid JSON; `at` is its place.
fn bad_json(error: &serde_json::Error, at: String) -> Error {
    let message = error.to_string();
    // The line number in the message counts within the text that was parsed.
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    Error::input(format!("{at}: {message}")).hint(
        "an object on each line: {\"prompt\": \"a red fox\", \"seed\": 7, \"steps\": 30}; or an array of prompts and objects",
    )
}

/// The checked options of one entry of a file.
fn entry(options: &RequestOptions, at: &str) -> Result<RequestOptions> {
    if options.prompt.is_none() {
        return Err(Error::input(format!("{at}: `prompt` is missing")).hint("{\"prompt\": \"a red fox\"}"));
    }
    checked(options, |field| format!("{at}: {field}"))
}

/// The first syntax in a text that web UIs read as weights, adapters and breaks.
pub fn syntax_of_web_uis(prompt: &str) -> Option<String> {
    let weighted = || {
        prompt.match_indices('(').find_map(|(start, _)| {
            let inside = &prompt[start + 1..];
            let inside = &inside[..inside.find([')', '('])?];
            let (_, weight) = inside.rsplit_once(':')?;
            weight.trim().parse::<f32>().ok().map(|_| format!("({inside})"))
        })
    };
    let adapter = || {
        ["<lora:", "<lyco:", "<hypernet:"].iter().find_map(|beginning| {
            let start = prompt.to_ascii_lowercase().find(beginning)?;
            let end = prompt[start..].find('>')?;
            Some(prompt[start..=start + end].to_string())
        })
    };
    let word = || prompt.split_whitespace().find(|word| *word == "BREAK").map(str::to_string);
    weighted().or_else(adapter).or_else(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<Asked>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn prompts(asked: &[Asked]) -> Vec<&str> {
        asked.iter().map(|asked| asked.options.prompt.as_deref().unwrap()).collect()
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
"prompt_syntax": "a1111", "prompt_2": "oil", "negative_prompt_2": "ink", "guidance_rescale": 0.7, "clip_skip": 1,
"#
            .replace('\n', " ")
                + r#""scheduler": "ddim", "eta": 0.3, "width": 64, "height": 72, "num_images": 2, "#
                + r#""image": "dir/fox.png", "strength": 0.29, "mask": "mask.webp", "paste_original": true, "#
                + r#""control_image": ["a.png", "b.png"], "control_scale": 0.5, "control_start": 0, "control_end": [1, 0.5], "#
                + r#""vae_tiling": true}"# + "\n\n{ \"prompt\": \"a hen\" }\n";
        for name in ["p.jsonl", "p.txt"] {
            let mut read = read_text(name, &text).unwrap();
            assert!(read[0].at.take().is_some_and(|at| at.ends_with(&format!("{name}:1"))));
            assert_eq!(prompts(&read), ["a fox", "a hen"]);
            let expected = RequestOptions {
                prompt: Some("a fox".into()),
                prompt_syntax: Some(sdshard::prompt::PromptSyntax::A1111),
                prompt_2: Some("oil".into()),
                negative_prompt: Some(String::new()),
                negative_prompt_2: Some("ink".into()),
                seed: Some(u64::MAX),
                steps: Some(3),
                guidance_scale: Some(1.0),
                guidance_rescale: Some(0.7),
                clip_skip: Some(1),
                scheduler: Some("ddim".into()),
                eta: Some(0.3),
                image: Some("dir/fox.png".into()),
                strength: Some(0.29),
                mask: Some("mask.webp".into()),
                paste_original: Some(true),
                vae_tiling: Some(true),
                control_image: vec!["a.png".into(), "b.png".into()],
                control_scale: vec![0.5],
                control_start: vec![0.0],
                control_end: vec![1.0, 0.5],
                width: Some(64),
                height: Some(72),
                num_images: Some(2),
            };
            assert_eq!(read[0].options, expected);
            let flags = RequestOptions { steps: Some(9), ..RequestOptions::default() };
            let steps = |asked: &Asked| asked.options.clone().or(&flags).steps;
            assert_eq!((steps(&read[0]), steps(&read[1])), (Some(3), Some(9)));
        }
    }

    #[test]
    fn a_json_array_is_read_as_a_list_of_prompts() {
        for (name, text) in [
            ("p.txt", r#"["a fox", "a hen"]"#),
            ("p.json", "[\n  \"a fox\",\n  \"a hen\"\n]\n"),
            ("p.json", r#"[{"prompt": "a fox"}, {"prompt": "a hen"}]"#),
            ("p.txt", r#"["a fox", {"prompt": "a hen", "seed": 3}]"#),
            ("p.txt", "\"a fox\"\n\"a hen\"\n"),
            ("p.jsonl", "\"a fox\"\n{\"prompt\": \"a hen\"}\n"),
            ("p.json", "{\n  \"prompt\": \"a fox\"\n}\n{\n  \"prompt\": \"a hen\"\n}\n"),
            ("p.txt", "{\n  \"prompt\": \"a fox\"\n}\n{\"prompt\": \"a hen\"}\n"),
            ("p.ndjson", "{\"prompt\": \"a fox\"}\n\n{\"prompt\": \"a hen\"}"),
        ] {
            assert_eq!(prompts(&read_text(name, text).unwrap()), ["a fox", "a hen"], "{name}: {text}");
        }
        assert!(read_text("p.json", "[]").unwrap().is_empty());
        let brackets = read_text("p.txt", "[a fox|a hen] in snow\n[red] cat\n(\"a\" or b:1.2) dog").unwrap();
        assert_eq!(brackets.len(), 3);
        for (text, says) in [
            ("[\"a\",\n \"b\"", "p.json:2:4: EOF while parsing a list"),
            ("[\"a\", 3]", "p.json:1:7: invalid type: integer `3`, expected a prompt or an object"),
            ("[{\"promt\": \"x\"}]", "p.json:1:9: unknown field `promt`"),
            ("[\"a\", {\"seed\": 1}]", "p.json, entry 2: `prompt` is missing"),
            ("[{\"prompt\": \"x\", \"steps\": 0}]", "p.json, entry 1: steps: at least 1"),
            ("{\"prompts\": [\"a\"]}", "p.json:1:10: unknown field `prompts`"),
            ("\"a\" b", "p.json:1:5: expected value"),
        ] {
            let error = read_text("p.json", text).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(says), "wanted: {says}\n{error}");
        }
    }

    #[test]
    fn other_formats_are_not_read_as_one_prompt_per_line() {
        for (name, text) in [
            ("p.csv", "a fox\na hen\n"),
            ("p.txt", "prompt,seed\na fox,1\n"),
            ("p.txt", "\"seed\";\"Prompt\"\n1;a fox\n"),
            ("p.txt", "prompt\na fox\n"),
            ("p.tsv", "prompt\tseed\n"),
            ("p.yaml", "a fox\n"),
            ("p.txt", "prompts:\n  - a fox\n"),
            ("p.txt", "- a fox\n- a hen\n"),
            ("p.txt", "---\na fox\n"),
            ("p.toml", "x = 1"),
            ("p.txt", "[[prompt]]\ntext = 'a fox'\n"),
            ("p.txt", "prompts = [\n'a fox']\n"),
            ("p.txt", "['a fox', 'a hen']\n"),
            ("p.txt", "--prompt \"a fox\" --steps 20\n"),
            ("p.txt", "<?xml version=\"1.0\"?>\n<p>a fox</p>"),
            ("p.txt", "{\\rtf1\\ansi a fox}"),
            ("p.txt", "a\0 \0f\0o\0x\0"),
        ] {
            let message = read_text(name, text).map(|read| read.len()).unwrap_err().to_string();
            assert!(
                message.contains("this looks like") && message.contains("try:   a prompt on each line"),
                "{message}"
            );
        }
        for text in ["prompt", "a prompt, a fox\na hen", "- a fox", "red, green, blue\na hen", "<a> fox"] {
            read_text("p.txt", text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn syntax_that_web_uis_follow_is_found_in_prompts() {
        for (prompt, found) in [
            ("a (red:1.3) fox", Some("(red:1.3)")),
            ("((a fox: 0.8))", Some("(a fox: 0.8)")),
            ("a fox <lora:Snow_v2:0.7>", Some("<lora:Snow_v2:0.7>")),
            ("a fox <LyCO:x>", Some("<LyCO:x>")),
            ("a fox BREAK snow", Some("BREAK")),
            ("a fox (at 10:30 am)", None),
            ("a fox (small)", None),
            ("a BREAKFAST: 1", None),
            ("<lora: unfinished", None),
            ("狐 (雪:1.2) (", Some("(雪:1.2)")),
        ] {
            assert_eq!(syntax_of_web_uis(prompt).as_deref(), found, "{prompt}");
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
            ("{\"prompt\": \"x\", \"seed\": -1}", "p.jsonl:2:26: invalid value: integer `-1`"),
            ("{\"prompt\": \"x\", \"steps\": 0}", "p.jsonl:2: steps: at least 1 is needed\n  found: 0"),
            ("{\"prompt\": \"x\", \"width\": 8200}", "p.jsonl:2: width: at most 8192 is possible\n  found: 8200"),
            ("{\"prompt\": \"x\", \"num_images\": 0}", "p.jsonl:2: num_images: at least 1"),
            ("{\"prompt\": \"x\", \"guidance_scale\": 1e39}", "p.jsonl:2"),
            ("{\"prompt\": \"x\", \"scheduler\": \"lms\"}", "p.jsonl:2: scheduler: \"lms\""),
        ] {
            let error = read_text("p.jsonl", &format!("{{\"prompt\": \"good\"}}\n{line}\n")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says), "wanted: {says}\n{error}");
        }
        let mixed = read_text("p.txt", "a red fox\n{\"prompt\": \"an owl\"}\n").unwrap_err().to_string();
        assert!(mixed.contains("p.txt:2: a line of JSON in a file of plain prompts"), "{mixed}");
        assert!(read(Path::new("/nowhere/p.txt")).unwrap_err().to_string().contains("/nowhere/p.txt"));
    }
}
