//! `flashbulb demo`: the whole line on a log that comes with the program.
//!
//! Keeps: everything goes through the real daemon and its socket, in a temporary folder that is gone afterwards,
//! also after Ctrl-C or an error; no number is printed that was not measured in this run, and a percentile with too
//! few samples behind it says so.

mod daemon;
mod latency;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cli::args;
use crate::cli::exit::{CliError, Exit};
use crate::cli::import::{RpcSink, wait_searchable};
use crate::cli::memory::{SearchResult, how_it_ran, what_ran};
use crate::cli::output::{FAINT, STRONG, micros, one_line};
use crate::cli::{CALL_TIMEOUT, Context, progress};
use crate::client::Client;
use crate::import::{self, Limits};
use crate::provision;
use daemon::Daemon;
use latency::{Latencies, Percentiles};

/// A few hundred turns of an agent's work on an invented project, written for this demo.
const LOG: &str = include_str!("../../demo/project-log.jsonl");
/// What is asked, with words of the turn that answers it.
const QUESTIONS: &str = include_str!("../../demo/questions.json");

const SPACE: &str = "demo";
/// Hits printed a question.
const SHOWN_HITS: usize = 3;
/// Hits asked for, as an agent would.
const K: u32 = 10;
/// Searches before the timed ones: the first touch of every page and code path.
const WARM_UP: u32 = 20;

#[derive(Debug, Deserialize)]
struct Question {
    question: String,
    expect: String,
}

#[derive(Serialize)]
struct SearchParams<'a> {
    space: &'a str,
    query: &'a str,
    k: u32,
}

/// One question, as it was answered.
#[derive(Debug, Serialize)]
struct Answered {
    question: String,
    /// The place of the turn that answers it among the hits, from 1.
    rank: Option<usize>,
    hits: Vec<ShownHit>,
    took_us: serde_json::Map<String, serde_json::Value>,
    #[serde(skip)]
    how: String,
}

#[derive(Debug, Serialize)]
struct ShownHit {
    score: f64,
    text: String,
}

#[derive(Debug, Serialize)]
struct Imported {
    memories: u64,
    took_ms: u64,
    per_second: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    imported: Imported,
    questions: Vec<Answered>,
    /// Round trips over the socket, one request after the other.
    round_trip_us: Percentiles,
    /// The daemon's own total of the same requests.
    service_us: Percentiles,
    ran: serde_json::Value,
}

/// `flashbulb demo`
///
/// # Errors
///
/// When the daemon cannot be started or a request fails.
pub(crate) fn run(context: &Context, args: &args::Demo) -> Result<Exit, CliError> {
    let stop = interrupt_flag()?;
    provision::ensure(&context.wanted(), &provision::Drawn::default())?;
    let folder = tempfile::Builder::new().prefix("flashbulb-demo-").tempdir().map_err(|error| {
        CliError::new(Exit::Failed, format!("cannot make a temporary folder: {error}"))
    })?;
    let spinner = progress::spinner("starting a daemon on a temporary store");
    let mut daemon = Daemon::start(folder.path(), &context.model_arguments()?, &stop)?;
    spinner.finish_and_clear();
    let report = tell(context, &mut daemon, folder.path(), args.requests, &stop);
    // The daemon is stopped in order before its folder goes, whatever came of the demo.
    let stopped = daemon.stop();
    let report = report?;
    stopped?;
    if context.out.json {
        context.out.document(&report)?;
    } else {
        context.out.note("the daemon has stopped and its folder is gone; now: flashbulb add --space me \"a first note\"");
    }
    Ok(Exit::Ok)
}

/// Set by Ctrl-C and by `kill`.
fn interrupt_flag() -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(|error| {
            CliError::new(Exit::Failed, format!("cannot watch for Ctrl-C: {error}"))
        })?;
    }
    Ok(flag)
}

