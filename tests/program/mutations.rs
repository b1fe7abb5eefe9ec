//! The program among random device maps and model folders with one or two changes: every key of every JSON file and of
//! every header of weights deleted, of another type or extreme, every file replaced by something that is none. Whatever
//! it is given, it draws or refuses, with one message, no control character and no file that should not be there.
//!
//! `SDSHARD_MUTATIONS=3000` tries so many of each, `SDSHARD_MUTATIONS_SEED` others, and `SDSHARD_MUTATION=N` number N
//! alone, which is how a failure is looked at again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{
        fs::{FileTypeExt, symlink},
        net::UnixListener,
        process::ExitStatusExt,
    },
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::common::{copy_of_tiny, files, maps::Random, model, pixels, sdshard, tiny};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use tempfile::TempDir;

/// Cases of each kind, unless `SDSHARD_MUTATIONS` says another number.
const CASES: u64 = 80;
/// More than any case takes on a slow machine; whoever needs longer waits for itself.
const DEADLINE: Duration = Duration::from_secs(60);
/// What a run may occupy beyond the model, in bytes.
const MOST_MEMORY: u64 = 500_000_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn seed() -> u64 {
    variable("SDSHARD_MUTATIONS_SEED").unwrap_or(1)
}

/// What a run came to.
struct Ended {
    code: i32,
    message: String,
    seconds: f64,
    peak_bytes: u64,
}

/// Runs the program to its end, and fails where it ends otherwise than a program should.
fn ended(mut command: Command, cache: &Path, folder: &Path) -> Result<Ended, String> {
    let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
    let start = Instant::now();
    let mut child = command
        .env("XDG_CACHE_HOME", cache)
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .spawn()
        .expect("the program was built for this test");
    let mut peak_bytes = 0;
    let status = loop {
        // The high-water mark, which is gone when the process is.
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak_bytes = peak_bytes.max(peak.unwrap_or(0u64) * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > DEADLINE || peak_bytes > 4 * MOST_MEMORY {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("it did not end in {DEADLINE:?}, or it took {peak_bytes} bytes"));
        }
        thread::sleep(Duration::from_millis(2));
    };
    let seconds = start.elapsed().as_secs_f64();
    let read = |path| String::from_utf8(fs::read(path).unwrap()).map_err(|error| format!("not UTF-8: {error}"));
    let (said, message) = (read(stdout)?, read(stderr)?);
    let ended = format!("{:?}, signal {:?}\n{message}", status.code(), status.signal());
    if !matches!(status.code(), Some(0 | 2)) {
        return Err(ended);
    }
    if let Some(c) = (said + &message).chars().find(|c| c.is_control() && *c != '\n') {
        return Err(format!("wrote {c:?}: {message:?}"));
    }
    let errors = message.lines().filter(|line| line.starts_with("error: ")).count();
    if errors != usize::from(status.code() == Some(2)) || message.contains("panicked") {
        return Err(ended);
    }
    if message.len() > 20_000 {
        return Err(format!("a message of {} bytes: {}", message.len(), message.chars().take(500).collect::<String>()));
    }
    if peak_bytes > MOST_MEMORY {
        return Err(format!("{peak_bytes} bytes of memory\n{message}"));
    }
    Ok(Ended { code: status.code().unwrap(), message, seconds, peak_bytes })
}

