//! Sketches, their estimates and what they stand on, at every level, against the definition in f64.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "needs less of it than the tests of levels")]
mod oracle;

use std::panic::{AssertUnwindSafe, catch_unwind};

use flashbulb_kernels::{
    Coded, Kernels, Rotation, SIGN_ROWS, SignTable, SimdLevel, available_levels, clear_sketch,
    sign_bytes, sketch_bytes,
};
use oracle::{Random, dot_f64};
use proptest::prelude::*;

const LARGEST_HALF: f64 = 65504.0;

/// Unit roundoff of f32, and of halves: for normal ones, and for those below.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
const HALF_UNIT: f64 = 1.0 / 2048.0;
const HALF_SMALL: f64 = 1.0 / (1u64 << 25) as f64;

fn dims() -> impl Iterator<Item = usize> {
    (1..=70).chain([100, 127, 128, 129, 383, 384, 385, 768, 1023, 1025, 2051, 4096])
}

fn every_kernels() -> impl Iterator<Item = (SimdLevel, Kernels)> {
    available_levels().into_iter().map(|level| (level, Kernels::with_level(level).unwrap()))
}

/// What sums in f32 of `len` values may be off by, relative to the sum of their sizes: roundings go up as often as down.
fn sum_unit(len: usize) -> f64 {
    (8.0 + 4.0 * (len as f64).sqrt()) * UNIT
}

