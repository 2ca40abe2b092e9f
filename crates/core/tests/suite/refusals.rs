//! The edges of shape rules: what is refused, and its nearest neighbour that is not.
//!
//! Every refusal is met from both sides: a rule that became stricter fails here like one that
//! became looser. A message begins with the name of the operation that refused.

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

#[test]
fn diagonals_and_windows() {
    let x = t(&[2, 3]);
    edges(
        "diagonal",
        vec![
            (x.diagonal(0, 0, 1), Some(&[2])),
            (x.diagonal(2, 0, 1), Some(&[1])),
            (x.diagonal(3, 0, 1), Some(&[0])),
            (x.diagonal(-1, 0, 1), Some(&[1])),
            (x.diagonal(-2, 0, 1), Some(&[0])),
            (x.diagonal(0, 0, 0), None),
            (x.diagonal(0, 0, 2), None),
            (t(&[4]).diagonal(0, 0, 0), None),
        ],
    );
    edges(
        "diag_embed",
        vec![
            (x.diag_embed(-2, -2, -1), Some(&[2, 5, 5])),
            (x.diag_embed(1, 0, 2), Some(&[4, 2, 4])),
            (x.diag_embed(0, 1, 1), None),
            (x.diag_embed(0, 0, 3), None),
            (t(&[]).diag_embed(0, 0, 1), None),
        ],
    );
    edges(
        "tril",
        vec![(x.tril(0), Some(&[2, 3])), (t(&[3]).tril(0), None)],
    );
    edges(
        "unfold",
        vec![
            (x.unfold(1, 3, 1), Some(&[2, 1, 3])),
            (x.unfold(1, 4, 1), None),
            (x.unfold(1, 2, 1), Some(&[2, 2, 2])),
            (x.unfold(1, 2, 2), Some(&[2, 1, 2])),
            (x.unfold(1, 0, 1), Some(&[2, 4, 0])),
            (x.unfold(1, 2, 0), None),
            (t(&[]).unfold(0, 1, 1), Some(&[1])),
            (t(&[]).unfold(0, 2, 1), None),
        ],
    );
    edges(
        "pixel_shuffle",
        vec![
            (t(&[8, 3, 5]).pixel_shuffle(2), Some(&[2, 6, 10])),
            (t(&[7, 8, 3, 5]).pixel_shuffle(2), Some(&[7, 2, 6, 10])),
            (t(&[8, 3, 5]).pixel_shuffle(1), Some(&[8, 3, 5])),
            (t(&[8, 3, 5]).pixel_shuffle(3), None),
            (t(&[8, 3, 5]).pixel_shuffle(0), None),
            (t(&[8, 3]).pixel_shuffle(2), None),
            (t(&[8, 3, 5]).pixel_shuffle(usize::MAX), None),
        ],
    );
    edges(
        "pixel_unshuffle",
        vec![
            (t(&[2, 6, 10]).pixel_unshuffle(2), Some(&[8, 3, 5])),
            (t(&[7, 2, 6, 9]).pixel_unshuffle(3), Some(&[7, 18, 2, 3])),
            (t(&[2, 6, 10]).pixel_unshuffle(1), Some(&[2, 6, 10])),
            (t(&[2, 6, 9]).pixel_unshuffle(2), None),
            (t(&[2, 5, 10]).pixel_unshuffle(2), None),
            (t(&[6, 10]).pixel_unshuffle(2), None),
            (t(&[2, 6, 10]).pixel_unshuffle(0), None),
        ],
    );
}

