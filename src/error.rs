//! The one error type. It carries words and sizes, and no types from the layers above.

use std::fmt;

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure takes down with it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The caller's input was refused before anything ran.
    Input,
    /// One request failed; others are not concerned.
    Request,
    /// The named device can no longer be used.
    Device(String),
    /// Nothing can go on, a full disk for example.
    Process,
    /// Somebody asked us to stop.
    Interrupted,
}

/// What was being done and what was wrong, then what was found and what to try, in words from the user's own files.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    scope: Scope,
    what: String,
    found: Option<String>,
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    fn new(scope: Scope, what: impl Into<String>) -> Self {
        Self { scope, what: what.into(), found: None, hint: None, source: None }
    }

    /// Input that cannot be used: exit code 2.
    pub fn input(what: impl Into<String>) -> Self {
        Self::new(Scope::Input, what)
    }

    /// One request failed while it ran.
    pub fn request(what: impl Into<String>) -> Self {
        Self::new(Scope::Request, what)
    }

    /// A device failed.
    pub fn device(device: impl fmt::Display, what: impl Into<String>) -> Self {
        Self::new(Scope::Device(device.to_string()), what)
    }

    /// The process cannot go on.
    pub fn process(what: impl Into<String>) -> Self {
        Self::new(Scope::Process, what)
    }

    /// The caller asked to stop.
    pub fn interrupted() -> Self {
        Self::new(Scope::Interrupted, "interrupted")
    }

    /// Adds what was found in place of what was wanted.
    #[must_use]
    pub fn found(mut self, found: impl Into<String>) -> Self {
        self.found = Some(found.into());
        self
    }

    /// Adds what the reader could try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
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
    pub fn again(&self) -> Self {
        let source = self.source.as_ref().map(|source| source.to_string().into());
        let (what, found, hint) = (self.what.clone(), self.found.clone(), self.hint.clone());
        Self { scope: self.scope.clone(), what, found, hint, source }
    }

    /// The same, of this device if it is the error of one: a backend does not know under which name it is used.
    #[must_use]
    pub fn of_device(mut self, device: impl fmt::Display) -> Self {
        if let Scope::Device(name) = &mut self.scope {
            *name = device.to_string();
        }
        self
    }

    /// The same, found before anything ran: the input is refused.
    #[must_use]
    pub fn refused(mut self) -> Self {
        self.scope = Scope::Input;
        self
    }

    /// How far the failure reaches.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The process exit code for this error: 2 refused, 130 interrupted, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self.scope {
            Scope::Input => 2,
            Scope::Interrupted => 130,
            Scope::Request | Scope::Device(_) | Scope::Process => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Scope::Device(device) = &self.scope {
            write!(f, "{device}: ")?;
        }
        f.write_str(&self.what)?;
        let mut cause = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        if let Some(found) = &self.found {
            write!(f, "\n  found: {found}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  try:   {hint}")?;
        }
        Ok(())
    }
}
