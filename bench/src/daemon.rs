//! The real daemon as a child process on a store, and the same service in this process.
//!
//! Invariant: the child ends with this value, whatever happens in between.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flashbulb::client::Client;
use flashbulb::embed::Embedder;
use flashbulb::rpc::Limits;
use flashbulb::service::{Cause, Place, Service, Threads};
use flashbulb_engine::{Store, StoreOptions};
use serde_json::{Value, json};

use crate::Failure;
use crate::caller::{Caller, Target};
use crate::machine::status_kib;
use crate::run::Memory;

/// Longest wait for a start: the first one may have to provision and compile the model.
const START_LIMIT: Duration = Duration::from_secs(600);
/// Longest wait for one answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(600);

/// The program to measure: the one given, or the one built beside this one.
///
/// # Errors
/// If it is not there.
pub fn program(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let program = match given {
        Some(program) => program.to_owned(),
        None => std::env::current_exe()?.with_file_name("flashbulb"),
    };
    if !program.is_file() {
        return Err(format!(
            "no program at {}; build it (`cargo build --release`) or name it with --program",
            program.display()
        )
        .into());
    }
    Ok(program)
}

/// A running daemon.
pub struct Daemon {
    child: Child,
    pub socket: PathBuf,
    /// From the start of the process to the first answer to `first`.
    pub started_in: Duration,
    log: PathBuf,
    /// The socket's folder: a path to a socket must be short, whatever the store's is.
    run: tempfile::TempDir,
}

/// A daemon to be started.
pub struct Start<'a> {
    pub program: &'a Path,
    /// The folder of the store.
    pub store: &'a Path,
    /// Of `serve`, besides store and socket.
    pub arguments: &'a [String],
    /// Method and parameters of the request that ends the start.
    pub first: (&'a str, &'a Value),
}

impl Daemon {
    /// Starts `program serve` and waits until it answers.
    ///
    /// # Errors
    /// If it ends, or does not answer in time; the end of its log is told.
    pub fn launch(start: &Start<'_>) -> Result<Daemon, Failure> {
        // Only its owner may enter it, as the daemon demands.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let run = tempfile::Builder::new().prefix("fb").permissions(private).tempdir()?;
        let socket = run.path().join("s.sock");
        let log_path = run.path().join("daemon.log");
        let log = std::fs::File::create(&log_path)?;
        let begun = Instant::now();
        let child = Command::new(start.program)
            .args(["serve", "--store"])
            .arg(start.store)
            .arg("--socket")
            .arg(&socket)
            .args(start.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", start.program.display()))?;
        let mut daemon = Daemon { child, socket, started_in: Duration::ZERO, log: log_path, run };
        loop {
            if let Some(status) = daemon.child.try_wait()? {
                return Err(daemon.failed(&format!("the daemon ended with {status}")));
            }
            if let Ok(mut client) = Client::connect(&daemon.socket) {
                client.call::<Value>(start.first.0, start.first.1, ANSWER_LIMIT)?;
                daemon.started_in = begun.elapsed();
                return Ok(daemon);
            }
            if begun.elapsed() > START_LIMIT {
                return Err(daemon.failed("the daemon did not answer"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn failed(&self, what: &str) -> Failure {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(10)..].join("\n");
        format!("{what}; the end of its log:\n{tail}").into()
    }

    /// Where requests go.
    pub fn target(&self) -> Target {
        Target::Socket(self.socket.clone())
    }

    /// A new connection.
    ///
    /// # Errors
    /// If the daemon is gone.
    pub fn caller(&self) -> Result<Caller, Failure> {
        Ok(self.target().connect()?)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A folder for files that the daemon is to read; it goes with the daemon.
    pub fn scratch(&self) -> &Path {
        self.run.path()
    }

    /// Memory in use now.
    pub fn memory(&self) -> Option<Memory> {
        memory(self.pid())
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends the daemon as an operator would and waits for it.
    ///
    /// # Errors
    /// If it does not end cleanly.
    pub fn stop(mut self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        self.caller()?.call("admin.shutdown", &json!({}), ANSWER_LIMIT)?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(begun.elapsed())
        } else {
            Err(self.failed(&format!("the daemon ended with {status}")))
        }
    }

    /// Ends the daemon as a crash would.
    ///
    /// # Errors
    /// If it was gone already.
    pub fn kill(mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already ended is fine; there is no one to tell about anything else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory that a process has in use now.
pub fn memory(pid: u32) -> Option<Memory> {
    let path = format!("/proc/{pid}/status");
    let mib = |name| status_kib(&path, name).map(|kib| kib as f64 / 1024.0);
    Some(Memory { rss_mib: mib("VmRSS")?, anonymous_mib: mib("RssAnon")? })
}

/// What is measured: a daemon, or the service without one.
pub enum Host {
    Daemon(Daemon),
    InProcess { service: Arc<Service>, scratch: tempfile::TempDir },
}

impl Host {
    /// The service in this process, as the daemon would start it.
    ///
    /// # Errors
    /// What the store or the service say.
    pub fn in_process(
        store_dir: &Path,
        embedder: &Embedder,
        query_threads: Option<u8>,
    ) -> Result<Host, Failure> {
        let options = StoreOptions::new(embedder.dim(), embedder.fingerprint());
        let store = Store::open(store_dir, options)?;
        let threads =
            query_threads.map_or_else(Threads::default, |n| Threads::with_query_threads(n.into()));
        let place = Place { store_dir: store_dir.to_owned(), socket: PathBuf::new() };
        let slow = Duration::from_millis(flashbulb::daemon::SLOW_MS);
        let limits = Limits::default();
        let service = Service::start(store, embedder.clone(), &threads, limits, place, slow)?;
        Ok(Host::InProcess { service, scratch: tempfile::tempdir()? })
    }

    /// Where requests go.
    pub fn target(&self) -> Target {
        match self {
            Host::Daemon(daemon) => daemon.target(),
            Host::InProcess { service, .. } => Target::InProcess(Arc::clone(service)),
        }
    }

    /// The daemon's process, if it is not this one.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Host::Daemon(daemon) => Some(daemon.pid()),
            Host::InProcess { .. } => None,
        }
    }

    /// A folder for files to be imported.
    pub fn scratch(&self) -> &Path {
        match self {
            Host::Daemon(daemon) => daemon.scratch(),
            Host::InProcess { scratch, .. } => scratch.path(),
        }
    }

    /// Memory in use now.
    pub fn memory(&self) -> Option<Memory> {
        memory(self.pid().unwrap_or_else(std::process::id))
    }

    /// Ends the service and closes its store.
    ///
    /// # Errors
    /// If it does not end cleanly.
    pub fn stop(self) -> Result<(), Failure> {
        match self {
            Host::Daemon(daemon) => daemon.stop().map(drop),
            Host::InProcess { service, .. } => {
                service.lifecycle().stop(Cause::Requested);
                Ok(service.close()?)
            }
        }
    }
}
