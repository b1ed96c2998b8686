//! redb with its default durability, under which a commit is synced before it returns.
//!
//! Invariant: an add is one write transaction. Whatever is not about durability is chosen in redb's favour: one table with
//! an integer key, commits in one phase with checksums, no quick repair, the default cache, which holds all of it.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTableMetadata, TableDefinition};

use super::record::Record;
use super::system::{System, Writer};
use crate::Failure;

/// The version that is built in.
pub const VERSION: &str = "4.6.0";
/// For the report.
pub const SETUP: &str = "Durability::Immediate, one phase, no quick repair, default cache; one write transaction for each \
add; one table, u64 key, the fields one after the other as the value";

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("memories");

/// An open database.
pub struct Redb(Database);

impl Redb {
    /// Makes a new database in `dir`.
    ///
    /// # Errors
    /// What redb says.
    pub fn open(dir: &Path) -> Result<Redb, Failure> {
        let database = Database::create(dir.join("memories.redb"))?;
        let begun = database.begin_write()?;
        begun.open_table(TABLE)?;
        begun.commit()?;
        Ok(Redb(database))
    }
}

struct Client<'a> {
    database: &'a Database,
    value: Vec<u8>,
}

impl Client<'_> {
    fn encode(&mut self, record: &Record) -> Result<(), Failure> {
        self.value.clear();
        self.value.extend(record.ts_ms.to_le_bytes());
        let fields = [&*record.id, &record.text, record.role, &record.session, &record.meta];
        for field in fields {
            self.value.extend(u32::try_from(field.len())?.to_le_bytes());
            self.value.extend(field.as_bytes());
        }
        self.value.extend(record.vector.iter().flat_map(|v| v.to_le_bytes()));
        Ok(())
    }
}

impl Writer for Client<'_> {
    fn add(&mut self, records: &[Record]) -> Result<(), Failure> {
        let mut begun = self.database.begin_write()?;
        // The default, said aloud.
        begun.set_durability(Durability::Immediate)?;
        {
            let mut table = begun.open_table(TABLE)?;
            for record in records {
                self.encode(record)?;
                if table.insert(record.number, self.value.as_slice())?.is_some() {
                    return Err(format!("memory {} is there already", record.number).into());
                }
            }
        }
        Ok(begun.commit()?)
    }
}

impl System for Redb {
    fn writer(&self) -> Result<Box<dyn Writer + '_>, Failure> {
        Ok(Box::new(Client { database: &self.0, value: Vec::new() }))
    }

    fn count(&self) -> Result<u64, Failure> {
        Ok(self.0.begin_read()?.open_table(TABLE)?.len()?)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        drop(self.0);
        Ok(())
    }
}
