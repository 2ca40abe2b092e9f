//! `manifest.json`: what a checkpoint holds, with a checksum for every part, itself included.
//!
//! The file is pretty-printed JSON whose last member is `"crc32c"`, the checksum of every byte
//! before that member's line. It is compared as text, so each flipped bit of the file shows.
//! Version 1 is what this library writes; a later version is refused, never guessed at.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use entrenar_base::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::names::not_a_plain_file_name;

/// The manifest's file name.
pub(crate) const MANIFEST: &str = "manifest.json";
/// What tells a manifest from other JSON files of that name.
const FORMAT: &str = "entrenar-checkpoint";
/// The only version read and written.
pub const FORMAT_VERSION: u64 = 1;

/// The content of a checkpoint's `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    format_version: u64,
    /// Program and version that wrote it.
    pub producer: String,
    /// The training step.
    pub step: u64,
    /// The files, in the order they were written.
    pub files: Vec<FileEntry>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// A plain file name.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// Of the whole file.
    pub crc32c: Crc,
    /// For safetensors files: of each part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safetensors: Option<Parts>,
}

/// Checksums inside a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Of the length field and the JSON.
    pub header_crc32c: Crc,
    /// Of each tensor's data.
    pub tensors: BTreeMap<String, Crc>,
}

/// A CRC-32C (Castagnoli), written as eight lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crc(pub u32);

impl fmt::Display for Crc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl Serialize for Crc {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Crc {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u32::from_str_radix(&text, 16)
            .ok()
            .map(Crc)
            .filter(|crc| crc.to_string() == text)
            .ok_or_else(|| {
                serde::de::Error::custom(format!("`{text}` is not eight hexadecimal digits"))
            })
    }
}

/// Why a manifest cannot be used.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Written by a later version: the checkpoint may be fine.
    Newer(String),
    /// Torn, rotten or not a manifest.
    Damaged(String),
}

impl Refusal {
    #[track_caller]
    pub(crate) fn into_error(self, path: &Path) -> Error {
        match self {
            Refusal::Newer(message) | Refusal::Damaged(message) => Error::format(path, message),
        }
    }
}

impl Manifest {
    pub(crate) fn new(step: u64, files: Vec<FileEntry>) -> Manifest {
        Manifest {
            format: FORMAT.to_string(),
            format_version: FORMAT_VERSION,
            producer: concat!("entrenar ", env!("CARGO_PKG_VERSION")).to_string(),
            step,
            files,
        }
    }

    /// The file's text, checksum included.
    pub(crate) fn to_text(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::other(format!("{MANIFEST}: {e}")))?;
        text.truncate(text.trim_end_matches(['}', '\n']).len());
        text.push_str(",\n");
        let crc = Crc(crc32c::crc32c(text.as_bytes()));
        text.push_str(&tail(crc));
        Ok(text)
    }

    /// Reads and checks the text of a manifest.
    pub(crate) fn parse(text: &[u8]) -> std::result::Result<Manifest, Refusal> {
        let damaged = |what: String| Refusal::Damaged(format!("damaged manifest: {what}"));
        // The whole tail is compared, so that no flipped byte of it passes.
        let (body, sum) = text
            .split_at_checked(text.len().wrapping_sub(TAIL))
            .ok_or_else(|| damaged(format!("only {} bytes long", text.len())))?;
        let summed = tail(Crc(crc32c::crc32c(body))).as_bytes() == sum;
        // A later version may sum otherwise: its number counts even where our sum does not fit.
        let value: serde_json::Value =
            serde_json::from_slice(text).map_err(|e| damaged(format!("not JSON: {e}")))?;
        let version = value.get("format_version").and_then(|v| v.as_u64());
        if let Some(version) = version.filter(|&v| v > FORMAT_VERSION)
            && value.get("format").and_then(|f| f.as_str()) == Some(FORMAT)
        {
            return Err(Refusal::Newer(format!(
                "checkpoint format version {version} is newer than this program, which reads \
                 version {FORMAT_VERSION}; it was written by {}",
                value.get("producer").and_then(|p| p.as_str()).map_or(
                    "a later version".into(),
                    |p| format!("`{}`", crate::names::Printable(p))
                )
            )));
        }
        if !summed {
            return Err(damaged("its checksum does not match its text".into()));
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        if manifest.format != FORMAT || manifest.format_version != FORMAT_VERSION {
            return Err(damaged(format!(
                "expected format {FORMAT} version {FORMAT_VERSION}, got {} version {}",
                manifest.format, manifest.format_version
            )));
        }
        let mut seen = std::collections::HashSet::new();
        for file in &manifest.files {
            if let Some(why) = file_name_refused(&file.name) {
                return Err(damaged(format!("`{}` is no file of it: {why}", file.name)));
            }
            if !seen.insert(&file.name) {
                return Err(damaged(format!("`{}` is listed twice", file.name)));
            }
        }
        Ok(manifest)
    }

    /// The entry of `name`.
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|f| f.name == name)
    }

    /// Bytes of all files, the manifest not counted.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |n, f| n.saturating_add(f.bytes))
    }
}

