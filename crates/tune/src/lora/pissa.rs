//! PiSSA: the adapter takes over the leading singular directions of the weight (Meng, Wang, Zhang,
//! "PiSSA", 2024).
//!
//! With W = U S Vᵀ and the leading r directions: B = U √(S/s), A = √(S/s) Vᵀ, W ← W - s·B·A. All in
//! f64. Exact vectors come from the eigenvectors of W Wᵀ or Wᵀ W, whichever is smaller; the randomized
//! search iterates on a subspace a little wider than r (Halko, Martinsson, Tropp, 2011).

use entrenar_core::{DType, Error, Result, Tensor};
use entrenar_cpu::linalg::{eigh, qr};
use entrenar_nn::{Init, Projection};

use super::config::LayerSettings;

/// Directions searched for beyond those wanted.
const SPARE: usize = 8;

/// A and B; the base's weight loses s·B·A.
pub(super) fn split(
    base: &Projection,
    settings: &LayerSettings,
    iterations: Option<usize>,
    init: &mut Init,
    dtype: DType,
) -> Result<(Tensor, Tensor)> {
    let Some((weight, parameter)) = base.matrix()? else {
        return Err(Error::argument(
            "pissa",
            "a plain layer (quantize after the adapter was made)",
            "a quantized one",
        ));
    };
    let w = weight.detach().to_dtype(DType::F64)?;
    let (outputs, inputs) = (w.dims()[0], w.dims()[1]);
    let rank = settings.rank;
    if rank > outputs.min(inputs) {
        return Err(Error::argument(
            "pissa",
            format!("a rank of at most {}", outputs.min(inputs)),
            rank,
        ));
    }
    let (u, s, vt) = match iterations {
        None => leading(&w, rank)?,
        Some(rounds) => searched(&w, rank, rounds, init)?,
    };
    let root = s.mul_scalar(1.0 / settings.scale())?.relu()?.sqrt()?;
    let b = u.mul(&root.unsqueeze(0)?)?;
    let a = root.unsqueeze(1)?.mul(&vt)?;
    let rest = w.sub(&b.matmul(&a)?.mul_scalar(settings.scale())?)?;
    let rest = rest.to_dtype(parameter.dtype())?;
    let rest = match base {
        Projection::Transposed(_) => rest.t()?.contiguous()?,
        _ => rest,
    };
    parameter.set(&rest)?;
    Ok((a.to_dtype(dtype)?, b.to_dtype(dtype)?))
}

/// The leading singular triples (U `[m, r]`, S `[r]`, Vᵀ `[r, n]`) of w `[m, n]`.
fn leading(w: &Tensor, rank: usize) -> Result<(Tensor, Tensor, Tensor)> {
    let (m, n) = (w.dims()[0], w.dims()[1]);
    let tall = m > n;
    let gram = if tall {
        w.t()?.matmul(w)?
    } else {
        w.matmul(&w.t()?)?
    };
    let (values, vectors) = eigh(gram.array(), false)?;
    let size = m.min(n);
    // Values ascend.
    let top = |t: Tensor, dim: isize| t.narrow(dim, size - rank, rank)?.flip(&[dim]);
    let s = top(values.into(), 0)?.relu()?.sqrt()?;
    let side = top(vectors.into(), 1)?;
    // A direction with s = 0 adds nothing, whatever the other side is.
    let inverse = s.maximum(&Tensor::full((), f64::MIN_POSITIVE.sqrt(), DType::F64))?;
    if tall {
        let u = w.matmul(&side)?.div(&inverse.unsqueeze(0)?)?;
        Ok((u, s, side.t()?))
    } else {
        let vt = side.t()?.matmul(w)?.div(&inverse.unsqueeze(1)?)?;
        Ok((side, s, vt))
    }
}

/// The same by a randomized search.
fn searched(
    w: &Tensor,
    rank: usize,
    rounds: usize,
    init: &mut Init,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (m, n) = (w.dims()[0], w.dims()[1]);
    let wide = (rank + SPARE).min(m.min(n));
    let basis = |t: &Tensor| -> Result<Tensor> { Ok(qr(t.array(), false)?.0.into()) };
    let start = init.normal([n, wide], 0.0, 1.0)?.to_dtype(DType::F64)?;
    let mut q = basis(&w.matmul(&start)?)?;
    for _ in 0..rounds {
        let back = basis(&w.t()?.matmul(&q)?)?;
        q = basis(&w.matmul(&back)?)?;
    }
    let (u, s, vt) = leading(&q.t()?.matmul(w)?, rank)?;
    Ok((q.matmul(&u)?, s, vt))
}
