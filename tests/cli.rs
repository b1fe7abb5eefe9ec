//! The program from outside: output, messages, exit codes.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

fn sdshard(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sdshard"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    sdshard(arguments).output().expect("the program was built for this test")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}

/// Runs what has to be refused before anything is done, and gives the message.
fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    let message = text(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}\n{message}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert_eq!(message.matches("error: ").count(), 1, "{arguments:?}\n{message}");
    assert!(message.starts_with("error: "), "{arguments:?}\n{message}");
    message
}

#[test]
fn help_has_examples_and_lists_what_there_is() {
    for arguments in [&["--help"][..], &["-h"], &["help"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(text(&output.stderr), "");
        for word in ["Examples:", "sdshard \"a red fox\"", "plan", "devices", "bench", "--device-map", "--prompts-file"]
        {
            assert!(text(&output.stdout).contains(word), "{arguments:?}: {word}");
        }
    }
    assert!(text(&run(&["help", "plan"]).stdout).contains("without reading a weight"));
}

#[test]
fn the_version_is_the_crates() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), concat!("sdshard ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn bad_arguments_are_refused_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    std::fs::write(&empty, "\n\n").unwrap();
    let empty = empty.to_str().unwrap();
    for (arguments, says) in [
        (&[][..], "there is no prompt"),
        (&["--prompts-file", empty], "there is no prompt in"),
        (&["--prompts-file", "/nowhere/p.txt"], "reading the prompts in /nowhere/p.txt"),
        (&["a fox", "--stpes", "3"], "'--steps'"),
        (&["a fox", "--steps", "many"], "--steps"),
        (&["a fox", "--steps", "0"], "--steps: at least 1"),
        (&["a fox", "--seed", "-1"], "from 0 to 18446744073709551615, or random"),
        (&["a fox", "--scheduler", "eular"], "'euler'"),
        (&["a fox", "--output-type", "jpg"], "[possible values: png, latent]"),
        (&["a fox", "--rng", "numpy"], "cpu, cuda"),
        (&["a fox", "--dtype", "fp16"], "'f16'"),
        (&["a fox", "--latents", "/nowhere/l.safetensors"], "reading the latents in /nowhere/l.safetensors"),
        (&["a fox", "--device-map", "balancd"], "did you mean \"balanced\"?"),
        (&["a fox", "--device-map", "/nowhere/m.toml"], "reading the device map /nowhere/m.toml"),
        (&["plan", "a fox"], "'a fox'"),
    ] {
        let message = refused(arguments);
        assert!(message.contains(says), "{arguments:?} wanted: {says}\n{message}");
    }
}

#[test]
fn reserved_words_are_not_prompts_by_accident() {
    for word in ["serve", "convert", "completions"] {
        assert!(refused(&[word]).contains(&format!("sdshard -- {word}")));
    }
}

#[test]
fn a_bad_device_map_is_shown_line_and_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("map.toml");
    std::fs::write(&path, "[components]\nunet = \"gpu0\"\n").unwrap();
    let path = path.to_str().unwrap();
    let message = refused(&["a fox", "--device-map", path]);
    assert!(message.starts_with(&format!("error: {path}:2:8: components.unet: ")), "{message}");
    assert!(message.contains("  2 | unet = \"gpu0\"\n    |        ^^^^^^\n"), "{message}");
}

#[test]
fn an_output_folder_that_cannot_be_written_is_refused_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let message = refused(&["a fox", "--output-dir", file.to_str().unwrap()]);
    assert!(message.contains("the output folder") && message.contains("cannot be written to"), "{message}");
}

#[test]
fn a_bad_log_filter_is_refused() {
    let output = sdshard(&["devices"]).env("RUST_LOG", "sdshard=loud").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("RUST_LOG=sdshard=loud"));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let mut child = sdshard(&["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn nothing_is_left_in_a_folder_by_a_refused_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    refused(&["a fox", "--steps", "0", "--output-dir", out.to_str().unwrap()]);
    assert!(!Path::new(&out).exists());
}
