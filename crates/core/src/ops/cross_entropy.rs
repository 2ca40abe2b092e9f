//! `cross_entropy` from logits, fused; `linear_cross_entropy`, which never holds all logits; and
//! `nll_loss` from log-probabilities.
//!
//! With p = softmax(logits of a row), y its target, w class weights (1 without) and ε the label
//! smoothing over C classes, the loss of a row is (1 - ε)·w\[y\]·(-ln p\[y\]) + ε/C·Σ_c w\[c\]·(-ln p\[c\]),
//! and 0 where y is `ignore_index`. The mean divides by the sum of w\[y\] over the rows that count
//! (their number without weights). With class probabilities t as targets the loss is
//! -Σ_c w\[c\]·t'\[c\]·ln p\[c\] with t' = (1 - ε)·t + ε/C, and the mean divides by the number of rows.
//! All as `torch.nn.functional.cross_entropy`. Kernels: `entrenar_cpu::loss`.

use smallvec::smallvec;

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::loss::{self as kernel, LinearLoss, RowWeights, Wanted};
use entrenar_cpu::product::Compute;

use crate::Tensor;
use crate::apply::{apply1, grad_enabled, handle, one};
use crate::autocast::{compute_for, is_autocast};
use crate::op::{Aval, BackwardKernel, Bits, Expand, Few, Op, Rule};
use crate::ops::activation::as_float;
use crate::ops::expansion;
use crate::ops::loss::Reduction;
use crate::ops::where_::constant;
use crate::registry::{Entry, Gen, Sample};

/// Parameters of [`Tensor::cross_entropy`].
///
/// ```
/// # use entrenar_core::ops::cross_entropy::CrossEntropy;
/// let smoothed = CrossEntropy { label_smoothing: 0.1, ..Default::default() };
/// assert_eq!(smoothed.ignore_index, -100);
/// ```
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// One weight per class, `[C]`.
    pub weight: Option<Tensor>,
    /// Rows with this target have no loss and do not count in the mean.
    pub ignore_index: i64,
    /// How much of the target's probability is spread over all classes, 0 to 1.
    pub label_smoothing: f64,
    /// How the losses of the rows are combined.
    pub reduction: Reduction,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        CrossEntropy {
            weight: None,
            ignore_index: -100,
            label_smoothing: 0.0,
            reduction: Reduction::Mean,
        }
    }
}

/// (logits `[N, C]`, targets `[N]`, weight `[C]` if any) to the losses `[N]`, and the log-sum-exp
/// of each row for the backward pass.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rows {
    ignore: i64,
    smoothing: Bits,
    weighted: bool,
}

