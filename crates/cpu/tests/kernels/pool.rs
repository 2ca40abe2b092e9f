//! Pooling against loops over window positions.

use crate::*;
use entrenar_cpu::pool::*;

/// Positions of the elements of window `at` (spatial part) inside the input, row-major.
fn window(at: &[usize], input: &[usize], g: &PoolGeometry) -> Vec<Vec<usize>> {
    positions(&g.kernel)
        .iter()
        .filter_map(|tap| {
            (0..input.len())
                .map(|d| {
                    (at[d] * g.stride[d] + tap[d] * g.dilation[d])
                        .checked_sub(g.padding[d])
                        .filter(|&p| p < input[d])
                })
                .collect()
        })
        .collect()
}

fn output_size(size: usize, d: usize, g: &PoolGeometry) -> usize {
    let (k, s, p, dil) = (g.kernel[d], g.stride[d], g.padding[d], g.dilation[d]);
    let room = size + 2 * p - dil * (k - 1) - 1;
    let mut out = if g.ceil_mode {
        room.div_ceil(s)
    } else {
        room / s
    } + 1;
    if g.ceil_mode && (out - 1) * s >= size + p {
        out -= 1;
    }
    out
}

fn geometries() -> Vec<(Vec<usize>, PoolGeometry)> {
    let mut all = Vec::new();
    for ceil_mode in [false, true] {
        for (x, kernel, stride, padding, dilation) in [
            (vec![2, 3, 8], vec![2], vec![2], vec![0], vec![1]),
            (vec![1, 2, 7], vec![3], vec![2], vec![1], vec![1]),
            (vec![1, 2, 9], vec![2], vec![3], vec![1], vec![2]),
            (
                vec![2, 2, 6, 8],
                vec![2, 2],
                vec![2, 2],
                vec![0, 0],
                vec![1, 1],
            ),
            (
                vec![2, 2, 7, 5],
                vec![2, 2],
                vec![2, 2],
                vec![0, 0],
                vec![1, 1],
            ),
            (
                vec![1, 2, 7, 9],
                vec![3, 2],
                vec![2, 3],
                vec![1, 1],
                vec![1, 1],
            ),
            (
                vec![1, 1, 9, 9],
                vec![3, 3],
                vec![1, 2],
                vec![0, 1],
                vec![2, 3],
            ),
            (
                vec![1, 2, 4, 5, 3],
                vec![2, 3, 2],
                vec![1, 2, 2],
                vec![1, 1, 0],
                vec![1, 1, 1],
            ),
            // 2×2 windows, but padding makes more outputs than there are planes.
            (
                vec![1, 1, 1, 4, 4],
                vec![2, 2, 2],
                vec![1, 2, 2],
                vec![1, 0, 0],
                vec![1, 1, 1],
            ),
            (vec![0, 2, 4], vec![2], vec![2], vec![0], vec![1]),
        ] {
            all.push((
                x,
                PoolGeometry {
                    kernel,
                    stride,
                    padding,
                    dilation,
                    ceil_mode,
                },
            ));
        }
    }
    all
}

fn flat(dims: &[usize], at: &[usize]) -> usize {
    dims.iter().zip(at).fold(0, |f, (d, i)| f * d + i)
}

fn join(plane: &[usize], place: &[usize]) -> Vec<usize> {
    plane.iter().chain(place).copied().collect()
}

