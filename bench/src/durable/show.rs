//! A run of `durable` as tables for a terminal and as a fragment of Markdown.
//!
//! Invariant: each row says between what its times were taken; what is absent is a dash.

use std::path::Path;

use super::result::{Durable, Ratio, Row};
use crate::Failure;
use crate::report::text::{self, ms};
use crate::run::thousands;
use crate::stats::{Quantile, Spread};
use crate::table::Table;

fn whole(spread: &Spread) -> String {
    let n = |v: f64| thousands(v.round() as usize);
    format!("{} ({} to {})", n(spread.median), n(spread.least), n(spread.most))
}

fn median(spread: Option<&Spread>) -> String {
    spread.map_or_else(|| "–".to_owned(), |s| thousands(s.median.round() as usize))
}

fn adds(rows: &[Row]) -> Table {
    let head = vec![
        "clients",
        "system",
        "time taken at",
        "adds/s (least to most)",
        "p50, ms",
        "p99",
        "p99.9",
        "max",
        "bytes/add",
        "at the device/add",
        "until closed",
    ];
    let cells = |row: &Row| {
        let l = &row.latency;
        vec![
            row.clients.to_string(),
            row.system.clone(),
            row.boundary.clone(),
            whole(&row.adds_per_s),
            ms(l.p50),
            ms(l.p99),
            ms(l.p999),
            ms(Quantile::Us(l.max)),
            median(Some(&row.bytes_per_add)),
            median(row.written_per_add.as_ref()),
            median(row.written_per_add_whole.as_ref()),
        ]
    };
    Table { head, rows: rows.iter().map(cells).collect() }
}

fn ratios(ratios: &[Ratio]) -> Table {
    let head = vec!["clients", "adds/s of flashbulb by those of", "median", "least", "most"];
    let two = |v: f64| format!("{v:.2}");
    let cells = |r: &Ratio| {
        let s = r.spread;
        vec![r.clients.to_string(), r.to.clone(), two(s.median), two(s.least), two(s.most)]
    };
    Table { head, rows: ratios.iter().map(cells).collect() }
}

fn searches(rows: &[Row]) -> Vec<String> {
    let line = |row: &Row| {
        let times = text::percentiles(row.searches.as_ref()?);
        Some(format!("searches beside {} with {} client(s): {times}", row.system, row.clients))
    };
    rows.iter().filter_map(line).collect()
}

fn title(durable: &Durable) -> String {
    let s = &durable.scenario;
    let noun = if s.batch == 1 { "memory" } else { "memories" };
    format!(
        "{} {noun} an add, closed loop, {} blocks in turns of {} s after {} s uncounted, a new store each, {} components, on {}",
        s.batch, s.blocks, s.seconds, s.warm_up_seconds, s.dim, s.file_system
    )
}

fn device(durable: &Durable) -> String {
    format!("the device alone, 4 KiB over and fdatasync: {}", text::percentiles(&durable.device))
}

/// Prints all of it.
pub fn print(durable: &Durable) {
    println!("\n{}\n{}\n", title(durable), device(durable));
    println!("{}", adds(&durable.rows).plain());
    if !durable.ratios.is_empty() {
        println!("By block\n{}", ratios(&durable.ratios).plain());
    }
    searches(&durable.rows).iter().for_each(|line| println!("{line}"));
    durable.setups.iter().for_each(|(name, setup)| println!("{name}: {setup}"));
    durable.versions.iter().for_each(|(name, version)| println!("{name} {version}"));
    durable.notes.iter().for_each(|note| println!("NOTE: {note}"));
}

/// The fragment for a report.
pub fn markdown(durable: &Durable) -> String {
    let mut out = format!("### Durable adds: {}\n\n", title(durable));
    let commit = durable.commit.as_deref().map_or("unknown", |c| &c[..c.len().min(12)]);
    let dirty = if durable.dirty == Some(true) { " with changes" } else { "" };
    out += &format!("Measured {} on {}.\n", durable.begun_at, durable.machine.line());
    out += &format!("Commit {commit}{dirty}. Texts: {}.\n\n", durable.scenario.texts);
    out += &format!("```\n{}\n```\n\n", durable.command);
    durable.notes.iter().for_each(|note| out += &format!("**{note}**\n\n"));
    out += &format!("In milliseconds: {}.\n\n", device(durable));
    out += &adds(&durable.rows).markdown();
    if !durable.ratios.is_empty() {
        out += &format!("\n{}", ratios(&durable.ratios).markdown());
    }
    out.push('\n');
    searches(&durable.rows).iter().for_each(|line| out += &format!("- {line}\n"));
    durable.setups.iter().for_each(|(name, setup)| out += &format!("- `{name}`: {setup}\n"));
    durable.versions.iter().for_each(|(name, version)| out += &format!("- {name} {version}\n"));
    out
}

/// Writes `durable.json` and `durable.md` into a folder.
///
/// # Errors
/// If a file cannot be written.
pub fn write(durable: &Durable, dir: &Path) -> Result<(), Failure> {
    text::write_both(dir, "durable", durable, &markdown(durable))
}