#[test]
fn indices() {
    let x = t(&[3, 2]);
    edges(
        "gather",
        vec![
            (x.gather(0, &ints(&[5, 2])), Some(&[5, 2])),
            (x.gather(0, &ints(&[5, 1])), Some(&[5, 1])),
            (x.gather(0, &ints(&[5, 3])), None),
            (x.gather(1, &ints(&[4, 1])), None),
            (x.gather(0, &ints(&[5])), None),
            (x.gather(0, &t(&[3, 2])), None),
            (x.gather(0, &ints(&[0])), Some(&[0])),
            (x.gather(0, &ints(&[1, 1, 0])), Some(&[1, 1, 0])),
            (x.gather(0, &t(&[0])), None),
        ],
    );
    edges(
        "scatter",
        vec![
            (x.scatter(0, &ints(&[1, 2]), &t(&[1, 2])), Some(&[3, 2])),
            (x.scatter(0, &ints(&[1, 2]), &t(&[4, 5])), Some(&[3, 2])),
            (x.scatter(0, &ints(&[2, 2]), &t(&[1, 2])), None),
            (x.scatter(0, &ints(&[1, 2]), &t(&[2])), None),
            (x.scatter(0, &ints(&[1, 3]), &t(&[1, 3])), None),
            (x.scatter(0, &ints(&[1, 2]), &ints(&[1, 2])), None),
            (x.scatter(0, &t(&[1, 2]), &t(&[1, 2])), None),
        ],
    );
    edges(
        "scatter_add",
        vec![
            (x.scatter_add(1, &ints(&[3, 4]), &t(&[3, 4])), Some(&[3, 2])),
            (x.scatter_add(1, &ints(&[3, 4]), &t(&[3, 3])), None),
            (x.scatter_add(1, &ints(&[4, 4]), &t(&[4, 4])), None),
        ],
    );
    edges(
        "index_select",
        vec![
            (x.index_select(0, &ints(&[5])), Some(&[5, 2])),
            (x.index_select(1, &ints(&[])), Some(&[3, 1])),
            (x.index_select(0, &ints(&[1, 5])), None),
            (x.index_select(2, &ints(&[5])), None),
            (x.index_select(0, &t(&[5])), None),
            (t(&[]).index_select(0, &ints(&[1])), Some(&[])),
            (t(&[]).index_select(0, &ints(&[2])), None),
        ],
    );
    edges(
        "index_add",
        vec![
            (x.index_add(0, &ints(&[5]), &t(&[5, 2])), Some(&[3, 2])),
            (x.index_add(0, &ints(&[5]), &t(&[4, 2])), None),
            (x.index_add(0, &ints(&[5]), &ints(&[5, 2])), None),
            (x.index_add(0, &ints(&[1, 5]), &t(&[5, 2])), None),
        ],
    );
    edges(
        "take_along_dim",
        vec![
            (x.take_along_dim(&ints(&[5, 1]), 0), Some(&[5, 2])),
            (x.take_along_dim(&ints(&[5, 2]), 0), Some(&[5, 2])),
            (x.take_along_dim(&ints(&[5, 3]), 0), None),
            (x.take_along_dim(&ints(&[5]), 0), None),
            (x.take_along_dim(&t(&[5, 2]), 0), None),
            (t(&[]).take_along_dim(&ints(&[]), 0), Some(&[])),
        ],
    );
    edges(
        "embedding",
        vec![
            (x.embedding(&ints(&[4, 5])), Some(&[4, 5, 2])),
            (x.embedding(&t(&[4])), None),
            (t(&[3]).embedding(&ints(&[4])), None),
            (t(&[1, 3, 2]).embedding(&ints(&[4])), None),
        ],
    );
    edges(
        "one_hot",
        vec![
            (ints(&[4]).one_hot(1), Some(&[4, 1])),
            (ints(&[4]).one_hot(0), None),
            (t(&[4]).one_hot(2), None),
        ],
    );
    let pick = |entries: &[isize]| {
        let entries: Vec<_> = entries.iter().map(|&i| i.into()).collect();
        x.index(&entries)
    };
    edges(
        "index",
        vec![
            (pick(&[2]), Some(&[2])),
            (pick(&[3]), None),
            (pick(&[-3]), Some(&[2])),
            (pick(&[-4]), None),
            (pick(&[0, 1]), Some(&[])),
            (pick(&[0, 1, 0]), None),
        ],
    );
}

