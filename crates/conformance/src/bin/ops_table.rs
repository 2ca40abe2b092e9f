//! `ops-table`: prints the table of operations in Markdown. The work is in the library's
//! `ops_table.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match entrenar_conformance::ops_table::markdown() {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
