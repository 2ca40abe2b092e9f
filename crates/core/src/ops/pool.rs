//! `max_pool`, `avg_pool` and their adaptive forms over one to three spatial dimensions.
//!
//! Averages are linear. A maximum is the element at its index: the gradient is scattered to the
//! indices, the tangent gathered from them, and those two are each other's transposes. Sizes,
//! ceil_mode and index conventions are PyTorch's; among equal maxima the first counts. Kernels:
//! `entrenar_cpu::pool`.

use smallvec::smallvec;

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::index;
use entrenar_cpu::pool as kernel;
use entrenar_cpu::pool::PoolGeometry;

use crate::Tensor;
use crate::apply::{apply, apply1, handle, one};
use crate::op::{Aval, Explicit, Few, JvpCx, Linear, Op, Reads, Rule, Sink, VjpCx};
use crate::ops::conv::{batched, spread};
use crate::registry::{Entry, Gen, Sample};

/// How a pooling window moves. Lists other than the kernel's have one entry per spatial
/// dimension, or a single one for all of them, or none for the default.
///
/// ```
/// # use entrenar_core::ops::pool::PoolOptions;
/// let halving = PoolOptions::new(&[2, 2]);
/// assert!(halving.stride.is_empty()); // the kernel's size
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PoolOptions {
    /// Window size, one entry per spatial dimension.
    pub kernel: Vec<usize>,
    /// Steps between windows; default the kernel's size.
    pub stride: Vec<usize>,
    /// Padding on both sides, at most half the window; default 0.
    pub padding: Vec<usize>,
    /// Steps inside a window; default 1, and always 1 for averages.
    pub dilation: Vec<usize>,
    /// Whether a last window may hang over the end of the padded input.
    pub ceil_mode: bool,
}

impl PoolOptions {
    /// Windows of this size side by side.
    pub fn new(kernel: &[usize]) -> PoolOptions {
        PoolOptions {
            kernel: kernel.to_vec(),
            ..Default::default()
        }
    }

    #[track_caller]
    fn geometry(&self, op: &str) -> Result<PoolGeometry> {
        let dims = self.kernel.len();
        let stride = if self.stride.is_empty() {
            self.kernel.clone()
        } else {
            spread(op, "strides", &self.stride, 1, dims)?
        };
        let geometry = PoolGeometry {
            kernel: self.kernel.clone(),
            stride,
            padding: spread(op, "paddings", &self.padding, 0, dims)?,
            dilation: spread(op, "dilations", &self.dilation, 1, dims)?,
            ceil_mode: self.ceil_mode,
        };
        let positive = |v: &[usize]| !v.contains(&0);
        let halves = geometry.padding.iter().zip(&geometry.kernel);
        if !(1..=3).contains(&dims)
            || !positive(&geometry.kernel)
            || !positive(&geometry.stride)
            || !positive(&geometry.dilation)
            || halves.into_iter().any(|(&p, &k)| p > k / 2)
        {
            return Err(Error::argument(
                op,
                "1 to 3 spatial dimensions, kernel, stride and dilation of at least 1 and padding \
                 of at most half the kernel",
                format!("{geometry:?}"),
            ));
        }
        Ok(geometry)
    }
}

/// `[N, C, *]` after sliding windows over `x` `[N, C, *]`.
#[track_caller]
fn slid(op: &str, x: &Shape, g: &PoolGeometry) -> Result<Shape> {
    let mut shape = Shape::from(&x[..2]);
    for d in 0..g.kernel.len() {
        let (size, pad, stride) = (x[2 + d], g.padding[d], g.stride[d]);
        let count = || {
            let extent = g.dilation[d].checked_mul(g.kernel[d] - 1)?.checked_add(1)?;
            let room = size.checked_add(pad.checked_mul(2)?)?.checked_sub(extent)?;
            let count = room / stride + 1;
            // A window that starts in the padding after the input does not count.
            let more = g.ceil_mode && room % stride != 0 && count * stride < size + pad;
            Some(count + usize::from(more))
        };
        shape.push(count().ok_or_else(|| {
            Error::shape(
                op,
                "windows that fit inside the padded input",
                format!("input {x} with {g:?}"),
            )
        })?);
    }
    Ok(shape)
}

/// `[N, C]` and the output sizes.
fn adapted(x: &Shape, out: &[usize]) -> Shape {
    x[..2].iter().chain(out).copied().collect()
}

/// Which windows an op takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Windows {
    Sliding(PoolGeometry),
    Adaptive(Vec<usize>),
}

