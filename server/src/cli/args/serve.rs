//! The grammar of `serve` and `setup`.
//!
//! Keeps: as the rest of the grammar. Must not act.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

/// `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// What is logged to stderr, such as info,flashbulb=debug [default: RUST_LOG, else info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Threads that embed one query: 2 is quicker where a second core is awake [default: 2 on two cores or more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub query_threads: Option<u8>,
    /// Milliseconds within which a search without a deadline is to be answered: under overload, those that could not be are
    /// refused at once [default: 10]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub promise_ms: Option<u64>,
    /// Log requests that take longer, with the stage that was slow
    #[arg(long, value_name = "N", default_value_t = crate::daemon::SLOW_MS)]
    pub slow_ms: u64,
    /// When a write is answered: sync, once it is on the device; buffered, once the system has it, which syncs it within 50 ms
    /// (it outlives the daemon, not a power cut); manual, the same, but synced only by `flashbulb sync`, snapshots, sealing
    /// and the end
    #[arg(long, value_enum, default_value_t, env = "FLASHBULB_DURABILITY", value_name = "LEVEL")]
    pub durability: DurabilityArg,
    /// How vectors and links are kept in memory: full, for speed, some 3 KiB a vector; lean, for little memory, some 400 bytes a vector and
    /// searches that read more of the store's files. A store that was kept the other way builds its graphs anew
    #[arg(long, value_enum, default_value_t, env = "FLASHBULB_LAYOUT", value_name = "LAYOUT")]
    pub layout: LayoutArg,
    /// Only read: beside other readers, on read-only media, from a snapshot; writes nothing in the store's folder
    #[arg(long)]
    pub read_only: bool,
    /// Leave the terminal's session: the daemon was started by another command
    #[arg(long, hide = true)]
    pub detached: bool,
    /// Stop when the process that started it has gone
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

/// When a write is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DurabilityArg {
    /// Once it is on the device.
    #[default]
    Sync,
    /// Once the system has it, which syncs it soon.
    Buffered,
    /// Once the system has it, which syncs it when told to.
    Manual,
}

/// How vectors and links are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    /// For speed.
    #[default]
    Full,
    /// For little memory.
    Lean,
}

/// `setup`.
#[derive(Debug, Args)]
pub struct Setup {
    /// Take everything from a bundle folder instead of the network
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub from: Option<PathBuf>,
    /// Write a bundle folder for a machine without a network
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "from")]
    pub bundle: Option<PathBuf>,
}
