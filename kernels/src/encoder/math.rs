//! The floating-point part of a layer, in lanes that every level computes in the same order.
//!
//! Invariant: only operations that IEEE 754 rounds in one way (`+ - * /`, square root, fused multiply-add), in an order
//! that the source fixes, so that the compiler may vectorise but not change a bit.

use super::Activation;

/// How many elements are worked on together: one AVX-512 register, two of AVX2, four of NEON.
pub(super) const LANES: usize = 16;

/// One element in each lane.
pub(super) type Lanes = [f32; LANES];

#[inline(always)]
pub(super) fn each(f: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (at, lane) in lanes.iter_mut().enumerate() {
        *lane = f(at);
    }
    lanes
}

/// Folds the lanes as a tree.
#[inline(always)]
fn fold(mut lanes: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for at in 0..width {
            lanes[at] = f(lanes[at], lanes[at + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Sum of all `f(value)`, accumulated by lane.
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let (blocks, tail) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for block in blocks {
        sums = each(|at| f(block[at], sums[at]));
    }
    for (sum, &value) in sums.iter_mut().zip(tail) {
        *sum = f(value, *sum);
    }
    fold(sums, |a, b| a + b)
}

/// How a row of activations was quantised: `x ≈ offset + scale · code`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Affine {
    pub scale: f32,
    pub offset: f32,
}

/// The largest activation code.
const CODE_MAX: f32 = 255.0;
/// 1.5 · 2^23: adding it leaves the nearest integer in the low bits of the sum.
const TO_INTEGER: f32 = 12_582_912.0;

/// The lowest byte of each lane.
#[inline(always)]
pub(super) fn lowest_bytes(lanes: Lanes) -> [u8; LANES] {
    lanes.map(|lane| lane.to_bits() as u8)
}

/// Codes of `row` into `codes`, as long as it. What is not finite makes the scale NaN. `lowest_bytes` is the function of
/// that name in any form.
#[inline(always)]
pub(super) fn quantise(
    row: &[f32],
    codes: &mut [u8],
    lowest_bytes: impl Fn(Lanes) -> [u8; LANES],
) -> Affine {
    let (blocks, tail) = row.as_chunks::<LANES>();
    let first = row.first().copied().unwrap_or_default();
    let (mut low, mut high, mut poison) = ([first; LANES], [first; LANES], [0.0f32; LANES]);
    for block in blocks {
        low = each(|at| smaller(low[at], block[at]));
        high = each(|at| larger(high[at], block[at]));
        poison = each(|at| block[at].mul_add(0.0, poison[at]));
    }
    for (at, &value) in tail.iter().enumerate() {
        low[at] = smaller(low[at], value);
        high[at] = larger(high[at], value);
        poison[at] = value.mul_add(0.0, poison[at]);
    }
    let (low, high) = (fold(low, smaller), fold(high, larger));
    let range = high - low;
    let inverse = if range > 0.0 { CODE_MAX / range } else { 0.0 };
    // A range so small that the quotient overflows is no range.
    let inverse = if inverse < f32::INFINITY { inverse } else { 0.0 };
    let shifted = |value: f32| (value - low) * inverse + TO_INTEGER;
    let (out_blocks, out_tail) = codes.as_chunks_mut::<LANES>();
    for (block, out) in blocks.iter().zip(out_blocks) {
        *out = lowest_bytes(each(|at| shifted(block[at])));
    }
    for (&value, out) in tail.iter().zip(out_tail) {
        *out = shifted(value).to_bits() as u8;
    }
    Affine { scale: range / CODE_MAX + fold(poison, |a, b| a + b), offset: low }
}

/// `e^x` for x up to 88; zero below −87. Relative error below 2e-7 (degree-6 polynomial after Cody and Waite's
/// reduction).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = smaller(larger(x, -87.0), 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, TO_INTEGER);
    let whole = shifted - TO_INTEGER;
    let rest = whole.mul_add(-LN2_LOW, whole.mul_add(-LN2_HIGH, clamped));
    let mut power = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0]
    {
        power = power.mul_add(rest, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits()).wrapping_add(127) << 23;
    let value = power * f32::from_bits(exponent);
    // NaN stays NaN: it is not below the bound.
    if x < -87.0 { 0.0 } else { value + x * 0.0 }
}

/// The error function as a quotient of polynomials in x², absolute error below 3e-7 (the coefficients are those of
/// Eigen's `generic_fast_erf_float`); one beyond four.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = smaller(larger(x, -4.0), 4.0) + x * 0.0;
    let square = x * x;
    let mut above = -2.726_142_3e-10f32;
    for coefficient in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        above = above.mul_add(square, coefficient);
    }
    let mut below = -1.456_607_2e-5f32;
    for coefficient in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        below = below.mul_add(square, coefficient);
    }
    x * above / below
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    let half = 0.5 * x;
    half.mul_add(erf(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let inner = SQRT_2_OVER_PI * (x * x * x).mul_add(0.044_715, x);
    // x · (1 + tanh u) / 2 = x / (1 + e^−2u).
    x / (1.0 + exp(-2.0 * inner))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // NaN stays NaN.
    if x < 0.0 { 0.0 } else { x }
}

/// `row = f(row) · factors`.
#[inline(always)]
pub(super) fn activate(activation: Activation, row: &mut [f32], factors: &[f32]) {
    match activation {
        Activation::Gelu => map(row, factors, gelu),
        Activation::GeluTanh => map(row, factors, gelu_tanh),
        Activation::Relu => map(row, factors, relu),
    }
}

#[inline(always)]
fn map(row: &mut [f32], factors: &[f32], f: impl Fn(f32) -> f32) {
    let (blocks, tail) = row.as_chunks_mut::<LANES>();
    let (factor_blocks, factor_tail) = factors.as_chunks::<LANES>();
    for (block, factor) in blocks.iter_mut().zip(factor_blocks) {
        *block = each(|at| f(block[at]) * factor[at]);
    }
    for (value, factor) in tail.iter_mut().zip(factor_tail) {
        *value = f(*value) * factor;
    }
}

/// `row · scale` to probabilities: `e^(x − max) / Σ`.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32], scale: f32) {
    let (blocks, tail) = row.as_chunks::<LANES>();
    let mut high = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        high = each(|at| larger(block[at], high[at]));
    }
    for (high, &value) in high.iter_mut().zip(tail) {
        *high = larger(value, *high);
    }
    let high = fold(high, larger);
    let (blocks, tail) = row.as_chunks_mut::<LANES>();
    for block in blocks {
        *block = each(|at| exp((block[at] - high) * scale));
    }
    for value in tail {
        *value = exp((*value - high) * scale);
    }
    let inverse = 1.0 / sum(row, |value, sum| sum + value);
    for value in row {
        *value *= inverse;
    }
}

