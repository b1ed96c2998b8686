//! A run of `recover` as tables for a terminal and as a fragment of Markdown.
//!
//! Invariant: every kill is shown, not the best of them; what is absent is a dash.

use std::path::Path;

use serde_json::Value;

use super::result::{Kill, Recovered, Row};
use crate::Failure;
use crate::report::text;
use crate::run::thousands;
use crate::stats::Spread;
use crate::table::Table;

fn kills(row: &Row) -> Table {
    let head = vec![
        "kill",
        "tail, MiB",
        "acknowledged",
        "in flight, kept",
        "model ready, ms",
        "store ready, ms",
        "recovery, ms",
        "by vector, ms",
        "by text, ms",
        "resident, MiB",
        "anonymous, MiB",
        "segments",
        "graphs",
        "log batches",
    ];
    let rows = row.kills.iter().enumerate().map(|(i, kill)| cells(i + 1, kill)).collect();
    Table { head, rows }
}

fn cells(number: usize, kill: &Kill) -> Vec<String> {
    let dash = || "–".to_owned();
    let of = |v: Option<u64>| v.map_or_else(dash, |v| v.to_string());
    let told = |name: &str| of(kill.recovery.get(name).and_then(Value::as_u64));
    vec![
        number.to_string(),
        format!("{:.1}", kill.tail_mib),
        thousands(kill.acknowledged as usize),
        kill.found_beyond.to_string(),
        of(kill.model_ready_ms),
        of(kill.store_ready_ms),
        told("took_ms"),
        format!("{:.0}", kill.by_vector_ms),
        format!("{:.0}", kill.by_text_ms),
        kill.memory.map_or_else(dash, |m| format!("{:.0}", m.rss_mib)),
        kill.memory.map_or_else(dash, |m| format!("{:.0}", m.anonymous_mib)),
        told("segments"),
        told("graphs_loaded"),
        told("wal_batches"),
    ]
}

fn line(row: &Row) -> String {
    let seconds = |s: &Spread| {
        let s = [s.median, s.least, s.most].map(|ms| ms / 1000.0);
        format!("median {:.2} s, {:.2} to {:.2}", s[0], s[1], s[2])
    };
    format!(
        "{} memories, {} kill(s): to the first answer by vector {}; by text {}",
        thousands(row.memories),
        row.kills.len(),
        seconds(&row.by_vector_ms),
        seconds(&row.by_text_ms)
    )
}

/// Prints one size.
pub fn print_row(row: &Row) {
    println!("{}\n{}", line(row), kills(row).plain());
}

/// The fragment for a report.
pub fn markdown(recovered: &Recovered) -> String {
    let cold = if recovered.cold { ", page cache dropped before each start" } else { "" };
    let mut out = format!(
        "### Recovery after kill -9 in the middle of adds: {} MiB in the log and not in segments{cold}\n\n",
        recovered.tail_mib
    );
    out += &format!("Measured {} on {}.\n", recovered.begun_at, recovered.machine.line());
    let program = &recovered.program;
    let version = program.version.as_deref().unwrap_or("flashbulb of an unknown version");
    let commit = program.commit.as_deref().map_or("unknown", |c| &c[..c.len().min(12)]);
    let dirty = if program.dirty == Some(true) { " with changes" } else { "" };
    out += &format!("{version}, commit {commit}{dirty}. Times from the start of the process.\n\n");
    out += &format!("```\n{}\n```\n\n", recovered.command);
    for row in &recovered.rows {
        out += &format!("{}\n\n{}\n", line(row), kills(row).markdown());
    }
    out
}

/// Writes `recover.json` and `recover.md` into a folder.
///
/// # Errors
/// If a file cannot be written.
pub fn write(recovered: &Recovered, dir: &Path) -> Result<(), Failure> {
    text::write_both(dir, "recover", recovered, &markdown(recovered))
}
