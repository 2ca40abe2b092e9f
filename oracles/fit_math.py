"""Fits the polynomials of crates/cpu/src/simd/math.rs.

Each is the interpolant of a function at Chebyshev nodes (within a factor of about two of the
minimax error), computed with 60 digits and printed as coefficients in increasing powers.
Run: python oracles/fit_math.py   (needs mpmath)
"""

import mpmath as mp

mp.mp.dps = 60


def fit(f, low, high, degree):
    n = degree + 1
    nodes = [mp.cos(mp.pi * (2 * k + 1) / (2 * n)) for k in range(n)]
    xs = [(low + high) / 2 + (high - low) / 2 * t for t in nodes]
    a = mp.matrix(n, n)
    b = mp.matrix(n, 1)
    for i, x in enumerate(xs):
        b[i] = f(x)
        for j in range(n):
            a[i, j] = x**j
    return list(mp.lu_solve(a, b))


def show(name, f, low, high, degree, digits=10):
    low, high = mp.mpf(low), mp.mpf(high)
    c = fit(f, low, high, degree)
    worst = mp.mpf(0)
    for k in range(2001):
        x = low + (high - low) * k / 2000
        y = f(x)
        worst = max(worst, abs(mp.polyval(c[::-1], x) / y - 1))
    print(f"{name}: relative error {mp.nstr(worst, 3)}")
    print("    [" + ", ".join(mp.nstr(x, digits) for x in c) + "]")


def series(f, power):
    """f(x) with its value at 0 filled in by a tiny offset (60 digits leave room)."""
    return lambda x: f(x if x != 0 else mp.mpf(10) ** -power)


half_ln2 = mp.log(2) / 2
# exp(r) = 1 + r + r^2 * EXP(r)
show("EXP", series(lambda r: (mp.exp(r) - 1 - r) / r**2, 15), -half_ln2, half_ln2, 5)
# log(1 + f) = f - f^2/2 + f^3 * LOG(f)
show("LOG", series(lambda f: (mp.log1p(f) - f + f * f / 2) / f**3, 12), mp.sqrt(0.5) - 1, mp.sqrt(2) - 1, 8)
# tanh(x) = x + x^3 * TANH(x^2), |x| <= 0.625
show("TANH", series(lambda u: (mp.tanh(mp.sqrt(u)) / mp.sqrt(u) - 1) / u, 15), 0, 0.625**2, 4)
# erf(x) = x + x * ERF_SMALL(x^2), |x| <= 1
show("ERF_SMALL", series(lambda u: mp.erf(mp.sqrt(u)) / mp.sqrt(u) - 1, 30), 0, 1, 6)
# erf(x) = 1 - exp(-x * ERF_LARGE(x)), 1 <= x <= 4
show("ERF_LARGE", lambda x: -mp.log(mp.erfc(x)) / x, 1, 4, 8)
# erfc(x) = exp(-x^2) * t * ERFC(t), t = 1 / (1 + x / 2), 0 <= x <= 11
show("ERFC", lambda t: mp.erfc(2 / t - 2) * mp.exp((2 / t - 2) ** 2) / t, mp.mpf(2) / 13, 1, 16, 19)
# atan(x) = x * ATAN(x^2), |x| <= 1
show("ATAN", series(lambda u: mp.atan(mp.sqrt(u)) / mp.sqrt(u), 30), 0, 1, 13, 19)
