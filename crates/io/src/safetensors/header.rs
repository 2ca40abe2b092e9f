//! The header of a safetensors file: read with every promise checked.
//!
//! Layout of the format (<https://github.com/huggingface/safetensors#format>): 8 bytes
//! little-endian N, then N bytes of JSON that start with `{`, then the data. Each tensor has
//! `dtype`, `shape` and `data_offsets` `[begin, end)` relative to the data; together they cover
//! the data without hole or overlap. We add: no name twice, and sizes that fit in memory.
//!
//! The parser works on the caller's bytes; its own memory stays within a small multiple of the
//! header's length, whatever the header claims. The dtype table is the `safetensors` crate's.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use ::safetensors::Dtype;
use entrenar_base::DType;
use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::names::Printable;

/// The format's own limit.
pub(super) const LARGEST_HEADER: usize = 100_000_000;
/// The key that is not a tensor.
pub(super) const METADATA: &str = "__metadata__";

/// An element type as a safetensors file names it: any name, not only those arrays can hold.
///
/// ```
/// use entrenar_base::DType;
/// use entrenar_io::StoredDType;
/// assert_eq!(StoredDType::new("BF16").array_dtype(), Some(DType::BF16));
/// assert_eq!(StoredDType::new("F8_E4M3").array_dtype(), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDType(Repr);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Repr {
    Known(Dtype),
    Unknown(Box<str>),
}

impl StoredDType {
    /// The dtype of that name, known or not.
    pub fn new(name: &str) -> StoredDType {
        let known: Result<Dtype, serde::de::value::Error> =
            Dtype::deserialize(StrDeserializer::new(name));
        StoredDType(known.map_or_else(|_| Repr::Unknown(name.into()), Repr::Known))
    }

    /// The array dtype with the same bytes, where there is one.
    pub fn array_dtype(&self) -> Option<DType> {
        let Repr::Known(known) = self.0 else {
            return None;
        };
        DType::ALL.into_iter().find(|&d| stored(d) == known)
    }

    /// Bits per element, `None` for a name newer than this library.
    pub fn bits(&self) -> Option<usize> {
        match &self.0 {
            Repr::Known(known) => Some(known.bitsize()),
            Repr::Unknown(_) => None,
        }
    }
}

/// The name under which an array's dtype is stored.
pub(super) fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::Bool => Dtype::BOOL,
        DType::U8 => Dtype::U8,
        DType::I8 => Dtype::I8,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
    }
}

impl From<DType> for StoredDType {
    fn from(dtype: DType) -> Self {
        StoredDType(Repr::Known(stored(dtype)))
    }
}

impl fmt::Display for StoredDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Known(known) => f.pad(&known.to_string()),
            Repr::Unknown(name) => Printable(name).fmt(f),
        }
    }
}

impl Serialize for StoredDType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Repr::Known(known) => serializer.collect_str(known),
            Repr::Unknown(name) => serializer.serialize_str(name),
        }
    }
}

/// What a header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: StoredDType,
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Length of its data.
    pub bytes: usize,
    /// Where its data starts, from the start of the file.
    #[serde(skip)]
    pub(crate) start: usize,
}

impl TensorInfo {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A header that keeps the format's promises.
#[derive(Debug)]
pub(crate) struct Header {
    /// Bytes before the data: the length field and the JSON.
    pub(crate) end: usize,
    pub(crate) metadata: BTreeMap<String, String>,
    /// By position in the file.
    pub(crate) tensors: Vec<(String, TensorInfo)>,
    pub(crate) index: HashMap<String, usize>,
}

impl Header {
    /// Reads the header of the whole file `bytes`; the error lacks only the file's path.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Header, String> {
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| {
            format!(
                "not a safetensors file: {} bytes, at least 8 expected",
                bytes.len()
            )
        })?;
        let length = u64::from_le_bytes(*length);
        if length > LARGEST_HEADER as u64 {
            return Err(format!(
                "not a safetensors file: its header would be {length} bytes long, \
                 at most {LARGEST_HEADER} are allowed"
            ));
        }
        let length = length as usize;
        let (json, data) = rest.split_at_checked(length).ok_or_else(|| {
            format!(
                "the header should be {length} bytes long, but the file ends after {} of them",
                rest.len()
            )
        })?;
        if json.first() != Some(&b'{') {
            return Err("not a safetensors file: the header does not start with `{`".into());
        }
        let json = std::str::from_utf8(json).map_err(|e| format!("the header is not text: {e}"))?;
        let raw: Raw = serde_json::from_str(json).map_err(|e| format!("header: {e}"))?;
        let end = 8 + length;
        let tensors = place(raw.tensors, end, data.len())?;
        let index = tensors
            .iter()
            .enumerate()
            .map(|(at, (name, _))| (name.clone(), at))
            .collect();
        Ok(Header {
            end,
            metadata: raw.metadata,
            tensors,
            index,
        })
    }
}

