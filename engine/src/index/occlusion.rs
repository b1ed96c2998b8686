//! Which neighbour of a node goes when another one comes: the one that a closer neighbour stands for most.
//!
//! Invariants: the same neighbours, in whatever slots and however they came, are occluded alike; a newcomer takes the place of one
//! neighbour at most. Must not know: blocks, batches, who is dead.
//!
//! A neighbour's occlusion is its squared distance to the node by that to whichever of the closer neighbours that ratio is largest for
//! (the occlude factor of RobustPrune; Subramanya et al., *DiskANN*, NeurIPS 2019). To prune 33 at a fixed slack instead lets the
//! farthest go where hardly any is occluded, so that in the end each node leads to its nearest ones only and some are led to by hardly
//! any: on 236,000 × 100 word vectors, a beam of 128 found 0.92 of the ten nearest, and 0.95 of them this way; on 236,000 × 384 text
//! embeddings, a beam of 64 0.9918 and 0.9931.

use super::block::DEGREE;
use super::choose::Scale;
use super::vectors::Measure;

/// Occlusions of a node's neighbours by their slots, as logarithms in steps; 0 where it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Occlusions([u8; DEGREE]);

/// One step: there are some for occlusions from 0.5 to 6.3, as copies' rounded codes are always beyond.
const STEP: f32 = 0.01;
/// The step of an occlusion of 1, and the first and the last.
const ONE: f32 = 70.0;
const FIRST: u8 = 1;
const LAST: u8 = u8::MAX;

/// The step of an occlusion, by closenesses: distances with a minus.
fn step(to_node: f32, to_other: f32) -> u8 {
    // By a copy, a neighbour is occluded as much as can be.
    let occlusion = to_node / to_other.min(-f32::MIN_POSITIVE);
    // Of no number, as when both are copies of the node, makes the first.
    (occlusion.ln() / STEP + ONE).max(f32::from(FIRST)).min(f32::from(LAST)) as u8
}

/// A node's 32 neighbours, as far as who goes depends on them.
#[derive(Debug, Default)]
pub(super) struct Neighbourhood {
    ids: [u32; DEGREE],
    /// How close each is to the node.
    close: [f32; DEGREE],
    occlusions: Occlusions,
    /// Room for the codes of the node, or of a newcomer.
    room: Vec<i8>,
    /// Their codes, side by side, and their measures.
    codes: Vec<i8>,
    measures: Vec<Measure>,
}

impl Neighbourhood {
    /// Turns to the neighbours of a node, of which so much is known; `None` if one has no row.
    pub(super) fn read(
        &mut self,
        scale: &Scale<'_>,
        node: u32,
        ids: &[u32; DEGREE],
        known: Occlusions,
    ) -> Option<()> {
        ids.iter().for_each(|id| scale.vectors.prefetch(*id));
        self.codes.clear();
        self.measures.clear();
        for id in ids {
            let (measure, codes) = scale.vectors.row(*id, &mut self.room)?;
            self.codes.extend_from_slice(codes);
            self.measures.push(measure);
        }
        self.ids = *ids;
        let mut room = std::mem::take(&mut self.room);
        self.close = self.closenesses(scale, scale.vectors.row(node, &mut room)?);
        self.room = room;
        self.occlusions = known;
        for slot in (0..DEGREE).filter(|slot| known.0[*slot] == 0) {
            self.occlude(scale, slot);
        }
        Some(())
    }

    /// The neighbours in their slots.
    pub(super) fn ids(&self) -> &[u32; DEGREE] {
        &self.ids
    }

    /// What is known of them now.
    pub(super) fn occlusions(&self) -> Occlusions {
        self.occlusions
    }

    /// The slots, most occluded first; of equal ones, the farthest.
    pub(super) fn most_occluded(&self) -> [usize; DEGREE] {
        let mut slots = std::array::from_fn(|slot| slot);
        slots.sort_unstable_by(|a, b| self.order(*b, *a));
        slots
    }