/// `out = (v − mean) / √(variance + ε) · weight + bias` for `v = row + skip`; `row` becomes v.
#[inline(always)]
pub(super) fn add_and_normalise(
    row: &mut [f32],
    skip: &[f32],
    [weight, bias]: [&[f32]; 2],
    epsilon: f32,
    out: &mut [f32],
) {
    for (value, skip) in row.iter_mut().zip(skip) {
        *value += skip;
    }
    let count = row.len() as f32;
    let mean = sum(row, |value, sum| sum + value) / count;
    let squares = sum(row, |value, sum| (value - mean).mul_add(value - mean, sum));
    let inverse = 1.0 / (squares / count + epsilon).sqrt();
    for (((out, value), weight), bias) in out.iter_mut().zip(row).zip(weight).zip(bias) {
        *out = ((*value - mean) * inverse).mul_add(*weight, *bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its Taylor series in f64, for |x| up to 5.
    fn erf_f64(x: f64) -> f64 {
        let (mut term, mut total) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            total += term / f64::from(2 * n + 1);
        }
        total * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn the_exponential_is_close_and_ends_at_zero() {
        for step in -8700..=8800 {
            let x = step as f32 * 0.01;
            let true_value = f64::from(x).exp();
            let error = (f64::from(exp(x)) - true_value).abs() / true_value;
            assert!(error < 2e-7, "e^{x} is off by {error}");
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn the_activations_are_close() {
        for step in -500..=500 {
            let x = step as f32 * 0.01;
            let wide = f64::from(x);
            let exact = 0.5 * wide * (1.0 + erf_f64(wide * std::f64::consts::FRAC_1_SQRT_2));
            assert!((f64::from(gelu(x)) - exact).abs() < 1e-6, "gelu({x})");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let exact = 0.5 * wide * (1.0 + inner.tanh());
            assert!((f64::from(gelu_tanh(x)) - exact).abs() < 1e-6, "gelu_tanh({x})");
        }
        assert!((gelu(30.0) - 30.0).abs() < 1e-4 && gelu(-30.0).abs() < 1e-4);
        assert_eq!((relu(-1.0), relu(2.0)), (0.0, 2.0));
        assert!(gelu(f32::NAN).is_nan() && gelu_tanh(f32::NAN).is_nan() && relu(f32::NAN).is_nan());
    }

    #[test]
    fn codes_come_back_within_half_a_step() {
        for len in [1, 5, 16, 17, 400] {
            let row: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 30.0) * 0.07).collect();
            let mut codes = vec![255; len];
            let affine = quantise(&row, &mut codes, lowest_bytes);
            for (value, &code) in row.iter().zip(&codes) {
                let back = affine.scale.mul_add(f32::from(code), affine.offset);
                assert!(
                    (back - value).abs() <= affine.scale * 0.501,
                    "{value} came back as {back}"
                );
            }
        }
    }

    #[test]
    fn rows_without_range_and_rows_that_are_not_finite() {
        let mut codes = [1; 20];
        let affine = quantise(&[3.5; 20], &mut codes, lowest_bytes);
        assert_eq!((affine.scale, affine.offset, codes), (0.0, 3.5, [0; 20]));
        let tiny = [0.0, 1e-45];
        let affine = quantise(&tiny, &mut codes[..2], lowest_bytes);
        assert!(affine.scale.is_finite() && codes[..2] == [0, 0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 19] {
                let mut row = [1.0; 20];
                row[at] = bad;
                assert!(quantise(&row, &mut codes, lowest_bytes).scale.is_nan(), "{bad} at {at}");
            }
        }
    }

    #[test]
    fn probabilities_sum_to_one_and_keep_their_order() {
        for len in [1, 3, 16, 31, 256] {
            let mut row: Vec<f32> = (0..len).map(|i| (i * 7 % 13) as f32 - 4.0).collect();
            let before = row.clone();
            softmax(&mut row, 0.5);
            let total: f64 = row.iter().map(|&p| f64::from(p)).sum();
            assert!((total - 1.0).abs() < 1e-6);
            let weights = before.iter().map(|&x| (f64::from(x) * 0.5).exp());
            let all: f64 = weights.clone().sum();
            for (p, weight) in row.iter().zip(weights) {
                assert!((f64::from(*p) - weight / all).abs() < 1e-6);
            }
        }
    }
}
