//! The edges of shape rules of what layers are made of: convolutions, pooling,
//! normalisation, attention and losses.

use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::ops::conv::ConvOptions;
use entrenar_core::ops::interpolate::Interpolation;
use entrenar_core::ops::loss::Reduction;
use entrenar_core::ops::pool::PoolOptions;
use entrenar_core::{DType, Tensor};

use super::{edges, ints, t};

#[test]
fn windows() {
    let conv = |x: &[usize], w: &[usize], o: &ConvOptions| t(x).conv(&t(w), None, o);
    let plain = ConvOptions::default();
    let of =
        |stride: &[usize], padding: &[(usize, usize)], dilation: &[usize], groups| ConvOptions {
            stride: stride.to_vec(),
            padding: padding.to_vec(),
            dilation: dilation.to_vec(),
            groups,
        };
    edges(
        "conv",
        vec![
            (conv(&[1, 2, 5], &[3, 2, 5], &plain), Some(&[1, 3, 1])),
            (conv(&[1, 2, 5], &[3, 2, 6], &plain), None),
            (conv(&[1, 2, 5], &[3, 2, 0], &plain), None),
            (conv(&[2, 5], &[3, 2, 2], &plain), Some(&[3, 4])),
            (conv(&[5], &[3, 2, 2], &plain), None),
            (conv(&[1, 1, 2, 5], &[3, 2, 2], &plain), None),
            (conv(&[1, 2, 5], &[3, 1, 2], &plain), None),
            (conv(&[1, 2, 5], &[3, 2], &plain), None),
            (
                conv(&[1, 2, 3, 3, 3], &[3, 2, 1, 2, 3], &plain),
                Some(&[1, 3, 3, 2, 1]),
            ),
            (conv(&[1, 2, 3, 3, 3, 3], &[3, 2, 1, 1, 1, 1], &plain), None),
            (
                conv(&[1, 4, 5], &[6, 2, 2], &of(&[2], &[], &[], 2)),
                Some(&[1, 6, 2]),
            ),
            (conv(&[1, 4, 5], &[5, 2, 2], &of(&[], &[], &[], 2)), None),
            (conv(&[1, 4, 5], &[6, 4, 2], &of(&[], &[], &[], 2)), None),
            (conv(&[1, 4, 5], &[6, 2, 2], &of(&[], &[], &[], 0)), None),
            (conv(&[1, 2, 5], &[3, 2, 2], &of(&[0], &[], &[], 1)), None),
            (conv(&[1, 2, 5], &[3, 2, 2], &of(&[], &[], &[0], 1)), None),
            (
                conv(&[1, 2, 5], &[3, 2, 3], &of(&[], &[], &[2], 1)),
                Some(&[1, 3, 1]),
            ),
            (conv(&[1, 2, 5], &[3, 2, 3], &of(&[], &[], &[3], 1)), None),
            (
                conv(&[1, 2, 5], &[3, 2, 3], &of(&[], &[(1, 1)], &[3], 1)),
                Some(&[1, 3, 1]),
            ),
            (
                conv(&[1, 2, 5], &[3, 2, 3], &of(&[], &[(1, 0)], &[3], 1)),
                None,
            ),
            (
                conv(&[1, 2, 5, 6], &[3, 2, 2, 2], &of(&[2, 3], &[], &[], 1)),
                Some(&[1, 3, 2, 2]),
            ),
            (
                conv(&[1, 2, 5, 6], &[3, 2, 2, 2], &of(&[2, 3, 1], &[], &[], 1)),
                None,
            ),
            (
                t(&[1, 2, 5]).conv(&t(&[3, 2, 2]), Some(&t(&[3])), &plain),
                Some(&[1, 3, 4]),
            ),
            (
                t(&[1, 2, 5]).conv(&t(&[3, 2, 2]), Some(&t(&[1])), &plain),
                None,
            ),
        ],
    );
    edges(
        "conv1d",
        vec![
            (
                t(&[1, 2, 5]).conv1d(&t(&[3, 2, 2]), None, &plain),
                Some(&[1, 3, 4]),
            ),
            (t(&[1, 2, 5]).conv1d(&t(&[3, 2, 2, 1]), None, &plain), None),
        ],
    );
    assert_eq!(
        ConvOptions::same_padding(&[3, 4, 1], &[1, 1, 5]),
        [(1, 1), (1, 2), (0, 0)]
    );
    assert_eq!(
        ConvOptions::same_padding(&[3, 2, 0], &[2, 3, 4]),
        [(2, 2), (1, 2), (0, 0)]
    );
    let back = |x: &[usize], w: &[usize], o: &ConvOptions, extra: &[usize]| {
        t(x).conv_transpose(&t(w), None, o, extra)
    };
    edges(
        "conv_transpose",
        vec![
            (back(&[1, 2, 5], &[2, 3, 2], &plain, &[]), Some(&[1, 3, 6])),
            (back(&[2, 5], &[2, 3, 2], &plain, &[]), Some(&[3, 6])),
            (back(&[1, 2, 5], &[3, 2, 2], &plain, &[]), None),
            (
                back(&[1, 4, 5], &[4, 3, 2], &of(&[2], &[], &[], 2), &[]),
                Some(&[1, 6, 10]),
            ),
            (
                back(&[1, 4, 5], &[4, 3, 2], &of(&[], &[], &[], 0), &[]),
                None,
            ),
            (
                back(&[1, 2, 5], &[2, 3, 2], &of(&[3], &[], &[], 1), &[]),
                Some(&[1, 3, 14]),
            ),
            (
                back(&[1, 2, 5], &[2, 3, 2], &of(&[3], &[], &[], 1), &[2]),
                Some(&[1, 3, 16]),
            ),
            (
                back(&[1, 2, 5], &[2, 3, 3], &of(&[], &[], &[2], 1), &[]),
                Some(&[1, 3, 9]),
            ),
            (
                back(&[1, 2, 5], &[2, 3, 2], &of(&[], &[(2, 3)], &[], 1), &[]),
                Some(&[1, 3, 1]),
            ),
            (
                back(&[1, 2, 5], &[2, 3, 2], &of(&[], &[(3, 3)], &[], 1), &[]),
                None,
            ),
            (
                back(&[1, 2, 5], &[2, 3, 2], &of(&[], &[(3, 3)], &[], 1), &[1]),
                Some(&[1, 3, 1]),
            ),
            (back(&[1, 2, 0], &[2, 3, 2], &plain, &[]), None),
            (back(&[1, 2, 5], &[2, 3], &plain, &[]), None),
        ],
    );
    let x = t(&[1, 2, 5]);
    let pool = |kernel: usize, stride: usize, padding: usize, ceil: bool| PoolOptions {
        kernel: vec![kernel],
        stride: vec![stride],
        padding: vec![padding],
        dilation: vec![],
        ceil_mode: ceil,
    };
    let max = |o: &PoolOptions| x.max_pool(o).map(|p| p.0);
    edges(
        "max_pool",
        vec![
            (max(&PoolOptions::new(&[5])), Some(&[1, 2, 1])),
            (max(&PoolOptions::new(&[6])), None),
            (max(&PoolOptions::new(&[2])), Some(&[1, 2, 2])),
            (max(&pool(2, 2, 0, true)), Some(&[1, 2, 3])),
            (max(&pool(2, 1, 0, true)), Some(&[1, 2, 4])),
            (max(&pool(2, 2, 1, false)), Some(&[1, 2, 3])),
            (max(&pool(2, 4, 1, true)), Some(&[1, 2, 2])),
            (max(&pool(1, 3, 0, true)), Some(&[1, 2, 2])),
            (max(&pool(3, 3, 1, true)), Some(&[1, 2, 2])),
            (max(&pool(3, 3, 0, true)), Some(&[1, 2, 2])),
            (max(&pool(2, 1, 2, false)), None),
            (max(&pool(0, 1, 0, false)), None),
            (max(&pool(2, 0, 0, false)), None),
            (
                max(&PoolOptions {
                    dilation: vec![4],
                    ..pool(2, 1, 0, false)
                }),
                Some(&[1, 2, 1]),
            ),
            (
                max(&PoolOptions {
                    dilation: vec![5],
                    ..pool(2, 1, 0, false)
                }),
                None,
            ),
            (
                max(&PoolOptions {
                    dilation: vec![0],
                    ..pool(2, 1, 0, false)
                }),
                None,
            ),
            (
                t(&[2, 5]).max_pool(&PoolOptions::new(&[2])).map(|p| p.1),
                Some(&[2, 2]),
            ),
            (t(&[5]).max_pool(&PoolOptions::new(&[2])).map(|p| p.1), None),
        ],
    );
    edges(
        "avg_pool",
        vec![
            (
                x.avg_pool(&pool(2, 2, 1, false), true, Some(-1)),
                Some(&[1, 2, 3]),
            ),
            (x.avg_pool(&pool(2, 2, 1, false), true, Some(0)), None),
            (
                x.avg_pool(
                    &PoolOptions {
                        dilation: vec![2],
                        ..pool(2, 2, 0, false)
                    },
                    true,
                    None,
                ),
                None,
            ),
            (
                x.avg_pool(
                    &PoolOptions {
                        dilation: vec![1],
                        ..pool(2, 2, 0, false)
                    },
                    true,
                    None,
                ),
                Some(&[1, 2, 2]),
            ),
        ],
    );
    edges(
        "adaptive_avg_pool",
        vec![
            (x.adaptive_avg_pool(&[7]), Some(&[1, 2, 7])),
            (x.adaptive_avg_pool(&[0]), Some(&[1, 2, 0])),
            (x.adaptive_avg_pool(&[]), None),
            (t(&[1, 2, 0]).adaptive_avg_pool(&[1]), None),
            (t(&[1, 2, 0]).adaptive_avg_pool(&[0]), Some(&[1, 2, 0])),
            (
                t(&[1, 1, 1, 1, 1, 1]).adaptive_avg_pool(&[1, 1, 1, 1]),
                None,
            ),
            (
                t(&[1, 2, 3, 4, 5]).adaptive_avg_pool(&[1, 2, 3]),
                Some(&[1, 2, 1, 2, 3]),
            ),
        ],
    );
    let near = Interpolation::Nearest;
    edges(
        "interpolate",
        vec![
            (x.interpolate(&[9], near), Some(&[1, 2, 9])),
            (x.interpolate(&[0], near), None),
            (x.interpolate(&[9, 9], near), Some(&[1, 9, 9])),
            (x.interpolate(&[9, 9, 9], near), None),
            (t(&[1, 2, 0]).interpolate(&[1], near), None),
            (x.interpolate_scaled(&[0.2], near), Some(&[1, 2, 1])),
            (x.interpolate_scaled(&[0.19], near), None),
            (x.interpolate_scaled(&[1.9], near), Some(&[1, 2, 9])),
            (x.interpolate_scaled(&[0.0], near), None),
            (x.interpolate_scaled(&[f64::NAN], near), None),
            (
                t(&[1, 2, 4, 6]).interpolate_scaled(&[0.5], near),
                Some(&[1, 2, 2, 3]),
            ),
            (
                t(&[1, 2, 4, 6]).interpolate_scaled(&[0.5, 2.0], near),
                Some(&[1, 2, 2, 12]),
            ),
            (t(&[1, 2, 1]).interpolate_scaled(&[1e12], near), None),
        ],
    );
}

