//! The names of files: from `--output`, or from the position in the list and the beginning of the prompt; and how
//! conflicts of names are solved.
//!
//! A picture has a few possible names, which depend on its request alone: the plain one, the one with the seed, and the
//! one with the seed and a digest of the metadata. It gets the first name whose file is its own or does not exist. So
//! any process, and any later run, finds the file by the request and the contents of the folder.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use sdshard::{
    error::{Error, Result},
    output::{self, Durability},
    pipeline::Metadata,
};
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

/// The largest number of characters of a prompt in a name, and of their bytes.
const SLUG: usize = 40;
const SLUG_BYTES: usize = 120;
/// The largest number of bytes of a name without the appended parts; file systems allow 255 in total.
const STEM_BYTES: usize = 200;
/// The placeholders of a template, for messages.
const PLACEHOLDERS: &str = "{index}, {image}, {seed} and {prompt}";
/// Names that Windows reserves for devices, with any extension.
const RESERVED: [&str; 4] = ["con", "prn", "aux", "nul"];

/// The template of `--output`: a path with placeholders, which may contain folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The position of the prompt in the list, from 0.
    Index,
    /// The number of the picture among those of the prompt, from 0.
    Image,
    Seed,
    Prompt,
}

/// The values for the placeholders of a template.
#[derive(Debug, Clone, Copy)]
pub struct NameFields<'a> {
    pub prompt_index: usize,
    pub image_index: usize,
    /// The number of pictures of the prompt.
    pub images: usize,
    pub prompt: &'a str,
    pub seed: u64,
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '{' | '}' if rest.starts_with(c) => {
                    plain.push(c);
                    rest = &rest[1..];
                }
                '{' => {
                    let (name, behind) =
                        rest.split_once('}').ok_or("a { has no } behind it; a brace itself is written {{ or }}")?;
                    let part = match name {
                        "index" => Part::Index,
                        "image" => Part::Image,
                        "seed" => Part::Seed,
                        "prompt" => Part::Prompt,
                        _ => return Err(format!("there is no {{{name}}}; possible are {PLACEHOLDERS}")),
                    };
                    parts.extend([Part::Text(std::mem::take(&mut plain)), part]);
                    rest = behind;
                }
                '}' => return Err("a } has no { before it; a brace itself is written {{ or }}".to_string()),
                c if c.is_control() => return Err("a control character cannot be in a file's name".to_string()),
                c => plain.push(c),
            }
        }
        parts.push(Part::Text(plain));
        let template = Self(parts);
        let longest = NameFields { prompt_index: 999_999, image_index: 99_999, images: 1, prompt: "", seed: u64::MAX };
        let longest = template.fill(&longest, &"x".repeat(SLUG_BYTES));
        let name = longest.rsplit(std::path::is_separator).next().unwrap_or_default();
        if matches!(name, "" | "." | "..") {
            return Err("this is a folder; --output-dir takes one".to_string());
        }
        if text == "-" {
            return Err("stdout has the paths of the pictures".to_string());
        }
        match longest.split(std::path::is_separator).map(str::len).max() {
            Some(STEM_BYTES..) => Err(format!("a name could have more than {STEM_BYTES} bytes")),
            _ => Ok(template),
        }
    }
}

impl Template {
    fn fill(&self, place: &NameFields, slug: &str) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Index => format!("{:05}", place.prompt_index),
            Part::Image => format!("{:02}", place.image_index),
            Part::Seed => place.seed.to_string(),
            Part::Prompt if slug.is_empty() => "untitled".to_string(),
            Part::Prompt => slug.to_string(),
        };
        self.0.iter().map(part).collect()
    }

    /// The folder that contains all files: the template's leading folders without placeholders.
    pub fn folder(&self) -> &Path {
        let Some(Part::Text(text)) = self.0.first() else { return Path::new("") };
        Path::new(text.rfind(std::path::is_separator).map_or("", |at| &text[..=at]))
    }

    /// The path, if the template names an existing folder instead of a file.
    pub fn as_folder_in(&self, folder: &Path) -> Option<PathBuf> {
        let [Part::Text(text)] = self.0.as_slice() else { return None };
        Some(folder.join(text)).filter(|path| path.is_dir())
    }

    /// The names of one picture. If the template has an extension, it must be that of the format.
    ///
    /// # Errors
    /// If the extension is that of another format.
    pub fn names(&self, place: &NameFields, extension: &'static str) -> Result<Names> {
        let mut stem = self.fill(place, &slug(place.prompt));
        let said = Path::new(&stem).extension().and_then(|said| said.to_str()).unwrap_or_default().to_ascii_lowercase();
        let extension = if (said.as_str(), extension) == ("jpeg", "jpg") { "jpeg" } else { extension };
        if said == extension {
            stem.truncate(stem.len() - said.len() - 1);
        } else if ["png", "safetensors", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"].contains(&said.as_str()) {
            return Err(Error::input(format!("--output: the files are .{extension}"))
                .found(format!(".{said}"))
                .hint(format!(".{extension}, or no extension; --output-type chooses png, jpeg, webp or latent")));
        }
        let at = stem.rfind(std::path::is_separator).map_or(0, |at| at + 1);
        if is_reserved(&stem[at..]) {
            stem.insert(at, '_');
        }
        Ok(Names { stem, extension, seed: place.seed, has_seed: self.0.contains(&Part::Seed), first: 0 })
    }
}

