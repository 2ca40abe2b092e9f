//! The generic checks, run over every operation of the registry; no op has code of its own here.
//!
//! `ENTRENAR_CASES` sets the number of random cases per operation (the slow tier uses 1,000).

use entrenar_core::autograd::{GradCheck, check_gradient, checkpoint, vjp};
use entrenar_core::registry::{Entry, Gen, Sample, operations};
use entrenar_core::{DType, Result, Tensor};

fn cases() -> u64 {
    std::env::var("ENTRENAR_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(30)
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

/// Strided, flipped and offset inputs give the bits of their contiguous copies.
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
        if s.order == 0 || case > 5 {
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
