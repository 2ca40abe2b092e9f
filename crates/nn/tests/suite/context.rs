//! The context: keys, paths, buffer updates, and what a checkpoint replay may do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use entrenar_base::memory;
use entrenar_core::{DType, Result, Tensor};
use entrenar_nn::{Buffer, Ctx, Module, Parameter};

#[test]
fn keys_depend_on_seed_step_and_order_alone() {
    let draw = |mut cx: Ctx| [cx.key(), cx.key(), cx.key()];
    assert_eq!(draw(Ctx::train(1, 2)), draw(Ctx::train(1, 2)));
    let mut all: Vec<(u64, u64)> = (0..4)
        .flat_map(|seed| (0..4).flat_map(move |step| draw(Ctx::train(seed, step))))
        .collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4 * 4 * 3);
}

#[test]
fn scopes_name_the_layer_and_end() {
    let mut cx = Ctx::eval();
    assert_eq!(cx.path(), "");
    let inner = cx.scope("blocks", |cx| {
        cx.scope("0", |cx| {
            assert_eq!(memory::current_layer().as_deref(), Some("blocks.0"));
            cx.path().to_string()
        })
    });
    assert_eq!(inner, "blocks.0");
    assert_eq!(cx.path(), "");
    assert_eq!(memory::current_layer(), None);
}

#[test]
fn updates_are_seen_by_the_pass_and_applied_by_commit() -> Result<()> {
    let b = Buffer::new(&Tensor::scalar(1.0f32));
    let mut cx = Ctx::train(0, 0);
    for _ in 0..3 {
        let next = cx.buffer(&b).mul_scalar(2.0)?;
        cx.update(&b, &next);
    }
    assert_eq!(cx.buffer(&b).item::<f32>()?, 8.0);
    assert_eq!(b.value().item::<f32>()?, 1.0);
    cx.commit()?;
    assert_eq!(b.value().item::<f32>()?, 8.0);
    // A pass that is never committed changes nothing.
    let mut skipped = Ctx::train(0, 1);
    skipped.update(&b, &Tensor::scalar(0.0f32));
    drop(skipped);
    assert_eq!(b.value().item::<f32>()?, 8.0);
    Ok(())
}

/// A key and the path at which it was drawn.
type Drawn = ((u64, u64), String);

/// Draws a key, updates a buffer, multiplies by a parameter; counts its calls.
#[derive(Clone, Module)]
struct Spy {
    weight: Parameter,
    seen: Buffer,
    #[module(skip)]
    calls: Arc<AtomicUsize>,
    #[module(skip)]
    drawn: Arc<Mutex<Vec<Drawn>>>,
}

impl Module for Spy {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let key = cx.key();
        self.drawn
            .lock()
            .unwrap()
            .push((key, cx.path().to_string()));
        let next = cx.buffer(&self.seen).add_scalar(1.0)?;
        cx.update(&self.seen, &next);
        x.mul(&self.weight.tensor())?.sin()?.exp()
    }
}

fn spy() -> Result<Spy> {
    Ok(Spy {
        weight: Parameter::new(Tensor::from_slice(&[0.5f64, 2.0], [2])?)?,
        seen: Buffer::new(&Tensor::scalar(0.0f64)),
        calls: Arc::default(),
        drawn: Arc::default(),
    })
}

#[test]
fn a_checkpoint_replays_with_the_same_keys_and_without_updates() -> Result<()> {
    let spy = spy()?;
    let x = Tensor::from_slice(&[0.3f64, 0.7], [2])?.requires_grad()?;
    let mut cx = Ctx::train(5, 6);
    let before = cx.key();
    let y = cx.scope("block", |cx| cx.checkpoint(&spy, &x))?;
    let after = cx.key();
    assert_eq!(spy.calls.load(Ordering::Relaxed), 1);
    y.sum()?.backward()?;
    assert_eq!(
        spy.calls.load(Ordering::Relaxed),
        2,
        "the backward pass replays"
    );
    cx.commit()?;
    assert_eq!(spy.seen.value().item::<f64>()?, 1.0);

    let drawn = spy.drawn.lock().unwrap().clone();
    assert_eq!(drawn[0], drawn[1]);
    assert_eq!(drawn[0].1, "block");
    assert!(drawn[0].0 != before && drawn[0].0 != after && before != after);

    let (gx, gw) = (x.grad().unwrap(), spy.weight.grad().unwrap());
    x.zero_grad();
    spy.weight.zero_grad();
    spy.forward(&x, &mut Ctx::eval())?.sum()?.backward()?;
    assert_eq!(gx.to_vec::<f64>()?, x.grad().unwrap().to_vec::<f64>()?);
    assert_eq!(
        gw.to_vec::<f64>()?,
        spy.weight.grad().unwrap().to_vec::<f64>()?
    );
    Ok(())
}

#[test]
fn a_parameter_that_changed_before_the_replay_is_an_error() -> Result<()> {
    let spy = spy()?;
    let x = Tensor::ones([2], DType::F64).requires_grad()?;
    let y = Ctx::train(0, 0).checkpoint(&spy, &x)?;
    spy.weight.with_value_mut::<f64, _>(|w| w[0] = 0.0)?;
    let error = y.sum()?.backward().unwrap_err().to_string();
    assert!(
        error.contains("parameter weight changed between the forward pass and its replay"),
        "{error}"
    );
    Ok(())
}
