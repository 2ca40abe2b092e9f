//! Values and gradients against PyTorch where conventions differ between libraries.
//!
//! `data/functional.txt` holds what `oracles/core_goldens.py` wrote; both sides make their inputs
//! with the same formula. Each case of the file must be here and each case here in the file.

use std::collections::BTreeMap;

use entrenar_core::autograd::vjp;
use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::ops::conv::ConvOptions;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::interpolate::Interpolation;
use entrenar_core::ops::loss::Reduction;
use entrenar_core::ops::pool::PoolOptions;
use entrenar_core::{DType, Result, Tensor};

/// Position i of stream `seed`, in 0..1009.
fn place(i: usize, seed: usize) -> usize {
    (i * 7919 + seed * 104_729) % 1009
}

fn numbers(shape: &[usize], seed: usize, low: f64, high: f64) -> Tensor {
    let n = shape.iter().product();
    let values = (0..n)
        .map(|i| low + (high - low) * (place(i, seed) as f64 / 1009.0))
        .collect();
    Tensor::from_vec::<f64>(values, shape).expect("counted")
}

fn plain(shape: &[usize], seed: usize) -> Tensor {
    numbers(shape, seed, -1.0, 1.0)
}

fn integers(shape: &[usize], seed: usize, low: i64, high: i64) -> Vec<i64> {
    let n: usize = shape.iter().product();
    (0..n)
        .map(|i| low + place(i, seed) as i64 % (high - low))
        .collect()
}

fn list(values: &[f64]) -> Tensor {
    Tensor::from_vec(values.to_vec(), [values.len()]).expect("counted")
}

type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

#[derive(Default)]
struct Cases(Vec<(String, Vec<Tensor>, Function)>);

impl Cases {
    fn add(
        &mut self,
        name: impl Into<String>,
        inputs: Vec<Tensor>,
        f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    ) {
        self.0.push((name.into(), inputs, Box::new(f)));
    }
}

const REDUCTIONS: [(&str, Reduction); 3] = [
    ("none", Reduction::None),
    ("mean", Reduction::Mean),
    ("sum", Reduction::Sum),
];

fn activations(cases: &mut Cases) {
    let kinks = list(&[
        -4.0, -3.0, -2.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.5, 3.0, 4.0, 6.0, 7.0,
    ]);
    type Activation = fn(&Tensor) -> Result<Tensor>;
    let all: [(&str, Activation); 17] = [
        ("relu", Tensor::relu),
        ("relu6", Tensor::relu6),
        ("selu", Tensor::selu),
        ("gelu", Tensor::gelu),
        ("gelu_tanh", Tensor::gelu_tanh),
        ("silu", Tensor::silu),
        ("softsign", Tensor::softsign),
        ("mish", Tensor::mish),
        ("hardswish", Tensor::hardswish),
        ("hardsigmoid", Tensor::hardsigmoid),
        ("logsigmoid", Tensor::logsigmoid),
        ("tanhshrink", Tensor::tanhshrink),
        ("leaky_relu", |x| x.leaky_relu(0.1)),
        ("elu", |x| x.elu(1.5)),
        ("celu", |x| x.celu(1.5)),
        ("softplus", |x| x.softplus(2.0, 5.0)),
        ("hardtanh", |x| x.hardtanh(-1.0, 2.5)),
    ];
    for (name, f) in all {
        cases.add(name, vec![kinks.clone()], move |t| f(&t[0]));
    }
    cases.add("prelu", vec![plain(&[2, 3, 2], 1), plain(&[3], 2)], |t| {
        t[0].prelu(&t[1])
    });
    cases.add("glu", vec![plain(&[2, 4, 2], 1)], |t| t[0].glu(1));
}

