//! Kernels against plain definitions, finite differences, other thread counts and hostile input.
//! One file per family; what they share is here.

mod attention;
mod conv;
mod index;
mod linalg;
mod loss;
mod norm;
mod order;
mod pool;
mod quant;
mod rotary;
mod softmax;
mod torch;

use entrenar_base::{Array, DType, Philox, Shape};
use entrenar_cpu::team;

/// Normal numbers, f64.
pub fn random(shape: impl Into<Shape>, seed: u64) -> Array {
    let shape = shape.into();
    let values = (0..shape.numel() as u64)
        .map(|i| Philox::new(seed, 1).block(i))
        .map(|b| {
            let u = |w: u32| (f64::from(w) + 0.5) / 2f64.powi(32);
            (-2.0 * u(b[0]).ln()).sqrt() * (std::f64::consts::TAU * u(b[1])).cos()
        })
        .collect();
    Array::from_vec::<f64>(values, shape).unwrap()
}

/// Integers in `0..limit`, i64.
pub fn random_index(shape: impl Into<Shape>, limit: usize, seed: u64) -> Array {
    let shape = shape.into();
    let values = (0..shape.numel() as u64)
        .map(|i| i64::from(Philox::new(seed, 2).block(i)[0]) % limit as i64)
        .collect();
    Array::from_vec::<i64>(values, shape).unwrap()
}

/// The same values under a layout with reversed memory order.
pub fn strided(x: &Array) -> Array {
    let axes: Vec<usize> = (0..x.rank()).rev().collect();
    x.permute(&axes)
        .unwrap()
        .deep_copy()
        .permute(&axes)
        .unwrap()
}

/// Asserts equal shapes and |a - b| ≤ tolerance·(1 + |b|) everywhere (NaN equals NaN).
#[track_caller]
pub fn assert_close(a: &Array, b: &Array, tolerance: f64) {
    assert_eq!(a.shape(), b.shape());
    for (i, (x, y)) in a.to_f64_vec().iter().zip(b.to_f64_vec()).enumerate() {
        let same = x == &y || x.is_nan() && y.is_nan();
        assert!(
            same || (x - y).abs() <= tolerance * (1.0 + y.abs()),
            "element {i}: {x} against {y}"
        );
    }
}

/// Asserts that `analytic` is the gradient of ⟨cotangent, f(x)⟩ at `x`, by central differences.
#[track_caller]
pub fn assert_gradient(
    x: &Array,
    cotangent: &Array,
    f: impl Fn(&Array) -> Array,
    analytic: &Array,
) {
    assert_eq!(x.shape(), analytic.shape());
    let step = 1e-5;
    let c = cotangent.to_f64_vec();
    let along = |i: usize, h: f64| -> f64 {
        let mut moved = x.deep_copy();
        moved.make_mut::<f64>().unwrap()[i] += h;
        let y = f(&moved);
        assert_eq!(y.shape(), cotangent.shape());
        y.to_f64_vec().iter().zip(&c).map(|(y, c)| y * c).sum()
    };
    for (i, got) in analytic.to_f64_vec().into_iter().enumerate() {
        let want = (along(i, step) - along(i, -step)) / (2.0 * step);
        assert!(
            (got - want).abs() <= 1e-6 * (1.0 + want.abs()),
            "element {i}: {got}, differences give {want}"
        );
    }
}

/// Asserts that a computation gives the same bytes at 1, 2 and 5 threads.
#[track_caller]
pub fn assert_same_bits(f: impl Fn() -> Vec<Array>) {
    let mut runs = [1, 2, 5].map(|threads| {
        team::set_threads(threads);
        f().iter()
            .map(|a| a.as_bytes().unwrap().to_vec())
            .collect::<Vec<_>>()
    });
    team::set_threads(2);
    let first = std::mem::take(&mut runs[0]);
    assert!(!first.is_empty());
    for run in &runs[1..] {
        assert!(run == &first, "bits depend on the number of threads");
    }
}

/// `array` in f32.
pub fn single(array: &Array) -> Array {
    array.cast(DType::F32)
}

/// All multi-indices of a shape in row-major order.
pub fn positions(dims: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &d in dims {
        all = all
            .into_iter()
            .flat_map(|p| {
                (0..d).map(move |i| {
                    let mut p = p.clone();
                    p.push(i);
                    p
                })
            })
            .collect();
    }
    all
}

/// Element at a multi-index.
pub fn at(x: &Array, index: &[usize]) -> f64 {
    let mut part = x.clone();
    for (d, &i) in index.iter().enumerate() {
        part = part.slice(d, i, i + 1, 1).unwrap();
    }
    part.to_f64_vec()[0]
}

/// An f64 array from a function of the multi-index.
pub fn build(shape: &[usize], f: impl Fn(&[usize]) -> f64) -> Array {
    Array::from_vec(positions(shape).iter().map(|p| f(p)).collect(), shape).unwrap()
}
