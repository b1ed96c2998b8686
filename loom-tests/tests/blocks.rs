//! The loom models of blocks that are replaced while they are read, and of the epochs that say when a slot is reused. Empty
//! without `--cfg loom`.
//!
//! Invariant: a model passes with `ReleaseAcquire` and fails with every mutant that weakens an ordering it rests on or reuses
//! too early. Must not know: how the types are built.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Note, holds, holds_within_bounds, is_caught_alone};
use flashbulb_engine::sync::shim::{Arc, AtomicU32, Ordering};
use flashbulb_engine::sync::{
    BlindAdvanceMutant, BlockStore, Epochs, HastyReuseMutant, MuteAdvanceMutant, PinnedBlocks,
    Publication, RelaxedLoadMutant, RelaxedStoreMutant, ReleaseAcquire, Slot, Watermark,
};
use loom::cell::UnsafeCell;
use loom::thread;

/// A mutant that lets a thread reach what another is still writing.
fn races(test: &str, model: impl Fn() + Sync + Send + 'static) {
    is_caught_alone(test, "Causality violation", model);
}

/// Two notes that hold versions in turn, and a link to the newest, which is sound by itself, so that all that is weakened is
/// the epochs' own.
struct Versions<P: Publication> {
    epochs: Epochs<P>,
    newest: AtomicU32,
    notes: [Note; 2],
}

impl<P: Publication> Versions<P> {
    fn new() -> Arc<Versions<P>> {
        let notes = [0, 9].map(|value| Note(UnsafeCell::new(value)));
        let (epochs, newest) = (Epochs::with_publication(), AtomicU32::new(0));
        Arc::new(Versions { epochs, newest, notes })
    }

    /// Reads the newest version, while pinned.
    fn read(&self) {
        let pinned = self.epochs.pin();
        let newest = self.newest.load(Ordering::Acquire);
        // SAFETY: a note that was found is not written while this is pinned; loom checks.
        let value = self.notes[newest as usize & 1].0.with(|note| unsafe { *note });
        assert_eq!(value, newest, "a note was written under its reader");
        drop(pinned);
    }

    /// Publishes versions up to `last`, each in the note of the one before the one before, while no reader keeps it from that.
    /// Returns how many there are.
    fn write(&self, last: u32) -> u32 {
        // When the version was unlinked whose note is the next one's: the first has a note that nobody ever found.
        let mut unlinked = None;
        for version in 1..=last {
            while unlinked.is_some_and(|epoch| !self.epochs.is_past(epoch)) {
                if !self.epochs.try_advance() {
                    return version - 1;
                }
            }
            // SAFETY: nobody finds it any more, and the epochs say that nobody has it; loom checks.
            self.notes[version as usize & 1].0.with_mut(|note| unsafe { *note = version });
            self.newest.store(version, Ordering::Release);
            unlinked = Some(self.epochs.now());
        }
        last
    }
}

/// Readers, which pin so many times each, beside a writer.
fn epochs<P: Publication>(readers: usize, reads: usize, versions: u32) {
    let shared = Versions::<P>::new();
    let readers: Vec<_> = (0..readers)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || (0..reads).for_each(|_| shared.read()))
        })
        .collect();
    shared.write(versions);
    for reader in readers {
        reader.join().unwrap();
    }
    assert!(shared.epochs.try_advance() && shared.epochs.try_advance(), "nobody is pinned");
}

#[test]
fn what_is_pinned_is_not_reused() {
    holds(|| epochs::<ReleaseAcquire>(1, 1, 3));
}

#[test]
fn what_is_pinned_again_is_not_reused() {
    holds(|| epochs::<ReleaseAcquire>(1, 2, 2));
}

#[test]
fn what_several_have_pinned_is_not_reused() {
    holds_within_bounds(|| epochs::<ReleaseAcquire>(2, 1, 2));
}

#[test]
fn an_unpin_without_release_is_caught() {
    races("an_unpin_without_release_is_caught", || epochs::<RelaxedStoreMutant>(1, 1, 2));
}

#[test]
fn a_pin_without_acquire_is_caught() {
    races("a_pin_without_acquire_is_caught", || epochs::<RelaxedLoadMutant>(1, 1, 2));
}

#[test]
fn an_advance_without_acquire_is_caught() {
    races("an_advance_without_acquire_is_caught", || epochs::<BlindAdvanceMutant>(1, 1, 2));
}