fn check_interrupt(stop: &AtomicBool) -> Result<(), CliError> {
    // Relaxed: the flag carries no other data.
    if stop.load(Ordering::Relaxed) {
        return Err(CliError::new(Exit::Interrupted, "stopped; the temporary store is gone"));
    }
    Ok(())
}

/// Imports, asks, and measures; prints on the way.
fn tell(
    context: &Context,
    daemon: &mut Daemon,
    folder: &Path,
    requests: u32,
    stop: &AtomicBool,
) -> Result<Report, CliError> {
    let imported = import_log(context, daemon.client(), folder, stop)?;
    say(context, |out| {
        writeln!(
            out,
            "imported {} turns of a project log in {} ms ({:.0} a second, embedded and searchable)\n",
            imported.memories, imported.took_ms, imported.per_second
        )
    })?;
    let questions: Vec<Question> = serde_json::from_str(QUESTIONS)
        .map_err(|error| CliError::new(Exit::Failed, format!("the shipped questions: {error}")))?;
    let mut answered = Vec::new();
    let mut ran = serde_json::Value::Null;
    for question in &questions {
        check_interrupt(stop)?;
        let found = ask(daemon.client(), &question.question)?;
        let answer = judge(question, &found);
        say(context, |out| write_answer(out, &answer))?;
        ran = found.ran;
        answered.push(answer);
    }
    let (round_trip_us, service_us) = measure(daemon.client(), &questions, requests, stop)?;
    say(context, |out| {
        write_latency(out, "text in, memories out, over the socket", &round_trip_us)?;
        write_latency(out, "of that inside the daemon", &service_us)?;
        writeln!(
            out,
            "{FAINT}one request after the other, {} questions in turn, numbered so that none is asked twice, k = {K}, {} memories; {}{FAINT:#}",
            questions.len(),
            imported.memories,
            what_ran(&ran)
        )
    })?;
    Ok(Report { imported, questions: answered, round_trip_us, service_us, ran })
}

fn say(
    context: &Context,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), CliError> {
    if context.out.json {
        return Ok(());
    }
    let mut out = anstream::stdout().lock();
    write(&mut out)?;
    Ok(out.flush()?)
}

fn import_log(
    context: &Context,
    client: &mut Client,
    folder: &Path,
    stop: &AtomicBool,
) -> Result<Imported, CliError> {
    let path = folder.join("project-log.jsonl");
    std::fs::write(&path, LOG).map_err(|error| {
        CliError::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
    })?;
    let started = Instant::now();
    let mut source = import::open(&path, None)?;
    let mut sink = RpcSink::new(client, SPACE);
    let counts = import::run(&mut source, &mut sink, &Limits::default(), &mut |_| {})?;
    check_interrupt(stop)?;
    if counts.skipped_total() > 0 {
        return Err(CliError::new(
            Exit::Failed,
            format!("{} lines of the shipped log were skipped", counts.skipped_total()),
        ));
    }
    wait_searchable(context, client, SPACE, false)?;
    let took = started.elapsed();
    Ok(Imported {
        memories: counts.added,
        took_ms: took.as_millis() as u64,
        per_second: counts.added as f64 / took.as_secs_f64(),
    })
}

fn ask(client: &mut Client, query: &str) -> Result<SearchResult, CliError> {
    let params = SearchParams { space: SPACE, query, k: K };
    Ok(client.call("memory.search", &params, CALL_TIMEOUT)?)
}

fn judge(question: &Question, found: &SearchResult) -> Answered {
    let answers = |text: &str| text.contains(&question.expect);
    Answered {
        question: question.question.clone(),
        rank: found.hits.iter().position(|hit| answers(&hit.text)).map(|at| at + 1),
        hits: found
            .hits
            .iter()
            .take(SHOWN_HITS)
            .map(|hit| ShownHit { score: hit.score, text: hit.text.clone() })
            .collect(),
        took_us: found.took_us.clone(),
        how: how_it_ran(found),
    }
}

