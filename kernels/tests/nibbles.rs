//! Codes of four bits: packing, products and quantisation at every level, against sums in i64 and f64.
//!
//! Invariant: expectations are computed from the codes and values themselves, never from packed bytes.

#![allow(clippy::unwrap_used, missing_docs)]

use flashbulb_kernels::{
    Kernels, NIBBLES_TOGETHER, available_levels, nibble_bytes, pack_nibbles, unpack_nibbles,
};
use proptest::prelude::*;

fn levels() -> impl Iterator<Item = Kernels> {
    available_levels().into_iter().map(|level| Kernels::with_level(level).unwrap())
}

fn packed(codes: &[i8]) -> Vec<u8> {
    let mut bytes = vec![0; nibble_bytes(codes.len())];
    pack_nibbles(codes, &mut bytes);
    bytes
}

fn product(a: &[i8], b: &[i8]) -> i64 {
    a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum()
}

fn assert_products(query: &[i8], codes: &[i8]) {
    let bytes = packed(codes);
    let mut back = Vec::new();
    unpack_nibbles(&bytes, &mut back);
    assert_eq!(back, codes);
    for kernels in levels() {
        let found = i64::from(kernels.dot_i4(query, &bytes));
        assert_eq!(found, product(query, codes), "{} codes, {}", codes.len(), kernels.level());
    }
}

/// Groups of codes for a query and a row: from none to more than any dimension has.
fn codes_of_both() -> impl Strategy<Value = (Vec<i8>, Vec<i8>)> {
    (0..40usize).prop_flat_map(|groups| {
        let len = groups * NIBBLES_TOGETHER;
        (prop::collection::vec(any::<i8>(), len), prop::collection::vec(-8..=7i8, len))
    })
}

proptest! {
    #[test]
    fn products_are_exact((query, codes) in codes_of_both()) {
        assert_products(&query, &codes);
    }

    #[test]
    fn the_error_is_what_the_codes_leave(values in prop::collection::vec(-3f32..3.0, 1..400)) {
        for kernels in levels() {
            let mut codes = vec![0; values.len()];
            let params = kernels.quantize_i4(&values, &mut codes);
            let parts = values.iter().zip(&codes).map(|(value, code)| {
                (f64::from(*value) - f64::from(*code) * f64::from(params.scale)).powi(2)
            });
            let error = parts.sum::<f64>().sqrt();
            let said = f64::from(params.error_norm);
            prop_assert!(error <= said && said <= error * 1.000_001 + 1e-30, "{} for {}", said, error);
            prop_assert!(codes.iter().all(|code| (-7..=7).contains(code)));
        }
    }
}

#[test]
fn extremes_do_not_overflow() {
    for len in [NIBBLES_TOGETHER, 4096, 130_944] {
        for (query, code) in [(i8::MIN, -8), (i8::MIN, 7), (i8::MAX, -8), (i8::MAX, 7)] {
            assert_products(&vec![query; len], &vec![code; len]);
        }
    }
}

#[test]
fn every_code_has_its_place() {
    for at in 0..2 * NIBBLES_TOGETHER {
        let (mut query, mut codes) = (vec![1; 2 * NIBBLES_TOGETHER], vec![0; 2 * NIBBLES_TOGETHER]);
        (query[at], codes[at]) = (100, -3);
        assert_products(&query, &codes);
    }
}

#[test]
fn rows_are_scored_one_after_the_other() {
    let codes: Vec<i8> = (0..5 * 256).map(|at| (at * 7 % 16) as i8 - 8).collect();
    let query: Vec<i8> = (0..256).map(|at| (at * 31 % 251) as u8 as i8).collect();
    let mut rows = Vec::new();
    codes.chunks(256).for_each(|row| rows.extend(packed(row)));
    for kernels in levels() {
        let mut found = [0; 5];
        kernels.dot_i4_rows(&query, &rows, &mut found);
        let wanted: Vec<i64> = codes.chunks(256).map(|row| product(&query, row)).collect();
        assert_eq!(found.map(i64::from).to_vec(), wanted);
        kernels.dot_i4_rows(&[], &[], &mut found);
        assert_eq!(found, [0; 5]);
    }
}

/// Normal values, as rotated vectors have: with the best 15 even steps, a ninth of the length is lost (Max, *Quantizing for minimum
/// distortion*, IRE Trans. 1960, has 0.1154² at 15 levels).
#[test]
fn normal_values_lose_a_ninth_and_their_products_are_unbiased() {
    let mut state = 7u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f64 + 0.5) / f64::from(1u32 << 24)
    };
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let values: Vec<f32> = (0..100_000).map(|_| normal() as f32).collect();
    let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    for kernels in levels() {
        let mut codes = vec![0; values.len()];
        let params = kernels.quantize_i4(&values, &mut codes);
        let lost = f64::from(params.error_norm) / squares.sqrt();
        assert!((0.112..0.120).contains(&lost), "{lost}");
        let along =
            values.iter().zip(&codes).map(|(v, c)| f64::from(*v) * f64::from(*c)).sum::<f64>();
        let product = along * f64::from(params.scale) / squares;
        assert!((product - 1.0).abs() < 1e-4, "{product}");
    }
}

#[test]
fn vectors_that_have_no_codes_say_so() {
    for kernels in levels() {
        let mut codes = vec![5; 4];
        let of = |values: [f32; 4], codes: &mut [i8]| kernels.quantize_i4(&values, codes);
        let zero = of([0.0; 4], &mut codes);
        assert_eq!((zero.scale, zero.error_norm, &codes[..]), (1.0, 0.0, &[0i8; 4][..]));
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let params = of([1.0, odd, 0.0, 2.0], &mut codes);
            assert_eq!((params.scale, params.error_norm), (1.0, f32::INFINITY));
            assert_eq!(codes, [0; 4]);
        }
        for size in [1e-40, 1e-30, 1e-20, 1e15] {
            let params = of([size, -size, 0.0, size / 2.0], &mut codes);
            assert!(params.scale.is_normal() && params.error_norm.is_finite(), "{size}");
            assert!(params.error_norm <= 1.0001 * 1.5 * size, "{size}: {}", params.error_norm);
        }
    }
}

#[test]
#[should_panic(expected = "do not fill whole groups")]
fn codes_that_fill_no_whole_group_are_refused() {
    pack_nibbles(&[0; 100], &mut [0; 50]);
}
