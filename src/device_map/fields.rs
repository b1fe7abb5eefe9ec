//! TOML values with their locations, so that every message can show the line that it is about.

use std::{
    fmt::{self, Display},
    ops::Range,
    sync::Arc,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::error::{Error, Result};

/// A value with its location in a file. A value that was made in code has no location.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// The location of the value in the file.
    pub location: Option<Location>,
}

impl<T> Located<T> {
    /// Makes an input error about this value: `file:line:column: key: problem`, then the line itself. `key` is used for
    /// a value that was made in code; a value from a file has its own.
    pub fn refuse(&self, key: &str, problem: impl Display) -> Error {
        match &self.location {
            Some(location) => location.refuse(problem),
            None => Error::input(format!("{key}: {problem}")),
        }
    }
}

impl<T> Located<T> {
    /// A value from a flag of the command line. Messages name the flag.
    pub fn flag(flag: &str, value: T) -> Self {
        let (key, text) = (String::new(), String::new());
        Self {
            value,
            location: Some(Location { file: flag.into(), key, line: 0, column: 0, width: 0, text, skipped: 0 }),
        }
    }
}

impl<T> From<T> for Located<T> {
    fn from(value: T) -> Self {
        Self { value, location: None }
    }
}

/// A location in a file, or a flag of the command line. Lines and columns count from 1; columns are characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The name of the file as the user gave it, or the flag.
    pub file: Arc<str>,
    /// The key whose value is here, such as `components.unet`.
    pub key: String,
    /// The line, or 0 for a flag.
    pub line: usize,
    /// The first column, from 1.
    pub column: usize,
    /// The number of characters of this line, at least one.
    pub width: usize,
    /// The line itself, or 120 characters around the location if the line is longer.
    pub text: String,
    /// The number of characters at the beginning of the line that `text` leaves out.
    pub skipped: usize,
}

/// The largest number of characters of a line that a location keeps and a message shows.
pub const MAX_SHOWN: usize = 120;

/// The largest file in bytes that is read; far more than any map or description of a machine needs.
const MAX_FILE_BYTES: usize = 256 << 10;

impl Location {
    /// Makes an input error about this location: `file:line:column: key: problem`, and the line with carets below it.
    pub fn refuse(&self, problem: impl Display) -> Error {
        if self.line == 0 {
            return Error::input(format!("{self}: {problem}"));
        }
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let text = self.text.replace('\t', " "); // a tab would move the carets
        let before = self.column - 1 - self.skipped;
        let carets = " ".repeat(before) + &"^".repeat(self.width.min(MAX_SHOWN.saturating_sub(before)).max(1));
        let excerpt = [format!("  {margin} |"), format!("  {number} | {text}"), format!("  {margin} | {carets}")];
        Error::input(format!("{self}: {key}{problem}")).lines(excerpt)
    }
}

impl Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// The text of a TOML file.
#[derive(Clone, Copy)]
pub(super) struct TomlText<'a> {
    /// The name of the file in messages.
    pub file: &'a Arc<str>,
    /// The whole text.
    pub text: &'a str,
}

