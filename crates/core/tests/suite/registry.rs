//! The generic checks, run over every operation of the registry; no op has code of its own here.
//!
//! Each check draws 30 random cases per operation; the slow tier (`ENTRENAR_SLOW=1`) draws 1,000,
//! and `ENTRENAR_CASES` any other number.

use std::sync::Once;

use entrenar_core::autograd::{
    DualTensor, GradCheck, GradOptions, check_gradient, checkpoint, grad, jvp, vjp,
};
use entrenar_core::registry::{Entry, Gen, Sample, operations};
use entrenar_core::{DType, Result, Tensor};

/// Cases per operation: quickly, and in the slow tier.
const QUICK: u64 = 30;
const SLOW: u64 = 1000;

fn cases() -> u64 {
    static SAID: Once = Once::new();
    if let Ok(n) = std::env::var("ENTRENAR_CASES") {
        return n.parse().expect("ENTRENAR_CASES is a number of cases");
    }
    if std::env::var("ENTRENAR_SLOW").is_ok_and(|v| v == "1") {
        return SLOW;
    }
    SAID.call_once(|| {
        eprintln!(
            "registry checks: {QUICK} of {SLOW} cases per operation; ENTRENAR_SLOW=1 runs all"
        );
    });
    QUICK
}

/// Runs `check` on random cases of every op and reports all failures together.
fn over_registry(what: &str, check: impl Fn(&Entry, &Sample, u64) -> Result<(), String>) {
    let mut failures = Vec::new();
    for (k, entry) in operations().iter().enumerate() {
        for case in 0..cases() {
            let mut g = Gen::new(case, k as u64);
            let outcome = (entry.sample)(&mut g)
                .map_err(|e| format!("sample: {e}"))
                .and_then(|s| check(entry, &s, case));
            if let Err(e) = outcome {
                failures.push(format!("{} case {case}: {e}", entry.name));
                break;
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{what}: {} operations fail\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn refs(t: &[Tensor]) -> Vec<&Tensor> {
    t.iter().collect()
}

fn bits(outputs: &[Tensor]) -> Vec<Vec<u64>> {
    outputs
        .iter()
        .map(|t| t.array().to_f64_vec().iter().map(|v| v.to_bits()).collect())
        .collect()
}

/// Gradients of Σ outputs with respect to the f64 inputs.
fn gradients(s: &Sample, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let (outputs, pullback) = vjp(|t| (s.function)(t), &refs(inputs))?;
    let ones: Vec<Tensor> = outputs.iter().map(Tensor::ones_like).collect();
    Ok((outputs, pullback.call(&refs(&ones))?))
}

#[test]
fn names_are_unique_and_sorted_by_file() {
    let mut names: Vec<_> = operations().iter().map(|e| e.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "an operation is listed twice");
}

/// jvp against central differences, vjp against jvp, orders up to the sample's, all mode mixes.
#[test]
fn derivatives_agree() {
    over_registry("derivatives", |_, s, case| {
        if s.order == 0 {
            (s.function)(&s.inputs).map_err(|e| e.to_string())?;
            return Ok(());
        }
        // Third order costs 16 times first order: every fifth case.
        let order = if case % 5 == 0 {
            s.order
        } else {
            s.order.min(2)
        };
        let settings = GradCheck {
            order,
            tolerance: s.tolerance,
            seed: case,
            ..Default::default()
        };
        check_gradient(|t| (s.function)(t), &refs(&s.inputs), &settings).map_err(|e| e.to_string())
    });
}

/// P17: strided, flipped and offset inputs give the bits of their contiguous copies.
#[test]
fn layouts_do_not_matter() {
    over_registry("layouts", |_, s, _| {
        let copies: Vec<Tensor> = s
            .inputs
            .iter()
            .map(|t| Tensor::from(t.array().deep_copy()))
            .collect();
        let run = |inputs: &[Tensor]| -> Result<_> {
            if s.order == 0 {
                Ok(((s.function)(inputs)?, vec![]))
            } else {
                gradients(s, inputs)
            }
        };
        let (a, ga) = run(&s.inputs).map_err(|e| e.to_string())?;
        let (b, gb) = run(&copies).map_err(|e| e.to_string())?;
        if bits(&a) != bits(&b) || bits(&ga) != bits(&gb) {
            return Err("a strided input changes bits".into());
        }
        Ok(())
    });
}

/// A checkpointed call gives the bits of a plain one, values and gradients.
#[test]
fn checkpointing_changes_nothing() {
    over_registry("checkpoint", |entry, s, case| {
        if s.order == 0 {
            return Ok(());
        }
        let (a, ga) = gradients(s, &s.inputs).map_err(|e| e.to_string())?;
        let name = entry.name;
        let index = operations()
            .iter()
            .position(|e| e.name == name)
            .expect("listed") as u64;
        // The region owns its function: rebuild the same sample inside.
        let again = move || {
            let mut g = Gen::new(case, index);
            (operations()[index as usize].sample)(&mut g)
        };
        let inner = again().map_err(|e| e.to_string())?;
        let function = std::sync::Arc::new(inner.function);
        let (b, gb) = (|| -> Result<_> {
            let (outputs, pullback) = vjp(
                |t| {
                    let f = function.clone();
                    checkpoint(move |t| f(t), &refs(t))
                },
                &refs(&s.inputs),
            )?;
            let ones: Vec<Tensor> = outputs.iter().map(Tensor::ones_like).collect();
            Ok((outputs, pullback.call(&refs(&ones))?))
        })()
        .map_err(|e| e.to_string())?;
        if bits(&a) != bits(&b) || bits(&ga) != bits(&gb) {
            return Err("checkpointing changes bits".into());
        }
        Ok(())
    });
}

/// Every op runs in f32, f16 and bf16 and stays near its f64 result.
#[test]
fn other_float_types_stay_near_f64() {
    over_registry("dtypes", |_, s, _| {
        let exact = (s.function)(&s.inputs).map_err(|e| e.to_string())?;
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F16, 4e-2), (DType::BF16, 3e-1)] {
            let inputs = Gen::cast_inputs(s, dtype);
            // The same rounded inputs in f64 are the reference, so that only the op's own
            // rounding is measured.
            let widened: Vec<Tensor> = inputs
                .iter()
                .map(|t| {
                    if t.dtype() == dtype {
                        Tensor::from(t.array().cast(DType::F64))
                    } else {
                        t.clone()
                    }
                })
                .collect();
            let reference = (s.function)(&widened).map_err(|e| e.to_string())?;
            let found = (s.function)(&inputs).map_err(|e| format!("{dtype}: {e}"))?;
            for ((f, r), e) in found.iter().zip(&reference).zip(&exact) {
                if f.shape() != e.shape() {
                    return Err(format!(
                        "{dtype}: shape {} instead of {}",
                        f.shape(),
                        e.shape()
                    ));
                }
                if s.order < 2 {
                    continue; // ties and steps may fall on the other side
                }
                let scale = r
                    .array()
                    .to_f64_vec()
                    .iter()
                    .fold(1.0f64, |m, v| m.max(v.abs()));
                for (x, y) in f.array().to_f64_vec().iter().zip(r.array().to_f64_vec()) {
                    let distance = (x - y).abs();
                    if distance.is_nan() || distance > tolerance * scale {
                        return Err(format!("{dtype}: {x} instead of {y}"));
                    }
                }
            }
        }
        Ok(())
    });
}

type Function<'a> = dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a;

/// Values, gradients of Σ outputs, and gradients of Σ of those where `order` reaches that far.
fn up_to_second(f: &Function<'_>, inputs: &[Tensor], order: u8) -> Result<[Vec<Tensor>; 3]> {
    let first = |t: &[Tensor]| -> Result<Vec<Tensor>> {
        let (outputs, pullback) = vjp(f, &refs(t))?;
        let ones: Vec<Tensor> = outputs.iter().map(Tensor::ones_like).collect();
        pullback.call(&refs(&ones))
    };
    let values = f(inputs)?;
    let gradients = if order > 0 { first(inputs)? } else { vec![] };
    let second = if order > 1 {
        let (outputs, pullback) = vjp(first, &refs(inputs))?;
        let ones: Vec<Tensor> = outputs.iter().map(Tensor::ones_like).collect();
        pullback.call(&refs(&ones))?
    } else {
        vec![]
    };
    Ok([values, gradients, second])
}

/// Second derivatives through a recorded backward pass (`create_graph`) are those of nested
/// transforms.
#[test]
fn recorded_backward_passes_equal_nested_transforms() {
    over_registry("create_graph", |_, s, case| {
        if s.order < 2 || case % 3 != 0 {
            return Ok(());
        }
        let nested = up_to_second(&s.function, &s.inputs, s.order).map_err(|e| e.to_string())?;
        let second = (|| -> Result<Vec<Tensor>> {
            let inputs: Vec<Tensor> = s
                .inputs
                .iter()
                .map(|t| t.requires_grad().unwrap_or_else(|_| t.clone()))
                .collect();
            let floats: Vec<&Tensor> = inputs.iter().filter(|t| t.is_tracked()).collect();
            let sum = |tensors: &[Tensor]| -> Result<Tensor> {
                let tracked = tensors.iter().filter(|t| t.is_tracked());
                let sums = tracked.map(Tensor::sum).collect::<Result<Vec<_>>>()?;
                sums.iter()
                    .try_fold(Tensor::scalar(0.0f64), |a, b| a.add(b))
            };
            let take = |loss: &Tensor, create_graph: bool| -> Result<Vec<Tensor>> {
                if !loss.is_tracked() {
                    return Ok(floats.iter().map(|t| t.detach().zeros_like()).collect());
                }
                let options = GradOptions {
                    create_graph,
                    allow_unused: true,
                    ..Default::default()
                };
                let found = grad(&[loss], &floats, &options)?;
                let zeros = |t: &Tensor| t.detach().zeros_like();
                Ok(found
                    .into_iter()
                    .zip(&floats)
                    .map(|(g, t)| g.unwrap_or_else(|| zeros(t)))
                    .collect())
            };
            let first = take(&sum(&(s.function)(&inputs)?)?, true)?;
            take(&sum(&first)?, false)
        })()
        .map_err(|e| e.to_string())?;
        let float = s.inputs.iter().map(|t| t.dtype().is_float());
        let expected = nested[2]
            .iter()
            .zip(float)
            .filter(|(_, f)| *f)
            .map(|(t, _)| t);
        for (x, y) in second.iter().zip(expected) {
            let (x, y) = (x.array().to_f64_vec(), y.array().to_f64_vec());
            let scale = y.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            for (x, y) in x.iter().zip(&y) {
                let distance = (x - y).abs();
                if distance.is_nan() || distance > 1e-9 * scale {
                    return Err(format!("{x} instead of {y}"));
                }
            }
        }
        Ok(())
    });
}

/// `f` with every fused op run as its expansion in simpler ops, which is what forward mode does:
/// the float inputs get a direction of zeros.
fn expanded(f: &Function<'_>, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut level: Option<DualTensor> = None;
    let mut wrapped = Vec::with_capacity(inputs.len());
    for t in inputs {
        wrapped.push(if t.dtype().is_float() {
            let zeros = t.detach().zeros_like();
            let dual = match &level {
                None => DualTensor::new(t, &zeros)?,
                Some(first) => first.with(t, &zeros)?,
            };
            let tensor = dual.tensor().clone();
            level.get_or_insert(dual);
            tensor
        } else {
            t.clone()
        });
    }
    f(&wrapped)?
        .into_iter()
        .map(|r| match &level {
            Some(first) => Ok(first.wrap(r)?.value()),
            None => Ok(r),
        })
        .collect()
}

/// P9, P18: a fused kernel gives what its expansion gives, in value, gradient and second order:
/// caches such as means and log-sum-exps carry no derivative of their own.
#[test]
fn fused_kernels_equal_their_expansions() {
    over_registry("expansions", |entry, s, _| {
        if !matches!(entry.kind, "expand" | "composed") {
            return Ok(());
        }
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-4)] {
            let inputs = Gen::cast_inputs(s, dtype);
            let fused = up_to_second(&s.function, &inputs, s.order).map_err(|e| e.to_string())?;
            let plain = up_to_second(&|t| expanded(&s.function, t), &inputs, s.order)
                .map_err(|e| e.to_string())?;
            for (order, (f, p)) in fused.iter().zip(&plain).enumerate() {
                // Each order multiplies what rounding leaves of badly conditioned rows.
                let room = tolerance * 10f64.powi(order as i32);
                for (f, p) in f.iter().zip(p) {
                    let (f, p) = (f.array().to_f64_vec(), p.array().to_f64_vec());
                    let scale = p.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                    for (x, y) in f.iter().zip(&p) {
                        let distance = (x - y).abs();
                        if distance.is_nan() || distance > room * scale {
                            return Err(format!("{dtype}, order {order}: {x} instead of {y}"));
                        }
                    }
                }
            }
        }
        Ok(())
    });
}

