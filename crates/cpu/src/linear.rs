//! Linear layers: y = act(x·Wᵀ + b) + r in one pass over the output, and its gradients.
//!
//! Operands may mix f32, bf16 and f16 ([`crate::product`]); f64 multiplies f64 only. With
//! h = x·Wᵀ + b and p = g·act'(h) the gradients are dx = p·W, dW = pᵀ·x and db = Σ p over rows. One
//! pass makes p and db together; sums over rows go through blocks that depend on the shape alone.

use entrenar_base::{Array, DType, Element, Error, Result, dispatch};

use crate::alloc::Scratch;
use crate::cast::{cast, convert, same_mut, widened};
use crate::copy::contiguous;
use crate::kit::{Real, add_slices, multiversion};
use crate::matmul::matmul;
use crate::pointwise::{Unary, add_assign, scalar_f64};
use crate::product::{Activation, Compute, Options, product};
use crate::simd::math;
use crate::team::{self, Shared};

/// Rows whose bias gradients are summed one after the other.
const BLOCK: usize = 32;
/// Elements of a row that are widened at once.
const TILE: usize = 1024;

/// What a layer computes besides the product.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Precision of the operands.
    pub compute: Compute,
    /// `[out]`, of any float dtype.
    pub bias: Option<&'a Array>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last: of the output's shape and any float dtype. Its gradient is the output's.
    pub residual: Option<&'a Array>,
    /// Dtype of the output.
    pub output: DType,
}

/// act(x·Wᵀ + b) + r for x `[rows, in]` and W `[out, in]`; with an activation also x·Wᵀ + b, which its
/// derivative needs. Both `[rows, out]` in the dtype asked for.
///
/// # Errors
/// When shapes do not fit, or f64 meets another dtype.
///
/// ```
/// use entrenar_base::{Array, DType};
/// use entrenar_cpu::linear::{Layer, linear};
/// use entrenar_cpu::product::{Activation, Compute};
/// let x = Array::from_vec(vec![1.0f32, 2.0], [1, 2])?;
/// let w = Array::from_vec(vec![1.0f32, 1.0, 0.0, -2.0], [2, 2])?;
/// let layer = Layer {
///     compute: Compute::F32,
///     bias: None,
///     activation: Activation::Relu,
///     residual: None,
///     output: DType::F32,
/// };
/// let (y, before) = linear(&x, &w, &layer)?;
/// assert_eq!(y.to_vec::<f32>()?, [3.0, 0.0]);
/// assert_eq!(before.unwrap().to_vec::<f32>()?, [3.0, -4.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn linear(x: &Array, w: &Array, layer: &Layer<'_>) -> Result<(Array, Option<Array>)> {
    let active = layer.activation != Activation::None;
    let wt = w.transpose(0, 1)?;
    if layer.output != DType::F64 {
        let done = product(
            x,
            &wt,
            &Options {
                compute: layer.compute,
                output: Some(layer.output),
                bias: layer.bias,
                activation: layer.activation,
                residual: layer.residual,
                preactivation: active.then_some(layer.output),
                ..Options::default()
            },
        )?;
        return Ok((done.output, done.preactivation));
    }
    let mut y = matmul(x, &wt)?;
    let n = w.dims()[0];
    if let Some(bias) = layer.bias {
        let bias = cast(bias, DType::F64)?;
        let bias = bias.as_slice::<f64>()?;
        for row in y.make_mut::<f64>()?.chunks_exact_mut(n.max(1)) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
    let before = active.then(|| y.clone());
    if active {
        for y in y.make_mut::<f64>()? {
            *y = value(layer.activation, *y);
        }
    }
    if let Some(residual) = layer.residual {
        add_assign(&mut y, &cast(residual, DType::F64)?)?;
    }
    Ok((y, before))
}