/// Runs all cases, on as many threads as the machine has, and says what they came to.
fn all(kind: &str, case: impl Fn(u64, &Path, &Path) -> Result<Vec<Ended>, String> + Sync) {
    let cache = tempfile::tempdir().unwrap();
    // Rates of the machine are measured once.
    drop(sdshard(&["devices", "--measure"]).env("XDG_CACHE_HOME", cache.path()).output().unwrap());
    let numbers: Vec<u64> = match variable("SDSHARD_MUTATION") {
        Some(number) => vec![number],
        None => (0..variable("SDSHARD_MUTATIONS").unwrap_or(CASES)).collect(),
    };
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let runs = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&number) = numbers.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let folder = tempfile::tempdir().unwrap();
                    match case(number, cache.path(), folder.path()) {
                        Ok(ended) => runs.lock().unwrap().extend(ended.into_iter().map(|ended| (number, ended))),
                        Err(error) => failures.lock().unwrap().push(format!("{kind} {number}: {error}")),
                    }
                }
            });
        }
    });
    let (failures, runs) = (failures.into_inner().unwrap(), runs.into_inner().unwrap());
    let mut codes = BTreeMap::new();
    for (_, ended) in &runs {
        *codes.entry(ended.code).or_insert(0) += 1;
    }
    println!("{kind}: {} cases, runs by exit code {codes:?}, seed {}", numbers.len(), seed());
    if let Some((number, slowest)) = runs.iter().max_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds)) {
        println!(
            "{kind}: slowest {number} with {:.2} s: {}",
            slowest.seconds,
            slowest.message.lines().next().unwrap_or("")
        );
    }
    if let Some((number, largest)) = runs.iter().max_by_key(|(_, ended)| ended.peak_bytes) {
        let message = largest.message.lines().next().unwrap_or("");
        println!("{kind}: largest {number} with {} MB: {message}", largest.peak_bytes / 1_000_000);
    }
    let count = failures.len();
    assert!(
        failures.is_empty(),
        "{count} of them failed; SDSHARD_MUTATIONS_SEED={} SDSHARD_MUTATION=N tries number N alone\n{}",
        seed(),
        failures.join("\n")
    );
}

/// A small picture.
fn draw(model: &Path, out: &Path) -> Command {
    let mut command = sdshard(&["a fox", "--width", "32", "--height", "32", "--steps", "2", "--no-fsync"]);
    command.arg("--model").arg(model).arg("--output-dir").arg(out);
    command
}

/// A run that was done has drawn one whole picture, and one that was refused nothing.
fn drew(ended: &Ended, out: &Path) -> Result<Option<Vec<u8>>, String> {
    let made = files(out);
    if ended.code != 0 {
        return if made.is_empty() { Ok(None) } else { Err(format!("it left {made:?}\n{}", ended.message)) };
    }
    let [name] = made.as_slice() else { return Err(format!("it left {made:?}\n{}", ended.message)) };
    let png = fs::read(out.join(name)).unwrap();
    let (width, height, _) = pixels(&png);
    if (width, height) == (32, 32) { Ok(Some(png)) } else { Err(format!("a picture of {width}x{height}")) }
}

/// What a value of a JSON file or a map may be that nobody expects there.
fn values() -> Vec<String> {
    let mut values: Vec<String> = [
        "null",
        "3",
        "0.5",
        "\"text\"",
        "[]",
        "[1]",
        "[\"cpu:0\", null]",
        "{}",
        "{\"a\": 1}",
        "true",
        "0",
        "-1",
        "1e308",
        "-1e308",
        "9223372036854775808",
        "18446744073709551615",
        "4294967297",
        "65536",
        "\"\"",
        "\"\\u001b[2J\\u0007\\u009b\\u202e\"",
        "\"../../../etc/passwd\"",
        "NaN",
        "-Infinity",
        "1e999",
        "\"F8_E4M3\"",
        "[4, 2]",
    ]
    .map(str::to_owned)
    .to_vec();
    values.push(format!("\"{}\"", "long ".repeat(200_000)));
    values.push(format!("[{}0]", "0, ".repeat(100_000)));
    values.push(format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)));
    values
}

/// A map that is right, or one with some words changed.
fn map_text(number: u64, valid: &str) -> String {
    let mut random = Random(seed().wrapping_mul(1_000_003).wrapping_add(number));
    let values = values();
    let mut lines: Vec<String> = valid.lines().map(str::to_owned).collect();
    for _ in 0..1 + random.below(3) {
        let at = random.below(lines.len());
        let value = values[random.below(values.len())].clone();
        let line = lines[at].clone();
        match random.below(8) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, line),
            // What follows an equals sign, at whatever depth.
            2..=4 => {
                let signs: Vec<_> = line.match_indices('=').map(|(i, _)| i + 1).collect();
                if let Some(sign) = (!signs.is_empty()).then(|| signs[random.below(signs.len())]) {
                    let end = line[sign..].find([',', '}', ']']).map_or(line.len(), |end| sign + end);
                    lines[at] = format!("{} {value}{}", &line[..sign], &line[end..]);
                }
            }
            5 => {
                let keys =
                    ["devices", "strategy", "replicas", "batch", "in_flight", "dtype", "numerics", "x.y", "[a]\nb"];
                lines.insert(0, format!("{} = {value}", keys[random.below(keys.len())]));
            }
            6 => {
                let tables =
                    ["max_memory", "device.\"cpu:0\"", "components", "replica", "[replica]", "a.\"\\u001b[2J\""];
                let keys = ["\"cpu:0\"", "reserve", "memory", "cores", "like", "unet", "\"\\u001b]0;x\\u0007\""];
                let table = tables[random.below(tables.len())];
                lines.push(format!("[{table}]\n{} = {value}", keys[random.below(keys.len())]));
            }
            _ => {
                // One character for another, or a line that ends early.
                let odd = ["\u{1b}[2J", "\u{0}", "=", "\"", "]", "}", "\u{202e}", "'''", "#", "9"][random.below(10)];
                let place = line.char_indices().map(|(i, _)| i).nth(random.below(line.len().max(1))).unwrap_or(0);
                lines[at] = match random.one_in(2) {
                    true => line[..place].to_owned(),
                    false => format!("{}{odd}{}", &line[..place], &line[place..]),
                };
            }
        }
        if lines.is_empty() {
            lines.push(String::new());
        }
    }
    lines.join("\n")
}

