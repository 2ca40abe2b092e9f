//! The workloads, one file per group.

mod cnn;
mod elementwise;
mod gemm;
mod gpt;
mod mlp;
mod tinyop;

use entrenar_base::Result;

/// A named group of workloads.
pub struct Group {
    /// The name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub what: &'static str,
    /// Runs it and prints its lines.
    pub run: fn() -> Result<()>,
}

/// All groups, under the names of the PyTorch script.
pub const GROUPS: &[Group] = &[
    Group {
        name: "gemm",
        what: "matrix products, f32 and bf16",
        run: gemm::run,
    },
    Group {
        name: "tinyop",
        what: "four ops on 16 values, forward and backward",
        run: tinyop::run,
    },
    Group {
        name: "elementwise",
        what: "maps and reductions of 4 Mi floats",
        run: elementwise::run,
    },
    Group {
        name: "mlp",
        what: "784-256-128-10 perceptron, batch 64, Adam",
        run: mlp::mnist,
    },
    Group {
        name: "xor",
        what: "2-8-1 perceptron, batch 32, Adam",
        run: mlp::xor,
    },
    Group {
        name: "cnn",
        what: "two-stage CNN on 28x28 images, batch 64, Adam",
        run: cnn::run,
    },
    Group {
        name: "gpt_char",
        what: "GPT 4 layers 128 wide, 64 tokens, batch 12",
        run: gpt::char_level,
    },
    Group {
        name: "gpt_small",
        what: "GPT 6 layers 384 wide, 256 tokens, batch 8",
        run: gpt::small,
    },
    Group {
        name: "gpt2_124m",
        what: "GPT-2 124M shape, 256 tokens, batch 1",
        run: gpt::gpt2_124m,
    },
];

/// `count` random class numbers below `classes`.
fn classes(count: usize, classes: usize, seed: u64) -> Result<entrenar_core::Tensor> {
    let rng = entrenar_base::Philox::new(seed, 0);
    let values = (0..count as u64)
        .map(|i| rng.below(i, classes as u64) as i64)
        .collect();
    entrenar_core::Tensor::from_vec(values, [count])
}
