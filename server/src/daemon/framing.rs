//! Frames from a byte stream: one line, one frame.
//!
//! Invariant: never more than the frame limit and one read are held, however much a client sends; a frame that was begun
//! ends in time or not at all; bytes are looked at once. It must not know what is in a frame.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

/// Bytes taken from the stream at a time.
const CHUNK: usize = 32 << 10;

/// Buffers above this are given back once they are empty.
const KEEP: usize = 256 << 10;

/// A stream whose reads can be bounded in time.
pub(super) trait TimedRead: Read {
    /// Bounds every later read; `None` waits for ever.
    fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()>;
}

/// What came next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A frame, its newline taken off, and when its last byte arrived.
    Frame(&'a [u8], Instant),
    /// A frame longer than allowed.
    TooLong,
    /// A frame that was begun and not ended in time.
    TooSlow,
    /// The client has gone; what it had begun is worth nothing.
    Closed,
}

/// Cuts a stream into frames.
pub(super) struct FrameReader<R> {
    stream: R,
    limit: usize,
    frame_time: Duration,
    buffer: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
    /// Up to where no newline is.
    scanned: usize,
    chunk: Box<[u8]>,
    last_read: Instant,
    /// When the first byte of the frame at hand arrived.
    begun: Instant,
    timed: bool,
}

impl<R: TimedRead> FrameReader<R> {
    pub(super) fn new(stream: R, limit: usize, frame_time: Duration) -> Self {
        let now = Instant::now();
        Self {
            stream,
            limit,
            frame_time,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            chunk: vec![0; CHUNK].into_boxed_slice(),
            last_read: now,
            begun: now,
            timed: false,
        }
    }

    /// Waits for the next frame.
    pub(super) fn next(&mut self) -> io::Result<Next<'_>> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[self.scanned..]) {
                let (from, to) = (self.start, self.scanned + at);
                self.start = to + 1;
                self.scanned = self.start;
                // What follows arrived with the same read.
                self.begun = self.last_read;
                if to - from > self.limit {
                    return Ok(Next::TooLong);
                }
                return Ok(Next::Frame(&self.buffer[from..to], self.last_read));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() - self.start > self.limit {
                return Ok(Next::TooLong);
            }
            self.compact();
            match self.fill()? {
                Some(0) => return Ok(Next::Closed),
                Some(_) => {}
                None => return Ok(Next::TooSlow),
            }
        }
    }

    /// Moves the frame at hand to the front.
    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP {
            self.buffer = Vec::new();
        }
    }

    /// Reads once; `None` when the frame at hand took too long.
    fn fill(&mut self) -> io::Result<Option<usize>> {
        let begun = !self.buffer.is_empty();
        if begun {
            let left = self.frame_time.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            self.timed = true;
        } else if self.timed {
            self.stream.set_read_timeout(None)?;
            self.timed = false;
        }
        let read = loop {
            match self.stream.read(&mut self.chunk) {
                Ok(read) => break read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        };
        self.last_read = Instant::now();
        if !begun {
            self.begun = self.last_read;
        }
        self.grow_for(read);
        self.buffer.extend_from_slice(&self.chunk[..read]);
        Ok(Some(read))
    }

    /// Grows by doubling, but never beyond what a frame may need.
    fn grow_for(&mut self, more: usize) {
        let need = self.buffer.len() + more;
        if need > self.buffer.capacity() {
            let capacity = (self.buffer.capacity() * 2).min(self.limit + CHUNK).max(need);
            self.buffer.reserve_exact(capacity - self.buffer.len());
        }
    }

    /// Takes the rest of an over-long frame and throws it away, so that a client that writes first and reads then gets to
    /// read; bounded in time and bytes.
    pub(super) fn discard(&mut self, most: usize, time: Duration) {
        self.buffer = Vec::new();
        let end = Instant::now() + time;
        let mut taken = 0;
        while taken < most {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return;
            }
            match self.stream.read(&mut self.chunk) {
                Ok(0) | Err(_) => return,
                Ok(read) if memchr::memchr(b'\n', &self.chunk[..read]).is_some() => return,
                Ok(read) => taken += read,
            }
        }
    }

    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.buffer.capacity()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::VecDeque;

    /// Gives its parts one read each; an empty part is a timeout.
    struct Parts(VecDeque<Vec<u8>>, Vec<Option<Duration>>);

    impl Read for Parts {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let Some(mut part) = self.0.pop_front() else {
                return Ok(0);
            };
            if part.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let rest = part.split_off(part.len().min(out.len()));
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
            out[..part.len()].copy_from_slice(&part);
            Ok(part.len())
        }
    }

    impl TimedRead for Parts {
        fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
            self.1.push(timeout);
            Ok(())
        }
    }

    fn reader(parts: &[&[u8]], limit: usize) -> FrameReader<Parts> {
        let parts = parts.iter().map(|part| part.to_vec()).collect();
        FrameReader::new(Parts(parts, Vec::new()), limit, Duration::from_secs(30))
    }

    fn frames(parts: &[&[u8]], limit: usize) -> Vec<String> {
        let mut reader = reader(parts, limit);
        let mut seen = Vec::new();
        loop {
            let (text, go_on) = match reader.next().unwrap() {
                Next::Frame(frame, _) => (String::from_utf8(frame.to_vec()).unwrap(), true),
                other => (format!("{other:?}"), false),
            };
            seen.push(text);
            if !go_on {
                return seen;
            }
        }
    }

    #[test]
    fn frames_are_cut_at_newlines_wherever_reads_end() {
        for parts in [
            &[b"ab\ncd\n\ne\n" as &[u8]] as &[&[u8]],
            &[b"a", b"b\nc", b"d\n", b"\ne", b"\n"],
            &[b"ab\n", b"cd\n", b"\n", b"e\n"],
        ] {
            assert_eq!(frames(parts, 10), ["ab", "cd", "", "e", "Closed"]);
        }
        assert_eq!(frames(&[b"ab\ncd"], 10), ["ab", "Closed"]);
    }

    #[test]
    fn the_limit_is_exact_with_and_without_a_newline() {
        assert_eq!(frames(&[b"12345\n"], 5), ["12345", "Closed"]);
        assert_eq!(frames(&[b"123456\n"], 5), ["TooLong"]);
        assert_eq!(frames(&[b"123", b"456"], 5), ["TooLong"]);
    }

    #[test]
    fn an_endless_frame_costs_no_more_than_the_limit() {
        let part = vec![b'x'; CHUNK];
        let limit = 1 << 20;
        let mut reader = reader(&vec![part.as_slice(); 100], limit);
        assert_eq!(reader.next().unwrap(), Next::TooLong);
        assert!(reader.capacity() <= limit + CHUNK, "{}", reader.capacity());
    }

    #[test]
    fn only_a_frame_that_was_begun_is_timed() {
        let mut timed = reader(&[b"a\n", b"b", b""], 10);
        assert!(matches!(timed.next().unwrap(), Next::Frame(b"a", _)));
        assert!(timed.stream.1.is_empty());
        assert_eq!(timed.next().unwrap(), Next::TooSlow);
        assert!(timed.stream.1[0].is_some());
    }

    #[test]
    fn a_large_buffer_is_given_back() {
        let mut large = vec![b'x'; KEEP * 2];
        large.push(b'\n');
        let mut reader = reader(&[&large, b"a\n"], KEEP * 4);
        assert!(matches!(reader.next().unwrap(), Next::Frame(..)));
        assert!(matches!(reader.next().unwrap(), Next::Frame(b"a", _)));
        assert!(reader.capacity() <= KEEP);
    }
}
