//! Elementwise operations: scalar programs interpreted over tiles.
//!
//! * [`op`]: the operations and their names; [`crate::scalar`] says what each means.
//! * [`program`]: programs of several operations and their compiled form.
//! * `kernels`: vector loops per operation and compute type.
//! * `interpreter`: [`run()`], tile by tile, intermediates staying in L1.
//! * `accumulate`: in-place addition and the search for non-finite values.
//!
//! A fused chain reads each input once and writes the result once, whatever its length.

mod accumulate;
mod interpreter;
mod kernels;
pub mod op;
pub mod program;

pub use crate::scalar::{scalar_f64, scalar_f64_2};
pub use accumulate::{add_assign, all_finite, first_non_finite};
pub use interpreter::{Compute, binary, run, unary};
pub(crate) use kernels::Lane;
pub use op::{Binary, Unary};
pub use program::{Compiled, Program, Source, Step};
