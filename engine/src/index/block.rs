//! A node's block: its neighbours' numbers, and in the full layout a sketch of them around the node.
//!
//! Invariant: a block is written once and then only read; slots without a neighbour are marked, and estimate to nothing. Must not
//! know: where blocks lie, or who reads them.
//!
//! Layout, each part on whole cache lines and in the order in which a step of a walk reads them: the node's own measure (f32 scale,
//! error, norm, half of the squared length) and codes, the sketch as `flashbulb_kernels` lays it out, 32 numbers (u32, little-endian, `u32::MAX` in empty
//! slots): 2,240 bytes at 384 dimensions; in the lean layout the numbers alone. All that a step needs lies side by side (Gou et al., *SymphonyQG*, SIGMOD 2025); codes and
//! measures are in rows of their own as well, for scans.

use super::Layout;
use super::vectors::{Measure, VectorsView};
use flashbulb_kernels::{Coded, Kernels, SIGN_ROWS, as_codes, clear_sketch, sketch_bytes};

/// Most neighbours of a node.
pub(super) const DEGREE: usize = SIGN_ROWS;
/// Bytes of the numbers.
pub(super) const IDS_BYTES: usize = 4 * DEGREE;
/// Marks an empty slot.
pub(super) const NONE: u32 = u32::MAX;

/// Bytes of a measure.
const MEASURE_BYTES: usize = 16;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Bytes of a block's parts: whole cache lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// The node's own measure and codes.
    pub(super) own: usize,
    sketch: usize,
}

impl Form {
    /// Blocks with all parts, of vectors with `width` codes.
    pub(super) const fn full(width: usize) -> Form {
        Form { own: (MEASURE_BYTES + width).next_multiple_of(LINE), sketch: sketch_bytes(width) }
    }

    /// Blocks of nodes.
    pub(super) const fn of(layout: Layout, width: usize) -> Form {
        match layout {
            Layout::Full => Form::full(width),
            Layout::Lean => Form { own: 0, sketch: 0 },
        }
    }

    /// Bytes of a whole block.
    pub(super) const fn bytes(self) -> usize {
        self.own + self.sketch + IDS_BYTES
    }
}

/// A block that is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) ids: &'a [[u8; 4]],
    pub(super) sketch: &'a [u8],
    own: &'a [u8],
}

