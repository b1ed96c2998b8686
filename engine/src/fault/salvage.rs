//! A store damaged anywhere, and what salvage makes of it.
//!
//! Checked: salvage ends without panic in a store that opens and is sound, or in a report that says why not; every memory
//! whose bytes are untouched is there, in its order, with its own vectors still its own; nothing is there that was never
//! stored; what is missing or back is never passed over in silence. The oracle knows which bytes each memory needs from
//! the undamaged files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Failure, Fault, FaultDisk, Image, bits};
use super::workload::StillClock;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::Error;
use crate::op::Op;
use crate::record::RecordRef;
use crate::segment::{self, Segment};
use crate::store::Store;
use crate::store::salvage::{SalvageReport, salvage_on};
use crate::types::{
    AddStatus, NewMemory, OnConflict, Patch, RequestId, Selection, SpaceName, StoreOptions,
};
use crate::wal::{self, LogRemains};

const FROM: &str = "/store";
const TO: &str = "/saved";
const DIM: usize = 8;

/// A memory as it can be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    id: String,
    text: String,
    role: Option<String>,
    session: Option<String>,
    ts_ms: i64,
    meta: Option<String>,
}

/// A memory's vectors: none, the model's, or the caller's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vectors {
    Waits,
    Model,
    Own,
}

/// Memories of each space in their order.
type Contents = BTreeMap<String, Vec<(Seen, Vectors)>>;

/// A store that was not closed, and what the oracle knows of it.
struct Sample {
    image: Image,
    live: Contents,
    /// All that was ever stored, deleted and replaced versions among them.
    ever: BTreeSet<Seen>,
    /// Which bytes must be whole for a live memory to be saved, by id.
    needs: BTreeMap<String, Vec<(PathBuf, Range<usize>)>>,
}

fn name(space: &str) -> SpaceName {
    SpaceName::parse(space).unwrap()
}

fn vector(n: usize) -> Vec<f32> {
    (0..DIM).map(|i| ((n as f32 + 1.0) * (i as f32 + 1.0) * 0.37).sin() + 0.01).collect()
}

fn options(seal_bytes: usize) -> StoreOptions {
    StoreOptions { log_file_bytes: 8 << 10, seal_bytes, ..StoreOptions::new(DIM, "m") }
}

fn open(disk: &FaultDisk, dir: &str) -> Store {
    Store::open_on(Arc::new(disk.clone()), Arc::new(StillClock), Path::new(dir), options(1))
        .unwrap()
}

fn contents(store: &Store) -> Contents {
    let mut out = Contents::new();
    for space in store.spaces() {
        let space_name = name(&space.space);
        let items = store.list(&space_name, None, None, None, 1000).unwrap().items;
        let seen = items.into_iter().map(|m| {
            // Vectors of the caller's own are never lent to another memory of the same text.
            let shared = store.vectors_of_text(&space_name, &m.text).unwrap().is_some();
            let vectors = match (m.searchable, shared) {
                (false, _) => Vectors::Waits,
                (true, true) => Vectors::Model,
                (true, false) => Vectors::Own,
            };
            let seen = Seen {
                id: m.id,
                text: m.text,
                role: m.role,
                session: m.session,
                ts_ms: m.ts_ms,
                meta: m.meta,
            };
            (seen, vectors)
        });
        out.insert(space.space, seen.collect());
    }
    out
}

/// What was asked for once, under a key.
const REQUEST: RequestId = RequestId { key: 7, content: 8 };

fn keyed() -> Vec<NewMemory> {
    let item = |id: &str| NewMemory {
        id: id.into(),
        text: format!("text of {id}"),
        ..NewMemory::default()
    };
    vec![item("k1"), item("k2")]
}

/// Writes the sample, noting every state it goes through.
struct Writing {
    store: Store,
    text_bytes: usize,
    ever: BTreeSet<Seen>,
    made: usize,
}

