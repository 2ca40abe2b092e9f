//! Convolution and its gradients against the sum that defines them, over random geometries.

use crate::*;
use entrenar_base::Philox;
use entrenar_cpu::conv::*;
use entrenar_cpu::product::Compute;

/// Calls `visit(y position, x position, w position)` (flat) for every product in the sum.
fn products(
    x: &[usize],
    w: &[usize],
    y: &[usize],
    g: &ConvGeometry,
    mut visit: impl FnMut([usize; 3]),
) {
    let flat = |dims: &[usize], at: &[usize]| dims.iter().zip(at).fold(0, |f, (d, i)| f * d + i);
    let per_group = w[0] / g.groups;
    for at in positions(y) {
        for tap in positions(&w[1..]) {
            let mut source = vec![at[0], at[1] / per_group * w[1] + tap[0]];
            for d in 0..x.len() - 2 {
                let place = at[2 + d] * g.stride[d] + tap[1 + d] * g.dilation[d];
                match place.checked_sub(g.padding[d].0) {
                    Some(p) if p < x[2 + d] => source.push(p),
                    _ => break,
                }
            }
            if source.len() == x.len() {
                let kernel: Vec<usize> = [at[1]].into_iter().chain(tap).collect();
                visit([flat(y, &at), flat(x, &source), flat(w, &kernel)]);
            }
        }
    }
}

#[track_caller]
fn check(x_shape: &[usize], w_shape: &[usize], geometry: &ConvGeometry) {
    let (x, w) = (random(x_shape, 1), random(w_shape, 2));
    let y = conv(&x, &w, None, geometry, Compute::F32).unwrap();
    let g = random(y.shape(), 3);
    let [xs, ws, gs] = [&x, &w, &g].map(Array::to_f64_vec);
    let mut sums = [
        vec![0.0; y.numel()],
        vec![0.0; x.numel()],
        vec![0.0; w.numel()],
    ];
    products(x_shape, w_shape, y.dims(), geometry, |[o, i, k]| {
        sums[0][o] += xs[i] * ws[k];
        sums[1][i] += gs[o] * ws[k];
        sums[2][k] += gs[o] * xs[i];
    });
    let [want_y, want_x, want_w] = sums;
    let array = |v: Vec<f64>, like: &Array| Array::from_vec(v, like.shape()).unwrap();
    assert_close(&y, &array(want_y, &y), 1e-11);
    let (want_x, want_w) = (array(want_x, &x), array(want_w, &w));
    assert_close(
        &conv_input_grad(&g, &w, x_shape, geometry, Compute::F32).unwrap(),
        &want_x,
        1e-11,
    );
    assert_close(
        &conv_weight_grad(&g, &x, w_shape, geometry, Compute::F32).unwrap(),
        &want_w,
        1e-11,
    );
    // Other layouts and precisions.
    assert_close(
        &conv(&strided(&x), &strided(&w), None, geometry, Compute::F32).unwrap(),
        &y,
        1e-12,
    );
    assert_close(
        &conv(&single(&x), &single(&w), None, geometry, Compute::F32).unwrap(),
        &y,
        1e-4,
    );
    let back = conv_input_grad(&strided(&g), &strided(&w), x_shape, geometry, Compute::F32);
    assert_close(&back.unwrap(), &want_x, 1e-11);
    let back = conv_weight_grad(
        &single(&g),
        &strided(&single(&x)),
        w_shape,
        geometry,
        Compute::F32,
    );
    assert_close(&back.unwrap(), &want_w, 1e-4);
}

#[test]
fn random_geometries() {
    let pick = Philox::new(77, 0);
    let mut at = 0;
    let mut below = |n: u64| {
        at += 1;
        pick.below(at, n) as usize
    };
    let mut done = [0; 4];
    while done.iter().sum::<usize>() < 250 {
        let dims = 1 + below(3);
        let groups = 1 + below(3);
        let geometry = ConvGeometry {
            stride: (0..dims).map(|_| 1 + below(3)).collect(),
            padding: (0..dims).map(|_| (below(3), below(3))).collect(),
            dilation: (0..dims).map(|_| 1 + below(2)).collect(),
            groups,
        };
        let mut x = vec![1 + below(2), groups * (1 + below(3))];
        let mut w = vec![groups * (1 + below(3)), x[1] / groups];
        for _ in 0..dims {
            x.push(1 + below(6));
            w.push(1 + below(3));
        }
        let fits = (0..dims).all(|d| {
            let (low, high) = geometry.padding[d];
            x[2 + d] + low + high > geometry.dilation[d] * (w[2 + d] - 1)
        });
        if fits {
            done[dims] += 1;
            check(&x, &w, &geometry);
        } else {
            let (x, w) = (random(&x[..], 1), random(&w[..], 2));
            assert!(conv(&x, &w, None, &geometry, Compute::F32).is_err());
        }
    }
    assert!(done[1..].iter().all(|&n| n > 40), "{done:?}");
}