/// The value of an IEEE half.
fn half(bits: u16) -> f64 {
    let fraction = f64::from(bits & 0x3ff);
    let size = match (bits >> 10) & 0x1f {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2f64.powi(i32::from(exponent) - 25),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

fn stored(sketch: &[u8], at: usize) -> f64 {
    half(u16::from_le_bytes([sketch[at], sketch[at + 1]]))
}

fn factor(sketch: &[u8], row: usize) -> f64 {
    stored(sketch, 2 * row)
}

fn constant(sketch: &[u8], row: usize) -> f64 {
    stored(sketch, 64 + 2 * row)
}

/// Whether value `at` of the row is stored as positive.
fn positive(sketch: &[u8], row: usize, at: usize) -> bool {
    let byte = sketch[128 + 16 * (at / 4) + row % 16];
    let nibble = if row < 16 { byte & 15 } else { byte >> 4 };
    nibble >> (at % 4) & 1 == 1
}

/// The bits of a sketch that are the row's.
fn own_bits(dim: usize, row: usize) -> Vec<u8> {
    let mut mask = vec![0; sketch_bytes(dim)];
    mask[2 * row..2 * row + 2].fill(0xff);
    mask[64 + 2 * row..64 + 2 * row + 2].fill(0xff);
    for group in 0..dim.div_ceil(4) {
        mask[128 + 16 * group + row % 16] = if row < 16 { 0x0f } else { 0xf0 };
    }
    mask
}

#[derive(Clone)]
struct Point {
    codes: Vec<i8>,
    scale: f32,
}

impl Point {
    fn random(random: &mut Random, dim: usize, scale: f32) -> Self {
        Self { codes: (0..dim).map(|_| (random.bits() % 255) as i8).collect(), scale }.valid()
    }

    /// Without −128, which is no code.
    fn valid(mut self) -> Self {
        self.codes.iter_mut().for_each(|code| *code = (*code).max(-127));
        self
    }

    /// The nearest codes of a vector.
    fn of(v: &[f64]) -> Self {
        let scale = v.iter().fold(0f64, |most, v| most.max(v.abs())) as f32 / 127.0;
        let codes = v.iter().map(|v| (v / f64::from(scale)).round() as i8).collect();
        Self { codes, scale }.valid()
    }

    fn values(&self) -> Vec<f64> {
        self.codes.iter().map(|code| f64::from(*code) * f64::from(self.scale)).collect()
    }

    fn coded(&self) -> Coded<'_> {
        Coded { codes: &self.codes, scale: self.scale }
    }
}

/// A row by its definition, and how far from it f32 and halves may be.
struct Row {
    factor: f64,
    factor_error: f64,
    constant: f64,
    constant_error: f64,
    signs: Vec<f64>,
}

impl Row {
    /// Where f32 cannot tell on which side of the centre a value is, the sketch's own sign is as good as the other.
    fn of(centre: &Point, point: &Point, added: f32, sketch: &[u8], row: usize) -> Self {
        let (u, v) = (centre.values(), point.values());
        let r: Vec<f64> = u.iter().zip(&v).map(|(u, v)| v - u).collect();
        let blur: Vec<f64> =
            u.iter().zip(&v).map(|(u, v)| 2.0 * UNIT * (u.abs() + v.abs())).collect();
        let signs: Vec<f64> = (0..r.len())
            .map(|i| {
                let tells = r[i] == 0.0 || r[i].abs() > blur[i];
                let up = if tells { r[i] >= 0.0 } else { positive(sketch, row, i) };
                if up { 1.0 } else { -1.0 }
            })
            .collect();
        let sum = |of: &dyn Fn(usize) -> f64| (0..r.len()).map(of).sum::<f64>();
        let (size, squares) = (sum(&|i| r[i].abs()), sum(&|i| r[i] * r[i]));
        let unit = sum_unit(r.len());
        let (mut factor, mut factor_f32) = (0.0, 0.0);
        if size > 0.0 {
            factor = squares / size;
            factor_f32 = 2.0 * factor * unit
                + 2.0 * sum(&|i| r[i].abs() * blur[i]) / size
                + factor / size * sum(&|i| blur[i]);
        }
        let (ur, ux) = (sum(&|i| u[i] * r[i]), sum(&|i| u[i] * signs[i]));
        let sizes = sum(&|i| u[i].abs());
        let exact = ur - factor * ux + f64::from(added);
        let constant_f32 = unit * sum(&|i| (u[i] * r[i]).abs())
            + sum(&|i| u[i].abs() * blur[i])
            + unit * factor * sizes
            + factor_f32 * ux.abs()
            + 4.0 * UNIT * (ur.abs() + (factor * ux).abs() + f64::from(added).abs());
        Self {
            factor,
            factor_error: factor_f32 + HALF_UNIT * (factor + factor_f32) + HALF_SMALL,
            constant: exact.min(LARGEST_HALF),
            constant_error: constant_f32 + HALF_UNIT * (exact.abs() + constant_f32) + HALF_SMALL,
            signs,
        }
    }
}

struct Case {
    centre: Point,
    points: Vec<Point>,
    added: Vec<f32>,
    query: Vec<f32>,
    base: f32,
}

impl Case {
    /// Points of many kinds around one centre, the scales being of the sizes given.
    fn new(random: &mut Random, dim: usize, centre: f32, point: f32, query: f32) -> Self {
        let mut between = |size: f32| size * (0.75 + 0.25 * random.value());
        let scale = between(centre);
        let scales: Vec<f32> = (0..SIGN_ROWS).map(|_| between(point)).collect();
        let centre = Point::random(random, dim, scale);
        let points = (0..SIGN_ROWS)
            .map(|row| {
                let mut other = Point::random(random, dim, scales[row]);
                match row % 8 {
                    // Many values, but not all, where the centre's are.
                    3 => {
                        other = centre.clone();
                        for _ in 0..dim / 3 + 1 {
                            let at = random.bits() as usize % dim;
                            other.codes[at] = (random.bits() % 255) as i8;
                        }
                    }
                    4 => other.scale = scale,
                    // The same values by other codes, where those are even.
                    5 => {
                        other.scale = 2.0 * scale;
                        other.codes = centre.codes.iter().map(|code| code / 2).collect();
                    }
                    6 if row < 16 => other.scale = 0.0,
                    6 if row < 24 => other.scale = scale * 1.001,
                    // On which side of the centre these are, f32 may not tell.
                    6 => {
                        other = centre.clone();
                        other.scale = scale.next_up();
                    }
                    7 if row < 16 => other = centre.clone(),
                    // So near that all of the other values are alike.
                    7 => {
                        other = centre.clone();
                        other.codes[dim - 1] ^= 1;
                    }
                    _ => {}
                }
                other.valid()
            })
            .collect();
        let query: Vec<f32> = random.values(dim).iter().map(|v| v * query).collect();
        let base = centre.values().iter().zip(&query).map(|(u, q)| u * f64::from(*q)).sum::<f64>();
        let added = (0..SIGN_ROWS)
            .map(|row| if row % 3 == 0 { 0.0 } else { random.value() * (1.0 + base.abs() as f32) })
            .collect();
        Self { centre, points, added, query, base: base as f32 }
    }

    /// With vectors of about unit length.
    fn unit(dim: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let even = 1.0 / (73.0 * (dim as f32).sqrt());
        let size = |random: &mut Random| even * 2f32.powi(random.bits() as i32 % 3);
        let (centre, point) = (size(&mut random), size(&mut random));
        Self::new(&mut random, dim, centre, point, 1.0)
    }

    fn dim(&self) -> usize {
        self.query.len()
    }

    /// All rows at one level, in a buffer with something else on both sides and at no good address.
    fn sketch(&self, kernels: Kernels, before: u8) -> Vec<u8> {
        let len = sketch_bytes(self.dim());
        let mut buffer = vec![before; len + 66];
        for row in 0..SIGN_ROWS {
            self.sketch_row(kernels, row, &mut buffer[1..=len]);
        }
        assert!(buffer[..1].iter().chain(&buffer[len + 1..]).all(|byte| *byte == before));
        buffer[1..=len].to_vec()
    }

    /// The codes lie between others, which must not count.
    fn sketch_row(&self, kernels: Kernels, row: usize, sketch: &mut [u8]) {
        let padded = |point: &Point, at: usize| {
            let mut codes = vec![-99; at + point.codes.len() + 70];
            codes[at..at + point.codes.len()].copy_from_slice(&point.codes);
            codes
        };
        let at = row % 5;
        let (centre, point) = (padded(&self.centre, at), padded(&self.points[row], at + 1));
        kernels.sketch(
            row,
            Coded { codes: &centre[at..at + self.dim()], scale: self.centre.scale },
            Coded { codes: &point[at + 1..at + 1 + self.dim()], scale: self.points[row].scale },
            self.added[row],
            sketch,
        );
    }

    fn table(&self, kernels: Kernels) -> SignTable {
        let mut table = SignTable::default();
        // Of no length that matters any more.
        table.set(&[3.0; 77], kernels);
        table.set(&self.query, kernels);
        table
    }

    fn row(&self, row: usize, sketch: &[u8]) -> Row {
        Row::of(&self.centre, &self.points[row], self.added[row], sketch, row)
    }

    /// Σ|qᵢ|.
    fn magnitude(&self) -> f64 {
        self.query.iter().map(|q| f64::from(q.abs())).sum()
    }

    /// What f32 may lose in an estimate from what is stored.
    fn rounding(&self, sketch: &[u8], row: usize, table: &SignTable) -> f64 {
        let sums = self.magnitude() + f64::from(table.error());
        8.0 * UNIT
            * (f64::from(self.base.abs())
                + constant(sketch, row).abs()
                + factor(sketch, row) * sums)
    }

    /// Holds what is stored against the definition.
    fn check_stored(&self, sketch: &[u8], level: SimdLevel) {
        for row in 0..SIGN_ROWS {
            let at = format!("{level}, {} values, row {row}", self.dim());
            let wanted = self.row(row, sketch);
            for (i, sign) in wanted.signs.iter().enumerate() {
                assert_eq!(positive(sketch, row, i), *sign > 0.0, "{at}: sign of value {i}");
            }
            let (f, c) = (factor(sketch, row), constant(sketch, row));
            let close = (f - wanted.factor).abs() <= wanted.factor_error;
            assert!(close, "{at}: factor {f} is not {}", wanted.factor);
            if wanted.factor == 0.0 {
                assert_eq!(f, 0.0, "{at}: a factor of nothing");
            }
            // A constant below all finite halves may be any that is no larger than those.
            let within = (c - wanted.constant).abs() <= wanted.constant_error;
            let below = wanted.constant < -LARGEST_HALF && c <= -LARGEST_HALF;
            assert!(within || below, "{at}: constant {c} is not {}", wanted.constant);
        }
    }

    /// Holds the estimates against the definition, and closer against what is stored.
    fn check_estimates(&self, sketch: &[u8], table: &SignTable, out: &[f32; 32], at: &str) {
        let mut sums = [0; SIGN_ROWS];
        Kernels::detect().sign_sums(table, &sketch[128..], &mut sums);
        for row in 0..SIGN_ROWS {
            let at = format!("{at}, {} values, row {row}", self.dim());
            let (found, rounding) = (f64::from(out[row]), self.rounding(sketch, row, table));
            let (f, c) = (factor(sketch, row), constant(sketch, row));
            let by_table = f64::from(self.base) + c + f * f64::from(table.value(sums[row]));
            let close = (found - by_table).abs() <= rounding;
            assert!(close || found == by_table, "{at}: {found}, but {by_table} is stored");

            let wanted = self.row(row, sketch);
            if wanted.constant < -LARGEST_HALF {
                continue;
            }
            let product: f64 =
                self.query.iter().zip(&wanted.signs).map(|(q, x)| f64::from(*q) * x).sum();
            let truth = f64::from(self.base) + wanted.constant + wanted.factor * product;
            let product_error =
                1.001 * f64::from(table.error()) + sum_unit(self.dim()) * self.magnitude();
            let allowed = wanted.constant_error
                + wanted.factor_error * product.abs()
                + (wanted.factor + wanted.factor_error) * product_error
                + rounding;
            let close = (found - truth).abs() <= allowed;
            assert!(close, "{at}: {found} is not {truth} within {allowed}");
        }
    }

    /// Every level's sketch by every level's estimates.
    fn check(&self) {
        let mut first: Option<Vec<u8>> = None;
        for (level, kernels) in every_kernels() {
            let sketch = self.sketch(kernels, 0xa5);
            self.check_stored(&sketch, level);
            self.check_agrees(first.get_or_insert_with(|| sketch.clone()), &sketch, level);
            let mut outs: Vec<[f32; 32]> = Vec::new();
            for (by, estimating) in every_kernels() {
                let table = self.table(estimating);
                let mut out = [f32::NAN; 32];
                estimating.estimate(&table, &sketch, self.base, 0.0, &mut out);
                self.check_estimates(&sketch, &table, &out, &format!("{level} by {by}"));
                for row in 0..SIGN_ROWS {
                    let (a, b) = (f64::from(outs.first().unwrap_or(&out)[row]), out[row].into());
                    let close = a == b || (a - b).abs() <= self.rounding(&sketch, row, &table);
                    assert!(close, "{by} is not the first level: {a} and {b} of row {row}");
                }
                outs.push(out);
            }
        }
    }

    /// Holds one level's sketch against another's: all that may differ is by roundings of f32, which can be what makes a half the
    /// next one.
    fn check_agrees(&self, a: &[u8], b: &[u8], level: SimdLevel) {
        for row in 0..SIGN_ROWS {
            let at = format!("{level}, {} values, row {row}", self.dim());
            let wanted = self.row(row, a);
            let (f, c) = (factor(a, row) - factor(b, row), constant(a, row) - constant(b, row));
            // Both have been held to these bounds of the same values, so that twice is certain; once is what is likely.
            assert!(f.abs() <= 1.5 * wanted.factor_error, "{at}: factors differ by {f}");
            let same = constant(a, row) == constant(b, row);
            assert!(same || c.abs() <= 1.5 * wanted.constant_error, "{at}: constants, by {c}");
        }
    }
}

#[test]
fn sizes_are_as_documented() {
    assert_eq!(SIGN_ROWS, 32);
    for dim in dims() {
        assert_eq!(sign_bytes(dim), dim.div_ceil(4) * 16);
        assert_eq!(sketch_bytes(dim), 128 + dim.div_ceil(4) * 16);
    }
}

#[test]
fn estimates_of_every_length_are_those_of_the_definition() {
    for dim in dims() {
        for seed in 0..3 {
            Case::unit(dim, 3 * dim as u64 + seed).check();
        }
    }
}

/// Both scales far from each other's, and codes at their ends only.
#[test]
fn extreme_codes_and_scales_are_as_defined() {
    for dim in [1, 5, 16, 33, 64, 100, 384, 1025, 4096] {
        for (seed, (centre, point)) in
            [(1e-4, 1e-9), (1e-9, 1e-4), (1e-4, 1e-4), (0.0, 1.0), (0.01, 0.0), (2.0, 2.0)]
                .into_iter()
                .enumerate()
        {
            let mut case = Case::new(&mut Random(seed as u64), dim, centre, point, 1.0);
            case.check();
            let ends = |code: &mut i8| *code = if *code < 0 { -127 } else { 127 };
            case.centre.codes.iter_mut().for_each(ends);
            case.points.iter_mut().for_each(|point| point.codes.iter_mut().for_each(ends));
            case.check();
        }
    }
}

/// By values of which f32 and halves have all: one row in each half of the bytes.
#[test]
fn the_layout_is_the_documented_one() {
    let centre = Point { codes: vec![4, -2, 0, 6, 1], scale: 0.5 };
    // Less the centre: 1, -1, 0, -2, 4 by quarters.
    let point = Point { codes: vec![9, -5, 0, 10, 6], scale: 0.25 };
    for (level, kernels) in every_kernels() {
        for row in [0, 1, 15, 16, 20, 31] {
            let mut sketch = vec![0; sketch_bytes(5)];
            assert_eq!(sketch.len(), 160);
            kernels.sketch(row, centre.coded(), point.coded(), 0.125, &mut sketch);
            let at = format!("{level}, row {row}");
            // Squares of 22 by sizes of 8 quarters.
            let factor = 0.25 * 22.0 / 8.0;
            // u·r = (8 + 4 − 24 + 8) / 16, u·x = (8 + 4 + 0 − 12 + 2) / 4.
            let constant = -0.25 - factor * 0.5 + 0.125;
            let mut wanted = [0; 160];
            let halves = |value: f64| half::f16::from_f64(value).to_le_bytes();
            wanted[2 * row..2 * row + 2].copy_from_slice(&halves(factor));
            wanted[64 + 2 * row..64 + 2 * row + 2].copy_from_slice(&halves(constant));
            let (first, second) = if row < 16 { (0x05, 0x01) } else { (0x50, 0x10) };
            wanted[128 + row % 16] = first;
            wanted[144 + row % 16] = second;
            assert_eq!(sketch[..144], wanted[..144], "{at}");
            // The values past the last may be of either sign.
            let own = if row < 16 { 0x01 } else { 0x10 };
            assert_eq!(sketch[144 + row % 16] & own, own, "{at}");
            for other in (0..16).filter(|other| *other != row % 16) {
                assert_eq!(sketch[144 + other], 0, "{at}");
            }
        }
    }
}

#[test]
fn the_decoder_of_these_tests_is_right() {
    for bits in 0..=u16::MAX {
        let wanted = half::f16::from_bits(bits).to_f64();
        assert!(half(bits) == wanted || wanted.is_nan() && half(bits).is_nan(), "{bits:#x}");
    }
}

/// Around the origin a row's constant is what was added, so that its rounding shows.
#[test]
fn constants_are_the_nearest_halves() {
    let origin = Point { codes: vec![17, -3, 9], scale: 0.0 };
    let point = Point { codes: vec![1, 2, -3], scale: 0.5 };
    let mut random = Random(8);
    let mut values = vec![0.0, 1.0, 65504.0, -65504.0, 65500.0, 1e-7, -1e-7, 3e-8, 2e-8, 1e-30];
    values.extend((0..4000).map(|_| {
        let size = 2f32.powi(random.bits() as i32 % 15 - 12);
        random.value() * size
    }));
    for (_, kernels) in every_kernels() {
        let mut sketch = vec![0xa5; sketch_bytes(3)];
        for value in &values {
            kernels.sketch(9, origin.coded(), point.coded(), *value, &mut sketch);
            let bits = u16::from_le_bytes([sketch[82], sketch[83]]);
            let error = |bits: u16| (half(bits) - f64::from(*value)).abs();
            for next in [bits.saturating_sub(1), bits + 1] {
                let nearer = error(next) < error(bits);
                assert!(!nearer, "{value} is nearer to {} than {}", half(next), half(bits));
            }
        }
        // (1 + 4 + 9) / (1 + 2 + 3) by halves.
        let wanted = half::f16::from_f64(0.5 * 14.0 / 6.0).to_f64();
        assert_eq!(factor(&sketch, 9), wanted);
    }
}

#[test]
fn what_was_there_before_does_not_matter() {
    for dim in dims() {
        let case = Case::unit(dim, 77 + dim as u64);
        for (level, kernels) in every_kernels() {
            let zeros = case.sketch(kernels, 0);
            for before in [0xa5, 0xff, 0x7c] {
                assert_eq!(case.sketch(kernels, before), zeros, "{level}: {dim} over {before:#x}");
            }
        }
    }
}

#[test]
fn a_row_leaves_the_others_alone() {
    for dim in (1..=70).chain([127, 128, 129, 385, 1025]) {
        let (case, other) = (Case::unit(dim, 5), Case::unit(dim, 6));
        for (level, kernels) in every_kernels() {
            let mut random = Random(dim as u64);
            let alone = case.sketch(kernels, 0);
            let mut sketch = vec![0xa5; sketch_bytes(dim)];
            for step in 0..100 {
                // Each row is the first to come, in an order of its own.
                let row = if step < 32 { step * 11 % 32 } else { random.bits() as usize % 32 };
                let own = own_bits(dim, row);
                let before = sketch.clone();
                let write = random.bits() % 3;
                match write {
                    0 => clear_sketch(row, &mut sketch),
                    1 => other.sketch_row(kernels, row, &mut sketch),
                    _ => case.sketch_row(kernels, row, &mut sketch),
                }
                for (at, own) in own.iter().enumerate() {
                    let at_all = format!("{level}: byte {at} by row {row} of {dim}");
                    assert_eq!(before[at] & !own, sketch[at] & !own, "{at_all}");
                    if write == 2 {
                        assert_eq!(alone[at] & own, sketch[at] & own, "{at_all}");
                    }
                }
            }
        }
    }
}

#[test]
fn cleared_rows_are_below_everything() {
    for dim in (1..=20).chain([100, 384, 1025]) {
        let case = Case::unit(dim, 9);
        for (level, kernels) in every_kernels() {
            let table = case.table(kernels);
            for before in [0x00, 0xa5, 0xff, 0x7c, 0xfb] {
                let mut sketch = vec![before; sketch_bytes(dim)];
                (0..SIGN_ROWS).for_each(|row| clear_sketch(row, &mut sketch));
                for base in [case.base, 0.0, 1e30, -1e30, f32::MAX] {
                    for floor in [f32::NEG_INFINITY, -1e30, 0.0, f32::INFINITY, f32::NAN] {
                        let mut out = [0.0; 32];
                        let mask = kernels.estimate(&table, &sketch, base, floor, &mut out);
                        assert_eq!(out, [f32::NEG_INFINITY; 32], "{level}: {dim}, {before:#x}");
                        assert_eq!(mask, 0, "{level}: {dim} over {floor}");
                    }
                }
                // Some come back, the others stay away.
                (0..32).step_by(3).for_each(|row| case.sketch_row(kernels, row, &mut sketch));
                clear_sketch(6, &mut sketch);
                let here = |row: usize| row.is_multiple_of(3) && row != 6;
                let mut out = [0.0; 32];
                let floor = f32::NEG_INFINITY;
                let mask = kernels.estimate(&table, &sketch, case.base, floor, &mut out);
                let mut whole = [0.0; 32];
                let all = case.sketch(kernels, 0);
                kernels.estimate(&table, &all, case.base, floor, &mut whole);
                for row in 0..SIGN_ROWS {
                    assert_eq!(mask >> row & 1 == 1, here(row), "{level}: row {row} of {dim}");
                    let wanted = if here(row) { whole[row] } else { floor };
                    assert_eq!(out[row], wanted, "{level}: row {row} of {dim}");
                }
            }
        }
    }
}

#[test]
fn the_mask_is_of_estimates_above_the_floor() {
    for dim in (1..=20).chain([64, 100, 384, 1025]) {
        let case = Case::unit(dim, 31 + dim as u64);
        for (level, kernels) in every_kernels() {
            let (table, mut sketch) = (case.table(kernels), case.sketch(kernels, 0xa5));
            clear_sketch(3, &mut sketch);
            clear_sketch(30, &mut sketch);
            let mut estimates = [0.0; 32];
            kernels.estimate(&table, &sketch, case.base, 0.0, &mut estimates);
            let mut random = Random(dim as u64);
            let mut floors = vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, 0.0, -0.0];
            floors.extend([f32::MAX, f32::MIN]);
            floors.extend(estimates);
            floors.extend(estimates.map(f32::next_up));
            floors.extend(estimates.map(f32::next_down));
            floors.extend((0..100).map(|_| case.base + random.value() * 3.0));
            for floor in floors {
                let mut out = [f32::NAN; 32];
                let mask = kernels.estimate(&table, &sketch, case.base, floor, &mut out);
                assert_eq!(out, estimates, "{level}: {dim} values, floor {floor}");
                for (row, estimate) in out.iter().enumerate() {
                    let at = format!("{level}: {dim} values, row {row}, {estimate} over {floor}");
                    assert_eq!(mask >> row & 1 == 1, *estimate > floor, "{at}");
                }
                assert!(mask == 0 || !floor.is_nan());
            }
        }
    }
}

