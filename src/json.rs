//! A model's JSON files, read key by key; every message names the file and the key.

use std::{fmt, ops::RangeInclusive};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The longest text that is parsed, in bytes: in memory it can become a hundred times as large. The index of the
/// largest UNet has some 200 KB.
const LONGEST: usize = 2 << 20;

/// One JSON object and the name of its file.
///
/// A key whose value is `null` counts as absent, because Python programs write unset values like that.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    file: String,
    keys: Map<String, Value>,
}

impl Object {
    /// Reads `text`; `file` is its name in messages. Fails unless `text` is one JSON object of at most 2 MiB, without
    /// duplicate keys, in which every number is finite.
    ///
    /// Python writes `NaN`, `Infinity` and `-Infinity`, which JSON does not have. diffusers writes one of them on
    /// purpose, -Infinity as the default of `lambda_min_clipped`: that key is then left out.
    pub fn parse(text: &str, file: impl Into<String>) -> Result<Self> {
        let file = file.into();
        if text.len() > LONGEST {
            let what = format!("{file}: a JSON file of a model has {LONGEST} bytes at most");
            return Err(Error::input(what).found(format!("{} bytes", text.len())));
        }
        let mut words = false;
        let parsed = serde_json::from_str(text).or_else(|error| {
            words = true;
            serde_json::from_str(&with_marked_words(text)).map_err(|_| error)
        });
        let Unique(value) = parsed.map_err(|error| {
            let what = if error.is_data() { "every key may stand once" } else { "this is not JSON" };
            Error::input(format!("{file}: {what}")).source(error)
        })?;
        let Value::Object(mut keys) = value else {
            return Err(Error::input(format!("{file}: a JSON object is wanted here")).found(brief(&value)));
        };
        if words {
            keys.retain(|key, value| key != "lambda_min_clipped" || marked(value) != Some("-Infinity"));
            if let Some((key, word)) = keys.iter().find_map(|(key, value)| Some((key, marked(value)?))) {
                return Err(
                    Error::input(format!("{file}: `{key}` must not hold a number that is not finite")).found(word)
                );
            }
        }
        Ok(Self { file, keys })
    }

    /// The name of the file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All keys of the file, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// The value of `key`, or `None` if it is absent or `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// Whether the file has `key`, even with the value `null`.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
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

    /// The error for a value that cannot be used: the file, the key, the value, and what was `wanted`.
    pub fn refuse(&self, key: &str, wanted: &str) -> Error {
        let found = self.keys.get(key).map_or_else(|| "nothing: the key is missing".to_owned(), brief);
        Error::input(format!("{}: `{key}` must be {wanted}", self.file)).found(found)
    }

    /// A text, or `None` if the key is absent.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.refuse(key, "a text"))).transpose()
    }

    /// `true` or `false`, or `default` if the key is absent.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| self.refuse(key, "true or false")))
    }

    /// A number within `range`, or `None` if the key is absent.
    pub fn float(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let wanted = || self.refuse(key, &format!("a number from {} to {}", range.start(), range.end()));
        let in_range = |value: &Value| value.as_f64().filter(|number| range.contains(number)).ok_or_else(wanted);
        self.get(key).map(in_range).transpose()
    }

    /// A whole number within `range`, or `None` if the key is absent.
    pub fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let wanted = || self.refuse(key, &format!("a whole number from {} to {}", range.start(), range.end()));
        self.get(key).map(|value| whole(value, &range).ok_or_else(wanted)).transpose()
    }

    /// A list of whole numbers, each within `range`, or `None` if the key is absent.
    pub fn sizes(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<Vec<usize>>> {
        let wanted = || self.refuse(key, &format!("a list of whole numbers from {} to {}", range.start(), range.end()));
        let list = |value: &Value| value.as_array()?.iter().map(|item| whole(item, &range)).collect::<Option<_>>();
        self.get(key).map(|value| list(value).ok_or_else(wanted)).transpose()
    }

    /// A list of texts, or `None` if the key is absent.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let list = |value| Value::as_array(value)?.iter().map(Value::as_str).collect::<Option<_>>();
        self.get(key).map(|value| list(value).ok_or_else(|| self.refuse(key, "a list of texts"))).transpose()
    }

    /// Fails unless each of `keys` is absent or has exactly the given value.
    pub fn only(&self, keys: &[(&str, Value)]) -> Result<()> {
        for (key, supported) in keys {
            if self.get(key).is_some_and(|value| !same(value, supported)) {
                return Err(self.refuse(key, &format!("{supported}: sdshard supports nothing else")));
            }
        }
        Ok(())
    }

    /// Fails for each key of the class whose value is not supported, and names the keys that the class does not have in
    /// one warning: they are ignored, as in the reference. Private keys begin with an underscore.
    pub fn check(&self, class: &Keys) -> Result<()> {
        for (key, values) in class.only {
            let Some(found) = self.keys.get(*key) else { continue };
            let allowed: Vec<Value> = serde_json::from_str(values).expect("the tables hold lists of JSON values");
            if !allowed.iter().any(|value| same(found, value)) {
                let values = allowed.iter().filter(|value| !value.is_null() || allowed.len() == 1);
                let values = values.map(Value::to_string).collect::<Vec<_>>().join(" or ");
                return Err(self.refuse(key, &format!("{values}: sdshard supports nothing else")));
            }
        }
        if let Some(key) = class.followed.iter().find(|key| self.keys.get(**key).is_some_and(Value::is_null))
            && !class.nullable.contains(key)
        {
            return Err(Error::input(format!("{}: `{key}` must have a value", self.file))
                .found("null")
                .hint(format!("leave the key out for the default of {}", class.class)));
        }
        let unknown: Vec<String> = self.keys().filter(|key| !class.has(key)).map(|key| format!("`{key}`")).collect();
        if let Some(first) = unknown.first() {
            let more = if unknown.len() > 1 { format!(" and {} more", unknown.len() - 1) } else { String::new() };
            tracing::warn!("{}: {} does not know {first}{more}: ignored, as in the reference", self.file, class.class);
        }
        Ok(())
    }
}

