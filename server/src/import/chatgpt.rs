//! The `conversations.json` of a ChatGPT data export: an array of conversations, each a tree of messages.
//!
//! Keeps: the memories of a conversation are the messages from the root to `current_node`, in order; messages
//! on branches that were left (edited questions, regenerated answers) are counted, not imported. A tree with a
//! cycle or a missing node ends the walk, never the import.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::ids::{IdMaker, name_of, own_id};
use super::source::Parser;
use super::{Entry, Item, SkipReason, meta_of};

#[derive(Default)]
pub(super) struct ChatGpt {
    ids: IdMaker,
}

impl Parser for ChatGpt {
    fn record(&mut self, record: &str, out: &mut Vec<Entry>) {
        if record.trim().is_empty() {
            return;
        }
        let Ok(conversation) = serde_json::from_str::<Value>(record) else {
            out.push(Entry::Skip(SkipReason::BrokenJson));
            return;
        };
        match conversation.get("mapping").and_then(Value::as_object) {
            Some(mapping) => self.conversation(&conversation, mapping, out),
            None => out.push(Entry::Skip(SkipReason::NotAMessage)),
        }
    }
}

impl ChatGpt {
    fn conversation(
        &mut self,
        conversation: &Value,
        mapping: &Map<String, Value>,
        out: &mut Vec<Entry>,
    ) {
        let path = path_to_current(conversation, mapping);
        let title = conversation.get("title").and_then(Value::as_str);
        let session = ["conversation_id", "id"]
            .iter()
            .find_map(|field| conversation.get(field).and_then(Value::as_str))
            .filter(|name| !name.is_empty())
            .map_or_else(
                || name_of(&["chatgpt", title.unwrap_or(""), path.first().unwrap_or(&"")]),
                own_id,
            );
        let on_path: HashSet<&str> = path.iter().copied().collect();
        for (key, node) in mapping {
            if !on_path.contains(key.as_str()) && node.get("message").is_some_and(Value::is_object)
            {
                out.push(Entry::Skip(SkipReason::OtherBranch));
            }
        }
        for key in path {
            let message = mapping.get(key).and_then(|node| node.get("message"));
            // The root of every tree is a node without a message.
            if let Some(message) = message.filter(|message| message.is_object()) {
                match self.message(message, &session, title, out) {
                    Ok(Some(item)) => out.push(Entry::Item(item)),
                    Ok(None) => {}
                    Err(reason) => out.push(Entry::Skip(reason)),
                }
            }
        }
    }

    fn message(
        &mut self,
        message: &Value,
        session: &str,
        title: Option<&str>,
        out: &mut Vec<Entry>,
    ) -> Result<Option<Item>, SkipReason> {
        let role = message
            .pointer("/author/role")
            .and_then(Value::as_str)
            .ok_or(SkipReason::NotAMessage)?;
        let hidden = message.pointer("/metadata/is_visually_hidden_from_conversation");
        if hidden.and_then(Value::as_bool) == Some(true) {
            return Err(SkipReason::Hidden);
        }
        if role == "tool" {
            return Err(SkipReason::ToolResult);
        }
        let content = message.get("content").ok_or(SkipReason::NotAMessage)?;
        let Some(text) = text_in(content, out)? else {
            return Ok(None);
        };
        let ts_ms = match message.get("create_time") {
            None | Some(Value::Null) => None,
            Some(time) => Some(seconds_to_ms(time).ok_or(SkipReason::BadTimestamp)?),
        };
        let id = match message.get("id").and_then(Value::as_str) {
            Some(id) if !id.is_empty() => own_id(id),
            _ => self.ids.id(&["chatgpt", session, role, &text]),
        };
        Ok(Some(Item {
            id,
            text,
            role: Some(role.to_owned()),
            session: Some(session.to_owned()),
            ts_ms,
            meta: meta_of(&[("title", title.filter(|title| !title.is_empty()))]),
        }))
    }
}

/// Node keys from the root to the node on which the conversation stands.
fn path_to_current<'a>(conversation: &'a Value, mapping: &'a Map<String, Value>) -> Vec<&'a str> {
    let current = conversation
        .get("current_node")
        .and_then(Value::as_str)
        .filter(|key| mapping.contains_key(*key))
        .or_else(|| latest_leaf(mapping));
    let mut path = Vec::new();
    let mut visited = HashSet::new();
    let mut next = current;
    while let Some(key) = next {
        let Some(node) = mapping.get(key) else { break };
        if !visited.insert(key) {
            break;
        }
        path.push(key);
        next = node.get("parent").and_then(Value::as_str);
    }
    path.reverse();
    path
}

/// Older exports have no `current_node`: the leaf that was written last.
fn latest_leaf(mapping: &Map<String, Value>) -> Option<&str> {
    let time_of =
        |node: &Value| node.pointer("/message/create_time").and_then(Value::as_f64).unwrap_or(0.0);
    mapping
        .iter()
        .filter(|(_, node)| {
            node.get("children").and_then(Value::as_array).is_none_or(Vec::is_empty)
        })
        .max_by(|(_, a), (_, b)| time_of(a).total_cmp(&time_of(b)))
        .map(|(key, _)| key.as_str())
}

fn text_in(content: &Value, out: &mut Vec<Entry>) -> Result<Option<String>, SkipReason> {
    let parts = match content.get("content_type").and_then(Value::as_str) {
        Some("text" | "multimodal_text") => content.get("parts").and_then(Value::as_array),
        Some("code" | "tether_browsing_code") => return Err(SkipReason::ToolUse),
        Some("execution_output" | "tether_quote" | "tether_browsing_display") => {
            return Err(SkipReason::ToolResult);
        }
        Some("thoughts" | "reasoning_recap") => return Err(SkipReason::Thinking),
        Some("user_editable_context" | "model_editable_context") => return Err(SkipReason::Hidden),
        Some(_) => return Err(SkipReason::UnknownBlock),
        None => return Err(SkipReason::NotAMessage),
    };
    let mut texts = Vec::new();
    let before = out.len();
    for part in parts.ok_or(SkipReason::NotAMessage)? {
        match part.as_str() {
            Some(text) => texts.push(text),
            None => out.push(Entry::Skip(SkipReason::Attachment)),
        }
    }
    if texts.is_empty() && out.len() > before {
        return Ok(None);
    }
    let text = texts.join("\n");
    if text.trim().is_empty() {
        return Err(SkipReason::Empty);
    }
    Ok(Some(text))
}

/// Seconds with a fraction to milliseconds; nothing for a time beyond the year 9999.
fn seconds_to_ms(time: &Value) -> Option<i64> {
    let ms = (time.as_f64()? * 1000.0).round();
    let ms = ms.is_finite().then_some(ms as i64)?;
    jiff::Timestamp::from_millisecond(ms).ok()?;
    Some(ms)
}
