//! Fixed inputs shared with `oracles/nn_goldens.py`, and comparison with its results.

use entrenar_core::{Shape, Tensor};

/// sin(0.7 i + 1.3 seed) at row-major place i, in f64.
pub fn fill(shape: impl Into<Shape>, seed: usize) -> Tensor {
    let shape = shape.into();
    let values = (0..shape.numel())
        .map(|i| (0.7 * i as f64 + 1.3 * seed as f64).sin())
        .collect();
    Tensor::from_vec::<f64>(values, shape).unwrap()
}

/// Fails unless every element is within `tolerance`, relative to the larger of 1 and the value.
#[track_caller]
pub fn close(got: &Tensor, want: &[f64], tolerance: f64, what: &str) {
    let got = got.array().to_f64_vec();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * w.abs().max(1.0),
            "{what}: element {i} is {g}, expected {w}"
        );
    }
}
