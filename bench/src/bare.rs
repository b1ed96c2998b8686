//! The embedding model alone: what the service is measured against.
//!
//! Invariant: the same texts, graph and session settings as the service uses; no store, no socket.

use std::time::{Duration, Instant};

use flashbulb::embed::{EmbedOptions, Embedder, Precision};
use flashbulb::provision::{self, Drawn, Wanted};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::Percentiles;
use crate::report;
use crate::{Common, Failure, data, machine::Machine};

/// Options of `bare`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Threads, each with a session of its own
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seconds of each part
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Queries a second in the part at a user's rate
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
}

/// What the model does alone.
#[derive(Debug, Clone, Serialize)]
pub struct Bare {
    pub threads: usize,
    pub texts_per_s: f64,
    pub texts: usize,
}

/// The embedder with the machine's own settings.
///
/// # Errors
/// What provisioning or the runtime say.
pub fn embedder() -> Result<Embedder, Failure> {
    let provisioned = provision::ensure(&Wanted::default(), &Drawn::default())?;
    let options = EmbedOptions { precision: Precision::Auto };
    Ok(Embedder::open(&provisioned, &options, &Drawn::default())?)
}

/// Embeds `texts` over and over in `threads` threads for `seconds`, each window at its exact length.
///
/// # Errors
/// What the model says.
pub fn rate(
    embedder: &Embedder,
    texts: &[String],
    threads: usize,
    seconds: f64,
) -> Result<Bare, Failure> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let begun = Instant::now();
    let counts: Vec<Result<usize, Failure>> = std::thread::scope(|scope| {
        let one = |start: usize| -> Result<usize, Failure> {
            let mut session = embedder.session(1)?;
            let mut done = 0;
            for text in texts.iter().cycle().skip(start).step_by(threads) {
                if Instant::now() >= until {
                    break;
                }
                for window in embedder.document_windows(text)? {
                    session.embed(&window)?;
                }
                done += 1;
            }
            Ok(done)
        };
        let handles: Vec<_> = (0..threads).map(|t| scope.spawn(move || one(t))).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|_| Err("an embedding thread panicked".into())))
            .collect()
    });
    let elapsed = begun.elapsed().as_secs_f64();
    let mut texts_done = 0;
    for count in counts {
        texts_done += count?;
    }
    Ok(Bare { threads, texts_per_s: texts_done as f64 / elapsed, texts: texts_done })
}

/// One thread, one query at a time, at Poisson arrivals: how long tokenising and embedding take with cold caches.
fn at_a_rate(
    embedder: &Embedder,
    queries: &[String],
    rate: f64,
    seconds: f64,
    seed: u64,
) -> Result<Percentiles, Failure> {
    let mut session = embedder.session(1)?;
    let mut took = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    let mut due = Instant::now();
    let until = due + Duration::from_secs_f64(seconds);
    for (gap, query) in data::poisson_gaps(rate, seed).zip(queries.iter().cycle()) {
        due += Duration::from_secs_f64(gap);
        if due > until {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let begun = Instant::now();
        for window in embedder.query_windows(query)? {
            session.embed(&window)?;
        }
        took.saturating_record(u64::try_from(begun.elapsed().as_micros())?.max(1));
    }
    Ok(Percentiles::of(&took))
}

/// Tokens of the texts that are run by themselves, special ones included.
const LENGTHS: [usize; 4] = [8, 16, 32, 128];
/// Runs of each; the least is the time when nothing interferes.
const RUNS: usize = 300;

/// How long one run of the whole graph takes at one length, in microseconds: least and median.
#[derive(Debug, Serialize)]
struct AtLength {
    tokens: usize,
    least_us: u64,
    p50_us: u64,
}

/// One thread, one length after another, warm.
fn at_lengths(embedder: &Embedder) -> Result<Vec<AtLength>, Failure> {
    let mut session = embedder.session(1)?;
    let mut rows = Vec::new();
    for wanted in LENGTHS {
        // A common word is one token in a usual vocabulary; what came out is what is reported.
        let text = vec!["time"; wanted.saturating_sub(2)].join(" ");
        let windows = embedder.query_windows(&text)?;
        let window = windows.first().ok_or("the text has no window")?;
        let mut took = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
        for _ in 0..RUNS {
            let begun = Instant::now();
            session.embed(window)?;
            took.saturating_record(u64::try_from(begun.elapsed().as_micros())?.max(1));
        }
        let p50_us = took.value_at_quantile(0.5);
        rows.push(AtLength { tokens: window.len(), least_us: took.min(), p50_us });
    }
    Ok(rows)
}

/// Runs `bare`.
///
/// # Errors
/// What provisioning, the data or the model say.
pub fn run(options: &Options) -> Result<(), Failure> {
    let machine = Machine::read();
    let texts = data::texts(options.common.data.as_deref(), 10_000, 1000, options.common.seed)?;
    let embedder = embedder()?;
    let loop_rate = rate(&embedder, &texts.memories, options.threads, options.seconds)?;
    let seed = options.common.seed;
    let paced = at_a_rate(&embedder, &texts.queries, options.rate, options.seconds, seed)?;
    let alone = at_lengths(&embedder)?;
    println!("{}\n", machine.line());
    for AtLength { tokens, least_us, p50_us } in &alone {
        let [least, p50] = [least_us, p50_us].map(|us| *us as f64 / 1000.0);
        println!(
            "{tokens} tokens, the whole graph, one thread: least {least:.2} ms, p50 {p50:.2} ms"
        );
    }
    println!("{} ({})", texts.source, report::ran(&embedder));
    println!(
        "in a loop, {} thread(s): {:.0} texts/s over {} texts",
        loop_rate.threads, loop_rate.texts_per_s, loop_rate.texts
    );
    println!("one query at {} a second: {}", options.rate, report::percentiles(&paced));
    let raw =
        serde_json::json!({"machine": machine, "alone": alone, "loop": loop_rate, "paced": paced});
    report::write_json(options.common.json.as_deref(), &raw)
}