#[test]
fn reductions_and_order() {
    let x = t(&[2, 3]);
    edges(
        "sum",
        vec![
            (x.sum_dim(&[0, 1], false), Some(&[])),
            (x.sum_dim(&[0, 1], true), Some(&[1, 1])),
            (x.sum_dim(&[1], false), Some(&[2])),
            (x.sum_dim(&[0, 0], false), None),
            (x.sum_dim(&[0, -2], false), None),
            (x.sum_dim(&[2], false), None),
            (t(&[]).sum_dim(&[0], false), Some(&[])),
        ],
    );
    edges(
        "mean",
        vec![
            (x.mean_dim(&[1], true), Some(&[2, 1])),
            (ints(&[2, 3]).mean(), None),
        ],
    );
    edges(
        "topk",
        vec![
            (x.topk(3, 1, true).map(|p| p.0), Some(&[2, 3])),
            (x.topk(4, 1, true).map(|p| p.0), None),
            (x.topk(0, 1, true).map(|p| p.1), Some(&[2, 0])),
            (t(&[]).topk(1, 0, true).map(|p| p.0), Some(&[])),
            (t(&[]).topk(0, 0, true).map(|p| p.0), None),
            (t(&[]).topk(2, 0, true).map(|p| p.0), None),
        ],
    );
    edges(
        "amax",
        vec![
            (t(&[0, 3]).amax(&[1], false), Some(&[0])),
            (t(&[0, 3]).amax(&[0], false), None),
        ],
    );
    edges(
        "argmin",
        vec![
            (x.argmin(None, false), Some(&[])),
            (x.argmin(None, true), Some(&[1, 1])),
            (x.argmin(Some(1), false), Some(&[2])),
            (x.argmin(Some(1), true), Some(&[2, 1])),
            (t(&[0, 3]).argmin(Some(1), false), Some(&[0])),
            (t(&[0, 3]).argmin(Some(0), false), None),
            (t(&[0, 3]).argmin(None, false), None),
        ],
    );
    let norm = |shape: &[usize], p: f64| t(shape).norm(p, &[1], false);
    edges(
        "norm",
        vec![
            (norm(&[2, 3], -1.0), Some(&[2])),
            (norm(&[2, 3], f64::NAN), None),
            (norm(&[2, 0], 0.0), Some(&[2])),
            (norm(&[2, 0], -1.0), None),
            (norm(&[2, 0], f64::INFINITY), None),
            (norm(&[2, 0], 2.0), Some(&[2])),
            (norm(&[0, 2], -1.0), Some(&[0])),
            (ints(&[2, 3]).norm(2.0, &[1], false), None),
        ],
    );
    edges(
        "dropout",
        vec![
            (x.dropout(0.0, 1, 2), Some(&[2, 3])),
            (x.dropout(1.0, 1, 2), Some(&[2, 3])),
            (x.dropout(1.1, 1, 2), None),
            (x.dropout(-0.1, 1, 2), None),
        ],
    );
}

