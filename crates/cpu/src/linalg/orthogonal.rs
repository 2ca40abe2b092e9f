//! Orthogonal factorisations: QR by Householder reflections, eigenvalues of symmetric matrices by
//! Jacobi rotations.

use entrenar_base::{Array, DType, Error, Result, Shape};

use super::matrices;
use crate::alloc::Scratch;
use crate::kit::{self, Real, with_real};
use crate::team::{self, Shared};

/// Sweeps of Jacobi rotations before giving up; ten are usual.
const SWEEPS: usize = 60;

/// Orthonormal Q and upper triangular R with A = Q·R, for matrices `[.., M, N]`.
///
/// With K = min(M, N) the factors are `[.., M, K]` and `[.., K, N]`; when `complete`, `[.., M, M]`
/// and `[.., M, N]`. Signs follow LAPACK: the diagonal of R may be negative. (Golub, Van Loan,
/// *Matrix Computations*, 5.2.)
///
/// # Errors
/// When the rank is below 2 or the dtype is no float.
///
/// ```
/// use entrenar_base::Array;
/// let a = Array::from_vec(vec![3.0f64, 4.0], [2, 1])?;
/// let (_, r) = entrenar_cpu::linalg::qr(&a, false)?;
/// assert!((r.to_vec::<f64>()?[0] + 5.0).abs() < 1e-14);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn qr(a: &Array, complete: bool) -> Result<(Array, Array)> {
    const OP: &str = "qr";
    let compute = kit::compute_dtype(OP, a.dtype())?;
    let (batch, m, n) = matrices(OP, a)?;
    let k = if complete { m } else { m.min(n) };
    let lead = &a.dims()[..a.rank() - 2];
    let shape = |rows, columns| -> Shape { lead.iter().copied().chain([rows, columns]).collect() };
    let dense = kit::dense(a, compute)?;
    let (q, r) = with_real!(compute, T => {
        let a = dense.as_slice::<T>()?;
        let mut r = Array::zeros(shape(k, n), compute);
        let rs = Shared::new(r.make_mut::<T>()?);
        let q = Array::build(shape(m, k), |q: &mut [T]| {
            let q = Shared::new(q);
            team::split(batch, (m * n * k) as f64, |range| {
                for b in range {
                    // SAFETY: every matrix is visited once.
                    let (q, r) = unsafe {
                        (q.slice(b * m * k..(b + 1) * m * k), rs.slice(b * k * n..(b + 1) * k * n))
                    };
                    reflect(&a[b * m * n..(b + 1) * m * n], q, r, (m, n, k));
                }
            });
        });
        (q, r)
    });
    Ok((kit::cast(&q, a.dtype())?, kit::cast(&r, a.dtype())?))
}

/// `x -= tau·v·(vᵀ·x)` for the rows of `x` (`[rows, width]`) from `first` on, columns `from..`;
/// v has a 1 in front of the entries given.
fn apply<T: Real>(x: &mut [T], width: usize, first: usize, from: usize, v: &[T], tau: T) {
    for c in from..width {
        let mut total = x[first * width + c];
        for (i, &v) in v.iter().enumerate() {
            total += v * x[(first + 1 + i) * width + c];
        }
        total *= tau;
        x[first * width + c] -= total;
        for (i, &v) in v.iter().enumerate() {
            x[(first + 1 + i) * width + c] -= v * total;
        }
    }
}

/// Factorises one matrix `[m, n]` into `q` `[m, k]` and `r` `[k, n]`.
fn reflect<T: Real>(a: &[T], q: &mut [T], r: &mut [T], (m, n, k): (usize, usize, usize)) {
    let mut work = Scratch::<T>::new(m * n);
    work.copy_from_slice(a);
    let steps = m.min(n);
    // Reflector j: tau and the m - j - 1 entries of v below its leading 1.
    let mut vectors: Vec<(T, Vec<T>)> = Vec::with_capacity(steps);
    for j in 0..steps {
        let alpha = work[j * n + j];
        let mut v: Vec<T> = (j + 1..m).map(|i| work[i * n + j]).collect();
        let below = kit::dot(&v, &v);
        let mut tau = T::ZERO;
        if below != T::ZERO {
            let norm = (alpha * alpha + below).sqrt();
            let beta = if alpha > T::ZERO { -norm } else { norm };
            tau = (beta - alpha) / beta;
            for v in &mut v {
                *v /= alpha - beta;
            }
        }
        apply(&mut work, n, j, j, &v, tau);
        vectors.push((tau, v));
    }
    for i in 0..k {
        for c in 0..n {
            r[i * n + c] = if c >= i { work[i * n + c] } else { T::ZERO };
        }
    }
    for i in 0..m {
        for c in 0..k {
            q[i * k + c] = if i == c { T::ONE } else { T::ZERO };
        }
    }
    for (j, (tau, v)) in vectors.iter().enumerate().rev() {
        apply(q, k, j, 0, v, *tau);
    }
}

