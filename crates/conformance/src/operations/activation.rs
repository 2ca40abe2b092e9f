//! Activations.

use super::{Operation, one};

pub(super) const OPERATIONS: &[Operation] = &[
    one!("nn.functional.relu", "inplace", |c| c.input()?.relu()),
    one!("nn.functional.relu6", "inplace", |c| c.input()?.relu6()),
    one!("nn.functional.leaky_relu", "negative_slope inplace", |c| c
        .input()?
        .leaky_relu(c.real_or("negative_slope", 0.01)?)),
    one!("nn.functional.prelu", "weight", |c| c
        .input()?
        .prelu(c.tensor("weight")?)),
    one!("nn.functional.elu", "alpha inplace", |c| c
        .input()?
        .elu(c.real_or("alpha", 1.0)?)),
    one!("nn.functional.celu", "alpha inplace", |c| c
        .input()?
        .celu(c.real_or("alpha", 1.0)?)),
    one!("nn.functional.selu", "inplace", |c| c.input()?.selu()),
    one!("nn.functional.gelu", "approximate", |c| {
        match c.text("approximate")?.unwrap_or("none") {
            "none" => c.input()?.gelu(),
            "tanh" => c.input()?.gelu_tanh(),
            _ => Err(c.unknown("approximate", "none or tanh")),
        }
    }),
    one!("nn.functional.silu", "inplace", |c| c.input()?.silu()),
    one!("nn.functional.softplus", "beta threshold", |c| c
        .input()?
        .softplus(
            c.real_or("beta", 1.0)?,
            c.real_or("threshold", 20.0)?
        )),
    one!("nn.functional.softsign", "", |c| c.input()?.softsign()),
    one!("nn.functional.mish", "inplace", |c| c.input()?.mish()),
    one!("nn.functional.hardtanh", "min_val max_val inplace", |c| c
        .input()?
        .hardtanh(
            c.real_or("min_val", -1.0)?,
            c.real_or("max_val", 1.0)?
        )),
    one!("nn.functional.hardswish", "inplace", |c| c
        .input()?
        .hardswish()),
    one!("nn.functional.hardsigmoid", "inplace", |c| c
        .input()?
        .hardsigmoid()),
    one!("nn.functional.logsigmoid", "", |c| c.input()?.logsigmoid()),
    one!("nn.functional.tanhshrink", "", |c| c.input()?.tanhshrink()),
    one!("nn.functional.glu", "dim", |c| c
        .input()?
        .glu(c.int_or("dim", -1)?)),
];
