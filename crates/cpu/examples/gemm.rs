//! Matrix products by shape, dtype and layout, in GFLOP/s of the best round.
//!
//! Run: `cargo run --release -p entrenar-cpu --example gemm [-- f32 bf16 mixed fused packed small M,N,K …]`;
//! `ENTRENAR_THREADS=1` for one core, `ENTRENAR_BF16=tiles|dot|fma` for other ways to multiply bf16.

use std::hint::black_box;
use std::time::Instant;

use entrenar_base::{Array, DType, Philox};
use entrenar_cpu::product::{Activation, Compute, Options, PackedMatrix, product, product_acc};
use entrenar_cpu::{matmul, random};

/// Seconds of one call, the best of 12 rounds of about 10 ms.
fn best(mut body: impl FnMut()) -> f64 {
    (0..3).for_each(|_| body());
    let begin = Instant::now();
    body();
    let once = begin.elapsed().as_secs_f64();
    let calls = ((1e-2 / once) as usize).clamp(1, 20_000);
    let round = |body: &mut dyn FnMut()| {
        let begin = Instant::now();
        (0..calls).for_each(|_| body());
        begin.elapsed().as_secs_f64() / calls as f64
    };
    (0..12)
        .map(|_| round(&mut body))
        .fold(f64::INFINITY, f64::min)
}

fn report(name: &str, (m, n, k): (usize, usize, usize), body: impl FnMut()) {
    let seconds = best(body);
    let rate = 2.0 * (m * n) as f64 * k as f64 / seconds / 1e9;
    println!(
        "{name:<24} {m:>5} {n:>5} {k:>5} {:>10.1} us {rate:>7.1} GFLOP/s",
        seconds * 1e6
    );
}

fn main() {
    entrenar_cpu::init();
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let (shapes, wanted): (Vec<&String>, Vec<&String>) =
        words.iter().partition(|w| w.contains(','));
    let mut shapes: Vec<(usize, usize, usize)> = shapes
        .iter()
        .map(|s| {
            let sizes: Vec<usize> = s.split(',').map(|n| n.parse().expect("M,N,K")).collect();
            (sizes[0], sizes[1], sizes[2])
        })
        .collect();
    if shapes.is_empty() {
        shapes = [64, 128, 192, 256, 512, 1024, 2048]
            .map(|n| (n, n, n))
            .to_vec();
        shapes.push((512, 3072, 768));
    }
    let on = |name: &str| wanted.is_empty() || wanted.iter().any(|w| *w == name);
    let random = Philox::new(1, 2);
    let make = |r: usize, c: usize, dtype| {
        random::normal([r, c], DType::F32, &random)
            .unwrap()
            .cast(dtype)
    };
    for (m, n, k) in shapes {
        let size = (m, n, k);
        let (a, b) = (make(m, k, DType::F32), make(k, n, DType::F32));
        let (half_a, half_b) = (a.cast(DType::BF16), b.cast(DType::BF16));
        let flipped = |x: &Array| {
            let (r, c) = (x.dims()[0], x.dims()[1]);
            make(c, r, x.dtype()).transpose(0, 1).unwrap()
        };
        let (at, bt) = (flipped(&a), flipped(&b));
        let run = |name: &str, a: &Array, b: &Array, options: &Options<'_>| {
            report(name, size, || {
                black_box(product(a, b, options).unwrap());
            });
        };
        let plain = Options::default();
        let rounded = Options {
            compute: Compute::Bf16,
            output: Some(DType::BF16),
            ..plain
        };
        if on("f32") {
            report("f32", size, || {
                black_box(matmul::matmul(&a, &b).unwrap());
            });
        }
        if on("turned") {
            run("f32 b turned", &a, &bt, &plain);
            run("f32 a turned", &at, &b, &plain);
        }
        if on("bf16") {
            run("bf16", &half_a, &half_b, &rounded);
        }
        if on("mixed") {
            run("bf16 x f32", &half_a, &b, &rounded);
            run("bf16 x f32 turned", &half_a, &bt, &rounded);
            run("f32 x f32 in bf16", &a, &b, &rounded);
        }
        if on("fused") {
            let bias = make(1, n, DType::F32).reshape([n]).unwrap();
            let residual = make(m, n, DType::F32);
            for activation in [
                Activation::None,
                Activation::Relu,
                Activation::GeluTanh,
                Activation::Gelu,
            ] {
                let bias = Some(&bias);
                let options = Options {
                    bias,
                    activation,
                    ..plain
                };
                run(&format!("f32 bias {activation:?}"), &a, &b, &options);
            }
            let options = Options {
                bias: Some(&bias),
                residual: Some(&residual),
                ..plain
            };
            run("f32 bias residual", &a, &b, &options);
            let mut sum = make(m, n, DType::F32);
            report("f32 accumulate", size, || {
                product_acc(&mut sum, &a, &b, Compute::F32).unwrap()
            });
        }
        if on("packed") {
            for (name, compute) in [("f32 packed", Compute::F32), ("bf16 packed", Compute::Bf16)] {
                let packed = PackedMatrix::new(&b, compute).unwrap();
                report(name, size, || {
                    black_box(product(&a, &packed, &plain).unwrap());
                });
                report(&format!("{name}: packing"), size, || {
                    black_box(PackedMatrix::new(&b, compute).unwrap());
                });
            }
        }
    }
    if on("batched") {
        for (batch, m, n, k) in [
            (48, 64, 64, 64),
            (96, 256, 256, 64),
            (96, 256, 64, 256),
            (2048, 12, 12, 12),
        ] {
            let make = |dims: [usize; 3]| random::normal(dims, DType::F32, &random).unwrap();
            let (a, b) = (make([batch, m, k]), make([batch, k, n]));
            report(&format!("f32 batch of {batch}"), (m * batch, n, k), || {
                black_box(matmul::matmul(&a, &b).unwrap());
            });
        }
    }
}
