//! The families of kernels at sizes that leave the first-level cache, in f32 unless said: what an
//! element costs.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::ops::conv::ConvOptions;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::interpolate::Interpolation;
use entrenar_core::ops::loss::Reduction;
use entrenar_core::ops::pad::Padding;
use entrenar_core::ops::pool::PoolOptions;

use super::Subject;
use crate::workloads::classes;

/// Shapes of the f32 inputs, then of the inputs of whole numbers below a limit, and what is done
/// with them.
struct Family {
    name: &'static str,
    inputs: &'static [&'static [usize]],
    numbers: &'static [(&'static [usize], usize)],
    run: fn(&[Tensor]) -> Result<Tensor>,
}

macro_rules! families {
    ($($name:literal [$($dims:expr),*] $({$shape:expr, $limit:literal})? |$t:ident| $body:expr;)*) => {
        &[$(Family {
            name: $name,
            inputs: &[$(&$dims),*],
            numbers: &[$((&$shape, $limit))?],
            run: |$t| $body,
        }),*]
    };
}

/// Square matrices of 256 Ki elements unless the name says otherwise.
const FAMILIES: &[Family] = families! {
    "add" [[512, 512], [512, 512]] |t| t[0].add(&t[1]);
    "add row" [[512, 512], [512]] |t| t[0].add(&t[1]);
    "mul column" [[512, 512], [512, 1]] |t| t[0].mul(&t[1]);
    "div" [[512, 512], [512, 512]] |t| t[0].div(&t[1].square()?.add_scalar(1.0)?);
    "chain of 4" [[512, 512], [512, 512]] |t| t[0].mul(&t[1])?.add(&t[0])?.relu()?.mul_scalar(0.5);
    "exp" [[512, 512]] |t| t[0].exp();
    "log" [[512, 512]] |t| t[0].square()?.add_scalar(1.0)?.log();
    "tanh" [[512, 512]] |t| t[0].tanh();
    "sigmoid" [[512, 512]] |t| t[0].sigmoid();
    "erf" [[512, 512]] |t| t[0].erf();
    "gelu" [[512, 512]] |t| t[0].gelu();
    "gelu_tanh" [[512, 512]] |t| t[0].gelu_tanh();
    "silu" [[512, 512]] |t| t[0].silu();
    "where" [[512, 512], [512, 512]] |t| Tensor::where_(&t[0].detach().gt(&t[1].detach())?, &t[0], &t[1]);
    "clamp" [[512, 512]] |t| t[0].clamp(Some(-0.5), Some(0.5));
    "dropout" [[512, 512]] |t| t[0].dropout(0.1, 1, 2);
    "cast to bf16" [[512, 512]] |t| t[0].to_dtype(DType::BF16);
    "sum" [[512, 512]] |t| t[0].sum();
    "sum rows" [[512, 512]] |t| t[0].sum_dim(&[-1], false);
    "sum columns" [[512, 512]] |t| t[0].sum_dim(&[0], false);
    "var rows" [[512, 512]] |t| t[0].var(&[-1], 1.0, false);
    "max rows" [[512, 512]] |t| Ok(t[0].max_dim(-1, false)?.0);
    "logsumexp rows" [[512, 512]] |t| t[0].logsumexp(&[-1], false);
    "cumsum rows" [[512, 512]] |t| t[0].cumsum(-1);
    "prod rows" [[512, 512]] |t| t[0].prod_dim(-1, false);
    "softmax" [[512, 512]] |t| t[0].softmax(-1);
    "log_softmax" [[512, 512]] |t| t[0].log_softmax(-1);
    "layer_norm" [[512, 512], [512], [512]] |t| t[0].layer_norm(1, Some(&t[1]), Some(&t[2]), 1e-5);
    "rms_norm" [[512, 512], [512]] |t| t[0].rms_norm(1, Some(&t[1]), 1e-5);
    "add, layer_norm 2048x768" [[2048, 768], [2048, 768], [768], [768]] |t| {
        t[0].add(&t[1])?.layer_norm(1, Some(&t[2]), Some(&t[3]), 1e-5)
    };
    "add_layer_norm 2048x768" [[2048, 768], [2048, 768], [768], [768]] |t| {
        Ok(t[0].add_layer_norm(&t[1], 1, Some(&t[2]), Some(&t[3]), 1e-5)?.0)
    };
    "batch_norm 16x32x24x24" [[16, 32, 24, 24], [32], [32]] |t| {
        Ok(t[0].batch_norm(Some(&t[1]), Some(&t[2]), 1e-5)?.0)
    };
    "group_norm 16x32x24x24" [[16, 32, 24, 24], [32], [32]] |t| {
        t[0].group_norm(8, Some(&t[1]), Some(&t[2]), 1e-5)
    };
    "transpose" [[512, 512]] |t| t[0].t()?.contiguous();
    "permute 8x64x8x64" [[8, 64, 8, 64]] |t| t[0].permute(&[0, 2, 1, 3])?.contiguous();
    "slice strided" [[512, 1024]] |t| t[0].slice(1, 0, 1024, 2)?.contiguous();
    "concat" [[512, 256], [512, 256]] |t| Tensor::concat(&[&t[0], &t[1]], 1);
    "pad reflect 16x16x32x32" [[16, 16, 32, 32]] |t| t[0].pad(&[(0, 0), (0, 0), (1, 1), (1, 1)], Padding::Reflect);
    "flip" [[512, 512]] |t| t[0].flip(&[1])?.contiguous();
    "tril" [[512, 512]] |t| t[0].tril(0);
    "matmul 32" [[32, 32], [32, 32]] |t| t[0].matmul(&t[1]);
    "matmul 256" [[256, 256], [256, 256]] |t| t[0].matmul(&t[1]);
    "matmul batch 32x64x64" [[32, 64, 64], [32, 64, 64]] |t| t[0].matmul(&t[1]);
    "matmul vector" [[512, 512], [512]] |t| t[0].matmul(&t[1]);
    "linear 128x256x256" [[128, 256], [256, 256], [256]] |t| t[0].linear(&t[1], Some(&t[2]));
    "embedding 512 of 1024x256" [[1024, 256]] {[512], 1024} |t| t[0].embedding(&t[1]);
    "gather 512x64" [[512, 512]] {[512, 64], 512} |t| t[0].gather(1, &t[1]);
    "index_select" [[1024, 256]] {[512], 1024} |t| t[0].index_select(0, &t[1]);
    "sort rows 64x512" [[64, 512]] |t| Ok(t[0].sort(-1, false)?.0);
    "topk rows 64x512" [[64, 512]] |t| Ok(t[0].topk(8, -1, true)?.0);
    "cross_entropy 512x512" [[512, 512]] {[512], 512} |t| {
        t[0].cross_entropy(&t[1], &CrossEntropy::default())
    };
    "linear_cross_entropy 256x64x1000" [[256, 64], [1000, 64]] {[256], 1000} |t| {
        t[0].linear_cross_entropy(&t[1], &t[2], -100, Reduction::Mean)
    };
    "mse_loss" [[512, 512], [512, 512]] |t| t[0].mse_loss(&t[1], Reduction::Mean);
    "attention 4x4x128x32 causal" [[4, 4, 128, 32], [4, 4, 128, 32], [4, 4, 128, 32]] |t| {
        let causal = AttentionOptions { causal: true, ..Default::default() };
        t[0].scaled_dot_product_attention(&t[1], &t[2], &causal)
    };
    "rotary 4x4x128x32" [[4, 4, 128, 32], [128, 16], [128, 16]] |t| t[0].rotary(&t[1], &t[2], false);
    "conv2d 8x16x24x24 3x3" [[8, 16, 24, 24], [32, 16, 3, 3], [32]] |t| {
        t[0].conv2d(&t[1], Some(&t[2]), &padded(1))
    };
    "conv2d 8x32x24x24 1x1" [[8, 32, 24, 24], [32, 32, 1, 1]] |t| t[0].conv2d(&t[1], None, &padded(0));
    "conv2d 8x32x24x24 depthwise" [[8, 32, 24, 24], [32, 1, 3, 3]] |t| {
        t[0].conv2d(&t[1], None, &ConvOptions { groups: 32, ..padded(1) })
    };
    "conv2d 16x128x28x28 depthwise" [[16, 128, 28, 28], [128, 1, 3, 3]] |t| {
        t[0].conv2d(&t[1], None, &ConvOptions { groups: 128, ..padded(1) })
    };
    "conv2d 16x128x28x28 depthwise, stride 2" [[16, 128, 28, 28], [128, 1, 3, 3]] |t| {
        t[0].conv2d(&t[1], None, &ConvOptions { groups: 128, stride: vec![2], ..padded(1) })
    };
    "conv1d 8x32x256 5" [[8, 32, 256], [32, 32, 5]] |t| t[0].conv1d(&t[1], None, &one_padded(2));
    "max_pool 8x32x24x24" [[8, 32, 24, 24]] |t| Ok(t[0].max_pool(&PoolOptions::new(&[2, 2]))?.0);
    "avg_pool 8x32x24x24" [[8, 32, 24, 24]] |t| t[0].avg_pool(&PoolOptions::new(&[2, 2]), true, None);
    "interpolate 8x16x16x16" [[8, 16, 16, 16]] |t| {
        t[0].interpolate(&[32, 32], Interpolation::Linear { align_corners: false })
    };
    "cholesky 64" [[64, 64]] |t| {
        t[0].matmul(&t[0].t()?)?.add(&Tensor::eye(64, DType::F32).mul_scalar(64.0)?)?.cholesky(false)
    };
};

