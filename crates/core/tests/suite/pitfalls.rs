//! The classic mistakes of automatic differentiation, each with its test.
//!
//! Each test names the mistake it would catch. The first one, the shared node, is where small
//! engines fail: a value used twice must send back the sum of both gradients, once.

use std::sync::Arc;

use entrenar_base::memory;
use entrenar_core::autograd::{DualTensor, GradOptions, grad, hvp, jvp, value_and_grad};
use entrenar_core::{DType, ErrorKind, GradientTape, Result, Tensor, no_grad};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()])
        .unwrap()
        .requires_grad()
        .unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_vec::<f64>().unwrap()
}

fn gradient(t: &Tensor) -> Vec<f64> {
    values(&t.grad().expect("a gradient"))
}

/// A value used twice, and a residual block of it: gradients add up, each node runs once.
#[test]
fn shared_nodes_are_counted_once() -> Result<()> {
    let x = leaf(&[3.0]);
    let a = x.mul(&x)?;
    let b = a.add(&a)?.mul(&a)?; // 2a² = 2x⁴
    b.sum()?.backward()?;
    assert_eq!(gradient(&x), [8.0 * 27.0]);

    // y ← y + y·w, eight times: y = x (1 + w)^8. Naive engines visit 2^8 paths or drop the skip.
    let (x, w) = (leaf(&[2.0]), leaf(&[0.5]));
    let mut y = x.clone();
    for _ in 0..8 {
        y = y.add(&y.mul(&w)?)?;
    }
    y.sum()?.backward()?;
    assert!((gradient(&x)[0] - 1.5f64.powi(8)).abs() < 1e-12);
    assert!((gradient(&w)[0] - 2.0 * 8.0 * 1.5f64.powi(7)).abs() < 1e-11);
    Ok(())
}

/// P1: `create_graph` must not make reference cycles.
#[test]
fn create_graph_leaves_no_cycles() -> Result<()> {
    let step = || -> Result<()> {
        let x = leaf(&[1.5; 64]);
        let y = x.exp()?.mul(&x)?.sum()?;
        y.backward_with_options(&GradOptions {
            create_graph: true,
            ..Default::default()
        })?;
        let g = x.grad().expect("a gradient");
        assert!(g.is_tracked());
        x.zero_grad(); // the leaf's own cell may hold the graph; clearing it is PyTorch's rule too
        Ok(())
    };
    step()?;
    let held = {
        let x = leaf(&[1.0; 1000]);
        let y = x.exp()?;
        let g = grad(
            &[&y.sum()?],
            &[&x],
            &GradOptions {
                create_graph: true,
                ..Default::default()
            },
        )?;
        let held = g[0].as_ref().unwrap().array().clone();
        assert!(!held.is_exclusive());
        held
    };
    assert!(
        held.is_exclusive(),
        "the gradient outlived every handle on it"
    );
    // A cycle would keep a step's 3 arrays of 512 bytes and more: 1,000 of them 1.5 MB. Other tests
    // run beside this one and hold more for a moment, so the quietest reading counts.
    let quietest = |steps: usize| -> Result<usize> {
        let mut least = usize::MAX;
        for _ in 0..steps {
            step()?;
            least = least.min(memory::live_bytes());
        }
        Ok(least)
    };
    let before = quietest(500)?;
    quietest(1000)?;
    let after = quietest(500)?;
    assert!(
        after < before + 1_000_000,
        "{before} live bytes before 1,000 steps with create_graph, {after} after"
    );
    Ok(())
}

/// P2: neither backward nor drop may recurse along the graph.
#[test]
fn a_chain_of_150_000_operations_runs_and_drops() -> Result<()> {
    let x = leaf(&[1.0]);
    let chain = || -> Result<Tensor> {
        let mut y = x.clone();
        for _ in 0..150_000 {
            y = y.neg()?;
        }
        Ok(y)
    };
    chain()?.sum()?.backward()?;
    assert_eq!(gradient(&x), [1.0]);
    drop(chain()?); // never used: freed without a backward pass
    Ok(())
}

