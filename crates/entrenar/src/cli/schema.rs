//! `entrenar schema`: the JSON Schema of config files.

use super::{Failure, print};
use entrenar::train::config;

/// Print the JSON Schema of config files, for editors
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(&config::schema())
        .map_err(|error| Failure::Run(format!("cannot write the schema: {error}")))?;
    print(&(text + "\n"))
}
