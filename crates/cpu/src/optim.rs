//! Optimizer steps: one pass over values, gradients and state, one dispatch for all parameters.
//!
//! The formulas are PyTorch's (`torch.optim.Adam`, `AdamW`, `SGD`, 2.x documentation). Loss
//! unscaling and gradient clipping are one factor, applied as gradients are read. Every element is
//! independent, so threads never change a bit.

use entrenar_base::{Array, Float, dispatch};
use std::ops::Range;

use crate::cast;
use crate::simd::multiversion;
use crate::team::{self, Shared};
use crate::walk::Walk;

/// Elements per part of a dispatch.
const CHUNK: usize = 16 << 10;

/// One parameter of Adam; all four slices are equally long.
pub struct Slot<'a, T = f32> {
    /// The value.
    pub param: &'a mut [T],
    /// The gradient.
    pub grad: &'a [T],
    /// First moment, zero before the first step.
    pub m: &'a mut [T],
    /// Second moment, zero before the first step.
    pub v: &'a mut [T],
}

/// The numbers of one Adam step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// True: AdamW (Loshchilov and Hutter, 2019), decay apart from the gradient. False: Adam
    /// (Kingma and Ba, 2015), decay added to the gradient.
    pub decoupled: bool,
    /// Number of this step, from 1.
    pub step: u64,
    /// Gradients are multiplied by this as they are read.
    pub grad_scale: f64,
}

/// One parameter of SGD; all slices are equally long.
pub struct SgdSlot<'a, T = f32> {
    /// The value.
    pub param: &'a mut [T],
    /// The gradient.
    pub grad: &'a [T],
    /// The momentum buffer, zero before the first step; absent without momentum.
    pub momentum: Option<&'a mut [T]>,
}

/// The numbers of one SGD step; dampening is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Momentum; used by slots that have a buffer.
    pub momentum: f64,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
    /// Nesterov's form of momentum.
    pub nesterov: bool,
    /// Gradients are multiplied by this as they are read.
    pub grad_scale: f64,
}

/// Kernel constants in the parameter's type.
#[derive(Clone, Copy)]
struct Adam<T> {
    scale: T,
    /// L2 decay (Adam), 0 for AdamW.
    decay: T,
    /// 1 - lr · decay (AdamW), 1 for Adam.
    shrink: T,
    gain1: T,
    beta2: T,
    gain2: T,
    root_correction: T,
    eps: T,
    size: T,
}

#[derive(Clone, Copy)]
struct Sgd<T> {
    lr: T,
    scale: T,
    decay: T,
    momentum: T,
    nesterov: bool,
}

/// A type that parameters can have.
pub trait Real: Float + private::Kernels {}
impl Real for f32 {}
impl Real for f64 {}

mod private {
    use super::{Adam, Sgd};
    pub trait Kernels: Sized {
        #[expect(
            private_interfaces,
            reason = "the trait cannot be reached from outside"
        )]
        fn adam(p: &mut [Self], g: &[Self], m: &mut [Self], v: &mut [Self], c: Adam<Self>);
        #[expect(
            private_interfaces,
            reason = "the trait cannot be reached from outside"
        )]
        fn sgd(p: &mut [Self], g: &[Self], buffer: Option<&mut [Self]>, c: Sgd<Self>);
        fn squares(x: &[Self]) -> f64;
    }
}

