//! `add`, `search`, `get`, `list`, `around`, `update`, `delete`: one call each.
//!
//! Keeps: with `--json` the daemon's result is passed on as it came. Must not know how the service works.

use std::io::{IsTerminal, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::args;
use super::exit::{CliError, Exit};
use super::output::{FAINT, WARN, micros};
use super::show::{self, Memory, Neighbors};
use super::values::JsonObject;
use super::{CALL_TIMEOUT, Context};

/// Most text that is read from stdin; the service takes less, and says how much.
const MAX_STDIN_BYTES: u64 = 64 << 20;

#[derive(Serialize)]
struct NewItem<'a> {
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'a JsonObject>,
}

#[derive(Serialize)]
struct AddParams<'a> {
    space: &'a str,
    items: [NewItem<'a>; 1],
    on_conflict: args::OnConflict,
    wait: args::Wait,
}

#[derive(Deserialize)]
struct Added {
    items: Vec<AddedItem>,
}

#[derive(Deserialize)]
struct AddedItem {
    id: String,
    status: String,
}

/// `flashbulb add`
pub fn add(context: &Context, args: args::Add) -> Result<Exit, CliError> {
    let text = match args.text {
        Some(text) if text != "-" => text,
        _ => stdin_text()?,
    };
    let params = AddParams {
        space: &args.space.space,
        items: [NewItem {
            text: &text,
            id: args.id.as_deref(),
            role: args.role.as_deref(),
            session: args.session.as_deref(),
            ts: args.ts,
            meta: args.meta.as_ref(),
        }],
        on_conflict: args.on_conflict,
        wait: args.wait,
    };
    let mut client = context.client()?;
    let raw = client.call_raw("memory.add", &params, CALL_TIMEOUT)?;
    let added: Added = client.parse("memory.add", &raw)?;
    context.out.print(&raw, |out| {
        for item in &added.items {
            writeln!(out, "{}  {FAINT}{}{FAINT:#}", item.id, item.status)?;
        }
        Ok(())
    })?;
    Ok(Exit::Ok)
}

fn stdin_text() -> Result<String, CliError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(CliError::new(
            Exit::Usage,
            "no text; give it as an argument, or pipe it in: echo \"a note\" | flashbulb add --space NAME",
        ));
    }
    let mut bytes = Vec::new();
    stdin
        .lock()
        .take(MAX_STDIN_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| CliError::invalid(format!("cannot read stdin: {error}")))?;
    let mut text = String::from_utf8(bytes).map_err(|_| {
        CliError::invalid("stdin is not UTF-8; convert it first, for example with iconv")
    })?;
    // The line end that `echo` adds is not part of the text.
    if text.ends_with('\n') {
        text.pop();
    }
    if text.trim().is_empty() {
        return Err(CliError::invalid("the text on stdin is empty"));
    }
    Ok(text)
}

#[derive(Serialize)]
struct SearchParams<'a> {
    space: &'a str,
    query: &'a str,
    k: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<args::Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<&'a JsonObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<TimeParams>,
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbors: Option<NeighborParams>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    exact: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    explain: bool,
    /// A person at a terminal would rather wait than be told that the service is busy.
    deadline_ms: u64,
}

#[derive(Serialize)]
struct TimeParams {
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<i64>,
}

#[derive(Serialize)]
struct NeighborParams {
    before: u32,
    after: u32,
}

/// The result of `memory.search`, as far as people read it.
#[derive(Debug, Deserialize)]
pub struct SearchResult {
    /// Best first.
    pub hits: Vec<Hit>,
    /// Microseconds by stage.
    pub took_us: serde_json::Map<String, Value>,
    /// What executed.
    pub ran: Value,
    /// What was less than it should be.
    pub degraded: Vec<String>,
}

/// One hit.
#[derive(Debug, Deserialize)]
pub struct Hit {
    /// The memory's id.
    pub id: String,
    /// Larger is nearer.
    pub score: f64,
    /// The memory's text.
    pub text: String,
    role: Option<String>,
    session: Option<String>,
    ts: i64,
    meta: Option<Box<RawValue>>,
    neighbors: Option<Neighbors>,
    scores: Option<Value>,
}

/// How long a search from the command line may take.
const SEARCH_DEADLINE_MS: u64 = 10_000;

