//! Transforms of functions: vjp, jvp, linearize, Jacobians and Hessians.
//!
//! Each takes a fresh level, so they nest in any order with each other, with tapes and with the
//! ambient graph.

use std::cell::RefCell;

use entrenar_base::{DType, Error, Result};

use super::engine::gradients_at;
use super::forward::{duals, split};
use super::graph::{Edge, Leaf};
use crate::Tensor;
use crate::tensor::Level;

fn watch(level: Level, values: &[Tensor]) -> Vec<Tensor> {
    values
        .iter()
        .map(|v| {
            if v.dtype().is_float() {
                Tensor::reverse(level, v.clone(), Edge::Leaf(Leaf::new(v.aval())))
            } else {
                v.clone()
            }
        })
        .collect()
}

fn owned(values: &[&Tensor]) -> Vec<Tensor> {
    values.iter().map(|t| (*t).clone()).collect()
}

/// The value of a scalar function and its gradient with respect to every input.
///
/// Inputs that do not take part get zeros.
///
/// # Errors
/// When the result is not a scalar, or whatever `f` returns.
///
/// ```
/// use entrenar_core::{Tensor, autograd::value_and_grad};
/// let x = Tensor::from_vec(vec![1.0f64, 2.0], [2])?;
/// let (value, grads) = value_and_grad(|t| t[0].mul(&t[0])?.sum(), &[&x])?;
/// assert_eq!(value.item::<f64>()?, 5.0);
/// assert_eq!(grads[0].to_vec::<f64>()?, [2.0, 4.0]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[track_caller]
pub fn value_and_grad(
    f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    inputs: &[&Tensor],
) -> Result<(Tensor, Vec<Tensor>)> {
    let level = Level::fresh();
    let watched = watch(level, &owned(inputs));
    let out = f(&watched)?;
    if out.numel() != 1 {
        return Err(Error::autodiff(
            "value_and_grad",
            format!(
                "the function must return a scalar, and it returned shape {}",
                out.shape()
            ),
        ));
    }
    let seed = out.detach().ones_like();
    let root = (out.settled(level).clone(), seed);
    let found = gradients_at(level, &[root], &watched, false, false)?;
    Ok((out.peel(level).clone(), or_zeros(found, &watched)))
}

fn or_zeros(found: Vec<Option<Tensor>>, like: &[Tensor]) -> Vec<Tensor> {
    found
        .into_iter()
        .zip(like)
        .map(|(g, t)| g.unwrap_or_else(|| t.detach().zeros_like()))
        .collect()
}

