//! Reading what is sound of a segment that may be damaged anywhere.
//!
//! Invariant: a byte is given out only if its block matches its checksum; an entry is given out only whole. What cannot be
//! shown to be what was written is named as damage, never guessed. Never panics whatever the bytes. Never writes.
//!
//! The block table lies behind the data, so that its place follows from the file's length alone, and each of its checksums
//! proves itself by matching a block: the footer's own checksum is not needed for that, and where it holds with the sums
//! of the blocks as they are, it is the table that is damaged. The places of the directories are
//! taken from a damaged footer only if they fit each other to the byte, or do once one of the numbers is worked out from
//! the rest.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::read::{parse_header, record_entry, tombstone, vector_entry};
use super::{
    BLOCK_BYTES, END_MAGIC, HEADER_BYTES, RECORD_ENTRY_BYTES, RecordEntry, SegmentHeader,
    TOMBSTONE_BYTES, TRAILER_BYTES, Tombstone, VECTOR_ENTRY_BYTES, VectorEntry,
};
use crate::codec::Reader;
use crate::disk::Bytes;
use crate::error::Error;
use crate::record::RecordRef;

/// Place and number of entries of records, vectors and tombstones.
type Places = [(u64, u64); 3];

/// What is left of a segment.
#[derive(Debug)]
pub(crate) struct Remains {
    map: Arc<dyn Bytes>,
    /// If its own checksum holds.
    header: Option<SegmentHeader>,
    data_len: u64,
    /// Which blocks match their checksums.
    sound: Vec<bool>,
    places: Option<Places>,
    damage: Vec<(u64, String)>,
}

/// The entries of a directory that could be read, and how many could not.
#[derive(Debug)]
pub(crate) struct Entries<T> {
    pub(crate) read: Vec<T>,
    pub(crate) lost: u64,
}

impl Remains {
    /// Checks every block. `len` is the length that the manifest names, if there is one.
    ///
    /// # Errors
    /// [`Error::VersionTooNew`]: what a newer Flashbulb wrote is not guessed at.
    pub(crate) fn of(path: &Path, map: Arc<dyn Bytes>, len: Option<u64>) -> Result<Remains, Error> {
        let bytes = map.bytes();
        let file_len = bytes.len() as u64;
        let len = len.unwrap_or(file_len);
        let header = match parse_header(path, bytes) {
            Err(too_new @ Error::VersionTooNew { .. }) => return Err(too_new),
            parsed => parsed.ok(),
        };
        let mut out = Remains {
            header,
            data_len: 0,
            sound: Vec::new(),
            places: None,
            damage: Vec::new(),
            map: Arc::clone(&map),
        };
        if file_len != len {
            out.note(file_len.min(len), format!("it has {file_len} bytes instead of {len}"));
        }
        if out.header.is_none() {
            out.note(0, "the header is damaged");
        }
        let Some(data_len) = data_len(len) else {
            out.note(0, "it is too short to be a segment");
            return Ok(out);
        };
        out.data_len = data_len;
        out.check_blocks(bytes, len);
        out.find_directories(bytes, len);
        Ok(out)
    }

    fn check_blocks(&mut self, bytes: &[u8], len: u64) {
        let data_len = self.data_len;
        let table = bytes.get(data_len as usize..).unwrap_or_default().as_chunks::<8>().0;
        let range = |block: u64| {
            (block * BLOCK_BYTES) as usize..((block + 1) * BLOCK_BYTES).min(data_len) as usize
        };
        let blocks = 0..data_len.div_ceil(BLOCK_BYTES);
        let sums: Vec<Option<u64>> =
            blocks.map(|block| bytes.get(range(block)).map(xxh3_64)).collect();
        let named = |block: usize| table.get(block).map(|sum| u64::from_le_bytes(*sum));
        self.sound = (0..).zip(&sums).map(|(at, sum)| sum.is_some() && *sum == named(at)).collect();
        if self.sound.contains(&false) && is_table_damaged(bytes, len, data_len, &sums) {
            self.sound.fill(true);
        }
        for block in (0u64..).zip(self.sound.clone()).filter(|b| !b.1).map(|b| b.0) {
            let range = range(block);
            let what =
                format!("bytes {} to {} do not match their checksum", range.start, range.end - 1);
            self.note(range.start as u64, what);
        }
    }

    fn note(&mut self, offset: u64, what: impl Into<String>) {
        self.damage.push((offset, what.into()));
    }

    fn find_directories(&mut self, bytes: &[u8], len: u64) {
        let Some((places, whole)) = trailer(bytes, len, self.data_len) else {
            self.note(self.data_len, "the footer, which says where everything lies, is missing");
            return;
        };
        if !whole {
            self.note(self.data_len, "the footer is damaged");
        }
        let candidates = repairs(places, self.data_len).into_iter();
        let fitting = candidates.filter(|places| fits(places, self.data_len));
        // Two repairs may fit; the right one names the more records.
        let mut best: Option<(usize, Places)> = None;
        for places in fitting {
            self.places = Some(places);
            if whole {
                return;
            }
            let named = self.records().read.iter().filter(|e| self.holds(e)).count();
            if best.is_none_or(|(most, _)| named > most) {
                best = Some((named, places));
            }
        }
        self.places = best.map(|(_, places)| places);
        if self.places.is_none() {
            self.note(self.data_len, "where the directories lie cannot be told");
        }
    }

    /// Whether the record that `entry` names is there and is the one.
    fn holds(&self, entry: &RecordEntry) -> bool {
        self.record(entry).is_some()
    }

    /// What its own header says, if that is sound.
    pub(crate) fn header(&self) -> Option<&SegmentHeader> {
        // The header's checksum covers little; its block must be sound too.
        self.header.as_ref().filter(|_| self.sound.first() == Some(&true))
    }

