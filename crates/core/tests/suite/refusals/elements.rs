//! The edges of what picks, orders and makes elements: diagonals, windows, indices, reductions,
//! choices and ranges.

use entrenar_core::{DType, Tensor};

use super::{edges, ints, t};

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
