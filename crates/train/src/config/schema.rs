//! The description as a JSON Schema (draft 7, which editors know best), printed by `entrenar schema`.
//!
//! Which keys apply depends on the task, so each task has a whole schema of its own under `definitions`, chosen by
//! `if`/`then` at the root. A condition on a sibling key becomes an `if`/`then`/`else` inside its section.

use super::describe::{Absent, Bound, Field, Kind, Rule, Section, When, Yaml};
use super::sections::{ROOT, TASKS};
use super::tree::{self, Value};
use serde_json::{Map, Value as Json, json};

/// The JSON Schema of a config file.
pub fn schema() -> Json {
    let mut definitions = Map::new();
    let mut branches = Vec::new();
    for task in TASKS {
        definitions.insert(task.name.to_owned(), object(&ROOT, task.name));
        branches.push(json!({
            "if": {"properties": {"task": {"const": task.name}}, "required": ["task"]},
            "then": {"$ref": format!("#/definitions/{}", task.name)},
        }));
    }
    let tasks: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "entrenar config",
        "description": ROOT.doc,
        "type": "object",
        "required": ["task"],
        "properties": {"task": {"enum": tasks}},
        "allOf": branches,
        "definitions": definitions,
    })
}

fn object(section: &'static Section, task: &str) -> Json {
    let mut properties = Map::new();
    let mut required: Vec<&str> = Vec::new();
    let mut conditions = Vec::new();
    let lookup = |key: &str| (key == "task").then(|| task.to_owned());
    for field in section.fields {
        let (task_conditions, sibling_conditions): (Vec<&When>, Vec<&When>) =
            field.when.iter().partition(|when| when.key == "task");
        if !task_conditions.iter().all(|when| when.holds(&lookup)) {
            continue;
        }
        properties.insert(field.name.to_owned(), described(field, task));
        let needed = is_required(field, task);
        if sibling_conditions.is_empty() && needed {
            required.push(field.name);
        }
        for when in sibling_conditions {
            let mut test = json!({"properties": {when.key: {"enum": when.values}}});
            // Without `required` the test also holds when the sibling is absent: right only if its default passes.
            let sibling = section.fields.iter().find(|field| field.name == when.key);
            let default = sibling.and_then(|sibling| default_text(sibling, task));
            if !default.is_some_and(|text| when.values.contains(&text)) {
                test["required"] = json!([when.key]);
            }
            let mut condition = json!({"if": test, "else": {"properties": {field.name: false}}});
            if needed {
                condition["then"] = json!({"required": [field.name]});
            }
            conditions.push(condition);
        }
    }
    for rule in section.rules {
        match rule {
            Rule::ExactlyOne(keys) => {
                let each: Vec<Json> = keys.iter().map(|key| json!({"required": [key]})).collect();
                conditions.push(json!({"oneOf": each}));
            }
            Rule::AtMostOne(keys) => {
                for (i, a) in keys.iter().enumerate() {
                    for b in &keys[i + 1..] {
                        conditions.push(json!({"not": {"type": "object", "required": [a, b]}}));
                    }
                }
            }
        }
    }
    let mut out = json!({
        // A section whose lines are all commented out is null, which means all defaults.
        "type": if required.is_empty() { json!(["object", "null"]) } else { json!("object") },
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    if !conditions.is_empty() {
        out["allOf"] = json!(conditions);
    }
    out
}

fn default_text(field: &Field, task: &str) -> Option<&'static str> {
    let Absent::Default(yaml) = field.absent else {
        return None;
    };
    yaml.text(&|key| (key == "task").then(|| task.to_owned()))
}

/// Whether a config of this task must have the key (as far as no sibling decides it).
fn is_required(field: &Field, task: &str) -> bool {
    match (&field.absent, &field.kind) {
        (Absent::Unset(_), _) => false,
        (_, Kind::Section(section)) => {
            section.fields.iter().any(|inner| {
                let applies = inner
                    .when
                    .iter()
                    .all(|when| when.key == "task" && when.holds(&|_| Some(task.to_owned())));
                applies && is_required(inner, task)
            }) || section
                .rules
                .iter()
                .any(|rule| matches!(rule, Rule::ExactlyOne(_)))
        }
        (Absent::Required(_), _) => true,
        (Absent::Default(Yaml::By { key: "task", .. }), _) => default_text(field, task).is_none(),
        (Absent::Default(_), _) => false,
    }
}

fn described(field: &Field, task: &str) -> Json {
    let mut out = kind(&field.kind, task);
    let mut doc = field.doc.to_owned();
    if let Kind::Choice(choices) = &field.kind {
        for choice in choices.iter().filter(|choice| choice.fits(Some(task))) {
            doc.push_str(&format!("\n- {}: {}", choice.name, choice.doc));
        }
    }
    out["description"] = json!(doc);
    if !matches!(field.kind, Kind::Section(_))
        && let Some(text) = default_text(field, task)
        && let Ok(Some(node)) = tree::read(text, None)
    {
        out["default"] = plain(&node.value);
    }
    out
}

/// A tree without its places.
pub(super) fn plain(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Boolean(b) => json!(b),
        Value::Integer(i) => json!(i),
        Value::Float(x, _) => json!(x),
        Value::Text(text) => json!(text),
        Value::List(items) => items.iter().map(|item| plain(&item.value)).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|entry| (entry.key.clone(), plain(&entry.value.value)))
            .collect::<Map<_, _>>()
            .into(),
    }
}

fn kind(described: &Kind, task: &str) -> Json {
    match described {
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Integer(low, i64::MAX) => json!({"type": "integer", "minimum": low}),
        Kind::Integer(low, high) => json!({"type": "integer", "minimum": low, "maximum": high}),
        Kind::Number(range) => {
            let mut out = json!({"type": "number"});
            match range.low {
                Bound::Open => {}
                Bound::Included(low) => out["minimum"] = json!(low),
                Bound::Excluded(low) => out["exclusiveMinimum"] = json!(low),
            }
            match range.high {
                Bound::Open => {}
                Bound::Included(high) => out["maximum"] = json!(high),
                Bound::Excluded(high) => out["exclusiveMaximum"] = json!(high),
            }
            out
        }
        Kind::Text => json!({"type": "string"}),
        Kind::Choice(choices) => {
            let names: Vec<&str> = choices
                .iter()
                .filter(|choice| choice.fits(Some(task)))
                .map(|choice| choice.name)
                .collect();
            json!({"enum": names})
        }
        Kind::ModelPath => json!({"type": "string", "minLength": 1}),
        Kind::Paths => {
            let path = json!({"type": "string", "minLength": 1});
            json!({"anyOf": [path, {"type": "array", "items": path, "minItems": 1}]})
        }
        Kind::List { item, fewest, most } => {
            let mut out = json!({"type": "array", "items": kind(item, task), "minItems": fewest});
            if *most != usize::MAX {
                out["maxItems"] = json!(most);
            }
            out
        }
        Kind::OneOrMore(item) => {
            let item = kind(item, task);
            json!({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})
        }
        Kind::Table(item) => json!({"type": "object", "additionalProperties": kind(item, task)}),
        Kind::Either(kinds) => {
            let kinds: Vec<Json> = kinds.iter().map(|inner| kind(inner, task)).collect();
            json!({"anyOf": kinds})
        }
        Kind::Section(section) => object(section, task),
    }
}