    /// Places and kinds of damage, in words.
    pub(crate) fn damage(&self) -> &[(u64, String)] {
        &self.damage
    }

    /// Whether the directories can be told from the data.
    pub(crate) fn has_directories(&self) -> bool {
        self.places.is_some()
    }

    /// `len` bytes at `offset`, if all of them are sound.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let end = offset.checked_add(len).filter(|end| *end <= self.data_len)?;
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let sound = self.sound.get(blocks.start as usize..blocks.end as usize)?;
        let bytes = self.map.bytes().get(offset as usize..end as usize)?;
        sound.iter().all(|sound| *sound).then_some(bytes)
    }

    /// The record that `entry` names, if it is sound.
    pub(crate) fn record(&self, entry: &RecordEntry) -> Option<RecordRef<'_>> {
        let record = RecordRef::decode(self.slice(entry.offset, entry.len.into())?)?;
        (record.seq == entry.seq && record.text_hash() == entry.text_hash).then_some(record)
    }

    /// The record directory.
    pub(crate) fn records(&self) -> Entries<RecordEntry> {
        self.entries(0, RECORD_ENTRY_BYTES, record_entry)
    }

    /// The vector directory.
    pub(crate) fn vectors(&self) -> Entries<VectorEntry> {
        self.entries(1, VECTOR_ENTRY_BYTES, vector_entry)
    }

    /// The tombstones.
    pub(crate) fn tombstones(&self) -> Entries<Tombstone> {
        self.entries(2, TOMBSTONE_BYTES, tombstone)
    }

    fn entries<T>(
        &self,
        which: usize,
        entry_bytes: u64,
        parse: impl Fn(&mut Reader<'_>) -> Option<T>,
    ) -> Entries<T> {
        let mut out = Entries { read: Vec::new(), lost: 0 };
        let (at, count) = self.places.map_or((0, 0), |places| places[which]);
        // Within the data: the places fit the file.
        for entry in 0..count {
            let bytes = self.slice(at + entry * entry_bytes, entry_bytes);
            match bytes.and_then(|bytes| parse(&mut Reader::new(bytes))) {
                Some(entry) => out.read.push(entry),
                None => out.lost += 1,
            }
        }
        out
    }
}

/// Where the data of a segment of `len` bytes end; one block table fits one length.
fn data_len(len: u64) -> Option<u64> {
    let rest = len.checked_sub(TRAILER_BYTES)?;
    let blocks = rest.div_ceil(BLOCK_BYTES + 8);
    let data = rest.checked_sub(blocks * 8)?;
    (data >= HEADER_BYTES && data.div_ceil(BLOCK_BYTES) == blocks).then_some(data)
}

/// Whether it is the block table that is damaged and no block: with the sums of the blocks as they are in its place, the
/// footer's checksum holds.
fn is_table_damaged(bytes: &[u8], len: u64, data_len: u64, sums: &[Option<u64>]) -> bool {
    let read = || {
        let start = len.checked_sub(TRAILER_BYTES)?;
        let crc_at = (start + 4 * 16 + 8) as usize;
        let mut footer = bytes.get(data_len as usize..crc_at)?.to_vec();
        for (entry, sum) in footer.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            *entry = (*sum)?.to_le_bytes();
        }
        Some(Reader::new(bytes.get(crc_at..)?).u32()? == crc32c::crc32c(&footer))
    };
    read() == Some(true)
}

/// What the trailer says, and whether its checksum holds.
fn trailer(bytes: &[u8], len: u64, data_len: u64) -> Option<(Places, bool)> {
    let start = len.checked_sub(TRAILER_BYTES)? as usize;
    let mut r = Reader::new(bytes.get(start..len as usize)?);
    let mut places = [(0, 0); 4];
    for place in &mut places {
        *place = (r.u64()?, r.u64()?);
    }
    r.u64()?;
    let covered = bytes.get(data_len as usize..start + r.position())?;
    let crc = r.u32()? == crc32c::crc32c(covered);
    let end = r.u32()? == 0 && r.take(8)? == END_MAGIC;
    Some(([places[0], places[1], places[2]], crc && end))
}

/// The places as they are, and with each one number worked out from the others.
fn repairs(places: Places, data_len: u64) -> [Places; 7] {
    let [(records, r), (vectors, v), (tombstones, t)] = places;
    let bytes = |count: u64, each: u64| count.saturating_mul(each);
    let r_bytes = bytes(r, RECORD_ENTRY_BYTES);
    let v_bytes = bytes(v, VECTOR_ENTRY_BYTES);
    let with = |at: usize, place| {
        let mut out = places;
        out[at] = place;
        out
    };
    [
        places,
        with(0, (vectors.saturating_sub(r_bytes), r)),
        with(0, (records, vectors.saturating_sub(records) / RECORD_ENTRY_BYTES)),
        with(1, (records.saturating_add(r_bytes), v)),
        with(1, (vectors, tombstones.saturating_sub(vectors) / VECTOR_ENTRY_BYTES)),
        with(2, (vectors.saturating_add(v_bytes), t)),
        with(2, (tombstones, data_len.saturating_sub(tombstones) / TOMBSTONE_BYTES)),
    ]
}

/// Whether the directories follow each other up to the end of the data.
fn fits(places: &Places, data_len: u64) -> bool {
    let end = |(at, count): (u64, u64), each: u64| count.checked_mul(each)?.checked_add(at);
    places[0].0 >= HEADER_BYTES
        && end(places[0], RECORD_ENTRY_BYTES) == Some(places[1].0)
        && end(places[1], VECTOR_ENTRY_BYTES) == Some(places[2].0)
        && end(places[2], TOMBSTONE_BYTES) == Some(data_len)
}
