//! Progress on stderr: bars on a terminal, plain lines in a pipe, nothing with `--quiet`. All output to stdout also
//! goes through here, so that results and bars do not overwrite each other.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use sdshard::{
    device_map::size::format_bytes,
    error::{Error, Result, printable, shown},
    weights::Loading,
};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bars,
    Lines,
    Quiet,
}

/// Both output streams of the program. Clones are the same console.
#[derive(Debug, Clone)]
pub struct Console {
    mode: Mode,
    bars: MultiProgress,
    /// Whether the reader of stdout has closed it.
    unread: Arc<AtomicBool>,
}

impl Console {
    /// The console of this process.
    pub fn new(quiet: bool) -> Self {
        let mode = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Bars,
            (false, false) => Mode::Lines,
        };
        let target = if mode == Mode::Bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { mode, bars: MultiProgress::with_draw_target(target), unread: Arc::default() }
    }

    /// Prints a line on stderr, unless `--quiet`.
    pub fn note(&self, line: &str) {
        self.notes(&[line]);
    }

    /// Prints a line on stderr without shortening it, unless `--quiet`: for lines that are useless if they are cut.
    pub fn whole_note(&self, line: &str) {
        self.write(&format!("{}\n", printable(line)));
    }

    /// Prints lines on stderr, unless `--quiet`.
    pub fn notes(&self, lines: &[impl AsRef<str>]) {
        self.write(&lines.iter().map(|line| shown(line.as_ref()) + "\n").collect::<String>());
    }

    /// Writes to stderr in one piece, so that lines of several processes are not mixed.
    fn write(&self, text: &str) {
        if self.mode != Mode::Quiet {
            // If stderr is closed, the text cannot be shown.
            let _ = self.bars.suspend(|| io::stderr().write_all(text.as_bytes()));
        }
    }

    /// Prints a result as a line on stdout. After the reader has closed stdout, lines are left out: see
    /// [`Console::is_unread`].
    pub fn print(&self, line: &str) -> Result<()> {
        let written = self.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            // A program that reads the line gets it unchanged.
            let line = if stdout.is_terminal() { printable(line) } else { line.into() };
            writeln!(stdout, "{line}")?;
            stdout.flush()
        });
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.unread.store(true, Ordering::Relaxed);
                Ok(())
            }
            written => written.map_err(|error| Error::process("writing to stdout").source(error)),
        }
    }

    /// Whether the reader of stdout has closed it.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// The writer for log lines.
    pub fn log_writer(&self) -> LogWriter {
        LogWriter(self.bars.clone())
    }

    /// A line about the whole run.
    pub fn overview(&self) -> Overview {
        let bar = ProgressBar::hidden();
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is right"));
        let bar = if self.mode == Mode::Bars { self.bars.add(bar) } else { bar };
        Overview { console: self.clone(), bar, next: Instant::now() + Overview::PAUSE }
    }

    /// Shows the download of a file, with its size in bytes if it is known: `downloading org/name: unet/config.json`.
    pub fn transfer(&self, title: &str, bytes: Option<u64>) -> Transfer {
        let title = shown(title).to_string();
        let style = match bytes {
            Some(_) => "{prefix}  {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
            None => "{prefix}  {binary_bytes} {binary_bytes_per_sec}",
        };
        let bar = ProgressBar::hidden().with_prefix(title.clone());
        bar.set_style(ProgressStyle::with_template(style).expect("both templates are right"));
        bytes.inspect(|bytes| bar.set_length(*bytes));
        if self.mode == Mode::Lines {
            let size = bytes.map(|bytes| format!(" ({})", BinaryBytes(bytes)));
            self.note(&format!("{title}{}", size.unwrap_or_default()));
        }
        let bar = if self.mode == Mode::Bars { self.bars.insert(0, bar) } else { bar };
        Transfer { console: self.clone(), title, bar, next: Instant::now() + Overview::PAUSE }
    }

    /// Shows the progress of one picture with a distinct `title`: `3/8 a red fox`. In a pipe it prints lines only if
    /// `in_pipes` is set.
    pub fn start(&self, title: &str, in_pipes: bool) -> Progress {
        let title = shown(title);
        // A bar that is not hidden would be drawn before it is added to the others.
        let bar = ProgressBar::hidden().with_prefix(title.clone());
        let bar = if self.mode == Mode::Bars { self.bars.insert(0, bar) } else { bar };
        let has_lines = self.mode == Mode::Bars || in_pipes;
        Progress { console: self.clone(), title, has_lines, bar, started: Instant::now() }
    }

    /// Shows the progress of reading weights.
    pub fn loading(&self) -> LoadingBar {
        LoadingBar { console: self.clone(), bar: Mutex::default() }
    }
}

/// The progress of a download from the hub. Its bar is removed when it is dropped.
pub struct Transfer {
    console: Console,
    title: String,
    bar: ProgressBar,
    next: Instant,
}

