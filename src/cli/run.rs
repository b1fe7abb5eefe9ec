//! A run in progress: it reports events to people and programs, saves pictures, and collects failures.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use sdshard::{
    backend::DeviceId,
    engine::{Engine, Event},
    error::{Error, ErrorScope, Result, printable},
    models::component::ComponentId,
    output,
    pipeline::{self, Picture, Span, request::Request},
    planner::plan::Plan,
    world::World,
};
use serde_json::{Value, json};

use super::{
    args::GenerateArgs,
    gauge::Gauge,
    interrupt::Interrupt,
    jobs::Job,
    names::Replacing,
    progress::{Console, Overview, Progress},
};

/// The largest number of failures that are listed when a run is stopped; of the others, the number is printed.
const LISTED: usize = 100;

/// The largest number of pictures with lines of their own in a pipe; with more, only the overview is printed.
const TOLD: usize = 50;

/// The largest number of characters of a prompt beside its progress.
const TITLE: usize = 50;

/// A run in progress, with its output and its results.
pub(super) struct ImageRun<'a> {
    pub args: &'a GenerateArgs,
    pub console: &'a Console,
    pub interrupt: &'a Interrupt,
    pub world: &'a World,
    pub jobs: &'a [Job],
    pub requests: &'a [Request],
    pub plan: &'a Plan,
    pub started: Instant,
    pub under_way: HashMap<usize, UnderWay>,
    /// Requests that have neither been saved nor failed.
    pub open: BTreeSet<usize>,
    /// Whether a signal has asked to stop, and the message about it was printed.
    pub stopping: bool,
    /// Whether the message that stdout is closed was printed.
    pub unread_told: bool,
    pub saved: usize,
    /// The number of pictures that existed already.
    pub skipped: usize,
    pub failed: Vec<String>,
    /// The spans of each request, for `--trace`.
    pub trace: Vec<(usize, Vec<Span>)>,
    pub trace_file: Option<PathBuf>,
    pub first_seed: u64,
    pub gauge: Gauge,
    pub overview: Overview,
}

/// One picture in progress.
pub(super) struct UnderWay {
    progress: Progress,
    replica: usize,
    attempts: usize,
}

