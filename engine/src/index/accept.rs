//! Which vectors a search may return.
//!
//! Invariant: a vector that is not accepted is never returned, whatever path the search takes.
//! Must not know: what the caller's filter means.

use super::VectorNo;
use std::fmt;

/// The caller's restriction on the vectors a search may return.
#[derive(Clone, Copy)]
pub enum Accept<'a> {
    /// Every live vector.
    All,
    /// The members of a set: best when the set is at hand, as the search knows its size and skips
    /// the rest without reading them.
    Bits(&'a VectorBits),
    /// Those that a test accepts. It is called for a sample of the vectors and for candidates
    /// only, so it may be slower than a set; it must give one answer throughout a search.
    Test(&'a dyn Fn(VectorNo) -> bool),
}

impl Accept<'_> {
    /// Whether this vector may be returned.
    #[inline]
    pub fn accepts(&self, vector: VectorNo) -> bool {
        match self {
            Accept::All => true,
            Accept::Bits(bits) => bits.contains(vector),
            Accept::Test(test) => test(vector),
        }
    }
}

impl fmt::Debug for Accept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accept::All => "All",
            Accept::Bits(_) => "Bits",
            Accept::Test(_) => "Test",
        })
    }
}

/// A set of vector numbers, one bit each.
#[derive(Debug, Clone, Default)]
pub struct VectorBits {
    words: Vec<u64>,
    members: u32,
}

impl VectorBits {
    /// An empty set with room for the numbers below `len`; others are added at need.
    pub fn with_len(len: u32) -> VectorBits {
        VectorBits { words: vec![0; len.div_ceil(64) as usize], members: 0 }
    }

    /// Adds a number.
    pub fn insert(&mut self, vector: VectorNo) {
        let word = (vector.0 / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1u64 << (vector.0 % 64);
        self.members += u32::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    /// Whether the number is in the set.
    #[inline]
    pub fn contains(&self, vector: VectorNo) -> bool {
        self.word(vector.0 / 64) >> (vector.0 % 64) & 1 == 1
    }

    /// Numbers in the set.
    pub fn count(&self) -> u32 {
        self.members
    }

    /// The bits of the numbers `64·at .. 64·at + 64`.
    pub(super) fn word(&self, at: u32) -> u64 {
        self.words.get(at as usize).copied().unwrap_or(0)
    }
}

impl FromIterator<VectorNo> for VectorBits {
    fn from_iter<I: IntoIterator<Item = VectorNo>>(numbers: I) -> VectorBits {
        let mut bits = VectorBits::default();
        for number in numbers {
            bits.insert(number);
        }
        bits
    }
}
