//! Manners of the engine and the transforms that other files do not meet: numbers of leaves, the
//! order of nodes, what is counted and compared, and what users see of it.

use std::sync::{Arc, Mutex};

use entrenar_core::autograd::functional::jacobian_mode;
use entrenar_core::autograd::{
    DualTensor, GradOptions, Leaf, backward_all, checkpoint, enable_grad, grad, hessian, jacfwd,
    jacobian, jacrev, jvp, linearize, value_and_grad, vjp,
};
use entrenar_core::{Aval, DType, GradientTape, Result, Tensor, no_grad};

pub fn list(values: &[f64]) -> Tensor {
    Tensor::from_vec(values.to_vec(), [values.len()]).unwrap()
}

pub fn leaf(values: &[f64]) -> Tensor {
    list(values).requires_grad().unwrap()
}

pub fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_vec::<f64>().unwrap()
}

#[track_caller]
pub fn says<T>(outcome: Result<T>, parts: &[&str]) {
    let message = match outcome {
        Ok(_) => panic!("taken instead of {parts:?}"),
        Err(e) => e.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

/// Few leaves are found by looking, many by an index: the sums must not show which.
#[test]
fn any_number_of_leaves_gets_its_gradient() -> Result<()> {
    for count in [1usize, 2, 15, 16, 17, 18, 40] {
        let leaves: Vec<Tensor> = (0..count).map(|i| leaf(&[i as f64 + 1.0, 2.0])).collect();
        let loss = || -> Result<Tensor> {
            let mut sum = Tensor::zeros([2], DType::F64);
            for (i, x) in leaves.iter().enumerate() {
                sum = sum.add(&x.mul(x)?.mul_scalar(i as f64 + 1.0)?)?;
            }
            // Each leaf is met again, in another order, after the index exists.
            for x in leaves.iter().rev() {
                sum = sum.add(x)?;
            }
            sum.sum()
        };
        loss()?.backward()?;
        let refs: Vec<&Tensor> = leaves.iter().collect();
        let asked = grad(&[&loss()?], &refs, &GradOptions::default())?;
        for (i, (x, g)) in leaves.iter().zip(asked).enumerate() {
            let (n, k) = (i as f64 + 1.0, i as f64 + 1.0);
            let expected = [2.0 * k * n + 1.0, 4.0 * k + 1.0];
            assert_eq!(numbers(&x.grad().unwrap()), expected, "leaf {i} of {count}");
            assert_eq!(
                numbers(&g.unwrap()),
                expected,
                "asked for leaf {i} of {count}"
            );
        }
    }
    Ok(())
}

/// Nodes run newest first whatever their place in the graph, each one once.
#[test]
fn nodes_run_in_reverse_order_of_creation() -> Result<()> {
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = |t: Tensor, name: &'static str| {
        let order = order.clone();
        t.register_hook(move |_| {
            order.lock().unwrap().push(name);
            Ok(None)
        })
    };
    let x = leaf(&[2.0]);
    let a = noted(x.sin()?, "a")?;
    let b = noted(x.exp()?, "b")?;
    let c = noted(a.mul(&b)?, "c")?;
    let d = noted(a.add(&c)?, "d")?;
    let e = noted(b.mul(&d)?, "e")?;
    e.add(&a)?.sum()?.backward()?;
    assert_eq!(*order.lock().unwrap(), ["e", "d", "c", "b", "a"]);
    Ok(())
}

#[test]
fn interior_values_can_be_asked_for() -> Result<()> {
    let x = leaf(&[2.0, 3.0]);
    let h = x.mul(&x)?;
    let y = h.mul(&x)?.sum()?;
    let found = grad(&[&y], &[&h, &x], &GradOptions::default())?;
    assert_eq!(numbers(found[0].as_ref().unwrap()), [2.0, 3.0]);
    assert_eq!(numbers(found[1].as_ref().unwrap()), [12.0, 27.0]);
    assert!(x.grad().is_none(), "grad accumulates nothing");
    // The output itself, and a leaf as output.
    let y = x.sum()?;
    let found = grad(&[&y], &[&y], &GradOptions::default())?;
    assert_eq!(found[0].as_ref().unwrap().item::<f64>()?, 1.0);
    let s = leaf(&[5.0]);
    let found = grad(&[&s], &[&s], &GradOptions::default())?;
    assert_eq!(numbers(found[0].as_ref().unwrap()), [1.0]);
    Ok(())
}

#[test]
fn what_grad_refuses_and_takes() -> Result<()> {
    let (x, other) = (leaf(&[1.0, 2.0]), leaf(&[1.0]));
    let y = x.mul(&x)?;
    let keep = || GradOptions {
        retain_graph: true,
        ..Default::default()
    };
    says(
        grad(&[&y], &[&x], &keep()),
        &["starts from a scalar", "[2]"],
    );
    says(
        grad(&[&list(&[1.0])], &[&x], &keep()),
        &["no output depends"],
    );
    let given = |g: &[Tensor]| GradOptions {
        grad_outputs: Some(g.to_vec()),
        ..keep()
    };
    let ones = list(&[1.0, 3.0]);
    let found = grad(&[&y], &[&x], &given(std::slice::from_ref(&ones)))?;
    assert_eq!(numbers(found[0].as_ref().unwrap()), [2.0, 12.0]);
    says(
        grad(&[&y], &[&x], &given(&[])),
        &["1 grad_outputs", "got 0"],
    );
    says(
        grad(&[&y], &[&x], &given(&[ones.clone(), ones.clone()])),
        &["1 grad_outputs", "got 2"],
    );
    says(
        grad(&[&y], &[&x], &given(&[list(&[1.0])])),
        &["a gradient like the output", "f64[2]", "f64[1]"],
    );
    let single = Tensor::ones([2], DType::F32);
    says(grad(&[&y], &[&x], &given(&[single])), &["f64[2]", "f32[2]"]);
    let y = y.sum()?;
    says(
        grad(&[&y], &[&other], &keep()),
        &["input 0 does not take part"],
    );
    says(
        grad(&[&y], &[&x, &other], &keep()),
        &["input 1 does not take part"],
    );
    let unused = GradOptions {
        allow_unused: true,
        ..keep()
    };
    let found = grad(&[&y], &[&other, &x], &unused)?;
    assert!(found[0].is_none() && found[1].is_some());
    // Without retain_graph the graph is gone afterwards, and create_graph retains it.
    let again = GradOptions {
        create_graph: true,
        ..Default::default()
    };
    let first = grad(&[&y], &[&x], &again)?[0].clone().unwrap();
    assert!(first.is_tracked());
    let last = grad(&[&y], &[&x], &GradOptions::default())?[0]
        .clone()
        .unwrap();
    assert!(!last.is_tracked());
    says(
        grad(&[&y], &[&x], &GradOptions::default()),
        &["retain_graph"],
    );
    Ok(())
}

#[test]
fn backward_takes_several_outputs_and_options() -> Result<()> {
    let x = leaf(&[1.0, 2.0]);
    let y = x.mul(&x)?;
    says(y.backward(), &["starts from a scalar"]);
    says(y.backward_with(&list(&[1.0])), &["like the output"]);
    y.backward_with(&list(&[1.0, 10.0]))?;
    assert_eq!(numbers(&x.grad().unwrap()), [2.0, 40.0]);
    says(list(&[1.0]).backward(), &["does not depend on anything"]);
    x.zero_grad();
    assert!(x.grad().is_none());
    let y = x.mul(&x)?;
    let options = GradOptions {
        retain_graph: true,
        grad_outputs: Some(vec![list(&[1.0, 1.0])]),
        ..Default::default()
    };
    y.backward_with_options(&options)?;
    y.backward_with_options(&options)?;
    assert_eq!(numbers(&x.grad().unwrap()), [4.0, 8.0]);
    x.zero_grad();
    let (a, b) = (x.sum()?, y.sum()?);
    backward_all(
        &[(&a, None), (&b, Some(Tensor::scalar(3.0f64)))],
        &GradOptions::default(),
    )?;
    assert_eq!(numbers(&x.grad().unwrap()), [7.0, 13.0]);
    // The gradient of a leaf is itself differentiable after create_graph.
    let z = leaf(&[3.0]);
    let create = GradOptions {
        create_graph: true,
        ..Default::default()
    };
    z.mul(&z)?.mul(&z)?.sum()?.backward_with_options(&create)?;
    let first = z.grad().unwrap();
    assert_eq!(numbers(&first), [27.0]);
    let second = grad(&[&first.sum()?], &[&z], &GradOptions::default())?;
    assert_eq!(numbers(second[0].as_ref().unwrap()), [18.0]);
    Ok(())
}

#[test]
fn leaves_keep_their_cells() -> Result<()> {
    let cell = Leaf::new(Aval::new([2], DType::F64));
    assert_eq!(*cell.aval(), Aval::new([2], DType::F64));
    let x = Tensor::from_leaf(&list(&[1.0, 2.0]), &cell)?;
    assert!(x.is_leaf() && x.is_tracked());
    x.mul(&x)?.sum()?.backward()?;
    assert_eq!(numbers(&cell.grad().unwrap()), [2.0, 4.0]);
    // A new value of the same parameter adds to the same cell.
    let x = Tensor::from_leaf(&list(&[5.0, 5.0]), &cell)?;
    x.sum()?.backward()?;
    assert_eq!(numbers(&cell.take_grad().unwrap()), [3.0, 5.0]);
    assert!(cell.grad().is_none() && cell.take_grad().is_none());
    says(
        Tensor::from_leaf(&list(&[1.0]), &cell),
        &["f64[2]", "f64[1]"],
    );
    let whole = Leaf::new(Aval::new([1], DType::I64));
    says(
        Tensor::from_leaf(&Tensor::zeros([1], DType::I64), &whole),
        &["a float tensor"],
    );
    says(Tensor::from_leaf(&x, &cell), &["detach it first"]);
    x.set_grad(Some(list(&[7.0, 8.0])))?;
    assert_eq!(numbers(&x.grad().unwrap()), [7.0, 8.0]);
    says(x.set_grad(Some(list(&[7.0]))), &["f64[2]", "f64[1]"]);
    x.set_grad(None)?;
    assert!(x.grad().is_none());
    says(list(&[1.0]).set_grad(None), &["only leaves"]);
    says(x.mul(&x)?.set_grad(None), &["only leaves"]);
    says(
        Tensor::zeros([1], DType::I64).requires_grad(),
        &["a float tensor"],
    );
    // Asked again, a leaf of its own; the first one is not reached.
    let again = x.mul(&x)?.requires_grad()?;
    again.sum()?.backward()?;
    assert!(again.is_leaf() && x.grad().is_none() && again.grad().is_some());
    Ok(())
}

#[test]
fn leaves_and_tracking_show_in_every_wrapper() -> Result<()> {
    let x = leaf(&[1.0]);
    let y = x.exp()?;
    let plain = list(&[1.0]);
    let tracked = |t: &Tensor| (t.is_tracked(), t.is_leaf());
    assert_eq!(tracked(&x), (true, true));
    assert_eq!(tracked(&y), (true, false));
    assert_eq!(tracked(&plain), (false, true));
    assert_eq!(tracked(&y.detach()), (false, true));
    let dual = DualTensor::new(&plain, &plain)?;
    assert_eq!(tracked(dual.tensor()), (false, true));
    let inside = Arc::new(Mutex::new(Vec::new()));
    let seen = inside.clone();
    let out = checkpoint(
        move |t| {
            let mut seen = seen.lock().unwrap();
            for t in t {
                seen.push((t.is_tracked(), t.is_leaf()));
                seen.push((t.detach().is_tracked(), t.grad().is_some()));
            }
            Ok(vec![t[0].mul(&t[1])?.mul(&t[2])?])
        },
        &[&x, &y, &plain],
    )?;
    assert_eq!(
        *inside.lock().unwrap(),
        [
            (true, true),
            (false, false),
            (true, false),
            (false, false),
            (false, true),
            (false, false)
        ]
    );
    assert!(out[0].is_tracked());
    Ok(())
}

/// What `{:?}` and `{}` show.
#[test]
fn tensors_show_dtype_shape_and_history() -> Result<()> {
    let x = leaf(&[1.0]);
    let shown = |t: &Tensor| format!("{t:?}");
    assert!(
        shown(&list(&[1.0])).starts_with("Tensor(f64 [1], "),
        "{}",
        shown(&list(&[1.0]))
    );
    assert!(shown(&x).contains("requires_grad"), "{}", shown(&x));
    assert!(
        shown(&x.exp()?).contains("grad_fn=exp"),
        "{}",
        shown(&x.exp()?)
    );
    let dual = DualTensor::new(&list(&[1.0]), &list(&[2.0]))?;
    assert!(
        shown(dual.tensor()).contains(", dual"),
        "{}",
        shown(dual.tensor())
    );
    let text = Arc::new(Mutex::new(String::new()));
    let note = text.clone();
    checkpoint(
        move |t| {
            *note.lock().unwrap() = format!("{:?}", t[0]);
            Ok(vec![t[0].clone()])
        },
        &[&x],
    )?;
    assert!(text.lock().unwrap().contains(", checkpointed"), "{text:?}");
    let both = list(&[1.5, -2.0]);
    assert_eq!(format!("{both}"), format!("{}", both.array()));
    assert!(format!("{both}").contains("1.5") && format!("{both}").contains("-2"));
    let y = x
        .register_hook(|_| Ok(None))?
        .exp()?
        .register_hook(|_| Ok(None))?;
    assert!(shown(&y).contains("grad_fn=hook"), "{}", shown(&y));
    let z = x.exp()?.retain_grad()?;
    assert!(shown(&z).contains("grad_fn=retain_grad"), "{}", shown(&z));
    Ok(())
}

#[test]
fn recording_is_switched_per_scope() -> Result<()> {
    let x = leaf(&[1.0]);
    assert!(entrenar_core::apply::grad_enabled());
    let inner = no_grad(|| {
        assert!(!entrenar_core::apply::grad_enabled());
        let inside = enable_grad(|| x.exp().map(|y| y.is_tracked()));
        assert!(!entrenar_core::apply::grad_enabled(), "off again");
        (x.exp().map(|y| y.is_tracked()), inside)
    });
    assert_eq!((inner.0?, inner.1?), (false, true));
    assert!(entrenar_core::apply::grad_enabled(), "on again");
    let outcome = std::panic::catch_unwind(|| no_grad(|| panic!("inside")));
    assert!(outcome.is_err() && entrenar_core::apply::grad_enabled());
    Ok(())
}

#[test]
fn tapes_answer_once_or_often() -> Result<()> {
    let tape = GradientTape::new();
    let x = tape.variable(&list(&[3.0]))?;
    let y = x.mul(&x)?;
    let first = tape.gradient(&y, &[&x])?[0].clone().unwrap();
    assert_eq!(numbers(&first), [6.0]);
    says(tape.gradient(&y, &[&x]), &["already used", "persistent"]);
    let tape = GradientTape::new().persistent();
    let x = tape.variable(&list(&[3.0, 4.0]))?;
    let y = x.mul(&x)?;
    says(tape.gradient(&y, &[&x]), &["gradient_with"]);
    for _ in 0..3 {
        let g = tape.gradient_with(&y, &list(&[1.0, 2.0]), &[&x, &y])?;
        assert_eq!(numbers(g[0].as_ref().unwrap()), [6.0, 16.0]);
        assert_eq!(numbers(g[1].as_ref().unwrap()), [1.0, 2.0]);
    }
    says(
        tape.gradient_with(&y, &list(&[1.0]), &[&x]),
        &["f64[2]", "f64[1]"],
    );
    says(
        tape.variable(&Tensor::zeros([1], DType::I64)),
        &["a float tensor"],
    );
    says(tape.variable(&x), &["already watched here"]);
    let later = GradientTape::new();
    let watched = later.variable(&x)?;
    says(tape.variable(&watched), &["opened after this tape"]);
    assert_eq!(numbers(&later.unwatch(&watched)), [3.0, 4.0]);
    let z = list(&[1.0]);
    let none = tape.gradient(&y.sum()?, &[&z])?;
    assert!(none[0].is_none());
    Ok(())
}

#[test]
fn transforms_count_and_compare_their_arguments() -> Result<()> {
    let (x, v) = (list(&[1.0, 2.0]), list(&[3.0, 4.0]));
    let square = |t: &[Tensor]| Ok(vec![t[0].mul(&t[0])?]);
    says(jvp(square, &[&x], &[]), &["1 tangents", "got 0"]);
    says(jvp(square, &[&x], &[&v, &v]), &["1 tangents", "got 2"]);
    says(
        jvp(square, &[&x], &[&list(&[1.0])]),
        &["a tangent like it", "f64[2]", "f64[1]"],
    );
    let whole = Tensor::zeros([2], DType::I64);
    says(jvp(square, &[&whole], &[&whole]), &["a float value"]);
    let (_, pullback) = vjp(square, &[&x])?;
    says(pullback.call(&[]), &["1 cotangents", "got 0"]);
    says(pullback.call(&[&v, &v]), &["1 cotangents", "got 2"]);
    says(pullback.call(&[&list(&[1.0])]), &["f64[2]", "f64[1]"]);
    assert_eq!(numbers(&pullback.call(&[&v])?[0]), [6.0, 16.0]);
    assert_eq!(
        numbers(&pullback.call(&[&v])?[0]),
        [6.0, 16.0],
        "as often as wanted"
    );
    let (values, at) = linearize(square, &[&x])?;
    assert_eq!(numbers(&values[0]), [1.0, 4.0]);
    says(at.jvp(&[]), &["1 tangents", "got 0"]);
    says(at.jvp(&[&list(&[1.0])]), &["f64[2]", "f64[1]"]);
    assert_eq!(numbers(&at.jvp(&[&v])?[0]), [6.0, 16.0]);
    assert_eq!(numbers(&at.vjp(&[&v])?[0]), [6.0, 16.0]);
    says(
        value_and_grad(|t| t[0].mul(&t[0]), &[&x]),
        &["must return a scalar", "[2]"],
    );
    let (_, grads) = value_and_grad(|t| t[0].sum(), &[&x, &v])?;
    assert_eq!(
        (numbers(&grads[0]), numbers(&grads[1])),
        (vec![1.0, 1.0], vec![0.0, 0.0])
    );
    let wrong = DualTensor::new(&x, &list(&[1.0]));
    says(wrong, &["f64[2]"]);
    let dual = DualTensor::new(&x, &v)?;
    let second = dual.with(&x, &v)?;
    let y = dual.wrap(dual.tensor().mul(second.tensor())?)?;
    assert_eq!(numbers(&y.value()), [1.0, 4.0]);
    assert_eq!(numbers(&y.tangent().unwrap()), [6.0, 16.0]);
    assert!(dual.wrap(x.clone())?.tangent().is_none());
    Ok(())
}

#[test]
fn jacobians_have_the_shape_of_output_then_input() -> Result<()> {
    let x = list(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape([2, 3])?;
    let rows = |t: &Tensor| t.mul(t)?.sum_dim(&[0], false);
    for j in [jacfwd(rows, &x)?, jacrev(rows, &x)?, jacobian(rows, &x)?] {
        assert_eq!(j.dims(), [3, 2, 3]);
        let expected = [
            2.0, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0,
            12.0,
        ];
        assert_eq!(numbers(&j), expected);
    }
    let empty = Tensor::zeros([0], DType::F64);
    assert_eq!(jacfwd(|t| t.mul(t), &empty)?.dims(), [0, 0]);
    assert_eq!(jacrev(|t| t.mul(t), &empty)?.dims(), [0, 0]);
    assert_eq!(jacfwd(|t| t.sum(), &empty)?.dims(), [0]);
    assert_eq!(jacrev(|t| t.narrow(0, 0, 0), &list(&[1.0]))?.dims(), [0, 1]);
    let h = hessian(|t| t.mul(t)?.sum(), &x)?;
    assert_eq!(h.dims(), [2, 3, 2, 3]);
    assert_eq!(numbers(&h.sum()?), [12.0]);
    assert_eq!(jacobian_mode(2, 3), "forward");
    assert_eq!(jacobian_mode(3, 3), "forward");
    assert_eq!(jacobian_mode(4, 3), "reverse");
    Ok(())
}
