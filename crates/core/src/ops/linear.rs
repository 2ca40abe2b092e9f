//! `linear` (y = x·Wᵀ + b) and `bilinear` (yₒ = x₁ᵀ·Wₒ·x₂ + bₒ), composed of products.

use entrenar_base::{Error, Result, Shape};

use crate::Tensor;
use crate::ops::activation::as_float;
use crate::registry::{Entry, Sample};

impl Tensor {
    /// x·Wᵀ + b: x `[.., in]`, weight `[out, in]` (or `[in]`, for one output without a
    /// dimension), bias `[out]`; the result is `[.., out]`.
    ///
    /// # Errors
    /// When the inner sizes or the bias do not fit.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0], [1, 2])?;
    /// let w = Tensor::from_vec(vec![1.0f32, 1.0, 0.0, 2.0, 3.0, 0.0], [3, 2])?;
    /// let b = Tensor::from_vec(vec![0.5f32, 0.0, 0.0], [3])?;
    /// assert_eq!(x.linear(&w, Some(&b))?.to_vec::<f32>()?, [3.5, 4.0, 3.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let inner = self.dims().last();
        if !(1..=2).contains(&weight.rank()) || inner.is_none() || weight.dims().last() != inner {
            return Err(Error::shape(
                "linear",
                "an input [.., in] and a weight [out, in]",
                format!("{} and {}", self.shape(), weight.shape()),
            ));
        }
        let out: Shape = weight.dims()[..weight.rank() - 1].into();
        if let Some(b) = bias
            && *b.shape() != out
        {
            return Err(Error::shape(
                "linear",
                format!("a bias of shape {out}"),
                b.shape(),
            ));
        }
        let product = if weight.rank() == 1 {
            self.matmul(weight)?
        } else {
            self.matmul(&weight.t()?)?
        };
        match bias {
            Some(b) => product.add(b),
            None => Ok(product),
        }
    }

    /// x₁ᵀ·Wₒ·x₂ + bₒ for every output o: x₁ `[.., m]`, x₂ `[.., n]`, weight `[out, m, n]`, bias
    /// `[out]`; the result is `[.., out]`.
    ///
    /// # Errors
    /// When sizes do not fit.
    #[track_caller]
    pub fn bilinear(
        &self,
        other: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (a, b) = (as_float(self)?, as_float(other)?);
        let fits = weight.rank() == 3
            && a.rank() > 0
            && a.rank() == b.rank()
            && a.dims()[..a.rank() - 1] == b.dims()[..b.rank() - 1]
            && weight.dims()[1..] == [a.dims()[a.rank() - 1], b.dims()[b.rank() - 1]];
        if !fits {
            return Err(Error::shape(
                "bilinear",
                "inputs [.., m] and [.., n] and a weight [out, m, n]",
                format!("{}, {} and {}", self.shape(), other.shape(), weight.shape()),
            ));
        }
        let (out, m, n) = (weight.dims()[0], weight.dims()[1], weight.dims()[2]);
        let lead = Shape::from(&a.dims()[..a.rank() - 1]);
        let rows = lead.numel();
        // [rows, m] · [m, out·n], then for each row [out, n] · [n].
        let side = weight.permute(&[1, 0, 2])?.reshape([m, out * n])?;
        let half = a.reshape([rows, m])?.matmul(&side)?;
        let product = half
            .reshape([rows, out, n])?
            .matmul(&b.reshape([rows, n, 1])?)?;
        let mut shape = lead;
        shape.push(out);
        let product = product.reshape(shape)?;
        match bias {
            Some(bias) if bias.dims() != [out] => Err(Error::shape(
                "bilinear",
                format!("a bias of shape [{out}]"),
                bias.shape(),
            )),
            Some(bias) => product.add(bias),
            None => Ok(product),
        }
    }
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "linear",
        kind: "composed",
        sample: |g| {
            let mut shape = g.shape(0..=3);
            let (inner, out) = (g.range(0, 5), g.range(1, 4));
            shape.push(inner);
            let x = g.tensor(shape, -2.0, 2.0);
            let vector = g.once_in(5);
            let (w, b) = if vector {
                (Shape::from([inner]), Shape::scalar())
            } else {
                (Shape::from([out, inner]), Shape::from([out]))
            };
            let mut inputs = vec![x, g.tensor(w, -2.0, 2.0)];
            if g.once_in(2) {
                inputs.push(g.tensor(b, -2.0, 2.0));
            }
            Ok(Sample::one(inputs, |t| t[0].linear(&t[1], t.get(2))))
        },
    },
    Entry {
        name: "bilinear",
        kind: "composed",
        sample: |g| {
            let lead = g.shape(0..=2);
            let (m, n, out) = (g.range(1, 4), g.range(1, 4), g.range(1, 4));
            let with = |size: usize| {
                let mut shape = lead.clone();
                shape.push(size);
                shape
            };
            let mut inputs = vec![
                g.tensor(with(m), -2.0, 2.0),
                g.tensor(with(n), -2.0, 2.0),
                g.tensor([out, m, n], -2.0, 2.0),
            ];
            if g.once_in(2) {
                inputs.push(g.tensor([out], -2.0, 2.0));
            }
            Ok(Sample::one(inputs, |t| {
                t[0].bilinear(&t[1], &t[2], t.get(3))
            }))
        },
    },
];
