//! What `flashbulb export` writes: one memory a line as JSON, `{id, text, role?, session?, ts?, meta?}`.
//!
//! Keeps: a memory that is exported and imported has the same id, text, role, session, time and meta, the
//! last to the byte. An `id` may be missing (a file written by hand); then it is a hash.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::ids::IdMaker;
use super::source::Parser;
use super::{Entry, Item, SkipReason, timestamp_ms};

#[derive(Default)]
pub(super) struct Export {
    ids: IdMaker,
}

#[derive(Deserialize)]
struct Line {
    id: Option<String>,
    text: String,
    role: Option<String>,
    session: Option<String>,
    #[serde(default)]
    ts: serde_json::Value,
    meta: Option<Box<RawValue>>,
}

impl Parser for Export {
    fn record(&mut self, record: &str, out: &mut Vec<Entry>) {
        if record.trim().is_empty() {
            return;
        }
        out.push(match self.memory(record) {
            Ok(item) => Entry::Item(item),
            Err(reason) => Entry::Skip(reason),
        });
    }
}

impl Export {
    fn memory(&mut self, record: &str) -> Result<Item, SkipReason> {
        let line: Line = serde_json::from_str(record).map_err(|error| {
            if error.is_data() { SkipReason::NotAMessage } else { SkipReason::BrokenJson }
        })?;
        // The service refuses blank texts, and one would refuse its whole batch.
        if line.text.trim().is_empty() {
            return Err(SkipReason::Empty);
        }
        let ts_ms = timestamp_ms(&line.ts).map_err(|()| SkipReason::BadTimestamp)?;
        let id = match line.id {
            Some(id) if !id.is_empty() => id,
            _ => self.ids.id(&[
                "export",
                line.session.as_deref().unwrap_or(""),
                line.role.as_deref().unwrap_or(""),
                &line.text,
            ]),
        };
        Ok(Item {
            id,
            text: line.text,
            role: line.role,
            session: line.session,
            ts_ms,
            meta: line.meta.map(one_line_object).transpose()?,
        })
    }
}

/// A raw object without line breaks: between tokens they may become spaces, and inside a JSON string there
/// are none.
fn one_line_object(raw: Box<RawValue>) -> Result<Box<RawValue>, SkipReason> {
    if !raw.get().starts_with('{') {
        return Err(SkipReason::NotAMessage);
    }
    if !raw.get().contains(['\n', '\r']) {
        return Ok(raw);
    }
    RawValue::from_string(raw.get().replace(['\n', '\r'], " ")).map_err(|_| SkipReason::BrokenJson)
}
