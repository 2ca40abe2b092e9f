//! Custom operations at the edges of their contract, and gradient checks that find wrong ones.

use std::sync::Arc;

use entrenar_core::autograd::{BackwardCx, CustomOp, GradCheck, check_gradient, jvp};
use entrenar_core::op::Reads;
use entrenar_core::{Aval, DType, Result, Tensor};

use crate::engine::{leaf, list, numbers, says};

/// A function whose derivative of one order or mode is wrong is found out, at that order.
#[test]
fn wrong_derivatives_are_found_at_their_order() -> Result<()> {
    #[derive(Debug)]
    struct Cube {
        backward: f64,
        jvp: f64,
    }
    impl CustomOp for Cube {
        fn name(&self) -> &'static str {
            "cube"
        }
        fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
            Ok(vec![inputs[0].pow_scalar(3.0)?])
        }
        fn backward(
            &self,
            cx: &BackwardCx<'_>,
            cotangents: &[Option<&Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            let slope = cx.input(0)?.square()?.mul_scalar(self.backward)?;
            Ok(vec![Some(cotangents[0].unwrap().mul(&slope)?)])
        }
        fn jvp(
            &self,
            inputs: &[&Tensor],
            _: &[&Tensor],
            tangents: &[Option<&Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            let slope = inputs[0].square()?.mul_scalar(self.jvp)?;
            Ok(vec![Some(tangents[0].unwrap().mul(&slope)?)])
        }
    }
    let x = list(&[0.3, -1.2, 2.0]);
    let check = |backward: f64, jvp: f64, settings: GradCheck| {
        let f = move |t: &[Tensor]| Tensor::apply_custom(Cube { backward, jvp }, &[&t[0]]);
        check_gradient(f, &[&x], &settings)
    };
    let order = |order| GradCheck {
        order,
        ..Default::default()
    };
    for k in 1..=3 {
        check(3.0, 3.0, order(k))?;
    }
    says(
        check(3.1, 3.0, order(1)),
        &["forward and reverse mode disagree at order 1"],
    );
    says(
        check(3.1, 3.1, order(1)),
        &["the derivative and central differences disagree at order 1"],
    );
    // The two modes compute the same: they must agree far closer than the differences do.
    says(
        check(3.0 * (1.0 + 1e-7), 3.0, order(1)),
        &["forward and reverse mode disagree at order 1"],
    );
    // Steep functions round in proportion.
    let steep = |t: &[Tensor]| Ok(vec![t[0].sin()?.mul_scalar(1e9)?]);
    check_gradient(steep, &[&x], &order(2))?;
    // A slope off by a millionth is within a tolerance of a thousandth.
    let off = 3.0 * (1.0 + 1e-5);
    says(check(off, off, order(1)), &["central differences"]);
    let loose = GradCheck {
        order: 1,
        tolerance: 1e-3,
        ..Default::default()
    };
    check(off, off, loose.clone())?;
    says(
        check(3.0 * 1.01, 3.0 * 1.01, loose),
        &["central differences"],
    );
    // The relative difference is told: three per cent of the slope, over the sizes of all terms.
    says(check(3.1, 3.1, order(1)), &["relative 2.8"]);
    // x² with its gradient, but the gradient's own derivative is lost.
    let lost = |t: &[Tensor]| {
        let x = &t[0];
        let keep = x.detach();
        // d/dx (2·keep·x - keep²) = 2·keep, the right slope; its derivative is 0 instead of 2.
        Ok(vec![keep.mul(x)?.mul_scalar(2.0)?.sub(&keep.mul(&keep)?)?])
    };
    check_gradient(lost, &[&x], &order(1))?;
    says(check_gradient(lost, &[&x], &order(2)), &["at order 2"]);
    // Not a number is a disagreement, an input without floats is not.
    let nan = |t: &[Tensor]| Ok(vec![t[0].mul_scalar(f64::NAN)?]);
    says(check_gradient(nan, &[&x], &order(1)), &["disagree"]);
    let whole = Tensor::zeros([2], DType::I64);
    check_gradient(|t| Ok(vec![t[0].clone()]), &[&whole], &order(2))?;
    let mixed = |t: &[Tensor]| Ok(vec![t[1].mul(&t[0].to_dtype(DType::F64)?)?, t[0].clone()]);
    check_gradient(mixed, &[&Tensor::full([3], 2.0, DType::I64), &x], &order(2))?;
    // Another seed takes other directions and still agrees.
    for seed in 1..5 {
        let settings = GradCheck {
            seed,
            step: 5e-4,
            ..order(2)
        };
        check(3.0, 3.0, settings)?;
    }
    Ok(())
}

