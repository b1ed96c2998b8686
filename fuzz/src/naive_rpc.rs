//! JSON-RPC 2.0 as its specification and docs/protocol.md tell it, on parsed JSON: what each part of a frame must be answered with.
//!
//! Invariant: only `serde_json` decides what JSON is. Knows no parameters.

use serde::de::IgnoredAny;
use serde_json::Value;

/// What must be answered to one request or to a whole frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// An answer with this id, which the method decides.
    Answer { id: Value, method: String },
    /// An error of this code with this id.
    Error { id: Value, code: i64 },
}

/// What must be answered to a frame.
#[derive(Debug, Clone, PartialEq)]
pub enum FrameDue {
    /// One object, or nothing.
    One(Due),
    /// An array of these that are not nothing.
    Batch(Vec<Due>),
}

/// Longest id that is sent back, in bytes as written.
const ID_BYTES: usize = 1024;

/// `None` where this model cannot tell: JSON that `Value` does not hold, such as numbers out of range and very deep nesting.
#[must_use]
pub fn due(frame: &[u8], batch_requests: usize) -> Option<FrameDue> {
    let whole = |code| Some(FrameDue::One(Due::Error { id: Value::Null, code }));
    let Ok(text) = std::str::from_utf8(frame) else { return whole(-32700) };
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return whole(-32700);
    }
    let value: Value = serde_json::from_str(text).ok()?;
    match &value {
        Value::Object(_) => request(&value, text.len()).map(FrameDue::One),
        Value::Array(all) if all.is_empty() => whole(-32600),
        Value::Array(all) if all.len() > batch_requests => whole(1004),
        Value::Array(all) => all
            .iter()
            .map(|one| request(one, text.len()))
            .collect::<Option<_>>()
            .map(FrameDue::Batch),
        _ => whole(-32600),
    }
}

fn request(value: &Value, written: usize) -> Option<Due> {
    let refused = |id: Value| Some(Due::Error { id, code: -32600 });
    let Some(members) = value.as_object() else { return refused(Value::Null) };
    let id = match members.get("id") {
        // How long it was as written is not known any more.
        Some(Value::Number(_) | Value::String(_)) if written > ID_BYTES => return None,
        Some(id @ (Value::Null | Value::Number(_) | Value::String(_))) => Some(id.clone()),
        Some(_) => return refused(Value::Null),
        None => None,
    };
    let shown = id.clone().unwrap_or_default();
    if members.get("jsonrpc") != Some(&Value::from("2.0")) {
        return refused(shown);
    }
    match (members.get("method"), id) {
        (Some(Value::String(_)), None) => Some(Due::Nothing),
        (Some(Value::String(method)), Some(id)) => Some(Due::Answer { id, method: method.clone() }),
        _ => refused(shown),
    }
}
