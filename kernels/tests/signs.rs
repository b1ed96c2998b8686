//! Sums by signs at every level, against the definition: each value of the query is added or taken off.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "needs less of it than the tests of levels")]
mod oracle;

use flashbulb_kernels::{Kernels, SIGN_ROWS, SignTable, available_levels, pack_signs, sign_bytes};
use oracle::{Random, dot_f64};
use proptest::prelude::*;

fn packed(rows: &[Vec<f32>]) -> Vec<u8> {
    // What was there before must not matter.
    let mut out = vec![0xa5; sign_bytes(rows[0].len())];
    rows.iter().enumerate().for_each(|(at, row)| pack_signs(at, row, &mut out));
    out
}

/// `Σ ±qᵢ` in f64.
fn signed_sum(query: &[f32], row: &[f32]) -> f64 {
    query.iter().zip(row).map(|(q, r)| if *r < 0.0 { -f64::from(*q) } else { f64::from(*q) }).sum()
}

/// Holds every level against the definition and against the scalar sums.
fn check(query: &[f32], rows: &[Vec<f32>]) {
    let packed = packed(rows);
    let mut table = SignTable::default();
    table.set(query, Kernels::detect());
    let mut exact = None;
    for level in available_levels() {
        let mut sums = [u32::MAX; SIGN_ROWS];
        Kernels::with_level(level).unwrap().sign_sums(&table, &packed, &mut sums);
        assert_eq!(*exact.get_or_insert(sums), sums, "{level} at {} values", query.len());
    }
    let magnitude: f64 = query.iter().map(|v| f64::from(v.abs())).sum();
    // Half a step for each group, and f32 sums of so many values.
    let allowed =
        f64::from(table.error()) * 1.001 + magnitude * query.len() as f64 * 2f64.powi(-23);
    for (sum, row) in exact.unwrap().iter().zip(rows) {
        let (found, wanted) = (f64::from(table.value(*sum)), signed_sum(query, row));
        assert!((found - wanted).abs() <= allowed, "{found} is not {wanted} within {allowed}");
    }
}

fn random(dim: usize, seed: u64) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut random = Random(seed);
    (random.values(dim), (0..SIGN_ROWS).map(|_| random.values(dim)).collect())
}

#[test]
fn sums_of_every_length_are_those_of_the_definition() {
    for dim in (1..=140).chain([384, 768, 1023, 1024, 1025, 1028, 2051, 4096]) {
        let (query, rows) = random(dim, dim as u64);
        check(&query, &rows);
    }
}

#[test]
fn tables_are_the_same_bits_at_every_level() {
    let scalar = Kernels::with_level(flashbulb_kernels::SimdLevel::Scalar).unwrap();
    for dim in (1..=140).chain([384, 1000, 4096]) {
        let (query, rows) = random(dim, dim as u64);
        // Of many sizes, so that sums are rounded.
        let query: Vec<f32> = query.iter().map(|v| v * v * v).collect();
        let packed = packed(&rows);
        let all = available_levels().into_iter().map(|level| {
            let mut table = SignTable::default();
            table.set(&query, Kernels::with_level(level).unwrap());
            let mut sums = [0; SIGN_ROWS];
            scalar.sign_sums(&table, &packed, &mut sums);
            let line = [table.value(0), table.value(1 << 20), table.error()].map(f32::to_bits);
            (level, sums, line)
        });
        let all: Vec<_> = all.collect();
        for (level, sums, line) in &all {
            assert_eq!((&all[0].1, &all[0].2), (sums, line), "{level} at {dim} values");
        }
    }
}

#[test]
fn the_largest_sums_do_not_overflow() {
    for dim in [1020, 1024, 1028, 4096] {
        let rows: Vec<Vec<f32>> =
            (0..SIGN_ROWS).map(|at| vec![if at % 3 == 0 { -1.0 } else { 1.0 }; dim]).collect();
        for value in [1.0, -1.0, 1e30, 1e-30] {
            check(&vec![value; dim], &rows);
        }
    }
}

