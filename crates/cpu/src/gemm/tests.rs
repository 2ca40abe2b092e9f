//! Every engine against the plain definition, in all layouts, at all edges, at every cut.

use entrenar_base::{Element, Philox, bf16, f16};

use super::*;
use crate::alloc::Scratch;

fn numbers(n: usize, stream: u64) -> Vec<f64> {
    let r = Philox::new(5, stream);
    (0..n as u64).map(|i| r.normal(i)).collect()
}

fn as_type<T: Element>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&v| T::from_f64(v)).collect()
}

fn turned<T: Copy>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..rows * columns)
        .map(|e| x[e % rows * columns + e / rows])
        .collect()
}

/// Σ a·b and Σ |a·b| for each element.
fn plain(m: usize, n: usize, k: usize, a: &[f64], b: &[f64]) -> Vec<(f64, f64)> {
    let products = |e: usize| (0..k).map(move |p| a[e / n * k + p] * b[p * n + e % n]);
    (0..m * n)
        .map(|e| (products(e).sum(), products(e).map(f64::abs).sum()))
        .collect()
}

fn source<T: Element>(x: &[T], kind: Kind, row: usize, column: usize) -> Source {
    Source {
        data: x.as_ptr().cast(),
        kind,
        row: row as isize,
        column: column as isize,
    }
}

/// `a · b` by engine `E`, rows from `from` on.
fn run<E: Engine>(
    (m, n, k): (usize, usize, usize),
    a: Source,
    b: Right<'_, E>,
    alpha: E::S,
    old: Option<E::S>,
    from: usize,
) -> Vec<E::S> {
    let mut c = vec![old.unwrap_or(E::S::from_f64(f64::NAN)); m * n];
    let problem = Problem::<E> {
        k,
        alpha,
        a,
        b,
        round: false,
        out: Out {
            c: c.as_mut_ptr(),
            width: n,
            accumulate: old.is_some(),
            finish: None,
            first_row: 0,
        },
    };
    // SAFETY: all three matrices lie inside their vectors.
    unsafe { panel::run(&problem, from..m, 0..n) };
    c.split_off(from * n)
}

/// All layouts of one product of `A` and `B` give the same bits, which are close to the truth.
fn check<E: Engine, A: Element, B: Element>(
    sizes: (usize, usize, usize),
    kinds: (Kind, Kind),
    eps: f64,
) {
    let (m, n, k) = sizes;
    let one = E::S::from_f64(1.0);
    let (a, b) = (
        as_type::<A>(&numbers(m * k, 1)),
        as_type::<B>(&numbers(k * n, 2)),
    );
    // What the engine reads: for dot products of bf16, values rounded to it.
    let round = |x: f64| crate::cast::round_bf16(x as f32).to_f64();
    let seen = |x: f64| if E::GROUP == 2 { round(x) } else { x };
    let wide_a: Vec<f64> = a.iter().map(|x| seen(x.to_f64())).collect();
    let wide_b: Vec<f64> = b.iter().map(|x| seen(x.to_f64())).collect();
    let exact = plain(m, n, k, &wide_a, &wide_b);
    let (at, bt) = (turned(&a, m, k), turned(&b, k, n));
    let spread_a: Vec<A> = a.iter().flat_map(|&x| [x, A::from_f64(9.0)]).collect();
    let spread_b: Vec<B> = b.iter().flat_map(|&x| [x, B::from_f64(9.0)]).collect();
    let lefts = [
        source(&a, kinds.0, k, 1),
        source(&at, kinds.0, 1, m),
        source(&spread_a, kinds.0, 2 * k, 2),
    ];
    let rights = [
        source(&b, kinds.1, n, 1),
        source(&bt, kinds.1, 1, k),
        source(&spread_b, kinds.1, 2 * n, 2),
    ];
    let direct = run::<E>(sizes, lefts[0], Right::Strided(rights[0]), one, None, 0);
    for (x, (y, size)) in direct.iter().zip(&exact) {
        // Each of k + 1 roundings is relative to a partial sum no larger than the sum of sizes.
        let room = eps * (k as f64 + 1.0) * size + f64::MIN_POSITIVE;
        assert!(
            (x.to_f64() - y).abs() <= room,
            "{sizes:?} {kinds:?}: {x:?} {y}"
        );
    }
    let same =
        |x: &[E::S], what: &str| assert!(x == direct, "{sizes:?} {kinds:?}: {what} changes bits");
    for a in lefts {
        for b in rights {
            same(
                &run::<E>(sizes, a, Right::Strided(b), one, None, 0),
                "the layout",
            );
        }
    }
    for b in rights {
        // SAFETY: the matrix lies inside its vector.
        let data: Scratch<E::P> = unsafe { packed::<E>(b, k, n, false) };
        let b = Right::Packed {
            data: &data,
            first: 0,
        };
        same(&run::<E>(sizes, lefts[0], b, one, None, 0), "packing");
    }
    let cut = m / 2;
    let below = run::<E>(sizes, lefts[0], Right::Strided(rights[0]), one, None, cut);
    assert!(below == direct[cut * n..], "{sizes:?}: a cut changes bits");
    // Accumulating and scaling: one more rounding each.
    let (half, old) = (E::S::from_f64(0.5), 3.0);
    let sum = run::<E>(
        sizes,
        lefts[0],
        Right::Strided(rights[0]),
        half,
        Some(E::S::from_f64(old)),
        0,
    );
    for (x, (y, size)) in sum.iter().zip(&exact) {
        let room = eps * (k as f64 + 2.0) * (size + old);
        assert!(
            (x.to_f64() - (old + 0.5 * y)).abs() <= room,
            "{sizes:?}: accumulated"
        );
    }
}

