//! Reading and writing at indices: `gather`, `scatter`, `index_select`, `index_add`, `embedding`.
//!
//! gather: out\[i\]\[j\]\[k\] = x\[i\][index\[i\]\[j\]\[k\]]\[k\] (for dim = 1). All are linear in their values and
//! each other's transposes: gather ↔ scatter_add, index_select ↔ index_add,
//! embedding ↔ embedding_backward. Sums over equal indices run in the order of the index, so
//! gradients have the same bits at any number of threads. Indices are i64, i32, i8 or u8 and, except in
//! `take_along_dim`, never negative.

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::index as kernel;

use super::where_::constant;
use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Place, Rule, Sink, VjpCx};
use crate::registry::{Entry, Gen, Sample};

#[track_caller]
fn check_index(op: &str, index: &Aval) -> Result<()> {
    if index.dtype.is_int() {
        return Ok(());
    }
    Err(Error::dtype(op, "an integer index", index.dtype))
}

/// `index` has the rank of `x` and is no larger outside `dim`.
fn check_inside(op: &str, x: &Aval, dim: usize, index: &Aval) -> Result<()> {
    check_index(op, index)?;
    let fits = index.shape.rank() == x.shape.rank()
        && (0..x.shape.rank()).all(|d| d == dim || index.shape[d] <= x.shape[d]);
    if fits {
        return Ok(());
    }
    Err(Error::shape(
        op,
        format!("an index of the rank of {x:?}, no larger outside dimension {dim}"),
        &index.shape,
    ))
}