impl Writing {
    fn add(&mut self, space: &str, id: &str, own: bool) {
        self.made += 1;
        let n = self.made;
        let text = format!("text {n} of {id} {}", "x".repeat(self.text_bytes));
        let item = NewMemory {
            id: id.into(),
            text,
            role: n.is_multiple_of(2).then(|| format!("role {n}")),
            session: n.is_multiple_of(3).then(|| format!("session {n}")),
            ts_ms: n as i64 * 1000,
            meta: (n % 2 == 1).then(|| format!("{{\"n\": {n}}}")),
            vectors: own.then(|| vec![vector(n), vector(n + 1)]),
            request: None,
        };
        self.store.add(&name(space), vec![item], OnConflict::Replace).unwrap();
        self.note();
    }

    /// Gives their vectors to all that wait but `keep`.
    fn embed(&self, keep: usize) {
        let waiting = self.store.pending(1000);
        for (space, seq) in &waiting[..waiting.len() - keep] {
            self.store.set_vectors(space, vec![(*seq, vec![vector(seq.0 as usize)])]).unwrap();
        }
    }

    fn delete(&mut self, space: &str, id: &str) {
        let ids = Selection::Ids(vec![id.into()]);
        assert_eq!(self.store.delete(&name(space), &ids, false, Some(1)).unwrap().deleted, 1);
    }

    fn update(&mut self, space: &str, id: &str, patch: Patch) {
        self.store.update(&name(space), id, patch, None).unwrap();
        self.note();
    }

    fn note(&mut self) {
        let now = contents(&self.store);
        self.ever.extend(now.into_values().flatten().map(|(seen, _)| seen));
    }
}

impl Sample {
    /// A merged segment, a newer one that deletes from it, and a log that was not closed; `text_bytes` in each text.
    fn new(text_bytes: usize) -> Sample {
        let disk = FaultDisk::new(Image::new());
        let store = open(&disk, FROM);
        let mut w = Writing { store, text_bytes, ever: BTreeSet::new(), made: 0 };
        for at in 1..=5 {
            w.add("a", &format!("a{at}"), false);
            w.add("b", &format!("b{at}"), true);
        }
        w.add("gone", "g1", true);
        w.embed(1);
        w.store.maintain(Duration::from_millis(1)).unwrap();
        w.delete("b", "b1");
        w.update("a", "a1", Patch { text: Some("another text of a1".into()), ..Patch::default() });
        w.embed(0);
        w.store.compact().unwrap();
        w.add("a", "a6", false);
        w.add("b", "b6", true);
        w.embed(0);
        w.delete("a", "a2");
        w.store.drop_space(&name("gone")).unwrap();
        w.store.maintain(Duration::from_millis(1)).unwrap();
        w.add("c", "c1", false);
        w.add("a", "a7", false);
        w.add("b", "b7", true);
        w.embed(0);
        w.update("b", "b2", Patch { role: Some(Some("new".into())), ..Patch::default() });
        w.add("a", "a4", true);
        w.delete("a", "a3");
        w.add("c", "c2", false);
        w.store.add_once(&name("c"), keyed(), REQUEST).unwrap();
        w.note();
        let (image, live) = (disk.live(), contents(&w.store));
        let needs = needs(&disk, &live);
        assert_eq!(needs.len(), live.values().map(Vec::len).sum::<usize>());
        Sample { image, live, ever: w.ever, needs }
    }
}

