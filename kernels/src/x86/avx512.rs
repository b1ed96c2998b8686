//! Kernels for AVX-512 with F, BW, VL and VNNI: 512-bit registers and masked tails.
//!
//! The tests cover it wherever such a processor is, and say when they skip.
//!
//! Invariant: integer results equal the scalar oracle exactly. `vpdpbusd` multiplies u8 by i8 and
//! does not saturate, so the rows are moved up by 128 (`code ^ 0x80`) and 128 times the sum of the
//! query is taken off again; both wrap modulo 2^32, inside which the true sum fits. It must not
//! know where its vectors come from.

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512d, __m512i, __mmask16, __mmask64, _CMP_GE_OQ, _CMP_GT_OQ,
    _mm_add_epi16, _mm_maskz_loadu_epi8, _mm_storeu_si128, _mm_unpackhi_epi16, _mm_unpacklo_epi16,
    _mm256_add_epi16, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256,
    _mm256_set_m128i, _mm512_abs_ps, _mm512_add_epi16, _mm512_add_epi32, _mm512_add_pd,
    _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castps512_ps256,
    _mm512_castsi512_si256, _mm512_cmp_ps_mask, _mm512_cvtepi8_epi32, _mm512_cvtepi32_pd,
    _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_cvtps_epi32,
    _mm512_cvtps_pd, _mm512_cvtsepi32_epi8, _mm512_dpbusd_epi32, _mm512_extracti64x4_epi64,
    _mm512_fmadd_pd, _mm512_fmadd_ps, _mm512_fnmadd_pd, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_sub_ps, _mm512_maskz_loadu_epi8, _mm512_maskz_loadu_ps, _mm512_max_epu32,
    _mm512_mul_ps, _mm512_mullo_epi32, _mm512_reduce_add_epi32, _mm512_reduce_add_pd,
    _mm512_reduce_add_ps, _mm512_reduce_max_epu32, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_pd, _mm512_set1_ps, _mm512_setzero_pd, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_shuffle_f32x4, _mm512_slli_epi16, _mm512_srli_epi16,
    _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi16, _mm512_sub_epi32, _mm512_sub_ps,
    _mm512_xor_si512,
};

pub(crate) use super::avx512_prepare::{rotate, sign_magnitudes, sign_table};
use crate::nibbles::{self, HALF};
use crate::scalar::{self, Step};
use crate::signs::{GROUP_BYTES, GROUPS_IN_U16};
use crate::sketch::{self, Coded, LANES, SIGNS_OF_LANES, Sums};
use crate::{SIGN_ROWS, SignTable};

/// Four registers in flight cover the latency of the multiply-adds, which wait on two loads each.
const F32_REGISTERS: usize = 4;
const F32_BLOCK: usize = 16 * F32_REGISTERS;

/// The codes moved up by 128, as the unsigned side of `vpdpbusd`, are `code ^ OFFSET`.
const OFFSET: i8 = i8::MIN;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) fn load_f32(source: &[f32; 16]) -> __m512 {
    // SAFETY: the array holds the 64 bytes read; the load needs no alignment.
    unsafe { _mm512_loadu_ps(source.as_ptr()) }
}

