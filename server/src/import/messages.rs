//! OpenAI-style conversations: `{"messages": [{role, content, name?, ts?}], "session"?}` a line, an array or
//! object of the same, or bare messages.
//!
//! Keeps: a conversation without a name gets one from its beginning (everything up to the first message that
//! is not the system's), so that appending to it later adds only what is new. Message ids inside a conversation
//! (`"1"`, `"2"`) are often reused by the next, so they are hashed together with the conversation.

use std::collections::HashMap;

use serde_json::Value;

use super::ids::{IdMaker, name_of, own_id};
use super::source::Parser;
use super::{Entry, Item, SkipReason, meta_of, timestamp_ms};

#[derive(Default)]
pub(super) struct Messages {
    ids: IdMaker,
    /// How many unnamed conversations began the same way.
    beginnings: HashMap<String, u32>,
    /// Bare messages of an unnamed conversation whose beginning is not complete.
    bare: Vec<Message>,
    /// The name of the unnamed conversation that bare messages belong to.
    bare_session: Option<String>,
}

/// One message with text.
struct Message {
    id: Option<String>,
    role: String,
    name: Option<String>,
    ts_ms: Option<i64>,
    text: String,
}

impl Parser for Messages {
    fn record(&mut self, record: &str, out: &mut Vec<Entry>) {
        if record.trim().is_empty() {
            return;
        }
        match serde_json::from_str::<Value>(record) {
            Ok(value) => self.value(&value, out),
            Err(_) => out.push(Entry::Skip(SkipReason::BrokenJson)),
        }
    }

    fn finish(&mut self, out: &mut Vec<Entry>) {
        let waiting = std::mem::take(&mut self.bare);
        if let Some(first) = waiting.first() {
            let session = self.name_from(std::slice::from_ref(first));
            self.emit(&session, waiting, out);
        }
        self.bare_session = None;
    }
}

impl Messages {
    fn value(&mut self, value: &Value, out: &mut Vec<Entry>) {
        match value {
            Value::Object(object) if object.contains_key("messages") => {
                let Some(list) = object.get("messages").and_then(Value::as_array) else {
                    out.push(Entry::Skip(SkipReason::NotAMessage));
                    return;
                };
                let named = name_in(value, &["session", "session_id", "conversation_id", "id"]);
                self.conversation(named, list, out);
            }
            Value::Object(object) if object.contains_key("role") => self.bare(value, out),
            Value::Array(list) => self.conversation(None, list, out),
            _ => out.push(Entry::Skip(SkipReason::NotAMessage)),
        }
    }

    fn conversation(&mut self, named: Option<String>, list: &[Value], out: &mut Vec<Entry>) {
        let messages: Vec<Message> = list.iter().filter_map(|value| message(value, out)).collect();
        let session = named.unwrap_or_else(|| self.name_from(beginning(&messages)));
        self.emit(&session, messages, out);
    }

    /// A message that stands alone on its line or in the array.
    fn bare(&mut self, value: &Value, out: &mut Vec<Entry>) {
        let Some(message) = message(value, out) else {
            return;
        };
        if let Some(session) = name_in(value, &["session", "session_id", "conversation_id"]) {
            self.emit(&session, vec![message], out);
        } else if let Some(session) = self.bare_session.clone() {
            self.emit(&session, vec![message], out);
        } else {
            let complete = !is_system(&message);
            self.bare.push(message);
            if complete {
                let messages = std::mem::take(&mut self.bare);
                let session = self.name_from(&messages);
                self.emit(&session, messages, out);
                self.bare_session = Some(session);
            }
        }
    }

