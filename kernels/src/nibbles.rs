//! Codes of four bits, two in a byte: for vectors that are kept in little room.
//!
//! Invariants: packing loses nothing of codes in −8..=7; products are exact and equal at every level, and so are the codes. Must not
//! know what a vector means.
//!
//! Each 64 bytes hold 128 codes: the first 64 in the lower halves, the next in the upper ones, each moved up by 8. So a register is
//! taken apart by a mask and a shift, and multiplies 64 codes of a query as they lie.

use crate::{I8Params, Kernels, MAX_I8_LEN, scalar};

/// Codes that are packed together: their number is a multiple of this.
pub const NIBBLES_TOGETHER: usize = 2 * HALF;
/// Bytes of them, and how far apart two codes in one byte are.
pub(crate) const HALF: usize = 64;
/// What is added to a code to make it a number of four bits.
pub(crate) const OFFSET: i8 = 8;
/// Largest magnitude of a code.
const MOST: f32 = 7.0;
/// Steps that are tried, as parts of the root mean square. The first of these suit values that are spread like a normal variable.
const STEPS: [f32; 4] = [0.30, 0.35, 0.40, 0.45];

/// Bytes of so many codes.
///
/// # Panics
/// If they are not a multiple of [`NIBBLES_TOGETHER`].
pub fn nibble_bytes(codes: usize) -> usize {
    assert_eq!(codes % NIBBLES_TOGETHER, 0, "{codes} codes do not fill whole groups");
    codes / 2
}

/// Packs codes in −8..=7.
///
/// # Panics
/// If `packed` is not [`nibble_bytes`] long.
pub fn pack_nibbles(codes: &[i8], packed: &mut [u8]) {
    assert_eq!(packed.len(), nibble_bytes(codes.len()), "codes and bytes do not agree");
    let half = |code: i8| code.wrapping_add(OFFSET).cast_unsigned() & 0xf;
    for (codes, bytes) in codes.chunks_exact(2 * HALF).zip(packed.chunks_exact_mut(HALF)) {
        let (low, high) = codes.split_at(HALF);
        for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *byte = half(*low) | half(*high) << 4;
        }
    }
}

/// Appends the codes that were packed.
pub fn unpack_nibbles(packed: &[u8], codes: &mut Vec<i8>) {
    for bytes in packed.chunks(HALF) {
        codes.extend(bytes.iter().map(|byte| (byte & 0xf).cast_signed() - OFFSET));
        codes.extend(bytes.iter().map(|byte| (byte >> 4).cast_signed() - OFFSET));
    }
}

impl Kernels {
    /// Quantisation to codes in −7..=7, with the one of a few steps that keeps the vector's direction best. With `scale`, the product of
    /// the codes and the vector is the vector's squared length: so products with vectors near it come out neither too large nor too small.
    ///
    /// As with [`Kernels::quantize_i8`], all codes are zero and the scale is one for a vector that is zero, negligible or not finite.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn quantize_i4(&self, src: &[f32], codes: &mut [i8]) -> I8Params {
        assert_eq!(src.len(), codes.len(), "vector and codes of different lengths");
        codes.fill(0);
        let most = src.iter().fold(0f32, |most, value| most.max(value.abs()));
        if src.iter().any(|value| !value.is_finite()) {
            return I8Params { scale: 1.0, error_norm: f32::INFINITY };
        }
        let scale = choose(src, most, codes).filter(|scale| *scale >= scalar::MIN_SCALE);
        let scale = scale.unwrap_or_else(|| {
            codes.fill(0);
            1.0
        });
        let residual = |(value, code): (&f32, &i8)| {
            let residual = f64::from(*value) - f64::from(*code) * f64::from(scale);
            residual * residual
        };
        scalar::params(scale, src.iter().zip(&*codes).map(residual).sum(), src.len())
    }

    /// The product of a query's codes with packed ones, exact. Every i8 is allowed in the query.
    ///
    /// # Panics
    /// If `packed` is not [`nibble_bytes`] of the query's length long, or that exceeds [`MAX_I8_LEN`].
    #[inline]
    pub fn dot_i4(&self, query: &[i8], packed: &[u8]) -> i32 {
        assert_eq!(packed.len(), nibble_bytes(query.len()), "query and codes of different lengths");
        assert!(query.len() <= MAX_I8_LEN, "codes longer than MAX_I8_LEN");
        dispatch!(self, dot_i4(query, packed))
    }

    /// [`Kernels::dot_i4`] of one query with each of consecutive rows.
    ///
    /// # Panics
    /// If `rows` does not hold `out.len()` rows, or as [`Kernels::dot_i4`].
    pub fn dot_i4_rows(&self, query: &[i8], rows: &[u8], out: &mut [i32]) {
        let bytes = nibble_bytes(query.len());
        assert_eq!(Some(rows.len()), bytes.checked_mul(out.len()), "rows and out do not agree");
        if bytes == 0 {
            return out.fill(0);
        }
        for (row, out) in rows.chunks_exact(bytes).zip(out) {
            *out = self.dot_i4(query, row);
        }
    }
}

/// Writes the codes of the best step; returns their scale, or `None` if there is none.
fn choose(src: &[f32], most: f32, codes: &mut [i8]) -> Option<f32> {
    // In parts of the largest magnitude, so that no sum overflows or vanishes.
    let squares: f32 = scalar::sum_of(src, |value| (value / most).powi(2));
    let root_mean_square = (squares / src.len() as f32).sqrt();
    let steps = STEPS.map(|step| step * root_mean_square).into_iter().chain([1.0 / MOST]);
    let (mut best, mut best_cosine) = (None, 0.0);
    for step in steps {
        let of = |value: f32| code(value / most, step);
        let along = scalar::sum_of(src, |value| value / most * of(value));
        let cosine = along / scalar::sum_of(src, |value| of(value).powi(2)).sqrt();
        // Also false of what is not a number.
        if cosine > best_cosine {
            (best, best_cosine) = (Some((step, along)), cosine);
        }
    }
    let (step, along) = best?;
    codes.iter_mut().zip(src).for_each(|(to, value)| *to = code(value / most, step) as i8);
    Some(squares / along * most)
}

fn code(value: f32, step: f32) -> f32 {
    // At this number a step of f32 is one: it rounds without a call, which most processors' baseline needs for it.
    const ONES: f32 = (3 << 22) as f32;
    (value / step).clamp(-MOST, MOST) + ONES - ONES
}

/// `query` and `packed` agree in length.
pub(crate) fn dot_i4(query: &[i8], packed: &[u8]) -> i32 {
    let mut sum = 0;
    for (query, bytes) in query.chunks_exact(2 * HALF).zip(packed.chunks_exact(HALF)) {
        let (low, high) = query.split_at(HALF);
        for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
            let offset = i32::from(OFFSET);
            sum += i32::from(*low) * (i32::from(byte & 0xf) - offset);
            sum += i32::from(*high) * (i32::from(byte >> 4) - offset);
        }
    }
    sum
}
