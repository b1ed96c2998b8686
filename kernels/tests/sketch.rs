//! Sketches, their estimates and what they stand on, at every level, against the definition in f64.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "needs less of it than the tests of levels")]
mod oracle;
#[allow(dead_code, reason = "shared by few")]
mod sketched;

use std::panic::{AssertUnwindSafe, catch_unwind};

use flashbulb_kernels::{
    Coded, Kernels, Rotation, SIGN_ROWS, SignTable, SimdLevel, clear_sketch, sign_bytes,
    sketch_bytes,
};
use oracle::{Random, dot_f64};
use proptest::prelude::*;
use sketched::*;

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
