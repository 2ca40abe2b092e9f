//! `dropout`: keeps each element with probability 1 - p and divides it by 1 - p.
//!
//! Linear: the gradient is the same mask. The mask is never stored: it is a function of
//! (seed, stream, position) by the counter-based generator, so a replay, another thread count or
//! another layout drops the same elements. (Srivastava, Hinton, Krizhevsky, Sutskever,
//! Salakhutdinov 2014.)

use entrenar_base::{Array, Error, Result};
use entrenar_cpu::pointwise::{self, Binary, Compute};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Bits, Few, Linear, Op, Rule, Sink, VjpCx};
use crate::ops::activation::as_float;
use crate::registry::{Entry, Sample};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Dropout {
    keep: Bits,
    seed: u64,
    stream: u64,
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let x = inputs[0];
        let dtype = x.dtype();
        let mask = entrenar_cpu::random::dropout_mask(
            x.shape().clone(),
            dtype,
            self.keep.0,
            self.seed,
            self.stream,
        )?;
        let compute = Compute::of(dtype);
        Ok(one(pointwise::binary(
            Binary::Mul,
            compute,
            x,
            &mask,
            dtype,
        )?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Dropout {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, apply1(&handle(self.clone()), &[g])?),
            None => Ok(()),
        }
    }
}

impl Tensor {
    /// Zeroes each element with probability `p` and scales the others by 1 / (1 - p).
    ///
    /// What is dropped depends only on `seed`, `stream` and the element's position: use a fresh
    /// stream for every layer and step. `p` = 0 is the identity; with `p` = 1 everything is 0.
    ///
    /// # Errors
    /// When `p` is outside [0, 1].
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType};
    /// let x = Tensor::ones([100], DType::F32);
    /// let y = x.dropout(0.5, 7, 0)?.to_vec::<f32>()?;
    /// assert!(y.iter().all(|&v| v == 0.0 || v == 2.0));
    /// assert_eq!(x.dropout(0.5, 7, 0)?.to_vec::<f32>()?, y);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn dropout(&self, p: f64, seed: u64, stream: u64) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::argument("dropout", "a probability in [0, 1]", p));
        }
        let x = as_float(self)?;
        if p == 0.0 {
            return Ok(x);
        }
        let keep = Bits(1.0 - p);
        apply1(&handle(Dropout { keep, seed, stream }), &[&x])
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "dropout",
    kind: "linear",
    sample: |g| {
        let shape = g.shape(0..=4);
        let (p, seed) = (g.pick(&[0.0, 0.3, 0.5, 1.0]), g.range(0, 1000) as u64);
        Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
            t[0].square()?.dropout(p, seed, 3)
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    #[test]
    fn the_kept_share_and_the_mean_are_right() {
        let x = Tensor::ones([10_000], DType::F32);
        let y = x.dropout(0.3, 1, 2).unwrap();
        let kept = y
            .to_vec::<f32>()
            .unwrap()
            .iter()
            .filter(|v| **v != 0.0)
            .count();
        // Five standard deviations of a binomial(10000, 0.7) are 229.
        assert!((6771..7229).contains(&kept), "{kept}");
        assert_ne!(
            x.dropout(0.3, 1, 3).unwrap().to_vec::<f32>().unwrap(),
            y.to_vec::<f32>().unwrap()
        );
    }

    #[test]
    fn the_gradient_drops_the_same_elements() {
        let x = Tensor::ones([64], DType::F64).requires_grad().unwrap();
        let y = x.dropout(0.5, 9, 9).unwrap();
        y.sum().unwrap().backward().unwrap();
        assert_eq!(
            x.grad().unwrap().to_vec::<f64>().unwrap(),
            y.to_vec::<f64>().unwrap()
        );
    }

    #[test]
    fn probabilities_outside_the_unit_interval_are_errors() {
        let x = Tensor::ones([2], DType::F32);
        for p in [-0.1, 1.1, f64::NAN] {
            assert!(x.dropout(p, 0, 0).is_err());
        }
    }
}
