//! `cargo xtask <task>`: the project's own tasks.
//!
//! One entry of [`TASKS`] per task; the help text and the dispatch both come
//! from that list. `check` (in `checks/`) reads the tree and reports what
//! cargo, rustfmt and clippy cannot see; `mutants-rate` (in `mutants.rs`)
//! turns a cargo-mutants report into a rate and a verdict; `instructions` (in
//! `instructions.rs`) counts what small workloads cost; `memory` (in `memory.rs`)
//! runs the kernels' tests under a memory checker; `ops` runs the
//! program that prints the table of operations, which xtask itself must not
//! link (it would have to build the whole library before any check).
//!
//! Exit status: 0 done, 1 the task found something, 2 wrong usage.

mod checks;
mod instructions;
mod memory;
mod mutants;
mod project;
mod tokens;

use std::process::{Command, ExitCode};

/// A task: how it is called, one line of help, and the function behind it.
struct Task {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<Outcome, String>,
}

/// What a task that ran to its end found.
#[derive(Debug)]
enum Outcome {
    /// Nothing to complain about.
    Clean,
    /// The task has printed what is wrong.
    Failed,
}

const TASKS: &[Task] = &[
    Task {
        name: "check",
        arguments: "",
        help: "dependencies, file sizes, unsafe code, headers, machine paths, unfinished code",
        run: run_check,
    },
    Task {
        name: "instructions",
        arguments: "[--record]",
        help: "instruction counts of small workloads against bench/instructions.json",
        run: instructions::run,
    },
    Task {
        name: "memory",
        arguments: "address|valgrind",
        help: "the kernels' tests under the address sanitizer or valgrind",
        run: memory::run,
    },
    Task {
        name: "mutants-rate",
        arguments: "OUTCOMES.json MINIMUM_PERCENT",
        help: "share of mutants that the tests caught, from a cargo-mutants report",
        run: run_mutants_rate,
    },
    Task {
        name: "ops",
        arguments: "",
        help: "the operations in Markdown: kind, dtypes, derivative order, device",
        run: run_ops,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ExitCode::from(dispatch(&arguments))
}

/// Runs the task that the arguments name and gives back the exit status.
fn dispatch(arguments: &[String]) -> u8 {
    let Some((name, rest)) = arguments.split_first() else {
        eprintln!("{}", usage());
        return 2;
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        println!("{}", usage());
        return 0;
    }
    let Some(task) = TASKS.iter().find(|task| task.name == name) else {
        eprintln!("error: no task `{name}`\n{}", usage());
        return 2;
    };
    match (task.run)(rest) {
        Ok(Outcome::Clean) => 0,
        Ok(Outcome::Failed) => 1,
        Err(message) => {
            eprintln!("error: {message}");
            2
        }
    }
}

/// The help text, made from [`TASKS`].
fn usage() -> String {
    let mut text = String::from("usage: cargo xtask <task>\n");
    for task in TASKS {
        let call = format!("{} {}", task.name, task.arguments);
        text.push_str(&format!("\n  {:<44} {}", call.trim_end(), task.help));
    }
    text
}

fn run_check(arguments: &[String]) -> Result<Outcome, String> {
    if let Some(unexpected) = arguments.first() {
        return Err(format!("check takes no arguments, got `{unexpected}`"));
    }
    let project = project::Project::load()?;
    let findings = checks::run(&project);
    for finding in &findings {
        println!("{finding}");
    }
    println!(
        "check: {} packages, {} files, {} finding{}",
        project.packages.len(),
        project.files.len(),
        findings.len(),
        if findings.len() == 1 { "" } else { "s" }
    );
    Ok(if findings.is_empty() {
        Outcome::Clean
    } else {
        Outcome::Failed
    })
}

fn run_mutants_rate(arguments: &[String]) -> Result<Outcome, String> {
    let [path, minimum] = arguments else {
        return Err("mutants-rate takes OUTCOMES.json and MINIMUM_PERCENT".into());
    };
    let minimum: f64 = minimum
        .parse()
        .map_err(|_| format!("the minimum must be a number of percent, got `{minimum}`"))?;
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let tally = mutants::Tally::from_json(&text).map_err(|message| format!("{path}: {message}"))?;
    let verdict = tally.verdict(minimum)?;
    println!("{}", verdict.message);
    Ok(if verdict.enough {
        Outcome::Clean
    } else {
        Outcome::Failed
    })
}

fn run_ops(arguments: &[String]) -> Result<Outcome, String> {
    if let Some(unexpected) = arguments.first() {
        return Err(format!("ops takes no arguments, got `{unexpected}`"));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "-q", "-p", "entrenar-conformance"])
        .args(["--bin", "ops-table"])
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    Ok(if status.success() {
        Outcome::Clean
    } else {
        Outcome::Failed
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_lists_every_task_once() {
        let text = usage();
        for task in TASKS {
            let lines = text
                .lines()
                .filter(|line| line.split_whitespace().next() == Some(task.name))
                .count();
            assert_eq!(lines, 1, "{}", task.name);
        }
    }

    fn status(arguments: &[&str]) -> u8 {
        let arguments: Vec<String> = arguments.iter().map(|word| word.to_string()).collect();
        dispatch(&arguments)
    }

    #[test]
    fn wrong_usage_ends_with_two() {
        assert_eq!(status(&[]), 2);
        assert_eq!(status(&["no-such-task"]), 2);
        assert_eq!(status(&["check", "--fast"]), 2);
        assert_eq!(status(&["ops", "--fast"]), 2);
        assert_eq!(status(&["memory", "leaks"]), 2);
        assert_eq!(status(&["instructions", "--fast"]), 2);
        assert_eq!(status(&["mutants-rate"]), 2);
        assert_eq!(status(&["mutants-rate", "absent.json", "80"]), 2);
        assert_eq!(status(&["help"]), 0);
    }

    #[test]
    fn the_rate_of_mutants_decides_the_status() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.json");
        let report = r#"{"outcomes": [{"scenario": {}, "summary": "CaughtMutant"},
                                      {"scenario": {}, "summary": "MissedMutant"}]}"#;
        std::fs::write(&path, report).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(status(&["mutants-rate", path, "50"]), 0);
        assert_eq!(status(&["mutants-rate", path, "51"]), 1);
        assert_eq!(status(&["mutants-rate", path, "half"]), 2);
    }
}