#[test]
fn normalisations() {
    let some = |shape: &[usize]| Some(t(shape));
    let layer =
        |x: &[usize], n: usize, w: Option<Tensor>| t(x).layer_norm(n, w.as_ref(), None, 0.1);
    edges(
        "layer_norm",
        vec![
            (layer(&[2, 3], 2, None), Some(&[2, 3])),
            (layer(&[2, 3], 3, None), None),
            (layer(&[2, 3], 0, None), None),
            (layer(&[2, 3], 1, some(&[3])), Some(&[2, 3])),
            (layer(&[2, 3], 1, some(&[2])), None),
            (layer(&[2, 3], 2, some(&[3])), None),
            (layer(&[2, 3], 2, some(&[2, 3])), Some(&[2, 3])),
        ],
    );
    edges(
        "rms_norm",
        vec![
            (
                t(&[2, 3]).rms_norm(1, some(&[3]).as_ref(), 0.1),
                Some(&[2, 3]),
            ),
            (t(&[2, 3]).rms_norm(1, some(&[1]).as_ref(), 0.1), None),
        ],
    );
    let batch =
        |x: &[usize], w: Option<Tensor>| t(x).batch_norm(w.as_ref(), None, 0.1).map(|p| p.0);
    edges(
        "batch_norm",
        vec![
            (batch(&[2, 3], None), Some(&[2, 3])),
            (batch(&[1, 3], None), None),
            (batch(&[1, 3, 2], None), Some(&[1, 3, 2])),
            (batch(&[1, 3, 1, 1], None), None),
            (batch(&[3], None), None),
            (batch(&[2, 3], some(&[3])), Some(&[2, 3])),
            (batch(&[2, 3], some(&[2])), None),
            (batch(&[2, 3], some(&[1, 3])), None),
            (
                t(&[2, 3]).batch_norm_eval(&t(&[3]), &t(&[3]), None, None, 0.1),
                Some(&[2, 3]),
            ),
            (
                t(&[3]).batch_norm_eval(&t(&[3]), &t(&[3]), None, None, 0.1),
                Some(&[3]),
            ),
            (
                t(&[2, 3]).batch_norm_eval(&t(&[2]), &t(&[3]), None, None, 0.1),
                None,
            ),
            (
                t(&[2, 3]).batch_norm_eval(&t(&[1, 3]), &t(&[3]), None, None, 0.1),
                None,
            ),
        ],
    );
    let group = |x: &[usize], groups: usize, w: Option<Tensor>| {
        t(x).group_norm(groups, w.as_ref(), None, 0.1)
    };
    edges(
        "group_norm",
        vec![
            (group(&[2, 4], 2, some(&[4])), Some(&[2, 4])),
            (group(&[2, 4], 3, None), None),
            (group(&[2, 4], 0, None), None),
            (group(&[4], 2, None), None),
            (group(&[2, 4], 2, some(&[2])), None),
        ],
    );
    edges(
        "instance_norm",
        vec![
            (
                t(&[2, 4, 2]).instance_norm(None, None, 0.1),
                Some(&[2, 4, 2]),
            ),
            (t(&[2, 4, 1]).instance_norm(None, None, 0.1), None),
            (
                t(&[2, 4, 1, 2]).instance_norm(None, None, 0.1),
                Some(&[2, 4, 1, 2]),
            ),
            (t(&[2, 4]).instance_norm(None, None, 0.1), None),
            (
                t(&[2, 0, 2]).instance_norm(None, None, 0.1),
                Some(&[2, 0, 2]),
            ),
        ],
    );
    edges(
        "local_response_norm",
        vec![
            (
                t(&[2, 4, 2]).local_response_norm(1, 1.0, 1.0, 1.0),
                Some(&[2, 4, 2]),
            ),
            (t(&[2, 4, 2]).local_response_norm(0, 1.0, 1.0, 1.0), None),
            (t(&[4, 2]).local_response_norm(1, 1.0, 1.0, 1.0), None),
        ],
    );
}

