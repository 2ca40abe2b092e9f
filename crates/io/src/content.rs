//! The bytes of a weight file: mapped, or read into memory.

use std::path::Path;
use std::sync::Arc;

use entrenar_base::{Array, DType, Error, Mapped, Result};

/// A whole file. Cloning shares it.
#[derive(Clone)]
pub(crate) enum Content {
    Mapped(Mapped),
    Owned(Arc<Vec<u8>>),
}

impl Content {
    /// Maps the file; `what` names the kind of file in the message about a directory.
    #[track_caller]
    pub(crate) fn map(path: &Path, what: &str) -> Result<Content> {
        refuse_directory(path, what)?;
        Ok(Content::Mapped(Mapped::open(path)?))
    }

    /// Reads the file.
    #[track_caller]
    pub(crate) fn read(path: &Path, what: &str) -> Result<Content> {
        refuse_directory(path, what)?;
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read", e))?;
        Ok(Content::from(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Content::Mapped(map) => map,
            Content::Owned(bytes) => bytes,
        }
    }

    /// The elements that start at byte `start`, on the mapped pages where their alignment allows.
    /// The range has been checked.
    pub(crate) fn array(&self, start: usize, dtype: DType, shape: &[usize]) -> Result<Array> {
        match self {
            Content::Mapped(map) => map.array(start, dtype, shape),
            Content::Owned(bytes) => {
                let length = shape.iter().product::<usize>() * dtype.size();
                Array::from_bytes(&bytes[start..start + length], dtype, shape)
            }
        }
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Content {
        Content::Owned(Arc::new(bytes))
    }
}

/// The system's own message for a mapped directory ("No such device") helps nobody.
#[track_caller]
fn refuse_directory(path: &Path, what: &str) -> Result<()> {
    if path.is_dir() {
        return Err(Error::format(
            path,
            format!("a directory, expected a {what} file"),
        ));
    }
    Ok(())
}
