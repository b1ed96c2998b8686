//! Every kernel at every SIMD level against independent oracles and the scalar level: one tree of
//! tests, instantiated once a level.
//!
//! A level that this processor lacks skips its tests and says so on stderr.

#![allow(clippy::unwrap_used, missing_docs)]

mod oracle;

use std::io::Write;
use std::sync::Once;

use flashbulb_kernels::{Kernels, MAX_I8_LEN, SimdLevel};
use oracle::*;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

/// Covers no element, every tail of every register and block, and the step past it.
const LENGTHS: std::ops::RangeInclusive<usize> = 0..=1025;

fn scalar() -> Kernels {
    Kernels::with_level(SimdLevel::Scalar).unwrap()
}

fn f32_products_meet_their_bounds(kernels: Kernels, a: &[f32], b: &[f32]) -> TestCaseResult {
    let dot_error = (f64::from(kernels.dot_f32(a, b)) - dot_f64(a, b)).abs();
    prop_assert!(dot_error <= dot_bound(a, b), "dot_f32, {} elements: {dot_error}", a.len());
    let l2_error = (f64::from(kernels.l2_squared_f32(a, b)) - l2_squared_f64(a, b)).abs();
    prop_assert!(l2_error <= l2_squared_bound(a, b), "l2, {} elements: {l2_error}", a.len());
    let norm = norm_f64(a);
    let norm_error = (f64::from(kernels.norm_f32(a)) - norm).abs();
    let norm_bound = norm * 1.01 / f64::from(1 << 24) + f64::from(f32::from_bits(1));
    prop_assert!(norm_error <= norm_bound, "norm, {} elements: {norm_error}", a.len());
    Ok(())
}

fn normalised_vectors_have_norm_one(kernels: Kernels, v: &[f32]) -> TestCaseResult {
    let mut unit = v.to_vec();
    match kernels.normalize_f32(&mut unit) {
        None => {
            prop_assert!(v.iter().all(|x| *x == 0.0));
            prop_assert_eq!(unit, v);
        }
        Some(norm) => {
            prop_assert_eq!(norm, kernels.norm_f32(v));
            prop_assert!((norm_f64(&unit) - 1.0).abs() <= 1e-7);
            for (x, u) in v.iter().zip(&unit) {
                let expected = f64::from(*x) / norm_f64(v);
                prop_assert!((f64::from(*u) - expected).abs() <= 1e-7 * expected.abs() + 1e-44);
            }
        }
    }
    Ok(())
}

/// What codes and fine codes stand for is within half a fine step, and their product with a vector is that of f64.
fn fine_codes_say_the_rest(kernels: Kernels, v: &[f32], query: &[f32]) -> TestCaseResult {
    let (mut codes, mut fine) = (vec![0; v.len()], vec![0; v.len()]);
    let scale = kernels.quantize_i8(v, &mut codes).scale;
    kernels.quantize_fine(v, &codes, scale, &mut fine);
    let step = f64::from(scale) / 254.0;
    let steps: Vec<f32> =
        codes.iter().zip(&fine).map(|(c, f)| f32::from(*c) * 254.0 + f32::from(*f)).collect();
    for (value, steps) in v.iter().zip(&steps) {
        let off = (f64::from(*value) - f64::from(*steps) * step).abs();
        prop_assert!(
            off <= step * 0.51 + f64::from(f32::MIN_POSITIVE) * 127.0,
            "{value}: off by {off}"
        );
    }
    let product = f64::from(kernels.dot_fine(query, &codes, &fine));
    let off = (product - dot_f64(query, &steps)).abs();
    prop_assert!(off <= dot_bound(query, &steps), "dot_fine, {} elements: {off}", v.len());
    Ok(())
}

fn i8_products_are_exact(kernels: Kernels, a: &[i8], b: &[i8]) -> TestCaseResult {
    prop_assert_eq!(i64::from(kernels.dot_i8(a, b)), dot_i64(a, b), "{} codes", a.len());
    let sums = kernels.dot_i8_x4(a, [b, a, b, a]).map(i64::from);
    let (ab, aa) = (dot_i64(a, b), dot_i64(a, a));
    prop_assert_eq!(sums, [ab, aa, ab, aa], "four rows of {} codes", a.len());
    Ok(())
}

