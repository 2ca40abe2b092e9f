//! Losses and metrics: values and gradients against PyTorch's, counting by hand.

use std::collections::BTreeMap;

use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::{DType, Result, Tensor};
use entrenar_nn::loss::Reduction;
use entrenar_nn::{
    Accuracy, BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, Loss, MSELoss, Perplexity,
};
use serde::Deserialize;

use crate::golden::{close, fill};

#[derive(Deserialize)]
struct Golden {
    value: Vec<f64>,
    gradient: Vec<f64>,
}

fn make(name: &str) -> Result<(Box<dyn Loss>, Tensor)> {
    let classes = Tensor::from_vec(vec![2i64, 0, 1, 2], [4])?;
    let soft = fill([4, 3], 2).softmax(-1)?;
    let binary = fill([4, 3], 2)
        .gt(&Tensor::scalar(0.0f64))?
        .to_dtype(DType::F64)?;
    let weight = Tensor::from_vec(vec![0.5, 1.0, 2.0], [3])?;
    let sum = Reduction::Sum;
    Ok(match name {
        "cross_entropy" => (Box::new(CrossEntropyLoss::default()), classes),
        "cross_entropy_smoothed" => (
            Box::new(CrossEntropyLoss(CrossEntropy {
                weight: Some(weight),
                label_smoothing: 0.1,
                ignore_index: 1,
                ..Default::default()
            })),
            classes,
        ),
        "cross_entropy_probabilities" => (
            Box::new(CrossEntropyLoss(CrossEntropy {
                reduction: sum,
                ..Default::default()
            })),
            soft,
        ),
        "bce_with_logits" => (Box::new(BCEWithLogitsLoss::default()), binary),
        "bce_with_logits_weighted" => (
            Box::new(BCEWithLogitsLoss {
                weight: Some(weight),
                pos_weight: Some(Tensor::from_vec(vec![3.0, 1.0, 0.5], [3])?),
                ..Default::default()
            }),
            binary,
        ),
        "mse" => (Box::new(MSELoss::default()), soft),
        "mse_sum" => (Box::new(MSELoss { reduction: sum }), soft),
        "l1" => (Box::new(L1Loss::default()), soft),
        "huber" => (
            Box::new(HuberLoss {
                delta: 0.7,
                ..Default::default()
            }),
            soft,
        ),
        other => panic!("no loss for the golden {other}"),
    })
}

#[test]
fn values_and_gradients_equal_pytorchs() -> Result<()> {
    let goldens: BTreeMap<String, Golden> =
        serde_json::from_str(include_str!("../data/losses.json")).unwrap();
    for (name, golden) in &goldens {
        let (loss, target) = make(name)?;
        let x = fill([4, 3], 1).mul_scalar(2.0)?.requires_grad()?;
        let value = loss.forward(&x, &target)?;
        close(&value, &golden.value, 1e-13, name);
        value.backward()?;
        close(&x.grad().unwrap(), &golden.gradient, 1e-13, name);
    }
    // A closure is a loss.
    let own = |a: &Tensor, b: &Tensor| a.sub(b)?.abs()?.sum();
    let x = Tensor::from_vec(vec![1.0, 4.0], [2])?;
    assert_eq!(own.forward(&x, &x.mul_scalar(2.0)?)?.item::<f64>()?, 5.0);
    Ok(())
}

#[test]
fn accuracy_counts_rows() -> Result<()> {
    let mut a = Accuracy::ignoring(-1);
    assert_eq!(a.compute(), None);
    let nan = f32::NAN;
    let logits = Tensor::from_vec(
        vec![
            0.0f32, 1.0, 0.5, // 1
            2.0, 2.0, 1.0, // the first of equals
            0.0, 0.0, 9.0, // ignored
            nan, 0.0, 5.0, // NaN is wrong
        ],
        [2, 2, 3],
    )?;
    a.update(&logits, &Tensor::from_vec(vec![1i64, 0, -1, 2], [2, 2])?)?;
    assert_eq!(a.counts(), (2, 3));
    a.update(
        &Tensor::from_vec(vec![1.0f64, 0.0], [1, 2])?,
        &Tensor::from_vec(vec![0u8], [1])?,
    )?;
    assert_eq!(a.compute(), Some(0.75));
    a.reset();
    assert_eq!(a.counts(), (0, 0));
    assert!(
        a.update(&logits, &Tensor::zeros([2, 2], DType::F32))
            .is_err()
    );
    assert!(a.update(&logits, &Tensor::zeros([4], DType::I64)).is_err());
    assert!(
        a.update(&Tensor::scalar(1.0f32), &Tensor::scalar(1i64))
            .is_err()
    );
    Ok(())
}

#[test]
fn perplexity_weighs_by_tokens() {
    let mut p = Perplexity::default();
    assert_eq!(p.compute(), None);
    p.update(3.0 * 2f64.ln(), 3);
    p.update(32f64.ln(), 1);
    assert!((p.compute().unwrap() - 4.0).abs() < 1e-12); // 2^((3 + 5) / 4)
    p.reset();
    assert_eq!(p.compute(), None);
}