/// P10: at ties and kinks, where no difference quotient exists, forward and reverse mode must
/// still follow one convention. Rounding the inputs to halves makes equal elements, zeros and
/// bounds met exactly.
#[test]
fn both_modes_agree_at_ties() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (met, all) = (AtomicUsize::new(0), AtomicUsize::new(0));
    over_registry("ties", |_, s, case| {
        if s.order == 0 {
            return Ok(());
        }
        all.fetch_add(1, Ordering::Relaxed);
        let inputs: Vec<Tensor> = s
            .inputs
            .iter()
            .map(|t| {
                if t.dtype() != DType::F64 {
                    return t.clone();
                }
                let halves = t.to_vec::<f64>().expect("f64");
                let halves = halves.iter().map(|v| (v * 2.0).round() / 2.0).collect();
                Tensor::from_vec(halves, t.shape()).expect("counted")
            })
            .collect();
        let real: Vec<&Tensor> = inputs.iter().filter(|t| t.dtype() == DType::F64).collect();
        let f = |given: &[Tensor]| -> Result<Vec<Tensor>> {
            let mut given = given.iter();
            let full: Vec<Tensor> = inputs
                .iter()
                .map(|t| {
                    if t.dtype() == DType::F64 {
                        given.next().expect("one per f64 input").clone()
                    } else {
                        t.clone()
                    }
                })
                .collect();
            let outputs = (s.function)(&full)?;
            Ok(outputs
                .into_iter()
                .filter(|t| t.dtype() == DType::F64)
                .collect())
        };
        let mut g = Gen::new(case, 1 << 32);
        let directions: Vec<Tensor> = real
            .iter()
            .map(|t| g.tensor(t.shape(), -1.0, 1.0))
            .collect();
        // Rounding may leave a function's domain (a matrix no longer positive definite).
        let Ok((outputs, pushed)) = jvp(f, &real, &refs(&directions)) else {
            return Ok(());
        };
        let cotangents: Vec<Tensor> = outputs
            .iter()
            .map(|t| g.tensor(t.shape(), -1.0, 1.0))
            .collect();
        let pulled = vjp(f, &real)
            .and_then(|(_, pullback)| pullback.call(&refs(&cotangents)))
            .map_err(|e| e.to_string())?;
        let dot = |a: &[Tensor], b: &[Tensor]| -> (f64, f64) {
            a.iter().zip(b).fold((0.0, 0.0), |sums, (a, b)| {
                let (a, b) = (a.array().to_f64_vec(), b.array().to_f64_vec());
                a.iter().zip(&b).fold(sums, |(sum, size), (p, q)| {
                    (sum + p * q, size + (p * q).abs())
                })
            })
        };
        let (forward, size_f) = dot(&cotangents, &pushed);
        let (reverse, size_r) = dot(&pulled, &directions);
        if !forward.is_finite() && !reverse.is_finite() {
            return Ok(()); // a pole, in both modes
        }
        met.fetch_add(1, Ordering::Relaxed);
        let scale = size_f.max(size_r).max(1e-3);
        let distance = (forward - reverse).abs();
        if distance.is_nan() || distance > 1e-9 * scale {
            return Err(format!("forward mode {forward}, reverse mode {reverse}"));
        }
        Ok(())
    });
    let (met, all) = (met.into_inner(), all.into_inner());
    assert!(
        met * 10 > all * 8,
        "only {met} of {all} cases stayed in their domain"
    );
}
