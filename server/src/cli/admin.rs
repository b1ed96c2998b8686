//! `status`, `metrics`, `verify`, `compact`, `sync`, `snapshot`, `shutdown` and `space`.
//!
//! Keeps: all but the last speak to a daemon that runs and never start one. Reports are shown as the daemon gives
//! them, so they may grow without this module knowing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args;
use super::exit::{CliError, Exit};
use super::output::{BAD, GOOD, safe, table, write_report};
use super::{CALL_TIMEOUT, Context, UPKEEP_TIMEOUT, absolute, progress, show};
use crate::client::{Client, ClientError};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// `flashbulb status`
pub fn status(context: &Context) -> Result<Exit, CliError> {
    let status: Value = context.running()?.call("admin.status", json!({}), CALL_TIMEOUT)?;
    context.out.print(&status, |out| {
        let mut shown = status.clone();
        if let Some(members) = shown.as_object_mut() {
            // Constants, and many: who wants them reads the JSON.
            members.remove("limits");
        }
        write_report(out, &shown)
    })?;
    Ok(Exit::Ok)
}

/// `flashbulb metrics`: the OpenMetrics text as it is, or with `--json` the finer reading.
pub fn metrics(context: &Context) -> Result<Exit, CliError> {
    let mut client = context.running()?;
    if context.out.json {
        let params = json!({ "format": "json" });
        let reading: Value = client.call("admin.metrics", params, CALL_TIMEOUT)?;
        context.out.document(&reading)?;
        return Ok(Exit::Ok);
    }
    let params = json!({ "format": "openmetrics" });
    let answer: MetricsText = client.call("admin.metrics", params, CALL_TIMEOUT)?;
    context.out.print(&answer.text, |out| out.write_all(answer.text.as_bytes()))?;
    Ok(Exit::Ok)
}

#[derive(serde::Deserialize)]
struct MetricsText {
    text: String,
}

/// `flashbulb verify`: ends with "damaged" where a problem was found.
pub fn verify(context: &Context) -> Result<Exit, CliError> {
    let report = upkeep(context, "admin.verify", json!({}), "checking the store")?;
    let problems: Vec<&str> = report
        .get("problems")
        .and_then(Value::as_array)
        .map(|problems| problems.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    context.out.print(&report, |out| {
        write_report(out, &report)?;
        match problems.len() {
            0 => writeln!(out, "{GOOD}no problem found{GOOD:#}"),
            found => {
                for problem in &problems {
                    writeln!(out, "{BAD}problem:{BAD:#} {}", safe(problem))?;
                }
                writeln!(
                    out,
                    "{found} found; export what you need, then restore a snapshot (flashbulb restore), or save what can be \
                     read (flashbulb salvage)"
                )
            }
        }
    })?;
    Ok(if problems.is_empty() { Exit::Ok } else { Exit::Corrupt })
}

/// `flashbulb sync`
pub fn sync(context: &Context) -> Result<Exit, CliError> {
    let report: Value = context.running()?.call("admin.sync", json!({}), CALL_TIMEOUT)?;
    context.out.print(&report, |out| write_report(out, &report))?;
    Ok(Exit::Ok)
}

/// `flashbulb compact`
pub fn compact(context: &Context) -> Result<Exit, CliError> {
    let report = upkeep(context, "admin.compact", json!({}), "rewriting the store")?;
    context.out.print(&report, |out| write_report(out, &report))?;
    Ok(Exit::Ok)
}

/// `flashbulb snapshot`
pub fn snapshot(context: &Context, args: &args::Snapshot) -> Result<Exit, CliError> {
    let path = absolute(args.path.clone())?;
    let path = path
        .to_str()
        .ok_or_else(|| CliError::invalid("the snapshot's path is not UTF-8; choose another"))?;
    let report = upkeep(context, "admin.snapshot", json!({ "path": path }), "copying the store")?;
    context.out.print(&report, |out| {
        write_report(out, &report)?;
        writeln!(out, "open it with flashbulb serve --store {path}")
    })?;
    Ok(Exit::Ok)
}

fn upkeep(
    context: &Context,
    method: &str,
    params: Value,
    doing: &'static str,
) -> Result<Value, CliError> {
    let mut client = context.running()?;
    let spinner = progress::spinner(doing);
    let report = client.call(method, params, UPKEEP_TIMEOUT);
    spinner.finish_and_clear();
    Ok(report?)
}

/// `flashbulb shutdown`: returns once the daemon's process has ended, so that another can start at once.
pub fn shutdown(context: &Context) -> Result<Exit, CliError> {
    let mut client = context.running()?;
    let status: Value = client.call("admin.status", json!({}), CALL_TIMEOUT)?;
    let answer: Value = client.call("admin.shutdown", json!({}), CALL_TIMEOUT)?;
    let pid = status.get("pid").and_then(Value::as_i64);
    let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    let socket = context.socket();
    let started = Instant::now();
    let runs = || {
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
            || !matches!(Client::connect(&socket), Err(ClientError::NoDaemon { .. }))
    };
    while runs() {
        if started.elapsed() > SHUTDOWN_TIMEOUT {
            return Err(CliError::new(
                Exit::Busy,
                "the daemon is still finishing requests; look at it with `flashbulb status`",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    context.out.print(&answer, |out| writeln!(out, "the daemon has stopped"))?;
    Ok(Exit::Ok)
}

/// `flashbulb space …`
pub fn space(context: &Context, command: args::Space) -> Result<Exit, CliError> {
    let mut client = context.client()?;
    match command {
        args::Space::List => {
            let list: Value = client.call("space.list", json!({}), CALL_TIMEOUT)?;
            context.out.print(&list, |out| {
                let rows: Vec<Vec<String>> = list
                    .get("spaces")
                    .and_then(Value::as_array)
                    .map(|spaces| spaces.iter().map(space_row).collect())
                    .unwrap_or_default();
                if rows.is_empty() {
                    return writeln!(
                        out,
                        "no spaces yet; one comes to be with its first `flashbulb add`"
                    );
                }
                writeln!(out, "{}", table(&SPACE_COLUMNS, rows))
            })?;
        }
        args::Space::Stats(args) => {
            let stats: Value =
                client.call("space.stats", json!({ "space": args.space }), CALL_TIMEOUT)?;
            context.out.print(&stats, |out| write_report(out, &stats))?;
        }
        args::Space::Drop(args) => {
            let answer: Value =
                client.call("space.drop", json!({ "space": args.space }), CALL_TIMEOUT)?;
            let dropped = answer.get("dropped").and_then(Value::as_u64).unwrap_or(0);
            context.out.print(&answer, |out| {
                writeln!(out, "dropped {} with {}", args.space, show::memories(dropped))
            })?;
        }
    }
    Ok(Exit::Ok)
}

const SPACE_COLUMNS: [&str; 4] = ["space", "memories", "searchable", "pending"];

fn space_row(stats: &Value) -> Vec<String> {
    let cell = |name: &&str| match stats.get(name) {
        Some(Value::String(text)) => safe(text),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    SPACE_COLUMNS.iter().map(cell).collect()
}