/// Finds out which bytes each live memory needs.
fn needs(disk: &FaultDisk, live: &Contents) -> BTreeMap<String, Vec<(PathBuf, Range<usize>)>> {
    let mut out = BTreeMap::new();
    let live: BTreeSet<&Seen> = live.values().flatten().map(|(seen, _)| seen).collect();
    let mut note = |r: &RecordRef<'_>, needs| {
        let seen = Seen {
            id: r.id.into(),
            text: r.text.into(),
            role: r.role.map(Into::into),
            session: r.session.map(Into::into),
            ts_ms: r.ts_ms,
            meta: r.meta.map(Into::into),
        };
        if live.contains(&seen) {
            out.insert(seen.id, needs);
        }
    };
    for (path, bytes) in disk.live() {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if wal::file_number(&file).is_some() {
            for batch in LogRemains::of(&bytes).batches {
                for (kind, range) in &batch.operations {
                    let Some(Op::Write { added, .. }) =
                        Op::decode(*kind, &bytes[range.clone()], DIM)
                    else {
                        continue;
                    };
                    let place = batch.place.start as usize..batch.place.end as usize;
                    for new in added {
                        let needs = vec![(path.clone(), place.clone())];
                        note(&RecordRef::decode(&new.bytes).unwrap(), needs);
                    }
                }
            }
        }
    }
    for (path, bytes) in disk.live() {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if segment::file_number(&file).is_some() {
            let segment = Segment::open(disk, &path, bytes.len() as u64).unwrap();
            let blocks = |at: u64, len: u64| {
                let block = segment::BLOCK_BYTES;
                let range = at / block * block..(at + len).div_ceil(block) * block;
                (path.clone(), range.start as usize..range.end as usize)
            };
            // The footer tells where the directory begins: four times (offset, count) behind the block table.
            let trailer = bytes.len() - segment::TRAILER_BYTES as usize;
            let directory = u64::from_le_bytes(bytes[trailer..trailer + 8].try_into().unwrap());
            for (at, entry) in segment.records().unwrap().into_iter().enumerate() {
                let entry_at = directory + at as u64 * segment::RECORD_ENTRY_BYTES;
                let needs = vec![
                    blocks(entry.offset, entry.len.into()),
                    blocks(entry_at, segment::RECORD_ENTRY_BYTES),
                ];
                // Block ranges may reach into the footer, which is not the memory's.
                let end = bytes.len() - footer_bytes(bytes.len());
                let needs = needs.into_iter().map(|(p, r)| (p, r.start..r.end.min(end))).collect();
                note(&segment.record(entry.offset, entry.len).unwrap(), needs);
            }
        }
    }
    out
}

fn footer_bytes(len: usize) -> usize {
    let trailer = segment::TRAILER_BYTES as usize;
    trailer + 8 * (len - trailer).div_ceil(segment::BLOCK_BYTES as usize + 8)
}

/// One damaged range of a file.
type Damage = (PathBuf, Range<usize>);

fn salvage_with(disk: &FaultDisk, sizes: StoreOptions) -> Result<SalvageReport, Error> {
    let machine: (Arc<dyn Disk>, Arc<dyn Clock>) = (Arc::new(disk.clone()), Arc::new(StillClock));
    salvage_on(machine, Path::new(FROM), Path::new(TO), sizes)
}

fn salvage(image: Image) -> (SalvageReport, FaultDisk) {
    let before = image.clone();
    let disk = FaultDisk::new(image);
    let report = salvage_with(&disk, options(4 << 10)).unwrap_or_else(|e| panic!("{e}"));
    let after = disk.live();
    let untouched = before.iter().all(|(path, bytes)| after.get(path) == Some(bytes));
    assert!(untouched, "the damaged store was changed");
    (report, disk)
}