/// Whether Windows reserves a name for a device.
fn is_reserved(name: &str) -> bool {
    let name = name.split('.').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    let numbered =
        |kind: &str| name.strip_prefix(kind).is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit());
    RESERVED.contains(&name.as_str()) || numbered("com") || numbered("lpt")
}

/// The possible names of one picture, the preferred one first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Names {
    /// The name without extension.
    stem: String,
    extension: &'static str,
    seed: u64,
    /// Whether the stem contains the seed already.
    has_seed: bool,
    /// The first name that no other picture of the same list prefers: 0 for the stem, 1 with the seed, 2 with the
    /// digest.
    first: usize,
}

/// The preferred name, as far as it is known without the model.
impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stem, extension, .. } = self;
        if self.first == 0 { write!(f, "{stem}.{extension}") } else { write!(f, "{}.{extension}", self.with_seed()) }
    }
}

impl Names {
    /// The name `00003-a-red-fox.png`, or `00003_01-a-red-fox.png` if a prompt has several pictures.
    pub fn by_place(place: &NameFields, extension: &'static str) -> Self {
        let image = if place.images > 1 { format!("_{:02}", place.image_index) } else { String::new() };
        let slug = slug(place.prompt);
        let hyphen = if slug.is_empty() { "" } else { "-" };
        let stem = format!("{:05}{image}{hyphen}{slug}", place.prompt_index);
        Self { stem, extension, seed: place.seed, has_seed: false, first: 0 }
    }

    fn with_seed(&self) -> String {
        if self.has_seed { self.stem.clone() } else { format!("{}-seed{}", self.stem, self.seed) }
    }

    /// All names of a picture with this `metadata`.
    pub fn all(&self, metadata: &Metadata) -> Vec<String> {
        let with_digest = format!("{}-{}", self.with_seed(), metadata.digest());
        let mut stems = vec![self.stem.clone(), self.with_seed(), with_digest];
        stems.drain(..self.first);
        stems.dedup();
        stems.iter().map(|stem| format!("{stem}.{}", self.extension)).collect()
    }

    /// The path of a picture's file: an existing file with the same metadata, or else the first name that is free.
    /// `None` if other files have all its names.
    pub fn find(&self, folder: &Path, metadata: &Metadata) -> Option<PathBuf> {
        let mut paths = self.all(metadata).into_iter().map(|name| folder.join(name));
        let own = paths.clone().find(|path| is_of(path, metadata));
        own.or_else(|| paths.find(|path| path.symlink_metadata().is_err()))
    }

    /// Writes the file of a picture under the first of its names that is its own or free, or with `overwrite` under the
    /// preferred name in any case. Processes that do this at the same time never replace each other's pictures.
    ///
    /// # Errors
    /// If the file cannot be written, or other files have all of its names.
    pub fn save(
        &self,
        folder: &Path,
        metadata: &Metadata,
        bytes: &[u8],
        replacing: Replacing,
        durability: Durability,
    ) -> Result<PathBuf> {
        let own_folder = folder.join(&self.stem);
        if self.stem.contains(std::path::is_separator)
            && let Some(parent) = own_folder.parent()
        {
            output::make_folder(parent)?;
        }
        if replacing == Replacing::Others {
            let path = folder.join(&self.all(metadata)[0]);
            return output::write(&path, bytes, durability).map(|()| path);
        }
        // Another process may take the name before this one does; then the next name is tried, if there is one.
        while let Some(path) = self.find(folder, metadata) {
            if is_of(&path, metadata) {
                return output::write(&path, bytes, durability).map(|()| path);
            }
            if output::create(&path, bytes, durability)? {
                return Ok(path);
            }
        }
        Err(Error::request(format!("there is no name for it in {}", folder.display())).hint("--overwrite"))
    }
}