impl Op for Rows {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let rows = inputs[0].shape[0];
        let dtype = inputs[0].dtype;
        Ok(smallvec![
            Aval::new([rows], dtype),
            Aval::new([rows], dtype.accumulator())
        ])
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let weight = self.weighted.then(|| inputs[2]);
        let (loss, lse) =
            kernel::cross_entropy(inputs[0], inputs[1], weight, self.ignore, self.smoothing.0)?;
        Ok(smallvec![loss, lse])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

/// Which class each row names, as bool `[N, C]`; nowhere true in ignored rows.
fn chosen(targets: &Tensor, classes: usize, ignore: i64) -> Result<Tensor> {
    let targets = targets.array().cast(DType::I64).to_vec::<i64>()?;
    let mut mask = vec![false; targets.len() * classes];
    for (row, &t) in targets.iter().enumerate() {
        if t != ignore && (0..classes as i64).contains(&t) {
            mask[row * classes + t as usize] = true;
        }
    }
    Tensor::from_vec(mask, [targets.len(), classes])
}

/// `t` where `mask` is true and exactly 0 elsewhere, even for an infinite `t`.
fn only(mask: &Tensor, t: &Tensor) -> Result<Tensor> {
    Tensor::where_(mask, t, &constant(t.shape(), 0.0, t.dtype())?)
}

impl Expand for Rows {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let (logits, targets) = (inputs[0], inputs[1]);
        let wide = logits.dtype().accumulator();
        let classes = logits.dims()[1];
        let minus_log_p = logits.to_dtype(wide)?.log_softmax(1)?.neg()?;
        let weighted = match inputs.get(2) {
            Some(w) => minus_log_p.mul(&w.to_dtype(wide)?)?,
            None => minus_log_p,
        };
        let mask = chosen(targets, classes, self.ignore)?;
        let mut loss = only(&mask, &weighted)?.sum_dim(&[1], false)?;
        if self.smoothing.0 != 0.0 {
            let counts = targets.eq_scalar(self.ignore as f64)?.logical_not()?;
            let all = only(&counts, &weighted.sum_dim(&[1], false)?)?;
            loss = loss
                .mul_scalar(1.0 - self.smoothing.0)?
                .add(&all.mul_scalar(self.smoothing.0 / classes as f64)?)?;
        }
        Ok(one(loss.to_dtype(logits.dtype())?))
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for Rows {
    fn reads_output(&self, output: usize) -> bool {
        output == 1
    }
    fn eval_backward(
        &self,
        inputs: &[&Array],
        outputs: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let (g, lse) = both(self.name(), cotangents[0], outputs[1])?;
        if self.weighted && needs[2] {
            return expansion::gradients(self, inputs, &[g], needs);
        }
        let weight = self.weighted.then(|| inputs[2]);
        let gradient = kernel::cross_entropy_backward(
            inputs[0],
            inputs[1],
            lse,
            weight,
            self.ignore,
            self.smoothing.0,
            g,
        )?;
        let mut gradients = smallvec![None; inputs.len()];
        gradients[0] = Some(gradient);
        Ok(gradients)
    }
}

/// The cotangent and the saved statistics, which backward kernels always get.
fn both<'a>(
    op: &str,
    cotangent: Option<&'a Array>,
    saved: Option<&'a Array>,
) -> Result<(&'a Array, &'a Array)> {
    cotangent
        .zip(saved)
        .ok_or_else(|| Error::autodiff(op, "backward without a cotangent or its statistics"))
}

/// (x `[N, D]`, weight `[C, D]`, targets `[N]`) to the losses `[N]` in f32 (f64 for f64), and the
/// gradients of their sum or mean that are foreseen.
///
/// Gradients are made while the logits are there; a backward pass that brings the foreseen
/// cotangent takes them as they are, a multiple of it scales them, any other makes them anew.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LinearRows {
    ignore: i64,
    /// What products run in.
    compute: Compute,
    /// Whose gradients are foreseen: x and the weight.
    foreseen: [bool; 2],
    /// Whether they are those of the mean; otherwise those of the sum.
    mean: bool,
}

impl LinearRows {
    /// The output that holds the gradient of input `i`, if it is foreseen.
    fn place(&self, i: usize) -> Option<usize> {
        self.foreseen[i].then_some(1 + usize::from(i == 1 && self.foreseen[0]))
    }

    fn run(&self, inputs: &[&Array], wanted: Option<&Wanted<'_>>) -> Result<LinearLoss> {
        let [x, w, targets] = [inputs[0], inputs[1], inputs[2]];
        kernel::linear_cross_entropy(x, w, targets, self.ignore, self.compute, wanted)
    }

    /// What the cotangents `[N]` of the rows that count are, as a multiple of the foreseen ones, if
    /// they are one.
    fn multiple(&self, cotangent: &Array, targets: &Array) -> Result<Option<f64>> {
        let targets = targets.cast(DType::I64).to_vec::<i64>()?;
        let rows = cotangent.to_f64_vec().into_iter().zip(&targets);
        let mut rows = rows.filter(|(_, t)| **t != self.ignore).map(|(g, _)| g);
        let Some(first) = rows.next() else {
            return Ok(None);
        };
        let mut count = 1;
        for g in rows {
            if g != first {
                return Ok(None);
            }
            count += 1;
        }
        let unit = match (self.mean, cotangent.dtype()) {
            (false, _) => 1.0,
            (true, DType::F64) => 1.0 / f64::from(count),
            (true, _) => f64::from(1.0 / count as f32),
        };
        Ok(Some(first / unit))
    }
}