/// Why a checkpoint cannot have a file of this name, or `None` when it can.
pub(super) fn file_name_refused(name: &str) -> Option<&'static str> {
    if name == MANIFEST {
        return Some("that is the manifest itself");
    }
    if name.starts_with(crate::atomic::TEMPORARY) {
        return Some("that is how temporary files start");
    }
    not_a_plain_file_name(name)
}

/// The last lines of a manifest.
fn tail(crc: Crc) -> String {
    format!("  \"crc32c\": \"{crc}\"\n}}\n")
}

/// Length of [`tail`].
const TAIL: usize = "  \"crc32c\": \"00000000\"\n}\n".len();

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let parts = Parts {
            header_crc32c: Crc(1),
            tensors: BTreeMap::from([("a.b".to_string(), Crc(0xdead_beef))]),
        };
        let file = |name: &str, safetensors| FileEntry {
            name: name.to_string(),
            bytes: 10,
            crc32c: Crc(2),
            safetensors,
        };
        Manifest::new(
            7,
            vec![
                file("model.safetensors", Some(parts)),
                file("state.json", None),
            ],
        )
    }

    /// The checksum of the text with the sum of its own replaced by a right one.
    fn signed(body: &str) -> Vec<u8> {
        let body = &body[..body.len() - TAIL];
        format!("{body}{}", tail(Crc(crc32c::crc32c(body.as_bytes())))).into_bytes()
    }

    #[test]
    fn round_trip() {
        let text = sample().to_text().unwrap();
        assert!(text.contains("\"a.b\": \"deadbeef\""), "{text}");
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn no_files_at_all() {
        let empty = Manifest::new(0, vec![]);
        let text = empty.to_text().unwrap();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), empty);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let text = sample().to_text().unwrap().into_bytes();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bad = text.clone();
                bad[at] ^= 1 << bit;
                assert!(Manifest::parse(&bad).is_err(), "byte {at} bit {bit}");
            }
        }
        for length in 0..text.len() {
            assert!(Manifest::parse(&text[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let text = sample().to_text().unwrap();
        let newer = text.replace("\"format_version\": 1", "\"format_version\": 2");
        for bytes in [newer.clone().into_bytes(), signed(&newer)] {
            match Manifest::parse(&bytes) {
                Err(Refusal::Newer(m)) => assert!(m.contains("version 2 is newer"), "{m}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn hostile_names_are_refused_even_with_a_right_checksum() {
        let text = sample().to_text().unwrap();
        for bad in [
            "../state.json",
            "/etc/passwd",
            "",
            "manifest.json",
            "model.safetensors",
        ] {
            let forged = text.replace("\"state.json\"", &format!("\"{bad}\""));
            assert!(
                matches!(Manifest::parse(&signed(&forged)), Err(Refusal::Damaged(_))),
                "{bad}"
            );
        }
    }
}
