//! The edges of shape rules: what is refused, and its nearest neighbour that is not.
//!
//! Every refusal is met from both sides: a rule that became stricter fails here like one that
//! became looser. A message begins with the name of the operation that refused.

mod elements;
mod layers;

use entrenar_core::ops::pad::Padding;
use entrenar_core::{DType, Result, Tensor};

pub fn t(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32)
}

pub fn ints(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::I64)
}

/// Each pair is an outcome and the sizes it must have, or `None` where it must be refused by `op`.
#[track_caller]
pub fn edges(op: &str, cases: Vec<(Result<Tensor>, Option<&[usize]>)>) {
    for (k, (outcome, expected)) in cases.into_iter().enumerate() {
        match (outcome, expected) {
            (Ok(y), Some(dims)) => assert_eq!(y.dims(), dims, "{op}, case {k}"),
            (Err(e), None) => {
                let message = e.to_string();
                assert!(
                    message.contains(&format!("[{op}]")),
                    "{op}, case {k}: {message}"
                );
            }
            (Ok(y), None) => panic!("{op}, case {k}: taken, and it gave {}", y.shape()),
            (Err(e), Some(dims)) => panic!("{op}, case {k}: expected {dims:?}, got {e}"),
        }
    }
}

#[test]
fn products() {
    let two = |a: &[usize], b: &[usize]| t(a).matmul(&t(b));
    edges(
        "matmul",
        vec![
            (two(&[2, 3], &[3, 4]), Some(&[2, 4])),
            (two(&[2, 3], &[4, 3]), None),
            (two(&[], &[3, 4]), None),
            (two(&[2, 3], &[]), None),
            (two(&[3], &[3]), Some(&[])),
            (two(&[3], &[4]), None),
            (two(&[3], &[3, 4]), Some(&[4])),
            (two(&[4], &[3, 4]), None),
            (two(&[2, 3], &[3]), Some(&[2])),
            (two(&[2, 3], &[2]), None),
            (two(&[5, 2, 3], &[3, 4]), Some(&[5, 2, 4])),
            (two(&[2, 3], &[5, 3, 4]), Some(&[5, 2, 4])),
            (two(&[5, 2, 3], &[1, 3, 4]), Some(&[5, 2, 4])),
            (two(&[5, 2, 3], &[4, 3, 4]), None),
            (two(&[5, 2, 3], &[3]), Some(&[5, 2])),
            (two(&[3], &[5, 3, 4]), Some(&[5, 4])),
        ],
    );
    edges(
        "dot",
        vec![
            (t(&[3]).dot(&t(&[3])), Some(&[])),
            (t(&[3]).dot(&t(&[3, 1])), None),
            (t(&[1, 3]).dot(&t(&[3])), None),
        ],
    );
    edges(
        "outer",
        vec![
            (t(&[3]).outer(&t(&[2])), Some(&[3, 2])),
            (t(&[3]).outer(&t(&[2, 1])), None),
            (t(&[3, 1]).outer(&t(&[2])), None),
        ],
    );
    let linear = |x: &[usize], w: &[usize], b: &[usize]| t(x).linear(&t(w), Some(&t(b)));
    edges(
        "linear",
        vec![
            (linear(&[5, 3], &[4, 3], &[4]), Some(&[5, 4])),
            (linear(&[5, 3], &[3], &[]), Some(&[5])),
            (linear(&[5, 3], &[4, 2], &[4]), None),
            (linear(&[5, 3], &[1, 4, 3], &[4]), None),
            (linear(&[5, 3], &[], &[]), None),
            (linear(&[], &[4, 3], &[4]), None),
            (linear(&[5, 3], &[4, 3], &[3]), None),
            (linear(&[5, 3], &[4, 3], &[1, 4]), None),
        ],
    );
    let bilinear = |a: &[usize], b: &[usize], w: &[usize], bias: &[usize]| {
        t(a).bilinear(&t(b), &t(w), Some(&t(bias)))
    };
    edges(
        "bilinear",
        vec![
            (bilinear(&[5, 3], &[5, 2], &[4, 3, 2], &[4]), Some(&[5, 4])),
            (bilinear(&[3], &[2], &[4, 3, 2], &[4]), Some(&[4])),
            (bilinear(&[5, 3], &[6, 2], &[4, 3, 2], &[4]), None),
            (bilinear(&[5, 3], &[2], &[4, 3, 2], &[4]), None),
            (bilinear(&[], &[], &[4, 3, 2], &[4]), None),
            (bilinear(&[5, 3], &[5, 2], &[4, 2, 2], &[4]), None),
            (bilinear(&[5, 3], &[5, 2], &[4, 3, 3], &[4]), None),
            (bilinear(&[5, 3], &[5, 2], &[3, 2], &[4]), None),
            (bilinear(&[5, 3], &[5, 2], &[4, 3, 2], &[3]), None),
        ],
    );
    let addmm = |s: &[usize], a: &[usize], b: &[usize]| t(s).addmm(&t(a), &t(b), 0.5, 2.0);
    edges(
        "addmm",
        vec![
            (addmm(&[2, 4], &[2, 3], &[3, 4]), Some(&[2, 4])),
            (addmm(&[4], &[2, 3], &[3, 4]), Some(&[2, 4])),
            (addmm(&[3], &[2, 3], &[3, 4]), None),
            (addmm(&[1, 2, 4], &[2, 3], &[3, 4]), None),
            (addmm(&[4], &[1, 2, 3], &[3, 4]), None),
            (addmm(&[4], &[2, 3], &[1, 3, 4]), None),
        ],
    );
    let baddbmm = |s: &[usize], a: &[usize], b: &[usize]| t(s).baddbmm(&t(a), &t(b), 0.0, 1.0);
    edges(
        "baddbmm",
        vec![
            (baddbmm(&[4], &[5, 2, 3], &[5, 3, 4]), Some(&[5, 2, 4])),
            (baddbmm(&[4], &[5, 2, 3], &[1, 3, 4]), None),
            (baddbmm(&[4], &[2, 3], &[3, 4]), None),
            (baddbmm(&[3, 1, 1], &[5, 2, 3], &[5, 3, 4]), None),
        ],
    );
    let solve = |a: &[usize], b: &[usize], left: bool| {
        let a = Tensor::eye(a[a.len() - 1], DType::F32).broadcast_to(a);
        a?.solve_triangular(&t(b), true, left, false)
    };
    edges(
        "solve_triangular",
        vec![
            (solve(&[3, 3], &[3, 2], true), Some(&[3, 2])),
            (solve(&[3, 3], &[2, 3], false), Some(&[2, 3])),
            (solve(&[3, 3], &[2, 3], true), None),
            (solve(&[3, 3], &[3], true), None),
            (
                t(&[3]).solve_triangular(&t(&[3, 2]), true, true, false),
                None,
            ),
            (
                t(&[2, 3]).solve_triangular(&t(&[3, 2]), true, true, false),
                None,
            ),
            (solve(&[5, 3, 3], &[3, 2], true), Some(&[5, 3, 2])),
            (solve(&[3, 3], &[5, 3, 2], true), Some(&[5, 3, 2])),
            (solve(&[4, 3, 3], &[5, 3, 2], true), None),
            (
                ints(&[3, 3]).solve_triangular(&ints(&[3, 2]), true, true, false),
                None,
            ),
        ],
    );
}

