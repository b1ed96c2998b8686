//! A space filled from texts through the service, as a user would, and its figures.
//!
//! Invariant: when [`fill`] returns, every text can be found and the index has stopped growing.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use flashbulb_engine::index::GRAPH_FROM;
use serde_json::{Value, json};

use crate::Failure;
use crate::caller::{Caller, Failed};
use crate::daemon::ANSWER_LIMIT;

/// How long filling took.
pub struct Filled {
    /// Texts a second, from the import's start until the last could be found.
    pub per_s: f64,
    pub seconds: f64,
    /// From the import's start until the index stood still.
    pub indexed_after_s: f64,
}

/// Writes one text a line.
///
/// # Errors
/// If the file cannot be written.
pub fn write_lines(path: &Path, lines: impl Iterator<Item = String>) -> Result<(), Failure> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

/// Imports a file of texts, one a line, into `space`; returns when they are durable.
///
/// # Errors
/// What the daemon says.
pub fn import(caller: &mut Caller, space: &str, file: &Path) -> Result<(), Failed> {
    let params = json!({"space": space, "format": "text", "path": file});
    caller.call_raw("memory.import", &params, ANSWER_LIMIT * 6).map(drop)
}

/// Imports `texts`, through a file in `dir`, and waits for the vectors and the index.
///
/// # Errors
/// What the daemon and the file system say.
pub fn fill(
    caller: &mut Caller,
    space: &str,
    dir: &Path,
    texts: impl ExactSizeIterator<Item = String>,
) -> Result<Filled, Failure> {
    let file = dir.join("turns.txt");
    let count = texts.len();
    write_lines(&file, texts)?;
    let begun = Instant::now();
    import(caller, space, &file)?;
    while stats(caller, space)?["pending"] != 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let per_s = count as f64 / seconds;
    wait_indexed(caller, space)?;
    std::fs::remove_file(&file)?;
    Ok(Filled { per_s, seconds, indexed_after_s: begun.elapsed().as_secs_f64() })
}

/// The figures of a space.
///
/// # Errors
/// What the daemon says.
pub fn stats(caller: &mut Caller, space: &str) -> Result<Value, Failed> {
    caller.call("space.stats", &json!({"space": space}), ANSWER_LIMIT)
}

/// Removes a space if there is one.
///
/// # Errors
/// What the daemon says besides that there is none.
pub fn drop_if_there(caller: &mut Caller, space: &str) -> Result<(), Failure> {
    let listed = caller.call("space.list", &json!({}), ANSWER_LIMIT)?;
    let spaces = listed["spaces"].as_array().into_iter().flatten();
    if spaces.into_iter().any(|s| s["space"] == space) {
        caller.call("space.drop", &json!({"space": space}), ANSWER_LIMIT)?;
    }
    Ok(())
}

/// Waits until nothing in the store waits for its vectors.
///
/// # Errors
/// What the daemon says, or that it makes no end of it.
pub fn wait_embedded(caller: &mut Caller) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let status = caller.call("admin.status", &json!({}), ANSWER_LIMIT)?;
        match status["store"]["pending"].as_u64() {
            Some(0) => return Ok(()),
            None => return Err("admin.status has no store.pending".into()),
            Some(left) if begun.elapsed() > ANSWER_LIMIT => {
                return Err(format!("{left} memories still wait for their vectors").into());
            }
            Some(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Waits until the graph stops growing: small spaces have none.
fn wait_indexed(caller: &mut Caller, space: &str) -> Result<(), Failure> {
    let mut last = (u64::MAX, Instant::now());
    loop {
        let stats = stats(caller, space)?;
        let graph = stats["graph_vectors"].as_u64().unwrap_or(0);
        let vectors = stats["vectors"].as_u64().ok_or("space.stats has no vectors")?;
        if graph >= vectors || vectors < u64::from(GRAPH_FROM) {
            return Ok(());
        }
        if graph != last.0 {
            last = (graph, Instant::now());
        } else if last.1.elapsed() > Duration::from_secs(5) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
