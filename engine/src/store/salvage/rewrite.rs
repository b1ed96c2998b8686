//! Writing what was gathered as a new store, by the store's ordinary means.
//!
//! Invariant: memories are added in the order they had, in batches of bounded size; a vector that a model made never
//! becomes one of the caller's own. The new store is opened once more and verified before it is called saved.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::gather::{Gathered, Version};
use super::{Loss, Machine, SalvageReport, SalvagedSpace};
use crate::error::Error;
use crate::pace::Pace;
use crate::record::RecordRef;
use crate::store::folders::make_private;
use crate::store::{Job, Store};
use crate::types::{NewMemory, Seq, SpaceId, SpaceName, StoreOptions};

/// Most memories in one batch.
const BATCH_MEMORIES: usize = 512;
/// A batch is written once it holds this much.
const BATCH_BYTES: usize = 4 << 20;

/// Memories to be added together.
#[derive(Default)]
struct Pending {
    items: Vec<NewMemory>,
    /// What the model made of each item's text.
    made: Vec<Option<Vec<Vec<f32>>>>,
    ids: HashSet<String>,
    bytes: usize,
}

/// Writes the new store in `to` and verifies it.
pub(super) fn write(
    machine: &Machine,
    to: &Path,
    options: StoreOptions,
    gathered: &Gathered,
    report: &mut SalvageReport,
) -> Result<(), Error> {
    make_private(&*machine.0, to)?;
    let store = open(machine, to, options.clone())?;
    let mut of_space: Option<(SpaceId, Pending)> = None;
    for version in gathered.records.keys() {
        let pending = match &mut of_space {
            Some((space, pending)) if *space == version.0 => pending,
            other => {
                if let Some((space, pending)) = other.take() {
                    pending.add_to(&store, gathered, space, report)?;
                }
                &mut other.insert((version.0, Pending::default())).1
            }
        };
        let Some(record) = gathered.record(*version) else { continue };
        if pending.is_full() || pending.ids.contains(record.id) {
            std::mem::take(pending).add_to(&store, gathered, version.0, report)?;
        }
        pending.push(gathered, *version, &record);
    }
    if let Some((space, pending)) = of_space {
        pending.add_to(&store, gathered, space, report)?;
    }
    store.close()?;
    drop(store);
    verify(machine, to, options, report)
}

fn open((disk, clock): &Machine, to: &Path, options: StoreOptions) -> Result<Store, Error> {
    Store::open_on(Arc::clone(disk), Arc::clone(clock), to, options)
}

impl Pending {
    fn is_full(&self) -> bool {
        self.items.len() >= BATCH_MEMORIES || self.bytes >= BATCH_BYTES
    }

    fn push(&mut self, gathered: &Gathered, version: Version, record: &RecordRef<'_>) {
        let vectors = gathered.vectors(version, record.own_vectors);
        let rows = vectors.as_ref().map_or(0, Vec::len);
        self.bytes += record.encoded_len() + rows * gathered.dim * 4;
        let (own, made) = if record.own_vectors { (vectors, None) } else { (None, vectors) };
        let text = |s: Option<&str>| s.map(str::to_owned);
        self.ids.insert(record.id.to_owned());
        self.items.push(NewMemory {
            id: record.id.to_owned(),
            text: record.text.to_owned(),
            role: text(record.role),
            session: text(record.session),
            ts_ms: record.ts_ms,
            meta: text(record.meta),
            vectors: own,
            request: record.request,
        });
        self.made.push(made);
    }

    /// Adds the memories, all together or, if the store refuses one, each by itself.
    fn add_to(
        self,
        store: &Store,
        gathered: &Gathered,
        space: SpaceId,
        report: &mut SalvageReport,
    ) -> Result<(), Error> {
        let Some(name) = gathered.names.get(&space) else { return Ok(()) };
        if self.items.is_empty() {
            return Ok(());
        }
        match add(store, name, self.items.clone(), &self.made) {
            Err(refused) if is_refusal(&refused) => {
                for (item, made) in self.items.into_iter().zip(self.made) {
                    let id = item.id.clone();
                    match add(store, name, vec![item], &[made]) {
                        Err(refused) if is_refusal(&refused) => {
                            let what = format!(
                                "memory {id:?} of space {name} is not one that a store keeps: {refused}"
                            );
                            report.losses.push(Loss::of("(contents)", None, what));
                        }
                        other => other?,
                    }
                }
            }
            other => other?,
        }
        seal_what_is_due(store)
    }
}

fn add(
    store: &Store,
    name: &SpaceName,
    items: Vec<NewMemory>,
    made: &[Option<Vec<Vec<f32>>>],
) -> Result<(), Error> {
    // A later version of a memory takes the place of one whose delete is lost.
    let added = store.add_kept(name, items)?;
    let of_model = |(item, made): (&crate::types::AddedItem, &Option<Vec<Vec<f32>>>)| {
        Some((item.seq, made.clone()?))
    };
    let vectors: Vec<(Seq, Vec<Vec<f32>>)> =
        added.items.iter().zip(made).filter_map(of_model).collect();
    if vectors.is_empty() { Ok(()) } else { store.set_vectors(name, vectors).map(drop) }
}

/// Whether the contents were refused, not the write.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::Invalid { .. }
            | Error::TooLarge { .. }
            | Error::BadVector { .. }
            | Error::DimMismatch { .. }
    )
}

/// Keeps log and memory small; graphs are left to the store's next start.
fn seal_what_is_due(store: &Store) -> Result<(), Error> {
    while let Some(Job::SpareLog | Job::Seal | Job::Merge) =
        store.work(Duration::ZERO, &Pace::unpaced())?
    {}
    Ok(())
}

/// Opens the new store once more and counts what is in it.
fn verify(
    machine: &Machine,
    to: &Path,
    options: StoreOptions,
    report: &mut SalvageReport,
) -> Result<(), Error> {
    let store = open(machine, to, options)?;
    if let Some(problem) = store.verify()?.problems.into_iter().next() {
        return Err(Error::corrupt(to, 0, format!("the new store is not sound ({problem})")));
    }
    for space in store.spaces() {
        report.memories += space.memories;
        report.without_vectors += space.pending;
        report.saved.push(SalvagedSpace {
            space: space.space,
            memories: space.memories,
            without_vectors: space.pending,
        });
    }
    report.spaces = report.saved.len() as u64;
    store.close()
}
