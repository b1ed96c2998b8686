//! Kernels of Flashbulb: products and norms of f32 vectors, exact products of codes of eight and of four bits, sums by the signs of 32 rows
//! at once and estimates from sketches of them, random rotations, quantisation with an error bound, a bounded top-k, an
//! encoder layer in int8, and a list of the GPU adapters.
//!
//! Each kernel exists in portable Rust ([`SimdLevel::Scalar`], the oracle of the tests) and for the
//! SIMD levels of x86-64 and AArch64. [`Kernels::detect`] chooses once per process. All distances
//! are computed on the CPU; `gpu` (a feature) lists adapters and computes nothing.
//!
//! Invariants, at every level:
//!
//! - i8 products are exact and equal everywhere; so are the codes of [`Kernels::quantize_i8`].
//! - An f32 sum of n products differs from the true one by at most `1.01 · n · 2^-24 · Σ|aᵢ·bᵢ|`,
//!   plus `n · 2^-149` for products too small for f32, as long as n is below 100,000 and nothing
//!   overflows. Levels sum in different orders, so their f32 results may differ within it.
//! - Lengths may be anything, zero included, and slices need no alignment.
//!
//! **NaN and infinity.** f32 products and norms follow IEEE 754: a NaN among the inputs gives NaN;
//! infinities give an infinity or NaN; so may finite values whose products overflow f32.
//! [`Kernels::normalize_f32`] refuses what is not finite, [`Kernels::quantize_i8`] reports an
//! infinite error, and [`TopK`] refuses NaN scores.
//!
//! This crate must not know files, ids, threads or what a vector means.

use std::fmt;
use std::sync::OnceLock;

/// Calls the function of the level's module.
macro_rules! dispatch {
    ($kernels:expr, $function:ident($($argument:expr),*)) => {
        match $kernels.level {
            #[cfg(target_arch = "x86_64")]
            $crate::SimdLevel::Avx512 | $crate::SimdLevel::Amx => {
                // SAFETY: a `Kernels` of these levels exists only where the features were detected.
                unsafe { $crate::x86::avx512::$function($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::SimdLevel::Avx2 => {
                // SAFETY: a `Kernels` of this level exists only where the features were detected.
                unsafe { $crate::x86::avx2::$function($($argument),*) }
            }
            #[cfg(target_arch = "aarch64")]
            $crate::SimdLevel::Neon => {
                // SAFETY: a `Kernels` of this level exists only where the feature was detected.
                unsafe { $crate::neon::$function($($argument),*) }
            }
            _ => $crate::scalar::$function($($argument),*),
        }
    };
}

pub mod encoder;
#[cfg(feature = "gpu")]
pub mod gpu;
#[cfg(target_arch = "aarch64")]
mod neon;
mod nibbles;
mod rotation;
mod scalar;
mod selftest;
mod signs;
mod sketch;
mod topk;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use nibbles::{NIBBLES_TOGETHER, nibble_bytes, pack_nibbles, unpack_nibbles};
pub use rotation::Rotation;
pub use signs::{SIGN_ROWS, SignTable, pack_signs, sign_bytes};
pub use sketch::{Coded, clear_sketch, sketch_bytes};
pub use topk::TopK;

/// The longest i8 vectors whose product surely fits i32: 131,071 · (−128)² < 2^31.
pub const MAX_I8_LEN: usize = (i32::MAX / (128 * 128)) as usize;

/// What one cache line holds, in bytes.
const CACHE_LINE: usize = 64;

/// A set of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SimdLevel {
    /// Portable Rust.
    Scalar,
    /// x86-64 AVX2, FMA and F16C.
    Avx2,
    /// x86-64 AVX-512 F, BW, VL and VNNI.
    Avx512,
    /// Those, and AMX-INT8 for the encoder's matrices.
    Amx,
    /// AArch64 NEON.
    Neon,
}

impl SimdLevel {
    /// All levels, the slowest first.
    pub const ALL: [SimdLevel; 5] =
        [SimdLevel::Scalar, SimdLevel::Neon, SimdLevel::Avx2, SimdLevel::Avx512, SimdLevel::Amx];

    /// Whether this processor, and this build, can run the level.
    pub fn is_available(self) -> bool {
        match self {
            SimdLevel::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => {
                SimdLevel::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Amx => SimdLevel::Avx512.is_available() && x86::tiles_are_allowed(),
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            _ => false,
        }
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SimdLevel::Scalar => "scalar",
            SimdLevel::Avx2 => "avx2",
            SimdLevel::Avx512 => "avx512-vnni",
            SimdLevel::Amx => "amx-int8",
            SimdLevel::Neon => "neon",
        })
    }
}

/// The levels this processor can run, the slowest first; never empty.
pub fn available_levels() -> Vec<SimdLevel> {
    SimdLevel::ALL.into_iter().filter(|level| level.is_available()).collect()
}

/// How one vector was quantised: `value ≈ code * scale`.
///
/// With it a dot product of codes bounds the true one: for vectors a and b with codes â/scale_a and
/// b̂/scale_b, `|a·b − scale_a·scale_b·(codes of a · codes of b)| ≤ error_norm_a·‖b‖ +
/// ‖â‖·error_norm_b`, since a·b − â·b̂ = (a − â)·b + â·(b − b̂).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct I8Params {
    /// Step of the codes; finite and above zero.
    pub scale: f32,
    /// Upper bound of the Euclidean norm of what rounding left over, `‖v − scale·code‖`: computed
    /// in f64 and rounded up, so that it exceeds the true norm by less than two ulps of f32.
    pub error_norm: f32,
}

