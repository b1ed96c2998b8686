//! Graph checkpoints on disk.
//!
//! File `graph-<number>.fbg`: `magic 8 | version u16 | 0 u16 | vectors u32 | vectors × seq u64 | crc32c u32 | 0 u32`, then the
//! index's own checkpoint, which carries its own checksum. The seqs name the memory of each vector, so that a graph
//! outlives what was deleted since.
//! Invariant: a refused checkpoint costs time, never data: the graph is built anew from the vectors.

use std::path::Path;

use flashbulb_kernels::Kernels;

use crate::codec::Reader;
use crate::disk::{Disk, write_durably};
use crate::error::Error;
use crate::index::{Layout, VectorIndex};
use crate::manifest::GraphEntry;
use crate::pace::{Pace, Paced};
use crate::space::Space;
use crate::types::Seq;

const MAGIC: [u8; 8] = *b"\x89FBGRF\r\n";
const VERSION: u16 = 1;
/// Seq of a vector whose memory was already gone when the graph was saved.
const GONE: Seq = Seq(0);

pub(in crate::store) fn file_name(number: u32) -> String {
    format!("graph-{number:010}.fbg")
}

pub(in crate::store) fn file_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("graph-")?.strip_suffix(".fbg")?;
    (digits.len() == 10).then(|| digits.parse().ok())?
}

/// Writes the graph of `space`; returns the file's length and the vectors in it. One save or build at a time.
pub(super) fn save(
    disk: &dyn Disk,
    dir: &Path,
    number: u32,
    space: &Space,
    pace: &Pace<'_>,
) -> Result<(u64, u32), Error> {
    let vectors = space.index.graph_len();
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&vectors.to_le_bytes());
    for v in 0..vectors {
        let cell = space.vectors.get(v).and_then(|c| c.record()).and_then(|no| space.record(no));
        out.extend_from_slice(&cell.map_or(GONE, |c| c.seq).0.to_le_bytes());
    }
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let name = file_name(number);
    let mut paced = Paced { out: &mut out, pace };
    space.index.checkpoint(&mut paced).map_err(Error::io("write", dir.join(&name)))?;
    write_durably(disk, dir, &name, &out, pace)
        .map_err(|(_, e)| Error::io("write", dir.join(&name))(e))?;
    Ok((out.len() as u64, vectors))
}

/// As [`load`], of this layout.
pub(in crate::store) fn load_as(
    disk: &dyn Disk,
    dir: &Path,
    entry: &GraphEntry,
    (dim, layout): (usize, Layout),
    kernels: Kernels,
) -> Result<(VectorIndex, Vec<Seq>), String> {
    let (index, seqs) = load(disk, dir, entry, dim, kernels)?;
    if index.layout() != layout {
        let (file, has) = (file_name(entry.number), index.layout());
        return Err(format!("{file} has the layout {has} and not {layout}; it is built anew"));
    }
    Ok((index, seqs))
}

/// Reads a graph and the memory of each of its vectors; the reason if it cannot be used.
pub(in crate::store) fn load(
    disk: &dyn Disk,
    dir: &Path,
    entry: &GraphEntry,
    dim: usize,
    kernels: Kernels,
) -> Result<(VectorIndex, Vec<Seq>), String> {
    let path = dir.join(file_name(entry.number));
    let map = disk.map(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let bytes = map.bytes();
    let damaged = |what: &str| format!("{} is damaged: {what}", path.display());
    if bytes.len() as u64 != entry.len {
        return Err(damaged("its length is not the manifest's"));
    }
    let mut r = Reader::new(bytes);
    let head = |r: &mut Reader<'_>| {
        let known = r.take(8)? == MAGIC && r.u16()? == VERSION && r.u16()? == 0;
        let vectors = r.u32()?;
        let seqs = r.take(vectors as usize * 8)?.as_chunks::<8>().0;
        let seqs: Vec<Seq> = seqs.iter().map(|s| Seq(u64::from_le_bytes(*s))).collect();
        let covered = r.position();
        let whole = r.u32()? == crc32c::crc32c(&bytes[..covered]) && r.u32()? == 0;
        (known && whole && vectors == entry.vectors).then_some((seqs, r.position()))
    };
    let (seqs, at) = head(&mut r).ok_or_else(|| damaged("its header does not check"))?;
    let index = VectorIndex::load(dim, kernels, &bytes[at..])
        .map_err(|e| format!("{} cannot be used: {e}", path.display()))?;
    if index.len() as usize != seqs.len() {
        return Err(damaged("the graph has another number of vectors than its header"));
    }
    Ok((index, seqs))
}
