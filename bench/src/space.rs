//! A space filled from texts, through the socket, as a user would.
//!
//! Invariant: when [`fill`] returns, every text can be found and the index has stopped growing.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use flashbulb::client::Client;
use serde_json::{Value, json};

use crate::Failure;
use crate::daemon::ANSWER_LIMIT;

/// How long filling took.
pub struct Filled {
    /// Texts a second, from the import's start until the last could be found.
    pub per_s: f64,
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
pub fn import(client: &mut Client, space: &str, file: &Path) -> Result<(), Failure> {
    let params = json!({"space": space, "format": "text", "path": file});
    client.call::<Value>("memory.import", &params, ANSWER_LIMIT * 6)?;
    Ok(())
}

/// Imports `texts`, through a file in `dir`, and waits for the vectors and the index.
///
/// # Errors
/// What the daemon and the file system say.
pub fn fill(
    client: &mut Client,
    space: &str,
    dir: &Path,
    texts: &[String],
) -> Result<Filled, Failure> {
    let file = dir.join("turns.txt");
    write_lines(&file, texts.iter().cloned())?;
    let begun = Instant::now();
    import(client, space, &file)?;
    while stats(client, space)?["pending"] != 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
    let per_s = texts.len() as f64 / begun.elapsed().as_secs_f64();
    wait_indexed(client, space)?;
    Ok(Filled { per_s, indexed_after_s: begun.elapsed().as_secs_f64() })
}

/// The figures of a space.
///
/// # Errors
/// What the daemon says.
pub fn stats(client: &mut Client, space: &str) -> Result<Value, Failure> {
    Ok(client.call::<Value>("space.stats", json!({"space": space}), ANSWER_LIMIT)?)
}

/// Waits until the graph stops growing: small spaces have none.
fn wait_indexed(client: &mut Client, space: &str) -> Result<(), Failure> {
    let mut last = (u64::MAX, Instant::now());
    loop {
        let stats = stats(client, space)?;
        let graph = stats["graph_vectors"].as_u64().unwrap_or(0);
        if graph > 0 && stats["vectors"].as_u64() == Some(graph) {
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