fn rows_equal_single_products(kernels: Kernels, len: usize, rows: usize, random: &mut Random) {
    let query = random.codes(len);
    let codes = random.codes(len * rows);
    let mut out = vec![i32::MIN; rows];
    kernels.dot_i8_rows(&query, &codes, &mut out);
    for (row, dot) in out.iter().enumerate() {
        let expected = dot_i64(&query, &codes[row * len..(row + 1) * len]);
        assert_eq!(i64::from(*dot), expected, "row {row} of {rows}, {len} codes");
    }
}

fn quantisation_is_the_scalar_one_and_bounded(kernels: Kernels, v: &[f32]) -> TestCaseResult {
    let (mut codes, mut scalar_codes) = (vec![99; v.len()], vec![-99; v.len()]);
    let params = kernels.quantize_i8(v, &mut codes);
    let scalar_params = scalar().quantize_i8(v, &mut scalar_codes);
    prop_assert_eq!(&codes, &scalar_codes);
    prop_assert_eq!(params.scale, scalar_params.scale);
    prop_assert!(codes.iter().all(|c| *c != -128));
    prop_assert!(params.scale > 0.0 && params.scale.is_finite());
    let residual = residual_norm(v, &codes, params.scale);
    let bound = f64::from(params.error_norm);
    let ceiling = residual * (1.0 + 2.5e-7) + f64::from(f32::from_bits(1));
    prop_assert!(bound >= residual, "{} < {residual}", params.error_norm);
    prop_assert!(bound <= ceiling, "{} is far above {residual}", params.error_norm);
    Ok(())
}

/// The inequality that lets a scan of the codes prove which rows cannot be among the best.
fn codes_bound_the_true_product(kernels: Kernels, a: &[f32], b: &[f32]) -> TestCaseResult {
    let (mut a_codes, mut b_codes) = (vec![0; a.len()], vec![0; b.len()]);
    let a_params = kernels.quantize_i8(a, &mut a_codes);
    let b_params = kernels.quantize_i8(b, &mut b_codes);
    let (a_scale, b_scale) = (f64::from(a_params.scale), f64::from(b_params.scale));
    let estimate = a_scale * b_scale * f64::from(kernels.dot_i8(&a_codes, &b_codes));
    let a_rounded_norm = a_scale * f64::from(kernels.dot_i8(&a_codes, &a_codes)).sqrt();
    let bound = f64::from(a_params.error_norm) * norm_f64(b)
        + a_rounded_norm * f64::from(b_params.error_norm);
    // What f64 loses on the two sides, and what dot_f32 itself may be off by.
    let in_f64 = 1e-13 * (norm_f64(a) * norm_f64(b) + bound);
    let true_error = (dot_f64(a, b) - estimate).abs();
    prop_assert!(true_error <= bound + in_f64, "{true_error} > {bound}");
    let error = (f64::from(kernels.dot_f32(a, b)) - estimate).abs();
    prop_assert!(error <= bound + in_f64 + dot_bound(a, b), "{error} > {bound}");
    Ok(())
}

fn all_lengths(kernels: Kernels) {
    let mut random = Random(384);
    for len in LENGTHS {
        let (a, b) = (random.values(len), random.values(len));
        f32_products_meet_their_bounds(kernels, &a, &b).unwrap();
        fine_codes_say_the_rest(kernels, &a, &b).unwrap();
        normalised_vectors_have_norm_one(kernels, &a).unwrap();
        quantisation_is_the_scalar_one_and_bounded(kernels, &a).unwrap();
        codes_bound_the_true_product(kernels, &a, &b).unwrap();
        i8_products_are_exact(kernels, &random.codes(len), &random.codes(len)).unwrap();
    }
}

/// One element set, all others zero: each position counts once, in each kernel.
fn every_position_counts_once(kernels: Kernels) {
    for len in [1, 7, 16, 31, 63, 64, 65, 127, 384, 385, 1025] {
        for position in 0..len {
            let (mut a, ones) = (vec![0.0; len], vec![1.0; len]);
            a[position] = 3.0;
            assert_eq!(kernels.dot_f32(&a, &ones), 3.0, "{position} of {len}");
            assert_eq!(kernels.norm_f32(&a), 3.0, "{position} of {len}");
            let (mut codes, mut expected) = (vec![5; len], vec![0; len]);
            expected[position] = 127;
            assert_eq!(kernels.quantize_i8(&a, &mut codes).scale, 3.0 / 127.0);
            assert_eq!(codes, expected, "{position} of {len}");
            assert_eq!(kernels.dot_i8(&codes, &vec![-128; len]), -16256, "{position} of {len}");
        }
    }
}