/// Loads fewer than 16 values; zeros follow them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn load_f32_tail(source: &[f32]) -> __m512 {
    debug_assert!(source.len() < 16);
    let mask: __mmask16 = (1 << (source.len() % 16)) - 1;
    // SAFETY: the mask has one bit for each element of the slice, at most 15 of them; lanes that
    // are masked off are not read.
    unsafe { _mm512_maskz_loadu_ps(mask, source.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn load_i8(source: &[i8; 64]) -> __m512i {
    // SAFETY: the array holds the 64 bytes read; the load needs no alignment.
    unsafe { _mm512_loadu_si512(source.as_ptr().cast::<__m512i>()) }
}

/// Loads fewer than 64 codes; zeros follow them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn load_i8_tail(source: &[i8]) -> __m512i {
    debug_assert!(source.len() < 64);
    let mask: __mmask64 = (1 << (source.len() % 64)) - 1;
    // SAFETY: the mask has one bit for each element of the slice, at most 63 of them; lanes that
    // are masked off are not read.
    unsafe { _mm512_maskz_loadu_epi8(mask, source.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn sum_f32_registers(v: [__m512; F32_REGISTERS]) -> f32 {
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(v[0], v[1]), _mm512_add_ps(v[2], v[3])))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<F32_BLOCK>();
    let (b_blocks, b_rest) = b.as_chunks::<F32_BLOCK>();
    let mut sums = [_mm512_setzero_ps(); F32_REGISTERS];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        let lanes = x.as_chunks::<16>().0.iter().zip(y.as_chunks::<16>().0);
        for (sum, (x, y)) in sums.iter_mut().zip(lanes) {
            *sum = _mm512_fmadd_ps(load_f32(x), load_f32(y), *sum);
        }
    }
    let (a_lanes, a_tail) = a_rest.as_chunks::<16>();
    let (b_lanes, b_tail) = b_rest.as_chunks::<16>();
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        sums[0] = _mm512_fmadd_ps(load_f32(x), load_f32(y), sums[0]);
    }
    sums[1] = _mm512_fmadd_ps(load_f32_tail(a_tail), load_f32_tail(b_tail), sums[1]);
    sum_f32_registers(sums)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn l2_squared_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_rest) = a.as_chunks::<F32_BLOCK>();
    let (b_blocks, b_rest) = b.as_chunks::<F32_BLOCK>();
    let mut sums = [_mm512_setzero_ps(); F32_REGISTERS];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        let lanes = x.as_chunks::<16>().0.iter().zip(y.as_chunks::<16>().0);
        for (sum, (x, y)) in sums.iter_mut().zip(lanes) {
            let difference = _mm512_sub_ps(load_f32(x), load_f32(y));
            *sum = _mm512_fmadd_ps(difference, difference, *sum);
        }
    }
    let (a_lanes, a_tail) = a_rest.as_chunks::<16>();
    let (b_lanes, b_tail) = b_rest.as_chunks::<16>();
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        let difference = _mm512_sub_ps(load_f32(x), load_f32(y));
        sums[0] = _mm512_fmadd_ps(difference, difference, sums[0]);
    }
    let difference = _mm512_sub_ps(load_f32_tail(a_tail), load_f32_tail(b_tail));
    sums[1] = _mm512_fmadd_ps(difference, difference, sums[1]);
    sum_f32_registers(sums)
}

/// The two halves of a register, widened to f64.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn widen_f32(v: __m512) -> [__m512d; 2] {
    // Moves the upper two quarters down; the upper half of the result is not looked at.
    let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(v, v);
    [_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_castps512_ps256(high))]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn sum_of_squares(v: &[f32]) -> f64 {
    let (lanes, tail) = v.as_chunks::<16>();
    let mut sums = [_mm512_setzero_pd(); 2];
    for lane in lanes {
        for (sum, half) in sums.iter_mut().zip(widen_f32(load_f32(lane))) {
            *sum = _mm512_fmadd_pd(half, half, *sum);
        }
    }
    for (sum, half) in sums.iter_mut().zip(widen_f32(load_f32_tail(tail))) {
        *sum = _mm512_fmadd_pd(half, half, *sum);
    }
    _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]))
}

/// 128 times the sum of the codes, modulo 2^32: what the offset of the rows adds to a dot product.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn offset_sum(query: &[i8]) -> i32 {
    let (lanes, tail) = query.as_chunks::<64>();
    let offset = _mm512_set1_epi8(OFFSET);
    let mut sum = _mm512_setzero_si512();
    for lane in lanes {
        sum = _mm512_dpbusd_epi32(sum, offset, load_i8(lane));
    }
    _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(sum, offset, load_i8_tail(tail)))
}

/// `row · query` plus the [`offset_sum`] of the query, modulo 2^32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn dot_i8_offset(query: &[i8], row: &[i8]) -> i32 {
    let (query_lanes, query_tail) = query.as_chunks::<64>();
    let (row_lanes, row_tail) = row.as_chunks::<64>();
    let offset = _mm512_set1_epi8(OFFSET);
    let mut sum = _mm512_setzero_si512();
    for (query, row) in query_lanes.iter().zip(row_lanes) {
        let row = _mm512_xor_si512(load_i8(row), offset);
        sum = _mm512_dpbusd_epi32(sum, row, load_i8(query));
    }
    // Past the end the row is 128 after the offset, but the query is zero.
    let row = _mm512_xor_si512(load_i8_tail(row_tail), offset);
    _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(sum, row, load_i8_tail(query_tail)))
}

