//! Walks a YAML tree along the description: every mistake becomes a [`Problem`], every absent key its default.
//!
//! The outcome is one JSON value with nothing left open, from which serde builds the typed config. Relations between
//! keys of different sections are in `cross.rs`.

use super::describe::{Absent, Choice, Field, Kind, Reserved, Rule, Section, When, Yaml};
use super::errors::{Names, Problem, Warning};
use super::sections::{ROOT, TASKS};
use super::tree::{self, Entry, Node, Place, Value, shorten};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// What a walk finds.
pub(super) struct Checked {
    /// The resolved config; trustworthy only where `problems` is empty.
    pub resolved: Json,
    /// Every mistake.
    pub problems: Vec<Problem>,
    /// Oddities seen on the way.
    pub warnings: Vec<Warning>,
    /// Where each given key stands, by dotted path.
    pub places: BTreeMap<String, Place>,
}

/// Folders against which relative paths are resolved.
pub(super) struct Folders {
    /// For paths in the file.
    pub file: PathBuf,
    /// For paths in `--set`.
    pub set: PathBuf,
}

/// Checks a whole config.
pub(super) fn check(root: &Node, names: &Names, folders: &Folders) -> Checked {
    let mut checker = Checker {
        names,
        folders,
        task: task_of(root),
        problems: Vec::new(),
        warnings: Vec::new(),
        places: BTreeMap::new(),
    };
    let resolved = match &root.value {
        Value::Map(entries) => Json::Object(checker.section(&ROOT, entries, "", None)),
        other => {
            let message = format!(
                "expected sections such as `task: language-model`, got {}",
                other.describe()
            );
            checker.report(Some(root.place), "", message);
            Json::Object(Map::new())
        }
    };
    Checked {
        resolved,
        problems: checker.problems,
        warnings: checker.warnings,
        places: checker.places,
    }
}

/// The task, where it is one of the known ones: other keys depend on it, wherever in the file it stands.
fn task_of(root: &Node) -> Option<String> {
    let Value::Map(entries) = &root.value else {
        return None;
    };
    let word = entries
        .iter()
        .find(|entry| entry.key == "task")?
        .value
        .value
        .word()?;
    TASKS.iter().any(|task| task.name == word).then_some(word)
}

struct Checker<'a> {
    names: &'a Names,
    folders: &'a Folders,
    task: Option<String>,
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
    places: BTreeMap<String, Place>,
}

/// Values of the keys of one section that were understood so far, for [`When`].
type Siblings = BTreeMap<&'static str, String>;

