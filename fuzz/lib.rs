//! What the targets share: models made of bytes, and inputs made of several texts.

use sdshard::weights::ModelFiles;

/// The line between the parts of an input.
pub const SEPARATOR: &[u8] = b"\n=====\n";

/// Calls `run` with a model that has these files: path and contents. `run` must let go of all it made of them.
pub fn with_model(files: &[(&str, &[u8])], run: impl FnOnce(&ModelFiles)) {
    // SAFETY: `ModelFiles::embedded` asks for contents that live for ever, because a program's own do. These live until
    // the end of this function; the model lives as long, and the targets keep nothing beyond `run`.
    let files = unsafe { std::mem::transmute::<&[(&str, &[u8])], &'static [(&'static str, &'static [u8])]>(files) };
    run(&ModelFiles::embedded("m", files));
}

/// The first `N` parts of an input; `None` for those that are empty or missing.
pub fn parts<const N: usize>(input: &[u8]) -> [Option<&[u8]>; N] {
    let mut rest = Some(input);
    std::array::from_fn(|_| {
        let text = rest.take()?;
        let end = text.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
        rest = end.map(|end| &text[end + SEPARATOR.len()..]);
        Some(&text[..end.unwrap_or(text.len())]).filter(|part| !part.is_empty())
    })
}

/// The texts of a model without weights and tokenizer, as targets take them apart.
const CONFIGS: [&str; 6] = [
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
    "sdshard.toml",
];

/// The files of a model that has these texts, in the order of the targets' descriptions.
pub fn configs(texts: [Option<&[u8]>; 6]) -> Vec<(&'static str, &[u8])> {
    CONFIGS.into_iter().zip(texts).filter_map(|(path, text)| Some((path, text?))).collect()
}

/// A refusal has to be the caller's fault, and its message has to print.
pub fn refused(error: &sdshard::error::Error) {
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(!error.to_string().is_empty());
}

/// Ends the program at a panic, as libFuzzer wants it, unless it is the tokenizer library's: those are caught and told.
pub fn let_the_tokenizer_library_panic() {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let end = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let file = panic.location().map_or("", |place| place.file());
            if !file.contains("/tokenizers-") {
                end(panic);
            }
        }));
    });
}
