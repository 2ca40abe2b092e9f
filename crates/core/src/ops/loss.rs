//! Regression, classification and ranking losses that are elementwise or nearly so, and
//! [`Reduction`]. Formulas and subgradients are those of `torch.nn.functional`; cross-entropy from
//! logits is in `cross_entropy.rs`.
//!
//! With d = x - t: mse d²; l1 |d|; smooth_l1 d²/(2β) where |d| < β, else |d| - β/2; huber d²/2
//! where |d| ≤ δ, else δ·(|d| - δ/2). binary_cross_entropy -(t·ln x + (1-t)·ln(1-x)) with
//! logarithms cut at -100. kl_div t·(ln t - x).

use std::f64::consts::PI;
use std::sync::LazyLock;

use entrenar_base::{Array, Error, Result};
use entrenar_cpu::pointwise::{Binary, Unary};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::expr::{Expr, OutputType, Pointwise, c, x};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, OpRef, Reads, Rule, Sink, VjpCx};
use crate::ops::activation::as_float;
use crate::ops::arithmetic::paired;
use crate::ops::cross_entropy::REDUCTIONS;
use crate::registry::{Entry, Gen, Sample};

/// How the losses of elements or rows become the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// They stay as they are.
    None,
    /// Their mean.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Their sum over the size of dimension 0 (what `kl_div` calls "batchmean").
    BatchMean,
}

impl Reduction {
    /// Combines `losses`.
    ///
    /// # Errors
    /// When `BatchMean` is asked of a scalar.
    #[track_caller]
    pub fn apply(self, losses: &Tensor) -> Result<Tensor> {
        match self {
            Reduction::None => Ok(losses.clone()),
            Reduction::Mean => losses.mean(),
            Reduction::Sum => losses.sum(),
            Reduction::BatchMean => {
                let batch = losses.dims().first().ok_or_else(|| {
                    Error::shape("loss", "a batch dimension for batchmean", losses.shape())
                })?;
                losses.sum()?.div_scalar(*batch as f64)
            }
        }
    }
}

/// Input and target as floats of one dtype and shape.
#[track_caller]
fn matched(input: &Tensor, target: &Tensor, op: &str) -> Result<(Tensor, Tensor)> {
    paired(&as_float(input)?, target, op)
}

/// The pointwise op `name` of two tensors, reduced.
#[track_caller]
fn elementwise(
    (input, target): (&Tensor, &Tensor),
    name: &'static str,
    parameters: &[f64],
    reduction: Reduction,
    expr: impl FnOnce() -> Expr,
) -> Result<Tensor> {
    let (a, b) = matched(input, target, name)?;
    let op = Pointwise::cached(name, parameters, || {
        Pointwise::new(name, 2, OutputType::Like(0), expr())
    });
    reduction.apply(&apply1(&op, &[&a, &b])?)
}

/// max(v, 0) with slope 1 at 0, as PyTorch's `clamp_min`.
fn clamped(v: &Expr) -> Expr {
    c(0.0).le(v).select(v, &c(0.0))
}

fn difference() -> Expr {
    &x(0) - &x(1)
}

fn log(e: &Expr) -> Expr {
    e.unary(Unary::Log)
}

