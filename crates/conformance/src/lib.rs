//! Replays recorded reference cases against entrenar's operations.
//!
//! A *suite* is a directory with `cases.json` (operation, arguments, expected results) and
//! `tensors.safetensors` (the numbers), as produced from PyTorch's own operator tests. Each case
//! states up to four results: `forward` outputs, a vector-Jacobian product, a Jacobian-vector
//! product and a second-order product. `suite.rs` reads the directory, `call.rs` binds PyTorch's
//! positional and keyword arguments, `operations/` maps each operation to the library's methods,
//! `unsupported.rs` lists in advance what the library does not do, `replay.rs` runs, `compare.rs`
//! compares within `tolerances.rs`, and `report.rs` prints. `ops_table.rs` prints the table of
//! the library's own operations.
//!
//! What counts as not supported is decided from the operation and its arguments before anything
//! runs: a wrong number is always a failure.

pub mod call;
pub mod compare;
pub mod operations;
pub mod ops_table;
pub mod replay;
pub mod report;
pub mod suite;
pub mod tolerances;
pub mod unsupported;

pub use replay::{Kind, Outcome, Replayed, replay};
pub use report::Report;
pub use suite::{Case, Suite, Value};
