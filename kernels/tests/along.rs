//! Codes whose rounding is at right angles to the vector, at every SIMD level, against f64.
//!
//! The promise is of the public documentation: with the scale, the product of the codes and the vector is its squared length; the error's
//! norm is a bound; codes and scale are the same at every level.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "needs less of it than the tests of levels")]
mod oracle;

use flashbulb_kernels::{Kernels, SimdLevel};
use oracle::{Random, norm_f64, residual_norm};

const LEVELS: [SimdLevel; 4] =
    [SimdLevel::Scalar, SimdLevel::Avx2, SimdLevel::Avx512, SimdLevel::Neon];

fn kernels() -> impl Iterator<Item = Kernels> {
    LEVELS.into_iter().filter_map(Kernels::with_level)
}

/// The product of the codes and the vector with this scale, in parts of the squared length, less one.
fn along(v: &[f32], steps: impl Iterator<Item = f64>, scale: f32) -> f64 {
    let product: f64 = v.iter().zip(steps).map(|(value, steps)| f64::from(*value) * steps).sum();
    product * f64::from(scale) / norm_f64(v).powi(2) - 1.0
}

fn vectors() -> impl Iterator<Item = Vec<f32>> {
    let mut random = Random(7);
    let lengths = (1..70).chain([128, 384, 385, 1_536, 4_096]);
    lengths.zip([1.0, 1e-30, 1e15, 1e-3].into_iter().cycle()).map(move |(len, size)| {
        let spread = random.values(len);
        // Some values are far larger than the others, as in embeddings.
        spread
            .iter()
            .enumerate()
            .map(|(at, v)| v * size * if at % 29 == 0 { 8.0 } else { 1.0 })
            .collect()
    })
}

#[test]
fn rounding_is_at_right_angles_to_the_vector() {
    for (kernels, v) in kernels().flat_map(|kernels| vectors().map(move |v| (kernels, v))) {
        let mut codes = vec![99; v.len()];
        let params = kernels.quantize_i8_along(&v, &mut codes);
        let off = along(&v, codes.iter().map(|code| f64::from(*code)), params.scale);
        assert!(off.abs() < 1e-6, "{} values: off by {off:e}", v.len());
        let plain = kernels.quantize_i8(&v, &mut vec![0; v.len()]);
        let off = (params.scale / plain.scale - 1.0).abs();
        assert!(off < 0.02 + 0.5 / (v.len() as f32).sqrt(), "{} values: {off}", v.len());
    }
}

#[test]
fn the_error_is_a_bound_and_not_much_more_than_that_of_plain_rounding() {
    for (kernels, v) in kernels().flat_map(|kernels| vectors().map(move |v| (kernels, v))) {
        let mut codes = vec![0; v.len()];
        let params = kernels.quantize_i8_along(&v, &mut codes);
        let residual = residual_norm(&v, &codes, params.scale);
        assert!(f64::from(params.error_norm) >= residual, "{} < {residual}", params.error_norm);
        let most = f64::from(params.scale) * 0.5 * (v.len() as f64).sqrt() + 0.02 * norm_f64(&v);
        assert!(f64::from(params.error_norm) <= most, "{} > {most}", params.error_norm);
        assert!(codes.iter().all(|code| *code != -128));
    }
}

#[test]
fn fine_codes_make_the_product_truer_still() {
    for (kernels, v) in kernels().flat_map(|kernels| vectors().map(move |v| (kernels, v))) {
        let (mut codes, mut fine) = (vec![0; v.len()], vec![0; v.len()]);
        let given = kernels.quantize_i8_along(&v, &mut codes).scale;
        let scale = kernels.quantize_fine(&v, &codes, given, &mut fine);
        let steps = codes.iter().zip(&fine);
        let steps = steps.map(|(code, fine)| f64::from(*code) + f64::from(*fine) / 254.0);
        let off = along(&v, steps, scale);
        assert!(off.abs() < 2e-7, "{} values: off by {off:e}", v.len());
        assert!((scale / given - 1.0).abs() < 1e-3, "{} values: {given} to {scale}", v.len());
    }
}

#[test]
fn every_level_gives_the_same() {
    let scalar = Kernels::with_level(SimdLevel::Scalar).unwrap();
    for (kernels, v) in kernels().flat_map(|kernels| vectors().map(move |v| (kernels, v))) {
        let of = |kernels: Kernels| {
            let (mut codes, mut fine) = (vec![0; v.len()], vec![0; v.len()]);
            let params = kernels.quantize_i8_along(&v, &mut codes);
            let scale = kernels.quantize_fine(&v, &codes, params.scale, &mut fine);
            (codes, fine, params.scale, scale)
        };
        assert!(of(kernels) == of(scalar), "{} values", v.len());
    }
}

#[test]
fn what_has_no_steps_has_zero_codes_and_a_scale_of_one() {
    for kernels in kernels() {
        let nothing = [0.0, -0.0, 0.0, 0.0, 0.0];
        let tiny = [f32::from_bits(1); 5];
        let not_finite = [1.0, f32::NAN, 2.0, f32::INFINITY, -1.0];
        for (v, error_norm) in [(nothing, 0.0), (not_finite, f32::INFINITY)] {
            let mut codes = [7; 5];
            let params = kernels.quantize_i8_along(&v, &mut codes);
            assert_eq!((codes, params.scale, params.error_norm), ([0; 5], 1.0, error_norm));
            assert_eq!(kernels.quantize_fine(&v, &codes, 1.0, &mut [0; 5]), 1.0);
        }
        let mut codes = [7; 5];
        let params = kernels.quantize_i8_along(&tiny, &mut codes);
        assert_eq!((codes, params.scale), ([0; 5], 1.0));
        assert!(f64::from(params.error_norm) >= norm_f64(&tiny));
        let largest = [f32::MAX; 5];
        let params = kernels.quantize_i8_along(&largest, &mut codes);
        assert!(params.scale.is_finite() && codes.iter().all(|code| *code >= 125), "{codes:?}");
    }
}
