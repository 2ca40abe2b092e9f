//! Matrix products with everything that may follow one: `residual + activation(a·b + bias)`, in
//! mixed 16- and 32-bit floats.
//!
//! One call reads operands of any float dtype and layout, multiplies in the precision asked for,
//! and applies the options while the result is still in cache. [`crate::matmul`] holds the bare
//! products, `crate::gemm` the kernels.
//!
//! All arithmetic after the operands are read is f32; each output is rounded once.

use entrenar_base::{Array, DType, Error, Result, Shape};

use crate::cast::cast;
use crate::matmul::{matmul, matmul_acc};
use crate::pointwise::{Binary, Compute as Lane, Program, Source, Step, Unary, binary, run};

/// The precision that operands are multiplied in; sums are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Operands are widened to f32, which changes no value.
    #[default]
    F32,
    /// Operands are rounded to bf16 (to nearest, ties to even) as they are read: what casting them
    /// first gives, without the pass over memory.
    Bf16,
}

/// A function applied to each element of a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// max(x, 0), NaN kept.
    Relu,
    /// x·Φ(x) with the exact normal distribution function.
    Gelu,
    /// The tanh approximation of gelu: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    GeluTanh,
    /// x·sigmoid(x).
    Silu,
}

/// What a product computes besides a·b. The default is the bare product.
///
/// `output = activation(alpha · a·b + bias) + residual`
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Precision of the operands.
    pub compute: Compute,
    /// Dtype of the output: f32, bf16 or f16. By default that of `a` and `b` when they agree,
    /// else f32.
    pub output: Option<DType>,
    /// Factor of the product.
    pub alpha: f32,
    /// Added to every row: `[n]`, of any float dtype.
    pub bias: Option<&'a Array>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last: of the output's shape and any float dtype.
    pub residual: Option<&'a Array>,
    /// When given, `alpha · a·b + bias` is returned too, in this dtype (f32, bf16 or f16): what the
    /// activation's derivative needs.
    pub preactivation: Option<DType>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            compute: Compute::F32,
            output: None,
            alpha: 1.0,
            bias: None,
            activation: Activation::None,
            residual: None,
            preactivation: None,
        }
    }
}

/// What [`product`] returns.
#[derive(Clone, Debug)]
pub struct Product {
    /// `activation(alpha · a·b + bias) + residual`.
    pub output: Array,
    /// `alpha · a·b + bias`, when it was asked for.
    pub preactivation: Option<Array>,
}

/// `activation(alpha · a·b + bias) + residual` for `a[batch…, m, k]` and `b[batch…, k, n]`.
///
/// Each operand is f32, bf16 or f16, in any layout: transposed and mixed ones cost no copy. Batch
/// dimensions must be equal (broadcast with zero strides beforehand).
///
/// # Errors
/// When shapes do not fit or a dtype is not f32, bf16 or f16.
///
/// ```
/// use entrenar_base::{Array, DType};
/// use entrenar_cpu::product::{Activation, Options, product};
/// let x = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?.cast(DType::BF16);
/// let weight = Array::from_vec(vec![1.0f32, 0.0, 0.0, -1.0], [2, 2])?;
/// let bias = Array::from_vec(vec![0.5f32, 0.5], [2])?;
/// let y = product(&x, &weight.transpose(0, 1)?, &Options {
///     bias: Some(&bias),
///     activation: Activation::Relu,
///     ..Options::default()
/// })?;
/// assert_eq!(y.output.to_vec::<f32>()?, [1.5, 0.0, 3.5, 0.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn product(a: &Array, b: &Array, options: &Options<'_>) -> Result<Product> {
    let output = check(a, b, options)?;
    let (a, b) = (rounded(a, options.compute)?, rounded(b, options.compute)?);
    let mut sum = matmul(&a, &b)?;
    if options.alpha != 1.0 {
        let factor = Array::full(Shape::scalar(), options.alpha).broadcast_to(sum.shape())?;
        sum = binary(Binary::Mul, Lane::F32, &sum, &factor, DType::F32)?;
    }
    if let Some(bias) = options.bias {
        let bias = bias.broadcast_to(sum.shape())?;
        sum = binary(Binary::Add, Lane::F32, &sum, &bias, DType::F32)?;
    }
    let preactivation = match options.preactivation {
        Some(dtype) => Some(cast(&sum, dtype)?),
        None => None,
    };
    sum = activated(sum, options.activation)?;
    if let Some(residual) = options.residual {
        sum = binary(Binary::Add, Lane::F32, &sum, residual, DType::F32)?;
    }
    Ok(Product {
        output: cast(&sum, output)?,
        preactivation,
    })
}

