//! A blocking client of the daemon: newline-delimited JSON-RPC 2.0 over its Unix socket.
//!
//! Keeps: an answer belongs to the request it is given for; an answer that is too long, malformed or late is an
//! error and never read as something else; nothing is sent to a socket that another user owns. It must not know
//! any method's parameters or results, nor anything of the engine.

mod start;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use start::{
    EXIT_STORE_HELD, Places, StartOptions, connect_or_start, default_socket, default_store,
    log_path,
};

/// Longest path that fits into a socket address, its final zero byte aside.
pub const MAX_SOCKET_PATH_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Longest answer that is read: far above what the daemon sends in one answer.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The `error` member of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RpcError {
    /// See the protocol's table of codes.
    pub code: i64,
    /// What went wrong, where, and what to do next.
    pub message: String,
    /// The same for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

impl RpcError {
    /// For an error that says so: after how long to try again.
    pub fn retry_after(&self) -> Option<Duration> {
        let ms = self.data.as_ref()?.get("retry_after_ms")?.as_u64()?;
        Some(Duration::from_millis(ms))
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The path cannot be a socket's address.
    #[error(
        "the socket path {} is {} bytes long, and a Unix socket takes {MAX_SOCKET_PATH_BYTES}; \
         choose a shorter one with --socket or FLASHBULB_SOCKET",
        path.display(), path.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Nothing listens there.
    #[error("no daemon at {}: {source}; start one with `flashbulb serve`", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The socket belongs to somebody else.
    #[error(
        "the daemon at {} runs as user {owner}, not as you (user {me}); use a socket of your own with --socket",
        path.display()
    )]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        owner: u32,
        /// Who asks.
        me: u32,
    },
    /// The connection broke.
    #[error(
        "lost the connection to the daemon while {doing}: {source}; see its log, then `flashbulb status`"
    )]
    Io {
        /// What was going on.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// No answer in time.
    #[error("no answer to {method} within {} s; the daemon may be busy: try `flashbulb status`", timeout.as_secs_f32())]
    Timeout {
        /// The method called.
        method: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The answer is not JSON-RPC.
    #[error("the daemon's answer makes no sense: {what}; is {} really a flashbulb socket?", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The daemon answered with an error.
    #[error("{}", .0.message)]
    Rpc(RpcError),
    /// A daemon could not be started.
    #[error("could not start the daemon: {what}{}", log_note(log, tail))]
    Start {
        /// What happened.
        what: String,
        /// The exit status of the daemon, where it ended by itself.
        exit: Option<i32>,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// No place for the socket or the store.
    #[error("{what}")]
    NoPlace {
        /// What is missing and how to name it.
        what: String,
    },
}

fn log_note(log: &Path, tail: &str) -> String {
    if tail.is_empty() {
        return format!("; its log is {}", log.display());
    }
    format!("\nlast lines of {}:\n{tail}", log.display())
}

impl From<RpcError> for ClientError {
    fn from(error: RpcError) -> Self {
        ClientError::Rpc(error)
    }
}

/// One connection. Requests may be sent ahead of their answers: see [`Client::send`].
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    next_id: u64,
    /// Bytes read and not yet taken as a frame.
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no line end.
    scanned: usize,
}

#[derive(Serialize)]
struct Request<'a, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: P,
}

#[derive(Deserialize)]
struct Answer {
    id: Option<u64>,
    result: Option<Box<RawValue>>,
    error: Option<RpcError>,
}

