//! Sorting, the k largest, running sums and extremes.

use crate::*;
use entrenar_cpu::scan::*;
use entrenar_cpu::sort::*;

/// The slice through `p` along `dim`.
fn line(x: &Array, p: &[usize], dim: usize) -> Vec<f64> {
    (0..x.dims()[dim])
        .map(|i| {
            let mut q = p.to_vec();
            q[dim] = i;
            at(x, &q)
        })
        .collect()
}

/// Places in ascending or descending order, by the plain stable definition (NaN largest).
fn order_of(values: &[f64], descending: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let key = |v: f64| (v.is_nan(), if v.is_nan() { 0.0 } else { v });
    order.sort_by(|&a, &b| {
        let o = key(values[a]).partial_cmp(&key(values[b])).unwrap();
        if descending { o.reverse() } else { o }
    });
    order
}

/// Integers with many ties, and some NaN.
fn ties(shape: &[usize]) -> Array {
    let x = random_index(shape, 5, 3);
    build(shape, |p| match at(&x, p) {
        4.0 => f64::NAN,
        v => v,
    })
}

#[test]
fn sorts_are_stable_and_put_nan_last() {
    for shape in [vec![30], vec![3, 17], vec![2, 9, 4], vec![0, 3], vec![3, 0]] {
        let x = ties(&shape);
        for dim in 0..shape.len() {
            for descending in [false, true] {
                let (values, index) = sort(&strided(&x), dim, descending).unwrap();
                let order = |p: &[usize]| order_of(&line(&x, p, dim), descending)[p[dim]];
                assert_close(&index, &build(&shape, |p| order(p) as f64), 0.0);
                assert_close(&values, &build(&shape, |p| line(&x, p, dim)[order(p)]), 0.0);
                let size = shape[dim];
                for k in [0, 1, size / 2, size] {
                    let k = k.min(size);
                    let (values, index) = topk(&x, k, dim, descending, true).unwrap();
                    let mut cut = shape.clone();
                    cut[dim] = k;
                    assert_close(&index, &build(&cut, |p| order(p) as f64), 0.0);
                    assert_close(&values, &build(&cut, |p| line(&x, p, dim)[order(p)]), 0.0);
                }
            }
        }
    }
    assert!(topk(&random([3], 1), 4, 0, true, true).is_err());
    assert!(sort(&random([3], 1), 1, true).is_err());
    let (v, i) = sort(&Array::scalar(2i32), 0, false).unwrap();
    assert_eq!((v.item::<i32>().unwrap(), i.item::<i64>().unwrap()), (2, 0));
}

#[test]
fn running_sums_and_products() {
    for shape in [vec![7], vec![3, 5], vec![2, 4, 3], vec![0, 3], vec![3, 0]] {
        let x = random(&shape, 1);
        for dim in 0..shape.len() {
            let before = |p: &[usize]| line(&x, p, dim)[..=p[dim]].to_vec();
            let after = |p: &[usize]| line(&x, p, dim)[p[dim]..].to_vec();
            let sum = |v: Vec<f64>| v.iter().sum::<f64>();
            let x = strided(&x);
            assert_close(
                &cumsum(&x, dim, false).unwrap(),
                &build(&shape, |p| sum(before(p))),
                1e-14,
            );
            assert_close(
                &cumsum(&x, dim, true).unwrap(),
                &build(&shape, |p| sum(after(p))),
                1e-14,
            );
            let product = build(&shape, |p| before(p).iter().product());
            assert_close(&cumprod(&x, dim).unwrap(), &product, 1e-14);
        }
    }
    let flags = Array::full([300], true);
    let counted = cumsum(&flags, 0, false).unwrap();
    assert_eq!(
        (counted.dtype(), counted.to_f64_vec()[299]),
        (DType::I64, 300.0)
    );
    // A bf16 accumulator would stall at 256.
    let ones = Array::full([300], entrenar_base::bf16::ONE);
    assert_eq!(cumsum(&ones, 0, false).unwrap().to_f64_vec()[299], 300.0);
    assert!(cumsum(&flags, 1, false).is_err());
}

#[test]
fn running_extremes() {
    let n = f64::NAN;
    let x = Array::from_vec(vec![1.0, 3.0, 3.0, 2.0, n, 5.0, n, 0.0], [8]).unwrap();
    let (v, i) = cummax(&x, 0).unwrap();
    let want = Array::from_vec(vec![1.0, 3.0, 3.0, 3.0, n, n, n, n], [8]).unwrap();
    assert_close(&v, &want, 0.0);
    assert_eq!(i.to_vec::<i64>().unwrap(), [0, 1, 2, 2, 4, 4, 6, 6]);
    let (v, i) = cummin(&x, 0).unwrap();
    let want = Array::from_vec(vec![1.0, 1.0, 1.0, 1.0, n, n, n, n], [8]).unwrap();
    assert_close(&v, &want, 0.0);
    assert_eq!(i.to_vec::<i64>().unwrap(), [0, 0, 0, 0, 4, 4, 6, 6]);
    let x = random([3, 6, 4], 1);
    let (v, i) = cummax(&strided(&x), 1).unwrap();
    let place = |p: &[usize]| {
        let before = line(&x, p, 1)[..=p[1]].to_vec();
        let top = before.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (top, before.iter().position(|&b| b == top).unwrap() as f64)
    };
    assert_close(&v, &build(x.dims(), |p| place(p).0), 0.0);
    assert_close(&i, &build(x.dims(), |p| place(p).1), 0.0);
    assert!(cummax(&x.cast(DType::Bool), 0).is_err());
}

#[test]
fn bits_do_not_depend_on_threads() {
    let x = single(&random([200, 300], 1));
    assert_same_bits(|| {
        let (s, i) = sort(&x, 0, true).unwrap();
        let (t, j) = topk(&x, 7, 1, true, true).unwrap();
        let (m, k) = cummax(&x, 0).unwrap();
        vec![
            s,
            i,
            t,
            j,
            m,
            k,
            cumsum(&x, 1, false).unwrap(),
            cumprod(&x, 0).unwrap(),
        ]
    });
}
