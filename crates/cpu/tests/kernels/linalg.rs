//! Linear algebra against products written out.

use crate::*;
use entrenar_cpu::linalg::*;

fn product(a: &Array, b: &Array) -> Array {
    let mut shape = a.dims().to_vec();
    let (inner, rank) = (shape[shape.len() - 1], shape.len());
    shape[rank - 1] = b.dims()[rank - 1];
    build(&shape, |p| {
        (0..inner)
            .map(|k| {
                let (mut i, mut j) = (p.to_vec(), p.to_vec());
                (i[rank - 1], j[rank - 2]) = (k, k);
                at(a, &i) * at(b, &j)
            })
            .sum()
    })
}

fn turned(a: &Array) -> Array {
    a.transpose(-2, -1).unwrap()
}

#[test]
fn cholesky_factors_multiply_back() {
    for shape in [
        vec![1, 1],
        vec![5, 5],
        vec![3, 7, 7],
        vec![2, 2, 40, 40],
        vec![2, 0, 0],
        vec![0, 3, 3],
    ] {
        let n = shape[shape.len() - 1];
        let m = random(&shape, 1);
        let square = product(&m, &turned(&m));
        let a = build(&shape, |p| {
            let diagonal = p[p.len() - 1] == p[p.len() - 2];
            at(&square, p) + if diagonal { n as f64 } else { 0.0 }
        });
        let lower = cholesky(&a, false).unwrap();
        assert_close(&product(&lower, &turned(&lower)), &a, 1e-11);
        assert_close(&triangle(&lower, 0, false).unwrap(), &lower, 0.0);
        let upper = cholesky(&strided(&a), true).unwrap();
        assert_close(&upper, &turned(&lower), 1e-12);
        // Only one triangle is read.
        let spoiled = build(&shape, |p| {
            if p[p.len() - 1] > p[p.len() - 2] {
                f64::NAN
            } else {
                at(&a, p)
            }
        });
        assert_close(&cholesky(&spoiled, false).unwrap(), &lower, 0.0);
        assert_close(&cholesky(&turned(&spoiled), true).unwrap(), &upper, 0.0);
        assert_close(&cholesky(&single(&a), false).unwrap(), &lower, 1e-4);
    }
}

#[test]
fn what_is_not_positive_definite_is_named() {
    let mut values = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0].repeat(2);
    values[9 + 4] = -1.0;
    let a = Array::from_vec(values.clone(), [2, 3, 3]).unwrap();
    let e = cholesky(&a, false).unwrap_err().to_string();
    assert!(e.contains("entry 1") && e.contains("order 2"), "{e}");
    values[9 + 4] = f64::NAN;
    assert!(cholesky(&Array::from_vec(values, [2, 3, 3]).unwrap(), true).is_err());
    assert!(cholesky(&random([2, 3], 1), false).is_err());
    assert!(cholesky(&random([3], 1), false).is_err());
    assert!(cholesky(&Array::zeros([2, 2], DType::I64), false).is_err());
}

#[test]
fn triangular_systems_in_every_form() {
    for (batch, n, k) in [
        (vec![], 4, 3),
        (vec![2], 5, 1),
        (vec![2, 3], 3, 2),
        (vec![2], 0, 2),
        (vec![1], 2, 0),
    ] {
        let shape = |tail: [usize; 2]| [&batch[..], &tail].concat();
        let a = build(&shape([n, n]), |p| {
            let r = at(&random(shape([n, n]), 1), p);
            let diagonal = p[p.len() - 1] == p[p.len() - 2];
            if diagonal { 2.0 + r.abs() } else { r * 0.3 }
        });
        for bits in 0..16u32 {
            let [left, upper, transpose, unit] = [0, 1, 2, 3].map(|b| bits >> b & 1 == 1);
            let b = random(if left { shape([n, k]) } else { shape([k, n]) }, 2);
            let x = triangular_solve(&strided(&a), &b, left, upper, transpose, unit).unwrap();
            let read = build(a.dims(), |p| {
                let (i, j) = (p[p.len() - 2], p[p.len() - 1]);
                match (i == j, if upper { j > i } else { j < i }) {
                    (true, _) if unit => 1.0,
                    (true, _) | (_, true) => at(&a, p),
                    _ => 0.0,
                }
            });
            let read = if transpose { turned(&read) } else { read };
            let back = if left {
                product(&read, &x)
            } else {
                product(&x, &read)
            };
            assert_close(&back, &b, 1e-11);
        }
    }
    let a = random([3, 3], 1);
    assert!(triangular_solve(&a, &random([2, 3], 1), true, false, false, false).is_err());
    assert!(triangular_solve(&a, &random([1, 3, 3], 1), true, false, false, false).is_err());
    assert!(triangular_solve(&a, &single(&a), true, false, false, false).is_err());
    assert!(triangular_solve(&random([3, 2], 1), &a, true, false, false, false).is_err());
}