#[test]
fn an_advance_without_release_is_caught() {
    races("an_advance_without_release_is_caught", || epochs::<MuteAdvanceMutant>(1, 1, 2));
}

#[test]
fn a_reuse_after_one_epoch_is_caught() {
    races("a_reuse_after_one_epoch_is_caught", || epochs::<HastyReuseMutant>(1, 1, 2));
}

/// A slot full of `value`.
fn filled<P: Publication>(store: &BlockStore<P>, value: u8) -> Slot<'_, P> {
    let mut slot = store.reserve();
    slot.bytes_mut().fill(value);
    slot
}

/// The value that the block is full of.
fn value<P: Publication>(view: &PinnedBlocks<'_, P>, number: u32) -> Option<u8> {
    let block = view.get(number)?;
    assert!(block.iter().all(|&byte| byte == block[0]), "a torn block: {block:?}");
    Some(block[0])
}

/// A store with one block full of 1.
fn one_block<P: Publication>() -> Arc<BlockStore<P>> {
    let store = Arc::new(BlockStore::<P>::with_publication(2));
    assert_eq!(store.push(filled(&store, 1)), 0);
    store
}

/// A reader beside a writer that replaces its block once: it sees the one or the other, whole. Nothing is reused, so what is
/// weakened is the place.
fn replaced<P: Publication>() {
    let store = one_block::<P>();
    let writer = {
        let store = Arc::clone(&store);
        thread::spawn(move || store.replace(0, filled(&store, 2)))
    };
    let view = store.pin();
    assert!(matches!(value(&view, 0), Some(1 | 2)));
    drop(view);
    writer.join().unwrap();
    assert_eq!(value(&store.pin(), 0), Some(2));
}

#[test]
fn a_block_read_is_whole() {
    holds(replaced::<ReleaseAcquire>);
}

#[test]
fn a_replace_without_release_is_caught() {
    races("a_replace_without_release_is_caught", replaced::<RelaxedStoreMutant>);
}

#[test]
fn a_get_without_acquire_is_caught() {
    races("a_get_without_acquire_is_caught", replaced::<RelaxedLoadMutant>);
}

/// A reader beside a writer that replaces its block twice, so that the first slot is filled again where the reader lets it:
/// what the reader has got stays.
fn reused<P: Publication>() {
    let store = one_block::<P>();
    let reader = {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            let view = store.pin();
            let got = view.get(0).unwrap();
            let first = got[0];
            let later = value(&view, 0).unwrap();
            assert!(first <= later && later <= 3, "{first}, then {later}");
            assert_eq!(got, [first; 2], "a block was filled under its reader");
        })
    };
    store.replace(0, filled(&store, 2));
    store.replace(0, filled(&store, 3));
    reader.join().unwrap();
    store.reclaim();
    assert_eq!((value(&store.pin(), 0), store.retired()), (Some(3), 0));
    assert!(matches!(store.slots(), 2 | 3), "the first slot, or one more where a reader had it");
}

#[test]
fn a_block_stays_while_it_is_read() {
    holds(reused::<ReleaseAcquire>);
}

#[test]
fn a_block_reused_without_release_is_caught() {
    races("a_block_reused_without_release_is_caught", reused::<RelaxedStoreMutant>);
}

#[test]
fn a_block_reused_without_acquire_is_caught() {
    races("a_block_reused_without_acquire_is_caught", reused::<RelaxedLoadMutant>);
}

#[test]
fn a_block_reused_by_a_blind_advance_is_caught() {
    races("a_block_reused_by_a_blind_advance_is_caught", reused::<BlindAdvanceMutant>);
}

#[test]
fn a_block_reused_by_a_mute_advance_is_caught() {
    races("a_block_reused_by_a_mute_advance_is_caught", reused::<MuteAdvanceMutant>);
}

#[test]
fn a_block_reused_too_early_is_caught() {
    races("a_block_reused_too_early_is_caught", reused::<HastyReuseMutant>);
}

/// Two pushes beside a reader: the blocks in view are there, whole.
fn pushed<P: Publication>() {
    let store = Arc::new(BlockStore::<P>::with_publication(2));
    let writer = {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            assert_eq!(store.push(filled(&store, 1)), 0);
            assert_eq!(store.push(filled(&store, 2)), 1);
        })
    };
    let view = store.pin();
    for number in 0..view.len() {
        assert_eq!(value(&view, number), Some(number as u8 + 1));
    }
    assert_eq!(value(&view, view.len()), None);
    drop(view);
    writer.join().unwrap();
    assert_eq!(store.len(), 2);
}

