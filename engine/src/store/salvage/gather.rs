//! What the files of a damaged store hold, as sets: versions of memories, their vectors, and what was deleted.
//!
//! Invariant: every place that is kept was checked when it was found, and its file stays mapped. Knows nothing of the new
//! store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::{Loss, SalvageReport};
use crate::codec::f32s_from;
use crate::disk::{Bytes, Disk};
use crate::error::Error;
use crate::manifest::{Manifest, SegmentEntry};
use crate::record::RecordRef;
use crate::segment::{self, Remains, Tombstone};
use crate::store::recover::Listing;
use crate::types::{Lsn, Seq, SpaceId, SpaceName};

/// A version of a memory.
pub(super) type Version = (SpaceId, Seq);

/// Bytes in one of the files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) source: u32,
    pub(super) len: u32,
    pub(super) offset: u64,
}

/// What was found so far.
pub(super) struct Gathered {
    pub(super) manifest: Option<Manifest>,
    /// Components of a vector; 0 until known.
    pub(super) dim: usize,
    sources: Vec<Arc<dyn Bytes>>,
    pub(super) records: BTreeMap<Version, Place>,
    pub(super) rows: HashMap<Version, Place>,
    pub(super) dead: HashSet<Version>,
    pub(super) names: BTreeMap<SpaceId, SpaceName>,
    pub(super) dropped: HashSet<SpaceId>,
    /// Versions that a directory names and whose record cannot be read, with the segment.
    pub(super) lost: HashMap<Version, String>,
    /// Likewise versions whose vectors cannot be read.
    lost_rows: HashMap<Version, String>,
    /// Some segment may hold versions that nobody names.
    pub(super) directory_lost: bool,
    /// Operations up to this one are in segments, as far as those can be read.
    pub(super) sealed_lsn: Lsn,
}

