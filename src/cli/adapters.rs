//! Files on the command line with a weight or a token behind a colon, such as `--lora FILE[:WEIGHT]`.

use sdshard::{
    error::{Error, Result},
    weights::{EmbeddingChoice, lora::LoraChoice},
};

/// Reads `--lora FILE[:WEIGHT]`.
pub fn lora(argument: &str) -> std::result::Result<LoraChoice, String> {
    let (file, weight) = file_and_weight(argument).map_err(|error| error.to_string())?;
    Ok(LoraChoice::new(file, weight.unwrap_or(1.0)))
}

/// Reads `--embedding FILE[:TOKEN]`.
pub fn embedding(argument: &str) -> std::result::Result<EmbeddingChoice, String> {
    let (file, token) = file_and_token(argument).map_err(|error| error.to_string())?;
    Ok(EmbeddingChoice { path: file.into(), token: token.map(str::to_owned) })
}

/// Splits `FILE[:WEIGHT]` at the last colon if a number follows it. A colon behind a single letter belongs to a drive.
///
/// # Errors
/// If the number is not finite in f32.
pub fn file_and_weight(argument: &str) -> Result<(&str, Option<f32>)> {
    let is_number = |text: &str| {
        text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'+' | b'-' | b'e' | b'E')) && text.parse::<f32>().is_ok()
    };
    match split(argument).filter(|(_, text)| is_number(text)) {
        None => Ok((argument, None)),
        Some((file, text)) => match text.parse::<f32>() {
            Ok(weight) if weight.is_finite() => Ok((file, Some(weight))),
            _ => Err(Error::input(format!("--lora {argument}: the weight is too large")).found(text)),
        },
    }
}

/// Splits `FILE[:TOKEN]` at the last colon. A colon behind a single letter belongs to a drive, and one before a
/// separator or a name that ends in `.safetensors` to a path.
///
/// # Errors
/// If there is a colon and no token behind it.
pub fn file_and_token(argument: &str) -> Result<(&str, Option<&str>)> {
    let is_path = |text: &str| text.contains(['/', '\\']) || text.to_ascii_lowercase().ends_with(".safetensors");
    match split(argument).filter(|(_, token)| !is_path(token)) {
        None => Ok((argument, None)),
        Some((_, "")) => Err(Error::input(format!("--embedding {argument}: a token is wanted behind the colon"))
            .hint("--embedding FILE, or --embedding FILE:TOKEN")),
        Some((file, token)) => Ok((file, Some(token))),
    }
}

/// The parts before and after the last colon, unless it is a drive's.
fn split(argument: &str) -> Option<(&str, &str)> {
    let is_drive = |file: &str| file.len() == 1 && file.starts_with(|c: char| c.is_ascii_alphabetic());
    argument.rsplit_once(':').filter(|(file, _)| !file.is_empty() && !is_drive(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_a_number_behind_the_last_colon() {
        for (argument, want) in [
            ("snow.safetensors", ("snow.safetensors", None)),
            ("snow.safetensors:0.8", ("snow.safetensors", Some(0.8))),
            ("snow.safetensors:-1", ("snow.safetensors", Some(-1.0))),
            ("snow.safetensors:1e-1", ("snow.safetensors", Some(0.1))),
            ("a:b.safetensors", ("a:b.safetensors", None)),
            ("a:1:2", ("a:1", Some(2.0))),
            (r"C:\loras\snow.safetensors", (r"C:\loras\snow.safetensors", None)),
            (r"C:\loras\snow.safetensors:.5", (r"C:\loras\snow.safetensors", Some(0.5))),
            ("C:1", ("C:1", None)),
            ("snow:inf", ("snow:inf", None)),
            ("snow:nan", ("snow:nan", None)),
            ("snow:", ("snow:", None)),
            ("snow:strong", ("snow:strong", None)),
            (":1", (":1", None)),
        ] {
            assert_eq!(file_and_weight(argument).unwrap(), want, "{argument}");
        }
        let error = file_and_weight("snow:1e39").unwrap_err().to_string();
        assert!(error.contains("--lora snow:1e39: the weight is too large\n  found: 1e39"), "{error}");
    }

    #[test]
    fn a_token_is_behind_the_last_colon() {
        for (argument, want) in [
            ("cat.safetensors", ("cat.safetensors", None)),
            ("cat.safetensors:<cat-toy>", ("cat.safetensors", Some("<cat-toy>"))),
            ("cat.safetensors:0.5", ("cat.safetensors", Some("0.5"))),
            (r"C:\cat.safetensors", (r"C:\cat.safetensors", None)),
            (r"C:\cat.safetensors:my cat", (r"C:\cat.safetensors", Some("my cat"))),
            ("C:cat.safetensors", ("C:cat.safetensors", None)),
            ("d:ir/cat.safetensors", ("d:ir/cat.safetensors", None)),
            ("dir:2/cat.safetensors", ("dir:2/cat.safetensors", None)),
            ("a:b.safetensors", ("a:b.safetensors", None)),
            ("cat.pt:toy", ("cat.pt", Some("toy"))),
        ] {
            assert_eq!(file_and_token(argument).unwrap(), want, "{argument}");
        }
        let error = file_and_token("cat.safetensors:").unwrap_err().to_string();
        assert!(error.contains("a token is wanted behind the colon"), "{error}");
    }
}