/// The kernels of one SIMD level. Copies are free: it is one byte.
///
/// The level is matched in each call. Calls through function pointers took the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    /// Available on this processor; calling into its module rests on that.
    level: SimdLevel,
}

impl Kernels {
    /// The best kernels this processor runs that agree with the scalar ones on fixed inputs; chosen once per process.
    pub fn detect() -> Kernels {
        static DETECTED: OnceLock<Kernels> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let best = available_levels().into_iter().rev().find(|level| selftest::agrees(*level));
            Kernels { level: best.unwrap_or(SimdLevel::Scalar) }
        })
    }

    /// The kernels of a stated level, or `None` where this processor lacks it.
    pub fn with_level(level: SimdLevel) -> Option<Kernels> {
        level.is_available().then_some(Kernels { level })
    }

    /// The level these kernels run at.
    pub fn level(&self) -> SimdLevel {
        self.level
    }

    /// Dot product of two f32 vectors.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn dot_f32(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "vectors of different lengths");
        dispatch!(self, dot_f32(a, b))
    }

    /// Squared Euclidean distance of two f32 vectors. Two equal infinities are NaN apart.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn l2_squared_f32(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "vectors of different lengths");
        dispatch!(self, l2_squared_f32(a, b))
    }

    /// Euclidean norm, summed in f64: neither huge nor tiny elements spoil it. It is infinite where
    /// it exceeds f32.
    pub fn norm_f32(&self, v: &[f32]) -> f32 {
        dispatch!(self, sum_of_squares(v)).sqrt() as f32
    }

    /// Scales a vector to norm one and returns its former norm ([`Kernels::norm_f32`]), or `None`,
    /// leaving the vector as it is, where it is empty, zero or not finite.
    #[must_use = "a vector that cannot be normalised is left as it is"]
    pub fn normalize_f32(&self, v: &mut [f32]) -> Option<f32> {
        let norm = dispatch!(self, sum_of_squares(v)).sqrt();
        // The sum of squares of any finite f32 elements is finite in f64.
        if norm == 0.0 || !norm.is_finite() {
            return None;
        }
        let inverse = 1.0 / norm;
        for value in v.iter_mut() {
            *value = (f64::from(*value) * inverse) as f32;
        }
        Some(norm as f32)
    }

    /// Dot product of two vectors of codes, exact; every i8 is allowed.
    ///
    /// # Panics
    /// If the lengths differ or exceed [`MAX_I8_LEN`].
    #[inline]
    pub fn dot_i8(&self, a: &[i8], b: &[i8]) -> i32 {
        assert_eq!(a.len(), b.len(), "codes of different lengths");
        assert!(a.len() <= MAX_I8_LEN, "codes longer than MAX_I8_LEN");
        dispatch!(self, dot_i8(a, b))
    }

    /// [`Kernels::dot_i8`] of one query with four rows that lie anywhere.
    ///
    /// # Panics
    /// If a row's length differs from the query's, or it exceeds [`MAX_I8_LEN`].
    #[inline]
    pub fn dot_i8_x4(&self, query: &[i8], rows: [&[i8]; 4]) -> [i32; 4] {
        for row in rows {
            assert_eq!(row.len(), query.len(), "codes of different lengths");
        }
        assert!(query.len() <= MAX_I8_LEN, "codes longer than MAX_I8_LEN");
        dispatch!(self, dot_i8_x4(query, rows))
    }

    /// [`Kernels::dot_i8`] of one query with each of consecutive rows: `rows` holds `out.len()`
    /// rows of `query.len()` codes.
    ///
    /// # Panics
    /// If `rows` is not that long, or the query's length exceeds [`MAX_I8_LEN`].
    pub fn dot_i8_rows(&self, query: &[i8], rows: &[i8], out: &mut [i32]) {
        let codes = query.len().checked_mul(out.len());
        assert_eq!(Some(rows.len()), codes, "rows and out do not agree");
        assert!(query.len() <= MAX_I8_LEN, "codes longer than MAX_I8_LEN");
        if query.is_empty() {
            out.fill(0);
            return;
        }
        dispatch!(self, dot_i8_rows(query, rows, out))
    }

    /// For each of 32 rows, the sum of the table's bytes that its signs choose; [`SignTable::value`] says what it stands for. Exact.
    ///
    /// # Panics
    /// If `packed` is not [`sign_bytes`] of the query's length long.
    #[inline]
    pub fn sign_sums(&self, table: &SignTable, packed: &[u8], out: &mut [u32; SIGN_ROWS]) {
        let table = table.bytes();
        assert_eq!(table.len(), packed.len(), "query and signs of different lengths");
        dispatch!(self, sign_sums(table, packed, out));
    }

    /// Symmetric quantisation to i8 in −127..=127: the largest magnitude becomes ±127, values are
    /// rounded to the nearest step, ties to even.
    ///
    /// All codes are zero and the scale is one where there are no steps to count: for a zero
    /// vector, exactly; for one whose largest magnitude is below 127 · 2^-126, with its whole norm
    /// as the error; for one with a NaN or an infinity, with an infinite error, which is all that
    /// a bound can say there. Callers reject such vectors before.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn quantize_i8(&self, src: &[f32], dst: &mut [i8]) -> I8Params {
        assert_eq!(src.len(), dst.len(), "vector and codes of different lengths");
        match scalar::Range::of(dispatch!(self, max_magnitude_bits(src))) {
            scalar::Range::NotFinite => {
                dst.fill(0);
                I8Params { scale: 1.0, error_norm: f32::INFINITY }
            }
            scalar::Range::Negligible => {
                dst.fill(0);
                scalar::params(1.0, dispatch!(self, sum_of_squares(src)), src.len())
            }
            scalar::Range::Steps(step) => {
                let residual_squares = dispatch!(self, encode_i8(src, dst, step));
                scalar::params(step.scale, residual_squares, src.len())
            }
        }
    }
}

