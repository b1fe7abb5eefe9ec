//! Downloads from a hub that answers badly, on this machine: each ends, leaves nothing outside the cache and no bad
//! file, sends the token nowhere else, and heals with an honest hub.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::common;
use sdshard::{
    error::{Error, ErrorScope},
    models::locate::LAYOUT,
    weights::{Download, Wanted, hub::Hub},
};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
/// Longer than what a try has to get further by, in order to count as one.
const LARGE: usize = 3 << 20;

/// The files of the model `org/name`: contents and their SHA-256.
type Files = BTreeMap<String, (Vec<u8>, String)>;

fn files() -> &'static Files {
    static FILES: LazyLock<Files> = LazyLock::new(|| {
        let small = [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "unet/config.json",
            "vae/config.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "text_encoder/model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        let part = |name: &str| format!("\"{name}\": [\"library\", \"Class\"]");
        let index = ["text_encoder", "tokenizer", "unet", "vae"].map(part).join(", ");
        let text = |path: &str| match path {
            "model_index.json" => format!("{{{index}}}"),
            path => format!("{{\"{path}\": 0}}"),
        };
        let small = small.map(|path| (path.to_owned(), text(path).into_bytes()));
        let large = (UNET.to_owned(), (0..LARGE).map(|i| ((i * i) >> 8) as u8).collect());
        small.into_iter().chain([large]).map(|(path, bytes)| (path, hashed(bytes))).collect()
    });
    &FILES
}

/// Contents with their SHA-256.
fn hashed(bytes: Vec<u8>) -> (Vec<u8>, String) {
    let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    (bytes, hash)
}

/// A hub that has other files.
fn hub_of(files: Files) -> Server {
    Server::new(script(move |request, stream| {
        serve(&files, request, stream);
        true
    }))
}

/// A request as it arrived.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    path: String,
    first: usize,
    has_token: bool,
}

/// What a script does with a request; `false` leaves it to the honest hub.
type Script = Arc<dyn Fn(&Asked, &mut TcpStream) -> bool + Send + Sync>;

/// A server on this machine that ends with the test.
struct Server {
    endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn new(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, end) = (asked.clone(), stop.clone());
        thread::spawn(move || {
            for stream in listener.incoming().take(10_000) {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                let (log, script) = (log.clone(), script.clone());
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
                    let Some(request) = read(&stream) else { return };
                    log.lock().unwrap().push(request.clone());
                    if !script(&request, &mut stream) {
                        honest(&request, &mut stream);
                    }
                });
            }
        });
        Self { endpoint, asked, stop }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let line = lines.next()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let first = head.iter().find_map(|line| line.strip_prefix("range: bytes=")?.split('-').next()?.parse().ok());
    let has_token = head.iter().any(|line| line.starts_with("authorization:"));
    Some(Asked { method, path, first: first.unwrap_or(0), has_token })
}

/// Sends a reply. Whoever does not listen any more has heard enough.
fn reply(stream: &mut TcpStream, status: &str, head: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{head}\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

/// The file that a request is for.
fn file_of(request: &Asked) -> Option<&str> {
    request.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"))
}

fn listing(commit: &str, files: impl Iterator<Item = impl AsRef<str>>) -> Vec<u8> {
    let siblings: Vec<_> = files.map(|path| serde_json::json!({ "rfilename": path.as_ref() })).collect();
    serde_json::json!({ "sha": commit, "siblings": siblings }).to_string().into_bytes()
}

fn honest(request: &Asked, stream: &mut TcpStream) {
    serve(files(), request, stream);
}

/// Answers as the hub does that has these files.
fn serve(files: &Files, request: &Asked, stream: &mut TcpStream) {
    if request.path.starts_with("/api/models/org/name/revision/") {
        let body = listing(COMMIT, files.keys());
        return reply(stream, "200 OK", &format!("Content-Length: {}\r\n", body.len()), &body);
    }
    let Some((bytes, hash)) = file_of(request).and_then(|path| files.get(path)) else {
        return reply(stream, "404 Not Found", "Content-Length: 0\r\n", &[]);
    };
    let (first, all) = (request.first, bytes.len());
    let mut head = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{hash}\"\r\n");
    head += &format!("Content-Length: {}\r\n", all - first);
    let status = match first {
        0 => "200 OK",
        _ => {
            head += &format!("Content-Range: bytes {first}-{}/{all}\r\n", all - 1);
            "206 Partial Content"
        }
    };
    reply(stream, status, &head, if request.method == "HEAD" { &[] } else { &bytes[first..] });
}

