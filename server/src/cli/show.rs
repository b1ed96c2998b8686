//! Memories and hits as people read them.
//!
//! Must not know how they were asked for.

use std::io::{self, Write};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::output::{FAINT, STRONG, safe, time};

/// One memory of an answer.
#[derive(Debug, Deserialize)]
pub struct Memory {
    /// Its id.
    pub id: String,
    /// Its text.
    pub text: String,
    /// Who said it.
    pub role: Option<String>,
    /// The conversation.
    pub session: Option<String>,
    /// Milliseconds since 1970.
    pub ts: i64,
    /// A JSON object.
    pub meta: Option<Box<RawValue>>,
}

/// The memories around a hit.
#[derive(Debug, Deserialize)]
pub struct Neighbors {
    /// Before it.
    pub before: Vec<Memory>,
    /// After it.
    pub after: Vec<Memory>,
}

/// Writes one memory: a line about it, then its text, indented.
pub fn memory(out: &mut dyn Write, memory: &Memory) -> io::Result<()> {
    about(out, "", memory)?;
    text(out, memory)
}

/// Writes the line about a memory.
pub fn about(out: &mut dyn Write, lead: &str, memory: &Memory) -> io::Result<()> {
    let mut about = vec![time(memory.ts)];
    about.extend(memory.role.as_deref().map(safe));
    about.extend(memory.session.as_deref().map(safe));
    if let Some(meta) = &memory.meta {
        about.push(safe(meta.get()));
    }
    let lead = match lead {
        "" => String::new(),
        lead => format!("{STRONG}{lead}{STRONG:#}  "),
    };
    let about = about.join(" · ");
    writeln!(out, "{lead}{}  {FAINT}{about}{FAINT:#}", safe(&memory.id))
}

/// Writes a memory's text, indented.
pub fn text(out: &mut dyn Write, memory: &Memory) -> io::Result<()> {
    for line in safe(&memory.text).lines() {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}

/// Writes the memories before or after a hit, one a line.
pub fn neighbor(out: &mut dyn Write, memory: &Memory) -> io::Result<()> {
    let who = memory.role.as_deref().map_or(String::new(), |role| format!("{}: ", safe(role)));
    writeln!(out, "    {FAINT}{who}{}{FAINT:#}", super::output::one_line(&memory.text, 160))
}

/// `1 memory`, `2 memories`.
pub fn memories(count: u64) -> String {
    match count {
        1 => "1 memory".to_owned(),
        count => format!("{count} memories"),
    }
}
