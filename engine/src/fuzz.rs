//! What the fuzz targets need of the parts that nothing else may see: parsers, writers, a disk in memory.
//!
//! Invariant: nothing is decided here; a target judges, this module only reaches. It is there only when built by
//! `cargo fuzz` (`--cfg fuzzing`) and no program is built that way. Knows nothing of the targets.
#![allow(missing_docs, clippy::missing_errors_doc, reason = "for the targets beside it only")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Clock;
use crate::error::Error;
use crate::filter::{Filter, Subject};
use crate::manifest::{self, Manifest};
use crate::op::{NewRecord, Op};
use crate::record::RecordRef;
use crate::segment::{self, BLOCK_BYTES, Segment, SegmentHeader, SegmentWriter, Tombstone};
use crate::store::Store;
use crate::types::{Lsn, NewMemory, Seq, SpaceId, StoreOptions};
use crate::wal::{self, FileHeader, RecordHeader, head_of, record_bytes};

use cut::Chooser;
use disk::FaultDisk;

#[allow(dead_code, reason = "the targets need less than the tests")]
#[path = "fault/cut.rs"]
mod cut;
#[allow(dead_code, reason = "as above")]
#[path = "fault/disk.rs"]
mod disk;

const DIR: &str = "/store";

/// No time passes, so that an input does the same each time.
#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn patience(&self, _: Duration) -> Option<Duration> {
        None
    }
}

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A disk in memory with one folder, which holds a store.
#[derive(Debug, Clone)]
pub struct Disk(FaultDisk);

impl Disk {
    /// A disk that holds `files` durably.
    pub fn new(files: Files) -> Disk {
        let at = |(name, bytes)| (Path::new(DIR).join::<String>(name), bytes);
        Disk(FaultDisk::new(files.into_iter().map(at).collect()))
    }

    /// What a process sees now.
    pub fn files(&self) -> Files {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into();
        self.0.live().into_iter().map(|(path, bytes)| (name(&path), bytes)).collect()
    }

    /// How many writes, syncs and changes of names there were.
    pub fn events(&self) -> usize {
        self.0.events()
    }

    /// What a power cut after the first `events` leaves; `seed` decides about what was not synced.
    pub fn cut(&self, events: usize, seed: u64) -> Disk {
        Disk(FaultDisk::new(self.0.record().cut(events, Chooser::Chance(seed | 1))))
    }

    pub fn open(&self, options: StoreOptions) -> Result<Store, Error> {
        Store::open_on(Arc::new(self.0.clone()), Arc::new(Still), Path::new(DIR), options)
    }
}

/// A record of the log with all that its header says.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRecord {
    pub lsn: u64,
    pub kind: u16,
    pub flags: u16,
    pub durable_lsn: u64,
    pub payload: Vec<u8>,
}

/// A log file to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFile {
    pub number: u64,
    pub salt: u32,
    pub epoch: u64,
    pub first_lsn: u64,
    pub records: Vec<LogRecord>,
    /// Zeros behind the last record.
    pub unused_bytes: usize,
}

impl LogFile {
    pub fn name(&self) -> String {
        wal::file_name(self.number)
    }

    /// The file's bytes, and where in them each record lies.
    pub fn encode(&self) -> (Vec<u8>, Vec<Range<usize>>) {
        let LogFile { number, salt, epoch, first_lsn, .. } = *self;
        let mut out =
            FileHeader { salt, number, epoch, first_lsn: Lsn(first_lsn), len: 0 }.encode();
        let mut places = Vec::new();
        for r in &self.records {
            let (lsn, durable_lsn) = (Lsn(r.lsn), Lsn(r.durable_lsn));
            let header = RecordHeader { lsn, kind: r.kind, flags: r.flags, durable_lsn };
            let at = out.len();
            out.extend_from_slice(&head_of(salt, at as u64, header, &r.payload));
            out.extend_from_slice(&r.payload);
            out.resize(at + record_bytes(r.payload.len()), 0);
            places.push(at..out.len());
        }
        out.resize(out.len() + self.unused_bytes, 0);
        (out, places)
    }
}

/// The last LSN of a batch, and its records by kind and payload.
pub type LogBatch = (u64, Vec<(u16, Vec<u8>)>);