#[test]
fn slices_and_parts() {
    let x = t(&[2, 3]);
    edges(
        "slice",
        vec![
            (x.slice(1, 0, 3, 1), Some(&[2, 3])),
            (x.slice(1, 3, 3, 1), Some(&[2, 0])),
            (x.slice(1, 0, 4, 1), None),
            (x.slice(1, 2, 1, 1), None),
            (x.slice(1, 0, 3, 0), None),
            (x.slice(1, 0, 3, 2), Some(&[2, 2])),
            (x.slice(1, 1, 3, 5), Some(&[2, 1])),
            (x.slice(2, 0, 1, 1), None),
            (x.slice(-2, 1, 2, 1), Some(&[1, 3])),
            (x.narrow(1, 1, 2), Some(&[2, 2])),
            (x.narrow(1, 1, 3), None),
            (x.select(1, 2), Some(&[2])),
            (x.select(1, 3), None),
            (Tensor::scalar(1.0f32).slice(0, 0, 1, 1), None),
        ],
    );
    let sizes = |parts: Result<Vec<Tensor>>| -> Option<Vec<usize>> {
        parts
            .ok()
            .map(|p| p.iter().map(|t| t.dims()[t.rank() - 1]).collect())
    };
    let x = t(&[2, 7]);
    assert_eq!(sizes(x.split(&[3, 4], 1)), Some(vec![3, 4]));
    assert_eq!(sizes(x.split(&[7, 0], -1)), Some(vec![7, 0]));
    assert_eq!(sizes(x.split(&[3, 3], 1)), None);
    assert_eq!(sizes(x.split(&[3, 5], 1)), None);
    assert_eq!(sizes(x.chunk(3, 1)), Some(vec![3, 3, 1]));
    assert_eq!(sizes(x.chunk(7, 1)), Some(vec![1; 7]));
    assert_eq!(sizes(x.chunk(9, 1)), Some(vec![1; 7]));
    assert_eq!(sizes(x.chunk(1, 1)), Some(vec![7]));
    assert_eq!(sizes(x.chunk(0, 1)), None);
    assert_eq!(sizes(t(&[2, 0]).chunk(3, 1)), Some(vec![0]));
    // The parts are the elements in order, not just of the right sizes.
    let x = Tensor::arange(0.0, 7.0, 1.0, DType::I64).unwrap();
    let parts = x.split(&[2, 4, 1], 0).unwrap();
    let values: Vec<Vec<i64>> = parts.iter().map(|p| p.to_vec().unwrap()).collect();
    assert_eq!(values, [vec![0, 1], vec![2, 3, 4, 5], vec![6]]);
}

