//! Append-only storage in chunks of doubling size: the core of [`AppendVec`](super::AppendVec) and
//! [`RowStore`](super::RowStore).
//!
//! Invariant: items below the published length are initialised, are never written again through
//! this type, and never move. Must not know: what an item means.
//!
//! Chunk `c` holds `BASE << c` items, so an item's place follows from its number alone and the
//! directory has a fixed size. A chunk is reserved uninitialised: a page of it costs memory only
//! when it is written, so doubling wastes addresses, not memory.

use super::publication::Publication;
#[cfg(loom)]
use super::shim::UnsafeCell;
use super::shim::{AtomicPtr, AtomicU32, Mutex, Ordering};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ptr;

/// Items in the first chunk. Loom has only a handful of them to look at.
const BASE: u32 = if cfg!(loom) { 1 } else { 16 };
/// Chunks in the directory: enough for [`MAX_ITEMS`].
const CHUNKS: usize = if cfg!(loom) { 3 } else { 27 };
/// The most items that fit: 16 · (2²⁷ − 1), a little under 2³¹.
pub const MAX_ITEMS: u32 = ((BASE as u64 * ((1u64 << CHUNKS) - 1)) & u32::MAX as u64) as u32;

/// A cache line; every chunk starts on one.
const LINE: usize = 64;
/// A huge page on x86-64 and on AArch64 with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;
/// Chunks from here on start on a huge page and ask for huge pages.
const HUGE_FROM: usize = 2 * HUGE_PAGE;

/// Append-only items of `width` values of `T` each.
pub(super) struct Chunks<T, P> {
    /// Written by the one writer (under `writer`), read by all. Relaxed both ways: a reader asks
    /// only for items below a `len` it has loaded, and the pointer was stored before that `len`.
    /// Model: `append_vec_publishes_whole_items`.
    chunks: [AtomicPtr<T>; CHUNKS],
    /// Items that readers may reach. Written by the one writer with `P::STORE` after the item;
    /// read by all with `P::LOAD`. Model: `append_vec_publishes_whole_items`.
    len: AtomicU32,
    /// Values in an item, at least 1.
    width: usize,
    /// Keeps writers one at a time, and their count of the items; readers never touch it. The
    /// count is here too because a writer that loaded `len` would hide readers' loads from loom,
    /// which remembers only the last access of an atomic.
    writer: Mutex<u32>,
    /// Tells loom of each access to an item, which lies in memory that loom cannot see.
    #[cfg(loom)]
    touched: Vec<UnsafeCell<()>>,
    marker: PhantomData<(*mut T, P)>,
}

// SAFETY: it owns its items, like a `Vec<T>`; the raw pointers are private and lead only to them.
unsafe impl<T: Send, P> Send for Chunks<T, P> {}
// SAFETY: shared access hands out `&T` (needs `T: Sync`) and moves items in from any thread (needs
// `T: Send`); writers exclude one another with `writer`, and readers see only published items.
unsafe impl<T: Send + Sync, P> Sync for Chunks<T, P> {}

impl<T, P: Publication> Chunks<T, P> {
    /// Empty storage; allocates nothing.
    pub(super) fn new(width: usize) -> Chunks<T, P> {
        assert!(width > 0, "an item has at least one value");
        assert!(size_of::<T>() > 0, "an item takes room");
        Chunks {
            chunks: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            len: AtomicU32::new(0),
            width,
            writer: Mutex::new(0),
            #[cfg(loom)]
            touched: (0..MAX_ITEMS).map(|_| UnsafeCell::new(())).collect(),
            marker: PhantomData,
        }
    }

    /// Values in an item.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Items that may be read.
    pub(super) fn len(&self) -> u32 {
        self.len.load(P::LOAD)
    }

    /// Appends the item that `write` writes, and returns its number.
    ///
    /// # Safety
    ///
    /// `write` must initialise all `width` values behind its pointer, or not return.
    ///
    /// # Panics
    ///
    /// If [`MAX_ITEMS`] are stored.
    pub(super) unsafe fn push_with(&self, write: impl FnOnce(*mut T)) -> u32 {
        let mut next = self.writer.lock();
        let at = *next;
        assert!(at < MAX_ITEMS, "an append-only store holds at most {MAX_ITEMS} items");
        let (chunk, offset, items) = place(at);
        let mut base = self.chunks[chunk].load(Ordering::Relaxed);
        if base.is_null() {
            base = allocate::<T>(items as usize * self.width);
            self.chunks[chunk].store(base, Ordering::Relaxed);
        }
        // SAFETY: `offset < items`, and the chunk holds `items * width` values.
        let item = unsafe { base.add(offset as usize * self.width) };
        #[cfg(loom)]
        self.touched[at as usize].with_mut(|_| write(item));
        #[cfg(not(loom))]
        write(item);
        *next = at + 1;
        self.len.store(at + 1, P::STORE);
        at
    }

