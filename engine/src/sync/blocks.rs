//! Blocks of bytes that are replaced whole while they are read.
//!
//! A number leads to a place in an append-only table, the place to a slot in append-only memory. Who changes a block fills
//! another slot and points the place to it; the former slot is retired, and filled again once no reader can have it
//! ([`Epochs`]).
//!
//! Invariant: what a pinned reader gets is one block, whole, and stays as it is until the reader goes. Readers take no lock.
//! Must not know: what is in a block.

use super::append_vec::{AppendReader, AppendVec};
use super::chunks::{Chunks, prefetch_line};
use super::epochs::{Epochs, Pinned};
use super::publication::{Publication, ReleaseAcquire};
#[cfg(loom)]
use super::shim::UnsafeCell;
use super::shim::{AtomicU32, Mutex};
use std::collections::VecDeque;
use std::ops::Range;
use std::{fmt, mem, ptr, slice};

/// Bytes in a line.
const LINE: usize = 64;

/// The place of a number that has no block. No slot has it as its number.
const VACANT: u32 = u32::MAX;

/// What slots are made of, so that each starts on a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; LINE],
}

/// Blocks of one size, found by numbers from 0 on. Empty, it is less than 800 bytes and no allocation.
///
/// Several threads may fill and publish at once; who replaces one block from what it held keeps others from doing the same.
pub struct BlockStore<P: Publication = ReleaseAcquire> {
    /// The slot of each block. Stored with `P::STORE` after the slot was filled, by who replaces the block (under `spare`);
    /// loaded with `P::LOAD` by readers, who have pinned before. A new place is published by the table. Models:
    /// `a_block_read_is_whole`, `a_new_block_is_published_whole`.
    places: AppendVec<AtomicU32, P>,
    /// All slots there ever were.
    slots: Chunks<Line, P>,
    /// What keeps slots that readers may have from being reused.
    epochs: Epochs<P>,
    /// Bytes in a block; a slot may be longer by less than a line.
    block_bytes: usize,
    /// The slots in which no block is. Held for a few moments by those who write; readers never touch it.
    spare: Mutex<Spare>,
    /// Tells loom of each access to a slot, which lies in memory that loom cannot see, and is written again, unlike what
    /// `slots` watches.
    #[cfg(loom)]
    touched: Vec<UnsafeCell<()>>,
}

/// Slots that no place leads to and no [`Slot`] owns.
#[derive(Default)]
struct Spare {
    /// Nobody can have these; the last one in is the first one out, as it is warm.
    free: Vec<u32>,
    /// Readers may have these: the epoch in which each was unlinked, in order, and the slot.
    retired: VecDeque<(u64, u32)>,
}

// SAFETY: its parts are `Sync`, but for what shows loom the accesses; a slot is written only through the one `Slot` that owns
// it, and read only by those who found it through a place, whom `epochs` keeps apart from the next `Slot` of the same number.
unsafe impl<P: Publication> Sync for BlockStore<P> {}
// SAFETY: its parts are `Send`; the memory of the slots goes where the store goes.
unsafe impl<P: Publication> Send for BlockStore<P> {}

impl BlockStore {
    /// No blocks of `block_bytes` bytes each; allocates nothing.
    ///
    /// # Panics
    ///
    /// If `block_bytes` is 0.
    pub fn new(block_bytes: usize) -> BlockStore {
        BlockStore::with_publication(block_bytes)
    }
}

impl<P: Publication> BlockStore<P> {
    /// No blocks; published as `P` says.
    ///
    /// # Panics
    ///
    /// If `block_bytes` is 0.
    pub fn with_publication(block_bytes: usize) -> BlockStore<P> {
        BlockStore {
            places: AppendVec::with_publication(),
            slots: Chunks::new(block_bytes.div_ceil(LINE)),
            epochs: Epochs::with_publication(),
            block_bytes,
            spare: Mutex::new(Spare::default()),
            #[cfg(loom)]
            touched: (0..super::MAX_ITEMS).map(|_| UnsafeCell::new(())).collect(),
        }
    }

    /// Bytes in a block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Blocks that can be read.
    pub fn len(&self) -> u32 {
        self.places.len()
    }