#[test]
fn attention_and_rotation() {
    let run = |q: &[usize], k: &[usize], v: &[usize], o: &AttentionOptions| {
        t(q).scaled_dot_product_attention(&t(k), &t(v), o)
    };
    let plain = AttentionOptions::default();
    let (q, k, v): (&[usize], &[usize], &[usize]) = (&[2, 4, 3, 5], &[2, 2, 6, 5], &[2, 2, 6, 7]);
    let masked = |mask: Tensor| AttentionOptions {
        mask: Some(mask),
        ..Default::default()
    };
    let counted = |lengths: Tensor| AttentionOptions {
        lengths: Some(lengths),
        ..Default::default()
    };
    let dropped = |p: f64| AttentionOptions {
        dropout: Some((p, 1, 2)),
        ..Default::default()
    };
    edges(
        "scaled_dot_product_attention",
        vec![
            (run(q, k, v, &plain), Some(&[2, 4, 3, 7])),
            (run(&[3, 5], &[6, 5], &[6, 7], &plain), Some(&[3, 7])),
            (
                run(&[4, 3, 5], &[2, 6, 5], &[2, 6, 7], &plain),
                Some(&[4, 3, 7]),
            ),
            (run(&[2, 1, 3, 5], k, v, &plain), Some(&[2, 2, 3, 7])),
            (run(&[9, 1, 4, 3, 5], k, v, &plain), Some(&[9, 2, 4, 3, 7])),
            (
                run(
                    &[9, 2, 4, 3, 5],
                    &[9, 2, 2, 6, 5],
                    v,
                    &masked(t(&[9, 2, 4, 3, 6])),
                ),
                Some(&[9, 2, 4, 3, 7]),
            ),
            (
                run(&[9, 2, 4, 3, 5], k, v, &masked(t(&[4, 3, 6]))),
                Some(&[9, 2, 4, 3, 7]),
            ),
            (
                run(&[9, 2, 4, 3, 5], k, v, &masked(t(&[9, 1, 1, 3, 6]))),
                Some(&[9, 2, 4, 3, 7]),
            ),
            (run(&[5], &[6, 5], &[6, 7], &plain), None),
            (run(&[3, 5], &[5], &[6, 7], &plain), None),
            (run(&[3, 5], &[6, 5], &[7], &plain), None),
            (run(&[2, 3, 3, 5], k, v, &plain), None),
            (run(q, &[2, 2, 6, 4], v, &plain), None),
            (run(q, &[2, 2, 5, 5], v, &plain), None),
            (run(q, &[2, 1, 6, 5], v, &plain), None),
            (run(q, &[3, 2, 6, 5], &[3, 2, 6, 7], &plain), None),
            (run(q, k, v, &masked(t(&[3, 6]))), Some(&[2, 4, 3, 7])),
            (run(q, k, v, &masked(t(&[2, 4, 3, 6]))), Some(&[2, 4, 3, 7])),
            (run(q, k, v, &masked(t(&[4, 6]))), None),
            (run(q, k, v, &masked(t(&[5, 1, 1, 1, 1]))), None),
            (run(q, k, v, &masked(ints(&[3, 6]))), None),
            (
                run(q, k, v, &masked(Tensor::full([3, 6], 1.0, DType::Bool))),
                Some(&[2, 4, 3, 7]),
            ),
            (run(q, k, v, &counted(ints(&[2]))), Some(&[2, 4, 3, 7])),
            (run(q, k, v, &counted(ints(&[3]))), None),
            (run(q, k, v, &counted(ints(&[2, 1]))), None),
            (run(q, k, v, &counted(t(&[2]))), None),
            (run(q, k, v, &dropped(1.0)), Some(&[2, 4, 3, 7])),
            (run(q, k, v, &dropped(1.5)), None),
            (run(q, k, v, &dropped(-0.5)), None),
        ],
    );
    let message = run(q, k, v, &dropped(1.5)).unwrap_err().to_string();
    assert!(message.contains("got 1.5"), "{message}");
    for (q, mask, scores) in [
        (q, &[4, 6][..], "[2, 4, 3, 6]"),
        (q, &[5, 1, 1, 1, 1], "[2, 4, 3, 6]"),
        (&[9, 2, 4, 3, 5], &[9, 2, 4, 4, 6], "[9, 2, 4, 3, 6]"),
    ] {
        let message = run(q, k, v, &masked(t(mask))).unwrap_err().to_string();
        let told = format!(
            "[scaled_dot_product_attention] expected a mask that broadcasts to the scores {scores}, got {mask:?}"
        );
        assert!(message.contains(&told), "{message}");
    }
    let packed =
        |x: &[usize], heads: usize, groups: usize| t(x).packed_attention(heads, groups, &plain);
    edges(
        "packed_attention",
        vec![
            (packed(&[2, 3, 24], 4, 2), Some(&[2, 3, 12])),
            (packed(&[2, 3, 24], 2, 1), Some(&[2, 3, 12])),
            (packed(&[2, 3, 25], 4, 2), None),
            (packed(&[3, 24], 4, 2), None),
            (packed(&[2, 3, 21], 3, 2), None),
            (packed(&[2, 3, 24], 4, 0), None),
        ],
    );
    let rotary = |x: &[usize], c: &[usize], s: &[usize]| t(x).rotary(&t(c), &t(s), false);
    edges(
        "rotary",
        vec![
            (rotary(&[5, 3, 4], &[3, 2], &[3, 2]), Some(&[5, 3, 4])),
            (rotary(&[3, 4], &[2], &[3, 1]), Some(&[3, 4])),
            (rotary(&[3, 5], &[3, 2], &[3, 2]), None),
            (rotary(&[4], &[2], &[2]), None),
            (rotary(&[3, 4], &[3, 4], &[3, 2]), None),
            (rotary(&[3, 4], &[3, 2], &[4, 2]), None),
            (rotary(&[3, 4], &[1, 3, 2], &[3, 2]), None),
        ],
    );
}

