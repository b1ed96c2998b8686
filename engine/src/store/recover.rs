//! Opening a store: manifest, segments, graphs, then the log behind them.
//!
//! Invariant: what is recovered is a prefix of what was submitted, in whole batches; a crash at any step leaves what the
//! next open needs, for nothing old is removed before the new manifest is durable. Damage fails the open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};

use crossbeam::queue::ArrayQueue;
use crossbeam_skiplist::SkipMap;
use flashbulb_kernels::Kernels;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;

use super::attach::{Attached, Place};
use super::{Access, SCRATCH_KEPT, Store, restart, write};
use crate::clock::Clock;
use crate::disk::{Disk, Lock, sync_above};
use crate::error::Error;
use crate::index::{Layout, VectorIndex};
use crate::manifest::{self, Manifest};
use crate::op::Op;
use crate::parts::{Head, Loc, Parts};
use crate::segment::{self, RecordEntry, Segment, Tombstone};
use crate::space::{Placed, Space};
use crate::store::upkeep::graph;
use crate::types::{Lsn, Seq, SpaceId, SpaceName, StoreOptions};
use crate::wal::{self, Batch, Scan, Wal};

/// What an open found and did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RecoveryReport {
    /// Sealed segments opened.
    pub segments: u64,
    /// Graph checkpoints loaded.
    pub graphs_loaded: u64,
    /// Graph checkpoints that were refused; these graphs are built anew in the background.
    pub graphs_refused: Vec<String>,
    /// Numbers of their files, which the graphs that are built anew will replace.
    #[serde(skip)]
    pub(in crate::store) refused_graph_files: Vec<u32>,
    /// Batches replayed from the log.
    pub wal_batches: u64,
    /// Records read from the log.
    pub wal_records: u64,
    /// Bytes of an unacknowledged last write that were cut off.
    pub torn_bytes: u64,
    /// Live memories.
    pub memories: u64,
    /// Memories whose text is still to be embedded.
    pub pending: u64,
    /// Files in the folder that are not the store's; they are left alone.
    pub unknown_files: Vec<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// The files of a data directory by kind.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) manifests: Vec<u64>,
    pub(super) wals: Vec<u64>,
    /// Segments and graphs, by name.
    pub(super) sealed: Vec<String>,
    pub(super) temporary: Vec<String>,
    pub(super) unknown: Vec<String>,
}

impl Listing {
    pub(super) fn of(disk: &dyn Disk, dir: &Path) -> Result<Listing, Error> {
        let mut out = Listing::default();
        for name in disk.list(dir).map_err(Error::io("list", dir))? {
            if let Some(generation) = manifest::file_generation(&name) {
                out.manifests.push(generation);
            } else if let Some(number) = wal::file_number(&name) {
                out.wals.push(number);
            } else if segment::file_number(&name).is_some() || graph::file_number(&name).is_some() {
                out.sealed.push(name);
            } else if name.ends_with(".tmp") {
                out.temporary.push(name);
            } else if name != "LOCK" {
                out.unknown.push(name);
            }
        }
        out.manifests.sort_unstable();
        out.wals.sort_unstable();
        Ok(out)
    }
}

/// A store while it is being put together.
struct Loading {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    dim: usize,
    layout: Layout,
    kernels: Kernels,
    spaces: BTreeMap<SpaceId, Arc<Space>>,
    tombstones: Vec<Tombstone>,
    report: RecoveryReport,
}

