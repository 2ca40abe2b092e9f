//! The `entrenar` binary: reads the command line, runs one subcommand, turns its outcome into an exit status.
//!
//! Status 0: done; 1: failed while running; 2: wrong usage or config. Every failure is one message on standard error.
//! The subcommands are in `cli/`, one file each.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