/// Eigenvalues in ascending order `[.., N]` and orthonormal eigenvectors (the columns of
/// `[.., N, N]`) of symmetric matrices. Only the triangle named by `upper` is read.
///
/// Signs of the vectors are whatever the rotations leave. (Golub, Van Loan, *Matrix
/// Computations*, 8.5.)
///
/// # Errors
/// When the matrices are not square, the dtype is no float, or an entry is not finite.
///
/// ```
/// use entrenar_base::Array;
/// let a = Array::from_vec(vec![2.0f64, 1.0, 1.0, 2.0], [2, 2])?;
/// let (values, _) = entrenar_cpu::linalg::eigh(&a, false)?;
/// let values = values.to_vec::<f64>()?;
/// assert!((values[0] - 1.0).abs() < 1e-14 && (values[1] - 3.0).abs() < 1e-14);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn eigh(a: &Array, upper: bool) -> Result<(Array, Array)> {
    const OP: &str = "eigh";
    let compute = kit::compute_dtype(OP, a.dtype())?;
    let (batch, m, n) = matrices(OP, a)?;
    if m != n {
        return Err(Error::shape(OP, "square matrices", a.shape()));
    }
    // Jacobi's method is run in f64: it squares small differences.
    let dense = kit::dense(a, DType::F64)?;
    let source = dense.as_slice::<f64>()?;
    let mut values = Array::zeros(&a.dims()[..a.rank() - 1], DType::F64);
    let mut failures = vec![false; batch];
    let (all_values, failed) = (
        Shared::new(values.make_mut::<f64>()?),
        Shared::new(&mut failures),
    );
    let vectors = Array::build(a.shape(), |vectors: &mut [f64]| {
        let vectors = Shared::new(vectors);
        team::split(batch, (n * n * n) as f64 * 30.0, |range| {
            for b in range {
                // SAFETY: every matrix is visited once.
                let (vectors, values, failed) = unsafe {
                    (
                        vectors.slice(b * n * n..(b + 1) * n * n),
                        all_values.slice(b * n..(b + 1) * n),
                        failed.slice(b..b + 1),
                    )
                };
                let a = &source[b * n * n..(b + 1) * n * n];
                let entry = |i: usize, j: usize| {
                    let (low, high) = (i.min(j), i.max(j));
                    if upper {
                        a[low * n + high]
                    } else {
                        a[high * n + low]
                    }
                };
                failed[0] = !rotate(n, entry, values, vectors);
            }
        });
    });
    if let Some(b) = failures.iter().position(|&f| f) {
        return Err(Error::non_finite(
            OP,
            format!("matrix {b} of the batch has an entry that is not finite, or too large"),
        ));
    }
    Ok((
        kit::cast(&kit::cast(&values, compute)?, a.dtype())?,
        kit::cast(&vectors, a.dtype())?,
    ))
}

/// Diagonalises one matrix; false when that fails (entries that are not finite).
fn rotate(
    n: usize,
    entry: impl Fn(usize, usize) -> f64,
    values: &mut [f64],
    vectors: &mut [f64],
) -> bool {
    let mut a = Scratch::<f64>::new(n * n);
    let mut v = Scratch::<f64>::zeroed(n * n);
    for i in 0..n {
        for j in 0..n {
            a[i * n + j] = entry(i, j);
        }
        v[i * n + i] = 1.0;
    }
    let scale: f64 = a.iter().map(|x| x * x).sum();
    if !scale.is_finite() {
        return false;
    }
    let mut done = false;
    for _ in 0..SWEEPS {
        let off: f64 = (0..n)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| a[i * n + j] * a[i * n + j])
            .sum();
        if off <= scale * 1e-34 {
            done = true;
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let pivot = a[p * n + q];
                if pivot == 0.0 {
                    continue;
                }
                // The smaller root of t² + 2·theta·t - 1 = 0.
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * pivot);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for i in 0..n {
                    let (x, y) = (a[i * n + p], a[i * n + q]);
                    (a[i * n + p], a[i * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for i in 0..n {
                    let (x, y) = (a[p * n + i], a[q * n + i]);
                    (a[p * n + i], a[q * n + i]) = (c * x - s * y, s * x + c * y);
                    let (x, y) = (v[i * n + p], v[i * n + q]);
                    (v[i * n + p], v[i * n + q]) = (c * x - s * y, s * x + c * y);
                }
                (a[p * n + q], a[q * n + p]) = (0.0, 0.0);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[i * n + i].total_cmp(&a[j * n + j]));
    for (to, &from) in order.iter().enumerate() {
        values[to] = a[from * n + from];
        for i in 0..n {
            vectors[i * n + to] = v[i * n + from];
        }
    }
    done
}
