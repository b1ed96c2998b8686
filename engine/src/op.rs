//! The operations of the log: what a write means, as bytes.
//!
//! Layouts, little-endian, each the payload of one log record (kind in its header):
//! `CREATE  space u32 | name` ·
//! `WRITE   space u32 | last_seq u64 | removed u32 | removed × seq u64 | added u32 | added × (len u32 | vectors u32 | record | rows f32)` ·
//! `VECTORS space u32 | entries u32 | entries × (seq u64 | vectors u32 | rows f32)` ·
//! `DROP    space u32`.
//! Invariant: decoding never panics and accepts only whole payloads. Knows nothing of how a store applies them.

use crate::codec::{NUMBER_LIMIT, Reader, put_f32s};
use crate::types::{Seq, SpaceId};

pub(crate) const KIND_CREATE: u16 = 2;
pub(crate) const KIND_WRITE: u16 = 3;
pub(crate) const KIND_VECTORS: u16 = 4;
pub(crate) const KIND_DROP: u16 = 5;

/// Rows of vectors, one after the other.
pub(crate) type Rows = Vec<f32>;

/// A record to be written with the vectors it brings; no rows mean it is still to be embedded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NewRecord {
    /// In the encoding of `record`.
    pub(crate) bytes: Vec<u8>,
    pub(crate) rows: Rows,
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Create { space: SpaceId, name: String },
    Write { space: SpaceId, last_seq: Seq, removed: Vec<Seq>, added: Vec<NewRecord> },
    Vectors { space: SpaceId, entries: Vec<(Seq, Rows)> },
    Drop { space: SpaceId },
}

impl Op {
    pub(crate) fn kind(&self) -> u16 {
        match self {
            Op::Create { .. } => KIND_CREATE,
            Op::Write { .. } => KIND_WRITE,
            Op::Vectors { .. } => KIND_VECTORS,
            Op::Drop { .. } => KIND_DROP,
        }
    }