/// What was read of a log.
#[derive(Debug, PartialEq)]
pub struct Log {
    pub batches: Vec<LogBatch>,
    pub last_lsn: u64,
    pub torn_bytes: u64,
    pub records: u64,
}

/// Reads the log files behind `checkpoint` as a recovery does.
pub fn read_log(disk: &Disk, epoch: u64, checkpoint: u64) -> Result<Log, Error> {
    let dir = Path::new(DIR);
    let mut numbers: Vec<u64> =
        disk.files().keys().filter_map(|name| wal::file_number(name)).collect();
    numbers.sort_unstable();
    let ours = wal::files_of(&disk.0, dir, &numbers, 0, epoch)?;
    let scan = wal::scan(&disk.0, dir, &ours, Lsn(checkpoint))?;
    Ok(Log {
        batches: scan.batches.into_iter().map(|b| (b.last_lsn.0, b.records)).collect(),
        last_lsn: scan.last_lsn.0,
        torn_bytes: scan.torn_bytes,
        records: scan.records,
    })
}

/// An operation, to be put into a log.
#[derive(Debug, Clone)]
pub enum LogOp {
    Create { space: u32, name: String },
    Write { space: u32, last_seq: u64, removed: Vec<u64>, added: Vec<(Vec<u8>, Vec<f32>)> },
    Vectors { space: u32, entries: Vec<(u64, Vec<f32>)> },
    Drop { space: u32 },
}

impl LogOp {
    /// Kind and payload of its record in the log of a store of `dim`.
    pub fn encode(self, dim: usize) -> (u16, Vec<u8>) {
        let op = match self {
            LogOp::Create { space, name } => Op::Create { space: SpaceId(space), name },
            LogOp::Write { space, last_seq, removed, added } => Op::Write {
                space: SpaceId(space),
                last_seq: Seq(last_seq),
                removed: removed.into_iter().map(Seq).collect(),
                added: added.into_iter().map(|(bytes, rows)| NewRecord { bytes, rows }).collect(),
            },
            LogOp::Vectors { space, entries } => Op::Vectors {
                space: SpaceId(space),
                entries: entries.into_iter().map(|(seq, rows)| (Seq(seq), rows)).collect(),
            },
            LogOp::Drop { space } => Op::Drop { space: SpaceId(space) },
        };
        (op.kind(), op.encode(dim))
    }
}

/// Decodes a payload of the log and encodes it again.
pub fn op_again(kind: u16, payload: &[u8], dim: usize) -> Option<Vec<u8>> {
    Op::decode(kind, payload, dim).map(|op| op.encode(dim))
}

/// A memory as the bytes that log and segments keep.
pub fn record(seq: u64, memory: &NewMemory) -> Vec<u8> {
    let mut out = Vec::new();
    RecordRef::of(Seq(seq), memory, memory.vectors.is_some()).encode(&mut out);
    out
}

/// Decodes a memory's bytes and encodes them again.
pub fn record_again(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    RecordRef::decode(bytes)?.encode(&mut out);
    Some(out)
}

/// All that a segment holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Sealed {
    pub part: u32,
    pub dim: u32,
    pub last_lsn: u64,
    /// Space, seq and bytes of each memory.
    pub records: Vec<(u32, u64, Vec<u8>)>,
    pub vectors: Vec<(u32, u64, Vec<f32>)>,
    pub tombstones: Vec<(u32, u64)>,
}

/// Writes a segment; its name, its length and its checksum. A record that does not decode is left out.
pub fn write_segment(disk: &Disk, sealed: &Sealed) -> Result<(String, u64, u128), Error> {
    let Sealed { part, dim, last_lsn, .. } = *sealed;
    let header = SegmentHeader { uuid: [7; 16], part, dim, last_lsn: Lsn(last_lsn) };
    let mut writer = SegmentWriter::create(&disk.0, DIR.into(), header)?;
    for (space, _, bytes) in &sealed.records {
        let Some(record) = RecordRef::decode(bytes) else { continue };
        writer.record(SpaceId(*space), &record, bytes)?;
    }
    for (space, seq, rows) in &sealed.vectors {
        writer.vectors(SpaceId(*space), Seq(*seq), rows)?;
    }
    let tombstone =
        |(space, seq): &(u32, u64)| Tombstone { space: SpaceId(*space), seq: Seq(*seq) };
    let tombstones: Vec<Tombstone> = sealed.tombstones.iter().map(tombstone).collect();
    let written = writer.finish(&tombstones)?;
    Ok((segment::file_name(part), written.len, written.checksum))
}

