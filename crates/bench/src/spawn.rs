//! One process per case: peak memory is counted per process and never goes down.

use std::process::{Command, Stdio};

use crate::cli::Limits;
use crate::timing;
use crate::workloads::Case;

/// Runs `case` in a new process of this program, whose line goes to our standard output. False
/// when it failed; a process that ended without a line gets one with its status.
pub fn in_own_process(case: &Case, limits: &Limits) -> bool {
    let run = || {
        let program = std::env::current_exe()?;
        Command::new(program)
            .args(arguments(case, limits))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
    };
    match run() {
        Ok(output) => {
            print!("{}", String::from_utf8_lossy(&output.stdout));
            if output.stdout.is_empty() {
                println!(
                    "{}",
                    timing::failure(case, &format!("ended with {}", output.status))
                );
            }
            output.status.success()
        }
        Err(e) => {
            println!(
                "{}",
                timing::failure(case, &format!("cannot start a process: {e}"))
            );
            false
        }
    }
}

/// The command line that measures `case` within `limits`.
fn arguments(case: &Case, limits: &Limits) -> Vec<String> {
    let mut list = vec!["case".to_string(), case.id()];
    let mut option = |name: &str, value: Option<String>| {
        list.extend(value.into_iter().flat_map(|v| [name.to_string(), v]));
    };
    option("--warm", limits.warm.map(|n| n.to_string()));
    option("--reps", limits.reps.map(|n| n.to_string()));
    option("--budget", limits.budget.map(|s| s.to_string()));
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command};
    use crate::workloads;

    #[test]
    fn the_child_reads_what_the_parent_writes() {
        let limits = Limits {
            warm: Some(0),
            reps: Some(2),
            budget: Some(1.5),
        };
        for group in workloads::GROUPS {
            for case in (group.cases)() {
                let line = ["bench".to_string()].into_iter();
                let cli = cli::parse(line.chain(arguments(&case, &limits))).unwrap();
                let Some(Command::Case { id, limits: read }) = cli.command else {
                    panic!("no case");
                };
                assert_eq!(read, limits);
                assert_eq!(workloads::find(&id).unwrap().name, case.name);
            }
        }
    }
}