    /// The payload; `dim` is the store's.
    pub(crate) fn encode(&self, dim: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let u32_of = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        match self {
            Op::Create { space, name } => {
                out.extend_from_slice(&space.0.to_le_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Op::Write { space, last_seq, removed, added } => {
                out.extend_from_slice(&space.0.to_le_bytes());
                out.extend_from_slice(&last_seq.0.to_le_bytes());
                out.extend_from_slice(&u32_of(removed.len()));
                for seq in removed {
                    out.extend_from_slice(&seq.0.to_le_bytes());
                }
                out.extend_from_slice(&u32_of(added.len()));
                for r in added {
                    out.extend_from_slice(&u32_of(r.bytes.len()));
                    out.extend_from_slice(&u32_of(r.rows.len() / dim));
                    out.extend_from_slice(&r.bytes);
                    put_f32s(&mut out, &r.rows);
                }
            }
            Op::Vectors { space, entries } => {
                out.extend_from_slice(&space.0.to_le_bytes());
                out.extend_from_slice(&u32_of(entries.len()));
                for (seq, rows) in entries {
                    out.extend_from_slice(&seq.0.to_le_bytes());
                    out.extend_from_slice(&u32_of(rows.len() / dim));
                    put_f32s(&mut out, rows);
                }
            }
            Op::Drop { space } => out.extend_from_slice(&space.0.to_le_bytes()),
        }
        out
    }

    /// Reads a payload back; `None` if it is not exactly one operation of this kind.
    pub(crate) fn decode(kind: u16, payload: &[u8], dim: usize) -> Option<Op> {
        let mut r = Reader::new(payload);
        let space = SpaceId(r.u32().filter(|number| *number < u32::MAX)?);
        let op = match kind {
            KIND_CREATE => Op::Create { space, name: r.text(r.remaining())?.to_owned() },
            KIND_WRITE => {
                let last_seq = Seq(r.u64().filter(|seq| *seq < NUMBER_LIMIT)?);
                let removed = counted(&mut r, |r| r.u64().map(Seq))?;
                let added = counted(&mut r, |r| {
                    let (len, vectors) = (r.u32()? as usize, r.u32()? as usize);
                    let bytes = r.take(len)?.to_vec();
                    let rows = r.f32s(vectors.checked_mul(dim)?)?;
                    Some(NewRecord { bytes, rows })
                })?;
                Op::Write { space, last_seq, removed, added }
            }
            KIND_VECTORS => {
                let entries = counted(&mut r, |r| {
                    let (seq, vectors) = (Seq(r.u64()?), r.u32()? as usize);
                    Some((seq, r.f32s(vectors.checked_mul(dim)?)?))
                })?;
                Op::Vectors { space, entries }
            }
            KIND_DROP => Op::Drop { space },
            _ => return None,
        };
        (r.remaining() == 0).then_some(op)
    }
}

/// Where, in the payload of a write, each added record and its rows begin.
pub(crate) fn places_of_added(
    removed: usize,
    added: &[NewRecord],
) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 4 + 8 + 4 + removed * 8 + 4;
    added.iter().map(move |new| {
        let record = at + 8;
        let rows = record + new.bytes.len();
        at = rows + new.rows.len() * 4;
        (record, rows)
    })
}

/// Where, in a payload of vectors, each entry's rows begin.
pub(crate) fn places_of_rows(entries: &[(Seq, Rows)]) -> impl Iterator<Item = usize> {
    let mut at = 4 + 4;
    entries.iter().map(move |(_, rows)| {
        let place = at + 12;
        at = place + rows.len() * 4;
        place
    })
}

/// Reads a count and then so many items; the count is not trusted for allocation.
fn counted<'a, T>(
    r: &mut Reader<'a>,
    mut item: impl FnMut(&mut Reader<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = r.u32()? as usize;
    let mut items = Vec::with_capacity(count.min(r.remaining() / 8));
    for _ in 0..count {
        items.push(item(r)?);
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn check(op: Op) {
        let payload = op.encode(8);
        assert_eq!(Op::decode(op.kind(), &payload, 8).as_ref(), Some(&op));
        for cut in 0..payload.len() {
            // A shortened name is still a name; everything else is refused.
            let shorter = Op::decode(op.kind(), &payload[..cut], 8);
            assert!(shorter.is_none() || matches!(op, Op::Create { .. }), "cut at {cut}");
        }
    }

    #[test]
    fn operations_survive_and_cuts_are_refused() {
        check(Op::Create { space: SpaceId(7), name: "agent:1".into() });
        check(Op::Drop { space: SpaceId(7) });
        check(Op::Vectors { space: SpaceId(1), entries: vec![(Seq(3), vec![0.5; 16])] });
        check(Op::Write {
            space: SpaceId(1),
            last_seq: Seq(9),
            removed: vec![Seq(1), Seq(2)],
            added: vec![
                NewRecord { bytes: vec![1, 2, 3], rows: vec![] },
                NewRecord { bytes: vec![], rows: vec![1.0; 8] },
            ],
        });
    }

    #[test]
    fn places_are_where_the_encoding_puts_things() {
        let added = vec![
            NewRecord { bytes: vec![1, 2, 3], rows: vec![2.5; 16] },
            NewRecord { bytes: vec![4, 5], rows: vec![] },
            NewRecord { bytes: vec![6], rows: vec![3.5; 8] },
        ];
        let removed = vec![Seq(1), Seq(2)];
        let places: Vec<_> = places_of_added(removed.len(), &added).collect();
        let op = Op::Write { space: SpaceId(1), last_seq: Seq(9), removed, added: added.clone() };
        let payload = op.encode(8);
        for (new, (record, rows)) in added.iter().zip(places) {
            assert_eq!(payload[record..record + new.bytes.len()], new.bytes);
            let mut r = crate::codec::Reader::new(&payload[rows..]);
            assert_eq!(r.f32s(new.rows.len()).unwrap(), new.rows);
        }
        let entries = vec![(Seq(3), vec![0.5; 16]), (Seq(4), vec![0.25; 8])];
        let places: Vec<_> = places_of_rows(&entries).collect();
        let payload = Op::Vectors { space: SpaceId(1), entries: entries.clone() }.encode(8);
        for ((_, rows), at) in entries.iter().zip(places) {
            assert_eq!(crate::codec::Reader::new(&payload[at..]).f32s(rows.len()).unwrap(), *rows);
        }
    }

    #[test]
    fn numbers_that_cannot_be_counted_on_are_refused() {
        let write = |space, last_seq| Op::Write {
            space: SpaceId(space),
            last_seq: Seq(last_seq),
            removed: vec![],
            added: vec![],
        };
        for (op, sound) in [
            (write(u32::MAX - 1, NUMBER_LIMIT - 1), true),
            (write(u32::MAX, 1), false),
            (write(1, NUMBER_LIMIT), false),
        ] {
            assert_eq!(Op::decode(op.kind(), &op.encode(8), 8).is_some(), sound, "{op:?}");
        }
    }

    proptest! {
        #[test]
        fn any_payload_decodes_without_panic(
            kind in 0u16..8, bytes in proptest::collection::vec(any::<u8>(), 0..100)
        ) {
            let _ = Op::decode(kind, &bytes, 8);
        }
    }
}
