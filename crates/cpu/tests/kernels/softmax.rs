//! Softmax against its definition, along every dimension.

use crate::*;
use entrenar_cpu::softmax::*;

fn definition(x: &Array, dim: usize, log: bool) -> Array {
    build(x.dims(), |p| {
        let line = |i: usize| {
            let mut q = p.to_vec();
            q[dim] = i;
            at(x, &q)
        };
        let total: f64 = (0..x.dims()[dim]).map(|i| line(i).exp()).sum();
        if log {
            line(p[dim]) - total.ln()
        } else {
            line(p[dim]).exp() / total
        }
    })
}

#[test]
fn every_dimension_and_layout() {
    for shape in [
        vec![7],
        vec![3, 33],
        vec![2, 5, 70],
        vec![2, 1, 3, 4],
        vec![0, 3],
        vec![3, 0],
    ] {
        let x = random(&shape, 1);
        for dim in 0..shape.len() {
            for log in [false, true] {
                let f = |x: &Array| {
                    if log {
                        log_softmax(x, dim)
                    } else {
                        softmax(x, dim)
                    }
                    .unwrap()
                };
                let want = definition(&x, dim, log);
                assert_close(&f(&x), &want, 1e-14);
                assert_close(&f(&strided(&x)), &want, 1e-14);
                assert_close(&f(&single(&x)), &want, 2e-6);
                let half = f(&x.cast(DType::BF16));
                assert_eq!(half.dtype(), DType::BF16);
                assert_close(&half, &want, 2e-2);
            }
        }
    }
}

#[test]
fn gradients_match_differences() {
    for (shape, dim) in [
        (vec![3, 35], 1),
        (vec![3, 5, 4], 1),
        (vec![6], 0),
        (vec![4, 2], 0),
    ] {
        let (x, g) = (random(&shape, 1), random(&shape, 2));
        let y = softmax(&x, dim).unwrap();
        let d = softmax_backward(&y, &strided(&g), dim).unwrap();
        assert_gradient(&x, &g, |x| softmax(x, dim).unwrap(), &d);
        let y = log_softmax(&x, dim).unwrap();
        let d = log_softmax_backward(&strided(&y), &g, dim).unwrap();
        assert_gradient(&x, &g, |x| log_softmax(x, dim).unwrap(), &d);
    }
}

#[test]
fn extreme_values() {
    let inf = f32::INFINITY;
    let rows = vec![
        1e30f32,
        -1e30,
        0.0,
        -inf,
        0.0,
        0.0,
        -inf,
        -inf,
        -inf,
        1.0,
        f32::NAN,
        2.0,
    ];
    let x = Array::from_vec(rows, [4, 3]).unwrap();
    for (x, dim) in [(x.clone(), 1), (strided(&x), 1)] {
        let y = softmax(&x, dim).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(y[..6], [1.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
        assert!(y[6..].iter().all(|v| v.is_nan()));
    }
    let turned = x.transpose(0, 1).unwrap().deep_copy();
    let y = softmax(&turned, 0).unwrap().transpose(0, 1).unwrap();
    let y = y.to_vec::<f32>().unwrap();
    assert_eq!(y[..6], [1.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
    assert!(y[6..].iter().all(|v| v.is_nan()));
    let y = log_softmax(&x, 1).unwrap().to_vec::<f32>().unwrap();
    assert_eq!((y[0], y[3]), (0.0, -inf));
}

#[test]
fn bits_do_not_depend_on_threads() {
    let x = single(&random([300, 501], 1));
    let g = single(&random([300, 501], 2));
    assert_same_bits(|| {
        (0..2)
            .flat_map(|dim| {
                let (y, l) = (softmax(&x, dim).unwrap(), log_softmax(&x, dim).unwrap());
                let dy = softmax_backward(&y, &g, dim).unwrap();
                let dl = log_softmax_backward(&l, &g, dim).unwrap();
                [y, l, dy, dl]
            })
            .collect()
    });
}

#[test]
fn misuse_is_an_error() {
    let x = random([2, 3], 1);
    assert!(softmax(&x, 2).is_err());
    assert!(softmax(&x.cast(DType::I64), 0).is_err());
    assert!(softmax_backward(&x, &random([3, 2], 1), 0).is_err());
    assert!(softmax_backward(&x, &single(&x), 0).is_err());
    let scalar = softmax(&Array::scalar(3.0f64), 0).unwrap();
    assert_eq!(scalar.item::<f64>().unwrap(), 1.0);
}