fn extreme_codes(kernels: Kernels) {
    let extremes = [-128i8, -127, -1, 0, 1, 127];
    for len in (0..=130).chain([383, 384, 385, 1024, MAX_I8_LEN]) {
        for x in extremes {
            for y in extremes {
                let expected = i64::from(x) * i64::from(y) * len as i64;
                let (a, b) = (vec![x; len], vec![y; len]);
                assert_eq!(i64::from(kernels.dot_i8(&a, &b)), expected, "{x}·{y}, {len} codes");
                let four = kernels.dot_i8_x4(&a, [&b; 4]).map(i64::from);
                assert_eq!(four, [expected; 4], "{x}·{y}, {len} codes");
            }
        }
    }
}

fn rows_of_every_shape(kernels: Kernels) {
    let mut random = Random(7);
    for len in [0, 1, 5, 15, 16, 17, 63, 64, 65, 100, 384, 385] {
        for rows in 0..=13 {
            rows_equal_single_products(kernels, len, rows, &mut random);
        }
    }
    rows_equal_single_products(kernels, 384, 1001, &mut random);
}

fn unaligned_slices(kernels: Kernels) {
    let mut random = Random(11);
    let (a, b) = (random.values(450), random.values(450));
    let (x, y) = (random.codes(450), random.codes(450));
    for start in 0..64 {
        let range = start..start + 384;
        let (a, b) = (&a[range.clone()], &b[start / 2..start / 2 + 384]);
        f32_products_meet_their_bounds(kernels, a, b).unwrap();
        fine_codes_say_the_rest(kernels, a, b).unwrap();
        quantisation_is_the_scalar_one_and_bounded(kernels, a).unwrap();
        i8_products_are_exact(kernels, &x[range], &y[start / 2..start / 2 + 384]).unwrap();
    }
}

fn not_a_number_and_infinity(kernels: Kernels) {
    for len in [1, 8, 15, 33, 64, 100, 384, 385] {
        let ones = vec![1.0; len];
        for position in 0..len {
            let mut v = ones.clone();
            v[position] = f32::NAN;
            assert!(kernels.dot_f32(&v, &ones).is_nan());
            assert!(kernels.dot_f32(&ones, &v).is_nan());
            assert!(kernels.l2_squared_f32(&v, &ones).is_nan());
            assert!(kernels.norm_f32(&v).is_nan());
            refused(kernels, &v);
            v[position] = -f32::NAN;
            refused(kernels, &v);
            v[position] = f32::NEG_INFINITY;
            assert_eq!(kernels.dot_f32(&v, &ones), f32::NEG_INFINITY);
            assert_eq!(kernels.l2_squared_f32(&v, &ones), f32::INFINITY);
            assert!(kernels.l2_squared_f32(&v, &v).is_nan());
            assert_eq!(kernels.norm_f32(&v), f32::INFINITY);
            refused(kernels, &v);
        }
        assert!(kernels.dot_f32(&vec![f32::INFINITY; len], &vec![0.0; len]).is_nan());
    }
}

/// What is not finite is neither normalised nor quantised, and the caller can tell.
fn refused(kernels: Kernels, v: &[f32]) {
    let mut unit = v.to_vec();
    assert_eq!(kernels.normalize_f32(&mut unit), None);
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&unit), bits(v));
    let mut codes = vec![1; v.len()];
    let params = kernels.quantize_i8(v, &mut codes);
    assert_eq!((params.scale, params.error_norm), (1.0, f32::INFINITY));
    assert!(codes.iter().all(|c| *c == 0));
}

