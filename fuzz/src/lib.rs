//! What the fuzz targets share: damage to bytes, hostile stores, naive models, and the server's protocol without the server.
//!
//! Invariant: a model here is written from the documents, not from the code it judges. Knows no fuzzer.

pub mod damage;
pub mod hostile;
pub mod model;
pub mod naive_filter;
pub mod naive_rpc;
#[allow(dead_code, reason = "the targets need less of the protocol than the daemon")]
#[path = "../../server/src/rpc/mod.rs"]
pub mod rpc;
#[allow(dead_code, reason = "as above")]
mod service;
pub mod wire;

/// Splits an input by its first byte: where it is even the rest is meant raw, else as choices.
#[must_use]
pub fn raw_or_choices(input: &[u8]) -> Option<(bool, &[u8])> {
    let (first, rest) = input.split_first()?;
    Some((first % 2 == 0, rest))
}
