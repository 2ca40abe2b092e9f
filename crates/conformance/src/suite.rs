//! Reading a suite: `cases.json` and `tensors.safetensors` of one directory.
//!
//! Every tensor a case names must exist; a broken directory is one error that names the case.
//! Neighbours: `call.rs` binds what is read here, `replay.rs` runs it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use entrenar_base::{DType, Error, Result};
use entrenar_core::Tensor;
use entrenar_io::SafeTensors;
use serde::Deserialize;

/// All cases of one directory.
pub struct Suite {
    /// The cases in file order.
    pub cases: Vec<Case>,
    /// Version of PyTorch that produced the results, as the file states it.
    pub torch: String,
}

/// An argument as recorded.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A real number, infinities included.
    Float(f64),
    /// A string such as a reduction or a padding mode.
    Text(String),
    /// A dtype by PyTorch's name without `torch.`.
    DType(String),
    /// A list or tuple.
    List(Vec<Value>),
    /// Position in [`Case::tensors`].
    Tensor(usize),
}

/// One recorded call and what it must give.
pub struct Case {
    /// PyTorch's name of the operation.
    pub op: String,
    /// Which variant of the operation's tests; may be empty.
    pub variant: String,
    /// Number of the sample within the variant.
    pub sample: u64,
    /// The first argument.
    pub input: Value,
    /// Further positional arguments.
    pub args: Vec<Value>,
    /// Keyword arguments in recorded order.
    pub kwargs: Vec<(String, Value)>,
    /// The tensors among the arguments.
    pub tensors: Vec<Tensor>,
    /// Expected outputs.
    pub outputs: Vec<Tensor>,
    /// Output number and the cotangent given to it.
    pub cotangents: Vec<(usize, Tensor)>,
    /// Argument tensor and its gradient under `cotangents`; `None` where nothing flows.
    pub vjp: Option<Vec<(usize, Option<Tensor>)>>,
    /// Second order, where recorded.
    pub second: Option<Second>,
    /// Forward mode, where recorded.
    pub jvp: Option<Jvp>,
    /// The dtype that arrays do not hold, if the case has one; then nothing else was read.
    pub foreign: Option<String>,
}

/// The gradient of Σᵢ⟨vᵢ, vjpᵢ⟩.
pub struct Second {
    /// Argument tensor and the direction its gradient is contracted with.
    pub directions: Vec<(usize, Tensor)>,
    /// Argument tensor and the resulting gradient; `None` where nothing flows.
    pub gradients: Vec<(usize, Option<Tensor>)>,
}

/// Directional derivatives.
pub struct Jvp {
    /// Argument tensor and its tangent; others have none.
    pub tangents: Vec<(usize, Tensor)>,
    /// Output number and its derivative.
    pub outputs: Vec<(usize, Tensor)>,
}

impl Case {
    fn unread(raw: RawCase, foreign: String) -> Case {
        Case {
            op: raw.op,
            variant: raw.variant,
            sample: raw.sample,
            input: Value::None,
            args: Vec::new(),
            kwargs: Vec::new(),
            tensors: Vec::new(),
            outputs: Vec::new(),
            cotangents: Vec::new(),
            vjp: None,
            second: None,
            jvp: None,
            foreign: Some(foreign),
        }
    }

