//! 4- and 8-bit blocks against bitsandbytes (`oracles/bitsandbytes_cpu.py`), and products with 4-bit
//! matrices against products with the same matrix in floats, bit for bit.

use std::sync::Arc;

use entrenar_base::{Array, DType};
use entrenar_cpu::matmul::matmul;
use entrenar_cpu::product::{self, Compute, Options};
use entrenar_cpu::quant4::{BLOCKS, Code, Quantized, Scales, Side, product as product4};
use entrenar_cpu::quant8::Codebook;
use entrenar_cpu::team;
use proptest::prelude::*;
use serde_json::Value;

use crate::random;

/// The generator of the oracle script.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((state >> 40) % 65536) as f32 / 4096.0 - 8.0
    };
    (0..n).map(|_| next() * next() / 64.0).collect()
}

fn fnv(bytes: &[u8]) -> String {
    let start = 0xcbf2_9ce4_8422_2325u64;
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(start, step))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn floats(text: &Value) -> Vec<f32> {
    let text = text.as_str().unwrap();
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len())
        .step_by(8)
        .map(|i| f32::from_le_bytes([byte(i), byte(i + 2), byte(i + 4), byte(i + 6)]))
        .collect()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../data/bitsandbytes.json")).unwrap()
}

fn bytes(a: &Array) -> &[u8] {
    a.as_bytes().unwrap()
}

#[test]
fn four_bit_blocks_are_those_of_bitsandbytes() {
    for case in golden()["four_bit"].as_array().unwrap() {
        let number = |v: &Value| v.as_u64().unwrap() as usize;
        let (rows, columns) = (number(&case["shape"][0]), number(&case["shape"][1]));
        let mut w = values(rows * columns, number(&case["seed"]) as u64);
        w[columns..2 * columns].fill(0.0);
        let dtype = match case["dtype"].as_str().unwrap() {
            "float32" => DType::F32,
            "float16" => DType::F16,
            _ => DType::BF16,
        };
        let w = Array::from_vec(w, [rows, columns]).unwrap().cast(dtype);
        let code = match case["kind"].as_str().unwrap() {
            "nf4" => Code::Nf4,
            _ => Code::Fp4,
        };
        let double = case["nested"].as_bool().unwrap();
        let q = Quantized::new(&w, code, number(&case["block"]), double).unwrap();
        let start = hex(&bytes(q.codes())[..bytes(q.codes()).len().min(32)]);
        assert_eq!(start, case["first_codes"].as_str().unwrap());
        assert_eq!(fnv(bytes(q.codes())), case["codes"], "{case}");
        let q = match q.scales() {
            Scales::Plain(scales) => {
                assert_eq!(fnv(bytes(scales)), case["absmax"], "{case}");
                q
            }
            Scales::Double {
                codes,
                scales,
                map,
                offset,
            } => {
                let (theirs, above) = (floats(&case["offset"])[0], floats(&case["nested_absmax"]));
                // The mean is summed in another order there.
                assert!((offset - theirs).abs() <= 2.0 * f32::EPSILON * theirs.abs());
                for (a, b) in scales.as_slice::<f32>().unwrap().iter().zip(&above) {
                    assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
                }
                // A quotient on the border of two points may go either way with the offset.
                let ours = hex(bytes(codes));
                let theirs_codes = case["absmax_codes"].as_str().unwrap();
                let differ = ours
                    .bytes()
                    .zip(theirs_codes.bytes())
                    .filter(|(a, b)| a != b);
                let differ = differ.count();
                if *offset == theirs {
                    assert_eq!(differ, 0, "{case}");
                }
                assert!(differ * 200 <= ours.len(), "{differ} of {}", ours.len());
                let count = above.len();
                let scales = Scales::Double {
                    codes: codes.clone(),
                    scales: Array::from_vec(above, [count]).unwrap(),
                    map: map.clone(),
                    offset: theirs,
                };
                let size = q.sizes();
                Quantized::from_parts(size, code, q.block(), q.codes().clone(), scales).unwrap()
            }
        };
        let back = q.dequantize().unwrap().cast(dtype).to_f64_vec();
        // Their kernels disagree among themselves about the sign of a zero.
        let back: Vec<f32> = back.iter().map(|x| *x as f32 + 0.0).collect();
        let back = Array::from_vec(back, [rows * columns]).unwrap();
        assert_eq!(fnv(bytes(&back)), case["dequantized"], "{case}");
    }
}

