//! The program Flashbulb: daemon, protocol, embedding pipeline, importers, command line.
//!
//! Data flows one way: socket → `service` → embedding lanes and engine. The engine knows nothing of this crate; the
//! command line speaks to the daemon over the socket only, like any client.
#![deny(unsafe_code)]

pub mod cli;
pub mod client;
pub mod daemon;
pub mod demo;
pub mod embed;
pub mod import;
pub mod model;
pub mod provision;
pub mod rpc;
pub mod service;