    /// Whether there is no block yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins to read: the blocks that are there now, each as it is when it is looked for. Slots that are replaced meanwhile
    /// pile up, so a reader should go soon.
    #[inline]
    pub fn pin(&self) -> PinnedBlocks<'_, P> {
        let guard = self.epochs.pin();
        // The length after pinning, so that the view is no older than what it keeps.
        PinnedBlocks { places: self.places.reader(), store: self, _guard: guard }
    }

    /// A slot to fill: one that nobody can have, or a new one. Never waits for readers.
    ///
    /// # Panics
    ///
    /// If there are [`MAX_ITEMS`](super::MAX_ITEMS) slots, and all may be read.
    pub fn reserve(&self) -> Slot<'_, P> {
        let mut spare = self.spare.lock();
        if spare.free.is_empty() {
            self.reclaim_retired(&mut spare);
        }
        let free = spare.free.pop();
        // Before a new slot is made, whose memory may yet have to be found.
        drop(spare);
        Slot { store: self, index: free.unwrap_or_else(|| self.append_slot()) }
    }

    /// Publishes the slot's block under the next number, and returns that.
    ///
    /// # Panics
    ///
    /// If the slot is of another store, or there are [`MAX_ITEMS`](super::MAX_ITEMS) blocks.
    pub fn push(&self, slot: Slot<'_, P>) -> u32 {
        self.places.push(AtomicU32::new(self.take(slot)))
    }

    /// Gives out the next number without a block, and returns it.
    ///
    /// # Panics
    ///
    /// If there are [`MAX_ITEMS`](super::MAX_ITEMS) numbers.
    pub fn push_vacant(&self) -> u32 {
        self.places.push(AtomicU32::new(VACANT))
    }

    /// Puts the slot's block in the place of another, or of none. Readers that are pinned keep what they have got.
    ///
    /// # Panics
    ///
    /// If the slot is of another store, or this number was not given out.
    pub fn replace(&self, number: u32, slot: Slot<'_, P>) {
        self.swap(number, self.take(slot));
    }

    /// Takes a block away; its number has none from now on. Readers that are pinned keep what they have got.
    ///
    /// # Panics
    ///
    /// If this number was not given out.
    pub fn vacate(&self, number: u32) {
        self.swap(number, VACANT);
    }

    /// Points a place elsewhere, and retires the slot that it led to.
    fn swap(&self, number: u32, new: u32) {
        let place = self.places.get(number).expect("a number that was given out");
        let mut spare = self.spare.lock();
        // Not a load and a store: the load would hide readers' from loom, which remembers only the last access.
        let former = place.swap(new, P::STORE);
        if former == VACANT {
            return;
        }
        // The epoch after the unlinking, and under the lock, so that the queue is in the order of epochs.
        let unlinked = self.epochs.now();
        spare.retired.push_back((unlinked, former));
    }

    /// Frees what was retired and nobody can have any more. [`reserve`](Self::reserve) does this by itself when it has to.
    pub fn reclaim(&self) {
        self.reclaim_retired(&mut self.spare.lock());
    }

    /// Slots that were replaced and not freed yet.
    pub fn retired(&self) -> usize {
        self.spare.lock().retired.len()
    }

    /// Slots in all: of blocks, retired, free, or being filled. Their memory stays until the store goes.
    pub fn slots(&self) -> u32 {
        self.slots.len()
    }

    /// Frees retired slots, oldest first, and advances the epoch while that frees more. With nobody pinned, all of them.
    fn reclaim_retired(&self, spare: &mut Spare) {
        while let Some(&(unlinked, slot)) = spare.retired.front() {
            if self.epochs.is_past(unlinked) {
                spare.retired.pop_front();
                spare.free.push(slot);
            } else if !self.epochs.try_advance() {
                return;
            }
        }
    }

    /// A new slot of zeros.
    fn append_slot(&self) -> u32 {
        // SAFETY: the closure writes all lines of the slot, and zeros are lines.
        unsafe { self.slots.push_with(|to| to.write_bytes(0, self.slots.width())) }
    }

    /// Takes the slot from its owner, to be published.
    fn take(&self, slot: Slot<'_, P>) -> u32 {
        assert!(ptr::eq(slot.store, self), "a slot of this store");
        let index = slot.index;
        mem::forget(slot);
        index
    }
}

impl<P: Publication> fmt::Debug for BlockStore<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockStore").field("block_bytes", &self.block_bytes).finish_non_exhaustive()
    }
}

/// A block to be: filled by its owner, then published by [`BlockStore::push`] or [`BlockStore::replace`]. Else it becomes free.
pub struct Slot<'a, P: Publication = ReleaseAcquire> {
    store: &'a BlockStore<P>,
    /// Of a slot that this alone owns.
    index: u32,
}

