//! Normalisations against their definitions.

use crate::*;
use entrenar_cpu::norm::*;

/// Mean and biased variance of the numbers that `take` selects.
fn moments(x: &Array, take: impl Fn(&[usize]) -> bool) -> (f64, f64) {
    let values: Vec<f64> = positions(x.dims())
        .iter()
        .filter(|p| take(p))
        .map(|p| at(x, p))
        .collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance)
}

#[test]
fn layer_norm_follows_its_definition() {
    for (rows, n) in [(3, 7), (4, 64), (1, 100), (5, 1)] {
        let x = random([rows, n], 1);
        let (w, b) = (random([n], 2), random([n], 3));
        for (w, b) in [
            (None, None),
            (Some(&w), None),
            (Some(&w), Some(&b)),
            (None, Some(&b)),
        ] {
            let want = build(&[rows, n], |p| {
                let (mean, variance) = moments(&x, |q| q[0] == p[0]);
                let normal = (at(&x, p) - mean) / (variance + 1e-5).sqrt();
                normal * w.map_or(1.0, |w| at(w, &p[1..])) + b.map_or(0.0, |b| at(b, &p[1..]))
            });
            let (y, mean, rstd) = layer_norm(&x, n, w, b, 1e-5).unwrap();
            assert_close(&y, &want, 1e-12);
            assert_eq!((mean.dims(), rstd.dims()), (&[rows][..], &[rows][..]));
            assert_close(
                &layer_norm(&strided(&x), n, w, b, 1e-5).unwrap().0,
                &want,
                1e-12,
            );
            let (y, mean, _) = layer_norm(&x.cast(DType::F16), n, w, b, 1e-5).unwrap();
            assert_eq!((y.dtype(), mean.dtype()), (DType::F16, DType::F32));
            if n > 1 {
                assert_close(&y, &want, 1e-2);
                assert_close(
                    &layer_norm(&single(&x), n, w, b, 1e-5).unwrap().0,
                    &want,
                    1e-5,
                );
            }
        }
    }
}

#[test]
fn layer_norm_gradients_match_differences() {
    for (shape, n) in [(vec![3, 7], 7), (vec![2, 3, 4], 12), (vec![40, 3], 3)] {
        let (x, g) = (random(&shape, 1), random(&shape, 2));
        let trailing = if n == 12 { vec![3, 4] } else { vec![n] };
        let (w, b) = (random(&trailing, 3), random(&trailing, 4));
        let (_, mean, rstd) = layer_norm(&x, n, Some(&w), Some(&b), 1e-3).unwrap();
        let (dx, dw, db) =
            layer_norm_backward(&strided(&g), &x, &mean, &rstd, Some(&w), [true; 3]).unwrap();
        let f =
            |x: &Array, w: &Array, b: &Array| layer_norm(x, n, Some(w), Some(b), 1e-3).unwrap().0;
        assert_gradient(&x, &g, |x| f(x, &w, &b), &dx.unwrap());
        assert_gradient(&w, &g, |w| f(&x, w, &b), &dw.unwrap());
        assert_gradient(&b, &g, |b| f(&x, &w, b), &db.unwrap());
        let (dx, dw, db) =
            layer_norm_backward(&g, &x, &mean, &rstd, None, [true, false, false]).unwrap();
        assert!(dw.is_none() && db.is_none());
        let plain = |x: &Array| layer_norm(x, n, None, None, 1e-3).unwrap().0;
        assert_gradient(&x, &g, plain, &dx.unwrap());
    }
}

#[test]
fn rms_norm_and_its_gradients() {
    let (x, g, w) = (random([5, 37], 1), random([5, 37], 2), random([37], 3));
    let (y, rstd) = rms_norm(&x, 37, Some(&w), 1e-3).unwrap();
    let want = build(&[5, 37], |p| {
        let (mean, variance) = moments(&x, |q| q[0] == p[0]);
        at(&x, p) / (variance + mean * mean + 1e-3).sqrt() * at(&w, &p[1..])
    });
    assert_close(&y, &want, 1e-13);
    let (dx, dw) = rms_norm_backward(&g, &x, &rstd, Some(&w), [true; 2]).unwrap();
    assert_gradient(
        &x,
        &g,
        |x| rms_norm(x, 37, Some(&w), 1e-3).unwrap().0,
        &dx.unwrap(),
    );
    assert_gradient(
        &w,
        &g,
        |w| rms_norm(&x, 37, Some(w), 1e-3).unwrap().0,
        &dw.unwrap(),
    );
    let (dx, _) = rms_norm_backward(&g, &x, &rstd_of_plain(&x), None, [true, false]).unwrap();
    assert_gradient(
        &x,
        &g,
        |x| rms_norm(x, 37, None, 1e-3).unwrap().0,
        &dx.unwrap(),
    );
}

fn rstd_of_plain(x: &Array) -> Array {
    rms_norm(x, 37, None, 1e-3).unwrap().1
}

