//! What a machine may do to the program: files that are something else, weights that change under a run, threads and
//! files that it does not get. Each is an error, never a panic, a signal or a wait without end.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::common::{Tiny, copy_of_tiny, files, has_facts, message_of, text, tiny};
use rustix::fs::{CWD, FileType, Mode, mknodat};

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// The program in a shell, behind a line for it; exit code 124 if it has not ended in a minute.
fn in_shell(line: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args([
        "-k",
        "1",
        "60",
        "bash",
        "-c",
        &format!("{line}\nexec \"$0\" \"$@\""),
        env!("CARGO_BIN_EXE_sdshard"),
    ]);
    command.args(arguments).stdin(Stdio::null());
    for variable in ["RUST_LOG", "SDSHARD_THREADS", "SDSHARD_CPU_PATH"] {
        command.env_remove(variable);
    }
    command
}

/// A picture of a model, small and in one step.
fn draw(line: &str, model: &Path, out: &Path, more: &[&str]) -> Output {
    let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
    let size = ["--width", "32", "--height", "32", "--steps", "1"];
    in_shell(line, &[&["a fox", "--model", model, "--output-dir", out][..], &size, more].concat()).output().unwrap()
}

/// What is said of a path, and how it comes to be so.
type Prepared<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn anything_but_a_regular_file_in_a_model_is_refused_at_once() {
    let kinds: [Prepared; 5] = [
        ("a pipe", &pipe),
        ("", &|path| drop(UnixListener::bind(path).unwrap())),
        ("a device", &|path| symlink("/dev/zero", path).unwrap()),
        ("a folder", &|path| fs::create_dir(path).unwrap()),
        ("a pipe", &|path| {
            pipe(&path.with_extension("pipe"));
            symlink(path.with_extension("pipe"), path).unwrap();
        }),
    ];
    for file in [
        "model_index.json",
        "sdshard.toml",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
    ] {
        for (i, (words, make)) in kinds.iter().enumerate() {
            let folder = copy_of_tiny();
            let (model, out) = (folder.path().join("model"), folder.path().join("out"));
            drop(fs::remove_file(model.join(file)));
            make(&model.join(file));
            let message = message_of(draw("", &model, &out, &[]), &format!("{file} {i}"));
            has_facts(i, &message, &[file, words]);
            assert_eq!(files(&out), [""; 0], "{file} {i}");
        }
    }
}