/// Each scale has roundings of its own, which must be no residual.
#[test]
fn a_point_at_its_centre_is_estimated_exactly() {
    for dim in dims() {
        let mut random = Random(dim as u64);
        for (level, kernels) in every_kernels() {
            for scale in [0.0, 1.0, 0.1, 1.0 / 3.0, 0.00731, 1e-20, 300.7] {
                let point = Point::random(&mut random, dim, scale);
                let query = random.values(dim);
                let mut table = SignTable::default();
                table.set(&query, kernels);
                let mut sketch = vec![0xa5; sketch_bytes(dim)];
                let added: Vec<f32> = (0..SIGN_ROWS).map(|_| random.value()).collect();
                for (row, added) in added.iter().enumerate() {
                    kernels.sketch(row, point.coded(), point.coded(), *added, &mut sketch);
                }
                for base in [0.0, 0.3, -12.5] {
                    let mut out = [0.0; 32];
                    kernels.estimate(&table, &sketch, base, 0.0, &mut out);
                    for row in 0..SIGN_ROWS {
                        let at = format!("{level}: row {row} of {dim}, scale {scale}");
                        let kept = half::f16::from_f32(added[row]).to_f32();
                        assert_eq!(factor(&sketch, row), 0.0, "{at}");
                        assert_eq!(constant(&sketch, row), f64::from(kept), "{at}");
                        assert_eq!(out[row], base + kept, "{at}");
                        let up = (0..dim).all(|i| positive(&sketch, row, i));
                        assert!(up, "{at}: a difference of nothing is positive");
                    }
                }
            }
        }
    }
}

