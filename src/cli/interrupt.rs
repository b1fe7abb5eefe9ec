//! Ctrl-C and SIGTERM: the first signal asks the run to stop cleanly, and a second one ends it at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use sdshard::error::{Error, Result};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// The signals that were received so far.
#[derive(Debug, Clone)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
    /// The exit code for the last signal; 0 before the first.
    code: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Handles both signals from here on.
    pub fn install() -> Result<Self> {
        let interrupt = Self { requested: Arc::default(), code: Arc::default() };
        for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
            // The actions run in this order, so only a second signal finds the flag set.
            flag::register_conditional_shutdown(signal, code, Arc::clone(&interrupt.requested))
                .and_then(|_| flag::register_usize(signal, Arc::clone(&interrupt.code), code as usize))
                .and_then(|_| flag::register(signal, Arc::clone(&interrupt.requested)))
                .map_err(|error| Error::process("taking over Ctrl-C").source(error))?;
        }
        Ok(interrupt)
    }

    /// Makes a file that exceeds the limit of its size (`ulimit -f`) an error of the write, instead of the end of the
    /// program.
    pub fn survive_size_limits() {
        #[cfg(unix)]
        let _ = flag::register(rustix::process::Signal::XFSZ.as_raw(), Arc::default());
    }

    /// A flag that is set as soon as a signal has asked the run to stop.
    pub fn requested(&self) -> &Arc<AtomicBool> {
        &self.requested
    }

    /// Fails once a signal has asked the run to stop.
    pub fn check(&self) -> Result<()> {
        if self.requested.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
    }

    /// The exit code: 130 after Ctrl-C, 143 after SIGTERM.
    pub fn exit_code(&self) -> Option<u8> {
        u8::try_from(self.code.load(Ordering::Relaxed)).ok().filter(|code| *code != 0)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_sets_the_flag() {
        let interrupt = Interrupt::install().unwrap();
        assert_eq!((interrupt.requested().load(Ordering::Relaxed), interrupt.exit_code()), (false, None));
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert_eq!((interrupt.requested().load(Ordering::Relaxed), interrupt.exit_code()), (true, Some(143)));
    }
}