impl Windows {
    fn shape(&self, op: &str, x: &Shape) -> Result<Shape> {
        match self {
            Windows::Sliding(g) => slid(op, x, g),
            Windows::Adaptive(out) => Ok(adapted(x, out)),
        }
    }
}

/// x to the maxima and their flat positions within a plane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MaxPool {
    windows: Windows,
}

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape = self.windows.shape(self.name(), &inputs[0].shape)?;
        Ok(smallvec![
            Aval::new(shape.clone(), inputs[0].dtype),
            Aval::new(shape, DType::I64)
        ])
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (values, index) = match &self.windows {
            Windows::Sliding(g) => kernel::max_pool(inputs[0], g)?,
            Windows::Adaptive(out) => kernel::adaptive_max_pool(inputs[0], out)?,
        };
        Ok(smallvec![values, index])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Explicit for MaxPool {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[], &[1])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let op = Scatter {
            x: cx.aval(0).shape.clone(),
        };
        sink.add(0, apply1(&handle(op), &[g, cx.output(1)?])?)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let values = match &cx.tangents[0] {
            Some(t) => Some(apply1(&handle(Pick), &[t, &cx.outputs[1]])?),
            None => None,
        };
        Ok(smallvec![values, None])
    }
}

/// (x `[N, C, *]`, index) to the elements of each plane at the index.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pick;

/// (g, index) to zeros of shape `x` with g added at the index of each plane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scatter {
    x: Shape,
}

