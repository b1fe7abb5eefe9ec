//! The one error type. It carries words, sizes and names of devices, and no types from the layers above.

use std::{borrow::Cow, fmt};

use crate::device_id::DeviceId;

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The most characters of one line of a message.
const LONGEST_LINE: usize = 2000;

/// Text as a terminal may be sent it: control characters but for `\n`, line separators, and the characters that change the
/// direction of writing are written out, as in `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_unsafe = |c: char| {
        let changes_direction =
            matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        (c.is_control() && c != '\n') || changes_direction || matches!(c, '\u{2028}' | '\u{2029}')
    };
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut written = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { written.extend(c.escape_default()) } else { written.push(c) }
    }
    written.into()
}

/// Text that somebody else may have written, as one line of a message: [`printable`], with line breaks written out, and with
/// its middle left out if it is long. A line that came from here stays as it is.
pub fn shown(text: &str) -> String {
    let line = printable(text).replace('\n', "\\n");
    let length = line.chars().count();
    if length <= LONGEST_LINE {
        return line;
    }
    let (head, tail) = (LONGEST_LINE / 2, LONGEST_LINE / 4);
    let start: String = line.chars().take(head).collect();
    let end: String = line.chars().skip(length - tail).collect();
    format!("{start} ... ({} characters are left out) ... {end}", length - head - tail)
}

/// What a failure takes down with it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorScope {
    /// The caller's input was refused before anything ran.
    Input,
    /// One request failed; others are not concerned.
    Request,
    /// The named device can no longer be used.
    Device(DeviceId),
    /// Nothing can go on, a full disk for example.
    Process,
    /// Somebody asked us to stop.
    Interrupted,
}

/// What was being done and what was wrong, then what was found and what to try, in words from the user's own files.
///
/// Each of these is a line, or several by [`Error::lines`]; [`shown`] makes them safe for a terminal.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    scope: ErrorScope,
    what: String,
    lines: Vec<String>,
    found: Option<Box<str>>,
    hint: Option<Box<str>>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    fn new(scope: ErrorScope, what: impl Into<String>) -> Self {
        Self { scope, what: what.into(), lines: Vec::new(), found: None, hint: None, source: None }
    }

    /// Input that cannot be used: exit code 2.
    pub fn input(what: impl Into<String>) -> Self {
        Self::new(ErrorScope::Input, what)
    }

    /// One request failed while it ran.
    pub fn request(what: impl Into<String>) -> Self {
        Self::new(ErrorScope::Request, what)
    }

    /// A device failed.
    pub fn device(device: DeviceId, what: impl Into<String>) -> Self {
        Self::new(ErrorScope::Device(device), what)
    }

    /// The process cannot go on.
    pub fn process(what: impl Into<String>) -> Self {
        Self::new(ErrorScope::Process, what)
    }

    /// The caller asked to stop.
    pub fn interrupted() -> Self {
        Self::new(ErrorScope::Interrupted, "interrupted")
    }

    /// Adds lines below what was wrong: an excerpt of a file, a list.
    #[must_use]
    pub fn lines(mut self, lines: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.lines.extend(lines.into_iter().map(Into::into));
        self
    }

    /// Adds what was found in place of what was wanted.
    #[must_use]
    pub fn found(mut self, found: impl Into<String>) -> Self {
        self.found = Some(found.into().into());
        self
    }

    /// Adds what the reader could try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into());
        self
    }

    /// Keeps the cause; its words follow this error's own.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts what was being done in front of the message: `doing: what`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }

    /// The same for somebody else whom it concerns; the cause goes along as words.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let source = self.source.as_ref().map(|source| source.to_string().into());
        let (what, lines) = (self.what.clone(), self.lines.clone());
        Self { scope: self.scope.clone(), what, lines, found: self.found.clone(), hint: self.hint.clone(), source }
    }

    /// The same, of this device if it is the error of one: a backend does not know under which name it is used.
    #[must_use]
    pub fn of_device(mut self, device: DeviceId) -> Self {
        if let ErrorScope::Device(id) = &mut self.scope {
            *id = device;
        }
        self
    }

    /// The same, found before anything ran: the input is refused.
    #[must_use]
    pub fn refused(mut self) -> Self {
        self.scope = ErrorScope::Input;
        self
    }

    /// How far the failure reaches.
    pub fn scope(&self) -> &ErrorScope {
        &self.scope
    }

    /// The process exit code for this error: 2 refused, 130 interrupted, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self.scope {
            ErrorScope::Input => 2,
            ErrorScope::Interrupted => 130,
            ErrorScope::Request | ErrorScope::Device(_) | ErrorScope::Process => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut what = match &self.scope {
            ErrorScope::Device(device) => format!("{device}: {}", self.what),
            _ => self.what.clone(),
        };
        let mut cause = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = cause {
            what += &format!(": {error}");
            cause = error.source();
        }
        f.write_str(&shown(&what))?;
        for line in &self.lines {
            write!(f, "\n{}", shown(line))?;
        }
        if let Some(found) = &self.found {
            write!(f, "\n  found: {}", shown(found))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  try:   {}", shown(hint))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}]0;x\u{7}\r\n\u{9b}2J\u{7f}\u{202e}\u{2066}\u{61c}\u{2028}é 🦊";

    #[test]
    fn a_message_sends_a_terminal_no_command_that_somebody_else_wrote() {
        let error = Error::device(DeviceId::CPU, HOSTILE).found(HOSTILE).hint(HOSTILE).lines([HOSTILE]);
        let error = error.source(std::io::Error::other(HOSTILE)).context(HOSTILE);
        for message in [error.to_string(), error.duplicate().to_string()] {
            assert_eq!(message.lines().count(), 4, "{message}");
            assert!(
                !message.contains(|c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2066}\u{61c}".contains(c))
            );
            assert!(
                message.contains("a\\u{1b}]0;x\\u{7}\\r\\n\\u{9b}2J\\u{7f}\\u{202e}\\u{2066}\\u{61c}\\u{2028}é 🦊")
            );
        }
    }

    #[test]
    fn a_long_name_is_cut_in_its_middle() {
        let name = "\u{1b}x".repeat(1 << 20);
        let message = Error::input(format!("loading unet: there is no `{name}` here")).found(name.as_str()).to_string();
        assert!(message.len() < 3 * LONGEST_LINE, "{}", message.len());
        let first = message.lines().next().unwrap();
        assert!(first.starts_with("loading unet: there is no `\\u{1b}x") && first.ends_with("x` here"), "{first}");
        assert!(first.contains("characters are left out"), "{first}");
        assert_eq!(shown(first), first);
    }
}
