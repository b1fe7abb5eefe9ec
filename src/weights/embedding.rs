//! Files of textual inversions: vectors of the token embedding that a prompt uses by a name. Gal et al. 2022.

use std::path::Path;

use super::TensorFile;
use crate::error::{Error, Result};

/// The key of files without a name of their own, as web UIs write them.
const UNNAMED: &str = "emb_params";
/// The keys of files for two text encoders, the first encoder first.
const PAIRS: [[&str; 2]; 2] = [["clip_l", "clip_g"], ["text_encoders_0", "text_encoders_1"]];
/// The most vectors of a file; a prompt has room for fewer.
const MOST_VECTORS: usize = 4096;

/// A textual inversion.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The name of the file in messages.
    path: String,
    /// The file's name without folder and extension.
    stem: String,
    /// The token in the file, as diffusers writes it.
    token: Option<String>,
    /// The vectors for each text encoder: as many for each.
    parts: Vec<Part>,
}

/// The vectors for one text encoder.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    key: String,
    width: usize,
    /// `[vectors, width]`
    values: Vec<f32>,
}

/// The vectors of an embedding for one text encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vectors<'a> {
    /// The number of vectors.
    pub count: usize,
    /// Their values, `[count, width]`.
    pub values: &'a [f32],
}

impl Embedding {
    /// Reads a safetensors file in one of these forms:
    ///
    /// | keys | for |
    /// |---|---|
    /// | `emb_params`, `[vectors, width]` | one text encoder |
    /// | any other key, which is the token, `[width]` or `[vectors, width]` | one text encoder; diffusers' form |
    /// | `clip_l` and `clip_g`, or `text_encoders_0` and `text_encoders_1` | two text encoders |
    ///
    /// # Errors
    /// If it is another file, for example a pickle or a LoRA, or if a value is not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        if path.extension().is_some_and(|extension| ["png", "webp", "jxl", "avif"].iter().any(|e| extension == *e)) {
            return Err(Error::input(format!("the embedding {shown}: embeddings in pictures are not read"))
                .hint("the same embedding as a safetensors file"));
        }
        let file = TensorFile::open(path).map_err(|error| error.context("the embedding"))?;
        let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let keys: Vec<&str> = file.tensors().map(|(name, _)| name).collect();
        let pair = PAIRS.iter().find(|pair| pair.iter().any(|key| keys.contains(key)));
        let wanted = match (pair, &keys[..]) {
            (Some(pair), _) => pair.to_vec(),
            (None, [key]) => vec![*key],
            _ => {
                let list: Vec<&str> = keys.iter().take(3).copied().collect();
                return Err(Error::input(format!(
                    "the embedding {shown}: this is no textual inversion, which has one tensor, or two for \
                                                 SDXL"
                ))
                .found(format!("{} tensors: {}", keys.len(), list.join(", "))));
            }
        };
        if let Some(other) = keys.iter().find(|key| !wanted.contains(key)) {
            let error = Error::input(format!("the embedding {shown}: `{other}` is not supported"));
            return Err(match other.ends_with("_out") {
                true => error.hint("it is added to the output of a text encoder, which sdshard does not do"),
                false => {
                    error.hint(format!("the tensors of an embedding for two text encoders: {}", wanted.join(", ")))
                }
            });
        }
        if let Some(missing) = wanted.iter().find(|key| !keys.contains(key)) {
            return Err(Error::input(format!("the embedding {shown}: `{missing}` is missing"))
                .hint(format!("an embedding for two text encoders has {}", wanted.join(" and "))));
        }
        let parts: Vec<Part> = wanted.iter().map(|key| part(&file, key)).collect::<Result<_>>()?;
        let counts: Vec<usize> = parts.iter().map(Part::count).collect();
        if counts.iter().any(|count| *count != counts[0]) {
            return Err(Error::input(format!(
                "the embedding {shown}: both text encoders need the same number of vectors"
            ))
            .found(format!("{counts:?}")));
        }
        let token = (pair.is_none() && wanted[0] != UNNAMED).then(|| wanted[0].to_owned());
        Ok(Self { path: shown.to_string(), stem, token, parts })
    }

    /// The name in plain prompts unless another is given: the token in the file, or else [`Embedding::stem`].
    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap_or(&self.stem)
    }

    /// The file's name without folder and extension: the name in the prompts of web UIs unless another is given.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// The vectors for each of a model's text encoders, which have these names and widths.
    ///
    /// # Errors
    /// If the embedding was made for another number of text encoders, or for other widths.
    pub fn for_encoders(&self, encoders: &[(&str, usize)]) -> Result<Vec<Vectors<'_>>> {
        let refuse = |what: String| Error::input(format!("the embedding {}: {what}", self.path));
        let kind = |widths: &[usize]| match widths {
            [768] => " (Stable Diffusion 1)",
            [1024] => " (Stable Diffusion 2)",
            [768, 1280] => " (SDXL)",
            _ => "",
        };
        let own: Vec<usize> = self.parts.iter().map(|part| part.width).collect();
        let model: Vec<usize> = encoders.iter().map(|(_, width)| *width).collect();
        if own.len() != model.len() {
            let count = |n: usize| if n == 1 { "one text encoder".to_owned() } else { format!("{n} text encoders") };
            return Err(refuse(format!("this model has {}{}", count(model.len()), kind(&model))).found(format!(
                "vectors for {}{}",
                count(own.len()),
                kind(&own)
            )));
        }
        if let Some((part, (name, width))) = self.parts.iter().zip(encoders).find(|(part, (_, w))| part.width != *w) {
            return Err(refuse(format!(
                "`{}` must have vectors of {width} values{} for {name}",
                part.key,
                kind(&model)
            ))
            .found(format!("{} values{}", part.width, kind(&own))));
        }
        Ok(self.parts.iter().map(|part| Vectors { count: part.count(), values: &part.values }).collect())
    }
}

