//! `entrenar inspect`: what a model or checkpoint holds, and whether it is whole.

use super::{Failure, Output, json, print};
use std::path::PathBuf;

/// Show what a model or checkpoint holds
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file or directory
    path: PathBuf,
    /// Compare every tensor with its checksum and name the damaged ones
    #[arg(long)]
    verify: bool,
}

/// Prints a table of tensors, or one JSON object. Damage is a failure, after it was printed.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let mut found = entrenar::io::inspect(&args.path)?;
    if args.verify {
        found = found.verify()?;
    }
    let text = if output.json {
        json(&found)?
    } else {
        found.to_string()
    };
    print(&text)?;
    let damage = found
        .verification
        .map_or_else(Vec::new, |v| v.report.damage);
    match damage.first() {
        None => Ok(()),
        Some(first) => {
            let more = match damage.len() {
                1 => String::new(),
                n => format!(" (and {} more)", n - 1),
            };
            Err(Failure::Run(format!(
                "{}: {first}{more}",
                args.path.display()
            )))
        }
    }
}
