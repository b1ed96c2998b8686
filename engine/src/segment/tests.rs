//! Segments as a reader meets them: whole, damaged anywhere, cut anywhere.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::disk::{Disk, RealDisk};
use crate::error::Error;
use crate::record::RecordRef;
use crate::types::NewMemory;

const HEADER: SegmentHeader = SegmentHeader { uuid: [7; 16], part: 3, dim: 8, last_lsn: Lsn(40) };

fn memory(i: u64) -> NewMemory {
    let text = format!("note {i} {}", "x".repeat(i as usize * 3));
    NewMemory { id: format!("n{i}"), text, ts_ms: i as i64, ..NewMemory::default() }
}

fn write(dir: &Path, count: u64) -> WrittenSegment {
    let disk = RealDisk;
    let mut w = SegmentWriter::create(&disk, dir.into(), HEADER).unwrap();
    for i in 1..=count {
        let m = memory(i);
        let r = RecordRef::of(Seq(i), &m, false);
        let mut bytes = Vec::new();
        r.encode(&mut bytes);
        w.record(SpaceId(1), &r, &bytes).unwrap();
    }
    for i in 1..=count {
        w.vectors(SpaceId(1), Seq(i), &[i as f32; 16]).unwrap();
    }
    w.finish(&[Tombstone { space: SpaceId(1), seq: Seq(99) }]).unwrap()
}

/// Reads everything; any damage must surface here as an error.
fn read_all(path: &Path, len: u64) -> Result<(Vec<String>, Vec<f32>), Error> {
    let s = Segment::open(&RealDisk, path, len)?;
    let mut texts = Vec::new();
    for e in s.records()? {
        texts.push(s.record(e.offset, e.len)?.text.to_owned());
    }
    let mut rows = Vec::new();
    for e in s.vectors()? {
        rows.extend(s.rows(&e)?);
        let mut one = [0.0; 8];
        s.copy_row(e.offset, &mut one)?;
        assert_eq!(one[..], rows[rows.len() - 16..rows.len() - 8]);
    }
    s.tombstones()?;
    Ok((texts, rows))
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let written = write(dir.path(), 300);
    let path = dir.path().join(file_name(3));
    let (texts, rows) = read_all(&path, written.len).unwrap();
    assert_eq!(texts.len(), 300);
    assert_eq!(texts[4], memory(5).text);
    assert_eq!(rows.len(), 300 * 16);
    let s = Segment::open(&RealDisk, &path, written.len).unwrap();
    assert_eq!(s.header(), &HEADER);
    let report = s.verify(written.checksum);
    assert_eq!((report.records, report.vectors, report.problems.len()), (300, 600, 0));
    assert_eq!(s.verify(1).problems.len(), 1, "another file's checksum");
}

#[test]
fn every_flipped_byte_is_noticed_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let written = write(dir.path(), 3);
    let path = dir.path().join(file_name(3));
    let good = RealDisk.read(&path).unwrap();
    let whole = read_all(&path, written.len).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&path, &bad).unwrap();
        match read_all(&path, written.len) {
            Ok(read) => assert_eq!(read, whole, "byte {at} changed what is read"),
            Err(e) => assert!(matches!(e, Error::Corrupt { .. } | Error::VersionTooNew { .. })),
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 3);
    let path = dir.path().join(file_name(3));
    let good = RealDisk.read(&path).unwrap();
    for len in (0..good.len()).step_by(7) {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(read_all(&path, len as u64).is_err(), "cut to {len}");
    }
}
