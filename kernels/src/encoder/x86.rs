//! The layer on AVX2, on AVX-512, and on AVX-512 with the products of [`Amx`].
//!
//! Invariant: as in the sibling modules of [`crate::x86`], a function is called only after its features were found.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_packus_epi16, _mm_storeu_si128, _mm256_add_epi32,
    _mm256_and_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_packus_epi32, _mm256_permute4x64_epi64,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
    _mm512_cvtepi32_epi8, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_storeu_si512,
};

use super::amx::Amx;
use super::attention::Projected;
use super::forward::{self, Buffers};
use super::linear::{INPUT_BLOCK, Level, Linear, PANEL, STEP, Tiles, multiply};
use super::math::{Affine, LANES, Lanes};
use super::pack::Layer;
use crate::{CACHE_LINE, prefetch_line};

#[target_feature(enable = "avx2,fma")]
pub(super) fn project_avx2(
    layer: &Layer<'_>,
    input: &[f32],
    projected: &mut [f32],
    buffers: &mut Buffers,
) {
    forward::project::<Avx2>(layer, input, projected, buffers);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn finish_avx2(
    layer: &Layer<'_>,
    text: Projected<'_>,
    first: usize,
    input: &[f32],
    output: &mut [f32],
    buffers: &mut Buffers,
) {
    forward::finish::<Avx2>(layer, text, first, input, output, buffers);
}

/// # Safety
/// As for [`Amx`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn project_amx(
    layer: &Layer<'_>,
    input: &[f32],
    projected: &mut [f32],
    buffers: &mut Buffers,
) {
    forward::project::<Amx>(layer, input, projected, buffers);
}

