//! Kernels against PyTorch, for conventions that libraries disagree on: tests/data/torch.json,
//! written by oracles/cpu_goldens.py.

use crate::*;
use entrenar_cpu::attention::{Attention, attention, attention_backward};
use entrenar_cpu::conv::{ConvGeometry, conv, conv_input_grad, conv_weight_grad};
use entrenar_cpu::loss::{cross_entropy, cross_entropy_backward};
use entrenar_cpu::pool::*;
use entrenar_cpu::product::Compute;
use serde_json::Value;

/// The script's inputs.
fn numbers(shape: &[usize], seed: usize) -> Array {
    let n: usize = shape.iter().product();
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.5 - 1.0;
    Array::from_vec((0..n).map(value).collect::<Vec<f64>>(), shape).unwrap()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn sizes(v: &Value) -> Vec<usize> {
    floats(v).iter().map(|&v| v as usize).collect()
}

#[track_caller]
fn assert_listed(got: &Array, want: &Value) {
    let want = Array::from_vec(floats(want), got.shape()).unwrap();
    assert_close(got, &want, 1e-7);
}

#[track_caller]
fn assert_summed(got: &Array, want: &Value) {
    for (seed, want) in [50, 51].into_iter().zip(floats(want)) {
        let weights = numbers(got.dims(), seed).to_f64_vec();
        let sum: f64 = got
            .to_f64_vec()
            .iter()
            .zip(weights)
            .map(|(g, w)| g * w)
            .sum();
        assert!(
            (sum - want).abs() < 1e-6 * (1.0 + want.abs()),
            "{sum} against {want}"
        );
    }
}

fn check_conv(c: &Value) {
    let (x, w) = (numbers(&sizes(&c["x"]), 1), numbers(&sizes(&c["w"]), 2));
    let geometry = ConvGeometry {
        stride: sizes(&c["stride"]),
        padding: sizes(&c["padding"]).into_iter().map(|p| (p, p)).collect(),
        dilation: sizes(&c["dilation"]),
        groups: c["groups"].as_u64().unwrap() as usize,
    };
    let y = conv(&x, &w, None, &geometry, Compute::F32).unwrap();
    assert_eq!(y.dims(), sizes(&c["shape"]));
    assert_listed(&y, &c["y"]);
    let g = numbers(y.dims(), 99);
    assert_summed(
        &conv_input_grad(&g, &w, x.dims(), &geometry, Compute::F32).unwrap(),
        &c["dx"],
    );
    assert_summed(
        &conv_weight_grad(&g, &x, w.dims(), &geometry, Compute::F32).unwrap(),
        &c["dw"],
    );
}

fn check_conv_transpose(c: &Value) {
    let (x, w) = (numbers(&sizes(&c["x"]), 1), numbers(&sizes(&c["w"]), 2));
    let geometry = ConvGeometry {
        stride: sizes(&c["stride"]),
        padding: sizes(&c["padding"]).into_iter().map(|p| (p, p)).collect(),
        ..ConvGeometry::plain(2)
    };
    let y = conv_input_grad(&x, &w, &sizes(&c["shape"]), &geometry, Compute::F32).unwrap();
    assert_listed(&y, &c["y"]);
}

fn check_pool(c: &Value) {
    let x = numbers(&sizes(&c["x"]), 3);
    let geometry = PoolGeometry {
        kernel: sizes(&c["kernel"]),
        stride: sizes(&c["stride"]),
        padding: sizes(&c["padding"]),
        dilation: sizes(&c["dilation"]),
        ceil_mode: c["ceil_mode"].as_bool().unwrap(),
    };
    let (y, index) = max_pool(&x, &geometry).unwrap();
    assert_eq!(y.dims(), sizes(&c["shape"]));
    assert_listed(&y, &c["max"]);
    assert_listed(&index, &c["index"]);
    let g = numbers(y.dims(), 99);
    assert_summed(
        &max_pool_backward(&g, &index, x.dims()).unwrap(),
        &c["max_dx"],
    );
    for (name, include) in [("avg_padded", true), ("avg_inside", false)] {
        if let Some(want) = c.get(name) {
            assert_listed(&avg_pool(&x, &geometry, include, None).unwrap(), want);
            let dx = avg_pool_backward(&g, x.dims(), &geometry, include, None).unwrap();
            assert_summed(&dx, &c[format!("{name}_dx")]);
        }
    }
}

fn check_adaptive_pool(c: &Value) {
    let (x, out) = (numbers(&sizes(&c["x"]), 3), sizes(&c["out"]));
    assert_listed(&adaptive_avg_pool(&x, &out).unwrap(), &c["avg"]);
    let (y, index) = adaptive_max_pool(&x, &out).unwrap();
    assert_listed(&y, &c["max"]);
    assert_listed(&index, &c["index"]);
}

fn check_cross_entropy(c: &Value) {
    let x = numbers(&[6, 5], 4);
    let targets: Vec<i64> = floats(&c["targets"]).iter().map(|&t| t as i64).collect();
    let targets = Array::from_vec(targets, [6]).unwrap();
    let weight = c["weighted"].as_bool().unwrap().then(|| {
        let w = numbers(&[5], 5).to_f64_vec();
        Array::from_vec(w.iter().map(|w| w + 1.5).collect::<Vec<f64>>(), [5]).unwrap()
    });
    let smoothing = c["smoothing"].as_f64().unwrap();
    let (loss, lse) = cross_entropy(&x, &targets, weight.as_ref(), -100, smoothing).unwrap();
    assert_listed(&loss, &c["loss"]);
    let g = numbers(&[6], 99);
    let weight = weight.as_ref();
    let dx = cross_entropy_backward(&x, &targets, &lse, weight, -100, smoothing, &g).unwrap();
    assert_summed(&dx, &c["dx"]);
}

fn check_attention(c: &Value) {
    let (b, h, g, t, s, d, e) = (2, 2, 1, 3, 5, 2, 2);
    let (q, k, v) = (
        numbers(&[b, h, t, d], 6),
        numbers(&[b, g, s, d], 7),
        numbers(&[b, g, s, e], 8),
    );
    let keep: Vec<bool> = c["keep"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k.as_bool().unwrap())
        .collect();
    let mask = match c["mask"].as_str().unwrap() {
        "none" => None,
        "bool" => Some(Array::from_vec(keep, [b, 1, t, s]).unwrap()),
        "infinite" => {
            let bias = |&k: &bool| if k { 0.5 } else { f64::NEG_INFINITY };
            Some(
                Array::from_vec(keep.iter().map(bias).collect::<Vec<f64>>(), [b, 1, t, s]).unwrap(),
            )
        }
        _ => Some(build(&[t, s], |p| at(&numbers(&[t, s], 10), p) * 3.0)),
    };
    let (mask, causal) = (mask.as_ref(), c["causal"].as_bool().unwrap());
    let problem = Attention {
        mask,
        ..Attention::new(&q, &k, &v, 0.7, causal)
    };
    let (y, lse) = attention(&problem).unwrap();
    assert_listed(&y, &c["y"]);
    let grad = numbers(y.dims(), 99);
    let (dq, dk, dv) = attention_backward(&problem, &grad, &y, &lse).unwrap();
    assert_summed(&dq, &c["dq"]);
    assert_summed(&dk, &c["dk"]);
    assert_summed(&dv, &c["dv"]);
}

#[test]
fn same_numbers_as_pytorch() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../data/torch.json")).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for case in &cases {
        let op = case["op"].as_str().unwrap();
        println!("{op}: {case}");
        match op {
            "conv" => check_conv(case),
            "conv_transpose" => check_conv_transpose(case),
            "pool" => check_pool(case),
            "adaptive_pool" => check_adaptive_pool(case),
            "cross_entropy" => check_cross_entropy(case),
            "attention" => check_attention(case),
            other => panic!("unknown op {other}"),
        }
        *counts.entry(op).or_insert(0) += 1;
    }
    assert_eq!(counts.values().sum::<i32>(), 28, "{counts:?}");
}
