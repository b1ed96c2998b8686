//! What an operator asks: statistics, verification, snapshots.
//!
//! Invariant: every figure is read, none is remembered; `verify` trusts nothing that was checked before.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::upkeep::graph;
use super::{Access, ScrubStatus, Store, recover};
use crate::disk::{Disk, create_dir_durably, sync_above, write_all_at};
use crate::error::Error;
use crate::index::{Layout, VectorNo};
use crate::manifest::{GraphEntry, Manifest};
use crate::record::RecordRef;
use crate::segment::{self, Segment};
use crate::space::{RecordNo, Space, VectorCell};
use crate::types::{Durability, SpaceName};

/// Figures of one space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpaceStats {
    /// Its name.
    pub space: String,
    /// Live memories.
    pub memories: u64,
    /// Live memories with vectors.
    pub searchable: u64,
    /// Live memories that wait for vectors.
    pub pending: u64,
    /// Live vectors.
    pub vectors: u64,
    /// Vectors in the graph, dead ones included; 0 while there is none. A space that deletes made small keeps its graph.
    pub graph_vectors: u64,
    /// Versions deleted or replaced since the store was opened or compacted.
    pub deleted: u64,
    /// The highest seq given out.
    pub last_seq: u64,
}

/// Figures of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreStatus {
    /// The data directory.
    pub dir: PathBuf,
    /// Components of a vector.
    pub dim: usize,
    /// The model the vectors come from.
    pub fingerprint: String,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// Whether it was opened for reading.
    pub read_only: bool,
    /// Instruction set of the distance kernels.
    pub simd: String,
    /// How the index keeps vectors and links: `full`, for speed, or `lean`, for little memory.
    pub layout: Layout,
    /// Spaces there are.
    pub spaces: u64,
    /// Live memories.
    pub memories: u64,
    /// Live memories that wait for vectors.
    pub pending: u64,
    /// Last log record given out.
    pub lsn: u64,
    /// Last log record known to be on the device.
    pub durable_lsn: u64,
    /// Operations up to this one are in segments.
    pub checkpoint_lsn: u64,
    /// Sealed segments.
    pub segments: u64,
    /// Bytes of sealed segments.
    pub segment_bytes: u64,
    /// Bytes in memory that are not sealed yet; the log holds them too.
    pub head_bytes: u64,
    /// Live vectors that the last surveys of the graphs had to link, as no way of links led to them.
    pub graph_linked_by_survey: u64,
    /// The failure after which no write is taken, if there was one.
    pub poisoned: Option<String>,
    /// What the reading of sealed blocks has found.
    pub scrub: ScrubStatus,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Sealed files and manifests read.
    pub files: u64,
    /// Blocks whose checksum was computed.
    pub blocks: u64,
    /// Records of sealed files read.
    pub records: u64,
    /// Records of the log read, behind the last checkpoint.
    pub log_records: u64,
    /// Vectors read.
    pub vectors: u64,
    /// Live memories whose record and vectors were fetched the way a search does.
    pub memories: u64,
    /// Vectors in the graphs in memory, all of whose links were followed.
    pub graph_vectors: u64,
    /// Live vectors of these that no way through the graph leads to: a search that walks it does not find them. Not a
    /// problem by itself; a rebuilt graph may have fewer.
    pub unreachable_vectors: u64,
    /// Everything that does not fit; empty if the store is sound.
    pub problems: Vec<String>,
}

/// What a snapshot wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotReport {
    /// The new folder; a store of its own.
    pub dir: PathBuf,
    /// Files in it.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Live memories at the moment of the snapshot.
    pub memories: u64,
}

impl Store {
    /// Figures of every space, by name.
    pub fn spaces(&self) -> Vec<SpaceStats> {
        self.spaces.iter().map(|e| stats(e.value())).collect()
    }

    /// Figures of one space.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::Closed`].
    pub fn space_stats(&self, name: &SpaceName) -> Result<SpaceStats, Error> {
        Ok(stats(&*self.space(name)?))
    }

    /// Calls `tell` with the cause, from the log's thread, when the log fails; at once if it has. Nothing is acknowledged after
    /// that, and the process should end: the next start recovers what is on disk. Only the last that was given is called.
    pub fn on_failure(&self, tell: impl FnOnce(String) + Send + 'static) {
        self.wal.on_failure(Box::new(tell));
    }

    /// Live vectors that the last surveys of the graphs had to link, as no way of links led to them. Many, again and again, would be a
    /// fault.
    pub fn graph_linked_by_survey(&self) -> u64 {
        self.spaces.iter().map(|e| u64::from(e.value().index.linked_by_survey())).sum()
    }