#[test]
fn eight_bit_blocks_are_those_of_bitsandbytes() {
    let golden = golden();
    for (name, book) in [
        ("signed", Codebook::signed()),
        ("unsigned", Codebook::unsigned()),
    ] {
        let want = &golden["eight_bit"][name];
        assert_eq!(book.values()[..], floats(&want["map"])[..]);
        let mut x = values(100_000, 77);
        if name == "unsigned" {
            x.iter_mut().for_each(|x| *x = x.abs());
        }
        let (codes, scales) = book.quantize_all(&x, 256);
        assert_eq!(fnv(&codes), want["codes"], "{name}");
        let scales = Array::from_vec(scales, [391]).unwrap();
        assert_eq!(fnv(bytes(&scales)), want["absmax"], "{name}");
    }
}

const CODES: [Code; 3] = [Code::Nf4, Code::Fp4, Code::Symmetric];

/// x·Wᵀ or x·W with W in floats.
fn plain(x: &Array, w: &Array, side: Side) -> Array {
    let w = match side {
        Side::Transposed => w.transpose(0, 1).unwrap(),
        Side::Plain => w.clone(),
    };
    if x.dtype() == DType::F64 {
        return matmul(x, &w.cast(DType::F64)).unwrap();
    }
    let bf16 = x.dtype() == DType::BF16;
    let options = Options {
        compute: if bf16 { Compute::Bf16 } else { Compute::F32 },
        output: Some(x.dtype()),
        ..Options::default()
    };
    product::product(x, &w, &options).unwrap().output
}

#[test]
fn products_have_the_bits_of_products_with_the_whole_matrix() {
    let before = team::threads();
    for (i, (m, rows, columns, block)) in [
        (1, 64, 64, 64),
        (5, 33, 50, 32),
        (70, 300, 192, 64),
        (9, 700, 1100, 256),
        (130, 1030, 65, 64),
        (3, 1, 999, 64),
        (2, 777, 1, 32),
        (3, 40, 4200, 64),
    ]
    .into_iter()
    .enumerate()
    {
        let w = random([rows, columns], i as u64);
        let q = Quantized::new(&w, CODES[i % 3], block, i % 2 == 0).unwrap();
        let whole = q.dequantize().unwrap();
        for side in [Side::Transposed, Side::Plain] {
            let k = side.sizes((rows, columns)).0;
            for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
                let x = random([m, k], 50 + i as u64).cast(dtype);
                let want = plain(&x, &whole, side);
                for threads in [1, 2, 5] {
                    team::set_threads(threads);
                    let got = product4(&x, &q, side, Compute::F32).unwrap();
                    assert_eq!(got.dtype(), dtype);
                    assert_eq!(
                        bytes(&got),
                        bytes(&want),
                        "{m} {rows} {columns} {side:?} {dtype}"
                    );
                }
            }
        }
    }
    team::set_threads(before);
}

#[test]
fn bf16_products_of_f32_round_both_sides() {
    let (w, x) = (random([96, 130], 1), random([7, 130], 2).cast(DType::F32));
    let q = Quantized::new(&w, Code::Nf4, 64, true).unwrap();
    let options = Options {
        compute: Compute::Bf16,
        ..Options::default()
    };
    let turned = q.dequantize().unwrap().transpose(0, 1).unwrap();
    let want = product::product(&x, &turned, &options).unwrap().output;
    let got = product4(&x, &q, Side::Transposed, Compute::Bf16).unwrap();
    assert_eq!(bytes(&got), bytes(&want));
}

#[test]
fn double_quantization_takes_less_than_four_and_a_fifth_bits() {
    let q = Quantized::new(&random([512, 256], 3), Code::Nf4, 64, true).unwrap();
    let bits = 8.0 * q.bytes() as f64 / (512.0 * 256.0);
    assert!(bits < 4.13, "{bits} bits per number");
}