#[test]
fn random_maps_are_drawn_or_refused() {
    let spec = model().spec.clone();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    assert!(draw(&tiny(), &out).output().unwrap().status.success());
    let want = fs::read(out.join(&files(&out)[0])).unwrap();
    all("map", |number, cache, folder| {
        let valid = Random(seed().wrapping_mul(1_000_003).wrapping_add(number)).map(&spec);
        let is_valid = number.is_multiple_of(2);
        let text = if is_valid { valid } else { map_text(number, &valid) };
        let shown = || text.chars().take(2_000).collect::<String>();
        let (map, out) = (folder.join("map.toml"), folder.join("out"));
        fs::write(&map, &text).unwrap();
        let mut plan = sdshard(&["plan", "--width", "32", "--height", "32"]);
        plan.arg("--model").arg(tiny()).arg("--device-map").arg(&map);
        let planned = ended(plan, cache, folder).map_err(|error| format!("planned: {error}\n{}", shown()))?;
        let mut drawing = draw(&tiny(), &out);
        drawing.arg("--device-map").arg(&map);
        let drawn = ended(drawing, cache, folder).map_err(|error| format!("drawn: {error}\n{}", shown()))?;
        let picture = drew(&drawn, &out).map_err(|error| format!("{error}\n{}", shown()))?;
        if is_valid && picture.is_none() {
            return Err(format!("it was refused: {}\n{}", drawn.message, shown()));
        }
        // All that these maps name is a CPU: one numerics class, one picture.
        if picture.is_some_and(|picture| picture != want) {
            return Err(format!("another picture\n{}", shown()));
        }
        Ok(vec![planned, drawn])
    });
}

/// A key or place on the way into a JSON value.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    At(usize),
}

/// What happens to a value of a JSON text.
#[derive(Clone, Debug)]
enum Edit {
    Delete,
    Twice,
    Rename,
    /// The value as it is written.
    Set(String),
}

/// Every place in a value; of objects with many keys some, and of long lists the first and the last.
fn places(value: &Value, at: &[Step], found: &mut Vec<Vec<Step>>) {
    let below: Vec<(Step, &Value)> = match value {
        Value::Object(object) => {
            let few = object.len().div_ceil(40);
            object.iter().step_by(few).map(|(key, value)| (Step::Key(key.clone()), value)).collect()
        }
        Value::Array(list) => {
            let ends = [0, list.len().saturating_sub(1)];
            (0..list.len()).filter(|i| ends.contains(i)).map(|i| (Step::At(i), &list[i])).collect()
        }
        _ => Vec::new(),
    };
    for (step, value) in below {
        let here = [at, &[step]].concat();
        found.push(here.clone());
        places(value, &here, found);
    }
}