/// Two outputs of any shape; what it returns in a rule is up to the test.
#[derive(Debug)]
struct Twice {
    outputs: usize,
}

impl CustomOp for Twice {
    fn name(&self) -> &'static str {
        "twice"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Vec<Aval>> {
        Ok(vec![inputs[0].clone(); self.outputs])
    }
    fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].mul_scalar(2.0)?; self.outputs])
    }
    fn expand(&self, inputs: &[&Tensor]) -> Option<Result<Vec<Tensor>>> {
        let y = inputs[0].mul_scalar(2.0);
        Some(y.map(|y| vec![y; self.outputs]))
    }
}

#[test]
fn custom_ops_have_1_to_32_outputs_and_inputs() -> Result<()> {
    let x = list(&[1.0, 2.0]);
    for (outputs, fine) in [(1, true), (32, true), (0, false), (33, false)] {
        let out = Tensor::apply_custom(Twice { outputs }, &[&x]);
        match out {
            Ok(out) => assert!(fine && out.len() == outputs && numbers(&out[0]) == [2.0, 4.0]),
            Err(e) => {
                assert!(
                    !fine && e.to_string().contains("[twice] expected 1 to 32 outputs"),
                    "{e}"
                );
            }
        }
    }
    assert!(Tensor::apply_custom(Twice { outputs: 1 }, &[&x; 32]).is_ok());
    says(
        Tensor::apply_custom(Twice { outputs: 1 }, &[&x; 33]),
        &["[twice] expected at most 32 inputs", "got 33"],
    );
    Ok(())
}

/// An op behind an `Arc` is the op: name, shape rule, reads and all rules.
#[test]
fn shared_custom_ops_keep_their_rules() -> Result<()> {
    #[derive(Debug)]
    struct Scaled;
    impl CustomOp for Scaled {
        fn name(&self) -> &'static str {
            "scaled"
        }
        fn infer(&self, inputs: &[&Aval]) -> Result<Vec<Aval>> {
            Ok(vec![Aval::new([1], inputs[0].dtype)])
        }
        fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
            Ok(vec![inputs[0].sum_dim(&[0], true)?])
        }
        fn reads(&self) -> Reads {
            Reads::NOTHING
        }
        fn backward(
            &self,
            cx: &BackwardCx<'_>,
            cotangents: &[Option<&Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            assert!(
                cx.input(0).is_err() && cx.output(0).is_err(),
                "nothing is declared"
            );
            assert_eq!((cx.arity(), cx.aval(1).dtype), (2, DType::F64));
            assert_eq!(
                (cx.needs(0), cx.needs(1), cx.needs(2)),
                (true, false, false)
            );
            let g = cotangents[0].unwrap().broadcast_to([3])?;
            Ok(vec![Some(g.mul_scalar(7.0)?), None])
        }
        fn jvp(
            &self,
            _: &[&Tensor],
            _: &[&Tensor],
            tangents: &[Option<&Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![Some(
                tangents[0].unwrap().sum_dim(&[0], true)?.mul_scalar(11.0)?,
            )])
        }
    }
    let op = Arc::new(Scaled);
    assert_eq!(CustomOp::name(&op), "scaled");
    assert!(op.expand(&[]).is_none());
    let x = leaf(&[1.0, 2.0, 3.0]);
    let fixed = list(&[1.0]);
    let y = Tensor::apply_custom(op.clone(), &[&x, &fixed])?.remove(0);
    assert!(format!("{y:?}").contains("grad_fn=scaled"));
    assert_eq!(numbers(&y), [6.0]);
    y.sum()?.backward()?;
    assert_eq!(numbers(&x.grad().unwrap()), [7.0, 7.0, 7.0]);
    let run = |t: &[Tensor]| Tensor::apply_custom(op.clone(), &[&t[0], &fixed]);
    let pushed = jvp(run, &[&x.detach()], &[&list(&[1.0, 1.0, 1.0])])?.1;
    assert_eq!(numbers(&pushed[0]), [33.0]);
    let shared: Arc<dyn CustomOp> = Arc::new(Twice { outputs: 2 });
    let run = |t: &[Tensor]| Tensor::apply_custom(shared.clone(), &[&t[0]]);
    check_gradient(run, &[&list(&[1.0, 2.0])], &GradCheck::default())?;
    Ok(())
}
