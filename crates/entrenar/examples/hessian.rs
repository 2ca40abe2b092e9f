//! Second derivatives: Newton's method on Rosenbrock's function.
//!
//!     cargo run --release -p entrenar --example hessian
//!
//! `hessian` gives the whole matrix, `hvp` a product with it for the price of two gradients; a
//! gradient of a gradient is the same machinery used twice.

use entrenar::prelude::*;

/// f(a, b) = (1 − a)² + 100 (b − a²)², least at (1, 1).
fn rosenbrock(x: &Tensor) -> entrenar::Result<Tensor> {
    let (a, b) = (x.select(0, 0)?, x.select(0, 1)?);
    let first = a.neg()?.add_scalar(1.0)?.square()?;
    let second = b.sub(&a.square()?)?.square()?.mul_scalar(100.0)?;
    first.add(&second)
}

/// Newton's steps from (−1.2, 1), the usual start; where they end.
fn newton(steps: usize) -> entrenar::Result<Vec<f64>> {
    let mut x = Tensor::from_vec(vec![-1.2f64, 1.0], [2])?;
    for step in 0..steps {
        let (value, gradient) = value_and_grad(|x| rosenbrock(&x[0]), &[&x])?;
        let h = hessian(rosenbrock, &x)?.to_vec::<f64>()?;
        let g = gradient[0].to_vec::<f64>()?;
        println!(
            "step {step}  f {:.3e}  at {:?}",
            value.item::<f64>()?,
            x.to_vec::<f64>()?
        );
        // H d = g for two unknowns.
        let determinant = h[0] * h[3] - h[1] * h[2];
        let d = [
            (h[3] * g[0] - h[1] * g[1]) / determinant,
            (h[0] * g[1] - h[2] * g[0]) / determinant,
        ];
        x = x.sub(&Tensor::from_vec(d.to_vec(), [2])?)?;
    }
    x.to_vec()
}

fn main() -> entrenar::Result<()> {
    println!("least at {:?}", newton(7)?);
    let x = Tensor::from_vec(vec![-1.2f64, 1.0], [2])?;
    println!(
        "Hessian at the start: {:?}",
        hessian(rosenbrock, &x)?.to_vec::<f64>()?
    );
    Ok(())
}

#[test]
fn newton_finds_the_valley() {
    for found in newton(7).unwrap() {
        assert!((found - 1.0).abs() < 1e-9, "{found}");
    }
}

#[test]
fn the_hessian_is_the_formula() {
    let (a, b) = (-1.2, 1.0);
    let x = Tensor::from_vec(vec![a, b], [2]).unwrap();
    let expected = [
        2.0 - 400.0 * b + 1200.0 * a * a,
        -400.0 * a,
        -400.0 * a,
        200.0,
    ];
    let h = hessian(rosenbrock, &x).unwrap().to_vec::<f64>().unwrap();
    let v = Tensor::from_vec(vec![0.3, -0.7], [2]).unwrap();
    let product = hvp(rosenbrock, &x, &v).unwrap().to_vec::<f64>().unwrap();
    for (found, expected) in h.iter().zip(expected) {
        assert!(
            (found - expected).abs() <= 1e-9 * expected.abs(),
            "{found} and {expected}"
        );
    }
    for (row, found) in product.iter().enumerate() {
        let by_hand = expected[2 * row] * 0.3 - expected[2 * row + 1] * 0.7;
        assert!(
            (found - by_hand).abs() <= 1e-9 * by_hand.abs(),
            "{found} and {by_hand}"
        );
    }
}