/// Two-dimensional convolutions that keep the size of kernels with this half width.
fn padded(half: usize) -> ConvOptions {
    ConvOptions {
        padding: vec![(half, half); 2],
        ..Default::default()
    }
}

/// The one-dimensional twin of [`padded`].
fn one_padded(half: usize) -> ConvOptions {
    ConvOptions {
        padding: vec![(half, half)],
        ..Default::default()
    }
}

pub fn subjects(wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Subject>> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let name = format!("medium/{}", family.name);
        if !wanted(&name) {
            continue;
        }
        let floats = family.inputs.iter().zip(1..);
        let numbers = family.numbers.iter().zip(1..);
        let inputs: Vec<Tensor> = floats
            .map(|(dims, seed)| Tensor::randn(dims.to_vec(), DType::F32, seed))
            .chain(numbers.map(|((dims, limit), seed)| {
                classes(dims.iter().product(), *limit, seed)?.reshape(dims.to_vec())
            }))
            .collect::<Result<_>>()?;
        let run = family.run;
        let function = Box::new(move |t: &[Tensor]| Ok(vec![run(t)?]));
        all.push(Subject::of_function(name, inputs, function, true)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_a_forward_pass_and_a_step() {
        let all = subjects(&|_| true).unwrap();
        assert_eq!(all.len(), FAMILIES.len());
        for subject in all {
            (subject.forward)().unwrap_or_else(|e| panic!("{}: {e}", subject.name));
            let step = subject
                .step
                .unwrap_or_else(|| panic!("{} has no step", subject.name));
            step().unwrap_or_else(|e| panic!("{}: {e}", subject.name));
        }
    }
}
