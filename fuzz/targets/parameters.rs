//! The settings of web UIs: every text has a prompt, and every value comes back as it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sdshard::pipeline::{
    Settings,
    parameters::{Parameters, quoted},
};
use sdshard_fuzz::refused;

fuzz_target!(|text: &str| {
    if let Err(error) = Settings::of_file(text.as_bytes()) {
        refused(&error);
    }
    if !text.is_empty() {
        let said = Parameters::parse(&format!("a\nSteps: 1, Model: {}, Seed: 2, Size: 8x8", quoted(text)));
        assert_eq!(said.get("Model"), Some(text));
        assert_eq!((said.prompt.as_str(), said.get("Size")), ("a", Some("8x8")));
    }
});
