//! [`VjpOf`]: the hand-written backward kernel of a fused op, as an op of its own.
//!
//! Its value is the kernel's; its definition is "the reverse pass of the op's plain expansion".
//! So a fused op with a fused backward is differentiable to any order and in any mode although
//! nobody wrote its second derivative. Cached statistics (mean, log-sum-exp) are kernel inputs
//! that carry no gradient: the expansion recomputes them from the true inputs.

use smallvec::{SmallVec, smallvec};
use std::hash::{Hash, Hasher};

use entrenar_base::{Array, Error, Result};

use super::engine::gradients_at;
use super::graph::{Edge, Leaf};
use crate::apply::{apply, handle};
use crate::op::{Aval, BackwardKernel, Expand, Few, Op, OpRef, Rule, Sink, VjpCx};
use crate::tensor::{Level, Tensor};

/// Inputs, in order: the op's inputs, the outputs its kernel reads, the present cotangents.
#[derive(Clone, Debug)]
struct VjpOf {
    op: OpRef,
    inputs: usize,
    needs: SmallVec<[bool; 4]>,
    outputs: SmallVec<[bool; 4]>,
    cotangents: SmallVec<[bool; 4]>,
}

impl PartialEq for VjpOf {
    fn eq(&self, other: &Self) -> bool {
        self.op.same(&*other.op)
            && self.needs == other.needs
            && self.outputs == other.outputs
            && self.cotangents == other.cotangents
    }
}
impl Eq for VjpOf {}
impl Hash for VjpOf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.op.key(state);
        self.needs.hash(state);
        self.cotangents.hash(state);
    }
}

fn fused(op: &OpRef) -> Result<(&dyn Expand, Option<&dyn BackwardKernel>)> {
    match op.rule() {
        Rule::Expand(e) => Ok((e, e.backward())),
        _ => Err(Error::autodiff(op.name(), "is not a fused op")),
    }
}

/// Places `flat` where `present` is true.
fn spread<T>(present: &[bool], flat: &mut impl Iterator<Item = T>) -> SmallVec<[Option<T>; 4]> {
    present
        .iter()
        .map(|&p| if p { flat.next() } else { None })
        .collect()
}

impl Op for VjpOf {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(inputs[..self.inputs]
            .iter()
            .zip(&self.needs)
            .filter(|(_, need)| **need)
            .map(|(a, _)| (*a).clone())
            .collect())
    }

    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (expand, kernel) = fused(&self.op)?;
        let _ = expand;
        let kernel =
            kernel.ok_or_else(|| Error::autodiff(self.op.name(), "has no backward kernel"))?;
        let (primals, rest) = inputs.split_at(self.inputs);
        let mut rest = rest.iter().copied();
        let outputs = spread(&self.outputs, &mut rest);
        let cotangents = spread(&self.cotangents, &mut rest);
        let gradients = kernel.eval_backward(primals, &outputs, &cotangents, &self.needs)?;
        gradients
            .into_iter()
            .zip(&self.needs)
            .filter(|(_, need)| **need)
            .map(|(g, _)| {
                g.ok_or_else(|| {
                    Error::autodiff(
                        self.op.name(),
                        "its backward kernel left out a needed gradient",
                    )
                })
            })
            .collect()
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Expand for VjpOf {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let (expand, _) = fused(&self.op)?;
        let (primals, rest) = inputs.split_at(self.inputs);
        let skip = self.outputs.iter().filter(|p| **p).count();
        let mut rest = rest[skip..].iter();
        let cotangents = spread(&self.cotangents, &mut rest);
        let level = Level::fresh();
        let watched: SmallVec<[Tensor; 4]> = primals
            .iter()
            .zip(&self.needs)
            .map(|(t, &need)| {
                if need {
                    Tensor::reverse(level, (*t).clone(), Edge::Leaf(Leaf::new(t.aval())))
                } else {
                    (*t).clone()
                }
            })
            .collect();
        let refs: SmallVec<[&Tensor; 4]> = watched.iter().collect();
        let results = expand.expand(&refs)?;
        let pairs: Vec<(Tensor, Tensor)> = results
            .into_iter()
            .zip(cotangents)
            .filter_map(|(out, cot)| cot.map(|c| (out, (*c).clone())))
            .collect();
        let wanted: Vec<Tensor> = watched
            .iter()
            .zip(&self.needs)
            .filter(|(_, n)| **n)
            .map(|(t, _)| t.clone())
            .collect();
        let found = gradients_at(level, &pairs, &wanted, false, false)?;
        Ok(found
            .into_iter()
            .zip(&wanted)
            .map(|(g, t)| g.unwrap_or_else(|| t.detach().zeros_like()))
            .collect())
    }

    fn visible(&self) -> usize {
        self.needs.iter().filter(|n| **n).count()
    }
}

