//! Indexing against loops over multi-indices.

use crate::*;
use entrenar_base::ErrorKind;
use entrenar_cpu::index::*;

fn with_dim(p: &[usize], dim: usize, value: usize) -> Vec<usize> {
    let mut q = p.to_vec();
    q[dim] = value;
    q
}

#[test]
fn gather_and_scatter_follow_their_definitions() {
    for (shape, sizes) in [
        (vec![5], vec![7]),
        (vec![4, 6], vec![3, 6]),
        (vec![3, 4, 5], vec![2, 4, 5]),
        (vec![3, 4, 5], vec![3, 2, 1]),
        (vec![2, 3], vec![0, 3]),
    ] {
        for dim in 0..shape.len() {
            let mut sizes = sizes.clone();
            for (d, s) in sizes.iter_mut().enumerate() {
                *s = if d == dim { 6 } else { (*s).min(shape[d]) };
            }
            let x = random(&shape, 3);
            let index = random_index(&sizes, shape[dim], 4);
            let pick = |p: &[usize]| at(&index, p) as usize;
            let want = build(&sizes, |p| at(&x, &with_dim(p, dim, pick(p))));
            assert_close(&gather(&x, dim, &index).unwrap(), &want, 0.0);
            assert_close(
                &gather(&strided(&x), dim, &strided(&index)).unwrap(),
                &want,
                0.0,
            );
            let short = index.cast(DType::I32);
            assert_close(
                &gather(&single(&x), dim, &short).unwrap(),
                &single(&want),
                0.0,
            );

            let mut larger = sizes.clone();
            larger[dim] += 1;
            let src = random(&larger, 5);
            let (mut last, mut total) = (x.deep_copy(), x.deep_copy());
            let put = |a: &mut Array, p: &[usize], add: bool| {
                let place = positions(&shape)
                    .iter()
                    .position(|q| *q == with_dim(p, dim, pick(p)))
                    .unwrap();
                let old = &mut a.make_mut::<f64>().unwrap()[place];
                *old = at(&src, p) + if add { *old } else { 0.0 };
            };
            for p in positions(&sizes) {
                put(&mut last, &p, false);
                put(&mut total, &p, true);
            }
            assert_close(&scatter(&x, dim, &index, &src).unwrap(), &last, 0.0);
            assert_close(&scatter_add(&x, dim, &index, &src).unwrap(), &total, 1e-15);
            let strange = scatter_add(&strided(&x), dim, &strided(&index), &strided(&src));
            assert_close(&strange.unwrap(), &total, 1e-15);
        }
    }
}

#[test]
fn scalars_gather_and_scatter() {
    let x = Array::scalar(4.0f64);
    let zero = Array::scalar(0i64);
    assert_eq!(gather(&x, 0, &zero).unwrap().item::<f64>().unwrap(), 4.0);
    let y = scatter_add(&x, 0, &zero, &Array::scalar(1.5f64)).unwrap();
    assert_eq!(y.item::<f64>().unwrap(), 5.5);
    assert!(gather(&x, 0, &Array::scalar(1i64)).is_err());
}

#[test]
fn index_select_and_index_add_are_transposes() {
    for dim in 0..3 {
        let x = random([4, 5, 3], 1);
        let size = x.dims()[dim];
        let index = random_index([7], size, 2);
        let y = index_select(&x, dim, &index).unwrap();
        let want = build(y.dims(), |p| {
            at(&x, &with_dim(p, dim, at(&index, &p[dim..dim + 1]) as usize))
        });
        assert_close(&y, &want, 0.0);
        assert_close(
            &index_select(&strided(&x), dim, &index).unwrap(),
            &want,
            0.0,
        );
        let g = random(y.shape(), 3);
        let zeros = Array::zeros(x.shape(), DType::F64);
        let back = index_add(&zeros, dim, &index, &g).unwrap();
        assert_gradient(&x, &g, |x| index_select(x, dim, &index).unwrap(), &back);
    }
}

#[test]
fn embedding_gradient_sums_rows_and_rounds_once() {
    let index = random_index([6, 5], 4, 1);
    let grad = random([6, 5, 3], 2);
    let table = random([4, 3], 3);
    let flat = index.reshape([30]).unwrap();
    let lookup = |t: &Array| {
        let rows = index_select(t, 0, &flat).unwrap();
        rows.reshape([6, 5, 3]).unwrap()
    };
    let back = embedding_backward(&grad, &index, 4).unwrap();
    assert_gradient(&table, &grad, lookup, &back);
    let tall = embedding_backward(&strided(&grad), &index, 9).unwrap();
    assert_eq!(tall.slice(0, 4, 9, 1).unwrap().to_f64_vec(), [0.0; 15]);
    // 300 rows of 1 + 2^-7: a bf16 accumulator would stall at 256.
    let ones = Array::full([300, 1], entrenar_base::bf16::from_f32(1.0078125));
    let zeros = Array::zeros([300], DType::I64);
    let sum = embedding_backward(&ones, &zeros, 1).unwrap();
    assert_eq!((sum.dtype(), sum.to_f64_vec()[0]), (DType::BF16, 302.0));
}

