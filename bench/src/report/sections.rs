//! The parts of a report and their pictures.
//!
//! Invariant: each run is shown with the same parts in the same order; a part without figures is left out, a row without
//! samples enough for a quantile shows a dash.

use std::path::Path;

use hdrhistogram::Histogram;

use super::charts::{self, Bar, Chart, Series};
use super::text::knee_line;
use super::view::{Cell, Page, Picture, Section, Table};
use super::{Loaded, log, tables};
use crate::Failure;
use crate::run::{Purpose, Row, Run};
use crate::stats::is_shown;

/// Everything.
///
/// # Errors
/// If a picture cannot be drawn or a log not be read.
pub fn page(loaded: &[Loaded], previous: &[Run]) -> Result<Page, Failure> {
    let first = loaded.first().ok_or("there is no run to report")?;
    let run = &first.run;
    let title = format!("Flashbulb: search latency, durability {}", run.durability);
    let mut lead = vec![
        run.machine.line(),
        format!(
            "Open loop, Poisson arrivals; response times count from the scheduled moment, over {}. \
             A search without an answer stands behind all others. Quantiles with fewer than ten samples beyond them are \
             not shown. A row is void when the load generator itself was more than 1 ms late at p99.",
            run.model.name
        ),
    ];
    let void = loaded.iter().flat_map(|l| &l.run.rows).filter(|r| r.load.void.is_some()).count();
    if void > 0 {
        lead.push(format!("{void} row(s) of this report are void; each of their figures says so."));
    }
    let mut sections = Vec::new();
    for loaded in loaded {
        sections.extend(of_run(loaded, previous)?);
    }
    sections.push(machine(run));
    Ok(Page { title, lead, sections })
}

fn of_run(loaded: &Loaded, previous: &[Run]) -> Result<Vec<Section>, Failure> {
    let run = &loaded.run;
    let rates = || run.rows.iter().filter(|r| r.purpose == Purpose::Rate);
    let mut top = Section { title: run.title(), level: 2, ..Section::default() };
    top.tables.push(tables::summary(run, rates(), true));
    top.texts.extend(run.notes.iter().cloned());
    let mut sections = vec![top];
    let mut push = |title: &str, texts: Vec<String>, tables: Vec<Table>, pictures: Vec<Picture>| {
        if !tables.is_empty() || !pictures.is_empty() {
            let title = title.to_owned();
            sections.push(Section { title, level: 3, texts, tables, pictures, code: Vec::new() });
        }
    };
    push("Percentiles", vec![], vec![], percentile_curves(loaded)?);
    push("Latency over time", vec![], vec![], over_time(loaded)?);
    let knees: Vec<String> =
        run.knees.iter().map(|k| format!("{}.", capital(&knee_line(k)))).collect();
    let swept: Vec<Row> =
        run.rows.iter().filter(|r| r.purpose == Purpose::Sweep).cloned().collect();
    let sweep =
        if swept.is_empty() { vec![] } else { vec![tables::summary(run, swept.iter(), false)] };
    push("Latency against load", knees, sweep, load_latency(run)?);
    let recall = run.recall.iter().map(|r| {
        format!(
            "Recall@{} of {} {}: {:.4}, against brute force in f64 over {} vectors. The table is of single searches in the harness's process, without model and socket.",
            r.k, r.queries, r.of, r.recall, r.vectors
        )
    });
    push(
        "Recall against latency",
        recall.collect(),
        tables::frontier(run).into_iter().collect(),
        recall_latency(run)?,
    );
    push("Beside an import", vec![], tables::imports(&run.rows).into_iter().collect(), vec![]);
    let bare = vec![
        "The bare model was timed at the same rate just after each load, beside the same, every other query with a helper thread; the bare search in the harness's process after the daemon had ended, so beside nothing.".to_owned(),
    ];
    push(
        "Against the bare model",
        bare,
        tables::against_bare(&run.rows).into_iter().collect(),
        vec![],
    );
    push("Cold", vec![], tables::cold(&run.rows).into_iter().collect(), vec![]);
    push(
        "Other methods of the mix",
        vec![],
        tables::others(&run.rows).into_iter().collect(),
        vec![],
    );
    for row in rates() {
        let title = format!("Stages, {}", tables::name(row));
        push(&title, vec![], vec![tables::stages(row)], stages(row)?);
    }
    push(
        "Misses",
        vec!["Each request counts once.".to_owned()],
        vec![tables::misses(&run.rows)],
        vec![],
    );
    push("Generator and machine", vec![], vec![tables::generator(&run.rows)], vec![]);
    let counted = vec!["By how much each grew during the load.".to_owned()];
    let counters = tables::counters(&run.rows).into_iter().collect();
    push("The service's own counters", counted, counters, vec![]);
    if let Some(old) = previous.iter().find(|p| p.scenario == run.scenario) {
        let text = "The same scenario in an earlier run; two runs at different times are not a comparison of builds, `compare` is.";
        let tables = vec![tables::previous(run, old), tables::previous_others(run, old)];
        push("Beside the previous run", vec![text.to_owned()], tables, vec![]);
    }
    sections.push(facts(loaded));
    Ok(sections)
}

