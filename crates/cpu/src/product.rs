//! Matrix products with everything that may follow one: `residual + activation(a·b + bias)`, in
//! mixed 16- and 32-bit floats.
//!
//! One call reads operands of any float dtype and layout, multiplies in the precision asked for,
//! and applies the options while the result is still in cache. [`crate::matmul`] holds the bare
//! products, `crate::gemm` the kernels.
//!
//! All arithmetic after the operands are read is f32; each output is rounded once.

use entrenar_base::{Array, DType, Error, Result, Shape, dispatch};

use crate::alloc::Scratch;
use crate::cast::cast;
use crate::copy::contiguous;
#[cfg(target_arch = "x86_64")]
use crate::gemm::{Dot, Tiles};
use crate::gemm::{
    Engine, Epilogue, Finish, Kind, Out, Problem, Right, Rows, Single, Source, Way, multiply,
    packed, way, with_engine,
};
use crate::matmul::Sizes;

/// The precision that operands are multiplied in; sums are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Operands are widened to f32, which changes no value.
    #[default]
    F32,
    /// Operands are rounded to bf16 (to nearest, ties to even) as they are read: what casting them
    /// first gives, without the pass over memory.
    Bf16,
}

/// A function applied to each element of a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// max(x, 0), NaN kept.
    Relu,
    /// x·Φ(x) with the exact normal distribution function.
    Gelu,
    /// The tanh approximation of gelu: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    GeluTanh,
    /// x·sigmoid(x).
    Silu,
}

/// What a product computes besides a·b. The default is the bare product.
///
/// `output = activation(alpha · a·b + bias) + residual`
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Precision of the operands.
    pub compute: Compute,
    /// Dtype of the output: f32, bf16 or f16. By default that of `a` and `b` when they are arrays of
    /// one dtype, else f32.
    pub output: Option<DType>,
    /// Factor of the product.
    pub alpha: f32,
    /// Added to every row: `[n]`, of any float dtype.
    pub bias: Option<&'a Array>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last: of the output's shape and any float dtype.
    pub residual: Option<&'a Array>,
    /// When given, `alpha · a·b + bias` is returned too, in this dtype (f32, bf16 or f16): what the
    /// activation's derivative needs.
    pub preactivation: Option<DType>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            compute: Compute::F32,
            output: None,
            alpha: 1.0,
            bias: None,
            activation: Activation::None,
            residual: None,
            preactivation: None,
        }
    }
}

/// What [`product`] returns.
#[derive(Clone, Debug)]
pub struct Product {
    /// `activation(alpha · a·b + bias) + residual`.
    pub output: Array,
    /// `alpha · a·b + bias`, when it was asked for.
    pub preactivation: Option<Array>,
}

/// `activation(alpha · a·b + bias) + residual` for `a[batch…, m, k]` and `b[batch…, k, n]`.
///
/// Each operand is f32, bf16 or f16, in any layout: transposed and mixed ones cost no copy. Batch
/// dimensions must be equal (broadcast with zero strides beforehand).
///
/// # Errors
/// When shapes do not fit or a dtype is not f32, bf16 or f16.
///
/// ```
/// use entrenar_base::{Array, DType};
/// use entrenar_cpu::product::{Activation, Options, product};
/// let x = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?.cast(DType::BF16);
/// let weight = Array::from_vec(vec![1.0f32, 0.0, 0.0, -1.0], [2, 2])?;
/// let bias = Array::from_vec(vec![0.5f32, 0.5], [2])?;
/// let y = product(&x, &weight.transpose(0, 1)?, &Options {
///     bias: Some(&bias),
///     activation: Activation::Relu,
///     ..Options::default()
/// })?;
/// assert_eq!(y.output.to_vec::<f32>()?, [1.5, 0.0, 3.5, 0.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn product<'b>(a: &Array, b: impl Into<Factor<'b>>, options: &Options<'_>) -> Result<Product> {
    let b = b.into();
    let (output, sizes) = check(a, b, options)?;
    let shape = sizes.shape(a);
    let bias = match options.bias {
        Some(bias) => Some(cast(bias, DType::F32)?),
        None => None,
    };
    let residual = match options.residual {
        Some(residual) => Some(contiguous(residual)?),
        None => None,
    };
    let mut preactivation = None;
    let bare = bias.is_none()
        && residual.is_none()
        && options.activation == Activation::None
        && output == DType::F32;
    let fill = |output: Rows, preactivation: Option<Rows>| {
        let finish = Epilogue {
            width: sizes.n,
            bias: bias.as_ref().map(Array::as_slice::<f32>).transpose()?,
            activation: options.activation,
            residual: residual.as_ref().map(rows_of).transpose()?,
            preactivation,
            output,
        };
        let finish = (!bare || preactivation.is_some()).then_some(&finish);
        let job = Job {
            sizes: &sizes,
            compute: options.compute,
            alpha: options.alpha,
            accumulate: false,
            output,
            finish,
        };
        job.run(a, b)
    };
    let output = build(output, &shape, &mut |rows| match options.preactivation {
        None => fill(rows, None),
        Some(dtype) => {
            preactivation = Some(build(dtype, &shape, &mut |other| fill(rows, Some(other)))?);
            Ok(())
        }
    })?;
    Ok(Product {
        output,
        preactivation,
    })
}