/// A hub with an empty cache and a token; the folder holds the cache and nothing else.
fn hub(endpoint: &str) -> (tempfile::TempDir, Hub) {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("outer/cache");
    let hub = Hub {
        cache,
        token: Some("hf_secret".into()),
        offline: false,
        endpoint: endpoint.into(),
        timeout: Duration::from_secs(60),
    };
    (folder, hub)
}

fn resolve(hub: &Hub, wanted: Wanted) -> Result<PathBuf, Error> {
    hub.resolve(&LAYOUT, "org/name", None, None, wanted, &mut |_| ControlFlow::Continue(()))
}

fn is_right(snapshot: &Path) {
    for (path, (bytes, _)) in files() {
        assert!(fs::read(snapshot.join(path)).unwrap() == *bytes, "{path}");
    }
}

/// Every file below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// A reply to the request for one file's contents.
fn body_of(path: &'static str, send: impl Fn(&Asked, &mut TcpStream) + Send + Sync + 'static) -> Script {
    Arc::new(move |request, stream| {
        let is_it = request.method == "GET" && file_of(request) == Some(path);
        if is_it {
            send(request, stream);
        }
        is_it
    })
}

/// A reply to the request for one file's headers.
fn head_of(path: &'static str, status: &'static str, head: &'static str) -> Script {
    Arc::new(move |request, stream| {
        let is_it = request.method == "HEAD" && file_of(request) == Some(path);
        if is_it {
            reply(stream, status, head, &[]);
        }
        is_it
    })
}

/// A reply to the request for the list of files.
fn list(status: &'static str, head: &'static str, body: Vec<u8>) -> Script {
    Arc::new(move |request, stream| {
        let is_it = request.path.starts_with("/api/");
        if is_it {
            reply(stream, status, head, &body);
        }
        is_it
    })
}

fn script(of: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static) -> Script {
    Arc::new(of)
}

