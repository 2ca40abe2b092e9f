//! [`Quantized`]: a matrix in 4-bit blocks with its scales.

use std::sync::Arc;

use entrenar_base::memory::Tag;
use entrenar_base::{Array, DType, Error, Result};

use super::Code;
use super::unpack::Table;
use crate::alloc::Scratch;
use crate::copy::contiguous;
use crate::quant8::{Codebook, Map};
use crate::team::{self, Shared};

/// Sizes of blocks that the format knows.
pub const BLOCKS: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Scales that share a scale of their own in double quantization.
pub const NESTED_BLOCK: usize = 256;

/// Nanoseconds to quantize a number.
const QUANTIZE_NS: f64 = 8.0;
/// Nanoseconds to turn a code into a float.
const UNPACK_NS: f64 = 0.3;

/// One scale per block.
#[derive(Clone, Debug)]
pub enum Scales {
    /// In f32: `[blocks]`.
    Plain(Array),
    /// In 8 bits: `map[code]` · scale of [`NESTED_BLOCK`] scales + offset.
    Double {
        /// u8 `[blocks]`.
        codes: Array,
        /// f32 `[blocks / 256, rounded up]`.
        scales: Array,
        /// What the codes mean.
        map: Arc<Map>,
        /// The mean of the scales.
        offset: f32,
    },
}

/// A matrix `[rows, columns]` in blocks of 4-bit numbers, row after row; a block may go on in the next
/// row.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::quant4::{Code, Quantized};
/// let w = Array::from_vec((0..128).map(|i| (i as f32 * 0.7).sin()).collect(), [2, 64])?;
/// let q = Quantized::new(&w, Code::Nf4, 64, false)?;
/// assert_eq!(q.bytes(), 64 + 2 * 4); // half a byte each and a scale per block
/// let back = q.dequantize()?;
/// let far = w.to_f64_vec().iter().zip(back.to_f64_vec()).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
/// assert!(far < 0.16); // half of the code's widest step
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Quantized {
    code: Code,
    block: usize,
    rows: usize,
    columns: usize,
    /// u8 `[numbers / 2, rounded up]`, the first of two in the high half.
    codes: Array,
    scales: Scales,
}

impl Quantized {
    /// Quantizes `w[rows, columns]` (any float dtype) in blocks of `block` numbers, with the scales in
    /// 8 bits when `double`.
    ///
    /// The offset of double quantization is the mean of the scales, summed in f64. bitsandbytes sums
    /// in f32 in an order that depends on the processor, so its offset may differ in the last bits;
    /// codes are equal, and scales are for equal offsets.
    ///
    /// # Errors
    /// When `w` is no float matrix, holds a NaN or an infinity, or the block is none of [`BLOCKS`].
    #[track_caller]
    pub fn new(w: &Array, code: Code, block: usize, double: bool) -> Result<Quantized> {
        let [rows, columns] = *w.dims() else {
            return Err(Error::shape("quantize4", "a matrix", w.shape()));
        };
        if !w.dtype().is_float() {
            return Err(Error::dtype("quantize4", "a float matrix", w.dtype()));
        }
        check_block(block)?;
        if !crate::pointwise::all_finite(w) {
            return Err(Error::argument(
                "quantize4",
                "finite numbers",
                "a NaN or an infinity",
            ));
        }
        let n = rows * columns;
        let (source, half) = (contiguous(w)?, n.div_ceil(2));
        let blocks = n.div_ceil(block);
        let finder = code.finder();
        let (mut packed, mut tops) = (vec![0u8; half], vec![0.0f32; blocks]);
        let (to, scales) = (Shared::new(&mut packed), Shared::new(&mut tops));
        team::split(blocks, block as f64 * QUANTIZE_NS, |range| {
            let mut codes = vec![0u8; block];
            for b in range {
                let here = b * block..n.min((b + 1) * block);
                let x = floats(&source, here.clone());
                // SAFETY: blocks are disjoint, and their sizes even, so they share no byte.
                let (to, scale) = unsafe {
                    let bytes = here.start / 2..here.end.div_ceil(2);
                    (to.slice(bytes), scales.slice(b..b + 1))
                };
                scale[0] = finder.block(&x, x.len() == block, &mut codes[..x.len()]);
                if x.len() % 2 == 1 {
                    // The odd half is what a number 0 would have.
                    finder.block(&[0.0], true, &mut codes[x.len()..=x.len()]);
                }
                for (to, pair) in to.iter_mut().zip(codes.chunks(2)) {
                    *to = pair[0] << 4 | pair[1];
                }
            }
        });
        let scales = if double {
            double_scales(&tops)?
        } else {
            Scales::Plain(Array::from_vec(tops, [blocks])?)
        };
        Quantized::from_parts(
            (rows, columns),
            code,
            block,
            Array::from_vec(packed, [half])?,
            scales,
        )
    }

