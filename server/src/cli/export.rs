//! `export`: a space as JSON lines, page by page through `memory.list`.
//!
//! Keeps: the file appears whole or not at all; what is written is what `import` reads back unchanged.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::exit::{CliError, Exit};
use super::{CALL_TIMEOUT, Context, args, progress, show};
use crate::client::Client;

const PAGE_ITEMS: u32 = 500;

/// One memory: the fields that come back by importing, in this order.
#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    ts: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Line>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct ListParams<'a> {
    space: &'a str,
    limit: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'a str>,
}

/// `flashbulb export`
pub fn export(context: &Context, args: &args::Export) -> Result<Exit, CliError> {
    let to_stdout = args.path.as_os_str() == "-";
    if to_stdout && context.out.json {
        return Err(CliError::new(
            Exit::Usage,
            "--json prints a summary on stdout, and so does not go with the path -; leave one out",
        ));
    }
    let started = Instant::now();
    let mut client = context.client()?;
    let (exported, bytes) = if to_stdout {
        let mut out = BufWriter::new(std::io::stdout().lock());
        let written = pages(&mut client, &args.space.space, &mut out)?;
        out.flush()?;
        written
    } else {
        to_file(&mut client, &args.space.space, &args.path)?
    };
    let path = args.path.display().to_string();
    if to_stdout {
        return Ok(Exit::Ok);
    }
    let summary = json!({
        "exported": exported,
        "bytes": bytes,
        "path": path,
        "took_ms": started.elapsed().as_millis() as u64,
    });
    context
        .out
        .print(&summary, |out| writeln!(out, "exported {} to {path}", show::memories(exported)))?;
    Ok(Exit::Ok)
}

/// Writes beside the target and renames, so that a broken export leaves the old file.
fn to_file(client: &mut Client, space: &str, path: &Path) -> Result<(u64, u64), CliError> {
    let failed = |error: std::io::Error| {
        CliError::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
    };
    if path.is_dir() {
        return Err(CliError::invalid(format!("{} is a folder; name a file", path.display())));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".flashbulb-export-")
        .tempfile_in(folder)
        .map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    let written = pages(client, space, &mut out)?;
    out.flush().map_err(failed)?;
    drop(out);
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(written)
}

/// Writes every memory of the space; gives back how many, and how many bytes.
fn pages(client: &mut Client, space: &str, out: &mut dyn Write) -> Result<(u64, u64), CliError> {
    let stats: serde_json::Value =
        client.call("space.stats", json!({ "space": space }), CALL_TIMEOUT)?;
    let total = stats.get("memories").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let bar = progress::count(total, "exporting");
    let (mut exported, mut bytes) = (0, 0);
    let mut cursor: Option<String> = None;
    loop {
        let params = ListParams { space, limit: PAGE_ITEMS, cursor: cursor.as_deref() };
        let page: Page = client.call("memory.list", &params, CALL_TIMEOUT)?;
        for line in &page.items {
            let mut line = serde_json::to_vec(line).map_err(|error| {
                CliError::new(Exit::Failed, format!("cannot write JSON: {error}"))
            })?;
            line.push(b'\n');
            out.write_all(&line)?;
            bytes += line.len() as u64;
        }
        exported += page.items.len() as u64;
        bar.set_position(exported);
        cursor = page.cursor;
        if cursor.is_none() {
            bar.finish_and_clear();
            return Ok((exported, bytes));
        }
    }
}