/// What follows a product sees the sums that a bare product gives, old values included.
fn check_finish<E: Engine<S = f32>>((m, n, k): (usize, usize, usize), accumulate: bool) {
    let a = as_type::<bf16>(&numbers(m * k, 1));
    let b = as_type::<bf16>(&numbers(k * n, 2));
    let (a, b) = (source(&a, Kind::Bf16, k, 1), source(&b, Kind::Bf16, n, 1));
    let old = 3.0;
    let sizes = (m, n, k);
    let bare = run::<E>(
        sizes,
        a,
        Right::Strided(b),
        0.5,
        accumulate.then_some(old),
        0,
    );
    let mut c = vec![bf16::from_f32(old); m * n];
    let finish = Epilogue {
        width: n,
        bias: None,
        activation: crate::product::Activation::None,
        residual: None,
        preactivation: None,
        output: Rows {
            data: c.as_mut_ptr().cast(),
            kind: Kind::Bf16,
        },
    };
    let problem = Problem::<E> {
        k,
        alpha: 0.5,
        a,
        b: Right::Strided(b),
        round: true,
        out: Out {
            c: std::ptr::null_mut(),
            width: 0,
            accumulate,
            finish: Some(&finish),
            first_row: 0,
        },
    };
    // SAFETY: all three matrices lie inside their vectors.
    unsafe { panel::run(&problem, 0..m, 0..n) };
    let want: Vec<bf16> = bare.into_iter().map(crate::cast::round_bf16).collect();
    assert!(c == want, "{sizes:?}: finished, accumulate {accumulate}");
}

#[test]
fn what_follows_sees_the_sums_of_bare_products() {
    for sizes in [
        (33, 40, 1100),
        (60, 40, 8200),
        (7, 9, 4097),
        (300, 33, 513),
        (5, 3, 0),
    ] {
        for accumulate in [false, true] {
            check_finish::<Single>(sizes, accumulate);
            #[cfg(target_arch = "x86_64")]
            if engine::can_dot() && crate::simd::level() == crate::simd::Level::Avx512 {
                check_finish::<Dot>(sizes, accumulate);
            }
            #[cfg(target_arch = "x86_64")]
            if crate::simd::amx::available() && crate::simd::level() == crate::simd::Level::Avx512 {
                check_finish::<Tiles>(sizes, accumulate);
            }
        }
    }
}