/// `flashbulb search`
pub fn search(context: &Context, args: args::Search) -> Result<Exit, CliError> {
    let has_time = args.from.is_some() || args.to.is_some();
    let params = SearchParams {
        space: &args.space.space,
        query: &args.query.join(" "),
        k: args.k,
        mode: args.mode,
        filter: args.filter.as_ref(),
        time: has_time.then_some(TimeParams { from: args.from, to: args.to }),
        neighbors: args.neighbors.map(|count| NeighborParams { before: count, after: count }),
        exact: args.exact,
        explain: args.explain,
        deadline_ms: SEARCH_DEADLINE_MS,
    };
    let mut client = context.client()?;
    let raw = client.call_raw("memory.search", &params, CALL_TIMEOUT)?;
    let found: SearchResult = client.parse("memory.search", &raw)?;
    let count = found.hits.len();
    let summary = format!("{} · {}", show::memories(count as u64), how_it_ran(&found));
    context.out.print(&raw, |out| {
        for hit in found.hits {
            write_hit(out, hit)?;
        }
        Ok(())
    })?;
    if !context.out.json {
        context.out.note(format_args!("{FAINT}{summary}{FAINT:#}"));
        for what in &found.degraded {
            context.out.note(format_args!("{WARN}degraded:{WARN:#} {what}"));
        }
    }
    Ok(Exit::Ok)
}

fn write_hit(out: &mut dyn Write, hit: Hit) -> std::io::Result<()> {
    let memory = Memory {
        id: hit.id,
        text: hit.text,
        role: hit.role,
        session: hit.session,
        ts: hit.ts,
        meta: hit.meta,
    };
    show::about(out, &format!("{:.3}", hit.score), &memory)?;
    if let Some(scores) = hit.scores {
        writeln!(out, "    {FAINT}{scores}{FAINT:#}")?;
    }
    let neighbors = hit.neighbors.as_ref();
    for before in neighbors.map_or(&[][..], |neighbors| &neighbors.before) {
        show::neighbor(out, before)?;
    }
    show::text(out, &memory)?;
    for after in neighbors.map_or(&[][..], |neighbors| &neighbors.after) {
        show::neighbor(out, after)?;
    }
    Ok(())
}

/// `4.20 ms (embed 3.10 ms, dense 212 µs) · what ran`, from the answer itself.
pub fn how_it_ran(found: &SearchResult) -> String {
    let us = |name: &str| found.took_us.get(name).and_then(Value::as_u64).unwrap_or(0);
    let stages: Vec<String> = ["queue", "tokenise", "embed", "dense", "lexical", "fuse", "fetch"]
        .into_iter()
        .filter(|name| us(name) > 0)
        .map(|name| format!("{name} {}", micros(us(name))))
        .collect();
    format!("{} ({}) · {}", micros(us("total")), stages.join(", "), what_ran(&found.ran))
}

/// The chief words of a `ran` object: `all-MiniLM-L6-v2 int8, CPUExecutionProvider, … · cpu, avx2, scan`.
pub fn what_ran(ran: &Value) -> String {
    let words = |part: &str, names: &[&str]| {
        let words: Vec<&str> = names
            .iter()
            .filter_map(|name| ran.get(part)?.get(name)?.as_str())
            // Build details follow in brackets.
            .map(|word| word.split_once(" (").map_or(word, |(word, _)| word))
            .collect();
        (!words.is_empty()).then(|| words.join(", "))
    };
    let kept = ran.pointer("/embed/cached") == Some(&Value::Bool(true));
    let embed = words("embed", &["model", "precision", "device", "provider", "runtime"]);
    [
        embed
            .map(|words| if kept { format!("kept from an earlier query: {words}") } else { words }),
        words("search", &["device", "simd", "path"]),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(" · ")
}

#[derive(Deserialize)]
struct Items {
    items: Vec<Option<Memory>>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct GetParams<'a> {
    space: &'a str,
    ids: &'a [String],
}

/// `flashbulb get`: ends with "not found" where an id is not there, after printing the others.
pub fn get(context: &Context, args: args::Get) -> Result<Exit, CliError> {
    let params = GetParams { space: &args.space.space, ids: &args.ids };
    let items = print_items(context, "memory.get", &params)?;
    let mut missing = false;
    for (id, item) in args.ids.iter().zip(&items.items) {
        if item.is_none() {
            missing = true;
            context.out.note(format_args!(
                "not in {}: {}",
                args.space.space,
                super::output::safe(id)
            ));
        }
    }
    Ok(if missing { Exit::NotFound } else { Exit::Ok })
}

#[derive(Serialize)]
struct ListParams<'a> {
    space: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<&'a JsonObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'a str>,
    limit: u32,
}