/// Gradients of [`linear`] with respect to x, W and the bias, those that `needs` names, given that
/// of its result; `before` is what it returned second. Dtypes: those of x, W and the bias.
///
/// # Errors
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn linear_backward(
    g: &Array,
    x: &Array,
    w: &Array,
    before: Option<&Array>,
    layer: &Layer<'_>,
    needs: [bool; 3],
) -> Result<[Option<Array>; 3]> {
    const OP: &str = "linear_backward";
    let rows = x.dims()[0];
    let n = w.dims()[0];
    let fits = |a: &Array| a.dims() == [rows, n];
    if let Some(other) = [Some(g), before].into_iter().flatten().find(|a| !fits(a)) {
        let expected = format!("a gradient [{rows}, {n}]");
        return Err(Error::shape(OP, expected, other.shape()));
    }
    let bias = layer.bias.filter(|_| needs[2]);
    let (p, db) = match (layer.activation, bias) {
        (Activation::None, None) => (g.clone(), None),
        (activation, bias) => {
            let before = match activation {
                Activation::None => None,
                _ => Some(contiguous(before.ok_or_else(|| {
                    Error::argument(OP, "the values before the activation", "none")
                })?)?),
            };
            let g = contiguous(g)?;
            dispatch!(g.dtype(), T => if T::DTYPE == DType::F64 {
                inner::<T, f64>(&g, before.as_ref(), activation, n, bias.is_some())?
            } else {
                inner::<T, f32>(&g, before.as_ref(), activation, n, bias.is_some())?
            })
        }
    };
    let times = |a: &Array, b: &Array, output: DType| -> Result<Array> {
        if output == DType::F64 {
            return matmul(a, b);
        }
        let options = Options {
            compute: layer.compute,
            output: Some(output),
            ..Options::default()
        };
        Ok(product(a, b, &options)?.output)
    };
    let dx = needs[0].then(|| times(&p, w, x.dtype())).transpose()?;
    let dw = needs[1]
        .then(|| times(&p.transpose(0, 1)?, x, w.dtype()))
        .transpose()?;
    let db = db
        .zip(bias)
        .map(|(db, b)| cast(&db, b.dtype()))
        .transpose()?;
    Ok([dx, dw, db])
}

/// p = g·act'(before) in the dtype of g, and its sums over rows in the compute dtype.
fn inner<T: Element, C: Smooth>(
    g: &Array,
    before: Option<&Array>,
    activation: Activation,
    n: usize,
    sums: bool,
) -> Result<(Array, Option<Array>)> {
    let rows = g.numel().checked_div(n).unwrap_or(0);
    let blocks = rows.div_ceil(BLOCK);
    let mut partial = Scratch::<C>::new(if sums { blocks * n } else { 0 });
    partial.fill(C::of(0.0));
    let partials = Shared::new(&mut partial);
    let data = g.as_slice::<T>()?;
    let cost = (n * BLOCK) as f64 * if before.is_some() { 0.8 } else { 0.15 };
    let run = |p: Option<&Shared<'_, T>>| {
        team::split(blocks, cost, |range| {
            let mut room = Scratch::<C>::new(3 * TILE);
            let (wide, rest) = room.split_at_mut(TILE);
            let (room_before, room_out) = rest.split_at_mut(TILE);
            for block in range {
                let all = block * BLOCK..rows.min((block + 1) * BLOCK);
                for first in (0..n).step_by(TILE) {
                    let len = TILE.min(n - first);
                    for row in all.clone() {
                        let at = row * n + first..row * n + first + len;
                        let mut inner = widened(&data[at.clone()], &mut wide[..len]);
                        if let (Some(before), Some(p)) = (before, p) {
                            let h = widened_part(before, at.clone(), &mut room_before[..len]);
                            // SAFETY: rows are disjoint.
                            let p = unsafe { p.slice(at) };
                            inner = match same_mut::<T, C>(p) {
                                Some(out) => {
                                    C::derive(activation, h, inner, out);
                                    out
                                }
                                None => {
                                    let out = &mut room_out[..len];
                                    C::derive(activation, h, inner, out);
                                    convert(&*out, p);
                                    out
                                }
                            };
                        }
                        if sums {
                            let sum = block * n + first..block * n + first + len;
                            // SAFETY: blocks are disjoint.
                            add_slices(unsafe { partials.slice(sum) }, inner);
                        }
                    }
                }
            }
        });
    };
    let p = if before.is_some() {
        Array::build(g.shape(), |p: &mut [T]| run(Some(&Shared::new(p))))
    } else {
        run(None);
        g.clone()
    };
    if !sums {
        return Ok((p, None));
    }
    let mut total = Array::zeros([n], C::DTYPE);
    let out = total.make_mut::<C>()?;
    for block in partial.chunks_exact(n.max(1)).take(blocks) {
        add_slices(out, block);
    }
    Ok((p, Some(total)))
}

/// [`widened`] of a part of a contiguous array of any float dtype.
fn widened_part<'a, C: Element>(
    x: &'a Array,
    range: std::ops::Range<usize>,
    room: &'a mut [C],
) -> &'a [C] {
    dispatch!(x.dtype(), S => match x.as_slice::<S>() {
        Ok(x) => widened(&x[range], room),
        Err(_) => room, // contiguous by the caller's promise
    })
}

