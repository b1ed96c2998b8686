//! The driver: takes entries from a [`Source`], checks them against the service's limits, and hands them to a
//! [`Sink`] in batches.
//!
//! Keeps: `read = added + already_there + all skipped` when it ends well; a batch never holds one id twice,
//! because an add with a repeated id is refused whole. Must not know where the sink sends things.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::{Entry, ImportError, Item, SkipReason, Source};
use crate::rpc;

/// What became of items handed to a sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BatchCounts {
    /// Stored now.
    pub added: u64,
    /// Their ids were in the space before.
    pub already_there: u64,
}

/// Where batches go: the command line sends them over the socket, the daemon stores them itself.
pub trait Sink {
    /// Why a batch was not taken.
    type Error;

    /// Takes a batch; may answer for earlier batches, or with zeros while batches are under way.
    ///
    /// # Errors
    ///
    /// When this or an earlier batch was refused. The import ends.
    fn add(&mut self, items: Vec<Item>) -> Result<BatchCounts, Self::Error>;

    /// Waits for every batch under way.
    ///
    /// # Errors
    ///
    /// When one of them was refused.
    fn finish(&mut self) -> Result<BatchCounts, Self::Error> {
        Ok(BatchCounts::default())
    }
}

/// What the service takes, in bytes; the sizes of batches.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest text.
    pub text_bytes: usize,
    /// Longest id.
    pub id_bytes: usize,
    /// Longest role.
    pub role_bytes: usize,
    /// Longest session name.
    pub session_bytes: usize,
    /// Longest meta object.
    pub meta_bytes: usize,
    /// Deepest nesting of a meta object.
    pub meta_depth: usize,
    /// Longest item on the wire, JSON escapes included.
    pub item_wire_bytes: usize,
    /// Most items in one batch.
    pub batch_items: usize,
    /// Most bytes in one batch on the wire; one big item may exceed it alone.
    pub batch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            text_bytes: flashbulb_engine::TEXT_MAX_BYTES,
            id_bytes: super::ids::MAX_ID_BYTES,
            role_bytes: 128,
            session_bytes: 256,
            meta_bytes: 64 << 10,
            meta_depth: 32,
            item_wire_bytes: (4 << 20) - (64 << 10),
            batch_items: 256,
            batch_bytes: 1 << 20,
        }
    }
}

/// Where something was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkipPlace {
    /// The file, where a folder was imported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line, from 1; 0 means the whole file.
    pub line: u64,
}

/// What an import came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Things found: `added + already_there + ` everything skipped.
    pub read: u64,
    /// Memories stored.
    pub added: u64,
    /// Memories whose ids were in the space before.
    pub already_there: u64,
    /// Things left out, by reason.
    pub skipped: BTreeMap<SkipReason, u64>,
    /// The first few places of each reason.
    pub skipped_at: BTreeMap<SkipReason, Vec<SkipPlace>>,
}

impl Counts {
    /// How many places are kept a reason.
    const PLACES: usize = 5;

    /// Everything left out.
    pub fn skipped_total(&self) -> u64 {
        self.skipped.values().sum()
    }

    fn skip(&mut self, reason: SkipReason, place: SkipPlace) {
        self.read += 1;
        *self.skipped.entry(reason).or_default() += 1;
        let places = self.skipped_at.entry(reason).or_default();
        if places.len() < Self::PLACES {
            places.push(place);
        }
    }

    fn count(&mut self, batch: BatchCounts) {
        self.added += batch.added;
        self.already_there += batch.already_there;
    }
}

/// How far an import has come.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Counts so far; items under way are in `read` only.
    pub counts: &'a Counts,
    /// Bytes of the source read.
    pub bytes_done: u64,
    /// Bytes of the source.
    pub bytes_total: u64,
}

/// Why an import ended early. What was added before stays; importing again goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E> {
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] ImportError),
    /// The sink refused.
    #[error("{0}")]
    Sink(E),
}

/// Imports everything the source holds.
///
/// # Errors
///
/// When the source cannot be read or the sink refuses a batch.
pub fn run<S: Sink>(
    source: &mut Source,
    sink: &mut S,
    limits: &Limits,
    on_progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Counts, RunError<S::Error>> {
    let mut counts = Counts::default();
    let mut batch = Batch::default();
    while let Some(found) = source.next() {
        let found = found?;
        let place =
            |file: Option<&str>| SkipPlace { file: file.map(str::to_owned), line: found.line };
        let item = match found.entry {
            Entry::Skip(reason) => {
                counts.skip(reason, place(found.file.as_deref()));
                continue;
            }
            Entry::Item(item) => item,
        };
        if let Some(reason) = over_limit(&item, limits) {
            counts.skip(reason, place(found.file.as_deref()));
            continue;
        }
        if !batch.has_room(&item, limits) {
            counts.count(sink.add(batch.take()).map_err(RunError::Sink)?);
            on_progress(&Progress {
                counts: &counts,
                bytes_done: source.bytes_read(),
                bytes_total: source.bytes_total(),
            });
        }
        counts.read += 1;
        batch.push(item);
    }
    if !batch.items.is_empty() {
        counts.count(sink.add(batch.take()).map_err(RunError::Sink)?);
    }
    counts.count(sink.finish().map_err(RunError::Sink)?);
    on_progress(&Progress {
        counts: &counts,
        bytes_done: source.bytes_read(),
        bytes_total: source.bytes_total(),
    });
    Ok(counts)
}

fn over_limit(item: &Item, limits: &Limits) -> Option<SkipReason> {
    if item.text.len() > limits.text_bytes || item.wire_bytes() > limits.item_wire_bytes {
        return Some(SkipReason::TextTooLong);
    }
    let length = |field: &Option<String>| field.as_ref().map_or(0, String::len);
    let fields_fit = item.id.len() <= limits.id_bytes
        && length(&item.role) <= limits.role_bytes
        && length(&item.session) <= limits.session_bytes
        && item.meta.as_ref().is_none_or(|meta| {
            meta.get().len() <= limits.meta_bytes
                && rpc::depth(meta.get().as_bytes()) <= limits.meta_depth
        });
    (!fields_fit).then_some(SkipReason::FieldTooLong)
}

#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    ids: HashSet<String>,
    bytes: usize,
}

impl Batch {
    fn has_room(&self, item: &Item, limits: &Limits) -> bool {
        self.items.is_empty()
            || (self.items.len() < limits.batch_items
                && self.bytes + item.wire_bytes() <= limits.batch_bytes
                && !self.ids.contains(&item.id))
    }

    fn push(&mut self, item: Item) {
        self.bytes += item.wire_bytes();
        self.ids.insert(item.id.clone());
        self.items.push(item);
    }

    fn take(&mut self) -> Vec<Item> {
        self.ids.clear();
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }
}
