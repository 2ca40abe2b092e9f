//! Axolotl's flat dialect: a config with a top-level `base_model` is rewritten into our sections before it is checked.
//!
//! Values keep their places, so that a mistake is reported at the line of the Axolotl key that brought it. What has no
//! counterpart is an error that names the key; keys that cannot change the result are left out and listed. `table.rs`
//! says which keys become what, `rows.rs` reads `datasets`.

mod rows;
mod table;

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

/// A mistake: where, the key, what is wrong.
pub(super) type Fault = (Place, String, String);

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
        }
    }

    fn fault(&mut self, place: Place, key: &str, message: impl Into<String>) {
        self.faults.push((place, key.to_owned(), message.into()));
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
