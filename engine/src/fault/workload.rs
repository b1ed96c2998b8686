//! What a store is asked to do, and what must be in it afterwards, as a map.
//!
//! Invariant: a step is one acknowledged operation of the store, or changes nothing that can be read. The model is a map and
//! knows nothing of logs or segments.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::disk::{FaultDisk, bits};
use crate::clock::Clock;
use crate::error::Error;
use crate::store::Store;
use crate::types::{Durability, NewMemory, OnConflict, Patch, Selection, SpaceName, StoreOptions};

pub(super) const DIR: &str = "/store";
const DIM: usize = 8;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A memory without vectors, in the first space.
    AddText,
    /// Three memories with vectors, in the second space.
    AddBatch,
    /// Vectors for what waits.
    Embed,
    /// The oldest memory of the first space gets another text.
    Update,
    /// The same id again, in the second space.
    Replace,
    /// The oldest memory of each space goes.
    Delete,
    /// The second space goes.
    Drop,
    /// What is in memory becomes a segment.
    Seal,
    /// All becomes one segment.
    Compact,
    /// Closed and opened.
    Reopen,
    /// What was acknowledged is synced.
    Sync,
    /// A copy, in a folder of its own.
    Snapshot,
}

impl Step {
    pub(super) const ALL: [Step; 12] = [
        Step::AddText,
        Step::AddBatch,
        Step::Embed,
        Step::Update,
        Step::Replace,
        Step::Delete,
        Step::Drop,
        Step::Seal,
        Step::Compact,
        Step::Reopen,
        Step::Sync,
        Step::Snapshot,
    ];

    /// What leaves a merged segment, a newer head, a delete, a replaced memory and one that was embedded later.
    pub(super) const MIXED: [Step; 9] = [
        Step::AddBatch,
        Step::AddText,
        Step::Seal,
        Step::Delete,
        Step::Replace,
        Step::Compact,
        Step::AddText,
        Step::Embed,
        Step::AddBatch,
    ];

    /// Whether what was acknowledged before is synced once this step is, whatever the level. A seal is left out: upkeep may have
    /// found something more urgent to do.
    pub(super) fn syncs(self) -> bool {
        matches!(self, Step::Compact | Step::Reopen | Step::Sync | Step::Snapshot)
    }

    /// All workloads of up to `most` steps.
    pub(super) fn workloads(most: usize) -> Vec<Vec<Step>> {
        let mut all: Vec<Vec<Step>> = vec![Vec::new()];
        let mut from = 0;
        for _ in 0..most {
            let to = all.len();
            for at in from..to {
                for step in Step::ALL {
                    let longer = all[at].iter().copied().chain([step]).collect();
                    all.push(longer);
                }
            }
            from = to;
        }
        all
    }

    /// A workload of `len` steps by chance.
    pub(super) fn by_chance(len: usize, seed: u64) -> Vec<Step> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut step = || Step::ALL[(bits(&mut state) >> 33) as usize % Step::ALL.len()];
        (0..len).map(|_| step()).collect()
    }
}

/// A memory as it can be read: text and whether it can be found.
pub(super) type Contents = BTreeMap<String, BTreeMap<String, (String, bool)>>;

/// A store, the disk below it, and what must be in it.
pub(super) struct Run {
    pub(super) disk: FaultDisk,
    store: Option<Store>,
    pub(super) model: Contents,
    /// Snapshots: the folder, and what must be in it.
    pub(super) copies: Vec<(String, Contents)>,
    level: Durability,
    made: usize,
}

pub(super) fn name(space: &str) -> SpaceName {
    SpaceName::parse(space).unwrap()
}

pub(super) fn vector(n: usize) -> Vec<f32> {
    (0..DIM).map(|i| ((n as f32 + 1.0) * (i as f32 + 1.0) * 0.37).sin() + 0.01).collect()
}

fn options(durability: Durability) -> StoreOptions {
    let small = StoreOptions::new(DIM, "m");
    StoreOptions { log_file_bytes: 8 << 10, seal_bytes: 1, durability, ..small }
}

pub(super) fn open(disk: &FaultDisk, level: Durability) -> Result<Store, Error> {
    let disk = Arc::new(disk.clone());
    Store::open_on(disk, Arc::new(StillClock), Path::new(DIR), options(level))
}

/// Opens a store that is not to be written to.
pub(super) fn open_copy(disk: &FaultDisk, dir: &str) -> Result<Store, Error> {
    let disk = Arc::new(disk.clone());
    Store::read_on(disk, Arc::new(StillClock), Path::new(dir), options(Durability::Sync))
}

/// A clock that stands: nothing happens because time has passed, so that a workload gives the same operations each time.
#[derive(Debug)]
pub(super) struct StillClock;

impl Clock for StillClock {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn patience(&self, _span: Duration) -> Option<Duration> {
        None
    }
}

/// All that can be read of a store.
pub(super) fn contents(store: &Store) -> Result<Contents, Error> {
    let mut out = Contents::new();
    for space in store.spaces() {
        let space_name = name(&space.space);
        let listed = store.list(&space_name, None, None, None, 1000)?;
        let mut memories = BTreeMap::new();
        for memory in listed.items {
            memories.insert(memory.id.clone(), (memory.text.clone(), memory.searchable));
        }
        out.insert(space.space, memories);
    }
    Ok(out)
}

