//! One row after another.
//!
//! Invariant: what a row says of its surroundings (import, bare model, counters, processors) was measured around that row.

use std::path::Path;
use std::time::{Duration, Instant};

use flashbulb::embed::Embedder;
use serde_json::{Value, json};

use super::mix::{Maker, Method, Request};
use super::offer::{Load, Outcome, offer, requests_for};
use super::outcome;
use super::sweep::{self, Plan, Step};
use crate::analysis::Asked;
use crate::caller::{Caller, Target};
use crate::daemon::{ANSWER_LIMIT, Daemon, Start};
use crate::data::Queries;
use crate::feed::Feed;
use crate::report::text;
use crate::run::{Beside, Cold, Import, Knee, Purpose, Row, Temperature};
use crate::{Failure, bare, machine};

/// Seconds of load that are not counted: the first requests of a connection and of a graph are another matter.
const WARM_UP_SECONDS: f64 = 2.0;
/// Requests of a cold row, besides the first.
const COLD_REQUESTS: usize = 100;

/// What all rows share.
pub struct Bench<'a, T> {
    pub embedder: &'a Embedder,
    pub target: &'a Target,
    pub pid: Option<u32>,
    pub maker: Maker<'a>,
    pub queries: Queries<'a, T>,
    pub rows: Vec<Row>,
    pub knees: Vec<Knee>,
    /// Answers to be compared with brute force.
    pub asked: Vec<Asked>,
    /// Of them from each row.
    pub quota: usize,
    /// Also from rows of a sweep.
    pub of_sweeps: bool,
    pub out: Option<&'a Path>,
    pub seconds: f64,
    pub reference_seconds: f64,
    pub connections: usize,
    pub timeout: Duration,
    pub promise: Duration,
    pub seed: u64,
}

/// How the knee is searched, and what comes after it.
pub struct Sweep {
    pub plan: Plan,
    /// Of each step.
    pub seconds: f64,
    /// Share of the knee at which a row follows.
    pub then: Option<f64>,
}

/// What a row is to be.
struct Plot {
    purpose: Purpose,
    beside: Beside,
    rate: f64,
    seconds: f64,
}

