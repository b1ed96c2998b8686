//! The tables of a report.
//!
//! Invariant: each figure of a void row is a void cell; what was not measured is a dash.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::run::{Beside, Boundary, Miss, Purpose, Row, Run, Temperature, thousands};
use crate::stats::{Percentiles, Quantile};

use super::text::{ms, percent};
use super::view::{Cell, Table};

/// What a row is, in words.
pub fn name(row: &Row) -> String {
    let beside = match (row.beside, row.temperature) {
        (_, Temperature::Cold) => "cold",
        (Beside::Nothing, _) => "beside nothing",
        (Beside::Import, _) => "beside an import",
    };
    let sweep = if row.purpose == Purpose::Sweep { ", sweep" } else { "" };
    format!("{beside}, {}/s{sweep}", trimmed(row.load.offered_per_s))
}

fn trimmed(rate: f64) -> String {
    let text = format!("{rate:.1}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A p99 with its interval.
pub fn p99(p: &Percentiles) -> String {
    let between = p.p99_between.map(|(low, high)| format!(" ({} to {})", ms(low), ms(high)));
    format!("{}{}", ms(p.p99), between.unwrap_or_default())
}

/// The table that stands first: one line a row. Recall is of the run as a whole.
pub fn summary<'a>(run: &Run, rows: impl Iterator<Item = &'a Row>, with_recall: bool) -> Table {
    let recall = run.recall.as_ref().map_or("–".to_owned(), |r| format!("{:.4}", r.recall));
    let k = run.scenario.k;
    let mut table = Table::new(&[
        "row",
        "searches",
        "in time",
        "missed",
        "p50, ms",
        "p90",
        "p95",
        "p99 (95 % interval)",
        "p99.9",
        "p99.99",
        "max",
    ]);
    if with_recall {
        table.head.push(format!("recall@{k}"));
    }
    for row in rows {
        let l = &row.load;
        let void = l.void.is_some();
        let missed: u64 = l.misses.values().sum();
        let r = &l.response;
        let in_time = l.in_time as f64 / l.searches.max(1) as f64;
        let figures = [
            percent(Some(in_time)),
            missed.to_string(),
            ms(r.p50),
            ms(r.p90),
            ms(r.p95),
            p99(r),
            ms(r.p999),
            ms(r.p9999),
            ms(Quantile::Us(r.max)),
        ];
        let mut cells = vec![Cell::plain(name(row)), Cell::plain(l.searches.to_string())];
        cells.extend(figures.into_iter().map(|f| Cell::figure(f, void)));
        if with_recall {
            cells.push(Cell::plain(recall.clone()));
        }
        table.rows.push(cells);
    }
    table
}

/// Offered against answered, and why what is missing is missing.
pub fn misses(rows: &[Row]) -> Table {
    let mut head = vec!["row", "offered/s", "answered/s", "sent"];
    head.extend(Miss::ALL.iter().map(|m| m.name()));
    head.extend(["p50 of answers, ms", "p99 of answers", "first messages"]);
    let mut table = Table::new(&head);
    for row in rows {
        let l = &row.load;
        let void = l.void.is_some();
        let mut cells = vec![
            Cell::plain(name(row)),
            Cell::plain(trimmed(l.offered_per_s)),
            Cell::figure(format!("{:.1}", l.achieved_per_s), void),
            Cell::plain(l.sent.to_string()),
        ];
        for miss in Miss::ALL {
            let count = l.misses.get(&miss).copied().unwrap_or(0);
            cells.push(Cell::figure(count.to_string(), void));
        }
        cells.push(Cell::figure(ms(l.answered.p50), void));
        cells.push(Cell::figure(p99(&l.answered), void));
        let first: Vec<String> =
            l.first_errors.iter().map(|(m, text)| format!("{}: {text}", m.name())).collect();
        cells.push(Cell::plain(first.join("; ")));
        table.rows.push(cells);
    }
    table
}

/// Response, service and lag of each row, and the machine around it.
pub fn generator(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "row",
        "response p50, ms",
        "service p50",
        "service p99",
        "lag p50",
        "lag p99",
        "void because",
        "priority",
        "stolen",
        "load before",
        "load after",
        "daemon, share of a core",
        "generator",
    ]);
    for row in rows {
        let l = &row.load;
        let void = l.void.is_some();
        let share = |s: Option<f64>| s.map_or("–".to_owned(), |s| format!("{s:.2}"));
        let mut cells = vec![Cell::plain(name(row))];
        let figures = [ms(l.response.p50), ms(l.service.p50), ms(l.service.p99)];
        cells.extend(figures.into_iter().map(|f| Cell::figure(f, void)));
        let rest = [
            ms(l.lag.p50),
            ms(l.lag.p99),
            l.void.clone().unwrap_or_default(),
            if l.realtime { "real-time" } else { "ordinary" }.to_owned(),
            percent(l.stolen),
            share(l.load_before),
            share(l.load_after),
            share(l.daemon_cpu),
            share(l.generator_cpu),
        ];
        cells.extend(rest.into_iter().map(Cell::plain));
        table.rows.push(cells);
    }
    table
}

