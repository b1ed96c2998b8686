//! Sums of a query's values by the signs of 32 rows at once, through a table of bytes.
//!
//! A row is kept as one bit a value, its sign. With `r` a row and `q` a query, `Σ ±qᵢ` with the signs of `r` estimates `q·r`
//! up to a factor of the row's (Gao and Long, *RaBitQ*, SIGMOD 2024). Four values of the query have 16 sums of signs; each
//! is kept as a byte, so that one shuffle looks up 16 rows (André, Kermarrec and Le Scouarnec, *Cache locality is not enough*,
//! VLDB 2015: "fast scan"; layout as in Gou et al., *SymphonyQG*, SIGMOD 2025).
//!
//! Invariant: the sums of bytes are exact and equal at every level. It must not know what rows are.

use crate::Kernels;
use crate::sketch::{self, LANES};

/// Rows that one call sums.
pub const SIGN_ROWS: usize = 32;

/// Values that share one lookup.
pub(crate) const GROUP: usize = 4;
/// Bytes of one group: of a table its 16 sums, of rows 4 bits for each of 32.
pub(crate) const GROUP_BYTES: usize = 16;
/// Groups whose bytes surely sum to less than 2^16.
pub(crate) const GROUPS_IN_U16: usize = 256;

/// Bytes of the signs of 32 rows of `dim` values.
pub const fn sign_bytes(dim: usize) -> usize {
    dim.div_ceil(GROUP) * GROUP_BYTES
}

/// Writes the signs of one of 32 rows into `packed`: byte `16 g + r` has the group `g` of row `r` in its low four bits and
/// that of row `r + 16` in its high ones, the first value in the lowest. Zero counts as positive, and so does NaN.
///
/// # Panics
/// If `row` is not below [`SIGN_ROWS`], or `packed` is not [`sign_bytes`] long.
pub fn pack_signs(row: usize, values: &[f32], packed: &mut [u8]) {
    assert!(row < SIGN_ROWS, "row {row} of {SIGN_ROWS}");
    assert_eq!(packed.len(), sign_bytes(values.len()), "values and packed do not agree");
    let shift = row / GROUP_BYTES * GROUP;
    for (group, bytes) in values.chunks(GROUP).zip(packed.chunks_exact_mut(GROUP_BYTES)) {
        let bit = |(at, value): (usize, &f32)| u8::from(*value >= 0.0 || value.is_nan()) << at;
        let signs: u8 = group.iter().enumerate().map(bit).sum();
        let byte = &mut bytes[row % GROUP_BYTES];
        *byte = *byte & !(0x0f << shift) | signs << shift;
    }
}

/// The sums of signs of one query, by groups of four values.
#[derive(Debug, Clone, Default)]
pub struct SignTable {
    bytes: Vec<u8>,
    scale: f32,
    offset: f32,
    error: f32,
}

impl SignTable {
    /// Takes another query; the memory of the last one is used again. Every level makes the same table.
    ///
    /// A query with an infinity or NaN, or with values of which eight overflow f32, gives sums without meaning; callers reject it.
    pub fn set(&mut self, query: &[f32], kernels: Kernels) {
        let groups = query.len().div_ceil(GROUP);
        self.bytes.resize(groups * GROUP_BYTES, 0);
        let (widest, sum) = dispatch!(kernels, sign_magnitudes(query));
        // Sums of a group with all signs lie within twice its magnitude.
        let step = (widest * 2.0 / 255.0).max(f32::MIN_POSITIVE);
        let bytes = &mut self.bytes;
        dispatch!(kernels, sign_table(query, 1.0 / step, bytes));
        self.scale = step;
        self.offset = -sum;
        self.error = step * 0.5 * groups as f32;
    }

    /// What a sum of bytes stands for: `Σ ±qᵢ`.
    #[inline]
    pub fn value(&self, sum: u32) -> f32 {
        sum as f32 * self.scale + self.offset
    }

    /// How far [`SignTable::value`] may be from the true sum, but for rounding in f32: half a step for each group.
    pub fn error(&self) -> f32 {
        self.error
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What a step of a byte stands for, and what a sum of zero does.
    pub(crate) fn line(&self) -> (f32, f32) {
        (self.scale, self.offset)
    }
}

/// Of each four signs, which are positive: 1 or 0 by value.
pub(crate) const POSITIVE: [[f32; GROUP_BYTES]; GROUP] = {
    let mut positive = [[0.0; GROUP_BYTES]; GROUP];
    let mut signs = 0;
    while signs < GROUP_BYTES {
        let mut at = 0;
        while at < GROUP {
            if signs >> at & 1 == 1 {
                positive[at][signs] = 1.0;
            }
            at += 1;
        }
        signs += 1;
    }
    positive
};

/// The largest magnitude of a group, and the sum of all.
pub(crate) fn sign_magnitudes(query: &[f32]) -> (f32, f32) {
    add_magnitudes(query, 0.0, [0.0; LANES])
}

/// Goes on from what there is of the groups before: the largest, and the sums of each sixteenth group, in that order at every level.
pub(crate) fn add_magnitudes(query: &[f32], widest: f32, by_lane: [f32; LANES]) -> (f32, f32) {
    let (mut widest, mut by_lane) = (widest, by_lane);
    for (at, group) in query.chunks(GROUP).enumerate() {
        let magnitude = group.iter().map(|v| v.abs()).sum::<f32>();
        widest = widest.max(magnitude);
        by_lane[at % LANES] += magnitude;
    }
    (widest, sketch::sum(by_lane))
}

/// Of the sums of a group, how far that without a positive sign is above the lowest: each positive sign has twice its value more.
#[inline(always)]
pub(crate) fn below(group: &[f32]) -> f32 {
    group.iter().map(|v| v.min(0.0) * -2.0).sum()
}

/// Writes the sixteen sums of each group in steps, from the lowest of them.
pub(crate) fn sign_table(query: &[f32], inverse: f32, bytes: &mut [u8]) {
    for (group, bytes) in query.chunks(GROUP).zip(bytes.as_chunks_mut::<GROUP_BYTES>().0) {
        let mut sums = [below(group); GROUP_BYTES];
        for (value, positive) in group.iter().zip(&POSITIVE) {
            for (sum, positive) in sums.iter_mut().zip(positive) {
                *sum += positive * (value * 2.0);
            }
        }
        for (byte, sum) in bytes.iter_mut().zip(sums) {
            // Rounded; a sum below zero by rounding alone comes to zero.
            *byte = (sum * inverse + 0.5).clamp(0.0, 255.0) as i32 as u8;
        }
    }
}

/// The sums in the plainest order.
pub(crate) fn sums(table: &[u8], packed: &[u8], out: &mut [u32; SIGN_ROWS]) {
    out.fill(0);
    let groups = table.chunks_exact(GROUP_BYTES).zip(packed.chunks_exact(GROUP_BYTES));
    for (table, packed) in groups {
        let (low, high) = out.split_at_mut(GROUP_BYTES);
        for ((byte, low), high) in packed.iter().zip(low).zip(high) {
            *low += u32::from(table[usize::from(byte & 0x0f)]);
            *high += u32::from(table[usize::from(byte >> 4)]);
        }
    }
}