/// The codes of a centre without a scale mean nothing, and those of a point neither.
#[test]
fn a_scale_of_zero_is_the_origin() {
    for dim in dims() {
        let case = || {
            let mut case = Case::unit(dim, 400 + dim as u64);
            case.centre.scale = 0.0;
            case.base = 0.0;
            case
        };
        let (some, mut none) = (case(), case());
        none.centre.codes.fill(0);
        for point in none.points.iter_mut().filter(|point| point.scale == 0.0) {
            point.codes.fill(0);
        }
        some.check();
        for (level, kernels) in every_kernels() {
            let sketch = some.sketch(kernels, 0xa5);
            assert_eq!(none.sketch(kernels, 0xa5), sketch, "{level}: {dim}");
            for (row, added) in some.added.iter().enumerate() {
                let kept = half::f16::from_f32(*added).to_f64();
                assert_eq!(constant(&sketch, row), kept, "{level}: row {row} of {dim}");
            }
        }
    }
}

#[test]
fn constants_too_large_are_capped() {
    for dim in [1, 3, 16, 31, 64, 100, 385, 4096] {
        for (level, kernels) in every_kernels() {
            let mut table = SignTable::default();
            table.set(&vec![0.01; dim], kernels);
            let mut sketch = vec![0xa5; sketch_bytes(dim)];
            let centre = Point { codes: vec![-50; dim], scale: 1.5 };
            // Below the centre by all values, which are below zero: u·r = f·(u·x), and only what is added is left.
            let point = Point { codes: vec![-100; dim], scale: 1.5 };
            let added = [65504.0, 65519.0, 65520.0, 65535.0, 65536.0, 1e6, 1e30, f32::MAX];
            for (row, added) in added.iter().enumerate() {
                kernels.sketch(row, centre.coded(), centre.coded(), *added, &mut sketch);
                kernels.sketch(8 + row, centre.coded(), point.coded(), *added, &mut sketch);
            }
            // All of the residual in one value, where the centre has none: c = −f·(u·x), which has no bound.
            let mut aside = Point { codes: vec![-127; dim], scale: 100.0 };
            let mut far = aside.clone();
            aside.codes[0] = -1;
            far.codes[0] = -126;
            let capped = dim > 1;
            if capped {
                // The centre's other values are of the signs that were not taken: u·x is far below zero.
                kernels.sketch(16, aside.coded(), far.coded(), 0.0, &mut sketch);
            }
            (16 + usize::from(capped)..SIGN_ROWS).for_each(|row| clear_sketch(row, &mut sketch));
            let mut out = [0.0; 32];
            kernels.estimate(&table, &sketch, 2.0, 0.0, &mut out);
            for (row, estimate) in out.iter().enumerate().take(16 + usize::from(capped)) {
                let at = format!("{level}: row {row} of {dim}");
                // 65504 less what f32 loses of u·r may be the half before it.
                let near = [65504.0, 65472.0];
                let c = constant(&sketch, row);
                assert!(c == near[0] || row == 8 && c == near[1], "{at}: {c}");
                assert!(estimate.is_finite(), "{at}: {estimate}");
                // Without a residual there is nothing else.
                assert!(row >= 8 || *estimate == 65506.0, "{at}: {estimate}");
            }
        }
    }
}

