//! Black-box tests: the real program, started as a user starts it, spoken to over its socket and its command line.
//!
//! Invariant: every expectation comes from the published protocol. Nothing here may look at the source, the store's
//! files (beyond counting them and reading their permissions) or the library: only the binary is used.
//!
//! Tests share one daemon where they can (spaces keep them apart) and start their own where they crash, stop, measure
//! or exhaust it. The model is provisioned by the program itself into the user's data folder, so the first run on a
//! machine may take minutes; afterwards a start costs about a second.
#![allow(clippy::unwrap_used, missing_docs)]

// Reads the daemon's threads from /proc.
#[cfg(target_os = "linux")]
mod background;
mod backpressure;
mod cli;
mod cli_flow;
mod cli_import;
mod client;
mod crash;
mod daemon;
mod data;
mod device;
// Another system's accelerator may carry the model.
#[cfg(target_os = "linux")]
mod device_outside;
// Stands between the program and libc.
#[cfg(target_os = "linux")]
mod disk_failures;
// Stands between the program and libc.
#[cfg(target_os = "linux")]
mod durability_levels;
// Stands between the program and libc.
#[cfg(target_os = "linux")]
mod faulty_disk;
mod frames;
// Measures the daemon through /proc.
#[cfg(target_os = "linux")]
mod hostile;
mod idempotency;
mod isolation;
mod large_space;
mod lifecycle;
mod limits;
mod load;
// Measures the daemon through /proc.
#[cfg(target_os = "linux")]
mod many_spaces;
mod metrics;
mod model;
mod model_test;
mod observe;
mod openmetrics;
mod overload;
mod params;
mod protocol;
mod races;
// Stands between the program and libc.
#[cfg(target_os = "linux")]
mod read_only;
mod read_semantics;
// Stands between the program and libc.
#[cfg(target_os = "linux")]
mod rescue;
mod same_vector;
mod scrub;
mod search_semantics;
// Stands between the program and libc.
#[cfg(target_os = "linux")]
mod snapshot_restore;
mod values;
mod volume;
mod write_semantics;
