//! Models by their name on the Hugging Face hub: [`resolve`] finds their directory.
//!
//! The cache is the one that Python's `huggingface_hub` keeps: a folder per model
//! (`models--ORG--NAME`) with `refs/REVISION`, a text file that names a commit, and
//! `snapshots/COMMIT`, whose files are links. `HF_HUB_CACHE` says where it is, else `HF_HOME/hub`,
//! else `XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`. What lies there is used
//! without a network. What does not is fetched in a build with the feature `hub` (`download.rs`),
//! from `HF_ENDPOINT`, with the token in `HF_TOKEN`, unless `HF_HUB_OFFLINE` is 1.

#[cfg(feature = "hub")]
mod download;

use std::sync::atomic::{AtomicBool, Ordering};

use std::path::{Path, PathBuf};

use entrenar_base::{Error, Result};

use crate::names::Printable;
use crate::weights::{Weights, find_in};

/// The directory of a model: `id_or_path` itself where there is such a directory (or file), else
/// the snapshot in the cache of the hub's model `ORG/NAME` at `revision` (a branch, a tag or a
/// commit; `main` when `None`), which is fetched first where this build can.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// let model = dir.path().to_str().unwrap();
/// assert_eq!(entrenar_io::hub::resolve(model, None)?, dir.path());
/// # Ok::<(), entrenar_base::Error>(())
/// ```
///
/// # Errors
/// When there is no such directory and the cache does not hold the model, or not all of it; the
/// message says where was looked and how to get it.
#[track_caller]
pub fn resolve(id_or_path: &str, revision: Option<&str>) -> Result<PathBuf> {
    Hub::from_env().resolve(id_or_path, revision)
}

/// Whether downloads show bars on a terminal.
static PROGRESS: AtomicBool = AtomicBool::new(true);

/// Has downloads show a bar on standard error where that is a terminal (as they do), or be quiet.
pub fn set_progress(shown: bool) {
    PROGRESS.store(shown, Ordering::Relaxed);
}

/// Where the cache of the hub is, and the hub.
///
/// ```
/// use entrenar_io::hub::Hub;
/// let hub = Hub::from_vars(|name| (name == "HF_HOME").then(|| "/data/hf".into()));
/// assert_eq!(hub.cache().unwrap(), std::path::Path::new("/data/hf/hub"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    cache: Option<PathBuf>,
    #[cfg(feature = "hub")]
    remote: download::Remote,
    offline: bool,
}

impl Hub {
    /// As the environment variables say.
    pub fn from_env() -> Hub {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// As `var` says, which looks an environment variable up.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Hub {
        let path = |name| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = path("HF_HUB_CACHE")
            .or_else(|| Some(path("HF_HOME")?.join("hub")))
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface/hub")))
            .or_else(|| Some(path("USERPROFILE")?.join(".cache/huggingface/hub")));
        let word = |name| var(name).filter(|v| !v.is_empty());
        let offline = word("HF_HUB_OFFLINE")
            .is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str()));
        Hub {
            cache,
            #[cfg(feature = "hub")]
            remote: download::Remote::from_vars(word),
            offline,
        }
    }

    /// With its cache in a directory of your choice; nothing is fetched.
    pub fn at(cache: impl Into<PathBuf>) -> Hub {
        Hub {
            cache: Some(cache.into()),
            #[cfg(feature = "hub")]
            remote: download::Remote::from_vars(|_| None),
            offline: true,
        }
    }

    /// Where the cache is; `None` when no variable says it.
    pub fn cache(&self) -> Option<&Path> {
        self.cache.as_deref()
    }

    /// [`resolve`] with this cache.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn resolve(&self, id_or_path: &str, revision: Option<&str>) -> Result<PathBuf> {
        let path = Path::new(id_or_path);
        if path.exists() {
            return Ok(path.to_path_buf());
        }
        if let Some(why) = not_an_id(id_or_path) {
            return Err(Error::format(
                path,
                format!("no such file or directory ({why})"),
            ));
        }
        let revision = revision.unwrap_or("main");
        if let Some(why) = not_a_revision(revision) {
            return Err(Error::argument(
                "hub",
                format!("a branch, a tag or a commit of `{id_or_path}`"),
                format!("`{}`: {why}", Printable(revision)),
            ));
        }
        let Some(cache) = &self.cache else {
            return Err(Error::other(format!(
                "`{id_or_path}`: no such directory, and none of HF_HUB_CACHE, HF_HOME, \
                 XDG_CACHE_HOME and HOME says where the cache of the Hugging Face hub is"
            )));
        };
        let folder = cache.join(format!("models--{}", id_or_path.replace('/', "--")));
        let problem = match snapshot(&folder, revision) {
            Some(snapshot) => match is_whole(&snapshot) {
                Ok(()) => return Ok(snapshot),
                Err(e) => format!("its snapshot in the cache is not whole: {e}"),
            },
            None => format!(
                "no such directory, and the cache of the Hugging Face hub ({}) does not hold \
                 revision {revision} of it",
                cache.display()
            ),
        };
        #[cfg(feature = "hub")]
        if !self.offline {
            return download::fetch(&self.remote, cache, id_or_path, revision);
        }
        let way = match (cfg!(feature = "hub"), self.offline) {
            (true, _) => "; with HF_HUB_OFFLINE=1 nothing is fetched",
            _ => ", or use a build with the feature `hub`, which fetches it",
        };
        Err(Error::other(format!(
            "`{id_or_path}`: {problem}. Fetch it with `hf download {id_or_path} --revision \
             {revision}`, or give the directory of a copy{way}"
        )))
    }
}

/// The directory of a revision, where the cache knows one.
fn snapshot(folder: &Path, revision: &str) -> Option<PathBuf> {
    let named = std::fs::read_to_string(folder.join("refs").join(revision)).ok();
    let commit = named.as_deref().map_or(revision, str::trim);
    // A file of somebody else's: it must not lead out of the cache.
    if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let path = folder.join("snapshots").join(commit);
    path.is_dir().then_some(path)
}

/// Whether a snapshot has weights, with all shards. Programs that needed one file of a model leave
/// snapshots without the others.
fn is_whole(snapshot: &Path) -> Result<()> {
    let weights = find_in(snapshot)?;
    if weights.extension().is_some_and(|e| e == "json") {
        Weights::open(&weights)?;
    }
    Ok(())
}

/// Why a text cannot be a model's name on the hub: `NAME` or `ORG/NAME`.
fn not_an_id(text: &str) -> Option<&'static str> {
    let plain = |part: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        !part.is_empty()
            && part.len() <= 96
            && part.bytes().all(allowed)
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
    };
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 2 || !parts.into_iter().all(plain) {
        Some("nor can it be a model's name on the Hugging Face hub, ORG/NAME")
    } else {
        None
    }
}

/// Why a text cannot name a revision.
fn not_a_revision(text: &str) -> Option<&'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    if text.is_empty() {
        Some("it is empty")
    } else if !text.bytes().all(allowed) {
        Some("it has characters that no branch has")
    } else if text
        .split('/')
        .any(|part| part.is_empty() || part.starts_with('.'))
    {
        Some("it is a path")
    } else {
        None
    }
}
