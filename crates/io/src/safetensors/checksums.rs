//! Checksums of tensors inside the file that holds them, for weights that travel without a manifest.
//!
//! The metadata key [`CHECKSUMS`] maps each tensor to the CRC-32C of `DTYPE[shape]` and its data, as
//! eight hexadecimal digits, so that damage of an entry of the header is noticed too. Other readers
//! pass over the key. Neighbour: `inspect/` compares.

use std::collections::BTreeMap;

use entrenar_base::Array;

use super::header::{TensorInfo, stored};

/// The key in `__metadata__`.
pub(crate) const CHECKSUMS: &str = "crc32c";

/// `metadata` with the checksums of `tensors`, to be written with them.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_io::{inspect, safetensors::with_checksums, write_safetensors};
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("model.safetensors");
/// let tensors = [("weight", Array::full([2, 3], 1.0f32))];
/// write_safetensors(&path, &tensors, &with_checksums(Default::default(), &tensors))?;
/// assert!(inspect(&path)?.verify()?.verification.unwrap().checksums);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[must_use]
pub fn with_checksums<S: AsRef<str>>(
    mut metadata: BTreeMap<String, String>,
    tensors: &[(S, Array)],
) -> BTreeMap<String, String> {
    let sums: BTreeMap<&str, String> = tensors
        .iter()
        .map(|(name, array)| {
            let copy;
            let bytes = match array.as_bytes() {
                Some(bytes) => bytes,
                None => {
                    copy = array.deep_copy();
                    copy.as_bytes().expect("a deep copy is contiguous")
                }
            };
            let sum = checksum(&stored(array.dtype()).to_string(), array.dims(), bytes);
            (name.as_ref(), sum)
        })
        .collect();
    // Maps of strings always serialise.
    let text = serde_json::to_string(&sums).unwrap_or_default();
    metadata.insert(CHECKSUMS.to_string(), text);
    metadata
}

fn checksum(dtype: &str, shape: &[usize], bytes: &[u8]) -> String {
    let head = crc32c::crc32c(format!("{dtype}{shape:?}").as_bytes());
    format!("{:08x}", crc32c::crc32c_append(head, bytes))
}

/// The checksums of a file.
pub(crate) struct Checksums(BTreeMap<String, String>);

impl Checksums {
    /// Those in `metadata`; `None` where there are none, an error where they cannot be read.
    pub(crate) fn of(metadata: &BTreeMap<String, String>) -> Option<Result<Self, String>> {
        let text = metadata.get(CHECKSUMS)?;
        let read = serde_json::from_str(text).map(Self);
        Some(read.map_err(|_| "the checksums in the metadata are damaged".to_string()))
    }

    /// What is wrong with a tensor.
    pub(crate) fn complaint(&self, name: &str, info: &TensorInfo, bytes: &[u8]) -> Option<String> {
        let Some(expected) = self.0.get(name) else {
            return Some("its name has no checksum in the metadata".to_string());
        };
        let found = checksum(&info.dtype.to_string(), &info.shape, bytes);
        (found != *expected).then(|| format!("checksum {found}, the metadata say {expected}"))
    }

    /// Tensors that have a checksum and are not in the file.
    pub(crate) fn absent(&self, known: impl Fn(&str) -> bool) -> Option<&str> {
        self.0.keys().map(String::as_str).find(|name| !known(name))
    }
}