/// The files that a picture may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacing {
    /// Only a file that was made from the same request.
    Itself,
    /// Any file with the name.
    Others,
}

/// Gives pictures of one list that prefer the same name different names.
pub fn tell_apart<'a>(names: impl IntoIterator<Item = &'a mut Names>) {
    let mut names: Vec<_> = names.into_iter().collect();
    for first in [1, 2] {
        let mut counts = std::collections::HashMap::new();
        names.iter().for_each(|names| *counts.entry(names.to_string()).or_insert(0) += 1);
        for names in names.iter_mut().filter(|names| counts[&names.to_string()] > 1) {
            names.first = first;
        }
    }
}

/// Whether a file was made from this request; false if it cannot be read.
fn is_of(path: &Path, metadata: &Metadata) -> bool {
    Metadata::read(path).is_ok_and(|said| said.as_ref() == Some(metadata))
}

/// Lower-case letters and digits of any script, composed (NFC), with single hyphens in place of other characters; empty
/// if the prompt has none.
fn slug(prompt: &str) -> String {
    let (mut slug, mut count) = (String::new(), 0);
    for c in prompt.chars().flat_map(char::to_lowercase).nfc() {
        let is_mark = is_combining_mark(c) && !slug.is_empty() && !slug.ends_with('-');
        let c = if c.is_alphanumeric() || is_mark { c } else { '-' };
        if c == '-' && (slug.is_empty() || slug.ends_with('-')) {
            continue;
        }
        count += 1;
        if count > SLUG || slug.len() + c.len_utf8() > SLUG_BYTES {
            break;
        }
        slug.push(c);
    }
    slug.truncate(slug.trim_end_matches('-').len());
    slug
}

/// Rejects a path that no file can have, before anything is computed.
pub fn file_name_is_possible(option: &str, path: &Path) -> Result<()> {
    if path == Path::new("-") || is_stdout(path) {
        return Err(
            Error::input(format!("{option} {}: stdout has the results", path.display())).hint("the path of a file")
        );
    }
    output::check_possible(path).map_err(|error| error.context(option))
}

/// Whether a path is the regular file to which stdout is redirected.
fn is_stdout(path: &Path) -> bool {
    #[cfg(unix)]
    return std::fs::metadata(path).is_ok_and(|there| {
        use std::os::unix::fs::MetadataExt;
        let stdout = rustix::fs::fstat(std::io::stdout());
        there.is_file() && stdout.is_ok_and(|out| (out.st_dev, out.st_ino) == (there.dev(), there.ino()))
    });
    #[cfg(not(unix))]
    return path == Path::new("CON");
}

#[cfg(test)]
mod tests {
    use sdshard::pipeline::options::RequestOptions;

    use super::*;