    /// Less occluded ones before more occluded ones, and closer ones before farther ones.
    fn order(&self, a: usize, b: usize) -> std::cmp::Ordering {
        let by_occlusion = self.occlusions.0[a].cmp(&self.occlusions.0[b]);
        by_occlusion
            .then_with(|| is_closer(self.at(b), self.at(a)).cmp(&is_closer(self.at(a), self.at(b))))
    }

    /// How close a neighbour is, and its number.
    fn at(&self, slot: usize) -> (f32, u32) {
        (self.close[slot], self.ids[slot])
    }

    fn row(&self, slot: usize) -> (Measure, &[i8]) {
        let width = self.codes.len() / DEGREE;
        (self.measures[slot], &self.codes[slot * width..][..width])
    }

    /// How close a vector is to each neighbour.
    fn closenesses(&self, scale: &Scale<'_>, (measure, codes): (Measure, &[i8])) -> [f32; DEGREE] {
        let mut dots = [0; DEGREE];
        scale.kernels.dot_i8_rows(codes, &self.codes, &mut dots);
        std::array::from_fn(|slot| {
            scale.vectors.closeness(dots[slot], measure, self.measures[slot])
        })
    }

    /// Computes the occlusion of one of them.
    fn occlude(&mut self, scale: &Scale<'_>, slot: usize) {
        let own = self.at(slot);
        let between = self.closenesses(scale, self.row(slot));
        let closer = (0..DEGREE).filter(|other| is_closer(self.at(*other), own));
        let steps = closer.map(|other| step(own.0, between[other]));
        self.occlusions.0[slot] = steps.fold(FIRST, u8::max);
    }

    /// Puts a vector in the place of the most occluded neighbour, unless it is itself more occluded, or there.
    pub(super) fn offer(&mut self, scale: &Scale<'_>, node: u32, id: u32) {
        if self.ids.contains(&id) {
            return;
        }
        let mut room = std::mem::take(&mut self.room);
        if let Some(row) = scale.vectors.row(id, &mut room)
            && let Some((own, dot)) = scale.vectors.product(row.1, node, scale.kernels)
        {
            self.offer_row(scale, (scale.vectors.closeness(dot, own, row.0), id), row);
        }
        self.room = room;
    }

    /// Offers a vector that is so close to the node.
    fn offer_row(&mut self, scale: &Scale<'_>, new: (f32, u32), row: (Measure, &[i8])) {
        let between = self.closenesses(scale, row);
        let before = self.occlusions;
        let mut occluded = FIRST;
        for (slot, between) in between.into_iter().enumerate() {
            let other = self.at(slot);
            if is_closer(other, new) {
                occluded = occluded.max(step(new.0, between));
            } else {
                let by_new = step(other.0, between);
                self.occlusions.0[slot] = self.occlusions.0[slot].max(by_new);
            }
        }
        let Some(spare) = (0..DEGREE).max_by(|a, b| self.order(*a, *b)) else { return };
        let most = self.occlusions.0[spare];
        if occluded > most || occluded == most && is_closer(self.at(spare), new) {
            self.occlusions = before;
            return;
        }
        self.replace(scale, spare, (new, occluded), row);
    }

    /// Puts a newcomer into a slot.
    fn replace(
        &mut self,
        scale: &Scale<'_>,
        slot: usize,
        (new, occluded): ((f32, u32), u8),
        (measure, codes): (Measure, &[i8]),
    ) {
        let gone = self.at(slot);
        let by_gone = self.closenesses(scale, self.row(slot));
        (self.close[slot], self.ids[slot]) = new;
        self.occlusions.0[slot] = occluded;
        self.measures[slot] = measure;
        self.codes[slot * codes.len()..][..codes.len()].copy_from_slice(codes);
        // Whom the one that is gone occluded most may now be less occluded, the newcomer too.
        for other in 0..DEGREE {
            let (close, id) = self.at(other);
            let by_gone = if other == slot { occluded } else { step(close, by_gone[other]) };
            if is_closer(gone, (close, id)) && by_gone == self.occlusions.0[other] {
                self.occlude(scale, other);
            }
        }
    }
}

/// Whether one is closer than another; of equal ones, that of the lower number.
fn is_closer(a: (f32, u32), b: (f32, u32)) -> bool {
    a.0 > b.0 || a.0 == b.0 && a.1 < b.1
}
