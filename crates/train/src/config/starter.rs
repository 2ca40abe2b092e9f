//! Commented starter files, printed by `entrenar init TASK`: every key that applies, with its default and its line of
//! documentation; keys that may stay unset are commented out.

use super::describe::{Absent, Field, Kind, Section, Yaml};
use super::sections::{ROOT, Task};
use super::write;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The first line of starters and examples: editors with a YAML language server then complete and check the file.
pub const SCHEMA_LINE: &str = "# yaml-language-server: $schema=entrenar.schema.json";

/// What is already known about the data of a new config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataHint {
    /// `data.path` as it will be written.
    pub path: String,
    /// True for a directory of IDX images instead of a table (classification only).
    pub images: bool,
    /// Column names of a table with whether each holds numbers; the last one is taken as the target.
    pub columns: Vec<(String, bool)>,
}

/// A commented config for a task. It passes [`super::load`] (the data need not exist yet).
///
/// ```
/// use entrenar_train::config::{self, Task};
/// let text = config::starter(Task::LanguageModel, None);
/// let loaded = config::parse(text.as_bytes(), "new.yaml", ".".as_ref(), &[]).unwrap();
/// assert_eq!(loaded.config.task, Task::LanguageModel);
/// ```
pub fn starter(task: Task, data: Option<&DataHint>) -> String {
    let mut writer = Writer {
        out: String::new(),
        fixed: fixed(task, data),
    };
    let _ = writeln!(writer.out, "{SCHEMA_LINE}");
    let _ = writeln!(
        writer.out,
        "# Made by `entrenar init`; `entrenar schema > entrenar.schema.json` lets editors check it."
    );
    let _ = writeln!(
        writer.out,
        "# Lines that are commented out are optional and off."
    );
    let siblings = BTreeMap::new();
    writer.section(&ROOT, "", 0, &siblings, false);
    writer.out
}

/// Texts that the task or the data decide, by dotted path.
fn fixed(task: Task, data: Option<&DataHint>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut set = |path: &str, text: String| {
        out.insert(path.to_owned(), text);
    };
    let task = match task {
        Task::LanguageModel => super::sections::LANGUAGE_MODEL,
        Task::Sft => super::sections::SFT,
        Task::MaskedLm => super::sections::MASKED_LM,
        Task::SequenceClassification => super::sections::SEQUENCE_CLASSIFICATION,
        Task::Classification => super::sections::CLASSIFICATION,
        Task::Regression => super::sections::REGRESSION,
    };
    set("task", task.to_owned());
    let architecture = match task {
        super::sections::LANGUAGE_MODEL => "gpt",
        super::sections::SFT
        | super::sections::MASKED_LM
        | super::sections::SEQUENCE_CLASSIFICATION => "pretrained",
        _ => "mlp",
    };
    set("model.architecture", architecture.to_owned());
    // A run is as long as data allow in one go: epochs for examples, steps for a stream of text.
    set(
        if task == super::sections::LANGUAGE_MODEL {
            "train.max_steps"
        } else {
            "train.epochs"
        },
        String::new(),
    );
    if task == super::sections::CLASSIFICATION {
        set("data.format", "csv".to_owned());
    }
    if let Some(data) = data {
        set("data.path", write::text(&data.path));
        if data.images && task == super::sections::CLASSIFICATION {
            set("data.format", "idx".to_owned());
        }
        if let Some(((target, _), features)) = data.columns.split_last()
            && !features.is_empty()
        {
            set("data.columns.target", write::text(target));
            let names: Vec<&str> = features.iter().map(|(name, _)| name.as_str()).collect();
            set("data.columns.features", write::inline(&json!(names)));
            let categories: serde_json::Map<_, _> = features
                .iter()
                .filter(|(_, number)| !number)
                .map(|(name, _)| (name.clone(), json!("category")))
                .collect();
            set("data.columns.types", write::inline(&categories.into()));
        }
    }
    out
}

struct Writer {
    out: String,
    fixed: BTreeMap<String, String>,
}

impl Writer {
    fn section(
        &mut self,
        section: &'static Section,
        path: &str,
        indent: usize,
        outer: &BTreeMap<String, String>,
        off: bool,
    ) {
        let mut siblings = outer.clone();
        for field in section.fields {
            let path = if path.is_empty() {
                field.name.to_owned()
            } else {
                format!("{path}.{}", field.name)
            };
            if field
                .when
                .iter()
                .all(|when| when.holds(&|key| Some(siblings.get(key).cloned().unwrap_or_default())))
            {
                self.field(field, &path, indent, &mut siblings, off);
            }
        }
    }

    fn field(
        &mut self,
        field: &'static Field,
        path: &str,
        indent: usize,
        siblings: &mut BTreeMap<String, String>,
        off: bool,
    ) {
        let (yaml, on) = match field.absent {
            Absent::Required(yaml) | Absent::Default(yaml) => (yaml, true),
            Absent::Unset(yaml) => (yaml, field.starter),
        };
        let fixed = self.fixed.get(path).cloned();
        // An empty text in `fixed` switches a key on and keeps its own example.
        let on = on || fixed.is_some();
        let off = off || !on;
        let text = fixed
            .filter(|text| !text.is_empty())
            .or_else(|| example(yaml, siblings))
            .unwrap_or_default();
        if indent == 0 {
            self.out.push('\n');
        }
        let mut doc = field.doc.to_owned();
        if let Kind::Choice(choices) = &field.kind {
            let task = siblings.get("task").map(String::as_str);
            let words: Vec<&str> = choices
                .iter()
                .filter(|choice| choice.fits(task))
                .map(|choice| choice.name)
                .collect();
            if words.len() > 1 && field.name != "task" {
                let _ = write!(doc, " One of: {}.", words.join(", "));
            }
        }
        let pad = " ".repeat(indent);
        let mark = if off { "# " } else { "" };
        let _ = writeln!(self.out, "{pad}# {doc}");
        if let Kind::Section(inner) = &field.kind {
            let _ = writeln!(self.out, "{pad}{mark}{}:", field.name);
            // Commented sections keep their inner indent, so that removing the marks uncovers valid YAML.
            self.section(inner, path, indent + 2, siblings, off);
        } else {
            let _ = writeln!(self.out, "{pad}{mark}{}: {text}", field.name);
            siblings.insert(field.name.to_owned(), text);
        }
    }
}

fn example(yaml: Yaml, siblings: &BTreeMap<String, String>) -> Option<String> {
    yaml.text(&|key| siblings.get(key).cloned())
        .map(str::to_owned)
}