#[test]
fn max_pooling() {
    for (shape, g) in geometries() {
        let x = random(&shape, 1);
        let mut out = shape[..2].to_vec();
        out.extend((2..shape.len()).map(|d| output_size(shape[d], d - 2, &g)));
        let best = |p: &[usize]| {
            let places = window(&p[2..], &shape[2..], &g);
            let value = |q: &Vec<usize>| at(&x, &join(&p[..2], q));
            let top = places.iter().map(value).fold(f64::NEG_INFINITY, f64::max);
            let place = places.iter().find(|q| value(q) == top).unwrap();
            (top, flat(&shape[2..], place) as f64)
        };
        for x in [x.clone(), strided(&x)] {
            let (y, index) = max_pool(&x, &g).unwrap();
            assert_close(&y, &build(&out, |p| best(p).0), 0.0);
            assert_close(&index, &build(&out, |p| best(p).1), 0.0);
        }
        let (y, index) = max_pool(&x, &g).unwrap();
        let cotangent = random(y.shape(), 2);
        let dx = max_pool_backward(&strided(&cotangent), &index, &shape).unwrap();
        assert_gradient(&x, &cotangent, |x| max_pool(x, &g).unwrap().0, &dx);
    }
}

#[test]
fn average_pooling() {
    for (shape, g) in geometries() {
        if g.dilation.iter().any(|&d| d > 1) {
            let e = avg_pool(&random(&shape, 1), &g, true, None);
            assert!(e.is_err());
            continue;
        }
        let x = random(&shape, 1);
        let mut out = shape[..2].to_vec();
        out.extend((2..shape.len()).map(|d| output_size(shape[d], d - 2, &g)));
        for (include, fixed) in [
            (true, None),
            (false, None),
            (true, Some(3)),
            (false, Some(-2)),
        ] {
            let want = build(&out, |p| {
                let places = window(&p[2..], &shape[2..], &g);
                let padded: f64 = (0..shape.len() - 2)
                    .map(|d| {
                        let begin = p[2 + d] * g.stride[d];
                        let end = (begin + g.kernel[d]).min(shape[2 + d] + 2 * g.padding[d]);
                        (end - begin) as f64
                    })
                    .product();
                let divisor = match fixed {
                    Some(d) => d as f64,
                    None if include => padded,
                    None => places.len() as f64,
                };
                places
                    .iter()
                    .map(|q| at(&x, &join(&p[..2], q)))
                    .sum::<f64>()
                    / divisor
            });
            let f = |x: &Array| avg_pool(x, &g, include, fixed).unwrap();
            assert_close(&f(&x), &want, 1e-14);
            assert_close(&f(&strided(&x)), &want, 1e-14);
            assert_close(&f(&single(&x)), &want, 1e-5);
            let cotangent = random(&out, 2);
            let dx = avg_pool_backward(&cotangent, &shape, &g, include, fixed).unwrap();
            assert_gradient(&x, &cotangent, f, &dx);
        }
    }
}

#[test]
fn adaptive_pooling() {
    for (shape, out) in [
        (vec![2, 2, 7], vec![3]),
        (vec![1, 2, 5], vec![8]),
        (vec![1, 2, 6, 7], vec![3, 2]),
        (vec![1, 2, 5, 4], vec![1, 1]),
        (vec![1, 1, 4, 5, 3], vec![2, 3, 3]),
        (vec![1, 1, 4], vec![0]),
    ] {
        let x = random(&shape, 1);
        let full = join(&shape[..2], &out);
        let places = |p: &[usize]| -> Vec<f64> {
            let inside = |q: &Vec<usize>| {
                (0..out.len()).all(|d| {
                    let (o, n, size) = (p[2 + d], out[d], shape[2 + d]);
                    q[d] >= o * size / n && q[d] < ((o + 1) * size).div_ceil(n)
                })
            };
            let all = positions(&shape[2..]);
            all.iter()
                .filter(|q| inside(q))
                .map(|q| at(&x, &join(&p[..2], q)))
                .collect()
        };
        let want = build(&full, |p| {
            places(p).iter().sum::<f64>() / places(p).len() as f64
        });
        let f = |x: &Array| adaptive_avg_pool(x, &out).unwrap();
        assert_close(&f(&strided(&x)), &want, 1e-14);
        let cotangent = random(&full[..], 2);
        let dx = adaptive_avg_pool_backward(&cotangent, &shape).unwrap();
        assert_gradient(&x, &cotangent, f, &dx);
        let (y, index) = adaptive_max_pool(&x, &out).unwrap();
        let top = build(&full, |p| {
            places(p).into_iter().fold(f64::NEG_INFINITY, f64::max)
        });
        assert_close(&y, &top, 0.0);
        let dx = max_pool_backward(&cotangent, &index, &shape).unwrap();
        assert_gradient(
            &x,
            &cotangent,
            |x| adaptive_max_pool(x, &out).unwrap().0,
            &dx,
        );
    }
}