macro_rules! kernels {
    ($T:ty, $adam:ident, $sgd:ident, $plain:ident, $squares:ident) => {
        multiversion! {
            fn $adam(p: &mut [$T], g: &[$T], m: &mut [$T], v: &mut [$T], c: Adam<$T>) {
                let n = p.len();
                let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
                for i in 0..n {
                    let x = p[i];
                    let grad = c.decay.mul_add(x, g[i] * c.scale);
                    let x = x * c.shrink;
                    let first = c.gain1.mul_add(grad - m[i], m[i]);
                    let second = (c.gain2 * grad).mul_add(grad, v[i] * c.beta2);
                    m[i] = first;
                    v[i] = second;
                    let root = second.sqrt() / c.root_correction + c.eps;
                    p[i] = x - c.size * (first / root);
                }
            }
        }
        multiversion! {
            fn $sgd(p: &mut [$T], g: &[$T], buffer: &mut [$T], c: Sgd<$T>) {
                let n = p.len();
                let (g, buffer) = (&g[..n], &mut buffer[..n]);
                let look_ahead: $T = if c.nesterov { 1.0 } else { 0.0 };
                for i in 0..n {
                    let grad = c.decay.mul_add(p[i], g[i] * c.scale);
                    let b = c.momentum.mul_add(buffer[i], grad);
                    buffer[i] = b;
                    let ahead = c.momentum.mul_add(b, grad);
                    let direction = if look_ahead != 0.0 { ahead } else { b };
                    p[i] -= c.lr * direction;
                }
            }
        }
        multiversion! {
            fn $plain(p: &mut [$T], g: &[$T], c: Sgd<$T>) {
                let n = p.len();
                let g = &g[..n];
                for i in 0..n {
                    let grad = c.decay.mul_add(p[i], g[i] * c.scale);
                    p[i] -= c.lr * grad;
                }
            }
        }
        multiversion! {
            /// Sum of squares over 16 fixed lanes.
            fn $squares(x: &[$T]) -> f64 {
                let mut lanes = [0.0f64; 16];
                let mut chunks = x.chunks_exact(16);
                for chunk in &mut chunks {
                    for l in 0..16 {
                        let v = chunk[l] as f64;
                        lanes[l] = v.mul_add(v, lanes[l]);
                    }
                }
                for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
                    *lane = (v as f64).mul_add(v as f64, *lane);
                }
                lanes.iter().sum()
            }
        }
        impl private::Kernels for $T {
            #[expect(
                private_interfaces,
                reason = "the trait cannot be reached from outside"
            )]
            fn adam(p: &mut [$T], g: &[$T], m: &mut [$T], v: &mut [$T], c: Adam<$T>) {
                $adam(p, g, m, v, c);
            }
            #[expect(
                private_interfaces,
                reason = "the trait cannot be reached from outside"
            )]
            fn sgd(p: &mut [$T], g: &[$T], buffer: Option<&mut [$T]>, c: Sgd<$T>) {
                match buffer {
                    Some(buffer) => $sgd(p, g, buffer, c),
                    None => $plain(p, g, c),
                }
            }
            fn squares(x: &[$T]) -> f64 {
                $squares(x)
            }
        }
    };
}
kernels!(f32, adam_f32, sgd_f32, plain_f32, squares_f32);
kernels!(f64, adam_f64, sgd_f64, plain_f64, squares_f64);

/// Cuts slices of the given lengths into parts of at most [`CHUNK`] elements.
fn parts(lengths: impl Iterator<Item = usize>) -> Vec<(usize, Range<usize>)> {
    let mut out = Vec::new();
    for (i, len) in lengths.enumerate() {
        let mut start = 0;
        while start < len {
            let end = (start + CHUNK).min(len);
            out.push((i, start..end));
            start = end;
        }
    }
    out
}

/// Nanoseconds per part, given those per element: an average, as parts differ.
fn cost(parts: &[(usize, Range<usize>)], per_element: f64) -> f64 {
    let elements: usize = parts.iter().map(|(_, r)| r.len()).sum();
    per_element * elements as f64 / parts.len().max(1) as f64
}

