//! Sizes that no machine holds, and graphs of any length: errors and not wrong numbers, not an
//! aborted process, not an overflowed stack.

use std::sync::Arc;

use entrenar_core::autograd::{checkpoint, checkpoint_with};
use entrenar_core::{DType, ErrorKind, Result, Tensor};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()])
        .unwrap()
        .requires_grad()
        .unwrap()
}

/// 2^64 elements wrap to 0, whose sum would be 0 and whose mean NaN.
#[test]
fn a_broadcast_to_more_elements_than_there_are_is_an_error() {
    let one = Tensor::ones([1], DType::F64);
    for r in [
        one.broadcast_to([1 << 32, 1 << 32]),
        one.expand(&[1 << 32, 1 << 32]),
        one.broadcast_to([1 << 62, 0]),
    ] {
        let e = r.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Shape);
        let text = e.to_string();
        assert!(
            text.starts_with("[broadcast_to] expected a size that fits in memory"),
            "{text}"
        );
    }
    let long = one.broadcast_to([1 << 40]).unwrap();
    assert_eq!(long.numel(), 1 << 40, "a view costs nothing");
}

#[test]
fn creation_beyond_memory_is_an_error_or_a_panic_at_the_caller() {
    for shape in [
        vec![1usize << 45],
        vec![1 << 59],
        vec![1 << 62],
        vec![1 << 40; 3],
    ] {
        let e = Tensor::try_full(shape.clone(), 1.0, DType::F64).unwrap_err();
        assert!(
            matches!(e.kind(), ErrorKind::Memory | ErrorKind::Shape),
            "{e:?}"
        );
        assert!(Tensor::rand(shape.clone(), DType::F32, 0).is_err());
        assert!(Tensor::randn(shape, DType::F32, 0).is_err());
    }
    for end in [1e19, 1e14] {
        assert!(Tensor::arange(0.0, end, 1.0, DType::F32).is_err());
    }
    assert!(Tensor::arange(0.0, f64::INFINITY, 1.0, DType::F32).is_err());
    let runs: [fn() -> Tensor; 3] = [
        || Tensor::zeros([1usize << 45], DType::F64),
        || Tensor::ones([1usize << 62], DType::F64),
        || Tensor::eye(1 << 33, DType::F32),
    ];
    for run in runs {
        let payload = std::panic::catch_unwind(run).unwrap_err();
        let text = payload.downcast::<String>().expect("a message");
        assert!(text.contains("expected"), "{text}");
    }
}

/// A result that cannot be held: 2^43 f32 are 32 TiB.
#[test]
fn results_beyond_memory_are_errors() -> Result<()> {
    let one = Tensor::ones([1, 1], DType::F32);
    let two = Tensor::eye(2, DType::F32);
    let huge = one.broadcast_to([1 << 22, 1 << 21])?;
    let index = Tensor::zeros([1, 1], DType::I64).broadcast_to([1 << 22, 1 << 21])?;
    let column = one.broadcast_to([1 << 22, 1])?;
    let row = one.broadcast_to([1, 1 << 22])?;
    type Run<'a> = (&'a str, Box<dyn Fn() -> Result<Tensor> + 'a>);
    let runs: Vec<Run<'_>> = vec![
        ("exp", Box::new(|| huge.exp())),
        ("add", Box::new(|| huge.add(&one))),
        ("gt", Box::new(|| huge.gt_scalar(0.0))),
        (
            "where",
            Box::new(|| Tensor::where_(&huge.gt_scalar(0.0)?, &one, &one)),
        ),
        ("to_dtype", Box::new(|| huge.to_dtype(DType::F64))),
        ("reshape", Box::new(|| huge.transpose(0, 1)?.contiguous())),
        ("matmul", Box::new(|| column.matmul(&row))),
        ("softmax", Box::new(|| huge.softmax(1))),
        (
            "layer_norm",
            Box::new(|| huge.layer_norm(1, None, None, 1e-5)),
        ),
        ("cumsum", Box::new(|| huge.cumsum(1))),
        ("sort", Box::new(|| Ok(huge.sort(1, false)?.0))),
        ("flip", Box::new(|| huge.flip(&[0])?.contiguous())),
        ("concat", Box::new(|| Tensor::concat(&[&huge, &huge], 0))),
        ("repeat", Box::new(|| two.repeat(&[1 << 21, 1 << 21]))),
        (
            "pad",
            Box::new(|| {
                one.pad(
                    &[(0, 1 << 43), (0, 0)],
                    entrenar_core::ops::pad::Padding::Constant(0.0),
                )
            }),
        ),
        ("gather", Box::new(|| huge.gather(0, &index))),
        (
            "index_select",
            Box::new(|| huge.index_select(0, &Tensor::arange(0.0, 4e6, 1.0, DType::I64)?)),
        ),
        ("embedding", Box::new(|| one.embedding(&index))),
        (
            "one_hot",
            Box::new(|| Tensor::zeros([1 << 22], DType::I64).one_hot(1 << 21)),
        ),
        ("tril", Box::new(|| huge.tril(0))),
        ("dropout", Box::new(|| huge.dropout(0.5, 1, 1))),
        (
            "outer",
            Box::new(|| column.reshape([1 << 22])?.outer(&row.reshape([1 << 22])?)),
        ),
        (
            "conv1d",
            Box::new(|| {
                one.broadcast_to([1, 1, 1 << 43])?.conv1d(
                    &Tensor::ones([1, 1, 1], DType::F32),
                    None,
                    &Default::default(),
                )
            }),
        ),
        (
            "attention",
            Box::new(|| {
                let q = one.broadcast_to([1, 1, 1 << 42, 2])?;
                let k = Tensor::ones([1, 1, 1, 2], DType::F32);
                q.scaled_dot_product_attention(&k, &k, &Default::default())
            }),
        ),
    ];
    for (name, run) in runs {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let e = match outcome {
            Ok(r) => r.err(),
            Err(_) => panic!("{name} panicked"),
        };
        assert!(e.is_some(), "{name} gave a result");
    }
    Ok(())
}