/// `target += a·b` with operands as in [`product`], in place when `target` is the only owner of a
/// contiguous storage; otherwise the sum replaces it. The old value joins the sum in f32, and the
/// result is rounded once to the dtype of `target` (f32, bf16 or f16).
///
/// # Errors
/// As [`product`], and when the shape of `target` is not the product's.
#[track_caller]
pub fn product_acc(target: &mut Array, a: &Array, b: &Array, compute: Compute) -> Result<()> {
    let options = Options {
        compute,
        output: Some(target.dtype()),
        residual: Some(target),
        ..Options::default()
    };
    check(a, b, &options)?;
    let (a, b) = (rounded(a, compute)?, rounded(b, compute)?);
    if target.dtype() == DType::F32 {
        return matmul_acc(target, &a, &b);
    }
    let mut sum = cast(target, DType::F32)?;
    matmul_acc(&mut sum, &a, &b)?;
    *target = cast(&sum, target.dtype())?;
    Ok(())
}

fn rounded(x: &Array, compute: Compute) -> Result<Array> {
    let x = match compute {
        Compute::F32 => x.clone(),
        Compute::Bf16 => cast(x, DType::BF16)?,
    };
    cast(&x, DType::F32)
}

fn activated(x: Array, activation: Activation) -> Result<Array> {
    match definition(activation) {
        Some(p) => run(&p.compile(), Lane::F32, &[&x], DType::F32),
        None => Ok(x),
    }
}

/// The formula of an activation; none for the identity.
fn definition(activation: Activation) -> Option<Program> {
    use Source::{Input, Temp};
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
    let c = Source::constant;
    let x = Input(0);
    let mul = |a, b| Step::Binary(Binary::Mul, a, b);
    let add = |a, b| Step::Binary(Binary::Add, a, b);
    let steps = match activation {
        Activation::None => return None,
        Activation::Relu => vec![
            Step::Binary(Binary::Le, x, c(0.0)),
            Step::Select(Temp(0), c(0.0), x),
        ],
        Activation::Silu => vec![Step::Unary(Unary::Sigmoid, x), mul(x, Temp(0))],
        Activation::Gelu => vec![
            mul(x, c(FRAC_1_SQRT_2)),
            Step::Unary(Unary::Erf, Temp(0)),
            add(c(1.0), Temp(1)),
            mul(c(0.5), x),
            mul(Temp(3), Temp(2)),
        ],
        Activation::GeluTanh => vec![
            mul(x, x),
            mul(Temp(0), x),
            mul(c(0.044_715), Temp(1)),
            add(x, Temp(2)),
            mul(c(FRAC_2_SQRT_PI * FRAC_1_SQRT_2), Temp(3)),
            Step::Unary(Unary::Tanh, Temp(4)),
            add(c(1.0), Temp(5)),
            mul(c(0.5), x),
            mul(Temp(7), Temp(6)),
        ],
    };
    let last = steps.len() - 1;
    Some(Program {
        inputs: 1,
        steps,
        result: Temp(last as u8),
    })
}