/// One Adam or AdamW step on every slot:
///
/// g ← scale·grad (+ decay·p for Adam), p ← p·(1 − lr·decay) (for AdamW),
/// m ← m + (1 − β₁)(g − m), v ← β₂v + (1 − β₂)g²,
/// p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε).
///
/// # Panics
/// When slices of a slot differ in length or `step` is 0.
///
/// ```
/// use entrenar_cpu::optim::{AdamStep, Slot, adam_step};
/// let (mut p, mut m, mut v) = ([1.0f32], [0.0], [0.0]);
/// let step = AdamStep {
///     lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0,
///     decoupled: true, step: 1, grad_scale: 1.0,
/// };
/// adam_step(&mut [Slot { param: &mut p, grad: &[3.0], m: &mut m, v: &mut v }], step);
/// assert!((p[0] - 0.9).abs() < 1e-6); // the first step has length lr
/// ```
pub fn adam_step<T: Real>(slots: &mut [Slot<'_, T>], step: AdamStep) {
    assert!(step.step > 0, "steps count from 1");
    let t = step.step as f64;
    let constants = Adam {
        scale: T::from_f64(step.grad_scale),
        decay: T::from_f64(if step.decoupled {
            0.0
        } else {
            step.weight_decay
        }),
        shrink: T::from_f64(if step.decoupled {
            1.0 - step.lr * step.weight_decay
        } else {
            1.0
        }),
        gain1: T::from_f64(1.0 - step.beta1),
        beta2: T::from_f64(step.beta2),
        gain2: T::from_f64(1.0 - step.beta2),
        root_correction: T::from_f64((1.0 - step.beta2.powf(t)).sqrt()),
        eps: T::from_f64(step.eps),
        size: T::from_f64(step.lr / (1.0 - step.beta1.powf(t))),
    };
    for s in slots.iter() {
        let n = s.param.len();
        assert!(
            s.grad.len() == n && s.m.len() == n && s.v.len() == n,
            "parameter, gradient and moments must be equally long"
        );
    }
    let parts = parts(slots.iter().map(|s| s.param.len()));
    let shared: Vec<_> = slots
        .iter_mut()
        .map(|s| {
            (
                Shared::new(s.param),
                s.grad,
                Shared::new(s.m),
                Shared::new(s.v),
            )
        })
        .collect();
    team::split(parts.len(), cost(&parts, 0.5), |range| {
        for (i, r) in &parts[range] {
            let (p, g, m, v) = &shared[*i];
            // SAFETY: parts are disjoint ranges of their slot.
            let (p, m, v) = unsafe { (p.slice(r.clone()), m.slice(r.clone()), v.slice(r.clone())) };
            T::adam(p, &g[r.clone()], m, v, constants);
        }
    });
}

/// One step of stochastic gradient descent on every slot:
///
/// g ← scale·grad + decay·p; with momentum μ: b ← μb + g, g ← b (Nesterov: g + μb); p ← p − lr·g.
///
/// # Panics
/// When slices of a slot differ in length.
pub fn sgd_step<T: Real>(slots: &mut [SgdSlot<'_, T>], step: SgdStep) {
    let constants = Sgd {
        lr: T::from_f64(step.lr),
        scale: T::from_f64(step.grad_scale),
        decay: T::from_f64(step.weight_decay),
        momentum: T::from_f64(step.momentum),
        nesterov: step.nesterov,
    };
    for s in slots.iter() {
        let n = s.param.len();
        assert!(
            s.grad.len() == n && s.momentum.as_ref().is_none_or(|b| b.len() == n),
            "parameter, gradient and momentum must be equally long"
        );
    }
    let parts = parts(slots.iter().map(|s| s.param.len()));
    let shared: Vec<_> = slots
        .iter_mut()
        .map(|s| {
            let buffer = s.momentum.as_deref_mut().map(Shared::new);
            (Shared::new(s.param), s.grad, buffer)
        })
        .collect();
    team::split(parts.len(), cost(&parts, 0.3), |range| {
        for (i, r) in &parts[range] {
            let (p, g, buffer) = &shared[*i];
            // SAFETY: parts are disjoint ranges of their slot.
            let p = unsafe { p.slice(r.clone()) };
            // SAFETY: as above.
            let buffer = buffer.as_ref().map(|b| unsafe { b.slice(r.clone()) });
            T::sgd(p, &g[r.clone()], buffer, constants);
        }
    });
}

/// √(Σ x²) over all elements of all arrays, in f64. NaN and infinity come through.
///
/// ```
/// use entrenar_base::Array;
/// let (a, b) = (Array::full([2], 3.0f32), Array::full([2], 4.0f32));
/// assert_eq!(entrenar_cpu::optim::global_norm(&[&a, &b]), 50f64.sqrt());
/// ```
pub fn global_norm(arrays: &[&Array]) -> f64 {
    let parts = parts(arrays.iter().map(|a| a.numel()));
    let mut sums = vec![0.0f64; parts.len()];
    let n = parts.len();
    team::split_mut(&mut sums, n, cost(&parts, 0.15), |range, sums| {
        let mut tile: Option<crate::alloc::Scratch<f64>> = None;
        for ((i, r), sum) in parts[range].iter().zip(sums) {
            *sum = squares(arrays[*i], r.clone(), &mut tile);
        }
    });
    // Pairs of parts, in an order fixed by the lengths.
    while sums.len() > 1 {
        sums = sums.chunks(2).map(|pair| pair.iter().sum()).collect();
    }
    sums.first().copied().unwrap_or(0.0).sqrt()
}

fn squares(x: &Array, range: Range<usize>, tile: &mut Option<crate::alloc::Scratch<f64>>) -> f64 {
    use private::Kernels;
    if let Ok(s) = x.as_slice::<f32>() {
        return f32::squares(&s[range]);
    }
    let tile = tile.get_or_insert_with(|| crate::alloc::Scratch::new(CHUNK));
    let tile = &mut tile[..range.len()];
    dispatch!(x.dtype(), S => {
        let view = x.view::<S>().expect("dispatched on its dtype");
        cast::load(view.data(), &Walk::new(x.layout()), range, tile);
    });
    f64::squares(tile)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{array, same_at_any_thread_count, scattered, values};
    use entrenar_base::DType;

    /// Five steps of torch.optim (2.15, f64) on p = [1, -2, 0.5] with gradients
    /// g_t = [0.1 t, -0.3, 0.2 / t]: see oracles/optimizers.py.
    const ADAM: [f64; 3] = [0.7528091591143258, -1.7501907409084416, 0.26964164482334674];
    const ADAMW: [f64; 3] = [0.736410976763576, -1.7029858625013123, 0.2685215093391528];
    const SGD: [f64; 3] = [0.90074688186875, -1.8762437656093751, 0.4651099238463542];
    const NESTEROV: [f64; 3] = [0.7028755157973812, -1.587751083912047, 0.3718185631401277];

    fn gradient(t: u64) -> [f64; 3] {
        [0.1 * t as f64, -0.3, 0.2 / t as f64]
    }

    fn close(got: &[f64], want: &[f64], tolerance: f64) {
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= tolerance, "{got:?} {want:?}");
        }
    }

    fn adam<T: Real>(decoupled: bool) -> Vec<f64> {
        let mut p: Vec<T> = [1.0, -2.0, 0.5].map(T::from_f64).to_vec();
        let (mut m, mut v) = (vec![T::ZERO; 3], vec![T::ZERO; 3]);
        for t in 1..=5 {
            // The scale is part of the contract: twice the gradient, half the factor.
            let g = gradient(t).map(|g| T::from_f64(2.0 * g));
            let step = AdamStep {
                lr: 0.05,
                beta1: 0.9,
                beta2: 0.98,
                eps: 1e-6,
                weight_decay: 0.1,
                decoupled,
                step: t,
                grad_scale: 0.5,
            };
            let slot = Slot {
                param: &mut p,
                grad: &g,
                m: &mut m,
                v: &mut v,
            };
            adam_step(&mut [slot], step);
        }
        p.into_iter().map(T::to_f64).collect()
    }

    fn sgd<T: Real>(momentum: bool, nesterov: bool) -> Vec<f64> {
        let mut p: Vec<T> = [1.0, -2.0, 0.5].map(T::from_f64).to_vec();
        let mut b = [T::ZERO; 3];
        for t in 1..=5 {
            let g = gradient(t).map(|g| T::from_f64(2.0 * g));
            let step = SgdStep {
                lr: 0.05,
                momentum: 0.9,
                weight_decay: 0.1,
                nesterov,
                grad_scale: 0.5,
            };
            let slot = SgdSlot {
                param: &mut p,
                grad: &g,
                momentum: momentum.then_some(&mut b[..]),
            };
            sgd_step(&mut [slot], step);
        }
        p.into_iter().map(T::to_f64).collect()
    }

    #[test]
    fn steps_agree_with_pytorch() {
        close(&adam::<f64>(false), &ADAM, 1e-13);
        close(&adam::<f64>(true), &ADAMW, 1e-13);
        close(&sgd::<f64>(false, false), &SGD, 1e-13);
        close(&sgd::<f64>(true, true), &NESTEROV, 1e-13);
        close(&adam::<f32>(false), &ADAM, 2e-6);
        close(&adam::<f32>(true), &ADAMW, 2e-6);
        close(&sgd::<f32>(false, false), &SGD, 2e-6);
        close(&sgd::<f32>(true, true), &NESTEROV, 2e-6);
        assert_ne!(sgd::<f64>(true, true), sgd::<f64>(true, false));
    }

    #[test]
    fn many_slots_and_threads() {
        let lengths = [0usize, 1, 100_000, 7, CHUNK, CHUNK + 1];
        same_at_any_thread_count(|| {
            let mut params: Vec<Vec<f32>> = lengths.iter().map(|&n| values(n, 1)).collect();
            let grads: Vec<Vec<f32>> = lengths.iter().map(|&n| values(n, 2)).collect();
            let mut m: Vec<Vec<f32>> = lengths.iter().map(|&n| vec![0.0; n]).collect();
            let mut v = m.clone();
            for t in 1..4 {
                let mut slots: Vec<Slot> = params
                    .iter_mut()
                    .zip(&grads)
                    .zip(m.iter_mut().zip(&mut v))
                    .map(|((param, grad), (m, v))| Slot { param, grad, m, v })
                    .collect();
                let step = AdamStep {
                    lr: 0.01,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: 0.01,
                    decoupled: true,
                    step: t,
                    grad_scale: 1.0,
                };
                adam_step(&mut slots, step);
            }
            let all: Vec<f32> = params.concat();
            let moved = all.iter().zip(lengths.map(|n| values(n, 1)).concat());
            assert!(moved.into_iter().all(|(a, b)| (*a - b).abs() < 0.1));
            let n = all.len();
            Array::from_vec(all, [n]).unwrap()
        });
    }

    #[test]
    fn norms_of_every_dtype_and_layout() {
        let a = array(&[3, 50, 1000], DType::F32, 1);
        let want = a.to_f64_vec().iter().map(|v| v * v).sum::<f64>().sqrt();
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let x = scattered(&a.cast(dtype), 77);
            assert!((global_norm(&[&x]) / want - 1.0).abs() < 1e-12);
            assert!((global_norm(&[&x, &a]) / (2f64.sqrt() * want) - 1.0).abs() < 1e-12);
        }
        same_at_any_thread_count(|| Array::scalar(global_norm(&[&a, &a.flip(1)])));
        assert_eq!(global_norm(&[]), 0.0);
        assert!(global_norm(&[&Array::full([3], f32::NAN)]).is_nan());
        // Squares that overflow f32.
        assert_eq!(
            global_norm(&[&Array::full([4], 1e30f32)]),
            2.0 * 1e30f32 as f64
        );
    }

    #[test]
    #[should_panic(expected = "equally long")]
    fn unequal_slices_are_refused() {
        let slot = SgdSlot {
            param: &mut [0.0f32; 3],
            grad: &[0.0; 2],
            momentum: None,
        };
        let step = SgdStep {
            lr: 0.1,
            momentum: 0.0,
            weight_decay: 0.0,
            nesterov: false,
            grad_scale: 1.0,
        };
        sgd_step(&mut [slot], step);
    }
}