/// The text of a JSON value after an edit.
fn edited(mut value: Value, place: &[Step], edit: &Edit) -> String {
    const MARK: &str = "<the value>";
    let (last, way) = place.split_last().unwrap();
    let mut holder = &mut value;
    for step in way {
        holder = match step {
            Step::Key(key) => &mut holder[key],
            Step::At(i) => &mut holder[i],
        };
    }
    let mut written = String::new();
    match (holder, last, edit) {
        (Value::Object(object), Step::Key(key), Edit::Delete) => drop(object.shift_remove(key)),
        (Value::Object(object), Step::Key(key), Edit::Rename) => {
            let old = object.shift_remove(key).unwrap();
            object.insert(format!("{key}\u{1b}[2J"), old);
        }
        (Value::Object(object), Step::Key(key), Edit::Twice) => {
            let old = object.insert(key.clone(), MARK.into()).unwrap();
            written = format!("{old}, {}: {old}", Value::from(key.as_str()));
        }
        (Value::Object(object), Step::Key(key), Edit::Set(text)) => {
            object.insert(key.clone(), MARK.into());
            written.clone_from(text);
        }
        (Value::Array(list), Step::At(i), Edit::Delete) => drop(list.remove(*i)),
        (Value::Array(list), Step::At(i), Edit::Set(text)) => {
            list[*i] = MARK.into();
            written.clone_from(text);
        }
        (Value::Array(list), Step::At(i), _) => list.insert(*i, list[*i].clone()),
        // The first of two changes has taken away where the second would be.
        _ => {}
    }
    value.to_string().replace(&format!("\"{MARK}\""), &written)
}

/// One change of a model folder.
#[derive(Clone, Debug)]
enum Change {
    Json(Vec<Step>, Edit),
    Header(Vec<Step>, Edit),
    /// What the file says the length of its header is.
    HeaderLength(u64),
    Replace(&'static str),
}

const REPLACEMENTS: [&str; 19] = [
    "nothing",
    "an empty file",
    "a folder",
    "a FIFO",
    "a socket",
    "a link to nowhere",
    "a link to itself",
    "a link to /dev/zero",
    "a link to /dev/null",
    "a link to a FIFO",
    "a link to a folder",
    "random bytes",
    "half of it",
    "all but a byte",
    "a byte more",
    "a terabyte of zeros",
    "a pointer of git-lfs",
    "a page of HTML",
    "control characters",
];

fn header_of(bytes: &[u8]) -> Option<(Value, &[u8])> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().unwrap()) as usize;
    let header = bytes.get(8..8usize.checked_add(length)?)?;
    Some((serde_json::from_slice(header).ok()?, &bytes[8 + length..]))
}

impl Change {
    fn apply(&self, path: &Path, random: &mut Random) {
        match self {
            Self::Replace(with) => replace(path, with, random),
            Self::Json(place, edit) => {
                // A change before this one may have left no JSON.
                if let Some(value) = read(path).and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
                    fs::write(path, edited(value, place, edit)).unwrap();
                }
            }
            Self::Header(place, edit) => {
                let Some(bytes) = read(path) else { return };
                let Some((header, weights)) = header_of(&bytes) else { return };
                let header = edited(header, place, edit);
                let length = (header.len() as u64).to_le_bytes();
                fs::write(path, [&length, header.as_bytes(), weights].concat()).unwrap();
            }
            Self::HeaderLength(length) => {
                let Some(mut bytes) = read(path).filter(|bytes| bytes.len() >= 8) else { return };
                bytes[..8].copy_from_slice(&length.to_le_bytes());
                fs::write(path, bytes).unwrap();
            }
        }
    }
}

/// The contents of a regular file that is not absurdly long.
fn read(path: &Path) -> Option<Vec<u8>> {
    let about = fs::symlink_metadata(path).ok()?;
    (about.is_file() && about.len() < 1 << 24).then(|| fs::read(path).unwrap())
}

