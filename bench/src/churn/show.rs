//! A run of `churn` as tables for a terminal and as Markdown.
//!
//! Invariant: both forms show the same tables; every round is shown, not the worst of them alone; what is absent is a dash.

use std::path::Path;

use super::result::{Churn, Latency, State};
use crate::Failure;
use crate::report::text;
use crate::report::view::{self, Cell, Page, Section, Table};
use crate::run::thousands;

fn row(cells: impl IntoIterator<Item = String>) -> Vec<Cell> {
    cells.into_iter().map(Cell::plain).collect()
}

fn states(churn: &Churn) -> Table {
    let k = churn.scenario.k;
    let head = ["index", "s", "vectors", "live", "in the graph", "unreachable"];
    let mut table = Table::new(&head);
    let points = &churn.measured.built.points;
    table.head.extend(points.iter().map(|p| format!("recall@{k}, width {}", p.width)));
    table.head.extend(points.last().map(|p| format!("nodes visited, width {}", p.width)));
    let mut add = |name: String, state: &State| {
        let count = |n: u32| thousands(n as usize);
        let cells = [
            name,
            format!("{:.1}", state.seconds),
            count(state.vectors),
            count(state.live),
            count(state.in_graph),
            count(state.unreachable),
        ];
        let recalls = state.points.iter().map(|p| format!("{:.4}", p.recall));
        let visited = state.points.last().map(|p| format!("{:.0}", p.visited));
        table.rows.push(row(cells.into_iter().chain(recalls).chain(visited)));
    };
    add("built at once".into(), &churn.measured.built);
    for (at, round) in churn.measured.rounds.iter().enumerate() {
        add(format!("after round {}", at + 1), round);
    }
    add("fresh, in random order".into(), &churn.measured.fresh);
    table
}

fn shortfalls(churn: &Churn) -> Table {
    let head = ["width", "recall of the fresh index", "least after a round", "round", "shortfall"];
    let mut table = Table::new(&head);
    for s in &churn.shortfalls {
        table.rows.push(row([
            s.width.to_string(),
            format!("{:.4}", s.fresh),
            format!("{:.4}", s.least),
            s.round.to_string(),
            format!("{:+.4}", s.shortfall),
        ]));
    }
    table
}

fn latencies(churn: &Churn) -> Table {
    let mut table = Table::new(&["searches", "p50, µs", "p99", "p99.9", "max", "n"]);
    let us = |v: Option<f64>| v.map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"));
    let l = &churn.measured.latency;
    let mut add = |name: &str, times: &Latency| {
        let Latency { samples, p50_us, p99_us, p999_us, max_us } = *times;
        let of = [p50_us, p99_us, p999_us, Some(max_us)].map(us);
        let n = thousands(usize::try_from(samples).unwrap_or(usize::MAX));
        table.rows.push(row([name.to_owned()].into_iter().chain(of).chain([n])));
    };
    add("alone, before", &l.idle_before);
    add("beside inserts", &l.under_inserts);
    add("alone, after", &l.idle_after);
    table
}

fn inserts(churn: &Churn) -> String {
    let l = &churn.measured.latency;
    let ratio = l.p99_ratio.map_or_else(
        || "too few samples for a ratio of p99".to_owned(),
        |r| format!("p99 beside them is {r:.2} times the mean of those alone"),
    );
    let rate = thousands(l.inserts.per_s.round() as usize);
    format!("inserts beside searches at width {}: {rate}/s; {ratio}", l.width)
}

fn title(churn: &Churn) -> String {
    let s = &churn.scenario;
    format!(
        "{} rounds that each delete and insert {} of {} vectors of {} components",
        s.rounds,
        thousands(s.moved),
        thousands(s.vectors),
        s.dim
    )
}

fn texts(churn: &Churn) -> Vec<String> {
    let s = &churn.scenario;
    let normalised = if s.normalised { ", brought to unit length here" } else { "" };
    let mut out = vec![
        format!(
            "{}{normalised}; compared by {}; {} queries that are not among them; the truth by brute force over the live vectors, which are the same after each round; equal scores equally right.",
            s.source,
            s.metric.words(),
            thousands(s.queries)
        ),
        format!(
            "Deletes and inserts in one random order, a vector inserted only after it was deleted; after every {} of them one thread does the index's work to its end. Built at once by {} thread(s). Layout: {}.",
            s.between, s.threads, s.layout
        ),
        format!(
            "Latency: single searches on one thread for {} s each; another thread pushes {} vectors and does the index's work in quanta of 5 ms, over and over; they are vectors of the data set with noise of {} times their length.",
            s.seconds, s.between, s.noise
        ),
        inserts(churn),
    ];
    out.extend(churn.notes.iter().map(|note| format!("NOTE: {note}")));
    out
}

fn tables(churn: &Churn) -> [Table; 3] {
    [states(churn), shortfalls(churn), latencies(churn)]
}

/// Prints all of it.
pub fn print(churn: &Churn) {
    println!("\n{}\n", title(churn));
    for table in tables(churn) {
        let head: Vec<&str> = table.head.iter().map(String::as_str).collect();
        let cells = |row: &Vec<Cell>| row.iter().map(|cell| cell.text.clone()).collect();
        let rows: Vec<Vec<String>> = table.rows.iter().map(cells).collect();
        println!("{}", crate::table::plain(&head, &rows));
    }
    texts(churn).iter().for_each(|line| println!("{line}"));
}

/// As Markdown.
///
/// # Errors
/// If the template fails.
pub fn markdown(churn: &Churn) -> Result<String, Failure> {
    let commit = churn.commit.as_deref().map_or("unknown", |c| &c[..c.len().min(12)]);
    let dirty = if churn.dirty == Some(true) { " with changes" } else { "" };
    let lead = vec![format!(
        "Measured {} on {}. Commit {commit}{dirty}.",
        churn.begun_at,
        churn.machine.line()
    )];
    let section = Section {
        title: title(churn),
        level: 2,
        texts: texts(churn),
        code: vec![churn.command.clone()],
        tables: tables(churn).into(),
        pictures: Vec::new(),
    };
    let title = "The vector index while vectors come and go".to_owned();
    view::markdown(&Page { title, lead, sections: vec![section] })
}

/// Writes `churn.json` and `churn.md` into a folder.
///
/// # Errors
/// If a file cannot be written.
pub fn write(churn: &Churn, dir: &Path) -> Result<(), Failure> {
    text::write_both(dir, "churn", churn, &markdown(churn)?)
}
