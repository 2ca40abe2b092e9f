//! `conv` over one to three spatial dimensions, and `conv_transpose`.
//!
//! y\[n, o, p\] = Σ_{c, t} w\[o, c, t\] · x\[n, c, p·stride + t·dilation - padding\] + b\[o\], where c runs
//! over the channels of o's group. Three multilinear ops that are each other's transposes:
//! convolution (x, w), input gradient (ȳ, w) and weight gradient (ȳ, x); hence every order. The
//! transposed convolution is the input gradient. Kernels: `entrenar_cpu::conv`.

use smallvec::smallvec;

use entrenar_base::{Array, Error, Result, Shape};
use entrenar_cpu::cast::cast;
use entrenar_cpu::conv as kernel;
use entrenar_cpu::conv::ConvGeometry;
use entrenar_cpu::product::Compute;
use entrenar_cpu::reduce::{Reduce, reduce};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::autocast::compute_for;
use crate::op::{Aval, BackwardKernel, Expand, Few, Multilinear, Op, Rule, VjpCx};
use crate::ops::activation::as_float;
use crate::ops::expansion;
use crate::registry::{Entry, Gen, Sample};

/// How a convolution moves. Each list has one entry per spatial dimension, or a single one for all
/// of them, or none for the default.
///
/// ```
/// # use entrenar_core::ops::conv::ConvOptions;
/// let halving = ConvOptions { stride: vec![2], padding: vec![(1, 1)], ..Default::default() };
/// assert_eq!(halving.groups, 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvOptions {
    /// Steps between outputs; default 1.
    pub stride: Vec<usize>,
    /// Zeros before and after; default none.
    pub padding: Vec<(usize, usize)>,
    /// Steps between the elements of the kernel; default 1.
    pub dilation: Vec<usize>,
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Default for ConvOptions {
    fn default() -> Self {
        ConvOptions {
            stride: vec![],
            padding: vec![],
            dilation: vec![],
            groups: 1,
        }
    }
}

impl ConvOptions {
    /// Padding with which a stride-1 convolution keeps its size (PyTorch's `"same"`): where it is
    /// odd, the extra zero comes after. `kernel` and `dilation` hold one entry per dimension.
    ///
    /// ```
    /// # use entrenar_core::ops::conv::ConvOptions;
    /// assert_eq!(ConvOptions::same_padding(&[3, 2], &[1, 1]), [(1, 1), (0, 1)]);
    /// ```
    pub fn same_padding(kernel: &[usize], dilation: &[usize]) -> Vec<(usize, usize)> {
        kernel
            .iter()
            .zip(dilation)
            .map(|(&k, &d)| {
                let total = d * k.saturating_sub(1);
                (total / 2, total - total / 2)
            })
            .collect()
    }

    #[track_caller]
    fn geometry(&self, op: &str, dims: usize) -> Result<ConvGeometry> {
        Ok(ConvGeometry {
            stride: spread(op, "strides", &self.stride, 1, dims)?,
            padding: spread(op, "paddings", &self.padding, (0, 0), dims)?,
            dilation: spread(op, "dilations", &self.dilation, 1, dims)?,
            groups: self.groups,
        })
    }
}

/// A list with one entry per dimension from a list with that many, one or none.
#[track_caller]
pub(crate) fn spread<T: Copy + std::fmt::Debug>(
    op: &str,
    what: &str,
    list: &[T],
    default: T,
    dims: usize,
) -> Result<Vec<T>> {
    match list {
        [] => Ok(vec![default; dims]),
        [one] => Ok(vec![*one; dims]),
        _ if list.len() == dims => Ok(list.to_vec()),
        _ => Err(Error::argument(
            op,
            format!("{what} for {dims} spatial dimensions, one for all, or none"),
            format!("{list:?}"),
        )),
    }
}

