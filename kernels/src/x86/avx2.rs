//! Kernels for AVX2 with FMA: 256-bit registers.
//!
//! Invariant: integer results equal the scalar oracle exactly; f32 results differ only by the
//! order of summation and by fused rounding. i8 codes are widened to i16 before they are
//! multiplied, since `vpmaddubsw` saturates. It must not know where its vectors come from.

use std::arch::x86_64::{
    __m128d, __m128i, __m256, __m256d, __m256i, _CMP_GT_OQ, _mm_add_epi16, _mm_add_epi32,
    _mm_add_pd, _mm_add_ps, _mm_add_sd, _mm_add_ss, _mm_cvtsd_f64, _mm_cvtsi128_si32,
    _mm_cvtss_f32, _mm_loadu_si128, _mm_movehdup_ps, _mm_movehl_ps, _mm_shuffle_epi32,
    _mm_storeu_si128, _mm_unpackhi_epi16, _mm_unpackhi_pd, _mm_unpacklo_epi16, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_add_pd, _mm256_add_ps, _mm256_and_si256, _mm256_castpd256_pd128,
    _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_cmp_ps,
    _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_cvtps_epi32, _mm256_cvtps_pd, _mm256_cvttps_epi32, _mm256_extractf128_pd,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_pd, _mm256_fmadd_ps,
    _mm256_fnmadd_pd, _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_max_epu32, _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps,
    _mm256_mul_ps, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_packus_epi16,
    _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_pd, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_pd, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16,
    _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi16, _mm256_sub_ps,
};

use crate::nibbles::{self, HALF};
use crate::scalar::{self, Step};
use crate::signs::{self, GROUP, GROUP_BYTES, GROUPS_IN_U16};
use crate::sketch::{self, Coded, Sums};
use crate::{SIGN_ROWS, SignTable};

/// Eight registers in flight: two fused multiply-adds a cycle at a latency of four.
const F32_REGISTERS: usize = 8;
const F32_BLOCK: usize = 8 * F32_REGISTERS;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f32(source: &[f32; 8]) -> __m256 {
    // SAFETY: the array holds the 32 bytes read; the load needs no alignment.
    unsafe { _mm256_loadu_ps(source.as_ptr()) }
}

/// Loads 16 codes, widened to i16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_i8(source: &[i8; 16]) -> __m256i {
    // SAFETY: the array holds the 16 bytes read; the load needs no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(source.as_ptr().cast::<__m128i>()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_f32(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_f64(v: __m256d) -> f64 {
    let two: __m128d = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_i32(v: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
}

/// The four sums of four registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_i32_x4(v: [__m256i; 4]) -> [i32; 4] {
    let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    let sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    let mut out = [0i32; 4];
    // SAFETY: the array holds the 16 bytes written; the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast::<__m128i>(), sums) };
    out
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_f32_registers(v: [__m256; F32_REGISTERS]) -> f32 {
    let [a, b, c, d, e, f, g, h] = v;
    let low = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
    let high = _mm256_add_ps(_mm256_add_ps(e, f), _mm256_add_ps(g, h));
    sum_f32(_mm256_add_ps(low, high))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<F32_BLOCK>();
    let (b_blocks, b_rest) = b.as_chunks::<F32_BLOCK>();
    let mut sums = [_mm256_setzero_ps(); F32_REGISTERS];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        let lanes = x.as_chunks::<8>().0.iter().zip(y.as_chunks::<8>().0);
        for (sum, (x, y)) in sums.iter_mut().zip(lanes) {
            *sum = _mm256_fmadd_ps(load_f32(x), load_f32(y), *sum);
        }
    }
    let (a_lanes, a_tail) = a_rest.as_chunks::<8>();
    let (b_lanes, b_tail) = b_rest.as_chunks::<8>();
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        sums[0] = _mm256_fmadd_ps(load_f32(x), load_f32(y), sums[0]);
    }
    sum_f32_registers(sums) + scalar::dot_f32(a_tail, b_tail)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn l2_squared_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<F32_BLOCK>();
    let (b_blocks, b_rest) = b.as_chunks::<F32_BLOCK>();
    let mut sums = [_mm256_setzero_ps(); F32_REGISTERS];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        let lanes = x.as_chunks::<8>().0.iter().zip(y.as_chunks::<8>().0);
        for (sum, (x, y)) in sums.iter_mut().zip(lanes) {
            let difference = _mm256_sub_ps(load_f32(x), load_f32(y));
            *sum = _mm256_fmadd_ps(difference, difference, *sum);
        }
    }
    let (a_lanes, a_tail) = a_rest.as_chunks::<8>();
    let (b_lanes, b_tail) = b_rest.as_chunks::<8>();
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        let difference = _mm256_sub_ps(load_f32(x), load_f32(y));
        sums[0] = _mm256_fmadd_ps(difference, difference, sums[0]);
    }
    sum_f32_registers(sums) + scalar::l2_squared_f32(a_tail, b_tail)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sum_of_squares(v: &[f32]) -> f64 {
    let (lanes, tail) = v.as_chunks::<8>();
    let mut low_sum = _mm256_setzero_pd();
    let mut high_sum = _mm256_setzero_pd();
    for lane in lanes {
        let values = load_f32(lane);
        let low = _mm256_cvtps_pd(_mm256_castps256_ps128(values));
        let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(values));
        low_sum = _mm256_fmadd_pd(low, low, low_sum);
        high_sum = _mm256_fmadd_pd(high, high, high_sum);
    }
    sum_f64(_mm256_add_pd(low_sum, high_sum)) + scalar::sum_of_squares(tail)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    let (a_blocks, a_rest) = a.as_chunks::<64>();
    let (b_blocks, b_rest) = b.as_chunks::<64>();
    let mut sums = [_mm256_setzero_si256(); 4];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        let lanes = x.as_chunks::<16>().0.iter().zip(y.as_chunks::<16>().0);
        for (sum, (x, y)) in sums.iter_mut().zip(lanes) {
            // A pair is at most 2 · 128², far inside i32.
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(load_i8(x), load_i8(y)));
        }
    }
    let (a_lanes, a_tail) = a_rest.as_chunks::<16>();
    let (b_lanes, b_tail) = b_rest.as_chunks::<16>();
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(load_i8(x), load_i8(y)));
    }
    let low = _mm256_add_epi32(sums[0], sums[1]);
    let high = _mm256_add_epi32(sums[2], sums[3]);
    sum_i32(_mm256_add_epi32(low, high)) + scalar::dot_i8(a_tail, b_tail)
}

