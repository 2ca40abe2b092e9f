//! PyTorch's own files (`.pt`, `.pth`, `.th`, `.bin`): [`PyTorch`] reads the tensors of one.
//!
//! Such a file is a pickle, that is a program, beside the bytes of the tensors. It is not run: the
//! machine in `machine.rs` knows the few opcodes and the few names (`globals.rs`) that tensors need,
//! and refuses a file that uses any other. `archive.rs` reads the zip form that `torch.save` writes
//! since PyTorch 1.6, `legacy.rs` the form before it; `names.rs` names tensors inside containers.

mod archive;
mod globals;
mod legacy;
mod machine;
mod names;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use entrenar_base::{Array, Error, Layout, Result, Shape};

use crate::content::Content;
use crate::names::Printable;
use crate::safetensors::{StoredDType, TensorInfo, no_such_tensor};
use archive::Archive;
use globals::Element;
use machine::Pickle;

/// Endings by which such files go.
pub(crate) const EXTENSIONS: [&str; 5] = ["pt", "pth", "th", "bin", "ckpt"];

/// An open PyTorch file: tensors in dicts and lists, as `torch.save(model.state_dict(), …)` writes.
///
/// Names are the keys, joined by dots where dicts lie in each other. Of a checkpoint that keeps its
/// model beside other things (`{"epoch": …, "state_dict": {…}}`) only the model is seen, if one dict
/// alone holds tensors. Tensors that share a storage share memory here too, a transposed tensor
/// stays a view, and in a mapped zip file all of them lie on the mapped pages where their alignment
/// allows. Arrays have no 16-bit integers: those are widened to i32.
///
/// Cloning shares the file.
///
/// ```no_run
/// let file = entrenar_io::PyTorch::open("model.pt")?;
/// for (name, info) in file.infos() {
///     println!("{name} {} {:?}", info.dtype, info.shape);
/// }
/// let weight = file.tensor("layer.weight")?;
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[derive(Clone)]
pub struct PyTorch {
    path: PathBuf,
    content: Content,
    index: Arc<Index>,
}

struct Index {
    tensors: Vec<(String, Entry)>,
    by_name: HashMap<String, usize>,
    storages: Vec<Stored>,
}

/// A tensor: a view of a storage, which its layout fits.
struct Entry {
    info: TensorInfo,
    storage: usize,
    shape: Vec<usize>,
    strides: Vec<isize>,
    offset: usize,
}

/// The bytes of a storage, which lie in the file.
struct Stored {
    start: usize,
    elements: usize,
    element: Element,
    /// Made once, so that copies (of unaligned or widened elements) are shared like the storage.
    array: OnceLock<Array>,
}

impl PyTorch {
    /// Maps the file into memory and reads its pickle.
    ///
    /// As with [`crate::SafeTensors::open`], nobody may truncate the file while it is in use.
    ///
    /// # Errors
    /// When the file cannot be mapped, is damaged, or holds anything but tensors in plain
    /// containers; the message says where.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<PyTorch> {
        let path = path.as_ref();
        Self::new(path, Content::map(path, "PyTorch")?)
    }

    /// Reads the whole file into memory.
    ///
    /// # Errors
    /// As [`PyTorch::open`].
    #[track_caller]
    pub fn read(path: impl AsRef<Path>) -> Result<PyTorch> {
        let path = path.as_ref();
        Self::new(path, Content::read(path, "PyTorch")?)
    }

    /// Takes the bytes of a whole file; `label` stands for its path in messages.
    ///
    /// # Errors
    /// As [`PyTorch::open`], but for the mapping.
    #[track_caller]
    pub fn from_bytes(bytes: impl Into<Vec<u8>>, label: impl AsRef<Path>) -> Result<PyTorch> {
        Self::new(label.as_ref(), Content::from(bytes.into()))
    }

    #[track_caller]
    fn new(path: &Path, content: Content) -> Result<PyTorch> {
        match read(content.bytes()) {
            Ok(index) => Ok(PyTorch {
                path: path.to_path_buf(),
                index: Arc::new(index),
                content,
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
        self.index.tensors.len()
    }

    /// True when the file holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.index.tensors.is_empty()
    }

    /// Names, in the order of the saved dict.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.index.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// Names and descriptions, in the order of the saved dict.
    pub fn infos(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.index
            .tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), &entry.info))
    }

    /// The description of one tensor, `None` when the file does not hold it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        Some(&self.entry(name)?.info)
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        Some(&self.index.tensors[*self.index.by_name.get(name)?].1)
    }

    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.index.by_name.get(name).copied()
    }

    /// One tensor, a view of its storage.
    ///
    /// # Errors
    /// When the file does not hold it, a bool is neither 0 nor 1, or there is no memory for a copy.
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Result<Array> {
        let Some(entry) = self.entry(name) else {
            return Err(no_such_tensor(&self.path, name, self.len()));
        };
        self.view(entry)
            .map_err(|e| Error::format(&self.path, format!("tensor `{}`: {e}", Printable(name))))
    }

    /// All tensors, in the order of the saved dict.
    ///
    /// # Errors
    /// As [`PyTorch::tensor`], for the first that fails.
    #[track_caller]
    pub fn tensors(&self) -> Result<Vec<(String, Array)>> {
        let mut out = Vec::with_capacity(self.len());
        for name in self.names() {
            out.push((name.to_string(), self.tensor(name)?));
        }
        Ok(out)
    }

    fn view(&self, entry: &Entry) -> Result<Array> {
        let stored = &self.index.storages[entry.storage];
        let whole = match stored.array.get() {
            Some(whole) => whole,
            None => {
                let made = self.storage(stored)?;
                stored.array.get_or_init(|| made)
            }
        };
        whole.as_strided(
            Shape::from(entry.shape.as_slice()),
            &entry.strides,
            entry.offset,
        )
    }

    fn storage(&self, stored: &Stored) -> Result<Array> {
        let (start, n) = (stored.start, stored.elements);
        let bytes = || &self.content.bytes()[start..start + n * stored.element.size];
        match stored.element.name {
            "I16" => {
                let pairs = bytes().as_chunks::<2>().0.iter();
                widen(n, pairs.map(|b| i32::from(i16::from_le_bytes(*b))))
            }
            _ => self.content.array(start, stored.element.array, &[n]),
        }
    }
}