impl Part {
    fn count(&self) -> usize {
        self.values.len() / self.width
    }
}

/// Reads the vectors under a key.
fn part(file: &TensorFile, key: &str) -> Result<Part> {
    let (index, shape) = file
        .tensors()
        .enumerate()
        .find_map(|(index, (name, shape))| (name == key).then_some((index, shape)))
        .expect("the caller has found the key");
    let width = match *shape {
        [width] | [1..=MOST_VECTORS, width] if width > 0 => width,
        _ => {
            return Err(Error::input(format!(
                "the embedding {}: `{key}` must be [width] or [vectors, width]",
                file.path()
            ))
            .found(format!("{shape:?}")));
        }
    };
    let values = file.values(index).map_err(|error| error.context("the embedding"))?;
    Ok(Part { key: key.to_owned(), width, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tensor_file::tests::{file_of, on_disk};

    fn read(name: &str, tensors: &[(&str, &[usize], &[f32])]) -> Result<Embedding> {
        let (_folder, path) = on_disk(name, &file_of(tensors));
        Embedding::read(&path)
    }

    const ZEROS: [f32; 6] = [0.0; 6];

    #[test]
    fn reads_every_form_of_the_file() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        for (name, key, shape, token, count) in [
            ("easy.safetensors", "emb_params", &[2, 3][..], "easy", 2),
            ("learned_embeds.safetensors", "<cat-toy>", &[6], "<cat-toy>", 1),
            ("learned_embeds.safetensors", "<cat-toy>", &[1, 6], "<cat-toy>", 1),
            ("a.b.safetensors", "<x>", &[3, 2], "<x>", 3),
        ] {
            let embedding = read(name, &[(key, shape, &values)]).unwrap();
            assert_eq!((embedding.token(), embedding.stem()), (token, name.strip_suffix(".safetensors").unwrap()));
            let vectors = embedding.for_encoders(&[("text_encoder", 6 / count)]).unwrap();
            assert_eq!(vectors, [Vectors { count, values: &values }]);
        }
        for [first, second] in PAIRS {
            let tensors: &[(&str, &[usize], &[f32])] = &[(second, &[2, 3], &values), (first, &[2, 2], &values[..4])];
            let embedding = read("x.safetensors", tensors).unwrap();
            assert_eq!(embedding.token(), "x");
            let vectors = embedding.for_encoders(&[("text_encoder", 2), ("text_encoder_2", 3)]).unwrap();
            assert_eq!(
                vectors.iter().map(|part| (part.count, part.values)).collect::<Vec<_>>(),
                [(2, &values[..4]), (2, &values[..])]
            );
        }
    }

    #[test]
    fn a_file_that_is_no_embedding_is_refused() {
        let bad = [0.0, f32::NAN];
        for (tensors, says) in [
            (&[][..], "this is no textual inversion, which has one tensor, or two for SDXL\n  found: 0 tensors"),
            (
                &[("a.lora_up.weight", &[1, 1][..], &ZEROS[..1]), ("a.lora_down.weight", &[1, 1], &ZEROS[..1])],
                "found: 2 tensors",
            ),
            (&[("clip_l", &[1, 2], &ZEROS[..2])], "`clip_g` is missing"),
            (&[("clip_g", &[1, 2], &ZEROS[..2])], "has clip_l and clip_g"),
            (
                &[("clip_g", &[1, 2], &ZEROS[..2]), ("clip_l", &[2, 2], &ZEROS[..4])],
                "the same number of vectors\n  found: [2, 1]",
            ),
            (
                &[("clip_g", &[2], &ZEROS[..2]), ("clip_l", &[2], &ZEROS[..2]), ("clip_l_out", &[2], &ZEROS[..2])],
                "`clip_l_out` is not supported\n  try:   it is added to the output",
            ),
            (
                &[("clip_g", &[2], &ZEROS[..2]), ("text_encoders_0", &[2], &ZEROS[..2])],
                "`text_encoders_0` is not supported",
            ),
            (&[("emb_params", &[1, 1, 2], &ZEROS[..2])], "must be [width] or [vectors, width]\n  found: [1, 1, 2]"),
            (&[("emb_params", &[2, 0], &[])], "found: [2, 0]"),
            (&[("emb_params", &[0, 2], &[])], "found: [0, 2]"),
            (&[("emb_params", &[], &ZEROS[..1])], "found: []"),
            (&[("emb_params", &[2], &bad)], "`emb_params` has a value that is not finite\n  found: NaN at index 1"),
        ] {
            let error = read("x.safetensors", tensors).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says) && error.to_string().contains("x.safetensors"), "{error}");
        }
        let error = Embedding::read(Path::new("x.png")).unwrap_err().to_string();
        assert!(error.contains("embeddings in pictures are not read"), "{error}");
        let (_folder, path) = on_disk("x.pt", b"\x80\x02}");
        let error = Embedding::read(&path).unwrap_err().to_string();
        assert!(error.starts_with("the embedding: ") && error.contains("x.pt: this is a pickle file"), "{error}");
    }

    #[test]
    fn an_embedding_for_another_model_is_refused() {
        let embedding = read("x.safetensors", &[("emb_params", &[1, 768], &[0.0; 768])]).unwrap();
        let refuse = |encoders: &[(&str, usize)]| embedding.for_encoders(encoders).unwrap_err().to_string();
        let error = refuse(&[("text_encoder", 1024)]);
        let says = "`emb_params` must have vectors of 1024 values (Stable Diffusion 2) for text_encoder\n  found: 768 values (Stable \
                    Diffusion 1)";
        assert!(error.contains(says), "{error}");
        let error = refuse(&[("text_encoder", 768), ("text_encoder_2", 1280)]);
        let says = "this model has 2 text encoders (SDXL)\n  found: vectors for one text encoder (Stable Diffusion 1)";
        assert!(error.contains(says), "{error}");
    }
}
