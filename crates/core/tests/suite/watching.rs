//! What looks on while others compute: hooks, checkpoints with a policy, anomaly mode, the profile.

use std::sync::{Arc, Mutex};

use entrenar_base::memory::Snapshot;
use entrenar_core::autograd::{
    CustomOp, GradOptions, checkpoint, checkpoint_with, jvp, value_and_grad,
};
use entrenar_core::diagnostics::{MemoryProfiler, detect_anomaly};
use entrenar_core::{Aval, DType, Result, Tensor};

use crate::engine::{leaf, list, numbers, says};

#[test]
fn hooks_replace_and_are_checked_in_every_mode() -> Result<()> {
    let x = leaf(&[1.0, 2.0]);
    let y = x.exp()?.register_hook(|g| Ok(Some(g.narrow(0, 0, 1)?)))?;
    says(
        y.sum()?.backward(),
        &["[hook]", "a gradient like f64[2]", "f64[1]"],
    );
    // Forward mode passes by.
    let v = list(&[1.0, 1.0]);
    let f = |t: &[Tensor]| Ok(vec![t[0].mul(&t[0])?.register_hook(|_| Ok(None))?]);
    let (value, pushed) = jvp(f, &[&x.detach()], &[&v])?;
    assert_eq!(
        (numbers(&value[0]), numbers(&pushed[0])),
        (vec![1.0, 4.0], vec![2.0, 4.0])
    );
    says(
        list(&[1.0]).register_hook(|_| Ok(None)),
        &["does not require gradients"],
    );
    says(list(&[1.0]).retain_grad(), &["does not require gradients"]);
    // Both through one transform inside another.
    let f = |t: &[Tensor]| {
        let inner = value_and_grad(
            |u| {
                u[0].mul(&u[0])?
                    .retain_grad()?
                    .register_hook(|g| Ok(Some(g.mul_scalar(3.0)?)))?
                    .sum()
            },
            &[&t[0]],
        )?;
        Ok(inner.1)
    };
    let (value, pushed) = jvp(f, &[&x.detach()], &[&v])?;
    assert_eq!(
        (numbers(&value[0]), numbers(&pushed[0])),
        (vec![6.0, 12.0], vec![6.0, 6.0])
    );
    // A leaf's cell is the leaf itself; several hooks run in the order of registration.
    let x = leaf(&[1.0]);
    let same = x.retain_grad()?;
    same.register_hook(|g| Ok(Some(g.add_scalar(1.0)?)))?;
    same.register_hook(|g| Ok(Some(g.mul_scalar(10.0)?)))?;
    x.sum()?.backward()?;
    assert_eq!(numbers(&x.grad().unwrap()), [20.0]);
    Ok(())
}

/// The results that a policy keeps are those of the operations it names, in their order.
#[test]
fn kept_results_go_back_to_their_operations() -> Result<()> {
    let x = leaf(&[0.5, 1.5]);
    let run = |t: &[Tensor]| {
        let a = t[0].exp()?.sin()?.exp()?;
        let b = a.mul(&t[0])?.sin()?;
        Ok(vec![b.exp()?.mul(&a)?])
    };
    let plain = value_and_grad(|t| run(t)?[0].sum(), &[&x.detach()])?;
    for kept in [
        &["exp"][..],
        &["sin"],
        &["mul", "exp"],
        &["exp", "sin", "mul"],
        &[],
    ] {
        let kept: Vec<String> = kept.iter().map(|s| s.to_string()).collect();
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let policy = Arc::new(move |name: &str, avals: &[Aval]| {
            assert_eq!(avals[0], Aval::new([2], DType::F64));
            *count.lock().unwrap() += 1;
            kept.iter().any(|k| k == name)
        });
        x.zero_grad();
        let y = checkpoint_with(run, &[&x], Some(policy))?[0].sum()?;
        assert_eq!(y.item::<f64>()?, plain.0.item::<f64>()?);
        assert_eq!(*asked.lock().unwrap(), 7);
        y.backward()?;
        assert_eq!(*asked.lock().unwrap(), 14, "and once more in the replay");
        assert_eq!(numbers(&x.grad().unwrap()), numbers(&plain.1[0]));
    }
    // Retained, the region answers twice and replays once.
    let y = checkpoint(run, &[&x])?[0].sum()?;
    let keep = GradOptions {
        retain_graph: true,
        ..Default::default()
    };
    x.zero_grad();
    y.backward_with_options(&keep)?;
    y.backward()?;
    let twice: Vec<f64> = numbers(&plain.1[0]).iter().map(|g| 2.0 * g).collect();
    assert_eq!(numbers(&x.grad().unwrap()), twice);
    says(y.backward(), &["retain_graph"]);
    Ok(())
}

#[test]
fn a_replay_that_differs_says_how() -> Result<()> {
    let x = leaf(&[0.5, 1.5]);
    let runs = Arc::new(Mutex::new(0));
    let counted = runs.clone();
    let y = checkpoint(
        move |t| {
            let mut n = counted.lock().unwrap();
            *n += 1;
            let y = t[0].sin()?;
            Ok(vec![if *n == 1 {
                y
            } else {
                y.narrow(0, 0, 1)?.sin()?
            }])
        },
        &[&x],
    )?;
    says(
        y[0].sum()?.backward(),
        &[
            "saved 2 values and the first run 1",
            "the same work every time",
        ],
    );
    let runs = Arc::new(Mutex::new(0));
    let counted = runs.clone();
    let y = checkpoint(
        move |t| {
            let mut n = counted.lock().unwrap();
            *n += 1;
            let from = if *n == 1 {
                t[0].clone()
            } else {
                t[0].narrow(0, 0, 1)?
            };
            Ok(vec![from.sin()?.sum()?])
        },
        &[&x],
    )?;
    says(y[0].backward(), &["value 0 is f64[1] instead of f64[2]"]);
    Ok(())
}