impl Tensor {
    /// Squared differences from `target`, reduced. Shapes broadcast.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::loss::Reduction};
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0], [2])?;
    /// let t = Tensor::from_vec(vec![1.0f32, 4.0], [2])?;
    /// assert_eq!(x.mse_loss(&t, Reduction::Mean)?.item::<f32>()?, 2.0);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn mse_loss(&self, target: &Tensor, reduction: Reduction) -> Result<Tensor> {
        elementwise((self, target), "mse_loss", &[], reduction, || {
            difference().unary(Unary::Square)
        })
    }

    /// Absolute differences from `target`, reduced; the gradient at 0 is 0.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    #[track_caller]
    pub fn l1_loss(&self, target: &Tensor, reduction: Reduction) -> Result<Tensor> {
        elementwise((self, target), "l1_loss", &[], reduction, || {
            difference().unary(Unary::Abs)
        })
    }

    /// Quadratic below `beta`, linear with slope 1 above (Girshick 2015). `beta` 0 is
    /// [`Tensor::l1_loss`].
    ///
    /// # Errors
    /// When `beta` is negative or the shapes do not broadcast.
    #[track_caller]
    pub fn smooth_l1_loss(
        &self,
        target: &Tensor,
        beta: f64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        if beta.is_nan() || beta < 0.0 {
            return Err(Error::argument("smooth_l1_loss", "a beta >= 0", beta));
        }
        if beta == 0.0 {
            return self.l1_loss(target, reduction);
        }
        elementwise((self, target), "smooth_l1_loss", &[beta], reduction, || {
            let (d, size) = (difference(), difference().unary(Unary::Abs));
            let inner = &c(0.5 / beta) * &d.unary(Unary::Square);
            size.lt(&c(beta)).select(&inner, &(&size - &c(0.5 * beta)))
        })
    }

    /// Quadratic up to `delta`, linear with slope `delta` above (Huber 1964).
    ///
    /// # Errors
    /// When `delta` is not positive or the shapes do not broadcast.
    #[track_caller]
    pub fn huber_loss(&self, target: &Tensor, delta: f64, reduction: Reduction) -> Result<Tensor> {
        if delta.is_nan() || delta <= 0.0 {
            return Err(Error::argument("huber_loss", "a delta > 0", delta));
        }
        elementwise((self, target), "huber_loss", &[delta], reduction, || {
            let (d, size) = (difference(), difference().unary(Unary::Abs));
            let inner = &c(0.5) * &d.unary(Unary::Square);
            let outer = &c(delta) * &(&size - &c(0.5 * delta));
            size.le(&c(delta)).select(&inner, &outer)
        })
    }

    /// -(t·ln x + (1 - t)·ln(1 - x)) for probabilities x in [0, 1], times `weight` (broadcast).
    /// Prefer [`Tensor::binary_cross_entropy_with_logits`]: it is exact where x rounds to 0 or 1.
    ///
    /// # Errors
    /// When the shapes do not fit.
    #[track_caller]
    pub fn binary_cross_entropy(
        &self,
        target: &Tensor,
        weight: Option<&Tensor>,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let input = as_float(self)?;
        if input.shape() != target.shape() {
            return Err(Error::shape(
                "binary_cross_entropy",
                format!("a target of the input's shape {}", input.shape()),
                target.shape(),
            ));
        }
        let target = target.to_dtype(input.dtype())?;
        let losses = apply1(&handle(BinaryCrossEntropy), &[&input, &target])?;
        reduction.apply(&scaled(losses, weight)?)
    }

    /// Binary cross-entropy of sigmoid(x), without forming the sigmoid: with
    /// l = 1 + (pos_weight - 1)·t it is (1 - t)·x + l·ln(1 + exp(-x)), times `weight`. Both weights
    /// broadcast.
    ///
    /// # Errors
    /// When the shapes do not fit.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::loss::Reduction};
    /// let x = Tensor::from_vec(vec![0.0f64, 1000.0], [2])?;
    /// let t = Tensor::from_vec(vec![1.0f64, 1.0], [2])?;
    /// let loss = x.binary_cross_entropy_with_logits(&t, None, None, Reduction::Sum)?;
    /// assert!((loss.item::<f64>()? - 2f64.ln()).abs() < 1e-15);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn binary_cross_entropy_with_logits(
        &self,
        target: &Tensor,
        weight: Option<&Tensor>,
        pos_weight: Option<&Tensor>,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const OP: &str = "binary_cross_entropy_with_logits";
        static PLAIN: LazyLock<OpRef> = LazyLock::new(|| {
            let expr = &(&(&c(1.0) - &x(1)) * &x(0)) + &(-&x(0)).unary(Unary::Softplus);
            OpRef::always(Pointwise::new(OP, 2, OutputType::Like(0), expr))
        });
        static WEIGHTED: LazyLock<OpRef> = LazyLock::new(|| {
            let factor = &c(1.0) + &(&(&x(2) - &c(1.0)) * &x(1));
            let tail = &factor * &(-&x(0)).unary(Unary::Softplus);
            let expr = &(&(&c(1.0) - &x(1)) * &x(0)) + &tail;
            OpRef::always(Pointwise::new(OP, 3, OutputType::Like(0), expr))
        });
        let input = as_float(self)?;
        if input.shape() != target.shape() {
            return Err(Error::shape(
                OP,
                format!("a target of the input's shape {}", input.shape()),
                target.shape(),
            ));
        }
        let target = target.to_dtype(input.dtype())?;
        let losses = match pos_weight {
            Some(p) => {
                let p = p.to_dtype(input.dtype())?.broadcast_to(input.shape())?;
                apply1(&WEIGHTED, &[&input, &target, &p])?
            }
            None => apply1(&PLAIN, &[&input, &target])?,
        };
        reduction.apply(&scaled(losses, weight)?)
    }

    /// Kullback-Leibler divergence t·(ln t - x) of log-probabilities x from probabilities t, or
    /// exp(t)·(t - x) with `log_target`. ([`Reduction::BatchMean`] is the divergence proper.)
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    #[track_caller]
    pub fn kl_div(
        &self,
        target: &Tensor,
        log_target: bool,
        reduction: Reduction,
    ) -> Result<Tensor> {
        if log_target {
            return elementwise((self, target), "kl_div_log_target", &[], reduction, || {
                &x(1).unary(Unary::Exp) * &(&x(1) - &x(0))
            });
        }
        elementwise((self, target), "kl_div", &[], reduction, || {
            // 0·ln 0 = 0, by its limit.
            let entropy = x(1).equals(&c(0.0)).select(&c(0.0), &(&x(1) * &log(&x(1))));
            &entropy - &(&x(1) * &x(0))
        })
    }

    /// Poisson negative log-likelihood: exp(x) - t·x with `log_input`, else x - t·ln(x + eps);
    /// `full` adds Stirling's t·ln t - t + ln(2πt)/2 where t > 1.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    #[track_caller]
    pub fn poisson_nll_loss(
        &self,
        target: &Tensor,
        log_input: bool,
        full: bool,
        eps: f64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let parameters = [f64::from(log_input), f64::from(full), eps];
        elementwise(
            (self, target),
            "poisson_nll_loss",
            &parameters,
            reduction,
            || {
                let loss = if log_input {
                    &x(0).unary(Unary::Exp) - &(&x(1) * &x(0))
                } else {
                    &x(0) - &(&x(1) * &log(&(&x(0) + &c(eps))))
                };
                if !full {
                    return loss;
                }
                let half_log = &c(0.5) * &log(&(&c(2.0 * PI) * &x(1)));
                let stirling = &(&(&x(1) * &log(&x(1))) - &x(1)) + &half_log;
                &loss + &c(1.0).lt(&x(1)).select(&stirling, &c(0.0))
            },
        )
    }

    /// Gaussian negative log-likelihood with predicted variances:
    /// (ln v + (x - t)²/v)/2, and ln(2π)/2 more with `full`, where v = max(variance, eps). As in
    /// PyTorch the cut at `eps` does not stop the variance's gradient. The variance broadcasts, or
    /// has one entry per last dimension.
    ///
    /// # Errors
    /// When the shapes do not fit or `eps` is not positive.
    #[track_caller]
    pub fn gaussian_nll_loss(
        &self,
        target: &Tensor,
        variance: &Tensor,
        full: bool,
        eps: f64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const OP: &str = "gaussian_nll_loss";
        if eps.is_nan() || eps <= 0.0 {
            return Err(Error::argument(OP, "an eps > 0", eps));
        }
        let (input, target) = matched(self, target, OP)?;
        let mut v = variance.to_dtype(input.dtype())?;
        if v.shape() != input.shape() && *v.dims() == input.dims()[..input.rank().max(1) - 1] {
            v = v.unsqueeze(-1)?;
        }
        let v = v.broadcast_to(input.shape())?;
        let fixed = v.detach();
        let v = v.add(&fixed.maximum_scalar(eps)?.sub(&fixed)?)?;
        let constant = if full { 0.5 * (2.0 * PI).ln() } else { 0.0 };
        let op = Pointwise::cached(OP, &[constant], || {
            let square = &difference().unary(Unary::Square) / &x(2);
            let expr = &(&c(0.5) * &(&log(&x(2)) + &square)) + &c(constant);
            Pointwise::new(OP, 3, OutputType::Like(0), expr)
        });
        reduction.apply(&apply1(&op, &[&input, &target, &v])?)
    }

    /// x where the target is 1, max(0, margin - x) where it is -1; their sum elsewhere.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    #[track_caller]
    pub fn hinge_embedding_loss(
        &self,
        target: &Tensor,
        margin: f64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let name = "hinge_embedding_loss";
        elementwise((self, target), name, &[margin], reduction, || {
            let hinge = clamped(&(&c(margin) - &x(0)));
            let far = x(1).equals(&c(1.0)).select(&c(0.0), &hinge);
            let near = x(1).equals(&c(-1.0)).select(&c(0.0), &x(0));
            &far + &near
        })
    }

    /// max(0, -t·(x₁ - x₂) + margin): wants x₁ above x₂ where t is 1, below where it is -1.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    #[track_caller]
    pub fn margin_ranking_loss(
        &self,
        other: &Tensor,
        target: &Tensor,
        margin: f64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let name = "margin_ranking_loss";
        let (a, b) = matched(self, other, name)?;
        elementwise((&a.sub(&b)?, target), name, &[margin], reduction, || {
            clamped(&(&c(margin) - &(&x(1) * &x(0))))
        })
    }

    /// 1 - cos(x₁, x₂) where the target is 1, max(0, cos(x₁, x₂) - margin) where it is -1; the
    /// cosine is taken over the last dimension of `[N, D]` (or `[D]`), targets are `[N]` (or `[]`).
    ///
    /// # Errors
    /// When the shapes do not fit.
    #[track_caller]
    pub fn cosine_embedding_loss(
        &self,
        other: &Tensor,
        target: &Tensor,
        margin: f64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let name = "cosine_embedding_loss";
        let (a, b) = matched(self, other, name)?;
        if !(1..=2).contains(&a.rank()) || target.rank() + 1 != a.rank() {
            return Err(Error::shape(
                name,
                "inputs [N, D] and targets [N], or [D] and []",
                format!("{}, {} and {}", self.shape(), other.shape(), target.shape()),
            ));
        }
        let over = |t: &Tensor| t.sum_dim(&[-1], false);
        // PyTorch's guard against zero vectors.
        let size = |t: &Tensor| over(&t.square()?)?.add_scalar(1e-12);
        let cosine = over(&a.mul(&b)?)?.div(&size(&a)?.mul(&size(&b)?)?.sqrt()?)?;
        elementwise((&cosine, target), name, &[margin], reduction, || {
            let near = x(1).equals(&c(1.0)).select(&(&c(1.0) - &x(0)), &c(0.0));
            let hinge = clamped(&(&x(0) - &c(margin)));
            let far = x(1).equals(&c(-1.0)).select(&hinge, &c(0.0));
            &near + &far
        })
    }

    /// max(0, margin + d(x, positive) - d(x, negative)) with d(a, b) = ‖a - b + eps‖ₚ over the last
    /// dimension. With `swap`, d(x, negative) is replaced by d(positive, negative) where that is
    /// smaller. (PyTorch's defaults: margin 1, p 2, eps 1e-6.)
    ///
    /// # Errors
    /// When the shapes do not broadcast or are scalars, or the margin is not positive.
    #[track_caller]
    #[allow(clippy::too_many_arguments, reason = "PyTorch's parameters")]
    pub fn triplet_margin_loss(
        &self,
        positive: &Tensor,
        negative: &Tensor,
        margin: f64,
        p: f64,
        eps: f64,
        swap: bool,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let name = "triplet_margin_loss";
        if self.rank() == 0 || margin.is_nan() || margin <= 0.0 {
            return Err(Error::argument(
                name,
                "inputs [.., D] and a margin > 0",
                format!("{} and {margin}", self.shape()),
            ));
        }
        let anchor = as_float(self)?;
        let distance = |a: &Tensor, b: &Tensor| {
            let (a, b) = matched(a, b, name)?;
            a.sub(&b)?.add_scalar(eps)?.norm(p, &[-1], false)
        };
        let near = distance(&anchor, positive)?;
        let mut far = distance(&anchor, negative)?;
        if swap {
            far = far.minimum(&distance(&as_float(positive)?, negative)?)?;
        }
        elementwise((&near, &far), name, &[margin], reduction, || {
            clamped(&(&c(margin) + &difference()))
        })
    }
}

