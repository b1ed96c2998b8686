//! Damage to a file's bytes.
//!
//! Invariant: what is put in is noise from a seed, never bytes of the fuzzer's choice, so that no damage can be a forgery with
//! a checksum of its own. Knows no format.

use arbitrary::Arbitrary;

/// A place in a file: anywhere, or close behind one of its parts. Most bytes of a small file are padding.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Place {
    part: u8,
    by: u16,
}

impl Place {
    fn in_file(self, len: usize, parts: &[usize]) -> usize {
        let (part, by) = (usize::from(self.part), usize::from(self.by));
        let start = if part % 4 == 0 { None } else { parts.get(part / 4 % parts.len().max(1)) };
        start.map_or(by, |start| start + by % 64) % (len + 1)
    }
}

/// One damage.
#[derive(Debug, Clone, Arbitrary)]
pub enum Damage {
    /// One byte is changed.
    Flip { at: Place, mask: u8 },
    /// Zeros, as of a sector that was never written.
    Zero { at: Place, len: u16 },
    /// A part is missing.
    Cut { at: Place, len: u16 },
    /// Everything from here on is missing.
    End { at: Place },
    /// Noise between the bytes.
    Insert { at: Place, len: u8, seed: u32 },
    /// Noise in place of bytes.
    Garbage { at: Place, len: u8, seed: u32 },
    /// A part in another part's place too.
    Copy { from: Place, to: Place, len: u16 },
    /// A part is moved.
    Move { from: Place, to: Place, len: u16 },
}

impl Damage {
    /// Does it to `bytes`, whose parts begin at `parts`.
    pub fn apply(&self, bytes: &mut Vec<u8>, parts: &[usize]) {
        let len_now = bytes.len();
        let place = |at: Place| at.in_file(len_now, parts);
        let range = |at: Place, len: u16| place(at)..(place(at) + usize::from(len)).min(len_now);
        match *self {
            Damage::Flip { at, mask } => {
                if let Some(byte) = bytes.get_mut(place(at)) {
                    *byte ^= mask;
                }
            }
            Damage::Zero { at, len } => bytes[range(at, len)].fill(0),
            Damage::Cut { at, len } => drop(bytes.drain(range(at, len))),
            Damage::End { at } => bytes.truncate(place(at)),
            Damage::Insert { at, len, seed } => {
                bytes.splice(place(at)..place(at), noise(len, seed));
            }
            Damage::Garbage { at, len, seed } => {
                for (byte, noise) in bytes[range(at, len.into())].iter_mut().zip(noise(len, seed)) {
                    *byte = noise;
                }
            }
            Damage::Copy { from, to, len } => {
                let part = bytes[range(from, len)].to_vec();
                for (byte, copied) in bytes[place(to)..].iter_mut().zip(part) {
                    *byte = copied;
                }
            }
            Damage::Move { from, to, len } => {
                let part: Vec<u8> = bytes.drain(range(from, len)).collect();
                let to = to.in_file(bytes.len(), parts);
                bytes.splice(to..to, part);
            }
        }
    }
}

fn noise(len: u8, seed: u32) -> impl Iterator<Item = u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}