    /// Figures of the store. Waits for no upkeep job.
    pub fn status(&self) -> StoreStatus {
        let parts = self.parts.now();
        let spaces = || self.spaces.iter();
        StoreStatus {
            dir: self.dir.clone(),
            dim: self.dim(),
            fingerprint: self.options.fingerprint.clone(),
            durability: self.options.durability,
            read_only: self.access == Access::Read,
            simd: self.kernels.level().to_string(),
            layout: self.options.layout,
            spaces: spaces().count() as u64,
            memories: spaces().map(|e| e.value().live()).sum(),
            pending: spaces().map(|e| e.value().pending_len()).sum(),
            lsn: self.wal.last_lsn().0,
            durable_lsn: self.wal.durable_lsn().0,
            checkpoint_lsn: parts.segments().map(|s| s.header().last_lsn.0).max().unwrap_or(0),
            segments: parts.segments().count() as u64,
            segment_bytes: parts.segments().map(|s| s.len()).sum(),
            head_bytes: parts.head.bytes() as u64,
            graph_linked_by_survey: self.graph_linked_by_survey(),
            poisoned: self.wal.poisoned(),
            scrub: self.scrub_status(),
        }
    }

    /// Reads every sealed byte, the log, and every live memory, and compares them with their checksums and with each other;
    /// looks over the graphs, saved and in memory, and that memories and vectors name each other.
    ///
    /// # Errors
    /// [`Error::Closed`]. Damage is not an error here but a line in the report.
    pub fn verify(&self) -> Result<VerifyReport, Error> {
        self.check_open()?;
        let manifest = self.upkeep.lock();
        let mut report = VerifyReport::default();
        report.files += 1;
        let on_disk = Manifest::read_newest(&*self.disk, &self.dir, &[manifest.generation]);
        match on_disk {
            Ok(Some(read)) if read == *manifest => {}
            Ok(_) => report.problems.push("the manifest on disk is not the one in use".into()),
            Err(error) => report.problems.push(error.to_string()),
        }
        for entry in &manifest.segments {
            report.files += 1;
            // By its name and not by the map at hand: that would outlive a file that is gone.
            let path = self.dir.join(segment::file_name(entry.part));
            let opened = Segment::open(&*self.disk, &path, entry.len);
            match (opened, u128::from_str_radix(&entry.checksum, 16)) {
                (Ok(segment), Ok(checksum)) => {
                    let found = segment.verify(checksum);
                    report.blocks += found.blocks;
                    report.records += found.records;
                    report.vectors += found.vectors;
                    report.problems.extend(found.problems);
                }
                (Err(error), _) => report.problems.push(error.to_string()),
                (_, Err(_)) => {
                    let what = format!("{}: the manifest has no checksum of it", path.display());
                    report.problems.push(what);
                }
            }
        }
        for entry in &manifest.graphs {
            report.files += 1;
            match graph::load(&*self.disk, &self.dir, entry, self.dim(), self.kernels) {
                Ok((index, _)) => {
                    let problems = index.audit().problems.into_iter();
                    let file = graph::file_name(entry.number);
                    report.problems.extend(problems.map(|what| format!("{file}: {what}")));
                }
                Err(why) => report.problems.push(why),
            }
        }
        self.verify_log(&manifest, &mut report);
        for space in self.spaces.iter() {
            self.verify_space(space.value(), &mut report);
            verify_index(space.value(), &mut report);
        }
        Ok(report)
    }

    /// Reads the log as a recovery would: what is only there has no other copy.
    fn verify_log(&self, manifest: &Manifest, report: &mut VerifyReport) {
        let durable = self.wal.durable_lsn();
        let read = || recover::read_log(&*self.disk, &self.dir, manifest);
        let found = match read() {
            // A record that was written while the file was being read can look like a hole. A second reading finds it.
            Err(Error::Corrupt { .. }) => read(),
            other => other,
        };
        match found {
            Ok((records, last)) => {
                report.log_records = records;
                if last < durable {
                    report.problems.push(format!(
                        "the log on disk ends with record {}, and record {} was acknowledged",
                        last.0, durable.0
                    ));
                }
            }
            Err(error) => report.problems.push(error.to_string()),
        }
    }