/// Groups of one input channel over lines shorter and longer than vectors, strides, dilations and
/// lopsided padding, one to six outputs per group, kernels of up to 49 elements.
#[test]
fn depthwise_geometries() {
    let pick = Philox::new(78, 0);
    let mut at = 0;
    let mut below = |n: u64| {
        at += 1;
        pick.below(at, n) as usize
    };
    let mut done = 0;
    while done < 250 {
        let dims = 1 + below(3);
        let groups = 2 + below(3);
        let geometry = ConvGeometry {
            stride: (0..dims).map(|_| 1 + below(2) * below(4)).collect(),
            padding: (0..dims).map(|_| (below(4), below(4))).collect(),
            dilation: (0..dims).map(|_| 1 + below(3)).collect(),
            groups,
        };
        let mut x = vec![1 + below(3), groups];
        let mut w = vec![groups * (1 + below(6)), 1];
        for d in 0..dims {
            x.push(1 + below(if d + 1 == dims { 80 } else { 8 }));
            w.push(1 + below(if d + 2 < dims { 2 } else { 7 }));
        }
        let fits = (0..dims).all(|d| {
            let (low, high) = geometry.padding[d];
            x[2 + d] + low + high > geometry.dilation[d] * (w[2 + d] - 1)
        });
        if fits {
            done += 1;
            check(&x, &w, &geometry);
        }
    }
}

/// An infinite weight reaches the inputs it was multiplied with, and no others.
#[test]
fn infinite_depthwise_weights_stay_where_they_are() {
    let geometry = ConvGeometry {
        stride: vec![1],
        padding: vec![(0, 0)],
        dilation: vec![1],
        groups: 2,
    };
    let w = Array::from_vec(vec![1.0f32, f32::INFINITY, 1.0, 2.0], [2, 1, 2]).unwrap();
    let g = Array::from_vec(vec![3.0f32, 4.0, 5.0, 6.0], [1, 2, 2]).unwrap();
    let dx = conv_input_grad(&g, &w, &[1, 2, 3], &geometry, Compute::F32).unwrap();
    let inf = f32::INFINITY;
    let want = [3.0, inf, inf, 5.0, 16.0, 12.0];
    assert_eq!(dx.to_vec::<f32>().unwrap(), want);
}

/// Each channel by itself is a convolution of one group, which runs as products of matrices.
#[test]
fn depthwise_passes_are_those_of_single_channels() {
    for (x, w, stride, dilation) in [
        ([3, 4, 28, 28], [4, 1, 3, 3], 1, 1),
        ([2, 3, 17, 50], [6, 1, 5, 3], 2, 1),
        ([18, 2, 9, 33], [2, 1, 2, 4], 1, 2),
    ] {
        let geometry = |groups| ConvGeometry {
            stride: vec![stride; 2],
            padding: vec![(1, 1); 2],
            dilation: vec![dilation; 2],
            groups,
        };
        let per_group = w[0] / x[1];
        let (x, w) = (single(&random(x, 1)), single(&random(w, 2)));
        let bias = single(&random([w.dims()[0]], 4));
        let rounded = |a: &Array| a.cast(DType::BF16).cast(DType::F32);
        for compute in [Compute::F32, Compute::Bf16] {
            // Operands rounded beforehand, so that one precision serves as the measure of both.
            let seen = |a: &Array| {
                if compute == Compute::F32 {
                    a.clone()
                } else {
                    rounded(a)
                }
            };
            let y = conv(&x, &w, Some(&bias), &geometry(x.dims()[1]), compute).unwrap();
            let g = single(&random(y.shape(), 3));
            let dx = conv_input_grad(&g, &w, x.dims(), &geometry(x.dims()[1]), compute).unwrap();
            let dw = conv_weight_grad(&g, &x, w.dims(), &geometry(x.dims()[1]), compute).unwrap();
            for c in 0..x.dims()[1] {
                let outputs = c * per_group..(c + 1) * per_group;
                let part = |a: &Array, dim: usize, r: &std::ops::Range<usize>| {
                    a.slice(dim, r.start, r.end, 1).unwrap()
                };
                let xc = seen(&part(&x, 1, &(c..c + 1)));
                let (wc, gc) = (seen(&part(&w, 0, &outputs)), seen(&part(&g, 1, &outputs)));
                let one = geometry(1);
                let bias = part(&bias, 0, &outputs);
                let want = conv(&xc, &wc, Some(&bias), &one, Compute::F32).unwrap();
                let got = part(&y, 1, &outputs).deep_copy();
                assert_eq!(got.to_vec::<f32>().unwrap(), want.to_vec::<f32>().unwrap());
                let want = conv_input_grad(&gc, &wc, xc.dims(), &one, Compute::F32).unwrap();
                assert_close(&part(&dx, 1, &(c..c + 1)), &want, 1e-5);
                let want = conv_weight_grad(&gc, &xc, wc.dims(), &one, Compute::F32).unwrap();
                assert_close(&part(&dw, 0, &outputs), &want, 1e-4);
            }
        }
    }
}

