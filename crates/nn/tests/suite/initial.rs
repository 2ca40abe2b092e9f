//! Initial values: moments and ranges by their formulas, orthogonality, seeds.

use entrenar_core::{DType, Result, Tensor};
use entrenar_nn::Linear;
use entrenar_nn::init::{Fan, Gain, Init};

fn moments(t: &Tensor) -> (f64, f64, f64) {
    let v = t.array().to_f64_vec();
    let n = v.len() as f64;
    let mean = v.iter().sum::<f64>() / n;
    let std = (v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt();
    let max = v.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    (mean, std, max)
}

/// Uniform in ±bound: mean 0, deviation bound/√3, and nearly reaches the bound.
fn is_uniform(t: &Tensor, bound: f64) {
    let (mean, std, max) = moments(t);
    assert!(mean.abs() < 0.05 * bound, "mean {mean}");
    assert!(
        (std - bound / 3f64.sqrt()).abs() < 0.03 * bound,
        "deviation {std}"
    );
    assert!(
        max <= bound * (1.0 + 1e-6) && max > 0.98 * bound,
        "largest {max} of {bound}"
    );
}

fn is_normal(t: &Tensor, want: f64) {
    let (mean, std, max) = moments(t);
    assert!(
        mean.abs() < 0.05 * want && (std - want).abs() < 0.03 * want,
        "{mean} {std}"
    );
    assert!(max > 2.5 * want);
}

#[test]
fn formulas() -> Result<()> {
    let i = &mut Init::new(0);
    let conv = [64, 16, 3, 3]; // fan in 144, fan out 576
    is_uniform(
        &i.xavier_uniform(conv, Gain::Linear)?,
        (6.0f64 / 720.0).sqrt(),
    );
    is_normal(
        &i.xavier_normal(conv, Gain::Tanh)?,
        5.0 / 3.0 * (2.0f64 / 720.0).sqrt(),
    );
    is_uniform(
        &i.kaiming_uniform(conv, Fan::In, Gain::Relu)?,
        (6.0f64 / 144.0).sqrt(),
    );
    is_normal(
        &i.kaiming_normal(conv, Fan::Out, Gain::Relu)?,
        (2.0f64 / 576.0).sqrt(),
    );
    is_normal(&i.normal([5000], 0.0, 0.02)?, 0.02);
    let (mean, ..) = moments(&i.uniform([5000], 2.0, 4.0)?);
    assert!((mean - 3.0).abs() < 0.05);
    assert_eq!(Gain::LeakyRelu(0.0).value(), Gain::Relu.value());
    assert_eq!(Gain::Selu.value(), 0.75);
    Ok(())
}

#[test]
fn a_linear_layer_starts_like_pytorchs() -> Result<()> {
    let layer = Linear::new(100, 3000, &mut Init::new(4))?;
    is_uniform(&layer.weight.value(), 0.1);
    is_uniform(&layer.bias.as_ref().unwrap().value(), 0.1);
    // No inputs: the bias has no range.
    let empty = Linear::new(0, 2, &mut Init::new(4))?;
    assert_eq!(empty.bias.unwrap().value().to_vec::<f32>()?, [0.0, 0.0]);
    Ok(())
}

#[test]
fn orthogonal_rows_or_columns() -> Result<()> {
    for (rows, columns) in [(5, 9), (9, 5), (6, 6), (1, 4)] {
        let q = Init::new(2)
            .dtype(DType::F64)
            .orthogonal([rows, columns], 2.0)?;
        let short = rows.min(columns);
        let gram = if rows <= columns {
            q.matmul(&q.t()?)?
        } else {
            q.t()?.matmul(&q)?
        };
        for (at, x) in gram.to_vec::<f64>()?.into_iter().enumerate() {
            let want = if at / short == at % short { 4.0 } else { 0.0 };
            assert!((x - want).abs() < 1e-12, "{rows}×{columns}: {x} at {at}");
        }
    }
    assert_eq!(Init::new(0).orthogonal([3, 0], 1.0)?.dims(), [3, 0]);
    Ok(())
}

#[test]
fn one_seed_one_model_and_each_draw_is_new() -> Result<()> {
    let draw = |seed| -> Result<Vec<f32>> {
        let mut i = Init::new(seed);
        let mut values = i.uniform([4], 0.0, 1.0)?.to_vec::<f32>()?;
        values.extend(i.uniform([4], 0.0, 1.0)?.to_vec::<f32>()?);
        Ok(values)
    };
    let (a, b) = (draw(1)?, draw(2)?);
    assert_eq!(a, draw(1)?);
    assert_ne!(a, b);
    assert_ne!(a[..4], a[4..]);
    Ok(())
}

#[test]
fn impossible_shapes_are_refused() {
    let i = &mut Init::new(0);
    let e = i.xavier_uniform([3], Gain::Linear).unwrap_err().to_string();
    assert!(e.contains("[xavier_uniform] expected a weight"), "{e}");
    assert!(Linear::new(usize::MAX, 2, i).is_err());
    assert!(i.zeros([usize::MAX, 2]).is_err());
}
