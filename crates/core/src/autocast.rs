//! Automatic mixed precision: products in bf16, everything else as it comes.
//!
//! Inside [`autocast`] the operations that are products (linear, matmul, attention, convolutions)
//! multiply in bf16 and sum in f32; they give bf16, convolutions f32. All others keep the dtype of their inputs, so sums,
//! norms, losses and parameters stay f32; a cross-entropy of bf16 logits is f32. A backward pass
//! needs no autocast of its own: operations remember how they ran, and the gradient of an f32
//! parameter is f32 (Micikevicius et al., "Mixed precision training", 2018; PyTorch's
//! `torch.autocast`). bf16 has the exponents of f32, so that no loss scaling is needed.

use std::cell::Cell;

use entrenar_base::{DType, Result};
use entrenar_cpu::product::Compute;

use crate::Tensor;

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
}

/// Whether products of f32 run in bf16 on this thread now.
pub fn is_autocast() -> bool {
    ACTIVE.get()
}

/// Runs `f` with products in bf16 (`enabled`) or as their operands are (not `enabled`, whatever
/// surrounds it).
///
/// ```
/// use entrenar_core::{DType, Tensor, autocast};
/// let x = Tensor::ones([2, 3], DType::F32);
/// let w = Tensor::ones([4, 3], DType::F32).requires_grad()?;
/// let y = autocast(true, || x.linear(&w, None))?;
/// assert_eq!(y.dtype(), DType::BF16);
/// y.sum()?.backward()?;
/// assert_eq!(w.grad().unwrap().dtype(), DType::F32);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn autocast<T>(enabled: bool, f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _restore = Restore(ACTIVE.replace(enabled));
    f()
}

/// An operand of a product: f32 becomes bf16 inside [`autocast`].
#[track_caller]
pub(crate) fn operand(t: &Tensor) -> Result<Tensor> {
    if is_autocast() && t.dtype() == DType::F32 {
        t.to_dtype(DType::BF16)
    } else {
        Ok(t.clone())
    }
}

/// What products of operands of this promoted dtype run in now.
pub(crate) fn compute_for(dtype: DType) -> Compute {
    match dtype {
        DType::BF16 => Compute::Bf16,
        DType::F32 if is_autocast() => Compute::Bf16,
        _ => Compute::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_nests_and_ends() {
        assert!(!is_autocast());
        autocast(true, || {
            assert!(is_autocast());
            autocast(false, || assert!(!is_autocast()));
            assert!(is_autocast());
        });
        let caught = std::panic::catch_unwind(|| autocast(true, || panic!("inside")));
        assert!(caught.is_err() && !is_autocast());
    }

    #[test]
    fn products_are_bf16_and_the_rest_is_not() {
        let x = Tensor::randn([4, 6], DType::F32, 1).unwrap();
        autocast(true, || {
            assert_eq!(x.matmul(&x.t().unwrap()).unwrap().dtype(), DType::BF16);
            assert_eq!(x.softmax(-1).unwrap().dtype(), DType::F32);
            assert_eq!(
                x.layer_norm(1, None, None, 1e-5).unwrap().dtype(),
                DType::F32
            );
            let wide = x.to_dtype(DType::F64).unwrap();
            assert_eq!(wide.matmul(&wide.t().unwrap()).unwrap().dtype(), DType::F64);
        });
        assert_eq!(x.matmul(&x.t().unwrap()).unwrap().dtype(), DType::F32);
    }
}
