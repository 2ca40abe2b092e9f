//! A pickle machine that can make tensors and plain containers, and nothing else.
//!
//! A pickle is a program for a stack machine (CPython, `Lib/pickletools.py`, describes the opcodes),
//! and Python's own machine calls whatever function a program names. This one calls nothing: the
//! names in `globals.rs` stand for lines below, any other name and any opcode that tensors do not
//! need end the reading with an error that says at which byte of the file.
//!
//! Values are numbered and containers hold numbers, so that lists that contain themselves are no
//! danger, and the memory is bounded by [`MOST_WORK`] whatever the program does.

use std::collections::HashMap;

use super::globals::{Element, Global, opcode_name};
use crate::names::Printable;

/// Values a pickle may make, list elements copied and dimensions together: some hundred thousand
/// tensors, and well below a gigabyte.
const MOST_WORK: usize = 8_000_000;
/// Dimensions of a tensor. PyTorch's limit is 64; nobody is near it.
const MOST_DIMENSIONS: usize = 32;

/// A number of a value.
pub(super) type Id = u32;

/// What a pickle can make.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// A whole number of more than 8 bytes, little-endian.
    Long(&'a [u8]),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// An index into [`Pickle::storages`].
    Storage(usize),
    /// An index into [`Pickle::tensors`].
    Tensor(usize),
    /// Something without tensors that nobody here reads: floats, bytes, devices.
    Other,
}

/// A storage as a pickle describes it.
#[derive(Debug)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) element: Element,
    pub(super) elements: usize,
}

/// A tensor as a pickle describes it: a view of a storage.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) storage: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<isize>,
    pub(super) offset: usize,
}

/// What a program left behind.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub(super) root: Id,
    pub(super) storages: Vec<Storage<'a>>,
    pub(super) tensors: Vec<Tensor>,
    /// Length of the program.
    pub(super) length: usize,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    work: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    values: Vec<Value<'a>>,
    storages: Vec<Storage<'a>>,
    by_key: HashMap<&'a str, usize>,
    tensors: Vec<Tensor>,
}

/// Runs the program at the start of `bytes`; `base` is its place in the file, for messages.
pub(super) fn run(bytes: &[u8], base: usize) -> Result<Pickle<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        work: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        values: Vec::new(),
        storages: Vec::new(),
        by_key: HashMap::new(),
        tensors: Vec::new(),
    };
    loop {
        let start = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => {
                return Ok(Pickle {
                    values: machine.values,
                    root,
                    storages: machine.storages,
                    tensors: machine.tensors,
                    length: machine.at,
                });
            }
            Err(e) => return Err(format!("pickle, byte {}: {e}", base + start)),
        }
    }
}

