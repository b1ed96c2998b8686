//! Lines of a file, numbered, with a bound on how much of one is held.
//!
//! Keeps: memory stays under [`MAX_LINE_BYTES`] whatever the file holds; a line over it is passed over and
//! reported. A byte-order mark and carriage returns are not part of a line. Knows no format.

use std::io::{self, BufRead};

/// The longest line that is looked at. Above any limit of the service, below what would hurt.
pub(super) const MAX_LINE_BYTES: usize = 64 << 20;

/// One line, or the fact that it was too long.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Bytes(Vec<u8>),
    TooLong,
}

/// Reads lines one after the other.
pub(super) struct LineReader<R> {
    inner: R,
    lines_read: u64,
    bytes_read: u64,
    max_line_bytes: usize,
}

impl<R: BufRead> LineReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self::with_limit(inner, MAX_LINE_BYTES)
    }

    fn with_limit(inner: R, max_line_bytes: usize) -> Self {
        LineReader { inner, lines_read: 0, bytes_read: 0, max_line_bytes }
    }

    /// The next line without its end, or `None` at the end of the file.
    pub(super) fn read(&mut self) -> io::Result<Option<Line>> {
        let mut line = Vec::new();
        let mut too_long = false;
        let mut seen_any = false;
        loop {
            let chunk = match self.inner.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if chunk.is_empty() {
                break;
            }
            seen_any = true;
            let (part, used, ended) = match chunk.iter().position(|byte| *byte == b'\n') {
                Some(end) => (&chunk[..end], end + 1, true),
                None => (chunk, chunk.len(), false),
            };
            too_long |= line.len() + part.len() > self.max_line_bytes;
            if too_long {
                line = Vec::new();
            } else {
                line.extend_from_slice(part);
            }
            self.inner.consume(used);
            self.bytes_read += used as u64;
            if ended {
                break;
            }
        }
        if !seen_any {
            return Ok(None);
        }
        self.lines_read += 1;
        if too_long {
            return Ok(Some(Line::TooLong));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if self.lines_read == 1 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        Ok(Some(Line::Bytes(line)))
    }

    /// The number of the line read last, from 1.
    pub(super) fn number(&self) -> u64 {
        self.lines_read
    }

    /// Bytes taken from the file so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(input: &[u8], want: &[&[u8]]) {
        // A buffer of three bytes makes every line cross a boundary.
        for capacity in [3, 4096] {
            let mut reader =
                LineReader::with_limit(io::BufReader::with_capacity(capacity, input), 8);
            let mut got = Vec::new();
            while let Some(line) = reader.read().unwrap() {
                got.push(match line {
                    Line::Bytes(bytes) => bytes,
                    Line::TooLong => b"<long>".to_vec(),
                });
            }
            assert_eq!(got, want, "input {input:?}, buffer {capacity}");
            assert_eq!(reader.bytes_read(), input.len() as u64);
            assert_eq!(reader.number(), want.len() as u64);
        }
    }

    #[test]
    fn lines_are_cut_and_bounded() {
        check(b"", &[]);
        check(b"a\nb\n", &[b"a", b"b"]);
        check(b"a\r\nb", &[b"a", b"b"]);
        check(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", &[b"a", b"\xef\xbb\xbfb"]);
        check(b"\n\n", &[b"", b""]);
        check(b"123456789\nok\n", &[b"<long>", b"ok"]);
        check(b"12345678\nok\n", &[b"12345678", b"ok"]);
    }
}