fn facts(loaded: &Loaded) -> Section {
    let files = loaded.run.rows.iter().filter_map(|r| r.log.as_deref());
    let mut listed = Table::new(&["raw file", "bytes"]);
    for file in std::iter::once(crate::run::FILE).chain(files) {
        let bytes = std::fs::metadata(loaded.dir.join(Path::new(file))).map(|m| m.len());
        let bytes = bytes.map_or("missing".to_owned(), |b| b.to_string());
        listed.rows.push(vec![Cell::plain(file), Cell::plain(bytes)]);
    }
    Section {
        title: "How it was measured".to_owned(),
        level: 3,
        texts: vec![
            "Interval logs are HDR logs (V2, deflate, 1 s) of response times in microseconds."
                .to_owned(),
        ],
        code: vec![loaded.run.command.clone()],
        tables: vec![tables::facts(&loaded.run), listed],
        pictures: Vec::new(),
    }
}

fn machine(run: &Run) -> Section {
    let mut table = Table::new(&["machine", ""]);
    for (name, value) in run.machine.table() {
        table.rows.push(vec![Cell::plain(name), Cell::plain(value)]);
    }
    Section { title: "Machine".to_owned(), level: 2, tables: vec![table], ..Section::default() }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

fn picture(title: impl Into<String>, svg: Option<String>) -> Vec<Picture> {
    let title = title.into();
    svg.map(|svg| Picture { title, svg }).into_iter().collect()
}

/// Response times by how many nines of the searches they cover.
fn percentile_curves(loaded: &Loaded) -> Result<Vec<Picture>, Failure> {
    let mut series = Vec::new();
    let shown =
        loaded.run.rows.iter().zip(&loaded.logs).filter(|(r, _)| r.purpose == Purpose::Rate);
    for (i, (row, intervals)) in shown.enumerate() {
        let h = log::merged(intervals)?;
        let points = curve(&h, row.load.response.samples);
        let void = row.load.void.is_some();
        series.push(Series {
            label: tables::name(row),
            points,
            colour: i,
            void,
            ..Series::default()
        });
    }
    let svg = charts::draw(&Chart {
        x: "percentile",
        y: "response, ms",
        x_label: &nines,
        x_ticks: Some(vec![0.0, HALF, 1.0, 2.0, 3.0, 4.0, 5.0]),
        series: &series,
        marks: &[],
        level: Some(loaded.run.scenario.promise_ms),
    })?;
    Ok(picture("Response time by percentile; missed searches count as never answered", svg))
}

/// The median's place on that axis.
const HALF: f64 = std::f64::consts::LOG10_2;

fn nines(x: f64) -> String {
    if (x - HALF).abs() < 1e-6 {
        return "50 %".to_owned();
    }
    if (x - x.round()).abs() > 1e-6 {
        return String::new();
    }
    match x.round() as i32 {
        0 => "0 %".to_owned(),
        1 => "90 %".to_owned(),
        n => format!("99{}{} %", if n > 2 { "." } else { "" }, "9".repeat((n - 2).max(0) as usize)),
    }
}

/// Points of a percentile curve, as far as there are samples beyond; x is the number of nines.
fn curve(h: &Histogram<u64>, samples: u64) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    for step in 0..=200 {
        let x = f64::from(step) / 40.0;
        let q = 1.0 - 10f64.powf(-x);
        let rank = (samples as f64 * q).ceil().max(1.0);
        if h.is_empty() || !is_shown(samples, q) || rank > h.len() as f64 {
            break;
        }
        let us = h.value_at_quantile((rank - 0.5) / h.len() as f64);
        points.push((x, us as f64 / 1000.0));
    }
    points
}