/// Elements beyond the reach of a kernel's element do not touch its gradient.
#[test]
fn infinities_stay_where_they_are() {
    let mut x = random([1, 2, 2, 19], 1);
    x.make_mut::<f64>().unwrap()[18] = f64::INFINITY;
    let geometry = ConvGeometry {
        groups: 2,
        ..ConvGeometry::plain(2)
    };
    let g = Array::full([1, 2, 2, 17], 1.0f64);
    let dw = conv_weight_grad(&g, &x, &[2, 1, 1, 3], &geometry, Compute::F32).unwrap();
    let dw = dw.to_f64_vec();
    assert!(dw[0].is_finite() && dw[1].is_finite(), "{dw:?}");
    assert_eq!(dw[2], f64::INFINITY);
    let y = conv(&x, &random([2, 1, 1, 3], 2), None, &geometry, Compute::F32).unwrap();
    let infinite = y.to_f64_vec().iter().filter(|v| !v.is_finite()).count();
    assert_eq!(infinite, 1);
}

#[test]
fn several_tiles_channel_blocks_and_partial_sums() {
    let same = |dims| ConvGeometry {
        padding: vec![(1, 1); dims],
        ..ConvGeometry::plain(dims)
    };
    check(&[1, 40, 20, 19], &[3, 40, 3, 3], &same(2)); // two channel blocks, several tiles
    check(&[20, 3, 8, 8], &[4, 3, 3, 3], &same(2)); // more images than partial sums
    check(&[1, 33, 70, 70], &[2, 33, 1, 1], &ConvGeometry::plain(2)); // direct, two tiles
    check(
        &[9, 2, 5],
        &[3, 2, 1],
        &ConvGeometry {
            stride: vec![2],
            ..ConvGeometry::plain(1)
        },
    );
    // Lines as long as the input's, in three dimensions, wide and lopsided padding, several tiles.
    let lopsided = |padding: [(usize, usize); 3], dilation: [usize; 3]| ConvGeometry {
        padding: padding.to_vec(),
        dilation: dilation.to_vec(),
        ..ConvGeometry::plain(3)
    };
    check(
        &[1, 2, 3, 4, 5],
        &[2, 2, 2, 3, 3],
        &lopsided([(1, 0), (2, 0), (2, 0)], [1, 1, 1]),
    );
    check(
        &[1, 2, 3, 4, 2],
        &[2, 2, 2, 2, 3],
        &lopsided([(1, 2), (0, 3), (0, 6)], [2, 1, 3]),
    );
    check(
        &[2, 30, 4, 9, 40],
        &[2, 30, 3, 3, 3],
        &lopsided([(1, 1), (3, 0), (1, 1)], [1, 1, 1]),
    );
    let depthwise = ConvGeometry {
        groups: 6,
        ..same(2)
    };
    check(&[2, 6, 7, 7], &[6, 1, 3, 3], &depthwise);
    let steps = ConvGeometry {
        stride: vec![2, 2],
        ..same(2)
    };
    check(&[1, 48, 33, 31], &[5, 48, 3, 3], &steps);
}