/// `[N, O, *]` of a convolution of `x` `[N, C, *]` with `w` `[O, C / groups, *]`.
#[track_caller]
fn output_shape(op: &str, x: &Shape, w: &Shape, g: &ConvGeometry) -> Result<Shape> {
    let dims = x.rank().wrapping_sub(2);
    if !(1..=3).contains(&dims)
        || w.rank() != x.rank()
        || g.stride.len() != dims
        || g.padding.len() != dims
        || g.dilation.len() != dims
    {
        return Err(Error::shape(
            op,
            "an input [N, C, *] and a weight [O, C / groups, *] with 1 to 3 spatial dimensions",
            format!("{x} and {w}"),
        ));
    }
    if g.groups == 0 || g.stride.contains(&0) || g.dilation.contains(&0) {
        return Err(Error::argument(
            op,
            "groups, strides and dilations of at least 1",
            format!("{g:?}"),
        ));
    }
    if w[1].checked_mul(g.groups) != Some(x[1]) || !w[0].is_multiple_of(g.groups) {
        return Err(Error::shape(
            op,
            format!(
                "a weight [O, C / groups, *] with O a multiple of groups = {}",
                g.groups
            ),
            format!("weight {w} for input {x}"),
        ));
    }
    let mut shape = Shape::from([x[0], w[0]]);
    for d in 0..dims {
        let (low, high) = g.padding[d];
        let size = || {
            let window = w[2 + d]
                .checked_sub(1)?
                .checked_mul(g.dilation[d])?
                .checked_add(1)?;
            let padded = x[2 + d].checked_add(low)?.checked_add(high)?;
            Some(padded.checked_sub(window)? / g.stride[d] + 1)
        };
        shape.push(size().ok_or_else(|| {
            Error::shape(
                op,
                "a kernel of at least 1 that fits inside the padded input",
                format!("kernel {w} over input {x} with {g:?}"),
            )
        })?);
    }
    Ok(shape)
}

/// (x `[N, C, *]`, w `[O, C / groups, *]`) to y `[N, O, *]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Conv {
    geometry: ConvGeometry,
    /// What products run in.
    compute: Compute,
}

/// (ȳ `[N, O, *]`, w) to x̄ of shape `x`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ConvInputGrad {
    conv: Conv,
    x: Shape,
}

/// (ȳ, x) to w̄ of shape `w`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ConvWeightGrad {
    conv: Conv,
    w: Shape,
}

impl Conv {
    fn apply(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        apply1(&handle(self.clone()), &[x, w])
    }

    /// The gradient of an input of shape `x`.
    fn input_grad(&self, x: &Shape, g: &Tensor, w: &Tensor) -> Result<Tensor> {
        let op = ConvInputGrad {
            conv: self.clone(),
            x: x.clone(),
        };
        apply1(&handle(op), &[g, w])
    }

    /// The gradient of a weight of shape `w`.
    fn weight_grad(&self, w: &Shape, g: &Tensor, x: &Tensor) -> Result<Tensor> {
        let op = ConvWeightGrad {
            conv: self.clone(),
            w: w.clone(),
        };
        apply1(&handle(op), &[g, x])
    }
}

