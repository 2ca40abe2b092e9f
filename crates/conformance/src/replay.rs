//! Running one case: forward, reverse, forward mode and second order, in any float type.
//!
//! Whether a case is supported is settled first (`operations/`, `call.rs`, `unsupported.rs`);
//! after that every error, panic or deviation is a failure.

use std::panic::{AssertUnwindSafe, catch_unwind};

use entrenar_base::{DType, Error, Result};
use entrenar_core::Tensor;
use entrenar_core::autograd::{jvp, value_and_grad, vjp};

use crate::call::{Bound, Call, Unbound, bind};
use crate::compare::{compare, largest};
use crate::operations::{Operation, find};
use crate::suite::{Case, Jvp, Second};
use crate::tolerances::tolerance;
use crate::unsupported::reason;

/// What a case states about an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Outputs.
    Forward,
    /// Gradient under a cotangent.
    Vjp,
    /// Derivative along a tangent.
    Jvp,
    /// Gradient of a gradient.
    Second,
}

impl Kind {
    /// All kinds, in the order of the report.
    pub const ALL: [Kind; 4] = [Kind::Forward, Kind::Vjp, Kind::Jvp, Kind::Second];

    /// The kind's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Forward => "forward",
            Kind::Vjp => "vjp",
            Kind::Jvp => "jvp",
            Kind::Second => "second",
        }
    }
}

/// What became of one kind of one case.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The suite records nothing of this kind.
    Absent,
    /// Equal within tolerance; the largest error relative to the scale of its result.
    Passed(f64),
    /// An error or a deviation.
    Failed(String),
    /// Not supported, for this reason.
    Skipped(String),
}

/// The outcomes of one case, in the order of [`Kind::ALL`].
#[derive(Clone, Debug)]
pub struct Replayed {
    /// One per kind.
    pub outcomes: [Outcome; 4],
}

impl Replayed {
    /// The outcome of the whole case: failed if any kind failed, else skipped if any was.
    pub fn verdict(&self) -> &Outcome {
        let first = |f: fn(&Outcome) -> bool| self.outcomes.iter().find(|o| f(o));
        first(|o| matches!(o, Outcome::Failed(_)))
            .or_else(|| first(|o| matches!(o, Outcome::Skipped(_))))
            .unwrap_or(&Outcome::Passed(0.0))
    }
}

/// One kind of one case on its way.
struct Running<'a> {
    case: &'a Case,
    operation: &'a Operation,
    bound: &'a Bound<'a>,
    kind: Kind,
}

/// Runs every kind that `case` records, as recorded (f64) or in a smaller float type.
///
/// In a smaller type the inputs are rounded to it, and the results are compared with those of the
/// library in f64 at the same rounded inputs: what is measured is the arithmetic, not how strongly
/// an operation magnifies a change of its input. The f64 results have their own comparison.
pub fn replay(case: &Case, dtype: DType) -> Replayed {
    let skip = |why: &str| Replayed {
        outcomes: Kind::ALL.map(|kind| match recorded(case, kind) {
            true => Outcome::Skipped(why.to_string()),
            false => Outcome::Absent,
        }),
    };
    if let Some(dtype) = &case.foreign {
        return skip(&format!("dtype {dtype}"));
    }
    let Some(operation) = find(&case.op) else {
        return skip("no such operation in the table");
    };
    if let Err(Unbound(what)) = bind(case, operation.arguments) {
        return skip(&what);
    }
    Replayed {
        outcomes: Kind::ALL.map(|kind| {
            if !recorded(case, kind) {
                return Outcome::Absent;
            }
            if let Some(why) = reason(case, kind, dtype) {
                return Outcome::Skipped(why);
            }
            // The library promises not to panic; a broken promise must not end the replay.
            let attempt = || check(case, operation, kind, dtype);
            match catch_unwind(AssertUnwindSafe(attempt)) {
                Ok(Ok(error)) => Outcome::Passed(error),
                Ok(Err(e)) => Outcome::Failed(e.to_string()),
                Err(panic) => {
                    let text = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied());
                    Outcome::Failed(format!("panic: {}", text.unwrap_or("without a message")))
                }
            }
        }),
    }
}