impl<'a> TomlText<'a> {
    /// Parses the text. `hint` may suggest a correction for the location of a syntax error.
    ///
    /// # Errors
    /// If the file is too large or is not valid TOML.
    pub fn parse(&self, hint: impl Fn(&Location) -> Option<String>) -> Result<Spanned<DeTable<'a>>> {
        if self.text.len() > MAX_FILE_BYTES {
            return Err(Error::input(format!(
                "{}: a file of more than {} KiB is not read",
                self.file,
                MAX_FILE_BYTES >> 10
            ))
            .found(format!("{} bytes", self.text.len())));
        }
        DeTable::parse(self.text).map_err(|error| {
            let at = self.locate("", error.span().unwrap_or(0..0));
            let refused = at.refuse(error.message().replace('\n', "; "));
            match hint(&at) {
                Some(hint) => refused.hint(hint),
                None => refused,
            }
        })
    }

    /// The entries of the whole file, in its order.
    pub fn fields(&self, root: &'a DeTable<'a>) -> Vec<Field<'a>> {
        self.table_fields("", root)
    }

    fn table_fields(&self, path: &str, table: &'a DeTable<'a>) -> Vec<Field<'a>> {
        // A name that contains a dot keeps its quotes, because it is not a path of keys.
        let quoted =
            |name: &str| if name.is_empty() || name.contains('.') { format!("{name:?}") } else { name.to_string() };
        let key = |name: &str| if path.is_empty() { quoted(name) } else { format!("{path}.{}", quoted(name)) };
        let field = |(name, value): (&'a Spanned<_>, _)| {
            let text: &'a std::borrow::Cow<'a, str> = name.get_ref();
            Field { toml: *self, key: key(text), name: text, name_span: name.span(), value }
        };
        let mut fields: Vec<_> = table.iter().map(field).collect();
        fields.sort_by_key(|field| field.name_span.start);
        fields
    }

    /// The location of a byte span. A span of several lines is cut at the end of its first line.
    fn locate(&self, key: &str, span: Range<usize>) -> Location {
        let start = char_boundary(self.text, span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |newline| start + newline);
        let line = self.text[line_start..line_end].trim_end_matches('\r');
        let end = char_boundary(self.text, span.end).clamp(start, (line_start + line.len()).max(start));
        let before = self.text[line_start..start].chars().count();
        // A long line is shortened to the text around the location, most of it after the location.
        let skipped = if line.chars().nth(MAX_SHOWN).is_none() { 0 } else { before.saturating_sub(MAX_SHOWN / 4) };
        Location {
            file: self.file.clone(),
            key: key.to_string(),
            line: self.text[..start].matches('\n').count() + 1,
            column: before + 1,
            width: self.text[start..end].chars().count().max(1),
            text: line.chars().skip(skipped).take(MAX_SHOWN).collect(),
            skipped,
        }
    }
}

/// The largest character boundary that is at most `at`.
fn char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// A key and its value.
pub(super) struct Field<'a> {
    toml: TomlText<'a>,
    /// The full key in messages, such as `components.unet`.
    pub key: String,
    /// The last part of the key; empty for an element of an array.
    pub name: &'a str,
    name_span: Range<usize>,
    /// The value of the key.
    pub value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Field<'a> {
    /// `value` with the location of this field's value.
    pub fn located<T>(&self, value: T) -> Located<T> {
        Located { value, location: Some(self.toml.locate(&self.key, self.value.span())) }
    }

    /// `value` with the location of this field's name.
    pub fn located_at_name<T>(&self, value: T) -> Located<T> {
        Located { value, location: Some(self.toml.locate(&self.key, self.name_span.clone())) }
    }

    /// `value` with the location of this field's name and value together.
    pub fn located_as_entry<T>(&self, value: T) -> Located<T> {
        let span = self.name_span.start..self.value.span().end;
        Located { value, location: Some(self.toml.locate(&self.key, span)) }
    }

    /// Makes an error about the value, and shows the value as found.
    pub fn refuse(&self, problem: impl Display) -> Error {
        self.located(()).refuse("", problem).found(self.describe())
    }

    /// Makes an error about the name.
    pub fn refuse_name(&self, problem: impl Display) -> Error {
        self.located_at_name(()).refuse("", problem).found(format!("`{}`", self.name))
    }

    /// Whether a dot follows the name. TOML then makes a table, although the user may have meant one name with a dot.
    pub fn is_dotted(&self) -> bool {
        self.toml.text[self.name_span.end..].trim_start_matches([' ', '\t']).starts_with('.')
    }

    /// The value if it is a string.
    pub fn str(&self) -> Option<&'a str> {
        match self.value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value if it is an integer that is not negative.
    pub fn count(&self) -> Option<usize> {
        match self.value.get_ref() {
            DeValue::Integer(number) => usize::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        }
    }

    /// The value if it is a finite number.
    pub fn number(&self) -> Option<f64> {
        let number = match self.value.get_ref() {
            DeValue::Integer(_) => self.count()? as f64,
            DeValue::Float(number) => number.as_str().parse().ok()?,
            _ => return None,
        };
        number.is_finite().then_some(number)
    }

    /// The elements if the value is an array. They have the array's key.
    pub fn items(&self) -> Option<Vec<Field<'a>>> {
        let DeValue::Array(items) = self.value.get_ref() else { return None };
        let item = |value: &'a Spanned<DeValue<'a>>| Field {
            toml: self.toml,
            key: self.key.clone(),
            name: "",
            name_span: value.span(),
            value,
        };
        Some(items.iter().map(item).collect())
    }

    /// The entries if the value is a table.
    pub fn table(&self) -> Option<Vec<Field<'a>>> {
        let DeValue::Table(table) = self.value.get_ref() else { return None };
        Some(self.toml.table_fields(&self.key, table))
    }

    /// The value as text for a message.
    fn describe(&self) -> String {
        match self.value.get_ref() {
            DeValue::String(text) => format!("\"{}\"", text.escape_debug()),
            DeValue::Integer(number) => format!("the number {number}"),
            DeValue::Float(number) => format!("the number {number}"),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Datetime(value) => format!("the date {value}"),
            DeValue::Array(items) => format!("an array of {}", items.len()),
            DeValue::Table(_) => "a table".to_string(),
        }
    }
}

