//! The demo's own daemon: a child process on a temporary store and socket.
//!
//! Keeps: the child never outlives the demo; it is asked to stop first and killed only where it does not.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::json;

use super::check_interrupt;
use crate::cli::exit::{CliError, Exit};
use crate::client::{Client, ClientError};

/// The first start compiles the model, which takes seconds.
const START_TIMEOUT: Duration = Duration::from_secs(300);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
const LOG_TAIL_LINES: usize = 12;

/// A running daemon and a connection to it.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    client: Client,
}

/// Kills the child where starting fails half-way.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

impl Daemon {
    /// Starts a daemon in `folder` and waits until it answers `admin.health`.
    pub(super) fn start(
        folder: &Path,
        model_arguments: &[OsString],
        stop: &AtomicBool,
    ) -> Result<Self, CliError> {
        let failed = |error: std::io::Error| {
            CliError::new(Exit::NoDaemon, format!("cannot start the daemon: {error}"))
        };
        let log_path = folder.join("daemon.log");
        let log = File::create(&log_path).map_err(failed)?;
        let also_log = log.try_clone().map_err(failed)?;
        let socket = folder.join("run").join("flashbulb.sock");
        let child = Command::new(std::env::current_exe().map_err(failed)?)
            .arg("serve")
            // In a session of its own Ctrl-C reaches only the demo, which then stops the daemon in order; and
            // where the demo is killed, the daemon ends with it.
            .args(["--detached", "--with-parent"])
            .arg("--store")
            .arg(folder.join("store"))
            .arg("--socket")
            .arg(&socket)
            .args(model_arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(also_log)
            .spawn()
            .map_err(failed)?;
        let mut starting = Starting(Some(child));
        let client = wait_until_well(&mut starting, &socket, &log_path, stop)?;
        let child = starting.0.take().ok_or_else(|| lost(&log_path))?;
        Ok(Daemon { child, client })
    }

    /// The connection.
    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Stops the daemon and waits for its end.
    pub(super) fn stop(mut self) -> Result<(), CliError> {
        let asked: Result<serde_json::Value, ClientError> =
            self.client.call("admin.shutdown", json!({}), STOP_TIMEOUT);
        let status = wait_for_end(&mut self.child, STOP_TIMEOUT);
        match (asked, status) {
            (_, Some(status)) if status.success() => Ok(()),
            (Err(error), _) => Err(error.into()),
            (Ok(_), status) => Err(CliError::new(
                Exit::Failed,
                format!("the demo's daemon did not stop in order: {status:?}"),
            )),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn wait_until_well(
    starting: &mut Starting,
    socket: &Path,
    log: &Path,
    stop: &AtomicBool,
) -> Result<Client, CliError> {
    let started = Instant::now();
    loop {
        check_interrupt(stop)?;
        if let Ok(mut client) = Client::connect(socket) {
            let health: Result<serde_json::Value, _> =
                client.call("admin.health", json!({}), Duration::from_secs(60));
            if health.is_ok() {
                return Ok(client);
            }
        }
        let child = starting.0.as_mut().ok_or_else(|| lost(log))?;
        match child.try_wait() {
            Ok(None) if started.elapsed() < START_TIMEOUT => std::thread::sleep(POLL),
            _ => return Err(lost(log)),
        }
    }
}

/// The daemon did not come up; its log goes with the temporary folder, so its end is shown.
fn lost(log: &Path) -> CliError {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
    CliError::new(
        Exit::NoDaemon,
        format!(
            "the demo's daemon did not come up; look at `flashbulb doctor`. Its last lines:\n{tail}"
        ),
    )
}

/// Asks the child to end with SIGTERM, and kills it where it does not.
fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // An error means that it has ended meanwhile.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if wait_for_end(child, STOP_TIMEOUT).is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn wait_for_end(child: &mut Child, timeout: Duration) -> Option<std::process::ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < timeout {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => std::thread::sleep(POLL),
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_child_that_listens_ends_by_term_and_a_deaf_one_is_waited_for() {
        let mut polite = Command::new("sleep").arg("60").spawn().unwrap();
        end(&mut polite);
        assert!(polite.try_wait().unwrap().is_some());
        let mut deaf = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(wait_for_end(&mut deaf, Duration::from_millis(50)).is_none());
        end(&mut deaf);
        assert!(deaf.try_wait().unwrap().is_some());
    }

    #[test]
    fn the_end_of_the_log_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let text: String = (0..30).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&log, text).unwrap();
        let error = lost(&log);
        assert!(error.message.contains("line 29") && !error.message.contains("line 17\n"));
        assert!(lost(Path::new("/nowhere")).message.contains("doctor"));
    }
}
