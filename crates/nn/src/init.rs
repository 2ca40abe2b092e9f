//! [`Init`]: seeded initial values, by PyTorch's formulas.
//!
//! Xavier: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
//! networks" (2010). Kaiming: He et al., "Delving deep into rectifiers" (2015). Orthogonal: Saxe
//! et al., "Exact solutions to the nonlinear dynamics of learning" (2013). Layers draw from one
//! `Init` in the order in which they are made, so a seed names all initial values.

use entrenar_base::{DType, Error, Philox, Result, Shape};
use entrenar_core::Tensor;

/// A source of initial values.
///
/// ```
/// use entrenar_nn::Init;
/// let a = Init::new(3).normal([2, 2], 0.0, 0.02)?;
/// let b = Init::new(3).normal([2, 2], 0.0, 0.02)?;
/// assert_eq!(a.to_vec::<f32>()?, b.to_vec::<f32>()?);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Init {
    keys: Philox,
    drawn: u64,
    dtype: DType,
}

/// Which side's signal keeps its variance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fan {
    /// The forward pass.
    #[default]
    In,
    /// The backward pass.
    Out,
}

/// The factor by which an activation shrinks a signal (`torch.nn.init.calculate_gain`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gain {
    /// No activation, or a sigmoid: 1.
    Linear,
    /// 5/3.
    Tanh,
    /// √2.
    Relu,
    /// √(2 / (1 + slope²)).
    LeakyRelu(f64),
    /// 3/4.
    Selu,
}

impl Gain {
    /// The number.
    pub fn value(self) -> f64 {
        match self {
            Gain::Linear => 1.0,
            Gain::Tanh => 5.0 / 3.0,
            Gain::Relu => 2f64.sqrt(),
            Gain::LeakyRelu(slope) => (2.0 / (1.0 + slope * slope)).sqrt(),
            Gain::Selu => 0.75,
        }
    }
}

/// (inputs, outputs) that one output or input of a weight `[out, in, kernel…]` is summed over.
fn fans(name: &str, shape: &Shape) -> Result<(f64, f64)> {
    if shape.rank() < 2 {
        return Err(Error::shape(
            name,
            "a weight [out, in, kernel…] of two or more dimensions",
            shape,
        ));
    }
    let field: usize = shape[2..].iter().product();
    Ok(((shape[1] * field) as f64, (shape[0] * field) as f64))
}

impl Init {
    /// Values of `seed`, in f32.
    pub fn new(seed: u64) -> Init {
        Init {
            keys: Philox::new(seed, 0x1417),
            drawn: 0,
            dtype: DType::F32,
        }
    }

    /// The same with another float dtype.
    #[must_use]
    pub fn dtype(mut self, dtype: DType) -> Init {
        self.dtype = dtype;
        self
    }

    fn draw(&mut self) -> Philox {
        self.drawn += 1;
        self.keys.fork(self.drawn)
    }

    /// All zeros.
    ///
    /// # Errors
    /// When the size overflows.
    #[track_caller]
    pub fn zeros(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.full(shape, 0.0)
    }

    /// All ones. Errors as [`Init::zeros`].
    #[track_caller]
    pub fn ones(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.full(shape, 1.0)
    }

    /// One value everywhere. Errors as [`Init::zeros`].
    #[track_caller]
    pub fn full(&self, shape: impl Into<Shape>, value: f64) -> Result<Tensor> {
        let shape = shape.into();
        shape.checked_numel()?;
        Ok(Tensor::full(shape, value, self.dtype))
    }

    /// Uniform in [low, high).
    ///
    /// # Errors
    /// When the size overflows or the dtype is not a float.
    #[track_caller]
    pub fn uniform(&mut self, shape: impl Into<Shape>, low: f64, high: f64) -> Result<Tensor> {
        let shape = shape.into();
        shape.checked_numel()?;
        Tensor::rand_from(shape, self.dtype, &self.draw())?
            .mul_scalar(high - low)?
            .add_scalar(low)
    }

    /// Normal with this mean and deviation. Errors as [`Init::uniform`].
    #[track_caller]
    pub fn normal(&mut self, shape: impl Into<Shape>, mean: f64, std: f64) -> Result<Tensor> {
        let shape = shape.into();
        shape.checked_numel()?;
        Tensor::randn_from(shape, self.dtype, &self.draw())?
            .mul_scalar(std)?
            .add_scalar(mean)
    }

    /// Uniform in ±gain √(6 / (fan_in + fan_out)).
    ///
    /// # Errors
    /// When the shape has fewer than two dimensions, or as [`Init::uniform`].
    #[track_caller]
    pub fn xavier_uniform(&mut self, shape: impl Into<Shape>, gain: Gain) -> Result<Tensor> {
        let shape = shape.into();
        let (fan_in, fan_out) = fans("xavier_uniform", &shape)?;
        let bound = gain.value() * (6.0 / (fan_in + fan_out)).sqrt();
        self.uniform(shape, -bound, bound)
    }