pub(super) fn recover(
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: &Path,
    options: StoreOptions,
    lock: Lock,
    access: Access,
) -> Result<Store, Error> {
    let started = clock.now();
    let files = Listing::of(&*disk, dir)?;
    let mut old = match Manifest::read_newest(&*disk, dir, &files.manifests)? {
        Some(found) => found,
        None if access == Access::Read => return Err(Error::NoStore { dir: dir.into() }),
        None => fresh(&*disk, dir, &files, &options)?,
    };
    adopt_model(&mut old, &options);
    check_model(&old, &options)?;
    let mut loading = Loading {
        disk: Arc::clone(&disk),
        dir: dir.into(),
        dim: options.dim,
        layout: options.layout,
        kernels: Kernels::detect(),
        spaces: BTreeMap::new(),
        tombstones: Vec::new(),
        report: RecoveryReport { unknown_files: files.unknown.clone(), ..Default::default() },
    };
    let (segments, scan) = loading.load_sealed(&old, &files.wals, access)?;
    let head = Arc::new(Head::new(old.next_part));
    let parts = Parts::new(segments, Arc::clone(&head));
    let (wal, manifest) = match access {
        Access::Write => {
            // The log's new files are written beside; nothing has a name before all of the old ones was read and understood.
            let prepared = std::thread::scope(|scope| {
                let files = scope.spawn(|| {
                    restart::prepare((&disk, &clock), dir, &options, &old, &files.wals, &scan)
                });
                let replayed = loading.replay(&parts, &head, &scan.batches);
                let files = join(files);
                replayed.and(files)
            })?;
            let (wal, manifest) = prepared.publish(&*disk, dir)?;
            restart::clean_up(&*disk, dir, &files, &manifest);
            (wal, manifest)
        }
        Access::Read => {
            let next = old.first_wal.unwrap_or(1);
            let start = restart::log_start(dir, &options, old.epoch, next, scan.last_lsn);
            (Wal::unwritten(Arc::clone(&disk), Arc::clone(&clock), &start), old)
        }
    };
    let mut report = std::mem::take(&mut loading.report);
    report.memories = loading.spaces.values().map(|s| s.live()).sum();
    report.pending = loading.spaces.values().map(|s| s.pending_len()).sum();
    let took = clock.now() - started;
    report.took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let highest = loading.spaces.keys().next_back().map_or(0, |id| id.0 + 1);
    let next_space = highest.max(manifest.next_space);
    let store = Store {
        disk,
        clock,
        access,
        dir: dir.into(),
        kernels: loading.kernels,
        wal,
        gate: RwLock::new(()),
        spaces: SkipMap::new(),
        making: Mutex::new(()),
        spaces_made: AtomicU32::new(next_space),
        parts,
        tombstones: Mutex::new(std::mem::take(&mut loading.tombstones)),
        waiting: Mutex::new(BTreeMap::new()),
        unbuilt: Mutex::new(BTreeMap::new()),
        upkeep: Mutex::new(manifest),
        scrub: Mutex::default(),
        scratches: ArrayQueue::new(SCRATCH_KEPT),
        recovery: report,
        closed: AtomicBool::new(false),
        _lock: lock,
        options,
    };
    for space in loading.spaces.into_values() {
        store.note_work(&space);
        store.spaces.insert(space.name.clone(), space);
    }
    Ok(store)
}

/// The manifest of a new store. Without a manifest nothing was ever acknowledged; data without one are damage.
fn fresh(
    disk: &dyn Disk,
    dir: &Path,
    files: &Listing,
    options: &StoreOptions,
) -> Result<Manifest, Error> {
    let in_log = match files.wals.first() {
        Some(_) => wal::scan(disk, dir, &files.wals, Lsn(0)).map_or(1, |s| s.records),
        None => 0,
    };
    if in_log > 0 || !files.sealed.is_empty() {
        return Err(Error::corrupt(dir, 0, "there are data files but no manifest"));
    }
    sync_above(disk, dir).map_err(Error::io("sync what is above", dir))?;
    let dim = u32::try_from(options.dim).map_err(|_| Error::invalid("dim", "is too large"))?;
    Ok(Manifest {
        generation: 0,
        store: uuid::Uuid::from_bytes(disk.random()).simple().to_string(),
        dim,
        fingerprint: options.fingerprint.clone(),
        checkpoint_lsn: 0,
        first_wal: None,
        epoch: 0,
        next_space: 0,
        next_part: 1,
        spaces: Vec::new(),
        segments: Vec::new(),
        graphs: Vec::new(),
    })
}

/// The log files behind the checkpoint of `manifest`, ascending, out of `wals`.
pub(super) fn log_files(
    disk: &dyn Disk,
    dir: &Path,
    manifest: &Manifest,
    wals: &[u64],
) -> Result<Vec<u64>, Error> {
    let Some(first) = manifest.first_wal else { return Ok(Vec::new()) };
    let ours = wal::files_of(disk, dir, wals, first, manifest.epoch)?;
    if ours.first() != Some(&first) {
        let path = dir.join(wal::file_name(first));
        return Err(Error::corrupt(path, 0, "the log file that the manifest names is missing"));
    }
    Ok(ours)
}

/// Reads the log of an open store: how many records it holds, and the last one of a whole batch.
pub(super) fn read_log(
    disk: &dyn Disk,
    dir: &Path,
    manifest: &Manifest,
) -> Result<(u64, Lsn), Error> {
    let wals = Listing::of(disk, dir)?.wals;
    let ours = log_files(disk, dir, manifest, &wals)?;
    let scan = wal::scan(disk, dir, &ours, Lsn(manifest.checkpoint_lsn))?;
    Ok((scan.records, scan.last_lsn))
}

/// A store whose model is not known holds vectors of callers alone, so that it takes any.
fn adopt_model(manifest: &mut Manifest, options: &StoreOptions) {
    if manifest.fingerprint == manifest::UNKNOWN_MODEL {
        tracing::info!(model = %options.fingerprint, "the store's model was not known; it has this one now");
        manifest.fingerprint.clone_from(&options.fingerprint);
    }
}