/// The most similar word of `known`, if at most a third of its letters differ from `word`.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, best) = known.iter().map(|&k| (edit_distance(word, k), k)).min()?;
    (distance <= best.len().div_ceil(3)).then_some(best)
}

/// The number of letters that must be changed, inserted or removed to turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suggestion_is_similar_to_the_word() {
        let known = ["strategy", "devices", "dtype", "unet"];
        for (word, near) in [
            ("stratgy", Some("strategy")),
            ("device", Some("devices")),
            ("Unet", Some("unet")),
            ("zzz", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), near, "{word}");
        }
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }

    #[test]
    fn a_location_counts_characters_and_keeps_to_one_line() {
        let toml = TomlText { file: &"m.toml".into(), text: "a = 1\r\nü = [\n 2]" };
        let at = toml.locate("ü", toml.text.find('[').unwrap()..toml.text.len());
        assert_eq!((at.line, at.column, at.width, at.text.as_str()), (2, 5, 1, "ü = ["));
        assert!(at.refuse("no").to_string().starts_with("m.toml:2:5: ü: no\n"));
        let end = toml.locate("", toml.text.len()..toml.text.len());
        assert_eq!((end.line, end.column, end.width), (3, 4, 1));
        let newline = toml.locate("", 5..6);
        assert_eq!((newline.line, newline.column, newline.width, newline.text.as_str()), (1, 6, 1, "a = 1"));
    }

    #[test]
    fn a_location_in_a_long_line_keeps_only_what_is_around_it() {
        let text = format!("devices = [{}\"gpu0\", {}]", "\"ä\", ".repeat(400), "\"b\", ".repeat(40_000));
        let toml = TomlText { file: &"m.toml".into(), text: &text[..200_000] };
        let start = text.find("\"gpu0\"").unwrap();
        let at = toml.locate("devices", start..start + 6);
        assert_eq!((at.line, at.column, at.text.chars().count()), (1, 12 + 400 * 5, MAX_SHOWN));
        let message = at.refuse("no").to_string();
        let [.., line, carets] = message.lines().collect::<Vec<_>>()[..] else { panic!("{message}") };
        let caret = carets.chars().position(|c| c == '^').unwrap();
        assert_eq!(line.chars().skip(caret).take(6).collect::<String>(), "\"gpu0\"");
        assert_eq!(carets.matches('^').count(), 6);
        // If the location is a whole array, the carets end at the end of the shown text.
        let whole = toml.locate("devices", 10..text.len()).refuse("no").to_string();
        assert!(whole.lines().all(|line| line.chars().count() < MAX_SHOWN + 20), "{whole}");
    }
}
