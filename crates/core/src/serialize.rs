//! serde for [`Tensor`]: `{"dtype": "f32", "shape": [2], "data": [1.0, "nan"]}`.
//!
//! Values only: a tensor that was tracked comes back untracked. Floats are written as f64, which
//! holds every narrower float exactly; numbers that JSON lacks are the strings `nan`, `inf` and
//! `-inf`. For files of any size use safetensors (`entrenar-io`).

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use entrenar_base::{Array, DType};

use crate::Tensor;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Integer(i64),
    Float(f64),
    Name(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    dtype: String,
    shape: Vec<usize>,
    data: Vec<Number>,
}

fn float(v: f64) -> Number {
    match v {
        v if v.is_nan() => Number::Name("nan".into()),
        f64::INFINITY => Number::Name("inf".into()),
        f64::NEG_INFINITY => Number::Name("-inf".into()),
        v => Number::Float(v),
    }
}

impl Serialize for Tensor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let array = self.array();
        let data = if array.dtype().is_float() {
            array.to_f64_vec().into_iter().map(float).collect()
        } else {
            // i64 holds every integer dtype, where f64 would round.
            let wide = array
                .cast(DType::I64)
                .to_vec::<i64>()
                .map_err(serde::ser::Error::custom)?;
            wide.into_iter().map(Number::Integer).collect()
        };
        Plain {
            dtype: array.dtype().name().into(),
            shape: array.dims().to_vec(),
            data,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Tensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let plain = Plain::deserialize(deserializer)?;
        let dtype: DType = plain.dtype.parse().map_err(D::Error::custom)?;
        let array = if dtype.is_float() {
            let values = plain
                .data
                .iter()
                .map(|n| match n {
                    Number::Integer(i) => Ok(*i as f64),
                    Number::Float(f) => Ok(*f),
                    Number::Name(s) if s == "nan" => Ok(f64::NAN),
                    Number::Name(s) if s == "inf" => Ok(f64::INFINITY),
                    Number::Name(s) if s == "-inf" => Ok(f64::NEG_INFINITY),
                    Number::Name(s) => Err(D::Error::custom(format!(
                        "expected a number, \"nan\", \"inf\" or \"-inf\", got {s:?}"
                    ))),
                })
                .collect::<Result<Vec<f64>, _>>()?;
            Array::from_vec(values, plain.shape).map(|a| a.cast(dtype))
        } else {
            let values = plain
                .data
                .iter()
                .map(|n| match n {
                    Number::Integer(i) if in_range(*i, dtype) => Ok(*i),
                    _ => Err(D::Error::custom(format!(
                        "expected integers that fit {dtype}"
                    ))),
                })
                .collect::<Result<Vec<i64>, _>>()?;
            Array::from_vec(values, plain.shape).map(|a| a.cast(dtype))
        };
        array.map(Tensor::from).map_err(D::Error::custom)
    }
}

fn in_range(i: i64, dtype: DType) -> bool {
    match dtype {
        DType::Bool => (0..=1).contains(&i),
        DType::U8 => u8::try_from(i).is_ok(),
        DType::I8 => i8::try_from(i).is_ok(),
        DType::I32 => i32::try_from(i).is_ok(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::dispatch;

    #[test]
    fn every_dtype_round_trips_bit_for_bit() {
        for dtype in DType::ALL {
            let values = if dtype.is_float() {
                vec![0.1, -2.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0]
            } else {
                vec![0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
            };
            let t = Tensor::from(Array::from_vec(values, [2, 3]).unwrap().cast(dtype));
            let text = serde_json::to_string(&t).unwrap();
            let back: Tensor = serde_json::from_str(&text).unwrap();
            assert_eq!(back.aval(), t.aval());
            dispatch!(dtype, T => {
                let (a, b) = (t.to_vec::<T>().unwrap(), back.to_vec::<T>().unwrap());
                for (a, b) in a.iter().zip(&b) {
                    assert!(a == b || a != a && b != b, "{text}");
                }
            });
        }
        let big = Tensor::from_vec(vec![i64::MAX, i64::MIN], [2]).unwrap();
        let back: Tensor = serde_json::from_str(&serde_json::to_string(&big).unwrap()).unwrap();
        assert_eq!(back.to_vec::<i64>().unwrap(), [i64::MAX, i64::MIN]);
    }

    #[test]
    fn wrong_documents_are_refused() {
        for (text, part) in [
            (r#"{"dtype":"f32","shape":[2],"data":[1.0]}"#, "2 values"),
            (r#"{"dtype":"f8","shape":[1],"data":[1.0]}"#, "one of bool"),
            (r#"{"dtype":"u8","shape":[1],"data":[256]}"#, "fit u8"),
            (r#"{"dtype":"bool","shape":[1],"data":[2]}"#, "fit bool"),
            (
                r#"{"dtype":"i32","shape":[1],"data":[2147483648]}"#,
                "fit i32",
            ),
            (r#"{"dtype":"i64","shape":[1],"data":[1.5]}"#, "fit i64"),
            (r#"{"dtype":"f32","shape":[1],"data":["one"]}"#, "\"nan\""),
            (
                r#"{"dtype":"f32","shape":[18446744073709551615,3],"data":[]}"#,
                "fits in memory",
            ),
        ] {
            let e = serde_json::from_str::<Tensor>(text)
                .unwrap_err()
                .to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
