//! Saving and loading by name: the list of a module's cells, and the checks of `load_state`.
//!
//! Loading is all or nothing: everything is checked before the first value changes, and one
//! message lists every name that does not fit.

use std::collections::HashMap;

use entrenar_base::{Array, Error, ErrorKind, Result};
use entrenar_core::{Aval, Tensor};

use crate::module::{ById, Item, Visitor};
use crate::{Buffer, Parameter, Parameters};

/// A parameter or buffer of a module.
pub(crate) enum Cell {
    Parameter(Parameter),
    Buffer(Buffer),
}

impl Cell {
    pub fn parameter(&self) -> Option<Parameter> {
        match self {
            Cell::Parameter(p) => Some(p.clone()),
            Cell::Buffer(_) => None,
        }
    }

    pub fn buffer(&self) -> Option<Buffer> {
        match self {
            Cell::Parameter(_) => None,
            Cell::Buffer(b) => Some(b.clone()),
        }
    }

    pub fn array(&self) -> Array {
        match self {
            Cell::Parameter(p) => p.array(),
            Cell::Buffer(b) => b.value().array().clone(),
        }
    }

    fn id(&self) -> u64 {
        match self {
            Cell::Parameter(p) => p.id(),
            Cell::Buffer(b) => b.id(),
        }
    }

    fn set(&self, value: &Tensor) -> Result<()> {
        match self {
            Cell::Parameter(p) => p.set(value),
            Cell::Buffer(b) => b.set(value),
        }
    }
}

/// A cell with all its names.
pub(crate) struct Entry {
    pub name: String,
    pub aliases: Vec<String>,
    pub cell: Cell,
}

/// Every cell of a module, in field order.
pub(crate) fn entries<M: Parameters + ?Sized>(module: &M) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut seen = ById::new();
    let mut tell = |path: &str, item: Item<'_>| {
        let cell = match item {
            Item::Parameter(p) => Cell::Parameter(p.clone()),
            Item::Buffer(b) => Cell::Buffer(b.clone()),
        };
        if let Some(&at) = seen.get(&cell.id()) {
            entries[at].aliases.push(path.to_string());
            return;
        }
        seen.insert(cell.id(), entries.len());
        entries.push(Entry {
            name: path.to_string(),
            aliases: Vec::new(),
            cell,
        });
    };
    module.visit(&mut Visitor::new(&mut tell));
    entries
}

/// What [`Parameters::load_state_with`] may leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Names of the module may be absent from the state; they keep their values.
    pub allow_missing: bool,
    /// The state may hold names that the module does not have; they are ignored.
    pub allow_unexpected: bool,
}

/// What [`Parameters::load_state_with`] left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Names of the module that the state lacks.
    pub missing: Vec<String>,
    /// Names of the state that the module lacks.
    pub unexpected: Vec<String>,
}

/// Up to twenty names, then how many more.
pub(crate) fn shorten<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(20).map(AsRef::as_ref).collect();
    let more = names.len() - shown.len();
    let tail = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    shown.join(", ") + &tail
}

/// The value as the cell wants it, or why it does not fit.
fn fitted(cell: &Cell, value: &Array) -> Result<Tensor, String> {
    let (want, got) = (Aval::of(&cell.array()), Aval::of(value));
    let kinds_agree = want.dtype.is_float() == got.dtype.is_float();
    if want.shape != got.shape
        || (want.dtype != got.dtype && !(kinds_agree && want.dtype.is_float()))
    {
        return Err(format!("{got:?} instead of {want:?}"));
    }
    Ok(Tensor::from(if want.dtype == got.dtype {
        value.clone()
    } else {
        value.cast(want.dtype)
    }))
}

pub(crate) fn load(
    entries: &[Entry],
    state: &[(String, Array)],
    options: LoadOptions,
) -> Result<LoadReport> {
    let mut given: HashMap<&str, &Array> = HashMap::new();
    let mut wrong: Vec<String> = Vec::new();
    for (name, value) in state {
        if given.insert(name, value).is_some() {
            wrong.push(format!("{name} (given twice)"));
        }
    }
    let mut report = LoadReport::default();
    let mut found: Vec<(&Entry, Tensor)> = Vec::new();
    for entry in entries {
        let names = std::iter::once(&entry.name).chain(&entry.aliases);
        let mut values: Vec<(&str, Tensor)> = Vec::new();
        for name in names {
            match given.remove(name.as_str()).map(|v| fitted(&entry.cell, v)) {
                None => {}
                Some(Ok(value)) => values.push((name, value)),
                Some(Err(why)) => wrong.push(format!("{name} ({why})")),
            }
        }
        // Files of other software repeat tied weights; they must then agree.
        if let [(first, a), rest @ ..] = values.as_slice()
            && let Some((other, _)) = rest.iter().find(|(_, b)| !same_bits(a.array(), b.array()))
        {
            wrong.push(format!("{other} (tied to {first}, but its values differ)"));
        }
        match values.into_iter().next() {
            Some((_, value)) => found.push((entry, value)),
            None if wrong.is_empty() || !mentions(&wrong, entry) => {
                report.missing.push(entry.name.clone());
            }
            None => {}
        }
    }
    report.unexpected = state
        .iter()
        .filter(|(name, _)| given.contains_key(name.as_str()))
        .map(|(name, _)| name.clone())
        .collect();
    let mut faults = Vec::new();
    if !options.allow_missing && !report.missing.is_empty() {
        faults.push(format!("missing: {}", shorten(&report.missing)));
    }
    if !options.allow_unexpected && !report.unexpected.is_empty() {
        faults.push(format!("unexpected: {}", shorten(&report.unexpected)));
    }
    if !wrong.is_empty() {
        faults.push(format!("mismatched: {}", shorten(&wrong)));
    }
    if !faults.is_empty() {
        return Err(Error::new(
            ErrorKind::Argument,
            format!(
                "[load_state] the names do not fit this model; {}",
                faults.join("; ")
            ),
        ));
    }
    for (entry, value) in found {
        entry.cell.set(&value)?;
    }
    Ok(report)
}

fn mentions(wrong: &[String], entry: &Entry) -> bool {
    std::iter::once(&entry.name)
        .chain(&entry.aliases)
        .any(|name| wrong.iter().any(|w| w.starts_with(&format!("{name} ("))))
}

fn same_bits(a: &Array, b: &Array) -> bool {
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    a.len() == b.len() && a.iter().zip(&b).all(|(x, y)| x.to_bits() == y.to_bits())
}
