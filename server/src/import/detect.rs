//! Which format a file has and how its records are laid out, from its content alone.
//!
//! Keeps: the file's name is never asked; a file that fits nothing is an error, never read as something
//! else. Reads only as far as the first record needs. Must not interpret messages.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::lines::{Line, LineReader};
use super::{Format, ImportError};

/// How records lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One a line.
    Lines,
    /// Elements of one JSON array.
    Array,
    /// JSON values over several lines each.
    Values,
}

const HEAD_BYTES: u64 = 64 << 10;
/// Lines that are looked at before giving up: logs may open with lines of unknown shape.
const PROBED_LINES: usize = 100;

/// The format and layout of a file; a format that is given is kept, and only the layout is found.
pub(super) fn detect(path: &Path, given: Option<Format>) -> Result<(Format, Layout), ImportError> {
    let head = read_head(path)?;
    refuse_archives(path, &head)?;
    if let Some(format @ (Format::Text | Format::Claude)) = given {
        return Ok((format, Layout::Lines));
    }
    let body = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
    let mut significant = body.iter().filter(|byte| !byte.is_ascii_whitespace());
    let first = significant.next().copied();
    let second = significant.next().copied();
    let undetectable = |what| ImportError::Undetectable { path: path.to_owned(), what };
    match (first, given) {
        (None, _) => Ok((given.unwrap_or(Format::Text), Layout::Lines)),
        (Some(b'['), Some(format)) => Ok((format, Layout::Array)),
        (Some(b'{'), Some(format)) => Ok((format, object_layout(path)?)),
        (_, Some(format)) => Ok((format, Layout::Lines)),
        (Some(b'['), None) => match (probe_file(path)?, second) {
            (Some(format), _) => Ok((format, Layout::Array)),
            (None, Some(b'{' | b'[' | b']')) => {
                Err(undetectable("it is a JSON array of no known shape"))
            }
            (None, _) => text_or_error(body).map_err(undetectable),
        },
        (Some(b'{'), None) => match probe_file(path)? {
            Some(format) => Ok((format, object_layout(path)?)),
            None => match probe_lines(path)? {
                Some(format) => Ok((format, Layout::Lines)),
                None if second == Some(b'"') || second == Some(b'}') => {
                    Err(undetectable("it holds JSON objects of no known shape"))
                }
                None => text_or_error(body).map_err(undetectable),
            },
        },
        (Some(_), None) => match probe_lines(path)? {
            // Broken lines before the first good one are counted later, not fatal here.
            Some(format) => Ok((format, Layout::Lines)),
            None => text_or_error(body).map_err(undetectable),
        },
    }
}

fn text_or_error(head: &[u8]) -> Result<(Format, Layout), &'static str> {
    if head.contains(&0) {
        return Err("it holds binary data or text that is not UTF-8");
    }
    Ok((Format::Text, Layout::Lines))
}

fn open(path: &Path) -> Result<File, ImportError> {
    File::open(path).map_err(|source| ImportError::Io { op: "open", path: path.to_owned(), source })
}

fn read_error(path: &Path) -> impl Fn(std::io::Error) -> ImportError {
    move |source| ImportError::Io { op: "read", path: path.to_owned(), source }
}

fn read_head(path: &Path) -> Result<Vec<u8>, ImportError> {
    let mut head = Vec::new();
    open(path)?.take(HEAD_BYTES).read_to_end(&mut head).map_err(read_error(path))?;
    Ok(head)
}

fn refuse_archives(path: &Path, head: &[u8]) -> Result<(), ImportError> {
    let (kind, inside) = if head.starts_with(b"PK\x03\x04") {
        ("zip", "conversations.json or .jsonl")
    } else if head.starts_with(b"\x1f\x8b") {
        ("gzip", "file")
    } else {
        return Ok(());
    };
    Err(ImportError::Archive { path: path.to_owned(), kind, inside })
}

/// Lines, unless the first line is the beginning of an object that the next line continues.
fn object_layout(path: &Path) -> Result<Layout, ImportError> {
    let mut lines = LineReader::new(BufReader::new(open(path)?));
    let mut first_is_cut = false;
    while let Some(line) = lines.read().map_err(read_error(path))? {
        let Line::Bytes(line) = line else {
            return Ok(Layout::Lines);
        };
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if first_is_cut {
            let continues = !line.starts_with(b"{");
            return Ok(if continues { Layout::Values } else { Layout::Lines });
        }
        match serde_json::from_slice::<IgnoredAny>(line) {
            Err(error) if error.is_eof() => first_is_cut = true,
            _ => return Ok(Layout::Lines),
        }
    }
    Ok(Layout::Lines)
}

fn probe_file(path: &Path) -> Result<Option<Format>, ImportError> {
    let mut reader = BufReader::new(open(path)?);
    let mut mark = [0; 3];
    let has_mark =
        reader.read(&mut mark).map_err(read_error(path))? == 3 && mark == *b"\xef\xbb\xbf";
    let rest: Box<dyn Read> =
        if has_mark { Box::new(reader) } else { Box::new(BufReader::new(open(path)?)) };
    Ok(probe(serde_json::Deserializer::from_reader(rest)))
}

fn probe_lines(path: &Path) -> Result<Option<Format>, ImportError> {
    let mut lines = LineReader::new(BufReader::new(open(path)?));
    for _ in 0..PROBED_LINES {
        match lines.read().map_err(read_error(path))? {
            None => break,
            Some(Line::Bytes(line)) if line.trim_ascii_start().starts_with(b"{") => {
                let found = probe(serde_json::Deserializer::from_slice(&line));
                if found.is_some() {
                    return Ok(found);
                }
            }
            Some(_) => {}
        }
    }
    Ok(None)
}

/// What the first object of this JSON looks like; `None` also where it is not JSON.
fn probe<'de, R: serde_json::de::Read<'de>>(
    mut json: serde_json::Deserializer<R>,
) -> Option<Format> {
    let found = Cell::new(None);
    // The visitor stops with an error as soon as it knows; only the cell matters.
    let _ = Shape(&found).deserialize(&mut json);
    found.get()
}

struct Shape<'a>(&'a Cell<Option<Format>>);

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        list.next_element_seed(self)?;
        Err(A::Error::custom("only the first element is looked at"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let mut keys = Vec::new();
        while let Some(key) = object.next_key::<String>()? {
            let known = match key.as_str() {
                "mapping" => Some(Format::ChatGpt),
                "messages" => Some(Format::Messages),
                _ => None,
            };
            if known.is_some() {
                self.0.set(known);
                return Err(A::Error::custom("found"));
            }
            object.next_value::<IgnoredAny>()?;
            keys.push(key);
        }
        let has = |name: &str| keys.iter().any(|key| key == name);
        let claude_mark = ["uuid", "sessionId", "leafUuid", "messageId", "parentUuid"];
        self.0.set(if has("type") && claude_mark.into_iter().any(has) {
            Some(Format::Claude)
        } else if has("role") && (has("content") || has("tool_calls")) {
            Some(Format::Messages)
        } else if has("text") {
            Some(Format::Export)
        } else {
            None
        });
        Ok(())
    }
}