#[test]
fn shapes_and_their_sizes() {
    let x = t(&[2, 3, 4]);
    edges(
        "reshape",
        vec![
            (x.reshape([24]), Some(&[24])),
            (x.reshape([4, 6]), Some(&[4, 6])),
            (x.reshape([25]), None),
            (x.reshape([23]), None),
        ],
    );
    edges(
        "view",
        vec![
            (x.view(&[-1]), Some(&[24])),
            (x.view(&[6, -1]), Some(&[6, 4])),
            (x.view(&[-1, 5]), None),
            (x.view(&[-1, -1]), None),
            (x.view(&[-2, 12]), None),
            (x.view(&[24, -2]), None),
            (x.view(&[2, 12]), Some(&[2, 12])),
            (x.view(&[2, 11]), None),
            (t(&[0, 3]).view(&[0, 7]), Some(&[0, 7])),
            (t(&[0, 3]).view(&[-1, 3]), Some(&[0, 3])),
            (t(&[0, 3]).view(&[-1, 0]), Some(&[0, 0])),
        ],
    );
    edges(
        "flatten",
        vec![
            (x.flatten(0, -1), Some(&[24])),
            (x.flatten(1, 1), Some(&[2, 3, 4])),
            (x.flatten(0, 1), Some(&[6, 4])),
            (x.flatten(1, 2), Some(&[2, 12])),
            (x.flatten(2, 1), None),
            (x.flatten(0, 3), None),
            (Tensor::scalar(1.0f32).flatten(0, 0), Some(&[1])),
        ],
    );
    edges(
        "unsqueeze",
        vec![
            (x.unsqueeze(3), Some(&[2, 3, 4, 1])),
            (x.unsqueeze(4), None),
            (x.unsqueeze(0), Some(&[1, 2, 3, 4])),
            (x.unsqueeze(-1), Some(&[2, 3, 4, 1])),
            (x.unsqueeze(-3), Some(&[2, 1, 3, 4])),
            (x.unsqueeze(-4), Some(&[1, 2, 3, 4])),
            (x.unsqueeze(-5), None),
        ],
    );
    let thin = t(&[1, 3, 1]);
    edges(
        "squeeze",
        vec![
            (thin.squeeze(0), Some(&[3, 1])),
            (thin.squeeze(-1), Some(&[1, 3])),
            (thin.squeeze(1), Some(&[1, 3, 1])),
            (thin.squeeze(3), None),
            (thin.squeeze_all(), Some(&[3])),
        ],
    );
    edges(
        "permute",
        vec![
            (x.permute(&[2, 0, 1]), Some(&[4, 2, 3])),
            (x.permute(&[0, 1, 2]), Some(&[2, 3, 4])),
            (x.permute(&[-1, 1, 0]), Some(&[4, 3, 2])),
            (x.permute(&[0, 1]), None),
            (x.permute(&[0, 1, 1]), None),
            (x.permute(&[0, 1, 2, 2]), None),
            (x.permute(&[0, 1, 3]), None),
        ],
    );
    edges(
        "t",
        vec![
            (t(&[2, 3]).t(), Some(&[3, 2])),
            (t(&[3]).t(), Some(&[3])),
            (t(&[]).t(), Some(&[])),
            (x.t(), None),
        ],
    );
    edges(
        "movedim",
        vec![
            (x.movedim(0, 2), Some(&[3, 4, 2])),
            (x.movedim(-1, 0), Some(&[4, 2, 3])),
            (x.movedim(1, 1), Some(&[2, 3, 4])),
            (x.movedim(3, 0), None),
            (x.movedim(0, 3), None),
        ],
    );
    edges(
        "transpose",
        vec![
            (x.transpose(0, -1), Some(&[4, 3, 2])),
            (x.transpose(1, 1), Some(&[2, 3, 4])),
            (x.transpose(0, 3), None),
            (t(&[]).transpose(0, -1), Some(&[])),
        ],
    );
    edges(
        "broadcast_to",
        vec![
            (t(&[3, 1]).broadcast_to([2, 3, 4]), Some(&[2, 3, 4])),
            (t(&[3, 1]).broadcast_to([2, 4, 4]), None),
            (t(&[3, 1]).broadcast_to([3]), None),
            (t(&[3, 2]).broadcast_to([3, 1]), None),
        ],
    );
    edges(
        "expand",
        vec![
            (t(&[3, 1]).expand(&[-1, 4]), Some(&[3, 4])),
            (t(&[3, 1]).expand(&[2, -1, -1]), Some(&[2, 3, 1])),
            (t(&[3, 1]).expand(&[-1, 3, 4]), None),
            (t(&[3, 1]).expand(&[3, -2]), None),
            (t(&[3, 1]).expand(&[3]), None),
        ],
    );
    let to = |x: &[usize], shape: &[usize]| t(x).sum_to(&shape.into());
    edges(
        "sum_to",
        vec![
            (to(&[2, 3, 4], &[3, 1]), Some(&[3, 1])),
            (to(&[2, 3, 4], &[]), Some(&[])),
            (to(&[2, 3, 4], &[2, 1]), None),
            (to(&[3, 1], &[3, 4]), None),
            (to(&[3], &[1, 3]), None),
        ],
    );
}