const LONG: usize = 150_000;

/// A thread's stack of 2 MiB, as test threads have, must not bound the length of a chain of
/// checkpoints: each region holds the tensors of the one before it.
#[test]
fn chains_of_checkpoints_drop_without_recursion() -> Result<()> {
    let x = leaf(&[1.0]);
    let mut y = x.clone();
    for _ in 0..LONG {
        y = checkpoint(|t| Ok(vec![t[0].sin()?]), &[&y])?.remove(0);
    }
    drop(y);
    assert!(x.array().is_exclusive(), "all of it is freed");

    // Held by what the function captured instead of by its inputs, and kept by a policy.
    let mut y = x.clone();
    for _ in 0..LONG / 4 {
        let before = y.clone();
        let keep: entrenar_core::autograd::CheckpointPolicy = Arc::new(|_, _| true);
        y = checkpoint_with(move |_| Ok(vec![before.sin()?]), &[], Some(keep))?.remove(0);
    }
    drop(y);

    // A whole training step through a shorter one.
    let mut y = x.clone();
    for _ in 0..LONG / 4 {
        y = checkpoint(|t| Ok(vec![t[0].neg()?.mul(&t[0].neg()?.detach())?]), &[&y])?.remove(0);
    }
    y.sum()?.backward()?;
    assert_eq!(x.grad().expect("a gradient").to_vec::<f64>()?, [1.0]);
    Ok(())
}

/// Chains through hooks that captured the tensor before them, and through leaves whose gradient
/// has a graph of its own.
#[test]
fn chains_through_closures_drop_without_recursion() -> Result<()> {
    let x = leaf(&[1.0]);
    let mut y = x.clone();
    for _ in 0..LONG {
        let before = y.clone();
        y = y.neg()?.register_hook(move |g| {
            assert_eq!(g.numel(), before.numel());
            Ok(None)
        })?;
    }
    drop(y);
    assert!(x.array().is_exclusive());
    Ok(())
}

/// What a thread holds to its very end, when other values of the thread are gone.
#[test]
fn a_deep_graph_is_freed_at_the_end_of_its_thread() {
    use std::cell::RefCell;
    thread_local!(static KEPT: RefCell<Option<Tensor>> = const { RefCell::new(None) });
    let run = std::thread::Builder::new().stack_size(256 << 10);
    let run = run.spawn(|| {
        // Used first, so that it is destroyed before or after all others, as the system orders them.
        KEPT.with_borrow_mut(|kept| *kept = None);
        let mut y = leaf(&[0.1]);
        for _ in 0..20_000 {
            y = y.mul(&y).unwrap().add(&y).unwrap();
        }
        drop(y.neg().unwrap().neg().unwrap());
        KEPT.with_borrow_mut(|kept| *kept = Some(y));
    });
    run.unwrap().join().unwrap();
}
