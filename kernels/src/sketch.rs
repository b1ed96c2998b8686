//! Sketches: 32 points seen from a centre, one bit a value, from which products of a query with each are estimated at once.
//!
//! With `u` the centre, `v` a point, `r = v − u` and `x` the signs of `r`, `r ≈ x · ‖r‖² / (r·x)`, so that
//! `q·v = q·u + u·r + (q − u)·r ≈ q·u + f · (q·x) + c` with the point's factor `f = ‖r‖² / (r·x)` and constant
//! `c = u·r − f · (u·x)`. The estimate has no bias over random rotations, and its error shrinks with `‖q − u‖ · ‖r‖`: it is best where
//! the query, the centre and the point are close together (Gao and Long, *RaBitQ*, SIGMOD 2024; Gou et al., *SymphonyQG*, SIGMOD 2025).
//!
//! Layout, with 32 rows: factors (f16, little-endian), constants (f16), then signs as [`pack_signs`](crate::pack_signs) lays them out.
//!
//! Invariant: a row without a point estimates −∞. It must not know what points are, or where the query comes from.

use crate::signs::{GROUP, GROUP_BYTES, SIGN_ROWS, SignTable, sign_bytes};
use crate::{Kernels, scalar};
use half::f16;

/// Bytes of the factors, and of the constants.
const HALVES: usize = 2 * SIGN_ROWS;
/// Lanes that sums are kept in, at every level alike.
pub(crate) const LANES: usize = 16;

/// Bytes of a sketch of 32 points of `dim` values.
pub const fn sketch_bytes(dim: usize) -> usize {
    2 * HALVES + sign_bytes(dim)
}

/// A vector by its codes: `value ≈ code · scale`.
#[derive(Debug, Clone, Copy)]
pub struct Coded<'a> {
    /// The codes.
    pub codes: &'a [i8],
    /// What one step of a code stands for.
    pub scale: f32,
}

impl Kernels {
    /// Sketches `point` as one of 32 rows around `centre`. `added` is added to all estimates of the row. Factor and constant are kept
    /// in half precision, and capped at its largest number, 65,504: vectors much longer than 1 are to be scaled before.
    ///
    /// # Panics
    /// If the lengths differ, `row` is not below [`SIGN_ROWS`], or `sketch` is not [`sketch_bytes`] long.
    pub fn sketch(
        &self,
        row: usize,
        centre: Coded<'_>,
        point: Coded<'_>,
        added: f32,
        sketch: &mut [u8],
    ) {
        assert!(row < SIGN_ROWS, "row {row} of {SIGN_ROWS}");
        assert_eq!(centre.codes.len(), point.codes.len(), "codes of different lengths");
        assert_eq!(sketch.len(), sketch_bytes(point.codes.len()), "points and sketch do not agree");
        let (halves, signs) = sketch.split_at_mut(2 * HALVES);
        let sums = dispatch!(self, sketch_signs(row, centre, point, signs));
        let factor = if sums.magnitude > 0.0 { sums.squares / sums.magnitude } else { 0.0 };
        let constant = sums.along - factor * sums.signed + added;
        // An infinite estimate would win over every other, or lose to every other. Also makes a number of NaN.
        let capped = |value: f32| value.max(f16::MIN.to_f32()).min(f16::MAX.to_f32());
        put_half(halves, row, capped(factor));
        put_half(halves, SIGN_ROWS + row, capped(constant));
    }

    /// For each row of a sketch whose estimate exceeds `floor`, a bit of the result; and all estimates. `base` is the query's
    /// product with the centre, `table` that of the query.
    ///
    /// The same table and sketch give the same estimates at every level, but for rounding in f32.
    ///
    /// # Panics
    /// If `sketch` is not [`sketch_bytes`] of the query's length long.
    #[inline]
    pub fn estimate(
        &self,
        table: &SignTable,
        sketch: &[u8],
        base: f32,
        floor: f32,
        out: &mut [f32; SIGN_ROWS],
    ) -> u32 {
        let expected = 2 * HALVES + table.bytes().len();
        assert_eq!(sketch.len(), expected, "query and sketch of different lengths");
        dispatch!(self, estimate(table, sketch, base, floor, out))
    }
}

/// Takes the point out of a row.
///
/// # Panics
/// If `row` is not below [`SIGN_ROWS`], or `sketch` has no room for factors.
pub fn clear_sketch(row: usize, sketch: &mut [u8]) {
    assert!(row < SIGN_ROWS, "row {row} of {SIGN_ROWS}");
    put_half(sketch, row, 0.0);
    put_half(sketch, SIGN_ROWS + row, f32::NEG_INFINITY);
}

