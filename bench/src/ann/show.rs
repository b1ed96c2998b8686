//! A run of `ann` as tables for a terminal, as Markdown, and as a page with its curves.
//!
//! Invariant: all forms show the same tables; what was not measured is a dash.

use std::path::Path;

use super::result::{Ann, Found, RECALLS};
use crate::Failure;
use crate::report::charts::{self, Chart, Series};
use crate::report::text;
use crate::report::view::{self, Cell, Page, Picture, Section, Table};
use crate::run::{Memory, thousands};
use crate::stats::Spread;

fn dash(text: Option<String>) -> Cell {
    Cell::plain(text.unwrap_or_else(|| "–".to_owned()))
}

fn whole(spread: &Spread) -> String {
    let n = |v: f64| thousands(v.round() as usize);
    format!("{} ({} to {})", n(spread.median), n(spread.least), n(spread.most))
}

fn systems(found: &[Found]) -> Table {
    let head: Vec<String> =
        ["system", "build, s", "anonymous memory, MiB", "index without f32 rows, bytes a vector"]
            .into_iter()
            .map(str::to_owned)
            .chain(RECALLS.iter().map(|recall| format!("queries/s at {recall}")))
            .collect();
    let row = |found: &Found| {
        let memory = |m: Memory| format!("{:.0}", m.anonymous_mib);
        let mut cells = vec![
            Cell::plain(&found.name),
            Cell::plain(format!("{:.1}", found.build_seconds)),
            dash(found.memory.map(memory)),
            dash(found.index_bytes.map(|bytes| thousands(bytes.round() as usize))),
        ];
        cells.extend(found.at.iter().map(|at| dash(at.as_ref().map(whole))));
        cells
    };
    Table { head, rows: found.iter().map(row).collect() }
}

fn ratios(ann: &Ann) -> Table {
    let own = ann.systems.first().map_or("", |found| found.name.as_str());
    let mut table =
        Table::new(&["recall", "queries/s of", "by those of", "median", "least", "most"]);
    for ratio in &ann.ratios {
        let t = ratio.times;
        let cells = [
            ratio.recall.to_string(),
            own.to_owned(),
            ratio.other.clone(),
            format!("{:.2}", t.median),
            format!("{:.2}", t.least),
            format!("{:.2}", t.most),
        ];
        table.rows.push(cells.into_iter().map(Cell::plain).collect());
    }
    table
}

fn settings(found: &[Found]) -> Table {
    let head =
        ["system", "width", "recall", "queries/s (least to most)", "one query p50, µs", "p99"];
    let mut table = Table::new(&head);
    for found in found {
        for s in &found.settings_measured {
            let cells = vec![
                Cell::plain(&found.name),
                Cell::plain(s.width.to_string()),
                Cell::plain(format!("{:.4}", s.recall)),
                dash(Spread::of(&s.qps).as_ref().map(whole)),
                Cell::plain(format!("{:.1}", s.single_us.p50)),
                Cell::plain(format!("{:.1}", s.single_us.p99)),
            ];
            table.rows.push(cells);
        }
    }
    table
}

fn title(ann: &Ann) -> String {
    let s = &ann.scenario;
    format!(
        "recall@{} against queries a second, one thread, {} vectors of {} components",
        s.k,
        thousands(s.vectors),
        s.dim
    )
}

fn texts(ann: &Ann) -> Vec<String> {
    let s = &ann.scenario;
    let normalised = if s.normalised { ", brought to unit length here" } else { "" };
    let mut out = vec![format!(
        "{}{normalised}; compared by {}; {} queries that are not among them; the truth by brute force, equal scores equally right. Queries/s: all queries in one call of the index on one thread, for at least {} s, systems in turns setting by setting, {} blocks; at a recall: between the two settings around it. Building: {} threads where the index has them.",
        s.source,
        s.metric.words(),
        thousands(s.queries),
        s.seconds,
        s.blocks,
        s.build_threads
    )];
    out.extend(ann.systems.iter().map(|found| format!("{}: {}", found.name, found.settings)));
    out.extend(ann.environment.iter().map(|e| format!("{}, {}", e.version, e.packages.join(" "))));
    out.extend(ann.notes.iter().map(|note| format!("NOTE: {note}")));
    out
}

/// The tables, without pictures.
fn tables(ann: &Ann) -> Vec<Table> {
    let mut tables = vec![systems(&ann.systems)];
    if !ann.ratios.is_empty() {
        tables.push(ratios(ann));
    }
    tables.push(settings(&ann.systems));
    tables
}

fn picture(ann: &Ann) -> Result<Option<Picture>, Failure> {
    let least = 0.9;
    let series: Vec<Series> = ann
        .systems
        .iter()
        .enumerate()
        .map(|(colour, found)| {
            let points = found
                .medians()
                .iter()
                .filter(|p| p.recall >= least)
                .map(|p| (p.recall, p.qps))
                .collect();
            Series { label: found.name.clone(), points, colour, ..Series::default() }
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    let label = |v: f64| format!("{v:.3}");
    let x = format!("recall@{}", ann.scenario.k);
    let chart = Chart {
        x: &x,
        y: "queries/s",
        x_label: &label,
        x_ticks: None,
        series: &series,
        marks: &[],
        level: None,
    };
    let title = format!("Recall from {least} on, and queries a second, medians of the blocks");
    Ok(charts::draw(&chart)?.map(|svg| Picture { title, svg }))
}

fn page(ann: &Ann) -> Result<Page, Failure> {
    let commit = ann.commit.as_deref().map_or("unknown", |c| &c[..c.len().min(12)]);
    let dirty = if ann.dirty == Some(true) { " with changes" } else { "" };
    let lead = vec![format!(
        "Measured {} on {}. Commit {commit}{dirty}.",
        ann.begun_at,
        ann.machine.line()
    )];
    let section = Section {
        title: title(ann),
        level: 2,
        texts: texts(ann),
        code: vec![ann.command.clone()],
        tables: tables(ann),
        pictures: picture(ann)?.into_iter().collect(),
    };
    Ok(Page { title: "Vector indexes".into(), lead, sections: vec![section] })
}

/// Prints all of it.
pub fn print(ann: &Ann) {
    println!("\n{}\n", title(ann));
    for table in tables(ann) {
        let head: Vec<&str> = table.head.iter().map(String::as_str).collect();
        let cells = |row: &Vec<Cell>| row.iter().map(|cell| cell.text.clone()).collect();
        let rows: Vec<Vec<String>> = table.rows.iter().map(cells).collect();
        println!("{}", crate::table::plain(&head, &rows));
    }
    texts(ann).iter().for_each(|line| println!("{line}"));
}

/// Writes `ann.json`, `ann.md` and `ann.html` into a folder.
///
/// # Errors
/// If a file cannot be written.
pub fn write(ann: &Ann, dir: &Path) -> Result<(), Failure> {
    let page = page(ann)?;
    text::write_both(dir, "ann", ann, &view::markdown(&page)?)?;
    let path = dir.join("ann.html");
    std::fs::write(&path, view::html(&page)?)
        .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