/// Squares of such values are no f32.
#[test]
fn the_smallest_scales_are_almost_nothing() {
    for dim in [1, 7, 33, 100, 384] {
        for scale in [1e-18, 1e-20, 1e-25, f32::MIN_POSITIVE, f32::from_bits(1)] {
            let mut case = Case::new(&mut Random(3), dim, 1.0, 1.0, 1.0);
            case.centre.scale = scale;
            case.base = 0.0;
            for point in &mut case.points {
                point.scale = if point.scale == 0.0 { 0.0 } else { 2.0 * scale };
            }
            for (level, kernels) in every_kernels() {
                let (table, sketch) = (case.table(kernels), case.sketch(kernels, 0xa5));
                let mut out = [0.0; 32];
                kernels.estimate(&table, &sketch, 0.0, 0.0, &mut out);
                for (row, estimate) in out.iter().enumerate() {
                    let at = format!("{level}: row {row} of {dim}, scale {scale:e}");
                    let kept = half::f16::from_f32(case.added[row]).to_f64();
                    assert!(factor(&sketch, row).abs() <= HALF_SMALL, "{at}");
                    assert_eq!(constant(&sketch, row), kept, "{at}");
                    assert!((f64::from(*estimate) - kept).abs() <= 1e-7 * 384.0, "{at}");
                }
            }
        }
    }
}