#[test]
fn a_shard_that_is_a_pipe_is_refused_at_once() {
    let folder = copy_of_tiny();
    let unet = folder.path().join("model/unet");
    fs::remove_file(unet.join("diffusion_pytorch_model.safetensors")).unwrap();
    let index = r#"{"weight_map": {"conv_in.weight": "1.safetensors"}}"#;
    fs::write(unet.join("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
    pipe(&unet.join("1.safetensors"));
    let message = message_of(draw("", &folder.path().join("model"), &folder.path().join("out"), &[]), "shard");
    has_facts("shard", &message, &["unet/1.safetensors", "a pipe"]);
}

#[test]
fn a_file_that_an_option_names_is_read_from_a_pipe_where_that_makes_sense() {
    let tiny_model = tiny();
    let tiny_file = Tiny::new();
    // What a shell hands over for <(command), and what it redirects.
    let line = "exec 8< <(printf 'a dog\\n\\na cat\\n') 9< <(printf 'strategy = \"single\"\\n')";
    let size = ["--width", "32", "--height", "32", "--steps", "1", "--model", tiny_model.to_str().unwrap()];
    let out = tiny_file.out();
    let to = ["--output-dir", out.to_str().unwrap()];
    let pipes = ["--prompts-file", "/dev/fd/8", "--device-map", "/dev/fd/9"];
    for (line, arguments) in [(line, &pipes[..]), ("exec < <(echo a horse)", &["--prompts-file", "/dev/stdin"])] {
        let output = in_shell(line, &[arguments, &size, &to].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    assert_eq!(files(&out).len(), 3, "two of one run, and one of the other: {:?}", files(&out));

    pipe(&tiny_file.folder.path().join("pipe.safetensors"));
    let folder = tiny_file.folder.path().to_str().unwrap();
    let (latents, map) = (format!("{folder}/pipe.safetensors"), format!("{folder}/"));
    for (arguments, words) in [
        (["--latents", &latents], "this is a pipe"),
        (["--device-map", &map], "this is a folder"),
        (["--prompts-file", &map], "this is a folder"),
    ] {
        let prompt: &[&str] = if arguments[0] == "--prompts-file" { &[] } else { &["a fox"] };
        let output = in_shell("", &[prompt, &arguments, &size, &to].concat()).output().unwrap();
        let message = message_of(output, arguments[0]);
        has_facts(arguments, &message, &[words]);
    }
}

/// Draws with weights that are offloaded to their files, does something to the UNet's once a picture is there, and
/// gives the exit code and stderr.
fn disturbed(disturb: impl FnOnce(&Path)) -> (Option<i32>, String, usize) {
    let folder = copy_of_tiny();
    let (model, out, map) = (folder.path().join("model"), folder.path().join("out"), folder.path().join("map.toml"));
    let place = r#"{ execute = "cpu", reside = "disk" }"#;
    fs::write(&map, format!("[components]\ntext_encoder = {place}\nunet = {place}\nvae = {place}\n")).unwrap();
    let words = [&map, &model, &out].map(|path| path.to_str().unwrap());
    let options = ["--device-map", words[0], "--model", words[1], "--output-dir", words[2]];
    let size = ["a fox", "--num-images", "500", "--width", "32", "--height", "32", "--steps", "2"];
    let mut command = in_shell("", &[&size[..], &options].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut stderr = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    stdout.read_line(&mut String::new()).unwrap();
    disturb(&model.join("unet/diffusion_pytorch_model.safetensors"));
    stdout.read_to_string(&mut String::new()).unwrap();
    let code = child.wait().unwrap().code();
    (code, errors.join().unwrap(), files(&out).len())
}

#[test]
fn weights_that_change_under_a_run_are_an_error_and_no_signal() {
    let cases: [Prepared; 4] = [
        ("cut off", &|path| File::options().write(true).open(path).unwrap().set_len(4096).unwrap()),
        ("emptied", &|path| fs::write(path, "").unwrap()),
        ("written over with as many bytes", &|path| {
            let bytes = fs::read(path).unwrap();
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            let tail: Vec<u8> = tail.iter().map(|byte| byte ^ 1).collect();
            File::options().write(true).open(path).unwrap().write_all(&[head, &tail].concat()).unwrap();
        }),
        ("longer", &|path| File::options().append(true).open(path).unwrap().write_all(b"more").unwrap()),
    ];
    for (what, disturb) in cases {
        let (code, errors, made) = disturbed(disturb);
        assert_eq!(code, Some(1), "{what}: {errors}");
        has_facts(what, &errors, &["diffusion_pytorch_model.safetensors was changed"]);
        assert!((1..500).contains(&made), "{what}: {made} pictures");
    }
}

#[test]
fn weights_that_are_replaced_under_a_run_stay_those_that_it_began_with() {
    let replace = |path: &Path| {
        let other = path.with_extension("new");
        fs::write(&other, "something else").unwrap();
        fs::rename(other, path).unwrap();
    };
    let (code, errors, made) = disturbed(replace);
    assert_eq!((code, made), (Some(0), 500), "{errors}");
}

/// Maps of every kind that starts threads of its own.
const MAPS: [&str; 4] = [
    "strategy = \"single\"\n",
    "devices = [\"cpu:0\", \"cpu:1\"]\nreplicas = 2\nin_flight = 2\n",
    "[components]\nunet = { negative = \"cpu:0\", positive = \"cpu:1\" }\nvae = \"cpu:0\"\ntext_encoder = \"cpu:0\"\n",
    "[components]\nunet = { execute = \"cpu\", reside = \"disk\" }\nvae = \"cpu\"\ntext_encoder = \"cpu\"\n",
];

#[test]
fn threads_that_cannot_be_started_are_an_error_and_no_panic() {
    for (i, map) in MAPS.iter().enumerate() {
        let tiny_file = Tiny::new();
        let map = tiny_file.file("map.toml", map);
        // No address space has room for such a stack.
        let line = "export RUST_MIN_STACK=1125899906842624";
        let output = draw(line, &tiny(), &tiny_file.out(), &["--device-map", &map, "--num-images", "2"]);
        let errors = text(&output.stderr);
        // Planning starts one for each branch of guidance: such a run is refused.
        assert!(matches!(output.status.code(), Some(1 | 2)), "map {i}: {errors}");
        has_facts(i, errors, &["starting ", "thread"]);
        assert_eq!(files(&tiny_file.out()), [""; 0], "map {i}");
    }
}

#[test]
fn files_that_cannot_be_opened_are_an_error_and_no_panic() {
    for (i, map) in MAPS.iter().enumerate() {
        for limit in [3, 4, 5, 6, 7, 8, 10, 12] {
            let tiny_file = Tiny::new();
            let map = tiny_file.file("map.toml", map);
            let line = format!("ulimit -n {limit}");
            let output = draw(&line, &tiny(), &tiny_file.out(), &["--device-map", &map, "--num-images", "2"]);
            let (code, errors) = (output.status.code(), text(&output.stderr));
            assert!(!errors.contains("panicked"), "map {i}, {limit} files: {errors}");
            match code {
                Some(0) => assert_eq!(files(&tiny_file.out()).len(), 2, "map {i}, {limit} files: {errors}"),
                // Where not even the program's libraries can be opened, it does not begin.
                Some(1 | 2 | 127) => assert!(!errors.is_empty(), "map {i}, {limit} files"),
                code => panic!("map {i}, {limit} files: {code:?} {errors}"),
            }
        }
    }
}

#[test]
fn a_limit_of_address_space_is_an_error_or_leaves_room() {
    for kib in [100_000, 300_000, 524_287, 524_288, 600_000, 800_000, 1_000_000] {
        for size in ["64", "768", "4096"] {
            let folder = Tiny::new();
            let line = format!("ulimit -v {kib}");
            let (model, out) = (tiny(), folder.out());
            let arguments = [
                &["a fox", "--model", model.to_str().unwrap(), "--output-dir", out.to_str().unwrap()][..],
                &["--device-map", "single", "--width", size, "--height", size, "--steps", "1"],
            ]
            .concat();
            // The largest is only planned: it takes long to draw.
            let planned = ["plan", "--model", model.to_str().unwrap(), "--width", size, "--height", size];
            let arguments = if size == "4096" { &planned[..] } else { &arguments };
            let output = in_shell(&line, arguments).output().unwrap();
            let (code, errors) = (output.status.code(), text(&output.stderr));
            match code {
                Some(0) => assert_eq!(files(&out).len(), usize::from(size != "4096"), "{kib} KiB: {errors}"),
                Some(1 | 2) => assert!(errors.contains("error: "), "{kib} KiB: {errors}"),
                code => panic!("{kib} KiB, {size}: {code:?} {:?} {errors}", output.status),
            }
            assert!(kib >= 524_288 || code == Some(2) && errors.contains("ulimit -v 524288"), "{kib} KiB: {errors}");
        }
    }
}