/// Runs one kind and compares it; gives the largest relative error.
fn check(case: &Case, operation: &Operation, kind: Kind, dtype: DType) -> Result<f64> {
    let run = |case: &Case| {
        let bound = bind(case, operation.arguments).map_err(|Unbound(what)| Error::other(what))?;
        let running = Running {
            case,
            operation,
            bound: &bound,
            kind,
        };
        running.results()
    };
    let recorded = expected(case, kind);
    let (want, got) = if dtype == DType::F64 {
        let got = run(case)?;
        // Where the suite records no gradient, ours must be zero.
        let zero = |t: &Tensor| t.detach().zeros_like();
        let want = recorded.iter().zip(&got);
        let want: Vec<Tensor> = want
            .map(|((_, t), got)| t.cloned().unwrap_or_else(|| zero(got)))
            .collect();
        (want, got)
    } else {
        let lower = |t: &Tensor| match t.dtype() {
            DType::F64 => t.to_dtype(dtype),
            _ => Ok(t.clone()),
        };
        let raise = |t: &Tensor| match t.dtype().is_float() {
            true => t.to_dtype(DType::F64),
            false => Ok(t.clone()),
        };
        let low = case.map(&lower)?;
        let got = run(&low)?.iter().map(raise).collect::<Result<_>>()?;
        (run(&low.map(&raise)?)?, got)
    };
    let tolerance = tolerance(&case.op, kind, dtype);
    let magnitude = magnitude(case, kind);
    let mut worst = 0.0f64;
    for (((what, _), want), got) in recorded.iter().zip(&want).zip(&got) {
        let error = compare(want, got, tolerance, magnitude)
            .map_err(|e| Error::other(format!("{what}: {e}")))?;
        worst = worst.max(error);
    }
    Ok(worst)
}

/// What a kind of a case must give, with names for messages; `None` where nothing flows.
fn expected(case: &Case, kind: Kind) -> Vec<(String, Option<&Tensor>)> {
    fn gradients(list: &[(usize, Option<Tensor>)]) -> Vec<(String, Option<&Tensor>)> {
        list.iter()
            .map(|(i, t)| (format!("gradient of tensor {i}"), t.as_ref()))
            .collect()
    }
    match kind {
        Kind::Forward => {
            let outputs = case.outputs.iter().enumerate();
            outputs
                .map(|(i, t)| (format!("output {i}"), Some(t)))
                .collect()
        }
        Kind::Vjp => gradients(case.vjp.as_deref().unwrap_or_default()),
        Kind::Jvp => case
            .jvp
            .iter()
            .flat_map(|j| &j.outputs)
            .map(|(i, t)| (format!("tangent {i}"), Some(t)))
            .collect(),
        Kind::Second => gradients(case.second.as_ref().map_or(&[], |s| &s.gradients)),
    }
}