/// `target += a·b` with operands as in [`product`], in place when `target` is the only owner of a
/// contiguous storage; otherwise the sum replaces it. The old value joins the sum in f32, and the
/// result is rounded once to the dtype of `target` (f32, bf16 or f16).
///
/// # Errors
/// As [`product`], and when the shape of `target` is not the product's.
#[track_caller]
pub fn product_acc(target: &mut Array, a: &Array, b: &Array, compute: Compute) -> Result<()> {
    let options = Options {
        compute,
        output: Some(target.dtype()),
        residual: Some(target),
        ..Options::default()
    };
    let (dtype, sizes) = check(a, b.into(), &options)?;
    let kind = Kind::of(dtype).expect("checked");
    let data = dispatch!(dtype, T => target.make_mut::<T>()?.as_mut_ptr().cast::<u8>());
    let output = Rows { data, kind };
    let finish = Epilogue {
        width: sizes.n,
        bias: None,
        activation: Activation::None,
        residual: None,
        preactivation: None,
        output,
    };
    let job = Job {
        sizes: &sizes,
        compute,
        alpha: 1.0,
        accumulate: true,
        output,
        finish: (kind != Kind::F32).then_some(&finish),
    };
    job.run(a, b.into())
}

/// A new array whose elements `fill` writes.
fn build(dtype: DType, shape: &Shape, fill: &mut dyn FnMut(Rows) -> Result<()>) -> Result<Array> {
    let kind = Kind::of(dtype).expect("checked");
    dispatch!(dtype, T => Array::try_build(shape, |out: &mut [T]| {
        fill(Rows { data: out.as_mut_ptr().cast(), kind })
    }))
}

/// The elements of a contiguous array.
fn rows_of(x: &Array) -> Result<Rows> {
    let kind = Kind::of(x.dtype()).expect("checked");
    // Nothing writes through the pointer of an input.
    let data = dispatch!(x.dtype(), T => x.as_slice::<T>()?.as_ptr().cast::<u8>().cast_mut());
    Ok(Rows { data, kind })
}

/// The first element of an array's storage.
fn storage(x: &Array) -> Result<(*const u8, Kind)> {
    let kind = Kind::of(x.dtype()).expect("checked");
    let data = dispatch!(x.dtype(), T => x.view::<T>()?.data().as_ptr().cast::<u8>());
    Ok((data, kind))
}

/// A checked product, its outputs ready.
struct Job<'a> {
    sizes: &'a Sizes,
    compute: Compute,
    alpha: f32,
    accumulate: bool,
    output: Rows,
    /// What follows; without it the output is f32.
    finish: Option<&'a Epilogue<'a>>,
}

