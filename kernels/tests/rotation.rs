//! Rotations against what makes a rotation one, and Hadamard's matrix by its own formula.

#![allow(missing_docs)]

#[allow(dead_code, reason = "needs less of it than the tests of levels")]
mod oracle;

use flashbulb_kernels::{Kernels, Rotation};
use oracle::{Random, dot_f64, norm_f64};
use proptest::prelude::*;

fn rotated(rotation: &Rotation, v: &[f32]) -> Vec<f32> {
    let mut out = v.to_vec();
    rotation.apply(&mut out, Kernels::detect());
    out
}

/// Lengths, products and the identity of rotations, for every length.
#[test]
fn products_stay_as_they_are() {
    for dim in (1..80).chain([128, 255, 256, 257, 384, 768, 1000, 4096]) {
        let rotation = Rotation::new(dim, dim as u64);
        let mut random = Random(dim as u64);
        let (a, b) = (random.values(dim), random.values(dim));
        let (x, y) = (rotated(&rotation, &a), rotated(&rotation, &b));
        let most = norm_f64(&a) * norm_f64(&b) * 1e-5;
        assert!((dot_f64(&a, &b) - dot_f64(&x, &y)).abs() <= most, "{dim}");
        assert!((dot_f64(&a, &a) - dot_f64(&x, &x)).abs() <= norm_f64(&a).powi(2) * 1e-5, "{dim}");
    }
}

/// Where the length is a power of two, four rounds are four times Hadamard's matrix, whose entry is −1 to the number of bits that
/// row and column share, after some signs: each unit vector must come out as one of such products.
#[test]
fn a_round_is_hadamards_matrix_after_signs() {
    const DIM: usize = 8;
    let rotation = Rotation::new(DIM, 5);
    let columns: Vec<Vec<f32>> = (0..DIM)
        .map(|at| {
            rotated(
                &rotation,
                &(0..DIM).map(|i| if i == at { 1.0 } else { 0.0 }).collect::<Vec<_>>(),
            )
        })
        .collect();
    let entry = |i: usize, j: usize| {
        let sign = if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        sign / (DIM as f64).sqrt()
    };
    // Hadamard's matrix is its own inverse: undoing the last round leaves signs times what three rounds made, whose
    // entries are multiples of 8^-1.5 where those of no rotation by angles would be.
    for column in &columns {
        for i in 0..DIM {
            let undone: f64 = (0..DIM).map(|j| entry(i, j) * f64::from(column[j])).sum();
            let steps = undone * (DIM as f64).powf(1.5) / 2.0;
            assert!((steps - steps.round()).abs() < 1e-4, "{undone}");
        }
    }
}

/// What it is for: after it no value carries much more than its part, whatever the vector was.
#[test]
fn length_is_spread_over_all_values() {
    for dim in [50, 100, 128, 200, 384, 960] {
        for at in [0, 1, dim / 2, dim - 1] {
            let mut v = vec![0.0; dim];
            v[at] = 1.0;
            let out = rotated(&Rotation::new(dim, 9), &v);
            let largest = out.iter().fold(0f32, |most, v| most.max(v.abs()));
            let even = 1.0 / (dim as f32).sqrt();
            assert!(largest < 6.0 * even, "{dim}: {largest} where {even} is even");
            // With its signs alone, a vector of even values has a product of sqrt(2/pi) = 0.80.
            let own: f32 = out.iter().map(|v| v.abs()).sum::<f32>() * even;
            assert!((0.7..0.95).contains(&own), "{dim}: {own}");
        }
    }
}

#[test]
fn a_seed_is_a_rotation() {
    let v: Vec<f32> = Random(1).values(100);
    let (a, b) = (Rotation::new(100, 1), Rotation::new(100, 2));
    assert_eq!(rotated(&a, &v), rotated(&Rotation::new(100, 1), &v));
    assert_ne!(rotated(&a, &v), rotated(&b, &v));
    assert!(rotated(&Rotation::new(0, 1), &[]).is_empty());
}

#[test]
#[should_panic(expected = "different lengths")]
fn a_vector_of_another_length_panics() {
    Rotation::new(4, 1).apply(&mut [1.0; 5], Kernels::detect());
}

proptest! {
    #[test]
    fn distances_stay_as_they_are(dim in 1usize..600, seed in any::<u64>()) {
        let mut random = Random(seed);
        let (a, b) = (random.values(dim), random.values(dim));
        let rotation = Rotation::new(dim, seed);
        let (x, y) = (rotated(&rotation, &a), rotated(&rotation, &b));
        let (before, after) = (oracle::l2_squared_f64(&a, &b), oracle::l2_squared_f64(&x, &y));
        prop_assert!((before - after).abs() <= before.max(1e-3) * 1e-4);
    }
}
