//! [`Builder`]: makes the parameters of a model, from random numbers or from given arrays, by name.
//!
//! A model's constructor asks for each parameter under the path that the field will have; nothing
//! is allocated for weights that come from a file (a mapped array is used as it lies there). What
//! was given and not asked for, or asked for and not given, is an error at [`Builder::finish`].
//! Neighbours: `decoder`, `gpt2` and `bert` are built with it; [`crate::pretrained`] brings files.

use std::collections::BTreeMap;

use entrenar_core::{Array, DType, Error, Result, Shape, Tensor};
use entrenar_nn::{
    Embedding, Init, LayerNorm, Linear, Parameter, Projection, RMSNorm, TransposedLinear,
};

/// What a fresh parameter begins with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// N(0, std²).
    Normal(f64),
    /// All the same.
    Constant(f64),
}

/// Where parameters come from.
enum Source {
    Random(Init),
    Given(BTreeMap<String, Array>),
}

/// Makes parameters by name.
pub struct Builder {
    source: Source,
    path: Vec<String>,
    /// Given floats are cast to this.
    dtype: Option<DType>,
    keep_projections: bool,
    faults: Vec<String>,
    /// Parameters that a given source may lack, by the start of their names.
    fresh: Option<(Init, Vec<String>)>,
    made: Vec<String>,
}

impl Builder {
    /// Fresh parameters.
    pub fn random(init: Init) -> Builder {
        Builder::new(Source::Random(init), None)
    }

    /// Fresh parameters of this dtype.
    pub fn random_in(init: Init, dtype: DType) -> Builder {
        Builder::new(Source::Random(init), Some(dtype))
    }

    /// Parameters from these arrays; floats are cast to `dtype` where one is named, and otherwise
    /// used as they are, without a copy.
    pub fn given(
        arrays: impl IntoIterator<Item = (String, Array)>,
        dtype: Option<DType>,
    ) -> Builder {
        Builder::new(Source::Given(arrays.into_iter().collect()), dtype)
    }

    fn new(source: Source, dtype: Option<DType>) -> Builder {
        Builder {
            source,
            path: Vec::new(),
            dtype,
            keep_projections: false,
            faults: Vec::new(),
            fresh: None,
            made: Vec::new(),
        }
    }

    /// Leaves the weights of projections in the dtype they have: they will be quantized.
    pub(crate) fn keep_projections(mut self, keep: bool) -> Builder {
        self.keep_projections = keep;
        self
    }

    /// Lets parameters whose names begin with one of `prefixes` begin afresh where they are not
    /// given: a new head on a published encoder. [`Builder::made`] tells which did.
    pub fn with_fresh(mut self, init: Init, prefixes: &[&str]) -> Builder {
        let prefixes = prefixes.iter().map(|p| p.to_string()).collect();
        self.fresh = Some((init, prefixes));
        self
    }

    /// Names of parameters that began afresh although arrays were given.
    pub fn made(&self) -> &[String] {
        &self.made
    }

    /// Runs `f` with `name` appended to the path.
    pub fn scope<R>(&mut self, name: impl Into<String>, f: impl FnOnce(&mut Builder) -> R) -> R {
        self.path.push(name.into());
        let result = f(self);
        self.path.pop();
        result
    }

