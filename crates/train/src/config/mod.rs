//! One YAML file describes a run.
//!
//! [`load`] reads a file, applies `--set` overrides and returns a typed [`Config`] with every default filled in, or
//! every mistake at once with its line and column. What may be written is described once, in `sections/`; the parser
//! (`tree.rs`, `check.rs`, `cross.rs`), the [JSON Schema](schema()) and the [starter files](starter()) all read that
//! description. [`Config::to_yaml`] writes the resolved config of a run directory.
//!
//! ```
//! use entrenar_train::config;
//!
//! let text = "
//! task: regression
//! model: {architecture: mlp, hidden: 8}
//! data: {path: houses.csv, columns: {target: price}, validation: 0.2}
//! train: {epochs: 5}
//! optimizer: {learning_rat: 0.1}
//! ";
//! let error = config::parse(text.as_bytes(), "houses.yaml", ".".as_ref(), &[]).unwrap_err();
//! let message = error.to_string();
//! assert!(message.starts_with("houses.yaml:6:13: optimizer.learning_rat: unknown key; did you mean `learning_rate`?"));
//!
//! let set = ["optimizer={learning_rate: 0.1}".to_owned()];
//! let loaded = config::parse(text.as_bytes(), "houses.yaml", ".".as_ref(), &set).unwrap();
//! assert_eq!(loaded.config.optimizer.learning_rate(), 0.1);
//! ```

mod axolotl;
mod check;
mod cross;
pub mod describe;
mod errors;
mod schema;
mod sections;
mod starter;
mod tree;
mod write;

pub(crate) use errors::place_and_key;
pub use errors::{ConfigError, Problem, Warning};
pub use schema::schema;
pub use sections::*;
pub use starter::{DataHint, SCHEMA_LINE, starter};

use check::{Folders, check, problem};
use errors::Names;
use std::collections::BTreeMap;
use std::path::Path;
use tree::{Entry, Node, Place, SyntaxProblem, Value};

/// A config that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The typed config.
    pub config: Config,
    /// What is legal but probably not meant; for the caller to print, once.
    pub warnings: Vec<Warning>,
    /// For a config in Axolotl's dialect: what each of its keys became; for the caller to print.
    pub mapping: Vec<String>,
    /// Where the config itself wants the run directory (only Axolotl's dialect does), from the current directory.
    pub output: Option<std::path::PathBuf>,
    names: Names,
    places: BTreeMap<String, Place>,
}

impl Loaded {
    /// `file:line:column` of a key by its dotted path (or of the nearest section around it that was written, or the
    /// file), so that mistakes found later, such as a missing data file, point at the line that caused them.
    pub fn location(&self, path: &str) -> String {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return self.names.location(*place);
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return self.names.file.clone(),
            }
        }
    }
}