    fn place(prompt_index: usize, image_index: usize, images: usize, prompt: &str) -> NameFields<'_> {
        NameFields { prompt_index, image_index, images, prompt, seed: 7 }
    }

    #[test]
    fn names_sort_by_place_and_show_the_prompt() {
        for (prompt_index, image_index, images, prompt, name) in [
            (0, 0, 1, "a red fox", "00000-a-red-fox.png"),
            (3, 1, 4, "A Red Fox!", "00003_01-a-red-fox.png"),
            (0, 100, 101, "x", "00000_100-x.png"),
            (123_456, 0, 1, "x", "123456-x.png"),
            (1, 0, 1, "", "00001.png"),
            (1, 0, 2, "🦊 !", "00001_00.png"),
            (1, 0, 1, "../../etc/passwd", "00001-etc-passwd.png"),
            (1, 0, 1, "  --- CON: a\nb\t", "00001-con-a-b.png"),
            (
                1,
                0,
                1,
                "one two three four five six seven eight nine ten",
                "00001-one-two-three-four-five-six-seven-eight.png",
            ),
            (
                1,
                0,
                1,
                "one two three four five six seven eigh nine",
                "00001-one-two-three-four-five-six-seven-eigh-n.png",
            ),
        ] {
            assert_eq!(Names::by_place(&place(prompt_index, image_index, images, prompt), "png").to_string(), name);
        }
        assert_eq!(slug(&"x".repeat(100)).len(), SLUG);
    }

    #[test]
    fn letters_of_every_script_are_kept_in_names() {
        for (prompt, wanted) in [
            ("Café für Füchse, süß", "café-für-füchse-süß"),
            ("Cafe\u{301} A\u{30a}", "café-å"), // composed
            ("日本語 の 狐", "日本語-の-狐"),
            ("ЛИСА 狐狸 🦊", "лиса-狐狸"),
            ("हिन्दी", "हिन्दी"), // with marks that are not letters
            ("\u{301}x", "x"),
            ("a\u{202e}b\u{1b}[31mc\u{0}d", "a-b-31mc-d"),
        ] {
            assert_eq!(slug(prompt), wanted);
        }
        // The longest letters that exist, and many combining marks.
        for prompt in ["𠀀".repeat(500), format!("a{}", "\u{33f}".repeat(5000)), "İ".repeat(100)] {
            let slug = slug(&prompt);
            assert!(slug.len() <= SLUG_BYTES && slug.chars().count() <= SLUG && !slug.is_empty(), "{slug}");
        }
    }

    fn name_from(template: &str, prompt: &str) -> String {
        template.parse::<Template>().unwrap().names(&place(3, 1, 2, prompt), "png").unwrap().to_string()
    }

    #[test]
    fn a_template_names_the_files() {
        for (template, name) in [
            ("fox.png", "fox.png"),
            ("fox", "fox.png"),
            ("FOX.PNG", "FOX.png"),
            ("v1.5-{seed}", "v1.5-7.png"),
            ("{prompt}/{index}_{image}-{seed}.png", "a-red-fox/00003_01-7.png"),
            ("{{{prompt}}}", "{a-red-fox}.png"),
            ("nul", "_nul.png"),
            ("a/COM1.x.png", "a/_COM1.x.png"),
        ] {
            assert_eq!(name_from(template, "A red fox"), name, "{template}");
        }
        assert_eq!(name_from("{prompt}", "Con"), "_con.png");
        assert_eq!(name_from("{prompt}", "!!"), "untitled.png");
        assert_eq!("a/b/{prompt}/c".parse::<Template>().unwrap().folder(), Path::new("a/b/"));
        assert_eq!("{prompt}/c".parse::<Template>().unwrap().folder(), Path::new(""));
    }

    #[test]
    fn a_template_that_names_no_file_is_refused() {
        let long = "x".repeat(300);
        for (template, says) in [
            ("{sed}.png", "there is no {sed}; possible are {index}, {image}, {seed} and {prompt}"),
            ("{index:05}", "there is no {index:05}"),
            ("{}", "there is no {}"),
            ("{seed", "no } behind it"),
            ("seed}", "no { before it"),
            ("", "--output-dir"),
            ("day1/", "--output-dir"),
            ("..", "--output-dir"),
            ("-", "stdout"),
            ("a\nb", "control character"),
            ("a\0b", "control character"),
            (&long, "more than 200 bytes"),
            ("{prompt}{prompt}", "more than 200 bytes"),
        ] {
            let error = template.parse::<Template>().unwrap_err();
            assert!(error.contains(says), "{template}: wanted {says}\n{error}");
        }
        for (template, extension) in [("a.jpg", "png"), ("a.safetensors", "png"), ("a.PNG", "safetensors")] {
            let names = template.parse::<Template>().unwrap().names(&place(0, 0, 1, "x"), extension);
            assert_eq!(names.unwrap_err().exit_code(), 2, "{template}");
        }
    }

    #[test]
    fn pictures_of_one_list_that_prefer_one_name_get_their_own_by_seed_and_then_by_digest() {
        let template: Template = "{prompt}.png".parse().unwrap();
        let mut names: Vec<_> = [("a", 1), ("b", 1), ("a", 2), ("c", 3), ("c", 3)]
            .map(|(prompt, seed)| template.names(&NameFields { seed, ..place(0, 0, 1, prompt) }, "png").unwrap())
            .into();
        tell_apart(&mut names);
        let shown: Vec<_> = names.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a-seed1.png", "b.png", "a-seed2.png", "c-seed3.png", "c-seed3.png"]);
        assert_eq!(names.iter().map(|names| names.first).collect::<Vec<_>>(), [1, 0, 1, 2, 2]);
    }

    fn metadata(seed: u64, steps: usize) -> Metadata {
        Metadata {
            model: "m".into(),
            model_hash: "0".into(),
            request: RequestOptions {
                prompt: Some("a".into()),
                negative_prompt: Some(String::new()),
                seed: Some(seed),
                steps: Some(steps),
                guidance_scale: Some(7.5),
                scheduler: Some("ddim".into()),
                width: Some(1),
                height: Some(1),
                ..RequestOptions::default()
            },
            dtype: "f32".into(),
            rng: "cpu".into(),
            loras: Vec::new(),
            lora_hashes: Vec::new(),
            vae: None,
            controlnets: Vec::new(),
            embeddings: Vec::new(),
            latents: None,
            image_pixels: None,
            mask_pixels: None,
            control_pixels: Vec::new(),
        }
    }

    /// Saves a picture with this `metadata`, whose only pixel is `grey`, and returns the name of its file.
    fn save(folder: &Path, metadata: &Metadata, grey: u8, replacing: Replacing) -> Result<String> {
        let image = sdshard::pipeline::Image { width: 1, height: 1, rgb: vec![grey; 3] };
        let (place, bytes) = (
            NameFields { seed: metadata.request.seed.unwrap(), ..place(0, 0, 1, "a") },
            image.encode(sdshard::pipeline::PictureFormat::Png, metadata).unwrap(),
        );
        let path = Names::by_place(&place, "png").save(folder, metadata, &bytes, replacing, Durability::Buffered)?;
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        Ok(path.file_name().unwrap().to_str().unwrap().to_string())
    }

    #[test]
    fn a_name_that_is_taken_gets_the_seed_and_then_a_digest() {
        let folder = tempfile::tempdir().unwrap();
        let save = |metadata: &Metadata| save(folder.path(), metadata, 1, Replacing::Itself).unwrap();
        let (first, seed, steps) = (metadata(7, 1), metadata(8, 1), metadata(8, 2));
        let digest = format!("00000-a-seed8-{}.png", steps.digest());
        let wanted = [(&first, "00000-a.png"), (&seed, "00000-a-seed8.png"), (&steps, digest.as_str())];
        // The second time, each picture finds its own file.
        for (metadata, name) in wanted.into_iter().chain(wanted) {
            assert_eq!(save(metadata), name);
        }
        // The file is found by its metadata, even if an earlier name has become free.
        std::fs::remove_file(folder.path().join("00000-a.png")).unwrap();
        assert_eq!(save(&steps), digest);
    }

    #[test]
    fn files_of_other_requests_are_not_replaced_without_overwrite() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, folder) = (metadata(7, 1), folder.path());
        let names = Names::by_place(&place(0, 0, 1, "a"), "png").all(&mine);
        assert_eq!(names.len(), 3);
        for (i, name) in names.iter().enumerate() {
            assert_eq!(save(folder, &mine, 1, Replacing::Itself).unwrap(), *name);
            std::fs::write(folder.join(name), format!("of somebody else {i}")).unwrap();
        }
        let error = save(folder, &mine, 1, Replacing::Itself).unwrap_err();
        assert!(error.to_string().contains("--overwrite"), "{error}");
        for (i, name) in names.iter().enumerate() {
            assert_eq!(std::fs::read_to_string(folder.join(name)).unwrap(), format!("of somebody else {i}"));
        }
        assert_eq!(save(folder, &mine, 1, Replacing::Others).unwrap(), names[0]);
    }

    #[test]
    fn pictures_that_are_saved_at_the_same_time_do_not_replace_each_other() {
        // There are two of each request, which share a file.
        let (count, rounds) = (4, 50);
        for _ in 0..rounds {
            at_once(count);
        }
    }

    /// Saves from `count` threads at the same time.
    fn at_once(count: u64) {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let together = std::sync::Barrier::new(2 * count as usize);
        let mut names: Vec<String> = std::thread::scope(|scope| {
            let save = |i: u64| {
                together.wait();
                save(folder, &metadata(i / 2, 1), 1, Replacing::Itself).unwrap()
            };
            let threads: Vec<_> = (0..2 * count).map(|i| scope.spawn(move || save(i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        names.sort();
        names.dedup();
        let mut seeds: Vec<_> = names
            .iter()
            .map(|name| Metadata::read(&folder.join(name)).unwrap().unwrap().request.seed.unwrap())
            .collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds, (0..count).collect::<Vec<_>>());
    }
}
