//! `AdamW8bit` against bitsandbytes' CPU kernel (`oracles/bitsandbytes_cpu.py`), through a save, and
//! beside AdamW on a problem with a known minimum.

use entrenar_core::{Array, DType, Tensor};
use entrenar_nn::optim::{AdamW, AdamW8bit, Optimizer};
use entrenar_nn::{NamedParameters, Parameter};
use serde_json::Value;

/// The generator of the oracle script.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((state >> 40) % 65536) as f32 / 4096.0 - 8.0
    };
    (0..n).map(|_| next() * next() / 64.0).collect()
}

fn fnv(bytes: &[u8]) -> String {
    let start = 0xcbf2_9ce4_8422_2325u64;
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(start, step))
}

fn parameters() -> NamedParameters {
    let make = |a: usize, b: usize, seed| {
        Parameter::new(Tensor::from_vec(values(a * b, seed), [a, b]).unwrap()).unwrap()
    };
    vec![("a".into(), make(40, 130, 9)), ("b".into(), make(6, 5, 10))]
}

fn optimizer(p: &NamedParameters) -> AdamW8bit {
    let builder = AdamW8bit::builder().learning_rate(0.01).betas(0.9, 0.99);
    builder.weight_decay(0.1).build(p.clone()).unwrap()
}

fn set_gradients(p: &NamedParameters, step: usize) {
    for (i, (_, p)) in p.iter().enumerate() {
        let factor = 0.1f64.powi(step as i32) as f32;
        let g = values(p.numel(), (100 + 10 * step + i) as u64);
        let g = g.into_iter().map(|x| x * factor).collect();
        p.set_grad(Some(Tensor::from_vec::<f32>(g, p.shape()).unwrap()))
            .unwrap();
    }
}

fn find(state: &[(String, Array)], name: &str) -> Array {
    state.iter().find(|(n, _)| n == name).unwrap().1.clone()
}

#[test]
fn codes_are_those_of_bitsandbytes() {
    let golden: Value = serde_json::from_str(include_str!("../data/adamw8bit.json")).unwrap();
    let p = parameters();
    let mut optimizer = optimizer(&p);
    for (step, want) in golden["steps"].as_array().unwrap().iter().enumerate() {
        set_gradients(&p, step);
        optimizer.step().unwrap();
        let state = optimizer.state();
        for (name, key) in [("a.exp_avg", "state1"), ("a.exp_avg_sq", "state2")] {
            let codes = find(&state, name);
            assert_eq!(
                fnv(codes.as_bytes().unwrap()),
                want[key],
                "{name} at {step}"
            );
        }
        let near = |ours: &[f64], want: &Value, tolerance: f64| {
            let want = want.as_array().unwrap();
            assert_eq!(ours.len(), want.len());
            for (a, b) in ours.iter().zip(want) {
                let b = b.as_f64().unwrap();
                assert!(
                    (a - b).abs() <= tolerance * b.abs().max(0.1),
                    "{a} {b} at {step}"
                );
            }
        };
        let scales = [
            find(&state, "a.exp_avg_scales"),
            find(&state, "a.exp_avg_sq_scales"),
        ];
        near(&scales[0].to_f64_vec(), &want["absmax1"], 1e-6);
        near(&scales[1].to_f64_vec(), &want["absmax2"], 1e-6);
        let a = p[0].1.array().to_f64_vec();
        let a: Vec<f64> = a.into_iter().step_by(101).collect();
        near(&a, &want["value0"], 3e-7);
        near(&p[1].1.array().to_f64_vec(), &want["value1"], 1e-6);
    }
}

#[test]
fn a_saved_state_goes_on_with_the_same_bits() {
    let p = parameters();
    let mut first = optimizer(&p);
    for step in 0..2 {
        set_gradients(&p, step);
        first.step().unwrap();
    }
    let copies: NamedParameters = p
        .iter()
        .map(|(n, p)| (n.clone(), Parameter::new(p.value()).unwrap()))
        .collect();
    let mut second = optimizer(&copies);
    let state = first.state();
    second.load_state(&state).unwrap();
    for (p, optimizer) in [(&p, &mut first), (&copies, &mut second)] {
        set_gradients(p, 2);
        optimizer.step().unwrap();
    }
    for ((_, a), (_, b)) in p.iter().zip(&copies) {
        assert_eq!(a.array().to_f64_vec(), b.array().to_f64_vec());
    }
    let bytes: usize = state
        .iter()
        .map(|(_, a)| a.numel() * a.dtype().size())
        .sum();
    assert!(bytes < 2 * 5200 + 2 * 21 * 4 + 2 * 30 * 4 + 17, "{bytes}");

    let broken = |name: &str, with: Option<Array>| {
        let mut state = state.clone();
        let at = state.iter().position(|(n, _)| n == name).unwrap();
        match with {
            Some(array) => state[at].1 = array,
            None => drop(state.remove(at)),
        }
        let mut fresh = optimizer(&copies);
        fresh.load_state(&state).unwrap_err().to_string()
    };
    let error = broken("a.exp_avg_scales", None);
    assert!(error.contains("a.exp_avg_scales is missing"), "{error}");
    let error = broken("a.exp_avg", Some(Array::zeros([40, 130], DType::F32)));
    assert!(error.contains("a.exp_avg is f32 [40, 130]"), "{error}");
    let error = broken("a.exp_avg_scales", Some(Array::zeros([20], DType::F32)));
    assert!(error.contains("a.exp_avg_scales"), "{error}");
}

/// ½ Σ cᵢ (xᵢ - tᵢ)² with curvatures over two decades.
#[test]
fn it_comes_as_near_to_a_minimum_as_adamw() {
    let n = 4096;
    let target = Tensor::from_vec(values(n, 1), [n]).unwrap();
    let curvature = (0..n).map(|i| 10f32.powf(2.0 * i as f32 / n as f32 - 1.0));
    let curvature = Tensor::from_vec(curvature.collect::<Vec<f32>>(), [n]).unwrap();
    let error = |p: &Parameter| {
        let d = p.tensor().sub(&target).unwrap();
        d.square().unwrap().mul(&curvature).unwrap().sum().unwrap()
    };
    let run = |eight: bool| {
        let p = Parameter::new(Tensor::zeros([n], DType::F32)).unwrap();
        let mut optimizer: Box<dyn Optimizer> = if eight {
            Box::new(AdamW8bit::builder().weight_decay(0.0).build(&p).unwrap())
        } else {
            Box::new(AdamW::builder().weight_decay(0.0).build(&p).unwrap())
        };
        for step in 0..400 {
            optimizer.set_learning_rate(0.02 * (1.0 - f64::from(step) / 400.0));
            error(&p).backward().unwrap();
            optimizer.step().unwrap();
            optimizer.zero_grad();
        }
        error(&p).item::<f32>().unwrap()
    };
    let start = error(&Parameter::new(Tensor::zeros([n], DType::F32)).unwrap());
    let (start, full, eight) = (start.item::<f32>().unwrap(), run(false), run(true));
    assert!(full < 1e-4 * start, "{full} of {start}");
    assert!(eight < 1e-3 * start, "{eight} of {start}");
}
