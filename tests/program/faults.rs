//! The program among faults: kills at random times, full disks, limits, folders that go away, streams that are closed.
//! Whatever happens, what is in the folder are whole pictures, those that were said to be saved are there, a run that
//! is resumed makes the rest, and there is no panic.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use crate::common::{files, has_facts, json_lines, pixels, sdshard, succeeds, text, tiny};

/// Pictures of one run.
const COUNT: usize = 40;
/// Runs that are killed before their end, unless `SDSHARD_KILLS` says another number.
const KILLS: u64 = 12;
/// The times of kills follow from it.
const SEED: u64 = 20;

/// A run of small pictures into `out`.
fn draw(out: &Path, more: &[&str]) -> Command {
    let count = COUNT.to_string();
    let mut command = sdshard(&["a fox", "--num-images", &count, "--width", "32", "--height", "32", "--steps", "2"]);
    command.args(more).arg("--model").arg(tiny()).arg("--output-dir").arg(out);
    command
}

/// The same under `sh`, behind `setup`: limits and redirections, which concern the program alone.
fn in_shell(setup: &str, draw: &Command) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(setup).arg("sh").arg(draw.get_program()).args(draw.get_args()).stdin(Stdio::null());
    command
}

/// Pictures that have their final names.
fn pictures(out: &Path) -> BTreeSet<String> {
    files(out).into_iter().filter(|name| !name.starts_with('.')).collect()
}

#[track_caller]
fn all_are_whole(out: &Path, what: &str) {
    for name in pictures(out) {
        let (width, height, pixels) = pixels(&fs::read(out.join(&name)).unwrap());
        assert_eq!((width, height, pixels.len()), (32, 32, 32 * 32 * 3), "{what}: {name}");
    }
}

/// Makes what is missing, and compares all with a run that nothing happened to.
#[track_caller]
fn resumes(out: &Path, what: &str) {
    all_are_whole(out, what);
    // As if a minute had passed since whatever happened: unfinished files are taken away.
    for name in files(out).iter().filter(|name| name.starts_with('.')) {
        let file = fs::File::options().append(true).open(out.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(120)).unwrap();
    }
    let there = pictures(out).len();
    let lines = json_lines(&succeeds(&mut draw(out, &["--resume", "--json", "--quiet"])));
    let summary = &lines.last().unwrap()["summary"];
    assert_eq!((&summary["skipped"], &summary["images"]), (&there.into(), &(COUNT - there).into()), "{what}");
    let folder = tempfile::tempdir().unwrap();
    succeeds(&mut draw(folder.path(), &["--quiet"]));
    assert_eq!(files(out), files(folder.path()), "{what}");
    for name in files(out) {
        let same = fs::read(out.join(&name)).unwrap() == fs::read(folder.path().join(&name)).unwrap();
        assert!(same, "{what}: {name} is another picture");
    }
}

/// A run that failed as a program does: by itself, with a message and without a panic.
#[track_caller]
fn failed(output: &Output, code: i32, says: &str) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}\n{message}", output.status);
    has_facts(code, message, &[says]);
}