/// The median and the slowest answer of each second.
fn over_time(loaded: &Loaded) -> Result<Vec<Picture>, Failure> {
    let mut pictures = Vec::new();
    for (row, intervals) in loaded.run.rows.iter().zip(&loaded.logs) {
        if row.purpose != Purpose::Rate {
            continue;
        }
        let void = row.load.void.is_some();
        let of = |at: &dyn Fn(&Histogram<u64>) -> Option<u64>| -> Vec<(f64, f64)> {
            let one =
                |i: &log::Interval| Some((i.at.as_secs_f64(), at(&i.response)? as f64 / 1000.0));
            intervals.iter().filter_map(one).collect()
        };
        let median = of(&|h| is_shown(h.len(), 0.5).then(|| h.value_at_quantile(0.5)));
        let slowest = of(&|h| (!h.is_empty()).then(|| h.max()));
        let series = [
            Series {
                label: "slowest of the second".into(),
                points: slowest,
                colour: 1,
                thin: true,
                void,
                ..Series::default()
            },
            Series { label: "p50 of the second".into(), points: median, void, ..Series::default() },
        ];
        let svg = charts::draw(&Chart {
            x: "second",
            y: "response, ms",
            x_label: &charts::short,
            x_ticks: None,
            series: &series,
            marks: &[],
            level: Some(loaded.run.scenario.promise_ms),
        })?;
        pictures.extend(picture(format!("Over time, {}", tables::name(row)), svg));
    }
    Ok(pictures)
}

/// Percentiles by offered rate, for each of what ran beside.
fn load_latency(run: &Run) -> Result<Vec<Picture>, Failure> {
    let mut pictures = Vec::new();
    let mut kinds: Vec<_> = run.rows.iter().map(|r| r.beside).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for beside in kinds {
        let mut rows: Vec<&Row> =
            run.rows.iter().filter(|r| r.beside == beside && r.purpose != Purpose::Cold).collect();
        rows.sort_by(|a, b| a.load.offered_per_s.total_cmp(&b.load.offered_per_s));
        if rows.len() < 2 {
            continue;
        }
        let line = |label: &str, colour, of: fn(&Row) -> Option<u64>| {
            let at = |r: &&Row| Some((r.load.offered_per_s, of(r)? as f64 / 1000.0));
            let points: Vec<(f64, f64)> = rows.iter().filter_map(at).collect();
            let void = |r: &&&Row| of(r).is_some();
            let words = rows
                .iter()
                .filter(void)
                .map(|r| if r.load.void.is_some() { "void".to_owned() } else { String::new() });
            let dots = Some(words.collect());
            Series { label: label.into(), points, colour, dots, ..Series::default() }
        };
        let series = [
            line("p50 of answers", 0, |r| r.load.answered.p50.us()),
            line("p90 of answers", 2, |r| r.load.answered.p90.us()),
            line("p99 of answers", 1, |r| r.load.answered.p99.us()),
        ];
        let knees = run.knees.iter().filter(|k| k.beside == beside);
        let marks: Vec<(f64, String)> = knees
            .filter_map(|k| {
                let void = if k.void { " (void)" } else { "" };
                Some((k.per_s?, format!("knee{void} {:.0}/s", k.per_s?)))
            })
            .collect();
        let svg = charts::draw(&Chart {
            x: "searches offered a second",
            y: "response, ms",
            x_label: &charts::short,
            x_ticks: None,
            series: &series,
            marks: &marks,
            level: Some(run.scenario.promise_ms),
        })?;
        let what = match beside {
            crate::run::Beside::Nothing => "beside nothing",
            crate::run::Beside::Import => "beside an import",
        };
        pictures.extend(picture(
            format!("Response time of answered searches against load, {what}"),
            svg,
        ));
    }
    Ok(pictures)
}

