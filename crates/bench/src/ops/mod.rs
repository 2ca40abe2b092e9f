//! `bench ops`: the time of single operations and layers, and its comparison with a file.
//!
//! Four sets: every operation of the registry at the size of its samples, where the cost of a
//! call decides (`small.rs`); the families of kernels at sizes that leave the first-level cache
//! (`medium.rs`); layers (`layers.rs`); calls with their node (`graph.rs`). Each is timed forward,
//! without a graph, and as a step: forward and backward; in the last set forward with its node.
//! `record.rs` writes and compares files, `measure.rs` takes the times.

mod graph;
mod layers;
mod measure;
mod medium;
mod record;
mod small;

use std::process::ExitCode;

use entrenar_base::Result;
use entrenar_core::Tensor;
use entrenar_core::autograd::{GradOptions, backward_all, no_grad};
use entrenar_core::registry::Function;

use crate::cli::OpsArguments;
use measure::Times;
use record::Record;

/// Something to time.
struct Subject {
    /// Set, operation and size.
    name: String,
    /// One call without a graph.
    forward: Box<dyn Fn() -> Result<()>>,
    /// One call with its backward pass, where there is one; in the set `graph` with its node only.
    step: Option<Box<dyn Fn() -> Result<()>>>,
}

impl Subject {
    /// `function` at `inputs`; with `differentiate`, its step has the gradients of all floats.
    fn of_function(
        name: String,
        inputs: Vec<Tensor>,
        function: Function,
        differentiate: bool,
    ) -> Result<Subject> {
        let function = std::sync::Arc::new(function);
        let leaves: Vec<Tensor> = inputs
            .iter()
            .map(|t| match t.dtype().is_float() && differentiate {
                true => t.requires_grad(),
                false => Ok(t.clone()),
            })
            .collect::<Result<_>>()?;
        let outputs = function(&leaves)?;
        let tracked = outputs.iter().any(Tensor::is_tracked);
        let cotangents: Vec<Option<Tensor>> = outputs
            .iter()
            .map(|t| t.is_tracked().then(|| t.detach().ones_like()))
            .collect();
        drop(outputs);
        let twin = function.clone();
        let step = move || {
            let outputs = twin(&leaves)?;
            let roots: Vec<(&Tensor, Option<Tensor>)> = outputs
                .iter()
                .zip(&cotangents)
                .filter_map(|(t, c)| c.as_ref().map(|c| (t, Some(c.clone()))))
                .collect();
            backward_all(&roots, &GradOptions::default())?;
            leaves.iter().for_each(Tensor::zero_grad);
            Ok(())
        };
        Ok(Subject {
            name,
            forward: Box::new(move || {
                std::hint::black_box(no_grad(|| function(&inputs))?);
                Ok(())
            }),
            step: tracked.then(|| Box::new(step) as _),
        })
    }
}

/// All subjects whose name contains `only`.
fn subjects(only: Option<&str>) -> Result<Vec<Subject>> {
    let wanted = |name: &str| only.is_none_or(|part| name.contains(part));
    let mut all = small::subjects(&wanted)?;
    all.extend(medium::subjects(&wanted)?);
    all.extend(layers::subjects(&wanted)?);
    all.extend(graph::subjects(&wanted)?);
    Ok(all)
}

/// The command: prints times, writes a file or compares with one. 0 done, 1 something is slower
/// or failed, 2 a file cannot be used.
pub fn run(arguments: &OpsArguments) -> ExitCode {
    let before = match arguments.against.as_deref().map(Record::read).transpose() {
        Ok(before) => before,
        Err(message) => {
            eprintln!("bench: {message}");
            return ExitCode::from(2);
        }
    };
    let subjects = match subjects(arguments.only.as_deref()) {
        Ok(list) => list,
        Err(e) => {
            eprintln!("bench: {e}");
            return ExitCode::FAILURE;
        }
    };
    if subjects.is_empty() {
        eprintln!("bench: nothing has this text in its name");
        return ExitCode::from(2);
    }
    let mut now = Record::here();
    // Apart in time: one busy moment must not decide what a file says for long.
    let passes = if arguments.record.is_some() { 2 } else { 1 };
    for _ in 0..passes {
        for subject in &subjects {
            match measure::times(subject, arguments.budget) {
                Ok(times) => now.insert(&subject.name, times),
                Err(e) => {
                    eprintln!("bench: {}: {e}", subject.name);
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    if before.is_none() {
        now.lines().for_each(|line| println!("{line}"));
    }
    if let Some(path) = &arguments.record
        && let Err(message) = now.write(path)
    {
        eprintln!("bench: {message}");
        return ExitCode::from(2);
    }
    match before {
        None => ExitCode::SUCCESS,
        Some(before) => against(&before, now, &subjects, arguments),
    }
}

/// Compares; what seems slower is measured again, because a busy moment is not a slower program.
fn against(
    before: &Record,
    mut now: Record,
    subjects: &[Subject],
    arguments: &OpsArguments,
) -> ExitCode {
    const TRIES: usize = 4;
    let margin = arguments.margin.0;
    for _ in 0..TRIES {
        let slower = before.slower(&now, margin);
        if slower.is_empty() {
            break;
        }
        for subject in subjects
            .iter()
            .filter(|s| slower.iter().any(|c| c.name == s.name))
        {
            if let Ok(again) = measure::times(subject, arguments.budget) {
                now.insert(&subject.name, again);
            }
        }
    }
    let report = before.compare(&now, margin, arguments.only.as_deref());
    print!("{}", report.text);
    ExitCode::from(u8::from(report.worse))
}