/// P3: perturbation confusion in every mix of modes: d/dx [x · d/dy (x + y)] = 1.
#[test]
fn nested_derivatives_do_not_mix() -> Result<()> {
    let one = Tensor::scalar(1.0f64);
    let x0 = Tensor::scalar(1.0f64);
    let forward = |f: &dyn Fn(&Tensor) -> Result<Tensor>, at: &Tensor| -> Result<Tensor> {
        Ok(jvp(|t| Ok(vec![f(&t[0])?]), &[at], &[&one])?.1.remove(0))
    };
    let reverse = |f: &dyn Fn(&Tensor) -> Result<Tensor>, at: &Tensor| -> Result<Tensor> {
        Ok(value_and_grad(|t| f(&t[0]), &[at])?.1.remove(0))
    };
    type Derivative<'a> = &'a dyn Fn(&dyn Fn(&Tensor) -> Result<Tensor>, &Tensor) -> Result<Tensor>;
    let modes: [(&str, Derivative<'_>); 2] = [("forward", &forward), ("reverse", &reverse)];
    for (outer_name, outer) in modes {
        for (inner_name, inner) in modes {
            let d = outer(&|x: &Tensor| x.mul(&inner(&|y: &Tensor| x.add(y), x)?), &x0)?;
            assert_eq!(d.item::<f64>()?, 1.0, "{outer_name} over {inner_name}");
            // And a case whose inner derivative depends on x: d/dx [x · d/dy (x·y)] = 2x.
            let d = outer(
                &|x: &Tensor| x.mul(&inner(&|y: &Tensor| x.mul(y), &one)?),
                &x0,
            )?;
            assert_eq!(d.item::<f64>()?, 2.0, "{outer_name} over {inner_name}");
        }
    }
    Ok(())
}

/// P4: a value saved for backward must not change under the graph.
#[test]
fn updates_between_forward_and_backward_do_not_reach_the_graph() -> Result<()> {
    let before = memory::copies_on_write();
    let w = leaf(&[3.0]);
    let x = leaf(&[2.0]);
    let y = w.mul(&x)?.sum()?;
    // An optimizer step on the parameter's array: copy on write protects the graph.
    let mut array = w.array().clone();
    array.make_mut::<f64>()?[0] = 100.0;
    assert!(memory::copies_on_write() > before);
    y.backward()?;
    assert_eq!(gradient(&x), [3.0]);
    Ok(())
}

/// P5: views alias; writing through one must not be seen through the other.
#[test]
fn overlapping_views_never_alias_writes() -> Result<()> {
    let base = Tensor::from_vec(vec![1.0f64, 2.0, 3.0, 4.0], [4])?;
    let (left, right) = (base.narrow(0, 0, 3)?, base.narrow(0, 1, 3)?);
    let mut written = left.array().clone();
    written.make_mut::<f64>()?.fill(9.0);
    assert_eq!(values(&right), [2.0, 3.0, 4.0]);
    assert_eq!(values(&base), [1.0, 2.0, 3.0, 4.0]);

    // Overlapping slices of one leaf: contributions add up.
    let x = leaf(&[1.0, 2.0, 3.0, 4.0]);
    x.narrow(0, 0, 3)?
        .add(&x.narrow(0, 1, 3)?)?
        .sum()?
        .backward()?;
    assert_eq!(gradient(&x), [1.0, 2.0, 2.0, 1.0]);
    Ok(())
}

/// P6: the gradient of a broadcast operand is summed back to its own shape.
#[test]
fn broadcast_gradients_are_reduced() -> Result<()> {
    let a = Tensor::ones([3, 1], DType::F64).requires_grad()?;
    let b = Tensor::ones([4], DType::F64).requires_grad()?;
    let s = Tensor::scalar(2.0f64).requires_grad()?;
    a.add(&b)?.mul(&s)?.sum()?.backward()?;
    assert_eq!(a.grad().unwrap().dims(), [3, 1]);
    assert_eq!(gradient(&a), [8.0; 3]);
    assert_eq!(gradient(&b), [6.0; 4]);
    assert_eq!(gradient(&s), [24.0]);
    assert_eq!(s.grad().unwrap().rank(), 0);
    Ok(())
}

/// P7: cotangents have the dtype of their primal; integers have none.
#[test]
fn gradients_keep_the_dtype_of_their_operand() -> Result<()> {
    let x = Tensor::from_vec(vec![1.0f32, 2.0], [2])?.requires_grad()?;
    let w = Tensor::from_vec(vec![3.0f64, 4.0], [2])?.requires_grad()?;
    let h = x
        .to_dtype(DType::BF16)?
        .mul(&x.to_dtype(DType::BF16)?)?
        .to_dtype(DType::F64)?;
    h.mul(&w)?.sum()?.backward()?;
    assert_eq!(x.grad().unwrap().dtype(), DType::F32);
    assert_eq!(w.grad().unwrap().dtype(), DType::F64);
    assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [6.0, 16.0]);
    let e = Tensor::from_vec(vec![1i64], [1])?
        .requires_grad()
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DType);
    // Nothing flows through an integer.
    let y = x.to_dtype(DType::I64)?.to_dtype(DType::F32)?;
    assert!(!y.is_tracked());
    Ok(())
}