#[test]
fn triangles() {
    for shape in [
        vec![4, 4],
        vec![2, 3, 5],
        vec![5, 2],
        vec![0, 3],
        vec![3, 0],
    ] {
        let x = random(&shape, 1);
        for diagonal in [-9, -2, -1, 0, 1, 3, 9, i64::MIN, i64::MAX] {
            for upper in [false, true] {
                let want = build(&shape, |p| {
                    let apart = p[p.len() - 1] as i64 - p[p.len() - 2] as i64;
                    let kept = if upper {
                        apart >= diagonal
                    } else {
                        apart <= diagonal
                    };
                    if kept { at(&x, p) } else { 0.0 }
                });
                assert_close(
                    &triangle(&strided(&x), diagonal, upper).unwrap(),
                    &want,
                    0.0,
                );
            }
        }
    }
    assert!(tril(&random([3], 1), 0).is_err());
    let ones = Array::full([2, 2], true);
    assert_eq!(
        triu(&ones, 1).unwrap().to_vec::<bool>().unwrap(),
        [false, true, false, false]
    );
}

#[test]
fn bits_do_not_depend_on_threads() {
    let m = single(&random([12, 30, 30], 1));
    let a = build(m.dims(), |p| {
        at(&m, p) * 0.01 + if p[1] == p[2] { 2.0 } else { 0.0 }
    });
    let a = single(&a);
    assert_same_bits(|| {
        let l = cholesky(&a, false).unwrap();
        let x = triangular_solve(&l, &m, true, false, false, false).unwrap();
        vec![l, x, tril(&m, 0).unwrap()]
    });
}

#[test]
fn qr_factors_are_orthonormal_and_triangular() {
    for shape in [
        vec![4, 4],
        vec![2, 6, 3],
        vec![2, 3, 6],
        vec![1, 1],
        vec![3, 0],
        vec![0, 3],
        vec![0, 2, 2],
    ] {
        let a = random(&shape, 1);
        let rank = shape.len();
        let (m, n) = (shape[rank - 2], shape[rank - 1]);
        for complete in [false, true] {
            let k = if complete { m } else { m.min(n) };
            for a in [&a, &strided(&a)] {
                let (q, r) = qr(a, complete).unwrap();
                assert_eq!((q.dims()[rank - 1], r.dims()[rank - 2]), (k, k));
                assert_close(&product(&q, &r), a, 1e-13);
                let identity = build(&[&shape[..rank - 2], &[k, k]].concat(), |p| {
                    f64::from(u8::from(p[rank - 1] == p[rank - 2]))
                });
                assert_close(&product(&turned(&q), &q), &identity, 1e-13);
                assert_close(&triu(&r, 0).unwrap(), &r, 0.0);
            }
        }
    }
    // Nothing to reflect: LAPACK leaves the sign alone.
    let (q, r) = qr(
        &Array::from_vec(vec![2.0, 1.0, 0.0, 3.0], [2, 2]).unwrap(),
        false,
    )
    .unwrap();
    assert_eq!(q.to_f64_vec(), [1.0, 0.0, 0.0, 1.0]);
    assert_eq!(r.to_f64_vec(), [2.0, 1.0, 0.0, 3.0]);
    assert!(qr(&random([3], 1), false).is_err());
}

#[test]
fn eigenvectors_diagonalise() {
    for shape in [
        vec![1, 1],
        vec![5, 5],
        vec![3, 8, 8],
        vec![40, 40],
        vec![2, 0, 0],
    ] {
        let m = random(&shape, 1);
        let rank = shape.len();
        let a = build(&shape, |p| {
            let mut q = p.to_vec();
            q.swap(rank - 1, rank - 2);
            at(&m, p) + at(&m, &q)
        });
        let (values, vectors) = eigh(&a, false).unwrap();
        assert_eq!(values.dims(), &shape[..rank - 1]);
        let scaled = build(&shape, |p| {
            let mut value = p.to_vec();
            value.remove(rank - 2);
            at(&vectors, p) * at(&values, &value)
        });
        assert_close(&product(&a, &vectors), &scaled, 1e-12);
        let identity = build(&shape, |p| f64::from(u8::from(p[rank - 1] == p[rank - 2])));
        assert_close(&product(&turned(&vectors), &vectors), &identity, 1e-13);
        let listed = values.to_f64_vec();
        let n = shape[rank - 1].max(1);
        assert!(listed.chunks(n).all(|v| v.is_sorted()));
        // Only the chosen triangle is read.
        let spoiled = build(&shape, |p| {
            if p[rank - 1] < p[rank - 2] {
                f64::NAN
            } else {
                at(&a, p)
            }
        });
        assert_close(&eigh(&spoiled, true).unwrap().0, &values, 1e-13);
        if !listed.is_empty() && n > 1 {
            assert!(eigh(&spoiled, false).is_err());
        }
        assert_close(&eigh(&single(&a), false).unwrap().0, &values, 1e-5);
    }
    let same = Array::from_vec(vec![3.0, 0.0, 0.0, 3.0], [2, 2]).unwrap();
    assert_eq!(eigh(&same, false).unwrap().0.to_f64_vec(), [3.0, 3.0]);
    assert!(eigh(&random([2, 3], 1), false).is_err());
}
