//! Orthogonal factorisations: `qr`, `eigh`.
//!
//! A = Q·R with M ≥ N: with C = Qᵀ·dA·R⁻¹ and S = C + Cᵀ, dR = Φ(S)·R, where Φ keeps the upper
//! triangle and half the diagonal, and dQ = dA·R⁻¹ - Q·Φ(S). Its transpose: with
//! M = triu(GR·Rᵀ - Qᵀ·GQ), (GQ + Q·(M + Mᵀ - diag M))·R⁻ᵀ (Walter, Lehmann 2018,
//! arXiv 1009.6112). A wide matrix is its first M columns and their Qᵀ times the others.
//!
//! A = V·diag(λ)·Vᵀ: with P = Vᵀ·dA·V and F = 1/(λⱼ - λᵢ) off the diagonal, dλ = diag P and
//! dV = V·(F∘P), transposed to V·(diag Gλ + F∘(Vᵀ·GV))·Vᵀ (Giles 2008, 3.1). dA and the gradient
//! are taken as symmetric.

use entrenar_base::{Array, Error, Result, Shape};
use entrenar_cpu::linalg as kernel;
use smallvec::smallvec;

use crate::Tensor;
use crate::apply::{apply, handle};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, OpRef, Reads, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

fn adjoint(t: &Tensor) -> Result<Tensor> {
    t.transpose(-1, -2)
}

/// The two outputs of an op.
fn pair(op: &OpRef, input: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut both = apply(op, &[input])?.into_iter();
    match (both.next(), both.next()) {
        (Some(first), Some(second)) => Ok((first, second)),
        _ => Err(Error::other(format!("[{}] lost an output", op.name()))),
    }
}

/// Tall matrices `[.., M, N]`, M ≥ N → (Q `[.., M, N]`, R `[.., N, N]`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Qr;

impl Op for Qr {
    fn name(&self) -> &'static str {
        "qr"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let a = inputs[0];
        let rank = a.shape.rank();
        let fits = rank >= 2 && a.shape[rank - 2] >= a.shape[rank - 1] && a.dtype.is_float();
        if !fits {
            return Err(Error::shape("qr", "tall float matrices", format!("{a:?}")));
        }
        let n = a.shape[rank - 1];
        let square = Shape::from([&a.shape[..rank - 2], &[n, n]].concat());
        Ok(smallvec![a.clone(), Aval::new(square, a.dtype)])
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (q, r) = kernel::qr(inputs[0], false)?;
        Ok(smallvec![q, r])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Explicit for Qr {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[], &[0, 1])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let (q, r) = (cx.output(0)?, cx.output(1)?);
        let (gq, gr) = (cx.cotangent(0), cx.cotangent(1));
        let from_r = gr.map(|g| g.matmul(&adjoint(r)?)).transpose()?;
        let from_q = gq.map(|g| adjoint(q)?.matmul(g)).transpose()?;
        let difference = match (from_r, from_q) {
            (Some(r), Some(q)) => r.sub(&q)?,
            (Some(r), None) => r,
            (None, Some(q)) => q.neg()?,
            (None, None) => return Ok(()),
        };
        let symmetric = difference.triu(0)?.add(&adjoint(&difference.triu(1)?)?)?;
        let mut total = q.matmul(&symmetric)?;
        if let Some(gq) = gq {
            total = total.add(gq)?;
        }
        sink.add(
            0,
            adjoint(r)?.solve_triangular(&total, false, false, false)?,
        )
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let Some(t) = &cx.tangents[0] else {
            return Ok(smallvec![None, None]);
        };
        let (q, r) = (&cx.outputs[0], &cx.outputs[1]);
        let moved = r.solve_triangular(t, true, false, false)?; // dA·R⁻¹
        let c = adjoint(q)?.matmul(&moved)?;
        // Φ(C + Cᵀ): the diagonal of C + Cᵀ is twice that of C.
        let upper = c.triu(0)?.add(&adjoint(&c.tril(-1)?)?)?;
        let dq = moved.sub(&q.matmul(&upper)?)?;
        Ok(smallvec![Some(dq), Some(upper.matmul(r)?)])
    }
}

/// Symmetric matrices `[.., N, N]` → (λ `[.., N]`, V `[.., N, N]`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Eigh {
    upper: bool,
}

