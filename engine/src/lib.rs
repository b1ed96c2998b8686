//! The embedded vector engine of Flashbulb: text and vectors in, memories out, nothing acknowledged lost.
//!
//! A [`Store`] is a data directory with many spaces. A write goes to the write-ahead log, is synced, and is then kept in
//! memory and in sealed, memory-mapped segments. A space is searched by an exact scan while it is small and by a
//! graph of sketched neighbours with int8 codes and an f32 rerank when it is large; searches take no lock that a writer holds.
//!
//! The engine knows no sockets, no async runtime and no model: it takes text and vectors, and is usable alone.
//!
//! ```
//! use flashbulb_engine::{NewMemory, OnConflict, Query, SpaceName, Store, StoreOptions};
//!
//! let dir = tempfile::tempdir()?;
//! let store = Store::open(&dir.path().join("store"), StoreOptions::new(8, "my-model"))?;
//! let space = SpaceName::parse("agent:1")?;
//! let note = NewMemory {
//!     id: "n1".into(),
//!     text: "the user's dog is called Biscuit".into(),
//!     vectors: Some(vec![vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]),
//!     ..NewMemory::default()
//! };
//! store.add(&space, vec![note], OnConflict::Error)?;
//! let query = [0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
//! let found = store.search(&space, &Query::new(&query, 3))?;
//! assert_eq!(store.fetch(&space, &[found.hits[0].seq])?[0].as_ref().map(|m| &*m.id), Some("n1"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod clock;
mod codec;
mod disk;
mod error;
#[cfg(test)]
mod fault;
mod filter;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
#[doc(hidden)]
pub mod index;
mod manifest;
mod map;
mod op;
mod pace;
mod parts;
mod record;
mod segment;
mod space;
mod store;
#[doc(hidden)]
#[expect(unsafe_code, reason = "the lock-free building blocks publish memory by hand")]
pub mod sync;
mod types;
mod wal;

pub use error::Error;
pub use filter::{FILTER_DEPTH_MAX, FILTER_NODES_MAX, Filter, FilterError};
pub use index::SearchPath;
pub use pace::Pace;
pub use store::{
    CompactReport, Job, Loss, RecoveryReport, RestoreReport, SalvageReport, SalvagedSpace,
    ScrubStatus, SnapshotReport, SpaceStats, Store, StoreStatus, VerifyReport, restore, salvage,
};
pub use types::*;
