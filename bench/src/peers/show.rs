//! A comparison as a table for a terminal and as a fragment of Markdown.
//!
//! Invariant: a void row is marked in every line that shows it; what is absent is a dash.

use std::path::Path;

use super::result::{Comparison, Found, Row};
use crate::Failure;
use crate::environment::Environment;
use crate::load::outcome::misses_line;
use crate::report::text::{self, ms};
use crate::run::{Beside, Memory, thousands};
use crate::stats::Percentiles;
use crate::table::Table;

/// What was installed, before anything is measured.
pub fn print_environment(environment: &Environment, dir: &Path) {
    let how = match environment.made_in_s {
        Some(s) => format!("made in {s:.0} s"),
        None => "found".to_owned(),
    };
    println!(
        "Python environment {how} in {}: {}, {} packages\n",
        dir.display(),
        environment.version,
        environment.packages.len()
    );
}

fn p99(p: &Percentiles) -> String {
    let between = p.p99_between.map(|(low, high)| format!(" ({} to {})", ms(low), ms(high)));
    format!("{}{}", ms(p.p99), between.unwrap_or_default())
}

/// Latencies beside the same; two lines a system.
fn latencies(systems: &[Found], beside: Beside) -> Table {
    let mut head =
        vec!["system", "p50, ms", "p90", "p99 (95 % interval)", "max", "in time", "missed"];
    if beside == Beside::Import {
        head.push("import, texts/s");
    }
    let mut table = Table { head, rows: Vec::new() };
    for found in systems {
        for row in found.rows.iter().filter(|row| row.beside == beside) {
            table.rows.push(over_the_socket(&found.name, row));
            table.rows.extend(row.load.stages.get("total").map(|p| in_process(row, p)));
        }
    }
    table
}

fn mark(row: &Row) -> &'static str {
    if row.load.void.is_some() { "VOID " } else { "" }
}

fn over_the_socket(name: &str, row: &Row) -> Vec<String> {
    let (l, r) = (&row.load, &row.load.response);
    let in_time = 100.0 * l.in_time as f64 / l.searches.max(1) as f64;
    let mut cells = vec![
        format!("{}{name}", mark(row)),
        ms(r.p50),
        ms(r.p90),
        p99(r),
        format!("{:.2}", r.max as f64 / 1000.0),
        format!("{in_time:.1} %"),
        misses_line(&l.misses).unwrap_or_else(|| "0".to_owned()),
    ];
    cells.extend(row.import_per_s.map(|v| format!("{v:.0}")));
    cells
}

fn in_process(row: &Row, p: &Percentiles) -> Vec<String> {
    let name = format!("{}– in its own process, no socket between", mark(row));
    let max = format!("{:.2}", p.max as f64 / 1000.0);
    let mut cells = vec![name, ms(p.p50), ms(p.p90), p99(p), max, String::new(), String::new()];
    cells.extend(row.import_per_s.map(|_| String::new()));
    cells
}

/// What does not depend on the load.
fn others(systems: &[Found]) -> Table {
    let head = vec![
        "system",
        "recall, own",
        "recall, f32",
        "embed p50, ms",
        "search p50, ms",
        "memory, MiB",
        "after import",
        "stored, s",
        "indexed, s",
    ];
    let mut table = Table { head, rows: Vec::new() };
    for found in systems {
        let dash = || "–".to_owned();
        let mib = |m: Option<Memory>| m.map_or_else(dash, |m| format!("{:.0}", m.rss_mib));
        let idle = found.rows.iter().find(|row| row.beside == Beside::Nothing);
        let stage = |name: &str| {
            let stage = idle.and_then(|row| row.load.stages.get(name));
            stage.map_or_else(dash, |p| ms(p.p50))
        };
        let recall = |v: Option<f64>| v.map_or_else(dash, |v| format!("{v:.4}"));
        table.rows.push(vec![
            found.name.clone(),
            recall(found.recall.map(|r| r.of_own_vectors)),
            recall(found.recall.map(|r| r.of_f32_vectors)),
            stage("embed"),
            stage("dense"),
            mib(found.memory),
            mib(found.memory_after_import),
            format!("{:.1}", found.fill.seconds),
            format!("{:.1}", found.fill.indexed_after_s),
        ]);
    }
    table
}

fn title(comparison: &Comparison) -> String {
    let s = &comparison.scenario;
    format!(
        "{} memories, {} searches/s, open loop, k {}, {} to {} tokens, {} connections, {} blocks in turns",
        thousands(s.memories),
        s.rate,
        s.k,
        s.query_tokens.0,
        s.query_tokens.1,
        s.connections,
        s.blocks
    )
}

/// The tables with their headings; none for a load that was left out.
fn tables(comparison: &Comparison) -> Vec<(String, Table)> {
    let (s, systems) = (&comparison.scenario, &comparison.systems);
    let mut tables = vec![(
        format!("Beside nothing, {} s each", s.seconds),
        latencies(systems, Beside::Nothing),
    )];
    let beside = latencies(systems, Beside::Import);
    if !beside.rows.is_empty() {
        tables.push((format!("Beside an import, {} s each", s.seconds_import), beside));
    }
    let heading = format!("Recall@{}, stages beside nothing, memory in use, filling", s.k);
    tables.push((heading, others(systems)));
    tables
}

/// Prints all of it.
pub fn print(comparison: &Comparison) {
    println!("\n{}\n", title(comparison));
    for (heading, table) in tables(comparison) {
        println!("{heading}\n{}", table.plain());
    }
    for row in comparison.systems.iter().flat_map(|found| &found.rows) {
        row.load.void.iter().for_each(|why| println!("VOID: {why}"));
        for (miss, message) in &row.load.first_errors {
            println!("first {}: {message}", miss.name());
        }
    }
    for found in &comparison.systems {
        println!("{}: {}{}", found.name, found.setup, versions(found));
    }
    comparison.notes.iter().for_each(|note| println!("note: {note}"));
}

fn versions(found: &Found) -> String {
    let all: Vec<String> = found.versions.iter().map(|(n, v)| format!("{n} {v}")).collect();
    format!(" ({})", all.join(", "))
}

/// The fragment for a report.
pub fn markdown(comparison: &Comparison) -> String {
    let mut out = format!("### Peers: {}\n\n", title(comparison));
    out += &format!("Measured {} on {}.\n", comparison.begun_at, comparison.machine.line());
    let program = &comparison.program;
    let version = program.version.as_deref().unwrap_or("flashbulb of an unknown version");
    let commit = program.commit.as_deref().map_or("unknown", |c| &c[..c.len().min(12)]);
    let dirty = if program.dirty == Some(true) { " with changes" } else { "" };
    out += &format!("{version}, commit {commit}{dirty}. Data: {}.\n\n", comparison.data.source);
    out += &format!("```\n{}\n```\n\n", comparison.command);
    for (heading, table) in tables(comparison) {
        out += &format!("#### {heading}\n\n{}\n", table.markdown());
    }
    for found in &comparison.systems {
        out += &format!("- `{}`: {}{}\n", found.name, found.setup, versions(found));
    }
    out.push('\n');
    for row in comparison.systems.iter().flat_map(|found| &found.rows) {
        row.load.void.iter().for_each(|why| out += &format!("- VOID: {why}\n"));
    }
    comparison.notes.iter().for_each(|note| out += &format!("- {note}\n"));
    out
}

/// Writes `peers.json` and `peers.md` into a folder.
///
/// # Errors
/// If a file cannot be written.
pub fn write(comparison: &Comparison, dir: &Path) -> Result<(), Failure> {
    text::write_both(dir, "peers", comparison, &markdown(comparison))
}
