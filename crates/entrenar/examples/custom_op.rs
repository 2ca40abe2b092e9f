//! An operation of one's own, with its own forward, backward and forward-mode rules.
//!
//!     cargo run --release -p entrenar --example custom_op
//!
//! log(1 + exp(x)) − log 2 written as one op that never overflows. The rules are written in tensor
//! functions, so derivatives of any order and any mix of modes follow; `check_gradient` compares
//! them with finite differences.

use entrenar::core::autograd::{BackwardCx, CustomOp};
use entrenar::prelude::*;

/// f(x) = max(x, 0) + log1p(exp(−|x|)) − log 2 and f′(x) = sigmoid(x).
#[derive(Debug)]
struct ShiftedSoftplus;

impl CustomOp for ShiftedSoftplus {
    fn name(&self) -> &'static str {
        "shifted_softplus"
    }

    fn forward(&self, inputs: &[&Tensor]) -> entrenar::Result<Vec<Tensor>> {
        let x = inputs[0];
        let tail = x.abs()?.neg()?.exp()?.log1p()?;
        let y = x.relu()?.add(&tail)?.add_scalar(-std::f64::consts::LN_2)?;
        Ok(vec![y])
    }

    fn backward(
        &self,
        cx: &BackwardCx<'_>,
        cotangents: &[Option<&Tensor>],
    ) -> entrenar::Result<Vec<Option<Tensor>>> {
        let slope = cx.input(0)?.sigmoid()?;
        let gradient = cotangents[0].map(|cotangent| cotangent.mul(&slope));
        Ok(vec![gradient.transpose()?])
    }

    fn jvp(
        &self,
        inputs: &[&Tensor],
        _outputs: &[&Tensor],
        tangents: &[Option<&Tensor>],
    ) -> entrenar::Result<Vec<Option<Tensor>>> {
        let slope = inputs[0].sigmoid()?;
        let tangent = tangents[0].map(|tangent| tangent.mul(&slope));
        Ok(vec![tangent.transpose()?])
    }
}

fn shifted_softplus(x: &Tensor) -> entrenar::Result<Tensor> {
    Ok(Tensor::apply_custom(ShiftedSoftplus, &[x])?.remove(0))
}

fn main() -> entrenar::Result<()> {
    let x = Tensor::from_vec(vec![-1000.0f32, -1.0, 0.0, 2.0, 1000.0], [5])?.requires_grad()?;
    let y = shifted_softplus(&x)?;
    y.sum()?.backward()?;
    println!("y  = {:?}", y.to_vec::<f32>()?);
    if let Some(gradient) = x.grad() {
        println!("y' = {:?}", gradient.to_vec::<f32>()?);
    }
    Ok(())
}

#[test]
fn every_derivative_agrees_with_finite_differences() {
    let x = Tensor::from_vec(vec![-3.0f64, -0.2, 0.7, 4.0], [4]).unwrap();
    use entrenar::core::autograd::GradCheck;
    let f = |t: &[Tensor]| Ok(vec![shifted_softplus(&t[0])?]);
    check_gradient(
        f,
        &[&x],
        &GradCheck {
            order: 3,
            ..GradCheck::default()
        },
    )
    .unwrap();
}

#[test]
fn it_does_not_overflow() {
    let x = Tensor::from_vec(vec![-1000.0f32, 0.0, 1000.0], [3]).unwrap();
    let y = shifted_softplus(&x).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(y[1], 0.0);
    assert!(
        (y[0] + std::f64::consts::LN_2 as f32).abs() < 1e-6 && (y[2] - 999.306_8).abs() < 1e-3,
        "{y:?}"
    );
}
