//! Dense linear algebra: `cholesky`, `solve_triangular`, `addmm`, `baddbmm`.
//!
//! A = L·Lᵀ: dL = L·Φ(L⁻¹·dA·L⁻ᵀ), where Φ keeps the lower triangle and half the diagonal; its
//! transpose sends G to sym(L⁻ᵀ·Φ(Lᵀ·G)·L⁻¹) (Murray 2016, arXiv 1602.07527). A·X = B:
//! dX = A⁻¹·(dB - dA·X), transposed to A⁻ᵀ·G for B and -(A⁻ᵀ·G)·Xᵀ, cut to the triangle, for A.

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::linalg as kernel;

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, Reads, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

/// The lower factor of symmetric positive definite matrices, or its transpose when `upper`; reads
/// that triangle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cholesky {
    upper: bool,
}

impl Cholesky {
    /// From what the caller sees to the lower factor, and back.
    fn lower(&self, t: &Tensor) -> Result<Tensor> {
        if self.upper {
            adjoint(t)
        } else {
            Ok(t.clone())
        }
    }
}

impl Op for Cholesky {
    fn name(&self) -> &'static str {
        "cholesky"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let a = inputs[0];
        match a.shape[..] {
            [.., m, n] if m == n && a.dtype.is_float() => Ok(one(a.clone())),
            _ => Err(Error::shape(
                "cholesky",
                "square float matrices [.., N, N]",
                format!("{a:?}"),
            )),
        }
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(kernel::cholesky(inputs[0], self.upper)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

/// Φ: the lower triangle with half the diagonal.
fn lower_half(t: &Tensor) -> Result<Tensor> {
    t.tril(0)?.add(&t.tril(-1)?)?.mul_scalar(0.5)
}

fn adjoint(t: &Tensor) -> Result<Tensor> {
    t.transpose(-1, -2)
}

impl Explicit for Cholesky {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[], &[0])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let (l, g) = (&self.lower(cx.output(0)?)?, self.lower(g)?);
        let middle = lower_half(&adjoint(l)?.matmul(&g.tril(0)?)?)?;
        // L⁻ᵀ · middle · L⁻¹
        let back = adjoint(l)?.solve_triangular(&middle, true, true, false)?;
        let back = l.solve_triangular(&back, false, false, false)?;
        sink.add(0, back.add(&adjoint(&back)?)?.mul_scalar(0.5)?)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let Some(t) = &cx.tangents[0] else {
            return Ok(one(None));
        };
        let l = &self.lower(&cx.outputs[0])?;
        // L⁻¹ · dA · L⁻ᵀ. Only symmetric tangents stay among the symmetric matrices; what others
        // give follows PyTorch.
        let inner = l.solve_triangular(t, false, true, false)?;
        let inner = adjoint(l)?.solve_triangular(&inner, true, false, false)?;
        let moved = l.matmul(&lower_half(&inner)?)?;
        Ok(one(Some(self.lower(&moved)?)))
    }
}

/// (A `[.., N, N]`, B `[.., N, K]`) → X with A·X = B; only one triangle of A is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SolveTriangular {
    upper: bool,
    unitriangular: bool,
}

