//! Activation functions. Each is an expression; kernel, gradient and all orders follow from it.
//!
//! Conventions at kinks are PyTorch's: relu'(0) = 0; leaky_relu and prelu take the negative side's
//! slope at 0; hardtanh, relu6 and hardsigmoid have gradient 0 at both bounds; NaN stays NaN.
//! References: Clevert et al. 2016 (elu), Barron 2017 (celu), Klambauer et al. 2017 (selu),
//! Hendrycks and Gimpel 2016 (gelu), Elfwing et al. 2018 (silu), Misra 2019 (mish), Howard et al.
//! 2019 (hardswish), Dauphin et al. 2017 (glu).

use std::f64::consts::FRAC_1_SQRT_2;
use std::sync::{Arc, LazyLock};

use entrenar_base::{DType, Error, Result, Shape};
use entrenar_cpu::pointwise::Unary;

use crate::Tensor;
use crate::apply::apply1;
use crate::expr::{Expr, OutputType, Pointwise, c, x};
use crate::op::OpRef;
use crate::registry::{Entry, Gen, Sample};

/// The tensor itself, or its f32 form when it holds integers.
#[track_caller]
pub(crate) fn as_float(t: &Tensor) -> Result<Tensor> {
    if t.dtype().is_float() {
        Ok(t.clone())
    } else {
        t.to_dtype(DType::F32)
    }
}

/// A pointwise op of one input.
fn of_one(name: &'static str, expr: Expr) -> Arc<Pointwise> {
    Pointwise::new(name, 1, OutputType::Like(0), expr)
}

/// `if 0 < x { x } else { negative }`.
fn above_zero(negative: &Expr) -> Expr {
    c(0.0).lt(&x(0)).select(&x(0), negative)
}

/// x clamped to [low, high], with gradient 0 at the bounds.
fn hard(v: &Expr, low: f64, high: f64) -> Expr {
    let (low, high) = (c(low), c(high));
    v.le(&low).select(&low, &high.le(v).select(&high, v))
}

macro_rules! fixed {
    ($( $(#[$doc:meta])* $method:ident, $keep_integers:expr, $expr:expr; )*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// Never for valid tensors.
                #[track_caller]
                pub fn $method(&self) -> Result<Tensor> {
                    static OP: LazyLock<OpRef> =
                        LazyLock::new(|| OpRef::always(of_one(stringify!($method), $expr)));
                    if $keep_integers || self.dtype().is_float() {
                        return apply1(&OP, &[self]);
                    }
                    apply1(&OP, &[&as_float(self)?])
                }
            )*
        }
    };
}

fixed! {
    /// max(x, 0).
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let t = Tensor::from_vec(vec![-1.0f32, 0.0, 2.0], [3])?;
    /// assert_eq!(t.relu()?.to_vec::<f32>()?, [0.0, 0.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    relu, true, x(0).unary(Unary::Relu);
    /// min(max(x, 0), 6).
    relu6, true, hard(&x(0), 0.0, 6.0);
    /// Scaled ELU: 1.0507·x above 0, 1.0507·1.6733·(exp(x) - 1) elsewhere.
    selu, false, {
        const SCALE: f64 = 1.050_700_987_355_480_5;
        const ALPHA: f64 = 1.673_263_242_354_377_2;
        c(0.0).lt(&x(0)).select(
            &(&c(SCALE) * &x(0)),
            &(&c(SCALE * ALPHA) * &x(0).unary(Unary::Expm1)),
        )
    };
    /// x·Φ(x) with the exact normal distribution function (PyTorch's `approximate="none"`).
    gelu, false, {
        let erf = (&x(0) * &c(FRAC_1_SQRT_2)).unary(Unary::Erf);
        &(&c(0.5) * &x(0)) * &(&c(1.0) + &erf)
    };
    /// The tanh approximation of gelu: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    gelu_tanh, false, x(0).unary(Unary::GeluTanh);
    /// x·sigmoid(x), also called swish.
    silu, false, &x(0) * &x(0).unary(Unary::Sigmoid);
    /// x / (1 + |x|).
    softsign, false, &x(0) / &(&c(1.0) + &x(0).unary(Unary::Abs));
    /// x·tanh(log(1 + exp(x))).
    mish, false, &x(0) * &x(0).unary(Unary::Softplus).unary(Unary::Tanh);
    /// x·relu6(x + 3) / 6.
    hardswish, false, {
        let middle = &(&x(0) * &(&x(0) + &c(3.0))) * &c(1.0 / 6.0);
        x(0).le(&c(-3.0))
            .select(&c(0.0), &c(3.0).le(&x(0)).select(&x(0), &middle))
    };
    /// relu6(x + 3) / 6.
    hardsigmoid, false, {
        let middle = &(&x(0) + &c(3.0)) * &c(1.0 / 6.0);
        x(0).le(&c(-3.0))
            .select(&c(0.0), &c(3.0).le(&x(0)).select(&c(1.0), &middle))
    };
    /// log(sigmoid(x)) without overflow.
    logsigmoid, false, -&(-&x(0)).unary(Unary::Softplus);
    /// x - tanh(x).
    tanhshrink, false, &x(0) - &x(0).unary(Unary::Tanh);
}