/// Reads a config file and applies `--set` overrides of the form `a.b=value`.
///
/// Relative paths in the file begin at its folder, those in `sets` at the current directory.
///
/// # Errors
/// Every mistake found, including a file that cannot be read.
pub fn load(path: &Path, sets: &[String]) -> Result<Loaded, ConfigError> {
    let name = path.display().to_string();
    let unreadable = |message: String| {
        let names = Names {
            file: name.clone(),
            sets: Vec::new(),
        };
        ConfigError {
            problems: vec![problem(&names, None, "", message)],
        }
    };
    // Not `std::fs::read`: a device or a huge file by mistake must not fill the memory.
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| {
            use std::io::Read;
            file.take(tree::MAX_BYTES as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| unreadable(format!("cannot read the config: {error}")))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    parse(&bytes, &name, folder, sets)
}

/// The same from memory: `name` stands for the file in messages, `folder` is where relative paths begin.
///
/// # Errors
/// Every mistake found.
pub fn parse(
    bytes: &[u8],
    name: &str,
    folder: &Path,
    sets: &[String],
) -> Result<Loaded, ConfigError> {
    let key_of = |set: &String| match set.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => key.trim().to_owned(),
        _ => set.trim().to_owned(),
    };
    let keys = sets.iter().map(key_of);
    let names = Names {
        file: name.to_owned(),
        sets: keys.collect(),
    };
    let mut problems = Vec::new();
    let syntax = |found: Vec<SyntaxProblem>| {
        found
            .into_iter()
            .map(|p| problem(&names, Some(p.place), &p.path, p.message))
            .collect::<Vec<_>>()
    };

    let mut root = match tree::read_bytes(bytes) {
        Ok(Some(root)) => Some(root),
        Ok(None) => {
            problems.push(problem(
                &names,
                None,
                "",
                "the config is empty: start with `task: …`, or see `entrenar init`".to_owned(),
            ));
            None
        }
        Err(found) => {
            problems.extend(syntax(found));
            None
        }
    };
    if let Some(Node {
        value: Value::Null, ..
    }) = root
    {
        problems.push(problem(
            &names,
            None,
            "",
            "the config is empty: start with `task: …`, or see `entrenar init`".to_owned(),
        ));
        root = None;
    }
    for (index, set) in sets.iter().enumerate() {
        match override_of(set, index) {
            Ok((path, node)) => {
                if let Some(root) = &mut root
                    && let Err(message) = put(root, &path, node, index)
                {
                    problems.push(problem(
                        &names,
                        Some(Place::Set(index)),
                        &path.join("."),
                        message,
                    ));
                }
            }
            Err(found) => problems.extend(syntax(found)),
        }
    }
    let Some(mut root) = root else {
        return Err(finish(problems));
    };
    let (mut mapping, mut output) = (Vec::new(), None);
    match axolotl::translate(&root) {
        None => {}
        Some(Ok(translated)) => {
            (root, mapping) = (translated.root, translated.mapping);
            let from = |place| match place {
                Place::File { .. } => folder,
                Place::Set(_) => Path::new("."),
            };
            output = translated
                .output
                .map(|(path, place)| without_dots(&from(place).join(path)));
        }
        Some(Err(faults)) => {
            for (place, key, message) in faults {
                problems.push(problem(&names, place, &key, message));
            }
            return Err(finish(problems));
        }
    }
    cross::name_pretrained(&mut root);

    let folders = Folders {
        file: folder.to_owned(),
        set: Path::new(".").to_owned(),
    };
    let mut checked = check(&root, &names, &folders);
    problems.append(&mut checked.problems);
    cross::fill_rhythms(&mut checked.resolved);
    let places = checked.places;
    cross::fill_tokenizer(&mut checked.resolved, places.contains_key("data.tokenizer"));
    cross::cross_check(&checked.resolved, &mut |path, message| {
        let place = place_of(&places, path);
        problems.push(problem(&names, place, path, message));
    });
    if !problems.is_empty() {
        return Err(finish(problems));
    }
    let config: Config = match serde_json::from_value(checked.resolved) {
        Ok(config) => config,
        // The description and the structs disagree; tests keep this from happening.
        Err(error) => {
            let message = format!(
                "internal error, the description of the config does not fit its type: {error}"
            );
            return Err(finish(vec![problem(&names, None, "", message)]));
        }
    };
    let mut loaded = Loaded {
        config,
        warnings: checked.warnings,
        mapping,
        output,
        names,
        places,
    };
    let found = warnings(&loaded);
    loaded.warnings.extend(found);
    Ok(loaded)
}

/// The description of the whole config.
pub fn describe_root() -> &'static describe::Section {
    &sections::ROOT
}

/// YAML text as JSON, with nothing checked or filled in: what a JSON Schema validator looks at.
///
/// # Errors
/// Text that is not YAML; an empty text is null.
pub fn read_as_json(text: &str) -> Result<serde_json::Value, ConfigError> {
    match tree::read(text, None) {
        Ok(node) => Ok(node.map_or(serde_json::Value::Null, |node| schema::plain(&node.value))),
        Err(found) => {
            let names = Names {
                file: "text".to_owned(),
                sets: Vec::new(),
            };
            let problems = found
                .into_iter()
                .map(|p| problem(&names, Some(p.place), &p.path, p.message));
            Err(finish(problems.collect()))
        }
    }
}