/// Each query register is loaded and widened once for the four rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_i8_x4(query: &[i8], rows: [&[i8]; 4]) -> [i32; 4] {
    let (query_lanes, query_tail) = query.as_chunks::<16>();
    let [(lanes_0, tail_0), (lanes_1, tail_1), (lanes_2, tail_2), (lanes_3, tail_3)] =
        rows.map(|row| row.as_chunks::<16>());
    let mut sums = [_mm256_setzero_si256(); 4];
    let lanes = query_lanes.iter().zip(lanes_0).zip(lanes_1).zip(lanes_2).zip(lanes_3);
    for ((((query, row_0), row_1), row_2), row_3) in lanes {
        let query = load_i8(query);
        for (sum, row) in sums.iter_mut().zip([row_0, row_1, row_2, row_3]) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(query, load_i8(row)));
        }
    }
    let mut out = sum_i32_x4(sums);
    if !query_tail.is_empty() {
        for (dot, tail) in out.iter_mut().zip([tail_0, tail_1, tail_2, tail_3]) {
            *dot += scalar::dot_i8(query_tail, tail);
        }
    }
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_i8_rows(query: &[i8], rows: &[i8], out: &mut [i32]) {
    let mut groups = rows.chunks_exact(4 * query.len());
    let (out_groups, out_rest) = out.as_chunks_mut::<4>();
    for (group, dots) in groups.by_ref().zip(out_groups) {
        let (first, second) = group.split_at(2 * query.len());
        let (row_0, row_1) = first.split_at(query.len());
        let (row_2, row_3) = second.split_at(query.len());
        *dots = dot_i8_x4(query, [row_0, row_1, row_2, row_3]);
    }
    for (row, dot) in groups.remainder().chunks_exact(query.len()).zip(out_rest) {
        *dot = dot_i8(query, row);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn max_magnitude_bits(v: &[f32]) -> u32 {
    let (lanes, tail) = v.as_chunks::<8>();
    let magnitude = _mm256_set1_epi32(i32::MAX);
    let mut max = _mm256_setzero_si256();
    for lane in lanes {
        let bits = _mm256_and_si256(_mm256_castps_si256(load_f32(lane)), magnitude);
        max = _mm256_max_epu32(max, bits);
    }
    let mut lane_max = [0u32; 8];
    // SAFETY: the array holds the 32 bytes written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(lane_max.as_mut_ptr().cast::<__m256i>(), max) };
    lane_max.into_iter().fold(scalar::max_magnitude_bits(tail), u32::max)
}

/// Eight steps and the sum, so far, of the squared residuals.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn encode_lane(values: __m256, step: Step, residual_squares: &mut __m256d) -> __m256i {
    // Rounds to nearest, ties to even: Rust code runs under the default rounding mode.
    let steps = _mm256_cvtps_epi32(_mm256_mul_ps(values, _mm256_set1_ps(step.inverse)));
    let rounded = _mm256_cvtepi32_ps(steps);
    let scale = _mm256_set1_pd(f64::from(step.scale));
    let pairs = [
        (_mm256_castps256_ps128(values), _mm256_castps256_ps128(rounded)),
        (_mm256_extractf128_ps::<1>(values), _mm256_extractf128_ps::<1>(rounded)),
    ];
    for (value, code) in pairs {
        let residual = _mm256_fnmadd_pd(_mm256_cvtps_pd(code), scale, _mm256_cvtps_pd(value));
        *residual_squares = _mm256_fmadd_pd(residual, residual, *residual_squares);
    }
    steps
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn encode_i8(src: &[f32], dst: &mut [i8], step: Step) -> f64 {
    let (src_blocks, src_tail) = src.as_chunks::<32>();
    let (dst_blocks, dst_tail) = dst.as_chunks_mut::<32>();
    // Packing works within 128-bit halves and leaves groups of four codes in this order.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let mut sums = [_mm256_setzero_pd(); 4];
    for (values, codes) in src_blocks.iter().zip(dst_blocks) {
        let mut steps = [_mm256_setzero_si256(); 4];
        let lanes = values.as_chunks::<8>().0.iter().zip(&mut sums);
        for (steps, (lane, sum)) in steps.iter_mut().zip(lanes) {
            *steps = encode_lane(load_f32(lane), step, sum);
        }
        // Packing saturates, but no step lies outside −127..=127.
        let low = _mm256_packs_epi32(steps[0], steps[1]);
        let high = _mm256_packs_epi32(steps[2], steps[3]);
        let packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        // SAFETY: the array holds the 32 bytes written; the store needs no alignment.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast::<__m256i>(), packed) };
    }
    let low = _mm256_add_pd(sums[0], sums[1]);
    let high = _mm256_add_pd(sums[2], sums[3]);
    sum_f64(_mm256_add_pd(low, high)) + scalar::encode_i8(src_tail, dst_tail, step)
}

/// Two groups of rows or of a table; of the last ones, one and zeros.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_groups(source: &[u8]) -> __m256i {
    let mut padded = [0u8; 32];
    let source = source.first_chunk::<32>().unwrap_or_else(|| {
        padded[..source.len()].copy_from_slice(source);
        &padded
    });
    // SAFETY: the array holds the 32 bytes read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(source.as_ptr().cast::<__m256i>()) }
}

/// Adds the two lanes of u16 sums of bytes, the even rows' and the odd ones', and puts the rows in order, as u32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn rows_of(all: __m256i, odd: __m256i) -> [__m256i; 2] {
    let two =
        |v: __m256i| _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    // All has the odd bytes' sum in its upper half, modulo 2^16.
    let even = two(_mm256_sub_epi16(all, _mm256_slli_epi16::<8>(odd)));
    let odd = two(odd);
    [_mm_unpacklo_epi16(even, odd), _mm_unpackhi_epi16(even, odd)].map(|v| _mm256_cvtepu16_epi32(v))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sign_sums(table: &[u8], packed: &[u8], out: &mut [u32; SIGN_ROWS]) {
    let nibble = _mm256_set1_epi8(0x0f);
    let mut sums = [[_mm256_setzero_si256(); 2]; 2];
    let most = GROUPS_IN_U16 * GROUP_BYTES;
    for (table, packed) in table.chunks(most).zip(packed.chunks(most)) {
        let mut all = [_mm256_setzero_si256(); 2];
        let mut odd = all;
        for (table, packed) in table.chunks(32).zip(packed.chunks(32)) {
            let (table, packed) = (load_groups(table), load_groups(packed));
            let halves = [packed, _mm256_srli_epi16::<4>(packed)];
            for ((all, odd), half) in all.iter_mut().zip(&mut odd).zip(halves) {
                let found = _mm256_shuffle_epi8(table, _mm256_and_si256(half, nibble));
                *all = _mm256_add_epi16(*all, found);
                *odd = _mm256_add_epi16(*odd, _mm256_srli_epi16::<8>(found));
            }
        }
        for ((sum, all), odd) in sums.iter_mut().zip(all).zip(odd) {
            let [first, second] = rows_of(all, odd);
            *sum = [_mm256_add_epi32(sum[0], first), _mm256_add_epi32(sum[1], second)];
        }
    }
    for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums.into_iter().flatten()) {
        // SAFETY: the array holds the 32 bytes written; the store needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast::<__m256i>(), sum) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sign_magnitudes(query: &[f32]) -> (f32, f32) {
    scalar::sign_magnitudes(query)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sign_table(query: &[f32], inverse: f32, bytes: &mut [u8]) {
    let (inverse, half) = (_mm256_set1_ps(inverse), _mm256_set1_ps(0.5));
    let (zero, most) = (_mm256_setzero_ps(), _mm256_set1_ps(255.0));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
    for (group, bytes) in query.chunks(GROUP).zip(bytes.as_chunks_mut::<GROUP_BYTES>().0) {
        let mut sums = [_mm256_set1_ps(signs::below(group)); 2];
        for (value, positive) in group.iter().zip(&signs::POSITIVE) {
            let twice = _mm256_set1_ps(value * 2.0);
            for (sums, positive) in sums.iter_mut().zip(positive.as_chunks::<8>().0) {
                *sums = _mm256_add_ps(*sums, _mm256_mul_ps(load_f32(positive), twice));
            }
        }
        let [low, high] = sums.map(|sums| {
            let steps = _mm256_add_ps(_mm256_mul_ps(sums, inverse), half);
            _mm256_cvttps_epi32(_mm256_max_ps(_mm256_min_ps(steps, most), zero))
        });
        // Packing works within lanes: eight of sixteen bits, then bytes, then the four parts in order.
        let packed = _mm256_packus_epi16(_mm256_packs_epi32(low, high), _mm256_setzero_si256());
        let packed = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(packed, order));
        // SAFETY: the array holds the 16 bytes written; the store needs no alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast::<__m128i>(), packed) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn rotate(factors: &[f32], vector: &mut [f32]) {
    scalar::rotate(factors, vector);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sketch_signs(
    row: usize,
    centre: Coded<'_>,
    point: Coded<'_>,
    packed: &mut [u8],
) -> Sums {
    scalar::sketch_signs(row, centre, point, packed)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn estimate(
    table: &SignTable,
    sketch: &[u8],
    base: f32,
    floor: f32,
    out: &mut [f32; SIGN_ROWS],
) -> u32 {
    let (factors, constants, signs) = sketch::split(sketch);
    let mut sums = [0; SIGN_ROWS];
    sign_sums(table.bytes(), signs, &mut sums);
    let (step, lowest) = table.line();
    let (step, lowest) = (_mm256_set1_ps(step), _mm256_set1_ps(lowest));
    let (base, floor) = (_mm256_set1_ps(base), _mm256_set1_ps(floor));
    let halves = factors.as_chunks::<16>().0.iter().zip(constants.as_chunks::<16>().0);
    let mut above = 0;
    for (at, ((sums, (factors, constants)), out)) in
        sums.as_chunks::<8>().0.iter().zip(halves).zip(out.as_chunks_mut::<8>().0).enumerate()
    {
        // SAFETY: the array holds the 32 bytes read; the load needs no alignment.
        let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast::<__m256i>()) };
        let signed = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), step, lowest);
        let constant = _mm256_add_ps(base, load_f16(constants));
        let estimate = _mm256_fmadd_ps(load_f16(factors), signed, constant);
        let exceeds = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(estimate, floor));
        above |= exceeds.cast_unsigned() << (8 * at);
        // SAFETY: the array holds the 32 bytes written; the store needs no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), estimate) };
    }
    above
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f16(source: &[u8; 16]) -> __m256 {
    // SAFETY: the array holds the 16 bytes read; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(source.as_ptr().cast::<__m128i>()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn encode_fine(src: &[f32], codes: &[i8], step: f32, fine: &mut [i8]) {
    scalar::encode_fine(src, codes, step, fine);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_fine(query: &[f32], codes: &[i8], fine: &[i8]) -> f32 {
    scalar::dot_fine(query, codes, fine)
}

/// Halves of bytes are at most 15, so a pair of products stays far inside i16, and so do the four that are added up.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_i4(query: &[i8], packed: &[u8]) -> i32 {
    let (mask, offset) = (_mm256_set1_epi8(0x0f), _mm256_set1_epi8(nibbles::OFFSET));
    let mut sum = _mm256_setzero_si256();
    let groups = query.as_chunks::<HALF>().0.as_chunks::<2>().0.iter();
    for ([low, high], bytes) in groups.zip(crate::as_codes(packed).as_chunks::<HALF>().0) {
        let mut pairs = _mm256_setzero_si256();
        let quarters = low.as_chunks().0.iter().zip(high.as_chunks().0);
        for ((low, high), bytes) in quarters.zip(bytes.as_chunks().0) {
            let (low, high, bytes) = (load_bytes(low), load_bytes(high), load_bytes(bytes));
            let uppers = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
            for (half, query) in [(_mm256_and_si256(bytes, mask), low), (uppers, high)] {
                let products = _mm256_maddubs_epi16(half, query);
                let moved = _mm256_maddubs_epi16(offset, query);
                pairs = _mm256_add_epi16(pairs, _mm256_sub_epi16(products, moved));
            }
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    sum_i32(sum)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_bytes(source: &[i8; 32]) -> __m256i {
    // SAFETY: the array holds the 32 bytes read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(source.as_ptr().cast::<__m256i>()) }
}