/// Subnormal numbers are zeros in every layout, or in none.
#[test]
fn the_layout_of_subnormals_changes_no_bit() {
    let edge = f32::from_bits(0x007f_ffff);
    let a = vec![edge, -edge, 1.0, edge, 2.0, -edge, 3.0, edge];
    let spread: Vec<f32> = a.iter().flat_map(|&x| [x, 9.0]).collect();
    let b = vec![1.0f32; 4];
    let check = |run: &dyn Fn(Source, Source) -> Vec<f32>| {
        let right = source(&b, Kind::F32, 1, 1);
        let direct = run(source(&a, Kind::F32, 4, 1), right);
        assert_eq!(direct, run(source(&spread, Kind::F32, 8, 2), right));
        assert_eq!(
            direct,
            run(source(&turned(&a, 2, 4), Kind::F32, 1, 2), right)
        );
    };
    let sizes = (2, 1, 4);
    check(&|a, b| run::<Single>(sizes, a, Right::Strided(b), 1.0, None, 0));
    #[cfg(target_arch = "x86_64")]
    if engine::can_dot() && crate::simd::level() == crate::simd::Level::Avx512 {
        check(&|a, b| run::<Dot>(sizes, a, Right::Strided(b), 1.0, None, 0));
    }
    #[cfg(target_arch = "x86_64")]
    if crate::simd::amx::available() && crate::simd::level() == crate::simd::Level::Avx512 {
        check(&|a, b| run::<Tiles>(sizes, a, Right::Strided(b), 1.0, None, 0));
    }
}

fn check_all(sizes: (usize, usize, usize)) {
    use Kind::{Bf16, F16, F32, F64};
    const SINGLE: f64 = f32::EPSILON as f64;
    check::<Single, f32, f32>(sizes, (F32, F32), SINGLE);
    check::<engine::Double, f64, f64>(sizes, (F64, F64), f64::EPSILON);
    check::<Single, bf16, f32>(sizes, (Bf16, F32), SINGLE);
    check::<Single, f32, f16>(sizes, (F32, F16), SINGLE);
    check::<Single, f16, bf16>(sizes, (F16, Bf16), SINGLE);
    #[cfg(target_arch = "x86_64")]
    if engine::can_dot() && crate::simd::level() == crate::simd::Level::Avx512 {
        check::<Dot, bf16, bf16>(sizes, (Bf16, Bf16), SINGLE);
        check::<Dot, bf16, f32>(sizes, (Bf16, F32), SINGLE);
        check::<Dot, f32, f16>(sizes, (F32, F16), SINGLE);
    }
    #[cfg(target_arch = "x86_64")]
    if crate::simd::amx::available() && crate::simd::level() == crate::simd::Level::Avx512 {
        check::<Tiles, bf16, bf16>(sizes, (Bf16, Bf16), SINGLE);
        check::<Tiles, bf16, f32>(sizes, (Bf16, F32), SINGLE);
        check::<Tiles, f32, f16>(sizes, (F32, F16), SINGLE);
    }
}

