//! The data half from outside: broken files with their exact messages, encoded
//! values against plain definitions, loaders against themselves, real files.

#[path = "data/broken.rs"]
mod broken;
#[path = "data/encoding.rs"]
mod encoding;
#[path = "data/from_config.rs"]
mod from_config;
#[path = "data/loading.rs"]
mod loading;
#[path = "data/real.rs"]
mod real;

use std::io::Write;
use std::path::{Path, PathBuf};

/// A directory that goes with its test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let file = self.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, bytes).unwrap();
        file
    }

    /// The message with the directory taken out.
    fn told(&self, error: impl std::fmt::Display) -> String {
        error
            .to_string()
            .replace(&self.path().display().to_string(), "DIR")
    }
}

/// An IDX file of unsigned bytes.
fn idx(dims: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    for dim in dims {
        bytes.extend(dim.to_be_bytes());
    }
    bytes.extend(elements);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