fn replace(path: &Path, with: &str, random: &mut Random) {
    let old = read(path).unwrap_or_default();
    let beside = path.with_extension("beside");
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
    let fifo = |path: &Path| {
        if !fs::metadata(path).is_ok_and(|about| about.file_type().is_fifo()) {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
    };
    match with {
        "nothing" => {}
        "an empty file" => fs::write(path, "").unwrap(),
        "a folder" => fs::create_dir(path).unwrap(),
        "a FIFO" => fifo(path),
        "a socket" => drop(UnixListener::bind(path).unwrap()),
        "a link to nowhere" => symlink("nowhere\u{1b}[2J", path).unwrap(),
        "a link to itself" => symlink(path, path).unwrap(),
        "a link to /dev/zero" => symlink("/dev/zero", path).unwrap(),
        "a link to /dev/null" => symlink("/dev/null", path).unwrap(),
        "a link to a FIFO" => {
            fifo(&beside);
            symlink(beside, path).unwrap();
        }
        "a link to a folder" => symlink(path.parent().unwrap(), path).unwrap(),
        "random bytes" => fs::write(path, (0..old.len()).map(|_| random.below(256) as u8).collect::<Vec<_>>()).unwrap(),
        "half of it" => fs::write(path, &old[..old.len() / 2]).unwrap(),
        "all but a byte" => fs::write(path, &old[..old.len().saturating_sub(1)]).unwrap(),
        "a byte more" => fs::write(path, [&old[..], b"x"].concat()).unwrap(),
        "a terabyte of zeros" => File::create(path).unwrap().set_len(1 << 40).unwrap(),
        "a pointer of git-lfs" => {
            let hash = "0123456789abcdef".repeat(4);
            let text = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{hash}\nsize 1148864\n");
            fs::write(path, text).unwrap();
        }
        "a page of HTML" => fs::write(path, "<!DOCTYPE html><html>404</html>").unwrap(),
        "control characters" => fs::write(path, "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}\r\n\0").unwrap(),
        other => unreachable!("{other}"),
    }
}

/// Every change, with the file that it is of.
fn changes(model: &Path) -> Vec<(String, Change)> {
    let mut names = Vec::new();
    for name in files(model) {
        match model.join(&name).is_dir() {
            true => names.extend(files(&model.join(&name)).iter().map(|file| format!("{name}/{file}"))),
            false => names.push(name),
        }
    }
    let edits = || {
        let values = values().into_iter().map(Edit::Set);
        [Edit::Delete, Edit::Twice, Edit::Rename].into_iter().chain(values)
    };
    let mut changes = Vec::new();
    for name in names {
        let bytes = fs::read(model.join(&name)).unwrap();
        changes.extend(REPLACEMENTS.map(|with| (name.clone(), Change::Replace(with))));
        let mut found = Vec::new();
        if name.ends_with(".json") {
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            // Of a vocabulary, which is a list of its own, four words are enough.
            places(&value, &[], &mut found);
            let every = if name.ends_with("vocab.json") { found.len() / 4 } else { 1 };
            let found = found.iter().step_by(every);
            changes
                .extend(found.flat_map(|place| edits().map(|edit| (name.clone(), Change::Json(place.clone(), edit)))));
        } else if let Some((header, _)) = header_of(&bytes) {
            // Four tensors of each file, with all that is said of them.
            let names: Vec<&String> = header.as_object().unwrap().keys().collect();
            for tensor in names.iter().step_by(names.len() / 4) {
                let at = [Step::Key(tensor.to_string())];
                let mut found = vec![at.to_vec()];
                places(&header[tensor.as_str()], &at, &mut found);
                changes.extend(
                    found
                        .iter()
                        .flat_map(|place| edits().map(|edit| (name.clone(), Change::Header(place.clone(), edit)))),
                );
            }
            let all = bytes.len() as u64;
            let lengths = [0, 1, 7, 4096, all - 8, all - 7, all, 100_000_001, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX];
            changes.extend(lengths.map(|length| (name.clone(), Change::HeaderLength(length))));
        }
    }
    changes
}

#[test]
fn changed_model_folders_are_drawn_or_refused() {
    let mut changes = changes(&tiny());
    // Fisher and Yates: each change once, in an order of its own for each seed; then two at a time.
    let mut random = Random(seed());
    for i in (1..changes.len()).rev() {
        changes.swap(i, random.below(i + 1));
    }
    println!("model: {} changes", changes.len());
    all("model", |number, cache, folder| {
        let mut random = Random(seed().wrapping_mul(1_000_003).wrapping_add(number));
        let chosen: Vec<_> = match changes.get(number as usize) {
            Some(change) => vec![change],
            None => (0..2).map(|_| &changes[random.below(changes.len())]).collect(),
        };
        let copy: TempDir = copy_of_tiny();
        let model = copy.path().join("model");
        for (file, change) in &chosen {
            change.apply(&model.join(file), &mut random);
        }
        let shown = || format!("{chosen:?}").chars().take(2_000).collect::<String>();
        let out = folder.join("out");
        let drawn = ended(draw(&model, &out), cache, folder).map_err(|error| format!("{}\ndrawn: {error}", shown()))?;
        drew(&drawn, &out).map_err(|error| format!("{}\n{error}", shown()))?;
        let mut plan = sdshard(&["plan", "--width", "32", "--height", "32"]);
        plan.arg("--model").arg(&model);
        let planned = ended(plan, cache, folder).map_err(|error| format!("{}\nplanned: {error}", shown()))?;
        Ok(vec![drawn, planned])
    });
}