impl Op for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (x, w) = (inputs[0], inputs[1]);
        let shape = output_shape(self.name(), &x.shape, &w.shape, &self.geometry)?;
        Ok(one(Aval::new(shape, x.dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (x, w) = (inputs[0], inputs[1]);
        let y = kernel::conv(x, w, None, &self.geometry, self.compute)?;
        Ok(one(y))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Multilinear(self)
    }
}

impl Multilinear for Conv {
    fn transpose(&self, i: usize, g: &Tensor, cx: &VjpCx<'_>) -> Result<Tensor> {
        if i == 0 {
            self.input_grad(&cx.aval(0).shape, g, cx.input(1)?)
        } else {
            self.weight_grad(&cx.aval(1).shape, g, cx.input(0)?)
        }
    }
}

impl Op for ConvInputGrad {
    fn name(&self) -> &'static str {
        "conv_input_grad"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(Aval::new(self.x.clone(), inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (g, w) = (inputs[0], inputs[1]);
        let (geometry, compute) = (&self.conv.geometry, self.conv.compute);
        let dx = kernel::conv_input_grad(g, w, &self.x, geometry, compute)?;
        Ok(one(dx))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Multilinear(self)
    }
}

impl Multilinear for ConvInputGrad {
    fn transpose(&self, i: usize, g: &Tensor, cx: &VjpCx<'_>) -> Result<Tensor> {
        if i == 0 {
            self.conv.apply(g, cx.input(1)?)
        } else {
            self.conv.weight_grad(&cx.aval(1).shape, cx.input(0)?, g)
        }
    }
}

impl Op for ConvWeightGrad {
    fn name(&self) -> &'static str {
        "conv_weight_grad"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(Aval::new(self.w.clone(), inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (g, x) = (inputs[0], inputs[1]);
        let (geometry, compute) = (&self.conv.geometry, self.conv.compute);
        let dw = kernel::conv_weight_grad(g, x, &self.w, geometry, compute)?;
        Ok(one(dw))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Multilinear(self)
    }
}

impl Multilinear for ConvWeightGrad {
    fn transpose(&self, i: usize, g: &Tensor, cx: &VjpCx<'_>) -> Result<Tensor> {
        if i == 0 {
            self.conv.apply(cx.input(1)?, g)
        } else {
            self.conv.input_grad(&cx.aval(1).shape, cx.input(0)?, g)
        }
    }
}

/// (x, w, b `[O]`) to y: a convolution whose sums start from the bias.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct BiasedConv(Conv);

impl Op for BiasedConv {
    fn name(&self) -> &'static str {
        "conv_bias"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let outputs = self.0.infer(inputs)?;
        let channels = outputs[0].shape[1];
        if inputs[2].shape[..] != [channels] {
            let expected = format!("a bias of shape [{channels}]");
            return Err(Error::shape("conv", expected, &inputs[2].shape));
        }
        Ok(outputs)
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (x, w, b) = (inputs[0], inputs[1], inputs[2]);
        let compute = self.0.compute;
        Ok(one(kernel::conv(x, w, Some(b), &self.0.geometry, compute)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Expand for BiasedConv {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let y = self.0.apply(inputs[0], inputs[1])?;
        Ok(one(with_bias("conv", y, Some(inputs[2]))?))
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for BiasedConv {
    fn reads_output(&self, _: usize) -> bool {
        false
    }
    fn eval_backward(
        &self,
        inputs: &[&Array],
        _: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let (x, w, b) = (inputs[0], inputs[1], inputs[2]);
        let g = cotangents[0]
            .ok_or_else(|| Error::autodiff(self.name(), "backward without a cotangent"))?;
        let (geometry, compute) = (&self.0.geometry, self.0.compute);
        let dx = || kernel::conv_input_grad(g, w, x.dims(), geometry, compute);
        let dw = || kernel::conv_weight_grad(g, x, w.dims(), geometry, compute);
        let db = || {
            let dims: Vec<usize> = (0..g.rank()).filter(|&d| d != 1).collect();
            cast(&reduce(Reduce::Sum, g, &dims)?, b.dtype())?.reshape(b.shape().clone())
        };
        Ok(smallvec![
            needs[0].then(dx).transpose()?,
            needs[1].then(dw).transpose()?,
            needs[2].then(db).transpose()?,
        ])
    }
}

/// Adds one number per channel to `[N, O, *]`.
#[track_caller]
fn with_bias(op: &str, y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let Some(b) = bias else {
        return Ok(y);
    };
    let channels = y.dims()[1];
    if b.dims() != [channels] {
        return Err(Error::shape(
            op,
            format!("a bias of shape [{channels}]"),
            b.shape(),
        ));
    }
    let mut shape = vec![1; y.rank()];
    shape[1] = channels;
    y.add(&b.to_dtype(y.dtype())?.reshape(shape)?)
}

/// Runs `f` on a batch: an input without its batch dimension gets one for the time being.
#[track_caller]
pub(crate) fn batched(
    op: &str,
    x: &Tensor,
    dims: usize,
    f: impl FnOnce(&Tensor) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let x = as_float(x)?;
    if x.rank() == dims + 2 {
        f(&x)
    } else if x.rank() == dims + 1 {
        let outputs = f(&x.unsqueeze(0)?)?;
        outputs.iter().map(|y| y.squeeze(0)).collect()
    } else {
        Err(Error::shape(
            op,
            format!("an input [N, C, *] or [C, *] with {dims} spatial dimensions"),
            x.shape(),
        ))
    }
}

impl Tensor {
    /// Convolution of self `[N, C, *]` (or `[C, *]`) with `weight` `[O, C / groups, *]`, plus
    /// `bias` `[O]`: `[N, O, *]`. One to three spatial dimensions, from the weight's rank.
    ///
    /// # Errors
    /// When shapes or options do not fit, or the kernel is larger than the padded input.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::conv::ConvOptions};
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0, 4.0], [1, 1, 3])?;
    /// let w = Tensor::from_vec(vec![1.0f32, 1.0], [1, 1, 2])?;
    /// let y = x.conv(&w, None, &ConvOptions::default())?;
    /// assert_eq!(y.to_vec::<f32>()?, [3.0, 6.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn conv(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        options: &ConvOptions,
    ) -> Result<Tensor> {
        const OP: &str = "conv";
        let dims = spatial(OP, weight)?;
        let geometry = options.geometry(OP, dims)?;
        let outputs = batched(OP, self, dims, |x| {
            let op = Conv {
                geometry,
                compute: compute_for(x.dtype()),
            };
            let weight = weight.to_dtype(x.dtype())?;
            let Some(bias) = bias else {
                return Ok(vec![op.apply(x, &weight)?]);
            };
            let bias = bias.to_dtype(x.dtype())?;
            Ok(expansion::checked(BiasedConv(op), &[x, &weight, &bias])?.into_vec())
        })?;
        Ok(outputs[0].clone())
    }

    /// The transpose of a convolution (not its inverse): self `[N, C, *]` (or `[C, *]`) with
    /// `weight` `[C, O / groups, *]` and `bias` `[O]` gives `[N, O, *]` of size
    /// (in - 1)·stride - padding + dilation·(kernel - 1) + output_padding + 1.
    ///
    /// `output_padding` has one entry per dimension, one for all, or none for 0.
    ///
    /// # Errors
    /// When shapes or options do not fit, or a size comes out below 1.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::conv::ConvOptions};
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0], [1, 1, 2])?;
    /// let w = Tensor::from_vec(vec![1.0f32, 10.0], [1, 1, 2])?;
    /// let y = x.conv_transpose(&w, None, &ConvOptions::default(), &[])?;
    /// assert_eq!(y.to_vec::<f32>()?, [1.0, 12.0, 20.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn conv_transpose(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        options: &ConvOptions,
        output_padding: &[usize],
    ) -> Result<Tensor> {
        const OP: &str = "conv_transpose";
        let dims = spatial(OP, weight)?;
        let mut geometry = options.geometry(OP, dims)?;
        let extra = spread(OP, "output paddings", output_padding, 0, dims)?;
        let outputs = batched(OP, self, dims, |x| {
            if x.dims()[1] != weight.dims()[0] || geometry.groups == 0 {
                return Err(Error::shape(
                    OP,
                    "an input [N, C, *], a weight [C, O / groups, *] and groups of at least 1",
                    format!("{}, {} and {}", x.shape(), weight.shape(), geometry.groups),
                ));
            }
            let mut shape = Shape::from([x.dims()[0], weight.dims()[1] * geometry.groups]);
            let mut zeros_after = vec![0; dims];
            for d in 0..dims {
                let (low, high) = geometry.padding[d];
                let (stride, window) = (geometry.stride[d], weight.dims()[2 + d]);
                // Output padding first uncovers results that the padding had cut off; beyond
                // those no input reaches, and only zeros are left to append.
                let kept = high - extra[d].min(high);
                zeros_after[d] = extra[d] - (high - kept);
                geometry.padding[d].1 = kept;
                let size = || {
                    let reach = window.checked_sub(1)?.checked_mul(geometry.dilation[d])?;
                    let span = x.dims()[2 + d].checked_sub(1)?.checked_mul(stride)?;
                    span.checked_add(reach)?
                        .checked_add(1)?
                        .checked_sub(low + kept)
                };
                shape.push(size().filter(|&n| n > 0).ok_or_else(|| {
                    Error::shape(
                        OP,
                        "an output of at least 1 in every dimension",
                        format!("input {} and weight {}", x.shape(), weight.shape()),
                    )
                })?);
            }
            // Checks the rest: the convolution that this transposes must exist.
            let fits = output_shape(OP, &shape, weight.shape(), &geometry)?;
            if fits != *x.shape() {
                return Err(Error::shape(
                    OP,
                    format!("an input of shape {fits}"),
                    x.shape(),
                ));
            }
            let op = Conv {
                geometry: geometry.clone(),
                compute: compute_for(x.dtype()),
            };
            let mut y = op.input_grad(&shape, x, &weight.to_dtype(x.dtype())?)?;
            for (d, &n) in zeros_after.iter().enumerate().filter(|(_, n)| **n > 0) {
                let mut block = y.shape().clone();
                block.dims_mut()[2 + d] = n;
                y = Tensor::concat(&[&y, &Tensor::zeros(block, y.dtype())], 2 + d as isize)?;
            }
            Ok(vec![with_bias(OP, y, bias)?])
        })?;
        Ok(outputs[0].clone())
    }
}

/// One to three spatial dimensions, from a weight's rank.
#[track_caller]
fn spatial(op: &str, weight: &Tensor) -> Result<usize> {
    match weight.rank() {
        rank @ 3..=5 => Ok(rank - 2),
        _ => Err(Error::shape(
            op,
            "a weight with 1 to 3 spatial dimensions, rank 3 to 5",
            weight.shape(),
        )),
    }
}

macro_rules! of_rank {
    ($( $conv:ident $transpose:ident $dims:literal $name:literal $back:literal; )*) => {
        impl Tensor {
            $(
                #[doc = concat!("[`Tensor::conv`] over ", $dims, " spatial dimension(s).")]
                ///
                /// # Errors
                /// As [`Tensor::conv`], and for weights of another rank.
                #[track_caller]
                pub fn $conv(
                    &self,
                    weight: &Tensor,
                    bias: Option<&Tensor>,
                    options: &ConvOptions,
                ) -> Result<Tensor> {
                    of_dims($name, weight, $dims)?;
                    self.conv(weight, bias, options)
                }

                #[doc = concat!("[`Tensor::conv_transpose`] over ", $dims, " spatial dimension(s).")]
                ///
                /// # Errors
                /// As [`Tensor::conv_transpose`], and for weights of another rank.
                #[track_caller]
                pub fn $transpose(
                    &self,
                    weight: &Tensor,
                    bias: Option<&Tensor>,
                    options: &ConvOptions,
                    output_padding: &[usize],
                ) -> Result<Tensor> {
                    of_dims($back, weight, $dims)?;
                    self.conv_transpose(weight, bias, options, output_padding)
                }
            )*
        }
    };
}

of_rank! {
    conv1d conv_transpose1d 1 "conv1d" "conv_transpose1d";
    conv2d conv_transpose2d 2 "conv2d" "conv_transpose2d";
    conv3d conv_transpose3d 3 "conv3d" "conv_transpose3d";
}

#[track_caller]
fn of_dims(op: &str, weight: &Tensor, dims: usize) -> Result<()> {
    if weight.rank() == dims + 2 {
        Ok(())
    } else {
        Err(Error::shape(
            op,
            format!("a weight of rank {}", dims + 2),
            weight.shape(),
        ))
    }
}

/// Options, kernel sizes, and input sizes that they fit into.
fn sample_geometry(g: &mut Gen, dims: usize) -> (ConvOptions, Vec<usize>, Vec<usize>) {
    let mut options = ConvOptions {
        groups: g.range(1, 3),
        ..Default::default()
    };
    let (mut kernel, mut input) = (vec![], vec![]);
    for _ in 0..dims {
        let (k, dilation) = (g.range(1, 4), g.range(1, 3));
        options.stride.push(g.range(1, 3));
        options.dilation.push(dilation);
        let padding = (g.range(0, 3), g.range(0, 2));
        options.padding.push(padding);
        kernel.push(k);
        let window = dilation * (k - 1) + 1;
        let least = window.saturating_sub(padding.0 + padding.1).max(1);
        input.push(least + g.range(0, if dims == 3 { 2 } else { 4 }));
    }
    (options, kernel, input)
}

/// A spatial rank, mostly small.
fn sample_dims(g: &mut Gen) -> usize {
    g.pick(&[1, 1, 1, 2, 2, 3])
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "conv",
        kind: "multilinear",
        sample: |g| {
            let dims = sample_dims(g);
            let (options, kernel, input) = sample_geometry(g, dims);
            let (inner, outer) = (g.range(1, 3), g.range(1, 3));
            let batch = if g.once_in(20) { 0 } else { g.range(1, 3) };
            let mut x = vec![batch, inner * options.groups];
            x.extend(input);
            if g.once_in(5) {
                x.remove(0);
            }
            let mut w = vec![outer * options.groups, inner];
            w.extend(kernel);
            let bias = [w[0]];
            let mut inputs = vec![g.tensor(x, -1.0, 1.0), g.tensor(w, -1.0, 1.0)];
            if g.once_in(2) {
                inputs.push(g.tensor(bias, -1.0, 1.0));
            }
            Ok(Sample::one(inputs, move |t| {
                t[0].conv(&t[1], t.get(2), &options)
            }))
        },
    },
    Entry {
        name: "conv_transpose",
        kind: "multilinear",
        sample: |g| {
            let dims = sample_dims(g);
            let (options, kernel, mut input) = sample_geometry(g, dims);
            // The output must not vanish in the padding.
            input.iter_mut().for_each(|n| *n = (*n).clamp(2, 3) + 2);
            let extra: Vec<usize> = (0..dims).map(|_| g.range(0, 4)).collect();
            let (inner, outer) = (g.range(1, 3), g.range(1, 3));
            let mut x = vec![g.range(1, 3), inner * options.groups];
            x.extend(input);
            if g.once_in(5) {
                x.remove(0);
            }
            let mut w = vec![inner * options.groups, outer];
            w.extend(kernel);
            let bias = [outer * options.groups];
            let mut inputs = vec![g.tensor(x, -1.0, 1.0), g.tensor(w, -1.0, 1.0)];
            if g.once_in(2) {
                inputs.push(g.tensor(bias, -1.0, 1.0));
            }
            Ok(Sample::one(inputs, move |t| {
                t[0].conv_transpose(&t[1], t.get(2), &options, &extra)
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    /// Output padding beyond the stride and the padding appends zeros, and bias is added to them.
    #[test]
    fn output_padding_uncovers_then_appends() {
        let x = Tensor::from_vec(vec![1.0f64, 2.0], [1, 1, 2]).unwrap();
        let w = Tensor::from_vec(vec![1.0f64, 10.0], [1, 1, 2]).unwrap();
        let b = Tensor::from_vec(vec![0.5f64], [1]).unwrap();
        let options = ConvOptions {
            padding: vec![(0, 1)],
            ..Default::default()
        };
        let run = |extra| {
            x.conv_transpose(&w, Some(&b), &options, &[extra])
                .unwrap()
                .to_vec::<f64>()
                .unwrap()
        };
        assert_eq!(run(0), [1.5, 12.5]);
        assert_eq!(run(1), [1.5, 12.5, 20.5]);
        assert_eq!(run(3), [1.5, 12.5, 20.5, 0.5, 0.5]);
    }

    #[test]
    fn misfits_are_errors() {
        let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32);
        let plain = ConvOptions::default();
        assert!(t(&[1, 2, 5]).conv(&t(&[1, 3, 2]), None, &plain).is_err());
        assert!(t(&[1, 2, 1]).conv(&t(&[1, 2, 2]), None, &plain).is_err());
        assert!(t(&[1, 2, 5]).conv2d(&t(&[1, 2, 2]), None, &plain).is_err());
        let bias = t(&[3]);
        assert!(
            t(&[1, 2, 5])
                .conv(&t(&[1, 2, 2]), Some(&bias), &plain)
                .is_err()
        );
        for bad in [
            ConvOptions {
                groups: 0,
                ..Default::default()
            },
            ConvOptions {
                stride: vec![0],
                ..Default::default()
            },
            ConvOptions {
                dilation: vec![1, 1],
                ..Default::default()
            },
        ] {
            assert!(
                t(&[1, 2, 5]).conv(&t(&[1, 2, 2]), None, &bad).is_err(),
                "{bad:?}"
            );
            let back = t(&[1, 2, 5]).conv_transpose(&t(&[2, 1, 2]), None, &bad, &[]);
            assert!(back.is_err(), "{bad:?}");
        }
        let much = ConvOptions {
            padding: vec![(9, 9)],
            ..Default::default()
        };
        assert!(
            t(&[1, 2, 5])
                .conv_transpose(&t(&[2, 1, 2]), None, &much, &[])
                .is_err()
        );
    }

    /// Zeros are appended where output padding asks for more than the padding had cut off.
    #[test]
    fn nothing_is_appended_without_need() {
        use crate::autograd::graph::Edge;
        use crate::tensor::Level;
        let x = Tensor::ones([1, 2, 5], DType::F32).requires_grad().unwrap();
        let w = Tensor::ones([2, 3, 2], DType::F32);
        let last = |padding: &[(usize, usize)], extra: &[usize]| {
            let options = ConvOptions {
                padding: padding.to_vec(),
                ..Default::default()
            };
            let y = x.conv_transpose(&w, None, &options, extra).unwrap();
            match y.edge(Level::AMBIENT) {
                Some(Edge::Node { node, .. }) => node.op.name(),
                _ => panic!("not recorded"),
            }
        };
        assert_eq!(last(&[], &[]), "conv_input_grad");
        assert_eq!(last(&[(0, 1)], &[1]), "conv_input_grad");
        assert_eq!(last(&[(0, 1)], &[2]), "concat");
        assert_eq!(last(&[], &[1]), "concat");
    }
}
