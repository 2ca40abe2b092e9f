//! Safetensors files: [`SafeTensors`] reads one, [`write_safetensors`] writes one.
//!
//! `header.rs` checks what a file claims, `write.rs` produces, `checksums.rs` lets a file vouch for
//! its own tensors.

mod checksums;
pub(crate) mod header;
pub(crate) mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Array, Error, ErrorKind, Result};

pub use checksums::with_checksums;
pub(crate) use checksums::{CHECKSUMS, Checksums};
pub use header::{StoredDType, TensorInfo};
pub use write::{to_bytes, write_safetensors};

use crate::content::Content;
use crate::names::Printable;
use header::Header;

/// An open safetensors file. The header has been checked; data is read as tensors are asked for.
///
/// Cloning shares the file.
///
/// ```
/// use entrenar_base::{Array, DType};
/// use entrenar_io::{SafeTensors, safetensors::to_bytes};
/// let bytes = to_bytes(&[("a", Array::zeros([2, 3], DType::BF16))], &Default::default())?;
/// let file = SafeTensors::from_bytes(bytes, "in memory")?;
/// let info = file.info("a").unwrap();
/// assert_eq!((info.shape.as_slice(), info.bytes), ([2, 3].as_slice(), 12));
/// assert_eq!(file.tensor("a")?.dtype(), DType::BF16);
/// assert!(file.tensor("b").unwrap_err().to_string().starts_with("in memory: no tensor `b`"));
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[derive(Clone)]
pub struct SafeTensors {
    path: PathBuf,
    content: Content,
    pub(crate) header: Arc<Header>,
}

impl SafeTensors {
    /// Maps the file into memory; [`SafeTensors::tensor`] then shares its pages.
    ///
    /// A file that somebody truncates while it is mapped ends the process (SIGBUS): files that
    /// others may rewrite in place are better [`SafeTensors::read`].
    ///
    /// # Errors
    /// When the file cannot be mapped, or its header breaks a promise of the format: the message
    /// names the file and the tensor.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<SafeTensors> {
        let path = path.as_ref();
        Self::new(path, Content::map(path, "safetensors")?)
    }

    /// Reads the whole file into memory.
    ///
    /// # Errors
    /// As [`SafeTensors::open`].
    #[track_caller]
    pub fn read(path: impl AsRef<Path>) -> Result<SafeTensors> {
        let path = path.as_ref();
        Self::new(path, Content::read(path, "safetensors")?)
    }

    /// Takes the bytes of a whole file; `label` stands for its path in messages.
    ///
    /// # Errors
    /// When the header breaks a promise of the format.
    #[track_caller]
    pub fn from_bytes(bytes: impl Into<Vec<u8>>, label: impl AsRef<Path>) -> Result<SafeTensors> {
        Self::new(label.as_ref(), Content::from(bytes.into()))
    }

    #[track_caller]
    fn new(path: &Path, content: Content) -> Result<SafeTensors> {
        match Header::parse(content.bytes()) {
            Ok(header) => Ok(SafeTensors {
                path: path.to_path_buf(),
                content,
                header: Arc::new(header),
            }),
            Err(message) => Err(Error::format(path, message)),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the whole file.
    pub fn size(&self) -> usize {
        self.content.bytes().len()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.header.tensors.len()
    }

    /// True when the file holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.header.tensors.is_empty()
    }

    /// Names, by position in the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// Names and descriptions, by position in the file.
    pub fn infos(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.header
            .tensors
            .iter()
            .map(|(name, i)| (name.as_str(), i))
    }

    /// The description of one tensor, `None` when the file does not hold it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let at = *self.header.index.get(name)?;
        Some(&self.header.tensors[at].1)
    }

    /// The `__metadata__` map; empty when the file has none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// One tensor: on the mapped pages where its alignment allows, else copied.
    ///
    /// # Errors
    /// When the file does not hold it, arrays do not know its dtype, or a bool is neither 0 nor 1.
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Result<Array> {
        let info = self.require(name)?;
        let Some(dtype) = info.dtype.array_dtype() else {
            return Err(Error::new(
                ErrorKind::DType,
                format!(
                    "{}: tensor `{}` has dtype {}, which arrays do not hold \
                     (bool u8 i8 i32 i64 f16 bf16 f32 f64)",
                    self.path.display(),
                    Printable(name),
                    info.dtype,
                ),
            ));
        };
        let array = self.content.array(info.start, dtype, &info.shape);
        array.map_err(|e| Error::format(&self.path, format!("tensor `{}`: {e}", Printable(name))))
    }

    /// All tensors, by position in the file.
    ///
    /// # Errors
    /// As [`SafeTensors::tensor`], for the first that fails.
    #[track_caller]
    pub fn tensors(&self) -> Result<Vec<(String, Array)>> {
        let mut out = Vec::with_capacity(self.len());
        for name in self.names() {
            out.push((name.to_string(), self.tensor(name)?));
        }
        Ok(out)
    }

    /// The stored bytes of one tensor, whatever its dtype.
    ///
    /// # Errors
    /// When the file does not hold it.
    #[track_caller]
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(self.slice(self.require(name)?))
    }

    #[track_caller]
    fn require(&self, name: &str) -> Result<&TensorInfo> {
        match self.info(name) {
            Some(info) => Ok(info),
            None => Err(no_such_tensor(&self.path, name, self.len())),
        }
    }

    fn slice(&self, info: &TensorInfo) -> &[u8] {
        &self.content.bytes()[info.start..info.start + info.bytes]
    }

    /// The length field and the JSON.
    pub(crate) fn header_bytes(&self) -> &[u8] {
        &self.content.bytes()[..self.header.end]
    }
}

impl std::fmt::Debug for SafeTensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SafeTensors({}, {} tensors)",
            self.path.display(),
            self.len()
        )
    }
}

#[track_caller]
pub(crate) fn no_such_tensor(path: &Path, name: &str, of: usize) -> Error {
    let text = format!(
        "{}: no tensor `{}` among its {of}",
        path.display(),
        Printable(name)
    );
    Error::new(ErrorKind::Argument, text)
}