fn put_half(halves: &mut [u8], at: usize, value: f32) {
    halves[2 * at..2 * at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Factors, constants and signs.
pub(crate) fn split(sketch: &[u8]) -> (&[u8; HALVES], &[u8; HALVES], &[u8]) {
    let (factors, rest) = sketch.split_first_chunk().unwrap_or((&[0; HALVES], &[]));
    let (constants, signs) = rest.split_first_chunk().unwrap_or((&[0; HALVES], &[]));
    (factors, constants, signs)
}

/// What a row's factor and constant are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sums {
    /// `‖r‖²`
    squares: f32,
    /// `Σ |rᵢ|`
    magnitude: f32,
    /// `u·r`
    along: f32,
    /// `u·x`
    signed: f32,
}

impl Sums {
    /// Sums of lanes, in the order of the fields, in one order at every level.
    pub(crate) fn of([squares, magnitude, along, signed]: [[f32; LANES]; 4]) -> Sums {
        Sums {
            squares: sum(squares),
            magnitude: sum(magnitude),
            along: sum(along),
            signed: sum(signed),
        }
    }
}

/// Writes the signs of four groups of a row: bits, the first value's the lowest.
#[inline(always)]
pub(crate) fn put_signs(row: usize, positive: u16, packed: &mut [u8]) {
    let shift = row / GROUP_BYTES * GROUP;
    for (group, bytes) in packed.chunks_mut(GROUP_BYTES).enumerate() {
        let signs = (positive >> (GROUP * group) & 0x0f) as u8;
        let byte = &mut bytes[row % GROUP_BYTES];
        *byte = *byte & !(0x0f << shift) | signs << shift;
    }
}

/// Packs the signs of a row and sums. Inlined into each level, whose registers the compiler then uses.
#[inline(always)]
pub(crate) fn sketch_signs(
    row: usize,
    centre: Coded<'_>,
    point: Coded<'_>,
    packed: &mut [u8],
) -> Sums {
    let mut sums = [[0f32; LANES]; 4];
    let lanes = centre.codes.chunks(LANES).zip(point.codes.chunks(LANES));
    for ((centres, points), packed) in lanes.zip(packed.chunks_mut(SIGNS_OF_LANES)) {
        // Beyond the end all are zero, which adds nothing.
        let (mut u, mut v) = ([0; LANES], [0; LANES]);
        u[..centres.len()].copy_from_slice(centres);
        v[..points.len()].copy_from_slice(points);
        let mut positive = 0;
        for lane in 0..LANES {
            let u = f32::from(u[lane]) * centre.scale;
            let r = f32::from(v[lane]) * point.scale - u;
            sums[0][lane] += r * r;
            sums[1][lane] += r.abs();
            sums[2][lane] += u * r;
            sums[3][lane] += if r >= 0.0 { u } else { -u };
            positive |= u16::from(r >= 0.0) << lane;
        }
        put_signs(row, positive, packed);
    }
    Sums::of(sums)
}

/// Bytes that the signs of as many values as there are lanes lie in.
pub(crate) const SIGNS_OF_LANES: usize = LANES / GROUP * GROUP_BYTES;

/// In one order at every level.
#[inline(always)]
pub(crate) fn sum(lanes: [f32; LANES]) -> f32 {
    let (low, high) = lanes.split_at(LANES / 2);
    low.iter().zip(high).map(|(a, b)| a + b).sum()
}

/// The estimates in the plainest order.
pub(crate) fn estimate(
    table: &SignTable,
    sketch: &[u8],
    base: f32,
    floor: f32,
    out: &mut [f32; SIGN_ROWS],
) -> u32 {
    let (factors, constants, signs) = split(sketch);
    let mut sums = [0; SIGN_ROWS];
    scalar::sign_sums(table.bytes(), signs, &mut sums);
    finish(table, (factors, constants), &sums, base, floor, out)
}

/// Estimates from sums of bytes.
pub(crate) fn finish(
    table: &SignTable,
    (factors, constants): (&[u8; HALVES], &[u8; HALVES]),
    sums: &[u32; SIGN_ROWS],
    base: f32,
    floor: f32,
    out: &mut [f32; SIGN_ROWS],
) -> u32 {
    let half = |halves: &[u8; HALVES], row: usize| {
        f16::from_le_bytes([halves[2 * row], halves[2 * row + 1]]).to_f32()
    };
    let mut above = 0;
    for (row, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
        *out = base + half(constants, row) + half(factors, row) * table.value(*sum);
        above |= u32::from(*out > floor) << row;
    }
    above
}