#[test]
fn losses() {
    let classes =
        |x: &[usize], y: &Tensor, w: Option<&Tensor>| t(x).nll_loss(y, w, -100, Reduction::Mean);
    edges(
        "nll_loss",
        vec![
            (classes(&[2, 3], &ints(&[2]), None), Some(&[])),
            (classes(&[3], &ints(&[]), None), Some(&[])),
            (classes(&[2, 3, 4], &ints(&[2, 4]), None), Some(&[])),
            (classes(&[2, 3], &ints(&[3]), None), None),
            (classes(&[2, 3], &ints(&[2, 1]), None), None),
            (classes(&[], &ints(&[]), None), None),
            (classes(&[2, 3], &t(&[2]), None), None),
            (
                classes(&[2, 3], &Tensor::zeros([2], DType::Bool), None),
                None,
            ),
            (classes(&[2, 3], &ints(&[2]), Some(&t(&[3]))), Some(&[])),
            (classes(&[2, 3], &ints(&[2]), Some(&t(&[2]))), None),
        ],
    );
    let fused = |x: &[usize], w: &[usize], y: &Tensor| {
        t(x).linear_cross_entropy(&t(w), y, -100, Reduction::Sum)
    };
    edges(
        "linear_cross_entropy",
        vec![
            (fused(&[2, 3], &[4, 3], &ints(&[2])), Some(&[])),
            (fused(&[5, 2, 3], &[4, 3], &ints(&[5, 2])), Some(&[])),
            (fused(&[3], &[4, 3], &ints(&[])), Some(&[])),
            (fused(&[2, 3], &[4, 2], &ints(&[2])), None),
            (fused(&[2, 3], &[4, 3, 3], &ints(&[2])), None),
            (fused(&[2, 3], &[3], &ints(&[2])), None),
            (fused(&[2, 3], &[4, 3], &ints(&[3])), None),
            (fused(&[2, 3], &[4, 3], &t(&[2])), None),
            (
                fused(&[2, 3], &[4, 3], &Tensor::zeros([2], DType::Bool)),
                None,
            ),
            (fused(&[], &[4, 3], &ints(&[])), None),
        ],
    );
    let (a, mean) = (t(&[2, 3]), Reduction::Mean);
    edges(
        "smooth_l1_loss",
        vec![
            (a.smooth_l1_loss(&a, 0.0, mean), Some(&[])),
            (a.smooth_l1_loss(&a, -0.1, mean), None),
            (a.smooth_l1_loss(&a, f64::NAN, mean), None),
        ],
    );
    edges(
        "huber_loss",
        vec![
            (a.huber_loss(&a, 0.1, mean), Some(&[])),
            (a.huber_loss(&a, 0.0, mean), None),
            (a.huber_loss(&a, f64::NAN, mean), None),
        ],
    );
    let triplet = |margin: f64, p: f64| a.triplet_margin_loss(&a, &a, margin, p, 1e-6, true, mean);
    edges(
        "triplet_margin_loss",
        vec![
            (triplet(0.1, 2.0), Some(&[])),
            (triplet(0.0, 2.0), None),
            (triplet(f64::NAN, 2.0), None),
        ],
    );
}
