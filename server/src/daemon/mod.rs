//! The daemon: one process that owns a store and answers on a Unix socket.
//!
//! Invariant: the socket is there only while the daemon can answer, so a connection that is accepted is served. At most one
//! daemon has a store, and at most one a socket. Every way of stopping answers what is under way, keeps what was
//! acknowledged, and says by its exit code what happened. It must not know any method.

mod connection;
mod framing;
pub mod logging;
pub mod socket;

use crate::embed::{Device, EmbedError, EmbedOptions, Embedder, Precision};
use crate::provision::{self, ProvisionError, Wanted};
use crate::rpc::Limits;
use crate::service::lanes::idle;
use crate::service::{Cause, OpenError, Place, Service, Threads};
use connection::Connections;
use flashbulb_engine::index::Layout;
use flashbulb_engine::{Durability, Error, Store, StoreOptions};
use rustix::fs::Mode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socket::{Bound, SocketError, SocketLock};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Exit codes of `flashbulb serve`; those that the other commands have too mean the same there.
pub mod exit {
    /// Stopped as asked, everything stored.
    pub const OK: i32 = 0;
    /// Something else; the message says what.
    pub const FAILED: i32 = 1;
    /// The socket's or the store's folder cannot be used as it is.
    pub const FOLDER: i32 = 6;
    /// The runtime or the model is missing or does not work, or the device that was required does not carry it.
    pub const MODEL: i32 = 8;
    /// Another process has the store or the socket.
    pub const IN_USE: i32 = 7;
    /// The store is damaged, too new, made with another model, or not there or not closed cleanly and only to be read;
    /// starting again in the same way does not help.
    pub const STORE: i32 = 9;
    /// A sync failed: what is on the disk is unknown until the next start, which recovers it.
    pub const OUTCOME_UNKNOWN: i32 = 11;
    /// A second signal came while the daemon was stopping.
    pub const IMPATIENT: i32 = 130;
}

/// What a daemon needs to know.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The store's folder; made when it is not there.
    pub store_dir: PathBuf,
    /// The socket's path.
    pub socket: PathBuf,
    /// Which runtime and model.
    pub wanted: Wanted,
    /// In which precision.
    pub precision: Precision,
    /// On which device.
    pub device: Device,
    /// Bounds of the wire.
    pub limits: Limits,
    /// How many threads and sessions.
    pub threads: Threads,
    /// Milliseconds after which a request is logged as slow.
    pub slow_ms: u64,
    /// When writes are answered.
    pub durability: Durability,
    /// How vectors and links are kept in memory.
    pub layout: Layout,
    /// Whether the store is only read.
    pub read_only: bool,
}

/// `slow_ms` when nothing else is said.
pub const SLOW_MS: u64 = 1_000;

impl ServeOptions {
    /// Default options for a store and a socket.
    #[must_use]
    pub fn new(store_dir: PathBuf, socket: PathBuf, wanted: Wanted) -> Self {
        Self {
            store_dir,
            socket,
            wanted,
            precision: Precision::Auto,
            device: Device::Cpu,
            limits: Limits::default(),
            threads: Threads::default(),
            slow_ms: SLOW_MS,
            durability: Durability::Sync,
            layout: Layout::Full,
            read_only: false,
        }
    }
}

/// Why a daemon did not start, or how it ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Runtime or model are not there.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// Runtime or model do not work.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The store cannot be opened.
    #[error("the store {dir} cannot be opened: {source}")]
    Store {
        /// Its folder.
        dir: PathBuf,
        /// The engine's reason.
        source: Error,
    },
    /// The service cannot be set up.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system refused something that a daemon needs.
    #[error("cannot {op}: {source}")]
    System {
        /// What.
        op: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Closing the store failed; acknowledged writes are in its log.
    #[error(
        "the store did not close cleanly: {0}; nothing acknowledged is lost, the next start recovers it"
    )]
    Close(Error),
    /// The store was poisoned by a failed sync.
    #[error(
        "the service ended because a write to the store failed: {0}; whether the last unacknowledged writes were stored is known after the next start"
    )]
    OutcomeUnknown(String),
    /// The listening socket failed.
    #[error("the listening socket failed: {0}")]
    Listener(String),
}

impl ServeError {
    /// The process's exit code, one of [`exit`].
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            ServeError::Socket(SocketError::InUse { .. })
            | ServeError::Store { source: Error::Locked { .. }, .. } => exit::IN_USE,
            ServeError::Socket(_) => exit::FOLDER,
            ServeError::Provision(_) | ServeError::Embed(_) | ServeError::Open(_) => exit::MODEL,
            ServeError::Store {
                source:
                    Error::Corrupt { .. }
                    | Error::VersionTooNew { .. }
                    | Error::NoStore { .. }
                    | Error::NeedsRecovery { .. }
                    | Error::FingerprintMismatch { .. },
                ..
            } => exit::STORE,
            ServeError::OutcomeUnknown(_) => exit::OUTCOME_UNKNOWN,
            _ => exit::FAILED,
        }
    }
}

