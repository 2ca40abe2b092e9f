//! `datasets` and `test_datasets`: lists of files, all of one kind.

use super::super::tree::{Entry, Node, Value};
use super::{Writer, shown};

/// Axolotl's kinds of rows and ours.
const KINDS: &[(&str, &str)] = &[
    ("alpaca", "alpaca"),
    ("chat_template", "messages"),
    ("sharegpt", "sharegpt"),
    ("completion", "text"),
];

/// Keys of an entry that go to `data` as they are.
const SETTINGS: &[(&str, &str)] = &[
    ("roles_to_train", "data.roles_to_train"),
    ("train_on_eos", "data.train_on_eos"),
    ("chat_template", "data.chat_template"),
];

/// `datasets`.
pub(super) fn training(entry: &Entry, w: &mut Writer) {
    w.belongs(entry, "data");
    let Some(paths) = each(entry, w, true) else {
        return;
    };
    w.map(entry, "data.path", Value::List(paths));
}

/// `test_datasets`.
pub(super) fn validation(entry: &Entry, w: &mut Writer) {
    let Some(paths) = each(entry, w, false) else {
        return;
    };
    w.map(entry, "data.validation", Value::List(paths));
}

/// The paths of all entries; with `settings`, what else they say is written to `data`.
fn each(entry: &Entry, w: &mut Writer, settings: bool) -> Option<Vec<Node>> {
    let Value::List(items) = &entry.value.value else {
        let message = format!(
            "expected a list of datasets, got {}",
            shown(&entry.value.value)
        );
        w.fault(entry.value.place, &entry.key, message);
        return None;
    };
    let before = w.faults.len();
    if settings {
        same_settings(entry, items, w);
    }
    let mut paths = Vec::new();
    let mut kind: Option<String> = None;
    for (index, item) in items.iter().enumerate() {
        let name = format!("{}[{index}]", entry.key);
        let Value::Map(keys) = &item.value else {
            let message = format!(
                "expected a mapping with `path` and `type`, got {}",
                shown(&item.value)
            );
            w.fault(item.place, &name, message);
            continue;
        };
        let files = keys.iter().find(|key| key.key == "data_files");
        for key in keys {
            if !matches!(key.value.value, Value::Null) {
                one(
                    key,
                    &name,
                    files.is_some(),
                    settings,
                    (&mut paths, &mut kind),
                    w,
                );
            }
        }
        if !keys.iter().any(|key| key.key == "path") {
            w.fault(item.place, &name, "`path` is missing");
        }
        if settings && !keys.iter().any(|key| key.key == "type") {
            w.fault(item.place, &name, "`type` is missing");
        }
    }
    (w.faults.len() == before).then_some(paths)
}

/// Our `data` has one set of settings for all files: entries that differ in theirs are refused.
fn same_settings(entry: &Entry, items: &[Node], w: &mut Writer) {
    let of = |item: &Node| -> String {
        let Value::Map(keys) = &item.value else {
            return String::new();
        };
        let own = ["path", "data_files", "type", "split", "ds_type"];
        let others = keys.iter().filter(|key| !own.contains(&key.key.as_str()));
        let mut lines: Vec<String> = others
            .map(|key| format!("{}: {}", key.key, shown(&key.value.value)))
            .collect();
        lines.sort();
        lines.join(", ")
    };
    let Some((first, others)) = items.split_first() else {
        return;
    };
    for (index, item) in others.iter().enumerate() {
        let (here, there) = (of(item), of(first));
        if here != there {
            w.fault(
                item.place,
                &format!("{}[{}]", entry.key, index + 1),
                format!("all datasets must have the same settings: `{here}` is not `{there}` of the first"),
            );
        }
    }
}

/// One key of one entry.
fn one(
    key: &Entry,
    name: &str,
    has_files: bool,
    settings: bool,
    (paths, kind): (&mut Vec<Node>, &mut Option<String>),
    w: &mut Writer,
) {
    let full = format!("{name}.{}", key.key);
    let value = &key.value.value;
    let word = value.word().unwrap_or_default();
    match key.key.as_str() {
        "path" if has_files => {}
        "path" => paths.push(key.value.clone()),
        "data_files" => match value {
            Value::List(files) => paths.extend(files.iter().cloned()),
            _ => paths.push(key.value.clone()),
        },
        "type" => match KINDS.iter().find(|(theirs, _)| *theirs == word) {
            Some((_, ours)) => {
                if kind.as_ref().is_some_and(|other| *other != word) {
                    w.fault(key.value.place, &full, "all datasets must be of one type");
                }
                *kind = Some(word);
                if settings {
                    w.map(key, "data.format", Value::Text((*ours).to_owned()));
                }
            }
            None => {
                let known: Vec<&str> = KINDS.iter().map(|(theirs, _)| *theirs).collect();
                let message = format!("expected one of {}, got {}", known.join(", "), shown(value));
                w.fault(key.value.place, &full, message);
            }
        },
        "split" if word == "train" => {}
        "ds_type" if matches!(word.as_str(), "json" | "parquet" | "text") => {}
        "field" if settings => w.map(key, "data.fields.text", value.clone()),
        "field_messages" if settings => w.map(key, "data.fields.messages", value.clone()),
        "message_property_mappings" if settings => match value {
            Value::Map(names) => {
                for entry in names {
                    let path = format!("data.fields.{}", entry.key);
                    w.map(entry, &path, entry.value.value.clone());
                }
            }
            _ => w.fault(key.value.place, &full, "expected a mapping"),
        },
        other => match SETTINGS.iter().find(|(theirs, _)| *theirs == other) {
            Some((_, ours)) if settings => w.map(key, ours, value.clone()),
            Some(_) => {}
            None if !settings
                && matches!(
                    other,
                    "field" | "field_messages" | "message_property_mappings"
                ) => {}
            None => w.fault(
                key.key_place,
                &full,
                "this key of Axolotl's has no counterpart here: leave it out",
            ),
        },
    }
}
