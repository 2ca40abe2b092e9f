//! Cross-entropy against its definition.

use crate::*;
use entrenar_cpu::loss::*;
use entrenar_cpu::product::Compute;

/// PyTorch's definition for one row.
fn definition(x: &[f64], y: usize, w: &[f64], smoothing: f64) -> f64 {
    let total: f64 = x.iter().map(|v| v.exp()).sum();
    let log_p: Vec<f64> = x.iter().map(|v| v - total.ln()).collect();
    let smooth: f64 = log_p.iter().zip(w).map(|(l, w)| -l * w).sum();
    (1.0 - smoothing) * -log_p[y] * w[y] + smoothing / x.len() as f64 * smooth
}

fn targets(n: usize, c: usize, ignored: &[usize]) -> Array {
    let mut t = random_index([n], c, 9).to_vec::<i64>().unwrap();
    for &i in ignored {
        t[i] = -100;
    }
    Array::from_vec(t, [n]).unwrap()
}

fn naive(x: &Array, t: &Array, w: Option<&Array>, smoothing: f64) -> Array {
    let c = x.dims()[1];
    let w = w.map_or(vec![1.0; c], Array::to_f64_vec);
    build(&x.dims()[..1], |p| {
        let y = at(t, p);
        let row = x.slice(0, p[0], p[0] + 1, 1).unwrap().to_f64_vec();
        if y < 0.0 {
            0.0
        } else {
            definition(&row, y as usize, &w, smoothing)
        }
    })
}

#[test]
fn weights_smoothing_and_ignored_rows() {
    let x = random([9, 35], 1);
    let t = targets(9, 35, &[2, 8]);
    let w = build(&[35], |p| 0.5 + p[0] as f64 * 0.1);
    let g = random([9], 2);
    for weight in [None, Some(&w)] {
        for smoothing in [0.0, 0.1, 1.0] {
            let f = |x: &Array| cross_entropy(x, &t, weight, -100, smoothing).unwrap();
            let want = naive(&x, &t, weight, smoothing);
            let (loss, lse) = f(&x);
            assert_close(&loss, &want, 1e-13);
            assert_close(&f(&strided(&x)).0, &want, 1e-13);
            assert_close(&f(&single(&x)).0, &want, 1e-5);
            let d = cross_entropy_backward(&strided(&x), &t, &lse, weight, -100, smoothing, &g);
            assert_gradient(&x, &g, |x| f(x).0, &d.unwrap());
        }
    }
    let (loss, lse) = cross_entropy(&x.cast(DType::BF16), &t, None, -100, 0.0).unwrap();
    assert_eq!((loss.dtype(), lse.dtype()), (DType::BF16, DType::F32));
    let short = t.cast(DType::I32);
    assert_close(
        &cross_entropy(&x, &short, None, -100, 0.0).unwrap().0,
        &naive(&x, &t, None, 0.0),
        1e-13,
    );
    // ignore_index may be a class too.
    let (loss, _) = cross_entropy(&x, &targets(9, 1, &[]), None, 0, 0.0).unwrap();
    assert_eq!(loss.to_f64_vec(), [0.0; 9]);
}

fn product(x: &Array, w: &Array) -> Array {
    build(&[x.dims()[0], w.dims()[0]], |p| {
        (0..x.dims()[1])
            .map(|k| at(x, &[p[0], k]) * at(w, &[p[1], k]))
            .sum()
    })
}

/// Both gradients.
fn all(weights: RowWeights<'_>) -> Wanted<'_> {
    let needs = [true; 2];
    Wanted { needs, weights }
}

#[test]
fn fused_linear_loss_equals_the_two_steps() {
    // More classes than one tile, more rows than one tile.
    for (n, d, c) in [(5, 3, 4), (40, 2, 1100), (3, 4, 2050)] {
        let (x, w) = (random([n, d], 1), random([c, d], 2));
        let t = targets(n, c, &[1]);
        let logits = product(&x, &w);
        let g = random([n], 3);
        let x_view = strided(&x);
        let fused = |wanted: Option<Wanted<'_>>| {
            linear_cross_entropy(&x_view, &w, &t, -100, Compute::F32, wanted.as_ref()).unwrap()
        };
        let (want, lse) = cross_entropy(&logits, &t, None, -100, 0.0).unwrap();
        let bare = fused(None);
        assert_close(&bare.loss, &want, 1e-12);
        assert!(bare.dx.is_none() && bare.dw.is_none());
        let LinearLoss { loss, dx, dw } = fused(Some(all(RowWeights::Each(&g))));
        assert_close(&loss, &want, 1e-12);
        let dl = cross_entropy_backward(&logits, &t, &lse, None, -100, 0.0, &g).unwrap();
        let turn = |a: &Array| a.transpose(0, 1).unwrap();
        assert_close(&dx.unwrap(), &product(&dl, &turn(&w)), 1e-12);
        assert_close(&dw.unwrap(), &product(&turn(&dl), &turn(&x)), 1e-12);
        let only = fused(Some(Wanted {
            needs: [false, true],
            ..all(RowWeights::Each(&g))
        }));
        assert!(only.dx.is_none() && only.dw.is_some());
        // The mean divides by the rows that count, the sum by nothing.
        let count = t
            .to_vec::<i64>()
            .unwrap()
            .iter()
            .filter(|&&t| t >= 0)
            .count();
        for (weights, each) in [
            (RowWeights::Sum, 1.0),
            (RowWeights::Mean, 1.0 / count as f64),
        ] {
            let each = Array::full([n], each);
            let found = fused(Some(all(weights)));
            let want = fused(Some(all(RowWeights::Each(&each))));
            assert_eq!(
                found.dx.unwrap().to_f64_vec(),
                want.dx.unwrap().to_f64_vec()
            );
            assert_eq!(
                found.dw.unwrap().to_f64_vec(),
                want.dw.unwrap().to_f64_vec()
            );
        }
        let half = linear_cross_entropy(
            &x.cast(DType::BF16),
            &w.cast(DType::BF16),
            &t,
            -100,
            Compute::F32,
            None,
        );
        assert_close(&half.unwrap().loss, &want, 5e-2);
    }
}