    /// A matrix from what a file holds.
    ///
    /// # Errors
    /// When the sizes or dtypes do not belong together or a scale is not finite.
    #[track_caller]
    pub fn from_parts(
        (rows, columns): (usize, usize),
        code: Code,
        block: usize,
        codes: Array,
        scales: Scales,
    ) -> Result<Quantized> {
        check_block(block)?;
        let n = rows.checked_mul(columns).ok_or_else(|| {
            let what = format!("{rows} rows of {columns}");
            Error::argument("quantized matrix", "a size that can be counted", what)
        })?;
        let blocks = n.div_ceil(block);
        let part = |array: &Array, what: &str, dtype: DType, len: usize| {
            if array.dtype() == dtype && array.numel() == len {
                return contiguous(array)?.reshape([len]);
            }
            Err(Error::argument(
                "quantized matrix",
                format!("{len} {what} of {dtype} for [{rows}, {columns}] in blocks of {block}"),
                format!("{} of {}", array.numel(), array.dtype()),
            ))
        };
        let finite = |x: &[f32], what: &str| match x.iter().find(|x| !x.is_finite()) {
            None => Ok(()),
            Some(bad) => Err(Error::argument(
                "quantized matrix",
                format!("finite {what}"),
                bad,
            )),
        };
        let codes = part(&codes, "bytes", DType::U8, n.div_ceil(2))?;
        let scales = match scales {
            Scales::Plain(scales) => {
                let scales = part(&scales, "scales", DType::F32, blocks)?;
                finite(scales.as_slice()?, "scales")?;
                scales.retag(Tag::Parameter);
                Scales::Plain(scales)
            }
            Scales::Double {
                codes,
                scales,
                map,
                offset,
            } => {
                let codes = part(&codes, "codes of scales", DType::U8, blocks)?;
                let above = blocks.div_ceil(NESTED_BLOCK);
                let scales = part(&scales, "scales of scales", DType::F32, above)?;
                finite(scales.as_slice()?, "scales of scales")?;
                finite(&map[..], "values of the map of scales")?;
                finite(&[offset], "offsets")?;
                codes.retag(Tag::Parameter);
                scales.retag(Tag::Parameter);
                Scales::Double {
                    codes,
                    scales,
                    map,
                    offset,
                }
            }
        };
        codes.retag(Tag::Parameter);
        Ok(Quantized {
            code,
            block,
            rows,
            columns,
            codes,
            scales,
        })
    }

    /// (rows, columns).
    pub fn sizes(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// What the codes mean.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Numbers in a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// u8 `[numbers / 2, rounded up]`.
    pub fn codes(&self) -> &Array {
        &self.codes
    }

    /// The scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Bytes that it holds: codes and scales.
    pub fn bytes(&self) -> usize {
        let of = |a: &Array| a.numel() * a.dtype().size();
        of(&self.codes)
            + match &self.scales {
                Scales::Plain(scales) => of(scales),
                Scales::Double { codes, scales, .. } => of(codes) + of(scales) + size_of::<f32>(),
            }
    }

    /// The whole matrix in f32.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn dequantize(&self) -> Result<Array> {
        let reader = self.reader()?;
        Array::try_build([self.rows, self.columns], |out: &mut [f32]| {
            let cost = self.columns as f64 * UNPACK_NS;
            if self.columns > 0 {
                team::split_mut(out, self.rows, cost, |rows, out| {
                    reader.read(rows.start * self.columns, out);
                });
            }
            Ok(())
        })
    }