    /// Normal with deviation gain √(2 / (fan_in + fan_out)). Errors as [`Init::xavier_uniform`].
    #[track_caller]
    pub fn xavier_normal(&mut self, shape: impl Into<Shape>, gain: Gain) -> Result<Tensor> {
        let shape = shape.into();
        let (fan_in, fan_out) = fans("xavier_normal", &shape)?;
        self.normal(shape, 0.0, gain.value() * (2.0 / (fan_in + fan_out)).sqrt())
    }

    /// Uniform in ±gain √(3 / fan). Errors as [`Init::xavier_uniform`].
    ///
    /// ```
    /// # use entrenar_nn::init::{Fan, Gain, Init};
    /// let w = Init::new(0).kaiming_uniform([64, 300], Fan::In, Gain::Relu)?;
    /// let bound = (6.0f32 / 300.0).sqrt();
    /// assert!(w.to_vec::<f32>()?.iter().all(|x| x.abs() <= bound));
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn kaiming_uniform(
        &mut self,
        shape: impl Into<Shape>,
        fan: Fan,
        gain: Gain,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let bound = 3f64.sqrt() * kaiming_std("kaiming_uniform", &shape, fan, gain)?;
        self.uniform(shape, -bound, bound)
    }

    /// Normal with deviation gain / √fan. Errors as [`Init::xavier_uniform`].
    #[track_caller]
    pub fn kaiming_normal(
        &mut self,
        shape: impl Into<Shape>,
        fan: Fan,
        gain: Gain,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let std = kaiming_std("kaiming_normal", &shape, fan, gain)?;
        self.normal(shape, 0.0, std)
    }

    /// A random matrix `[rows, columns × …]` whose rows (or columns, the shorter side) are
    /// orthogonal unit vectors times `gain`: uniform over such matrices.
    ///
    /// # Errors
    /// As [`Init::xavier_uniform`].
    #[track_caller]
    pub fn orthogonal(&mut self, shape: impl Into<Shape>, gain: f64) -> Result<Tensor> {
        let shape = shape.into();
        fans("orthogonal", &shape)?;
        let n = shape.checked_numel()?;
        if n == 0 {
            return self.zeros(shape);
        }
        let (rows, columns) = (shape[0], n / shape[0]);
        let (count, length) = (rows.min(columns), rows.max(columns));
        let keys = self.draw();
        let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(count);
        for i in 0..count {
            let start = (i * length) as u64;
            let mut v: Vec<f64> = (0..length as u64).map(|j| keys.normal(start + j)).collect();
            // Gram–Schmidt, twice: once is not enough when vectors are nearly parallel.
            for _ in 0..2 {
                for u in &vectors {
                    let dot: f64 = u.iter().zip(&v).map(|(a, b)| a * b).sum();
                    v.iter_mut().zip(u).for_each(|(x, u)| *x -= dot * u);
                }
                let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
                v.iter_mut().for_each(|x| *x /= norm);
            }
            vectors.push(v);
        }
        let values: Vec<f64> = (0..n)
            .map(|at| {
                let (r, c) = (at / columns, at % columns);
                gain * if rows <= columns {
                    vectors[r][c]
                } else {
                    vectors[c][r]
                }
            })
            .collect();
        Tensor::from_vec(values, shape)?.to_dtype(self.dtype)
    }

    /// PyTorch's default for the weight of a linear or convolution layer: uniform in ±1/√fan_in
    /// (Kaiming with slope √5).
    pub(crate) fn default_weight(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.kaiming_uniform(shape, Fan::In, Gain::LeakyRelu(5f64.sqrt()))
    }

    /// PyTorch's default for the bias beside such a weight: the same range.
    pub(crate) fn default_bias(&mut self, weight: &Tensor) -> Result<Tensor> {
        let (fan_in, _) = fans("bias", weight.shape())?;
        let bound = if fan_in > 0.0 {
            1.0 / fan_in.sqrt()
        } else {
            0.0
        };
        self.uniform([weight.dims()[0]], -bound, bound)
    }
}

fn kaiming_std(name: &str, shape: &Shape, fan: Fan, gain: Gain) -> Result<f64> {
    let (fan_in, fan_out) = fans(name, shape)?;
    let fan = match fan {
        Fan::In => fan_in,
        Fan::Out => fan_out,
    };
    // An empty weight has no values to scale.
    Ok(if fan > 0.0 {
        gain.value() / fan.sqrt()
    } else {
        0.0
    })
}