fn class_losses(cases: &mut Cases) -> Result<()> {
    let mut ids = integers(&[4], 3, 0, 3);
    ids[1] = -100;
    let targets = Tensor::from_vec(ids, [4])?;
    let planes = Tensor::from_vec(integers(&[2, 2], 4, 0, 3), [2, 2])?;
    let weight = numbers(&[3], 5, 0.5, 2.0);
    for (label, reduction) in REDUCTIONS {
        let options = CrossEntropy {
            weight: Some(weight.clone()),
            label_smoothing: 0.2,
            reduction,
            ..Default::default()
        };
        let (rows, y) = (vec![plain(&[4, 3], 1)], targets.clone());
        cases.add(
            format!("cross_entropy_smooth_weighted_{label}"),
            rows.clone(),
            move |t| t[0].cross_entropy(&y, &options),
        );
        let (y, w) = (targets.clone(), weight.clone());
        cases.add(format!("nll_loss_weighted_{label}"), rows, move |t| {
            t[0].nll_loss(&y, Some(&w), -100, reduction)
        });
        let options = CrossEntropy {
            ignore_index: 1,
            label_smoothing: 0.1,
            reduction,
            ..Default::default()
        };
        let y = planes.clone();
        cases.add(
            format!("cross_entropy_planes_{label}"),
            vec![plain(&[2, 3, 2], 1)],
            move |t| t[0].cross_entropy(&y, &options),
        );
        let options = CrossEntropy {
            weight: Some(weight.clone()),
            label_smoothing: 0.1,
            reduction,
            ..Default::default()
        };
        cases.add(
            format!("cross_entropy_probabilities_{label}"),
            vec![plain(&[2, 3, 2], 1), numbers(&[2, 3, 2], 2, 0.0, 1.0)],
            move |t| t[0].cross_entropy(&t[1], &options),
        );
    }
    let wanted = list(&[1.0, 0.0, 0.0, 1.0, 0.6]);
    cases.add(
        "binary_cross_entropy_saturated",
        vec![list(&[0.0, 1.0, 0.0, 1.0, 0.3])],
        move |t| t[0].binary_cross_entropy(&wanted, None, Reduction::None),
    );
    let positive = numbers(&[3], 6, 0.5, 3.0);
    cases.add(
        "binary_cross_entropy_with_logits",
        vec![
            numbers(&[4, 3], 1, -50.0, 50.0),
            numbers(&[4, 3], 2, 0.0, 1.0),
        ],
        move |t| {
            t[0].binary_cross_entropy_with_logits(
                &t[1],
                Some(&weight),
                Some(&positive),
                Reduction::Mean,
            )
        },
    );
    Ok(())
}

fn other_losses(cases: &mut Cases) -> Result<()> {
    let (a, b) = (plain(&[3, 4], 1), plain(&[3, 4], 2));
    // Row 0 ties with b, row 1 lies exactly at the borders of smooth_l1 and huber.
    let (mut tied, other) = (a.to_vec::<f64>()?, b.to_vec::<f64>()?);
    for i in 0..8 {
        tied[i] = other[i] + if i < 4 { 0.0 } else { 0.5 };
    }
    let tied = Tensor::from_vec(tied, [3, 4])?;
    for (label, red) in REDUCTIONS {
        let inputs = vec![tied.clone(), b.clone()];
        cases.add(format!("l1_loss_{label}"), inputs.clone(), move |t| {
            t[0].l1_loss(&t[1], red)
        });
        cases.add(
            format!("smooth_l1_loss_{label}"),
            inputs.clone(),
            move |t| t[0].smooth_l1_loss(&t[1], 0.5, red),
        );
        cases.add(format!("huber_loss_{label}"), inputs, move |t| {
            t[0].huber_loss(&t[1], 0.5, red)
        });
    }
    let positive = numbers(&[3, 4], 7, 0.1, 3.0);
    cases.add("kl_div_batchmean", vec![a.clone(), positive.clone()], |t| {
        t[0].kl_div(&t[1], false, Reduction::BatchMean)
    });
    cases.add("kl_div_log_target", vec![a.clone(), b.clone()], |t| {
        t[0].kl_div(&t[1], true, Reduction::Mean)
    });
    let target = positive.clone();
    cases.add("poisson_nll_loss_full", vec![a.clone()], move |t| {
        t[0].poisson_nll_loss(&target, true, true, 1e-8, Reduction::Mean)
    });
    let target = positive.clone();
    cases.add(
        "poisson_nll_loss_plain",
        vec![positive.add_scalar(0.5)?],
        move |t| t[0].poisson_nll_loss(&target, false, false, 1e-3, Reduction::Mean),
    );
    cases.add(
        "gaussian_nll_loss_cut",
        vec![a.clone(), b.clone(), numbers(&[3, 1], 8, 0.0, 2.0)],
        |t| t[0].gaussian_nll_loss(&t[1], &t[2], true, 0.5, Reduction::Mean),
    );
    let signs: Vec<f64> = integers(&[3, 4], 9, 0, 2)
        .iter()
        .map(|&s| (s * 2 - 1) as f64)
        .collect();
    let first = list(&[signs[0], signs[4], signs[8]]);
    let signs = Tensor::from_vec(signs, [3, 4])?;
    let y = signs.clone();
    cases.add("hinge_embedding_loss", vec![a.clone()], move |t| {
        t[0].hinge_embedding_loss(&y, 0.25, Reduction::Mean)
    });
    cases.add(
        "margin_ranking_loss",
        vec![a.clone(), b.clone()],
        move |t| t[0].margin_ranking_loss(&t[1], &signs, 0.1, Reduction::Mean),
    );
    cases.add(
        "cosine_embedding_loss",
        vec![a.clone(), b.clone()],
        move |t| t[0].cosine_embedding_loss(&t[1], &first, -0.9, Reduction::None),
    );
    cases.add(
        "triplet_margin_loss_swap",
        vec![a, b, plain(&[3, 4], 10)],
        |t| t[0].triplet_margin_loss(&t[1], &t[2], 1.5, 3.0, 1e-6, true, Reduction::None),
    );
    Ok(())
}