/// The estimator of RaBitQ (Gao and Long, SIGMOD 2024, theorem 3.2), of what is left of the query and of the point without the
/// centre: no bias, and an error that goes with how far the query is from the centre.
#[test]
fn errors_are_those_of_the_theorem_and_less_near_the_centre() {
    const DIM: usize = 384;
    const SEEDS: u64 = 60;
    let unit = |random: &mut Random| {
        // By sums of some, no direction is much likelier than another.
        let v: Vec<f64> =
            (0..DIM).map(|_| (0..6).map(|_| f64::from(random.value())).sum()).collect();
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v.into_iter().map(|v| v / norm).collect::<Vec<_>>()
    };
    for (level, kernels) in every_kernels() {
        let mut deviations = Vec::new();
        for distance in [0.1, 0.3, 1.0] {
            let (mut means, mut squares, mut expected) = (Vec::new(), 0.0, 0.0);
            for seed in 0..SEEDS {
                let mut random = Random(5000 + seed);
                let (near, aside) = (unit(&mut random), unit(&mut random));
                let centre = Point::of(&near);
                let u = centre.values();
                let query: Vec<f32> =
                    u.iter().zip(aside).map(|(u, a)| (u + distance * a) as f32).collect();
                let product = |v: &[f64]| -> f64 {
                    query.iter().zip(v).map(|(q, v)| f64::from(*q) * v).sum()
                };
                let left =
                    u.iter().zip(&query).map(|(u, q)| (f64::from(*q) - u).powi(2)).sum::<f64>();
                let points: Vec<Point> =
                    (0..SIGN_ROWS).map(|_| Point::of(&unit(&mut random))).collect();
                let mut sketch = vec![0xa5; sketch_bytes(DIM)];
                for (row, point) in points.iter().enumerate() {
                    kernels.sketch(row, centre.coded(), point.coded(), 0.0, &mut sketch);
                }
                let mut table = SignTable::default();
                table.set(&query, kernels);
                let mut out = [0.0; 32];
                kernels.estimate(&table, &sketch, product(&u) as f32, 0.0, &mut out);
                let mut mean = 0.0;
                for (estimate, point) in out.iter().zip(&points) {
                    let v = point.values();
                    let error = f64::from(*estimate) - product(&v);
                    let r: Vec<f64> = v.iter().zip(&u).map(|(v, u)| v - u).collect();
                    let size = r.iter().map(|r| r.abs()).sum::<f64>();
                    let length = r.iter().map(|r| r * r).sum::<f64>();
                    let k2 = size * size / (length * DIM as f64);
                    mean += error / SIGN_ROWS as f64;
                    squares += error * error;
                    expected += left * length * (1.0 - k2) / k2 / (DIM as f64 - 1.0);
                }
                means.push(mean);
            }
            let mean = means.iter().sum::<f64>() / SEEDS as f64;
            let spread = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>();
            let certain = (spread / (SEEDS * (SEEDS - 1)) as f64).sqrt();
            let count = (SEEDS * SIGN_ROWS as u64) as f64;
            let (measured, wanted) = ((squares / count).sqrt(), (expected / count).sqrt());
            assert!(mean.abs() < 4.0 * certain, "{level}: a bias of {mean} at {distance}");
            assert!(mean.abs() < 0.1 * wanted, "{level}: a bias of {mean} at {distance}");
            let share = measured / wanted;
            assert!(
                (0.7..1.4).contains(&share),
                "{level}: {measured}, not {wanted}, at {distance}"
            );
            deviations.push(measured);
        }
        assert!(deviations[0] * 2.0 < deviations[1], "{level}: {deviations:?}");
        assert!(deviations[1] * 2.0 < deviations[2], "{level}: {deviations:?}");
    }
}

