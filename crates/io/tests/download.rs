//! Models of a small hub on this machine, fetched into a cache.
#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use entrenar_base::Array;
use entrenar_io::hub::Hub;
use entrenar_io::{Weights, write_safetensors};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Right,
    /// Bodies of weights end in the middle.
    BreaksOff,
    /// Bodies of weights end in the middle, and their headers do not know it.
    BreaksOffQuietly,
    /// The tag of a file leads out of the cache.
    Hostile,
}

/// A hub with the model `org/tiny`.
struct Server {
    address: String,
    /// First line of each request, with the token that came.
    seen: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(way: Way) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, ended) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let files = files();
        let (log, end) = (Arc::clone(&seen), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                // A client that hangs up is none of the hub's troubles.
                let _ = answer(stream.unwrap(), &files, way, &log);
            }
        });
        Server {
            address,
            seen,
            ended,
            thread: Some(thread),
        }
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.safetensors");
    let array = Array::from_vec((0..3000).map(|i| i as f32).collect(), [3000]).unwrap();
    write_safetensors(&path, &[("w", array)], &Default::default()).unwrap();
    BTreeMap::from([
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("model.safetensors", std::fs::read(path).unwrap()),
        ("tokenizer.json", b"{}".to_vec()),
        ("README.md", b"not wanted".to_vec()),
    ])
}

fn answer(
    stream: TcpStream,
    files: &BTreeMap<&str, Vec<u8>>,
    way: Way,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut range, mut token) = (String::new(), None, String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.trim().split_once(": ").unwrap();
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.trim_start_matches("bytes=").to_string()),
            "authorization" => token = format!(" {value}"),
            _ => {}
        }
    }
    let path = first.split(' ').nth(1).unwrap_or("").to_string();
    log.lock().unwrap().push(format!("{path}{token}"));
    let mut out = stream;
    if path == "/api/models/org/tiny/revision/main" {
        let names: Vec<_> = files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": names}).to_string();
        let length = body.len();
        return write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
    }
    let name = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some(body) = name.and_then(|name| files.get(name)) else {
        return write!(
            out,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    };
    let (from, to) = range.as_deref().and_then(|r| r.split_once('-')).unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse::<usize>().map_or(body.len(), |to| to + 1);
    let part = &body[from.min(body.len())..to.min(body.len())];
    let etag = match way {
        Way::Hostile => "../../../evil".to_string(),
        _ => format!("{:0>40}", name.unwrap().replace('.', "")),
    };
    let weights = name == Some("model.safetensors") && part.len() > 100;
    let (sent, told) = match way {
        Way::BreaksOff if weights => (&part[..part.len() / 2], part.len()),
        Way::BreaksOffQuietly if weights => (&part[..part.len() / 2], part.len() / 2),
        _ => (part, part.len()),
    };
    write!(
        out,
        "HTTP/1.1 206 Partial Content\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {told}\r\nConnection: close\r\n\r\n",
        from + part.len().max(1) - 1,
        body.len(),
    )?;
    out.write_all(sent)?;
    out.flush()
}

/// A hub client whose environment is this.
fn hub(cache: &Path, server: &str, more: &[(&str, &str)]) -> Hub {
    let home = cache.to_str().unwrap().to_string();
    let endpoint = format!("http://{server}");
    Hub::from_vars(|name| match name {
        "HF_HOME" => Some(home.clone()),
        "HF_ENDPOINT" => Some(endpoint.clone()),
        _ => {
            let found = more.iter().find(|(n, _)| *n == name);
            found.map(|(_, v)| v.to_string())
        }
    })
}

fn fails(hub: &Hub, id: &str) -> String {
    hub.resolve(id, None).unwrap_err().to_string()
}

#[test]
fn a_model_is_fetched_once() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Way::Right);
    let hub_of = |server: &str| hub(cache.path(), server, &[("HF_TOKEN", "secret")]);
    let found = hub_of(&server.address).resolve("org/tiny", None).unwrap();
    assert_eq!(
        found,
        cache
            .path()
            .join("hub/models--org--tiny/snapshots")
            .join(COMMIT)
    );
    for (name, content) in files() {
        let there = std::fs::read(found.join(name)).ok();
        let want = (name != "README.md").then_some(content);
        assert!(there == want, "{name}");
    }
    assert_eq!(
        Weights::open(&found).unwrap().tensor("w").unwrap().numel(),
        3000
    );
    let requests = server.requests();
    assert!(
        requests.iter().all(|r| r.ends_with(" Bearer secret")),
        "{requests:?}"
    );
    assert!(
        requests.last().unwrap().contains("model.safetensors"),
        "weights come last"
    );
    // Again, without a hub.
    let address = server.address.clone();
    drop(server);
    assert_eq!(hub_of(&address).resolve("org/tiny", None).unwrap(), found);
    let message = fails(&hub_of(&address), "org/other");
    assert!(
        message.contains("`org/other`: fetching the list of its files"),
        "{message}"
    );
    let shown = format!("{:?}", hub_of(&address));
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn what_the_hub_does_not_have_is_told() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Way::Right);
    let client = hub(cache.path(), &server.address, &[]);
    let message = fails(&client, "org/absent");
    assert!(
        message.contains("`org/absent`: http://127.0.0.1:")
            && message.contains("has no such model, or not at revision main"),
        "{message}"
    );
    let offline = hub(cache.path(), &server.address, &[("HF_HUB_OFFLINE", "1")]);
    let before = server.requests().len();
    let message = fails(&offline, "org/tiny");
    assert!(message.contains("HF_HUB_OFFLINE=1"), "{message}");
    assert_eq!(server.requests().len(), before, "offline is offline");
}

#[test]
fn a_broken_download_does_not_look_whole_and_goes_on() {
    for way in [Way::BreaksOff, Way::BreaksOffQuietly] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(way);
        let message = fails(&hub(cache.path(), &server.address, &[]), "org/tiny");
        assert!(message.contains("model.safetensors"), "{message}");
        drop(server);
        let model = cache.path().join("hub/models--org--tiny");
        assert!(!model.join("refs/main").exists());
        let weights = model
            .join("snapshots")
            .join(COMMIT)
            .join("model.safetensors");
        assert!(!weights.exists());
        // Nobody takes what is there for a model, by the commit neither.
        let cached = Hub::at(cache.path().join("hub"));
        for revision in [None, Some(COMMIT)] {
            assert!(cached.resolve("org/tiny", revision).is_err());
        }
        let server = Server::start(Way::Right);
        let found = hub(cache.path(), &server.address, &[]).resolve("org/tiny", None);
        let weights = Weights::open(found.unwrap()).unwrap();
        let last = weights.tensor("w").unwrap().to_vec::<f32>().unwrap()[2999];
        assert_eq!(last, 2999.0);
    }
}

#[test]
fn a_hostile_hub_writes_nothing_elsewhere() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Way::Hostile);
    let message = fails(&hub(cache.path(), &server.address, &[]), "org/tiny");
    assert!(message.contains("expected a tag from"), "{message}");
    assert!(std::fs::read_dir(cache.path()).unwrap().next().is_none());
}