/// Times that codes are rounded anew with a better scale: with the second, the scale moves by a ten-thousandth or less.
const ROUNDS_ALONG: usize = 2;

impl Kernels {
    /// Quantisation to i8 in −127..=127 with a scale that makes the product of codes and vector the vector's squared length, so that what
    /// rounding adds is at right angles to the vector (as of RaBitQ's codes: Gao & Long, SIGMOD 2024). Products with vectors near it then
    /// come out neither too large nor too small: how far they are off goes with the distance. Codes and scale are the same at every level.
    ///
    /// As with [`Kernels::quantize_i8`], all codes are zero and the scale is one for a vector that is zero, negligible or not finite.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn quantize_i8_along(&self, src: &[f32], dst: &mut [i8]) -> I8Params {
        let plain = self.quantize_i8(src, dst);
        if dst.iter().all(|code| *code == 0) {
            return plain;
        }
        // In parts of the plain scale, so that no sum overflows or vanishes; a little longer, so that no code exceeds 127 later.
        let per_step = 1.0 / plain.scale;
        let squares = scalar::sum_of(src, |value| (value * per_step).powi(2));
        let mut scale = plain.scale * (127.0 / 126.0);
        let mut params = plain;
        for _ in 0..ROUNDS_ALONG {
            let step = scalar::Step { scale, inverse: 1.0 / scale };
            let residual_squares = dispatch!(self, encode_i8(src, dst, step));
            params = scalar::params(scale, residual_squares, src.len());
            let along =
                scalar::sum_with(src, dst, |value, code| value * per_step * f32::from(code));
            scale = squares / along * plain.scale;
        }
        // The triangle inequality, and more than the rounding of what is added.
        let codes = f64::from(self.dot_i8(dst, dst)).sqrt() * (1.0 + 1e-12);
        let moved = f64::from((scale - params.scale).abs()) * codes;
        let error_norm = ((f64::from(params.error_norm) + moved) as f32).next_up();
        I8Params { scale, error_norm }
    }
}