impl ImageRun<'_> {
    /// Handles an event of request `index`; an error stops the run.
    pub fn handle_event(&mut self, index: usize, event: Event) -> Result<()> {
        match event {
            Event::Retry { error, .. } => {
                self.under_way.remove(&index);
                let error = error.to_string();
                let lines: Vec<_> = error.lines().collect();
                self.console.notes(
                    &[&[&*format!("{}: tried again: {}", self.jobs[index].file, lines[0])], &lines[1..]].concat(),
                );
            }
            Event::Taken { replica, attempt, .. } => {
                let title = title(index + 1, self.jobs.len(), self.jobs[index].prompt());
                let progress = self.console.start(&title, self.jobs.len() <= TOLD);
                self.under_way.insert(index, UnderWay { progress, replica, attempts: attempt });
                self.gauge.begun(index, Instant::now());
            }
            Event::Progress(progress) => {
                if let Some(under_way) = self.under_way.get(&index) {
                    match progress {
                        pipeline::Progress::Started { component, calls, .. } => {
                            under_way.progress.stage(&self.plan.components[component].name, calls);
                        }
                        pipeline::Progress::Step { done, .. } => under_way.progress.step(done),
                        _ => {}
                    }
                }
            }
            Event::Done(result) => self.done(index, result)?,
            _ => {}
        }
        if self.console.is_unread() && !std::mem::replace(&mut self.unread_told, true) {
            self.console.note("stdout is closed: the pictures are still made");
        }
        self.overview.show(|| self.gauge.line(self.jobs.len(), Instant::now()));
        if !self.interrupt.requested().load(Ordering::Relaxed) {
            return Ok(());
        }
        if !self.stopping {
            self.stopping = true;
            self.console.note("stopping once the pictures that are being decoded are saved; at once if asked again");
            self.tell_how_to_go_on();
        }
        Err(Error::interrupted())
    }

    fn tell_how_to_go_on(&self) {
        let arguments = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        self.console.whole_note(&format!("to go on: {}", command_to_resume(arguments, self.first_seed, self.world)));
    }

    fn done(&mut self, index: usize, result: Result<Picture>) -> Result<()> {
        let under_way = self.under_way.remove(&index);
        let saved = result.and_then(|picture| Ok((self.save(index, &picture)?, picture)));
        match saved {
            Ok((path, picture)) => {
                self.saved += 1;
                self.open.remove(&index);
                if self.args.trace.is_some() {
                    self.trace.push((index, picture.spans.clone()));
                }
                let (replica, attempts) = under_way.as_ref().map_or((0, 1), |u| (u.replica, u.attempts));
                self.gauge.done(index, replica, &picture.spans, Instant::now());
                if let Some(under_way) = under_way {
                    under_way.progress.finish("saved");
                }
                if self.args.json {
                    self.console.print(&self.line(index, &path, replica, attempts, &picture).to_string())
                } else {
                    self.console.print(&path.display().to_string())
                }
            }
            Err(error) if *error.scope() == ErrorScope::Interrupted => Ok(()),
            Err(error) => {
                if let Some(under_way) = under_way {
                    under_way.progress.finish("failed");
                }
                self.fail(index, &error.to_string())?;
                if *error.scope() == ErrorScope::Process { Err(error) } else { Ok(()) }
            }
        }
    }

    /// Records that a picture has failed for this reason.
    fn fail(&mut self, index: usize, why: &str) -> Result<()> {
        let job = &self.jobs[index];
        self.open.remove(&index);
        self.gauge.failed(index);
        self.failed.push(format!("{}: {why}", job.file));
        if !self.args.json {
            return Ok(());
        }
        let line = json!({
            "index": job.prompt_index,
            "image": job.image_index,
            "prompt": job.prompt(),
            "seed": job.seed(),
            "file": job.file,
            "error": why,
        });
        self.console.print(&line.to_string())
    }

    /// Writes the file of one picture.
    fn save(&self, index: usize, picture: &Picture) -> Result<PathBuf> {
        let metadata = picture.metadata()?;
        let replacing = if self.args.overwrite { Replacing::Others } else { Replacing::Itself };
        let (names, bytes) =
            (&self.jobs[index].names, picture.encode(self.args.output_type.format().unwrap_or_default(), &metadata)?);
        names.save(&self.args.folder(), &metadata, &bytes, replacing, self.args.durability())
    }

    /// The JSON line of one picture.
    fn line(&self, index: usize, path: &Path, replica: usize, attempts: usize, picture: &Picture) -> serde_json::Value {
        let job = &self.jobs[index];
        // A text from the cache used no device this time; the line has the devices that would have been used.
        let placement = &self.plan.replicas[replica].placement;
        let devices = placement.map(|component, places| match picture.devices(component) {
            used if used.is_empty() => places[0].devices(),
            used => used,
        });
        let class = |component, id| {
            let device = self.plan.devices.iter().find(|device| device.id == id);
            device.map_or_else(String::new, |device| device.class_of(component).to_string())
        };
        let of = |f: &dyn Fn(ComponentId) -> serde_json::Value| -> serde_json::Value {
            let components = self.plan.components.iter();
            components.map(|(id, component)| (component.name.clone(), f(id))).collect::<serde_json::Map<_, _>>().into()
        };
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let mut timings = of(&|component| json!(ms(picture.time(component))));
        timings["total"] = json!(ms(picture.spans.iter().map(|span| span.elapsed).sum()));
        json!({
            "index": job.prompt_index,
            "image": job.image_index,
            "prompt": job.prompt(),
            "seed": job.seed(),
            "file": path.display().to_string(),
            "replica": replica,
            "rank": self.world.rank,
            "world_size": self.world.world_size,
            "attempts": attempts,
            "devices": of(&|component| one_or_all(&devices[component])),
            "numerics": of(&|component| json!(class(component, devices[component][0]))),
            "timings_ms": timings,
            "steps": self.requests[index].steps,
        })
    }

    /// Prints the summary and the failures, and returns the result of the run.
    pub fn finish(mut self, outcome: Result<()>, engine: &Engine) -> Result<()> {
        let seconds = self.started.elapsed().as_secs_f64();
        self.overview.clear();
        let stopped = outcome.as_ref().is_err_and(|error| *error.scope() == ErrorScope::Process);
        if stopped {
            for index in std::mem::take(&mut self.open) {
                self.fail(index, "not made, as the run was stopped")?;
            }
        }
        if self.args.json {
            let (images, failed, skipped) = (self.saved, self.failed.len(), self.skipped);
            let summary = Summary { images, failed, skipped, seconds, gauge: Some(&self.gauge), engine: Some(engine) };
            self.console.print(&summary.line())?;
        }
        if self.saved > 0 {
            self.gauge.closing_lines(self.jobs.len()).iter().for_each(|line| self.console.note(line));
        }
        let traced = self
            .trace_file
            .as_ref()
            .map_or(Ok(()), |path| output::write(path, self.trace().as_bytes(), self.args.durability()));
        if outcome.is_err() {
            let listed = self.failed.iter().take(LISTED);
            listed.for_each(|failed| self.console.notes(&failed.lines().collect::<Vec<_>>()));
            if let more @ 1.. = self.failed.len().saturating_sub(LISTED) {
                self.console.note(&format!("and {more} more"));
            }
            if stopped {
                self.tell_how_to_go_on();
            }
        }
        outcome?;
        traced?;
        match self.failed.len() {
            0 => Ok(()),
            n => Err(Error::request(format!("{n} of {} pictures failed", self.jobs.len()))
                .lines(self.failed.iter().flat_map(|failed| failed.lines()).map(|line| format!("  {line}")))),
        }
    }
}

