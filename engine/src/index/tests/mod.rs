//! The index against brute force in f64.
//!
//! Invariant: expectations come from the f32 rows alone, never from the index. Must not know: how
//! the index works.
#![allow(clippy::unwrap_used)]

mod audit;
mod concurrent;
mod data;
mod deletes;
mod filters;
mod lean;
mod metrics;
mod occlusion;
mod persistence;
mod random;
mod recall;