fn recall_latency(run: &Run) -> Result<Vec<Picture>, Failure> {
    if run.frontier.len() < 2 {
        return Ok(Vec::new());
    }
    let mut points: Vec<_> = run.frontier.iter().collect();
    points.sort_by(|a, b| a.recall.total_cmp(&b.recall));
    let line =
        |label: &str, colour, named: bool, of: fn(&crate::stats::Percentiles) -> Option<u64>| {
            let shown: Vec<_> = points.iter().filter(|p| of(&p.took).is_some()).collect();
            let words = shown.iter().map(|p| match (named, p.ef) {
                (false, _) => String::new(),
                (true, Some(ef)) => format!("ef {ef}"),
                (true, None) => "default".to_owned(),
            });
            let dots = Some(words.collect());
            let at =
                |p: &&&crate::run::FrontierPoint| Some((p.recall, of(&p.took)? as f64 / 1000.0));
            let points = shown.iter().filter_map(at).collect();
            Series { label: label.into(), points, colour, dots, ..Series::default() }
        };
    let series = [
        line("p50 of single searches", 0, true, |p| p.p50.us()),
        line("p99 of single searches", 1, false, |p| p.p99.us()),
    ];
    let svg = charts::draw(&Chart {
        x: "recall",
        y: "search, ms",
        x_label: &|x| format!("{x:.3}"),
        x_ticks: None,
        series: &series,
        marks: &[],
        level: None,
    })?;
    Ok(picture("Recall against the time of a single search in the harness's process", svg))
}

fn stages(row: &Row) -> Result<Vec<Picture>, Failure> {
    let ms = |us: u64| us as f64 / 1000.0;
    let bars: Vec<Bar> = tables::in_order(&row.load.stages)
        .into_iter()
        .filter(|(_, p)| p.max > 1)
        .filter_map(|(name, p)| {
            let inner = ms(p.p50.us()?);
            Some(Bar { label: name.to_owned(), inner, outer: p.p99.us().map(ms) })
        })
        .collect();
    let void = if row.load.void.is_some() { " (void)" } else { "" };
    let title = format!("p50 (dark) and p99 (pale) of each stage{void}; percentiles do not add up");
    Ok(picture(title, charts::bars(&bars, "ms")?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::{text, view};

    #[test]
    fn a_curve_ends_where_its_samples_do() {
        let mut h = crate::stats::histogram().unwrap();
        (1..=1000).for_each(|us| h.record(us).unwrap());
        let points = curve(&h, 1000);
        assert_eq!(points.last().map(|p| p.0), Some(2.0));
        // With as many missed again, nobody knows more than the median.
        let points = curve(&h, 2000);
        assert!(points.last().unwrap().0 <= 0.31);
        assert!(curve(&crate::stats::histogram().unwrap(), 100).is_empty());
    }

    #[test]
    fn nines_are_written_as_percentiles() {
        let written = [0.0, HALF, 1.0, 2.0, 3.0, 4.0, 0.5].map(nines);
        assert_eq!(written, ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", ""]);
    }

    fn run(text: &str) -> Run {
        serde_json::from_str(text).unwrap()
    }

    /// A void row must be marked in the first table, in every table of figures and in the pictures.
    #[test]
    fn a_void_row_is_marked_in_both_forms() {
        let mut run = run(include_str!("testdata/run.json"));
        let make = |run: &Run| {
            let logs = run.rows.iter().map(|_| Vec::new()).collect();
            let loaded = Loaded { run: run.clone(), dir: ".".into(), logs };
            let page = page(&[loaded], std::slice::from_ref(run)).unwrap();
            (view::html(&page).unwrap(), view::markdown(&page).unwrap())
        };
        let (html, markdown) = make(&run);
        let p99 = text::ms(run.rows[0].load.response.p99);
        assert!(html.contains(&p99) && markdown.contains(&p99));
        assert!(!html.contains("<b>void</b>") && !markdown.contains("**void**"));
        run.rows[0].load.void = Some("the generator itself was late".to_owned());
        let (html, markdown) = make(&run);
        assert!(html.contains("1 row(s) of this report are void"), "{html:.2000}");
        let cells = html.matches("<b>void</b>").count();
        assert!(cells >= 20 && markdown.matches("**void**").count() == cells, "{cells}");
        for line in markdown.lines().filter(|l| l.contains(&p99)) {
            assert!(line.contains("**void**"), "{line}");
        }
    }
}