/// Sorts by position and checks sizes, coverage and the end of the data.
fn place(
    mut raw: Vec<(String, RawInfo)>,
    end: usize,
    data: usize,
) -> Result<Vec<(String, TensorInfo)>, String> {
    raw.sort_by_key(|(_, info)| info.data_offsets);
    let mut tensors: Vec<(String, TensorInfo)> = Vec::with_capacity(raw.len());
    let mut at = 0;
    for (name, info) in raw {
        let (from, to) = info.data_offsets;
        let shown = Printable(&name);
        if to < from {
            return Err(format!(
                "tensor `{shown}`: its data ends ({to}) before it starts ({from})"
            ));
        }
        if from != at {
            let before = tensors.last().map_or("the header".to_string(), |(n, _)| {
                format!("tensor `{}`", Printable(n))
            });
            return Err(if from < at {
                format!("tensor `{shown}`: its data starts at {from} and overlaps {before}")
            } else {
                format!(
                    "tensor `{shown}`: {} bytes between it and {before} belong to no tensor",
                    from - at
                )
            });
        }
        let bytes = to - from;
        let dtype = StoredDType::new(&info.dtype);
        check_size(&dtype, &info.shape, bytes).map_err(|e| format!("tensor `{shown}`: {e}"))?;
        if to > data {
            return Err(format!(
                "tensor `{shown}`: the file ends inside it: {} bytes of data, it needs those up to {to}",
                data
            ));
        }
        at = to;
        tensors.push((
            name,
            TensorInfo {
                dtype,
                shape: info.shape,
                bytes,
                start: end + from,
            },
        ));
    }
    if at != data {
        return Err(format!(
            "{} bytes after the last tensor belong to no tensor",
            data - at
        ));
    }
    Ok(tensors)
}

/// Shape and dtype must explain the length. A dtype we do not know cannot be checked.
fn check_size(dtype: &StoredDType, shape: &[usize], bytes: usize) -> Result<(), String> {
    let too_large = || format!("shape {shape:?} of {dtype} does not fit in memory");
    // Zero sizes must not hide an overflow of the others; 8 is the widest element. The limit is
    // that of `Shape::checked_numel`, so that a tensor that opens can also be made an array.
    shape
        .iter()
        .try_fold(8usize, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(too_large)?;
    let Some(bits) = dtype.bits() else {
        return Ok(());
    };
    let bits = shape
        .iter()
        .product::<usize>()
        .checked_mul(bits)
        .ok_or_else(too_large)?;
    if !bits.is_multiple_of(8) {
        return Err(format!(
            "shape {shape:?} of {dtype} does not fill whole bytes"
        ));
    }
    if bits / 8 != bytes {
        return Err(format!(
            "shape {shape:?} of {dtype} needs {} bytes, its offsets give {bytes}",
            bits / 8
        ));
    }
    Ok(())
}

/// The header as JSON says it.
struct Raw {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawInfo)>,
}

#[derive(serde::Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut metadata: Option<UniqueStrings> = None;
                let mut tensors = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!(
                            "the name `{}` appears twice",
                            Printable(&name)
                        )));
                    }
                    let named = |e| A::Error::custom(format!("tensor `{}`: {e}", Printable(&name)));
                    if name == METADATA {
                        metadata = map.next_value()?;
                    } else {
                        let info = map.next_value().map_err(named)?;
                        tensors.push((name, info));
                    }
                }
                Ok(Raw {
                    metadata: metadata.map(|m| m.0).unwrap_or_default(),
                    tensors,
                })
            }
        }
        deserializer.deserialize_map(Header)
    }
}

/// A map from text to text in which no key appears twice.
pub(crate) struct UniqueStrings(pub(crate) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = UniqueStrings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from text to text")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueStrings, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if out.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!(
                            "the name `{}` appears twice",
                            Printable(&key)
                        )));
                    }
                }
                Ok(UniqueStrings(out))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}
