//! Adam with moments in 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise Quantization",
//! 2021): each block of 256 moments is read into floats, updated, and quantized again.
//!
//! The first moment uses the signed map of [`crate::quant8`], the second the unsigned one. The formula
//! is [`crate::optim::adam_step`]'s in the order of bitsandbytes' CPU kernel, whose codes it gives.

use crate::optim::AdamStep;
use crate::quant8::{Codebook, Map};
use crate::team::{self, Shared};

/// Numbers that share a scale.
pub const BLOCK: usize = 256;

/// Moments of one kind: codes, and one scale per [`BLOCK`] of them.
pub struct Moment<'a> {
    /// One code per number, 0 before the first step.
    pub codes: &'a mut [u8],
    /// 0 before the first step.
    pub scales: &'a mut [f32],
}

/// One parameter; value, gradient and codes are equally long.
pub struct Slot8<'a> {
    /// The value.
    pub param: &'a mut [f32],
    /// The gradient.
    pub grad: &'a [f32],
    /// First moment.
    pub m: Moment<'a>,
    /// Second moment.
    pub v: Moment<'a>,
}

/// Constants of a step.
#[derive(Clone, Copy)]
struct Constants {
    scale: f32,
    shrink: f32,
    beta1: f32,
    gain1: f32,
    beta2: f32,
    gain2: f32,
    root_correction: f32,
    eps: f32,
    size: f32,
}

/// One step of AdamW on every slot, decay apart from the gradient whatever `step.decoupled` says.
///
/// # Panics
/// When slices of a slot do not belong together or `step` is 0.
///
/// ```
/// use entrenar_cpu::optim::AdamStep;
/// use entrenar_cpu::optim8::{Moment, Slot8, adam8_step};
/// let (mut p, mut m, mut v) = ([1.0f32], [0u8], [0u8]);
/// let (mut ms, mut vs) = ([0.0f32], [0.0f32]);
/// let step = AdamStep {
///     lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0,
///     decoupled: true, step: 1, grad_scale: 1.0,
/// };
/// let slot = Slot8 {
///     param: &mut p,
///     grad: &[3.0],
///     m: Moment { codes: &mut m, scales: &mut ms },
///     v: Moment { codes: &mut v, scales: &mut vs },
/// };
/// adam8_step(&mut [slot], step);
/// assert!((p[0] - 0.9).abs() < 1e-6); // the first step has length lr
/// ```
pub fn adam8_step(slots: &mut [Slot8<'_>], step: AdamStep) {
    assert!(step.step > 0, "steps count from 1");
    let t = step.step as f64;
    let c = Constants {
        scale: step.grad_scale as f32,
        shrink: (1.0 - step.lr * step.weight_decay) as f32,
        beta1: step.beta1 as f32,
        gain1: (1.0 - step.beta1) as f32,
        beta2: step.beta2 as f32,
        gain2: (1.0 - step.beta2) as f32,
        root_correction: (1.0 - step.beta2.powf(t)).sqrt() as f32,
        eps: step.eps as f32,
        size: (step.lr / (1.0 - step.beta1.powf(t))) as f32,
    };
    for s in slots.iter_mut() {
        let n = s.param.len();
        let blocks = n.div_ceil(BLOCK);
        let fits = |m: &Moment<'_>| m.codes.len() == n && m.scales.len() == blocks;
        assert!(
            s.grad.len() == n && fits(&s.m) && fits(&s.v),
            "parameter, gradient and moments must belong together"
        );
        let (grad, param) = (s.grad, Shared::new(s.param));
        let (m, v) = (Shared::new(s.m.codes), Shared::new(s.v.codes));
        let (ms, vs) = (Shared::new(s.m.scales), Shared::new(s.v.scales));
        team::split(blocks, BLOCK as f64 * 5.0, |range| {
            for b in range {
                let here = b * BLOCK..n.min((b + 1) * BLOCK);
                // SAFETY: blocks are disjoint.
                let (p, m, v, ms, vs) = unsafe {
                    (
                        param.slice(here.clone()),
                        m.slice(here.clone()),
                        v.slice(here.clone()),
                        ms.slice(b..b + 1),
                        vs.slice(b..b + 1),
                    )
                };
                block(p, &grad[here], (m, &mut ms[0]), (v, &mut vs[0]), c);
            }
        });
    }
}

fn block(
    p: &mut [f32],
    g: &[f32],
    (m, m_scale): (&mut [u8], &mut f32),
    (v, v_scale): (&mut [u8], &mut f32),
    c: Constants,
) {
    let (signed, unsigned) = (Codebook::signed(), Codebook::unsigned());
    let read = |map: &Map, codes: &[u8], scale: f32| {
        let mut out = [0.0f32; BLOCK];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = map[usize::from(*code)] * scale;
        }
        out
    };
    let mut first = read(signed.values(), m, *m_scale);
    let mut second = read(unsigned.values(), v, *v_scale);
    for (i, (p, g)) in p.iter_mut().zip(g).enumerate() {
        let g = g * c.scale;
        first[i] = c.gain1.mul_add(g, first[i] * c.beta1);
        second[i] = second[i] * c.beta2 + (c.gain2 * g) * g;
        let root = second[i].sqrt() / c.root_correction + c.eps;
        *p = *p * c.shrink - (c.size * first[i]) / root;
    }
    let n = p.len();
    *m_scale = signed.quantize(&first[..n], m);
    *v_scale = unsigned.quantize(&second[..n], v);
}
