//! One memory as bytes: the same encoding in the log, in the unsealed head and in segments.
//!
//! Layout, little-endian: `seq u64 | ts_ms i64 | id_len u16 | role_len u16 | session_len u16 | flags u16 | meta_len u32 |
//! text_len u32 | id | role | session | meta | text`; a length of all ones means "absent". Flag 1: the vectors are the caller's own.
//! Flag 2: `key u128 | content u128` of the request it came with follow.
//! Invariant: `decode` accepts exactly what `encode` makes and never panics. Knows nothing of where the bytes lie.

use crate::codec::{NUMBER_LIMIT, Reader};
use crate::types::{Memory, NewMemory, RequestId, Seq};

/// Bytes before the variable part.
const FIXED_BYTES: usize = 32;
const REQUEST_BYTES: usize = 32;
const FLAG_OWN_VECTORS: u16 = 1;
const FLAG_REQUEST: u16 = 2;
const ABSENT_U16: u16 = u16::MAX;
const ABSENT_U32: u32 = u32::MAX;

/// A memory read in place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RecordRef<'a> {
    pub(crate) seq: Seq,
    pub(crate) ts_ms: i64,
    pub(crate) id: &'a str,
    pub(crate) role: Option<&'a str>,
    pub(crate) session: Option<&'a str>,
    pub(crate) meta: Option<&'a str>,
    pub(crate) text: &'a str,
    /// The vectors came from the caller, not from the store's model.
    pub(crate) own_vectors: bool,
    pub(crate) request: Option<RequestId>,
}

impl<'a> RecordRef<'a> {
    pub(crate) fn of(seq: Seq, m: &'a NewMemory, own_vectors: bool) -> Self {
        RecordRef {
            seq,
            ts_ms: m.ts_ms,
            id: &m.id,
            role: m.role.as_deref(),
            session: m.session.as_deref(),
            meta: m.meta.as_deref(),
            text: &m.text,
            own_vectors,
            request: m.request,
        }
    }

    pub(crate) fn encoded_len(&self) -> usize {
        let of = |s: Option<&str>| s.map_or(0, str::len);
        FIXED_BYTES
            + self.id.len()
            + of(self.role)
            + of(self.session)
            + of(self.meta)
            + self.text.len()
            + self.request.map_or(0, |_| REQUEST_BYTES)
    }

    /// Appends the encoding. The parts are within the limits of `types`, which fit their length fields.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let short = |s: Option<&str>| {
            s.map_or(ABSENT_U16, |s| u16::try_from(s.len()).unwrap_or(ABSENT_U16 - 1))
        };
        let long = |s: Option<&str>| {
            s.map_or(ABSENT_U32, |s| u32::try_from(s.len()).unwrap_or(ABSENT_U32 - 1))
        };
        out.reserve(self.encoded_len());
        out.extend_from_slice(&self.seq.0.to_le_bytes());
        out.extend_from_slice(&self.ts_ms.to_le_bytes());
        for s in [Some(self.id), self.role, self.session] {
            out.extend_from_slice(&short(s).to_le_bytes());
        }
        let own = if self.own_vectors { FLAG_OWN_VECTORS } else { 0 };
        let request = if self.request.is_some() { FLAG_REQUEST } else { 0 };
        out.extend_from_slice(&(own | request).to_le_bytes());
        for s in [self.meta, Some(self.text)] {
            out.extend_from_slice(&long(s).to_le_bytes());
        }
        for s in [Some(self.id), self.role, self.session, self.meta, Some(self.text)] {
            out.extend_from_slice(s.unwrap_or_default().as_bytes());
        }
        if let Some(RequestId { key, content }) = self.request {
            out.extend_from_slice(&key.to_le_bytes());
            out.extend_from_slice(&content.to_le_bytes());
        }
    }

    /// Reads one record that fills `bytes` to the last.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let (seq, ts_ms) = (Seq(r.u64().filter(|seq| *seq < NUMBER_LIMIT)?), r.i64()?);
        let (id, role, session, flags) = (r.u16()?, r.u16()?, r.u16()?, r.u16()?);
        let (meta, text) = (r.u32()?, r.u32()?);
        if flags & !(FLAG_OWN_VECTORS | FLAG_REQUEST) != 0 || id == ABSENT_U16 || text == ABSENT_U32
        {
            return None;
        }
        let id = r.text(id.into())?;
        let role = optional(&mut r, (role != ABSENT_U16).then_some(role.into()))?;
        let session = optional(&mut r, (session != ABSENT_U16).then_some(session.into()))?;
        let meta = optional(&mut r, (meta != ABSENT_U32).then_some(meta as usize))?;
        let text = r.text(text as usize)?;
        let request = match flags & FLAG_REQUEST {
            0 => None,
            _ => Some(RequestId { key: r.u128()?, content: r.u128()? }),
        };
        (r.remaining() == 0).then_some(RecordRef {
            seq,
            ts_ms,
            id,
            role,
            session,
            meta,
            text,
            own_vectors: flags & FLAG_OWN_VECTORS != 0,
            request,
        })
    }

    pub(crate) fn to_memory(self, searchable: bool) -> Memory {
        let own = |s: Option<&str>| s.map(str::to_owned);
        Memory {
            id: self.id.to_owned(),
            text: self.text.to_owned(),
            role: own(self.role),
            session: own(self.session),
            ts_ms: self.ts_ms,
            seq: self.seq,
            meta: own(self.meta),
            searchable,
        }
    }

    /// What identical texts share.
    pub(crate) fn text_hash(&self) -> u128 {
        text_hash(self.text)
    }
}

/// The key under which identical texts of a space meet; equality is checked on the texts themselves.
pub(crate) fn text_hash(text: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(text.as_bytes())
}

fn optional<'a>(r: &mut Reader<'a>, len: Option<usize>) -> Option<Option<&'a str>> {
    match len {
        None => Some(None),
        Some(len) => r.text(len).map(Some),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_record_survives(
            seq in 0..NUMBER_LIMIT, ts_ms in any::<i64>(), id in ".{1,40}",
            role in proptest::option::of(".{0,20}"), session in proptest::option::of(".{0,20}"),
            meta in proptest::option::of(".{0,50}"), text in ".{0,200}", own_vectors in any::<bool>(),
            request in proptest::option::of(any::<(u128, u128)>()),
        ) {
            let request = request.map(|(key, content)| RequestId { key, content });
            let r = RecordRef {
                seq: Seq(seq), ts_ms, id: &id, role: role.as_deref(), session: session.as_deref(),
                meta: meta.as_deref(), text: &text, own_vectors, request,
            };
            let mut bytes = Vec::new();
            r.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), r.encoded_len());
            prop_assert_eq!(RecordRef::decode(&bytes), Some(r));
            prop_assert_eq!(RecordRef::decode(&bytes[..bytes.len() - 1]), None);
            bytes.push(0);
            prop_assert_eq!(RecordRef::decode(&bytes), None);
            bytes.pop();
            bytes[7] = 0xff;
            prop_assert_eq!(RecordRef::decode(&bytes), None, "a seq that cannot be counted on");
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RecordRef::decode(&bytes);
        }
    }
}