impl Job<'_> {
    fn run(&self, a: &Array, b: Factor<'_>) -> Result<()> {
        let (data, kind) = storage(a)?;
        let a = self.sizes.left(data, kind);
        match b {
            Factor::Array(b) => {
                let (data, kind) = storage(b)?;
                let b = self.sizes.right(data, kind);
                let way = way(self.compute == Compute::Bf16);
                with_engine!(way, E => self.multiply::<E>(a, Right::Strided(b)));
            }
            Factor::Packed(b) => match &b.values {
                Values::Single(data) => {
                    self.multiply::<Single>(a, Right::Packed { data, first: 0 });
                }
                #[cfg(target_arch = "x86_64")]
                Values::Dot(data) => self.multiply::<Dot>(a, Right::Packed { data, first: 0 }),
                #[cfg(target_arch = "x86_64")]
                Values::Tiles(data) => self.multiply::<Tiles>(a, Right::Packed { data, first: 0 }),
            },
        }
        Ok(())
    }

    fn multiply<E: Engine<S = f32>>(&self, a: Source, b: Right<'_, E>) {
        let s = self.sizes;
        let at = |j: usize| Problem::<E> {
            k: s.k,
            alpha: self.alpha,
            a: s.left_of(a, j),
            b: match b {
                Right::Strided(b) => Right::Strided(s.right_of(b, j)),
                packed => packed,
            },
            round: self.compute == Compute::Bf16,
            out: Out {
                c: self.output.at(j * s.m * s.n).cast(),
                width: s.n,
                accumulate: self.accumulate,
                finish: self.finish.map(|f| f as &dyn Finish<f32>),
                first_row: j * s.m,
            },
        };
        let batch = s.batch(&at);
        // SAFETY: the layouts of the operands were checked when their arrays were made; the outputs
        // are contiguous, have the product's shape and are written by nobody else.
        unsafe { multiply(&batch) };
    }
}

/// A right operand: an array, or one that was packed before.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// `[batch…, k, n]`, in any layout.
    Array(&'a Array),
    /// `[k, n]`.
    Packed(&'a PackedMatrix),
}

impl<'a> From<&'a Array> for Factor<'a> {
    fn from(x: &'a Array) -> Self {
        Factor::Array(x)
    }
}

impl<'a> From<&'a PackedMatrix> for Factor<'a> {
    fn from(x: &'a PackedMatrix) -> Self {
        Factor::Packed(x)
    }
}

/// A right operand in the form that kernels read: for a weight that several products share.
///
/// It holds a copy of the values, in 4 bytes each or, where bf16 is multiplied as such, in 2.
/// Products with it have the bits of products with the array.
pub struct PackedMatrix {
    k: usize,
    n: usize,
    compute: Compute,
    values: Values,
}

/// Values in the form of an engine.
enum Values {
    Single(Scratch<f32>),
    #[cfg(target_arch = "x86_64")]
    Dot(Scratch<i32>),
    #[cfg(target_arch = "x86_64")]
    Tiles(Scratch<i32>),
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "PackedMatrix [{}, {}], {:?}",
            self.k, self.n, self.compute
        )
    }
}

impl PackedMatrix {
    /// Packs `b[k, n]`: f32, bf16 or f16, in any layout (a transposed view packs the transpose).
    /// Products with it compute in `compute`, whatever their options say.
    ///
    /// # Errors
    /// When `b` is no matrix or its dtype is another.
    ///
    /// ```
    /// use entrenar_base::Array;
    /// use entrenar_cpu::product::{Compute, Options, PackedMatrix, product};
    /// let weight = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
    /// let packed = PackedMatrix::new(&weight.transpose(0, 1)?, Compute::F32)?;
    /// let x = Array::from_vec(vec![1.0f32, 1.0], [1, 2])?;
    /// let y = product(&x, &packed, &Options::default())?;
    /// assert_eq!(y.output.to_vec::<f32>()?, [3.0, 7.0]);
    /// # Ok::<(), entrenar_base::Error>(())
    /// ```
    #[track_caller]
    pub fn new(b: &Array, compute: Compute) -> Result<PackedMatrix> {
        if !is_operand(b.dtype()) {
            return Err(Error::dtype("pack", "f32, bf16 or f16", b.dtype()));
        }
        let [k, n] = *b.dims() else {
            return Err(Error::shape("pack", "a matrix", b.shape()));
        };
        let (data, kind) = storage(b)?;
        let strides = b.layout().strides();
        let source = Source {
            data,
            kind,
            row: strides[0],
            column: strides[1],
        }
        .moved(b.layout().offset() as isize);
        let round = compute == Compute::Bf16;
        // SAFETY: the layout was checked when the array was made.
        let values = unsafe {
            match way(round) {
                Way::Single => Values::Single(packed::<Single>(source, k, n, round)),
                #[cfg(target_arch = "x86_64")]
                Way::Dot => Values::Dot(packed::<Dot>(source, k, n, round)),
                #[cfg(target_arch = "x86_64")]
                Way::Tiles => Values::Tiles(packed::<Tiles>(source, k, n, round)),
            }
        };
        Ok(PackedMatrix {
            k,
            n,
            compute,
            values,
        })
    }

