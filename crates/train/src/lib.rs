//! Trains: config (YAML in, typed values out), datasets, loop and run directory.
//!
//! The binary and the façade (`crates/entrenar`) are the only floor above.

pub mod config;
pub mod data;
pub mod run;
pub mod trainer;
