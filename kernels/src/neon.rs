//! Kernels for AArch64 NEON: 128-bit registers. Only the products and the sums by signs; the rest of the level is the
//! scalar code, which the compiler vectorises for NEON by itself.
//!
//! This file has neither been compiled nor run: no AArch64 machine or target was at hand. The
//! tests cover it wherever one is.
//!
//! Invariant: integer results equal the scalar oracle exactly. It must not know where its vectors
//! come from.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vaddq_f32, vaddq_s32, vaddvq_f32, vaddvq_s32,
    vaddw_high_u8, vaddw_u8, vandq_u8, vdupq_n_f32, vdupq_n_s32, vdupq_n_u8, vdupq_n_u16,
    vfmaq_f32, vget_low_s8, vget_low_u8, vld1q_f32, vld1q_s8, vld1q_u8, vmull_high_s8, vmull_s8,
    vpadalq_s16, vqtbl1q_u8, vshrq_n_u8, vst1q_u16, vsubq_f32,
};

use crate::scalar::{self, Step};
use crate::signs::{GROUP_BYTES, GROUPS_IN_U16};
use crate::sketch::{self, Coded, Sums};
use crate::{SIGN_ROWS, SignTable};

#[inline]
#[target_feature(enable = "neon")]
fn load_f32(source: &[f32; 4]) -> float32x4_t {
    // SAFETY: the array holds the 16 bytes read; the load needs no alignment.
    unsafe { vld1q_f32(source.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i8(source: &[i8; 16]) -> int8x16_t {
    // SAFETY: the array holds the 16 bytes read; the load needs no alignment.
    unsafe { vld1q_s8(source.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn sum_f32_registers(v: [float32x4_t; 4]) -> f32 {
    vaddvq_f32(vaddq_f32(vaddq_f32(v[0], v[1]), vaddq_f32(v[2], v[3])))
}

#[target_feature(enable = "neon")]
pub(crate) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_tail) = a.as_chunks::<16>();
    let (b_blocks, b_tail) = b.as_chunks::<16>();
    let mut sums = [vdupq_n_f32(0.0); 4];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        let lanes = x.as_chunks::<4>().0.iter().zip(y.as_chunks::<4>().0);
        for (sum, (x, y)) in sums.iter_mut().zip(lanes) {
            *sum = vfmaq_f32(*sum, load_f32(x), load_f32(y));
        }
    }
    sum_f32_registers(sums) + scalar::dot_f32(a_tail, b_tail)
}

#[target_feature(enable = "neon")]
pub(crate) fn l2_squared_f32(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_tail) = a.as_chunks::<16>();
    let (b_blocks, b_tail) = b.as_chunks::<16>();
    let mut sums = [vdupq_n_f32(0.0); 4];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        let lanes = x.as_chunks::<4>().0.iter().zip(y.as_chunks::<4>().0);
        for (sum, (x, y)) in sums.iter_mut().zip(lanes) {
            let difference = vsubq_f32(load_f32(x), load_f32(y));
            *sum = vfmaq_f32(*sum, difference, difference);
        }
    }
    sum_f32_registers(sums) + scalar::l2_squared_f32(a_tail, b_tail)
}

/// Adds 16 products: (−128)² = 16,384 fits the i16 of one product, and pairs are added in i32.
#[inline]
#[target_feature(enable = "neon")]
fn add_products(sum: int32x4_t, x: int8x16_t, y: int8x16_t) -> int32x4_t {
    let low = vpadalq_s16(sum, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
    vpadalq_s16(low, vmull_high_s8(x, y))
}

#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    let (a_lanes, a_tail) = a.as_chunks::<16>();
    let (b_lanes, b_tail) = b.as_chunks::<16>();
    let mut even_sum = vdupq_n_s32(0);
    let mut odd_sum = vdupq_n_s32(0);
    for (index, (x, y)) in a_lanes.iter().zip(b_lanes).enumerate() {
        let sum = if index % 2 == 0 { &mut even_sum } else { &mut odd_sum };
        *sum = add_products(*sum, load_i8(x), load_i8(y));
    }
    vaddvq_s32(vaddq_s32(even_sum, odd_sum)) + scalar::dot_i8(a_tail, b_tail)
}

#[target_feature(enable = "neon")]
pub(crate) fn dot_i8_x4(query: &[i8], rows: [&[i8]; 4]) -> [i32; 4] {
    [dot_i8(query, rows[0]), dot_i8(query, rows[1]), dot_i8(query, rows[2]), dot_i8(query, rows[3])]
}

#[target_feature(enable = "neon")]
pub(crate) fn dot_i8_rows(query: &[i8], rows: &[i8], out: &mut [i32]) {
    for (row, dot) in rows.chunks_exact(query.len()).zip(out) {
        *dot = dot_i8(query, row);
    }
}

#[target_feature(enable = "neon")]
pub(crate) fn sum_of_squares(v: &[f32]) -> f64 {
    scalar::sum_of_squares(v)
}

#[target_feature(enable = "neon")]
pub(crate) fn max_magnitude_bits(v: &[f32]) -> u32 {
    scalar::max_magnitude_bits(v)
}

#[target_feature(enable = "neon")]
pub(crate) fn encode_i8(src: &[f32], dst: &mut [i8], step: Step) -> f64 {
    scalar::encode_i8(src, dst, step)
}

/// 16 sums of a table, or four bits of 32 rows.
#[inline]
#[target_feature(enable = "neon")]
fn load_group(source: &[u8; GROUP_BYTES]) -> uint8x16_t {
    // SAFETY: the array holds the 16 bytes read; the load needs no alignment.
    unsafe { vld1q_u8(source.as_ptr()) }
}

#[target_feature(enable = "neon")]
pub(crate) fn sign_sums(table: &[u8], packed: &[u8], out: &mut [u32; SIGN_ROWS]) {
    out.fill(0);
    let most = GROUPS_IN_U16 * GROUP_BYTES;
    for (table, packed) in table.chunks(most).zip(packed.chunks(most)) {
        let mut sums = [vdupq_n_u16(0); 4];
        let groups = table.as_chunks().0.iter().zip(packed.as_chunks().0);
        for (table, packed) in groups {
            let (table, packed) = (load_group(table), load_group(packed));
            let low = vqtbl1q_u8(table, vandq_u8(packed, vdupq_n_u8(0x0f)));
            let high = vqtbl1q_u8(table, vshrq_n_u8::<4>(packed));
            sums[0] = vaddw_u8(sums[0], vget_low_u8(low));
            sums[1] = vaddw_high_u8(sums[1], low);
            sums[2] = vaddw_u8(sums[2], vget_low_u8(high));
            sums[3] = vaddw_high_u8(sums[3], high);
        }
        for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            let mut eight = [0u16; 8];
            // SAFETY: the array holds the 16 bytes written; the store needs no alignment.
            unsafe { vst1q_u16(eight.as_mut_ptr(), sum) };
            out.iter_mut().zip(eight).for_each(|(out, sum)| *out += u32::from(sum));
        }
    }
}

