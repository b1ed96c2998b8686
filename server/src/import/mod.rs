//! Readers of other programs' conversation files, and the driver that hands what they find to a store.
//!
//! Invariants: importing the same content again gives the same ids, wherever the file lies; nothing is
//! dropped without being counted under a reason; a damaged line costs that line only; a file is streamed,
//! never held whole (a JSON array is held one element at a time).
//!
//! This module knows files and formats. It must not know sockets, the engine or the command line: both the
//! command line and the daemon give it a [`Sink`].

mod chatgpt;
mod claude;
mod detect;
mod drive;
mod elements;
mod export;
mod ids;
mod lines;
mod messages;
mod plain;
mod source;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;
use serde_json::value::RawValue;

pub use drive::{BatchCounts, Counts, Limits, Progress, RunError, Sink, SkipPlace, run};
pub use source::{Source, open};

/// A file format that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// OpenAI-style `{"messages": [{role, content}]}`, one conversation a line, or one JSON array or object.
    Messages,
    /// Session logs of Claude Code: one `.jsonl` file, or a folder that is searched for them.
    Claude,
    /// The `conversations.json` of a ChatGPT data export.
    ChatGpt,
    /// Plain text, one memory a line.
    Text,
    /// What `flashbulb export` writes: one memory a line as JSON.
    Export,
}

impl Format {
    /// Every format, in the order in which they are listed to people.
    pub const ALL: [Format; 5] =
        [Format::Messages, Format::Claude, Format::ChatGpt, Format::Text, Format::Export];

    /// The name used on the command line and in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Messages => "messages",
            Format::Claude => "claude",
            Format::ChatGpt => "chatgpt",
            Format::Text => "text",
            Format::Export => "export",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = ImportError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Format::ALL
            .into_iter()
            .find(|format| format.as_str() == name)
            .ok_or_else(|| ImportError::UnknownFormat { name: name.to_owned() })
    }
}

/// One memory as a file gives it.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// Deterministic: the format's own id, or a hash of the content (see the module `ids`).
    pub id: String,
    /// Never empty.
    pub text: String,
    /// Who said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The conversation it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Milliseconds since 1970; left out where the file has none.
    #[serde(rename = "ts", skip_serializing_if = "Option::is_none")]
    pub ts_ms: Option<i64>,
    /// A JSON object without raw line breaks, kept to the byte where the file gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<Box<RawValue>>,
}

impl Item {
    /// At most this many bytes as JSON: field names, quotes and escapes included.
    pub fn wire_bytes(&self) -> usize {
        const FIELD_NAMES: usize = 80;
        let escaped = |text: &str| {
            text.bytes().fold(0, |sum, byte| match byte {
                b'"' | b'\\' => sum + 2,
                0..0x20 => sum + 6,
                _ => sum + 1,
            })
        };
        let optional = |text: &Option<String>| text.as_deref().map_or(0, escaped);
        FIELD_NAMES
            + escaped(&self.id)
            + escaped(&self.text)
            + optional(&self.role)
            + optional(&self.session)
            + self.meta.as_ref().map_or(0, |meta| meta.get().len())
    }
}

/// Why something in a file did not become a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// No text, or only white space.
    Empty,
    /// Bytes that are not UTF-8.
    InvalidUtf8,
    /// Not JSON, or cut off.
    BrokenJson,
    /// A line or element too big to be looked at.
    LineTooLong,
    /// JSON, but not of the shape the format has.
    NotAMessage,
    /// A time that cannot be read.
    BadTimestamp,
    /// More text than the service takes in one memory.
    TextTooLong,
    /// An id, role, session or meta over the service's limit.
    FieldTooLong,
    /// A call of a tool.
    ToolUse,
    /// What a tool answered.
    ToolResult,
    /// A model's reasoning.
    Thinking,
    /// A picture, sound or file.
    Attachment,
    /// A content block of a type not known here.
    UnknownBlock,
    /// A line the program wrote for itself.
    MetaLine,
    /// A summary of other messages.
    Summary,
    /// A command to the program, or its output.
    LocalCommand,
    /// An error message of the model's service.
    ApiError,
    /// A log of a sub-agent.
    Subagent,
    /// A line of a type not known here.
    UnknownType,
    /// A message on a branch that the conversation left.
    OtherBranch,
    /// A message hidden from the person.
    Hidden,
    /// A file in the folder that is not a log.
    OtherFile,
}

