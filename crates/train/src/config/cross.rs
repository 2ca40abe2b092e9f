//! Relations between keys that no single key can tell, and the defaults that depend on another section.
//!
//! Works on the resolved JSON rather than on the typed config, so that these mistakes are reported together with the
//! others: a value that was wrong in itself is simply absent here.

use super::sections::{CLASSIFICATION, REGRESSION};
use super::tree::{Entry, Node, Value};
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;

/// Fills in the rhythm of `evaluate` and `checkpoint`: every epoch, or ten times in a run of `max_steps`.
pub(super) fn fill_rhythms(resolved: &mut Json) {
    let steps = resolved.pointer("/train/max_steps").and_then(Json::as_u64);
    for section in ["evaluate", "checkpoint"] {
        if let Some(section) = resolved.get_mut(section).and_then(Json::as_object_mut)
            && !section.contains_key("every_steps")
            && !section.contains_key("every_epochs")
            && !section.contains_key("times_per_epoch")
        {
            match steps {
                Some(steps) => section.insert("every_steps".to_owned(), json!(steps.div_ceil(10))),
                None => section.insert("every_epochs".to_owned(), json!(1)),
            };
        }
    }
}

/// A `model` with a `base` need not say that it is a published one.
pub(super) fn name_pretrained(root: &mut Node) {
    let Value::Map(sections) = &mut root.value else {
        return;
    };
    let model = sections.iter_mut().find(|section| section.key == "model");
    let Some(Value::Map(keys)) = model.map(|section| &mut section.value.value) else {
        return;
    };
    if keys.iter().any(|entry| entry.key == "architecture") {
        return;
    }
    if let Some(base) = keys.iter().find(|entry| entry.key == "base") {
        let place = base.key_place;
        let value = Node {
            place,
            value: Value::Text("pretrained".to_owned()),
        };
        keys.push(Entry {
            key: "architecture".to_owned(),
            key_place: place,
            value,
        });
    }
}

/// A published model has its own tokenizer.
pub(super) fn fill_tokenizer(resolved: &mut Json, written: bool) {
    let pretrained = resolved
        .pointer("/model/architecture")
        .is_some_and(|architecture| architecture == "pretrained");
    if pretrained
        && !written
        && let Some(tokenizer) = resolved.pointer_mut("/data/tokenizer")
    {
        *tokenizer = json!("model");
    }
}

/// Reports every broken relation as (dotted path, message).
pub(super) fn cross_check(resolved: &Json, report: &mut dyn FnMut(&str, String)) {
    let at = |path: &str| resolved.pointer(&format!("/{}", path.replace('.', "/")));
    let integer = |path: &str| at(path).and_then(Json::as_u64);
    let number = |path: &str| at(path).and_then(Json::as_f64);
    let word = |path: &str| at(path).and_then(Json::as_str);
    let words = |path: &str| -> Option<Vec<&str>> {
        Some(
            at(path)?
                .as_array()?
                .iter()
                .filter_map(Json::as_str)
                .collect(),
        )
    };

    // Model.
    if let (Some(width), Some(heads)) = (integer("model.width"), integer("model.heads"))
        && width % heads != 0
    {
        report(
            "model.width",
            format!("expected a multiple of model.heads ({heads}), got {width}"),
        );
    }
    if let Some(kernel) = integer("model.kernel")
        && kernel % 2 == 0
    {
        report(
            "model.kernel",
            format!("expected an odd number, got {kernel}"),
        );
    }
    if word("model.architecture") == Some("cnn")
        && let Some(format) = word("data.format")
        && format != "idx"
    {
        report(
            "model.architecture",
            format!("`cnn` needs images (data.format `idx`), here it is `{format}`"),
        );
    }

    fine_tuning(resolved, report);

    // Data.
    if word("data.format") == Some("idx") {
        if let Some(paths) = words("data.path")
            && paths.len() > 1
        {
            report(
                "data.path",
                format!(
                    "expected one directory for data.format `idx`, got {} paths",
                    paths.len()
                ),
            );
        }
        if at("data.validation").is_some_and(Json::is_array) {
            report(
                "data.validation",
                "expected a fraction for data.format `idx`, got a path".to_owned(),
            );
        }
    }
    if let (Some(validation), Some(test)) = (number("data.validation"), number("data.test"))
        && validation + test >= 1.0
    {
        report(
            "data.test",
            format!("validation {validation} and test {test} together leave nothing to train on"),
        );
    }
    columns(resolved, report);
    if let (Some(mean), Some(std)) = (
        at("data.normalize.mean").and_then(Json::as_array),
        at("data.normalize.std").and_then(Json::as_array),
    ) && mean.len() != std.len()
        && mean.len() != 1
        && std.len() != 1
    {
        let message = format!(
            "expected as many numbers as in mean ({}), got {}",
            mean.len(),
            std.len()
        );
        report("data.normalize.std", message);
    }

    // Training.
    if at("train.early_stopping").is_some()
        && at("data").is_some()
        && at("data.validation").is_none()
    {
        report(
            "train.early_stopping",
            "needs validation data: give data.validation".to_owned(),
        );
    }
    if at("optimizer.nesterov") == Some(&Json::Bool(true))
        && number("optimizer.momentum") == Some(0.0)
    {
        report(
            "optimizer.nesterov",
            "needs optimizer.momentum above 0".to_owned(),
        );
    }
    if let (Some(low), Some(peak)) = (
        number("schedule.min_learning_rate"),
        number("optimizer.learning_rate"),
    ) && low > peak
    {
        report(
            "schedule.min_learning_rate",
            format!("expected at most optimizer.learning_rate ({peak}), got {low}"),
        );
    }
    if let (Some(warmup), Some(steps)) =
        (integer("schedule.warmup_steps"), integer("train.max_steps"))
        && warmup > steps
    {
        report(
            "schedule.warmup_steps",
            format!("expected at most train.max_steps ({steps}), got {warmup}"),
        );
    }
    if word("generate.prompt") == Some("") {
        report(
            "generate.prompt",
            "expected at least one character, got empty text".to_owned(),
        );
    }
}

