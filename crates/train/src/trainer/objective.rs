//! What training minimises: a summed loss over the targets of a batch, with metrics beside it.
//!
//! An [`Objective`] returns sums, never means: the loop divides by the targets of a whole optimizer
//! step (or of a whole evaluation), so that batches of different sizes and accumulated
//! micro-batches weigh exactly what they should. [`CrossEntropy`], [`MeanSquaredError`] and
//! [`BinaryCrossEntropy`] serve models whose output is a prediction; a closure serves everything
//! else. Neighbours: `update.rs` and `evaluate.rs` call them.

use entrenar_base::{Error, Result};
use entrenar_core::ops::cross_entropy;
use entrenar_core::ops::loss::Reduction;
use entrenar_core::{DType, Tensor, autocast};
use entrenar_nn::{Ctx, Module};

use crate::data::Batch;

/// The numbers of one batch, summed over its targets.
pub struct Measure {
    /// The sum of the losses, rank 0, attached to the graph.
    pub loss: Tensor,
    /// Sums of further metrics by name, such as the number of right answers as `accuracy`; they are
    /// reported divided by the number of targets.
    pub sums: Vec<(&'static str, f64)>,
}

impl From<Tensor> for Measure {
    fn from(loss: Tensor) -> Self {
        Self {
            loss,
            sums: Vec::new(),
        }
    }
}

/// What a model is trained for.
///
/// Closures `Fn(&M, &Batch, &mut Ctx) -> Result<Measure>` are objectives.
///
/// # Examples
///
/// ```
/// use entrenar_nn::{Ctx, Linear, Module};
/// use entrenar_train::data::Batch;
/// use entrenar_train::trainer::{Measure, Objective};
///
/// // The absolute error, summed over the batch.
/// let objective = |model: &Linear, batch: &Batch, cx: &mut Ctx| {
///     let predicted = model.forward(&batch.inputs.clone().into(), cx)?.squeeze(-1)?;
///     Ok(Measure::from(predicted.sub(&batch.targets.clone().into())?.abs()?.sum()?))
/// };
/// fn takes(_: impl Objective<Linear>) {}
/// takes(objective);
/// ```
pub trait Objective<M: ?Sized>: Send {
    /// The sums for one batch.
    ///
    /// # Errors
    ///
    /// What the model or the loss reports.
    fn measure(&self, model: &M, batch: &Batch, cx: &mut Ctx) -> Result<Measure>;

    /// By how many targets the sums of this batch are to be divided.
    fn count(&self, batch: &Batch) -> usize {
        batch.target_count()
    }

    /// Metrics that follow from a mean loss, such as perplexity; for evaluations.
    fn derived(&self, mean_loss: f64) -> Vec<(&'static str, f64)> {
        let _ = mean_loss;
        Vec::new()
    }
}

/// An objective whose passes run in mixed precision: products in bf16, the rest in f32.
pub(super) struct MixedPrecision<'a, M: ?Sized>(pub Box<dyn Objective<M> + 'a>);

impl<M: ?Sized> Objective<M> for MixedPrecision<'_, M> {
    fn measure(&self, model: &M, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        autocast(true, || self.0.measure(model, batch, cx))
    }

    fn count(&self, batch: &Batch) -> usize {
        self.0.count(batch)
    }

    fn derived(&self, mean_loss: f64) -> Vec<(&'static str, f64)> {
        self.0.derived(mean_loss)
    }
}

impl<M: ?Sized, F> Objective<M> for F
where
    F: Fn(&M, &Batch, &mut Ctx) -> Result<Measure> + Send,
{
    fn measure(&self, model: &M, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        self(model, batch, cx)
    }
}

/// Softmax cross-entropy of the model's logits, `[rows, classes]` or `[rows, time, classes]`, with
/// whole-number targets; metric `accuracy`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropy;

impl<M: Module + ?Sized> Objective<M> for CrossEntropy {
    fn measure(&self, model: &M, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        let logits = model.forward(&batch.inputs.clone().into(), cx)?;
        let targets = Tensor::from(batch.targets.clone());
        let classes = logits.dims().last().copied().unwrap_or(0);
        let rows = logits.reshape([targets.numel(), classes])?;
        let right = right_answers(&rows, &targets)?;
        let loss = rows.cross_entropy(
            &targets.reshape([targets.numel()])?,
            &cross_entropy::CrossEntropy {
                reduction: Reduction::Sum,
                ..Default::default()
            },
        )?;
        Ok(Measure {
            loss,
            sums: vec![("accuracy", right as f64)],
        })
    }
}