fn widen(n: usize, values: impl Iterator<Item = i32>) -> Result<Array> {
    Array::try_build([n], |out: &mut [i32]| {
        out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
        Ok(())
    })
}

impl std::fmt::Debug for PyTorch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "PyTorch({}, {} tensors)",
            self.path.display(),
            self.len()
        )
    }
}

/// Reads either form; the error lacks only the file's path.
fn read(bytes: &[u8]) -> Result<Index, String> {
    if bytes.starts_with(b"PK") {
        let archive = Archive::read(bytes)?;
        let program = archive
            .get("data.pkl")
            .ok_or("not a PyTorch file: the archive has no data.pkl")?;
        let pickle = machine::run(&bytes[program.clone()], program.start)?;
        let start = |storage: &machine::Storage<'_>| {
            let shown = Printable(storage.key);
            let range = archive
                .get(&format!("data/{}", storage.key))
                .ok_or_else(|| format!("the archive lacks storage `{shown}`"))?;
            let expected = storage.elements * storage.element.size;
            if range.len() != expected {
                return Err(format!(
                    "storage `{shown}`: {} {} need {expected} bytes, its entry has {}",
                    storage.elements,
                    storage.element.name,
                    range.len()
                ));
            }
            Ok(range.start)
        };
        let starts = pickle.storages.iter().map(start);
        let starts = starts.collect::<Result<Vec<_>, _>>()?;
        index(&pickle, &starts)
    } else if bytes.first() == Some(&0x80) {
        let (pickle, starts) = legacy::read(bytes)?;
        index(&pickle, &starts)
    } else {
        Err(format!(
            "not a PyTorch file: {} bytes that start neither like a zip archive nor like a pickle",
            bytes.len()
        ))
    }
}

/// Names the tensors and checks that each lies inside its storage.
fn index(pickle: &Pickle<'_>, starts: &[usize]) -> Result<Index, String> {
    let mut tensors = Vec::new();
    for (name, at) in names::named(pickle)? {
        let tensor = &pickle.tensors[at];
        let storage = &pickle.storages[tensor.storage];
        let named = |e: String| format!("tensor `{}`: {e}", Printable(&name));
        let shape = Shape::from(tensor.shape.as_slice());
        Layout::strided(shape, &tensor.strides, tensor.offset, storage.elements)
            .map_err(|e| named(e.to_string()))?;
        // Its number of elements fits: the layout was checked.
        let numel = tensor.shape.iter().product::<usize>();
        if numel > storage.elements {
            // A view that repeats elements would make a small file fill the memory later on.
            return Err(named(format!(
                "{numel} elements over a storage of {}: an expanded tensor is not read, save a \
                 contiguous copy",
                storage.elements
            )));
        }
        let element = storage.element;
        let info = TensorInfo {
            dtype: StoredDType::new(element.name),
            shape: tensor.shape.clone(),
            bytes: numel * element.size,
            start: starts[tensor.storage]
                .saturating_add(tensor.offset.saturating_mul(element.size)),
        };
        let entry = Entry {
            info,
            storage: tensor.storage,
            shape: tensor.shape.clone(),
            strides: tensor.strides.clone(),
            offset: tensor.offset,
        };
        tensors.push((name, entry));
    }
    let stored = pickle
        .storages
        .iter()
        .zip(starts)
        .map(|(s, &start)| Stored {
            start,
            elements: s.elements,
            element: s.element,
            array: OnceLock::new(),
        });
    Ok(Index {
        by_name: tensors
            .iter()
            .enumerate()
            .map(|(at, (name, _))| (name.clone(), at))
            .collect(),
        storages: stored.collect(),
        tensors,
    })
}
