//! Fetching a model into the hub's cache, by the `hf-hub` crate.
//!
//! All files are those of one commit. Weights come last and `refs/REVISION` is written after them, so
//! that a snapshot whose download was cut off does not look whole; what came of it is used when it is
//! tried again. What a server says is checked before it becomes a path.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use entrenar_base::{Error, Result};
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{PROGRESS, is_whole};
use crate::names::Printable;

/// How often a file is tried again, from where it broke off.
const RETRIES: usize = 2;

/// The hub, and who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Remote {
    endpoint: String,
    token: Option<String>,
}

impl fmt::Debug for Remote {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({:?})", self.endpoint)
    }
}

impl Remote {
    /// As `var` says, which looks an environment variable up.
    pub fn from_vars(var: impl Fn(&'static str) -> Option<String>) -> Remote {
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string());
        Remote {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token: var("HF_TOKEN"),
        }
    }
}

/// The address of the hub itself.
const ENDPOINT: &str = "https://huggingface.co";

/// Downloads a model; its snapshot.
///
/// # Errors
/// When the hub does not have it or cannot be reached, a file breaks off, or an answer makes no
/// sense.
pub(super) fn fetch(hub: &Remote, cache: &Path, id: &str, revision: &str) -> Result<PathBuf> {
    // The client panics at some answers that no hub gives.
    let guarded = AssertUnwindSafe(|| fetch_all(hub, cache, id, revision));
    catch_unwind(guarded).unwrap_or_else(|_| {
        let hub = &hub.endpoint;
        Err(Error::other(format!(
            "`{id}`: {hub} gave an answer that is not a hub's"
        )))
    })
}

fn fetch_all(hub: &Remote, cache: &Path, id: &str, revision: &str) -> Result<PathBuf> {
    let fault = |what: &str, e: ApiError| explain(hub, id, revision, what, &e);
    let store = Cache::new(cache.to_path_buf());
    let mut builder = ApiBuilder::from_cache(store.clone())
        .with_endpoint(hub.endpoint.clone())
        .with_progress(PROGRESS.load(Ordering::Relaxed))
        .with_retries(RETRIES)
        .with_user_agent("entrenar", env!("CARGO_PKG_VERSION"));
    if let Some(token) = &hub.token {
        builder = builder.with_token(Some(token.clone()));
    }
    let api = builder.build().map_err(|e| fault("the client", e))?;
    let named =
        |revision: &str| Repo::with_revision(id.to_string(), RepoType::Model, revision.to_string());
    let info = api.repo(named(revision)).info();
    let info = info.map_err(|e| fault("the list of its files", e))?;
    let commit = info.sha;
    if !is_hash(&commit) {
        return Err(nonsense(hub, id, "a commit", &commit));
    }
    let names: Vec<String> = info
        .siblings
        .into_iter()
        .map(|file| file.rfilename)
        .collect();
    let wanted = wanted(&names).ok_or_else(|| {
        let there: Vec<&str> = names.iter().take(20).map(String::as_str).collect();
        Error::other(format!(
            "`{id}` on the hub has no weights that can be read (model.safetensors or pytorch_model.bin, \
             in one file or several), only {}",
            Printable(&there.join(", "))
        ))
    })?;
    let repo = api.repo(named(&commit));
    for name in wanted {
        get(hub, &api, &repo, id, &commit, name).map_err(|e| match e {
            Fault::Client(e) => fault(name, e),
            Fault::Own(e) => e,
        })?;
    }
    let snapshot = store.repo(named(&commit)).pointer_path(&commit);
    is_whole(&snapshot)?;
    let written = store.repo(named(revision)).create_ref(&commit);
    written.map_err(|e| Error::io(cache, "write a ref of the hub's cache", e))?;
    Ok(snapshot)
}

enum Fault {
    Client(ApiError),
    Own(Error),
}