/// How often the greatest of a row's `logits`, `[rows, classes]`, is at the target; the first of
/// equals counts, as in `argmax`.
pub(super) fn right_answers(logits: &Tensor, targets: &Tensor) -> Result<usize> {
    let classes = logits.dims().last().copied().unwrap_or(0);
    let values = logits.detach().to_dtype(DType::F32)?.to_vec::<f32>()?;
    let targets = targets.to_vec::<i64>()?;
    if classes == 0 || values.len() != targets.len() * classes {
        return Err(Error::shape(
            "accuracy",
            "a row of logits for each target",
            format!("{} logits and {} targets", logits.shape(), targets.len()),
        ));
    }
    let right = values
        .chunks_exact(classes)
        .zip(&targets)
        .filter(|(row, target)| greatest(row) as i64 == **target);
    Ok(right.count())
}

/// The position of the greatest number; the first of equals. NaN is never it.
pub(super) fn greatest(row: &[f32]) -> usize {
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        if *value > row[best] || row[best].is_nan() {
            best = at;
        }
    }
    best
}

/// The model's output minus the target, squared. Outputs `[rows, 1]` fit targets `[rows]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeanSquaredError;

impl<M: Module + ?Sized> Objective<M> for MeanSquaredError {
    fn measure(&self, model: &M, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        let (predicted, targets) = prediction(model, batch, cx)?;
        let error = predicted.detach().sub(&targets)?.abs()?.sum()?;
        Ok(Measure {
            sums: vec![("mae", value_of(&error)?)],
            loss: predicted.mse_loss(&targets, Reduction::Sum)?,
        })
    }
}

/// Cross-entropy of a yes-or-no question: the model's output is a logit, the target 0 or 1; metric
/// `accuracy`. Outputs `[rows, 1]` fit targets `[rows]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct BinaryCrossEntropy;

impl<M: Module + ?Sized> Objective<M> for BinaryCrossEntropy {
    fn measure(&self, model: &M, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        let (logits, targets) = prediction(model, batch, cx)?;
        let says = logits.detach().to_dtype(DType::F32)?.to_vec::<f32>()?;
        let is = targets.to_vec::<f32>()?;
        let right = says
            .iter()
            .zip(&is)
            .filter(|(says, is)| (**says > 0.0) == (**is > 0.5));
        Ok(Measure {
            sums: vec![("accuracy", right.count() as f64)],
            loss: logits.binary_cross_entropy_with_logits(&targets, None, None, Reduction::Sum)?,
        })
    }
}

/// The model's output in the shape of the targets, and the targets.
fn prediction<M: Module + ?Sized>(
    model: &M,
    batch: &Batch,
    cx: &mut Ctx,
) -> Result<(Tensor, Tensor)> {
    let output = model.forward(&batch.inputs.clone().into(), cx)?;
    let targets = Tensor::from(batch.targets.clone());
    if output.numel() != targets.numel() {
        return Err(Error::shape(
            "loss",
            format!("one output for each of the targets {}", targets.shape()),
            output.shape(),
        ));
    }
    Ok((output.reshape(targets.shape().clone())?, targets))
}

/// The number in a tensor of one element, whatever its float type.
pub(super) fn value_of(tensor: &Tensor) -> Result<f64> {
    match tensor.array().to_f64_vec().as_slice() {
        [value] => Ok(*value),
        _ => Err(Error::shape("loss", "a single number", tensor.shape())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_in_bf16_are_counted_too() {
        let logits = Tensor::from_vec(vec![1.0f32, 3.0, 2.0, -1.0], [2, 2]).unwrap();
        let targets = Tensor::from_vec(vec![1i64, 1], [2]).unwrap();
        let narrow = logits.to_dtype(DType::BF16).unwrap();
        assert_eq!(right_answers(&narrow, &targets).unwrap(), 1);
    }
}