impl<T: Fn(&str) -> Option<usize>> Bench<'_, T> {
    /// A row for each rate, and a sweep, beside the same.
    ///
    /// # Errors
    /// What the service, the model or the file system say.
    pub fn rows_beside(
        &mut self,
        beside: Beside,
        rates: &[f64],
        sweep: Option<&Sweep>,
        mut feed: Option<&mut Feed>,
    ) -> Result<(), Failure> {
        let mut alone = self.alone(feed.as_deref_mut())?;
        for &rate in rates {
            let plot = Plot { purpose: Purpose::Rate, beside, rate, seconds: self.seconds };
            let (mut row, requests) = self.row(&plot, alone, feed.as_deref_mut())?;
            let queries: Vec<String> = requests.iter().filter_map(query_of).collect();
            let seconds = self.reference_seconds;
            row.bare = Some(bare::at_a_rate(self.embedder, &queries, rate, seconds, self.seed)?);
            let after = self.alone(feed.as_deref_mut())?;
            row.import = row.import.map(|i| Import::new(alone, i.beside_per_s, after));
            alone = after;
            self.keep(row);
        }
        if let Some(Sweep { plan, seconds, then }) = sweep {
            let knee = sweep::knee(plan, beside, |rate| {
                let plot = Plot { purpose: Purpose::Sweep, beside, rate, seconds: *seconds };
                let (row, _) = self.row(&plot, alone, feed.as_deref_mut())?;
                let in_time = row.load.in_time as f64 / row.load.searches.max(1) as f64;
                let step = Step { in_time, void: row.load.void.is_some() };
                self.keep(row);
                Ok(step)
            })?;
            text::print_knee(&knee);
            if let (Some(knee), Some(share)) = (knee.per_s, then) {
                let rate = (knee * share).round();
                let plot = Plot { purpose: Purpose::Rate, beside, rate, seconds: self.seconds };
                let (row, _) = self.row(&plot, alone, feed)?;
                self.keep(row);
            }
            self.knees.push(knee);
        }
        Ok(())
    }

    fn alone(&self, feed: Option<&mut Feed>) -> Result<Option<f64>, Failure> {
        feed.map(|feed| feed.rate_for(self.reference_seconds)).transpose()
    }

    fn keep(&mut self, row: Row) {
        text::print_row(&row);
        self.rows.push(row);
    }

    fn requests(&mut self, rate: f64, seconds: f64) -> Result<Vec<Request>, Failure> {
        let queries = &mut self.queries;
        let one = || queries.take(1)?.pop().ok_or_else(|| "no query".into());
        self.maker.make(requests_for(rate, seconds), one)
    }

    fn load<'b>(&'b self, requests: &'b [Request], rate: f64, seconds: f64) -> Load<'b> {
        Load {
            target: self.target,
            pid: self.pid,
            requests,
            rate,
            seconds,
            most: usize::MAX,
            seed: self.seed.wrapping_add(self.rows.len() as u64),
            connections: self.connections,
            timeout: self.timeout,
        }
    }

    /// One load, after some that is not counted; and its requests.
    fn row(
        &mut self,
        plot: &Plot,
        alone: Option<f64>,
        mut feed: Option<&mut Feed>,
    ) -> Result<(Row, Vec<Request>), Failure> {
        let first = self.requests(plot.rate, WARM_UP_SECONDS)?;
        offer(&self.load(&first, plot.rate, WARM_UP_SECONDS))?;
        let requests = self.requests(plot.rate, plot.seconds)?;
        let mut caller = self.target.connect()?;
        let before = counters(&mut caller)?;
        let mark = feed.as_mut().map(|feed| feed.mark()).transpose()?;
        let outcome = offer(&self.load(&requests, plot.rate, plot.seconds))?;
        let import = match (feed, mark) {
            (Some(feed), Some(mark)) => Some(Import::new(alone, feed.rate_since(&mark)?, None)),
            _ => None,
        };
        let after = counters(&mut caller)?;
        let name = self.name(plot);
        if plot.purpose == Purpose::Rate || self.of_sweeps {
            self.remember(&outcome, &requests);
        }
        let row = Row {
            log: self.log(&outcome, &name)?,
            name,
            purpose: plot.purpose,
            beside: plot.beside,
            temperature: Temperature::Warm,
            load: outcome::load(&outcome, plot.rate, self.promise)?,
            import,
            bare: None,
            against_bare: None,
            cold: None,
            counters: Some((before, after)),
        };
        Ok((row, requests))
    }

    /// Of no other row.
    fn name(&self, plot: &Plot) -> String {
        let beside = match plot.beside {
            Beside::Nothing => "alone",
            Beside::Import => "import",
        };
        match plot.purpose {
            Purpose::Sweep => format!("sweep-{beside}-{:02}", self.rows.len()),
            Purpose::Rate | Purpose::Cold => format!("{beside}-{}", plot.rate),
        }
    }

    fn log(&self, outcome: &Outcome, name: &str) -> Result<Option<String>, Failure> {
        let Some(out) = self.out else { return Ok(None) };
        let file = format!("{name}.hlog");
        outcome::write_log(outcome, &out.join(&file), name)?;
        Ok(Some(file))
    }

    /// Keeps some answers for the comparison with brute force. Made-up queries are like nothing that is remembered, and
    /// harder to answer (of 200,000 turns 0.88 instead of 0.99): real ones are kept where there are any.
    fn remember(&mut self, outcome: &Outcome, requests: &[Request]) {
        if self.queries.made > 0 && !self.asked.is_empty() {
            return;
        }
        let of = |(i, seqs): &(usize, Vec<u64>)| {
            let request = requests.get(*i)?;
            let space = request.params["space"].as_str()?.to_owned();
            Some(Asked { space, query: query_of(request)?, hits: seqs.clone() })
        };
        self.asked.extend(outcome.hits.iter().take(self.quota).filter_map(of));
    }

    /// The first requests of a new daemon, with the page cache dropped where that is allowed.
    ///
    /// # Errors
    /// What the daemon says.
    pub fn cold(&mut self, start: &Start<'_>, rate: f64) -> Result<(), Failure> {
        let seconds = 4.0 * COLD_REQUESTS as f64 / rate;
        let mut requests = self.requests(rate, seconds)?;
        let page_cache = machine::drop_page_cache();
        let daemon = Daemon::launch(start)?;
        let mut caller = daemon.caller()?;
        let first = requests.iter().position(|r| r.method == Method::Search);
        let first = requests.remove(first.ok_or("a cold row needs a search")?);
        let begun = Instant::now();
        caller.call_raw(first.method.name(), &first.params, ANSWER_LIMIT)?;
        let first_request_us = u64::try_from(begun.elapsed().as_micros())?;
        let target = daemon.target();
        let load = Load {
            target: &target,
            pid: Some(daemon.pid()),
            most: COLD_REQUESTS,
            ..self.load(&requests, rate, seconds)
        };
        let outcome = offer(&load)?;
        let name = format!("cold-{rate}");
        let row = Row {
            log: self.log(&outcome, &name)?,
            name,
            purpose: Purpose::Cold,
            beside: Beside::Nothing,
            temperature: Temperature::Cold,
            load: outcome::load(&outcome, rate, self.promise)?,
            import: None,
            bare: None,
            against_bare: None,
            cold: Some(Cold {
                page_cache,
                started_in_ms: daemon.started_in.as_secs_f64() * 1000.0,
                first_request_us,
            }),
            counters: None,
        };
        crate::space::drop_if_there(&mut caller, super::mix::ADDS)?;
        drop(caller);
        daemon.stop()?;
        self.keep(row);
        Ok(())
    }
}

fn query_of(request: &Request) -> Option<String> {
    request.params["query"].as_str().map(str::to_owned)
}

/// The service's own counters.
fn counters(caller: &mut Caller) -> Result<Value, Failure> {
    let status = caller.call("admin.status", &json!({}), ANSWER_LIMIT)?;
    Ok(
        json!({"counters": status["counters"], "lanes": status["lanes"], "background": status["background"]}),
    )
}