impl Running<'_> {
    /// The results in the order of [`expected`].
    fn results(&self) -> Result<Vec<Tensor>> {
        let case = self.case;
        match self.kind {
            Kind::Forward => self.call(&case.tensors),
            Kind::Vjp => {
                let list = case.vjp.as_deref().unwrap_or_default();
                let of: Vec<usize> = list.iter().map(|(i, _)| *i).collect();
                self.gradients(&case.tensors, &of)
            }
            Kind::Jvp => case.jvp.as_ref().map_or(Ok(Vec::new()), |j| self.jvp(j)),
            Kind::Second => {
                let second = case.second.as_ref();
                second.map_or(Ok(Vec::new()), |s| self.second(s))
            }
        }
    }

    fn jvp(&self, want: &Jvp) -> Result<Vec<Tensor>> {
        let of: Vec<usize> = want.tangents.iter().map(|(i, _)| *i).collect();
        let inputs: Vec<&Tensor> = of.iter().map(|&i| &self.case.tensors[i]).collect();
        let tangents: Vec<&Tensor> = want.tangents.iter().map(|(_, t)| t).collect();
        let f = |t: &[Tensor]| self.call(&replaced(&self.case.tensors, &of, t));
        let (_, got) = jvp(f, &inputs, &tangents)?;
        Ok(want.outputs.iter().map(|(j, _)| got[*j].clone()).collect())
    }

    fn second(&self, want: &Second) -> Result<Vec<Tensor>> {
        let of: Vec<usize> = want.gradients.iter().map(|(i, _)| *i).collect();
        let inner: Vec<usize> = want.directions.iter().map(|(i, _)| *i).collect();
        let inputs: Vec<&Tensor> = of.iter().map(|&i| &self.case.tensors[i]).collect();
        let contracted = |t: &[Tensor]| {
            let tensors = replaced(&self.case.tensors, &of, t);
            let gradients = self.gradients(&tensors, &inner)?;
            let mut sum = None;
            for (gradient, (_, v)) in gradients.iter().zip(&want.directions) {
                let term = gradient.mul(v)?.sum()?;
                sum = Some(match sum {
                    None => term,
                    Some(sum) => term.add(&sum)?,
                });
            }
            sum.ok_or_else(|| Error::argument("second", "at least one direction", "none"))
        };
        Ok(value_and_grad(contracted, &inputs)?.1)
    }

    /// The outputs, as many as the case records.
    fn call(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
        let got = (self.operation.run)(&Call::new(self.bound, tensors))?;
        let want = self.case.outputs.len();
        if got.len() != want {
            return Err(Error::argument(
                self.operation.name,
                format!("{want} outputs"),
                got.len(),
            ));
        }
        Ok(got)
    }

    /// Gradients of the tensors `of` under the case's cotangents.
    fn gradients(&self, tensors: &[Tensor], of: &[usize]) -> Result<Vec<Tensor>> {
        let inputs: Vec<&Tensor> = of.iter().map(|&i| &tensors[i]).collect();
        let f = |t: &[Tensor]| {
            let outputs = self.call(&replaced(tensors, of, t))?;
            let with_cotangent = |(j, _): &(usize, Tensor)| outputs[*j].clone();
            Ok(self.case.cotangents.iter().map(with_cotangent).collect())
        };
        let (values, pullback) = vjp(f, &inputs)?;
        // Some losses are f32 for smaller inputs.
        let cotangents: Vec<Tensor> = self
            .case
            .cotangents
            .iter()
            .zip(&values)
            .map(|((_, t), value)| t.to_dtype(value.dtype()))
            .collect::<Result<_>>()?;
        pullback.call(&cotangents.iter().collect::<Vec<_>>())
    }
}

fn recorded(case: &Case, kind: Kind) -> bool {
    match kind {
        Kind::Forward => true,
        Kind::Vjp => case.vjp.as_ref().is_some_and(|l| !l.is_empty()),
        Kind::Jvp => case.jvp.is_some(),
        Kind::Second => case.second.is_some(),
    }
}

/// `tensors` with `new[k]` at position `of[k]`.
fn replaced(tensors: &[Tensor], of: &[usize], new: &[Tensor]) -> Vec<Tensor> {
    let mut tensors = tensors.to_vec();
    for (&i, t) in of.iter().zip(new) {
        tensors[i] = t.clone();
    }
    tensors
}

/// The largest finite number among the inputs of a kind and what is expected of it.
fn magnitude(case: &Case, kind: Kind) -> f64 {
    let mut all: Vec<&Tensor> = case.tensors.iter().collect();
    match kind {
        Kind::Forward => all.extend(&case.outputs),
        Kind::Vjp | Kind::Second => {
            all.extend(case.cotangents.iter().map(|(_, t)| t));
            let gradients = case.vjp.iter().flatten();
            all.extend(gradients.filter_map(|(_, t)| t.as_ref()));
            if let (Kind::Second, Some(second)) = (kind, &case.second) {
                all.extend(second.directions.iter().map(|(_, t)| t));
                let gradients = second.gradients.iter();
                all.extend(gradients.filter_map(|(_, t)| t.as_ref()));
            }
        }
        Kind::Jvp => {
            if let Some(jvp) = &case.jvp {
                let both = jvp.tangents.iter().chain(&jvp.outputs);
                all.extend(both.map(|(_, t)| t));
            }
        }
    }
    all.iter()
        .filter(|t| t.dtype().is_float())
        .map(|t| largest(&t.array().to_f64_vec()))
        .fold(0.0, f64::max)
}