/// The title `3/8 a red fox`: the beginning of a prompt, on one line.
fn title(number: usize, count: usize, prompt: &str) -> String {
    let words = prompt.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    let shown: String = line.chars().take(TITLE).collect();
    let more = if shown.len() < line.len() { "..." } else { "" };
    format!("{number}/{count} {shown}{more}")
}

impl ImageRun<'_> {
    /// The spans of all pictures as a Chrome trace with a row for each device. Chrome's `about:tracing` and Perfetto
    /// show it.
    fn trace(&self) -> String {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let row = |id| self.plan.devices.iter().position(|device| device.id == id).unwrap_or(0);
        let names = self.plan.devices.iter().enumerate().map(|(row, device)| {
            let args = json!({ "name": device.id.to_string() });
            json!({ "ph": "M", "name": "thread_name", "pid": self.world.rank, "tid": row, "args": args })
        });
        let spans = self.trace.iter().flat_map(|(index, spans)| spans.iter().map(move |span| (index, span)));
        let spans = spans.flat_map(|(index, span)| {
            span.devices.iter().map(move |device| {
                json!({
                    "ph": "X",
                    "name": self.plan.components[span.component].name,
                    "cat": self.jobs[*index].file,
                    "pid": self.world.rank,
                    "tid": row(*device),
                    "ts": micros(span.started.saturating_duration_since(self.started)),
                    "dur": micros(span.elapsed),
                    "args": { "prompt": self.jobs[*index].prompt(), "seed": self.jobs[*index].seed() },
                })
            })
        });
        json!({ "traceEvents": names.chain(spans).collect::<Vec<_>>() }).to_string()
    }
}