#[test]
fn nan_wins_and_the_first_of_equals_counts() {
    let x = vec![1.0f32, 1.0, 1.0, 1.0, 0.0, f32::NAN, 2.0, 3.0];
    let line = Array::from_vec(x.clone(), [1, 1, 8]).unwrap();
    let (y, index) = max_pool(&line, &PoolGeometry::tiled(&[4])).unwrap();
    assert!(y.to_vec::<f32>().unwrap()[1].is_nan());
    assert_eq!(index.to_vec::<i64>().unwrap(), [0, 5]);
    let square = Array::from_vec(x, [1, 1, 2, 4]).unwrap();
    let (y, index) = max_pool(&square, &PoolGeometry::tiled(&[2, 2])).unwrap();
    assert!(y.to_vec::<f32>().unwrap()[0].is_nan());
    assert_eq!(index.to_vec::<i64>().unwrap(), [5, 7]);
}

#[test]
fn misuse() {
    let x = random([1, 1, 4, 4], 1);
    let g = PoolGeometry::tiled(&[2, 2]);
    for broken in [
        PoolGeometry {
            kernel: vec![0, 2],
            ..g.clone()
        },
        PoolGeometry {
            stride: vec![2, 0],
            ..g.clone()
        },
        PoolGeometry {
            dilation: vec![0, 1],
            ..g.clone()
        },
        PoolGeometry {
            padding: vec![2, 0],
            ..g.clone()
        },
        PoolGeometry {
            stride: vec![2],
            ..g.clone()
        },
        PoolGeometry {
            kernel: vec![5, 2],
            ..g.clone()
        },
        PoolGeometry {
            dilation: vec![usize::MAX, 1],
            ..g.clone()
        },
        PoolGeometry::tiled(&[2]),
        PoolGeometry::tiled(&[]),
    ] {
        assert!(max_pool(&x, &broken).is_err(), "{broken:?}");
        assert!(avg_pool(&x, &broken, true, None).is_err(), "{broken:?}");
    }
    assert!(avg_pool(&x, &g, true, Some(0)).is_err());
    assert!(adaptive_avg_pool(&x, &[2]).is_err());
    assert!(adaptive_avg_pool(&random([1, 1, 0], 1), &[2]).is_err());
    let (y, index) = max_pool(&x, &g).unwrap();
    let hostile = Array::full(index.shape(), 16i64);
    let e = max_pool_backward(&y, &hostile, x.dims())
        .unwrap_err()
        .to_string();
    assert!(e.contains("0..16") && e.contains("16 at"), "{e}");
    assert!(max_pool_backward(&y, &Array::full(index.shape(), -1i64), x.dims()).is_err());
    assert!(max_pool_backward(&y, &index, &[1, 2, 4, 4]).is_err());
    assert!(avg_pool_backward(&x, x.dims(), &g, true, None).is_err());
}

#[test]
fn bits_do_not_depend_on_threads() {
    let x = single(&random([40, 16, 14, 14], 1));
    let g = PoolGeometry {
        padding: vec![1, 1],
        ..PoolGeometry::tiled(&[3, 3])
    };
    assert_same_bits(|| {
        let (y, index) = max_pool(&x, &PoolGeometry::tiled(&[2, 2])).unwrap();
        let dx = max_pool_backward(&y, &index, x.dims()).unwrap();
        let a = avg_pool(&x, &g, true, None).unwrap();
        let da = avg_pool_backward(&a, x.dims(), &g, true, None).unwrap();
        vec![y, index, dx, a, da]
    });
}