#[test]
fn kills_at_random_times_lose_double_and_damage_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut random = SEED;
    let (mut killed, mut said) = (0, BTreeSet::new());
    let kills = std::env::var("SDSHARD_KILLS").map_or(KILLS, |kills| kills.parse().expect("SDSHARD_KILLS is a number"));
    let mut tries = 0;
    while killed < kills {
        let kill = tries;
        tries += 1;
        assert!(tries < 20 * kills, "of {tries} runs only {killed} were killed before their end");
        if pictures(&out).len() == COUNT {
            // Nothing is left to do: from the start.
            resumes(&out, &format!("before run {kill}"));
            fs::remove_dir_all(&out).unwrap();
            said.clear();
        }
        let mut child = draw(&out, &["--resume", "--quiet"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        // Knuth's generator (TAOCP volume 2, 3.3.4). From before the model is read until a few pictures are there.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let after = Duration::from_micros((random >> 33) % 40_000);
        let mut first = String::new();
        if kill % 4 != 0 {
            stdout.read_line(&mut first).unwrap();
        }
        std::thread::sleep(after);
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        said.extend((first + &rest).lines().map(PathBuf::from));
        let lost: Vec<_> = said.iter().filter(|path| !path.is_file()).collect();
        assert!(lost.is_empty(), "kill {kill}: {lost:?} had been saved");
        all_are_whole(&out, &format!("kill {kill}"));
    }
    println!("{killed} of {tries} runs were killed before their end");
    resumes(&out, "after all kills");
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_no_signal() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // One block of 512 or 1024 bytes: less than a picture.
    let output = in_shell("ulimit -f 1; exec \"$@\"", &draw(&out, &["--quiet"])).output().unwrap();
    failed(&output, 1, "error: writing ");
    assert_eq!(files(&out), [""; 0], "{}", text(&output.stderr));

    let figure = folder.path().join("plan.svg");
    let mut plan = sdshard(&["plan", "--svg"]);
    plan.arg(&figure).arg("--model").arg(tiny());
    let output = in_shell("ulimit -f 1; exec \"$@\"", &plan).output().unwrap();
    failed(&output, 1, "error: writing ");
    assert!(!figure.exists());
    resumes(&out, "after the limit");
}

/// A disk of 64 KiB, in a name space of mounts of its own.
#[test]
fn a_full_disk_stops_the_run_and_leaves_whole_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, kept) = (folder.path().join("disk"), folder.path().join("kept"));
    fs::create_dir(&disk).unwrap();
    let on_disk = |then: &str| {
        let (disk, kept) = (disk.display(), kept.display());
        format!(
            "mount -t tmpfs -o size=64k tmpfs '{disk}' && {{ {then}; code=$?; cp -a '{disk}/.' '{kept}'; exit $code; }}"
        )
    };
    let unshared = |setup: &str, draw: &Command| {
        let mut command = Command::new("unshare");
        let shell = in_shell(setup, draw);
        command
            .args(["--mount", "--map-root-user"])
            .arg(shell.get_program())
            .args(shell.get_args())
            .stdin(Stdio::null());
        command
    };
    let drawing = draw(&disk, &["--quiet"]);
    if !unshared(&on_disk("true"), &drawing).output().is_ok_and(|output| output.status.success()) {
        println!("no file system can be mounted here: a full disk was not tried");
        return;
    }
    fs::remove_dir_all(&kept).unwrap();
    let output = unshared(&on_disk("\"$@\""), &drawing).output().unwrap();
    failed(&output, 1, "error: writing ");
    let made = files(&kept);
    assert!(!made.is_empty() && made.len() < COUNT, "{made:?}");
    assert_eq!(made.len(), pictures(&kept).len(), "unfinished files are left: {made:?}");
    resumes(&kept, "after the disk was full");
}

#[test]
fn a_folder_that_cannot_be_written_to_is_refused_and_one_that_goes_away_is_an_error() {
    // Not even the superuser can make files there.
    let output = draw(Path::new("/proc/sdshard"), &["--quiet"]).output().unwrap();
    if cfg!(target_os = "linux") {
        failed(&output, 2, "output folder /proc/sdshard");
    }

    let folder = tempfile::tempdir().unwrap();
    let (out, moved) = (folder.path().join("out"), folder.path().join("moved"));
    for instead in ["nothing", "a file"] {
        let mut child = draw(&out, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        fs::rename(&out, &moved).unwrap();
        if instead == "a file" {
            fs::write(&out, "mine").unwrap();
        }
        // Read to the end, so that the program is not stopped by a full pipe.
        std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
        let output = child.wait_with_output().unwrap();
        failed(&output, 1, "error: writing ");
        assert!(text(&output.stderr).contains("to go on: "), "{}", text(&output.stderr));
        if instead == "a file" {
            assert_eq!(fs::read_to_string(&out).unwrap(), "mine");
            fs::remove_file(&out).unwrap();
        }
        fs::rename(&moved, &out).unwrap();
        all_are_whole(&out, instead);
    }
    resumes(&out, "after it was back");
}

#[test]
fn closed_and_full_streams_lose_no_picture() {
    let folder = tempfile::tempdir().unwrap();
    for (i, redirection) in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"].into_iter().enumerate() {
        let out = folder.path().join(i.to_string());
        let setup = format!("exec \"$@\" {redirection}");
        let output = in_shell(&setup, &draw(&out, &[])).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{redirection}\n{}", text(&output.stderr));
        assert_eq!(pictures(&out).len(), COUNT, "{redirection}");
        all_are_whole(&out, redirection);
    }
    let out = folder.path().join("full");
    let output = in_shell("exec \"$@\" >/dev/full", &draw(&out, &[])).output().unwrap();
    failed(&output, 1, "error: ");
    resumes(&out, "after stdout was full");
}
