//! Functional transforms on known functions.

use entrenar_core::autograd::{
    BackwardCx, CustomOp, DualTensor, GradOptions, backward_all, checkpoint, checkpoint_with,
    functional::jacobian_mode, grad, hessian, hvp, jacfwd, jacobian, jacrev, jvp, linearize,
    value_and_grad, vjp,
};
use entrenar_core::diagnostics::{MemoryProfiler, detect_anomaly};
use entrenar_core::{GradientTape, Result, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn vector(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()]).unwrap()
}

fn close(a: &Tensor, b: &[f64]) {
    let a = a.to_vec::<f64>().unwrap();
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!(
            (x - y).abs() <= 1e-9 * y.abs().max(1.0),
            "{a:?} instead of {b:?}"
        );
    }
}

/// f(x) = [x₀x₁, sin x₀, x₁², x₀ + x₁]
fn tall(x: &Tensor) -> Result<Tensor> {
    let (a, b) = (x.select(0, 0)?, x.select(0, 1)?);
    Tensor::stack(&[&a.mul(&b)?, &a.sin()?, &b.square()?, &a.add(&b)?], 0)
}

#[test]
fn jacobians_of_a_tall_and_a_wide_function() -> Result<()> {
    let x = vector(&[0.5, 2.0]);
    let expected = [2.0, 0.5, 0.5f64.cos(), 0.0, 0.0, 4.0, 1.0, 1.0];
    for j in [jacfwd(tall, &x)?, jacrev(tall, &x)?, jacobian(tall, &x)?] {
        assert_eq!(j.dims(), [4, 2]);
        close(&j, &expected);
    }
    // `jacobian` counts its calls: 2 forward passes for tall (plus one for the size)…
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = |f: fn(&Tensor) -> Result<Tensor>| {
        let calls = calls.clone();
        move |x: &Tensor| {
            calls.fetch_add(1, Ordering::Relaxed);
            f(x)
        }
    };
    assert_eq!(
        (jacobian_mode(2, 4), jacobian_mode(4, 2)),
        ("forward", "reverse")
    );
    jacobian(counted(tall), &x)?;
    assert_eq!(calls.swap(0, Ordering::Relaxed), 3);
    // …and one recorded pass for wide, whatever the number of inputs.
    fn wide(x: &Tensor) -> Result<Tensor> {
        Tensor::stack(&[&x.sum()?, &x.square()?.sum()?], 0)
    }
    let j = jacobian(counted(wide), &vector(&[1.0, 2.0, 3.0, 4.0, 5.0]))?;
    close(&j, &[1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    Ok(())
}

#[test]
fn hessians_and_products() -> Result<()> {
    // f = x₀² x₁ + x₁³
    let f = |x: &Tensor| {
        let (a, b) = (x.select(0, 0)?, x.select(0, 1)?);
        a.square()?.mul(&b)?.add(&b.pow_scalar(3.0)?)
    };
    let x = vector(&[1.5, -2.0]);
    close(&hessian(f, &x)?, &[-4.0, 3.0, 3.0, -12.0]);
    close(&hvp(f, &x, &vector(&[1.0, 2.0]))?, &[2.0, -21.0]);
    // Reverse over reverse through the ambient graph agrees.
    let leaf = x.requires_grad()?;
    let options = GradOptions {
        create_graph: true,
        ..Default::default()
    };
    let g = grad(&[&f(&leaf)?], &[&leaf], &options)?[0].clone().unwrap();
    let h = grad(
        &[&g.mul(&vector(&[1.0, 2.0]))?.sum()?],
        &[&leaf],
        &GradOptions::default(),
    )?;
    close(h[0].as_ref().unwrap(), &[2.0, -21.0]);
    // Third order: d³/dx³ sin = -cos.
    let third = |x: &Tensor| {
        value_and_grad(
            |t| {
                value_and_grad(
                    |u| value_and_grad(|v| v[0].sin(), &[&u[0]]).map(|r| r.1[0].clone()),
                    &[&t[0]],
                )
                .map(|r| r.1[0].clone())
            },
            &[x],
        )
    };
    close(&third(&Tensor::scalar(0.7f64))?.1[0], &[-0.7f64.cos()]);
    Ok(())
}

#[test]
fn a_linearized_function_is_run_once_and_maps_both_ways() -> Result<()> {
    let calls = AtomicUsize::new(0);
    let x = vector(&[0.5, 2.0]);
    let (y, map) = linearize(
        |t| {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(vec![tall(&t[0])?])
        },
        &[&x],
    )?;
    close(&y[0], &[1.0, 0.5f64.sin(), 4.0, 2.5]);
    for _ in 0..2 {
        close(
            &map.jvp(&[&vector(&[1.0, 0.0])])?[0],
            &[2.0, 0.5f64.cos(), 0.0, 1.0],
        );
        close(&map.vjp(&[&vector(&[1.0, 0.0, 1.0, 0.0])])?[0], &[2.0, 4.5]);
    }
    assert_eq!(calls.into_inner(), 1);
    assert!(map.jvp(&[&vector(&[1.0])]).is_err());
    Ok(())
}

#[test]
fn vjp_and_jvp_take_several_inputs_and_outputs() -> Result<()> {
    let f = |t: &[Tensor]| Ok(vec![t[0].mul(&t[1])?, t[0].add(&t[1])?]);
    let (a, b) = (vector(&[2.0]), vector(&[3.0]));
    let (_, pullback) = vjp(f, &[&a, &b])?;
    let g = pullback.call(&[&vector(&[1.0]), &vector(&[10.0])])?;
    close(&g[0], &[13.0]);
    close(&g[1], &[12.0]);
    let (_, dy) = jvp(f, &[&a, &b], &[&vector(&[1.0]), &vector(&[0.0])])?;
    close(&dy[0], &[3.0]);
    close(&dy[1], &[1.0]);
    assert!(jvp(f, &[&a, &b], &[&a]).is_err());
    Ok(())
}

#[test]
fn tapes_track_only_what_they_watch() -> Result<()> {
    let tape = GradientTape::new();
    let (w, c) = (tape.variable(&vector(&[2.0]))?, vector(&[5.0]));
    let y = w.mul(&c)?.sum()?;
    assert!(!c.mul(&c)?.is_tracked());
    let g = tape.gradient(&y, &[&w, &c])?;
    close(g[0].as_ref().unwrap(), &[5.0]);
    assert!(g[1].is_none());
    assert!(tape.variable(&w).is_err());
    // Gradients with respect to an intermediate value.
    let tape = GradientTape::new();
    let w = tape.variable(&vector(&[2.0]))?;
    let h = w.mul(&w)?;
    let y = h.mul(&h)?.sum()?;
    let g = tape.gradient(&y, &[&h])?;
    close(g[0].as_ref().unwrap(), &[8.0]);
    Ok(())
}

/// A tape opened outside and asked inside a later transform: d(x·t)/dx is t, which that transform
/// must be able to follow. Answering "nothing depends on x", or a t cut off from it, would be
/// silently wrong.
#[test]
fn a_tape_under_a_later_transform_is_an_error() -> Result<()> {
    let at = Tensor::scalar(2.0f64);
    let tape = GradientTape::new().persistent();
    let x = tape.variable(&Tensor::scalar(3.0f64))?;
    let asked = |t: &[Tensor]| -> Result<Vec<Tensor>> {
        let y = x.mul(&t[0])?;
        let g = tape.gradient(&y, &[&x])?;
        Ok(vec![g[0].clone().expect("y depends on x")])
    };
    for e in [
        jvp(asked, &[&at], &[&at]).err(),
        vjp(asked, &[&at]).err(),
        value_and_grad(|t| Ok(asked(t)?.remove(0)), &[&at]).err(),
    ] {
        let text = e.expect("an error").to_string();
        assert!(
            text.contains("opened after this tape") && text.contains("unwatch"),
            "{text}"
        );
    }
    // The same for what is asked about: x seen through a later tape.
    let later = GradientTape::new();
    let seen = later.variable(&x)?;
    assert!(tape.gradient(&x.mul(&x)?, &[&seen]).is_err());
    // What does not involve the transform is answered inside of it.
    let (_, g) = value_and_grad(
        |t| {
            let y = x.mul(&x)?;
            t[0].mul(tape.gradient(&y, &[&x])?[0].as_ref().expect("2x"))
        },
        &[&at],
    )?;
    assert_eq!(g[0].item::<f64>()?, 6.0);
    // A tape made inside: d/dt [d(x·t)/dx] = 1.
    let inside = |t: &[Tensor]| {
        let tape = GradientTape::new();
        let x = tape.variable(&Tensor::scalar(3.0f64))?;
        Ok(tape.gradient(&x.mul(&t[0])?, &[&x])?.remove(0).expect("t"))
    };
    assert_eq!(value_and_grad(inside, &[&at])?.1[0].item::<f64>()?, 1.0);
    // An error leaves the tape usable: nothing was answered.
    let once = GradientTape::new();
    let z = once.variable(&at)?;
    let last = GradientTape::new();
    let zz = last.variable(&z)?;
    assert!(once.gradient(&zz.mul(&zz)?, &[&z]).is_err());
    let g = once.gradient(&last.unwatch(&zz.mul(&zz)?), &[&z])?;
    assert_eq!(g[0].as_ref().expect("2z").item::<f64>()?, 4.0);
    Ok(())
}

/// Results that leave a function while still tracked by a tape made inside of it count fully.
#[test]
fn values_that_escape_an_inner_tape_keep_their_gradients() -> Result<()> {
    let at = Tensor::scalar(3.0f64);
    let one = Tensor::scalar(1.0f64);
    let f = |t: &[Tensor]| -> Result<Tensor> {
        let tape = GradientTape::new();
        let x = tape.variable(&t[0])?;
        let y = x.mul(&x)?;
        let dy = tape.gradient(&y, &[&x])?.remove(0).expect("2x");
        y.add(&dy) // x² + 2x, wrapped by the inner tape
    };
    let (_, g) = value_and_grad(f, &[&at])?;
    assert_eq!(g[0].item::<f64>()?, 8.0);
    let (_, pullback) = vjp(|t| Ok(vec![f(t)?]), &[&at])?;
    assert_eq!(pullback.call(&[&one])?[0].item::<f64>()?, 8.0);
    let (_, d) = jvp(|t| Ok(vec![f(t)?]), &[&at], &[&one])?;
    assert_eq!(d[0].item::<f64>()?, 8.0);
    assert_eq!(
        hessian(|t| f(std::slice::from_ref(t)), &at)?.item::<f64>()?,
        2.0
    );
    Ok(())
}

#[test]
fn dual_numbers_and_grad_refuse_values_of_other_transforms() -> Result<()> {
    let two = Tensor::scalar(2.0f64);
    let dual = DualTensor::new(&two, &two)?;
    let read = value_and_grad(
        |t| {
            dual.wrap(dual.tensor().mul(&t[0])?)?;
            t[0].square()
        },
        &[&two],
    );
    let text = read.unwrap_err().to_string();
    assert!(text.contains("opened after this dual number"), "{text}");

    let ambient = Tensor::scalar(5.0f64).requires_grad()?;
    let options = GradOptions {
        allow_unused: true,
        ..Default::default()
    };
    let inside = value_and_grad(
        |t| {
            let y = t[0].mul(&ambient)?;
            grad(&[&y], &[&ambient], &options)?; // dy/dambient is t, not "unused"
            Ok(y)
        },
        &[&two],
    );
    let text = inside.unwrap_err().to_string();
    assert!(
        text.contains("input 0 is tracked by another transform"),
        "{text}"
    );
    let pushed = jvp(
        |t| {
            let y = t[0].mul(&ambient)?;
            grad(&[&y], &[&ambient], &options)?;
            Ok(vec![y])
        },
        &[&two],
        &[&two],
    );
    let text = pushed.unwrap_err().to_string();
    assert!(text.contains("running forward-mode transform"), "{text}");
    Ok(())
}

/// `grad` computes what was asked for: other leaves' hooks do not run, and rules are told not to
/// compute other gradients (a weight's costs as much as the forward pass).
#[test]
fn grad_computes_only_what_was_asked_for() -> Result<()> {
    #[derive(Debug)]
    struct Product(Arc<std::sync::Mutex<Vec<(bool, bool)>>>);
    impl CustomOp for Product {
        fn name(&self) -> &'static str {
            "product"
        }
        fn forward(&self, t: &[&Tensor]) -> Result<Vec<Tensor>> {
            Ok(vec![t[0].mul(t[1])?])
        }
        fn backward(
            &self,
            cx: &BackwardCx<'_>,
            cotangents: &[Option<&Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            self.0.lock().unwrap().push((cx.needs(0), cx.needs(1)));
            let g = cotangents[0].expect("one output");
            let times = |i: usize| -> Result<_> { Ok(Some(g.mul(cx.input(i)?)?)) };
            Ok(vec![times(1)?, times(0)?])
        }
    }
    let log = Arc::default();
    let (x, w) = (
        vector(&[2.0]).requires_grad()?,
        vector(&[3.0]).requires_grad()?,
    );
    let runs = Arc::new(AtomicUsize::new(0));
    for leaf in [&x, &w] {
        let runs = runs.clone();
        leaf.register_hook(move |_| {
            runs.fetch_add(1, Ordering::Relaxed);
            Ok(None)
        })?;
    }
    let y = || -> Result<Tensor> {
        let h = Tensor::apply_custom(Product(Arc::clone(&log)), &[&x, &w])?.remove(0);
        Tensor::apply_custom(Product(Arc::clone(&log)), &[&h, &w])?
            .remove(0)
            .sum()
    };
    let options = GradOptions::default();
    close(
        grad(&[&y()?], &[&x], &options)?[0].as_ref().unwrap(),
        &[9.0],
    );
    assert_eq!(runs.swap(0, Ordering::Relaxed), 1, "the hook of x alone");
    assert_eq!(
        std::mem::take(&mut *log.lock().unwrap()),
        [(true, false); 2]
    );
    close(
        grad(&[&y()?], &[&w], &options)?[0].as_ref().unwrap(),
        &[12.0],
    );
    assert_eq!(
        std::mem::take(&mut *log.lock().unwrap()),
        [(true, true), (false, true)]
    );
    assert_eq!(runs.swap(0, Ordering::Relaxed), 1);
    // A leaf that is itself an output, but not asked for.
    grad(&[&y()?, &w.sum()?, &w], &[&x], &options)?;
    assert_eq!(runs.swap(0, Ordering::Relaxed), 1);
    y()?.backward()?;
    assert_eq!(runs.swap(0, Ordering::Relaxed), 2);
    close(&w.grad().unwrap(), &[12.0]);
    Ok(())
}

/// Inside a checkpointed function tensors look as they do outside of it.
#[test]
fn gradients_are_retained_inside_a_checkpoint() -> Result<()> {
    let x = vector(&[2.0]).requires_grad()?;
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = kept.clone();
    let y = checkpoint(
        move |t| {
            assert!(t[0].is_tracked() && t[0].is_leaf());
            let h = t[0].mul(&t[0])?.retain_grad()?;
            assert!(h.is_tracked() && !h.is_leaf());
            log.lock().unwrap().push(h.clone());
            Ok(vec![h.mul(&h)?])
        },
        &[&x],
    )?;
    y[0].sum()?.backward()?;
    close(&x.grad().unwrap(), &[32.0]);
    let kept = kept.lock().unwrap();
    assert_eq!(kept.len(), 2, "the first run and the replay");
    close(
        &kept[0].grad().expect("of the run that made the graph"),
        &[8.0],
    );
    // Constants stay constants there.
    let constant = vector(&[1.0]);
    checkpoint(
        |t| {
            assert!(!t[0].is_tracked());
            assert!(t[0].retain_grad().is_err());
            assert!(t[0].register_hook(|_| Ok(None)).is_err());
            Ok(vec![t[0].clone()])
        },
        &[&constant],
    )?;
    Ok(())
}

#[test]
fn backward_from_several_outputs_accumulates_once() -> Result<()> {
    let x = vector(&[3.0]).requires_grad()?;
    let (a, b) = (x.mul(&x)?.sum()?, x.sum()?);
    backward_all(&[(&a, None), (&b, None)], &GradOptions::default())?;
    close(&x.grad().unwrap(), &[7.0]);
    Ok(())
}

/// A captured parameter (not an argument) gets its gradient, the forward runs twice, and the
/// bytes saved for backward fall.
#[test]
fn checkpointing_recomputes_and_reaches_captured_parameters() -> Result<()> {
    let runs = Arc::new(AtomicUsize::new(0));
    let w = vector(&[0.3; 1000]).requires_grad()?;
    let x = vector(&[0.5; 1000]).requires_grad()?;
    let block = |w: Tensor, runs: Arc<AtomicUsize>| {
        move |t: &[Tensor]| {
            runs.fetch_add(1, Ordering::Relaxed);
            let mut h = t[0].clone();
            for _ in 0..10 {
                h = h.mul(&w)?.sin()?.exp()?;
            }
            Ok(vec![h])
        }
    };
    let y = checkpoint(block(w.clone(), runs.clone()), &[&x])?.remove(0);
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    y.sum()?.backward()?;
    assert_eq!(
        runs.load(Ordering::Relaxed),
        2,
        "replayed once, not once per saved value"
    );
    let (xc, wc) = (x.grad().unwrap(), w.grad().unwrap());
    x.zero_grad();
    w.zero_grad();
    block(w.clone(), runs.clone())(std::slice::from_ref(&x))?[0]
        .sum()?
        .backward()?;
    close(&xc, &x.grad().unwrap().to_vec::<f64>()?);
    close(&wc, &w.grad().unwrap().to_vec::<f64>()?);

    // Second order through a checkpoint.
    let f = |t: &Tensor| {
        checkpoint(|u| Ok(vec![u[0].sin()?.mul(&u[0])?]), &[t])?
            .remove(0)
            .sum()
    };
    let plain = |t: &Tensor| t.sin()?.mul(t)?.sum();
    let at = vector(&[0.2, 1.1]);
    close(&hessian(f, &at)?, &hessian(plain, &at)?.to_vec::<f64>()?);

    // Nested checkpoints.
    let nested = |t: &Tensor| {
        checkpoint(
            |u| {
                let inner = checkpoint(|v| Ok(vec![v[0].exp()?.sin()?]), &[&u[0]])?.remove(0);
                Ok(vec![inner.mul(&u[0])?])
            },
            &[t],
        )?
        .remove(0)
        .sum()
    };
    let (_, g) = value_and_grad(|t| nested(&t[0]), &[&at])?;
    let (_, p) = value_and_grad(|t| t[0].exp()?.sin()?.mul(&t[0])?.sum(), &[&at])?;
    close(&g[0], &p[0].to_vec::<f64>()?);
    Ok(())
}

/// With a policy the replay uses kept results: here the products run once, the sines twice.
#[test]
fn a_checkpoint_policy_keeps_chosen_results() -> Result<()> {
    let x = vector(&[0.5, 0.7]).requires_grad()?;
    let asked = Arc::new(AtomicUsize::new(0));
    let log = asked.clone();
    let y = checkpoint_with(
        |t| Ok(vec![t[0].mul(&t[0])?.sin()?.mul(&t[0])?]),
        &[&x],
        Some(Arc::new(move |op, _| {
            log.fetch_add(1, Ordering::Relaxed);
            op == "mul"
        })),
    )?;
    y[0].sum()?.backward()?;
    let plain = x.detach().requires_grad()?;
    plain.mul(&plain)?.sin()?.mul(&plain)?.sum()?.backward()?;
    close(&x.grad().unwrap(), &plain.grad().unwrap().to_vec::<f64>()?);
    assert_eq!(
        asked.load(Ordering::Relaxed),
        6,
        "asked for each op of both runs"
    );
    Ok(())
}

#[test]
fn an_impure_checkpoint_is_an_error() -> Result<()> {
    let x = vector(&[0.5]).requires_grad()?;
    let runs = AtomicUsize::new(0);
    let y = checkpoint(
        move |t| {
            let mut h = t[0].exp()?;
            if runs.fetch_add(1, Ordering::Relaxed) > 0 {
                h = h.sin()?;
            }
            Ok(vec![h])
        },
        &[&x],
    )?;
    let e = y[0].sum()?.backward().unwrap_err().to_string();
    assert!(e.contains("same work every time"), "{e}");
    Ok(())
}

#[test]
fn anomaly_mode_names_op_line_and_pass() -> Result<()> {
    let x = vector(&[1.0, 0.0]).requires_grad()?;
    let e = detect_anomaly(|| x.log()).unwrap_err().to_string();
    assert!(
        e.contains("[log] produced -inf at element 1") && e.contains("transforms.rs"),
        "{e}"
    );
    // Finite forward, infinite gradient: d sqrt at 0.
    let e = detect_anomaly(|| x.sqrt()?.sum()?.backward())
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("in the backward pass") && e.contains("sqrt"),
        "{e}"
    );
    assert!(x.log().is_ok(), "off again outside");
    Ok(())
}

/// Profiles run one at a time, and another test of this binary may be recording.
pub fn profiler() -> MemoryProfiler {
    for _ in 0..2000 {
        if let Some(profiler) = MemoryProfiler::start() {
            return profiler;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("no profile could start within 10 seconds");
}

#[test]
fn the_memory_profile_reports_tags_ops_and_differences() -> Result<()> {
    let mut profiler = profiler();
    let x = Tensor::ones([1024], entrenar_core::DType::F64).requires_grad()?;
    let run = |checkpointed: bool| -> Result<()> {
        let f = |t: &[Tensor]| {
            let mut h = t[0].clone();
            for _ in 0..8 {
                h = h.sin()?;
            }
            Ok(vec![h])
        };
        let y = if checkpointed {
            checkpoint(f, &[&x])?
        } else {
            f(std::slice::from_ref(&x))?
        };
        drop(y);
        Ok(())
    };
    profiler.pass("plain", || run(false))?;
    profiler.pass("checkpointed", || run(true))?;
    let (plain, short) = (
        profiler.peak("plain").unwrap(),
        profiler.peak("checkpointed").unwrap(),
    );
    let saved = plain
        .bytes
        .iter()
        .filter(|(l, _)| l.op == "sin" && l.tag.name() == "saved")
        .map(|(_, b)| b)
        .sum::<usize>();
    // Eight sines save their inputs: x itself and seven results of 8 KiB. The peak is the moment
    // the last result is made, when its operand is not yet filed as saved.
    assert!(saved >= 6 * 8192, "{plain}");
    assert!(short.total() < plain.total());
    let report = profiler.report("plain", "checkpointed").unwrap();
    assert!(
        report.contains("sin") && report.contains("saved") && report.contains('-'),
        "{report}"
    );
    Ok(())
}