impl Transfer {
    /// Shows that this number of bytes has arrived.
    pub fn at(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
        if self.console.mode == Mode::Lines && Instant::now() >= self.next {
            self.next = Instant::now() + Overview::PAUSE;
            let percent = self.bar.length().filter(|all| *all > 0).map(|all| format!(", {} %", bytes * 100 / all));
            self.console.note(&format!("{}: {}{}", self.title, BinaryBytes(bytes), percent.unwrap_or_default()));
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.console.bars.remove(&self.bar);
    }
}

/// The progress of the whole run: a line below the bars on a terminal, a line from time to time in a pipe.
pub struct Overview {
    console: Console,
    bar: ProgressBar,
    next: Instant,
}

impl Overview {
    /// The time between two lines in a pipe.
    const PAUSE: Duration = Duration::from_secs(10);

    /// Shows `line`.
    pub fn show(&mut self, line: impl FnOnce() -> String) {
        match self.console.mode {
            Mode::Bars => self.bar.set_message(line()),
            Mode::Lines if Instant::now() >= self.next => {
                self.next = Instant::now() + Self::PAUSE;
                self.console.note(&line());
            }
            Mode::Lines | Mode::Quiet => {}
        }
    }

    /// Removes the line from the terminal at the end of the run.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
        self.console.bars.remove(&self.bar);
    }
}

impl Drop for Overview {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The progress of reading weights: a bar for each component on a terminal, a line in a pipe.
pub struct LoadingBar {
    console: Console,
    /// The bar of the component that is being read.
    bar: Mutex<Option<ProgressBar>>,
}

impl LoadingBar {
    /// Shows the progress; the bar is removed after the last byte.
    pub fn show(&self, loading: &Loading) {
        let mut current = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if loading.done_bytes == loading.total_bytes {
            return self.clear(&mut current);
        }
        let bar = current.get_or_insert_with(|| {
            let title = format!("loading {}", loading.component);
            let bar = ProgressBar::hidden().with_prefix(title.clone());
            match self.console.mode {
                Mode::Bars => {
                    let style = ProgressStyle::with_template("{prefix}  {bar:30} {binary_bytes}/{binary_total_bytes}");
                    bar.set_style(style.expect("the template is right"));
                    self.console.bars.add(bar)
                }
                Mode::Lines => {
                    self.console.note(&format!("{title}, {}", format_bytes(loading.total_bytes as u64)));
                    bar
                }
                Mode::Quiet => bar,
            }
        });
        bar.set_length(loading.total_bytes as u64);
        bar.set_position(loading.done_bytes as u64);
    }

    fn clear(&self, bar: &mut Option<ProgressBar>) {
        if let Some(bar) = bar.take() {
            bar.finish_and_clear();
            self.console.bars.remove(&bar);
        }
    }
}

impl Drop for LoadingBar {
    fn drop(&mut self) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.clear(&mut bar);
    }
}

/// Writes log lines above the bars. The subscriber writes each message with one call.
pub struct LogWriter(MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.0.suspend(|| io::stderr().write_all(printable(&text).as_bytes()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The progress of one picture. Its bar is removed when it is dropped.
pub struct Progress {
    console: Console,
    title: String,
    has_lines: bool,
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// Shows that the next component has begun, with its number of steps, or 0 if that is not known.
    pub fn stage(&self, name: &str, steps: usize) {
        let style = if steps > 0 {
            "{prefix}  {msg} {bar:30} {pos}/{len} {rate:>8} {eta:>4}"
        } else {
            "{prefix}  {msg} {spinner}"
        };
        let rate = |state: &ProgressState, line: &mut dyn fmt::Write| {
            // If the line cannot be formatted, it is not shown.
            let _ = write!(line, "{:.2}/s", state.per_sec());
        };
        let style = ProgressStyle::with_template(style).expect("both templates are right");
        self.bar.set_style(style.with_key("rate", rate));
        self.bar.set_length(steps as u64);
        self.bar.set_position(0);
        self.bar.reset_eta();
        self.bar.set_message(name.to_owned());
        if self.console.mode == Mode::Lines && self.has_lines && steps > 0 {
            self.console.note(&format!("{}: {name}, {steps} steps", self.title));
        }
    }

    /// Shows that this number of steps of the stage is done.
    pub fn step(&self, done: usize) {
        self.bar.set_position(done as u64);
    }

    /// Shows the end of a picture: `outcome` describes the file or the failure.
    pub fn finish(self, outcome: &str) {
        self.bar.finish_and_clear();
        if self.has_lines {
            self.console.note(&format!("{}: {outcome} after {}", self.title, seconds(self.started.elapsed())));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.console.bars.remove(&self.bar);
    }
}

/// Formats a time: `0.42 s`, `12.3 s`, `3 min 05 s`.
pub(super) fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.995 {
        format!("{seconds:.2} s")
    } else if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else {
        let seconds = seconds.round() as u64;
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_long_as_they_need_to_be() {
        for (ms, text) in
            [(0, "0.00 s"), (420, "0.42 s"), (9_996, "10.0 s"), (99_949, "99.9 s"), (185_000, "3 min 05 s")]
        {
            assert_eq!(seconds(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn every_mode_goes_through_all_stages() {
        for mode in [Mode::Bars, Mode::Lines, Mode::Quiet] {
            let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
            let progress = Console { mode, bars, unread: Arc::default() }.start("1/1 a fox", true);
            progress.stage("text encoder", 0);
            progress.stage("unet", 3);
            progress.step(3);
            progress.finish("saved");
        }
    }
}
