//! The benchmark binary: one JSON line per workload, with the names and fields of the PyTorch
//! scripts that do the same work, so that both can be run in turn and compared as ratios.
//!
//! `bench [group …]` runs the named groups (all of them without arguments); `bench --list` names
//! them. Every step is complete: forward, loss, backward, update, gradients cleared. Peak memory
//! is the whole process's, so a fair figure needs one group per process.

mod timing;
mod workloads;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        println!(
            "usage: bench [--list] [group ...]\n\nOne JSON line per workload: workload, median_s, min_s, n, peak_mb."
        );
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|a| a == "--list") {
        workloads::GROUPS
            .iter()
            .for_each(|g| println!("{:<12} {}", g.name, g.what));
        return ExitCode::SUCCESS;
    }
    let mut chosen = Vec::new();
    for name in &arguments {
        match workloads::GROUPS.iter().find(|g| g.name == name) {
            Some(g) => chosen.push(g),
            None => {
                let known: Vec<&str> = workloads::GROUPS.iter().map(|g| g.name).collect();
                eprintln!(
                    "bench: no group `{name}`; the groups are {}",
                    known.join(", ")
                );
                return ExitCode::from(2);
            }
        }
    }
    if chosen.is_empty() {
        chosen.extend(workloads::GROUPS);
    }
    entrenar_cpu::init();
    println!(
        "{}",
        serde_json::json!({"entrenar": env!("CARGO_PKG_VERSION"), "threads": entrenar_cpu::team::threads(), "debug_build": cfg!(debug_assertions)})
    );
    for group in chosen {
        if let Err(e) = (group.run)() {
            println!(
                "{}",
                serde_json::json!({"workload": group.name, "error": e.to_string()})
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