/// P8: absent gradients are absent, not arrays of zeros.
#[test]
fn slicing_in_a_loop_allocates_linearly() -> Result<()> {
    let count = |n: usize| -> Result<u64> {
        let x = Tensor::ones([n, 8], DType::F64).requires_grad()?;
        let before = memory::allocations_here();
        let mut sum = Tensor::scalar(0.0f64);
        for i in 0..n {
            sum = sum.add(&x.select(0, i)?.sum()?)?;
        }
        sum.backward()?;
        Ok(memory::allocations_here() - before)
    };
    let (small, large) = (count(50)?, count(200)?);
    assert!(
        large < 5 * small,
        "{small} allocations for 50 slices, {large} for 200"
    );

    let (x, y) = (leaf(&[1.0]), leaf(&[1.0]));
    x.mul(&x)?.sum()?.backward()?;
    assert!(
        y.grad().is_none(),
        "an unused leaf has no gradient, not a zero one"
    );
    let found = grad(
        &[&x.sum()?],
        &[&x, &y],
        &GradOptions {
            allow_unused: true,
            ..Default::default()
        },
    )?;
    assert!(found[1].is_none());
    assert!(grad(&[&x.sum()?], &[&y], &GradOptions::default()).is_err());
    Ok(())
}

/// P10: the conventions at kinks and ties.
#[test]
fn kinks_follow_the_written_conventions() -> Result<()> {
    let at = |f: &dyn Fn(&Tensor) -> Result<Tensor>, v: f64| -> Result<f64> {
        let x = leaf(&[v]);
        f(&x)?.sum()?.backward()?;
        Ok(x.grad().map_or(0.0, |g| values(&g)[0]))
    };
    assert_eq!(at(&|x| x.abs(), 0.0)?, 0.0);
    assert_eq!(at(&|x| x.maximum(x), 1.0)?, 1.0);
    assert_eq!(at(&|x| x.maximum_scalar(0.0), 0.0)?, 0.5);
    assert_eq!(at(&|x| x.minimum_scalar(0.0), 0.0)?, 0.5);
    assert_eq!(at(&|x| x.pow_scalar(0.0), 0.0)?, 0.0);
    assert_eq!(at(&|x| x.pow_scalar(2.0), 0.0)?, 0.0);
    assert_eq!(at(&|x| x.pow_scalar(3.0), -2.0)?, 12.0);
    let e = leaf(&[2.0]);
    Tensor::from_vec(vec![0.0f64], [1])?
        .pow(&e)?
        .sum()?
        .backward()?;
    assert_eq!(gradient(&e), [0.0], "0^b does not depend on b > 0");
    Ok(())
}

/// P9: a norm's mean and 1/σ are caches of its backward kernel; second order must see through
/// them. f = Σ (layer_norm x)³ against the same written out in simple ops.
#[test]
fn cached_statistics_have_second_derivatives() -> Result<()> {
    let x = Tensor::from_vec(vec![0.3f64, -1.2, 2.0, 0.7, 0.1, -0.4], [2, 3])?;
    let v = Tensor::from_vec(vec![1.0f64, 0.5, -1.0, 0.2, -0.3, 2.0], [2, 3])?;
    let cubed = |t: Tensor| t.mul(&t)?.mul(&t)?.sum();
    let fused = hvp(|t| cubed(t.layer_norm(1, None, None, 1e-5)?), &x, &v)?;
    let plain = hvp(
        |t| {
            let centred = t.sub(&t.mean_dim(&[1], true)?)?;
            let variance = centred.square()?.mean_dim(&[1], true)?;
            cubed(centred.div(&variance.add_scalar(1e-5)?.sqrt()?)?)
        },
        &x,
        &v,
    )?;
    for (a, b) in values(&fused).iter().zip(values(&plain)) {
        assert!((a - b).abs() < 1e-10, "{a} instead of {b}");
    }
    assert!(values(&plain).iter().any(|v| v.abs() > 0.1));
    Ok(())
}