impl Checker<'_> {
    /// Adds a problem and hands it out for a suggestion or a list of allowed values. No place means the file.
    fn report(&mut self, place: Option<Place>, path: &str, message: String) -> &mut Problem {
        let problem = problem(self.names, place, path, message);
        self.problems.push(problem);
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    /// Notes where a value and the parts of it stand.
    fn remember(&mut self, path: &str, node: &Node) {
        self.places.insert(path.to_owned(), node.place);
        match &node.value {
            Value::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.remember(&format!("{path}[{i}]"), item);
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    self.remember(&join(path, &entry.key), &entry.value);
                }
            }
            _ => {}
        }
    }

    fn lookup(&self, siblings: &Siblings, key: &str) -> Option<String> {
        if key == "task" {
            self.task.clone()
        } else {
            siblings.get(key).cloned()
        }
    }

    fn applies(&self, field: &Field, siblings: &Siblings) -> bool {
        field
            .when
            .iter()
            .all(|when| when.holds(&|key| self.lookup(siblings, key)))
    }

    /// Checks the keys of a section; `place` is where the section's own key stands, if it was given.
    fn section(
        &mut self,
        section: &'static Section,
        entries: &[Entry],
        path: &str,
        place: Option<Place>,
    ) -> Map<String, Json> {
        let mut out = Map::new();
        let mut siblings = Siblings::new();
        for field in section.fields {
            let path = join(path, field.name);
            let applies = self.applies(field, &siblings);
            // A key that depends on a mistaken one may be given, but is not missed.
            let known = |when: &When| self.lookup(&siblings, when.key).is_some();
            let certain = applies && field.when.iter().all(known);
            let given = entries.iter().find(|entry| entry.key == field.name);
            let value = match given {
                Some(entry) if self.is_unset(field, entry, &path) => {
                    if certain {
                        self.absent(field, &siblings, &path, Some(entry.key_place))
                    } else {
                        None
                    }
                }
                Some(entry) => {
                    self.remember(&path, &entry.value);
                    if applies {
                        self.field(field, entry, &path)
                    } else {
                        self.misplaced(field, &siblings, entry, &path);
                        None
                    }
                }
                None if certain => self.absent(field, &siblings, &path, place),
                None => None,
            };
            if let Some(value) = value {
                let word = match &value {
                    Json::String(text) => Some(text.clone()),
                    Json::Bool(b) => Some(b.to_string()),
                    _ => None,
                };
                if let Some(word) = word {
                    siblings.insert(field.name, word);
                }
                out.insert(field.name.to_owned(), value);
            }
        }
        for entry in entries {
            if section.fields.iter().all(|field| field.name != entry.key) {
                self.unknown_key(section, entry, path, &siblings);
            }
        }
        for rule in section.rules {
            self.rule(rule, entries, path, place);
        }
        out
    }

    /// `key:` with nothing behind it leaves a key unset; for a plain section it means "all defaults".
    fn is_unset(&mut self, field: &Field, entry: &Entry, path: &str) -> bool {
        if !matches!(entry.value.value, Value::Null) {
            return false;
        }
        let section = matches!(field.kind, Kind::Section(_));
        if section
            && matches!(field.absent, Absent::Unset(_))
            && matches!(entry.key_place, Place::File { .. })
        {
            self.warnings.push(Warning {
                location: self.names.location(entry.key_place),
                path: path.to_owned(),
                message:
                    "is empty and stays switched off; write `{}` to switch it on with its defaults"
                        .to_owned(),
            });
        }
        true
    }

    fn field(&mut self, field: &Field, entry: &Entry, path: &str) -> Option<Json> {
        if let Some(word) = entry.value.value.word()
            && let Some(Reserved { name, why }) =
                field.reserved.iter().find(|reserved| reserved.name == word)
        {
            let allowed = self.words(&field.kind);
            self.report(Some(entry.value.place), path, format!("`{name}` {why}"))
                .allowed = allowed;
            return None;
        }
        self.value(&field.kind, &entry.value, path, Some(entry.key_place))
    }

    /// A key that was not given, or given as null.
    fn absent(
        &mut self,
        field: &Field,
        siblings: &Siblings,
        path: &str,
        place: Option<Place>,
    ) -> Option<Json> {
        let lookup = |key: &str| self.lookup(siblings, key);
        let default = match field.absent {
            Absent::Unset(_) => return None,
            Absent::Required(_) => None,
            Absent::Default(yaml) => {
                let text = yaml.text(&lookup);
                // The key that decides was wrong itself: its own message is enough.
                if let (None, Yaml::By { key, .. }) = (text, yaml)
                    && lookup(key).is_none()
                {
                    return None;
                }
                text
            }
        };
        let Some(default) = default else {
            // The keys inside say more than "missing section".
            if let Kind::Section(section) = &field.kind {
                return Some(Json::Object(self.section(section, &[], path, place)));
            }
            let allowed = self.words(&field.kind);
            let message = match &field.kind {
                Kind::Choice(_) => "this key is missing".to_owned(),
                kind => format!("this key is missing: expected {kind}"),
            };
            self.report(place, path, message).allowed = allowed;
            return None;
        };
        match tree::read(default, None) {
            Ok(Some(node)) => self.value(&field.kind, &node, path, place),
            // Every default is read in a test, so this says that the description is wrong, not the user.
            _ => {
                self.report(
                    place,
                    path,
                    format!("the built-in default `{default}` is not valid YAML"),
                );
                None
            }
        }
    }

    /// A known key whose conditions do not hold.
    fn misplaced(&mut self, field: &Field, siblings: &Siblings, entry: &Entry, path: &str) {
        let failed = field
            .when
            .iter()
            .find(|when| !when.holds(&|key| self.lookup(siblings, key)));
        let Some(when) = failed else { return };
        let found = self.lookup(siblings, when.key).unwrap_or_default();
        let key = match path.rsplit_once('.') {
            Some((parent, _)) if when.key != "task" => join(parent, when.key),
            _ => when.key.to_owned(),
        };
        let wanted: Vec<String> = when
            .values
            .iter()
            .map(|value| format!("`{value}`"))
            .collect();
        let message = format!(
            "this key needs {key} {}, here it is `{found}`",
            wanted.join(" or ")
        );
        self.report(Some(entry.key_place), path, message);
    }

    fn unknown_key(
        &mut self,
        section: &'static Section,
        entry: &Entry,
        path: &str,
        siblings: &Siblings,
    ) {
        let full = join(path, &shorten(&entry.key));
        if let Some(reserved) = section
            .reserved
            .iter()
            .find(|reserved| reserved.name == entry.key)
        {
            self.report(
                Some(entry.key_place),
                &full,
                format!("`{}` {}", reserved.name, reserved.why),
            );
            return;
        }
        if entry.key == "<<" {
            let message = "merge keys are not part of YAML 1.2: write the keys out".to_owned();
            self.report(Some(entry.key_place), &full, message);
            return;
        }
        let fields: Vec<&Field> = section
            .fields
            .iter()
            .filter(|field| self.applies(field, siblings))
            .collect();
        let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
        let suggestion = fields
            .iter()
            .find(|field| field.hints.contains(&entry.key.as_str()))
            .map(|field| field.name.to_owned())
            .or_else(|| nearest(&entry.key, &names))
            .or_else(|| elsewhere(&entry.key));
        let problem = self.report(Some(entry.key_place), &full, "unknown key".to_owned());
        problem.suggestion = suggestion;
        problem.allowed = names.into_iter().map(str::to_owned).collect();
    }

    fn rule(&mut self, rule: &Rule, entries: &[Entry], path: &str, place: Option<Place>) {
        let (keys, needed) = match *rule {
            Rule::ExactlyOne(keys) => (keys, true),
            Rule::AtMostOne(keys) => (keys, false),
        };
        let given: Vec<&Entry> = entries
            .iter()
            .filter(|entry| {
                keys.contains(&entry.key.as_str()) && !matches!(entry.value.value, Value::Null)
            })
            .collect();
        let list = keys
            .iter()
            .map(|key| format!("`{key}`"))
            .collect::<Vec<_>>();
        match given.as_slice() {
            [] if needed => {
                self.report(
                    place,
                    path,
                    format!("one of {} must be given", list.join(" and ")),
                );
            }
            [first, second, ..] => {
                let other = self.names.location(first.key_place);
                let message = format!(
                    "only one of {} may be given, and `{}` is at {other}",
                    list.join(" and "),
                    first.key
                );
                self.report(Some(second.key_place), &join(path, &second.key), message);
            }
            _ => {}
        }
    }

    /// Checks one value against a kind. `header` is the place of its key, for keys missing inside it.
    fn value(
        &mut self,
        kind: &Kind,
        node: &Node,
        path: &str,
        header: Option<Place>,
    ) -> Option<Json> {
        match (kind, &node.value) {
            (Kind::Boolean, Value::Boolean(b)) => Some(Json::Bool(*b)),
            (Kind::Integer(low, high), Value::Integer(i)) if (low..=high).contains(&i) => {
                Some(Json::from(*i))
            }
            // `1e4` is a whole number for JSON Schema too.
            (Kind::Integer(low, high), Value::Float(x, _))
                if x.fract() == 0.0 && x.abs() < 9.0e15 && (low..=high).contains(&&(*x as i64)) =>
            {
                Some(Json::from(*x as i64))
            }
            (Kind::Number(range), Value::Integer(_) | Value::Float(..)) => {
                let x = match node.value {
                    Value::Integer(i) => i as f64,
                    Value::Float(x, _) => x,
                    _ => f64::NAN,
                };
                if range.contains(x) {
                    Some(Json::from(x))
                } else {
                    self.mismatch(kind, node, path)
                }
            }
            (Kind::Text, Value::Text(text)) => Some(Json::from(text.as_str())),
            (Kind::Choice(choices), Value::Text(text)) => {
                self.choice(choices, text, node.place, path)
            }
            (Kind::ModelPath, Value::Text(text)) => self.model_path(text, node.place, path),
            (Kind::Paths, Value::Text(text)) => {
                Some(Json::Array(vec![self.path(text, node.place, path)?]))
            }
            (Kind::Paths, Value::List(items)) if !items.is_empty() => {
                let mut out = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    match &item.value {
                        Value::Text(text) => {
                            out.extend(self.path(text, item.place, &format!("{path}[{i}]")))
                        }
                        other => {
                            let message = format!("expected a path, got {}", other.describe());
                            self.report(Some(item.place), &format!("{path}[{i}]"), message);
                        }
                    }
                }
                Some(Json::Array(out))
            }
            (Kind::List { item, fewest, most }, Value::List(items)) => {
                if (*fewest..=*most).contains(&items.len()) {
                    Some(self.list(item, items, path))
                } else {
                    let message = format!("expected {kind}, got {} elements", items.len());
                    self.report(Some(node.place), path, message);
                    None
                }
            }
            (Kind::OneOrMore(item), Value::List(items)) if !items.is_empty() => {
                Some(self.list(item, items, path))
            }
            (Kind::OneOrMore(item), other) if shape_fits(item, other) => {
                Some(Json::Array(vec![self.value(item, node, path, header)?]))
            }
            (Kind::Table(item), Value::Map(entries)) => {
                let mut out = Map::new();
                for entry in entries {
                    let path = join(path, &shorten(&entry.key));
                    if let Some(value) =
                        self.value(item, &entry.value, &path, Some(entry.key_place))
                    {
                        out.insert(entry.key.clone(), value);
                    }
                }
                Some(Json::Object(out))
            }
            (Kind::Either(kinds), value) => match kinds.iter().find(|kind| shape_fits(kind, value))
            {
                Some(kind) => self.value(kind, node, path, header),
                None => self.mismatch(kind, node, path),
            },
            (Kind::Section(section), Value::Map(entries)) => {
                Some(Json::Object(self.section(section, entries, path, header)))
            }
            _ => self.mismatch(kind, node, path),
        }
    }

    fn list(&mut self, item: &Kind, items: &[Node], path: &str) -> Json {
        let mut out = Vec::new();
        for (i, node) in items.iter().enumerate() {
            out.extend(self.value(item, node, &format!("{path}[{i}]"), Some(node.place)));
        }
        Json::Array(out)
    }

    /// The allowed values of a choice; nothing for other kinds.
    fn words(&self, kind: &Kind) -> Vec<String> {
        match kind {
            Kind::Choice(choices) => allowed(choices, self.task.as_deref()),
            _ => Vec::new(),
        }
    }

    fn mismatch(&mut self, kind: &Kind, node: &Node, path: &str) -> Option<Json> {
        let mut message = format!("expected {kind}, got {}", node.value.describe());
        let mut suggestion = None;
        match (kind, &node.value) {
            (Kind::Text, Value::Integer(_) | Value::Float(..) | Value::Boolean(_)) => {
                message.push_str(": put it in quotes");
            }
            (Kind::Integer(..) | Kind::Number(_), Value::Text(text))
                if text.ends_with(|c: char| c.is_ascii_digit())
                    && text.replace('_', "").parse::<f64>().is_ok() =>
            {
                message.push_str(if text.contains('_') {
                    ": leave out the underscores"
                } else {
                    ": leave out the quotes"
                });
            }
            (Kind::Integer(..) | Kind::Number(_), Value::Float(x, text))
                if x.abs() > 9.0e15 && text.ends_with(|c: char| c.is_ascii_digit()) =>
            {
                message.push_str(": it is too large");
            }
            (Kind::Boolean, Value::Text(text)) => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "y" | "true" => suggestion = Some("true".to_owned()),
                "no" | "off" | "n" | "false" => suggestion = Some("false".to_owned()),
                _ => {}
            },
            _ => {}
        }
        let allowed = self.words(kind);
        let problem = self.report(Some(node.place), path, message);
        problem.suggestion = suggestion;
        problem.allowed = allowed;
        None
    }

    fn choice(
        &mut self,
        choices: &'static [Choice],
        text: &str,
        place: Place,
        path: &str,
    ) -> Option<Json> {
        let task = self.task.clone();
        let allowed = allowed(choices, task.as_deref());
        if allowed.iter().any(|name| name == text) {
            return Some(Json::from(text));
        }
        let (message, suggestion) = match choices.iter().find(|choice| choice.name == text) {
            Some(choice) => {
                let task = task.unwrap_or_default();
                (
                    format!(
                        "`{text}` is for task {}, here it is `{task}`",
                        choice.tasks.join(" or ")
                    ),
                    None,
                )
            }
            None => {
                let names: Vec<&str> = allowed.iter().map(String::as_str).collect();
                (
                    format!("unknown value `{}`", shorten(text)),
                    nearest(text, &names),
                )
            }
        };
        let problem = self.report(Some(place), path, message);
        problem.suggestion = suggestion;
        problem.allowed = allowed;
        None
    }

    /// An absolute path; relative ones begin at the config file, or at the current directory for `--set`.
    /// An id of the hub stays what it is; anything else is a path.
    fn model_path(&mut self, text: &str, place: Place, path: &str) -> Option<Json> {
        let base = match place {
            Place::File { .. } => &self.folders.file,
            Place::Set(_) => &self.folders.set,
        };
        let looks_like_an_id = text.split('/').count() == 2
            && !text.starts_with(['.', '/', '~'])
            && !text.ends_with('/');
        if looks_like_an_id && !base.join(text).exists() {
            return Some(Json::from(text));
        }
        self.path(text, place, path)
    }

    fn path(&mut self, text: &str, place: Place, path: &str) -> Option<Json> {
        if text.is_empty() {
            self.report(
                Some(place),
                path,
                "expected a path, got empty text".to_owned(),
            );
            return None;
        }
        let base = match place {
            Place::File { .. } => &self.folders.file,
            Place::Set(_) => &self.folders.set,
        };
        match absolute(base, Path::new(text))
            .into_os_string()
            .into_string()
        {
            Ok(text) => Some(Json::from(text)),
            Err(bad) => {
                let message = format!(
                    "the folder of this relative path is not UTF-8: {}",
                    bad.display()
                );
                self.report(Some(place), path, message);
                None
            }
        }
    }
}