#[test]
fn zeros_count_as_positive_and_a_query_of_zeros_sums_to_zero() {
    let mut rows = vec![vec![0.0; 9]; SIGN_ROWS];
    rows[5] = vec![-0.0; 9];
    rows[6] = vec![f32::NAN; 9];
    rows[7] = vec![-1.0; 9];
    let packed = packed(&rows);
    let mut table = SignTable::default();
    let mut sums = [0; SIGN_ROWS];
    table.set(&[1.0; 9], Kernels::detect());
    Kernels::detect().sign_sums(&table, &packed, &mut sums);
    for (at, sum) in sums.iter().enumerate() {
        let wanted = if at == 7 { -9.0 } else { 9.0 };
        assert!((table.value(*sum) - wanted).abs() <= table.error() + 1e-5, "row {at}");
    }
    table.set(&[0.0; 9], Kernels::detect());
    Kernels::detect().sign_sums(&table, &packed, &mut sums);
    assert!(sums.iter().all(|sum| table.value(*sum) == 0.0));
}

/// The estimator of RaBitQ (Gao and Long, SIGMOD 2024, theorem 3.2): with the row's own factor it has no bias, and errs by about
/// `sqrt((1 - c²) / c²) / sqrt(dim - 1)` for unit vectors, `c` being the row's product with its signs.
#[test]
fn signs_estimate_products_of_random_unit_vectors() {
    const DIM: usize = 384;
    let unit = |mut v: Vec<f32>| {
        Kernels::detect().normalize_f32(&mut v).unwrap();
        v
    };
    let (mut errors, mut squares, mut bound, mut count) = (0f64, 0f64, 0f64, 0f64);
    for seed in 0..40 {
        let (query, rows) = random(DIM, 1000 + seed);
        let (query, rows) = (unit(query), rows.into_iter().map(unit).collect::<Vec<_>>());
        let packed = packed(&rows);
        let mut table = SignTable::default();
        table.set(&query, Kernels::detect());
        let mut sums = [0; SIGN_ROWS];
        Kernels::detect().sign_sums(&table, &packed, &mut sums);
        for (sum, row) in sums.iter().zip(&rows) {
            // The row by its signs, which are of length sqrt(DIM).
            let own = row.iter().map(|v| f64::from(v.abs())).sum::<f64>();
            let estimate = f64::from(table.value(*sum)) / own;
            let truth = dot_f64(&query, row);
            let c = own / (DIM as f64).sqrt();
            errors += estimate - truth;
            squares += (estimate - truth).powi(2);
            bound += (1.0 - c * c) / (c * c) / (DIM as f64 - 1.0);
            count += 1.0;
        }
    }
    let (mean, measured, expected) = (errors / count, squares / count, bound / count);
    assert!(mean.abs() < 4.0 * (expected / count).sqrt(), "a bias of {mean}");
    assert!((0.8..1.3).contains(&(measured / expected)), "{measured} where {expected} is expected");
}

#[test]
#[should_panic(expected = "row 32 of 32")]
fn a_row_too_many_panics() {
    pack_signs(32, &[1.0; 4], &mut [0; 16]);
}

#[test]
#[should_panic(expected = "do not agree")]
fn signs_of_another_length_panic() {
    pack_signs(0, &[1.0; 5], &mut [0; 16]);
}

#[test]
#[should_panic(expected = "different lengths")]
fn a_query_of_another_length_panics() {
    let mut table = SignTable::default();
    table.set(&[1.0; 8], Kernels::detect());
    Kernels::detect().sign_sums(&table, &[0; 48], &mut [0; SIGN_ROWS]);
}

proptest! {
    #[test]
    fn levels_agree_on_anything(dim in 1usize..700, scale in -20i32..20, seed in any::<u64>()) {
        let (mut query, rows) = random(dim, seed);
        query.iter_mut().for_each(|v| *v *= 2f32.powi(scale));
        check(&query, &rows);
    }
}