/// What it panics with.
fn panic_of(run: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    let text = panic.downcast_ref::<String>().cloned();
    text.unwrap_or_else(|| (*panic.downcast_ref::<&str>().unwrap()).to_owned())
}

#[test]
fn what_does_not_fit_panics() {
    const CODES: &[i8] = &[1; 40];
    let coded = |len: usize| Coded { codes: &CODES[..len], scale: 1.0 };
    for (level, kernels) in every_kernels() {
        let sketching = |row: usize, centre: usize, point: usize, bytes: usize| {
            let mut sketch = vec![0; bytes];
            panic_of(|| kernels.sketch(row, coded(centre), coded(point), 0.0, &mut sketch))
        };
        for (centre, point) in [(8, 9), (9, 8), (0, 8), (8, 0), (40, 8), (8, 40)] {
            let text = sketching(0, centre, point, sketch_bytes(8));
            assert!(text.contains("codes of different lengths"), "{level}: {text}");
        }
        for row in [32, 33, 64, usize::MAX] {
            let text = sketching(row, 8, 8, sketch_bytes(8));
            assert!(text.contains(&format!("row {row} of 32")), "{level}: {text}");
        }
        let fits = sketch_bytes(8);
        for bytes in [0, 1, 127, 128, fits - 16, fits - 1, fits + 1, fits + 16, 2 * fits] {
            let text = sketching(31, 8, 8, bytes);
            assert!(text.contains("points and sketch do not agree"), "{level}: {bytes}: {text}");
        }
        let mut table = SignTable::default();
        table.set(&[1.0; 8], kernels);
        for bytes in [0, 1, 127, 128, fits - 16, fits - 1, fits + 1, fits + 16, 2 * fits] {
            let mut out = [0.0; 32];
            let text = panic_of(|| {
                kernels.estimate(&table, &vec![0; bytes], 0.0, 0.0, &mut out);
            });
            let message = "query and sketch of different lengths";
            assert!(text.contains(message), "{level}: {bytes}: {text}");
        }
    }
}