/// Bad hubs: what they do, how, and a word of the error.
fn bad_hubs() -> Vec<(&'static str, Script, &'static str)> {
    let names = || files().keys().cloned();
    let with = |more: &str| listing(COMMIT, names().chain([more.to_owned()]));
    let config = "unet/config.json";
    let drip = |stream: &mut TcpStream| {
        for _ in 0..200 {
            if stream.write_all(b"x").is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
    };
    vec![
        ("no list", list("404 Not Found", "", vec![]), "no such model or revision"),
        ("a list that is for others", list("401 Unauthorized", "", vec![]), "HF_TOKEN"),
        ("a list that is forbidden", list("403 Forbidden", "", vec![]), "answers 403"),
        ("a broken server", list("500 Oops", "", vec![]), "answers 500"),
        ("a server without time", list("429 Slow down", "", vec![]), "answers 429"),
        ("a strange status", list("418 Teapot", "", vec![]), "answers 418"),
        ("a login page", list("200 OK", "", b"<html>\x1b[2J</html>".to_vec()), "is not what a hub answers"),
        ("an empty list", list("200 OK", "", b"{}".to_vec()), "is not what a hub answers"),
        ("a list that ends early", list("200 OK", "Content-Length: 999\r\n", b"{".to_vec()), "failed 5 times"),
        ("a list without end", list("200 OK", "", vec![b' '; (16 << 20) + 1]), "does not end"),
        ("no HTTP", script(|_, stream| stream.write_all(b"hello\r\n\r\n").is_ok()), "failed 5 times"),
        ("no reply", script(|_, _| true), "failed 5 times"),
        ("a commit that is a path", list("200 OK", "", listing("../../../../x", names())), "names an invalid commit"),
        ("a commit that is a branch", list("200 OK", "", listing("main", names())), "names an invalid commit"),
        ("a file outside", list("200 OK", "", with("../../x")), "leads out of the model"),
        ("an absolute file", list("200 OK", "", with("/tmp/x")), "leads out of the model"),
        ("a file with backslashes", list("200 OK", "", with("unet\\..\\x")), "leads out of the model"),
        ("a file on a drive", list("200 OK", "", with("C:/x")), "leads out of the model"),
        ("no config", list("200 OK", "", listing(COMMIT, ["v1.ckpt"].iter())), "no model_index.json"),
        ("no ETag", head_of(config, "200 OK", "Content-Length: 25\r\n"), "no ETag"),
        (
            "an ETag that is a path",
            head_of(config, "200 OK", "ETag: \"../../../../x\"\r\n"),
            "neither a hash nor a file name",
        ),
        (
            "an absolute ETag",
            head_of(config, "200 OK", "ETag: \"/tmp/sdshard-etag\"\r\n"),
            "neither a hash nor a file name",
        ),
        ("an ETag that is hidden", head_of(config, "200 OK", "ETag: \".x\"\r\n"), "neither a hash nor a file name"),
        ("an empty ETag", head_of(config, "200 OK", "ETag: \"\"\r\n"), "neither a hash nor a file name"),
        (
            "a linked ETag that is a path",
            head_of(config, "302 Found", "X-Linked-ETag: \"a/b\"\r\n"),
            "neither a hash nor a file name",
        ),
        ("another commit", head_of(config, "200 OK", "X-Repo-Commit: x\r\nETag: \"a\"\r\n"), "of another commit"),
        (
            "a config of gigabytes",
            head_of(config, "200 OK", "ETag: \"a\"\r\nContent-Length: 9999999999\r\n"),
            "too long",
        ),
        ("a listed file that is absent", head_of(config, "404 Not Found", ""), "does not have it"),
        ("a redirect to nowhere", head_of(config, "302 Found", ""), "without saying where to"),
        (
            "a redirect to a file",
            head_of(config, "302 Found", "Location: file:///etc/passwd\r\n"),
            "neither http nor https",
        ),
        ("a redirect to no address", head_of(config, "302 Found", "Location: http://\r\n"), "neither http nor https"),
        (
            "a redirect to itself",
            script(|request, stream| {
                let is_it = file_of(request).is_some();
                if is_it {
                    reply(stream, "307 Again", &format!("Location: {}\r\n", request.path), &[]);
                }
                is_it
            }),
            "more than 10 times",
        ),
        (
            "a body that ends early",
            body_of(UNET, |_, stream| reply(stream, "200 OK", &format!("Content-Length: {LARGE}\r\n"), &[7; 1000])),
            "failed 5 times",
        ),
        (
            "a body of another length",
            body_of(UNET, |_, stream| reply(stream, "200 OK", "Content-Length: 7\r\n", &[7; 7])),
            "7 bytes of",
        ),
        (
            "a body of other bytes",
            body_of(UNET, |_, stream| {
                reply(stream, "200 OK", &format!("Content-Length: {LARGE}\r\n"), &vec![7; LARGE]);
            }),
            "SHA-256",
        ),
        (
            "a body without end",
            body_of(UNET, |_, stream| {
                reply(stream, "200 OK", "", &[]);
                while stream.write_all(&[7; 65536]).is_ok() {}
            }),
            "more than the",
        ),
        (
            "a coded body",
            body_of(UNET, |_, stream| reply(stream, "200 OK", "Content-Encoding: zstd\r\n", b"x")),
            "a coding that was not requested",
        ),
        (
            "a part that nobody asked for",
            body_of(UNET, |_, stream| reply(stream, "206 Part", "Content-Range: bytes 5-9/10\r\n", b"56789")),
            "another part",
        ),
        ("a part without a range", body_of(UNET, |_, stream| reply(stream, "206 Part", "", b"5")), "another part"),
        ("a range that cannot be", body_of(UNET, |_, stream| reply(stream, "416 Range", "", &[])), "no such part"),
        (
            "a silent body",
            body_of(UNET, |_, stream| {
                reply(stream, "200 OK", &format!("Content-Length: {LARGE}\r\n"), &[]);
                thread::sleep(Duration::from_secs(2));
            }),
            "failed 5 times",
        ),
        (
            "a body that drips",
            body_of(UNET, move |_, stream| {
                reply(stream, "200 OK", &format!("Content-Length: {LARGE}\r\n"), &[]);
                drip(stream);
            }),
            "failed 5 times",
        ),
    ]
}

#[test]
fn every_bad_hub_ends_and_heals_and_writes_nothing_elsewhere() {
    let good = Server::new(script(|_, _| false));
    let cases = bad_hubs();
    assert!(cases.len() >= 40, "{}", cases.len());
    thread::scope(|scope| {
        for (what, script, says) in cases {
            let good = &good;
            scope.spawn(move || {
                let bad = Server::new(script);
                let (folder, mut hub) = hub(&bad.endpoint);
                hub.timeout = Duration::from_millis(400);
                let error = resolve(&hub, Wanted::Everything).expect_err(what);
                let message = error.to_string();
                assert!(message.contains(says), "{what}: {message}");
                assert!(!message.replace('\n', "").contains(|c: char| c.is_control()), "{what}: {message:?}");
                assert!(!message.contains("hf_secret"), "{what}: {message}");
                hub.endpoint = good.endpoint.clone();
                hub.timeout = Duration::from_secs(60);
                is_right(&resolve(&hub, Wanted::Everything).unwrap_or_else(|error| panic!("{what}: {error}")));
                for path in below(folder.path()) {
                    assert!(path.starts_with(&hub.cache), "{what}: {}", path.display());
                }
            });
        }
    });
    assert!(!Path::new("/tmp/sdshard-etag").exists());
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let storage = Server::new(script(|_, _| false));
    let elsewhere = storage.endpoint.clone();
    let redirecting = Server::new(script(move |request, stream| {
        let is_it = file_of(request).is_some();
        if is_it {
            let (bytes, hash) = &files()[file_of(request).unwrap()];
            let (path, size) = (&request.path, bytes.len());
            let head = format!("Location: {elsewhere}{path}\r\nX-Linked-ETag: \"{hash}\"\r\nX-Linked-Size: {size}\r\n");
            reply(stream, "302 Found", &head, &[]);
        }
        is_it
    }));
    let (_folder, hub) = hub(&redirecting.endpoint);
    is_right(&resolve(&hub, Wanted::Everything).unwrap());
    assert!(redirecting.asked().iter().all(|request| request.has_token));
    assert!(!storage.asked().is_empty());
    assert!(storage.asked().iter().all(|request| !request.has_token));
}

#[test]
fn a_file_that_was_cut_off_goes_on_where_it_ended() {
    let cut = Server::new(body_of(UNET, |request, stream| {
        let (bytes, _) = &files()[UNET];
        let end = (request.first + LARGE / 2).min(LARGE);
        let head = format!(
            "Content-Length: {}\r\nContent-Range: bytes {}-{}/{LARGE}\r\n",
            LARGE - request.first,
            request.first,
            LARGE - 1
        );
        let status = if request.first == 0 { "200 OK" } else { "206 Partial Content" };
        reply(stream, status, &head, &bytes[request.first..end]);
    }));
    let (_folder, hub) = hub(&cut.endpoint);
    is_right(&resolve(&hub, Wanted::Everything).unwrap());
    let of_unet = cut.asked().into_iter().filter(|request| request.method == "GET" && file_of(request) == Some(UNET));
    let firsts: Vec<usize> = of_unet.map(|request| request.first).collect();
    assert_eq!(firsts, [0, LARGE / 2]);
}

#[test]
fn a_damaged_partial_file_is_replaced() {
    let good = Server::new(script(|_, _| false));
    let (_folder, hub) = hub(&good.endpoint);
    let blobs = hub.cache.join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let name = &files()[UNET].1;
    for damaged in [vec![7; LARGE / 2], vec![7; LARGE], vec![7; LARGE + 1]] {
        fs::write(blobs.join(format!("{name}.incomplete")), damaged).unwrap();
        let _ = fs::remove_file(blobs.join(name));
        is_right(&resolve(&hub, Wanted::Everything).unwrap());
    }
}

#[test]
fn several_at_once_fetch_each_file_once() {
    let good = Server::new(script(|_, _| false));
    let (_folder, hub) = hub(&good.endpoint);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| is_right(&resolve(&hub, Wanted::Everything).unwrap()));
        }
    });
    let bodies = good.asked().into_iter().filter(|request| request.method == "GET" && file_of(request).is_some());
    assert_eq!(bodies.count(), files().len());
}