#[test]
fn broken_parts_are_refused() {
    let w = random([4, 64], 1);
    let q = Quantized::new(&w, Code::Nf4, 64, true).unwrap();
    let again = |size, block, codes: &Array, scales: &Scales| {
        let e = Quantized::from_parts(size, Code::Nf4, block, codes.clone(), scales.clone());
        e.map(|_| ()).map_err(|e| e.to_string())
    };
    let (codes, scales) = (q.codes(), q.scales());
    assert_eq!(again((4, 64), 64, codes, scales), Ok(()));
    for (size, block) in [
        ((4, 65), 64),
        ((4, 64), 63),
        ((4, 64), 0),
        ((usize::MAX, 3), 64),
    ] {
        let error = again(size, block, codes, scales).unwrap_err();
        assert!(error.contains("expected"), "{error}");
    }
    let plain = |x: Vec<f32>| Scales::Plain(Array::from_vec(x, [4]).unwrap());
    assert_eq!(again((4, 64), 64, codes, &plain(vec![1.0; 4])), Ok(()));
    assert!(again((4, 64), 32, codes, &plain(vec![1.0; 4])).is_err());
    let bad = again((4, 64), 64, codes, &plain(vec![1.0, f32::NAN, 1.0, 1.0]));
    assert!(bad.unwrap_err().contains("finite scales"));
    assert!(again((4, 64), 64, &codes.cast(DType::I64), scales).is_err());
    let Scales::Double {
        codes: inner,
        scales: above,
        map,
        ..
    } = scales
    else {
        panic!("double scales")
    };
    let mut wrong = **map;
    wrong[3] = f32::INFINITY;
    for (map, offset) in [(Arc::new(wrong), 0.0), (map.clone(), f32::NAN)] {
        let (codes_, scales_) = (inner.clone(), above.clone());
        let scales = Scales::Double {
            codes: codes_,
            scales: scales_,
            map,
            offset,
        };
        assert!(again((4, 64), 64, codes, &scales).is_err());
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let w = Array::from_vec(vec![1.0, bad], [1, 2]).unwrap();
        assert!(Quantized::new(&w, Code::Nf4, 64, false).is_err());
    }
    assert!(Quantized::new(&w, Code::Nf4, 48, false).is_err());
    assert!(Quantized::new(&w.reshape([256]).unwrap(), Code::Nf4, 64, false).is_err());
    assert!(Quantized::new(&w.cast(DType::I64), Code::Nf4, 64, false).is_err());
    let x = random([2, 63], 1);
    assert!(product4(&x, &q, Side::Transposed, Compute::F32).is_err());
    assert!(product4(&x.cast(DType::I64), &q, Side::Plain, Compute::F32).is_err());
    let empty = Quantized::new(&random([0, 5], 1), Code::Fp4, 64, true).unwrap();
    let y = product4(&random([3, 5], 1), &empty, Side::Transposed, Compute::F32).unwrap();
    assert_eq!(y.dims(), [3, 0]);
    let y = product4(&random([3, 0], 1), &empty, Side::Plain, Compute::F32).unwrap();
    assert_eq!(y.to_f64_vec(), [0.0; 15]);
}

/// Half of the widest step between the values of a code, in units of the largest magnitude.
fn reach(code: Code) -> f32 {
    match code {
        Code::Nf4 => 0.152,
        Code::Fp4 => 0.167,
        Code::Symmetric => 0.0715,
    }
}

proptest! {
    #[test]
    fn numbers_come_back_near_and_again_the_same(
        rows in 0usize..9, columns in 0usize..90, block in 0usize..3, code in 0usize..3,
        seed in any::<u64>(), size in -30i32..30,
    ) {
        let (block, code) = (BLOCKS[block], CODES[code]);
        let scale = 2f64.powi(size);
        let w: Vec<f32> = random([rows * columns], seed).to_f64_vec().iter().map(|x| (x * scale) as f32).collect();
        let w = Array::from_vec(w, [rows, columns]).unwrap();
        let q = Quantized::new(&w, code, block, false).unwrap();
        let back = q.dequantize().unwrap();
        let (x, y) = (w.to_vec::<f32>().unwrap(), back.to_vec::<f32>().unwrap());
        for (x, y) in x.chunks(block).zip(y.chunks(block)) {
            let top = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (x, y) in x.iter().zip(y) {
                prop_assert!((x - y).abs() <= reach(code) * top, "{x} {y} of {top}");
            }
        }
        // What was quantized has every number on a value already.
        let again = Quantized::new(&back, code, block, false).unwrap().dequantize().unwrap();
        for (a, b) in again.to_f64_vec().iter().zip(back.to_f64_vec()) {
            prop_assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} {b}");
        }
    }
}
