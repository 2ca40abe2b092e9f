//! The file form before PyTorch 1.6: five pickles one after the other, then the storages.
//!
//! The pickles are a magic number, the protocol's version, facts of the writing system, the saved
//! object, and the keys of the storages in the order in which they follow. A storage is its number
//! of elements in 8 bytes, then the elements.

use std::collections::HashMap;

use super::machine::{Pickle, Value, run};
use crate::names::Printable;

/// 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

/// The saved object, and where the bytes of each of its storages start.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle<'_>, Vec<usize>), String> {
    let mut at = 0;
    let mut next = || {
        let pickle = run(&bytes[at..], at)?;
        at += pickle.length;
        Ok::<_, String>((pickle, at))
    };
    let (magic, _) = next()?;
    if value(&magic) != &Value::Long(&MAGIC) {
        return Err(
            "a pickle, but not of `torch.save`: it does not start with its magic number".into(),
        );
    }
    let (version, _) = next()?;
    if value(&version) != &Value::Int(VERSION) {
        return Err(format!(
            "the file's protocol version is not {VERSION}, the only one there has been"
        ));
    }
    let (system, _) = next()?;
    if let Value::Dict(facts) = value(&system) {
        let big = facts.iter().any(|(key, fact)| {
            system.values[*key as usize] == Value::Text("little_endian")
                && system.values[*fact as usize] != Value::Bool(true)
        });
        if big {
            return Err("the file was written with the high byte first, which is not read".into());
        }
    }
    let (object, _) = next()?;
    let (keys, mut at) = next()?;
    let Value::List(order) = value(&keys) else {
        return Err("the fifth pickle is no list of storages".into());
    };
    let known: HashMap<&str, usize> = object
        .storages
        .iter()
        .enumerate()
        .map(|(n, storage)| (storage.key, n))
        .collect();
    let mut starts = vec![None; object.storages.len()];
    for key in order {
        let Value::Text(key) = keys.values[*key as usize] else {
            return Err("a storage's key is not text".into());
        };
        let shown = Printable(key);
        let n = *known
            .get(key)
            .ok_or_else(|| format!("storage `{shown}` belongs to no tensor"))?;
        let storage = &object.storages[n];
        let Some((length, rest)) = bytes[at..].split_first_chunk::<8>() else {
            return Err(format!("the file ends before storage `{shown}`"));
        };
        let length = u64::from_le_bytes(*length);
        if length != storage.elements as u64 {
            return Err(format!(
                "storage `{shown}` has {length} elements at byte {at} and {} in the pickle",
                storage.elements
            ));
        }
        // Checked where the pickle named it.
        let size = storage.elements * storage.element.size;
        if size > rest.len() {
            return Err(format!(
                "storage `{shown}` should be {size} bytes long, but the file ends after {} of them",
                rest.len()
            ));
        }
        if starts[n].replace(at + 8).is_some() {
            return Err(format!("storage `{shown}` comes twice"));
        }
        at += 8 + size;
    }
    let complete = starts.iter().zip(&object.storages).map(|(start, storage)| {
        start.ok_or_else(|| format!("storage `{}` is not in the file", Printable(storage.key)))
    });
    let starts = complete.collect::<Result<Vec<_>, _>>()?;
    Ok((object, starts))
}

fn value<'p, 'a>(pickle: &'p Pickle<'a>) -> &'p Value<'a> {
    &pickle.values[pickle.root as usize]
}