impl<'a> Machine<'a> {
    /// One opcode; the result after the last.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let code = self.take(1)?[0];
        match code {
            // PROTO
            0x80 => match self.take(1)?[0] {
                2..=5 => {}
                other => return Err(format!("protocol {other}, expected 2 to 5")),
            },
            // FRAME: how much follows, which the bytes themselves show.
            0x95 => {
                self.take(8)?;
            }
            // STOP
            b'.' => return self.pop().map(Some),
            // MARK
            b'(' => {
                self.charge(1)?;
                self.marks.push(self.stack.len());
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            // BININT, BININT1, BININT2
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))?;
            }
            b'K' => {
                let n = self.take(1)?[0];
                self.push(Value::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))?;
            }
            // LONG1, LONG4
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            // BINFLOAT
            b'G' => {
                self.take(8)?;
                self.push(Value::Other)?;
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8; Python 2: SHORT_BINSTRING, BINSTRING
            0x8c | b'U' => self.text(1)?,
            b'X' | b'T' => self.text(4)?,
            0x8d => self.text(8)?,
            // SHORT_BINBYTES, BINBYTES, BINBYTES8
            b'C' => self.skip(1)?,
            b'B' => self.skip(4)?,
            0x8e => self.skip(8)?,
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let n = usize::from(code - 0x84);
                let from = self.above_mark(n)?;
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            // APPEND, APPENDS
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)?;
            }
            // SETITEM, SETITEMS
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(items)?;
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.as_text(module)?, self.as_text(name)?);
                self.global(module, name)?;
            }
            // BINGET, LONG_BINGET
            b'h' => {
                let n = self.take(1)?[0];
                self.get(n.into())?;
            }
            b'j' => {
                let n = u32::from_le_bytes(self.array()?);
                self.get(n)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let n = self.take(1)?[0];
                self.put(n.into())?;
            }
            b'r' => {
                let n = u32::from_le_bytes(self.array()?);
                self.put(n)?;
            }
            0x94 => {
                let n = self.memo.len() as u32;
                self.put(n)?;
            }
            // REDUCE, BUILD, BINPERSID
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => self.storage()?,
            other => {
                return Err(format!(
                    "the opcode {} (0x{other:02x}) is refused: tensors do not need it",
                    opcode_name(other)
                ));
            }
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let left = self.bytes.len() - self.at;
        if n > left {
            return Err(format!("{n} bytes expected, {left} left: cut short?"));
        }
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// What follows a length of `width` bytes.
    fn counted(&mut self, width: usize) -> Result<&'a [u8], String> {
        let mut length = [0; 8];
        length[..width].copy_from_slice(self.take(width)?);
        // Longer than memory is longer than the file.
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        self.take(length)
    }

    fn text(&mut self, width: usize) -> Result<(), String> {
        let text = self.counted(width)?;
        let text = std::str::from_utf8(text).map_err(|e| format!("not text: {e}"))?;
        self.push(Value::Text(text))
    }

    fn skip(&mut self, width: usize) -> Result<(), String> {
        self.counted(width)?;
        self.push(Value::Other)
    }

    fn long(&mut self, width: usize) -> Result<(), String> {
        let bytes = self.counted(width)?;
        let value = if bytes.len() > 8 {
            Value::Long(bytes)
        } else {
            let sign = bytes.last().is_some_and(|b| b & 0x80 != 0);
            let mut wide = [if sign { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        };
        self.push(value)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n');
        let end = end.ok_or("a name without an end: cut short?")?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|e| format!("not a name: {e}"))?;
        self.at += end + 1;
        Ok(line)
    }

    fn charge(&mut self, work: usize) -> Result<(), String> {
        self.work += work;
        if self.work > MOST_WORK {
            return Err(format!("more than {MOST_WORK} values, too many to read"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        self.charge(1)?;
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// The place on the stack below the `n` highest values, which the last mark does not divide.
    fn above_mark(&self, n: usize) -> Result<usize, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n) {
            Some(from) if from >= floor => Ok(from),
            _ => Err(format!("{n} values expected, the stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Id, String> {
        let from = self.above_mark(1)?;
        Ok(self.stack.split_off(from)[0])
    }

    fn top(&self) -> Result<Id, String> {
        Ok(self.stack[self.above_mark(1)?])
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn get(&mut self, n: u32) -> Result<(), String> {
        self.charge(1)?;
        let id = self.memo.get(&n).copied();
        self.stack
            .push(id.ok_or_else(|| format!("nothing was kept as number {n}"))?);
        Ok(())
    }

    fn put(&mut self, n: u32) -> Result<(), String> {
        self.charge(1)?;
        let top = self.top()?;
        self.memo.insert(n, top);
        Ok(())
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Result<(), String> {
        self.charge(items.len())?;
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::List(list) => list.extend(items),
            other => return Err(format!("a list expected, found {}", kind(other))),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: Vec<Id>) -> Result<(), String> {
        self.charge(items.len())?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key without a value".into());
        }
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|&[k, v]| (k, v))),
            other => return Err(format!("a dict expected, found {}", kind(other))),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        match Global::named(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(format!(
                "the name `{}.{}` is refused: only tensors in plain containers are read, and nothing \
                 is run. Where this is a file you trust, save its `state_dict()` instead",
                Printable(module),
                Printable(name)
            )),
        }
    }

    fn as_text(&self, id: Id) -> Result<&'a str, String> {
        match self.value(id) {
            Value::Text(text) => Ok(text),
            other => Err(format!("text expected, found {}", kind(other))),
        }
    }

    fn as_size(&self, id: Id, what: &str) -> Result<usize, String> {
        match self.value(id) {
            Value::Int(n) => usize::try_from(*n).map_err(|_| format!("{what} is {n}")),
            other => Err(format!("{what}: a number expected, found {}", kind(other))),
        }
    }

    fn items(&self, id: Id, what: &str) -> Result<&[Id], String> {
        match self.value(id) {
            Value::Tuple(items) | Value::List(items) => Ok(items),
            other => Err(format!("{what}: a tuple expected, found {}", kind(other))),
        }
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let global = match self.value(function) {
            Value::Global(global) => *global,
            other => return Err(format!("a function expected, found {}", kind(other))),
        };
        let arguments = self.items(arguments, "arguments")?;
        match global {
            Global::OrderedDict => {
                let pairs = match arguments {
                    [] => Vec::new(),
                    [pairs] => {
                        let pairs = self.items(*pairs, "OrderedDict")?;
                        let pair = |id: &Id| match self.items(*id, "a pair of OrderedDict")? {
                            [key, value] => Ok((*key, *value)),
                            other => {
                                Err(format!("a pair of OrderedDict has {} items", other.len()))
                            }
                        };
                        pairs.iter().map(pair).collect::<Result<_, String>>()?
                    }
                    more => return Err(format!("OrderedDict with {} arguments", more.len())),
                };
                self.charge(pairs.len())?;
                self.push(Value::Dict(pairs))
            }
            Global::RebuildTensor => {
                let tensor = self.tensor(arguments)?;
                // A tensor weighs more than a number.
                self.charge(8 + 2 * tensor.shape.len())?;
                self.tensors.push(tensor);
                self.push(Value::Tensor(self.tensors.len() - 1))
            }
            Global::RebuildParameter => {
                let first = arguments.first().map(|id| self.value(*id));
                let Some(Value::Tensor(tensor)) = first else {
                    let found = first.map_or("nothing", kind);
                    return Err(format!(
                        "_rebuild_parameter: a tensor expected, found {found}"
                    ));
                };
                self.push(Value::Tensor(*tensor))
            }
            Global::Size => {
                let sizes = match arguments {
                    [] => Vec::new(),
                    [sizes] => self.items(*sizes, "torch.Size")?.to_vec(),
                    more => return Err(format!("torch.Size with {} arguments", more.len())),
                };
                self.charge(sizes.len())?;
                self.push(Value::Tuple(sizes))
            }
            Global::Other => self.push(Value::Other),
            Global::DType | Global::Storage(_) => Err("this name is no function".into()),
        }
    }

    /// The tensor of `(storage, offset, size, stride, …)`.
    fn tensor(&self, arguments: &[Id]) -> Result<Tensor, String> {
        let &[storage, offset, size, stride, ..] = arguments else {
            return Err(format!(
                "a tensor of {} arguments, at least 4 expected",
                arguments.len()
            ));
        };
        let Value::Storage(storage) = *self.value(storage) else {
            let found = kind(self.value(storage));
            return Err(format!("a tensor: a storage expected, found {found}"));
        };
        let sizes = self.items(size, "a tensor's size")?;
        let strides = self.items(stride, "a tensor's stride")?;
        if sizes.len() != strides.len() || sizes.len() > MOST_DIMENSIONS {
            return Err(format!(
                "a tensor with {} sizes and {} strides, expected as many, at most {MOST_DIMENSIONS}",
                sizes.len(),
                strides.len()
            ));
        }
        let shape = sizes.iter().map(|id| self.as_size(*id, "a tensor's size"));
        let strides = strides.iter().map(|id| {
            let stride = self.as_size(*id, "a tensor's stride")?;
            isize::try_from(stride).map_err(|_| format!("a tensor's stride is {stride}"))
        });
        Ok(Tensor {
            storage,
            shape: shape.collect::<Result<_, _>>()?,
            strides: strides.collect::<Result<_, _>>()?,
            offset: self.as_size(offset, "a tensor's offset")?,
        })
    }

    /// Sets attributes. Only dicts have any here (a state dict's `_metadata`), which nobody reads.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.value(self.top()?) {
            Value::Dict(_) => Ok(()),
            other => Err(format!(
                "attributes for {}, expected for a dict",
                kind(other)
            )),
        }
    }

    /// The storage of `("storage", class, key, location, elements)`. Files before the zip form have
    /// a sixth part, for a storage that is a view of another.
    fn storage(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let parts = self.items(id, "a storage")?;
        let &[tag, class, key, _location, elements, ref view @ ..] = parts else {
            return Err(format!("a storage of {} parts, expected 5", parts.len()));
        };
        if self.as_text(tag)? != "storage" {
            return Err("a stored object that is no storage".into());
        }
        if view.iter().any(|part| *self.value(*part) != Value::None) {
            return Err("a storage that is a view of another is not read".into());
        }
        let element = match self.value(class) {
            Value::Global(Global::Storage(element)) => *element,
            other => return Err(format!("a storage's class expected, found {}", kind(other))),
        };
        let key = self.as_text(key)?;
        let elements = self.as_size(elements, "a storage's length")?;
        if elements.checked_mul(element.size).is_none() {
            return Err(format!(
                "a storage of {elements} {} does not fit in memory",
                element.name
            ));
        }
        let at = match self.by_key.get(key) {
            Some(&at) => {
                let known = &self.storages[at];
                if (known.element, known.elements) != (element, elements) {
                    return Err(format!(
                        "storage `{}` is {} {} here and was {} {}",
                        Printable(key),
                        elements,
                        element.name,
                        known.elements,
                        known.element.name
                    ));
                }
                at
            }
            None => {
                self.charge(4)?;
                self.by_key.insert(key, self.storages.len());
                self.storages.push(Storage {
                    key,
                    element,
                    elements,
                });
                self.storages.len() - 1
            }
        };
        self.push(Value::Storage(at))
    }
}

/// A value's kind in words.
fn kind(value: &Value<'_>) -> &'static str {
    match value {
        Value::None => "None",
        Value::Bool(_) => "a bool",
        Value::Int(_) | Value::Long(_) => "a number",
        Value::Text(_) => "text",
        Value::Tuple(_) => "a tuple",
        Value::List(_) => "a list",
        Value::Dict(_) => "a dict",
        Value::Global(_) => "a name",
        Value::Storage(_) => "a storage",
        Value::Tensor(_) => "a tensor",
        Value::Other => "another value",
    }
}
