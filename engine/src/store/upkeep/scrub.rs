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
        let mut scrub = self.scrub.lock();
        if now < scrub.due {
            return false;
        }
        pace.begin(Job::Scrub);
        let segments: Vec<Arc<Segment>> = self.parts.now().segments().cloned().collect();
        scrub.damaged.retain(|(part, _), _| segments.iter().any(|s| s.header().part == *part));
        let mut left = SLICE_BLOCKS;
        let next = scrub.next;
        for segment in segments.iter().filter(|s| s.header().part >= next.0) {
            let part = segment.header().part;
            let from = if part == next.0 { next.1 } else { 0 };
            let to = segment.blocks().min(from + left).max(from);
            for block in from..to {
                if let Err(damage) = segment.recheck(block) {
                    tracing::error!(%damage, "damage found in a sealed file");
                    scrub.damaged.insert((part, block), damage.to_string());
                }
                pace.worked(BLOCK_BYTES as usize);
            }
            scrub.blocks += to - from;
            left -= to - from;
            if left == 0 {
                scrub.next = (part, to);
                scrub.due = now + SLICE_EVERY;
                return true;
            }
        }
        scrub.next = (0, 0);
        scrub.passes += 1;
        scrub.pass_begun = now.max(scrub.pass_begun + PASS_EVERY);
        scrub.due = scrub.pass_begun;
        left < SLICE_BLOCKS
    }

    /// What the reading of sealed blocks has found so far.
    pub fn scrub_status(&self) -> ScrubStatus {
        let scrub = self.scrub.lock();
        let damaged = scrub.damaged.values().cloned().collect();
        ScrubStatus { passes: scrub.passes, blocks: scrub.blocks, damaged }
    }
}