/// Steps of fine codes in one step of the codes that they refine.
pub const FINE_STEPS: i32 = 254;

impl Kernels {
    /// What codes of a vector left over, in steps of `scale / `[`FINE_STEPS`]: `value ≈ (code + fine / 254) · scale`, but for half such a step
    /// and the rounding of f32. Returns a scale that is nearer than by rounding to one with which the product of that and the vector is the
    /// vector's squared length, or the one it was given where there is none. Every level gives the same.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn quantize_fine(&self, src: &[f32], codes: &[i8], scale: f32, fine: &mut [i8]) -> f32 {
        assert_eq!(src.len(), codes.len(), "vector and codes of different lengths");
        assert_eq!(src.len(), fine.len(), "vector and fine codes of different lengths");
        dispatch!(self, encode_fine(src, codes, FINE_STEPS as f32 / scale, fine));
        // Of what is left, so that the sum is of small numbers and its rounding is smaller still.
        let per_step = 1.0 / scale;
        let behind = |value: f32, code: i8| {
            let steps = value * per_step;
            steps * (steps - f32::from(code))
        };
        let of_fine = |value: f32, fine: i8| value * per_step * f32::from(fine);
        let left = scalar::sum_with(src, codes, behind)
            - scalar::sum_with(src, fine, of_fine) / FINE_STEPS as f32;
        let squares = scalar::sum_of(src, |value| (value * per_step).powi(2));
        let better = scale * (squares / (squares - left));
        if better.is_normal() && better > 0.0 { better } else { scale }
    }

    /// The product of an f32 vector with one given by codes and fine codes, in fine steps: `Σ query · (254 · code + fine)`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn dot_fine(&self, query: &[f32], codes: &[i8], fine: &[i8]) -> f32 {
        assert_eq!(query.len(), codes.len(), "query and codes of different lengths");
        assert_eq!(query.len(), fine.len(), "query and fine codes of different lengths");
        dispatch!(self, dot_fine(query, codes, fine))
    }
}

/// Codes as bytes: the same bits.
pub fn as_bytes(codes: &[i8]) -> &[u8] {
    // SAFETY: as in `as_codes`.
    unsafe { std::slice::from_raw_parts(codes.as_ptr().cast::<u8>(), codes.len()) }
}

/// Bytes as codes: the same bits.
pub fn as_codes(bytes: &[u8]) -> &[i8] {
    // SAFETY: both types have one byte, no alignment and no invalid values; length and lifetime stay.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<i8>(), bytes.len()) }
}

/// Hints the processor to load values into its nearest cache: all of their cache lines, up to [`PREFETCH_LINES`].
#[inline]
pub fn prefetch<T>(values: &[T]) {
    let lines = size_of_val(values).div_ceil(CACHE_LINE).min(PREFETCH_LINES);
    for line in 0..lines {
        prefetch_line(values.as_ptr().cast::<i8>().wrapping_add(line * CACHE_LINE));
    }
}

/// Most cache lines that one call of [`prefetch`] asks for: a row of 384 f32 values.
pub const PREFETCH_LINES: usize = 24;

#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch_line(address: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing and does not fault, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn prefetch_line(address: *const i8) {
    // SAFETY: a prefetch reads nothing and does not fault, whatever the address.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) address,
            options(nostack, preserves_flags, readonly)
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline]
fn prefetch_line(_address: *const i8) {}