/// All layouts, cuts, packed operands and old values of a product of bytes, against plain sums.
fn check_bytes<E: Engine<S = i32>>(sizes: (usize, usize, usize)) {
    let (m, n, k) = sizes;
    let byte = |x: f64| (x * 90.0).clamp(-128.0, 127.0) as i8;
    let [a, b]: [Vec<i8>; 2] =
        [(m * k, 1), (k * n, 2)].map(|(n, s)| numbers(n, s).into_iter().map(byte).collect());
    let sum = |e: usize| {
        let product = |p| i32::from(a[e / n * k + p]) * i32::from(b[p * n + e % n]);
        (0..k).map(product).sum::<i32>()
    };
    let exact: Vec<i32> = (0..m * n).map(sum).collect();
    let (at, bt) = (turned(&a, m, k), turned(&b, k, n));
    let spread = |x: &[i8]| x.iter().flat_map(|&x| [x, 9]).collect::<Vec<i8>>();
    let (spread_a, spread_b) = (spread(&a), spread(&b));
    let lefts = [
        source(&a, Kind::I8, k, 1),
        source(&at, Kind::I8, 1, m),
        source(&spread_a, Kind::I8, 2 * k, 2),
    ];
    let rights = [
        source(&b, Kind::I8, n, 1),
        source(&bt, Kind::I8, 1, k),
        source(&spread_b, Kind::I8, 2 * n, 2),
    ];
    for b in rights {
        for a in lefts {
            let got = run::<E>(sizes, a, Right::Strided(b), 1, None, 0);
            assert_eq!(got, exact, "{sizes:?}");
        }
        // SAFETY: the matrix lies inside its vector.
        let data: Scratch<E::P> = unsafe { packed::<E>(b, k, n, false) };
        let (data, first) = (&*data, 0);
        let got = run::<E>(
            sizes,
            lefts[0],
            Right::Packed { data, first },
            1,
            None,
            m / 2,
        );
        assert_eq!(got, exact[m / 2 * n..], "{sizes:?}: packed, cut");
        let got = run::<E>(sizes, lefts[0], Right::Strided(b), -3, Some(7), 0);
        let want: Vec<i32> = exact.iter().map(|x| 7 - 3 * x).collect();
        assert_eq!(got, want, "{sizes:?}: accumulated");
    }
}

fn check_bytes_all(sizes: (usize, usize, usize)) {
    check_bytes::<Words>(sizes);
    #[cfg(target_arch = "x86_64")]
    if has_quads() {
        check_bytes::<Quads>(sizes);
    }
}

/// Extremes only: where saturating instructions would show, and sums that wrap.
#[test]
fn extreme_bytes_are_exact() {
    for (x, y) in [(i8::MIN, i8::MIN), (i8::MIN, i8::MAX), (i8::MAX, i8::MAX)] {
        for k in [1, 2, 3, 4, 5, 63, 1000, 140_000] {
            let (a, b) = (vec![x; 3 * k], vec![y; k * 17]);
            let want = (i64::from(x) * i64::from(y) * k as i64) as i32;
            let sizes = (3, 17, k);
            let (a, b) = (source(&a, Kind::I8, k, 1), source(&b, Kind::I8, 17, 1));
            let words = run::<Words>(sizes, a, Right::Strided(b), 1, None, 0);
            assert_eq!(words, [want; 51], "{x} {y} {k}");
            #[cfg(target_arch = "x86_64")]
            if has_quads() {
                let quads = run::<Quads>(sizes, a, Right::Strided(b), 1, None, 0);
                assert_eq!(quads, [want; 51], "{x} {y} {k}");
            }
        }
    }
}

#[test]
fn every_edge_agrees_with_the_definition() {
    // A walk that meets every size up to 40 in each place many times.
    let random = Philox::new(7, 7);
    let size = |i: u64| (random.uniform(i) * 41.0) as usize;
    for i in 0..400 {
        check_all((size(3 * i), size(3 * i + 1), size(3 * i + 2)));
        check_bytes_all((size(3 * i), size(3 * i + 1), size(3 * i + 2)));
    }
    for i in 0..=40 {
        check_all((i, 40 - i, 7));
        check_all((3, i, 40));
        check_all((40, 33, i));
        check_bytes_all((i, 40 - i, 7));
        check_bytes_all((3, i, 40));
        check_bytes_all((40, 33, i));
    }
}

#[test]
fn large_sizes_agree_with_the_definition() {
    for sizes in [
        (1, 40, 300),
        (1, 700, 513),
        (2, 33, 17),
        (64, 64, 64),
        (13, 33, 257),
        (200, 70, 300),
        (25, 1100, 40),
        (300, 130, 520),
        (31, 1, 700),
        (7, 9, 4097),
        (60, 40, 8200),
    ] {
        check_all(sizes);
        check_bytes_all(sizes);
    }
}