#[test]
fn half_precision_accumulates_in_single() {
    let x = random([2, 8, 6, 6], 1).cast(DType::BF16);
    let w = random([4, 8, 3, 3], 2).cast(DType::BF16);
    let want = conv(
        &x.cast(DType::F64),
        &w.cast(DType::F64),
        None,
        &ConvGeometry::plain(2),
        Compute::F32,
    )
    .unwrap();
    let got = conv(&x, &w, None, &ConvGeometry::plain(2), Compute::F32).unwrap();
    assert_eq!(got.dtype(), DType::BF16);
    assert_close(&got, &want, 4e-3);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let geometry = ConvGeometry {
        padding: vec![(1, 1); 2],
        ..ConvGeometry::plain(2)
    };
    for (x, w) in [
        ([16, 8, 14, 14], [16, 8, 3, 3]),
        ([1, 64, 40, 40], [8, 64, 3, 3]),
    ] {
        let (x, w) = (single(&random(x, 1)), single(&random(w, 2)));
        let y = conv(&x, &w, None, &geometry, Compute::F32).unwrap();
        assert_same_bits(|| {
            vec![
                conv(&x, &w, None, &geometry, Compute::F32).unwrap(),
                conv_input_grad(&y, &w, x.dims(), &geometry, Compute::F32).unwrap(),
                conv_weight_grad(&y, &x, w.dims(), &geometry, Compute::F32).unwrap(),
            ]
        });
    }
}

#[test]
fn zero_sizes() {
    let g = ConvGeometry {
        padding: vec![(1, 1)],
        ..ConvGeometry::plain(1)
    };
    for (x, w) in [
        ([0, 2, 5], [3, 2, 3]), // no image
        ([2, 0, 5], [3, 0, 3]), // no input channel
        ([2, 2, 5], [0, 2, 3]), // no output channel
        ([2, 2, 0], [3, 2, 2]), // only padding
    ] {
        check(&x, &w, &g);
    }
}

#[test]
fn misuse() {
    let (x, w) = (random([1, 4, 5], 1), random([6, 2, 3], 2));
    let g = |groups| ConvGeometry {
        groups,
        ..ConvGeometry::plain(1)
    };
    assert!(conv(&x, &w, None, &g(2), Compute::F32).is_ok());
    let e = conv(&x, &w, None, &g(1), Compute::F32)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("[conv]") && e.contains("[6, 2, 3]") && e.contains("[1, 4, 5]"),
        "{e}"
    );
    let odd = random([5, 2, 3], 2);
    assert!(conv(&x, &odd, None, &g(2), Compute::F32).is_err());
    assert!(conv(&x, &w, None, &g(0), Compute::F32).is_err());
    for broken in [
        ConvGeometry {
            stride: vec![0],
            ..g(2)
        },
        ConvGeometry {
            dilation: vec![0],
            ..g(2)
        },
        ConvGeometry {
            stride: vec![1, 1],
            ..g(2)
        },
        ConvGeometry {
            padding: vec![],
            ..g(2)
        },
        ConvGeometry {
            dilation: vec![3],
            ..g(2)
        },
        ConvGeometry {
            dilation: vec![usize::MAX],
            ..g(2)
        },
        ConvGeometry {
            padding: vec![(usize::MAX, 5)],
            ..g(2)
        },
        ConvGeometry {
            padding: vec![(usize::MAX / 2, 0)],
            ..g(2)
        },
    ] {
        assert!(
            conv(&x, &w, None, &broken, Compute::F32).is_err(),
            "{broken:?}"
        );
    }
    assert!(conv(&x, &random([6, 2, 0], 1), None, &g(2), Compute::F32).is_err());
    assert!(
        conv(
            &random([4, 5], 1),
            &random([2, 3], 1),
            None,
            &ConvGeometry::plain(0),
            Compute::F32
        )
        .is_err()
    );
    assert!(conv(&x, &single(&w), None, &g(2), Compute::F32).is_err());
    let y = conv(&x, &w, None, &g(2), Compute::F32).unwrap();
    assert!(conv_input_grad(&y, &w, &[1, 4, 6], &g(2), Compute::F32).is_err());
    assert!(conv_input_grad(&y, &w, &[1, 4, usize::MAX], &g(2), Compute::F32).is_err());
    assert!(conv_weight_grad(&y, &x, &[6, 2, 4], &g(2), Compute::F32).is_err());
}
