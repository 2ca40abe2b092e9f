//! Forward mode: dual numbers of tensors.
//!
//! At a dual level every value carries a tangent or none (zero is structural, never an array).
//! The rule follows from the op's kind; see [`push`].

use smallvec::SmallVec;

use entrenar_base::{Error, Result};

use crate::apply::{How, apply, apply1, expanded, peeled, run};
use crate::expr::Variable;
use crate::op::{Few, JvpCx, OpRef, Rule};
use crate::tensor::{Inner, Level, Tensor};

fn tangent(level: Level, t: &Tensor) -> Option<&Tensor> {
    match &t.0 {
        Inner::Dual(d) if d.level == level => Some(&d.tangent),
        _ => None,
    }
}

/// Applies `op` at a dual level.
pub(crate) fn push(
    level: Level,
    op: &OpRef,
    inputs: &[&Tensor],
    how: How<'_>,
) -> Result<Few<Tensor>> {
    let rule = op.rule();
    if let Rule::Expand(e) = &rule {
        return expanded(*e, inputs);
    }
    let lower = peeled(level, inputs);
    let primals = run(op, &lower, How { given: None, ..how })?;
    if matches!(rule, Rule::Zero) {
        return Ok(primals);
    }
    let tangents: SmallVec<[Option<Tensor>; 4]> =
        inputs.iter().map(|t| tangent(level, t).cloned()).collect();
    let pushed = jvp(op, &rule, &lower, &primals, &tangents)?;
    Ok(primals
        .into_iter()
        .zip(pushed)
        .map(|(p, t)| match t {
            Some(t) if p.dtype().is_float() => Tensor::dual(level, p, t),
            _ => p,
        })
        .collect())
}

fn jvp(
    op: &OpRef,
    rule: &Rule<'_>,
    inputs: &[&Tensor],
    outputs: &[Tensor],
    tangents: &[Option<Tensor>],
) -> Result<Few<Option<Tensor>>> {
    let none = || SmallVec::from_elem(None, outputs.len());
    match rule {
        Rule::Zero | Rule::Expand(_) => Ok(none()),
        Rule::Linear(l) => {
            let linear = |i: usize| l.linear_in(i);
            if (0..inputs.len()).all(|i| !linear(i) || tangents[i].is_none()) {
                return Ok(none());
            }
            // Jointly linear: inputs without a tangent enter as zero.
            let operands: SmallVec<[Tensor; 4]> = inputs
                .iter()
                .enumerate()
                .map(|(i, t)| match &tangents[i] {
                    _ if !linear(i) => (*t).clone(),
                    Some(t) => t.clone(),
                    None => t.zeros_like(),
                })
                .collect();
            let refs: SmallVec<[&Tensor; 4]> = operands.iter().collect();
            Ok(apply(op, &refs)?.into_iter().map(Some).collect())
        }
        Rule::Multilinear(_) => {
            let mut sum = None;
            for (i, t) in tangents.iter().enumerate() {
                if let Some(t) = t {
                    let mut operands: SmallVec<[&Tensor; 4]> = SmallVec::from_slice(inputs);
                    operands[i] = t;
                    super::accumulate(&mut sum, apply1(op, &operands)?)?;
                }
            }
            Ok(SmallVec::from_iter([sum]))
        }
        Rule::Pointwise(p) => {
            let mut sum = None;
            for (i, t) in tangents.iter().enumerate() {
                let (Some(t), Some(partial)) = (t, p.partial(i)) else {
                    continue;
                };
                let t = t.to_dtype(outputs[0].dtype())?;
                let term = partial.times(&t, |variable| {
                    Ok(match variable {
                        Variable::Input(k) => inputs[k],
                        Variable::Output => &outputs[0],
                    })
                })?;
                super::accumulate(&mut sum, term)?;
            }
            Ok(SmallVec::from_iter([sum]))
        }
        Rule::Explicit(e) => e.jvp(&JvpCx {
            inputs,
            outputs,
            tangents,
        }),
    }
}

/// A value with a direction: run any function on [`DualTensor::tensor`] and read the directional
/// derivative off the result.
///
/// ```
/// use entrenar_core::{Tensor, autograd::DualTensor};
/// let x = DualTensor::new(&Tensor::scalar(3.0f64), &Tensor::scalar(1.0f64))?;
/// let y = x.wrap(x.tensor().mul(x.tensor())?)?;
/// assert_eq!(y.value().item::<f64>()?, 9.0);
/// assert_eq!(y.tangent().unwrap().item::<f64>()?, 6.0);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DualTensor {
    tensor: Tensor,
    level: Level,
}

impl DualTensor {
    /// A dual number at a level of its own.
    ///
    /// # Errors
    /// When shapes or dtypes differ, or the dtype is not a float.
    #[track_caller]
    pub fn new(value: &Tensor, tangent: &Tensor) -> Result<DualTensor> {
        Self::at(Level::fresh(), value, tangent)
    }

    /// A further dual number at the same level, to differentiate along several inputs at once.
    ///
    /// # Errors
    /// As [`DualTensor::new`].
    #[track_caller]
    pub fn with(&self, value: &Tensor, tangent: &Tensor) -> Result<DualTensor> {
        Self::at(self.level, value, tangent)
    }

    #[track_caller]
    fn at(level: Level, value: &Tensor, tangent: &Tensor) -> Result<DualTensor> {
        if value.aval() != tangent.aval() || !value.dtype().is_float() {
            return Err(Error::shape(
                "dual",
                format!("a float value and a tangent like it, {:?}", value.aval()),
                format!("{:?}", tangent.aval()),
            ));
        }
        Ok(DualTensor {
            tensor: Tensor::dual(level, value.clone(), tangent.clone()),
            level,
        })
    }

    /// The tensor to compute with.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Reads a result of computations on [`DualTensor::tensor`].
    ///
    /// # Errors
    /// When the result also belongs to a transform opened after this dual number: its dependence
    /// on what that transform watches would be lost.
    pub fn wrap(&self, result: Tensor) -> Result<DualTensor> {
        if result.level() > Some(self.level) {
            return Err(Error::autodiff(
                "dual",
                "this value also belongs to a transform opened after this dual number (jvp, value_and_grad or a tape): read it outside of that transform, or make the dual number inside",
            ));
        }
        Ok(DualTensor {
            tensor: result,
            level: self.level,
        })
    }

    /// The value.
    pub fn value(&self) -> Tensor {
        self.tensor.peel(self.level).clone()
    }

    /// The directional derivative; `None` where the value does not depend on the direction.
    pub fn tangent(&self) -> Option<Tensor> {
        tangent(self.level, &self.tensor).cloned()
    }
}

/// Wraps inputs at one fresh dual level.
pub(crate) fn duals(values: &[Tensor], tangents: &[Tensor]) -> Result<(Level, Vec<Tensor>)> {
    let level = Level::fresh();
    let wrapped = values
        .iter()
        .zip(tangents)
        .map(|(v, t)| DualTensor::at(level, v, t).map(|d| d.tensor))
        .collect::<Result<_>>()?;
    Ok((level, wrapped))
}

/// Splits a result of a function that ran at `level` into value and tangent.
pub(crate) fn split(level: Level, result: &Tensor) -> (Tensor, Option<Tensor>) {
    let pushed = tangent(level, result.settled(level)).cloned();
    (result.peel(level).clone(), pushed)
}
