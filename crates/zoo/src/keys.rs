//! Typed values of a `config.json`, with messages that name the key.

use entrenar_core::{Error, Result};
use serde_json::{Map, Value};

/// Far above every published model.
const MOST_LAYERS: usize = 4096;

/// The keys of an object; null counts as absent.
pub(crate) struct Keys<'a>(pub &'a Map<String, Value>);

impl Keys<'_> {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    fn read<T>(&self, key: &str, what: &str, f: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let read = |v| f(v).ok_or_else(|| wrong(key, what, v));
        self.get(key).map(read).transpose()
    }

    /// A size of at least 1.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        let size = |v: &Value| {
            let n = v.as_u64().and_then(|n| usize::try_from(n).ok());
            n.filter(|n| *n > 0)
        };
        Ok(self
            .read(key, "a whole number of at least 1", size)?
            .unwrap_or(default))
    }

    /// A number of layers: of no size that a file of weights could have, so that a wrong one is told
    /// before memory is asked for.
    pub fn layers(&self, key: &str, default: usize) -> Result<usize> {
        let layers = |v: &Value| {
            let n = v.as_u64().and_then(|n| usize::try_from(n).ok());
            n.filter(|n| (1..=MOST_LAYERS).contains(n))
        };
        let what = format!("a number of layers from 1 to {MOST_LAYERS}");
        Ok(self.read(key, &what, layers)?.unwrap_or(default))
    }

    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        let positive = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        Ok(self
            .read(key, "a positive number", positive)?
            .unwrap_or(default))
    }

    /// A probability below 1.
    pub fn probability(&self, key: &str, default: f64) -> Result<f64> {
        let p = |v: &Value| v.as_f64().filter(|x| (0.0..1.0).contains(x));
        Ok(self
            .read(key, "a probability below 1", p)?
            .unwrap_or(default))
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self
            .read(key, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    /// An error unless the key is absent or holds one of these words.
    pub fn one_of(&self, key: &str, words: &[&str]) -> Result<()> {
        match self.get(key) {
            Some(v) if !v.as_str().is_some_and(|w| words.contains(&w)) => {
                Err(wrong(key, &words.join(" or "), v))
            }
            _ => Ok(()),
        }
    }
}

/// The message for a value that does not fit.
pub(crate) fn wrong(key: &str, what: &str, got: &Value) -> Error {
    Error::config(format!("config.json: `{key}`: expected {what}, got {got}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_numbers_of_layers_are_told() {
        for (n, fits) in [
            (0u64, false),
            (1, true),
            (4096, true),
            (4097, false),
            (u64::MAX, false),
        ] {
            let map = Map::from_iter([("n_layer".to_owned(), Value::from(n))]);
            let read = Keys(&map).layers("n_layer", 12);
            assert_eq!(read.is_ok(), fits, "{n}");
        }
    }
}