impl<P: Publication> Slot<'_, P> {
    /// The bytes of the block; at first they are those of some former block, or zeros.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        #[cfg(loom)]
        self.store.touched[self.index as usize].with_mut(|_| ());
        // SAFETY: `append_slot` published the slot, and the index came here through a lock or from that call.
        let first = unsafe { self.store.slots.item(self.index) }.cast_mut();
        // SAFETY: a slot has at least `block_bytes` bytes, all initialised since it was appended. Nobody else reaches it: no
        // place leads to it, no other `Slot` owns it, and readers who had it have gone, as `epochs` said before it was freed.
        unsafe { slice::from_raw_parts_mut(first.cast(), self.store.block_bytes) }
    }
}

impl<P: Publication> Drop for Slot<'_, P> {
    fn drop(&mut self) {
        self.store.spare.lock().free.push(self.index);
    }
}

impl<P: Publication> fmt::Debug for Slot<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A reader of a [`BlockStore`]: as many blocks as there were when it began, each as it is when it is looked for.
pub struct PinnedBlocks<'a, P: Publication = ReleaseAcquire> {
    places: AppendReader<'a, AtomicU32, P>,
    store: &'a BlockStore<P>,
    /// Lets go of the slots when the reader goes.
    _guard: Pinned<'a, P>,
}

impl<P: Publication> PinnedBlocks<'_, P> {
    /// Blocks in view.
    pub fn len(&self) -> u32 {
        self.places.len()
    }

    /// Whether no block is in view.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The block of this number, or `None` if it is not in view or there is none. Asked again, it may be a newer one; what was got stays.
    #[inline]
    pub fn get(&self, number: u32) -> Option<&[u8]> {
        let slot = self.places.get(number)?.load(P::LOAD);
        if slot == VACANT {
            return None;
        }
        #[cfg(loom)]
        self.store.touched[slot as usize].with(|_| ());
        // SAFETY: the slot was appended before it came to this place, which was loaded with acquire.
        let first = unsafe { self.store.slots.item(slot) };
        // SAFETY: a slot has at least `block_bytes` bytes, which were written before it came to this place. It is not written
        // again while this thread is pinned, which outlives the slice, and its memory stays until the store goes.
        Some(unsafe { slice::from_raw_parts(first.cast(), self.store.block_bytes) })
    }

    /// Asks the processor to load what [`get`](Self::get) reads first. Does nothing for numbers out of view.
    #[inline]
    pub fn prefetch_place(&self, number: u32) {
        self.places.prefetch(number);
    }

    /// Asks the processor to load these lines of 64 bytes of a block; it reads the place for it. Does nothing for numbers out
    /// of view and lines that a block does not have.
    #[inline]
    pub fn prefetch(&self, number: u32, lines: Range<usize>) {
        let Some(place) = self.places.get(number) else {
            return;
        };
        let slot = place.load(P::LOAD);
        if slot == VACANT {
            return;
        }
        // SAFETY: as in `get`.
        let first: *const Line = unsafe { self.store.slots.item(slot) };
        for line in lines.start..lines.end.min(self.store.slots.width()) {
            prefetch_line(first.wrapping_add(line).cast());
        }
    }
}