/// P11: the branch that `where` does not choose is evaluated all the same. Its value must not
/// reach the gradient, and with a guarded argument no NaN arises.
#[test]
fn a_guarded_logarithm_has_a_finite_gradient() -> Result<()> {
    let x = leaf(&[0.0, 1.0, 4.0]);
    let positive = x.detach().gt(&Tensor::scalar(0.0f64))?;
    let safe = Tensor::where_(&positive, &x, &Tensor::scalar(1.0f64))?;
    let y = Tensor::where_(&positive, &safe.log()?, &Tensor::scalar(0.0f64))?;
    y.sum()?.backward()?;
    assert_eq!(gradient(&x), [0.0, 1.0, 0.25]);
    Ok(())
}

/// P12: a backward pass inside a backward pass must neither deadlock nor disturb the outer one.
#[test]
fn backward_runs_inside_a_hook() -> Result<()> {
    let x = leaf(&[2.0]);
    let y = x.mul(&x)?.register_hook(|g| {
        let inner = leaf(&[5.0]);
        inner.mul(&inner)?.sum()?.backward()?;
        let (_, nested) = value_and_grad(|t| t[0].exp()?.sum(), &[&inner.detach()])?;
        assert!(nested[0].numel() == 1);
        Ok(Some(g.mul(&inner.grad().expect("inner pass ran"))?))
    })?;
    y.sum()?.backward()?;
    assert_eq!(gradient(&x), [4.0 * 10.0]);
    Ok(())
}

/// P13: values kept for metrics must not keep graphs: memory of a long loop is flat.
#[test]
fn memory_of_a_training_loop_is_flat() -> Result<()> {
    let w = leaf(&[0.1; 256]);
    let mut history = Vec::new();
    let mut live = Vec::new();
    for step in 0..300 {
        let loss = w.mul(&w)?.exp()?.sum()?;
        loss.backward()?;
        w.zero_grad();
        history.push(loss.detach());
        if step >= 100 {
            live.push(memory::live_bytes());
        }
    }
    // Other tests run beside this one, so compare the smallest readings of two halves.
    let early = live[..50].iter().min().unwrap();
    let late = live[150..].iter().min().unwrap();
    assert!(
        *late < early + 400 * 1024,
        "{early} bytes early, {late} late"
    );
    assert_eq!(history.len(), 300);
    Ok(())
}

/// Dropping an output without backward frees its graph at once.
#[test]
fn an_unused_graph_is_freed() -> Result<()> {
    let x = Tensor::ones([1 << 16], DType::F64).requires_grad()?;
    let y = x.exp()?.mul(&x)?.sin()?;
    let held = y.array().clone();
    assert!(!held.is_exclusive());
    drop(y);
    assert!(held.is_exclusive());
    Ok(())
}

