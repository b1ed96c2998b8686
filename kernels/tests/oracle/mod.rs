//! Independent oracles in f64 and i64, the bounds that kernels are held to, and test inputs.
//!
//! Nothing here calls the crate under test.

use proptest::prelude::*;

/// Unit roundoff of f32.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// The smallest positive f32, the error of a product that is too small for f32.
fn smallest() -> f64 {
    f64::from(f32::from_bits(1))
}

pub fn dot_f64(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// The documented bound on the error of an f32 dot product.
pub fn dot_bound(a: &[f32], b: &[f32]) -> f64 {
    let magnitudes: f64 = a.iter().zip(b).map(|(x, y)| (f64::from(*x) * f64::from(*y)).abs()).sum();
    a.len() as f64 * (1.01 * UNIT * magnitudes + smallest())
}

pub fn l2_squared_f64(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
}

/// As [`dot_bound`], with one more rounding, squared, in each difference.
pub fn l2_squared_bound(a: &[f32], b: &[f32]) -> f64 {
    (a.len() as f64 + 4.0) * (1.01 * UNIT * l2_squared_f64(a, b) + smallest())
}

pub fn norm_f64(v: &[f32]) -> f64 {
    dot_f64(v, v).sqrt()
}

pub fn dot_i64(a: &[i8], b: &[i8]) -> i64 {
    a.iter().zip(b).map(|(x, y)| i64::from(*x) * i64::from(*y)).sum()
}

/// `‖v − scale·code‖`, in f64.
pub fn residual_norm(v: &[f32], codes: &[i8], scale: f32) -> f64 {
    v.iter()
        .zip(codes)
        .map(|(x, c)| (f64::from(*x) - f64::from(*c) * f64::from(scale)).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Repeatable pseudo-random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In −1..1.
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    pub fn codes(&mut self, len: usize) -> Vec<i8> {
        (0..len).map(|_| self.bits() as i8).collect()
    }
}

/// Finite values of every size whose products stay in f32.
pub fn element() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -1.0f32..1.0,
        2 => -1e15f32..1e15,
        1 => (any::<bool>(), 0u32..0x0100_0000).prop_map(|(negative, bits)| {
            let tiny = f32::from_bits(bits);
            if negative { -tiny } else { tiny }
        }),
        1 => prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, f32::MIN_POSITIVE]),
    ]
}

/// Any i8, the extremes more often.
pub fn code() -> impl Strategy<Value = i8> {
    prop_oneof![2 => any::<i8>(), 1 => prop::sample::select(vec![-128, -127, 0, 127])]
}

/// Two vectors of one length.
pub fn pair<S: Strategy>(
    element: fn() -> S,
    max_len: usize,
) -> impl Strategy<Value = (Vec<S::Value>, Vec<S::Value>)> {
    prop::collection::vec((element(), element()), 0..max_len)
        .prop_map(|pairs| pairs.into_iter().unzip())
}
