//! Gradient hooks as identity ops: no engine feature, so they survive capture and checkpointing.

use smallvec::SmallVec;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use entrenar_base::{Array, Error, Result};

use super::graph::{Deferred, Edge, Hook, HookFunction, Leaf, drop_flat};
use crate::Tensor;
use crate::apply::{apply1, one};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, Reads, Rule, Sink, VjpCx};
use crate::tensor::Inner;

/// A shared object compared by identity, so that ops holding one are `Eq + Hash`.
pub(crate) struct ByIdentity<T: ?Sized>(pub Arc<T>);

impl<T: ?Sized> Clone for ByIdentity<T> {
    fn clone(&self) -> Self {
        ByIdentity(self.0.clone())
    }
}
impl<T: ?Sized> PartialEq for ByIdentity<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl<T: ?Sized> Eq for ByIdentity<T> {}
impl<T: ?Sized> Hash for ByIdentity<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}
impl<T: ?Sized> std::fmt::Debug for ByIdentity<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:p}", Arc::as_ptr(&self.0).cast::<()>())
    }
}

macro_rules! identity_op {
    ($name:ident, $label:literal) => {
        impl Op for $name {
            fn name(&self) -> &'static str {
                $label
            }
            fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
                Ok(one(inputs[0].clone()))
            }
            fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
                Ok(one(inputs[0].clone()))
            }
            fn rule(&self) -> Rule<'_> {
                Rule::Explicit(self)
            }
        }
    };
}

/// Shows each passing gradient to a function, which may replace it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hooked {
    hook: ByIdentity<HookFunction>,
}

identity_op!(Hooked, "hook");

/// The function may have captured the tensor before it, and that one's hook the one before.
impl Drop for Hooked {
    fn drop(&mut self) {
        let nothing: Hook = Arc::new(|_| Ok(None));
        let hook = std::mem::replace(&mut self.hook.0, nothing);
        drop_flat(std::iter::once(Deferred::Other(Box::new(hook))));
    }
}

impl Explicit for Hooked {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::NOTHING
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let replaced = (self.hook.0)(g)?;
        if let Some(new) = &replaced
            && new.aval() != g.aval()
        {
            return Err(Error::shape(
                "hook",
                format!("a gradient like {:?}", g.aval()),
                format!("{:?}", new.aval()),
            ));
        }
        sink.add(0, replaced.unwrap_or_else(|| g.clone()))
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        Ok(SmallVec::from_iter([cx.tangents[0].clone()]))
    }
}

/// Accumulates each passing gradient in a cell of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Retain {
    pub cell: ByIdentity<Leaf>,
}

identity_op!(Retain, "retain_grad");

impl Explicit for Retain {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::NOTHING
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        self.cell.0.accumulate(g.clone())?;
        sink.add(0, g.clone())
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        Ok(SmallVec::from_iter([cx.tangents[0].clone()]))
    }
}

impl Tensor {
    /// Runs `hook` on the gradient of this tensor in every backward pass; a returned tensor takes
    /// its place. On a leaf the hook sees the whole gradient of the pass, before accumulation; on
    /// an interior value use the *returned* tensor from here on (values are immutable).
    ///
    /// # Errors
    /// When this tensor is not tracked.
    ///
    /// ```
    /// use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0], [2])?.requires_grad()?;
    /// let h = x.mul(&x)?.register_hook(|g| Ok(Some(g.mul_scalar(10.0)?)))?;
    /// h.sum()?.backward()?;
    /// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [20.0, 40.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn register_hook(
        &self,
        hook: impl Fn(&Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let hook: Hook = Arc::new(hook);
        let edge = self.level().and_then(|level| self.edge(level));
        if let Some(Edge::Leaf(leaf)) = edge {
            leaf.add_hook(hook);
            return Ok(self.clone());
        }
        if !self.is_tracked() && !matches!(self.0, Inner::Dual(_)) {
            return Err(Error::autodiff(
                "register_hook",
                "this tensor does not require gradients",
            ));
        }
        let hook = ByIdentity(hook);
        apply1(&crate::apply::handle(Hooked { hook }), &[self])
    }

    /// This value with a gradient cell: after `backward`, [`Tensor::grad`] of the *returned*
    /// tensor answers although it is not a leaf.
    ///
    /// # Errors
    /// When this tensor is not tracked.
    #[track_caller]
    pub fn retain_grad(&self) -> Result<Tensor> {
        if !self.is_tracked() {
            return Err(Error::autodiff(
                "retain_grad",
                "this tensor does not require gradients",
            ));
        }
        if self.leaf().is_some() {
            return Ok(self.clone());
        }
        let cell = ByIdentity(Leaf::new(self.aval()));
        apply1(&crate::apply::handle(Retain { cell }), &[self])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_compared_by_identity() {
        let hook = || -> Hook { Arc::new(|_| Ok(None)) };
        let (a, b) = (ByIdentity(hook()), ByIdentity(hook()));
        let hash = |h: &ByIdentity<HookFunction>| {
            let mut state = std::collections::hash_map::DefaultHasher::new();
            h.hash(&mut state);
            std::hash::Hasher::finish(&state)
        };
        assert!(a == a.clone() && a != b);
        assert!(hash(&a) == hash(&a.clone()) && hash(&a) != hash(&b));
        assert!(format!("{a:?}").starts_with("0x"), "{a:?}");
        assert_ne!(format!("{a:?}"), format!("{b:?}"));
        let of =
            |hook: &ByIdentity<HookFunction>| crate::apply::handle(Hooked { hook: hook.clone() });
        assert!(of(&a).same(&*of(&a)) && !of(&a).same(&*of(&b)));
        let cell = || ByIdentity(Leaf::new(Aval::new([1], entrenar_base::DType::F32)));
        let (c, d) = (cell(), cell());
        let of = |cell: &ByIdentity<Leaf>| crate::apply::handle(Retain { cell: cell.clone() });
        assert!(
            of(&c).same(&*of(&c))
                && !of(&c).same(&*of(&d))
                && !of(&c).same(&*crate::apply::handle(Hooked { hook: a }))
        );
    }
}