/// Salvages a damaged image and checks all that must hold.
fn check(sample: &Sample, image: Image, damage: &[Damage]) -> SalvageReport {
    let (report, disk) = salvage(image);
    let place = || format!("{damage:?}\n{report:#?}");
    let saved = match report.memories {
        0 => Contents::new(),
        _ => contents(&open(&disk, TO)),
    };
    let all: Vec<&(Seen, Vectors)> = saved.values().flatten().collect();
    assert_eq!(report.memories as usize, all.len(), "{}", place());
    let waiting = all.iter().filter(|(_, vectors)| *vectors == Vectors::Waits).count();
    assert_eq!(report.without_vectors as usize, waiting, "{}", place());
    for (seen, _) in &all {
        assert!(sample.ever.contains(seen), "{seen:?} was never stored: {}", place());
    }
    let hit = |needs: &[Damage]| {
        needs.iter().any(|(path, range)| {
            let meets = |(p, r): &Damage| p == path && r.start < range.end && range.start < r.end;
            damage.iter().any(meets)
        })
    };
    for (space, memories) in &sample.live {
        let mut last = None;
        for (seen, vectors) in memories {
            let found = saved.iter().find_map(|(space, found)| {
                Some((space, found.iter().position(|(s, _)| s == seen)?))
            });
            let Some((in_space, at)) = found else {
                assert!(hit(&sample.needs[&seen.id]), "{} is lost: {}", seen.id, place());
                let silent = report.losses.is_empty();
                assert!(
                    !silent || end_is_gone(damage),
                    "{} is lost in silence: {}",
                    seen.id,
                    place()
                );
                continue;
            };
            assert!(in_space == space || in_space.starts_with("recovered-"), "{}", place());
            assert!(last < Some(at), "{} is out of its order: {}", seen.id, place());
            last = Some(at);
            let now = saved[in_space][at].1;
            let noted = !report.losses.is_empty() || end_is_gone(damage);
            let kept = now == *vectors || (now == Vectors::Waits && noted);
            assert!(kept, "{} had {vectors:?}, has {now:?}: {}", seen.id, place());
        }
    }
    let live: BTreeSet<&Seen> = sample.live.values().flatten().map(|(seen, _)| seen).collect();
    let is_back = all.iter().any(|(seen, _)| !live.contains(seen));
    let warned =
        !report.risks.is_empty() || report.losses.iter().any(|l| l.what.contains("is back"));
    assert!(!is_back || warned || end_is_gone(damage), "something is back in silence: {}", place());
    report
}

/// Nothing tells of a log's end that is gone as if it had never been: a recovery passes it over too.
fn end_is_gone(damage: &[Damage]) -> bool {
    damage.iter().any(|(path, range)| path.to_string_lossy().contains("wal") && range.len() > 1)
}

fn newest_manifest(image: &Image) -> PathBuf {
    let manifests = image.keys().filter(|path| path.to_string_lossy().contains("manifest"));
    manifests.max().unwrap().clone()
}

#[test]
fn an_undamaged_store_is_saved_whole() {
    for text_bytes in [0, 9000] {
        let sample = Sample::new(text_bytes);
        let (report, disk) = salvage(sample.image.clone());
        assert_eq!(contents(&open(&disk, TO)), sample.live, "{report:#?}");
        assert_eq!((&report.losses[..], &report.risks[..]), (&[][..], &[][..]));
        assert_eq!((report.spaces, report.dim, report.fingerprint), (3, DIM, Some("m".into())));
        assert!(report.log_batches > 8, "{}", report.log_batches);
        // A request whose answer was lost can still be repeated.
        let store = open(&disk, TO);
        let again = store.add_once(&name("c"), keyed(), REQUEST).unwrap();
        assert!(again.items.iter().all(|item| item.status == AddStatus::Skipped), "{again:?}");
        let other = RequestId { content: 9, ..REQUEST };
        assert!(matches!(store.add_once(&name("c"), keyed(), other), Err(Error::KeyTaken)));
    }
}

#[test]
fn a_flipped_byte_costs_what_lies_there_and_nothing_else() {
    let sample = Sample::new(0);
    let mut flips = 0;
    for (path, bytes) in &sample.image {
        for (at, byte) in bytes.iter().enumerate() {
            // Unused space, where a flip is like any other.
            if *byte == 0 && at % 16 != 0 {
                continue;
            }
            let mut bad = sample.image.clone();
            bad.get_mut(path).unwrap()[at] ^= 1 << (at % 8);
            check(&sample, bad, &[(path.clone(), at..at + 1)]);
            flips += 1;
        }
    }
    println!("{flips} flips");
}

