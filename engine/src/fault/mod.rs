//! A disk that crashes and fails as told, and sweeps over the places where it may.
//!
//! Invariant: nothing here is part of the engine; it stands behind the seam of [`crate::disk`] and sees what a device
//! sees: writes, syncs and names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod concurrent;
mod crash;
mod cut;
mod disk;
mod failure;
mod flip;
mod limits;
mod restore;
mod salvage;
mod workload;
