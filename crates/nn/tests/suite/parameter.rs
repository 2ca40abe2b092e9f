//! The cell: value, gradient, freezing, and writes that never reach a graph.

use std::sync::Arc;

use entrenar_base::memory::{self, Tag};
use entrenar_core::diagnostics::MemoryProfiler;
use entrenar_core::{DType, Result, Tensor};
use entrenar_nn::optim::{Optimizer, Sgd};
use entrenar_nn::{Parameter, Parameters};

fn parameter(values: &[f64]) -> Result<Parameter> {
    Parameter::new(Tensor::from_slice(values, [values.len()])?)
}

#[test]
fn the_leaf_is_the_same_until_the_value_changes() -> Result<()> {
    let p = parameter(&[1.0, 2.0])?;
    let a = p.tensor();
    a.sum()?.backward()?;
    // Another handle of the same leaf sees the gradient, and a new value keeps the cell.
    assert_eq!(p.tensor().grad().unwrap().to_vec::<f64>()?, [1.0, 1.0]);
    p.set(&Tensor::zeros([2], DType::F64))?;
    p.tensor().sum()?.backward()?;
    assert_eq!(p.grad().unwrap().to_vec::<f64>()?, [2.0, 2.0]);
    assert_eq!(a.to_vec::<f64>()?, [1.0, 2.0]);
    p.zero_grad();
    assert!(p.grad().is_none() && a.grad().is_none());
    Ok(())
}

/// An update between forward and backward: the gradient is that of the old value.
#[test]
fn a_write_between_forward_and_backward_does_not_reach_the_graph() -> Result<()> {
    type Write = fn(&Parameter) -> Result<()>;
    let writes: [(&str, Write); 3] = [
        ("with_value_mut", |p| {
            p.with_value_mut::<f64, _>(|v| v.fill(100.0))
        }),
        ("set", |p| p.set(&Tensor::full([2], 100.0, DType::F64))),
        ("optimizer", |p| {
            p.set_grad(Some(Tensor::from_slice(&[-97.0, -95.0], [2])?))?;
            Sgd::new(p, 1.0)?.step()?;
            p.zero_grad();
            Ok(())
        }),
    ];
    for (name, write) in writes {
        let p = parameter(&[3.0, 5.0])?;
        let loss = p.tensor().square()?.sum()?;
        write(&p)?;
        assert_eq!(p.value().to_vec::<f64>()?, [100.0, 100.0], "{name}");
        loss.backward()?;
        assert_eq!(p.grad().unwrap().to_vec::<f64>()?, [6.0, 10.0], "{name}");
    }
    Ok(())
}

#[test]
fn an_unshared_value_is_written_in_place() -> Result<()> {
    let p = parameter(&[1.0, 2.0, 3.0])?;
    p.tensor().square()?.sum()?.backward()?;
    let before = std::ptr::from_ref(p.array().storage());
    p.with_value_mut::<f64, _>(|v| v[0] = 9.0)?;
    Sgd::new(&p, 0.1)?.step()?;
    assert_eq!(std::ptr::from_ref(p.array().storage()), before);
    // And a shared one is not.
    let snapshot = p.value();
    p.with_value_mut::<f64, _>(|v| v[0] = 7.0)?;
    assert_ne!(std::ptr::from_ref(p.array().storage()), before);
    assert_ne!(snapshot.to_vec::<f64>()?[0], 7.0);
    Ok(())
}