/// P14/P15: nodes are data, so a graph may be recorded on several threads and used on another.
#[test]
fn graphs_cross_threads() -> Result<()> {
    let x = leaf(&[1.0, 2.0]);
    let parts: Vec<Tensor> = std::thread::scope(|s| {
        let handles: Vec<_> = (1..=4)
            .map(|k| {
                let x = x.clone();
                s.spawn(move || x.pow_scalar(k as f64).unwrap())
            })
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    let refs: Vec<&Tensor> = parts.iter().collect();
    Tensor::stack(&refs, 0)?.sum()?.backward()?;
    let serial = leaf(&[1.0, 2.0]);
    let mut sum = Tensor::scalar(0.0f64);
    for k in 1..=4 {
        sum = sum.add(&serial.pow_scalar(k as f64)?.sum()?)?;
    }
    sum.backward()?;
    assert_eq!(gradient(&x), gradient(&serial));
    Ok(())
}

/// P16: a freed graph is an error that names the op and the line, not garbage.
#[test]
fn using_a_graph_twice_is_an_error() -> Result<()> {
    let x = leaf(&[2.0]);
    let y = x.exp()?.sum()?;
    y.backward_with_options(&GradOptions {
        retain_graph: true,
        ..Default::default()
    })?;
    y.backward()?;
    assert!((gradient(&x)[0] - 2.0 * 2f64.exp()).abs() < 1e-12);
    let e = y.backward().unwrap_err().to_string();
    assert!(
        e.contains("retain_graph") && e.contains("pitfalls.rs"),
        "{e}"
    );

    let tape = GradientTape::new();
    let t = tape.variable(&Tensor::scalar(1.0f64))?;
    let z = t.mul(&t)?;
    tape.gradient(&z, &[&t])?;
    assert!(
        tape.gradient(&z, &[&t])
            .unwrap_err()
            .to_string()
            .contains("persistent")
    );
    let tape = GradientTape::new().persistent();
    let t = tape.variable(&Tensor::scalar(3.0f64))?;
    let z = t.mul(&t)?;
    for _ in 0..3 {
        assert_eq!(
            tape.gradient(&z, &[&t])?[0]
                .as_ref()
                .unwrap()
                .item::<f64>()?,
            6.0
        );
    }
    Ok(())
}

/// Accumulation, zeroing and detaching behave as in PyTorch; frozen tensors get nothing.
#[test]
fn manners_of_accumulation() -> Result<()> {
    let (x, frozen) = (leaf(&[1.0, 2.0]), Tensor::from_vec(vec![5.0f64, 5.0], [2])?);
    for _ in 0..3 {
        x.mul(&frozen)?.sum()?.backward()?;
    }
    assert_eq!(gradient(&x), [15.0, 15.0]);
    assert!(frozen.grad().is_none());
    x.zero_grad();
    assert!(x.grad().is_none());
    let y = x.mul(&x.detach())?;
    y.sum()?.backward()?;
    assert_eq!(gradient(&x), [1.0, 2.0]);
    assert!(!no_grad(|| x.mul(&x))?.is_tracked());
    assert!(no_grad(|| x.mul(&x))?.sum()?.backward().is_err());
    let e = x.mul(&x)?.backward().unwrap_err().to_string();
    assert!(e.contains("backward_with"), "{e}");
    x.zero_grad();
    x.mul(&x)?
        .backward_with(&Tensor::from_vec(vec![1.0f64, 10.0], [2])?)?;
    assert_eq!(gradient(&x), [2.0, 40.0]);
    Ok(())
}

/// Inside a transform, `backward` is refused and the message names the way out.
#[test]
fn backward_inside_a_transform_names_value_and_grad() -> Result<()> {
    let x = DualTensor::new(&Tensor::scalar(1.0f64), &Tensor::scalar(1.0f64))?;
    let e = x
        .tensor()
        .mul(x.tensor())?
        .backward()
        .unwrap_err()
        .to_string();
    assert!(e.contains("value_and_grad"), "{e}");
    Ok(())
}

/// no_grad affects the ambient graph only: a Hessian product inside it is still right.
#[test]
fn no_grad_does_not_silence_transforms() -> Result<()> {
    let x = Tensor::from_vec(vec![1.0f64, 2.0], [2])?;
    let v = Tensor::from_vec(vec![1.0f64, 0.0], [2])?;
    let h = no_grad(|| hvp(|t| t.mul(t)?.mul(t)?.sum(), &x, &v))?;
    assert_eq!(values(&h), [6.0, 0.0]);
    Ok(())
}

/// Hooks on leaves see the whole gradient of a pass; retained interior gradients are readable.
#[test]
fn hooks_and_retained_gradients() -> Result<()> {
    let x = leaf(&[1.0, 2.0]);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    x.register_hook(move |g| {
        log.lock().unwrap().push(g.to_vec::<f64>()?);
        Ok(Some(g.mul_scalar(0.5)?))
    })?;
    let h = x.mul(&x)?.retain_grad()?;
    h.add(&x)?.sum()?.backward()?;
    assert_eq!(
        *seen.lock().unwrap(),
        [[3.0, 5.0]],
        "called once, with the sum"
    );
    assert_eq!(gradient(&x), [1.5, 2.5]);
    assert_eq!(gradient(&h), [1.0, 1.0]);
    assert!(Tensor::scalar(1.0f64).register_hook(|_| Ok(None)).is_err());
    Ok(())
}
