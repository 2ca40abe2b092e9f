//! [`Builder`]: makes the parameters of a model, from random numbers or from given arrays, by name.
//!
//! A model's constructor asks for each parameter under the path that the field will have; nothing
//! is allocated for weights that come from a file (a mapped array is used as it lies there). What
//! was given and not asked for, or asked for and not given, is an error at [`Builder::finish`].
//! Neighbours: `decoder`, `gpt2` and `bert` are built with it; [`crate::pretrained`] brings files.

use std::collections::BTreeMap;

use entrenar_core::{Array, DType, Error, Result, Shape, Tensor};
use entrenar_nn::{
    Embedding, Init, LayerNorm, Linear, Lookup, Parameter, Projection, RMSNorm, TransposedLinear,
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
    Given(Arrays),
}

/// Arrays by name.
pub type Arrays = BTreeMap<String, Array>;

/// Exchanges a projection that was just made, by its path; it may take arrays that were given and not
/// used yet.
pub type Exchange<'a> = dyn FnMut(&str, Projection, &mut Arrays) -> Result<Projection> + 'a;

/// Makes parameters by name.
pub struct Builder<'a> {
    source: Source,
    path: Vec<String>,
    /// Given floats are cast to this.
    dtype: Option<DType>,
    exchange: Option<&'a mut Exchange<'a>>,
    faults: Vec<String>,
    /// Parameters that a given source may lack, by the start of their names.
    fresh: Option<(Init, Vec<String>)>,
    made: Vec<String>,
}

impl<'a> Builder<'a> {
    /// Fresh parameters.
    pub fn random(init: Init) -> Self {
        Builder::new(Source::Random(init), None)
    }

    /// Fresh parameters of this dtype.
    pub fn random_in(init: Init, dtype: DType) -> Self {
        Builder::new(Source::Random(init), Some(dtype))
    }

    /// Parameters from these arrays; floats are cast to `dtype` where one is named, and otherwise
    /// used as they are, without a copy.
    pub fn given(arrays: impl IntoIterator<Item = (String, Array)>, dtype: Option<DType>) -> Self {
        Builder::new(Source::Given(arrays.into_iter().collect()), dtype)
    }

    fn new(source: Source, dtype: Option<DType>) -> Self {
        Builder {
            source,
            path: Vec::new(),
            dtype,
            exchange: None,
            faults: Vec::new(),
            fresh: None,
            made: Vec::new(),
        }
    }

    /// Hands every projection to `exchange` as soon as it is made, before the next, so that a model is
    /// quantized without ever being held whole. A given weight is not cast first. One that is stored
    /// as bytes stays among the given arrays for `exchange`, and zeros that take no memory stand in.
    ///
    /// ```
    /// use entrenar_core::DType;
    /// use entrenar_nn::Init;
    /// use entrenar_zoo::{Builder, Decoder, DecoderConfig};
    /// let config = DecoderConfig {
    ///     vocab_size: 5, hidden_size: 8, intermediate_size: 12, num_hidden_layers: 1,
    ///     num_attention_heads: 2, num_key_value_heads: 1, head_dim: 4, windows: vec![None],
    ///     ..Default::default()
    /// };
    /// let mut paths = Vec::new();
    /// let mut exchange = |path: &str, made, _: &mut _| {
    ///     paths.push(path.to_string());
    ///     Ok(made)
    /// };
    /// Decoder::new(config, &mut Builder::random(Init::new(0)).exchanging(&mut exchange))?;
    /// assert_eq!(paths[0], "model.layers.0.self_attn.q_proj");
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[must_use]
    pub fn exchanging(mut self, exchange: &'a mut Exchange<'a>) -> Self {
        self.exchange = Some(exchange);
        self
    }

    /// Lets parameters whose names begin with one of `prefixes` begin afresh where they are not
    /// given: a new head on a published encoder. [`Builder::made`] tells which did.
    pub fn with_fresh(mut self, init: Init, prefixes: &[&str]) -> Self {
        let prefixes = prefixes.iter().map(|p| p.to_string()).collect();
        self.fresh = Some((init, prefixes));
        self
    }

    /// Names of parameters that began afresh although arrays were given.
    pub fn made(&self) -> &[String] {
        &self.made
    }

    /// Runs `f` with `name` appended to the path.
    pub fn scope<R>(&mut self, name: impl Into<String>, f: impl FnOnce(&mut Self) -> R) -> R {
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

    /// The weight of a projection. One that will be exchanged is not cast, and its bytes are left to
    /// the exchange.
    fn weight(&mut self, shape: [usize; 2], std: f64) -> Result<Tensor> {
        if self.exchange.is_none() {
            return self.tensor("weight", shape, Start::Normal(std));
        }
        let full = self.full("weight");
        if let Source::Given(arrays) = &self.source
            && arrays.get(&full).is_some_and(|a| a.dtype() == DType::U8)
        {
            return Ok(Tensor::from(
                Array::scalar(0.0f32).broadcast_to(&shape.into())?,
            ));
        }
        let given = matches!(self.source, Source::Given(_));
        let dtype = self.dtype;
        if given {
            self.dtype = None;
        }
        let made = self.tensor("weight", shape, Start::Normal(std));
        self.dtype = dtype;
        made
    }

    /// What is to stand at the present path in place of a projection.
    fn exchanged(&mut self, made: Projection) -> Result<Projection> {
        let path = self.path.join(".");
        let Some(exchange) = &mut self.exchange else {
            return Ok(made);
        };
        match &mut self.source {
            Source::Given(arrays) => exchange(&path, made, arrays),
            Source::Random(_) => exchange(&path, made, &mut Arrays::new()),
        }
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
        let (inputs, outputs) = sizes;
        self.scope(name, |b| {
            let weight = b.weight([outputs, inputs], std)?;
            let bias = bias
                .then(|| b.tensor("bias", [outputs], Start::Constant(0.0)))
                .transpose()?;
            b.exchanged(Projection::Linear(Linear::from_tensors(weight, bias)?))
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
            let weight = b.weight([inputs, outputs], std)?;
            let bias = b.tensor("bias", [outputs], Start::Constant(0.0))?;
            b.exchanged(Projection::Transposed(TransposedLinear {
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

    /// [`Builder::embedding`] that can get an adapter; `tied` says whether the output layer uses it too.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn lookup(
        &mut self,
        name: &str,
        sizes: (usize, usize),
        std: f64,
        tied: bool,
    ) -> Result<Lookup> {
        let (count, width) = sizes;
        let made = Lookup::from(self.embedding(name, count, width, std)?);
        Ok(Lookup { tied, ..made })
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