#[test]
fn anomalies_name_output_layer_and_pass_and_end_with_their_scope() -> Result<()> {
    let x = list(&[1.0, f64::NAN]);
    assert!(x.exp().is_ok());
    says(
        detect_anomaly(|| x.sort(0, false)),
        &["[sort] produced NaN at element 1 of [2], at "],
    );
    let first = detect_anomaly(|| detect_anomaly(|| Ok(())));
    assert!(first.is_ok());
    // Nested scopes: the outer one is still in force after the inner one.
    says(
        detect_anomaly(|| {
            detect_anomaly(|| Ok(()))?;
            x.exp()
        }),
        &["[exp] produced NaN"],
    );
    assert!(x.exp().is_ok(), "off again");
    // A hook runs in the backward pass, what follows the pass does not.
    let y = leaf(&[1.0]);
    says(
        detect_anomaly(|| {
            y.exp()?.sum()?.backward()?;
            y.mul_scalar(0.0)?.log()
        })
        .map_err(|e| {
            assert!(!e.to_string().contains("in the backward pass"), "{e}");
            e
        }),
        &["[log] produced -inf at element 0"],
    );
    // The second output of an operation is numbered.
    #[derive(Debug)]
    struct Second;
    impl CustomOp for Second {
        fn name(&self) -> &'static str {
            "second"
        }
        fn infer(&self, inputs: &[&Aval]) -> Result<Vec<Aval>> {
            Ok(vec![inputs[0].clone(), inputs[0].clone()])
        }
        fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
            Ok(vec![inputs[0].zeros_like(), inputs[0].clone()])
        }
    }
    says(
        detect_anomaly(|| Tensor::apply_custom(Second, &[&x])),
        &["[second] produced NaN at element 1 in output 1 of [2]"],
    );
    Ok(())
}

/// Other tests allocate meanwhile, so only what is made under a layer of this one's own counts.
#[test]
fn profiles_are_one_at_a_time_and_know_their_passes() {
    let layer: Arc<str> = "profiles_are_one_at_a_time".into();
    let mut profiler = crate::transforms::profiler();
    assert!(MemoryProfiler::start().is_none(), "one at a time");
    let make = |n: usize| {
        let _layer = entrenar_base::memory::scope_layer(Some(layer.clone()));
        Tensor::zeros([n], DType::F32)
    };
    let small = profiler.pass("small", || make(1 << 16));
    let large = profiler.pass("large", || make(1 << 20));
    let own = |s: &Snapshot| s.by_layer().get(&layer).copied().unwrap_or(0);
    let peak = |p: &MemoryProfiler, name: &str| p.peak(name).map(&own);
    assert_eq!(peak(&profiler, "small"), Some(4 << 16));
    assert_eq!(peak(&profiler, "large"), Some((4 << 16) + (4 << 20)));
    assert_eq!(peak(&profiler, "absent"), None);
    assert!(profiler.report("small", "absent").is_none());
    let report = profiler.report("small", "large").unwrap();
    assert!(report.starts_with("peak of `small`: "), "{report}");
    assert!(
        report.contains("of `large`: ") && report.contains("difference"),
        "{report}"
    );
    let row = report.lines().find(|l| l.ends_with(&*layer)).unwrap();
    assert!(row.trim_start().starts_with("+4194304  temporary"), "{row}");
    let back = profiler.report("large", "small").unwrap();
    let row = back.lines().find(|l| l.ends_with(&*layer)).unwrap();
    assert!(row.trim_start().starts_with("-4194304  temporary"), "{row}");
    drop(large);
    assert_eq!(own(&profiler.snapshot()), 4 << 16);
    // The last pass of a name counts.
    let again = profiler.pass("small", || make(1 << 10));
    assert_eq!(peak(&profiler, "small"), Some((4 << 16) + (4 << 10)));
    drop((small, again));
}

/// An operation whose results a policy keeps does not run again in the replay.
#[test]
fn kept_operations_do_not_run_again() -> Result<()> {
    #[derive(Debug)]
    struct Counted(Arc<Mutex<usize>>);
    impl CustomOp for Counted {
        fn name(&self) -> &'static str {
            "counted"
        }
        fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
            *self.0.lock().unwrap() += 1;
            Ok(vec![inputs[0].mul(inputs[0])?])
        }
        fn expand(&self, inputs: &[&Tensor]) -> Option<Result<Vec<Tensor>>> {
            Some(inputs[0].mul(inputs[0]).map(|y| vec![y]))
        }
    }
    for (keep, runs) in [(true, 1), (false, 2)] {
        let count = Arc::new(Mutex::new(0));
        let inside = count.clone();
        let x = leaf(&[0.5, 1.5]);
        let f = move |t: &[Tensor]| {
            let y = Tensor::apply_custom(Counted(inside.clone()), &[&t[0].exp()?])?;
            Ok(vec![y[0].sin()?])
        };
        let policy = Arc::new(move |name: &str, _: &[Aval]| keep && name == "counted");
        let y = checkpoint_with(f, &[&x], Some(policy))?;
        y[0].sum()?.backward()?;
        assert_eq!(*count.lock().unwrap(), runs, "kept: {keep}");
        let plain = leaf(&[0.5, 1.5]);
        let e = plain.exp()?;
        e.mul(&e)?.sin()?.sum()?.backward()?;
        assert_eq!(numbers(&x.grad().unwrap()), numbers(&plain.grad().unwrap()));
    }
    Ok(())
}
