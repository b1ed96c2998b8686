//! Figures as lines for a terminal.
//!
//! Invariant: what is absent is shown as absent; a void row is marked in every line that shows it.

use std::path::Path;

use flashbulb::embed::Embedder;
use serde::Serialize;
use serde_json::Value;

use crate::Failure;
use crate::load::outcome::misses_line;
use crate::run::{Beside, Knee, Load, Row, Run};
use crate::stats::{Percentiles, Quantile};

/// Milliseconds; a dash where there are too few samples.
pub fn ms(q: Quantile) -> String {
    match q {
        Quantile::Us(us) => format!("{:.2}", us as f64 / 1000.0),
        Quantile::Missed => "missed".to_owned(),
        Quantile::Hidden => "–".to_owned(),
    }
}

/// A share in percent.
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "unknown".to_owned(), |s| format!("{:.1} %", s * 100.0))
}

/// Percentiles in one line, milliseconds.
pub fn percentiles(p: &Percentiles) -> String {
    let between = p.p99_between.map(|(low, high)| format!(" [{} to {}]", ms(low), ms(high)));
    format!(
        "p50 {} ms, p90 {} ms, p99 {} ms{}, p99.9 {} ms, max {} ms, n {}",
        ms(p.p50),
        ms(p.p90),
        ms(p.p99),
        between.unwrap_or_default(),
        ms(p.p999),
        ms(Quantile::Us(p.max)),
        p.samples
    )
}

/// The figures of one load, a line each.
pub fn load(l: &Load) -> String {
    let void = if l.void.is_some() { "VOID " } else { "" };
    let mut lines = Vec::new();
    lines.extend(l.void.as_ref().map(|why| format!("VOID: {why}")));
    lines.push(format!(
        "generator at {} priority, processors of the machine taken by other guests: {}",
        if l.realtime { "real-time" } else { "ordinary" },
        percent(l.stolen)
    ));
    let missed = misses_line(&l.misses).unwrap_or_else(|| "none".to_owned());
    lines.push(format!(
        "{void}offered {:.1}/s, answered {:.1}/s, {} sent, missed: {missed}; {} of {} searches in time",
        l.offered_per_s, l.achieved_per_s, l.sent, l.in_time, l.searches
    ));
    lines.extend(l.first_errors.iter().map(|(m, text)| format!("first {}: {text}", m.name())));
    let mut figure = |name: &str, p: &Percentiles| {
        lines.push(format!("{void}{name:<9} {}", percentiles(p)));
    };
    figure("response", &l.response);
    if l.response.missed > 0 {
        figure("answered", &l.answered);
    }
    figure("service", &l.service);
    l.others.iter().for_each(|(name, p)| figure(name, p));
    let stages = super::tables::in_order(&l.stages).into_iter();
    stages.filter(|(_, p)| p.max > 1).for_each(|(name, p)| figure(name, p));
    figure("lag", &l.lag);
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

/// One row of `load`.
pub fn print_row(row: &Row) {
    let void = if row.load.void.is_some() { "VOID " } else { "" };
    println!("{} ({:?}, {:?})", row.name, row.purpose, row.temperature);
    if row.beside == Beside::Import
        && let Some(import) = row.import
    {
        let per_s = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.0}"));
        println!(
            "  {void}beside an import of {:.0} texts/s, {} of its rate alone ({} before, {} after)",
            import.beside_per_s,
            percent(import.share),
            per_s(import.alone_before_per_s),
            per_s(import.alone_after_per_s)
        );
    }
    print!("{}", load(&row.load));
    if let Some(bare) = &row.bare {
        println!("  bare model at the same rate, just after");
        println!("    alone  {}", percentiles(&bare.alone));
        if let Some(helped) = &bare.helped {
            println!("    helped {}", percentiles(helped));
        }
    }
    if let Some(cold) = &row.cold {
        println!(
            "  page cache {}; started in {:.0} ms, first request {:.2} ms",
            cold.page_cache,
            cold.started_in_ms,
            cold.first_request_us as f64 / 1000.0
        );
    }
    println!();
}

/// The end of a sweep.
pub fn print_knee(knee: &Knee) {
    println!("{}\n", knee_line(knee));
}

/// A knee in words.
pub fn knee_line(knee: &Knee) -> String {
    let beside = match knee.beside {
        Beside::Nothing => "beside nothing",
        Beside::Import => "beside an import",
    };
    let void = if knee.void { "void: " } else { "" };
    let what = format!(
        "{} of the searches answered within {} ms",
        percent(Some(knee.share)),
        knee.promise_ms
    );
    match (knee.per_s, knee.fails_at_per_s) {
        (Some(holds), Some(fails)) => {
            format!("knee {beside}: {void}{holds:.1}/s ({what}; {fails:.1}/s is too much)")
        }
        (Some(holds), None) => {
            format!(
                "knee {beside}: {void}at least {holds:.1}/s ({what}); the sweep ended before it"
            )
        }
        (None, _) => {
            format!("knee {beside}: {void}none found, even the lowest rate was too much ({what})")
        }
    }
}

/// What stands at the end of a run.
pub fn print_end(run: &Run) {
    for row in &run.rows {
        if let Some(a) = &row.against_bare {
            let void = if row.load.void.is_some() { "VOID " } else { "" };
            println!(
                "{}: {void}median {:.2} ms is {:.2} times the bare model {} ({:.2} ms) plus the bare search ({:.2} ms)",
                row.name,
                a.response_p50 as f64 / 1000.0,
                a.ratio,
                a.embed_how,
                a.embed_p50 as f64 / 1000.0,
                a.dense_p50 as f64 / 1000.0
            );
        }
    }
    if let Some(r) = &run.recall {
        println!(
            "recall@{} {:.4} of {} {} against {} vectors",
            r.k, r.recall, r.queries, r.of, r.vectors
        );
    }
    for p in &run.frontier {
        let ef = p.ef.map_or("default".to_owned(), |ef| ef.to_string());
        println!("  ef {ef:>7}: recall {:.4}, {}, {}", p.recall, p.path, percentiles(&p.took));
    }
    if let Some(m) = run.memory {
        println!(
            "memory {:.0} MiB resident, {:.0} MiB of it not backed by files",
            m.rss_mib, m.anonymous_mib
        );
    }
    run.notes.iter().for_each(|note| println!("note: {note}"));
}

/// What the model runs on, as it was witnessed.
pub fn ran(embedder: &Embedder) -> String {
    let ran = embedder.ran();
    format!("{} {}, {} on {}", ran.model, ran.precision, ran.runtime, ran.provider)
}

/// Writes `NAME.json` and `NAME.md` into a folder and says where they are.
///
/// # Errors
/// If a file cannot be written.
pub fn write_both(
    dir: &Path,
    name: &str,
    raw: &impl Serialize,
    markdown: &str,
) -> Result<(), Failure> {
    let mut json = serde_json::to_vec_pretty(raw)?;
    json.push(b'\n');
    for (ending, bytes) in [("json", &*json), ("md", markdown.as_bytes())] {
        let path = dir.join(format!("{name}.{ending}"));
        std::fs::write(&path, bytes)
            .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Writes raw figures, if a path was given.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: Option<&Path>, raw: &Value) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, serde_json::to_vec_pretty(raw)?)
        .map_err(|e| format!("cannot write {}: {e}", path.display()).into())
}
