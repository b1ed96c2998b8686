//! Upkeep: building graphs, sealing the head, merging segments, saving graphs. All of it in the background, one job at a
//! time, without stopping readers or writers.
//!
//! Invariant: a file is named by the manifest only when it is whole and durable; a part is withdrawn only when no live
//! cell points into it. Knows nothing of who calls it: the caller chooses thread and priority.

pub(super) mod graph;
mod rewrite;
pub(super) mod scrub;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::{Access, Store};
use crate::disk::Halfway;
use crate::error::Error;
use crate::manifest::{self, GraphEntry, Manifest, SegmentEntry, SpaceEntry};
use crate::pace::Pace;
use crate::parts::{Head, PART_LIMIT, PartNo};
use crate::segment::{self, Tombstone};
use crate::space::Space;
use crate::types::Lsn;

/// Segments of similar size that are merged into one.
const MERGE_SEGMENTS: usize = 8;
/// A graph is saved anew when it has grown by this many vectors and by a quarter.
const GRAPH_GROWTH: u32 = 16_384;

/// A kind of background work, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Job {
    /// Writing and syncing an empty log file, so that a commit need not wait for it.
    SpareLog,
    /// Writing what is in memory to a segment, so that the log before it can go.
    Seal,
    /// Making one segment of several.
    Merge,
    /// Putting vectors into graphs, and building graphs anew after deletes.
    Graph,
    /// Saving graphs.
    Checkpoint,
    /// Reading sealed blocks again.
    Scrub,
}

impl Job {
    /// All of them.
    pub const ALL: [Job; 6] =
        [Job::SpareLog, Job::Seal, Job::Merge, Job::Graph, Job::Checkpoint, Job::Scrub];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Job::SpareLog => "spare_log",
            Job::Seal => "seal",
            Job::Merge => "merge",
            Job::Graph => "graph",
            Job::Checkpoint => "checkpoint",
            Job::Scrub => "scrub",
        }
    }
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CompactReport {
    /// Segments before.
    pub segments_before: u64,
    /// Segments after.
    pub segments_after: u64,
    /// Bytes of sealed files before.
    pub bytes_before: u64,
    /// Bytes of sealed files after.
    pub bytes_after: u64,
}

impl Store {
    /// Does upkeep for about `budget` and says whether there is more to do: [`Store::work`] without pauses.
    ///
    /// # Errors
    /// As [`Store::work`].
    pub fn maintain(&self, budget: Duration) -> Result<bool, Error> {
        Ok(self.work(budget, &Pace::unpaced())?.is_some())
    }

    /// Does the most urgent background job for about `budget` and says which it was; `None` when nothing is to do. Call it in
    /// a loop from one thread, best of idle priority. Graphs are built for the budget; every other job is done to its
    /// end, with a pause after each quantum as `pace` says.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`], [`Error::Corrupt`], [`Error::Poisoned`], [`Error::Closed`]; nothing is lost, and
    /// the next call tries again.
    pub fn work(&self, budget: Duration, pace: &Pace<'_>) -> Result<Option<Job>, Error> {
        self.check_open()?;
        if self.access == Access::Read {
            let built = self.build_for(budget).then_some(Job::Graph);
            return Ok(built.or_else(|| self.scrub(pace).then_some(Job::Scrub)));
        }
        let mut manifest = self.upkeep.lock();
        pace.begin(Job::SpareLog);
        if self.wal.prepare_spare(pace)? {
            return Ok(Some(Job::SpareLog));
        }
        if self.parts.now().head.bytes() >= self.options.seal_bytes {
            pace.begin(Job::Seal);
            self.seal(&mut manifest, pace)?;
            return Ok(Some(Job::Seal));
        }
        if let Some(parts) = mergeable(&manifest) {
            pace.begin(Job::Merge);
            self.rewrite(&mut manifest, &parts, pace)?;
            return Ok(Some(Job::Merge));
        }
        if self.build_for(budget) {
            return Ok(Some(Job::Graph));
        }
        let grown = |space: &Space, saved: u32| {
            let len = space.index.graph_len();
            len >= saved + GRAPH_GROWTH && u64::from(len) * 4 >= u64::from(saved) * 5
        };
        pace.begin(Job::Checkpoint);
        if self.save_graphs(&mut manifest, &grown, pace)? {
            return Ok(Some(Job::Checkpoint));
        }
        Ok(self.scrub(pace).then_some(Job::Scrub))
    }