    /// The case with `f` applied to the inputs, cotangents, tangents and directions; expected
    /// results stay.
    ///
    /// # Errors
    /// Whatever `f` returns.
    pub fn map(&self, f: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Case> {
        let pairs = |list: &[(usize, Tensor)]| -> Result<Vec<(usize, Tensor)>> {
            list.iter().map(|(i, t)| Ok((*i, f(t)?))).collect()
        };
        Ok(Case {
            op: self.op.clone(),
            variant: self.variant.clone(),
            sample: self.sample,
            input: self.input.clone(),
            args: self.args.clone(),
            kwargs: self.kwargs.clone(),
            tensors: self.tensors.iter().map(f).collect::<Result<_>>()?,
            outputs: self.outputs.clone(),
            cotangents: pairs(&self.cotangents)?,
            vjp: self.vjp.clone(),
            second: match &self.second {
                None => None,
                Some(s) => Some(Second {
                    directions: pairs(&s.directions)?,
                    gradients: s.gradients.clone(),
                }),
            },
            jvp: match &self.jvp {
                None => None,
                Some(j) => Some(Jvp {
                    tangents: pairs(&j.tangents)?,
                    outputs: j.outputs.clone(),
                }),
            },
            foreign: self.foreign.clone(),
        })
    }

    /// The operation with its variant, as reports name it.
    pub fn label(&self) -> String {
        if self.variant.is_empty() {
            self.op.clone()
        } else {
            format!("{} [{}]", self.op, self.variant)
        }
    }

    /// A positional or keyword argument after the input.
    pub fn argument(&self, position: usize, name: &str) -> Option<&Value> {
        self.args
            .get(position)
            .or_else(|| self.kwargs.iter().find(|(k, _)| k == name).map(|(_, v)| v))
    }

    /// The tensor a value refers to.
    pub fn tensor(&self, value: &Value) -> Option<&Tensor> {
        match value {
            Value::Tensor(i) => self.tensors.get(*i),
            _ => None,
        }
    }
}

impl Suite {
    /// Reads `directory`.
    ///
    /// # Errors
    /// When a file is missing or broken, or a case names a tensor that is not there.
    pub fn load(directory: &Path) -> Result<Suite> {
        let path = directory.join("cases.json");
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "cannot read", e))?;
        let file: RawSuite =
            serde_json::from_str(&text).map_err(|e| Error::format(&path, e.to_string()))?;
        let store = SafeTensors::read(directory.join("tensors.safetensors"))?;
        let cases = file
            .cases
            .into_iter()
            .map(|raw| {
                if let Some(foreign) = foreign_dtype(&raw, &store) {
                    return Ok(Case::unread(raw, foreign));
                }
                let name = format!("case {} {} {}", raw.op, raw.variant, raw.sample);
                resolve(raw, &store).map_err(|e| e.context(format!("{}: {name}", path.display())))
            })
            .collect::<Result<_>>()?;
        Ok(Suite {
            cases,
            torch: file.torch.unwrap_or_default(),
        })
    }
}

#[derive(Deserialize)]
struct RawSuite {
    torch: Option<String>,
    cases: Vec<RawCase>,
}

#[derive(Deserialize)]
struct RawCase {
    op: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    sample: u64,
    input: RawValue,
    #[serde(default)]
    args: Vec<RawValue>,
    #[serde(default)]
    kwargs: serde_json::Map<String, serde_json::Value>,
    outputs: Vec<RawTensor>,
    #[serde(default)]
    cotangents: Vec<RawOutput>,
    vjp: Option<Vec<RawGradient>>,
    second: Option<RawSecond>,
    jvp: Option<RawJvp>,
}

#[derive(Deserialize, Clone)]
struct RawTensor {
    tensor: String,
    #[serde(default)]
    bool: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawValue {
    Tensor(RawTensor),
    List { list: Vec<RawValue> },
    DType { dtype: String },
    Float { float: String },
    Plain { value: serde_json::Value },
}

#[derive(Deserialize)]
struct RawOutput {
    output: usize,
    #[serde(flatten)]
    value: RawTensor,
}

#[derive(Deserialize)]
struct RawInput {
    of: String,
    #[serde(flatten)]
    value: RawTensor,
}

#[derive(Deserialize)]
struct RawGradient {
    of: String,
    grad: Option<RawTensor>,
}

#[derive(Deserialize)]
struct RawSecond {
    v: Vec<RawInput>,
    grad: Vec<RawGradient>,
}

#[derive(Deserialize)]
struct RawJvp {
    tangents: Vec<RawInput>,
    out: Vec<RawOutput>,
}

/// The first dtype among arguments and outputs that arrays do not hold.
fn foreign_dtype(raw: &RawCase, store: &SafeTensors) -> Option<String> {
    fn walk<'a>(value: &'a RawValue, keys: &mut Vec<&'a str>) {
        match value {
            RawValue::Tensor(t) => keys.push(&t.tensor),
            RawValue::List { list } => list.iter().for_each(|v| walk(v, keys)),
            _ => {}
        }
    }
    let mut keys = Vec::new();
    walk(&raw.input, &mut keys);
    raw.args.iter().for_each(|v| walk(v, &mut keys));
    keys.extend(raw.outputs.iter().map(|t| t.tensor.as_str()));
    keys.into_iter()
        .filter_map(|key| store.info(key))
        .find(|info| info.dtype.array_dtype().is_none())
        .map(|info| info.dtype.to_string())
}

/// Tensors of one case by key, in order of first mention.
struct Arguments<'a> {
    store: &'a SafeTensors,
    tensors: Vec<Tensor>,
    position: HashMap<String, usize>,
}