/// The op `name` with parameters, applied to one float tensor.
#[track_caller]
fn with_parameters(
    t: &Tensor,
    name: &'static str,
    parameters: &[f64],
    expr: impl FnOnce() -> Expr,
) -> Result<Tensor> {
    let op = Pointwise::cached(name, parameters, || of_one(name, expr()));
    apply1(&op, &[&as_float(t)?])
}

impl Tensor {
    /// x above 0, `negative_slope`·x elsewhere. (PyTorch's default slope is 0.01.)
    ///
    /// # Errors
    /// Never for valid tensors.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let t = Tensor::from_vec(vec![-2.0f32, 2.0], [2])?;
    /// assert_eq!(t.leaky_relu(0.5)?.to_vec::<f32>()?, [-1.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn leaky_relu(&self, negative_slope: f64) -> Result<Tensor> {
        with_parameters(self, "leaky_relu", &[negative_slope], || {
            above_zero(&(&c(negative_slope) * &x(0)))
        })
    }

    /// x above 0, weight·x elsewhere, with one learned slope (`[]` or `[1]`) or one per channel
    /// (`[C]`, channels in dimension 1, or 0 of a vector).
    ///
    /// # Errors
    /// When the weight has neither one element nor one per channel.
    #[track_caller]
    pub fn prelu(&self, weight: &Tensor) -> Result<Tensor> {
        static OP: LazyLock<OpRef> = LazyLock::new(|| {
            let expr = above_zero(&(&x(1) * &x(0)));
            OpRef::always(Pointwise::new("prelu", 2, OutputType::Like(0), expr))
        });
        let input = as_float(self)?;
        let weight = weight.to_dtype(input.dtype())?;
        let weight = if weight.numel() == 1 {
            weight.reshape(Shape::scalar())?
        } else {
            let channels = input.dims().get(1).or(input.dims().first()).copied();
            if weight.rank() != 1 || channels != Some(weight.numel()) {
                return Err(Error::shape(
                    "prelu",
                    format!(
                        "a weight of 1 element or one per channel of {}",
                        self.shape()
                    ),
                    weight.shape(),
                ));
            }
            let mut shape = vec![1; input.rank()];
            shape[if input.rank() > 1 { 1 } else { 0 }] = weight.numel();
            weight.reshape(shape)?
        };
        apply1(&OP, &[&input, &weight.broadcast_to(input.shape())?])
    }

    /// x above 0, `alpha`·(exp(x) - 1) elsewhere.
    ///
    /// # Errors
    /// Never for valid tensors.
    #[track_caller]
    pub fn elu(&self, alpha: f64) -> Result<Tensor> {
        with_parameters(self, "elu", &[alpha], || {
            above_zero(&(&c(alpha) * &x(0).unary(Unary::Expm1)))
        })
    }

    /// x above 0, `alpha`·(exp(x / alpha) - 1) elsewhere: an elu with a continuous slope.
    ///
    /// # Errors
    /// When `alpha` is 0.
    #[track_caller]
    pub fn celu(&self, alpha: f64) -> Result<Tensor> {
        if alpha == 0.0 {
            return Err(Error::argument("celu", "an alpha other than 0", alpha));
        }
        with_parameters(self, "celu", &[alpha], || {
            above_zero(&(&c(alpha) * &(&x(0) * &c(1.0 / alpha)).unary(Unary::Expm1)))
        })
    }

    /// log(1 + exp(beta·x)) / beta, and x itself where beta·x exceeds `threshold`.
    /// (PyTorch's defaults are 1 and 20.)
    ///
    /// # Errors
    /// When `beta` is 0.
    #[track_caller]
    pub fn softplus(&self, beta: f64, threshold: f64) -> Result<Tensor> {
        if beta == 0.0 {
            return Err(Error::argument("softplus", "a beta other than 0", beta));
        }
        with_parameters(self, "softplus", &[beta, threshold], || {
            let scaled = &c(beta) * &x(0);
            let smooth = &scaled.unary(Unary::Softplus) * &c(1.0 / beta);
            c(threshold).lt(&scaled).select(&x(0), &smooth)
        })
    }

    /// x clamped to [`min`, `max`], with gradient 0 at and beyond the bounds.
    ///
    /// # Errors
    /// When `min` exceeds `max`.
    #[track_caller]
    pub fn hardtanh(&self, min: f64, max: f64) -> Result<Tensor> {
        if min.is_nan() || max.is_nan() || min > max {
            return Err(Error::argument(
                "hardtanh",
                "min <= max",
                format!("{min} and {max}"),
            ));
        }
        with_parameters(self, "hardtanh", &[min, max], || hard(&x(0), min, max))
    }

    /// Gated linear unit: the first half along `dim` times the sigmoid of the second.
    ///
    /// # Errors
    /// When the dimension does not exist or its size is odd.
    #[track_caller]
    pub fn glu(&self, dim: isize) -> Result<Tensor> {
        static OP: LazyLock<OpRef> = LazyLock::new(|| {
            let expr = &x(0) * &x(1).unary(Unary::Sigmoid);
            OpRef::always(Pointwise::new("glu", 2, OutputType::Like(0), expr))
        });
        let input = as_float(self)?;
        let size = input.size(dim)?;
        if input.rank() == 0 || !size.is_multiple_of(2) {
            return Err(Error::shape(
                "glu",
                format!("an even size in dimension {dim}"),
                self.shape(),
            ));
        }
        let half = size / 2;
        let (a, b) = (input.narrow(dim, 0, half)?, input.narrow(dim, half, half)?);
        apply1(&OP, &[&a, &b])
    }
}

