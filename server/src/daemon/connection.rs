//! Connections: a plain thread each, bounded in number.
//!
//! Invariant: requests of a connection are answered in the order in which they came, each answer with one write where the
//! client takes it; a client that is slow, hostile or gone costs its own thread and no one else's. It must not know any
//! method.

use super::framing::{FrameReader, Next, TimedRead};
use crate::rpc::{ErrorCode, RpcError, frame, table};
use crate::service::counters::count;
use crate::service::gate::Permit;
use crate::service::methods::METHODS;
use crate::service::{Context, Service};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When to try again after all places were taken.
const CONNECT_RETRY_MS: u64 = 500;

/// Answer buffers above this are given back.
const KEEP: usize = 256 << 10;

/// Longest that the rest of an over-long frame is read and thrown away.
const DISCARD: Duration = Duration::from_secs(2);

type Open = Arc<Mutex<HashMap<u64, UnixStream>>>;

/// All connections there are.
pub(super) struct Connections {
    service: Arc<Service>,
    open: Open,
    next: AtomicU64,
}

impl Connections {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service, open: Open::default(), next: AtomicU64::new(0) }
    }

    /// Starts a thread for a connection, or tells it why not.
    pub(super) fn admit(&self, stream: UnixStream) {
        let counters = &self.service.counters;
        count(&counters.connections, 1);
        if let Err(error) = check_peer(&stream) {
            tracing::warn!(%error, "a connection was refused");
            count(&counters.connections_refused, 1);
            return turn_away(stream, &error);
        }
        let gate = &self.service.connections;
        let Some(permit) = gate.enter() else {
            count(&counters.connections_refused, 1);
            let busy = RpcError::busy("connections", gate.limit(), CONNECT_RETRY_MS);
            return turn_away(stream, &busy);
        };
        if let Err(error) = self.start(&stream, permit) {
            tracing::error!(%error, "a connection could not be served");
            count(&counters.connections_refused, 1);
            turn_away(stream, &RpcError::busy("threads", gate.limit(), CONNECT_RETRY_MS));
        }
    }

    fn start(&self, stream: &UnixStream, permit: Permit) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let theirs = stream.try_clone()?;
        self.open.lock().insert(number, stream.try_clone()?);
        let service = Arc::clone(&self.service);
        let open = Registered(Arc::clone(&self.open), number);
        std::thread::Builder::new()
            .name(format!("conn-{number}"))
            .spawn(move || {
                let _permit = permit;
                let _open = open;
                if let Err(error) = serve(theirs, service) {
                    tracing::debug!(%error, connection = number, "connection ended");
                }
            })
            .map(|_| ())
    }

    /// Lets every connection finish the request it is at, and gives back how many had not by the deadline.
    pub(super) fn drain(&self, deadline: Instant) -> usize {
        for stream in self.open.lock().values() {
            // The thread sees the end of the stream once it has read what had arrived.
            if let Err(error) = stream.shutdown(Shutdown::Read) {
                tracing::debug!(%error, "a connection was closed already");
            }
        }
        loop {
            let left = self.service.connections.taken();
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Takes a connection out of the list when its thread ends, however it ends.
struct Registered(Open, u64);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

/// Lets in the daemon's own user only. The kernel fixed the peer's user when it connected.
#[cfg(target_os = "linux")]
fn check_peer(stream: &UnixStream) -> Result<(), RpcError> {
    let forbidden = |reason: String| RpcError::new(ErrorCode::Forbidden, reason);
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|error| forbidden(format!("the peer's user cannot be read: {error}")))?;
    let own = rustix::process::geteuid();
    if peer.uid == own {
        return Ok(());
    }
    Err(forbidden(format!("user {} is not the service's user {}", peer.uid.as_raw(), own.as_raw())))
}

/// Without peer credentials, the permissions of the socket and its folder are what keeps others out.
#[cfg(not(target_os = "linux"))]
fn check_peer(_: &UnixStream) -> Result<(), RpcError> {
    Ok(())
}

fn turn_away(mut stream: UnixStream, error: &RpcError) {
    let mut out = Vec::new();
    frame::write_error(&mut out, None, error);
    out.push(b'\n');
    // A new socket's buffer is empty, so this does not wait; who does not read it loses only the reason.
    let told = stream.set_nonblocking(true).and_then(|()| stream.write_all(&out));
    if let Err(error) = told {
        tracing::debug!(%error, "a refused connection was not told why");
    }
}

impl TimedRead for UnixStream {
    fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        UnixStream::set_read_timeout(self, timeout)
    }
}