impl Client {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    ///
    /// When the path is too long, nothing listens, or another user's process does.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(ClientError::PathTooLong { path: path.to_owned() });
        }
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::NoDaemon { path: path.to_owned(), source })?;
        check_owner(&stream, path)?;
        Ok(Client::over(stream, path))
    }

    /// A client on a connection that is there.
    pub(crate) fn over(stream: UnixStream, path: &Path) -> Self {
        Client { stream, path: path.to_owned(), next_id: 1, buffer: Vec::new(), scanned: 0 }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls a method and waits for its result.
    ///
    /// # Errors
    ///
    /// The daemon's own error, a broken connection, no answer in `timeout`, or a result of another shape.
    pub fn call<R: DeserializeOwned>(
        &mut self,
        method: &str,
        params: impl Serialize,
        timeout: Duration,
    ) -> Result<R, ClientError> {
        let raw = self.call_raw(method, params, timeout)?;
        self.parse(method, &raw)
    }

    /// As [`Client::call`], with the result as the daemon wrote it.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub fn call_raw(
        &mut self,
        method: &str,
        params: impl Serialize,
        timeout: Duration,
    ) -> Result<Box<RawValue>, ClientError> {
        let deadline = Instant::now() + timeout;
        let id = self.send(method, params)?;
        loop {
            match self.receive_until(deadline) {
                // A late answer to a call that was given up.
                Ok((other, _)) if other < id => {}
                Ok((_, answer)) => return answer.map_err(ClientError::Rpc),
                Err(ClientError::Timeout { .. }) => {
                    return Err(ClientError::Timeout { method: method.to_owned(), timeout });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A result as a type.
    ///
    /// # Errors
    ///
    /// When the result has another shape.
    pub fn parse<R: DeserializeOwned>(
        &self,
        method: &str,
        raw: &RawValue,
    ) -> Result<R, ClientError> {
        serde_json::from_str(raw.get())
            .map_err(|error| self.protocol(format!("the result of {method}: {error}")))
    }

    /// Sends a request without waiting; its answer comes from [`Client::receive`] with the id given back here.
    /// Answers come in the order of the requests.
    ///
    /// # Errors
    ///
    /// When the connection is broken or the parameters cannot be written as JSON.
    pub fn send(&mut self, method: &str, params: impl Serialize) -> Result<u64, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request { jsonrpc: "2.0", id, method, params };
        let mut frame = serde_json::to_vec(&request)
            .map_err(|error| self.protocol(format!("the parameters of {method}: {error}")))?;
        frame.push(b'\n');
        self.stream
            .write_all(&frame)
            .map_err(|source| ClientError::Io { doing: "sending", source })?;
        Ok(id)
    }

    /// The next answer, and the id of its request.
    ///
    /// # Errors
    ///
    /// When the connection breaks, nothing comes in `timeout`, or what comes is no answer.
    pub fn receive(
        &mut self,
        timeout: Duration,
    ) -> Result<(u64, Result<Box<RawValue>, RpcError>), ClientError> {
        self.receive_until(Instant::now() + timeout)
    }

    fn receive_until(
        &mut self,
        deadline: Instant,
    ) -> Result<(u64, Result<Box<RawValue>, RpcError>), ClientError> {
        let frame = self.frame(deadline)?;
        let answer: Answer =
            serde_json::from_slice(&frame).map_err(|error| self.protocol(format!("{error}")))?;
        match (answer.id, answer.result, answer.error) {
            (Some(id), Some(result), None) => Ok((id, Ok(result))),
            (Some(id), None, Some(error)) => Ok((id, Err(error))),
            // Without an id the daemon could not read a frame, and may be about to close.
            (None, None, Some(error)) => Err(ClientError::Rpc(error)),
            _ => Err(self.protocol("neither a result nor an error".to_owned())),
        }
    }

    /// Bytes up to the next line end.
    fn frame(&mut self, deadline: Instant) -> Result<Vec<u8>, ClientError> {
        loop {
            let unseen = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = unseen.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.scanned + end + 1);
                let mut frame = std::mem::replace(&mut self.buffer, rest);
                frame.pop();
                self.scanned = 0;
                return Ok(frame);
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > MAX_ANSWER_BYTES {
                return Err(
                    self.protocol(format!("more than {MAX_ANSWER_BYTES} bytes on one line"))
                );
            }
            self.fill(deadline)?;
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), ClientError> {
        let io_error = |source| ClientError::Io { doing: "waiting for an answer", source };
        let timeout =
            || ClientError::Timeout { method: "a request".to_owned(), timeout: Duration::ZERO };
        let mut chunk = [0; 64 << 10];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(timeout());
            }
            self.stream.set_read_timeout(Some(left)).map_err(io_error)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    return Err(io_error(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the daemon closed it",
                    )));
                }
                Ok(read) => {
                    self.buffer.extend_from_slice(&chunk[..read]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Err(timeout());
                }
                Err(error) => return Err(io_error(error)),
            }
        }
    }

    fn protocol(&self, what: String) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), what }
    }
}

/// In a shared folder such as /tmp somebody else could listen at the expected path and read every memory.
#[cfg(target_os = "linux")]
fn check_owner(stream: &UnixStream, path: &Path) -> Result<(), ClientError> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|error| ClientError::Io { doing: "asking who listens", source: error.into() })?;
    let me = rustix::process::geteuid();
    if peer.uid != me && !me.is_root() {
        return Err(ClientError::Stranger {
            path: path.to_owned(),
            owner: peer.uid.as_raw(),
            me: me.as_raw(),
        });
    }
    Ok(())
}

/// Without peer credentials the folder's permissions, which the daemon checks, have to do.
#[cfg(not(target_os = "linux"))]
fn check_owner(_stream: &UnixStream, _path: &Path) -> Result<(), ClientError> {
    Ok(())
}

#[cfg(test)]
mod tests;