fn attention(cases: &mut Cases) -> Result<()> {
    let mut seen: Vec<bool> = integers(&[3, 5], 4, 0, 2).iter().map(|&v| v != 0).collect();
    seen[5..10].fill(false);
    let qkv = vec![
        plain(&[2, 4, 3, 2], 1),
        plain(&[2, 2, 5, 2], 2),
        plain(&[2, 2, 5, 3], 3),
    ];
    for (name, options) in [
        ("attention_grouped", AttentionOptions::default()),
        (
            "attention_causal",
            AttentionOptions {
                causal: true,
                scale: Some(0.3),
                ..Default::default()
            },
        ),
        (
            "attention_masked",
            AttentionOptions {
                mask: Some(Tensor::from_vec(seen, [3, 5])?),
                ..Default::default()
            },
        ),
    ] {
        cases.add(name, qkv.clone(), move |t| {
            t[0].scaled_dot_product_attention(&t[1], &t[2], &options)
        });
    }
    let mut inputs = qkv;
    inputs.push(plain(&[3, 5], 6));
    cases.add("attention_float_mask", inputs, |t| {
        let options = AttentionOptions {
            mask: Some(t[3].clone()),
            ..Default::default()
        };
        t[0].scaled_dot_product_attention(&t[1], &t[2], &options)
    });
    Ok(())
}

fn norms(cases: &mut Cases) {
    cases.add(
        "layer_norm",
        vec![plain(&[4, 2, 3], 1), plain(&[2, 3], 2), plain(&[2, 3], 3)],
        |t| t[0].layer_norm(2, Some(&t[1]), Some(&t[2]), 1e-3),
    );
    cases.add("rms_norm", vec![plain(&[4, 3], 1), plain(&[3], 2)], |t| {
        t[0].rms_norm(1, Some(&t[1]), 1e-3)
    });
    cases.add(
        "batch_norm",
        vec![plain(&[3, 2, 2], 1), plain(&[2], 2), plain(&[2], 3)],
        |t| Ok(t[0].batch_norm(Some(&t[1]), Some(&t[2]), 1e-3)?.0),
    );
    cases.add(
        "group_norm",
        vec![plain(&[2, 4, 2], 1), plain(&[4], 2), plain(&[4], 3)],
        |t| t[0].group_norm(2, Some(&t[1]), Some(&t[2]), 1e-3),
    );
    cases.add(
        "instance_norm",
        vec![plain(&[2, 2, 3], 1), plain(&[2], 2)],
        |t| t[0].instance_norm(Some(&t[1]), None, 1e-3),
    );
    cases.add("local_response_norm", vec![plain(&[2, 5, 2], 1)], |t| {
        t[0].local_response_norm(4, 0.5, 0.75, 2.0)
    });
}

