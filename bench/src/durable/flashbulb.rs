//! Flashbulb: the engine in this process, or the daemon over its socket.
//!
//! Invariant: durability is `sync`, and is checked to be; background work runs as in the daemon, on one thread at idle
//! priority, woken by every add: log files in reserve, sealing, merging, graphs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use flashbulb::service::background::Background;
use flashbulb::service::lifecycle::{Cause, Lifecycle};
use flashbulb_engine::{Durability, NewMemory, OnConflict, SpaceName, Store, StoreOptions};
use serde_json::{Value, json};

use super::record::Record;
use super::system::{System, Writer};
use crate::Failure;
use crate::caller::{Caller, Target};
use crate::daemon::{ANSWER_LIMIT, Daemon, Start};
use crate::space;

/// The engine.
pub const ENGINE_SETUP: &str = "the engine with durability sync and its other options as they come, unique ids, the vector \
searchable when the add returns; background work (sealing, merging, graphs) on a thread at idle priority as in the daemon";
/// The daemon.
pub const SOCKET_SETUP: &str = "`memory.add` with `vector` over the daemon's socket, a connection for each client, \
durability sync, options as they come";
/// The daemon while it is searched.
pub const SEARCHED_SETUP: &str =
    "as flashbulb-socket, beside searches by text at a fixed rate, open loop";

/// The space that is written to.
pub const SPACE: &str = "bench";

/// The engine in this process.
pub struct Engine {
    store: Arc<Store>,
    space: SpaceName,
    background: Background,
    lifecycle: Arc<Lifecycle>,
}

impl Engine {
    /// Makes a new store in `dir`.
    ///
    /// # Errors
    /// What the engine says.
    pub fn open(dir: &Path, dim: usize) -> Result<Engine, Failure> {
        let options = StoreOptions {
            durability: Durability::Sync,
            ..StoreOptions::new(dim, "flashbulb-bench")
        };
        let store = Arc::new(Store::open(&dir.join("store"), options)?);
        let lifecycle = Arc::new(Lifecycle::default());
        let no_query = Arc::new(AtomicUsize::new(0));
        let background = Background::start(
            Arc::clone(&store),
            no_query,
            Arc::default(),
            Arc::clone(&lifecycle),
        )?;
        Ok(Engine { store, space: SpaceName::parse(SPACE)?, background, lifecycle })
    }
}

impl Writer for &Engine {
    fn add(&mut self, records: &[Record]) -> Result<(), Failure> {
        let items = records.iter().map(|r| NewMemory {
            id: r.id.clone(),
            text: r.text.clone(),
            role: Some(r.role.to_owned()),
            session: Some(r.session.clone()),
            ts_ms: r.ts_ms,
            meta: Some(r.meta.clone()),
            vectors: Some(vec![r.vector.clone()]),
            request: None,
        });
        self.store.add(&self.space, items.collect(), OnConflict::Error)?;
        self.background.wake();
        Ok(())
    }
}

impl System for Engine {
    fn writer(&self) -> Result<Box<dyn Writer + '_>, Failure> {
        Ok(Box::new(self))
    }

    fn count(&self) -> Result<u64, Failure> {
        Ok(self.store.status().memories)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.lifecycle.stop(Cause::Requested);
        self.background.join();
        Ok(self.store.close()?)
    }
}

/// The daemon.
pub struct Socket(Daemon);

impl Socket {
    /// Starts `program` on a new store in `dir`.
    ///
    /// # Errors
    /// If it does not start, or acknowledges sooner than it syncs.
    pub fn open(dir: &Path, program: &Path) -> Result<Socket, Failure> {
        let status = json!({});
        let daemon = Daemon::launch(&Start {
            program,
            store: &dir.join("store"),
            arguments: &[],
            first: ("admin.status", &status),
        })?;
        let status = daemon.caller()?.call("admin.status", &status, ANSWER_LIMIT)?;
        if status["store"]["durability"] != "sync" {
            return Err(
                format!("the daemon's durability is {}", status["store"]["durability"]).into()
            );
        }
        Ok(Socket(daemon))
    }
}

/// One connection to a daemon.
pub struct Connection(pub Caller);

impl Writer for Connection {
    fn add(&mut self, records: &[Record]) -> Result<(), Failure> {
        let items = records.iter().map(item).collect::<Result<Vec<Value>, Failure>>()?;
        let params = json!({"space": SPACE, "items": items, "wait": "durable"});
        self.0.call_raw("memory.add", &params, ANSWER_LIMIT)?;
        Ok(())
    }
}

fn item(r: &Record) -> Result<Value, Failure> {
    let meta: Value = serde_json::from_str(&r.meta)?;
    Ok(json!({
        "id": r.id, "text": r.text, "role": r.role, "session": r.session, "ts": r.ts_ms, "meta": meta, "vector": r.vector
    }))
}

impl System for Socket {
    fn writer(&self) -> Result<Box<dyn Writer + '_>, Failure> {
        Ok(Box::new(Connection(self.0.caller()?)))
    }

    fn count(&self) -> Result<u64, Failure> {
        let stats = space::stats(&mut self.0.caller()?, SPACE)?;
        stats["memories"].as_u64().ok_or_else(|| "space.stats has no memories".into())
    }

    fn pid(&self) -> u32 {
        self.0.pid()
    }

    fn target(&self) -> Option<Target> {
        Some(self.0.target())
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.0.stop().map(drop)
    }
}