fn check_model(manifest: &Manifest, options: &StoreOptions) -> Result<(), Error> {
    if manifest.fingerprint != options.fingerprint {
        return Err(Error::FingerprintMismatch {
            stored: manifest.fingerprint.clone(),
            offered: options.fingerprint.clone(),
        });
    }
    let expected = manifest.dim as usize;
    if expected != options.dim {
        return Err(Error::DimMismatch { expected, got: options.dim });
    }
    Ok(())
}

impl Loading {
    fn new_space(&self, id: SpaceId, name: SpaceName) -> Space {
        Space::new(id, name, (self.dim, self.layout), self.kernels)
    }

    /// Opens what the manifest names, rebuilds the spaces from it, and reads the log behind it.
    fn load_sealed(
        &mut self,
        manifest: &Manifest,
        wals: &[u64],
        access: Access,
    ) -> Result<(Vec<Arc<Segment>>, Scan), Error> {
        for s in &manifest.spaces {
            let name = SpaceName::parse(&s.name)?;
            let space = self.new_space(SpaceId(s.id), name);
            space.raise_seq(Seq(s.last_seq));
            self.spaces.insert(SpaceId(s.id), Arc::new(space));
        }
        let mut segments = Vec::new();
        let mut dead = HashSet::new();
        for entry in &manifest.segments {
            let path = self.dir.join(segment::file_name(entry.part));
            let segment = Segment::open(&*self.disk, &path, entry.len)?;
            if segment.header().part != entry.part || segment.header().dim as usize != self.dim {
                return Err(Error::corrupt(path, 0, "it is not the segment the manifest names"));
            }
            dead.extend(segment.tombstones()?);
            segments.push(Arc::new(segment));
        }
        self.report.segments = segments.len() as u64;
        // Graphs and log are most of the bytes and need nothing of the rest, so they are read beside it.
        let (spaces, mut graphs, scan) = std::thread::scope(|scope| {
            let (disk, dir, kernels) = (&*self.disk, &*self.dir, self.kernels);
            let kind = (self.dim, self.layout);
            let beside = scope.spawn(move || {
                let load = |entry| graph::load_as(disk, dir, entry, kind, kernels);
                let loaded = manifest.graphs.iter().map(|g| (SpaceId(g.space), load(g)));
                (loaded.collect::<Graphs>(), scan_log(disk, dir, manifest, wals, access))
            });
            let spaces = self.load_records(&segments, &dead);
            let (graphs, scan) = join(beside);
            Ok::<_, Error>((spaces?, graphs, scan?))
        })?;
        self.report.wal_batches = scan.batches.len() as u64;
        self.report.wal_records = scan.records;
        self.report.torn_bytes = scan.torn_bytes;
        for (space, vectors) in spaces {
            let graph = graphs.remove(&space.id);
            if let Some(Err(_)) = graph {
                let files = manifest.graphs.iter().filter(|g| g.space == space.id.0);
                self.report.refused_graph_files.extend(files.map(|g| g.number));
            }
            self.attach_vectors(space, graph, &vectors, &segments)?;
        }
        Ok((segments, scan))
    }

    /// Gives the spaces their memories, without vectors; beside each space, where its vectors lie.
    fn load_records(
        &self,
        segments: &[Arc<Segment>],
        dead: &HashSet<Tombstone>,
    ) -> Result<Vec<(Space, Vec<Place>)>, Error> {
        let mut records: BTreeMap<SpaceId, Vec<(RecordEntry, usize)>> = BTreeMap::new();
        let mut vectors: BTreeMap<SpaceId, Vec<Place>> = BTreeMap::new();
        for (at, segment) in segments.iter().enumerate() {
            let live = |space, seq| dead.is_empty() || !dead.contains(&Tombstone { space, seq });
            for e in segment.records()?.into_iter().filter(|e| live(e.space, e.seq)) {
                records.entry(e.space).or_default().push((e, at));
            }
            for e in segment.vectors()?.into_iter().filter(|e| live(e.space, e.seq)) {
                vectors.entry(e.space).or_default().push(Place { entry: e, segment: at });
            }
        }
        let mut spaces = Vec::new();
        for (id, mut entries) in records {
            // Memories of a dropped space wait in their segment for the next compaction.
            let Some(empty) = self.spaces.get(&id) else { continue };
            entries.sort_by_key(|(e, _)| e.seq);
            let space = self.new_space(id, empty.name.clone());
            let mut writer = space.writer.lock();
            space.reserve(&mut writer, entries.len());
            for (entry, at) in &entries {
                let segment = &segments[*at];
                let record = segment.record(entry.offset, entry.len)?;
                let loc = Loc::new(segment.header().part, entry.offset);
                let placed = Placed { record, len: entry.len, loc, text_hash: entry.text_hash };
                space.load(&mut writer, &placed);
            }
            space.raise_seq(empty.last_seq());
            drop(writer);
            let mut places = vectors.remove(&id).unwrap_or_default();
            places.sort_by_key(|place| place.entry.seq);
            spaces.push((space, places));
        }
        Ok(spaces)
    }

