//! Five small workloads for a counter of instructions: the same code as the large ones, at sizes
//! that an emulator runs in a second. `bench count NAME --calls N` repeats one N times on one
//! thread; the difference between two numbers of calls is the cost of a call without the start.
//! `cargo xtask instructions` counts and compares with `bench/instructions.json`.

use entrenar_base::Result;
use entrenar_zoo::GptConfig;

use super::{Case, cnn, gpt, mlp, tinyop};
use crate::cli::Precision;

/// A name with how its case is built.
type Counted = (&'static str, fn() -> Option<Case>);

/// What can be counted.
pub const COUNTED: &[Counted] = &[
    ("tinyop", || tinyop::cases().pop()),
    ("xor", || mlp::xor().pop()),
    ("mlp", || {
        Some(mlp::classifier(&[64, 32, 10], 16, Precision::F32))
    }),
    ("cnn", || {
        Some(cnn::case(&[1, 8, 16], 12, 4, Precision::F32))
    }),
    ("gpt", || {
        let config = GptConfig {
            vocabulary: 65,
            context: 32,
            layers: 2,
            heads: 2,
            width: 64,
            ..Default::default()
        };
        Some(gpt::case("gpt".into(), config, 2, Precision::F32, 1))
    }),
];

/// Calls the step of the workload `name` so many times.
///
/// # Errors
/// Whatever the workload returns. `None` when there is no such workload.
pub fn run(name: &str, calls: usize) -> Option<Result<()>> {
    let (_, build) = COUNTED.iter().find(|(n, _)| *n == name)?;
    let case = build()?;
    entrenar_cpu::team::set_threads(1);
    Some((case.build)().and_then(|mut work| (0..calls).try_for_each(|_| (work.step)())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counted_workload_runs() {
        for (name, _) in COUNTED {
            run(name, 1).unwrap().unwrap();
        }
        assert!(run("nothing", 1).is_none());
    }
}
