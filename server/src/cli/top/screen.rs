//! A view as lines of text.
//!
//! Keeps: reports of the daemon that this does not know are shown as they are, so they may grow. Must not know the
//! terminal, nor colour anything.

use serde_json::Value;

use super::numbers::{ACCURACY, MethodView, Percentiles, View};
use crate::cli::output::{micros, report, safe};

/// Methods whose stages are shown, where they were called.
const STAGED: [&str; 2] = ["memory.search", "memory.add"];

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Without escape codes.
    pub text: String,
    /// Leads what follows.
    pub heading: bool,
}

/// The whole screen.
pub fn lines(view: &View) -> Vec<Line> {
    let mut out = Lines(Vec::new());
    header(view, &mut out);
    lanes(view, &mut out);
    requests(view, &mut out);
    for method in view.methods.iter().filter(|one| STAGED.contains(&one.method.as_str())) {
        stages(method, &mut out);
    }
    background(view, &mut out);
    out.text(String::new());
    out.text(ACCURACY.to_owned());
    out.0
}

struct Lines(Vec<Line>);

impl Lines {
    fn text(&mut self, text: String) {
        self.0.push(Line { text, heading: false });
    }

    fn heading(&mut self, text: String) {
        self.text(String::new());
        self.0.push(Line { text, heading: true });
    }

    /// Rows under a header; all but the first column hold numbers.
    fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) {
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(comfy_table::ContentArrangement::Dynamic)
            .set_header(header.to_vec());
        for row in rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        self.0.extend(
            table.trim_fmt().lines().map(|line| Line { text: line.to_owned(), heading: false }),
        );
    }
}

fn header(view: &View, out: &mut Lines) {
    let status = &view.status;
    let word = |pointer: &str| match status.pointer(pointer) {
        Some(Value::String(text)) => safe(text),
        Some(Value::Null) | None => "?".to_owned(),
        Some(value) => value.to_string(),
    };
    let uptime = status["uptime_ms"].as_u64().unwrap_or(0) / 1_000;
    out.0.push(Line {
        text: format!("flashbulb {}  up {}  pid {}", word("/version"), span(uptime), word("/pid")),
        heading: true,
    });
    // Where the daemon says which device was used, that; else the provider that ran.
    let device = ["/embedder/device/used", "/embedder/device", "/embedder/provider"]
        .into_iter()
        .find(|pointer| status.pointer(pointer).is_some_and(Value::is_string))
        .map_or_else(|| "?".to_owned(), word);
    out.text(format!(
        "device {device}  model {} {}  connections {}  in flight {}",
        word("/embedder/model"),
        word("/embedder/precision"),
        word("/connections"),
        word("/requests_in_flight"),
    ));
    match status["degraded"].as_array().map(Vec::as_slice) {
        Some([]) => out.text("nothing is degraded".to_owned()),
        Some(what) => {
            for what in what.iter().filter_map(Value::as_str) {
                out.text(format!("degraded: {}", safe(what)));
            }
        }
        None => out.text("this daemon does not say what is degraded".to_owned()),
    }
}

/// Seconds as people read them.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

fn lanes(view: &View, out: &mut Lines) {
    out.heading("lanes".to_owned());
    let rate = |name: &str| view.per_s.get(&format!("flashbulb_{name}"));
    let shown = |name: &str| match rate(name) {
        Some(rate) => format!("{rate:.1}/s"),
        None => "-".to_owned(),
    };
    for lane in ["interactive", "bulk"] {
        let windows = shown(&format!("embedded_windows_total{{lane=\"{lane}\"}}"));
        let mut line = format!("{lane:<12} embeds {windows} windows");
        let report = report(&view.status["lanes"][lane]);
        // The reason of the last failure may be long; `status` has it.
        for (name, value) in report.iter().filter(|(name, _)| name != "last_failure") {
            line += &format!("  {name} {value}");
        }
        out.text(line);
    }
    out.text(format!(
        "{:<12} hits {}  misses {}  kept {} of {}",
        "query cache",
        shown("query_cache_hits_total"),
        shown("query_cache_misses_total"),
        view.status["lanes"]["queries_kept"],
        view.status["lanes"]["queries_kept_limit"],
    ));
}