    fn attach_vectors(
        &mut self,
        mut space: Space,
        graph: Option<Result<(VectorIndex, Vec<Seq>), String>>,
        vectors: &[Place],
        segments: &[Arc<Segment>],
    ) -> Result<(), Error> {
        let mut mapping = Vec::new();
        match graph {
            Some(Ok((index, seqs))) => {
                space.index = index;
                mapping = seqs;
                self.report.graphs_loaded += 1;
            }
            Some(Err(why)) => {
                tracing::warn!(space = %space.name, %why, "building the graph anew");
                self.report.graphs_refused.push(format!("{}: {why}", space.name));
            }
            None => {}
        }
        let attached = Attached::new(&space, vectors, segments, self.dim);
        attached.graph_vectors(&mapping)?;
        attached.other_vectors()?;
        space.loaded();
        self.spaces.insert(space.id, Arc::new(space));
        Ok(())
    }

    fn replay(&mut self, parts: &Parts, head: &Head, batches: &[Batch]) -> Result<(), Error> {
        for batch in batches {
            for (kind, payload) in &batch.records {
                let applied = match Op::decode(*kind, payload, self.dim) {
                    Some(op) => self.apply(parts, head, op)?,
                    None => false,
                };
                if !applied {
                    let what = format!(
                        "the batch ending with log record {} has a sound checksum but is not an operation of this store (kind {kind})",
                        batch.last_lsn.0
                    );
                    return Err(Error::corrupt(&self.dir, 0, what));
                }
            }
        }
        Ok(())
    }

    /// Applies one operation again; `false` if it cannot be one of this store. Operations on spaces that are gone, and
    /// those that a segment holds already, change nothing.
    fn apply(&mut self, parts: &Parts, head: &Head, op: Op) -> Result<bool, Error> {
        match op {
            Op::Create { space, name } => {
                let Ok(name) = SpaceName::parse(&name) else { return Ok(false) };
                let kind = (self.dim, self.layout);
                let new = || Arc::new(Space::new(space, name, kind, self.kernels));
                self.spaces.entry(space).or_insert_with(new);
            }
            Op::Write { space, last_seq, removed, added } => {
                let Some(found) = self.spaces.get(&space) else { return Ok(true) };
                let tombstone = |seq: &Seq| Tombstone { space, seq: *seq };
                self.tombstones.extend(removed.iter().map(tombstone));
                return write::replay_write(found, parts, head, last_seq, &removed, &added);
            }
            Op::Vectors { space, entries } => {
                let Some(found) = self.spaces.get(&space) else { return Ok(true) };
                let _one_writer = found.writer.lock();
                for (seq, rows) in &entries {
                    let waits = |c: &crate::space::RecordCell| c.is_live() && !c.is_searchable();
                    if let Some(no) = found.by_seq(*seq)
                        && found.record(no).is_some_and(waits)
                    {
                        found.apply_rows(head, no, rows);
                    }
                }
            }
            Op::Drop { space } => {
                self.spaces.remove(&space);
            }
        }
        Ok(true)
    }
}

/// The graphs that could be read, and why others could not.
type Graphs = HashMap<SpaceId, Result<(VectorIndex, Vec<Seq>), String>>;

/// Reads the log behind the manifest's checkpoint.
fn scan_log(
    disk: &dyn Disk,
    dir: &Path,
    manifest: &Manifest,
    wals: &[u64],
    access: Access,
) -> Result<Scan, Error> {
    let checkpoint = Lsn(manifest.checkpoint_lsn);
    let ours = log_files(disk, dir, manifest, wals)?;
    if ours.is_empty() {
        return Ok(Scan { last_lsn: checkpoint, ..Scan::default() });
    }
    if access == Access::Write {
        sync_log(disk, dir, &ours)?;
    }
    let scan = wal::scan(disk, dir, &ours, checkpoint)?;
    if access == Access::Read && (scan.torn_bytes > 0 || !scan.batches.is_empty()) {
        return Err(Error::NeedsRecovery { dir: dir.into() });
    }
    Ok(scan)
}

/// What an earlier process wrote but never synced may still be only in the cache: makes it durable before anything is built on
/// it.
fn sync_log(disk: &dyn Disk, dir: &Path, numbers: &[u64]) -> Result<(), Error> {
    for number in numbers {
        let path = dir.join(wal::file_name(*number));
        let file = disk.open(&path).map_err(Error::io("open", &path))?;
        file.sync().map_err(Error::io("sync", &path))?;
    }
    disk.sync_dir(dir).map_err(Error::io("sync", dir))
}

/// Waits for a thread whose work is needed; also where other work failed, for a scope does not wait until its threads are gone.
fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
