//! A node's block: its neighbours' numbers, and a sketch of them around the node.
//!
//! Invariant: a block is written once and then only read; slots without a neighbour are marked, and estimate to nothing. Must not
//! know: where blocks lie, or who reads them.
//!
//! Layout: 32 numbers (u32, little-endian, `u32::MAX` in empty slots), then the sketch as `flashbulb_kernels` lays it out: 1,792
//! bytes at 384 dimensions. All that a step of a walk needs but the node's own codes lies side by side (Gou et al., *SymphonyQG*,
//! SIGMOD 2025); those lie with all vectors' codes, for scans.

use super::vectors::VectorsView;
use flashbulb_kernels::{Coded, Kernels, SIGN_ROWS, clear_sketch, sketch_bytes};

/// Most neighbours of a node.
pub(super) const DEGREE: usize = SIGN_ROWS;
/// Bytes of the numbers.
pub(super) const IDS_BYTES: usize = 4 * DEGREE;
/// Marks an empty slot.
pub(super) const NONE: u32 = u32::MAX;

/// Bytes of a block of vectors with `width` codes.
pub(super) const fn block_bytes(width: usize) -> usize {
    IDS_BYTES + sketch_bytes(width)
}

/// A block that is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    ids: &'a [[u8; 4]],
    pub(super) sketch: &'a [u8],
}

impl<'a> Block<'a> {
    /// Takes bytes for a block; they are at least [`block_bytes`] many.
    #[inline]
    pub(super) fn new(bytes: &'a [u8], width: usize) -> Block<'a> {
        let (ids, sketch) = bytes.split_at(IDS_BYTES);
        Block { ids: ids.as_chunks().0, sketch: &sketch[..sketch_bytes(width)] }
    }

    /// The number in a slot, or [`NONE`].
    #[inline]
    pub(super) fn id(&self, slot: usize) -> u32 {
        u32::from_le_bytes(self.ids[slot])
    }

    /// The neighbours, in the order of their slots.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + 'a {
        ids_of(self.ids)
    }

    /// The numbers alone, as bytes.
    pub(super) fn id_bytes(&self) -> &'a [u8] {
        self.ids.as_flattened()
    }
}

/// The neighbours among these numbers.
pub(super) fn ids_of(ids: &[[u8; 4]]) -> impl Iterator<Item = u32> + '_ {
    ids.iter().map(|id| u32::from_le_bytes(*id)).filter(|id| *id != NONE)
}

/// What sketches are drawn from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pen<'a> {
    pub(super) kernels: Kernels,
    pub(super) vectors: VectorsView<'a>,
}

impl Pen<'_> {
    /// Writes a whole block of up to 32 neighbours; without a centre they are sketched around the origin.
    pub(super) fn draw(&self, centre: Option<u32>, neighbours: &[u32], block: &mut [u8]) {
        for slot in 0..DEGREE {
            match neighbours.get(slot) {
                Some(id) => self.put(centre, slot, *id, block),
                None => self.clear(slot, block),
            }
        }
    }

    /// Puts a neighbour into a slot.
    pub(super) fn put(&self, centre: Option<u32>, slot: usize, neighbour: u32, block: &mut [u8]) {
        let Some(point) = self.vectors.coded(neighbour) else {
            return self.clear(slot, block);
        };
        // In steps of nothing, all codes are zero.
        let centre = centre
            .and_then(|node| self.vectors.coded(node))
            .unwrap_or(Coded { scale: 0.0, ..point });
        block[4 * slot..4 * slot + 4].copy_from_slice(&neighbour.to_le_bytes());
        self.kernels.sketch(slot, centre, point, 0.0, self.sketch_of(block));
    }

    fn clear(&self, slot: usize, block: &mut [u8]) {
        block[4 * slot..4 * slot + 4].copy_from_slice(&NONE.to_le_bytes());
        clear_sketch(slot, self.sketch_of(block));
    }

    fn sketch_of<'b>(&self, block: &'b mut [u8]) -> &'b mut [u8] {
        &mut block[IDS_BYTES..][..sketch_bytes(self.vectors.width())]
    }

    /// Writes a block with these neighbours (at most 32) into `block` that has as much as it can of `old`: who is in both keeps its
    /// slot.
    pub(super) fn redraw(&self, node: u32, old: Block<'_>, neighbours: &[u32], block: &mut [u8]) {
        block[..IDS_BYTES].copy_from_slice(old.id_bytes());
        self.sketch_of(block).copy_from_slice(old.sketch);
        let mut new = neighbours.iter().filter(|id| !old.ids().any(|had| had == **id));
        for slot in 0..DEGREE {
            let had = old.id(slot);
            if had != NONE && neighbours.contains(&had) {
                continue;
            }
            match new.next() {
                Some(id) => self.put(Some(node), slot, *id, block),
                None if had != NONE => self.clear(slot, block),
                None => {}
            }
        }
    }
}