    /// Builds graphs for about `budget`; `true` if there is more to build.
    fn build_for(&self, budget: Duration) -> bool {
        let until = self.clock.now() + budget;
        loop {
            let next = {
                let unbuilt = self.unbuilt.lock();
                unbuilt.iter().next().map(|(id, space)| (*id, space.upgrade()))
            };
            let Some((id, space)) = next else { return false };
            let mut go_on = || self.clock.now() < until;
            if !go_on() {
                return true;
            }
            // Taken off the list before the step, so that a push during it puts the space back.
            self.unbuilt.lock().remove(&id);
            if let Some(space) = space
                && space.index.build_step(&mut go_on)
            {
                self.unbuilt.lock().entry(id).or_insert_with(|| Arc::downgrade(&space));
            }
        }
    }

    /// Writes the head to a segment, so that the log before it is no longer needed.
    pub(super) fn seal(&self, manifest: &mut Manifest, pace: &Pace<'_>) -> Result<(), Error> {
        let heads: Vec<PartNo> = self.parts.now().heads().collect();
        self.rewrite(manifest, &heads, pace)
    }

    /// Merges all segments and the head into one segment without what was deleted.
    ///
    /// # Errors
    /// Those of [`Store::maintain`]; the former segments stay in use then.
    pub fn compact(&self) -> Result<CompactReport, Error> {
        self.check_writable()?;
        let mut manifest = self.upkeep.lock();
        let sealed = |m: &Manifest| m.segments.iter().map(|s| s.len).sum::<u64>();
        let before = (manifest.segments.len() as u64, sealed(&manifest));
        let mut parts: Vec<PartNo> = manifest.segments.iter().map(|s| s.part).collect();
        parts.extend(self.parts.now().heads());
        self.rewrite(&mut manifest, &parts, &Pace::unpaced())?;
        Ok(CompactReport {
            segments_before: before.0,
            segments_after: manifest.segments.len() as u64,
            bytes_before: before.1,
            bytes_after: sealed(&manifest),
        })
    }

    /// Seals and saves everything there is; used by close and snapshot.
    pub(super) fn save_all(&self) -> Result<(), Error> {
        let mut manifest = self.upkeep.lock();
        self.save_all_in(&mut manifest)
    }

    pub(super) fn save_all_in(&self, manifest: &mut Manifest) -> Result<(), Error> {
        if self.wal.last_op().0 > manifest.checkpoint_lsn {
            self.seal(manifest, &Pace::unpaced())?;
        }
        // A short tail is cheaper to insert again than a whole graph is to write.
        let grown =
            |space: &Space, saved: u32| space.index.graph_len() >= saved + (saved / 16).max(512);
        self.save_graphs(manifest, &grown, &Pace::unpaced()).map(drop)
    }

    /// Rewrites what is live in `parts` to one new segment that takes their place. Among them may be the head; a new one is
    /// started then.
    fn rewrite(
        &self,
        manifest: &mut Manifest,
        parts: &[PartNo],
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        let with_head = parts.contains(&self.parts.now().head.part());
        let mut next = manifest.clone();
        let mut tombstones = Vec::new();
        if with_head {
            tombstones = self.draw_line(&mut next)?;
        }
        let outcome = self.rewrite_behind(manifest, &mut next, parts, &tombstones, pace);
        if outcome.is_err() {
            // Still to be sealed. The numbers that were given out are not given out again.
            self.tombstones.lock().extend(tombstones);
            manifest.next_part = next.next_part;
        }
        outcome
    }

    /// Starts a new head and notes in `next` the state that everything before it amounts to.
    fn draw_line(&self, next: &mut Manifest) -> Result<Vec<Tombstone>, Error> {
        let head = Arc::new(Head::new(take_part(next)?));
        let _no_writes = self.gate.write();
        self.parts.start_head(head);
        next.checkpoint_lsn = self.wal.last_lsn().0;
        next.next_space = self.spaces_made.load(Ordering::Acquire);
        next.spaces = self.space_entries();
        Ok(std::mem::take(&mut *self.tombstones.lock()))
    }

    fn rewrite_behind(
        &self,
        manifest: &mut Manifest,
        next: &mut Manifest,
        parts: &[PartNo],
        tombstones: &[Tombstone],
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        // A segment holds nothing that a crash could take back.
        self.wal.wait_durable(Lsn(next.checkpoint_lsn))?;
        let part = take_part(next)?;
        let every_segment = manifest.segments.iter().all(|s| parts.contains(&s.part));
        let kept = if every_segment { Vec::new() } else { self.tombstones_of(parts, tombstones)? };
        let rewritten = self.write_live(next, part, parts, &kept, pace)?;
        next.segments.retain(|s| !parts.contains(&s.part));
        if let Some(new) = &rewritten {
            next.segments.push(SegmentEntry {
                part,
                len: new.written.len,
                checksum: format!("{:032x}", new.written.checksum),
            });
        }
        let live: Vec<u32> = next.spaces.iter().map(|s| s.id).collect();
        next.graphs.retain(|g| live.contains(&g.space));
        next.first_wal = Some(self.wal.first_needed(Lsn(next.checkpoint_lsn)));
        self.publish(manifest, next)?;
        if let Some(new) = rewritten {
            self.parts.add_segment(Arc::clone(&new.segment));
            new.move_cells();
        }
        self.parts.withdraw(parts);
        self.remove_unnamed(manifest, parts);
        Ok(())
    }

