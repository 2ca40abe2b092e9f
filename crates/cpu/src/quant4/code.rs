//! [`Code`]: the tables of 16 values and how a number finds its place in one.

/// What the 16 codes of a block mean, times the block's scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// Quantiles of the normal distribution; the scale is max |x|.
    Nf4,
    /// Floats with sign, two bits of exponent and one of mantissa; the scale is max |x|.
    Fp4,
    /// Whole numbers -7 to 7, stored with 8 added; the scale is max |x| / 7.
    Symmetric,
}

/// NF4 as published, ascending.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// FP4's magnitudes by the low three bits; the fourth is the sign.
const FP4: [f32; 8] = [
    0.0,
    0.062_5 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    0.5,
    2.0 / 12.0,
    0.25,
];

/// FP4's codes in the order of their values. The library sorts its table once, and that sort puts
/// the zero without a sign (code 0) before the other (code 8).
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

impl Code {
    /// The name in files and configs.
    pub fn name(self) -> &'static str {
        match self {
            Code::Nf4 => "nf4",
            Code::Fp4 => "fp4",
            Code::Symmetric => "symmetric4",
        }
    }

    /// What each code means.
    ///
    /// ```
    /// use entrenar_cpu::quant4::Code;
    /// assert_eq!(Code::Nf4.values()[15], 1.0);
    /// assert_eq!(Code::Fp4.values()[11], -1.0);
    /// assert_eq!(Code::Symmetric.values()[1], -7.0);
    /// ```
    pub fn values(self) -> [f32; 16] {
        match self {
            Code::Nf4 => NF4,
            Code::Fp4 => std::array::from_fn(|i| {
                let size = FP4[i % 8];
                // Both zeros are the positive one.
                if i > 8 { -size } else { size }
            }),
            Code::Symmetric => std::array::from_fn(|i| i as f32 - 8.0),
        }
    }

    /// The scale of a block whose largest magnitude is `top`.
    pub(super) fn scale(self, top: f32) -> f32 {
        match self {
            Code::Nf4 | Code::Fp4 => top,
            Code::Symmetric => top / 7.0,
        }
    }

    /// How to find codes.
    pub(super) fn finder(self) -> Finder {
        let values = self.values();
        let order: [u8; 16] = match self {
            Code::Fp4 => FP4_ORDER,
            _ => std::array::from_fn(|i| i as u8),
        };
        let at = |i: usize| values[usize::from(order[i])];
        Finder {
            code: self,
            borders: std::array::from_fn(|i| (at(i) + at(i + 1)) / 2.0),
            order,
        }
    }
}

/// Finds the codes of numbers.
pub(super) struct Finder {
    code: Code,
    /// Middles between neighbours; a number on one belongs to the lower neighbour.
    borders: [f32; 15],
    order: [u8; 16],
}

/// The least scale that is divided by.
const TINY: f32 = 1e-38;

impl Finder {
    /// Codes of one block; its scale. `whole`: not the shorter block at the end, for which
    /// bitsandbytes divides where it multiplies by the reciprocal otherwise.
    pub fn block(&self, x: &[f32], whole: bool, codes: &mut [u8]) -> f32 {
        let top = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        if self.code == Code::Symmetric {
            let scale = self.code.scale(top);
            for (code, x) in codes.iter_mut().zip(x) {
                // A scale below the normal numbers may round to 0; then every code is 0.
                let q = if scale > 0.0 { x / scale } else { 0.0 };
                *code = (q.round_ties_even().clamp(-7.0, 7.0) + 8.0) as u8;
            }
            return scale;
        }
        let guarded = top.max(TINY);
        let inverse = 1.0 / guarded;
        for (code, x) in codes.iter_mut().zip(x) {
            let q = if whole { x * inverse } else { x / guarded };
            let q = q.clamp(-1.0, 1.0);
            let place = self.borders.iter().filter(|b| **b < q).count();
            *code = self.order[place];
        }
        if whole { top } else { guarded }
    }
}