fn write_answer(out: &mut dyn Write, answer: &Answered) -> std::io::Result<()> {
    writeln!(out, "{STRONG}{}{STRONG:#}", answer.question)?;
    for (place, hit) in answer.hits.iter().enumerate() {
        let mark = if answer.rank == Some(place + 1) { '*' } else { ' ' };
        writeln!(out, "{mark} {:.3}  {}", hit.score, one_line(&hit.text, 110))?;
    }
    match answer.rank {
        Some(rank) if rank > SHOWN_HITS => {
            writeln!(out, "  the turn that answers it is hit {rank}")?
        }
        Some(_) => {}
        None => writeln!(out, "  the turn that answers it is not among the {K} hits")?,
    }
    writeln!(out, "  {FAINT}{}{FAINT:#}\n", answer.how)
}

/// Asks the questions in turn and times each request: at the client, and as the daemon says.
fn measure(
    client: &mut Client,
    questions: &[Question],
    requests: u32,
    stop: &AtomicBool,
) -> Result<(Percentiles, Percentiles), CliError> {
    let bar = progress::count(requests.into(), "timing searches");
    let (mut round_trips, mut service) = (Latencies::new(), Latencies::new());
    let in_turn = questions.iter().cycle().take((WARM_UP + requests) as usize);
    for (at, question) in (0u32..).zip(in_turn) {
        check_interrupt(stop)?;
        // A query asked again would not be embedded again.
        let asked = format!("{} ({at})", question.question);
        let started = Instant::now();
        let found = ask(client, &asked)?;
        let took = started.elapsed();
        if at >= WARM_UP {
            round_trips.record(took);
            let total = found.took_us.get("total").and_then(serde_json::Value::as_u64);
            service.record(Duration::from_micros(total.unwrap_or(0)));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok((round_trips.percentiles(), service.percentiles()))
}

fn write_latency(out: &mut dyn Write, what: &str, latency: &Percentiles) -> std::io::Result<()> {
    let shown: Vec<String> = latency
        .quantiles
        .iter()
        .map(|quantile| {
            let mark = if quantile.enough_samples { "" } else { " (too few samples)" };
            format!("{} {}{mark}", quantile.name, micros(quantile.us))
        })
        .collect();
    writeln!(
        out,
        "{what}: {STRONG}{}{STRONG:#}, max {}, n = {}",
        shown.join(", "),
        micros(latency.max_us),
        latency.samples
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn the_shipped_log_and_questions_fit_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, LOG).unwrap();
        let mut texts = Vec::new();
        for found in import::open(&path, None).unwrap() {
            match found.unwrap().entry {
                import::Entry::Item(item) => texts.push(item.text),
                import::Entry::Skip(reason) => panic!("{reason:?}"),
            }
        }
        assert!(texts.len() >= 200, "a few hundred turns: {}", texts.len());
        let questions: Vec<Question> = serde_json::from_str(QUESTIONS).unwrap();
        assert!((5..=20).contains(&questions.len()));
        for question in questions {
            let answering = texts.iter().filter(|text| text.contains(&question.expect)).count();
            assert_eq!(answering, 1, "{question:?}");
        }
    }

    #[test]
    fn a_question_is_judged_by_the_turn_that_answers_it() {
        let question = Question { question: "q".into(), expect: "needle".into() };
        let found: SearchResult = serde_json::from_value(json!({
            "hits": [
                {"id": "a", "score": 0.9, "text": "hay", "role": null, "session": null, "ts": 0, "meta": null},
                {"id": "b", "score": 0.8, "text": "the needle", "role": null, "session": null, "ts": 0, "meta": null},
            ],
            "took_us": {"total": 10}, "ran": {}, "degraded": [],
        }))
        .unwrap();
        assert_eq!(judge(&question, &found).rank, Some(2));
        let nothing = Question { expect: "elsewhere".into(), ..question };
        assert_eq!(judge(&nothing, &found).rank, None);
    }
}