impl Op for SolveTriangular {
    fn name(&self) -> &'static str {
        "solve_triangular"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (a, b) = (inputs[0], inputs[1]);
        let rank = a.shape.rank();
        let fits = rank >= 2
            && rank == b.shape.rank()
            && a.shape[rank - 1] == a.shape[rank - 2]
            && a.shape[..rank - 1] == b.shape[..rank - 1]
            && a.dtype == b.dtype
            && a.dtype.is_float();
        if !fits {
            return Err(Error::shape(
                "solve_triangular",
                "square float matrices [.., N, N] and right-hand sides [.., N, K]",
                format!("{a:?} and {b:?}"),
            ));
        }
        Ok(one(b.clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(kernel::triangular_solve(
            inputs[0],
            inputs[1],
            true,
            self.upper,
            false,
            self.unitriangular,
        )?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl SolveTriangular {
    /// The part of A that the solution depends on.
    fn read_part(&self, a: &Tensor) -> Result<Tensor> {
        let skip = i64::from(self.unitriangular);
        if self.upper {
            a.triu(skip)
        } else {
            a.tril(-skip)
        }
    }
}

impl Explicit for SolveTriangular {
    fn reads(&self, needs: &[bool]) -> Reads {
        if needs[0] {
            Reads::new(&[0], &[0])
        } else {
            Reads::new(&[0], &[])
        }
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let back = SolveTriangular {
            upper: !self.upper,
            unitriangular: self.unitriangular,
        };
        let arriving = apply1(&handle(back), &[&adjoint(cx.input(0)?)?, g])?;
        if sink.needs(0) {
            let full = arriving.matmul(&adjoint(cx.output(0)?)?)?;
            sink.add(0, self.read_part(&full)?.neg()?)?;
        }
        sink.add(1, arriving)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let through_a = match &cx.tangents[0] {
            Some(t) => Some(self.read_part(t)?.matmul(&cx.outputs[0])?),
            None => None,
        };
        let source = match (through_a, &cx.tangents[1]) {
            (Some(a), Some(b)) => b.sub(&a)?,
            (Some(a), None) => a.neg()?,
            (None, Some(b)) => b.clone(),
            (None, None) => return Ok(one(None)),
        };
        Ok(one(Some(apply1(
            &handle(self.clone()),
            &[cx.inputs[0], &source],
        )?)))
    }
}

impl Tensor {
    /// The lower factor L of symmetric positive definite matrices `[.., N, N]` = L·Lᵀ, or Lᵀ when
    /// `upper`. Only the lower (upper) triangle is read; the gradient is symmetric.
    ///
    /// # Errors
    /// When the matrices are not square floats, or one is not positive definite.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![4.0f64, 2.0, 2.0, 5.0], [2, 2])?;
    /// assert_eq!(a.cholesky(false)?.to_vec::<f64>()?, [2.0, 0.0, 1.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn cholesky(&self, upper: bool) -> Result<Tensor> {
        apply1(&handle(Cholesky { upper }), &[self])
    }

    /// X with A·X = B (`left`) or X·A = B, where this tensor A `[.., N, N]` is triangular: only
    /// the triangle named by `upper` is read, and its diagonal is taken as ones when
    /// `unitriangular`. B is `[.., N, K]` (`[.., K, N]` from the right); batches broadcast.
    ///
    /// # Errors
    /// When shapes do not fit or the dtypes are not floats.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![2.0f64, 0.0, 1.0, 4.0], [2, 2])?;
    /// let b = Tensor::from_vec(vec![2.0f64, 9.0], [2, 1])?;
    /// let x = a.solve_triangular(&b, false, true, false)?;
    /// assert_eq!(x.to_vec::<f64>()?, [1.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn solve_triangular(
        &self,
        b: &Tensor,
        upper: bool,
        left: bool,
        unitriangular: bool,
    ) -> Result<Tensor> {
        const OP: &str = "solve_triangular";
        if self.rank() < 2 || b.rank() < 2 {
            return Err(Error::shape(
                OP,
                "matrices [.., N, N] and right-hand sides [.., N, K]",
                format!("{} and {}", self.shape(), b.shape()),
            ));
        }
        if !left {
            // X·A = B is Aᵀ·Xᵀ = Bᵀ.
            let x = adjoint(self)?.solve_triangular(&adjoint(b)?, !upper, true, unitriangular)?;
            return adjoint(&x);
        }
        let dtype = self.dtype().promote(b.dtype());
        let split = |t: &Tensor| {
            let (lead, tail) = t.dims().split_at(t.rank() - 2);
            (Shape::from(lead), Shape::from(tail))
        };
        let ((lead_a, tail_a), (lead_b, tail_b)) = (split(self), split(b));
        let batch = lead_a.broadcast(&lead_b, OP)?;
        let full = |t: &Tensor, tail: &[usize]| {
            t.to_dtype(dtype)?
                .broadcast_to(Shape::from([&batch[..], tail].concat()))
        };
        let op = SolveTriangular {
            upper,
            unitriangular,
        };
        apply1(&handle(op), &[&full(self, &tail_a)?, &full(b, &tail_b)?])
    }

    /// beta·self + alpha·(a·b) for matrices `[n, k]` and `[k, m]`; this tensor broadcasts. With
    /// beta = 0 it is not read, so a NaN in it does not spread.
    ///
    /// # Errors
    /// When `a` and `b` are no matrices or shapes do not fit.
    #[track_caller]
    pub fn addmm(&self, a: &Tensor, b: &Tensor, beta: f64, alpha: f64) -> Result<Tensor> {
        self.plus_product(a, b, beta, alpha, 2, "addmm")
    }

    /// beta·self + alpha·(a·b) for batches of matrices `[batch, n, k]` and `[batch, k, m]`; this
    /// tensor broadcasts. With beta = 0 it is not read.
    ///
    /// # Errors
    /// When `a` and `b` are no batches of matrices or shapes do not fit.
    #[track_caller]
    pub fn baddbmm(&self, a: &Tensor, b: &Tensor, beta: f64, alpha: f64) -> Result<Tensor> {
        self.plus_product(a, b, beta, alpha, 3, "baddbmm")
    }

    #[track_caller]
    fn plus_product(
        &self,
        a: &Tensor,
        b: &Tensor,
        beta: f64,
        alpha: f64,
        rank: usize,
        name: &str,
    ) -> Result<Tensor> {
        let scaled = |t: &Tensor, by: f64| match by {
            1.0 => Ok(t.clone()),
            _ => t.mul_scalar(by),
        };
        let fits =
            a.rank() == rank && b.rank() == rank && a.dims()[..rank - 2] == b.dims()[..rank - 2];
        if !fits {
            return Err(Error::shape(
                name,
                format!("two tensors of rank {rank} with one batch size"),
                format!("{} and {}", a.shape(), b.shape()),
            ));
        }
        let product = scaled(&a.matmul(b)?, alpha)?;
        if self.shape().broadcast(product.shape(), name)? != *product.shape() {
            return Err(Error::shape(
                name,
                format!("a summand that broadcasts to {}", product.shape()),
                self.shape(),
            ));
        }
        if beta == 0.0 {
            return product.to_dtype(self.dtype().promote(product.dtype()));
        }
        scaled(self, beta)?.add(&product)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "cholesky",
        kind: "explicit",
        sample: |g| {
            let mut shape = g.shape(0..=2);
            let n = g.range(0, 4);
            shape.push(n);
            shape.push(n);
            let upper = g.once_in(2);
            Ok(Sample::one(vec![g.tensor(shape, -1.0, 1.0)], move |t| {
                let eye = Tensor::eye(n, DType::F64).to_dtype(t[0].dtype())?;
                let square = t[0].matmul(&t[0].transpose(-1, -2)?)?;
                square.add(&eye.mul_scalar(2.0)?)?.cholesky(upper)
            }))
        },
    },
    Entry {
        name: "solve_triangular",
        kind: "explicit",
        sample: |g| {
            let (mut a, mut b) = g.broadcast_pair();
            let (n, k) = (g.range(0, 4), g.range(0, 4));
            let left = g.once_in(2);
            a.push(n);
            a.push(n);
            b.push(if left { n } else { k });
            b.push(if left { k } else { n });
            let (upper, unit) = (g.once_in(2), g.once_in(2));
            let a = g.tensor_avoiding(a, -1.5, 1.5, &[0.0], 0.7);
            let b = g.tensor(b, -1.0, 1.0);
            Ok(Sample::one(vec![a, b], move |t| {
                t[0].solve_triangular(&t[1], upper, left, unit)
            })
            .tolerance(1e-5))
        },
    },
    Entry {
        name: "addmm",
        kind: "multilinear",
        sample: |g| {
            let (n, k, m) = (g.range(1, 4), g.range(0, 4), g.range(1, 4));
            let summand = g.pick(&[[1, 1], [n, 1], [n, m]]);
            let beta = g.pick(&[0.0, 1.0, 0.2]);
            let alpha = g.pick(&[1.0, -0.6]);
            let inputs = vec![
                g.tensor(summand, -2.0, 2.0),
                g.tensor([n, k], -2.0, 2.0),
                g.tensor([k, m], -2.0, 2.0),
            ];
            Ok(Sample::one(inputs, move |t| {
                t[0].addmm(&t[1], &t[2], beta, alpha)
            }))
        },
    },
    Entry {
        name: "baddbmm",
        kind: "multilinear",
        sample: |g| {
            let (batch, n, k, m) = (g.range(0, 3), g.range(1, 4), g.range(0, 4), g.range(1, 4));
            let inputs = vec![
                g.tensor([n, 1], -2.0, 2.0),
                g.tensor([batch, n, k], -2.0, 2.0),
                g.tensor([batch, k, m], -2.0, 2.0),
            ];
            Ok(Sample::one(inputs, |t| {
                t[0].baddbmm(&t[1], &t[2], 0.2, 0.6)
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_that_are_not_positive_definite_are_named() {
        let a =
            Tensor::from_vec(vec![1.0f64, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 1.0], [2, 2, 2]).unwrap();
        let e = a.cholesky(false).unwrap_err().to_string();
        assert!(e.contains("batch entry 1") && e.contains("order 2"), "{e}");
        assert!(Tensor::zeros([2, 3], DType::F32).cholesky(true).is_err());
        assert!(Tensor::zeros([2], DType::F32).cholesky(true).is_err());
        assert!(Tensor::zeros([2, 2], DType::I64).cholesky(false).is_err());
    }

    /// Only the stated triangle is read, so only it gets a gradient.
    #[test]
    fn the_other_triangle_does_not_matter() {
        let a = Tensor::from_vec(vec![2.0f64, f64::NAN, 1.0, 4.0], [2, 2]).unwrap();
        let a = a.requires_grad().unwrap();
        let b = Tensor::from_vec(vec![2.0f64, 9.0], [2, 1]).unwrap();
        let x = a.solve_triangular(&b, false, true, false).unwrap();
        assert_eq!(x.to_vec::<f64>().unwrap(), [1.0, 2.0]);
        x.sum().unwrap().backward().unwrap();
        // d(x0 + x1): λ = A⁻ᵀ·1 = (3/8, 1/4); gradient -λ·xᵀ on the lower triangle.
        let g = a.grad().unwrap().to_vec::<f64>().unwrap();
        assert_eq!(g, [-0.375, 0.0, -0.25, -0.5]);
        let upper = Tensor::from_vec(vec![4.0f64, 2.0, f64::NAN, 5.0], [2, 2]).unwrap();
        assert_eq!(
            upper.cholesky(true).unwrap().to_vec::<f64>().unwrap(),
            [2.0, 1.0, 0.0, 2.0]
        );
    }

    #[test]
    fn a_summand_with_factor_zero_is_not_read() {
        let nan = Tensor::full([2, 2], f64::NAN, DType::F64);
        let eye = Tensor::eye(2, DType::F64);
        let y = nan.addmm(&eye, &eye, 0.0, 2.0).unwrap();
        assert_eq!(y.to_vec::<f64>().unwrap(), [2.0, 0.0, 0.0, 2.0]);
        assert!(eye.addmm(&eye, &nan.sum().unwrap(), 1.0, 1.0).is_err());
        assert!(
            Tensor::zeros([3, 2, 2], DType::F64)
                .addmm(&eye, &eye, 1.0, 1.0)
                .is_err()
        );
    }

    #[test]
    fn the_op_takes_equal_batches_of_squares() {
        let a = |shape: &[usize]| Aval::new(shape, DType::F64);
        let op = SolveTriangular {
            upper: true,
            unitriangular: false,
        };
        let infer = |x: &Aval, y: &Aval| op.infer(&[x, y]).ok().map(|o| o[0].clone());
        assert_eq!(infer(&a(&[5, 3, 3]), &a(&[5, 3, 2])), Some(a(&[5, 3, 2])));
        for (x, y) in [
            (a(&[3]), a(&[3])),
            (a(&[3, 3]), a(&[5, 3, 2])),
            (a(&[5, 3, 2]), a(&[5, 3, 2])),
            (a(&[5, 3, 3]), a(&[5, 2, 2])),
            (a(&[5, 3, 3]), a(&[4, 3, 2])),
            (a(&[3, 3]), Aval::new([3, 2], DType::F32)),
            (Aval::new([3, 3], DType::I64), Aval::new([3, 2], DType::I64)),
        ] {
            assert_eq!(infer(&x, &y), None, "{x:?} {y:?}");
        }
        let square = Cholesky { upper: false };
        assert!(square.infer(&[&a(&[2, 3, 3])]).is_ok());
        assert!(square.infer(&[&a(&[3, 2])]).is_err() && square.infer(&[&a(&[3])]).is_err());
        assert!(square.infer(&[&Aval::new([3, 3], DType::I64)]).is_err());
    }

    /// X·A = B and A·X = B, each triangle, with and without a diagonal of ones.
    #[test]
    fn solutions_solve_their_system() {
        let full = Tensor::from_vec(vec![2.0f64, 3.0, -1.0, 4.0], [2, 2]).unwrap();
        let b = Tensor::from_vec(vec![5.0f64, -7.0, 1.5, 0.25], [2, 2]).unwrap();
        for (upper, left, ones) in [
            (false, false, false),
            (false, true, false),
            (true, false, false),
            (true, true, false),
            (false, false, true),
            (false, true, true),
            (true, false, true),
            (true, true, true),
        ] {
            let x = full.solve_triangular(&b, upper, left, ones).unwrap();
            let skip = i64::from(ones);
            let mut a = if upper {
                full.triu(skip)
            } else {
                full.tril(-skip)
            }
            .unwrap();
            if ones {
                a = a.add(&Tensor::eye(2, DType::F64)).unwrap();
            }
            let back = if left { a.matmul(&x) } else { x.matmul(&a) }.unwrap();
            for (p, q) in back
                .to_vec::<f64>()
                .unwrap()
                .iter()
                .zip(b.to_vec::<f64>().unwrap())
            {
                assert!((p - q).abs() < 1e-12, "{upper} {left} {ones}: {p} {q}");
            }
        }
    }

    #[test]
    fn summands_and_products_have_their_factors() {
        let two = Tensor::full([2, 2], 2.0, DType::F64);
        let one = Tensor::ones([2, 2], DType::F64);
        let value = |beta, alpha| {
            let y = one.addmm(&two, &two, beta, alpha).unwrap();
            y.to_vec::<f64>().unwrap()[0]
        };
        assert_eq!(
            (value(1.0, 1.0), value(0.0, 1.0), value(1.0, 0.5)),
            (9.0, 8.0, 5.0)
        );
        assert_eq!(
            (value(3.0, 1.0), value(0.0, 0.25), value(-1.0, 2.0)),
            (11.0, 2.0, 15.0)
        );
    }
}
