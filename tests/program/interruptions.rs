//! What a terminal is left with, and what a run leaves behind that is interrupted or killed.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{files, json_lines, pixels, sdshard, succeeds, text, tiny};

/// What a terminal of 100 columns shows after `bytes`: text, `\r`, `\n`, lines up and down, lines cleared.
fn screen(bytes: &str) -> Vec<String> {
    const COLUMNS: usize = 100;
    let (mut lines, mut row, mut column) = (vec![Vec::new()], 0, 0);
    let mut rest = bytes.chars();
    while let Some(c) = rest.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\u{1b}' => {
                assert_eq!(rest.next(), Some('['));
                let (mut number, mut letter) = (String::new(), ' ');
                for c in rest.by_ref() {
                    if !c.is_ascii_digit() {
                        letter = c;
                        break;
                    }
                    number.push(c);
                }
                let number: usize = number.parse().unwrap_or(1);
                match letter {
                    'A' => row -= number,
                    'B' => row += number,
                    'K' => lines[row].clear(),
                    other => panic!("{other} is not understood"),
                }
            }
            shown => {
                if column == COLUMNS {
                    (row, column) = (row + 1, 0);
                }
                lines.resize(lines.len().max(row + 1), Vec::new());
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = shown;
                column += 1;
            }
        }
        lines.resize(lines.len().max(row + 1), Vec::new());
    }
    let text = |line: Vec<char>| line.into_iter().collect::<String>().trim_end().to_string();
    lines.into_iter().map(text).filter(|line| !line.is_empty()).collect()
}

/// What a terminal is sent while three pictures are drawn.
fn sent_to_a_terminal(more: &[&str]) -> String {
    // Its bar takes two lines.
    let prompt = "a dog with long fur and long whiskers and a very long tail";
    let (shown, status) = on_a_terminal(&[&[prompt, "--num-images", "3", "--steps", "20"], more].concat(), None);
    assert!(status.success(), "{shown}");
    shown
}

/// What a terminal is sent by a run, and how it ends: interrupted once the terminal is sent a certain text, if there is
/// one.
fn on_a_terminal(arguments: &[&str], interrupt_at: Option<&str>) -> (String, std::process::ExitStatus) {
    use rustix::{pty, termios};
    let controller = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&controller).unwrap();
    pty::unlockpt(&controller).unwrap();
    let name = pty::ptsname(&controller, Vec::new()).unwrap();
    let size = termios::Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    termios::tcsetwinsize(&terminal, size).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let mut command = sdshard(&[arguments, &["--device-map", "replicas.toml"]].concat());
    command.arg("--model").arg(tiny()).args(["--width", "64", "--height", "64"]);
    command.current_dir(folder.path()).env("TERM", "xterm").stdout(terminal.try_clone().unwrap()).stderr(terminal);
    let mut child = command.spawn().unwrap();
    drop(command);
    let (mut shown, mut controller) = (Vec::new(), fs::File::from(controller));
    if let Some(part) = interrupt_at {
        while !String::from_utf8_lossy(&shown).contains(part) {
            let mut some = [0; 4096];
            let count = controller.read(&mut some).expect("the text comes before the end");
            shown.extend(&some[..count]);
        }
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    }
    // The end is an error: nobody has the terminal open any more.
    let _ = controller.read_to_end(&mut shown);
    (text(&shown).to_string(), child.wait().unwrap())
}

/// Bars come and go without a trace: a terminal keeps what a pipe is told, each on a line of its own.
#[test]
fn a_terminal_is_left_with_whole_lines() {
    let shown = sent_to_a_terminal(&[]);
    for part in ["unet \u{2588}", "1 of 3 done"] {
        assert!(shown.contains(part), "{part} is never shown\n{shown:?}");
    }

    let lines = screen(&shown);
    let of = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    let expected = [("seed 0 (", 1), ("/3 a dog with long", 3), (": saved after ", 3), ("out/00000_0", 3)];
    for (part, count) in
        expected.into_iter().chain([("3 of 3 done", 1), (" s to load", 1), ("planned ", 1), (" left", 0)])
    {
        assert_eq!(of(part), count, "{part}\n{}", lines.join("\n"));
    }
    assert_eq!(lines.len(), 10, "{}", lines.join("\n"));
}

#[test]
fn a_terminal_is_sent_results_alone_if_it_is_to_be_quiet() {
    let shown = sent_to_a_terminal(&["--quiet"]);
    assert!(shown.lines().count() == 3 && shown.lines().all(|line| line.starts_with("out/00000_0")), "{shown:?}");
}

#[test]
fn an_interrupted_run_leaves_no_bar_behind() {
    let (shown, status) = on_a_terminal(&["a dog", "--num-images", "500", "--steps", "20"], Some("saved after"));
    assert_eq!(status.code(), Some(130), "{shown}");
    assert!(shown.contains('\u{2588}'), "there was no bar\n{shown:?}");
    let lines = screen(&shown);
    assert!(lines.last().is_some_and(|line| line == "error: interrupted"), "{}", lines.join("\n"));
    assert!(!lines.iter().any(|line| line.contains(['\u{2588}', '\u{2591}'])), "{}", lines.join("\n"));
}

