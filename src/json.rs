//! A model's JSON files, read key by key; every message names the file and the key.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The longest text that is parsed, in bytes: what it becomes in memory can be a hundred times as large. The index of the
/// largest UNet has some 200 KB.
const LONGEST: usize = 2 << 20;

/// One JSON object and the name of the file it came from.
///
/// A key whose value is `null` counts as absent: that is how Python's writers spell "not set".
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    file: String,
    keys: Map<String, Value>,
}

impl Object {
    /// Reads `text`; `file` is its name in messages. Fails unless `text` is one JSON object of 2 MiB
    /// at most.
    ///
    /// Python writes floats without a finite value as `NaN`, `Infinity` and `-Infinity`, which JSON does not have.
    /// They are read as `null`.
    pub fn parse(text: &str, file: impl Into<String>) -> Result<Self> {
        let file = file.into();
        if text.len() > LONGEST {
            let what = format!("{file}: a JSON file of a model has {LONGEST} bytes at most");
            return Err(Error::input(what).found(format!("{} bytes", text.len())));
        }
        let value = serde_json::from_str(text)
            .or_else(|error| serde_json::from_str(&without_non_finite(text)).map_err(|_| error))
            .map_err(|error| Error::input(format!("{file}: this is not JSON")).source(error))?;
        match value {
            Value::Object(keys) => Ok(Self { file, keys }),
            other => Err(Error::input(format!("{file}: a JSON object is wanted here")).found(brief(&other))),
        }
    }

    /// The name of the file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Every key that the file has, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// The value of `key`, or `None` where it is absent or `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// A copy in which `key` has `value`.
    #[must_use]
    pub fn with(&self, key: &str, value: impl Into<Value>) -> Self {
        let mut copy = self.clone();
        copy.keys.insert(key.to_owned(), value.into());
        copy
    }

    /// The whole object.
    pub fn to_value(&self) -> Value {
        Value::Object(self.keys.clone())
    }

    /// The error for a value that cannot be used: the file, the key, what was found and what was `wanted`.
    pub fn refuse(&self, key: &str, wanted: &str) -> Error {
        let found = self.get(key).map_or_else(|| "nothing: the key is missing".to_owned(), brief);
        Error::input(format!("{}: `{key}` must be {wanted}", self.file)).found(found)
    }

    /// A text, or `None` where the key is absent.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.refuse(key, "a text"))).transpose()
    }

    /// `true` or `false`, or `default` where the key is absent.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| self.refuse(key, "true or false")))
    }

    /// A number within `range`, or `None` where the key is absent.
    pub fn float(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let wanted = || self.refuse(key, &format!("a number from {} to {}", range.start(), range.end()));
        let in_range = |value: &Value| value.as_f64().filter(|number| range.contains(number)).ok_or_else(wanted);
        self.get(key).map(in_range).transpose()
    }

    /// A whole number within `range`, or `None` where the key is absent.
    pub fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let wanted = || self.refuse(key, &format!("a whole number from {} to {}", range.start(), range.end()));
        self.get(key).map(|value| whole(value, &range).ok_or_else(wanted)).transpose()
    }

    /// A list of whole numbers, each within `range`, or `None` where the key is absent.
    pub fn sizes(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<Vec<usize>>> {
        let wanted = || self.refuse(key, &format!("a list of whole numbers from {} to {}", range.start(), range.end()));
        let list = |value: &Value| value.as_array()?.iter().map(|item| whole(item, &range)).collect::<Option<_>>();
        self.get(key).map(|value| list(value).ok_or_else(wanted)).transpose()
    }

    /// A list of texts, or `None` where the key is absent.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let list = |value| Value::as_array(value)?.iter().map(Value::as_str).collect::<Option<_>>();
        self.get(key).map(|value| list(value).ok_or_else(|| self.refuse(key, "a list of texts"))).transpose()
    }

    /// Fails unless each of `keys` is absent or has exactly the value beside it.
    pub fn only(&self, keys: &[(&str, Value)]) -> Result<()> {
        for (key, supported) in keys {
            if self.get(key).is_some_and(|value| !same(value, supported)) {
                return Err(self.refuse(key, &format!("{supported}: sdshard supports nothing else")));
            }
        }
        Ok(())
    }
}

/// Equality in which `1` and `1.0` are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

fn whole(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    let number = usize::try_from(value.as_u64()?).ok()?;
    range.contains(&number).then_some(number)
}

/// A value as it stands in the file, cut after 60 characters.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// `text` with the bare words `NaN`, `Infinity` and `-Infinity` replaced by `null`; strings stay as they are.
fn without_non_finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, part) in text.split('"').enumerate() {
        // A backslash before a quote would shift the parts: what comes out is then not JSON, and is refused as such.
        if index > 0 {
            out.push('"');
        }
        if index % 2 == 0 {
            out.push_str(&part.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null"));
        } else {
            out.push_str(part);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_python_writes() {
        let text = r#"{"a": -Infinity, "b": NaN, "c": "Infinity", "d": [1, 2], "e": null, "f": 1e-05}"#;
        let object = Object::parse(text, "x.json").unwrap();
        assert!(object.get("a").is_none() && object.get("b").is_none() && object.get("e").is_none());
        assert_eq!(object.text("c").unwrap(), Some("Infinity"));
        assert_eq!(object.sizes("d", 1..=2).unwrap(), Some(vec![1, 2]));
        assert_eq!(object.float("f", 0.0..=1.0).unwrap(), Some(1e-5));
        assert!(object.flag("missing", true).unwrap());
    }

    #[test]
    fn says_which_key_of_which_file_is_wrong() {
        let object =
            Object::parse(r#"{"n": 1099511627776, "s": "x", "l": [1, -1], "k": 2}"#, "unet/config.json").unwrap();
        let error = object.size("n", 1..=65536).unwrap_err().to_string();
        assert!(error.contains("unet/config.json: `n` must be a whole number from 1 to 65536"), "{error}");
        assert!(error.contains("found: 1099511627776"), "{error}");
        for error in [
            object.size("s", 0..=1).map(drop),
            object.flag("s", false).map(drop),
            object.float("s", 0.0..=1.0).map(drop),
            object.sizes("l", 0..=9).map(drop),
            object.text("k").map(drop),
            object.only(&[("k", Value::from(1))]),
        ] {
            assert!(error.unwrap_err().to_string().contains("unet/config.json: `"));
        }
        object.only(&[("k", Value::from(2.0)), ("absent", Value::from(true))]).unwrap();
    }

    #[test]
    fn refuses_what_is_not_an_object() {
        for text in ["", "[]", "{", "{\"a\": }", "NaN", "1", "\"\\\""] {
            assert!(Object::parse(text, "x").unwrap_err().to_string().starts_with("x: "), "{text}");
        }
        assert!(Object::parse(&"[".repeat(100_000), "x").is_err());
        let error = Object::parse(&format!("{{}}{}", " ".repeat(LONGEST)), "x").unwrap_err().to_string();
        assert!(error.contains("x: a JSON file of a model has 2097152 bytes at most"), "{error}");
    }
}