macro_rules! entry {
    ($name:literal, $avoid:expr, |$t:ident, $g:ident| $parameters:expr, $call:expr) => {
        Entry {
            name: $name,
            kind: "pointwise",
            sample: |$g| {
                let shape = $g.shape(0..=4);
                let p = $parameters;
                let avoid: &[f64] = &$avoid;
                let input = $g.tensor_avoiding(shape, -4.0, 4.0, avoid, 0.05);
                let call = $call;
                Ok(Sample::one(vec![input], move |$t| call(&$t[0], p)))
            },
        }
    };
}

/// One entry for a function without parameters.
macro_rules! plain {
    ($method:ident, $name:literal, $avoid:expr) => {
        entry!($name, $avoid, |t, g| (), |t: &Tensor, ()| t.$method())
    };
}

pub(crate) const ENTRIES: &[Entry] = &[
    plain!(relu, "relu", [0.0]),
    plain!(relu6, "relu6", [0.0]),
    plain!(selu, "selu", [0.0]),
    plain!(gelu, "gelu", []),
    plain!(gelu_tanh, "gelu_tanh", []),
    plain!(silu, "silu", []),
    plain!(softsign, "softsign", [0.0]),
    plain!(mish, "mish", []),
    plain!(hardswish, "hardswish", [-3.0, 3.0]),
    plain!(hardsigmoid, "hardsigmoid", [-3.0, 3.0]),
    plain!(logsigmoid, "logsigmoid", []),
    plain!(tanhshrink, "tanhshrink", []),
    entry!(
        "leaky_relu",
        [0.0],
        |t, g| g.uniform(-0.5, 0.5),
        |t: &Tensor, p| t.leaky_relu(p)
    ),
    entry!("elu", [0.0], |t, g| g.uniform(0.5, 2.0), |t: &Tensor, p| t
        .elu(p)),
    entry!(
        "celu",
        [0.0],
        |t, g| g.uniform(0.5, 2.0),
        |t: &Tensor, p| t.celu(p)
    ),
    entry!(
        "softplus",
        [2.0],
        |t, g| g.pick(&[(1.0, 20.0), (0.5, 1.0), (2.0, 4.0)]),
        |t: &Tensor, (beta, threshold)| t.softplus(beta, threshold)
    ),
    entry!("hardtanh", [-1.0, 1.5], |t, g| (), |t: &Tensor, ()| t
        .hardtanh(-1.0, 1.5)),
    Entry {
        name: "prelu",
        kind: "pointwise",
        sample: |g| {
            let shape = g.shape(0..=4);
            let weight = weight_shape(g, &shape);
            let input = g.tensor_avoiding(shape, -2.0, 2.0, &[0.0], 0.05);
            let weight = g.tensor(weight, -1.0, 1.0);
            Ok(Sample::one(vec![input, weight], |t| t[0].prelu(&t[1])))
        },
    },
    Entry {
        name: "glu",
        kind: "pointwise",
        sample: |g| {
            let mut shape = g.shape(1..=4);
            let dim = g.range(0, shape.rank());
            shape.dims_mut()[dim] *= 2;
            let input = g.tensor(shape, -2.0, 2.0);
            Ok(Sample::one(vec![input], move |t| t[0].glu(dim as isize)))
        },
    },
];

