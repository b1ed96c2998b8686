//! The lock-free building blocks of the engine, and the only place where it publishes memory by hand.
//!
//! Invariant: what a reader reaches through these types was wholly written before it became
//! reachable, it never moves, and it is freed only with its container. Readers never wait.
//! Must not know: vectors, graphs, memories, files.
//!
//! Everything here is built from [`shim`], so that `loom-tests` runs these very types under
//! [loom](https://docs.rs/loom) (`RUSTFLAGS="--cfg loom"`). The two orderings that matter are
//! parameters ([`Publication`]), so that each model also runs with a weakened one, which must fail.

mod append_vec;
mod bell;
mod call;
mod chunks;
mod commit;
mod crew;
mod links;
mod mailbox;
mod place;
mod publication;
mod ring;
mod row_store;
pub mod shim;
mod tombstones;

pub use append_vec::{AppendReader, AppendVec};
pub use call::Call;
pub use chunks::MAX_ITEMS;
pub use commit::{CommitQueue, Group, Refused, Task, Until};
pub use crew::{Crew, HELPERS, Lent, MAX_PARTS};
pub use links::{EntryPoint, Links};
pub use mailbox::Mailbox;
pub use place::{Place, Swapped};
pub use publication::{Publication, ReleaseAcquire};
#[cfg(loom)]
pub use publication::{RelaxedLoadMutant, RelaxedStoreMutant, SilentMutant, UncheckedMutant};
pub use ring::{Consumer, Producer, PushError, ring};
pub use row_store::{RowReader, RowStore, Runs};
pub use tombstones::Tombstones;
