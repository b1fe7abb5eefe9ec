//! The one error type. It contains texts, sizes and names of devices, and no types from the layers above.

use std::{borrow::Cow, fmt};

use crate::device_id::DeviceId;

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The largest number of characters of one line of a message.
const LONGEST_LINE: usize = 2000;

/// Text that is safe for a terminal: control characters except `\n`, line separators, and the characters that change
/// the direction of writing are escaped, as in `\u{1b}`.
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

/// Text from outside this program, as one line of a message: [`printable`], with line breaks escaped, and shortened in
/// its middle if it is long. A line that was returned from here does not change again.
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

/// The part of a program that a failure affects.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorScope {
    /// The caller's input was rejected before anything ran.
    Input,
    /// One request failed; others are not affected.
    Request,
    /// The named device can no longer be used.
    Device(DeviceId),
    /// The process cannot continue, for example because a disk is full.
    Process,
    /// The caller or the user asked to stop.
    Interrupted,
}

/// An error: what was being done and what was wrong, then what was found and what to try, in the terms of the user's
/// own files.
///
/// Each of these parts is a line, or several with [`Error::lines`]; [`shown`] makes them safe for a terminal.
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

    /// The error for input that cannot be used: exit code 2.
    pub fn input(what: impl Into<String>) -> Self {
        Self::new(ErrorScope::Input, what)
    }

    /// The error of one request that failed while it ran.
    pub fn request(what: impl Into<String>) -> Self {
        Self::new(ErrorScope::Request, what)
    }

    /// The error of a device that failed.
    pub fn device(device: DeviceId, what: impl Into<String>) -> Self {
        Self::new(ErrorScope::Device(device), what)
    }

    /// The error of a process that cannot continue.
    pub fn process(what: impl Into<String>) -> Self {
        Self::new(ErrorScope::Process, what)
    }

    /// The error of a caller that asked to stop.
    pub fn interrupted() -> Self {
        Self::new(ErrorScope::Interrupted, "interrupted")
    }

    /// Adds lines after the message: an excerpt of a file, or a list.
    #[must_use]
    pub fn lines(mut self, lines: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.lines.extend(lines.into_iter().map(Into::into));
        self
    }

    /// Adds what was found instead of what was expected.
    #[must_use]
    pub fn found(mut self, found: impl Into<String>) -> Self {
        self.found = Some(found.into().into());
        self
    }

    /// Adds a suggestion for the reader.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into());
        self
    }

    /// Keeps the cause; its message follows this error's own.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Prefixes the message with what was being done: `doing: what`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }

    /// A copy of the error for another receiver; the cause is kept as text.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let source = self.source.as_ref().map(|source| source.to_string().into());
        let (what, lines) = (self.what.clone(), self.lines.clone());
        Self { scope: self.scope.clone(), what, lines, found: self.found.clone(), hint: self.hint.clone(), source }
    }

    /// Sets the device of a device's error: a backend does not know under which name it is used.
    #[must_use]
    pub fn of_device(mut self, device: DeviceId) -> Self {
        if let ErrorScope::Device(id) = &mut self.scope {
            *id = device;
        }
        self
    }

    /// Changes the error to rejected input, for problems that are found before anything runs.
    #[must_use]
    pub fn refused(mut self) -> Self {
        self.scope = ErrorScope::Input;
        self
    }

    /// The part of the program that the failure affects.
    pub fn scope(&self) -> &ErrorScope {
        &self.scope
    }

    /// The exit code of the process for this error: 2 for rejected input, 130 for an interruption, otherwise 1.
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
