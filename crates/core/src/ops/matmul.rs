//! `matmul`: batched matrix products. Multilinear; transposed operands are views, never copies.

use entrenar_base::{Array, Error, Result, Shape};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::autocast::operand;
use crate::op::{Aval, Few, Multilinear, Op, Rule, VjpCx};
use crate::registry::{Entry, Sample};

/// `[batch…, m, k] · [batch…, k, n]` with equal batch dimensions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MatMul;

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (a, b) = (inputs[0], inputs[1]);
        let r = a.shape.rank();
        let fits = r >= 2
            && b.shape.rank() == r
            && a.shape[..r - 2] == b.shape[..r - 2]
            && a.shape[r - 1] == b.shape[r - 2]
            && a.dtype == b.dtype;
        if !fits {
            return Err(Error::shape(
                "matmul",
                "[batch, m, k] and [batch, k, n] of one dtype",
                format!("{a:?} and {b:?}"),
            ));
        }
        let mut shape = a.shape.clone();
        shape.dims_mut()[r - 1] = b.shape[r - 1];
        Ok(one(Aval::new(shape, a.dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(entrenar_cpu::matmul::matmul(inputs[0], inputs[1])?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Multilinear(self)
    }
}

impl Multilinear for MatMul {
    fn transpose(&self, i: usize, cotangent: &Tensor, cx: &VjpCx<'_>) -> Result<Tensor> {
        let (a, b) = if i == 0 {
            (cotangent.clone(), cx.input(1)?.transpose(-1, -2)?)
        } else {
            (cx.input(0)?.transpose(-1, -2)?, cotangent.clone())
        };
        apply1(&handle(MatMul), &[&a, &b])
    }
}

impl Tensor {
    /// The matrix product with PyTorch's rules: vectors are rows on the left and columns on the
    /// right, leading dimensions broadcast.
    ///
    /// # Errors
    /// When inner sizes differ, an operand is a scalar, or batch dimensions do not broadcast.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
    /// let x = Tensor::from_vec(vec![1.0f32, 1.0], [2])?;
    /// assert_eq!(a.matmul(&x)?.to_vec::<f32>()?, [3.0, 7.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        let (a, b) = (operand(self)?, operand(other)?);
        let dtype = a.dtype().promote(b.dtype());
        let (a, b) = (a.to_dtype(dtype)?, b.to_dtype(dtype)?);
        let (ra, rb) = (a.rank(), b.rank());
        let inner = |t: &Tensor, from_end: usize| t.dims()[t.rank() - from_end];
        if ra == 0 || rb == 0 || inner(&a, 1) != inner(&b, rb.min(2)) {
            return Err(Error::shape(
                "matmul",
                "inner sizes that agree, [.., m, k] and [.., k, n]",
                format!("{} and {}", self.shape(), other.shape()),
            ));
        }
        let a2 = if ra == 1 { a.unsqueeze(0)? } else { a };
        let b2 = if rb == 1 { b.unsqueeze(1)? } else { b };
        let (m, k, n) = (inner(&a2, 2), inner(&a2, 1), inner(&b2, 1));
        // One matrix on the right: all leading dimensions of the left are rows of one product.
        let product = if b2.rank() == 2 && a2.rank() > 2 {
            let rows: usize = a2.dims()[..a2.rank() - 1].iter().product();
            let flat = apply1(&handle(MatMul), &[&a2.reshape([rows, k])?, &b2])?;
            let mut shape = a2.shape().clone();
            *shape.dims_mut().last_mut().expect("rank above 2") = n;
            flat.reshape(shape)?
        } else {
            let lead = |t: &Tensor| Shape::from(&t.dims()[..t.rank() - 2]);
            let batch = lead(&a2).broadcast(&lead(&b2), "matmul")?;
            let full = |t: &Tensor, r: usize, c: usize| {
                let mut shape = batch.clone();
                shape.push(r);
                shape.push(c);
                t.broadcast_to(shape)
            };
            apply1(&handle(MatMul), &[&full(&a2, m, k)?, &full(&b2, k, n)?])?
        };
        let product = if rb == 1 {
            product.squeeze(-1)?
        } else {
            product
        };
        if ra == 1 {
            product.squeeze(if rb == 1 { -1 } else { -2 })
        } else {
            Ok(product)
        }
    }

    /// The sum of products of two vectors.
    ///
    /// # Errors
    /// When either is not a vector or the lengths differ.
    #[track_caller]
    pub fn dot(&self, other: &Tensor) -> Result<Tensor> {
        if self.rank() != 1 || other.rank() != 1 {
            return Err(Error::shape(
                "dot",
                "two vectors",
                format!("{} and {}", self.shape(), other.shape()),
            ));
        }
        self.matmul(other)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "matmul",
    kind: "multilinear",
    sample: |g| {
        let (m, k, n) = (g.range(1, 5), g.range(0, 5), g.range(1, 5));
        let (mut a, mut b) = g.broadcast_pair();
        match g.range(0, 5) {
            0 => (a, b) = (Shape::from([k]), Shape::from([k])),
            1 => (a, b) = (Shape::from([m, k]), Shape::from([k])),
            2 => (a, b) = (Shape::from([k]), Shape::from([k, n])),
            _ => {
                a.push(m);
                a.push(k);
                b.push(k);
                b.push(n);
            }
        }
        let (a, b) = (g.tensor(a, -2.0, 2.0), g.tensor(b, -2.0, 2.0));
        Ok(Sample::one(vec![a, b], |t| t[0].matmul(&t[1])))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    /// The methods broadcast first; the op itself takes equal batches only.
    #[test]
    fn the_op_takes_equal_batches_of_matching_matrices() {
        let a = |shape: &[usize]| Aval::new(shape, DType::F32);
        let infer = |x: &Aval, y: &Aval| MatMul.infer(&[x, y]).ok().map(|out| out[0].clone());
        assert_eq!(infer(&a(&[5, 2, 3]), &a(&[5, 3, 4])), Some(a(&[5, 2, 4])));
        assert_eq!(infer(&a(&[2, 3]), &a(&[3, 4])), Some(a(&[2, 4])));
        for (x, y) in [
            (a(&[3]), a(&[3])),
            (a(&[2, 3]), a(&[1, 3, 4])),
            (a(&[5, 2, 3]), a(&[6, 3, 4])),
            (a(&[5, 2, 3]), a(&[5, 2, 4])),
            (a(&[2, 3]), Aval::new([3, 4], DType::F64)),
        ] {
            assert_eq!(infer(&x, &y), None, "{x:?} {y:?}");
        }
    }

    #[test]
    fn values_of_every_form_of_product() {
        let m = Tensor::from_vec(vec![1i64, 2, 3, 4, 5, 6], [2, 3]).unwrap();
        let v = Tensor::from_vec(vec![1i64, 0, -1], [3]).unwrap();
        let w = Tensor::from_vec(vec![1i64, -1], [2]).unwrap();
        let list = |t: Result<Tensor>| t.unwrap().to_vec::<i64>().unwrap();
        assert_eq!(list(m.matmul(&v)), [-2, -2]);
        assert_eq!(list(w.matmul(&m)), [-3, -3, -3]);
        assert_eq!(list(v.dot(&v)), [2]);
        assert_eq!(list(m.matmul(&m.t().unwrap())), [14, 32, 32, 77]);
        let batch = Tensor::stack(&[&m, &m.neg().unwrap()], 0).unwrap();
        assert_eq!(list(batch.matmul(&v)), [-2, -2, 2, 2]);
        assert_eq!(list(w.matmul(&batch)), [-3, -3, -3, 3, 3, 3]);
        assert_eq!(
            list(batch.matmul(&m.t().unwrap())),
            [14, 32, 32, 77, -14, -32, -32, -77]
        );
    }

    /// Many vectors times one matrix are one product of matrices: no copies of the matrix.
    #[test]
    fn one_matrix_on_the_right_is_one_product() {
        use crate::autograd::graph::Edge;
        use crate::tensor::Level;
        let t = |shape: &[usize]| Tensor::ones(shape, DType::F32).requires_grad().unwrap();
        let product = |a: &Tensor, b: &Tensor| {
            let y = a.matmul(b).unwrap();
            let Some(Edge::Node { node, .. }) = y.edge(Level::AMBIENT).cloned() else {
                panic!("not recorded");
            };
            let mut names = vec![node.op.name()];
            let mut node = node;
            while node.op.name() != "matmul" {
                let Some(Edge::Node { node: next, .. }) = node.operands[0].edge.clone() else {
                    panic!("no product in {names:?}");
                };
                names.push(next.op.name());
                node = next;
            }
            let [a, b] = [0, 1].map(|i| node.operands[i].aval.shape.to_vec());
            (names, a, b)
        };
        let w = t(&[3, 4]);
        let flat = product(&t(&[5, 2, 3]), &w);
        assert_eq!(flat, (vec!["reshape", "matmul"], vec![10, 3], vec![3, 4]));
        let plain = product(&t(&[2, 3]), &w);
        assert_eq!(plain, (vec!["matmul"], vec![2, 3], vec![3, 4]));
        let both = product(&t(&[5, 2, 3]), &t(&[5, 3, 4]));
        assert_eq!(both, (vec!["matmul"], vec![5, 2, 3], vec![5, 3, 4]));
    }
}
