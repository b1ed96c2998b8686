//! The lock-free building blocks of the engine, and the only place where it publishes memory by hand.
//!
//! Invariant: what a reader reaches through these types was wholly written before it became
//! reachable, it never moves, and it is freed, or written again, only when no reader can reach it
//! any more. Readers never wait.
//! Must not know: vectors, graphs, memories, files.
//!
//! Everything here is built from [`shim`], so that `loom-tests` runs these very types under
//! [loom](https://docs.rs/loom) (`RUSTFLAGS="--cfg loom"`). The orderings that matter are
//! parameters ([`Publication`]), so that each model also runs with a weakened one, which must fail.

mod append_vec;
mod bell;
mod blocks;
mod call;
mod chunks;
mod commit;
mod crew;
mod epochs;
mod mailbox;
mod place;
mod publication;
mod ring;
mod row_store;
pub mod shim;
mod tombstones;
mod watermark;

pub use append_vec::{AppendReader, AppendVec};
pub use blocks::{BlockStore, PinnedBlocks, Slot};
pub use call::Call;
pub use chunks::MAX_ITEMS;
pub use commit::{CommitQueue, Group, Refused, Task, Until};
pub use crew::{Crew, HELPERS, Lent, MAX_PARTS};
pub use epochs::{Epochs, Pinned};
pub use mailbox::Mailbox;
pub use place::{Place, Swapped};
#[cfg(loom)]
pub use publication::{
    BlindAdvanceMutant, HastyReuseMutant, MuteAdvanceMutant, RelaxedLoadMutant, RelaxedStoreMutant,
    SilentMutant, UncheckedMutant,
};
pub use publication::{Publication, ReleaseAcquire};
pub use ring::{Consumer, Producer, PushError, ring};
pub use row_store::{RowReader, RowStore, Runs};
pub use tombstones::Tombstones;
pub use watermark::Watermark;