#[test]
fn a_flipped_byte_in_a_large_segment_costs_its_block() {
    let sample = Sample::new(9000);
    let mut state = 0x5eed;
    for (path, bytes) in &sample.image {
        let is_segment = path.file_name().is_some_and(|n| n.to_string_lossy().contains("segment"));
        let footer = bytes.len() - footer_bytes(bytes.len()).min(bytes.len());
        let by_chance = (0..150).map(|_| bits(&mut state) as usize % bytes.len());
        let all: Vec<usize> = match is_segment {
            true => by_chance.chain(footer..bytes.len()).collect(),
            false => by_chance.collect(),
        };
        for at in all {
            let mut bad = sample.image.clone();
            bad.get_mut(path).unwrap()[at] ^= 0x81;
            check(&sample, bad, &[(path.clone(), at..at + 1)]);
        }
    }
}

#[test]
fn damage_of_every_kind_at_once_loses_nothing_in_silence() {
    let samples = [Sample::new(0), Sample::new(9000)];
    let rounds = std::env::var("FLASHBULB_SALVAGES").ok().and_then(|n| n.parse().ok());
    let rounds: u64 = rounds.unwrap_or(1500);
    let (mut saved, mut all) = (0, 0);
    for seed in 1..=rounds {
        let sample = &samples[seed as usize % 2];
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = |n: usize| (bits(&mut state) >> 33) as usize % n.max(1);
        let mut image = sample.image.clone();
        let mut damage = Vec::new();
        for _ in 0..1 + roll(4) {
            let paths: Vec<PathBuf> = image.keys().cloned().collect();
            let Some(path) = paths.get(roll(paths.len())).cloned() else { continue };
            let len = image[&path].len();
            let range = match roll(6) {
                0 => {
                    image.remove(&path);
                    0..usize::MAX
                }
                1 => {
                    let to = roll(len);
                    image.get_mut(&path).unwrap().truncate(to);
                    // Without its footer a segment says nothing.
                    let segment = path.to_string_lossy().contains("segment");
                    if segment { 0..usize::MAX } else { to..usize::MAX }
                }
                kind => {
                    let start = roll(len);
                    let most = [1, 64, 5000, 70_000][roll(4)];
                    let end = (start + 1 + roll(most)).min(len);
                    for at in start..end {
                        let noise = roll(256) as u8;
                        let byte = &mut image.get_mut(&path).unwrap()[at];
                        *byte = match kind {
                            2 => 0,
                            3 => noise,
                            4 => 0xff,
                            _ => *byte ^ (1 << (noise % 8)),
                        };
                    }
                    let footer = len.saturating_sub(footer_bytes(len.max(200)));
                    let segment = path.to_string_lossy().contains("segment");
                    // More than one number of the footer gone: where things lie cannot be told.
                    if segment && end > footer && end - start > 1 {
                        0..usize::MAX
                    } else {
                        start..end
                    }
                }
            };
            damage.push((path, range));
        }
        if !image.keys().any(|path| path != Path::new("/store/LOCK")) {
            continue;
        }
        saved += check(sample, image, &damage).memories;
        all += sample.needs.len();
    }
    println!("{saved} of {all} memories saved in {rounds} damaged stores");
}

#[test]
fn files_that_a_recovery_left_behind_change_nothing() {
    let before = Sample::new(0);
    let disk = FaultDisk::new(before.image.clone());
    let store = open(&disk, FROM);
    let mut w = Writing { store, text_bytes: 0, ever: before.ever, made: 100 };
    w.add("a", "a8", false);
    w.add("d", "d1", true);
    w.delete("b", "b7");
    w.embed(0);
    w.store.maintain(Duration::from_millis(1)).unwrap();
    w.update("a", "a7", Patch { role: Some(None), ..Patch::default() });
    w.delete("a", "a8");
    let live = contents(&w.store);
    let mut image = disk.live();
    let old: Vec<PathBuf> =
        before.image.keys().filter(|path| !image.contains_key(*path)).cloned().collect();
    assert!(old.iter().any(|path| path.to_string_lossy().contains("wal")), "{old:?}");
    for path in old {
        image.insert(path.clone(), before.image[&path].clone());
    }
    let (report, disk) = salvage(image.clone());
    assert_eq!(contents(&open(&disk, TO)), live, "{report:#?}");
    assert_eq!(report.losses, []);
    // With the older manifest alone, nothing that was kept is missing either.
    image.remove(&newest_manifest(&image));
    let (report, disk) = salvage(image);
    let saved = contents(&open(&disk, TO));
    for (space, memories) in &live {
        for memory in memories {
            assert!(saved[space].contains(memory), "{memory:?}: {report:#?}");
        }
    }
}