fn spatial(cases: &mut Cases) {
    let options = ConvOptions {
        stride: vec![2],
        padding: vec![(1, 1)],
        dilation: vec![4],
        groups: 1,
    };
    cases.add(
        "conv_transpose_far_output_padding",
        vec![
            plain(&[1, 2, 3, 3], 1),
            plain(&[2, 2, 2, 3], 2),
            plain(&[2], 3),
        ],
        move |t| t[0].conv_transpose2d(&t[1], Some(&t[2]), &options, &[2, 3]),
    );
    let pool = PoolOptions {
        kernel: vec![3, 3],
        stride: vec![2],
        padding: vec![1],
        ceil_mode: true,
        ..Default::default()
    };
    let large = vec![plain(&[1, 2, 6, 5], 1)];
    let options = pool.clone();
    cases.add("max_pool_ceil", large.clone(), move |t| {
        Ok(t[0].max_pool(&options)?.0)
    });
    cases.add("avg_pool_ceil", large, move |t| {
        t[0].avg_pool(&pool, false, None)
    });
    cases.add("adaptive_avg_pool", vec![plain(&[1, 1, 5, 3], 1)], |t| {
        t[0].adaptive_avg_pool(&[2, 4])
    });
    cases.add(
        "bilinear",
        vec![
            plain(&[3, 2], 1),
            plain(&[3, 4], 2),
            plain(&[5, 2, 4], 3),
            plain(&[5], 4),
        ],
        |t| t[0].bilinear(&t[1], &t[2], Some(&t[3])),
    );
    let image = vec![plain(&[1, 2, 4, 3], 1)];
    for size in [[7, 2], [3, 8]] {
        let mut modes = vec![
            ("nearest", "", Interpolation::Nearest),
            ("nearest_exact", "", Interpolation::NearestExact),
        ];
        for (align_corners, label) in [(false, ""), (true, "_aligned")] {
            modes.push(("linear", label, Interpolation::Linear { align_corners }));
            modes.push(("cubic", label, Interpolation::Cubic { align_corners }));
        }
        for (name, label, mode) in modes {
            let name = format!("{name}_{}x{}{label}", size[0], size[1]);
            cases.add(name, image.clone(), move |t| t[0].interpolate(&size, mode));
        }
    }
    let align_corners = false;
    for (name, scale, mode) in [
        ("nearest_scaled", 1.7, Interpolation::Nearest),
        (
            "linear_scaled",
            1.7,
            Interpolation::Linear { align_corners },
        ),
        ("cubic_scaled", 0.6, Interpolation::Cubic { align_corners }),
    ] {
        cases.add(name, image.clone(), move |t| {
            t[0].interpolate_scaled(&[scale], mode)
        });
    }
}

/// PyTorch holds the constants of these gradients (1/6, 1e-12) in f32 even for f64 inputs.
const ROUNDED: [&str; 2] = ["hardsigmoid", "binary_cross_entropy_saturated"];

fn compare(what: &str, expected: &str, found: &Tensor, tolerance: f64) -> Result<(), String> {
    let expected: Vec<f64> = expected
        .split_whitespace()
        .map(|v| v.parse().expect("a number"))
        .collect();
    let found = found.array().cast(DType::F64).to_f64_vec();
    if expected.len() != found.len() {
        return Err(format!(
            "{what}: {} numbers, {} expected",
            found.len(),
            expected.len()
        ));
    }
    for (i, (e, f)) in expected.iter().zip(&found).enumerate() {
        if f.is_nan() || (e - f).abs() > tolerance * e.abs().max(1.0) {
            return Err(format!("{what}: {f} at {i}, {e} expected"));
        }
    }
    Ok(())
}

#[test]
fn functions_agree_with_pytorch() -> Result<()> {
    let mut cases = Cases::default();
    activations(&mut cases);
    class_losses(&mut cases)?;
    other_losses(&mut cases)?;
    attention(&mut cases)?;
    norms(&mut cases);
    spatial(&mut cases);

    let mut golden: BTreeMap<&str, Vec<&str>> = include_str!("../data/functional.txt")
        .lines()
        .map(|line| {
            let mut parts = line.split(';').map(str::trim);
            (parts.next().expect("a name"), parts.collect())
        })
        .collect();
    let mut failures = Vec::new();
    for (name, inputs, f) in &cases.0 {
        let Some(expected) = golden.remove(name.as_str()) else {
            failures.push(format!("{name}: not in the file"));
            continue;
        };
        let check = || -> std::result::Result<(), String> {
            let refs: Vec<&Tensor> = inputs.iter().collect();
            let (outputs, pullback) = vjp(|t| Ok(vec![f(t)?]), &refs).map_err(|e| e.to_string())?;
            let tolerance = if ROUNDED.contains(&name.as_str()) {
                1e-7
            } else {
                1e-10
            };
            compare("value", expected[0], &outputs[0], tolerance)?;
            let cotangent = plain(outputs[0].dims(), 99);
            let gradients = pullback.call(&[&cotangent]).map_err(|e| e.to_string())?;
            for (i, g) in gradients.iter().enumerate() {
                compare(&format!("gradient {i}"), expected[1 + i], g, tolerance)?;
            }
            Ok(())
        };
        if let Err(e) = check() {
            failures.push(format!("{name}: {e}"));
        }
    }
    failures.extend(golden.keys().map(|name| format!("{name}: not run")));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