/// (x, index) → shape of index.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Gather {
    dim: usize,
}

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        check_inside("gather", inputs[0], self.dim, inputs[1])?;
        Ok(one(Aval::new(inputs[1].shape.clone(), inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(kernel::gather(inputs[0], self.dim, inputs[1])?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Gather {
    fn linear_in(&self, input: usize) -> bool {
        input == 0
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let zeros = constant(&cx.aval(0).shape, 0.0, g.dtype())?;
        let op = ScatterAdd { dim: self.dim };
        sink.add(0, apply1(&handle(op), &[&zeros, cx.input(1)?, g])?)
    }
}

/// (base, index, source of the shape of index): sums meet in one place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ScatterAdd {
    dim: usize,
}

fn infer_scatter(op: &str, dim: usize, inputs: &[&Aval]) -> Result<Few<Aval>> {
    let (base, index, source) = (inputs[0], inputs[1], inputs[2]);
    check_inside(op, base, dim, index)?;
    if index.shape != source.shape || base.dtype != source.dtype {
        return Err(Error::shape(
            op,
            format!("a source of shape {} and dtype {}", index.shape, base.dtype),
            format!("{source:?}"),
        ));
    }
    Ok(one(base.clone()))
}

impl Op for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        infer_scatter("scatter_add", self.dim, inputs)
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let out = kernel::scatter_add(inputs[0], self.dim, inputs[1], inputs[2])?;
        Ok(one(out))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for ScatterAdd {
    fn linear_in(&self, input: usize) -> bool {
        input != 1
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        sink.add(0, g.clone())?;
        if sink.needs(2) {
            let op = Gather { dim: self.dim };
            sink.add(2, apply1(&handle(op), &[g, cx.input(1)?])?)?;
        }
        Ok(())
    }
}

/// (base, index, source of the shape of index): the last write in row-major order stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scatter {
    dim: usize,
}

impl Op for Scatter {
    fn name(&self) -> &'static str {
        "scatter"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        infer_scatter("scatter", self.dim, inputs)
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let out = kernel::scatter(inputs[0], self.dim, inputs[1], inputs[2])?;
        Ok(one(out))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Scatter {
    fn linear_in(&self, input: usize) -> bool {
        input != 1
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let index = cx.input(1)?;
        if sink.needs(0) {
            let zeros = constant(index.shape(), 0.0, g.dtype())?;
            sink.add(0, apply1(&handle(self.clone()), &[g, index, &zeros])?)?;
        }
        if sink.needs(2) {
            let back = apply1(&handle(Gather { dim: self.dim }), &[g, index])?;
            let stayed = self.stayed(&cx.aval(0).shape, &index.detach())?;
            let zero = constant(back.shape(), 0.0, back.dtype())?;
            sink.add(2, Tensor::where_(&stayed, &back, &zero)?)?;
        }
        Ok(())
    }
}

impl Scatter {
    /// Which entries of the source were not overwritten by later ones: each is numbered, the
    /// numbers are scattered, and those read back unchanged stayed. (PyTorch gives overwritten
    /// entries a gradient too.)
    fn stayed(&self, base: &Shape, index: &Tensor) -> Result<Tensor> {
        let numbers =
            Tensor::from_vec((0..index.numel() as i64).collect::<Vec<_>>(), index.shape())?;
        let board = constant(base, 0.0, DType::I64)?;
        let board = apply1(&handle(self.clone()), &[&board, index, &numbers])?;
        apply1(&handle(Gather { dim: self.dim }), &[&board, index])?.eq(&numbers)
    }
}

/// (x, index of rank 0 or 1) → x with `dim` resized.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct IndexSelect {
    dim: usize,
}

/// `shape` after selecting with `index` along `dim`.
fn selected(op: &str, shape: &Shape, dim: usize, index: &Aval) -> Result<Shape> {
    check_index(op, index)?;
    let count = index.shape.numel();
    if index.shape.rank() > 1 || (shape.rank() == 0 && count != 1) {
        return Err(Error::shape(
            op,
            format!("an index of rank 1 for shape {shape}"),
            &index.shape,
        ));
    }
    let mut out = shape.clone();
    if shape.rank() > 0 {
        out.dims_mut()[dim] = count;
    }
    Ok(out)
}

impl Op for IndexSelect {
    fn name(&self) -> &'static str {
        "index_select"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape = selected("index_select", &inputs[0].shape, self.dim, inputs[1])?;
        Ok(one(Aval::new(shape, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(kernel::index_select(inputs[0], self.dim, inputs[1])?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for IndexSelect {
    fn linear_in(&self, input: usize) -> bool {
        input == 0
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let zeros = constant(&cx.aval(0).shape, 0.0, g.dtype())?;
        let op = IndexAdd { dim: self.dim };
        sink.add(0, apply1(&handle(op), &[&zeros, cx.input(1)?, g])?)
    }
}

/// (base, index of rank 0 or 1, source like the selection).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct IndexAdd {
    dim: usize,
}

impl Op for IndexAdd {
    fn name(&self) -> &'static str {
        "index_add"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (base, index, source) = (inputs[0], inputs[1], inputs[2]);
        let shape = selected("index_add", &base.shape, self.dim, index)?;
        if shape != source.shape || base.dtype != source.dtype {
            return Err(Error::shape(
                "index_add",
                format!("a source of shape {shape} and dtype {}", base.dtype),
                format!("{source:?}"),
            ));
        }
        Ok(one(base.clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let out = kernel::index_add(inputs[0], self.dim, inputs[1], inputs[2])?;
        Ok(one(out))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for IndexAdd {
    fn linear_in(&self, input: usize) -> bool {
        input != 1
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        sink.add(0, g.clone())?;
        if sink.needs(2) {
            let op = IndexSelect { dim: self.dim };
            sink.add(2, apply1(&handle(op), &[g, cx.input(1)?])?)?;
        }
        Ok(())
    }
}

/// (table `[rows, width]`, indices `[..]`) → `[.., width]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Embedding;

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        check_index("embedding", inputs[1])?;
        let [_, width] = inputs[0].shape[..] else {
            return Err(Error::shape(
                "embedding",
                "a table [rows, width]",
                &inputs[0].shape,
            ));
        };
        let mut shape = inputs[1].shape.clone();
        shape.push(width);
        Ok(one(Aval::new(shape, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let (table, index) = (inputs[0], inputs[1]);
        // Named positions in the message need the index's own shape.
        kernel::bounds(index, table.dims()[0], "embedding")?;
        let flat = index.reshape([index.numel()])?;
        let rows = kernel::index_select(table, 0, &flat)?;
        Ok(one(rows.reshape(&outputs[0].shape)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Embedding {
    fn linear_in(&self, input: usize) -> bool {
        input == 0
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let place = TableRows {
            rows: cx.aval(0).shape[0],
            index: cx.input(1)?.clone(),
        };
        sink.add_part(0, g.clone(), place)
    }
}

/// The rows of a table that an index names: a tied table has a gradient already, which then is not
/// added to zeros of its size.
struct TableRows {
    rows: usize,
    index: Tensor,
}

impl Place for TableRows {
    fn embed(&self, part: &Tensor) -> Result<Tensor> {
        let op = EmbeddingBackward { rows: self.rows };
        apply1(&handle(op), &[part, &self.index])
    }

    fn add_in_place(&self, target: &mut Array, part: &Array) -> Result<bool> {
        // A sum in 16 bits would round once more.
        if target.dtype() != part.dtype() || !matches!(part.dtype(), DType::F32 | DType::F64) {
            return Ok(false);
        }
        kernel::embedding_accumulate(target, part, self.index.array())?;
        Ok(true)
    }
}

/// (gradient `[.., width]`, indices `[..]`) → `[rows, width]`: rows with one index added up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EmbeddingBackward {
    rows: usize,
}

impl Op for EmbeddingBackward {
    fn name(&self) -> &'static str {
        "embedding_backward"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        check_index("embedding_backward", inputs[1])?;
        match inputs[0].shape.split_last() {
            Some((&width, lead)) if inputs[1].shape == *lead => {
                Ok(one(Aval::new([self.rows, width], inputs[0].dtype)))
            }
            _ => Err(Error::shape(
                "embedding_backward",
                format!("a gradient of shape {} and a width", inputs[1].shape),
                &inputs[0].shape,
            )),
        }
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(kernel::embedding_backward(
            inputs[0], inputs[1], self.rows,
        )?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for EmbeddingBackward {
    fn linear_in(&self, input: usize) -> bool {
        input == 0
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        sink.add(0, apply1(&handle(Embedding), &[g, cx.input(1)?])?)
    }
}

/// index → index with a new last dimension of `classes`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OneHot {
    classes: usize,
}

impl Op for OneHot {
    fn name(&self) -> &'static str {
        "one_hot"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        check_index("one_hot", inputs[0])?;
        let mut shape = inputs[0].shape.clone();
        shape.push(self.classes);
        Ok(one(Aval::new(shape, DType::I64)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(kernel::one_hot(inputs[0], self.classes, DType::I64)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Zero
    }
}

/// The leading corner of `t` with the shape of `index`: what a scatter reads.
fn corner(op: &str, t: &Tensor, index: &Tensor) -> Result<Tensor> {
    if t.rank() != index.rank() || t.dims().iter().zip(index.dims()).any(|(s, i)| i > s) {
        return Err(Error::shape(
            op,
            format!(
                "a source of the rank of index {} and no smaller",
                index.shape()
            ),
            t.shape(),
        ));
    }
    let mut t = t.clone();
    for (d, &n) in index.dims().iter().enumerate() {
        t = t.narrow(d as isize, 0, n)?;
    }
    Ok(t)
}

impl Tensor {
    /// Elements picked along `dim`: `out[i][j] = self[index[i][j]][j]` for dim 0. Shape: that of
    /// `index`, which has this tensor's rank (any when it is empty) and is no larger outside `dim`.
    ///
    /// # Errors
    /// When shapes do not fit or an index is out of range.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
    /// let index = Tensor::from_vec(vec![1i64, 0], [2, 1])?;
    /// assert_eq!(x.gather(1, &index)?.to_vec::<f32>()?, [2.0, 3.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn gather(&self, dim: isize, index: &Tensor) -> Result<Tensor> {
        let dim = self.shape().dim("gather", dim)?;
        if index.numel() == 0 && index.dtype().is_int() && index.rank() != self.rank() {
            // PyTorch takes an empty index of any rank: nothing is picked.
            let none = self.reshape([self.numel()])?.narrow(0, 0, 0)?;
            return none.reshape(index.shape());
        }
        apply1(&handle(Gather { dim }), &[self, index])
    }

    /// This tensor with `source[i][j]` written at `[index[i][j]][j]` (for dim 0). Where several
    /// meet, the last in row-major order stays, and only it gets a gradient. `source` may be
    /// larger than `index`: its leading corner is read.
    ///
    /// # Errors
    /// When shapes do not fit, dtypes differ or an index is out of range.
    #[track_caller]
    pub fn scatter(&self, dim: isize, index: &Tensor, source: &Tensor) -> Result<Tensor> {
        let dim = self.shape().dim("scatter", dim)?;
        let source = corner("scatter", source, index)?;
        apply1(&handle(Scatter { dim }), &[self, index, &source])
    }

    /// This tensor with `source[i][j]` added at `[index[i][j]][j]` (for dim 0). `source` may be
    /// larger than `index`: its leading corner is read.
    ///
    /// # Errors
    /// When shapes do not fit, dtypes differ or an index is out of range.
    #[track_caller]
    pub fn scatter_add(&self, dim: isize, index: &Tensor, source: &Tensor) -> Result<Tensor> {
        let dim = self.shape().dim("scatter_add", dim)?;
        let source = corner("scatter_add", source, index)?;
        apply1(&handle(ScatterAdd { dim }), &[self, index, &source])
    }

    /// The slices along `dim` named by `index` (rank 1), in its order.
    ///
    /// # Errors
    /// When the index has another rank or is out of range.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
    /// let index = Tensor::from_vec(vec![1i64, 1, 0], [3])?;
    /// assert_eq!(x.index_select(0, &index)?.to_vec::<f32>()?, [3.0, 4.0, 3.0, 4.0, 1.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn index_select(&self, dim: isize, index: &Tensor) -> Result<Tensor> {
        let dim = self.shape().dim("index_select", dim)?;
        apply1(&handle(IndexSelect { dim }), &[self, index])
    }

    /// This tensor with the slices of `source` along `dim` added at `index` (rank 1).
    ///
    /// # Errors
    /// When shapes do not fit, dtypes differ or an index is out of range.
    #[track_caller]
    pub fn index_add(&self, dim: isize, index: &Tensor, source: &Tensor) -> Result<Tensor> {
        let dim = self.shape().dim("index_add", dim)?;
        apply1(&handle(IndexAdd { dim }), &[self, index, source])
    }

    /// [`Tensor::gather`] after this tensor and `index` were broadcast against each other outside
    /// `dim`: the companion of `argmax` and `argsort`. Negative indices count from the end.
    ///
    /// # Errors
    /// When ranks differ, shapes do not broadcast or an index is out of range.
    #[track_caller]
    pub fn take_along_dim(&self, index: &Tensor, dim: isize) -> Result<Tensor> {
        const OP: &str = "take_along_dim";
        let d = self.shape().dim(OP, dim)?;
        if self.rank() != index.rank() {
            return Err(Error::shape(
                OP,
                format!("an index of the rank of {}", self.shape()),
                index.shape(),
            ));
        }
        check_index(OP, &index.aval())?;
        // The size of the dimension may be no i8.
        let mut index = match index.dtype() {
            DType::I8 => index.to_dtype(DType::I64)?,
            _ => index.clone(),
        };
        if index.dtype() != DType::U8 {
            let from_end = index.add_scalar(self.size(dim)? as f64)?;
            index = Self::where_(&index.lt_scalar(0.0)?, &from_end, &index)?;
        }
        let index = &index;
        if self.rank() == 0 {
            return self.gather(dim, index);
        }
        let (mut mine, mut theirs) = (self.shape().clone(), index.shape().clone());
        let (own, count) = (mine[d], theirs[d]);
        mine.dims_mut()[d] = 1;
        theirs.dims_mut()[d] = 1;
        let mut full = mine.broadcast(&theirs, OP)?;
        full.dims_mut()[d] = own;
        let x = self.broadcast_to(&full)?;
        full.dims_mut()[d] = count;
        x.gather(dim, &index.broadcast_to(full)?)
    }

    /// Rows of this table `[rows, width]` named by `indices` `[..]`, as `[.., width]`. The gradient
    /// adds up rows that were used more than once, in the order of the indices.
    ///
    /// # Errors
    /// When the table is not a matrix, the indices are no integers or out of range.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let table = Tensor::from_vec(vec![0.0f32, 0.5, 1.0, 1.5], [2, 2])?.requires_grad()?;
    /// let tokens = Tensor::from_vec(vec![1i64, 1], [2])?;
    /// let rows = table.embedding(&tokens)?;
    /// assert_eq!(rows.to_vec::<f32>()?, [1.0, 1.5, 1.0, 1.5]);
    /// rows.sum()?.backward()?;
    /// assert_eq!(table.grad().unwrap().to_vec::<f32>()?, [0.0, 0.0, 2.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn embedding(&self, indices: &Tensor) -> Result<Tensor> {
        apply1(&handle(Embedding), &[self, indices])
    }

    /// 1 at each index of a new last dimension of `classes` entries, 0 elsewhere; i64.
    ///
    /// # Errors
    /// When the dtype is no integer or an index is out of range.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let hot = Tensor::from_vec(vec![2i64, 0], [2])?.one_hot(3)?;
    /// assert_eq!(hot.to_vec::<i64>()?, [0, 0, 1, 1, 0, 0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn one_hot(&self, classes: usize) -> Result<Tensor> {
        apply1(&handle(OneHot { classes }), &[self])
    }
}

/// A random base shape, a dimension of it, and an index that fits inside.
fn indexed(g: &mut Gen) -> (Shape, isize, Tensor) {
    let mut shape = g.shape(0..=3);
    let dim = if shape.rank() > 0 {
        g.range(0, shape.rank())
    } else {
        0
    };
    if shape.rank() > 0 {
        shape.dims_mut()[dim] = shape[dim].max(1);
    }
    let mut inner: Shape = shape.iter().map(|&n| g.range(n.min(1), n + 1)).collect();
    if shape.rank() > 0 {
        inner.dims_mut()[dim] = g.range(0, 5);
    }
    let limit = shape.get(dim).copied().unwrap_or(1);
    let index = g.indices(inner, limit);
    (shape, dim as isize, index)
}

/// A random shape, a dimension, and a rank-1 index into it.
fn selected_sample(g: &mut Gen) -> (Shape, isize, Tensor) {
    let mut shape = g.shape(1..=3);
    let dim = g.range(0, shape.rank());
    shape.dims_mut()[dim] = shape[dim].max(1);
    let count = g.range(0, 5);
    let index = g.indices([count], shape[dim]);
    (shape, dim as isize, index)
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "gather",
        kind: "linear",
        sample: |g| {
            let (shape, dim, index) = indexed(g);
            let x = g.tensor(shape, -2.0, 2.0);
            Ok(Sample::one(vec![x, index], move |t| {
                t[0].sin()?.gather(dim, &t[1])?.square()
            }))
        },
    },
    Entry {
        name: "scatter",
        kind: "linear",
        sample: |g| {
            let (shape, dim, index) = indexed(g);
            let larger: Shape = index.dims().iter().map(|&n| n + g.range(0, 2)).collect();
            let inputs = vec![
                g.tensor(shape, -2.0, 2.0),
                index,
                g.tensor(larger, -2.0, 2.0),
            ];
            Ok(Sample::one(inputs, move |t| {
                t[0].sin()?.scatter(dim, &t[1], &t[2].square()?)?.square()
            }))
        },
    },
    Entry {
        name: "scatter_add",
        kind: "linear",
        sample: |g| {
            let (shape, dim, index) = indexed(g);
            let larger: Shape = index.dims().iter().map(|&n| n + g.range(0, 2)).collect();
            let inputs = vec![
                g.tensor(shape, -2.0, 2.0),
                index,
                g.tensor(larger, -2.0, 2.0),
            ];
            Ok(Sample::one(inputs, move |t| {
                t[0].sin()?
                    .scatter_add(dim, &t[1], &t[2].square()?)?
                    .square()
            }))
        },
    },
    Entry {
        name: "index_select",
        kind: "linear",
        sample: |g| {
            let (shape, dim, index) = selected_sample(g);
            let x = g.tensor(shape, -2.0, 2.0);
            Ok(Sample::one(vec![x, index], move |t| {
                t[0].sin()?.index_select(dim, &t[1])?.square()
            }))
        },
    },
    Entry {
        name: "index_add",
        kind: "linear",
        sample: |g| {
            let (shape, dim, index) = selected_sample(g);
            let mut source = shape.clone();
            source.dims_mut()[dim as usize] = index.numel();
            let inputs = vec![
                g.tensor(shape, -2.0, 2.0),
                index,
                g.tensor(source, -2.0, 2.0),
            ];
            Ok(Sample::one(inputs, move |t| {
                t[0].sin()?.index_add(dim, &t[1], &t[2].square()?)?.square()
            }))
        },
    },
    Entry {
        name: "take_along_dim",
        kind: "linear",
        sample: |g| {
            let mut shape = g.shape(1..=3);
            let dim = g.range(0, shape.rank());
            shape.dims_mut()[dim] = shape[dim].max(1);
            let mut index: Shape = shape
                .iter()
                .map(|&n| if g.once_in(3) { 1 } else { n })
                .collect();
            index.dims_mut()[dim] = g.range(0, 4);
            let limit = shape[dim];
            let inputs = vec![g.tensor(shape, -2.0, 2.0), g.indices(index, limit)];
            Ok(Sample::one(inputs, move |t| {
                t[0].take_along_dim(&t[1], dim as isize)?.square()
            }))
        },
    },
    Entry {
        name: "embedding",
        kind: "linear",
        sample: |g| {
            let (rows, width) = (g.range(1, 5), g.range(0, 4));
            let shape = g.shape(0..=3);
            let index = g.indices(shape, rows);
            let table = g.tensor([rows, width], -2.0, 2.0);
            Ok(Sample::one(vec![table, index], |t| {
                t[0].embedding(&t[1])?.sin()
            }))
        },
    },
    Entry {
        name: "one_hot",
        kind: "zero",
        sample: |g| {
            let shape = g.shape(0..=3);
            let index = g.indices(shape, 3);
            Ok(Sample::one(vec![index], |t| t[0].one_hot(4)).order(0))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that is the head too: its two gradients add up, whichever comes first.
    #[test]
    fn tied_tables_add_their_gradients() -> Result<()> {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let table = Tensor::randn([5, 3], dtype, 1)?;
            let tokens = Tensor::from_vec(vec![4i64, 0, 4], [3])?;
            let parts = |embed: &Tensor, head: &Tensor| -> Result<Tensor> {
                let x = embed.embedding(&tokens)?.sin()?;
                x.matmul(&head.t()?)?.sin()?.sum()
            };
            let tied = table.requires_grad()?;
            parts(&tied, &tied)?.backward()?;
            let (embed, head) = (table.requires_grad()?, table.requires_grad()?);
            parts(&embed, &head)?.backward()?;
            let want = embed.grad().unwrap().add(&head.grad().unwrap())?;
            let found = tied.grad().unwrap();
            let unit = if dtype == DType::BF16 { 0.02 } else { 1e-6 };
            for (f, w) in found
                .array()
                .to_f64_vec()
                .iter()
                .zip(want.array().to_f64_vec())
            {
                assert!((f - w).abs() <= unit * w.abs().max(1.0), "{dtype}: {f} {w}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_last_of_several_writes_stays_and_alone_gets_the_gradient() {
        let base = Tensor::from_vec(vec![9.0f64, 9.0], [2])
            .unwrap()
            .requires_grad()
            .unwrap();
        let source = Tensor::from_vec(vec![1.0f64, 2.0, 3.0], [3])
            .unwrap()
            .requires_grad()
            .unwrap();
        let index = Tensor::from_vec(vec![0i64, 0, 0], [3]).unwrap();
        let out = base.scatter(0, &index, &source).unwrap();
        assert_eq!(out.to_vec::<f64>().unwrap(), [3.0, 9.0]);
        out.sum().unwrap().backward().unwrap();
        assert_eq!(base.grad().unwrap().to_vec::<f64>().unwrap(), [0.0, 1.0]);
        assert_eq!(
            source.grad().unwrap().to_vec::<f64>().unwrap(),
            [0.0, 0.0, 1.0]
        );
    }

    #[test]
    fn wrong_indices_are_refused_by_name() {
        let x = Tensor::zeros([3, 2], DType::F32);
        let far = Tensor::from_vec(vec![0i64, 5], [2, 1]).unwrap();
        let say = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            say(x.embedding(&far)),
            "[embedding] expected indices in 0..3, got 5 at position [1, 0]"
        );
        let negative = Tensor::from_vec(vec![-1i64], [1]).unwrap();
        assert!(say(x.index_select(0, &negative)).contains("got -1"));
        assert!(say(x.gather(1, &x)).contains("integer index"));
        let wide = Tensor::zeros([4, 1], DType::I64);
        assert!(say(x.gather(1, &wide)).contains("no larger outside dimension 1"));
        assert!(say(x.scatter(1, &far, &x.sum().unwrap())).contains("source"));
        assert!(say(far.one_hot(5)).contains("0..5"));
        assert!(x.take_along_dim(&negative, 0).is_err());
        let none = x.gather(1, &Tensor::zeros([0], DType::I64)).unwrap();
        assert_eq!(none.dims(), [0]);
        let before = Tensor::from_vec(vec![-4i64], [1, 1]).unwrap();
        assert!(say(x.take_along_dim(&before, 0)).contains("got -1"));
        assert!(x.index_add(0, &Tensor::zeros([2], DType::I64), &x).is_err());
    }

    #[test]
    fn take_along_dim_counts_from_the_end() {
        let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2]).unwrap();
        let index = Tensor::from_vec(vec![-1i64, -2], [1, 2]).unwrap();
        let taken = x.take_along_dim(&index, 0).unwrap();
        assert_eq!(taken.to_vec::<f32>().unwrap(), [3.0, 2.0]);
        let byte = Tensor::from_vec(vec![1u8, 0], [1, 2]).unwrap();
        let taken = x.take_along_dim(&byte, 0).unwrap();
        assert_eq!(taken.to_vec::<f32>().unwrap(), [3.0, 2.0]);
    }

    /// Shapes that the methods cannot produce, but a hand-made application could.
    #[test]
    fn the_ops_check_operands_of_gradients() {
        let a = |shape: &[usize]| Aval::new(shape, DType::F32);
        let at = |shape: &[usize]| Aval::new(shape, DType::I64);
        let back = EmbeddingBackward { rows: 9 };
        let infer = |g: &Aval, i: &Aval| back.infer(&[g, i]).ok().map(|o| o[0].shape.to_vec());
        assert_eq!(infer(&a(&[4, 5, 2]), &at(&[4, 5])), Some(vec![9, 2]));
        assert_eq!(infer(&a(&[2]), &at(&[])), Some(vec![9, 2]));
        assert_eq!(infer(&a(&[4, 5, 2]), &at(&[5, 4])), None);
        assert_eq!(infer(&a(&[]), &at(&[])), None);
        assert_eq!(infer(&a(&[4, 2]), &a(&[4])), None);
        let scatter = |b: &Aval, i: &Aval, s: &Aval| infer_scatter("op", 0, &[b, i, s]).is_ok();
        assert!(scatter(&a(&[3, 2]), &at(&[5, 1]), &a(&[5, 1])));
        assert!(!scatter(&a(&[3, 2]), &at(&[5, 1]), &a(&[5, 2])));
        assert!(!scatter(
            &a(&[3, 2]),
            &at(&[5, 1]),
            &Aval::new([5, 1], DType::F64)
        ));
        let add = |s: &Aval| {
            IndexAdd { dim: 0 }
                .infer(&[&a(&[3, 2]), &at(&[5]), s])
                .is_ok()
        };
        assert!(add(&a(&[5, 2])));
        assert!(!add(&a(&[5, 1])) && !add(&Aval::new([5, 2], DType::F64)));
        assert!(Gather { dim: 0 }.linear_in(0) && !Gather { dim: 0 }.linear_in(1));
        assert!(ScatterAdd { dim: 0 }.linear_in(2) && !ScatterAdd { dim: 0 }.linear_in(1));
        assert!(Scatter { dim: 0 }.linear_in(2) && !Scatter { dim: 0 }.linear_in(1));
        assert!(IndexSelect { dim: 0 }.linear_in(0) && !IndexSelect { dim: 0 }.linear_in(1));
        assert!(IndexAdd { dim: 0 }.linear_in(0) && !IndexAdd { dim: 0 }.linear_in(1));
        assert!(Embedding.linear_in(0) && !Embedding.linear_in(1));
        assert!(back.linear_in(0) && !back.linear_in(1));
    }
}