fn requests(view: &View, out: &mut Lines) {
    const TIMES: [&str; 4] = ["p50", "p90", "p99", "max"];
    if let Some(seconds) = view.interval_s {
        out.heading(format!("requests of the last {seconds:.1} s"));
        let called = |one: &&MethodView| {
            one.per_s.is_some_and(|rate| rate.ok + rate.busy + rate.deadline + rate.error > 0.0)
        };
        let row = |one: &MethodView| {
            let rate = one.per_s.unwrap_or_default();
            let mut row = vec![one.method.clone()];
            row.extend([rate.ok, rate.busy, rate.deadline, rate.error].map(|n| format!("{n:.1}")));
            row.extend(times(one.interval.as_ref()));
            row
        };
        let rows = view.methods.iter().filter(called).map(row).collect();
        let header = [&["method", "ok/s", "busy/s", "late/s", "error/s"][..], &TIMES].concat();
        out.table(&header, rows);
    }
    out.heading("requests since start".to_owned());
    let row = |one: &MethodView| {
        let n = one.requests;
        let mut row = vec![one.method.clone()];
        row.extend([n.ok, n.busy, n.deadline, n.error].map(|n| n.to_string()));
        row.extend(times(one.since_start.as_ref()));
        row
    };
    let rows = view.methods.iter().map(row).collect();
    let header = [&["method", "ok", "busy", "late", "error"][..], &TIMES].concat();
    out.table(&header, rows);
}

fn times(of: Option<&Percentiles>) -> [String; 4] {
    let Some(of) = of else { return std::array::from_fn(|_| "-".to_owned()) };
    [of.p50_us, of.p90_us, of.p99_us, of.max_us].map(edge)
}

/// An upper edge as people read it.
fn edge(us: Option<f64>) -> String {
    us.map_or_else(|| "> 100 s".to_owned(), |us| micros(us.round() as u64))
}

fn stages(method: &MethodView, out: &mut Lines) {
    let total = |of: Option<&Percentiles>| of.map_or(0.0, |of| of.mean_us * of.count as f64);
    let whole = total(method.interval.as_ref());
    out.heading(format!("{} by stage: the interval, and since start", method.method));
    let row = |stage: &super::numbers::StageView| {
        // The answer is written after the request's own time has ended.
        let share = match whole > 0.0 && stage.stage != "write" {
            true => format!("{:.0} %", 100.0 * total(stage.interval.as_ref()) / whole),
            false => "-".to_owned(),
        };
        let mut row = vec![stage.stage.clone(), share];
        for of in [&stage.interval, &stage.since_start] {
            let [p50, _, p99, max] = times(of.as_ref());
            row.extend([p50, p99, max]);
        }
        row
    };
    let rows = method.stages.iter().map(row).collect();
    out.table(
        &["stage", "share", "p50", "p99", "max", "start p50", "start p99", "start max"],
        rows,
    );
}