#[test]
fn joined_and_repeated() {
    let join = |parts: &[&[usize]], dim: isize| {
        let parts: Vec<Tensor> = parts.iter().map(|p| t(p)).collect();
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), dim)
    };
    edges(
        "concat",
        vec![
            (join(&[&[2, 3], &[2, 4]], 1), Some(&[2, 7])),
            (join(&[&[2, 3], &[2, 4]], -1), Some(&[2, 7])),
            (join(&[&[2, 3], &[2, 4]], 0), None),
            (join(&[&[2, 3], &[3]], 0), None),
            (join(&[&[2, 3], &[2, 3]], 2), None),
            (join(&[&[2, 3], &[0], &[1, 3]], 0), Some(&[3, 3])),
            (join(&[&[2, 3], &[0]], 0), Some(&[2, 3])),
            (join(&[&[0], &[0]], 0), Some(&[0])),
            (join(&[&[], &[]], 0), None),
            (join(&[&[2, 0], &[2, 3]], 1), Some(&[2, 3])),
            (join(&[], 0), None),
        ],
    );
    let pile = |parts: &[&[usize]], dim: isize| {
        let parts: Vec<Tensor> = parts.iter().map(|p| t(p)).collect();
        Tensor::stack(&parts.iter().collect::<Vec<_>>(), dim)
    };
    edges(
        "stack",
        vec![
            (pile(&[&[2, 3], &[2, 3]], 0), Some(&[2, 2, 3])),
            (pile(&[&[4, 3], &[4, 3]], 2), Some(&[4, 3, 2])),
            (pile(&[&[4, 3], &[4, 3]], -1), Some(&[4, 3, 2])),
            (pile(&[&[4, 3], &[4, 3]], -3), Some(&[2, 4, 3])),
            (pile(&[&[2, 3], &[3, 2]], 0), None),
            (pile(&[&[], &[], &[]], 0), Some(&[3])),
            (pile(&[], 0), None),
        ],
    );
    let x = t(&[2, 3]);
    edges(
        "pad",
        vec![
            (
                x.pad(&[(1, 0), (0, 2)], Padding::Constant(1.0)),
                Some(&[3, 5]),
            ),
            (x.pad(&[(1, 0)], Padding::Constant(1.0)), None),
            (x.pad(&[(0, 0), (2, 2)], Padding::Reflect), Some(&[2, 7])),
            (x.pad(&[(0, 0), (3, 0)], Padding::Reflect), None),
            (x.pad(&[(0, 0), (0, 3)], Padding::Reflect), None),
            (x.pad(&[(0, 0), (3, 3)], Padding::Circular), Some(&[2, 9])),
            (x.pad(&[(0, 0), (4, 0)], Padding::Circular), None),
            (x.pad(&[(0, 0), (9, 9)], Padding::Replicate), Some(&[2, 21])),
            (t(&[2, 0]).pad(&[(0, 0), (1, 0)], Padding::Replicate), None),
            (
                t(&[2, 0]).pad(&[(1, 0), (0, 0)], Padding::Replicate),
                Some(&[3, 0]),
            ),
        ],
    );
    edges(
        "roll",
        vec![
            (x.roll(&[1, -1], &[0, 1]), Some(&[2, 3])),
            (x.roll(&[7], &[]), Some(&[2, 3])),
            (x.roll(&[1, 2], &[]), None),
            (x.roll(&[1], &[0, 1]), None),
            (x.roll(&[], &[]), Some(&[2, 3])),
            (x.roll(&[1], &[2]), None),
            (t(&[0, 3]).roll(&[1], &[0]), Some(&[0, 3])),
        ],
    );
    edges(
        "repeat",
        vec![
            (x.repeat(&[2, 1]), Some(&[4, 3])),
            (x.repeat(&[5, 2, 1]), Some(&[5, 4, 3])),
            (x.repeat(&[2]), None),
            (x.repeat(&[usize::MAX, 1]), None),
            (x.tile(&[2]), Some(&[2, 6])),
        ],
    );
    edges(
        "repeat_interleave",
        vec![
            (x.repeat_interleave(2, 1), Some(&[2, 6])),
            (x.repeat_interleave(0, 0), Some(&[0, 3])),
            (x.repeat_interleave(2, 2), None),
            (t(&[]).repeat_interleave(3, 0), Some(&[3])),
            (t(&[]).repeat_interleave(3, 1), None),
        ],
    );
    edges(
        "flip",
        vec![
            (x.flip(&[0, -1]), Some(&[2, 3])),
            (x.flip(&[2]), None),
            (x.flip(&[0, -2]), None),
            (x.flip(&[]), Some(&[2, 3])),
        ],
    );
}
