//! Little-endian reading and writing of bytes that may be damaged.
//!
//! Invariant: reading never panics and never reads past the end; a short or absurd input is `None`. Knows no format.

/// Numbers that are counted up (LSNs, seqs, epochs, generations) are below this on disk: no store comes that far, and what is
/// at hand can be counted on without overflow.
pub(crate) const NUMBER_LIMIT: u64 = 1 << 62;

/// A cursor over bytes from disk.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let part = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(part)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub(crate) fn text(&mut self, len: usize) -> Option<&'a str> {
        std::str::from_utf8(self.take(len)?).ok()
    }

    /// `count` f32 values.
    pub(crate) fn f32s(&mut self, count: usize) -> Option<Vec<f32>> {
        let bytes = self.take(count.checked_mul(4)?)?;
        Some(f32s_from(bytes))
    }
}

/// The f32 values that `bytes` hold; a tail of fewer than four bytes is left out.
pub(crate) fn f32s_from(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect()
}

/// Appends `values` to `out`.
pub(crate) fn put_f32s(out: &mut Vec<u8>, values: &[f32]) {
    out.reserve(values.len() * 4);
    for v in values {
        out.extend_from_slice(&v.to_le_bytes());
    }
}

/// Pads `out` with zeros to a multiple of `align`.
pub(crate) fn pad_to(out: &mut Vec<u8>, align: usize) {
    out.resize(out.len().next_multiple_of(align), 0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn short_input_is_none_and_does_not_move() {
        let mut r = Reader::new(&[1, 2, 3]);
        assert_eq!(r.u32(), None);
        assert_eq!(r.u16(), Some(0x0201));
        assert_eq!(r.take(usize::MAX), None);
        assert_eq!(r.f32s(usize::MAX), None);
        assert_eq!(r.remaining(), 1);
    }

    #[test]
    fn floats_survive() {
        let mut out = vec![9];
        put_f32s(&mut out, &[1.5, -0.0, f32::MIN_POSITIVE]);
        pad_to(&mut out, 8);
        assert_eq!(out.len(), 16);
        let mut r = Reader::new(&out[1..]);
        assert_eq!(r.f32s(3).unwrap(), [1.5, -0.0, f32::MIN_POSITIVE]);
    }
}
