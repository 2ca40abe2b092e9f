//! Optimizers against PyTorch's, states through a save, clipping, groups, refused settings.

use std::collections::BTreeMap;

use entrenar_core::{Array, DType, Result, Tensor};
use entrenar_nn::optim::{
    Adam, AdamW, Optimizer, ParamGroup, Sgd, clip_factor, clip_grad_norm, clip_grad_value,
    grad_norm, non_finite_gradient,
};
use entrenar_nn::{NamedParameters, Parameter};

use crate::golden::{close, fill};

type Goldens = BTreeMap<String, Vec<[Vec<f64>; 2]>>;

fn parameters(dtype: DType) -> Result<NamedParameters> {
    Ok(vec![
        (
            "a".into(),
            Parameter::new(fill([3, 2], 1).to_dtype(dtype)?)?,
        ),
        ("b".into(), Parameter::new(fill([4], 2).to_dtype(dtype)?)?),
    ])
}

fn set_gradients(p: &NamedParameters, step: usize) -> Result<()> {
    for (k, (_, p)) in p.iter().enumerate() {
        let g = p.value().square()?;
        let g = g.add(&fill(p.shape(), 10 + step).to_dtype(p.dtype())?)?;
        p.set_grad((!(k == 1 && step == 2)).then_some(g))?;
    }
    Ok(())
}

fn make(name: &str, p: &NamedParameters) -> Result<Box<dyn Optimizer>> {
    let p = p.clone();
    Ok(match name {
        "sgd" => Box::new(Sgd::new(p, 0.1)?),
        "sgd_momentum" => Box::new(
            Sgd::builder()
                .learning_rate(0.1)
                .momentum(0.9)
                .dampening(0.5)
                .weight_decay(0.01)
                .build(p)?,
        ),
        "sgd_nesterov" => Box::new(
            Sgd::builder()
                .learning_rate(0.1)
                .momentum(0.9)
                .nesterov(true)
                .weight_decay(0.01)
                .build(p)?,
        ),
        "adam" => Box::new(
            Adam::builder()
                .learning_rate(0.01)
                .weight_decay(0.1)
                .build(p)?,
        ),
        "adamw" => Box::new(
            AdamW::builder()
                .learning_rate(0.01)
                .betas(0.8, 0.95)
                .eps(1e-6)
                .build(p)?,
        ),
        "adamw_groups" => Box::new(AdamW::new(
            vec![
                ParamGroup::new(vec![p[0].clone()]).weight_decay(0.5),
                ParamGroup::new(vec![p[1].clone()])
                    .weight_decay(0.0)
                    .learning_rate_scale(2.0),
            ],
            0.01,
        )?),
        other => panic!("no optimizer for {other}"),
    })
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../data/optimizers.json")).unwrap()
}

#[test]
fn five_steps_equal_pytorchs() -> Result<()> {
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 2e-6)] {
        for (name, trace) in goldens() {
            let p = parameters(dtype)?;
            let mut optimizer = make(&name, &p)?;
            for (step, want) in trace.iter().enumerate() {
                set_gradients(&p, step)?;
                optimizer.step()?;
                for ((_, p), want) in p.iter().zip(want) {
                    close(
                        &p.value(),
                        want,
                        tolerance,
                        &format!("{name} {dtype} step {step}"),
                    );
                }
            }
        }
    }
    Ok(())
}