/// `losses` times an optional weight that broadcasts to them.
#[track_caller]
fn scaled(losses: Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    match weight {
        Some(w) => losses.mul(&w.to_dtype(losses.dtype())?.broadcast_to(losses.shape())?),
        None => Ok(losses),
    }
}

/// (probability x, target t) to -(t·ln x + (1-t)·ln(1-x)) with logarithms cut at -100.
///
/// Explicit because PyTorch's slope (x - t) / max(x·(1-x), 1e-12) is not that of the cut
/// logarithm: a saturated prediction keeps a gradient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct BinaryCrossEntropy;

/// ln v, at least -100.
fn cut_log(v: &Expr) -> Expr {
    log(v).binary(Binary::Max, &c(-100.0))
}

static BCE: LazyLock<std::sync::Arc<Pointwise>> = LazyLock::new(|| {
    let one_minus = |e: &Expr| &c(1.0) - e;
    let hit = &x(1) * &cut_log(&x(0));
    let miss = &one_minus(&x(1)) * &cut_log(&one_minus(&x(0)));
    Pointwise::new(
        "binary_cross_entropy",
        2,
        OutputType::Like(0),
        -&(&hit + &miss),
    )
});

impl BinaryCrossEntropy {
    /// g · d loss / dx.
    fn towards_input(g: &Tensor, input: &Tensor, target: &Tensor) -> Result<Tensor> {
        static OP: LazyLock<OpRef> = LazyLock::new(|| {
            let (p, t) = (x(1), x(2));
            let floor = (&p * &(&c(1.0) - &p)).binary(Binary::Max, &c(1e-12));
            let expr = &x(0) * &(&(&p - &t) / &floor);
            OpRef::always(Pointwise::new(
                "binary_cross_entropy_backward",
                3,
                OutputType::Like(0),
                expr,
            ))
        });
        apply1(&OP, &[g, input, target])
    }

