//! [`Architecture`] and [`Model`]: every architecture of the zoo behind one name each.

use entrenar_core::{Error, Result, Tensor};
use entrenar_nn::{Ctx, Init, Module, Parameters, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Cnn, CnnConfig, Gpt, GptConfig, Mlp, MlpConfig};

/// The version of `config.json` that this library writes and the newest it reads.
pub const CONFIG_VERSION: u64 = 1;

/// What `config.json` describes: `{"architecture": "gpt", "version": 1, …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Architecture {
    /// A GPT-2 style decoder.
    Gpt(GptConfig),
    /// A multilayer perceptron.
    Mlp(MlpConfig),
    /// A convolutional classifier of images.
    Cnn(CnnConfig),
}

impl Architecture {
    /// The name in `config.json`.
    pub fn name(&self) -> &'static str {
        match self {
            Architecture::Gpt(_) => "gpt",
            Architecture::Mlp(_) => "mlp",
            Architecture::Cnn(_) => "cnn",
        }
    }

    /// The document, indented, with its version.
    ///
    /// # Errors
    /// When a number is not finite.
    pub fn to_json(&self) -> Result<String> {
        let fail = |e: serde_json::Error| Error::other(format!("config.json: {e}"));
        let mut value = serde_json::to_value(self).map_err(fail)?;
        if let Value::Object(map) = &mut value {
            map.insert("version".into(), CONFIG_VERSION.into());
        }
        Ok(serde_json::to_string_pretty(&value).map_err(fail)? + "\n")
    }

    /// Reads what [`Architecture::to_json`] wrote.
    ///
    /// # Errors
    /// When the text is no JSON object, the version is missing or newer, the architecture is not
    /// known, or a key is missing, unknown or of the wrong type; the message says which.
    pub fn from_json(text: &str) -> Result<Architecture> {
        let fail = |e: String| Error::config(format!("model config: {e}"));
        let mut value: Value = serde_json::from_str(text).map_err(|e| fail(e.to_string()))?;
        let map = value
            .as_object_mut()
            .ok_or_else(|| fail("expected an object".into()))?;
        match map
            .remove("version")
            .as_ref()
            .map(|v| (v.as_u64(), v.clone()))
        {
            Some((Some(CONFIG_VERSION), _)) => {}
            Some((_, v)) => {
                return Err(fail(format!("expected version {CONFIG_VERSION}, got {v}")));
            }
            None => {
                return Err(fail(format!(
                    "expected a version (this library writes {CONFIG_VERSION})"
                )));
            }
        }
        serde_json::from_value(value).map_err(|e| fail(e.to_string()))
    }

    /// The model with fresh weights.
    ///
    /// # Errors
    /// When sizes are impossible.
    pub fn build(&self, init: &mut Init) -> Result<Model> {
        Ok(match self {
            Architecture::Gpt(c) => Model::Gpt(Gpt::new(c.clone(), init)?),
            Architecture::Mlp(c) => Model::Mlp(Mlp::new(c.clone(), init)?),
            Architecture::Cnn(c) => Model::Cnn(Cnn::new(c.clone(), init)?),
        })
    }
}

/// A model of any architecture of the zoo.
#[non_exhaustive]
pub enum Model {
    /// See [`Gpt`].
    Gpt(Gpt),
    /// See [`Mlp`].
    Mlp(Mlp),
    /// See [`Cnn`].
    Cnn(Cnn),
}

impl Model {
    /// What it was built from.
    pub fn architecture(&self) -> Architecture {
        match self {
            Model::Gpt(m) => Architecture::Gpt(m.config().clone()),
            Model::Mlp(m) => Architecture::Mlp(m.config().clone()),
            Model::Cnn(m) => Architecture::Cnn(m.config().clone()),
        }
    }
}

impl Parameters for Model {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        match self {
            Model::Gpt(m) => m.visit(visitor),
            Model::Mlp(m) => m.visit(visitor),
            Model::Cnn(m) => m.visit(visitor),
        }
    }
}

impl Module for Model {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        match self {
            Model::Gpt(m) => m.forward(x, cx),
            Model::Mlp(m) => m.forward(x, cx),
            Model::Cnn(m) => m.forward(x, cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_round_trip_and_rebuild_the_same_names() {
        let all = [
            Architecture::Gpt(GptConfig {
                vocabulary: 11,
                context: 8,
                layers: 2,
                heads: 2,
                width: 8,
                ..Default::default()
            }),
            Architecture::Mlp(MlpConfig {
                sizes: vec![4, 5, 3],
                ..Default::default()
            }),
            Architecture::Cnn(CnnConfig {
                channels: vec![1, 4, 6],
                size: [8, 8],
                classes: 3,
                ..Default::default()
            }),
        ];
        for a in all {
            let back = Architecture::from_json(&a.to_json().unwrap()).unwrap();
            assert_eq!(back, a);
            let (m, n) = (
                a.build(&mut Init::new(0)).unwrap(),
                back.build(&mut Init::new(1)).unwrap(),
            );
            n.load_state(&m.state()).unwrap();
            assert_eq!(m.architecture(), a);
        }
    }

    #[test]
    fn wrong_documents_are_refused_with_the_reason() {
        for (text, part) in [
            ("[]", "object"),
            (r#"{"architecture": "mlp", "sizes": [1, 2]}"#, "version"),
            (
                r#"{"architecture": "mlp", "version": 2, "sizes": [1, 2]}"#,
                "version 1, got 2",
            ),
            (
                r#"{"architecture": "rnn", "version": 1}"#,
                "unknown variant `rnn`",
            ),
            (
                r#"{"architecture": "mlp", "version": 1, "size": [1, 2]}"#,
                "size",
            ),
            (
                r#"{"architecture": "gpt", "version": 1, "layers": -1}"#,
                "-1",
            ),
        ] {
            let e = Architecture::from_json(text).unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
        let lonely = Architecture::Mlp(MlpConfig {
            sizes: vec![4],
            ..Default::default()
        });
        assert!(lonely.build(&mut Init::new(0)).is_err());
    }
}