/// A shape that prelu accepts as its weight.
fn weight_shape(g: &mut Gen, input: &Shape) -> Shape {
    let channels = input.get(1).or(input.first()).copied().unwrap_or(1);
    match g.range(0, 3) {
        0 => Shape::scalar(),
        1 => Shape::from([1]),
        _ => Shape::from([channels]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slopes(f: impl Fn(&Tensor) -> Result<Tensor>, at: &[f64]) -> Vec<f64> {
        let t = Tensor::from_vec(at.to_vec(), [at.len()])
            .unwrap()
            .requires_grad()
            .unwrap();
        f(&t).unwrap().sum().unwrap().backward().unwrap();
        t.grad().unwrap().to_vec().unwrap()
    }

    #[test]
    fn slopes_at_kinks_are_those_of_pytorch() {
        assert_eq!(slopes(Tensor::relu, &[-1.0, 0.0, 1.0]), [0.0, 0.0, 1.0]);
        assert_eq!(slopes(Tensor::relu6, &[0.0, 1.0, 6.0]), [0.0, 1.0, 0.0]);
        assert_eq!(
            slopes(|t| t.hardtanh(-1.0, 1.0), &[-1.0, 0.0, 1.0]),
            [0.0, 1.0, 0.0]
        );
        assert_eq!(slopes(|t| t.leaky_relu(0.01), &[0.0]), [0.01]);
        assert_eq!(slopes(|t| t.elu(1.0), &[0.0]), [1.0]);
        assert_eq!(slopes(Tensor::hardsigmoid, &[-3.0, 3.0]), [0.0, 0.0]);
        assert_eq!(
            slopes(Tensor::hardswish, &[-3.0, 3.0, 6.0]),
            [0.0, 1.0, 1.0]
        );
        assert_eq!(slopes(Tensor::softsign, &[0.0]), [1.0]);
        // Above the threshold the function is the identity, its slope exactly 1.
        assert_eq!(slopes(|t| t.softplus(1.0, 3.0), &[3.0, 6.0])[1], 1.0);
    }

    #[test]
    fn extremes_stay_finite_and_nan_stays_nan() {
        let far = Tensor::from_vec(vec![-1e4f32, 1e4], [2]).unwrap();
        for f in [
            Tensor::gelu,
            Tensor::gelu_tanh,
            Tensor::silu,
            Tensor::mish,
            Tensor::logsigmoid,
        ] {
            let y = f(&far).unwrap().to_vec::<f32>().unwrap();
            assert!(y.iter().all(|v| v.is_finite()), "{y:?}");
        }
        let t = far.requires_grad().unwrap();
        t.elu(1.0).unwrap().sum().unwrap().backward().unwrap();
        assert_eq!(t.grad().unwrap().to_vec::<f32>().unwrap(), [0.0, 1.0]);
        let nan = Tensor::scalar(f64::NAN);
        for f in [Tensor::relu, Tensor::relu6, Tensor::hardswish, Tensor::selu] {
            assert!(f(&nan).unwrap().item::<f64>().unwrap().is_nan());
        }
    }

    #[test]
    fn misfits_are_errors() {
        let t = Tensor::zeros([2, 3], DType::F32);
        assert!(t.prelu(&Tensor::zeros([2], DType::F32)).is_err());
        assert!(t.glu(1).is_err());
        assert!(t.glu(5).is_err());
        assert!(t.hardtanh(1.0, -1.0).is_err());
        assert!(t.celu(0.0).is_err());
    }
}