multiversion! {
    fn derive_relu<T: Smooth>(h: &[T], g: &[T], out: &mut [T]) {
        let n = out.len();
        let (h, g) = (&h[..n], &g[..n]);
        for i in 0..n {
            out[i] = if h[i] <= T::of(0.0) { T::of(0.0) } else { g[i] };
        }
    }

    fn derive_gelu<T: Smooth>(h: &[T], g: &[T], out: &mut [T]) {
        let n = out.len();
        let (h, g) = (&h[..n], &g[..n]);
        for i in 0..n {
            out[i] = g[i] * h[i].gelu_slope();
        }
    }

    fn derive_gelu_tanh<T: Smooth>(h: &[T], g: &[T], out: &mut [T]) {
        let n = out.len();
        let (h, g) = (&h[..n], &g[..n]);
        for i in 0..n {
            out[i] = g[i] * h[i].gelu_tanh_slope();
        }
    }

    fn derive_silu<T: Smooth>(h: &[T], g: &[T], out: &mut [T]) {
        let n = out.len();
        let (h, g) = (&h[..n], &g[..n]);
        for i in 0..n {
            let s = h[i].sigmoid();
            out[i] = g[i] * (s * h[i].mul_add(T::of(1.0) - s, T::of(1.0)));
        }
    }
}

/// A float with the functions that activations are made of.
pub(crate) trait Smooth: Real {
    fn sigmoid(self) -> Self;
    fn erf(self) -> Self;
    /// e^x, or 0 far below.
    fn bell(self) -> Self;

    /// Φ(x) + x·φ(x).
    #[inline(always)]
    fn gelu_slope(self) -> Self {
        let root = Self::of(std::f64::consts::FRAC_1_SQRT_2);
        let scale =
            Self::of(0.5 * std::f64::consts::FRAC_1_SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI);
        let below = Self::of(0.5) * (Self::of(1.0) + (self * root).erf());
        let density = scale * (Self::of(-0.5) * self * self).bell();
        self.mul_add(density, below)
    }

    /// With s = sigmoid(2u) and u = √(2/π)·(x + 0.044715·x³), the value is x·s and the slope
    /// s + x·s·(1 - s)·2u'.
    #[inline(always)]
    fn gelu_tanh_slope(self) -> Self {
        let root = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
        let square = self * self;
        let twice = self * square.mul_add(Self::of(2.0 * root * 0.044_715), Self::of(2.0 * root));
        let slope = square.mul_add(Self::of(6.0 * root * 0.044_715), Self::of(2.0 * root));
        let s = twice.sigmoid();
        (self * slope * (Self::of(1.0) - s)).mul_add(s, s)
    }

    /// `out = g·act'(h)`.
    fn derive(activation: Activation, h: &[Self], g: &[Self], out: &mut [Self]) {
        match activation {
            Activation::None => out.copy_from_slice(g),
            Activation::Relu => derive_relu(h, g, out),
            Activation::Gelu => derive_gelu(h, g, out),
            Activation::GeluTanh => derive_gelu_tanh(h, g, out),
            Activation::Silu => derive_silu(h, g, out),
        }
    }
}

impl Smooth for f32 {
    #[inline(always)]
    fn sigmoid(self) -> f32 {
        math::sigmoid(self)
    }
    #[inline(always)]
    fn erf(self) -> f32 {
        math::erf(self)
    }
    #[inline(always)]
    fn bell(self) -> f32 {
        Real::exp(self)
    }
}

impl Smooth for f64 {
    #[inline(always)]
    fn sigmoid(self) -> f64 {
        scalar_f64(Unary::Sigmoid, self)
    }
    #[inline(always)]
    fn erf(self) -> f64 {
        scalar_f64(Unary::Erf, self)
    }
    #[inline(always)]
    fn bell(self) -> f64 {
        f64::exp(self)
    }
}

