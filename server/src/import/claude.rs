//! Session logs of Claude Code: one JSON object a line, `type` `user` or `assistant` with a `message`.
//!
//! The format is unofficial and drifts, so: what is not known is counted and never fatal. A line becomes one
//! memory from its text blocks; tool calls, tool results and reasoning are counted as left out. `uuid` is the
//! id, `sessionId` the session, `timestamp` the time.

use serde_json::Value;

use super::ids::{IdMaker, own_id};
use super::source::Parser;
use super::{Entry, Item, SkipReason, meta_of, timestamp_ms};

#[derive(Default)]
pub(super) struct Claude {
    ids: IdMaker,
}

impl Parser for Claude {
    fn record(&mut self, record: &str, out: &mut Vec<Entry>) {
        if record.trim().is_empty() {
            return;
        }
        match serde_json::from_str::<Value>(record) {
            Ok(line) => {
                if let Err(reason) = self.line(&line, out) {
                    out.push(Entry::Skip(reason));
                }
            }
            Err(_) => out.push(Entry::Skip(SkipReason::BrokenJson)),
        }
    }
}

impl Claude {
    fn line(&mut self, line: &Value, out: &mut Vec<Entry>) -> Result<(), SkipReason> {
        let text_of = |name: &str| line.get(name).and_then(Value::as_str);
        let is = |name: &str| line.get(name).and_then(Value::as_bool) == Some(true);
        let kind = match text_of("type") {
            Some(kind @ ("user" | "assistant")) => kind,
            Some("summary") => return Err(SkipReason::Summary),
            Some(_) => return Err(SkipReason::UnknownType),
            None => return Err(SkipReason::NotAMessage),
        };
        if is("isSidechain") {
            return Err(SkipReason::Subagent);
        }
        if is("isCompactSummary") {
            return Err(SkipReason::Summary);
        }
        if is("isMeta") {
            return Err(SkipReason::MetaLine);
        }
        if is("isApiErrorMessage") {
            return Err(SkipReason::ApiError);
        }
        let content = line
            .get("message")
            .and_then(|message| message.get("content"))
            .ok_or(SkipReason::NotAMessage)?;
        let Some(text) = text_in(content, out)? else {
            return Ok(());
        };
        let ts_ms = line
            .get("timestamp")
            .map_or(Ok(None), timestamp_ms)
            .map_err(|()| SkipReason::BadTimestamp)?;
        let session = text_of("sessionId").filter(|name| !name.is_empty());
        let id = match text_of("uuid") {
            Some(uuid) if !uuid.is_empty() => own_id(uuid),
            _ => self.ids.id(&["claude", session.unwrap_or(""), kind, &text]),
        };
        out.push(Entry::Item(Item {
            id,
            text,
            role: Some(kind.to_owned()),
            session: session.map(own_id),
            ts_ms,
            meta: meta_of(&[
                ("cwd", text_of("cwd").filter(|text| !text.is_empty())),
                ("git_branch", text_of("gitBranch").filter(|text| !text.is_empty())),
            ]),
        }));
        Ok(())
    }
}

/// The text of a message, or nothing where every part of it was left out and counted.
fn text_in(content: &Value, out: &mut Vec<Entry>) -> Result<Option<String>, SkipReason> {
    let text = match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let mut texts = Vec::new();
            let before = out.len();
            for block in blocks {
                match block_text(block) {
                    Ok(text) => texts.push(text),
                    Err(reason) => out.push(Entry::Skip(reason)),
                }
            }
            if texts.is_empty() && out.len() > before {
                return Ok(None);
            }
            texts.join("\n\n")
        }
        _ => return Err(SkipReason::NotAMessage),
    };
    let trimmed = text.trim_start();
    if trimmed.is_empty() {
        return Err(SkipReason::Empty);
    }
    // Slash commands and their output are written as user messages in these tags.
    const COMMAND_TAGS: [&str; 4] =
        ["<command-name>", "<command-message>", "<local-command-stdout>", "<local-command-caveat>"];
    if COMMAND_TAGS.iter().any(|tag| trimmed.starts_with(tag)) {
        return Err(SkipReason::LocalCommand);
    }
    Ok(Some(text))
}

fn block_text(block: &Value) -> Result<&str, SkipReason> {
    match block.get("type").and_then(Value::as_str) {
        Some("text") => block.get("text").and_then(Value::as_str).ok_or(SkipReason::NotAMessage),
        Some("tool_use" | "server_tool_use" | "mcp_tool_use") => Err(SkipReason::ToolUse),
        Some("tool_result" | "web_search_tool_result" | "mcp_tool_result") => {
            Err(SkipReason::ToolResult)
        }
        Some("thinking" | "redacted_thinking") => Err(SkipReason::Thinking),
        Some("image" | "document") => Err(SkipReason::Attachment),
        _ => Err(SkipReason::UnknownBlock),
    }
}