#[test]
fn extreme_logits() {
    let inf = f64::INFINITY;
    let x = Array::from_vec(
        vec![1e300, -1e300, 0.0, -inf, 0.0, 0.0, f64::NAN, 0.0, 0.0],
        [3, 3],
    );
    let t = Array::zeros([3], DType::I64);
    let (loss, _) = cross_entropy(&x.unwrap(), &t, None, -100, 0.0).unwrap();
    let loss = loss.to_f64_vec();
    assert_eq!((loss[0], loss[1]), (0.0, inf));
    assert!(loss[2].is_nan());
    let x = Array::from_vec(vec![f32::NAN, 1.0], [2, 1]).unwrap();
    let w = Array::from_vec(vec![f32::NEG_INFINITY, 1.0], [2, 1]).unwrap();
    let t = Array::from_vec(vec![0i64, 1], [2]).unwrap();
    let found = linear_cross_entropy(&x, &w, &t, -100, Compute::F32, None).unwrap();
    let loss = found.loss.to_vec::<f32>().unwrap();
    assert!(loss[0].is_nan());
    assert_eq!(loss[1], 0.0);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (x, w) = (
        single(&random([300, 24], 1)),
        single(&random([1500, 24], 2)),
    );
    let t = targets(300, 1500, &[5]);
    let g = single(&random([300], 3));
    let logits = single(&random([300, 1500], 4));
    assert_same_bits(|| {
        let (loss, lse) = cross_entropy(&logits, &t, None, -100, 0.1).unwrap();
        let d = cross_entropy_backward(&logits, &t, &lse, None, -100, 0.1, &g).unwrap();
        let wanted = Wanted {
            needs: [true; 2],
            weights: RowWeights::Each(&g),
        };
        let found = linear_cross_entropy(&x, &w, &t, -100, Compute::F32, Some(&wanted)).unwrap();
        vec![
            loss,
            lse,
            d,
            found.loss,
            found.dx.unwrap(),
            found.dw.unwrap(),
        ]
    });
}

#[test]
fn misuse_and_zero_sizes() {
    let x = random([2, 3], 1);
    let t = |v: Vec<i64>| Array::from_vec(v, [2]).unwrap();
    let e = cross_entropy(&x, &t(vec![0, 3]), None, -100, 0.0).unwrap_err();
    assert_eq!(
        e.to_string(),
        "[cross_entropy] expected targets in 0..3 or -100 (ignored), got 3 at position [1]"
    );
    for hostile in [-1, 3, i64::MIN, i64::MAX] {
        assert!(cross_entropy(&x, &t(vec![hostile, 0]), None, -100, 0.0).is_err());
        assert!(
            linear_cross_entropy(
                &x,
                &x.slice(0, 0, 1, 1).unwrap(),
                &t(vec![hostile, 0]),
                -100,
                Compute::F32,
                None
            )
            .is_err()
        );
    }
    assert!(cross_entropy(&x, &random_index([3], 3, 1), None, -100, 0.0).is_err());
    assert!(cross_entropy(&x, &x, None, -100, 0.0).is_err());
    assert!(cross_entropy(&x, &t(vec![0, 0]), Some(&random([2], 1)), -100, 0.0).is_err());
    assert!(cross_entropy(&x, &t(vec![0, 0]), None, -100, 1.5).is_err());
    assert!(cross_entropy(&x, &t(vec![0, 0]), None, -100, f64::NAN).is_err());
    assert!(
        linear_cross_entropy(
            &x,
            &random([3, 4], 1),
            &t(vec![0, 0]),
            -100,
            Compute::F32,
            None
        )
        .is_err()
    );
    let none = Array::zeros([0], DType::I64);
    let empty = Array::zeros([0, 3], DType::F32);
    assert_eq!(
        cross_entropy(&empty, &none, None, -100, 0.1)
            .unwrap()
            .0
            .dims(),
        [0]
    );
    let w = Array::zeros([5, 3], DType::F32);
    let wanted = Wanted {
        needs: [true; 2],
        weights: RowWeights::Mean,
    };
    let found = linear_cross_entropy(&empty, &w, &none, -100, Compute::F32, Some(&wanted));
    let LinearLoss { dx, dw, .. } = found.unwrap();
    let each = Wanted {
        weights: RowWeights::Each(&w),
        ..wanted
    };
    assert!(linear_cross_entropy(&empty, &w, &none, -100, Compute::F32, Some(&each)).is_err());
    assert_eq!(
        (dx.unwrap().dims(), dw.unwrap().to_f64_vec()),
        (&[0, 3][..], vec![0.0; 15])
    );
}