    /// Makes `next` the store's manifest.
    fn publish(&self, manifest: &mut Manifest, next: &mut Manifest) -> Result<(), Error> {
        next.generation = manifest.generation + 1;
        match next.write(&*self.disk, &self.dir) {
            Ok(()) => {}
            Err((Halfway::Written, e)) => return Err(e),
            Err((Halfway::Named, e)) => {
                let cause = e.to_string();
                self.wal.poison(&cause);
                return Err(Error::Poisoned { cause });
            }
        }
        *manifest = next.clone();
        let older = manifest::file_name(manifest.generation.saturating_sub(2));
        let _ = self.disk.remove(&self.dir.join(older));
        Ok(())
    }

    /// Removes the files that the new manifest no longer needs; what stays behind is removed at the next open.
    fn remove_unnamed(&self, manifest: &Manifest, parts: &[PartNo]) {
        for part in parts {
            let _ = self.disk.remove(&self.dir.join(segment::file_name(*part)));
        }
        if let Some(first) = manifest.first_wal
            && let Err(e) = self.wal.remove_below(first)
        {
            tracing::warn!(error = %e, "an old log file stays behind");
        }
    }

    /// Saves every graph that `grown` says is due; `true` if any was saved.
    fn save_graphs(
        &self,
        manifest: &mut Manifest,
        grown: &dyn Fn(&Space, u32) -> bool,
        pace: &Pace<'_>,
    ) -> Result<bool, Error> {
        let mut saved_any = false;
        let spaces: Vec<Arc<Space>> = self.spaces.iter().map(|e| Arc::clone(e.value())).collect();
        for space in spaces {
            let old = manifest.graphs.iter().find(|g| g.space == space.id.0).cloned();
            let usable = |g: &&GraphEntry| !self.recovery.refused_graph_files.contains(&g.number);
            let saved = old.as_ref().filter(usable).map_or(0, |g| g.vectors);
            if space.index.graph_len() == 0 || !grown(&space, saved) {
                continue;
            }
            // A graph names memories by seq, so each of them must be past taking back, and in a segment: one that is only
            // in the log would come back from there under another number. Only upkeep grows a graph, so none joins it now.
            if self.wal.last_op().0 > manifest.checkpoint_lsn {
                self.seal(manifest, pace)?;
            }
            let mut next = manifest.clone();
            let number = take_part(&mut next)?;
            let (len, vectors) = graph::save(&*self.disk, &self.dir, number, &space, pace)?;
            next.graphs.retain(|g| g.space != space.id.0);
            next.graphs.push(GraphEntry { space: space.id.0, number, len, vectors });
            self.publish(manifest, &mut next)?;
            if let Some(old) = old {
                let _ = self.disk.remove(&self.dir.join(graph::file_name(old.number)));
            }
            saved_any = true;
        }
        Ok(saved_any)
    }

    fn space_entries(&self) -> Vec<SpaceEntry> {
        let entry = |space: &Space| SpaceEntry {
            id: space.id.0,
            name: space.name.to_string(),
            last_seq: space.last_seq().0,
        };
        self.spaces.iter().map(|e| entry(e.value())).collect()
    }
}

/// The next number for a part or graph.
fn take_part(manifest: &mut Manifest) -> Result<PartNo, Error> {
    let part = manifest.next_part;
    if part + 1 >= PART_LIMIT {
        let why = "is used up: export the spaces and import them into a new store";
        return Err(Error::invalid("the store's supply of file numbers", why));
    }
    manifest.next_part += 1;
    Ok(part)
}

/// The newest segments that are worth merging: at least [`MERGE_SEGMENTS`], none larger than all newer ones together.
fn mergeable(manifest: &Manifest) -> Option<Vec<PartNo>> {
    let mut newer = 0;
    let mut run = Vec::new();
    for s in manifest.segments.iter().rev() {
        if !run.is_empty() && s.len > 2 * newer {
            break;
        }
        newer += s.len;
        run.push(s.part);
    }
    (run.len() >= MERGE_SEGMENTS).then_some(run)
}