/// Dtypes that products read and write.
fn is_operand(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// Checks dtypes and shapes; returns the output's dtype.
#[track_caller]
fn check(a: &Array, b: &Array, options: &Options<'_>) -> Result<DType> {
    let refused = |dtype| Error::dtype("product", "f32, bf16 or f16", dtype);
    let optional = [options.bias, options.residual];
    let arrays = [Some(a), Some(b)].into_iter().chain(optional).flatten();
    let dtypes = arrays.map(Array::dtype);
    let asked = options.output.into_iter().chain(options.preactivation);
    if let Some(dtype) = dtypes.chain(asked).find(|&d| !is_operand(d)) {
        return Err(refused(dtype));
    }
    let (ra, rb) = (a.rank(), b.rank());
    let (da, db) = (a.dims(), b.dims());
    if ra < 2 || ra != rb || da[..ra - 2] != db[..rb - 2] || da[ra - 1] != db[rb - 2] {
        return Err(Error::shape(
            "product",
            "shapes [batch…, m, k] and [batch…, k, n]",
            format!("{} and {}", a.shape(), b.shape()),
        ));
    }
    let mut shape = a.shape().clone();
    shape.dims_mut()[ra - 1] = db[rb - 1];
    if let Some(bias) = options.bias
        && bias.dims() != [db[rb - 1]]
    {
        let expected = format!("a bias of shape [{}]", db[rb - 1]);
        return Err(Error::shape("product", expected, bias.shape()));
    }
    if let Some(residual) = options.residual
        && *residual.shape() != shape
    {
        let expected = format!("a residual of shape {shape}");
        return Err(Error::shape("product", expected, residual.shape()));
    }
    Ok(options.output.unwrap_or(if a.dtype() == b.dtype() {
        a.dtype()
    } else {
        DType::F32
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::array;

    #[test]
    fn everything_at_once() {
        let x = array(&[3, 4], DType::BF16, 1);
        let w = array(&[5, 4], DType::F32, 2);
        let bias = array(&[5], DType::BF16, 3);
        let residual = array(&[3, 5], DType::F32, 4);
        let y = product(
            &x,
            &w.transpose(0, 1).unwrap(),
            &Options {
                compute: Compute::Bf16,
                alpha: 0.5,
                bias: Some(&bias),
                activation: Activation::Relu,
                residual: Some(&residual),
                preactivation: Some(DType::F32),
                ..Options::default()
            },
        )
        .unwrap();
        let (xs, ws) = (x.to_f64_vec(), w.to_f64_vec());
        let (bs, rs) = (bias.to_f64_vec(), residual.to_f64_vec());
        let pre = y.preactivation.unwrap().to_f64_vec();
        for (e, (out, pre)) in y.output.to_f64_vec().iter().zip(pre).enumerate() {
            let (i, j) = (e / 5, e % 5);
            // Values are multiples of 1/8 in -16..16: exact in bf16, sums exact in f32.
            let sum: f64 = (0..4).map(|p| xs[i * 4 + p] * ws[j * 4 + p]).sum();
            assert_eq!(pre, 0.5 * sum + bs[j]);
            assert_eq!(*out, pre.max(0.0) + rs[e]);
        }
        let mut target = residual.cast(DType::BF16);
        product_acc(&mut target, &x, &w.transpose(0, 1).unwrap(), Compute::F32).unwrap();
        assert_eq!(target.dtype(), DType::BF16);
    }

    #[test]
    fn misfits_are_errors() {
        let a = array(&[2, 3], DType::F32, 1);
        let b = array(&[3, 2], DType::F32, 1);
        let fails = |a: &Array, b: &Array, o: Options<'_>| product(a, b, &o).is_err();
        let plain = Options::default;
        assert!(fails(&a, &a, plain()));
        assert!(fails(&a.cast(DType::F64), &b, plain()));
        assert!(fails(&a, &b.cast(DType::I64), plain()));
        let output = Some(DType::I32);
        assert!(fails(&a, &b, Options { output, ..plain() }));
        let bias = Some(&a);
        assert!(fails(&a, &b, Options { bias, ..plain() }));
        let residual = Some(&b);
        assert!(fails(
            &a,
            &b,
            Options {
                residual,
                ..plain()
            }
        ));
        let mut target = b.clone();
        assert!(product_acc(&mut target, &a, &b, Compute::F32).is_err());
    }
}