/// The keys that a class of the reference reads from a config, and how each is treated here. A picture never differs
/// from the reference's without an error or a warning: a key is supported, has one of a few supported values, or has no
/// effect on a picture.
#[derive(Debug)]
pub struct Keys {
    /// The class of diffusers or transformers.
    pub class: &'static str,
    /// The keys whose values are used.
    pub followed: &'static [&'static str],
    /// The keys among them that may be `null`, which counts as absent.
    pub nullable: &'static [&'static str],
    /// The keys whose values must be in a JSON list. A list in the file counts as the value that all its items have.
    pub only: &'static [(&'static str, &'static str)],
    /// The keys that have no effect on a picture.
    pub without_effect: &'static [&'static str],
}

impl Keys {
    /// Whether the class reads `key`, or it is a private one.
    pub fn has(&self, key: &str) -> bool {
        key.starts_with('_')
            || self.followed.contains(&key)
            || self.without_effect.contains(&key)
            || self.only.iter().any(|(name, _)| *name == key)
    }

    /// Fails unless the class of the reference, an object of its keys with their defaults, has the keys of the tables
    /// except those in `beyond`, and the tables allow each default.
    #[cfg(test)]
    pub(crate) fn assert_is_the_references(&self, reference: &Value, beyond: &[&str]) {
        let reference = reference.as_object().unwrap_or_else(|| panic!("no golden keys of {}", self.class));
        let only = self.only.iter().map(|(key, _)| *key);
        let mut known: Vec<&str> = self.followed.iter().chain(self.without_effect).copied().chain(only).collect();
        known.retain(|key| !beyond.contains(key));
        known.sort_unstable();
        let mut wanted: Vec<&str> = reference.keys().map(String::as_str).collect();
        wanted.sort_unstable();
        assert_eq!(known, wanted, "{}", self.class);
        let defaults = Object { file: "the defaults".to_owned(), keys: reference.clone() };
        defaults.check(self).unwrap();
    }
}

