//! Writes the fixtures that tests read: `cargo run -p entrenar-io --example make_fixtures -- DIR`.
//!
//! `DIR/checkpoint-v1/` is a checkpoint of format version 1. The committed one is never written
//! again: a test proves that it stays readable. A later format version gets a fixture of its own.
//! `DIR/entrenar*.safetensors` are checked by `oracles/io_goldens.py`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use entrenar_base::{Array, DType, Result};
use entrenar_io::{Store, write_safetensors};

/// The tensors of `expected()` in `oracles/io_goldens.py`.
fn tensors() -> Result<Vec<(&'static str, Array)>> {
    let ramp = |f: &dyn Fn(f64) -> f64, dtype| -> Result<Array> {
        let values: Vec<f64> = (0..6).map(|i| f(f64::from(i))).collect();
        Ok(Array::from_vec(values, [2, 3])?.cast(dtype))
    };
    let i64s: Vec<i64> = (0..6).map(|i| -(i << 40)).collect();
    Ok(vec![
        ("layer.f32", ramp(&|i| i * 0.5 - 1.0, DType::F32)?),
        ("layer.f64", ramp(&|i| i / 7.0, DType::F64)?),
        ("layer.f16", ramp(&|i| i * 0.25 - 0.5, DType::F16)?),
        ("layer.bf16", ramp(&|i| i * 3.0 - 7.0, DType::BF16)?),
        ("layer.i64", Array::from_vec(i64s, [2, 3])?),
        ("layer.i32", ramp(&|i| i * -70000.0, DType::I32)?),
        ("layer.u8", ramp(&|i| i * 50.0, DType::U8)?),
        ("layer.bool", ramp(&|i| i % 2.0, DType::Bool)?),
        ("scalar", Array::scalar(2.5f32)),
        ("empty", Array::zeros([0, 4], DType::F32)),
        ("naïve \"name\"\n", Array::full([1], 1.0f32)),
    ])
}

fn main() -> Result<()> {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: make_fixtures DIR");
        std::process::exit(2);
    };
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let owned = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        owned.collect()
    };
    let all = map(&[("format", "pt"), ("note", "line one\nline two ü")]);
    write_safetensors(dir.join("entrenar.safetensors"), &tensors()?, &all)?;
    let one = map(&[("format", "pt")]);
    write_safetensors(dir.join("entrenar-one-key.safetensors"), &tensors()?, &one)?;

    let store = Store::new(dir.join("checkpoint-v1"))?;
    store.save(12, |writer| {
        writer.tensors_with("model.safetensors", &tensors()?, &one)?;
        writer.tensors(
            "optimizer.safetensors",
            &[("layer.f32.m", Array::full([2, 3], 0.125f32))],
        )?;
        writer.json(
            "state.json",
            &BTreeMap::from([("epoch", 3), ("sample", 40)]),
        )?;
        writer.bytes("notes.txt", b"format version 1\n")
    })?;
    store.set_best(12)
}