    fn emit(&mut self, session: &str, messages: Vec<Message>, out: &mut Vec<Entry>) {
        for message in messages {
            let id = match &message.id {
                Some(id) => name_of(&["message", session, id]),
                None => self.ids.id(&["messages", session, &message.role, &message.text]),
            };
            out.push(Entry::Item(Item {
                id,
                text: message.text,
                role: (!message.role.is_empty()).then_some(message.role),
                session: Some(session.to_owned()),
                ts_ms: message.ts_ms,
                meta: meta_of(&[("name", message.name.as_deref())]),
            }));
        }
    }

    fn name_from(&mut self, beginning: &[Message]) -> String {
        let parts: Vec<&str> = beginning
            .iter()
            .flat_map(|message| [message.role.as_str(), message.text.as_str()])
            .collect();
        let name = name_of(&parts);
        let count = self.beginnings.entry(name.clone()).or_default();
        let session = match *count {
            0 => format!("conversation-{}", &name[..16]),
            n => format!("conversation-{}-{n}", &name[..16]),
        };
        *count = count.saturating_add(1);
        session
    }
}

/// Everything up to the first message that is not the system's.
fn beginning(messages: &[Message]) -> &[Message] {
    let end = messages.iter().position(|message| !is_system(message));
    &messages[..end.map_or(messages.len(), |end| end + 1)]
}

fn is_system(message: &Message) -> bool {
    matches!(message.role.as_str(), "system" | "developer")
}

/// The first of these fields that is a string or a number.
fn name_in(value: &Value, fields: &[&str]) -> Option<String> {
    fields.iter().find_map(|field| match value.get(field) {
        Some(Value::String(name)) if !name.is_empty() => Some(own_id(name)),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    })
}

/// The text of a message; everything else about it is counted.
fn message(value: &Value, out: &mut Vec<Entry>) -> Option<Message> {
    let mut skip = |reason| {
        out.push(Entry::Skip(reason));
        None
    };
    let Some(role) = value.get("role").and_then(Value::as_str) else {
        return skip(SkipReason::NotAMessage);
    };
    let time = value.get("ts").or_else(|| value.get("timestamp"));
    let Ok(ts_ms) = time.map_or(Ok(None), timestamp_ms) else {
        return skip(SkipReason::BadTimestamp);
    };
    let text = match value.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let mut texts = Vec::new();
            let before = out.len();
            for part in parts {
                match part_text(part) {
                    Ok(text) => texts.push(text),
                    Err(reason) => out.push(Entry::Skip(reason)),
                }
            }
            if texts.is_empty() && out.len() > before {
                return None;
            }
            texts.join("\n")
        }
        None | Some(Value::Null) if value.get("tool_calls").is_some() => {
            return skip(SkipReason::ToolUse);
        }
        None | Some(Value::Null) => String::new(),
        Some(_) => return skip(SkipReason::NotAMessage),
    };
    if text.trim().is_empty() {
        out.push(Entry::Skip(SkipReason::Empty));
        return None;
    }
    Some(Message {
        id: name_in(value, &["id"]),
        role: role.to_owned(),
        name: value.get("name").and_then(Value::as_str).map(str::to_owned),
        ts_ms,
        text,
    })
}

fn part_text(part: &Value) -> Result<&str, SkipReason> {
    if let Some(text) = part.as_str() {
        return Ok(text);
    }
    let kind = part.get("type").and_then(Value::as_str);
    match kind {
        Some("text" | "input_text" | "output_text") => {
            part.get("text").and_then(Value::as_str).ok_or(SkipReason::NotAMessage)
        }
        Some("refusal") => {
            part.get("refusal").and_then(Value::as_str).ok_or(SkipReason::NotAMessage)
        }
        Some(
            "image_url" | "input_image" | "image" | "input_audio" | "audio" | "file" | "input_file",
        ) => Err(SkipReason::Attachment),
        Some("tool_use" | "tool_call") => Err(SkipReason::ToolUse),
        Some("tool_result") => Err(SkipReason::ToolResult),
        Some("thinking" | "reasoning") => Err(SkipReason::Thinking),
        _ => Err(SkipReason::UnknownBlock),
    }
}