fn huge_and_tiny_values(kernels: Kernels) {
    let tiny = f32::from_bits(1);
    for len in [1, 16, 33, 384] {
        for value in [tiny, 100.0 * tiny, f32::MIN_POSITIVE, 1e-30, 1e30, f32::MAX / 256.0] {
            for v in [vec![value; len], vec![-value; len]] {
                normalised_vectors_have_norm_one(kernels, &v).unwrap();
                quantisation_is_the_scalar_one_and_bounded(kernels, &v).unwrap();
            }
        }
        let (mut codes, v) = (vec![1; len], vec![f32::MAX; len]);
        quantisation_is_the_scalar_one_and_bounded(kernels, &v).unwrap();
        kernels.quantize_i8(&v, &mut codes);
        assert!(codes.iter().all(|c| *c == 127));
        let params = kernels.quantize_i8(&vec![-tiny; len], &mut codes);
        assert_eq!(params.scale, 1.0);
        assert!(codes.iter().all(|c| *c == 0));
        let params = kernels.quantize_i8(&vec![-0.0; len], &mut codes);
        assert_eq!((params.scale, params.error_norm), (1.0, 0.0));
    }
    assert_eq!(kernels.norm_f32(&[f32::MAX; 2]), f32::INFINITY);
    assert_eq!(kernels.normalize_f32(&mut [f32::MAX; 4]), Some(f32::INFINITY));
    assert_eq!(kernels.norm_f32(&[3e-30, 4e-30]), 5e-30);
    assert_eq!(kernels.normalize_f32(&mut []), None);
}

fn ties_round_to_even(kernels: Kernels) {
    // The scale is exactly one, so that halves are ties.
    let mut v = vec![127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5, 126.5, -126.5];
    let mut expected = vec![127, 0, 2, 2, 0, -2, -2, 126, 126, -126];
    for _ in 0..6 {
        let mut codes = vec![0; v.len()];
        let params = kernels.quantize_i8(&v, &mut codes);
        assert_eq!((params.scale, &codes), (1.0, &expected));
        v.extend_from_within(..);
        expected.extend_from_within(..);
    }
}

#[test]
fn prefetch_takes_any_row() {
    for len in [0, 1, 64, 65, 384] {
        flashbulb_kernels::prefetch(&vec![1i8; len]);
    }
}

/// Past the harness, which hides the output of tests that pass.
fn say_not_run(level: SimdLevel) {
    let line = format!("NOT RUN: the tests of {level}: this processor lacks it\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// The tests of one level. Each asks for the kernels and skips, visibly, where there are none.
macro_rules! level {
    ($module:ident, $level:expr) => {
        mod $module {
            use super::*;

            fn kernels() -> Option<Kernels> {
                let kernels = Kernels::with_level($level);
                match kernels {
                    Some(kernels) => assert_eq!(kernels.level(), $level),
                    None => {
                        static SAID: Once = Once::new();
                        SAID.call_once(|| say_not_run($level));
                    }
                }
                kernels
            }

            level!(@each all_lengths every_position_counts_once extreme_codes rows_of_every_shape
                unaligned_slices not_a_number_and_infinity huge_and_tiny_values ties_round_to_even);

            proptest! {
                #[test]
                fn any_values((a, b) in pair(element, 600)) {
                    let Some(kernels) = kernels() else { return Ok(()) };
                    f32_products_meet_their_bounds(kernels, &a, &b)?;
                    normalised_vectors_have_norm_one(kernels, &a)?;
                    quantisation_is_the_scalar_one_and_bounded(kernels, &a)?;
                    codes_bound_the_true_product(kernels, &a, &b)?;
                }

                #[test]
                fn any_bits_quantise(bits in prop::collection::vec(any::<u32>(), 0..100)) {
                    let Some(kernels) = kernels() else { return Ok(()) };
                    let v: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
                    if v.iter().all(|x| x.is_finite()) {
                        quantisation_is_the_scalar_one_and_bounded(kernels, &v)?;
                    } else {
                        refused(kernels, &v);
                    }
                }

                #[test]
                fn any_codes((a, b) in pair(code, 1100)) {
                    let Some(kernels) = kernels() else { return Ok(()) };
                    i8_products_are_exact(kernels, &a, &b)?;
                }

                #[test]
                fn any_rows(len in 0usize..200, rows in 0usize..30, seed in any::<u64>()) {
                    let Some(kernels) = kernels() else { return Ok(()) };
                    rows_equal_single_products(kernels, len, rows, &mut Random(seed));
                }
            }
        }
    };
    (@each $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                if let Some(kernels) = kernels() {
                    super::$test(kernels);
                }
            }
        )*
    };
}

level!(scalar_level, SimdLevel::Scalar);
level!(avx2_level, SimdLevel::Avx2);
level!(avx512_level, SimdLevel::Avx512);
level!(amx_level, SimdLevel::Amx);
level!(neon_level, SimdLevel::Neon);