#[test]
fn embedding_gradients_accumulate_in_place() {
    let index = random_index([7], 4, 1);
    let (grad, start) = (random([7, 3], 2), random([5, 3], 3));
    for dtype in [DType::F64, DType::F32, DType::F16] {
        let (grad, mut target) = (grad.cast(dtype), start.cast(dtype).deep_copy());
        let place = target.as_bytes().unwrap().as_ptr();
        let added = embedding_backward(&grad.cast(DType::F64), &index, 5).unwrap();
        let want = build(&[5, 3], |p| at(&start.cast(dtype), p) + at(&added, p));
        embedding_accumulate(&mut target, &grad, &index).unwrap();
        assert_eq!(target.dtype(), dtype);
        let tolerance = [(DType::F64, 1e-15), (DType::F32, 1e-6), (DType::F16, 1e-3)];
        let tolerance = tolerance.iter().find(|t| t.0 == dtype).unwrap().1;
        assert_close(&target, &want, tolerance);
        if dtype != DType::F16 {
            assert_eq!(target.as_bytes().unwrap().as_ptr(), place);
        }
        let (shared, before) = (target.clone(), target.to_f64_vec());
        embedding_accumulate(&mut target, &grad, &index).unwrap();
        assert_eq!(shared.to_f64_vec(), before, "another owner sees no change");
        assert!(embedding_accumulate(&mut target, &grad, &random_index([6], 4, 1)).is_err());
        let outside = Array::full([7], 5i64);
        assert!(embedding_accumulate(&mut target, &grad, &outside).is_err());
    }
    assert!(embedding_accumulate(&mut random([5, 2], 1), &grad, &index).is_err());
    assert!(embedding_accumulate(&mut single(&start), &grad, &index).is_err());
}

#[test]
fn large_lookups_do_not_depend_on_threads() {
    let table = single(&random([500, 64], 1));
    let index = random_index([4000], 500, 2);
    let grad = single(&random([4000, 64], 3));
    assert_same_bits(|| {
        vec![
            index_select(&table, 0, &index).unwrap(),
            embedding_backward(&grad, &index, 500).unwrap(),
        ]
    });
}

#[test]
fn hostile_indices_are_named() {
    let x = random([2, 3], 1);
    let bad = |values: Vec<i64>| Array::from_vec(values, [2, 2]).unwrap();
    let e = gather(&x, 1, &bad(vec![0, 1, 3, 0])).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Index);
    assert_eq!(
        e.to_string(),
        "[gather] expected indices in 0..3, got 3 at position [1, 0]"
    );
    for hostile in [i64::MIN, -1, 3, i64::MAX] {
        let index = bad(vec![0, 0, 0, hostile]);
        assert!(gather(&x, 1, &index).is_err());
        assert!(scatter(&x, 1, &index, &x).is_err());
        assert!(scatter_add(&x, 1, &index, &x).is_err());
        assert!(one_hot(&index, 3, DType::F32).is_err());
        let line = Array::from_vec(vec![0, hostile], [2]).unwrap();
        assert!(index_select(&x, 1, &line).is_err());
        assert!(index_add(&x, 1, &line, &random([2, 2], 1)).is_err());
        assert!(embedding_backward(&x, &line, 3).is_err());
        assert!(bounds(&line, 3, "t").is_err());
    }
    // Sizes and types that do not fit.
    assert!(gather(&x, 2, &bad(vec![0; 4])).is_err());
    assert!(gather(&x, 1, &Array::zeros([3, 1], DType::I64)).is_err());
    assert!(gather(&x, 1, &random([2, 2], 1)).is_err());
    assert!(gather(&x, 1, &Array::zeros([2], DType::I64)).is_err());
    assert!(scatter(&x, 1, &bad(vec![0; 4]), &random([1, 2], 1)).is_err());
    assert!(scatter(&x, 1, &bad(vec![0; 4]), &single(&x)).is_err());
    assert!(index_add(&x, 0, &Array::zeros([2], DType::I64), &random([1, 3], 1)).is_err());
    assert!(embedding_backward(&x, &Array::zeros([3], DType::I64), 3).is_err());
    let boolean = x.cast(DType::Bool);
    assert!(scatter_add(&boolean, 1, &bad(vec![0; 4]), &boolean).is_err());
}