/// A recorded function that maps output gradients back to input gradients, any number of times.
pub struct Pullback {
    level: Level,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Pullback {
    /// The product of the transposed Jacobian with `cotangents`, one per output.
    ///
    /// # Errors
    /// When a cotangent's shape or dtype differs from its output's.
    #[track_caller]
    pub fn call(&self, cotangents: &[&Tensor]) -> Result<Vec<Tensor>> {
        if cotangents.len() != self.outputs.len() {
            return Err(Error::argument(
                "vjp",
                format!("{} cotangents", self.outputs.len()),
                cotangents.len(),
            ));
        }
        let mut pairs = Vec::with_capacity(cotangents.len());
        for (out, cot) in self.outputs.iter().zip(cotangents) {
            if out.aval() != cot.aval() {
                return Err(Error::shape(
                    "vjp",
                    format!("{:?}", out.aval()),
                    format!("{:?}", cot.aval()),
                ));
            }
            pairs.push((out.clone(), (*cot).clone()));
        }
        let found = gradients_at(self.level, &pairs, &self.inputs, false, true)?;
        Ok(or_zeros(found, &self.inputs))
    }
}

/// Runs `f` once and returns its results with the map from output to input gradients.
///
/// # Errors
/// Whatever `f` returns.
pub fn vjp(
    f: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[&Tensor],
) -> Result<(Vec<Tensor>, Pullback)> {
    let level = Level::fresh();
    let inputs = watch(level, &owned(inputs));
    let outputs = f(&inputs)?;
    let values = outputs.iter().map(|t| t.peel(level).clone()).collect();
    let outputs = outputs.iter().map(|t| t.settled(level).clone()).collect();
    Ok((
        values,
        Pullback {
            level,
            inputs,
            outputs,
        },
    ))
}

/// Runs `f` with tangents: results and their directional derivatives, in one forward pass.
///
/// # Errors
/// When tangents do not match inputs, or whatever `f` returns.
///
/// ```
/// use entrenar_core::{Tensor, autograd::jvp};
/// let x = Tensor::from_vec(vec![0.0f64, 1.0], [2])?;
/// let v = Tensor::from_vec(vec![1.0f64, 0.0], [2])?;
/// let (y, dy) = jvp(|t| Ok(vec![t[0].exp()?]), &[&x], &[&v])?;
/// assert_eq!(dy[0].to_vec::<f64>()?, [1.0, 0.0]);
/// assert_eq!(y[0].to_vec::<f64>()?[0], 1.0);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[track_caller]
pub fn jvp(
    f: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[&Tensor],
    tangents: &[&Tensor],
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    if inputs.len() != tangents.len() {
        return Err(Error::argument(
            "jvp",
            format!("{} tangents", inputs.len()),
            tangents.len(),
        ));
    }
    let (level, wrapped) = duals(&owned(inputs), &owned(tangents))?;
    let results = f(&wrapped)?;
    Ok(results
        .iter()
        .map(|r| {
            let (value, tangent) = split(level, r);
            let tangent = tangent.unwrap_or_else(|| value.detach().zeros_like());
            (value, tangent)
        })
        .unzip())
}

/// A function's derivative at a point, as a linear map that can be applied both ways repeatedly
/// without running the function again.
pub struct Linearized {
    pullback: Pullback,
    /// Level at which the pullback itself was recorded as a function of the cotangents.
    transpose_level: Level,
    cotangents: Vec<Tensor>,
    gradients: RefCell<Vec<Option<Tensor>>>,
}

/// Runs `f` once; returns its results and their derivative as a [`Linearized`] map.
///
/// # Errors
/// Whatever `f` returns.
///
/// ```
/// use entrenar_core::{Tensor, autograd::linearize};
/// let x = Tensor::from_vec(vec![1.0f64, 2.0], [2])?;
/// let (_, at) = linearize(|t| Ok(vec![t[0].mul(&t[0])?]), &[&x])?;
/// let v = Tensor::from_vec(vec![1.0f64, 1.0], [2])?;
/// assert_eq!(at.jvp(&[&v])?[0].to_vec::<f64>()?, [2.0, 4.0]);
/// assert_eq!(at.vjp(&[&v])?[0].to_vec::<f64>()?, [2.0, 4.0]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn linearize(
    f: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[&Tensor],
) -> Result<(Vec<Tensor>, Linearized)> {
    let (values, pullback) = vjp(f, inputs)?;
    // The pullback is linear in its cotangents: recording it once gives the Jacobian itself as
    // the transpose of a transpose.
    let transpose_level = Level::fresh();
    let zeros: Vec<Tensor> = values.iter().map(|t| t.detach().zeros_like()).collect();
    let cotangents = watch(transpose_level, &zeros);
    let pairs: Vec<(Tensor, Tensor)> = pullback
        .outputs
        .iter()
        .cloned()
        .zip(cotangents.iter().cloned())
        .collect();
    let gradients = gradients_at(pullback.level, &pairs, &pullback.inputs, false, true)?;
    let map = Linearized {
        pullback,
        transpose_level,
        cotangents,
        gradients: RefCell::new(gradients),
    };
    Ok((values, map))
}

impl Linearized {
    /// Jacobian times `tangents`, one per input.
    ///
    /// # Errors
    /// When a tangent's shape or dtype differs from its input's.
    #[track_caller]
    pub fn jvp(&self, tangents: &[&Tensor]) -> Result<Vec<Tensor>> {
        let inputs = &self.pullback.inputs;
        if tangents.len() != inputs.len() {
            return Err(Error::argument(
                "jvp",
                format!("{} tangents", inputs.len()),
                tangents.len(),
            ));
        }
        let gradients = self.gradients.borrow();
        let mut pairs = Vec::new();
        for ((g, t), input) in gradients.iter().zip(tangents).zip(inputs) {
            if input.aval() != t.aval() {
                return Err(Error::shape(
                    "jvp",
                    format!("{:?}", input.aval()),
                    format!("{:?}", t.aval()),
                ));
            }
            if let Some(g) = g {
                pairs.push((g.clone(), (*t).clone()));
            }
        }
        let found = gradients_at(self.transpose_level, &pairs, &self.cotangents, false, true)?;
        Ok(or_zeros(found, &self.cotangents))
    }

