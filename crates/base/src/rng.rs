//! Counter-based random numbers: Philox 4×32 with ten rounds.
//!
//! Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//! The n-th block is a pure function of (key, n): any thread may compute any part, and the bits
//! never depend on how the work was divided. Tests hold the authors' known answers.

/// A stream of random numbers named by a 64-bit seed and a 64-bit stream number.
///
/// ```
/// use entrenar_base::Philox;
/// let r = Philox::new(7, 0);
/// assert_eq!(r.block(3), Philox::new(7, 0).block(3)); // stateless
/// assert_ne!(r.block(3), Philox::new(7, 1).block(3)); // streams differ
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Philox {
    seed: u64,
    stream: u64,
}

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

#[inline(always)]
fn rounds(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = M0 as u64 * c[0] as u64;
        let p1 = M1 as u64 * c[2] as u64;
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(W0), k[1].wrapping_add(W1)];
    }
    c
}

impl Philox {
    /// The stream `stream` of seed `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Philox { seed, stream }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The stream number.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Another stream, derived from this one and `n`: children of different `n` are independent.
    pub fn fork(&self, n: u64) -> Philox {
        let b = rounds(
            [
                n as u32,
                (n >> 32) as u32,
                self.stream as u32,
                (self.stream >> 32) as u32,
            ],
            [self.seed as u32 ^ 0x5bd1_e995, (self.seed >> 32) as u32],
        );
        Philox {
            seed: b[0] as u64 | (b[1] as u64) << 32,
            stream: b[2] as u64 | (b[3] as u64) << 32,
        }
    }

    /// Four random words: block number `counter`.
    #[inline(always)]
    pub fn block(&self, counter: u64) -> [u32; 4] {
        rounds(
            [
                counter as u32,
                (counter >> 32) as u32,
                self.stream as u32,
                (self.stream >> 32) as u32,
            ],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }

    /// The `i`-th word of the stream (word `i % 4` of block `i / 4`).
    #[inline(always)]
    pub fn word(&self, i: u64) -> u32 {
        self.block(i / 4)[(i % 4) as usize]
    }

    /// The `i`-th 64-bit word.
    pub fn word64(&self, i: u64) -> u64 {
        let b = self.block(i / 2);
        let h = (i % 2) as usize * 2;
        b[h] as u64 | (b[h + 1] as u64) << 32
    }

    /// The `i`-th number in [0, 1), from the upper 24 bits: exact in f32.
    #[inline(always)]
    pub fn uniform(&self, i: u64) -> f32 {
        unit(self.word(i))
    }

    /// The `i`-th number in [0, 1) with 53 bits.
    pub fn uniform64(&self, i: u64) -> f64 {
        (self.word64(i) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// The `i`-th standard normal number (Box–Muller over one pair of 53-bit uniforms).
    pub fn normal(&self, i: u64) -> f64 {
        let u = ((self.word64(2 * (i / 2)) >> 11) as f64 + 1.0) * (1.0 / (1u64 << 53) as f64);
        let v = (self.word64(2 * (i / 2) + 1) >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        let r = (-2.0 * u.ln()).sqrt();
        let (s, c) = (std::f64::consts::TAU * v).sin_cos();
        r * if i.is_multiple_of(2) { c } else { s }
    }

    /// An unbiased integer in `0..n` for draw number `i` (Lemire's multiply; the bias of one
    /// 64-bit draw is below n / 2^64).
    pub fn below(&self, i: u64, n: u64) -> u64 {
        ((self.word64(i) as u128 * n as u128) >> 64) as u64
    }

    /// The permutation of `0..n` that this stream names (Fisher–Yates).
    pub fn permutation(&self, n: usize) -> Vec<usize> {
        let mut p: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            p.swap(i, self.below(i as u64, i as u64 + 1) as usize);
        }
        p
    }
}

/// A word as a number in [0, 1): its upper 24 bits.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three vectors of the authors' Random123 distribution.
    #[test]
    fn known_answers() {
        assert_eq!(
            rounds([0; 4], [0; 2]),
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
        );
        assert_eq!(
            rounds([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            rounds(
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0]
            ),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn normals_have_the_right_moments() {
        let r = Philox::new(1, 2);
        let n = 100_000;
        let (mut m, mut v, mut k) = (0.0, 0.0, 0.0);
        for i in 0..n {
            let x = r.normal(i);
            m += x;
            v += x * x;
            k += x * x * x * x;
        }
        let n = n as f64;
        assert!((m / n).abs() < 0.02 && (v / n - 1.0).abs() < 0.02 && (k / n - 3.0).abs() < 0.1);
    }

    #[test]
    fn permutations_are_permutations() {
        for n in [0, 1, 2, 257] {
            let mut p = Philox::new(3, 9).permutation(n);
            p.sort_unstable();
            assert!(p.iter().copied().eq(0..n));
        }
        assert_ne!(
            Philox::new(3, 9).permutation(50),
            Philox::new(3, 10).permutation(50)
        );
    }
}