    /// Sum of squares of each row, `[rows]` in f32, without the matrix in floats.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn row_squares(&self) -> Result<Array> {
        let reader = self.reader()?;
        Array::try_build([self.rows], |out: &mut [f32]| {
            let cost = self.columns as f64 * UNPACK_NS;
            team::split_mut(out, self.rows, cost, |rows, out| {
                let mut row = Scratch::<f32>::new(self.columns);
                for (i, out) in rows.zip(out) {
                    reader.read(i * self.columns, &mut row);
                    let sum: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                    *out = sum as f32;
                }
            });
            Ok(())
        })
    }

    pub(super) fn reader(&self) -> Result<Reader<'_>> {
        Ok(Reader {
            table: Table::of(self.code),
            codes: self.codes.as_slice()?,
            block: self.block,
            columns: self.columns,
            scales: match &self.scales {
                Scales::Plain(scales) => Lookup::Plain(scales.as_slice()?),
                Scales::Double {
                    codes,
                    scales,
                    map,
                    offset,
                } => Lookup::Double {
                    codes: codes.as_slice()?,
                    scales: scales.as_slice()?,
                    map,
                    offset: *offset,
                },
            },
        })
    }
}

fn check_block(block: usize) -> Result<()> {
    if BLOCKS.contains(&block) {
        return Ok(());
    }
    Err(Error::argument(
        "quantize4",
        "blocks of 32, 64, 128, 256, 512, 1024, 2048 or 4096",
        block,
    ))
}

/// Numbers of a contiguous array in f32.
fn floats(source: &Array, range: std::ops::Range<usize>) -> Vec<f32> {
    entrenar_base::dispatch!(source.dtype(), T => {
        // The array is contiguous and of this dtype.
        let all = source.as_slice::<T>().unwrap_or(&[]);
        all[range].iter().map(|x| entrenar_base::Element::to_f64(*x) as f32).collect()
    })
}

/// Scales in 8 bits.
fn double_scales(scales: &[f32]) -> Result<Scales> {
    let sum: f64 = scales.iter().map(|s| f64::from(*s)).sum();
    let offset = (sum / scales.len().max(1) as f64) as f32;
    let centred: Vec<f32> = scales.iter().map(|s| s - offset).collect();
    let book = Codebook::signed();
    let (codes, above) = book.quantize_all(&centred, NESTED_BLOCK);
    let (n, m) = (codes.len(), above.len());
    Ok(Scales::Double {
        codes: Array::from_vec(codes, [n])?,
        scales: Array::from_vec(above, [m])?,
        map: book.values().clone(),
        offset,
    })
}

/// Turns parts of a matrix into floats.
pub(super) struct Reader<'a> {
    table: &'static Table,
    codes: &'a [u8],
    block: usize,
    columns: usize,
    scales: Lookup<'a>,
}

enum Lookup<'a> {
    Plain(&'a [f32]),
    Double {
        codes: &'a [u8],
        scales: &'a [f32],
        map: &'a Map,
        offset: f32,
    },
}

impl Reader<'_> {
    fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Lookup::Plain(scales) => scales[block],
            Lookup::Double {
                codes,
                scales,
                map,
                offset,
            } => map[usize::from(codes[block])] * scales[block / NESTED_BLOCK] + offset,
        }
    }

    /// The numbers from `first` on, row after row.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        let (mut at, mut done) = (first, 0);
        while done < out.len() {
            let block = at / self.block;
            let count = ((block + 1) * self.block - at).min(out.len() - done);
            let scale = self.scale(block);
            let mut to = &mut out[done..done + count];
            let mut byte = at / 2;
            if at % 2 == 1 {
                to[0] = self.table.values[usize::from(self.codes[byte] & 15)] * scale;
                to = &mut to[1..];
                byte += 1;
            }
            let pairs = to.len() / 2;
            let (even, odd) = to.split_at_mut(2 * pairs);
            self.table
                .unpack(&self.codes[byte..byte + pairs], scale, even);
            if let Some(last) = odd.first_mut() {
                *last = self.table.values[usize::from(self.codes[byte + pairs] >> 4)] * scale;
            }
            at += count;
            done += count;
        }
    }

    /// The rectangle `rows × columns`, row after row, into the front of `out`.
    pub fn rectangle(
        &self,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        out: &mut Scratch<f32>,
    ) {
        let width = columns.len();
        for (row, out) in rows.zip(out.chunks_mut(width.max(1))) {
            self.read(row * self.columns + columns.start, &mut out[..width]);
        }
    }
}
