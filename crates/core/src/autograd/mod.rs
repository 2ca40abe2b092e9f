//! Differentiation: the graph, the backward engine, forward mode and everything built on them.

pub mod checkpoint;
pub mod custom;
pub(crate) mod engine;
pub(crate) mod forward;
pub mod functional;
pub mod gradcheck;
pub(crate) mod graph;
pub mod hooks;
pub mod tape;
mod vjp_of;

pub use checkpoint::{CheckpointPolicy, checkpoint, checkpoint_with};
pub use custom::{BackwardCx, CustomOp};
pub use engine::{GradOptions, backward_all, grad};
pub use forward::DualTensor;
pub use functional::{
    Linearized, hessian, hvp, jacfwd, jacobian, jacrev, jvp, linearize, value_and_grad, vjp,
};
pub use gradcheck::{GradCheck, check_gradient};
pub use graph::Leaf;
pub use tape::GradientTape;

use entrenar_base::Result;

use crate::Tensor;
use crate::op::{Gradient, Place};
use crate::tensor::Inner;

/// Adds `gradient` to `slot`, in place where nobody else can see the sum so far.
#[inline]
pub(crate) fn accumulate(slot: &mut Option<Tensor>, gradient: Tensor) -> Result<()> {
    match slot {
        None => *slot = Some(gradient),
        Some(sum) => add_to(sum, gradient)?,
    }
    Ok(())
}

fn add_to(sum: &mut Tensor, gradient: Tensor) -> Result<()> {
    if let Inner::Concrete(term) = &gradient.0
        && let Some(target) = sum.exclusive_array()
        && target.dtype() == term.dtype()
        && target.shape() == term.shape()
    {
        return entrenar_cpu::pointwise::add_assign(target, term);
    }
    *sum = sum.add(&gradient)?;
    Ok(())
}

/// [`accumulate`] for a contribution that may cover only a slice.
#[inline]
pub(crate) fn accumulate_gradient(slot: &mut Option<Tensor>, gradient: Gradient) -> Result<()> {
    match gradient {
        Gradient::Whole(t) => accumulate(slot, t),
        Gradient::Part(part, at) => add_part(slot, &part, &*at),
    }
}

fn add_part(slot: &mut Option<Tensor>, part: &Tensor, at: &dyn Place) -> Result<()> {
    if let Inner::Concrete(term) = &part.0
        && let Some(target) = slot.as_mut().and_then(Tensor::exclusive_array)
        && at.add_in_place(target, term)?
    {
        return Ok(());
    }
    accumulate(slot, at.embed(part)?)
}

/// Runs `f` without recording the ambient graph (level 0). Explicit transforms inside still work.
///
/// ```
/// use entrenar_core::{Tensor, no_grad};
/// let w = Tensor::from_vec(vec![2.0f32], [1])?.requires_grad()?;
/// let y = no_grad(|| w.mul(&w))?;
/// assert!(!y.is_tracked());
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    with_grad(false, f)
}

/// Runs `f` with recording of the ambient graph on, whatever surrounds it.
pub fn enable_grad<T>(f: impl FnOnce() -> T) -> T {
    with_grad(true, f)
}

fn with_grad<T>(enabled: bool, f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            crate::apply::set_grad_enabled(self.0);
        }
    }
    let _restore = Restore(crate::apply::set_grad_enabled(enabled));
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[f64]) -> Tensor {
        Tensor::from_vec(values.to_vec(), [values.len()]).unwrap()
    }

    fn sum(slot: &Option<Tensor>) -> Vec<f64> {
        slot.as_ref().unwrap().array().to_f64_vec()
    }

    /// Gradients add up in place only where nobody else sees the sum so far.
    #[test]
    fn sums_never_change_under_a_reader() {
        let mut slot = None;
        accumulate(&mut slot, list(&[1.0, 2.0])).unwrap();
        let seen = slot.clone().unwrap();
        accumulate(&mut slot, list(&[10.0, 10.0])).unwrap();
        assert_eq!(sum(&slot), [11.0, 12.0]);
        assert_eq!(seen.to_vec::<f64>().unwrap(), [1.0, 2.0]);
        // The same storage behind another tensor.
        let view = Tensor::from(seen.array().clone());
        let mut slot = Some(seen);
        accumulate(&mut slot, list(&[1.0, 1.0])).unwrap();
        assert_eq!(sum(&slot), [2.0, 3.0]);
        assert_eq!(view.to_vec::<f64>().unwrap(), [1.0, 2.0]);
        // Alone it stays where it is.
        let mut slot = Some(list(&[1.0, 2.0]));
        let before = slot
            .as_ref()
            .unwrap()
            .array()
            .as_slice::<f64>()
            .unwrap()
            .as_ptr();
        accumulate(&mut slot, list(&[1.0, 1.0])).unwrap();
        let after = slot
            .as_ref()
            .unwrap()
            .array()
            .as_slice::<f64>()
            .unwrap()
            .as_ptr();
        assert!(before == after && sum(&slot) == [2.0, 3.0]);
        // Other shapes and dtypes broadcast and promote, or are refused.
        accumulate(&mut slot, Tensor::scalar(1.0f64)).unwrap();
        assert_eq!(sum(&slot), [3.0, 4.0]);
        accumulate(&mut slot, Tensor::ones([2], crate::DType::F32)).unwrap();
        assert_eq!(
            (slot.as_ref().unwrap().dtype(), sum(&slot)),
            (crate::DType::F64, vec![4.0, 5.0])
        );
        let mut narrow = Some(Tensor::ones([2], crate::DType::F32));
        accumulate(&mut narrow, list(&[0.5, 0.5])).unwrap();
        assert_eq!(narrow.as_ref().unwrap().dtype(), crate::DType::F64);
        assert!(accumulate(&mut slot, list(&[1.0, 2.0, 3.0])).is_err());
        // A tracked contribution keeps its history.
        let x = list(&[1.0, 1.0]).requires_grad().unwrap();
        let mut slot = Some(list(&[1.0, 2.0]));
        accumulate(&mut slot, x).unwrap();
        assert!(slot.as_ref().unwrap().is_tracked() && sum(&slot) == [2.0, 3.0]);
    }
}