impl<P: Publication> fmt::Debug for PinnedBlocks<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBlocks").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    /// A slot full of `value`.
    fn filled(store: &BlockStore, value: u8) -> Slot<'_> {
        let mut slot = store.reserve();
        slot.bytes_mut().fill(value);
        slot
    }

    fn holds(block: Option<&[u8]>, bytes: usize, value: u8) -> bool {
        block.is_some_and(|block| block.len() == bytes && block.iter().all(|&byte| byte == value))
    }

    #[test]
    fn an_empty_store_is_small() {
        assert!(size_of::<BlockStore>() <= 768, "{} bytes", size_of::<BlockStore>());
        let store = BlockStore::new(1);
        assert!(store.is_empty() && store.pin().is_empty() && store.pin().get(0).is_none());
        assert_eq!((store.slots(), store.retired(), store.block_bytes()), (0, 0, 1));
        store.reclaim();
        store.pin().prefetch_place(0);
        store.pin().prefetch(0, 0..9);
    }

    #[test]
    fn blocks_keep_their_numbers_through_many_replaces() {
        let store = BlockStore::new(100);
        for number in 0..200u32 {
            assert_eq!(store.push(filled(&store, number as u8)), number);
        }
        for round in 1..50u32 {
            for number in (0..200).filter(|number| number % round == 0) {
                store.replace(number, filled(&store, (number + round) as u8));
            }
        }
        let view = store.pin();
        for number in 0..200 {
            let round = (1..50).rev().find(|round| number % round == 0).unwrap_or(0);
            view.prefetch_place(number);
            view.prefetch(number, 0..usize::MAX);
            let block = view.get(number);
            assert!(holds(block, 100, (number + round) as u8), "{number}: {block:?}");
            assert_eq!(block.map(|block| block.as_ptr().addr() % LINE), Some(0));
        }
        assert_eq!((view.len(), view.get(200)), (200, None));
    }

    #[test]
    fn a_view_does_not_grow() {
        let store = BlockStore::new(8);
        let view = store.pin();
        assert_eq!(store.push(filled(&store, 1)), 0);
        assert_eq!((view.get(0), store.len()), (None, 1));
        assert_eq!(store.pin().get(0), Some(&[1; 8][..]));
    }

    #[test]
    fn slots_are_reused_where_nobody_reads() {
        let store = BlockStore::new(64);
        store.push(filled(&store, 0));
        for i in 0..10_000u32 {
            store.replace(0, filled(&store, i as u8));
            assert!(holds(store.pin().get(0), 64, i as u8));
        }
        assert!(store.slots() <= 3, "{} slots", store.slots());
    }

    #[test]
    fn what_a_reader_has_got_stays_until_it_goes() {
        let store = BlockStore::new(64);
        store.push(filled(&store, 7));
        let reader = store.pin();
        let got = reader.get(0);
        for i in 0..1_000u32 {
            store.replace(0, filled(&store, i as u8 | 128));
        }
        assert!(holds(got, 64, 7));
        assert!(holds(reader.get(0), 64, 999u32 as u8 | 128), "looked for again, it is the newest");
        assert_eq!((store.slots(), store.retired()), (1_001, 1_000));
        drop(reader);
        store.reclaim();
        assert_eq!(store.retired(), 0);
        for i in 0..1_000u32 {
            store.replace(0, filled(&store, i as u8));
        }
        assert_eq!(store.slots(), 1_001);
    }

    #[test]
    fn a_slot_that_is_dropped_is_the_next_one() {
        let store = BlockStore::new(10);
        drop(filled(&store, 3));
        assert_eq!((store.slots(), store.retired(), store.len()), (1, 0, 0));
        let mut slot = store.reserve();
        assert_eq!(slot.bytes_mut(), [3; 10]);
        assert_eq!((store.push(slot), store.slots()), (0, 1));
    }

    #[test]
    #[should_panic(expected = "a slot of this store")]
    fn a_slot_of_another_store_is_refused() {
        let (one, other) = (BlockStore::new(64), BlockStore::new(64));
        one.push(other.reserve());
    }

    #[test]
    fn readers_beside_a_writer_see_blocks_of_one_piece() {
        const BLOCKS: u32 = 16;
        const BYTES: usize = 320;
        let store = BlockStore::new(BYTES);
        for _ in 0..BLOCKS {
            store.push(filled(&store, 0));
        }
        let done = AtomicBool::new(false);
        let read = || {
            let mut reads = 0u32;
            while !done.load(Ordering::Acquire) {
                let view = store.pin();
                let mut got = [&[][..]; BLOCKS as usize];
                for (number, block) in (0..BLOCKS).zip(&mut got) {
                    *block = view.get(number).expect("pushed");
                }
                for block in got {
                    assert!(holds(Some(block), BYTES, block[0]), "{block:?}");
                }
                reads += 1;
            }
            reads
        };
        thread::scope(|scope| {
            let readers = [scope.spawn(read), scope.spawn(read)];
            let end = Instant::now() + Duration::from_millis(500);
            for i in 0u32.. {
                store.replace(i % BLOCKS, filled(&store, (i / 3) as u8));
                if i % 64 == 0 && Instant::now() > end {
                    break;
                }
                // A reader that the kernel has stopped holds all of them back.
                while store.retired() > 4_096 && Instant::now() < end {
                    thread::yield_now();
                    store.reclaim();
                }
            }
            done.store(true, Ordering::Release);
            for reader in readers {
                assert!(reader.join().is_ok_and(|reads| reads > 0));
            }
        });
        store.reclaim();
        assert_eq!(store.retired(), 0);
        assert!(store.slots() < 4_500, "{} slots", store.slots());
    }
}
