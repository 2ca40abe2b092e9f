//! Axolotl's flat dialect: a config with a top-level `base_model` is rewritten into our sections before it is checked.
//!
//! Values keep their places, so that a mistake is reported at the line of the Axolotl key that brought it. What has no
//! counterpart is an error that names the key; keys that cannot change the result are left out and listed. `table.rs`
//! says which keys become what, `rows.rs` reads `datasets`.

mod rows;
mod table;

use std::collections::BTreeSet;

use super::tree::{Entry, Node, Place, Value};

/// What came of a config in the dialect.
pub(super) struct Translated {
    /// The same config in our sections.
    pub root: Node,
    /// One line per key: what it became.
    pub mapping: Vec<String>,
    /// `output_dir`, as written.
    pub output: Option<(String, Place)>,
}

/// A mistake: where (nowhere for a missing key of the top level), the key, what is wrong.
pub(super) type Fault = (Option<Place>, String, String);

/// Rewrites a config that has `base_model`; `None` for one that has not.
///
/// # Errors
/// Every key that cannot be served.
pub(super) fn translate(root: &Node) -> Option<Result<Translated, Vec<Fault>>> {
    let Value::Map(entries) = &root.value else {
        return None;
    };
    let base = entries.iter().find(|entry| entry.key == "base_model")?;
    let mut writer = Writer::new(base.key_place);
    for ours in ["task", "model", "data", "train"] {
        if let Some(entry) = entries.iter().find(|entry| entry.key == ours) {
            writer.fault(
                entry.key_place,
                ours,
                format!("`{ours}` cannot be mixed with `base_model` (Axolotl's dialect): write the one or the other"),
            );
        }
    }
    if writer.faults.is_empty() {
        table::translate(entries, &mut writer);
    }
    Some(if writer.faults.is_empty() {
        Ok(Translated {
            root: writer.root,
            mapping: writer.mapping,
            output: writer.output,
        })
    } else {
        Err(writer.faults)
    })
}

/// Builds the config in our sections.
struct Writer {
    root: Node,
    mapping: Vec<String>,
    faults: Vec<Fault>,
    output: Option<(String, Place)>,
    /// Sections that only defaults made so far: nothing in the file brought them.
    assumed: BTreeSet<String>,
}

impl Writer {
    fn new(place: Place) -> Self {
        Self {
            root: Node {
                place,
                value: Value::Map(Vec::new()),
            },
            mapping: Vec::new(),
            faults: Vec::new(),
            output: None,
            assumed: BTreeSet::new(),
        }
    }

    fn fault(&mut self, place: Place, key: &str, message: impl Into<String>) {
        self.faults
            .push((Some(place), key.to_owned(), message.into()));
    }

    /// A key of the top level that must be there.
    fn missing(&mut self, key: &str, expected: &str) {
        let message = format!("this key is missing: expected {expected}");
        self.faults.push((None, key.to_owned(), message));
    }

    /// Sets a key of ours, by its dotted path, to a value; the last one set counts.
    fn set(&mut self, path: &str, value: Node) {
        let mut node = &mut self.root;
        let place = value.place;
        let parts: Vec<&str> = path.split('.').collect();
        for (depth, part) in parts.iter().enumerate() {
            let Value::Map(entries) = &mut node.value else {
                return; // Sections are only ever made here, as mappings.
            };
            let position = match entries.iter().position(|entry| entry.key == *part) {
                Some(position) => position,
                None => {
                    entries.push(Entry {
                        key: (*part).to_owned(),
                        key_place: place,
                        value: Node {
                            place,
                            value: Value::Map(Vec::new()),
                        },
                    });
                    entries.len() - 1
                }
            };
            if depth + 1 == parts.len() {
                entries[position].value = value;
                return;
            }
            node = &mut entries[position].value;
        }
    }

    /// [`Writer::set`] with a line of the mapping.
    fn map(&mut self, from: &Entry, path: &str, value: Value) {
        self.mapping
            .push(format!("{} -> {path}: {}", from.key, shown(&value)));
        let place = from.value.place;
        self.set(path, Node { place, value });
        if let Some((section, _)) = path.split_once('.') {
            self.belongs(from, section);
        }
    }

    /// A mistake in a section is reported at the first key of the file that belongs to it.
    fn belongs(&mut self, from: &Entry, section: &str) {
        if self.assumed.remove(section)
            && let Value::Map(sections) = &mut self.root.value
            && let Some(entry) = sections.iter_mut().find(|entry| entry.key == section)
        {
            entry.key_place = from.key_place;
            entry.value.place = from.key_place;
        }
    }

    /// [`Writer::set`] of what holds where the file says nothing.
    fn assume(&mut self, path: &str, value: Value) {
        let place = self.root.place;
        if let Some((section, _)) = path.split_once('.') {
            self.assumed.insert(section.to_owned());
        }
        self.set(path, Node { place, value });
    }

    /// [`Writer::set`] of what Axolotl does where the file says nothing and our own default would differ, with a line
    /// of the mapping.
    fn default(&mut self, path: &str, value: Value) {
        self.mapping
            .push(format!("(Axolotl's default) -> {path}: {}", shown(&value)));
        let place = self.root.place;
        self.set(path, Node { place, value });
    }

    /// A key that changes nothing here.
    fn leave_out(&mut self, from: &Entry, why: &str) {
        self.mapping.push(format!("{}: {why}", from.key));
    }
}

/// A value in one line of YAML.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Text(text) => super::tree::shorten(text),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(|item| shown(&item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|entry| format!("{}: {}", entry.key, shown(&entry.value.value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        scalar => scalar.word().unwrap_or_default(),
    }
}
