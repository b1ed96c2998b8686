//! A random rotation of vectors of any length, in `O(n log n)`.
//!
//! Why: signs say most about a vector whose length is spread evenly over its values, which a random rotation sees to. Four rounds of
//! random signs, a Hadamard transform of as many values as a power of two allows (the first ones and the last ones in turns), and
//! a mixing of both halves, as in RaBitQ-Library's `FhtKacRotator` (Gao et al., SIGMOD 2025), here with each step of length one.
//!
//! Invariant: the same seed rotates alike on every processor, to the last bit, and products of two vectors stay as they are but for
//! rounding. It must not know what vectors mean.

use crate::Kernels;

const ROUNDS: usize = 4;

/// A rotation of vectors of one length.
#[derive(Debug, Clone)]
pub struct Rotation {
    dim: usize,
    /// Of each round, what each value is multiplied by before: 1 or −1, and the transform's scale.
    factors: Vec<f32>,
}

impl Rotation {
    /// The rotation of `seed` for vectors of `dim` values.
    pub fn new(dim: usize, seed: u64) -> Rotation {
        let scale = 1.0 / (transformed(dim) as f32).sqrt();
        let mut state = seed;
        let mut factors = vec![0.0; ROUNDS * dim];
        for (round, signs) in factors.chunks_exact_mut(dim.max(1)).enumerate() {
            let inside = span(dim, round);
            for (at, factor) in signs.iter_mut().enumerate() {
                let length = if inside.contains(&at) { scale } else { 1.0 };
                *factor = if bits(&mut state) >> 63 == 0 { length } else { -length };
            }
        }
        Rotation { dim, factors }
    }

    /// Values of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rotates a vector in its place.
    ///
    /// # Panics
    /// If it is not [`Rotation::dim`] long.
    pub fn apply(&self, vector: &mut [f32], kernels: Kernels) {
        assert_eq!(vector.len(), self.dim, "vector and rotation of different lengths");
        let factors = &self.factors;
        dispatch!(kernels, rotate(factors, vector));
    }
}

/// Applies the rounds. Inlined into each level, whose registers the compiler then uses.
#[inline(always)]
pub(crate) fn rotate(factors: &[f32], vector: &mut [f32]) {
    rotate_by(factors, vector, hadamard);
}

/// Applies the rounds by this way of transforming.
#[inline(always)]
pub(crate) fn rotate_by(factors: &[f32], vector: &mut [f32], hadamard: impl Fn(&mut [f32])) {
    let dim = vector.len();
    for (round, factors) in factors.chunks_exact(dim.max(1)).enumerate() {
        vector.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        hadamard(&mut vector[span(dim, round)]);
        if transformed(dim) < dim {
            mix(vector);
        }
    }
}

/// As many of `dim` values as a power of two allows.
fn transformed(dim: usize) -> usize {
    if dim == 0 { 0 } else { 1 << dim.ilog2() }
}

/// Which values a round transforms.
fn span(dim: usize, round: usize) -> std::ops::Range<usize> {
    let len = transformed(dim);
    if round.is_multiple_of(2) { 0..len } else { dim - len..dim }
}

/// The Hadamard transform without a scale; the length is a power of two, or 0.
#[inline(always)]
pub(crate) fn hadamard(values: &mut [f32]) {
    let whole = values.len() >= LANES;
    for lanes in values.as_chunks_mut::<LANES>().0 {
        within::<1>(lanes);
        within::<2>(lanes);
        within::<4>(lanes);
        within::<8>(lanes);
    }
    halves(values, if whole { LANES } else { 1 });
}

/// The steps of the transform from pairs so far apart on.
#[inline(always)]
pub(crate) fn halves(values: &mut [f32], from: usize) {
    let mut half = from;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// Values of a register of AVX-512.
const LANES: usize = 16;

/// One step of the transform whose pairs lie in one register, as an exchange and a sum.
#[inline(always)]
fn within<const HALF: usize>(lanes: &mut [f32; LANES]) {
    let swapped: [f32; LANES] = std::array::from_fn(|at| lanes[at ^ HALF]);
    for (at, (value, other)) in lanes.iter_mut().zip(swapped).enumerate() {
        *value = other + if at & HALF == 0 { *value } else { -*value };
    }
}

/// Turns each value of the first half and its like in the second by 45 degrees; one in the middle stays.
#[inline(always)]
fn mix(values: &mut [f32]) {
    let half = values.len() / 2;
    let from = values.len() - half;
    let (low, high) = values.split_at_mut(from);
    for (a, b) in low.iter_mut().zip(high) {
        let scale = std::f32::consts::FRAC_1_SQRT_2;
        (*a, *b) = ((*a + *b) * scale, (*a - *b) * scale);
    }
}

/// Repeatable bits (Steele et al., splitmix64).
fn bits(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