/// Stop after two steps, save, go on elsewhere: the same bits.
#[test]
fn a_saved_state_continues_exactly() -> Result<()> {
    for (name, _) in goldens() {
        let straight = parameters(DType::F32)?;
        let mut optimizer = make(&name, &straight)?;
        let mut saved = None;
        for step in 0..5 {
            if step == 2 {
                let values: Vec<Tensor> = straight.iter().map(|p| p.1.value()).collect();
                saved = Some((values, optimizer.state()));
            }
            set_gradients(&straight, step)?;
            optimizer.step()?;
        }
        let (values, state) = saved.unwrap();
        let resumed = parameters(DType::F32)?;
        for ((_, p), v) in resumed.iter().zip(&values) {
            p.set(v)?;
        }
        let mut optimizer = make(&name, &resumed)?;
        optimizer.load_state(&state)?;
        for step in 2..5 {
            set_gradients(&resumed, step)?;
            optimizer.step()?;
        }
        for (a, b) in straight.iter().zip(&resumed) {
            assert_eq!(
                a.1.value().to_vec::<f32>()?,
                b.1.value().to_vec::<f32>()?,
                "{name}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_state_that_does_not_fit_is_refused_whole() -> Result<()> {
    let p = parameters(DType::F32)?;
    let mut optimizer = AdamW::new(p.clone(), 0.1)?;
    set_gradients(&p, 0)?;
    optimizer.step()?;
    let good = optimizer.state();
    let names: Vec<&str> = good.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(
        names,
        [
            "a.step",
            "a.exp_avg",
            "a.exp_avg_sq",
            "b.step",
            "b.exp_avg",
            "b.exp_avg_sq"
        ]
    );
    let mut bad = good.clone();
    bad[1].1 = Array::zeros([2], DType::F32);
    bad.push(("c.exp_avg".into(), Array::zeros([2], DType::F32)));
    bad.remove(3);
    let error = optimizer.load_state(&bad).unwrap_err().to_string();
    assert_eq!(
        error,
        "[AdamW] the saved state does not fit; a.exp_avg is f32 [2], its parameter f32 [3, 2]; \
         b.step is missing; no parameter for c.exp_avg"
    );
    assert_eq!(optimizer.state()[0].1.item::<i64>()?, 1);
    let negative = vec![
        ("a.step".to_string(), Array::scalar(-1i64)),
        good[1].clone(),
        good[2].clone(),
    ];
    assert!(optimizer.load_state(&negative).is_err());
    // Nothing saved means a fresh start.
    optimizer.load_state(&[])?;
    assert!(optimizer.state().is_empty());
    Ok(())
}

#[test]
fn a_snapshot_of_the_state_does_not_change_later() -> Result<()> {
    let p = parameters(DType::F32)?;
    let mut optimizer = Adam::new(p.clone(), 0.1)?;
    set_gradients(&p, 0)?;
    optimizer.step()?;
    let state = optimizer.state();
    let before = state[1].1.to_f64_vec();
    set_gradients(&p, 1)?;
    optimizer.step()?;
    assert_eq!(state[1].1.to_f64_vec(), before);
    assert_ne!(optimizer.state()[1].1.to_f64_vec(), before);
    Ok(())
}

#[test]
fn a_scaled_step_is_a_step_on_scaled_gradients() -> Result<()> {
    for (name, _) in goldens() {
        let (a, b) = (parameters(DType::F64)?, parameters(DType::F64)?);
        let (mut folded, mut plain) = (make(&name, &a)?, make(&name, &b)?);
        for step in 0..3 {
            set_gradients(&a, step)?;
            set_gradients(&b, step)?;
            for (_, p) in &b {
                p.set_grad(p.grad().map(|g| g.mul_scalar(0.25)).transpose()?)?;
            }
            folded.step_scaled(0.25)?;
            plain.step()?;
        }
        for (a, b) in a.iter().zip(&b) {
            close(&a.1.value(), &b.1.value().to_vec::<f64>()?, 1e-14, &name);
        }
    }
    Ok(())
}

#[test]
fn clipping() -> Result<()> {
    let p = parameters(DType::F32)?;
    p[0].1
        .set_grad(Some(Tensor::full([3, 2], 3.0, DType::F32)))?;
    p[1].1.set_grad(Some(Tensor::full([4], -4.0, DType::F32)))?;
    let norm = (6.0f64 * 9.0 + 4.0 * 16.0).sqrt();
    assert!((grad_norm(&p) - norm).abs() < 1e-6);
    // Below the limit nothing changes, not even by rounding.
    assert!((clip_grad_norm(&p, 100.0)? - norm).abs() < 1e-6);
    assert_eq!(p[1].1.grad().unwrap().to_vec::<f32>()?, [-4.0; 4]);
    clip_grad_norm(&p, 2.0)?;
    assert!((grad_norm(&p) - 2.0).abs() < 1e-5);
    clip_grad_value(&p, 0.5)?;
    let a = p[0].1.grad().unwrap().to_vec::<f32>()?;
    let b = p[1].1.grad().unwrap().to_vec::<f32>()?;
    assert!(
        a.iter().all(|x| *x == 0.5) && b.iter().all(|x| *x == -0.5),
        "{a:?} {b:?}"
    );
    // A frozen parameter without a gradient does not count; tied ones count once.
    p[0].1.zero_grad();
    let tied = vec![p[1].1.clone(), p[1].1.clone()];
    assert!((grad_norm(&tied) - 1.0).abs() < 1e-6);
    assert_eq!(clip_factor(0.0, 1.0), 1.0);
    assert!(clip_grad_norm(&p, f64::NAN).is_err() && clip_grad_value(&p, -1.0).is_err());
    Ok(())
}

#[test]
fn a_gradient_that_is_not_finite_is_named_and_left() -> Result<()> {
    let p = parameters(DType::F32)?;
    p[0].1.set_grad(Some(Tensor::ones([3, 2], DType::F32)))?;
    assert_eq!(non_finite_gradient(&p), None);
    p[1].1
        .set_grad(Some(Tensor::from_slice(&[0.0, f32::NAN, 1.0, 2.0], [4])?))?;
    assert_eq!(non_finite_gradient(&p).as_deref(), Some("b"));
    assert!(clip_grad_norm(&p, 0.1)?.is_nan());
    assert_eq!(p[0].1.grad().unwrap().to_vec::<f32>()?, [1.0; 6]);
    Ok(())
}

#[test]
fn a_gradient_of_any_layout_is_used() -> Result<()> {
    let p = Parameter::new(Tensor::zeros([2, 3], DType::F64))?;
    let g = fill([3, 2], 5).t()?;
    p.set_grad(Some(g.clone()))?;
    Sgd::new(&p, 1.0)?.step()?;
    close(&p.value(), &g.neg()?.to_vec::<f64>()?, 0.0, "transposed");
    p.set_grad(Some(Tensor::scalar(2.0f64).broadcast_to([2, 3])?))?;
    p.set(&Tensor::zeros([2, 3], DType::F64))?;
    Adam::new(&p, 1.0)?.step()?;
    close(&p.value(), &[-1.0; 6], 1e-7, "broadcast");
    Ok(())
}

#[test]
fn wrong_settings_are_refused() -> Result<()> {
    let p = parameters(DType::F32)?;
    let message = |r: Result<Sgd>| r.err().unwrap().to_string();
    assert_eq!(
        message(Sgd::new(p.clone(), -1.0)),
        "[SGD] expected a finite learning rate of at least 0, got -1"
    );
    assert_eq!(
        message(Sgd::builder().nesterov(true).build(p.clone())),
        "[SGD] expected momentum above 0 and no dampening for Nesterov's momentum, \
         got momentum 0 and dampening 0"
    );
    let twice = [p[0].1.clone(), p[0].1.clone()];
    assert_eq!(
        message(Sgd::new(
            ParamGroup::new(vec![
                ("x".into(), twice[0].clone()),
                ("y".into(), twice[1].clone())
            ]),
            0.1
        )),
        "[SGD] expected each parameter once, under a name of its own, got y a second time"
    );
    let half = Parameter::new(Tensor::zeros([2], DType::BF16))?;
    assert!(message(Sgd::new(&half, 0.1)).contains("in f32 or f64, got bf16"));
    for bad in [1.0, -0.1, f64::NAN] {
        assert!(
            Adam::builder().betas(0.9, bad).build(p.clone()).is_err(),
            "{bad}"
        );
    }
    assert!(
        AdamW::builder()
            .eps(f64::INFINITY)
            .build(p.clone())
            .is_err()
    );
    assert!(AdamW::new(ParamGroup::new(p).weight_decay(-1.0), 0.1).is_err());
    Ok(())
}