#[test]
fn a_download_ends_when_it_is_told_to() {
    let silent = Server::new(body_of(UNET, |_, stream| {
        reply(stream, "200 OK", &format!("Content-Length: {LARGE}\r\n"), &[7; 1000]);
        thread::sleep(Duration::from_secs(2));
    }));
    let (_folder, mut hub) = hub(&silent.endpoint);
    hub.timeout = Duration::from_secs(600);
    let mut is_unet = false;
    let ended = hub.resolve(&LAYOUT, "org/name", None, None, Wanted::Everything, &mut |news| {
        is_unet |= matches!(&news, Download::File { path, .. } if path == UNET);
        match is_unet && news == Download::Nothing {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    assert_eq!(*ended.unwrap_err().scope(), ErrorScope::Interrupted);
}

#[test]
fn configs_come_first_and_later_steps_fetch_what_is_missing() {
    let good = Server::new(script(|_, _| false));
    let (_folder, mut hub) = hub(&good.endpoint);
    let fetched = |hub: &Hub, wanted| {
        let before = good.asked().len();
        resolve(hub, wanted).unwrap();
        let asked = good.asked().split_off(before);
        asked
            .iter()
            .filter(|request| request.method == "GET")
            .filter_map(file_of)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let configs = fetched(&hub, Wanted::Configs);
    assert!(configs.len() == 5 && configs.iter().all(|path| path.ends_with(".json")), "{configs:?}");
    assert_eq!(fetched(&hub, Wanted::Texts), ["tokenizer/vocab.json", "tokenizer/merges.txt"]);
    assert_eq!(fetched(&hub, Wanted::Everything).len(), 3);
    let asked = good.asked().len();
    hub.offline = true;
    let snapshot = resolve(&hub, Wanted::Everything).unwrap();
    fs::remove_file(snapshot.join("tokenizer/merges.txt")).unwrap();
    let error = resolve(&hub, Wanted::Everything).unwrap_err().to_string();
    assert!(error.contains("a copy without tokenizer/merges.txt") && error.contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(good.asked().len(), asked, "offline is offline");
}

/// The model's files with a UNet in two shards.
fn in_shards() -> Files {
    let mut files = files().clone();
    let (whole, _) = files.remove(UNET).unwrap();
    let (first, second) = whole.split_at(LARGE / 3);
    let (a, b) = ("x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors");
    let index = serde_json::json!({ "weight_map": { "a": a, "b": b, "c": a } }).to_string().into_bytes();
    files.insert(format!("{UNET}.index.json"), hashed(index));
    files.insert(format!("unet/{a}"), hashed(first.to_vec()));
    files.insert(format!("unet/{b}"), hashed(second.to_vec()));
    files.insert("unet/x-00003-of-00002.safetensors".into(), hashed(b"in no index".to_vec()));
    files
}

fn bodies(server: &Server) -> Vec<String> {
    let asked = server.asked().into_iter().filter(|request| request.method == "GET");
    asked
        .filter_map(|request| file_of(&request).map(str::to_owned))
        .filter(|path| path.starts_with("unet/x-"))
        .collect()
}

#[test]
fn the_shards_that_an_index_names_are_fetched_and_a_missing_one_is_noticed() {
    let server = hub_of(in_shards());
    let (_folder, mut hub) = hub(&server.endpoint);
    let snapshot = resolve(&hub, Wanted::Everything).unwrap();
    let shards = ["unet/x-00001-of-00002.safetensors", "unet/x-00002-of-00002.safetensors"];
    assert_eq!(bodies(&server), shards, "those that the index names, once each, and no other");
    let blob = fs::canonicalize(snapshot.join(shards[1])).unwrap();
    for with_blob in [false, true] {
        fs::remove_file(snapshot.join(shards[1])).unwrap();
        if with_blob {
            fs::remove_file(&blob).unwrap();
        }
        hub.offline = true;
        let error = resolve(&hub, Wanted::Everything).unwrap_err().to_string();
        assert!(error.contains(&format!("a copy without {}", shards[1])), "{error}");
        hub.offline = false;
        let before = bodies(&server).len();
        resolve(&hub, Wanted::Everything).unwrap();
        assert_eq!(
            bodies(&server)[before..],
            shards[1..][..usize::from(with_blob)],
            "its contents are there: {with_blob}"
        );
        assert!(fs::read(snapshot.join(shards[1])).unwrap() == in_shards()[shards[1]].0);
    }
    // A link that leads nowhere is no shard either.
    fs::remove_file(&blob).unwrap();
    resolve(&hub, Wanted::Everything).unwrap();
    assert!(fs::read(snapshot.join(shards[1])).unwrap() == in_shards()[shards[1]].0);
}

#[test]
fn an_index_of_the_hub_that_leads_out_of_its_folder_is_refused() {
    for name in
        ["../../../../x.safetensors", "/tmp/x.safetensors", "a\\x.safetensors", "C:x.safetensors", "x\u{1b}[2J.bin"]
    {
        let mut files = in_shards();
        let index = serde_json::json!({ "weight_map": { "a": name } }).to_string().into_bytes();
        files.insert(format!("{UNET}.index.json"), hashed(index));
        let server = hub_of(files);
        let (folder, hub) = hub(&server.endpoint);
        let error = resolve(&hub, Wanted::Everything).unwrap_err().to_string();
        assert!(error.contains("must be in a safetensors file beside the index"), "{error}");
        assert!(!error.contains('\u{1b}'), "{error:?}");
        assert!(bodies(&server).is_empty(), "{name}");
        assert!(below(folder.path()).iter().all(|path| path.starts_with(&hub.cache)), "{name}");
    }
}

#[test]
fn ids_and_revisions_with_odd_characters_reach_neither_the_hub_nor_the_cache() {
    let good = Server::new(script(|_, _| false));
    let (folder, hub) = hub(&good.endpoint);
    let long = "a".repeat(97);
    let ids = [
        "",
        "name",
        "../name",
        "org/..",
        "org/.name",
        "org/na me",
        "org/n\0",
        "org/\u{1b}[2J",
        "a/b/c",
        "org/n\\x",
        "é/n",
    ];
    let ids = ids.into_iter().map(str::to_owned).chain([format!("org/{long}"), "org/a--b".into(), "a--org/b".into()]);
    let of_ids = ids.map(|id| (id, "main".to_owned()));
    let revisions = [
        "",
        ".",
        "..",
        "../../x",
        "/etc",
        "a/../b",
        "a//b",
        "a b",
        "a?b",
        "a#b",
        "a%2fb",
        "a\\b",
        "\u{1b}[2J",
        "é",
        "a\n",
    ];
    let cases: Vec<_> = of_ids.chain(revisions.map(|revision| ("org/name".to_owned(), revision.to_owned()))).collect();
    for (id, revision) in cases {
        let resolved =
            hub.resolve(&LAYOUT, &id, Some(&revision), None, Wanted::Configs, &mut |_| ControlFlow::Continue(()));
        let error = resolved.expect_err(&format!("{id:?} {revision:?}")).to_string();
        assert!(error.contains("has the form org/name") || error.contains("a branch, a tag or a commit"), "{error}");
        assert!(!error.replace('\n', "").contains(|c: char| c.is_control()), "{error:?}");
    }
    assert!(good.asked().is_empty());
    assert!(below(folder.path()).is_empty() && !hub.cache.exists());
    // What the hub itself allows is asked for.
    for revision in ["v1.0", "refs/pr/1", "a-b_c", COMMIT] {
        hub.resolve(&LAYOUT, "org/name", Some(revision), None, Wanted::Configs, &mut |_| ControlFlow::Continue(()))
            .unwrap();
    }
}

#[test]
fn one_file_of_a_repository_is_fetched_alone_and_then_used_from_the_cache() {
    const FILE: &str = "sub/one model.safetensors";
    let mut files = files().clone();
    files.insert(FILE.replace(' ', "%20"), hashed(b"weights".to_vec()));
    let served = files.clone();
    let server = Server::new(script(move |request, stream| {
        if !request.path.starts_with("/api/") {
            serve(&served, request, stream);
            return true;
        }
        let names = served.keys().map(|name| name.replace("%20", " "));
        let body = listing(COMMIT, names);
        reply(stream, "200 OK", &format!("Content-Length: {}\r\n", body.len()), &body);
        true
    }));
    let (folder, mut hub) = hub(&server.endpoint);
    let fetch = |hub: &Hub, path: &str| hub.resolve_file("org/name", None, path, &mut |_| ControlFlow::Continue(()));
    let path = fetch(&hub, FILE).unwrap();
    assert!(path.ends_with(FILE) && fs::read(&path).unwrap() == b"weights");
    let bodies = || server.asked().iter().filter(|asked| asked.method == "GET").filter_map(file_of).count();
    assert_eq!(bodies(), 1, "nothing else was fetched");
    let asked = server.asked().len();
    assert_eq!(fetch(&hub, FILE).unwrap(), path);
    assert_eq!(server.asked().len(), asked, "the cache has it");

    let error = fetch(&hub, "absent.safetensors").unwrap_err().to_string();
    assert!(error.contains("has no absent.safetensors") && error.contains(FILE), "{error}");
    for path in ["", "../x.safetensors", "/x.safetensors", "a//b.safetensors", "a\\b.safetensors"] {
        assert!(fetch(&hub, path).unwrap_err().to_string().contains("inside its repository"), "{path}");
    }
    hub.offline = true;
    assert_eq!(fetch(&hub, FILE).unwrap(), path);
    assert!(fetch(&hub, "absent.safetensors").unwrap_err().to_string().contains("HF_HUB_OFFLINE"));
    assert!(below(folder.path()).iter().all(|path| path.starts_with(&hub.cache)));
}

#[test]
fn a_file_on_the_hub_is_a_model_under_its_name_and_its_address() {
    let server = Server::new(script(|_, _| false));
    for model in [
        "org/name/unet/diffusion_pytorch_model.safetensors",
        "https://huggingface.co/org/name/blob/main/unet/diffusion_pytorch_model.safetensors",
        "https://huggingface.co/org/name/resolve/main/unet/diffusion_pytorch_model.safetensors?download=true",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = process_of(model, &server.endpoint, folder.path(), "out").output().unwrap();
        // The file is there, and is no checkpoint.
        let errors = common::text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("reading the safetensors file") && errors.contains(COMMIT), "{errors}");
    }
}

/// The small model, as a hub has it.
fn tiny_files() -> Files {
    let tiny = common::tiny();
    let name = |path: PathBuf| path.strip_prefix(&tiny).unwrap().to_str().unwrap().to_owned();
    below(&tiny).into_iter().map(|path| (name(path.clone()), hashed(fs::read(&path).unwrap()))).collect()
}

fn process(endpoint: &str, folder: &Path, out: &str) -> Command {
    process_of("org/name", endpoint, folder, out)
}

/// A real process that draws a picture of a model on the hub, with everything it writes inside a folder.
fn process_of(model: &str, endpoint: &str, folder: &Path, out: &str) -> Command {
    let size = ["--width", "32", "--height", "32", "--steps", "1"];
    let mut command = common::sdshard(&["a fox", "--model", model]);
    command.args(size).arg("--output-dir").arg(folder.join(out));
    for variable in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH"]
    {
        command.env_remove(variable);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", folder.join("hf")).env("HF_HUB_DOWNLOAD_TIMEOUT", "60");
    command.env("HF_TOKEN", "hf_secret").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Nothing is in the cache but whole blobs, links to them, references and locks.
fn cache_is_whole(folder: &Path) {
    let hashes: BTreeSet<String> = tiny_files().into_values().map(|(_, hash)| hash).collect();
    let blobs = folder.join("hf/hub/models--org--name/blobs");
    for name in common::files(&blobs) {
        assert!(hashes.contains(&name), "{name}");
        assert_eq!(hashed(fs::read(blobs.join(&name)).unwrap()).1, name);
    }
}

#[test]
fn four_processes_on_an_empty_cache_all_draw() {
    let files = tiny_files();
    let count = files.len();
    let server = hub_of(files);
    let folder = tempfile::tempdir().unwrap();
    let start = |n: usize| process(&server.endpoint, folder.path(), &n.to_string()).spawn().unwrap();
    let children: Vec<_> = (0..4).map(start).collect();
    for (n, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{n}: {}", common::text(&output.stderr));
        assert_eq!(common::files(&folder.path().join(n.to_string())).len(), 1, "{n}");
    }
    let fetched = server.asked().into_iter().filter(|request| request.method == "GET" && file_of(request).is_some());
    assert_eq!(fetched.count(), count, "each file once");
    cache_is_whole(folder.path());
}

#[test]
fn a_hub_that_is_not_there_is_an_error_that_says_what_to_try() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = process(&format!("http://{address}"), folder.path(), "out");
    let output = command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").output().unwrap();
    let errors = common::text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("failed 5 times") && errors.contains("is the network there?"), "{errors}");
    assert!(errors.contains("HF_HUB_OFFLINE=1") && errors.matches("error: ").count() == 1, "{errors}");
    assert!(!errors.contains("hf_secret") && common::files(&folder.path().join("out")).is_empty(), "{errors}");
}

#[cfg(unix)]
#[test]
fn a_process_that_is_told_to_stop_while_it_downloads_stops_and_goes_on_later() {
    use rustix::process::{Pid, Signal, kill_process};
    let honest = hub_of(tiny_files());
    // Longer than the test may take: whoever waits for the server is killed below.
    let minutes = Duration::from_secs(600);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        for stage in ["the list", "headers", "a body"] {
            let (reached, has_reached) = std::sync::mpsc::channel();
            let reached = Mutex::new(reached);
            let files = tiny_files();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let ended = Mutex::new(ended);
            let silent = Server::new(script(move |request, stream| {
                let is_unet = file_of(request) == Some(UNET);
                let is_it = match stage {
                    "the list" => request.path.starts_with("/api/"),
                    "headers" => is_unet && request.method == "HEAD",
                    _ => is_unet && request.method == "GET",
                };
                if !is_it {
                    serve(&files, request, stream);
                    return true;
                }
                if stage == "a body" {
                    let (bytes, _) = &files[UNET];
                    reply(stream, "200 OK", &format!("Content-Length: {}\r\n", bytes.len()), &bytes[..1000]);
                }
                let _ = reached.lock().unwrap().send(());
                let _ = ended.lock().unwrap().recv_timeout(minutes);
                true
            }));
            let folder = tempfile::tempdir().unwrap();
            let mut command = process(&silent.endpoint, folder.path(), "out");
            let mut child = command.env("HF_HUB_DOWNLOAD_TIMEOUT", "600").spawn().unwrap();
            has_reached.recv_timeout(minutes).unwrap();
            kill_process(Pid::from_child(&child), signal).unwrap();
            // A minute, where it takes a tenth of a second.
            let heard = (0..600).any(|_| {
                thread::sleep(Duration::from_millis(100));
                child.try_wait().unwrap().is_some()
            });
            child.kill().unwrap();
            drop(end);
            let output = child.wait_with_output().unwrap();
            let errors = common::text(&output.stderr);
            assert!(heard, "{signal:?} while waiting for {stage} was not heard: {errors}");
            assert_eq!(output.status.code(), Some(code), "{stage}: {errors}");
            assert!(!errors.contains("panicked") && common::files(&folder.path().join("out")).is_empty(), "{errors}");
            let again = process(&honest.endpoint, folder.path(), "out").output().unwrap();
            assert_eq!(again.status.code(), Some(0), "{stage}: {}", common::text(&again.stderr));
            cache_is_whole(folder.path());
        }
    }
}