/// Four of [`dot_i8_offset`], each query register loaded once for the four rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn dot_i8_offset_x4(query: &[i8], rows: [&[i8]; 4]) -> [i32; 4] {
    let (query_lanes, query_tail) = query.as_chunks::<64>();
    let [(lanes_0, tail_0), (lanes_1, tail_1), (lanes_2, tail_2), (lanes_3, tail_3)] =
        rows.map(|row| row.as_chunks::<64>());
    let offset = _mm512_set1_epi8(OFFSET);
    let mut sums = [_mm512_setzero_si512(); 4];
    let lanes = query_lanes.iter().zip(lanes_0).zip(lanes_1).zip(lanes_2).zip(lanes_3);
    for ((((query, row_0), row_1), row_2), row_3) in lanes {
        let query = load_i8(query);
        for (sum, row) in sums.iter_mut().zip([row_0, row_1, row_2, row_3]) {
            *sum = _mm512_dpbusd_epi32(*sum, _mm512_xor_si512(load_i8(row), offset), query);
        }
    }
    if !query_tail.is_empty() {
        let query = load_i8_tail(query_tail);
        for (sum, tail) in sums.iter_mut().zip([tail_0, tail_1, tail_2, tail_3]) {
            *sum = _mm512_dpbusd_epi32(*sum, _mm512_xor_si512(load_i8_tail(tail), offset), query);
        }
    }
    let mut out = [0i32; 4];
    for (dot, sum) in out.iter_mut().zip(sums) {
        *dot = _mm512_reduce_add_epi32(sum);
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    dot_i8_offset(a, b).wrapping_sub(offset_sum(a))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn dot_i8_x4(query: &[i8], rows: [&[i8]; 4]) -> [i32; 4] {
    let excess = offset_sum(query);
    dot_i8_offset_x4(query, rows).map(|dot| dot.wrapping_sub(excess))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn dot_i8_rows(query: &[i8], rows: &[i8], out: &mut [i32]) {
    let excess = offset_sum(query);
    let mut groups = rows.chunks_exact(4 * query.len());
    let (out_groups, out_rest) = out.as_chunks_mut::<4>();
    for (group, dots) in groups.by_ref().zip(out_groups) {
        let (first, second) = group.split_at(2 * query.len());
        let (row_0, row_1) = first.split_at(query.len());
        let (row_2, row_3) = second.split_at(query.len());
        *dots = dot_i8_offset_x4(query, [row_0, row_1, row_2, row_3])
            .map(|dot| dot.wrapping_sub(excess));
    }
    for (row, dot) in groups.remainder().chunks_exact(query.len()).zip(out_rest) {
        *dot = dot_i8_offset(query, row).wrapping_sub(excess);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn max_magnitude_bits(v: &[f32]) -> u32 {
    let (lanes, tail) = v.as_chunks::<16>();
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let mut max = _mm512_and_si512(_mm512_castps_si512(load_f32_tail(tail)), magnitude);
    for lane in lanes {
        let bits = _mm512_and_si512(_mm512_castps_si512(load_f32(lane)), magnitude);
        max = _mm512_max_epu32(max, bits);
    }
    _mm512_reduce_max_epu32(max)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn encode_i8(src: &[f32], dst: &mut [i8], step: Step) -> f64 {
    let (src_lanes, src_tail) = src.as_chunks::<16>();
    let (dst_lanes, dst_tail) = dst.as_chunks_mut::<16>();
    let inverse = _mm512_set1_ps(step.inverse);
    let scale = _mm512_set1_pd(f64::from(step.scale));
    let mut sums = [_mm512_setzero_pd(); 2];
    for (values, codes) in src_lanes.iter().zip(dst_lanes) {
        let values = load_f32(values);
        // Rounds to nearest, ties to even: Rust code runs under the default rounding mode.
        let steps = _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse));
        let rounded = [
            _mm512_cvtepi32_pd(_mm512_castsi512_si256(steps)),
            _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64::<1>(steps)),
        ];
        for (sum, (value, code)) in sums.iter_mut().zip(widen_f32(values).into_iter().zip(rounded))
        {
            let residual = _mm512_fnmadd_pd(code, scale, value);
            *sum = _mm512_fmadd_pd(residual, residual, *sum);
        }
        // Narrowing saturates, but no step lies outside −127..=127.
        let packed = _mm512_cvtsepi32_epi8(steps);
        // SAFETY: the array holds the 16 bytes written; the store needs no alignment.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast::<__m128i>(), packed) };
    }
    let sum = _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]));
    sum + scalar::encode_i8(src_tail, dst_tail, step)
}

