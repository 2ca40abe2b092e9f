//! Resampling.

use entrenar_base::Result;
use entrenar_core::Tensor;
use entrenar_core::ops::interpolate::Interpolation;

use super::{Operation, one};
use crate::call::Call;
use crate::suite::Value;

// `mode="area"` and `antialias=True` are in the list of what is not supported.
pub(super) const OPERATIONS: &[Operation] = &[one!(
    "nn.functional.interpolate",
    "size scale_factor mode align_corners recompute_scale_factor antialias",
    |c| interpolate(c)
)];

fn interpolate(c: &Call<'_>) -> Result<Tensor> {
    let x = c.input()?;
    let align_corners = c.flag("align_corners")?;
    let mode = match c.text("mode")?.unwrap_or("nearest") {
        "nearest" => Interpolation::Nearest,
        "nearest-exact" => Interpolation::NearestExact,
        "linear" | "bilinear" | "trilinear" => Interpolation::Linear { align_corners },
        "bicubic" => Interpolation::Cubic { align_corners },
        _ => return Err(c.unknown("mode", "a mode of interpolation")),
    };
    if c.value("size").is_some() {
        return x.interpolate(&c.counts("size")?, mode);
    }
    let spatial = x.dims().get(2..).unwrap_or_default();
    let scale = scales(c, spatial.len())?;
    if c.flag("recompute_scale_factor")? {
        let grown = spatial.iter().zip(&scale);
        let size: Vec<usize> = grown.map(|(&n, s)| (n as f64 * s) as usize).collect();
        return x.interpolate(&size, mode);
    }
    x.interpolate_scaled(&scale, mode)
}

/// One scale per dimension.
fn scales(c: &Call<'_>, rank: usize) -> Result<Vec<f64>> {
    if let Some(Value::List(list)) = c.value("scale_factor") {
        let number = |v: &Value| match v {
            Value::Float(f) => Some(*f),
            Value::Int(i) => Some(*i as f64),
            _ => None,
        };
        let list: Option<Vec<f64>> = list.iter().map(number).collect();
        return list.ok_or_else(|| c.unknown("scale_factor", "numbers"));
    }
    match c.real("scale_factor")? {
        Some(scale) => Ok(vec![scale; rank]),
        None => Err(c.unknown("scale_factor", "a number, as there is no size")),
    }
}