impl Op for Eigh {
    fn name(&self) -> &'static str {
        "eigh"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let a = inputs[0];
        match a.shape[..] {
            [.., m, n] if m == n && a.dtype.is_float() => {
                let values = Shape::from(&a.shape[..a.shape.rank() - 1]);
                Ok(smallvec![Aval::new(values, a.dtype), a.clone()])
            }
            _ => Err(Error::shape(
                "eigh",
                "square float matrices [.., N, N]",
                format!("{a:?}"),
            )),
        }
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (values, vectors) = kernel::eigh(inputs[0], self.upper)?;
        Ok(smallvec![values, vectors])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

/// F∘P: off the diagonal P over the differences of eigenvalues, zero on it.
fn over_gaps(p: &Tensor, values: &Tensor) -> Result<Tensor> {
    let n = p.size(-1)?;
    let gaps = values.unsqueeze(-2)?.sub(&values.unsqueeze(-1)?)?;
    // Ones on the diagonal keep the division there finite.
    let quotient = p.div(&gaps.add(&Tensor::eye(n, p.dtype()))?)?;
    quotient.triu(1)?.add(&quotient.tril(-1)?)
}

fn symmetric(t: &Tensor) -> Result<Tensor> {
    t.add(&adjoint(t)?)?.mul_scalar(0.5)
}

impl Explicit for Eigh {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[], &[0, 1])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let (values, v) = (cx.output(0)?, cx.output(1)?);
        let on = cx
            .cotangent(0)
            .map(|g| g.diag_embed(0, -2, -1))
            .transpose()?;
        // Equal eigenvalues have no vectors of their own: only who asks for those meets the gaps.
        let off = cx
            .cotangent(1)
            .map(|g| over_gaps(&adjoint(v)?.matmul(g)?, values))
            .transpose()?;
        let middle = match (on, off) {
            (Some(on), Some(off)) => on.add(&off)?,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return Ok(()),
        };
        sink.add(0, symmetric(&v.matmul(&middle)?.matmul(&adjoint(v)?)?)?)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let Some(t) = &cx.tangents[0] else {
            return Ok(smallvec![None, None]);
        };
        let (values, v) = (&cx.outputs[0], &cx.outputs[1]);
        let p = adjoint(v)?.matmul(&symmetric(t)?)?.matmul(v)?;
        let dv = v.matmul(&over_gaps(&p, values)?)?;
        Ok(smallvec![Some(p.diagonal(0, -2, -1)?), Some(dv)])
    }
}