#[target_feature(enable = "neon")]
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
    sketch::finish(table, (factors, constants), &sums, base, floor, out)
}

#[target_feature(enable = "neon")]
pub(crate) fn sign_magnitudes(query: &[f32]) -> (f32, f32) {
    scalar::sign_magnitudes(query)
}

#[target_feature(enable = "neon")]
pub(crate) fn sign_table(query: &[f32], inverse: f32, bytes: &mut [u8]) {
    scalar::sign_table(query, inverse, bytes);
}

#[target_feature(enable = "neon")]
pub(crate) fn rotate(factors: &[f32], vector: &mut [f32]) {
    scalar::rotate(factors, vector);
}

#[target_feature(enable = "neon")]
pub(crate) fn sketch_signs(
    row: usize,
    centre: Coded<'_>,
    point: Coded<'_>,
    packed: &mut [u8],
) -> Sums {
    scalar::sketch_signs(row, centre, point, packed)
}

#[target_feature(enable = "neon")]
pub(crate) fn encode_fine(src: &[f32], codes: &[i8], step: f32, fine: &mut [i8]) {
    scalar::encode_fine(src, codes, step, fine);
}

#[target_feature(enable = "neon")]
pub(crate) fn dot_fine(query: &[f32], codes: &[i8], fine: &[i8]) -> f32 {
    scalar::dot_fine(query, codes, fine)
}

#[target_feature(enable = "neon")]
pub(crate) fn dot_i4(query: &[i8], packed: &[u8]) -> i32 {
    scalar::dot_i4(query, packed)
}