impl Run {
    pub(super) fn begin(disk: FaultDisk, level: Durability) -> Result<Run, Error> {
        let store = open(&disk, level)?;
        let (model, copies) = (Contents::new(), Vec::new());
        Ok(Run { disk, store: Some(store), model, copies, level, made: 0 })
    }

    pub(super) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    pub(super) fn contents(&self) -> Result<Contents, Error> {
        contents(self.store())
    }

    /// Whether a step that failed left no store.
    pub(super) fn is_closed(&self) -> bool {
        self.store.is_none()
    }

    /// What a process that ended in the middle, and begins again, does.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        self.store = None;
        self.store = Some(open(&self.disk, self.level)?);
        Ok(())
    }

    /// The model after `step`.
    pub(super) fn expected(&self, step: Step) -> Contents {
        let mut next = self.model.clone();
        let oldest = |space: &str| next.get(space).and_then(|m| m.keys().next().cloned());
        match step {
            Step::AddText => {
                let id = format!("t{:04}", self.made);
                next.entry("first".into())
                    .or_default()
                    .insert(id.clone(), (format!("text of {id}"), false));
            }
            Step::AddBatch => {
                for at in 0..3 {
                    let id = format!("b{:04}-{at}", self.made);
                    next.entry("second".into())
                        .or_default()
                        .insert(id.clone(), (format!("text of {id}"), true));
                }
            }
            Step::Embed => next.values_mut().flat_map(|m| m.values_mut()).for_each(|m| m.1 = true),
            Step::Update => {
                if let Some(id) = oldest("first") {
                    let text = format!("updated {}", self.made);
                    next.entry("first".into()).or_default().insert(id, (text, false));
                }
            }
            Step::Replace => {
                let text = format!("replaced {}", self.made);
                next.entry("second".into()).or_default().insert("same".into(), (text, true));
            }
            Step::Delete => {
                if let Some(id) = oldest("second") {
                    next.entry("second".into()).or_default().remove(&id);
                }
            }
            Step::Drop => {
                next.remove("second");
            }
            Step::Seal | Step::Compact | Step::Reopen | Step::Sync | Step::Snapshot => {}
        }
        next
    }

    /// Does `step`, and moves the model on once it is acknowledged.
    pub(super) fn go(&mut self, step: Step) -> Result<(), Error> {
        let next = self.expected(step);
        self.ask(step)?;
        self.model = next;
        self.made += 1;
        Ok(())
    }

    fn ask(&mut self, step: Step) -> Result<(), Error> {
        let memory = |id: String, text: String, vectors| NewMemory {
            id,
            text,
            vectors,
            ..NewMemory::default()
        };
        let oldest = |space: &str| self.model.get(space).and_then(|m| m.keys().next().cloned());
        match step {
            Step::AddText => {
                let id = format!("t{:04}", self.made);
                let text = format!("text of {id}");
                self.store().add(
                    &name("first"),
                    vec![memory(id, text, None)],
                    OnConflict::Error,
                )?;
            }
            Step::AddBatch => {
                let item = |at: usize| {
                    let id = format!("b{:04}-{at}", self.made);
                    let text = format!("text of {id}");
                    memory(id, text, Some(vec![vector(self.made * 3 + at)]))
                };
                self.store().add(&name("second"), (0..3).map(item).collect(), OnConflict::Error)?;
            }
            Step::Embed => {
                // Only the first space has any: one batch.
                let waiting = self.store().pending(100);
                let vectors: Vec<_> =
                    waiting.iter().map(|(_, seq)| (*seq, vec![vector(seq.0 as usize)])).collect();
                if let Some((space, _)) = waiting.first() {
                    self.store().set_vectors(space, vectors)?;
                }
            }
            Step::Update => {
                if let Some(id) = oldest("first") {
                    let text = Some(format!("updated {}", self.made));
                    let patch = Patch { text, ..Patch::default() };
                    self.store().update(&name("first"), &id, patch, None)?;
                }
            }
            Step::Replace => {
                let text = format!("replaced {}", self.made);
                let item = memory("same".into(), text, Some(vec![vector(self.made)]));
                self.store().add(&name("second"), vec![item], OnConflict::Replace)?;
            }
            Step::Delete => {
                if let Some(id) = oldest("second") {
                    self.store().delete(&name("second"), &Selection::Ids(vec![id]), false, None)?;
                }
            }
            Step::Drop => {
                if self.model.contains_key("second") {
                    self.store().drop_space(&name("second"))?;
                }
            }
            Step::Seal => {
                self.store().maintain(Duration::from_millis(1))?;
            }
            Step::Compact => {
                self.store().compact()?;
            }
            Step::Reopen => {
                if let Some(store) = self.store.take() {
                    store.close()?;
                }
                self.store = Some(open(&self.disk, self.level)?);
            }
            Step::Sync => {
                self.store().sync()?;
            }
            Step::Snapshot => {
                let dir = format!("/copy/{:04}", self.made);
                self.store().snapshot(Path::new(&dir))?;
                self.copies.push((dir, self.model.clone()));
            }
        }
        Ok(())
    }
}
