//! What a graph walk reads while a builder writes: neighbour lists and the entry point.
//!
//! Invariant: a reader sees, slot by slot, a number that was once stored there; never a torn one.
//! Must not know: distances, or whether a number is in range (the reader's view bounds that).

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{AtomicU32, AtomicU64, Ordering};
use std::fmt;
use std::marker::PhantomData;

/// Marks the end of a list.
const END: u32 = u32::MAX;

/// Up to `N` neighbours of one node, on whole cache lines.
#[repr(align(64))]
pub struct Links<const N: usize> {
    /// Written by the one builder, read by all walks; filled from the front, then `END`.
    /// Relaxed: a number leads nowhere by itself. A walk follows only numbers below the length
    /// that it took (Acquire) from the array of nodes, and a node's own list is published with
    /// that length. A walk beside a change may see old and new neighbours mixed, which is as good
    /// as either list. Model: `neighbours_seen_are_whole`.
    ids: [AtomicU32; N],
}

impl<const N: usize> Links<N> {
    /// A list of the first `N` of these neighbours.
    pub fn new(ids: &[u32]) -> Links<N> {
        let at = |i: usize| ids.get(i).copied().unwrap_or(END);
        Links { ids: std::array::from_fn(|i| AtomicU32::new(at(i))) }
    }

    /// Copies the neighbours out and returns how many there are.
    #[inline]
    pub fn read(&self, out: &mut [u32; N]) -> usize {
        let mut n = 0;
        for slot in &self.ids {
            let id = slot.load(Ordering::Relaxed);
            if id == END {
                break;
            }
            out[n] = id;
            n += 1;
        }
        n
    }

    /// Adds a neighbour at the end; `false` if the list is full. Builder only.
    pub fn append(&self, id: u32) -> bool {
        let free = self.ids.iter().find(|slot| slot.load(Ordering::Relaxed) == END);
        if let Some(slot) = free {
            slot.store(id, Ordering::Relaxed);
        }
        free.is_some()
    }

    /// Puts these neighbours (the first `N`) in the place of the old. Builder only.
    pub fn replace(&self, ids: &[u32]) {
        for (i, slot) in self.ids.iter().enumerate() {
            slot.store(ids.get(i).copied().unwrap_or(END), Ordering::Relaxed);
        }
    }
}

impl<const N: usize> fmt::Debug for Links<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = [0; N];
        let n = self.read(&mut ids);
        f.debug_list().entries(&ids[..n]).finish()
    }
}

/// Where walks begin: a node and its level, changed together.
pub struct EntryPoint<P = ReleaseAcquire> {
    /// `level << 32 | node`, or `u64::MAX` for none. Written by the one builder with `P::STORE`
    /// after the node is published; read with `P::LOAD` before the walk takes the length of the
    /// array of nodes, so that the node is below it. Model: `entry_point_leads_to_a_whole_node`.
    packed: AtomicU64,
    marker: PhantomData<P>,
}

impl EntryPoint {
    /// No entry point yet.
    pub fn new() -> EntryPoint {
        EntryPoint::with_publication()
    }
}

impl Default for EntryPoint {
    fn default() -> Self {
        EntryPoint::new()
    }
}

impl<P: Publication> EntryPoint<P> {
    /// No entry point yet; published as `P` says.
    pub fn with_publication() -> EntryPoint<P> {
        EntryPoint { packed: AtomicU64::new(u64::MAX), marker: PhantomData }
    }

    /// Node and level, or `None` before the first.
    pub fn load(&self) -> Option<(u32, u8)> {
        let packed = self.packed.load(P::LOAD);
        (packed != u64::MAX).then_some((packed as u32, (packed >> 32) as u8))
    }

    /// Moves the entry point. Builder only, after the node was published.
    pub fn store(&self, node: u32, level: u8) {
        self.packed.store(u64::from(level) << 32 | u64::from(node), P::STORE);
    }
}

impl<P> fmt::Debug for EntryPoint<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryPoint").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn lists_fill_from_the_front_and_shrink() {
        let links = Links::<4>::new(&[5, 6]);
        let mut out = [0; 4];
        assert!(links.append(7) && links.append(8));
        assert!(!links.append(9), "full");
        assert_eq!((links.read(&mut out), out), (4, [5, 6, 7, 8]));
        links.replace(&[1]);
        assert_eq!((links.read(&mut out), out[0]), (1, 1));
    }

    #[test]
    fn entry_point_keeps_node_and_level() {
        let entry = EntryPoint::new();
        assert_eq!(entry.load(), None);
        entry.store(0x7fff_fffe, 9);
        assert_eq!(entry.load(), Some((0x7fff_fffe, 9)));
    }
}
