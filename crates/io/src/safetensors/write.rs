//! Writing safetensors: one pass over the data, into a file that is whole or absent.
//!
//! Order of tensors: widest dtype first (as the reference implementation ranks them), then by
//! name. So every tensor is aligned to its element size and equal content gives equal bytes;
//! metadata is sorted by key for the same reason (the reference writes it in hash order).

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use entrenar_base::{Array, Error, ErrorKind, Result};

use super::header::{LARGEST_HEADER, METADATA, stored};
use crate::atomic::write_with;
use crate::disk::{Disk, OsDisk};
use crate::names::Printable;

/// Writes `tensors` and `metadata` to `path`, replacing it in one step (see
/// [`crate::write_atomic`]). Equal input gives equal bytes, in whatever order it comes.
///
/// Views that are not contiguous are copied one at a time while they are written.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_io::{SafeTensors, write_safetensors};
/// use std::collections::BTreeMap;
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("model.safetensors");
/// let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
/// write_safetensors(&path, &[("bias", Array::scalar(0.5f32))], &metadata)?;
/// assert_eq!(SafeTensors::open(&path)?.metadata()["format"], "pt");
/// # Ok::<(), entrenar_base::Error>(())
/// ```
///
/// # Errors
/// When a name appears twice or is `__metadata__`, the header would pass 100 MB, or the file
/// cannot be written; an existing file is then unchanged.
#[track_caller]
pub fn write_safetensors<S: AsRef<str>>(
    path: impl AsRef<Path>,
    tensors: &[(S, Array)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_to(&OsDisk, path.as_ref(), tensors, metadata)
}

#[track_caller]
pub(crate) fn write_to<S: AsRef<str>>(
    disk: &dyn Disk,
    path: &Path,
    tensors: &[(S, Array)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let plan = Plan::new(tensors, metadata).map_err(|e| e.context(path.display()))?;
    write_with(disk, path, |out| plan.stream(out).map(|_| ()))
}

/// The bytes [`write_safetensors`] would write.
///
/// # Errors
/// When a name appears twice or is `__metadata__`, or the header would pass 100 MB.
#[track_caller]
pub fn to_bytes<S: AsRef<str>>(
    tensors: &[(S, Array)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let plan = Plan::new(tensors, metadata)?;
    let mut out = Vec::with_capacity(plan.header.len() + plan.data);
    plan.stream(&mut out)
        .map_err(|e| Error::other(format!("writing safetensors to memory: {e}")))?;
    Ok(out)
}

/// Header and order of a file to be written.
pub(crate) struct Plan<'a> {
    header: Vec<u8>,
    ordered: Vec<(&'a str, &'a Array)>,
    data: usize,
}

/// Checksums of a file that [`Plan::stream`] has written.
pub(crate) struct Written {
    pub(crate) bytes: u64,
    /// Of the whole file.
    pub(crate) crc: u32,
    pub(crate) header_crc: u32,
    /// Of each tensor's data, in the file's order.
    pub(crate) tensors: Vec<(String, u32)>,
}

impl<'a> Plan<'a> {
    #[track_caller]
    pub(crate) fn new<S: AsRef<str>>(
        tensors: &'a [(S, Array)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Plan<'a>> {
        let refuse = |message: String| Error::new(ErrorKind::Argument, message);
        let mut seen = HashSet::with_capacity(tensors.len());
        let mut ordered = Vec::with_capacity(tensors.len());
        for (name, array) in tensors {
            let name = name.as_ref();
            if name == METADATA {
                return Err(refuse(format!("a tensor cannot be named `{METADATA}`")));
            }
            if !seen.insert(name) {
                let name = Printable(name);
                return Err(refuse(format!("two tensors are named `{name}`")));
            }
            ordered.push((name, array));
        }
        ordered.sort_by(|(a, x), (b, y)| stored(y.dtype()).cmp(&stored(x.dtype())).then(a.cmp(b)));

        let mut json = String::from("{");
        if !metadata.is_empty() {
            // Maps of strings always serialise.
            let map = serde_json::to_value(metadata).unwrap_or_default();
            let _ = write!(json, "\"{METADATA}\":{map}");
        }
        let mut at = 0usize;
        for (name, array) in &ordered {
            let end = array
                .numel()
                .checked_mul(array.dtype().size())
                .and_then(|bytes| at.checked_add(bytes))
                .ok_or_else(|| refuse(format!("tensor `{}` is too large", Printable(name))))?;
            if json.len() > 1 {
                json.push(',');
            }
            let _ = write!(
                json,
                "{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{at},{end}]}}",
                serde_json::Value::from(*name),
                stored(array.dtype()),
                serde_json::Value::from(array.dims()),
            );
            at = end;
        }
        json.push('}');
        // Spaces up to a multiple of 8: the data, and so every tensor, is aligned.
        let padded = json.len().next_multiple_of(8);
        json.extend(std::iter::repeat_n(' ', padded - json.len()));
        if padded > LARGEST_HEADER {
            return Err(refuse(format!(
                "names and metadata need a header of {padded} bytes, \
                 safetensors allows {LARGEST_HEADER}"
            )));
        }
        let mut header = (padded as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        Ok(Plan {
            header,
            ordered,
            data: at,
        })
    }

    /// Writes the file, taking checksums on the way.
    pub(crate) fn stream<W: Write + ?Sized>(&self, out: &mut W) -> io::Result<Written> {
        out.write_all(&self.header)?;
        let header_crc = crc32c::crc32c(&self.header);
        let mut written = Written {
            bytes: (self.header.len() + self.data) as u64,
            crc: header_crc,
            header_crc,
            tensors: Vec::with_capacity(self.ordered.len()),
        };
        for (name, array) in &self.ordered {
            let copy;
            let bytes = match array.as_bytes() {
                Some(bytes) => bytes,
                None => {
                    copy = array.deep_copy();
                    copy.as_bytes().expect("a deep copy is contiguous")
                }
            };
            out.write_all(bytes)?;
            let crc = crc32c::crc32c(bytes);
            written.crc = crc32c::crc32c_combine(written.crc, crc, bytes.len());
            written.tensors.push((name.to_string(), crc));
        }
        Ok(written)
    }
}