impl Gathered {
    pub(super) fn new(manifest: Option<Manifest>) -> Gathered {
        let spaces = manifest.iter().flat_map(|m| &m.spaces);
        let name = |s: &crate::manifest::SpaceEntry| {
            Some((SpaceId(s.id), SpaceName::parse(&s.name).ok()?))
        };
        Gathered {
            names: spaces.filter_map(name).collect(),
            dim: manifest.as_ref().map_or(0, |m| m.dim as usize),
            sealed_lsn: manifest.as_ref().map_or(Lsn(0), |m| Lsn(m.checkpoint_lsn)),
            manifest,
            sources: Vec::new(),
            records: BTreeMap::new(),
            rows: HashMap::new(),
            dead: HashSet::new(),
            dropped: HashSet::new(),
            lost: HashMap::new(),
            lost_rows: HashMap::new(),
            directory_lost: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Keeps a file mapped; its number is part of a [`Place`].
    pub(super) fn keep(&mut self, map: Arc<dyn Bytes>) -> u32 {
        self.sources.push(map);
        u32::try_from(self.sources.len() - 1).unwrap_or(u32::MAX)
    }

    fn bytes(&self, place: Place) -> Option<&[u8]> {
        let start = usize::try_from(place.offset).ok()?;
        let file = self.sources.get(place.source as usize)?.bytes();
        file.get(start..start.checked_add(place.len as usize)?)
    }

    /// The record of a version.
    pub(super) fn record(&self, version: Version) -> Option<RecordRef<'_>> {
        RecordRef::decode(self.bytes(*self.records.get(&version)?)?)
    }

    /// The vectors of a version, unless they are lost, or of a model that is not known any more.
    pub(super) fn vectors(&self, version: Version, own: bool) -> Option<Vec<Vec<f32>>> {
        if self.manifest.is_none() && !own {
            return None;
        }
        let rows = f32s_from(self.bytes(*self.rows.get(&version)?)?);
        let usable =
            |row: &[f32]| row.iter().all(|v| v.is_finite()) && row.iter().any(|v| *v != 0.0);
        let rows: Vec<Vec<f32>> = rows.chunks_exact(self.dim).map(<[f32]>::to_vec).collect();
        (!rows.is_empty() && rows.iter().all(|row| usable(row))).then_some(rows)
    }

    /// Reads the segments that belong to the store or may.
    pub(super) fn read_segments(
        &mut self,
        disk: &dyn Disk,
        from: &Path,
        files: &Listing,
        report: &mut SalvageReport,
    ) -> Result<(), Error> {
        let named: BTreeMap<u32, SegmentEntry> = self
            .manifest
            .iter()
            .flat_map(|m| m.segments.iter().map(|s| (s.part, s.clone())))
            .collect();
        let there: HashSet<u32> =
            files.sealed.iter().filter_map(|name| segment::file_number(name)).collect();
        for part in named.keys().filter(|part| !there.contains(part)) {
            let name = segment::file_name(*part);
            report.losses.push(Loss::of(&name, None, "the manifest names it, and it is missing"));
            self.whole_file_lost(&name, report);
        }
        // A segment with a lower number that the manifest does not name is one that a merge replaced.
        let newer_from = self.manifest.as_ref().map_or(0, |m| m.next_part);
        let mut parts: Vec<u32> = there.into_iter().collect();
        parts.retain(|part| named.contains_key(part) || *part >= newer_from);
        parts.sort_unstable();
        let mut remains = Vec::new();
        for part in parts {
            let name = segment::file_name(part);
            let path = from.join(&name);
            let len = named.get(&part).map(|entry| entry.len);
            match disk.map(&path) {
                Ok(map) => {
                    let source = self.keep(Arc::clone(&map));
                    remains.push((name, source, Remains::of(&path, map, len)?));
                }
                Err(e) => {
                    report.losses.push(Loss::of(&name, None, format!("cannot be read: {e}")));
                    self.whole_file_lost(&name, report);
                }
            }
        }
        if self.dim == 0 {
            let known = remains.iter().find_map(|(_, _, r)| r.header());
            self.dim = known.map_or(0, |header| header.dim as usize);
        }
        for (name, source, remains) in &remains {
            self.read_segment(name, *source, remains, report);
        }
        Ok(())
    }

    fn read_segment(
        &mut self,
        name: &str,
        source: u32,
        remains: &Remains,
        report: &mut SalvageReport,
    ) {
        let damage = remains.damage().iter();
        report.losses.extend(damage.map(|(at, what)| Loss::of(name, Some(*at), what)));
        if !remains.has_directories() {
            self.whole_file_lost(name, report);
            return;
        }
        if let Some(header) = remains.header() {
            self.sealed_lsn = self.sealed_lsn.max(header.last_lsn);
        }
        let records = remains.records();
        for entry in &records.read {
            let version = (entry.space, entry.seq);
            if remains.record(entry).is_some() {
                let place = Place { source, len: entry.len, offset: entry.offset };
                self.records.entry(version).or_insert(place);
            } else {
                self.lost.insert(version, name.to_owned());
            }
        }
        let vectors = remains.vectors();
        let row_bytes = self.dim as u64 * 4;
        let same_dim = remains.header().is_none_or(|h| h.dim as usize == self.dim);
        for entry in &vectors.read {
            let version = (entry.space, entry.seq);
            let len = u32::try_from(u64::from(entry.count) * row_bytes).ok().filter(|_| same_dim);
            match len.filter(|len| remains.slice(entry.offset, (*len).into()).is_some()) {
                Some(len) => {
                    let place = Place { source, len, offset: entry.offset };
                    self.rows.entry(version).or_insert(place);
                }
                None => {
                    self.lost_rows.insert(version, name.to_owned());
                }
            }
        }
        let tombstones = remains.tombstones();
        let dead = |t: &Tombstone| (t.space, t.seq);
        self.dead.extend(tombstones.read.iter().map(dead));
        self.note_entries(name, [records.lost, vectors.lost, tombstones.lost], report);
    }

    fn note_entries(
        &mut self,
        name: &str,
        [records, vectors, tombstones]: [u64; 3],
        report: &mut SalvageReport,
    ) {
        self.directory_lost |= records > 0;
        if records > 0 {
            let what = format!(
                "{records} entries of its directory are lost, a memory each, unless the log still has it"
            );
            report.losses.push(Loss::of(name, None, what));
        }
        if vectors > 0 {
            let what = format!("where the vectors of {vectors} memories lie is lost");
            report.losses.push(Loss::of(name, None, what));
        }
        if tombstones > 0 {
            let what = format!(
                "{tombstones} notes of deletes are lost: so many memories of earlier segments, or older versions of \
                 them, may be back"
            );
            report.risks.push(Loss::of(name, None, what));
        }
    }

    /// Notes that nothing can be told from a segment.
    fn whole_file_lost(&mut self, name: &str, report: &mut SalvageReport) {
        self.directory_lost = true;
        let what = "nothing in it can be told apart; what only it held is lost";
        report.losses.push(Loss::of(name, None, what));
        let what = "its notes of deletes are lost: memories of earlier segments, or older versions of them, may be back";
        report.risks.push(Loss::of(name, None, what));
    }

    /// Whether a space was dropped before the manifest was written: it has no name in it and an old number.
    fn was_dropped(&self, space: SpaceId) -> bool {
        let old = self.manifest.as_ref().is_some_and(|m| space.0 < m.next_space);
        self.dropped.contains(&space) || (old && !self.names.contains_key(&space))
    }

    /// Leaves what is live, gives every space a name, and counts what is lost for good.
    pub(super) fn settle(&mut self, report: &mut SalvageReport) {
        // Of two spaces of one name, the older was dropped before the newer came to be.
        let mut newest: HashMap<SpaceName, SpaceId> = HashMap::new();
        for (id, name) in &self.names {
            if !self.was_dropped(*id)
                && let Some(older) = newest.insert(name.clone(), *id)
            {
                self.dropped.insert(older);
            }
        }
        let live = |space: SpaceId| !self.was_dropped(space);
        let dead: Vec<Version> =
            self.records.keys().filter(|v| self.dead.contains(v) || !live(v.0)).copied().collect();
        let mut lost: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (version, file) in &self.lost {
            if !self.records.contains_key(version)
                && !self.dead.contains(version)
                && live(version.0)
            {
                *lost.entry((file, "memories are lost")).or_default() += 1;
            }
        }
        for (version, file) in &self.lost_rows {
            let kept = self.records.contains_key(version) && !self.dead.contains(version);
            if kept && live(version.0) && !self.rows.contains_key(version) {
                let what = "memories lost their vectors and wait to be embedded, also those with vectors of the caller's own";
                *lost.entry((file, what)).or_default() += 1;
            }
        }
        let line = |((file, what), count): ((&str, &str), u64)| {
            Loss::of(file, None, format!("{count} {what}"))
        };
        report.losses.extend(lost.into_iter().map(line));
        for version in dead {
            self.records.remove(&version);
        }
        let unnamed: Vec<SpaceId> = self.records.keys().map(|v| v.0).collect();
        for space in unnamed {
            if !self.names.contains_key(&space) {
                self.name_anew(space, report);
            }
        }
    }

    fn name_anew(&mut self, space: SpaceId, report: &mut SalvageReport) {
        let mut name = format!("recovered-{}", space.0);
        while self.names.values().any(|taken| taken.as_str() == name) {
            name.push('-');
        }
        let what = format!("the name of space {} is lost: it is now {name}", space.0);
        report.losses.push(Loss::of("manifest", None, what));
        if let Ok(name) = SpaceName::parse(&name) {
            self.names.insert(space, name);
        }
    }
}