/// The backward rule of a fused op with a kernel.
pub(super) fn backward(op: &OpRef, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
    let inputs = cx.arity();
    let needs: SmallVec<[bool; 4]> = (0..inputs).map(|i| sink.needs(i)).collect();
    let of = VjpOf {
        op: op.clone(),
        inputs,
        outputs: (0..cx.outputs())
            .map(|j| cx.read_output(j).is_some())
            .collect(),
        cotangents: cx.cotangents.iter().map(Option::is_some).collect(),
        needs: needs.clone(),
    };
    let mut operands: SmallVec<[&Tensor; 8]> = smallvec![];
    for i in 0..inputs {
        operands.push(cx.input(i)?);
    }
    operands.extend((0..cx.outputs()).filter_map(|j| cx.read_output(j)));
    operands.extend(cx.cotangents.iter().flatten());
    let mut gradients = apply(&handle(of), &operands)?.into_iter();
    for (i, _) in needs.iter().enumerate().filter(|(_, n)| **n) {
        if let Some(g) = gradients.next() {
            sink.add(i, g)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Backward kernels as ops are equal when the op and what they read and give are.
    #[test]
    fn equal_kernels_are_equal() {
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        struct Fused(u8);
        impl Op for Fused {
            fn name(&self) -> &'static str {
                "fused"
            }
            fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
                Ok(inputs.iter().map(|a| (*a).clone()).collect())
            }
            fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
                Ok(inputs.iter().map(|a| (*a).clone()).collect())
            }
            fn rule(&self) -> Rule<'_> {
                Rule::Zero
            }
        }
        let of = |k: u8, needs: [bool; 2], outputs: [bool; 2], cotangents: [bool; 1]| VjpOf {
            op: handle(Fused(k)),
            inputs: 2,
            needs: SmallVec::from_slice(&needs),
            outputs: SmallVec::from_slice(&outputs),
            cotangents: SmallVec::from_slice(&cotangents),
        };
        let hash = |v: &VjpOf| {
            let mut state = std::collections::hash_map::DefaultHasher::new();
            v.hash(&mut state);
            state.finish()
        };
        let a = of(0, [true, false], [true, true], [true]);
        assert!(a == a.clone() && hash(&a) == hash(&a.clone()));
        for other in [
            of(1, [true, false], [true, true], [true]),
            of(0, [true, true], [true, true], [true]),
            of(0, [true, false], [false, true], [true]),
            of(0, [true, false], [true, true], [false]),
        ] {
            assert!(a != other, "{other:?}");
        }
        assert_ne!(hash(&a), hash(&of(1, [true, false], [true, true], [true])));
        assert_eq!((a.name(), a.visible()), ("fused", 1));
        assert_eq!(of(0, [true, true], [true, true], [true]).visible(), 2);
        assert_eq!(of(0, [false, false], [true, true], [true]).visible(), 0);
        let x = Aval::new([2], entrenar_base::DType::F32);
        let y = Aval::new([3], entrenar_base::DType::F32);
        assert_eq!(
            of(0, [false, true], [true, true], [true])
                .infer(&[&x, &y, &y])
                .unwrap()[..],
            [y]
        );
        // What is not fused has no backward kernel.
        let e = a.eval(&[], &[]).unwrap_err().to_string();
        assert!(e.contains("[fused] is not a fused op"), "{e}");
    }

    #[test]
    fn present_values_are_spread_in_order() {
        let mut flat = [7, 8].into_iter();
        let spread = spread(&[false, true, false, true, true], &mut flat);
        assert_eq!(spread[..], [None, Some(7), None, Some(8), None]);
    }
}