/// The place of a key or of its nearest written ancestor.
fn place_of(places: &BTreeMap<String, Place>, path: &str) -> Option<Place> {
    let mut path = path;
    loop {
        if let Some(place) = places.get(path) {
            return Some(*place);
        }
        path = &path[..path.rfind(['.', '['])?];
    }
}

fn finish(mut problems: Vec<Problem>) -> ConfigError {
    problems.sort_by_key(|problem| problem.order);
    ConfigError { problems }
}

/// Splits `a.b=value`; the value is YAML, nothing means null.
fn override_of(set: &str, index: usize) -> Result<(Vec<String>, Node), Vec<SyntaxProblem>> {
    let place = Place::Set(index);
    let fail = |message: String| {
        Err(vec![SyntaxProblem {
            place,
            path: String::new(),
            message,
        }])
    };
    let Some((key, value)) = set.split_once('=') else {
        return fail("expected KEY=VALUE, such as train.batch_size=32".to_owned());
    };
    let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        return fail("expected a key such as train.batch_size before the `=`".to_owned());
    }
    match tree::read(value, Some(index)) {
        Ok(node) => Ok((
            path,
            node.unwrap_or(Node {
                place,
                value: Value::Null,
            }),
        )),
        Err(mut found) => {
            for problem in &mut found {
                problem
                    .message
                    .push_str("; text with special characters needs quotes inside: KEY='\"text\"'");
            }
            Err(found)
        }
    }
}

/// Puts a value into the tree, making the sections on the way.
fn put(root: &mut Node, path: &[String], value: Node, index: usize) -> Result<(), String> {
    let place = Place::Set(index);
    let mut node = root;
    for (depth, key) in path.iter().enumerate() {
        if matches!(node.value, Value::Null) {
            *node = Node {
                place,
                value: Value::Map(Vec::new()),
            };
        }
        let held = node.value.describe();
        let Value::Map(entries) = &mut node.value else {
            return Err(format!(
                "`{}` is not a section, it holds {held}",
                path[..depth].join(".")
            ));
        };
        let position = match entries.iter().position(|entry| &entry.key == key) {
            Some(position) => position,
            None => {
                entries.push(Entry {
                    key: key.clone(),
                    key_place: place,
                    value: Node {
                        place,
                        value: Value::Null,
                    },
                });
                entries.len() - 1
            }
        };
        let entry = &mut entries[position];
        if depth + 1 == path.len() {
            entry.key_place = place;
            entry.value = value;
            return Ok(());
        }
        node = &mut entry.value;
    }
    Ok(())
}

/// A path without its `.` parts, as a person would write it.
fn without_dots(path: &Path) -> std::path::PathBuf {
    let parts = path.components();
    let tidy: std::path::PathBuf = parts
        .filter(|part| *part != std::path::Component::CurDir)
        .collect();
    match tidy.as_os_str().is_empty() {
        true => Path::new(".").to_owned(),
        false => tidy,
    }
}

/// A learning rate below this hardly ever trains anything.
pub(crate) const TINY_LEARNING_RATE: f64 = 1e-6;

fn warnings(loaded: &Loaded) -> Vec<Warning> {
    let mut out = Vec::new();
    let mut warn = |path: &str, message: String| {
        out.push(Warning {
            location: loaded.location(path),
            path: path.to_owned(),
            message,
        });
    };
    let learning_rate = loaded.config.optimizer.learning_rate();
    if learning_rate < TINY_LEARNING_RATE {
        warn(
            "optimizer.learning_rate",
            format!(
                "{learning_rate:?} is below {TINY_LEARNING_RATE:?}: the model will hardly change"
            ),
        );
    }
    if loaded.config.data.validation.is_none() {
        warn(
            "data.validation",
            "no validation data: overfitting will not show, and the last weights count as the best"
                .to_owned(),
        );
    }
    out
}