impl Op for LinearRows {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let rows = Aval::new([inputs[0].shape[0]], inputs[0].dtype.accumulator());
        let mut all = one(rows);
        all.extend(
            (0..2)
                .filter(|&i| self.foreseen[i])
                .map(|i| inputs[i].clone()),
        );
        Ok(all)
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let weights = if self.mean {
            RowWeights::Mean
        } else {
            RowWeights::Sum
        };
        let found = self.run(
            inputs,
            Some(&Wanted {
                needs: self.foreseen,
                weights,
            }),
        )?;
        let mut all = one(found.loss);
        all.extend([found.dx, found.dw].into_iter().flatten());
        Ok(all)
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Expand for LinearRows {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let wide = inputs[0].dtype().accumulator();
        let operand = |t: &Tensor| match self.compute {
            Compute::Bf16 => t.to_dtype(DType::BF16)?.to_dtype(wide),
            Compute::F32 => t.to_dtype(wide),
        };
        let (x, w) = (operand(inputs[0])?, operand(inputs[1])?);
        let rows = Rows {
            ignore: self.ignore,
            smoothing: Bits(0.0),
            weighted: false,
        };
        rows.expand(&[&x.matmul(&w.t()?)?, inputs[2]])
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for LinearRows {
    fn reads_output(&self, output: usize) -> bool {
        output > 0
    }
    fn eval_backward(
        &self,
        inputs: &[&Array],
        outputs: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let g = cotangents[0]
            .ok_or_else(|| Error::autodiff(self.name(), "backward without a cotangent"))?;
        let saved = |i: usize| {
            self.place(i)
                .and_then(|j| outputs.get(j).copied().flatten())
        };
        let kept = [saved(0), saved(1)];
        let all = (0..2).all(|i| !needs[i] || kept[i].is_some());
        if all && let Some(factor) = self.multiple(g, inputs[2])? {
            let scaled = |i: usize| -> Result<Option<Array>> {
                match kept[i].filter(|_| needs[i]) {
                    Some(kept) if factor != 1.0 => {
                        let scaled = Tensor::from(kept.clone()).mul_scalar(factor)?;
                        Ok(Some(scaled.array().clone()))
                    }
                    kept => Ok(kept.cloned()),
                }
            };
            return Ok(smallvec![scaled(0)?, scaled(1)?, None]);
        }
        let found = self.run(
            inputs,
            Some(&Wanted {
                needs: [needs[0], needs[1]],
                weights: RowWeights::Each(g),
            }),
        )?;
        Ok(smallvec![found.dx, found.dw, None])
    }
}

/// How many targets are no `ignore`: a scalar in `dtype`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Counted {
    ignore: i64,
    dtype: DType,
}

impl Op for Counted {
    fn name(&self) -> &'static str {
        "count_targets"
    }
    fn infer(&self, _: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(Aval::new((), self.dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let targets = inputs[0].cast(DType::I64).to_vec::<i64>()?;
        let count = targets.iter().filter(|&&t| t != self.ignore).count();
        Ok(one(Array::full_as((), count as f64, self.dtype)))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Zero
    }
}

/// How often each class `0..classes` is a target: `[classes]` in `dtype`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClassCounts {
    classes: usize,
    ignore: i64,
    dtype: DType,
}

impl Op for ClassCounts {
    fn name(&self) -> &'static str {
        "class_counts"
    }
    fn infer(&self, _: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(Aval::new([self.classes], self.dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let mut counts = vec![0.0f64; self.classes];
        for t in inputs[0].cast(DType::I64).to_vec::<i64>()? {
            if t != self.ignore && (0..self.classes as i64).contains(&t) {
                counts[t as usize] += 1.0;
            }
        }
        Ok(one(
            Array::from_vec(counts, [self.classes])?.cast(self.dtype)
        ))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Zero
    }
}

/// The sum of class weights (1 without) over the rows that count: what the mean divides by.
pub(crate) fn mean_divisor(
    targets: &Tensor,
    weight: Option<&Tensor>,
    classes: usize,
    ignore: i64,
    dtype: DType,
) -> Result<Tensor> {
    let Some(weight) = weight else {
        return apply1(&handle(Counted { ignore, dtype }), &[targets]);
    };
    let op = ClassCounts {
        classes,
        ignore,
        dtype,
    };
    let counts = apply1(&handle(op), &[targets])?;
    counts.mul(&weight.to_dtype(dtype)?)?.sum()
}

/// Sum of `rows` over `divisor` where the reduction is the mean; otherwise as [`Reduction`] says.
pub(crate) fn reduce_rows(
    rows: &Tensor,
    reduction: Reduction,
    dtype: DType,
    divisor: impl FnOnce(DType) -> Result<Tensor>,
) -> Result<Tensor> {
    match reduction {
        Reduction::Mean => {
            let wide = dtype.accumulator();
            let sum = rows.to_dtype(wide)?.sum()?;
            sum.div(&divisor(wide)?)?.to_dtype(dtype)
        }
        _ => reduction.apply(rows)?.to_dtype(dtype),
    }
}

/// `[N, C, *]` (or `[C]`) as rows `[N·*, C]`.
pub(crate) fn class_rows(x: &Tensor) -> Result<Tensor> {
    let classes = x.dims()[x.rank().min(2) - 1];
    match x.rank() {
        1 => x.reshape([1, classes]),
        2 => Ok(x.clone()),
        _ => {
            let rows = x.shape().iter().enumerate().filter(|(d, _)| *d != 1);
            let rows = rows.map(|(_, &n)| n).product::<usize>();
            x.movedim(1, -1)?.reshape([rows, classes])
        }
    }
}

/// Checks class indices against scores `[N, C, *]` or `[C]`; returns the number of classes.
#[track_caller]
pub(crate) fn check_targets(
    op: &str,
    x: &Tensor,
    targets: &Tensor,
    weight: Option<&Tensor>,
) -> Result<usize> {
    if x.rank() == 0 {
        return Err(Error::shape(op, "scores [N, C, *] or [C]", x.shape()));
    }
    let at = x.rank().min(2) - 1;
    let mut expected = x.shape().clone();
    let classes = expected.remove(at);
    if targets.dtype().is_float() || targets.dtype() == DType::Bool {
        return Err(Error::dtype(op, "integer class indices", targets.dtype()));
    }
    if *targets.shape() != expected {
        return Err(Error::shape(
            op,
            format!(
                "targets of shape {expected} for scores of shape {}",
                x.shape()
            ),
            targets.shape(),
        ));
    }
    if let Some(w) = weight
        && w.dims() != [classes]
    {
        return Err(Error::shape(
            op,
            format!("class weights of shape [{classes}]"),
            w.shape(),
        ));
    }
    Ok(classes)
}

impl Tensor {
    /// The cross-entropy of these logits, `[N, C, *]` or `[C]`, against class indices `[N, *]`
    /// (integers) or class probabilities (floats of the logits' shape).
    ///
    /// The result is a scalar, or of shape `[N, *]` with [`Reduction::None`].
    ///
    /// # Errors
    /// When shapes do not fit, a target is neither a class nor `ignore_index`, or the label
    /// smoothing is outside [0, 1].
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::cross_entropy::CrossEntropy};
    /// let logits = Tensor::from_vec(vec![0.0f64, 0.0, 5.0, 9.0], [2, 2])?;
    /// let targets = Tensor::from_vec(vec![1i64, -100], [2])?;
    /// let loss = logits.cross_entropy(&targets, &CrossEntropy::default())?;
    /// assert!((loss.item::<f64>()? - 2f64.ln()).abs() < 1e-15); // the second row is ignored
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn cross_entropy(&self, targets: &Tensor, options: &CrossEntropy) -> Result<Tensor> {
        const OP: &str = "cross_entropy";
        let x = as_float(self)?;
        // A loss is a sum: f32 inside autocast.
        let x = if is_autocast() && x.dtype() == DType::BF16 {
            x.to_dtype(DType::F32)?
        } else {
            x
        };
        let smoothing = options.label_smoothing;
        if !(0.0..=1.0).contains(&smoothing) {
            return Err(Error::argument(OP, "label smoothing in [0, 1]", smoothing));
        }
        let weight = options.weight.as_ref();
        if targets.dtype().is_float() {
            return probabilities(&x, targets, weight, smoothing, options.reduction);
        }
        let classes = check_targets(OP, &x, targets, weight)?;
        let flat = targets.reshape([targets.numel()])?;
        let op = handle(Rows {
            ignore: options.ignore_index,
            smoothing: Bits(smoothing),
            weighted: weight.is_some(),
        });
        let rows = class_rows(&x)?;
        let inputs: Vec<&Tensor> = [Some(&rows), Some(&flat), weight]
            .into_iter()
            .flatten()
            .collect();
        let losses = apply1(&op, &inputs)?.reshape(targets.shape())?;
        reduce_rows(&losses, options.reduction, x.dtype(), |wide| {
            mean_divisor(&flat, weight, classes, options.ignore_index, wide)
        })
    }

    /// [`Tensor::cross_entropy`] of `self · weightᵀ` without holding all logits at once: self
    /// `[.., D]`, weight `[C, D]` (a language model's head), integer targets `[..]`.
    ///
    /// Losses are f32 (f64 for f64) whatever the inputs.
    ///
    /// # Errors
    /// When shapes do not fit or a target is neither a class nor `ignore_index`.
    #[track_caller]
    pub fn linear_cross_entropy(
        &self,
        weight: &Tensor,
        targets: &Tensor,
        ignore_index: i64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        const OP: &str = "linear_cross_entropy";
        let x = as_float(self)?;
        let fits = weight.rank() == 2
            && x.rank() > 0
            && x.dims().last() == weight.dims().last()
            && targets.dims() == &x.dims()[..x.rank() - 1];
        if !fits || targets.dtype().is_float() || targets.dtype() == DType::Bool {
            return Err(Error::shape(
                OP,
                "an input [.., D], a weight [C, D] and integer targets [..]",
                format!("{}, {} and {:?}", x.shape(), weight.shape(), targets.aval()),
            ));
        }
        let (classes, width) = (weight.dims()[0], weight.dims()[1]);
        let rows = x.reshape([targets.numel(), width])?;
        let flat = targets.reshape([targets.numel()])?;
        let (rows, weight) = if is_autocast() && weight.dtype() == DType::F32 {
            (rows.to_dtype(DType::F32)?, weight.clone())
        } else {
            let weight = weight.to_dtype(rows.dtype())?;
            (rows, weight)
        };
        let op = LinearRows {
            ignore: ignore_index,
            compute: compute_for(rows.dtype()),
            // A gradient that is scaled later may be too small for f16 until then.
            foreseen: [&rows, &weight]
                .map(|t| grad_enabled() && t.is_tracked() && t.dtype() != DType::F16),
            mean: reduction == Reduction::Mean,
        };
        let losses = apply1(&handle(op), &[&rows, &weight, &flat])?.reshape(targets.shape())?;
        reduce_rows(&losses, reduction, losses.dtype(), |wide| {
            mean_divisor(&flat, None, classes, ignore_index, wide)
        })
    }
}

impl Tensor {
    /// The negative log-likelihood of class indices `[N, *]` under these log-probabilities,
    /// `[N, C, *]` or `[C]`: -w\[y\]·x\[y\] per row. Weights, `ignore_index` and the mean are those of
    /// [`Tensor::cross_entropy`].
    ///
    /// # Errors
    /// When shapes do not fit or a target is neither a class nor `ignore_index`.
    #[track_caller]
    pub fn nll_loss(
        &self,
        targets: &Tensor,
        weight: Option<&Tensor>,
        ignore_index: i64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        let x = as_float(self)?;
        let classes = check_targets("nll_loss", &x, targets, weight)?;
        let flat = targets.reshape([targets.numel()])?.to_dtype(DType::I64)?;
        let counts = flat.eq_scalar(ignore_index as f64)?.logical_not()?;
        // Ignored rows look up class 0, and are dropped afterwards.
        let index = only(&counts, &flat)?;
        let mut rows = class_rows(&x)?
            .gather(1, &index.unsqueeze(1)?)?
            .squeeze(1)?
            .neg()?;
        if let Some(w) = weight {
            rows = rows.mul(&w.to_dtype(x.dtype())?.gather(0, &index)?)?;
        }
        let losses = only(&counts, &rows)?.reshape(targets.shape())?;
        reduce_rows(&losses, reduction, x.dtype(), |wide| {
            mean_divisor(&flat, weight, classes, ignore_index, wide)
        })
    }
}

#[track_caller]
fn probabilities(
    x: &Tensor,
    targets: &Tensor,
    weight: Option<&Tensor>,
    smoothing: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    const OP: &str = "cross_entropy";
    if targets.shape() != x.shape() || x.rank() == 0 {
        return Err(Error::shape(
            OP,
            format!("class probabilities of the logits' shape {}", x.shape()),
            targets.shape(),
        ));
    }
    let dim = x.rank().min(2) - 1;
    let classes = x.dims()[dim];
    let wide = x.dtype().accumulator();
    let mut t = targets.to_dtype(wide)?;
    if smoothing != 0.0 {
        t = t
            .mul_scalar(1.0 - smoothing)?
            .add_scalar(smoothing / classes as f64)?;
    }
    let mut product = x.to_dtype(wide)?.log_softmax(dim as isize)?.mul(&t)?;
    if let Some(w) = weight {
        if w.dims() != [classes] {
            return Err(Error::shape(
                OP,
                format!("class weights of shape [{classes}]"),
                w.shape(),
            ));
        }
        let mut shape = vec![1; x.rank()];
        shape[dim] = classes;
        product = product.mul(&w.to_dtype(wide)?.reshape(shape)?)?;
    }
    let losses = product.sum_dim(&[dim as isize], false)?.neg()?;
    reduction.apply(&losses)?.to_dtype(x.dtype())
}

/// Scores `[N, C, *]` or `[C]`, their target shape, and the number of classes.
pub(crate) fn sample_scores(g: &mut Gen) -> (Tensor, Shape, usize) {
    let classes = g.range(1, 5);
    let mut shape = if g.once_in(6) {
        Shape::from([classes])
    } else {
        let mut shape = g.shape(1..=3);
        shape.insert(1, classes);
        shape
    };
    // The mean over nothing is NaN.
    shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
    let mut targets = shape.clone();
    targets.remove(shape.rank().min(2) - 1);
    (g.tensor(shape, -2.0, 2.0), targets, classes)
}

/// Class indices; some are `ignore`, but never all.
pub(crate) fn sample_targets(g: &mut Gen, shape: &Shape, classes: usize, ignore: i64) -> Tensor {
    let mut values: Vec<i64> = (0..shape.numel())
        .map(|_| g.range(0, classes) as i64)
        .collect();
    for v in values.iter_mut().skip(1) {
        if g.once_in(4) {
            *v = ignore;
        }
    }
    Tensor::from(Array::from_vec(values, shape.clone()).expect("counted"))
}

pub(crate) const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "cross_entropy",
        kind: "expand",
        sample: |g| {
            let (x, shape, classes) = sample_scores(g);
            let soft = g.once_in(4);
            let targets = if soft {
                g.tensor(x.shape(), 0.0, 1.0)
            } else {
                sample_targets(g, &shape, classes, -100)
            };
            let mut inputs = vec![x, targets];
            if g.once_in(2) {
                inputs.push(g.tensor([classes], 0.5, 2.0));
            }
            let label_smoothing = g.pick(&[0.0, 0.0, 0.1, 1.0]);
            let reduction = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                let options = CrossEntropy {
                    weight: t.get(2).cloned(),
                    label_smoothing,
                    reduction,
                    ..Default::default()
                };
                t[0].cross_entropy(&t[1], &options)
            }))
        },
    },
    Entry {
        name: "nll_loss",
        kind: "composed",
        sample: |g| {
            let (x, shape, classes) = sample_scores(g);
            let mut inputs = vec![x, sample_targets(g, &shape, classes, -1)];
            if g.once_in(2) {
                inputs.push(g.tensor([classes], 0.5, 2.0));
            }
            let reduction = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                t[0].nll_loss(&t[1], t.get(2), -1, reduction)
            }))
        },
    },
    Entry {
        name: "linear_cross_entropy",
        kind: "expand",
        sample: |g| {
            let mut shape = g.shape(0..=2);
            shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
            let (classes, width) = (g.range(1, 5), g.range(1, 4));
            let targets = sample_targets(g, &shape, classes, -1);
            shape.push(width);
            let inputs = vec![
                g.tensor(shape, -2.0, 2.0),
                g.tensor([classes, width], -2.0, 2.0),
                targets,
            ];
            let reduction = g.pick(&REDUCTIONS);
            Ok(Sample::one(inputs, move |t| {
                t[0].linear_cross_entropy(&t[1], &t[2], -1, reduction)
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_divides_by_the_weights_of_the_rows_that_count() {
        let x = Tensor::zeros([3, 2], DType::F64);
        let targets = Tensor::from_vec(vec![0i64, 1, -100], [3]).unwrap();
        let options = CrossEntropy {
            weight: Some(Tensor::from_vec(vec![1.0f64, 3.0], [2]).unwrap()),
            ..Default::default()
        };
        let loss = x.cross_entropy(&targets, &options).unwrap();
        // (1·ln 2 + 3·ln 2) / (1 + 3)
        assert!((loss.item::<f64>().unwrap() - 2f64.ln()).abs() < 1e-15);
        let none = Tensor::from_vec(vec![-100i64; 3], [3]).unwrap();
        let empty = x.cross_entropy(&none, &options).unwrap();
        assert!(empty.item::<f64>().unwrap().is_nan());
    }

    #[test]
    fn an_impossible_class_does_not_spoil_the_others() {
        let x = Tensor::from_vec(vec![0.0f64, f64::NEG_INFINITY, 0.0], [1, 3]).unwrap();
        let x = x.requires_grad().unwrap();
        let targets = Tensor::from_vec(vec![2i64], [1]).unwrap();
        let loss = x.cross_entropy(&targets, &CrossEntropy::default()).unwrap();
        loss.backward().unwrap();
        assert!((loss.item::<f64>().unwrap() - 2f64.ln()).abs() < 1e-15);
        assert_eq!(x.grad().unwrap().to_vec::<f64>().unwrap(), [0.5, 0.0, -0.5]);
    }

    #[test]
    fn misfits_are_errors_that_name_the_target() {
        let x = Tensor::zeros([2, 3], DType::F32);
        let options = CrossEntropy::default();
        let far = Tensor::from_vec(vec![0i64, 3], [2]).unwrap();
        let message = x.cross_entropy(&far, &options).unwrap_err().to_string();
        assert!(message.contains("3 at position [1]"), "{message}");
        let long = Tensor::from_vec(vec![0i64; 3], [3]).unwrap();
        assert!(x.cross_entropy(&long, &options).is_err());
        assert!(x.nll_loss(&long, None, -100, Reduction::Sum).is_err());
        assert!(x.nll_loss(&far, None, -100, Reduction::Sum).is_err());
        assert!(
            x.cross_entropy(&Tensor::zeros([2], DType::F32), &options)
                .is_err()
        );
        let smooth = CrossEntropy {
            label_smoothing: 1.5,
            ..Default::default()
        };
        let fine = Tensor::from_vec(vec![0i64, 1], [2]).unwrap();
        assert!(x.cross_entropy(&fine, &smooth).is_err());
    }
}
