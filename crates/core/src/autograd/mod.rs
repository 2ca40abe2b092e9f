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
use crate::op::Gradient;
use crate::tensor::Inner;

/// Adds `gradient` to `slot`, in place where nobody else can see the sum so far.
pub(crate) fn accumulate(slot: &mut Option<Tensor>, gradient: Tensor) -> Result<()> {
    match slot {
        None => *slot = Some(gradient),
        Some(sum) => {
            if let Inner::Concrete(term) = &*gradient.0
                && let Some(target) = sum.exclusive_array()
                && target.dtype() == term.dtype()
                && target.shape() == term.shape()
            {
                return entrenar_cpu::pointwise::add_assign(target, term);
            }
            *sum = sum.add(&gradient)?;
        }
    }
    Ok(())
}

/// [`accumulate`] for a contribution that may cover only a slice.
pub(crate) fn accumulate_gradient(slot: &mut Option<Tensor>, gradient: Gradient) -> Result<()> {
    match gradient {
        Gradient::Whole(t) => accumulate(slot, t),
        Gradient::Part(part, at) => {
            if let Inner::Concrete(term) = &*part.0
                && let Some(target) = slot.as_mut().and_then(Tensor::exclusive_array)
                && at.add_in_place(target, term)?
            {
                return Ok(());
            }
            accumulate(slot, at.embed(&part)?)
        }
    }
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
