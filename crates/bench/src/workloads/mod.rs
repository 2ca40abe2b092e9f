//! The workloads, one file per group. A workload is built once and then repeated as a step; the
//! fixed ones of the table and those of any shape are the same functions.

pub mod cnn;
pub mod counted;
mod elementwise;
pub mod gemm;
pub mod gpt;
pub mod mlp;
mod tinyop;
mod tune;

use entrenar_base::Result;
use entrenar_core::Tensor;
use serde_json::Value;

/// A workload that is ready to run.
pub struct Work {
    /// One call of the timed function.
    pub step: Box<dyn FnMut() -> Result<()>>,
    /// Floating-point operations of one unit, where a rate says more than a time.
    pub operations: Option<f64>,
    /// Further fields of the report, an object.
    pub fields: Value,
}

/// One line of the report: a workload in one variant.
pub struct Case {
    /// The workload's name, the same as in the PyTorch script.
    pub name: String,
    /// In which type its products run.
    pub precision: &'static str,
    /// Units of work in one call of the step: times are divided by it.
    pub inner: usize,
    /// Counted runs unless the command line says otherwise.
    pub reps: usize,
    /// Builds it.
    pub build: Box<dyn Fn() -> Result<Work>>,
}

impl Case {
    /// What names this case alone.
    pub fn id(&self) -> String {
        format!("{}:{}", self.name, self.precision)
    }
}

/// A named group of workloads.
pub struct Group {
    /// The name on the command line, the same as in the PyTorch script.
    pub name: &'static str,
    /// What it measures.
    pub what: &'static str,
    /// Its cases.
    pub cases: fn() -> Vec<Case>,
}

/// All groups, under the names of the PyTorch script.
pub const GROUPS: &[Group] = &[
    Group {
        name: "gemm",
        what: "matrix products, f32 and bf16",
        cases: gemm::cases,
    },
    Group {
        name: "tinyop",
        what: "four ops on 16 values, forward and backward",
        cases: tinyop::cases,
    },
    Group {
        name: "elementwise",
        what: "maps and reductions of 4 Mi floats",
        cases: elementwise::cases,
    },
    Group {
        name: "mlp",
        what: "784-256-128-10 perceptron, batch 64, Adam",
        cases: mlp::mnist,
    },
    Group {
        name: "xor",
        what: "2-8-1 perceptron, batch 32, Adam",
        cases: mlp::xor,
    },
    Group {
        name: "cnn",
        what: "two-stage CNN on 28x28 images, batch 64, Adam",
        cases: cnn::cases,
    },
    Group {
        name: "gpt_char",
        what: "GPT 4 layers 128 wide, 64 tokens, batch 12, AdamW",
        cases: gpt::character,
    },
    Group {
        name: "gpt_small",
        what: "GPT 6 layers 384 wide, 256 tokens, batch 8, AdamW",
        cases: gpt::small,
    },
    Group {
        name: "gpt2_124m",
        what: "GPT-2 124M shape, 256 tokens, batch 1, AdamW",
        cases: gpt::gpt2_124m,
    },
    Group {
        name: "lora",
        what: "adapters of rank 16 on a Llama of 135 M, 512 tokens, AdamW",
        cases: tune::lora,
    },
    Group {
        name: "qlora",
        what: "the same over 4-bit weights",
        cases: tune::qlora,
    },
];

/// The fixed case with this [`Case::id`].
pub fn find(id: &str) -> Option<Case> {
    let all = GROUPS.iter().flat_map(|g| (g.cases)());
    all.into_iter().find(|case| case.id() == id)
}

/// `count` random class numbers below `classes`.
pub fn classes(count: usize, classes: usize, seed: u64) -> Result<Tensor> {
    let rng = entrenar_base::Philox::new(seed, 0);
    let values = (0..count as u64)
        .map(|i| rng.below(i, classes as u64) as i64)
        .collect();
    Tensor::from_vec(values, [count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let mut ids: Vec<String> = GROUPS
            .iter()
            .flat_map(|g| (g.cases)())
            .map(|c| c.id())
            .collect();
        assert!(ids.iter().all(|id| find(id).is_some()));
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
