//! Files that stand where pictures and latents go, or that are given as latents: read, refused, or not ours.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use sdshard::pipeline::{latents::Latents, metadata::Metadata};
use sdshard_fuzz::refused;

/// One name for each process and kind of file.
static PATHS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    ["png", "safetensors"]
        .map(|extension| std::env::temp_dir().join(format!("sdshard-fuzz-{}.{extension}", std::process::id())))
});

fuzz_target!(|bytes: &[u8]| {
    for path in &*PATHS {
        fs::write(path, bytes).expect("the folder for temporary files can be written to");
        let metadata = Metadata::read(path).expect("a file that is there can be opened");
        if let Some(metadata) = metadata {
            metadata.parameters();
        }
    }
    match Latents::read(&PATHS[1]) {
        Ok(latents) => assert_eq!(latents.values.len(), latents.channels * latents.height * latents.width),
        Err(error) => refused(&error),
    }
});