#[test]
fn a_new_block_is_published_whole() {
    holds(pushed::<ReleaseAcquire>);
}

#[test]
fn a_push_without_release_is_caught() {
    races("a_push_without_release_is_caught", pushed::<RelaxedStoreMutant>);
}

#[test]
fn a_view_without_acquire_is_caught() {
    races("a_view_without_acquire_is_caught", pushed::<RelaxedLoadMutant>);
}

/// Two writers fill at once, one of them after it let a slot go: no slot has two owners, and each block is its writer's. What
/// this rests on is the lock alone, so there is no mutant.
#[test]
fn writers_have_slots_of_their_own() {
    holds(|| {
        let store = Arc::new(BlockStore::<ReleaseAcquire>::new(2));
        drop(filled(&store, 9));
        let other = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                drop(filled(&store, 8));
                store.push(filled(&store, 1))
            })
        };
        let mine = store.push(filled(&store, 2));
        let theirs = other.join().unwrap();
        let view = store.pin();
        assert_eq!((value(&view, mine), value(&view, theirs)), (Some(2), Some(1)));
        assert!(mine != theirs && store.slots() == 2);
    });
}

/// Two writers replace one block at once: the later one stays, and each former slot is retired once.
#[test]
fn writers_replace_one_at_a_time() {
    holds(|| {
        let store = one_block::<ReleaseAcquire>();
        let other = {
            let store = Arc::clone(&store);
            thread::spawn(move || store.replace(0, filled(&store, 2)))
        };
        store.replace(0, filled(&store, 3));
        other.join().unwrap();
        assert!(matches!(value(&store.pin(), 0), Some(2 | 3)));
        store.reclaim();
        let free = store.slots() - 1;
        let spare: Vec<_> = (0..free).map(|_| store.reserve()).collect();
        assert_eq!((store.slots(), spare.len() as u32, store.retired()), (free + 1, free, 0));
    });
}

/// A builder adds node 1, links node 0 to it, and then says that it is covered, beside a search: what the search takes as covered
/// it finds by the link, and what it does not find it scans. The blocks are sound by themselves, so that all that is weakened is
/// the mark.
fn covered<P: Publication>() {
    let shared =
        Arc::new((BlockStore::<ReleaseAcquire>::new(2), Watermark::<P>::with_publication()));
    let (blocks, covered) = &*shared;
    blocks.push(filled(blocks, 0));
    covered.store(1);
    let builder = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (blocks, covered) = &*shared;
            blocks.push(filled(blocks, 0));
            blocks.replace(0, filled(blocks, 1));
            covered.store(2);
        })
    };
    let mark = covered.load();
    let view = blocks.pin();
    if mark == 2 {
        assert_eq!(view.len(), 2, "a covered node is not in view");
        assert_eq!(value(&view, 0), Some(1), "nothing leads to a covered node");
    }
    drop(view);
    builder.join().unwrap();
}

#[test]
fn a_node_is_scanned_until_it_is_linked() {
    holds(covered::<ReleaseAcquire>);
}

#[test]
fn a_mark_without_release_is_caught() {
    is_caught_alone(
        "a_mark_without_release_is_caught",
        "covered node",
        covered::<RelaxedStoreMutant>,
    );
}

#[test]
fn a_mark_without_acquire_is_caught() {
    is_caught_alone(
        "a_mark_without_acquire_is_caught",
        "covered node",
        covered::<RelaxedLoadMutant>,
    );
}

/// A repair takes a dead node's block away, after the last block that leads to it was replaced, and its slot is used for another
/// one, beside a search that may have found it: what the search holds stays as it is.
fn vacated<P: Publication>() {
    let blocks = Arc::new(BlockStore::<P>::with_publication(2));
    blocks.push(filled(&blocks, 1));
    blocks.push(filled(&blocks, 7));
    let builder = {
        let blocks = Arc::clone(&blocks);
        thread::spawn(move || {
            blocks.vacate(1);
            blocks.push(filled(&blocks, 8));
        })
    };
    let view = blocks.pin();
    assert!(matches!(value(&view, 1), None | Some(7)));
    drop(view);
    builder.join().unwrap();
}

#[test]
fn a_vacated_block_stays_while_it_is_read() {
    holds(vacated::<ReleaseAcquire>);
}

#[test]
fn a_vacated_block_that_is_reused_at_once_is_caught() {
    races("a_vacated_block_that_is_reused_at_once_is_caught", vacated::<HastyReuseMutant>);
}