/// The activations in f64.
fn value(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => scalar_f64(Unary::Relu, x),
        Activation::Gelu => {
            let scaled = x * std::f64::consts::FRAC_1_SQRT_2;
            0.5 * x * (1.0 + scalar_f64(Unary::Erf, scaled))
        }
        Activation::GeluTanh => scalar_f64(Unary::GeluTanh, x),
        Activation::Silu => x * x.sigmoid(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{array, same_at_any_thread_count};

    const ALL: [Activation; 5] = [
        Activation::None,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
    ];

    fn layer(bias: &Array, activation: Activation, output: DType) -> Layer<'_> {
        Layer {
            compute: if output == DType::BF16 {
                Compute::Bf16
            } else {
                Compute::F32
            },
            bias: Some(bias),
            activation,
            residual: None,
            output,
        }
    }

    /// Values that are no kinks of relu, small enough for all activations to bend.
    fn scaled(shape: &[usize], seed: u64) -> Array {
        let x = array(shape, DType::F32, seed as u16).to_f64_vec();
        let x = x.iter().map(|v| v / 16.0 + 0.003).collect::<Vec<f64>>();
        Array::from_vec(x, shape).unwrap()
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (x, w, b) = (scaled(&[3, 4], 1), scaled(&[5, 4], 2), scaled(&[5], 3));
        let g = scaled(&[3, 5], 4);
        for activation in ALL {
            let loss = |x: &Array, w: &Array, b: &Array| -> f64 {
                let (y, _) = linear(x, w, &layer(b, activation, DType::F64)).unwrap();
                let pairs = y.to_f64_vec().into_iter().zip(g.to_f64_vec());
                pairs.map(|(y, g)| y * g).sum()
            };
            let l = layer(&b, activation, DType::F64);
            let (_, before) = linear(&x, &w, &l).unwrap();
            let found = linear_backward(&g, &x, &w, before.as_ref(), &l, [true; 3]).unwrap();
            let parts = [&x, &w, &b];
            for (which, found) in found.iter().enumerate() {
                let found = found.as_ref().unwrap().to_f64_vec();
                for (i, found) in found.iter().enumerate() {
                    let moved = |by: f64| {
                        let mut all = parts.map(|p| p.deep_copy());
                        all[which].make_mut::<f64>().unwrap()[i] += by;
                        loss(&all[0], &all[1], &all[2])
                    };
                    let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    let off = (found - want).abs();
                    assert!(off < 1e-8, "{activation:?} {which} {i}: {found} {want}");
                }
            }
        }
    }

    #[test]
    fn narrow_dtypes_follow_f64() {
        // More rows and columns than a block and a tile.
        let (x, w, b) = (
            scaled(&[70, 8], 1),
            scaled(&[1100, 8], 2),
            scaled(&[1100], 3),
        );
        let g = scaled(&[70, 1100], 4);
        for activation in ALL {
            let exact = layer(&b, activation, DType::F64);
            let (y, before) = linear(&x, &w, &exact).unwrap();
            let want = linear_backward(&g, &x, &w, before.as_ref(), &exact, [true; 3]).unwrap();
            for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 2e-2)] {
                if (activation, dtype) == (Activation::Relu, DType::BF16) {
                    continue; // Rounded operands move sums across the kink.
                }
                let to = |a: &Array| a.cast(dtype);
                let (x, g, w, b) = (to(&x), to(&g), w.cast(DType::F32), b.cast(DType::F32));
                let l = layer(&b, activation, dtype);
                let (found_y, before) = linear(&x, &w, &l).unwrap();
                assert_eq!(found_y.dtype(), dtype);
                let found = linear_backward(&g, &x, &w, before.as_ref(), &l, [true; 3]).unwrap();
                let dtypes: Vec<_> = found.iter().map(|f| f.as_ref().unwrap().dtype()).collect();
                assert_eq!(dtypes, [dtype, DType::F32, DType::F32]);
                let pairs = found
                    .into_iter()
                    .flatten()
                    .zip(want.iter().flatten().cloned());
                for (found, want) in pairs.chain([(found_y, y.clone())]) {
                    let want = want.to_f64_vec();
                    let scale = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                    for (f, w) in found.to_f64_vec().iter().zip(&want) {
                        let off = (f - w).abs() / scale;
                        assert!(
                            off < tolerance,
                            "{activation:?} {dtype}: {f} {w} of {scale}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn threads_never_change_a_bit() {
        let (x, w, b) = (
            array(&[300, 64], DType::F32, 1),
            array(&[200, 64], DType::F32, 2),
            array(&[200], DType::F32, 3),
        );
        let g = array(&[300, 200], DType::F32, 4);
        let l = layer(&b, Activation::GeluTanh, DType::F32);
        let (_, before) = linear(&x, &w, &l).unwrap();
        for which in 0..3 {
            same_at_any_thread_count(|| {
                let found = linear_backward(&g, &x, &w, before.as_ref(), &l, [true; 3]).unwrap();
                found[which].clone().unwrap()
            });
        }
    }

    #[test]
    fn misfits_and_empty_rows() {
        let (x, w, b) = (scaled(&[0, 4], 1), scaled(&[5, 4], 2), scaled(&[5], 3));
        let l = layer(&b, Activation::Silu, DType::F64);
        let (y, before) = linear(&x, &w, &l).unwrap();
        assert_eq!(y.dims(), [0, 5]);
        let found = linear_backward(&y, &x, &w, before.as_ref(), &l, [true; 3]).unwrap();
        assert_eq!(found[1].as_ref().unwrap().to_f64_vec(), [0.0; 20]);
        assert_eq!(found[2].as_ref().unwrap().to_f64_vec(), [0.0; 5]);
        let wrong = scaled(&[3, 5], 1);
        assert!(linear_backward(&wrong, &x, &w, before.as_ref(), &l, [true; 3]).is_err());
        assert!(linear_backward(&y, &x, &w, None, &l, [true; 3]).is_err());
    }
}