    /// Whether a given source holds this name (a fresh one holds every name).
    pub fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Random(_) => true,
            Source::Given(arrays) => arrays.contains_key(&self.full(name)),
        }
    }

    fn full(&self, name: &str) -> String {
        let mut full = self.path.join(".");
        if !full.is_empty() {
            full.push('.');
        }
        full + name
    }

    /// The parameter `name` at the present path.
    ///
    /// A given array that is missing or does not fit is remembered for [`Builder::finish`], and
    /// zeros stand in for it, so that one message can name everything that is wrong.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn tensor(&mut self, name: &str, shape: impl Into<Shape>, start: Start) -> Result<Tensor> {
        let (shape, full) = (shape.into(), self.full(name));
        let arrays = match &mut self.source {
            Source::Random(init) => {
                let fresh = match start {
                    Start::Normal(std) => init.normal(shape, 0.0, std),
                    Start::Constant(value) => init.full(shape, value),
                }?;
                return self.dtype.map_or(Ok(fresh.clone()), |d| fresh.to_dtype(d));
            }
            Source::Given(arrays) => arrays,
        };
        let fault = match arrays.remove(&full) {
            Some(array) if array.shape() == &shape && array.dtype().is_float() => {
                return Ok(Tensor::from(match self.dtype {
                    Some(dtype) if dtype != array.dtype() => array.cast(dtype),
                    _ => array,
                }));
            }
            Some(array) => format!(
                "{full}: expected {shape} of floats, got {} of {}",
                array.shape(),
                array.dtype()
            ),
            None => {
                if let Some((init, prefixes)) = &mut self.fresh
                    && prefixes.iter().any(|p| full.starts_with(p))
                {
                    self.made.push(full);
                    return match start {
                        Start::Normal(std) => init.normal(shape, 0.0, std),
                        Start::Constant(value) => init.full(shape, value),
                    };
                }
                format!("{full}: missing")
            }
        };
        self.faults.push(fault);
        // One value seen as many: a wrong config must not make us allocate what it asks for.
        let zero = Array::scalar(0.0f32).broadcast_to(&shape)?;
        Ok(Tensor::from(zero))
    }

    /// [`Builder::tensor`] without a cast.
    fn as_it_is(&mut self, name: &str, shape: [usize; 2], start: Start) -> Result<Tensor> {
        let dtype = self.dtype.take();
        let made = self.tensor(name, shape, start);
        self.dtype = dtype;
        made
    }

    /// A linear layer `name` with weight `[outputs, inputs]`.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn linear(
        &mut self,
        name: &str,
        (inputs, outputs): (usize, usize),
        bias: bool,
        std: f64,
    ) -> Result<Linear> {
        self.scope(name, |b| {
            let weight = b.tensor("weight", [outputs, inputs], Start::Normal(std))?;
            let bias = bias
                .then(|| b.tensor("bias", [outputs], Start::Constant(0.0)))
                .transpose()?;
            Linear::from_tensors(weight, bias)
        })
    }

    /// [`Builder::linear`] that can be exchanged for an adapted layer.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn projection(
        &mut self,
        name: &str,
        sizes: (usize, usize),
        bias: bool,
        std: f64,
    ) -> Result<Projection> {
        if !self.keep_projections {
            return Ok(Projection::Linear(self.linear(name, sizes, bias, std)?));
        }
        let (inputs, outputs) = sizes;
        self.scope(name, |b| {
            let weight = b.as_it_is("weight", [outputs, inputs], Start::Normal(std))?;
            let bias = bias
                .then(|| b.tensor("bias", [outputs], Start::Constant(0.0)))
                .transpose()?;
            Ok(Projection::Linear(Linear::from_tensors(weight, bias)?))
        })
    }

    /// A linear layer `name` with weight `[inputs, outputs]` and a bias, as GPT-2 stores them.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn transposed_projection(
        &mut self,
        name: &str,
        (inputs, outputs): (usize, usize),
        std: f64,
    ) -> Result<Projection> {
        self.scope(name, |b| {
            let (shape, start) = ([inputs, outputs], Start::Normal(std));
            let weight = match b.keep_projections {
                true => b.as_it_is("weight", shape, start)?,
                false => b.tensor("weight", shape, start)?,
            };
            let bias = b.tensor("bias", [outputs], Start::Constant(0.0))?;
            Ok(Projection::Transposed(TransposedLinear {
                weight: Parameter::new(weight)?,
                bias: Some(Parameter::new(bias)?),
            }))
        })
    }

    /// A table of `count` vectors of `width` numbers. Errors as [`Builder::linear`].
    ///
    /// # Errors
    /// When the size overflows.
    pub fn embedding(
        &mut self,
        name: &str,
        count: usize,
        width: usize,
        std: f64,
    ) -> Result<Embedding> {
        let weight = self.scope(name, |b| {
            b.tensor("weight", [count, width], Start::Normal(std))
        })?;
        Embedding::from_tensor(weight)
    }

    /// An RMS norm over `width` numbers.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn rms_norm(&mut self, name: &str, width: usize, eps: f64) -> Result<RMSNorm> {
        let weight = self.scope(name, |b| b.tensor("weight", [width], Start::Constant(1.0)))?;
        RMSNorm::from_tensor(weight, eps)
    }

    /// A layer norm with bias over `width` numbers.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn layer_norm(&mut self, name: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        let (weight, bias) = self.scope(name, |b| {
            Ok::<_, Error>((
                b.tensor("weight", [width], Start::Constant(1.0))?,
                b.tensor("bias", [width], Start::Constant(0.0))?,
            ))
        })?;
        LayerNorm::from_tensors(weight, bias, eps)
    }

    /// Checks that everything given was used and everything asked for was there. `ignored` says
    /// which left-over names mean nothing (buffers of older files).
    ///
    /// # Errors
    /// One error that lists all missing, unexpected and mismatched names.
    pub fn finish(self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let mut faults = self.faults;
        if let Source::Given(rest) = self.source {
            faults.extend(
                rest.into_keys()
                    .filter(|name| !ignored(name))
                    .map(|name| format!("{name}: unexpected")),
            );
        }
        if faults.is_empty() {
            return Ok(());
        }
        let more = faults.len().saturating_sub(20);
        faults.truncate(20);
        let tail = if more > 0 {
            format!("; and {more} more")
        } else {
            String::new()
        };
        Err(Error::config(format!(
            "the weights do not fit the model's config: {}{tail}",
            faults.join("; ")
        )))
    }
}
