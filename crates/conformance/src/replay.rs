//! Running one case: forward, reverse, forward mode and second order.
//!
//! Whether a case is supported is settled first (`operations/`, `call.rs`, `unsupported.rs`);
//! after that every error, panic or deviation is a failure.

use std::panic::{AssertUnwindSafe, catch_unwind};

use entrenar_base::{Error, Result};
use entrenar_core::Tensor;
use entrenar_core::autograd::{jvp, value_and_grad, vjp};

use crate::call::{Bound, Call, Unbound, bind};
use crate::compare::{compare, largest};
use crate::operations::{Operation, find};
use crate::suite::{Case, Jvp, Second};
use crate::tolerances::{NOISE, tolerance};
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The suite records nothing of this kind.
    Absent,
    /// Equal within tolerance.
    Passed,
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
            .unwrap_or(&Outcome::Passed)
    }
}

/// One kind of one case on its way.
struct Running<'a> {
    case: &'a Case,
    operation: &'a Operation,
    bound: &'a Bound<'a>,
    kind: Kind,
    tolerance: f64,
    /// The largest number that takes part.
    magnitude: f64,
}

/// Runs every kind that `case` records.
pub fn replay(case: &Case) -> Replayed {
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
    let bound = match bind(case, operation.arguments) {
        Ok(bound) => bound,
        Err(Unbound(what)) => return skip(&what),
    };
    Replayed {
        outcomes: Kind::ALL.map(|kind| {
            if !recorded(case, kind) {
                return Outcome::Absent;
            }
            if let Some(why) = reason(case, kind) {
                return Outcome::Skipped(why);
            }
            let running = Running {
                case,
                operation,
                bound: &bound,
                kind,
                tolerance: tolerance(&case.op, kind),
                magnitude: magnitude(case, kind),
            };
            running.attempt()
        }),
    }
}

impl Running<'_> {
    /// The library promises not to panic; a broken promise must not end the replay.
    fn attempt(&self) -> Outcome {
        match catch_unwind(AssertUnwindSafe(|| self.check())) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(e)) => Outcome::Failed(e.to_string()),
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied());
                Outcome::Failed(format!("panic: {}", text.unwrap_or("without a message")))
            }
        }
    }

    fn check(&self) -> Result<()> {
        let case = self.case;
        match self.kind {
            Kind::Forward => self.forward(),
            Kind::Vjp => self.vjp(case.vjp.as_deref().unwrap_or_default()),
            Kind::Jvp => case.jvp.as_ref().map_or(Ok(()), |j| self.jvp(j)),
            Kind::Second => case.second.as_ref().map_or(Ok(()), |s| self.second(s)),
        }
    }

    fn forward(&self) -> Result<()> {
        let got = self.call(&self.case.tensors)?;
        for (i, (want, got)) in self.case.outputs.iter().zip(&got).enumerate() {
            self.equal(want, got, &format!("output {i}"))?;
        }
        Ok(())
    }

    fn vjp(&self, want: &[(usize, Option<Tensor>)]) -> Result<()> {
        let of: Vec<usize> = want.iter().map(|(i, _)| *i).collect();
        let got = self.gradients(&self.case.tensors, &of)?;
        for ((i, want), got) in want.iter().zip(&got) {
            self.gradient(*i, want.as_ref(), got)?;
        }
        Ok(())
    }

    /// Where the suite records no gradient, ours must be zero.
    fn gradient(&self, i: usize, want: Option<&Tensor>, got: &Tensor) -> Result<()> {
        let what = format!("gradient of tensor {i}");
        match want {
            Some(want) => self.equal(want, got, &what),
            None => self.equal(&got.detach().zeros_like(), got, &what),
        }
    }

    fn jvp(&self, want: &Jvp) -> Result<()> {
        let of: Vec<usize> = want.tangents.iter().map(|(i, _)| *i).collect();
        let inputs: Vec<&Tensor> = of.iter().map(|&i| &self.case.tensors[i]).collect();
        let tangents: Vec<&Tensor> = want.tangents.iter().map(|(_, t)| t).collect();
        let f = |t: &[Tensor]| self.call(&replaced(&self.case.tensors, &of, t));
        let (_, got) = jvp(f, &inputs, &tangents)?;
        for (j, want) in &want.outputs {
            self.equal(want, &got[*j], &format!("tangent {j}"))?;
        }
        Ok(())
    }

    fn second(&self, want: &Second) -> Result<()> {
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
        let (_, got) = value_and_grad(contracted, &inputs)?;
        for ((i, want), got) in want.gradients.iter().zip(&got) {
            self.gradient(*i, want.as_ref(), got)?;
        }
        Ok(())
    }

    fn equal(&self, want: &Tensor, got: &Tensor, what: &str) -> Result<()> {
        let noise = NOISE * self.tolerance * self.magnitude;
        compare(want, got, self.tolerance, noise).map_err(|e| Error::other(format!("{what}: {e}")))
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
        let (_, pullback) = vjp(f, &inputs)?;
        let cotangents: Vec<&Tensor> = self.case.cotangents.iter().map(|(_, t)| t).collect();
        pullback.call(&cotangents)
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
