//! Figures as text.
//!
//! Invariant: what is absent is shown as absent; a void run is marked in every line that shows it.

use std::path::Path;

use flashbulb::embed::Embedder;
use serde_json::Value;

use crate::Failure;
use crate::load::{Percentiles, Summary};

fn ms(us: Option<u64>) -> String {
    us.map_or_else(|| "–".to_owned(), |us| format!("{:.2}", us as f64 / 1000.0))
}

/// Percentiles in one line, milliseconds.
pub fn percentiles(p: &Percentiles) -> String {
    format!(
        "p50 {} ms, p90 {} ms, p99 {} ms, p99.9 {} ms, max {} ms, n {}",
        ms(p.p50),
        ms(p.p90),
        ms(p.p99),
        ms(p.p999),
        ms(Some(p.max)),
        p.samples
    )
}

/// The figures of one load, a line each.
pub fn summary(s: &Summary) -> String {
    let void = if s.void { "  VOID: the generator itself was late\n" } else { "" };
    let priority = if s.realtime { "real-time" } else { "ordinary" };
    let stolen = s.stolen.map_or("unknown".to_owned(), |share| format!("{:.1} %", share * 100.0));
    format!(
        "{void}  generator at {priority} priority, processor time stolen by other guests: {stolen}\n  offered {:.0}/s, achieved {:.1}/s, {} sent, {} missed\n  response {}\n  service  {}\n  embed    {}\n  dense    {}\n  lag      {}",
        s.offered_per_s,
        s.achieved_per_s,
        s.sent,
        s.misses,
        percentiles(&s.response),
        percentiles(&s.service),
        percentiles(&s.embed),
        percentiles(&s.dense),
        percentiles(&s.lag)
    )
}

/// What the model runs on, as it was witnessed.
pub fn ran(embedder: &Embedder) -> String {
    let ran = embedder.ran();
    format!("{} {}, {} on {}", ran.model, ran.precision, ran.runtime, ran.provider)
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
