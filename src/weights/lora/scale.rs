//! The factor of an adapter's product.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    weights::TensorFile,
};

/// The factor: `scale` if the file has it, or else `alpha / rank`. An alpha of 0 counts as the rank, as in kohya's
/// trainer. Without alpha, `peft` gives the factor for the rank. Adapters without rank have the factor 1.
pub(super) fn scale(alpha: Option<f32>, scale: Option<f32>, rank: Option<usize>, peft: impl Fn(usize) -> f32) -> f32 {
    match (scale, alpha, rank) {
        (Some(scale), ..) => scale,
        (None, _, None) => 1.0,
        (None, Some(0.0), Some(_)) => 1.0,
        (None, Some(alpha), Some(rank)) => alpha / rank as f32,
        (None, None, Some(rank)) => peft(rank),
    }
}

/// What PEFT writes about a file's adapters into its header: `lora_adapter_metadata`.
#[derive(Debug, Clone, Default)]
pub(super) struct PeftConfig(BTreeMap<&'static str, Settings>);

/// The settings of one component.
#[derive(Debug, Clone, Default, Deserialize)]
struct Settings {
    lora_alpha: Option<f32>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f32>,
    #[serde(default)]
    use_rslora: bool,
}

/// The prefixes of the keys, longest first.
const COMPONENTS: [&str; 3] = ["text_encoder_2.", "text_encoder.", "unet."];

impl PeftConfig {
    /// That of a file, if it has one.
    ///
    /// # Errors
    /// If it is invalid, or if a pattern of module names is more than the end of a name.
    pub(super) fn of(file: &TensorFile) -> Result<Option<Self>> {
        let text = file.metadata("lora_adapter_metadata");
        text.map(|text| Self::parse(text).map_err(|error| error.context(format!("the LoRA {}", file.path()))))
            .transpose()
    }

    fn parse(text: &str) -> Result<Self> {
        let refuse = || Error::input("its `lora_adapter_metadata` cannot be read");
        let all: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|error| refuse().source(error))?;
        let mut config = Self::default();
        for component in COMPONENTS {
            let own =
                all.iter().filter_map(|(key, value)| Some((key.strip_prefix(component)?.to_owned(), value.clone())));
            let own: serde_json::Map<String, serde_json::Value> = own.filter(|(_, value)| !value.is_null()).collect();
            if own.is_empty() {
                continue;
            }
            let settings =
                Settings::deserialize(serde_json::Value::Object(own)).map_err(|error| refuse().source(error))?;
            let is_literal = |pattern: &String| pattern.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
            if let Some(pattern) = settings.alpha_pattern.keys().find(|pattern| !is_literal(pattern)) {
                return Err(Error::input("a pattern in its `lora_adapter_metadata` is not the end of a module's name")
                    .found(format!("{pattern:?}")));
            }
            config.0.insert(component, settings);
        }
        Ok(config)
    }

    /// The factor of the module with this name in the file and this rank.
    pub(super) fn scale(&self, stem: &str, rank: usize) -> f32 {
        let component = COMPONENTS.into_iter().find(|component| stem.starts_with(component)).unwrap_or("unet.");
        let Some(settings) = self.0.get(component) else { return 1.0 };
        let is_end =
            |pattern: &str| stem.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let own = settings.alpha_pattern.iter().find(|(pattern, _)| is_end(pattern)).map(|(_, alpha)| *alpha);
        let Some(alpha) = own.or(settings.lora_alpha) else { return 1.0 };
        match settings.use_rslora {
            true => alpha / (rank as f32).sqrt(),
            false => alpha / rank as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_alpha_over_rank_unless_the_file_says_otherwise() {
        let peft = |_| 7.0;
        for (alpha, own, rank, want) in [
            (Some(8.0), None, Some(16), 0.5),
            (Some(0.0), None, Some(16), 1.0),
            (None, None, Some(16), 7.0),
            (Some(8.0), Some(0.25), Some(16), 0.25),
            (Some(8.0), None, None, 1.0),
            (None, None, None, 1.0),
        ] {
            assert_eq!(scale(alpha, own, rank, peft), want, "{alpha:?} {own:?} {rank:?}");
        }
    }

    #[test]
    fn peft_writes_alpha_into_the_header() {
        let text = r#"{"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}, "unet.use_rslora": false,
            "unet.target_modules": ["to_q"], "text_encoder.lora_alpha": 4, "text_encoder.use_rslora": true,
            "text_encoder_2.lora_alpha": null}"#;
        let config = PeftConfig::parse(text).unwrap();
        for (stem, rank, want) in [
            ("unet.a.attn2.to_q", 4, 2.0),
            ("unet.a.attn1.to_q", 4, 0.5),
            ("unet.a.xattn1.to_q", 4, 2.0),
            ("text_encoder.x", 4, 2.0),
            ("text_encoder_2.x", 4, 1.0),
            ("a.attn1.to_q", 4, 0.5),
        ] {
            assert_eq!(config.scale(stem, rank), want, "{stem}");
        }
        for text in ["[", r#"{"unet.lora_alpha": "x"}"#, r#"{"unet.alpha_pattern": {"a.*": 1}}"#] {
            assert!(PeftConfig::parse(text).unwrap_err().to_string().contains("`lora_adapter_metadata`"), "{text}");
        }
    }
}