    /// g · d loss / dt = g · (ln(1-x) - ln x).
    fn towards_target(g: &Tensor, input: &Tensor) -> Result<Tensor> {
        static OP: LazyLock<OpRef> = LazyLock::new(|| {
            let expr = &x(0) * &(&cut_log(&(&c(1.0) - &x(1))) - &cut_log(&x(1)));
            OpRef::always(Pointwise::new(
                "binary_cross_entropy_backward",
                2,
                OutputType::Like(0),
                expr,
            ))
        });
        apply1(&OP, &[g, input])
    }
}

impl Op for BinaryCrossEntropy {
    fn name(&self) -> &'static str {
        "binary_cross_entropy"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        BCE.infer(inputs)
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        BCE.eval(inputs, outputs)
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Explicit for BinaryCrossEntropy {
    fn reads(&self, needs: &[bool]) -> Reads {
        if needs[0] {
            Reads::new(&[0, 1], &[])
        } else {
            Reads::new(&[0], &[])
        }
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        if sink.needs(0) {
            sink.add(0, Self::towards_input(g, cx.input(0)?, cx.input(1)?)?)?;
        }
        if sink.needs(1) {
            sink.add(1, Self::towards_target(g, cx.input(0)?)?)?;
        }
        Ok(())
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let parts = [
            cx.tangents[0]
                .as_ref()
                .map(|t| Self::towards_input(t, cx.inputs[0], cx.inputs[1])),
            cx.tangents[1]
                .as_ref()
                .map(|t| Self::towards_target(t, cx.inputs[0])),
        ];
        let mut sum: Option<Tensor> = None;
        for part in parts.into_iter().flatten() {
            let part = part?;
            sum = Some(match sum {
                Some(s) => s.add(&part)?,
                None => part,
            });
        }
        Ok(one(sum))
    }
}

/// Two tensors of shapes that broadcast, never empty (the mean of nothing is NaN).
fn two(g: &mut Gen, a: (f64, f64), b: (f64, f64)) -> Vec<Tensor> {
    let (mut sa, mut sb) = g.broadcast_pair();
    for shape in [&mut sa, &mut sb] {
        shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
    }
    vec![g.tensor(sa, a.0, a.1), g.tensor(sb, b.0, b.1)]
}

/// Two tensors of one shape.
fn alike(g: &mut Gen, a: (f64, f64), b: (f64, f64)) -> Vec<Tensor> {
    let mut shape = g.shape(0..=3);
    shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
    vec![g.tensor(shape.clone(), a.0, a.1), g.tensor(shape, b.0, b.1)]
}

/// An input in [low, high) that avoids `points`, and targets of 1 and -1 (constants).
fn signed(g: &mut Gen, low: f64, high: f64, points: &[f64]) -> (Tensor, Tensor) {
    let mut shape = g.shape(0..=3);
    shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
    let input = g.tensor_avoiding(shape.clone(), low, high, points, 0.05);
    let signs = (0..shape.numel()).map(|_| g.pick(&[1i64, -1])).collect();
    let target = Tensor::from(Array::from_vec::<i64>(signs, shape).expect("counted"));
    (input, target)
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "mse_loss",
        kind: "pointwise",
        sample: |g| {
            let (inputs, red) = (two(g, (-2.0, 2.0), (-2.0, 2.0)), g.pick(&REDUCTIONS));
            Ok(Sample::one(inputs, move |t| t[0].mse_loss(&t[1], red)))
        },
    },
    Entry {
        name: "l1_loss",
        kind: "pointwise",
        sample: |g| {
            let (inputs, red) = (two(g, (-2.0, 0.0), (0.1, 2.0)), g.pick(&REDUCTIONS));
            Ok(Sample::one(inputs, move |t| t[0].l1_loss(&t[1], red)))
        },
    },
    Entry {
        name: "smooth_l1_loss",
        kind: "pointwise",
        sample: |g| {
            // Differences in (-0.9, 0.9) or above 1.1: never at the kinks of the second order.
            let low = g.pick(&[0.0, -3.0]);
            let inputs = two(g, (low, low + 0.9), (0.0, 0.9));
            let (beta, red) = (g.pick(&[1.0, 1.0, 0.0]), g.pick(&REDUCTIONS));
            let beta = if low == 0.0 { 1.0 } else { beta };
            Ok(Sample::one(inputs, move |t| {
                t[0].smooth_l1_loss(&t[1], beta, red)
            }))
        },
    },
    Entry {
        name: "huber_loss",
        kind: "pointwise",
        sample: |g| {
            let low = g.pick(&[0.0, -3.0]);
            let inputs = two(g, (low, low + 0.9), (0.0, 0.9));
            let red = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                t[0].huber_loss(&t[1], 1.0, red)
            }))
        },
    },
    Entry {
        name: "binary_cross_entropy",
        kind: "explicit",
        sample: |g| {
            let mut inputs = alike(g, (0.1, 0.9), (0.0, 1.0));
            if g.once_in(2) {
                let shape = inputs[0].shape().clone();
                inputs.push(g.tensor(shape, 0.5, 2.0));
            }
            let red = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                t[0].binary_cross_entropy(&t[1], t.get(2), red)
            }))
        },
    },
    Entry {
        name: "binary_cross_entropy_with_logits",
        kind: "pointwise",
        sample: |g| {
            let mut inputs = alike(g, (-3.0, 3.0), (0.0, 1.0));
            let last = inputs[0].dims().last().copied().unwrap_or(1);
            for _ in 0..g.range(0, 3) {
                inputs.push(if inputs[0].rank() == 0 {
                    g.tensor([], 0.5, 2.0)
                } else {
                    g.tensor([last], 0.5, 2.0)
                });
            }
            let red = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                t[0].binary_cross_entropy_with_logits(&t[1], t.get(2), t.get(3), red)
            }))
        },
    },
    Entry {
        name: "kl_div",
        kind: "pointwise",
        sample: |g| {
            let log_target = g.once_in(2);
            let range = if log_target { (-2.0, 0.0) } else { (0.1, 1.0) };
            let inputs = two(g, (-2.0, 0.0), range);
            let red = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                t[0].kl_div(&t[1], log_target, red)
            }))
        },
    },
    Entry {
        name: "poisson_nll_loss",
        kind: "pointwise",
        sample: |g| {
            let (log_input, full) = (g.once_in(2), g.once_in(2));
            let target = if g.once_in(2) { (0.5, 0.9) } else { (1.1, 3.0) };
            let inputs = two(g, (0.5, 2.0), target);
            let red = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                t[0].poisson_nll_loss(&t[1], log_input, full, 1e-3, red)
            }))
        },
    },
    Entry {
        name: "gaussian_nll_loss",
        kind: "pointwise",
        sample: |g| {
            let mut inputs = alike(g, (-2.0, 2.0), (-2.0, 2.0));
            let mut shape = inputs[0].shape().clone();
            if shape.rank() > 0 && g.once_in(3) {
                shape.remove(shape.rank() - 1);
            }
            inputs.push(g.tensor(shape, 0.5, 2.0));
            let (full, red) = (g.once_in(2), g.pick(&REDUCTIONS));
            Ok(Sample::one(inputs, move |t| {
                t[0].gaussian_nll_loss(&t[1], &t[2], full, 1e-6, red)
            }))
        },
    },
    Entry {
        name: "hinge_embedding_loss",
        kind: "pointwise",
        sample: |g| {
            let (input, target) = signed(g, -2.0, 2.0, &[1.0]);
            let red = g.pick(&REDUCTIONS);
            Ok(Sample::one(vec![input, target], move |t| {
                t[0].hinge_embedding_loss(&t[1], 1.0, red)
            }))
        },
    },
    Entry {
        name: "margin_ranking_loss",
        kind: "pointwise",
        sample: |g| {
            // x₁ - x₂ in (-1, 1) and margin 1.1: always active; or margin -1.1: never.
            let (a, target) = signed(g, 0.0, 1.0, &[]);
            let b = g.tensor(a.shape(), 0.0, 1.0);
            let (margin, red) = (g.pick(&[1.1, 1.1, -1.1]), g.pick(&REDUCTIONS));
            Ok(Sample::one(vec![a, b, target], move |t| {
                t[0].margin_ranking_loss(&t[1], &t[2], margin, red)
            }))
        },
    },
    Entry {
        name: "cosine_embedding_loss",
        kind: "composed",
        sample: |g| {
            let (n, d) = (g.range(1, 4), g.range(1, 4));
            let (a, b) = (g.tensor([n, d], 0.5, 2.0), g.tensor([n, d], 0.5, 2.0));
            let signs = (0..n).map(|_| g.pick(&[1i64, -1])).collect();
            let target = Tensor::from(Array::from_vec::<i64>(signs, [n])?);
            // All cosines are above 0.4: the hinge is always active.
            let (margin, red) = (g.uniform(-0.5, 0.3), g.pick(&REDUCTIONS));
            Ok(Sample::one(vec![a, b, target], move |t| {
                t[0].cosine_embedding_loss(&t[1], &t[2], margin, red)
            }))
        },
    },
    Entry {
        name: "triplet_margin_loss",
        kind: "composed",
        sample: |g| {
            let mut shape = g.shape(0..=2);
            shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
            shape.push(g.range(1, 4));
            // Positives are near, negatives far: distances never vanish or tie, and a margin
            // above their difference keeps the hinge active.
            let inputs = vec![
                g.tensor(shape.clone(), 0.0, 0.5),
                g.tensor(shape.clone(), 1.0, 1.5),
                g.tensor(shape, 3.0, 4.0),
            ];
            let (p, swap) = (g.pick(&[2.0, 2.0, 1.0, 3.0]), g.once_in(3));
            let red = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                t[0].triplet_margin_loss(&t[1], &t[2], 20.0, p, 1e-6, swap, red)
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::from_vec(values.to_vec(), [values.len()])
            .unwrap()
            .requires_grad()
            .unwrap()
    }

    /// Values of `torch.nn.functional.binary_cross_entropy` for saturated predictions.
    #[test]
    fn saturated_probabilities_keep_pytorch_s_loss_and_gradient() {
        let p = leaf(&[0.0, 1.0, 0.0]);
        let t = Tensor::from_vec(vec![1.0f64, 0.0, 0.0], [3]).unwrap();
        let losses = p.binary_cross_entropy(&t, None, Reduction::None).unwrap();
        assert_eq!(losses.to_vec::<f64>().unwrap(), [100.0, 100.0, 0.0]);
        losses.sum().unwrap().backward().unwrap();
        assert_eq!(
            p.grad().unwrap().to_vec::<f64>().unwrap(),
            [-1e12, 1e12, 0.0]
        );
    }

    #[test]
    fn a_cut_variance_keeps_its_gradient() {
        let v = leaf(&[0.0]);
        let x = Tensor::from_vec(vec![1.0f64], [1]).unwrap();
        let t = Tensor::from_vec(vec![0.0f64], [1]).unwrap();
        let loss = x
            .gaussian_nll_loss(&t, &v, false, 0.5, Reduction::Sum)
            .unwrap();
        loss.backward().unwrap();
        // (1/v - 1/v²)/2 at v = 0.5
        assert_eq!(v.grad().unwrap().to_vec::<f64>().unwrap(), [-1.0]);
    }

    #[test]
    fn hinges_at_their_corner_pass_the_gradient_as_clamp_min_does() {
        let a = leaf(&[1.0]);
        let t = Tensor::from_vec(vec![-1i64], [1]).unwrap();
        let loss = a.hinge_embedding_loss(&t, 1.0, Reduction::Sum).unwrap();
        loss.backward().unwrap();
        assert_eq!(a.grad().unwrap().to_vec::<f64>().unwrap(), [-1.0]);
    }

    #[test]
    fn kl_div_of_an_impossible_outcome_is_0() {
        let a = leaf(&[-1.0]);
        let t = Tensor::from_vec(vec![0.0f64], [1]).unwrap();
        let loss = a.kl_div(&t, false, Reduction::BatchMean).unwrap();
        assert_eq!(loss.item::<f64>().unwrap(), 0.0);
    }

    #[test]
    fn misfits_are_errors() {
        let a = Tensor::zeros([2, 3], DType::F32);
        let b = Tensor::zeros([4], DType::F32);
        assert!(a.mse_loss(&b, Reduction::Mean).is_err());
        assert!(a.smooth_l1_loss(&a, -1.0, Reduction::Mean).is_err());
        assert!(a.huber_loss(&a, 0.0, Reduction::Mean).is_err());
        assert!(a.binary_cross_entropy(&b, None, Reduction::Mean).is_err());
        assert!(
            a.cosine_embedding_loss(&a, &a, 0.0, Reduction::Mean)
                .is_err()
        );
        assert!(
            a.triplet_margin_loss(&a, &a, 0.0, 2.0, 1e-6, false, Reduction::Sum)
                .is_err()
        );
        let scalar = Tensor::scalar(1.0f32);
        assert!(scalar.kl_div(&scalar, false, Reduction::BatchMean).is_err());
    }
}
