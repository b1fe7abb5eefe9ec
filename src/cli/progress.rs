//! What people see while they wait, on stderr: bars on a terminal, plain lines in a pipe, nothing with `--quiet`. And
//! the one door to stdout, so that results and bars do not run into each other.

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
    error::{Error, Result, printable, shown},
    planner::size::format_bytes,
    weights::Loading,
};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bars,
    Lines,
    Quiet,
}

/// Both streams of the program. Clones are the same console.
#[derive(Debug, Clone)]
pub struct Console {
    mode: Mode,
    bars: MultiProgress,
    /// Whoever read stdout has closed it.
    unread: Arc<AtomicBool>,
}

impl Console {
    /// For this process's own stderr.
    pub fn new(quiet: bool) -> Self {
        let mode = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Bars,
            (false, false) => Mode::Lines,
        };
        let target = if mode == Mode::Bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { mode, bars: MultiProgress::with_draw_target(target), unread: Arc::default() }
    }

    /// A line on stderr, unless `--quiet`.
    pub fn note(&self, line: &str) {
        self.notes(&[line]);
    }

    /// The same for a line that is of no use cut: what is left out of others stays in it.
    pub fn whole_note(&self, line: &str) {
        self.write(&format!("{}\n", printable(line)));
    }

    /// Lines on stderr, unless `--quiet`.
    pub fn notes(&self, lines: &[impl AsRef<str>]) {
        self.write(&lines.iter().map(|line| shown(line.as_ref()) + "\n").collect::<String>());
    }

    /// Writes to stderr in one piece, so that lines of several processes do not mix.
    fn write(&self, text: &str) {
        if self.mode != Mode::Quiet {
            // Whoever closed stderr does not want to read it.
            let _ = self.bars.suspend(|| io::stderr().write_all(text.as_bytes()));
        }
    }

    /// A line on stdout: a result. One that nobody reads any more is left out: see [`Console::is_unread`].
    pub fn print(&self, line: &str) -> Result<()> {
        let written = self.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            // A program that reads the line gets it as it is.
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

    /// Whether whoever read stdout has closed it.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Where log lines go.
    pub fn log_writer(&self) -> LogWriter {
        LogWriter(self.bars.clone())
    }

    /// The place for a line about the whole run.
    pub fn overview(&self) -> Overview {
        let bar = ProgressBar::hidden();
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is right"));
        let bar = if self.mode == Mode::Bars { self.bars.add(bar) } else { bar };
        Overview { console: self.clone(), bar, next: Instant::now() + Overview::PAUSE }
    }

    /// A file of so many bytes, if that is known, that is about to come: `downloading org/name: unet/config.json`.
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

    /// Progress of one picture; `title` tells it from others: `3/8 a red fox`. In a pipe it has lines of its own only where
    /// `in_pipes` is set.
    pub fn start(&self, title: &str, in_pipes: bool) -> Progress {
        let title = shown(title);
        // A bar that nobody adds to the others would draw itself.
        let bar = ProgressBar::hidden().with_prefix(title.clone());
        let bar = if self.mode == Mode::Bars { self.bars.insert(0, bar) } else { bar };
        let has_lines = self.mode == Mode::Bars || in_pipes;
        Progress { console: self.clone(), title, has_lines, bar, started: Instant::now() }
    }

    /// Progress of the reading of weights.
    pub fn loading(&self) -> LoadingBar {
        LoadingBar { console: self.clone(), bar: Mutex::default() }
    }
}

/// A file on its way from the hub. Its bar goes away with it.
pub struct Transfer {
    console: Console,
    title: String,
    bar: ProgressBar,
    next: Instant,
}

impl Transfer {
    /// So many bytes are there.
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

/// How the whole run goes: a line below the bars on a terminal, a line from time to time in a pipe.
pub struct Overview {
    console: Console,
    bar: ProgressBar,
    next: Instant,
}

impl Overview {
    /// Between two lines in a pipe.
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

    /// The run is over: takes the line off the terminal.
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

/// How far the reading of weights has come: a bar for each component on a terminal, a line in a pipe.
pub struct LoadingBar {
    console: Console,
    /// Of the component that is being read.
    bar: Mutex<Option<ProgressBar>>,
}

impl LoadingBar {
    /// Shows it; the bar goes away with the last byte.
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

/// Writes above the bars. One call is one message, which is how the subscriber calls it.
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

/// One picture on its way. Its bar goes away with it.
pub struct Progress {
    console: Console,
    title: String,
    has_lines: bool,
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// The next component is at work; `steps` of it are to come, 0 if that is not known.
    pub fn stage(&self, name: &str, steps: usize) {
        let style = if steps > 0 {
            "{prefix}  {msg} {bar:30} {pos}/{len} {rate:>8} {eta:>4}"
        } else {
            "{prefix}  {msg} {spinner}"
        };
        let rate = |state: &ProgressState, line: &mut dyn fmt::Write| {
            // A line that cannot be written is not shown.
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

    /// So many steps of the stage are done.
    pub fn step(&self, done: usize) {
        self.bar.set_position(done as u64);
    }

    /// The picture is there, or its failure is: `outcome` says which.
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

/// `0.42 s`, `12.3 s`, `3 min 05 s`.
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