/// # Safety
/// As for [`Amx`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn finish_amx(
    layer: &Layer<'_>,
    text: Projected<'_>,
    first: usize,
    input: &[f32],
    output: &mut [f32],
    buffers: &mut Buffers,
) {
    forward::finish::<Amx>(layer, text, first, input, output, buffers);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn project_avx512(
    layer: &Layer<'_>,
    input: &[f32],
    projected: &mut [f32],
    buffers: &mut Buffers,
) {
    forward::project::<Avx512>(layer, input, projected, buffers);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn finish_avx512(
    layer: &Layer<'_>,
    text: Projected<'_>,
    first: usize,
    input: &[f32],
    output: &mut [f32],
    buffers: &mut Buffers,
) {
    forward::finish::<Avx512>(layer, text, first, input, output, buffers);
}

/// Named only by [`project_avx2`] and [`finish_avx2`], which rest on the features.
struct Avx2;

impl Level for Avx2 {
    #[inline(always)]
    fn multiply(codes: &[u8], affine: &[Affine], matrix: &Linear<'_>, out: &mut [f32]) {
        multiply::<Self>(codes, affine, matrix, out);
    }

    #[inline(always)]
    fn lowest_bytes(lanes: Lanes) -> [u8; LANES] {
        // SAFETY: only the two functions above use this level, and their features cover these.
        unsafe { lowest_bytes_avx2(lanes) }
    }
}

impl Tiles for Avx2 {
    #[inline(always)]
    fn tile<const R: usize>(
        rows: [&[[u8; INPUT_BLOCK]]; R],
        panel: &[[i8; STEP]],
    ) -> [[i32; PANEL]; R] {
        // SAFETY: only the two functions above use this level, and their features cover these.
        unsafe { tile_avx2(rows, panel) }
    }
}

/// Named only by [`project_avx512`] and [`finish_avx512`], which rest on the features.
struct Avx512;

impl Level for Avx512 {
    #[inline(always)]
    fn multiply(codes: &[u8], affine: &[Affine], matrix: &Linear<'_>, out: &mut [f32]) {
        multiply::<Self>(codes, affine, matrix, out);
    }

    #[inline(always)]
    fn lowest_bytes(lanes: Lanes) -> [u8; LANES] {
        // SAFETY: only the two functions above use this level, and their features cover these.
        unsafe { lowest_bytes_avx512(lanes) }
    }
}

impl Tiles for Avx512 {
    #[inline(always)]
    fn tile<const R: usize>(
        rows: [&[[u8; INPUT_BLOCK]]; R],
        panel: &[[i8; STEP]],
    ) -> [[i32; PANEL]; R] {
        // SAFETY: only the two functions above use this level, and their features cover these.
        unsafe { tile_avx512(rows, panel) }
    }
}

/// How far ahead weights are asked for, in bytes: they come from the last-level cache or from memory, in order, and the
/// hardware's own prefetcher stops at each page. Measured on Zen 3: a fifth of the time of 16 tokens.
const AHEAD: usize = 2048;

#[inline(always)]
fn prefetch(step: &[i8; STEP]) {
    let ahead = step.as_ptr().wrapping_add(AHEAD);
    prefetch_line(ahead);
    prefetch_line(ahead.wrapping_add(CACHE_LINE));
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_256(source: &[i8; 32]) -> __m256i {
    // SAFETY: the array holds the 32 bytes read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(source.as_ptr().cast::<__m256i>()) }
}

/// Four codes of a row in every lane.
#[inline(always)]
fn group(codes: &[u8; INPUT_BLOCK], at: usize) -> i32 {
    let [a, b, c, d] = [codes[4 * at], codes[4 * at + 1], codes[4 * at + 2], codes[4 * at + 3]];
    i32::from_le_bytes([a, b, c, d])
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile_avx2<const R: usize>(
    rows: [&[[u8; INPUT_BLOCK]]; R],
    panel: &[[i8; STEP]],
) -> [[i32; PANEL]; R] {
    for row in rows {
        assert_eq!(row.len(), panel.len());
    }
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for (block, step) in panel.iter().enumerate() {
        prefetch(step);
        let (quarters, _) = step.as_chunks::<32>();
        let [a0, a1, b0, b1] = [0, 1, 2, 3].map(|at| &quarters[at]);
        let [a0, a1, b0, b1] = [load_256(a0), load_256(a1), load_256(b0), load_256(b1)];
        for (row, sums) in rows.iter().zip(&mut sums) {
            let first = _mm256_set1_epi32(group(&row[block], 0));
            let second = _mm256_set1_epi32(group(&row[block], 1));
            for (codes, weights) in [(first, [a0, a1]), (second, [b0, b1])] {
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    // In 16 bits: see the module's head for why the pairs fit.
                    let pairs = _mm256_maddubs_epi16(codes, weights);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
    }
    let mut out = [[0i32; PANEL]; R];
    for (out, sums) in out.iter_mut().zip(sums) {
        let to = out.as_mut_ptr().cast::<__m256i>();
        // SAFETY: the array holds the 64 bytes of both stores, which need no alignment.
        unsafe {
            _mm256_storeu_si256(to, sums[0]);
            _mm256_storeu_si256(to.add(1), sums[1]);
        }
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn load_512(source: &[i8; 64]) -> __m512i {
    // SAFETY: the array holds the 64 bytes read; the load needs no alignment.
    unsafe { _mm512_loadu_si512(source.as_ptr().cast::<__m512i>()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn tile_avx512<const R: usize>(
    rows: [&[[u8; INPUT_BLOCK]]; R],
    panel: &[[i8; STEP]],
) -> [[i32; PANEL]; R] {
    for row in rows {
        assert_eq!(row.len(), panel.len());
    }
    // Two sums a row, one for each group of a block, hide the latency of four.
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for (block, step) in panel.iter().enumerate() {
        prefetch(step);
        let (halves, _) = step.as_chunks::<64>();
        let (a, b) = (load_512(&halves[0]), load_512(&halves[1]));
        for (row, sums) in rows.iter().zip(&mut sums) {
            let first = _mm512_set1_epi32(group(&row[block], 0));
            let second = _mm512_set1_epi32(group(&row[block], 1));
            sums[0] = _mm512_dpbusd_epi32(sums[0], first, a);
            sums[1] = _mm512_dpbusd_epi32(sums[1], second, b);
        }
    }
    let mut out = [[0i32; PANEL]; R];
    for (out, sums) in out.iter_mut().zip(sums) {
        let mut halves = [[0i32; PANEL]; 2];
        for (half, sum) in halves.iter_mut().zip(sums) {
            // SAFETY: the array holds the 64 bytes written; the store needs no alignment.
            unsafe { _mm512_storeu_si512(half.as_mut_ptr().cast::<__m512i>(), sum) };
        }
        for lane in 0..PANEL {
            out[lane] = halves[0][lane] + halves[1][lane];
        }
    }
    out
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn lowest_bytes_avx2(lanes: Lanes) -> [u8; LANES] {
    let (halves, _) = lanes.as_chunks::<8>();
    let lowest = _mm256_set1_epi32(0xff);
    // SAFETY: each half holds the 32 bytes read; the loads need no alignment.
    let [low, high] = [0, 1].map(|half| unsafe {
        let lanes = _mm256_loadu_si256(halves[half].as_ptr().cast::<__m256i>());
        _mm256_and_si256(lanes, lowest)
    });
    // Packing works within each half of a register: the quarters come out as 0, 2, 1, 3.
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
    let bytes =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    let mut out = [0; LANES];
    // SAFETY: the array holds the 16 bytes written; the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast::<__m128i>(), bytes) };
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn lowest_bytes_avx512(lanes: Lanes) -> [u8; LANES] {
    let mut out = [0; LANES];
    // SAFETY: the arrays hold the 64 bytes read and the 16 written, and neither needs alignment.
    unsafe {
        let lanes = _mm512_loadu_si512(lanes.as_ptr().cast::<__m512i>());
        _mm_storeu_si128(out.as_mut_ptr().cast::<__m128i>(), _mm512_cvtepi32_epi8(lanes));
    }
    out
}