    fn verify_space(&self, space: &Space, report: &mut VerifyReport) {
        let mut row = vec![0.0; self.dim()];
        for no in (0..space.records.len()).map(RecordNo) {
            let Some(cell) = space.record(no).filter(|c| c.is_live()) else { continue };
            let same = |r: &RecordRef<'_>| {
                (r.seq, r.ts_ms, r.role, r.session)
                    == (cell.seq, cell.ts_ms, space.role(cell), space.session(cell))
            };
            let fits = |r: &RecordRef<'_>| same(r).then(|| r.id.to_owned());
            let found = space.with_record(&self.parts, no, |_, r| fits(r)).and_then(|id| {
                let named = id.flatten().map(|id| space.by_id(&self.parts, &id));
                Ok(named.transpose()?.flatten())
            });
            let problem = match found {
                Ok(named) if named == Some(no) => None,
                Ok(_) if !cell.is_live() => continue,
                Ok(_) => Some("the record is not the one the index names".to_owned()),
                Err(e) => Some(e.to_string()),
            };
            let unreadable = cell
                .vectors()
                .find_map(|v| self.copy_row(space, v, &mut row).err().map(|e| e.to_string()));
            report.memories += 1;
            for what in problem.into_iter().chain(unreadable) {
                report.problems.push(format!("space {}, seq {}: {what}", space.name, cell.seq));
            }
        }
    }

    /// Writes a consistent copy of the store to `dest`, which must not exist, while reads and writes go on. The copy opens
    /// like any store.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `dest` exists; [`Error::DiskFull`], [`Error::Io`], [`Error::Corrupt`], [`Error::Poisoned`],
    /// [`Error::Closed`]. A copy that failed has no manifest and does not open.
    pub fn snapshot(&self, dest: &Path) -> Result<SnapshotReport, Error> {
        self.check_open()?;
        match self.disk.list(dest) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            _ => {
                let why = format!("{} exists already; name a new folder", dest.display());
                return Err(Error::invalid("the snapshot's folder", why));
            }
        }
        let mut manifest = self.upkeep.lock();
        if self.access == Access::Write {
            self.save_all_in(&mut manifest)?;
        }
        let memories = self.spaces.iter().map(|e| e.value().live()).sum();
        create_dir_durably(&*self.disk, dest)
            .and_then(|()| sync_above(&*self.disk, dest))
            .map_err(Error::io("create the folder", dest))?;
        let mut report = SnapshotReport { dir: dest.into(), files: 1, bytes: 0, memories };
        let names = manifest
            .segments
            .iter()
            .map(|s| segment::file_name(s.part))
            .chain(manifest.graphs.iter().map(|g: &GraphEntry| graph::file_name(g.number)));
        for name in names {
            report.bytes += copy(&*self.disk, &self.dir.join(&name), &dest.join(&name))?;
            report.files += 1;
        }
        self.disk.sync_dir(dest).map_err(Error::io("sync", dest))?;
        let copied = Manifest { generation: 1, first_wal: None, epoch: 0, ..manifest.clone() };
        copied.write(&*self.disk, dest).map_err(|(_, e)| e)?;
        Ok(report)
    }
}

/// Looks over a space's graph, and that its memories and its vectors name each other.
fn verify_index(space: &Space, report: &mut VerifyReport) {
    let audit = space.index.audit();
    report.graph_vectors += u64::from(audit.nodes);
    report.unreachable_vectors += u64::from(audit.unreachable);
    let listed = audit.problems.len() as u64;
    let more = audit.problem_count - listed;
    let more = (more > 0).then(|| format!("{more} more problems of the graph"));
    let in_graph = audit.problems.into_iter().chain(more);
    report.problems.extend(in_graph.map(|what| format!("space {}: {what}", space.name)));
    let disagree = disagreements(space);
    if disagree.is_empty() {
        return;
    }
    // A write that was half done can look like this. Between two writes it cannot.
    let _one_writer = space.writer.lock();
    let lines = disagreements(space);
    report.problems.extend(lines.into_iter().map(|what| format!("space {}: {what}", space.name)));
}

/// Where memories and vectors of a space do not name each other.
fn disagreements(space: &Space) -> Vec<String> {
    let mut out = Vec::new();
    let (column, index) = (space.vectors.len(), space.index.len());
    if column != index {
        out.push(format!("{column} vectors are known, {index} are in the index"));
    }
    for no in (0..space.records.len()).map(RecordNo) {
        let Some(cell) = space.record(no).filter(|cell| cell.is_live()) else { continue };
        let owner = |v: &u32| space.vectors.get(*v).and_then(VectorCell::record);
        if let Some(v) = cell.vectors().find(|v| owner(v) != Some(no)) {
            out.push(format!("seq {}: vector {v} is not known to be its", cell.seq));
        }
        if let Some(v) = cell.vectors().find(|v| space.index.is_dead(VectorNo(*v))) {
            out.push(format!("seq {}: vector {v} cannot be found any more", cell.seq));
        }
    }
    for v in (0..column.min(index)).filter(|v| !space.index.is_dead(VectorNo(*v))) {
        let owner = space.vectors.get(v).and_then(VectorCell::record);
        let cell = owner.and_then(|no| space.record(no)).filter(|cell| cell.is_live());
        if !cell.is_some_and(|cell| cell.vectors().contains(&v)) {
            out.push(format!("vector {v} can be found and is no live memory's"));
        }
    }
    out
}

/// Copies a sealed file and syncs the copy; returns its length.
pub(super) fn copy(disk: &dyn Disk, from: &Path, to: &Path) -> Result<u64, Error> {
    let map = disk.map(from).map_err(Error::io("map", from))?;
    let file = disk.create(to).map_err(Error::io("create", to))?;
    write_all_at(&*file, map.bytes(), 0).map_err(Error::io("write", to))?;
    file.sync().map_err(Error::io("sync", to))?;
    Ok(map.bytes().len() as u64)
}

fn stats(space: &Space) -> SpaceStats {
    let (memories, pending) = (space.live(), space.pending_len());
    SpaceStats {
        space: space.name.to_string(),
        memories,
        searchable: memories.saturating_sub(pending),
        pending,
        vectors: space.index.live().into(),
        graph_vectors: space.index.graph_len().into(),
        deleted: u64::from(space.records.len()).saturating_sub(memories),
        last_seq: space.last_seq().0,
    }
}
