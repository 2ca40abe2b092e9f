//! Generators for property tests: arrays of small shapes under all kinds of layouts.

use entrenar_base::{Array, DType, Layout, Shape};
use proptest::prelude::*;
use std::sync::{Mutex, PoisonError};

/// An f32 array of rank 0 to 4 with sizes 0 to 6, under a random chain of views: permuted,
/// sliced, flipped, broadcast. Values are small multiples of 1/8, exact in every float dtype.
pub(crate) fn strided() -> impl Strategy<Value = Array> {
    (
        prop::collection::vec(0usize..7, 0..5),
        prop::collection::vec(any::<u8>(), 12),
        any::<u16>(),
    )
        .prop_map(|(dims, choices, seed)| view(&dims, &choices, seed))
}

/// Values for `n` elements: multiples of 1/8 in -16..16.
pub(crate) fn values(n: usize, seed: u16) -> Vec<f32> {
    let mut state = seed as u64 * 2 + 1;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((state >> 40) % 256) as f32 / 8.0 - 16.0
        })
        .collect()
}

fn view(dims: &[usize], choices: &[u8], seed: u16) -> Array {
    let n = dims.iter().product();
    let mut a = Array::from_vec(values(n, seed), dims).unwrap();
    for pair in choices.chunks(2) {
        let rank = a.rank();
        if rank == 0 {
            break;
        }
        let d = pair[1] as usize % rank;
        let size = a.dims()[d];
        a = match pair[0] % 7 {
            0 => a.transpose(d as isize, 0).unwrap(),
            1 => a.transpose(d as isize, -1).unwrap(),
            2 => a.flip(d),
            3 if size > 1 => a.slice(d, 1, size, 1).unwrap(),
            4 if size > 2 => a.slice(d, 0, size, 2).unwrap(),
            5 if size > 0 => {
                let mut shape = a.shape().clone();
                a = a.slice(d, 0, 1, 1).unwrap();
                shape.dims_mut()[d] = size;
                a.broadcast_to(&shape).unwrap()
            }
            _ => a,
        };
    }
    a
}

/// The same elements under another random layout: each dimension stored in a random order, with
/// gaps.
pub(crate) fn scattered(a: &Array, seed: u16) -> Array {
    let rank = a.rank();
    let mut order: Vec<usize> = (0..rank).collect();
    for i in (1..rank).rev() {
        order.swap(i, (seed as usize / (i + 1)) % (i + 1));
    }
    // Stored sizes twice as large as needed; dimension order[0] outermost.
    let mut strides = vec![0isize; rank];
    let mut step = 1;
    for &d in order.iter().rev() {
        strides[d] = step * if seed & 1 == 1 { 2 } else { 1 };
        step *= 2 * a.dims()[d].max(1) as isize;
    }
    let mut storage = Array::zeros([step as usize * 2], a.dtype());
    let layout = Layout::strided(a.shape().clone(), &strides, 0, step as usize * 2).unwrap();
    entrenar_base::dispatch!(a.dtype(), T => {
        let out = storage.make_mut::<T>().unwrap();
        for (at, x) in layout.positions().zip(a.to_vec::<T>().unwrap()) {
            out[at] = x;
        }
    });
    storage.as_strided(a.shape().clone(), &strides, 0).unwrap()
}

/// Runs `body` with a team of `n`. The size is global: those who set it take turns.
pub(crate) fn with_threads<R>(n: usize, body: impl FnOnce() -> R) -> R {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let before = crate::team::threads();
    crate::team::set_threads(n);
    let result = body();
    crate::team::set_threads(before);
    result
}

/// Runs `body` with one thread and with two; results must be the same bits.
pub(crate) fn same_at_any_thread_count(body: impl Fn() -> Array) {
    let one = with_threads(1, &body);
    let two = with_threads(2, &body);
    assert_eq!(one.shape(), two.shape());
    assert_eq!(one.as_bytes(), two.as_bytes());
}

/// An array of `dtype` with values of [`values`], contiguous.
pub(crate) fn array(dims: &[usize], dtype: DType, seed: u16) -> Array {
    let n = Shape::from(dims).numel();
    Array::from_vec(values(n, seed), dims).unwrap().cast(dtype)
}