#[test]
fn choices() {
    let mask = |shape: &[usize]| Tensor::full(shape, 1.0, DType::Bool);
    let choose = |c: &Tensor, a: &[usize], b: &[usize]| Tensor::where_(c, &t(a), &t(b));
    edges(
        "where",
        vec![
            (choose(&mask(&[2, 1]), &[3], &[]), Some(&[2, 3])),
            (choose(&t(&[2, 1]), &[3], &[]), None),
            (choose(&mask(&[2]), &[3], &[]), None),
            (choose(&mask(&[3]), &[3], &[2]), None),
        ],
    );
    let x = t(&[2, 3]);
    edges(
        "clamp",
        vec![
            (x.clamp(None, Some(1.0)), Some(&[2, 3])),
            (x.clamp(Some(1.0), None), Some(&[2, 3])),
            (x.clamp(None, None), None),
            (x.clamp_tensor(None, None), None),
            (x.clamp_tensor(Some(&t(&[3])), Some(&t(&[]))), Some(&[2, 3])),
            (x.clamp_tensor(Some(&t(&[2])), Some(&t(&[]))), None),
        ],
    );
    // Whole bounds leave integers integers, fractional ones do not.
    let five = Tensor::full([1], 5.0, DType::I64);
    for (low, high, dtype) in [
        (Some(1.0), Some(3.0), DType::I64),
        (Some(1.0), None, DType::I64),
        (None, Some(3.0), DType::I64),
        (Some(1.5), None, DType::F32),
        (None, Some(2.5), DType::F32),
        (Some(1.0), Some(2.5), DType::F32),
        (Some(0.5), Some(3.0), DType::F32),
    ] {
        let y = five.clamp(low, high).unwrap();
        assert_eq!(y.dtype(), dtype, "{low:?} {high:?}");
        let expected = 5.0f64.max(low.unwrap_or(0.0)).min(high.unwrap_or(9.0));
        assert_eq!(y.array().to_f64_vec(), [expected], "{low:?} {high:?}");
    }
    edges(
        "prelu",
        vec![
            (t(&[2, 3, 4]).prelu(&t(&[3])), Some(&[2, 3, 4])),
            (t(&[2, 3, 4]).prelu(&t(&[1])), Some(&[2, 3, 4])),
            (t(&[2, 3, 4]).prelu(&t(&[])), Some(&[2, 3, 4])),
            (t(&[3]).prelu(&t(&[3])), Some(&[3])),
            (t(&[2, 3, 4]).prelu(&t(&[2])), None),
            (t(&[2, 3, 4]).prelu(&t(&[1, 3])), None),
        ],
    );
    edges(
        "glu",
        vec![
            (t(&[2, 4]).glu(1), Some(&[2, 2])),
            (t(&[2, 4]).glu(0), Some(&[1, 4])),
            (t(&[2, 3]).glu(1), None),
            (t(&[]).glu(0), None),
        ],
    );
    edges(
        "hardtanh",
        vec![
            (x.hardtanh(1.0, 1.0), Some(&[2, 3])),
            (x.hardtanh(1.0, 0.9), None),
            (x.hardtanh(f64::NAN, 0.9), None),
            (x.hardtanh(0.0, f64::NAN), None),
        ],
    );
    edges(
        "celu",
        vec![(x.celu(-1.0), Some(&[2, 3])), (x.celu(0.0), None)],
    );
    edges(
        "softplus",
        vec![
            (x.softplus(-1.0, 20.0), Some(&[2, 3])),
            (x.softplus(0.0, 20.0), None),
        ],
    );
}

#[test]
fn ranges_and_identities() {
    let range = |a: f64, b: f64, s: f64| Tensor::arange(a, b, s, DType::F64);
    edges(
        "arange",
        vec![
            (range(0.0, 5.0, 2.0), Some(&[3])),
            (range(0.0, 6.0, 2.0), Some(&[3])),
            (range(5.0, 0.0, -2.0), Some(&[3])),
            (range(3.0, 3.0, 1.0), Some(&[0])),
            (range(0.0, 5.0, 0.0), None),
            (range(3.0, 3.0, 0.0), None),
            (range(0.0, 5.0, -1.0), None),
            (range(0.0, f64::INFINITY, 1.0), None),
            (range(f64::NAN, 1.0, 1.0), None),
        ],
    );
    assert_eq!(
        range(1.0, 4.0, 0.5).unwrap().to_vec::<f64>().unwrap(),
        [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    );
    assert_eq!(
        Tensor::eye(3, DType::I64).to_vec::<i64>().unwrap(),
        [1, 0, 0, 0, 1, 0, 0, 0, 1]
    );
    let ones = Tensor::ones([2], DType::I64);
    edges(
        "mul_scalar",
        vec![
            (ones.mul_scalar(2.0), Some(&[2])),
            (ones.mul_scalar(0.5), None),
            (t(&[2]).mul_scalar(0.5), Some(&[2])),
        ],
    );
}