#[test]
fn rotations_are_the_same_bits_at_every_level() {
    let scalar = Kernels::with_level(SimdLevel::Scalar).unwrap();
    for dim in (1..=70).chain([128, 255, 256, 384, 768, 1000, 4096]) {
        for (seed, size) in [(1, 1.0), (2, 1e-38), (3, 1e25), (4, 0.0)] {
            let rotation = Rotation::new(dim, seed);
            let mut random = Random(dim as u64 + seed);
            let v: Vec<f32> = random.values(dim).iter().map(|v| v * size).collect();
            let bits = |kernels: Kernels| {
                // At no good address, and between values that are not its own.
                let mut out = vec![7.5; dim + 18];
                out[1..=dim].copy_from_slice(&v);
                rotation.apply(&mut out[1..=dim], kernels);
                assert!(out[0] == 7.5 && out[dim + 1..].iter().all(|v| *v == 7.5));
                out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            let wanted = bits(scalar);
            for (level, kernels) in every_kernels() {
                assert_eq!(bits(kernels), wanted, "{level}: {dim} values of {size}");
            }
        }
    }
}

#[test]
fn tables_of_every_level_give_the_same_sums() {
    // Used again for each length, at each level one of its own.
    let mut tables: Vec<_> = every_kernels().map(|level| (level, SignTable::default())).collect();
    for dim in dims().chain([1, 4096, 2, 384, 31]) {
        for size in [1.0, 1e-12, 1e12, 0.0] {
            let mut random = Random(dim as u64);
            let mut padded = random.values(dim + 18);
            padded.iter_mut().for_each(|v| *v *= size);
            let query = &padded[1..=dim];
            let packed: Vec<u8> = (0..sign_bytes(dim)).map(|_| random.bits() as u8).collect();
            let magnitude: f64 = query.iter().map(|q| f64::from(q.abs())).sum();
            let mut first: Option<([u32; SIGN_ROWS], f32, f32)> = None;
            for ((level, kernels), table) in &mut tables {
                table.set(query, *kernels);
                for (by, summing) in every_kernels() {
                    let at = format!("{level} by {by}: {dim} values of {size}");
                    let mut sums = [u32::MAX; SIGN_ROWS];
                    summing.sign_sums(table, &packed, &mut sums);
                    let (wanted, value, error) =
                        *first.get_or_insert((sums, table.value(sums[0]), table.error()));
                    assert_eq!(sums, wanted, "{at}");
                    let off = f64::from(table.value(sums[0]) - value).abs();
                    assert!(off <= 16.0 * UNIT * magnitude, "{at}: off by {off}");
                    let off = f64::from(table.error() - error).abs();
                    assert!(off <= 16.0 * UNIT * f64::from(error), "{at}: errors off by {off}");
                    for (row, sum) in sums.iter().enumerate() {
                        let sign = |i: usize| {
                            let byte = packed[16 * (i / 4) + row % 16];
                            let nibble = if row < 16 { byte & 15 } else { byte >> 4 };
                            if nibble >> (i % 4) & 1 == 1 { 1.0 } else { -1.0 }
                        };
                        let signs: Vec<f32> = (0..dim).map(sign).collect();
                        let off = f64::from(table.value(*sum)) - dot_f64(query, &signs);
                        let allowed = 1.001 * f64::from(table.error()) + sum_unit(dim) * magnitude;
                        assert!(off.abs() <= allowed, "{at}: row {row} is off by {off}");
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn levels_are_as_defined_on_anything(
        dim in 1usize..300,
        seed in any::<u64>(),
        centre in -40i32..=8,
        point in -40i32..=8,
        query in -20i32..20,
    ) {
        let size = |exponent: i32| 2f32.powi(exponent);
        Case::new(&mut Random(seed), dim, size(centre), size(point), size(query)).check();
    }

    /// As points of one index are: scales near each other's.
    #[test]
    fn levels_are_as_defined_on_what_is_alike(
        dim in 1usize..300,
        seed in any::<u64>(),
        scale in -16i32..=-4,
        apart in -1i32..=1,
    ) {
        let size = |exponent: i32| 2f32.powi(exponent);
        Case::new(&mut Random(seed), dim, size(scale), size(scale + apart), 1.0).check();
    }
}
