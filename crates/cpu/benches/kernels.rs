//! Quick timings of the kernels: the best of several rounds, printed as a table.
//!
//! Run: `cargo bench -p entrenar-cpu`, with `ENTRENAR_THREADS=1` for one core.

use entrenar_base::{Array, DType, Philox};
use entrenar_cpu::pointwise::{Binary, Compute, Program, Unary, run};
use entrenar_cpu::reduce::{Reduce, reduce};
use entrenar_cpu::{cast, copy, matmul, optim, random};
use std::hint::black_box;
use std::time::Instant;

/// Nanoseconds of one call, the best of 15 rounds of about 10 ms.
fn best(mut body: impl FnMut()) -> f64 {
    (0..3).for_each(|_| body());
    let begin = Instant::now();
    (0..3).for_each(|_| body());
    let once = (begin.elapsed().as_nanos() as f64 / 3.0).max(20.0);
    let calls = ((1e7 / once) as usize).clamp(1, 200_000);
    (0..15)
        .map(|_| {
            let begin = Instant::now();
            (0..calls).for_each(|_| body());
            begin.elapsed().as_nanos() as f64 / calls as f64
        })
        .fold(f64::INFINITY, f64::min)
}

/// Times `body` unless the command line names other timings.
fn report(name: &str, body: impl FnMut()) -> f64 {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
        return f64::NAN;
    }
    let ns = best(body);
    println!("{name:<40} {:>12.3} us", ns / 1e3);
    ns
}

fn gflops(n: usize, ns: f64) {
    if ns.is_finite() {
        println!("{:>52.1} GFLOP/s", 2.0 * (n as f64).powi(3) / ns);
    }
}

fn main() {
    entrenar_cpu::init();
    println!(
        "{} threads, {:?}",
        entrenar_cpu::team::threads(),
        entrenar_cpu::simd::level()
    );
    let r = Philox::new(1, 2);
    let make = |dims: &[usize]| random::normal(dims, DType::F32, &r).unwrap();

    for n in [4, 16, 31, 32, 64, 256, 1024] {
        let (a, b) = (make(&[n, n]), make(&[n, n]));
        let ns = report(&format!("matmul f32 {n}"), || {
            black_box(matmul::matmul(&a, &b).unwrap());
        });
        gflops(n, ns);
    }
    let (a, b) = (make(&[1024, 1024]), make(&[1024, 1024]));
    let (a, b) = (a.cast(DType::BF16), b.cast(DType::BF16));
    let ns = report("matmul bf16 1024", || {
        black_box(matmul::matmul(&a, &b).unwrap());
    });
    gflops(1024, ns);

    let small = make(&[16]);
    let add = Program::binary(Binary::Add).compile();
    report("add 16", || {
        black_box(run(&add, Compute::F32, &[&small, &small], DType::F32).unwrap());
    });
    report("allocate 64 bytes", || {
        black_box(Array::build([16], |_: &mut [f32]| {}));
    });
    let row = make(&[1, 16]).broadcast_to(&[4, 16].into()).unwrap();
    let x = make(&[4, 16]);
    report("add 4x16 + broadcast row", || {
        black_box(run(&add, Compute::F32, &[&x, &row], DType::F32).unwrap());
    });

    attention(&make);

    let n = 4 << 20;
    let (x, y) = (make(&[n]), make(&[n]));
    report("add 4M", || {
        black_box(run(&add, Compute::F32, &[&x, &y], DType::F32).unwrap());
    });
    for op in [
        Unary::Exp,
        Unary::Log,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::Erf,
        Unary::Sin,
        Unary::Softplus,
        Unary::Erfc,
        Unary::Atan,
    ] {
        let p = Program::unary(op).compile();
        report(&format!("{} 4M", op.name()), || {
            black_box(run(&p, Compute::F32, &[&x], DType::F32).unwrap());
        });
    }
    let pow = Program::binary(Binary::Pow).compile();
    report("pow 4M", || {
        black_box(run(&pow, Compute::F32, &[&x, &y], DType::F32).unwrap());
    });
    let t = make(&[2048, 2048]).transpose(0, 1).unwrap();
    report("transpose 2048x2048", || {
        black_box(copy::contiguous(&t).unwrap());
    });
    report("cast 4M to bf16", || {
        black_box(cast::cast(&x, DType::BF16).unwrap());
    });
    let m = make(&[2048, 2048]);
    for (name, dims) in [("all", &[0, 1][..]), ("rows", &[1]), ("columns", &[0])] {
        report(&format!("sum 2048x2048 {name}"), || {
            black_box(reduce(Reduce::Sum, &m, dims).unwrap());
        });
    }
    report("argmax 2048x2048 rows", || {
        black_box(entrenar_cpu::reduce::arg_reduce(true, &m, 1).unwrap());
    });
    report("uniform 4M", || {
        black_box(random::uniform([n], DType::F32, &r).unwrap());
    });
    report("normal 4M", || {
        black_box(random::normal([n], DType::F32, &r).unwrap());
    });
    let grad = y.to_vec::<f32>().unwrap();
    let (mut p, mut m, mut v) = (grad.clone(), vec![0.0; n], vec![0.0; n]);
    report("AdamW 4M", || {
        let slot = optim::Slot {
            param: &mut p,
            grad: &grad,
            m: &mut m,
            v: &mut v,
        };
        let step = optim::AdamStep {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            decoupled: true,
            step: 10,
            grad_scale: 1.0,
        };
        optim::adam_step(&mut [slot], step);
    });
}

/// Causal attention over one projection `[batch, time, 3, heads, 64]`, forward and backward.
fn attention(make: &dyn Fn(&[usize]) -> Array) {
    use entrenar_cpu::attention::{Attention, attention, packed_attention_backward};
    for (batch, time, heads) in [(8, 256, 6), (1, 256, 12), (12, 64, 4), (1, 2048, 8)] {
        for dtype in [DType::F32, DType::BF16] {
            let qkv = make(&[batch, time, 3, heads, 64]).cast(dtype);
            let part = |i: usize| {
                let part = qkv.slice(2, i, i + 1, 1).unwrap();
                let part = part.reshape([batch, time, heads, 64]).unwrap();
                part.permute(&[0, 2, 1, 3]).unwrap()
            };
            let (q, k, v) = (part(0), part(1), part(2));
            let problem = Attention::new(&q, &k, &v, 0.125, true);
            let (out, lse) = attention(&problem).unwrap();
            // Half of the scores, two products forward and five backward.
            let flops = 2.0 * (batch * heads * time * time * 64) as f64;
            let name = format!("attention {dtype} {batch}x{time}x{heads}");
            let ns = report(&name, || {
                black_box(attention(&problem).unwrap());
            });
            println!("{:>52.1} GFLOP/s", flops / ns);
            let ns = report(&format!("{name} backward"), || {
                black_box(packed_attention_backward(&problem, &out, &out, &lse).unwrap());
            });
            println!("{:>52.1} GFLOP/s", 2.5 * flops / ns);
        }
    }
}
