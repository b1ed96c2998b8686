//! Made-up inputs of the benchmarks.
//!
//! Invariant: the same state gives the same values on every machine. Must not know what is measured with them.

/// Values of a vector: as many as all-MiniLM-L6-v2 gives.
pub const DIMENSION: usize = 384;

/// Repeatable pseudo-random bits (xorshift64).
pub fn random_bits(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

pub fn codes(len: usize, state: &mut u64) -> Vec<i8> {
    (0..len).map(|_| random_bits(state) as i8).collect()
}

pub fn values(len: usize, state: &mut u64) -> Vec<f32> {
    (0..len).map(|_| (random_bits(state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}
