//! Attention against softmax(scale·q·kᵀ + mask)·v written out.

use crate::*;
use entrenar_cpu::attention::*;

struct Case {
    sizes: [usize; 7], // batch, heads, groups, queries, keys, width, value width
    causal: bool,
    mask: Option<Array>,
}

impl Case {
    fn inputs(&self) -> [Array; 4] {
        let [b, h, g, t, s, d, e] = self.sizes;
        [
            random([b, h, t, d], 1),
            random([b, g, s, d], 2),
            random([b, g, s, e], 3),
            random([b, h, t, e], 4),
        ]
    }

    fn naive(&self, q: &Array, k: &Array, v: &Array) -> Array {
        let [b, h, g, t, s, d, e] = self.sizes;
        let full = entrenar_base::Shape::from([b, h, t, s]);
        let mask = self.mask.as_ref().map(|m| m.broadcast_to(&full).unwrap());
        build(&[b, h, t, e], |p| {
            let group = p[1] / (h / g);
            let score = |j: usize| -> f64 {
                let dot: f64 = (0..d)
                    .map(|c| at(q, &[p[0], p[1], p[2], c]) * at(k, &[p[0], group, j, c]))
                    .sum();
                let m = mask.as_ref().map_or(0.0, |m| {
                    let m_at = at(m, &[p[0], p[1], p[2], j]);
                    match (m.dtype(), m_at) {
                        (DType::Bool, 0.0) => f64::NEG_INFINITY,
                        (DType::Bool, _) => 0.0,
                        (_, m) => m,
                    }
                });
                if self.causal && j > p[2] {
                    f64::NEG_INFINITY
                } else {
                    dot * 0.4 + m
                }
            };
            let weights: Vec<f64> = (0..s).map(|j| score(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            if total == 0.0 {
                return 0.0;
            }
            (0..s)
                .map(|j| weights[j] / total * at(v, &[p[0], group, j, p[3]]))
                .sum()
        })
    }

    fn problem<'a>(&'a self, q: &'a Array, k: &'a Array, v: &'a Array) -> Attention<'a> {
        Attention {
            mask: self.mask.as_ref(),
            ..Attention::new(q, k, v, 0.4, self.causal)
        }
    }

    fn run(&self, q: &Array, k: &Array, v: &Array) -> (Array, Array) {
        attention(&self.problem(q, k, v)).unwrap()
    }
}

fn masks(b: usize, h: usize, t: usize, s: usize) -> Vec<Option<Array>> {
    let keep = |shape: [usize; 4]| random_index(shape, 3, 8).cast(DType::Bool);
    vec![
        None,
        Some(random([t, s], 7)),
        Some(keep([b, 1, t, s])),
        Some(keep([1, h, 1, s])),
        Some(build(&[b, 1, 1, s], |p| {
            if p[3] % 3 == 1 {
                f64::NEG_INFINITY
            } else {
                0.5
            }
        })),
    ]
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for sizes in [
        [2, 2, 2, 5, 5, 3, 3],
        [1, 4, 2, 3, 7, 2, 5],
        [1, 2, 1, 6, 4, 4, 1],
    ] {
        let [b, h, _, t, s, ..] = sizes;
        for causal in [false, true] {
            for mask in masks(b, h, t, s) {
                all.push(Case {
                    sizes,
                    causal,
                    mask,
                });
            }
        }
    }
    all
}

#[test]
fn small_shapes_with_every_kind_of_mask() {
    for case in cases() {
        let [q, k, v, g] = case.inputs();
        let want = case.naive(&q, &k, &v);
        let (out, lse) = case.run(&q, &k, &v);
        assert_close(&out, &want, 1e-13);
        let (q32, k32, v32) = (single(&q), single(&k), single(&v));
        assert_close(&case.run(&q32, &k32, &v32).0, &want, 1e-5);
        assert_close(
            &case.run(&strided(&q), &strided(&k), &strided(&v)).0,
            &want,
            1e-13,
        );
        let problem = case.problem(&q, &k, &v);
        let (dq, dk, dv) = attention_backward(&problem, &strided(&g), &out, &lse).unwrap();
        assert_gradient(&q, &g, |q| case.run(q, &k, &v).0, &dq);
        assert_gradient(&k, &g, |k| case.run(&q, k, &v).0, &dk);
        assert_gradient(&v, &g, |v| case.run(&q, &k, v).0, &dv);
    }
}

#[test]
fn several_blocks_of_queries_and_keys() {
    for (causal, t, s) in [
        (true, 600, 600),
        (false, 70, 1100),
        (true, 70, 530),
        (true, 580, 30),
    ] {
        let case = Case {
            sizes: [1, 1, 1, t, s, 2, 2],
            causal,
            mask: None,
        };
        let [q, k, v, g] = case.inputs();
        let (out, lse) = case.run(&q, &k, &v);
        assert_close(&out, &case.naive(&q, &k, &v), 1e-12);
        let (dq, dk, dv) = attention_backward(&case.problem(&q, &k, &v), &g, &out, &lse).unwrap();
        // Differences along a few random directions: whole gradients would take too long.
        for seed in 20..23 {
            let inner = |a: &Array, b: &Array| -> f64 {
                a.to_f64_vec()
                    .iter()
                    .zip(b.to_f64_vec())
                    .map(|(a, b)| a * b)
                    .sum()
            };
            let moved = |a: &Array, dir: &Array, h: f64| {
                let v = a
                    .to_f64_vec()
                    .iter()
                    .zip(dir.to_f64_vec())
                    .map(|(a, d)| a + h * d)
                    .collect();
                Array::from_vec::<f64>(v, a.shape()).unwrap()
            };
            let dirs = [&q, &k, &v].map(|a| random(a.shape(), seed));
            let value = |h: f64| {
                let y = case.run(
                    &moved(&q, &dirs[0], h),
                    &moved(&k, &dirs[1], h),
                    &moved(&v, &dirs[2], h),
                );
                inner(&y.0, &g)
            };
            let want = (value(1e-5) - value(-1e-5)) / 2e-5;
            let got = inner(&dq, &dirs[0]) + inner(&dk, &dirs[1]) + inner(&dv, &dirs[2]);
            assert!(
                (got - want).abs() < 1e-6 * (1.0 + want.abs()),
                "{got} {want}"
            );
        }
    }
}

#[test]
fn views_of_one_projection_need_no_copies() {
    let (b, t, h, d) = (2, 9, 3, 4);
    let qkv = random([b, t, 3, h, d], 5);
    let part = |i: usize| {
        let p = qkv
            .slice(2, i, i + 1, 1)
            .unwrap()
            .reshape([b, t, h, d])
            .unwrap();
        assert!(std::ptr::eq(p.storage(), qkv.storage()));
        p.permute(&[0, 2, 1, 3]).unwrap()
    };
    let (q, k, v) = (part(0), part(1), part(2));
    let views = Attention::new(&q, &k, &v, 0.5, true);
    let (out, lse) = attention(&views).unwrap();
    let copies = [&q, &k, &v].map(Array::deep_copy);
    let (dense_out, dense_lse) = attention(&Attention::new(
        &copies[0], &copies[1], &copies[2], 0.5, true,
    ))
    .unwrap();
    assert_close(&out, &dense_out, 0.0);
    assert_close(&lse, &dense_lse, 0.0);
    // The output lies as the next projection reads it, and the gradients as the last one wrote.
    let flat = out.permute(&[0, 2, 1, 3]).unwrap();
    assert!(flat.is_contiguous());
    let g = random([b, h, t, d], 6);
    let (dq, dk, dv) = attention_backward(&views, &g, &out, &lse).unwrap();
    let joint = packed_attention_backward(&views, &g, &out, &lse).unwrap();
    for (i, part) in [dq, dk, dv].iter().enumerate() {
        let here = joint.slice(2, i * h * d, (i + 1) * h * d, 1).unwrap();
        let rows = part.permute(&[0, 2, 1, 3]).unwrap();
        assert_close(&here, &rows.reshape([b, t, h * d]).unwrap(), 0.0);
    }
}

#[test]
fn what_sees_nothing_gets_zeros_and_no_gradient() {
    let case = Case {
        sizes: [1, 1, 1, 2, 3, 2, 2],
        causal: false,
        mask: Some(Array::from_vec(vec![false, false, false, true, true, false], [2, 3]).unwrap()),
    };
    let [q, k, v, g] = case.inputs();
    let (out, lse) = case.run(&q, &k, &v);
    assert_eq!(out.to_f64_vec()[..2], [0.0, 0.0]);
    assert_eq!(lse.to_f64_vec()[0], f64::NEG_INFINITY);
    let (dq, dk, dv) = attention_backward(&case.problem(&q, &k, &v), &g, &out, &lse).unwrap();
    assert_eq!(dq.to_f64_vec()[..2], [0.0, 0.0]);
    for d in [dk, dv] {
        let d = d.to_f64_vec();
        assert!(d.iter().all(|x| x.is_finite()) && d[4..] == [0.0, 0.0]);
    }
    // A NaN is not taken for a mask.
    let nan = Array::full([1, 1, 2, 2], f64::NAN);
    assert!(
        case.run(&nan, &k, &v).0.to_f64_vec()[2..]
            .iter()
            .all(|x| x.is_nan())
    );
}

#[test]
fn bits_do_not_depend_on_threads() {
    let case = Case {
        sizes: [2, 4, 2, 200, 200, 16, 16],
        causal: true,
        mask: None,
    };
    let [q, k, v, g] = case.inputs().map(|a| single(&a));
    assert_same_bits(|| {
        let (out, lse) = case.run(&q, &k, &v);
        let (dq, dk, dv) = attention_backward(&case.problem(&q, &k, &v), &g, &out, &lse).unwrap();
        [out, lse, dq, dk, dv].map(|a| a.deep_copy()).to_vec()
    });
}

#[test]
fn zero_sizes_and_misuse() {
    for sizes in [
        [0, 2, 2, 3, 3, 2, 2],
        [1, 2, 1, 0, 3, 2, 2],
        [1, 2, 2, 3, 0, 2, 2],
        [1, 1, 1, 2, 2, 0, 2],
        [1, 1, 1, 2, 2, 2, 0],
        [1, 0, 0, 2, 2, 2, 2],
    ] {
        let case = Case {
            sizes,
            causal: false,
            mask: None,
        };
        let [q, k, v, g] = case.inputs();
        let (out, lse) = case.run(&q, &k, &v);
        assert_eq!(out.dims(), g.dims());
        let (dq, dk, dv) = attention_backward(&case.problem(&q, &k, &v), &g, &out, &lse).unwrap();
        assert_eq!(
            (dq.dims(), dk.dims(), dv.dims()),
            (q.dims(), k.dims(), v.dims())
        );
        if sizes[4] == 0 {
            assert!(out.to_f64_vec().iter().all(|&x| x == 0.0));
        }
    }
    let q = random([1, 3, 4, 2], 1);
    let k = random([1, 2, 4, 2], 1);
    let fails = |q: &Array, k: &Array, v: &Array, mask: Option<&Array>| {
        let plain = Attention::new(q, k, v, 1.0, false);
        attention(&Attention { mask, ..plain }).is_err()
    };
    assert!(fails(&q, &k, &k, None)); // 3 heads, 2 groups
    assert!(fails(&q, &single(&q), &q, None));
    assert!(fails(&q, &q, &random([1, 3, 5, 2], 1), None));
    assert!(fails(&q, &q, &q, Some(&random([5, 4], 1))));
    assert!(fails(&q, &q, &q, Some(&random_index([4, 4], 2, 1))));
    assert!(fails(&random([3, 4, 2], 1), &q, &q, None));
    let lengths = random_index([2], 3, 1);
    let plain = Attention::new(&q, &q, &q, 1.0, false);
    let wrong = Attention {
        lengths: Some(&lengths),
        ..plain
    };
    assert!(attention(&wrong).is_err());
}

/// Lengths are a mask that also skips work; dropout multiplies the weights by its mask.
#[test]
fn lengths_and_dropout_agree_with_their_definitions() {
    let case = Case {
        sizes: [3, 2, 1, 40, 40, 5, 6],
        causal: true,
        mask: None,
    };
    let [q, k, v, g] = case.inputs();
    let lengths = Array::from_vec(vec![40i64, 0, 33], [3]).unwrap();
    let keep = build(&[3, 1, 1, 40], |p| {
        f64::from(u8::from(p[3] < [40, 0, 33][p[0]]))
    })
    .cast(DType::Bool);
    let dropout = entrenar_cpu::attention::Dropout {
        keep: 0.7,
        seed: 3,
        stream: 9,
    };
    for dropout in [None, Some(dropout)] {
        let short = Attention {
            lengths: Some(&lengths),
            dropout,
            ..Attention::new(&q, &k, &v, 0.4, true)
        };
        let masked = Attention {
            mask: Some(&keep),
            lengths: None,
            ..short
        };
        let ((a, la), (b, lb)) = (attention(&short).unwrap(), attention(&masked).unwrap());
        assert_close(&a, &b, 1e-14);
        let (la, lb) = (la.to_f64_vec(), lb.to_f64_vec());
        assert!(
            la.iter()
                .zip(&lb)
                .all(|(a, b)| a == b || (a - b).abs() < 1e-14)
        );
        let da = attention_backward(&short, &g, &a, &Array::from_vec(la, [3, 2, 40]).unwrap());
        let db = attention_backward(&masked, &g, &b, &Array::from_vec(lb, [3, 2, 40]).unwrap());
        let ((aq, ak, av), (bq, bk, bv)) = (da.unwrap(), db.unwrap());
        for (a, b) in [(aq, bq), (ak, bk), (av, bv)] {
            assert_close(&a, &b, 1e-13);
        }
    }
    // With v the identity, the output is the dropped weights themselves.
    let t = 6;
    let (q, k) = (random([1, 1, t, 3], 1), random([1, 1, t, 3], 2));
    let v = build(&[1, 1, t, t], |p| f64::from(u8::from(p[2] == p[3])));
    let plain = Attention::new(&q, &k, &v, 0.4, true);
    let weights = attention(&plain).unwrap().0.to_f64_vec();
    let dropped = Attention {
        dropout: Some(dropout),
        ..plain
    };
    let mask = entrenar_cpu::random::dropout_mask([t, t], DType::F64, 0.7, 3, 9)
        .unwrap()
        .to_f64_vec();
    let found = attention(&dropped).unwrap().0.to_f64_vec();
    for ((w, m), f) in weights.iter().zip(&mask).zip(&found) {
        assert!((w * m - f).abs() < 1e-14, "{w} {m} {f}");
    }
}

/// bf16 takes its own path: against f64 on the same rounded inputs.
#[test]
fn bf16_stays_near_f64() {
    for sizes in [
        [2, 4, 2, 70, 300, 17, 33],
        [1, 2, 2, 64, 64, 64, 64],
        // One pair less than whole vectors, and an odd number besides.
        [1, 2, 1, 20, 30, 31, 63],
        [1, 1, 1, 9, 9, 95, 31],
        [1, 1, 1, 1, 1, 1, 1],
    ] {
        for causal in [false, true] {
            let case = Case {
                sizes,
                causal,
                mask: None,
            };
            let half = case.inputs().map(|a| a.cast(DType::BF16));
            let wide = half.clone().map(|a| a.cast(DType::F64));
            let run = |[q, k, v, g]: &[Array; 4]| {
                let problem = case.problem(q, k, v);
                let (out, lse) = attention(&problem).unwrap();
                let (dq, dk, dv) = attention_backward(&problem, g, &out, &lse).unwrap();
                [out, dq, dk, dv]
            };
            for (a, b) in run(&half).iter().zip(&run(&wide)) {
                assert_eq!(a.dtype(), DType::BF16);
                let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
                let size = b.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                for (x, y) in a.iter().zip(&b) {
                    // Three roundings to 8 bits, relative to the largest value.
                    assert!((x - y).abs() <= 0.02 * size, "{sizes:?}: {x} {y}");
                }
            }
        }
    }
}