/// The import beside the load.
pub fn imports(rows: &[Row]) -> Option<Table> {
    let mut table = Table::new(&[
        "row",
        "alone before, texts/s",
        "beside",
        "alone after",
        "share of its rate alone",
    ]);
    for row in rows.iter().filter(|r| r.purpose == Purpose::Rate) {
        let Some(i) = row.import else { continue };
        let void = row.load.void.is_some();
        let per_s = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.0}"));
        table.rows.push(vec![
            Cell::plain(name(row)),
            Cell::plain(per_s(i.alone_before_per_s)),
            Cell::figure(per_s(Some(i.beside_per_s)), void),
            Cell::plain(per_s(i.alone_after_per_s)),
            Cell::figure(percent(i.share), void),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// The median against the bare model and the bare search.
pub fn against_bare(rows: &[Row]) -> Option<Table> {
    let mut table = Table::new(&[
        "row",
        "bare model alone p50, ms",
        "p99",
        "with a helper p50",
        "p99",
        "response p50",
        "bare model p50 + bare search p50",
        "ratio of medians",
        "ratio of p99",
    ]);
    for row in rows {
        let Some(bare) = &row.bare else { continue };
        let void = row.load.void.is_some();
        let helped = |f: fn(&Percentiles) -> Quantile| {
            bare.helped.as_ref().map_or("–".to_owned(), |p| ms(f(p)))
        };
        let used = bare.helped.as_ref().unwrap_or(&bare.alone);
        let tails = row.load.response.p99.us().zip(used.p99.us());
        let against = row.against_bare.as_ref();
        let parts = against.map(|a| {
            let (embed, dense) = (Quantile::Us(a.embed_p50), Quantile::Us(a.dense_p50));
            format!("{} ({}) + {}", ms(embed), a.embed_how, ms(dense))
        });
        let dash = || "–".to_owned();
        table.rows.push(vec![
            Cell::plain(name(row)),
            Cell::plain(ms(bare.alone.p50)),
            Cell::plain(ms(bare.alone.p99)),
            Cell::plain(helped(|p| p.p50)),
            Cell::plain(helped(|p| p.p99)),
            Cell::figure(ms(row.load.response.p50), void),
            Cell::plain(parts.unwrap_or_else(dash)),
            Cell::figure(against.map_or_else(dash, |a| format!("{:.2}", a.ratio)), void),
            Cell::figure(
                tails.map_or_else(dash, |(r, b)| format!("{:.2}", r as f64 / b as f64)),
                void,
            ),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// The starts of new processes.
pub fn cold(rows: &[Row]) -> Option<Table> {
    let mut table = Table::new(&[
        "row",
        "page cache",
        "start to first answer, ms",
        "first search, ms",
        "next searches",
        "p50",
        "p90",
        "max",
    ]);
    for row in rows {
        let Some(c) = &row.cold else { continue };
        let (r, void) = (&row.load.response, row.load.void.is_some());
        let mut cells = vec![
            Cell::plain(name(row)),
            Cell::plain(c.page_cache.clone()),
            Cell::plain(format!("{:.0}", c.started_in_ms)),
            Cell::plain(ms(Quantile::Us(c.first_request_us))),
            Cell::plain(r.samples.to_string()),
        ];
        let figures = [ms(r.p50), ms(r.p90), ms(Quantile::Us(r.max))];
        cells.extend(figures.into_iter().map(|f| Cell::figure(f, void)));
        table.rows.push(cells);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// The stages of a search in their order; those that this program does not know stand at the end.
const STAGES: [&str; 8] =
    ["queue", "tokenise", "embed", "dense", "lexical", "fuse", "fetch", "total"];

/// Stages by their place in a search.
pub fn in_order(stages: &BTreeMap<String, Percentiles>) -> Vec<(&str, &Percentiles)> {
    let mut all: Vec<(&str, &Percentiles)> = stages.iter().map(|(n, p)| (n.as_str(), p)).collect();
    let place = |name: &str| STAGES.iter().position(|s| *s == name).unwrap_or(STAGES.len());
    all.sort_by_key(|(name, _)| place(name));
    all
}

/// The stages of one row.
pub fn stages(row: &Row) -> Table {
    let mut table = Table::new(&["stage", "mean, ms", "p50", "p90", "p99 (95 % interval)", "max"]);
    let void = row.load.void.is_some();
    for (name, p) in in_order(&row.load.stages) {
        let mean = p.mean.map_or("–".to_owned(), |m| format!("{:.3}", m / 1000.0));
        let figures = [mean, ms(p.p50), ms(p.p90), p99(p), ms(Quantile::Us(p.max))];
        let mut cells = vec![Cell::plain(name)];
        cells.extend(figures.into_iter().map(|f| Cell::figure(f, void)));
        table.rows.push(cells);
    }
    table
}

/// The other methods of a mix.
pub fn others(rows: &[Row]) -> Option<Table> {
    let mut table = Table::new(&[
        "row",
        "method",
        "sent",
        "missed",
        "p50, ms",
        "p90",
        "p99 (95 % interval)",
        "max",
    ]);
    for row in rows {
        let void = row.load.void.is_some();
        for (method, p) in &row.load.others {
            let counts = [name(row), method.clone(), p.samples.to_string(), p.missed.to_string()];
            let mut cells: Vec<Cell> = counts.into_iter().map(Cell::plain).collect();
            let figures = [ms(p.p50), ms(p.p90), p99(p), ms(Quantile::Us(p.max))];
            cells.extend(figures.into_iter().map(|f| Cell::figure(f, void)));
            table.rows.push(cells);
        }
    }
    (!table.rows.is_empty()).then_some(table)
}

/// By how much the service's own counters grew during each load; those that stood still are left out.
pub fn counters(rows: &[Row]) -> Option<Table> {
    let counted: Vec<&Row> = rows.iter().filter(|r| r.purpose == Purpose::Rate).collect();
    let growth = |row: &Row, name: &str| -> Option<u64> {
        let (before, after) = row.counters.as_ref()?;
        let read = |v: &Value| v["counters"][name].as_u64();
        read(after)?.checked_sub(read(before)?)
    };
    let last = counted.iter().filter_map(|r| r.counters.as_ref()).next_back()?;
    let names: Vec<String> = last.1["counters"].as_object()?.keys().cloned().collect();
    let mut head = vec!["counter".to_owned()];
    head.extend(counted.iter().map(|r| name(r)));
    let mut table = Table { head, rows: Vec::new() };
    for counter in names {
        let grown: Vec<Option<u64>> = counted.iter().map(|r| growth(r, &counter)).collect();
        if grown.iter().flatten().all(|n| *n == 0) {
            continue;
        }
        let mut cells = vec![Cell::plain(counter.replace('_', " "))];
        let shown = grown.iter().map(|n| n.map_or("–".to_owned(), |n| n.to_string()));
        cells.extend(shown.zip(&counted).map(|(n, r)| Cell::figure(n, r.load.void.is_some())));
        table.rows.push(cells);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// Single searches at several widths of the walk.
pub fn frontier(run: &Run) -> Option<Table> {
    let mut table =
        Table::new(&["ef", "recall", "queries", "path", "p50, µs", "p90", "p99", "max"]);
    for p in &run.frontier {
        let us = |q: Quantile| q.us().map_or("–".to_owned(), |us| us.to_string());
        let cells = [
            p.ef.map_or("default".to_owned(), |ef| ef.to_string()),
            format!("{:.4}", p.recall),
            p.queries.to_string(),
            p.path.clone(),
            us(p.took.p50),
            us(p.took.p90),
            us(p.took.p99),
            p.took.max.to_string(),
        ];
        table.rows.push(cells.into_iter().map(Cell::plain).collect());
    }
    (!table.rows.is_empty()).then_some(table)
}

/// This run beside the previous one, row by row.
pub fn previous(run: &Run, previous: &Run) -> Table {
    let mut table = Table::new(&[
        "row",
        "p50 before, ms",
        "p50 now",
        "change",
        "p99 before",
        "p99 now",
        "change",
        "import share before",
        "now",
    ]);
    for row in run.rows.iter().filter(|r| r.purpose != Purpose::Sweep) {
        let Some(old) = previous.rows.iter().find(|o| o.name == row.name) else { continue };
        let (was, is) = (old.load.void.is_some(), row.load.void.is_some());
        let change = |a: Quantile, b: Quantile| match (a.us(), b.us()) {
            (Some(a), Some(b)) if a > 0 => {
                format!("{:+.1} %", (b as f64 / a as f64 - 1.0) * 100.0)
            }
            _ => "–".to_owned(),
        };
        let (o, n) = (&old.load.response, &row.load.response);
        let share =
            |r: &Row| r.import.and_then(|i| i.share).map_or("–".to_owned(), |s| percent(Some(s)));
        table.rows.push(vec![
            Cell::plain(name(row)),
            Cell::figure(ms(o.p50), was),
            Cell::figure(ms(n.p50), is),
            Cell::figure(change(o.p50, n.p50), was || is),
            Cell::figure(p99(o), was),
            Cell::figure(p99(n), is),
            Cell::figure(change(o.p99, n.p99), was || is),
            Cell::figure(share(old), was),
            Cell::figure(share(row), is),
        ]);
    }
    table
}

/// The previous run's other figures.
pub fn previous_others(run: &Run, previous: &Run) -> Table {
    let mut table = Table::new(&["figure", "before", "now"]);
    let recall =
        |r: &Run| r.recall.as_ref().map_or("–".to_owned(), |r| format!("{:.4}", r.recall));
    let knee = |r: &Run, beside: Beside| {
        let knee = r.knees.iter().find(|k| k.beside == beside);
        let void = knee.is_some_and(|k| k.void);
        let text = knee.and_then(|k| k.per_s).map_or("–".to_owned(), |v| format!("{v:.1}/s"));
        Cell::figure(text, void)
    };
    let memory = |r: &Run| r.memory.map_or("–".to_owned(), |m| format!("{:.0} MiB", m.rss_mib));
    let row = |name: &str, a: Cell, b: Cell| vec![Cell::plain(name), a, b];
    table.rows = vec![
        row("recall", Cell::plain(recall(previous)), Cell::plain(recall(run))),
        row("knee beside nothing", knee(previous, Beside::Nothing), knee(run, Beside::Nothing)),
        row("knee beside an import", knee(previous, Beside::Import), knee(run, Beside::Import)),
        row("memory resident", Cell::plain(memory(previous)), Cell::plain(memory(run))),
        row("commit", Cell::plain(commit(previous)), Cell::plain(commit(run))),
        row("begun", Cell::plain(previous.begun_at.clone()), Cell::plain(run.begun_at.clone())),
    ];
    table
}

/// The commit, and whether the folder differed from it.
pub fn commit(run: &Run) -> String {
    let short = run.program.commit.as_deref().map(|c| c.get(..12).unwrap_or(c));
    let dirty = match run.program.dirty {
        Some(true) => " with changes",
        Some(false) => "",
        None => " (state unknown)",
    };
    short.map_or("unknown".to_owned(), |c| format!("{c}{dirty}"))
}

/// What a reader needs to run it again, and to judge it.
pub fn facts(run: &Run) -> Table {
    let mut table = Table::new(&["fact", "value"]);
    for (name, value) in facts_of_program(run).into_iter().chain(facts_of_data(run)) {
        table.rows.push(vec![Cell::plain(name), Cell::plain(value)]);
    }
    table
}

/// What the service says of its embedder, without what is a table of its own.
fn ran(embedder: &Value) -> String {
    let words = embedder.as_object().into_iter().flatten().filter_map(|(name, v)| match v {
        Value::String(text) => Some(format!("{name} {text}")),
        Value::Number(n) => Some(format!("{name} {n}")),
        Value::Object(parts) if name == "device" => {
            let part = |(name, v): (&String, &Value)| Some(format!("{name} {}", v.as_str()?));
            let parts: Vec<String> = parts.iter().filter_map(part).collect();
            Some(format!("device {}", parts.join(" ")))
        }
        _ => None,
    });
    words.collect::<Vec<_>>().join(", ")
}

fn or_unknown(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "unknown".to_owned())
}

fn facts_of_program(run: &Run) -> Vec<(&'static str, String)> {
    let (s, m) = (&run.scenario, &run.model);
    let boundary = match s.boundary {
        Boundary::Socket => "Unix socket",
        Boundary::InProcess => "frames in one process",
    };
    let durability = match run.durability.as_str() {
        "sync" => "sync: acknowledged means synced to the device",
        other => other,
    };
    let arguments = match run.program.arguments.join(" ") {
        none if none.is_empty() => "none".to_owned(),
        some => some,
    };
    vec![
        ("begun", run.begun_at.clone()),
        ("durability", durability.to_owned()),
        ("program", or_unknown(run.program.version.as_ref())),
        ("program SHA-256", run.program.sha256.clone()),
        ("commit", commit(run)),
        ("arguments of serve", arguments),
        ("boundary", boundary.to_owned()),
        ("connections", s.connections.to_string()),
        ("tokens of a query", format!("{} to {}", s.query_tokens.0, s.query_tokens.1)),
        ("hits asked for", s.k.to_string()),
        ("promise, timeout", format!("{} ms, {} ms", s.promise_ms, s.timeout_ms)),
        ("deadline_ms of a search", s.deadline_ms.map_or("none".to_owned(), |d| d.to_string())),
        ("the service's embedder", ran(&run.ran)),
        ("model", format!("{} {}, {} on {}", m.name, m.precision, m.runtime, m.provider)),
        ("model SHA-256", or_unknown(m.sha256.as_ref())),
        ("model fingerprint", m.fingerprint.clone()),
    ]
}

fn facts_of_data(run: &Run) -> Vec<(&'static str, String)> {
    let (d, fill) = (&run.data, &run.fill);
    let n = thousands;
    let seconds = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.0} s"));
    let reused = if fill.reused { ", made by an earlier run" } else { "" };
    let filled = (seconds(fill.seconds), seconds(fill.indexed_after_s));
    let memories =
        format!("{} lines of the data, {} made of them", n(d.memories_real), n(d.memories_made));
    let queries =
        format!("{} held-out lines, {} made of halves", n(d.queries_real), n(d.queries_made));
    let lines =
        format!("{}, {} lines, {} held out for queries", d.source, n(d.lines), n(d.held_out));
    let by =
        format!("{}{reused}; searchable after {}, indexed after {}", fill.way, filled.0, filled.1);
    let mut facts = vec![
        ("data", lines),
        ("data SHA-256", d.sha256.clone()),
        ("memories", memories),
        ("queries", queries),
        ("seed", run.seed.to_string()),
        ("store filled by", by),
    ];
    if let Some(m) = run.memory {
        let (rss, anonymous) = (m.rss_mib, m.anonymous_mib);
        let text = format!("{rss:.0} MiB resident, {anonymous:.0} MiB of it not backed by files");
        facts.push(("memory after the load", text));
    }
    facts
}
