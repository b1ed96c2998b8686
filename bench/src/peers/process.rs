//! One peer in a Python process of its own, behind a socket that speaks Flashbulb's protocol.
//!
//! Invariant: the process ends with this value; what it said on its way down is told. Must not know what is measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flashbulb::client::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Failure;
use crate::caller::{Caller, Target};
use crate::daemon::{self, ANSWER_LIMIT};
use crate::run::Memory;

/// What runs in the process.
const ADAPTER: &str = include_str!("adapter.py");
/// Longest wait for a start: a first import compiles many Python files.
const START_LIMIT: Duration = Duration::from_secs(180);

/// A peer to be started.
pub struct Start<'a> {
    /// The interpreter.
    pub python: &'a Path,
    /// As the adapter calls it.
    pub peer: &'a str,
    /// Where it keeps its data.
    pub folder: &'a Path,
    pub graph: &'a Path,
    pub tokenizer: &'a Path,
    /// Threads that embed one text.
    pub threads: u8,
}

/// What a peer says of itself.
#[derive(Debug, Clone, Deserialize)]
pub struct About {
    pub python: String,
    /// Versions of the packages that the process has loaded.
    pub versions: BTreeMap<String, String>,
    /// The peer's own one.
    pub package: String,
    pub settings: String,
}

/// A running peer.
pub struct Peer {
    child: Child,
    socket: PathBuf,
    caller: Option<Caller>,
    log: PathBuf,
    /// The socket's folder.
    run: tempfile::TempDir,
}

impl Peer {
    /// Starts the process and waits until it answers.
    ///
    /// # Errors
    /// If it ends, or does not answer in time; the end of its log is told.
    pub fn start(start: &Start<'_>) -> Result<Peer, Failure> {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let run = tempfile::Builder::new().prefix("fbp").permissions(private).tempdir()?;
        let (socket, log) = (run.path().join("s.sock"), run.path().join("peer.log"));
        let script = run.path().join("adapter.py");
        std::fs::write(&script, ADAPTER)?;
        let out = std::fs::File::create(&log)?;
        let begun = Instant::now();
        let child = Command::new(start.python)
            .arg(&script)
            .args(["--peer", start.peer, "--threads", &start.threads.to_string()])
            .arg("--folder")
            .arg(start.folder)
            .arg("--socket")
            .arg(&socket)
            .arg("--graph")
            .arg(start.graph)
            .arg("--tokenizer")
            .arg(start.tokenizer)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", start.python.display()))?;
        let mut peer = Peer { child, socket, caller: None, log, run };
        loop {
            if let Some(status) = peer.child.try_wait()? {
                return Err(peer.failed(&format!("{} ended with {status}", start.peer)));
            }
            // The socket is bound when everything has been loaded.
            if let Ok(client) = Client::connect(&peer.socket) {
                peer.caller = Some(Caller::Socket(client));
                return Ok(peer);
            }
            if begun.elapsed() > START_LIMIT {
                return Err(peer.failed(&format!("{} did not answer", start.peer)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn failed(&self, what: &str) -> Failure {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("{what}; the end of its log:\n{tail}").into()
    }

    /// Calls a method of the adapter.
    ///
    /// # Errors
    /// What the peer says, with the end of its log.
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        params: &Value,
    ) -> Result<T, Failure> {
        let caller = self.caller.as_mut().ok_or("the peer was stopped")?;
        match caller.call_raw(method, params, ANSWER_LIMIT * 6) {
            Ok(raw) => Ok(serde_json::from_str(raw.get())?),
            Err(e) => Err(self.failed(&format!("{method}: {e}"))),
        }
    }

    /// Where requests go.
    pub fn target(&self) -> Target {
        Target::Socket(self.socket.clone())
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A folder for files that the peer is to read; it goes with the peer.
    pub fn scratch(&self) -> &Path {
        self.run.path()
    }

    /// Memory in use now.
    pub fn memory(&self) -> Option<Memory> {
        daemon::memory(self.pid())
    }

    /// Ends the process and waits for it.
    ///
    /// # Errors
    /// If it does not end cleanly.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.call::<Value>("admin.shutdown", &json!({}))?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(self.failed(&format!("ended with {status}"))) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Already ended is fine; there is no one to tell about anything else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
