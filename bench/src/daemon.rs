//! The real daemon as a child process, on a store of its own.
//!
//! Invariant: the child ends with this value, whatever happens in between.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flashbulb::client::Client;
use serde_json::{Value, json};

use crate::Failure;
use crate::machine::status_kib;

/// Longest wait for a start: the first one may have to provision and compile the model.
const START_LIMIT: Duration = Duration::from_secs(600);
/// Longest wait for one answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(600);

/// The program to measure: the one given, or the one built beside this one.
///
/// # Errors
/// If this program's own path cannot be read.
pub fn program(given: Option<&Path>) -> Result<PathBuf, Failure> {
    match given {
        Some(program) => Ok(program.to_owned()),
        None => Ok(std::env::current_exe()?.with_file_name("flashbulb")),
    }
}

/// A running daemon.
pub struct Daemon {
    child: Child,
    pub socket: PathBuf,
    /// From the start of the process to the first answer to `first`.
    pub started_in: Duration,
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Memory {
    /// All resident pages, mapped files included.
    pub rss_mib: f64,
    /// Resident pages that are not backed by files.
    pub anonymous_mib: f64,
}

impl Daemon {
    /// As [`Self::start_with`], without arguments.
    ///
    /// # Errors
    /// As there.
    pub fn start(program: &Path, dir: &Path, first: (&str, &Value)) -> Result<Daemon, Failure> {
        Self::start_with(program, dir, &[], first)
    }

    /// Starts `program serve` with further `arguments` on a store in `dir` and waits until it answers `first` (method and
    /// parameters).
    ///
    /// # Errors
    /// If it ends, or does not answer in time; its log is named.
    pub fn start_with(
        program: &Path,
        dir: &Path,
        arguments: &[&str],
        first: (&str, &Value),
    ) -> Result<Daemon, Failure> {
        let run = dir.join("run");
        std::fs::create_dir_all(&run)?;
        let mut private = std::fs::metadata(&run)?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut private, 0o700);
        std::fs::set_permissions(&run, private)?;
        let socket = run.join("s.sock");
        let log_path = dir.join("daemon.log");
        let log = std::fs::File::options().create(true).append(true).open(&log_path)?;
        let begun = Instant::now();
        let child = Command::new(program)
            .args(["serve", "--store"])
            .arg(dir.join("store"))
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}; build it first", program.display()))?;
        let mut daemon = Daemon { child, socket, started_in: Duration::ZERO };
        loop {
            if let Some(status) = daemon.child.try_wait()? {
                return Err(
                    format!("the daemon ended with {status}; see {}", log_path.display()).into()
                );
            }
            if let Ok(mut client) = Client::connect(&daemon.socket) {
                client.call::<Value>(first.0, first.1, ANSWER_LIMIT)?;
                daemon.started_in = begun.elapsed();
                return Ok(daemon);
            }
            if begun.elapsed() > START_LIMIT {
                return Err(format!("the daemon did not answer; see {}", log_path.display()).into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// If the daemon is gone.
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.socket)?)
    }

    /// Memory in use now.
    pub fn memory(&self) -> Option<Memory> {
        let path = format!("/proc/{}/status", self.child.id());
        let mib = |name| status_kib(&path, name).map(|kib| kib as f64 / 1024.0);
        Some(Memory { rss_mib: mib("VmRSS")?, anonymous_mib: mib("RssAnon")? })
    }

    /// Ends the daemon as an operator would and waits for it.
    ///
    /// # Errors
    /// If it does not end cleanly.
    pub fn stop(mut self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        self.client()?.call::<Value>("admin.shutdown", json!({}), ANSWER_LIMIT)?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(begun.elapsed())
        } else {
            Err(format!("the daemon ended with {status}").into())
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
