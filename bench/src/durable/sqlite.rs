//! SQLite, set up to be as fast as it is with `synchronous=FULL`.
//!
//! Invariant: an add is one transaction, synced when it commits. Whatever is not about durability is chosen in SQLite's
//! favour: an integer key and no further index, prepared statements, a write-ahead log that is overwritten in place once
//! it has wrapped, no mutex of its own where a connection has one thread.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use super::record::Record;
use super::system::{System, Writer};
use crate::Failure;

/// A connection for each client.
pub const MANY_SETUP: &str = "journal_mode=WAL, synchronous=FULL with fdatasync, page size, cache and wal_autocheckpoint \
as they come; a connection without mutex for each client, busy_timeout 60 s; BEGIN IMMEDIATE, prepared INSERT, COMMIT; integer key, no \
further index, the vector as a BLOB";
/// One connection for all.
pub const ONE_SETUP: &str = "as sqlite, but one connection with locking_mode=EXCLUSIVE for all clients, who wait for it at a \
lock in this process and not by polling";

/// Whether this SQLite was built to sync with fdatasync where that is enough, as its own build and every distribution's
/// is; the bundled one must be told so by `.cargo/config.toml`.
pub fn knows_fdatasync() -> bool {
    option_env!("LIBSQLITE3_FLAGS").is_some_and(|flags| flags.contains("-DHAVE_FDATASYNC=1"))
}

/// Longest wait for another writer.
const BUSY: Duration = Duration::from_secs(60);
const FILE: &str = "memories.sqlite";
const TABLE: &str = "CREATE TABLE memories (number INTEGER PRIMARY KEY, id TEXT NOT NULL, text TEXT NOT NULL, role TEXT, \
session TEXT, ts INTEGER NOT NULL, meta TEXT, vector BLOB NOT NULL)";
const INSERT: &str = "INSERT INTO memories VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const COUNT: &str = "SELECT count(*) FROM memories";

fn connect(path: &Path, exclusive: bool) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    if exclusive {
        // Before the first use of the log, so that its index is in memory and not in a shared file.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
    // 2 is FULL.
    if mode != "wal" || synchronous != 2 {
        let path = path.display();
        return Err(
            format!("{path}: SQLite kept journal_mode={mode}, synchronous={synchronous}").into()
        );
    }
    Ok(connection)
}

fn add(connection: &Connection, records: &[Record]) -> Result<(), Failure> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    match insert(connection, records) {
        Ok(()) => Ok(()),
        Err(e) => {
            connection.prepare_cached("ROLLBACK")?.execute([])?;
            Err(e)
        }
    }
}

fn insert(connection: &Connection, records: &[Record]) -> Result<(), Failure> {
    let mut statement = connection.prepare_cached(INSERT)?;
    for r in records {
        let number = i64::try_from(r.number)?;
        let vector: Vec<u8> = r.vector.iter().flat_map(|v| v.to_le_bytes()).collect();
        statement
            .execute(params![number, r.id, r.text, r.role, r.session, r.ts_ms, r.meta, vector])?;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

fn count(connection: &Connection) -> Result<u64, Failure> {
    let count: i64 = connection.query_row(COUNT, [], |row| row.get(0))?;
    Ok(u64::try_from(count)?)
}

/// A connection for each client.
pub struct Many {
    path: PathBuf,
    /// Kept open, so that no client is the last one, which would remove the log.
    first: Mutex<Connection>,
}

impl Many {
    /// Makes a new database in `dir`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open(dir: &Path) -> Result<Many, Failure> {
        let path = dir.join(FILE);
        let first = connect(&path, false)?;
        first.execute(TABLE, [])?;
        Ok(Many { path, first: Mutex::new(first) })
    }
}

struct Own(Connection);

impl Writer for Own {
    fn add(&mut self, records: &[Record]) -> Result<(), Failure> {
        add(&self.0, records)
    }
}

impl System for Many {
    fn writer(&self) -> Result<Box<dyn Writer + '_>, Failure> {
        Ok(Box::new(Own(connect(&self.path, false)?)))
    }

    fn count(&self) -> Result<u64, Failure> {
        count(&self.first.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        let first = self.first.into_inner().unwrap_or_else(PoisonError::into_inner);
        first.close().map_err(|(_, e)| e.into())
    }
}

/// One connection for all clients.
pub struct One(Mutex<Connection>);

impl One {
    /// Makes a new database in `dir`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open(dir: &Path) -> Result<One, Failure> {
        let connection = connect(&dir.join(FILE), true)?;
        connection.execute(TABLE, [])?;
        Ok(One(Mutex::new(connection)))
    }
}

struct Shared<'a>(&'a Mutex<Connection>);

impl Writer for Shared<'_> {
    fn add(&mut self, records: &[Record]) -> Result<(), Failure> {
        add(&self.0.lock().unwrap_or_else(PoisonError::into_inner), records)
    }
}

impl System for One {
    fn writer(&self) -> Result<Box<dyn Writer + '_>, Failure> {
        Ok(Box::new(Shared(&self.0)))
    }

    fn count(&self) -> Result<u64, Failure> {
        count(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        let connection = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.close().map_err(|(_, e)| e.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_sqlite_is_told_of_fdatasync() {
        assert!(knows_fdatasync(), "build in the repository's folder, or set LIBSQLITE3_FLAGS");
    }
}