/// What needs a published model, or an adapter on it.
fn fine_tuning(resolved: &Json, report: &mut dyn FnMut(&str, String)) {
    let at = |path: &str| resolved.pointer(&format!("/{}", path.replace('.', "/")));
    let word = |path: &str| at(path).and_then(Json::as_str);
    let Some(architecture) = word("model.architecture") else {
        return;
    };
    let adapter = at("adapter").is_some();
    if architecture != "pretrained" {
        let needing = [
            "adapter",
            "quantization",
            "data.sequence_length",
            "train.neftune_noise_alpha",
        ];
        for path in needing {
            if at(path).is_some() {
                let hint = match path {
                    "data.sequence_length" => "; here model.context says it",
                    _ => "",
                };
                report(path, format!("this key needs model.base{hint}"));
            }
        }
        let path = "train.gradient_checkpointing";
        if at(path).is_some_and(|value| *value != json!(false)) {
            report(path, "this value needs model.base".to_owned());
        }
        if word("data.tokenizer") == Some("model") {
            report(
                "data.tokenizer",
                "`model` needs model.base; here it is char or byte".to_owned(),
            );
        }
        return;
    }
    if let Some(tokenizer @ ("char" | "byte")) = word("data.tokenizer") {
        report(
            "data.tokenizer",
            format!("a published model has its own tokenizer: leave `{tokenizer}` out"),
        );
    }
    if at("quantization").is_some() && !adapter {
        report(
            "quantization",
            "quantized weights cannot be trained: give `adapter` too".to_owned(),
        );
    }
    if at("quantization").is_some() && word("adapter.init") == Some("pissa") {
        report(
            "adapter.init",
            "`pissa` needs weights that are not quantized".to_owned(),
        );
    }
}

fn columns(resolved: &Json, report: &mut dyn FnMut(&str, String)) {
    let Some(columns) = resolved.pointer("/data/columns") else {
        return;
    };
    let Some(target) = columns.get("target").and_then(Json::as_str) else {
        return;
    };
    let features: Option<Vec<&str>> = columns
        .get("features")
        .and_then(Json::as_array)
        .map(|names| names.iter().filter_map(Json::as_str).collect());
    if let Some(features) = &features {
        let mut seen = BTreeSet::new();
        for (i, name) in features.iter().enumerate() {
            if *name == target {
                report(
                    &format!("data.columns.features[{i}]"),
                    format!("`{name}` is the target, it cannot be a feature too"),
                );
            } else if !seen.insert(*name) {
                report(
                    &format!("data.columns.features[{i}]"),
                    format!("`{name}` is listed twice"),
                );
            }
        }
    }
    let task = resolved.get("task").and_then(Json::as_str);
    for (name, kind) in columns
        .get("types")
        .and_then(Json::as_object)
        .into_iter()
        .flatten()
    {
        let path = format!("data.columns.types.{name}");
        if name == target {
            match (task, kind.as_str()) {
                (Some(CLASSIFICATION), Some("number" | "boolean")) => {
                    report(
                        &path,
                        "the target of a classification is a category".to_owned(),
                    );
                }
                (Some(REGRESSION), Some("category" | "boolean")) => {
                    report(&path, "the target of a regression is a number".to_owned());
                }
                _ => {}
            }
        } else if let Some(features) = &features
            && !features.contains(&name.as_str())
        {
            let mut names = features.clone();
            names.push(target);
            let hint = match super::check::nearest(name, &names) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => String::new(),
            };
            report(
                &path,
                format!("`{name}` is neither a feature nor the target{hint}"),
            );
        }
    }
}
