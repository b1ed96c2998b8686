//! Portable kernels in plain Rust: the oracle that every SIMD level is tested against, and the
//! level of processors that have none of them.
//!
//! Invariant: each function states the arithmetic in its simplest order; a SIMD level may sum in
//! another order but rounds each element the same way. It must not know which level calls it.

use crate::I8Params;
pub(crate) use crate::nibbles::dot_i4;
pub(crate) use crate::rotation::rotate;
pub(crate) use crate::signs::{sign_magnitudes, sign_table, sums as sign_sums};
pub(crate) use crate::sketch::{estimate, sketch_signs};

/// Smallest scale that is used: below it the step itself would be rounded.
pub(crate) const MIN_SCALE: f32 = f32::MIN_POSITIVE;

/// Bits of +∞. The bits of a magnitude compare as integers; infinities and NaN are the largest.
const INFINITY_BITS: u32 = 0x7f80_0000;

/// Clears the sign of an f32's bits.
const MAGNITUDE_MASK: u32 = 0x7fff_ffff;

pub(crate) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

pub(crate) fn l2_squared_f32(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// Sum of squares in f64: the square of any f32 is exact there and neither overflows nor vanishes.
pub(crate) fn sum_of_squares(v: &[f32]) -> f64 {
    v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}

pub(crate) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(x, y)| i32::from(*x) * i32::from(*y)).sum()
}

pub(crate) fn dot_i8_x4(query: &[i8], rows: [&[i8]; 4]) -> [i32; 4] {
    rows.map(|row| dot_i8(query, row))
}

/// Writes what each code left over, the nearest of `step` steps to 1 with ties to even.
#[inline(always)]
pub(crate) fn encode_fine(src: &[f32], codes: &[i8], step: f32, fine: &mut [i8]) {
    for ((value, code), fine) in src.iter().zip(codes).zip(fine) {
        let whole = crate::FINE_STEPS * i32::from(*code);
        let steps = (value * step).round_ties_even() - whole as f32;
        *fine = steps.clamp(-127.0, 127.0) as i8;
    }
}

/// `Σ query · (254 · code + fine)`; each factor is exact in f32.
#[inline(always)]
pub(crate) fn dot_fine(query: &[f32], codes: &[i8], fine: &[i8]) -> f32 {
    const LANES: usize = 16;
    let value =
        |(code, fine): (&i8, &i8)| (i32::from(*code) * crate::FINE_STEPS + i32::from(*fine)) as f32;
    let mut sums = [0.0; LANES];
    let (queries, rest) = query.as_chunks::<LANES>();
    let ((codes, rest_codes), (fine, rest_fine)) = (codes.as_chunks(), fine.as_chunks());
    for ((query, codes), fine) in queries.iter().zip(codes).zip(fine) {
        let codes: &[i8; LANES] = codes;
        let fine: &[i8; LANES] = fine;
        for at in 0..LANES {
            sums[at] += query[at] * value((&codes[at], &fine[at]));
        }
    }
    let tail: f32 =
        rest.iter().zip(rest_codes.iter().zip(rest_fine).map(value)).map(|(q, v)| q * v).sum();
    sums.iter().sum::<f32>() + tail
}

/// `rows` holds `out.len()` rows of `query.len()` codes; the query is not empty.
pub(crate) fn dot_i8_rows(query: &[i8], rows: &[i8], out: &mut [i32]) {
    for (row, dot) in rows.chunks_exact(query.len()).zip(out) {
        *dot = dot_i8(query, row);
    }
}

/// Bits of the largest magnitude; at least those of +∞ if any element is infinite or NaN.
pub(crate) fn max_magnitude_bits(v: &[f32]) -> u32 {
    v.iter().map(|x| x.to_bits() & MAGNITUDE_MASK).max().unwrap_or(0)
}

/// Writes the code of each element, the nearest step with ties to even, and returns the sum of
/// the squared residuals. `step` fits the elements: see [`Step`].
pub(crate) fn encode_i8(src: &[f32], dst: &mut [i8], step: Step) -> f64 {
    let mut residual_squares = 0f64;
    for (value, code) in src.iter().zip(dst) {
        let rounded = (value * step.inverse).round_ties_even();
        *code = rounded as i8;
        // Exact: the product has 31 significant bits, and the difference needs fewer than 53.
        let residual = f64::from(*value) - f64::from(rounded) * f64::from(step.scale);
        residual_squares += residual * residual;
    }
    residual_squares
}

/// Values summed side by side.
const LANES: usize = 16;

/// The sum of what is made of each value; always in the same order.
#[inline(always)]
pub(crate) fn sum_of(src: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = src.as_chunks::<LANES>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += of(*value);
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, value)| *lane += of(*value));
    lanes.iter().sum()
}

/// As [`sum_of`], of values and their codes. The slices are of one length.
#[inline(always)]
pub(crate) fn sum_with(src: &[f32], codes: &[i8], of: impl Fn(f32, i8) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((whole, rest), (codes, rest_codes)) = (src.as_chunks::<LANES>(), codes.as_chunks());
    for (values, codes) in whole.iter().zip(codes) {
        let codes: &[i8; LANES] = codes;
        for at in 0..LANES {
            lanes[at] += of(values[at], codes[at]);
        }
    }
    for (lane, (value, code)) in lanes.iter_mut().zip(rest.iter().zip(rest_codes)) {
        *lane += of(*value, *code);
    }
    lanes.iter().sum()
}

/// The step between codes. No element it is made for exceeds 127 steps by more than rounding, so
/// that every rounded code lies in −127..=127.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) scale: f32,
    pub(crate) inverse: f32,
}

/// What [`max_magnitude_bits`] says about how to quantise a vector.
pub(crate) enum Range {
    /// An element is infinite or NaN.
    NotFinite,
    /// All elements are zero, or so small that the step would not be a normal number.
    Negligible,
    /// Elements are encoded with this step.
    Steps(Step),
}

impl Range {
    pub(crate) fn of(max_magnitude_bits: u32) -> Range {
        if max_magnitude_bits >= INFINITY_BITS {
            return Range::NotFinite;
        }
        let scale = f32::from_bits(max_magnitude_bits) / 127.0;
        if scale < MIN_SCALE {
            return Range::Negligible;
        }
        Range::Steps(Step { scale, inverse: 1.0 / scale })
    }
}

/// The parameters of a vector of `len` elements whose squared residuals, summed in f64 in any
/// order, came to `residual_squares`.
pub(crate) fn params(scale: f32, residual_squares: f64, len: usize) -> I8Params {
    // Each of the `len` squares and additions loses at most half an ulp (2^-53), the root too.
    let slack = 1.0 + (len as f64 + 4.0) * f64::EPSILON;
    let bound = residual_squares.sqrt() * slack;
    let nearest = bound as f32;
    let error_norm = if f64::from(nearest) < bound { nearest.next_up() } else { nearest };
    I8Params { scale, error_norm }
}