/// Background jobs, where the daemon reports them.
fn background(view: &View, out: &mut Lines) {
    let background = &view.status["background"];
    if !background.is_object() {
        return;
    }
    let word = |value: &Value| match value {
        Value::String(text) => safe(text),
        Value::Null => "-".to_owned(),
        value => value.to_string(),
    };
    out.heading(format!(
        "background  priority {}  running {}",
        word(&background["priority"]),
        word(&background["running"])
    ));
    let row = |job: &Value| {
        let us = |name: &str, factor: u64| {
            job[name].as_u64().map_or_else(|| "-".to_owned(), |n| micros(n.saturating_mul(factor)))
        };
        vec![
            word(&job["name"]),
            word(&job["quanta"]),
            us("total_ms", 1_000),
            us("longest_quantum_us", 1),
            word(&job["due"]),
        ]
    };
    let rows = background["jobs"].as_array().map(|jobs| jobs.iter().map(row).collect());
    out.table(&["job", "quanta", "in all", "longest", "due"], rows.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::numbers::{Outcomes, StageView};
    use serde_json::json;

    fn view() -> View {
        let times = Percentiles {
            count: 4,
            mean_us: 3_000.0,
            p50_us: Some(2_500.0),
            p90_us: Some(4_000.0),
            p99_us: Some(9_900.0),
            max_us: None,
        };
        let stage = |stage: &str, mean_us: f64| StageView {
            stage: stage.into(),
            interval: Some(Percentiles { mean_us, ..times.clone() }),
            since_start: None,
        };
        View {
            at_ms: 1,
            interval_s: Some(2.0),
            accuracy: ACCURACY,
            status: json!({
                "version": "0.1.0", "pid": 7, "uptime_ms": 3_725_000, "connections": 2, "requests_in_flight": 1,
                "embedder": { "provider": "CPUExecutionProvider", "model": "m", "precision": "int8" },
                "degraded": ["priority: \u{1b}[31mrefused"],
                "lanes": {
                    "interactive": { "sessions": 1, "free": 0, "waiting": 3 },
                    "bulk": { "pending": 9, "rings": { "front": 2 } },
                    "queries_kept": 5, "queries_kept_limit": 2048,
                },
                "background": {
                    "priority": "SCHED_IDLE", "running": "merge",
                    "jobs": [{ "name": "merge", "quanta": 3, "total_ms": 12, "longest_quantum_us": 900, "due": true }],
                },
            }),
            per_s: [("flashbulb_embedded_windows_total{lane=\"bulk\"}".to_owned(), 512.0)].into(),
            methods: vec![MethodView {
                method: "memory.search".into(),
                per_s: Some(Outcomes { ok: 2.0, busy: 0.5, deadline: 0.0, error: 0.0 }),
                requests: Outcomes { ok: 40, busy: 1, deadline: 0, error: 0 },
                interval: Some(times.clone()),
                since_start: None,
                stages: vec![stage("embed", 2_400.0), stage("write", 10.0)],
            }],
        }
    }

    #[test]
    fn a_screen_shows_lanes_rates_percentiles_stages_and_jobs() {
        let lines = lines(&view());
        let text: Vec<String> = lines
            .iter()
            .map(|line| line.text.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for want in [
            "flashbulb 0.1.0 up 1 h 2 min pid 7",
            "device CPUExecutionProvider model m int8 connections 2 in flight 1",
            "degraded: priority: \u{fffd}[31mrefused",
            "interactive embeds - windows free 0 sessions 1 waiting 3",
            "bulk embeds 512.0/s windows pending 9 rings.front 2",
            "query cache hits - misses - kept 5 of 2048",
            "requests of the last 2.0 s",
            "memory.search 2.0 0.5 0.0 0.0 2.50 ms 4.00 ms 9.90 ms > 100 s",
            "memory.search 40 1 0 0 - - - -",
            "embed 80 % 2.50 ms 9.90 ms > 100 s - - -",
            "write - 2.50 ms 9.90 ms > 100 s - - -",
            "background priority SCHED_IDLE running merge",
            "merge 3 12.00 ms 900 µs true",
        ] {
            assert!(text.iter().any(|line| line == want), "{want} in {text:#?}");
        }
        assert!(!lines.iter().any(|line| line.text.contains('\u{1b}')));
    }

    #[test]
    fn a_first_screen_has_no_interval() {
        let mut first = view();
        first.interval_s = None;
        first.methods[0].per_s = None;
        let lines = lines(&first);
        assert!(!lines.iter().any(|line| line.text.starts_with("requests of the last")));
        assert!(lines.iter().any(|line| line.text == "requests since start"));
    }
}
