//! The methods of the protocol: glue between the wire, the store and the embedding lanes.
//!
//! Invariant: a request is answered by a result that is complete, by one that says what was less than it should be
//! (`degraded`), or by an error with a code: never by a silent empty one. An acknowledged write is in the store's log.
//! Each request names its space, and nothing of another space can enter its answer, because every call to the store
//! carries that name. The service must not know sockets or frames.

pub mod admin;
pub mod background;
pub mod clock;
pub mod context;
pub mod counters;
pub mod errors;
pub mod gate;
pub mod health;
pub mod lanes;
pub mod lifecycle;
pub mod memory;
pub mod methods;
pub mod metrics;
pub mod output;
pub mod search;
pub mod transfer;
pub mod validate;

pub use context::Context;
pub use lifecycle::{Cause, Lifecycle};

use crate::embed::{DeviceState, EmbedError, Embedder};
use crate::rpc::Limits;
use background::Background;
use counters::Counters;
use flashbulb_engine::Store;
use gate::Gate;
use health::Probe;
use lanes::{Bulk, Interactive, LaneError, QueryCache};
use metrics::Metrics;
use serde_json::value::RawValue;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Workers of the bulk lane where a device embeds: one makes windows while the other's run.
const DEVICE_WORKERS: usize = 2;

/// How the service uses threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Threads {
    /// Sessions of the interactive lane.
    pub interactive_sessions: usize,
    /// Whether a second thread helps the one that embeds a query.
    pub interactive_helper: bool,
    /// Threads of the bulk lane; each has its own session.
    pub bulk: usize,
}

impl Default for Threads {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_query_threads(cores.min(2))
    }
}

impl Threads {
    /// Sessions of the model that [`Service::start`] will want.
    #[must_use]
    pub fn sessions(&self) -> usize {
        // The probe's, and the express worker's.
        self.interactive_sessions + self.bulk + 2
    }

    /// `threads` that embed one query: with two, a second core helps.
    ///
    /// On two cores a helper leaves room for one session: a query then has both cores, one after another. Two at a time
    /// contend for them, measured: p99 of embedding 9.4 ms with two sessions, 7.3 ms with one, beside an import.
    #[must_use]
    pub fn with_query_threads(threads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let interactive_helper = threads > 1;
        let room = if interactive_helper { cores.saturating_sub(1) } else { 2 };
        Self { interactive_sessions: room.clamp(1, 2), interactive_helper, bulk: cores }
    }
}

/// Where the service runs, for `admin.status`.
#[derive(Debug, Clone)]
pub struct Place {
    /// The store's folder.
    pub store_dir: PathBuf,
    /// The socket.
    pub socket: PathBuf,
}

/// Why the service could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The model's report about itself is not JSON.
    #[error("what the embedder ran on could not be written as JSON: {0}")]
    Ran(#[from] serde_json::Error),
    /// The probe texts of `admin.health` could not be embedded.
    #[error("the model cannot embed a plain sentence: {0}; run `flashbulb doctor`")]
    Probe(EmbedError),
    /// A lane could not be started.
    #[error(transparent)]
    Lane(#[from] LaneError),
}

/// Everything that answers requests; shared by all connections.
pub struct Service {
    pub(crate) store: Arc<Store>,
    /// What the embedder ran on, for every answer.
    pub(crate) embed_ran: Box<RawValue>,
    /// The same, for an answer whose vector was kept from an earlier query.
    pub(crate) embed_cached: Box<RawValue>,
    /// What the embedder ran on with its counts of nodes, for `admin.*`.
    pub(crate) embed_ran_whole: Box<RawValue>,
    /// Which device was wanted for the model, which is used, and why not the wanted one.
    pub(crate) device: DeviceState,
    pub(crate) interactive: Interactive,
    pub(crate) queries: QueryCache,
    pub(crate) bulk: Bulk,
    pub(crate) background: Background,
    pub(crate) probe: Probe,
    pub(crate) counters: Arc<Counters>,
    pub(crate) metrics: Metrics,
    /// Requests that take longer are logged.
    pub(crate) slow: Duration,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) in_flight: Arc<Gate>,
    pub(crate) connections: Arc<Gate>,
    pub(crate) limits: Limits,
    pub(crate) place: Place,
    pub(crate) started: Instant,
}

impl Service {
    /// Starts the lanes and the background work of an open store. Requests that take longer than `slow` are logged.
    ///
    /// # Errors
    /// When a session or a thread cannot be made, or the model cannot embed.
    pub fn start(
        store: Store,
        embedder: Embedder,
        threads: &Threads,
        limits: Limits,
        place: Place,
        slow: Duration,
    ) -> Result<Arc<Self>, OpenError> {
        let store = Arc::new(store);
        let embedder = Arc::new(embedder);
        let counters = Arc::new(Counters::default());
        let lifecycle = Arc::new(Lifecycle::default());
        // Also where nobody waits for the write that failed.
        let told = Arc::clone(&lifecycle);
        store.on_failure(move |cause| told.stop(Cause::Poisoned(cause)));
        let probe = Probe::new(&embedder).map_err(OpenError::Probe)?;
        let interactive = Interactive::open(
            Arc::clone(&embedder),
            threads.interactive_sessions,
            threads.interactive_helper,
            Arc::clone(&counters),
        )?;
        let background = Background::start(
            Arc::clone(&store),
            interactive.at_work(),
            Arc::clone(&counters),
            Arc::clone(&lifecycle),
        )
        .map_err(LaneError::Thread)?;
        let waker = background.waker();
        let bulk = Bulk::start(
            Arc::clone(&store),
            &embedder,
            // A device runs many texts at once, and each session takes memory of it.
            if embedder.batches() { threads.bulk.min(DEVICE_WORKERS) } else { threads.bulk },
            Arc::clone(&counters),
            Arc::clone(&lifecycle),
            move || waker.unpark(),
        )?;
        let mut ran = serde_json::to_value(embedder.ran())?;
        let embed_ran_whole = serde_json::value::to_raw_value(&ran)?;
        if let Some(members) = ran.as_object_mut() {
            members.retain(|name, _| !name.starts_with("nodes_"));
        }
        let embed_ran = serde_json::value::to_raw_value(&ran)?;
        ran["cached"] = serde_json::Value::Bool(true);
        let embed_cached = serde_json::value::to_raw_value(&ran)?;
        Ok(Arc::new(Self {
            store,
            device: embedder.device().clone(),
            embed_ran,
            embed_cached,
            embed_ran_whole,
            interactive,
            queries: QueryCache::default(),
            bulk,
            background,
            probe,
            counters,
            metrics: Metrics::new(methods::METHODS.iter().map(|method| method.name)),
            slow,
            lifecycle,
            in_flight: Gate::new(limits.requests_in_flight),
            connections: Gate::new(limits.connections),
            limits,
            place,
            started: Instant::now(),
        }))
    }

    /// When and why the service stops.
    #[must_use]
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    /// Bounds of the wire.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Ends the lanes and the background work and closes the store; the service must be stopping.
    ///
    /// # Errors
    /// What the store says on closing; whatever was acknowledged is safe nevertheless.
    pub fn close(&self) -> Result<(), flashbulb_engine::Error> {
        self.bulk.stop();
        self.background.join();
        self.store.close()
    }
}