#[test]
fn frozen_means_no_edge() -> Result<()> {
    let (p, q) = (parameter(&[1.0])?, parameter(&[2.0])?);
    p.tensor().sum()?.backward()?;
    p.set_trainable(false);
    assert!(
        p.grad().is_none(),
        "a stale gradient would still be stepped"
    );
    assert!(!p.tensor().is_tracked() && !p.tensor().square()?.is_tracked());
    p.tensor().mul(&q.tensor())?.sum()?.backward()?;
    assert!(p.grad().is_none() && q.grad().is_some());
    p.set_trainable(true);
    p.tensor().mul(&q.tensor())?.sum()?.backward()?;
    assert_eq!(p.grad().unwrap().to_vec::<f64>()?, [2.0]);
    // An optimizer passes over a frozen parameter even when someone put a gradient there.
    p.set_trainable(false);
    p.set_grad(Some(Tensor::ones([1], DType::F64)))?;
    Sgd::new(&p, 1.0)?.step()?;
    assert_eq!(p.value().to_vec::<f64>()?, [1.0]);
    Ok(())
}

#[test]
fn wrong_values_are_refused() -> Result<()> {
    let e = Parameter::new(Tensor::zeros([2], DType::I64)).unwrap_err();
    assert_eq!(
        e.to_string(),
        "[Parameter] expected a float tensor, got i64"
    );
    let p = parameter(&[1.0, 2.0])?;
    let e = p.set(&Tensor::zeros([2], DType::F32)).unwrap_err();
    assert_eq!(
        e.to_string(),
        "[Parameter::set] expected f64[2], got f32[2]"
    );
    assert!(p.set(&Tensor::zeros([3], DType::F64)).is_err());
    assert!(p.set_grad(Some(Tensor::zeros([3], DType::F64))).is_err());
    assert!(p.with_value_mut::<f32, _>(|_| ()).is_err());
    assert_eq!(p.value().to_vec::<f64>()?, [1.0, 2.0]);
    Ok(())
}

#[test]
fn a_clone_is_tied() -> Result<()> {
    let p = parameter(&[1.0])?;
    let q = p.clone();
    q.set(&Tensor::full([1], 4.0, DType::F64))?;
    assert_eq!(p.value().to_vec::<f64>()?, [4.0]);
    assert_eq!(p.id(), q.id());
    let both = vec![p, q];
    assert_eq!(both.named_parameters().len(), 1);
    assert_eq!(both.tied_names(), [("1".to_string(), "0".to_string())]);
    Ok(())
}

/// The memory profile says what bytes are for, whoever else holds them.
#[test]
fn bytes_are_filed_by_purpose() -> Result<()> {
    let profiler = MemoryProfiler::start().expect("the only profile of this binary");
    let bytes = |layer: &str, tag: Tag| -> usize {
        let snapshot = profiler.snapshot();
        let of = |l: &&memory::Label| l.tag == tag && &*l.layer == layer;
        snapshot
            .bytes
            .keys()
            .filter(of)
            .map(|l| snapshot.bytes[l])
            .sum()
    };
    let scope = |name: &str| memory::scope_layer(Some(Arc::from(name)));
    // Other tests run beside this one: these layer names are its own.
    let label = scope("profile.weight");
    let p = Parameter::new(Tensor::full([100], 0.5, DType::F64))?;
    drop(label);
    let label = scope("profile.forward");
    let y = p.tensor().square()?.exp()?;
    drop(label);
    assert_eq!(bytes("profile.weight", Tag::Parameter), 800);
    assert_eq!(bytes("profile.weight", Tag::Saved), 0);
    assert_eq!(
        bytes("profile.forward", Tag::Saved),
        800,
        "exp keeps its result"
    );
    let label = scope("profile.update");
    let mut optimizer = Sgd::builder().momentum(0.9).build(&p)?;
    y.sum()?.backward()?;
    optimizer.step()?;
    drop(label);
    assert_eq!(bytes("profile.update", Tag::Optimizer), 800);
    // The backward pass works under the name of the layer that it differentiates.
    assert_eq!(bytes("profile.forward", Tag::Gradient), 800);
    // A write that had to copy is a parameter again.
    let held = p.value();
    let label = scope("profile.copy");
    p.with_value_mut::<f64, _>(|v| v.fill(1.0))?;
    drop(label);
    assert_eq!(bytes("profile.copy", Tag::Parameter), 800);
    drop(held);
    Ok(())
}
