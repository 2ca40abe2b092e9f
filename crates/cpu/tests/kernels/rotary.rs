//! Rotary embeddings against complex multiplication.

use crate::*;
use entrenar_cpu::rotary::rotary;

fn angles(time: usize, half: usize) -> (Array, Array) {
    let angle = |p: &[usize]| p[0] as f64 * 0.7 / (1.0 + p[1] as f64);
    (
        build(&[time, half], |p| angle(p).cos()),
        build(&[time, half], |p| angle(p).sin()),
    )
}

#[test]
fn pairs_turn_by_their_angle_and_back() {
    for shape in [
        vec![5, 4],
        vec![3, 5, 6],
        vec![2, 3, 5, 8],
        vec![2, 0, 4],
        vec![5, 0],
    ] {
        let (time, width) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let half = width / 2;
        let (cos, sin) = angles(time, half);
        let x = random(&shape, 1);
        for interleaved in [false, true] {
            let want = build(&shape, |p| {
                let (lead, c) = (&p[..p.len() - 1], p[p.len() - 1]);
                let pair = if interleaved { c / 2 } else { c % half };
                let second = if interleaved { c % 2 == 1 } else { c >= half };
                let [i, j] = if interleaved {
                    [2 * pair, 2 * pair + 1]
                } else {
                    [pair, pair + half]
                };
                let value = |c: usize| at(&x, &[lead, &[c]].concat());
                let (re, im) = (value(i), value(j));
                let place = [lead[lead.len() - 1], pair];
                let (c, s) = (at(&cos, &place), at(&sin, &place));
                if second {
                    im * c + re * s
                } else {
                    re * c - im * s
                }
            });
            let f = |x: &Array| rotary(x, &cos, &sin, interleaved, false).unwrap();
            assert_close(&f(&x), &want, 1e-15);
            assert_close(&f(&strided(&x)), &want, 1e-15);
            assert_close(&f(&single(&x)), &want, 1e-6);
            let back = rotary(&want, &cos, &sin, interleaved, true).unwrap();
            assert_close(&back, &x, 1e-14);
            let g = random(&shape, 2);
            let dx = rotary(&g, &cos, &sin, interleaved, true).unwrap();
            assert_gradient(&x, &g, f, &dx);
        }
    }
}

#[test]
fn views_and_threads() {
    let (cos, sin) = angles(64, 16);
    let qkv = random([4, 64, 3, 2, 32], 3);
    let q = qkv
        .slice(2, 1, 2, 1)
        .unwrap()
        .reshape([4, 64, 2, 32])
        .unwrap();
    let q = q.permute(&[0, 2, 1, 3]).unwrap();
    let want = rotary(&q.deep_copy(), &cos, &sin, false, false).unwrap();
    assert_close(&rotary(&q, &cos, &sin, false, false).unwrap(), &want, 0.0);
    let large = single(&random([300, 64, 32], 4));
    assert_same_bits(|| vec![rotary(&large, &cos, &sin, true, false).unwrap()]);
}

#[test]
fn misuse() {
    let (cos, sin) = angles(5, 2);
    assert!(rotary(&random([5, 3], 1), &cos, &sin, false, false).is_err());
    assert!(rotary(&random([4, 4], 1), &cos, &sin, false, false).is_err());
    assert!(rotary(&random([4], 1), &cos, &sin, false, false).is_err());
    let (long, _) = angles(6, 2);
    assert!(rotary(&random([5, 4], 1), &cos, &long, false, false).is_err());
    assert!(
        rotary(
            &random([5, 4], 1).cast(DType::I64),
            &cos,
            &sin,
            false,
            false
        )
        .is_err()
    );
}