impl<'a> Block<'a> {
    /// Takes bytes for a block of vectors with `width` codes; they are at least [`Form::bytes`] many.
    #[inline]
    pub(super) fn new(bytes: &'a [u8], form: Form, width: usize) -> Block<'a> {
        let (own, rest) = bytes.split_at(form.own);
        let (sketch, ids) = rest.split_at(form.sketch);
        // What fills its last line does not belong to it.
        let own = &own[..own.len().min(MEASURE_BYTES + width)];
        Block { ids: ids[..IDS_BYTES].as_chunks().0, sketch, own }
    }

    /// Whether its neighbours are sketched.
    #[inline]
    pub(super) fn has_sketch(&self) -> bool {
        !self.sketch.is_empty()
    }

    /// The node's own measure and codes, if the block has them.
    #[inline]
    pub(super) fn own(&self) -> Option<(Measure, &'a [i8])> {
        let (measure, codes) = self.own.split_at_checked(MEASURE_BYTES)?;
        let float =
            |at: usize| measure.as_chunks().0.get(at).map_or(0.0, |b| f32::from_le_bytes(*b));
        Some((
            Measure { scale: float(0), error: float(1), norm: float(2), half_square: float(3) },
            as_codes(codes),
        ))
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
    form: Form,
}

impl<'a> Pen<'a> {
    /// A pen for blocks of nodes.
    pub(super) fn new(vectors: VectorsView<'a>, kernels: Kernels) -> Pen<'a> {
        Pen { kernels, vectors, form: Form::of(vectors.layout(), vectors.width()) }
    }

    /// This pen for blocks of roots, which have sketches in every layout: they are few.
    pub(super) fn for_roots(self) -> Pen<'a> {
        Pen { form: Form::full(self.vectors.width()), ..self }
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(&self) -> usize {
        self.form.bytes()
    }

    /// Writes a whole block of up to 32 neighbours; without a centre they are sketched around the origin.
    pub(super) fn draw(&self, centre: Option<u32>, neighbours: &[u32], block: &mut [u8]) {
        if self.form.sketch > 0 {
            neighbours.iter().for_each(|id| self.vectors.prefetch(*id));
        }
        self.write_own(centre, block);
        for slot in 0..DEGREE {
            match neighbours.get(slot) {
                Some(id) => self.put(centre, slot, *id, block),
                None => self.clear(slot, block),
            }
        }
    }

    /// Writes the node's own measure and codes.
    fn write_own(&self, node: Option<u32>, block: &mut [u8]) {
        let (own, mut room) = (&mut block[..self.form.own], Vec::new());
        if own.is_empty() {
            return;
        }
        let Some((measure, row)) = node.and_then(|node| self.vectors.row(node, &mut room)) else {
            return own.fill(0);
        };
        let (bytes, codes) = own.split_at_mut(MEASURE_BYTES);
        let floats = [measure.scale, measure.error, measure.norm, measure.half_square];
        bytes.as_chunks_mut().0.iter_mut().zip(floats).for_each(|(to, v)| *to = v.to_le_bytes());
        codes.iter_mut().zip(row).for_each(|(to, code)| *to = code.cast_unsigned());
    }

    /// Sketch and numbers of a block.
    fn parts<'b>(&self, block: &'b mut [u8]) -> (&'b mut [u8], &'b mut [[u8; 4]]) {
        let (sketch, ids) = block[self.form.own..].split_at_mut(self.form.sketch);
        (sketch, ids[..IDS_BYTES].as_chunks_mut().0)
    }

    /// Puts a neighbour into a slot.
    pub(super) fn put(&self, centre: Option<u32>, slot: usize, neighbour: u32, block: &mut [u8]) {
        if self.form.sketch == 0 {
            self.parts(block).1[slot] = neighbour.to_le_bytes();
            return;
        }
        let mut rooms = (Vec::new(), Vec::new());
        let Some((measure, codes)) = self.vectors.row(neighbour, &mut rooms.0) else {
            return self.clear(slot, block);
        };
        let point = Coded { codes, scale: measure.scale };
        let around = centre.and_then(|node| self.vectors.row(node, &mut rooms.1));
        // In steps of nothing, all codes are zero.
        let centre = around.map_or(Coded { codes, scale: 0.0 }, |(measure, codes)| Coded {
            codes,
            scale: measure.scale,
        });
        // A small difference is kept, which half precision can tell, and not what it is between.
        let added =
            self.vectors.bias(measure) - around.map_or(0.0, |(own, _)| self.vectors.bias(own));
        let (sketch, ids) = self.parts(block);
        ids[slot] = neighbour.to_le_bytes();
        self.kernels.sketch(slot, centre, point, added, sketch);
    }

    fn clear(&self, slot: usize, block: &mut [u8]) {
        let (sketch, ids) = self.parts(block);
        ids[slot] = NONE.to_le_bytes();
        if !sketch.is_empty() {
            clear_sketch(slot, sketch);
        }
    }

    fn copy(&self, old: Block<'_>, block: &mut [u8]) {
        block[..old.own.len()].copy_from_slice(old.own);
        let (sketch, ids) = self.parts(block);
        sketch.copy_from_slice(old.sketch);
        ids.copy_from_slice(old.ids);
    }

    /// Writes a block with these neighbours (at most 32) into `block` that has as much as it can of `old`: who is in both keeps its
    /// slot.
    pub(super) fn redraw(&self, node: u32, old: Block<'_>, neighbours: &[u32], block: &mut [u8]) {
        self.copy(old, block);
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
