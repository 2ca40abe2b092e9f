//! One call with its place in the graph: what recording costs.
//!
//! In this set a step is the call on tensors that want gradients, its node made and dropped with
//! the result, and no backward pass. `forward` is the same call without a graph, so that the
//! difference of the two is what a node costs.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use entrenar_core::autograd::no_grad;

use super::Subject;

/// Name, shape of both operands, and what is done with them.
type Call = (
    &'static str,
    &'static [usize],
    fn(&Tensor, &Tensor) -> Result<Tensor>,
);

const CALLS: &[Call] = &[
    ("add 16", &[16], |a, b| a.add(b)),
    ("mul 16", &[16], |a, b| a.mul(b)),
    ("exp 16", &[16], |a, _| a.exp()),
    ("add 64Ki", &[256, 256], |a, b| a.add(b)),
    ("mul 64Ki", &[256, 256], |a, b| a.mul(b)),
    ("exp 64Ki", &[256, 256], |a, _| a.exp()),
    ("matmul 64Ki", &[256, 256], |a, b| a.matmul(b)),
    ("add 1Mi", &[1024, 1024], |a, b| a.add(b)),
    ("mul 1Mi", &[1024, 1024], |a, b| a.mul(b)),
];

pub fn subjects(wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Subject>> {
    let mut all = Vec::new();
    for &(name, dims, call) in CALLS {
        let name = format!("graph/{name}");
        if !wanted(&name) {
            continue;
        }
        let leaf = |seed| Tensor::randn(dims.to_vec(), DType::F32, seed)?.requires_grad();
        let (a, b) = (leaf(1)?, leaf(2)?);
        let (plain_a, plain_b) = (a.clone(), b.clone());
        all.push(Subject {
            name,
            forward: Box::new(move || {
                std::hint::black_box(no_grad(|| call(&plain_a, &plain_b))?);
                Ok(())
            }),
            step: Some(Box::new(move || {
                std::hint::black_box(call(&a, &b)?);
                Ok(())
            })),
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_runs_in_both_ways() {
        let all = subjects(&|_| true).unwrap();
        assert_eq!(all.len(), CALLS.len());
        for subject in all {
            (subject.forward)().unwrap();
            subject.step.expect("calls of this set are recorded")().unwrap();
        }
    }

    #[test]
    fn steps_record_and_forward_does_not() {
        let a = Tensor::ones([2, 2], DType::F32).requires_grad().unwrap();
        for (name, _, call) in CALLS {
            assert!(call(&a, &a).unwrap().is_tracked(), "{name}");
            let plain = no_grad(|| call(&a, &a)).unwrap();
            assert!(!plain.is_tracked(), "{name}");
        }
    }
}