/// Runs a daemon until it is told to stop.
///
/// Order: the socket's lock (so a second daemon ends at once), the model, the store, the lanes, and only then the socket.
///
/// # Errors
/// Why it did not start, or how it ended; [`ServeError::exit_code`] is the process's.
pub fn serve(options: ServeOptions) -> Result<(), ServeError> {
    let begun = Instant::now();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let lock = SocketLock::take(&options.socket)?;
    if !options.read_only {
        socket::prepare_store_dir(&options.store_dir)?;
    }
    let progress = provision::Logged;
    let provisioned = provision::ensure(&options.wanted, &progress)?;
    let embed_options = EmbedOptions { precision: options.precision, device: options.device };
    let embedder = Embedder::open(&provisioned, &embed_options, &progress)?;
    tracing::info!(took_ms = millis(begun), fingerprint = embedder.fingerprint(), "model ready");
    let mut store_options = StoreOptions::new(embedder.dim(), embedder.fingerprint());
    store_options.durability = options.durability;
    store_options.layout = options.layout;
    let open = if options.read_only { Store::open_read_only } else { Store::open };
    let store = std::thread::scope(|scope| {
        // A large store takes longer than the sessions that are wanted after it, and needs both cores for most of it.
        scope.spawn(|| {
            // Not to idle priority: where other programs keep the cores busy, the start waits for this thread.
            if let Err(why) = idle::lower_this_thread_a_little() {
                tracing::debug!(why, "sessions are made at the usual priority");
            }
            embedder.prepare_sessions(options.threads.sessions());
        });
        open(&options.store_dir, store_options)
    })
    .map_err(|source| ServeError::Store { dir: options.store_dir.clone(), source })?;
    tracing::info!(took_ms = millis(begun), recovery = ?store.recovery(), "store ready");
    let place = Place { store_dir: options.store_dir, socket: options.socket };
    let slow = Duration::from_millis(options.slow_ms);
    let service = Service::start(store, embedder, &options.threads, options.limits, place, slow)?;
    let served = listen(&service, &lock, begun);
    let closed = service.close();
    // Only now may another daemon take the socket: this one has let go of the store.
    drop(lock);
    served?;
    closed.map_err(|error| match error {
        Error::Poisoned { cause } => ServeError::OutcomeUnknown(cause),
        other => ServeError::Close(other),
    })?;
    tracing::info!("stopped");
    Ok(())
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Binds, accepts until the service stops, then lets requests under way end.
fn listen(service: &Arc<Service>, lock: &SocketLock, begun: Instant) -> Result<(), ServeError> {
    let signals = watch_signals(service)?;
    let outcome = lock.bind().map(|bound| {
        let waker = bound.waker();
        service.lifecycle().on_stop(move || waker.wake());
        tracing::info!(took_ms = millis(begun), socket = %bound.path().display(), "ready");
        accept(service, bound);
    });
    // Also stops the lanes where binding failed.
    service.lifecycle().stop(Cause::Requested);
    signals.close();
    outcome?;
    match service.lifecycle().cause() {
        Some(Cause::Poisoned(cause)) => Err(ServeError::OutcomeUnknown(cause)),
        Some(Cause::Listener(cause)) => Err(ServeError::Listener(cause)),
        _ => Ok(()),
    }
}

fn accept(service: &Arc<Service>, bound: Bound) {
    let connections = Connections::new(Arc::clone(service));
    bound.accept_until_stopped(service.lifecycle(), |stream| connections.admit(stream));
    // The name goes first: who comes now shall see that nobody is there, and wait for no answer.
    bound.remove();
    let drain = Duration::from_millis(service.limits().drain_ms);
    let left = connections.drain(Instant::now() + drain);
    if left > 0 {
        tracing::warn!(left, "connections still at work were cut off");
    }
}

fn watch_signals(service: &Arc<Service>) -> Result<signal_hook::iterator::Handle, ServeError> {
    let system = |op| move |source| ServeError::System { op, source };
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(system("watch for signals"))?;
    let handle = signals.handle();
    let lifecycle = Arc::clone(service.lifecycle());
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in &mut signals {
                if lifecycle.cause() == Some(Cause::Signal) {
                    tracing::warn!(signal, "second signal: ending at once");
                    std::process::exit(exit::IMPATIENT);
                }
                lifecycle.stop(Cause::Signal);
            }
        })
        .map_err(system("start a thread"))?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_what_a_supervisor_must_know() {
        let store = |source| ServeError::Store { dir: "/s".into(), source };
        let corrupt = Error::Corrupt { file: "/s/f".into(), offset: 0, what: "x".into() };
        let in_use = SocketError::InUse { path: "/s".into() };
        for (error, code) in [
            (store(Error::Locked { dir: "/s".into() }), exit::IN_USE),
            (store(corrupt), exit::STORE),
            (store(Error::Closed), exit::FAILED),
            (ServeError::Socket(in_use), exit::IN_USE),
            (
                ServeError::Socket(SocketError::TooLong { path: "/s".into(), bytes: 200 }),
                exit::FOLDER,
            ),
            (ServeError::OutcomeUnknown("sync".into()), exit::OUTCOME_UNKNOWN),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
