//! The updates of single parameters, in their dtype.

use entrenar_base::{Array, DType, Element, Error, Result};

/// One update of Adam or AdamW.
#[derive(Clone, Copy)]
pub(super) struct Adam {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub decoupled: bool,
    pub step: u64,
    pub gradient_scale: f64,
}

/// One update of SGD.
#[derive(Clone, Copy)]
pub(super) struct Sgd {
    pub learning_rate: f64,
    pub momentum: f64,
    pub dampening: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
    pub gradient_scale: f64,
}

pub(super) fn adam(
    value: &mut Array,
    gradient: &Array,
    m: &mut Array,
    v: &mut Array,
    s: Adam,
) -> Result<()> {
    fn run<T: Element>(
        value: &mut Array,
        gradient: &Array,
        m: &mut Array,
        v: &mut Array,
        s: Adam,
    ) -> Result<()> {
        let step = s.step as f64;
        let size = s.learning_rate / (1.0 - s.beta1.powf(step));
        let root = (1.0 - s.beta2.powf(step)).sqrt();
        let gradient = gradient.as_slice::<T>()?;
        let (value, m, v) = (
            value.make_mut::<T>()?,
            m.make_mut::<T>()?,
            v.make_mut::<T>()?,
        );
        for (((p, g), m), v) in value.iter_mut().zip(gradient).zip(m).zip(v) {
            let mut x = p.to_f64();
            let mut g = g.to_f64() * s.gradient_scale;
            if s.decoupled {
                x *= 1.0 - s.learning_rate * s.weight_decay;
            } else {
                g += s.weight_decay * x;
            }
            let new_m = m.to_f64() * s.beta1 + (1.0 - s.beta1) * g;
            let new_v = v.to_f64() * s.beta2 + (1.0 - s.beta2) * g * g;
            x -= size * new_m / (new_v.sqrt() / root + s.eps);
            (*p, *m, *v) = (T::from_f64(x), T::from_f64(new_m), T::from_f64(new_v));
        }
        Ok(())
    }
    match value.dtype() {
        DType::F32 => run::<f32>(value, gradient, m, v, s),
        DType::F64 => run::<f64>(value, gradient, m, v, s),
        other => Err(Error::dtype("adam", "f32 or f64", other)),
    }
}

pub(super) fn sgd(
    value: &mut Array,
    gradient: &Array,
    buffer: Option<&mut Array>,
    s: Sgd,
) -> Result<()> {
    fn run<T: Element>(
        value: &mut Array,
        gradient: &Array,
        buffer: Option<&mut Array>,
        s: Sgd,
    ) -> Result<()> {
        let gradient = gradient.as_slice::<T>()?;
        let value = value.make_mut::<T>()?;
        let total = |p: &T, g: &T| g.to_f64() * s.gradient_scale + s.weight_decay * p.to_f64();
        match buffer {
            None => {
                for (p, g) in value.iter_mut().zip(gradient) {
                    *p = T::from_f64(p.to_f64() - s.learning_rate * total(p, g));
                }
            }
            Some(buffer) => {
                for ((p, g), b) in value.iter_mut().zip(gradient).zip(buffer.make_mut::<T>()?) {
                    let g = total(p, g);
                    let new = s.momentum * b.to_f64() + (1.0 - s.dampening) * g;
                    let d = if s.nesterov {
                        g + s.momentum * new
                    } else {
                        new
                    };
                    *p = T::from_f64(p.to_f64() - s.learning_rate * d);
                    *b = T::from_f64(new);
                }
            }
        }
        Ok(())
    }
    match value.dtype() {
        DType::F32 => run::<f32>(value, gradient, buffer, s),
        DType::F64 => run::<f64>(value, gradient, buffer, s),
        other => Err(Error::dtype("sgd", "f32 or f64", other)),
    }
}
