//! CPU kernels of entrenar, one file per operation family.
//!
//! Entry points take `&Array`s of any layout and return fresh contiguous `Array`s; the typed
//! kernels behind them work on `View`s and slices. This crate knows nothing of tensors and
//! gradients: a backward kernel is just another function of arrays.