/// `flashbulb list`
pub fn list(context: &Context, args: args::List) -> Result<Exit, CliError> {
    let params = ListParams {
        space: &args.space.space,
        filter: args.filter.as_ref(),
        cursor: args.cursor.as_deref(),
        limit: args.limit,
    };
    let items = print_items(context, "memory.list", &params)?;
    if let (Some(cursor), false) = (items.cursor, context.out.json) {
        context.out.note(format_args!("{FAINT}more: --cursor {cursor}{FAINT:#}"));
    }
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct AroundParams<'a> {
    space: &'a str,
    id: &'a str,
    before: u32,
    after: u32,
}

/// `flashbulb around`
pub fn around(context: &Context, args: args::Around) -> Result<Exit, CliError> {
    let params = AroundParams {
        space: &args.space.space,
        id: &args.id,
        before: args.before,
        after: args.after,
    };
    print_items(context, "memory.around", &params)?;
    Ok(Exit::Ok)
}

fn print_items(
    context: &Context,
    method: &str,
    params: &impl Serialize,
) -> Result<Items, CliError> {
    let mut client = context.client()?;
    let raw = client.call_raw(method, params, CALL_TIMEOUT)?;
    let items: Items = client.parse(method, &raw)?;
    context.out.print(&raw, |out| {
        for memory in items.items.iter().flatten() {
            show::memory(out, memory)?;
        }
        Ok(())
    })?;
    Ok(items)
}

#[derive(Serialize)]
struct UpdateParams<'a> {
    space: &'a str,
    id: &'a str,
    patch: PatchParams<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_seq: Option<u64>,
}

#[derive(Serialize)]
struct PatchParams<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'a JsonObject>,
}

/// `flashbulb update`
pub fn update(context: &Context, args: args::Update) -> Result<Exit, CliError> {
    let text = match args.text {
        Some(text) if text == "-" => Some(stdin_text()?),
        text => text,
    };
    let params = UpdateParams {
        space: &args.space.space,
        id: &args.id,
        patch: PatchParams {
            text: text.as_deref(),
            role: args.role.as_deref(),
            session: args.session.as_deref(),
            ts: args.ts,
            meta: args.meta.as_ref(),
        },
        if_seq: args.if_seq,
    };
    let raw = context.client()?.call_raw("memory.update", &params, CALL_TIMEOUT)?;
    context.out.print(&raw, |out| writeln!(out, "updated {}", super::output::safe(&args.id)))?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct DeleteParams<'a> {
    space: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ids: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<&'a JsonObject>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expect_count: Option<u64>,
}

#[derive(Deserialize)]
struct Deleted {
    matched: u64,
    deleted: u64,
    #[serde(default)]
    missing: u64,
}

/// `flashbulb delete`
pub fn delete(context: &Context, args: args::Delete) -> Result<Exit, CliError> {
    let params = DeleteParams {
        space: &args.space.space,
        ids: &args.ids,
        filter: args.filter.as_ref(),
        dry_run: args.dry_run,
        expect_count: args.expect_count,
    };
    let mut client = context.client()?;
    let raw = client.call_raw("memory.delete", &params, CALL_TIMEOUT)?;
    let deleted: Deleted = client.parse("memory.delete", &raw)?;
    context.out.print(&raw, |out| {
        if args.dry_run {
            writeln!(out, "would delete {}", show::memories(deleted.matched))?;
        } else {
            writeln!(out, "deleted {}", show::memories(deleted.deleted))?;
        }
        if deleted.missing > 0 {
            writeln!(out, "{} of the ids were not there", deleted.missing)?;
        }
        Ok(())
    })?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_ran_is_told_in_words() {
        let ran = json!({
            "embed": {"runtime": "ONNX Runtime 1", "provider": "CPUExecutionProvider", "precision": "int8", "model": "m", "dim": 4, "device": "cpu"},
            "search": {"device": "cpu", "simd": "avx2", "path": "scan", "scanned": 3},
        });
        assert_eq!(
            what_ran(&ran),
            "m, int8, cpu, CPUExecutionProvider, ONNX Runtime 1 · cpu, avx2, scan"
        );
        let kept = json!({"embed": {"model": "m", "cached": true}, "search": null});
        assert_eq!(what_ran(&kept), "kept from an earlier query: m");
        assert_eq!(what_ran(&json!({"embed": null, "search": {"path": "graph"}})), "graph");
        assert_eq!(what_ran(&Value::Null), "");
    }
}