impl Arguments<'_> {
    fn value(&mut self, raw: RawValue) -> Result<Value> {
        Ok(match raw {
            RawValue::Tensor(t) => Value::Tensor(self.tensor(t)?),
            RawValue::List { list } => Value::List(
                list.into_iter()
                    .map(|v| self.value(v))
                    .collect::<Result<_>>()?,
            ),
            RawValue::DType { dtype } => {
                Value::DType(dtype.strip_prefix("torch.").unwrap_or(&dtype).to_string())
            }
            RawValue::Float { float } => Value::Float(float.parse().map_err(|_| {
                Error::argument("float", "a number, inf, -inf or nan", format!("`{float}`"))
            })?),
            RawValue::Plain { value } => plain(value)?,
        })
    }

    fn tensor(&mut self, raw: RawTensor) -> Result<usize> {
        if let Some(&i) = self.position.get(&raw.tensor) {
            return Ok(i);
        }
        let tensor = read(self.store, &raw)?;
        let i = self.tensors.len();
        self.tensors.push(tensor);
        self.position.insert(raw.tensor, i);
        Ok(i)
    }

    fn of(&self, key: &str) -> Result<usize> {
        self.position.get(key).copied().ok_or_else(|| {
            Error::argument("of", "the key of an argument tensor", format!("`{key}`"))
        })
    }

    fn inputs(&self, list: Vec<RawInput>) -> Result<Vec<(usize, Tensor)>> {
        list.into_iter()
            .map(|r| Ok((self.of(&r.of)?, read(self.store, &r.value)?)))
            .collect()
    }

    fn gradients(&self, list: Vec<RawGradient>) -> Result<Vec<(usize, Option<Tensor>)>> {
        list.into_iter()
            .map(|r| {
                let grad = r.grad.map(|g| read(self.store, &g)).transpose()?;
                Ok((self.of(&r.of)?, grad))
            })
            .collect()
    }

    fn outputs(&self, list: Vec<RawOutput>, count: usize) -> Result<Vec<(usize, Tensor)>> {
        list.into_iter()
            .map(|r| {
                if r.output >= count {
                    return Err(Error::index("output", format!("below {count}"), r.output));
                }
                Ok((r.output, read(self.store, &r.value)?))
            })
            .collect()
    }
}

fn plain(value: serde_json::Value) -> Result<Value> {
    use serde_json::Value as Json;
    Ok(match value {
        Json::Null => Value::None,
        Json::Bool(b) => Value::Bool(b),
        Json::String(s) => Value::Text(s),
        Json::Number(n) => match n.as_i64() {
            Some(i) => Value::Int(i),
            None => Value::Float(n.as_f64().ok_or_else(|| {
                Error::argument("value", "a number that f64 holds", n.to_string())
            })?),
        },
        Json::Array(list) => Value::List(list.into_iter().map(plain).collect::<Result<_>>()?),
        other => {
            return Err(Error::argument("value", "a plain value", other.to_string()));
        }
    })
}

fn read(store: &SafeTensors, raw: &RawTensor) -> Result<Tensor> {
    let array = store.tensor(&raw.tensor)?;
    // The recorder stores booleans as bytes.
    Ok(Tensor::from(if raw.bool {
        array.cast(DType::Bool)
    } else {
        array
    }))
}

fn resolve(raw: RawCase, store: &SafeTensors) -> Result<Case> {
    let mut arguments = Arguments {
        store,
        tensors: Vec::new(),
        position: HashMap::new(),
    };
    let input = arguments.value(raw.input)?;
    let args = raw
        .args
        .into_iter()
        .map(|v| arguments.value(v))
        .collect::<Result<_>>()?;
    let mut kwargs = Vec::new();
    for (name, value) in raw.kwargs {
        let value: RawValue = serde_json::from_value(value)
            .map_err(|e| Error::argument("kwargs", "a value", format!("`{name}`: {e}")))?;
        kwargs.push((name, arguments.value(value)?));
    }
    let outputs: Vec<Tensor> = raw
        .outputs
        .iter()
        .map(|t| read(store, t))
        .collect::<Result<_>>()?;
    let count = outputs.len();
    Ok(Case {
        op: raw.op,
        variant: raw.variant,
        sample: raw.sample,
        input,
        args,
        kwargs,
        cotangents: arguments.outputs(raw.cotangents, count)?,
        vjp: raw.vjp.map(|l| arguments.gradients(l)).transpose()?,
        second: match raw.second {
            None => None,
            Some(s) => Some(Second {
                directions: arguments.inputs(s.v)?,
                gradients: arguments.gradients(s.grad)?,
            }),
        },
        jvp: match raw.jvp {
            None => None,
            Some(j) => Some(Jvp {
                tangents: arguments.inputs(j.tangents)?,
                outputs: arguments.outputs(j.out, count)?,
            }),
        },
        tensors: arguments.tensors,
        outputs,
        foreign: None,
    })
}