/// `screen` knows no colours: whoever asks for none, and whoever does not, gets none around log lines.
#[test]
fn a_warning_on_a_terminal_has_no_colours_and_no_commands_of_a_prompt() {
    let prompt = "a (dog\u{1b}[31m\u{9b}2J\u{202e}:1.2)";
    let (shown, status) = on_a_terminal(&[prompt, "--steps", "2"], None);
    assert!(status.success(), "{shown}");
    let lines = screen(&shown);
    assert!(lines.iter().any(|line| line.contains("WARN") && line.contains("1.2)")), "{lines:?}");
    assert!(!shown.contains(['\u{9b}', '\u{202e}']) && !shown.contains("[31m\u{9b}"), "{shown:?}");
}

/// Starts a long run of the built-in model, sends `signal` after the first picture, and gives the exit code.
fn interrupted(signal: &str) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments = ["a red fox", "--num-images", "1000", "--width", "32", "--height", "32", "--steps", "2", "--json"];
    let mut command = sdshard(&arguments);
    command.arg("--output-dir").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    stdout.read_line(&mut first).unwrap();
    assert!(first.contains("\"index\":0"), "{first}");
    let pid = rustix::process::Pid::from_child(&child);
    let signal_number = if signal == "INT" { rustix::process::Signal::INT } else { rustix::process::Signal::TERM };
    rustix::process::kill_process(pid, signal_number).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(if signal == "INT" { 130 } else { 143 }), "{message}");
    assert!(message.contains("error: interrupted"), "{message}");
    let go_on = message.lines().filter_map(|line| line.strip_prefix("to go on: ")).collect::<Vec<_>>();
    assert!(matches!(go_on[..], [line] if line.contains(" --resume 'a red fox' --num-images 1000")), "{message}");

    let lines = json_lines(&(first + &rest));
    let saved: Vec<&str> = lines.iter().filter_map(|line| line["file"].as_str()).collect();
    assert!((1..1000).contains(&saved.len()));
    assert_eq!(lines.last().unwrap()["summary"]["images"], saved.len());
    // Every file that is there was told, and is whole.
    assert_eq!(files(&out).len(), saved.len());
    for file in saved {
        assert_eq!(pixels(&fs::read(file).unwrap()).2.len(), 32 * 32 * 3);
    }
}

#[test]
fn an_interrupted_run_leaves_whole_files_only() {
    interrupted("INT");
}

#[test]
fn a_terminated_run_leaves_whole_files_only() {
    interrupted("TERM");
}

#[test]
fn a_subcommand_can_be_interrupted() {
    let program = sdshard(&["bench", "--repeat", "100000", "--quiet"]);
    // A background job of a script ignores SIGINT, and so would the program that it starts.
    let mut command = Command::new("env");
    if cfg!(target_os = "linux") {
        command.arg("--default-signal=INT");
    }
    command.arg(program.get_program()).args(program.get_args());
    command.stdin(Stdio::null());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = command.arg("--model").arg(tiny()).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            // Killed by the signal, which shells show as 130, or stopped by the program itself.
            assert!(!status.success(), "{status}");
            return;
        }
        // Guards against hanging: the benchmark would take hours.
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("Ctrl-C had no effect on `sdshard bench`");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whoever is killed cannot tidy up: what is there must be whole all the same, and what is done is not done again.
#[test]
fn a_run_that_was_killed_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    const COUNT: usize = 40;
    let arguments = ["a red fox", "--num-images", "40", "--width", "32", "--height", "32", "--steps", "2"];
    let command = |more: &[&str]| {
        let mut command = sdshard(&[&arguments, more].concat());
        command.arg("--output-dir").arg(&out).stderr(Stdio::null());
        command
    };
    let mut child = command(&[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        stdout.read_line(&mut String::new()).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(stdout);

    // Hidden files are not pictures: one may have been under way.
    let visible = || files(&out).into_iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>();
    let look = |name: &str| {
        let file = out.join(name);
        (fs::metadata(&file).unwrap().modified().unwrap(), fs::read(file).unwrap())
    };
    let before: Vec<_> = visible().into_iter().map(|name| (look(&name), name)).collect();
    assert!((3..COUNT).contains(&before.len()), "{} pictures before the end", before.len());
    for ((_, bytes), _) in &before {
        assert_eq!(pixels(bytes).2.len(), 32 * 32 * 3);
    }

    let lines = json_lines(&succeeds(&mut command(&["--resume", "--json"])));
    let summary = &lines.last().unwrap()["summary"];
    assert_eq!(summary["skipped"], before.len());
    assert_eq!(summary["images"], COUNT - before.len());
    for (then, name) in &before {
        assert!(look(name) == *then, "{name} was made again");
    }
    assert_eq!(visible().len(), COUNT);

    // The same pictures as of a run that nobody disturbed.
    let whole = folder.path().join("whole");
    succeeds(sdshard(&arguments).arg("--output-dir").arg(&whole));
    for name in files(&whole) {
        assert!(fs::read(whole.join(&name)).unwrap() == fs::read(out.join(&name)).unwrap(), "{name}");
    }
}
