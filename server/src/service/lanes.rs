//! The two lanes that turn text into vectors.
//!
//! Invariant: the lanes share no queue, lock or session. The *interactive* lane runs on the threads of the connections, at
//! ordinary priority, one text window at a time. The *bulk* lane runs on its own threads at idle priority, so the kernel
//! takes the processor from it whenever a query needs one; a thread at idle priority may be stopped while it holds a
//! lock, which is why none of its locks may ever be wanted by a connection. Both embed at batch 1 and exact length: the
//! same text has the same vector in either lane.
//!
//! Rule, by what an agent feels: an add of at most [`INLINE_ITEMS`] texts of at most [`INLINE_TEXT_BYTES`] bytes that waits
//! for `searchable` is embedded at once by the interactive lane. Such an add that waits for `durable`, every update, and
//! an add of at most [`FRONT_ITEMS`] texts of [`FRONT_BYTES`] bytes in all that waits for `searchable` go to the front of
//! the bulk lane. Everything else is embedded in the order in which it was stored. The lanes must not know the wire.

pub mod bulk;
pub mod cache;
pub mod idle;
pub mod interactive;
pub mod line;

pub use bulk::{Bulk, BulkStatus};
pub use cache::QueryCache;
pub use interactive::{Interactive, InteractiveStatus};

use crate::embed::EmbedError;
use flashbulb_engine::NewMemory;

/// Why a lane could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// The runtime refused a session.
    #[error("an embedding session could not be made: {0}")]
    Session(#[from] EmbedError),
    /// The system refused a thread.
    #[error("a thread could not be started: {0}; look at the limits on processes and memory")]
    Thread(#[from] std::io::Error),
}

/// Most texts of an add that is embedded at once.
pub const INLINE_ITEMS: usize = 4;

/// Most bytes of each of them.
pub const INLINE_TEXT_BYTES: usize = 2048;

/// Most texts of an add that may go to the front of the bulk lane because somebody waits for it.
pub const FRONT_ITEMS: usize = 64;

/// Most bytes of all of them.
pub const FRONT_BYTES: usize = 64 << 10;

/// Whether an add that somebody waits for may overtake what nobody waits for.
#[must_use]
pub fn may_overtake(items: &[NewMemory]) -> bool {
    let bytes: usize = items.iter().map(|item| item.text.len()).sum();
    items.len() <= FRONT_ITEMS && bytes <= FRONT_BYTES
}

/// Whether an add is small enough to be embedded at once.
#[must_use]
pub fn is_small(items: &[NewMemory]) -> bool {
    items.len() <= INLINE_ITEMS && items.iter().all(|item| is_small_text(&item.text))
}

/// Whether a text is small enough to be embedded at once.
#[must_use]
pub fn is_small_text(text: &str) -> bool {
    text.len() <= INLINE_TEXT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(count: usize, bytes: usize) -> Vec<NewMemory> {
        let item = NewMemory { text: "x".repeat(bytes), ..NewMemory::default() };
        vec![item; count]
    }

    #[test]
    fn the_rule_has_sharp_edges() {
        for (count, bytes, small, front) in [
            (1, 1, true, true),
            (4, 2048, true, true),
            (5, 1, false, true),
            (1, 2049, false, true),
            (64, 1024, false, true),
            (65, 1, false, false),
            (64, 1025, false, false),
            (1, 65_537, false, false),
        ] {
            let items = items(count, bytes);
            assert_eq!(is_small(&items), small, "{count} of {bytes}");
            assert_eq!(may_overtake(&items), front, "{count} of {bytes}");
        }
    }
}
