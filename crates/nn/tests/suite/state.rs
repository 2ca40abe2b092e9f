//! Saving and loading by name: all or nothing, every fault in one message.

use entrenar_core::{Array, DType, Result, Tensor};
use entrenar_nn::{Buffer, Init, Linear, LoadOptions, Module, Parameter, Parameters};

#[derive(Module)]
struct Model {
    embedding: Parameter,
    body: Linear,
    head: Parameter,
    steps: Buffer,
}

fn model(seed: u64) -> Result<Model> {
    let init = &mut Init::new(seed);
    let embedding = Parameter::new(init.normal([3, 2], 0.0, 1.0)?)?;
    Ok(Model {
        head: embedding.clone(),
        embedding,
        body: Linear::new(2, 2, init)?,
        steps: Buffer::new(&Tensor::scalar(seed as i64)),
    })
}

fn values(m: &Model) -> Vec<Vec<f64>> {
    m.state().iter().map(|(_, a)| a.to_f64_vec()).collect()
}

#[test]
fn a_state_goes_round() -> Result<()> {
    let (a, b) = (model(1)?, model(2)?);
    let names: Vec<String> = a.state().into_iter().map(|(n, _)| n).collect();
    assert_eq!(names, ["embedding", "body.weight", "body.bias", "steps"]);
    assert_eq!(a.tied_names(), [("head".into(), "embedding".into())]);
    assert_ne!(values(&a), values(&b));
    b.load_state(&a.state())?;
    assert_eq!(values(&a), values(&b));
    // The loaded model is its own: a change does not go back.
    b.body.weight.with_value_mut::<f32, _>(|w| w.fill(0.0))?;
    assert_ne!(values(&a), values(&b));
    Ok(())
}

#[test]
fn every_fault_is_listed_and_nothing_is_loaded() -> Result<()> {
    let m = model(1)?;
    let before = values(&m);
    let state = vec![
        ("embedding".to_string(), Array::zeros([3, 3], DType::F32)),
        ("body.weight".to_string(), Array::zeros([2, 2], DType::F32)),
        ("steps".to_string(), Array::zeros((), DType::F32)),
        ("extra.a".to_string(), Array::zeros([1], DType::F32)),
        ("extra.b".to_string(), Array::zeros([1], DType::F32)),
    ];
    let error = m.load_state(&state).unwrap_err().to_string();
    assert_eq!(
        error,
        "[load_state] the names do not fit this model; missing: body.bias; \
         unexpected: extra.a, extra.b; \
         mismatched: embedding (f32[3, 3] instead of f32[3, 2]), steps (f32[] instead of i64[])"
    );
    assert_eq!(values(&m), before);
    Ok(())
}

#[test]
fn what_may_be_left_out_is_reported() -> Result<()> {
    let m = model(1)?;
    let state = vec![
        ("body.bias".to_string(), Array::zeros([2], DType::F64)),
        ("extra".to_string(), Array::zeros([2], DType::F32)),
    ];
    let options = LoadOptions {
        allow_missing: true,
        allow_unexpected: true,
    };
    let report = m.load_state_with(&state, options)?;
    assert_eq!(report.missing, ["embedding", "body.weight", "steps"]);
    assert_eq!(report.unexpected, ["extra"]);
    // f64 became the parameter's f32.
    assert_eq!(m.body.bias.unwrap().value().to_vec::<f32>()?, [0.0, 0.0]);
    Ok(())
}

#[test]
fn a_tied_weight_may_come_under_any_of_its_names() -> Result<()> {
    let (a, b) = (model(1)?, model(2)?);
    let mut state = a.state();
    state[0].0 = "head".to_string();
    b.load_state(&state)?;
    assert_eq!(values(&a), values(&b));
    // Under both, when the values agree.
    state.push(("embedding".to_string(), state[0].1.clone()));
    b.load_state(&state)?;
    state.last_mut().unwrap().1 = Array::zeros([3, 2], DType::F32);
    let error = b.load_state(&state).unwrap_err().to_string();
    assert!(
        error.contains("head (tied to embedding, but its values differ)"),
        "{error}"
    );
    state.last_mut().unwrap().0 = "head".to_string();
    let error = b.load_state(&state).unwrap_err().to_string();
    assert!(error.contains("head (given twice)"), "{error}");
    Ok(())
}

#[test]
fn long_lists_are_shortened() -> Result<()> {
    let many: Vec<Parameter> = (0..30)
        .map(|_| Parameter::new(Tensor::zeros([1], DType::F32)))
        .collect::<Result<_>>()?;
    let error = many.load_state(&[]).unwrap_err().to_string();
    assert!(error.ends_with("18, 19 and 10 more"), "{error}");
    Ok(())
}