    /// (k, n).
    pub fn sizes(&self) -> (usize, usize) {
        (self.k, self.n)
    }
}

/// Dtypes that products read and write.
fn is_operand(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// Checks dtypes and shapes; returns the output's dtype.
#[track_caller]
fn check(a: &Array, b: Factor<'_>, options: &Options<'_>) -> Result<(DType, Sizes)> {
    let refused = |dtype| Error::dtype("product", "f32, bf16 or f16", dtype);
    let right = match b {
        Factor::Array(b) => Some(b),
        Factor::Packed(_) => None,
    };
    let arrays = [Some(a), right, options.bias, options.residual];
    let arrays = arrays.into_iter().flatten();
    let dtypes = arrays.map(Array::dtype);
    let asked = options.output.into_iter().chain(options.preactivation);
    if let Some(dtype) = dtypes.chain(asked).find(|&d| !is_operand(d)) {
        return Err(refused(dtype));
    }
    let sizes = match b {
        Factor::Array(b) => Sizes::fitting("product", a, b)?,
        Factor::Packed(b) => Sizes::with_matrix("product", a, b.sizes())?,
    };
    let shape = sizes.shape(a);
    if let Some(bias) = options.bias
        && bias.dims() != [sizes.n]
    {
        let expected = format!("a bias of shape [{}]", sizes.n);
        return Err(Error::shape("product", expected, bias.shape()));
    }
    if let Some(residual) = options.residual
        && *residual.shape() != shape
    {
        let expected = format!("a residual of shape {shape}");
        return Err(Error::shape("product", expected, residual.shape()));
    }
    let common = match b {
        Factor::Array(b) if b.dtype() == a.dtype() => a.dtype(),
        _ => DType::F32,
    };
    Ok((options.output.unwrap_or(common), sizes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::array;

    #[test]
    fn everything_at_once() {
        let x = array(&[3, 4], DType::BF16, 1);
        let w = array(&[5, 4], DType::F32, 2);
        let bias = array(&[5], DType::BF16, 3);
        let residual = array(&[3, 5], DType::F32, 4);
        let y = product(
            &x,
            &w.transpose(0, 1).unwrap(),
            &Options {
                compute: Compute::Bf16,
                alpha: 0.5,
                bias: Some(&bias),
                activation: Activation::Relu,
                residual: Some(&residual),
                preactivation: Some(DType::F32),
                ..Options::default()
            },
        )
        .unwrap();
        let (xs, ws) = (x.to_f64_vec(), w.to_f64_vec());
        let (bs, rs) = (bias.to_f64_vec(), residual.to_f64_vec());
        let pre = y.preactivation.unwrap().to_f64_vec();
        for (e, (out, pre)) in y.output.to_f64_vec().iter().zip(pre).enumerate() {
            let (i, j) = (e / 5, e % 5);
            // Values are multiples of 1/8 in -16..16: exact in bf16, sums exact in f32.
            let sum: f64 = (0..4).map(|p| xs[i * 4 + p] * ws[j * 4 + p]).sum();
            assert_eq!(pre, 0.5 * sum + bs[j]);
            assert_eq!(*out, pre.max(0.0) + rs[e]);
        }
        let mut target = residual.cast(DType::BF16);
        product_acc(&mut target, &x, &w.transpose(0, 1).unwrap(), Compute::F32).unwrap();
        assert_eq!(target.dtype(), DType::BF16);
    }

    #[test]
    fn misfits_are_errors() {
        let a = array(&[2, 3], DType::F32, 1);
        let b = array(&[3, 2], DType::F32, 1);
        let fails = |a: &Array, b: &Array, o: Options<'_>| product(a, b, &o).is_err();
        let plain = Options::default;
        assert!(fails(&a, &a, plain()));
        assert!(fails(&a.cast(DType::F64), &b, plain()));
        assert!(fails(&a, &b.cast(DType::I64), plain()));
        let output = Some(DType::I32);
        assert!(fails(&a, &b, Options { output, ..plain() }));
        let bias = Some(&a);
        assert!(fails(&a, &b, Options { bias, ..plain() }));
        let residual = Some(&b);
        assert!(fails(
            &a,
            &b,
            Options {
                residual,
                ..plain()
            }
        ));
        let mut target = b.clone();
        assert!(product_acc(&mut target, &a, &b, Compute::F32).is_err());
    }
}
