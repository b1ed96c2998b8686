//! The embedding model alone: what the service is measured against.
//!
//! Invariant: the same texts, graph and session settings as the service uses; no store, no socket.

use std::time::{Duration, Instant};

use flashbulb::embed::{self, EmbedOptions, Embedder, Helper};
use flashbulb::provision::{self, Drawn, Wanted};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::data::{self, Corpus, Queries};
use crate::machine::Machine;
use crate::report::text;
use crate::run::Turns;
use crate::stats::{Percentiles, histogram, record};
use crate::{Common, Failure, Precision};

/// Options of `bare`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Write the raw figures here as JSON
    #[arg(long)]
    json: Option<std::path::PathBuf>,
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

/// The embedder as the service opens it.
///
/// # Errors
/// What provisioning or the runtime say.
pub fn embedder(precision: Precision) -> Result<Embedder, Failure> {
    let provisioned = provision::ensure(&Wanted::default(), &Drawn::default())?;
    let precision = match precision {
        Precision::Auto => embed::Precision::Auto,
        Precision::F32 => embed::Precision::F32,
        Precision::Int8 => embed::Precision::Int8,
    };
    let options = EmbedOptions { precision, ..EmbedOptions::default() };
    Ok(Embedder::open(&provisioned, &options, &Drawn::default())?)
}

/// How many tokens a text has; none if it is more than one window, or no text.
pub fn tokens(embedder: &Embedder) -> impl Fn(&str) -> Option<usize> {
    |text| match embedder.query_windows(text).ok()?.as_slice() {
        [window] => Some(window.len()),
        _ => None,
    }
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
            let mut session = embedder.session()?;
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

/// Times `run` alone and, where the model can share its work, with a helper, in turns of one run each.
struct Clock {
    helper: Option<Helper>,
    alone: Histogram<u64>,
    helped: Histogram<u64>,
    runs: usize,
}

impl Clock {
    fn new(embedder: &Embedder) -> Result<Clock, Failure> {
        let helper = embedder.shares_rows().then(Helper::start).transpose()?;
        Ok(Clock { helper, alone: histogram()?, helped: histogram()?, runs: 0 })
    }

    fn time(&mut self, run: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        self.runs += 1;
        let helper = self.helper.as_ref().filter(|_| self.runs.is_multiple_of(2));
        let into = if helper.is_some() { &mut self.helped } else { &mut self.alone };
        let begun = Instant::now();
        let _help = helper.map(Helper::borrow);
        run()?;
        record(into, begun.elapsed());
        Ok(())
    }

    fn read<T>(&self, read: impl Fn(&Histogram<u64>) -> T) -> Turns<T> {
        let helped = self.helper.as_ref().map(|_| read(&self.helped));
        Turns { alone: read(&self.alone), helped }
    }
}

/// One query at a time, at Poisson arrivals: how long tokenising and embedding take with cold caches.
///
/// # Errors
/// What the model says.
pub fn at_a_rate(
    embedder: &Embedder,
    queries: &[String],
    rate: f64,
    seconds: f64,
    seed: u64,
) -> Result<Turns<Percentiles>, Failure> {
    let mut session = embedder.session()?;
    let mut clock = Clock::new(embedder)?;
    let mut due = Instant::now();
    let until = due + Duration::from_secs_f64(seconds);
    for (gap, query) in data::poisson_gaps(rate, seed).zip(queries.iter().cycle()) {
        due += Duration::from_secs_f64(gap);
        if due > until {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        clock.time(|| {
            for window in embedder.query_windows(query)? {
                session.embed(&window)?;
            }
            Ok(())
        })?;
    }
    Ok(clock.read(Percentiles::of))
}

/// Tokens of the texts that are run by themselves, special ones included.
const LENGTHS: [usize; 6] = [5, 8, 16, 24, 32, 128];
/// Runs of each, alone and helped; the least is the time when nothing interferes.
const RUNS: usize = 300;

/// How long one run of the whole graph takes at one length.
#[derive(Debug, Serialize)]
struct AtLength {
    tokens: usize,
    took: Turns<LeastAndMedian>,
}

/// In microseconds.
#[derive(Debug, Serialize)]
struct LeastAndMedian {
    least: u64,
    p50: u64,
}

/// One length after another, warm.
fn at_lengths(embedder: &Embedder) -> Result<Vec<AtLength>, Failure> {
    let mut session = embedder.session()?;
    let mut rows = Vec::new();
    for wanted in LENGTHS {
        // A common word is one token in a usual vocabulary; what came out is what is reported.
        let text = vec!["time"; wanted.saturating_sub(2)].join(" ");
        let windows = embedder.query_windows(&text)?;
        let window = windows.first().ok_or("the text has no window")?;
        let mut clock = Clock::new(embedder)?;
        for _ in 0..2 * RUNS {
            clock.time(|| Ok(session.embed(window).map(drop)?))?;
        }
        let took = clock.read(|h| LeastAndMedian { least: h.min(), p50: h.value_at_quantile(0.5) });
        rows.push(AtLength { tokens: window.len(), took });
    }
    Ok(rows)
}

/// Runs `bare`.
///
/// # Errors
/// What the data, provisioning, the runtime or the file system say.
pub fn run(options: &Options) -> Result<(), Failure> {
    let machine = Machine::read();
    let embedder = embedder(options.common.precision)?;
    let seed = options.common.seed;
    let corpus = Corpus::read(options.common.data.as_deref(), 10_000, seed)?;
    let queries = Queries::new(corpus.held_out(), seed, tokens(&embedder))?.take(1_000)?;
    let loop_rate = rate(&embedder, corpus.base(), options.threads, options.seconds)?;
    let paced = at_a_rate(&embedder, &queries, options.rate, options.seconds, seed)?;
    let alone = at_lengths(&embedder)?;
    println!("{}\n", machine.line());
    println!("{} ({})", corpus.source, text::ran(&embedder));
    println!(
        "in a loop, {} thread(s): {:.0} texts/s over {} texts",
        loop_rate.threads, loop_rate.texts_per_s, loop_rate.texts
    );
    println!("a query at {} a second, every other one with a helper", options.rate);
    println!("  alone   {}", text::percentiles(&paced.alone));
    if let Some(helped) = &paced.helped {
        println!("  helped  {}", text::percentiles(helped));
    }
    println!("the whole graph in a loop, least and p50 of {RUNS} runs");
    let ms = |took: &LeastAndMedian| {
        format!("{:.2} and {:.2} ms", took.least as f64 / 1000.0, took.p50 as f64 / 1000.0)
    };
    for AtLength { tokens, took } in &alone {
        let helped = took.helped.as_ref().map(|took| format!(", helped {}", ms(took)));
        println!("  {tokens} tokens: alone {}{}", ms(&took.alone), helped.unwrap_or_default());
    }
    let raw = serde_json::json!({"machine": machine, "lengths": alone, "loop": loop_rate, "paced": paced});
    text::write_json(options.json.as_deref(), &raw)
}