impl Op for Pick {
    fn name(&self) -> &'static str {
        "max_pool_pick"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(Aval::new(inputs[1].shape.clone(), inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let flat = |a: &Array| {
            let plane = a.dims()[2..].iter().product();
            a.reshape([a.dims()[0], a.dims()[1], plane])
        };
        let picked = index::gather(&flat(inputs[0])?, 2, &flat(inputs[1])?)?;
        Ok(one(picked.reshape(outputs[0].shape.clone())?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Pick {
    fn linear_in(&self, input: usize) -> bool {
        input == 0
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let op = Scatter {
            x: cx.aval(0).shape.clone(),
        };
        sink.add(0, apply1(&handle(op), &[g, cx.input(1)?])?)
    }
}

impl Op for Scatter {
    fn name(&self) -> &'static str {
        "max_pool_backward"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(Aval::new(self.x.clone(), inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (g, index) = (inputs[0], inputs[1]);
        Ok(one(kernel::max_pool_backward(g, index, &self.x)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Scatter {
    fn linear_in(&self, input: usize) -> bool {
        input == 0
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, apply1(&handle(Pick), &[g, cx.input(1)?])?),
            None => Ok(()),
        }
    }
}

/// Averages of windows, or with `back` the transpose of that: gradients of the input of shape `x`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AvgPool {
    windows: Windows,
    count_include_pad: bool,
    divisor: Option<i64>,
    back: Option<Shape>,
}

impl Op for AvgPool {
    fn name(&self) -> &'static str {
        if self.back.is_some() {
            "avg_pool_backward"
        } else {
            "avg_pool"
        }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape = match &self.back {
            Some(x) => x.clone(),
            None => self.windows.shape(self.name(), &inputs[0].shape)?,
        };
        Ok(one(Aval::new(shape, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (a, pad, divisor) = (inputs[0], self.count_include_pad, self.divisor);
        Ok(one(match (&self.windows, &self.back) {
            (Windows::Sliding(g), None) => kernel::avg_pool(a, g, pad, divisor)?,
            (Windows::Sliding(g), Some(x)) => kernel::avg_pool_backward(a, x, g, pad, divisor)?,
            (Windows::Adaptive(out), None) => kernel::adaptive_avg_pool(a, out)?,
            (Windows::Adaptive(_), Some(x)) => kernel::adaptive_avg_pool_backward(a, x)?,
        }))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for AvgPool {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let op = AvgPool {
            back: match &self.back {
                Some(_) => None,
                None => Some(cx.aval(0).shape.clone()),
            },
            ..self.clone()
        };
        sink.add(0, apply1(&handle(op), &[g])?)
    }
}

#[track_caller]
fn maxima(op: &str, x: &Tensor, dims: usize, windows: Windows) -> Result<(Tensor, Tensor)> {
    let mut outputs = batched(op, x, dims, |x| {
        Ok(apply(&handle(MaxPool { windows }), &[x])?.into_vec())
    })?;
    let index = outputs.pop();
    match (outputs.pop(), index) {
        (Some(values), Some(index)) => Ok((values, index)),
        _ => Err(Error::other(format!("{op}: two outputs expected"))),
    }
}

#[track_caller]
fn averages(
    op: &str,
    x: &Tensor,
    dims: usize,
    windows: Windows,
    count_include_pad: bool,
    divisor: Option<i64>,
) -> Result<Tensor> {
    let outputs = batched(op, x, dims, |x| {
        let op = AvgPool {
            windows,
            count_include_pad,
            divisor,
            back: None,
        };
        Ok(vec![apply1(&handle(op), &[x])?])
    })?;
    Ok(outputs[0].clone())
}

/// Checks output sizes against the input's.
#[track_caller]
fn adaptive(op: &str, x: &Tensor, out: &[usize]) -> Result<Windows> {
    let spatial = x.dims().get(x.rank().saturating_sub(out.len())..);
    let empty = spatial.is_some_and(|sizes| sizes.iter().zip(out).any(|(&n, &o)| n == 0 && o > 0));
    if !(1..=3).contains(&out.len()) || empty {
        return Err(Error::argument(
            op,
            "1 to 3 output sizes and an input that is not empty there",
            format!("{out:?} for {}", x.shape()),
        ));
    }
    Ok(Windows::Adaptive(out.to_vec()))
}

impl Tensor {
    /// The largest element of each window of self `[N, C, *]` (or `[C, *]`), and its flat position
    /// within its channel (i64).
    ///
    /// # Errors
    /// When the options are impossible or a window has no element inside the input.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::pool::PoolOptions};
    /// let x = Tensor::from_vec(vec![1.0f32, 5.0, 2.0, 3.0], [1, 1, 4])?;
    /// let (y, index) = x.max_pool(&PoolOptions::new(&[2]))?;
    /// assert_eq!(y.to_vec::<f32>()?, [5.0, 3.0]);
    /// assert_eq!(index.to_vec::<i64>()?, [1, 3]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn max_pool(&self, options: &PoolOptions) -> Result<(Tensor, Tensor)> {
        let geometry = options.geometry("max_pool")?;
        let dims = geometry.kernel.len();
        maxima("max_pool", self, dims, Windows::Sliding(geometry))
    }

    /// The average of each window of self `[N, C, *]` (or `[C, *]`).
    ///
    /// Divides by the number of elements of the window, padding counted or not as
    /// `count_include_pad` says (PyTorch's default: counted), or by `divisor_override`.
    ///
    /// # Errors
    /// When the options are impossible, dilation is not 1 or the divisor is 0.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::pool::PoolOptions};
    /// let x = Tensor::from_vec(vec![1.0f32, 5.0, 2.0, 3.0], [1, 1, 4])?;
    /// let y = x.avg_pool(&PoolOptions::new(&[2]), true, None)?;
    /// assert_eq!(y.to_vec::<f32>()?, [3.0, 2.5]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn avg_pool(
        &self,
        options: &PoolOptions,
        count_include_pad: bool,
        divisor_override: Option<i64>,
    ) -> Result<Tensor> {
        let geometry = options.geometry("avg_pool")?;
        if geometry.dilation.iter().any(|&d| d != 1) || divisor_override == Some(0) {
            return Err(Error::argument(
                "avg_pool",
                "no dilation and a divisor other than 0",
                format!("{geometry:?} and {divisor_override:?}"),
            ));
        }
        averages(
            "avg_pool",
            self,
            geometry.kernel.len(),
            Windows::Sliding(geometry),
            count_include_pad,
            divisor_override,
        )
    }

    /// The average of each of `out` windows per spatial dimension, which together cover self
    /// `[N, C, *]` (or `[C, *]`): window i of n runs from ⌊i·size/n⌋ to ⌈(i + 1)·size/n⌉.
    ///
    /// # Errors
    /// When there are not as many spatial dimensions or one is empty.
    #[track_caller]
    pub fn adaptive_avg_pool(&self, out: &[usize]) -> Result<Tensor> {
        const OP: &str = "adaptive_avg_pool";
        let windows = adaptive(OP, self, out)?;
        averages(OP, self, out.len(), windows, true, None)
    }

    /// The largest element of each adaptive window, and its flat position within its channel; see
    /// [`Tensor::adaptive_avg_pool`].
    ///
    /// # Errors
    /// When there are not as many spatial dimensions or one is empty.
    #[track_caller]
    pub fn adaptive_max_pool(&self, out: &[usize]) -> Result<(Tensor, Tensor)> {
        const OP: &str = "adaptive_max_pool";
        let windows = adaptive(OP, self, out)?;
        maxima(OP, self, out.len(), windows)
    }
}

/// Options and the shape of an input that they fit.
fn sample_options(g: &mut Gen, dilated: bool) -> (PoolOptions, Vec<usize>) {
    let dims = g.pick(&[1, 1, 2, 2, 3]);
    let batch = if g.once_in(20) { 0 } else { g.range(1, 3) };
    let mut shape = vec![batch, g.range(1, 3)];
    if g.once_in(5) {
        shape.remove(0);
    }
    let mut options = PoolOptions {
        ceil_mode: g.once_in(2),
        ..Default::default()
    };
    let strided = g.once_in(2);
    for _ in 0..dims {
        let kernel = g.range(1, 4);
        options.kernel.push(kernel);
        if strided {
            options.stride.push(g.range(1, 4));
        }
        options.padding.push(g.range(0, kernel / 2 + 1));
        let dilation = if dilated { g.range(1, 3) } else { 1 };
        options.dilation.push(dilation);
        // As large as the window without padding: no window is empty.
        shape.push(dilation * (kernel - 1) + 1 + g.range(0, 3));
    }
    (options, shape)
}

/// An input shape and output sizes for adaptive windows.
fn sample_adaptive(g: &mut Gen) -> (Vec<usize>, Vec<usize>) {
    let dims = g.range(1, 4);
    let mut shape = vec![g.range(1, 3), g.range(1, 3)];
    if g.once_in(5) {
        shape.remove(0);
    }
    let mut out = vec![];
    for _ in 0..dims {
        shape.push(g.range(1, 6));
        out.push(g.range(1, 5));
    }
    (shape, out)
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "max_pool",
        kind: "explicit",
        sample: |g| {
            let (options, shape) = sample_options(g, true);
            Ok(Sample::new(vec![g.tensor_distinct(shape)], move |t| {
                let (values, index) = t[0].max_pool(&options)?;
                Ok(vec![values.square()?, index])
            }))
        },
    },
    Entry {
        name: "avg_pool",
        kind: "linear",
        sample: |g| {
            let (options, shape) = sample_options(g, false);
            let (pad, divisor) = (g.once_in(2), g.pick(&[None, None, Some(3), Some(-2)]));
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].square()?.avg_pool(&options, pad, divisor)
            }))
        },
    },
    Entry {
        name: "adaptive_max_pool",
        kind: "explicit",
        sample: |g| {
            let (shape, out) = sample_adaptive(g);
            Ok(Sample::new(vec![g.tensor_distinct(shape)], move |t| {
                let (values, index) = t[0].adaptive_max_pool(&out)?;
                Ok(vec![values.square()?, index])
            }))
        },
    },
    Entry {
        name: "adaptive_avg_pool",
        kind: "linear",
        sample: |g| {
            let (shape, out) = sample_adaptive(g);
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].square()?.adaptive_avg_pool(&out)
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_maxima_gets_the_gradient() {
        let x = Tensor::ones([1, 1, 4], DType::F64).requires_grad().unwrap();
        let (y, index) = x.max_pool(&PoolOptions::new(&[2])).unwrap();
        assert_eq!(index.to_vec::<i64>().unwrap(), [0, 2]);
        y.sum().unwrap().backward().unwrap();
        assert_eq!(
            x.grad().unwrap().to_vec::<f64>().unwrap(),
            [1.0, 0.0, 1.0, 0.0]
        );
    }

    #[test]
    fn misfits_are_errors() {
        let x = Tensor::zeros([1, 1, 4], DType::F32);
        assert!(x.max_pool(&PoolOptions::new(&[5])).is_err());
        assert!(x.max_pool(&PoolOptions::new(&[])).is_err());
        assert!(x.max_pool(&PoolOptions::new(&[0])).is_err());
        assert!(x.max_pool(&PoolOptions::new(&[2, 2, 2])).is_err());
        let padded = PoolOptions {
            padding: vec![2],
            ..PoolOptions::new(&[2])
        };
        assert!(x.avg_pool(&padded, true, None).is_err());
        assert!(x.avg_pool(&PoolOptions::new(&[2]), true, Some(0)).is_err());
        assert!(x.adaptive_avg_pool(&[]).is_err());
        let empty = Tensor::zeros([1, 1, 0], DType::F32);
        assert!(empty.adaptive_max_pool(&[2]).is_err());
    }
}