fn serve(mut stream: UnixStream, service: Arc<Service>) -> io::Result<()> {
    let limits = service.limits().clone();
    let mut reader = FrameReader::new(
        stream.try_clone()?,
        limits.frame_bytes,
        Duration::from_millis(limits.frame_read_ms),
    );
    let peer = stream.try_clone()?;
    let context = Context::with_client(service, move || has_gone(&peer));
    let write_time = Duration::from_millis(limits.write_ms);
    let mut out = Vec::new();
    loop {
        let error = match reader.next()? {
            Next::Frame(bytes, arrived) => {
                context.set_arrived(arrived);
                table::answer_frame(
                    METHODS,
                    bytes,
                    &limits,
                    &mut out,
                    &mut |method, params, out| context.invoke(method, params, out),
                );
                let begun = Instant::now();
                let written = write(&mut stream, &out, write_time);
                context.written((!out.is_empty()).then(|| begun.elapsed()));
                written?;
                out.clear();
                if out.capacity() > KEEP {
                    out = Vec::new();
                }
                continue;
            }
            Next::Closed => return Ok(()),
            Next::TooLong => RpcError::new(
                ErrorCode::LimitExceeded,
                format!(
                    "a frame has more than {} bytes; send less at a time. The connection is closed",
                    limits.frame_bytes
                ),
            )
            .with_data(json!({ "what": "frame", "limit": limits.frame_bytes })),
            Next::TooSlow => RpcError::new(
                ErrorCode::DeadlineExceeded,
                format!(
                    "a frame that was begun did not end within {} ms. The connection is closed",
                    limits.frame_read_ms
                ),
            )
            .with_data(json!({ "what": "frame", "limit": limits.frame_read_ms })),
        };
        let too_long = error.is(ErrorCode::LimitExceeded);
        frame::write_error(&mut out, None, &error);
        out.push(b'\n');
        write(&mut stream, &out, write_time)?;
        if too_long {
            reader.discard(limits.frame_bytes * 16, DISCARD);
        }
        return Ok(());
    }
}

/// Whether the other end was closed. One that only ended its requests (`shutdown` of its writing side) still reads.
fn has_gone(stream: &UnixStream) -> bool {
    let mut watched = [PollFd::new(stream, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let hung_up = PollFlags::HUP | PollFlags::ERR;
    poll(&mut watched, Some(&at_once)).is_ok() && watched[0].revents().intersects(hung_up)
}

/// Writes an answer, with one call where the client takes it. A client that takes too long loses its connection: its
/// requests would be answered into the void.
fn write(stream: &mut UnixStream, out: &[u8], time: Duration) -> io::Result<()> {
    let deadline = Instant::now() + time + Duration::from_secs((out.len() >> 20) as u64);
    let mut left = out;
    while !left.is_empty() {
        let time = deadline.saturating_duration_since(Instant::now());
        if time.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "the client does not read"));
        }
        stream.set_write_timeout(Some(time))?;
        match stream.write(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => left = &left[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;

    #[test]
    fn a_client_that_does_not_read_is_given_up() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let large = vec![b'x'; 900 << 10];
        let begun = Instant::now();
        let error = write(&mut ours, &large, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_client_has_gone_when_it_closed_not_when_it_ended_its_requests() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!has_gone(&ours));
        theirs.shutdown(Shutdown::Write).unwrap();
        assert!(!has_gone(&ours), "it still reads");
        drop(theirs);
        assert!(has_gone(&ours));
    }

    #[test]
    fn a_refused_peer_is_told_why() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        turn_away(ours, &RpcError::busy("connections", 64, 500));
        let mut line = String::new();
        theirs.read_to_string(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["error"]["code"], ErrorCode::Busy.code());
        assert_eq!(answer["error"]["data"]["retry_after_ms"], 500);
        assert_eq!(answer["id"], serde_json::Value::Null);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_own_user_is_let_in() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(check_peer(&ours), Ok(()));
    }
}
