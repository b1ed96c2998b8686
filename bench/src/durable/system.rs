//! What is measured: a store that acknowledges a memory once it is on the device.
//!
//! Invariant: every system is handed the same memories and makes of them what it stores while the clock runs; each syncs
//! before it acknowledges. Must not know how many clients there are, or who comes next.

use std::collections::BTreeMap;
use std::path::Path;

use super::record::Record;
use super::{flashbulb, redb, sqlite};
use crate::Failure;
use crate::caller::Target;

/// What a client does.
pub trait Writer {
    /// Stores the memories in one transaction; returns when they are on the device.
    ///
    /// # Errors
    /// What the system says.
    fn add(&mut self, records: &[Record]) -> Result<(), Failure>;
}

/// An open store.
pub trait System: Sync {
    /// A client of its own.
    ///
    /// # Errors
    /// What the system says.
    fn writer(&self) -> Result<Box<dyn Writer + '_>, Failure>;

    /// Memories it holds.
    ///
    /// # Errors
    /// What the system says.
    fn count(&self) -> Result<u64, Failure>;

    /// The process that writes.
    fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Where it can be searched, if it is a service.
    fn target(&self) -> Option<Target> {
        None
    }

    /// Ends it as its users would.
    ///
    /// # Errors
    /// What the system says.
    fn close(self: Box<Self>) -> Result<(), Failure>;
}

/// A system by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The engine, in this process, with its background work as in the daemon
    Flashbulb,
    /// SQLite, a connection for each client
    Sqlite,
    /// SQLite, one connection for all clients, who take turns at a lock
    SqliteOne,
    /// redb
    Redb,
    /// The daemon, over its socket
    FlashbulbSocket,
    /// The same while it is searched
    FlashbulbSearched,
}

impl Kind {
    /// On the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Flashbulb => "flashbulb",
            Kind::Sqlite => "sqlite",
            Kind::SqliteOne => "sqlite-one",
            Kind::Redb => "redb",
            Kind::FlashbulbSocket => "flashbulb-socket",
            Kind::FlashbulbSearched => "flashbulb-searched",
        }
    }

    /// Whether it needs the program and the model.
    pub fn is_daemon(self) -> bool {
        matches!(self, Kind::FlashbulbSocket | Kind::FlashbulbSearched)
    }

    /// Between what the time of an add is taken.
    pub fn boundary(self) -> &'static str {
        if self.is_daemon() { "client and socket" } else { "call in this process" }
    }

    /// How it is set up, for the report.
    pub fn setup(self) -> &'static str {
        match self {
            Kind::Flashbulb => flashbulb::ENGINE_SETUP,
            Kind::Sqlite => sqlite::MANY_SETUP,
            Kind::SqliteOne => sqlite::ONE_SETUP,
            Kind::Redb => redb::SETUP,
            Kind::FlashbulbSocket => flashbulb::SOCKET_SETUP,
            Kind::FlashbulbSearched => flashbulb::SEARCHED_SETUP,
        }
    }

    /// Makes a new store of `dim` components in `dir`, which is there and empty; `program` is the daemon's.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(self, dir: &Path, dim: usize, program: &Path) -> Result<Box<dyn System>, Failure> {
        Ok(match self {
            Kind::Flashbulb => Box::new(flashbulb::Engine::open(dir, dim)?),
            Kind::Sqlite => Box::new(sqlite::Many::open(dir)?),
            Kind::SqliteOne => Box::new(sqlite::One::open(dir)?),
            Kind::Redb => Box::new(redb::Redb::open(dir)?),
            Kind::FlashbulbSocket | Kind::FlashbulbSearched => {
                Box::new(flashbulb::Socket::open(dir, program)?)
            }
        })
    }
}

/// Versions of what is compared.
pub fn versions() -> BTreeMap<String, String> {
    // redb has no way to ask; a test holds this against the lock file.
    [("sqlite", rusqlite::version()), ("redb", redb::VERSION)]
        .into_iter()
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::Corpus;
    use crate::durable::record::Records;

    #[test]
    fn each_system_keeps_what_it_acknowledged() {
        let corpus = Corpus::read(None, 100, 1).unwrap();
        let records = Records::new(&corpus, 16, 1);
        for kind in [Kind::Flashbulb, Kind::Sqlite, Kind::SqliteOne, Kind::Redb] {
            let dir = tempfile::tempdir().unwrap();
            let system = kind.open(dir.path(), 16, Path::new("")).unwrap();
            let mut one = system.writer().unwrap();
            let mut other = system.writer().unwrap();
            one.add(&[records.make(0)]).unwrap();
            other.add(&[records.make(1), records.make(2)]).unwrap();
            let again = one.add(&[records.make(3), records.make(1)]);
            assert!(again.is_err(), "{} took a memory twice", kind.name());
            drop((one, other));
            assert_eq!(system.count().unwrap(), 3, "{}", kind.name());
            system.close().unwrap();
        }
    }

    #[test]
    fn the_version_of_redb_is_that_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        let wanted = format!("name = \"redb\"\nversion = \"{}\"\n", redb::VERSION);
        assert!(lock.contains(&wanted), "redb is not {}", redb::VERSION);
        assert!(versions().contains_key("sqlite"));
    }
}
