//! The benchmark binary: one JSON line per workload, with the names and fields of the PyTorch
//! script that does the same work, so that both can be run in turn and compared as ratios.
//!
//! `bench [GROUP …]` runs the fixed workloads, each in a process of its own, so that the peak
//! memory of one never shows in the next. `bench gpt|mlp|cnn|gemm …` run the same code at any
//! shape, `bench ops` times single operations and layers and compares them with a recorded file,
//! `bench count` repeats a small workload for a counter of instructions, `bench memory-qlora` prints
//! what adapters on float and 4-bit bases hold in memory. Every step is complete:
//! forward, loss, backward, update, gradients cleared.
//!
//! `cli.rs` reads the command line, `workloads/` has the steps, `timing.rs` measures, `spawn.rs`
//! starts the processes, `ops/` has the single operations. The comparison with PyTorch is the script `bench/compare.py`.
//!
//! Exit status: 0 done, 1 a workload failed or became slower, 2 wrong usage.

mod cli;
mod memory_qlora;
mod ops;
mod spawn;
mod timing;
mod workloads;

use std::process::ExitCode;

use cli::{Cli, Command};
use workloads::{Case, GROUPS};

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args()) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    entrenar_cpu::init();
    entrenar_cpu::alloc::keep_heap();
    match cli.command {
        None if cli.list => list(),
        None => fixed(&cli),
        Some(Command::Gpt(a)) => header_and(&a.case(), &a.limits),
        Some(Command::Mlp(a)) => header_and(&a.case(), &a.limits),
        Some(Command::Cnn(a)) => header_and(&a.case(), &a.limits),
        Some(Command::Gemm(a)) => header_and(&a.case(), &a.limits),
        Some(Command::Ops(a)) => ops::run(&a),
        Some(Command::Count { name, calls }) => count(&name, calls),
        Some(Command::MemoryQlora(a)) => match memory_qlora::run(&a) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("bench: memory-qlora: {e}");
                ExitCode::FAILURE
            }
        },
        Some(Command::Case { id, limits }) => match workloads::find(&id) {
            Some(case) => measure(&case, &limits),
            None => {
                eprintln!("bench: no case `{id}`; `bench --list` names them");
                ExitCode::from(2)
            }
        },
    }
}

/// Repeats a small workload; what counts the instructions stands outside.
fn count(name: &str, calls: usize) -> ExitCode {
    match workloads::counted::run(name, calls) {
        Some(Ok(())) => {
            println!("{}", timing::header());
            ExitCode::SUCCESS
        }
        Some(Err(e)) => {
            eprintln!("bench: {name}: {e}");
            ExitCode::FAILURE
        }
        None => {
            let known: Vec<&str> = workloads::counted::COUNTED
                .iter()
                .map(|(n, _)| *n)
                .collect();
            eprintln!(
                "bench: nothing to count under `{name}`; there are {}",
                known.join(", ")
            );
            ExitCode::from(2)
        }
    }
}

/// Prints the groups and the cases of each.
fn list() -> ExitCode {
    for group in GROUPS {
        println!("{:<12} {}", group.name, group.what);
        for case in (group.cases)() {
            println!("    {}", case.id());
        }
    }
    ExitCode::SUCCESS
}

/// Runs the fixed workloads that the command line chooses, one process each.
fn fixed(cli: &Cli) -> ExitCode {
    let chosen = |name: &str| cli.groups.is_empty() || cli.groups.iter().any(|g| g == name);
    let cases: Vec<Case> = GROUPS
        .iter()
        .filter(|g| chosen(g.name))
        .flat_map(|g| (g.cases)())
        .filter(|c| cli.only.as_ref().is_none_or(|part| c.id().contains(part)))
        .filter(|c| cli.precision.is_none_or(|p| c.precision == p.name()))
        .collect();
    if cases.is_empty() {
        eprintln!("bench: no case is left of what was chosen; `bench --list` names them");
        return ExitCode::from(2);
    }
    println!("{}", timing::header());
    let failed = cases
        .iter()
        .filter(|case| !spawn::in_own_process(case, &cli.limits))
        .count();
    ExitCode::from(u8::from(failed > 0))
}

fn header_and(case: &Case, limits: &cli::Limits) -> ExitCode {
    println!("{}", timing::header());
    measure(case, limits)
}

/// Measures a case in this process and prints its line.
fn measure(case: &Case, limits: &cli::Limits) -> ExitCode {
    match timing::measure(case, limits) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            println!("{}", timing::failure(case, &e.to_string()));
            ExitCode::FAILURE
        }
    }
}
