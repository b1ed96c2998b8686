//! The memories that every system stores: text, role, session, time, meta and one vector.
//!
//! Invariant: the same number gives the same memory, whichever system asks, and no two of the first million have the same
//! vector. Must not know how a system stores them.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::data::Corpus;

/// Texts and vectors that are made before anything is timed; the memories are made of them.
const KEPT: usize = 4_096;

/// One memory, as it is handed to a system.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    pub number: u64,
    pub id: String,
    pub text: String,
    pub role: &'static str,
    pub session: String,
    pub ts_ms: i64,
    /// A JSON object.
    pub meta: String,
    pub vector: Vec<f32>,
}

impl Record {
    /// Bytes of what is to be kept, without any format around it.
    pub fn bytes(&self) -> usize {
        let strings = [&*self.id, &self.text, self.role, &self.session, &self.meta];
        let text: usize = strings.iter().map(|s| s.len()).sum();
        text + size_of_val(&self.ts_ms) + size_of_val(&*self.vector)
    }
}

/// Makes memories.
pub struct Records {
    texts: Vec<String>,
    dim: usize,
    vectors: Vec<f32>,
}

impl Records {
    /// With texts of `corpus` and vectors of `dim` components.
    pub fn new(corpus: &Corpus, dim: usize, seed: u64) -> Records {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut vectors = Vec::with_capacity(KEPT * dim);
        for _ in 0..KEPT {
            let row: Vec<f32> = (0..dim).map(|_| StandardNormal.sample(&mut rng)).collect();
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            vectors.extend(row.iter().map(|v| v / length));
        }
        Records { texts: corpus.base().iter().take(KEPT).cloned().collect(), dim, vectors }
    }

    /// Makes the memory of this number.
    pub fn make(&self, number: u64) -> Record {
        let at = number as usize % KEPT;
        let row = &self.vectors[at * self.dim..(at + 1) * self.dim];
        // Turned around once more each time it comes: as far from the others as any, for the price of a copy.
        let turned = (number as usize / KEPT) % self.dim;
        let mut vector = Vec::with_capacity(self.dim);
        vector.extend_from_slice(&row[turned..]);
        vector.extend_from_slice(&row[..turned]);
        Record {
            number,
            id: format!("memory-{number:012}"),
            text: self.texts[number as usize % self.texts.len()].clone(),
            role: if number.is_multiple_of(2) { "user" } else { "assistant" },
            session: format!("session-{:06}", number / 20),
            ts_ms: 1_750_000_000_000 + number as i64,
            meta: format!(r#"{{"source":"bench","turn":{}}}"#, number % 20),
            vector,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_number_gives_one_memory_and_no_vector_comes_twice() {
        let corpus = Corpus::read(None, 100, 1).unwrap();
        let (records, again) = (Records::new(&corpus, 16, 1), Records::new(&corpus, 16, 1));
        let mut seen = HashSet::new();
        for number in 0..16 * KEPT as u64 {
            let record = records.make(number);
            let bits: Vec<u32> = record.vector.iter().map(|v| v.to_bits()).collect();
            assert!(seen.insert(bits), "the vector of {number} was there before");
        }
        assert_eq!(records.make(7), again.make(7));
        assert_ne!(records.make(7).id, records.make(8).id);
    }

    #[test]
    fn bytes_are_those_of_all_fields() {
        let record = Record {
            number: 1,
            id: "ab".into(),
            text: "c".into(),
            role: "user",
            session: "s".into(),
            ts_ms: 5,
            meta: "{}".into(),
            vector: vec![0.0; 3],
        };
        assert_eq!(record.bytes(), 2 + 1 + 4 + 1 + 8 + 2 + 12);
    }
}