impl Tensor {
    /// Q with orthonormal columns and upper triangular R with A = Q·R, for matrices
    /// `[.., M, N]`: `[.., M, K]` and `[.., K, N]`, K = min(M, N). The diagonal of R may be
    /// negative, as LAPACK leaves it. Derivatives need the first K columns to be independent.
    ///
    /// # Errors
    /// When the rank is below 2 or the dtype is no float.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![3.0f64, 4.0], [2, 1])?;
    /// let (q, r) = a.qr()?;
    /// assert!((r.item::<f64>()? + 5.0).abs() < 1e-14);
    /// assert!((q.to_vec::<f64>()?[1] + 0.8).abs() < 1e-14);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn qr(&self) -> Result<(Tensor, Tensor)> {
        let op: OpRef = handle(Qr);
        let [.., m, n] = *self.dims() else {
            return Err(Error::shape("qr", "matrices [.., M, N]", self.shape()));
        };
        if m >= n {
            return pair(&op, self);
        }
        let (q, left) = pair(&op, &self.narrow(-1, 0, m)?)?;
        let right = adjoint(&q)?.matmul(&self.narrow(-1, m, n - m)?)?;
        let r = Tensor::concat(&[&left, &right], -1)?;
        Ok((q, r))
    }

    /// The eigenvalues in ascending order `[.., N]` and orthonormal eigenvectors (the columns of
    /// `[.., N, N]`) of symmetric matrices. Only the lower triangle is read, or the upper one when
    /// `upper`; the gradient is symmetric. Derivatives of the vectors need distinct eigenvalues,
    /// and mean something only where a vector's sign does not matter.
    ///
    /// # Errors
    /// When the matrices are not square floats, or an entry is not finite.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![2.0f64, 1.0, 1.0, 2.0], [2, 2])?;
    /// let values = a.eigh(false)?.0.to_vec::<f64>()?;
    /// assert!((values[0] - 1.0).abs() < 1e-14 && (values[1] - 3.0).abs() < 1e-14);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn eigh(&self, upper: bool) -> Result<(Tensor, Tensor)> {
        pair(&handle(Eigh { upper }), self)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "qr",
        kind: "explicit",
        sample: |g| {
            let mut shape = g.shape(0..=2);
            let (m, n) = (g.range(0, 5), g.range(0, 5));
            shape.push(m);
            shape.push(n);
            Ok(Sample::new(vec![g.tensor(shape, -0.5, 0.5)], move |t| {
                // Far from dependent columns.
                let size = m.max(n);
                let eye = Tensor::eye(size, t[0].dtype());
                let eye = eye.narrow(0, 0, m)?.narrow(1, 0, n)?;
                let (q, r) = t[0].add(&eye.mul_scalar(2.0)?)?.qr()?;
                Ok(vec![q, r])
            }))
        },
    },
    Entry {
        name: "eigh",
        kind: "explicit",
        sample: |g| {
            let mut shape = g.shape(0..=2);
            let n = g.range(0, 4);
            shape.push(n);
            shape.push(n);
            let upper = g.once_in(2);
            Ok(Sample::new(vec![g.tensor(shape, -0.5, 0.5)], move |t| {
                // Symmetric, with eigenvalues well apart.
                let apart = Tensor::arange(0.0, n as f64, 1.0, t[0].dtype())?.mul_scalar(4.0)?;
                let a = t[0].add(&adjoint(&t[0])?)?;
                let (values, vectors) = a.add(&apart.diag_embed(0, 0, 1)?)?.eigh(upper)?;
                Ok(vec![values, vectors])
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    fn matrix(values: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape.to_vec()).unwrap()
    }

    fn near(a: &Tensor, b: &Tensor) {
        let (a, b) = (a.to_vec::<f64>().unwrap(), b.to_vec::<f64>().unwrap());
        assert_eq!(a.len(), b.len());
        for (x, y) in a.iter().zip(&b) {
            assert!((x - y).abs() < 1e-12, "{a:?} instead of {b:?}");
        }
    }

    #[test]
    fn factors_multiply_to_the_matrix() {
        let tall = matrix(&[1.0, 2.0, -3.0, 0.5, 0.1, 4.0], &[3, 2]);
        for a in [tall.clone(), adjoint(&tall).unwrap()] {
            let (q, r) = a.qr().unwrap();
            near(&q.matmul(&r).unwrap(), &a);
            let k = q.size(-1).unwrap();
            let gram = adjoint(&q).unwrap().matmul(&q).unwrap();
            near(&gram, &Tensor::eye(k, DType::F64));
            near(&r.triu(0).unwrap(), &r);
        }
        let a = matrix(&[2.0, f64::NAN, -1.0, 0.5], &[2, 2]);
        let full = matrix(&[2.0, -1.0, -1.0, 0.5], &[2, 2]);
        let (values, v) = a.eigh(false).unwrap();
        let scaled = v.mul(&values.unsqueeze(-2).unwrap()).unwrap();
        near(&scaled.matmul(&adjoint(&v).unwrap()).unwrap(), &full);
        near(&values, &adjoint(&a).unwrap().eigh(true).unwrap().0);
    }

    /// d log|det A| = A⁻ᵀ, through the diagonal of R and through the eigenvalues.
    #[test]
    fn both_give_the_gradient_of_the_determinant() {
        let values = [4.0, 1.0, 1.0, 3.0];
        let inverse = matrix(&[3.0 / 11.0, -1.0 / 11.0, -1.0 / 11.0, 4.0 / 11.0], &[2, 2]);
        let log_abs = |t: &Tensor| t.abs()?.log()?.sum();
        let a = matrix(&values, &[2, 2]).requires_grad().unwrap();
        let (_, r) = a.qr().unwrap();
        log_abs(&r.diagonal(0, 0, 1).unwrap())
            .unwrap()
            .backward()
            .unwrap();
        near(&a.grad().unwrap(), &inverse);
        let a = matrix(&values, &[2, 2]).requires_grad().unwrap();
        log_abs(&a.eigh(false).unwrap().0)
            .unwrap()
            .backward()
            .unwrap();
        near(&a.grad().unwrap(), &inverse);
    }

    /// Equal eigenvalues: their own gradient is finite, the vectors' gaps are not asked for.
    #[test]
    fn equal_eigenvalues_have_gradients() {
        let a = Tensor::eye(3, DType::F64).requires_grad().unwrap();
        a.eigh(false).unwrap().0.sum().unwrap().backward().unwrap();
        near(&a.grad().unwrap(), &Tensor::eye(3, DType::F64));
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        assert!(Tensor::zeros([3], DType::F64).qr().is_err());
        assert!(Tensor::zeros([3, 2], DType::I64).qr().is_err());
        assert!(Tensor::zeros([2, 3], DType::F64).eigh(false).is_err());
        assert!(Tensor::zeros([2], DType::F64).eigh(false).is_err());
        let e = Tensor::full([2, 2], f64::NAN, DType::F64).eigh(false);
        assert!(e.unwrap_err().to_string().contains("not finite"));
    }
}