/// Four groups of rows or of a table; of the last ones, fewer.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn load_groups(source: &[u8]) -> __m512i {
    debug_assert!(source.len() <= 64);
    let mask: __mmask64 = u64::MAX >> (64 - source.len());
    // SAFETY: the mask has one bit for each element of the slice; lanes that are masked off are not read.
    unsafe { _mm512_maskz_loadu_epi8(mask, source.as_ptr().cast::<i8>()) }
}

/// Adds the four lanes of u16 sums of bytes, the even rows' and the odd ones', and puts the rows in order, as u32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn rows_of(all: __m512i, odd: __m512i) -> __m512i {
    let four = |v: __m512i| {
        let two = _mm256_add_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v));
        _mm_add_epi16(_mm256_castsi256_si128(two), _mm256_extracti128_si256::<1>(two))
    };
    // All has the odd bytes' sum in its upper half, modulo 2^16.
    let even = four(_mm512_sub_epi16(all, _mm512_slli_epi16::<8>(odd)));
    let odd = four(odd);
    let (first, second) = (_mm_unpacklo_epi16(even, odd), _mm_unpackhi_epi16(even, odd));
    _mm512_cvtepu16_epi32(_mm256_set_m128i(second, first))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn sign_sums(table: &[u8], packed: &[u8], out: &mut [u32; SIGN_ROWS]) {
    let sums = sign_registers(table, packed);
    for (out, sum) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
        // SAFETY: the array holds the 64 bytes written; the store needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast::<__m512i>(), sum) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn sign_registers(table: &[u8], packed: &[u8]) -> [__m512i; 2] {
    let nibble = _mm512_set1_epi8(0x0f);
    let mut sums = [_mm512_setzero_si512(); 2];
    let most = GROUPS_IN_U16 * GROUP_BYTES;
    for (table, packed) in table.chunks(most).zip(packed.chunks(most)) {
        let mut all = [_mm512_setzero_si512(); 2];
        let mut odd = all;
        for (table, packed) in table.chunks(64).zip(packed.chunks(64)) {
            let (table, packed) = (load_groups(table), load_groups(packed));
            let halves = [packed, _mm512_srli_epi16::<4>(packed)];
            for ((all, odd), half) in all.iter_mut().zip(&mut odd).zip(halves) {
                let found = _mm512_shuffle_epi8(table, _mm512_and_si512(half, nibble));
                *all = _mm512_add_epi16(*all, found);
                *odd = _mm512_add_epi16(*odd, _mm512_srli_epi16::<8>(found));
            }
        }
        for ((sum, all), odd) in sums.iter_mut().zip(all).zip(odd) {
            *sum = _mm512_add_epi32(*sum, rows_of(all, odd));
        }
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn sketch_signs(
    row: usize,
    centre: Coded<'_>,
    point: Coded<'_>,
    packed: &mut [u8],
) -> Sums {
    let load = |codes: &[i8]| {
        let mask = u16::MAX >> (LANES - codes.len().min(LANES));
        // SAFETY: the mask has one bit for each element of the slice, at most 16; lanes that are masked off are not read.
        let codes = unsafe { _mm_maskz_loadu_epi8(mask, codes.as_ptr()) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
    };
    let scales = (_mm512_set1_ps(centre.scale), _mm512_set1_ps(point.scale));
    let zero = _mm512_setzero_ps();
    let mut sums = [zero; 4];
    let lanes = centre.codes.chunks(LANES).zip(point.codes.chunks(LANES));
    for ((u, v), packed) in lanes.zip(packed.chunks_mut(SIGNS_OF_LANES)) {
        let u = _mm512_mul_ps(load(u), scales.0);
        let r = _mm512_sub_ps(_mm512_mul_ps(load(v), scales.1), u);
        let positive = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(r, zero);
        // Multiplied and added apart, as at every level.
        sums[0] = _mm512_add_ps(sums[0], _mm512_mul_ps(r, r));
        sums[1] = _mm512_add_ps(sums[1], _mm512_abs_ps(r));
        sums[2] = _mm512_add_ps(sums[2], _mm512_mul_ps(u, r));
        let signed = _mm512_mask_sub_ps(u, !positive, zero, u);
        sums[3] = _mm512_add_ps(sums[3], signed);
        sketch::put_signs(row, positive, packed);
    }
    Sums::of(sums.map(|sum| {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array holds the 64 bytes written; the store needs no alignment.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        lanes
    }))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn estimate(
    table: &SignTable,
    sketch: &[u8],
    base: f32,
    floor: f32,
    out: &mut [f32; SIGN_ROWS],
) -> u32 {
    let (factors, constants, signs) = sketch::split(sketch);
    let sums = sign_registers(table.bytes(), signs);
    let (step, lowest) = table.line();
    let (step, lowest) = (_mm512_set1_ps(step), _mm512_set1_ps(lowest));
    let (base, floor) = (_mm512_set1_ps(base), _mm512_set1_ps(floor));
    let halves = factors.as_chunks::<32>().0.iter().zip(constants.as_chunks::<32>().0);
    let mut above = 0;
    for (at, ((sum, (factors, constants)), out)) in
        sums.into_iter().zip(halves).zip(out.as_chunks_mut::<16>().0).enumerate()
    {
        let signed = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, lowest);
        let constant = _mm512_add_ps(base, load_f16(constants));
        let estimate = _mm512_fmadd_ps(load_f16(factors), signed, constant);
        above |= u32::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(estimate, floor)) << (16 * at);
        // SAFETY: the array holds the 64 bytes written; the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), estimate) };
    }
    above
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn load_f16(source: &[u8; 32]) -> __m512 {
    // SAFETY: the array holds the 32 bytes read; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(source.as_ptr().cast::<__m256i>()) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn encode_fine(src: &[f32], codes: &[i8], step: f32, fine: &mut [i8]) {
    scalar::encode_fine(src, codes, step, fine);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn dot_fine(query: &[f32], codes: &[i8], fine: &[i8]) -> f32 {
    let steps = _mm512_set1_epi32(crate::FINE_STEPS);
    let mut sums = [_mm512_setzero_ps(); 2];
    let lanes = query.chunks(LANES).zip(codes.chunks(LANES)).zip(fine.chunks(LANES));
    for (at, ((query, codes), fine)) in lanes.enumerate() {
        let mask = u16::MAX >> (LANES - query.len().min(LANES));
        // SAFETY: the mask has one bit for each element of the three slices, at most 16; lanes that are masked off are not read.
        let (query, codes, fine) = unsafe {
            (
                _mm512_maskz_loadu_ps(mask, query.as_ptr()),
                _mm_maskz_loadu_epi8(mask, codes.as_ptr()),
                _mm_maskz_loadu_epi8(mask, fine.as_ptr()),
            )
        };
        let value = _mm512_add_epi32(
            _mm512_mullo_epi32(_mm512_cvtepi8_epi32(codes), steps),
            _mm512_cvtepi8_epi32(fine),
        );
        sums[at % 2] = _mm512_fmadd_ps(query, _mm512_cvtepi32_ps(value), sums[at % 2]);
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

/// Halves of bytes are numbers from 0 to 15, the unsigned side of `vpdpbusd`; what they were moved up by is taken off again.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn dot_i4(query: &[i8], packed: &[u8]) -> i32 {
    let (mut sum, mut moved) = ([_mm512_setzero_si512(); 2], [_mm512_setzero_si512(); 2]);
    let (mask, offset) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(nibbles::OFFSET));
    let groups = query.as_chunks::<HALF>().0.as_chunks::<2>().0.iter();
    for (query, bytes) in groups.zip(crate::as_codes(packed).as_chunks::<HALF>().0) {
        let (query, bytes) = ([load_i8(&query[0]), load_i8(&query[1])], load_i8(bytes));
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
        let halves = [_mm512_and_si512(bytes, mask), high];
        for at in 0..2 {
            sum[at] = _mm512_dpbusd_epi32(sum[at], halves[at], query[at]);
            moved[at] = _mm512_dpbusd_epi32(moved[at], offset, query[at]);
        }
    }
    let sum = _mm512_add_epi32(sum[0], sum[1]);
    let moved = _mm512_add_epi32(moved[0], moved[1]);
    _mm512_reduce_add_epi32(_mm512_sub_epi32(sum, moved))
}