impl SkipReason {
    /// The name used in reports: `snake_case`, stable.
    pub fn as_str(self) -> &'static str {
        match self {
            SkipReason::Empty => "empty",
            SkipReason::InvalidUtf8 => "invalid_utf8",
            SkipReason::BrokenJson => "broken_json",
            SkipReason::LineTooLong => "line_too_long",
            SkipReason::NotAMessage => "not_a_message",
            SkipReason::BadTimestamp => "bad_timestamp",
            SkipReason::TextTooLong => "text_too_long",
            SkipReason::FieldTooLong => "field_too_long",
            SkipReason::ToolUse => "tool_use",
            SkipReason::ToolResult => "tool_result",
            SkipReason::Thinking => "thinking",
            SkipReason::Attachment => "attachment",
            SkipReason::UnknownBlock => "unknown_block",
            SkipReason::MetaLine => "meta_line",
            SkipReason::Summary => "summary",
            SkipReason::LocalCommand => "local_command",
            SkipReason::ApiError => "api_error",
            SkipReason::Subagent => "subagent",
            SkipReason::UnknownType => "unknown_type",
            SkipReason::OtherBranch => "other_branch",
            SkipReason::Hidden => "hidden",
            SkipReason::OtherFile => "other_file",
        }
    }
}

/// What a reader yields: a memory, or something it left out.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A memory.
    Item(Item),
    /// Something left out.
    Skip(SkipReason),
}

/// Why a file cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The operating system refused.
    #[error("cannot {op} {}: {source}; check the path and its permissions", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A name that is no format.
    #[error("unknown format {name:?}; use auto, messages, claude, chatgpt, text or export")]
    UnknownFormat {
        /// The name given.
        name: String,
    },
    /// The content fits no format.
    #[error(
        "cannot tell the format of {}: {what}; name it with --format: messages (JSON lines with \
         \"messages\"), claude (Claude Code session log), chatgpt (conversations.json), text (one memory a \
         line) or export (written by flashbulb export)", path.display()
    )]
    Undetectable {
        /// The file.
        path: PathBuf,
        /// What was seen instead.
        what: &'static str,
    },
    /// A compressed file.
    #[error("{} is a {kind} archive; unpack it first and import the {inside} inside it", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// `zip` or `gzip`.
        kind: &'static str,
        /// What to import instead.
        inside: &'static str,
    },
    /// A pipe, a device or a socket: reading it could last for ever, and a format is told by reading twice.
    #[error("{} is no regular file; write it to a file first and import that", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// A folder given for a format that is one file.
    #[error("{} is a folder, and only claude logs are read from a folder; name one file", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A folder without any log.
    #[error("no .jsonl file in {}; Claude Code keeps its logs in ~/.claude/projects", path.display())]
    NoLogs {
        /// The folder.
        path: PathBuf,
    },
}

/// Milliseconds since 1970 from an integer (milliseconds) or an RFC 3339 string.
///
/// `Ok(None)` for JSON null; `Err(())` for anything else, and for years beyond 9999.
fn timestamp_ms(value: &serde_json::Value) -> Result<Option<i64>, ()> {
    match value {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::Number(number) => number
            .as_i64()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
            .map(|time| Some(time.as_millisecond()))
            .ok_or(()),
        serde_json::Value::String(text) => {
            text.parse::<jiff::Timestamp>().map(|time| Some(time.as_millisecond())).map_err(|_| ())
        }
        _ => Err(()),
    }
}

/// A JSON object of text fields, for `meta`; nothing when no field is there.
fn meta_of(fields: &[(&str, Option<&str>)]) -> Option<Box<RawValue>> {
    let object: serde_json::Map<String, serde_json::Value> = fields
        .iter()
        .filter_map(|(name, value)| value.map(|value| ((*name).to_owned(), value.into())))
        .collect();
    if object.is_empty() {
        return None;
    }
    serde_json::value::to_raw_value(&object).ok()
}

#[cfg(test)]
mod drive_tests;
#[cfg(test)]
mod tests;