fn open_segment(disk: &Disk, part: u32, len: u64) -> Result<Segment, Error> {
    Segment::open(&disk.0, &Path::new(DIR).join(segment::file_name(part)), len)
}

/// Opens segment `part`, which the manifest says has `len` bytes, and reads all of it by its directories.
pub fn read_segment(disk: &Disk, part: u32, len: u64) -> Result<Sealed, Error> {
    let segment = open_segment(disk, part, len)?;
    let header = *segment.header();
    let mut sealed = Sealed {
        part: header.part,
        dim: header.dim,
        last_lsn: header.last_lsn.0,
        records: Vec::new(),
        vectors: Vec::new(),
        tombstones: segment.tombstones()?.iter().map(|t| (t.space.0, t.seq.0)).collect(),
    };
    for e in segment.records()? {
        segment.record(e.offset, e.len)?;
        let bytes = segment.record_bytes(e.offset, e.len)?.to_vec();
        sealed.records.push((e.space.0, e.seq.0, bytes));
    }
    for e in segment.vectors()? {
        sealed.vectors.push((e.space.0, e.seq.0, segment.rows(&e)?));
    }
    Ok(sealed)
}

/// What `verify` has to say about a segment.
pub fn verify_segment(disk: &Disk, part: u32, len: u64, sum: u128) -> Result<Vec<String>, Error> {
    Ok(open_segment(disk, part, len)?.verify(sum).problems)
}

/// Makes the checksums of a segment's bytes right again, as far as there is room for them.
pub fn reseal_segment(bytes: &mut [u8]) {
    const HEADER_CRC_AT: usize = 48;
    let Some(trailer_at) = bytes.len().checked_sub(segment::TRAILER_BYTES as usize) else { return };
    let crc_at = bytes.len() - 16;
    let Some(count) = bytes[crc_at - 8..crc_at].first_chunk::<8>() else { return };
    let table = u64::from_le_bytes(*count).checked_mul(8).and_then(|t| usize::try_from(t).ok());
    let Some(data_len) = table.and_then(|t| trailer_at.checked_sub(t)) else { return };
    if data_len > HEADER_CRC_AT + 4 {
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC_AT]).to_le_bytes();
        bytes[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc);
    }
    let (data, footer) = bytes.split_at_mut(data_len);
    let sums = data.chunks(BLOCK_BYTES as usize).map(|block| xxh3_64(block).to_le_bytes());
    for (sum, place) in sums.zip(footer[..trailer_at - data_len].chunks_exact_mut(8)) {
        place.copy_from_slice(&sum);
    }
    let crc = crc32c::crc32c(&footer[..crc_at - data_len]).to_le_bytes();
    footer[crc_at - data_len..crc_at - data_len + 4].copy_from_slice(&crc);
}

/// The name of a manifest of `generation` and the bytes of one that holds `json`, which need not be one.
pub fn manifest_file(generation: u64, json: &[u8]) -> (String, Vec<u8>) {
    (manifest::file_name(generation), manifest::framed(json))
}

/// Reads the newest manifest and writes it as JSON.
pub fn read_manifest(disk: &Disk) -> Result<Option<Value>, Error> {
    let files = disk.files();
    let mut generations: Vec<u64> =
        files.keys().filter_map(|name| manifest::file_generation(name)).collect();
    generations.sort_unstable();
    let read = Manifest::read_newest(&disk.0, Path::new(DIR), &generations)?;
    Ok(read.and_then(|manifest| serde_json::to_value(manifest).ok()))
}

struct Fields<'a>(Option<&'a str>, Option<&'a str>, Option<&'a Value>);

impl Subject for Fields<'_> {
    fn role(&self) -> Option<&str> {
        self.0
    }

    fn session(&self) -> Option<&str> {
        self.1
    }

    fn meta(&self) -> Option<&Value> {
        self.2
    }
}

/// Whether `filter` matches a memory with these fields.
pub fn matches(
    filter: &Filter,
    role: Option<&str>,
    session: Option<&str>,
    meta: Option<&Value>,
) -> bool {
    filter.matches(&Fields(role, session, meta))
}