    /// Transposed Jacobian times `cotangents`, one per output.
    ///
    /// # Errors
    /// When a cotangent's shape or dtype differs from its output's.
    #[track_caller]
    pub fn vjp(&self, cotangents: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.pullback.call(cotangents)
    }
}

fn basis(shape: &entrenar_base::Shape, dtype: DType, at: usize) -> Result<Tensor> {
    let n = shape.numel();
    let mut e = vec![0.0f64; n];
    e[at] = 1.0;
    Ok(Tensor::from(
        entrenar_base::Array::from_vec(e, shape.clone())?.cast(dtype),
    ))
}

fn joined(outer: &Tensor, inner: &Tensor) -> Vec<usize> {
    outer.dims().iter().chain(inner.dims()).copied().collect()
}

/// The Jacobian by forward mode, one pass per input element: shape `output.shape + input.shape`.
///
/// # Errors
/// Whatever `f` returns.
pub fn jacfwd(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<Tensor> {
    let mut columns = Vec::with_capacity(x.numel());
    let mut value = None;
    for i in 0..x.numel() {
        let e = basis(x.shape(), x.dtype(), i)?;
        let (y, dy) = jvp(|t| Ok(vec![f(&t[0])?]), &[x], &[&e])?;
        value = y.into_iter().next();
        columns.push(dy[0].reshape([dy[0].numel()])?);
    }
    let value = match value {
        Some(v) => v,
        None => f(x)?,
    };
    if columns.is_empty() {
        return Ok(Tensor::zeros(joined(&value, x), value.dtype()));
    }
    let refs: Vec<&Tensor> = columns.iter().collect();
    Tensor::stack(&refs, 1)?.reshape(joined(&value, x))
}

/// The Jacobian by reverse mode, one pass per output element: shape `output.shape + input.shape`.
///
/// # Errors
/// Whatever `f` returns.
pub fn jacrev(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<Tensor> {
    let (y, pullback) = vjp(|t| Ok(vec![f(&t[0])?]), &[x])?;
    let y = &y[0];
    let mut rows = Vec::with_capacity(y.numel());
    for i in 0..y.numel() {
        let e = basis(y.shape(), y.dtype(), i)?;
        let g = pullback.call(&[&e])?.remove(0);
        rows.push(g.reshape([g.numel()])?);
    }
    if rows.is_empty() {
        return Ok(Tensor::zeros(joined(y, x), x.dtype()));
    }
    let refs: Vec<&Tensor> = rows.iter().collect();
    Tensor::stack(&refs, 0)?.reshape(joined(y, x))
}

/// Which mode [`jacobian`] takes for these sizes: forward while the input is not larger than the
/// output, reverse otherwise.
pub fn jacobian_mode(inputs: usize, outputs: usize) -> &'static str {
    if inputs <= outputs {
        "forward"
    } else {
        "reverse"
    }
}

/// The Jacobian in the cheaper mode for the sizes of input and output.
///
/// # Errors
/// Whatever `f` returns.
///
/// ```
/// use entrenar_core::{Tensor, DType, autograd::jacobian};
/// let x = Tensor::from_vec(vec![1.0f64, 2.0], [2])?;
/// let j = jacobian(|t| t.mul(t), &x)?;
/// assert_eq!(j.to_vec::<f64>()?, [2.0, 0.0, 0.0, 4.0]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn jacobian(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<Tensor> {
    let outputs = f(&x.detach())?.numel();
    match jacobian_mode(x.numel(), outputs) {
        "forward" => jacfwd(f, x),
        _ => jacrev(f, x),
    }
}

/// The matrix of second derivatives of a scalar function (forward over reverse), shape
/// `x.shape + x.shape`.
///
/// # Errors
/// When `f` does not return a scalar, or whatever it returns.
pub fn hessian(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<Tensor> {
    jacfwd(|t| Ok(value_and_grad(|u| f(&u[0]), &[t])?.1.remove(0)), x)
}

/// Hessian times `v` in two passes, without forming the Hessian (forward over reverse).
///
/// # Errors
/// As [`hessian`], or when `v` does not match `x`.
#[track_caller]
pub fn hvp(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor, v: &Tensor) -> Result<Tensor> {
    let gradient = |t: &[Tensor]| Ok(vec![value_and_grad(|u| f(&u[0]), &[&t[0]])?.1.remove(0)]);
    Ok(jvp(gradient, &[x], &[v])?.1.remove(0))
}