#[test]
fn a_read_or_write_that_fails_is_an_error_or_a_loss() {
    let sample = Sample::new(0);
    let (mut errors, mut losses) = (0, 0);
    for reading in [true, false] {
        for at in 0.. {
            let disk = FaultDisk::new(sample.image.clone());
            let fault = Fault::Error(ErrorKind::Other);
            let failure = Some(Failure { at, for_ever: false, fault });
            if reading {
                disk.fail_reading(failure)
            } else {
                disk.fail(failure)
            }
            let outcome = salvage_with(&disk, options(4 << 10));
            let done = if reading { disk.reads() } else { disk.changes() };
            disk.fail_reading(None);
            disk.fail(None);
            match outcome {
                Err(_) => errors += 1,
                Ok(report) if !report.losses.is_empty() => losses += 1,
                Ok(_) => assert_eq!(contents(&open(&disk, TO)), sample.live, "operation {at}"),
            }
            if done <= at {
                break;
            }
        }
    }
    assert!(errors > 20 && losses > 3, "{errors} errors, {losses} losses");
}

#[test]
fn without_a_manifest_texts_are_saved_and_only_own_vectors_kept() {
    let sample = Sample::new(0);
    let mut image = sample.image.clone();
    image.retain(|path, _| !path.to_string_lossy().contains("manifest"));
    let report = check(&sample, image.clone(), &[(newest_manifest(&sample.image), 0..usize::MAX)]);
    assert_eq!((report.fingerprint.as_deref(), report.dim), (None, DIM));
    let (_, disk) = salvage(image);
    // The first model it is opened with becomes its model, and no other is taken from then on.
    let again = |model: &str| {
        let options = StoreOptions { fingerprint: model.into(), ..options(1) };
        Store::open_on(Arc::new(disk.clone()), Arc::new(StillClock), Path::new(TO), options)
    };
    let store = again("another").unwrap();
    let found = contents(&store);
    let vectors: BTreeSet<_> = found.values().flatten().map(|(_, v)| format!("{v:?}")).collect();
    assert_eq!(vectors, BTreeSet::from(["Own".into(), "Waits".into()]), "{found:#?}");
    drop(store);
    assert!(again("a third").is_err());
    assert!(again("another").is_ok());
}

#[test]
fn the_log_alone_tells_how_long_a_vector_is() {
    let sample = Sample::new(0);
    let mut image = sample.image.clone();
    image.retain(|path, _| path.to_string_lossy().contains("wal"));
    let disk = FaultDisk::new(image);
    let sizes = StoreOptions { dim: 99, ..options(1) };
    let report = salvage_with(&disk, sizes).unwrap();
    assert_eq!((report.dim, report.memories > 3), (DIM, true), "{report:#?}");
}

#[test]
fn a_folder_that_is_taken_or_holds_no_store_is_refused() {
    let sample = Sample::new(0);
    let salvage = |image: Image| salvage_with(&FaultDisk::new(image), options(1));
    let mut taken = sample.image.clone();
    taken.insert("/saved/notes.txt".into(), vec![1]);
    let refused = salvage(taken).unwrap_err().to_string();
    assert!(refused.contains("notes.txt"), "{refused}");
    let mut other = Image::new();
    other.insert("/store/notes.txt".into(), vec![1]);
    let refused = salvage(other).unwrap_err().to_string();
    assert!(refused.contains("no file of a store"), "{refused}");
}
