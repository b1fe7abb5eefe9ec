//! A hub's replies: whatever a server answers, a download ends in a message, nothing lies outside the cache, and nobody but
//! this server hears of it.
//!
//! Each part of the input is the answer to one request, headers and body as they go over the wire; what is asked after the
//! last one is not answered.
#![no_main]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    ops::ControlFlow,
    path::Path,
    sync::{LazyLock, Mutex},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use sdshard::{
    models::locate::LAYOUT,
    weights::{Wanted, hub::Hub},
};
use sdshard_fuzz::SEPARATOR;

/// Answers that are left, the next one last.
static ANSWERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

static SERVER: LazyLock<String> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has one");
    // A redirect may name any host: all of them are this server, by way of a proxy.
    // SAFETY: libFuzzer runs inputs on one thread, and this comes before the first request.
    unsafe {
        std::env::set_var("ALL_PROXY", format!("http://{address}"));
        std::env::remove_var("NO_PROXY");
        std::env::remove_var("no_proxy");
    }
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    format!("http://{address}")
});

/// Answers what a connection asks, until it is closed or there are no answers left.
fn answer(mut stream: TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    loop {
        let request = lines.next()?.ok()?;
        while !lines.next()?.ok()?.is_empty() {}
        if request.starts_with("CONNECT ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
            continue;
        }
        let answer = ANSWERS.lock().unwrap().pop()?;
        stream.write_all(&answer).ok()?;
        if !answer.windows(14).any(|word| word.eq_ignore_ascii_case(b"content-length")) {
            return None;
        }
    }
}

/// The paths below a folder.
fn paths_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fuzz_target!(|input: &[u8]| {
    let endpoint = SERVER.clone();
    let folder = tempfile::tempdir().expect("the folder for temporary files can be written to");
    let cache = folder.path().join("cache");
    let mut answers: Vec<Vec<u8>> = Vec::new();
    let mut rest = Some(input);
    while let Some(text) = rest.filter(|_| answers.len() < 64) {
        let end = text.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
        answers.push(text[..end.unwrap_or(text.len())].to_vec());
        rest = end.map(|end| &text[end + SEPARATOR.len()..]);
    }
    answers.reverse();
    *ANSWERS.lock().unwrap() = answers;
    let hub = Hub { cache: cache.clone(), token: None, offline: false, endpoint, timeout: Duration::from_millis(20) };
    let resolved = hub.resolve(&LAYOUT, "org/name", None, None, Wanted::Configs, &mut |_| ControlFlow::Continue(()));
    match resolved {
        Ok(snapshot) => assert!(snapshot.starts_with(&cache), "{}", snapshot.display()),
        Err(error) => assert!(!error.to_string().chars().any(|c| c.is_control() && c != '\n'), "{error:?}"),
    }
    assert!(paths_in(folder.path()).iter().all(|path| *path == cache), "something lies beside the cache");
});