    /// The first value of item `at`.
    ///
    /// # Safety
    ///
    /// `at` must be below a value that this thread got from [`len`](Self::len), or the thread must
    /// otherwise know that the item was published.
    #[inline]
    pub(super) unsafe fn item(&self, at: u32) -> *const T {
        let (chunk, offset, _) = place(at);
        #[cfg(loom)]
        self.touched[at as usize].with(|_| ());
        let base = self.chunks[chunk].load(Ordering::Relaxed);
        // SAFETY: the item is published (caller), so its chunk exists and holds it.
        unsafe { base.add(offset as usize * self.width) }
    }

    /// The longest run of items that lie side by side, from item `at` up to item `to`: its first
    /// value and its number of items.
    ///
    /// # Safety
    ///
    /// As for [`item`](Self::item), for every item below `to`; and `at < to`.
    pub(super) unsafe fn run(&self, at: u32, to: u32) -> (*const T, u32) {
        let (_, offset, items) = place(at);
        let count = (items - offset).min(to - at);
        #[cfg(loom)]
        for i in at..at + count {
            self.touched[i as usize].with(|_| ());
        }
        // SAFETY: `at` is published (caller).
        (unsafe { self.item(at) }, count)
    }

    /// Asks the processor to load item `at`, all lines of it up to 16. Never faults.
    ///
    /// # Safety
    ///
    /// As for [`item`](Self::item).
    #[inline]
    pub(super) unsafe fn prefetch(&self, at: u32) {
        // SAFETY: passed on to the caller.
        let first: *const u8 = unsafe { self.item(at) }.cast();
        let lines = (self.width * size_of::<T>()).div_ceil(LINE).min(16);
        for line in 0..lines {
            prefetch_line(first.wrapping_add(line * LINE));
        }
    }
}

#[inline]
pub(super) fn prefetch_line(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch has no effect a program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: a prefetch has no effect a program can see.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) address,
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = address;
}

impl<T, P> Drop for Chunks<T, P> {
    fn drop(&mut self) {
        // Relaxed throughout: `&mut self` means that every other access has happened before.
        let len = self.len.load(Ordering::Relaxed);
        let mut first = 0;
        for (c, slot) in self.chunks.iter().enumerate() {
            let base = slot.load(Ordering::Relaxed);
            if base.is_null() {
                break;
            }
            let items = BASE << c;
            let filled = len.saturating_sub(first).min(items) as usize * self.width;
            // SAFETY: the first `filled` values of the chunk are initialised, and nobody else
            // reaches them any more.
            unsafe { ptr::drop_in_place(ptr::slice_from_raw_parts_mut(base, filled)) };
            let layout = layout::<T>(items as usize * self.width);
            // SAFETY: allocated in `allocate` with this very layout.
            unsafe { dealloc(base.cast(), layout) };
            first += items;
        }
    }
}

/// Chunk, offset in it, and size of it, of item `at`.
#[inline]
fn place(at: u32) -> (usize, u32, u32) {
    let shifted = at + BASE;
    let chunk = shifted.ilog2() - BASE.ilog2();
    let items = BASE << chunk;
    (chunk as usize, shifted - items, items)
}

fn layout<T>(values: usize) -> Layout {
    let bytes = values.checked_mul(size_of::<T>()).expect("a chunk is below the address space");
    let align = if bytes >= HUGE_FROM { HUGE_PAGE } else { LINE };
    Layout::from_size_align(bytes, align.max(align_of::<T>()))
        .expect("alignments are powers of two and a chunk is below the address space")
}

fn allocate<T>(values: usize) -> *mut T {
    let layout = layout::<T>(values);
    // SAFETY: `width` and the size of `T` are above zero, so the layout is too.
    let base = unsafe { alloc(layout) };
    if base.is_null() {
        handle_alloc_error(layout);
    }
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    if layout.size() >= HUGE_FROM {
        // A walk jumps about: huge pages save it most misses of the address cache. A kernel that
        // does not offer them says so, and the chunk works as well without.
        // SAFETY: the range was just allocated, and this advice changes none of its contents.
        let _ = unsafe {
            rustix::mm::madvise(base.cast(), layout.size(), rustix::mm::Advice::LinuxHugepage)
        };
    }
    base.cast()
}
