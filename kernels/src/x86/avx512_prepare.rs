//! What a query is made ready with, for AVX-512: the rotation and the table of signs.
//!
//! Invariant: the same results as the scalar ones, to the last bit: every sum is taken in their order, and only what changes no
//! rounding is done otherwise. It must not know what queries are for.

use std::arch::x86_64::{
    __m128i, __m512, __mmask16, _mm_storeu_si128, _mm512_abs_ps, _mm512_add_ps, _mm512_castpd_ps,
    _mm512_castpd512_pd256, _mm512_castps_pd, _mm512_cvtepi32_epi8, _mm512_cvttps_epi32,
    _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_insertf64x4, _mm512_mask_add_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_permute_ps, _mm512_permutex2var_ps, _mm512_set1_ps,
    _mm512_setr_epi32, _mm512_setr_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps,
    _mm512_sub_ps,
};

use super::avx512::load_f32;
use crate::rotation;
use crate::signs::{self, GROUP, GROUP_BYTES};
use crate::sketch::LANES;

/// Values whose transform fits in sixteen registers.
const IN_REGISTERS: usize = LANES * LANES;
/// Values of as many groups as a register has lanes.
const BLOCK: usize = GROUP * LANES;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn store_f32(value: __m512, to: &mut [f32; LANES]) {
    // SAFETY: the array holds the 64 bytes written; the store needs no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn rotate(factors: &[f32], vector: &mut [f32]) {
    rotation::rotate_by(factors, vector, |values| {
        if values.len() < IN_REGISTERS {
            return rotation::hadamard(values);
        }
        for values in values.as_chunks_mut::<IN_REGISTERS>().0 {
            hadamard(values);
        }
        rotation::halves(values, IN_REGISTERS);
    });
}

/// The Hadamard transform of 256 values, each loaded and stored once.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn hadamard(values: &mut [f32; IN_REGISTERS]) {
    let rows = values.as_chunks_mut::<LANES>().0;
    let mut r = [_mm512_setzero_ps(); LANES];
    for (r, row) in r.iter_mut().zip(rows.iter()) {
        *r = within(load_f32(row));
    }
    let mut half = 1;
    while half < LANES {
        for at in (0..LANES).filter(|at| at & half == 0) {
            let (a, b) = (r[at], r[at + half]);
            (r[at], r[at + half]) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
        }
        half *= 2;
    }
    for (r, row) in r.iter().zip(rows) {
        store_f32(*r, row);
    }
}

/// The steps whose pairs lie in one register. A product with 1 or −1 is exact, so the multiply-add rounds as the sum does.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn within(v: __m512) -> __m512 {
    let (p, m) = (1.0, -1.0);
    let signs = [
        _mm512_setr_ps(p, m, p, m, p, m, p, m, p, m, p, m, p, m, p, m),
        _mm512_setr_ps(p, p, m, m, p, p, m, m, p, p, m, m, p, p, m, m),
        _mm512_setr_ps(p, p, p, p, m, m, m, m, p, p, p, p, m, m, m, m),
        _mm512_setr_ps(p, p, p, p, p, p, p, p, m, m, m, m, m, m, m, m),
    ];
    let v = _mm512_fmadd_ps(v, signs[0], _mm512_permute_ps::<0b10_11_00_01>(v));
    let v = _mm512_fmadd_ps(v, signs[1], _mm512_permute_ps::<0b01_00_11_10>(v));
    let v = _mm512_fmadd_ps(v, signs[2], _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v));
    _mm512_fmadd_ps(v, signs[3], _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v))
}