#[test]
fn batch_norm_and_its_gradients() {
    for shape in [
        vec![6, 3],
        vec![4, 2, 5],
        vec![2, 3, 4, 3],
        vec![2, 2, 6, 7],
    ] {
        let c = shape[1];
        let (x, g) = (random(&shape, 1), random(&shape, 2));
        let (w, b) = (random([c], 3), random([c], 4));
        let (y, mean, rstd) = batch_norm(&x, Some(&w), Some(&b), 1e-3, false).unwrap();
        let want = build(&shape, |p| {
            let (mean, variance) = moments(&x, |q| q[1] == p[1]);
            (at(&x, p) - mean) / (variance + 1e-3).sqrt() * at(&w, &p[1..2]) + at(&b, &p[1..2])
        });
        assert_close(&y, &want, 1e-12);
        assert_close(
            &batch_norm(&strided(&x), Some(&w), Some(&b), 1e-3, false)
                .unwrap()
                .0,
            &want,
            1e-12,
        );
        assert_close(
            &batch_norm(&single(&x), Some(&w), Some(&b), 1e-3, false)
                .unwrap()
                .0,
            &want,
            1e-5,
        );
        let (dx, dw, db) = batch_norm_backward(
            &strided(&g),
            &x,
            &mean,
            &rstd,
            Some(&w),
            Some(&b),
            false,
            [true; 3],
        )
        .unwrap();
        let f = |x: &Array, w: &Array, b: &Array| {
            batch_norm(x, Some(w), Some(b), 1e-3, false).unwrap().0
        };
        assert_gradient(&x, &g, |x| f(x, &w, &b), &dx.unwrap());
        assert_gradient(&w, &g, |w| f(&x, w, &b), &dw.unwrap());
        assert_gradient(&b, &g, |b| f(&x, &w, b), &db.unwrap());
        let plain = |x: &Array| batch_norm(x, None, None, 1e-3, false).unwrap().0;
        let (dx, dw, _) =
            batch_norm_backward(&g, &x, &mean, &rstd, None, None, false, [true, false, true])
                .unwrap();
        assert!(dw.is_none());
        assert_gradient(&x, &g, plain, &dx.unwrap());
    }
}

#[test]
fn far_from_zero_the_variance_stays_right() {
    let x = random([8, 256], 1);
    let far: Vec<f32> = x
        .to_f64_vec()
        .iter()
        .map(|v| (v * 0.5 + 4000.0) as f32)
        .collect();
    let far = Array::from_vec(far, [8, 256]).unwrap();
    let exact = far.cast(DType::F64);
    let want = layer_norm(&exact, 256, None, None, 1e-5).unwrap().0;
    assert_close(
        &layer_norm(&far, 256, None, None, 1e-5).unwrap().0,
        &want,
        5e-3,
    );
    let planes = far.reshape([4, 8, 64]).unwrap();
    let want = batch_norm(&planes.cast(DType::F64), None, None, 1e-5, false)
        .unwrap()
        .0;
    assert_close(
        &batch_norm(&planes, None, None, 1e-5, false).unwrap().0,
        &want,
        5e-3,
    );
}

#[test]
fn zero_sizes_and_misuse() {
    let empty = Array::zeros([0, 4], DType::F32);
    let (y, mean, rstd) = layer_norm(&empty, 4, None, None, 1e-5).unwrap();
    assert_eq!((y.dims(), mean.dims()), (&[0, 4][..], &[0][..]));
    let w = Array::full([4], 1.0f32);
    let (dx, dw, db) =
        layer_norm_backward(&empty, &empty, &mean, &rstd, Some(&w), [true; 3]).unwrap();
    assert_eq!(dx.unwrap().dims(), [0, 4]);
    assert_eq!(dw.unwrap().to_f64_vec(), [0.0; 4]);
    assert_eq!(db.unwrap().to_f64_vec(), [0.0; 4]);
    let thin = Array::zeros([4, 0], DType::F32);
    assert_eq!(
        layer_norm(&thin, 0, None, None, 1e-5).unwrap().0.dims(),
        [4, 0]
    );
    assert_eq!(
        batch_norm(&empty, None, None, 1e-5, false)
            .unwrap()
            .0
            .dims(),
        [0, 4]
    );
    assert_eq!(
        batch_norm(
            &Array::zeros([2, 3, 0], DType::F32),
            None,
            None,
            1e-5,
            false
        )
        .unwrap()
        .0
        .dims(),
        [2, 3, 0]
    );

    let x = random([2, 6], 1);
    assert!(layer_norm(&x, 5, None, None, 1e-5).is_err());
    assert!(layer_norm(&x, 6, Some(&random([5], 1)), None, 1e-5).is_err());
    assert!(layer_norm(&x.cast(DType::I64), 6, None, None, 1e-5).is_err());
    assert!(batch_norm(&random([3], 1), None, None, 1e-5, false).is_err());
    assert!(batch_norm(&x, None, Some(&random([2], 1)), 1e-5, false).is_err());
    let stat = random([3], 1);
    assert!(batch_norm_backward(&x, &x, &stat, &stat, None, None, false, [true; 3]).is_err());
    let stat = random([5], 1);
    assert!(layer_norm_backward(&x, &x, &stat, &stat, None, [true; 3]).is_err());
}

#[test]
fn bits_do_not_depend_on_threads() {
    let x = single(&random([1000, 96], 1));
    let g = single(&random([1000, 96], 2));
    let w = single(&random([96], 3));
    let planes = x.reshape([20, 48, 100]).unwrap();
    let g_planes = g.reshape([20, 48, 100]).unwrap();
    assert_same_bits(|| {
        let (y, mean, rstd) = layer_norm(&x, 96, Some(&w), Some(&w), 1e-5).unwrap();
        let (dx, dw, db) = layer_norm_backward(&g, &x, &mean, &rstd, Some(&w), [true; 3]).unwrap();
        let (by, bm, br) = batch_norm(&planes, None, None, 1e-5, false).unwrap();
        let (bx, bw, bb) =
            batch_norm_backward(&g_planes, &planes, &bm, &br, None, None, false, [true; 3])
                .unwrap();
        let some = [dx, dw, db, bx, bw, bb].map(Option::unwrap);
        [y, mean, rstd, by, bm, br]
            .into_iter()
            .chain(some)
            .collect()
    });
}
