//! Sketches by their definition, in f64: made-up points and queries, a decoder of halves, and what an estimate must be.
//!
//! Invariant: nothing here calls what it judges, but to be judged. Must not know: how sketches are made.

use super::oracle::Random;
use flashbulb_kernels::*;

pub const LARGEST_HALF: f64 = 65504.0;

/// Unit roundoff of f32, and of halves: for normal ones, and for those below.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
pub const HALF_UNIT: f64 = 1.0 / 2048.0;
pub const HALF_SMALL: f64 = 1.0 / (1u64 << 25) as f64;

pub fn dims() -> impl Iterator<Item = usize> {
    (1..=70).chain([100, 127, 128, 129, 383, 384, 385, 768, 1023, 1025, 2051, 4096])
}

pub fn every_kernels() -> impl Iterator<Item = (SimdLevel, Kernels)> {
    available_levels().into_iter().map(|level| (level, Kernels::with_level(level).unwrap()))
}

/// What sums in f32 of `len` values may be off by, relative to the sum of their sizes: roundings go up as often as down.
pub fn sum_unit(len: usize) -> f64 {
    (8.0 + 4.0 * (len as f64).sqrt()) * UNIT
}

/// The value of an IEEE half.
pub fn half(bits: u16) -> f64 {
    let fraction = f64::from(bits & 0x3ff);
    let size = match (bits >> 10) & 0x1f {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2f64.powi(i32::from(exponent) - 25),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

pub fn stored(sketch: &[u8], at: usize) -> f64 {
    half(u16::from_le_bytes([sketch[at], sketch[at + 1]]))
}

pub fn factor(sketch: &[u8], row: usize) -> f64 {
    stored(sketch, 2 * row)
}

pub fn constant(sketch: &[u8], row: usize) -> f64 {
    stored(sketch, 64 + 2 * row)
}

/// Whether value `at` of the row is stored as positive.
pub fn positive(sketch: &[u8], row: usize, at: usize) -> bool {
    let byte = sketch[128 + 16 * (at / 4) + row % 16];
    let nibble = if row < 16 { byte & 15 } else { byte >> 4 };
    nibble >> (at % 4) & 1 == 1
}

/// The bits of a sketch that are the row's.
pub fn own_bits(dim: usize, row: usize) -> Vec<u8> {
    let mut mask = vec![0; sketch_bytes(dim)];
    mask[2 * row..2 * row + 2].fill(0xff);
    mask[64 + 2 * row..64 + 2 * row + 2].fill(0xff);
    for group in 0..dim.div_ceil(4) {
        mask[128 + 16 * group + row % 16] = if row < 16 { 0x0f } else { 0xf0 };
    }
    mask
}

#[derive(Clone)]
pub struct Point {
    pub codes: Vec<i8>,
    pub scale: f32,
}

impl Point {
    pub fn random(random: &mut Random, dim: usize, scale: f32) -> Self {
        Self { codes: (0..dim).map(|_| (random.bits() % 255) as i8).collect(), scale }.valid()
    }

    /// Without −128, which is no code.
    pub fn valid(mut self) -> Self {
        self.codes.iter_mut().for_each(|code| *code = (*code).max(-127));
        self
    }

    /// The nearest codes of a vector.
    pub fn of(v: &[f64]) -> Self {
        let scale = v.iter().fold(0f64, |most, v| most.max(v.abs())) as f32 / 127.0;
        let codes = v.iter().map(|v| (v / f64::from(scale)).round() as i8).collect();
        Self { codes, scale }.valid()
    }

    pub fn values(&self) -> Vec<f64> {
        self.codes.iter().map(|code| f64::from(*code) * f64::from(self.scale)).collect()
    }

    pub fn coded(&self) -> Coded<'_> {
        Coded { codes: &self.codes, scale: self.scale }
    }
}

/// A row by its definition, and how far from it f32 and halves may be.
pub struct Row {
    pub factor: f64,
    pub factor_error: f64,
    pub constant: f64,
    pub constant_error: f64,
    pub signs: Vec<f64>,
}

impl Row {
    /// Where f32 cannot tell on which side of the centre a value is, the sketch's own sign is as good as the other.
    pub fn of(centre: &Point, point: &Point, added: f32, sketch: &[u8], row: usize) -> Self {
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

pub struct Case {
    pub centre: Point,
    pub points: Vec<Point>,
    pub added: Vec<f32>,
    pub query: Vec<f32>,
    pub base: f32,
}

impl Case {
    /// Points of many kinds around one centre, the scales being of the sizes given.
    pub fn new(random: &mut Random, dim: usize, centre: f32, point: f32, query: f32) -> Self {
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
    pub fn unit(dim: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let even = 1.0 / (73.0 * (dim as f32).sqrt());
        let size = |random: &mut Random| even * 2f32.powi(random.bits() as i32 % 3);
        let (centre, point) = (size(&mut random), size(&mut random));
        Self::new(&mut random, dim, centre, point, 1.0)
    }

    pub fn dim(&self) -> usize {
        self.query.len()
    }

    /// All rows at one level, in a buffer with something else on both sides and at no good address.
    pub fn sketch(&self, kernels: Kernels, before: u8) -> Vec<u8> {
        let len = sketch_bytes(self.dim());
        let mut buffer = vec![before; len + 66];
        for row in 0..SIGN_ROWS {
            self.sketch_row(kernels, row, &mut buffer[1..=len]);
        }
        assert!(buffer[..1].iter().chain(&buffer[len + 1..]).all(|byte| *byte == before));
        buffer[1..=len].to_vec()
    }

    /// The codes lie between others, which must not count.
    pub fn sketch_row(&self, kernels: Kernels, row: usize, sketch: &mut [u8]) {
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

    pub fn table(&self, kernels: Kernels) -> SignTable {
        let mut table = SignTable::default();
        // Of no length that matters any more.
        table.set(&[3.0; 77], kernels);
        table.set(&self.query, kernels);
        table
    }

    pub fn row(&self, row: usize, sketch: &[u8]) -> Row {
        Row::of(&self.centre, &self.points[row], self.added[row], sketch, row)
    }

    /// Σ|qᵢ|.
    pub fn magnitude(&self) -> f64 {
        self.query.iter().map(|q| f64::from(q.abs())).sum()
    }

    /// What f32 may lose in an estimate from what is stored.
    pub fn rounding(&self, sketch: &[u8], row: usize, table: &SignTable) -> f64 {
        let sums = self.magnitude() + f64::from(table.error());
        8.0 * UNIT
            * (f64::from(self.base.abs())
                + constant(sketch, row).abs()
                + factor(sketch, row) * sums)
    }

    /// Holds what is stored against the definition.
    pub fn check_stored(&self, sketch: &[u8], level: SimdLevel) {
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
    pub fn check_estimates(&self, sketch: &[u8], table: &SignTable, out: &[f32; 32], at: &str) {
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
    pub fn check(&self) {
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
    pub fn check_agrees(&self, a: &[u8], b: &[u8], level: SimdLevel) {
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