/// The first values of sixteen groups, the second ones, and so on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn by_place(block: &[f32; BLOCK]) -> [__m512; GROUP] {
    let rows = block.as_chunks::<LANES>().0;
    let z = [load_f32(&rows[0]), load_f32(&rows[1]), load_f32(&rows[2]), load_f32(&rows[3])];
    let even = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    let odd = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
    let [first, second] = [even, odd].map(|order| {
        let low = _mm512_castps_pd(_mm512_permutex2var_ps(z[0], order, z[1]));
        let high = _mm512_castps_pd(_mm512_permutex2var_ps(z[2], order, z[3]));
        let one = _mm512_insertf64x4::<1>(low, _mm512_castpd512_pd256(high));
        let other = _mm512_insertf64x4::<0>(high, _mm512_extractf64x4_pd::<1>(low));
        [_mm512_castpd_ps(one), _mm512_castpd_ps(other)]
    });
    [first[0], first[1], second[0], second[1]]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn sign_magnitudes(query: &[f32]) -> (f32, f32) {
    let (blocks, rest) = query.as_chunks::<BLOCK>();
    let (mut widest, mut sums) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for block in blocks {
        let [a, b, c, d] = by_place(block).map(|v| _mm512_abs_ps(v));
        let magnitudes = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), c), d);
        widest = _mm512_max_ps(widest, magnitudes);
        sums = _mm512_add_ps(sums, magnitudes);
    }
    let (mut most, mut by_lane) = ([0.0; LANES], [0.0; LANES]);
    store_f32(widest, &mut most);
    store_f32(sums, &mut by_lane);
    signs::add_magnitudes(rest, most.into_iter().fold(0.0, f32::max), by_lane)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) fn sign_table(query: &[f32], inverse: f32, bytes: &mut [u8]) {
    let (blocks, rest) = query.as_chunks::<BLOCK>();
    let (tables, rest_bytes) = bytes.split_at_mut(blocks.len() * LANES * GROUP_BYTES);
    let two = _mm512_set1_ps(2.0);
    for (block, tables) in blocks.iter().zip(tables.as_chunks_mut::<{ LANES * GROUP_BYTES }>().0) {
        let [a, b, c, d] = by_place(block)
            .map(|v| _mm512_mul_ps(_mm512_min_ps(v, _mm512_setzero_ps()), _mm512_set1_ps(-2.0)));
        let mut below = [0.0; LANES];
        store_f32(_mm512_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), c), d), &mut below);
        let mut twice = [0.0; BLOCK];
        let rows = block.as_chunks::<LANES>().0.iter();
        for (row, twice) in rows.zip(twice.as_chunks_mut::<LANES>().0) {
            store_f32(_mm512_mul_ps(load_f32(row), two), twice);
        }
        let groups = below.iter().zip(twice.as_chunks::<GROUP>().0);
        for ((below, twice), table) in groups.zip(tables.as_chunks_mut::<GROUP_BYTES>().0) {
            group_table(*below, twice, inverse, table);
        }
    }
    for (group, table) in rest.chunks(GROUP).zip(rest_bytes.as_chunks_mut::<GROUP_BYTES>().0) {
        let mut twice = [0.0; GROUP];
        twice.iter_mut().zip(group).for_each(|(twice, value)| *twice = value * 2.0);
        group_table(signs::below(group), &twice, inverse, table);
    }
}

/// Writes the sixteen sums of a group, by how far the lowest is below that of no positive sign, and its values twice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn group_table(below: f32, twice: &[f32; GROUP], inverse: f32, table: &mut [u8; GROUP_BYTES]) {
    // Which of the sixteen sums have each of the four values positive.
    const POSITIVE: [__mmask16; GROUP] = [0xaaaa, 0xcccc, 0xf0f0, 0xff00];
    let mut sums = _mm512_set1_ps(below);
    for (twice, positive) in twice.iter().zip(POSITIVE) {
        sums = _mm512_mask_add_ps(sums, positive, sums, _mm512_set1_ps(*twice));
    }
    let steps = _mm512_add_ps(_mm512_mul_ps(sums, _mm512_set1_ps(inverse)), _mm512_set1_ps(0.5));
    let within = _mm512_max_ps(_mm512_min_ps(steps, _mm512_set1_ps(255.0)), _mm512_setzero_ps());
    let bytes = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(within));
    // SAFETY: the array holds the 16 bytes written; the store needs no alignment.
    unsafe { _mm_storeu_si128(table.as_mut_ptr().cast::<__m128i>(), bytes) };
}