/// The path of the trace: each of several processes writes its own file.
pub(super) fn trace_file(path: &Path, world: &World) -> PathBuf {
    if world.world_size == 1 {
        return path.to_path_buf();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-rank{}{extension}", world.rank))
}

/// A word of a command line as a shell reads it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.contains('\n') || printable(word) != word {
        // Bash, zsh and ksh read these escapes; they have no effect on a terminal.
        let escaped = |c: char| match c {
            '\'' | '\\' => format!("\\{c}"),
            c if c.is_ascii() && !c.is_control() => c.to_string(),
            c => format!("\\U{:08x}", u32::from(c)),
        };
        format!("$'{}'", word.chars().map(escaped).collect::<String>())
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The command line that continues a stopped run, quoted for a shell: with `--resume`, with the seed that was drawn,
/// and for one process of several with its rank.
fn command_to_resume(arguments: impl Iterator<Item = String>, first_seed: u64, world: &World) -> String {
    let mut words: Vec<String> = arguments.filter(|word| word != "--resume").collect();
    let says_rank = words.iter().any(|word| word == "--rank" || word.starts_with("--rank="));
    for i in 1..words.len() {
        match words[i].as_str() {
            "--seed=random" | "--seed=-1" => words[i] = format!("--seed={first_seed}"),
            "random" | "-1" if words[i - 1] == "--seed" => words[i] = first_seed.to_string(),
            _ => {}
        }
    }
    let place = [format!("--rank={}", world.rank), format!("--world-size={}", world.world_size)];
    let place = place.into_iter().filter(|_| world.world_size > 1 && !says_rank);
    let first = 1.min(words.len());
    words.splice(first..first, std::iter::once("--resume".to_string()).chain(place));
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// The last line of `--json`. Without an engine there was nothing to do.
#[derive(Default)]
pub(super) struct Summary<'a> {
    pub images: usize,
    pub failed: usize,
    pub skipped: usize,
    pub seconds: f64,
    pub gauge: Option<&'a Gauge>,
    pub engine: Option<&'a Engine>,
}

impl Summary<'_> {
    pub fn line(&self) -> String {
        let by_device = |bytes: Option<Vec<(DeviceId, usize)>>| -> serde_json::Map<_, _> {
            bytes.into_iter().flatten().map(|(id, bytes)| (id.to_string(), json!(bytes))).collect()
        };
        let utilisation = self.gauge.into_iter().flat_map(Gauge::utilisation);
        let utilisation = utilisation.map(|(id, percent)| (id.to_string(), json!((percent * 10.0).round() / 10.0)));
        let summary = json!({
            "images": self.images,
            "failed": self.failed,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "images_per_second": if self.seconds > 0.0 { self.images as f64 / self.seconds } else { 0.0 },
            "load_seconds": self.gauge.map_or(0.0, Gauge::load_seconds),
            "warm_up_seconds": self.gauge.and_then(Gauge::warm_up_seconds),
            "steady_images_per_second": self.gauge.and_then(Gauge::steady_images_per_second),
            "busy_percent": utilisation.collect::<serde_json::Map<_, _>>(),
            "peak_bytes": by_device(self.engine.map(Engine::peak_bytes)),
            "peak_weight_bytes": by_device(self.engine.map(Engine::peak_weight_bytes)),
        });
        json!({ "summary": summary }).to_string()
    }
}

/// The name of a single device, or a list of names.
pub fn one_or_all(devices: &[impl ToString]) -> Value {
    match devices {
        [one] => json!(one.to_string()),
        several => json!(several.iter().map(ToString::to_string).collect::<Vec<_>>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_go_on_can_be_pasted_into_a_shell() {
        let world = |rank, world_size| World::new(Some(rank), Some(world_size), |_| None).unwrap();
        let of = |words: &[&str], world| command_to_resume(words.iter().map(ToString::to_string), 7, &world);
        let command = |words: &[&str]| of(words, world(0, 1));
        assert_eq!(command(&["sdshard", "a dog", "--steps=3"]), "sdshard --resume 'a dog' --steps=3");
        assert_eq!(command(&["sdshard", "it's", "", "--resume"]), r"sdshard --resume 'it'\''s' ''");
        let replaces = command(&["sdshard", "a", "--overwrite", "--seed", "random"]);
        assert_eq!(replaces, "sdshard --resume a --overwrite --seed 7");
        assert_eq!(command(&["sdshard", "a", "--seed", "-1"]), "sdshard --resume a --seed 7");
        assert_eq!(command(&["sdshard", "a", "--seed=-1"]), "sdshard --resume a --seed=7");
        let hostile = command(&["sdshard", "it's\u{1b}[2J\n\u{202e}é"]);
        assert_eq!(hostile, r"sdshard --resume $'it\'s\U0000001b[2J\U0000000a\U0000202e\U000000e9'");
        assert_eq!(of(&["sdshard", "a"], world(1, 3)), "sdshard --resume --rank=1 --world-size=3 a");
        let said = ["sdshard", "a", "--rank", "1", "--world-size", "3"];
        assert_eq!(of(&said, world(1, 3)), "sdshard --resume a --rank 1 --world-size 3");
    }
}
