//! Reading sealed blocks again, so that damage is known while a snapshot may still be at hand.
//!
//! Invariant: every block is compared with its checksum once in a pass, a little at a time and a pass at most once a day; a block
//! that does not fit is never read as if it did. Knows nothing of what the blocks hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Job;
use crate::pace::Pace;
use crate::parts::PartNo;
use crate::segment::{BLOCK_BYTES, Segment};
use crate::store::Store;

/// Blocks read at a time: 8 MiB.
const SLICE_BLOCKS: u64 = 128;
/// Time between two slices.
const SLICE_EVERY: Duration = Duration::from_secs(5);
/// Time between the beginnings of two passes.
const PASS_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// What the reading of sealed blocks has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ScrubStatus {
    /// Passes ended since the store was opened.
    pub passes: u64,
    /// Blocks of 64 KiB compared with their checksums.
    pub blocks: u64,
    /// Blocks that do not fit and are still part of the store, by file and place.
    pub damaged: Vec<String>,
}

/// How far the reading has come.
#[derive(Debug, Default)]
pub(in crate::store) struct Scrub {
    /// The next part and block; parts are read in the order of their numbers.
    next: (PartNo, u64),
    /// When this pass began; in the future while none is on.
    pass_begun: Duration,
    /// When the next slice is due.
    due: Duration,
    passes: u64,
    blocks: u64,
    damaged: BTreeMap<(PartNo, u64), String>,
}

impl Store {
    /// Reads the next blocks, if it is time; whether it read any.
    pub(super) fn scrub(&self, pace: &Pace<'_>) -> bool {
        let now = self.clock.now();
        let next = {
            let scrub = self.scrub.lock();
            if now < scrub.due {
                return false;
            }
            scrub.next
        };
        pace.begin(Job::Scrub);
        let segments: Vec<Arc<Segment>> = self.parts.now().segments().cloned().collect();
        // Without the lock: who asks how it stands must not wait for reading at idle priority.
        let slice = read_slice(&segments, next, pace);
        let mut scrub = self.scrub.lock();
        scrub.damaged.retain(|(part, _), _| segments.iter().any(|s| s.header().part == *part));
        scrub.damaged.extend(slice.damaged);
        scrub.blocks += slice.blocks;
        if let Some(next) = slice.next {
            scrub.next = next;
            scrub.due = now + SLICE_EVERY;
        } else {
            scrub.next = (0, 0);
            scrub.passes += 1;
            scrub.pass_begun = now.max(scrub.pass_begun + PASS_EVERY);
            scrub.due = scrub.pass_begun;
        }
        slice.blocks > 0
    }

    /// What the reading of sealed blocks has found so far.
    pub fn scrub_status(&self) -> ScrubStatus {
        let scrub = self.scrub.lock();
        let damaged = scrub.damaged.values().cloned().collect();
        ScrubStatus { passes: scrub.passes, blocks: scrub.blocks, damaged }
    }
}

/// What reading some blocks showed.
struct Slice {
    blocks: u64,
    damaged: Vec<((PartNo, u64), String)>,
    /// Where to go on; `None` at the end of the pass.
    next: Option<(PartNo, u64)>,
}

/// Reads at most [`SLICE_BLOCKS`] from `next` on.
fn read_slice(segments: &[Arc<Segment>], next: (PartNo, u64), pace: &Pace<'_>) -> Slice {
    let mut slice = Slice { blocks: 0, damaged: Vec::new(), next: None };
    for segment in segments.iter().filter(|s| s.header().part >= next.0) {
        let part = segment.header().part;
        let from = if part == next.0 { next.1 } else { 0 };
        for block in from..segment.blocks() {
            if slice.blocks == SLICE_BLOCKS {
                slice.next = Some((part, block));
                return slice;
            }
            if let Err(damage) = segment.recheck(block) {
                tracing::error!(%damage, "damage found in a sealed file");
                slice.damaged.push(((part, block), damage.to_string()));
            }
            pace.worked(BLOCK_BYTES as usize);
            slice.blocks += 1;
        }
    }
    slice
}