/// Equality in which `1` and `1.0` are the same number, and `[1, 1]` is 1 for each level.
fn same(a: &Value, b: &Value) -> bool {
    if let (Value::Array(items), false) = (a, b.is_array()) {
        return !items.is_empty() && items.iter().all(|item| same(item, b));
    }
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

fn whole(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    let number = usize::try_from(value.as_u64()?).ok()?;
    range.contains(&number).then_some(number)
}

/// A value as it is written in the file, shortened to 60 characters.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The first character of strings that replace words which are not JSON.
const MARK: char = '\0';

/// `text` with the words `NaN`, `Infinity` and `-Infinity` replaced by strings that begin with [`MARK`].
fn with_marked_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, part) in text.split('"').enumerate() {
        // A backslash before a quote would shift the parts: the result is then not JSON, and is rejected.
        if index > 0 {
            out.push('"');
        }
        if index % 2 == 0 {
            let part = part.replace("-Infinity", "-I").replace("Infinity", "+I").replace("NaN", r#""\u0000NaN""#);
            out.push_str(&part.replace("-I", r#""\u0000-Infinity""#).replace("+I", r#""\u0000Infinity""#));
        } else {
            out.push_str(part);
        }
    }
    out
}

/// The first marked word within `value`.
fn marked(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => text.strip_prefix(MARK),
        Value::Array(items) => items.iter().find_map(marked),
        Value::Object(keys) => keys.values().find_map(marked),
        _ => None,
    }
}

/// A JSON value in which no object has a duplicate key: parsers disagree about which value is used.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Unique(value))) = entries.next_entry::<String, _>()? {
            if map.contains_key(&key) {
                let start: String = key.chars().take(60).collect();
                return Err(A::Error::custom(format_args!("the key {start:?} appears twice")));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_python_writes() {
        let text = r#"{"lambda_min_clipped": -Infinity, "c": "Infinity", "d": [1, 2], "e": null, "f": 1e-05}"#;
        let object = Object::parse(text, "x.json").unwrap();
        assert!(object.get("lambda_min_clipped").is_none() && object.get("e").is_none() && object.has("e"));
        assert_eq!(object.text("c").unwrap(), Some("Infinity"));
        assert_eq!(object.sizes("d", 1..=2).unwrap(), Some(vec![1, 2]));
        assert_eq!(object.float("f", 0.0..=1.0).unwrap(), Some(1e-5));
        assert!(object.flag("missing", true).unwrap());
    }

    #[test]
    fn numbers_that_are_not_finite_were_taken_for_missing_ones() {
        for (text, key, word) in [
            (r#"{"norm_eps": NaN}"#, "norm_eps", "NaN"),
            (r#"{"beta_end": Infinity, "lambda_min_clipped": -Infinity}"#, "beta_end", "Infinity"),
            (r#"{"a": [1, {"b": -Infinity}]}"#, "a", "-Infinity"),
            (r#"{"lambda_min_clipped": NaN}"#, "lambda_min_clipped", "NaN"),
            (r#"{"lambda_min_clipped": Infinity}"#, "lambda_min_clipped", "Infinity"),
        ] {
            let error = Object::parse(text, "x.json").unwrap_err().to_string();
            assert!(error.contains(&format!("x.json: `{key}` must not hold")), "{error}");
            assert!(error.contains(&format!("found: {word}")), "{error}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_had_its_last_value() {
        for text in [r#"{"a": 1, "b": 2, "a": 1}"#, r#"{"x": [{"a": 1, "a": 2}]}"#, r#"{"a": NaN, "b": 1, "b": 1}"#] {
            assert!(Object::parse(text, "x.json").is_err(), "{text}");
        }
        let error = Object::parse(r#"{"sample_size": 8, "sample_size": 64}"#, "x.json").unwrap_err().to_string();
        assert!(error.contains("x.json: every key may stand once") && error.contains("sample_size"), "{error}");
    }

    const CLASS: Keys = Keys {
        class: "Thing",
        followed: &["n", "m"],
        nullable: &["m"],
        only: &[("k", "[1]"), ("f", "[false, null]"), ("t", r#"["a", "b"]"#)],
        without_effect: &["free"],
    };

    #[test]
    fn keys_are_followed_or_refused_by_name() {
        let check = |text: &str| Object::parse(text, "x.json").unwrap().check(&CLASS);
        for text in [
            r#"{"n": 1, "m": null, "k": 1.0, "f": null, "t": "b", "free": [], "_private": 1, "strange": 2}"#,
            r#"{"k": [1, 1], "f": [false, false]}"#,
            "{}",
        ] {
            check(text).unwrap();
        }
        for (text, words) in [
            (r#"{"k": 2}"#, "`k` must be 1: sdshard"),
            (r#"{"k": null}"#, "`k` must be 1"),
            (r#"{"f": true}"#, "`f` must be false: sdshard"),
            (r#"{"f": [false, true]}"#, "`f` must be false"),
            (r#"{"t": "c"}"#, "`t` must be \"a\" or \"b\""),
            (r#"{"n": null}"#, "`n` must have a value"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("x.json: "), "{error}");
        }
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
