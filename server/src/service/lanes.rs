//! The two lanes that turn text into vectors.
//!
//! Invariant: the lanes share no queue, lock or session. The *interactive* lane runs on the threads of the connections, at
//! ordinary priority, one text window at a time. The *bulk* lane runs on its own threads at idle priority, so the kernel
//! takes the processor from it whenever a query needs one; a thread at idle priority may be stopped while it holds a
//! lock, which is why none of its locks may ever be wanted by a connection. Both embed at batch 1 and exact length: the
//! same text has the same vector in either lane.
//!
//! Rule: an add of at most [`INLINE_ITEMS`] texts of at most [`INLINE_TEXT_BYTES`] bytes that waits for `searchable` is
//! embedded at once by the interactive lane; such an add that waits for `durable`, and every update, goes to the front of
//! the bulk lane; everything else is embedded in the order in which it was stored. The lanes must not know the wire.

pub mod bulk;
pub mod idle;
pub mod interactive;

pub use bulk::{Bulk, BulkStatus};
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

/// Whether an add is small enough to be embedded at once.
#[must_use]
pub fn is_small(items: &[NewMemory]) -> bool {
    items.len() <= INLINE_ITEMS && items.iter().all(|item| item.text.len() <= INLINE_TEXT_BYTES)
}
