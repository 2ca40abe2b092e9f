//! What tests on tiny models share.

use std::path::PathBuf;

use entrenar_core::Array;
use entrenar_zoo::LanguageModel;

/// One of the tiny models that transformers wrote for `zoo`'s tests.
pub fn model(name: &str) -> LanguageModel {
    let models = "../zoo/tests/data/language_models";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(models)
        .join(name);
    LanguageModel::open(path, None).unwrap()
}

/// The largest difference over the largest value.
pub fn distance(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let scale = b.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    let far = |m: f64, (x, y): (&f64, &f64)| m.max((x - y).abs() / scale);
    a.iter().zip(&b).fold(0.0, far)
}