/// A problem at a place; no place means the file as a whole.
pub(super) fn problem(names: &Names, place: Option<Place>, path: &str, message: String) -> Problem {
    Problem {
        location: place.map_or_else(|| names.file.clone(), |place| names.location(place)),
        path: path.to_owned(),
        message,
        suggestion: None,
        allowed: Vec::new(),
        order: place.map_or((0, 0, 0), Names::order),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn allowed(choices: &[Choice], task: Option<&str>) -> Vec<String> {
    choices
        .iter()
        .filter(|choice| choice.fits(task))
        .map(|choice| choice.name.to_owned())
        .collect()
}

/// Whether a value has the outer form of a kind: enough to tell the alternatives of [`Kind::Either`] apart.
fn shape_fits(kind: &Kind, value: &Value) -> bool {
    match kind {
        Kind::Boolean => matches!(value, Value::Boolean(_)),
        Kind::Integer(..) | Kind::Number(_) => {
            matches!(value, Value::Integer(_) | Value::Float(..))
        }
        Kind::Text | Kind::Choice(_) | Kind::ModelPath => matches!(value, Value::Text(_)),
        Kind::Paths => matches!(value, Value::Text(_) | Value::List(_)),
        Kind::List { .. } => matches!(value, Value::List(_)),
        Kind::OneOrMore(item) => matches!(value, Value::List(_)) || shape_fits(item, value),
        Kind::Table(_) | Kind::Section(_) => matches!(value, Value::Map(_)),
        Kind::Either(kinds) => kinds.iter().any(|kind| shape_fits(kind, value)),
    }
}

/// The name closest to a mistyped one, if it is close at all: at most one edit in three characters.
pub(super) fn nearest(typed: &str, names: &[&str]) -> Option<String> {
    // The distance is quadratic: no key of ours is near a text of this length.
    if typed.len() > 64 {
        return None;
    }
    let typed = typed.to_lowercase().replace(['-', ' '], "_");
    let distance = |name: &str| strsim::damerau_levenshtein(&typed, &name.replace('-', "_"));
    let (best, steps) = names
        .iter()
        .map(|name| (*name, distance(name)))
        .min_by_key(|&(_, steps)| steps)?;
    (steps <= (typed.chars().count() / 3).max(1)).then(|| best.to_owned())
}

/// The full path of a key that exists in another section under exactly this name, if only one does.
fn elsewhere(typed: &str) -> Option<String> {
    let typed = &typed.to_lowercase().replace('-', "_");
    fn search(section: &'static Section, path: &str, typed: &str, found: &mut Vec<String>) {
        for field in section.fields {
            let path = join(path, field.name);
            if field.name == typed || field.hints.contains(&typed) {
                found.push(path.clone());
            }
            if let Kind::Section(inner) = &field.kind {
                search(inner, &path, typed, found);
            }
        }
    }
    let mut found = Vec::new();
    search(&ROOT, "", typed, &mut found);
    if found.len() == 1 { found.pop() } else { None }
}

/// `path` seen from `base`. Leading `..` are taken off only where `base` could be resolved, so that links in it are
/// followed as the system would.
fn absolute(base: &Path, path: &Path) -> PathBuf {
    if path.is_absolute() {
        return path.to_owned();
    }
    let Ok(mut out) = base.canonicalize() else {
        let joined = base.join(path);
        return std::path::absolute(&joined).unwrap_or(joined);
    };
    let mut leading = true;
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if leading => {
                out.pop();
            }
            other => {
                leading = false;
                out.push(other);
            }
        }
    }
    out
}
