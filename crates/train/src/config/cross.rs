//! Relations between keys that no single key can tell, and the defaults that depend on another section.
//!
//! Works on the resolved JSON rather than on the typed config, so that these mistakes are reported together with the
//! others: a value that was wrong in itself is simply absent here.

use super::sections::{CLASSIFICATION, REGRESSION};
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;

/// Fills in the rhythm of `evaluate` and `checkpoint`: every epoch, or ten times in a run of `max_steps`.
pub(super) fn fill_rhythms(resolved: &mut Json) {
    let steps = resolved.pointer("/train/max_steps").and_then(Json::as_u64);
    for section in ["evaluate", "checkpoint"] {
        if let Some(section) = resolved.get_mut(section).and_then(Json::as_object_mut)
            && !section.contains_key("every_steps")
            && !section.contains_key("every_epochs")
        {
            match steps {
                Some(steps) => section.insert("every_steps".to_owned(), json!(steps.div_ceil(10))),
                None => section.insert("every_epochs".to_owned(), json!(1)),
            };
        }
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