/// One file, unless it is there.
fn get(
    hub: &Remote,
    api: &hf_hub::api::sync::Api,
    repo: &ApiRepo,
    id: &str,
    commit: &str,
    name: &str,
) -> std::result::Result<(), Fault> {
    let about = api.metadata(&repo.url(name)).map_err(Fault::Client)?;
    for (what, text) in [("a commit", about.commit_hash()), ("a tag", about.etag())] {
        if !is_hash(text) {
            return Err(Fault::Own(nonsense(hub, id, what, text)));
        }
    }
    if about.commit_hash() != commit {
        let text = about.commit_hash();
        return Err(Fault::Own(nonsense(
            hub,
            id,
            "the same commit for all files",
            text,
        )));
    }
    let path = repo.get(name).map_err(Fault::Client)?;
    let size = std::fs::metadata(&path)
        .map_err(|e| Fault::Client(e.into()))?
        .len();
    if size == about.size() as u64 {
        return Ok(());
    }
    // Neither the link nor what it leads to may look like the file.
    let blob = std::fs::canonicalize(&path);
    for gone in [Some(path), blob.ok()].into_iter().flatten() {
        let _ = std::fs::remove_file(gone);
    }
    Err(Fault::Own(Error::other(format!(
        "`{id}`: {name} broke off: {size} bytes of {} came; try again",
        about.size()
    ))))
}

/// A name that can be part of a path: a commit, or the tag of a file's content.
fn is_hash(text: &str) -> bool {
    (8..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn nonsense(hub: &Remote, id: &str, want: &str, got: &str) -> Error {
    let (hub, got) = (&hub.endpoint, Printable(got));
    Error::other(format!("`{id}`: expected {want} from {hub}, got `{got}`"))
}

/// What went wrong, and what may help.
fn explain(hub: &Remote, id: &str, revision: &str, what: &str, e: &ApiError) -> Error {
    let (text, hub) = (e.to_string(), &hub.endpoint);
    let status = |code: &str| text.contains(&format!("status: {code}"));
    let why = if status("404") {
        format!("{hub} has no such model, or not at revision {revision}")
    } else if status("401") || status("403") {
        format!(
            "{hub} does not show it: there is no such model, or it asks who you are (set HF_TOKEN, or \
             `hf auth login`, and accept its terms where it has some)"
        )
    } else {
        format!("fetching {what} from {hub} failed: {}", Printable(&text))
    };
    Error::other(format!("`{id}`: {why}"))
}

/// The files of a model that are of use here, weights last; `None` without weights.
fn wanted(all: &[String]) -> Option<Vec<&str>> {
    let plain = |name: &&str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        name.bytes().all(allowed) && !name.starts_with('.')
    };
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    let has = |name: &str| names.contains(&name);
    let mut chosen: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| {
            let endings = [".json", ".txt", ".model", ".jinja"];
            plain(name) && endings.iter().any(|e| name.ends_with(e))
                || *name == "1_Pooling/config.json"
        })
        .collect();
    let kinds = [
        ("model", ".safetensors"),
        ("adapter_model", ".safetensors"),
        ("pytorch_model", ".bin"),
        ("adapter_model", ".bin"),
    ];
    for (stem, ending) in kinds {
        let single = format!("{stem}{ending}");
        let weights: Vec<&str> = if has(&single) {
            names.iter().copied().filter(|n| *n == single).collect()
        } else if has(&format!("{single}.index.json")) {
            let shard = |name: &&str| {
                plain(name) && name.starts_with(&format!("{stem}-")) && name.ends_with(ending)
            };
            names.iter().copied().filter(shard).collect()
        } else {
            continue;
        };
        chosen.extend(weights);
        return Some(chosen);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Option<Vec<String>> {
        let all: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        wanted(&all).map(|w| w.into_iter().map(str::to_string).collect())
    }

    #[test]
    fn one_kind_of_weights_is_chosen_and_comes_last() {
        let all = [
            "model.safetensors",
            "pytorch_model.bin",
            "tf_model.h5",
            "config.json",
            "README.md",
            "onnx/model.onnx",
            "../evil.json",
            "original/params.json",
            ".hidden.json",
            "vocab.txt",
            "1_Pooling/config.json",
        ];
        let want = [
            "config.json",
            "vocab.txt",
            "1_Pooling/config.json",
            "model.safetensors",
        ];
        assert_eq!(of(&all).unwrap(), want);
        let sharded = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
        ];
        let want = [
            "model.safetensors.index.json",
            "tokenizer.model",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(of(&sharded).unwrap(), want);
        assert_eq!(of(&["config.json", "pytorch_model.bin"]).unwrap().len(), 2);
        assert_eq!(of(&["config.json", "model.gguf"]), None);
    }

    #[test]
    fn what_becomes_a_path_is_looked_at() {
        assert!(is_hash("0123456789abcdef0123456789abcdef01234567"));
        for bad in ["", "..", "../../../../etc", "a/b/c/d/e/f", "W\\x\\y\\z\\a"] {
            assert!(!is_hash(bad), "{bad}");
        }
    }
}
