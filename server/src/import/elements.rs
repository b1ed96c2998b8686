//! The elements of a top-level JSON array, or the values that follow each other in a file, one at a time.
//!
//! Keeps: only one element is held, up to [`MAX_ELEMENT_BYTES`]. It finds where an element ends by counting
//! brackets outside strings; whether the element is JSON is the caller's question. Knows no format.

use std::io::{self, BufRead};

/// The biggest element that is held.
pub(super) const MAX_ELEMENT_BYTES: usize = 512 << 20;

/// One element, or why there is none to look at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Element {
    Bytes(Vec<u8>),
    TooLong,
    /// The file ended inside an element.
    CutOff,
}

/// Reads elements one after the other.
pub(super) struct ElementReader<R> {
    inner: R,
    in_array: bool,
    lines_read: u64,
    bytes_read: u64,
}

/// Where the scan stands inside an element.
#[derive(Default)]
struct Scan {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Whether the element ends with this byte.
    fn ends_at(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

impl<R: BufRead> ElementReader<R> {
    /// Elements of the array that the file is.
    pub(super) fn of_array(inner: R) -> Self {
        Self::new(inner, true)
    }

    /// Values that follow each other.
    pub(super) fn of_values(inner: R) -> Self {
        Self::new(inner, false)
    }

    fn new(inner: R, in_array: bool) -> Self {
        ElementReader { inner, in_array, lines_read: 1, bytes_read: 0 }
    }

    /// The next object or array; anything else between elements comes back as an element of its own, cut at
    /// the next comma or bracket, so that it is counted and not lost.
    pub(super) fn read(&mut self) -> io::Result<Option<Element>> {
        let mut element = Vec::new();
        let mut scan = Scan::default();
        let mut too_long = false;
        while let Some(byte) = self.next_byte()? {
            let outside = scan.depth == 0 && !scan.in_string;
            if outside && element.is_empty() && self.is_between(byte) {
                continue;
            }
            if outside && !element.is_empty() && matches!(byte, b',' | b']' | b'\n') {
                return Ok(Some(Element::Bytes(element)));
            }
            let ended = scan.ends_at(byte);
            too_long |= element.len() >= MAX_ELEMENT_BYTES;
            if !too_long {
                element.push(byte);
            }
            if ended {
                return Ok(Some(if too_long { Element::TooLong } else { Element::Bytes(element) }));
            }
        }
        if element.is_empty() {
            return Ok(None);
        }
        Ok(Some(Element::CutOff))
    }

    /// The number of the line on which the scan stands, from 1.
    pub(super) fn number(&self) -> u64 {
        self.lines_read
    }

    /// Bytes taken from the file so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    fn is_between(&mut self, byte: u8) -> bool {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b',' | b']' => true,
            0xef | 0xbb | 0xbf if self.bytes_read <= 3 => true,
            b'[' if self.in_array => {
                // Only the first bracket opens the array; later ones are elements.
                self.in_array = false;
                true
            }
            _ => false,
        }
    }

    fn next_byte(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.inner.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(chunk) => {
                    let Some(&byte) = chunk.first() else {
                        return Ok(None);
                    };
                    self.inner.consume(1);
                    self.bytes_read += 1;
                    self.lines_read += u64::from(byte == b'\n');
                    return Ok(Some(byte));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read_all(mut reader: ElementReader<&[u8]>) -> Vec<String> {
        let mut got = Vec::new();
        while let Some(element) = reader.read().unwrap() {
            got.push(match element {
                Element::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
                other => format!("{other:?}"),
            });
            assert!(got.len() < 100, "the reader must end");
        }
        got
    }

    fn check(input: &str, want: &[&str]) {
        assert_eq!(read_all(ElementReader::of_array(input.as_bytes())), want, "{input}");
    }

    #[test]
    fn arrays_are_cut_into_elements() {
        check("[]", &[]);
        check("", &[]);
        check("\u{feff}[{\"a\":1}]", &["{\"a\":1}"]);
        check(
            "[ {\"a\":[1,2]} ,\n{\"b\":\"}]\\\"{\"}]\n",
            &["{\"a\":[1,2]}", "{\"b\":\"}]\\\"{\"}"],
        );
        check("[{\"a\":1},{\"b\":", &["{\"a\":1}", "CutOff"]);
        check("[1, \"x\", {}]", &["1", "\"x\"", "{}"]);
        check("[[1],[2]]", &["[1]", "[2]"]);
        check("]]]]", &[]);
    }

    #[test]
    fn values_that_follow_each_other() {
        let got = read_all(ElementReader::of_values(b"{\n \"a\": 1\n}\n{}\n[1]"));
        assert_eq!(got, ["{\n \"a\": 1\n}", "{}", "[1]"]);
    }
}
